"""An answer to a chat: who gives it and why, its parts, and what it costs."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field
from typing import Any

from elang.inference.serving.chats import Parts
from elang.inference.serving.schema import Role

Prices = dict[Role, tuple[float, float]]
"""What a million tokens cost that a model reads, and that it writes."""


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
    tokens: dict[Role, list[int] | None] = field(default_factory=dict)
    prices: Prices = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def about(self, ended: bool) -> dict[str, Any]:
        """The field ``elang`` of a reply, at the end with the tokens, and the cost if prices are known."""
        names = ("answered_by", "score", "threshold", "deferred", "fallback")
        about = {name: _finite(getattr(self, name)) for name in names} | self.more
        if ended:
            about["usage"] = {role: counts and _usage(*counts) for role, counts in self.tokens.items()}
            if self.prices:
                about["cost"] = self.cost
        return about

    @property
    def headers(self) -> dict[str, str]:
        """The same, where it is known before the answer, as headers."""
        about = self.about(False)
        names = ("answered_by", "score", "threshold", "deferred", "fallback")
        return {f"x-elang-{n.replace('_', '-')}": str(about[n]) for n in names if about[n] is not None}

    @property
    def usage(self) -> dict[str, int]:
        """The tokens of both models together."""
        known = [counts for counts in self.tokens.values() if counts]
        return _usage(sum(read for read, _ in known), sum(written for _, written in known))

    @property
    def cost(self) -> float | None:
        """What the tokens cost; ``None`` if those of a model are unknown."""
        if None in self.tokens.values():
            return None
        return sum(cost_of(self.prices, role, *counts) for role, counts in self.tokens.items() if counts)


def _usage(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _finite(value: Any) -> Any:
    """A value that JSON has: infinities become texts."""
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def cost_of(prices: Prices, role: Role, read: int, written: int) -> float:
    """What so many tokens of a model cost."""
    price = prices.get(role, (0.0, 0.0))
    return (read * price[0] + written * price[1]) / 1e6


async def no_parts() -> Parts:
    """The parts of an answer that has not begun."""
    for part in list[dict[str, Any]]():
        yield part
