"""What every request to the server passes before the app answers it: its token, its size, and its time."""

import asyncio
import hmac
import json
import math
import time
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse

from elang.inference.serving.schema import RETRY, error_body

# A request line with its headers, and how many headers there may be.
HEAD_BYTES, _HEADERS = 32_768, 100
# The name of a request's task in its scope.
TASK = "elang.task"
_EVENTS = b"text/event-stream; charset=utf-8"
# Seconds in which a body must come.
_BODY = 10.0
# Bytes of bodies that are held at a time; small ones are always accepted.
_HELD, _SMALL = 32_000_000, 16_384
_ENDING = (503, "The server is ending. Ask another, or ask again later.", RETRY)
# Status, reason and headers.
Refusal = tuple[int, str, dict[str, str]]


class Gate:
    """Counts every request, refuses it without the token or with too much in it, and reads its body for the app.

    The token is expected as ``Authorization: Bearer TOKEN``; ``None`` lets all in. A body has at most ``max_bytes``.
    ``count`` is called with the path and the status of every request.
    """

    OPEN = ("/", "/health", "/ready")
    # Answered while the server ends, too.
    ENDING = ("/", "/metrics")

    def __init__(
        self, app: Any, token: str | None, max_bytes: int, count: Callable[[str, int], None] = lambda path, status: None
    ) -> None:
        self.app, self.max_bytes, self.count = app, max_bytes, count
        self.expected = None if token is None else f"Bearer {token}".encode()
        self._too_large: Refusal = (413, f"A request has at most {max_bytes} bytes.", {})
        self.ending = False
        self.held = 0
        # The unanswered requests: the time by which each body must be there, and why one is given up.
        self.open: dict[asyncio.Task[Any], float] = {}
        self._reasons: dict[asyncio.Task[Any], Refusal] = {}
        # The tasks whose answers have begun and come in parts.
        self.streaming: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499
        task = asyncio.current_task()
        assert task is not None
        scope[TASK] = task

        async def send_counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.open.pop(task, None)
                if (b"content-type", _EVENTS) in message.get("headers", ()):
                    self.streaming.add(task)
                if self.ending:
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        try:
            if refusal := self._refusal(scope):
                await response_of(*refusal, path=scope["path"])(scope, receive, send_counted)
            else:
                await self._answer(task, scope, receive, send=send_counted)
        except asyncio.CancelledError:
            if task not in self._reasons:
                raise
            if self._reasons[task][0] == 499:
                # Nobody is there to be told.
                status = 499
            elif task in self.streaming:
                event = f"data: {json.dumps(error_body(*self._reasons[task][:2]))}\n\n".encode()
                await send({"type": "http.response.body", "body": event})
            else:
                await response_of(*self._reasons[task], close=True, path=scope["path"])(scope, receive, send_counted)
        except Exception:
            status = 500
            raise
        finally:
            self.open.pop(task, None)
            self.streaming.discard(task)
            self._reasons.pop(task, None)
            self.count(scope["path"], status)

    async def _answer(self, task: "asyncio.Task[Any]", scope: Any, receive: Any, send: Any) -> None:
        """Read the body, which may come in pieces and without its length, and let the app answer."""
        self.open[task] = time.monotonic() + _BODY
        parts: list[bytes] = []
        size = held = 0
        more = True
        try:
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                parts.append(message.get("body", b""))
                size, more = size + len(parts[-1]), message.get("more_body", False)
                if size > self.max_bytes:
                    await response_of(*self._too_large, path=scope["path"])(scope, receive, send)
                    return
                if size > _SMALL:
                    self.held, held = self.held + size - held, size
                    if self.held > _HELD:
                        refusal = (503, "Too much is being sent. Ask again later.", RETRY)
                        await response_of(*refusal, path=scope["path"])(scope, receive, send)
                        return
            self.open[task] = math.inf
            messages: list[Any] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]
            parts.clear()

            async def receive_whole() -> Any:
                return messages.pop() if messages else await receive()

            await self.app(scope, receive_whole, send)
        finally:
            self.held -= held

    def _refusal(self, scope: Any) -> Refusal | None:
        """Why a request is refused before its body is read."""
        headers = dict(scope["headers"])
        size = len(scope["path"]) + len(scope["query_string"]) + sum(len(k) + len(v) for k, v in scope["headers"])
        if len(scope["headers"]) > _HEADERS or size > HEAD_BYTES:
            return 431, f"A request has at most {_HEADERS} headers, and its head at most {HEAD_BYTES} bytes.", {}
        token, path = headers.get(b"authorization", b""), scope["path"]
        if self.expected is not None and path not in self.OPEN and not hmac.compare_digest(token, self.expected):
            reason = "The token is missing or wrong: send 'Authorization: Bearer TOKEN'."
            return 401, reason, {"WWW-Authenticate": "Bearer"}
        if self.ending and path not in self.ENDING:
            return _ENDING
        if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
            return 415, "The body is compressed; send it as it is, without Content-Encoding.", {}
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > 15 or int(declared) > self.max_bytes:
            return self._too_large
        return None

    def give_up_late(self, now: float) -> None:
        """Refuse requests whose bodies have not come in time."""
        for task, until in list(self.open.items()):
            if until < now:
                self.give_up(task, (408, f"The body has not come within {_BODY:.0f} seconds.", {}))

    def give_up_all(self) -> None:
        """Refuse all unanswered requests, because the server ends."""
        for task in [*self.open, *self.streaming]:
            self.give_up(task, _ENDING)

    def give_up(self, task: "asyncio.Task[Any] | None", refusal: Refusal) -> None:
        """Stop answering a request, and refuse it."""
        if task is not None and (task in self.open or task in self.streaming) and task not in self._reasons:
            self._reasons[task] = refusal
            task.cancel()


def response_of(
    status: int, detail: str, headers: dict[str, str] | None = None, close: bool = False, path: str = ""
) -> JSONResponse:
    """A refusal, in the form of FastAPI's own or, for a path of OpenAI's API, in that of OpenAI."""
    body = error_body(status, detail) if path.startswith("/v1/") else {"detail": detail}
    return JSONResponse(body, status, {**(headers or {}), **({"Connection": "close"} if close else {})})
