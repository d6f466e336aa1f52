"""Locks that let one run at a time write an output; a process that dies releases its locks."""

import atexit
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elang.errors import InputError
from elang.notices import notice

_held: dict[Path, Any] = {}


@contextmanager
def output_lock(path: str | Path) -> Iterator[None]:
    """Hold the lock of :func:`lock_output` for a block."""
    lock_output(path)
    try:
        yield
    finally:
        unlock_output(path)


def lock_output(path: str | Path) -> None:
    """Keep other runs from writing a file or folder until :func:`unlock_output`, or until this process ends.

    A process may lock an output that it has locked already. On a file system without locks there is only a notice.

    Raises:
        InputError: If another process holds the lock.
    """
    path = Path(path).resolve()
    if path in _held:
        return
    lock = _lock_file(path)
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = lock.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its previous holder may have deleted the file after it was opened here.
            if os.stat(lock).st_ino == os.fstat(file.fileno()).st_ino:
                _held[path] = file
                return
        except BlockingIOError as error:
            file.close()
            raise InputError(f"Another run is writing '{path}'. Wait for it, or give another output.") from error
        except FileNotFoundError:
            pass
        except OSError as error:
            file.close()
            consequence = f"a second run that writes '{path.name}' at the same time would not be noticed"
            _notice_no_lock(lock.parent, error, consequence)
            return
        file.close()


def lock_on_all_processes(trainer: Any, path: str | Path) -> None:
    """Lock an output for all processes of a trainer: the first one locks it, and if it cannot, all raise its error."""
    message = None
    if trainer.is_global_zero:
        try:
            lock_output(path)
        except InputError as error:
            message = str(error)
    if (message := trainer.strategy.broadcast(message)) is not None:
        raise InputError(message)


def unlock_output(path: str | Path) -> None:
    """Let others write an output again."""
    path = Path(path).resolve()
    file = _held.pop(path, None)
    if file is not None:
        _lock_file(path).unlink(missing_ok=True)
        # Closing is not enough: processes that read data may have the file open, too.
        fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


@atexit.register
def _unlock_all() -> None:
    for path in [*_held]:
        unlock_output(path)


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait for the lock of a folder, so that one process at a time changes a file in it; it leaves no lock file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            _notice_no_lock(folder, error, "what another run writes there at the same time may be lost")
        yield
    finally:
        os.close(handle)


def _notice_no_lock(folder: Path, error: OSError, consequence: str) -> None:
    notice("no-lock", f"'{folder}' is on a file system without locks ({error.strerror}), so {consequence}.")
