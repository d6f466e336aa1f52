"""What a metric is: per-example statistics, and a function of their sums."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elang.errors import InputError


@dataclass(frozen=True)
class Quality:
    """A metric that depends on the examples only through sums of per-example statistics, unless it has ``whole``.

    Attributes:
        name: Its name, as in :data:`QUALITIES`.
        statistics: Maps predictions ``(N,)`` and targets ``(N,)`` or ``(N, K)`` to per-example statistics ``(N, S)``.
        value: Maps sums of statistics ``(..., S)``, float64, to the metric ``(...)``; larger is better.
        by_group: For a metric over groups: maps the sums of a group's examples ``(..., S)`` to the group's statistics
            ``(..., S')``, float64; ``value`` then takes the sums of these over all groups.
        target: The column of targets that the metric reads.
        whole: Maps all predictions and targets to the metric, if it is no function of sums; ``statistics`` and
            ``value`` then raise.
    """

    name: str
    statistics: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor], Tensor]
    by_group: Callable[[Tensor], Tensor] | None = None
    target: str = "label"
    whole: Callable[[Tensor, Tensor], float] | None = None

    def __call__(self, prediction: Tensor, target: Tensor, group: Tensor | None = None) -> float:
        """The metric of predictions ``(N,)`` and targets; ``by_group`` needs the ``group`` of each, integers ``(N,)``.

        Raises:
            InputError: If a metric with ``by_group`` is given no groups.
        """
        if self.whole is not None:
            return self.whole(prediction, target)
        value, (statistics,) = centred(self.value, self.statistics(prediction, target))
        if self.by_group is not None:
            statistics = self.by_group(group_sums(statistics, group)[0])
        return float(value(statistics.sum(0, dtype=torch.float64)))


def group_sums(statistics: Tensor, group: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums of statistics ``(N, S)`` within groups, float64 ``(G, S)``, and the row of each example in them, ``(N,)``.

    Raises:
        InputError: If ``group``, any integers ``(N,)``, does not have the group of each example.
    """
    if group is None or group.shape != statistics.shape[:1]:
        raise InputError(
            f"This metric is computed over groups and needs the group of each of {len(statistics)} examples, shape "
            f"(N,), but was given {'none' if group is None else tuple(group.shape)}; name the column that tells the "
            "groups apart."
        )
    groups, row = group.unique(return_inverse=True)
    sums = torch.zeros(len(groups), statistics.shape[1], dtype=torch.float64, device=statistics.device)
    return sums.index_add_(0, row, statistics.double()), row


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 where the denominator is 0 (scikit-learn's convention)."""
    return torch.where(denominator == 0, 0.0, numerator / torch.where(denominator == 0, 1.0, denominator))


def mean_of_sums(sums: Tensor) -> Tensor:
    """The mean, float64 ``(...)``, of sums ``(..., 2)`` of a total and a count; 0 if the count is 0."""
    return ratio(sums[..., 0].double(), sums[..., 1].double())


class Correlation:
    """Pearson's correlation of sums of ``(1, x, y, x², y², xy)``, six columns for each set of predictions (a row set).

    Where values are large relative to their spread, such sums cancel to nothing. :func:`centred` therefore subtracts
    the median of each row set's ``x``, and that of ``y``, before anything is summed; this changes no correlation.
    ``offsets``, ``(K,)``, is the subtracted ``x`` of each row set minus that of the first.
    """

    def __init__(self, offsets: Tensor) -> None:
        self.offsets = offsets

    def __call__(self, sums: Tensor) -> Tensor:
        """The correlation ``(...)`` of sums ``(..., S)``."""
        n, x, y, xx, yy, xy = sums.unflatten(-1, (len(self.offsets), 6)).unbind(-1)
        total = n.sum(-1, keepdim=True)
        # Second moments within each row set, times the number of all rows; 0 for a set without rows.
        share = ratio(total, n)
        raw_x, raw_y, cross = share * n * xx, share * n * yy, share * (n * xy - x * y)
        spread_x, spread_y = raw_x - share * x * x, raw_y - share * y * y
        if len(self.offsets) > 1:
            # And between the row sets.
            means = ratio(x, n) + self.offsets.to(n), ratio(y, n)
            dx, dy = (mean - (n * mean).sum(-1, keepdim=True) / total for mean in means)
            between_x, between_y = total * n * dx * dx, total * n * dy * dy
            raw_x, spread_x = raw_x + between_x, spread_x + between_x
            raw_y, spread_y = raw_y + between_y, spread_y + between_y
            cross = cross + total * n * dx * dy
        spread_x, spread_y, raw_x, raw_y = (part.sum(-1) for part in (spread_x, spread_y, raw_x, raw_y))
        # A variance below rounding error is that of a constant.
        defined = (spread_x > 1e-13 * raw_x) & (spread_y > 1e-13 * raw_y)
        return ratio(cross.sum(-1), torch.where(defined, spread_x * spread_y, 0.0).sqrt())


def moments(x: Tensor, y: Tensor) -> Tensor:
    """Statistics of a correlation, ``(N, 6)``: 1, x, y, x squared, y squared and their product."""
    return torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], -1)


def centred(value: Callable[[Tensor], Tensor], *statistics: Tensor) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """A quality's value and statistics ``(N, S)``, changed so that rounding in the sums does not destroy the metric.

    Each of the statistics belongs to a set of predictions for the same examples; sums may mix their rows.
    """
    if not isinstance(value, Correlation) or not len(statistics[0]):
        return value, list(statistics)
    y = statistics[0][:, 2].double()
    y = y - y.median()
    medians = torch.stack([rows[:, 1].double().median() for rows in statistics])
    results = []
    for place, rows in enumerate(statistics):
        columns = rows.new_zeros(len(rows), len(statistics), 6, dtype=torch.float64)
        columns[:, place] = moments(rows[:, 1].double() - medians[place], y)
        results.append(columns.flatten(1))
    return Correlation(medians - medians[0]), results
