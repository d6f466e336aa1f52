"""What a threshold promises on new inputs: tests of its regret and of its drop that hold for every n, drift of scores.

Regret is what deferring more would have gained: the mean over inputs of ``max(0, Super's worth - Swift's worth)`` where
the Swift's answer is kept. Of answers that are right or wrong it is P(kept, Swift wrong, Super right). It falls as more
is deferred. The drop, how far the pair's mean worth is below the Super's, is the same without the ``max``: where the
Swift is right and the Super wrong, keeping gains. It is at most the regret, and need not fall as more is deferred.

Means are over independent units: examples, or groups of them (a passage's questions), each with the mean of its rows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from elang.curve import deferral_events
from elang.errors import InputError
from elang.scores import route
from elang.slices import mixed

# Bets as shares of the largest; at all of it one bad example would lose everything.
_BETS = 0.99 * 0.5 ** torch.arange(11, dtype=torch.float64)
_GRID, _GRID_PART = 100, 5


@dataclass(frozen=True)
class Certificate:
    """A threshold with what is known of its regret, or of its drop.

    Attributes:
        threshold: Inputs that score above it are deferred; ``-inf`` defers all.
        num_examples: ``n``, the number of independent units.
        regretted: Sum of the regret, or of the drop, over the units.
        deferred_share: On the same examples.
        p_value: Of the hypothesis that the regret, or the drop, is larger than allowed.
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


def unit_weights(unit: Tensor | None, rows: int) -> tuple[Tensor, int]:
    """What each row counts, float64 ``(N,)``, so that each unit counts 1, and how many units there are.

    Args:
        unit: The group of each row, int64 ``(N,)``; by default each row is its own.
        rows: ``N``.
    """
    if unit is None:
        return torch.ones(rows, dtype=torch.float64), rows
    _, place, size = unit.unique(return_inverse=True, return_counts=True)
    return 1 / size.double()[place], len(size)


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
    return float(_log_winnings(values, mean, most).sum(1).logsumexp(0)) - math.log(len(_BETS))


def _log_winnings(values: Tensor, mean: float, most: float) -> Tensor:
    """Logarithm of what each bet makes of each value, ``(bets, n)``."""
    return torch.log1p(-_BETS[:, None] * ((values.double() - mean) / (most - mean)).clamp_max(1))


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


def _check(gain: Tensor, allowed: float, confidence: float) -> None:
    for name, value in (("regret or drop that is allowed", allowed), ("confidence", confidence)):
        if not 0 < value < 1:
            raise InputError(f"The {name} must be between 0 and 1, but it is {value}.")
    if len(gain) == 0 or not bool((gain.abs() <= 1).all()):
        raise InputError("A promise needs answers that are each worth 0 to 1; these gains are not in [-1, 1].")


