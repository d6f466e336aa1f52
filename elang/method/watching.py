"""Tests of a stream that may be looked at after every input: the interval of a mean, a bound that breaks, score drift.

All of them are bets whose expected winnings are at most 1, so by Ville's inequality their winnings ever reach ``1 / a``
with probability at most ``a``: it does not matter when, how often, or why one looks. Sources: Waudby-Smith and Ramdas,
Estimating means of bounded random variables by betting, 2024; Shin, Ramdas and Rinaldo, E-detectors, 2024.

A bet is written by its odds: a value in [0, 1] multiplies the stake by ``(1 + odds * value) / (1 + odds * m)``. The
numerator does not depend on the mean ``m``, and by the inequality of arithmetic and geometric means the product of the
denominators is at most that of the average mean. So intervals are of the average of the means so far, even if the mean
changes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# For right and wrong a bet is best if the odds of the true mean are 1 + this many times those of the tested one.
ODDS = 0.5 ** torch.arange(5, -6, -1, dtype=torch.float64)
_BISECTIONS = 40
# Bins of scores, inputs that the distribution of today is read from, and how much the old one counts among them.
_BINS, _WINDOWS, _OLD = 10, (100, 1000), 20.0


def _start_weights(length: int, stride: int) -> tuple[Tensor, Tensor]:
    """The stake of bets that begin before each value, float64 ``(N,)``, and what is left for later ones.

    They begin at every ``stride``-th value; all stakes add up to 1, and fall about as slowly as such stakes can.
    """
    i = torch.arange(length) // stride
    left = 1 / torch.log2(i.double() + 3)
    weight = torch.where(torch.arange(length) % stride == 0, 1 / torch.log2(i.double() + 2) - left, 0.0)
    return weight, left


def restarting(log_factors: Tensor, stride: int = 1) -> Tensor:
    """Logarithm of the winnings of bets that begin at many times, after each value, ``(..., N)``.

    Args:
        log_factors: Logarithm of the factor by which each value multiplies the stake of a bet, ``(..., N)``.
        stride: A bet begins at every so many values.
    """
    weight, left = _start_weights(log_factors.shape[-1], stride)
    total = log_factors.cumsum(-1)
    begun = torch.logcumsumexp(weight.log() - (total - log_factors), -1)
    return torch.logaddexp(total + begun, left.log())


def _mean_of_bets(log_won: Tensor) -> Tensor:
    return log_won.logsumexp(0) - math.log(len(log_won))


def lowest_mean(values: Tensor, at: Tensor, confidence: float, minimum: float = 0.0, maximum: float = 1.0) -> Tensor:
    """Lower bounds of the mean so far that hold at all times together; float64 ``(T,)``.

    Args:
        values: Shape ``(N,)``; each may depend on those before it.
        at: After which values, from 0, the bounds are wanted, int64 ``(T,)``.
        confidence: With this probability no bound is ever above the average of the conditional means so far.
        minimum: No value can be smaller.
        maximum: No value can be larger.

    >>> 0.4 < float(lowest_mean(torch.tensor([0.0, 1.0]).repeat(500), torch.tensor([999]), 0.95)) < 0.5
    True
    """
    share = (values.double() - minimum) / (maximum - minimum)
    count = at.double() + 1
    won = torch.log1p(ODDS[:, None] * share).cumsum(1)[:, at]
    low, high = torch.zeros_like(count), share.cumsum(0)[at] / count
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        refuted = _mean_of_bets(won - count * torch.log1p(ODDS[:, None] * middle)) >= -math.log(1 - confidence)
        low, high = torch.where(refuted, middle, low), torch.where(refuted, high, middle)
    return minimum + (maximum - minimum) * low


def highest_mean(values: Tensor, at: Tensor, confidence: float, minimum: float = 0.0, maximum: float = 1.0) -> Tensor:
    """Upper bounds of the mean so far, as :func:`lowest_mean`."""
    return -lowest_mean(-values.double(), at, confidence, -maximum, -minimum)


def share_bounds(events: int, count: int, confidence: float) -> tuple[float, float]:
    """Bounds of the mean so far after ``events`` in ``count`` inputs, each at half of the error, at all times together.

    >>> low, high = share_bounds(50, 1000, 0.95)
    >>> 0.02 < low < 0.05 < high < 0.09
    True
    """
    if not count:
        return 0.0, 1.0

    def low(events: int) -> float:
        won = events * torch.log1p(ODDS)
        ends = [0.0, events / count]
        for _ in range(_BISECTIONS):
            middle = sum(ends) / 2
            evidence = float(_mean_of_bets(won - count * torch.log1p(ODDS * middle)))
            ends[evidence < -math.log((1 - confidence) / 2)] = middle
        return ends[0]

    return low(events), 1 - low(count - events)


@dataclass(frozen=True)
class Alarm:
    """What bets against "at no time is the mean above a bound" have won.

    Attributes:
        log_won: Logarithm of the winnings after each value, float64 ``(N,)``.
        place: The value, from 0, at which they first refuted it; ``None`` if they have not.
        since: The value at which the mean most likely rose above the bound, if it is refuted.
    """

    log_won: Tensor
    place: int | None = None
    since: int | None = None

    @property
    def p_value(self) -> float:
        """The p-value of all looks together."""
        return min(1.0, math.exp(-float(self.log_won.max()))) if len(self.log_won) else 1.0


def exceeded(values: Tensor, allowed: float, level: float, minimum: float = 0.0, maximum: float = 1.0) -> Alarm:
    """Whether the mean of a stream has ever been above a bound, and since when.

    If each value's mean, given those before it, is at most ``allowed``, the alarm is ever raised with a probability of
    at most ``level``, however long the stream. Bets begin all along it, so that good times before do not delay it.

    Args:
        values: Shape ``(N,)``.
        allowed: The bound.
        level: How often there may be a false alarm.
        minimum: No value can be smaller.
        maximum: No value can be larger.

    >>> exceeded(torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]).repeat(200), 0.25, 0.05).place is None
    True
    >>> exceeded(torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]).repeat(200), 0.1, 0.05).since
    4
    """
    share, bound = (values.double() - minimum) / (maximum - minimum), (allowed - minimum) / (maximum - minimum)
    log_factors = torch.log1p(ODDS[:, None] * share) - torch.log1p(ODDS[:, None] * bound)
    log_won = _mean_of_bets(restarting(log_factors, starts_every(allowed)))
    above = (log_won >= -math.log(level)).nonzero()
    if not len(above):
        return Alarm(log_won)
    place = int(above[0])
    ends = log_factors[:, : place + 1].flip(1).cumsum(1).flip(1)
    return Alarm(log_won, place, int(ends.max(0).values.argmax()))


def starts_every(allowed: float) -> int:
    """How many values apart bets begin against a bound: a short time beside that in which a break shows."""
    return min(100, max(1, round(0.25 / allowed)))


def drift_evidence(score: Tensor, quantiles: list[float], n: float) -> Tensor:
    """Logarithm of the winnings of bets against "scores are distributed as when the threshold was chosen"; ``(N,)``.

    Whatever the distribution, the probability that a new score lies between two of ``n`` earlier ones, by rank, has a
    Dirichlet distribution. So the numbers of new scores in the bins between quantiles follow Polya's urn exactly, with
    the uncertainty of the quantiles in it, and the bets are fair. They are on the distribution of the last inputs.

    Args:
        score: Of new inputs in their order, ``(N,)``.
        quantiles: From :func:`elang.method.bounds.quantiles_of`, of continuous scores; of equal ones no edge is made.
        n: Number of independent examples behind the quantiles.

    >>> float(drift_evidence(torch.arange(500.0) + 600, torch.arange(0.0, 1001, 5).tolist(), 1000)[-1]) > 5
    True
    """
    edges, prior = _bins(quantiles, n)
    place = torch.bucketize(score.double(), edges)
    ones = torch.nn.functional.one_hot(place, len(prior)).double()
    seen = torch.nn.functional.pad(ones.cumsum(0), (0, 0, 1, 0))
    time = torch.arange(len(score))
    expected = (prior + seen[:-1]) / (prior.sum() + time[:, None])
    log_won = []
    for window in _WINDOWS:
        recent = seen[:-1] - seen[(time - window).clamp_min(0)]
        today = (_OLD * prior / prior.sum() + recent) / (_OLD + time.clamp_max(window)[:, None])
        log_won.append(restarting((today / expected).gather(1, place[:, None]).squeeze(1).log(), _BINS))
    return _mean_of_bets(torch.stack(log_won))


def _bins(quantiles: list[float], n: float) -> tuple[Tensor, Tensor]:
    """Edges between bins, and how many of the ``n`` + 1 places among the known scores lie in each bin."""
    values = torch.tensor(quantiles, dtype=torch.float64)
    # Ranks of ties are not known.
    alone = torch.ones(len(values), dtype=torch.bool)
    alone[1:] &= values[1:] > values[:-1]
    alone[:-1] &= values[:-1] < values[1:]
    places = (torch.arange(1, _BINS) * (len(values) - 1) / _BINS).round().long()
    places = places[alone[places]]
    rank = (places / (len(values) - 1) * (n - 1)).round() + 1
    ends = torch.cat([torch.zeros(1), rank, torch.tensor([n + 1.0])]).double()
    return values[places], ends.diff()
