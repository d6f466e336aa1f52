"""The suite's table, in the shape of the paper's: one row a task, and the averages."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from elang.data.glue.table import TASKS
from elang.errors import InputError
from elang.evaluation.report.words import meanings
from elang.evaluation.summary import JointSummary
from elang.evaluation.summary_file import parse_summary
from elang.evaluation.units import FLOPS, counted_in, words_of
from elang.files import plain, write_atomically
from elang.json_files import read_object
from elang.method.quality.texts import full_mark
from elang.method.scores import BEFORE_DECODER
from elang.notices import made
from elang.terminal import say_table, say_wrapped

_MODELS = ("swift", "super", "pair")
_BATCHES = ("batch 1", "best batch")
_NOTES = (
    "Swift, Super, pair: the mean of a task's metrics, x 100. '=': the pair's answers are not shown to differ in worth "
    "from the Super's (95% interval, paired bootstrap).",
    "kept: share of the inputs that the Swift answers by itself.",
    "{saving}, time: {of}, or the measured time, of the Super alone divided by that of the pair; below 1x the pair "
    "costs more.",
)
_COSTS = "{unit} and milliseconds are for {each} on average, milliseconds on random tokens of the median length."


def read_row(task: str, path: Path, score: str | None = None) -> dict[str, Any]:
    """Read the figures of one task from its ``summary.json``, as plain values.

    The task score is the mean of the metrics; for generated texts the first one, BLEU / 100. The pair is routed by
    ``score`` if the summary has it, else by the Swift's own score.
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
    qualities, words = summary.qualities, words_of(summary.flops_convention)
    if summary.signatures is not None:
        # The mean of BLEU and chrF would mean nothing.
        qualities = dict([next(iter(qualities.items()))])
    name, first = next(iter(qualities.items()))
    scale = 1 / full_mark(name)
    milliseconds = {
        model: {"batch 1": 1e3 * seconds["batch 1"], "best batch": 1e3 * seconds["at best batch"]}
        for model, seconds in (summary.latency or {}).items()
    }
    points = {}
    for name, point in summary.operating_points[score].items():
        points[name] = {
            "quality": scale * _mean(point.qualities[metric] for metric in qualities),
            "qualities": point.qualities,
            "to_super": point.to_super,
            "kept": 1 - point.deferred_share,
            "gflops": point.cost * words.scale,
            "speedup": point.speedup,
            "ms": {
                batch: _pair_ms(milliseconds, score, point.deferred_share, batch, alone=point.threshold == -math.inf)
                for batch in _BATCHES
            },
        }
    return {
        "task": task,
        "metrics": list(qualities),
        "examples": summary.num_examples,
        "score": score,
        "area": first.scores[score].area,
        "swift": scale * _mean(q.swift.quality for q in qualities.values()),
        "super": scale * _mean(q.super.quality for q in qualities.values()),
        "swift_gflops": first.swift.cost * words.scale,
        "super_gflops": first.super.cost * words.scale,
        **counted_in(summary.flops_convention),
        "ms": milliseconds,
        "cautions": summary.cautions,
        "points": points,
    }


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else math.nan


def _pair_ms(ms: dict[str, dict[str, float]], score: str, share: float, batch: str, *, alone: bool = False) -> float:
    """The pair's milliseconds for an input, ``c_swift + r c_super``, without the Swift's decoding where it is spared.

    Where the Super is asked ``alone``, the Swift does not run.
    """
    if not {"swift", "super"} <= ms.keys():
        return math.nan
    swift, super_ = ms["swift"][batch], ms["super"][batch]
    if alone:
        return super_
    early = [ms[f"swift {part}"][batch] for part in ("encoder", "prompt") if f"swift {part}" in ms]
    deferred = early[0] if score in BEFORE_DECODER and early else swift
    return (1 - share) * swift + share * (deferred + super_)


def _figures(row: dict[str, Any], point: str) -> dict[str, float]:
    """The numbers of one task at one operating point."""
    pair = row["points"][point]
    figures = {name: row[name] for name in ("swift", "super")} | {"joint": pair["quality"], "kept": pair["kept"]}
    figures |= {name: row[name] for name in ("swift_gflops", "super_gflops")}
    figures |= {"gflops": pair["gflops"], "speedup": pair["speedup"]}
    for batch in _BATCHES:
        for model in ("swift", "super"):
            figures[f"{model}, {batch}"] = float(row["ms"].get(model, {}).get(batch, math.nan))
        figures[f"pair, {batch}"] = pair["ms"][batch]
        figures[f"time speedup at {batch}"] = figures[f"super, {batch}"] / figures[f"pair, {batch}"]
    return figures


