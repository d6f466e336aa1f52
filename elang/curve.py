"""The exact operating curve of a Swift and a Super, and what is read off it.

With ``a_i`` and ``b_i`` the statistics of example ``i`` under the Swift and the Super, the pair that defers the
``k`` hardest examples has ``sum a + cumsum(b - a)[k]``. One sort and one cumulative sum give every metric of
:mod:`elang.quality` at every threshold, equal to scoring the mixed answers again at each.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elang.errors import InputError
from elang.scores import check_finite

# Elements of statistics that are widened to float64 at a time; bounds the memory of a sweep.
_CHUNK = 1 << 21


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


def operating_curve(
    score: Tensor,
    swift: Tensor,
    super_: Tensor,
    value: Callable[[Tensor], Tensor],
    swift_cost: Tensor | None = None,
    super_cost: Tensor | None = None,
) -> OperatingCurve:
    """Compute the metric and the cost at every threshold.

    Args:
        score: Shape ``(N,)``; larger is harder. Ties move together.
        swift: Per-example statistics under the Swift, shape ``(N, S)``, any dtype.
        super_: The same under the Super.
        value: Maps sums of statistics ``(M, S)`` to the metric ``(M,)``.
        swift_cost: Cost of each input under the Swift, shape ``(N,)``.
        super_cost: The same under the Super.

    Returns:
        The curve, with at most ``N + 1`` points.

    Raises:
        InputError: If there are no examples, the shapes differ, or a score is not finite.

    >>> from elang.quality import accuracy
    >>> q, target = accuracy(2), torch.tensor([1, 1, 0])
    >>> a = q.statistics(torch.tensor([1, 0, 0]), target)
    >>> curve = operating_curve(torch.tensor([-3., 1., -2.]), a, q.statistics(target, target), q.value)
    >>> curve.quality
    tensor([0.6667, 1.0000, 1.0000, 1.0000], dtype=torch.float64)
    >>> curve[1].threshold
    -2.0
    """
    n = score.numel()
    if n == 0:
        raise InputError("An operating curve needs at least one example, but there are none.")
    if score.ndim != 1 or swift.shape != super_.shape or len(swift) != n or swift.ndim != 2:
        raise InputError(
            f"Scores {tuple(score.shape)} and statistics {tuple(swift.shape)} of the Swift and "
            f"{tuple(super_.shape)} of the Super must have shapes (N,), (N, S) and (N, S)."
        )
    check_finite(score, "score")
    ordered, order = torch.sort(score, descending=True, stable=True)
    last_of_ties = torch.ones(n, dtype=torch.bool, device=score.device)
    last_of_ties[:-1] = ordered[1:] != ordered[:-1]
    deferred = torch.cat([order.new_zeros(1), last_of_ties.nonzero().squeeze(1) + 1])
    # Just below the hardest kept score lies no example, so that score itself is the threshold.
    threshold = torch.full((len(deferred),), -math.inf, dtype=torch.float64, device=score.device)
    threshold[:-1] = ordered[deferred[:-1]].double()
    threshold[0] = math.inf
    quality = value(_sums_at(order, deferred, swift, super_))
    cost = torch.full_like(quality, math.nan)
    mean_super_cost = math.nan
    if swift_cost is not None and super_cost is not None:
        paid = swift_cost.double().sum() + _sums_at(
            order, deferred, torch.zeros_like(super_cost)[:, None], super_cost[:, None]
        ).squeeze(1)
        cost, mean_super_cost = paid / n, float(super_cost.double().mean())
    return OperatingCurve(threshold, deferred, quality, cost, mean_super_cost, n, float(ordered[0]))


def _sums_at(order: Tensor, deferred: Tensor, swift: Tensor, super_: Tensor) -> Tensor:
    """Sums of the mixed statistics, float64 ``(M, S)``, with the first ``deferred[m]`` of ``order`` deferred."""
    total = swift.sum(0, dtype=torch.float64)
    out = torch.empty(len(deferred), swift.shape[1], dtype=torch.float64, device=swift.device)
    out[0] = total
    rows = max(1, _CHUNK // swift.shape[1])
    done = 1
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        moved = (super_[chosen].double() - swift[chosen].double()).cumsum_(0).add_(total)
        stop = int(torch.searchsorted(deferred, start + len(chosen), right=True))
        out[done:stop] = moved[deferred[done:stop] - 1 - start]
        done, total = stop, moved[-1]
    # Sums of floats depend on their order; the end of the curve is the Super to the last bit.
    out[-1] = super_.sum(0, dtype=torch.float64)
    return out


def random_curve(
    swift: Tensor,
    super_: Tensor,
    value: Callable[[Tensor], Tensor],
    swift_cost: Tensor | None = None,
    super_cost: Tensor | None = None,
    points: int = 1001,
) -> OperatingCurve:
    """Deferring at random, in expectation: the floor of every report.

    The expected *sums* are exact; for metrics that are not linear in them (F1, Matthews) the value at the
    expected sums stands for the expected value. Arguments and result as in :func:`operating_curve`, with an
    even grid of shares; the thresholds are those of a score that is uniform on ``[0, 1)``.
    """
    n = len(swift)
    deferred = torch.linspace(0, n, min(points, n + 1), dtype=torch.float64, device=swift.device).round().long()
    share = (deferred.double() / n)[:, None]
    a, b = swift.sum(0, dtype=torch.float64), super_.sum(0, dtype=torch.float64)
    quality = value(a + share * (b - a))
    cost = torch.full_like(quality, math.nan)
    mean_super_cost = math.nan
    if swift_cost is not None and super_cost is not None:
        mean_super_cost = float(super_cost.double().mean())
        cost = swift_cost.double().mean() + share.squeeze(1) * mean_super_cost
    return OperatingCurve(1 - share.squeeze(1), deferred, quality, cost, mean_super_cost, n, 1.0)


def oracle_score(swift_right: Tensor, super_right: Tensor) -> Tensor:
    """The score of a router that knows both answers: the ceiling of every report.

    It defers first what only the Super gets right and last what only the Swift gets right. For metrics that
    are not a mean over examples (F1, Matthews) this order is a strong router, not a proven optimum.

    Args:
        swift_right: Boolean, shape ``(N,)``.
        super_right: Boolean, shape ``(N,)``.

    Returns:
        Shape ``(N,)``, all values distinct; larger is harder.
    """
    gain = super_right.double() - swift_right.double()
    return gain - torch.arange(len(gain), device=gain.device) / len(gain)


def area(curve: OperatingCurve) -> float:
    """Area under quality over deferred share, with straight lines between the points."""
    return float(torch.trapezoid(curve.quality, curve.deferred_share))


def relative_area(curve: OperatingCurve, random: OperatingCurve, oracle: OperatingCurve) -> float:
    """Where the curve lies between random (0) and oracle (1).

    Returns:
        Negative for a score that is worse than chance, NaN if the oracle is no better than random (the Super
        then has nothing to give).
    """
    floor, ceiling = area(random), area(oracle)
    return (area(curve) - floor) / (ceiling - floor) if ceiling - floor > 1e-12 else math.nan


def target_quality(curve: OperatingCurve, fraction: float) -> float:
    """The quality that is ``fraction`` of the Super's; below it, too, for a metric that is negative."""
    best = float(curve.quality[-1])
    return best - (1 - fraction) * abs(best)


