"""What a training ends with, and what it says of it: schedules that go on, the best weights, outputs of two runs."""

import errno
import fcntl
import json
import re
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from conftest import FAST, QUIET, write_data
from lightning.pytorch import Callback
from safetensors.torch import load_file
from test_pitfalls import run_cli

from elang import JointPredictor, locks
from elang.backends.loading.weights import num_weights
from elang.cli.lightning import run
from elang.cli.verbs import main
from elang.errors import InputError
from elang.models.course import Course, Evaluation
from elang.notices import forget_notices, notices
from elang.records.manifest import Manifest


def told(kind):
    return " ".join(one["text"] for one in notices() if one["kind"] == kind)


def checkpoints(folder, **options):
    given = {"dirpath": str(folder), "filename": "{epoch}", "save_top_k": -1} | options
    return json.dumps([{"class_path": "ModelCheckpoint", "init_args": given}])


@pytest.fixture
def fit_args(base_model, data_args, tmp_path):
    model = ["--model.model", base_model, "--model.output", tmp_path / "model", "--model.lr", "5e-3"]
    return [*model, *data_args, *QUIET, "--trainer.max_epochs", 4, "--trainer.default_root_dir", tmp_path]


class Rates(Callback):
    """Keeps the learning rate of every step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.seen.append(optimizer.param_groups[0]["lr"])


@pytest.fixture(scope="module")
def begun(base_model, data_args, tmp_path_factory):
    """The checkpoint of the second of four epochs, in batches of 16, and one of the middle of an epoch."""
    folder = tmp_path_factory.mktemp("begun")
    args = ["--model.model", base_model, "--model.output", folder / "model", "--model.lr", "5e-3", *data_args, *QUIET]
    args += ["--trainer.max_epochs", 4, "--trainer.default_root_dir", folder]
    run_cli("fit", *args, "--trainer.callbacks", checkpoints(folder))
    every = {"every_n_train_steps": 5, "filename": "{step}"}
    run_cli("fit", *args, "--trainer.max_epochs", 1, "--trainer.callbacks", checkpoints(folder, **every))
    return folder / "epoch=1.ckpt", folder / "step=5.ckpt"


@pytest.mark.parametrize(
    ("options", "left", "words"),
    [
        ([], 22, []),
        (["--data.batch_size", 64], 6, ["--data.batch_size 64 (in the checkpoint: 16)", "6 steps"]),
        (["--data.batch_size", 4], 88, ["--data.batch_size 4 (in the checkpoint: 16)"]),
        (["--trainer.accumulate_grad_batches", 3], 8, ["--trainer.accumulate_grad_batches 3 (in the checkpoint: 1)"]),
        (["--trainer.max_epochs", 6], 44, ["--trainer.max_epochs 6 (in the checkpoint: 4)"]),
        (["--trainer.max_steps", 30], 8, ["--trainer.max_steps 30 (in the checkpoint: -1)"]),
        (["--trainer.limit_train_batches", 5], 10, ["--trainer.limit_train_batches 5"]),
        (["--data.routing_fraction", 0.1], 28, ["--data.routing_fraction 0.1 (in the checkpoint: 0.25)", "texts"]),
        (["--model.warmup", 0.8], 22, []),
        (["--data.train", "relabelled"], 22, ["other training examples"]),
        (["--data.validation", "relabelled"], 22, ["other validation examples"]),
    ],
)
def test_the_learning_rate_fits_the_steps_that_are_left(
    fit_args, begun, files, monkeypatch, tmp_path, options, left, words
):
    from elang.cli import lightning as lightning_cli

    if "relabelled" in options:
        file = files[options[0] == "--data.validation"]
        (tmp_path / "other.csv").write_text(file.read_text().replace(",bad", ",good", 1))
        options = [options[0], tmp_path / "other.csv"]
    rates = Rates()
    original = lightning_cli.ElangCLI.instantiate_trainer
    monkeypatch.setattr(lightning_cli.ElangCLI, "instantiate_trainer", lambda cli, **more: add(original(cli, **more)))

    def add(trainer):
        trainer.callbacks.append(rates)
        return trainer

    steps = [*fit_args, "--trainer.enable_checkpointing", "false", *options, "--ckpt_path", begun[0]]
    cli = run_cli("fit", *steps)
    assert len(rates.seen) == left
    falls = rates.seen[1:] if "--model.warmup" in options else rates.seen
    assert rates.seen[0] > 0
    if "--model.warmup" not in options:
        assert all(a > b for a, b in pairwise(falls))
    schedule = cli.trainer.lr_scheduler_configs[0].scheduler
    assert schedule.get_last_lr() == [0.0, 0.0]
    # It goes on from where it was, but for what ends earlier or later than it was to.
    if not {"--trainer.max_steps", "--trainer.max_epochs", "--model.warmup"} & set(options):
        assert rates.seen[0] == pytest.approx(0.00275, rel=0.1)
    said = told("resumed-differently")
    assert bool(said) == bool(words)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("options", "place", "words"),
    [
        (["--data.routing_fraction", 0.5], 0, ["0.5", "0.25", "trained on"]),
        (["--data.fold", "0/4"], 0, ["0/4", "None"]),
        (["--trainer.max_epochs", 1], 0, ["max_epochs 1", "2 epochs"]),
        (["--data.batch_size", 8], 1, ["batch 5 of 11", "22", "--data.batch_size 8 (in the checkpoint: 16)"]),
    ],
)
def test_what_cannot_be_gone_on_with(fit_args, begun, fails, options, place, words):
    fails(["fit", *fit_args, "--trainer.enable_checkpointing", "false", *options, "--ckpt_path", begun[place]], *words)


def test_weights_alone_cannot_be_gone_on_with(fit_args, tmp_path, fails):
    args = [*fit_args, "--trainer.max_steps", 1]
    run_cli("fit", *args, "--trainer.callbacks", checkpoints(tmp_path / "c", save_weights_only=True, filename="only"))
    fails(["fit", *fit_args, "--ckpt_path", tmp_path / "c" / "only.ckpt"], "save_weights_only")


def weights(path):
    if path.suffix == ".ckpt":
        state = torch.load(path, weights_only=True)["state_dict"]
        return {name.removeprefix("classifier.backbone."): value for name, value in state.items()}
    return load_file(path / "model.safetensors")


def same(a, b):
    return all(torch.equal(value, a[name]) for name, value in b.items())


@pytest.mark.parametrize("only", [False, True])
def test_the_best_weights_are_exported(fit_args, tmp_path, only):
    """The lowest accuracy counts as the best here, for it comes early."""
    monitor = {"monitor": "validation/accuracy", "mode": "min", "save_weights_only": only}
    cli = run_cli("fit", *fit_args, "--trainer.callbacks", checkpoints(tmp_path / "c", **monitor))
    best = cli.trainer.checkpoint_callback.best_model_path
    assert "epoch=3" not in best
    assert same(weights(tmp_path / "model"), weights(tmp_path / "c" / best.rsplit("/", 1)[1]))
    made = json.loads((tmp_path / "model" / "made.json").read_text())
    said = [one["text"] for one in made["notices"] if one["kind"] == "best-weights"]
    assert len(said) == 1
    assert all(word in said[0] for word in ("epoch 1 (step 11)", "validation/accuracy", "0.", "min", "step 44"))


def test_the_best_may_be_the_last_or_of_an_earlier_run(fit_args, tmp_path):
    monitor = {"monitor": "step", "mode": "max"}
    run_cli("fit", *fit_args, "--trainer.max_epochs", 2, "--trainer.callbacks", checkpoints(tmp_path / "a", **monitor))
    assert not told("best-weights")
    last = torch.load(tmp_path / "a" / "epoch=1.ckpt", weights_only=True)
    assert same(weights(tmp_path / "model"), weights(tmp_path / "a" / "epoch=1.ckpt"))
    # As if the second epoch had been better than any that follows; the later run has another folder.
    state = next(one for key, one in last["callbacks"].items() if "ModelCheckpoint" in key)
    state["best_model_score"] = torch.tensor(100.0)
    torch.save(last, tmp_path / "a" / "epoch=1.ckpt")
    callbacks = checkpoints(tmp_path / "b", **monitor)
    run_cli("fit", *fit_args, "--trainer.callbacks", callbacks, "--ckpt_path", tmp_path / "a" / "epoch=1.ckpt")
    assert "epoch 2 (step 22)" in told("best-weights")
    assert same(weights(tmp_path / "model"), weights(tmp_path / "a" / "epoch=1.ckpt"))


def test_the_router_and_thresholds_are_those_of_the_best_weights(fit_args, pair, joint_args, tmp_path):
    args = ["--model", "SwiftModule", "--model.layers", 1, "--model.super_records", pair["records"], *fit_args]
    monitor = checkpoints(tmp_path / "c", monitor="validation/accuracy", mode="min")
    run_cli("fit", *args, "--trainer.callbacks", monitor)
    assert told("best-weights")
    swift = [tmp_path / "model" if a == str(pair["swift"]) else a for a in joint_args]
    assert main(["validate", *map(str, swift), "--model.output", str(tmp_path / "joint")]) == 0
    own, anew = (Manifest.read(tmp_path / name).thresholds for name in ("model", "joint"))
    for score in ("max_softmax", "router"):
        for name, entry in own[score].items():
            assert float(entry["threshold"]) == pytest.approx(float(anew[score][name]["threshold"]), abs=1e-5)


@pytest.mark.parametrize("kind", ["none", "gone", "early"])
def test_the_last_weights_with_a_reason(fit_args, tmp_path, monkeypatch, kind):
    from elang.models import export

    monitor = {"monitor": "validation/accuracy", "mode": "min"}
    callbacks = checkpoints(tmp_path / "c", **monitor, save_top_k=0 if kind == "none" else 1)
    if kind == "early":
        stop = {"class_path": "EarlyStopping", "init_args": {**monitor, "patience": 5, "strict": True}}
        callbacks = json.dumps([stop])
    if kind == "gone":
        monkeypatch.setattr(export.torch, "load", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("no file")))
    run_cli("fit", *fit_args, "--trainer.callbacks", callbacks)
    words = {"none": "save_top_k 1", "gone": "cannot be read", "early": "EarlyStopping saw a better"}
    said = told("last-weights")
    assert words[kind] in said
    assert "validation/accuracy" in said
    assert "step 44" in said


def test_a_better_earlier_epoch_is_told_and_its_option_keeps_it(fit_args, tmp_path):
    """The validation file's labels are the wrong way round, so the better it learns the worse it gets."""
    data = str(write_data(tmp_path / "dev.csv", 61, 2, noise=0.95))
    args = [data if fit_args[i - 1] == "--data.validation" else a for i, a in enumerate(fit_args)]
    cli = run_cli("fit", *args)
    said, last = told("better-epoch"), weights(tmp_path / "model")
    assert "epoch 1 was better than epoch 4, whose weights these are: accuracy 0." in said
    assert "(--trainer.max_epochs 1), or with a lower --model.lr, say 0.0017 (it was 0.005);" in said
    assert f"and {float(cli.trainer.callback_metrics['validation/loss']):.4f}, a difference" in said
    too_little = told("learned-too-little")
    assert "always answering '" in too_little
    assert "Its loss there rose after epoch 1. Train for fewer epochs (--trainer.max_epochs 1)" in too_little
    # The advice on texts that are known by heart is the same.
    assert "'validation', so the model has learned its training texts by heart" in (
        by_heart := told("learned-by-heart")
    )
    assert "Its loss there rose after epoch 1. Train for fewer epochs (--trainer.max_epochs 1)" in by_heart
    forget_notices()
    option = said.partition("keep the best epoch's weights: ")[2].split()
    run_cli("fit", *args, *option, "--trainer.callbacks.dirpath", tmp_path / "best")
    assert "epoch 1 (step 11), the best by validation/accuracy" in told("best-weights")
    assert not told("better-epoch")
    assert not same(weights(tmp_path / "model"), last)


