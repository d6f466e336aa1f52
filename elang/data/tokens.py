"""Tokenised texts and examples without padding, and the batches that a model reads of them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elang.tasks.text_task import TextTask

IGNORED = -100


class Reader(NamedTuple):
    """How a model reads: its tokenizer, whether it takes a prompt (text-to-text) or segments, a task of its own."""

    tokenizer: Any
    text_to_text: bool
    task: TextTask | None = None


@dataclass(frozen=True)
class EncodedTexts:
    """Token columns of many texts, each flat, with the offsets of the texts.

    Attributes:
        columns: ``input_ids`` and, for some models, ``token_type_ids``, int32 ``(total tokens,)``.
        offsets: int64 ``(N + 1,)``.
        pad: The value that pads each column.
        truncated: How many texts were longer than the limit and were cut.
        left: They are padded on the left, not on the right.
    """

    columns: dict[str, Tensor]
    offsets: Tensor
    pad: dict[str, int]
    truncated: int
    left: bool = False

    @property
    def lengths(self) -> Tensor:
        """Token lengths, int64 ``(N,)``."""
        return self.offsets.diff()

    def take(self, rows: Tensor) -> "EncodedTexts":
        """Some of these texts; what was cut of them has been counted."""
        lengths = self.lengths[rows]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        place = torch.arange(int(offsets[-1])) + (self.offsets[rows] - offsets[:-1]).repeat_interleave(lengths)
        columns = {name: column[place] for name, column in self.columns.items()}
        return EncodedTexts(columns, offsets, self.pad, 0, self.left)

    def __add__(self, other: "EncodedTexts") -> "EncodedTexts":
        """These texts and, behind them, others of the same tokenizer."""
        columns = {name: torch.cat([column, other.columns[name]]) for name, column in self.columns.items()}
        offsets = torch.cat([self.offsets, self.offsets[-1] + other.offsets[1:]])
        return EncodedTexts(columns, offsets, self.pad, self.truncated + other.truncated, self.left)

    def batch(self, rows: list[int]) -> dict[str, Tensor]:
        """Model inputs for some rows, padded to the longest of them; nothing for no rows."""
        if not rows:
            return {}
        chosen = torch.tensor(rows)
        start = self.offsets[chosen]
        lengths = self.offsets[chosen + 1] - start
        place = torch.arange(int(lengths.max()))
        if self.left:
            place = place + (lengths - len(place))[:, None]
        mask = (place >= 0) & (place < lengths[:, None]) if self.left else place < lengths[:, None]
        # Beside a short text the place is another's, or none.
        index = (start[:, None] + place).clamp(0, max(0, int(self.offsets[-1]) - 1))
        out = {name: torch.where(mask, column[index].long(), self.pad[name]) for name, column in self.columns.items()}
        out["attention_mask"] = mask.long()
        return out


@dataclass(frozen=True)
class EncodedExamples:
    """The inputs of one model for many examples.

    Attributes:
        texts: What it reads: one text (or pair) an example or, for an encoder that weighs candidates, one a candidate.
        starts: Where each example's candidates begin among all, int64 ``(N + 1,)``; ``None`` without candidates.
        answers: The candidates as a text-to-text model would say them, or, without ``starts``, the reference of each
            example; ``None`` where the answers are fixed.
    """

    texts: EncodedTexts
    starts: Tensor | None = None
    answers: EncodedTexts | None = None

    @property
    def lengths(self) -> Tensor:
        """Tokens that are read for each example, int64 ``(N,)``."""
        if self.starts is None or self.answers is not None:
            return self.texts.lengths
        return self.texts.offsets[self.starts].diff()

    def __add__(self, other: "EncodedExamples") -> "EncodedExamples":
        """These examples and, behind them, others, all without candidates or references."""
        return EncodedExamples(self.texts + other.texts)

    def batch(self, examples: list[int]) -> dict[str, Tensor]:
        """Model inputs for some examples; nothing for none.

        Where there are candidates, ``num_choices`` ``(B,)`` says how many each example has; an encoder's inputs then
        have one row a candidate, a text-to-text model's ``answer_ids`` do (padded with -100). Where there are
        references they are ``labels`` ``(B, T)``, padded alike.
        """
        if self.starts is None or not examples:
            own = {"labels": padded_answers(self.answers, examples)} if self.answers is not None and examples else {}
            return self.texts.batch(examples) | own
        rows = [row for e in examples for row in range(int(self.starts[e]), int(self.starts[e + 1]))]
        out = self.texts.batch(rows if self.answers is None else examples)
        out["num_choices"] = self.starts.diff()[examples]
        if self.answers is not None:
            out["answer_ids"] = padded_answers(self.answers, rows)
        return out


def padded_answers(answers: EncodedTexts, rows: list[int]) -> Tensor:
    """Tokens of some answers, int64 ``(B, T)``, padded with -100."""
    said = answers.batch(rows)
    return said["input_ids"].masked_fill(said["attention_mask"] == 0, IGNORED)
