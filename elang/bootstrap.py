"""Paired bootstrap over examples, and the area of a score by what deferring gains."""

import torch
from torch import Tensor


def resamples(n: int, times: int = 1000, seed: int = 0) -> Tensor:
    """How often each of ``n`` examples is drawn in each of ``times`` resamples, float64 ``(times, n)``.

    Two scores are compared on the same draws, for most of the uncertainty is in the examples, which they share.

    Source:
        Efron, Annals of Statistics 1979.

    >>> resamples(4, times=2).sum(1)
    tensor([4., 4.], dtype=torch.float64)
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(times, n, dtype=torch.float64)
    # In parts, for the indices take as much memory as the counts.
    for part in counts.split(100):
        drawn = torch.randint(n, part.shape, generator=generator)
        part.scatter_add_(1, drawn, torch.ones_like(part))
    return counts


def gain_area(score: Tensor, gain: Tensor, weights: Tensor | None = None) -> Tensor:
    """Area under the curve of a metric that is a mean over examples, between random (0) and oracle (1).

    The same number as :func:`elang.curve.relative_area` of the mean of the rewards, for many resamples at once.

    Args:
        score: Shape ``(N,)``; larger is harder. Equal scores are deferred together.
        gain: How much better the Super's answer is, shape ``(N,)``.
        weights: How often each example counts, shape ``(R, N)``; by default once.

    Returns:
        Float64, shape ``(R,)``, or a scalar without weights; NaN where nothing can be gained.

    >>> float(gain_area(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 0.0])))
    1.0
    """
    counts = torch.ones(1, len(gain)) if weights is None else weights
    score, gain = score.double().cpu(), gain.double().cpu()
    parts = []
    for part in counts.split(100):
        own, best = (_captured(by, gain, part.double()) for by in (score, gain))
        parts.append(torch.where(best > 1e-12 * part.sum(1), own / best, torch.nan))
    found = torch.cat(parts)
    return found[0] if weights is None else found


def _captured(score: Tensor, gain: Tensor, counts: Tensor) -> Tensor:
    """Gain weighted by how early it is deferred, against the middle, ``(R,)``."""
    order = score.argsort(descending=True, stable=True)
    counts, gain, score = counts[:, order], gain[order], score[order]
    # Mid-ranks: a tie is one step of the curve, which is straight in between.
    last = torch.searchsorted(-score, -score, right=True)
    first = torch.searchsorted(-score, -score)
    done = torch.nn.functional.pad(counts.cumsum(1), (1, 0))
    middle = (done[:, first] + done[:, last]) / 2
    total = counts.sum(1, keepdim=True)
    return ((0.5 - middle / total) * counts * gain).sum(1)
