"""`elang predict`: answers to the inputs of a file or of standard input, and to a benchmark's test split."""

import math
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any

from elang.backends.openai.backend import OpenAIBackend
from elang.cli.arguments import check_minimum, note_replaced
from elang.errors import InputError, counted, printable
from elang.evaluation.labels import mostly_one
from elang.files import check_output_file, is_stream, written_through
from elang.inference.inputs import input_columns, read_inputs
from elang.inference.options import PairOptions, as_number
from elang.inference.predictor import JointPredictor
from elang.inference.resume import EMPTY, ESCAPED, files_of_task, partial_file, resumed, run_fingerprint, write_answers
from elang.inference.stream import Prediction
from elang.locks import output_lock
from elang.notices import notice
from elang.records import DEFAULT_THRESHOLD
from elang.terminal import Progress, ended_at_sigterm, tell


def predict(
    swift_model: str,
    pair: PairOptions,
    super_model: str | None = None,
    input: str = "-",  # noqa: A002 - the option's name
    output: str = "-",
    text: list[str] | str | None = None,
    id: str | None = None,  # noqa: A002 - the option's name
    texts: bool = False,
    chunk: int = 4096,
    task: str | None = None,
    folder: str | None = None,
    split: str = "test",
) -> None:
    """Answer the texts of a file or of standard input with a pair, one JSON object a line.

    Each has ``id``, ``label``, ``probability`` (of the label, by the model that answered; null for generated texts and
    in a regression), ``score`` (larger is harder; null if the threshold is -inf) and ``answered_by``; if the Swift was
    trained with --data.extract also ``answer``, which is found in the text ``label``.

    Memory does not grow with the number of inputs, except that tables are read whole. An interrupted run into a file
    resumes when it is started again. With --task it answers a split of GLUE or SuperGLUE, in the format of its
    submissions.

    Args:
        swift_model: The Swift's folder, or the address of a model behind an API (with --thresholds).
        pair: How the pair routes and runs.
        super_model: The Super's folder or hub id, or the address of a server or of a model behind an API; without it
            the Swift answers everything.
        input: A text file with one input a line, a table (.csv, .tsv, .jsonl, .parquet) with --text, or ``-``.
        output: A JSONL file, or ``-`` for standard output.
        text: The text column of the table, or all of the task's.
        id: The column of the table that names its rows; by default ``id`` is the number of the row or line, from 0.
        texts: Also write the input beside its answer, as ``text``; of pairs it is a list.
        chunk: Inputs that are read, tokenised and answered by the Swift at a time.
        task: A task of GLUE or SuperGLUE (glue/rte).
        folder: The benchmark's own files; by default the hub's.
        split: Which split of the task.
    """
    of_a_file = input != "-" or text is not None or id is not None or texts
    _check_task(task, folder, others=of_a_file or output == "-")
    check_minimum(1, chunk=chunk)
    read = [input] if task is None else files_of_task(task, folder) if folder is not None else []
    protected = [swift_model, super_model, pair.thresholds, *read]
    _check_output(output, input, protected, suffix=".jsonl" if task is None else None)
    columns = input_columns(input, text)
    if id is not None and not columns:
        raise InputError(f"--id names a column of a table, and '{input}' is read line by line. Leave it out.")
    predictor = JointPredictor(swift_model, super_model, **vars(pair if super_model else _swift_alone(pair)))
    if task is not None:
        answers = _submit(predictor, task, folder, split=split, output=output, chunk=chunk)
        total, deferred = len(answers), sum(answer.answered_by == "super" for answer in answers)
    else:
        options = [pair.dtype, pair.compile, pair.super_int8, pair.onnx, id, texts, str(predictor.sampling)]
        models = [model for model in (swift_model, super_model) if model is not None]
        fingerprint = partial(run_fingerprint, predictor, models, input, text=columns, ways=options)
        with _replies_kept(predictor, output), _opened(output, fingerprint) as opened:
            total, deferred = _answer(predictor, input, columns, opened, id_column=id, texts=texts, chunk=chunk)
    _report(predictor, total, deferred, numbered=task is None, output=output, alone=super_model is None)


