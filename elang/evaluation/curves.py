"""Every score's curve side by side, each checked against the mixed answers scored from scratch."""

import math

from elang.evaluation.pair import PairAnswers
from elang.method.curve.baselines import random_curve, random_rescored_curve
from elang.method.curve.exact import operating_curve, rescored_curve
from elang.method.curve.points import Costs, Groups, OperatingCurve
from elang.method.deferral import oracle_score
from elang.method.quality.metric import Quality
from elang.tasks.worth import measure


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
