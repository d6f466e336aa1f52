"""One request to a Super behind an API of OpenAI's form: how it is sent, and what its response means."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx

from elang._version import __version__
from elang.backends.openai.client import NO_MONEY, error_in, whole_body
from elang.backends.openai.redaction import without
from elang.backends.openai.settings import Settings, Usage
from elang.backends.openai.streams import SlowError, part_of, stream_parts
from elang.backends.retrying import RETRIED, TemporaryError, pause_of
from elang.errors import InputError
from elang.inference.serving.chats import Parts, UnansweredError
from elang.inference.serving.schema import RETRY, ApiError, Reason, timeout

_log = logging.getLogger(__name__)
# Seconds in which a connection must be there.
_CONNECT = 5.0
# aiohttp warns of more bytes that are no stream.
_LARGE = 1 << 20
# Statuses that are about what the client sent, if an error says what; the model's name is not the client's.
_OF_REQUEST = (400, 413, 422)
BUSY = "The Super takes no more requests now."


class FailedError(TemporaryError):
    """An attempt failed.

    ``failure`` is what to tell if no other one succeeds, ``kind`` what is counted, ``charged`` whether it may cost
    something.
    """

    def __init__(self, kind: str, failure: UnansweredError, pause: float = 0.0, charged: bool = True) -> None:
        super().__init__(kind, pause)
        self.failure, self.kind, self.charged = failure, kind, charged


@dataclass
class Sent:
    """What is sent for a request; ``answered`` counts the responses that were no answers."""

    content: bytes
    stream: bool
    estimate: Usage
    name: str
    size: int
    answered: int = 0

    @property
    def headers(self) -> dict[str, str]:
        """A server that knows the key has done this already: an attempt that broke off is not charged twice."""
        return {"idempotency-key": f"elang-{self.name}-{self.answered}"}


class Sender:
    """Sends requests over connections that are kept, each request once."""

    def __init__(self, settings: Settings, seconds: float) -> None:
        self.settings, self.timeout = settings, seconds
        self.url = f"{settings.url}/chat/completions"
        # Before anything is asked it shows whether the key and the proxy can be used.
        self._headers = {"user-agent": f"elang/{__version__}", "content-type": "application/json"}
        self._headers |= settings.headers_now()
        self._proxy = proxy_of(self.url)
        # The certificates that the other clients trust, too.
        self._tls: Any = httpx.create_ssl_context() if self.url.startswith("https") else True
        self._http: aiohttp.ClientSession | None = None

    @property
    def http(self) -> aiohttp.ClientSession:
        """The client, in the running event loop."""
        if self._http is None or self._http.closed:
            # httpx takes six times as long for a request.
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=self._tls),
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(None, sock_connect=min(_CONNECT, self.timeout), sock_read=self.timeout),
            )
        return self._http

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.close()

    async def parts(self, sent: Sent) -> Parts:
        """Send a request, and read the parts of its answer; a :class:`FailedError` if another attempt may help."""
        options: Any = {"headers": sent.headers, "proxy": self._proxy, "allow_redirects": False}
        data = sent.content if len(sent.content) < _LARGE else io.BytesIO(sent.content)
        secret, begun = self.settings.secret, False
        try:
            async with self.http.post(self.url, data=data, **options) as response:
                chunks, begun = response.content.iter_any(), True
                sent.answered += 1
                if response.status != 200:
                    self._refuse(response.status, response.headers, _json_of(await whole_body(chunks)))
                if sent.stream:
                    async for part in stream_parts(chunks, self.timeout, secret):
                        yield part
                    return
                async with timeout(self.timeout):
                    body = await whole_body(chunks)
                reply = json.loads(body)
                if (status := error_in(reply)) is not None:
                    self._refuse(status, response.headers, reply)
                yield part_of(reply, "message", secret)
        except (asyncio.TimeoutError, SlowError) as error:
            # aiohttp's own say whether there was a connection.
            charged = not isinstance(error, aiohttp.ConnectionTimeoutError)
            raise _failed("timeout", "did not answer in time", "timeout", charged=charged) from None
        except aiohttp.ClientConnectorError:
            raise _failed("connection", "cannot be reached", charged=False) from None
        except (aiohttp.ClientError, OSError):
            raise _failed("connection", "broke off its answer" if begun else "broke off the connection") from None
        except FailedError:
            raise
        except TemporaryError as error:
            _log.warning("The Super broke off: %s", error.reason)
            raise _failed("answer", "broke off its answer") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _failed("answer", "gave no answer that can be read") from None

    def _refuse(self, status: int, headers: Any, reply: Any) -> None:
        """Raise what an error of the server means."""
        # Servers made with FastAPI say "detail", without "error".
        error = reply.get("error", reply) if isinstance(reply, dict) else None
        error = without(error, self.settings.secret) if isinstance(error, dict) else None
        code = str(error["code"])[:80] if error and error.get("code") else None
        if code in NO_MONEY:
            raise UnansweredError("failed", f"The Super has no more credit ({code}).")
        message = str(error.get("message") or error.get("detail") or "")[:1000] if error else ""
        if status in _OF_REQUEST and error and message:
            param = str(error["param"])[:80] if error.get("param") else None
            raise ApiError(status, f"The Super refuses this: {message}", param, code)
        if status == 429:
            pause = pause_of(headers)
            raise FailedError("429", UnansweredError("full", BUSY, busy(pause)), pause, charged=False)
        # What it says of a wrong key may contain it.
        failure = UnansweredError("failed", f"The Super answered with {status}.")
        if status in RETRIED:
            raise FailedError(str(status), failure, pause_of(headers), charged=False)
        raise failure


def _failed(kind: str, what: str, reason: Reason = "failed", charged: bool = True) -> FailedError:
    return FailedError(kind, UnansweredError(reason, f"The Super {what}."), charged=charged)


def busy(pause: float) -> ApiError:
    """The refusal of a request that the Super does not take now, but perhaps after a pause."""
    headers = {"retry-after": str(math.ceil(pause))} if pause else RETRY
    return ApiError(429, BUSY, code="rate_limit_exceeded", headers=headers)


def _json_of(body: bytes) -> Any:
    """The JSON in a body; ``None`` if there is none."""
    with suppress(ValueError, RecursionError):
        return json.loads(body)
    return None


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for a URL; an InputError if it cannot be used."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    given = urlsplit(proxy)
    if given.scheme not in ("http", "https") or not given.hostname:
        raise InputError(
            f"The proxy that the environment names cannot be used: it is a '{given.scheme}' one, and http or https is "
            "needed. Correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, or name the host in NO_PROXY."
        )
    return proxy
