"""Traps of Lightning and Hugging Face that were run into: each test fails without our way out."""

import json

import pandas as pd
import pytest
import torch
import yaml
from conftest import QUIET, write_model
from safetensors.torch import load_file, save_file

from elang.backends.loading.load import load_model
from elang.cli.lightning import run
from elang.cli.verbs import main
from elang.models.swift import SwiftModule
from elang.notices import notices
from elang.records.manifest import Manifest
from elang.tasks.text_task import TextTask


def run_cli(verb, *args, **options):
    """Run a verb and hand back the CLI with its model, data and trainer."""
    from elang.cli import lightning as lightning_cli

    made = []

    class Kept(lightning_cli.ElangCLI):
        def after_instantiate_classes(self):
            made.append(self)

    original, lightning_cli.ElangCLI = lightning_cli.ElangCLI, Kept
    try:
        assert main([verb, *map(str, args)]) == 0
    finally:
        lightning_cli.ElangCLI = original
    return made[0]


@pytest.fixture
def fit_args(base_model, data_args, tmp_path):
    model = ["--model.model", str(base_model), "--model.output", str(tmp_path / "model")]
    return [
        *model,
        *data_args,
        *QUIET,
        "--trainer.max_epochs",
        "1",
        "--trainer.default_root_dir",
        str(tmp_path),
    ]


@pytest.fixture
def swift_args(fit_args, pair):
    return ["--model", "SwiftModule", *fit_args, "--model.super_records", str(pair["records"])]


@pytest.fixture
def checkpoint(fit_args, tmp_path):
    run_cli("fit", *fit_args, "--model.lr", "0.002")
    return next(tmp_path.rglob("*.ckpt"))


def test_explicit_values_win_over_a_checkpoint(fit_args, checkpoint):
    args = [*fit_args, "--trainer.max_epochs", "2", "--ckpt_path", checkpoint]
    cli = run_cli("fit", *args, "--model.lr", "0.003")
    assert cli.model.lr == 0.003
    assert {group["initial_lr"] for group in cli.trainer.optimizers[0].param_groups} == {0.003}
    assert "lr is 0.003, as given; the checkpoint has 0.002" in [one["text"] for one in notices()]
    assert cli.trainer.current_epoch == 2


def test_what_was_not_said_comes_from_the_checkpoint(fit_args, checkpoint):
    cli = run_cli("fit", *fit_args, "--trainer.max_epochs", "2", "--ckpt_path", checkpoint)
    assert cli.model.lr == 0.002
    assert "lr is 0.002, as in the checkpoint; the default is 5e-05" in [one["text"] for one in notices()]


