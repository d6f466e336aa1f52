"""Using a pair: the Swift answers, and only hard inputs go to the Super. Needs no Lightning."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from elang.data.batches import encode_examples
from elang.data.format import TextTask
from elang.errors import InputError
from elang.manifest import Manifest
from elang.models.backbones import load_model
from elang.models.seq2seq import Seq2Seq
from elang.models.text_model import TextModel, check_choices
from elang.models.text_to_text import TextToText
from elang.records import SUFFIXES
from elang.scores import BEFORE_DECODER, SCORES, check_finite, check_logits, route
from elang.sequence_scores import SEQUENCE_SCORES


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
        swift_model: The Swift's folder, as `elang fit` writes it.
        super_model: The Super's folder, or a hub id.
        threshold: Name of a threshold in ``elang.json`` (``parity``, ``99%``, ``defer 30%``) or a number: inputs
            that score above it go to the Super. Also ``inf`` and ``-inf``.
        score: Which score routes; by default the Swift's own.
        thresholds: Another threshold file, as `elang validate` writes it.
        device: By default a GPU if there is one.
        batch_size: Inputs in a batch.

    >>> predictor = JointPredictor("runs/swift", "runs/super")  # doctest: +SKIP
    >>> predictor(["what is energy ?"])  # doctest: +SKIP
    [Prediction(label='DESC', score=-5.1, answered_by='swift')]
    """

    def __init__(
        self,
        swift_model: str,
        super_model: str,
        threshold: str | float = "parity",
        score: str | None = None,
        thresholds: str | None = None,
        device: str | None = None,
        batch_size: int = 64,
    ) -> None:
        for path in (swift_model, super_model):
            if path.endswith(SUFFIXES):
                raise InputError(f"Records such as '{path}' answer only the examples in them; give a model to predict.")
        if batch_size < 1:
            raise InputError(f"The batch size must be at least 1, but it is {batch_size}.")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.swift = load_model(swift_model).to(self.device).eval()
        self.super_ = load_model(super_model, self.swift.task).to(self.device).eval()
        manifest = Manifest.read(thresholds) if thresholds else self.swift.manifest
        if manifest is None:
            manifest = Manifest(self.swift.label_names)
        elif self.swift.weights_sha256:
            manifest.check_weights(self.swift.weights_sha256, f"'{swift_model}'")
        self.label_names = self.swift.label_names
        self.super_order = self.super_.class_order(self.label_names, f"'{super_model}'")
        self.score = score or manifest.score
        self.task = self.swift.task
        if self.super_.manifest is not None and self.super_.task.fields != self.task.fields:
            raise InputError(
                f"'{super_model}' was trained on the texts {self.super_.task.fields}, '{swift_model}' on "
                f"{self.task.fields}. Train both on one task."
            )
        own: dict[str, Sequence[str]] = {"regression": [], "sequence": SEQUENCE_SCORES}
        known = [*own.get(self.task.problem, list(SCORES)), *self.swift.head_scores]
        if self.score not in known:
            raise InputError(f"The Swift has no score '{self.score}'; choose one of {', '.join(known)}.")
        number = _number(threshold)
        self.threshold = manifest.threshold(str(threshold), self.score) if number is None else number
        if math.isnan(self.threshold):
            raise InputError("The threshold is NaN; give a number, inf, -inf, or a name such as parity.")
        self.temperature, self.max_length, self.batch_size = (
            manifest.temperature,
            manifest.max_length,
            batch_size,
        )
        for model in (self.swift, self.super_):
            if isinstance(model, Seq2Seq):
                model.limit_new_tokens(manifest.max_target_length)
        if isinstance(self.swift, Seq2Seq) and manifest.thresholds:
            # Scores of other texts would not be on the thresholds' scale.
            self.swift.set_beams(manifest.num_beams)
        self.truncated = self.super_truncated = 0

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
        rows = [tuple(text) if isinstance(text, (tuple, list)) else (text,) for text in texts]
        task = self._task(len(rows[0]) if rows else 1)
        for i, row in enumerate(rows):
            # An empty line of a text to be translated keeps its place.
            empty = task.problem != "sequence" and not all(isinstance(t, str) and t.strip() for t in row)
            if len(row) != len(task.fields) or empty or not all(isinstance(t, str) for t in row):
                raise InputError(
                    f"Input {i} (counted from 0) is empty, or not the {len(task.fields)} text(s) {task.fields}: "
                    f"{texts[i]!r}. Remove or mend it."
                )
        if not rows:
            return []
        return self.answer(rows, choices)

    def answer(self, rows: list[tuple[str, ...]], choices: Sequence[Sequence[str]] | None = None) -> list[Prediction]:
        """Answer tuples of the task's texts as they are, even if some are empty (a benchmark's may be).

        Raises:
            InputError: If candidates are missing, or a model's logits are not finite.
        """
        task = self._task(len(rows[0]))
        given = [tuple(c) for c in choices] if choices is not None else task.choices_of(rows)
        if task.problem == "choice" and (given is None or len(given) != len(rows) or not all(given)):
            raise InputError("This task chooses among candidates: give at least one for each input, as `choices`.")
        check_choices(max(map(len, given)) if given else 0, len(self.label_names))
        answer, score = self._swift_pass(task, rows, given)
        hard = route(score, self.threshold)
        deferred = hard.nonzero().squeeze(1).tolist()
        if deferred:
            found = self._super_pass(task, [rows[i] for i in deferred], [given[i] for i in deferred] if given else None)
            for i, better in zip(deferred, found, strict=True):
                answer[i] = better
        return [
            Prediction(self._label(a, given[i] if given else ()), s, "super" if h else "swift")
            for i, (a, s, h) in enumerate(zip(answer, score.tolist(), hard.tolist(), strict=True))
        ]

    def _task(self, num_texts: int) -> TextTask:
        """The Swift's task; one that does not say what it was trained on may get pairs of texts."""
        if self.swift.manifest is not None or num_texts != 2:
            return self.task
        return replace(self.task, fields=["text", "text_pair"], segments=["{text}", "{text_pair}"])

    def _label(self, answer: float | str, choices: tuple[str, ...]) -> str | float:
        if self.task.problem in ("regression", "sequence"):
            return answer
        own = choices and not self.task.answers
        return choices[int(answer)] if own else self.label_names[int(answer)]

    def limit(self, model: TextModel) -> int:
        """Tokens that are kept of an input."""
        return int(min(self.max_length, model.tokenizer.model_max_length))

    def _batches(
        self, model: TextModel, task: TextTask, rows: list[tuple[str, ...]], choices: list[tuple[str, ...]] | None
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        own = model.task if model.manifest is not None else task
        encoded = encode_examples(model.reader, own, rows, choices, self.limit(model))
        if model is self.swift:
            self.truncated += encoded.texts.truncated
        else:
            self.super_truncated += encoded.texts.truncated
        for chosen in encoded.lengths.argsort(descending=True, stable=True).split(self.batch_size):
            inputs = encoded.batch(chosen.tolist())
            yield chosen, {name: value.to(self.device) for name, value in inputs.items()}

    @torch.inference_mode()
    def _swift_pass(
        self, task: TextTask, rows: list[tuple[str, ...]], choices: list[tuple[str, ...]] | None
    ) -> tuple[list[Any], Tensor]:
        """The Swift's answers and scores; before the decoder where the score allows, which then runs for the kept."""
        answers, scores = torch.zeros(len(rows), dtype=torch.float64), torch.empty(len(rows))
        texts = [""] * len(rows)
        for chosen, inputs in self._batches(self.swift, task, rows, choices):
            if isinstance(self.swift, Seq2Seq):
                score, kept, said = self._swift_texts(self.swift, inputs)
                for i, text in zip(chosen[kept.cpu()].tolist(), said, strict=True):
                    texts[i] = text
            elif self.score in BEFORE_DECODER and isinstance(self.swift, TextToText):
                encoded = self.swift.encode(inputs)
                score = self.swift.early_scores(encoded, self.temperature)[self.score]
                kept = (~route(score.float(), self.threshold)).nonzero().squeeze(1)
                if len(kept):
                    part, taken = self.swift.take(encoded, inputs, kept)
                    logits = self.swift.label_logits(part, taken)
                    check_logits(logits, "the Swift's logits", self.task.problem == "choice")
                    answers[chosen[kept.cpu()]] = self.swift.predict(logits).double().cpu()
            else:
                answer = self.swift(inputs)
                check_logits(answer.logits, "the Swift's logits", self.task.problem == "choice")
                score = self.swift.scores(answer, self.temperature)[self.score]
                answers[chosen] = answer.prediction.double().cpu()
            scores[chosen] = score.float().cpu()
        return texts if isinstance(self.swift, Seq2Seq) else answers.tolist(), scores

    def _swift_texts(self, model: Seq2Seq, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[str]]:
        """Scores of a batch ``(B,)``, which of it were decoded, and the texts of these."""
        source = model.encode(inputs)
        kept = torch.arange(len(source.hidden), device=self.device)
        if self.score in BEFORE_DECODER:
            score = model.early_scores(source)[self.score]
            kept = (~route(score.float(), self.threshold)).nonzero().squeeze(1)
            return score, kept, model.texts(model.generate(source[kept], scored=False).ids) if len(kept) else []
        made = model.generate(source)
        score = model.late_scores(source, made)[self.score]
        check_finite(score, "the Swift's score")
        return score, kept, model.texts(made.ids)

    @torch.inference_mode()
    def _super_pass(
        self, task: TextTask, rows: list[tuple[str, ...]], choices: list[tuple[str, ...]] | None
    ) -> list[Any]:
        answers = torch.empty(len(rows), dtype=torch.float64)
        texts = [""] * len(rows)
        for chosen, inputs in self._batches(self.super_, task, rows, choices):
            if isinstance(self.super_, Seq2Seq):
                said = self.super_.texts(self.super_.generate(self.super_.encode(inputs), scored=False).ids)
                for i, text in zip(chosen.tolist(), said, strict=True):
                    texts[i] = text
                continue
            logits = self.super_(inputs).logits[:, self.super_order]
            check_logits(logits, "the Super's logits", self.task.problem == "choice")
            answers[chosen] = self.super_.predict(logits).double().cpu()
        return texts if isinstance(self.super_, Seq2Seq) else answers.tolist()


def _number(threshold: str | float) -> float | None:
    try:
        return float(threshold)
    except ValueError:
        return None
