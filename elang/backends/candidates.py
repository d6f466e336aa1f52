"""Values of candidates, brought together by example."""

from __future__ import annotations

import torch
from torch import Tensor

from elang.errors import InputError


def owner(counts: Tensor) -> Tensor:
    """Which example each candidate is of: counts ``(B,)`` to indices ``(sum,)``."""
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def sum_by_example(values: Tensor, counts: Tensor) -> Tensor:
    """Sum candidates' values ``(sum, ...)`` over each example, ``(B, ...)``."""
    return values.new_zeros(len(counts), *values.shape[1:]).index_add(0, owner(counts), values)


def spread(values: Tensor, counts: Tensor, width: int) -> Tensor:
    """Candidates' values ``(sum,)`` as rows ``(B, width)``, ``-inf`` where an example has no such candidate."""
    row = owner(counts)
    column = torch.arange(len(values), device=values.device) - (counts.cumsum(0) - counts)[row]
    return values.new_full((len(counts), width), -torch.inf).index_put((row, column), values)


def check_choices(most: int, width: int) -> None:
    """Refuse an example with more candidates than a task allows for."""
    if most > width:
        raise InputError(f"An example has {most} candidates, but its task allows for {width}. Raise the task's limit.")
