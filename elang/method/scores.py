"""Difficulty scores of the Swift's logits.

Every score has the same orientation: **larger = harder = goes to the Super**. The paper keeps an input when
``-F(x) >= t``; here the score is ``F`` itself and ``threshold = -t``.

Scores map logits ``(..., C)``, with ``C >= 2``, and a temperature ``T > 0`` to ``(...)``, and raise ``InputError`` for
others. They ignore logits of ``-inf``, which mark choices that an example does not have (multiple choice).
"""

import math
from collections.abc import Callable
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from elang.errors import InputError

SCORES: dict[str, Callable[[Tensor, float], Tensor]] = {}
"""The scores of logits by name. :func:`register_score` adds one."""
ROUTER_READS = ("free_energy", "softmax_energy", "max_softmax", "entropy", "margin", "max_logit_pnorm")
"""The scores that a router head reads, in this order. Saved heads depend on it, so it never changes."""
BEFORE_DECODER = ("encoder_energy", "encoder_max_softmax", "encoder_router", "prompt_router")
"""Scores that are known before an encoder-decoder's decoder runs, or after a decoder-only model has read its prompt: an
input deferred by them saves the rest."""
AskedScore = Literal["p_true", "agreement"]
ASKED_SCORES: tuple[AskedScore, ...] = get_args(AskedScore)
"""Scores of a generated text that take passes of their own, so they are computed only where they are asked for."""
DEFAULT_SCORE = "max_softmax"
"""The score that routes without a router: in ``benchmarks/quality/ablate.py`` none is clearly better."""
ScoreFunction = TypeVar("ScoreFunction", bound=Callable[..., Tensor])


def register_score(name: str) -> Callable[[ScoreFunction], ScoreFunction]:
    """Decorate a difficulty score of logits, so that a pair can be trained, evaluated and routed with it.

    The function must fit the description of scores in this module. ``name`` is the value for ``--model.score``; a name
    that is taken raises an ``InputError``.
    """

    def add(score: ScoreFunction) -> ScoreFunction:
        if name in SCORES:
            raise InputError(f"There is a score '{name}' already. Register yours by another name.")
        SCORES[name] = score
        return score

    return add


def _scale(logits: Tensor, temperature: float) -> Tensor:
    """``logits / temperature`` in at least float32: half precision moves energies by up to 0.004."""
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
    """Free energy ``F(x) = -T logsumexp(f(x) / T)``; confident inputs have low ``F``.

    Not invariant to a shift of the logits, unlike the scores of probabilities. Source: Akbari et al., ACL 2022, after
    Liu et al., NeurIPS 2020.

    >>> free_energy(torch.tensor([[4.0, 0.0], [0.0, 0.0]]))
    tensor([-4.0181, -0.6931])
    """
    return torch.logsumexp(_scale(logits, temperature), dim=-1) * -temperature


@register_score("softmax_energy")
def softmax_energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """``-logsumexp(softmax(f / T))``: what the released code of the paper computes as its energy.

    For two classes, a monotone function of the maximum probability with range ``[-log(e + 1), -log(2 sqrt(e))]``.

    >>> softmax_energy(torch.tensor([[9.0, -9.0], [0.0, 0.0]]))
    tensor([-1.3133, -1.1931])
    """
    scaled = _scale(logits, temperature)
    # A missing choice has probability 0, which would count as exp(0).
    return -torch.logsumexp(scaled.softmax(-1).masked_fill(scaled == -math.inf, -math.inf), dim=-1)


@register_score("max_softmax")
def max_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Negative maximum probability ``-max p``, in ``[-1, -1/C]``: the baseline that is hard to beat.

    >>> max_softmax(torch.tensor([[0.0, 0.0]]))
    tensor([-0.5000])
    """
    return -_scale(logits, temperature).softmax(-1).amax(-1)


@register_score("entropy")
def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy ``-sum p log p`` of the predicted distribution in nats, in ``[0, log C]``.

    >>> entropy(torch.tensor([[0.0, 0.0]]))
    tensor([0.6931])
    """
    scaled = _scale(logits, temperature)
    # The logarithm of probabilities would have no gradient where one is 0.
    log_p = scaled.log_softmax(-1).masked_fill(scaled == -math.inf, 0.0)
    return -(scaled.softmax(-1) * log_p).sum(-1)


