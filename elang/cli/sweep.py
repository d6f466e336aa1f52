"""`elang sweep`: the exact curve of more examples than memory holds."""

import csv
import json
from pathlib import Path
from typing import Any

from elang.data.columns import columns_of
from elang.evaluation.database import Joint
from elang.evaluation.pair import BY_QUALITY, SHARES
from elang.evaluation.sweep import swept
from elang.files import check_folder, files_of, plain, write_atomically
from elang.method.quality.registry import QualityName
from elang.method.scores import DEFAULT_SCORE
from elang.notices import write_made
from elang.terminal import console


def sweep(
    joint: list[str],
    output: str = "swept",
    score: list[str] | str | None = None,
    quality: QualityName = "accuracy",
    split: str | None = None,
    memory: str = "2GB",
    points: int = 1001,
) -> None:
    """The exact curve of a pair over joint records in many files, of any size.

    Args:
        joint: Folders that `elang validate` wrote, or their records, with each example once.
        output: Folder for ``summary.json`` and ``curve.csv``, the curve on a grid.
        score: Scores to sweep; by default max_softmax.
        quality: A metric of classes: accuracy, f1, f1_macro or matthews.
        split: By default test, or validation if there is no test.
        memory: How much sorting may use, besides the pieces that pass through; more goes to the disk.
        points: Size of the grid.
    """
    folder = Path(output)
    inputs = [file for path in joint for file in files_of(path)]
    check_folder(folder, inputs, ("curve.csv", "summary.json", "made.json"))
    records = Joint(joint, split, memory)
    metric = records.metric(quality)
    curves = {name: swept(records, name, metric, points=points) for name in columns_of(score) or [DEFAULT_SCORE]}
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / "curve.csv") as aside, aside.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["score", "threshold", "deferred", "deferred_share", quality, "flops", "speedup"])
        for name, curve in curves.items():
            grid = curve.grid
            columns = (grid.threshold, grid.deferred, grid.deferred_share, grid.quality, grid.cost, grid.speedup)
            out.writerows([name, *row] for row in zip(*(column.tolist() for column in columns), strict=True))
    summary = {
        "num_examples": records.count,
        "split": records.split,
        "quality_name": quality,
        "swift": vars(next(iter(curves.values())).grid[0]),
        "super": {"quality": records.qualities(metric)[1], "cost": records.super_cost},
        "scores": {
            name: {"area": c.area, "random": c.random, "points": {key: vars(p) for key, p in c.points.items()}}
            for name, c in curves.items()
        },
    }
    write_made(folder)
    with write_atomically(folder / "summary.json") as aside:
        aside.write_text(json.dumps(plain(summary), indent=2) + "\n", "utf-8")
    _print(summary, folder)


def _print(summary: dict[str, Any], folder: Path) -> None:
    from rich.table import Table

    table = Table(
        title=f"{summary['quality_name']} on {summary['num_examples']:,} examples of {summary['split']}: Swift "
        f"{summary['swift']['quality']:.4f}, Super {summary['super']['quality']:.4f}"
    )
    table.add_column("score")
    for name in ("area (random)", *BY_QUALITY, *SHARES):
        table.add_column(name, justify="right")
    for name, curve in summary["scores"].items():
        points = [curve["points"][key] for key in (*BY_QUALITY, *SHARES)]
        cells = [f"{p['quality']:.4f} {p['deferred_share']:.1%} {p['speedup']:.2f}x" for p in points]
        table.add_row(name, f"{curve['area']:.4f} ({curve['random']:.4f})", *cells)
    terminal = console(140)
    terminal.print(table)
    terminal.print(f"All points are read on these examples. Curve and summary are in {folder}/")
