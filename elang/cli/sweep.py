"""`elang sweep`: the exact curve of more examples than memory holds."""

import csv
import json
from pathlib import Path
from typing import Any

from elang.data.columns import columns_of
from elang.evaluation.database import Joint
from elang.evaluation.pair import BY_QUALITY, SHARES
from elang.evaluation.report.words import meanings, point_cells
from elang.evaluation.sweep import swept
from elang.evaluation.units import counted_in, words_of
from elang.files import check_folder, files_of, plain, write_atomically
from elang.method.curve.points import Point
from elang.method.quality.registry import QualityName
from elang.method.scores import DEFAULT_SCORE
from elang.notices import write_made
from elang.terminal import Progress, say_table, say_wrapped, waiting, without_repeats


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
    with waiting("reading and checking the records"):
        records = Joint(joint, split, memory)
    metric, scores = records.metric(quality), columns_of(score) or [DEFAULT_SCORE]
    # The first examples come when all are sorted.
    with waiting("sorting the examples"), Progress(len(scores) * records.count, "examples", late=True) as progress:
        curves = {name: swept(records, name, metric, points, progress) for name in scores}
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
        **counted_in(records.convention),
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
    metric, names = summary["quality_name"], [*BY_QUALITY, *SHARES]
    tables = {
        score: [[name, *point_cells(Point(**curve["points"][name]), metric)] for name in names]
        for score, curve in summary["scores"].items()
    }
    # Scores that order all examples alike have equal tables.
    scores, notes = without_repeats([[score, *map(" ".join, table)] for score, table in tables.items()])
    several, rows = len(scores) > 1, []
    for score, *_ in scores:
        found, left_out = without_repeats(tables[score])
        rows += [[*[score if row is found[0] else ""] * several, *row] for row in found]
        notes += [f"{score}: {note}" if several else note for note in left_out]
        area, random = (summary["scores"][score][name] for name in ("area", "random"))
        notes.append(
            f"The mean {metric} of {score} over all deferred shares is {area:.4f}, and {random:.4f} where inputs are "
            "deferred at random."
        )
    head = [*["score"] * several, "threshold", metric, "deferred", "speed-up"]
    title = (
        f"{metric} on {summary['num_examples']:,} examples of {summary['split']}: Swift "
        f"{summary['swift']['quality']:.4f}, Super {summary['super']['quality']:.4f}"
    )
    if not several:
        title += f", by thresholds of {scores[0][0]}"
    notes += meanings([*head, *names], metric=metric, cost=words_of(summary.get("cost", "")).name)
    say_table(title, head, rows, [*notes, "All points are read on these examples, which is optimistic."], 1 + several)
    say_wrapped(f"Curve and summary are in {folder}/")
