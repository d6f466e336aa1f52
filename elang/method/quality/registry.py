"""All metrics by name."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from elang.errors import InputError
from elang.method.quality.labels import (
    accuracy,
    answer_exact,
    answer_f1,
    exact_match,
    f1,
    f1_macro,
    matthews,
    pearson,
    spearman,
)
from elang.method.quality.metric import Quality
from elang.method.quality.texts import TEXT_METRICS

QualityName = Literal[
    "accuracy",
    "f1",
    "f1_macro",
    "matthews",
    "pearson",
    "spearman",
    "exact_match",
    "answer_f1",
    "answer_exact",
    "bleu",
    "bleu_zh",
    "bleu_char",
    "chrf",
    "rouge_l",
    "exact_text",
    "token_accuracy",
]


def _of_texts(name: QualityName) -> Callable[[int], Quality]:
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


QUALITIES: dict[QualityName, Callable[[int], Quality]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "exact_match": exact_match,
    "answer_f1": answer_f1,
    "answer_exact": answer_exact,
    "bleu": _of_texts("bleu"),
    "bleu_zh": _of_texts("bleu_zh"),
    "bleu_char": _of_texts("bleu_char"),
    "chrf": _of_texts("chrf"),
    "rouge_l": _of_texts("rouge_l"),
    "exact_text": _of_texts("exact_text"),
    "token_accuracy": _of_texts("token_accuracy"),
}
