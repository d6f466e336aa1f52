"""`elang predict`: answers to the inputs of a file or of standard input, and to a benchmark's test split."""

import os
import sys
from collections.abc import Callable
from functools import partial
from io import TextIOWrapper
from itertools import islice
from typing import Any

from elang.errors import InputError
from elang.files import check_output_file, is_stream, written_through
from elang.inference.inputs import input_columns, read_inputs
from elang.inference.options import PairOptions
from elang.inference.predictor import JointPredictor
from elang.inference.resume import EMPTY, ESCAPED, about_run, aside_of, files_of_task, resumed, write_answer
from elang.inference.stream import Prediction
from elang.notices import notice
from elang.terminal import ended_at_sigterm


def predict(
    swift_model: str,
    super_model: str,
    pair: PairOptions,
    input: str = "-",  # noqa: A002 - the option's name
    output: str = "-",
    text: list[str] | str | None = None,
    chunk: int = 4096,
    task: str | None = None,
    folder: str | None = None,
    split: str = "test",
) -> None:
    """Answer the texts of a file or of standard input with a pair, one JSON object a line.

    Memory is bounded, whatever comes in (tables are read whole). An interrupted run into a file resumes when it is
    started again. With --task it answers a split of GLUE or SuperGLUE instead, in the form that the benchmark takes.

    Args:
        swift_model: The Swift's folder.
        super_model: The Super's folder or hub id.
        pair: How the pair routes and runs.
        input: A text file with one input a line, a table (.csv, .tsv, .jsonl, .parquet) with --text, or ``-``.
        output: A JSONL file, or ``-`` for standard output.
        text: The text column of the table, or two for pairs.
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
    files = [swift_model, super_model, pair.thresholds]
    if task is not None:
        files += files_of_task(task, folder) if folder is not None else []
    else:
        files.append(input)
    _check_output(output, input, files)
    columns = input_columns(input, text)
    predictor = JointPredictor(swift_model, super_model, **vars(pair))
    if task is not None:
        answers = _submit(predictor, task, folder, split=split, output=output, chunk=chunk)
        _tell(predictor, len(answers), sum(one.answered_by == "super" for one in answers))
        return
    ways = [pair.dtype, pair.compile, pair.super_int8, pair.onnx]
    about = partial(about_run, predictor, [swift_model, super_model], input, text=columns, ways=ways)
    _tell(predictor, *_answer(predictor, input, columns, output=output, chunk=chunk, about=about))


def _check_output(output: str, source: str, files: list[str | None]) -> None:
    """Refuse an output that cannot be written, or would take what is read away."""
    check_output_file(output, files)
    if output == "-" and getattr(sys.stdout, "name", "") == os.devnull:
        raise InputError("Standard output is closed. Open it, or give a file as --output.")
    if output != "-" and not is_stream(output):
        # An earlier run's answers would be taken away from under the reading.
        check_output_file(aside_of(output), [source])


def _answer(
    predictor: JointPredictor,
    source: str,
    columns: list[str] | None,
    *,
    output: str,
    chunk: int,
    about: Callable[[], dict[str, Any]],
) -> tuple[int, int]:
    """Write the answers to all inputs; how many there are, and how many are the Super's."""
    inputs = read_inputs(source, columns, predictor.task.kind.generates)
    if output == "-":
        with ended_at_sigterm():
            if isinstance(sys.stdout, TextIOWrapper):
                # JSON is UTF-8, whatever the locale.
                sys.stdout.reconfigure(encoding="utf-8")
            total, deferred = write_answer(predictor.map(inputs, chunk), sys.stdout)
    elif is_stream(output):
        with ended_at_sigterm(), written_through(output) as raw, TextIOWrapper(raw, "utf-8", ESCAPED) as file:
            total, deferred = write_answer(predictor.map(inputs, chunk), file)
    else:
        with resumed(output, about()) as (file, done, deferred):
            if done:
                sys.stderr.write(f"{done} inputs were answered before; going on behind them\n")
            total, more = write_answer(predictor.map(islice(inputs, done, None), chunk, done), file)
            total, deferred = done + total, deferred + more
            if total == 0:
                raise InputError(EMPTY.format(source))
    if total == 0:
        raise InputError(EMPTY.format(source))
    return total, deferred


def _submit(
    predictor: JointPredictor, task: str, folder: str | None, *, split: str, output: str, chunk: int
) -> list[Prediction]:
    """Answer a benchmark's split, and write it in the benchmark's form."""
    from elang.data.benchmarks import TaskData
    from elang.data.glue.files import write_submission

    data = TaskData(task, folder, [split])
    asked, own = data.text_task.plain(), predictor.task.plain()
    if unlike := [name for name in asked if asked[name] != own.get(name)]:
        raise InputError(
            f"The Swift was trained on another task than {task}: its {unlike[0]} is {own.get(unlike[0])!r}, not "
            f"{asked[unlike[0]]!r}. Give the pair that was trained on it."
        )
    examples = data.read(split)
    answers: list[Prediction] = []
    for start in range(0, len(examples), chunk):
        part = slice(start, start + chunk)
        answers += predictor.answer(examples.texts[part], examples.choices[part] if examples.choices else None)
    write_submission(data.task, data.rows(split), [one.label for one in answers], output)
    return answers


def _tell(predictor: JointPredictor, total: int, deferred: int) -> None:
    for runner in predictor.runners.values():
        if runner.truncated:
            notice(
                "cut-inputs",
                f"{runner.truncated} of {total} inputs were longer than the {runner.who}'s {runner.limit} tokens: the "
                "rest was not read.",
            )
    sys.stderr.write(f"{total} inputs, {deferred} ({deferred / total:.1%}) answered by the Super\n")
