"""`elang predict`: answers to the inputs of a file or of standard input, and to a benchmark's test split."""

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any

from elang.data.files import columns_of
from elang.data.tables import SUFFIXES, file_lines, suffix_of, text_lines
from elang.errors import InputError, printable
from elang.few import DType
from elang.json_files import read_object
from elang.manifest import plain
from elang.notices import notice
from elang.outputs import at_sigterm, check_output_file, ended_at_sigterm, is_stream, take_place, written_through
from elang.predictor import JointPredictor, Prediction


def predict(
    swift_model: str,
    super_model: str,
    input: str = "-",  # noqa: A002 - the option's name
    output: str = "-",
    text: list[str] | str | None = None,
    threshold: str | float = "parity",
    score: str | None = None,
    thresholds: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    tokens: int | None = None,
    super_tokens: int | None = None,
    dtype: DType = "float32",
    compile: bool = False,  # noqa: A002 - the option's name
    super_int8: bool = False,
    onnx: bool = False,
    chunk: int = 4096,
    task: str | None = None,
    folder: str | None = None,
    split: str = "test",
) -> None:
    """Answer the texts of a file or of standard input with a pair, one JSON object a line.

    Memory is bounded, whatever comes in (tables are read whole). A run into a file that was killed goes on where it was
    when it is given again. With --task it answers a split of GLUE or SuperGLUE instead, in the form that the benchmark
    takes.

    Args:
        swift_model: The Swift's folder.
        super_model: The Super's folder or hub id.
        input: A text file with one input a line, a table (.csv, .tsv, .jsonl, .parquet) with --text, or ``-``.
        output: A JSONL file, or ``-`` for standard output.
        text: The text column of the table, or two for pairs.
        threshold: Name of a threshold in elang.json (parity, 99%, defer 30%), or a number.
        score: Which score routes; by default the Swift's own.
        thresholds: Another threshold file, as `elang validate` writes it.
        device: By default a GPU if there is one.
        batch_size: Inputs in a batch at most; by default only their tokens count.
        tokens: Tokens in a batch of the Swift's; by default what suits the device.
        super_tokens: The same for the Super.
        dtype: Precision of both models' weights; scores are float32 in any.
        compile: Compile both models with ``torch.compile``.
        super_int8: Keep the matrices of the Super's layers as int8 (the extra ``int8``).
        onnx: Run both encoders by ONNX Runtime on the CPU (the extra ``onnx``).
        chunk: Inputs that are read, tokenised and answered by the Swift at a time.
        task: A task of GLUE or SuperGLUE (glue/rte), to be answered in its submission format.
        folder: The benchmark's own files; by default the hub's.
        split: Which split of the task.
    """
    if task is not None and (input != "-" or text or output == "-"):
        raise InputError("With --task the inputs are the benchmark's, so leave --input and --text; --output is a file.")
    if task is None and folder is not None:
        raise InputError(f"--folder '{folder}' is a benchmark's, but no --task is named.")
    if chunk < 1:
        raise InputError(f"--chunk must be at least 1, but it is {chunk}.")
    files = [input, swift_model, super_model, thresholds]
    if task is not None and folder is not None:
        files = [swift_model, super_model, thresholds, *_files_of_task(task, folder)]
    check_output_file(output, [one for one in files if one != "-" or task is None])
    if output == "-" and getattr(sys.stdout, "name", "") == os.devnull:
        raise InputError("Standard output is closed. Open it, or give a file as --output.")
    if output != "-" and not is_stream(output):
        # An earlier run's answers would be taken away from under the reading.
        check_output_file(_aside(output), [input])
    columns = input_columns(input, text)
    predictor = JointPredictor(
        swift_model,
        super_model,
        threshold,
        score,
        thresholds,
        device,
        batch_size,
        tokens,
        super_tokens,
        dtype=dtype,
        compile=compile,
        super_int8=super_int8,
        onnx=onnx,
    )
    if task is not None:
        found = _submit(predictor, task, folder, split, output, chunk)
        _say(predictor, len(found), sum(one.answered_by == "super" for one in found))
        return
    inputs = read_inputs(input, columns, predictor.task.problem == "sequence")
    if output == "-":
        with ended_at_sigterm():
            if isinstance(sys.stdout, TextIOWrapper):
                # JSON is UTF-8, whatever the locale.
                sys.stdout.reconfigure(encoding="utf-8")
            total, deferred = _write(predictor.map(inputs, chunk), sys.stdout)
    elif is_stream(output):
        with ended_at_sigterm(), written_through(output) as raw, TextIOWrapper(raw, "utf-8", _ESCAPED) as file:
            total, deferred = _write(predictor.map(inputs, chunk), file)
    else:
        about = _about(predictor, swift_model, super_model, input, columns, [dtype, compile, super_int8, onnx])
        with _resumed(output, about) as (file, done, deferred):
            if done:
                sys.stderr.write(f"{done} inputs were answered before; going on behind them\n")
            total, more = _write(predictor.map(islice(inputs, done, None), chunk, done), file)
            total, deferred = done + total, deferred + more
            if total == 0:
                raise InputError(_EMPTY.format(input))
    if total == 0:
        raise InputError(_EMPTY.format(input))
    _say(predictor, total, deferred)


