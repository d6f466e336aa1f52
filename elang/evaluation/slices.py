"""Which examples a promise was made on: independent units, and slices that are known again."""

import base64
import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.errors import InputError
from elang.method.certificate import mixed

# Hashes that a slice is known again by, and the share of the smaller of two from which they count as one.
_SKETCH, _SAME = 256, 0.1
MOSTLY, SOME, FEW = 0.5, 0.1, 0.01
"""Shares of the evaluated examples: ``MOSTLY`` known from training are refused, ``SOME`` that a threshold was chosen on
are refused, and more than ``FEW`` are said."""


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
    known, hashed = sketch(about), mixed(key)
    if len(known) == _SKETCH:
        hashed = hashed[hashed <= known[-1]]
    return float(torch.isin(hashed, known).double().mean()) if len(hashed) and len(known) else 0.0


def sketch(about: dict[str, Any]) -> Tensor:
    """The smallest hashes of a slice's texts, ascending, int64; empty where none were kept.

    Raises:
        InputError: If they are damaged.
    """
    try:
        return torch.from_numpy(np.frombuffer(base64.b64decode(about.get("slice_sketch", "")), "<i8").astype(np.int64))
    except (ValueError, TypeError) as error:
        raise InputError(f"The 'slice_sketch' of a threshold is damaged ({error}). Calibrate it again.") from error


def one_slice(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two slices, from :func:`slice_of`, share a tenth or more of the smaller one's texts."""
    if first.get("slice_sha256") == second.get("slice_sha256"):
        return True
    sketches = sketch(first), sketch(second)
    # Of hashes up to here both sketches have all.
    limit = min((int(one[-1]) for one in sketches if len(one) == _SKETCH), default=1 << 53)
    a, b = (one[one <= limit] for one in sketches)
    return min(len(a), len(b)) > 0 and int(torch.isin(a, b).sum()) >= _SAME * min(len(a), len(b))
