"""Records of a Super that runs elsewhere: asked over HTTP as `elang serve` is, each example until it is answered."""

import asyncio
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.pytorch import LightningDataModule

from elang.cli.serve import TOKEN_VARIABLE, check_address, token_of_environment
from elang.data.module import TextData
from elang.data.slices import source_of
from elang.errors import InputError, need
from elang.notices import notice
from elang.records.table import Records, check_output, join_records, write_records
from elang.terminal import say

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
# What a server answers that may answer later.
_LATER = (408, 425, 429, 500, 502, 503, 504)


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
    journal = _Journal(Path(f"{output}.asked.jsonl"), url, data)
    token = token_of_environment()
    asked = len(journal.answers)
    if asked:
        say(f"{asked} answers are in '{journal.path}' and are not asked for again")
    with journal:
        asyncio.run(_ask_all(url.rstrip("/"), token, journal, concurrent, batch, tries, timeout))
    count = journal.finish(output)
    if cut := len(journal.cut):
        notice("cut-inputs", f"{cut} of {count} inputs were too long for the Super at {url}: the rest was not read.")
    say(f"{count} answers of {url}, {count - asked} of them asked for now, are in {output}")


class _Journal:
    """The answers so far, in a file to which they are added as they come.

    Args:
        path: The file.
        url: Of who answers.
        data: What is asked.
    """

    def __init__(self, path: Path, url: str, data: TextData) -> None:
        self.path, self.data = path, data
        self.problem = data.text_task.problem
        self.place = {name: i for i, name in enumerate(data.label_names)}
        self.splits = [split for split in data.splits if split != "fold"]
        self.about = {"url": url, "task": json.loads(json.dumps(data.task_fields)), "label_names": data.label_names}
        self.answers: dict[tuple[str, int], Any] = {}
        # Those of which only the beginning was read.
        self.cut: set[tuple[str, int]] = set()
        self.file: TextIO | None = None
        if path.is_file():
            self._read()

    def _read(self) -> None:
        keys: dict[tuple[str, int], int] = {}
        for split in self.splits:
            examples = self.data.examples(split)
            ids = [(source_of(split), i) for i in examples.id.tolist()]
            keys |= dict(zip(ids, examples.key.tolist(), strict=True))
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
        self.answers = {name: self.checked(answer) for name, _, answer in found}
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

    def checked(self, answer: Any) -> Any:
        """An answer that is one of the task's.

        Raises:
            InputError: Of any other.
        """
        number = isinstance(answer, (int, float)) and not isinstance(answer, bool)
        if self.problem == "regression":
            good = number and abs(answer) < float("inf")
        else:
            good = isinstance(answer, str) and (self.problem == "sequence" or answer in self.place)
        if not good:
            known = "a number" if self.problem == "regression" else "a text" if self.problem == "sequence" else None
            wanted = known or f"one of {list(self.place)[:8]}"
            raise InputError(f"The server at {self.about['url']} answers {answer!r}, where {wanted} is needed.")
        return answer

    def keep(self, batch: list[dict[str, Any]], answers: list[Any], cut: list[Any]) -> None:
        """Add the answers to a batch, and which of its inputs were too long."""
        rows = [
            {"split": one["split"], "id": one["id"], "key": one["key"], "answer": self.checked(answer)}
            | ({"cut": True} if place in cut else {})
            for place, (one, answer) in enumerate(zip(batch, answers, strict=True))
        ]
        self._write(rows)
        self.answers |= {(row["split"], row["id"]): row["answer"] for row in rows}
        self.cut |= {(row["split"], row["id"]) for row in rows if "cut" in row}

    def left(self, size: int) -> Iterator[list[dict[str, Any]]]:
        """What is not answered yet, so many at a time."""
        batch: list[dict[str, Any]] = []
        for split in self.splits:
            examples, source = self.data.examples(split), source_of(split)
            for row, (i, key) in enumerate(zip(examples.id.tolist(), examples.key.tolist(), strict=True)):
                if (source, i) in self.answers:
                    continue
                text = examples.texts[row]
                one = {"split": source, "id": i, "key": key, "text": text[0] if len(text) == 1 else list(text)}
                if examples.choices is not None:
                    one["choices"] = list(examples.choices[row])
                batch.append(one)
                if len(batch) == size:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def finish(self, output: str) -> int:
        """Write all answers as records, and delete the journal."""
        found: dict[str, list[Records]] = {}
        for split in self.splits:
            examples, source = self.data.examples(split), source_of(split)
            answers = [self.answers[source, i] for i in examples.id.tolist()]
            prediction, texts = torch.zeros_like(examples.id), None
            if self.problem == "regression":
                prediction = torch.tensor(answers, dtype=torch.float64)
            elif self.problem == "sequence":
                texts = answers
            else:
                prediction = torch.tensor([self.place[answer] for answer in answers])
            found.setdefault(source, []).append(Records(examples.id, prediction, key=examples.key, texts=texts))
        joined = {source: join_records(own) for source, own in found.items()}
        write_records(output, joined, self.data.label_names, model=self.about["url"])
        self.path.unlink()
        return len(self.answers)


