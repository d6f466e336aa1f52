"""Requests that are sent as files (``/batches``): cheaper at some vendors, and answered within a day."""

import asyncio
import json
from itertools import islice
from typing import TYPE_CHECKING, Any

from elang.backends.openai.journal import Journal
from elang.backends.retrying import RETRIED, GivenUpError, TemporaryError, pause_of, persistently
from elang.errors import InputError, counted
from elang.terminal import tell

if TYPE_CHECKING:
    import httpx

    from elang.backends.openai.client import Client

# What OpenAI takes in a file: 50,000 requests and 200 MB.
_MOST, _BYTES = 20_000, 100_000_000
_FIRST_LOOK, _LONGEST_LOOK = 5.0, 60.0
_UNDER_WAY = ("validating", "in_progress", "finalizing", "cancelling")


class BatchFiles:
    """Sends the requests of a client as files, and waits for the replies.

    The id of a batch is in the journal before it is waited for: a run that was killed goes on to wait for it.
    """

    def __init__(self, client: "Client") -> None:
        self.client, self.settings = client, client.settings

    async def ask(self, left: dict[str, dict[str, Any]], journal: Journal) -> None:
        """Ask for all replies: what fails for a reason that may pass goes into another file.

        Raises:
            InputError: If the server has no batches, refuses one, or does not answer in as many files as there are
                tries; or if the budget may not be enough.
        """
        options: dict[str, Any] = {"headers": self.settings.headers_now(), "timeout": self.settings.timeout}
        async with self.client.opened(**options) as http:
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
        spending, questions = self.client.spending, self.client.questions
        for body in part.values():
            estimate = spending.estimate(len(json.dumps(body)), questions.max_tokens)
            spending.hold(estimate)
        where = questions.url.removeprefix(self.settings.url)
        lines = [
            json.dumps({"custom_id": digest, "method": "POST", "url": f"/v1{where}", "body": body})
            for digest, body in part.items()
        ]
        file = {"file": ("requests.jsonl", "\n".join(lines).encode(), "application/jsonl")}
        sent = await self._call(http, "POST", "/files", files=file, data={"purpose": "batch"})
        about = {"input_file_id": sent.get("id"), "endpoint": f"/v1{where}", "completion_window": "24h"}
        batch = await self._call(http, "POST", "/batches", json=about)
        journal.keep_batch(str(batch.get("id")), list(part))
        await journal.synced()
        tell(f"{counted(len(part), 'requests')} are sent as the batch {batch.get('id')}")

    async def _collect(
        self, http: "httpx.AsyncClient", batch: str, left: dict[str, dict[str, Any]], journal: Journal
    ) -> None:
        """Wait for a batch, and keep its replies."""
        seconds, status = _FIRST_LOOK, dict[str, Any]()
        while not status or status.get("status") in _UNDER_WAY:
            if status:
                await asyncio.sleep(seconds)
                seconds = min(2 * seconds, _LONGEST_LOOK)
            status = await self._call(http, "GET", f"/batches/{batch}")
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
            response = httpx.Response(
                int(answer.get("status_code", 500)), content=json.dumps(answer.get("body")).encode()
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self.client.count(TemporaryError("a line of a batch is no reply"))
            return
        if digest not in left or digest in journal:
            return
        try:
            reply = self.client.read(response)
        except TemporaryError as error:
            self.client.count(error)
            return
        self.client.spending.add(reply.usage, len(json.dumps(left[digest])))
        journal.keep(digest, reply)

    async def _call(self, http: "httpx.AsyncClient", method: str, path: str, raw: bool = False, **more: Any) -> Any:
        """The object, or the raw text, that a call returns."""
        import httpx

        async def attempt() -> Any:
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

        try:
            return await persistently(attempt, self.settings.tries, failed=self.client.count)
        except GivenUpError as error:
            raise InputError(f"{self.settings.address} did not answer {error}. Check that it is running.") from None
