"""Which examples a promise was made on: read from joint records, each independent unit once, and known again."""

import base64
import hashlib
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.errors import InputError
from elang.evaluation.pair import swift_cost_columns
from elang.method.certificate import mixed
from elang.method.curve.points import Costs
from elang.records.columns import numbers
from elang.records.reading import read_about
from elang.tables import read_parquet

# Hashes that a slice is known again by, and the share of the smaller of two from which they count as one.
_SKETCH, _SAME = 256, 0.1
MOSTLY, SOME, FEW = 0.5, 0.1, 0.01
"""Shares of the evaluated examples: ``MOSTLY`` known from training are refused, ``SOME`` that a threshold was chosen on
are refused, and more than ``FEW`` are said."""


@dataclass
class Slice:
    """The independent examples of one split of a pair's records: of equal texts one, of groups all rows.

    Attributes:
        key: int64 ``(N,)``.
        score: The score that routes, ``(N,)``.
        gain: How much better the Super's answer is, float64 ``(N,)``, each answer being worth 0 to 1.
        costs: FLOPs of each row.
        worth: What ``gain`` counts.
        bounded: It cannot be more.
        splits: How many independent units each split of the records has.
        unit: The group of each row, int64 ``(N,)``, where rows belong together.
        rows: How many there were, with equal texts.
    """

    key: Tensor
    score: Tensor
    gain: Tensor
    costs: Costs
    worth: str
    bounded: bool = True
    splits: dict[str, int] = field(default_factory=dict)
    unit: Tensor | None = None
    rows: int = 0

    @property
    def units(self) -> int:
        """How many independent examples, or groups, there are."""
        return len(self.key if self.unit is None else self.unit.unique())

    @property
    def noun(self) -> str:
        """What they are."""
        return "distinct texts" if self.unit is None else "groups of texts"


def read_slice(folder: Path, split: str, score: str) -> Slice:
    """Read one split of a pair's records.

    Raises:
        InputError: If the split or the score is not there.
    """
    path = folder / "records.parquet"
    try:
        frame, _ = read_parquet(path)
        worth = read_about(path).get("worth", {"unit": "", "largest": None})
        largest = float(worth["largest"] or 1.0)
        units = "unit" if "unit" in frame else "key"
        splits = {str(name): int(n) for name, n in frame.groupby("split")[units].nunique().items()}
    except Exception as error:  # whatever the readers say of a damaged file
        raise InputError(f"The records '{path}' cannot be read ({error}). Run `elang validate` again.") from error
    known = [str(column).removeprefix("score_") for column in frame if str(column).startswith("score_")]
    if score not in known:
        raise InputError(f"The records have no score '{score}'; choose one of {', '.join(known)}.")
    part = frame[frame["split"] == split]
    if not len(part):
        raise InputError(f"The records have no split '{split}', only {', '.join(splits)}. Name one with --split.")
    if "gain" not in part:
        raise InputError(f"The records '{path}' do not say what deferring gains. Run `elang validate` again.")

    def column(name: str, whole: bool = True) -> Tensor:
        return torch.from_numpy(numbers(part, name, str(path), whole=whole))

    def cost(name: str) -> Tensor:
        known = numbers(part, name, str(path), least=0, unknown=True)
        return torch.from_numpy(np.full(len(part), np.nan) if known is None else known)

    try:
        kept, deferred = (reduce(add, map(cost, names)) for names in swift_cost_columns(score, part))
        costs = kept, cost("super_flops"), deferred
        gain, key = column("gain", whole=False) / largest, column("key")
        column(f"score_{score}", whole=False)
        # In its own precision.
        scores = torch.tensor(part[f"score_{score}"].to_numpy())
        unit = column("unit") if "unit" in part else None
        rows = independent_rows(key, column("id"), unit)
        key, scores, gain, kept, super_, deferred = (x[rows] for x in (key, scores, gain, *costs))
        return Slice(
            key=key,
            score=scores,
            gain=gain,
            costs=Costs(kept, super_, deferred),
            worth=str(worth["unit"]),
            bounded=worth["largest"] is not None,
            splits=splits,
            unit=None if unit is None else unit[rows],
            rows=len(part),
        )
    except Exception as error:  # the same of its values
        raise InputError(f"The records '{path}' are damaged ({error}). Run `elang validate` again.") from error


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
