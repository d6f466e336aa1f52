"""The examples of a split: texts, ids, keys and labels."""

from dataclasses import dataclass, field, fields
from itertools import compress
from typing import Any

import torch
from torch import Tensor


@dataclass
class Examples:
    """The texts of one split, and what is known of them.

    Attributes:
        texts: The values of the task's fields for each example.
        id: Row in the source, int64 ``(N,)``, ascending.
        key: Hash of the texts, int64 ``(N,)``.
        label: Class indices, int64 ``(N,)``, or values, float64, in a regression; -1 or NaN where not known.
        choices: Each example's candidates, in a ``choice`` task.
        targets: Further columns that a metric reads, each ``(N, ...)``: ``group``, ``answer_f1``.
        unit: Hash of what is held out as a whole (a passage with its questions), int64 ``(N,)``; by default the key.
        references: The texts that are to be generated, in a ``sequence`` task.
        source: What :attr:`id` counts in: ``train``, ``validation``, ``test``, ``transfer``.
        last: The largest id of the source, where all of it is one split.
    """

    texts: list[tuple[str, ...]]
    id: Tensor
    key: Tensor
    label: Tensor
    choices: list[tuple[str, ...]] | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)
    unit: Tensor | None = None
    references: list[str] | None = None
    source: str = ""
    last: int | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labelled(self) -> bool:
        """Whether every label is known."""
        return not bool(self.label.isnan().any() if self.label.is_floating_point() else (self.label < 0).any())

    def take(self, mask: Tensor) -> "Examples":
        """The examples where ``mask`` is true, in order."""
        keep = mask.tolist()

        def rows(column: Any) -> Any:
            if isinstance(column, dict):
                return {name: rows(values) for name, values in column.items()}
            if isinstance(column, list):
                return list(compress(column, keep))
            return column[mask] if isinstance(column, Tensor) else column

        return Examples(**{one.name: rows(getattr(self, one.name)) for one in fields(self)})


def join_examples(first: Examples, second: Examples, offset: int) -> Examples:
    """Two sets of labelled or unlabelled texts behind each other; the second one's ids go up by ``offset``."""
    ids = torch.cat([first.id, second.id + offset])
    key, label = torch.cat([first.key, second.key]), torch.cat([first.label, second.label])
    return Examples(first.texts + second.texts, ids, key, label=label)
