"""Auxiliary losses that shape the Swift's energy, and distillation from the Super.

"easy" and "hard" mark the examples that the Swift should keep and give away. On a batch that lacks one of the two
kinds every loss stays connected and finite, so that processes of a distributed run stay in step, and is zero (but for
the hinge with margins given by hand, which needs no other kind to compare with).
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

MarginKind = Literal["hinge", "ranking", "pairwise"]


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values`` where ``mask``; zero, not NaN, where the mask is empty."""
    weight = mask.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp_min(1)


def energy_margin_hinge(
    energy: Tensor, hard: Tensor, m_easy: float | None = None, m_hard: float | None = None
) -> Tensor:
    """Squared hinge ``mean_easy relu(F - m_easy)^2 + mean_hard relu(m_hard - F)^2``.

    Args:
        energy: Free energies, shape ``(N,)``; larger is harder.
        hard: Boolean, shape ``(N,)``.
        m_easy: Easy examples are pushed below it. By default the lower quartile of these energies.
        m_hard: Hard examples are pushed above it. By default the upper quartile.

    Returns:
        A scalar, in squared units of energy.

    Source:
        Liu et al., NeurIPS 2020, equation 8, with margins taken from the observed energies.

    >>> energy_margin_hinge(torch.tensor([-9.0, -4.0]), torch.tensor([False, True]), -8.0, -3.0)
    tensor(1.)
    """
    observed = energy.detach()
    low = torch.quantile(observed, 0.25) if m_easy is None else m_easy
    high = torch.quantile(observed, 0.75) if m_hard is None else m_hard
    # Quartiles of the batch are margins only where there are two kinds to part.
    parts = 1.0 if m_easy is not None and m_hard is not None else hard.any() & (~hard).any()
    easy_loss = _masked_mean(F.relu(energy - low).square(), ~hard)
    hard_loss = _masked_mean(F.relu(high - energy).square(), hard)
    return (easy_loss + hard_loss) * parts


def energy_margin_ranking(energy: Tensor, hard: Tensor, epsilon: float = 0.3) -> Tensor:
    """Separate the two means: ``relu(mean_easy S - mean_hard S + epsilon)``, ``S = sigmoid(F - mean F)``.

    Args:
        energy: Free energies, shape ``(N,)``; larger is harder.
        hard: Boolean, shape ``(N,)``.
        epsilon: The gap asked for between the squashed means, in ``(0, 1)``.

    Returns:
        A scalar in ``[0, 1 + epsilon]``; zero where a kind is missing.

    Source:
        COSEE, AAAI 2025, and CascadeBERT, 2021. Centring before the sigmoid keeps it off its flat ends, for
        energies have no fixed zero.

    >>> energy_margin_ranking(torch.tensor([-20.0, 20.0]), torch.tensor([False, True]))
    tensor(0.)
    """
    squashed = torch.sigmoid(energy - energy.detach().mean())
    gap = F.relu(_masked_mean(squashed, ~hard) - _masked_mean(squashed, hard) + epsilon)
    return gap * (hard.any() & (~hard).any())


def energy_margin_pairwise(energy: Tensor, hard: Tensor, epsilon: float = 0.3) -> Tensor:
    """Pairwise ranking: the mean of ``relu(F_easy - F_hard + epsilon)`` over all easy-hard pairs.

    Args:
        energy: Free energies, shape ``(N,)``; larger is harder.
        hard: Boolean, shape ``(N,)``.
        epsilon: The gap asked for in every pair, in units of energy.

    Returns:
        A scalar; zero where a kind is missing.

    >>> energy_margin_pairwise(torch.tensor([-2.0, -2.0]), torch.tensor([False, True]))
    tensor(0.3000)
    """
    gaps = F.relu(energy[:, None] - energy[None, :] + epsilon)
    return _masked_mean(gaps, (~hard)[:, None] & hard[None, :])


MARGINS: dict[MarginKind, Callable[[Tensor, Tensor], Tensor]] = {
    "hinge": energy_margin_hinge,
    "ranking": energy_margin_ranking,
    "pairwise": energy_margin_pairwise,
}


def distillation(swift_logits: Tensor, super_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Temperature-scaled ``T^2 KL(softmax(super / T) || softmax(swift / T))``, the mean over examples.

    Args:
        swift_logits: Shape ``(N, C)``; ``-inf`` for a candidate that an example does not have.
        super_logits: Shape ``(N, C)``, the Super's cached outputs with its classes in the same order.
        temperature: ``T > 0``; larger passes on more of the small probabilities.

    Returns:
        A scalar in nats.

    Source:
        Hinton et al., 2015.

    >>> distillation(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]])).abs() < 1e-6
    tensor(True)
    """
    # A candidate that an example does not have is -inf; a large finite number gives it no probability and no NaN.
    log_swift, log_super = (
        F.log_softmax(logits.float().clamp_min(-1e6) / temperature, dim=-1) for logits in (swift_logits, super_logits)
    )
    return temperature**2 * F.kl_div(log_swift, log_super, reduction="batchmean", log_target=True)


def token_distillation(logits: Tensor, top_ids: Tensor, top_log_probs: Tensor) -> Tensor:
    """``KL(super || swift)`` over the Super's most probable tokens and, as one more outcome, all others.

    Args:
        logits: The Swift's, shape ``(M, V)``, of the same vocabulary.
        top_ids: The Super's K most probable tokens, int64 ``(M, K)``, with ``K < V``.
        top_log_probs: Their log-probabilities, ``(M, K)``.

    Returns:
        A scalar in nats, the mean over the ``M`` places; 0 without any.

    Source:
        Word-level distillation of Kim and Rush, EMNLP 2016, on what is worth keeping.

    >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
    >>> token_distillation(logits, torch.tensor([[0]]), logits.log_softmax(-1)[:, :1]).abs() < 1e-6
    tensor(True)
    """
    logits, top_log_probs = logits.float(), top_log_probs.float()
    # In float64, for a sure Super leaves next to nothing.
    other = (-torch.expm1(top_log_probs.double().logsumexp(-1))).clamp_min(1e-12).log().float()
    others = logits.scatter(-1, top_ids, -torch.inf).logsumexp(-1)
    total = logits.logsumexp(-1, keepdim=True)
    log_swift = torch.cat([logits.gather(-1, top_ids), others[:, None]], -1) - total
    log_super = torch.cat([top_log_probs, other[:, None]], -1)
    each = (log_super.exp() * (log_super - log_swift)).sum(-1)
    return each.sum() / max(1, len(each))
