"""The routing rule: an input is deferred when its score is *above* the threshold; a tie stays with the Swift."""

import math

import torch
from torch import Tensor

from elang.errors import InputError


def route(score: Tensor, threshold: float) -> Tensor:
    """Decide which inputs the Super answers, boolean ``(N,)``: those with a score ``(N,)`` *above* the threshold.

    A threshold of ``inf`` keeps everything with the Swift, ``-inf`` defers everything. A score that is NaN or infinite
    raises an ``InputError``.

    >>> route(torch.tensor([-3.0, -1.0, 0.5]), -1.0)
    tensor([False, False,  True])
    """
    check_finite(score, "score")
    # In float64, because torch would round the threshold to the type of float32 scores.
    return score.double() > threshold


def check_finite(values: Tensor, name: str) -> None:
    """Raise :class:`~elang.errors.InputError` naming the first row of ``values`` that is NaN or infinite."""
    bad = ~torch.isfinite(values)
    if bad.any():
        row = int(bad.flatten(1).any(1).nonzero()[0]) if values.ndim > 1 else int(bad.nonzero()[0])
        raise InputError(
            f"{int(bad.sum())} of {values.numel()} values of '{name}' are NaN or infinite, first in row {row}. "
            "The model's output cannot be scored: look for a diverged training run or an overflow in half "
            "precision, and evaluate with --trainer.precision 32-true."
        )


def check_logits(logits: Tensor, what: str, choices: bool = False) -> None:
    """Refuse logits ``(..., C)`` that cannot be scored; with ``choices``, ``-inf`` marks missing choices.

    Raises:
        InputError: Naming them by ``what``, if a logit is NaN or infinite, or a row has no choice at all.
    """
    missing = (logits == -math.inf) & choices
    check_finite(logits.masked_fill(missing, 0.0), what)
    empty = missing.all(-1).flatten()
    if empty.any():
        raise InputError(
            f"{int(empty.sum())} of {empty.numel()} rows of '{what}' are -inf throughout, first row "
            f"{int(empty.nonzero()[0])}: an example needs at least one choice."
        )


def deferral_events(score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The order ``(N,)`` of deferral, and the number of deferred examples and the threshold of each point ``(M,)``.

    Equal scores are deferred together. No examples, or a score that is not finite, raise an ``InputError``.
    """
    n = score.numel()
    if n == 0:
        raise InputError("An operating curve needs at least one example, but there are none.")
    check_finite(score, "score")
    ordered, order = torch.sort(score, descending=True, stable=True)
    last_of_ties = torch.ones(n, dtype=torch.bool, device=score.device)
    last_of_ties[:-1] = ordered[1:] != ordered[:-1]
    deferred = torch.cat([order.new_zeros(1), last_of_ties.nonzero().squeeze(1) + 1])
    # The threshold of a point is the hardest score that is kept.
    threshold = torch.full((len(deferred),), -math.inf, dtype=torch.float64, device=score.device)
    threshold[:-1] = ordered[deferred[:-1]].double()
    threshold[0] = math.inf
    return order, deferred, threshold


def oracle_score(gain: Tensor) -> Tensor:
    """The score of a router that knows the gains ``(N,)`` of deferring, the ceiling of every report: float64 ``(N,)``.

    It defers first where the Super gains most and last where it loses most. All values differ: of equal gains the
    earlier one is harder. For metrics that are not a mean over examples (F1, Matthews) this order is a strong router,
    not a proven optimum. A gain that is not finite raises ``InputError``.

    >>> oracle_score(torch.tensor([0.0, 1.0, 0.0]))
    tensor([2., 3., 1.], dtype=torch.float64)
    """
    check_finite(gain, "gain")
    score = torch.empty(len(gain), dtype=torch.float64, device=gain.device)
    score[gain.argsort(descending=True, stable=True)] = torch.arange(len(gain), 0, -1, device=gain.device).double()
    return score