@register_score("margin")
def margin(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Negative gap ``-(p1 - p2)`` between the two largest probabilities, in ``[-1, 0]``; -1 for a single choice.

    >>> margin(torch.tensor([[1.0, 1.0, -9.0]])).abs()
    tensor([0.])
    """
    top = _scale(logits, temperature).softmax(-1).topk(2, dim=-1).values
    return top[..., 1] - top[..., 0]


@register_score("max_logit_pnorm")
def max_logit_pnorm(logits: Tensor, temperature: float = 1.0, p: float = 2.0) -> Tensor:
    """Negative maximum logit over the logits' p-norm, ``-max f / ||f||_p``.

    The temperature cancels out. All-zero logits score 0; where all logits are negative the score is positive. Source:
    Cattelan and Silva, UAI 2024, arXiv 2305.15508.

    >>> max_logit_pnorm(torch.tensor([[3.0, 4.0]]))
    tensor([-0.8000])
    """
    scaled = _scale(logits, temperature)
    norm = torch.linalg.vector_norm(scaled.masked_fill(scaled == -math.inf, 0.0), ord=p, dim=-1)
    score: Tensor = -scaled.amax(-1) / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return score


def all_scores(logits: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    """Every score of :data:`SCORES` by name, each of shape ``(...)`` for logits ``(..., C)``; larger is harder."""
    return {name: score(logits, temperature) for name, score in SCORES.items()}


def encoder_scores(logits: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    """The scores of :data:`BEFORE_DECODER` that need no training, for logits of an encoder's head."""
    return {"encoder_energy": free_energy(logits, temperature), "encoder_max_softmax": max_softmax(logits, temperature)}


TOKEN_SCORES = ("free_energy", "max_softmax", "entropy", "nll", "margin")
"""Scores of a token; ``nll`` is its negative log-probability, whose mean is the logarithm of perplexity."""
QUANTILES = {"q0": 0.0, "q10": 0.1, "q25": 0.25, "q50": 0.5}
SEQUENCE_SCORES = tuple(f"{score}_{how}" for score in TOKEN_SCORES for how in ("mean", "sum", *QUANTILES))
"""All scores of a text. New ones come last: files of earlier versions have the first ones."""
ROUTER_READS_OF_TEXTS = SEQUENCE_SCORES[:24]
"""The scores of a text that a router head reads. Saved heads depend on it, so it never changes."""
SEQUENCE_DEFAULT = "nll_mean"
"""The score that routes texts without a router: the logarithm of perplexity."""


def token_scores(logits: Tensor, chosen: Tensor) -> Tensor:
    """The :data:`TOKEN_SCORES` of generated tokens, float32 ``(..., 5)``; larger is harder.

    Args:
        logits: The decoder's, before anything is masked or forced, shape ``(..., V)``.
        chosen: The generated tokens, int64 ``(...)``.

    >>> token_scores(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).abs()
    tensor([[0.6931, 0.5000, 0.6931, 0.6931, 0.0000]])
    """
    logits = logits.float()
    energy = free_energy(logits)
    nll = -energy - logits.gather(-1, chosen[..., None]).squeeze(-1)
    first, second = (logits.topk(2, dim=-1).values + energy[..., None]).exp().unbind(-1)
    return torch.stack([energy, -first, entropy(logits), nll, second - first], -1)


def sequence_scores(tokens: Tensor, lengths: Tensor) -> Tensor:
    """The :data:`SEQUENCE_SCORES` of texts, float32 ``(B, 30)``: mean, sum and quantiles over tokens; larger is harder.

    The quantiles are those of *confidence*, interpolated linearly: ``q0`` is the score of the least confident token.

    Args:
        tokens: From :func:`token_scores`, with any padding, shape ``(B, T, 5)``.
        lengths: Tokens of each text with its end token, at least 1, int64 ``(B,)``.

    >>> scores = sequence_scores(torch.tensor([[1.0, 3.0, 9.0]]).view(1, 3, 1).expand(1, 3, 5), torch.tensor([2]))
    >>> scores[0, :6].tolist()
    [2.0, 4.0, 3.0, 2.799999952316284, 2.5, 2.0]
    """
    is_padding = (torch.arange(tokens.shape[1], device=tokens.device) >= lengths[:, None])[..., None]
    count = lengths[:, None].to(tokens)
    total = tokens.masked_fill(is_padding, 0.0).sum(1)
    hardest_first = tokens.masked_fill(is_padding, -torch.inf).sort(1, descending=True).values
    scores = [total / count, total]
    for share in QUANTILES.values():
        rank = share * (count - 1)
        low, high = (
            hardest_first.gather(1, r.long()[..., None].expand(-1, -1, tokens.shape[-1])).squeeze(1)
            for r in (rank.floor(), rank.ceil())
        )
        scores.append(torch.lerp(low, high, (rank - rank.floor()).expand_as(low)))
    return torch.stack(scores, -1).flatten(1)
