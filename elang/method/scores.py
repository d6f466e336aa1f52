"""Difficulty scores of the Swift's logits.

One orientation for every score: **larger = harder = goes to the Super**. The paper keeps an input when
``-F(x) >= t``; here the score is ``F`` itself and ``threshold = -t``.

A logit of ``-inf`` marks a choice that an example does not have (multiple choice with unequal numbers of candidates);
every score is that of the other logits alone.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from elang.errors import InputError

SCORES: dict[str, Callable[[Tensor, float], Tensor]] = {}
"""The scores by name: functions of logits ``(..., C)`` and a temperature. :func:`register_score` adds one."""
ROUTER_READS = ("free_energy", "softmax_energy", "max_softmax", "entropy", "margin", "max_logit_pnorm")
"""The scores that a router head reads, in this order: fixed, so that a saved head goes on reading the same."""
BEFORE_DECODER = ("encoder_energy", "encoder_max_softmax", "encoder_router")
"""Scores that are known before an encoder-decoder's decoder runs; an input deferred by them saves the decoder."""
DEFAULT_SCORE = "max_softmax"
"""Routes where no router has shown to be better: in ``benchmarks/quality/ablate.py`` none is clearly better than it."""
ScoreFunction = TypeVar("ScoreFunction", bound=Callable[..., Tensor])


def register_score(name: str) -> Callable[[ScoreFunction], ScoreFunction]:
    """Add a difficulty score of logits, by which a pair can then be trained, evaluated and routed.

    The decorated function maps logits ``(..., C)``, ``C >= 2``, and a temperature to ``(...)``, larger for harder
    inputs. A logit of ``-inf`` marks a choice that an example does not have.

    Args:
        name: As it is given to ``--model.score``.

    Raises:
        InputError: If there is a score of this name.
    """

    def add(score: ScoreFunction) -> ScoreFunction:
        if name in SCORES:
            raise InputError(f"There is a score '{name}' already. Register yours by another name.")
        SCORES[name] = score
        return score

    return add


def _prepare(logits: Tensor, temperature: float) -> Tensor:
    """Return ``logits / temperature`` in at least float32, for half precision moves energies by up to 0.004."""
    if logits.ndim == 0 or logits.shape[-1] < 2:
        raise InputError(
            f"A score needs logits over at least 2 classes, but the shape is {tuple(logits.shape)}. Energy means "
            "nothing for a regression output; use the router's score there."
        )
    if not temperature > 0:
        raise InputError(f"The temperature must be positive, but it is {temperature}.")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1 else logits / temperature


@register_score("free_energy")
def free_energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Free energy ``F(x) = -T logsumexp(f(x) / T)``; sure inputs have low ``F``.

    Not invariant to a shift of the logits, unlike the scores on probabilities.

    Args:
        logits: Shape ``(..., C)``, with ``C >= 2``.
        temperature: ``T > 0``.

    Returns:
        Shape ``(...)``; larger is harder.

    Source:
        Akbari et al., ACL 2022, after Liu et al., NeurIPS 2020.

    >>> free_energy(torch.tensor([[4.0, 0.0], [0.0, 0.0]]))
    tensor([-4.0181, -0.6931])
    """
    energy: Tensor = -temperature * torch.logsumexp(_prepare(logits, temperature), dim=-1)
    return energy


@register_score("softmax_energy")
def softmax_energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """``-logsumexp(softmax(f / T))``: what the released code of the paper computes as its energy.

    For two classes an exact monotone function of the maximum probability, with range
    ``[-log(e + 1), -log(2 sqrt(e))]``.

    Args:
        logits: Shape ``(..., C)``.
        temperature: ``T > 0``.

    Returns:
        Shape ``(...)``; larger is harder.

    >>> softmax_energy(torch.tensor([[9.0, -9.0], [0.0, 0.0]]))
    tensor([-1.3133, -1.1931])
    """
    scaled = _prepare(logits, temperature)
    # A missing choice has probability 0, which would count as exp(0).
    return -torch.logsumexp(scaled.softmax(-1).masked_fill(scaled == -math.inf, -math.inf), dim=-1)


@register_score("max_softmax")
def max_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Negative maximum probability ``-max p``, the baseline that is hard to beat.

    Args:
        logits: Shape ``(..., C)``.
        temperature: ``T > 0``.

    Returns:
        Shape ``(...)`` in ``[-1, -1/C]``; larger is harder.

    >>> max_softmax(torch.tensor([[0.0, 0.0]]))
    tensor([-0.5000])
    """
    return -_prepare(logits, temperature).softmax(-1).amax(-1)


@register_score("entropy")
def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy ``-sum p log p`` of the predicted distribution, in nats.

    Args:
        logits: Shape ``(..., C)``.
        temperature: ``T > 0``.

    Returns:
        Shape ``(...)`` in ``[0, log C]``; larger is harder.

    >>> entropy(torch.tensor([[0.0, 0.0]]))
    tensor([0.6931])
    """
    scaled = _prepare(logits, temperature)
    # Not of probabilities: where one is 0, its logarithm has no gradient.
    log_p = scaled.log_softmax(-1).masked_fill(scaled == -math.inf, 0.0)
    return -(scaled.softmax(-1) * log_p).sum(-1)


@register_score("margin")
def margin(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Negative gap ``-(p1 - p2)`` between the two largest probabilities.

    Args:
        logits: Shape ``(..., C)``.
        temperature: ``T > 0``.

    Returns:
        Shape ``(...)`` in ``[-1, 0]``; larger is harder. With a single choice it is -1.

    >>> margin(torch.tensor([[1.0, 1.0, -9.0]])).abs()
    tensor([0.])
    """
    top = _prepare(logits, temperature).softmax(-1).topk(2, dim=-1).values
    return top[..., 1] - top[..., 0]


@register_score("max_logit_pnorm")
def max_logit_pnorm(logits: Tensor, temperature: float = 1.0, p: float = 2.0) -> Tensor:
    """Negative maximum logit over the logits' p-norm, ``-max f / ||f||_p``.

    The temperature cancels; it is accepted so that every score has one signature.

    Args:
        logits: Shape ``(..., C)``.
        temperature: Without effect.
        p: Order of the norm.

    Returns:
        Shape ``(...)``; larger is harder. Logits that are all zero score 0; where all are negative it is positive.

    Source:
        Cattelan and Silva, UAI 2024, arXiv 2305.15508.

    >>> max_logit_pnorm(torch.tensor([[3.0, 4.0]]))
    tensor([-0.8000])
    """
    scaled = _prepare(logits, temperature)
    norm = torch.linalg.vector_norm(scaled.masked_fill(scaled == -math.inf, 0.0), ord=p, dim=-1)
    score: Tensor = -scaled.amax(-1) / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return score


def all_scores(logits: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    """Every score of :data:`SCORES` by name, each of shape ``(...)`` for logits ``(..., C)``; larger is harder."""
    return {name: score(logits, temperature) for name, score in SCORES.items()}


def encoder_scores(logits: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    """The scores of :data:`BEFORE_DECODER` that need no training, of a head on the encoder's output.

    Args:
        logits: Of :class:`elang.backends.encoder.EncoderHead`, shape ``(..., C)``, with ``C >= 2``.
        temperature: ``T > 0``.

    Returns:
        ``encoder_energy`` and ``encoder_max_softmax``, each of shape ``(...)``; larger is harder.
    """
    return {
        "encoder_energy": free_energy(logits, temperature),
        "encoder_max_softmax": max_softmax(logits, temperature),
    }


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
