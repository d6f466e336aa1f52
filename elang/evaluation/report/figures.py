"""The figures of an evaluation: ``curve.png`` and ``lengths.png`` in its folder, and those of the page."""

import base64
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elang.evaluation.pair import PairAnswers
from elang.evaluation.report.folder import Evaluation
from elang.evaluation.report.words import default_point, score_rows
from elang.evaluation.summary import JointSummary
from elang.evaluation.units import FLOPS, words_of
from elang.files import write_atomically
from elang.method.bootstrap import curve_interval
from elang.method.curve.points import OperatingCurve
from elang.method.scores import BEFORE_DECODER, TOKEN_SCORES

# Scores of generated text are too many to draw, or to print again for a second metric.
MAX_DRAWN = 16
_BAND_POINTS, _RESAMPLES = 101, 1000
_SHARE = "share deferred to the Super"
_GRAY = "#767676"
_LABELS = {"random": "deferring at random", "oracle": "oracle (knows both answers)"}
COLORS = {
    "free_energy": "#0072B2",
    "softmax_energy": "#56B4E9",
    "max_softmax": "#E69F00",
    "entropy": "#009E73",
    "margin": "#CC79A7",
    "max_logit_pnorm": "#8C6D31",
    "nll": "#6A3D9A",
    "router": "#D55E00",
    "encoder_energy": "#003F6B",
    "encoder_max_softmax": "#9A6A00",
    "encoder_router": "#8F3E00",
    "prompt_router": "#8F3E00",
}


def _cost_label(about: Any) -> str:
    """The label of the axis of costs, by the convention of a summary or of a pair that is evaluated."""
    words = words_of(about.flops_convention)
    return f"{'compute' if words is FLOPS else words.of}, as a share of the Super's {words.of}"


def new_axes(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure, its size in inches, that needs no screen, and its axes with a grid, an array of ``columns``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.25)
    return figure, axes


def plain_texts() -> Any:
    """A context in which a dollar sign in a name is a dollar sign, and does not begin a formula."""
    import matplotlib

    return matplotlib.rc_context({"text.parse_math": False})


def _style(score: str, routing: str) -> dict[str, Any]:
    """How a score's curve is drawn."""
    kind = score if score in COLORS else score.rpartition("_")[0]
    style: dict[str, Any] = {"color": COLORS.get(kind, "#666666"), "linewidth": 1.1}
    if score in BEFORE_DECODER:
        style["linestyle"] = "-."
    if score in ("random", "oracle"):
        style |= {"color": _GRAY, "linestyle": ":" if score == "random" else "--"}
    return style | ({"linewidth": 2.6, "zorder": 5} if score == routing else {})


def plot_curves(path: Path, curves: dict[str, OperatingCurve], about: JointSummary) -> None:
    """Draw quality over deferred share and over compute for all scores, with random, oracle and both models.

    The curves are of the first metric of ``about``.
    """
    summary, routing = about.first, about.score
    labels = _drawn(curves, about)
    known = bool(torch.isfinite(curves["random"].cost).all())
    figure, axes = new_axes(12, 5, columns=2 if known else 1)
    for axis, by_cost in zip(axes, (False, True), strict=False):
        for name, label in labels.items():
            curve = curves[name]
            x = curve.cost / curve.super_cost if by_cost else curve.deferred_share
            # Where everything is deferred no Swift runs, and the line would lead back to the Super's cost.
            end = len(curve) - by_cost
            line = x[:end].numpy(), curve.quality[:end].numpy()
            axis.plot(*line, label=_LABELS.get(label, label), **_style(name, routing))
        swift, super_ = summary.swift, summary.super
        start = (swift.cost / super_.cost if by_cost else 0, swift.quality)
        _mark_models(axis, start, super_.quality)
        if point := summary.scores[routing].point(usual := summary.scores[routing].usual("held out")):
            place = (point.cost / super_.cost if by_cost else point.deferred_share, point.quality)
            axis.plot(*place, "o", color="black", zorder=6, label=f"{routing}: {usual}")
        axis.set_xlabel(_cost_label(about) if by_cost else _SHARE)
    axes[0].set_ylabel(summary.quality_name)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    title = f"{about.task}: " if about.task else ""
    figure.suptitle(f"{title}{summary.quality_name} on {summary.num_examples:,} examples of {about.evaluated_on}")
    _save(figure, path)


def _mark_models(axis: Any, swift: tuple[float, float], super_: float) -> None:
    """Mark both models alone: all is kept or deferred, and costs their own compute, the Super's 1."""
    axis.axhline(super_, color="black", linewidth=0.8)
    place = {"textcoords": "offset points", "zorder": 7}
    for name, marked, offset in (("Swift alone", swift, (8, -4)), ("Super alone", (1, super_), (-4, 6))):
        axis.plot(*marked, "s", color="black", zorder=6)
        axis.annotate(name, marked, xytext=offset, ha="right" if offset[0] < 0 else "left", **place)


