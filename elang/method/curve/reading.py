"""Reading a curve: areas, operating points, and the baseline that defers at random."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from elang.errors import InputError
from elang.method.curve.exact import rescored_curve, share_grid, sums_at, with_costs
from elang.method.curve.points import Costs, Groups, OperatingCurve, Point
from elang.method.quality.metric import centred


def area(curve: OperatingCurve) -> float:
    """Area under quality over deferred share, with straight lines between the points."""
    return float(torch.trapezoid(curve.quality, curve.deferred_share))


def relative_area(curve: OperatingCurve, random: OperatingCurve, oracle: OperatingCurve) -> float:
    """Where the curve lies between random (0) and oracle (1).

    It is negative for a score worse than chance, and NaN if the oracle is no better than random.
    """
    floor, ceiling = area(random), area(oracle)
    return (area(curve) - floor) / (ceiling - floor) if ceiling - floor > 1e-12 else math.nan


def target_quality(curve: OperatingCurve, fraction: float) -> float:
    """``fraction`` of the Super's quality; if that is negative, as far below it."""
    best = float(curve.quality[-1])
    return best - (1 - fraction) * abs(best)


def at_parity(curve: OperatingCurve, fraction: float = 1.0) -> int:
    """Index of the cheapest point whose quality reaches ``fraction``, in ``(0, 1]``, of the Super's."""
    if not 0 < fraction <= 1:
        raise InputError(f"The share of the Super's quality must be in (0, 1], but it is {fraction}.")
    return _cheapest(curve, target_quality(curve, fraction))


def at_drop(curve: OperatingCurve, allowed: Tensor) -> int:
    """Index of the cheapest point whose quality is at most ``allowed``, ``(M,)``, below the Super's."""
    return _cheapest(curve, curve.quality[-1] - allowed.to(curve.quality))


def _cheapest(curve: OperatingCurve, least: Tensor | float) -> int:
    """Index of the cheapest point of a quality of at least ``least``; without costs, of the one that defers least.

    The last point, the Super alone, always counts, so points that cost as much or more do not.
    """
    # Equal qualities from different sums may differ in their last bit.
    reached = curve.quality >= least - 1e-12
    # An unknown cost, NaN, is no reason against a point.
    reached &= ~(curve.cost >= curve.super_cost)
    reached[-1] = True
    cost = torch.where(curve.cost.isnan(), -math.inf, curve.cost)
    return int(torch.where(reached, cost, math.inf).argmin())


def at_share(curve: OperatingCurve, share: float) -> int:
    """Index of the most deferral that is at most ``share`` (0 to 1) of the examples."""
    if not 0 <= share <= 1:
        raise InputError(f"A deferred share must be in [0, 1], but it is {share}.")
    within = curve.deferred.double() <= share * curve.num_examples + 1e-9
    return int(within.nonzero()[-1])


def at_budget(curve: OperatingCurve, cost: float) -> int:
    """Index of the best quality whose mean cost is at most ``cost``; an ``InputError`` if even the Swift costs more."""
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

    >>> from elang import operating_curve
    >>> s = torch.ones(3, 2)
    >>> at_threshold(operating_curve(torch.tensor([0., 1., 2.]), s, s, lambda sums: sums[..., 0].double()), 0.5)
    2
    """
    if math.isnan(threshold):
        raise InputError("The threshold is NaN; give a number, or inf to keep all inputs and -inf to defer all.")
    if threshold >= curve.hardest:
        return 0
    # A point's threshold is its hardest kept score, so the first one up to the given threshold keeps the same inputs.
    return int((curve.threshold > threshold).sum())


def point_at(curve: OperatingCurve, threshold: float) -> Point:
    """The point where a pair with this threshold works.

    A finite threshold that defers everything costs more than ``-inf``: the Swift still runs to score the inputs.
    """
    point = replace(curve[at_threshold(curve, threshold)], threshold=threshold)
    if point.deferred_share < 1 or threshold == -math.inf:
        return point
    cost = curve.scored_cost
    return replace(point, cost=cost, speedup=curve.super_cost / cost if cost else math.inf)


# Number of random orders that stand in for a closed form.
_ORDERS = 16


def random_curve(
    swift: Tensor,
    super_: Tensor,
    value: Callable[[Tensor], Tensor],
    costs: Costs | None = None,
    groups: Groups | None = None,
    points: int = 1001,
) -> OperatingCurve:
    """Deferring at random, in expectation: the floor of every report.

    The expected *sums* are exact; for metrics that are not linear in them (F1, Matthews) the value at the expected sums
    stands for the expected value. With ``groups`` the quality is the mean over 16 seeded random orders, exact at both
    ends. Arguments as in :func:`operating_curve`; the ``points`` are an even grid of shares, with the thresholds of a
    score that is uniform on ``[0, 1)``.
    """
    n = len(swift)
    deferred = share_grid(n, points, swift.device)
    value, (swift, super_) = centred(value, swift, super_)
    if groups is None:
        quality = value(_expected_sums(deferred, swift, super_))
    else:
        orders = _random_orders(n, swift.device)
        quality = _mean([value(sums_at(order, deferred, swift, super_, groups)) for order in orders])
    return _at_random(deferred, quality, costs)


def random_rescored_curve(
    swift: Tensor,
    super_: Tensor,
    target: Tensor,
    whole: Callable[[Tensor, Tensor], float],
    costs: Costs | None = None,
    points: int = 201,
) -> OperatingCurve:
    """The :func:`random_curve` for the metrics of :func:`rescored_curve`: the mean over 16 seeded random orders."""
    deferred = share_grid(len(target), points, target.device)
    orders = _random_orders(len(target), target.device)
    qualities = [rescored_curve(order, swift, super_, target, whole, points=points).quality for order in orders]
    return _at_random(deferred, _mean(qualities), costs)


def _expected_sums(deferred: Tensor, swift: Tensor, super_: Tensor) -> Tensor:
    """Expected sums of the mixed statistics, float64 ``(M, S)``, with random ``deferred[m]`` examples deferred."""
    share = deferred.double()[:, None] / len(swift)
    return torch.lerp(swift.sum(0, dtype=torch.float64), super_.sum(0, dtype=torch.float64), share)


def _random_orders(n: int, device: torch.device) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randperm(n, generator=generator).to(device) for _ in range(_ORDERS))


def _mean(qualities: list[Tensor]) -> Tensor:
    """The mean of curves with equal ends, which rounding must not change."""
    mean = torch.stack(qualities).mean(0)
    mean[[0, -1]] = qualities[0][[0, -1]]
    return mean


def _at_random(deferred: Tensor, quality: Tensor, costs: Costs | None) -> OperatingCurve:
    threshold = 1 - deferred.double() / deferred[-1]
    return with_costs(threshold, deferred, quality, 1.0, partial(_expected_sums, deferred), costs)
