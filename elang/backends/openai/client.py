"""Sends requests to an API, many at a time, until each has its reply; what arrives is kept at once."""

import asyncio
import json
from collections.abc import AsyncIterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from elang.backends.openai.batch_files import BatchFiles
from elang.backends.openai.journal import Journal
from elang.backends.openai.questions import Questions
from elang.backends.openai.redaction import spelled
from elang.backends.openai.replies import Reply
from elang.backends.openai.settings import Usage
from elang.backends.openai.spending import Pace, Spending, SpendingProgress, output_of
from elang.backends.retrying import RETRIED, GivenUpError, TemporaryError, pause_of, persistently, run_async
from elang.errors import InputError, counted, first_line
from elang.terminal import Progress

if TYPE_CHECKING:
    import httpx

_SHOWN = 300
_POLL = 0.02
_LONGEST = 16 << 20
NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
"""Codes of errors, also of 429 and of 400, after which the key's owner must pay first."""
_TOO_LONG = ("context_length_exceeded", "string_above_max_length")
_TOO_LONG_WORDS = ("context length", "too many tokens", "context size", "context window")
TOO_LONG, FILTERED = "too_long", "content_filter"
"""Reasons of replies in place of which the server sent an error about this input alone, which costs nothing."""
_NOTHING = Usage(0, 0, 0)


class _StoppedError(Exception):
    """Another request has failed for good."""


@dataclass
class _Request:
    """A request of a run; ``answered`` counts the responses to it that were no replies."""

    body: dict[str, Any]
    content: bytes
    name: str
    answered: int = 0

    @property
    def headers(self) -> dict[str, str]:
        """A server that knows the key has done this already, and sends what it sent then.

        An attempt that broke off, or that a killed run made, has the same key. After a response that was no reply, the
        same one would be of no use.
        """
        return {"content-type": "application/json", "idempotency-key": f"elang-{self.name}-{self.answered}"}


