"""A run of predictions that goes on where it was stopped."""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from elang.errors import InputError, printable
from elang.files import plain, take_place
from elang.inference.prediction import Prediction
from elang.inference.predictor import JointPredictor
from elang.json_files import read_object
from elang.notices import notice
from elang.terminal import at_sigterm

# Of a lone surrogate it makes what JSON has for it, too.
ESCAPED = "backslashreplace"
EMPTY = "The input '{}' is empty: there is nothing to predict. Give one input a line."


def write_answer(answers: Iterator[Prediction], file: Any) -> tuple[int, int]:
    """Write answers as they come; how many there were, and how many were the Super's."""
    from tqdm import tqdm

    total = deferred = 0
    for one in tqdm(answers, unit=" inputs", disable=not sys.stderr.isatty() or file is sys.stdout):
        file.write(json.dumps(vars(one), ensure_ascii=False) + "\n")
        total, deferred = total + 1, deferred + (one.answered_by == "super")
    return total, deferred


def about_run(
    predictor: JointPredictor, models: list[str], source: str, *, text: list[str] | None, ways: list[Any]
) -> dict[str, Any]:
    """What the answers depend on, with the ``ways`` in which the models run.

    Nothing of standard input, which does not come again.
    """
    if source == "-":
        return {}
    try:
        status = os.stat(source)
    except OSError as error:
        raise InputError(f"The input '{source}' cannot be read ({error.strerror}). Mend its path.") from error
    return {
        "models": [_files(model) for model in models],
        "routing": [
            predictor.score,
            *ways,
            str(predictor.threshold),
            plain(asdict(predictor.manifest)),
        ],
        "input": [os.path.abspath(source), status.st_size, status.st_mtime_ns, text],
    }


def _files(model: str) -> list[Any]:
    """A model's files by name, size and time, or its name on the hub."""
    path = Path(model)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return [model, *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]


@contextmanager
def resumed(output: str, about: dict[str, Any]) -> Iterator[tuple[Any, int, int]]:
    """Yield a file beside ``output`` that takes its name at the end, and what it holds of an earlier run.

    A run that was killed leaves it behind, as does one that came upon bad input after some answers. It is gone on with
    only if the answers depend on the same things: models, threshold, input.
    """
    aside = aside_of(output)
    note = aside.with_name(f"{aside.name}.json")
    aside.parent.mkdir(parents=True, exist_ok=True)
    done = deferred = 0
    try:
        same = bool(about) and read_object(note) == about
    except (OSError, ValueError):
        same = False
    with aside.open("a", encoding="utf-8", errors=ESCAPED) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"Another run is writing '{output}'. Wait for it, or give another --output.") from error
        try:
            if same:
                done, deferred = _whole_lines(aside)
            else:
                if earlier := _whole_lines(aside)[0]:
                    notice(
                        "answers-begun-anew",
                        f"Beginning anew: the {earlier:,} answers in '{aside}' are of another run, and are deleted.",
                    )
                file.truncate(0)
                note.write_text(json.dumps(about), "utf-8")
            goes_on = f"the same command goes on behind what is in '{aside}'" if about else f"see '{aside}'"
            said = printable(f"stopped before the end; {goes_on}\n")
            try:
                with _told_at_sigterm(said):
                    yield file, done, deferred
            except KeyboardInterrupt:
                sys.stderr.write(said)
                raise
            file.flush()
            os.fsync(file.fileno())
            take_place(aside, Path(os.path.realpath(output)))
            note.unlink(missing_ok=True)
        except InputError as error:
            file.flush()
            if kept := _whole_lines(aside)[0]:
                raise InputError(f"{error} The {kept:,} answers before it are in '{aside}'.") from error
            aside.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
            raise


def aside_of(output: str) -> Path:
    """Where answers are until all are there: beside the file, or what a link to it leads to."""
    path = Path(os.path.realpath(output))
    return path.with_name(f".{path.name}.part")


def files_of_task(task: str, folder: str) -> list[str]:
    """The benchmark's own files of a task."""
    from elang.data.glue.files import find_files
    from elang.data.glue.table import find_tasks

    return [str(path) for one in find_tasks(task) for path in find_files(one, folder).values()]


@contextmanager
def _told_at_sigterm(said: str) -> Iterator[None]:
    """Say something on standard error when SIGTERM ends the process."""

    def end(number: int, frame: Any) -> None:
        # Whatever was being written then is half written.
        os.write(2, said.encode())
        os._exit(128 + number)

    with at_sigterm(end):
        yield


def _whole_lines(path: Path) -> tuple[int, int]:
    """Cut a half line off; how many lines there are, and how many of them are the Super's answers."""
    lines = deferred = end = 0
    with path.open("r+b") as file:
        for line in file:
            if line.endswith(b"\n"):
                lines, end = lines + 1, end + len(line)
                # Quotes within a text are escaped.
                deferred += b'"answered_by": "super"' in line
        file.truncate(end)
    return lines, deferred
