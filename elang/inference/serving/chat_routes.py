"""The paths of OpenAI's API: models, chats and completions, whole or as streams, with errors in its form."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from elang.inference.serving.chat_answer import ChatAnswer
from elang.inference.serving.chat_request import ChatRequest, read_request
from elang.inference.serving.chats import UnansweredError
from elang.inference.serving.schema import ApiError, error_body, timeout
from elang.inference.serving.service import Metrics
from elang.tasks.text_task import TextTask

_log = logging.getLogger(__name__)
_PATHS = "/v1/"
_CHAT, _COMPLETION = f"{_PATHS}chat/completions", f"{_PATHS}completions"


class AnswersChats(Protocol):
    """What the paths ask."""

    async def answer(self, request: ChatRequest) -> ChatAnswer:
        """Begin an answer, or raise an :class:`ApiError`."""


def add_chat_routes(
    app: FastAPI, service: AnswersChats, model: str, task: TextTask, *, metrics: Metrics, deadline: float
) -> ChatFront:
    """Add ``/v1/models``, ``/v1/chat/completions`` and ``/v1/completions`` for a pair of this name.

    A reply, or a stream's first token, comes within the ``deadline``. Returns what to serve in place of the app.
    """
    about = {"id": model, "object": "model", "created": int(time.time()), "owned_by": "elang"}

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        if request.url.path.startswith(_PATHS):
            return _refusal(error)
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    @app.get("/v1/models", summary="The name of the pair")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [about]}

    @app.get("/v1/models/{name:path}", summary="The pair")
    async def one_model(name: str) -> dict[str, Any]:
        if name != model:
            raise ApiError(404, f"The model '{name[:100]}' does not exist.", "model", "model_not_found")
        return about

    async def respond(request: Request, completion: bool) -> Response:
        with metrics.seconds.labels("request").time():
            start = time.monotonic()
            asked = read_request(await request.body(), request.headers, model, task, completion)
            answer = await service.answer(asked)
            view = _View(model, answer, completion)
            if asked.stream:
                return _EventStream(view.events(asked), answer)
            try:
                async with timeout(max(0.0, start + deadline - time.monotonic())):
                    reply = await view.whole()
            except asyncio.TimeoutError:
                raise ApiError(504, "The answer was not finished before the deadline.") from None
            except UnansweredError as error:
                raise ApiError(503, f"{error} Ask again later.") from None
            return JSONResponse(reply, headers=answer.headers)

    async def chat(request: Request) -> Response:
        return await respond(request, False)

    async def complete(request: Request) -> Response:
        return await respond(request, True)

    # For the schema, and for other methods.
    app.post(_CHAT, summary="The next message of a chat")(chat)
    app.post(_COMPLETION, summary="What follows a text")(complete)
    return ChatFront(app, {_CHAT: chat, _COMPLETION: complete})


class ChatFront:
    """Answers the paths of chats itself, and leaves others to an app, whose layers take a fifth of a request's time."""

    def __init__(self, app: FastAPI, endpoints: dict[str, Callable[[Request], Awaitable[Response]]]) -> None:
        self.app, self.endpoints = app, endpoints

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        endpoint = self.endpoints.get(scope["path"]) if scope.get("method") == "POST" else None
        if endpoint is None:
            await self.app(scope, receive, send)
            return
        try:
            response = await endpoint(Request(scope, receive))
        except HTTPException as error:
            response = _refusal(error)
        except Exception:
            # It is logged by the server.
            await JSONResponse(error_body(500, "The server failed."), 500)(scope, receive, send)
            raise
        await response(scope, receive, send)


def _refusal(error: HTTPException) -> Response:
    """A refusal in OpenAI's form."""
    body = error.body if isinstance(error, ApiError) else error_body(error.status_code, str(error.detail))
    return JSONResponse(body, error.status_code, error.headers)


