"""The files that an evaluation leaves: records, curves, summary."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from elang.evaluation.pair import PairAnswers, pair_curves
from elang.evaluation.report.figures import plain_texts, plot_curves, plot_lengths
from elang.evaluation.summary import JointSummary
from elang.files import plain, written_aside
from elang.method.curve.points import OperatingCurve
from elang.method.quality.metric import Quality
from elang.notices import notice
from elang.records.table import FORMAT

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
    qualities: list[Quality],
    summary: JointSummary,
    label_names: list[str],
) -> None:
    """Write ``records.parquet``, ``curve.csv``, ``curve.png``, for generated texts ``lengths.png``, ``summary.json``.

    Args:
        folder: Made if missing.
        pairs: The answers to each split.
        evaluated: The split that curves are drawn for.
        qualities: The task metrics, the first one is plotted.
        summary: Of the evaluation; the number of points left out of ``curve.csv`` is added.
        label_names: The classes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Joint records say themselves of which pair they are, for those who have them alone.
    values = summary.as_dict()
    about = {name: values[name] for name in _PAIR}
    _write_pair_records(folder / "records.parquet", pairs, label_names, about)
    curves = {quality.name: pair_curves(pairs[evaluated], quality) for quality in qualities}
    summary = replace(summary, curve_points=_write_curves(folder / "curve.csv", curves))
    name = qualities[0].name
    with plain_texts():
        plot_curves(folder / "curve.png", curves[name], summary.qualities[name], summary.score)
        if summary.lengths is not None:
            plot_lengths(folder / "lengths.png", pairs[evaluated], summary.score)
    # The last, for where it is, the rest is, too.
    with written_aside(folder / "summary.json") as aside:
        aside.write_text(json.dumps(plain(summary.as_dict()), indent=2) + "\n", "utf-8")


def _write_pair_records(
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


def _write_curves(path: Path, curves: dict[str, dict[str, OperatingCurve]]) -> dict[str, int]:
    """Write every curve; very long ones are thinned evenly, and how much is returned."""
    names = list(curves)
    written = total = 0
    with written_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["score", "threshold", "deferred", "deferred_share", *names, "flops", "speedup"])
        for score, curve in curves[names[0]].items():
            rows = torch.linspace(0, len(curve) - 1, min(len(curve), _MAX_CURVE_POINTS)).round().long().tolist()
            written, total = written + len(rows), total + len(curve)
            columns = [
                curve.threshold[rows].tolist(),
                curve.deferred[rows].tolist(),
                curve.deferred_share[rows].tolist(),
                *(curves[name][score].quality[rows].tolist() for name in names),
                curve.cost[rows].tolist(),
                curve.speedup[rows].tolist(),
            ]
            out.writerows([score, *row] for row in zip(*columns, strict=True))
    if written < total:
        notice(
            "curve-thinned",
            f"'{path}' has {written:,} of {total:,} points of the curves, evenly spread; the records have all of them.",
        )
    return {"written": written, "of": total}
