"""`elang ask`: records of a Super that runs elsewhere and is asked over HTTP."""

import asyncio
import json
import os
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from elang.backends.loading.load import backend_of
from elang.backends.openai.backend import OpenAIBackend
from elang.backends.remote import Question, RemoteBackend, check_address, questions
from elang.cli.arguments import note_replaced
from elang.data.module import TextData
from elang.errors import InputError, counted, need
from elang.locks import output_lock
from elang.records.table import Records, check_output, join_records, write_records
from elang.terminal import Progress, say


def ask(
    url: str,
    data: LightningDataModule,
    output: str = "records.parquet",
    concurrent: int = 8,
    batch_size: int = 16,
    tries: int = 8,
    timeout: float = 60.0,
) -> None:
    """Ask a Super that is served elsewhere for its answers to every file, and keep them as records.

    ``POST URL/super`` takes ``{"texts": [...]}`` and returns ``{"answers": [...]}`` in their order, as `elang serve`
    does. If the environment has ELANG_SERVE_TOKEN, it is sent as a bearer token. Answers are saved as they come, in
    ``<output>.asked.jsonl``; the same command resumes from there, and turns all answers into one parquet file.

    A model behind an API (``openai:MODEL@URL``, or a YAML file with its settings, docs/super.md) is asked as by
    `elang score`; the options after ``output`` are then in the file.

    Args:
        url: The server's address, http://HOST:PORT, or that of a model behind an API.
        data: As for `elang score`.
        output: The parquet file to write.
        concurrent: Most requests at a time.
        batch_size: Texts in a request.
        tries: Attempts at a request if the failure may pass (no connection, 429, 5xx), after waits of 0.5 s that double
            up to a minute, or as long as the server says.
        timeout: Seconds to wait for an answer.
    """
    if not (of_api := backend_of(url) is OpenAIBackend):
        need("elang ask", "serve", "httpx")
        check_address(url, "--url")
    _check_options(of_api, concurrent=concurrent, batch_size=batch_size, tries=tries, timeout=timeout)
    if not isinstance(data, TextData):
        raise InputError(f"--data {type(data).__name__} is none of elang's data modules.")
    check_output(output, "--output", map(str, data.files.values()))
    note_replaced(output)
    if of_api:
        _ask_api(url, data, output)
        return
    ways: dict[str, Any] = {"concurrent": concurrent, "tries": tries, "timeout": timeout}
    server = RemoteBackend(url, data.text_task, batch=batch_size, **ways)
    # A second run would ask for the same answers, and both would write the journal.
    with output_lock(output):
        journal = _Journal(Path(f"{output}.asked.jsonl"), server, data)
        asked = len(journal.answers)
        if asked:
            say(f"'{journal.path}' has {counted(asked, 'answers')}, not asked for again")
        try:
            with Progress(sum(len(data.examples(split)) for split in journal.splits), "inputs", asked) as progress:
                journal.progress = progress
                asyncio.run(server.ask(journal.left(), journal.keep))
        except InputError as error:
            raise InputError(
                f"{error} The answers so far are kept: once this is fixed, run the same command again to continue."
            ) from error
        count = journal.finish(output)
    server.report_cut(len(journal.cut), count)
    say(f"{output} has {counted(count, 'answers')} of {url}, {count - asked} of them asked for now")


def _check_options(of_api: bool, **options: float) -> None:
    """Refuse options that are no positive numbers, and those that a model behind an API has in its settings."""
    for name, value in options.items():
        if not value > 0:
            raise InputError(f"--{name} must be above 0, but it is {value}.")
        if of_api and value != signature(ask).parameters[name].default:
            raise InputError(
                f"--{name} is for a server at http://. Set it in a YAML file for a model behind an API (docs/super.md)."
            )


