"""Using a pair: the Swift answers, and only hard inputs go to the Super. Needs no Lightning."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from os import PathLike, fspath
from typing import Any, get_args

import torch
from torch import Tensor

from elang.backends.candidates import check_choices
from elang.backends.fast.graphs import DType
from elang.backends.generator import Seq2Seq
from elang.backends.loading.load import load_model
from elang.backends.text_model import TextModel
from elang.errors import InputError
from elang.inference.inputs import as_number, each_text, is_unicode, kind_of_input, tokens_of
from elang.inference.passes import Passes
from elang.inference.prediction import FULL_BATCHES, Deferred, Prediction, Window
from elang.inference.stream import stream, windows
from elang.method.deferral import check_finite
from elang.method.scores import BEFORE_DECODER
from elang.notices import notice
from elang.records.manifest import Manifest
from elang.tables import is_table
from elang.tasks.text_task import TextTask

# Below 1 by more than is said.
_DEAR = 0.995
# Of the Swift and of the Super: small models want large batches on a GPU.
_GPU_TOKENS = 65536, 16384
# The caches of a CPU want small ones; large enough for its threads.
_CPU_TOKENS, _THREAD_TOKENS = 512, 256


class JointPredictor:
    """Answers texts with a Swift and a Super.

    Args:
        swift_model: The Swift's folder, as `elang fit` writes it; ``None`` where only :meth:`ask_super` is used.
        super_model: The Super's folder, or a hub id; ``None`` where it is elsewhere and only :meth:`ask_swift` is used.
        threshold: Name of a threshold in ``elang.json`` (``parity``, ``99%``, ``defer 30%``) or a number: inputs
            that score above it go to the Super. Also ``inf`` and ``-inf``.
        score: Which score routes; by default the one that the named threshold was calibrated for, else the Swift's
            own.
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

    Models that are there already (:class:`elang.backends.text_model.TextModel`) can be given in the place of folders.

    >>> predictor = JointPredictor("runs/swift", "runs/super")  # doctest: +SKIP
    >>> predictor(["what is energy ?"])  # doctest: +SKIP
    [Prediction(label='DESC', score=-0.96, answered_by='swift')]
    """

    def __init__(
        self,
        swift_model: str | PathLike[str] | TextModel | None,
        super_model: str | PathLike[str] | TextModel | None,
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
        swift_model, super_model = (
            fspath(model) if isinstance(model, PathLike) else model for model in (swift_model, super_model)
        )
        for path in (swift_model, super_model):
            if not isinstance(path, str | TextModel | None):
                raise InputError(
                    f"A model is a folder, a hub id or a TextModel, but one of {kind_of_input(path)} was given."
                )
            if isinstance(path, str) and is_table(path):
                raise InputError(f"Records such as '{path}' answer only the examples in them; give a model to predict.")
        for name, size in (("batch_size", batch_size), ("tokens", tokens), ("super_tokens", super_tokens)):
            if size is not None and size < 1:
                raise InputError(f"{name} must be at least 1, but it is {size}.")
        if few < 0:
            raise InputError(f"few must be at least 0, but it is {few}.")
        if dtype not in get_args(DType):
            raise InputError(f"dtype must be one of {', '.join(get_args(DType))}, but it is {dtype!r}.")
        number = as_number(threshold)
        if number is not None and math.isnan(number):
            raise InputError("The threshold is NaN; give a number, inf, -inf, or a name such as parity.")
        precision: torch.dtype = getattr(torch, dtype)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        budgets = _GPU_TOKENS
        if self.device.type == "cpu":
            budgets = (max(_CPU_TOKENS, _THREAD_TOKENS * torch.get_num_threads()),) * 2
        budgets = tokens or budgets[0], super_tokens or budgets[1]
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
        self.task = self.swift.task
        # A Super alone takes both places, and nothing is routed.
        other = self.swift if swift_model is None else None
        order = list(range(len(self.label_names)))
        if swift_model is not None and super_model is not None:
            other = _ready(super_model, self.task, precision, self.device, compile, super_int8)
            trained = "" if self.swift.manifest is not None else ", which `elang fit` has not written,"
            weights = [sum(p.numel() for p in model.parameters()) for model in (self.swift, other)]
            if weights[0] > weights[1]:
                notice(
                    "swapped-models",
                    f"The Swift '{swift_model}' has {weights[0]:,} weights and the Super '{super_model}' only "
                    f"{weights[1]:,}: are the two the other way round?",
                )
            order = other.class_order(self.label_names, f"'{super_model}'", f"'{swift_model}'{trained}")
            if other.manifest is not None and other.task.fields != self.task.fields:
                raise InputError(
                    f"'{super_model}' was trained on the texts {other.task.fields}, '{swift_model}' on "
                    f"{self.task.fields}. Train both on one task."
                )
        known = [*self.task.kind.scores, *self.swift.head_scores]
        if (score or manifest.score) not in known and swift_model is not None:
            raise InputError(f"The Swift has no score '{score or manifest.score}'; choose one of {', '.join(known)}.")
        number = as_number(threshold)
        named = number is None and swift_model is not None
        self.score, value = manifest.resolve(str(threshold), score) if named else (score or manifest.score, number)
        if self.score not in self.swift.head_scores:
            # They would be fed for nothing.
            self.swift.drop_routers()
        self.threshold = math.inf if value is None or swift_model is None else value
        if named and other is not None:
            self.warn_if_dear(str(threshold))
            manifest.warn_of_another_super(str(threshold), self.score, str(super_model), lambda: other.weights_sha256)
        if math.isnan(self.threshold):
            raise InputError("The threshold is NaN; give a number, inf, -inf, or a name such as parity.")
        models = [self.swift] if other in (None, self.swift) else [self.swift, other]
        for model in models:
            if isinstance(model, Seq2Seq):
                model.limit_new_tokens(manifest.max_target_length)
        if isinstance(self.swift, Seq2Seq) and manifest.thresholds:
            # Scores of other texts would not be on the thresholds' scale.
            self.swift.set_beams(manifest.num_beams)
        for model in models:
            for part in model.compiled_parts() if compile else []:
                part.compile(dynamic=True)
            if onnx:
                model.export()
        self.passes = Passes(
            self.swift,
            other,
            swift_model is None,
            order,
            self.score,
            manifest.temperature,
            manifest.max_length,
            self.device,
            budgets,
            batch_size,
            few,
        )

    def warn_if_dear(self, name: str) -> None:
        """Say it if the pair costs more than the Super alone at a threshold, and at which ones it does not."""
        known = self.manifest.thresholds.get(self.score, {})
        speedups = {key: self.manifest.speedup(key, self.score) for key in known}
        if not speedups.get(name, math.nan) < _DEAR:
            return
        better = [repr(key) for key, speedup in speedups.items() if speedup > 1]
        notice(
            "costly-threshold",
            f"At the threshold '{name}' the pair costs more than the Super alone: a FLOPs speed-up of "
            f"{speedups[name]:.2f}x on the slice that it was chosen on. "
            + (f"It is above 1 at {', '.join(better)}." if better else "Ask the Super alone."),
            stacklevel=3,
        )

    @property
    def super_(self) -> TextModel:
        """The Super."""
        return self.passes.super_

    @property
    def truncated(self) -> int:
        """Inputs that were cut for the Swift."""
        return self.passes.truncated

    @property
    def super_truncated(self) -> int:
        """Inputs that the Super's tokens made too long."""
        return self.passes.super_truncated

    def __call__(
        self, texts: Iterable[str] | Iterable[tuple[str, ...]], choices: Sequence[Sequence[str]] | None = None
    ) -> list[Prediction]:
        """Answer texts, or tuples of the task's texts, in their order.

        They may be in a list or any other sequence, a generator, an array or a column of a table (NumPy, pandas,
        PyArrow, datasets). A whole table, a mapping, a set or a single text is refused.

        Texts over the length that the Swift was trained on are cut and counted in ``self.truncated``, those that the
        Super's tokens make too long in ``self.super_truncated``.

        Args:
            texts: One value for each of ``task.fields``.
            choices: Each example's candidates, where the task has its own for each.

        Raises:
            InputError: If these are no texts, one is empty, or the Swift's logits are not finite.
        """
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
        checked = (self.rows(part, first + start) for start, part in windows(each_text(texts), window))
        # Or none by the short way: it tokenises in this thread, and longer windows in another, by the same tokenizer.
        prepared = (self._prepare(rows, None, window <= self.passes.few) for rows in checked)
        yield from stream(prepared, self._swift_window, *self._super_stage)

    def super_map(self, texts: Iterable[str] | Iterable[tuple[str, ...]], window: int = 4096) -> Iterator[Prediction]:
        """Answer a stream by the Super alone, by the same way; the scores are infinite."""
        checked = (self.rows(part, start) for start, part in windows(each_text(texts), window))
        prepared = (self._prepare_super(rows) for rows in checked)
        yield from stream(
            prepared, lambda w: [Deferred(w, i, math.inf) for i in range(len(w.rows))], *self._super_stage
        )

    def batches(self, model: TextModel, texts: Sequence[Any]) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """The batches of one of the two models: which texts they are of, and the model's inputs."""
        rows = self.rows(texts)
        encoded = self.passes.encode(model, rows, self.passes.task_for(len(rows[0])).choices_of(rows))
        for chosen in self.passes.batches(model, encoded.lengths):
            yield chosen, self.passes.inputs(encoded, chosen)

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
        answers, scores = self.passes.swift_answers(window, threshold)
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
        return [
            self._label(answer, window, i)
            for i, answer in enumerate(self.passes.super_answers(window.rows, window.choices))
        ]

    def rows(self, texts: Iterable[Any], first: int = 0) -> list[tuple[str, ...]]:
        """Check texts, or tuples of the task's texts; the first one is the input of that number.

        Raises:
            InputError: If they are no texts, or one is empty, not a string, or not as many texts as the task has.
        """
        rows = [tuple(text) if isinstance(text, (tuple, list)) else (text,) for text in each_text(texts)]
        # An empty line of a text to be translated keeps its place.
        return self._checked(rows, first, self.task.kind.generates)

    def _checked(self, rows: list[tuple[str, ...]], first: int, empty: bool) -> list[tuple[str, ...]]:
        """Refuse what is not the task's texts; they may be ``empty`` where that is said."""
        fields = self.passes.task_for(len(rows[0]) if rows else 1).fields
        flat = list(chain.from_iterable(rows))
        plain = set(map(type, flat)) <= {str} and set(map(len, rows)) <= {len(fields)} and is_unicode("".join(flat))
        if plain and (empty or all(map(str.strip, flat))):
            return rows
        for i, row in enumerate(rows):
            given: Any = row[0] if len(row) == 1 else row
            if odd := [text for text in row if not isinstance(text, str)]:
                raise InputError(
                    f"Input {first + i} (counted from 0) is no text, but of {kind_of_input(odd[0])}: "
                    f"{str(given)[:200]!r}. Give texts, or remove it."
                )
            if not all(map(is_unicode, row)):
                raise InputError(f"Input {first + i} (counted from 0) holds half a character: {given!r}. Mend it.")
            if len(row) != len(fields):
                raise InputError(
                    f"Input {first + i} (counted from 0) has {len(row)} text(s), but the task's are {len(fields)}: "
                    f"{fields}. Remove or mend it."
                )
            if not (empty or all(map(str.strip, row))):
                where = "" if len(row) == 1 else f" in '{fields[[bool(text.strip()) for text in row].index(False)]}'"
                raise InputError(f"Input {first + i} (counted from 0) is empty{where}. Remove or mend it.")
        # Strings of NumPy, which are texts of another type.
        return [tuple(map(str, row)) for row in rows]

    @property
    def _super_stage(self) -> tuple[Callable[[list[Deferred]], None], int]:
        """The Super's pass, and how many inputs are worth one."""
        return self._super_window, FULL_BATCHES * max(1, self.passes.super_tokens // 32)

    def _prepare(
        self, rows: list[tuple[str, ...]], choices: Sequence[Sequence[str]] | None, short: bool = True
    ) -> Window:
        window = self._window(rows, choices)
        if short and window.choices is None and self.passes.takes(len(window.rows)):
            return window
        window.encoded = self.passes.encode(self.swift, window.rows, window.choices)
        self.passes.truncated += window.encoded.texts.truncated
        if self.passes.has_super and not window.encoded.texts.truncated and self.passes.reads_alike:
            window.super_encoded = window.encoded
        return window

    def _prepare_super(self, rows: list[tuple[str, ...]]) -> Window:
        window = self._window(rows, None)
        window.super_encoded = self.passes.encode(self.super_, window.rows, window.choices)
        self.passes.super_truncated += window.super_encoded.texts.truncated
        return window

    def _window(self, rows: list[tuple[str, ...]], choices: Sequence[Sequence[str]] | None) -> Window:
        if type(rows) is not list or not set(map(type, rows)) <= {tuple}:
            rows = [tuple(row) if isinstance(row, (tuple, list)) else (row,) for row in each_text(rows)]
        if not rows:
            raise InputError("There are no texts to answer.")
        rows = self._checked(rows, 0, True)
        if choices is not None:
            choices = list(each_text(choices, "choices"))
            odd = [one for one in choices if isinstance(one, str) or not all(isinstance(text, str) for text in one)]
            if odd:
                raise InputError(f"Each input's `choices` are a list of texts, but one has {str(odd[0])[:80]!r}.")
        task = self.passes.task_for(len(rows[0]))
        if choices and task.problem != "choice":
            raise InputError("This task takes no candidates; leave `choices` out.")
        given = [tuple(c) for c in choices] if choices is not None else task.choices_of(rows)
        if task.kind.has_candidates and (given is None or len(given) != len(rows) or not all(given)):
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
        found = self.passes.super_answers(rows, choices or None, None if choices else tokens_of(deferred))
        for one, answer in zip(deferred, found, strict=True):
            label = self._label(answer, one.window, one.place)
            one.window.answers[one.place] = Prediction(label, one.score, "super")

    def _label(self, answer: float | str, window: Window, place: int) -> str | float:
        return self.task.kind.answer(answer, self.task, None if window.choices is None else window.choices[place])


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
