"""The protocols of whatever answers examples, and what its answers consist of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

from elang.data.examples import Examples
from elang.errors import InputError
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

    def score(self, examples: Examples, score: str, threshold: float) -> Scored:
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


Columns = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Columns of a table with one row an example: shape and type of a row's value, by name."""


@dataclass(frozen=True)
class Answer:
    """What a model says of a batch.

    Attributes:
        logits: float32 ``(B, C)``: one for each class or candidate, ``-inf`` for a candidate that an example does not
            have; in a regression the value, ``(B, 1)``; of a ``sequence`` task the decoder's over the references'
            tokens, ``(B, T, V)``, in their own precision.
        prediction: int64 ``(B,)``, -1 for a generated answer that names no label; in a regression float64. Without
            meaning in a ``sequence`` task.
        loss: The task loss, a scalar, where a target was given.
        pooled: Mean last hidden state of the (encoder's) real tokens, ``(B, D)``; ``None`` without heads.
        early: Logits of the head on the encoder's output, ``(B, C)``; ``None`` but for an encoder-decoder's.
        steps: Decoder steps of a generated answer, int64 ``(B,)``; ``None`` for any other.
        source: What a ``sequence`` task's encoder made of the batch; ``None`` for any other.
        states: An encoder's hidden states, embeddings first, each ``(B, L, D)``, where they were asked for.
    """

    logits: Tensor
    prediction: Tensor
    loss: Tensor | None = None
    pooled: Tensor | None = None
    early: Tensor | None = None
    steps: Tensor | None = None
    source: Any = None
    states: tuple[Tensor, ...] | None = None


# So that FSDP finds the tensors of an answer.
register_dataclass(Answer)


@dataclass(frozen=True)
class Encoded:
    """What is known of a batch before the decoder runs.

    Attributes:
        hidden: The encoder's output, ``(B, L, D)``.
        mask: 1 on real tokens, ``(B, L)``.
        pooled: Its mean over them, detached, ``(B, D)``; ``None`` without heads.
        early: Logits of the head on it, ``(B, C)``; ``None`` without heads.
    """

    hidden: Tensor
    mask: Tensor
    pooled: Tensor | None
    early: Tensor | None

    def __getitem__(self, rows: Tensor) -> Encoded:
        pooled, early = (None if part is None else part[rows] for part in (self.pooled, self.early))
        return Encoded(self.hidden[rows], self.mask[rows], pooled, early)


def owner(counts: Tensor) -> Tensor:
    """Which example each candidate is of: counts ``(B,)`` to indices ``(sum,)``."""
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def sum_by_example(values: Tensor, counts: Tensor) -> Tensor:
    """Sum candidates' values ``(sum, ...)`` over each example, ``(B, ...)``."""
    return values.new_zeros(len(counts), *values.shape[1:]).index_add(0, owner(counts), values)


def spread(values: Tensor, counts: Tensor, width: int) -> Tensor:
    """Candidates' values ``(sum,)`` as rows ``(B, width)``, ``-inf`` where an example has no such candidate."""
    row = owner(counts)
    column = torch.arange(len(values), device=values.device) - (counts.cumsum(0) - counts)[row]
    return values.new_full((len(counts), width), -torch.inf).index_put((row, column), values)


def check_choices(most: int, width: int) -> None:
    """Refuse an example with more candidates than a task allows for."""
    if most > width:
        raise InputError(f"An example has {most} candidates, but its task allows for {width}. Raise the task's limit.")
