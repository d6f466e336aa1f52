"""What a metric is: per-example statistics, and a function of their sums."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elang.errors import InputError


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


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 where the denominator is 0 (scikit-learn's convention)."""
    return torch.where(denominator == 0, 0.0, numerator / torch.where(denominator == 0, 1.0, denominator))


def mean_of_sums(sums: Tensor) -> Tensor:
    """Value of statistics ``(amount, 1)``."""
    return ratio(sums[..., 0], sums[..., 1])


class Correlation:
    """Pearson's correlation of sums of ``(1, x, y, x², y², xy)``, kept apart for each of several groups of rows.

    Where values are large beside their spread, such sums cancel to nothing. :func:`settled` therefore takes from each
    group's ``x``, and from all ``y``, a value from their middle before anything is summed; the correlation is the same.

    Args:
        apart: By how much each group's ``x`` was moved more than the first group's, ``(K,)``.
    """

    def __init__(self, apart: Tensor) -> None:
        self.apart = apart

    def __call__(self, sums: Tensor) -> Tensor:
        """The correlation ``(...)`` of sums ``(..., S)``."""
        n, x, y, xx, yy, xy = sums.unflatten(-1, (len(self.apart), 6)).unbind(-1)
        total = n.sum(-1, keepdim=True)
        # Within the groups, each times the number of all rows, and of none in a group that has no rows.
        share = ratio(total, n)
        raw_x, raw_y, both = share * n * xx, share * n * yy, share * (n * xy - x * y)
        within_x, within_y = raw_x - share * x * x, raw_y - share * y * y
        if len(self.apart) > 1:
            # And between them.
            means = ratio(x, n) + self.apart.to(n), ratio(y, n)
            far_x, far_y = (mean - (n * mean).sum(-1, keepdim=True) / total for mean in means)
            one, two, three = (total * n * a * b for a, b in ((far_x, far_x), (far_y, far_y), (far_x, far_y)))
            raw_x, within_x, raw_y, within_y = raw_x + one, within_x + one, raw_y + two, within_y + two
            both = both + three
        spread_x, spread_y, tiny_x, tiny_y = (part.sum(-1) for part in (within_x, within_y, raw_x, raw_y))
        # A variance below rounding error is a constant.
        defined = (spread_x > 1e-13 * tiny_x) & (spread_y > 1e-13 * tiny_y)
        return ratio(both.sum(-1), torch.where(defined, spread_x * spread_y, 0.0).sqrt())

    def settle(self, *groups: Tensor) -> tuple["Correlation", list[Tensor]]:
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
            own[:, place] = moments(x, y)
            found.append(own.flatten(1))
        return Correlation(middles - middles[0]), found


def moments(x: Tensor, y: Tensor) -> Tensor:
    """Statistics of a correlation, ``(N, 6)``: 1, x, y, x squared, y squared and their product."""
    return torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], -1)


def settled(value: Callable[[Tensor], Tensor], *statistics: Tensor) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    """Statistics that can be summed without losing the metric in rounding, and what maps their sums to it.

    Args:
        value: Of a :class:`Quality`.
        statistics: Those of whole sets of predictions of the same examples, each ``(N, S)``; sums may mix their rows.
    """
    return value.settle(*statistics) if isinstance(value, Correlation) else (value, list(statistics))
