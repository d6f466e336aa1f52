"""Many inputs through a pair, as fast as it goes: a stream in, a stream out, in the same order and in bounded memory.

Inputs are read and tokenised a window at a time, the next window while the models work on this one. The Swift answers
batches of like lengths that hold so many tokens, not so many inputs; what it defers is collected over windows until the
Super's batches are full.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from queue import Queue
from threading import Event, Semaphore, Thread
from typing import TYPE_CHECKING, Any

from elang.errors import InputError
from elang.inference.prediction import Deferred, Window

if TYPE_CHECKING:
    from elang.inference.prediction import Prediction

# A window's part that the first one has.
_FIRST = 8
# Windows that wait for the Super at most.
_WAITING = 8


def windows(inputs: Iterable[Any], size: int) -> Iterator[tuple[int, list[Any]]]:
    """Cut a stream into lists of ``size``, each with the number of its first input.

    The first lists are smaller: until there is one, the models have nothing to do.

    >>> [(first, len(part)) for first, part in windows(range(100), 64)]
    [(0, 8), (8, 16), (24, 32), (56, 44)]
    """
    if size < 1:
        raise InputError(f"A window must hold at least 1 input, but it is {size}.")
    stream, first = iter(inputs), 0
    now = max(1, size // _FIRST)
    while part := list(islice(stream, now)):
        yield first, part
        first, now = first + len(part), min(size, 2 * now)


def ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Yield the items, the next of which is made in a thread meanwhile; its errors come in their turn.

    Whoever stops taking them does not wait for a source that has nothing to say.
    """
    ready: Queue[tuple[Any, Exception | None]] = Queue(1)
    wanted = Semaphore(1)
    stopped = Event()
    nothing = object()

    def work() -> None:
        while wanted.acquire() and not stopped.is_set():
            try:
                item, failure = next(items, nothing), None
            except Exception as error:
                item, failure = nothing, error
            ready.put((item, failure))
            if item is nothing:
                return

    Thread(target=work, name="elang-ahead", daemon=True).start()
    try:
        while True:
            item, failure = ready.get()
            if failure is not None:
                raise failure
            if item is nothing:
                return
            wanted.release()
            yield item
    finally:
        stopped.set()
        wanted.release()


def stream(
    prepared: Iterator[Window],
    first: Callable[[Window], list[Deferred]],
    later: Sequence[tuple[Callable[[list[Deferred]], list[Deferred]], int]],
) -> Iterator[Prediction]:
    """Run windows through the stages of a cascade.

    Args:
        prepared: The windows.
        first: Answers a window and returns what it defers.
        later: For each further stage what answers deferred inputs and returns those that it defers itself, and how many
            of them are worth a pass.

    Yields:
        The answers, in the order of the inputs; an error follows those of the windows before it.
    """
    waiting: deque[Window] = deque()
    queues: list[list[Deferred]] = [[] for _ in later]
    failure: Exception | None = None
    coming = ahead(prepared)

    def run(everything: bool) -> None:
        for number, (answer, full) in enumerate(later):
            if queues[number] and (everything or len(queues[number]) >= full):
                deferred, queues[number] = queues[number], []
                further = answer(deferred)
                if number + 1 < len(later):
                    queues[number + 1] += further

    while True:
        try:
            window = next(coming)
            queues[0] += first(window)
        except StopIteration:
            break
        except Exception as error:
            # The windows before it are answered first.
            failure = error
            break
        waiting.append(window)
        run(everything=len(waiting) >= _WAITING)
        while waiting and all(answer is not None for answer in waiting[0].answers):
            yield from waiting.popleft().answers  # type: ignore[misc]
    run(everything=True)
    for window in waiting:
        yield from window.answers  # type: ignore[misc]
    if failure is not None:
        raise failure
