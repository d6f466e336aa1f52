"""Using a pair: the Swift answers, and only hard inputs go to the Super. Needs no Lightning."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from elang.data.batches import EncodedTexts, encode
from elang.errors import InputError
from elang.manifest import Manifest
from elang.models.backbones import Classifier, load_classifier
from elang.records import SUFFIXES, written_aside
from elang.scores import SCORES, check_finite, route


@dataclass(frozen=True)
class Prediction:
    """The pair's answer to one input.

    Attributes:
        label: Name of the class.
        score: The Swift's difficulty score; larger is harder.
        answered_by: Which model answered.
    """

    label: str
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
        self.swift = load_classifier(swift_model).to(self.device).eval()
        self.super_ = load_classifier(super_model).to(self.device).eval()
        manifest = Manifest.read(thresholds) if thresholds else self.swift.manifest
        if manifest is None:
            manifest = Manifest(self.swift.label_names)
        elif self.swift.weights_sha256:
            manifest.check_weights(self.swift.weights_sha256, f"'{swift_model}'")
        self.label_names = self.swift.label_names
        self.super_order = self.super_.class_order(self.label_names, f"'{super_model}'")
        self.score = score or manifest.score
        known = [*SCORES, *(["router"] if self.swift.router is not None else [])]
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
        self.truncated = 0

    def __call__(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[Prediction]:
        """Answer texts, or pairs of texts, in their order.

        Texts over the length that the Swift was trained on are cut and counted in ``self.truncated``.

        Raises:
            InputError: If a text is empty or not a string, or the Swift's logits are not finite.
        """
        if isinstance(texts, str):
            raise InputError(f"The predictor takes a list of texts, but it was given the text {texts[:40]!r} alone.")
        rows = [tuple(text) if isinstance(text, (tuple, list)) else (text,) for text in texts]
        for i, row in enumerate(rows):
            fits = len(row) == len(rows[0]) and len(row) in (1, 2)
            if not fits or any(not isinstance(t, str) or not t.strip() for t in row):
                raise InputError(
                    f"Input {i} (counted from 0) is empty, or no text or pair: {texts[i]!r}. Remove or mend it."
                )
        if not rows:
            return []
        logits, score = self._swift_pass(rows)
        hard = route(score, self.threshold)
        answer = logits.argmax(-1)
        deferred = hard.nonzero().squeeze(1).tolist()
        if deferred:
            super_logits = self._super_pass([rows[i] for i in deferred])
            answer[deferred] = super_logits.argmax(-1)
        return [
            Prediction(self.label_names[a], s, "super" if h else "swift")
            for a, s, h in zip(answer.tolist(), score.tolist(), hard.tolist(), strict=True)
        ]

    def limit(self, model: Classifier) -> int:
        """Tokens that are kept of an input."""
        return int(min(self.max_length, model.tokenizer.model_max_length))

    def _batches(self, model: Classifier, rows: list[tuple[str, ...]]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        encoded: EncodedTexts = encode(model.tokenizer, rows, self.limit(model))
        if model is self.swift:
            self.truncated += encoded.truncated
        for part in encoded.lengths.argsort(descending=True, stable=True).split(self.batch_size):
            chosen = part.tolist()
            yield chosen, {name: value.to(self.device) for name, value in encoded.batch(chosen).items()}

    @torch.inference_mode()
    def _swift_pass(self, rows: list[tuple[str, ...]]) -> tuple[Tensor, Tensor]:
        logits, score = torch.empty(len(rows), len(self.label_names)), torch.empty(len(rows))
        for chosen, inputs in self._batches(self.swift, rows):
            answer = self.swift(inputs)
            logits[chosen] = answer.logits.cpu()
            score[chosen] = self.swift.scores(answer, self.temperature)[self.score].float().cpu()
        check_finite(logits, "the Swift's logits")
        return logits, score

    @torch.inference_mode()
    def _super_pass(self, rows: list[tuple[str, ...]]) -> Tensor:
        logits = torch.empty(len(rows), len(self.label_names))
        for chosen, inputs in self._batches(self.super_, rows):
            logits[chosen] = self.super_(inputs).logits[:, self.super_order].cpu()
        check_finite(logits, "the Super's logits")
        return logits


def _number(threshold: str | float) -> float | None:
    try:
        return float(threshold)
    except ValueError:
        return None


def predict(
    swift_model: str,
    super_model: str,
    input: str = "-",  # noqa: A002 - the option's name
    output: str = "-",
    text: list[str] | None = None,
    threshold: str = "parity",
    score: str | None = None,
    thresholds: str | None = None,
    device: str | None = None,
    batch_size: int = 64,
    chunk: int = 2048,
) -> None:
    """Answer the texts of a file or of standard input with a pair, one JSON object a line.

    Args:
        swift_model: The Swift's folder.
        super_model: The Super's folder or hub id.
        input: A text file with one input a line, a table (.csv, .tsv, .jsonl, .parquet) with --text, or ``-``.
        output: A JSONL file, or ``-`` for standard output.
        text: The text column of the table, or two for pairs.
        threshold: Name of a threshold in elang.json (parity, 99%, defer 30%), or a number.
        score: Which score routes; by default the Swift's own.
        thresholds: Another threshold file, as `elang validate` writes it.
        device: By default a GPU if there is one.
        batch_size: Inputs in a batch.
        chunk: Inputs that are read and answered at a time.
    """
    predictor = JointPredictor(swift_model, super_model, threshold, score, thresholds, device, batch_size)
    total = deferred = 0

    def answer(file: Any) -> None:
        nonlocal total, deferred
        for found in map(predictor, _chunks(input, text, max(1, chunk))):
            for one in found:
                file.write(json.dumps(vars(one), ensure_ascii=False) + "\n")
            total, deferred = total + len(found), deferred + sum(one.answered_by == "super" for one in found)
        if total == 0:
            raise InputError(f"The input '{input}' is empty: there is nothing to predict. Give one input a line.")

    if output == "-":
        answer(sys.stdout)
    else:
        with written_aside(output) as aside, aside.open("w", encoding="utf-8") as file:
            answer(file)
    said = f"{total} inputs, {deferred} ({deferred / total:.1%}) answered by the Super"
    if predictor.truncated:
        said += f", {predictor.truncated} over-long ones cut to {predictor.limit(predictor.swift)} tokens"
    sys.stderr.write(said + "\n")


def _chunks(source: str, columns: list[str] | None, size: int) -> Iterator[list[Any]]:
    """Read inputs, a bounded number at a time; tables are read whole."""
    if columns:
        from elang.data.files import read_frame, texts_of

        rows = texts_of(read_frame(source), columns, f"'{source}'")
        yield from (rows[i : i + size] for i in range(0, len(rows), size))
        return
    try:
        with sys.stdin if source == "-" else open(source, encoding="utf-8-sig") as file:
            part: list[str] = []
            for number, line in enumerate(file, 1):
                if not line.strip():
                    raise InputError(f"Line {number} of '{source}' is empty. Remove it; every line is one input.")
                part.append(line.rstrip("\r\n"))
                if len(part) == size:
                    yield part
                    part = []
            if part:
                yield part
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The input '{source}' cannot be read as UTF-8 text: {error}.") from error
