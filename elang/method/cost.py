"""What a pair costs: each model's cost times the share of the inputs that reach it."""


def expected_cost(swift: float, super_: float, deferred_share: float) -> float:
    """Mean cost of an input under the pair, ``c_swift + r * c_super``.

    >>> round(expected_cost(1.2, 21.8, 0.36), 2)
    9.05
    """
    return swift + deferred_share * super_


def speedup(swift: float, super_: float, deferred_share: float) -> float:
    """Cost of the Super alone over the cost of the pair.

    >>> round(speedup(1.2, 21.8, 0.36), 1)
    2.4
    """
    return super_ / expected_cost(swift, super_, deferred_share)
