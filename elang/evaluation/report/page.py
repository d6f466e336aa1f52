"""The sections of the page."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.evaluation.report.console import area_difference
from elang.evaluation.report.figures import curve_figure, keep, plain_texts, reliability_figure, score_figure
from elang.evaluation.report.folder import Evaluation
from elang.method.bootstrap import lost_to_super
from elang.method.deferral import route

_MOST_TEXTS, _MOST_CHARACTERS, _MOST_CLASSES = 15, 400, 200
_STEPS = 400  # of the slider


def section(one: Evaluation, label: str, wanted: str | None, beside: Path) -> dict[str, Any]:
    """What the template shows of one evaluation."""
    name, threshold = one.chosen(wanted)
    deferred = route(one.routed, threshold)
    with plain_texts():
        figures = [curve_figure(one, name, threshold), score_figure(one, threshold), reliability_figure(one)]
    drawn = [keep(figure, beside, f"{label}-{figure['name']}") for figure in figures if figure is not None]
    at = one.row_at(threshold)
    steps = np.linspace(0, len(one.curve) - 1, min(len(one.curve), _STEPS)).round().astype(int)
    rows = np.unique([*steps, at])
    curve = one.curve.iloc[rows]
    latency = one.summary.latency or {}
    times = {
        what: (latency["swift"][what], latency["super"][what])
        for what in ("batch 1", "at best batch")
        if {"swift", "super"} <= latency.keys()
    }
    slider = {
        "threshold": [_rounded(v) for v in curve["threshold"]],
        "share": [_rounded(v) for v in curve["deferred_share"]],
        "quality": [_rounded(v) for v in curve[one.quality_name]],
        "flops": [_rounded(v) for v in curve["flops"]],
        "speedup": [_rounded(v) for v in curve["speedup"]],
        "times": times,
        "start": int(np.searchsorted(rows, at)),
        "x": drawn[0]["x"],
        "y": drawn[0]["y"],
        "by": drawn[0]["by"],
    }
    return {
        "label": label,
        "id": "".join(c if c.isalnum() else "-" for c in label),
        "summary": one.summary,
        "found": one.found,
        "quality": one.quality_name,
        "score": one.score,
        "point": _point(one, name, threshold, deferred),
        "figures": drawn,
        "slider": slider,
        "scores": _scores(one),
        "times": [{"name": name, **found} for name, found in latency.items()],
        "classes": _classes(one, deferred),
        "lengths": _lengths(one, deferred),
        "needless": _texts(one, deferred & (one.gain <= 0), one.routed),
        "missed": _texts(one, ~deferred & (one.gain > 0), -one.routed),
        "statements": one.statements,
        "made": one.made,
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _point(one: Evaluation, name: str, threshold: float, deferred: Tensor) -> dict[str, Any]:
    """The chosen point, and how sure its difference to the Super is."""
    row = one.curve.iloc[one.row_at(threshold)]
    found = {
        "name": name,
        "share": float(deferred.double().mean()),
        "quality": float(row[one.quality_name]),
        "speedup": float(row["speedup"]),
        "same_slice": any(s["name"] == name and s["score"] == one.score and s["same_slice"] for s in one.statements),
    }
    # What the pair loses to the Super, by examples that are drawn again.
    return found | lost_to_super((one.gain * ~deferred)[:, None])[0]


def _scores(one: Evaluation) -> list[dict[str, Any]]:
    """Every score's area and points."""
    rows = []
    for name, row in one.found.scores.items():
        points = {"held out, 99%": row.held_out.get("99%"), "read here, parity": row.on_this_set["parity"]}
        against = area_difference(one.summary.areas.get(name, {}))
        rows.append({"name": name, "area": row.area, "against": against, "points": points, "chosen": name == one.score})
    return rows


def _rates(one: Evaluation, rows: Tensor, deferred: Tensor) -> dict[str, Any]:
    assert one.labels is not None
    label, swift, super_ = (column[rows] for column in one.labels)
    pair = torch.where(deferred[rows], super_, swift)
    right = [float((answer == label).double().mean()) for answer in (swift, super_, pair)]
    return {
        "number": len(label),
        "swift": right[0],
        "super": right[1],
        "pair": right[2],
        "deferred": float(deferred[rows].double().mean()),
    }


def _classes(one: Evaluation, deferred: Tensor) -> list[dict[str, Any]]:
    """Right answers and deferrals of each class."""
    if one.labels is None or not one.label_names or len(one.label_names) > _MOST_CLASSES:
        return []
    label = one.labels[0]
    rows = [(name, (label == i).nonzero().squeeze(1)) for i, name in enumerate(one.label_names)]
    return [{"name": name, **_rates(one, found, deferred)} for name, found in rows if len(found)]


def _lengths(one: Evaluation, deferred: Tensor) -> list[dict[str, Any]]:
    """The same by quarters of the input's length."""
    if one.labels is None or "swift_tokens" not in one.frame:
        return []
    tokens = one.column("swift_tokens")
    edges = sorted({int(v) for v in tokens.double().quantile(torch.tensor([0, 0.25, 0.5, 0.75, 1]).double())})
    rows = []
    for low, high in pairwise(edges):
        last = high == edges[-1]
        chosen = ((tokens >= low) & ((tokens < high) | last)).nonzero().squeeze(1)
        if len(chosen):
            rows.append({"name": f"{low} to {high if last else high - 1} tokens", **_rates(one, chosen, deferred)})
    return rows


def _texts(one: Evaluation, chosen: Tensor, order: Tensor) -> dict[str, Any]:
    """Some inputs, the most certain ones first."""
    rows = chosen.nonzero().squeeze(1)
    rows = rows[order[rows].argsort(descending=True, stable=True)]
    shown = []
    for row in rows[:_MOST_TEXTS].tolist():
        found = one.frame.iloc[row]
        text = str(found.get("input", f"row {found['id']}"))
        more = len(text) - _MOST_CHARACTERS
        shown.append(
            {
                "id": int(found["id"]),
                "text": text if more <= 0 else text[:_MOST_CHARACTERS] + f" … and {more} characters more",
                "score": float(one.routed[row]),
                "label": _named(one, found.get("label")),
                "swift": str(found.get("swift_text", _named(one, found.get("swift_prediction")))),
                "super": str(found.get("super_text", _named(one, found.get("super_prediction")))),
            }
        )
    return {"number": len(rows), "shown": shown}


def _named(one: Evaluation, value: Any) -> str:
    if value is None:
        return ""
    whole = isinstance(value, int | np.integer)
    return one.label_names[int(value)] if whole and 0 <= int(value) < len(one.label_names) else f"{value}"
