"""What the Swift learns from: hardness, folds, text without labels, hidden states; and every recipe's file."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import BAD, FAST, GOOD, QUIET, write_model, write_t5

from elang import InputError, SwiftModule
from elang.backends.backend import Answer
from elang.backends.encoder import masked_mean
from elang.backends.loading.load import load_masked, load_model
from elang.cli.augment import Replacements, augment
from elang.cli.lightning import run
from elang.cli.verbs import main
from elang.data.examples import content_key, fold_of, fold_parts
from elang.data.text_classification import TextClassificationData
from elang.method.losses import hidden_distillation
from elang.models.objectives.hidden import HiddenStateObjective, even_layers
from elang.models.objectives.labels import LabelObjective
from elang.models.objectives.objective import LossOptions, RecordedAnswers
from elang.notices import notices
from elang.records.manifest import Manifest
from elang.records.reading import read_records
from elang.records.table import Records
from elang.tasks.text_task import TextTask

RECIPES = sorted((Path(__file__).parent.parent / "configs" / "recipes").glob("*.yaml"))
NAMES = ["bad", "good"]


# Hardness.

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0]])
LABEL = torch.tensor([0, 0, 1, 1])
SUPER = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 4.0]])
OTHER = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 5.0], [0.0, 1.0]])


def objective_of(train, hard="gain", weights=(1.0, 1.0), transfer=None, **more):
    """An objective of a Super's answers to the training file, and to a transfer set."""
    options = LossOptions(distill_weight=weights[0], margin_weight=weights[1], hard=hard)
    records = {"train": train} | ({"transfer": transfer} if transfer is not None else {})
    return LabelObjective(TextTask.of(NAMES), options, RecordedAnswers("it", records), **more)


def objective(hard, other=False, weights=(1.0, 1.0)):
    ids = torch.tensor([5, 1, 0, 3])
    super_ = Records(ids, SUPER.argmax(-1), SUPER)
    # Of one example no Swift is known that had not seen it.
    others = Records(ids[:3], OTHER[:3].argmax(-1), OTHER[:3])
    out_of_fold = RecordedAnswers(None, {"train": others}) if other else None
    return objective_of(super_, hard, weights, out_of_fold=out_of_fold)


def batch():
    return {"id": torch.tensor([5, 1, 0, 3]), "label": LABEL, "targets": {}}


@pytest.mark.parametrize(
    ("hard", "other", "expected"),
    [
        ("error", False, [0, 1, 1, 0]),
        ("gain", False, [0, 1, 0, 0]),
        # The first two are wrong out of fold, the third is right; the last counts by the Swift's own answer.
        ("error", True, [1, 1, 0, 0]),
        ("gain", True, [1, 1, 0, 0]),
    ],
)
def test_what_is_hard(hard, other, expected):
    answer = Answer(LOGITS, LOGITS.argmax(-1))
    assert objective(hard, other).hardness(batch(), answer).tolist() == expected


@pytest.mark.parametrize("other", [False, True])
def test_soft_gain_is_a_difference_of_probabilities(other):
    found = objective("soft_gain", other).hardness(batch(), Answer(LOGITS, LOGITS.argmax(-1)))
    for row in range(4):
        own = OTHER[row] if other and row < 3 else LOGITS[row]
        p, q = (math.exp(x[LABEL[row]]) / sum(math.exp(v) for v in x) for x in (SUPER[row], own))
        assert found[row].item() == pytest.approx(max(0.0, p - q), abs=1e-6)


def test_terms_are_weighted():
    answer = Answer(LOGITS.clone().requires_grad_(), LOGITS.argmax(-1))
    once, twice = (objective("error", weights=w).terms(batch(), answer) for w in ((1.0, 1.0), (2.0, 3.0)))
    torch.testing.assert_close(twice["distill"], 2 * once["distill"])
    torch.testing.assert_close(twice["margin"], 3 * once["margin"])
    assert once["margin"] > 0
    assert objective("gain", weights=(0.0, 0.0)).terms(batch(), answer) == {}


def test_unlabelled_text_has_the_supers_labels():
    """Its ids begin behind the training file's, whatever the ids of the records end with."""
    train = Records(torch.tensor([0, 2]), torch.tensor([1, 0]), SUPER[:2])
    transfer = Records(torch.tensor([0, 1]), torch.tensor([1, 0]), SUPER[2:])
    made = objective_of(train, weights=(1.0, 0.0), transfer=transfer, file_rows=7)
    given = {"id": torch.tensor([2, 7, 8]), "label": torch.tensor([1, -1, -1])}
    assert made.labels(given).tolist() == [1, 1, 0]
    torch.testing.assert_close(made.columns["super_logits"][given["id"]], torch.stack([SUPER[1], SUPER[2], SUPER[3]]))


