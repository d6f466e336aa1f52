"""Who is let into the server, with how much and for how long: what every request passes before the app answers it."""

import asyncio
import hmac
import time
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse

HEAD_BYTES = 32_768
"""Of a request line with its headers."""
TASK = "elang.task"
"""Where a request's task is kept in its scope."""
AGAIN = {"Retry-After": "1"}
_HEADERS = 100
# Seconds for a body to come.
_BODY = 10.0
# Bytes of bodies that are held at a time; small ones always find room.
_HELD, _SMALL = 32_000_000, 16_384
_ENDING = (503, "The server is ending. Ask another, or ask again later.", AGAIN)


class Gate:
    """What every request passes: it is counted, refused without the token or with too much, and its body is read.

    Args:
        app: What is behind it.
        token: Expected as ``Authorization: Bearer TOKEN``; ``None`` lets all in.
        max_bytes: Of a body.
        count: Told the path and the status of every request.
    """

    OPEN = ("/", "/health", "/ready")
    # What is answered while the server ends, too.
    ENDING = ("/", "/metrics")

    def __init__(
        self, app: Any, token: str | None, max_bytes: int, count: Callable[[str, int], None] = lambda path, status: None
    ) -> None:
        self.app, self.max_bytes, self.count = app, max_bytes, count
        self.expected = None if token is None else f"Bearer {token}".encode()
        self.ending = False
        self.held = 0
        # Requests that are not answered yet: until when the body has to be there, and why one is given up.
        self.open: dict[asyncio.Task[Any], float] = {}
        self._why: dict[asyncio.Task[Any], tuple[int, str, dict[str, str]]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499
        task = asyncio.current_task()
        assert task is not None
        scope[TASK] = task

        async def counted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.open.pop(task, None)
                if self.ending:
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        try:
            await self._answer(task, scope, receive, counted)
        except asyncio.CancelledError:
            why = self._why.get(task)
            if why is None:
                raise
            await refusal(*why, close=True)(scope, receive, counted)
        except Exception:
            status = 500
            raise
        finally:
            self.open.pop(task, None)
            self._why.pop(task, None)
            self.count(scope["path"], status)

    async def _answer(self, task: "asyncio.Task[Any]", scope: Any, receive: Any, send: Any) -> None:
        if no := self._refused(scope):
            await refusal(*no)(scope, receive, send)
            return
        self.open[task] = time.monotonic() + _BODY
        parts: list[bytes] = []
        size = held = 0
        more = True
        try:
            # A body may come in pieces and say nothing of its length.
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                parts.append(message.get("body", b""))
                size, more = size + len(parts[-1]), message.get("more_body", False)
                if size > self.max_bytes:
                    await self._large()(scope, receive, send)
                    return
                if size > _SMALL:
                    self.held, held = self.held + size - held, size
                    if self.held > _HELD:
                        await refusal(503, "Too much is being sent. Ask again later.", AGAIN)(scope, receive, send)
                        return
            self.open[task] = float("inf")
            whole: list[Any] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]
            parts.clear()

            async def given() -> Any:
                return whole.pop() if whole else await receive()

            await self.app(scope, given, send)
        finally:
            self.held -= held

    def _refused(self, scope: Any) -> tuple[int, str, dict[str, str]] | None:
        """Why a request is refused before its body is read."""
        headers = dict(scope["headers"])
        size = len(scope["path"]) + len(scope["query_string"]) + sum(len(k) + len(v) for k, v in scope["headers"])
        if len(scope["headers"]) > _HEADERS or size > HEAD_BYTES:
            return 431, f"A request has at most {_HEADERS} headers, and its head at most {HEAD_BYTES} bytes.", {}
        if self.expected is not None and scope["path"] not in self.OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                said = "The token is missing or wrong: send 'Authorization: Bearer TOKEN'."
                return 401, said, {"WWW-Authenticate": "Bearer"}
        if self.ending and scope["path"] not in self.ENDING:
            return _ENDING
        if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
            return 415, "The body is compressed; send it as it is, without Content-Encoding.", {}
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > 15 or int(declared) > self.max_bytes:
            return 413, f"A request has at most {self.max_bytes} bytes.", {}
        return None

    def _large(self) -> JSONResponse:
        return refusal(413, f"A request has at most {self.max_bytes} bytes.")

    def give_up_late(self, now: float) -> None:
        """Refuse requests whose bodies have not come in time."""
        for task, until in list(self.open.items()):
            if until < now:
                self.give_up(task, 408, f"The body has not come within {_BODY:.0f} seconds.", {})

    def give_up_all(self) -> None:
        """Refuse whatever is not answered yet, as the server ends."""
        for task in list(self.open):
            self.give_up(task, *_ENDING)

    def give_up(self, task: "asyncio.Task[Any] | None", *why: Any) -> None:
        """Stop answering a request, and say why."""
        if task in self.open and task not in self._why:
            self._why[task] = why
            task.cancel()


def refusal(status: int, detail: str, headers: dict[str, str] | None = None, close: bool = False) -> JSONResponse:
    """A refusal as FastAPI words its own."""
    return JSONResponse({"detail": detail}, status, {**(headers or {}), **({"Connection": "close"} if close else {})})
