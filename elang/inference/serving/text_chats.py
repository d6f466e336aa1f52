"""Chats with a pair that answers one text at a time: labels, values, translations. The last turn is the text."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import HTTPException

from elang.backends.openai.settings import Usage
from elang.inference.serving.chat_answer import ChatAnswer
from elang.inference.serving.chat_request import ChatRequest
from elang.inference.serving.chat_service import threshold_of
from elang.inference.serving.chats import Parts
from elang.inference.serving.schema import ApiError, Role, TimedQuestion
from elang.inference.serving.service import PairService


class TextChats:
    """Answers chats by a :class:`PairService`, whose label, or whole text, is the content of the message.

    Tokens are counted by the Swift's tokenizer: those of the texts once for each model that reads them, and those of
    the answer.
    """

    def __init__(self, service: PairService) -> None:
        self.service, self.predictor = service, service.predictor
        kind, task = self.predictor.task.kind, self.predictor.task
        self._tokenizer = self.predictor.swift.tokenizer
        self.longest = max((self._count(name) for name in task.label_names), default=1)
        if kind.generates:
            self.longest = self.predictor.manifest.max_target_length

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """The answer to a chat, or an :class:`ApiError`."""
        self._check(request)
        threshold = threshold_of(request, self.predictor)
        texts = request.chat.texts
        question = TimedQuestion(texts=[texts[0] if len(texts) == 1 else list(texts)], choices=None, deadline=None)
        try:
            (answer,) = (await self.service.answer(question, threshold)).answers
        except ApiError:
            raise
        except HTTPException as error:
            status = 400 if error.status_code == 422 else error.status_code
            raise ApiError(status, str(error.detail), headers=dict(error.headers or {})) from None
        content = str(answer.label)
        written, read = await asyncio.to_thread(lambda: (self._count(content), sum(map(self._count, texts))))
        asked: tuple[Role, ...] = ("swift", "super")
        if answer.fallback is None:
            asked = asked[answer.score is None : 1 + (answer.answered_by == "super")]
        elif answer.fallback in ("full", "unavailable"):
            asked = asked[:1]
        always = request.choice.always
        reason = "always" if always else "threshold" if answer.score is None else "score"
        return ChatAnswer(
            answer.answered_by,
            _one(content),
            answer.score,
            threshold=None if always else threshold,
            deferred=reason if "super" in asked or answer.fallback else None,
            fallback=answer.fallback,
            more={"probability": answer.probability, "cut": answer.cut, "unread_turns": request.turns},
            tokens={role: Usage(read, 0, written if role == answer.answered_by else 0) for role in asked},
        )

    def _check(self, request: ChatRequest) -> None:
        """Refuse what such a pair cannot do."""
        chat, fields = request.chat, self.predictor.task.fields
        wrong = [
            (bool(request.beyond), request.beyond, request.param),
            (chat.sampled, "a temperature above 0", "temperature"),
            (chat.count > 1, "n above 1", "n"),
            (bool(chat.stop), "stop", "stop"),
            (chat.top_logprobs is not None, "logprobs; the field elang has the probability of a label", "logprobs"),
        ]
        for is_wrong, what, param in wrong:
            if is_wrong:
                message = f"This pair answers a text with one of its answers, and does not take {what}."
                raise ApiError(400, message, param, "unsupported_parameter")
        if chat.tokens is not None and chat.tokens < self.longest:
            message = f"An answer of this pair takes up to {self.longest} tokens, and is not cut: raise max_tokens."
            raise ApiError(400, message, "max_tokens")
        if len(chat.texts) != len(fields):
            message = f"The last message needs a part of text for each of {', '.join(fields)}."
            raise ApiError(400, message, "messages")
        if request.choice.max_cost is not None:
            raise ApiError(400, "A pair of labels or whole texts holds no max_cost.", "elang.max_cost")

    def _count(self, text: str) -> int:
        ids: Any = self._tokenizer(text, add_special_tokens=False, truncation=False, padding=False, verbose=False)
        return len(ids["input_ids"])


async def _one(content: str) -> Parts:
    choice = {"index": 0, "delta": {"content": content}, "logprobs": None, "finish_reason": "stop"}
    yield {"choices": [choice]}
