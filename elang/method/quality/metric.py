"""What a metric is: per-example statistics, and a function of their sums."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elang.errors import InputError
from elang.method.quality.sums import settled


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