def _swift_alone(pair: PairOptions) -> PairOptions:
    """The options with which the Swift answers everything; refuses a threshold that needs a Super."""
    if pair.threshold != DEFAULT_THRESHOLD and as_number(pair.threshold) != math.inf:
        raise InputError(
            f"--threshold {pair.threshold} passes inputs on to a Super: give its --super_model, or leave --threshold "
            "out, and the Swift answers everything."
        )
    return replace(pair, threshold="inf")


def _check_task(task: str | None, folder: str | None, others: bool) -> None:
    """Refuse options that do not go with a benchmark's task: ``others`` says whether there are any."""
    if task is not None and others:
        raise InputError(
            "With --task the inputs are the benchmark's: leave out --input, --text, --id and --texts, and name a file "
            "as --output."
        )
    if task is None and folder is not None:
        raise InputError(f"--folder '{folder}' is used only with --task: name one.")


def _answer(
    predictor: JointPredictor,
    source: str,
    columns: list[str] | None,
    opened: tuple[Any, int, int],
    *,
    id_column: str | None,
    texts: bool,
    chunk: int,
) -> tuple[int, int]:
    """Answer the inputs without an answer so far; return how many have one now, and how many of them the Super gave."""
    (file, done, deferred), task = opened, predictor.task
    if done:
        sys.stderr.write(f"resuming after {counted(done, 'inputs')} answered before\n")
    ids: list[Any] | None = None if id_column is None else []
    inputs = read_inputs(source, columns, predictor.task.kind.generates, ids, id_column or "")
    # Inputs that have been read and not been answered yet.
    waiting: deque[Any] = deque()

    def kept() -> Iterator[Any]:
        for one in islice(inputs, done, None):
            waiting.append(one[0] if isinstance(one, tuple) and len(one) == 1 else one)
            yield one

    given: dict[str, Counter[Any]] = {"swift": Counter(), "super": Counter()}

    def fields(answer: Prediction) -> dict[str, Any]:
        values = {name: value for name, value in vars(answer).items() if name != "answer" or task.extract}
        if task.kind.has_classes:
            given[answer.answered_by][answer.label] += 1
        if ids is not None:
            values["id"] = ids[answer.id]
        return {**values, "text": waiting.popleft()} if texts else values

    answers = predictor.map(kept() if texts else islice(inputs, done, None), chunk, done)
    new, new_deferred = write_answers(answers, file, fields)
    if done + new == 0:
        raise InputError(EMPTY.format(source))
    if said := mostly_one(given["swift"], given["swift"] + given["super"], "all answers"):
        notice("one-label", f"{said}. `elang validate` shows how well each label is found.")
    return done + new, deferred + new_deferred


def _check_output(output: str, source: str, files: list[str | None], suffix: str | None) -> None:
    """Refuse an output that cannot be written, or that would overwrite an input."""
    check_output_file(output, files, suffix=suffix)
    if output == "-" and getattr(sys.stdout, "name", "") == os.devnull:
        raise InputError("Standard output is closed. Open it, or give a file as --output.")
    note_replaced(output)
    if output != "-" and not is_stream(output):
        # The input may be the file in which an earlier run kept its answers.
        check_output_file(partial_file(output), [source])
        if Path(output).parent.is_dir():
            # Another run that writes it is told of before models are loaded.
            with output_lock(output):
                pass