def _drawn(curves: dict[str, OperatingCurve], about: JointSummary) -> dict[str, str]:
    """The curves to draw, with their labels: scores that are one row of the table share a line."""
    names, summary, routing = list(curves), about.first, about.score
    if len(names) > MAX_DRAWN:
        # The best of each kind; the table has them all.
        areas = {name: summary.scores[name].area for name in names}
        by_area = sorted(names, key=lambda name: math.inf if math.isnan(areas[name]) else -areas[name])
        shown = {next((name for name in by_area if name.startswith(kind)), kind) for kind in TOKEN_SCORES}
        shown |= {routing, "router", "encoder_router", "prompt_router", "random", "oracle"}
        names = [name for name in names if name in shown]
    groups: dict[tuple[str, ...], list[str]] = {}
    # A line has the style of its first score, so the one that routes comes first.
    for name, *cells in score_rows(about, default_point(about)):
        if name in names:
            groups.setdefault(tuple(cells), []).append(name)
    labels = {group[0]: " = ".join(group) for group in groups.values()} | {"random": "random", "oracle": "oracle"}
    return {name: labels[name] for name in names if name in labels}


def plot_lengths(path: Path, answers: PairAnswers, routing: str, bins: int = 10) -> None:
    """Draw how scores, and the gain from deferring, depend on the length of what was generated.

    Each is ranked among all inputs, and the mean rank is drawn for each tenth of the inputs by length. The curve of a
    score that is fair to lengths runs beside that of the gain.
    """
    columns: dict[str, Any] = answers.more
    length = columns.get("swift_steps", columns.get("swift_tokens"))
    if length is None:
        return
    figure, (axis,) = new_axes(7, 4.5)
    parts = length.argsort(stable=True).tensor_split(min(bins, len(length)))
    kind = routing.rpartition("_")[0]
    shown = [n for n in answers.scores if n in (routing, "router", "encoder_router") or n.startswith(f"{kind}_")]
    for name in [*shown, "gain"]:
        values = answers.gain if name == "gain" else answers.scores[name]
        rank = values.double().argsort(stable=True).argsort().double() / max(1, len(values) - 1)
        x, y = ([float(column[part].double().mean()) for part in parts] for column in (length, rank))
        style: dict[str, Any] = {"label": name, "linewidth": 1.1}
        if name == "gain":
            style = {"label": "gain from deferring", "color": "black", "linewidth": 2.4}
        axis.plot(x, y, marker=".", **style)
    axis.set_xlabel("tokens generated by the Swift")
    axis.set_ylabel("mean rank among all inputs, 0 to 1")
    axis.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with write_atomically(path) as aside:
        figure.savefig(aside, dpi=130, format="png")


def curve_figure(evaluation: Evaluation, name: str, threshold: float) -> dict[str, Any]:
    """Quality over compute, or over the deferred share if a black-box Super's cost is unknown."""
    figure, (axis,) = new_axes(7.0, 4.2)
    first, metric, routing = evaluation.first, evaluation.metric, evaluation.score
    cost, by_cost = first.super.cost, math.isfinite(first.super.cost) and math.isfinite(first.swift.cost)
    for score in dict.fromkeys(["random", "oracle", "max_softmax", routing]):
        curve = evaluation.curves[evaluation.curves["score"] == score]
        if len(curve):
            # As in `plot_curves`.
            curve = curve.iloc[: len(curve) - by_cost]
            x = curve["flops"] / cost if by_cost else curve["deferred_share"]
            axis.plot(x, curve[metric], label=_LABELS.get(score, score), **_style(score, routing))
    alt = f"{metric} of the pair over {'compute' if by_cost else 'the deferred share'}, with {routing}"
    if evaluation.quality is not None and evaluation.labels is not None:
        label, *answers = evaluation.labels
        swift, super_ = (evaluation.quality.statistics(answer, label) for answer in answers)
        shares, low, high = curve_interval(
            evaluation.routed, swift, super_, value=evaluation.quality.value, points=_BAND_POINTS, times=_RESAMPLES
        )
        curve = evaluation.curve.iloc[: len(evaluation.curve) - by_cost]
        known = shares <= float(curve["deferred_share"].iloc[-1])
        shares, low, high = shares[known], low[known], high[known]
        x = np.interp(shares, curve["deferred_share"], curve["flops"] / cost) if by_cost else shares
        axis.fill_between(x, low, high, color=COLORS.get(routing, "#666666"), alpha=0.15, linewidth=0)
        alt += "; the band is its 95% bootstrap interval"
    _mark_models(axis, (first.swift.cost / cost if by_cost else 0, first.swift.quality), first.super.quality)
    axis.set_xlabel(_cost_label(evaluation.summary) if by_cost else _SHARE)
    axis.set_ylabel(metric)
    figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    # Where data lies in the picture, so that the slider's mark can be put there.
    figure.canvas.draw()
    box = axis.get_window_extent()
    width, height = figure.canvas.get_width_height()
    return {
        "figure": figure,
        "name": "curve",
        "alt": alt,
        "caption": f"{alt}. The mark is at the slider's threshold, at first '{name}'.",
        "x": [box.x0 / width, box.x1 / width, *axis.get_xlim()],
        "y": [box.y0 / height, box.y1 / height, *axis.get_ylim()],
        "by": cost if by_cost else 0,
    }