def at_parity(curve: OperatingCurve, fraction: float = 1.0) -> int:
    """Index of the least deferral whose quality reaches ``fraction`` of the Super's.

    Deferring everything always does, so there is an answer for every ``fraction <= 1``.

    Raises:
        InputError: If ``fraction`` is not in ``(0, 1]``.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"The share of the Super's quality must be in (0, 1], but it is {fraction}.")
    # Equal qualities may differ in their last bit when they come from different sums.
    reached = curve.quality >= target_quality(curve, fraction) - 1e-12
    reached[-1] = True
    return int(reached.nonzero()[0])


def at_share(curve: OperatingCurve, share: float) -> int:
    """Index of the most deferral that is at most ``share`` (0 to 1) of the examples."""
    if not 0 <= share <= 1:
        raise InputError(f"A deferred share must be in [0, 1], but it is {share}.")
    within = curve.deferred.double() <= share * curve.num_examples + 1e-9
    return int(within.nonzero()[-1])


def at_budget(curve: OperatingCurve, cost: float) -> int:
    """Index of the best quality whose mean cost is at most ``cost``.

    Raises:
        InputError: If even the Swift alone costs more.
    """
    affordable = curve.cost <= cost
    if not affordable.any():
        raise InputError(
            f"A budget of {cost:.4g} per input is below the Swift's own cost of {float(curve.cost[0]):.4g}; "
            "raise the budget or take a smaller Swift."
        )
    return int(torch.where(affordable, curve.quality, -math.inf).argmax())


def at_best(curve: OperatingCurve) -> int:
    """Index of the best quality, with the least deferral among equals."""
    return int(curve.quality.argmax())


def at_threshold(curve: OperatingCurve, threshold: float) -> int:
    """Index of the point where a pair with this threshold works.

    >>> import elang.quality as quality
    >>> s = torch.ones(3, 2); q = quality.accuracy(2)
    >>> at_threshold(operating_curve(torch.tensor([0., 1., 2.]), s, s, q.value), 0.5)
    2
    """
    if math.isnan(threshold):
        raise InputError("The threshold is NaN; give a number, or inf to keep all inputs and -inf to defer all.")
    if threshold >= curve.hardest:
        return 0
    # The hardest kept score, which is a point's own threshold, is the largest score up to the one asked for.
    return int((curve.threshold > threshold).sum())
