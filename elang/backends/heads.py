"""Heads on a backbone: what they read, and the head by which an input can be deferred before the decoder runs."""

from typing import Any

import torch
from torch import Tensor, nn


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


class EncoderHead(nn.Module):
    """Classifies an encoder-decoder's encoder output, so that inputs can be deferred before its decoder runs.

    The paper's head as we read it, one linear layer on the masked mean of a detached encoder; the norm is ours.

    Args:
        hidden_size: Width ``D`` of the encoder's hidden states.
        num_labels: Number of classes ``C``.
    """

    def __init__(self, hidden_size: int, num_labels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.out = nn.Linear(hidden_size, num_labels)

    def forward(self, pooled: Tensor, detach: bool = True) -> Tensor:
        """Return the head's logits.

        Args:
            pooled: Mean hidden states over real tokens (:func:`masked_mean`), shape ``(N, D)``.
            detach: Whether gradients stop here and leave the encoder as it is.

        Returns:
            Logits, float32, shape ``(N, C)``.
        """
        if detach:
            pooled = pooled.detach()
        with torch.autocast(pooled.device.type, enabled=False):
            logits: Tensor = self.out(self.norm(pooled.to(self.out.weight.dtype))).float()
            return logits


def in_float32(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A forward hook that turns a head's inputs into float32."""
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)
