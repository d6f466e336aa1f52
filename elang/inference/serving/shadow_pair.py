"""The shadow of a pair that answers texts, and of one that answers chats: what is drawn, and how the Super is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from fastapi import HTTPException

from elang.backends.flops import flops_by_length
from elang.backends.openai.settings import Usage
from elang.errors import InputError
from elang.inference.predictor import JointPredictor
from elang.inference.serving.chat_answer import ChatAnswer, PairPrices, cost_of
from elang.inference.serving.chat_request import ChatRequest
from elang.inference.serving.chats import LocalChats
from elang.inference.serving.conversation import framed
from elang.inference.serving.schema import Answer, Question, Reply, TimedQuestion
from elang.inference.serving.shadow import BudgetUnit, Draw, Seen, Shadow
from elang.inference.serving.shadow import Reply as Shadowed
from elang.inference.serving.upstream import Upstream
from elang.tasks.extraction import comparable
from elang.tasks.text_task import TextTask


def about_pair(predictor: JointPredictor) -> dict[str, Any]:
    """What a log says of a pair; an ``InputError`` if it has nothing that a shadow can watch."""
    kind, task = predictor.task.kind, predictor.task
    if not (kind.chooses or kind.generates):
        raise InputError("--shadow compares answers that are right or wrong, and a regression's are neither.")
    if predictor.threshold == float("-inf"):
        raise InputError("--shadow has nothing to watch where everything is deferred (the threshold is -inf).")
    about: dict[str, Any] = {"score": predictor.score, "threshold": predictor.threshold}
    if kind.has_classes:
        return about | {"answers": "classes", "label_names": predictor.label_names}
    return about | {"answers": "texts", "extract": task.extract}


def same_answers(task: TextTask) -> Callable[[str, str], bool]:
    """Whether two answers count as the same: of texts those that are extracted from them."""

    def same(first: str, second: str) -> bool:
        if task.kind.generates:
            first, second = (text.strip() for text in comparable(task, [first, second]))
        return first == second

    return same


class Costs:
    """What an answer of the Super costs in the unit of a budget, by the tokens that it reads and writes.

    Args:
        unit: The unit.
        prices: What a million tokens cost.
        config: The configuration of a Super that is here; counted as a model that reads all these tokens.
    """

    def __init__(self, unit: BudgetUnit, prices: PairPrices, config: Any = None) -> None:
        self.unit, self.prices, self.config = unit, prices, config
        if unit == "money" and "super" not in prices:
            raise InputError("--shadow_budget_in money needs the price of the Super's tokens, as --super_price.")
        if unit == "flops" and config is None:
            raise InputError("--shadow_budget_in flops needs a Super that runs here; of another one FLOPs are unknown.")

    def of(self, read: Callable[[], int], written: Callable[[], int]) -> float:
        """The cost of an answer; tokens are counted only if they matter."""
        if self.unit == "requests":
            return 1.0
        if self.unit == "money":
            return cost_of(self.prices, "super", Usage(read(), 0, written()))
        return float(flops_by_length(self.config, torch.tensor([read() + written()]))[0])


class TextShadow:
    """Watches the answers of a :class:`~elang.inference.serving.service.PairService`."""

    def __init__(self, shadow: Shadow, costs: Costs, tokenizer: Any) -> None:
        self.shadow, self.costs, self.tokenizer = shadow, costs, tokenizer

    @contextmanager
    def watched(self, question: TimedQuestion, ask: Callable[[Question], Any]) -> Iterator[Callable[[Reply], None]]:
        """Around the answer to a request: what is yielded takes the reply, logs it, and tells its ids.

        ``ask`` asks the Super.
        """
        draw = self.shadow.draw(question.ids or [None] * len(question.texts))

        def saw(reply: Reply) -> None:
            answered = [self._seen(question, place, answer, ask=ask) for place, answer in enumerate(reply.answers)]
            for place, name in self.shadow.saw(draw, answered).items():
                reply.answers[place].id = name

        try:
            yield saw
        finally:
            self.shadow.release(draw)

    def _seen(self, question: TimedQuestion, place: int, answer: Answer, *, ask: Callable[[Question], Any]) -> Seen:
        text = question.texts[place]
        choices = None if question.choices is None else [question.choices[place]]

        async def shadowed() -> Shadowed:
            label = str(await ask(Question(texts=[text], choices=choices)))
            return Shadowed(label, self.costs.of(lambda: self._count(text), lambda: self._count(label)))

        deferred = answer.answered_by == "super" or answer.fallback is not None
        return Seen(answer.score, answer.answered_by, deferred, str(answer.label), text, shadowed)

    def _count(self, text: str | Sequence[str]) -> int:
        texts = [text] if isinstance(text, str) else list(text)
        ids = self.tokenizer(texts, add_special_tokens=True, truncation=False, padding=False, verbose=False)
        return sum(map(len, ids["input_ids"]))


class ChatShadow:
    """Watches the answers of a :class:`~elang.inference.serving.chat_service.ChatService`."""

    def __init__(
        self, shadow: Shadow, costs: Costs, super_: LocalChats | Upstream, *, task: TextTask, seconds: float
    ) -> None:
        self.shadow, self.costs, self.super_, self.task, self.seconds = shadow, costs, super_, task, seconds

    async def answer(self, request: ChatRequest, begin: Callable[[ChatRequest], Any]) -> ChatAnswer:
        """The answer that ``begin`` begins, which is logged when it has ended."""
        draw = self.shadow.draw([None])
        try:
            answer: ChatAnswer = await begin(request)
        except BaseException:
            self.shadow.release(draw)
            raise
        answer.id = draw.ids.get(0, answer.id)
        parts: Any = _Heard(answer.parts, lambda text: self._saw(draw, request, answer, text=text))
        answer.parts = parts
        return answer

    def _saw(self, draw: Draw, request: ChatRequest, answer: ChatAnswer, *, text: str | None) -> None:
        if text is not None:
            chat = request.chat
            messages = [*([("system", chat.system)] if chat.system else []), *chat.turns, ("user", list(chat.texts))]
            ask = lambda: self._ask(request)  # noqa: E731
            seen = Seen(answer.score, answer.answered_by, answer.deferred is not None, text, messages, ask)
            self.shadow.saw(draw, [seen])
        self.shadow.release(draw)

    async def _ask(self, request: ChatRequest) -> Shadowed:
        return await asyncio.wait_for(self._whole(request), self.seconds)

    async def _whole(self, request: ChatRequest) -> Shadowed:
        body = {name: value for name, value in request.body.items() if name not in ("stream", "stream_options")}
        request = replace(request, stream=False, body=body)
        if isinstance(self.super_, Upstream):
            parts = self.super_.ask(request, framed(request.chat, self.task), None)
        else:
            parts = self.super_.ask(request.chat)
        text, read, written = "", 0, 0
        try:
            async for part in parts:
                read = part.get("prompt_tokens", read)
                written += part.get("tokens", 0)
                if usage := part.get("usage"):
                    read, written = int(usage["prompt_tokens"] or 0), int(usage["completion_tokens"] or 0)
                text += _content(part)
        except HTTPException as error:
            raise InputError(str(error.detail)) from None
        finally:
            await parts.aclose()
        return Shadowed(text, self.costs.of(lambda: read, lambda: written))


class _Heard:
    """The parts of an answer; at the end ``ended`` gets its text, or ``None`` if it was broken off."""

    def __init__(self, parts: Any, ended: Callable[[str | None], None]) -> None:
        self.parts, self.ended, self.text = parts, ended, ""
        self.open = True

    def __aiter__(self) -> _Heard:
        return self

    async def __anext__(self) -> dict[str, Any]:
        try:
            part: dict[str, Any] = await anext(self.parts)
        except StopAsyncIteration:
            self._end(self.text)
            raise
        except BaseException:
            self._end(None)
            raise
        self.text += _content(part)
        return part

    async def aclose(self) -> None:
        """Leave the answer."""
        self._end(None)
        await self.parts.aclose()

    def _end(self, text: str | None) -> None:
        if self.open:
            self.open = False
            self.ended(text)


def _content(part: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in part.get("choices", []))
