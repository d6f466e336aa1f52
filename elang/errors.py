"""The one error that a user's input can cause, and those of others in plain words."""

import errno
from collections.abc import Iterator
from importlib.util import find_spec
from traceback import walk_tb

_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EBUSY),
}
# Of libraries that do not say it by a number.
_DISK_WORDS = ("No space left on device", "File too large", "Read-only file system")
HUB_PATIENCE = 10
"""Seconds in which the hub must say whether it has something."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one paragraph that names the value and the remedy. The command line prints it without a
    traceback and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or "no reason given").splitlines()[0]


def printable(text: str) -> str:
    """A text for a terminal: control characters, which could hide or forge lines, as escapes.

    >>> print(printable("a" + chr(27) + "[31mb") == "a" + chr(92) + "x1b[31mb")
    True
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def input_error_behind(error: BaseException) -> InputError | None:
    """Find the :class:`InputError` that ``error`` is, or that it was raised from (jsonargparse wraps what it calls)."""
    return next((seen for seen in _chain(error) if isinstance(seen, InputError)), None)


def machine_error_behind(error: BaseException) -> str | None:
    """Say in a sentence what a disk refused, or that a process has died, if that is what ``error`` comes from."""
    for seen in _chain(error):
        if isinstance(seen, OSError) and seen.errno in _DISK:
            what = f"'{seen.filename}'" if seen.filename else "a file"
            return f"{what} cannot be written or read ({seen.strerror}). Free the disk, or give another place."
        if words := [one for one in _DISK_WORDS if one in str(seen)]:
            return f"A file cannot be written ({words[0]}). Free the disk, or give another place."
        # What a living one says begins otherwise.
        if str(seen).startswith("DataLoader worker (pid") or _left_while_handing_over(seen):
            said = f"{type(seen).__name__}: {first_line(seen)}"
            return (
                f"A process that reads data has died ({said}). If memory ran out, lower --data.num_workers "
                "or the batch size; 0 reads without such processes."
            )
    return None


def _left_while_handing_over(error: BaseException) -> bool:
    """Tell whether a process went away between telling of a tensor and handing over its memory.

    The loader takes it for alive for a moment yet, and raises what the connection says.
    """
    if not isinstance(error, ConnectionError | EOFError | FileNotFoundError):
        return False
    files = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
    # A thread that pins memory passes the traceback on as text.
    return any("resource_sharer" in text for text in [*files, str(error)])


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, the latest first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def need(what: str, extra: str, *packages: str) -> None:
    """Refuse ``what`` where the packages of an extra are not installed.

    Raises:
        InputError: With the command that installs them.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise InputError(f"{what} needs {', '.join(missing)}: pip install 'elang[{extra}]'.")


class ReaderLeftError(Exception):
    """Whoever read an output has gone away; what is left to write is wanted by nobody."""


_LISTED = 8


def listed(names: list[str]) -> str:
    """Some names in a sentence, and how many more there are.

    >>> listed(["a", "b"])
    "'a', 'b'"
    """
    said = ", ".join(map(repr, names[:_LISTED]))
    return said + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
