"""Regression, choices, free generation and pairs of two families: from training to prediction."""

import json
import math
import random
import shutil
from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pytest
import torch
from benchmark_files import write_benchmarks
from conftest import BAD, FAST, FILLER, GOOD, QUIET, VOCABULARY, epochs, read_curve, write_model, write_t5
from sklearn.metrics import f1_score

from elang import InputError, JointPredictor
from elang.backends.flops import flops_by_length
from elang.backends.loading.load import load_model
from elang.cli.verbs import main
from elang.data.benchmarks import TaskData
from elang.data.encoding import encode_examples
from elang.data.glue.table import TASKS
from elang.records.manifest import Manifest
from elang.records.reading import read_records
from elang.records.table import Records, write_records
from elang.tasks.text_task import TextTask

WORTH = {word: 0.7 + 0.1 * i + 1.6 * (word in GOOD) for i, word in enumerate([*BAD, *GOOD])}
VALUES = [f"{i / 5:.1f}" for i in range(21)]


def sentence(rng, words, least=3, most=9):
    """A sentence about one of the words."""
    found = rng.choices(FILLER, k=rng.randint(least, most))
    found.insert(rng.randrange(len(found)), rng.choice(words))
    return " ".join(found)


def write_numbers(path, rows, seed):
    """Sentences whose value is that of their word of sentiment."""
    rng = random.Random(seed)
    texts = []
    while len(texts) < rows:
        text = sentence(rng, [*GOOD, *BAD])
        texts += [text] * (text not in texts)
    values = [WORTH[next(w for w in text.split() if w in WORTH)] + rng.uniform(-0.1, 0.1) for text in texts]
    pd.DataFrame({"text": texts, "worth": [f"{value:.3f}" for value in values]}).to_csv(path, index=False)
    return path


def write_copa(folder, rows, seed):
    """The better one of two sentences."""
    rng = random.Random(seed)
    lines = []
    for i in range(rows):
        label = rng.randrange(2)
        texts = [sentence(rng, GOOD if k == label else BAD) for k in range(2)]
        row = {"premise": sentence(rng, FILLER), "choice1": texts[0], "choice2": texts[1], "question": "cause"}
        lines.append(json.dumps({**row, "label": label, "idx": i}) + "\n")
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("".join(lines))


def write_record(folder, rows, seed):
    """Which of two to five words is a good one; some candidates are of two words."""
    rng = random.Random(seed)
    lines = []
    for i in range(rows):
        right = rng.choice(GOOD)
        names = [right, *rng.sample([*BAD, "very dull", "very poor"], rng.randint(1, 4))]
        rng.shuffle(names)
        text, spans = "", []
        for name in names:
            text += f"the {rng.choice(FILLER)} was "
            spans.append({"start": len(text), "end": len(text) + len(name) - 1})
            text += f"{name} and "
        query = {"query": f"the @placeholder {rng.choice(FILLER)}", "idx": i, "answers": [{"text": right}]}
        passage = {"text": text + "a", "entities": spans}
        lines.append(json.dumps({"passage": passage, "qas": [query], "idx": i}) + "\n")
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("".join(lines))


def write_deberta(folder, seed=0):
    """A tiny DeBERTa-v2 with a vocabulary in another order."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    torch.manual_seed(seed)
    write_model(folder, vocabulary=[*VOCABULARY[:5], *reversed(VOCABULARY[5:])])
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = DebertaV2Config(
        vocab_size=len(VOCABULARY), **small, max_position_embeddings=64, pos_att_type=["p2c", "c2p"]
    )
    config.relative_attention, config.position_buckets, config.type_vocab_size = True, 16, 2
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory, base_model):
    """An untrained model of each family, by name."""
    root = tmp_path_factory.mktemp("bases")
    rng = random.Random(0)
    corpus = [sentence(rng, [*GOOD, *BAD]) for _ in range(200)]
    corpus += ["text: good bad 0.1 2.3 4.5 6.7 8.9", "copa choice1: choice2: premise: question: cause"] * 30
    corpus += ["record query: entities: passage: the @placeholder was", "good, great, dull, very poor, awful"] * 30
    return {
        "bert": str(base_model),
        "t5": str(write_t5(root / "t5", corpus)),
        "deberta": str(write_deberta(root / "deberta")),
    }


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The options of each task's data."""
    root = tmp_path_factory.mktemp("datasets")
    for split, stem, rows, seed in (("train", "train", 200, 1), ("validation", "val", 41, 2)):
        write_numbers(root / f"{split}.csv", rows, seed)
        write_copa(root / "COPA" / f"{stem}.jsonl", rows, seed)
        write_record(root / "ReCoRD" / f"{stem}.jsonl", rows, seed)
    size = ["--data.routing_fraction", "0.25", "--data.batch_size", "8", "--data.eval_batch_size", "8"]
    files = ["--data.train", str(root / "train.csv"), "--data.validation", str(root / "validation.csv")]
    numbers = ["--data.problem", "regression", "--data.label", "worth", "--data.answers", json.dumps(VALUES)]
    task = ["--data", "TaskData", "--data.folder", str(root), *size, "--data.task"]
    return {
        "numbers": [*files, *size, *numbers],
        "copa": [*task, "superglue/copa"],
        "record": [*task, "superglue/record"],
        "folder": root,
    }


def fit(base, data, output, *options):
    args = ["fit", "--model.model", base, "--model.output", str(output), *data, *FAST, *map(str, options)]
    assert main([*args, "--trainer.default_root_dir", str(output)]) == 0
    return str(output)


