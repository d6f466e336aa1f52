"""The pictures of an evaluation: its curves, and scores against lengths."""

import math
from pathlib import Path
from typing import Any

import torch

from elang.evaluation.pair import PairAnswers
from elang.evaluation.summary import QualitySummary
from elang.files import written_aside
from elang.method.curve.points import OperatingCurve
from elang.method.scores import BEFORE_DECODER
from elang.method.token_scores import TOKEN_SCORES

# Scores of generated text are too many to draw, or to print again for a second metric.
MAX_DRAWN = 16
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
