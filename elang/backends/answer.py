"""What a model says of a batch: before its decoder runs, in the end, and as columns of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

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