def test_a_value_given_in_a_file_counts_as_said(fit_args, checkpoint, tmp_path):
    (tmp_path / "lr.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"lr": 0.004}}}))
    args = [
        "--config",
        tmp_path / "lr.yaml",
        *fit_args,
        "--trainer.max_epochs",
        "2",
        "--ckpt_path",
        checkpoint,
    ]
    assert run_cli("fit", *args).model.lr == 0.004


def test_a_training_without_an_end_ends(fit_args, base_model, data_args, checkpoint, tmp_path, fails, capfd):
    """After three epochs, or where the one that is gone on with was to end."""

    def epochs(*more):
        given = ["--model.model", str(base_model), *data_args, *QUIET, *map(str, more)]
        return run("fit", given, parse_only=True)["trainer"]["max_epochs"]

    endless = [*fit_args[:-4], *fit_args[-2:]]
    early = json.dumps([{"class_path": "EarlyStopping", "init_args": {"monitor": "validation/accuracy"}}])
    assert epochs() == 3
    assert epochs("--trainer.max_epochs", 7) == 7
    assert epochs("--trainer.max_epochs", 0) == 0
    for limit in (["max_steps", 5], ["max_time", "00:01:00:00"], ["min_epochs", 9], ["callbacks", early]):
        assert epochs(f"--trainer.{limit[0]}", limit[1]) is None
    assert epochs("--ckpt_path", checkpoint) == torch.load(checkpoint, weights_only=True)["elang"]["max_epochs"] == 1
    capfd.readouterr()
    run_cli("fit", *endless, "--ckpt_path", checkpoint)
    assert "training for 1 epochs" in capfd.readouterr().err
    older = torch.load(checkpoint, weights_only=True)
    del older["elang"]["max_epochs"]
    torch.save(older, tmp_path / "older.ckpt")
    for path in (tmp_path / "older.ckpt", "last"):
        fails(["fit", *endless, "--ckpt_path", path], "Set --trainer.max_epochs as it had it")


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_ends_with_the_same_weights(workers, base_model, fit_args, tmp_path):
    """With dropout, two epochs at once and one after the other end bit for bit the same."""
    assert json.loads((base_model / "config.json").read_text())["hidden_dropout_prob"] > 0
    every = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_top_k": -1}}
    args = [*fit_args, "--model.lr", "0.002", "--trainer.max_epochs", "2", "--trainer.callbacks", json.dumps([every])]
    args += ["--data.num_workers", str(workers)]
    run_cli("fit", *args)
    at_once = load_file(tmp_path / "model" / "model.safetensors")
    run_cli("fit", *args, "--ckpt_path", next(tmp_path.rglob("epoch=0*.ckpt")))
    resumed = load_file(tmp_path / "model" / "model.safetensors")
    assert {n: float((resumed[n] - v).abs().max()) for n, v in at_once.items()} == dict.fromkeys(at_once, 0.0)


def test_hyperparameters_are_plain(swift_args, tmp_path):
    run_cli("fit", *swift_args)
    stored = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=True)
    plain = (str, int, float, bool, type(None), list, dict)
    assert all(isinstance(value, plain) for value in stored["hyper_parameters"].values())
    assert stored["hyper_parameters"]["label_names"] == ["bad", "good"]


def test_the_labels_reach_the_model(swift_args, joint_args, tmp_path):
    """A misspelt link is accepted silently in subclass mode."""
    cli = run_cli("fit", *swift_args, "--trainer.max_steps", "1")
    assert cli.model.hparams.label_names == cli.datamodule.label_names == ["bad", "good"]
    assert cli.model.classifier.backbone.config.num_labels == 2
    cli = run_cli("validate", *joint_args, "--model.output", tmp_path / "joint")
    assert cli.model.hparams.label_names == ["bad", "good"]


def test_a_used_folder_does_not_abort_the_run(fit_args, tmp_path):
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger"}
    logger["init_args"] = {"save_dir": str(tmp_path), "name": "run", "version": "same"}
    args = [*fit_args, "--trainer.max_steps", "1", "--trainer.logger", json.dumps(logger)]
    for lr in ("0.001", "0.002"):
        run_cli("fit", *args, "--model.lr", lr)
    saved = yaml.safe_load((tmp_path / "run" / "same" / "config.yaml").read_text())
    assert saved["model"]["init_args"]["lr"] == 0.002


def test_switching_the_optimizer_keeps_nothing_of_the_default(fit_args):
    args = [*fit_args, "--trainer.max_steps", "1", "--optimizer", "torch.optim.SGD", "--optimizer.lr", "0.1"]
    optimizer = run_cli("fit", *args).trainer.optimizers[0]
    assert type(optimizer) is torch.optim.SGD
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.1, 0)


def test_training_runs_with_dropout(swift_args, monkeypatch):
    modes = []
    step = SwiftModule.training_step

    def watched(self, *args):
        modes.append(all(module.training for module in self.classifier.modules()))
        return step(self, *args)

    monkeypatch.setattr(SwiftModule, "training_step", watched)
    run_cli("fit", *swift_args, "--trainer.max_epochs", "2", "--trainer.val_check_interval", "4")
    assert len(modes) > 10
    assert all(modes)


