"""A cascade of models: each stage answers the inputs it can be trusted with, and defers the others to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from elang.backends.backend import Backend, Scored
from elang.errors import InputError
from elang.inference.backend_runner import runner_of
from elang.inference.inputs import as_rows, checked_texts, each_text, window_of
from elang.inference.options import as_number
from elang.inference.runner import ModelRunner
from elang.inference.stream import Deferred, Prediction, Window, gathered, stream, windows
from elang.method.deferral import check_finite
from elang.tasks.extraction import answer_in
from elang.tasks.text_task import TextTask

Texts = Iterable[str] | Iterable[tuple[str, ...]]
Choices = Sequence[Sequence[str]] | None


@dataclass(frozen=True)
class Stage:
    """A stage of a cascade.

    Attributes:
        name: Its name in :attr:`Prediction.answered_by`.
        backend: A :class:`~elang.inference.runner.ModelRunner`, or any other backend; before the last stage one that is
            a :class:`~elang.backends.backend.ScoringBackend`.
        score: The score that routes; ``None`` at the last stage.
        threshold: Inputs that score above it go to the next stage.
        collect: In a stream, the number of deferred inputs to collect before the backend is asked.
        cost: What an answer of it costs, for :meth:`Cascade.usage`; ``None`` if that is unknown.
    """

    name: str
    backend: ModelRunner | Backend
    score: str | None = None
    threshold: float = math.inf
    collect: int = 1
    cost: float | None = None


class Cascade:
    """Answers inputs by stages. A stage with the threshold ``-inf`` would defer everything, so it is not asked at all.

    Args:
        stages: From the smallest model to the largest; each but the last has a score.
        task: What is answered; by default the first stage's task.

    Raises:
        InputError: If there are no stages, two have the same name, or one before the last has no score.
    """

    def __init__(self, stages: Sequence[Stage], task: TextTask | None = None) -> None:
        names = [stage.name for stage in stages]
        if not names or len(set(names)) < len(names):
            raise InputError(f"A cascade needs stages with names of their own, but these are {names}.")
        if unscored := [stage.name for stage in stages[:-1] if stage.score is None]:
            raise InputError(f"The stage '{unscored[0]}' has no score, so it cannot defer. Only the last one has none.")
        self.stages = tuple(stages)
        self.task: TextTask = task or stages[0].backend.task
        self.runners: dict[str, Any] = {
            stage.name: stage.backend if isinstance(stage.backend, ModelRunner) else runner_of(stage.backend)
            for stage in stages
        }
        # By the numbers of two stages whether they turn a text into the same tokens.
        self._sharing: dict[tuple[int, int], bool] = {}

    def task_for(self, num_texts: int) -> TextTask:
        """The task for inputs of this many texts."""
        first = self.stages[0].backend
        return first.task_for(num_texts) if isinstance(first, ModelRunner) else self.task

    def set_threshold(self, threshold: float, stage: int = 0) -> None:
        """Change the threshold above which a stage defers; an ``InputError`` if it is NaN or no number.

        A stream that runs already, and began at ``-inf``, goes on without the stage.
        """
        if (number := as_number(threshold)) is None:
            raise InputError(f"A threshold is set to a number, inf or -inf, but this is {threshold!r}.")
        stages = list(self.stages)
        stages[stage] = replace(stages[stage], threshold=number)
        self.stages = tuple(stages)

    def __call__(self, texts: Texts, choices: Choices = None) -> list[Prediction]:
        """Answer texts, or tuples of the task's texts, in their order.

        Args:
            texts: A list or any other sequence, a generator, an array or a column of a table (NumPy, pandas, PyArrow,
                datasets), with one value for each of ``task.fields``.
            choices: Each example's candidates, where every example has its own.

        Raises:
            InputError: If an input is no text or is empty, a model's logits are not finite, or ``texts`` is a whole
                table, a mapping, a set or a single text.
        """
        rows = self.rows(texts)
        return self.answer(rows, choices) if rows else []

    def map(self, texts: Texts, window: int = 4096, first: int = 0) -> Iterator[Prediction]:
        """Answer a stream of texts, or tuples of the task's texts, in their order and in bounded memory.

        Args:
            texts: Read as they are needed, in a thread.
            window: Inputs that are read, tokenised and answered by the first stage at a time; fewer at the beginning.
            first: The number of the first input; above 0 if earlier ones are answered already.

        Yields:
            The predictions of :meth:`__call__`, which may wait for a window to be full.

        Raises:
            InputError: As :meth:`__call__` does, when the text's window is reached.
        """
        # Tokenise all windows ahead, in a thread, or let all take the short way: threads must not share a tokenizer.
        reader, parts = self._reader, windows(each_text(texts), window)
        backend = self.stages[reader].backend
        short = isinstance(backend, ModelRunner) and window <= backend.limits.short_way

        def prepared() -> Iterator[Window]:
            for start, part in parts:
                made = self._prepare(self.rows(part, first + start), None, reader, short=short)
                made.ids = range(first + start, first + start + len(made))
                yield made

        yield from stream(prepared(), self._first, self._later())

    def rows(self, texts: Iterable[Any], first: int = 0) -> list[tuple[str, ...]]:
        """Check texts, or tuples of the task's texts; ``first`` is the first input's number in messages.

        Raises:
            InputError: If one is empty, not a string, or not as many texts as the task has.
        """
        rows = as_rows(texts)
        fields = self.task_for(len(rows[0]) if rows else 1).fields
        # Texts to be translated may be empty, so that lines keep their places.
        return checked_texts(rows, fields, first=first, empty=self.task.kind.generates)

    def answer(self, rows: list[tuple[str, ...]], choices: Choices = None) -> list[Prediction]:
        """Answer tuples of the task's texts as :meth:`__call__` does, even if some are empty (a benchmark's may be)."""
        window = self._prepare(rows, choices, self._reader)
        deferred = self._first(window)
        for answer, _ in self._later():
            deferred = answer(deferred) if deferred else deferred
        return [answer for answer in window.answers if answer is not None]

    def _window(self, rows: list[tuple[str, ...]], choices: Choices) -> Window:
        rows = as_rows(rows)
        return window_of(rows, choices, self.task_for(len(rows[0]) if rows else 1))

    @property
    def _reader(self) -> int:
        """The number of the first stage that is asked."""
        return next((number for number in range(len(self.stages)) if not self._skips(number)), 0)

    def _skips(self, number: int) -> bool:
        """Whether a stage defers every input, so that it need not be asked."""
        return number < len(self.stages) - 1 and self.stages[number].threshold == -math.inf

    def _prepare(self, rows: list[tuple[str, ...]], choices: Choices, reader: int = 0, short: bool = True) -> Window:
        """A window, with its tokens where the stage that reads it is a model that takes them."""
        window = self._window(rows, choices)
        window.reader = reader
        if isinstance(backend := self.stages[reader].backend, ModelRunner):
            backend.read(window, short)
        return window

    def _first(self, window: Window) -> list[Deferred]:
        """Answer a window by the first stage, or defer all of it: a last stage answers several windows together."""
        # A window with the tokens of a later stage began at a threshold of -inf; another one may have been set since.
        if len(self.stages) == 1 or window.reader > 0 or self._skips(0):
            return [Deferred(window, place, None) for place in range(len(window))]
        return self._run_stage(0, window)

    def _later(self) -> list[tuple[Callable[[list[Deferred]], list[Deferred]], int]]:
        """What answers deferred inputs at each further stage, and how many to collect for it."""
        start = min(1, len(self.stages) - 1)
        return [
            (partial(self._answer_deferred, start + i), stage.collect) for i, stage in enumerate(self.stages[start:])
        ]

    def _answer_deferred(self, number: int, deferred: list[Deferred]) -> list[Deferred]:
        """Answer deferred inputs of any windows at a later stage; return what it defers."""
        if self._skips(number):
            return deferred
        readers = {item.window.reader for item in deferred}
        window = gathered(deferred, all(self._shares(reader, number) for reader in readers), readers == {number})
        further = self._run_stage(number, window, [item.score for item in deferred])
        for item, answer in zip(deferred, window.answers, strict=True):
            item.window.answers[item.place] = answer
        return [replace(deferred[hard.place], score=hard.score) for hard in further]

    def _run_stage(self, number: int, window: Window, scores: Sequence[float | None] = ()) -> list[Deferred]:
        """Answer a window at a stage; return what it defers. At the last stage the scores stay as they are."""
        stage, further = self.stages[number], []
        if number < len(self.stages) - 1:
            scored = self._scored(stage, window, stage.threshold)
            scores = scored.scores
        else:
            scored = self.runners[stage.name].answer(window)
            scored = replace(scored, answers=self._labels(stage, window, scored.answers))
        probabilities = scored.probabilities or [None] * len(window)
        answers = zip(window.ids, scored.answers, probabilities, scores, scored.deferred, strict=True)
        for place, (input_id, label, probability, score, hard) in enumerate(answers):
            if hard:
                further.append(Deferred(window, place, score))
            else:
                answer = answer_in(self.task, label)
                window.answers[place] = Prediction(input_id, label, probability, score, stage.name, answer=answer)
        return further

    def _scored(self, stage: Stage, window: Window, threshold: float) -> Scored:
        """What a stage answers, with labels: ``None`` for an input that was deferred unanswered."""
        scored: Scored = self.runners[stage.name].score(window, stage.score, threshold)
        if not all(map(math.isfinite, scored.scores)):
            check_finite(torch.tensor(scored.scores), "score")
        return replace(scored, answers=self._labels(stage, window, scored.answers))

    def _labels(self, stage: Stage, window: Window, answers: Sequence[Any]) -> list[Any]:
        """What a user reads of answers; ``None`` where there is none."""
        # A model answers in the order of the cascade's classes, any other backend in the order of its own.
        choices: Sequence[Any] = window.choices or [None] * len(window)
        task = self.task
        if not isinstance(stage.backend, ModelRunner):
            task = stage.backend.task
            # No answer; NaN, of a regression, does not equal itself.
            answers = [None if one == task.kind.unknown or one != one else one for one in answers]
        return [
            None if answer is None else task.kind.answer(answer, task, candidates)
            for answer, candidates in zip(answers, choices, strict=True)
        ]

    def score_stage(
        self, number: int, rows: list[tuple[str, ...]], choices: Choices = None, threshold: float | None = None
    ) -> Scored:
        """What one stage answers to texts, as :meth:`rows` gives them; the last one's scores mean nothing.

        ``threshold`` takes the place of the stage's.
        """
        stage = self.stages[number]
        if stage.score is not None:
            window = self._prepare(rows, choices, number)
            return self._scored(stage, window, stage.threshold if threshold is None else threshold)
        window = self._window(rows, choices)
        scored: Scored = self.runners[stage.name].answer(window)
        return replace(scored, answers=self._labels(stage, window, scored.answers))

    def _shares(self, reader: int, number: int) -> bool:
        """Whether a stage turns texts into the same tokens as the ``reader``, the stage that has made them."""
        if (reader, number) not in self._sharing:
            first, other = self.stages[reader].backend, self.stages[number].backend
            self._sharing[reader, number] = isinstance(first, ModelRunner) and (
                other is first or first.reads_like(other)
            )
        return self._sharing[reader, number]
