"""A pair's answers to one split, row by row; the curves that follow from them; and the thresholds chosen on a curve."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from elang.method.bootstrap import Each, difference_errors
from elang.method.curve.exact import operating_curve, rescored_curve
from elang.method.curve.points import Costs, Groups, OperatingCurve
from elang.method.curve.reading import at_drop, at_parity, at_share, random_curve, random_rescored_curve
from elang.method.deferral import oracle_score, route
from elang.method.quality.metric import Quality
from elang.method.quality.texts import full_mark
from elang.method.scores import BEFORE_DECODER
from elang.records import DEFAULT_THRESHOLD
from elang.records.manifest import threshold_entry
from elang.records.table import Records
from elang.tasks.extraction import found_answers
from elang.tasks.kind import KINDS, Kind
from elang.tasks.kinds import measure
from elang.tasks.text_task import Problem, TextTask
from elang.terminal import Progress, waiting


@dataclass
class PairAnswers:
    """What Swift and Super answered to the examples of one split, row by row.

    Attributes:
        id: int64 ``(N,)``, ascending.
        key: Hash of each text, int64 ``(N,)``.
        label: int64 ``(N,)``; float64 in a regression.
        swift: The Swift's predictions, of the label's type.
        super_: The Super's predictions.
        scores: The Swift's difficulty scores by name, each ``(N,)``; larger is harder.
        swift_flops: float64 ``(N,)``.
        super_flops: float64 ``(N,)``; NaN for a black-box Super of unknown cost.
        more: Further columns that are recorded (logits, token counts, the answers found in generated texts).
        early_flops: Cost of the Swift for an input that is deferred before its decoder runs; float64 ``(N,)``.
        targets: What metrics read besides the label.
        problem: The kind of task.
        score_flops: Extra cost of a score that is computed after free generation, which keeps no logits; float64
            ``(N,)``.
        own_flops: In its place for scores with passes of their own, by score.
        deferred_flops: What a deferred input costs before the Super, by score, where that is not what a kept one costs.
        unit: The group of each row, int64 ``(N,)``, where rows belong together (questions about one passage).
    """

    id: Tensor
    key: Tensor
    label: Tensor
    swift: Tensor
    super_: Tensor
    scores: dict[str, Tensor]
    swift_flops: Tensor
    super_flops: Tensor
    more: dict[str, Tensor | list[Any]]
    early_flops: Tensor | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)
    problem: Problem = "classification"
    score_flops: Tensor | None = None
    own_flops: dict[str, Tensor] = field(default_factory=dict)
    deferred_flops: dict[str, Tensor] = field(default_factory=dict)
    unit: Tensor | None = None

    def __len__(self) -> int:
        return len(self.id)

    @property
    def kind(self) -> Kind:
        """The kind of task."""
        return KINDS[self.problem]

    @property
    def gain(self) -> Tensor:
        """How much better the Super's answer is than the Swift's, float64 ``(N,)``."""
        swift, super_ = (self.kind.reward(p, self.label, self.targets) for p in (self.swift, self.super_))
        return super_ - swift

    def costs(self, score: str) -> Costs:
        """FLOPs of each input when this score routes."""
        kept, extra = self.swift_flops, self.own_flops.get(score, self.score_flops)
        if score in BEFORE_DECODER and self.early_flops is not None:
            return Costs(kept, self.super_flops, self.early_flops)
        if score in self.scores and extra is not None:
            kept = kept + extra
        return Costs(kept, self.super_flops, self.deferred_flops.get(score, kept))

    def statistics(self, quality: Quality) -> tuple[Tensor, Tensor, Groups | None]:
        """A metric's statistics of both models' answers, ``(N, S)``, and its groups, if it has any."""
        target = self.label if quality.target == "label" else self.targets[quality.target]
        swift, super_ = (quality.statistics(prediction, target) for prediction in (self.swift, self.super_))
        return swift, super_, quality.by_group and Groups(self.targets.get("group"), quality.by_group)

    def quality_at(self, quality: Quality, score: str, threshold: float) -> float:
        """A metric of the pair's answers at one threshold, computed without the curve."""
        pair = torch.where(route(self.scores[score], threshold), self.super_, self.swift)
        return measure(quality, pair, self.label, targets=self.targets)