@contextmanager
def _opened(output: str, fingerprint: Callable[[], dict[str, Any]]) -> Iterator[tuple[Any, int, int]]:
    """Open the output, and yield it with the number of answers it has already, and how many of them the Super gave."""
    if output == "-":
        with ended_at_sigterm():
            if isinstance(sys.stdout, TextIOWrapper):
                # JSON is UTF-8 in any locale.
                sys.stdout.reconfigure(encoding="utf-8")
            yield sys.stdout, 0, 0
    elif is_stream(output):
        with ended_at_sigterm(), written_through(output) as raw, TextIOWrapper(raw, "utf-8", ESCAPED) as file:
            yield file, 0, 0
    else:
        with resumed(output, fingerprint()) as opened:
            yield opened


@contextmanager
def _replies_kept(predictor: JointPredictor, output: str) -> Iterator[None]:
    """Keep the replies of an API beside the output: a killed run has not written the answers of its last windows."""
    asked = {stage.name: stage.backend for stage in predictor.stages if isinstance(stage.backend, OpenAIBackend)}
    for name, backend in asked.items() if output != "-" and not is_stream(output) else ():
        backend.keep_answers(f"{output}.{name}.asked.jsonl")
    yield
    for backend in asked.values():
        tell(f"{backend.address}: {backend.spending.line()}")
        backend.forget_answers()


def _submit(
    predictor: JointPredictor, task: str, folder: str | None, *, split: str, output: str, chunk: int
) -> list[Prediction]:
    """Answer a benchmark's split, and write the answers in the benchmark's format."""
    from elang.data.benchmarks import TaskData
    from elang.data.glue.files import write_submission

    data = TaskData(task, folder, [split])
    expected, trained = data.text_task.plain(), predictor.task.plain()
    if different := [name for name in expected if expected[name] != trained.get(name)]:
        name = different[0]
        raise InputError(
            f"The Swift was trained on another task than {task}: its {name} is {trained.get(name)!r}, not "
            f"{expected[name]!r}. Give the pair that was trained on it."
        )
    examples = data.read(split)
    answers: list[Prediction] = []
    with _replies_kept(predictor, output), Progress(len(examples), "inputs") as progress:
        for start in range(0, len(examples), chunk):
            part = slice(start, start + chunk)
            answers += predictor.answer(examples.texts[part], examples.choices[part] if examples.choices else None)
            progress.add(len(answers) - start)
    if without := [answer.id for answer in answers if answer.label is None]:
        raise InputError(
            f"There is no answer to {counted(len(without), 'inputs')} of '{split}', first number {without[0]}, and a "
            "submission needs all. See the notices for why."
        )
    labels = [answer.label for answer in answers if answer.label is not None]
    write_submission(data.task, data.rows(split), labels, path=output)
    return answers


def _report(predictor: JointPredictor, total: int, deferred: int, *, numbered: bool, output: str, alone: bool) -> None:
    """Say what was cut, with the first inputs if they are ``numbered`` through, and who answered."""
    for runner in predictor.runners.values():
        if runner.truncated:
            cut = ", ".join(map(str, runner.first_cut if numbered else ()))
            first = f"First numbers, from 0: {cut}. " if cut else ""
            limit = f"the {runner.limit} tokens that the {runner.who} reads at most"
            if runner.limit >= runner.max_length:
                limit = f"{runner.limit} tokens, the --data.max_length that the Swift was trained with"
            notice(
                "cut-inputs",
                f"Of {counted(total, 'inputs')}, {runner.truncated:,} longer than {limit}: the {runner.who} did not "
                f"read the rest. {first}".rstrip(),
            )
    means = {math.inf: ": nothing is passed on to the Super", -math.inf: ": everything is passed on to the Super"}
    answered = (
        f"{total - deferred:,} answered by the Swift and {deferred:,} ({deferred / total:.1%}) by the Super, at the "
        f"threshold {predictor.threshold:.4g} of {predictor.score}{means.get(predictor.threshold, '')}"
    )
    if alone:
        answered = "all answered by the Swift, as no --super_model was given"
    sys.stderr.write(
        f"{counted(total, 'inputs')}, {answered}{'' if output == '-' else printable(f'; answers in {output}')}\n"
    )
