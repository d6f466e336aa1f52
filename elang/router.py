"""The router head: a few thousand parameters that learn when deferring pays."""

import torch
from torch import Tensor, nn

from elang.scores import entropy, free_energy, margin

TOP_LOGITS = 3


def logit_features(logits: Tensor) -> Tensor:
    """What the logits alone say of an input's difficulty.

    Args:
        logits: Shape ``(N, C)``.

    Returns:
        Shape ``(N, 3 + min(C, 3))``: free energy, entropy, margin and the largest logits in descending order.

    >>> logit_features(torch.zeros(5, 2)).shape
    torch.Size([5, 5])
    """
    top = logits.topk(min(TOP_LOGITS, logits.shape[-1]), dim=-1).values
    return torch.cat([torch.stack([free_energy(logits), entropy(logits), margin(logits)], -1), top], -1)


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the hidden states over real tokens.

    Args:
        hidden: Shape ``(N, L, D)``.
        mask: Shape ``(N, L)``, 1 on real tokens.

    Returns:
        Shape ``(N, D)``.
    """
    weight = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)


class RouterHead(nn.Module):
    """Predicts the gain from deferring: P(the Super is right and the Swift is wrong).

    It reads *detached* features, so it never disturbs the Swift: the mean hidden state through a narrow layer,
    and :func:`logit_features`.

    Args:
        hidden_size: Width ``D`` of the Swift's hidden states.
        num_labels: Number of classes ``C``.
        width: Width of the layer that the hidden state passes through.
    """

    def __init__(self, hidden_size: int, num_labels: int, width: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.project = nn.Linear(hidden_size, width)
        self.logits = nn.Linear(3 + min(TOP_LOGITS, num_labels), width)
        self.out = nn.Linear(width, 1)

    def forward(self, pooled: Tensor, logits: Tensor) -> Tensor:
        """Return the log-odds that deferring pays.

        Args:
            pooled: Mean hidden states, shape ``(N, D)``.
            logits: The Swift's logits, shape ``(N, C)``.

        Returns:
            Log-odds, float32, shape ``(N,)``; larger is harder.
        """
        dtype = self.out.weight.dtype
        features = logit_features(logits.detach().float()).to(dtype)
        with torch.autocast(pooled.device.type, enabled=False):
            hidden = self.project(self.norm(pooled.detach().to(dtype))) + self.logits(features)
            log_odds: Tensor = self.out(nn.functional.gelu(hidden)).squeeze(-1).float()
            return log_odds
