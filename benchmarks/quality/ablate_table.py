"""Puts the answers of ablate.py into tables, with paired bootstrap intervals over examples and seeds."""

import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from elang.method.bootstrap import resamples

sys.path.insert(0, str(Path(__file__).parents[1]))
from ablate_cells import BASELINE, MAIN, Run, areas, best_swifts, cell_of, difference, runs_in, task_of
from ablate_setups import SETUPS, SWIFTS, needs_folds
from common import write_result

# A task is in a table if all Swifts have at least this many seeds in common.
LEAST_SEEDS = 2


def write_table(out: Path, result: str) -> None:
    """Print the tables and write the results file."""
    groups: dict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in runs_in(out):
        groups[run.task, run.swift, run.recipe].append(run)
    figures: dict[str, Any] = {"cells": {}, "tasks": {}, "best Swift": {}, "training cost": {}, "ranks": {}}
    draws = {}
    for (task, swift, recipe), runs in sorted(groups.items(), key=lambda item: order_of(item[0])):
        if task not in draws:
            draws[task] = resamples(len(runs[0].dev))
        plain = groups.get((task, swift, BASELINE[0]), [])
        cell = cell_of(runs, plain, draws[task])
        figures["cells"][f"{task}/{swift}/{recipe}"] = cell
        show(f"{task}/{swift}/{recipe}", cell)
    recipes = sorted({key[2] for key in groups})
    for task in SETUPS:
        for recipe in recipes:
            some = {key[1]: runs for key, runs in groups.items() if key[0] == task and key[2] == recipe}
            if len(some) < len(SWIFTS):
                continue
            plain = {swift: groups[task, swift, BASELINE[0]] for swift in some}
            seeds = set.intersection(*({run.seed for run in runs} for runs in [*some.values(), *plain.values()]))
            if len(seeds) >= LEAST_SEEDS:
                both = [
                    {swift: [run for run in runs if run.seed in seeds] for swift, runs in group.items()}
                    for group in (some, plain)
                ]
                cells = [cell_of(runs, both[1][swift], draws[task]) for swift, runs in both[0].items()]
                figures["tasks"][f"{task}/{recipe}"] = task_of(*both, cells, draws[task]) | {"seeds": sorted(seeds)}
    for recipe in recipes:
        runs = [run for key, some in groups.items() if key[2] == recipe for run in some]
        cells = {name: cell for name, cell in figures["cells"].items() if name.endswith(f"/{recipe}")}
        figures["ranks"][recipe] = ranks([cell["scores"] for cell in cells.values()])
        figures["training cost"][recipe] = cost_of(recipe, cells, figures["cells"], out)
        figures["best Swift"][recipe] = {
            f"{score}, {point}": best_swifts(runs, score, point) for score in MAIN for point in ("parity", "99%")
        }
        for name, best in figures["best Swift"][recipe].items():
            said = ", ".join(
                f"{task} {t['speedup']:.2f}x ({100 * t['to the Super']:+.1f}; {'/'.join(t['swifts'])})"
                for task, t in best["tasks"].items()
            )
            print(f"{recipe}, {name}: mean of ratios {best['mean of ratios']:.2f}: {said}")
    print_tasks(figures["tasks"])
    figures["margin"] = margin_gain(groups, draws)
    made = json.loads((out / "made.json").read_text("utf-8")) if (out / "made.json").exists() else None
    write_result(result, rounded(figures), ("torch", "lightning", "transformers"), made)


def margin_gain(groups: dict[tuple[str, str, str], list[Run]], draws: dict[str, Any]) -> dict[str, Any]:
    """What the margin adds to distillation, task by task: areas of `distil-margin` minus those of `distil`."""
    gains: dict[str, Any] = {}
    for task, weights in draws.items():
        runs = {
            recipe: {
                (run.swift, run.seed): run for key, some in groups.items() if key[::2] == (task, recipe) for run in some
            }
            for recipe in ("distil", "distil-margin")
        }
        both = sorted(runs["distil"].keys() & runs["distil-margin"].keys())
        for score in ("router", "free_energy") if both else ():
            theirs, ours = (areas([some[key] for key in both], score, weights) for some in runs.values())
            gain = difference(ours, theirs)
            gains[f"{task}, {score}"] = {"without": float(theirs[:, 0].mean()), "with": float(ours[:, 0].mean())} | gain
            print(f"margin, {task}, {score}: {gain['mean']:+.3f} ({gain['low']:+.3f}, {gain['high']:+.3f})")
    return gains


