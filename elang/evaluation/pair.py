"""A pair's answers to one split, brought together."""

import math
from collections.abc import Container
from dataclasses import dataclass, field

import torch
from torch import Tensor

from elang.method.curve.points import Costs
from elang.method.deferral import route
from elang.method.quality.metric import Quality
from elang.method.scores import BEFORE_DECODER
from elang.records.table import Records
from elang.tasks.kind import KINDS, Kind
from elang.tasks.text_task import Problem
from elang.tasks.worth import measure

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
