"""`elang predict`: answers to the inputs of a file or of standard input, and to a benchmark's test split."""

import math
import os
import re
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
from elang.cli.answered import tell_answered
from elang.cli.arguments import check_minimum, note_replaced
from elang.cli.chains import ChainOptions, ways_of
from elang.errors import InputError, counted
from elang.evaluation.labels import mostly_one
from elang.files import check_output_file, is_stream, written_through
from elang.inference.inputs import input_columns, read_inputs
from elang.inference.loaded import ChainPredictor, LoadedCascade
from elang.inference.options import PairOptions, as_number
from elang.inference.predictor import JointPredictor
from elang.inference.queue import person_of, queued
from elang.inference.resume import EMPTY, ESCAPED, files_of_task, partial_file, resumed, run_fingerprint, write_answers
from elang.inference.stream import Prediction
from elang.locks import output_lock
from elang.method.pool import PERSON
from elang.notices import notice
from elang.records import DEFAULT_THRESHOLD
from elang.records.chain_file import Chain
from elang.terminal import Progress, ended_at_sigterm, tell


def predict(
    pair: PairOptions,
    chains: ChainOptions,
    swift_model: str | None = None,
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
    queue: str | None = None,
) -> None:
    """Answer the texts of a file or of standard input with a pair or a chain, one JSON object a line.

    Each has ``id``, ``label``, ``probability`` (of the label, by the model that answered; null for generated texts and
    in a regression), ``score`` (larger is harder; null if the threshold is -inf) and ``answered_by``, the name of the
    model's stage; if the Swift was trained with --data.extract also ``answer``, which is found in the text ``label``.

    Memory does not grow with the number of inputs, except that tables are read whole. An interrupted run into a file
    resumes when it is started again. With --task it answers a split of GLUE or SuperGLUE for its submission.

    Args:
        pair: How the pair routes and runs.
        chains: A chain in place of the pair.
        swift_model: The Swift's folder, or the address of a model behind an API (with --thresholds).
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
        queue: A JSONL file of the inputs that wait for a person; by default OUTPUT.person.jsonl.
    """
    of_a_file = input != "-" or text is not None or id is not None or texts
    _check_task(task, folder, others=of_a_file or output == "-")
    check_minimum(1, chunk=chunk)
    chain = chains.resolved(pair, swift_model, super_model)
    models = [swift_model, super_model] if chain is None else [one.model for one in chain.stages]
    protected = [*models, pair.thresholds, *chains.files, *_read(input, task, folder)]
    _check_output(output, input, protected, suffix=".jsonl" if task is None else None)
    columns = _columns(input, text, id)
    predictor = _load(pair, chain, swift_model, super_model)
    waiting = _queue_file(predictor, queue, output, [*protected, input], task)
    if task is not None:
        given = _submit(predictor, task, folder, split=split, output=output, chunk=chunk)
    else:
        options = [*_ways(predictor, pair), id, texts, waiting]
        fingerprint = partial(run_fingerprint, predictor, list(filter(None, models)), input, text=columns, ways=options)
        with _replies_kept(predictor, output), _opened(output, fingerprint) as opened:
            given = _answer(predictor, input, columns, opened, id_column=id, texts=texts, queue=waiting, chunk=chunk)
    tell_answered(predictor, given, output, numbered=task is None, alone=super_model is None, queue=waiting)


def _read(source: str, task: str | None, folder: str | None) -> list[str]:
    """The files that are read."""
    return [source] if task is None else files_of_task(task, folder) if folder is not None else []


def _columns(source: str, text: list[str] | str | None, id_column: str | None) -> list[str] | None:
    columns = input_columns(source, text)
    if id_column is not None and not columns:
        raise InputError(f"--id names a column of a table, and '{source}' is read line by line. Leave it out.")
    return columns


def _load(pair: PairOptions, chain: Chain | None, swift_model: str | None, super_model: str | None) -> LoadedCascade:
    if chain is not None:
        return ChainPredictor(chain, **ways_of(pair))
    if swift_model is None:
        raise InputError("Give the Swift, too: --swift_model.")
    if super_model == PERSON:
        raise InputError("A person is a stage of a chain: give a --chain of the Swift and a person (docs/chains.md).")
    return JointPredictor(swift_model, super_model, **vars(pair if super_model else _swift_alone(pair)))


def _ways(predictor: LoadedCascade, pair: PairOptions) -> list[Any]:
    """How the models run, as far as answers depend on it."""
    return [pair.dtype, pair.compile, pair.super_int8, pair.onnx, str(predictor.sampling)]


