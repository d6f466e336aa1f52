"""The sections of the page."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.evaluation.report.figures import curve_figure, keep, plain_texts, reliability_figure, score_figure
from elang.evaluation.report.folder import Evaluation
from elang.evaluation.report.words import (
    allowance,
    area_difference,
    better_scores,
    meanings,
    outcome,
    point_cells,
    statement_lines,
)
from elang.evaluation.units import words_of
from elang.method.bootstrap import lost_to_super
from elang.method.curve.points import Point
from elang.method.deferral import route
from elang.terminal import without_repeats

_MAX_TEXTS, _MAX_CHARACTERS, _MAX_CLASSES = 15, 400, 200
_STEPS = 400  # of the slider


def section(
    evaluation: Evaluation, label: str, threshold_name: str | None, *, beside: Path, stem: str
) -> dict[str, Any]:
    """What the template shows of one evaluation, with a ``label`` as its title.

    Its figures are also written to a folder ``beside`` the page, each under a name that begins with ``stem``.
    """
    summary, first, score = evaluation.summary, evaluation.first, evaluation.score
    name, threshold = evaluation.threshold(threshold_name)
    deferred, at = route(evaluation.routed, threshold), evaluation.row_at(threshold)
    with plain_texts():
        figures = [curve_figure(evaluation, name, threshold), score_figure(evaluation, threshold)]
        if (reliability := reliability_figure(evaluation)) is not None:
            figures.append(reliability)
    drawn = [keep(figure, beside, f"{stem}-{figure['name']}") for figure in figures]
    point = _point(evaluation, name, threshold, at=at, deferred=deferred)
    same = [s["same_slice"] for s in evaluation.statements if s["name"] == name and s["score"] == score]
    to_super = lost_to_super((evaluation.gain * ~deferred)[:, None])[0]
    answer, *details = outcome(summary, point, to_super)
    heads, rows, notes = _scores(evaluation)
    about = {"metric": evaluation.metric, "chosen_on": summary.thresholds_from, "score": score}
    about |= {"allowed": allowance(summary), "cost": words_of(summary.flops_convention).name}
    return {
        "label": label,
        "id": "".join(c if c.isalnum() else "-" for c in label),
        "summary": summary,
        "cost": words_of(summary.flops_convention),
        "found": first,
        "quality": evaluation.metric,
        "score": score,
        "point": point,
        "name": name,
        "same_slice": any(same),
        "to_super": to_super,
        "answer": answer,
        "details": details,
        "meanings": meanings([name], **about),
        "figures": drawn,
        "slider": _slider(evaluation, at) | {key: drawn[0][key] for key in ("x", "y", "by")},
        "heads": heads,
        "scores": rows,
        "notes": [*notes, *meanings(["deferred", "speed-up", *heads, *rows], **about)],
        "times": [{"name": model, **times} for model, times in (summary.latency or {}).items()],
        "classes": _classes(evaluation, deferred),
        "lengths": _lengths(evaluation, deferred),
        "needless": _texts(evaluation, deferred & (evaluation.gain <= 0), evaluation.routed),
        "missed": _texts(evaluation, ~deferred & (evaluation.gain > 0), -evaluation.routed),
        "statements": [said | {"lines": statement_lines(said)} for said in evaluation.statements],
        "made": evaluation.made,
    }


def _scores(evaluation: Evaluation) -> tuple[list[str], dict[str, list[str]], list[str]]:
    """The names of the table's columns, the cells of each score's row, and what was left out."""
    summary, first, metric = evaluation.summary, evaluation.first, evaluation.metric
    chosen = first.scores[evaluation.score]
    shown, rows = [chosen.usual("held out"), "held out, 99%", chosen.usual("read here")], []
    shown = [name for name in shown if chosen.point(name) is not None]
    # The score that routes comes first, so that of equal ones it is the one that is shown.
    for name in sorted(first.scores, key=lambda name: name != evaluation.score):
        score = first.scores[name]
        cells = ["-" if math.isnan(score.area) else f"{score.area:.3f}"]
        if summary.areas:
            cells.append(area_difference(summary.areas[name]) if name in summary.areas else "-")
        points = (score.point(point) for point in shown)
        rows.append([name, *cells, *(", ".join(point_cells(point, metric)) if point else "-" for point in points)])
    kept, notes = without_repeats(rows)
    notes += better_scores(summary)
    heads = ["score", "area", *[f"area minus {evaluation.score}"] * bool(summary.areas), *shown]
    return heads, {name: cells for name, *cells in kept}, notes


def _slider(evaluation: Evaluation, start: int) -> dict[str, Any]:
    """Points of the curve at even steps, and at the row where the slider starts."""
    curve, latency = evaluation.curve, evaluation.summary.latency or {}
    steps = np.linspace(0, len(curve) - 1, min(len(curve), _STEPS)).round().astype(int)
    rows = np.unique([*steps, start])
    columns = {"threshold": "threshold", "share": "deferred_share", "quality": evaluation.metric}
    columns |= {"flops": "flops", "speedup": "speedup"}
    slider: dict[str, Any] = {
        key: [float(f"{value:.6g}") if math.isfinite(value) else None for value in curve[column].iloc[rows]]
        for key, column in columns.items()
    }
    slider["times"] = {
        what: (latency["swift"][what], latency["super"][what])
        for what in ("batch 1", "at best batch")
        if {"swift", "super"} <= latency.keys()
    }
    slider["scale"] = words_of(evaluation.summary.flops_convention).scale
    return slider | {"start": int(np.searchsorted(rows, start))}


def _point(evaluation: Evaluation, name: str, threshold: float, *, at: int, deferred: Tensor) -> Point:
    """The chosen point; ``at`` is its row of the curve."""
    point = evaluation.first.scores[evaluation.score].held_out.get(name)
    if point is None or point.threshold != threshold:
        # The evaluation did not know this threshold.
        row, share = evaluation.curve.iloc[at], float(deferred.double().mean())
        quality, cost, speedup = (float(row[column]) for column in (evaluation.metric, "flops", "speedup"))
        point = Point(threshold, share, quality, cost=cost, speedup=speedup)
    return point


def _rates(evaluation: Evaluation, name: str, rows: Tensor, *, deferred: Tensor) -> dict[str, Any]:
    """Shares of right answers and of deferred inputs in some rows."""
    assert evaluation.labels is not None
    label, swift, super_ = (column[rows] for column in evaluation.labels)
    answers = {"swift": swift, "super": super_, "pair": torch.where(deferred[rows], super_, swift)}
    right = {who: float((answer == label).double().mean()) for who, answer in answers.items()}
    return {"name": name, "number": len(label), **right, "deferred": float(deferred[rows].double().mean())}


def _classes(evaluation: Evaluation, deferred: Tensor) -> list[dict[str, Any]]:
    """The rates of each class."""
    names = evaluation.label_names
    if evaluation.labels is None or not names or len(names) > _MAX_CLASSES:
        return []
    rows = [(name, (evaluation.labels[0] == i).nonzero().squeeze(1)) for i, name in enumerate(names)]
    return [_rates(evaluation, name, part, deferred=deferred) for name, part in rows if len(part)]


def _lengths(evaluation: Evaluation, deferred: Tensor) -> list[dict[str, Any]]:
    """The rates by quarters of the input's length."""
    if evaluation.labels is None or "swift_tokens" not in evaluation.frame:
        return []
    tokens = evaluation.column("swift_tokens")
    edges = sorted({int(v) for v in tokens.double().quantile(torch.tensor([0, 0.25, 0.5, 0.75, 1]).double())})
    rates = []
    for low, high in pairwise(edges):
        last = high if high == edges[-1] else high - 1
        rows = ((tokens >= low) & (tokens <= last)).nonzero().squeeze(1)
        if len(rows):
            rates.append(_rates(evaluation, f"{low} to {last} tokens", rows, deferred=deferred))
    return rates


