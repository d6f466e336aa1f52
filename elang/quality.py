"""Task metrics as functions of sums of per-example statistics.

A metric of this form can be moved from one operating point to the next by adding and subtracting single
examples, which is what makes the curve over all thresholds exact and cheap (:mod:`elang.curve`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from elang.errors import InputError

QualityName = Literal["accuracy", "f1", "f1_macro", "matthews", "pearson"]


@dataclass(frozen=True)
class Quality:
    """A metric that depends on the examples only through a sum.

    Attributes:
        name: Its name, as in :data:`QUALITIES`.
        statistics: Maps predictions and targets, both ``(N,)``, to per-example statistics ``(N, S)``.
        value: Maps sums of statistics ``(..., S)``, float64, to the metric ``(...)``; larger is better.
    """

    name: str
    statistics: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor], Tensor]

    def __call__(self, prediction: Tensor, target: Tensor) -> float:
        """Return the metric of one set of predictions."""
        return float(self.value(self.statistics(prediction, target).sum(0, dtype=torch.float64)))


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 where the denominator is 0 (scikit-learn's convention)."""
    return torch.where(denominator == 0, 0.0, numerator / torch.where(denominator == 0, 1.0, denominator))


def accuracy(num_labels: int) -> Quality:
    """Share of examples answered right.

    >>> accuracy(2)(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
    0.6666666666666666
    """

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        correct = prediction == target
        return torch.stack([correct, torch.ones_like(correct)], -1).to(torch.int8)

    return Quality("accuracy", statistics, lambda sums: _ratio(sums[..., 0], sums[..., 1]))


def f1(num_labels: int) -> Quality:
    """F1 of class 1, of two classes; 0 where it is undefined."""
    if num_labels != 2:
        raise InputError(f"'f1' is for 2 classes, but there are {num_labels}; use 'f1_macro'.")

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        said, true = prediction == 1, target == 1
        return torch.stack([said & true, said, true], -1).to(torch.int8)

    return Quality("f1", statistics, lambda s: _ratio(2 * s[..., 0], s[..., 1] + s[..., 2]))


def _class_counts(num_labels: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Statistics ``(N, 3C)``: hits, predictions and targets of each class."""

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        said = one_hot(prediction, num_labels).to(torch.int8)
        true = one_hot(target, num_labels).to(torch.int8)
        return torch.cat([said * true, said, true], -1)

    return statistics


def f1_macro(num_labels: int) -> Quality:
    """Mean F1 over the classes that occur among the targets or the predictions."""

    def value(sums: Tensor) -> Tensor:
        hits, said, true = sums.unflatten(-1, (3, num_labels)).unbind(-2)
        return _ratio(_ratio(2 * hits, said + true).sum(-1), (said + true > 0).to(sums.dtype).sum(-1))

    return Quality("f1_macro", _class_counts(num_labels), value)


def matthews(num_labels: int) -> Quality:
    """Matthews correlation for any number of classes (Gorodkin 2004); 0 where it is undefined."""

    def value(sums: Tensor) -> Tensor:
        hits, said, true = sums.unflatten(-1, (3, num_labels)).unbind(-2)
        total = true.sum(-1)
        covariance = hits.sum(-1) * total - (said * true).sum(-1)
        spread = (total.square() - said.square().sum(-1)) * (total.square() - true.square().sum(-1))
        return _ratio(covariance, spread.clamp_min(0).sqrt())

    return Quality("matthews", _class_counts(num_labels), value)


def pearson(num_labels: int) -> Quality:
    """Pearson correlation of real-valued predictions and targets; 0 where it is undefined."""

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        x, y = prediction.double(), target.double()
        return torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], -1)

    def value(sums: Tensor) -> Tensor:
        n, x, y, xx, yy, xy = sums.unbind(-1)
        # Raw moments cancel badly; a variance below rounding error is a constant.
        spread_x, spread_y = n * xx - x * x, n * yy - y * y
        tiny = 1e-13 * torch.stack([n * xx, n * yy])
        defined = (spread_x > tiny[0]) & (spread_y > tiny[1])
        spread = torch.where(defined, spread_x * spread_y, 0.0).sqrt()
        return _ratio(n * xy - x * y, spread)

    return Quality("pearson", statistics, value)


QUALITIES: dict[QualityName, Callable[[int], Quality]] = {
    "accuracy": accuracy,
    "f1": f1,
    "f1_macro": f1_macro,
    "matthews": matthews,
    "pearson": pearson,
}
