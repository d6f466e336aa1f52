"""An output of `elang predict`, which an interrupted run resumes."""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from elang.errors import InputError, counted, printable
from elang.files import plain, replace_file
from elang.inference.loaded import LoadedCascade
from elang.inference.stream import Prediction
from elang.json_files import read_object
from elang.locks import output_lock, unlock_output
from elang.notices import notice
from elang.terminal import Progress, at_sigterm

# The format of an output's lines. A file that was begun in another one is not continued.
_FORMAT = 2
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode
# How files encode a lone surrogate: as its JSON escape.
ESCAPED = "backslashreplace"
# Unambiguous, because quotes within a text are escaped.
_ANSWERED_BY = re.compile(rb'"answered_by": ("(?:[^"\\]|\\.)*")')
EMPTY = "The input '{}' is empty: there is nothing to predict. Give one input a line."


def write_answers(
    answers: Iterator[Prediction], file: Any, fields: Callable[[Prediction], dict[str, Any]]
) -> Counter[str]:
    """Write the fields of answers as they come; return how many there were of each stage."""
    given = Counter[str]()
    # Answers on a terminal show by themselves how far it is.
    shown = file is sys.stdout and sys.stdout.isatty()
    with Progress(None, "inputs", bar=file is not sys.stdout) as progress:
        for answer in answers:
            file.write(_ENCODE(fields(answer)) + "\n")
            given[answer.answered_by] += 1
            if not shown:
                progress.add()
    return given


def run_fingerprint(
    predictor: LoadedCascade, models: list[str], source: str, *, text: list[str] | None, ways: list[Any]
) -> dict[str, Any]:
    """What an output depends on: the models, the ``ways`` in which they run and are written, the routing, the input."""
    if source == "-":
        # It cannot be read again.
        return {}
    try:
        status = os.stat(source)
    except OSError as error:
        raise InputError(f"The input '{source}' cannot be read ({error.strerror}). Correct its path.") from error
    return {
        "format": _FORMAT,
        "models": [_files(model) for model in models],
        "routing": [
            *ways,
            *([stage.name, stage.score, str(stage.threshold)] for stage in predictor.stages),
            *(plain(asdict(manifest)) for manifest in predictor.manifests.values()),
        ],
        "input": [os.path.abspath(source), status.st_size, status.st_mtime_ns, text],
    }


def _files(model: str) -> list[Any]:
    """The name of a model, and for a local one its files by name, size and time."""
    path = Path(model)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return [model, *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]


@contextmanager
def resumed(output: str, about: dict[str, Any]) -> Iterator[tuple[Any, Counter[str]]]:
    """Yield a file beside ``output`` that takes its name at the end, and the number of its answers by stage.

    A run that was killed, or stopped at a bad input, leaves the file behind. The next run continues it if the answers
    depend on the same things (``about``), and otherwise starts again.
    """
    aside = partial_file(output)
    note = aside.with_name(f"{aside.name}.json")
    with output_lock(output):
        try:
            with aside.open("a", encoding="utf-8", errors=ESCAPED) as file:
                given = _whole_lines(aside)
                try:
                    same = bool(about) and read_object(note) == about
                except (OSError, ValueError):
                    same = False
                if not same:
                    if given:
                        deleted = f"'{aside}', with {counted(given.total(), 'answers')} of another run, is deleted"
                        notice("answers-begun-anew", f"Beginning anew: {deleted}.")
                    given = Counter()
                    file.truncate(0)
                    note.write_text(json.dumps(about), "utf-8")
                resume = f"the same command goes on behind what is in '{aside}'" if about else f"see '{aside}'"
                with _announced(printable(f"stopped before the end; {resume}\n"), output):
                    yield file, given
                file.flush()
                os.fsync(file.fileno())
            replace_file(aside, Path(os.path.realpath(output)))
            note.unlink(missing_ok=True)
        except InputError as error:
            if done := _whole_lines(aside).total():
                raise InputError(f"{error} The {done:,} answers before it are in '{aside}'.") from error
            aside.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
            raise


def partial_file(output: str) -> Path:
    """The file of the answers until all are there: beside the output, or beside the file that it links to."""
    path = Path(os.path.realpath(output))
    return path.with_name(f".{path.name}.part")


def files_of_task(task: str, folder: str) -> list[str]:
    """A benchmark's own files of a task."""
    from elang.data.glue.files import find_files
    from elang.data.glue.table import find_tasks

    return [str(path) for part in find_tasks(task) for path in find_files(part, folder).values()]


@contextmanager
def _announced(message: str, output: str) -> Iterator[None]:
    """Print a message on standard error, and unlock the output, when SIGTERM or Ctrl-C ends the process."""

    def end(number: int, frame: Any) -> None:
        # Without clean-up: Python's buffers may be half written.
        os.write(2, message.encode())
        unlock_output(output)
        os._exit(128 + number)

    try:
        with at_sigterm(end):
            yield
    except KeyboardInterrupt:
        sys.stderr.write(message)
        raise


def _whole_lines(path: Path) -> Counter[str]:
    """Cut off a half-written line; return the number of lines by the stage that answered."""
    given = Counter[bytes]()
    end = 0
    with path.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                match = _ANSWERED_BY.search(line)
                given[match[1] if match else b'""'] += 1
                end += len(line)
        file.truncate(end)
    return Counter({json.loads(name): count for name, count in given.items()})
