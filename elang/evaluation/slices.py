"""The examples that a threshold is chosen on: read from joint records, and recognized in other data by a sketch."""

import base64
import hashlib
from dataclasses import dataclass, field
from functools import cached_property, reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.errors import InputError
from elang.evaluation.pair import ROUTING_SLICE
from elang.method.certificate import mixed
from elang.method.curve.points import Costs
from elang.notices import notice
from elang.records.columns import numbers, swift_cost_columns
from elang.records.manifest import Manifest
from elang.records.reading import read_metadata
from elang.tables import read_parquet

# Hashes that a slice is recognized by, and the share of the smaller of two slices from which they count as one.
_SKETCH, _SAME = 256, 0.1
# With fewer examples, chance alone explains why some are known.
_SOME_ROWS = 5
MOSTLY, SOME, FEW = 0.5, 0.1, 0.01
"""Shares of the evaluated examples: ``MOSTLY`` known from training or ``SOME`` that a threshold was chosen on are
refused; more than ``FEW`` are reported."""


@dataclass
class Slice:
    """The independent examples of one split of a pair's records: one of equal texts, but all rows of groups.

    Attributes:
        key: int64 ``(N,)``.
        score: The score that routes, ``(N,)``.
        gain: How much better the Super's answer is, float64 ``(N,)``, each answer being worth 0 to 1.
        costs: Of each row.
        worth: What ``gain`` counts.
        bounded: Whether an answer's worth has an upper bound.
        splits: How many independent units each split of the records has.
        unit: The group of each row, int64 ``(N,)``, where rows belong together.
        rows: How many rows the split has, repeated texts included.
        convention: How costs were counted, as in the summary.
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
    convention: str = ""

    @cached_property
    def units(self) -> int:
        """How many independent examples, or groups, there are."""
        return independent_units(self.key, self.unit)[0]

    @cached_property
    def noun(self) -> str:
        """What the units are."""
        return independent_units(self.key, self.unit)[1]


def independent_units(key: Tensor, unit: Tensor | None) -> tuple[int, str]:
    """How many independent units rows form, and what these are: texts by ``key`` ``(N,)``, or groups by ``unit``."""
    return (len(key.unique()), "distinct texts") if unit is None else (len(unit.unique()), "groups of texts")


def read_slice(folder: Path, split: str, score: str) -> Slice:
    """Read one split of a pair's records.

    Raises:
        InputError: If the split or the score is not there, or the records are damaged.
    """
    path = folder / "records.parquet"
    try:
        frame, _ = read_parquet(path)
        about = read_metadata(path)
        worth = about.get("worth", {"unit": "", "largest": None})
        largest = float(worth["largest"] or 1.0)
        counted = frame.groupby("split")["unit" if "unit" in frame else "key"].nunique()
        splits = {str(name): int(n) for name, n in counted.items()}
    except Exception as error:  # whatever the readers raise for a damaged file
        raise InputError(f"The records '{path}' cannot be read ({error}). Run `elang validate` again.") from error
    scores = [str(column).removeprefix("score_") for column in frame if str(column).startswith("score_")]
    if score not in scores:
        raise InputError(f"The records have no score '{score}'; choose one of {', '.join(scores)}.")
    part = frame[frame["split"] == split]
    if not len(part):
        raise InputError(f"The records have no split '{split}', only {', '.join(splits)}. Name one with --split.")
    if "gain" not in part:
        raise InputError(f"The records '{path}' do not say what deferring gains. Run `elang validate` again.")

    def column(name: str, whole: bool = True) -> Tensor:
        return torch.from_numpy(numbers(part, name, str(path), whole=whole))

    def cost(name: str) -> Tensor:
        values = numbers(part, name, str(path), least=0, unknown=True)
        return torch.from_numpy(np.full(len(part), np.nan) if values is None else values)

    try:
        kept, deferred = (reduce(add, map(cost, names)) for names in swift_cost_columns(score, part))
        key, gain = column("key"), column("gain", whole=False) / largest
        unit = column("unit") if "unit" in part else None
        column(f"score_{score}", whole=False)  # only checked: the score stays in its own precision
        values = torch.tensor(part[f"score_{score}"].to_numpy())
        rows = independent_rows(key, column("id"), unit)
        return Slice(
            key=key[rows],
            score=values[rows],
            gain=gain[rows],
            costs=Costs(kept[rows], cost("super_flops")[rows], deferred[rows]),
            worth=str(worth["unit"]),
            bounded=worth["largest"] is not None,
            splits=splits,
            unit=None if unit is None else unit[rows],
            rows=len(part),
            convention=str(about.get("flops_convention", "")),
        )
    except Exception as error:  # the same for their values
        raise InputError(f"The records '{path}' are damaged ({error}). Run `elang validate` again.") from error


def independent_rows(key: Tensor, row: Tensor, unit: Tensor | None = None) -> Tensor:
    """Rows to sample from: one of equal texts, picked by a hash of its row number; with groups, all rows.

    A random row of each text keeps the mean regret as it is, and each answer right or wrong. The arguments are int64
    ``(N,)``: the hash of each text, a number for each row, and the row's group. The indices ascend.

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
    """Hash of a set of examples by their keys, int64 ``(N,)`` in any order."""
    return hashlib.sha256(key.sort().values.numpy().astype("<i8").tobytes()).hexdigest()


