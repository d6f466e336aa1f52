"""The exact operating curve of a Swift and a Super, and what is read off it.

With ``a_i`` and ``b_i`` the statistics of example ``i`` under the Swift and the Super, the pair that defers the
``k`` hardest examples has ``sum a + cumsum(b - a)[k]``. One sort and one cumulative sum give every metric of
:mod:`elang.quality` at every threshold, equal to scoring the mixed answers again at each. Where a metric adds up
over groups of examples, each deferral changes the statistics of its group, and the changes are cumulated the same way.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from elang.errors import InputError
from elang.quality import group_sums, settled
from elang.scores import check_finite

# Elements of statistics that are widened to float64 at a time; bounds the memory of a sweep.
_CHUNK = 1 << 21
# Random orders that a random curve without a closed form is averaged over.
_ORDERS = 16


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
    deferred_cost: Tensor | None = None,
    group: Tensor | None = None,
    by_group: Callable[[Tensor], Tensor] | None = None,
) -> OperatingCurve:
    """Compute the metric and the cost at every threshold.

    Args:
        score: Shape ``(N,)``; larger is harder. Ties move together.
        swift: Per-example statistics under the Swift, shape ``(N, S)``, any dtype.
        super_: The same under the Super.
        value: Maps sums of statistics ``(M, S)`` to the metric ``(M,)``.
        swift_cost: Cost of each input under the Swift, shape ``(N,)``.
        super_cost: The same under the Super.
        deferred_cost: What the Swift costs for an input that is deferred, shape ``(N,)``: less than ``swift_cost``
            when the decision falls before the Swift is done. Default ``swift_cost``.
        group: The group of each example, integers ``(N,)``, for a metric over groups. Examples are still deferred
            one by one.
        by_group: Maps sums over the examples of a group ``(..., S)`` to the group's statistics ``(..., S')``;
            ``value`` then takes sums of these over all groups. Without it ``group`` is not read.

    Returns:
        The curve, with at most ``N + 1`` points.

    Raises:
        InputError: If there are no examples, the shapes differ, a score is not finite, or ``by_group`` has no
            ``group``.

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
    if n and (score.ndim != 1 or swift.shape != super_.shape or len(swift) != n or swift.ndim != 2):
        raise InputError(
            f"Scores {tuple(score.shape)} and statistics {tuple(swift.shape)} of the Swift and "
            f"{tuple(super_.shape)} of the Super must have shapes (N,), (N, S) and (N, S)."
        )
    order, deferred, threshold = deferral_events(score)
    value, (swift, super_) = settled(value, swift, super_)
    quality = value(_sums_at(order, deferred, swift, super_, group, by_group))
    mixed = partial(_sums_at, order, deferred)
    return _with_costs(
        threshold, deferred, quality, float(score.max()), n, mixed, swift_cost, super_cost, deferred_cost
    )


