"""A language model in processes here that answers chats, those that wait together in a batch."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Gauge

from elang.backends.chat_decoding import Chat
from elang.inference.serving.chat_request import ChatRequest
from elang.inference.serving.schema import ApiError, Reason
from elang.inference.serving.streams import Stream
from elang.inference.serving.workers import Workers
from elang.tasks.text_task import TextTask

Parts = AsyncGenerator[dict[str, Any], None]
_log = logging.getLogger(__name__)
# Conversations that a process goes on with together.
_TOGETHER = 32


class UnansweredError(Exception):
    """A model did not answer: why, and what to tell a client that gets no other answer."""

    def __init__(self, reason: Reason, message: str, refusal: ApiError | None = None) -> None:
        super().__init__(message)
        self.reason, self.refusal = reason, refusal


@dataclass(eq=False)
class _Waiting:
    chat: Chat
    parts: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    ended: int = 0
    left: Any = None


class LocalChats:
    """A language model in processes here. It answers conversations that wait together, and sends tokens as they come.

    ``usual`` is the temperature of a request without one. ``fixed`` says that others would not do: a score after the
    answer was calibrated on such texts. ``early`` says that its score is known before it writes.
    """

    def __init__(
        self,
        who: str,
        workers: Workers,
        task: TextTask,
        *,
        usual: float = 0.0,
        fixed: bool = False,
        early: bool = False,
    ) -> None:
        self.who, self.workers, self.task = who, workers, task
        self.usual, self.fixed, self.early = usual, fixed, early
        self.gauge: Gauge | None = None
        self.waiting = 0
        self._queue: deque[_Waiting] = deque()
        self._running: set[asyncio.Task[None]] = set()

    def refuses(self, request: ChatRequest) -> tuple[str, str | None]:
        """What it does not take of a request, empty if it takes all, and the parameter."""
        chat = request.chat
        if request.beyond:
            return request.beyond, request.param
        if self.task.label_words != "chat" and (chat.turns or chat.system is not None):
            return "a conversation of several messages", "messages"
        temperature = self.usual if chat.temperature is None else chat.temperature
        if self.fixed and temperature != self.usual:
            return f"a temperature other than {self.usual:g}", "temperature"
        if chat.count > 1 and not temperature:
            return "n above 1 without a temperature above 0", "n"
        return "", None

    async def ask(self, chat: Chat) -> Parts:
        """The parts of an answer: first its ``score`` and ``prompt_tokens``, then ``choices`` as the API has them.

        Leaving the iterator frees its place. Raises an :class:`UnansweredError`.
        """
        item = _Waiting(chat)
        self._queue.append(item)
        self._count(1)
        self._start()
        try:
            while item.ended < chat.count:
                part = await item.parts.get()
                if isinstance(part, UnansweredError | ApiError):
                    item.ended = chat.count
                    raise part
                if "finish" in part or (part.get("deferred") and self.early):
                    item.ended += 1 if "finish" in part else chat.count
                yield part if "score" in part else _choice(part)
        finally:
            self._count(-1)
            if item in self._queue:
                self._queue.remove(item)
            elif item.ended < chat.count and item.left is not None:
                item.left()

    def _start(self) -> None:
        while self._queue and len(self._running) < len(self.workers.loads):
            batch = [self._queue.popleft() for _ in range(min(_TOGETHER, len(self._queue)))]
            task = asyncio.ensure_future(self._answer(batch))
            self._running.add(task)
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    async def _answer(self, batch: list[_Waiting]) -> None:
        def tell(place: int, part: Any) -> None:
            if (error := part.get("error")) is not None:
                code = "context_length_exceeded" if "limit" in part else None
                part = ApiError(400, error, "messages", code)
            batch[place].parts.put_nowait(part)

        stream = Stream([item.chat for item in batch], tell)
        for place, item in enumerate(batch):
            item.left = lambda place=place: stream.leave(place)
        failure: UnansweredError = UnansweredError("failed", f"The {self.who} gave no answer.")
        try:
            await self.workers.ask(stream)
        except Exception as error:
            _log.warning("The %s failed: %s: %s", self.who, type(error).__name__, error)
            failure = UnansweredError("failed", f"The {self.who} is not there.")
        # Those that have ended no longer look.
        for item in batch:
            item.parts.put_nowait(failure)

    def _count(self, change: int) -> None:
        self.waiting += change
        if self.gauge is not None:
            self.gauge.set(self.waiting)


def _choice(part: dict[str, Any]) -> dict[str, Any]:
    """A part of an answer as a choice of the API."""
    logprobs = {"content": part["logprobs"], "refusal": None} if "logprobs" in part else None
    delta = {"content": part["text"]}
    choice = {"index": part["choice"], "delta": delta, "logprobs": logprobs, "finish_reason": part.get("finish")}
    return {"choices": [choice], "tokens": part.get("tokens", 0)}
