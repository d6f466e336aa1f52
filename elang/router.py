"""Small heads beside the Swift: the router, which learns when deferring pays, and one on an encoder's output."""

import math

import torch
from torch import Tensor, nn

from elang.scores import entropy, free_energy, margin

TOP_LOGITS = 3


def num_features(num_labels: int) -> int:
    """Number of :func:`logit_features` of ``C`` logits."""
    return 1 if num_labels == 1 else 3 + min(TOP_LOGITS, num_labels)


def logit_features(logits: Tensor) -> Tensor:
    """What the logits alone say of an input's difficulty.

    Args:
        logits: Shape ``(N, C)``; ``-inf`` marks a choice that an example does not have.

    Returns:
        Shape ``(N, 3 + min(C, 3))``: free energy, entropy, margin and the largest logits in descending order, finite:
        the smallest one again for choices that are missing. Of one output (regression) the value itself, ``(N, 1)``.

    >>> logit_features(torch.zeros(5, 2)).shape
    torch.Size([5, 5])
    """
    if logits.shape[-1] == 1:
        return logits
    top = logits.topk(min(TOP_LOGITS, logits.shape[-1]), dim=-1).values
    smallest = logits.masked_fill(logits == -math.inf, math.inf).amin(-1, keepdim=True)
    top = torch.where(top == -math.inf, smallest, top)
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
        num_labels: Number of classes ``C``; 1 for regression.
        width: Width of the layer that the hidden state passes through.
    """

    def __init__(self, hidden_size: int, num_labels: int, width: int = 16) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.project = nn.Linear(hidden_size, width)
        self.logits = nn.Linear(num_features(num_labels), width)
        self.out = nn.Linear(width, 1)

    def forward(self, pooled: Tensor, logits: Tensor) -> Tensor:
        """Return the log-odds that deferring pays.

        Args:
            pooled: Mean hidden states, shape ``(N, D)``.
            logits: The Swift's logits, shape ``(N, C)``; a batch in which all have fewer choices may be narrower.

        Returns:
            Log-odds, float32, shape ``(N,)``; larger is harder.
        """
        dtype = self.out.weight.dtype
        missing = max(0, self.logits.in_features - 3 - logits.shape[-1])
        logits = nn.functional.pad(logits.detach().float(), (0, missing), value=-math.inf)
        features = logit_features(logits).to(dtype)
        with torch.autocast(pooled.device.type, enabled=False):
            hidden = self.project(self.norm(pooled.detach().to(dtype))) + self.logits(features)
            log_odds: Tensor = self.out(nn.functional.gelu(hidden)).squeeze(-1).float()
            return log_odds


class GainRegression(nn.Module):
    """Predicts how much better the Super's text is: ridge regression on standardised features, fitted in closed form.

    The penalty is the one with the least generalised cross-validation error, so a head without anything to learn from
    predicts the mean.

    Args:
        width: Number of features.

    Source:
        Golub, Heath and Wahba, Technometrics 1979.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, size, value in (
            ("mean", width, 0.0),
            ("scale", width, 1.0),
            ("weight", width, 0.0),
            ("bias", 1, 0.0),
        ):
            self.register_buffer(name, torch.full((size,), value))

    def forward(self, features: Tensor) -> Tensor:
        """Return the expected gain from deferring.

        Args:
            features: Shape ``(N, F)``.

        Returns:
            float32, shape ``(N,)``; larger is harder.
        """
        with torch.autocast(features.device.type, enabled=False):
            mean, scale, weight, bias = (b.float() for b in (self.mean, self.scale, self.weight, self.bias))
            gain: Tensor = (features.detach().float() - mean) / scale @ weight + bias
            return gain

    @torch.no_grad()
    def fit(self, features: Tensor, gain: Tensor) -> None:
        """Learn from examples that the Swift was not trained on.

        Args:
            features: Shape ``(N, F)``.
            gain: What deferring each would have gained, shape ``(N,)``.
        """
        x, y = features.double().cpu(), gain.double().cpu()
        mean, scale = x.mean(0), x.std(0, correction=0)
        # What never varies tells nothing.
        scale = torch.where(scale > 1e-6 * mean.abs().clamp_min(1e-6), scale, torch.inf)
        u, s, vh = torch.linalg.svd((x - mean) / scale, full_matrices=False)
        projected, rest = u.T @ (y - y.mean()), (y - y.mean()).square().sum()
        errors, weights = [], []
        for penalty in len(x) * torch.logspace(-4, 4, 33, dtype=torch.float64):
            kept = s.square() / (s.square() + penalty)
            residual = rest - projected.square().sum() + ((1 - kept) * projected).square().sum()
            errors.append(float(residual / (len(x) - 1 - kept.sum()).clamp_min(1e-9).square()))
            weights.append(vh.T @ (kept / s.clamp_min(1e-12) * projected))
        best = weights[min(range(len(errors)), key=errors.__getitem__)]
        for name, value in (("mean", mean), ("scale", scale), ("weight", best), ("bias", y.mean()[None])):
            # In float32, whatever the model was trained in.
            setattr(self, name, value.float().to(self.bias.device))


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
