"""How many examples a promise takes, and what so many can promise: the tests of certificates, computed in advance.

A promise bounds a mean loss: the regret, the drop below the Super, or one minus a quality. It is made if a test on
independent examples passes. Whether it passes is chance, so a plan also has a *power*: how often it is to pass if the
true mean loss is what one expects.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elang.errors import InputError
from elang.method.bounds import BETS, binomial_cdf, least_examples, log_winnings, p_value

_MOST, _REPEATS = 100_000_000, 2000
# The share of examples that the second test of a drop bets on.
_BETTING = 0.8


@dataclass(frozen=True)
class Losses:
    """What an example is expected to lose, on average.

    Attributes:
        mean: How often, or how much of an answer's worth.
        better: For a drop: how often the Swift's answer is used and better than the Super's.
        exact: Each example loses nothing or all, as with right and wrong answers; otherwise it may lose any part. Then
            the chance of the test is that for the losses that vary most.
    """

    mean: float
    better: float | None = None
    exact: bool = True

    def __post_init__(self) -> None:
        if not (0 <= self.mean < 1 and (self.better or 0.0) >= 0 and self.mean + (self.better or 0.0) <= 1):
            raise InputError(
                f"What is expected must be shares from 0 to 1, but it is {self.mean}"
                + ("." if self.better is None else f", and {self.better} for answers that are better.")
            )


def chance(examples: int, allowed: float, losses: Losses, confidence: float = 0.95) -> float:
    """How often a bound is certified with so many examples.

    Args:
        examples: Independent ones.
        allowed: The bound of the mean loss, in (0, 1).
        losses: What is expected.
        confidence: Of the promise.

    >>> round(chance(299, 0.01, Losses(0.0))), round(chance(298, 0.01, Losses(0.0)))
    (1, 0)
    """
    if losses.better is not None:
        return _chance_of_drop(examples, allowed, losses, confidence)
    most = _most_events(examples, allowed, 1 - confidence, losses.exact)
    return 0.0 if most < 0 else binomial_cdf(most, examples, losses.mean)


def _most_events(examples: int, allowed: float, level: float, exact: bool) -> int:
    """With how many losses the test passes at most; -1 if it never does."""
    low, high = -1, math.ceil(allowed * examples) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if p_value(middle, examples, allowed, exact) <= level else (low, middle)
    return low


def _chance_of_drop(examples: int, allowed: float, losses: Losses, confidence: float) -> float:
    """The same for a drop, by simulation of its two tests, which share the error."""
    generator, level = torch.Generator().manual_seed(0), (1 - confidence) / 2

    def drawn(count: Tensor, share: float) -> Tensor:
        return torch.binomial(count, torch.full_like(count, share), generator=generator)

    total = torch.full((_REPEATS,), float(examples), dtype=torch.float64)
    worse = drawn(total, losses.mean)
    better = drawn(total - worse, (losses.better or 0.0) / (1 - losses.mean))
    betting = torch.stack([drawn(count, _BETTING) for count in (worse, better, total - worse - better)], 1)
    factors = log_winnings(torch.tensor([1.0, -1.0, 0.0]), allowed, 1.0)
    won = (betting @ factors.T).logsumexp(1) - math.log(len(BETS))
    most = _most_events(examples, allowed, level, losses.exact)
    return float(((won >= -math.log(level)) | (worse <= most)).double().mean())


def examples_needed(allowed: float, losses: Losses, confidence: float = 0.95, power: float = 0.9) -> int | None:
    """The number of examples with which a bound is certified as often as ``power`` says; ``None`` if there is none.

    There is none where the expected loss is not below the bound.

    >>> examples_needed(0.01, Losses(0.0)), examples_needed(0.02, Losses(0.01)), examples_needed(0.02, Losses(0.02))
    (299, 1271, None)
    """
    if losses.mean - (losses.better or 0.0) >= allowed:
        return None
    fits = _first(lambda n: chance(n, allowed, losses, confidence) >= power, least_examples(allowed, confidence))
    if fits is None or losses.better is not None:
        return fits

    # The chance falls with each example until one more loss is allowed, so only such numbers are compared.
    def least(events: int) -> int:
        return _first(lambda n: p_value(events, n, allowed, losses.exact) <= 1 - confidence, 1) or _MOST

    low, high = -1, _most_events(fits, allowed, 1 - confidence, losses.exact)
    while high - low > 1:
        middle = (low + high) // 2
        often = chance(least(middle), allowed, losses, confidence) >= power
        low, high = (low, middle) if often else (middle, high)
    return least(high)


def _first(holds: Callable[[int], bool], start: int) -> int | None:
    """A number from which something holds, by bisection; ``None`` if it does not hold of large ones."""
    low, high = start - 1, start
    while not holds(high):
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def least_promise(examples: int, losses: Losses, confidence: float = 0.95, power: float = 0.9) -> float | None:
    """The smallest bound that so many examples certify as often as ``power`` says; ``None`` if there is none.

    >>> round(least_promise(299, Losses(0.0)), 4)
    0.01
    """
    low, high = max(0.0, losses.mean - (losses.better or 0.0)), 1 - 1e-9
    if chance(examples, high, losses, confidence) < power:
        return None
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if chance(examples, middle, losses, confidence) >= power else (middle, high)
    return high
