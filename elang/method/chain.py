"""Chains of models: each stage answers what its score trusts it with, and passes the rest on to the next one.

A chain of ``K`` models has ``K - 1`` thresholds. Stage ``k`` keeps an input that reaches it if its score is at most
``thresholds[k]``; the last stage keeps everything. At ``-inf`` a stage keeps nothing, so its score is not needed and it
does not run. Two stages are a Swift and a Super, with the curve of :mod:`elang.method.curve`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.errors import InputError
from elang.method.curve.exact import operating_curve
from elang.method.curve.points import Costs, OperatingCurve
from elang.method.deferral import check_finite
from elang.method.quality.metric import mean_of_sums

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Stages:
    """What the models of a chain did with ``N`` inputs, in the order in which they are asked.

    Attributes:
        worth: What each answer is worth, one ``(N,)`` for each of the ``K`` stages.
        cost: What it costs, likewise.
        score: How hard the inputs are for each stage but the last, larger is harder, likewise.
    """

    worth: Sequence[Tensor]
    cost: Sequence[Tensor]
    score: Sequence[Tensor]

    def __post_init__(self) -> None:
        sizes = {len(column) for column in (*self.worth, *self.cost, *self.score)}
        if not (len(self.worth) == len(self.cost) == len(self.score) + 1 and len(sizes) == 1 and sizes != {0}):
            raise InputError(
                f"A chain of K models needs K worths, K costs and K - 1 scores of the same inputs, not "
                f"{len(self.worth)}, {len(self.cost)} and {len(self.score)} of {sorted(sizes)} inputs."
            )
        for column in self.score:
            # A sum is faster than a look at each.
            if not math.isfinite(float(column.double().sum())):
                check_finite(column, "score")

    def __len__(self) -> int:
        return len(self.worth[0])

    def take(self, rows: Tensor) -> "Stages":
        """The same for some inputs."""
        return Stages(*([column[rows] for column in columns] for columns in (self.worth, self.cost, self.score)))


def answered_by(score: Sequence[Tensor], thresholds: Sequence[float]) -> Tensor:
    """The stage that answers each input, counted from 0, int64 ``(N,)``.

    >>> answered_by([torch.tensor([0.0, 2.0, 2.0]), torch.tensor([9.0, 1.0, 3.0])], [1.0, 1.0]).tolist()
    [0, 1, 2]
    """
    if len(score) != len(thresholds) or any(math.isnan(threshold) for threshold in thresholds):
        raise InputError(f"A chain with {len(score)} scores needs as many thresholds, not {list(thresholds)}.")
    stage = torch.full((len(score[0]),), len(score)) if score else torch.empty(0, dtype=torch.int64)
    for place in reversed(range(len(score))):
        stage[score[place].double() <= thresholds[place]] = place
    return stage


def outcomes(stages: Stages, thresholds: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """What each input's answer is worth, what the chain pays for it, float64, and the stage that answers: ``(N,)``."""
    stage = answered_by(stages.score, thresholds) if stages.score else torch.zeros(len(stages), dtype=torch.int64)
    return *worth_and_cost(stages, thresholds), stage


