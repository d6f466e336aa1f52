"""Lightning's own way: a plain trainer, and loaders that are not elang's."""

import inspect
import json
import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import forking
import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import FAST, QUIET, write_parallel, write_seq2seq
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from test_pitfalls import run_cli
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, DataCollatorWithPadding

from elang import (
    FinetuneModule,
    InputError,
    JointModule,
    JointPredictor,
    ScoreModule,
    Seq2SeqData,
    SwiftModule,
    TextClassificationData,
)
from elang.backends.loading.checkpoints import read_checkpoint
from elang.cli.verbs import main
from elang.data.batches import Reader
from elang.data.prompts import Prompt
from elang.models import elsewhere
from elang.models.loaders import LoaderBatches
from elang.notices import forget_notices, notices
from elang.records.manifest import Manifest
from elang.records.reading import read_records
from elang.tasks.text_task import TextTask

NAMES = ["bad", "good"]
# What a tiny training may be told.
BADLY_TRAINED = {"never-right", "learned-too-little", "better-epoch"}


def trainer(folder, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    checkpoints = {"enable_checkpointing": bool(options.get("callbacks"))}
    return pl.Trainer(**{**quiet, **checkpoints, "default_root_dir": folder, **options})


def kinds():
    return [one["kind"] for one in notices()]


@pytest.fixture(scope="module")
def tokenizer(base_model):
    return AutoTokenizer.from_pretrained(base_model)


@pytest.fixture(scope="module")
def rows(files, tokenizer):
    """Examples of the training and the validation file, as dictionaries."""
    frames = [pd.read_csv(file) for file in files]
    tokenizer.backend_tokenizer.no_padding()
    return [
        [{**tokenizer(text), "labels": NAMES.index(name)} for text, name in zip(f["text"], f["label"], strict=True)]
        for f in frames
    ]


@pytest.fixture(scope="module")
def loader(tokenizer):
    def make(rows, shuffle=False):
        return DataLoader(rows, batch_size=16, shuffle=shuffle, collate_fn=DataCollatorWithPadding(tokenizer))

    return make


@pytest.fixture(scope="module")
def trained(base_model, rows, loader, tmp_path_factory):
    """A module that was trained on plain loaders, its trainer and its last checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    pl.seed_everything(3)
    module = FinetuneModule(str(base_model), NAMES, lr=3e-3, output=str(folder / "model"))
    best = ModelCheckpoint(folder, filename="best", monitor="validation/loss", save_last=True)
    run = trainer(folder, max_epochs=6, callbacks=[best, EarlyStopping("validation/loss")])
    run.fit(module, loader(rows[0], shuffle=True), loader(rows[1]))
    return module, run, folder


def test_training_logs_its_validation_loss_and_exports(trained):
    _, run, folder = trained
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    assert metrics["validation/loss"] > 0
    assert metrics["validation/accuracy"] > 0.7
    assert Manifest.read(folder / "model").label_names == NAMES
    assert float(run.checkpoint_callback.best_model_score) <= metrics["validation/loss"] + 1e-6


def test_a_module_takes_a_batch(trained, rows, loader):
    module = trained[0].eval()
    batch = next(iter(loader(rows[1])))
    with torch.no_grad():
        answer = module(**batch)
        assert module(**{k: v for k, v in batch.items() if k != "labels"}).loss is None
    assert answer.logits.shape == (16, 2)
    torch.testing.assert_close(answer.loss, F.cross_entropy(answer.logits, batch["labels"]))


def test_trained_and_loaded_modules_are_evaluated_and_predict(trained, base_model, rows, loader, tmp_path):
    module, _, folder = trained
    last = folder / "last.ckpt"
    loaded = FinetuneModule.load_from_checkpoint(last)
    fresh = FinetuneModule(str(base_model), NAMES)
    (ours,) = trainer(tmp_path).validate(module, loader(rows[1]), verbose=False)
    (theirs,) = trainer(tmp_path).validate(
        fresh, loader(rows[1]), ckpt_path=str(last), verbose=False, weights_only=True
    )
    (tested,) = trainer(tmp_path).test(loaded, loader(rows[1]), verbose=False)
    assert theirs == {name.replace("test", "validation"): value for name, value in tested.items()}
    answers = trainer(tmp_path).predict(module, loader(rows[1]))
    found = {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}
    label = torch.tensor([row["labels"] for row in rows[1]])
    assert found["id"].tolist() == list(range(61))
    assert float((found["prediction"] == label).double().mean()) == pytest.approx(ours["validation/accuracy"])
    assert float(F.cross_entropy(found["logits"], label)) == pytest.approx(ours["validation/loss"], abs=1e-5)
    for verb in ("validate", "predict"):
        with pytest.raises(InputError, match="head cannot be evaluated"):
            getattr(trainer(tmp_path), verb)(FinetuneModule(str(base_model), NAMES), loader(rows[1]))


class Own(pl.LightningDataModule):
    """Has attributes that elang's data modules have, too, with another meaning."""

    splits = ("train", "validation", "routing")

    def __init__(self, train, validation):
        super().__init__()
        self.train, self.validation = train, validation

    def train_dataloader(self):
        return self.train

    def val_dataloader(self):
        return self.validation


def test_a_swift_learns_from_the_supers_logits_in_the_batch(trained, base_model, rows, loader, tmp_path):
    logits = torch.cat([answer["logits"] for answer in trainer(tmp_path).predict(trained[0], loader(rows[0]))])
    # Without labels, the Super's answer is learned.
    taught = [{**row, "labels": -1, "super_logits": x.tolist()} for row, x in zip(rows[0], logits, strict=True)]
    pl.seed_everything(3)
    swift = SwiftModule(str(base_model), NAMES, layers=1, lr=3e-3, output=str(tmp_path / "swift"))
    run = trainer(tmp_path, max_epochs=8, log_every_n_steps=1)
    forget_notices()
    run.fit(swift, datamodule=Own(loader(taught, shuffle=True), loader(rows[1])))
    assert {"train/distill", "train/margin", "validation/loss"} <= run.callback_metrics.keys()
    assert float(run.callback_metrics["validation/accuracy"]) > 0.7
    assert set(kinds()) - BADLY_TRAINED == {"no-routing-slice"}
    # The same by the formulas.
    swift.eval()
    batch = next(iter(loader(taught)))
    batch = swift._batches.read(batch, swift.text_models, labelled=False)
    batch["label"] = swift.objective.labels(batch)
    assert torch.equal(batch["label"], batch["super_logits"].argmax(-1))
    answer = swift.classifier(batch["model"], batch["label"])
    terms = swift.objective.terms(batch, answer)
    expected = 10 * swift.task.kind.distance(answer.logits, batch["super_logits"], 2.0)
    torch.testing.assert_close(terms["distill"], expected)


def test_a_swift_learns_from_records_by_id(pair, base_model, rows, loader, tmp_path):
    records = str(pair["records"])
    numbered = [{**row, "id": i} for i, row in enumerate(rows[0])]
    swift = SwiftModule(str(base_model), NAMES, layers=1, super_records=records, output=str(tmp_path / "swift"))
    trainer(tmp_path, max_steps=2).fit(swift, loader(numbered, shuffle=True))
    train = read_records(records, NAMES)[0]["train"]
    batch = {"id": torch.tensor([3, 5])}
    assert torch.equal(swift.objective._logits(batch), train.take(train.rows(batch["id"])).logits)
    for changed, words in ((rows[0], "looked up by 'id'"), ([{**r, "id": r["id"] + 9} for r in numbered], "lack")):
        with pytest.raises(InputError, match=words):
            trainer(tmp_path, max_epochs=1).fit(swift, loader(changed))


def test_without_a_super_a_swift_learns_from_labels(base_model, rows, loader, files, tmp_path):
    forget_notices()
    swift = SwiftModule(str(base_model), NAMES, layers=1, lr=3e-3, output=str(tmp_path / "swift"))
    run = trainer(tmp_path, max_epochs=1, log_every_n_steps=1)
    run.fit(swift, loader(rows[0], shuffle=True), loader(rows[1]))
    assert set(kinds()) - BADLY_TRAINED == {"no-super-answers", "no-routing-slice"}
    assert "train/distill" not in run.callback_metrics
    insists = SwiftModule(str(base_model), NAMES, layers=1, distill_weight=1.0)
    with pytest.raises(InputError, match="needs 'super_logits'"):
        trainer(tmp_path, max_epochs=1).fit(insists, loader(rows[0]))
    # On elang's own data that is a mistake, unless it is only tried out.
    data = TextClassificationData(*map(str, files), routing_fraction=0.25)
    swift = SwiftModule(str(base_model), NAMES, data.task_fields, layers=1, output=str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"--model\.super_records is not set"):
        trainer(tmp_path, max_epochs=1).fit(swift, datamodule=data)
    trainer(tmp_path, fast_dev_run=True).fit(swift, datamodule=data)
    assert not (tmp_path / "none").exists()


def test_a_pair_on_loaders(pair, rows, loader, tmp_path):
    held_out = loader(rows[0][:60])
    models = str(pair["swift"]), str(pair["super"])
    joint = JointModule(*models, NAMES, output=str(tmp_path / "joint"))
    trainer(tmp_path).validate(joint, [loader(rows[1]), held_out], verbose=False)
    summary = joint.summary.qualities["accuracy"]
    label = torch.tensor([row["labels"] for row in rows[1]])
    predicting = JointModule(*models, NAMES, output=str(tmp_path / "none"), thresholds=str(tmp_path / "joint"))
    answers = trainer(tmp_path).predict(predicting, loader(rows[1]))
    found = {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}
    assert float((found["super_prediction"] == label).double().mean()) == pytest.approx(summary.super.quality)
    threshold = Manifest.read(tmp_path / "joint").threshold("1-SE")
    assert torch.equal(found["deferred"], found["score"] > threshold)
    chosen = torch.where(found["deferred"], found["super_prediction"], found["swift_prediction"])
    assert torch.equal(found["prediction"], chosen)
    assert set(predicting(**next(iter(loader(rows[1]))))) == {"swift", "super"}
    trainer(tmp_path, fast_dev_run=True).validate(predicting, loader(rows[1]))
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match="evaluated examples are in the training file"):
        trainer(tmp_path).validate(joint, [held_out, held_out], verbose=False)
    with pytest.raises(InputError, match="not 3 loaders"):
        trainer(tmp_path).validate(joint, [held_out] * 3, verbose=False)
    with pytest.raises(InputError, match="first loader has no examples"):
        trainer(tmp_path).validate(joint, [loader([]), held_out], verbose=False)
    recorded = JointModule(models[0], str(pair["records"]), NAMES, output=str(tmp_path / "recorded"))
    for verb in ("validate", "predict"):
        with pytest.raises(InputError, match="is no model, so it answers only examples of elang's data modules"):
            getattr(trainer(tmp_path), verb)(recorded, loader(rows[1]))
    with pytest.raises(InputError, match="give ScoreModule one of elang's data modules"):
        trainer(tmp_path).validate(ScoreModule(models[1], NAMES, output=str(tmp_path / "r.parquet")), held_out)


