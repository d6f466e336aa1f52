"""What the costs of a pair are counted in: FLOPs, or measured seconds, or money; and how texts say it."""

from typing import Any, Literal

Cost = Literal["flops", "seconds", "money"]
MONEY, SECONDS = "money, in ", "seconds"
# What is said of FLOPs, the longest first, and of other costs.
_SAID = {
    "a FLOPs speed-up of": "a cost reduction of",
    "FLOPs speed-up": "cost reduction",
    "fewer FLOPs": "lower cost",
    "Super's FLOPs": "Super's cost",
    "Swift's FLOPs": "Swift's cost",
    "of the FLOPs": "of the cost",
}


def unit_of(convention: str) -> str:
    """The unit of costs that were counted in a way: ``FLOPs``, ``seconds`` or a currency."""
    return convention.removeprefix(MONEY) if is_other(convention) else "FLOPs"


def is_other(convention: str) -> bool:
    """Whether costs are no FLOPs."""
    return convention == SECONDS or convention.startswith(MONEY)


def told_in(text: str, convention: str) -> str:
    """A text about FLOPs, said of what the costs are.

    >>> told_in("2.00x fewer FLOPs than all of the Super's FLOPs", "money, in EUR")
    "2.00x lower cost than all of the Super's cost"
    """
    for flops, other in _SAID.items() if is_other(convention) else ():
        text = text.replace(flops, other)
    return text


def shown_as(convention: str) -> dict[str, Any]:
    """How the page shows costs: what they are ``of``, a ``unit``, what a cost is multiplied by, and savings' name."""
    if not is_other(convention):
        return {"of": "FLOPs", "title": "FLOPs", "unit": "GFLOPs an input", "scale": 1e-9, "saving": "FLOPs speed-up"}
    unit = f"{unit_of(convention)} for 1,000 inputs"
    return {"of": "cost", "title": "Cost", "unit": unit, "scale": 1e3, "saving": "cost reduction"}
