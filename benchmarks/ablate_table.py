"""Reads what ablate.py left and sets it into tables, with paired bootstrap intervals over examples and seeds."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablate import SETUPS, SWIFTS, needs_folds
from common import write_result
from torch import Tensor

from elang.evaluation.curves import FRACTIONS, choose_thresholds
from elang.evaluation.pair import Heads, PairAnswers, pair_answers
from elang.evaluation.summary import summarize
from elang.method.bootstrap import gain_area, resamples
from elang.method.quality.registry import QUALITIES
from elang.records.table import Records

BASELINE = ("plain", "max_softmax")
INTERVAL = (0.025, 0.975)
# A task is set into a table where all Swifts have so many seeds in common.
LEAST_SEEDS = 2
# Of the other scores only areas are kept.
MAIN = ("max_softmax", "free_energy", "softmax_energy", "router")
# The paper's own speed-ups.
PAPER = {"sst2": 3.5, "rte": 2.0, "cola": 2.2}


@dataclass
class Run:
    """One pair: a Swift, and the Super of the same seed."""

    task: str
    swift: str
    recipe: str
    seed: int
    own: dict[str, np.ndarray]
    super_: dict[str, np.ndarray]
    areas: dict[str, Tensor] = field(default_factory=dict)

    def answers(self, split: str) -> PairAnswers:
        """Both models' answers to a split."""
        own, other = ({k.removeprefix(f"{split}_"): torch.tensor(v) for k, v in x.items() if k.startswith(split)}
                      for x in (self.own, self.super_))  # fmt: skip
        assert torch.equal(own["id"], other["id"])
        records = [
            Records(x["id"], x["logits"].argmax(-1), x["logits"], x["key"], flops=x["flops"].double())
            for x in (own, other)
        ]
        heads = Heads({name: score for name, score in own.items() if name.startswith("router")})
        return pair_answers(own, *records, problem="classification", temperature=1.0, heads=heads, targets={})

    @cached_property
    def dev(self) -> PairAnswers:
        """The evaluation set."""
        return self.answers("validation")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Points of all scores, by thresholds of the routing slice and read off the evaluation set."""
        metric = SETUPS[self.task].metric
        quality = QUALITIES[metric](self.own["validation_logits"].shape[1])  # type: ignore[index]
        thresholds = choose_thresholds(self.answers("routing"), quality, "routing slice")
        return asdict(summarize(self.dev, quality, thresholds))

    @cached_property
    def routing(self) -> dict[str, Any]:
        """Points of all scores, read off the routing slice itself."""
        quality = QUALITIES[SETUPS[self.task].metric](self.own["routing_logits"].shape[1])  # type: ignore[index]
        found: dict[str, Any] = asdict(summarize(self.answers("routing"), quality, {}))["scores"]
        return found

    def routing_speedup(self, score: str, point: str) -> float:
        """What a score's threshold for a share of the Super's quality saves on the routing slice itself."""
        return float(self.routing[score]["on_this_set"][point]["speedup"])


def runs_in(out: Path) -> Iterator[Run]:
    """All pairs that are there."""
    supers = {}
    for path in out.glob("super-*.npz"):
        _, task, seed = path.stem.split("-")
        supers[task, int(seed)] = dict(np.load(path))
    for path in sorted(out.glob("swift-*.npz")):
        _, task, seed, swift, recipe = path.stem.split("-", 4)
        if (task, int(seed)) in supers:
            yield Run(task, swift, recipe, int(seed), dict(np.load(path)), supers[task, int(seed)])


def areas(runs: list[Run], score: str, weights: Tensor) -> Tensor:
    """The area of a score by the accuracy gained, of each seed and resample, ``(S, 1 + R)``; the first is the set's."""
    found = []
    for run in runs:
        if score not in run.areas:
            values = gain_area(run.dev.scores[score], run.dev.gain, weights)
            run.areas[score] = torch.cat([gain_area(run.dev.scores[score], run.dev.gain)[None], values])
        found.append(run.areas[score])
    return torch.stack(found)


