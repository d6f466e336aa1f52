"""What uvicorn leaves open: bounds for heads, answers, connections and their time, and how the server ends."""

import asyncio
import gc
import os
import resource
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from functools import cache
from http import HTTPStatus
from typing import Any, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from elang.errors import InputError
from elang.inference.serving.gate import HEAD_BYTES, TASK, Gate, response_of
from elang.inference.serving.schema import RETRY
from elang.inference.serving.workers import Workers, keep_what_is_loaded, take_no_more

# Seconds for a head to come, for the next request on a connection, and for the client to take an answer.
_HEAD, _IDLE, _TAKEN = 10.0, 20.0, 20.0
# Connections at a time, and requests of one that wait behind the one that is being answered.
_CONNECTIONS, _PIPELINED = 1000, 32
# Seconds for which what a client sends after a refusal is read and thrown away.
_LINGER = 1.0
# Seconds after the signal: when it may stop listening (until then it tells clients to ask another server), and when it
# refuses all unanswered requests.
_GRACE, _DRAIN = 0.5, 6.0


@cache
def most_connections() -> int:
    """The number of connections at a time that the limit of open files, which is raised if it is low, allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _CONNECTIONS
    if soft < 2 * _CONNECTIONS:
        soft = 2 * _CONNECTIONS if hard == resource.RLIM_INFINITY else min(2 * _CONNECTIONS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(_CONNECTIONS, max(16, soft - 200))


class Connection(HttpToolsProtocol):
    """One of uvicorn's connections, with a bounded head, that is not kept for ever. The server's app is a gate."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection; if there are too many, close the one whose client has not acted for longest."""
        self.gate = cast(Gate, self.config.app)
        self.phase: Any = None
        self.cycles: list[Any] = []
        self.since = time.monotonic()
        self.unparsed, self.data, self.refused = 0, b"", False
        super().connection_made(transport)
        # asyncio does so only where the listening socket names its protocol, which Python's own do not. Without it the
        # body of an answer waits until the client has acknowledged the head, which takes 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connections: set[Any] = self.connections
        if len(connections) > most_connections():
            others = [other for other in connections if other.awaited() and other is not self]
            if others:
                min(others, key=lambda other: other.since).transport.abort()
            else:
                self.refuse(503, "Too many connections.")

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up the requests of a client that has left."""
        super().connection_lost(exc)
        for cycle in self.cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
                self.gate.give_up(cycle.scope.get(TASK), (499, "The client has left.", {}))
        for cycle, _ in self.pipeline:
            self.gate.count(cast("dict[str, Any]", cycle.scope)["path"], 499)
        self.pipeline.clear()

    def on_headers_complete(self) -> None:
        """Remember all unanswered requests; the protocol knows only the last one."""
        super().on_headers_complete()
        self.cycles = [cycle for cycle in (*self.cycles, self.cycle) if cycle and not cycle.response_complete]

    def awaited(self) -> bool:
        """Whether it is the client's turn: every request that is complete has been answered."""
        if self.transport.is_closing():
            return False
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def data_received(self, data: bytes) -> None:
        """Take bytes, as long as a head or a body does not become too long."""
        if self.refused:
            return
        before, self.data = self.cycle, data
        in_body = before is not None and before.more_body
        super().data_received(data)
        self.data = b""
        if self.cycle is not before or (in_body and not before.more_body):
            self.unparsed = 0
            return
        self.unparsed += len(data)
        # Chunks of a byte each take six.
        if self.unparsed > (8 * self.gate.max_bytes if in_body else 0) + HEAD_BYTES:
            if in_body and before.response_complete:
                self.transport.abort()
            elif in_body:
                self.refuse(413, f"A request has at most {self.gate.max_bytes} bytes.")
            else:
                self.refuse(431, f"A request's head has at most {HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        """Begin a request, unless too many wait: one read may bring thousands, and each would be kept."""
        if len(self.pipeline) >= _PIPELINED:
            raise httptools.HttpParserError("too many requests at once")
        super().on_message_begin()

    def _should_upgrade(self) -> bool:
        return any(name == b"upgrade" for name, _ in self.headers)

    def handle_websocket_upgrade(self) -> None:
        """Answer a request for another protocol by this one, as HTTP allows; Java's client asks for HTTP/2."""
        # The parser leaves what follows the head to the other protocol, so it reads the request again without the wish.
        rest = self.data[cast(httptools.HttpParserUpgrade, sys.exc_info()[1]).args[0] :]
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        super().data_received(b"\r\n".join([*lines, b"", rest]))

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self.refuse(400, msg)

    def refuse(self, status: int, detail: str) -> None:
        """Answer something that is not a request, and close."""
        if self.transport.is_closing() or self.refused:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # It is in a request's body, or behind a request to be answered first, whose task may not have begun.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            self.loop.call_soon(self._refuse_behind, self.cycle, status, detail)
            return
        self.gate.count("", status)
        answer = response_of(status, detail, RETRY if status == 503 else None, close=True)
        first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()
        lines = [first, *(name + b": " + value for name, value in answer.raw_headers)]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        if len(self.connections) > most_connections():
            self.transport.close()
            return
        # If it were closed while the client still sends, the client would lose the answer.
        self.refused = True
        self.transport.write_eof()
        self.loop.call_later(_LINGER, self.transport.close)

    def _refuse_behind(self, cycle: Any, status: int, detail: str) -> None:
        if cycle.more_body:
            self.gate.give_up(cycle.scope.get(TASK), (status, detail, {}))
        else:
            self.gate.count("", status)

    def end_if_late(self, now: float) -> None:
        """Close the connection if the client has not acted for too long."""
        cycle = self.cycle
        # Pipelined requests are not answered while the client takes no answers.
        full = self.transport.is_closing() or self.flow.write_paused
        phase = (full, cycle, cycle is not None and (cycle.response_started, cycle.response_complete))
        if phase != self.phase:
            self.phase, self.since = phase, now
        waited = now - self.since
        if full:
            if waited > _TAKEN:
                self.transport.abort()
        elif cycle is not None and cycle.response_started and not cycle.response_complete:
            # A stream, of which the server has no more yet.
            return
        elif cycle is None or cycle.response_complete:
            if self.unparsed and waited > _HEAD and not (cycle is not None and cycle.more_body):
                self.refuse(408, f"The head of the request has not come within {_HEAD:.0f} seconds.")
            elif waited > (_HEAD if cycle is None else _IDLE):
                self.transport.close()


class Server(uvicorn.Server):
    """Runs a gate and the workers behind it. ``close`` is awaited in the end.

    At a signal it answers or refuses the requests that it has, and ends; at a second one it ends at once.
    """

    def __init__(self, gate: Gate, workers: list[Workers], close: Callable[[], Awaitable[None]] | None = None) -> None:
        config = uvicorn.Config(
            gate,
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_level="error",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(_IDLE),
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self.gate, self.workers, self.close = gate, workers, close
        self.signalled_at: float | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer requests to listening sockets until a signal; an InputError if a model could not be loaded."""
        keep_what_is_loaded()
        try:
            super().run(sockets)
        finally:
            gc.unfreeze()
        for model in self.workers:
            if model.failed:
                raise InputError(f"The server did not start. {model.failed}")

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer requests until a signal, or until a model cannot be loaded."""
        for model in self.workers:
            model.start()
        try:
            await super().serve(sockets)
        finally:
            await asyncio.gather(*(model.end() for model in self.workers))
            if self.close is not None:
                await self.close()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to end, without uvicorn's handler, which raises the signal again; at the second signal end at once."""
        if self.gate.ending:
            os._exit(128 + sig)
        self.gate.ending = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: check for clients that are late, and whether it is time to end."""
        await super().on_tick(counter)
        now = time.monotonic()
        if counter % 5 == 0:
            self.gate.give_up_late(now)
            connections: set[Any] = self.server_state.connections
            for connection in list(connections):
                connection.end_if_late(now)
        if self.gate.ending:
            self.signalled_at = self.signalled_at or now
            if now - self.signalled_at > _DRAIN:
                self.gate.give_up_all()
            waits = self.gate.open or self.gate.streaming
            self.should_exit = now - self.signalled_at > (_DRAIN + 0.5 if waits else _GRACE)
        self.should_exit |= any(model.failed for model in self.workers)
        return self.should_exit

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close all connections, soon and without waiting for anybody."""
        # Clients that connect from now on are refused in the end; those that have connected are told, not cut off.
        for listening in sockets or []:
            take_no_more(listening)
        await asyncio.sleep(0.1)
        for server in self.servers:
            server.close()
        until = time.monotonic() + 1
        connections: set[Any] = self.server_state.connections
        # A client that has connected is about to ask.
        while time.monotonic() < until - 0.4 and any(connection.cycle is None for connection in connections):
            await asyncio.sleep(0.02)
        for connection in list(connections):
            connection.shutdown()
        while connections and time.monotonic() < until:
            await asyncio.sleep(0.02)
        for connection in list(connections):
            connection.transport.abort()
        await super().shutdown(sockets)
