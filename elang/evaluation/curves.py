"""Every score's curve side by side, each checked, and the named thresholds that a held-out slice chooses on them."""

import math
from typing import Any

import torch
from torch import Tensor

from elang.evaluation.pair import PairAnswers
from elang.method.curve.baselines import random_curve, random_rescored_curve
from elang.method.curve.exact import operating_curve, rescored_curve
from elang.method.curve.points import Costs, Groups, OperatingCurve
from elang.method.curve.reading import at_parity, at_share
from elang.method.deferral import oracle_score
from elang.method.quality.metric import Quality
from elang.records.manifest import threshold_entry
from elang.tasks.worth import measure

FRACTIONS = {"parity": 1.0, "99.5%": 0.995, "99%": 0.99}
BUDGETS = {"25% of the FLOPs": 0.25, "50% of the FLOPs": 0.5, "75% of the FLOPs": 0.75}
SHARES = {"defer 10%": 0.1, "defer 20%": 0.2, "defer 30%": 0.3, "defer 50%": 0.5}

Thresholds = dict[str, dict[str, dict[str, Any]]]
"""For each score its thresholds by name, each an entry of :attr:`elang.records.manifest.Manifest.thresholds`."""


def pair_curves(answers: PairAnswers, quality: Quality) -> dict[str, OperatingCurve]:
    """The curve of every score, with ``random`` and ``oracle`` at the end."""
    scores = answers.scores | {"oracle": oracle_score(answers.gain)}
    costs = Costs(answers.swift_flops, answers.super_flops)
    if quality.whole is not None:
        either = (answers.swift, answers.super_, answers.label, quality.whole)
        found = {name: rescored_curve(s, *either, answers.costs(name)) for name, s in scores.items()}
        floor = random_rescored_curve(*either, costs)
    else:
        target = answers.label if quality.target == "label" else answers.targets[quality.target]
        a, b = (quality.statistics(prediction, target) for prediction in (answers.swift, answers.super_))
        groups = None if quality.by_group is None else Groups(answers.targets.get("group"), quality.by_group)
        found = {
            name: operating_curve(s, a, b, quality.value, answers.costs(name), groups) for name, s in scores.items()
        }
        floor = random_curve(a, b, quality.value, costs, groups)
    oracle = found.pop("oracle")
    return found | {"random": floor, "oracle": oracle}


def check_curves(answers: PairAnswers, quality: Quality, curves: dict[str, OperatingCurve]) -> None:
    """Check each curve at both ends and, of the scores, in the middle against the mixed answers scored from scratch.

    Raises:
        RuntimeError: If one differs; nothing that is read off it can be trusted.
    """
    ends = {
        end: measure(quality, found, answers.label, answers.targets)
        for end, found in ((0, answers.swift), (-1, answers.super_))
    }
    for name, curve in curves.items():
        kept, deferred = answers.costs(name).kept_and_deferred
        expected = {
            (quality.name, float(curve.threshold[end])): (float(curve.quality[end]), alone)
            for end, alone in ends.items()
        }
        if not (kept + deferred).isnan().any():
            for end, paid in ((0, kept), (-1, deferred)):
                expected["mean cost", float(curve.threshold[end])] = (float(curve.cost[end]), float(paid.mean()))
        # A metric that is scored anew at each point is so at some points only.
        if name in answers.scores and quality.whole is None:
            middle = len(curve) // 2
            threshold = float(curve.threshold[middle])
            alone = answers.quality_at(quality, name, threshold)
            expected[quality.name, threshold] = (float(curve.quality[middle]), alone)
        for (what, threshold), (said, alone) in expected.items():
            same = math.isclose(said, alone, rel_tol=1e-6, abs_tol=1e-6)
            if not same and not (math.isnan(said) and math.isnan(alone)):
                raise RuntimeError(
                    f"The curve of '{name}' has a {what} of {said} at the threshold {threshold}, where it is {alone}. "
                    "This is a fault of elang; please report it with the records."
                )


def choose_thresholds(answers: PairAnswers, quality: Quality, chosen_on: str) -> Thresholds:
    """Choose each score's named thresholds on a held-out slice."""
    chosen: Thresholds = {}
    for name, curve in pair_curves(answers, quality).items():
        if name in ("random", "oracle"):
            continue
        chosen[name] = {
            key: threshold_entry(
                curve[at_parity(curve, fraction)],
                f"least deferral that reaches {fraction:.1%} of the Super's {quality.name}",
                chosen_on,
                len(answers),
            )
            for key, fraction in FRACTIONS.items()
        } | _by_share(curve, chosen_on)
    return chosen


def share_thresholds(scores: dict[str, Tensor], chosen_on: str) -> Thresholds:
    """Choose thresholds by deferred share alone, where no Super's answers are at hand."""
    chosen: Thresholds = {}
    for name, score in scores.items():
        blank = torch.zeros(len(score), 1)
        curve = operating_curve(score, blank, blank, lambda sums: torch.full(sums.shape[:-1], math.nan).double())
        chosen[name] = _by_share(curve, chosen_on)
    return chosen


def _by_share(curve: OperatingCurve, chosen_on: str) -> dict[str, dict[str, Any]]:
    return {
        key: threshold_entry(
            curve[at_share(curve, share)],
            f"most deferral up to {share:.0%} of the inputs",
            chosen_on,
            curve.num_examples,
        )
        for key, share in SHARES.items()
    }
