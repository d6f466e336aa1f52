"""The table of an evaluation in the terminal."""

import math
from pathlib import Path
from typing import Any

from elang.evaluation.report.plots import MAX_DRAWN
from elang.method.scores import BEFORE_DECODER
from elang.terminal import console


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
        if number and len(found["scores"]) > MAX_DRAWN:
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