def test_when_an_earlier_epoch_is_better():
    def course(*values, n=900):
        found = Course("accuracy")
        for epoch, (quality, loss) in enumerate(values, 1):
            found.evaluations.append(Evaluation(10 * epoch, epoch, loss, 0.03, quality, n, too_little="is bad: "))
        return found

    class Run:
        optimizers = (SimpleNamespace(defaults={"lr": 1e-4}),)
        fit_loop = SimpleNamespace(epoch_progress=SimpleNamespace(total=SimpleNamespace(ready=2)))

    def notes(*values, step=99, chosen=False, n=900):
        forget_notices()
        course(*values, n=n).note(Run(), step, chosen=chosen)
        return told("better-epoch"), told("learned-too-little")

    better, little = notes((0.6978, 0.6433), (0.6611, 0.7399), (0.6667, 0.8129), (0.6522, 0.7864))
    assert "epoch 1 was better than epoch 4" in better
    assert "accuracy 0.6978 and loss 0.6433, not 0.6522 and 0.7864" in better
    assert better.endswith(
        "ModelCheckpoint --trainer.callbacks.monitor validation/accuracy --trainer.callbacks.mode max"
    )
    assert little.startswith("On 'validation' the model is bad: Its loss there rose after epoch 1. Train for fewer")
    # By the loss, where the metric is no worse.
    assert notes((0.7, 0.5), (0.7, 0.6))[0].endswith("--trainer.callbacks.monitor validation/loss")
    # A metric that still rises, what may be chance, few examples, weights that a metric chose, and one epoch.
    assert not notes((0.7644, 0.4774), (0.7778, 0.55))[0]
    assert not notes((0.71, 0.5), (0.7, 0.52))[0]
    assert not notes((0.75, 0.5), (0.7, 0.52), n=60)[0]
    assert not notes((0.75, 0.5), (0.7, 0.52), chosen=True)[0]
    assert not notes((0.75, 0.5))[0]
    # Of the epochs up to the exported weights.
    assert not notes((0.7, 0.5), (0.75, 0.4), (0.6, 0.6), step=20)[0]
    longer = (
        "Train longer, say twice as long (--trainer.max_epochs 4), or raise --model.lr, say to 0.0002 (it was 0.0001)"
    )
    assert longer in notes((0.6, 0.6), (0.7, 0.5))[1]


