"""A Super of chats behind an API of OpenAI's form: asked within its limits, and again after failures that may pass."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import time
from contextlib import aclosing
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from elang.backends.openai.settings import Settings
from elang.backends.openai.spending import Pace, Spending
from elang.backends.retrying import GivenUpError, TemporaryError, persistently
from elang.errors import InputError
from elang.inference.serving.chat_request import ChatRequest
from elang.inference.serving.chats import Parts, UnansweredError
from elang.inference.serving.conversation import is_text
from elang.inference.serving.schema import ApiError, timeout
from elang.inference.serving.sender import BUSY, FailedError, Sender, Sent, busy

_log = logging.getLogger(__name__)
_SPENT = "The budget for the Super is spent."
_LIMITS = ("max_completion_tokens", "max_tokens")


class Upstream:
    """A Super elsewhere, which is sent what a request contains.

    The limits of its settings hold for all requests together: requests at a time, requests and tokens a minute, the
    pauses that it asks for, and the budget, from the start of the server. An attempt whose failure may pass is made
    again, up to ``tries`` in all and within the request's time, unless the answer has begun.
    """

    def __init__(self, settings: Settings, timeout: float) -> None:
        if settings.budget is not None and settings.max_tokens is None:
            raise InputError(
                f"The 'budget' of {settings.address} needs 'max_tokens' in a server of chats: what an answer may cost "
                "is not known otherwise. Set it in the YAML file."
            )
        self.settings = settings
        self.spending, self.pace = Spending(settings), Pace(settings)
        self._sender = Sender(settings, min(settings.timeout, timeout))
        self.close = self._sender.close
        self.waiting = 0
        self.gauge: Gauge | None = None
        self._attempts: Counter | None = None
        self._places = asyncio.Semaphore(settings.concurrent)

    def count_in(self, registry: CollectorRegistry) -> None:
        """Count attempts that failed, and what is left of a budget, for Prometheus."""
        to: Any = {"registry": registry}
        self._attempts = Counter("elang_failed_attempts", "Attempts at the Super that failed", ["reason"], **to)
        if (budget := self.settings.budget) is not None:
            left = Gauge("elang_budget_left", "What is left of the Super's budget", **to)
            left.set_function(lambda: budget - self.spending.spent)

    def refuses(self, request: ChatRequest) -> tuple[str, str | None]:
        """Nothing: the server itself says what it does not take."""
        return "", None

    async def ask(
        self, request: ChatRequest, messages: list[dict[str, Any]], tokens: int | None, until: float = math.inf
    ) -> Parts:
        """The parts of an answer: ``choices`` and ``usage`` as the server gives them.

        ``tokens`` limits them, beside the request's limit and that of the settings. No attempt begins after ``until``.
        Raises an :class:`UnansweredError`.
        """
        sent = self._sent(request, messages, tokens)
        seconds = min(self.settings.deadline or math.inf, until - time.monotonic())
        end = time.monotonic() + seconds
        # Another attempt might cost what the ceiling does not allow.
        ceiling = request.choice.max_cost is not None
        parts: Parts | None = None
        self._count(1)

        async def attempt() -> tuple[dict[str, Any], Parts]:
            begun = self._attempt(sent, end)
            try:
                return await anext(begun), begun
            except FailedError as error:
                if ceiling and error.charged:
                    raise error.failure from None
                raise

        try:
            first, begun = await persistently(attempt, self.settings.tries, seconds, failed=self._failed)
            parts = begun
            yield first
            async for part in begun:
                yield part
        except GivenUpError as error:
            raise (error.__cause__.failure if isinstance(error.__cause__, FailedError) else error) from None
        except FailedError as error:
            raise error.failure from None
        finally:
            self._count(-1)
            if parts is not None:
                await parts.aclose()

    def _sent(self, request: ChatRequest, messages: list[dict[str, Any]], tokens: int | None) -> Sent:
        """What is sent, with an estimate of what it takes."""
        own = self.settings.body
        body = {**request.body, "model": self.settings.model, "messages": messages, **own}
        limits = (tokens, self.settings.max_tokens, request.chat.tokens, *(own.get(name) for name in _LIMITS))
        most = min((limit for limit in limits if limit is not None), default=None)
        if most is not None:
            # null in the settings leaves the name out that the server does not know.
            names = [name for name in _LIMITS if own.get(name, most) is not None]
            named = [name for name in names if name in own] or [name for name in names if name in body] or names[-1:]
            body = {name: value for name, value in body.items() if name not in _LIMITS} | dict.fromkeys(named, most)
        if request.stream:
            body["stream_options"] = {"include_usage": True}
        body = {name: value for name, value in body.items() if value is not None}
        content = json.dumps(body, ensure_ascii=False).encode()
        used, replies = self.spending.used, self.spending.replies
        mean = -(-used.output // replies) if replies else 0
        output = (mean if most is None else most) * request.chat.count
        # What images take says nothing about the bytes of texts.
        size = len(content) if all(map(is_text, messages)) else 0
        estimate = self.spending.estimate(len(content), output)
        return Sent(content, request.stream, estimate, secrets.token_hex(8), size)

    async def _attempt(self, sent: Sent, end: float) -> Parts:
        """The parts of an answer; a :class:`FailedError` if another attempt may help."""
        await self._place(end)
        try:
            try:
                await self.pace.turn(sent.estimate.input + sent.estimate.output, asyncio.sleep, end - time.monotonic())
            except TemporaryError as error:
                raise UnansweredError("full", BUSY, busy(error.pause)) from None
            try:
                held = self.spending.hold(sent.estimate)
            except InputError as error:
                _log.warning("%s", error)
                # Clients that know this header do not ask again.
                final = {"x-should-retry": "false"}
                refusal = ApiError(429, _SPENT, code="insufficient_quota", headers=final)
                raise UnansweredError("budget", _SPENT, refusal) from None
            usage, charged = None, True
            try:
                async with aclosing(self._sender.parts(sent)) as parts:
                    async for part in parts:
                        usage = part.get("usage") or usage
                        yield part
            except FailedError as error:
                charged = error.charged
                raise
            except (ApiError, UnansweredError):
                charged = False
                raise
            finally:
                self.spending.settle(held, usage, sent.size, lost=charged)
        finally:
            self._places.release()

    async def _place(self, end: float) -> None:
        """Wait until it may be asked another request at the same time."""
        if not self._places.locked():
            await self._places.acquire()
            return
        try:
            async with timeout(max(0.0, end - time.monotonic())):
                await self._places.acquire()
        except asyncio.TimeoutError:
            raise UnansweredError("full", BUSY, busy(0.0)) from None

    def _failed(self, error: TemporaryError) -> None:
        """Count an attempt; a pause that the server asks for is one of all requests."""
        assert isinstance(error, FailedError)
        if self._attempts is not None:
            self._attempts.labels(error.kind).inc()
        if error.pause:
            self.pace.pause(error.pause)

    def _count(self, change: int) -> None:
        self.waiting += change
        if self.gauge is not None:
            self.gauge.set(self.waiting)
