"""What a run shows: other libraries' noise is left out, and long steps tell how far they are."""

import logging
import subprocess
import sys

import pytest

from elang.terminal import _NOISE, quiet_libraries

SAID = [
    ("torchao", "Failed to load /x/torchao/_C_mxfp8.so: Could not load this library", False),
    ("torch.utils._pytree", "<enum 'K'> is an Enum subclass and is now natively supported by torch.compile", False),
    ("lightning.fabric.utilities.rank_zero", "Seed set to 0", False),
    ("lightning.pytorch.utilities.rank_zero", "GPU available: True (cuda), used: True", False),
    ("lightning.pytorch.utilities.rank_zero", "TPU available: False, using: 0 TPU cores", False),
    ("lightning.pytorch.utilities.rank_zero", "💡 Tip: For seamless cloud logging", False),
    ("lightning.pytorch.utilities.rank_zero", "`Trainer.fit` stopped: `max_epochs=3` reached.", False),
    ("lightning.pytorch.utilities.rank_zero", "`Trainer.fit` stopped: `max_time` reached.", True),
    ("lightning.pytorch.utilities.rank_zero", "the model is in super", True),
    ("lightning.pytorch.accelerators.cuda", "LOCAL_RANK: 0 - CUDA_VISIBLE_DEVICES: [0]", False),
    ("torch.utils._pytree", "another warning", True),
]


@pytest.mark.parametrize("verbose", ["", "1"])
def test_noise_of_libraries_is_left_out(verbose, monkeypatch):
    monkeypatch.setenv("ELANG_VERBOSE", verbose)
    loggers = [logging.getLogger(name) for name in _NOISE]
    before = [list(logger.filters) for logger in loggers]
    for logger in loggers:
        logger.filters = []
    try:
        quiet_libraries()
        for name, text, kept in SAID:
            record = logging.LogRecord(name, logging.WARNING, "", 0, "%s", (text,), None)
            assert bool(logging.getLogger(name).filter(record)) == (kept or bool(verbose)), text
    finally:
        for logger, filters in zip(loggers, before, strict=True):
            logger.filters = filters


def test_a_run_leaves_out_the_noise_of_libraries(base_model, data_args, tmp_path):
    """Also what they say as they are imported, so in a process of its own."""
    args = ["fit", "--model.model", str(base_model), "--model.output", str(tmp_path / "model"), *data_args]
    args += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "elang", *args], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    for noise in ("Failed to load", "Enum", "Seed set", "PU available", "Tip:", "Writing model shards", "many workers"):
        assert noise not in done.stdout + done.stderr
    assert "examples: " in done.stderr
