"""The protocols of everything that answers examples, and the tensors that its answers consist of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

from elang.data.examples import Examples
from elang.errors import InputError
from elang.records.table import Records
from elang.tasks.kind import Kind
from elang.tasks.text_task import TextTask


class Backend(Protocol):
    """Answers the examples of a task, :attr:`task`.

    A class of your own needs one line in :data:`elang.backends.loading.load.SCHEMES` to be a Super.
    """

    task: TextTask

    def answer(self, examples: Examples) -> Records:
        """Answer examples of one source (:attr:`elang.data.examples.Examples.source`), in their order, with their ids.

        Raises InputError if an example cannot be answered.
        """


class ScoringBackend(Backend, Protocol):
    """Also scores how hard each example is (:attr:`score_names`), so that it can defer examples to another backend."""

    score_names: tuple[str, ...]

    def score(self, examples: Examples, score: str, threshold: float) -> "Scored":
        """Answer examples, and defer those whose ``score``, one of :attr:`score_names`, is above the threshold."""


@dataclass(frozen=True)
class Scored:
    """Answers with their scores (larger is harder), one for each example, and whether another backend is to answer.

    The answers are as :meth:`elang.tasks.kind.Kind.answer` takes them; ``None`` for an example that was deferred before
    it was answered, or that the backend has no answer to. The probabilities are those of the answers, where known.
    """

    answers: Sequence[str | float | None]
    scores: Sequence[float]
    deferred: Sequence[bool]
    probabilities: Sequence[float | None] | None = None

    @classmethod
    def of(cls, records: Records, kind: Kind, scores: Sequence[float], deferred: Sequence[bool]) -> "Scored":
        """The answers of records to a kind of task."""
        answers = records.prediction.tolist() if records.texts is None else records.texts
        return cls(answers, scores, deferred, kind.probabilities(records.logits, records.prediction))


Columns = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Columns of a table with one row per example: shape and type of a row's value, by name."""


@dataclass(frozen=True)
class Encoded:
    """A batch that the encoder has read and the decoder has not."""

    hidden: Tensor  # the encoder's output, (B, L, D)
    mask: Tensor  # 1 on real tokens, (B, L)
    pooled: Tensor | None = None  # mean over real tokens, detached, (B, D), if there are heads
    early: Tensor | None = None  # logits of the head on it, (B, C), if there is that head

    def __getitem__(self, rows: Tensor) -> "Encoded":
        pooled, early = (None if part is None else part[rows] for part in (self.pooled, self.early))
        return Encoded(self.hidden[rows], self.mask[rows], pooled, early)


@dataclass(frozen=True)
class Answer:
    """A model's answer to a batch.

    Logits are float32 ``(B, C)``, one per class or candidate, ``-inf`` for a candidate that an example lacks; in a
    regression the value, ``(B, 1)``; in a ``sequence`` task the decoder's logits over the references' tokens,
    ``(B, T, V)``, in the model's precision, and the prediction means nothing.
    """

    logits: Tensor
    prediction: Tensor  # int64 (B,), -1 for a generated answer that names no label; in a regression float64
    loss: Tensor | None = None  # the task loss, a scalar, if there was a target
    pooled: Tensor | None = None  # mean last hidden state of the (encoder's) real tokens, (B, D), if there are heads
    early: Tensor | None = None  # logits of the head on an encoder-decoder's encoder, (B, C)
    steps: Tensor | None = None  # decoder steps of a generated answer, int64 (B,)
    source: Any = None  # the Encoded batch, in a sequence task
    states: tuple[Tensor, ...] | None = None  # an encoder's hidden states, embeddings first, each (B, L, D)


@dataclass(frozen=True)
class Generated:
    """What was generated for a batch."""

    encoded: Any  # what Generation.encode returned
    ids: Tensor  # tokens without the start or prompt, padded, int64 (B, T)
    steps: Tensor  # tokens of each text, the end token included, int64 (B,)
    scores: Tensor  # SEQUENCE_SCORES, float32 (B, 30)


# So that FSDP finds the tensors of an answer.
register_dataclass(Answer)


def owner(counts: Tensor) -> Tensor:
    """The example that each candidate belongs to: counts ``(B,)`` to indices ``(sum,)``."""
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def sum_by_example(values: Tensor, counts: Tensor) -> Tensor:
    """Sum candidates' values ``(sum, ...)`` over each example, ``(B, ...)``."""
    return values.new_zeros(len(counts), *values.shape[1:]).index_add(0, owner(counts), values)


def spread(values: Tensor, counts: Tensor, width: int) -> Tensor:
    """Arrange candidates' values ``(sum,)`` as rows ``(B, width)``, ``-inf`` where an example has no such candidate."""
    row = owner(counts)
    column = torch.arange(len(values), device=values.device) - (counts.cumsum(0) - counts)[row]
    return values.new_full((len(counts), width), -torch.inf).index_put((row, column), values)


def check_choices(count: int, limit: int) -> None:
    """Refuse an example with more candidates than a task allows."""
    if count > limit:
        raise InputError(f"An example has {count} candidates, but its task allows {limit}. Raise the task's limit.")
