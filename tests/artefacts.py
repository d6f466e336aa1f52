"""Makes what `test_compatibility.py` reads: python tests/artefacts.py FORMAT, once for each format of the files.

What is there already stays as the version that wrote it left it.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from conftest import QUIET, write_data, write_model

from elang.cli.verbs import main

FOLDER = Path(__file__).parent / "artefacts"
DATA = ["--data.train", "train.csv", "--data.validation", "dev.csv", "--data.routing_fraction", "0.25"]
DATA += ["--data.batch_size", "16", *QUIET]
CHECKPOINT = '[{"class_path": "ModelCheckpoint", "init_args": {"dirpath": ".", "filename": "swift"}}]'


def made() -> None:
    """A pair with records, an evaluation, a certificate and a checkpoint, all tiny, in the current folder."""
    for name, rows, seed in (("train.csv", 240, 1), ("dev.csv", 61, 2)):
        write_data(Path(name), rows, seed)
    write_model(Path("base"))
    fit = ["fit", "--model.model", "base", "--model.output", "super", *DATA, "--model.lr", "5e-3"]
    swift = ["fit", "--model", "SwiftModule", "--model.model", "base", "--model.output", "swift", *DATA]
    swift += ["--model.super_records", "super.parquet", "--model.score", "max_softmax", "--model.lr", "5e-3"]
    swift += ["--model.layers", "1"]
    joint = ["validate", "--model.swift_model", "swift", "--model.super_model", "super.parquet"]
    for command in (
        [*fit, "--trainer.max_epochs", "3", "--trainer.enable_checkpointing", "false"],
        ["score", "--model.model", "super", "--model.output", "super.parquet", *DATA],
        [*swift, "--trainer.max_epochs", "2", "--trainer.callbacks", CHECKPOINT],
        [*joint, "--model.output", "joint", *DATA],
        ["calibrate", "joint", "--max_regret", "0.4", "--confidence", "0.5"],
    ):
        if main(command):
            raise SystemExit(f"failed: {command}")
    shutil.rmtree("super")
    Path("joint/curve.png").unlink()


if __name__ == "__main__":
    target = FOLDER / f"format-{sys.argv[1]}"
    if target.exists():
        raise SystemExit(f"'{target}' stays as it is")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        made()
        shutil.copytree(folder, target)
