"""What waits while a model is busy goes to it together."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prometheus_client import Gauge

from elang.errors import InputError
from elang.inference.serving.schema import Question

# A question with more than this share of a batch's characters is a long one.
_LONG = 8
# Asks a model, until when (of `time.monotonic`); it raises whatever goes wrong.
Ask = Callable[["Question", float], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Said:
    """What a model says to a question.

    Attributes:
        answers: One for each text.
        cut: Places of the texts of which it read only the beginning.
    """

    answers: list[Any]
    cut: set[int]


class Batcher:
    """Asks a model for many: what waits while it is busy goes to it together.

    Short and long questions take turns, so that a crowd of long ones does not keep short ones waiting.

    Args:
        ask: Asks the model; it says ``answers``, the places ``cut`` and, if it does not take an input, ``error``.
        workers: Batches that it works on at a time.
        most: Texts in a batch; a question that has more is a batch of its own.
        most_characters: The same for their characters.
        lost: Seconds after which a batch is given up: its worker has died with it.
    """

    def __init__(
        self, ask: Ask, workers: int = 1, most: int = 512, most_characters: int = 250_000, lost: float = 60.0
    ) -> None:
        self.send, self.workers, self.lost = ask, workers, lost
        self.most, self.most_characters = most, most_characters
        self.gauge: Gauge | None = None
        # Texts that are not answered yet, of questions that nobody waits for any more, too, while they are worked on.
        self.waiting = 0
        self._queues: tuple[deque[_Asked], deque[_Asked]] = deque(), deque()
        self._turn = 1
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, question: Question, until: float) -> Said:
        """What the model says to a question.

        Raises:
            asyncio.TimeoutError: If there are none in time.
            InputError: If the model does not take one of the inputs.
            Exception: Whatever else goes wrong.
        """
        asked = _Asked(question, asyncio.get_running_loop().create_future())
        self._count(len(question.texts))
        queue = self._queues[asked.size[1] > self.most_characters // _LONG]
        queue.append(asked)
        self._next()
        try:
            return await asyncio.wait_for(asked.answers, max(0.0, until - time.monotonic()))
        finally:
            if asked in queue:
                queue.remove(asked)
                self._count(-len(question.texts))

    def _next(self) -> None:
        while any(self._queues) and len(self._running) < self.workers:
            self._turn = 1 - self._turn if all(self._queues) else int(not self._queues[0])
            queue = self._queues[self._turn]
            batch = [queue.popleft()]
            texts, characters = batch[0].size
            while queue and queue[0].question.keep == batch[0].question.keep:
                texts, characters = texts + queue[0].size[0], characters + queue[0].size[1]
                if texts > self.most or characters > self.most_characters:
                    break
                batch.append(queue.popleft())
            task = asyncio.ensure_future(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._next()

    async def _run(self, batch: "list[_Asked]") -> None:
        try:
            await self._answer(batch)
        finally:
            self._count(-sum(len(one.question.texts) for one in batch))

    async def _answer(self, batch: "list[_Asked]") -> None:
        try:
            texts = [text for one in batch for text in one.question.texts]
            choices = [part for one in batch for part in one.question.choices or []] or None
            whole = Question(texts=texts, choices=choices, keep=batch[0].question.keep)
            lost = time.monotonic() + self.lost
            found = await asyncio.wait_for(self.send(whole, lost), self.lost)
            if (message := found.get("error")) and len(batch) > 1:
                half = len(batch) // 2
                for part in (batch[:half], batch[half:]):
                    # Those that nobody waits for any more need no pass of their own.
                    if wanted := [one for one in part if not one.answers.done()]:
                        await self._answer(wanted)
                return
            if message:
                raise InputError(message)
            answers = found["answers"]
            if len(answers) != len(texts):
                raise RuntimeError(f"{len(texts)} texts were asked, but {len(answers)} answers came.")
            cut, start = set(found.get("cut", ())), 0
            for one in batch:
                end = start + len(one.question.texts)
                if not one.answers.done():
                    own = {place - start for place in cut if start <= place < end}
                    one.answers.set_result(Said(answers[start:end], own))
                start = end
        except Exception as error:
            for one in batch:
                if not one.answers.done():
                    one.answers.set_exception(error)

    def _count(self, change: int) -> None:
        self.waiting += change
        if self.gauge is not None:
            self.gauge.set(self.waiting)


@dataclass(eq=False)
class _Asked:
    question: Question
    answers: "asyncio.Future[Said]"

    @cached_property
    def size(self) -> tuple[int, int]:
        """Texts, and their characters."""
        texts = [*self.question.texts, *(self.question.choices or [])]
        return len(self.question.texts), sum(len(t) if isinstance(t, str) else sum(map(len, t)) for t in texts)
