"""Summarizes the answers to an evaluation set: points and areas of the curves, and what limits them."""

from typing import Any

import torch

from elang.evaluation.cautions import (
    allows_the_lead,
    below_allowance,
    cautions,
    length_bias,
    near_threshold,
    repeated,
    saves_nothing,
    wrong_super,
)
from elang.evaluation.labels import always_one, keeps_one, recalls
from elang.evaluation.pair import (
    BY_QUALITY,
    PairAnswers,
    Thresholds,
    allowed_drops,
    check_curves,
    named_points,
    pair_curves,
)
from elang.evaluation.statements import check_statements
from elang.evaluation.summary import (
    Alone,
    EvaluatedPair,
    JointSummary,
    OperatingPoint,
    QualitySummary,
    ScoreSummary,
    Worth,
)
from elang.evaluation.units import FLOPS, CostWords, words_of
from elang.method.bootstrap import Each, compare_areas, lost_to_super
from elang.method.curve.points import OperatingCurve, Point
from elang.method.curve.reading import at_best, at_budget, point_at, relative_area
from elang.method.deferral import route
from elang.method.quality.metric import Quality
from elang.method.quality.texts import signature
from elang.records.manifest import Manifest, known_name
from elang.terminal import Progress, waiting

Curves = dict[Quality, dict[str, OperatingCurve]]
"""By metric the curve of every score, then ``random`` and ``oracle``."""
BUDGETS = (0.25, 0.5, 0.75)
"""Shares of the Super's cost that points stay within."""


def summarize_pair(
    about: EvaluatedPair,
    answers: PairAnswers,
    curves: Curves,
    thresholds: Thresholds,
    label_names: list[str],
    expected: int,
    manifest: Manifest | None,
    rounding: float,
) -> JointSummary:
    """Summarize the answers to an evaluation set.

    Args:
        about: The pair, and how it is evaluated.
        answers: Of the pair.
        curves: Of the answers; the first metric chose the thresholds.
        thresholds: Chosen elsewhere; reported on this set.
        label_names: The classes.
        expected: Size of the evaluation set; fewer examples may have been answered.
        manifest: Its statements are checked.
        rounding: How far a score may be off in the precision of the evaluation.
    """
    qualities, words = list(curves), words_of(about.flops_convention)
    worth = Worth(**answers.kind.worth(qualities[0].name, answers.targets))
    named = thresholds.get(about.score, {})
    denied, limited = cautions(answers, label_names, worth, words)
    denied, circumstances = saves_nothing(thresholds, about.score) + denied, wrong_super(manifest, about)
    if len(answers) < expected:
        circumstances.insert(0, f"only {len(answers)} of {expected} examples of '{about.evaluated_on}' were answered")
    generates, (summaries, areas) = answers.kind.generates, _resampled(answers, curves, thresholds, about.score, words)
    points = operating_points(answers, qualities, summaries[qualities[0].name])
    below = below_allowance(points.get(about.score, {}), named, worth.largest)
    every = below + circumstances + denied
    default = named.get(known_name(named), {}).get("threshold")
    deferred = None if default is None else route(answers.scores[about.score], float(default))
    limited += keeps_one(answers, label_names, deferred)
    limited += allows_the_lead(named, summaries[qualities[0].name]) + repeated(answers.key, answers.unit)
    return JointSummary(
        **vars(about),
        worth=worth,
        qualities=summaries,
        operating_points=points,
        cautions=every + limited,
        denied=len(every),
        denial=next(iter(below + denied), None),
        most_frequent=always_one(answers, label_names, curves),
        recalls=recalls(answers, label_names, deferred),
        areas=areas,
        statements=_checked(manifest, about, answers, largest=worth.largest or 1.0),
        signatures={q.name: signature(q.name) for q in qualities} if generates else None,
        lengths=length_bias(answers) if generates else None,
        allowed_drop=named.get(known_name(named), {}).get("allowed_drop"),
        within_rounding_of_threshold=near_threshold(answers.scores[about.score], named, rounding),
    )


