"""The processes of `elang serve` that hold the models: one model each, asked a batch at a time over a pipe.

A process that dies or hangs is started again, and no process outlives the one that started it, however that one ends.
"""

import asyncio
import ctypes
import errno
import logging
import multiprocessing
import os
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from elang.errors import InputError, first_line

_log = logging.getLogger(__name__)
_SIGNALS = {signal.SIGINT, signal.SIGTERM}
# Seconds before a process is started again, doubled as long as it does not come up.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0
# Texts, candidates, and whether all are kept: what a model is asked.
Job = tuple[Any, Any, bool]
# Loads a model and gives what answers a job.
Load = Callable[[], Callable[..., dict[str, Any]]]


class Workers:
    """The processes of one model.

    Args:
        who: The model's name in messages.
        loads: What each process begins with; picklable.
        longest: Seconds that a job may take; a process that takes longer hangs, and is started anew.
    """

    def __init__(self, who: str, loads: list[Load], longest: float) -> None:
        self.who, self.loads, self.longest = who, loads, longest
        self.there = [False] * len(loads)
        # Why the model could not be loaded, where it never was.
        self.failed: str | None = None
        self._loaded = False
        self._jobs: asyncio.Queue[tuple[Job, asyncio.Future[dict[str, Any]]]] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(len(loads), f"elang-{who}")
        self._keepers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the processes, in the running event loop."""
        # Of multiprocessing's; its start would let signals through.
        resource_tracker.ensure_running()
        self._keepers = [asyncio.ensure_future(self._keep(place)) for place in range(len(self.loads))]

    async def end(self) -> None:
        """Kill the processes."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._threads.shutdown()

    async def ask(self, job: Job) -> dict[str, Any]:
        """What a process says to a job.

        Raises:
            RuntimeError: If it dies or hangs over it.
        """
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._jobs.put_nowait((job, answer))
        return await answer

    async def _keep(self, place: int) -> None:
        """Have one process, again and again."""
        seconds = _FIRST_WAIT
        while True:
            try:
                process, here = self._begin(place)
            except OSError as error:
                came, what = False, f"no process can be started ({error})"
            else:
                came, what = await self._live(place, process, here)
            if not self._loaded:
                self.failed = f"The {self.who} was not loaded: {what}"
                return
            seconds = _FIRST_WAIT if came else seconds
            _log.warning("The %s is started again: %s", self.who, what)
            await asyncio.sleep(seconds)
            seconds = min(2 * seconds, _LONGEST_WAIT)

    def _begin(self, place: int) -> "tuple[SpawnProcess, Connection[Any, Any]]":
        """Start a process.

        Raises:
            OSError: If the system has no room for it.
        """
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(there, self.loads[place]), name=f"elang-{self.who}", daemon=True
        )
        # It is ended by this one alone; a signal for all processes of a terminal or a service is for this one.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            process.start()
        except OSError:
            here.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            there.close()
        return process, here

    async def _live(self, place: int, process: SpawnProcess, here: "Connection[Any, Any]") -> tuple[bool, str]:
        """Ask a process until it ends: whether it had loaded its model, and why it ended."""
        came = False
        try:
            what = await self._beside(here.recv)
            if not what:
                came = self.there[place] = self._loaded = True
                await self._serve(process.sentinel, here)
        except asyncio.TimeoutError:
            what = f"it has not answered within {self.longest:g} seconds"
        except (EOFError, OSError):
            self.there[place] = False
            await asyncio.to_thread(process.join, 5)
            what = f"its process ended with {process.exitcode}"
        finally:
            self.there[place] = False
            process.kill()
            await asyncio.shield(asyncio.to_thread(process.join))
            # Only now does no thread read from it any more.
            here.close()
            process.close()
        return came, what

    async def _serve(self, sentinel: int, here: "Connection[Any, Any]") -> None:
        """Hand jobs to a process until it dies.

        Raises:
            EOFError: Then.
            asyncio.TimeoutError: If it does not answer one.
        """
        loop = asyncio.get_running_loop()
        dead = loop.create_future()

        def died() -> None:
            if not dead.done():
                dead.set_result(None)

        loop.add_reader(sentinel, died)
        try:
            while True:
                next_one = asyncio.ensure_future(self._jobs.get())
                await asyncio.wait({next_one, dead}, return_when=asyncio.FIRST_COMPLETED)
                if not next_one.done():
                    next_one.cancel()
                    raise EOFError
                job, answer = next_one.result()
                # Nobody waits for some any more.
                if answer.done():
                    continue
                try:
                    found = await asyncio.wait_for(self._beside(_exchange, here, job), self.longest)
                except (EOFError, OSError, asyncio.TimeoutError):
                    if not answer.done():
                        answer.set_exception(RuntimeError("its process died"))
                    raise
                if not answer.done():
                    answer.set_result(found)
        finally:
            loop.remove_reader(sentinel)

    def _beside(self, function: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        """Wait for a process in a thread."""
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


def _exchange(connection: "Connection[Any, Any]", job: Job) -> dict[str, Any]:
    connection.send(job)
    found: dict[str, Any] = connection.recv()
    return found


def _work(connection: "Connection[Any, Any]", load: Load) -> None:
    """A process: load a model, say so, and answer what comes."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        try:
            answer = load()
        except InputError as error:
            connection.send(str(error))
            return
        except Exception as error:
            traceback.print_exc()
            connection.send(f"{type(error).__name__}: {first_line(error)}")
            return
        connection.send("")
        while True:
            job = connection.recv()
            try:
                found = answer(*job)
            except OSError:
                # Not that the server has ended.
                traceback.print_exc()
                raise
            connection.send(found)
    except (EOFError, OSError):
        # The server has ended.
        return


def _end_with_parent() -> None:
    """End when the server has ended, even where it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(0)


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


def take_no_more(listening: socket.socket) -> None:
    """Let a socket take no further connections, while those that wait in it can still be accepted.

    To close it would cut these off. Linux drops what a filter of one instruction (return 0) does not let through;
    elsewhere they are cut off.
    """
    if sys.platform == "linux":
        program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
        with suppress(OSError):
            # SO_ATTACH_FILTER
            listening.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 1, ctypes.addressof(program)))