# Those that have to learn something.
EPOCHS = {("bert", "numbers"): 10, ("t5", "numbers"): 16}
EPOCHS |= {("bert", "copa"): 6, ("bert", "record"): 6, ("t5", "record"): 6}


@pytest.fixture(scope="module")
def supers(tmp_path_factory, bases, datasets):
    """Trains a Super of a family on a task once, and keeps its records: their paths."""
    root, made = tmp_path_factory.mktemp("supers"), {}

    def of(kind, task):
        if (kind, task) not in made:
            folder = root / f"{kind}-{task}"
            options = ["--model.lr", "3e-3", *epochs(EPOCHS.get((kind, task), 1))]
            model = fit(bases[kind], datasets[task], folder, *options)
            records = f"{folder}.parquet"
            score = ["score", "--model.model", model, "--model.output", records, *datasets[task], *QUIET]
            assert main(score) == 0
            made[kind, task] = model, records
        return made[kind, task]

    return of


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, bases, datasets, supers):
    """Trains a Swift of one family with a Super of another on a task once, and evaluates them: folders by name."""
    root, made = tmp_path_factory.mktemp("pairs"), {}

    def of(swift, super_, task):
        if (swift, super_, task) not in made:
            folder = root / f"{swift}-{super_}-{task}"
            model, records = supers(super_, task)
            options = ["--model", "SwiftModule", "--model.layers", "1", "--model.super_records", records]
            # The class comes before its options.
            args = ["fit", *options[:2], "--model.model", bases[swift], "--model.output", str(folder / "swift")]
            args += [*options[2:], *datasets[task], *FAST, *epochs(2)]
            assert main([*args, "--trainer.default_root_dir", str(root)]) == 0
            found = {"swift": str(folder / "swift"), "super": model, "records": records, "joint": folder / "joint"}
            args = ["--model.swift_model", found["swift"], "--model.super_model", model, *datasets[task], *QUIET]
            assert main(["validate", *args, "--model.output", str(folder / "joint")]) == 0
            made[swift, super_, task] = found
        return made[swift, super_, task]

    return of


def joint_records(folder, split="validation"):
    return pd.read_parquet(folder / "records.parquet").query(f"split == '{split}'").reset_index(drop=True)


