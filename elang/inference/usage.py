"""What each stage of a cascade was asked and answered, and what that cost."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from elang.inference.cascade import Stage
from elang.inference.stream import Prediction


@dataclass(frozen=True)
class Usage:
    """What a stage did.

    Attributes:
        name: The stage.
        asked: Inputs that reached it and were asked of it; none at a threshold of ``-inf``.
        answered: Those that it answered.
        share: Their share of all inputs.
        cost: What it cost: its cost for each input that it was asked; NaN if that is unknown.
    """

    name: str
    asked: int
    answered: int
    share: float
    cost: float


def usage(stages: Sequence[Stage], answers: Iterable[Prediction] | Mapping[str, int]) -> list[Usage]:
    """What each stage did, from the answers or from how many answers each stage gave.

    >>> from elang.inference.cascade import Stage
    >>> stages = [Stage("small", None, "energy", 0.0, cost=1.0), Stage("large", None, cost=10.0)]
    >>> [(one.name, one.asked, one.cost) for one in usage(stages, {"small": 9, "large": 1})]
    [('small', 10, 10.0), ('large', 1, 10.0)]
    """
    given = answers if isinstance(answers, Mapping) else Counter(answer.answered_by for answer in answers)
    reached = total = sum(given.values())
    found = []
    for place, stage in enumerate(stages):
        skipped = place < len(stages) - 1 and stage.threshold == -math.inf
        asked, answered = 0 if skipped else reached, given.get(stage.name, 0)
        cost = math.nan if stage.cost is None else asked * stage.cost
        found.append(Usage(stage.name, asked, answered, answered / max(1, total), cost))
        reached -= answered
    return found
