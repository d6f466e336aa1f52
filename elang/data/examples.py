"""Examples, and the slice, fold and file that each of them belongs to."""

import hashlib
from dataclasses import dataclass, field, fields
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from elang.errors import InputError
from elang.method.router import FOLDS


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


def content_key(texts: tuple[str, ...]) -> int:
    """A 64-bit signed hash of an example's texts, the same on every machine.

    >>> content_key(("a", "b")) == content_key(("ab",))
    False
    """
    joined = "\x00".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "big", signed=True)


def in_slice(key: Tensor, fraction: float) -> Tensor:
    """Which examples fall into a slice of about ``fraction`` of all, by their text alone.

    Equal texts fall on the same side, order and file do not matter, and a smaller slice lies inside a larger.

    Args:
        key: From :func:`content_key`, int64 ``(N,)``.
        fraction: 0 to 1.

    Returns:
        Boolean, ``(N,)``.
    """
    return (key & 0xFFFFFFFF) < round(fraction * 2**32)


def fold_of(key: Tensor, folds: int = FOLDS) -> Tensor:
    """Which of so many parts an example belongs to, by its text alone: int64 ``(N,)`` from keys ``(N,)``.

    It reads other bits of the key than :func:`elang.data.examples.in_slice`.
    """
    return (key >> 32) % folds


def source_of(split: str) -> str:
    """The file that a split's examples, and so their ids, are from: held-out slices are part of the training file."""
    return "train" if split in ("routing", "fold") else split


def fold_parts(fold: str | None) -> tuple[int, int] | None:
    """Read ``k/K``.

    Raises:
        InputError: If it is none.

    >>> fold_parts("0/5")
    (0, 5)
    """
    if fold is None:
        return None
    number, _, parts = fold.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and int(number) < int(parts) and int(parts) > 1):
        raise InputError(f"--data.fold must be k/K with k from 0 to K - 1 and K of at least 2, but it is '{fold}'.")
    return int(number), int(parts)


def check_held_out(data: Any, about: dict[str, Any], who: str) -> None:
    """Refuse a slice of the training file that a model was trained on.

    Args:
        data: The data module.
        about: What is known of the model: its ``routing_fraction``, or nothing.
        who: Its name in the message.

    Raises:
        InputError: With the largest slice that there may be.
    """
    routing = about.get("routing_fraction")
    if routing is None:
        return
    if data.routing_fraction > routing:
        raise InputError(
            f"--data.routing_fraction is {data.routing_fraction}, but {who} was trained with {routing}: part of the "
            f"slice was trained on. Give --data.routing_fraction {routing} or less."
        )
