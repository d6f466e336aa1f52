"""Which named threshold is a good default: what each keeps and saves on data that did not choose it.

    python benchmarks/quality/default_point.py FOLDER

FOLDER holds the answers of Swifts and Supers that `ablate.py --out FOLDER` leaves. Thresholds of the score `router` are
chosen on each pair's routing slice and used on its evaluation set. The oracle picks the cheapest threshold within half
a point of the Super on the evaluation set itself: no rule that sees only the slice can be expected to do better.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from ablate_cells import Run, runs_in
from ablate_setups import SETUPS
from common import write_result

from elang.evaluation.pair import BY_QUALITY, HALF_POINT, choose_thresholds, pair_curves
from elang.method.curve.points import OperatingCurve, Point
from elang.method.curve.reading import at_drop, point_at
from elang.method.quality.registry import QUALITIES

SCORE = "router"
ORACLE = "oracle: cheapest within half a point"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder, start = parser.parse_args().folder, time.perf_counter()
    rows = [row for run in runs_in(folder) for row in points_of(run)]
    if not rows:
        raise SystemExit(f"'{folder}' has no answers of a Swift and its Super; `ablate.py --out {folder}` makes them.")
    groups: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["task"]][row["rule"]].append(row)
    for row in rows:
        groups["all"][row["rule"]].append(row)
    figures: dict[str, Any] = {"score": SCORE, "pairs": len(groups["all"][ORACLE])}
    figures["tasks"] = {
        task: {rule: figures_of_rule(some) for rule, some in rules.items()} for task, rules in groups.items()
    }
    for task, rules in figures["tasks"].items():
        for rule, found in rules.items():
            print(
                f"{task:>10}  {rule:<37} {found['speedup']:5.2f}x  {found['to the Super']:+.2f} points (worst "
                f"{found['worst']:+.2f})  within half a point {found['within half a point']:.0%}  "
                f"dearer {found['dearer than the Super']}, "
                f"all deferred {found['everything deferred']}, of {found['pairs']}"
            )
    write_result("default_point", figures | {"seconds": round(time.perf_counter() - start)}, ("torch",))


def points_of(run: Run) -> list[dict[str, Any]]:
    """A pair's figures on the evaluation set at each rule's threshold."""
    quality = QUALITIES[SETUPS[run.task].metric](run.own["routing_logits"].shape[1])
    chosen = choose_thresholds(run.answers("routing"), quality, "routing slice")[SCORE]
    curve = pair_curves(run.dev, quality)[SCORE]
    found = {rule: point_at(curve, float(chosen[rule]["threshold"])) for rule in BY_QUALITY}
    found[ORACLE] = curve[at_drop(curve, torch.full_like(curve.quality, HALF_POINT))]
    return [{"task": run.task, "rule": rule} | figures_of(point, curve) for rule, point in found.items()]


def figures_of(point: Point, curve: OperatingCurve) -> dict[str, float]:
    points = 100 * (point.quality - float(curve.quality[-1]))
    return {"speedup": point.speedup, "points": points, "deferred": point.deferred_share}


def figures_of_rule(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What a rule keeps and saves over several pairs."""
    points = [row["points"] for row in rows]
    return {
        "pairs": len(rows),
        "speedup": statistics.fmean(row["speedup"] for row in rows),
        "to the Super": statistics.fmean(points),
        "worst": min(points),
        "within half a point": statistics.fmean(p >= -100 * HALF_POINT - 1e-9 for p in points),
        "dearer than the Super": sum(row["speedup"] < 1 for row in rows),
        "everything deferred": sum(row["deferred"] == 1 for row in rows),
    }


if __name__ == "__main__":
    main()
