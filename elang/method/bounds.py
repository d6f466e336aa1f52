"""Bounds on a mean that hold for any number of examples (binomial, Hoeffding-Bentkus, betting), and score drift."""

import math

import torch
from torch import Tensor

# Bets as shares of the largest possible one; with all of it one bad example would lose everything.
BETS = 0.99 * 0.5 ** torch.arange(11, dtype=torch.float64)


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Binomial(n, p), exact.

    >>> round(binomial_cdf(1, 3, 0.5), 6)
    0.5
    """
    if k >= n or p <= 0:
        return 1.0
    if k < 0 or p >= 1:
        return 0.0
    i = torch.arange(k + 1, dtype=torch.float64)
    total = torch.tensor(float(n), dtype=torch.float64)
    log = torch.lgamma(total + 1) - torch.lgamma(i + 1) - torch.lgamma(total - i + 1)
    log = log + i * math.log(p) + (n - i) * math.log1p(-p)
    return min(1.0, float(log.logsumexp(0).exp()))


def log_evidence(values: Tensor, mean: float, maximum: float) -> float:
    """Logarithm of an e-value against "these independent values, at most ``maximum``, have mean ``mean`` or more".

    If the hypothesis is true, the expected winnings of each fixed bet, and of the average of several, are at most 1.
    By Markov's inequality they then exceed 1/p with probability at most p, for every n. Source: Waudby-Smith and
    Ramdas, Estimating means of bounded random variables by betting, 2024.
    """
    return float(log_winnings(values, mean, maximum).sum(1).logsumexp(0)) - math.log(len(BETS))


def log_winnings(values: Tensor, mean: float, maximum: float) -> Tensor:
    """Logarithm of the factor by which each value multiplies each bet's stake, ``(bets, n)``."""
    return torch.log1p(-BETS[:, None] * ((values.double() - mean) / (maximum - mean)).clamp_max(1))


def least_mean(values: Tensor, minimum: float, confidence: float = 0.975) -> float:
    """A lower bound of the mean of independent values of at least ``minimum``, by betting; it holds for every n.

    >>> 0.4 < least_mean(torch.tensor([0.0, 1.0]).repeat(500), 0.0) < 0.5
    True
    """
    low, high = minimum, float(values.double().mean())
    for _ in range(40):
        middle = (low + high) / 2
        refuted = log_evidence(-values, -middle, -minimum) >= -math.log(1 - confidence)
        low, high = (middle, high) if refuted else (low, middle)
    return low


def upper_bound(k: int, n: int, confidence: float) -> float:
    """Clopper and Pearson's upper bound of a probability, after ``k`` events in ``n`` trials.

    >>> round(upper_bound(0, 299, 0.95), 4)
    0.01
    """
    low, high = k / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_cdf(k, n, middle) > 1 - confidence else (low, middle)
    return high


def p_value(regret: float, n: int, allowed: float, exact: bool = True) -> float:
    """p-value of the hypothesis that the mean regret of ``n`` examples is above ``allowed``, in (0, 1).

    Args:
        regret: Sum of the examples' regrets, each in [0, 1].
        n: Number of examples.
        allowed: The hypothesis.
        exact: Each regret is 0 or 1, so the binomial test is exact (Clopper and Pearson, 1934); otherwise Hoeffding and
            Bentkus's bound (Angelopoulos et al., Learn then Test, 2021).
    """
    if exact:
        return binomial_cdf(round(regret), n, allowed)
    mean = regret / n
    if mean >= allowed:
        return 1.0
    bentkus = math.e * binomial_cdf(math.ceil(regret - 1e-9), n, allowed)
    divergence = (1 - mean) * math.log((1 - mean) / (1 - allowed)) + (mean * math.log(mean / allowed) if mean else 0.0)
    return min(1.0, bentkus, math.exp(-n * divergence))


def least_examples(allowed: float, confidence: float) -> int:
    """The smallest number of examples with which anything can be certified, even deferring everything.

    >>> least_examples(0.01, 0.95)
    299
    """
    # Rounding may put the quotient just above an integer.
    return math.ceil(math.log(1 - confidence) / math.log1p(-allowed) - 1e-9)


def quantiles_of(score: Tensor, parts: int = 200) -> list[float]:
    """A summary of a score's distribution: its quantiles at 0, 1/parts, ..., 1."""
    ranked = score.double().sort().values
    ranks = torch.linspace(0, len(ranked) - 1, parts + 1).round().long()
    return [float(quantile) for quantile in ranked[ranks]]


def effective_number(unit: Tensor | None, rows: int) -> float:
    """Number of independent examples that grouped rows are worth at least: N² over the sum of squared sizes (Kish)."""
    if unit is None:
        return float(rows)
    return rows**2 / float(unit.unique(return_counts=True)[1].double().square().sum())


def drift(score: Tensor, quantiles: list[float], n: float, n_new: float | None = None) -> tuple[float, float]:
    """Kolmogorov and Smirnov's distance of new scores from those that a threshold was chosen on, and its p-value.

    The distance is reduced by what the quantiles cannot resolve; the p-value is the asymptotic one of two samples.

    Args:
        score: Of new inputs, shape ``(M,)``.
        quantiles: From :func:`quantiles_of`.
        n: Number of examples behind the quantiles; for grouped ones their :func:`effective_number`.
        n_new: The same for ``score``; by default ``M``.

    >>> drift(torch.arange(500.0), quantiles_of(torch.arange(1000.0)), 1000)[1] < 1e-6
    True
    """
    ranked, known = score.double().sort().values, torch.tensor(quantiles, dtype=torch.float64)
    steps = len(known) - 1
    at_or_below = torch.searchsorted(ranked, known, right=True).double() / len(ranked)
    below = torch.searchsorted(ranked, known).double() / len(ranked)
    expected = torch.arange(steps + 1, dtype=torch.float64) / steps
    distance = float(torch.maximum(below - expected, expected - at_or_below).max())
    distance = max(0.0, distance - 1 / steps)
    n_new = len(ranked) if n_new is None else n_new
    x = distance * math.sqrt(n * n_new / (n + n_new))
    if x < 0.2:
        return distance, 1.0
    tail = 2 * sum((-1) ** (j - 1) * math.exp(-2 * (j * x) ** 2) for j in range(1, 101))
    return distance, min(1.0, max(0.0, tail))
