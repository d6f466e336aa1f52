"""Auxiliary losses that teach the Swift when it is wrong, and distillation from the Super.

``energy`` is the free energy of each example, ``(N,)``, and ``hard``, ``(N,)``, says how hard each is: from 0 (the
Swift should keep it) to 1 (it should be deferred), or boolean. All losses are scalars. On a batch without easy or
without hard examples they stay connected and finite, so that distributed processes stay in step, and the margins are
zero (except the hinge with explicit margins, which compares with no other examples).
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.method.scores import free_energy, max_softmax

MarginKind = Literal["pairwise", "ranking", "hinge", "confidence", "gatekeeper"]


def _weighted_mean(values: Tensor, weight: Tensor, min_weight: float = 1.0) -> Tensor:
    """Mean by weights in ``[0, 1]``; a total weight below ``min_weight`` shrinks it, down to 0 for a total of 0."""
    return (values * weight).sum() / weight.sum().clamp_min(min_weight)


def _easy_and_hard(hard: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """How easy and how hard each example is, in the type of ``like``."""
    hard = hard.to(like.dtype)
    return 1 - hard, hard


def energy_margin_hinge(
    energy: Tensor, hard: Tensor, m_easy: float | None = None, m_hard: float | None = None
) -> Tensor:
    """Squared hinge ``mean_easy relu(F - m_easy)^2 + mean_hard relu(m_hard - F)^2``, in squared units of energy.

    Args:
        energy: Free energies, shape ``(N,)``; larger is harder.
        hard: Of each example, as in the module.
        m_easy: Easy examples are pushed below it. By default the lower quartile of these energies.
        m_hard: Hard examples are pushed above it. By default the upper quartile.

    Source: Liu et al., NeurIPS 2020, equation 8, with margins taken from the observed energies.

    >>> energy_margin_hinge(torch.tensor([-9.0, -4.0]), torch.tensor([False, True]), -8.0, -3.0)
    tensor(1.)
    """
    observed = energy.detach()
    low = torch.quantile(observed, 0.25) if m_easy is None else m_easy
    high = torch.quantile(observed, 0.75) if m_hard is None else m_hard
    easy, hard = _easy_and_hard(hard, energy)
    loss = _weighted_mean(F.relu(energy - low).square(), easy) + _weighted_mean(F.relu(high - energy).square(), hard)
    if m_easy is not None and m_hard is not None:
        return loss
    # Quartiles of the batch are margins only where it has easy and hard examples.
    return loss * ((hard > 0).any() & (hard < 1).any())


def energy_margin_ranking(energy: Tensor, hard: Tensor, epsilon: float = 0.3) -> Tensor:
    """Separate the two means: ``relu(mean_easy S - mean_hard S + epsilon)``, ``S = sigmoid(F - mean F)``.

    ``epsilon`` in ``(0, 1)`` is the required gap. The loss lies in ``[0, 1 + epsilon]``. Energies have no fixed zero;
    centring them keeps the sigmoid off its flat ends. Source: the separation loss of COSEE, AAAI 2025.

    >>> energy_margin_ranking(torch.tensor([-20.0, 20.0]), torch.tensor([False, True]))
    tensor(0.)
    """
    squashed = torch.sigmoid(energy - energy.detach().mean())
    easy, hard = _easy_and_hard(hard, energy)
    gap = F.relu(_weighted_mean(squashed, easy, 1e-6) - _weighted_mean(squashed, hard, 1e-6) + epsilon)
    return gap * torch.minimum(easy.sum(), hard.sum()).clamp_max(1)


def energy_margin_pairwise(energy: Tensor, hard: Tensor, epsilon: float = 0.3) -> Tensor:
    """Pairwise ranking: the mean of ``relu(F_easy - F_hard + epsilon)`` over all easy-hard pairs.

    ``epsilon`` is the required gap of every pair, in units of energy.

    >>> energy_margin_pairwise(torch.tensor([-2.0, -2.0]), torch.tensor([False, True]))
    tensor(0.3000)
    """
    easy, hard = _easy_and_hard(hard, energy)
    gaps = F.relu(energy[:, None] - energy[None, :] + epsilon)
    return _weighted_mean(gaps, easy[:, None] * hard[None, :])


def gatekeeper(logits: Tensor, label: Tensor, hard: Tensor, alpha: float = 0.5) -> Tensor:
    """``a * CE`` on easy examples and ``(1 - a) * KL(p || uniform)`` on hard ones, averaged over all, in nats.

    Args:
        logits: Shape ``(N, C)``; ``-inf`` for a candidate that an example does not have.
        label: Class indices, shape ``(N,)``.
        hard: Of each example; in the paper (Gatekeeper, 2025) where the model is wrong.
        alpha: ``a`` in ``[0, 1]``; a smaller one makes the Swift more cautious.

    >>> gatekeeper(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]), torch.tensor([False, True]), 1.0)
    tensor(0.3466)
    """
    logits = logits.float()
    easy, hard = _easy_and_hard(hard, logits)
    exists = logits > -torch.inf
    log_p = logits.log_softmax(-1).masked_fill(~exists, 0.0)
    kl_to_uniform = exists.sum(-1).log() + (logits.softmax(-1) * log_p).sum(-1)
    cross_entropy = F.cross_entropy(logits, label, reduction="none")
    return (alpha * easy * cross_entropy + (1 - alpha) * hard * kl_to_uniform).mean()


MARGINS: dict[MarginKind, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "pairwise": lambda logits, label, hard, temperature: energy_margin_pairwise(free_energy(logits, temperature), hard),
    "ranking": lambda logits, label, hard, temperature: energy_margin_ranking(free_energy(logits, temperature), hard),
    "hinge": lambda logits, label, hard, temperature: energy_margin_hinge(free_energy(logits, temperature), hard),
    # CascadeBERT, 2021, ranks confidences, so the gap is one of probabilities.
    "confidence": lambda logits, label, hard, temperature: energy_margin_pairwise(
        max_softmax(logits, temperature), hard
    ),
    "gatekeeper": lambda logits, label, hard, temperature: gatekeeper(logits, label, hard),
}
"""Losses that separate easy from hard, of logits ``(N, C)``, labels ``(N,)``, ``hard`` and the temperature."""


def distillation(swift_logits: Tensor, super_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Distillation ``T^2 KL(softmax(super / T) || softmax(swift / T))`` in nats (Hinton et al., 2015), the mean.

    Args:
        swift_logits: Shape ``(N, C)``; ``-inf`` for a candidate that an example does not have.
        super_logits: Shape ``(N, C)``, with the classes in the same order.
        temperature: ``T > 0``; a larger one gives more weight to small probabilities.

    >>> distillation(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]])).abs() < 1e-6
    tensor(True)
    """
    # For a missing candidate a large negative number gives probability 0, as -inf does, but no NaN.
    log_swift, log_super = (
        F.log_softmax(logits.float().clamp_min(-1e6) / temperature, dim=-1) for logits in (swift_logits, super_logits)
    )
    return temperature**2 * F.kl_div(log_swift, log_super, reduction="batchmean", log_target=True)


