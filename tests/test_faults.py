"""Disks that are full or refuse, and files that were damaged: one sentence, and nothing half-written."""

import json
import os
import subprocess
import sys
import warnings
from multiprocessing import resource_sharer

import pytest
import torch
from conftest import FAST, QUIET

from elang.errors import InputError, machine_error_behind
from elang.evaluation.pair import check_curves, pair_curves
from elang.evaluation.slices import check_apart
from elang.method.quality.registry import QUALITIES


def limited(args, folder, size):
    """Run a command that may write no file larger than ``size``, as on a full disk."""

    done = subprocess.run(
        [sys.executable, "-m", "elang", *map(str, args)],
        cwd=folder,
        file_size=size,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("elang: error: ")]
    assert done.returncode == 2, done.stderr[-3000:]
    assert len(errors) == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return errors[0]


def left_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_disk_that_is_full(base_model, data_args, joint_args, pair, files, tmp_path):
    """Of each verb that writes much; what it would have written is not there, not even a part."""
    fit = ["fit", "--model.model", base_model, "--model.output", tmp_path / "model", *data_args, *FAST]
    said = limited([*fit, "--trainer.max_steps", "1"], tmp_path, 20_000)
    assert "File too large" in said
    assert "another place" in said
    score = ["score", "--model.model", pair["super"], "--model.output", tmp_path / "r.parquet", *data_args, *QUIET]
    assert "File too large" in limited(score, tmp_path, 4_000)
    validate = ["validate", *joint_args, "--model.output", tmp_path / "joint"]
    assert "File too large" in limited(validate, tmp_path, 4_000)
    assert left_in(tmp_path) == []
    models = ["--swift_model", pair["swift"], "--super_model", pair["super"]]
    predict = ["predict", *models, "--input", files[0], "--text", "text", "--output", tmp_path / "out.jsonl"]
    assert "File too large" in limited(predict, tmp_path, 9_000)
    # Whole answers are kept, to be gone on with.
    assert "out.jsonl" not in left_in(tmp_path)
    lines = (tmp_path / ".out.jsonl.part").read_bytes().split(b"\n")
    assert all(json.loads(line)["answered_by"] for line in lines[:-1])


@pytest.mark.parametrize("verb", ["validate", "score", "predict", "report"])
def test_a_place_that_cannot_be_written(verb, pair, joint_args, data_args, files, tmp_path, fails):
    (tmp_path / "file").write_text("x")
    there = tmp_path / "file" / "within"
    models = ["--swift_model", pair["swift"], "--super_model", pair["super"]]
    args = {
        "validate": ["validate", *joint_args, "--model.output", there],
        "score": ["score", "--model.model", pair["super"], "--model.output", f"{there}.parquet", *data_args, *QUIET],
        "predict": ["predict", *models, "--input", files[0], "--text", "text", "--output", there],
        "report": ["report", tmp_path, "--output", f"{there}.html"],
    }
    fails(args[verb], "file", "not a folder" if verb == "report" else "file")


