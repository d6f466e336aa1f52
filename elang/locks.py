"""One run at a time writes an output: locks that a process which dies leaves open."""

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


def lock_output(path: str | Path) -> None:
    """Keep other runs from writing an output until :func:`unlock_output`, or until this process ends.

    A process may ask for its own again, as after a run that failed. A notice tells of a file system without locks.

    Args:
        path: The file or folder that is to be written.

    Raises:
        InputError: If another process writes it.
    """
    path = Path(path).resolve()
    if path in _held:
        return
    name = _lock_name(path)
    name.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = name.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise InputError(f"Another run is writing '{path}'. Wait for it, or give another output.") from error
        except OSError as error:
            file.close()
            second = f"a second run that writes '{path.name}' at the same time would not be noticed"
            _tell_unlocked(name.parent, error, second)
            return
        try:
            # The one that held it before may have taken its name away in between.
            if os.stat(name).st_ino == os.fstat(file.fileno()).st_ino:
                _held[path] = file
                return
        except FileNotFoundError:
            pass
        file.close()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time change a file in a folder, whose own lock leaves no file behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            _tell_unlocked(folder, error, "what another run writes there at the same time may be lost")
        yield
    finally:
        os.close(handle)


def _tell_unlocked(folder: Path, error: OSError, consequence: str) -> None:
    notice("no-lock", f"'{folder}' is on a file system without locks ({error.strerror}), so {consequence}.")


def lock_for_all(trainer: Any, path: str | Path) -> None:
    """Lock an output for all processes of a trainer: the first one does it, and all fail if it cannot.

    Raises:
        InputError: In every process, if another run writes it.
    """
    said = None
    if trainer.is_global_zero:
        try:
            lock_output(path)
        except InputError as error:
            said = str(error)
    if (said := trainer.strategy.broadcast(said)) is not None:
        raise InputError(said)


def unlock_output(path: str | Path) -> None:
    """Let others write an output again."""
    path = Path(path).resolve()
    file = _held.pop(path, None)
    if file is not None:
        _lock_name(path).unlink(missing_ok=True)
        # Processes that read data may have it open, too.
        fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


@atexit.register
def _unlock_all() -> None:
    for path in [*_held]:
        unlock_output(path)


def _lock_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")
