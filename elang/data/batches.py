"""Encoded texts and examples, in batches of similar lengths."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

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

    def take(self, rows: Tensor) -> EncodedTexts:
        """Some of these texts; what was cut of them has been counted."""
        lengths = self.lengths[rows]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        place = torch.arange(int(offsets[-1])) + (self.offsets[rows] - offsets[:-1]).repeat_interleave(lengths)
        columns = {name: column[place] for name, column in self.columns.items()}
        return EncodedTexts(columns, offsets, self.pad, 0, self.left)

    def __add__(self, other: EncodedTexts) -> EncodedTexts:
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

    def __add__(self, other: EncodedExamples) -> EncodedExamples:
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


class Repeated(list[int]):
    """A batch that another process has, too: it is run, and what comes of it is dropped."""


class LengthBatches(DistributedSampler[Any]):
    """Yields whole batches of like lengths; each process takes every ``world_size``-th of them.

    Where not shuffled, the batches do not depend on the number of processes, so neither do the answers to them. It is a
    ``DistributedSampler`` so that Lightning does not put one of its own, which pads, in its place. Give it to a
    ``DataLoader`` as ``sampler`` with ``batch_size=None``.

    Args:
        lengths: Token lengths, ``(N,)``.
        batch_size: Examples in a batch.
        shuffle: For training: batches are drawn anew each epoch, of like lengths within a window of 50 batches,
            and the first ones are repeated where needed so that all processes take equally many steps.
            Otherwise every example comes exactly once; a process with fewer batches than others gets a
            :class:`Repeated` one, for all have to run a sharded model, and to take part in a gather, equally often.
        current_epoch: Tells the epoch from the number of batches in one; Lightning's ``set_epoch`` says 0 once more
            after a resume, and the order of the first epoch would come twice.
        rows: Of evaluation: only these, ``(M,)``.
        accumulated: Of training: batches of each process in one step. All batches of a step are of like lengths, for
            the slowest process holds up the others; then a window is of up to 50 steps, and of a quarter of the
            examples at most, or each epoch would have the same steps.
    """

    _WINDOW = 50

    def __init__(
        self,
        lengths: Tensor,
        batch_size: int,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        current_epoch: Callable[[int], int] | None = None,
        rows: Tensor | None = None,
        accumulated: int = 1,
    ) -> None:
        # The shuffle's, as Lightning's seed_everything leaves it.
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.rows = torch.arange(len(lengths)) if rows is None else rows
        super().__init__(range(len(self.rows)), world_size, rank, shuffle, seed)  # type: ignore[arg-type]
        self.lengths, self.batch_size, self.current_epoch = lengths, batch_size, current_epoch
        self.step = world_size * accumulated

    def _batches(self) -> list[list[int]]:
        n = len(self.lengths)
        if not self.shuffle:
            order = self.rows[self.lengths[self.rows].argsort(descending=True, stable=True)]
            batches = [part.tolist() for part in order.split(self.batch_size)]
            # The last one: it is the shortest.
            return batches + [Repeated(batches[-1]) for _ in range(-len(batches) % self.num_replicas)]
        epoch = self.epoch if self.current_epoch is None else self.current_epoch(len(self))
        generator = torch.Generator().manual_seed(self.seed + epoch)
        size = self.step * self.batch_size
        window = self._WINDOW if self.step == 1 else min(self._WINDOW, max(1, n // (4 * size)))
        steps: list[list[list[int]]] = []
        last: list[list[int]] = []
        for some in torch.randperm(n, generator=generator).split(window * size):
            some = some[self.lengths[some].argsort(stable=True)]
            parts = [part.tolist() for part in some.split(self.batch_size)]
            if rest := len(parts) % self.step:
                # Behind a smaller step none would start where it should; always of the longest, these would count less.
                place = self.step * int(torch.randint(len(parts) // self.step + 1, (), generator=generator))
                last, parts = parts[place : place + rest], parts[:place] + parts[place + rest :]
            steps += [parts[i : i + self.step] for i in range(0, len(parts), self.step)]
        places = torch.randperm(len(steps), generator=generator).tolist()
        drawn = [*chain.from_iterable(steps[i] for i in places), *last]
        return drawn + [drawn[i % len(drawn)] for i in range(-len(drawn) % self.num_replicas)]

    def __iter__(self) -> Iterator[list[int]]:
        yield from self._batches()[self.rank :: self.num_replicas]

    def __len__(self) -> int:
        batches = -(-len(self.rows) // self.batch_size)
        return -(-batches // self.num_replicas)


def token_batches(lengths: Tensor, budget: int, most: int | None = None) -> list[Tensor]:
    """Cut inputs into batches of like lengths, none of which has more than ``budget`` tokens with its padding.

    Args:
        lengths: Tokens of each input, int64 ``(N,)``.
        budget: Tokens in a batch; a longer input is a batch of its own.
        most: Inputs in a batch at most.

    Returns:
        Row numbers, longest first, so that what does not fit into memory is seen at once.

    >>> import torch
    >>> [batch.tolist() for batch in token_batches(torch.tensor([2, 9, 3, 2]), 6)]
    [[1], [2, 0], [3]]
    """
    order = lengths.argsort(descending=True, stable=True)
    longest = lengths[order].tolist()
    batches, start = [], 0
    while start < len(longest):
        size = max(1, budget // max(1, longest[start]))
        end = min(len(longest), start + (size if most is None else min(size, most)))
        batches.append(order[start:end])
        start = end
    return batches
