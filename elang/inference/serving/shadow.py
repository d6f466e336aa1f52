"""The shadow of a pair: a random share of what the Swift answered also goes to the Super, and both are logged.

Whether an input is sampled is drawn before its answer is known, whoever will give it. So the sampled inputs are an even
sample of all of them, and the deferred ones among them cost nothing more.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter

from elang.backends.openai.settings import Prices
from elang.errors import InputError
from elang.evaluation.watch_log import FORMAT, WatchLog, line_of, read_log
from elang.json_files import parse_object
from elang.locks import lock_output

_log = logging.getLogger(__name__)
BudgetUnit = Literal["requests", "money", "flops"]
_DAY = 86_400.0
# Inputs that the Super is asked together, seconds between looks whether it is idle, and before each further attempt.
_TOGETHER, _LOOK, _AGAIN = 8, 0.05, (1.0, 10.0, 60.0)
# Seconds between lines that only count.
_COUNTED = 60.0


@dataclass(frozen=True)
class ShadowOptions:
    """What is sampled, and what it may cost.

    Attributes:
        share: The probability with which an input is sampled.
        log: The file that lines are added to.
        budget: The most that the Super's answers may cost in 24 hours; ``None``: anything.
        unit: What the budget counts: ``requests`` to the Super, ``money`` by the server's prices, or its ``flops``.
        queue: The most sampled inputs that wait for the Super.
        texts: Whether inputs, and answers that are texts, are logged.
        prices: What a million tokens cost that the Super reads, and that it writes.
        config: The configuration of a Super that is here, to count its FLOPs.
    """

    share: float
    log: Path
    budget: float | None = None
    unit: BudgetUnit = "requests"
    queue: int = 256
    texts: bool = False
    prices: Prices | None = None
    config: Any = None


@dataclass(frozen=True)
class Reply:
    """What the Super answers to a shadow: its ``answer``, and what that costs in the unit of the budget."""

    answer: str
    cost: float = 1.0


# Asks the Super, or raises what went wrong; an InputError says that asking again is of no use.
Ask = Callable[[], Awaitable[Reply]]


@dataclass
class Seen:
    """How an input was answered.

    Attributes:
        score: The Swift's; ``None`` if it was not asked.
        by: Who answered.
        deferred: Whether it went to the Super, even if that did not answer.
        answer: The answer.
        input: What was asked, as a text or as a value of JSON.
        ask: Asks the Super the same.
    """

    score: float | None
    by: str
    deferred: bool
    answer: str
    input: Any
    ask: Ask


@dataclass
class Draw:
    """Which of some inputs are sampled, as numbers from 0, and the ids of these; ``p`` is the probability of each."""

    p: float
    ids: dict[int, str] = field(default_factory=dict)


class Shadow:
    """Draws samples, asks the Super about those that the Swift answered, and writes the log.

    Args:
        options: What is sampled.
        about: What the log says of the server: ``score``, ``threshold``, ``answers`` (``classes`` or ``texts``).
        same: Whether two answers count as the same.
        idle: Whether the Super has nothing else to do; until then it is not asked.
        registry: Of counters for Prometheus.

    Raises:
        InputError: If the log cannot be written, or another server writes it.
    """

    def __init__(
        self,
        options: ShadowOptions,
        about: dict[str, Any],
        *,
        same: Callable[[str, str], bool],
        idle: Callable[[], bool],
        registry: CollectorRegistry,
    ) -> None:
        self.options, self.same, self.idle = options, same, idle
        self.counts = dict.fromkeys(("seen", "deferred", "fallbacks", "unwatched"), 0)
        self.pending, self._random = 0, random.Random()
        self._queue: deque[tuple[str, Seen]] = deque()
        self._spent: deque[tuple[float, float]] = deque()
        self._total = 0.0
        self._task: asyncio.Task[None] | None = None
        self._counted = 0.0
        self.log = self._open()
        self.watch, self.changed = self._earlier(), True
        to: Any = {"registry": registry}
        self.outcomes = Counter("elang_shadow", "Sampled inputs that the Swift answered", ["outcome"], **to)
        self.unwatched = Counter("elang_shadow_unwatched", "Inputs while nothing could be sampled", **to)
        start = {
            "format": FORMAT,
            "time": time.time(),
            "share": options.share,
            "texts": options.texts,
            "unit": options.unit,
        }
        self._write("start", **start, **about)

    def _open(self) -> Any:
        path = self.options.log
        lock_output(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab", buffering=0)
            # What a server that was killed has left of a line.
            if rest := file.tell() and len(path.read_bytes().rpartition(b"\n")[2]):
                file.truncate(file.tell() - rest)
        except OSError as error:
            raise InputError(f"--shadow_log '{path}' cannot be written ({error.strerror}). Give another.") from error
        return file

    def _earlier(self) -> WatchLog:
        """What the log has from earlier runs, with what they spent in the last 24 hours."""
        if not self.options.log.stat().st_size:
            return WatchLog()
        watch = read_log(self.options.log)
        for at, unit, cost in watch.spent:
            if unit == self.options.unit and time.time() - at < _DAY:
                self._spend(at, cost)
        return watch

    def _write(self, kind: str, **values: Any) -> None:
        """Add a line; a ValueError if the log cannot have it. A full disk stops no answer."""
        line = line_of(kind, **values)
        self.watch.add(parse_object(line))
        self.changed = True
        try:
            self.log.write(line)
        except OSError as error:
            _log.warning("The shadow log cannot be written: %s", error)

    def spent(self) -> float:
        """What was spent in the last 24 hours, with what is on its way in requests."""
        now = time.time()
        while self._spent and now - self._spent[0][0] >= _DAY:
            self._total -= self._spent.popleft()[1]
        return self._total + (self.pending if self.options.unit == "requests" else 0)

    def _spend(self, at: float, cost: float) -> None:
        self._spent.append((at, cost))
        self._total += cost

    def draw(self, ids: Sequence[str | None]) -> Draw:
        """Draw a sample of inputs that are about to be answered, with the ids given for them; it is to be released."""
        budget, draw = self.options.budget, Draw(self.options.share)
        for place, name in enumerate(ids):
            if self.pending >= self.options.queue or (budget is not None and self.spent() >= budget):
                self.counts["unwatched"] += 1
                self.unwatched.inc()
            elif self._random.random() < draw.p:
                # A name that was given before would stand for two inputs.
                used = name is None or name in self.watch.by_id or name in draw.ids.values()
                draw.ids[place] = uuid.uuid4().hex if name is None or used else name
                self.pending += 1
        return draw

    def release(self, draw: Draw) -> None:
        """Give back the places of samples that do not go to the Super."""
        self.pending -= len(draw.ids)
        draw.ids.clear()

    def saw(self, draw: Draw, answered: Sequence[Seen]) -> dict[int, str]:
        """Log how inputs were answered, and queue those for the Super that it has not answered; the sampled ids."""
        sampled = dict(draw.ids)
        for place, one in enumerate(answered):
            self.counts["seen"] += 1
            self.counts["deferred"] += one.deferred
            self.counts["fallbacks"] += one.deferred and one.by == "swift"
            if place not in sampled:
                continue
            name, known = sampled[place], {} if one.score is None else {"score": one.score}
            values: dict[str, Any] = {"time": round(time.time(), 3), "id": name, "p": draw.p, "score": None, **known}
            values |= {"by": one.by, **self.counts}
            if self.options.texts or self.watch.runs[-1].about["answers"] == "classes":
                values[one.by] = one.answer
            if self.options.texts:
                values["input"] = one.input
            self._write("input", **values)
            if one.by == "swift":
                del draw.ids[place]
                self._queue.append((name, one))
                self.outcomes.labels("sampled").inc()
        if time.time() - self._counted > _COUNTED:
            self._counted = time.time()
            self._write("count", time=round(self._counted, 3), **self.counts)
        if self._queue and self._task is None:
            self._task = asyncio.ensure_future(self._work())
        return sampled

    def label(self, lines: Sequence[dict[str, Any]]) -> int:
        """Log the labels of watched inputs, and return how many they are; others are not kept."""
        known = [line for line in lines if line["id"] in self.watch.by_id]
        for line in known:
            self._write("label", time=round(time.time(), 3), **line)
        return len(known)

    async def _work(self) -> None:
        """Ask the Super about what waits, while nobody else does, until nothing waits any more."""
        try:
            while self._queue:
                while not self.idle():
                    await asyncio.sleep(_LOOK)
                batch = [self._queue.popleft() for _ in range(min(_TOGETHER, len(self._queue)))]
                await asyncio.gather(*(self._ask(name, seen) for name, seen in batch))
        finally:
            self._task = None

    async def _ask(self, name: str, seen: Seen) -> None:
        reason = "failed"
        try:
            for wait in (*_AGAIN, math.inf):
                try:
                    reply = await seen.ask()
                except InputError as error:
                    reason = f"refused: {error}"[:200]
                    break
                except Exception as error:
                    reason = type(error).__name__
                    if wait == math.inf:
                        break
                    await asyncio.sleep(wait)
                    continue
                self._spend(time.time(), reply.cost)
                shown = self.options.texts or self.watch.runs[-1].about["answers"] == "classes"
                about: dict[str, Any] = {"answer": reply.answer} if shown else {}
                about |= {"differs": not self.same(seen.answer, reply.answer), "cost": reply.cost}
                self._write("super", time=round(time.time(), 3), id=name, **about)
                self.outcomes.labels("answered").inc()
                return
            self._write("super", time=round(time.time(), 3), id=name, failed=reason)
            self.outcomes.labels("failed").inc()
        finally:
            self.pending -= 1
