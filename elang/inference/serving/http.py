"""The HTTP side of `elang serve`: who is let in, with how much and for how long, and how the server ends.

uvicorn speaks HTTP. What it leaves open is bounded here: the size of a request's head, how long a head, a body or an
answer may take, how many connections there are, and what becomes of requests when the process is to end.
"""

import asyncio
import ctypes
import errno
import hmac
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, cast

import httptools
import uvicorn
from starlette.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from elang.errors import InputError
from elang.inference.serving.workers import Workers

# Of a request line with its headers, and how many of these.
_HEAD_BYTES, _HEADERS = 32_768, 100
# Seconds: for a head or a body to come, for the next request on a connection, for an answer to be taken.
_HEAD, _BODY, _IDLE, _TAKEN = 10.0, 10.0, 20.0, 20.0
# Bytes of bodies that are held at a time; small ones always find room.
_HELD, _SMALL = 32_000_000, 16_384
_CONNECTIONS = 1000
# Requests of a connection that wait behind the one that is being answered.
_PIPELINED = 32
# Seconds for which what a client sends behind a refusal is read and thrown away.
_LINGER = 1.0
# Seconds after the signal: how long the server listens at least, so that who asks then is told to go elsewhere; and
# when it refuses what is not answered yet.
_GRACE, _DRAIN = 0.5, 6.0
# Where a request's task is kept in its scope.
_TASK = "elang.task"
_AGAIN = {"Retry-After": "1"}
_ENDING = (503, "The server is ending. Ask another, or ask again later.", _AGAIN)


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
        scope[_TASK] = task

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
                        await refusal(503, "Too much is being sent. Ask again later.", _AGAIN)(scope, receive, send)
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
        if len(scope["headers"]) > _HEADERS or size > _HEAD_BYTES:
            return 431, f"A request has at most {_HEADERS} headers, and its head at most {_HEAD_BYTES} bytes.", {}
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


