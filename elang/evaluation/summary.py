"""An evaluation's summary: what is read off the curves of one evaluation set, as it is written to ``summary.json``."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from elang.evaluation.cautions import below_allowance, cautions, length_bias, near_threshold, repeated, saves_nothing
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
from elang.method.bootstrap import Each, compare_areas, lost_to_super
from elang.method.curve.points import OperatingCurve, Point
from elang.method.curve.reading import at_best, at_budget, point_at, relative_area
from elang.method.deferral import route
from elang.method.quality.metric import Quality
from elang.method.quality.texts import signature
from elang.records.manifest import Manifest, known_name
from elang.records.table import FORMAT
from elang.terminal import Progress

Curves = dict[Quality, dict[str, OperatingCurve]]
"""By metric the curve of every score, then ``random`` and ``oracle``."""
BUDGETS = {"25% of the FLOPs": 0.25, "50% of the FLOPs": 0.5, "75% of the FLOPs": 0.75}
"""Points by the share of the Super's cost that they stay within."""


@dataclass(frozen=True)
class Worth:
    """What an answer is worth: the largest value (``None`` if unbounded), and what is counted."""

    largest: float | None
    unit: str


@dataclass(frozen=True)
class Alone:
    """One model without the other: its quality, and its mean FLOPs an input; NaN if unknown."""

    quality: float
    cost: float


@dataclass(frozen=True)
class OperatingPoint(Point):
    """A point with every metric at it by name, and its :func:`elang.method.bootstrap.lost_to_super`."""

    qualities: dict[str, float]
    to_super: dict[str, float] | None


@dataclass(frozen=True)
class ScoreSummary:
    """What one score's curve shows: its area between random (0) and oracle (1), and points by name.

    Those ``on_this_set`` are chosen on the evaluation set, and those ``held_out`` are at thresholds chosen elsewhere.
    """

    area: float
    on_this_set: dict[str, Point]
    held_out: dict[str, Point]

    def point(self, name: str) -> Point | None:
        """The point ``held out, <name>`` or ``read here, <name>``, if there is one."""
        where, _, threshold = name.partition(", ")
        return (self.held_out if where == "held out" else self.on_this_set).get(threshold)

    def usual(self, where: str) -> str:
        """The name of the point at the default threshold, ``held out`` or ``read here``."""
        return f"{where}, {known_name(self.held_out if where == 'held out' else self.on_this_set)}"


@dataclass(frozen=True)
class QualitySummary:
    """What one metric's curves show, those of ``random`` and ``oracle`` included.

    Attributes:
        swift: The point at which nothing is deferred.
        only_super_right: Share of examples; in a regression, of those where the Super is nearer.
        only_swift_right: The same for the Swift.
    """

    num_examples: int
    quality_name: str
    swift: Point
    super: Alone
    only_super_right: float
    only_swift_right: float
    scores: dict[str, ScoreSummary]


