"""Paired bootstrap over examples, and the area of a score by what deferring gains."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from elang.method.bounds import binomial_cdf
from elang.method.deferral import deferral_events
from elang.method.quality.metric import settled

_ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)
# Draws at a time that are worth their seconds; of more examples than that allows, intervals are narrow anyway.
_MOST_DRAWS = 20_000_000
_LEAST_TIMES = 100


def resamples(n: int, times: int = 1000, seed: int = 0) -> Tensor:
    """How often each of ``n`` examples is drawn in each of ``times`` resamples, float64 ``(times, n)``.

    Two scores are compared on the same draws, for most of the uncertainty is in the examples, which they share.

    Source:
        Efron, Annals of Statistics 1979.

    >>> resamples(4, times=2).sum(1)
    tensor([4., 4.], dtype=torch.float64)
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(times, n, dtype=torch.float64)
    # In parts, for the indices take as much memory as the counts.
    for part in counts.split(100):
        drawn = torch.randint(n, part.shape, generator=generator)
        part.scatter_add_(1, drawn, torch.ones_like(part))
    return counts


def gain_area(score: Tensor, gain: Tensor, weights: Tensor | None = None) -> Tensor:
    """Area under the curve of a metric that is a mean over examples, between random (0) and oracle (1).

    The same number as :func:`~elang.method.curve.reading.relative_area` of the mean of the rewards, for many resamples
    at once.

    Args:
        score: Shape ``(N,)``; larger is harder. Equal scores are deferred together.
        gain: How much better the Super's answer is, shape ``(N,)``.
        weights: How often each example counts, shape ``(R, N)``; by default once.

    Returns:
        Float64, shape ``(R,)``, or a scalar without weights; NaN where nothing can be gained.

    >>> float(gain_area(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 0.0])))
    1.0
    """
    counts = torch.ones(1, len(gain)) if weights is None else weights
    score, gain = score.double().cpu(), gain.double().cpu()
    parts = []
    for part in counts.split(100):
        own, best = (_captured(by, gain, part.double()) for by in (score, gain))
        parts.append(torch.where(best > 1e-12 * part.sum(1), own / best, torch.nan))
    found = torch.cat(parts)
    return found[0] if weights is None else found


