"""Metrics of a regression: the correlations of Pearson and Spearman."""

import torch
from torch import Tensor

from elang.errors import InputError
from elang.method.deferral import check_finite
from elang.method.quality.metric import Quality
from elang.method.quality.sums import Correlation, moments, ratio


def pearson(num_labels: int) -> Quality:
    """Pearson correlation of real-valued predictions and targets; 0 where it is undefined.

    Sums of its statistics lose it where values are large beside their spread, unless :func:`settled` was asked first,
    as calling the metric and all curves do.

    >>> seconds = 1.7e9 + torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    >>> round(pearson(1)(seconds, seconds), 9)
    1.0
    """

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        return moments(prediction.double(), target.double())

    return Quality("pearson", statistics, Correlation(torch.zeros(1)))


def spearman(num_labels: int) -> Quality:
    """Spearman's rank correlation, equal values with their mean rank; 0 where it is undefined."""

    def whole(prediction: Tensor, target: Tensor) -> float:
        x, y = _centred_ranks(prediction, "prediction"), _centred_ranks(target, "target")
        return float(ratio(x @ y, (x @ x * (y @ y)).sqrt()))

    def no_sums(*_: Tensor) -> Tensor:
        raise InputError(
            "'spearman' is no function of sums over examples: score all predictions at once, and take "
            "elang.method.curve.exact.rescored_curve for its curve."
        )

    return Quality("spearman", no_sums, no_sums, whole=whole)


def _centred_ranks(values: Tensor, name: str) -> Tensor:
    check_finite(values, name)
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    # Ranks from 1; their mean is known, so a constant comes to exact zeros.
    rank: Tensor = count.cumsum(0).double() - (count.double() - 1) / 2
    return rank[place] - (len(values) + 1) / 2
