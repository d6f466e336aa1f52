"""Whoever answers: a model here, a service elsewhere, a table of answers."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from elang.data.examples import Examples
from elang.records.table import Records
from elang.tasks.text_task import TextTask


class Backend(Protocol):
    """Answers examples of a task.

    One of your own is a class with a line in :data:`elang.backends.loading.load.SCHEMES`; it can then be the Super of
    `elang validate`.

    Attributes:
        task: What it answers.
    """

    task: TextTask

    def answer(self, examples: Examples) -> Records:
        """Answer examples.

        Args:
            examples: Of one source (:attr:`elang.data.examples.Examples.source`).

        Returns:
            The answers, in the order of the examples, with their ids.

        Raises:
            InputError: If one cannot be answered.
        """


class ScoringBackend(Backend, Protocol):
    """Also knows how hard an example is for it, so that another can stand behind it.

    Attributes:
        score_names: The difficulty scores that it has.
    """

    score_names: tuple[str, ...]

    def score(self, examples: Examples, score: str, threshold: float) -> "Scored":
        """Answer examples, and defer those that score above a threshold.

        Args:
            examples: As in :meth:`Backend.answer`.
            score: One of :attr:`score_names`.
            threshold: Of the score; ``inf`` defers none.
        """


@dataclass(frozen=True)
class Scored:
    """Answers with their scores.

    Attributes:
        answers: One for each example; of a deferred one without meaning where the score is known before the answer.
        scores: Larger is harder, ``(N,)``.
        deferred: Which examples another backend is to answer, bool ``(N,)``.
    """

    answers: Records
    scores: Tensor
    deferred: Tensor
