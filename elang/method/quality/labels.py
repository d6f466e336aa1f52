"""Metrics of labels: accuracy, F1, Matthews, exact match, and rewards of several right answers.

A prediction of -1 stands for an answer that names no label. It is wrong, and none of the classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from elang.errors import InputError
from elang.method.deferral import check_finite
from elang.method.quality.metric import Correlation, Quality, mean_of_sums, moments, ratio


def accuracy(num_labels: int) -> Quality:
    """Share of right answers.

    >>> accuracy(2)(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
    0.6666666666666666
    """

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        right = (prediction == target) & (prediction >= 0)
        return torch.stack([right, torch.ones_like(right)], -1).to(torch.int8)

    return Quality("accuracy", statistics, mean_of_sums)


def f1(num_labels: int) -> Quality:
    """F1 of class 1 of two classes, 0 where it is undefined; an answer that names no label counts as class 0."""
    if num_labels != 2:
        raise InputError(f"'f1' is for 2 classes, but there are {num_labels}; use 'f1_macro'.")

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        predicted, actual = prediction == 1, target == 1
        return torch.stack([predicted & actual, predicted, actual], -1).to(torch.int8)

    return Quality("f1", statistics, lambda s: ratio(2 * s[..., 0], s[..., 1] + s[..., 2]))


def _class_counts(num_labels: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Statistics ``(N, 3C)``: hits, predictions and targets of each class."""

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        # Shift by one and drop the first column, as -1 is no class.
        predicted = one_hot(prediction + 1, num_labels + 1)[:, 1:].to(torch.int8)
        actual = one_hot(target, num_labels).to(torch.int8)
        return torch.cat([predicted * actual, predicted, actual], -1)

    return statistics


def f1_macro(num_labels: int) -> Quality:
    """Mean F1 over the classes that occur among the targets or the predictions."""

    def value(sums: Tensor) -> Tensor:
        hits, predicted, actual = sums.unflatten(-1, (3, num_labels)).unbind(-2)
        occurs = (predicted + actual > 0).to(sums.dtype)
        return ratio(ratio(2 * hits, predicted + actual).sum(-1), occurs.sum(-1))

    return Quality("f1_macro", _class_counts(num_labels), value)


def matthews(num_labels: int) -> Quality:
    """Matthews correlation for any number of classes (Gorodkin 2004); 0 where it is undefined.

    Answers that name no label are a further class, as are labels among the predictions only in scikit-learn.
    """

    def value(sums: Tensor) -> Tensor:
        hits, predicted, actual = sums.unflatten(-1, (3, num_labels)).unbind(-2)
        total = actual.sum(-1)
        covariance = hits.sum(-1) * total - (predicted * actual).sum(-1)
        unnamed = total - predicted.sum(-1)
        spread = total.square() - unnamed.square() - predicted.square().sum(-1)
        spread = spread * (total.square() - actual.square().sum(-1))
        return ratio(covariance, spread.clamp_min(0).sqrt())

    return Quality("matthews", _class_counts(num_labels), value)


def exact_match(num_labels: int) -> Quality:
    """Share of groups with all examples answered right: questions of MultiRC (Khashabi et al., NAACL 2018).

    >>> right, question = torch.tensor([1, 1, 0]), torch.tensor([7, 7, 8])
    >>> exact_match(2)(torch.tensor([1, 0, 0]), right, question)
    0.5
    """

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        wrong = (prediction != target) | (prediction < 0)
        return wrong[:, None].to(torch.int8)

    def by_group(sums: Tensor) -> Tensor:
        return torch.cat([sums == 0, torch.ones_like(sums)], -1).double()

    return Quality("exact_match", statistics, mean_of_sums, by_group)


def _mean_reward(name: str) -> Quality:
    """The mean reward of the chosen candidates in the target ``(N, K)``; -1 earns nothing."""

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        if target.ndim != 2 or prediction.shape != target.shape[:1]:
            raise InputError(
                f"'{name}' needs the reward of each candidate, shape (N, K), and the chosen ones, shape (N,), but was "
                f"given {tuple(target.shape)} and {tuple(prediction.shape)}."
            )
        if (prediction >= target.shape[1]).any():
            raise InputError(
                f"'{name}' knows {target.shape[1]} candidates, but candidate {int(prediction.max())} was chosen."
            )
        chosen = target.double().gather(1, prediction.clamp_min(0)[:, None]).squeeze(1)
        reward = torch.where(prediction < 0, 0.0, chosen)
        check_finite(reward, f"{name} of the chosen candidates")
        return torch.stack([reward, torch.ones_like(reward)], -1)

    return Quality(name, statistics, mean_of_sums, target=name)


def answer_f1(num_labels: int) -> Quality:
    """Mean token F1 of the chosen candidates, each with its best reference (ReCoRD, Zhang et al. 2018).

    Its target ``(N, K)`` is the F1 of each candidate; a prediction is the index of the chosen one.

    >>> answer_f1(2)(torch.tensor([1, 0, -1]), torch.tensor([[0.0, 0.5], [1.0, 0.0], [1.0, 1.0]]))
    0.5
    """
    return _mean_reward("answer_f1")


def answer_exact(num_labels: int) -> Quality:
    """Share of chosen candidates that equal a reference (ReCoRD); as :func:`answer_f1`."""
    return _mean_reward("answer_exact")


def worth(num_labels: int) -> Quality:
    """Mean worth of the chosen answers, 0 to 1, of which nothing else need be known; as :func:`answer_f1`."""
    return _mean_reward("worth")


def pearson(num_labels: int) -> Quality:
    """Pearson correlation of real-valued predictions and targets; 0 where it is undefined.

    Where values are large relative to their spread, rounding destroys sums of its statistics unless they are
    :func:`~elang.method.quality.metric.centred`, as in calls of the metric and in all curves.

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
            "'spearman' is no function of sums over examples: score all predictions at once, and use "
            "elang.method.curve.exact.rescored_curve for its curve."
        )

    return Quality("spearman", no_sums, no_sums, whole=whole)


def _centred_ranks(values: Tensor, name: str) -> Tensor:
    check_finite(values, name)
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    # Ranks from 1, minus their mean, which is known: a constant gives exact zeros.
    rank: Tensor = count.cumsum(0).double() - (count.double() - 1) / 2
    return rank[place] - (len(values) + 1) / 2
