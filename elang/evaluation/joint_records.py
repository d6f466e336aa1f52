"""What `elang validate` left of a pair, as `elang calibrate` and `elang report` read it: summary and records."""

import json
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.errors import InputError
from elang.evaluation.pair import PairAnswers, swift_cost_columns
from elang.evaluation.slices import independent_rows
from elang.files import plain, written_aside
from elang.method.curve.points import Costs
from elang.records.columns import numbers, read_parquet
from elang.records.reading import read_about
from elang.records.table import FORMAT


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
        own = torch.tensor(part[f"score_{score}"].to_numpy())
        unit = column("unit") if "unit" in part else None
        rows = independent_rows(key, column("id"), unit)
        key, own, gain, kept, super_, deferred = (x[rows] for x in (key, own, gain, *costs))
        return Slice(
            key,
            own,
            gain,
            Costs(kept, super_, deferred),
            str(worth["unit"]),
            worth["largest"] is not None,
            splits,
            None if unit is None else unit[rows],
            len(part),
        )
    except Exception as error:  # the same of its values
        raise InputError(f"The records '{path}' are damaged ({error}). Run `elang validate` again.") from error


def write_pair_records(
    path: Path, pairs: dict[str, PairAnswers], label_names: list[str], about: dict[str, Any]
) -> None:
    """Write one row an example: both answers, scores, costs and token counts, in the order of the data.

    Args:
        path: The parquet file.
        pairs: The answers to each split.
        label_names: The classes.
        about: What else the file is to say of itself.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = []
    for split, pair in pairs.items():
        columns: dict[str, Any] = {"split": pa.array([split] * len(pair), pa.string())}
        columns |= {"id": pair.id.numpy(), "key": pair.key.numpy()}
        if pair.unit is not None:
            columns["unit"] = pair.unit.numpy()
        if not pair.kind.generates:
            columns |= {"label": pair.label.numpy()}
            columns |= {"swift_prediction": pair.swift.numpy(), "super_prediction": pair.super_.numpy()}
        columns |= {"swift_flops": pair.swift_flops.numpy(), "super_flops": pair.super_flops.numpy()}
        columns["gain"] = pair.gain.numpy()
        if pair.early_flops is not None:
            columns["swift_early_flops"] = pair.early_flops.numpy()
        if pair.score_flops is not None:
            columns["swift_score_flops"] = pair.score_flops.numpy()
        columns |= {f"score_{name}": score.numpy() for name, score in pair.scores.items()}
        for name, values in pair.more.items():
            if isinstance(values, list):
                columns[name] = pa.array(values, pa.string())
            else:
                columns[name] = (
                    values.numpy() if values.ndim == 1 else pa.array(list(values.numpy()), pa.list_(pa.float32()))
                )
        parts.append(pa.table(columns))
    metadata = {"elang": json.dumps({"format": FORMAT, "label_names": label_names} | plain(about))}
    with written_aside(path) as aside:
        pq.write_table(pa.concat_tables(parts).replace_schema_metadata(metadata), aside)
