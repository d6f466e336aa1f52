"""A model on its device that answers texts: in batches that fit into its memory, or few of them the short way."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from elang.backends.fast.graphs import SmallBatches, any_shape
from elang.backends.network import BatchAnswers, InferenceOptions
from elang.backends.text_model import TextModel
from elang.data.batches import EncodedExamples, token_batches
from elang.data.encoding import encode_examples, pad_of, pads_left, same_tokens, token_lists
from elang.errors import InputError
from elang.inference.prediction import StageAnswers, Window
from elang.method.scores import BEFORE_DECODER
from elang.notices import notice
from elang.tasks.text_task import TextTask

# Logits over a vocabulary take as much memory as so many tokens.
_DECODED = 8


@dataclass(frozen=True)
class BatchLimits:
    """How much a model is given at a time.

    Attributes:
        max_length: Tokens that are kept of an input.
        tokens: Tokens in a batch, with padding.
        batch_size: Inputs in a batch at most; ``None``: only their tokens count.
        short_way: Up to so many inputs take the short way of :mod:`elang.backends.fast.graphs`.
        option: Names the tokens in messages.
    """

    max_length: int
    tokens: int
    batch_size: int | None = None
    short_way: int = 0
    option: str = "tokens"


class ModelRunner:
    """Runs a model over the windows of a cascade: the backend of a stage.

    Args:
        model: The model, on its device.
        who: Its name in messages.
        limits: How much it is given at a time.
        device: Where it is.
        task: What it is asked.
        any_pairs: Whether it may be asked pairs of texts, too, because nothing says what it was trained on.
        scoring: The score by which it routes and its temperature; ``None`` for the last stage.
        order: For each of the answers' classes its place among the model's logits.

    Attributes:
        tokens: Tokens in a batch; fewer once a batch has not fitted into memory.
        truncated: Inputs that were cut for it.
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
        self.limits, self.tokens, self.max_length = limits, limits.tokens, limits.max_length
        self.short_score = scoring[0] if scoring else None
        self._temperature = scoring[1] if scoring else 1.0
        self._order = None if order is None or order == list(range(len(order))) else order
        self.truncated = 0
        self.small_batches = self._small_batches() if limits.short_way else None

    @torch.inference_mode()
    def _small_batches(self) -> SmallBatches | None:
        """What runs the model over few inputs, if it has a short way."""
        options = InferenceOptions(self.short_score, temperature=self._temperature, order=self._order)
        passes = self.model.short_way(options)
        if passes is None:
            return None
        return SmallBatches(
            passes,
            pad_of(self.model.tokenizer),
            self.limits.short_way,
            limit=self.limit,
            device=self.device,
            who=f"The {self.who}",
            tokens=self.model.max_new_tokens,
            left=pads_left(self.model.tokenizer),
        )

    @property
    def limit(self) -> int:
        """Tokens that are kept of an input."""
        return int(min(self.max_length, self.model.tokenizer.model_max_length))

    def task_for(self, num_texts: int) -> TextTask:
        """The task of inputs of so many texts."""
        if num_texts != 2 or not self._any_pairs:
            return self.task
        return replace(self.task, fields=["text", "text_pair"], segments=["{text}", "{text_pair}"])

    def reads_like(self, other: ModelRunner) -> bool:
        """Whether both models read a text as the same tokens."""
        first, second = self.model.reader, other.model.reader
        if first.text_to_text != second.text_to_text or self.task.plain() != other.task.plain():
            return False
        return self.limit == other.limit and same_tokens(first.tokenizer, second.tokenizer)

    def encode(self, texts: list[tuple[str, ...]], choices: list[tuple[str, ...]] | None) -> EncodedExamples:
        """The tokens of texts, and of candidates."""
        return encode_examples(self.model.reader, self.task_for(len(texts[0])), texts, choices, self.limit)

    def token_lists(self, texts: list[tuple[str, ...]]) -> tuple[list[dict[str, list[int]]], int]:
        """The same of few texts, as lists, and how many were cut."""
        return token_lists(self.model.reader, self.task_for(len(texts[0])), texts, self.limit)

    def batches(self, lengths: Tensor) -> list[Tensor]:
        """Row numbers of the batches for inputs of these lengths, int64 ``(N,)``."""
        return token_batches(self._room(lengths), self.tokens, self.limits.batch_size)

    def _room(self, lengths: Tensor) -> Tensor:
        """Tokens that count against the budget."""
        return lengths.clamp_min(max(1, _DECODED * self.model.decoded))

    def inputs(self, encoded: EncodedExamples, rows: Tensor) -> dict[str, Tensor]:
        """A batch on the device."""
        inputs = encoded.batch(rows.tolist())
        if self.device.type == "cuda":
            # So that the copy does not wait for what the device is doing.
            inputs = {name: value.pin_memory() for name, value in inputs.items()}
        return {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}

    def read(self, window: Window, short: bool = True) -> None:
        """Tokenise a window ahead of time, unless it may be ``short`` and takes the short way."""
        if not (short and self._takes_short_way(window)):
            window.encoded = self.encode(window.texts, window.choices)
            self.truncated += window.encoded.texts.truncated

    def answer(self, window: Window) -> list[Any]:
        """The answers to a window, as :meth:`elang.tasks.kind.Kind.answer` takes them."""
        return list(self.score(window, None, math.inf).answers)

    @torch.inference_mode()
    def score(self, window: Window, score: str | None, threshold: float) -> StageAnswers:
        """Answer and score a window.

        Args:
            window: Of any size.
            score: The score that routes; ``None``: all are answered.
            threshold: What scores above it is deferred, and not answered if the score is known before the decoder runs.
        """
        if window.encoded is None and score == self.short_score and self._takes_short_way(window):
            answers, scores = self._few(window, threshold)
        else:
            answers, scores = self._many(window, score, threshold)
        deferred = [one > threshold for one in scores]
        if score in BEFORE_DECODER:
            answers = [None if hard else answer for answer, hard in zip(answers, deferred, strict=True)]
        return StageAnswers(answers, scores, deferred)

    def _takes_short_way(self, window: Window) -> bool:
        return self.small_batches is not None and window.choices is None and len(window) <= self.limits.short_way

    def _many(self, window: Window, score: str | None, threshold: float) -> tuple[list[Any], list[float]]:
        """Answers and scores, batch by batch."""
        if window.encoded is None:
            self.read(window, short=False)
        assert window.encoded is not None
        order, tables, texts = [], [], list[str | None]([None]) * len(window)
        for rows, batch in self._each_batch(window.encoded, score, threshold):
            order.append(rows)
            tables.append(batch.table)
            for place, text in zip(rows.tolist(), batch.texts or (), strict=False):
                texts[place] = text
        # One wait for the device in a window.
        table = torch.cat(tables).cpu()[torch.cat(order).argsort()]
        self._check_logits(table[:, 2].tolist(), window)
        return texts if self.task.kind.generates else table[:, 1].tolist(), table[:, 0].tolist()

    def _few(self, window: Window, threshold: float) -> tuple[list[Any], list[float]]:
        """The same by the short way."""
        assert self.small_batches is not None
        tokens = window.token_lists
        if tokens is None:
            tokens, cut = self.token_lists(window.texts)
            self.truncated += cut
            # The next model counts what it cuts itself.
            window.token_lists = None if cut else tokens
        scores, *rest = self.small_batches.first(tokens)
        early = self.short_score in BEFORE_DECODER
        kept = [not early or score <= threshold for score in scores]
        if not any(kept):
            return [None] * len(scores), scores
        if self.task.kind.generates:
            late, *ids = self.small_batches.generate(kept)
            return list(self.model.texts(torch.tensor(ids).long().T)), scores if early else late
        if early:
            rest = self.small_batches.second(len(scores))[1:]
        answers, checksums = rest
        self._check_logits([one if keep else 0.0 for one, keep in zip(checksums, kept, strict=True)], window)
        return answers, scores

    def _each_batch(
        self, encoded: EncodedExamples, score: str | None, threshold: float
    ) -> Iterator[tuple[Tensor, BatchAnswers]]:
        """The rows and the answers of each batch; for one that does not fit into memory the budget is halved."""
        batches = deque(self.batches(encoded.lengths))
        options = InferenceOptions(score, threshold, self._temperature, self._order)
        while batches:
            rows = batches.popleft()
            try:
                with any_shape():
                    answers = self.model.answer_batch(self.inputs(encoded, rows), options)
            except torch.OutOfMemoryError as error:
                if len(rows) == 1:
                    raise InputError(
                        f"An input of {int(encoded.lengths[rows])} tokens does not fit into the memory of "
                        f"{self.device}. Take a smaller dtype, or free memory."
                    ) from error
            else:
                yield rows, answers
                continue
            # Outside, where the error does not hold on to what was computed any more.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._halve(encoded.lengths[rows])
            left = torch.cat([rows, *batches])
            batches = deque(left[part] for part in self.batches(encoded.lengths[left]))

    def _halve(self, lengths: Tensor) -> None:
        """Make half of a batch with these lengths the budget, even if the number of inputs limited the batch."""
        self.tokens = len(lengths) // 2 * int(self._room(lengths).max())
        notice(
            "batches-halved",
            f"A batch of {len(lengths)} inputs does not fit into the memory of {self.device}: {self.limits.option} is "
            f"{self.tokens} now.",
        )

    def _check_logits(self, checksums: list[float], window: Window) -> None:
        """Refuse inputs whose logits cannot be scored, naming the first."""
        if not all(map(math.isfinite, checksums)):
            wrong = [texts for texts, one in zip(window.texts, checksums, strict=True) if not math.isfinite(one)]
            raise InputError(
                f"{len(wrong)} of {len(window)} inputs have logits of the {self.who}'s that are NaN or infinite, first "
                f"{wrong[0]!r}. Look for a diverged training run."
            )
