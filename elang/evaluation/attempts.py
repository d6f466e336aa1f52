"""How often a promise was tried on a slice: the ledger, and the level that is left."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elang.errors import InputError
from elang.evaluation.slices import one_slice, sketch
from elang.files import written_aside
from elang.json_files import read_object
from elang.notices import notice

LEDGER = "slices.json"
_FORMAT = 1


def next_level(attempts: int, before: float, error: float) -> float:
    """The level of one more attempt on a slice.

    The first has all of ``error``; a further one what the earlier ones left of it, at least a half of it after one, a
    quarter after two, and so on. Whatever comes of them, and whenever one stops, all hold with a probability of 1 less
    the sum of their levels, which is the confidence that is stated.

    Args:
        attempts: How many were made before.
        before: The sum of their levels.
        error: How often the promise may be broken.

    >>> next_level(0, 0.0, 0.05), next_level(1, 0.05, 0.05), next_level(1, 0.01, 0.05)
    (0.05, 0.025, 0.04)
    """
    return max(error - before, error * 0.5**attempts)


def attempt(
    path: Path, about: dict[str, Any], asked: dict[str, Any], error: float, check: Callable[[float, int], None]
) -> tuple[float, int, float]:
    """Write an attempt to certify something on a slice into the ledger, before its outcome is known.

    What was asked before on the same slice is the same attempt. Slices that overlap are one.

    Args:
        path: The ledger.
        about: The slice, from :func:`slice_of`.
        asked: What is to be promised, of what, as plain values.
        error: How often the promise may be broken.
        check: Is given the level of the attempt and its number; raises where that level can certify nothing, whatever
            the answers are: no attempt was made then.

    Returns:
        The level of this attempt's tests, the number of attempts on the slice so far, and the sum of their levels.

    Raises:
        InputError: If the ledger cannot be read or written, or no confidence is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent):
            known = _read(path)
            own = [one for one in known if one_slice(one, about)]
            again = [one for one in own if one["asked"] == asked and one["slice_sha256"] == about["slice_sha256"]]
            before = sum(float(one["level"]) for one in own)
            level = float(again[0]["level"]) if again else next_level(len(own), before, error)
            total = before + (0.0 if again else level)
            if total >= 1:
                raise InputError(
                    f"No confidence is left on this slice: {len(own)} attempts were made on it ('{path}'). Use a "
                    "--split or data that nothing was chosen on, or a higher --confidence from the first attempt on."
                )
            check(level, len(own) + (not again))
            if not again:
                kept = {"format": _FORMAT, "attempts": [*known, about | {"asked": asked, "level": level}]}
                with written_aside(path) as aside:
                    aside.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
            return level, len(own) + (not again), total
    except OSError as error_:
        raise InputError(
            f"The ledger of attempts '{path}' cannot be written ({error_}). Name another file with --ledger."
        ) from error_


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time change a file in a folder, whose own lock leaves no file behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            notice(
                "no-lock",
                f"'{folder}' is on a file system without locks ({error.strerror}), so what another run writes there at "
                "the same time may be lost.",
            )
        yield
    finally:
        os.close(handle)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        found = read_object(path)
        if found["format"] != _FORMAT:
            raise ValueError(f"it is of the format {found['format']!r}, and this version knows {_FORMAT}")
        attempts: list[dict[str, Any]] = found["attempts"]
        for one in attempts:
            sketch(one)
            if not (0 < float(one["level"]) < 1 and one["slice_sha256"] and one["asked"]):
                raise ValueError("an attempt has no level")
        return attempts
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The ledger of attempts '{path}' is damaged ({error}). Restore it from a copy: without it, how often a "
            "slice was used is not known. --ledger names another file."
        ) from error
