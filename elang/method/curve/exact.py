"""The exact operating curve: quality and cost at every threshold, from cumulative sums."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from elang.errors import InputError
from elang.method.curve.points import Costs, Groups, OperatingCurve
from elang.method.deferral import deferral_events
from elang.method.quality.metric import centred, group_sums


def operating_curve(
    score: Tensor,
    swift: Tensor,
    super_: Tensor,
    value: Callable[[Tensor], Tensor],
    costs: Costs | None = None,
    groups: Groups | None = None,
) -> OperatingCurve:
    """Compute the metric and the cost at every threshold, at most ``N + 1`` points.

    Args:
        score: Shape ``(N,)``; larger is harder. Equal scores are deferred together.
        swift: Per-example statistics under the Swift, shape ``(N, S)``, any dtype.
        super_: The same under the Super.
        value: Maps sums of statistics ``(M, S)`` to the metric ``(M,)``.
        costs: Of each input.
        groups: For a metric over groups: ``value`` then takes sums of the groups' statistics.

    Raises:
        InputError: If there are no examples, the shapes differ, a score is not finite, or groups have no index.

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
    value, (swift, super_) = centred(value, swift, super_)
    quality = value(sums_at(order, deferred, swift, super_, groups))
    return with_costs(threshold, deferred, quality, float(score.max()), partial(sums_at, order, deferred), costs)


def with_costs(
    threshold: Tensor,
    deferred: Tensor,
    quality: Tensor,
    hardest: float,
    mixed_sums: Callable[[Tensor, Tensor], Tensor],
    costs: Costs | None,
) -> OperatingCurve:
    """Complete a curve; ``mixed_sums`` maps costs of kept and deferred examples, ``(N, 1)``, to sums ``(M, 1)``.

    The last point is the Super alone: nothing has to be scored to defer everything, so the Swift does not run.
    """
    n = int(deferred[-1])
    cost, mean_super_cost, scored_cost = torch.full_like(quality, math.nan), math.nan, math.nan
    if costs is not None:
        for values in (costs.swift, costs.super_, costs.deferred):
            if values is not None and values.shape != (n,):
                raise InputError(f"Costs of {n} examples must have shape ({n},), not {tuple(values.shape)}.")
        if_kept, if_deferred = costs.kept_and_deferred
        cost = mixed_sums(if_kept[:, None], if_deferred[:, None]).squeeze(1) / n
        mean_super_cost, scored_cost = float(costs.super_.double().mean()), float(cost[-1])
        cost[-1] = mean_super_cost
    return OperatingCurve(threshold, deferred, quality, cost, mean_super_cost, n, hardest, scored_cost)


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

    A point of the grid that would separate equal scores moves down to where all of them are kept. The curve is not
    known between its points: :func:`at_threshold` gives the next point that defers at least as many as the threshold.

    Scores, costs and errors are those of :func:`operating_curve`. ``swift`` and ``super_`` are predictions, ``(N,)``
    like the targets; ``whole`` maps all predictions and targets to the metric. The grid has at most ``points`` points.
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
    rank = torch.empty_like(order)
    rank[order] = torch.arange(n, device=order.device)
    qualities = [whole(torch.where(rank < k, super_, swift), target) for k in deferred.tolist()]
    quality = torch.tensor(qualities, dtype=torch.float64, device=score.device)
    return with_costs(threshold, deferred, quality, float(score.max()), partial(sums_at, order, deferred), costs)


# Elements of statistics that are converted to float64 at a time; bounds the memory of a sweep.
_CHUNK = 1 << 21


def sums_at(order: Tensor, deferred: Tensor, swift: Tensor, super_: Tensor, groups: Groups | None = None) -> Tensor:
    """Sums of the mixed statistics, float64 ``(M, S)``, with the first ``deferred[m]`` of ``order`` deferred."""
    if groups is None:
        total, last = (x.sum(0, dtype=torch.float64) for x in (swift, super_))
    else:
        total, last = (
            groups.statistics(group_sums(x, groups.index)[0]).sum(0, dtype=torch.float64) for x in (swift, super_)
        )
        super_ = group_changes(order, swift, super_, groups)
        swift = torch.zeros_like(super_[:1]).expand_as(super_)
    sums = torch.empty(len(deferred), swift.shape[1], dtype=torch.float64, device=swift.device)
    sums[0] = total
    rows = max(1, _CHUNK // swift.shape[1])
    done = 1
    for start in range(0, len(order), rows):
        chunk = order[start : start + rows]
        running = (super_[chunk].double() - swift[chunk].double()).cumsum_(0).add_(total)
        stop = int(torch.searchsorted(deferred, start + len(chunk), right=True))
        sums[done:stop] = running[deferred[done:stop] - 1 - start]
        done, total = stop, running[-1]
    # Sums of floats depend on their order; the end of the curve must equal the Super to the last bit.
    sums[-1] = last
    return sums


def group_changes(order: Tensor, swift: Tensor, super_: Tensor, groups: Groups) -> Tensor:
    """What deferring each example, in this order, adds to its group's statistics: float64 ``(N, S')`` by example."""
    swift_sums, row = group_sums(swift, groups.index)
    # Group after group, and in the order of deferral within each.
    events = order[row[order].argsort(stable=True)]
    row = row[events]
    is_first = torch.ones(len(events), dtype=torch.bool, device=row.device)
    is_first[1:] = row[1:] != row[:-1]
    changes: list[Tensor] = []
    before = swift_sums.new_zeros(1, swift.shape[1])
    rows = max(1, _CHUNK // swift.shape[1])
    for start in range(0, len(events), rows):
        chunk, group, first = (x[start : start + rows] for x in (events, row, is_first[:, None]))
        after = super_[chunk].double() - swift[chunk].double()
        # A group may continue from the previous chunk.
        after[:1] += before[-1:].masked_fill(first[:1], 0.0)
        _cumsum_within(after, first)
        before = torch.cat([before[-1:], after])
        earlier = before[:-1].masked_fill(first, 0.0)
        changes.append(groups.statistics(swift_sums[group] + after) - groups.statistics(swift_sums[group] + earlier))
    in_order = torch.cat(changes)
    return torch.empty_like(in_order).index_copy_(0, events, in_order)


def _cumsum_within(values: Tensor, is_first: Tensor) -> None:
    """Cumulate ``(N, S)`` in place, restarting where ``is_first``, ``(N, 1)``.

    In log N steps of doubling reach: subtracting cumulative sums would carry rounding from group to group.
    """
    place = torch.arange(len(values), device=values.device)[:, None]
    place = place - torch.where(is_first, place, 0).cummax(0).values
    reach, longest = 1, int(place.max())
    while reach <= longest:
        values[reach:] += values[:-reach].masked_fill(place[reach:] < reach, 0.0)
        reach *= 2
