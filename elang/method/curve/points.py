"""A curve and one point of it: threshold, deferred share, quality and cost."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Point:
    """One operating point of the pair.

    Attributes:
        threshold: Inputs whose score is above it are deferred.
        deferred_share: Share of inputs that the Super answers, 0 to 1.
        quality: The task metric of the mixed answers.
        cost: Mean cost of one input, in the unit of the costs given (FLOPs).
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
        threshold: Shape ``(M,)``, descending from ``inf`` to ``-inf``. Examples with equal scores move
            together, so ``M`` is the number of distinct scores plus one.
        deferred: Number of deferred examples, shape ``(M,)``.
        quality: Shape ``(M,)``.
        cost: Mean cost of an input, shape ``(M,)``; NaN where no costs were given.
        super_cost: Mean cost of an input under the Super alone.
        num_examples: ``N``.
        hardest: The largest score; any threshold from here on keeps everything.
    """

    threshold: Tensor
    deferred: Tensor
    quality: Tensor
    cost: Tensor
    super_cost: float
    num_examples: int
    hardest: float

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
