"""torchmetrics shells: state that survives batches and processes, around :mod:`elang.method.curve`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from elang.errors import InputError
from elang.method.curve.exact import operating_curve
from elang.method.curve.points import OperatingCurve
from elang.method.quality.registry import QUALITIES, QualityName


class _Gathered(Metric):
    """A metric of "cat" states that can also be gathered from a process that has seen no examples.

    torchmetrics replaces an empty state by a float vector, which fits neither the type nor the shape of the other
    processes' states; here it gets the declared type and row shape.
    """

    full_state_update = False

    def _declare(self, rows: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        self._rows = rows
        for name in rows:
            # None instead of "cat" can deadlock.
            self.add_state(name, [], dist_reduce_fx="cat")

    def _fill_empty(self) -> None:
        for name, (shape, dtype) in self._rows.items():
            state = getattr(self, name)
            if isinstance(state, list) and not state:
                state.append(torch.empty(0, *shape, dtype=dtype, device=self.device))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather all processes' states."""
        self._fill_empty()
        super().sync(*args, **kwargs)

    def _joined(self, name: str) -> Tensor:
        self._fill_empty()
        joined: Tensor = dim_zero_cat(getattr(self, name))
        return joined


class ExampleTable(_Gathered):
    """Collects one row for every example, over batches and processes, in the order of the data set.

    ``columns`` has the trailing shape and dtype of the rows of each column besides ``id``; a process without examples
    needs them to take part in the gather.
    """

    def __init__(self, columns: dict[str, tuple[tuple[int, ...], torch.dtype]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.columns = {"id": ((), torch.int64), **columns}
        self._declare({f"column_{name}": row for name, row in self.columns.items()})

    def update(self, **columns: Tensor) -> None:
        """Add the rows of a batch: ``id`` (int64, unique over the data set) and every declared column."""
        if columns.keys() != self.columns.keys():
            raise ValueError(f"columns {sorted(columns)} were given, {sorted(self.columns)} were declared")
        for name, value in columns.items():
            shape, dtype = self.columns[name]
            if value.shape != (len(columns["id"]), *shape):
                raise ValueError(f"column '{name}' has shape {tuple(value.shape)}, its rows must be {shape}")
            getattr(self, f"column_{name}").append(value.detach().to(dtype))

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_compute(compute)

        def rows() -> dict[str, Tensor]:
            # torchmetrics makes scalars of tensors with one element, such as columns of a single example.
            return {name: column.reshape(-1, *self.columns[name][0]) for name, column in wrapped().items()}

        return rows

    def compute(self) -> dict[str, Tensor]:
        """All columns on the CPU, sorted by ``id``; an InputError if an example came twice."""
        table = {name: self._joined(f"column_{name}").cpu() for name in self.columns}
        order = table["id"].argsort()
        table = {name: column[order] for name, column in table.items()}
        ids = table["id"]
        repeated = ids[1:][ids[1:] == ids[:-1]]
        if len(repeated):
            raise InputError(
                f"Example {int(repeated[0])} was counted twice: evaluate with a sampler that does not pad, and "
                "give each example of a loader an 'id' of its own."
            )
        return table


class RoutingCurve(_Gathered):
    """The exact operating curve of one of :data:`~elang.method.quality.registry.QUALITIES` over batches and processes.

    >>> metric = RoutingCurve(num_labels=2)
    >>> metric.update(torch.tensor([0., 1.]), torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([0, 1]))
    >>> metric.compute().quality.tolist()
    [0.5, 1.0, 1.0]
    """

    score: list[Tensor]
    swift: list[Tensor]
    super_: list[Tensor]

    def __init__(self, num_labels: int, quality: QualityName = "accuracy", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if quality not in QUALITIES:
            raise InputError(f"Unknown quality '{quality}'; choose one of {', '.join(QUALITIES)}.")
        self.quality = QUALITIES[quality](num_labels)
        if self.quality.whole or self.quality.by_group or self.quality.target != "label":
            raise InputError(f"'{quality}' needs more than predictions and labels; evaluate it with JointModule.")
        no_labels = torch.empty(0, dtype=torch.int64)
        statistics = self.quality.statistics(no_labels, no_labels)
        row = (tuple(statistics.shape[1:]), statistics.dtype)
        self._declare({"score": ((), torch.float64), "swift": row, "super_": row})

    def update(self, score: Tensor, swift: Tensor, super_: Tensor, target: Tensor) -> None:
        """Add a batch: scores (larger is harder) and both models' predictions, each of shape ``(N,)``."""
        self.score.append(score.double())
        self.swift.append(self.quality.statistics(swift, target))
        self.super_.append(self.quality.statistics(super_, target))

    def compute(self) -> OperatingCurve:
        """Return the curve over all examples."""
        score, swift, super_ = (self._joined(name) for name in ("score", "swift", "super_"))
        return operating_curve(score, swift, super_, self.quality.value)
