"""Writes the files of an evaluation: records, curves, summary."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.evaluation.pair import PairAnswers
from elang.evaluation.report.figures import plain_texts, plot_curves, plot_lengths
from elang.evaluation.summarize import Curves
from elang.evaluation.summary import JointSummary
from elang.files import plain, write_atomically
from elang.method.curve.points import OperatingCurve
from elang.notices import notice
from elang.records.table import FORMAT
from elang.terminal import waiting

EVALUATION_FILES = (
    *("records.parquet", "curve.csv", "curve.png", "lengths.png", "summary.json", "elang.json", "made.json"),
)
"""All that an evaluation may write into its folder."""
_MAX_CURVE_POINTS = 20_001
_PAIR = ("worth", "weights", "temperature", "flops_convention")


def write_report(
    folder: Path,
    pairs: dict[str, PairAnswers],
    evaluated: str,
    curves: Curves,
    summary: JointSummary,
    label_names: list[str],
) -> None:
    """Write ``records.parquet``, ``curve.csv``, ``curve.png``, for generated texts ``lengths.png``, ``summary.json``.

    Records are of all splits, curves of the ``evaluated`` one; the first metric is plotted. The number of points in
    ``curve.csv`` is added to the summary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Joint records name their pair, for those who have the file alone.
    values = summary.as_dict()
    about = {"format": FORMAT, "label_names": label_names} | {name: values[name] for name in _PAIR}
    _write_pair_records(folder / "records.parquet", pairs, about)
    summary = replace(summary, curve_points=_write_curves(folder / "curve.csv", curves))
    with waiting("drawing the plots"), plain_texts():
        plot_curves(folder / "curve.png", next(iter(curves.values())), summary)
        if summary.lengths is not None:
            plot_lengths(folder / "lengths.png", pairs[evaluated], summary.score)
    # The last one: a folder that has it has all the others.
    with write_atomically(folder / "summary.json") as aside:
        aside.write_text(json.dumps(plain(summary.as_dict()), indent=2) + "\n", "utf-8")


def _write_pair_records(path: Path, pairs: dict[str, PairAnswers], about: dict[str, Any]) -> None:
    """Write a row for each example, in the order of the data, and what the file says about itself."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = []
    for split, pair in pairs.items():
        columns: dict[str, Any] = {"split": [split] * len(pair), "id": pair.id, "key": pair.key, "unit": pair.unit}
        # Where only worths are known, predictions are none.
        if "worth" not in pair.targets:
            columns |= {"label": pair.label, "swift_prediction": pair.swift, "super_prediction": pair.super_}
        columns |= {"swift_flops": pair.swift_flops, "super_flops": pair.super_flops, "gain": pair.gain}
        columns |= {"swift_early_flops": pair.early_flops, "swift_score_flops": pair.score_flops}
        columns |= {f"swift_{name}_flops": flops for name, flops in pair.own_flops.items()}
        columns |= {f"swift_{name}_deferred_flops": flops for name, flops in pair.deferred_flops.items()}
        columns |= {f"score_{name}": score for name, score in pair.scores.items()} | pair.more
        arrays = {}
        for name, values in columns.items():
            if isinstance(values, list):
                arrays[name] = pa.array(values, pa.string())
            elif values is not None:
                vectors = values.ndim > 1
                arrays[name] = pa.array(list(values.numpy()), pa.list_(pa.float32())) if vectors else values.numpy()
        parts.append(pa.table(arrays))
    metadata = {"elang": json.dumps(plain(about))}
    with write_atomically(path) as aside:
        pq.write_table(pa.concat_tables(parts, promote_options="default").replace_schema_metadata(metadata), aside)


def _quality_at(deferred: Tensor, curve: OperatingCurve) -> Tensor:
    """The quality of a curve at these numbers of deferred examples, NaN where it has no point."""
    places = torch.searchsorted(curve.deferred, deferred).clamp(max=len(curve) - 1)
    return torch.where(curve.deferred[places] == deferred, curve.quality[places].double(), torch.nan)


def _write_curves(path: Path, curves: Curves) -> dict[str, int]:
    """Write the curves by metric and score, very long ones thinned evenly, and return how many points were written.

    The points are those of the first metric. A metric that is computed anew at some points only is NaN at the others.
    """
    names, written, total = [quality.name for quality in curves], 0, 0
    with write_atomically(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["score", "threshold", "deferred", "deferred_share", *names, "flops", "speedup"])
        for score, curve in next(iter(curves.values())).items():
            rows = torch.linspace(0, len(curve) - 1, min(len(curve), _MAX_CURVE_POINTS)).round().long()
            written, total = written + len(rows), total + len(curve)
            qualities = [_quality_at(curve.deferred, found[score]) for found in curves.values()]
            columns = [curve.threshold, curve.deferred, curve.deferred_share, *qualities, curve.cost, curve.speedup]
            out.writerows([score, *row] for row in zip(*(column[rows].tolist() for column in columns), strict=True))
    if written < total:
        notice(
            "curve-thinned",
            f"'{path}' has {written:,} of {total:,} points of the curves, evenly spaced; the records have all of them.",
        )
    return {"written": written, "of": total}
