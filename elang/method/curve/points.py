"""Points of an operating curve: the costs of a pair, and the curve itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Costs:
    """What each input costs, in any unit (FLOPs), each of shape ``(N,)``.

    Attributes:
        swift: Under the Swift, if it is kept.
        super_: Under the Super.
        deferred: Under the Swift, if it is deferred: less where the score precedes the answer, by default the same.
    """

    swift: Tensor
    super_: Tensor
    deferred: Tensor | None = None

    @property
    def kept_and_deferred(self) -> tuple[Tensor, Tensor]:
        """The pair's cost of each input if it is kept, and if it is deferred."""
        deferred = self.swift if self.deferred is None else self.deferred
        return self.swift, deferred.double() + self.super_

    def of(self, deferred: Tensor, threshold: float) -> Tensor:
        """What the pair pays for each input at a threshold that defers these, bool ``(N,)``: float64 ``(N,)``.

        At ``-inf`` no score is needed, so the Swift does not run, and the pair costs what the Super costs.

        >>> costs, everything = Costs(torch.ones(2), torch.full((2,), 9.0)), torch.tensor([True, True])
        >>> costs.of(everything, 0.5).tolist(), costs.of(everything, -math.inf).tolist()
        ([10.0, 10.0], [9.0, 9.0])
        """
        if threshold == -math.inf:
            return self.super_.double()
        kept, both = self.kept_and_deferred
        return torch.where(deferred, both, kept.double())


@dataclass(frozen=True)
class Groups:
    """Groups of examples over which a metric adds up; examples are still deferred one by one.

    Attributes:
        index: The group of each example, integers ``(N,)``.
        statistics: Maps sums over the examples of a group ``(..., S)`` to the group's statistics ``(..., S')``.
    """

    index: Tensor | None
    statistics: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Point:
    """One operating point of the pair.

    Attributes:
        threshold: Inputs with a higher score are deferred.
        deferred_share: Share of inputs that the Super answers, 0 to 1.
        quality: The task metric of the mixed answers.
        cost: Mean cost of an input, in the unit of the given costs.
        speedup: Cost of the Super alone over the cost of the pair.
    """

    threshold: float
    deferred_share: float
    quality: float
    cost: float
    speedup: float


@dataclass
class OperatingCurve:
    """Every operating point, from all kept (first) to all deferred (last).

    Attributes:
        threshold: ``(M,)``, from ``inf`` down to ``-inf``; ``M`` is 1 plus the number of distinct scores.
        deferred: Number of deferred examples, ``(M,)``.
        quality: ``(M,)``.
        cost: Mean cost of an input, ``(M,)``; NaN without costs.
        super_cost: Mean cost of an input under the Super alone.
        num_examples: ``N``.
        hardest: The largest score; this threshold and any larger one keep everything.
        scored_cost: Mean cost of an input where a finite threshold defers everything. At the last point, ``-inf``, it
            is less, because the Swift does not run.
    """

    threshold: Tensor
    deferred: Tensor
    quality: Tensor
    cost: Tensor
    super_cost: float
    num_examples: int
    hardest: float
    scored_cost: float = math.nan

    def __len__(self) -> int:
        return len(self.threshold)

    def __getitem__(self, index: int) -> Point:
        cost = float(self.cost[index])
        return Point(
            threshold=float(self.threshold[index]),
            deferred_share=float(self.deferred[index]) / self.num_examples,
            quality=float(self.quality[index]),
            cost=cost,
            speedup=self.super_cost / cost if cost else math.inf,
        )

    @property
    def deferred_share(self) -> Tensor:
        """Share of deferred examples, shape ``(M,)``."""
        return self.deferred.double() / self.num_examples

    @property
    def speedup(self) -> Tensor:
        """Cost of the Super alone over the cost of the pair, shape ``(M,)``."""
        return self.super_cost / self.cost
