"""Using a pair: the Swift answers, and only hard inputs go to the Super. Needs no Lightning."""

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import chain, groupby
from operator import add
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from elang.data.batches import EncodedExamples, encode_examples, pad_of, same_tokens, token_lists
from elang.data.format import TextTask
from elang.errors import InputError
from elang.few import DType, FewInputs, Pass
from elang.manifest import Manifest
from elang.models.backbones import load_model
from elang.models.seq2seq import Seq2Seq
from elang.models.text_model import TextModel, check_choices
from elang.models.text_to_text import TextToText
from elang.records import SUFFIXES
from elang.scores import BEFORE_DECODER, SCORES, check_finite, check_logits, route
from elang.sequence_scores import SEQUENCE_SCORES
from elang.throughput import FULL_BATCHES, Deferred, Window, stream, token_batches, windows

_Said = TypeVar("_Said")
_DECODED = 8
# Below 1 by more than is said.
_DEAR = 0.995
# Of the Swift and of the Super: small models want large batches on a GPU.
_GPU_TOKENS = 65536, 16384
# The caches of a CPU want small ones; large enough for its threads.
_CPU_TOKENS, _THREAD_TOKENS = 512, 256


@dataclass(frozen=True)
class Prediction:
    """The pair's answer to one input.

    Attributes:
        label: Name of the class, the candidate that was chosen, or the text that was generated; in a regression the
            value.
        score: The Swift's difficulty score; larger is harder.
        answered_by: Which model answered.
    """

    label: str | float
    score: float
    answered_by: Literal["swift", "super"]