def middle_threshold(scores):
    """A threshold far from any score, about in the middle."""
    values = sorted(set(scores))
    part = values[len(values) // 3 : 2 * len(values) // 3 + 2]
    gap, threshold = max((b - a, (a + b) / 2) for a, b in pairwise(part))
    assert gap > 0
    return threshold


# Regression.

KINDS = [("bert", "bert"), ("t5", "t5"), ("bert", "t5"), ("t5", "bert")]


def test_energy_is_refused_for_numbers(bases, datasets, supers, fails):
    for kind in ("bert", "t5"):
        args = ["fit", "--model", "SwiftModule", "--model.model", bases[kind], *datasets["numbers"], *QUIET]
        args += ["--model.super_records", supers("bert", "numbers")[1], "--trainer.max_steps", "1"]
        said = fails([*args, "--model.score", "free_energy"], "no score 'free_energy'", "Energy means nothing")
        assert ("encoder_router" in said) == (kind == "t5")
        assert "encoder_energy" not in said
        fails([*args, "--model.router", "false"], "no score 'router'", "--model.router true")
        fails([*args, "--model.hard", "error"], "--model.hard gain")


@pytest.mark.parametrize(("swift", "super_"), KINDS)
def test_numbers_from_training_to_prediction(pairs, datasets, swift, super_):
    found = pairs(swift, super_, "numbers")
    frame = joint_records(found["joint"])
    truth = pd.read_csv(datasets["folder"] / "validation.csv")
    assert frame["label"].tolist() == pytest.approx(truth["worth"].tolist())
    # What so small a T5 reaches depends on the processor's rounding.
    assert frame["super_prediction"].corr(frame["label"]) > 0.6
    heads = {"score_router", *(["score_encoder_router"] if swift == "t5" else [])}
    assert {name for name in frame if name.startswith("score_")} == heads
    assert all(frame[name].nunique() > 10 for name in heads)
    assert frame["swift_prediction"].nunique() > 10
    # Not rounded to the answers that a text-to-text model can give.
    assert frame["swift_prediction"].between(0, 4).all() or swift == "bert"
    summary = json.loads((found["joint"] / "summary.json").read_text())
    assert summary["score"] == "router"
    assert summary["qualities"].keys() == {"pearson", "spearman"}
    assert summary["qualities"]["pearson"]["only_super_right"] == pytest.approx(
        ((frame["super_prediction"] - frame["label"]).abs() < (frame["swift_prediction"] - frame["label"]).abs()).mean()
    )
    texts = truth["text"].tolist()
    for score in sorted(heads):
        name = score.removeprefix("score_")
        threshold = middle_threshold(frame[score])
        deferred = frame[score] > threshold
        answers = JointPredictor(found["swift"], found["super"], threshold, name, batch_size=5)(texts)
        assert [a.answered_by == "super" for a in answers] == deferred.tolist()
        expected = frame["super_prediction"].where(deferred, frame["swift_prediction"])
        assert [a.label for a in answers] == pytest.approx(expected.tolist(), abs=1e-4)
        assert isinstance(answers[0].label, float)
        # A value has no probability.
        assert {a.probability for a in answers} == {None}
        assert Manifest.read(found["swift"]).thresholds.keys() >= {name}


@pytest.mark.parametrize("task", ["numbers", "copa"])
def test_pages_of_other_problems(pairs, tmp_path, task, fails):
    found = pairs("bert", "bert", task)
    out = tmp_path / "report.html"
    assert main(["report", str(found["joint"]), "--output", str(out)]) == 0
    text = out.read_text("utf-8")
    assert ("By class" in text) == (task == "copa")
    if task == "numbers":
        fails(["calibrate", found["joint"], "--max_regret", "0.2", "--split", "validation"], "errors have no bound")
        alone, pair = JointPredictor(None, found["super"]), JointPredictor(found["swift"], found["super"], "inf")
        assert alone.ask_super(alone.rows(["good film"])) == pair.ask_super(pair.rows(["good film"]))


@pytest.mark.parametrize(("swift", "super_"), KINDS[:2])
def test_curves_of_correlations(pairs, swift, super_):
    """Pearson at every threshold and Spearman on a grid, both scored from scratch."""
    found = pairs(swift, super_, "numbers")
    frame, curve = joint_records(found["joint"]), read_curve(found["joint"])
    for score in ("router", *(["encoder_router"] if swift == "t5" else [])):
        points = curve[curve["score"] == score]
        assert len(points) == frame[f"score_{score}"].nunique() + 1
        for row in points.itertuples():
            deferred = frame[f"score_{score}"] > row.threshold
            mixed = frame["super_prediction"].where(deferred, frame["swift_prediction"])
            assert row.pearson == pytest.approx(mixed.corr(frame["label"]), abs=1e-7)
            assert row.spearman == pytest.approx(mixed.corr(frame["label"], method="spearman"), abs=1e-9)


def test_metrics_of_few_points_beside_those_of_all(pairs, tmp_path):
    """Spearman has at most 201 points; elsewhere it is left out, not taken from another point."""
    found, data = pairs("bert", "bert", "numbers"), write_numbers(tmp_path / "many.csv", 301, seed=5)
    args = ["validate", "--model.swift_model", found["swift"], "--model.super_model", found["super"], *QUIET]
    args += ["--data.validation", str(data), "--data.label", "worth", "--data.problem", "regression"]
    assert main([*args, "--data.routing_fraction", "0", "--model.output", str(tmp_path / "joint")]) == 0
    frame, curve = joint_records(tmp_path / "joint"), read_curve(tmp_path / "joint")
    points = curve[curve["score"] == "router"]
    assert len(points) == frame["score_router"].nunique() + 1 > 201
    assert points["pearson"].notna().all()
    assert 100 < points["spearman"].notna().sum() <= 201
    for row in points[points["spearman"].notna()].iloc[::20].itertuples():
        mixed = frame["super_prediction"].where(frame["score_router"] > row.threshold, frame["swift_prediction"])
        assert row.spearman == pytest.approx(mixed.corr(frame["label"], method="spearman"), abs=1e-9)
    assert main(["report", str(tmp_path / "joint"), "--output", str(tmp_path / "report.html")]) == 0


def test_thresholds_for_numbers_are_held_out(pairs):
    """`fit` knows the Super by its records and `validate` runs it; recomputed from the slice."""
    found = pairs("t5", "t5", "numbers")
    manifest = Manifest.read(found["joint"])
    assert manifest.thresholds == Manifest.read(found["swift"]).thresholds
    frame = joint_records(found["joint"], "routing")
    for score in ("router", "encoder_router"):
        target = frame["super_prediction"].corr(frame["label"])
        for threshold in [math.inf, *sorted(frame[f"score_{score}"], reverse=True)[1:], -math.inf]:
            deferred = frame[f"score_{score}"] > threshold
            mixed = frame["super_prediction"].where(deferred, frame["swift_prediction"])
            spent = "swift_early_flops" if score.startswith("encoder") else "swift_flops"
            cost = frame["swift_flops"].where(~deferred, frame[spent] + frame["super_flops"]).mean()
            if mixed.corr(frame["label"]) >= target - 1e-12 and cost < frame["super_flops"].mean():
                break
        assert float(manifest.thresholds[score]["parity"]["threshold"]) == threshold


def test_the_swift_learns_where_the_super_is_nearer(pairs, datasets):
    """Its targets come from the records' numbers, not from the place of the largest logit."""
    from test_pitfalls import run_cli

    found = pairs("bert", "bert", "numbers")
    frame = pd.read_parquet(found["records"]).query("split == 'train'")
    args = ["--model", "SwiftModule", "--model.model", found["swift"], "--model.super_records", found["records"]]
    args += [*datasets["numbers"], *FAST, "--trainer.max_steps", "1", "--model.output", str(found["joint"]) + "-again"]
    module = run_cli("fit", *args).model
    kept = module.objective.columns["super_prediction"]
    assert kept.dtype == torch.float64
    assert kept[frame["id"].tolist()].tolist() == frame["prediction"].tolist()
    module.objective.columns["super_prediction"] = torch.tensor([1.1, 2.0, 9.0], dtype=torch.float64)

    class Said:
        logits = torch.tensor([[1.5], [2.0], [3.5]])

    label = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    batch = {"id": torch.arange(3), "label": label, "targets": {}}
    assert module.objective.hardness(batch, Said).tolist() == [1, 0, 0]
    # What the router is fitted to is by how much it is nearer.
    joint = joint_records(found["joint"], "routing")
    gain = (joint["swift_prediction"] - joint["label"]).abs() - (joint["super_prediction"] - joint["label"]).abs()
    router = Manifest.read(found["swift"]).router["router"]
    assert router["mean_gain"] == pytest.approx(gain.mean(), abs=1e-5)
    assert router["examples"] == len(joint)


def test_a_swift_without_heads_is_refused(supers, datasets, fails, tmp_path):
    model = supers("bert", "numbers")[0]
    args = ["--model.swift_model", model, "--model.super_model", model, *datasets["numbers"], *QUIET]
    args += ["--model.output", str(tmp_path / "joint")]
    fails(["validate", *args], "Energy means nothing", "no router", "SwiftModule")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_table_of_numbers_can_be_the_super(pairs, datasets, tmp_path, suffix):
    found = pairs("bert", "bert", "numbers")
    truth = pd.read_csv(datasets["folder"] / "validation.csv")["worth"]
    table, path = pd.DataFrame({"id": range(len(truth)), "prediction": truth}), tmp_path / f"super.{suffix}"
    table.to_csv(path, index=False) if suffix == "csv" else table.to_json(path, orient="records", lines=True)
    args = ["--model.swift_model", found["swift"], "--model.super_model", str(path), *datasets["numbers"], *QUIET]
    args += ["--model.super_flops", "1e9", "--model.output", str(tmp_path / "joint")]
    assert main(["validate", *args]) == 0
    summary = json.loads((tmp_path / "joint" / "summary.json").read_text())
    assert summary["qualities"]["pearson"]["super"] == {"quality": pytest.approx(1.0), "cost": 1e9}
    assert joint_records(tmp_path / "joint")["super_prediction"].tolist() == truth.tolist()


def test_records_of_numbers(tmp_path):
    path = tmp_path / "records.parquet"
    said = torch.tensor([0.1, -2.5, 1e-9], dtype=torch.float64)
    write_records(path, {"train": Records(torch.tensor([4, 2, 7]), said)}, ["worth"])
    assert pd.read_parquet(path)["prediction"].tolist() == said.tolist()
    found = read_records(path, ["worth"], "regression")[0]["train"]
    assert torch.equal(found.prediction, said)
    for text in ("nan", "inf", "much", '""', "1e999"):
        (tmp_path / "bad.csv").write_text(f"id,prediction\n0,1.5\n1,{text}\n")
        with pytest.raises(InputError, match=r"'prediction' in row 1 .*, where a finite number is needed"):
            read_records(tmp_path / "bad.csv", ["worth"], "regression")


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_similarity_of_two_sentences(bases, tmp_path_factory, tmp_path, kind):
    """STS-B in its own files, from training to the pair's report and the benchmark's form."""
    folder = str(write_benchmarks(tmp_path_factory.mktemp("benchmarks")) / "glue")
    data = ["--data", "TaskData", "--data.task", "glue/stsb", "--data.folder", folder]
    data += ["--data.routing_fraction", "0.4", "--data.batch_size", "8"]
    model = fit(bases[kind], data, tmp_path / "super", "--trainer.max_epochs", "1")
    records = str(tmp_path / "super.parquet")
    assert main(["score", "--model.model", model, "--model.output", records, *data, *QUIET]) == 0
    frame = pd.read_parquet(records)
    assert frame["prediction"].dtype == "float64"
    assert (frame["prediction"] == [logits[0] for logits in frame["logits"]]).all()
    args = ["fit", "--model", "SwiftModule", "--model.model", bases[kind], "--model.super_records", records]
    args += ["--model.output", str(tmp_path / "swift"), *data, *FAST, "--trainer.max_epochs", "1"]
    assert main(args) == 0
    args = ["--model.swift_model", str(tmp_path / "swift"), "--model.super_model", model, *data, *QUIET]
    assert main(["validate", *args, "--model.output", str(tmp_path / "joint")]) == 0
    assert json.loads((tmp_path / "joint" / "summary.json").read_text())["num_examples"] == 12
    args = ["predict", "--swift_model", str(tmp_path / "swift"), "--super_model", model, "--task", "glue/stsb"]
    args += ["--folder", folder, "--threshold", "defer 50%", "--output", str(tmp_path / "STS-B.tsv")]
    assert main(args) == 0
    lines = (tmp_path / "STS-B.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    assert all(0 <= float(line.split("\t")[1]) <= 5 for line in lines[1:])
    assert len(lines) == 7


@torch.no_grad()
def test_a_number_is_the_mean_of_what_can_be_said(bases):
    """A text-to-text model's value is the mean over the constrained decode; it trains on the nearest answer."""
    task = TextTask(["worth"], "regression", answers=["0.0", "0.5", "4.0"])
    model = load_model(bases["t5"], task).eval()
    inputs = encode_examples(model.reader, task, [("good film",), ("a bad plot",)], None, 64).batch([0, 1])
    classes = load_model(bases["t5"], TextTask(["a", "b", "c"], answers=task.answers)).eval()
    share = classes(inputs).logits.softmax(-1)
    torch.testing.assert_close(model(inputs).logits[:, 0], share @ torch.tensor([0.0, 0.5, 4.0]))
    target = torch.tensor([0.26, 2.2], dtype=torch.float64)
    assert torch.equal(model._answer_ids(inputs, target), classes._answer_ids(inputs, torch.tensor([1, 1])))
    target = torch.tensor([-3.0, 2.3], dtype=torch.float64)
    assert float(model(inputs, target).loss) == pytest.approx(float(classes(inputs, torch.tensor([0, 2])).loss))
    with pytest.raises(InputError, match="the answers must be numbers"):
        load_model(bases["t5"], TextTask(["worth"], "regression", answers=["1.0", "many"]))


# Candidates.


@pytest.mark.parametrize("task", ["copa", "record"])
@pytest.mark.parametrize(("swift", "super_"), [("bert", "t5"), ("t5", "bert"), ("bert", "deberta")])
def test_choices_from_training_to_prediction(pairs, datasets, task, swift, super_):
    found = pairs(swift, super_, task)
    frame = joint_records(found["joint"])
    data = TaskData(f"superglue/{task}", str(datasets["folder"]))
    examples = data.examples("validation")
    assert frame["label"].tolist() == examples.label.tolist()
    sizes = [len(candidates) for candidates in examples.choices]
    assert len(set(sizes)) == (1 if task == "copa" else 4)
    for name in ("swift", "super"):
        assert all(frame[f"{name}_prediction"] < sizes)
        for logits, size, said in zip(frame[f"{name}_logits"], sizes, frame[f"{name}_prediction"], strict=True):
            logits = torch.tensor(logits)
            assert torch.isfinite(logits[:size]).all()
            assert (logits[size:] == -math.inf).all()
            assert int(logits.argmax()) == said
    # The Super that was run here says what its records say.
    alone = pd.read_parquet(found["records"]).query("split == 'validation'").sort_values("id")
    names = data.label_names
    assert [names[i] for i in frame["super_prediction"]] == alone["prediction"].tolist()
    scores = ["free_energy", "router", *(["encoder_router"] if swift == "t5" else [])]
    scores += ["encoder_energy"] if swift == "t5" and task == "copa" else []
    assert ("score_encoder_energy" in frame) == ("encoder_energy" in scores)
    for score in scores:
        if frame[f"score_{score}"].nunique() == 1:
            # The two models answered the slice alike, so there was nothing to learn from it.
            report = Manifest.read(found["swift"]).router[score]
            assert "nothing to gain" in report["why"]
            assert report["mean_gain"] == 0
            continue
        threshold = middle_threshold(frame[f"score_{score}"])
        predictor = JointPredictor(found["swift"], found["super"], threshold, score, batch_size=7)
        answers = predictor(examples.texts, choices=None if task == "copa" else examples.choices)
        deferred = frame[f"score_{score}"] > threshold
        assert [a.answered_by == "super" for a in answers] == deferred.tolist()
        expected = frame["super_prediction"].where(deferred, frame["swift_prediction"]).tolist()
        own = [c[i] for c, i in zip(examples.choices, expected, strict=True)]
        logits = frame["super_logits"].where(deferred, frame["swift_logits"])
        shares = [float(torch.tensor(row).softmax(0).max()) for row in logits]
        assert [a.probability for a in answers] == pytest.approx(shares, abs=1e-4)
        assert [a.label for a in answers] == ([names[i] for i in expected] if task == "copa" else own)
    if task == "record":
        with pytest.raises(InputError, match="as `choices`"):
            predictor(examples.texts)


@pytest.mark.parametrize(("kind", "task"), [("bert", "copa"), ("bert", "record"), ("t5", "record")])
def test_choices_can_be_learned(supers, datasets, kind, task):
    """Far above chance: candidates, labels and texts are not mixed up on the way."""
    frame = pd.read_parquet(supers(kind, task)[1]).query("split == 'validation'").sort_values("id")
    data = TaskData(f"superglue/{task}", str(datasets["folder"]))
    right = [data.label_names[i] for i in data.examples("validation").label]
    assert (frame["prediction"].to_numpy() == right).mean() > 0.8


def test_what_candidates_cost(pairs, datasets):
    """An encoder pays for each candidate's tokens, a text-to-text model for each candidate's decoder."""
    found = pairs("t5", "bert", "record")
    frame = joint_records(found["joint"])
    examples = TaskData("superglue/record", str(datasets["folder"])).examples("validation")
    swift, super_ = load_model(found["swift"]), load_model(found["super"])
    for i in (0, 1, 2):
        rows = super_.task.segment_texts(examples.texts[i], examples.choices[i])
        lengths = torch.tensor([len(super_.tokenizer(*row)["input_ids"]) for row in rows])
        assert frame["super_tokens"][i] == int(lengths.sum())
        cost = flops_by_length(super_.backbone.config, lengths).sum()
        assert frame["super_flops"][i] == pytest.approx(float(cost))
        prompt = swift.tokenizer(swift.task.prompt_text(examples.texts[i]))["input_ids"]
        said = [len(t) for t in swift.tokenizer(text_target=list(examples.choices[i]))["input_ids"]]
        config, length = swift.backbone.config, torch.tensor([len(prompt)])
        encoder = float(flops_by_length(config, length, part="encoder"))
        decoders = [float(flops_by_length(config, length, decoder=(1, n))) - encoder for n in said]
        heads = 2 * sum(p.numel() for p in swift.heads.parameters())
        heads += 2 * sum(2 * head.width for head in swift.routers.values())
        assert frame["swift_tokens"][i] == len(prompt)
        assert frame["swift_flops"][i] == pytest.approx(encoder + sum(decoders) + heads)


@pytest.mark.parametrize("task", ["copa", "record"])
def test_latency_where_there_are_candidates(pairs, datasets, tmp_path, monkeypatch, task):
    """Inputs as long as a candidate's, which the position table has room for."""
    from elang.backends import seconds as timed

    # Not the time is of interest here.
    monkeypatch.setattr(timed, "measure_throughput", lambda make: {n: 1 + 0 * len(str(make(n)())) for n in (1, 3)})
    found = pairs("bert", "t5", task)
    args = ["--model.swift_model", found["swift"], "--model.super_model", found["super"], *datasets[task], *QUIET]
    args += ["--model.latency", "true", "--model.output", str(tmp_path)]
    assert main(["validate", *args]) == 0
    latency = json.loads((tmp_path / "summary.json").read_text())["latency"]
    frame = joint_records(tmp_path)
    assert set(latency) == {"swift", "super", "super encoder"}
    assert latency["swift"]["tokens"] == int(torch.tensor(frame["swift_tokens"].tolist()).median())
    assert task == "copa" or latency["swift"]["tokens"] > 64
    from elang.backends.seconds import random_inputs

    swift, super_ = load_model(found["swift"]), load_model(found["super"])
    read = random_inputs(swift, 3, 100, torch.device("cpu"), 4)
    assert (read["input_ids"].shape, read["num_choices"].tolist()) == ((12, 25), [4, 4, 4])
    assert random_inputs(super_, 3, 100, torch.device("cpu"), 4)["input_ids"].shape == (3, 100)


# Pairs of two families in a classification.


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory, bases, data_args):
    """Trains a Super of a family once, its classes counted the other way round where wanted."""
    root, made = tmp_path_factory.mktemp("classifiers"), {}

    def of(kind, names="[bad, good]"):
        if (kind, names) not in made:
            folder = root / f"{kind}{len(made)}"
            options = ["--model.lr", "3e-3", *epochs(8), "--data.batch_size", 8]
            data = [*data_args, "--data.label_names", names, "--data.answers", names]
            made[kind, names] = fit(bases[kind], data, folder, *options)
        return made[kind, names]

    return of


@pytest.mark.parametrize(
    ("swift", "super_", "reverse"), [("bert", "t5", False), ("t5", "bert", True), ("bert", "deberta", True)]
)
def test_a_pair_of_two_families(classifiers, bases, data_args, files, tmp_path, swift, super_, reverse):
    """Distilled from another family's answers, evaluated and used with it, whatever the order of its classes."""
    model = classifiers(super_, "[good, bad]" if reverse else "[bad, good]")
    records = str(tmp_path / "super.parquet")
    data = [*data_args, "--data.label_names", "[bad, good]", "--data.answers", "[bad, good]"]
    assert main(["score", "--model.model", model, "--model.output", records, *data, *QUIET]) == 0
    said = pd.read_parquet(records).query("split == 'validation'").sort_values("id")
    truth = pd.read_csv(files[1])["label"]
    assert (said["prediction"].to_numpy() == truth.to_numpy()).mean() > 0.8
    args = ["fit", "--model", "SwiftModule", "--model.model", bases[swift], "--model.super_records", records]
    args += ["--model.layers", "1", "--model.output", str(tmp_path / "swift"), *data, *FAST]
    assert main([*args, *epochs(8), "--model.lr", "3e-3", "--data.batch_size", "8"]) == 0
    # And data that counts the other way round again.
    names = "[good, bad]" if reverse else "[bad, good]"
    data = [*data_args, "--data.label_names", names, "--data.answers", names]
    args = ["--model.swift_model", str(tmp_path / "swift"), "--model.super_model", model, *data, *QUIET]
    assert main(["validate", *args, "--model.output", str(tmp_path / "joint")]) == 0
    frame = joint_records(tmp_path / "joint")
    order = ["good", "bad"] if reverse else ["bad", "good"]
    assert [order[i] for i in frame["label"]] == truth.tolist()
    assert [order[i] for i in frame["super_prediction"]] == said["prediction"].tolist()
    agree = (frame["super_prediction"] == frame["swift_prediction"]).mean()
    assert agree > 0.7
    assert (frame["swift_prediction"] == frame["label"]).mean() > 0.7
    for score in ("free_energy", "router"):
        threshold = middle_threshold(frame[f"score_{score}"])
        deferred = frame[f"score_{score}"] > threshold
        predictor = JointPredictor(str(tmp_path / "swift"), model, threshold, score, batch_size=9)
        answers = predictor(pd.read_csv(files[1])["text"].tolist())
        expected = frame["super_prediction"].where(deferred, frame["swift_prediction"])
        assert [a.label for a in answers] == [order[i] for i in expected]
        assert [a.answered_by == "super" for a in answers] == deferred.tolist()


# Free generation.


@pytest.fixture(scope="module")
def silent(tmp_path_factory, classifiers):
    """A T5 that says `good` where the task knows `bad` and `superb` only, as anyone's; told to speak at length."""
    folder = shutil.copytree(classifiers("t5"), tmp_path_factory.mktemp("silent") / "t5")
    (folder / "elang.json").unlink()
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"min_length": 4, "num_beams": 3, "repetition_penalty": 3.0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture(scope="module")
def silent_data(tmp_path_factory, files):
    """The same sentences with other labels."""
    root = tmp_path_factory.mktemp("silent_data")
    for name, path in zip(("train", "validation"), files, strict=True):
        pd.read_csv(path).replace({"label": {"good": "superb"}}).to_csv(root / f"{name}.csv", index=False)
    data = ["--data.train", str(root / "train.csv"), "--data.validation", str(root / "validation.csv")]
    return [*data, "--data.routing_fraction", "0.25", "--data.eval_batch_size", "8", *QUIET]


@pytest.fixture(scope="module")
def said_freely(silent, files):
    """What the model says to the validation texts, and in how many tokens, one by one."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(silent).eval()
    tokenizer = AutoTokenizer.from_pretrained(silent)
    found = []
    for text in pd.read_csv(files[1])["text"]:
        ids, said = tokenizer(f"text: {text}", return_tensors="pt"), [0]
        with torch.no_grad():
            while said[-1] != 1 and len(said) < 10:
                said.append(int(model(**ids, decoder_input_ids=torch.tensor([said])).logits[0, -1].argmax()))
        found.append((tokenizer.decode(said, skip_special_tokens=True), len(said) - 1, ids["input_ids"].shape[1]))
    return found


@pytest.fixture(scope="module")
def generated(tmp_path_factory, silent, silent_data):
    """The records of what it generates, and what was printed."""
    path = str(tmp_path_factory.mktemp("generated") / "records.parquet")
    assert (
        main(["score", "--model.model", silent, "--model.output", path, "--model.generate", "true", *silent_data]) == 0
    )
    return path


def test_generated_answers_are_matched_by_their_text(generated, said_freely, capsys, silent, silent_data, tmp_path):
    frame = pd.read_parquet(generated).query("split == 'validation'").sort_values("id")
    words = [text for text, _, _ in said_freely]
    assert {"good", "bad"} <= set(words)
    assert frame["prediction"].tolist() == [word if word in ("bad", "superb") else "" for word in words]
    # Scores are still those of the constrained decode, which knows the two labels alone.
    path = str(tmp_path / "constrained.parquet")
    assert main(["score", "--model.model", silent, "--model.output", path, *silent_data]) == 0
    assert "none of the task's" not in capsys.readouterr().out
    constrained = pd.read_parquet(path).query("split == 'validation'").sort_values("id")
    assert [list(x) for x in frame["logits"]] == [list(x) for x in constrained["logits"]]
    assert set(constrained["prediction"]) <= {"bad", "superb"}


def test_unmatched_answers_are_counted_and_wrong(silent, silent_data, said_freely, files, tmp_path, capsys):
    path = str(tmp_path / "records.parquet")
    args = ["score", "--model.model", silent, "--model.output", path, "--model.generate", "true"]
    assert main([*args, *silent_data]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("validation:"))
    truth = pd.read_csv(files[1])["label"].replace({"good": "superb"})
    words = [text for text, _, _ in said_freely]
    silent_ones = sum(word not in ("bad", "superb") for word in words)
    assert 0 < silent_ones < len(words)
    assert f"61 examples, {silent_ones} generated answers are none of the task's" in line
    accuracy = sum(a == b for a, b in zip(words, truth, strict=True)) / len(words)
    assert line.endswith(f"accuracy {accuracy:.4f}")


def test_unmatched_answers_survive_records(generated, silent_data, silent, said_freely, tmp_path, capsys):
    """A pair that generates, and one whose Super is known by its records, report the same."""
    splits, about = read_records(generated, ["bad", "superb"])
    assert about["generated"] is True
    words = [text for text, _, _ in said_freely]
    index = {"bad": 0, "superb": 1}
    expected = [index.get(word, -1) for word in words]
    order = splits["validation"].id.argsort()
    assert splits["validation"].prediction[order].tolist() == expected
    frames, reports = [], []
    for name, super_ in (("run", silent), ("records", generated)):
        args = ["--model.swift_model", silent, "--model.super_model", super_, "--model.generate", "true"]
        args += ["--model.quality", "[accuracy, f1_macro]", "--model.output", str(tmp_path / name), *silent_data]
        assert main(["validate", *args]) == 0
        frames.append(pd.read_parquet(tmp_path / name / "records.parquet"))
        reports.append(json.loads((tmp_path / name / "summary.json").read_text())["qualities"])
    for one, two in zip(*(report.values() for report in reports), strict=True):
        assert one == two
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    frame = frames[0].query("split == 'validation'")
    assert frame["super_prediction"].tolist() == frame["swift_prediction"].tolist() == expected
    accuracy = (frame["super_prediction"] == frame["label"]).mean()
    assert reports[0]["accuracy"]["super"]["quality"] == pytest.approx(accuracy)
    macro = f1_score(frame["label"], frame["super_prediction"], labels=[0, 1], average="macro", zero_division=0)
    assert reports[0]["f1_macro"]["super"]["quality"] == pytest.approx(macro)


def test_only_generated_records_may_be_silent(tmp_path):
    """An empty answer is a gap in any other table."""
    for suffix in ("csv", "parquet"):
        path = tmp_path / f"records.{suffix}"
        frame = pd.DataFrame({"id": [0, 1], "prediction": ["bad", ""]})
        frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
        with pytest.raises(InputError, match=r"no answer .* in row 1"):
            read_records(path, ["bad", "good"])
    records = {"train": Records(torch.tensor([0, 1, 2]), torch.tensor([1, -1, 0]), torch.zeros(3, 2))}
    write_records(tmp_path / "a.parquet", records, ["bad", "good"], generated=True)
    found = read_records(tmp_path / "a.parquet", ["good", "bad"])[0]["train"]
    assert found.prediction.tolist() == [0, -1, 1]
    write_records(tmp_path / "b.parquet", records, ["bad", "good"])
    with pytest.raises(InputError, match=r"no answer .* in row 1"):
        read_records(tmp_path / "b.parquet", ["good", "bad"])


def test_generated_numbers_survive_records(bases, datasets, supers, tmp_path):
    """In a regression what is no number counts as the lowest one, and the answer is not the mean of the logits."""
    path = str(tmp_path / "records.parquet")
    args = ["--model.model", supers("t5", "numbers")[0], "--model.output", path, "--model.generate", "true"]
    assert main(["score", *args, *datasets["numbers"], *QUIET]) == 0
    frame = pd.read_parquet(path).query("split == 'validation'")
    assert set(frame["prediction"].map("{:.1f}".format)) <= set(VALUES)
    assert frame["prediction"].nunique() > 2
    found = read_records(path, ["worth"], "regression")[0]["validation"]
    assert found.prediction.tolist() == frame["prediction"].tolist()
    assert found.prediction.tolist() != [float(logits[0]) for logits in frame["logits"]]
    untrained = load_model(bases["t5"], TextTask(["worth"], "regression", answers=["0.5", "2.0"]), generate=True).eval()
    inputs = encode_examples(untrained.reader, untrained.task, [("good film",)], None, 64).batch([0])
    assert untrained(inputs).prediction.tolist() == [0.5]


def test_generated_candidates(supers, datasets, tmp_path):
    """Among each example's own candidates, by their text."""
    model = supers("t5", "record")[0]
    path = str(tmp_path / "records.parquet")
    args = ["score", "--model.model", model, "--model.output", path, "--model.generate", "true"]
    assert main([*args, *datasets["record"], *QUIET]) == 0
    examples = TaskData("superglue/record", str(datasets["folder"])).examples("validation")
    frame = pd.read_parquet(path).query("split == 'validation'").sort_values("id")
    found = load_model(model, generate=True).eval()
    matched = 0
    for i, said in enumerate(frame["prediction"]):
        ids = found.tokenizer(found.task.prompt_text(examples.texts[i]), return_tensors="pt")
        out = found.backbone.generate(**ids, max_new_tokens=12, do_sample=False)
        text = found.tokenizer.decode(out[0], skip_special_tokens=True).strip()
        expected = str(examples.choices[i].index(text)) if text in examples.choices[i] else ""
        assert said == expected
        matched += expected != ""
    assert matched > 0


def test_what_generation_costs(generated, said_freely, silent, silent_data, classifiers, data_args, tmp_path):
    """The encoder and a decoder step a token; a Swift pays for the logits of its scores, too, where they take more."""
    config = load_model(silent, TextTask.of(["bad", "superb"])).backbone.config
    frame = pd.read_parquet(generated).query("split == 'validation'").sort_values("id")
    assert len({steps for _, steps, _ in said_freely}) >= 1
    for flops, (_, steps, length) in zip(frame["flops"], said_freely, strict=True):
        assert flops == pytest.approx(float(flops_by_length(config, torch.tensor([length]), decoder=(1, steps))))
    # Answers that share their beginning.
    long = ["--data.answers", '["very good", "very bad"]']
    args = ["--model.swift_model", silent, "--model.super_model", silent, "--model.generate", "true", *silent_data]
    assert main(["validate", *args, *long, "--model.output", str(tmp_path)]) == 0
    frame = joint_records(tmp_path)
    model = load_model(silent, TextTask.of(["bad", "superb"], {"answers": ["very good", "very bad"]}), generate=True)
    assert model.trie.decoder != (1, 1)
    inputs = torch.tensor(frame["swift_tokens"].tolist())
    encoder, scored = (
        flops_by_length(config, inputs, part=part, decoder=model.trie.decoder) for part in ("encoder", "all")
    )
    more = torch.tensor(frame["swift_score_flops"].tolist(), dtype=torch.float64)
    torch.testing.assert_close(more, scored - encoder, rtol=1e-9, atol=0)
    # Both answer alike, and only a score of the logits makes the Swift dearer.
    assert frame["swift_flops"].tolist() == frame["super_flops"].tolist()
    found = json.loads((tmp_path / "summary.json").read_text())
    alone = found["qualities"]["accuracy"]["swift"]["cost"]
    assert alone == pytest.approx(frame["swift_flops"].mean())
    kept = found["qualities"]["accuracy"]["scores"]["free_energy"]["on_this_set"]["best"]
    assert kept["deferred_share"] == 0
    assert kept["cost"] == pytest.approx(alone + float(more.mean()))
    for i, (_, steps, length) in enumerate(said_freely):
        cost = float(flops_by_length(config, torch.tensor([length]), decoder=(1, steps)))
        assert frame["super_flops"][i] == pytest.approx(cost)


def test_the_task_of_records_is_the_tables(datasets):
    """The made-up data are what the tests above take them for."""
    record = TaskData("superglue/record", str(datasets["folder"])).examples("validation")
    assert {len(c) for c in record.choices} == {2, 3, 4, 5}
    assert all(c[i] in t[0] for c, i, t in zip(record.choices, record.label.tolist(), record.texts, strict=True))
    assert TASKS["superglue/copa"].text_task.answers == ["choice1", "choice2"]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_three_classes_in_another_order(bases, kind):
    """With two classes an order is its own inverse; with three it is not."""
    task = TextTask.of(["no", "so", "yes"], {"answers": ["bad", "a film", "good"]})
    model = load_model(bases[kind], task, fine_tune=True).eval()
    order = model.class_order(["so", "yes", "no"], "it")
    assert order == [1, 2, 0]
    texts = [(" ".join(random.Random(i).choices(FILLER, k=9)),) for i in range(12)]
    inputs = encode_examples(model.reader, task, texts, None, 64).batch(list(range(12)))
    # Something for each class to win.
    offset = model(inputs).logits.mean(0)
    forward = model.forward

    def centred(*args):
        answer = forward(*args)
        logits = answer.logits - offset
        return replace(answer, logits=logits, prediction=model.predict(logits))

    model.forward = centred
    found = model.answer_columns(inputs, order)
    assert set(found["prediction"].tolist()) == {0, 1, 2}
    assert torch.equal(found["prediction"], found["logits"].argmax(-1))
    names = [["so", "yes", "no"][i] for i in found["prediction"]]
    assert names == [task.label_names[i] for i in model(inputs).prediction]
