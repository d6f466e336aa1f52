"""What an evaluation leaves behind: records, curve and summary files, a plot, and a table in the terminal."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import torch

from elang.curve import OperatingCurve
from elang.evaluate import PairAnswers, pair_curves
from elang.manifest import plain
from elang.notices import notice
from elang.outputs import console, written_aside
from elang.quality import Quality
from elang.records import FORMAT
from elang.scores import BEFORE_DECODER
from elang.sequence_scores import TOKEN_SCORES

EVALUATION_FILES = (
    *("records.parquet", "curve.csv", "curve.png", "lengths.png", "summary.json", "elang.json", "made.json"),
)
"""All that an evaluation may write into its folder."""
_MAX_CURVE_POINTS = 20_001
# Scores of generated text are too many to draw, or to print again for a second metric.
_MAX_DRAWN = 16
# What joint records say of the pair themselves, for those who have them alone.
_PAIR = ("worth", "weights", "temperature", "flops_convention")


def write_report(
    folder: Path,
    pairs: dict[str, PairAnswers],
    evaluated: str,
    qualities: list[Quality],
    summary: dict[str, Any],
    label_names: list[str],
) -> None:
    """Write ``records.parquet``, ``curve.csv``, ``curve.png``, for generated texts ``lengths.png``, ``summary.json``.

    Args:
        folder: Made if missing.
        pairs: The answers to each split.
        evaluated: The split that curves are drawn for.
        qualities: The task metrics, the first one is plotted.
        summary: From :class:`elang.JointModule`; the number of points left out of ``curve.csv`` is added.
        label_names: The classes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_pair_records(folder / "records.parquet", pairs, label_names, {name: summary[name] for name in _PAIR})
    curves = {quality.name: pair_curves(pairs[evaluated], quality) for quality in qualities}
    summary["curve_points"] = _write_curves(folder / "curve.csv", curves)
    name = qualities[0].name
    with plain_texts():
        plot_curves(folder / "curve.png", curves[name], summary["qualities"][name], summary["score"])
        if "lengths" in summary:
            plot_lengths(folder / "lengths.png", pairs[evaluated], summary["score"])
    # The last, for where it is, the rest is, too.
    with written_aside(folder / "summary.json") as aside:
        aside.write_text(json.dumps(plain(summary), indent=2) + "\n", "utf-8")