def test_answers_of_a_pair_have_the_classes_in_its_order(pair, rows, loader):
    """Of models that have another one; the loss is that of the right class."""
    batch = next(iter(loader(rows[1])))
    answers = [
        JointModule(str(pair["swift"]), str(pair["super"]), names)(**{**batch, "labels": labels})
        for names, labels in ((NAMES, batch["labels"]), (NAMES[::-1], 1 - batch["labels"]))
    ]
    for name in ("swift", "super"):
        ours, turned = (answer[name] for answer in answers)
        assert torch.equal(ours.logits, turned.logits[:, [1, 0]])
        assert torch.equal(ours.prediction, 1 - turned.prediction)
        torch.testing.assert_close(ours.loss, turned.loss)


def test_a_swift_on_loaders_has_a_score_without_a_router(base_model, pair, rows, loader, files, tmp_path):
    """A regression has none; that a router routed in an earlier training counts no more."""
    task = {**SwiftModule(str(base_model), NAMES).task.plain(), "problem": "regression"}
    endless = [{**row, "labels": float("inf")} for row in rows[0]]
    with pytest.raises(InputError, match="is infinite"):
        trainer(tmp_path, max_steps=1).fit(FinetuneModule(str(base_model), ["worth"], task), loader(endless))
    values = [{**row, "labels": float(row["labels"])} for row in rows[0]]
    with pytest.raises(InputError, match="in one of elang's data modules"):
        trainer(tmp_path, max_steps=1).fit(SwiftModule(str(base_model), ["worth"], task), loader(values))
    swift = SwiftModule(str(base_model), NAMES, layers=1, output=str(tmp_path / "swift"))
    swift.score = "router"
    trainer(tmp_path, max_steps=1).fit(swift, loader(rows[0]))
    assert Manifest.read(tmp_path / "swift").score == "max_softmax"