class Client:
    """Asks for replies to the requests of some questions, and counts what they took and what went wrong.

    ``failures`` counts the attempts that failed by their reasons.
    """

    def __init__(self, questions: Questions, spending: Spending, pace: Pace) -> None:
        self.questions, self.settings, self.spending, self.pace = questions, questions.settings, spending, pace
        self.failures: dict[str, int] = {}

    def ask(self, requests: dict[str, dict[str, Any]], journal: Journal) -> None:
        """Ask for those of the requests, by their hashes, that the journal has no reply to.

        If one fails for good no more are sent, and those under way are still waited for and kept.

        Raises:
            InputError: If the server refuses the key, the model or a request, does not answer, or the budget ends.
        """
        left = {digest: body for digest, body in requests.items() if digest not in journal}
        if left and self.settings.batch:
            run_async(BatchFiles(self).ask(left, journal))
        elif left:
            run_async(self._ask(left, journal, done=len(requests) - len(left)))

    @staticmethod
    def opened(**options: Any) -> "httpx.AsyncClient":
        """An HTTP client; an InputError if the environment names a proxy that cannot be used."""
        import httpx

        try:
            return httpx.AsyncClient(**options)
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise InputError(
                f"The proxy that the environment names cannot be used ({first_line(error)}). Correct HTTP_PROXY, "
                "HTTPS_PROXY or ALL_PROXY, or name the host in NO_PROXY."
            ) from error

    async def _ask(self, left: dict[str, dict[str, Any]], journal: Journal, done: int) -> None:
        import httpx

        settings, stopped = self.settings, asyncio.Event()

        async def wait(seconds: float) -> None:
            try:
                await asyncio.wait_for(stopped.wait(), seconds)
            except asyncio.TimeoutError:
                return
            raise _StoppedError

        self._wait = wait
        pending, errors = iter(left.items()), list[Exception]()
        limits = httpx.Limits(max_connections=settings.concurrent, max_keepalive_connections=settings.concurrent)
        options: dict[str, Any] = {"headers": settings.headers_now(), "timeout": settings.timeout, "limits": limits}
        with SpendingProgress(self.spending, len(left) + done, done) as progress:
            async with self.opened(**options) as http:
                workers = [
                    self._work(http, pending, journal, progress, errors, stopped) for _ in range(settings.concurrent)
                ]
                await asyncio.gather(*workers)
        if errors:
            raise errors[0]

    async def _work(
        self,
        http: "httpx.AsyncClient",
        pending: Iterator[tuple[str, dict[str, Any]]],
        journal: Journal,
        progress: Progress,
        errors: list[Exception],
        stopped: asyncio.Event,
    ) -> None:
        """Send one request after the other until none is pending, or one has failed."""
        for digest, body in pending:
            try:
                request = _Request(body, json.dumps(body).encode(), f"{journal.run}-{digest}")
                reply = await self._reply(http, request)
                journal.keep(digest, reply)
                await journal.synced()
            except _StoppedError:
                return
            except Exception as error:
                errors.append(error)
                stopped.set()
                return
            progress.add()
            if stopped.is_set():
                return

    async def _reply(self, http: "httpx.AsyncClient", request: _Request) -> Reply:
        try:
            return await persistently(
                lambda: self._attempt(http, request),
                self.settings.tries,
                self.settings.deadline,
                failed=self.count,
                wait=self._wait,
            )
        except GivenUpError as error:
            remedy = "Check that it is running, and its limits."
            raise InputError(f"{self.settings.address} did not answer {error}. {remedy}") from None

    def count(self, error: TemporaryError) -> None:
        """Count a failed attempt; a pause that the server asks for is one of all requests."""
        kind = error.reason.partition(":")[0]
        self.failures[kind] = self.failures.get(kind, 0) + 1
        if error.pause:
            self.pace.pause(error.pause)

    async def _attempt(self, http: "httpx.AsyncClient", request: _Request) -> Reply:
        """Send a request once."""
        import httpx

        spending, content = self.spending, request.content
        # What is sent beside the texts is small, and the first reply corrects the ratio.
        estimate = spending.estimate(len(content), output_of(request.body, self.questions.max_tokens))
        await self.pace.turn(estimate.input + estimate.output, self._wait)
        while not spending.fits(estimate) and spending.under_way:
            # What is held for others is more than they take.
            await self._wait(_POLL)
        held, lost, usage = spending.hold(estimate), True, None
        try:
            response = await asyncio.wait_for(self._post(http, request), self.settings.timeout)
            lost = response.status_code == 200
            request.answered += 1
            reply = self.read(response)
            usage = reply.usage
            spending.unreported += usage is None
            return reply
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            lost = False
            raise TemporaryError(f"{type(error).__name__}: {error}") from None
        except asyncio.TimeoutError:
            raise TemporaryError(f"no answer within {self.settings.timeout:g} seconds") from None
        except (httpx.RequestError, httpx.StreamError) as error:
            raise TemporaryError(f"{type(error).__name__}: {error}") from None
        finally:
            spending.settle(held, usage, len(content), lost=lost)

    async def _post(self, http: "httpx.AsyncClient", request: _Request) -> "httpx.Response":
        """The response to a request."""
        import httpx

        sent: Any = {"content": request.content, "headers": request.headers}
        async with http.stream("POST", self.questions.url, **sent) as response:
            body = await whole_body(response.aiter_bytes())
            # What is read is decompressed already.
            kept = {name: value for name, value in response.headers.items() if name != "content-encoding"}
            return httpx.Response(response.status_code, headers=kept, content=body)

    def read(self, response: "httpx.Response") -> Reply:
        """The reply in a response; a TemporaryError if another attempt may help."""
        import httpx

        if response.status_code != 200:
            return self._error(response)
        try:
            payload = json.loads(self.without_key(response))
            if (code := error_in(payload)) is not None:
                return self._error(httpx.Response(code, content=response.content))
            reply = Reply.parse(payload)
            tokens = [token for token, *_ in reply.tokens or []]
            return replace(reply, tokens=None) if spelled({"tokens": tokens}, self.settings.secret) else reply
        except (ValueError, RecursionError) as error:
            what = "the reply is no JSON" if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)) else error
            raise TemporaryError(str(what)) from None

    def without_key(self, response: "httpx.Response") -> str:
        """The text of a response; the key, should the server repeat it, is taken out."""
        text: str = response.content.decode("utf-8", "strict" if response.status_code == 200 else "replace")
        if "\\" in text and self.settings.secret:
            # Some servers escape what need not be, such as slashes.
            with suppress(ValueError, RecursionError):
                text = json.dumps(json.loads(text), ensure_ascii=False)
        escaped = json.dumps(self.settings.secret)[1:-1]
        return self.settings.without_key(text.replace(escaped, "…") if escaped else text)

    def _error(self, response: "httpx.Response") -> Reply:
        """What an error's status and text mean; a reply if it is about this input alone."""
        status, who = response.status_code, self.settings.address
        code, message = _error_of(self.without_key(response))
        if status in (401, 403):
            named = f"set {self.settings.key}" if self.settings.key else "name the variable with its key as 'key'"
            raise InputError(f"{who} refuses the key ({status}): {named} (docs/super.md).")
        if code in NO_MONEY:
            raise InputError(f"{who} has no more credit ({code}). Add some, then run the same command again.")
        if status in RETRIED:
            raise TemporaryError(f"{status}: {message}" if message else str(status), pause_of(response.headers))
        if status in (400, 413, 422):
            if status == 413 or code in _TOO_LONG or any(words in message.lower() for words in _TOO_LONG_WORDS):
                return Reply("", TOO_LONG, usage=_NOTHING)
            if code in (FILTERED, "content_policy_violation"):
                return Reply("", FILTERED, refused=True, usage=_NOTHING)
        if status in (404, 405) or response.is_redirect:
            raise InputError(
                f"{self.questions.url} is not there, or has no such model ({status}: {message}). Correct it."
            )
        raise InputError(f"{who} refuses a request ({status}: {message}). Change the settings that it names.")


