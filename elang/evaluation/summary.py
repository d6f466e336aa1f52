"""An evaluation's summary: what is read off the curves of one evaluation set, as it is written to ``summary.json``."""

from dataclasses import asdict, dataclass, field
from typing import Any

from elang.method.curve.points import Point
from elang.records.manifest import known_name
from elang.records.table import FORMAT

# What cautions that advise against a pair say.
SWIFT_ALONE, NO_PAIR = "use the Swift alone", "no threshold saves anything"


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
        sampling: How the Swift's texts were drawn, :meth:`elang.tasks.sampling.Sampling.plain`, if they were.
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
    sampling: dict[str, Any] | None = None

    @property
    def conditions(self) -> dict[str, Any]:
        """The known conditions that a threshold depends on."""
        known = {
            "flops_convention": self.flops_convention or None,
            "max_length": self.max_length,
            "sampling": self.sampling,
        }
        return {name: value for name, value in known.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class JointSummary(EvaluatedPair):
    """The results of a pair's evaluation; fields that are ``None`` are left out of ``summary.json``.

    Attributes:
        worth: What an answer is worth, by the first metric.
        qualities: By the metric's name; the first one chose the thresholds.
        operating_points: For each score its points ``held out, <name>`` and ``read here, <name>``.
        cautions: Reasons to trust the figures less; the first ``denied`` ones deny that the pair is a success.
        denial: The first of these that says so by the pair's answers, not by how it was evaluated.
        most_frequent: What always answering one label would reach, :func:`elang.evaluation.labels.always_one`.
        recalls: Of a few labels, :func:`elang.evaluation.labels.recalls` at the default threshold.
        areas: From :func:`elang.method.bootstrap.compare_areas`.
        statements: From :func:`elang.evaluation.statements.check_statements`.
        signatures: Of metrics of texts, by name.
        allowed_drop: How far below the Super the default threshold was allowed to be on the slice that chose it.
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
    denied: int = 0
    denial: str | None = None
    most_frequent: dict[str, Any] | None = None
    recalls: dict[str, dict[str, float]] | None = None
    areas: dict[str, dict[str, float]] = field(default_factory=dict)
    statements: list[dict[str, Any]] | None = None
    signatures: dict[str, str] | None = None
    lengths: dict[str, Any] | None = None
    allowed_drop: float | None = None
    within_rounding_of_threshold: dict[str, float] | None = None
    latency: dict[str, dict[str, Any]] | None = None
    curve_points: dict[str, int] | None = None

    @property
    def first(self) -> QualitySummary:
        """The summary of the first metric, which chose the thresholds."""
        return next(iter(self.qualities.values()))

    def advises(self, against: str) -> bool:
        """Whether a caution that denies the success says ``SWIFT_ALONE`` or ``NO_PAIR``."""
        return any(against in caution for caution in self.cautions[: self.denied])

    def as_dict(self) -> dict[str, Any]:
        """The contents of ``summary.json``, with NaN and infinities still in it."""
        return {"format": FORMAT} | {name: value for name, value in asdict(self).items() if value is not None}
