"""The table of an evaluation in the terminal."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elang.evaluation.report.figures import MAX_DRAWN
from elang.evaluation.summary import JointSummary, Worth
from elang.method.curve.points import Point
from elang.method.scores import BEFORE_DECODER
from elang.terminal import console

_CAPTION = """area: between random (0) and oracle (1). Held out: threshold chosen on {}.
Read here: threshold chosen on this same set, which is optimistic and promises nothing.
1-SE: least deferral within half a point of the Super, or one standard error if that is larger."""
_AREAS = "area minus *: with its 95% interval (paired bootstrap); = if that includes 0, so it may be chance."


def print_summary(summary: JointSummary, folder: Path) -> None:
    """Print a table for every metric, then everything else that was found."""
    terminal = console(160)

    def line(text: str) -> None:
        terminal.print(text, soft_wrap=True)

    for number, (name, quality) in enumerate(summary.qualities.items()):
        table = _table(summary, name, first=number == 0)
        if number and len(quality.scores) > MAX_DRAWN:
            line(str(table.title))
        else:
            terminal.print(table)
        line(_bottom_line(summary, name, first=number == 0))
    for name, signature in (summary.signatures or {}).items():
        if signature != name:
            line(f"{name}: {signature}")
    if summary.lengths and "decoder_share" in summary.lengths:
        line(
            f"An input that is deferred before the Swift's decoder runs saves {summary.lengths['decoder_share']:.1%} "
            "of the Swift's FLOPs."
        )
    for statement in summary.statements or []:
        for text in _statement_lines(statement):
            line(text)
    for what, times in (summary.latency or {}).items():
        terminal.print(
            f"{what}, {times['tokens']} tokens: {1e3 * times['batch 1']:.2f} ms an input at batch 1, "
            f"{1e3 * times['at best batch']:.3f} ms at batch {times['best batch']}"
        )
    if any(math.isnan(quality.super.cost) for quality in summary.qualities.values()):
        line("What the Super costs is unknown: give it with --model.super_flops.")
    for caution in summary.cautions:
        line(f"Caution: {caution}.")
    terminal.print(f"* the score that routes by default. Records, curves and plot are in {folder}/ (see curve.png)")


def _table(summary: JointSummary, name: str, first: bool) -> Any:
    """One metric's table, a row for each score; area differences are shown for the first metric only."""
    from rich.table import Table

    quality, lengths = summary.qualities[name], summary.lengths or {}
    by_length = lengths.get("generated", lengths.get("source"))
    areas = summary.areas if first else {}
    captions = [_CAPTION.format(summary.thresholds_from)]
    if by_length:
        captions.insert(0, "by length: rank correlation with the number of generated tokens.")
    if areas:
        captions.append(_AREAS)
    if any(score in BEFORE_DECODER for score in quality.scores):
        captions.append("A score that begins with encoder_ decides before the Swift's decoder runs.")
    models = []
    for who, alone in (("Swift", quality.swift), ("Super", quality.super)):
        cost = _known(alone.cost / 1e9, "{:.3g} GFLOPs", unknown="FLOPs unknown")
        models.append(f"{who} {alone.quality:.4f} ({cost})")
    title = f"{name} on {quality.num_examples:,} examples of {summary.evaluated_on}: {', '.join(models)}"
    table = Table(title=title, caption="\n".join(captions))
    table.add_column("score")
    table.add_column("area", justify="right")
    if areas:
        table.add_column("area minus *", justify="right", no_wrap=True)
    if by_length:
        table.add_column("by length", justify="right")
    chosen = quality.scores[summary.score]
    points = [chosen.usual("held out"), "held out, 99%", chosen.usual("read here"), "read here, 99%"]
    for point in points:
        table.add_column(f"{point}\n{name} / deferred / speed-up", justify="right")
    for score, row in quality.scores.items():
        cells = [score + "*" * (score == summary.score), _known(row.area, "{:.3f}")]
        if areas:
            cells.append(area_difference(areas.get(score, {})))
        if by_length:
            cells.append(_known(by_length.get(score, math.nan), "{:.2f}"))
        table.add_row(*cells, *(_cell(row.point(point)) for point in points))
    return table


def _statement_lines(statement: dict[str, Any]) -> Iterator[str]:
    """What a threshold promises, and whether it holds here."""
    yield f"{statement['name']} ({statement['score']}): {statement['statement']}"
    if statement["same_slice"]:
        yield "  It was chosen on these examples, so they cannot show whether it holds."
    elif "verdict" in statement:
        observed, allowed = statement["observed"], statement["allowed"]
        yield f"  Here: {statement['verdict']}, {observed:.3%} where {allowed:.3%} is allowed."
    for warning in statement["warnings"]:
        yield f"  Warning: {warning}."


def area_difference(area: dict[str, float]) -> str:
    """A score's area minus that of the score that routes, with its interval; empty if there is none."""
    if "difference" not in area:
        return ""
    low, high = area["difference_low"], area["difference_high"]
    text = f"{'= ' * (low <= 0 <= high)}{area['difference']:+.3f} ({low:+.2f}, {high:+.2f})"
    return re.sub(r"(?<!\d)0\.", ".", text)


def _bottom_line(summary: JointSummary, name: str, first: bool) -> str:
    """What the pair does with the score that routes by default; by the first metric also against the Super."""
    score, quality, lines = summary.score, summary.qualities[name], []
    for where, how in (("held out", "chosen on held-out data"), ("read here", "chosen on this same set")):
        key = quality.scores[score].usual(where)
        if (point := quality.scores[score].point(key)) is None:
            continue
        lines.append(
            f"{score} at '{key.partition(', ')[2]}', {how}: {name} {point.quality:.4f} "
            f"(Super {quality.super.quality:.4f}), {point.deferred_share:.1%} deferred, "
            f"FLOPs speed-up {_known(point.speedup, '{:.2f}x')}"
        )
        compared = summary.operating_points.get(score, {}).get(key)
        if first and compared is not None and compared.to_super is not None:
            lines.append(f"  {_to_super(compared.to_super, summary.worth)}")
    return "\n".join(lines)


def _to_super(difference: dict[str, float], worth: Worth) -> str:
    """A pair's difference from the Super, and whether it may be chance."""
    unit, points = worth.unit.split(",")[0], " points" if worth.largest else ""
    scale = 100 / worth.largest if worth.largest else 1.0
    mean, low, high = (scale * difference[name] for name in ("difference", "low", "high"))
    if low == high == 0:
        return f"{unit}: no answer differs in worth from the Super's"
    text = f"{unit}: {mean:+.2f}{points} from the Super's, 95% interval {low:+.2f} to {high:+.2f}"
    if low <= 0 <= high:
        text += ", which includes 0: neither is shown to be better"
    return text + (f" (McNemar: p = {difference['p']:.2g})" if "p" in difference else "")


def _cell(point: Point | None) -> str:
    if point is None:
        return "-"
    return f"{point.quality:.4f} {point.deferred_share:>6.1%} {_known(point.speedup, '{:.2f}x')}"


def _known(value: float, form: str, unknown: str = "-") -> str:
    return unknown if math.isnan(value) else form.format(value)
