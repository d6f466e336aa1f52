"""An answer to a chat: who gives it and why, its parts, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from elang.backends.openai.settings import Prices, Usage
from elang.inference.serving.chats import Parts
from elang.inference.serving.schema import Role

PairPrices = dict[Role, Prices]
"""What the tokens of each model cost, as far as that is known."""


@dataclass
class ChatAnswer:
    """An answer that has begun: who gives it and why, its parts, and the tokens that each model read and wrote so far.

    The tokens of a Super elsewhere are ``None`` until it has told them.
    """

    answered_by: Role
    parts: Parts
    score: float | None = None
    threshold: float | None = None
    deferred: str | None = None
    fallback: str | None = None
    more: dict[str, Any] = field(default_factory=dict)
    tokens: dict[Role, Usage | None] = field(default_factory=dict)
    prices: PairPrices = field(default_factory=dict)

    def about(self, ended: bool) -> dict[str, Any]:
        """The field ``elang`` of a reply, at the end with the tokens, and the cost if prices are known."""
        names = ("answered_by", "score", "threshold", "deferred", "fallback")
        about = {name: _finite(getattr(self, name)) for name in names} | self.more
        if ended:
            about["usage"] = {role: used and _told(used) for role, used in self.tokens.items()}
            if self.prices:
                currency = next(iter(self.prices.values())).currency
                about |= {"cost": self.cost} | ({"currency": currency} if currency else {})
        return about

    @property
    def headers(self) -> dict[str, str]:
        """The same, where it is known before the answer, as headers."""
        about = self.about(False)
        names = ("answered_by", "score", "threshold", "deferred", "fallback")
        return {f"x-elang-{n.replace('_', '-')}": str(about[n]) for n in names if about[n] is not None}

    @property
    def usage(self) -> dict[str, Any]:
        """The tokens of both models together."""
        return _told(total(*filter(None, self.tokens.values())))

    @property
    def cost(self) -> float | None:
        """What the tokens cost; ``None`` if those of a model are unknown."""
        if None in self.tokens.values():
            return None
        return sum(cost_of(self.prices, role, used) for role, used in self.tokens.items() if used)


def total(*usages: Usage) -> Usage:
    """Several usages together.

    >>> total(Usage(5, 1, 2), Usage(3, 0, 1))
    Usage(input=8, cached=1, output=3)
    """
    return Usage(*(sum(getattr(one, name) for one in usages) for name in ("input", "cached", "output")))


def _told(usage: Usage) -> dict[str, Any]:
    """A usage as the API has it."""
    told: dict[str, Any] = {"prompt_tokens": usage.input, "completion_tokens": usage.output}
    told["total_tokens"] = usage.input + usage.output
    return told | ({"prompt_tokens_details": {"cached_tokens": usage.cached}} if usage.cached else {})


def _finite(value: Any) -> Any:
    """A value that JSON has: infinities become texts."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def cost_of(prices: PairPrices, role: Role, usage: Usage) -> float:
    """What the tokens of a model cost; those of one without a price cost nothing."""
    return prices[role].of(usage) if role in prices else 0.0


async def no_parts() -> Parts:
    """The parts of an answer that has not begun."""
    for part in list[dict[str, Any]]():
        yield part