async def _ask_all(
    url: str, token: str | None, journal: _Journal, concurrent: int, size: int, tries: int, timeout: float
) -> None:
    """Ask for all that is left, so many requests at a time."""
    import httpx

    headers = {"authorization": f"Bearer {token}"} if token else {}
    batches = journal.left(size)
    async with httpx.AsyncClient(headers=headers, timeout=timeout) as client:

        async def work() -> None:
            for batch in batches:
                journal.keep(batch, *await _answers(client, f"{url}/super", batch, tries))

        workers = [asyncio.ensure_future(work()) for _ in range(concurrent)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()


async def _answers(client: Any, url: str, batch: list[dict[str, Any]], tries: int) -> tuple[list[Any], list[Any]]:
    """The answers to a batch, and the places of what was too long.

    Raises:
        InputError: If the server refuses it, or fails so many times.
    """
    import httpx

    question = {"texts": [one["text"] for one in batch]}
    if "choices" in batch[0]:
        question["choices"] = [one["choices"] for one in batch]
    failed, after = "", 0.0
    for number in range(tries):
        if number:
            # Not all of them at once again.
            wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (number - 1)) * random.uniform(0.5, 1)
            await asyncio.sleep(max(wait, after))
        after = 0.0
        try:
            found = await client.post(url, json=question)
        except httpx.RequestError as error:
            failed = f"{type(error).__name__}: {error}"
            continue
        if found.status_code in _LATER:
            failed = f"{found.status_code}: {found.text[:200]}"
            after = _seconds(found.headers.get("retry-after", ""))
            continue
        if found.status_code in (401, 403):
            raise InputError(f"The server at {url} wants a token ({found.status_code}): set {TOKEN_VARIABLE}.")
        if found.status_code in (404, 405) or found.is_redirect:
            raise InputError(f"No Super answers at {url} ({found.status_code}). Give the server's address as --url.")
        if found.status_code != 200:
            raise InputError(
                f"The server at {url} refuses example {batch[0]['id']} of '{batch[0]['split']}' or one of the "
                f"{len(batch) - 1} asked with it ({found.status_code}: {found.text[:300]}). Mend it, or lower --batch."
            )
        try:
            said = found.json()
            answers, cut = said["answers"], said.get("cut")
            count = len(answers)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InputError(f"The server at {url} gives no JSON with 'answers': {found.text[:200]!r}.") from None
        if not isinstance(answers, list) or count != len(batch):
            raise InputError(f"The server at {url} gives {count} answers to {len(batch)} texts.")
        return answers, cut if isinstance(cut, list) else []
    raise InputError(
        f"The server at {url} did not answer in {tries} tries ({failed}). What it has answered is kept: run the same "
        "command again to go on."
    )


def _seconds(value: str) -> float:
    """Of a Retry-After; dates are not waited for."""
    try:
        return min(_LONGEST_WAIT, max(0.0, float(value)))
    except ValueError:
        return 0.0