def locked(path):
    """What another run that writes a path has."""
    name = path.with_name(f".{path.name}.lock")
    name.parent.mkdir(parents=True, exist_ok=True)
    file = name.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def test_two_runs_do_not_write_one_output(fit_args, pair, joint_args, data_args, tmp_path, fails, monkeypatch):
    score = ["score", "--model.model", pair["super"], *data_args, *QUIET]
    plan = tmp_path / "plan.yaml"
    plan.write_text("swift_model: a\nsuper_model: b\njoint: {}\n")
    models = ["--swift_model", pair["swift"], "--super_model", pair["super"]]
    crossfit = ["crossfit", *fit_args[:2], *fit_args[4:], "--output"]
    for name, command in (
        ("model", ["fit", *fit_args]),
        ("joint", ["validate", *joint_args, "--model.output", tmp_path / "joint"]),
        ("r.parquet", [*score, "--model.output", tmp_path / "r.parquet"]),
        ("p.jsonl", ["predict", *models, "--input", plan, "--output", tmp_path / "p.jsonl"]),
        ("folds", [*crossfit, tmp_path / "folds.parquet"]),
        ("suite", ["suite", "glue/rte", "--config", plan, "--output", tmp_path / "suite"]),
    ):
        with locked(tmp_path / name), monkeypatch.context() as before:
            # No data are read and no model is loaded before.
            before.setattr("lightning.pytorch.cli.LightningCLI.instantiate_classes", None)
            before.setattr("elang.inference.predictor.JointPredictor.__init__", None)
            fails(command, "Another run is writing", tmp_path / name)
        assert not (tmp_path / name).exists()


