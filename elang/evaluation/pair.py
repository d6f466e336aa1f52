"""A pair's answers to one split, brought together."""

import math
from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from elang.method.curve.exact import operating_curve, rescored_curve
from elang.method.curve.points import Costs, Groups, OperatingCurve
from elang.method.curve.reading import at_parity, at_share, random_curve, random_rescored_curve
from elang.method.deferral import oracle_score, route
from elang.method.quality.metric import Quality
from elang.method.scores import BEFORE_DECODER
from elang.records.manifest import threshold_entry
from elang.records.table import Records
from elang.tasks.kind import KINDS, Kind
from elang.tasks.kinds import measure
from elang.tasks.text_task import Problem

ROUTING_SLICE = "routing slice, held out from training"


@dataclass
class PairAnswers:
    """What Swift and Super answered to the examples of one split, row by row.

    Attributes:
        id: int64 ``(N,)``, ascending.
        key: int64 ``(N,)``.
        label: int64 ``(N,)``; float64 in a regression.
        swift: The Swift's predictions, of the label's type.
        super_: The Super's.
        scores: The Swift's difficulty scores by name, each ``(N,)``; larger is harder.
        swift_flops: float64 ``(N,)``.
        super_flops: float64 ``(N,)``; NaN where a black-box Super's cost is not known.
        more: Further columns that are recorded (logits, token counts).
        early_flops: What the Swift costs for an input that is deferred before its decoder runs; float64 ``(N,)``.
        targets: What metrics read besides the label.
        problem: The kind of task.
        score_flops: What a score after the decoder costs on top of the Swift's answer, where that is freely generated
            and its logits are not; float64 ``(N,)``.
        unit: The group of each row, int64 ``(N,)``, where rows belong together (a passage's questions).
    """

    id: Tensor
    key: Tensor
    label: Tensor
    swift: Tensor
    super_: Tensor
    scores: dict[str, Tensor]
    swift_flops: Tensor
    super_flops: Tensor
    more: dict[str, Tensor | list[str]]
    early_flops: Tensor | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)
    problem: Problem = "classification"
    score_flops: Tensor | None = None
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
        """What each input costs where this score routes, in FLOPs."""
        kept = deferred = self.swift_flops
        if score in BEFORE_DECODER and self.early_flops is not None:
            deferred = self.early_flops
        elif score in self.scores and self.score_flops is not None:
            kept = deferred = self.swift_flops + self.score_flops
        return Costs(kept, self.super_flops, deferred)

    def quality_at(self, quality: Quality, score: str, threshold: float) -> float:
        """A metric of the mixed answers at one threshold, scored from scratch."""
        mixed = torch.where(route(self.scores[score], threshold), self.super_, self.swift)
        return measure(quality, mixed, self.label, self.targets)


def swift_cost_columns(score: str, known: Container[str]) -> tuple[list[str], list[str]]:
    """Columns of joint records that add up to :meth:`PairAnswers.costs` of the Swift: kept, and deferred.

    >>> swift_cost_columns("encoder_energy", ["swift_early_flops"])
    (['swift_flops'], ['swift_early_flops'])
    """
    if score in BEFORE_DECODER:
        return ["swift_flops"], ["swift_early_flops" if "swift_early_flops" in known else "swift_flops"]
    whole = ["swift_flops", *(["swift_score_flops"] if "swift_score_flops" in known else [])]
    return whole, whole


@dataclass(frozen=True)
class Heads:
    """What the heads of a Swift add to its answers.

    Attributes:
        scores: By name, each ``(N,)``.
        early_flops: As in :class:`PairAnswers`.
    """

    scores: dict[str, Tensor] = field(default_factory=dict)
    early_flops: Tensor | None = None


def pair_answers(
    table: dict[str, Tensor],
    swift: Records,
    super_: Records,
    *,
    problem: Problem,
    temperature: float,
    heads: Heads,
    targets: dict[str, Tensor],
) -> PairAnswers:
    """Bring both models' answers to one split together.

    Args:
        table: ``id``, ``key`` and ``label`` of its examples.
        swift: The Swift's answers to them, in their order, with logits or token scores.
        super_: The Super's.
        problem: The kind of task.
        temperature: Of the scores.
        heads: What the Swift's heads add.
        targets: As in :class:`PairAnswers`.
    """
    kind = KINDS[problem]
    predictions = swift.prediction, super_.prediction
    if kind.generates:
        # The first or the second of the two texts.
        predictions = torch.zeros_like(swift.prediction), torch.ones_like(super_.prediction)
    unknown = torch.full((len(table["id"]),), math.nan, dtype=torch.float64)
    more: dict[str, Tensor | list[str]] = {}
    for name, records in (("swift", swift), ("super", super_)):
        columns = {"logits": records.logits, "tokens": records.tokens, "steps": records.steps, "text": records.texts}
        more |= {f"{name}_{column}": values for column, values in columns.items() if values is not None}
    return PairAnswers(
        id=table["id"],
        key=table["key"],
        label=table["label"],
        swift=predictions[0],
        super_=predictions[1],
        scores=kind.scores_of(swift.logits, swift.scores, temperature) | heads.scores,
        swift_flops=unknown if swift.flops is None else swift.flops,
        super_flops=unknown if super_.flops is None else super_.flops,
        more=more,
        early_flops=heads.early_flops,
        targets=targets,
        problem=problem,
        score_flops=swift.score_flops,
    )


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
