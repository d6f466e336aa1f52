"""What `elang monitor` writes: the numbers, a figure of the intervals over time, and a page."""

import base64
import json
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from elang.evaluation.report.figures import new_axes, plain_texts
from elang.evaluation.report.watch_words import HEAD, answer, notes, table
from elang.evaluation.watching import MEANINGS, Watched
from elang.files import plain, write_atomically
from elang.notices import write_made

FILES = ("watch.json", "watch.html", "watch.png", "made.json")
_COLORS = {"holds": "#009E73", "broken": "#D55E00", "undecided": "#0072B2", None: "#767676"}


def write_watch(folder: Path, watched: Watched, title: str) -> None:
    """Write ``watch.json``, ``watch.png`` and the page ``watch.html`` into a folder."""
    from jinja2 import Environment, PackageLoader

    write_made(folder)
    plot_watch(folder / "watch.png", watched)
    image = base64.b64encode((folder / "watch.png").read_bytes()).decode()
    environment = Environment(loader=PackageLoader("elang"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    parts = {"head": HEAD, "rows": table(watched), "answer": answer(watched), "notes": notes(watched), "image": image}
    page = environment.get_template("watch.html").render(title=title, watched=watched, **parts)
    for name, text in (
        ("watch.html", page),
        ("watch.json", json.dumps(plain({"format": 1} | asdict(watched)), indent=2) + "\n"),
    ):
        with write_atomically(folder / name) as aside:
            aside.write_text(text, "utf-8")


def plot_watch(path: Path, watched: Watched) -> None:
    """Draw the interval of each mean over time, with what was promised of it."""
    readings = [reading for reading in watched.readings if reading.course]
    with plain_texts():
        figure, axes = new_axes(max(4.5, 4 * len(readings)), 3.6, columns=max(1, len(readings)), sharey=False)
        for axis, reading in zip(axes, readings, strict=False):
            times, low, high = reading.course
            days = [datetime.fromtimestamp(time, timezone.utc) for time in times]
            color = _COLORS[reading.verdict]
            axis.fill_between(days, [100 * v for v in low], [100 * v for v in high], color=color, alpha=0.3)
            if reading.allowed is not None:
                axis.axhline(100 * reading.allowed, color="black", linestyle="--", linewidth=1, label="promised")
            if reading.since is not None:
                since = datetime.fromtimestamp(reading.since, timezone.utc)
                axis.axvline(since, color=_COLORS["broken"], linewidth=1.2, label="broken since about")
            name = MEANINGS.get(reading.kind, "worth of the answers used")  # type: ignore[call-overload]
            axis.set_title(f"{reading.kind}, % of inputs\n{name}", fontsize=9)
            axis.tick_params(axis="x", labelrotation=30, labelsize=7)
            top = max(high[-1], reading.allowed or 0.0, high[len(high) // 4])
            axis.set_ylim(min(0.0, 100 * low[-1]), max(1e-6, 110 * top))
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=7)
        with write_atomically(path) as aside:
            figure.savefig(aside, dpi=130, format="png")