def test_the_lock_of_a_dead_process_is_gone(tmp_path):
    path = tmp_path / "out"
    code = (
        "import sys, time; from elang.locks import lock_output; lock_output(sys.argv[1]); print('has it', flush=True)"
    )
    command = [sys.executable, "-c", f"{code}; time.sleep(60)", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "has it\n"
        with pytest.raises(InputError, match="Another run"):
            locks.lock_output(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with locks.output_lock(path):
        # A process may lock its own output again.
        locks.lock_output(path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="without locks"):
        locks.lock_output(tmp_path / "out")


@pytest.mark.parametrize("every", [1, 50])
def test_metrics_csv_is_named_where_it_is(fit_args, tmp_path, caplog, every):
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "logs")}}
    args = [*fit_args, "--trainer.logger", json.dumps(logger), "--trainer.max_steps", 1]
    run_cli("fit", *args, "--trainer.log_every_n_steps", every)
    there = [*tmp_path.rglob("metrics.csv")]
    assert len(there) == (every == 1)
    assert ("metrics.csv in" in caplog.text) == bool(there)
    assert all(str(path.parent) in caplog.text for path in there)


def test_training_and_evaluation_of_a_part_are_told_of(fit_args, joint_args, pair, tmp_path):
    import pyarrow.parquet as pq

    few = ["--trainer.limit_val_batches", 2]
    run_cli("fit", *fit_args, "--trainer.max_steps", 3, *few)
    assert "3 of the 11 batches" in told("part-trained")
    assert told("not-evaluated")
    run_cli("fit", *fit_args, "--trainer.max_epochs", 1, *few)
    assert "16 of 61 examples of 'validation'" in told("part-evaluated")
    assert not told("part-trained")
    assert not told("not-evaluated")
    for none in ("max_epochs", "limit_train_batches"):
        run_cli("fit", *fit_args, f"--trainer.{none}", 0)
        assert told("untrained")
        kinds = [one["kind"] for one in json.loads((tmp_path / "model" / "made.json").read_text())["notices"]]
        assert "untrained" in kinds
    assert main(["validate", *joint_args, *map(str, few), "--model.output", str(tmp_path / "joint")]) == 0
    assert "16 of 61 examples of 'validation'" in (tmp_path / "joint" / "made.json").read_text()
    assert "only 16 of 61" in json.loads((tmp_path / "joint" / "summary.json").read_text())["cautions"][0]
    score = ["score", "--model.model", pair["super"], *joint_args[4:], "--model.output", tmp_path / "r.parquet", *few]
    assert main([*map(str, score)]) == 0
    about = json.loads(pq.read_schema(tmp_path / "r.parquet").metadata[b"elang"])["made"]
    assert [one["kind"] for one in about["notices"]] == ["part-evaluated"]
    assert {"command", "seed", "versions"} <= about.keys()