class _EventStream(StreamingResponse):
    """Events of a stream. Its answer is given up when the client leaves."""

    def __init__(self, events: AsyncGenerator[str, None], answer: ChatAnswer) -> None:
        headers = {**answer.headers, "cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.events, self.answer = events, answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events, and free what they come from."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.events.aclose()
            await self.answer.parts.aclose()


class _View:
    """An answer in the form of one of the paths."""

    def __init__(self, model: str, answer: ChatAnswer, completion: bool) -> None:
        self.answer, self.completion = answer, completion
        kind = "text_completion" if completion else "chat.completion"
        self.head: dict[str, Any] = {"id": f"{'cmpl' if completion else 'chatcmpl'}-{uuid.uuid4().hex}", "object": kind}
        self.head |= {"created": int(time.time()), "model": model}
        # Characters of each choice so far, for the places of log-probabilities.
        self._written: dict[int, int] = {}

    async def whole(self) -> dict[str, Any]:
        """The reply to a request that asks for no stream."""
        choices: dict[int, dict[str, Any]] = {}
        try:
            async for part in self.answer.parts:
                for choice in part["choices"]:
                    _join(choices.setdefault(choice["index"], {}), choice)
        finally:
            await self.answer.parts.aclose()
        ordered = [self._form(choices[index], "message") for index in sorted(choices)]
        return {**self.head, "choices": ordered, "usage": self.answer.usage, "elang": self.answer.about(True)}

    async def events(self, request: ChatRequest) -> AsyncGenerator[str, None]:
        """The events of a stream; the first one has the field ``elang``, and the last one the usage if it is wanted."""
        head: dict[str, Any] = dict(self.head)
        if not self.completion:
            head["object"] += ".chunk"
        if request.include_usage:
            head["usage"] = None
        about: dict[str, Any] = {"elang": self.answer.about(False)}
        begun: set[int] = set()
        try:
            async for part in self.answer.parts:
                for choice in part["choices"]:
                    if choice["index"] not in begun:
                        begun.add(choice["index"])
                        choice["delta"] = {"role": "assistant", **choice["delta"]}
                yield _event({**head, "choices": [self._form(one, "delta") for one in part["choices"]], **about})
                about = {}
            if request.include_usage:
                last = {"choices": [], "usage": self.answer.usage, "elang": self.answer.about(True)}
                yield _event({**head, **last})
            yield "data: [DONE]\n\n"
        except (UnansweredError, ApiError) as error:
            yield _event(error_body(503, str(getattr(error, "detail", error))))

    def _form(self, choice: dict[str, Any], name: str) -> dict[str, Any]:
        """A choice, whose delta gets another name, or in a completion only its text."""
        index, delta = choice["index"], choice["delta"]
        rest = {key: value for key, value in choice.items() if key != "delta"}
        rest |= {"logprobs": choice.get("logprobs"), "finish_reason": choice.get("finish_reason")}
        if not self.completion:
            return {**rest, name: {"role": "assistant", **delta} if name == "message" else delta}
        text, place = delta.get("content") or "", self._written.get(index, 0)
        self._written[index] = place + len(text)
        return {**rest, "text": text, "logprobs": _completion_logprobs(rest["logprobs"], place)}


def _join(whole: dict[str, Any], choice: dict[str, Any]) -> None:
    """Add a part to a choice."""
    if not whole:
        whole.update(choice, delta=dict(choice["delta"]))
        return
    content = choice["delta"].get("content")
    if content:
        whole["delta"]["content"] = (whole["delta"].get("content") or "") + content
    if logprobs := (choice.get("logprobs") or {}).get("content"):
        whole["logprobs"] = whole.get("logprobs") or {"content": [], "refusal": None}
        whole["logprobs"]["content"] = [*whole["logprobs"]["content"], *logprobs]
    whole["finish_reason"] = choice.get("finish_reason") or whole.get("finish_reason")


def _completion_logprobs(logprobs: Any, place: int) -> dict[str, Any] | None:
    """Log-probabilities in the form of /v1/completions."""
    tokens = (logprobs or {}).get("content")
    if not tokens:
        return None
    offsets = []
    for token in tokens:
        offsets.append(place)
        place += len(token["token"])
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{one["token"]: one["logprob"] for one in token["top_logprobs"]} for token in tokens],
        "text_offset": offsets,
    }


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