async def whole_body(chunks: AsyncIterable[bytes]) -> bytes:
    """The chunks of a response's body together; a TemporaryError if it is too much: a server may send without end."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        check_size(len(body))
    return bytes(body)


def check_size(size: int) -> None:
    """Raise a TemporaryError for a reply of so many bytes, if that is too much."""
    if size > _LONGEST:
        raise TemporaryError(f"the reply has more than {_LONGEST >> 20} MB")


def error_in(payload: Any) -> int | None:
    """The status of an error that some gateways send in place of a reply with the status 200; ``None`` for a reply."""
    if not isinstance(payload, dict) or not payload.get("error") or payload.get("choices"):
        return None
    code = payload["error"].get("code") if isinstance(payload["error"], dict) else None
    code = int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdecimal()) else 500
    return code if 400 <= code < 600 else 500


def _error_of(text: str) -> tuple[str, str]:
    """The code and the message of an error, as OpenAI, vLLM and servers made with FastAPI (``detail``) write it."""
    try:
        body = json.loads(text)
        error = body.get("error", body)
        if isinstance(error, dict):
            text = str(error.get("message") or error.get("detail") or text)
            code = str(error.get("code") or error.get("type") or "")
            return code, " ".join(text.split())[:_SHOWN]
    except (ValueError, AttributeError, RecursionError):
        pass
    return "", " ".join(text.split())[:_SHOWN]


def told_failures(failures: dict[str, int]) -> str:
    """The attempts that failed, in words, the most frequent reason first."""
    ordered = sorted(failures.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason} ({counted(count, 'times')})" for reason, count in ordered)
