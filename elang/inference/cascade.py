"""A cascade of models: each stage answers what it can be trusted with, and defers the rest to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch

from elang.backends.backend import Backend
from elang.data.examples import Examples, content_key
from elang.errors import InputError
from elang.inference.inputs import as_rows, checked_texts, each_text, window_of
from elang.inference.prediction import Deferred, Prediction, StageAnswers, Window, gathered
from elang.inference.runner import ModelRunner
from elang.inference.stream import stream, windows
from elang.method.deferral import check_finite
from elang.records.table import Records
from elang.tasks.text_task import TextTask


@dataclass(frozen=True)
class Stage:
    """A stage of a cascade.

    Attributes:
        name: As :attr:`Prediction.answered_by` has it.
        backend: Who answers: a model's :class:`~elang.inference.runner.ModelRunner`, or any other
            :class:`~elang.backends.backend.Backend`, which before the last stage has to be a
            :class:`~elang.backends.backend.ScoringBackend`.
        score: The score that routes; ``None`` at the last stage.
        threshold: What scores above it goes to the next stage.
        collect: In a stream, deferred inputs that are collected before the backend is asked.
    """

    name: str
    backend: ModelRunner | Backend
    score: str | None = None
    threshold: float = math.inf
    collect: int = 1


class Cascade:
    """Answers inputs by stages.

    Args:
        stages: From the smallest model to the largest; each but the last has a score.

    Raises:
        InputError: If there are none, two have one name, or one that is not the last has no score.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        names = [stage.name for stage in stages]
        if not names or len(set(names)) < len(names):
            raise InputError(f"A cascade has stages with names of their own, but these are {names}.")
        if unscored := [stage.name for stage in stages[:-1] if stage.score is None]:
            raise InputError(f"The stage '{unscored[0]}' has no score, so it cannot defer. Only the last one has none.")
        self.stages = tuple(stages)
        # What is answered.
        self.task: TextTask = stages[0].backend.task

    def task_for(self, num_texts: int) -> TextTask:
        """The task of inputs of so many texts."""
        first = self.stages[0].backend
        return first.task_for(num_texts) if isinstance(first, ModelRunner) else self.task

    def set_threshold(self, threshold: float, stage: int = 0) -> None:
        """Let a stage defer what scores above another threshold from now on."""
        stages = list(self.stages)
        stages[stage] = replace(stages[stage], threshold=threshold)
        self.stages = tuple(stages)

    def __call__(
        self, texts: Iterable[str] | Iterable[tuple[str, ...]], choices: Sequence[Sequence[str]] | None = None
    ) -> list[Prediction]:
        """Answer texts, or tuples of the task's texts, in their order.

        They may be in a list or any other sequence, a generator, an array or a column of a table (NumPy, pandas,
        PyArrow, datasets). A whole table, a mapping, a set or a single text is refused.

        Args:
            texts: One value for each of ``task.fields``.
            choices: Each example's candidates, where the task has its own for each.

        Raises:
            InputError: If these are no texts, one is empty, or a model's logits are not finite.
        """
        rows = self.rows(texts)
        return self.answer(rows, choices) if rows else []

    def map(
        self, texts: Iterable[str] | Iterable[tuple[str, ...]], window: int = 4096, first: int = 0
    ) -> Iterator[Prediction]:
        """Answer a stream of texts, or tuples of the task's texts, in their order and in bounded memory.

        Args:
            texts: Read as they are needed, in a thread.
            window: Inputs that are read, tokenised and answered by the first stage at a time at most; the first windows
                are smaller.
            first: Number of the first one in messages, where others were answered before.

        Yields:
            The predictions of :meth:`__call__`; the first one once a window is full and the later stages have answered
            what it defers.

        Raises:
            InputError: As :meth:`__call__` does, when the turn of the text's window comes.
        """
        checked = (self.rows(part, first + start) for start, part in windows(each_text(texts), window))
        # All windows are tokenised ahead, in a thread, or all go the short way: two threads must not share a tokenizer.
        backend = self.stages[0].backend
        short = isinstance(backend, ModelRunner) and window <= backend.limits.short_way
        yield from stream((self._prepare(rows, None, short) for rows in checked), self._first, self._later())

    def rows(self, texts: Iterable[Any], first: int = 0) -> list[tuple[str, ...]]:
        """Check texts, or tuples of the task's texts; the first one is the input of that number.

        Raises:
            InputError: If they are no texts, or one is empty, not a string, or not as many texts as the task has.
        """
        rows = as_rows(texts)
        # An empty line of a text to be translated keeps its place.
        return checked_texts(rows, self.task_for(len(rows[0]) if rows else 1).fields, first, self.task.kind.generates)

    def answer(self, rows: list[tuple[str, ...]], choices: Sequence[Sequence[str]] | None = None) -> list[Prediction]:
        """Answer tuples of the task's texts as they are, even if some are empty (a benchmark's may be).

        Raises:
            InputError: If candidates are missing, or a model's logits are not finite.
        """
        window = self._prepare(rows, choices)
        deferred = self._first(window)
        for answer, _ in self._later():
            deferred = answer(deferred) if deferred else deferred
        return [one for one in window.answers if one is not None]

    def _window(self, rows: list[tuple[str, ...]], choices: Sequence[Sequence[str]] | None) -> Window:
        rows = as_rows(rows)
        return window_of(rows, choices, self.task_for(len(rows[0]) if rows else 1))

    def _prepare(
        self, rows: list[tuple[str, ...]], choices: Sequence[Sequence[str]] | None, short: bool = True
    ) -> Window:
        """A window, with its tokens where the first stage is a model that takes them."""
        window = self._window(rows, choices)
        if isinstance(backend := self.stages[0].backend, ModelRunner):
            backend.read(window, short)
        return window

    def _first(self, window: Window) -> list[Deferred]:
        """Answer a window by the first stage; a single one answers windows together, as any last one does."""
        if len(self.stages) == 1:
            return [Deferred(window, place, math.inf) for place in range(len(window))]
        return self._pass(0, window)

    def _later(self) -> list[tuple[Callable[[list[Deferred]], list[Deferred]], int]]:
        """What answers the deferred inputs at each further stage, and how many are worth a pass."""
        start = min(1, len(self.stages) - 1)
        return [(partial(self._answer, start + i), stage.collect) for i, stage in enumerate(self.stages[start:])]

    def _answer(self, number: int, deferred: list[Deferred]) -> list[Deferred]:
        """Answer, at a later stage, what was deferred from any windows; what this stage defers is returned."""
        window = gathered(deferred, self._reads_alike[number], number == 0)
        if number < len(self.stages) - 1:
            further = self._pass(number, window)
            for one, answer in zip(deferred, window.answers, strict=True):
                one.window.answers[one.place] = answer
            return [replace(deferred[one.place], score=one.score) for one in further]
        stage = self.stages[number]
        for one, label in zip(deferred, self._labels(stage, window, _answer(stage.backend, window)), strict=True):
            assert label is not None
            one.window.answers[one.place] = Prediction(label, one.score, stage.name)
        return []

    def _pass(self, number: int, window: Window) -> list[Deferred]:
        """Answer a window at a stage that is not the last; what it defers is returned."""
        stage, deferred = self.stages[number], []
        scored = self._scored(number, window, stage.threshold)
        kept = [None if hard else answer for answer, hard in zip(scored.answers, scored.deferred, strict=True)]
        for place, (label, score) in enumerate(zip(self._labels(stage, window, kept), scored.scores, strict=True)):
            if label is None:
                deferred.append(Deferred(window, place, score))
            else:
                window.answers[place] = Prediction(label, score, stage.name)
        return deferred

    def _scored(self, number: int, window: Window, threshold: float) -> StageAnswers:
        stage = self.stages[number]
        assert stage.score is not None
        scored = _score(stage.backend, window, stage.score, threshold)
        if not all(map(math.isfinite, scored.scores)):
            check_finite(torch.tensor(scored.scores), "score")
        return scored

    def _labels(self, stage: Stage, window: Window, answers: Sequence[Any]) -> list[str | float | None]:
        """What a user reads of answers; ``None`` for those that are."""
        # A model of a pair answers in the order of the first one's classes, any other backend in that of its own.
        task = self.task if isinstance(stage.backend, ModelRunner) else stage.backend.task
        kind, choices = task.kind, window.choices or [None] * len(window)  # type: ignore[list-item]
        return [
            None if answer is None else kind.answer(answer, task, own)
            for answer, own in zip(answers, choices, strict=True)
        ]

    @cached_property
    def _reads_alike(self) -> list[bool]:
        """Of each stage, whether it is a model that reads a text as the same tokens as the first one."""
        first = self.stages[0].backend
        if not isinstance(first, ModelRunner):
            return [False] * len(self.stages)
        runners = [stage.backend for stage in self.stages]
        return [one is first or (isinstance(one, ModelRunner) and one.reads_like(first)) for one in runners]


def _answer(backend: ModelRunner | Backend, window: Window) -> Sequence[Any]:
    """The answers of whoever answers, one for each input."""
    return (
        backend.answer(window)
        if isinstance(backend, ModelRunner)
        else _listed(backend.answer(_examples(window, backend)))
    )


def _score(backend: Any, window: Window, score: str, threshold: float) -> StageAnswers:
    """The same with scores."""
    if isinstance(backend, ModelRunner):
        return backend.score(window, score, threshold)
    scored = backend.score(_examples(window, backend), score, threshold)
    return StageAnswers(scored.answers, scored.scores, scored.deferred)


def _listed(records: Records) -> Sequence[Any]:
    return records.prediction.tolist() if records.texts is None else records.texts


def _examples(window: Window, backend: Backend) -> Examples:
    """A window as examples without labels."""
    count, kind = len(window), backend.task.kind
    key = torch.tensor([content_key(texts) for texts in window.texts])
    label = torch.full((count,), kind.unknown, dtype=kind.answer_type)
    return Examples(window.texts, torch.arange(count), key, label, choices=window.choices)
