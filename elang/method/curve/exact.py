"""The metric and the cost at every threshold, exact: :func:`operating_curve`, and metrics that are not sums."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from elang.errors import InputError
from elang.method.curve.points import Costs, Groups, OperatingCurve
from elang.method.curve.sums import sums_at
from elang.method.deferral import deferral_events
from elang.method.quality.sums import settled


def operating_curve(
    score: Tensor,
    swift: Tensor,
    super_: Tensor,
    value: Callable[[Tensor], Tensor],
    costs: Costs | None = None,
    groups: Groups | None = None,
) -> OperatingCurve:
    """Compute the metric and the cost at every threshold.

    Args:
        score: Shape ``(N,)``; larger is harder. Ties move together.
        swift: Per-example statistics under the Swift, shape ``(N, S)``, any dtype.
        super_: The same under the Super.
        value: Maps sums of statistics ``(M, S)`` to the metric ``(M,)``.
        costs: Of each input.
        groups: For a metric over groups: ``value`` then takes sums of the groups' statistics.

    Returns:
        The curve, with at most ``N + 1`` points.

    Raises:
        InputError: If there are no examples, the shapes differ, a score is not finite, or groups have no
            index.

    >>> from elang.method.quality.labels import accuracy
    >>> q, target = accuracy(2), torch.tensor([1, 1, 0])
    >>> a = q.statistics(torch.tensor([1, 0, 0]), target)
    >>> curve = operating_curve(torch.tensor([-3., 1., -2.]), a, q.statistics(target, target), q.value)
    >>> curve.quality
    tensor([0.6667, 1.0000, 1.0000, 1.0000], dtype=torch.float64)
    >>> curve[1].threshold
    -2.0
    """
    n = score.numel()
    if n and (score.ndim != 1 or swift.shape != super_.shape or len(swift) != n or swift.ndim != 2):
        raise InputError(
            f"Scores {tuple(score.shape)} and statistics {tuple(swift.shape)} of the Swift and "
            f"{tuple(super_.shape)} of the Super must have shapes (N,), (N, S) and (N, S)."
        )
    order, deferred, threshold = deferral_events(score)
    value, (swift, super_) = settled(value, swift, super_)
    quality = value(sums_at(order, deferred, swift, super_, groups))
    mixed = partial(sums_at, order, deferred)
    return with_costs(threshold, deferred, quality, float(score.max()), n, mixed, costs)


def with_costs(
    threshold: Tensor,
    deferred: Tensor,
    quality: Tensor,
    hardest: float,
    n: int,
    mixed: Callable[[Tensor, Tensor], Tensor],
    costs: Costs | None = None,
) -> OperatingCurve:
    """Complete a curve; ``mixed`` maps what kept and deferred examples pay, ``(N, 1)``, to sums ``(M, 1)``."""
    cost, mean_super_cost = torch.full_like(quality, math.nan), math.nan
    if costs is not None:
        for given in (costs.swift, costs.super_, costs.deferred):
            if given is not None and given.shape != (n,):
                raise InputError(f"Costs of {n} examples must have shape ({n},), not {tuple(given.shape)}.")
        kept, left = costs.kept_and_deferred
        cost = mixed(kept[:, None], left[:, None]).squeeze(1) / n
        mean_super_cost = float(costs.super_.double().mean())
    return OperatingCurve(threshold, deferred, quality, cost, mean_super_cost, n, hardest)


def share_grid(n: int, points: int, device: torch.device) -> Tensor:
    """Numbers of deferred examples at an even grid of shares, from 0 to ``n``."""
    if n == 0 or points < 2:
        raise InputError(f"A grid needs at least one example and 2 points, but there are {n} and {points}.")
    return torch.linspace(0, n, min(points, n + 1), dtype=torch.float64, device=device).round().long()


def rescored_curve(
    score: Tensor,
    swift: Tensor,
    super_: Tensor,
    target: Tensor,
    whole: Callable[[Tensor, Tensor], float],
    costs: Costs | None = None,
    points: int = 201,
) -> OperatingCurve:
    """The curve of a metric that is no function of sums, scored anew at an even grid of shares.

    A point of the grid that would part equal scores moves down to where all of them stay. Between its points the
    curve knows nothing: :func:`at_threshold` gives the next point that defers as many as the threshold does or more.

    Args:
        score: Shape ``(N,)``; larger is harder.
        swift: The Swift's predictions, shape ``(N,)``.
        super_: The Super's.
        target: Shape ``(N,)``.
        whole: Maps all predictions and targets to the metric.
        costs: Of each input.
        points: Size of the grid.

    Returns:
        The curve, with at most ``points`` points; both ends are among them.

    Raises:
        InputError: If there are no examples, the shapes differ, or a score is not finite.
    """
    n = score.numel()
    if not score.shape == swift.shape == super_.shape == target.shape == (n,):
        raise InputError(
            f"Scores {tuple(score.shape)}, predictions {tuple(swift.shape)} of the Swift and {tuple(super_.shape)} of "
            f"the Super and targets {tuple(target.shape)} must all have shape (N,)."
        )
    order, deferred, threshold = deferral_events(score)
    grid = torch.searchsorted(deferred, share_grid(n, points, score.device), right=True) - 1
    grid = grid.unique_consecutive()
    deferred, threshold = deferred[grid], threshold[grid]
    place = torch.empty_like(order)
    place[order] = torch.arange(n, device=order.device)
    quality = torch.tensor(
        [whole(torch.where(place < k, super_, swift), target) for k in deferred.tolist()],
        dtype=torch.float64,
        device=score.device,
    )
    mixed = partial(sums_at, order, deferred)
    return with_costs(threshold, deferred, quality, float(score.max()), n, mixed, costs)
