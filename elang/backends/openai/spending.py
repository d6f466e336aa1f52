"""What requests take: tokens and money so far, what those under way may take, and the pace that a server allows."""

import math
import time
from collections.abc import Awaitable, Callable
from threading import Lock, RLock
from typing import Any

from elang.backends.openai.settings import Settings, Usage
from elang.backends.retrying import TemporaryError
from elang.errors import InputError
from elang.terminal import Progress


class Pace:
    """Spaces requests evenly, so that no minute has more requests or tokens than are allowed; 429 makes all wait.

    Also those of several threads, as in a server.
    """

    def __init__(self, settings: Settings) -> None:
        self._rates = settings.requests_per_minute, settings.tokens_per_minute
        self._free, self._lock = 0.0, Lock()

    async def turn(self, tokens: int, sleep: Callable[[float], Awaitable[None]], within: float = math.inf) -> None:
        """Wait until a request of about so many tokens may be sent.

        Raises a TemporaryError at once if that is not ``within`` so many seconds; other requests keep their turns.
        """
        taken = [60 * amount / rate for amount, rate in zip((1, tokens), self._rates, strict=True) if rate]
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free)
            if start - now > within:
                raise TemporaryError("too many requests a minute", start - now)
            self._free = start + max(taken, default=0.0)
        if start > now:
            await sleep(start - now)

    def pause(self, seconds: float) -> None:
        """Send nothing for so long."""
        with self._lock:
            self._free = max(self._free, time.monotonic() + seconds)


class Spending:
    """Counts tokens and money, and stops before a budget is passed.

    A request is held against the budget with what it may take at most: its prompt by the largest number of tokens a
    byte so far (one until the first reply), and the longest answer. So the budget is passed at most by what these
    estimates of the requests under way are too low. An attempt that broke off after it was sent may be charged, and
    counts with its estimate.
    """

    def __init__(self, settings: Settings) -> None:
        self.prices, self.budget, self.address = settings.prices, settings.budget, settings.address
        self.spent, self.replies = 0.0, 0
        self.used = Usage(0, 0, 0)
        self.unreported = 0
        self.held, self.under_way = 0.0, 0
        # Of the threads of a server.
        self._lock = RLock()
        self._tokens_per_byte: float | None = None

    def estimate(self, size: int, output: int) -> Usage:
        """What a request of so many bytes and an answer may take."""
        ratio = 1.0 if self._tokens_per_byte is None else self._tokens_per_byte
        return Usage(int(size * ratio) + 1, 0, output)

    def fits(self, estimate: Usage) -> bool:
        """Whether the budget is enough for a request beside those under way."""
        return self.budget is None or self.spent + self.held + self._price(estimate) <= self.budget

    def hold(self, estimate: Usage, checked: bool = True) -> float:
        """Hold money for a request; if it is ``checked``, an InputError says that the budget may not be enough."""
        price = self._price(estimate)
        with self._lock:
            if checked and not self.fits(estimate):
                raise InputError(
                    f"The budget of {self.budget:g} {self._currency} for {self.address} does not allow another "
                    f"request: {self.spent:.4g} are spent, and the next one may cost {price:.2g}. Raise 'budget'."
                )
            self.held, self.under_way = self.held + price, self.under_way + 1
        return price

    def settle(self, held: float, usage: Usage | None, size: int = 0, lost: bool = False) -> None:
        """Count what a request took in place of what was held for it; ``lost`` may be charged without a reply."""
        with self._lock:
            self.under_way -= 1
            # Rounding would add up.
            self.held = self.held - held if self.under_way else 0.0
            if usage is None:
                self.spent += held if lost else 0.0
                return
            self.add(usage, size)

    def begin(self, kept: Usage) -> None:
        """Count what the replies took that an earlier run has kept."""
        self.spent, self.used = self._price(kept), kept

    def release(self) -> None:
        """Hold nothing any more."""
        self.held, self.under_way = 0.0, 0

    def add(self, usage: Usage, size: int) -> None:
        """Count what the answer to a request of so many bytes took."""
        with self._lock:
            self.spent += self._price(usage)
            self.replies += 1
            self.used = Usage(*(sum(pair) for pair in zip(_counts(self.used), _counts(usage), strict=True)))
            if size and usage.input:
                self._tokens_per_byte = max(self._tokens_per_byte or 0.0, usage.input / size)

    def _price(self, usage: Usage) -> float:
        return self.prices.of(usage) if self.prices else 0.0

    @property
    def _currency(self) -> str:
        return self.prices.currency if self.prices else ""

    def line(self, left: int = 0) -> str:
        """What is spent so far, and what is to come for the inputs that are ``left``."""
        if self.prices is None:
            return f"{self.used.input + self.used.output:,} tokens"
        to_come = self.spent / self.replies * left if self.replies else 0.0
        return f"{self.spent:.4g} {self._currency} spent" + (f", about {to_come:.2g} to come" if to_come else "")


def output_of(body: dict[str, Any], default: int) -> int:
    """The most tokens that a request's answer may have."""
    return int(body.get("max_tokens") or body.get("max_completion_tokens") or default)


def _counts(usage: Usage) -> tuple[int, int, int]:
    return usage.input, usage.cached, usage.output


class SpendingProgress(Progress):
    """How far the requests are, with the money."""

    def __init__(self, spending: Spending, total: int, done: int = 0) -> None:
        self.spending = spending
        super().__init__(total, "inputs", done, late=True)

    def add(self, count: int = 1) -> None:
        """Count what is done."""
        super().add(count)
        if self.bar is not None:
            self.bar.set_postfix_str(self.spending.line((self.total or 0) - self.done), refresh=False)

    def line(self, seconds: float) -> str:
        """How far it is after so many seconds."""
        return f"{self.spending.line((self.total or 0) - self.done)}; {super().line(seconds)}"