@dataclass(frozen=True, kw_only=True)
class EvaluatedPair:
    """Which pair was evaluated, and how.

    Attributes:
        evaluated_on: The split.
        num_examples: How many of its examples were answered.
        score: The score that routes by default.
        max_length: Tokens that inputs are cut at, if the Swift runs here.
        thresholds: Where they come from; empty if there are none.
        thresholds_from: The same in words, also if there are none.
        weights: Hash of each model's weights, empty if unknown.
        task: What was asked, for titles: the task's name, or the file and its label column; empty if unknown.
    """

    evaluated_on: str
    num_examples: int
    swift_model: str
    super_model: str
    score: str
    temperature: float
    flops_convention: str = ""
    max_length: int | None = None
    thresholds: str = ""
    thresholds_from: str
    weights: dict[str, str] = field(default_factory=dict)
    task: str = ""

    @property
    def conditions(self) -> dict[str, Any]:
        """The known conditions that a threshold depends on."""
        known = {"flops_convention": self.flops_convention or None, "max_length": self.max_length}
        return {name: value for name, value in known.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class JointSummary(EvaluatedPair):
    """The results of a pair's evaluation; fields that are ``None`` are left out of ``summary.json``.

    Attributes:
        worth: What an answer is worth, by the first metric.
        qualities: By the metric's name; the first one chose the thresholds.
        operating_points: For each score its points ``held out, <name>`` and ``read here, <name>``.
        cautions: Reasons to trust the figures less.
        areas: From :func:`elang.method.bootstrap.compare_areas`.
        statements: From :func:`elang.evaluation.statements.check_statements`.
        signatures: Of metrics of texts, by name.
        lengths: Of generated texts, from :func:`elang.evaluation.cautions.length_bias`.
        within_rounding_of_threshold: ``share`` of examples whose score is within ``distance`` of the default
            threshold, so another precision may decide otherwise.
        latency: Seconds of each model, from :func:`elang.backends.seconds.pair_latency`.
        curve_points: How many points of the curves were ``written`` to ``curve.csv``, ``of`` how many.
    """

    worth: Worth
    qualities: dict[str, QualitySummary]
    operating_points: dict[str, dict[str, OperatingPoint]] = field(default_factory=dict)
    cautions: list[str] = field(default_factory=list)
    areas: dict[str, dict[str, float]] = field(default_factory=dict)
    statements: list[dict[str, Any]] | None = None
    signatures: dict[str, str] | None = None
    lengths: dict[str, Any] | None = None
    within_rounding_of_threshold: dict[str, float] | None = None
    latency: dict[str, dict[str, Any]] | None = None
    curve_points: dict[str, int] | None = None

    @property
    def first(self) -> QualitySummary:
        """The summary of the first metric, which chose the thresholds."""
        return next(iter(self.qualities.values()))

    def as_dict(self) -> dict[str, Any]:
        """The contents of ``summary.json``, with NaN and infinities still in it."""
        return {"format": FORMAT} | {name: value for name, value in asdict(self).items() if value is not None}


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
    qualities = list(curves)
    worth = Worth(**answers.kind.worth(qualities[0].name, answers.targets))
    named = thresholds.get(about.score, {})
    warnings = saves_nothing(thresholds, about.score) + cautions(answers, label_names, worth.largest)
    warnings += repeated(answers.key, answers.unit)
    if about.weights["swift"] == about.weights["super"] != "":
        warnings.insert(0, "Swift and Super are the same model")
    if len(answers) < expected:
        warnings.insert(0, f"only {len(answers)} of {expected} examples of '{about.evaluated_on}' were answered")
    statements = None
    # Thresholds are comparable with scores of the same temperature only.
    if manifest is not None and manifest.temperature == about.temperature:
        statements = check_statements(
            manifest,
            answers.key,
            answers.scores,
            gain=answers.gain / (worth.largest or 1.0),
            super_sha256=about.weights["super"],
            unit=answers.unit,
            conditions=about.conditions,
        )
    generates, (summaries, areas) = answers.kind.generates, _resampled(answers, curves, thresholds, about.score)
    points = operating_points(answers, qualities, summaries[qualities[0].name])
    warnings = below_allowance(points.get(about.score, {}), named, worth.largest) + warnings
    return JointSummary(
        **vars(about),
        worth=worth,
        qualities=summaries,
        operating_points=points,
        cautions=warnings,
        areas=areas,
        statements=statements,
        signatures={q.name: signature(q.name) for q in qualities} if generates else None,
        lengths=length_bias(answers) if generates else None,
        within_rounding_of_threshold=near_threshold(answers.scores[about.score], named, rounding),
    )


def all_curves(answers: PairAnswers, qualities: list[Quality]) -> Curves:
    """The curves of all scores by all metrics, checked."""
    curves = {quality: pair_curves(answers, quality) for quality in qualities}
    for quality, found in curves.items():
        check_curves(answers, quality, found)
    return curves


def _resampled(
    answers: PairAnswers, curves: Curves, thresholds: Thresholds, chosen: str
) -> tuple[dict[str, QualitySummary], dict[str, dict[str, float]]]:
    """The summary of each metric, and each score's area compared with the ``chosen`` one's; both take long."""
    # The curves of random and oracle are resampled, too.
    number = sum(len(found) for quality, found in curves.items() if quality.whole is None) + len(answers.scores)
    with Progress(number, "curves", late=True) as progress:
        summaries = {q.name: summarize(answers, q, thresholds, found, progress.each) for q, found in curves.items()}
        return summaries, compare_areas(answers.scores, answers.gain, chosen, each=progress.each)


def summarize(
    answers: PairAnswers,
    quality: Quality,
    thresholds: Thresholds,
    curves: dict[str, OperatingCurve] | None = None,
    each: Each = iter,
) -> QualitySummary:
    """Read the points and areas of one metric's curves, with thresholds chosen elsewhere beside the set's own."""
    curves = curves or all_curves(answers, [quality])[quality]
    random, gain = curves["random"], answers.gain
    scores, allowed = {}, allowed_drops(answers, quality, curves, each)
    for name, curve in curves.items():
        here = {key: curve[index] for key, (index, _) in named_points(curve, quality.name, allowed[name]).items()}
        here["best"] = curve[at_best(curve)]
        for key, share in BUDGETS.items():
            if float(curve.cost[0]) <= share * curve.super_cost:
                here[key] = curve[at_budget(curve, share * curve.super_cost)]
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