@pytest.mark.parametrize("verb", ["validate", "test", "score"])
def test_an_evaluation_of_nothing_is_refused(pair, joint_args, data_args, files, verb, fails):
    name = f"--trainer.limit_{'test' if verb == 'test' else 'val'}_batches"
    models = joint_args if verb == "validate" else ["--model.model", pair["super"], *data_args, *QUIET]
    kind = ["--model", "FinetuneModule", "--data.test", files[1]] if verb == "test" else []
    fails([verb, *kind, *models, name, 0], name)


def parsed(*args, verb="fit", part="data"):
    given = ["--model.model", "m", "--data.train", "t.csv", *map(str, args)]
    return run(verb, given[2:] if "--model.swift_model" in args else given, parse_only=True)[part]["init_args"]


NAMES = ["no", "yes", "on", "off", "y", "n", "null", "~", "true", "1", "1.0", "1e3"]
NAMES += ["2024-01-01", "0x1F", "1_000", "12:30"]


def test_lists_of_names_are_as_they_were_written(tmp_path):
    """On the command line and in files, in one line and in several, in lists of every option."""
    listed = f"[{', '.join(NAMES)}]"
    lines = "".join(f"\n      - {name}" for name in NAMES)
    for number, text in enumerate((listed, lines)):
        file = tmp_path / f"{number}.yaml"
        file.write_text(f"data:\n  init_args:\n    label_names: {text}\n    answers: {text}\n    text: [no, on]\n")
        found = parsed("--config", file)
        assert found["label_names"] == found["answers"] == NAMES
        assert found["text"] == ["no", "on"]
    found = parsed("--data.label_names", listed, "--data.answers", listed, "--data.text", "[null, 1]")
    assert found["label_names"] == found["answers"] == NAMES
    assert found["text"] == ["null", "1"]
    part = tmp_path / "data.yaml"
    part.write_text(f"class_path: TextClassificationData\ninit_args:\n  train: t.csv\n  label_names: {listed}\n")
    found = run("fit", ["--model.model", "m", "--data", str(part)], parse_only=True)["data"]["init_args"]
    assert found["label_names"] == NAMES


