"""The kinds of task that come with elang: classification, choice among candidates, regression, generation of texts."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.errors import InputError
from elang.method.quality.metric import Quality
from elang.method.quality.registry import WORTH
from elang.method.quality.texts import TEXT_METRICS, worth_metric
from elang.method.scores import SEQUENCE_DEFAULT, SEQUENCE_SCORES
from elang.tasks.extraction import comparable, comparable_references
from elang.tasks.kind import Kind, register_kind
from elang.tasks.text_task import TextTask


class Classification(Kind):
    """One of several classes; an encoder has one output per class."""

    name = "classification"
    has_classes = True

    def answer(self, prediction: float | str, task: TextTask, choices: tuple[str, ...] | None) -> str | float:
        """The class's name."""
        return task.label_names[int(prediction)]

    def read_answer(self, answer: Any, task: TextTask) -> float | str | None:
        """The class's index among the label names."""
        return task.label_names.index(answer) if isinstance(answer, str) and answer in task.label_names else None

    def expects(self, task: TextTask) -> str:
        """One of the label names, of which it shows the first 8."""
        return f"one of {task.label_names[:8]}"


class Choice(Classification):
    """One of an example's candidates; an encoder reads one input per candidate and has one output for each."""

    name = "choice"
    has_classes, has_candidates = False, True

    def answer(self, prediction: float | str, task: TextTask, choices: tuple[str, ...] | None) -> str | float:
        """The candidate, where each example has its own; otherwise the name of the class."""
        if choices and not task.answers:
            return choices[int(prediction)]
        return super().answer(prediction, task, choices)


class Regression(Kind):
    """A value, the single output of an encoder. Scores of logits mean nothing for it: a router's score is needed."""

    name = "regression"
    answer_type = torch.float64
    chooses = False
    default_score = "router"
    unknown = math.nan

    def predict(self, logits: Tensor) -> Tensor:
        """The values, float64 ``(B,)``."""
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
        """Unbounded, in negative absolute error."""
        return {"largest": None, "unit": "negative absolute error"}

    def read_answer(self, answer: Any, task: TextTask) -> float | str | None:
        """The value, if it is a finite number."""
        is_number = isinstance(answer, (int, float)) and not isinstance(answer, bool)
        return answer if is_number and abs(answer) < math.inf else None

    def expects(self, task: TextTask) -> str:
        """A number."""
        return "a number"


def answer_values(answers: list[str]) -> list[float]:
    """The values of a regression's answers."""
    try:
        return [float(answer) for answer in answers]
    except ValueError as error:
        raise InputError(
            f"In a regression the answers must be numbers, but --data.answers has {answers[:8]} ({error})."
        ) from error


def parse_value(text: str, default: float) -> float:
    """The number in a text, or the default if it is no finite number."""
    try:
        value = float(text)
    except ValueError:
        return default
    return value if abs(value) < math.inf else default


class Generation(Kind):
    """A generated text, rewarded by its sentence-level metric. There are references instead of labels."""

    name = "sequence"
    chooses, generates = False, True
    default_score = SEQUENCE_DEFAULT
    distill_weight = 1.0
    # Half precision rounds the logits of tokens, which are large.
    rounding = 6.3e-2

    @property
    def scores(self) -> tuple[str, ...]:
        """Aggregates of the tokens' scores."""
        return SEQUENCE_SCORES

    def scores_of(self, logits: Tensor | None, token_scores: Tensor | None, temperature: float) -> dict[str, Tensor]:
        """The scores recorded during generation, but for those that are NaN because a server gives no logits.

        Records of earlier versions have the first ones.
        """
        assert token_scores is not None
        scores = dict(zip(SEQUENCE_SCORES, token_scores.unbind(1), strict=False))
        unknown = token_scores.isnan().all(0).tolist() if len(token_scores) else []
        return {
            name: s for (name, s), no in zip(scores.items(), unknown or [False] * len(scores), strict=True) if not no
        }

    def worth(self, quality: str, targets: dict[str, Tensor]) -> dict[str, Any]:
        """The largest value, by which reports divide, and the unit of the sentence metric."""
        unit = worth_metric(quality)
        return {"largest": 100.0 if unit == "chrf" else 1.0, "unit": f"{unit}, from 0 to 1"}

    def read_answer(self, answer: Any, task: TextTask) -> float | str | None:
        """The text."""
        return answer if isinstance(answer, str) else None

    def expects(self, task: TextTask) -> str:
        """A text."""
        return "a text"


for _kind in (Classification(), Choice(), Regression(), Generation()):
    register_kind(_kind)


def measure(quality: Quality, prediction: Tensor, label: Tensor, targets: dict[str, Tensor]) -> float:
    """A metric of one set of predictions; ``targets`` has the columns that it reads besides the label."""
    target = label if quality.target == "label" else targets[quality.target]
    return quality(prediction, target, targets.get("group"))


def check_qualities(names: list[str], task: TextTask) -> None:
    """Raise an :class:`InputError` for metrics of texts in a task with labels, or of labels in a task of texts."""
    if wrong := [n for n in names if n == WORTH or (n in TEXT_METRICS) != task.kind.generates]:
        raise InputError(f"'{wrong[0]}' is not a metric for a {task.problem} task; it has {task.qualities}.")


def text_targets(
    qualities: list[str],
    references: list[str],
    swift: list[str],
    super_: list[str] | None = None,
    task: TextTask | None = None,
) -> dict[str, Tensor]:
    """The targets of text metrics for ``N`` references with ``K`` texts each: the Swift's, or both models'.

    With a task the answers that it extracts from all texts are compared.

    These are the statistics of each metric in ``qualities``, ``(N, K, S)``; each text's ``worth`` by the first of them,
    float64 ``(N, K)``; and the statistics of the metric that defines the worth.
    """
    choices = [swift] if super_ is None else [swift, super_]
    if task is not None:
        references = comparable_references(task, references)
        choices = [comparable(task, texts) for texts in choices]
    worth = worth_metric(qualities[0])
    names = dict.fromkeys([*qualities, worth])
    targets = {name: torch.stack([TEXT_METRICS[name][0](c, references) for c in choices], 1) for name in names}
    return targets | {"worth": TEXT_METRICS[worth][1](targets[worth])}


def measure_texts(
    qualities: list[str], texts: list[str], references: list[str], task: TextTask | None = None, where: str = "here"
) -> dict[str, float]:
    """Metrics of one model's texts, by name, or of the answers that a task extracts from them.

    A notice counts texts without such an answer, with ``where`` they are.
    """
    if task is not None:
        texts, references = comparable(task, texts, where), comparable_references(task, references)
    results = {}
    for name in qualities:
        statistics, value = TEXT_METRICS[name]
        results[name] = float(value(statistics(texts, references).sum(0, dtype=torch.float64)))
    return results
