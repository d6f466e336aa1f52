"""Deferring at random: the floor that every score is compared with."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from elang.method.curve.exact import rescored_curve, share_grid, with_costs
from elang.method.curve.points import Costs, Groups, OperatingCurve
from elang.method.curve.sums import sums_at
from elang.method.quality.sums import settled

# Random orders that a random curve without a closed form is averaged over.
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

    The expected *sums* are exact; for metrics that are not linear in them (F1, Matthews) the value at the
    expected sums stands for the expected value. Those of groups have no closed form: with ``groups`` the quality is the
    mean over 16 seeded random orders, exact at both ends. Arguments and result as in :func:`operating_curve`,
    with an even grid of shares; the thresholds are those of a score that is uniform on ``[0, 1)``.
    """
    n = len(swift)
    deferred = share_grid(n, points, swift.device)
    value, (swift, super_) = settled(value, swift, super_)
    if groups is None:
        quality = value(_expected_sums(deferred, n, swift, super_))
    else:
        orders = _random_orders(n, swift.device)
        quality = _mean([value(sums_at(order, deferred, swift, super_, groups)) for order in orders])
    return _at_random(deferred, quality, n, costs)


def _expected_sums(deferred: Tensor, n: int, swift: Tensor, super_: Tensor) -> Tensor:
    """Expected sums of the mixed statistics, float64 ``(M, S)``, where so many of ``n`` examples are deferred."""
    share = deferred.double()[:, None] / n
    return torch.lerp(swift.sum(0, dtype=torch.float64), super_.sum(0, dtype=torch.float64), share)


def _random_orders(n: int, device: torch.device) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randperm(n, generator=generator).to(device) for _ in range(_ORDERS))


def _mean(qualities: list[Tensor]) -> Tensor:
    """Mean of curves that have their ends in common, which a mean alone would round."""
    found = torch.stack(qualities)
    mean = found.mean(0)
    mean[[0, -1]] = found[0, [0, -1]]
    return mean


def _at_random(deferred: Tensor, quality: Tensor, n: int, costs: Costs | None) -> OperatingCurve:
    threshold = 1 - deferred.double() / n
    return with_costs(threshold, deferred, quality, 1.0, n, partial(_expected_sums, deferred, n), costs)


def random_rescored_curve(
    swift: Tensor,
    super_: Tensor,
    target: Tensor,
    whole: Callable[[Tensor, Tensor], float],
    costs: Costs | None = None,
    points: int = 201,
) -> OperatingCurve:
    """Deferring at random, as :func:`random_curve` for the metrics of :func:`rescored_curve`.

    The quality is the mean over 16 seeded random orders, exact at both ends.
    """
    n = len(target)
    deferred = share_grid(n, points, target.device)
    orders = _random_orders(n, target.device)
    found = [rescored_curve(order, swift, super_, target, whole, points=points).quality for order in orders]
    return _at_random(deferred, _mean(found), n, costs)