def _checked(
    manifest: Manifest | None, about: EvaluatedPair, answers: PairAnswers, largest: float
) -> list[dict[str, Any]] | None:
    """A manifest's statements compared with the answers, of which none is worth more than the ``largest``."""
    # Thresholds are comparable with scores of the same temperature only.
    if manifest is None or manifest.temperature != about.temperature:
        return None
    return check_statements(
        manifest,
        answers.key,
        answers.scores,
        gain=answers.gain / largest,
        super_sha256=about.weights["super"],
        unit=answers.unit,
        conditions=about.conditions,
    )


def all_curves(answers: PairAnswers, qualities: list[Quality]) -> Curves:
    """The curves of all scores by all metrics, checked."""
    curves = {quality: pair_curves(answers, quality) for quality in qualities}
    for quality, found in curves.items():
        check_curves(answers, quality, found)
    return curves


def _resampled(
    answers: PairAnswers, curves: Curves, thresholds: Thresholds, chosen: str, words: CostWords
) -> tuple[dict[str, QualitySummary], dict[str, dict[str, float]]]:
    """The summary of each metric, and each score's area compared with the ``chosen`` one's; both take long."""
    # The curves of random and oracle are resampled, too.
    number = sum(len(found) for quality, found in curves.items() if quality.whole is None) + len(answers.scores)
    with waiting("computing the intervals of the curves"), Progress(number, "curves", late=True) as progress:
        summaries = {
            q.name: summarize(answers, q, thresholds, found, progress.each, words) for q, found in curves.items()
        }
        return summaries, compare_areas(answers.scores, answers.gain, chosen, each=progress.each)


def summarize(
    answers: PairAnswers,
    quality: Quality,
    thresholds: Thresholds,
    curves: dict[str, OperatingCurve] | None = None,
    each: Each = iter,
    words: CostWords = FLOPS,
) -> QualitySummary:
    """Read the points and areas of one metric's curves, with thresholds chosen elsewhere beside the set's own."""
    curves = curves or all_curves(answers, [quality])[quality]
    random, gain = curves["random"], answers.gain
    scores, allowed = {}, allowed_drops(answers, quality, curves, each)
    for name, curve in curves.items():
        here = {key: curve[index] for key, (index, _) in named_points(curve, quality.name, allowed[name]).items()}
        here["best"] = curve[at_best(curve)]
        for share in BUDGETS:
            if float(curve.cost[0]) <= share * curve.super_cost:
                here[f"{share:.0%} of the {words.of}"] = curve[at_budget(curve, share * curve.super_cost)]
        held_out = {}
        for key, entry in thresholds.get(name, {}).items():
            held_out[key] = point_at(curve, float(entry["threshold"]))
        scores[name] = ScoreSummary(relative_area(curve, random, curves["oracle"]), here, held_out)
    return QualitySummary(
        num_examples=len(answers),
        quality_name=quality.name,
        swift=random[0],
        super=Alone(random[len(random) - 1].quality, random.super_cost),
        only_super_right=float((gain > 0).double().mean()),
        only_swift_right=float((gain < 0).double().mean()),
        scores=scores,
    )


def operating_points(
    answers: PairAnswers, qualities: list[Quality], first: QualitySummary
) -> dict[str, dict[str, OperatingPoint]]:
    """All metrics at the operating points that the first metric chose: for each score those of the table's columns."""
    points: dict[tuple[str, str], Point] = {}
    for score in answers.scores:
        row = first.scores[score]
        points |= {(score, f"held out, {name}"): point for name, point in row.held_out.items() if name in BY_QUALITY}
        points |= {(score, f"read here, {name}"): row.on_this_set[name] for name in BY_QUALITY}
    lost = [answers.gain * ~route(answers.scores[score], point.threshold) for (score, _), point in points.items()]
    result: dict[str, dict[str, OperatingPoint]] = {score: {} for score in answers.scores}
    for ((score, name), point), difference in zip(points.items(), lost_to_super(torch.stack(lost, 1)), strict=True):
        metrics = {q.name: answers.quality_at(q, score, point.threshold) for q in qualities}
        result[score][name] = OperatingPoint(**vars(point), qualities=metrics, to_super=difference)
    return result