def deferral_events(score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort the examples by falling score; equal ones are deferred together.

    Returns:
        Their order ``(N,)``, and for each of the ``M`` points the number of deferred ones and the threshold.

    Raises:
        InputError: If there are none, or a score is not finite.
    """
    n = score.numel()
    if n == 0:
        raise InputError("An operating curve needs at least one example, but there are none.")
    check_finite(score, "score")
    ordered, order = torch.sort(score, descending=True, stable=True)
    last_of_ties = torch.ones(n, dtype=torch.bool, device=score.device)
    last_of_ties[:-1] = ordered[1:] != ordered[:-1]
    deferred = torch.cat([order.new_zeros(1), last_of_ties.nonzero().squeeze(1) + 1])
    # Just below the hardest kept score lies no example, so that score itself is the threshold.
    threshold = torch.full((len(deferred),), -math.inf, dtype=torch.float64, device=score.device)
    threshold[:-1] = ordered[deferred[:-1]].double()
    threshold[0] = math.inf
    return order, deferred, threshold


def _with_costs(
    threshold: Tensor,
    deferred: Tensor,
    quality: Tensor,
    hardest: float,
    n: int,
    mixed: Callable[[Tensor, Tensor], Tensor],
    swift_cost: Tensor | None = None,
    super_cost: Tensor | None = None,
    deferred_cost: Tensor | None = None,
) -> OperatingCurve:
    """Complete a curve; ``mixed`` maps what kept and deferred examples pay, ``(N, 1)``, to sums ``(M, 1)``."""
    cost, mean_super_cost = torch.full_like(quality, math.nan), math.nan
    for given in (swift_cost, super_cost, deferred_cost):
        if given is not None and given.shape != (n,):
            raise InputError(f"Costs of {n} examples must have shape ({n},), not {tuple(given.shape)}.")
    if swift_cost is not None and super_cost is not None:
        left = swift_cost if deferred_cost is None else deferred_cost
        cost = mixed(swift_cost[:, None], (left.double() + super_cost)[:, None]).squeeze(1) / n
        mean_super_cost = float(super_cost.double().mean())
    return OperatingCurve(threshold, deferred, quality, cost, mean_super_cost, n, hardest)


def _sums_at(
    order: Tensor,
    deferred: Tensor,
    swift: Tensor,
    super_: Tensor,
    group: Tensor | None = None,
    by_group: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Sums of the mixed statistics, float64 ``(M, S)``, with the first ``deferred[m]`` of ``order`` deferred."""
    if by_group is None:
        total, last = (x.sum(0, dtype=torch.float64) for x in (swift, super_))
    else:
        total, last = (by_group(group_sums(x, group)[0]).sum(0, dtype=torch.float64) for x in (swift, super_))
        super_ = _group_changes(order, swift, super_, group, by_group)
        swift = torch.zeros_like(super_[:1]).expand_as(super_)
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
    out[-1] = last
    return out


def _group_changes(
    order: Tensor, swift: Tensor, super_: Tensor, group: Tensor | None, by_group: Callable[[Tensor], Tensor]
) -> Tensor:
    """What deferring each example, in this order, adds to its group's statistics: float64 ``(N, S')`` by example."""
    kept, row = group_sums(swift, group)
    # Group after group, and in the order of deferral within each.
    events = order[row[order].argsort(stable=True)]
    row = row[events]
    opens = torch.ones(len(events), dtype=torch.bool, device=row.device)
    opens[1:] = row[1:] != row[:-1]
    changes: list[Tensor] = []
    before = kept.new_zeros(1, swift.shape[1])
    rows = max(1, _CHUNK // swift.shape[1])
    for start in range(0, len(events), rows):
        chosen, own, fresh = (x[start : start + rows] for x in (events, row, opens[:, None]))
        after = super_[chosen].double() - swift[chosen].double()
        # What came before this chunk, if its first group began there.
        after[:1] += before[-1:].masked_fill(fresh[:1], 0.0)
        _cumsum_within(after, fresh)
        before = torch.cat([before[-1:], after])
        changes.append(by_group(kept[own] + after) - by_group(kept[own] + before[:-1].masked_fill(fresh, 0.0)))
    found = torch.cat(changes)
    return torch.empty_like(found).index_copy_(0, events, found)


def _cumsum_within(values: Tensor, opens: Tensor) -> None:
    """Cumulate ``(N, S)`` in place, starting anew where ``opens``, ``(N, 1)``.

    In log N steps of doubling reach: to subtract cumulative sums would carry rounding from group to group.
    """
    place = torch.arange(len(values), device=values.device)[:, None]
    place = place - torch.where(opens, place, 0).cummax(0).values
    reach, longest = 1, int(place.max())
    while reach <= longest:
        values[reach:] += values[:-reach].masked_fill(place[reach:] < reach, 0.0)
        reach *= 2


def _grid(n: int, points: int, device: torch.device) -> Tensor:
    """Numbers of deferred examples at an even grid of shares, from 0 to ``n``."""
    if n == 0 or points < 2:
        raise InputError(f"A grid needs at least one example and 2 points, but there are {n} and {points}.")
    return torch.linspace(0, n, min(points, n + 1), dtype=torch.float64, device=device).round().long()


def random_curve(
    swift: Tensor,
    super_: Tensor,
    value: Callable[[Tensor], Tensor],
    swift_cost: Tensor | None = None,
    super_cost: Tensor | None = None,
    deferred_cost: Tensor | None = None,
    group: Tensor | None = None,
    by_group: Callable[[Tensor], Tensor] | None = None,
    points: int = 1001,
) -> OperatingCurve:
    """Deferring at random, in expectation: the floor of every report.

    The expected *sums* are exact; for metrics that are not linear in them (F1, Matthews) the value at the
    expected sums stands for the expected value. Those of groups have no closed form: with ``by_group`` the quality is
    the mean over 16 seeded random orders, exact at both ends. Arguments and result as in :func:`operating_curve`,
    with an even grid of shares; the thresholds are those of a score that is uniform on ``[0, 1)``.
    """
    n = len(swift)
    deferred = _grid(n, points, swift.device)
    value, (swift, super_) = settled(value, swift, super_)
    if by_group is None:
        quality = value(_expected_sums(deferred, n, swift, super_))
    else:
        orders = _random_orders(n, swift.device)
        quality = _mean([value(_sums_at(order, deferred, swift, super_, group, by_group)) for order in orders])
    return _at_random(deferred, quality, n, swift_cost, super_cost, deferred_cost)


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


def _at_random(deferred: Tensor, quality: Tensor, n: int, *costs: Tensor | None) -> OperatingCurve:
    threshold = 1 - deferred.double() / n
    return _with_costs(threshold, deferred, quality, 1.0, n, partial(_expected_sums, deferred, n), *costs)


def rescored_curve(
    score: Tensor,
    swift: Tensor,
    super_: Tensor,
    target: Tensor,
    whole: Callable[[Tensor, Tensor], float],
    swift_cost: Tensor | None = None,
    super_cost: Tensor | None = None,
    deferred_cost: Tensor | None = None,
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
        swift_cost: As in :func:`operating_curve`.
        super_cost: As there.
        deferred_cost: As there.
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
    grid = torch.searchsorted(deferred, _grid(n, points, score.device), right=True) - 1
    grid = grid.unique_consecutive()
    deferred, threshold = deferred[grid], threshold[grid]
    place = torch.empty_like(order)
    place[order] = torch.arange(n, device=order.device)
    quality = torch.tensor(
        [whole(torch.where(place < k, super_, swift), target) for k in deferred.tolist()],
        dtype=torch.float64,
        device=score.device,
    )
    mixed = partial(_sums_at, order, deferred)
    return _with_costs(
        threshold, deferred, quality, float(score.max()), n, mixed, swift_cost, super_cost, deferred_cost
    )


def random_rescored_curve(
    swift: Tensor,
    super_: Tensor,
    target: Tensor,
    whole: Callable[[Tensor, Tensor], float],
    swift_cost: Tensor | None = None,
    super_cost: Tensor | None = None,
    deferred_cost: Tensor | None = None,
    points: int = 201,
) -> OperatingCurve:
    """Deferring at random, as :func:`random_curve` for the metrics of :func:`rescored_curve`.

    The quality is the mean over 16 seeded random orders, exact at both ends.
    """
    n = len(target)
    deferred = _grid(n, points, target.device)
    orders = _random_orders(n, target.device)
    found = [rescored_curve(order, swift, super_, target, whole, points=points).quality for order in orders]
    return _at_random(deferred, _mean(found), n, swift_cost, super_cost, deferred_cost)


def oracle_score(gain: Tensor) -> Tensor:
    """The score of a router that knows both answers: the ceiling of every report.

    It defers first where the Super gains most, in classification what only the Super gets right, and last where it
    loses most. For metrics that are not a mean over examples (F1, Matthews) this order is a strong router, not a
    proven optimum.

    Args:
        gain: How much better the Super's answer is than the Swift's, shape ``(N,)``; in classification 1, 0 or -1.

    Returns:
        Float64, shape ``(N,)``, all values distinct; larger is harder. Of equal gains the earlier is the harder one.

    Raises:
        InputError: If a gain is not finite.

    >>> oracle_score(torch.tensor([0.0, 1.0, 0.0]))
    tensor([2., 3., 1.], dtype=torch.float64)
    """
    check_finite(gain, "gain")
    score = torch.empty(len(gain), dtype=torch.float64, device=gain.device)
    score[gain.argsort(descending=True, stable=True)] = torch.arange(len(gain), 0, -1, device=gain.device).double()
    return score


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
