"""What goes through a cascade: windows of inputs, what is deferred, and the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import groupby
from operator import add

import torch

from elang.data.batches import EncodedExamples


@dataclass(frozen=True)
class Prediction:
    """The answer to one input.

    Attributes:
        label: Name of the class, the candidate that was chosen, or the text that was generated; in a regression the
            value.
        score: The difficulty score by which it was kept or, of the last stage's answer, deferred; larger is harder.
        answered_by: The stage that answered: of a pair ``swift`` or ``super``.
    """

    label: str | float
    score: float
    answered_by: str


@dataclass(eq=False)
class Window:
    """Some inputs on their way through a cascade.

    Attributes:
        texts: The texts of each input.
        choices: The candidates of each, where the task has any.
        encoded: Their tokens for the stage that is asked first, where they were made ahead.
        token_lists: The same of few inputs that take the short way.
        answers: The answers so far; ``None`` while a later stage is awaited.
    """

    texts: list[tuple[str, ...]]
    choices: list[tuple[str, ...]] | None = None
    encoded: EncodedExamples | None = None
    token_lists: list[dict[str, list[int]]] | None = None
    answers: list[Prediction | None] = field(init=False)

    def __post_init__(self) -> None:
        self.answers = [None] * len(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class Deferred:
    """An input that waits for the next stage: its window, its place there, its score."""

    window: Window
    place: int
    score: float


@dataclass(frozen=True)
class StageAnswers:
    """The answers of a stage to a window.

    Attributes:
        answers: One for each input, as :meth:`elang.tasks.kind.Kind.answer` takes it; ``None`` for one that was
            deferred before it was answered.
        scores: Difficulty scores; larger is harder.
        deferred: Which inputs the next stage answers.
    """

    answers: Sequence[str | float | None]
    scores: Sequence[float]
    deferred: Sequence[bool]


def gathered(deferred: list[Deferred], share_tokens: bool, same_model: bool) -> Window:
    """One window of what was deferred from several.

    Args:
        deferred: In the order of the windows.
        share_tokens: Whether the next stage reads texts as the first one does, so that their tokens can be handed on.
        same_model: Whether it is the first one. Another counts itself what it cuts, so cut texts are not handed on.
    """
    window = Window([one.window.texts[one.place] for one in deferred])
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
        # Or the tokens of some are missing.
        if len(lists) == len(window):
            window.token_lists = lists
        elif parts and sum(len(part.lengths) for part in parts) == len(window):
            window.encoded = EncodedExamples(reduce(add, parts))
    return window
