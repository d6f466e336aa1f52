"""A Super that runs elsewhere: asked over HTTP with the API of `elang serve`, with retries."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from elang.backends.retrying import RETRIED, GivenUpError, TemporaryError, pause_of, persistently, run_async
from elang.errors import InputError, counted, need
from elang.notices import notice

if TYPE_CHECKING:
    # `elang serve` checks its address and token before it loads torch.
    from elang.data.examples import Examples
    from elang.records.table import Records
    from elang.tasks.text_task import TextTask

TOKEN_VARIABLE = "ELANG_SERVE_TOKEN"


class Question(NamedTuple):
    """An example as it is sent to a server: its text or texts, its candidates if it has any, and its identity."""

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
        text = texts[0] if len(texts) == 1 else list(texts)
        yield Question(examples.source, number, key, text=text, choices=choices)


class RemoteBackend:
    """Gets its answers from a server.

    ``POST URL/super`` takes ``{"texts": [...]}``, in a task with candidates also ``choices``, and returns
    ``{"answers": [...]}`` in their order; ``cut`` may list the places of texts that were too long. A token in the
    environment is sent as a bearer token.

    Args:
        url: The server's address, http://HOST:PORT.
        task: The task.
        batch: Texts in a request.
        concurrent: The most requests at a time.
        tries: How often a request is sent that fails for a temporary reason (no connection, 429, 5xx). The waits
            between them double from 0.5 s up to a minute, or follow the server's Retry-After.
        timeout: Seconds to wait for an answer.
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
        """Ask for the answers to examples; a notice counts the texts that were too long."""
        answers: dict[int, Any] = {}
        too_long: set[int] = set()

        def keep(batch: list[Question], batch_answers: list[Any], cut: list[Any]) -> None:
            answers.update(zip([question.id for question in batch], batch_answers, strict=True))
            too_long.update(question.id for place, question in enumerate(batch) if place in cut)

        run_async(self.ask(questions(examples), keep))
        self.report_cut(len(too_long), len(answers))
        return self.records(examples, [answers[number] for number in examples.id.tolist()])

    def report_cut(self, count: int, total: int) -> None:
        """Give a notice about inputs that were too long, if there are any."""
        if count:
            too_long = f"{count} of {total} inputs were too long for the Super at {self.address}"
            notice("cut-inputs", f"{too_long}: the rest was not read.")

    def read(self, answer: Any) -> float | str:
        """The prediction that an answer means. Raises InputError if the answer is invalid for the task."""
        prediction = self.task.kind.read_answer(answer, self.task)
        if prediction is None:
            expected = self.task.kind.expects(self.task)
            raise InputError(f"The server at {self.address} answers {answer!r}, where {expected} is needed.")
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
        self, pending: Iterator[Question], keep: Callable[[list[Question], list[Any], list[Any]], None]
    ) -> None:
        """Ask all questions, several batches at a time; each batch is taken when it is sent.

        ``keep`` gets each batch, its answers and the places of texts that were too long, as they arrive.
        """
        import httpx

        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        async with httpx.AsyncClient(headers=headers, timeout=self.timeout) as client:

            async def work() -> None:
                while batch := list(islice(pending, self.batch)):
                    keep(batch, *await self._answers(client, batch))

            workers = [asyncio.ensure_future(work()) for _ in range(self.concurrent)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()

    async def _answers(self, client: Any, batch: list[Question]) -> tuple[list[Any], list[Any]]:
        """The answers to a batch, and the places of texts that were too long."""
        import httpx

        body: dict[str, Any] = {"texts": [question.text for question in batch]}
        if batch[0].choices is not None:
            body["choices"] = [question.choices for question in batch]

        async def attempt() -> Any:
            try:
                response = await client.post(self.url, json=body)
            except httpx.RequestError as error:
                raise TemporaryError(f"{type(error).__name__}: {error}") from error
            if response.status_code in RETRIED:
                raise TemporaryError(f"{response.status_code}: {response.text[:200]}", pause_of(response.headers))
            return response

        try:
            return self._read(await persistently(attempt, self.tries), batch)
        except GivenUpError as error:
            raise InputError(f"The server at {self.url} did not answer {error}. Check that it is running.") from error

    def _read(self, response: Any, batch: list[Question]) -> tuple[list[Any], list[Any]]:
        """Parse the response to a batch."""
        status, url = response.status_code, self.url
        if status in (401, 403):
            raise InputError(f"The server at {url} wants a token ({status}): set {TOKEN_VARIABLE}.")
        if status in (404, 405) or response.is_redirect:
            raise InputError(f"No Super answers at {url} ({status}). Check the server's address.")
        if status != 200:
            raise InputError(
                f"The server at {url} refuses example {batch[0].id} of '{batch[0].source}' or one of the "
                f"{len(batch) - 1} sent with it ({status}: {response.text[:300]}). Fix the example, or send smaller "
                "batches with `elang ask --batch_size`."
            )
        try:
            reply = response.json()
            answers, cut = reply["answers"], reply.get("cut")
            count = len(answers)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise InputError(f"The server at {url} returns no JSON with 'answers': {response.text[:200]!r}.") from None
        if not isinstance(answers, list) or count != len(batch):
            raise InputError(
                f"The server at {url} returns {counted(count, 'answers')} to {counted(len(batch), 'texts')}."
            )
        return answers, cut if isinstance(cut, list) else []


def check_address(address: str, option: str) -> None:
    """Refuse an invalid address of a server."""
    import httpx

    try:
        url = httpx.URL(address)
        valid = url.scheme in ("http", "https") and bool(url.host) and (url.port or 1) <= 65535
        valid &= not (url.query or url.fragment)
    except httpx.InvalidURL:
        valid = False
    if not valid:
        raise InputError(f"{option} '{address}' is not the address of a server; give http://HOST:PORT.")


def token_of_environment() -> str | None:
    """The token that requests must carry, if there is one. Raises InputError if no request could carry it."""
    token = os.environ.get(TOKEN_VARIABLE)
    if token is None:
        return None
    if not token or not token.isascii() or not token.isprintable() or token != token.strip():
        raise InputError(
            f"{TOKEN_VARIABLE} is set, but it is empty or not fit for an HTTP header: it has line breaks, characters "
            "outside ASCII, or spaces at its ends. Set another one, or unset it to let everyone in."
        )
    return token