def mean_intervals(values: Tensor, times: int = 2000) -> tuple[Tensor, Tensor]:
    """95% intervals of means over examples, which are drawn again, the same ones for every column.

    Args:
        values: Shape ``(N, P)``.
        times: Resamples at most; where there are too many examples for 100, the normal approximation is taken.

    Returns:
        Lower and upper ends, float64 ``(P,)`` each.

    >>> low, high = mean_intervals(torch.tensor([[0.0], [1.0]]).repeat(50, 1))
    >>> float(low) < 0.5 < float(high)
    True
    """
    values, n = values.double(), len(values)
    times = min(times, _MOST_DRAWS // n)
    if times < _LEAST_TIMES:
        half = 1.96 * values.std(0, correction=0) / math.sqrt(n)
        return values.mean(0) - half, values.mean(0) + half
    low, high = (resamples(n, times) @ values / n).quantile(_ENDS, dim=0)
    return low, high


def mcnemar(worse: int, better: int) -> float:
    """McNemar's exact two-sided p-value, of two models' right answers that the other has wrong.

    >>> mcnemar(0, 5)
    0.0625
    """
    n = worse + better
    return min(1.0, 2 * binomial_cdf(min(worse, better), n, 0.5)) if n else 1.0


def lost_to_super(lost: Tensor) -> list[dict[str, float]]:
    """How much a pair's mean worth differs from the Super's, and how sure that is.

    Args:
        lost: What each kept example would have gained, 0 where it is deferred, shape ``(N, P)`` for so many pairs.

    Returns:
        For each pair its ``difference`` (negative: the pair is worse) with the ends ``low`` and ``high`` of the 95%
        interval; of answers that are right or wrong, where any differs, also how many are ``worse`` and ``better``
        than the Super's, and McNemar's ``p``.
    """
    low, high = mean_intervals(-lost.double())
    found = []
    for column, a, b in zip(lost.T, low.tolist(), high.tolist(), strict=True):
        one = {"difference": 0.0 - float(column.double().mean()), "low": a, "high": b}
        if bool(((column.abs() == 1) | (column == 0)).all()) and bool(column.any()):
            worse, better = int((column > 0).sum()), int((column < 0).sum())
            one |= {"worse": worse, "better": better, "p": mcnemar(worse, better)}
        found.append(one)
    return found


def compare_areas(
    scores: dict[str, Tensor], gain: Tensor, chosen: str, times: int = 1000
) -> dict[str, dict[str, float]]:
    """Each score's area by what deferring gains, and its difference to the chosen score's, on the same resamples.

    Args:
        scores: By name, each ``(N,)``.
        gain: How much better the Super's answer is, ``(N,)``.
        chosen: The score that the others are compared with.
        times: Resamples at most.

    Returns:
        For each score the ends ``low`` and ``high`` of its area's 95% interval, and but for the chosen one the
        ``difference`` to it with ``difference_low`` and ``difference_high``. Empty where nothing can be gained or there
        are too many examples for 100 resamples.
    """
    times = min(times, _MOST_DRAWS // len(gain))
    if times < _LEAST_TIMES or math.isnan(float(gain_area(scores[chosen], gain))):
        return {}
    drawn = resamples(len(gain), times)
    areas = {name: gain_area(score, gain, drawn) for name, score in scores.items()}
    there = ~areas[chosen].isnan()
    found: dict[str, dict[str, float]] = {}
    for name, area in areas.items():
        low, high = area[there].quantile(_ENDS).tolist()
        found[name] = {"low": low, "high": high}
        if name != chosen:
            low, high = (area - areas[chosen])[there].quantile(_ENDS).tolist()
            own = float(gain_area(scores[name], gain) - gain_area(scores[chosen], gain))
            found[name] |= {"difference": own, "difference_low": low, "difference_high": high}
    return found


def _captured(score: Tensor, gain: Tensor, counts: Tensor) -> Tensor:
    """Gain weighted by how early it is deferred, against the middle, ``(R,)``."""
    order = score.argsort(descending=True, stable=True)
    counts, gain, score = counts[:, order], gain[order], score[order]
    # Mid-ranks: a tie is one step of the curve, which is straight in between.
    last = torch.searchsorted(-score, -score, right=True)
    first = torch.searchsorted(-score, -score)
    done = torch.nn.functional.pad(counts.cumsum(1), (1, 0))
    # The others add nothing, and in most sets they are most.
    some = gain.nonzero().squeeze(1)
    middle = (done[:, first[some]] + done[:, last[some]]) / 2
    return ((0.5 - middle / done[:, -1:]) * counts[:, some]) @ gain[some]


def curve_interval(
    score: Tensor,
    swift: Tensor,
    super_: Tensor,
    value: Callable[[Tensor], Tensor],
    points: int = 101,
    times: int = 2000,
    confidence: float = 0.95,
) -> tuple[Tensor, Tensor, Tensor]:
    """The interval of a metric at thresholds all along the curve, examples being drawn again.

    Args:
        score: Shape ``(N,)``; larger is harder.
        swift: Per-example statistics under the Swift, shape ``(N, S)``.
        super_: The same under the Super.
        value: Maps sums of statistics ``(..., S)`` to the metric.
        points: Thresholds, spread evenly over the examples.
        times: Resamples.
        confidence: Of each interval by itself, not of all together.

    Returns:
        Deferred shares, lower and upper ends, each ``(points,)`` at most; equal scores are deferred together.
    """
    order, deferred, _ = deferral_events(score)
    value, (swift, super_) = settled(value, swift, super_)
    ends = deferred[1:]
    ends = ends[torch.linspace(0, len(ends) - 1, min(len(ends), points - 1)).round().long()].unique()
    own, change = swift[order].double(), (super_[order].double() - swift[order].double())
    parts = []
    for drawn in resamples(len(score), times).split(100):
        draws = drawn[:, order]
        pieces = torch.tensor_split(draws, ends[:-1].tolist(), dim=1)
        steps = [piece @ some for piece, some in zip(pieces, change.tensor_split(ends[:-1].tolist()), strict=True)]
        sums = torch.stack([draws @ own, *steps], 1).cumsum(1)
        parts.append(value(sums))
    ends_of = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = torch.cat(parts).double().quantile(ends_of, dim=0)
    return torch.nn.functional.pad(ends.double() / len(score), (1, 0)), low, high
