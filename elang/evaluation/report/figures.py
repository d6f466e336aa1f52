"""The figures of an evaluation: those in its folder, and those of the page."""

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elang.evaluation.pair import PairAnswers
from elang.evaluation.report.folder import Evaluation
from elang.evaluation.summary import QualitySummary
from elang.files import written_aside
from elang.method.bootstrap import curve_interval
from elang.method.curve.points import OperatingCurve
from elang.method.scores import BEFORE_DECODER, TOKEN_SCORES

# Scores of generated text are too many to draw, or to print again for a second metric.
MAX_DRAWN = 16
_BAND_POINTS, _RESAMPLES = 101, 1000
COLORS = {
    "free_energy": "#0072B2",
    "softmax_energy": "#56B4E9",
    "max_softmax": "#E69F00",
    "entropy": "#009E73",
    "margin": "#CC79A7",
    "max_logit_pnorm": "#8C6D31",
    "nll": "#CC79A7",
    "router": "#D55E00",
    "encoder_energy": "#003F6B",
    "encoder_max_softmax": "#9A6A00",
    "encoder_router": "#8F3E00",
}


def new_figure(width: float, height: float) -> Any:
    """An empty figure, its size in inches, that needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_curves(path: Path, curves: dict[str, OperatingCurve], summary: QualitySummary, chosen: str) -> None:
    """Draw quality over deferred share and over compute for all scores, with random, oracle and both models."""
    figure = new_figure(12, 5)
    drawn, by_area = list(curves), sorted(curves, key=lambda name: -_area(summary, name))
    if len(drawn) > MAX_DRAWN:
        # The best of each kind; the table has them all.
        always = {chosen, "router", "encoder_router", "random", "oracle"}
        best = {next(n for n in by_area if n.startswith(kind)) for kind in TOKEN_SCORES}
        drawn = [name for name in drawn if name in always | best]
    # Of equal curves one line would hide the other: they share it, under the name of the one that routes.
    groups: list[list[str]] = []
    for name in sorted(drawn, key=lambda name: name != chosen):
        same = next((group for group in groups if _alike(curves[group[0]], curves[name])), None)
        groups.append([name]) if same is None else same.append(name)
    labels = {group[0]: " = ".join(group) for group in sorted(groups, key=lambda group: drawn.index(group[0]))}
    known = bool(torch.isfinite(curves["random"].cost).all())
    axes = figure.subplots(1, 2 if known else 1, sharey=True, squeeze=False)[0]
    for axis, by_cost in zip(axes, (False, True), strict=False):
        for name in labels:
            curve = curves[name]
            x = curve.cost / curve.super_cost if by_cost else curve.deferred_share
            kind = name if name in COLORS else name.rpartition("_")[0]
            style: dict[str, Any] = {"color": COLORS.get(kind, "#666666"), "linewidth": 1.1, "label": labels[name]}
            if name in BEFORE_DECODER:
                style["linestyle"] = "-."
            if name in ("random", "oracle"):
                style |= {"color": "#888888", "linestyle": ":" if name == "random" else "--"}
            if name == chosen:
                style |= {"linewidth": 2.6, "zorder": 5}
            axis.plot(x.numpy(), curve.quality.numpy(), **style)
        axis.axhline(summary.super.quality, color="black", linewidth=0.8)
        axis.annotate("Super", (1, summary.super.quality), xytext=(-4, 4), textcoords="offset points", ha="right")
        if point := summary.scores[chosen].held_out.get("parity"):
            x0 = point.cost / summary.super.cost if by_cost else point.deferred_share
            axis.plot(
                [x0],
                [point.quality],
                "o",
                color="black",
                zorder=6,
                label=f"{chosen}: threshold for parity",
            )
        axis.set_xlabel("compute, as a share of the Super's FLOPs" if by_cost else "share deferred to the Super")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel(summary.quality_name)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(f"Joint inference on {summary.num_examples:,} examples")
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=130, format="png")


def plain_texts() -> Any:
    """A context in which figures take dollars in names for dollars, not for formulas."""
    import matplotlib

    return matplotlib.rc_context({"text.parse_math": False})


def _alike(one: OperatingCurve, other: OperatingCurve) -> bool:
    pairs = (one.quality, other.quality), (one.cost, other.cost)
    return torch.equal(one.deferred, other.deferred) and all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs
    )


def _area(summary: QualitySummary, score: str) -> float:
    area = summary.scores[score].area
    return -math.inf if math.isnan(area) else area


def plot_lengths(path: Path, answers: PairAnswers, chosen: str, bins: int = 10) -> None:
    """Draw scores over the length of what was generated: what a score follows, and what deferring gains.

    Each is ranked among all inputs, and the ranks' mean is drawn for each tenth of the inputs by length. A score that
    is fair to lengths runs along with the gain.
    """
    columns: dict[str, Any] = answers.more
    length = columns.get("swift_steps", columns.get("swift_tokens"))
    if length is None:
        return
    figure = new_figure(7, 4.5)
    axis = figure.subplots()
    parts = length.argsort(stable=True).tensor_split(min(bins, len(length)))
    kind = chosen.rpartition("_")[0]
    shown = [n for n in answers.scores if n in (chosen, "router", "encoder_router") or n.startswith(f"{kind}_")]
    for name in [*shown, "gain"]:
        values = answers.gain if name == "gain" else answers.scores[name]
        rank = values.double().argsort(stable=True).argsort().double() / max(1, len(values) - 1)
        x, y = ([float(column[part].double().mean()) for part in parts] for column in (length, rank))
        bold = {"color": "black", "linewidth": 2.4} if name == "gain" else {"linewidth": 1.1}
        axis.plot(x, y, marker=".", label="gain from deferring" if name == "gain" else name, **bold)
    axis.set_xlabel("tokens generated by the Swift")
    axis.set_ylabel("mean rank among all inputs, 0 to 1")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=130, format="png")


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
