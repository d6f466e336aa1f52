"""Asking a server again after a failure that may pass, with growing waits or as long as the server says."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""The statuses after which a server may answer later."""
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0
# A server that wants a longer pause is asked after this one all the same.
_LONGEST_PAUSE = 600.0
_Result = TypeVar("_Result")


class TemporaryError(Exception):
    """A failure that may pass; ``pause`` is how many seconds the server wants to be left alone."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.pause = reason, pause


class GivenUpError(Exception):
    """An attempt failed so often, or for so long, that no other is made; ``reason`` is that of the last failure."""

    def __init__(self, tries: int, reason: str) -> None:
        super().__init__(f"in {tries} tries ({reason})" if tries > 1 else f"({reason})")
        self.reason = reason


async def persistently(
    attempt: Callable[[], Awaitable[_Result]],
    tries: int,
    deadline: float | None = None,
    failed: Callable[[TemporaryError], None] = lambda error: None,
    wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> _Result:
    """What an attempt returns, after up to ``tries`` of them; only a :class:`TemporaryError` leads to another one.

    The waits double from half a second up to a minute, less up to a half, so that many who wait do not all come back
    together; or they are as long as the server says. No try begins more than ``deadline`` seconds after the first.

    Raises:
        GivenUpError: If no attempt succeeded.
    """
    start = time.monotonic()
    for number in range(1, tries + 1):
        try:
            return await attempt()
        except TemporaryError as error:
            failed(error)
            seconds = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (number - 1)) * random.uniform(0.5, 1)
            seconds = max(seconds, error.pause)
            late = deadline is not None and time.monotonic() + seconds - start > deadline
            if number == tries or late:
                raise GivenUpError(number, error.reason) from error
        await wait(seconds)
    raise AssertionError("there is at least one try")


def pause_of(headers: Mapping[str, str]) -> float:
    """The seconds that a response's headers ask to wait: Retry-After as a number or a date, or retry-after-ms.

    >>> pause_of({"retry-after": "2"}), pause_of({"retry-after-ms": "250"}), pause_of({"retry-after": "soon"})
    (2.0, 0.25, 0.0)
    """
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return min(_LONGEST_PAUSE, max(0.0, float(headers.get(name, "")) * scale))
        except ValueError:
            continue
    try:
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
    except (TypeError, ValueError):
        return 0.0
    # A date without a zone is in GMT.
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return min(_LONGEST_PAUSE, max(0.0, (moment - datetime.now(timezone.utc)).total_seconds()))


def run_async(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine to its end, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