@pytest.mark.parametrize("name", [*NAMES, "is it: good", "- a", "[CLS] a", "# 1", "*a", "&b"])
def test_a_name_is_as_it_was_written(name, tmp_path):
    found = parsed("--data.label", name, "--data.text", name)
    assert (found["label"], found["text"]) == (name, name)
    if name in NAMES:
        (tmp_path / "c.yaml").write_text(f"data:\n  init_args:\n    label: {name}\n")
        assert parsed("--config", tmp_path / "c.yaml")["label"] == ("null" if name == "~" else name)


def test_numbers_and_truth_values_are_still_read(tmp_path):
    text = "seed_everything: 7\ntrainer: {max_epochs: 5, logger: False, limit_val_batches: 0.5, devices: 1}\n"
    (tmp_path / "c.yaml").write_text(f"{text}model:\n  init_args: {{lr: 5e-5, compile: yes, layers: null}}\n")
    config = run("fit", ["--model.model", "m", "--data.train", "t", "--config", str(tmp_path / "c.yaml")], True)
    trainer, model = config["trainer"], config["model"]["init_args"]
    assert [config["seed_everything"], trainer["max_epochs"], trainer["limit_val_batches"]] == [7, 5, 0.5]
    assert trainer["logger"] is False
    assert (model["lr"], model["compile"], model["layers"]) == (5e-5, True, None)


def test_a_null_where_a_number_is_needed(fails):
    fails(["fit", "--model.model", "m", "--data.train", "t", "--data.batch_size", "null"], "--data.batch_size", "32")


def test_a_suite_keeps_names_as_they_were_written(tmp_path, capsys):
    """A suite's file is written into one file for each step."""
    import yaml

    (tmp_path / "t.csv").write_text("text,label\n" + "a,no\nb,yes\n" * 9)
    data = f"{{train: {tmp_path}/t.csv, validation: {tmp_path}/t.csv, label_names: [no, yes, 1_0, 2024-01-01]}}"
    plan = (
        f"swift_model: o/a@1\nsuper_model: o/b@1\nswift: {{}}\njoint: {{}}\ntasks:\n  own:\n    all: {{data: {data}}}\n"
    )
    (tmp_path / "plan.yaml").write_text(plan)
    command = ["suite", "own", "--config", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "out")]
    assert main([*command, "--dry_run", "true"]) == 0
    step = yaml.safe_load((tmp_path / "out" / "own" / "joint.yaml").read_text())
    assert step["data"]["init_args"]["label_names"] == ["no", "yes", "1_0", "2024-01-01"]


def test_a_class_starts_from_its_own_defaults(tmp_path, capsys):
    joint = ["--model.swift_model", "a", "--model.super_model", "b"]
    assert parsed(*joint, verb="validate", part="model")["output"] == "joint"
    for kind in ("FinetuneModule", "SwiftModule"):
        assert parsed("--model", kind, "--model.model", "m", *[], verb="score", part="model")["output"] is None
    (tmp_path / "c.yaml").write_text("model: {class_path: FinetuneModule, init_args: {model: m}}\n")
    given = ["--config", str(tmp_path / "c.yaml"), "--data.train", "t"]
    assert run("validate", given, parse_only=True)["model"]["init_args"]["output"] is None
    found = parsed("--data", "Seq2SeqData")
    assert (found["routing_fraction"], found["max_length"]) == (0.05, 128)
    assert parsed("--data.max_length", 99, "--data", "Seq2SeqData")["max_length"] == 99
    with pytest.raises(SystemExit):
        main(["fit", "--data", "Seq2SeqData", "--print_config"])
    assert "routing_fraction: 0.05" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model", "SwiftModule", "--model.distill_weight", 2, "--model", "FinetuneModule"], ["distill_weight"]),
        (["--data.label", "x", "--data", "Seq2SeqData"], ["'label': 'x'", "TextClassificationData", "Seq2SeqData"]),
    ],
)
def test_options_of_another_class_are_refused(args, words, fails):
    fails(["fit", "--model.model", "m", "--data.batch_size", 3, *args], *words)


