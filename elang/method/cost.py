"""What a cascade costs: each model's cost times the share of the inputs that reach it."""

from collections.abc import Sequence


def expected_cost(costs: Sequence[float], reached: Sequence[float]) -> float:
    """Mean cost of an input under a cascade, of a pair ``c_swift + r * c_super``.

    Args:
        costs: Of each stage for one input, in any unit.
        reached: The share of the inputs that reaches each stage; of the first one 1.

    >>> round(expected_cost([1.2, 21.8], [1, 0.36]), 2)
    9.05
    """
    return sum(cost * share for cost, share in zip(costs, reached, strict=True))


def speedup(swift: float, super_: float, deferred_share: float) -> float:
    """Cost of the Super alone over the cost of the pair.

    >>> round(speedup(1.2, 21.8, 0.36), 1)
    2.4
    """
    return super_ / expected_cost([swift, super_], [1, deferred_share])