def test_a_generated_answer_that_is_no_label_teaches_the_nearest():
    train = Records(torch.tensor([0, 1]), torch.tensor([1, -1]), SUPER[:2])
    made = objective_of(train, weights=(1.0, 0.0))
    assert made.labels({"id": torch.tensor([0, 1]), "label": torch.tensor([-1, -1])}).tolist() == [1, 0]


def test_answers_without_logits():
    bare = Records(torch.arange(4), SUPER.argmax(-1))
    for hard, weight in (("gain", 1.0), ("soft_gain", 0.0)):
        with pytest.raises(InputError, match="predictions but no logits"):
            objective_of(bare, hard, (weight, 1.0))
    whole = Records(torch.arange(4), SUPER.argmax(-1), SUPER)
    with pytest.raises(InputError, match="out of fold without logits"):
        objective_of(whole, "soft_gain", (0.0, 1.0), out_of_fold=RecordedAnswers(None, {"train": bare}))


# Recipes.


def test_there_are_recipes():
    assert {"plain", "gatekeeper", "cosee", "cascadebert", "distil", "distil-pairwise"} <= {p.stem for p in RECIPES}


@pytest.fixture(scope="module")
def extras(tmp_path_factory, pair, data_args, files):
    """Text without labels with the Super's answers to it, and answers out of fold."""
    root = tmp_path_factory.mktemp("extras")
    texts = root / "texts.csv"
    frame = pd.read_csv(files[0])
    frame["text"] = ["the " + text for text in frame["text"]]
    frame[["text"]].head(50).to_csv(texts, index=False)
    score = ["score", "--model.model", str(pair["super"]), "--model.output", str(root / "super.parquet")]
    assert main([*score, *data_args, *QUIET, "--data.transfer", str(texts)]) == 0
    fit = ["--model", "SwiftModule", "--model.model", str(pair["super"]), "--model.layers", "1"]
    fit += ["--model.distill_weight", "0", "--model.hard", "error", "--trainer.max_epochs", "1", *data_args, *FAST]
    args = ["crossfit", "--folds", "3", "--output", str(root / "oof.parquet"), *fit]
    assert main(args) == 0
    return {
        "root": root,
        "texts": texts,
        "records": root / "super.parquet",
        "folds": root / "oof.parquet",
        "args": args,
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains(path, pair, base_model, data_args, extras, tmp_path):
    text = path.read_text("utf-8")
    args = ["fit", "--config", str(path), "--model.model", str(base_model), "--model.layers", "1"]
    if path.stem == "gatekeeper":
        args[4:] = [str(pair["swift"])]
    for word, option, name in (
        ("SUPER.parquet", "--model.super_records", "records"),
        ("OUT_OF_FOLD.parquet", "--model.out_of_fold", "folds"),
        ("TEXTS.csv", "--data.transfer", "texts"),
    ):
        assert (word in text) == (f"{option} {word}" in text)
        args += [option, str(extras[name])] if word in text else []
    args += ["--model.super_model", str(pair["super"])] if "--model.super_model SUPER" in text else []
    args += ["--model.output", str(tmp_path / "swift"), "--trainer.max_steps", "2", *data_args, *FAST]
    assert main(args) == 0
    manifest = Manifest.read(tmp_path / "swift")
    assert manifest.router["router"]["examples"] > 30
    assert manifest.router["router"]["reads"] in manifest.router["router"]["areas"]
    options = yaml.safe_load(text)["model"]["init_args"]
    assert set(options) <= set(run("fit", args[1:], parse_only=True)["model"]["init_args"])


# Folds.


@pytest.mark.parametrize("fold", ["5/5", "0", "1/1", "a/b", "-1/3", "0/3/1"])
def test_bad_folds(fold):
    with pytest.raises(InputError, match="must be k/K"):
        fold_parts(fold)


def test_what_was_made_from_the_slice_is_left_out(pair, base_model, files, tmp_path):
    out = tmp_path / "texts.csv"
    augment(str(base_model), str(out), str(files[0]), copies=2, device="cpu")
    frame = pd.read_csv(out)
    data = TextClassificationData(str(files[0]), str(files[1]), routing_fraction=0.3, transfer=str(out))
    held_out = {data.examples("routing").key.tolist()[i] for i in range(len(data.examples("routing")))}
    kept = data.examples("transfer")
    sources = frame["source_key"].to_numpy()[kept.id.tolist()]
    assert 0 < len(kept) < len(frame)
    assert not held_out & set(sources.tolist())
    assert len(kept) == (~frame["source_key"].isin(held_out)).sum()
    # Nor does a fold learn from what was made from its own part.
    folded = TextClassificationData(str(files[0]), str(files[1]), routing_fraction=0.3, transfer=str(out), fold="0/3")
    left_out = set(folded.examples("fold").key.tolist())
    sources = frame["source_key"].to_numpy()[folded.examples("transfer").id.tolist()]
    assert left_out
    assert not (left_out | held_out) & set(sources.tolist())
    # A file that says nothing of its sources is taken whole.
    frame.drop(columns="source_key").to_csv(tmp_path / "bare.csv", index=False)
    bare = TextClassificationData(
        str(files[0]), str(files[1]), routing_fraction=0.3, transfer=str(tmp_path / "bare.csv")
    )
    assert len(bare.examples("transfer")) == len(frame)


def test_default_weights_and_scores(base_model):
    labels = SwiftModule(str(base_model), NAMES, super_records="super.parquet")
    assert labels.loss_options == LossOptions(distill_weight=10, margin_weight=0.1)
    assert labels.score == "max_softmax"
    assert labels.hparams["distill_weight"] is labels.hparams["margin_weight"] is None


def test_a_single_text_column_needs_no_list(tmp_path, base_model):
    pd.DataFrame({"question": ["the good film is here", "a bad plot was made"]}).to_csv(
        tmp_path / "in.csv", index=False
    )
    out = tmp_path / "out.csv"
    args = ["augment", "--model", str(base_model), "--input", str(tmp_path / "in.csv"), "--output", str(out)]
    assert main([*args, "--text", "question"]) == 0
    assert list(pd.read_csv(out).columns) == ["question", "source_key"]
    assert main([*args, "--text", "[question]"]) == 0


@pytest.mark.parametrize(("better", "expected"), [(True, "router"), (False, "max_softmax")])
def test_the_default_score_is_the_routers_where_it_is_better(
    better, expected, pair, base_model, data_args, tmp_path, monkeypatch
):
    def choose(held_out, gain, simple, *others):
        assert simple == "max_softmax"
        return ("logits" if better else simple), {
            "reads": "logits" if better else simple,
            "why": "told so",
            "areas": {},
        }

    monkeypatch.setattr("elang.method.router._choose", choose)
    monkeypatch.setattr("elang.method.router.gain_area", lambda *_: torch.tensor(0.5))
    args = [
        "--model",
        "SwiftModule",
        "--model.model",
        str(base_model),
        "--model.layers",
        "1",
        "--trainer.max_steps",
        "2",
    ]
    args += [
        "--model.super_records",
        str(pair["records"]),
        "--model.output",
        str(tmp_path / "swift"),
        *data_args,
        *FAST,
    ]
    assert main(["fit", *args]) == 0
    found = Manifest.read(tmp_path / "swift")
    assert found.score == expected
    assert found.router["router"]["learned_from"] == "the Super's probabilities"
    # One that was asked for stays.
    assert main(["fit", *args, "--model.score", "margin", "--model.output", str(tmp_path / "other")]) == 0
    assert Manifest.read(tmp_path / "other").score == "margin"


def test_answers_out_of_fold(extras, files, data_args, capsys):
    """Every training example once, by the Swift that was trained without it."""
    records = read_records(extras["folds"], NAMES)[0]["train"]
    whole = TextClassificationData(str(files[0]), routing_fraction=0.25)
    assert records.id.tolist() == whole.examples("train").id.tolist()
    seen = []
    for k in range(3):
        data = TextClassificationData(str(files[0]), routing_fraction=0.25, fold=f"{k}/3")
        inside, outside = data.examples("fold").id.tolist(), data.examples("train").id.tolist()
        assert not set(inside) & set(outside)
        assert sorted(inside + outside) == whole.examples("train").id.tolist()
        assert data.examples("routing").id.tolist() == whole.examples("routing").id.tolist()
        assert len(inside) > 40
        seen += inside
        model = load_model(str(extras["root"] / "oof" / f"fold-{k}" / "swift")).eval()
        texts = data.examples("fold").texts
        inputs = model.tokenizer([t[0] for t in texts], padding="longest", return_tensors="pt")
        with torch.no_grad():
            logits = model(dict(inputs)).logits
        torch.testing.assert_close(records.logits[records.rows(torch.tensor(inside))], logits, atol=1e-5, rtol=1e-4)
    assert sorted(seen) == whole.examples("train").id.tolist()


def test_crossfit_goes_on_where_it_was(extras, capsys):
    """Only what is missing is made, and the file is the same again."""
    before = extras["folds"].read_bytes()
    (extras["root"] / "oof" / "fold-1" / "swift.parquet").unlink()
    extras["folds"].unlink()
    capsys.readouterr()
    assert main(extras["args"]) == 0
    said = capsys.readouterr().out
    assert "fold-1: score took" in said
    assert "swift took" not in said
    assert said.count("took") == 1
    assert extras["folds"].read_bytes() == before


def test_bad_crossfits(extras, fails, tmp_path):
    rest = extras["args"][5:]
    out = ["--output", str(tmp_path / "o.parquet")]
    fails(["crossfit", "--folds", "1", *out, *rest], "--folds must be at least 2, but it is 1")
    fails(["crossfit", "--jobs", "0", *out, *rest], "--jobs must be at least 1")
    fails(["crossfit", "--output", str(tmp_path / "o.csv"), *rest], "written as parquet")
    fails([*extras["args"], "--model.lr", "1e-4"], "made with other options")
    other = ["--data", "Seq2SeqData", "--data.train", "x", "--model.model", "y"]
    fails(["crossfit", *out, *other], "Seq2SeqData has no --data.fold")
    fails(["fit", *rest, "--model.out_of_fold", str(tmp_path / "no.parquet")], "There is no records file")
    fails(["fit", *rest, "--model.out_of_fold", str(extras["folds"]), "--data.routing_fraction", "0.1"], "lack")
    assert not list(tmp_path.iterdir())


# Text without labels.


def test_text_without_labels_is_learned_from(extras, base_model, files, tmp_path):
    """Behind the labelled examples of an epoch, with the Super's logits and labels."""
    data = TextClassificationData(*map(str, files), routing_fraction=0.25, transfer=str(extras["texts"]))
    module = SwiftModule(str(base_model), NAMES, data.task_fields, super_records=str(extras["records"]))
    from lightning.pytorch import Trainer

    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
    seen = []

    class Watched(SwiftModule):
        def loss(self, batch, answer):
            seen.append((batch["id"], batch["label"], self.objective.columns["super_logits"][batch["id"]]))
            return super().loss(batch, answer)

    module.__class__ = Watched
    module.output = str(tmp_path / "swift")
    trainer.fit(module, datamodule=data)
    ids, label, logits = (torch.cat(parts) for parts in zip(*seen, strict=True))
    own = data.examples("train")
    assert sorted(ids.tolist()) == [*own.id.tolist(), *range(240, 290)]
    splits = read_records(extras["records"], NAMES)[0]
    kept = dict(zip(own.id.tolist(), own.label.tolist(), strict=True))
    for i, (number, target) in enumerate(zip(ids.tolist(), label.tolist(), strict=True)):
        part, row = (splits["train"], number) if number < 240 else (splits["transfer"], number - 240)
        place = part.rows(torch.tensor([row]))[0]
        assert torch.equal(part.logits[place], logits[i])
        assert target == (kept[number] if number < 240 else int(part.prediction[place]))


def test_bad_text_without_labels(extras, pair, base_model, data_args, fails, tmp_path):
    swift = ["fit", "--model", "SwiftModule", "--model.model", str(base_model), *data_args, *FAST]
    swift += ["--model.output", str(tmp_path / "swift"), "--data.transfer"]
    given = [*swift, str(extras["texts"]), "--model.super_records"]
    fails([*given, str(pair["records"])], "no answers to the transfer set", "elang score")
    fails([*given, str(extras["records"]), "--model.distill_weight", "0"], "text without labels", "distill_weight")
    fails([*given, str(extras["records"]), "--data.text", "words"], "has no column 'words'")
    fails([*swift, str(tmp_path / "no.csv"), "--model.super_records", str(extras["records"])], "no data file")
    fine = ["fit", "--model.model", str(base_model), *data_args, *FAST, "--model.output", str(tmp_path / "x")]
    fails([*fine, "--data.transfer", str(extras["texts"])], "only a SwiftModule learns from")
    (tmp_path / "other.csv").write_text("text\nthe other text\n", "utf-8")
    fails([*swift, str(tmp_path / "other.csv"), "--model.super_records", str(extras["records"])], "made for other data")
    assert not (tmp_path / "swift").exists()


# Hidden states.


def test_layers_are_spread_evenly():
    assert even_layers(4, 12) == [0, 3, 6, 9, 12]
    assert even_layers(1, 6) == [0, 6]
    assert even_layers(6, 6) == list(range(7))


def test_the_same_states_differ_by_nothing(tmp_path):
    model = load_model(str(write_model(tmp_path / "m", layers=2, labels=("bad", "good"))))
    made = HiddenStateObjective(model, load_model(str(tmp_path / "m")))
    for projection in made.projections:
        torch.nn.init.eye_(projection.weight)
        torch.nn.init.zeros_(projection.bias)
    texts = ["the film was good", "bad", "a very dull story and music"]
    inputs = dict(model.tokenizer(texts, padding="longest", return_tensors="pt"))
    model.eval()
    model.training = True  # its own flag alone: states are kept, nothing is dropped
    states = model(inputs).states
    assert len(states) == 3
    assert float(made(states, inputs["attention_mask"], inputs)) == pytest.approx(0, abs=1e-10)
    # By hand, with layers of choice, token by token and by means.
    made.layer_map = [2, -1, 0]
    made.projections = torch.nn.ModuleList(list(made.projections)[:2])
    mask = inputs["attention_mask"]
    pairs = ((states[0], states[2]), (states[2], states[0]))
    expected = sum(hidden_distillation(a, b, mask) for a, b in pairs) / 2
    torch.testing.assert_close(made(states, mask, inputs), expected)
    made.by_token = False
    means = [(masked_mean(a, mask), masked_mean(b, mask)) for a, b in pairs]
    expected = sum((a - b).square().mean() for a, b in means) / 2
    torch.testing.assert_close(made(states, mask, inputs), expected)


def test_tokenizers_are_compared(tmp_path):
    swift = load_model(str(write_model(tmp_path / "swift", labels=("bad", "good"))))
    other = [*["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], *GOOD, *BAD]
    super_ = load_model(str(write_model(tmp_path / "super", labels=("bad", "good"), vocabulary=other)))
    made = HiddenStateObjective(swift, super_)
    made.compare_tokenizers(swift.reader, [("good",), ("dull",)])
    assert made.by_token
    made.compare_tokenizers(swift.reader, [("good",), ("dull film",)])
    assert not made.by_token
    made = HiddenStateObjective(swift, swift)
    made.compare_tokenizers(swift.reader, [("good", "film")])
    assert not made.by_token


def test_the_super_is_no_part_of_what_is_trained(base_model, pair, files):
    data = TextClassificationData(*map(str, files))
    options = {"super_records": str(pair["records"]), "super_model": str(pair["super"]), "hidden_weight": 1.0}
    module = SwiftModule(str(base_model), NAMES, data.task_fields, layers=1, **options)
    names = [name for name, _ in module.named_parameters()]
    assert [n for n in names if n.startswith("hidden.")] == [
        f"hidden.projections.{i}.{part}" for i in range(2) for part in ("weight", "bias")
    ]
    assert not any(p.requires_grad for p in module.hidden.super_.parameters())
    assert set(module.readers) == {"model", "super"}


def test_bad_hidden_states(base_model, pair, data_args, fails, tmp_path):
    swift = ["fit", "--model", "SwiftModule", "--model.model", str(base_model), *data_args, *FAST]
    swift += ["--model.super_records", str(pair["records"]), "--model.hidden_weight", "1"]
    fails(swift, "set --model.super_model")
    swift += ["--model.super_model", str(pair["super"])]
    fails([*swift, "--model.layer_map", "[0, 1]"], "layer_map [0, 1]", "each of its 2 layers")
    fails([*swift, "--model.layer_map", "[0, 1, 3]"], "layer_map [0, 1, 3]")
    fails([*swift, "--model.layer_map", "[-1, -1, -1]"], "layer_map [-1, -1, -1]")
    t5 = write_t5(tmp_path / "t5", ["text: the film was good bad"] * 60)
    swift[4] = str(t5)
    fails([*swift, "--data.answers", "[bad, good]"], "between encoders", "hidden_weight 0")


# More text.


def test_words_are_replaced_by_likely_ones(base_model, files, tmp_path, capsys):
    """An untrained head is a head; the words are those of the vocabulary, capitals and the rest stay."""
    from transformers import BertConfig, BertForMaskedLM

    folder = write_model(tmp_path / "mlm")
    BertForMaskedLM(BertConfig.from_pretrained(folder)).save_pretrained(folder)
    assert load_masked(str(folder))[2]
    assert not load_masked(str(base_model))[2]
    out = tmp_path / "texts.jsonl"
    args = ["augment", "--model", str(folder), "--input", str(files[0]), "--output", str(out), "--copies", "2"]
    assert main(args) == 0
    said = capsys.readouterr().out
    made, texts = pd.read_json(out, lines=True)["text"].tolist(), pd.read_csv(files[0])["text"].tolist()
    assert f"{out} has {len(made)} texts, by masked words" in said
    assert any(f"Of 480 texts made, {480 - len(made)} left out" in one["text"] for one in notices())
    assert len(set(made)) == len(made) > 400
    assert not set(made) & set(texts)
    lengths = {len(text.split()) for text in texts}
    assert {len(text.split()) for text in made} <= lengths
    first = made[0].split()
    assert 0 < sum(a != b for a, b in zip(first, texts[0].split(), strict=True)) < len(first)
    source = Replacements(str(folder), "auto", 5, device="cpu")
    import random

    changed = source.replace(["The, film!"], 1.0, random.Random(0))[0]
    assert changed[0].isupper()
    assert changed.count(",") == 1
    assert changed.endswith("!")
    # The same again with the same seed.
    again = tmp_path / "again.jsonl"
    augment(str(folder), str(again), str(files[0]), copies=2)
    assert again.read_bytes() == out.read_bytes()


def test_words_are_replaced_by_neighbours(base_model, tmp_path):
    source = Replacements(str(base_model), "auto", 3, device="cpu")
    assert not source.masked
    table = source.model.get_input_embeddings().weight.detach()
    names = source.tokenizer.convert_ids_to_tokens(list(range(len(table))))
    good = names.index("good")
    closeness = torch.nn.functional.cosine_similarity(table[good][None], table)
    # Not itself, no special token, nothing of one letter.
    allowed = [i for i, name in enumerate(names) if i != good and name.isalpha() and len(name) > 1]
    expected = sorted(allowed, key=lambda i: -closeness[i])[:3]
    import random

    found = {source.replace(["good"], 0.1, random.Random(seed))[0] for seed in range(60)}
    assert found == {names[i] for i in expected}
    assert source.replace(["unknownword"], 1.0, random.Random(0)) == ["unknownword"]
    assert source.replace(["... 7"], 1.0, random.Random(0)) == ["... 7"]


def test_pairs_and_tasks_are_augmented(base_model, tmp_path):
    folder = tmp_path / "RTE"
    folder.mkdir()
    rows = "".join(f"{i}\tthe film was good\tthe plot {i}\tentailment\n" for i in range(5))
    (folder / "train.tsv").write_text(f"index\tsentence1\tsentence2\tlabel\n{rows}", "utf-8")
    (folder / "dev.tsv").write_text(f"index\tsentence1\tsentence2\tlabel\n{rows}", "utf-8")
    out = tmp_path / "texts.parquet"
    args = ["augment", "--model", str(base_model), "--task", "glue/rte", "--folder", str(tmp_path), "--copies", "3"]
    assert main([*args, "--output", str(out)]) == 0
    frame = pd.read_parquet(out)
    assert list(frame) == ["sentence1", "sentence2", "source_key"]
    assert 5 < len(frame) <= 15
    # They are what the task's Swift can learn from.
    from elang.data.benchmarks import TaskData

    data = TaskData("glue/rte", str(tmp_path), transfer=str(out), routing_fraction=0)
    found = data.examples("transfer")
    assert set(frame["source_key"]) <= set(data.examples("train").key.tolist())
    assert found.texts == list(zip(frame["sentence1"], frame["sentence2"], strict=True))
    assert found.label.tolist() == [-1] * len(frame)
    assert found.key.tolist() == [content_key(text) for text in found.texts]


def test_bad_augmentations(base_model, files, fails, tmp_path):
    given = ["augment", "--model", base_model, "--output", tmp_path / "x.csv"]
    fails(given, "either --input", "or --task")
    given += ["--input", files[0]]
    fails([*given, "--task", "glue/rte"], "either --input", "or --task")
    fails([*given, "--copies", "0"], "--copies must be at least 1")
    fails([*given, "--rate", "0"], "--rate must be above 0")
    fails(["augment", "--model", base_model, "--output", "x.csv", "--task", "superglue/wic"], "asks about words")
    fails([*given, "--candidates", "masked"], "no head of a masked language model", "--candidates neighbours")
    fails([*given, "--text", "[words]"], "has no column 'words'")
    fails(["augment", "--model", base_model, "--output", tmp_path / "x.txt", "--input", files[0]], "must end in .csv")
    fails(["augment", "--model", tmp_path, "--output", tmp_path / "x.csv", "--input", files[0]], "cannot be loaded")
    (tmp_path / "odd.csv").write_text("text\n1 2 3\n4\n", "utf-8")
    fails([*given[:5], "--input", tmp_path / "odd.csv"], "No word of the 2 texts")
    assert [path.name for path in tmp_path.iterdir()] == ["odd.csv"]


# The router of a finished Swift.


def test_the_router_is_told_of_in_the_manifest(pair, joint_args, tmp_path):
    """What `fit` found out is kept by `validate`; its scores on the slice come from the fits without each fold."""
    found = Manifest.read(pair["swift"]).router["router"]
    assert set(found["areas"]) == {"max_softmax", "free_energy", "logits", "logits and hidden state"}
    assert found["why"]
    assert main(["validate", *joint_args, "--model.output", str(tmp_path)]) == 0
    assert Manifest.read(tmp_path).router["router"] == found
    assert (
        json.loads((tmp_path / "elang.json").read_text())["thresholds"]["router"]
        == json.loads((pair["swift"] / "elang.json").read_text())["thresholds"]["router"]
    )


def test_without_a_slice_there_is_no_router(pair, base_model, data_args, fails, tmp_path):
    swift = ["fit", "--model", "SwiftModule", "--model.model", str(base_model), *data_args, *FAST]
    swift += ["--model.super_records", str(pair["records"]), "--data.routing_fraction", "0"]
    swift += ["--model.output", str(tmp_path / "swift"), "--trainer.max_steps", "2"]
    fails([*swift, "--model.score", "router"], "learned on a slice", "--data.routing_fraction above 0")
    assert main(swift) == 0
    assert not load_model(str(tmp_path / "swift")).heads
    assert not (tmp_path / "swift" / "router.safetensors").exists()


def test_a_router_that_reads_everything_is_used(pair, joint_args, files, tmp_path):
    """Put one by hand that only the hidden state tells of: `validate` and prediction follow it."""
    import shutil

    from elang import JointPredictor
    from elang.backends.loading.checkpoints import save_model

    swift = load_model(str(pair["swift"])).eval()
    texts = pd.read_csv(files[1])["text"].tolist()
    inputs = dict(swift.tokenizer(texts, padding="longest", return_tensors="pt"))
    with torch.no_grad():
        features = swift.router_features(swift(inputs))["router"]
    head = swift.routers["router"]
    gain = features[:, -3]
    key = torch.tensor([content_key((text,)) for text in texts])
    head.fit(features, gain, fold_of(key))
    folder = tmp_path / "swift"
    manifest = swift.manifest
    manifest.thresholds = {}
    save_model(swift, folder, manifest)
    args = [str(folder) if a == str(pair["swift"]) else a for a in joint_args]
    assert main(["validate", *args, "--model.output", str(tmp_path / "joint")]) == 0
    records = pd.read_parquet(tmp_path / "joint" / "records.parquet").query("split == 'validation'")
    said = records["score_router"].to_numpy()
    assert np.corrcoef(said, gain.numpy())[0, 1] > 0.9
    # Its weights are large where features are alike, and so is what batches round.
    np.testing.assert_allclose(said, head(features).numpy(), atol=5e-3)
    threshold = float(np.sort(said)[len(said) // 2 : len(said) // 2 + 2].mean())
    answers = JointPredictor(str(folder), str(pair["super"]), threshold, "router")(texts)
    assert [a.answered_by == "super" for a in answers] == (said > threshold).tolist()
    shutil.rmtree(folder)
