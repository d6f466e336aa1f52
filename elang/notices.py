"""What a result rests on beside its inputs: whatever was dropped, cut, guessed or made up, each in one line.

A notice is said once on standard error and kept, so that ``made.json`` of what the run writes can tell of it later.
docs/reliability.md lists every kind.
"""

import json
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

from elang._version import __version__
from elang.errors import printable


def versions() -> dict[str, str]:
    """Of the libraries that make a result."""
    import torch
    import transformers

    return {"elang": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


class Notice(UserWarning):
    """A line of a run about what its answer rests on; a warning, so that Python's filters apply to it."""


_notices: dict[tuple[str, str], None] = {}


def notice(kind: str, text: str, stacklevel: int = 2) -> None:
    """Tell what an answer rests on: on standard error, and in ``made.json``. Only the first process does.

    Args:
        kind: Which of the lines of docs/reliability.md it is, in words joined by hyphens.
        text: One sentence or two, with the numbers and what can be done about it.
        stacklevel: As of :func:`warnings.warn`.
    """
    if _rank():
        return
    text = " ".join(printable(text).split())
    _notices[kind, text] = None
    warnings.warn(text, Notice, stacklevel=stacklevel + 1)


def notices() -> list[dict[str, str]]:
    """All notices since the process, or the command line's verb, began: ``kind`` and ``text`` of each."""
    return [{"kind": kind, "text": text} for kind, text in _notices]


def forget_notices() -> None:
    """Begin anew, as each verb of the command line does."""
    _notices.clear()


def made() -> dict[str, Any]:
    """How something was made: ``command``, ``seed``, ``versions`` and ``notices``, as plain values."""
    return {
        "command": shlex.join(sys.argv),
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "versions": versions(),
        "notices": notices(),
    }


def write_made(folder: Path) -> None:
    """Write ``made.json`` into a folder."""
    from elang.files import written_aside

    with written_aside(folder / "made.json") as aside:
        aside.write_text(json.dumps(made(), indent=2) + "\n", "utf-8")


def _rank() -> int:
    """The number of this process among those of one run."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(torch.distributed.get_rank())
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or 0)