def certify_regret(
    score: Tensor,
    gain: Tensor,
    allowed: float,
    confidence: float = 0.95,
    exact: bool | None = None,
    unit: Tensor | None = None,
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
        exact: Answers are right or wrong, nothing in between; by default told by these gains. Means of groups are not.
        unit: The group of each row, int64 ``(N,)``, where rows are not independent of each other: each counts once.

    Returns:
        ``None`` if nothing can be certified, not even to defer everything.

    Raises:
        InputError: If the gains are not in [-1, 1], or a share is not one.

    Source:
        Angelopoulos et al., Learn then Test, 2021; for monotone risks the same as Bates et al., 2021.

    >>> certify_regret(torch.arange(1000.0), (torch.arange(1000) > 700).double(), 0.05).threshold
    738.0
    """
    _check(gain, allowed, confidence)
    regret = gain.double().clamp_min(0)
    binary = bool(((regret == 0) | (regret == 1)).all())
    exact = unit is None and binary and exact is not False
    weight, n = unit_weights(unit, len(gain))
    order, deferred, threshold = deferral_events(score)
    # Index 0 keeps nothing; regret does not fall along them, so neither do p-values, and bisection finds the last.
    kept, threshold = (len(gain) - deferred).flip(0), threshold.flip(0)
    sums = torch.nn.functional.pad((regret * weight)[order.flip(0)].cumsum(0), (1, 0))[kept]

    def p_at(index: int) -> float:
        return p_value(float(sums[index]), n, allowed, exact)

    if p_at(0) > 1 - confidence:
        return None
    low, high = 0, len(kept)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if p_at(middle) <= 1 - confidence else (low, middle)
    return Certificate(float(threshold[low]), n, float(sums[low]), 1 - int(kept[low]) / len(gain), p_at(low))


def certify_drop(
    score: Tensor,
    gain: Tensor,
    allowed: float,
    confidence: float = 0.95,
    exact: bool | None = None,
    unit: Tensor | None = None,
) -> Certificate | None:
    """The least deferral whose drop below the Super is at most ``allowed``, with confidence, for every n.

    Each of two tests gets half of the error, and the result that defers less is taken. A certificate of the regret is
    also one of the drop, which is never larger. The other test bets on thresholds, from all deferred downwards, until
    the first one that is not certified. These thresholds are scores of a fifth of the units, picked by a hash, and they
    are tested on the gains of the other units. So the sequence is fixed before it is tested, and the drop may rise and
    fall along it.

    Args:
        score: Shape ``(N,)``; larger is harder.
        gain: How much better the Super's answer is, shape ``(N,)``, in [-1, 1].
        allowed: In (0, 1).
        confidence: In (0, 1).
        exact: As in :func:`certify_regret`.
        unit: As in :func:`certify_regret`.

    Returns:
        ``None`` if nothing can be certified, not even to defer everything; its ``regretted`` is the drop's sum.

    Raises:
        InputError: If the gains are not in [-1, 1], or a share is not one.

    >>> gain = torch.tensor([1.0, -1.0] + [0.0] * 8).repeat(400)
    >>> certify_drop(torch.arange(4000.0), gain, 0.05).threshold
    inf
    """
    _check(gain, allowed, confidence)
    half = (1 + confidence) / 2
    by_regret = certify_regret(score, gain, allowed, half, exact, unit)
    weight, n = unit_weights(unit, len(gain))
    found = [(by_regret.threshold, by_regret.p_value)] if by_regret else []
    if bet := _by_betting(
        score, gain.double() * weight, allowed, half, torch.arange(len(gain)) if unit is None else unit
    ):
        found.append(bet)
    if not found:
        return None
    threshold, p = max(found)
    kept = ~route(score, threshold)
    lost = float((gain * weight * kept).sum())
    return Certificate(threshold, n, lost, 1 - float(kept.double().mean()), min(1.0, 2 * p))


def _by_betting(
    score: Tensor, share: Tensor, allowed: float, confidence: float, unit: Tensor
) -> tuple[float, float] | None:
    """The last threshold in turn whose drop is refuted to be above ``allowed``, and its p-value.

    Args:
        score: Shape ``(N,)``.
        share: What each row adds to its unit's gain, ``(N,)``.
        allowed: The drop.
        confidence: Of the test.
        unit: int64 ``(N,)``.
    """
    apart = mixed(unit) % _GRID_PART == 0
    grid = score[apart].double().unique()
    grid = grid[torch.linspace(0, len(grid) - 1, min(len(grid), _GRID)).round().long()] if len(grid) else grid
    score, share = score[~apart].double(), share[~apart]
    if not len(score):
        return None
    _, place = unit[~apart].unique(return_inverse=True)
    order = score.argsort(stable=True)
    ends = [0, *torch.searchsorted(score[order], grid, right=True).tolist(), len(score)]
    gains = torch.zeros(int(place.max()) + 1, dtype=torch.float64)
    won = _log_winnings(gains, allowed, 1.0).sum(1)
    last = None
    for start, end, threshold in zip([0, *ends], ends, [-math.inf, *grid.tolist(), math.inf], strict=False):
        # Units whose rows are kept from this threshold on, and what the bets make of them now.
        rows = order[start:end]
        touched = place[rows].unique()
        won -= _log_winnings(gains[touched], allowed, 1.0).sum(1)
        gains.index_add_(0, place[rows], share[rows])
        won += _log_winnings(gains[touched], allowed, 1.0).sum(1)
        p = math.exp(min(0.0, math.log(len(_BETS)) - float(won.logsumexp(0))))
        if p > 1 - confidence:
            break
        last = threshold, p
    return last


def regret_at(score: Tensor, gain: Tensor, threshold: float) -> Tensor:
    """Each example's regret at a threshold, float64 ``(N,)``."""
    return gain.double().clamp_min(0) * ~route(score, threshold)


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
