"""What a threshold promises on new inputs: exact tests of its regret, a bootstrap of its quality, drift of its scores.

Regret is what deferring more would have gained: the mean over inputs of ``max(0, Super's worth - Swift's worth)`` where
the Swift's answer is kept. Of answers that are right or wrong it is P(kept, Swift wrong, Super right). It falls as more
is deferred, which a metric need not.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from elang.curve import deferral_events
from elang.errors import InputError
from elang.scores import route


@dataclass(frozen=True)
class Certificate:
    """A threshold with what is known of its regret.

    Attributes:
        threshold: Inputs that score above it are deferred; ``-inf`` defers all.
        num_examples: ``n``.
        regretted: Sum of the regret over the examples.
        deferred_share: On the same examples.
        p_value: Of the hypothesis that the regret is larger than allowed.
    """

    threshold: float
    num_examples: int
    regretted: float
    deferred_share: float
    p_value: float


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
    return math.ceil(math.log(1 - confidence) / math.log(1 - allowed))


def certify_regret(
    score: Tensor, gain: Tensor, allowed: float, confidence: float = 0.95, exact: bool | None = None
) -> Certificate | None:
    """The least deferral whose regret is at most ``allowed``, with confidence: fixed-sequence testing.

    Thresholds are tested from deferring everything downwards, each at the whole level, until the first one that is
    not certified. With probability ``confidence`` over the choice of the examples the regret on new inputs like them
    is at most ``allowed``, whichever threshold comes out.

    Args:
        score: Shape ``(N,)``; larger is harder.
        gain: How much better the Super's answer is, shape ``(N,)``, in [-1, 1].
        allowed: In (0, 1).
        confidence: In (0, 1).
        exact: Answers are right or wrong, nothing in between; by default told by these gains.

    Returns:
        ``None`` if nothing can be certified, not even to defer everything.

    Raises:
        InputError: If the gains are not in [-1, 1], or a share is not one.

    Source:
        Angelopoulos et al., Learn then Test, 2021; for monotone risks the same as Bates et al., 2021.

    >>> certify_regret(torch.arange(1000.0), (torch.arange(1000) > 700).double(), 0.05).threshold
    738.0
    """
    for name, value in (("regret that is allowed", allowed), ("confidence", confidence)):
        if not 0 < value < 1:
            raise InputError(f"The {name} must be between 0 and 1, but it is {value}.")
    regret = gain.double().clamp_min(0)
    if len(gain) == 0 or not bool((gain.abs() <= 1).all()):
        raise InputError("A regret can be certified where each answer is worth 0 to 1; these gains are not in [-1, 1].")
    binary = bool(((regret == 0) | (regret == 1)).all())
    exact = binary if exact is None else exact and binary
    order, deferred, threshold = deferral_events(score)
    # Index 0 keeps nothing; regret does not fall along them, so neither do p-values, and bisection finds the last.
    kept, threshold = (len(gain) - deferred).flip(0), threshold.flip(0)
    sums = torch.nn.functional.pad(regret[order.flip(0)].cumsum(0), (1, 0))[kept]

    def p_at(index: int) -> float:
        return p_value(float(sums[index]), len(gain), allowed, exact)

    if p_at(0) > 1 - confidence:
        return None
    low, high = 0, len(kept)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if p_at(middle) <= 1 - confidence else (low, middle)
    return Certificate(float(threshold[low]), len(gain), float(sums[low]), 1 - int(kept[low]) / len(gain), p_at(low))


def regret_at(score: Tensor, gain: Tensor, threshold: float) -> Tensor:
    """Each example's regret at a threshold, float64 ``(N,)``."""
    return gain.double().clamp_min(0) * ~route(score, threshold)


def quantiles_of(score: Tensor, parts: int = 200) -> list[float]:
    """A score's distribution in short: its quantiles at 0, 1/parts, ..., 1."""
    ranked = score.double().sort().values
    places = torch.linspace(0, len(ranked) - 1, parts + 1).round().long()
    found: list[float] = ranked[places].tolist()
    return found


def drift(score: Tensor, quantiles: list[float], n: int) -> tuple[float, float]:
    """Kolmogorov and Smirnov's distance of a score to the one that a threshold was chosen on, and its p-value.

    Args:
        score: Shape ``(M,)``, of new inputs.
        quantiles: From :func:`quantiles_of`.
        n: Examples that these are of.

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
    x = distance * math.sqrt(n * len(ranked) / (n + len(ranked)))
    if x < 0.2:
        return distance, 1.0
    tail = 2 * sum((-1) ** (j - 1) * math.exp(-2 * (j * x) ** 2) for j in range(1, 101))
    return distance, min(1.0, max(0.0, tail))
