"""Batches the questions that wait while a model is busy."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from prometheus_client import Gauge

from elang.errors import InputError
from elang.inference.serving.schema import Question

# A question with more than a batch's characters divided by this is a long one.
_LONG = 8
# Asks a model, with a deadline (of `time.monotonic`).
Send = Callable[[Question, float], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class ModelAnswers:
    """A model's answers to a question, one for each text, and the places of texts that were too long for it.

    The probabilities are one for each text, or none.
    """

    answers: list[Any]
    cut: set[int]
    probabilities: list[float | None] = field(default_factory=list)


@dataclass(eq=False)
class _Waiting:
    question: Question
    answers: "asyncio.Future[ModelAnswers]"

    @cached_property
    def size(self) -> tuple[int, int]:
        """Texts, and their characters."""
        texts = [*self.question.texts, *(self.question.choices or [])]
        return len(self.question.texts), sum(len(t) if isinstance(t, str) else sum(map(len, t)) for t in texts)


class Batcher:
    """Sends the questions that wait while a model is busy as one batch.

    Short and long questions take turns, so that many long ones do not keep short ones waiting. A batch has at most
    ``most`` texts and ``most_characters``; a question that has more is a batch of its own. ``send`` asks the model, for
    ``workers`` batches at a time, and returns ``answers``, the places ``cut`` and, if it refuses an input, ``error``. A
    batch is given up after ``lost`` seconds, because its worker has died with it.
    """

    def __init__(
        self, send: Send, workers: int = 1, most: int = 512, most_characters: int = 250_000, lost: float = 60.0
    ) -> None:
        self.send, self.workers, self.lost = send, workers, lost
        self.most, self.most_characters = most, most_characters
        self.gauge: Gauge | None = None
        # Texts without an answer yet, including those a model works on though their request was given up.
        self.waiting = 0
        self._queues: tuple[deque[_Waiting], deque[_Waiting]] = deque(), deque()
        self._turn = 1
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, question: Question, until: float) -> ModelAnswers:
        """The model's answers to a question; an InputError if it refuses one of the inputs, or whatever goes wrong."""
        item = _Waiting(question, asyncio.get_running_loop().create_future())
        self._count(len(question.texts))
        queue = self._queues[item.size[1] > self.most_characters // _LONG]
        queue.append(item)
        self._start()
        try:
            return await asyncio.wait_for(item.answers, max(0.0, until - time.monotonic()))
        finally:
            if item in queue:
                queue.remove(item)
                self._count(-len(question.texts))

    def _start(self) -> None:
        """Send batches, as long as questions wait and a worker is free."""
        while any(self._queues) and len(self._running) < self.workers:
            self._turn = 1 - self._turn if all(self._queues) else int(not self._queues[0])
            queue = self._queues[self._turn]
            batch = [queue.popleft()]
            texts, characters = batch[0].size
            while queue and queue[0].question.threshold == batch[0].question.threshold:
                texts, characters = texts + queue[0].size[0], characters + queue[0].size[1]
                if texts > self.most or characters > self.most_characters:
                    break
                batch.append(queue.popleft())
            task = asyncio.ensure_future(self._answer(batch))
            self._running.add(task)
            task.add_done_callback(partial(self._end, sum(item.size[0] for item in batch)))

    def _end(self, count: int, task: "asyncio.Task[None]") -> None:
        self._count(-count)
        self._running.discard(task)
        self._start()

    async def _answer(self, batch: list[_Waiting]) -> None:
        try:
            texts = [text for item in batch for text in item.question.texts]
            choices = [part for item in batch for part in item.question.choices or []] or None
            question = Question(texts=texts, choices=choices, threshold=batch[0].question.threshold)
            reply = await asyncio.wait_for(self.send(question, time.monotonic() + self.lost), self.lost)
            if (message := reply.get("error")) and len(batch) > 1:
                half = len(batch) // 2
                for part in (batch[:half], batch[half:]):
                    # Requests that were given up need no pass of their own.
                    if unanswered := [item for item in part if not item.answers.done()]:
                        await self._answer(unanswered)
                return
            if message:
                raise InputError(message)
            answers = reply["answers"]
            if len(answers) != len(texts):
                raise RuntimeError(f"{len(texts)} texts were asked, but {len(answers)} answers came.")
            cut, start, probabilities = set(reply.get("cut", ())), 0, _probabilities(reply, len(texts))
            for item in batch:
                end = start + len(item.question.texts)
                if not item.answers.done():
                    own_cut = {place - start for place in cut if start <= place < end}
                    item.answers.set_result(ModelAnswers(answers[start:end], own_cut, probabilities[start:end]))
                start = end
        except Exception as error:
            for item in batch:
                if not item.answers.done():
                    item.answers.set_exception(error)

    def _count(self, change: int) -> None:
        self.waiting += change
        if self.gauge is not None:
            self.gauge.set(self.waiting)


def _probabilities(reply: dict[str, Any], count: int) -> list[float | None]:
    """The probabilities in a reply with ``count`` answers; none if a server elsewhere sends none, or something else."""
    given = reply.get("probabilities")
    if not isinstance(given, list) or len(given) != count:
        return []
    return [value if isinstance(value, int | float) and 0 <= value <= 1 else None for value in given]
