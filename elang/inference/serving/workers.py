"""The processes of `elang serve` that hold a model each; one that dies is restarted, and all end with the server."""

import asyncio
import ctypes
import errno
import gc
import logging
import multiprocessing
import os
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from elang.errors import InputError, first_line
from elang.inference.serving.streams import Items, Left, Parts, Stream
from elang.terminal import quiet_libraries, tell

_log = logging.getLogger(__name__)
_SIGNALS = {signal.SIGINT, signal.SIGTERM}
# Seconds before a process is started again; doubled as long as it does not come up.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
# What a model is asked: arguments of what answers a job.
Job = tuple[Any, ...]
# Loads a model and returns what answers a job when it is called; a stream's items are given to its `write`.
Load = Callable[[], Any]


class Workers:
    """The processes of one model, ``who`` in messages; each begins with one of ``loads``, which are pickled.

    A process that works on a job for more than ``longest`` seconds is taken to hang, and is started again. ``there``
    says which processes have loaded the model, ``failed`` why it could not be loaded, if it never was.
    """

    def __init__(self, who: str, loads: list[Load], longest: float) -> None:
        self.who, self.loads, self.longest = who, loads, longest
        self.there = [False] * len(loads)
        self.failed: str | None = None
        self._loaded = False
        self._jobs: asyncio.Queue[tuple[Job | Stream, asyncio.Future[dict[str, Any]]]] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(len(loads), f"elang-{who}")
        self._keepers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the processes, in the running event loop."""
        # Started later, multiprocessing's own process would let signals through.
        resource_tracker.ensure_running()
        self._keepers = [asyncio.ensure_future(self._keep(place)) for place in range(len(self.loads))]

    async def end(self) -> None:
        """Kill the processes."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._threads.shutdown()

    async def ask(self, job: Job | Stream) -> dict[str, Any]:
        """A process's reply to a job, for a stream once it has ended; a RuntimeError if the process dies or hangs."""
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._jobs.put_nowait((job, reply))
        return await reply

    async def _keep(self, place: int) -> None:
        """Keep one process running: start it again whenever it ends."""
        seconds = _FIRST_WAIT
        while True:
            try:
                process, connection = self._begin(place)
            except OSError as error:
                loaded, reason = False, f"no process can be started ({error})"
            else:
                loaded, reason = await self._live(place, process, connection)
            if not self._loaded:
                self.failed = f"The {self.who} was not loaded: {reason}"
                return
            seconds = _FIRST_WAIT if loaded else seconds
            _log.warning("The %s is started again: %s", self.who, reason)
            await asyncio.sleep(seconds)
            seconds = min(2 * seconds, _LONGEST_WAIT)

    def _begin(self, place: int) -> "tuple[SpawnProcess, Connection[Any, Any]]":
        """Start a process; an OSError says that the system has no room for it."""
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(there, self.loads[place]), name=f"elang-{self.who}", daemon=True
        )
        # A signal to all processes of a terminal or a service is for the server, which alone ends this one.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            there.close()
        return process, here

    async def _live(self, place: int, process: SpawnProcess, connection: "Connection[Any, Any]") -> tuple[bool, str]:
        """Hand jobs to a process until it ends; return whether it loaded its model, and why it ended."""
        loaded = False
        loading = asyncio.ensure_future(self._tell_loading())
        try:
            reason = await self._in_thread(connection.recv)
            loading.cancel()
            if not reason:
                if not self._loaded:
                    tell(f"the {self.who} is loaded")
                loaded = self.there[place] = self._loaded = True
                await self._serve(process.sentinel, connection)
        except asyncio.TimeoutError:
            reason = f"it has not answered within {self.longest:g} seconds"
        except (EOFError, OSError):
            self.there[place] = False
            await asyncio.to_thread(process.join, 5)
            reason = f"its process ended with {process.exitcode}"
        finally:
            loading.cancel()
            self.there[place] = False
            process.kill()
            await asyncio.shield(asyncio.to_thread(process.join))
            # Not before, because a thread may read from it.
            connection.close()
            process.close()
        return loaded, reason

    async def _tell_loading(self) -> None:
        for minutes in count(1):
            await asyncio.sleep(60)
            tell(f"the {self.who} is still being loaded, for {minutes} min so far")

    async def _serve(self, sentinel: int, connection: "Connection[Any, Any]") -> None:
        """Hand jobs to a process until it dies (EOFError, OSError) or hangs (asyncio.TimeoutError)."""
        loop = asyncio.get_running_loop()
        dead = asyncio.Event()
        loop.add_reader(sentinel, dead.set)
        death = asyncio.ensure_future(dead.wait())

        numbers = count()

        def exchange(job: Job | Stream) -> Any:
            if not isinstance(job, Stream):
                connection.send(job)
                return connection.recv()
            number = next(numbers)
            connection.send(Items(number, job.items, set(job.left)))
            job.send_left = lambda place: connection.send(Left(number, place))
            try:
                while (message := connection.recv())[0] is not None:
                    job.heard = time.monotonic()
                    loop.call_soon_threadsafe(job.tell, *message)
                return message[1]
            finally:
                job.send_left = None

        try:
            while True:
                next_job = asyncio.ensure_future(self._jobs.get())
                await asyncio.wait({next_job, death}, return_when=asyncio.FIRST_COMPLETED)
                if not next_job.done():
                    next_job.cancel()
                    raise EOFError
                job, reply = next_job.result()
                # The request may have been given up.
                if reply.done():
                    continue
                try:
                    result = await self._within(self._in_thread(exchange, job), job)
                except (EOFError, OSError, asyncio.TimeoutError):
                    if not reply.done():
                        reply.set_exception(RuntimeError("its process died"))
                    raise
                if not reply.done():
                    reply.set_result(result)
        finally:
            loop.remove_reader(sentinel)
            death.cancel()

    async def _within(self, result: "asyncio.Future[Any]", job: Job | Stream) -> Any:
        """A result, unless the process is silent for too long."""
        start = time.monotonic()
        while not (await asyncio.wait([result], timeout=self.longest))[0]:
            if not (isinstance(job, Stream) and job.heard > start):
                raise asyncio.TimeoutError
            start = time.monotonic()
        return result.result()

    def _in_thread(self, function: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


def keep_what_is_loaded() -> None:
    """Leave what a process has loaded out of Python's garbage collection.

    It stays as long as the process. To look through all of it now and then, a quarter of a million objects, would stop
    every request for 0.2 s.
    """
    gc.collect()
    gc.freeze()


def _work(connection: "Connection[Any, Any]", load: Load) -> None:
    """The main function of a process: load a model, report that, and answer jobs until the server ends."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    quiet_libraries()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A broken pipe says that the server has ended.
    with suppress(EOFError, OSError):
        try:
            answer = load()
        except InputError as error:
            connection.send(str(error))
            return
        except Exception as error:
            traceback.print_exc()
            connection.send(f"{type(error).__name__}: {first_line(error)}")
            return
        keep_what_is_loaded()
        connection.send("")
        while True:
            job = connection.recv()
            if isinstance(job, Left):
                # An item of a stream that has ended was left.
                continue
            try:
                if isinstance(job, Items):
                    answer.write(job.items, Parts(connection, job.number, job.left))
                    result: Any = (None, {})
                else:
                    result = answer(*job)
            except OSError:
                # The model's, not the pipe's.
                traceback.print_exc()
                raise
            connection.send(result)


def _end_with_parent() -> None:
    """End when the server has ended, even if it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(0)


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at every address of a host name, at once: two that are only bound can share a port.

    Raises:
        InputError: If the host is not this machine, or the port is taken.
    """
    try:
        # An empty name would stand for every address.
        infos = socket.getaddrinfo(host.strip() or " ", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host '{host}' cannot be resolved ({error}). Give an address of this machine.") from error
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in dict.fromkeys((info[0], info[4]) for info in infos):
        try:
            both = host == "::" and socket.has_dualstack_ipv6()
            sockets.append(socket.create_server(address, family=family, backlog=1024, dualstack_ipv6=both))
        except OSError as error:
            failure = error
            # A name may stand for an address of a family that is switched off.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                break
    else:
        if sockets:
            return sockets
    for listening in sockets:
        listening.close()
    reason = os.strerror(failure.errno) if failure and failure.errno else failure
    raise InputError(f"--port {port} of {host} cannot be listened on ({reason}). Give another.") from failure


def take_no_more(listening: socket.socket) -> None:
    """Let a socket take no further connections on Linux, where those that wait in it can still be accepted."""
    if sys.platform == "linux":
        # A filter of one instruction, return 0, drops new ones; closing the socket would cut off the others, too.
        program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
        with suppress(OSError):
            # SO_ATTACH_FILTER
            listening.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 1, ctypes.addressof(program)))