def average(rows: list[dict[str, Any]], point: str) -> dict[str, float]:
    """Means over tasks, the two halves of MNLI counting as one; speed-ups as mean of ratios and as ratio of means."""
    groups: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        task = TASKS.get(row["task"])
        groups.setdefault((task and task.trained_on) or row["task"], []).append(_figures(row, point))
    tasks = [{name: _mean(row[name] for row in group) for name in group[0]} for group in groups.values()]
    mean = {name: _mean(row[name] for row in tasks) for name in tasks[0]}
    names = ("swift", "super", "joint", "kept", "swift_gflops", "super_gflops", "gflops")
    averages = {name: mean[name] for name in names}
    averages["speedup, mean of ratios"] = mean["speedup"]
    averages["speedup, ratio of means"] = mean["super_gflops"] / mean["gflops"]
    for batch in _BATCHES:
        name = f"time speedup at {batch}"
        averages[f"{name}, mean of ratios"] = mean[name]
        averages[f"{name}, ratio of means"] = mean[f"super, {batch}"] / mean[f"pair, {batch}"]
    return averages


def write_tables(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write every figure as JSON."""
    points = [name for name in rows[0]["points"] if all(name in row["points"] for row in rows)]
    table = {"tasks": rows, "averages": {point: average(rows, point) for point in points}, "made": made()}
    with write_atomically(path) as aside:
        aside.write_text(json.dumps(plain(table), indent=2) + "\n", "utf-8")


def print_tables(rows: list[dict[str, Any]], points: list[str]) -> None:
    """Print two tables for each operating point: what the pair's answers are worth and save, and what models cost."""
    for point in points:
        known = [row for row in rows if point in row["points"]]
        if not known:
            say_wrapped(f"No task has the point '{point}'; there are {', '.join(rows[0]['points'])}.")
            continue
        figures, mean = {row["task"]: _figures(row, point) for row in known}, average(known, point)
        words = words_of(known[0].get("cost", ""))
        unit, each = ("GFLOPs", "one input") if words is FLOPS else (words.name, "1,000 inputs")
        times = list(_BATCHES) if any(row["ms"] for row in known) else []
        results, costs = [], []
        for row in known:
            task, here = row["task"], figures[row["task"]]
            results.append([task, *_results(here, times, to_super=row["points"][point].get("to_super"))])
            costs.append([task, row["score"], str(row["examples"]), unit, *_costs(here, "gflops")])
            costs += [["", "", "", f"ms, {batch}", *_costs(here, batch)] for batch in times]
        for method in ("mean of ratios", "ratio of means"):
            results.append([method, *_results(mean, times, method=f", {method}")])
        costs.append(["average", "", "", unit, *_costs(mean, "gflops")])
        head = ["task", "Swift", "Super", "pair", "kept", words.saving.replace(" ", "\n")]
        head += [f"time,\n{batch}" for batch in times]
        notes = ["mean of ratios, ratio of means: averages over the tasks.", *_NOTES]
        notes[-1] = notes[-1].format(saving=words.saving, of=words.of)
        say_table(f"threshold: {point}", head, results, [*notes, *meanings([point])])
        head = ["task", "score", "n", "cost", "Swift", "Super", "pair"]
        say_table(f"costs at the threshold: {point}", head, costs, [_COSTS.format(unit=unit, each=each)], texts=4)


def _results(
    figures: dict[str, float], times: list[str], to_super: dict[str, float] | None = None, method: str = ""
) -> list[str]:
    """A row of the first table; averages have two speed-ups, told apart by ``method``."""
    swift, super_, joint = (f"{100 * figures[name]:.1f}" for name in ("swift", "super", "joint"))
    if to_super and to_super["low"] <= 0 <= to_super["high"]:
        joint = f"= {joint}"
    speedups = [f"speedup{method}", *(f"time speedup at {batch}{method}" for batch in times)]
    return [swift, super_, joint, f"{figures['kept']:.0%}", *(_short(figures[name], "x") for name in speedups)]


def _costs(figures: dict[str, float], cost: str) -> list[str]:
    """What inputs cost Swift, Super and pair, by the summaries' convention or in milliseconds at a batch size."""
    names = ["swift_gflops", "super_gflops", "gflops"] if cost == "gflops" else [f"{m}, {cost}" for m in _MODELS]
    return [_short(figures[name]) for name in names]


def _short(value: float, unit: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:.3g}{unit}"
