"""The table of an evaluation in the terminal."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elang.evaluation.report.figures import MAX_DRAWN
from elang.evaluation.summary import JointSummary, OperatingPoint, QualitySummary, Worth
from elang.method.curve.points import Point
from elang.method.scores import BEFORE_DECODER
from elang.terminal import console


def print_summary(summary: JointSummary, folder: Path) -> None:
    """Print a table for every quality, and below them what is known beside."""
    terminal = console(160)

    def line(text: str) -> None:
        terminal.print(text, soft_wrap=True)

    lengths = summary.lengths or {}
    by_length = lengths.get("generated", lengths.get("source"))
    for number, (name, quality) in enumerate(summary.qualities.items()):
        # Areas and differences to the Super are by the first one.
        table = _table(summary, name, by_length, compared=not number and bool(summary.areas))
        if number and len(quality.scores) > MAX_DRAWN:
            line(str(table.title))
        else:
            terminal.print(table)
        points = {} if number else summary.operating_points.get(summary.score, {})
        line(_bottom_line(name, quality, summary.score, points, summary.worth))
    for name, said in (summary.signatures or {}).items():
        if said != name:
            line(f"{name}: {said}")
    if "decoder_share" in lengths:
        line(
            f"An input that is deferred before the Swift's decoder saves {lengths['decoder_share']:.1%} of the Swift's "
            "FLOPs."
        )
    for statement in summary.statements or []:
        for one in _statement_lines(statement):
            line(one)
    for what, times in (summary.latency or {}).items():
        terminal.print(
            f"{what}, {times['tokens']} tokens: {1e3 * times['batch 1']:.2f} ms an input at batch 1, "
            f"{1e3 * times['at best batch']:.3f} ms at batch {times['best batch']}"
        )
    if any(math.isnan(quality.super.cost) for quality in summary.qualities.values()):
        line("What the Super costs is unknown: --model.super_flops says it.")
    for caution in summary.cautions:
        line(f"Caution: {caution}.")
    terminal.print(f"* the score that routes by default. Records, curves and plot are in {folder}/ (see curve.png)")


def _table(summary: JointSummary, name: str, by_length: dict[str, float] | None, compared: bool) -> Any:
    """One metric's table, a row for each score.

    Args:
        summary: The evaluation's.
        name: The metric.
        by_length: Each score's rank correlation with the length of what was generated.
        compared: Show the differences of areas.
    """
    from rich.table import Table

    quality = summary.qualities[name]
    swift, super_ = quality.swift, quality.super
    before = any(score in BEFORE_DECODER for score in quality.scores)
    table = Table(
        title=f"{name} on {quality.num_examples:,} examples of {summary.evaluated_on}: "
        f"Swift {swift.quality:.4f} ({_flops(swift.cost)}), "
        f"Super {super_.quality:.4f} ({_flops(super_.cost)})",
        caption=("by length: rank correlation with the number of generated tokens. " if by_length else "")
        + "area: between random (0) and oracle (1). Held out: threshold chosen on "
        f"{summary.thresholds_from}.\nRead here: least deferral that reaches the Super on this very set; it "
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
    for score, row in quality.scores.items():
        points = [row.held_out.get("parity"), row.held_out.get("99%")]
        points += [row.on_this_set["parity"], row.on_this_set["99%"]]
        mark = "*" if score == summary.score else ""
        length = [_number(by_length.get(score, math.nan), 2)] if by_length else []
        against = [area_difference(summary.areas.get(score, {}))] if compared else []
        table.add_row(score + mark, _number(row.area), *against, *length, *map(_point, points))
    return table


def _statement_lines(statement: dict[str, Any]) -> Iterator[str]:
    """What a threshold promises, and what became of it here."""
    yield f"{statement['name']} ({statement['score']}): {statement['statement']}"
    if statement["same_slice"]:
        yield "  This is the slice that it was chosen on, which says nothing of it."
    elif "verdict" in statement:
        observed, allowed = statement["observed"], statement["allowed"]
        yield f"  Here: {statement['verdict']}, {observed:.3%} where {allowed:.3%} is allowed."
    for warning in statement["warnings"]:
        yield f"  Warning: {warning}."


_AREAS = "less that of *: with its 95% interval (paired bootstrap); = where that holds 0: it may be chance."


def area_difference(area: dict[str, float]) -> str:
    """A score's area against that of the score that routes."""
    if "difference" not in area:
        return ""
    low, high = area["difference_low"], area["difference_high"]
    said = f"{'= ' * (low <= 0 <= high)}{area['difference']:+.3f} ({low:+.2f}, {high:+.2f})"
    return said.replace("0.", ".")


def _to_super(found: dict[str, float], worth: Worth) -> str:
    """A pair's difference to the Super, and whether it may be chance."""
    scale = 100 / worth.largest if worth.largest else 1.0
    difference, low, high = (scale * found[name] for name in ("difference", "low", "high"))
    unit, points = worth.unit.split(",")[0], " points" if worth.largest else ""
    said = f"{unit}: {difference:+.2f}{points} to the Super's, 95% interval {low:+.2f} to {high:+.2f}"
    if low == high == 0:
        return f"{unit}: none differ from the Super's"
    if low <= 0 <= high:
        said += ", which holds 0: neither is shown to be better"
    return said + (f" (McNemar: p = {found['p']:.2g})" if "p" in found else "")


def _bottom_line(
    name: str, quality: QualitySummary, score: str, points: dict[str, OperatingPoint], worth: Worth
) -> str:
    """Say in words what the pair does with the score that routes by default."""
    row, best = quality.scores[score], quality.super.quality
    lines = []
    for point, how, key in (
        (row.held_out.get("parity"), "with the threshold chosen on held-out data", "held out, parity"),
        (row.on_this_set["parity"], "with the threshold read on this very set", "read here, parity"),
    ):
        if point is None:
            continue
        lines.append(
            f"{score}, {how}: {name} {point.quality:.4f} (Super {best:.4f}), {point.deferred_share:.1%} "
            f"deferred, FLOPs speed-up {_times(point.speedup)}"
        )
        if key in points and (difference := points[key].to_super) is not None:
            lines.append(f"  {_to_super(difference, worth)}")
    return "\n".join(lines)


def _point(point: Point | None) -> str:
    if point is None:
        return "-"
    return f"{point.quality:.4f} {point.deferred_share:>6.1%} {_times(point.speedup)}"


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _times(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}x"


def _flops(value: float) -> str:
    return "FLOPs unknown" if math.isnan(value) else f"{value / 1e9:.3g} GFLOPs"
