"""What moves through a cascade, and how: a stream of inputs in, of predictions out, in order and in bounded memory.

Inputs are read and tokenised a window at a time, the next window while the models work on this one. The first stage
answers batches of similar lengths; what it defers is collected over windows until a later stage's batches are full.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import groupby, islice
from operator import add
from queue import Queue
from threading import Event, Semaphore, Thread
from typing import Any

import torch

from elang.data.batches import EncodedExamples
from elang.errors import InputError

# The first window has this fraction of a full one's inputs.
_FIRST = 8
# At most this many windows wait for later stages.
_WAITING = 8


@dataclass(frozen=True)
class Prediction:
    """The answer to one input.

    Attributes:
        id: The number of the input, from 0; `elang predict --id` puts the values of a column in its place.
        label: Name of the class, the chosen candidate, the generated text, or the value of a regression; ``None`` where
            a backend of your own has no answer.
        probability: The probability of the label by the model that answered: the softmax over its answers, not
            calibrated. ``None`` for generated texts, in a regression, and from a backend that gives none.
        score: The last difficulty score computed for the input, larger is harder; ``None`` where none was needed: the
            Super was asked alone, or the threshold is ``-inf``.
        answered_by: The stage that answered: of a pair ``swift`` or ``super``.
        answer: What ``--data.extract`` finds in a generated text; ``None`` where it finds nothing, or was not set.
    """

    id: int
    label: str | float | None
    probability: float | None
    score: float | None
    answered_by: str
    answer: str | None = field(default=None, repr=False)


@dataclass(eq=False)
class Window:
    """Inputs that pass through a stage of a cascade together, with their candidates where they have any."""

    texts: list[tuple[str, ...]]
    choices: list[tuple[str, ...]] | None = None
    # The tokens, made ahead for the stage number `reader`; `token_lists` are those of inputs that take the short way.
    encoded: EncodedExamples | None = None
    token_lists: list[dict[str, list[int]]] | None = None
    reader: int = 0
    # The numbers of the inputs, by default from 0.
    ids: Sequence[int] = ()
    # None for an input that waits for a later stage.
    answers: list[Prediction | None] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = self.ids or range(len(self.texts))
        self.answers = [None] * len(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Deferred:
    """An input that waits for the next stage: its window, its place there, its score if it has one."""

    window: Window
    place: int
    score: float | None


def gathered(deferred: list[Deferred], share_tokens: bool, same_model: bool) -> Window:
    """Put deferred inputs, in the order of their windows, into one window.

    ``share_tokens`` reuses tokens that were made ahead, if the next stage reads texts in the same way. Truncated texts
    are encoded anew, so that the next stage counts them, unless it is the ``same_model``.
    """
    texts = [one.window.texts[one.place] for one in deferred]
    window = Window(texts, ids=[one.window.ids[one.place] for one in deferred])
    choices = [one.window.choices[one.place] for one in deferred if one.window.choices is not None]
    if choices:
        window.choices = choices
    elif share_tokens:
        lists: list[dict[str, list[int]]] = []
        parts = []
        for source, group in groupby(deferred, lambda one: one.window):
            places = [one.place for one in group]
            if source.token_lists is not None:
                lists += [source.token_lists[place] for place in places]
            elif source.encoded is not None and (same_model or not source.encoded.texts.truncated):
                parts.append(source.encoded.texts.take(torch.tensor(places)))
        # Only if the tokens of all inputs are known.
        if len(lists) == len(window):
            window.token_lists = lists
        elif parts and sum(len(part.lengths) for part in parts) == len(window):
            window.encoded = EncodedExamples(reduce(add, parts))
    return window


def windows(inputs: Iterable[Any], size: int) -> Iterator[tuple[int, list[Any]]]:
    """Cut a stream into lists of ``size``, each with the number of its first input.

    The first lists are smaller, because the models have nothing to do until there is one.

    >>> [(first, len(part)) for first, part in windows(range(100), 64)]
    [(0, 8), (8, 16), (24, 32), (56, 44)]
    """
    if size < 1:
        raise InputError(f"A window must hold at least 1 input, but it is {size}.")
    source, first = iter(inputs), 0
    count = max(1, size // _FIRST)
    while part := list(islice(source, count)):
        yield first, part
        first, count = first + len(part), min(size, 2 * count)


def ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Yield the items, or raise their error, while a thread makes the next one; stopping does not wait for it."""
    ready: Queue[tuple[Any, Exception | None]] = Queue(1)
    requests, stopped, no_item = Semaphore(1), Event(), object()

    def work() -> None:
        while requests.acquire() and not stopped.is_set():
            try:
                ready.put((next(items, no_item), None))
            except Exception as error:
                ready.put((no_item, error))

    Thread(target=work, name="elang-ahead", daemon=True).start()
    try:
        while True:
            item, failure = ready.get()
            if failure is not None:
                raise failure
            if item is no_item:
                return
            requests.release()
            yield item
    finally:
        stopped.set()
        requests.release()


def stream(
    prepared: Iterator[Window],
    first: Callable[[Window], list[Deferred]],
    later: Sequence[tuple[Callable[[list[Deferred]], list[Deferred]], int]],
) -> Iterator[Prediction]:
    """Run windows through the stages of a cascade; yield the answers in the order of the inputs.

    ``first`` answers a window and returns what it defers. ``later`` has for each further stage a function that answers
    deferred inputs and returns what it defers itself, and how many inputs to collect before it is called. An error in a
    window is raised after the answers to those before it.
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