class Connection(HttpToolsProtocol):
    """A connection of uvicorn's whose head is bounded and that is not kept for ever.

    Attributes:
        gate: Of the server, set by :func:`connections_of`.
        most: Connections at a time.
    """

    gate: Gate
    most = _CONNECTIONS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection; where there are too many, the one that has been waited for longest goes."""
        self.phase: Any = None
        self.cycles: list[Any] = []
        self.since = time.monotonic()
        self.raw, self.received, self.refused = 0, b"", False
        super().connection_made(transport)
        if len(self.connections) > self.most:
            waiting = [
                one for one in self.connections if isinstance(one, Connection) and one.awaited() and one is not self
            ]
            if waiting:
                min(waiting, key=lambda one: one.since).transport.abort()
            else:
                self.refuse(503, "Too many connections.")

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up the requests of a client that has left."""
        super().connection_lost(exc)
        for cycle in self.cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
                self.gate.give_up(cycle.scope.get(_TASK), 499, "The client has left.", {})
        for cycle, _ in self.pipeline:
            self.gate.count(cast("dict[str, Any]", cycle.scope)["path"], 499)
        self.pipeline.clear()

    def on_headers_complete(self) -> None:
        """Keep in mind which requests are not answered yet; the protocol knows the last one only."""
        super().on_headers_complete()
        self.cycles = [one for one in (*self.cycles, self.cycle) if one is not None and not one.response_complete]

    def awaited(self) -> bool:
        """Whether it is the client's turn: no request has come as a whole that is not answered."""
        if self.transport.is_closing():
            return False
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def data_received(self, data: bytes) -> None:
        """Take bytes, as long as they come to an end."""
        if self.refused:
            return
        before, self.received = self.cycle, data
        inside = before is not None and before.more_body
        super().data_received(data)
        self.received = b""
        if self.cycle is not before or (inside and not before.more_body):
            self.raw = 0
            return
        self.raw += len(data)
        # Chunks of a byte each take six.
        if self.raw > (8 * self.gate.max_bytes if inside else 0) + _HEAD_BYTES:
            if inside and before.response_complete:
                self.transport.abort()
            elif inside:
                self.refuse(413, f"A request has at most {self.gate.max_bytes} bytes.")
            else:
                self.refuse(431, f"A request's head has at most {_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        """Begin a request; a read brings thousands at once, and each would be kept until its turn."""
        if len(self.pipeline) >= _PIPELINED:
            raise httptools.HttpParserError("too many requests at once")
        super().on_message_begin()

    def _should_upgrade(self) -> bool:
        return any(name == b"upgrade" for name, _ in self.headers)

    def handle_websocket_upgrade(self) -> None:
        """Answer a request that asks for another protocol by this one, as HTTP allows; Java's client asks for HTTP/2.

        The parser takes what follows the head for that protocol's, so it reads the request again without the wish.
        """
        rest = self.received[cast(httptools.HttpParserUpgrade, sys.exc_info()[1]).args[0] :]
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        super().data_received(b"\r\n".join([*lines, b"", rest]))

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self.refuse(400, msg)

    def refuse(self, status: int, detail: str) -> None:
        """Answer what is no request, and close."""
        if self.transport.is_closing() or self.refused:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # It is in the body of a request, or behind one that is to be answered first; its task may not have begun.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            self.loop.call_soon(self._refuse_behind, self.cycle, status, detail)
            return
        self.gate.count("", status)
        answer = refusal(status, detail, _AGAIN if status == 503 else None, close=True)
        first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()
        lines = [first, *(name + b": " + value for name, value in answer.raw_headers)]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        if len(self.connections) > self.most:
            self.transport.close()
            return
        # To close it while the client still sends would take the answer away from it.
        self.refused = True
        self.transport.write_eof()
        self.loop.call_later(_LINGER, self.transport.close)

    def _refuse_behind(self, cycle: Any, status: int, detail: str) -> None:
        if not cycle.more_body:
            self.gate.count("", status)
        else:
            self.gate.give_up(cycle.scope.get(_TASK), status, detail, {})

    def end_if_late(self, now: float) -> None:
        """Close it if the client has let it wait for too long."""
        cycle = self.cycle
        # Requests that wait behind one another have not begun to be answered where the client takes no answer.
        full = self.transport.is_closing() or self.flow.write_paused
        phase = (full, cycle, cycle is not None and (cycle.response_started, cycle.response_complete))
        if phase != self.phase:
            self.phase, self.since = phase, now
        waited = now - self.since
        if full or (cycle is not None and cycle.response_started and not cycle.response_complete):
            if waited > _TAKEN:
                self.transport.abort()
        elif cycle is None or cycle.response_complete:
            if self.raw and waited > _HEAD and not (cycle is not None and cycle.more_body):
                self.refuse(408, f"The head of the request has not come within {_HEAD:.0f} seconds.")
            elif waited > (_HEAD if cycle is None else _IDLE):
                self.transport.close()


class Server(uvicorn.Server):
    """A server that ends by itself: at a signal it answers what it has, or refuses it; at a second one it ends at once.

    Args:
        config: Of uvicorn, with :func:`connections_of` as its protocol.
        gate: Before all else.
        workers: The processes of the models, which live as long as it does.
    """

    def __init__(self, config: uvicorn.Config, gate: Gate, workers: list[Workers]) -> None:
        super().__init__(config)
        self.gate, self.workers = gate, workers
        self.asked_at: float | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what comes in, until a signal, or until a model cannot be loaded."""
        for one in self.workers:
            one.start()
        try:
            await super().serve(sockets)
        finally:
            await asyncio.gather(*(one.end() for one in self.workers))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle both signals; unlike uvicorn, do not raise them again in the end, which would be no success."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to end; the second time end at once. The models' processes end with this one."""
        if self.gate.ending:
            os._exit(128 + sig)
        self.gate.ending = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: look for clients that are late, and whether it is time to end."""
        await super().on_tick(counter)
        now = time.monotonic()
        if counter % 5 == 0:
            self.gate.give_up_late(now)
            for one in list(self.server_state.connections):
                if isinstance(one, Connection):
                    one.end_if_late(now)
        if self.gate.ending:
            self.asked_at = self.asked_at or now
            if now - self.asked_at > _DRAIN:
                self.gate.give_up_all()
            self.should_exit = now - self.asked_at > (_GRACE if not self.gate.open else _DRAIN + 0.5)
        self.should_exit |= any(one.failed for one in self.workers)
        return self.should_exit

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close what is open; nobody is waited for."""
        # Whoever connects from now on is refused in the end; who did before is told so, not cut off.
        for one in sockets or []:
            _take_no_more(one)
        await asyncio.sleep(0.1)
        for server in self.servers:
            server.close()
        until = time.monotonic() + 1
        # Who has connected is about to ask.
        while time.monotonic() < until - 0.4 and any(
            isinstance(one, Connection) and one.cycle is None for one in self.server_state.connections
        ):
            await asyncio.sleep(0.02)
        for connection in list(self.server_state.connections):
            connection.shutdown()
        while self.server_state.connections and time.monotonic() < until:
            await asyncio.sleep(0.02)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await super().shutdown(sockets)


def _take_no_more(listening: socket.socket) -> None:
    """Let a socket take no further connections, while those that wait in it can still be accepted.

    To close it would cut these off. Linux drops what a filter of one instruction (return 0) does not let through;
    elsewhere they are cut off.
    """
    if sys.platform == "linux":
        program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
        with suppress(OSError):
            # SO_ATTACH_FILTER
            listening.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 1, ctypes.addressof(program)))


def connections_of(gate: Gate) -> type[Connection]:
    """The protocol of a server with that gate, for as many connections as there may be open files."""
    most = _CONNECTIONS
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2 * _CONNECTIONS
        if soft != resource.RLIM_INFINITY and soft < wanted:
            soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        most = _CONNECTIONS if soft == resource.RLIM_INFINITY else min(_CONNECTIONS, max(16, soft - 200))
    return type("OwnConnection", (Connection,), {"gate": gate, "most": most})


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at every address that a host name stands for.

    They listen at once, for two that are only bound can share a port.

    Raises:
        InputError: If the host is none of this machine, or the port is taken.
    """
    try:
        # An empty name would stand for every address.
        found = socket.getaddrinfo(host.strip() or " ", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host '{host}' cannot be resolved ({error}). Give an address of this machine.") from error
    sockets: list[socket.socket] = []
    failed: OSError | None = None
    for family, address in dict.fromkeys((one[0], one[4]) for one in found):
        try:
            both = host == "::" and socket.has_dualstack_ipv6()
            sockets.append(socket.create_server(address, family=family, backlog=1024, dualstack_ipv6=both))
        except OSError as error:
            failed = error
            # A name may stand for an address of a family that is switched off.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                break
    else:
        if sockets:
            return sockets
    for one in sockets:
        one.close()
    why = os.strerror(failed.errno) if failed and failed.errno else failed
    raise InputError(f"--port {port} of {host} cannot be listened on ({why}). Give another.") from failed
