"""Many inputs through a pair, as fast as it goes: a stream in, a stream out, in the same order and in bounded memory.

Inputs are read and tokenised a window at a time, the next window while the models work on this one. The Swift answers
batches of like lengths that hold so many tokens, not so many inputs; what it defers is collected over windows until the
Super's batches are full.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from queue import Queue
from threading import Event, Semaphore, Thread
from typing import TYPE_CHECKING, Any

from torch import Tensor

from elang.data.batches import EncodedExamples
from elang.errors import InputError

if TYPE_CHECKING:
    from elang.predictor import Prediction

# The Super is run once so many of its batches are full: the rest of the last one is then a small part.
FULL_BATCHES = 8
# A window's part that the first one has.
_FIRST = 8
# Windows that wait for the Super at most.
_WAITING = 8


def token_batches(lengths: Tensor, budget: int, most: int | None = None) -> list[Tensor]:
    """Cut inputs into batches of like lengths, none of which has more than ``budget`` tokens with its padding.

    Args:
        lengths: Tokens of each input, int64 ``(N,)``.
        budget: Tokens in a batch; a longer input is a batch of its own.
        most: Inputs in a batch at most.

    Returns:
        Row numbers, longest first, so that what does not fit into memory is seen at once.

    >>> import torch
    >>> [batch.tolist() for batch in token_batches(torch.tensor([2, 9, 3, 2]), 6)]
    [[1], [2, 0], [3]]
    """
    order = lengths.argsort(descending=True, stable=True)
    longest = lengths[order].tolist()
    batches, start = [], 0
    while start < len(longest):
        size = max(1, budget // max(1, longest[start]))
        end = min(len(longest), start + (size if most is None else min(size, most)))
        batches.append(order[start:end])
        start = end
    return batches


@dataclass(eq=False)
class Window:
    """Some inputs on their way through the pair.

    Attributes:
        rows: The texts of each input.
        choices: The candidates of each, where the task has any.
        encoded: Their tokens for the Swift, where it is asked.
        super_encoded: Their tokens for the Super, where they are known before it is asked.
        answers: What is known of each; ``None`` while the Super is awaited.
    """

    rows: list[tuple[str, ...]]
    choices: list[tuple[str, ...]] | None
    encoded: EncodedExamples | None = None
    super_encoded: EncodedExamples | None = None
    answers: list[Prediction | None] = field(init=False)

    def __post_init__(self) -> None:
        self.answers = [None] * len(self.rows)


@dataclass(frozen=True)
class Deferred:
    """An input that waits for the Super: its window, its place there, its score."""

    window: Window
    place: int
    score: float


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
    swift: Callable[[Window], list[Deferred]],
    super_: Callable[[list[Deferred]], None],
    full: int,
) -> Iterator[Prediction]:
    """Run windows through the pair.

    Args:
        prepared: The windows.
        swift: Answers a window and returns what it defers.
        super_: Answers what was deferred.
        full: Deferred inputs that are worth a pass of the Super.

    Yields:
        The answers, in the order of the inputs; an error follows those of the windows before it.
    """
    waiting: deque[Window] = deque()
    deferred: list[Deferred] = []
    failure: Exception | None = None
    coming = ahead(prepared)
    while True:
        try:
            window = next(coming)
            deferred += swift(window)
        except StopIteration:
            break
        except Exception as error:
            # The windows before it are answered first.
            failure = error
            break
        waiting.append(window)
        if len(deferred) >= full or len(waiting) >= _WAITING:
            super_(deferred)
            deferred = []
        while waiting and all(answer is not None for answer in waiting[0].answers):
            yield from waiting.popleft().answers  # type: ignore[misc]
    if deferred:
        super_(deferred)
    for window in waiting:
        yield from window.answers  # type: ignore[misc]
    if failure is not None:
        raise failure
