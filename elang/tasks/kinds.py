"""The kinds of task that come with elang: classification, choice among candidates, regression, generation of texts."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.errors import InputError
from elang.method.quality.metric import Quality
from elang.method.quality.texts import TEXT_METRICS, worth_metric
from elang.method.scores import SEQUENCE_DEFAULT, SEQUENCE_SCORES
from elang.tasks.kind import Kind, register_kind
from elang.tasks.text_task import TextTask


class Classification(Kind):
    """One of several classes; an encoder has one output a class."""

    name = "classification"
    has_classes = True

    def answer(self, prediction: float | str, task: TextTask, choices: tuple[str, ...] | None) -> str | float:
        """The class's name."""
        return task.label_names[int(prediction)]

    def read_answer(self, answer: Any, task: TextTask) -> float | str | None:
        """The class's place among the label names."""
        return task.label_names.index(answer) if isinstance(answer, str) and answer in task.label_names else None

    def expects(self, task: TextTask) -> str:
        """Some of the label names."""
        return f"one of {task.label_names[:8]}"


class Choice(Classification):
    """One of an example's candidates; an encoder reads one input a candidate and has one output for each."""

    name = "choice"
    has_classes, has_candidates = False, True

    def answer(self, prediction: float | str, task: TextTask, choices: tuple[str, ...] | None) -> str | float:
        """The candidate, where each example has its own; otherwise its name."""
        own = choices is not None and not task.answers
        return choices[int(prediction)] if own and choices else super().answer(prediction, task, choices)


class Regression(Kind):
    """A value; an encoder has one output. Scores of logits mean nothing, so a router's score is needed."""

    name = "regression"
    answer_type = torch.float64
    chooses = False
    default_score = "router"
    unknown = math.nan

    def predict(self, logits: Tensor) -> Tensor:
        """The value itself, float64 ``(B,)``."""
        return logits[:, 0].double()

    def loss(self, logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
        """The mean squared error."""
        return F.mse_loss(logits[:, 0], target.to(logits.dtype))

    def distance(self, logits: Tensor, target: Tensor, temperature: float) -> Tensor:
        """The mean squared difference."""
        return F.mse_loss(logits, target)

    def is_unknown(self, label: Tensor) -> Tensor:
        """Which labels are NaN."""
        return label.isnan()

    def reward(self, prediction: Tensor, label: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """The negative absolute error."""
        return -(prediction - label).abs().double()

    def worth(self, quality: str, targets: dict[str, Tensor]) -> dict[str, Any]:
        """No bounds."""
        return {"largest": None, "unit": "negative absolute error"}

    def answer(self, prediction: float | str, task: TextTask, choices: tuple[str, ...] | None) -> str | float:
        """The value."""
        return prediction

    def read_answer(self, answer: Any, task: TextTask) -> float | str | None:
        """The value, if it is a finite number."""
        number = isinstance(answer, (int, float)) and not isinstance(answer, bool)
        return answer if number and abs(answer) < math.inf else None

    def expects(self, task: TextTask) -> str:
        """A number."""
        return "a number"


def answer_values(answers: list[str]) -> list[float]:
    """The values of a regression's answers."""
    try:
        return [float(answer) for answer in answers]
    except ValueError as error:
        raise InputError(
            f"In a regression the answers are numbers, but --data.answers has {answers[:8]} ({error})."
        ) from error


def value_of(text: str, otherwise: float) -> float:
    """The finite number that a text is, or another where it is none."""
    try:
        value = float(text)
    except ValueError:
        return otherwise
    return value if abs(value) < math.inf else otherwise


class Generation(Kind):
    """A text, whose worth is that of its sentence metric. There are no labels, but references."""

    name = "sequence"
    chooses, generates = False, True
    default_score = SEQUENCE_DEFAULT
    distill_weight = 1.0
    # Of tokens the logits themselves are rounded, and they are large.
    rounding = 6.3e-2

    @property
    def scores(self) -> tuple[str, ...]:
        """Those of the tokens, brought together by text."""
        return SEQUENCE_SCORES

    def scores_of(self, logits: Tensor | None, token_scores: Tensor | None, temperature: float) -> dict[str, Tensor]:
        """Those that were kept as the texts were generated."""
        assert token_scores is not None
        return dict(zip(SEQUENCE_SCORES, token_scores.unbind(1), strict=True))

    def worth(self, quality: str, targets: dict[str, Tensor]) -> dict[str, Any]:
        """That of a sentence by the metric."""
        unit = worth_metric(quality)
        return {"largest": 100.0 if unit == "chrf" else 1.0, "unit": f"{unit}, from 0 to 1"}

    def answer(self, prediction: float | str, task: TextTask, choices: tuple[str, ...] | None) -> str | float:
        """The text."""
        return prediction

    def read_answer(self, answer: Any, task: TextTask) -> float | str | None:
        """The text."""
        return answer if isinstance(answer, str) else None

    def expects(self, task: TextTask) -> str:
        """A text."""
        return "a text"


for _kind in (Classification(), Choice(), Regression(), Generation()):
    register_kind(_kind)


def measure(quality: Quality, prediction: Tensor, label: Tensor, targets: dict[str, Tensor]) -> float:
    """A metric of one set of predictions, with the columns that it reads besides the label."""
    target = label if quality.target == "label" else targets[quality.target]
    return quality(prediction, target, targets.get("group"))


def check_qualities(names: list[str], task: TextTask) -> None:
    """Refuse metrics of texts where there are labels, and the other way round.

    Raises:
        InputError: Naming the first one.
    """
    if wrong := [name for name in names if (name in TEXT_METRICS) != task.kind.generates]:
        raise InputError(f"'{wrong[0]}' is no metric of a {task.problem} task; its own are {task.qualities}.")


def text_targets(
    qualities: list[str], references: list[str], swift: list[str], super_: list[str] | None = None
) -> dict[str, Tensor]:
    """What metrics of texts read: for each its statistics of the texts to choose from, and their ``worth``.

    Args:
        qualities: Names of :data:`~elang.method.quality.texts.TEXT_METRICS`; the first says what a sentence is worth.
        references: ``N``.
        swift: The first text to choose.
        super_: The second.

    Returns:
        For each metric, and the one that tells the worth, ``(N, K, S)``; ``worth``, float64 ``(N, K)``.
    """
    choices = [swift, *([super_] if super_ is not None else [])]
    worth = worth_metric(qualities[0])
    needed = dict.fromkeys([*qualities, worth])
    found = {name: torch.stack([TEXT_METRICS[name][0](c, references) for c in choices], 1) for name in needed}
    return found | {"worth": TEXT_METRICS[worth][1](found[worth])}


def measure_texts(qualities: list[str], texts: list[str], references: list[str]) -> dict[str, float]:
    """Metrics of one model's texts, by name."""
    found = {}
    for name in qualities:
        statistics, value = TEXT_METRICS[name]
        found[name] = float(value(statistics(texts, references).sum(0, dtype=torch.float64)))
    return found
