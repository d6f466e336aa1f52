"""The inputs that wait for a person, in a file with an object of JSON a line."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

from elang.backends.person import Person
from elang.files import replace_file
from elang.inference.cascade import Cascade

_ENCODE = json.JSONEncoder(ensure_ascii=False).encode
Put = Callable[[dict[str, Any]], None]


def person_of(cascade: Cascade) -> str | None:
    """The name of the stage that is a person, if there is one."""
    last = cascade.stages[-1]
    return last.name if isinstance(last.backend, Person) else None


class PersonQueue:
    """Appends to a file what waits for a person; each line is on its way to the disk before the answer is given."""

    def __init__(self, path: str | Path) -> None:
        self.path, self._lock = Path(path), Lock()
        self._file = self.path.open("a", encoding="utf-8", errors="backslashreplace")

    def put(self, waiting: dict[str, Any]) -> None:
        """Append one input."""
        with self._lock:
            self._file.write(_ENCODE(waiting) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def queued(path: str | None, kept: int) -> Iterator[Put | None]:
    """Yield what puts an input into the queue at a path, which has its name only once all are there.

    ``kept`` lines of a run that was interrupted stay: they belong to the answers that this run does not give again.
    """
    if path is None:
        with nullcontext():
            yield None
        return
    target = Path(os.path.realpath(path))
    aside = target.with_name(f".{target.name}.part")
    with aside.open("a+b") as file:
        file.seek(0)
        end = sum(len(file.readline()) for _ in range(kept))
        file.truncate(end)
    queue = PersonQueue(aside)
    try:
        yield queue.put
    finally:
        queue.close()
    replace_file(aside, target)
