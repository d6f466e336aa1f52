"""Asking a server again: how long it waits, and when it gives up."""

import asyncio
import time
from email.utils import formatdate

import pytest

from elang.backends.retrying import GivenUpError, TemporaryError, pause_of, persistently, run_async


def test_pauses_that_a_server_asks_for():
    assert pause_of({}) == 0
    assert pause_of({"retry-after": "2.5"}) == 2.5
    assert pause_of({"retry-after": "9", "retry-after-ms": "250"}) == 0.25
    for nonsense in ("soon", "-3", "nan", "Mon, 99 Foo"):
        assert pause_of({"retry-after": nonsense}) == 0
    # A server cannot stop a run for ever.
    assert pause_of({"retry-after": "inf"}) == pause_of({"retry-after": "1e9"}) == 600
    date = formatdate(time.time() + 30, usegmt=True)
    assert 25 < pause_of({"retry-after": date}) <= 30
    assert 25 < pause_of({"retry-after": date.removesuffix(" GMT")}) <= 30
    assert pause_of({"retry-after": formatdate(time.time() - 30, usegmt=True)}) == 0


def attempts(failures, pause=0.0):
    """An attempt that fails so often."""
    left = iter(range(failures))

    async def attempt():
        for number in left:
            raise TemporaryError(f"failure {number}", pause)
        return "answer"

    return attempt


def waits_of(failures, tries=8, pause=0.0, **options):
    waits = []

    async def wait(seconds):
        waits.append(seconds)

    return run_async(persistently(attempts(failures, pause), tries, wait=wait, **options)), waits


def test_waits_double_and_differ():
    answer, waits = waits_of(9, tries=10)
    assert answer == "answer"
    full = [min(60, 0.5 * 2**number) for number in range(9)]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, full, strict=True))
    assert waits != waits_of(9, tries=10)[1]
    assert waits_of(2, pause=7.0)[1] == [7.0, 7.0]


def test_it_gives_up():
    with pytest.raises(GivenUpError, match=r"in 3 tries \(failure 2\)"):
        waits_of(3, tries=3)
    # The next try would begin too late.
    with pytest.raises(GivenUpError, match=r"in 1 tries|\(failure 0\)"):
        waits_of(3, pause=5.0, deadline=4.0)


def test_it_runs_within_a_loop():
    """As in a notebook."""

    async def within():
        return run_async(persistently(attempts(0), 1))

    assert asyncio.run(within()) == "answer"
