"""What a threshold promises on new inputs: tests of its regret and of its drop that hold for every n.

Regret is what more deferral would have gained: the mean over inputs of ``max(0, Super's worth - Swift's worth)`` where
the Swift's answer is kept. For answers that are right or wrong it is P(kept, Swift wrong, Super right). More deferral
lowers it. The drop, how far the pair's mean worth is below the Super's, is the same without the ``max``: a kept answer
gains where only the Swift is right. It is at most the regret, and more deferral need not lower it.

Means are over independent units: examples, or groups of them (a passage's questions), each with the mean of its rows.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from elang.errors import InputError
from elang.method.bounds import BETS, log_winnings, p_value
from elang.method.deferral import deferral_events, route

_GRID, _GRID_PART = 100, 5


@dataclass(frozen=True)
class Certificate:
    """A threshold and the evidence for its regret or its drop.

    Attributes:
        threshold: Inputs with a higher score are deferred; ``-inf`` defers all.
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


def unit_weights(unit: Tensor | None, rows: int) -> tuple[Tensor, int]:
    """The weight of each row, float64 ``(N,)``, so that each unit weighs 1, and the number of units.

    ``unit`` is the group of each row, int64 ``(N,)``; by default each of the ``rows`` is a unit.
    """
    if unit is None:
        return torch.ones(rows, dtype=torch.float64), rows
    _, place, size = unit.unique(return_inverse=True, return_counts=True)
    return 1 / size.double()[place], len(size)


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

    Thresholds are tested from deferring everything downwards, each at the whole level, until the first one that fails.
    With probability ``confidence`` over the choice of the examples, the regret on new inputs like them is at most
    ``allowed``, for any threshold that comes out. Source: Angelopoulos et al., Learn then Test, 2021; for monotone
    risks the same as Bates et al., 2021.

    Args:
        score: Shape ``(N,)``; larger is harder.
        gain: How much better the Super's answer is, shape ``(N,)``, in [-1, 1].
        allowed: In (0, 1).
        confidence: In (0, 1).
        exact: Whether every answer is right or wrong, nothing in between; by default judged by these gains.
        unit: The group of each row, int64 ``(N,)``, where rows depend on each other: each group counts once.

    Returns:
        ``None`` if nothing can be certified, not even deferring everything.

    Raises:
        InputError: For values outside these intervals.

    >>> certify_regret(torch.arange(1000.0), (torch.arange(1000) > 700).double(), 0.05).threshold
    738.0
    """
    _check(gain, allowed, confidence)
    regret = gain.double().clamp_min(0)
    # Means of groups are neither 0 nor 1.
    exact = unit is None and exact is not False and bool(((regret == 0) | (regret == 1)).all())
    weight, n = unit_weights(unit, len(gain))
    order, deferred, threshold = deferral_events(score)
    # Index 0 keeps nothing. From there on neither regret nor p-values fall, so bisection finds the last success.
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

    Two tests share the error equally, and the result that defers less is returned. The first certifies the regret,
    which bounds the drop. The second bets on thresholds, from deferring everything downwards, until the first one that
    fails. Its thresholds are the scores of a fifth of the units, picked by a hash, and it tests them on the other
    units. So the sequence is fixed before the test, and the drop may rise and fall along it.

    Arguments and errors are those of :func:`certify_regret`; ``regretted`` of the result is the drop's sum.

    >>> gain = torch.tensor([1.0, -1.0] + [0.0] * 8).repeat(400)
    >>> certify_drop(torch.arange(4000.0), gain, 0.05).threshold
    inf
    """
    _check(gain, allowed, confidence)
    half = (1 + confidence) / 2
    by_regret = certify_regret(score, gain, allowed, half, exact, unit)
    weight, n = unit_weights(unit, len(gain))
    share = gain.double() * weight
    by_betting = _bet(score, share, allowed, half, torch.arange(len(gain)) if unit is None else unit)
    results = [by_betting] if by_betting else []
    if by_regret:
        results.append((by_regret.threshold, by_regret.p_value))
    if not results:
        return None
    threshold, p = max(results)
    kept = ~route(score, threshold)
    drop = float((gain * weight * kept).sum())
    return Certificate(threshold, n, drop, 1 - float(kept.double().mean()), min(1.0, 2 * p))


def _bet(score: Tensor, share: Tensor, allowed: float, confidence: float, unit: Tensor) -> tuple[float, float] | None:
    """The last threshold with a certified drop, and its p-value; ``share`` is each row's part of its unit's gain."""
    in_grid = mixed(unit) % _GRID_PART == 0
    grid = score[in_grid].double().unique()
    grid = grid[torch.linspace(0, len(grid) - 1, min(len(grid), _GRID)).round().long()] if len(grid) else grid
    score, share = score[~in_grid].double(), share[~in_grid]
    if not len(score):
        return None
    _, place = unit[~in_grid].unique(return_inverse=True)
    order = score.argsort(stable=True)
    ends = [0, *torch.searchsorted(score[order], grid, right=True).tolist(), len(score)]
    gains = torch.zeros(int(place.max()) + 1, dtype=torch.float64)
    log_won = log_winnings(gains, allowed, 1.0).sum(1)
    last = None
    for start, end, threshold in zip([0, *ends], ends, [-math.inf, *grid.tolist(), math.inf], strict=False):
        # Update the bets on the units whose rows this threshold is the first to keep.
        rows = order[start:end]
        changed = place[rows].unique()
        log_won -= log_winnings(gains[changed], allowed, 1.0).sum(1)
        gains.index_add_(0, place[rows], share[rows])
        log_won += log_winnings(gains[changed], allowed, 1.0).sum(1)
        p = math.exp(min(0.0, math.log(len(BETS)) - float(log_won.logsumexp(0))))
        if p > 1 - confidence:
            break
        last = threshold, p
    return last


def regret_at(score: Tensor, gain: Tensor, threshold: float) -> Tensor:
    """Each example's regret at a threshold, float64 ``(N,)``."""
    return gain.double().clamp_min(0) * ~route(score, threshold)


def mixed(key: Tensor) -> Tensor:
    """A second hash of keys, int64 ``(N,)``, from 0 to 2**53; bits of the first one choose the slices.

    >>> mixed(torch.tensor([1, 2])).tolist()
    [5103132997656651, 5324963733279466]
    """
    with np.errstate(over="ignore"):
        x = key.numpy().astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.int64))
