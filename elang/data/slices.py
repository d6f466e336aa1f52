"""Which slice, fold and file an example belongs to, by its text alone."""

import hashlib
from typing import Any

from torch import Tensor

from elang.errors import InputError
from elang.method.ridge import FOLDS


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

    It reads other bits of the key than :func:`elang.data.slices.in_slice`.
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
