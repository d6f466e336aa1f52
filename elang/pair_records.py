"""What `elang validate` left of a pair, as `elang calibrate` and `elang report` read it: summary and records."""

from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elang.columns import numbers, read_parquet
from elang.errors import InputError
from elang.evaluate import swift_cost_columns
from elang.records import read_about
from elang.slices import independent_rows


@dataclass
class Slice:
    """The independent examples of one split of a pair's records: of equal texts one, of groups all rows.

    Attributes:
        key: int64 ``(N,)``.
        score: The score that routes, ``(N,)``.
        gain: How much better the Super's answer is, float64 ``(N,)``, each answer being worth 0 to 1.
        costs: FLOPs of the Swift where it is kept, of the Super, and of the Swift where it is deferred, each ``(N,)``.
        worth: What ``gain`` counts.
        bounded: It cannot be more.
        splits: How many independent units each split of the records has.
        unit: The group of each row, int64 ``(N,)``, where rows belong together.
        rows: How many there were, with equal texts.
    """

    key: Tensor
    score: Tensor
    gain: Tensor
    costs: tuple[Tensor, Tensor, Tensor]
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
        own = torch.tensor(part[f"score_{score}"].to_numpy())
        unit = column("unit") if "unit" in part else None
        rows = independent_rows(key, column("id"), unit)
        key, own, gain, kept, super_, deferred = (x[rows] for x in (key, own, gain, *costs))
        return Slice(
            key,
            own,
            gain,
            (kept, super_, deferred),
            str(worth["unit"]),
            worth["largest"] is not None,
            splits,
            None if unit is None else unit[rows],
            len(part),
        )
    except Exception as error:  # the same of its values
        raise InputError(f"The records '{path}' are damaged ({error}). Run `elang validate` again.") from error
