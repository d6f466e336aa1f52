"""The extension points, used as docs/extending.md says: from outside, with no file of elang changed."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import BAD, FAST, FILLER, GOOD, QUIET
from lightning.pytorch import Trainer
from torch import Tensor

from elang import FinetuneModule, InputError, JointModule, JointPredictor, TextClassificationData, operating_curve
from elang.backends.backend import Scored
from elang.backends.loading.load import SCHEMES, open_backend
from elang.cli.verbs import main
from elang.data.examples import Examples
from elang.data.module import TextData
from elang.inference.cascade import Cascade, Stage
from elang.method.router import RouterHead, logit_features, num_logit_features
from elang.method.scores import SCORES, register_score
from elang.records.reading import read_records
from elang.records.table import Records, write_records
from elang.tasks.kind import KINDS, register_kind
from elang.tasks.kinds import Classification
from elang.tasks.text_task import TextTask


class Ordinal(Classification):
    """A kind of task of one's own: classes in order, and an answer is the worse the further off it is."""

    name = "ordinal"

    def loss(self, logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
        """The squared distance of the cumulated probabilities."""
        truth = torch.nn.functional.one_hot(target, logits.shape[-1])
        return (logits.softmax(-1).cumsum(-1) - truth.cumsum(-1)).square().sum(-1).mean()

    def reward(self, prediction: Tensor, label: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Minus the number of classes between answer and label."""
        return -(prediction - label).abs().double()

    def worth(self, quality: str, targets: dict[str, Tensor]) -> dict[str, object]:
        """No answer earns more than the right one."""
        return {"largest": 0.0, "unit": "classes off"}


@pytest.fixture
def ordinal():
    yield register_kind(Ordinal())
    del KINDS["ordinal"]


RATINGS = ["low", "middle", "high"]


def write_ratings(path: Path, rows: int, seed: int) -> str:
    """Texts with up to two good words among bad ones, and how many, in words."""
    draw = random.Random(seed)
    ratings = [draw.randrange(3) for _ in range(rows)]
    texts = [[*draw.choices(GOOD, k=r), *draw.choices(BAD, k=2 - r), *draw.choices(FILLER, k=6)] for r in ratings]
    texts = [" ".join(draw.sample(words, len(words))) for words in texts]
    pd.DataFrame({"text": texts, "label": [RATINGS[r] for r in ratings]}).to_csv(path, index=False)
    return str(path)


def test_a_kind_of_task_of_ones_own(ordinal, base_model, tmp_path):
    """From training over the curve to the predictor's answers."""
    files = [write_ratings(tmp_path / f"{rows}.csv", rows, rows) for rows in (300, 90)]
    data = TextClassificationData(*files, label_names=RATINGS, problem="ordinal", batch_size=32)
    assert data.text_task.kind is ordinal
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    models = {name: str(tmp_path / name) for name in ("swift", "super")}
    for layers, output in enumerate(models.values(), 1):
        torch.manual_seed(0)
        options = {"layers": layers, "lr": 2e-3, "output": output}
        module = FinetuneModule(str(base_model), RATINGS, data.task_fields, **options)
        Trainer(max_epochs=1, **quiet).fit(module, datamodule=data)
    joint = JointModule(*models.values(), RATINGS, data.task_fields, output=str(tmp_path / "joint"))
    Trainer(**quiet).validate(joint, datamodule=data, verbose=False)
    records = pd.read_parquet(tmp_path / "joint" / "records.parquet").query("split == 'validation'")
    summary = json.loads((tmp_path / "joint" / "summary.json").read_text())
    right = (records["swift_prediction"] == records["label"]).mean()
    assert summary["qualities"]["accuracy"]["swift"]["quality"] == pytest.approx(right)
    answers = JointPredictor(*models.values(), threshold="inf")(pd.read_csv(files[1])["text"].tolist())
    assert [answer.label for answer in answers] == [RATINGS[i] for i in records["swift_prediction"]]


def test_answers_of_a_kind_of_ones_own(ordinal, tmp_path):
    """Are written and read by their names, and the curve's gains are its rewards."""
    task = TextTask.of(RATINGS, TextTask(RATINGS, "ordinal").plain())
    label, swift, super_ = torch.tensor([0, 2, 1, 2]), torch.tensor([2, 2, 0, 1]), torch.tensor([1, 0, 1, 2])
    assert [task.kind.read_answer(task.kind.answer(int(p), task, None), task) for p in swift] == swift.tolist()
    assert task.kind.read_answer("lowest", task) is None
    write_records(tmp_path / "swift.parquet", {"validation": Records(torch.arange(4), swift)}, RATINGS)
    found, _ = read_records(tmp_path / "swift.parquet", RATINGS, "ordinal")
    assert torch.equal(found["validation"].prediction, swift)
    rewards = [task.kind.reward(prediction, label, {})[:, None] for prediction in (swift, super_)]
    # The first is deferred first, the second, where the Super is two classes further off, last.
    curve = operating_curve(torch.tensor([4.0, 1.0, 3.0, 2.0]), *rewards, lambda sums: sums[:, 0] / 4)
    assert curve.quality.tolist() == [-1.0, -0.75, -0.5, -0.25, -0.75]
    near, far = (task.kind.loss(torch.tensor([logits]), torch.tensor([0])) for logits in ([0.0, 9, 0], [0.0, 0, 9]))
    assert near < far
    with pytest.raises(InputError, match="There is a kind of task 'ordinal' already"):
        register_kind(Ordinal())


class LabelledLines(TextData):
    """A data module of one's own: lines as "good: a great film"."""

    @property
    def text_task(self) -> TextTask:
        """Two classes."""
        return TextTask.of(["bad", "good"])

    def read(self, source: str) -> Examples:
        """All lines of a file."""
        lines = [line.split(": ", 1) for line in Path(self.files[source]).read_text("utf-8").splitlines()]
        texts = [(text,) for _, text in lines]
        label = torch.tensor([self.label_names.index(name) for name, _ in lines])
        return Examples.of(texts, label)


def labelled_lines(files: dict[str, str]) -> LabelledLines:
    """A function may make the data module, too."""
    return LabelledLines(files)


@pytest.mark.parametrize("made_by", ["LabelledLines", "labelled_lines"])
def test_a_data_module_of_ones_own(pair, files, tmp_path, made_by):
    sources = {}
    for name, file in zip(("train", "validation"), files, strict=True):
        frame = pd.read_csv(file)
        sources[name] = str(tmp_path / f"{name}.txt")
        Path(sources[name]).write_text("\n".join(frame["label"] + ": " + frame["text"]) + "\n", "utf-8")
    score = ["score", "--model.model", str(pair["super"]), "--model.output", str(tmp_path / "records.parquet")]
    score += ["--data", f"{__name__}.{made_by}", "--data.files", json.dumps(sources)]
    assert main([*score, *QUIET]) == 0
    wanted = ["split", "id", "prediction", "key"]
    records = pd.read_parquet(tmp_path / "records.parquet")[wanted]
    pd.testing.assert_frame_equal(records, pd.read_parquet(pair["records"])[wanted])


@pytest.fixture
def energy_gap():
    """A score of one's own: how much the free energy would rise without the favoured class."""

    @register_score("energy_gap")
    def energy_gap(logits: Tensor, temperature: float = 1.0) -> Tensor:
        scaled = logits.double() / temperature
        others = scaled.scatter(-1, scaled.argmax(-1, keepdim=True), -torch.inf)
        return others.logsumexp(-1) - scaled.logsumexp(-1)

    yield energy_gap
    del SCORES["energy_gap"]


def test_a_score_of_ones_own(energy_gap, pair, base_model, data_args, files, tmp_path):
    swift = ["fit", "--model", "SwiftModule", "--model.model", str(base_model), "--model.layers", "1"]
    swift += ["--model.super_records", str(pair["records"]), "--model.output", str(tmp_path / "swift")]
    swift += ["--model.score", "energy_gap", "--trainer.max_epochs", "1"]
    assert main([*swift, *data_args, *FAST, "--trainer.default_root_dir", str(tmp_path)]) == 0
    joint = ["validate", "--model.swift_model", str(tmp_path / "swift"), "--model.super_model", str(pair["super"])]
    assert main([*joint, "--model.output", str(tmp_path / "joint"), *data_args, *QUIET]) == 0
    summary = json.loads((tmp_path / "joint" / "summary.json").read_text())
    assert "parity" in summary["qualities"]["accuracy"]["scores"]["energy_gap"]["held_out"]
    predictor = JointPredictor(str(tmp_path / "swift"), str(pair["super"]), "defer 30%")
    answers = predictor(pd.read_csv(files[1])["text"].tolist())
    assert 0 < sum(answer.answered_by == "super" for answer in answers) < len(answers)
    records = pd.read_parquet(tmp_path / "joint" / "records.parquet").query("split == 'validation'")
    logits = torch.tensor(records["swift_logits"].tolist())
    assert records["score_energy_gap"].tolist() == pytest.approx(energy_gap(logits).tolist(), abs=1e-6)
    assert [answer.score for answer in answers] == pytest.approx(records["score_energy_gap"].tolist(), abs=1e-4)


def test_a_router_reads_what_it_was_fitted_on(request):
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    width, features = num_logit_features(3), logit_features(logits, 3)
    head = RouterHead(width)
    head.fit(features, torch.rand(40, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 5)
    request.getfixturevalue("energy_gap")
    assert num_logit_features(3) == width
    assert torch.equal(head(logit_features(logits, 3)), head(features))


def test_a_score_is_not_replaced(energy_gap):
    with pytest.raises(InputError, match="There is a score 'energy_gap' already"):
        register_score("energy_gap")(energy_gap)


class LongTexts:
    """A backend of one's own, `long:WORDS`: the second class where a text has more words, otherwise the first."""

    def __init__(self, address, task):
        self.task, self.words = task, int(address.removeprefix("long:"))

    def answer(self, examples):
        prediction = torch.tensor([int(len(texts[0].split()) > self.words) for texts in examples.texts])
        return Records(examples.id, prediction, key=examples.key)


def test_a_backend_of_ones_own(pair, files, data_args, tmp_path, monkeypatch):
    monkeypatch.setitem(SCHEMES, "long:*", LongTexts)
    joint = ["validate", "--model.swift_model", str(pair["swift"]), "--model.super_model", "long:7"]
    joint += ["--model.super_flops", "1e9", "--model.output", str(tmp_path / "joint")]
    assert main([*joint, *data_args, *QUIET]) == 0
    records = pd.read_parquet(tmp_path / "joint" / "records.parquet").query("split == 'validation'")
    words = pd.read_csv(files[1])["text"].str.split().map(len)
    assert 0 < (words > 7).sum() < len(words)
    assert records["super_prediction"].tolist() == (words > 7).astype(int).tolist()


def test_recorded_answers_can_be_scored(pair, files):
    data = TextClassificationData(train=str(files[0]), validation=str(files[1]))
    backend = open_backend(str(pair["records"]), data.text_task)
    examples = data.examples("validation")
    scored = backend.score(examples, "max_softmax", -0.9)
    records = backend.answer(examples)
    assert torch.equal(records.id, examples.id)
    assert scored.answers == records.prediction.tolist()
    assert scored.scores == SCORES["max_softmax"](records.logits).tolist()
    assert scored.deferred == [score > -0.9 for score in scored.scores]
    assert open_backend(str(pair["swift"]), data.text_task) is None


class Counter:
    """A toy backend, which needs no model: whether a text is long, surely known of texts of up to so many words."""

    def __init__(self, reach=0):
        self.task, self.reach, self.asked = TextTask.of(["short", "long"]), reach, []

    def answer(self, examples):
        self.asked.append([row[0] for row in examples.texts])
        words = torch.tensor([len(row[0].split()) for row in examples.texts])
        return Records(examples.id, (words > 3).long())

    def score(self, examples, score, threshold):
        assert score == "words"
        words = torch.tensor([len(row[0].split()) for row in examples.texts])
        scores = words / self.reach
        deferred = scores > threshold
        # Whatever is deferred has no answer here.
        answers = torch.where(deferred, 99, self.answer(examples).prediction).tolist()
        return Scored(answers, scores.tolist(), deferred.tolist())


@pytest.fixture
def three_stages():
    small, middle, large = Counter(2), Counter(4), Counter()
    return [Stage("small", small, "words", 1.0), Stage("middle", middle, "words", 1.0, 3), Stage("large", large)]


def test_three_stages_of_toy_backends(three_stages):
    cascade = Cascade(three_stages)
    texts = [" ".join(["word"] * n) for n in (1, 5, 3, 2, 4, 6)]
    found = cascade(texts)
    assert [one.label for one in found] == ["short", "long", "short", "short", "long", "long"]
    assert [one.answered_by for one in found] == ["small", "large", "middle", "small", "middle", "large"]
    # The last score that was asked for.
    assert [one.score for one in found] == [0.5, 1.25, 0.75, 1.0, 1.0, 1.5]
    # Each is asked for what reaches it.
    assert [len(stage.backend.asked[0]) for stage in three_stages] == [6, 4, 2]
    again = list(cascade.map(iter(texts * 20), 8))
    assert [one.id for one in again] == list(range(120))
    assert [replace(one, id=one.id % 6) for one in again] == found * 20
    cascade.set_threshold(-torch.inf)
    cascade.set_threshold(torch.inf, stage=1)
    assert {one.answered_by for one in cascade(texts)} == {"middle"}
    # What would defer everything is not asked: the first stage, a later one, and all but the last.
    for skipped, by in ([0], {"middle", "large"}), ([1], {"small", "large"}), ([0, 1], {"large"}):
        for number, stage in enumerate(three_stages[:2]):
            cascade.set_threshold(-torch.inf if number in skipped else 1.0, stage=number)
            stage.backend.asked.clear()
        found = cascade(texts)
        assert {one.answered_by for one in found} == by
        assert [bool(stage.backend.asked) for stage in three_stages[:2]] == [n not in skipped for n in (0, 1)]
        assert list(cascade.map(iter(texts), 2)) == found
    # No stage has scored anything.
    assert {one.score for one in found} == {None}


class Doubtful(Counter):
    """It has logits, but no answer to texts of three words."""

    def answer(self, examples):
        records = super().answer(examples)
        logits = torch.stack([3.0 - 2 * records.prediction, records.prediction.float()], 1)
        three = [len(row[0].split()) == 3 for row in examples.texts]
        return replace(records, prediction=records.prediction.masked_fill(torch.tensor(three), -1), logits=logits)


def test_a_backend_may_have_probabilities_and_no_answer(three_stages):
    found = Cascade([three_stages[0], Stage("large", Doubtful())])(["word", "word word word", "word word word word"])
    assert [one.label for one in found] == ["short", None, "long"]
    assert [one.answered_by for one in found] == ["small", "large", "large"]
    # The first stage says nothing of its own.
    long = float(torch.tensor([1.0, 1.0]).softmax(0)[1])
    assert [one.probability for one in found] == [None, None, pytest.approx(long)]


def test_a_trained_pair_before_a_third_model(pair, files):
    """Any two models are stages; what both defer goes to another backend."""
    texts = pd.read_csv(files[1])["text"].tolist()
    predictor = JointPredictor(str(pair["swift"]), str(pair["super"]), "defer 30%")
    found = predictor(texts)
    swift, last = predictor.stages
    person = Counter()
    person.task = predictor.task
    cascade = Cascade([swift, Stage("person", person)])
    mixed = cascade(texts)
    for one, other in zip(found, mixed, strict=True):
        assert one.score == other.score
        assert other == one or (one.answered_by, other.answered_by) == ("super", "person")
    assert list(Cascade([last]).map(texts)) == list(predictor.super_map(texts))


def test_stages_that_are_no_cascade(three_stages):
    with pytest.raises(InputError, match="names of their own"):
        Cascade([three_stages[0], three_stages[0]])
    with pytest.raises(InputError, match="'large' has no score"):
        Cascade([three_stages[2], three_stages[0]])
    with pytest.raises(InputError, match="names of their own"):
        Cascade([])