def test_a_flipped_bit_is_seen(pair, joint_args, data_args, tmp_path, fails):
    """In the Swift's weights, and in the Super's, though the files load."""
    import shutil

    for name in ("swift", "super"):
        copy = shutil.copytree(pair[name], tmp_path / name)
        weights = copy / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-5] ^= 1
        weights.write_bytes(content)
        args = [str(copy) if a == str(pair[name]) else a for a in joint_args]
        said = fails(["validate", *args, "--model.output", tmp_path / "joint"], str(copy), "damaged")
        assert "Make the model again" in said
        output = tmp_path / "r.parquet"
        fails(["score", "--model.model", copy, "--model.output", output, *data_args, *QUIET], "damaged")
        assert not output.exists()


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_a_worker_that_dies(verb, base_model, data_args, joint_args, tmp_path):
    """One sentence, in bounded time; nothing is written."""
    (tmp_path / "of_death.py").write_text(KILLS_A_WORKER)
    args = {
        "fit": ["--model.model", base_model, "--model.output", tmp_path / "m", *data_args, *FAST],
        "validate": [*joint_args, "--model.output", tmp_path / "m"],
    }[verb]
    hook = json.dumps([{"class_path": "of_death.Kills"}])
    more = ["--data.num_workers", "1", "--trainer.callbacks", hook]
    done = subprocess.run(
        [sys.executable, "-m", "elang", verb, *map(str, args), *more],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert "elang: error: A process that reads data has died" in done.stderr
    assert "--data.num_workers" in done.stderr
    assert not (tmp_path / "m" / "summary.json").exists()
    assert not (tmp_path / "m" / "elang.json").exists()


KILLS_A_WORKER = """
import multiprocessing, os, signal
from lightning.pytorch import Callback


class Kills(Callback):
    def on_train_batch_start(self, trainer, module, batch, number):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    def on_validation_batch_start(self, trainer, module, batch, number, dataloader_idx=0):
        self.on_train_batch_start(trainer, module, batch, number)
"""


def test_errors_of_a_disk_in_a_chain():
    error = RuntimeError("while saving")
    error.__cause__ = OSError(28, "No space left on device", "x.bin")
    assert "'x.bin'" in machine_error_behind(error)
    assert "No space left" in machine_error_behind(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert machine_error_behind(OSError(2, "No such file", "x")) is None
    assert machine_error_behind(ValueError("shape")) is None
    # A worker that lives says what went wrong.
    assert machine_error_behind(ValueError("Caught ValueError in DataLoader worker process 0.\nboom")) is None
    full = RuntimeError("Caught OSError in DataLoader worker process 0.\nNo space left on device")
    assert "No space left" in machine_error_behind(full)
    assert "num_workers" in machine_error_behind(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."))


def test_a_worker_that_dies_while_it_hands_a_tensor_over():
    """The loader raises what the connection says, where it has not yet seen the death."""
    kept = resource_sharer.DupFd(os.open(os.devnull, os.O_RDONLY))
    resource_sharer.stop(5)
    with pytest.raises((FileNotFoundError, ConnectionRefusedError)) as gone:
        kept.detach()
    assert "--data.num_workers" in machine_error_behind(gone.value)
    pinning = ConnectionResetError("Caught ConnectionResetError in pin memory thread.\n in resource_sharer.py, line 86")
    assert "--data.num_workers" in machine_error_behind(pinning)
    # As where a server has gone, or a file.
    for other in (ConnectionResetError(104, "reset by peer"), FileNotFoundError(2, "No such file", "x")):
        assert machine_error_behind(other) is None


# What must hold of every evaluation, checked while it runs.


def answers_of(count, first_key=0):
    """A pair's answers to some examples."""
    from elang.evaluation.pair import PairAnswers

    draw = torch.Generator().manual_seed(count)
    label, swift, super_ = (torch.randint(2, (count,), generator=draw) for _ in range(3))
    ids = torch.arange(count)
    scores = {"max_softmax": torch.rand(count, generator=draw)}
    costs = torch.full((count,), 1.0).double(), torch.full((count,), 4.0).double()
    return PairAnswers(ids, ids + first_key, label, swift, super_, scores, *costs, {})


@pytest.mark.parametrize(
    ("field", "place"), [("quality", 0), ("quality", 25), ("quality", -1), ("cost", 0), ("cost", -1)]
)
def test_a_curve_that_is_not_what_the_answers_say(field, place):
    quality, answers = QUALITIES["accuracy"](2), answers_of(50)
    curves = pair_curves(answers, quality)
    check_curves(answers, quality, curves)
    getattr(curves["max_softmax"], field)[place] += 1e-4
    with pytest.raises(RuntimeError, match="The curve of 'max_softmax' has a"):
        check_curves(answers, quality, curves)


def test_costs_that_are_not_known_are_no_fault():
    quality, answers = QUALITIES["accuracy"](2), answers_of(50)
    answers.super_flops = torch.full((50,), float("nan")).double()
    check_curves(answers, quality, pair_curves(answers, quality))


def test_thresholds_evaluated_on_what_they_were_chosen_on():
    evaluated, none = torch.arange(50), torch.arange(0)
    # A row less or more is the training file, too.
    for train in (torch.arange(10, 50), torch.arange(10, 49), torch.arange(10, 30), torch.arange(10, 90)):
        with pytest.raises(InputError, match=r"of the 50 evaluated examples are in the training file, 10 of them"):
            check_apart(evaluated, train, torch.arange(10))
    # The same texts, by chance, where the files are two.
    with pytest.warns(UserWarning, match="10 of the 50 evaluated examples are also"):
        check_apart(evaluated, torch.arange(40, 80), torch.arange(10))
    with pytest.warns(UserWarning, match="5 of the 50 evaluated examples are also"):
        check_apart(evaluated, none, torch.arange(45, 90))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_apart(evaluated, torch.arange(45, 90), torch.arange(100, 110))


def test_one_file_for_training_and_evaluation(pair, files, fails, tmp_path):
    models = ("--model.swift_model", pair["swift"], "--model.super_model", pair["super"])
    data = ("--data.train", files[0], "--data.validation", files[0])
    fails(
        ["validate", *models, *data, *QUIET, "--model.output", tmp_path], "are --data.train and --data.validation the"
    )