def test_half_precision_files_are_trained_in_float32(base_model, tmp_path):
    folder = write_model(tmp_path / "half")
    state = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    model = load_model(str(folder), TextTask.of(["bad", "good"]), fine_tune=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_checkpoints_hold_the_swift_alone(swift_args, tmp_path):
    run_cli("fit", *swift_args)
    checkpoint = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=True)
    assert all(name.startswith("classifier.") for name in checkpoint["state_dict"])


@pytest.mark.parametrize("frozen", [False, True])
def test_every_trainable_parameter_moves(swift_args, monkeypatch, frozen):
    before = {}

    def remember(self):
        before.update({n: p.detach().clone() for n, p in self.named_parameters()})

    monkeypatch.setattr(SwiftModule, "on_train_start", remember)
    args = [*swift_args, "--model.freeze_embeddings", str(frozen).lower(), "--model.warmup", "0"]
    model = run_cli("fit", *args, "--trainer.max_steps", "1").model
    still = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    # Token types: only the first of two occurs, but weight decay moves both.
    expected = {"classifier.backbone.bert.embeddings.word_embeddings.weight"} if frozen else set()
    assert still == expected
    # Fitted in closed form, after all else.
    assert not any("router" in name for name in before)


def test_no_term_needs_a_branch_on_the_batch(swift_args, monkeypatch):
    """A batch without hard examples still gives every trained parameter a gradient, as plain DDP demands."""
    seen = []

    def watch(self, optimizer):
        seen.append({n for n, p in self.named_parameters() if p.requires_grad and p.grad is None})

    def all_easy(self, batch, answer):
        batch["label"] = answer.logits.argmax(-1)
        return original(self, batch, answer)

    original = SwiftModule.loss
    monkeypatch.setattr(SwiftModule, "loss", all_easy)
    monkeypatch.setattr(SwiftModule, "on_before_optimizer_step", watch)
    run_cli("fit", *swift_args, "--trainer.max_steps", "2")
    assert seen == [set(), set()]


def super_predictions(joint_args, pair, super_model, out):
    """What a Super in the place of the pair's answers."""
    args = [str(super_model) if a == str(pair["super"]) else a for a in joint_args]
    assert main(["validate", *args, "--model.output", str(out)]) == 0
    return pd.read_parquet(out / "records.parquet")["super_prediction"]


def test_label_orders_are_aligned_by_name(pair, joint_args, tmp_path):
    """A Super that counts its classes the other way round gives the same report."""
    import shutil

    other = shutil.copytree(pair["super"], tmp_path / "reversed")
    state = load_file(other / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name].flip(0).contiguous()
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((other / "config.json").read_text())
    config |= {"id2label": {"0": "good", "1": "bad"}, "label2id": {"good": 0, "bad": 1}}
    (other / "config.json").write_text(json.dumps(config))
    manifest = Manifest.read(other)
    manifest.weights_sha256 = ""
    manifest.write(other / "elang.json")
    answers = [super_predictions(joint_args, pair, name, tmp_path / "out") for name in (pair["super"], other)]
    assert answers[0].equals(answers[1])
    assert answers[0].nunique() == 2


def test_different_tokenizers(pair, joint_args, tmp_path):
    """Swift and Super each read the text through their own vocabulary."""
    import shutil

    from conftest import VOCABULARY

    other = write_model(tmp_path / "other", vocabulary=[*VOCABULARY[:5], *reversed(VOCABULARY[5:])])
    for name in ("model.safetensors", "config.json"):
        shutil.copy(pair["super"] / name, other / name)
    state = load_file(other / "model.safetensors")
    table = "bert.embeddings.word_embeddings.weight"
    state[table] = torch.cat([state[table][:5], state[table][5:].flip(0)])
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    answers = [super_predictions(joint_args, pair, name, tmp_path / "out") for name in (pair["super"], other)]
    assert answers[0].equals(answers[1])