def write_pair_records(
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
        if pair.problem != "sequence":
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


def plot_curves(path: Path, curves: dict[str, OperatingCurve], summary: dict[str, Any], chosen: str) -> None:
    """Draw quality over deferred share and over compute for all scores, with random, oracle and both models."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    drawn, by_area = list(curves), sorted(curves, key=lambda name: -_area(summary, name))
    if len(drawn) > _MAX_DRAWN:
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
        axis.axhline(summary["super"]["quality"], color="black", linewidth=0.8)
        axis.annotate("Super", (1, summary["super"]["quality"]), xytext=(-4, 4), textcoords="offset points", ha="right")
        point = summary["scores"].get(chosen, {}).get("held_out", {}).get("parity")
        if point:
            x0 = point["cost"] / summary["super"]["cost"] if by_cost else point["deferred_share"]
            axis.plot(
                [x0],
                [point["quality"]],
                "o",
                color="black",
                zorder=6,
                label=f"{chosen}: threshold for parity",
            )
        axis.set_xlabel("compute, as a share of the Super's FLOPs" if by_cost else "share deferred to the Super")
        axis.grid(alpha=0.25)
    axes[0].set_ylabel(summary["quality_name"])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(f"Joint inference on {summary['num_examples']:,} examples")
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


def _area(summary: dict[str, Any], score: str) -> float:
    found = float(summary["scores"][score]["area"])
    return -math.inf if math.isnan(found) else found


def plot_lengths(path: Path, answers: PairAnswers, chosen: str, bins: int = 10) -> None:
    """Draw scores over the length of what was generated: what a score follows, and what deferring gains.

    Each is ranked among all inputs, and the ranks' mean is drawn for each tenth of the inputs by length. A score that
    is fair to lengths runs along with the gain.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns: dict[str, Any] = answers.more
    length = columns.get("swift_steps", columns.get("swift_tokens"))
    if length is None:
        return
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
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


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Print the table of every quality."""
    from rich.table import Table

    terminal = console(160)
    lengths = summary.get("lengths", {})
    by_length = lengths.get("generated", lengths.get("source"))
    for number, (name, found) in enumerate(summary["qualities"].items()):
        swift, super_ = found["swift"], found["super"]
        before = any(score in BEFORE_DECODER for score in found["scores"])
        compared = not number and bool(summary.get("areas"))
        table = Table(
            title=f"{name} on {found['num_examples']:,} examples of {summary['evaluated_on']}: "
            f"Swift {swift['quality']:.4f} ({_flops(swift['cost'])}), "
            f"Super {super_['quality']:.4f} ({_flops(super_['cost'])})",
            caption=("by length: rank correlation with the number of generated tokens. " if by_length else "")
            + "area: between random (0) and oracle (1). Held out: threshold chosen on "
            f"{summary['thresholds_from']}.\nRead here: least deferral that reaches the Super on this very set; it "
            "flatters, and is no promise."
            + (f"\n{_AREAS}" * compared)
            + ("\nA score that begins with encoder_ decides before the Swift's decoder runs." * before),
        )
        table.add_column("score")
        table.add_column("area", justify="right")
        if compared:
            table.add_column("less that of *", justify="right", no_wrap=True)
        if by_length:
            table.add_column("by length", justify="right")
        for title in ("held out, parity", "held out, 99%", "read here, parity", "read here, 99%"):
            table.add_column(f"{title}\n{name} / deferred / speed-up", justify="right")
        for score, row in found["scores"].items():
            cells = [row["held_out"].get("parity"), row["held_out"].get("99%")]
            cells += [row["on_this_set"]["parity"], row["on_this_set"]["99%"]]
            mark = "*" if score == summary["score"] else ""
            length = [_number(by_length.get(score, math.nan), 2)] if by_length else []
            against = [said_against(summary["areas"].get(score, {}))] if compared else []
            table.add_row(score + mark, _number(row["area"]), *against, *length, *(_point(cell) for cell in cells))
        if number and len(found["scores"]) > _MAX_DRAWN:
            terminal.print(str(table.title), soft_wrap=True)
        else:
            terminal.print(table)
        to_super = summary.get("operating_points", {}).get(summary["score"], {}) if not number else {}
        terminal.print(_bottom_line(name, found, summary["score"], to_super, summary["worth"]), soft_wrap=True)
    for name, said in summary.get("signatures", {}).items():
        if said != name:
            terminal.print(f"{name}: {said}", soft_wrap=True)
    if "decoder_share" in lengths:
        terminal.print(
            f"An input that is deferred before the Swift's decoder saves {lengths['decoder_share']:.1%} of the Swift's "
            "FLOPs.",
            soft_wrap=True,
        )
    for said in summary.get("statements", []):
        terminal.print(f"{said['name']} ({said['score']}): {said['statement']}", soft_wrap=True)
        if said["same_slice"]:
            terminal.print("  This is the slice that it was chosen on, which says nothing of it.", soft_wrap=True)
        elif "verdict" in said:
            terminal.print(
                f"  Here: {said['verdict']}, {said['observed']:.3%} where {said['allowed']:.3%} is allowed.",
                soft_wrap=True,
            )
        for warning in said["warnings"]:
            terminal.print(f"  Warning: {warning}.", soft_wrap=True)
    for what, found in summary.get("latency", {}).items():
        terminal.print(
            f"{what}, {found['tokens']} tokens: {1e3 * found['batch 1']:.2f} ms an input at batch 1, "
            f"{1e3 * found['at best batch']:.3f} ms at batch {found['best batch']}"
        )
    if any(math.isnan(found["super"]["cost"]) for found in summary["qualities"].values()):
        terminal.print("What the Super costs is unknown: --model.super_flops says it.", soft_wrap=True)
    for said in summary.get("cautions", []):
        terminal.print(f"Caution: {said}.", soft_wrap=True)
    terminal.print(f"* the score that routes by default. Records, curves and plot are in {folder}/ (see curve.png)")


_AREAS = "less that of *: with its 95% interval (paired bootstrap); = where that holds 0: it may be chance."


def said_against(area: dict[str, float]) -> str:
    """A score's area against that of the score that routes."""
    if "difference" not in area:
        return ""
    low, high = area["difference_low"], area["difference_high"]
    said = f"{'= ' * (low <= 0 <= high)}{area['difference']:+.3f} ({low:+.2f}, {high:+.2f})"
    return said.replace("0.", ".")


def _to_super(found: dict[str, float], worth: dict[str, Any]) -> str:
    """A pair's difference to the Super, and whether it may be chance."""
    scale = 100 / worth["largest"] if worth["largest"] else 1.0
    own, low, high = (scale * found[name] for name in ("difference", "low", "high"))
    unit, points = worth["unit"].split(",")[0], " points" if worth["largest"] else ""
    said = f"{unit}: {own:+.2f}{points} to the Super's, 95% interval {low:+.2f} to {high:+.2f}"
    if low == high == 0:
        return f"{unit}: none differ from the Super's"
    if low <= 0 <= high:
        said += ", which holds 0: neither is shown to be better"
    return said + (f" (McNemar: p = {found['p']:.2g})" if "p" in found else "")


def _bottom_line(name: str, found: dict[str, Any], score: str, to_super: dict[str, Any], worth: dict[str, Any]) -> str:
    """Say in words what the pair does with the score that routes by default."""
    row, best = found["scores"][score], found["super"]["quality"]
    lines = []
    for point, how, key in (
        (row["held_out"].get("parity"), "with the threshold chosen on held-out data", "held out, parity"),
        (row["on_this_set"]["parity"], "with the threshold read on this very set", "read here, parity"),
    ):
        if point is not None:
            lines.append(
                f"{score}, {how}: {name} {point['quality']:.4f} (Super {best:.4f}), {point['deferred_share']:.1%} "
                f"deferred, FLOPs speed-up {_times(point['speedup'])}"
            )
            if key in to_super:
                lines.append(f"  {_to_super(to_super[key]['to_super'], worth)}")
    return "\n".join(lines)


def _point(point: dict[str, float] | None) -> str:
    if point is None:
        return "-"
    return f"{point['quality']:.4f} {point['deferred_share']:>6.1%} {_times(point['speedup'])}"


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _times(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}x"


def _flops(value: float) -> str:
    return "FLOPs unknown" if math.isnan(value) else f"{value / 1e9:.3g} GFLOPs"
