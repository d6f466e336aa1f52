"""What goes through a pair: windows of inputs, what is deferred, and the answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from elang.data.tokens import EncodedExamples


@dataclass(frozen=True)
class Prediction:
    """The pair's answer to one input.

    Attributes:
        label: Name of the class, the candidate that was chosen, or the text that was generated; in a regression the
            value.
        score: The Swift's difficulty score; larger is harder.
        answered_by: Which model answered.
    """

    label: str | float
    score: float
    answered_by: Literal["swift", "super"]


# The Super is run once so many of its batches are full: the rest of the last one is then a small part.
FULL_BATCHES = 8


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