def test_answers_out_of_fold_need_a_file(base_model, pair, rows, loader, tmp_path):
    swift = SwiftModule(str(base_model), NAMES, out_of_fold=str(pair["records"]), output=str(tmp_path / "swift"))
    with pytest.raises(InputError, match="is about the rows of a training file"):
        trainer(tmp_path, max_steps=1).fit(swift, loader(rows[0]))


class ElsewhereTensor(torch.Tensor):
    """Says that it is on a GPU."""

    device = torch.device("cuda")


def test_labels_on_a_gpu_are_looked_at_in_the_first_batch():
    """Of each training and evaluation, also after the Super's answers have replaced some."""
    batches = LoaderBatches(TextTask.of(NAMES, None))
    labels = torch.tensor([0, -1]).as_subclass(ElsewhereTensor)
    for _ in range(2):
        batches.begin()
        batches.check_labels(labels, labelled=False)
        with pytest.raises(InputError, match="without 'labels'"):
            batches.check_labels(labels, labelled=True)
        batches.check_labels(labels, labelled=True)


@pytest.mark.parametrize("error", [None, InputError("No answer."), ValueError("Broken.")])
def test_the_other_processes_hear_that_a_server_is_still_asked(monkeypatch, error):
    """Without a word for some ten minutes torch gives them up."""
    monkeypatch.setattr(elsewhere, "_MINUTE", 0.05)
    words = []

    class Slow:
        def answer(self, examples):
            time.sleep(0.3)
            if error:
                raise error
            return examples

    def module(first, broadcast):
        strategy = SimpleNamespace(broadcast=broadcast)
        return SimpleNamespace(trainer=SimpleNamespace(world_size=2, is_global_zero=first, strategy=strategy))

    def ask(first, broadcast):
        return elsewhere.ask_once(Slow(), "answers", module(first, broadcast).trainer)

    def told(word):
        words.append(word)
        return word

    if error is None:
        assert ask(True, told) == "answers"
    else:
        with pytest.raises(type(error), match=str(error)):
            ask(True, told)
    assert words[:2] == [None, None]
    heard = iter(words)
    if error is None:
        assert ask(False, lambda _: next(heard)) == "answers"
    else:
        with pytest.raises(InputError, match=str(error)):
            ask(False, lambda _: next(heard))


