"""Notices: one line each for whatever was dropped, cut, guessed or made up on the way to a result.

A notice goes to standard error, and to the ``made.json`` of the run's output. docs/reliability.md lists every kind.
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
from elang.terminal import process_rank


class Notice(UserWarning):
    """A warning about a run's result, so that Python's filters apply to it."""


_notices: dict[tuple[str, str], None] = {}


def notice(kind: str, text: str, stacklevel: int = 2, recorded: bool = True) -> None:
    """Report something that a result depends on, if this is the first process of a run.

    ``kind`` is one of docs/reliability.md; ``text`` is one or two sentences with the numbers and the remedy. One that
    is not ``recorded`` says nothing about the result, so it is only shown.
    """
    if process_rank():
        return
    text = " ".join(printable(text).split())
    if recorded:
        _notices[kind, text] = None
    warnings.warn(text, Notice, stacklevel=stacklevel + 1)


def notices() -> list[dict[str, str]]:
    """The ``kind`` and ``text`` of all notices since the process, or the command line's verb, began."""
    return [{"kind": kind, "text": text} for kind, text in _notices]


def forget_notices() -> None:
    """Forget all notices, as each verb of the command line does first."""
    _notices.clear()


def versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on."""
    import torch
    import transformers

    return {"elang": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def made() -> dict[str, Any]:
    """How a result was made, as plain values: ``command``, ``seed``, ``versions`` and ``notices``."""
    return {
        "command": shlex.join(sys.argv),
        "seed": os.environ.get("PL_GLOBAL_SEED"),
        "versions": versions(),
        "notices": notices(),
    }


def write_made(folder: Path) -> None:
    """Write ``made.json`` into a folder."""
    from elang.files import write_atomically

    with write_atomically(folder / "made.json") as aside:
        aside.write_text(json.dumps(made(), indent=2) + "\n", "utf-8")