def test_one_model_is_evaluated_beside_an_earlier_evaluation(pair, data_args, tmp_path, monkeypatch):
    (tmp_path / "joint").mkdir()
    (tmp_path / "joint" / "curve.csv").write_text("")
    monkeypatch.chdir(tmp_path)
    args = ["validate", "--model", "FinetuneModule", "--model.model", str(pair["super"]), *data_args, *QUIET]
    assert main(args) == 0
    assert [path.name for path in tmp_path.rglob("*")] == ["joint", "curve.csv"]


def test_notes_keep_their_form_beside_lightning(pair, data_args, tmp_path):
    """Lightning puts a format of its own in place of Python's as it is imported."""
    args = ["validate", "--model", "FinetuneModule", "--model.model", pair["super"], *data_args, *QUIET]
    done = subprocess.run(
        [sys.executable, "-m", "elang", *map(str, args), "--data.max_length", "6"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    # One line for all splits.
    cut = r"^elang: note: Inputs longer than 6 tokens were cut: \d+ of 61 inputs of 'validation', \d+ of 66 inputs of "
    assert re.search(cut, done.stderr, re.MULTILINE), done.stderr
    assert done.stderr.count("longer than") == 1
    assert "call.py" not in done.stderr


def test_a_finished_model_is_not_replaced_in_silence(pair, base_model, data_args, files, tmp_path):
    shutil.copytree(pair["super"], tmp_path / "model")
    args = ["fit", "--model.model", base_model, "--model.output", tmp_path / "model", "--trainer.max_steps", 1]
    assert main([*map(str, args), *data_args, *FAST, "--trainer.default_root_dir", str(tmp_path)]) == 0
    assert [one for one in notices() if one["kind"] == "replaced-model" and str(tmp_path / "model") in one["text"]]


def test_scoring_tells_of_texts_that_were_trained_on(pair, data_args, files, tmp_path):
    args = ["score", "--model.model", str(pair["super"]), "--model.output", str(tmp_path / "x.parquet"), *data_args]
    args[args.index("--data.validation") + 1] = str(files[0])
    assert main([*args, *QUIET]) == 0
    assert "overlap" in [one["kind"] for one in notices()]


def test_a_swift_that_is_too_large_is_told_before_anything_long(pair, base_model, data_args, tmp_path, monkeypatch):
    """By the folder of the Super that the records name, in `fit` and in `validate`; its files' headers are enough."""
    records = str(tmp_path / "small.parquet")
    assert main(["score", "--model.model", str(pair["swift"]), *data_args, *QUIET, "--model.output", records]) == 0

    def stop(*args, **options):
        raise InputError("the data are encoded")

    monkeypatch.setattr("elang.data.module.encode_split", stop)
    swift = ["--model.model", str(base_model), "--model.super_records", records, "--model.output", str(tmp_path / "x")]
    joint = ["--model.swift_model", str(pair["super"]), "--model.super_model", records]
    for command in (["fit", "--model", "SwiftModule", *swift, *FAST], ["validate", *joint, *QUIET]):
        forget_notices()
        assert main([*command, *data_args]) == 2
        (said,) = [one["text"] for one in notices() if one["kind"] == "swapped-models"]
        assert re.search(r"Swift '.*' has [\d,]+ weights and the Super '.*swift' only [\d,]+", said)
    known = sum(weight.numel() for weight in load_file(pair["super"] / "model.safetensors").values())
    assert num_weights(pair["super"]) == known


def test_a_pair_the_other_way_round(pair, data_args, tmp_path):
    forget_notices()
    JointPredictor(str(pair["super"]), str(pair["swift"]), "0.0")
    (said,) = [one["text"] for one in notices() if one["kind"] == "swapped-models"]
    assert re.search(r"Swift '.*super' has [\d,]+ weights and the Super '.*swift' only [\d,]+", said)
    args = [
        "--model.swift_model",
        pair["super"],
        "--model.super_model",
        pair["swift"],
        "--model.output",
        tmp_path / "j",
    ]
    forget_notices()
    assert main(["validate", *map(str, args), *data_args, *QUIET]) == 0
    assert said in [one["text"] for one in notices() if one["kind"] == "swapped-models"]
    cautions = json.loads((tmp_path / "j" / "summary.json").read_text())["cautions"]
    assert [one for one in cautions if "so no threshold saves anything" in one]