def test_several_loaders_are_told_apart(base_model, rows, loader, tmp_path):
    module = FinetuneModule(str(base_model), NAMES, output=str(tmp_path / "model"))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, loader(rows[0]), [loader(rows[1]), loader(rows[1][:9])])
    assert {"validation/loss", "validation_1/loss", "validation_1/accuracy"} <= run.callback_metrics.keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda batch: (batch["input_ids"], batch["labels"]), "must be a dictionary"),
        (lambda batch: {k: v for k, v in batch.items() if k != "labels"}, "without 'labels'"),
        (lambda batch: {k: v for k, v in batch.items() if k != "attention_mask"}, "no 'attention_mask'"),
        (lambda batch: {**batch, "input_ids": batch["input_ids"].tolist()}, "is a list, not a tensor"),
        (lambda batch: {**batch, "labels": batch["labels"] + 1}, "there are 2 classes"),
        (lambda batch: {**batch, "labels": -batch["labels"]}, "examples without 'labels'"),
        (lambda batch: {**batch, "labels": batch["labels"].float()}, "must be integers"),
        (lambda batch: {**batch, "labels": batch["labels"][:3]}, "a tensor with 16 rows"),
        (lambda batch: {**batch, "labels": batch["labels"][:, None]}, "1 dimension, but has the shape (16, 1)"),
        (lambda batch: {**batch, "id": batch["labels"] + 0.5}, "'id' must be integers"),
        (lambda batch: {**batch, "targets": batch["labels"], "labels": None}, "has the type NoneType"),
        (lambda batch: {**batch, "super_logits": torch.zeros(16, 3)}, "a logit of the Super for each class"),
    ],
)
def test_a_batch_that_lacks_something(base_model, rows, loader, tmp_path, change, words):
    module = FinetuneModule(str(base_model), NAMES)
    collate = loader(rows[0]).collate_fn
    bad = DataLoader(rows[0], batch_size=16, collate_fn=lambda examples: change(collate(examples)))
    with pytest.raises(InputError, match=re.escape(words)):
        trainer(tmp_path, max_steps=1).fit(module, bad)


