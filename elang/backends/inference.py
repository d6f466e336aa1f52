"""How a model answers in inference: batches of any size, or small ones by passes of fixed shapes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elang.backends.fast.graphs import Pass
from elang.tasks.text_task import TextTask


@dataclass(frozen=True)
class BatchAnswers:
    """The answers to a batch in inference.

    Attributes:
        table: Each input's score (0 without one), answer, and :meth:`Inference.checksum`, ``(B, 3)``, on the device.
        texts: What was generated, ``None`` for an input that was deferred before the decoder; of a model that chooses
            among answers ``None`` altogether.
    """

    table: Tensor
    texts: list[str | None] | None = None


class Inference(nn.Module, ABC):
    """The part of a :class:`~elang.backends.text_model.TextModel` that answers and scores, for all families.

    Attributes:
        task: What it answers.
        tokenizer: Its tokenizer.
    """

    task: TextTask
    tokenizer: Any

    @abstractmethod
    def score_of(self, name: str, answer: Any, temperature: float = 1.0) -> Tensor:
        """One difficulty score of an answer to a batch, ``(B,)``; larger is harder."""

    def predict(self, logits: Tensor) -> Tensor:
        """The answer that the logits give: the best class or candidate, int64, or the value, float64, ``(B,)``."""
        return self.task.kind.predict(logits)

    @property
    def decoded(self) -> int:
        """Tokens whose logits over the vocabulary an input takes, at most about; 0 where nothing is decoded."""
        return 0

    @property
    def max_new_tokens(self) -> int:
        """Tokens that are generated at most; 0 where no text is."""
        return 0

    def configure_generation(self, max_new_tokens: int, num_beams: int | None = None) -> None:
        """Set how a model of a kind of task that generates does so; without ``num_beams`` the beams stay."""
        raise NotImplementedError

    def texts(self, ids: Tensor) -> list[str]:
        """Generated tokens as text."""
        filled = ids.masked_fill(ids < 0, self.tokenizer.pad_token_id)
        return [text.strip() for text in self.tokenizer.batch_decode(filled, skip_special_tokens=True)]

    def answer_batch(
        self,
        inputs: dict[str, Tensor],
        score: str | None = None,
        threshold: float = math.inf,
        *,
        temperature: float = 1.0,
        order: list[int] | None = None,
    ) -> BatchAnswers:
        """Answer and score a batch.

        Args:
            inputs: As :meth:`elang.data.batches.EncodedExamples.batch` makes them.
            score: The score that routes; ``None``: the batch is only answered.
            threshold: What scores above it is deferred, and not decoded if the score is known before the decoder runs.
            temperature: Of the scores.
            order: For each class of the answers its place among the logits; by default the same.
        """
        return BatchAnswers(self.answer_table(inputs, score, temperature, order))

    def short_way(
        self, score: str | None = None, temperature: float = 1.0, order: list[int] | None = None
    ) -> list[Pass] | None:
        """The same as passes of fixed shapes, which :class:`~elang.backends.fast.graphs.SmallBatches` can capture.

        Returns:
            One pass, whose table is that of :class:`BatchAnswers`; two where the score is known before the decoder: its
            column, then the table; four of a model that generates texts; ``None`` where there is no such way.
        """
        if self.task.kind.has_candidates:
            return None
        return [lambda inputs: (self.answer_table(inputs, score, temperature, order), None)]

    def answer_table(
        self, inputs: dict[str, Tensor], score: str | None, temperature: float, order: list[int] | None
    ) -> Tensor:
        """The table of :class:`BatchAnswers`, for a score that needs the logits."""
        answer = self(inputs)
        known = None if score is None else self.score_of(score, answer, temperature)
        return self.table(known, answer.logits, order)

    def table(self, score: Tensor | None, logits: Tensor, order: list[int] | None) -> Tensor:
        """The same of scores ``(B,)``, if there are any, and logits ``(B, C)``."""
        if order is not None:
            # Not by an index tensor: that would be copied to the device, which no graph can capture.
            logits = torch.stack([logits[:, place] for place in order], 1)
        score = logits.new_zeros(len(logits)) if score is None else score
        # By the logits: a text that was freely generated may be none of the answers.
        columns = score, self.predict(logits), self.checksum(logits)
        return torch.stack([column.to(self.task.kind.exact_type) for column in columns], 1)

    def checksum(self, logits: Tensor) -> Tensor:
        """A number that is finite where a row of logits ``(B, C)`` can be scored, float32 ``(B,)``; one kernel."""
        if not self.task.kind.has_candidates:
            return logits.float().sum(-1)
        # An example has fewer candidates than there are columns, but not none.
        return logits.masked_fill(logits == -math.inf, 0).float().sum(-1) + logits.amax(-1)
