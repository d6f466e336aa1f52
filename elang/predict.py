"""`elang predict`: answers to the inputs of a file or of standard input, and to a benchmark's test split."""

import json
import sys
from collections.abc import Iterator
from typing import Any

from elang.errors import InputError
from elang.predictor import JointPredictor, Prediction
from elang.records import written_aside


def predict(
    swift_model: str,
    super_model: str,
    input: str = "-",  # noqa: A002 - the option's name
    output: str = "-",
    text: list[str] | None = None,
    threshold: str = "parity",
    score: str | None = None,
    thresholds: str | None = None,
    device: str | None = None,
    batch_size: int = 64,
    chunk: int = 2048,
    task: str | None = None,
    folder: str | None = None,
    split: str = "test",
) -> None:
    """Answer the texts of a file or of standard input with a pair, one JSON object a line.

    With --task it answers a split of GLUE or SuperGLUE instead, in the form that the benchmark takes.

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
        batch_size: Inputs in a batch.
        chunk: Inputs that are read and answered at a time.
        task: A task of GLUE or SuperGLUE (glue/rte), to be answered in its submission format.
        folder: The benchmark's own files; by default the hub's.
        split: Which split of the task.
    """
    if task is not None and (input != "-" or text or output == "-"):
        raise InputError("With --task the inputs are the benchmark's, so leave --input and --text; --output is a file.")
    if task is None and folder is not None:
        raise InputError(f"--folder '{folder}' is a benchmark's, but no --task is named.")
    predictor = JointPredictor(swift_model, super_model, threshold, score, thresholds, device, batch_size)
    total = deferred = 0

    if task is not None:
        found = _submit(predictor, task, folder, split, output, max(1, chunk))
        _say(predictor, len(found), sum(one.answered_by == "super" for one in found))
        return

    def answer(file: Any) -> None:
        nonlocal total, deferred
        sequence = predictor.task.problem == "sequence"
        for found in map(predictor, _chunks(input, text, max(1, chunk), sequence)):
            for one in found:
                file.write(json.dumps(vars(one), ensure_ascii=False) + "\n")
            total, deferred = total + len(found), deferred + sum(one.answered_by == "super" for one in found)
        if total == 0:
            raise InputError(f"The input '{input}' is empty: there is nothing to predict. Give one input a line.")

    if output == "-":
        answer(sys.stdout)
    else:
        with written_aside(output) as aside, aside.open("w", encoding="utf-8") as file:
            answer(file)
    _say(predictor, total, deferred)


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
    said = f"{total} inputs, {deferred} ({deferred / total:.1%}) answered by the Super"
    cut = (("Swift", predictor.truncated, predictor.swift), ("Super", predictor.super_truncated, predictor.super_))
    for who, count, model in cut:
        if count:
            said += f", {count} over-long ones cut to the {who}'s {predictor.limit(model)} tokens"
    sys.stderr.write(said + "\n")


def _chunks(source: str, columns: list[str] | None, size: int, empty: bool = False) -> Iterator[list[Any]]:
    """Read inputs, a bounded number at a time; tables are read whole. Lines may be ``empty`` where texts may."""
    if columns:
        from elang.data.files import read_frame, texts_of

        rows = texts_of(read_frame(source), columns, f"'{source}'", empty)
        yield from (rows[i : i + size] for i in range(0, len(rows), size))
        return
    try:
        with sys.stdin if source == "-" else open(source, encoding="utf-8-sig") as file:
            part: list[str] = []
            for number, line in enumerate(file, 1):
                if not line.strip() and not empty:
                    raise InputError(f"Line {number} of '{source}' is empty. Remove it; every line is one input.")
                part.append(line.rstrip("\r\n"))
                if len(part) == size:
                    yield part
                    part = []
            if part:
                yield part
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The input '{source}' cannot be read as UTF-8 text: {error}.") from error
