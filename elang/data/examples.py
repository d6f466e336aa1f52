"""Examples, and the slice, fold and file that each of them belongs to."""

import hashlib
from dataclasses import dataclass, field, fields
from itertools import compress
from typing import Any, Literal

import torch
from torch import Tensor

from elang.errors import InputError
from elang.method.router import FOLDS

SplitName = Literal["train", "routing", "validation", "test", "transfer", "fold"]


@dataclass
class Examples:
    """The examples of one split.

    Attributes:
        texts: The values of the task's fields for each example.
        id: Row in the source, int64 ``(N,)``, ascending.
        key: Hash of the texts, int64 ``(N,)``.
        label: Class indices, int64 ``(N,)``, or values, float64, in a regression; -1 or NaN if unknown.
        choices: Each example's candidates, in a ``choice`` task.
        targets: Further columns for metrics, each ``(N, ...)``: ``group``, ``answer_f1``.
        unit: Equal for examples that are held out together (a passage with its questions), int64 ``(N,)``; by default
            the key.
        references: The texts to generate, in a ``sequence`` task.
        source: The file in which :attr:`id` counts rows: ``train``, ``validation``, ``test``, ``transfer``.
        last: The largest id of the source, if all of it is one split.
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

    @classmethod
    def of(cls, texts: list[tuple[str, ...]], label: Tensor, **columns: Any) -> "Examples":
        """All examples of a source: ids count its rows, and keys are hashes of the texts."""
        key = torch.tensor([content_key(row) for row in texts], dtype=torch.int64)
        return cls(texts, torch.arange(len(texts)), key, label=label, **columns)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labelled(self) -> bool:
        """Whether every label is known."""
        return not bool(self.label.isnan().any() if self.label.is_floating_point() else (self.label < 0).any())

    @property
    def units(self) -> Tensor:
        """:attr:`unit`, or the key where there is none."""
        return self.key if self.unit is None else self.unit

    def take(self, mask: Tensor) -> "Examples":
        """The examples where ``mask`` is true, in order."""
        keep = mask.tolist()

        def rows(column: Any) -> Any:
            if isinstance(column, dict):
                return {name: rows(values) for name, values in column.items()}
            if isinstance(column, list):
                return list(compress(column, keep))
            return column[mask] if isinstance(column, Tensor) else column

        return Examples(**{column.name: rows(getattr(self, column.name)) for column in fields(self)})

    def join(self, other: "Examples", offset: int) -> "Examples":
        """The texts and labels of both sets; ``offset`` is added to the ids of the other."""
        ids = torch.cat([self.id, other.id + offset])
        key, label = torch.cat([self.key, other.key]), torch.cat([self.label, other.label])
        return Examples(self.texts + other.texts, ids, key, label=label)


def content_key(texts: tuple[str, ...]) -> int:
    """A 64-bit signed hash of an example's texts, the same on every machine.

    >>> content_key(("a", "b")) == content_key(("ab",))
    False
    """
    joined = "\x00".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "big", signed=True)


def in_slice(key: Tensor, fraction: float) -> Tensor:
    """Which examples fall into a slice of about ``fraction`` of all: bool ``(N,)`` from keys, int64 ``(N,)``.

    It depends on the text alone: equal texts fall on the same side. A smaller slice lies inside a larger one.
    """
    return (key & 0xFFFFFFFF) < round(fraction * 2**32)


def fold_of(key: Tensor, folds: int = FOLDS) -> Tensor:
    """The fold of each example: int64 ``(N,)`` from keys ``(N,)``, of which :func:`in_slice` reads other bits."""
    return (key >> 32) % folds


def held_out(units: Tensor, fraction: float, fold: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Which examples are in the routing slice, and which of the others are in the fold k of K: both bool ``(N,)``."""
    routing = in_slice(units, fraction)
    in_fold = torch.zeros_like(routing) if fold is None else ~routing & (fold_of(units, fold[1]) == fold[0])
    return routing, in_fold


def told_sizes(splits: dict[str, Examples]) -> str:
    """How many examples there are of each split, in words."""
    sizes = ", ".join(f"{split} {len(found):,}" for split, found in splits.items())
    return f"examples: {sizes}".replace("routing", "routing slice (held out of train, to choose thresholds on)")


def source_of(split: str) -> str:
    """The file that a split's ids count rows of: held-out slices are part of the training file."""
    return "train" if split in ("routing", "fold") else split


def fold_parts(fold: str | None) -> tuple[int, int] | None:
    """Parse ``k/K``; an ``InputError`` if it is not of that form.

    >>> fold_parts("0/5")
    (0, 5)
    """
    if fold is None:
        return None
    number, _, folds = fold.partition("/")
    if not (number.isdecimal() and folds.isdecimal() and int(number) < int(folds) and int(folds) > 1):
        raise InputError(f"--data.fold must be k/K with k from 0 to K - 1 and K of at least 2, but it is '{fold}'.")
    return int(number), int(folds)


def check_held_out(data: Any, about: dict[str, Any], who: str) -> None:
    """Raise an ``InputError`` if ``who``, a model with the metadata ``about``, was trained on part of the slice."""
    trained = about.get("routing_fraction")
    if trained is not None and data.routing_fraction > trained:
        raise InputError(
            f"--data.routing_fraction is {data.routing_fraction}, but {who} was trained with {trained}: part of the "
            f"slice was trained on. Give --data.routing_fraction {trained} or less."
        )
    if data.drop_overlap and about.get("drop_overlap") is False:
        raise InputError(
            f"--data.drop_overlap is true, but {who} was trained without it, also on texts that are evaluated here. "
            "Train it again with --data.drop_overlap true, or leave it out."
        )