def test_the_candidates_of_a_text_to_text_model(tokenizer):
    """They are answers, unless all examples have the same ones."""
    batch = {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 3).long()}

    def read(**more):
        task = TextTask.of(["0", "1"], {"problem": "choice", "segments": ["{text}", "{choice}"], **more})
        model = SimpleNamespace(tokenizer=tokenizer, text_to_text=True, task=task, reader=Reader(tokenizer, True))
        return LoaderBatches(task).read(batch | {"labels": torch.tensor([0, 1])}, {"model": model})

    with pytest.raises(InputError, match="no 'num_choices', 'answer_ids'"):
        read()
    assert read(answers=["this", "that"])["label"].tolist() == [0, 1]


def test_models_that_read_differently_need_inputs_of_their_own(tokenizer):
    batch = {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 3).long()}
    task = TextTask.of(NAMES, None)

    def read(batch, *prompts):
        models = {
            name: SimpleNamespace(
                tokenizer=tokenizer, text_to_text=True, task=task, reader=Reader(tokenizer, True, prompt=prompt)
            )
            for name, prompt in zip(("swift", "super"), prompts, strict=True)
        }
        return LoaderBatches(task).read(batch, models, labelled=False)

    ask, chat = Prompt("{text}", (), " "), Prompt("user: {text}", (), " ")
    assert len(read(batch, ask, ask)["super"]["input_ids"]) == 2
    with pytest.raises(InputError, match="read texts differently"):
        read(batch, ask, chat)
    assert len(read({"swift": batch, "super": batch}, ask, chat)["super"]["input_ids"]) == 2


def test_columns_that_are_not_read_are_told(base_model, rows, loader, tmp_path):
    forget_notices()
    module = FinetuneModule(str(base_model), NAMES, output=str(tmp_path / "model"))
    trainer(tmp_path, max_steps=1).fit(module, loader([{**row, "weight": 1.0} for row in rows[0]]))
    assert "'weight'" in next(one["text"] for one in notices() if one["kind"] == "unread-columns")


def test_a_second_fit_of_one_object(pair, base_model, files, tmp_path):
    """It trains with dropout, and its manifest is its own even if no step is left."""
    data = TextClassificationData(*map(str, files), routing_fraction=0.25)
    swift = SwiftModule(
        str(base_model),
        NAMES,
        data.task_fields,
        layers=1,
        super_records=str(pair["records"]),
        output=str(tmp_path / "s"),
    )
    run = trainer(tmp_path, max_epochs=1)
    run.fit(swift, datamodule=data)
    first = swift._manifest
    assert first.max_length == 256
    other = TextClassificationData(*map(str, files), routing_fraction=0.25, max_length=32)
    run.fit(swift, datamodule=other)
    assert swift._manifest is not first
    assert Manifest.read(tmp_path / "s").max_length == 32
    modes = []
    swift.on_train_batch_start = lambda *_: modes.append(swift.classifier.backbone.training)
    trainer(tmp_path, max_steps=1).fit(swift, datamodule=data)
    assert modes == [True]


