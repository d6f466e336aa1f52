"""Records of a Super that runs elsewhere: asked over HTTP as `elang serve` is, each example until it is answered."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import LightningDataModule

from elang.backends.remote import Question, RemoteBackend, check_address, questions
from elang.data.module import TextData
from elang.errors import InputError, need
from elang.records.table import Records, check_output, join_records, write_records
from elang.terminal import say


def ask(
    url: str,
    data: LightningDataModule,
    output: str = "records.parquet",
    concurrent: int = 8,
    batch: int = 16,
    tries: int = 8,
    timeout: float = 60.0,
) -> None:
    """Ask a Super that is served elsewhere for its answers to every file, and keep them as records.

    ``POST URL/super`` takes ``{"texts": [...]}`` and gives ``{"answers": [...]}``, in their order: `elang serve` does,
    and so may any other service. If the environment has ELANG_SERVE_TOKEN, it is sent as a bearer token. Answers are
    kept beside the output as they come (``<output>.asked.jsonl``), and what is there is not asked again by the same
    command; when all are there they become one parquet file.

    Args:
        url: The server's address, http://HOST:PORT.
        data: As for `elang score`.
        output: The parquet file to write.
        concurrent: Requests at a time at most.
        batch: Texts in a request.
        tries: How often a request is made that fails for a reason which may pass (no connection, 429, 5xx), after
            waits of 0.5 s that double up to a minute, or as long as the server says.
        timeout: Seconds in which an answer has to come.

    Raises:
        InputError: If an option is wrong, a request is refused or failed too often, or an answer is none of the task's.
    """
    need("elang ask", "serve", "httpx")
    check_address(url, "--url")
    for name, value in (("concurrent", concurrent), ("batch", batch), ("tries", tries), ("timeout", timeout)):
        if not value > 0:
            raise InputError(f"--{name} must be above 0, but it is {value}.")
    if not isinstance(data, TextData):
        raise InputError(f"--data {type(data).__name__} is none of elang's data modules.")
    check_output(output, "--output", map(str, data.files.values()))
    server = RemoteBackend(url, data.text_task, batch=batch, concurrent=concurrent, tries=tries, timeout=timeout)
    journal = _Journal(Path(f"{output}.asked.jsonl"), server, data)
    asked = len(journal.answers)
    if asked:
        say(f"{asked} answers are in '{journal.path}' and are not asked for again")
    try:
        with journal:
            asyncio.run(server.ask(journal.left(), journal.keep))
    except InputError as error:
        raise InputError(f"{error} The answers so far are kept: run the same command again to continue.") from error
    count = journal.finish(output)
    server.report_cut(len(journal.cut), count)
    say(f"{count} answers of {url}, {count - asked} of them asked for now, are in {output}")


class _Journal:
    """The answers so far, in a file to which they are added as they come.

    Args:
        path: The file.
        server: Who answers.
        data: What is asked.
    """

    def __init__(self, path: Path, server: RemoteBackend, data: TextData) -> None:
        self.path, self.server, self.data = path, server, data
        self.splits = [split for split in data.splits if split != "fold"]
        self.about = {
            "url": server.address,
            "task": json.loads(json.dumps(data.task_fields)),
            "label_names": data.label_names,
        }
        self.answers: dict[tuple[str, int], Any] = {}
        # Those of which only the beginning was read.
        self.cut: set[tuple[str, int]] = set()
        self.file: TextIO | None = None
        if path.is_file():
            self._read()

    def _read(self) -> None:
        keys: dict[tuple[str, int], int] = {}
        for split in self.splits:
            keys |= {(one.source, one.id): one.key for one in questions(self.data.examples(split))}
        # The last line may be cut.
        lines = self.path.read_bytes().split(b"\n")[:-1]
        try:
            about, *rows = map(json.loads, lines or [b"null"])
            found = [((row["split"], row["id"]), row["key"], row["answer"]) for row in rows]
            strange = any(keys.get(name) != key for name, key, _ in found)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"'{self.path}' is damaged ({error}). Delete it, and all is asked anew.") from error
        if lines and about != self.about:
            raise InputError(
                f"'{self.path}' has the answers of another server or to another task. Delete it, or take another "
                "--output."
            )
        if strange:
            raise InputError(f"'{self.path}' has answers to other data. Delete it, or take another --output.")
        self.answers = {name: answer for name, _, answer in found}
        for answer in self.answers.values():
            self.server.read(answer)
        self.cut = {(row["split"], row["id"]) for row in rows if "cut" in row}
        # What is behind the last whole line would spoil the next one.
        with self.path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines))

    def __enter__(self) -> "_Journal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a", encoding="utf-8")
        if self.file.tell() == 0:
            self._write([self.about])
        return self

    def __exit__(self, *_: object) -> None:
        assert self.file is not None
        self.file.close()

    def _write(self, rows: list[Any]) -> None:
        assert self.file is not None
        self.file.write("".join(json.dumps(row) + "\n" for row in rows))
        self.file.flush()
        os.fsync(self.file.fileno())

    def keep(self, batch: list[Question], answers: list[Any], cut: list[Any]) -> None:
        """Add the answers to a batch, and which of its inputs were too long."""
        rows: list[dict[str, Any]] = []
        for place, (question, answer) in enumerate(zip(batch, answers, strict=True)):
            self.server.read(answer)
            row = {"split": question.source, "id": question.id, "key": question.key, "answer": answer}
            rows.append(row | ({"cut": True} if place in cut else {}))
        self._write(rows)
        self.answers |= {(row["split"], row["id"]): row["answer"] for row in rows}
        self.cut |= {(row["split"], row["id"]) for row in rows if "cut" in row}

    def left(self) -> Iterator[Question]:
        """What is not answered yet."""
        for split in self.splits:
            for question in questions(self.data.examples(split)):
                if (question.source, question.id) not in self.answers:
                    yield question

    def finish(self, output: str) -> int:
        """Write all answers as records, and delete the journal."""
        parts: dict[str, list[Records]] = {}
        for split in self.splits:
            examples = self.data.examples(split)
            answers = [self.answers[examples.source, i] for i in examples.id.tolist()]
            parts.setdefault(examples.source, []).append(self.server.records(examples, answers))
        joined = {source: join_records(records) for source, records in parts.items()}
        write_records(output, joined, self.data.label_names, model=self.about["url"])
        self.path.unlink()
        return len(self.answers)
