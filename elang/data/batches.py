"""Encoded texts and examples, and batches of similar lengths."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from elang.data.examples import Examples
from elang.data.prompts import Prompt
from elang.tasks.text_task import TextTask

IGNORE_INDEX = -100


class Reader(NamedTuple):
    """How a model reads: its tokenizer, whether it takes a prompt (text-to-text) or segments, and its own task.

    A language model that answers after the prompt has a :class:`~elang.data.prompts.Prompt` and, if it writes texts, a
    token that ends them, and the tokens that a text may have.
    """

    tokenizer: Any
    text_to_text: bool
    task: TextTask | None = None
    prompt: Prompt | None = None
    end: int | None = None
    text: int = 0

    def limit(self, max_length: int, text: int | None = None) -> int:
        """The tokens that are kept of an input: the model's own limit may be lower than ``max_length``.

        ``text`` are those of a text that is to follow the prompt, by default as many as it may have.
        """
        reserved = self.prompt.reserved if self.prompt is not None else 0
        if self.end is not None:
            reserved += self.text if text is None else text
        return int(min(max_length, self.tokenizer.model_max_length - reserved))

    def text_limit(self, max_length: int) -> int:
        """The same of a text that the model writes; one after a prompt has half of the model's context."""
        own = self.tokenizer.model_max_length
        return int(min(max_length, own if self.end is None else own // 2))


@dataclass(frozen=True)
class EncodedTexts:
    """Token columns of many texts, each flat, with the offsets of the texts.

    Attributes:
        columns: ``input_ids`` and, for some models, ``token_type_ids``, int32 ``(total tokens,)``.
        offsets: int64 ``(N + 1,)``.
        pad: The value that pads each column.
        truncated: How many texts were longer than the limit and were cut.
        left: Pad on the left, not on the right.
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
        """Some of these texts, with a ``truncated`` of 0."""
        lengths = self.lengths[rows]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        index = torch.arange(int(offsets[-1])) + (self.offsets[rows] - offsets[:-1]).repeat_interleave(lengths)
        columns = {name: column[index] for name, column in self.columns.items()}
        return EncodedTexts(columns, offsets, self.pad, truncated=0, left=self.left)

    def __add__(self, other: EncodedTexts) -> EncodedTexts:
        """These texts followed by others of the same tokenizer."""
        columns = {name: torch.cat([column, other.columns[name]]) for name, column in self.columns.items()}
        offsets = torch.cat([self.offsets, self.offsets[-1] + other.offsets[1:]])
        truncated = self.truncated + other.truncated
        return EncodedTexts(columns, offsets, self.pad, truncated=truncated, left=self.left)

    def batch(self, rows: list[int]) -> dict[str, Tensor]:
        """Model inputs for some rows, padded to the longest of them; empty for no rows."""
        if not rows:
            return {}
        # By NumPy: a batch is small, and threads of PyTorch would wait for each other longer than the work takes.
        offsets = self.offsets.numpy()
        start = offsets[rows]
        lengths = offsets[np.asarray(rows) + 1] - start
        place = np.arange(lengths.max())
        if self.left:
            place = place + (lengths - len(place))[:, None]
        mask = (place >= 0) & (place < lengths[:, None])
        # Padding may index another text's tokens, or none.
        index = (start[:, None] + place).clip(0, max(0, offsets[-1] - 1))
        inputs = {"attention_mask": torch.from_numpy(mask.astype(np.int64))}
        for name, column in self.columns.items():
            inputs[name] = torch.from_numpy(np.where(mask, column.numpy()[index], self.pad[name]).astype(np.int64))
        return inputs


@dataclass(frozen=True)
class EncodedExamples:
    """The inputs of one model for many examples.

    Attributes:
        texts: What the model reads: one text (or pair) for each example, or for each candidate if an encoder compares
            candidates.
        starts: Index of each example's first candidate, int64 ``(N + 1,)``; ``None`` without candidates.
        answers: The candidates as a text-to-text model writes them or, without ``starts``, the reference of each
            example; ``None`` if the answers are fixed.
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
        """These examples followed by others, all without candidates or references."""
        return EncodedExamples(self.texts + other.texts)

    def batch(self, examples: list[int]) -> dict[str, Tensor]:
        """Model inputs for some examples; empty for none.

        With candidates, ``num_choices`` ``(B,)`` counts each example's. An encoder's inputs then have one row a
        candidate, as have a text-to-text model's ``answer_ids``. References are ``labels``. Both are ``(B, T)``, padded
        with -100.
        """
        if not examples:
            return {}
        if self.starts is None:
            inputs = self.texts.batch(examples)
            if self.answers is not None:
                inputs["labels"] = padded_answers(self.answers, examples)
            return inputs
        rows = [row for e in examples for row in range(int(self.starts[e]), int(self.starts[e + 1]))]
        inputs = self.texts.batch(rows if self.answers is None else examples)
        inputs["num_choices"] = self.starts.diff()[examples]
        if self.answers is not None:
            inputs["answer_ids"] = padded_answers(self.answers, rows)
        return inputs


def padded_answers(answers: EncodedTexts, rows: list[int]) -> Tensor:
    """Tokens of some answers, int64 ``(B, T)``, padded with -100."""
    batch = answers.batch(rows)
    return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)


class SplitBatches(Dataset[dict[str, Any]]):
    """Maps a list of rows to a batch: ``id``, ``key``, ``unit``, ``label``, and each model's inputs under its name.

    ``repeated`` tells whether another process has the same batch.
    """

    def __init__(self, examples: Examples, encoded: dict[str, EncodedExamples]) -> None:
        self.columns = {"id": examples.id, "key": examples.key, "unit": examples.units, "label": examples.label}
        self.targets, self.encoded = examples.targets, encoded

    def __len__(self) -> int:
        return len(self.columns["id"])

    def __getitem__(self, rows: Any) -> dict[str, Any]:
        batch: dict[str, Any] = {name: column[rows] for name, column in self.columns.items()}
        batch["repeated"] = isinstance(rows, Repeated)
        batch["targets"] = {name: column[rows] for name, column in self.targets.items()}
        return batch | {name: encoded.batch(rows) for name, encoded in self.encoded.items()}


class Repeated(list[int]):
    """A batch that another process has, too: it is run, and its results are dropped."""


class LengthBatches(DistributedSampler[Any]):
    """Yields batches of similar lengths; each process takes every ``world_size``-th of them.

    Without shuffling, the batches do not depend on the number of processes, so neither do the answers. It is a
    ``DistributedSampler`` so that Lightning does not replace it with its own, which pads. Give it to a ``DataLoader``
    as ``sampler`` with ``batch_size=None``.

    Args:
        lengths: Token lengths, ``(N,)``.
        batch_size: Examples in a batch.
        shuffle: For training: draw new batches each epoch, of similar lengths within a window of 50 batches, and repeat
            the first ones if needed so that all processes take the same number of steps. Otherwise every example comes
            once; a process with fewer batches gets a :class:`Repeated` one, because all must run a sharded model, and
            take part in a gather, equally often.
        rank: Number of this process.
        world_size: Number of processes.
        current_epoch: Returns the epoch, given the batches of one; Lightning's ``set_epoch`` is wrong after a resume.
        rows: For evaluation: only these, ``(M,)``.
        accumulated: For training: batches of each process in one step. All batches of a step have similar lengths,
            because every process waits for the slowest. A window is then up to 50 steps, but at most a quarter of the
            examples, or each epoch would have the same steps.
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
        # Set by Lightning's seed_everything.
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.rows = torch.arange(len(lengths)) if rows is None else rows
        super().__init__(range(len(self.rows)), world_size, rank, shuffle, seed)  # type: ignore[arg-type]
        self.lengths, self.batch_size, self.current_epoch = lengths, batch_size, current_epoch
        self.batches_per_step = world_size * accumulated

    def _batches(self) -> list[list[int]]:
        n = len(self.lengths)
        if not self.shuffle:
            order = self.rows[self.lengths[self.rows].argsort(descending=True, stable=True)]
            batches = [part.tolist() for part in order.split(self.batch_size)]
            # The last batch is the shortest.
            return batches + [Repeated(batches[-1]) for _ in range(-len(batches) % self.num_replicas)]
        epoch = self.epoch if self.current_epoch is None else self.current_epoch(len(self))
        generator = torch.Generator().manual_seed(self.seed + epoch)
        step = self.batches_per_step
        size = step * self.batch_size
        window = self._WINDOW if step == 1 else min(self._WINDOW, max(1, n // (4 * size)))
        steps: list[list[list[int]]] = []
        last: list[list[int]] = []
        for rows in torch.randperm(n, generator=generator).split(window * size):
            rows = rows[self.lengths[rows].argsort(stable=True)]
            batches = [part.tolist() for part in rows.split(self.batch_size)]
            if remainder := len(batches) % step:
                # A smaller step must come last, or all later steps would shift. It is drawn at random: if it always had
                # the longest texts, these would count less.
                place = step * int(torch.randint(len(batches) // step + 1, (), generator=generator))
                last, batches = batches[place : place + remainder], batches[:place] + batches[place + remainder :]
            steps += [batches[i : i + step] for i in range(0, len(batches), step)]
        order = torch.randperm(len(steps), generator=generator)
        drawn = [*chain.from_iterable(steps[i] for i in order.tolist()), *last]
        return drawn + [drawn[i % len(drawn)] for i in range(-len(drawn) % self.num_replicas)]

    def __iter__(self) -> Iterator[list[int]]:
        yield from self._batches()[self.rank :: self.num_replicas]

    def __len__(self) -> int:
        batches = -(-len(self.rows) // self.batch_size)
        return -(-batches // self.num_replicas)


def token_batches(lengths: Tensor, budget: int, max_size: int | None = None) -> list[Tensor]:
    """Cut inputs into batches of similar lengths, int64 ``(N,)``, with at most ``budget`` tokens, padding included.

    A longer input is a batch of its own. The longest come first, so that what does not fit into memory fails at once.

    >>> import torch
    >>> [batch.tolist() for batch in token_batches(torch.tensor([2, 9, 3, 2]), 6)]
    [[1], [2, 0], [3]]
    """
    order = lengths.argsort(descending=True, stable=True)
    longest = lengths[order].tolist()
    batches, start = [], 0
    while start < len(longest):
        size = max(1, budget // max(1, longest[start]))
        end = min(len(longest), start + (size if max_size is None else min(size, max_size)))
        batches.append(order[start:end])
        start = end
    return batches
