"""Decides who answers a chat, and asks: the Swift, then the Super, within the deadline and the ceiling on cost."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from prometheus_client import Counter

from elang.backends.openai.settings import Usage
from elang.errors import InputError
from elang.inference.options import as_number
from elang.inference.predictor import JointPredictor
from elang.inference.serving.chat_answer import ChatAnswer, PairPrices, cost_of, no_parts, total
from elang.inference.serving.chat_request import READ, ChatRequest
from elang.inference.serving.chats import LocalChats, Parts, UnansweredError
from elang.inference.serving.conversation import framed, is_text
from elang.inference.serving.schema import RETRY, ApiError, Limits, Role, timeout
from elang.inference.serving.service import Metrics, OnSuperFailure
from elang.inference.serving.upstream import Upstream

# The part of a deadline that is kept for the Swift, should the Super not answer.
_SWIFT_SHARE = 0.25
# A chat template puts a few tokens around a message.
_AROUND_MESSAGE = 16


def threshold_of(request: ChatRequest, predictor: JointPredictor) -> float:
    """The threshold of a request, by default the server's; an :class:`ApiError` if there is none of its name."""
    choice = request.choice
    if choice.always is not None:
        return math.inf if choice.always == "swift" else -math.inf
    if choice.threshold is None:
        return predictor.threshold
    try:
        number = as_number(choice.threshold)
        return predictor.manifest.threshold(str(choice.threshold), predictor.score) if number is None else number
    except InputError as error:
        raise ApiError(400, str(error), "elang.threshold") from None


