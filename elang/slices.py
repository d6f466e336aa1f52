"""Which examples a promise was made on, and how often: independent units, slices that are known again, their ledger."""

import base64
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.errors import InputError
from elang.json_files import read_object
from elang.notices import notice
from elang.outputs import written_aside

LEDGER = "slices.json"
# Hashes that a slice is known again by, and the share of the smaller of two from which they count as one.
_SKETCH, _SAME = 256, 0.1
_FORMAT = 1
MOSTLY, SOME, FEW = 0.5, 0.1, 0.01
"""Shares of the evaluated examples: ``MOSTLY`` known from training are refused, ``SOME`` that a threshold was chosen on
are refused, and more than ``FEW`` are said."""


def mixed(key: Tensor) -> Tensor:
    """A second hash of keys, int64 ``(N,)``, from 0 to 2**53: slices are chosen by bits of the first one.

    >>> mixed(torch.tensor([1, 2])).tolist()
    [5103132997656651, 5324963733279466]
    """
    with np.errstate(over="ignore"):
        x = key.numpy().astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.int64))


def independent_rows(key: Tensor, row: Tensor, unit: Tensor | None = None) -> Tensor:
    """The rows that are drawn one by one: of equal texts one, which a hash of its row picks; of groups all.

    Picking one of a text's rows by chance leaves its mean regret as it is, and right and wrong answers exact.

    Args:
        key: Of the texts, int64 ``(N,)``.
        row: A number for each row, int64 ``(N,)``.
        unit: The groups, int64 ``(N,)``, where there are any.

    Returns:
        Ascending places, int64.

    >>> len(independent_rows(torch.tensor([7, 7, 8]), torch.arange(3)))
    2
    """
    if unit is not None or len(key.unique()) == len(key):
        return torch.arange(len(key))
    order = mixed(mixed(key) ^ row).argsort(stable=True)
    order = order[key[order].argsort(stable=True)]
    first = torch.ones(len(key), dtype=torch.bool)
    first[1:] = key[order][1:] != key[order][:-1]
    return order[first].sort().values


def slice_sha256(key: Tensor) -> str:
    """Hash of some examples by their keys, int64 ``(N,)``, in whatever order."""
    return hashlib.sha256(key.sort().values.numpy().astype("<i8").tobytes()).hexdigest()


def slice_of(key: Tensor) -> dict[str, Any]:
    """What identifies some examples: ``slice_sha256``, and ``slice_sketch``, the smallest hashes of their texts."""
    kept = mixed(key).unique()[:_SKETCH].numpy().astype("<i8")
    return {"slice_sha256": slice_sha256(key), "slice_sketch": base64.b64encode(kept.tobytes()).decode()}


def share_of_slice(key: Tensor, about: dict[str, Any]) -> float:
    """The share of examples that are of a slice, estimated from its sketch; 0 or 1 where only its hash is known.

    Args:
        key: Of the examples, int64 ``(N,)``.
        about: From :func:`slice_of`.

    >>> share_of_slice(torch.arange(8), slice_of(torch.arange(4)))
    0.5
    """
    if about.get("slice_sha256") == slice_sha256(key):
        return 1.0
    known, hashed = _sketch(about), mixed(key)
    if len(known) == _SKETCH:
        hashed = hashed[hashed <= known[-1]]
    return float(torch.isin(hashed, known).double().mean()) if len(hashed) and len(known) else 0.0


def _sketch(about: dict[str, Any]) -> Tensor:
    try:
        return torch.from_numpy(np.frombuffer(base64.b64decode(about.get("slice_sketch", "")), "<i8").astype(np.int64))
    except (ValueError, TypeError) as error:
        raise InputError(f"The 'slice_sketch' of a threshold is damaged ({error}). Calibrate it again.") from error


def one_slice(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two slices, from :func:`slice_of`, share a tenth or more of the smaller one's texts."""
    if first.get("slice_sha256") == second.get("slice_sha256"):
        return True
    sketches = _sketch(first), _sketch(second)
    # Of hashes up to here both sketches have all.
    limit = min((int(one[-1]) for one in sketches if len(one) == _SKETCH), default=1 << 53)
    a, b = (one[one <= limit] for one in sketches)
    return min(len(a), len(b)) > 0 and int(torch.isin(a, b).sum()) >= _SAME * min(len(a), len(b))


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
            _sketch(one)
            if not (0 < float(one["level"]) < 1 and one["slice_sha256"] and one["asked"]):
                raise ValueError("an attempt has no level")
        return attempts
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The ledger of attempts '{path}' is damaged ({error}). Restore it from a copy: without it, how often a "
            "slice was used is not known. --ledger names another file."
        ) from error
