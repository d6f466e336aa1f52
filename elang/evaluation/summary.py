"""What is read off the curves of one evaluation set."""

from typing import Any

import torch

from elang.evaluation.curves import BUDGETS, FRACTIONS, SHARES, check_curves, pair_curves
from elang.evaluation.pair import PairAnswers
from elang.method.bootstrap import lost_to_super
from elang.method.curve.reading import at_best, at_budget, at_parity, at_share, at_threshold, relative_area
from elang.method.deferral import route
from elang.method.quality.metric import Quality
from elang.method.quality.values import spearman


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
    check_curves(answers, quality, curves)
    random, oracle, gain = curves["random"], curves["oracle"], answers.gain
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
        # In a regression: where it is nearer.
        "only_super_right": float((gain > 0).double().mean()),
        "only_swift_right": float((gain < 0).double().mean()),
        "scores": scores,
    }


def operating_points(
    answers: PairAnswers, qualities: list[Quality], thresholds: dict[str, dict[str, dict[str, Any]]]
) -> dict[str, Any]:
    """All metrics at the same operating points, which the first one chose.

    Args:
        answers: The evaluation set's.
        qualities: Each is scored from scratch at each point.
        thresholds: Chosen elsewhere.

    Returns:
        For each score its points ``held out, <name>`` and ``read here, <name>``, each with its threshold, deferred
        share, cost, speed-up, ``qualities`` and ``to_super``, its difference to the Super as
        :func:`elang.method.bootstrap.lost_to_super` gives it.
    """
    curves = pair_curves(answers, qualities[0])
    found: dict[str, Any] = {}
    for name in answers.scores:
        curve = curves[name]
        points = {
            f"held out, {key}": vars(curve[at_threshold(curve, float(entry["threshold"]))])
            | {"threshold": float(entry["threshold"])}
            for key, entry in thresholds.get(name, {}).items()
            if key in FRACTIONS
        }
        points |= {f"read here, {key}": vars(curve[at_parity(curve, share)]) for key, share in FRACTIONS.items()}
        for point in points.values():
            point["qualities"] = {q.name: answers.quality_at(q, name, point["threshold"]) for q in qualities}
        found[name] = points
    each = [(answers.scores[name], point) for name, points in found.items() for point in points.values()]
    lost = torch.stack([answers.gain * ~route(score, point["threshold"]) for score, point in each], 1)
    for (_, point), difference in zip(each, lost_to_super(lost), strict=True):
        point["to_super"] = difference
    return found


def length_bias(answers: PairAnswers) -> dict[str, Any]:
    """How much each score of generated texts is one of their length, and what the decoder costs.

    Returns:
        ``source`` and ``generated``: for each score its Spearman correlation with the source's tokens and with the
        decoder's steps; ``gain``: the same of what deferring gains, which is what a score should follow;
        ``decoder_share``: the share of the Swift's FLOPs that an input saves which is deferred before the decoder.
    """
    columns: dict[str, Any] = answers.more
    ranked = spearman(0).whole
    assert ranked is not None
    sides = {"source": columns.get("swift_tokens"), "generated": columns.get("swift_steps")}
    found: dict[str, Any] = {
        side: {name: ranked(score.double(), length.double()) for name, score in answers.scores.items()}
        for side, length in sides.items()
        if length is not None
    }
    gain = answers.gain
    found["gain"] = {name: ranked(score.double(), gain) for name, score in answers.scores.items()}
    if answers.early_flops is not None:
        found["decoder_share"] = float(1 - answers.early_flops.sum() / answers.swift_flops.sum())
    return found