def describe_slice(key: Tensor, super_sha256: str = "") -> dict[str, Any]:
    """What identifies examples: ``slice_sha256``, and ``slice_sketch``, the smallest hashes of their texts.

    The hash of the Super that answered them is added if it is known.
    """
    smallest = mixed(key).unique()[:_SKETCH].numpy().astype("<i8")
    about = {"slice_sha256": slice_sha256(key), "slice_sketch": base64.b64encode(smallest.tobytes()).decode()}
    return about | ({"super_sha256": super_sha256} if super_sha256 else {})


def share_of_slice(key: Tensor, about: dict[str, Any]) -> float:
    """The share of examples, by ``key`` ``(N,)``, that belong to a slice, from its :func:`describe_slice`.

    If only the hash of the slice is known, it is 0 or 1.

    >>> share_of_slice(torch.arange(8), describe_slice(torch.arange(4)))
    0.5
    """
    if about.get("slice_sha256") == slice_sha256(key):
        return 1.0
    known, hashed = sketch(about), mixed(key)
    if len(known) == _SKETCH:
        hashed = hashed[hashed <= known[-1]]
    return float(torch.isin(hashed, known).double().mean()) if len(hashed) and len(known) else 0.0


def sketch(about: dict[str, Any]) -> Tensor:
    """The smallest hashes of a slice's texts, ascending, int64; empty if none were kept.

    Raises:
        InputError: If they are damaged.
    """
    try:
        return torch.from_numpy(np.frombuffer(base64.b64decode(about.get("slice_sketch", "")), "<i8").astype(np.int64))
    except (ValueError, TypeError) as error:
        raise InputError(f"The 'slice_sketch' of a threshold is damaged ({error}). Calibrate it again.") from error


def one_slice(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two slices, from :func:`describe_slice`, share a tenth or more of the smaller one's texts."""
    if first.get("slice_sha256") == second.get("slice_sha256"):
        return True
    sketches = sketch(first), sketch(second)
    # Up to this hash both sketches are complete.
    limit = min((int(hashes[-1]) for hashes in sketches if len(hashes) == _SKETCH), default=1 << 53)
    a, b = (hashes[hashes <= limit] for hashes in sketches)
    return min(len(a), len(b)) > 0 and int(torch.isin(a, b).sum()) >= _SAME * min(len(a), len(b))


def check_apart(evaluated: Tensor, train: Tensor, chosen_on: Tensor) -> None:
    """Refuse to evaluate on the training file, and warn about examples that thresholds are also chosen on.

    All arguments are keys, int64 ``(N,)``; the routing slice ``chosen_on`` is the part of the file outside ``train``.

    Raises:
        InputError: If half of the evaluation set, or more, is in the training file.
    """
    in_slice = torch.isin(evaluated, chosen_on)
    known, chosen, n = int((in_slice | torch.isin(evaluated, train)).sum()), int(in_slice.sum()), len(evaluated)
    if known >= MOSTLY * n:
        raise InputError(
            f"{known} of the {n} evaluated examples are in the training file, {chosen} of them in its {ROUTING_SLICE}, "
            "on which thresholds are chosen: are --data.train and --data.validation the same file? Give another one."
        )
    if chosen > FEW * n:
        notice(
            "evaluated-on-slice",
            f"{chosen} of the {n} evaluated examples are also in the {ROUTING_SLICE}, on which thresholds are chosen; "
            "the figures are optimistic by as much.",
        )


def check_manifest_apart(evaluated: Tensor, manifest: Manifest, statements: bool) -> None:
    """Refuse to evaluate a manifest's thresholds on the examples, by key ``(N,)``, that they were chosen on.

    With ``statements``, calibrated thresholds are also checked, each of which may have a slice of its own.

    Raises:
        InputError: If a tenth of the evaluation set was chosen on; or so much of it that half of it must be the
            training file, of which a threshold's slice is only a part.
    """
    fraction, n = manifest.routing_fraction, len(evaluated)
    chosen: list[tuple[str, dict[str, Any], float]] = [("Thresholds were", manifest.chosen_on, fraction)]
    for named in manifest.thresholds.values() if statements else ():
        for name, entry in named.items():
            if "statement" in entry:
                part = fraction if entry["chosen_on"].startswith("routing") else 0.0
                chosen.append((f"The threshold '{name}' was", entry, part))
    for subject, about, part in chosen:
        share = share_of_slice(evaluated, about)
        overlap = f"{subject} chosen on examples of which about {share * n:.0f} are among the {n} evaluated ones"
        if share >= SOME or (share >= MOSTLY * part > 0 and share * n >= _SOME_ROWS):
            raise InputError(
                f"{overlap if share < 1 else f'{subject} chosen on these very examples'}, so they cannot show whether "
                "a statement holds. Evaluate on others than the training file and what was calibrated on."
            )
        if share > FEW:
            notice("evaluated-on-slice", f"{overlap}; the figures are optimistic by as much.")
