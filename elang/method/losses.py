"""Auxiliary losses that teach the Swift when it is wrong, and distillation from the Super.

``hard`` says how hard each example is, from 0 (the Swift should keep it) to 1 (it should give it away); a boolean will
do. On a batch that lacks one of the two kinds every loss stays connected and finite, so that processes of a
distributed run stay in step, and the margins are zero (but for the hinge with margins given by hand, which needs no
other kind to compare with).
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.method.scores import free_energy, max_softmax

MarginKind = Literal["pairwise", "ranking", "hinge", "confidence", "gatekeeper"]


def _mean(values: Tensor, weight: Tensor, least: float = 1.0) -> Tensor:
    """Mean of ``values`` by ``weight`` in ``[0, 1]``; zero, not NaN, where nothing counts.

    What counts for less than ``least`` examples counts for as much less.
    """
    return (values * weight).sum() / weight.sum().clamp_min(least)


def _kinds(hard: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How easy and how hard each example is, and whether there are both kinds."""
    hard = hard.to(like.dtype)
    return 1 - hard, hard, (hard > 0).any() & (hard < 1).any()


def energy_margin_hinge(
    energy: Tensor, hard: Tensor, m_easy: float | None = None, m_hard: float | None = None
) -> Tensor:
    """Squared hinge ``mean_easy relu(F - m_easy)^2 + mean_hard relu(m_hard - F)^2``.

    Args:
        energy: Free energies, shape ``(N,)``; larger is harder.
        hard: 0 to 1, shape ``(N,)``.
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
    easy, hard, both = _kinds(hard, energy)
    parts = 1.0 if m_easy is not None and m_hard is not None else both
    return (_mean(F.relu(energy - low).square(), easy) + _mean(F.relu(high - energy).square(), hard)) * parts


def energy_margin_ranking(energy: Tensor, hard: Tensor, epsilon: float = 0.3) -> Tensor:
    """Separate the two means: ``relu(mean_easy S - mean_hard S + epsilon)``, ``S = sigmoid(F - mean F)``.

    Args:
        energy: Free energies, shape ``(N,)``; larger is harder.
        hard: 0 to 1, shape ``(N,)``.
        epsilon: The gap asked for between the squashed means, in ``(0, 1)``.

    Returns:
        A scalar in ``[0, 1 + epsilon]``; zero where a kind is missing.

    Source:
        The separation loss of COSEE, AAAI 2025. Centring before the sigmoid keeps it off its flat ends, for energies
        have no fixed zero.

    >>> energy_margin_ranking(torch.tensor([-20.0, 20.0]), torch.tensor([False, True]))
    tensor(0.)
    """
    squashed = torch.sigmoid(energy - energy.detach().mean())
    easy, hard, both = _kinds(hard, energy)
    gap = F.relu(_mean(squashed, easy, 1e-6) - _mean(squashed, hard, 1e-6) + epsilon)
    return gap * both * torch.minimum(easy.sum(), hard.sum()).clamp_max(1)


def energy_margin_pairwise(energy: Tensor, hard: Tensor, epsilon: float = 0.3) -> Tensor:
    """Pairwise ranking: the mean of ``relu(F_easy - F_hard + epsilon)`` over all easy-hard pairs.

    Args:
        energy: Free energies, shape ``(N,)``; larger is harder.
        hard: 0 to 1, shape ``(N,)``.
        epsilon: The gap asked for in every pair, in units of energy.

    Returns:
        A scalar; zero where a kind is missing.

    >>> energy_margin_pairwise(torch.tensor([-2.0, -2.0]), torch.tensor([False, True]))
    tensor(0.3000)
    """
    easy, hard, _ = _kinds(hard, energy)
    gaps = F.relu(energy[:, None] - energy[None, :] + epsilon)
    return _mean(gaps, easy[:, None] * hard[None, :])


def gatekeeper(logits: Tensor, label: Tensor, hard: Tensor, alpha: float = 0.5) -> Tensor:
    """``a * CE`` on easy examples and ``(1 - a) * KL(p || uniform)`` on hard ones, over all examples.

    Args:
        logits: Shape ``(N, C)``; ``-inf`` for a candidate that an example does not have.
        label: Class indices, shape ``(N,)``.
        hard: 0 to 1, shape ``(N,)``; in the paper where the model is wrong.
        alpha: ``a`` in ``[0, 1]``; less asks for more caution.

    Returns:
        A scalar in nats.

    Source:
        Gatekeeper, 2025.

    >>> gatekeeper(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]), torch.tensor([False, True]), 1.0)
    tensor(0.3466)
    """
    logits = logits.float()
    easy, hard, _ = _kinds(hard, logits)
    there = logits > -torch.inf
    log_p = logits.log_softmax(-1).masked_fill(~there, 0.0)
    from_uniform = there.sum(-1).log() + (logits.softmax(-1) * log_p).sum(-1)
    right = F.cross_entropy(logits, label, reduction="none")
    return (alpha * easy * right + (1 - alpha) * hard * from_uniform).mean()


MARGINS: dict[MarginKind, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "pairwise": lambda logits, label, hard, temperature: energy_margin_pairwise(free_energy(logits, temperature), hard),
    "ranking": lambda logits, label, hard, temperature: energy_margin_ranking(free_energy(logits, temperature), hard),
    "hinge": lambda logits, label, hard, temperature: energy_margin_hinge(free_energy(logits, temperature), hard),
    # CascadeBERT, 2021, ranks confidences: the gap is one of probabilities.
    "confidence": lambda logits, label, hard, temperature: energy_margin_pairwise(
        max_softmax(logits, temperature), hard
    ),
    "gatekeeper": lambda logits, label, hard, temperature: gatekeeper(logits, label, hard),
}
"""What separates easy from hard: of logits ``(N, C)``, labels ``(N,)``, ``hard`` ``(N,)`` and the temperature."""


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


def hidden_distillation(swift: Tensor, super_: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of hidden states over real tokens.

    Args:
        swift: The Swift's, brought to the Super's width, shape ``(N, L, D)``.
        super_: The Super's, of the same tokens.
        mask: Shape ``(N, L)``, 1 on real tokens.

    Returns:
        A scalar, in squared units of the Super's states.

    Source:
        TinyBERT, Findings of EMNLP 2020, equation 8.

    >>> hidden_distillation(torch.ones(1, 2, 4), torch.zeros(1, 2, 4), torch.tensor([[1, 0]]))
    tensor(1.)
    """
    each = (swift.float() - super_.float()).square().mean(-1)
    return _mean(each, mask.to(each.dtype))


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
