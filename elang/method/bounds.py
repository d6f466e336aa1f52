"""Bounds on a mean that hold for any number of examples (binomial, Hoeffding-Bentkus, betting), and score drift."""

import math

import torch
from torch import Tensor

# Bets as shares of the largest; at all of it one bad example would lose everything.
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
    whole = torch.tensor(float(n), dtype=torch.float64)
    log = torch.lgamma(whole + 1) - torch.lgamma(i + 1) - torch.lgamma(whole - i + 1)
    log = log + i * math.log(p) + (n - i) * math.log1p(-p)
    return min(1.0, float(log.logsumexp(0).exp()))


def log_evidence(values: Tensor, mean: float, most: float) -> float:
    """Logarithm of an e-value: what bets against "the mean of these values is ``mean`` or more" have won.

    If that is so, each bet's expected winnings are 1 at most, and so are those of the average of several fixed bets: by
    Markov's inequality they exceed 1/p with probability p at most, for every n.

    Args:
        values: Independent, at most ``most``, shape ``(n,)``.
        mean: Below ``most``.
        most: The largest value that there can be.

    Source:
        Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, 2024.
    """
    return float(log_winnings(values, mean, most).sum(1).logsumexp(0)) - math.log(len(BETS))


def log_winnings(values: Tensor, mean: float, most: float) -> Tensor:
    """Logarithm of what each bet makes of each value, ``(bets, n)``."""
    return torch.log1p(-BETS[:, None] * ((values.double() - mean) / (most - mean)).clamp_max(1))


def least_mean(values: Tensor, least: float, confidence: float = 0.975) -> float:
    """A lower bound of the mean of independent values that are at least ``least``, by betting: it holds for every n.

    >>> 0.4 < least_mean(torch.tensor([0.0, 1.0]).repeat(500), 0.0) < 0.5
    True
    """
    low, high = least, float(values.double().mean())
    for _ in range(40):
        middle = (low + high) / 2
        refuted = log_evidence(-values, -middle, -least) >= -math.log(1 - confidence)
        low, high = (middle, high) if refuted else (low, middle)
    return low


def upper_bound(k: int, n: int, confidence: float) -> float:
    """Clopper and Pearson's upper bound of a probability of which ``k`` of ``n`` were seen.

    >>> round(upper_bound(0, 299, 0.95), 4)
    0.01
    """
    low, high = k / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_cdf(k, n, middle) > 1 - confidence else (low, middle)
    return high


def p_value(regretted: float, n: int, allowed: float, exact: bool = True) -> float:
    """p-value of the hypothesis that the regret is above ``allowed``.

    Args:
        regretted: Sum of the regret over ``n`` examples.
        n: Number of examples.
        allowed: The regret that is allowed, in (0, 1).
        exact: Each example's regret is 0 or 1, so the binomial test is exact; otherwise Hoeffding and Bentkus's bound
            for regrets in [0, 1].

    Source:
        Angelopoulos et al., Learn then Test, 2021 (Hoeffding-Bentkus); Clopper and Pearson, 1934.
    """
    if exact:
        return binomial_cdf(round(regretted), n, allowed)
    mean = regretted / n
    if mean >= allowed:
        return 1.0
    bentkus = math.e * binomial_cdf(math.ceil(regretted - 1e-9), n, allowed)
    divergence = (1 - mean) * math.log((1 - mean) / (1 - allowed)) + (mean * math.log(mean / allowed) if mean else 0.0)
    return min(1.0, bentkus, math.exp(-n * divergence))


def least_examples(allowed: float, confidence: float) -> int:
    """Examples without which nothing can be certified, not even to defer everything.

    >>> least_examples(0.01, 0.95)
    299
    """
    # Against rounding, by which the quotient may be just above a whole number.
    return math.ceil(math.log(1 - confidence) / math.log1p(-allowed) - 1e-9)


def quantiles_of(score: Tensor, parts: int = 200) -> list[float]:
    """A score's distribution in short: its quantiles at 0, 1/parts, ..., 1."""
    ranked = score.double().sort().values
    places = torch.linspace(0, len(ranked) - 1, parts + 1).round().long()
    found: list[float] = ranked[places].tolist()
    return found


def effective_number(unit: Tensor | None, rows: int) -> float:
    """How many independent examples grouped rows are worth at least: N squared over the sum of squared sizes (Kish)."""
    if unit is None:
        return float(rows)
    return rows**2 / float(unit.unique(return_counts=True)[1].double().square().sum())


def drift(score: Tensor, quantiles: list[float], n: float, own: float | None = None) -> tuple[float, float]:
    """Kolmogorov and Smirnov's distance of a score to the one that a threshold was chosen on, and its p-value.

    Args:
        score: Shape ``(M,)``, of new inputs.
        quantiles: From :func:`quantiles_of`.
        n: Examples that these are of; where they are in groups, their :func:`effective_number`.
        own: The same of ``score``; by default ``M``.

    Returns:
        The distance, less what the quantiles cannot resolve, and the asymptotic two-sample p-value.

    >>> drift(torch.arange(500.0), quantiles_of(torch.arange(1000.0)), 1000)[1] < 1e-6
    True
    """
    ranked, known = score.double().sort().values, torch.tensor(quantiles, dtype=torch.float64)
    steps = len(known) - 1
    below = torch.searchsorted(ranked, known, right=True).double() / len(ranked)
    under = torch.searchsorted(ranked, known).double() / len(ranked)
    place = torch.arange(steps + 1, dtype=torch.float64) / steps
    distance = float(torch.maximum(under - place, place - below).max())
    distance = max(0.0, distance - 1 / steps)
    own = len(ranked) if own is None else own
    x = distance * math.sqrt(n * own / (n + own))
    if x < 0.2:
        return distance, 1.0
    tail = 2 * sum((-1) ** (j - 1) * math.exp(-2 * (j * x) ** 2) for j in range(1, 101))
    return distance, min(1.0, max(0.0, tail))
