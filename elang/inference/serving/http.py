"""The HTTP side of `elang serve`: what a connection may do, and how the server ends.

uvicorn speaks HTTP. What it leaves open is bounded here: how long a head, a body or an answer may take, how many
connections there are, and what happens to requests when the process is to end.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from elang.inference.serving.gate import AGAIN, HEAD_BYTES, TASK, Gate, refusal
from elang.inference.serving.workers import Workers, take_no_more

# Seconds: for a head to come, for the next request on a connection, for an answer to be taken.
_HEAD, _IDLE, _TAKEN = 10.0, 20.0, 20.0
_CONNECTIONS = 1000
# Requests of a connection that wait behind the one that is being answered.
_PIPELINED = 32
# Seconds for which what a client sends behind a refusal is read and thrown away.
_LINGER = 1.0
# Seconds after the signal: how long the server listens at least, so that who asks then is told to go elsewhere; and
# when it refuses what is not answered yet.
_GRACE, _DRAIN = 0.5, 6.0


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
                self.gate.give_up(cycle.scope.get(TASK), 499, "The client has left.", {})
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
        if self.raw > (8 * self.gate.max_bytes if inside else 0) + HEAD_BYTES:
            if inside and before.response_complete:
                self.transport.abort()
            elif inside:
                self.refuse(413, f"A request has at most {self.gate.max_bytes} bytes.")
            else:
                self.refuse(431, f"A request's head has at most {HEAD_BYTES} bytes.")

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
        answer = refusal(status, detail, AGAIN if status == 503 else None, close=True)
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
            self.gate.give_up(cycle.scope.get(TASK), status, detail, {})

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
            take_no_more(one)
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