def _queue_file(
    predictor: LoadedCascade, queue: str | None, output: str, files: list[str | None], task: str | None
) -> str | None:
    """The file of what waits for a person; refuses one where nobody is asked, and a person where all answers count."""
    if person_of(predictor) is None:
        if queue is not None:
            raise InputError("--queue is for a chain whose last stage is a person. Leave it out, or add that stage.")
        return None
    if task is not None:
        raise InputError("A submission needs all answers, and a person gives none here. Give a chain without one.")
    if queue is None and output != "-" and not is_stream(output):
        queue = str(Path(output).with_suffix(f".{PERSON}.jsonl"))
    if queue is not None:
        check_output_file(queue, [*files, output], "--queue")
        note_replaced(queue)
    return queue


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
    predictor: LoadedCascade,
    source: str,
    columns: list[str] | None,
    opened: tuple[Any, Counter[str]],
    *,
    id_column: str | None,
    texts: bool,
    queue: str | None,
    chunk: int,
) -> Counter[str]:
    """Answer the inputs without an answer so far; return how many have one now, by the stage that gave it."""
    (file, before), task, person = opened, predictor.task, person_of(predictor)
    if done := before.total():
        sys.stderr.write(f"resuming after {counted(done, 'inputs')} answered before\n")
    ids: list[Any] | None = None if id_column is None else []
    inputs = read_inputs(source, columns, predictor.task.kind.generates, ids, id_column or "")
    # Inputs that have been read and not been answered yet.
    waiting: deque[Any] = deque()
    keeping = texts or queue is not None

    def kept() -> Iterator[Any]:
        for one in islice(inputs, done, None):
            waiting.append(one[0] if isinstance(one, tuple) and len(one) == 1 else one)
            yield one

    labels = {stage.name: Counter[Any]() for stage in predictor.stages}

    def fields(answer: Prediction) -> dict[str, Any]:
        values = {name: value for name, value in vars(answer).items() if name != "answer" or task.extract}
        if task.kind.has_classes and answer.answered_by != person:
            labels[answer.answered_by][answer.label] += 1
        if ids is not None:
            values["id"] = ids[answer.id]
        text = {"text": waiting.popleft()} if keeping else {}
        if put is not None and answer.answered_by == person:
            put({"id": values["id"], **text, "score": answer.score})
        return values | text if texts else values

    with queued(queue, before.get(person or "", 0)) as put:
        answers = predictor.map(kept() if keeping else islice(inputs, done, None), chunk, done)
        given = before + write_answers(answers, file, fields)
    if not given:
        raise InputError(EMPTY.format(source))
    if said := mostly_one(labels[predictor.stages[0].name], sum(labels.values(), Counter()), "all answers"):
        notice("one-label", f"{said}. `elang validate` shows how well each label is found.")
    return given


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
def _opened(output: str, fingerprint: Callable[[], dict[str, Any]]) -> Iterator[tuple[Any, Counter[str]]]:
    """Open the output, and yield it with the number of answers that it has already, by the stage that gave them."""
    if output == "-":
        with ended_at_sigterm():
            if isinstance(sys.stdout, TextIOWrapper):
                # JSON is UTF-8 in any locale.
                sys.stdout.reconfigure(encoding="utf-8")
            yield sys.stdout, Counter()
    elif is_stream(output):
        with ended_at_sigterm(), written_through(output) as raw, TextIOWrapper(raw, "utf-8", ESCAPED) as file:
            yield file, Counter()
    else:
        with resumed(output, fingerprint()) as opened:
            yield opened


@contextmanager
def _replies_kept(predictor: LoadedCascade, output: str) -> Iterator[None]:
    """Keep the replies of an API beside the output: a killed run has not written the answers of its last windows."""
    asked: dict[str, OpenAIBackend] = {}
    for place, stage in enumerate(predictor.stages):
        if isinstance(stage.backend, OpenAIBackend):
            # A name may have a slash.
            name = stage.name if re.fullmatch(r"[\w.-]+", stage.name) else f"stage-{place}"
            asked[name] = stage.backend
            if output != "-" and not is_stream(output):
                stage.backend.keep_answers(f"{output}.{name}.asked.jsonl")
    yield
    for backend in asked.values():
        tell(f"{backend.address}: {backend.spending.line()}")
        backend.forget_answers()


def _submit(
    predictor: LoadedCascade, task: str, folder: str | None, *, split: str, output: str, chunk: int
) -> Counter[str]:
    """Answer a benchmark's split, write the answers in the benchmark's format, and count them by stage."""
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
    return Counter(answer.answered_by for answer in answers)