class JointPredictor:
    """Answers texts with a Swift and a Super.

    Args:
        swift_model: The Swift's folder, as `elang fit` writes it; ``None`` where only :meth:`ask_super` is used.
        super_model: The Super's folder, or a hub id; ``None`` where it is elsewhere and only :meth:`ask_swift` is used.
        threshold: Name of a threshold in ``elang.json`` (``parity``, ``99%``, ``defer 30%``) or a number: inputs
            that score above it go to the Super. Also ``inf`` and ``-inf``.
        score: Which score routes; by default the Swift's own.
        thresholds: Another threshold file, as `elang validate` writes it.
        device: By default a GPU if there is one.
        batch_size: Inputs in a batch at most; by default only their tokens count.
        tokens: Tokens in a batch of the Swift's, with padding; by default what suits the device.
        super_tokens: The same for the Super.
        few: Up to so many inputs at a time take the short way of :mod:`elang.few`, for latency: captured graphs on a
            GPU, for which loading takes longer. Of texts only those that a T5 or mT5 generates without beams; not for
            candidates of each input's own.
        dtype: Precision of both models' weights; scores are float32 in any, but thresholds that were chosen in
            float32 are met only about.
        compile: Compile both models with ``torch.compile``, for whatever shapes come, at the first inputs; T5 then
            runs by the library's own forward pass.
        super_int8: Keep the matrices of the Super's layers as int8 (torchao; the extra ``int8``), for a card that it is
            too large for; what is computed with them stays in ``dtype``.
        onnx: Run both encoders by ONNX Runtime (the extra ``onnx``), on a CPU, in float32.

    Models that are there already (:class:`elang.models.text_model.TextModel`) can be given in the place of folders.

    >>> predictor = JointPredictor("runs/swift", "runs/super")  # doctest: +SKIP
    >>> predictor(["what is energy ?"])  # doctest: +SKIP
    [Prediction(label='DESC', score=-0.96, answered_by='swift')]
    """

    def __init__(
        self,
        swift_model: str | TextModel | None,
        super_model: str | TextModel | None,
        threshold: str | float = "parity",
        score: str | None = None,
        thresholds: str | None = None,
        device: str | None = None,
        batch_size: int | None = None,
        tokens: int | None = None,
        super_tokens: int | None = None,
        few: int = 0,
        dtype: DType = "float32",
        compile: bool = False,  # noqa: A002 - the option's name
        super_int8: bool = False,
        onnx: bool = False,
    ) -> None:
        for path in (swift_model, super_model):
            if isinstance(path, str) and path.endswith(SUFFIXES):
                raise InputError(f"Records such as '{path}' answer only the examples in them; give a model to predict.")
        for name, size in (("batch_size", batch_size), ("tokens", tokens), ("super_tokens", super_tokens)):
            if size is not None and size < 1:
                raise InputError(f"{name} must be at least 1, but it is {size}.")
        if few < 0:
            raise InputError(f"few must be at least 0, but it is {few}.")
        if dtype not in get_args(DType):
            raise InputError(f"dtype must be one of {', '.join(get_args(DType))}, but it is {dtype!r}.")
        precision: torch.dtype = getattr(torch, dtype)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        budgets = _GPU_TOKENS
        if self.device.type == "cpu":
            budgets = (max(_CPU_TOKENS, _THREAD_TOKENS * torch.get_num_threads()),) * 2
        self.tokens, self.super_tokens = tokens or budgets[0], super_tokens or budgets[1]
        if onnx and (self.device.type != "cpu" or precision != torch.float32 or compile or super_int8):
            raise InputError("onnx runs on the CPU in float32; leave it out, or device, dtype, compile and super_int8.")
        first = swift_model if swift_model is not None else super_model
        if first is None:
            raise InputError("Give a swift_model, a super_model, or both.")
        self.swift = _ready(first, None, precision, self.device, compile, super_int8 and swift_model is None)
        manifest = Manifest.read(thresholds) if thresholds else self.swift.manifest
        if manifest is None:
            manifest = Manifest(self.swift.label_names)
        elif self.swift.weights_sha256:
            manifest.check_weights(self.swift.weights_sha256, f"'{swift_model}'")
        self.manifest = manifest
        self.label_names = self.swift.label_names
        self.score = score or manifest.score
        self.task = self.swift.task
        self._super: TextModel | None = None
        if swift_model is None:
            # It takes both places, and nothing is routed.
            self._super, self.super_order = self.swift, list(range(len(self.label_names)))
        elif super_model is not None:
            self._super = _ready(super_model, self.task, precision, self.device, compile, super_int8)
            self.super_order = self.super_.class_order(self.label_names, f"'{super_model}'")
            if self.super_.manifest is not None and self.super_.task.fields != self.task.fields:
                raise InputError(
                    f"'{super_model}' was trained on the texts {self.super_.task.fields}, '{swift_model}' on "
                    f"{self.task.fields}. Train both on one task."
                )
        own: dict[str, Sequence[str]] = {"regression": [], "sequence": SEQUENCE_SCORES}
        known = [*own.get(self.task.problem, list(SCORES)), *self.swift.head_scores]
        if self.score not in known and swift_model is not None:
            raise InputError(f"The Swift has no score '{self.score}'; choose one of {', '.join(known)}.")
        number = _number(threshold)
        if self.score not in self.swift.head_scores:
            # They would be fed for nothing.
            self.swift.drop_routers()
        if swift_model is None:
            number = math.inf
        self.threshold = manifest.threshold(str(threshold), self.score) if number is None else number
        if number is None and self._super is not None:
            self._warn_if_dear(str(threshold))
            other = self._super
            manifest.warn_of_another_super(str(threshold), self.score, str(super_model), lambda: other.weights_sha256)
        if math.isnan(self.threshold):
            raise InputError("The threshold is NaN; give a number, inf, -inf, or a name such as parity.")
        self.temperature, self.max_length, self.batch_size = (
            manifest.temperature,
            manifest.max_length,
            batch_size,
        )
        for model in (self.swift, self._super):
            if isinstance(model, Seq2Seq):
                model.limit_new_tokens(manifest.max_target_length)
        if isinstance(self.swift, Seq2Seq) and manifest.thresholds:
            # Scores of other texts would not be on the thresholds' scale.
            self.swift.set_beams(manifest.num_beams)
        self.truncated = self.super_truncated = 0
        # A Super alone takes both places.
        for model in {self.swift, *([self._super] if self._super else [])}:
            for part in model.compiled_parts() if compile else []:
                part.compile(dynamic=True)
            if onnx:
                model.export()
        self.few, self._tokens = few, dict[tuple[str, ...], dict[str, list[int]]]()
        self._few_swift = self._few_super = None
        if few:
            passes: list[Pass] = [self._swift_first]
            if self._early:
                passes = [self._early_first, self._early_second]
            if swift_model is not None:
                self._few_swift = self._few_inputs(self.swift, passes, "The Swift", self.score)
            if self._super is not None:
                self._few_super = self._few_inputs(self._super, [self._super_first], "The Super")

    def _warn_if_dear(self, name: str) -> None:
        """Say it if the pair costs more than the Super alone at a threshold, and at which ones it does not."""
        speedups = {key: self.manifest.speedup(key, self.score) for key in self.manifest.thresholds[self.score]}
        if not speedups[name] < _DEAR:
            return
        better = [repr(key) for key, speedup in speedups.items() if speedup > 1]
        warnings.warn(
            f"At the threshold '{name}' the pair costs more than the Super alone: a FLOPs speed-up of "
            f"{speedups[name]:.2f}x on the slice that it was chosen on. "
            + (f"It is above 1 at {', '.join(better)}." if better else "Ask the Super alone."),
            stacklevel=3,
        )

    @torch.inference_mode()
    def _few_inputs(self, model: TextModel, passes: list[Pass], who: str, score: str | None = None) -> FewInputs | None:
        """What runs a model over few inputs, if that can be."""
        tokens = 0
        if isinstance(model, Seq2Seq):
            found = model.few_passes(score)
            if found is None:
                return None
            passes, tokens = found, model.max_new_tokens
        elif self.task.problem == "choice" or (isinstance(model, TextToText) and (model.generate or not model.trie)):
            return None
        return FewInputs(passes, pad_of(model.tokenizer), self.few, self.limit(model), self.device, who, tokens)

    @cached_property
    def _early(self) -> bool:
        """Whether the score decides before a decoder runs."""
        return self.score in BEFORE_DECODER and isinstance(self.swift, TextToText)

    @cached_property
    def _same_tokens(self) -> bool:
        """Whether both models read a text as the same tokens."""
        readers = self.swift.reader, self.super_.reader
        tasks = [self._read_task(model, 1) for model in (self.swift, self.super_)]
        if readers[0].text_to_text != readers[1].text_to_text or tasks[0].plain() != tasks[1].plain():
            return False
        if self.limit(self.swift) != self.limit(self.super_):
            return False
        return same_tokens(readers[0].tokenizer, readers[1].tokenizer)

    @property
    def super_(self) -> TextModel:
        """The Super."""
        if self._super is None:
            raise InputError("This predictor was made without a Super; give super_model.")
        return self._super

    def __call__(
        self, texts: Sequence[str] | Sequence[tuple[str, ...]], choices: Sequence[Sequence[str]] | None = None
    ) -> list[Prediction]:
        """Answer texts, or tuples of the task's texts, in their order.

        Texts over the length that the Swift was trained on are cut and counted in ``self.truncated``, those that the
        Super's tokens make too long in ``self.super_truncated``.

        Args:
            texts: One value for each of ``task.fields``.
            choices: Each example's candidates, where the task has its own for each.

        Raises:
            InputError: If a text is empty or not a string, or the Swift's logits are not finite.
        """
        if isinstance(texts, str):
            raise InputError(f"The predictor takes a list of texts, but it was given the text {texts[:40]!r} alone.")
        rows = self.rows(texts)
        return self.answer(rows, choices) if rows else []

    def map(
        self, texts: Iterable[str] | Iterable[tuple[str, ...]], window: int = 4096, first: int = 0
    ) -> Iterator[Prediction]:
        """Answer a stream of texts, or tuples of the task's texts, in their order and in bounded memory.

        Args:
            texts: Read as they are needed, in a thread.
            window: Inputs that are read, tokenised and answered by the Swift at a time at most; the first ones are
                fewer.
            first: Number of the first one in messages, where others were answered before.

        Yields:
            What :meth:`__call__` would say; the first one once a window is full and the Super has answered what it is
            asked.

        Raises:
            InputError: As :meth:`__call__` does, when the turn of the text's window comes.
        """
        checked = (self.rows(part, first + start) for start, part in windows(texts, window))
        # Or none by the short way: it tokenises in this thread, and longer windows in another, by the same tokenizer.
        prepared = (self._prepare(rows, None, window <= self.few) for rows in checked)
        yield from stream(prepared, self._swift_window, *self._super_stage)

    def super_map(self, texts: Iterable[str] | Iterable[tuple[str, ...]], window: int = 4096) -> Iterator[Prediction]:
        """Answer a stream by the Super alone, by the same way; the scores are infinite."""
        checked = (self.rows(part, start) for start, part in windows(texts, window))
        prepared = (self._prepare_super(rows) for rows in checked)
        yield from stream(
            prepared, lambda w: [Deferred(w, i, math.inf) for i in range(len(w.rows))], *self._super_stage
        )

    def batches(self, model: TextModel, texts: Sequence[Any]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """The batches of one of the two models: which texts they are of, and the model's inputs."""
        rows = self.rows(texts)
        encoded = self._encode(model, rows, self._task(len(rows[0])).choices_of(rows))
        for chosen in self._batches(model, encoded.lengths):
            yield chosen, self._inputs(encoded, chosen)

    def answer(self, rows: list[tuple[str, ...]], choices: Sequence[Sequence[str]] | None = None) -> list[Prediction]:
        """Answer tuples of the task's texts as they are, even if some are empty (a benchmark's may be).

        Raises:
            InputError: If candidates are missing, or a model's logits are not finite.
        """
        window = self._prepare(rows, choices)
        if deferred := self._swift_window(window):
            self._super_window(deferred)
        return [one for one in window.answers if one is not None]

    def ask_swift(
        self, rows: list[tuple[str, ...]], choices: Sequence[Sequence[str]] | None = None, keep: bool = False
    ) -> list[tuple[str | float | None, float, bool]]:
        """The Swift's part of :meth:`answer`: of each input its answer, its score, and whether it is to be deferred.

        Args:
            rows: Texts, as :meth:`rows` gives them.
            choices: Each example's candidates, where the task has its own for each.
            keep: Answer all of them, whatever they score.

        Returns:
            Its answer is ``None`` where the score decided before the decoder.
        """
        return self._judge(self._prepare(rows, choices), math.inf if keep else self.threshold)

    def _judge(self, window: Window, threshold: float) -> list[tuple[str | float | None, float, bool]]:
        """Of each input of a window the Swift's answer, if it has one, its score, and whether it is to be deferred."""
        answers, scores = self._swift_pass(window, threshold)
        if not all(map(math.isfinite, scores)):
            check_finite(torch.tensor(scores), "score")
        early = self.score in BEFORE_DECODER
        # As `route` decides, on the host.
        return [
            (None if early and score > threshold else self._label(answer, window, i), score, score > threshold)
            for i, (answer, score) in enumerate(zip(answers, scores, strict=True))
        ]

    def ask_super(
        self, rows: list[tuple[str, ...]], choices: Sequence[Sequence[str]] | None = None
    ) -> list[str | float]:
        """The Super's answers to texts, as :meth:`rows` gives them."""
        window = self._window(rows, choices)
        return [self._label(answer, window, i) for i, answer in enumerate(self._super_pass(rows, window.choices))]

    def rows(self, texts: Sequence[Any], first: int = 0) -> list[tuple[str, ...]]:
        """Check texts, or tuples of the task's texts; the first one is the input of that number.

        Raises:
            InputError: If one is empty, not a string, or not as many texts as the task has.
        """
        rows = [tuple(text) if isinstance(text, (tuple, list)) else (text,) for text in texts]
        task = self._task(len(rows[0]) if rows else 1)
        flat = list(chain.from_iterable(rows))
        plain = set(map(type, flat)) <= {str} and set(map(len, rows)) <= {len(task.fields)}
        if plain and (task.problem == "sequence" or all(map(str.strip, flat))):
            return rows
        for i, row in enumerate(rows):
            # An empty line of a text to be translated keeps its place.
            empty = task.problem != "sequence" and not all(isinstance(t, str) and t.strip() for t in row)
            if len(row) != len(task.fields) or empty or not all(isinstance(t, str) for t in row):
                raise InputError(
                    f"Input {first + i} (counted from 0) is empty, or not the {len(task.fields)} text(s) "
                    f"{task.fields}: {texts[i]!r}. Remove or mend it."
                )
        return rows

    @property
    def _super_stage(self) -> tuple[Callable[[list[Deferred]], None], int]:
        """The Super's pass, and how many inputs are worth one."""
        return self._super_window, FULL_BATCHES * max(1, self.super_tokens // 32)

    def _prepare(
        self, rows: list[tuple[str, ...]], choices: Sequence[Sequence[str]] | None, short: bool = True
    ) -> Window:
        window = self._window(rows, choices)
        if short and self._few_swift is not None and window.choices is None and len(rows) <= self.few:
            return window
        window.encoded = self._encode(self.swift, window.rows, window.choices)
        self.truncated += window.encoded.texts.truncated
        if self._super is not None and not window.encoded.texts.truncated and self._same_tokens:
            window.super_encoded = window.encoded
        return window

    def _prepare_super(self, rows: list[tuple[str, ...]]) -> Window:
        window = self._window(rows, None)
        window.super_encoded = self._encode(self.super_, window.rows, window.choices)
        self.super_truncated += window.super_encoded.texts.truncated
        return window

    def _window(self, rows: list[tuple[str, ...]], choices: Sequence[Sequence[str]] | None) -> Window:
        task = self._task(len(rows[0]))
        given = [tuple(c) for c in choices] if choices is not None else task.choices_of(rows)
        if task.problem == "choice" and (given is None or len(given) != len(rows) or not all(given)):
            raise InputError("This task chooses among candidates: give at least one for each input, as `choices`.")
        check_choices(max(map(len, given)) if given else 0, len(self.label_names))
        return Window(rows, given)

    def _swift_window(self, window: Window) -> list[Deferred]:
        """Answer a window by the Swift; what it defers is returned."""
        deferred = []
        for i, (label, score, hard) in enumerate(self._judge(window, self.threshold)):
            if hard:
                deferred.append(Deferred(window, i, score))
            else:
                assert label is not None
                window.answers[i] = Prediction(label, score, "swift")
        return deferred

    def _super_window(self, deferred: list[Deferred]) -> None:
        """Answer what was deferred, from whatever windows."""
        rows = [one.window.rows[one.place] for one in deferred]
        choices = [one.window.choices[one.place] for one in deferred if one.window.choices is not None]
        found = self._super_pass(rows, choices or None, None if choices else _tokens_of(deferred))
        for one, answer in zip(deferred, found, strict=True):
            label = self._label(answer, one.window, one.place)
            one.window.answers[one.place] = Prediction(label, one.score, "super")

    def _task(self, num_texts: int) -> TextTask:
        """The Swift's task; one that does not say what it was trained on may get pairs of texts."""
        if self.swift.manifest is not None or num_texts != 2:
            return self.task
        return replace(self.task, fields=["text", "text_pair"], segments=["{text}", "{text_pair}"])

    def _label(self, answer: float | str, window: Window, place: int) -> str | float:
        if self.task.problem in ("regression", "sequence"):
            return answer
        if window.choices is not None and not self.task.answers:
            return window.choices[place][int(answer)]
        return self.label_names[int(answer)]

    def limit(self, model: TextModel) -> int:
        """Tokens that are kept of an input."""
        return int(min(self.max_length, model.tokenizer.model_max_length))

    def _read_task(self, model: TextModel, num_texts: int) -> TextTask:
        """The task as a model reads it."""
        return model.task if model.manifest is not None else self._task(num_texts)

    def _encode(
        self, model: TextModel, rows: list[tuple[str, ...]], choices: list[tuple[str, ...]] | None
    ) -> EncodedExamples:
        return encode_examples(model.reader, self._read_task(model, len(rows[0])), rows, choices, self.limit(model))

    def _token_lists(self, model: TextModel, rows: list[tuple[str, ...]]) -> tuple[list[dict[str, list[int]]], int]:
        return token_lists(model.reader, self._read_task(model, len(rows[0])), rows, self.limit(model))

    def _batches(self, model: TextModel, lengths: Tensor) -> list[Tensor]:
        return token_batches(self._room(model, lengths), getattr(self, self._budget(model)), self.batch_size)

    def _budget(self, model: TextModel) -> str:
        """Name of what limits a model's batches; a Super alone is in the Swift's place, too."""
        return "super_tokens" if model is self._super else "tokens"

    def _room(self, model: TextModel, lengths: Tensor) -> Tensor:
        """Tokens that count against the budget; logits over a vocabulary take far more room than a token."""
        return lengths.clamp_min(_DECODED * model.decoded if isinstance(model, TextToText) else 1)

    def _inputs(self, encoded: EncodedExamples, chosen: Tensor) -> dict[str, Tensor]:
        inputs = encoded.batch(chosen.tolist())
        if self.device.type == "cuda":
            # So that the copy does not wait for what the device is doing.
            inputs = {name: value.pin_memory() for name, value in inputs.items()}
        return {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}

    def _each_batch(
        self, model: TextModel, encoded: EncodedExamples, call: Callable[[dict[str, Tensor]], _Said]
    ) -> Iterator[tuple[Tensor, _Said]]:
        """What a model says of each batch; for one that does not fit into memory the budget of tokens is halved."""
        batches = deque(self._batches(model, encoded.lengths))
        while batches:
            chosen = batches.popleft()
            try:
                said = call(self._inputs(encoded, chosen))
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
            batches = deque(left[part] for part in self._batches(model, encoded.lengths[left]))

    def _halve(self, model: TextModel, lengths: Tensor) -> None:
        """Take half of a batch with these lengths for the budget, be it by the limit of inputs that it was no more."""
        budget = len(lengths) // 2 * int(self._room(model, lengths).max())
        name = self._budget(model)
        setattr(self, name, budget)
        warnings.warn(
            f"A batch of {len(lengths)} inputs does not fit into the memory of {self.device}: {name} is {budget} now.",
            stacklevel=2,
        )

    @torch.inference_mode()
    def _swift_pass(self, window: Window, threshold: float) -> tuple[list[Any], list[float]]:
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
            return self._swift_first(inputs)[0]
        assert isinstance(self.swift, TextToText)
        table, encoded = self._early_first(inputs)
        score = table[:, 0]
        answer = torch.zeros_like(score)
        kept = (~route(score, threshold)).nonzero().squeeze(1)
        if len(kept):
            logits = self.swift.label_logits(*self.swift.take(encoded, inputs, kept))
            check_logits(logits, "the Swift's logits", self.task.problem == "choice")
            answer[kept] = self.swift.predict(logits).to(self._kind)
        return torch.stack([score, answer], 1)

    def _swift_first(self, inputs: dict[str, Tensor]) -> tuple[Tensor, None]:
        """Of each input score, answer and what tells odd logits, ``(B, 3)``."""
        said = self.swift(inputs)
        score = self.swift.score_of(self.score, said, self.temperature)
        return self._table(score, said.prediction, self._odd(said.logits)), None

    def _early_first(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """Of each input the score before the decoder, ``(B, 1)``, and what the decoder takes."""
        assert isinstance(self.swift, TextToText)
        encoded = self.swift.encode(inputs)
        return self.swift.early_scores(encoded, self.temperature)[self.score].to(self._kind)[:, None], encoded

    def _early_second(self, encoded: Any) -> tuple[Tensor, None]:
        """The decoder's answers, and what tells odd logits, ``(B, 2)``."""
        assert isinstance(self.swift, TextToText)
        logits = self.swift.label_logits(encoded, {})
        return self._table(self.swift.predict(logits), self._odd(logits)), None

    def _super_first(self, inputs: dict[str, Tensor]) -> tuple[Tensor, None]:
        """The Super's answers, and what tells odd logits, ``(B, 2)``."""
        logits = self.super_(inputs).logits
        if self.super_order != list(range(logits.shape[1])):
            logits = torch.stack([logits[:, place] for place in self.super_order], 1)
        # By the logits: a text that was freely generated may be none of the answers.
        return self._table(self.super_.predict(logits), self._odd(logits)), None

    def _swift_few(self, rows: list[tuple[str, ...]], threshold: float) -> tuple[list[Any], list[float]]:
        """:meth:`_swift_pass` for few inputs."""
        assert self._few_swift is not None
        tokens, cut = self._token_lists(self.swift, rows)
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
        """:meth:`_super_pass` for few inputs."""
        assert self._few_super is not None
        if self._few_swift is not None and self._same_tokens and all(row in self._tokens for row in rows):
            tokens = [self._tokens[row] for row in rows]
        else:
            tokens, cut = self._token_lists(self.super_, rows)
            self.super_truncated += cut
        said = self._few_super.first(tokens)
        if isinstance(self.super_, Seq2Seq):
            _, *ids = self._few_super.generate([True] * len(rows))
            return self.super_.texts(_tokens(ids))
        answers, odd = said
        _check_odd(odd, rows, "Super")
        return answers

    @cached_property
    def _kind(self) -> torch.dtype:
        """What holds scores and answers exactly: a regression's may be read off a text."""
        return torch.float64 if self.task.problem == "regression" else torch.float32

    def _table(self, *columns: Tensor) -> Tensor:
        return torch.stack([column.to(self._kind) for column in columns], 1)

    def _odd(self, logits: Tensor) -> Tensor:
        """A number that is finite where a row of logits can be scored, float32 ``(B,)``; one kernel."""
        if self.task.problem != "choice":
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
    def _super_pass(
        self,
        rows: list[tuple[str, ...]],
        choices: list[tuple[str, ...]] | None,
        encoded: EncodedExamples | None = None,
    ) -> list[Any]:
        """The Super's answers; their tokens are made here where they are not known."""
        if self._few_super is not None and choices is None and encoded is None and len(rows) <= self.few:
            return self._super_few(rows)
        if encoded is None:
            encoded = self._encode(self.super_, rows, choices)
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


def _tokens_of(deferred: list[Deferred]) -> EncodedExamples | None:
    """The Super's tokens of what was deferred, if they are known."""
    parts = []
    for window, group in groupby(deferred, key=lambda one: one.window):
        if window.super_encoded is None:
            return None
        parts.append(window.super_encoded.texts.take(torch.tensor([one.place for one in group])))
    return EncodedExamples(reduce(add, parts))


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


def _ready(
    model: str | TextModel,
    task: TextTask | None,
    dtype: torch.dtype,
    device: torch.device,
    compiled: bool,
    int8: bool = False,
) -> TextModel:
    """A model on its device, to be asked; one that is to be compiled is so by the library's own passes."""
    if not isinstance(model, str) and (dtype != torch.float32 or int8):
        raise InputError(
            f"{'super_int8' if int8 else f'dtype {dtype}'} is for models that are loaded here; give this one as it is "
            "to be used."
        )
    found = load_model(model, task, dtype=dtype) if isinstance(model, str) else model
    if int8:
        # Before it goes to the card, where the whole of it may find no room.
        found.quantize()
    found = found.to(device).eval()
    if not compiled and not int8:
        found.shorten()
    return found


def _number(threshold: str | float) -> float | None:
    try:
        return float(threshold)
    except ValueError:
        return None