def test_the_loss_is_the_mean_over_examples(pair, data_args):
    """Whatever the batches."""
    args = ["--model", "FinetuneModule", "--model.model", pair["super"], *data_args, *QUIET]
    runs = [run_cli("validate", *args, "--data.eval_batch_size", size) for size in (8, 61)]
    losses = [float(cli.trainer.callback_metrics["validation/loss"]) for cli in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    records = read_records(str(pair["records"]), NAMES)[0]["validation"]
    label = runs[0].datamodule.examples("validation").label
    assert losses[0] == pytest.approx(float(F.cross_entropy(records.logits, label)), abs=1e-5)


TWO_PROCESSES = """
import json, sys
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorWithPadding
from elang import SwiftModule

base, model, rows, output = sys.argv[1:]
rows = json.loads(open(rows).read())
collate = DataCollatorWithPadding(AutoTokenizer.from_pretrained(base))
train, validation = (DataLoader(rows, batch_size=8, shuffle=s, collate_fn=collate) for s in (True, False))
quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
quiet |= {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
pl.Trainer(max_epochs=1, **quiet).fit(SwiftModule(base, ["bad", "good"], output=output + ".model"), train, validation)
(metrics,) = pl.Trainer(**quiet).validate(SwiftModule(model, ["bad", "good"]), validation)
trainer = pl.Trainer(**quiet)
answers = trainer.predict(SwiftModule(model, ["bad", "good"]), validation)
ids = [i for answer in answers for i in answer["id"].tolist()]
with open(f"{output}.{trainer.global_rank}", "w") as file:
    json.dump([metrics, ids], file)
"""


def test_every_example_counts_once_on_two_processes(pair, base_model, rows, loader, tmp_path):
    """61 examples, of which Lightning's sampler repeats one."""
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    (tmp_path / "rows.json").write_text(json.dumps([*map(dict, rows[1])]))
    paths = [base_model, pair["super"], tmp_path / "rows.json", tmp_path / "out"]
    command = [sys.executable, "-m", "script", *map(str, paths)]
    run = {"cwd": tmp_path, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "timeout": 300}
    done = subprocess.run(command, forked=forking.CAN_FORK, capture_output=True, text=True, **run)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((tmp_path / f"out.{rank}").read_text()) for rank in (0, 1)]
    (wanted,) = trainer(tmp_path).validate(SwiftModule(str(pair["super"]), NAMES), loader(rows[1]), verbose=False)
    for metrics, _ in results:
        assert metrics == pytest.approx(wanted, abs=1e-6)
    assert sorted(results[0][1] + results[1][1]) == list(range(61))
    assert Manifest.read(tmp_path / "out.model").label_names == NAMES


def test_texts_are_trained_and_predicted(tmp_path):
    """An encoder-decoder on the references' tokens gives the metrics of elang's own data."""
    files = {
        name: str(write_parallel(tmp_path / name, rows, seed))
        for name, rows, seed in (("train", 64, 1), ("val", 20, 2))
    }
    data = Seq2SeqData(files["train"], files["val"], source="en", target="de", max_target_length=16, batch_size=16)
    base = write_seq2seq(tmp_path / "base")
    module = FinetuneModule(str(base), [], data.task_fields, output=str(tmp_path / "model"), lr=3e-3)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=data)
    theirs = {name: float(value) for name, value in run.callback_metrics.items()}
    assert theirs["validation/loss"] > 0
    tokenizer = AutoTokenizer.from_pretrained(base)
    sides = [Path(f"{files['val']}.{side}").read_text("utf-8").splitlines() for side in ("en", "de")]
    rows = [{**tokenizer(a, text_target=b)} for a, b in zip(*sides, strict=True)]
    collate = DataCollatorForSeq2Seq(tokenizer)
    loader = DataLoader(rows, batch_size=20, collate_fn=collate)
    (ours,) = trainer(tmp_path).validate(module, loader, verbose=False)
    assert ours["validation/bleu"] == pytest.approx(theirs["validation/bleu"])
    texts = [text for answer in trainer(tmp_path).predict(module, loader) for text in answer["text"]]
    assert len(texts) == 20
    alone = JointPredictor(str(tmp_path / "model"), None, "inf")
    assert [answer.label for answer in alone(sides[0])] == texts
    forget_notices()
    swift = SwiftModule(str(base), [], data.task_fields, output=str(tmp_path / "swift"))
    trainer(tmp_path, max_steps=1).fit(swift, loader, loader)
    assert kinds() == ["no-super-answers", "no-routing-slice"]


def test_predictions_of_elangs_own_data(pair, files, tmp_path):
    data = TextClassificationData(validation=str(files[1]))
    module = FinetuneModule(str(pair["super"]), NAMES, data.task_fields)
    answers = trainer(tmp_path).predict(module, datamodule=data)
    found = {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}
    order = found["id"].argsort()
    records = read_records(str(pair["records"]), NAMES)[0]["validation"]
    assert found["id"][order].tolist() == records.id.tolist()
    torch.testing.assert_close(found["logits"][order], records.logits, atol=1e-5, rtol=1e-5)


# The command line.


@pytest.fixture(scope="module")
def checkpoint(base_model, pair, data_args, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    args = ["fit", "--model", "SwiftModule", "--model.model", str(base_model), "--model.layers", "1"]
    args += ["--model.super_records", str(pair["records"]), "--model.output", str(folder / "model"), *data_args, *FAST]
    callback = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(folder), "save_last": True}}
    args += ["--trainer.max_epochs", "2", "--trainer.callbacks", json.dumps([callback])]
    args[args.index("--trainer.enable_checkpointing") + 1] = "true"
    assert main(args) == 0
    return folder / "last.ckpt"


