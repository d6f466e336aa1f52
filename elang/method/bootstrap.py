"""Paired bootstrap over examples, and the area of a score by the gain from deferring."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from elang.method.bounds import binomial_cdf
from elang.method.curve.exact import group_changes
from elang.method.curve.points import Groups
from elang.method.deferral import deferral_events
from elang.method.quality.metric import centred, group_sums

_INTERVAL = torch.tensor([0.025, 0.975], dtype=torch.float64)
# Limits the run time. With so many examples that it leaves fewer than _MIN_RESAMPLES, intervals are narrow anyway.
_MAX_DRAWS = 20_000_000
_MIN_RESAMPLES = 100
Each = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps what a long loop goes through, to show how far it is."""


def resamples(n: int, times: int = 1000, seed: int = 0) -> Tensor:
    """How often each of ``n`` examples is drawn in each of ``times`` resamples (Efron, 1979), float64 ``(times, n)``.

    Compare two scores on the same draws: most of the uncertainty is in the examples, which they share.

    >>> resamples(4, times=2).sum(1)
    tensor([4., 4.], dtype=torch.float64)
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(times, n, dtype=torch.float64)
    # In parts: the indices take as much memory as the counts.
    for part in counts.split(100):
        drawn = torch.randint(n, part.shape, generator=generator)
        part.scatter_add_(1, drawn, torch.ones_like(part))
    return counts


def gain_area(score: Tensor, gain: Tensor, weights: Tensor | None = None) -> Tensor:
    """Area under the curve of a metric that is a mean over examples, between random (0) and oracle (1).

    Equals :func:`~elang.method.curve.reading.relative_area` of the mean reward, for many resamples at once: float64
    ``(R,)``, or a scalar without weights. NaN where nothing can be gained.

    Args:
        score: Shape ``(N,)``; larger is harder. Equal scores are deferred together.
        gain: How much better the Super's answer is, shape ``(N,)``.
        weights: How often each example counts, shape ``(R, N)``; by default once.

    >>> float(gain_area(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 0.0])))
    1.0
    """
    counts = torch.ones(1, len(gain)) if weights is None else weights
    score, gain = score.double().cpu(), gain.double().cpu()
    parts = []
    for part in counts.split(100):
        area, best = (_captured(order_by, gain, part.double()) for order_by in (score, gain))
        parts.append(torch.where(best > 1e-12 * part.sum(1), area / best, torch.nan))
    areas = torch.cat(parts)
    return areas[0] if weights is None else areas


def mean_intervals(values: Tensor, times: int = 2000) -> tuple[Tensor, Tensor]:
    """95% intervals of the means of columns ``(N, P)``, by resampling rows: lower and upper ends, float64 ``(P,)``.

    There are at most ``times`` resamples; with too many examples for 100 the normal approximation is used.

    >>> low, high = mean_intervals(torch.tensor([[0.0], [1.0]]).repeat(50, 1))
    >>> float(low) < 0.5 < float(high)
    True
    """
    values, n = values.double(), len(values)
    times = min(times, _MAX_DRAWS // n)
    if times < _MIN_RESAMPLES:
        half = 1.96 * values.std(0, correction=0) / math.sqrt(n)
        return values.mean(0) - half, values.mean(0) + half
    low, high = (resamples(n, times) @ values / n).quantile(_INTERVAL, dim=0)
    return low, high


def mcnemar(worse: int, better: int) -> float:
    """McNemar's exact two-sided p-value, from the number of examples that only one of two models gets right.

    >>> mcnemar(0, 5)
    0.0625
    """
    n = worse + better
    return min(1.0, 2 * binomial_cdf(min(worse, better), n, 0.5)) if n else 1.0


def lost_to_super(lost: Tensor) -> list[dict[str, float]]:
    """The differences of ``P`` pairs' mean worth to the Super's, with their uncertainty.

    Args:
        lost: What each kept example would have gained, 0 where it is deferred, shape ``(N, P)``.

    Returns:
        For each pair its ``difference`` (negative: the pair is worse) with the ends ``low`` and ``high`` of the 95%
        interval. If answers are right or wrong and any differ, also the numbers of ``worse`` and ``better`` answers
        and McNemar's ``p``.
    """
    low, high = mean_intervals(-lost.double())
    results = []
    for column, low_end, high_end in zip(lost.T, low.tolist(), high.tolist(), strict=True):
        result = {"difference": 0.0 - float(column.double().mean()), "low": low_end, "high": high_end}
        if bool(((column.abs() == 1) | (column == 0)).all()) and bool(column.any()):
            worse, better = int((column > 0).sum()), int((column < 0).sum())
            result |= {"worse": worse, "better": better, "p": mcnemar(worse, better)}
        results.append(result)
    return results


def compare_areas(
    scores: dict[str, Tensor], gain: Tensor, chosen: str, times: int = 1000, each: Each = iter
) -> dict[str, dict[str, float]]:
    """Each score's :func:`gain_area`, compared with the ``chosen`` one's on the same resamples, at most ``times``.

    ``each`` wraps the loop over the scores.

    Returns:
        For each score the ends ``low`` and ``high`` of its area's 95% interval, and for all but the chosen one the
        ``difference`` to it with ``difference_low`` and ``difference_high``. Empty where nothing can be gained or there
        are too many examples for 100 resamples.
    """
    times = min(times, _MAX_DRAWS // len(gain))
    if times < _MIN_RESAMPLES or math.isnan(float(gain_area(scores[chosen], gain))):
        return {}
    draws = resamples(len(gain), times)
    areas = {name: gain_area(score, gain, draws) for name, score in each(scores.items())}
    defined = ~areas[chosen].isnan()
    results: dict[str, dict[str, float]] = {}
    for name, area in areas.items():
        low, high = area[defined].quantile(_INTERVAL).tolist()
        results[name] = {"low": low, "high": high}
        if name != chosen:
            low, high = (area - areas[chosen])[defined].quantile(_INTERVAL).tolist()
            difference = float(gain_area(scores[name], gain) - gain_area(scores[chosen], gain))
            results[name] |= {"difference": difference, "difference_low": low, "difference_high": high}
    return results


def _captured(score: Tensor, gain: Tensor, counts: Tensor) -> Tensor:
    """Gain weighted by how early it is deferred, relative to the middle, ``(R,)``."""
    order = score.argsort(descending=True, stable=True)
    counts, gain, score = counts[:, order], gain[order], score[order]
    # Mid-ranks: a tie is one straight step of the curve.
    last = torch.searchsorted(-score, -score, right=True)
    first = torch.searchsorted(-score, -score)
    deferred = torch.nn.functional.pad(counts.cumsum(1), (1, 0))
    # In most sets most gains are 0, and these add nothing.
    nonzero = gain.nonzero().squeeze(1)
    middle = (deferred[:, first[nonzero]] + deferred[:, last[nonzero]]) / 2
    return ((0.5 - middle / deferred[:, -1:]) * counts[:, nonzero]) @ gain[nonzero]


def curve_interval(
    score: Tensor,
    swift: Tensor,
    super_: Tensor,
    value: Callable[[Tensor], Tensor],
    points: int = 101,
    times: int = 2000,
    confidence: float = 0.95,
) -> tuple[Tensor, Tensor, Tensor]:
    """Bootstrap intervals of a metric along the whole :func:`~elang.method.curve.exact.operating_curve`.

    ``confidence`` is that of each interval by itself, not of all together. There are ``times`` resamples, or of many
    examples fewer, at least 100.

    Returns:
        Deferred shares, spread evenly over the examples, lower and upper ends, each ``(points,)`` or shorter.
    """
    counts = resamples(len(score), max(_MIN_RESAMPLES, min(times, _MAX_DRAWS // len(score))))
    deferred, values = _along_curve(score, swift, super_, value, points=points, counts=counts)
    quantiles = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = values.quantile(quantiles, dim=0)
    return deferred.double() / len(score), low, high


def difference_errors(
    scores: dict[str, Tensor],
    swift: Tensor,
    super_: Tensor,
    value: Callable[[Tensor], Tensor],
    groups: Groups | None = None,
    points: int = 101,
    times: int = 200,
    each: Each = iter,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Standard errors of the pair's metric minus the Super's along the curve of each score, by paired bootstrap.

    The error hardly changes from one threshold to the next, so it is computed at an even grid of deferred shares. 200
    resamples know it to 5%. For a metric over groups whole groups are resampled.

    Args:
        scores: By name, each ``(N,)``.
        swift: Per-example statistics under the Swift, ``(N, S)``, as in
            :func:`~elang.method.curve.exact.operating_curve`.
        super_: The same under the Super.
        value: Maps sums of statistics to the metric.
        groups: For a metric over groups.
        points: Size of the grid.
        times: Resamples, at most.
        each: Wraps the loop over the scores.

    Returns:
        For each score the numbers of deferred examples, from 0 to ``N``, and the error at each of them, ``(points,)``
        or shorter. Empty for more than 200,000 examples: with 100 resamples it would take too long, and errors of a
        mean of answers that are worth 0 to 1 are below 0.0025.
    """
    times = min(times, _MAX_DRAWS // len(swift))
    if times < _MIN_RESAMPLES:
        return {}
    counts = resamples(len(swift) if groups is None else len(group_sums(swift, groups.index)[0]), times)
    errors = {}
    for name, score in each(scores.items()):
        deferred, values = _along_curve(score, swift, super_, value, points=points, counts=counts, groups=groups)
        errors[name] = deferred, (values - values[:, -1:]).std(0)
    return errors


def _along_curve(
    score: Tensor,
    swift: Tensor,
    super_: Tensor,
    value: Callable[[Tensor], Tensor],
    *,
    points: int,
    counts: Tensor,
    groups: Groups | None = None,
) -> tuple[Tensor, Tensor]:
    """A metric along a curve in each of ``R`` resamples of examples, or of groups: ``counts``, ``(R, N or G)``.

    Returns:
        Numbers of deferred examples, ``(P,)``, spread evenly, and the metric, float64 ``(R, P)``.
    """
    order, deferred, _ = deferral_events(score)
    ends = deferred[1:]
    ends = ends[torch.linspace(0, len(ends) - 1, min(len(ends), points - 1)).round().long()].unique()
    if groups is None:
        value, (swift, super_) = centred(value, swift, super_)
        unit, kept, change = torch.arange(len(swift)), swift.double(), super_.double() - swift.double()
    else:
        sums, unit = group_sums(swift, groups.index)
        kept, change = groups.statistics(sums), group_changes(order, swift, super_, groups)
    cuts, unit = ends[:-1].tolist(), unit[order]
    changes = change[order].tensor_split(cuts)
    parts = []
    # Of many examples or statistics fewer resamples at a time, for memory.
    for some in counts.split(max(1, (1 << 22) // max(len(score), points * kept.shape[1]))):
        pieces = some[:, unit].tensor_split(cuts, dim=1)
        steps = [piece @ part for piece, part in zip(pieces, changes, strict=True)]
        parts.append(value(torch.stack([some @ kept, *steps], 1).cumsum(1)).double())
    return torch.nn.functional.pad(ends, (1, 0)), torch.cat(parts)
