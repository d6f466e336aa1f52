"""Whether a score on new inputs is still distributed as it was where a threshold was chosen."""

import math

import torch
from torch import Tensor


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