def pair_answers(
    table: dict[str, Tensor],
    swift: Records,
    super_: Records,
    *,
    task: TextTask,
    temperature: float,
    heads: Iterable[str],
    targets: dict[str, Tensor],
    prefix: str = "",
) -> PairAnswers:
    """Join both models' answers to one split, all in the order of its ``table`` with ``id``, ``key`` and ``label``.

    The Swift's records have logits or token scores; scores of its ``heads`` and costs are columns of the table, whose
    names begin with the ``prefix``. ``targets`` are what metrics read besides the label.
    """
    kind = task.kind
    predictions = swift.prediction, super_.prediction
    if kind.generates:
        # A prediction says which of the two texts is meant: 0 is the Swift's, 1 the Super's.
        predictions = torch.zeros_like(swift.prediction), torch.ones_like(super_.prediction)
    scores = kind.scores_of(swift.logits, swift.scores, temperature)
    unknown = torch.full((len(table["id"]),), math.nan, dtype=torch.float64)
    more: dict[str, Any] = {}
    for name, records in (("swift", swift), ("super", super_)):
        kept = ("logits", "tokens", "steps", "cached", "price")
        columns: dict[str, Any] = {"text": records.texts} | {column: getattr(records, column) for column in kept}
        if task.extract and records.texts is not None:
            columns["answer"] = found_answers(task, records.texts)
        more |= {f"{name}_{column}": values for column, values in columns.items() if values is not None}
    return PairAnswers(
        id=table["id"],
        key=table["key"],
        label=table["label"],
        swift=predictions[0],
        super_=predictions[1],
        scores=scores | {name: table[f"{prefix}{name}"] for name in heads} | swift.asked,
        swift_flops=unknown if swift.flops is None else swift.flops,
        super_flops=unknown if super_.flops is None else super_.flops,
        more=more,
        early_flops=table.get(f"{prefix}early_flops"),
        own_flops={name: swift.asked_flops(name) for name in swift.asked},
        targets=targets,
        problem=task.problem,
        score_flops=swift.score_flops,
    )


def pair_curves(answers: PairAnswers, quality: Quality) -> dict[str, OperatingCurve]:
    """The curve of every score, then ``random`` and ``oracle``."""
    scores = answers.scores | {"oracle": oracle_score(answers.gain)}
    costs = Costs(answers.swift_flops, answers.super_flops)
    if quality.whole is not None:
        rows = (answers.swift, answers.super_, answers.label, quality.whole)
        curves = {name: rescored_curve(score, *rows, answers.costs(name)) for name, score in scores.items()}
        random = random_rescored_curve(*rows, costs)
    else:
        swift, super_, groups = answers.statistics(quality)
        curves = {
            name: operating_curve(score, swift, super_, value=quality.value, costs=answers.costs(name), groups=groups)
            for name, score in scores.items()
        }
        random = random_curve(swift, super_, quality.value, costs=costs, groups=groups)
    oracle = curves.pop("oracle")
    return curves | {"random": random, "oracle": oracle}


def check_curves(answers: PairAnswers, quality: Quality, curves: dict[str, OperatingCurve]) -> None:
    """Compare both ends of each curve, and the middle of each score's, with values computed without the curve.

    Raises:
        RuntimeError: If a value differs; then no point of the curve can be trusted.
    """
    label, targets = answers.label, answers.targets
    alone = [measure(quality, answer, label, targets=targets) for answer in (answers.swift, answers.super_)]
    for name, curve in curves.items():
        costs = answers.costs(name)
        kept, deferred = costs.kept_and_deferred
        checks = [(quality.name, 0, curve.quality, alone[0]), (quality.name, -1, curve.quality, alone[1])]
        if not (kept + deferred).isnan().any():
            checks.append(("mean cost", 0, curve.cost, float(kept.mean())))
            checks.append(("mean cost", -1, curve.cost, float(costs.super_.double().mean())))
            checks.append(("mean cost", -1, torch.tensor([curve.scored_cost]), float(deferred.mean())))
        # Metrics that are rescored at each point have only some points.
        if name in answers.scores and quality.whole is None:
            middle = len(curve) // 2
            expected = answers.quality_at(quality, name, float(curve.threshold[middle]))
            checks.append((quality.name, middle, curve.quality, expected))
        for what, index, values, expected in checks:
            value, threshold = float(values[index]), float(curve.threshold[index])
            same = math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-6)
            if not same and not (math.isnan(value) and math.isnan(expected)):
                raise RuntimeError(
                    f"The curve of '{name}' has a {what} of {value} at the threshold {threshold}, but it should be "
                    f"{expected}. This is a bug in elang; please report it with the records."
                )