def test_short_texts_are_not_padded_to_the_tokenizers_own_length(base_model):
    from transformers import AutoTokenizer

    from elang.data.encoding import encode

    tokenizer = AutoTokenizer.from_pretrained(base_model)
    assert len(tokenizer("good film", padding=True, truncation=True)["input_ids"]) <= 64
    encoded = encode(tokenizer, [("good film",), ("a very fine story",)], 64)
    assert encoded.batch([0, 1])["input_ids"].shape == (2, 6)
    assert encoded.lengths.tolist() == [4, 6]
    long = encode(tokenizer, [("good " * 100,)], 64)
    assert (long.lengths.tolist(), long.truncated) == ([64], 1)


def test_pairs_of_texts_are_told_apart(base_model):
    from transformers import AutoTokenizer

    from elang.data.encoding import encode

    encoded = encode(AutoTokenizer.from_pretrained(base_model), [("good film", "bad plot")], 64)
    assert encoded.batch([0])["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]


def test_decisions_that_rounding_could_flip_are_counted(pair, joint_args, tmp_path):
    # A Super of such a cost that not all is deferred to it.
    answers = pd.read_parquet(pair["records"])[["split", "id", "prediction"]]
    answers.to_csv(tmp_path / "super.csv", index=False)
    recorded = [str(tmp_path / "super.csv") if arg == str(pair["super"]) else arg for arg in joint_args]
    recorded += ["--model.super_flops", "1e12"]
    for precision, distance in (("32-true", 4e-7), ("bf16-mixed", 4e-3)):
        args = [*recorded, "--trainer.precision", precision, "--model.output", str(tmp_path / "joint")]
        assert main(["validate", *args]) == 0
        said = json.loads((tmp_path / "joint" / "summary.json").read_text())["within_rounding_of_threshold"]
        assert said["distance"] == distance
        frame = pd.read_parquet(tmp_path / "joint" / "records.parquet")
        frame = frame[frame["split"] == "validation"]
        threshold = json.loads((tmp_path / "joint" / "elang.json").read_text())["thresholds"]["max_softmax"]["1-SE"][
            "threshold"
        ]
        near = ((frame["score_max_softmax"] - float(threshold)).abs() <= distance).mean()
        assert said["share"] == pytest.approx(near)
    # Logits and energies stay float32 under autocast.
    energy = torch.tensor(frame["score_free_energy"].to_numpy())
    assert energy.dtype == torch.float32
    assert not torch.equal(energy, energy.bfloat16().float())


def test_csv_values_stay_as_they_are_written(tmp_path):
    from elang.data.columns import read_frame, texts_of
    from elang.data.labels import label_values

    path = tmp_path / "x.csv"
    path.write_text("text,label\nNA,01\nnull,1\n1.50,nan\n")
    frame = read_frame(str(path))
    assert texts_of(frame, ["text"], "x") == [("NA",), ("null",), ("1.50",)]
    assert label_values(frame, "label", "x") == ["01", "1", "nan"]
    tsv = tmp_path / "x.tsv"
    tsv.write_text('sentence\tlabel\n"quoted to the end\t1\nsecond "word\t0\n')
    assert texts_of(read_frame(str(tsv)), ["sentence"], "x") == [('"quoted to the end',), ('second "word',)]


def test_training_is_logged_at_the_steps_that_are_written(base_model, data_args, tmp_path):
    """What is not written is not logged either, which is a quarter of a small model's time."""
    args = ["fit", "--model.model", str(base_model), "--model.output", str(tmp_path / "out"), *data_args, *QUIET]
    args += ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir", str(tmp_path)]
    args += ["--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "4", "--trainer.enable_checkpointing", "false"]
    assert main(args) == 0
    written = pd.read_csv(next(tmp_path.rglob("metrics.csv")))
    losses = written.dropna(subset=["train/loss"])
    assert losses["step"].tolist() == [3, 7, 11, 15, 19]  # of 2 x 11
    assert (losses["train/loss"] > 0).all()
    assert written["validation/accuracy"].notna().sum() == 2
