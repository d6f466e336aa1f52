"""The figures of the page."""

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elang.evaluation.report.folder import Evaluation
from elang.evaluation.report.plots import COLORS, new_figure
from elang.files import written_aside
from elang.method.bootstrap import curve_interval

STEPS = 400
_BAND_POINTS, _RESAMPLES = 101, 1000


def curve_figure(one: Evaluation, name: str, threshold: float) -> dict[str, Any]:
    """Quality over compute, or over the deferred share where a black-box Super's cost is not known."""
    figure = new_figure(7.0, 4.2)
    axis = figure.subplots()
    swift, super_ = one.found.swift, one.found.super
    cost, by_cost = super_.cost, math.isfinite(super_.cost) and math.isfinite(swift.cost)
    for score in dict.fromkeys(["random", "oracle", "max_softmax", one.score]):
        curve = one.curves[one.curves["score"] == score]
        if not len(curve):
            continue
        x = curve["flops"] / cost if by_cost else curve["deferred_share"]
        style: dict[str, Any] = {"color": COLORS.get(score, "#666666"), "linewidth": 1.2, "label": score}
        if score in ("random", "oracle"):
            style |= {"color": "#767676", "linestyle": ":" if score == "random" else "--"}
        if score == one.score:
            style |= {"linewidth": 2.6, "zorder": 5}
        axis.plot(x, curve[one.quality_name], **style)
    said = f"{one.quality_name} of the pair over {'compute' if by_cost else 'the deferred share'}, with {one.score}"
    if one.quality is not None and one.labels is not None:
        a, b = (one.quality.statistics(answer, one.labels[0]) for answer in one.labels[1:])
        shares, low, high = curve_interval(one.routed, a, b, one.quality.value, _BAND_POINTS, _RESAMPLES)
        own = one.curve
        x = np.interp(shares, own["deferred_share"], own["flops"] / cost) if by_cost else shares
        axis.fill_between(x, low, high, color=COLORS.get(one.score, "#666666"), alpha=0.15, linewidth=0)
        said += "; the band is its 95% bootstrap interval"
    axis.axhline(super_.quality, color="black", linewidth=0.8)
    axis.annotate("Super", (0.005, super_.quality), xycoords=("axes fraction", "data"), va="bottom")
    place = (swift.cost / cost if by_cost else 0, swift.quality)
    axis.plot(*place, "s", color="black")
    axis.annotate("Swift", place, xytext=(6, -12), textcoords="offset points")
    axis.set_xlabel("compute, as a share of the Super's FLOPs" if by_cost else "share deferred to the Super")
    axis.set_ylabel(one.quality_name)
    axis.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    # Where data lies in the picture, so that the slider's mark can be put there.
    figure.canvas.draw()
    box = axis.get_window_extent()
    width, height = figure.canvas.get_width_height()
    (x0, x1), (y0, y1) = axis.get_xlim(), axis.get_ylim()
    return {
        "figure": figure,
        "name": "curve",
        "alt": said,
        "caption": f"{said}. The mark is at the slider's threshold, at first '{name}'.",
        "x": [box.x0 / width, box.x1 / width, x0, x1],
        "y": [box.y0 / height, box.y1 / height, y0, y1],
        "by": cost if by_cost else 0,
    }


def score_figure(one: Evaluation, threshold: float) -> dict[str, Any]:
    """The scores of inputs by what the Super could do for them."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter, SymmetricalLogLocator

    figure = new_figure(7.0, 3.2)
    axis = figure.subplots()
    score = one.routed.double()
    if one.labels is not None:
        right = one.labels[1] == one.labels[0]
        groups = {"the Swift is right": right, "the Swift is wrong": ~right}
    else:
        groups = {"the Super is no better": one.gain <= 0, "the Super is better": one.gain > 0}
    low, high = score.quantile(0.001).item(), score.quantile(0.999).item()
    bins = np.linspace(low, high if high > low else low + 1, 41)
    for (what, rows), color in zip(groups.items(), ("#0072B2", "#D55E00"), strict=True):
        values = score[rows].clamp(bins[0], bins[-1]).numpy()
        axis.hist(values, bins, histtype="stepfilled", alpha=0.55, color=color, label=f"{what} ({len(values):,})")
    if math.isfinite(threshold):
        axis.axvline(threshold, color="black", linewidth=1.2, label="threshold")
    axis.set_yscale("symlog", linthresh=10)
    few = axis.get_ylim()[1] < 10
    wanted = MaxNLocator(integer=True) if few else SymmetricalLogLocator(base=10, linthresh=10, subs=(1, 2, 5))
    axis.yaxis.set_major_locator(wanted)
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set_xlabel(f"{one.score} (larger is harder)")
    axis.set_ylabel("inputs")
    axis.legend(fontsize=9)
    said = f"Histograms of {one.score}: " + " and ".join(groups)
    line = "; the line is the threshold" if math.isfinite(threshold) else ""
    caption = f"{said}{line}. The vertical axis is logarithmic from 10."
    return {"figure": figure, "name": "scores", "alt": said, "caption": caption}


def reliability_figure(one: Evaluation) -> dict[str, Any] | None:
    """How often the Swift is right where it says that it is so sure."""
    if one.labels is None or "swift_logits" not in one.frame:
        return None
    probability = one.logits.float().softmax(-1)
    sure = probability.amax(-1).double()
    right = (one.labels[1] == one.labels[0]).double()
    bins = (sure * 10).long().clamp_max(9)
    count = torch.bincount(bins, minlength=10)
    filled = count > 0
    said, true = (torch.bincount(bins, weights=v, minlength=10)[filled] / count[filled] for v in (sure, right))
    error = float(((said - true).abs() * count[filled]).sum() / len(sure))
    figure = new_figure(4.2, 4.2)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="#767676", linestyle=":")
    axis.plot(said.numpy(), true.numpy(), color="#0072B2", linewidth=1)
    axis.scatter(said.numpy(), true.numpy(), 15 + 150 * (count[filled] / len(sure)).numpy(), color="#0072B2")
    axis.set_xlabel("the Swift's largest probability")
    axis.set_ylabel("share of right answers")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.25)
    alt = f"Reliability diagram of the Swift; expected calibration error {error:.3f}"
    return {
        "figure": figure,
        "name": "reliability",
        "alt": alt,
        "caption": f"{alt}, in ten bins of equal width; larger dots have more inputs.",
    }


def keep(drawn: dict[str, Any], beside: Path, stem: str) -> dict[str, Any]:
    """Write a figure as PNG and SVG, and as what the page has in it."""
    beside.mkdir(parents=True, exist_ok=True)
    figure = drawn.pop("figure")
    for kind in ("png", "svg"):
        data = io.BytesIO()
        figure.savefig(data, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
        with written_aside(beside / f"{''.join(c if c.isalnum() or c in '-_' else '-' for c in stem)}.{kind}") as aside:
            aside.write_bytes(data.getvalue())
    drawn["image"] = "data:image/svg+xml;base64," + base64.b64encode(data.getvalue()).decode()
    return drawn
