"""What the two models of a pair say of texts, on their device: batches that fit into its memory, scores, answers."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from elang.backends.fast.attention import any_shape
from elang.backends.fast.graphs import FewInputs, Pass
from elang.backends.generator import Seq2Seq
from elang.backends.label_decoder import TextToText
from elang.backends.text_model import TextModel
from elang.data.batches import token_batches
from elang.data.encoding import encode_examples, pad_of, pads_left, same_tokens, token_lists
from elang.data.tokens import EncodedExamples
from elang.errors import InputError
from elang.inference.prediction import Window
from elang.method.deferral import check_finite, check_logits, route
from elang.method.scores import BEFORE_DECODER
from elang.notices import notice
from elang.tasks.text_task import TextTask

_Said = TypeVar("_Said")
_DECODED = 8


class Passes:
    """Runs both models of a pair, many inputs at a time or few.

    Args:
        swift: The Swift; a Super that is asked by itself is in its place, too.
        super_: The Super, if it is here.
        alone: The Super is asked by itself.
        super_order: For each of the Swift's classes the place of the Super's.
        score: Which score routes.
        temperature: Its temperature.
        max_length: Tokens that are kept of an input.
        device: Where both are.
        tokens: Tokens in a batch of the Swift's, and in one of the Super's, with padding.
        batch_size: Inputs in a batch at most; ``None``: only their tokens count.
        few: Up to so many inputs at a time take the short way of :mod:`elang.few`.

    Attributes:
        truncated: Inputs that were cut for the Swift.
        super_truncated: Inputs that the Super's tokens made too long.
    """

    def __init__(
        self,
        swift: TextModel,
        super_: TextModel | None,
        alone: bool,
        super_order: list[int],
        score: str,
        temperature: float,
        max_length: int,
        device: torch.device,
        tokens: tuple[int, int],
        batch_size: int | None,
        few: int,
    ) -> None:
        self.swift, self._super, self.alone, self.super_order = swift, super_, alone, super_order
        self.score, self.temperature, self.max_length, self.device = score, temperature, max_length, device
        self.tokens, self.super_tokens = tokens
        self.batch_size = batch_size
        self.task = swift.task
        self.truncated = self.super_truncated = 0
        self.few = few
        # Of the inputs that the Swift has just been asked the short way.
        self._tokens: dict[tuple[str, ...], dict[str, list[int]]] = {}
        self._few_swift = self._few_super = None
        if few:
            passes: list[Pass] = [self.swift_first]
            if self._early:
                passes = [self._early_first, self._early_second]
            if not alone:
                self._few_swift = self._few_inputs(swift, passes, "The Swift", score)
            if super_ is not None:
                self._few_super = self._few_inputs(super_, [self._super_first], "The Super")

    @torch.inference_mode()
    def _few_inputs(self, model: TextModel, passes: list[Pass], who: str, score: str | None = None) -> FewInputs | None:
        """What runs a model over few inputs, if that can be."""
        tokens = 0
        if isinstance(model, Seq2Seq):
            found = model.few_passes(score)
            if found is None:
                return None
            passes, tokens = found, model.max_new_tokens
        elif self.task.kind.has_candidates or (isinstance(model, TextToText) and (model.generate or not model.trie)):
            return None
        own, left = pad_of(model.tokenizer), pads_left(model.tokenizer)
        return FewInputs(passes, own, self.few, self.limit(model), self.device, who, tokens, left)

    @cached_property
    def _early(self) -> bool:
        """Whether the score decides before a decoder runs."""
        return self.score in BEFORE_DECODER and isinstance(self.swift, TextToText)

    @cached_property
    def reads_alike(self) -> bool:
        """Whether both models read a text as the same tokens."""
        readers = self.swift.reader, self.super_.reader
        tasks = [self._task_of(model, 1) for model in (self.swift, self.super_)]
        if readers[0].text_to_text != readers[1].text_to_text or tasks[0].plain() != tasks[1].plain():
            return False
        if self.limit(self.swift) != self.limit(self.super_):
            return False
        return same_tokens(readers[0].tokenizer, readers[1].tokenizer)

    @property
    def has_super(self) -> bool:
        """Whether the Super is here."""
        return self._super is not None

    def takes(self, count: int) -> bool:
        """Whether the Swift takes so many inputs the short way."""
        return self._few_swift is not None and count <= self.few

    @property
    def super_(self) -> TextModel:
        """The Super."""
        if self._super is None:
            raise InputError("This predictor was made without a Super; give super_model.")
        return self._super

    def task_for(self, num_texts: int) -> TextTask:
        """The Swift's task; one that does not say what it was trained on may get pairs of texts."""
        if self.swift.manifest is not None or num_texts != 2:
            return self.task
        return replace(self.task, fields=["text", "text_pair"], segments=["{text}", "{text_pair}"])

    def limit(self, model: TextModel) -> int:
        """Tokens that are kept of an input."""
        return int(min(self.max_length, model.tokenizer.model_max_length))

    def _task_of(self, model: TextModel, num_texts: int) -> TextTask:
        """The task as a model reads it."""
        return model.task if model.manifest is not None else self.task_for(num_texts)

    def encode(
        self, model: TextModel, rows: list[tuple[str, ...]], choices: list[tuple[str, ...]] | None
    ) -> EncodedExamples:
        """The tokens of texts, and candidates, as a model reads them."""
        return encode_examples(model.reader, self._task_of(model, len(rows[0])), rows, choices, self.limit(model))

    def token_lists(self, model: TextModel, rows: list[tuple[str, ...]]) -> tuple[list[dict[str, list[int]]], int]:
        """The same of few texts, as lists, and how many were cut."""
        return token_lists(model.reader, self._task_of(model, len(rows[0])), rows, self.limit(model))

    def batches(self, model: TextModel, lengths: Tensor) -> list[Tensor]:
        """Row numbers of a model's batches, for inputs of these lengths, int64 ``(N,)``."""
        return token_batches(self._room(model, lengths), getattr(self, self._budget(model)), self.batch_size)

    def _budget(self, model: TextModel) -> str:
        """Name of what limits a model's batches."""
        return "tokens" if model is self.swift and not self.alone else "super_tokens"

    def _room(self, model: TextModel, lengths: Tensor) -> Tensor:
        """Tokens that count against the budget; logits over a vocabulary take far more room than a token."""
        return lengths.clamp_min(_DECODED * model.decoded if isinstance(model, TextToText) else 1)

    def inputs(self, encoded: EncodedExamples, chosen: Tensor) -> dict[str, Tensor]:
        """A batch on the device."""
        inputs = encoded.batch(chosen.tolist())
        if self.device.type == "cuda":
            # So that the copy does not wait for what the device is doing.
            inputs = {name: value.pin_memory() for name, value in inputs.items()}
        return {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}

    def _each_batch(
        self, model: TextModel, encoded: EncodedExamples, call: Callable[[dict[str, Tensor]], _Said]
    ) -> Iterator[tuple[Tensor, _Said]]:
        """What a model says of each batch; for one that does not fit into memory the budget of tokens is halved."""
        batches = deque(self.batches(model, encoded.lengths))
        while batches:
            chosen = batches.popleft()
            try:
                with any_shape():
                    said = call(self.inputs(encoded, chosen))
            except torch.OutOfMemoryError as error:
                if len(chosen) == 1:
                    raise InputError(
                        f"An input of {int(encoded.lengths[chosen])} tokens does not fit into the memory of "
                        f"{self.device}. Take a smaller dtype, or free memory."
                    ) from error
            else:
                yield chosen, said
                continue
            # Outside, where the error does not hold on to what was computed any more.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._halve(model, encoded.lengths[chosen])
            left = torch.cat([chosen, *batches])
            batches = deque(left[part] for part in self.batches(model, encoded.lengths[left]))

    def _halve(self, model: TextModel, lengths: Tensor) -> None:
        """Take half of a batch with these lengths for the budget, be it by the limit of inputs that it was no more."""
        budget = len(lengths) // 2 * int(self._room(model, lengths).max())
        name = self._budget(model)
        setattr(self, name, budget)
        notice(
            "batches-halved",
            f"A batch of {len(lengths)} inputs does not fit into the memory of {self.device}: {name} is {budget} now.",
        )

    @torch.inference_mode()
    def swift_answers(self, window: Window, threshold: float) -> tuple[list[Any], list[float]]:
        """The Swift's answers and scores; before the decoder where the score allows, which then runs for the kept."""
        if window.encoded is None:
            return self._swift_few(window.rows, threshold)
        texts, order, found = [""] * len(window.rows), [], []
        if isinstance(self.swift, Seq2Seq):
            model = self.swift
            for chosen, (score, kept, said) in self._each_batch(
                model, window.encoded, lambda inputs: self._swift_texts(model, inputs, threshold)
            ):
                order.append(chosen)
                for i, text in zip(chosen[kept.cpu()].tolist(), said, strict=True):
                    texts[i] = text
                found.append(score.float()[:, None])
        else:
            for chosen, table in self._each_batch(
                self.swift, window.encoded, lambda inputs: self._swift_table(inputs, threshold)
            ):
                order.append(chosen)
                found.append(table)
        # One wait for the device in a window.
        table = torch.cat(found).cpu()[torch.cat(order).argsort()]
        if table.shape[1] == 3:
            _check_odd(table[:, 2].tolist(), window.rows, "Swift")
        scores = table[:, 0].tolist()
        return texts if isinstance(self.swift, Seq2Seq) else table[:, 1].tolist(), scores

    def _swift_table(self, inputs: dict[str, Tensor], threshold: float) -> Tensor:
        """Of each input score and answer, ``(B, 2)``, or also what tells odd logits, ``(B, 3)``."""
        if not self._early:
            return self.swift_first(inputs)[0]
        assert isinstance(self.swift, TextToText)
        table, encoded = self._early_first(inputs)
        score = table[:, 0]
        answer = torch.zeros_like(score)
        kept = (~route(score, threshold)).nonzero().squeeze(1)
        if len(kept):
            logits = self.swift.label_logits(*self.swift.take(encoded, inputs, kept))
            check_logits(logits, "the Swift's logits", self.task.kind.has_candidates)
            answer[kept] = self.swift.predict(logits).to(self.task.kind.exact_type)
        return torch.stack([score, answer], 1)

    def swift_first(self, inputs: dict[str, Tensor]) -> tuple[Tensor, None]:
        """Of each input score, answer and what tells odd logits, ``(B, 3)``."""
        said = self.swift(inputs)
        score = self.swift.score_of(self.score, said, self.temperature)
        return self._table(score, said.prediction, self.odd(said.logits)), None

    def _early_first(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """Of each input the score before the decoder, ``(B, 1)``, and what the decoder takes."""
        assert isinstance(self.swift, TextToText)
        encoded = self.swift.encode(inputs)
        return self.swift.early_scores(encoded, self.temperature)[self.score].to(self.task.kind.exact_type)[
            :, None
        ], encoded

    def _early_second(self, encoded: Any) -> tuple[Tensor, None]:
        """The decoder's answers, and what tells odd logits, ``(B, 2)``."""
        assert isinstance(self.swift, TextToText)
        logits = self.swift.label_logits(encoded, {})
        return self._table(self.swift.predict(logits), self.odd(logits)), None

    def _super_first(self, inputs: dict[str, Tensor]) -> tuple[Tensor, None]:
        """The Super's answers, and what tells odd logits, ``(B, 2)``."""
        logits = self.super_(inputs).logits
        if self.super_order != list(range(logits.shape[1])):
            logits = torch.stack([logits[:, place] for place in self.super_order], 1)
        # By the logits: a text that was freely generated may be none of the answers.
        return self._table(self.super_.predict(logits), self.odd(logits)), None

    def _swift_few(self, rows: list[tuple[str, ...]], threshold: float) -> tuple[list[Any], list[float]]:
        """:meth:`swift_answers` for few inputs."""
        assert self._few_swift is not None
        tokens, cut = self.token_lists(self.swift, rows)
        self.truncated += cut
        # Of over-long ones the Super counts its own.
        self._tokens = {} if cut else dict(zip(rows, tokens, strict=True))
        scores, *said = self._few_swift.first(tokens)
        if isinstance(self.swift, Seq2Seq):
            early = self.score in BEFORE_DECODER
            kept = [not early or score <= threshold for score in scores]
            if not any(kept):
                return [""] * len(rows), scores
            late, *ids = self._few_swift.generate(kept)
            return self.swift.texts(_tokens(ids)), scores if early else late
        if not self._early:
            answers, odd = said
            _check_odd(odd, rows, "Swift")
            return answers, scores
        kept = [score <= threshold for score in scores]
        if not any(kept):
            return [0.0] * len(rows), scores
        answers, odd = self._few_swift.second(len(rows))
        _check_odd([one if keep else 0.0 for one, keep in zip(odd, kept, strict=True)], rows, "Swift")
        return answers, scores

    def _super_few(self, rows: list[tuple[str, ...]]) -> list[Any]:
        """:meth:`super_answers` for few inputs."""
        assert self._few_super is not None
        if self._few_swift is not None and self.reads_alike and all(row in self._tokens for row in rows):
            tokens = [self._tokens[row] for row in rows]
        else:
            tokens, cut = self.token_lists(self.super_, rows)
            self.super_truncated += cut
        said = self._few_super.first(tokens)
        if isinstance(self.super_, Seq2Seq):
            _, *ids = self._few_super.generate([True] * len(rows))
            return self.super_.texts(_tokens(ids))
        answers, odd = said
        _check_odd(odd, rows, "Super")
        return answers

    def _table(self, *columns: Tensor) -> Tensor:
        return torch.stack([column.to(self.task.kind.exact_type) for column in columns], 1)

    def odd(self, logits: Tensor) -> Tensor:
        """A number that is finite where a row of logits can be scored, float32 ``(B,)``; one kernel."""
        if not self.task.kind.has_candidates:
            return logits.float().sum(-1)
        # An example has fewer candidates than there are columns, but not none.
        return logits.masked_fill(logits == -math.inf, 0).float().sum(-1) + logits.amax(-1)

    def _swift_texts(
        self, model: Seq2Seq, inputs: dict[str, Tensor], threshold: float
    ) -> tuple[Tensor, Tensor, list[str]]:
        """Scores of a batch ``(B,)``, which of it were decoded, and the texts of these."""
        source = model.encode(inputs)
        kept = torch.arange(len(source.hidden), device=self.device)
        if self.score in BEFORE_DECODER:
            score = model.early_scores(source)[self.score]
            kept = (~route(score.float(), threshold)).nonzero().squeeze(1)
            return score, kept, model.texts(model.generate(source[kept], scored=False).ids) if len(kept) else []
        made = model.generate(source)
        score = model.late_scores(source, made)[self.score]
        check_finite(score, "the Swift's score")
        return score, kept, model.texts(made.ids)

    @torch.inference_mode()
    def super_answers(
        self,
        rows: list[tuple[str, ...]],
        choices: list[tuple[str, ...]] | None,
        encoded: EncodedExamples | None = None,
    ) -> list[Any]:
        """The Super's answers; their tokens are made here where they are not known."""
        if self._few_super is not None and choices is None and encoded is None and len(rows) <= self.few:
            return self._super_few(rows)
        if encoded is None:
            encoded = self.encode(self.super_, rows, choices)
            self.super_truncated += encoded.texts.truncated
        texts, order, found = [""] * len(rows), [], []
        if isinstance(self.super_, Seq2Seq):
            model = self.super_
            for chosen, said in self._each_batch(
                model, encoded, lambda inputs: model.texts(model.generate(model.encode(inputs), scored=False).ids)
            ):
                for i, text in zip(chosen.tolist(), said, strict=True):
                    texts[i] = text
            return texts
        for chosen, table in self._each_batch(self.super_, encoded, lambda inputs: self._super_first(inputs)[0]):
            order.append(chosen)
            found.append(table)
        whole = torch.cat(found).cpu()[torch.cat(order).argsort()]
        _check_odd(whole[:, 1].tolist(), rows, "Super")
        answers: list[float] = whole[:, 0].tolist()
        return answers


def _tokens(columns: list[list[float]]) -> Tensor:
    """Generated tokens, int64 ``(B, T)``, of the columns of a table."""
    return torch.tensor(columns).long().T


def _check_odd(odd: list[float], rows: list[tuple[str, ...]], who: str) -> None:
    """Refuse inputs whose logits cannot be scored, naming the first."""
    if not all(map(math.isfinite, odd)):
        found = [row for row, one in zip(rows, odd, strict=True) if not math.isfinite(one)]
        raise InputError(
            f"{len(found)} of {len(rows)} inputs have logits of the {who}'s that are NaN or infinite, first "
            f"{found[0]!r}. Look for a diverged training run."
        )
