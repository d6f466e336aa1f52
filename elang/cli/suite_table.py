"""The suite's table, in the shape of the paper's: one row a task, and the averages."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from elang.data.glue.table import TASKS
from elang.errors import InputError
from elang.evaluation.summary import JointSummary
from elang.evaluation.summary_file import parse_summary
from elang.files import plain, written_aside
from elang.json_files import read_object
from elang.method.scores import BEFORE_DECODER
from elang.notices import made
from elang.terminal import console


def read_row(task: str, path: Path, score: str | None = None) -> dict[str, Any]:
    """Read one task's figures off its ``summary.json``.

    Args:
        task: Its name.
        path: Of the summary.
        score: The score that routes, if there is one of that name; by default the Swift's own.

    Returns:
        Plain values: the task score (the mean of its metrics; of generated texts the first one, BLEU / 100) of Swift
        and Super, their GFLOPs and milliseconds, and for each operating point the pair's.

    Raises:
        InputError: If the summary is damaged.
    """
    try:
        return _row(task, parse_summary(read_object(path)), score)
    except (OSError, ValueError, LookupError) as error:
        raise InputError(
            f"'{path}' is not what `elang validate` wrote ({type(error).__name__}: {error}). Delete it, and the suite "
            "evaluates the pair again."
        ) from error


def _row(task: str, summary: JointSummary, score: str | None) -> dict[str, Any]:
    if score is None or score not in summary.operating_points:
        score = summary.score
    qualities = summary.qualities
    if summary.signatures is not None:
        # BLEU and chrF have no mean.
        qualities = dict([next(iter(qualities.items()))])
    # These count to 100, the others to 1.
    scale = 0.01 if next(iter(qualities)).startswith(("bleu", "chrf")) else 1.0
    first = next(iter(qualities.values()))
    milliseconds = {
        what: {"batch 1": 1e3 * t["batch 1"], "best batch": 1e3 * t["at best batch"]}
        for what, t in (summary.latency or {}).items()
    }
    points = {}
    for name, point in summary.operating_points[score].items():
        share = point.deferred_share
        points[name] = {
            "quality": scale * _mean(point.qualities[metric] for metric in qualities),
            "qualities": point.qualities,
            "to_super": point.to_super,
            "kept": 1 - share,
            "gflops": point.cost / 1e9,
            "speedup": point.speedup,
            "ms": {batch: _pair_ms(milliseconds, score, share, batch) for batch in ("batch 1", "best batch")},
        }
    return {
        "task": task,
        "metrics": list(qualities),
        "examples": summary.num_examples,
        "score": score,
        "area": first.scores[score].area,
        "swift": scale * _mean(q.swift.quality for q in qualities.values()),
        "super": scale * _mean(q.super.quality for q in qualities.values()),
        "swift_gflops": first.swift.cost / 1e9,
        "super_gflops": first.super.cost / 1e9,
        "ms": milliseconds,
        "cautions": summary.cautions,
        "points": points,
    }


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else math.nan


def _pair_ms(ms: dict[str, dict[str, float]], score: str, share: float, batch: str) -> float:
    """Milliseconds of an input under the pair: ``c_swift + r c_super``, the Swift's decoder spared where it is."""
    if not {"swift", "super"} <= ms.keys():
        return math.nan
    swift, super_ = ms["swift"][batch], ms["super"][batch]
    deferred = ms["swift encoder"][batch] if score in BEFORE_DECODER and "swift encoder" in ms else swift
    return (1 - share) * swift + share * (deferred + super_)


def average(rows: list[dict[str, Any]], point: str) -> dict[str, float]:
    """Averages over tasks, the two halves of MNLI counting as one.

    Returns:
        Means of the scores, of the kept share and of the costs; the speed-ups both as ``mean of ratios`` and as
        ``ratio of means``.
    """
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        own = TASKS.get(row["task"])
        tasks.setdefault((own and own.trained_on) or row["task"], []).append(row)

    def mean(of: Any) -> float:
        return _mean(_mean(of(row) for row in part) for part in tasks.values())

    found = {
        "swift": mean(lambda r: r["swift"]),
        "super": mean(lambda r: r["super"]),
        "joint": mean(lambda r: r["points"][point]["quality"]),
        "kept": mean(lambda r: r["points"][point]["kept"]),
        "swift_gflops": mean(lambda r: r["swift_gflops"]),
        "super_gflops": mean(lambda r: r["super_gflops"]),
        "gflops": mean(lambda r: r["points"][point]["gflops"]),
        "speedup, mean of ratios": mean(lambda r: r["points"][point]["speedup"]),
    }
    found["speedup, ratio of means"] = found["super_gflops"] / found["gflops"]
    for batch in ("batch 1", "best batch"):
        super_ms = mean(lambda r, b=batch: _ms(r, b))
        pair_ms = mean(lambda r, b=batch: r["points"][point]["ms"][b])
        found[f"time speedup at {batch}, mean of ratios"] = mean(
            lambda r, b=batch: _ms(r, b) / r["points"][point]["ms"][b]
        )
        found[f"time speedup at {batch}, ratio of means"] = super_ms / pair_ms
    return found


