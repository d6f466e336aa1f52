"""All metrics by name."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from elang.errors import InputError
from elang.method.quality import labels
from elang.method.quality.metric import Quality
from elang.method.quality.texts import TEXT_METRICS, TextMetricName

LabelMetricName = Literal[
    "accuracy", "f1", "f1_macro", "matthews", "pearson", "spearman", "exact_match", "answer_f1", "answer_exact"
]
QualityName = Literal[LabelMetricName, TextMetricName]


def text_quality(name: str) -> Callable[[int], Quality]:
    """A metric of texts; its target is the statistics of the texts to choose from, ``(N, K, S)``."""
    _, value = TEXT_METRICS[name]

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        if target.ndim != 3 or prediction.shape != target.shape[:1]:
            raise InputError(
                f"'{name}' needs the statistics of the texts to choose from, shape (N, K, S), and the chosen ones, "
                f"shape (N,), but was given {tuple(target.shape)} and {tuple(prediction.shape)}."
            )
        return target[torch.arange(len(target), device=target.device), prediction]

    return lambda num_labels: Quality(name, statistics, value, target=name)


WORTH = "worth"
"""The metric of answers of which only the worth is known; if all are right or wrong it is called accuracy."""
QUALITIES: dict[str, Callable[[int], Quality]] = {
    "accuracy": labels.accuracy,
    "f1": labels.f1,
    "f1_macro": labels.f1_macro,
    "matthews": labels.matthews,
    "pearson": labels.pearson,
    "spearman": labels.spearman,
    "exact_match": labels.exact_match,
    "answer_f1": labels.answer_f1,
    "answer_exact": labels.answer_exact,
    **{name: text_quality(name) for name in get_args(TextMetricName)},
    WORTH: labels.worth,
}