# Of a lone surrogate it makes what JSON has for it, too.
_ESCAPED = "backslashreplace"
_EMPTY = "The input '{}' is empty: there is nothing to predict. Give one input a line."


def _write(answers: Iterator[Prediction], file: Any) -> tuple[int, int]:
    """Write answers as they come; how many there were, and how many were the Super's."""
    from tqdm import tqdm

    total = deferred = 0
    for one in tqdm(answers, unit=" inputs", disable=not sys.stderr.isatty() or file is sys.stdout):
        file.write(json.dumps(vars(one), ensure_ascii=False) + "\n")
        total, deferred = total + 1, deferred + (one.answered_by == "super")
    return total, deferred


def _about(
    predictor: JointPredictor, swift: str, super_: str, source: str, text: list[str] | None, ways: list[Any]
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
        "models": [_files(swift), _files(super_)],
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
def _resumed(output: str, about: dict[str, Any]) -> Iterator[tuple[Any, int, int]]:
    """Yield a file beside ``output`` that takes its name at the end, and what it holds of an earlier run.

    A run that was killed leaves it behind, as does one that came upon bad input after some answers. It is gone on with
    only if the answers depend on the same things: models, threshold, input.
    """
    aside = _aside(output)
    note = aside.with_name(f"{aside.name}.json")
    aside.parent.mkdir(parents=True, exist_ok=True)
    done = deferred = 0
    try:
        same = bool(about) and read_object(note) == about
    except (OSError, ValueError):
        same = False
    with aside.open("a", encoding="utf-8", errors=_ESCAPED) as file:
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


def _aside(output: str) -> Path:
    """Where answers are until all are there: beside the file, or what a link to it leads to."""
    path = Path(os.path.realpath(output))
    return path.with_name(f".{path.name}.part")


def _files_of_task(task: str, folder: str) -> list[str]:
    """The benchmark's own files of a task."""
    from elang.data.benchmarks import find_files
    from elang.data.tasks import find_tasks

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


def _submit(
    predictor: JointPredictor, task: str, folder: str | None, split: str, output: str, chunk: int
) -> list[Prediction]:
    """Answer a benchmark's split, and write it in the benchmark's form."""
    from elang.data.benchmarks import TaskData, write_submission

    data = TaskData(task, folder, [split])
    asked, own = data.text_task.plain(), predictor.task.plain()
    if unlike := [name for name in asked if asked[name] != own.get(name)]:
        raise InputError(
            f"The Swift was trained on another task than {task}: its {unlike[0]} is {own.get(unlike[0])!r}, not "
            f"{asked[unlike[0]]!r}. Give the pair that was trained on it."
        )
    examples = data.read(split)
    found: list[Prediction] = []
    for start in range(0, len(examples), chunk):
        part = slice(start, start + chunk)
        found += predictor.answer(examples.texts[part], examples.choices[part] if examples.choices else None)
    write_submission(data.task, data.rows(split), [one.label for one in found], output)
    return found


def _say(predictor: JointPredictor, total: int, deferred: int) -> None:
    cut = (("Swift", predictor.truncated, predictor.swift), ("Super", predictor.super_truncated, predictor.super_))
    for who, count, model in cut:
        if count:
            limit = predictor.passes.limit(model)
            notice(
                "cut-inputs",
                f"{count} of {total} inputs were longer than the {who}'s {limit} tokens: the rest was not read.",
            )
    sys.stderr.write(f"{total} inputs, {deferred} ({deferred / total:.1%}) answered by the Super\n")


def input_columns(source: str, text: list[str] | str | None) -> list[str] | None:
    """Names of the text columns of ``source``, or nothing where each line is an input.

    Raises:
        InputError: If it is a table and no column is named: its lines would be taken for texts, labels and all.
    """
    columns = columns_of(text)
    if not columns and suffix_of(source) in SUFFIXES:
        raise InputError(
            f"The input '{source}' is a table: name its text column (or two) with --text. Where each of its lines is "
            "one input as it stands, give them by standard input, --input -."
        )
    return columns


def read_inputs(source: str, columns: list[str] | None, empty: bool = False) -> Iterator[Any]:
    """Read inputs one by one; tables are read whole. Lines may be ``empty`` where texts may."""
    if columns:
        from elang.data.files import read_frame, texts_of

        yield from texts_of(read_frame(source), columns, f"'{source}'", empty, "--text")
        return
    if source == "-" and sys.stdin is None:
        raise InputError("Standard input is closed. Give the inputs' file with --input.")
    # Its bytes, for which encoding Python takes them to be in depends on the locale.
    lines = text_lines(sys.stdin.buffer, "Standard input") if source == "-" else file_lines(source)
    for number, line in enumerate(lines, 1):
        if not line.strip() and not empty:
            raise InputError(f"Line {number} of '{source}' is empty. Remove it; every line is one input.")
        yield line.rstrip("\r\n")