def hidden_distillation(swift: Tensor, super_: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of hidden states over real tokens (TinyBERT, Findings of EMNLP 2020, equation 8).

    Args:
        swift: The Swift's, projected to the Super's width, shape ``(N, L, D)``.
        super_: The Super's, of the same tokens.
        mask: Shape ``(N, L)``, 1 for real tokens.

    >>> hidden_distillation(torch.ones(1, 2, 4), torch.zeros(1, 2, 4), torch.tensor([[1, 0]]))
    tensor(1.)
    """
    errors = (swift.float() - super_.float()).square().mean(-1)
    return _weighted_mean(errors, mask.to(errors.dtype))


def token_distillation(logits: Tensor, top_ids: Tensor, top_log_probs: Tensor) -> Tensor:
    """``KL(super || swift)`` in nats over the Super's top tokens and all others as one outcome, averaged over tokens.

    Word-level distillation of Kim and Rush, EMNLP 2016, with the stored top tokens only; 0 without any token.

    Args:
        logits: The Swift's, shape ``(M, V)``, of the same vocabulary.
        top_ids: The Super's K most probable tokens, int64 ``(M, K)``, with ``K < V``.
        top_log_probs: Their log-probabilities, ``(M, K)``.

    >>> logits = torch.tensor([[2.0, 1.0, 0.0]])
    >>> token_distillation(logits, torch.tensor([[0]]), logits.log_softmax(-1)[:, :1]).abs() < 1e-6
    tensor(True)
    """
    logits, top_log_probs = logits.float(), top_log_probs.float()
    # In float64: a confident Super leaves almost no probability to the others.
    super_others = (-torch.expm1(top_log_probs.double().logsumexp(-1))).clamp_min(1e-12).log().float()
    swift_others = logits.scatter(-1, top_ids, -torch.inf).logsumexp(-1)
    total = logits.logsumexp(-1, keepdim=True)
    log_swift = torch.cat([logits.gather(-1, top_ids), swift_others[:, None]], -1) - total
    log_super = torch.cat([top_log_probs, super_others[:, None]], -1)
    divergence = (log_super.exp() * (log_super - log_swift)).sum(-1)
    return divergence.sum() / max(1, len(divergence))