def worth_and_cost(stages: Stages, thresholds: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The first two of :func:`outcomes`."""
    # From the last stage to the first one: what it keeps is its own, and the rest is what comes after it.
    worth, cost = stages.worth[-1].double(), stages.cost[-1].double()
    for place in reversed(range(len(thresholds))):
        if thresholds[place] != -math.inf:
            kept = stages.score[place].double() <= thresholds[place]
            worth = torch.where(kept, stages.worth[place].double(), worth)
            cost = torch.where(kept, 0.0, cost).add_(stages.cost[place])
    return worth, cost


def chain_curve(stages: Stages, thresholds: Sequence[float], stage: int) -> OperatingCurve:
    """The exact curve over the threshold of one stage, with those of the other stages as they are given.

    Its ``deferred`` counts inputs with a score above the threshold, also those that an earlier stage answers.
    """
    kept, passed = list(thresholds), list(thresholds)
    kept[stage], passed[stage] = math.inf, -math.inf
    (ours, with_it), (theirs, without) = worth_and_cost(stages, kept), worth_and_cost(stages, passed)
    reached = torch.ones(len(stages), dtype=torch.bool)
    for place in range(stage):
        reached &= stages.score[place].double() > thresholds[place]
    own = torch.where(reached, stages.cost[stage].double(), 0.0)
    one = torch.ones_like(ours)
    kept_sums, passed_sums = (torch.stack([worth, one], 1) for worth in (ours, theirs))
    return operating_curve(stages.score[stage], kept_sums, passed_sums, mean_of_sums, Costs(with_it, without, own))


def grid_of(score: Tensor, points: int) -> Tensor:
    """Thresholds for :func:`on_grid`: ``-inf``, at most ``points`` scores evenly by rank, and ``inf``, float64.

    >>> grid_of(torch.tensor([3.0, 1.0, 1.0, 2.0]), 2).tolist()
    [-inf, 1.0, 3.0, inf]
    """
    ranked = score.double().sort().values
    ranks = torch.linspace(0, len(ranked) - 1, min(points, len(ranked)), dtype=torch.float64).round().long()
    ends = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
    return torch.cat([ends[:1], ranked[ranks].unique(), ends[1:]])


def on_grid(stages: Stages, grids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean worth and mean cost at all vectors of thresholds, exact: float64, one axis for each of the ``grids``.

    Each input falls into one cell between thresholds, and sums over cells are cumulated along each axis, so the time is
    that of a pass over the inputs, however many vectors there are. Grids ascend from ``-inf`` to ``inf``.
    """
    # By NumPy, whose calls cost less than PyTorch's where tables are small.
    shape, size = [len(grid) for grid in grids], len(stages)
    # An input is kept at the thresholds from this place on.
    cells = [np.searchsorted(g.numpy(), s.double().numpy()) for g, s in zip(grids, stages.score, strict=True)]
    worth, cost = (np.zeros(shape or [1]) for _ in range(2))
    place, last = np.zeros(size, dtype=np.int64), len(stages.worth) - 1
    for stage in range(last + 1):
        reaching = shape[:stage]
        paid = _sums(stages.cost[stage], place, reaching, passed=stage)
        rest = [1] * (len(shape) - stage)
        if stage < last:
            # Where it keeps nothing it does not run.
            runs = (grids[stage].numpy() != -np.inf).reshape([1] * stage + [-1] + [1] * (len(shape) - stage - 1))
            cost += paid.reshape(reaching + rest) * runs
            place = place * shape[stage] + cells[stage]
            gained = _sums(stages.worth[stage], place, shape[: stage + 1], passed=stage)
            worth += gained.cumsum(stage).reshape(shape[: stage + 1] + rest[1:])
        else:
            cost += paid.reshape(reaching or [1])
            worth += _sums(stages.worth[stage], place, reaching, passed=stage).reshape(reaching or [1])
    return torch.from_numpy(worth / size), torch.from_numpy(cost / size)


def _sums(values: Tensor, place: _Array, shape: list[int], passed: int) -> _Array:
    """Sums of values by cell; along the first ``passed`` axes of all cells beyond, which is what is passed on there."""
    sums: _Array = np.bincount(place, values.double().numpy(), math.prod(shape)).reshape(shape or [1])
    for axis in range(passed):
        inside = (slice(None),) * axis
        beyond = np.zeros_like(sums)
        beyond[(*inside, slice(0, -1))] = np.flip(np.flip(sums, axis).cumsum(axis), axis)[(*inside, slice(1, None))]
        sums = beyond
    return sums


def frontier(cost: Tensor, worth: Tensor) -> Tensor:
    """Places of the points ``(P,)`` that no other one beats in both, by rising cost and rising worth: int64 ``(F,)``.

    >>> frontier(torch.tensor([3.0, 1.0, 2.0, 2.0]), torch.tensor([0.9, 0.5, 0.4, 0.7])).tolist()
    [1, 3, 0]
    """
    # Of equal points the first one.
    order = np.lexsort((-worth.double().numpy(), cost.double().numpy()))
    best = np.maximum.accumulate(worth.double().numpy()[order])
    first = np.ones(len(order), dtype=bool)
    first[1:] = best[1:] > best[:-1]
    return torch.from_numpy(order[first])
