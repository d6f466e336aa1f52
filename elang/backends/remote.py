"""A Super that is served elsewhere: asked over HTTP as `elang serve` is, each example until it is answered."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from elang.errors import InputError, need

if TYPE_CHECKING:
    # `elang serve` checks its address and token before it loads torch.
    from elang.data.examples import Examples
    from elang.records.table import Records
    from elang.tasks.text_task import TextTask

TOKEN_VARIABLE = "ELANG_SERVE_TOKEN"
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
# What a server answers that may answer later.
_LATER = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Question:
    """An example as a server is asked: one text or several, candidates if it has any, and where it is from."""

    source: str
    id: int
    key: int
    text: str | list[str]
    choices: list[str] | None


def questions(examples: Examples) -> Iterator[Question]:
    """A question for each example, in order."""
    for row, (number, key) in enumerate(zip(examples.id.tolist(), examples.key.tolist(), strict=True)):
        texts = examples.texts[row]
        choices = None if examples.choices is None else list(examples.choices[row])
        yield Question(examples.source, number, key, texts[0] if len(texts) == 1 else list(texts), choices)


class RemoteBackend:
    """Asks a server for its answers.

    ``POST URL/super`` takes ``{"texts": [...]}``, in a task with candidates also ``choices``, and gives
    ``{"answers": [...]}`` in their order, with the places of texts that were cut in ``cut``. A token in the environment
    is sent as a bearer token.

    Args:
        url: The server's address, http://HOST:PORT.
        task: What it answers.
        batch: Texts in a request.
        concurrent: Requests at a time at most.
        tries: How often a request is made that fails for a reason which may pass (no connection, 429, 5xx), after
            waits of 0.5 s that double up to a minute, or as long as the server says.
        timeout: Seconds in which an answer has to come.

    Raises:
        InputError: If no request can be sent to the address, or the token is none.
    """

    def __init__(
        self, url: str, task: TextTask, batch: int = 16, concurrent: int = 8, tries: int = 8, timeout: float = 60.0
    ) -> None:
        need(f"The Super at '{url}'", "serve", "httpx")
        check_address(url, "The server's address")
        self.address, self.url, self.task = url, f"{url.rstrip('/')}/super", task
        self.batch, self.concurrent, self.tries, self.timeout = batch, concurrent, tries, timeout
        self.token = token_of_environment()

    def answer(self, examples: Examples) -> Records:
        """Ask for the answers to examples.

        Raises:
            InputError: If the server refuses a request, fails too often, or gives an answer that is none of the task's.
        """
        answers: dict[int, Any] = {}

        def keep(batch: list[Question], given: list[Any], cut: list[Any]) -> None:
            answers.update(zip([question.id for question in batch], given, strict=True))

        asyncio.run(self.ask(questions(examples), keep))
        return self.records(examples, [answers[number] for number in examples.id.tolist()])

    def read(self, answer: Any) -> float | str:
        """The prediction that is meant by an answer.

        Raises:
            InputError: If the answer is none of the task's.
        """
        prediction = self.task.kind.read_answer(answer, self.task)
        if prediction is None:
            wanted = self.task.kind.expects(self.task)
            raise InputError(f"The server at {self.address} answers {answer!r}, where {wanted} is needed.")
        return prediction

    def records(self, examples: Examples, answers: list[Any]) -> Records:
        """The answers to examples, in their order, as records."""
        import torch

        from elang.records.table import Records

        predictions: list[Any] = [self.read(answer) for answer in answers]
        if self.task.kind.generates:
            return Records(examples.id, torch.zeros_like(examples.id), key=examples.key, texts=predictions)
        prediction = torch.tensor(predictions, dtype=self.task.kind.answer_type)
        return Records(examples.id, prediction, key=examples.key)

    async def ask(
        self, asked: Iterator[Question], keep: Callable[[list[Question], list[Any], list[Any]], None]
    ) -> None:
        """Ask several questions at a time until there are none left.

        Args:
            asked: The questions; each batch of them is taken when it is sent.
            keep: Gets each batch with its answers and the places of texts that were too long, as they come.
        """
        import httpx

        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        async with httpx.AsyncClient(headers=headers, timeout=self.timeout) as client:

            async def work() -> None:
                while batch := list(islice(asked, self.batch)):
                    keep(batch, *await self._answers(client, batch))

            workers = [asyncio.ensure_future(work()) for _ in range(self.concurrent)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()

    async def _answers(self, client: Any, batch: list[Question]) -> tuple[list[Any], list[Any]]:
        """The answers to a batch, and the places of what was too long; see :meth:`ask`."""
        import httpx

        body: dict[str, Any] = {"texts": [question.text for question in batch]}
        if batch[0].choices is not None:
            body["choices"] = [question.choices for question in batch]
        failure, after = "", 0.0
        for number in range(self.tries):
            if number:
                # Not all of them at once again.
                wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (number - 1)) * random.uniform(0.5, 1)
                await asyncio.sleep(max(wait, after))
            after = 0.0
            try:
                response = await client.post(self.url, json=body)
            except httpx.RequestError as error:
                failure = f"{type(error).__name__}: {error}"
                continue
            if response.status_code not in _LATER:
                return self._read(response, batch)
            failure = f"{response.status_code}: {response.text[:200]}"
            after = _seconds(response.headers.get("retry-after", ""))
        raise InputError(
            f"The server at {self.url} did not answer in {self.tries} tries ({failure}). What `elang ask` was "
            "answered is kept: run the same command again to go on."
        )

    def _read(self, response: Any, batch: list[Question]) -> tuple[list[Any], list[Any]]:
        """The answers in a response to a batch, and the places of what was too long.

        Raises:
            InputError: If the server refuses the batch, or gives something else.
        """
        status, url = response.status_code, self.url
        if status in (401, 403):
            raise InputError(f"The server at {url} wants a token ({status}): set {TOKEN_VARIABLE}.")
        if status in (404, 405) or response.is_redirect:
            raise InputError(f"No Super answers at {url} ({status}). Give the server's address as --url.")
        if status != 200:
            raise InputError(
                f"The server at {url} refuses example {batch[0].id} of '{batch[0].source}' or one of the "
                f"{len(batch) - 1} asked with it ({status}: {response.text[:300]}). Mend it, or lower --batch."
            )
        try:
            given = response.json()
            answers, cut = given["answers"], given.get("cut")
            count = len(answers)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InputError(f"The server at {url} gives no JSON with 'answers': {response.text[:200]!r}.") from None
        if not isinstance(answers, list) or count != len(batch):
            raise InputError(f"The server at {url} gives {count} answers to {len(batch)} texts.")
        return answers, cut if isinstance(cut, list) else []


def check_address(address: str, option: str) -> None:
    """Refuse an address that no request can be sent to.

    Raises:
        InputError: Naming it.
    """
    import httpx

    try:
        url = httpx.URL(address)
        good = url.scheme in ("http", "https") and bool(url.host) and (url.port or 1) <= 65535
        good &= not (url.query or url.fragment)
    except httpx.InvalidURL:
        good = False
    if not good:
        raise InputError(f"{option} '{address}' is no address of a server; give http://HOST:PORT.")


def token_of_environment() -> str | None:
    """The token that requests must bring, if there is to be one.

    Raises:
        InputError: If it is one that no request can bring.
    """
    token = os.environ.get(TOKEN_VARIABLE)
    if token is None:
        return None
    if not token or not token.isascii() or not token.isprintable() or token != token.strip():
        raise InputError(
            f"{TOKEN_VARIABLE} is set, but it is empty or has characters that no request can bring: line breaks, "
            "spaces at its ends, or others than ASCII. Set another, or unset it to let everyone in."
        )
    return token


def _seconds(value: str) -> float:
    """Of a Retry-After; dates are not waited for."""
    try:
        return min(_LONGEST_WAIT, max(0.0, float(value)))
    except ValueError:
        return 0.0