def _texts(evaluation: Evaluation, chosen: Tensor, order: Tensor) -> dict[str, Any]:
    """Some inputs, those first whose ``order`` is largest."""
    rows = chosen.nonzero().squeeze(1)
    rows = rows[order[rows].argsort(descending=True, stable=True)]
    shown = []
    for row in rows[:_MAX_TEXTS].tolist():
        example = evaluation.frame.iloc[row]
        text = str(example.get("input", f"row {example['id']}"))
        if (more := len(text) - _MAX_CHARACTERS) > 0:
            text = f"{text[:_MAX_CHARACTERS]} … and {more} characters more"
        answers = {
            who: str(example.get(f"{who}_text", _named(evaluation, example.get(f"{who}_prediction"))))
            for who in ("swift", "super")
        }
        label = _named(evaluation, example.get("label"))
        score = float(evaluation.routed[row])
        shown.append({"id": int(example["id"]), "text": text, "score": score, "label": label, **answers})
    return {"number": len(rows), "shown": shown}


def _named(evaluation: Evaluation, value: Any) -> str:
    """The name of a class; other values as they are."""
    if value is None:
        return ""
    names = evaluation.label_names
    return names[int(value)] if isinstance(value, int | np.integer) and 0 <= value < len(names) else f"{value}"
