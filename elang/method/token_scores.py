"""Difficulty scores of generated text, from scores of its tokens.

One orientation, as in :mod:`elang.method.scores`: larger = harder = goes to the Super. Sum and mean depend on the
length of what was generated; quantiles hardly do (Gupta et al., ICLR 2024). ``q0`` is the least sure token, ``q50`` the
median.
"""

import torch
from torch import Tensor

from elang.method.scores import entropy, free_energy, max_softmax

TOKEN_SCORES = ("free_energy", "max_softmax", "entropy", "nll")
"""Scores of a token; ``nll`` is its negative log-probability, whose mean is the logarithm of perplexity."""
QUANTILES = {"q0": 0.0, "q10": 0.1, "q25": 0.25, "q50": 0.5}
SEQUENCE_SCORES = tuple(f"{score}_{how}" for score in TOKEN_SCORES for how in ("mean", "sum", *QUANTILES))
"""All scores of a text, in the order of :func:`sequence_scores`."""
SEQUENCE_DEFAULT = "nll_mean"
"""What routes by default where there is no router: the logarithm of perplexity."""


def token_scores(logits: Tensor, chosen: Tensor) -> Tensor:
    """The scores of tokens, in the order of :data:`TOKEN_SCORES`.

    Args:
        logits: The decoder's, before anything is masked or forced, shape ``(..., V)``.
        chosen: The tokens that were taken, int64 ``(...)``.

    Returns:
        float32, shape ``(..., 4)``; larger is harder.

    >>> token_scores(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor([[-0.6931, -0.5000,  0.6931,  0.6931]])
    """
    logits = logits.float()
    energy = free_energy(logits)
    nll = -energy - logits.gather(-1, chosen[..., None]).squeeze(-1)
    return torch.stack([energy, max_softmax(logits), entropy(logits), nll], -1)


def sequence_scores(tokens: Tensor, steps: Tensor) -> Tensor:
    """Mean, sum and quantiles over the tokens of each text.

    A quantile is one of the tokens' *confidence*: its ``q0`` is the least sure token's score. Between two tokens it is
    interpolated linearly.

    Args:
        tokens: From :func:`token_scores`, padded with anything, shape ``(B, T, 4)``.
        steps: Tokens of each text, its end included, at least 1, int64 ``(B,)``.

    Returns:
        float32, shape ``(B, 24)``, in the order of :data:`SEQUENCE_SCORES`; larger is harder.

    >>> scores = sequence_scores(torch.tensor([[1.0, 3.0, 9.0]]).view(1, 3, 1).expand(1, 3, 4), torch.tensor([2]))
    >>> scores[0, :6].tolist()
    [2.0, 4.0, 3.0, 2.799999952316284, 2.5, 2.0]
    """
    real = (torch.arange(tokens.shape[1], device=tokens.device) < steps[:, None])[..., None]
    count = steps[:, None].to(tokens)
    total = tokens.masked_fill(~real, 0.0).sum(1)
    hardest_first = tokens.masked_fill(~real, -torch.inf).sort(1, descending=True).values
    found = [total / count, total]
    for share in QUANTILES.values():
        place = share * (count - 1)
        low, high = (
            hardest_first.gather(1, p.long()[..., None].expand(-1, -1, tokens.shape[-1])).squeeze(1)
            for p in (place.floor(), place.ceil())
        )
        found.append(torch.lerp(low, high, (place - place.floor()).expand_as(low)))
    return torch.stack(found, -1).flatten(1)
