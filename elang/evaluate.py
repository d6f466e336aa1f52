"""A pair's answers to one split, every score's curve side by side, and the operating points read off them."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elang.curve import (
    OperatingCurve,
    at_best,
    at_budget,
    at_parity,
    at_share,
    at_threshold,
    operating_curve,
    oracle_score,
    random_curve,
    relative_area,
)
from elang.manifest import threshold_entry
from elang.quality import Quality

FRACTIONS = {"parity": 1.0, "99.5%": 0.995, "99%": 0.99}
ROUTING_SLICE = "routing slice, held out from training"
BUDGETS = {"25% of the FLOPs": 0.25, "50% of the FLOPs": 0.5, "75% of the FLOPs": 0.75}
SHARES = {"defer 10%": 0.1, "defer 20%": 0.2, "defer 30%": 0.3, "defer 50%": 0.5}


@dataclass
class PairAnswers:
    """What Swift and Super answered to the examples of one split, row by row.

    Attributes:
        id: int64 ``(N,)``, ascending.
        key: int64 ``(N,)``.
        label: int64 ``(N,)``.
        swift: The Swift's predictions, int64 ``(N,)``.
        super_: The Super's.
        scores: The Swift's difficulty scores by name, each ``(N,)``; larger is harder.
        swift_flops: float64 ``(N,)``.
        super_flops: float64 ``(N,)``; NaN where a black-box Super's cost is not known.
        more: Further columns that are recorded (logits, token counts).
    """

    id: Tensor
    key: Tensor
    label: Tensor
    swift: Tensor
    super_: Tensor
    scores: dict[str, Tensor]
    swift_flops: Tensor
    super_flops: Tensor
    more: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.id)


def pair_curves(answers: PairAnswers, quality: Quality) -> dict[str, OperatingCurve]:
    """The curve of every score, with ``random`` and ``oracle`` at the end."""
    a = quality.statistics(answers.swift, answers.label)
    b = quality.statistics(answers.super_, answers.label)
    costs = (answers.swift_flops, answers.super_flops)
    found = {name: operating_curve(score, a, b, quality.value, *costs) for name, score in answers.scores.items()}
    found["random"] = random_curve(a, b, quality.value, *costs)
    knows = oracle_score(answers.swift == answers.label, answers.super_ == answers.label)
    found["oracle"] = operating_curve(knows, a, b, quality.value, *costs)
    return found


def choose_thresholds(answers: PairAnswers, quality: Quality, chosen_on: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Choose each score's named thresholds on a held-out slice, for :class:`elang.manifest.Manifest`."""
    chosen: dict[str, dict[str, dict[str, Any]]] = {}
    for name, curve in pair_curves(answers, quality).items():
        if name in ("random", "oracle"):
            continue
        points = {
            key: (
                at_parity(curve, fraction),
                f"least deferral that reaches {fraction:.1%} of the Super's {quality.name}",
            )
            for key, fraction in FRACTIONS.items()
        }
        points |= {
            key: (at_share(curve, share), f"most deferral up to {share:.0%} of the inputs")
            for key, share in SHARES.items()
        }
        chosen[name] = {
            key: threshold_entry(curve[index], rule, chosen_on, len(answers)) for key, (index, rule) in points.items()
        }
    return chosen


def share_thresholds(scores: dict[str, Tensor], chosen_on: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Choose thresholds by deferred share alone, where no Super's answers are at hand."""
    chosen: dict[str, dict[str, dict[str, Any]]] = {}
    for name, score in scores.items():
        blank = torch.zeros(len(score), 1)
        curve = operating_curve(score, blank, blank, lambda sums: torch.full(sums.shape[:-1], math.nan).double())
        chosen[name] = {
            key: threshold_entry(
                curve[at_share(curve, share)],
                f"most deferral up to {share:.0%} of the inputs",
                chosen_on,
                len(score),
            )
            for key, share in SHARES.items()
        }
    return chosen


def summarize(
    answers: PairAnswers,
    quality: Quality,
    thresholds: dict[str, dict[str, dict[str, Any]]],
) -> dict[str, Any]:
    """Read everything off the curves of one evaluation set.

    Args:
        answers: The evaluation set's.
        quality: The task metric.
        thresholds: Chosen elsewhere, as by :func:`choose_thresholds`; reported on this set.

    Returns:
        Plain values: the two models alone, and for each score its area between random and oracle, the points read
        on this very set (``on_this_set``) and what the given thresholds do on it (``held_out``).
    """
    curves = pair_curves(answers, quality)
    random, oracle = curves["random"], curves["oracle"]
    swift_right, super_right = answers.swift == answers.label, answers.super_ == answers.label
    scores: dict[str, Any] = {}
    for name, curve in curves.items():
        points = {key: at_parity(curve, fraction) for key, fraction in FRACTIONS.items()}
        points |= {key: at_share(curve, share) for key, share in SHARES.items()} | {"best": at_best(curve)}
        points |= {
            key: at_budget(curve, share * curve.super_cost)
            for key, share in BUDGETS.items()
            if float(curve.cost[0]) <= share * curve.super_cost
        }
        scores[name] = {
            "area": relative_area(curve, random, oracle),
            "on_this_set": {key: vars(curve[index]) for key, index in points.items()},
            "held_out": {
                key: vars(curve[at_threshold(curve, float(entry["threshold"]))])
                | {"threshold": float(entry["threshold"])}
                for key, entry in thresholds.get(name, {}).items()
            },
        }
    return {
        "num_examples": len(answers),
        "quality_name": quality.name,
        "swift": vars(random[0]),
        "super": {"quality": random[len(random) - 1].quality, "cost": random.super_cost},
        "only_super_right": float((super_right & ~swift_right).double().mean()),
        "only_swift_right": float((swift_right & ~super_right).double().mean()),
        "scores": scores,
    }


def share_near_threshold(score: Tensor, threshold: float, distance: float) -> float:
    """Share of examples whose score is within ``distance`` of a threshold, so whose decision may flip.

    Half precision and batch composition move energies by up to 0.004 (float32: 4e-7).
    """
    return float(((score - threshold).abs() <= distance).double().mean())
