"""The one error that a user's input can cause, and plain messages for the errors of a machine."""

import errno
from collections.abc import Iterator
from importlib.util import find_spec
from traceback import walk_tb

_DISK_CODES = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EBUSY),
}
# For libraries whose errors have no code.
_DISK_MESSAGES = ("No space left on device", "File too large", "Read-only file system")
_MAX_LISTED = 8
HUB_PATIENCE = 10
"""Seconds in which the hub must answer whether it has something."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one paragraph that names the value and the remedy. The command line prints it without a
    traceback and exits with code 2.
    """


class ReaderLeftError(Exception):
    """The reader of an output has gone away, so nobody wants the rest of it."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or "no reason given").splitlines()[0]


def printable(text: str) -> str:
    """A text for a terminal: control characters, which could hide or forge lines, as escapes.

    >>> print(printable("a" + chr(27) + "[31mb") == "a" + chr(92) + "x1b[31mb")
    True
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def listed(names: list[str]) -> str:
    """The first names in a sentence, and the number of further ones.

    >>> listed(["a", "b"])
    "'a', 'b'"
    """
    text = ", ".join(map(repr, names[:_MAX_LISTED]))
    return text + (f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else "")


def counted(number: int, nouns: str) -> str:
    """A number with its noun, which is given in the plural.

    >>> counted(1, "batches of texts"), counted(1, "entries"), counted(1000, "inputs")
    ('1 batch of texts', '1 entry', '1,000 inputs')
    """
    noun, *rest = nouns.split(" ", 1)
    if number == 1:
        noun = f"{noun[:-3]}y" if noun.endswith("ies") else noun[: -2 if noun.endswith(("ches", "sses")) else -1]
    return " ".join([f"{number:,}", noun, *rest])


def need(what: str, extra: str, *packages: str) -> None:
    """Raise an :class:`InputError` with the command that installs an extra, unless its packages are installed."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise InputError(f"{what} needs {', '.join(missing)}: pip install 'elang-joint[{extra}]'.")


def error_chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those it was raised from, the latest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def input_error_behind(error: BaseException) -> InputError | None:
    """The first :class:`InputError` in the chain of ``error`` (jsonargparse wraps those of what it calls)."""
    return next((cause for cause in error_chain(error) if isinstance(cause, InputError)), None)


def machine_error_behind(error: BaseException) -> str | None:
    """A message for an error that comes from a disk or from a process that died; ``None`` for others."""
    for cause in error_chain(error):
        if isinstance(cause, OSError) and cause.errno in _DISK_CODES:
            what = f"'{cause.filename}'" if cause.filename else "a file"
            return f"{what} cannot be written or read ({cause.strerror}). Free the disk, or give another place."
        if messages := [message for message in _DISK_MESSAGES if message in str(cause)]:
            return f"A file cannot be written ({messages[0]}). Free the disk, or give another place."
        # Errors raised in a living process have another prefix.
        if str(cause).startswith("DataLoader worker (pid") or _lost_worker(cause):
            return (
                f"A process that reads data has died ({type(cause).__name__}: {first_line(cause)}). If memory ran out, "
                "lower --data.num_workers or the batch size; 0 reads without such processes."
            )
    return None


def _lost_worker(error: BaseException) -> bool:
    """Whether a worker died while it handed over a tensor: the loader then raises the error of their connection."""
    if not isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        return False
    files = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    # The thread that pins memory passes the traceback on as text.
    return any("resource_sharer" in text for text in [*files, str(error)])
