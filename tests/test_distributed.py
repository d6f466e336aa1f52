"""Real gloo processes: the same records and metrics as one process, and training in step."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
from safetensors.torch import load_file

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def elang(*args, processes):
    """Run a verb in its own processes; anything but success fails the test."""
    spread = ["--trainer.strategy", "ddp", "--trainer.devices", str(processes)] if processes > 1 else []
    command = [sys.executable, "-m", "elang", *map(str, args), *spread]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    if processes > 1:
        assert f"MEMBER: {processes}/{processes}" in done.stderr, done.stderr


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("batch_size", [8, 64])
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
    args += ["--model.margin_weight", "0.1"]
    elang("fit", *args, "--model.output", swift, *data_args, *quiet, "--trainer.max_epochs", "1", processes=2)
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
