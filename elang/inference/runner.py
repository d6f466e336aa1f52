"""Runs a model over windows of texts: in batches that fit into memory, or a few texts at a time by the short way."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from elang.backends.backend import Scored
from elang.backends.fast.graphs import SmallBatches, any_shape
from elang.backends.network import BatchAnswers, InferenceOptions
from elang.backends.text_model import TextModel
from elang.data.batches import EncodedExamples, token_batches
from elang.data.encoding import encode_examples, pad_of, pads_left, same_tokens, token_lists
from elang.errors import InputError, counted
from elang.inference.stream import Window
from elang.method.scores import BEFORE_DECODER
from elang.notices import notice
from elang.tasks.text_task import TextTask

# The logits over a vocabulary take as much memory as this many tokens.
_TOKENS_PER_LOGITS = 8
# Truncated inputs that are named.
_SHOWN = 3


@dataclass(frozen=True)
class BatchLimits:
    """How much a model is given at a time: tokens of an input, tokens (with padding) and inputs of a batch.

    Windows of up to ``short_way`` inputs take the short way of :mod:`elang.backends.fast.graphs`. ``option`` is the
    option that sets ``tokens``, for messages.
    """

    max_length: int
    tokens: int
    batch_size: int | None = None
    short_way: int = 0
    option: str = "tokens"


class ModelRunner:
    """Runs a model, ``who`` in messages, over the windows of a cascade: the backend of a stage.

    ``scoring`` is the score that routes and its temperature, ``None`` for the last stage. ``order`` is the position of
    each answer's class among the model's logits, by default the same. With ``any_pairs`` it takes pairs of texts, too,
    because nothing says what it was trained on.
    """

    def __init__(
        self,
        model: TextModel,
        who: str,
        limits: BatchLimits,
        *,
        device: torch.device,
        task: TextTask,
        any_pairs: bool = False,
        scoring: tuple[str, float] | None = None,
        order: list[int] | None = None,
    ) -> None:
        self.model, self.who, self.device = model, who, device
        self.task, self._any_pairs = task, any_pairs
        # Fewer tokens once a batch did not fit into memory.
        self.limits, self.tokens, self.max_length = limits, limits.tokens, limits.max_length
        self._short_score = scoring[0] if scoring else None
        self._temperature = scoring[1] if scoring else 1.0
        self._order = None if order is None or order == list(range(len(order))) else order
        # Inputs that were truncated so far, and the numbers of the first ones.
        self.truncated, self.first_cut = 0, list[int]()
        self.small_batches: SmallBatches | None = None
        with torch.inference_mode():
            options = InferenceOptions(self._short_score, temperature=self._temperature, order=self._order)
            passes = model.short_way(options) if limits.short_way else None
            if passes is not None:
                self.small_batches = SmallBatches(
                    passes,
                    pad_of(model.tokenizer),
                    limits.short_way,
                    limit=self.limit,
                    device=device,
                    who=f"The {who}",
                    tokens=model.max_new_tokens,
                    left=pads_left(model.tokenizer),
                )

    @property
    def limit(self) -> int:
        """Tokens of an input at which it is truncated."""
        return self.model.reader.limit(self.max_length)

    def task_for(self, num_texts: int) -> TextTask:
        """The task for inputs of this many texts."""
        if num_texts != 2 or not self._any_pairs:
            return self.task
        return replace(self.task, fields=["text", "text_pair"], segments=["{text}", "{text_pair}"])

    def reads_like(self, other: Any) -> bool:
        """Whether both runners turn a text into the same tokens."""
        if not isinstance(other, ModelRunner) or self.task.plain() != other.task.plain():
            return False
        first, second = self.model.reader, other.model.reader
        same_format = first.text_to_text == second.text_to_text and first.prompt == second.prompt
        return same_format and self.limit == other.limit and same_tokens(first.tokenizer, second.tokenizer)

    def encode(self, texts: list[tuple[str, ...]], choices: list[tuple[str, ...]] | None) -> EncodedExamples:
        """The tokens of texts and of candidates."""
        return encode_examples(self.model.reader, self.task_for(len(texts[0])), texts, choices, self.limit)

    def token_lists(self, texts: list[tuple[str, ...]]) -> tuple[list[dict[str, list[int]]], int]:
        """The tokens of a few texts as lists, and how many texts were truncated."""
        return token_lists(self.model.reader, self.task_for(len(texts[0])), texts, self.limit)

    def batches(self, lengths: Tensor) -> list[Tensor]:
        """The row numbers of each batch for inputs of these lengths, int64 ``(N,)``."""
        return token_batches(self._memory(lengths), self.tokens, self.limits.batch_size)

    def _memory(self, lengths: Tensor) -> Tensor:
        """What inputs of these lengths take of the budget, in tokens."""
        return lengths.clamp_min(max(1, _TOKENS_PER_LOGITS * self.model.decoded))

    def inputs(self, encoded: EncodedExamples, rows: Tensor) -> dict[str, Tensor]:
        """A batch on the device."""
        inputs = encoded.batch(rows.tolist())
        if self.device.type == "cuda":
            # So that the copy does not wait for the device's queue.
            inputs = {name: value.pin_memory() for name, value in inputs.items()}
        return {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}

    def read(self, window: Window, short: bool = True) -> None:
        """Tokenise a window ahead of time, unless ``short`` is allowed and it takes the short way."""
        if not (short and self._takes_short_way(window)):
            window.encoded = self.encode(window.texts, window.choices)
            self._count_cut(window, window.encoded.texts.truncated, window.encoded.lengths.tolist())

    def _count_cut(self, window: Window, truncated: int, lengths: list[int]) -> None:
        """Count the truncated inputs of a window, and keep the numbers of the first ones."""
        self.truncated += truncated
        # A text may be just as long as the limit.
        for place in (i for i, length in enumerate(lengths) if truncated and length >= self.limit):
            if len(self.first_cut) == _SHOWN:
                break
            choices = None if window.choices is None else [window.choices[place]]
            if self.encode([window.texts[place]], choices).texts.truncated:
                self.first_cut.append(window.ids[place])

    def answer(self, window: Window) -> Scored:
        """The answers to a window; their scores mean nothing."""
        return self.score(window, None, math.inf)

    @torch.inference_mode()
    def score(self, window: Window, score: str | None, threshold: float) -> Scored:
        """Answer and score a window; inputs above the threshold are deferred, if possible before they are decoded."""
        if window.encoded is None and score == self._short_score and self._takes_short_way(window):
            answers, scores, probabilities = self._score_short(window, threshold)
        else:
            answers, scores, probabilities = self._score_batches(window, score, threshold)
        deferred = [value > threshold for value in scores]
        if score in BEFORE_DECODER:
            answers = [None if hard else answer for answer, hard in zip(answers, deferred, strict=True)]
        return Scored(answers, scores, deferred, probabilities if self.task.kind.chooses else None)

    def _takes_short_way(self, window: Window) -> bool:
        return self.small_batches is not None and window.choices is None and len(window) <= self.limits.short_way

    def _score_batches(
        self, window: Window, score: str | None, threshold: float
    ) -> tuple[list[Any], list[float], list[float]]:
        """The answers to a window, their scores, and their probabilities, which mean nothing for texts."""
        if window.encoded is None:
            self.read(window, short=False)
        assert window.encoded is not None
        order, tables, texts = [], [], list[str | None]([None]) * len(window)
        for rows, batch in self._answered_batches(window.encoded, score, threshold):
            order.append(rows)
            tables.append(batch.table)
            for place, text in zip(rows.tolist(), batch.texts or (), strict=False):
                texts[place] = text
        # Wait for the device once per window.
        table = torch.cat(tables).cpu()[torch.cat(order).argsort()]
        scores, answers, checksums, *more = table.T.tolist()
        self._check_logits(checksums, window)
        return texts if self.task.kind.generates else answers, scores, more[0] if more else []

    def _score_short(self, window: Window, threshold: float) -> tuple[list[Any], list[float], list[float]]:
        assert self.small_batches is not None
        tokens = window.token_lists
        if tokens is None:
            tokens, truncated = self.token_lists(window.texts)
            self._count_cut(window, truncated, [len(columns["input_ids"]) for columns in tokens])
            # The next model counts truncated texts itself.
            window.token_lists = None if truncated else tokens
        scores, *rest = self.small_batches.first(tokens)
        early = self._short_score in BEFORE_DECODER
        kept = [not early or score <= threshold for score in scores]
        if not any(kept):
            return [None] * len(scores), scores, [0.0] * len(scores)
        if self.task.kind.generates:
            late, *ids = self.small_batches.generate(kept)
            return list(self.model.texts(torch.tensor(ids).long().T)), scores if early else late, []
        if early:
            rest = self.small_batches.second(len(scores))[1:]
        answers, checksums, probabilities = rest
        self._check_logits([value if keep else 0.0 for value, keep in zip(checksums, kept, strict=True)], window)
        return answers, scores, probabilities

    def _answered_batches(
        self, encoded: EncodedExamples, score: str | None, threshold: float
    ) -> Iterator[tuple[Tensor, BatchAnswers]]:
        """The rows and the answers of each batch; the token budget is halved when one does not fit into memory."""
        batches = deque(self.batches(encoded.lengths))
        options = InferenceOptions(score, threshold, self._temperature, self._order)
        while batches:
            rows = batches.popleft()
            try:
                with any_shape():
                    answers = self.model.answer_batch(self.inputs(encoded, rows), options)
            except torch.OutOfMemoryError as error:
                failure = f"does not fit into the memory of {self.device}"
                if len(rows) == 1:
                    begin = f"An input of {int(encoded.lengths[rows])} tokens"
                    raise InputError(f"{begin} {failure}. Use a smaller dtype, or free memory.") from error
            else:
                yield rows, answers
                continue
            # Outside of the handler, where the error no longer holds on to what was computed.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            # Half of this batch, even if the number of inputs limited it.
            self.tokens = len(rows) // 2 * int(self._memory(encoded.lengths[rows]).max())
            now = f"{self.limits.option} is {self.tokens} now"
            notice("batches-halved", f"A batch of {counted(len(rows), 'inputs')} {failure}: {now}.")
            remaining = torch.cat([rows, *batches])
            batches = deque(remaining[part] for part in self.batches(encoded.lengths[remaining]))

    def _check_logits(self, checksums: list[float], window: Window) -> None:
        """Refuse inputs whose logits cannot be scored."""
        if not all(map(math.isfinite, checksums)):
            bad = [texts for texts, value in zip(window.texts, checksums, strict=True) if not math.isfinite(value)]
            count = f"{len(bad)} of {len(window)} inputs, first for {bad[0]!r}"
            raise InputError(f"The {self.who}'s logits are NaN or infinite for {count}. Did its training diverge?")