def print_tasks(tasks: dict[str, Any]) -> None:
    """One line for each task and recipe, for the documentation."""
    print("| task, recipe | Swift | Super | area, max_softmax | area, router | to plain max_softmax | read here, 99% |")
    print("|---|---|---|---|---|---|---|")
    for name, found in tasks.items():
        simple, router = found["scores"]["max_softmax"], found["scores"]["router"]
        against = router["against plain max_softmax"]
        print(
            f"| {name} | {100 * found['swift']:.1f} | {100 * found['super']:.1f} | {simple['area']:.3f} | "
            f"{router['area']:.3f} | {against['mean']:+.3f} ({against['low']:+.2f}, {against['high']:+.2f}) | "
            f"{router['on_this_set, 99%']['speedup']:.2f}x |"
        )


def cost_of(recipe: str, cells: dict[str, Any], every: dict[str, Any], out: Path) -> dict[str, dict[str, float]]:
    """Minutes of training, and against plain fine-tuning.

    While other runs share the machine; without the Super's training and its answers.
    """
    seconds = {name.rpartition("/")[0]: cell["seconds"] for name, cell in cells.items()}
    plain = {name: every.get(f"{name}/plain", {}).get("seconds", math.nan) for name in seconds}
    for name in seconds:
        # Including the jobs that it needs.
        if recipe == "gatekeeper":
            seconds[name] += plain[name]
        if needs_folds(recipe):
            task, swift = name.split("/")
            parts = {path: float(np.load(path)["seconds"]) for path in out.glob(f"fold-{task}-*-{swift}-*.npz")}
            seconds[name] += sum(parts.values()) / max(1, len({path.stem.split("-")[2] for path in parts}))
    return {
        "minutes": {name: value / 60 for name, value in seconds.items()},
        "against plain": {name: value / plain[name] for name, value in seconds.items()},
    }


def rounded(value: Any) -> Any:
    """Five significant digits are enough, and a file a third as long."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def ranks(cells: list[dict[str, Any]]) -> dict[str, float]:
    """Each score's mean rank by area, 1 being the best, over tasks and Swifts."""
    names = [name for name in cells[0] if all(name in cell for cell in cells)]
    found = dict.fromkeys(names, 0.0)
    for cell in cells:
        values = [cell[name]["area"] for name in names]
        for name in names:
            own = cell[name]["area"]
            # Equal areas share a rank.
            found[name] += 1 + sum(v > own + 1e-9 for v in values) + (sum(abs(v - own) <= 1e-9 for v in values) - 1) / 2
    return {name: value / len(cells) for name, value in found.items()}


def order_of(key: tuple[str, str, str]) -> tuple[int, int, str]:
    return list(SETUPS).index(key[0]), list(SWIFTS).index(key[1]), key[2]


def show(name: str, cell: dict[str, Any]) -> None:
    print(f"{name}: Swift {100 * cell['swift']:.1f}, Super {100 * cell['super']:.1f}, {cell['seconds']:.0f} s")
    for score in ("max_softmax", "free_energy", "router"):
        found = cell["scores"].get(score)
        if found is None:
            continue
        line = f"    {score:12} area {found['area']:.3f}"
        if against := found.get("against plain max_softmax"):
            line += f" ({against['mean']:+.3f}, {against['low']:+.3f} to {against['high']:+.3f})"
        for point in ("held_out, parity", "on_this_set, parity", "on_this_set, 99%"):
            part = found[point]
            line += f"; {point} {part['speedup']:.2f}x {100 * part['to the Super']:+.1f}"
        print(line)