class ChatService:
    """Answers chats by a Swift that writes texts, and a Super here or elsewhere.

    The Swift's score decides, before or after it has written. What the Swift does not take goes to the Super. If the
    Super fails before its first token, ``on_super_failure`` says whether the Swift answers.
    """

    def __init__(
        self,
        predictor: JointPredictor,
        swift: LocalChats,
        super_: LocalChats | Upstream,
        *,
        limits: Limits,
        metrics: Metrics,
        on_super_failure: OnSuperFailure = "swift",
        super_ready: Callable[[], bool] = lambda: True,
        prices: PairPrices | None = None,
    ) -> None:
        self.predictor, self.swift, self.super_, self.super_ready = predictor, swift, super_, super_ready
        self.limits, self.metrics, self.on_super_failure = limits, metrics, on_super_failure
        self.prices: PairPrices = prices or {}
        to: Any = {"registry": metrics.registry}
        self.counted = Counter("elang_tokens", "Tokens of chats", ["model", "kind"], **to)
        self.spent = Counter("elang_cost", "Cost of chats by the prices of the server", ["model"], **to)
        swift.gauge, super_.gauge = (metrics.waiting.labels(role) for role in ("swift", "super"))
        if isinstance(super_, Upstream):
            super_.count_in(metrics.registry)

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Begin an answer, or raise an :class:`ApiError`. Whoever takes its parts must close them."""
        until = time.monotonic() + self.limits.deadline
        always, threshold = request.choice.always, threshold_of(request, self.predictor)
        self._check(request)
        refused, param = self.swift.refuses(request)
        if refused and always == "swift":
            raise _unsupported("Swift", refused, param)
        answer = ChatAnswer("super", no_parts(), threshold=None if always else threshold, prices=self.prices)
        if refused or threshold == -math.inf:
            answer.deferred = refused or ("always" if always else "threshold")
        else:
            await self._ask_swift(request, answer, threshold, until=until)
        if answer.deferred:
            self.metrics.deferred.inc()
            await self._ask_super(request, answer, until=until, alone=bool(refused) or always == "super")
        self.metrics.texts.labels(answer.answered_by).inc()
        answer.parts = self._counted(answer, answer.parts)
        return answer

    def _check(self, request: ChatRequest) -> None:
        fields = self.predictor.task.fields
        if not request.beyond and len(request.chat.texts) != len(fields):
            message = f"The last message needs a part of text for each of {', '.join(fields)}."
            raise ApiError(400, message, "messages")
        if request.choice.max_cost is not None and not self.prices:
            raise ApiError(
                400, "This server knows no prices (--super_price), so it holds no max_cost.", "elang.max_cost"
            )

    async def _ask_swift(self, request: ChatRequest, answer: ChatAnswer, threshold: float, *, until: float) -> None:
        """Let the Swift score the chat, and answer it if it may."""
        if self.swift.waiting >= self.limits.pending:
            raise ApiError(503, "Too many texts are waiting. Ask again later.", headers=RETRY)
        parts = self.swift.ask(replace(request.chat, threshold=threshold))
        start = time.monotonic()
        try:
            first = await _within(anext(parts), until)
        except ApiError as error:
            if error.code is None or request.choice.always:
                raise
            answer.deferred = "too long for the Swift"
            return
        except UnansweredError as error:
            raise ApiError(503, f"{error} Ask again later.", headers=RETRY) from None
        except asyncio.TimeoutError:
            await parts.aclose()
            raise ApiError(504, "The Swift did not answer before the deadline.") from None
        self.metrics.seconds.labels("swift").observe(time.monotonic() - start)
        # A Swift that has deferred may be asked again.
        before = answer.tokens.get("swift") or Usage(0, 0, 0)
        answer.score, answer.tokens["swift"] = first["score"], total(before, Usage(first["prompt_tokens"], 0, 0))
        if first["score"] is not None:
            self.metrics.scores.observe(first["score"])
        answer.parts, answer.answered_by = parts, "swift"
        if not first["deferred"]:
            return
        answer.deferred = "score"
        if self.swift.early:
            await parts.aclose()

    async def _ask_super(self, request: ChatRequest, answer: ChatAnswer, *, until: float, alone: bool) -> None:
        """Let the Super answer, or the Swift for it, unless it is the Super ``alone`` that can."""
        held, start = answer.parts, time.monotonic()
        # Keep time for the Swift's answer.
        kept = 0.0 if alone or self.on_super_failure == "fail" else _SWIFT_SHARE * self.limits.deadline
        try:
            parts = self._super_parts(request, answer, until - kept)
            try:
                first = await _within(anext(parts), until - kept)
            except asyncio.TimeoutError:
                await parts.aclose()
                raise UnansweredError("timeout", "The Super did not answer before the deadline.") from None
            except StopAsyncIteration:
                raise UnansweredError("failed", "The Super gave no answer.") from None
            self.metrics.seconds.labels("super").observe(time.monotonic() - start)
            await self._discard(answer, held)
            answer.answered_by, answer.parts = "super", _chained(first, parts)
        except ApiError:
            await held.aclose()
            raise
        except UnansweredError as error:
            self.metrics.fallbacks.labels(error.reason).inc()
            answer.tokens.pop("super", None)
            if alone or (self.on_super_failure == "fail" and error.reason != "cost"):
                await held.aclose()
                raise error.refusal or _unanswered(error) from None
            answer.fallback = error.reason
            if self.swift.early or answer.score is None:
                deferred, answer.deferred = answer.deferred, None
                await self._ask_swift(request, answer, math.inf, until=until)
                if answer.deferred:
                    raise error.refusal or _unanswered(error) from None
                answer.deferred = deferred

    def _super_parts(self, request: ChatRequest, answer: ChatAnswer, until: float) -> Any:
        if not self.super_ready():
            raise UnansweredError("unavailable", "The Super is not there.")
        if self.super_.waiting >= self.limits.deferred:
            raise UnansweredError("full", "The Super has too many texts waiting.")
        refused, param = self.super_.refuses(request)
        if refused:
            raise _unsupported("pair", refused, param)
        messages = request.body["messages"] if request.beyond else framed(request.chat, self.predictor.task)
        tokens = self._affordable(request, answer, messages)
        answer.tokens["super"] = None
        if isinstance(self.super_, Upstream):
            return self.super_.ask(request, messages, tokens, until)
        return self.super_.ask(replace(request.chat, tokens=tokens or request.chat.tokens))

    def _affordable(self, request: ChatRequest, answer: ChatAnswer, messages: list[dict[str, Any]]) -> int | None:
        """The tokens that the Super may write under the request's ceiling; ``None`` if nothing limits them.

        It is taken to read a token for each byte: no tokenizer makes more.
        """
        ceiling = request.choice.max_cost
        if ceiling is None:
            return None
        if not all(is_text(message) for message in messages):
            reason = "What images, sounds and files cost is not known before: leave max_cost out."
            raise ApiError(400, reason, "elang.max_cost")
        # Tools, schemas, and what else a server may put into the prompt.
        known = {name: value for name, value in request.body.items() if name not in READ}
        read = len(json.dumps([messages, known], ensure_ascii=False).encode()) + _AROUND_MESSAGE * len(messages)
        spent = sum(cost_of(self.prices, role, used) for role, used in answer.tokens.items() if used)
        room = ceiling - spent - cost_of(self.prices, "super", Usage(read, 0, 0))
        price = self.prices["super"].output if "super" in self.prices else 0.0
        if price and not math.isinf(tokens := room / (price / 1e6 * request.chat.count)):
            given = request.chat.tokens
            tokens = min(math.floor(tokens), tokens if given is None else given)
        else:
            tokens = math.inf
        if room < 0 or tokens < 1:
            refusal = ApiError(400, "The Super may cost more than elang.max_cost.", "elang.max_cost", "cost_ceiling")
            raise UnansweredError("cost", "The Super may cost more than the request allows.", refusal)
        return None if math.isinf(tokens) else int(tokens)

    async def _discard(self, answer: ChatAnswer, held: Parts) -> None:
        """Count what the Swift has written for nothing."""
        if answer.deferred == "score" and not self.swift.early:
            async for part in held:
                self._add(answer, "swift", part)
        await held.aclose()

    async def _counted(self, answer: ChatAnswer, parts: Parts) -> Parts:
        """The parts of an answer, whose tokens are counted as they pass."""
        role = answer.answered_by
        try:
            async for part in parts:
                self._add(answer, role, part)
                if part.get("choices"):
                    yield part
        finally:
            await parts.aclose()
            for model, used in answer.tokens.items():
                if used is None:
                    continue
                self.counted.labels(model, "read").inc(used.input)
                self.counted.labels(model, "written").inc(used.output)
                if model in self.prices:
                    self.spent.labels(model).inc(cost_of(self.prices, model, used))

    def _add(self, answer: ChatAnswer, role: Role, part: dict[str, Any]) -> None:
        used = answer.tokens.get(role)
        if "prompt_tokens" in part and used is None:
            answer.tokens[role] = Usage(part["prompt_tokens"], 0, 0)
        elif usage := part.get("usage"):
            answer.tokens[role] = usage
        elif used is not None and part.get("tokens"):
            answer.tokens[role] = total(used, Usage(0, 0, part["tokens"]))


def _unsupported(who: str, what: str, param: str | None) -> ApiError:
    return ApiError(400, f"The {who} does not take {what}.", param, "unsupported_parameter")


def _unanswered(error: UnansweredError) -> ApiError:
    if error.reason == "timeout":
        return ApiError(504, str(error))
    return ApiError(503, f"{error} Ask again later.", headers=RETRY)


async def _within(first: Any, until: float) -> Any:
    async with timeout(max(0.0, until - time.monotonic())):
        return await first


async def _chained(first: dict[str, Any], parts: Any) -> Parts:
    try:
        yield first
        async for part in parts:
            yield part
    finally:
        await parts.aclose()