def score_figure(evaluation: Evaluation, threshold: float) -> dict[str, Any]:
    """Histograms of the score that routes, by what the Super could do for the inputs."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter, SymmetricalLogLocator

    figure, (axis,) = new_axes(7.0, 3.2)
    axis.grid(visible=False)
    score = evaluation.routed.double()
    groups = {"the Super is no better": evaluation.gain <= 0, "the Super is better": evaluation.gain > 0}
    if evaluation.labels is not None:
        right = evaluation.labels[1] == evaluation.labels[0]
        groups = {"the Swift is right": right, "the Swift is wrong": ~right}
    low, high = score.quantile(0.001).item(), score.quantile(0.999).item()
    bins = np.linspace(low, high if high > low else low + 1, 41)
    for (what, rows), color in zip(groups.items(), ("#0072B2", "#D55E00"), strict=True):
        values = score[rows].clamp(bins[0], bins[-1]).numpy()
        axis.hist(values, bins, histtype="stepfilled", alpha=0.55, color=color, label=f"{what} ({len(values):,})")
    alt = f"Histograms of {evaluation.score}: " + " and ".join(groups)
    caption = alt
    if math.isfinite(threshold):
        axis.axvline(threshold, color="black", linewidth=1.2, label="threshold")
        caption += "; the line is the threshold, and inputs to the right of it go to the Super"
    axis.set_yscale("symlog", linthresh=10)
    locator: Any = SymmetricalLogLocator(base=10, linthresh=10, subs=(1, 2, 5))
    if axis.get_ylim()[1] < 10:
        locator = MaxNLocator(integer=True)
    axis.yaxis.set_major_locator(locator)
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set_xlabel(f"{evaluation.score} (larger is harder)")
    axis.set_ylabel("inputs")
    axis.legend(fontsize=9)
    caption += ". The vertical axis is logarithmic from 10."
    return {"figure": figure, "name": "scores", "alt": alt, "caption": caption}


def reliability_figure(evaluation: Evaluation) -> dict[str, Any] | None:
    """How often the Swift is right at each of its confidences."""
    if evaluation.labels is None or "swift_logits" not in evaluation.frame:
        return None
    confidence = evaluation.logits.float().softmax(-1).amax(-1).double()
    right = (evaluation.labels[1] == evaluation.labels[0]).double()
    bins = (confidence * 10).long().clamp_max(9)
    count = torch.bincount(bins, minlength=10)
    filled = count > 0
    x, y = (torch.bincount(bins, weights=v, minlength=10)[filled] / count[filled] for v in (confidence, right))
    weight = count[filled] / len(bins)
    figure, (axis,) = new_axes(4.2, 4.2)
    axis.plot([0, 1], [0, 1], color=_GRAY, linestyle=":")
    axis.plot(x.numpy(), y.numpy(), color="#0072B2", linewidth=1)
    axis.scatter(x.numpy(), y.numpy(), 15 + 150 * weight.numpy(), color="#0072B2")
    axis.set_xlabel("the Swift's largest probability")
    axis.set_ylabel("share of right answers")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    alt = f"Reliability diagram of the Swift; expected calibration error {float(((x - y).abs() * weight).sum()):.3f}"
    caption = (
        f"{alt}, in ten bins of equal width; larger dots have more inputs. On the dotted line the Swift would be right "
        "as often as its probability says."
    )
    return {"figure": figure, "name": "reliability", "alt": alt, "caption": caption}


def keep(drawn: dict[str, Any], beside: Path, stem: str) -> dict[str, Any]:
    """Write a figure as PNG and SVG, and return what the page needs of it."""
    beside.mkdir(parents=True, exist_ok=True)
    figure = drawn.pop("figure")
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in stem)
    for kind in ("png", "svg"):
        data = io.BytesIO()
        figure.savefig(data, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
        with write_atomically(beside / f"{stem}.{kind}") as aside:
            aside.write_bytes(data.getvalue())
    return drawn | {"image": "data:image/svg+xml;base64," + base64.b64encode(data.getvalue()).decode()}
