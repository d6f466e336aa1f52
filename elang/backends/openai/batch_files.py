"""Requests that are sent as files (``/batches``): cheaper at some vendors, and answered within a day."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from elang.backends.openai.journal import Journal
from elang.backends.openai.spending import output_of
from elang.backends.retrying import RETRIED, GivenUpError, TemporaryError, pause_of, persistently
from elang.errors import InputError, counted
from elang.terminal import tell

if TYPE_CHECKING:
    import httpx

    from elang.backends.openai.client import Client

# What OpenAI takes in a file: 50,000 requests and 200 MB.
_MOST, _BYTES = 20_000, 100_000_000
_FIRST_LOOK, _LONGEST_LOOK = 5.0, 60.0
# Before the id of a file whose batch is about to begin.
_FILE = "file:"
_UNDER_WAY = ("validating", "in_progress", "finalizing", "cancelling")


class BatchFiles:
    """Sends the requests of a client as files, and waits for the replies.

    The id of a batch is in the journal before it is waited for: a run that was killed goes on to wait for it.
    """

    def __init__(self, client: "Client") -> None:
        self.client, self.settings = client, client.settings
        # What is held against the budget for the requests that are under way.
        self._held: dict[str, float] = {}

    async def ask(self, left: dict[str, dict[str, Any]], journal: Journal) -> None:
        """Ask for all replies: what fails for a reason that may pass goes into another file.

        Raises:
            InputError: If the server has no batches, refuses one, or does not answer in as many files as there are
                tries; or if the budget may not be enough.
        """
        options: dict[str, Any] = {"headers": self.settings.headers_now(), "timeout": self.settings.timeout}
        async with self.client.opened(**options) as http:
            for digest in {digest for digests in journal.batches.values() for digest in digests} & left.keys():
                if digest not in journal:
                    self._hold(digest, left[digest], checked=False)
            for _ in range(self.settings.tries):
                under_way = {digest for digests in journal.batches.values() for digest in digests}
                new = iter(
                    {
                        digest: left[digest] for digest in left if digest not in journal and digest not in under_way
                    }.items()
                )
                while part := dict(self._some(new)):
                    await self._send(http, part, journal)
                for batch in list(journal.batches):
                    await self._collect(http, batch, left, journal)
                # What was held is counted by now, or was not asked.
                self.client.spending.release()
                self._held.clear()
                if all(digest in journal for digest in left):
                    return
        missing = sum(digest not in journal for digest in left)
        raise InputError(
            f"{self.settings.address} has not answered {counted(missing, 'requests')} in {self.settings.tries} batches."
        )

    def _some(self, requests: Any) -> Any:
        """Requests for one file."""
        size = 0
        for digest, body in islice(requests, _MOST):
            size += len(json.dumps(body))
            yield digest, body
            if size > _BYTES:
                return

    async def _send(self, http: "httpx.AsyncClient", part: dict[str, dict[str, Any]], journal: Journal) -> None:
        """Send a file, if the budget is enough for all of it."""
        for digest, body in part.items():
            self._hold(digest, body)
        where = self.client.questions.url.removeprefix(self.settings.url)
        lines = [
            json.dumps({"custom_id": digest, "method": "POST", "url": f"/v1{where}", "body": body})
            for digest, body in part.items()
        ]
        file = {"file": ("requests.jsonl", "\n".join(lines).encode(), "application/jsonl")}
        sent = await self._call(http, "POST", "/files", files=file, data={"purpose": "batch"})
        # A run that is killed between here and the reply would not know that its batch has begun.
        journal.keep_batch(f"{_FILE}{sent.get('id')}", list(part))
        await journal.synced()
        batch = await self._begin(http, f"{_FILE}{sent.get('id')}", journal)
        tell(f"{counted(len(part), 'requests')} are sent as the batch {batch}")

    def _hold(self, digest: str, body: dict[str, Any], checked: bool = True) -> None:
        """Hold the most that a request may cost."""
        spending, size = self.client.spending, len(json.dumps(body))
        estimate = spending.estimate(size, output_of(body, self.client.questions.max_tokens))
        self._held[digest] = spending.hold(estimate, checked)

    async def _begin(self, http: "httpx.AsyncClient", file: str, journal: Journal, resumed: bool = False) -> str:
        """Begin the batch of a file, and return its id.

        If the run is ``resumed``, and after an attempt that broke off, it looks first whether the server has begun it.
        """
        where = self.client.questions.url.removeprefix(self.settings.url)
        about = {"input_file_id": file.removeprefix(_FILE), "endpoint": f"/v1{where}", "completion_window": "24h"}
        attempts = itertools.count(int(resumed))

        async def attempt() -> Any:
            if next(attempts):
                begun: Any = []
                # Not every server lists its batches.
                with suppress(InputError):
                    begun = (await self._once(http, "GET", "/batches?limit=100")).get("data")
                for batch in begun if isinstance(begun, list) else []:
                    if isinstance(batch, dict) and batch.get("input_file_id") == about["input_file_id"]:
                        return batch
            return await self._once(http, "POST", "/batches", json=about)

        batch = str((await self._persistently(attempt)).get("id"))
        journal.keep_batch(batch, journal.batches[file])
        journal.keep_batch(file, [])
        await journal.synced()
        return batch

    async def _collect(
        self, http: "httpx.AsyncClient", batch: str, left: dict[str, dict[str, Any]], journal: Journal
    ) -> None:
        """Wait for a batch, and keep its replies."""
        if batch.startswith(_FILE):
            batch = await self._begin(http, batch, journal, resumed=True)
        seconds, status, told = _FIRST_LOOK, dict[str, Any](), ""
        while not status or status.get("status") in _UNDER_WAY:
            if status:
                await asyncio.sleep(seconds)
                seconds = min(2 * seconds, _LONGEST_LOOK)
            status = await self._call(http, "GET", f"/batches/{batch}")
            if (done := _done_of(status)) and done != told:
                told = done
                tell(f"the batch {batch}: {done}; {self.client.spending.line()}")
        for file in (status.get("output_file_id"), status.get("error_file_id")):
            text = (await self._call(http, "GET", f"/files/{file}/content", raw=True)) if file else ""
            for line in text.splitlines():
                self._keep(line, left, journal)
        await journal.synced()
        if status.get("status") == "failed":
            journal.keep_batch(batch, [])
            errors = json.dumps(status.get("errors"))[:300]
            raise InputError(f"{self.settings.address} refuses the batch {batch}: {errors}. Correct the settings.")
        journal.keep_batch(batch, [])

    def _keep(self, line: str, left: dict[str, dict[str, Any]], journal: Journal) -> None:
        """Keep the reply of a line; a line of another run, or one that comes twice, is ignored."""
        import httpx

        try:
            row = json.loads(line)
            digest, answer = row["custom_id"], row.get("response") or {}
            # A request that the server did not get to has an error in place of a response.
            body = answer["body"] if "body" in answer else {"error": row.get("error")}
            response = httpx.Response(int(answer.get("status_code", 500)), content=json.dumps(body).encode())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self.client.count(TemporaryError("a line of a batch is no reply"))
            return
        if digest not in self._held or digest in journal:
            return
        try:
            reply = self.client.read(response)
        except TemporaryError as error:
            self.client.count(error)
            return
        lost = reply.usage is None
        self.client.spending.unreported += lost
        self.client.spending.settle(self._held[digest], reply.usage, len(json.dumps(left[digest])), lost=lost)
        journal.keep(digest, reply)

    async def _call(self, http: "httpx.AsyncClient", method: str, path: str, **more: Any) -> Any:
        """What a call returns, after as many attempts as it takes."""
        return await self._persistently(lambda: self._once(http, method, path, **more))

    async def _persistently(self, attempt: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await persistently(attempt, self.settings.tries, failed=self.client.count)
        except GivenUpError as error:
            raise InputError(f"{self.settings.address} did not answer {error}. Check that it is running.") from None

    async def _once(self, http: "httpx.AsyncClient", method: str, path: str, raw: bool = False, **more: Any) -> Any:
        """The object, or the raw text, that a call returns."""
        import httpx

        try:
            response = await http.request(method, self.settings.url + path, **more)
        except httpx.RequestError as error:
            raise TemporaryError(f"{type(error).__name__}: {error}") from None
        if response.status_code in RETRIED:
            raise TemporaryError(str(response.status_code), pause_of(response.headers))
        if response.status_code != 200:
            # It raises for a status that is not about one input.
            self.client.read(response)
            raise InputError(f"{self.settings.url}{path} answers with {response.status_code}.")
        text = self.client.without_key(response)
        if raw:
            return text
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise TemporaryError(f"{path} is no JSON object")
        return value


def _done_of(status: dict[str, Any]) -> str:
    """How far a batch is, if its server says so."""
    counts = status.get("request_counts")
    done, total = (counts.get("completed"), counts.get("total")) if isinstance(counts, dict) else (None, None)
    return f"{done:,} of {counted(total, 'requests')}" if isinstance(done, int) and isinstance(total, int) else ""
