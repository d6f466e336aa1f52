"""Figures of one task, Swift and recipe of the ablation, over seeds, with paired bootstrap intervals."""

import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.evaluation.pair import FRACTIONS, PairAnswers, choose_thresholds, pair_answers
from elang.evaluation.summarize import summarize
from elang.method.bootstrap import gain_area
from elang.method.quality.registry import QUALITIES
from elang.records.table import Records
from elang.tasks.text_task import TextTask

sys.path.insert(0, str(Path(__file__).parents[1]))
from ablate_setups import SETUPS

BASELINE = ("plain", "max_softmax")
INTERVAL = (0.025, 0.975)
# For the other scores only areas are written.
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
        heads = [name for name in own if name.startswith("router")]
        return pair_answers(own, *records, task=TextTask([]), temperature=1.0, heads=heads, targets={})

    @cached_property
    def dev(self) -> PairAnswers:
        """The evaluation set."""
        return self.answers("validation")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Points of all scores, by thresholds of the routing slice and read off the evaluation set."""
        metric = SETUPS[self.task].metric
        quality = QUALITIES[metric](self.own["validation_logits"].shape[1])
        thresholds = choose_thresholds(self.answers("routing"), quality, "routing slice")
        return asdict(summarize(self.dev, quality, thresholds))

    @cached_property
    def routing(self) -> dict[str, Any]:
        """Points of all scores, read off the routing slice itself."""
        quality = QUALITIES[SETUPS[self.task].metric](self.own["routing_logits"].shape[1])
        found: dict[str, Any] = asdict(summarize(self.answers("routing"), quality, {}))["scores"]
        return found

    def routing_speedup(self, score: str, point: str) -> float:
        """What a score's threshold for a share of the Super's quality saves on the routing slice itself."""
        return float(self.routing[score]["on_this_set"][point]["speedup"])


def runs_in(out: Path) -> Iterator[Run]:
    """All pairs that exist."""
    supers = {}
    for path in out.glob("super-*.npz"):
        _, task, seed = path.stem.split("-")
        supers[task, int(seed)] = dict(np.load(path))
    for path in sorted(out.glob("swift-*.npz")):
        _, task, seed, swift, recipe = path.stem.split("-", 4)
        if (task, int(seed)) in supers:
            yield Run(task, swift, recipe, int(seed), dict(np.load(path)), supers[task, int(seed)])


def areas(runs: list[Run], score: str, weights: Tensor) -> Tensor:
    """A score's area by the accuracy gained, by seed and resample, ``(S, 1 + R)``; the first column is the set's."""
    found = []
    for run in runs:
        if score not in run.areas:
            values = gain_area(run.dev.scores[score], run.dev.gain, weights)
            run.areas[score] = torch.cat([gain_area(run.dev.scores[score], run.dev.gain)[None], values])
        found.append(run.areas[score])
    return torch.stack(found)


def difference(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """Mean over seeds, and its interval: both use the same draws of examples; seeds are drawn with replacement."""
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
    reached = [g for g in gaps if g * (1 - deferred + area * deferred) <= area * min(deferred, g + only)]
    gap = max(reached, default=math.nan)
    return {"swift": swift, "super": super_, "only the swift": only, "needed": super_ - gap}


def best_swifts(runs: list[Run], score: str, point: str) -> dict[str, Any]:
    """For each task and seed the Swift that saves most on the routing slice, with its figures on the evaluation set."""
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