ROUTING_SLICE = "routing slice, held out from training"
FRACTIONS = {"parity": 1.0, "99.5%": 0.995, "99%": 0.99}
"""Thresholds by the share of the Super's quality that they reach."""
BY_QUALITY = (DEFAULT_THRESHOLD, *FRACTIONS)
"""Names of all thresholds that are chosen by quality."""
HALF_POINT = 0.005
"""A drop in a metric from 0 to 1 that is always allowed at the default threshold."""
SHARES = {"defer 10%": 0.1, "defer 20%": 0.2, "defer 30%": 0.3, "defer 50%": 0.5}
"""Thresholds by the share of the inputs that they defer."""
Thresholds = dict[str, dict[str, dict[str, Any]]]
"""For each score its thresholds by name, each an entry of :attr:`elang.records.manifest.Manifest.thresholds`."""


def allowed_drops(
    answers: PairAnswers, quality: Quality, curves: dict[str, OperatingCurve], each: Each = iter
) -> dict[str, Tensor]:
    """How far below the Super's quality each point of some curves may lie at the default threshold, each ``(M,)``.

    Half a point, or one standard error of the pair's quality minus the Super's where that is larger
    (:func:`elang.method.bootstrap.difference_errors`; between its points the error at the next one, where more is
    deferred). Half a point alone for metrics that are no function of sums, which are too slow to resample.
    """
    half = HALF_POINT * full_mark(quality.name)
    allowed = {name: torch.full_like(curve.quality, half) for name, curve in curves.items()}
    if quality.whole is not None:
        return allowed
    swift, super_, groups = answers.statistics(quality)
    # One random order stands for all: the error depends little on it.
    others = {"random": torch.randperm(len(answers), generator=torch.Generator().manual_seed(0))}
    scores = answers.scores | others | {"oracle": oracle_score(answers.gain)}
    scores = {name: scores[name] for name in curves}
    for name, (deferred, error) in difference_errors(scores, swift, super_, quality.value, groups, each=each).items():
        allowed[name] = error[torch.searchsorted(deferred, curves[name].deferred)].clamp_min(half)
    return allowed


def named_points(
    curve: OperatingCurve, quality: str | None = None, allowed: Tensor | None = None
) -> dict[str, tuple[int, str]]:
    """For each named threshold its index and its rule; without the name of the metric only those by deferred share.

    ``allowed`` is the curve's part of :func:`allowed_drops`.
    """
    points = {}
    if quality and allowed is not None:
        within = f"is at most half a point or one standard error, whichever is larger, below the Super's {quality}"
        points[DEFAULT_THRESHOLD] = at_drop(curve, allowed), within
    for name, fraction in FRACTIONS.items() if quality else ():
        points[name] = at_parity(curve, fraction), f"reaches {fraction:.1%} of the Super's {quality}"
    for name, (index, good) in points.items():
        rule = f"least deferral that costs less than the Super alone and {good}"
        if float(curve.cost[index]) >= curve.super_cost:
            rule = f"everything is deferred: no threshold that costs less than the Super alone {good}"
        points[name] = index, rule
    for name, share in SHARES.items():
        points[name] = at_share(curve, share), f"most deferral up to {share:.0%} of the inputs"
    return points


def choose_thresholds(answers: PairAnswers, quality: Quality, chosen_on: str) -> Thresholds:
    """Choose each score's named thresholds on a held-out slice."""
    found = pair_curves(answers, quality)
    curves = {score: found[score] for score in answers.scores}
    what = "curves of the held-out slice, for thresholds"
    with waiting(f"computing the {what}"), Progress(len(curves), what, late=True) as progress:
        allowed = allowed_drops(answers, quality, curves, progress.each)
    return {score: _entries(curve, chosen_on, quality.name, allowed[score]) for score, curve in curves.items()}


def share_thresholds(scores: dict[str, Tensor], chosen_on: str) -> Thresholds:
    """Choose thresholds by deferred share alone, where the Super's answers are not available."""
    chosen: Thresholds = {}
    for name, score in scores.items():
        blank = torch.zeros(len(score), 1)
        curve = operating_curve(score, blank, blank, value=lambda sums: torch.full(sums.shape[:-1], math.nan).double())
        chosen[name] = _entries(curve, chosen_on)
    return chosen


def _entries(
    curve: OperatingCurve, chosen_on: str, quality: str | None = None, allowed: Tensor | None = None
) -> dict[str, dict[str, Any]]:
    points = named_points(curve, quality, allowed)
    more = {k: {"allowed_drop": float(allowed[points[k][0]])} for k in [DEFAULT_THRESHOLD] if allowed is not None}
    return {
        name: threshold_entry(curve[index], rule, chosen_on, curve.num_examples, **more.get(name, {}))
        for name, (index, rule) in points.items()
    }
