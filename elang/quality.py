"""Task metrics as functions of sums of per-example statistics.

A metric of this form can be moved from one operating point to the next by adding and subtracting single
examples, which is what makes the curve over all thresholds exact and cheap (:mod:`elang.curve`). Some metrics add
up over groups of examples instead, and some not at all; :class:`Quality` says which.

A prediction of -1 stands for an answer that names no label. It is wrong, and none of the classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from elang.errors import InputError
from elang.scores import check_finite
from elang.text_quality import TEXT_METRICS

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


@dataclass(frozen=True)
class Quality:
    """A metric that depends on the examples only through a sum, unless it has ``whole``.

    Attributes:
        name: Its name, as in :data:`QUALITIES`.
        statistics: Maps predictions ``(N,)`` and targets ``(N,)`` or ``(N, K)`` to per-example statistics ``(N, S)``.
        value: Maps sums of statistics ``(..., S)``, float64, to the metric ``(...)``; larger is better.
        by_group: Maps the sums over one group's examples ``(..., S)`` to the group's own statistics ``(..., S')``,
            float64; ``value`` then takes the sums of these over all groups. None: the examples add up themselves.
        target: The column of targets that the metric reads.
        whole: Maps all predictions and all targets to the metric at once, for one that is no function of sums;
            ``statistics`` and ``value`` then raise.
    """

    name: str
    statistics: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor], Tensor]
    by_group: Callable[[Tensor], Tensor] | None = None
    target: str = "label"
    whole: Callable[[Tensor, Tensor], float] | None = None

    def __call__(self, prediction: Tensor, target: Tensor, group: Tensor | None = None) -> float:
        """Return the metric of one set of predictions.

        Args:
            prediction: Shape ``(N,)``.
            target: Shape ``(N,)`` or ``(N, K)``.
            group: Integers, shape ``(N,)``: equal for the examples of one group. Only ``by_group`` reads it.

        Raises:
            InputError: If the metric is one over groups and there are none.
        """
        if self.whole is not None:
            return self.whole(prediction, target)
        value, (each,) = settled(self.value, self.statistics(prediction, target))
        if self.by_group is not None:
            each = self.by_group(group_sums(each, group)[0])
        return float(value(each.sum(0, dtype=torch.float64)))


def group_sums(statistics: Tensor, group: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum statistics within groups.

    Args:
        statistics: Shape ``(N, S)``.
        group: Integers, shape ``(N,)``; any values.

    Returns:
        The sums, float64 ``(G, S)``, and which of these rows each example is in, ``(N,)``.

    Raises:
        InputError: If there is no group for each example.
    """
    if group is None or group.shape != statistics.shape[:1]:
        raise InputError(
            f"The metric is one over groups and needs the group of each of {len(statistics)} examples, shape (N,), but "
            f"was given {'none' if group is None else tuple(group.shape)}; name the column that tells the groups apart."
        )
    found, row = group.unique(return_inverse=True)
    sums = torch.zeros(len(found), statistics.shape[1], dtype=torch.float64, device=statistics.device)
    return sums.index_add_(0, row, statistics.double()), row


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 where the denominator is 0 (scikit-learn's convention)."""
    return torch.where(denominator == 0, 0.0, numerator / torch.where(denominator == 0, 1.0, denominator))


def _mean(sums: Tensor) -> Tensor:
    """Value of statistics ``(amount, 1)``."""
    return _ratio(sums[..., 0], sums[..., 1])


def _right(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction == target) & (prediction >= 0)


def accuracy(num_labels: int) -> Quality:
    """Share of examples answered right.

    >>> accuracy(2)(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
    0.6666666666666666
    """

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        correct = _right(prediction, target)
        return torch.stack([correct, torch.ones_like(correct)], -1).to(torch.int8)

    return Quality("accuracy", statistics, _mean)


def f1(num_labels: int) -> Quality:
    """F1 of class 1, of two classes; 0 where it is undefined.

    An answer that names no label does not say 1: it misses a 1 and is no false alarm at a 0.
    """
    if num_labels != 2:
        raise InputError(f"'f1' is for 2 classes, but there are {num_labels}; use 'f1_macro'.")

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        said, true = prediction == 1, target == 1
        return torch.stack([said & true, said, true], -1).to(torch.int8)

    return Quality("f1", statistics, lambda s: _ratio(2 * s[..., 0], s[..., 1] + s[..., 2]))


def _class_counts(num_labels: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Statistics ``(N, 3C)``: hits, predictions and targets of each class."""

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        # One place to the right, and the first cut off: -1 is no class.
        said = one_hot(prediction + 1, num_labels + 1)[:, 1:].to(torch.int8)
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
    """Matthews correlation for any number of classes (Gorodkin 2004); 0 where it is undefined.

    Answers that name no label are an outcome of their own, which is never right (as scikit-learn takes a label that
    only occurs among the predictions).
    """

    def value(sums: Tensor) -> Tensor:
        hits, said, true = sums.unflatten(-1, (3, num_labels)).unbind(-2)
        total = true.sum(-1)
        covariance = hits.sum(-1) * total - (said * true).sum(-1)
        silent = total - said.sum(-1)
        spread = total.square() - silent.square() - said.square().sum(-1)
        spread = spread * (total.square() - true.square().sum(-1))
        return _ratio(covariance, spread.clamp_min(0).sqrt())

    return Quality("matthews", _class_counts(num_labels), value)


class _Correlation:
    """Pearson's correlation of sums of ``(1, x, y, x², y², xy)``, kept apart for each of several groups of rows.

    Where values are large beside their spread, such sums cancel to nothing. :func:`settled` therefore takes from each
    group's ``x``, and from all ``y``, a value from their middle before anything is summed; the correlation is the same.

    Args:
        apart: By how much each group's ``x`` was moved more than the first group's, ``(K,)``.
    """

    def __init__(self, apart: Tensor) -> None:
        self.apart = apart

    def __call__(self, sums: Tensor) -> Tensor:
        n, x, y, xx, yy, xy = sums.unflatten(-1, (len(self.apart), 6)).unbind(-1)
        total = n.sum(-1, keepdim=True)
        # Within the groups, each times the number of all rows, and of none in a group that has no rows.
        share = _ratio(total, n)
        raw_x, raw_y, both = share * n * xx, share * n * yy, share * (n * xy - x * y)
        within_x, within_y = raw_x - share * x * x, raw_y - share * y * y
        if len(self.apart) > 1:
            # And between them.
            means = _ratio(x, n) + self.apart.to(n), _ratio(y, n)
            far_x, far_y = (mean - (n * mean).sum(-1, keepdim=True) / total for mean in means)
            one, two, three = (total * n * a * b for a, b in ((far_x, far_x), (far_y, far_y), (far_x, far_y)))
            raw_x, within_x, raw_y, within_y = raw_x + one, within_x + one, raw_y + two, within_y + two
            both = both + three
        spread_x, spread_y, tiny_x, tiny_y = (part.sum(-1) for part in (within_x, within_y, raw_x, raw_y))
        # A variance below rounding error is a constant.
        defined = (spread_x > 1e-13 * tiny_x) & (spread_y > 1e-13 * tiny_y)
        return _ratio(both.sum(-1), torch.where(defined, spread_x * spread_y, 0.0).sqrt())

    def settle(self, *groups: Tensor) -> tuple["_Correlation", list[Tensor]]:
        """The same for rows whose values lie around 0: each group's in columns of its own."""
        if not len(groups[0]):
            return self, list(groups)
        y = groups[0][:, 2].double()
        y = y - y.median()
        middles = torch.stack([rows[:, 1].double().median() for rows in groups])
        found = []
        for place, rows in enumerate(groups):
            x = rows[:, 1].double() - middles[place]
            own = rows.new_zeros(len(rows), len(groups), 6, dtype=torch.float64)
            own[:, place] = _moments(x, y)
            found.append(own.flatten(1))
        return _Correlation(middles - middles[0]), found


def _moments(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], -1)


def settled(value: Callable[[Tensor], Tensor], *statistics: Tensor) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """Statistics that can be summed without losing the metric in rounding, and what maps their sums to it.

    Args:
        value: Of a :class:`Quality`.
        statistics: Those of whole sets of predictions of the same examples, each ``(N, S)``; sums may mix their rows.
    """
    return value.settle(*statistics) if isinstance(value, _Correlation) else (value, list(statistics))


def pearson(num_labels: int) -> Quality:
    """Pearson correlation of real-valued predictions and targets; 0 where it is undefined.

    Sums of its statistics lose it where values are large beside their spread, unless :func:`settled` was asked first,
    as calling the metric and all curves do.

    >>> seconds = 1.7e9 + torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    >>> round(pearson(1)(seconds, seconds), 9)
    1.0
    """

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        return _moments(prediction.double(), target.double())

    return Quality("pearson", statistics, _Correlation(torch.zeros(1)))


def spearman(num_labels: int) -> Quality:
    """Spearman's rank correlation, equal values with their mean rank; 0 where it is undefined."""

    def whole(prediction: Tensor, target: Tensor) -> float:
        x, y = _centred_ranks(prediction, "prediction"), _centred_ranks(target, "target")
        return float(_ratio(x @ y, (x @ x * (y @ y)).sqrt()))

    def no_sums(*_: Tensor) -> Tensor:
        raise InputError(
            "'spearman' is no function of sums over examples: score all predictions at once, and take "
            "elang.curve.rescored_curve for its curve."
        )

    return Quality("spearman", no_sums, no_sums, whole=whole)


def _centred_ranks(values: Tensor, name: str) -> Tensor:
    check_finite(values, name)
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    # Ranks from 1; their mean is known, so a constant comes to exact zeros.
    rank: Tensor = count.cumsum(0).double() - (count.double() - 1) / 2
    return rank[place] - (len(values) + 1) / 2


def exact_match(num_labels: int) -> Quality:
    """Share of groups whose every example is answered right (MultiRC: of questions, over their answer options).

    Source:
        Khashabi et al., NAACL 2018.

    >>> right, question = torch.tensor([1, 1, 0]), torch.tensor([7, 7, 8])
    >>> exact_match(2)(torch.tensor([1, 0, 0]), right, question)
    0.5
    """

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        return (~_right(prediction, target))[:, None].to(torch.int8)

    def by_group(sums: Tensor) -> Tensor:
        return torch.cat([sums == 0, torch.ones_like(sums)], -1).double()

    return Quality("exact_match", statistics, _mean, by_group)


def _reward(name: str) -> Quality:
    """Mean of what the chosen candidates earn, read from the table of targets ``(N, K)``; -1 earns nothing."""

    def statistics(prediction: Tensor, target: Tensor) -> Tensor:
        if target.ndim != 2 or prediction.shape != target.shape[:1]:
            raise InputError(
                f"'{name}' needs what each candidate earns, shape (N, K), and the chosen ones, shape (N,), but was "
                f"given {tuple(target.shape)} and {tuple(prediction.shape)}."
            )
        if (prediction >= target.shape[1]).any():
            raise InputError(
                f"'{name}' knows {target.shape[1]} candidates, but candidate {int(prediction.max())} was chosen."
            )
        chosen = target.double().gather(1, prediction.clamp_min(0)[:, None]).squeeze(1)
        earned = torch.where(prediction < 0, 0.0, chosen)
        check_finite(earned, f"{name} of the chosen candidates")
        return torch.stack([earned, torch.ones_like(earned)], -1)

    return Quality(name, statistics, _mean, target=name)


def answer_f1(num_labels: int) -> Quality:
    """Mean token F1 of the chosen candidates, each with its best reference (ReCoRD).

    Its target ``(N, K)`` is the F1 of each candidate; a prediction is the place of the chosen one.

    Source:
        Zhang et al. 2018, arXiv 1810.12885.

    >>> answer_f1(2)(torch.tensor([1, 0, -1]), torch.tensor([[0.0, 0.5], [1.0, 0.0], [1.0, 1.0]]))
    0.5
    """
    return _reward("answer_f1")


def answer_exact(num_labels: int) -> Quality:
    """Share of chosen candidates that equal a reference (ReCoRD); as :func:`answer_f1`."""
    return _reward("answer_exact")


def _of_texts(name: QualityName) -> Callable[[int], Quality]:
    """A metric of :mod:`elang.text_quality`, its target the statistics of the texts to choose from, ``(N, K, S)``."""
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