def difference(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Mean over seeds, and its interval: examples are drawn as they were for both, seeds with replacement."""
    each = ours - theirs
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(len(each), (each.shape[1] - 1, len(each)), generator=generator)
    means = each[:, 1:].T.gather(1, drawn).mean(1)
    means = means[~means.isnan()]
    low, high = (float(means.quantile(q)) if len(means) else math.nan for q in INTERVAL)
    return {"mean": float(each[:, 0].mean()), "low": low, "high": high}


def mean(values: list[float]) -> float:
    return statistics.fmean(values)


def cell_of(runs: list[Run], plain: list[Run], weights: Tensor) -> dict[str, Any]:
    """One task, Swift and recipe, over its seeds."""
    first = runs[0].summary["scores"]
    names = [name for name in first if name not in ("random", "oracle")]
    found: dict[str, Any] = {
        "seeds": [run.seed for run in runs],
        "seconds": mean([float(r.own["seconds"]) for r in runs]),
    }
    found["swift"] = mean([run.summary["swift"]["quality"] for run in runs])
    found["super"] = mean([run.summary["super"]["quality"] for run in runs])
    base = {run.seed: run for run in plain}
    both = [run for run in runs if run.seed in base]
    reference = areas([base[run.seed] for run in both], BASELINE[1], weights) if both else None
    if runs[0].task in PAPER:
        found["right"] = needed(runs, float(areas(runs, "router", weights)[:, 0].mean()))
    found["scores"] = {}
    for name in names:
        own = areas(runs, name, weights)
        entry: dict[str, Any] = {"area": float(own[:, 0].mean())}
        if reference is not None and (runs[0].recipe, name) != BASELINE:
            entry["against plain max_softmax"] = difference(areas(both, name, weights), reference)
        for where in ("held_out", "on_this_set") if name in MAIN else ():
            for point in FRACTIONS:
                parts = [run.summary["scores"][name][where][point] for run in runs]
                entry[f"{where}, {point}"] = {
                    "deferred": mean([p["deferred_share"] for p in parts]),
                    "speedup": mean([p["speedup"] for p in parts]),
                    "to the Super": mean(
                        [p["quality"] - r.summary["super"]["quality"] for p, r in zip(parts, runs, strict=True)]
                    ),
                }
        found["scores"][name] = entry
    return found


def needed(runs: list[Run], area: float) -> dict[str, float]:
    """Shares of right answers, and what the Swift's would have to be for the paper's speed-up at the Super's quality.

    As the router's ``area`` and the share that only the Swift has right stay. Of a gap g to the Super, deferring d at
    random mends g d; the oracle mends one input in each that it defers, until what is only the Super's is deferred.
    """
    dev = [run.dev for run in runs]
    swift = mean([float((a.swift == a.label).double().mean()) for a in dev])
    super_ = mean([float((a.super_ == a.label).double().mean()) for a in dev])
    only = mean([float((a.gain < 0).double().mean()) for a in dev])
    cost = mean([float(a.swift_flops.mean() / a.super_flops.mean()) for a in dev])
    deferred = 1 / PAPER[runs[0].task] - cost
    gaps = [g / 1e4 for g in range(5000)]
    gap = max(g for g in gaps if g * (1 - deferred + area * deferred) <= area * min(deferred, g + only))
    return {"swift": swift, "super": super_, "only the swift": only, "needed": super_ - gap}


def best_swifts(runs: list[Run], score: str, point: str) -> dict[str, Any]:
    """For each task the Swift that saves most on the routing slice, by seed, and what it does on the evaluation set."""
    by_task: dict[str, dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if score in run.routing:
            by_task[run.task][run.seed].append(run)
    found: dict[str, Any] = {}
    for task, seeds in by_task.items():
        chosen = [max(some, key=lambda run: run.routing_speedup(score, point)) for some in seeds.values()]
        parts = [run.summary["scores"][score]["held_out"][point] for run in chosen]
        costs = [(run.summary["super"]["cost"], part["cost"]) for run, part in zip(chosen, parts, strict=True)]
        found[task] = {
            "swifts": [run.swift for run in chosen],
            "speedup": mean([super_ / cost for super_, cost in costs]),
            "costs": [mean([c[0] for c in costs]), mean([c[1] for c in costs])],
            "to the Super": mean(
                [p["quality"] - r.summary["super"]["quality"] for p, r in zip(parts, chosen, strict=True)]
            ),
            "paper": PAPER.get(task),
        }
    tasks = list(found.values())
    return {
        "tasks": found,
        "mean of ratios": mean([t["speedup"] for t in tasks]),
        "ratio of means": sum(t["costs"][0] for t in tasks) / sum(t["costs"][1] for t in tasks),
    }


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
    made = json.loads((out / "made.json").read_text("utf-8")) if (out / "made.json").exists() else None
    write_result(result, rounded(figures), ("torch", "lightning", "transformers"), made)


def task_of(
    some: dict[str, list[Run]], plain: dict[str, list[Run]], cells: list[dict[str, Any]], weights: Tensor
) -> dict[str, Any]:
    """One task and recipe, over all Swifts: the mean of their cells, areas against plain fine-tuning of each size."""
    found: dict[str, Any] = {name: mean([cell[name] for cell in cells]) for name in ("swift", "super")}
    base = torch.stack([areas(plain[swift], BASELINE[1], weights) for swift in some]).mean(0)
    found["scores"] = {}
    for score in cells[0]["scores"]:
        own = torch.stack([areas(runs, score, weights) for runs in some.values()]).mean(0)
        entry: dict[str, Any] = {"area": float(own[:, 0].mean()), "against plain max_softmax": difference(own, base)}
        for point in (key for key in cells[0]["scores"][score] if ", " in key):
            parts = [cell["scores"][score][point] for cell in cells]
            entry[point] = {name: mean([part[name] for part in parts]) for name in parts[0]}
        found["scores"][score] = entry
    return found


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
        # What has to be there before, too.
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
