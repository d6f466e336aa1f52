"""Tokenised texts without padding, and batches of like lengths shared out over processes."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from elang.data.format import TextTask

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


def encode_examples(
    reader: Reader,
    task: TextTask,
    texts: list[tuple[str, ...]],
    choices: list[tuple[str, ...]] | None,
    max_length: int,
    references: list[str] | None = None,
    max_target_length: int = 0,
) -> EncodedExamples:
    """Tokenise examples for one model, inputs over ``max_length`` tokens being cut and counted.

    Args:
        reader: The model's.
        task: Gives the templates.
        texts: The values of ``task.fields`` for each example.
        choices: Each example's candidates, in a ``choice`` task.
        max_length: In tokens.
        references: What is to be generated, in a ``sequence`` task.
        max_target_length: In tokens, of these.
    """
    task = reader.task or task
    candidates = choices if choices is not None else [()] * len(texts)
    starts = torch.tensor([0, *(len(c) for c in candidates)]).cumsum(0) if choices is not None else None
    if not reader.text_to_text:
        rows = [row for t, c in zip(texts, candidates, strict=True) for row in task.segment_texts(t, c)]
        return EncodedExamples(encode(reader.tokenizer, rows, max_length), starts)
    found = encode(reader.tokenizer, [(task.prompt_text(t),) for t in texts], max_length)
    if references is not None:
        said = encode(reader.tokenizer, [(r,) for r in references], max_target_length, answers=True)
        return EncodedExamples(found, answers=said)
    if starts is None or task.answers:
        return EncodedExamples(found)
    said = encode(reader.tokenizer, [(c,) for example in candidates for c in example], max_length, answers=True)
    return EncodedExamples(found, starts, said)


def encode(tokenizer: Any, texts: list[tuple[str, ...]], max_length: int, answers: bool = False) -> EncodedTexts:
    """Tokenise texts or pairs, cutting (and counting) those over ``max_length`` tokens.

    Padding and truncation are set in every call, for a tokenizer's own file can fix both.

    Args:
        tokenizer: Of a model.
        texts: One or two an example.
        max_length: In tokens, special ones included.
        answers: They are what a text-to-text model is to say, which some tokenizers write differently.
    """
    found, cut = _columns(tokenizer, texts, max_length, answers)
    lengths = torch.tensor([len(ids) for ids in found["input_ids"]])
    total = int(lengths.sum())
    columns = {
        name: torch.from_numpy(np.fromiter(chain.from_iterable(rows), np.int32, total)) for name, rows in found.items()
    }
    for name in pad_of(tokenizer).keys() - columns.keys():
        columns[name] = torch.zeros(total, dtype=torch.int32)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return EncodedTexts(columns, offsets, pad_of(tokenizer), cut, pads_left(tokenizer) and not answers)


def _columns(
    tokenizer: Any, texts: list[tuple[str, ...]], max_length: int, answers: bool = False
) -> tuple[dict[str, list[list[int]]], int]:
    """Columns of tokens of texts or pairs, one list a text, and how many texts were cut; as :func:`encode` says.

    The tokens' types are left out where all are 0.
    """
    pair = len(texts[0]) == 2

    def tokens(some: list[tuple[str, ...]], **options: Any) -> Any:
        given = {"text_target" if answers else "text": [t[0] for t in some]}
        return tokenizer(
            **given,
            text_pair=[t[1] for t in some] if pair else None,
            padding=False,
            return_attention_mask=False,
            verbose=False,
            **options,
        )

    found = None if answers else _backend_columns(tokenizer, texts)
    if found is None:
        found = dict(tokens(texts, truncation=False))
    over = [i for i, ids in enumerate(found["input_ids"]) if len(ids) > max_length]
    if over:
        cut = tokens([texts[i] for i in over], truncation=True, max_length=max_length)
        for name, rows in found.items():
            for place, row in zip(over, cut[name], strict=True):
                rows[place] = row
    return found, len(over)


def token_lists(
    reader: Reader, task: TextTask, texts: list[tuple[str, ...]], max_length: int
) -> tuple[list[dict[str, list[int]]], int]:
    """Tokens of few examples without candidates: as :func:`encode_examples` makes them, in a fraction of the time.

    Returns:
        The columns of each example, and how many examples were cut.
    """
    task = reader.task or task
    rows = [(task.prompt_text(t),) if reader.text_to_text else task.segment_texts(t)[0] for t in texts]
    columns, cut = _columns(reader.tokenizer, rows, max_length)
    if len(texts) > 1:
        for name in pad_of(reader.tokenizer).keys() - columns.keys():
            columns[name] = [[0] * len(ids) for ids in columns["input_ids"]]
    return [dict(zip(columns, one, strict=True)) for one in zip(*columns.values(), strict=True)], cut


def _backend_columns(tokenizer: Any, texts: list[tuple[str, ...]]) -> dict[str, list[list[int]]] | None:
    """Uncut tokens straight from a fast tokenizer's backend; ``None`` where the tokenizer does more than it.

    Wrapping what comes from it into the library's objects takes as long again as tokenising on some cores.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kind: Any = type(tokenizer)
    if backend is None or not _plain_kind(kind):
        return None
    # A tokenizer's file can have set both.
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if len(texts) == 1:
        # Threads that share out a single text take longer than it.
        made = [backend.encode(*texts[0])]
    else:
        made = backend.encode_batch_fast([t[0] for t in texts] if len(texts[0]) == 1 else texts)
    columns = {"input_ids": [one.ids for one in made]}
    if "token_type_ids" in tokenizer.model_input_names:
        # All texts that stand alone have the same types, which are mostly 0.
        if len(texts[0]) == 1 < len(texts) and not any(backend.encode("a").type_ids):
            return columns
        columns["token_type_ids"] = [one.type_ids for one in made]
    return columns


@cache
def _plain_kind(kind: type) -> bool:
    """Whether a class of tokenizers adds nothing to what its backend does."""
    from transformers import PreTrainedTokenizerFast

    steps = ("__call__", "_encode_plus", "_batch_encode_plus", "batch_encode_plus", "encode_plus")
    return all(getattr(kind, step, None) is getattr(PreTrainedTokenizerFast, step, None) for step in steps)


def pad_of(tokenizer: Any) -> dict[str, int]:
    """The columns that a tokenizer makes, and what pads each."""
    pad_id = tokenizer.pad_token_id
    pad = {"input_ids": 0 if pad_id is None else pad_id}
    if "token_type_ids" in tokenizer.model_input_names:
        pad["token_type_ids"] = tokenizer.pad_token_type_id
    return pad


def pads_left(tokenizer: Any) -> bool:
    """Whether texts are padded on the left: :mod:`elang.models.families` decides it when a model is loaded."""
    return bool(getattr(tokenizer, "padding_side", "right") == "left")


def same_tokens(one: Any, other: Any) -> bool:
    """Whether two tokenizers make the same of every text: their backends, columns and padding."""

    def described(tokenizer: Any) -> Any:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        kind: Any = type(tokenizer)
        if backend is None or not _plain_kind(kind):
            return None
        # Cut and padded are texts by others.
        parts = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("truncation", "padding")}
        return parts, backend.encode_special_tokens, pad_of(tokenizer), pads_left(tokenizer)

    found = described(one)
    return found is not None and found == described(other)


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
        seed: Of the shuffle.
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
        seed: int = 0,
        current_epoch: Callable[[int], int] | None = None,
        rows: Tensor | None = None,
        accumulated: int = 1,
    ) -> None:
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
