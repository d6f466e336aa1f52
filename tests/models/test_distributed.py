"""Real gloo processes: the same records and metrics as one process, and training in step."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pandas as pd
import pytest
from conftest import QUIET
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from safetensors.torch import load_file
from torch import distributed

from elang.models.resuming import stop_together

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def elang(*args, processes, forked=None):
    """Run a verb in its own processes; anything but success fails the test."""
    spread = ["--trainer.strategy", "ddp", "--trainer.devices", str(processes)] if processes > 1 else []
    command = [sys.executable, "-m", "elang", *map(str, args), *spread]
    done = subprocess.run(command, forked=forked, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    if processes > 1:
        assert f"MEMBER: {processes}/{processes}" in done.stderr, done.stderr


@pytest.mark.parametrize(("processes", "batch_size"), [(2, 8), (3, 64)])
def test_validate_is_the_same_on_any_number_of_processes(joint_args, tmp_path, processes, batch_size):
    """61 examples; in batches of 64 there is one batch, so every other process has none."""
    args = ["validate", *joint_args, "--data.eval_batch_size", batch_size]
    for n in (1, processes):
        elang(*args, "--model.output", tmp_path / str(n), processes=n)
    a, b = (tmp_path / str(n) for n in (1, processes))
    pd.testing.assert_frame_equal(*(pd.read_parquet(f / "records.parquet") for f in (a, b)), check_exact=True)
    assert len(pd.read_parquet(b / "records.parquet").query("split == 'validation'")) == 61
    assert (a / "curve.csv").read_text() == (b / "curve.csv").read_text()
    assert json.loads((a / "summary.json").read_text()) == json.loads((b / "summary.json").read_text())
    assert (a / "elang.json").read_text() == (b / "elang.json").read_text()


def test_fit_and_score_on_two_processes(base_model, pair, data_args, tmp_path):
    """Plain DDP, without a search for unused parameters, trains the Swift with all its terms."""
    quiet = [
        "--trainer.accelerator",
        "cpu",
        "--trainer.logger",
        "false",
        "--trainer.enable_progress_bar",
        "false",
        "--trainer.enable_checkpointing",
        "false",
    ]
    swift = tmp_path / "swift"
    args = ["--model", "SwiftModule", "--model.model", base_model, "--model.super_records", pair["records"]]
    args += ["--model.margin_weight", "0.1", "--model.output", swift, "--trainer.max_epochs", "1"]
    # Processes that Lightning starts as it does for a user.
    elang("fit", *args, *data_args, *quiet, processes=2, forked=False)
    assert load_file(swift / "router.safetensors")
    thresholds = json.loads((swift / "elang.json").read_text())["thresholds"]["free_energy"]
    assert thresholds["parity"]["num_examples"] > 30
    for n in (1, 2):
        elang(
            "score",
            "--model.model",
            swift,
            "--model.output",
            tmp_path / f"{n}.parquet",
            *data_args,
            *quiet,
            processes=n,
        )
    a, b = (pd.read_parquet(tmp_path / f"{n}.parquet") for n in (1, 2))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert len(a) == 240 + 61


def test_all_processes_stop_at_the_same_batch(monkeypatch):
    """What comes to any of them is heard a batch later, without waiting for it, where Lightning's loop asks."""
    said = iter([0.0, 0.0, 1.0])
    monkeypatch.setattr(distributed, "all_reduce", lambda told, how: told.fill_(next(said)))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    loop = trainer.fit_loop.epoch_loop
    theirs = loop._broadcast_sigterm_tensor
    stop_together(trainer)
    assert loop._broadcast_sigterm_tensor == theirs, "one process has none to hear from"
    monkeypatch.setattr(Trainer, "world_size", 2)
    stop_together(trainer)
    for _ in range(3):
        loop._broadcast_sigterm_tensor()
    with pytest.raises(SIGTERMException):
        loop._broadcast_sigterm_tensor()


def test_a_process_tells_of_its_signal_and_does_not_leave_alone(monkeypatch):
    told = []
    monkeypatch.setattr(distributed, "all_reduce", lambda said, how: told.append((float(said), how)))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    monkeypatch.setattr(Trainer, "world_size", 2)
    stop_together(trainer)
    trainer.training = True
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    trainer._signal_connector._sigterm_notifier_fn(signal.SIGTERM, None)
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    assert told == [(0.0, distributed.ReduceOp.MAX), (1.0, distributed.ReduceOp.MAX)]
    assert not trainer.received_sigterm
    trainer.validating = True
    trainer._signal_connector._sigterm_notifier_fn(signal.SIGTERM, None)
    assert trainer.received_sigterm, "an evaluation is left at once"


def gone(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def run_with(hook, verb, args, folder):
    """A verb on two processes with a callback of ``DIES``: its code and what it said, once nothing goes on running."""
    (folder / "of_death.py").write_text(DIES)
    args += ["--trainer.callbacks", json.dumps([{"class_path": "of_death.Dies", "init_args": hook}])]
    args += ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
    environment = ENVIRONMENT | {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "elang", verb, *map(str, args)]
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen(command, stderr=said, stdout=said, env=environment, start_new_session=True)
        try:
            code = process.wait(timeout=120)
            start = time.monotonic()
            while not gone(process.pid) and time.monotonic() - start < 60:
                time.sleep(0.1)
            assert gone(process.pid), "a rank goes on alone"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        said.seek(0)
        text = said.read()
    assert "third batch" in text, text[-3000:]
    return code, text


@pytest.mark.parametrize("dead", ["first", "second"])
@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_others_end_when_a_rank_dies(verb, dead, base_model, joint_args, data_args, tmp_path):
    """With an error, in bounded time, and nothing goes on running."""
    args = {
        "fit": ["--model.model", base_model, "--model.output", tmp_path / "model", *data_args, *QUIET],
        "validate": [*joint_args, "--model.output", tmp_path / "joint"],
    }[verb]
    code, _ = run_with({"rank": ["first", "second"].index(dead)}, verb, args, tmp_path)
    assert code != 0
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "joint" / "summary.json").exists()


@pytest.mark.parametrize("who", ["first", "second", "all"])
def test_sigterm_stops_all_processes_together(who, base_model, data_args, tmp_path):
    """Whichever has got it; a scheduler stops all of them."""
    args = ["--model.model", base_model, "--model.output", tmp_path / "model", *data_args, *QUIET]
    args += ["--trainer.max_epochs", "1000"]
    code, text = run_with({"rank": int(who == "second"), "how": who}, "fit", args, tmp_path)
    assert code == 128 + signal.SIGTERM, text[-3000:]
    assert "elang: SIGTERM stopped `elang fit`" in text
    assert "Traceback" not in text
    assert not (tmp_path / "model").exists()


DIES = """
import os, signal, sys
from lightning.pytorch import Callback


class Dies(Callback):
    def __init__(self, rank: int, how: str = "dead") -> None:
        self.rank, self.how = rank, how

    def on_train_batch_start(self, trainer, module, batch, number):
        if number == 2 and trainer.global_rank == self.rank:
            print("third batch", file=sys.stderr, flush=True)
            if self.how == "all":
                os.killpg(0, signal.SIGTERM)
            else:
                os.kill(os.getpid(), signal.SIGKILL if self.how == "dead" else signal.SIGTERM)

    def on_validation_batch_start(self, trainer, module, batch, number, dataloader_idx=0):
        if trainer.state.fn == "validate":
            self.on_train_batch_start(trainer, module, batch, number)
"""