def _ms(row: dict[str, Any], batch: str, who: str = "super") -> float:
    return float(row["ms"].get(who, {}).get(batch, math.nan))


def write_tables(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write every figure as JSON."""
    points = [name for name in rows[0]["points"] if all(name in row["points"] for row in rows)]
    with written_aside(path) as aside:
        found = {"tasks": rows, "averages": {point: average(rows, point) for point in points}, "made": made()}
        aside.write_text(json.dumps(plain(found), indent=2) + "\n", "utf-8")


def print_tables(rows: list[dict[str, Any]], points: list[str]) -> None:
    """Print one table for each operating point."""
    from rich.table import Table

    # A table takes what it needs of it; narrower, and its cells would break.
    terminal = console(220)
    for point in points:
        known = [row for row in rows if point in row["points"]]
        if not known:
            terminal.print(f"No task has the point '{point}'; there are {', '.join(rows[0]['points'])}.")
            continue
        table = Table(title=f"threshold: {point}", caption=_CAPTION)
        for title in ("task", "score", "n"):
            table.add_column(title)
        for title in _COLUMNS:
            table.add_column(title, justify="right")
        for row in known:
            table.add_row(row["task"], row["score"], str(row["examples"]), *_cells(row, point))
        mean = average(known, point)
        for how in ("mean of ratios", "ratio of means"):
            table.add_row("average", how, "", *_average_cells(mean, how))
        terminal.print(table)


_COLUMNS = (
    "Swift",
    "Super",
    "joint",
    "GFLOPs\nSwift / Super / joint",
    "ms, batch 1\nSwift / Super / joint",
    "ms, best batch\nSwift / Super / joint",
    "Swift\nratio",
    "FLOPs\nspeed-up",
    "time speed-up\nbatch 1 / best",
)
_CAPTION = (
    "Qualities are the mean of a task's metrics, x 100. Milliseconds are for one input, on random tokens of the median "
    "length. Swift ratio: share of inputs that it answers. =: the joint answers' worth is not shown to differ from the "
    "Super's (95% interval, paired bootstrap)."
)


def _cells(row: dict[str, Any], point: str) -> list[str]:
    found = row["points"][point]
    cells = [f"{100 * q:.1f}" for q in (row["swift"], row["super"], found["quality"])]
    if (to_super := found.get("to_super")) and to_super["low"] <= 0 <= to_super["high"]:
        cells[-1] = f"= {cells[-1]}"
    cells.append(" / ".join(_short(v) for v in (row["swift_gflops"], row["super_gflops"], found["gflops"])))
    for batch in ("batch 1", "best batch"):
        times = (_ms(row, batch, "swift"), _ms(row, batch), found["ms"][batch])
        cells.append(" / ".join(_short(t) for t in times))
    speed = [_ms(row, batch) / found["ms"][batch] for batch in ("batch 1", "best batch")]
    return [*cells, f"{found['kept']:.0%}", _times(found["speedup"]), " / ".join(map(_times, speed))]


def _average_cells(mean: dict[str, float], how: str) -> list[str]:
    cells = [f"{100 * mean[who]:.1f}" for who in ("swift", "super", "joint")]
    cells.append(" / ".join(_short(mean[name]) for name in ("swift_gflops", "super_gflops", "gflops")))
    times = [mean[f"time speedup at {batch}, {how}"] for batch in ("batch 1", "best batch")]
    speed = " / ".join(map(_times, times))
    return [*cells, "", "", f"{mean['kept']:.0%}", _times(mean[f"speedup, {how}"]), speed]


def _times(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}x"


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"