def _ask_api(address: str, data: TextData, output: str) -> None:
    """Ask a model behind an API, whose backend keeps the replies itself until all are there."""
    backend = OpenAIBackend(address, data.text_task)
    backend.limit_new_tokens(data.max_target_length)
    backend.keep_answers(f"{output}.asked.jsonl")
    parts: dict[str, list[Records]] = {}
    with output_lock(output):
        for split in (split for split in data.splits if split != "fold"):
            examples = data.examples(split)
            parts.setdefault(examples.source, []).append(backend.answer(examples))
        records = {source: join_records(part) for source, part in parts.items()}
        write_records(output, records, data.label_names, **backend.describe())
        backend.forget_answers()
    count = sum(len(part.id) for part in records.values())
    say(f"{output} has {counted(count, 'answers')} of {backend.address}; {backend.spending.line()}")


class _Journal:
    """The server's answers so far to the data, in a file that grows as they come."""

    def __init__(self, path: Path, server: RemoteBackend, data: TextData) -> None:
        self.path, self.server, self.data = path, server, data
        self.splits = [split for split in data.splits if split != "fold"]
        task = json.loads(json.dumps(data.task_fields))
        self.header = {"url": server.address, "task": task, "label_names": data.label_names}
        self.answers: dict[tuple[str, int], Any] = {}
        # Examples of which the Super read only the beginning.
        self.cut: set[tuple[str, int]] = set()
        self.progress: Progress | None = None
        if path.is_file():
            self._read()
        else:
            self._write([])

    def _read(self) -> None:
        keys = {(q.source, q.id): q.key for split in self.splits for q in questions(self.data.examples(split))}
        # The last line may be incomplete.
        lines = self.path.read_bytes().split(b"\n")[:-1]
        try:
            header, *rows = map(json.loads, lines or [b"null"])
            other_data = any(keys.get((row["split"], row["id"])) != row["key"] for row in rows)
            self._add(rows)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"'{self.path}' is damaged ({error}). Delete it to ask everything again.") from error
        if lines and header != self.header:
            raise InputError(
                f"'{self.path}' has the answers of another server or to another task. Delete it, or take another "
                "--output."
            )
        if other_data:
            raise InputError(f"'{self.path}' has answers to other data. Delete it, or take another --output.")
        for answer in self.answers.values():
            self.server.read(answer)
        # An incomplete line would spoil the next one.
        with self.path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines))

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            header = [] if file.tell() else [self.header]
            file.write("".join(json.dumps(row) + "\n" for row in [*header, *rows]))
            file.flush()
            os.fsync(file.fileno())

    def _add(self, rows: list[dict[str, Any]]) -> None:
        self.answers |= {(row["split"], row["id"]): row["answer"] for row in rows}
        self.cut |= {(row["split"], row["id"]) for row in rows if "cut" in row}

    def keep(self, batch: list[Question], answers: list[Any], cut: list[Any]) -> None:
        """Add the answers to a batch; ``cut`` has the places of inputs that were too long."""
        rows: list[dict[str, Any]] = []
        for place, (question, answer) in enumerate(zip(batch, answers, strict=True)):
            self.server.read(answer)
            row = {"split": question.source, "id": question.id, "key": question.key, "answer": answer}
            rows.append(row | ({"cut": True} if place in cut else {}))
        self._write(rows)
        self._add(rows)
        if self.progress is not None:
            self.progress.add(len(rows))

    def left(self) -> Iterator[Question]:
        """The questions without an answer so far."""
        every = (question for split in self.splits for question in questions(self.data.examples(split)))
        return (question for question in every if (question.source, question.id) not in self.answers)

    def finish(self, output: str) -> int:
        """Write all answers as records, delete the journal, and return the number of answers."""
        parts: dict[str, list[Records]] = {}
        for split in self.splits:
            examples = self.data.examples(split)
            answers = [self.answers[examples.source, i] for i in examples.id.tolist()]
            parts.setdefault(examples.source, []).append(self.server.records(examples, answers))
        records = {source: join_records(part) for source, part in parts.items()}
        write_records(output, records, self.data.label_names, model=self.server.address)
        self.path.unlink()
        return len(self.answers)