def test_a_checkpoint_alone_is_evaluated_and_resumed(checkpoint, files, tmp_path, monkeypatch, capfd, fails):
    monkeypatch.chdir(tmp_path)
    assert main(["validate", "--ckpt_path", str(checkpoint), *QUIET]) == 0
    output = capfd.readouterr().out
    assert "accuracy on 61 examples of validation" in output
    told = " ".join(one["text"] for one in notices() if one["kind"] == "checkpoint-options")
    assert "replaced-model" not in kinds()
    assert f"--data.train={files[0]}" in told
    assert "--data.batch_size=16" in told
    shown = ["validate", f"--ckpt_path={checkpoint}", *QUIET, "--data.validation", str(files[1])]
    assert main(shown) == 0
    fails([*shown[:-2], "--data.validation", tmp_path / "no.csv"], "no.csv")
    fails(["test", "--ckpt_path", checkpoint, *QUIET], "--data.test")
    assert main(["fit", "--ckpt_path", str(checkpoint), *QUIET, "--model.output", str(tmp_path / "again")]) == 0
    again, first = (Manifest.read(folder) for folder in (tmp_path / "again", checkpoint.parent / "model"))
    assert again.thresholds == first.thresholds


class OwnData(TextClassificationData):
    """Has an argument that no file can keep."""

    def __init__(self, clean, **options):
        super().__init__(**options)
        self.clean = clean


@pytest.mark.parametrize("own", [False, True])
def test_arguments_of_data_do_not_spoil_a_checkpoint(base_model, files, tmp_path, own):
    """A path is kept as text; a function cannot be, so the checkpoint has no data."""
    options = {"validation": files[1], "routing_fraction": 0.25}
    data = OwnData(str.strip, train=files[0], **options) if own else TextClassificationData(files[0], **options)
    for epochs, checkpoint in ((1, None), (2, tmp_path / "last.ckpt")):
        module = FinetuneModule(str(base_model), NAMES, data.task_fields, output=str(tmp_path / "model"))
        run = trainer(tmp_path, max_epochs=epochs, callbacks=[ModelCheckpoint(tmp_path, save_last=True)])
        run.fit(module, datamodule=data, ckpt_path=checkpoint)
    kept = read_checkpoint(tmp_path / "last.ckpt")["elang"]["data"]
    assert kept is None if own else kept["init_args"]["train"] == str(files[0])
    assert data.title("validation") == f"{files[1].name} (label)"
    assert next(iter(inspect.signature(OwnData).parameters)) == "clean"


def test_a_trial_writes_nothing(joint_args, pair, data_args, tmp_path):
    trial = [*QUIET, "--trainer.fast_dev_run", "true", "--model.output"]
    assert main(["validate", *joint_args, *trial, str(tmp_path / "joint")]) == 0
    assert main(["score", "--model.model", str(pair["super"]), *data_args, *trial, str(tmp_path / "r.parquet")]) == 0
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_data_says_what_to_add(checkpoint, data_args, fails, tmp_path):
    saved = torch.load(checkpoint, weights_only=True)
    del saved["elang"]["data"]
    torch.save(saved, tmp_path / "old.ckpt")
    fails(["validate", "--ckpt_path", tmp_path / "old.ckpt", *QUIET], "--data.validation")
    saved["hyper_parameters"]["model"] = str(tmp_path / "gone")
    torch.save(saved, tmp_path / "gone.ckpt")
    fails(["validate", "--ckpt_path", tmp_path / "gone.ckpt", *QUIET, *data_args], "gone")


def test_small_data_are_logged_without_a_warning(base_model, data_args, tmp_path):
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    args = ["--model.model", base_model, "--model.output", tmp_path / "model", *data_args, *FAST]
    args[args.index("false")] = json.dumps(logger)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_cli("fit", *args, "--trainer.max_epochs", 2)
    assert not [w for w in caught if "logging interval" in str(w.message)]
    (written,) = tmp_path.rglob("metrics.csv")
    frame = pd.read_csv(written)
    assert frame["train/loss"].notna().sum() == 2
    assert frame["validation/loss"].notna().sum() == 2
