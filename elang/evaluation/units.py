"""What the costs of a pair are counted in: FLOPs, or measured seconds, or money; and the words for it."""

from dataclasses import dataclass, replace
from typing import Literal

Cost = Literal["flops", "seconds", "money"]
MONEY, SECONDS = "money, in ", "seconds"


@dataclass(frozen=True)
class CostWords:
    """How a text speaks of costs.

    Attributes:
        name: What is counted: ``FLOPs``, ``seconds`` or a currency.
        of: What one has or takes: *the Super's FLOPs*, *half of the time*.
        less: What a pair answers at: *2.00x fewer FLOPs*.
        saving: What the Super's cost divided by the pair's is.
        title: ``of`` at the beginning of a sentence.
        unit: Of figures for readers.
        scale: What a cost is multiplied by for that unit.
    """

    name: str
    of: str
    less: str
    saving: str
    title: str
    unit: str
    scale: float


FLOPS = CostWords("FLOPs", "FLOPs", "fewer FLOPs", "FLOPs speed-up", "FLOPs", "GFLOPs an input", 1e-9)
_SECONDS = CostWords("seconds", "time", "less time", "speed-up", "Time", "seconds for 1,000 inputs", 1e3)
_MONEY = CostWords("money", "cost", "lower cost", "cost reduction", "Cost", "", 1e3)


def words_of(convention: str) -> CostWords:
    """The words for costs that were counted by a convention: that of a summary, which by default is one of FLOPs.

    >>> [words_of(each).less for each in ("exact", "paper", "seconds", "money, in EUR")]
    ['fewer FLOPs', 'fewer FLOPs', 'less time', 'lower cost']
    >>> words_of("money, in EUR").unit
    'EUR for 1,000 inputs'
    """
    if convention == SECONDS:
        return _SECONDS
    if convention.startswith(MONEY):
        currency = convention.removeprefix(MONEY)
        return replace(_MONEY, name=currency, unit=f"{currency} for 1,000 inputs")
    return FLOPS


def counted_in(convention: str) -> dict[str, str]:
    """What the entry of a threshold keeps of how its ``speedup`` was counted: nothing where that is FLOPs."""
    return {"cost": convention} if words_of(convention) is not FLOPS else {}
