"""The router head beside the Swift, which learns what deferring gains.

It is fitted in closed form after the Swift, on the slice of the training file that neither model was trained on. Its
scores on this slice are cross-fitted, so that thresholds can be chosen there, too.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from elang.method.bootstrap import Each, gain_area, resamples
from elang.method.scores import ROUTER_READS, SCORES

FOLDS = 5
_TOP_LOGITS = 3
_MAX_PROBABILITIES = 8
_CONFIDENCE, _RESAMPLES = 0.95, 1000
_BEST = "on held-out examples it finds best which inputs the Super answers better"


def expected_gain(super_logits: Tensor, super_: Tensor, swift: Tensor) -> Tensor:
    """The gain from deferring by the Super's probabilities: its own answer's minus the Swift's, float64 ``(N,)``.

    This is the mean gain over labels drawn from the Super's distribution. It is wrong where the Super is, but estimates
    the gain of every example, while right and wrong answers differ on a few only. Source: the difference of
    probabilities of Narasimhan et al., NeurIPS 2022, with the Super's in place of the labels.

    Args:
        super_logits: Shape ``(N, C)``; ``-inf`` marks a choice that an example does not have.
        super_: The Super's answers, int64 ``(N,)``, -1 for an answer that names no class.
        swift: The Swift's answers, likewise.

    >>> expected_gain(torch.tensor([[0.0, 0.0], [0.0, 99.0]]), torch.tensor([0, 1]), torch.tensor([1, 0]))
    tensor([0., 1.], dtype=torch.float64)
    """
    p = super_logits.double().softmax(-1)
    p_super, p_swift = (p.gather(1, answer.clamp_min(0)[:, None])[:, 0] * (answer >= 0) for answer in (super_, swift))
    return p_super - p_swift


def num_logit_features(num_labels: int) -> int:
    """Number of :func:`logit_features` of ``C`` logits."""
    return logit_features(torch.zeros(1, num_labels), num_labels).shape[1]


def logit_features(logits: Tensor, num_labels: int) -> Tensor:
    """The router's features of logits, finite float32 ``(N, F)``.

    These are the scores of :data:`~elang.method.scores.ROUTER_READS`, the 3 largest logits in descending order (the
    smallest one stands in for missing choices), and the probabilities of up to 8 classes. A single output (regression)
    is its own feature.

    Args:
        logits: Shape ``(N, C)``; ``-inf`` marks a choice that an example does not have.
        num_labels: The task's ``C``; a batch whose examples all have fewer choices may be narrower.

    >>> logit_features(torch.zeros(5, 2), 2).shape
    torch.Size([5, 10])
    """
    logits = nn.functional.pad(logits.detach().float(), (0, num_labels - logits.shape[-1]), value=-math.inf)
    if num_labels == 1:
        return logits
    top = logits.topk(min(_TOP_LOGITS, num_labels), dim=-1).values
    smallest = logits.masked_fill(logits == -math.inf, math.inf).amin(-1, keepdim=True)
    scores = torch.stack([SCORES[name](logits, 1.0) for name in ROUTER_READS], -1)
    features = [scores, torch.where(top == -math.inf, smallest, top)]
    if num_labels <= _MAX_PROBABILITIES:
        features.append(logits.softmax(-1))
    return torch.cat(features, -1)


class RouterHead(nn.Module):
    """Predicts how much better the Super's answer is: ridge regression on standardised features, in closed form.

    For answers that are right or wrong the gain is P(the Super is right) - P(the Swift is right), by which the best
    rule defers; for texts it is one of quality. Generalised cross-validation chooses the penalty. A hidden state of any
    width is scaled to weigh as much as a single feature.

    Source: Jitkrittum et al., NeurIPS 2023, for what to predict; Golub, Heath and Wahba, Technometrics 1979.

    Args:
        width: Number of features; the last ``hidden`` of them are a hidden state.
        hidden: Width of the hidden state, or 0.
        later: Features before the hidden state that heads of earlier files do not have, and so do not count.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    fold_weight: Tensor
    fold_bias: Tensor
    fitted: Tensor

    def __init__(self, width: int, hidden: int = 0, later: int = 0) -> None:
        super().__init__()
        self.width, self.hidden, self.later = width, hidden, later
        sizes = {"mean": (width,), "scale": (width,), "weight": (width,), "bias": (1,)}
        for name, size in (sizes | {"fold_weight": (FOLDS, width), "fold_bias": (FOLDS,)}).items():
            self.register_buffer(name, torch.zeros(size))
        self.register_buffer("fitted", torch.zeros(1))

    def widen(self, state: dict[str, Any], prefix: str) -> None:
        """Give the head of an earlier file, by names with this prefix, weights of 0 for the ``later`` features."""
        start = self.width - self.hidden - self.later
        for name in ("mean", "scale", "weight", "fold_weight"):
            value = state.get(prefix + name)
            if value is not None and value.shape[-1] == self.width - self.later:
                added = value.new_zeros(*value.shape[:-1], self.later)
                state[prefix + name] = torch.cat([value[..., :start], added, value[..., start:]], -1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.widen(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, features: Tensor, fold: Tensor | None = None) -> Tensor:
        """Return the expected gain from deferring, float32 ``(N,)``; larger is harder.

        Args:
            features: Shape ``(N, F)``.
            fold: The fold of examples that were fitted, int64 ``(N,)``: each is scored by the fit without its fold.
        """
        with torch.autocast(features.device.type, enabled=False):
            x = (features.detach().float() - self.mean.float()) * self.scale.float()
            if fold is None:
                return x @ self.weight.float() + self.bias.float()
            gain: Tensor = (x * self.fold_weight.float()[fold]).sum(-1) + self.fold_bias.float()[fold]
            return gain

    @torch.no_grad()
    def fit(
        self,
        features: Tensor,
        gain: Tensor,
        fold: Tensor,
        candidates: dict[str, list[int]] | None = None,
        simple: str | None = None,
        expected: Tensor | None = None,
        each: Each = iter,
    ) -> dict[str, Any]:
        """Learn from examples that the Swift was not trained on.

        Args:
            features: Shape ``(N, F)``.
            gain: How much better the Super's answer is, shape ``(N,)``.
            fold: Which of the :data:`FOLDS` each example is in, int64 ``(N,)``; equal texts share a fold.
            candidates: Sets of feature columns to choose from, by name; by default one set with all features.
            simple: The candidate of a single feature that is used unless another is better with 95% confidence.
            expected: A less noisy :func:`expected_gain`, ``(N,)``, to fit and to compare candidates by.
            each: Wraps the loops over candidates and over resamples.

        Returns:
            A report for ``elang.json``: ``reads`` (the chosen candidate), ``why``, ``examples``, ``mean_gain``,
            ``learned_from``, and the held-out :func:`gain_area` of all candidates by what they learned from. With
            ``expected`` also ``areas_by_answers``, by the gain: the chosen one's is not below the simple one's.
        """
        x, y, fold = features.double().cpu(), gain.double().cpu(), fold.cpu()
        target = y if expected is None else expected.double().cpu()
        mean, scale = x.mean(0), x.std(0, correction=0)
        # A constant feature gets scale 0.
        scale = torch.where(scale > 1e-6 * mean.abs().clamp_min(1e-6), 1 / scale, 0.0)
        if self.hidden:
            scale[-self.hidden :] /= math.sqrt(self.hidden)
        x = (x - mean) * scale
        candidates = candidates or {"all features": list(range(self.width))}
        fits = {
            name: _cross_fit(x, y, target, fold, columns, name == simple) for name, columns in each(candidates.items())
        }
        held_out = {name: predictions for name, (_, predictions) in fits.items()}
        chosen, report = _choose(held_out, target, simple, each)
        if expected is not None and simple is not None:
            areas = {name: float(gain_area(held_out[name], y)) for name in {chosen, simple}}
            report["areas_by_answers"] = areas
            if areas[chosen] < areas[simple]:
                report["why"] = f"from {chosen} it did better by the Super's probabilities, but worse by right answers"
                chosen = report["reads"] = simple
        (weight, bias), _ = fits[chosen]
        # In float32, whatever type the model was trained in.
        state = {"mean": mean, "scale": scale, "weight": weight[-1], "bias": bias[-1:]}
        state |= {"fold_weight": weight[:-1], "fold_bias": bias[:-1], "fitted": torch.ones(1)}
        for name, value in state.items():
            setattr(self, name, value.float().to(self.bias.device))
        report["learned_from"] = "the gain" if expected is None else "the Super's probabilities"
        return report | {"examples": len(y), "mean_gain": float(y.mean())}


def _choose(held_out: dict[str, Tensor], gain: Tensor, simple: str | None, each: Each) -> tuple[str, dict[str, Any]]:
    """The candidate with the largest area on held-out examples, or the simple one where that may be chance."""
    areas = {name: float(gain_area(score, gain)) for name, score in held_out.items()}
    best = max(areas, key=lambda name: -math.inf if math.isnan(areas[name]) else areas[name])
    report: dict[str, Any] = {"reads": best, "areas": areas, "why": _BEST}
    if math.isnan(areas[best]):
        best = simple or best
        return best, report | {"reads": best, "why": "there is nothing to gain on the held-out examples"}
    if simple is None or best == simple:
        return best, report
    parts = []
    for seed in each(range(_RESAMPLES // 100)):
        weights = resamples(len(gain), 100, seed)
        parts.append(gain_area(held_out[best], gain, weights) - gain_area(held_out[simple], gain, weights))
    differences = torch.cat(parts)
    differences = differences[~differences.isnan()]
    bound = float(differences.quantile(1 - _CONFIDENCE)) if len(differences) else math.nan
    report["better_by_at_least"] = bound
    if bound > 0:
        return best, report | {"why": f"{_BEST}: better than {simple} with {_CONFIDENCE:.0%} confidence"}
    why = f"from {best} it did better on {len(gain)} held-out examples, but that may be chance"
    return simple, report | {"reads": simple, "why": why}


def _cross_fit(
    x: Tensor, y: Tensor, target: Tensor, fold: Tensor, columns: list[int], simple: bool
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Weights ``(FOLDS + 1, F)`` and biases of the fits without each fold and to all, and held-out predictions."""
    weight, bias = x.new_zeros(FOLDS + 1, x.shape[1]), y.mean().repeat(FOLDS + 1)
    for k in range(FOLDS + 1):
        # A single score is scaled to the gain by all examples, so that its order is the same in every fold.
        rows = fold != k if not simple and (fold != k).sum() > 1 else torch.ones_like(fold, dtype=torch.bool)
        part, centre = x[rows][:, columns], x[rows][:, columns].mean(0)
        fitted = _ridge(part - centre, (y if simple else target)[rows])
        if simple:
            fitted = fitted.clamp_min(0.01)
        # The mean of all examples: the mean of the others is lower where the fold's own is higher.
        weight[k, columns], bias[k] = fitted, y.mean() - centre @ fitted
    held_out = (x * weight[fold]).sum(-1) + bias[fold]
    if not simple:
        # Correct predictions that vary too much, or too little, on held-out examples.
        centred = held_out - held_out.mean()
        slope = (centred @ (y - y.mean()) / centred.square().sum().clamp_min(1e-12)).clamp(0.05, 2)
        weight, bias = weight * slope, y.mean() + slope * (bias - held_out.mean())
        held_out = y.mean() + slope * centred
    return (weight, bias), held_out


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """Weights ``(F,)`` of centred features ``(N, F)`` with the penalty of the least generalised CV error."""
    y = y - y.mean()
    # By the eigenvectors of X'X, which is small for any number of examples.
    values, vectors = torch.linalg.eigh(x.T @ x)
    values, along = values.clamp_min(0), vectors.T @ (x.T @ y)
    # With a penalty far above the largest value, differences of predictions vanish in float32's rounding; with one far
    # below the smallest, the fit learns from rounding errors in the features.
    penalties = len(x) * torch.logspace(-4, 1, 31, dtype=torch.float64)[:, None]
    residual = y.square().sum() - (along.square() * (values + 2 * penalties) / (values + penalties).square()).sum(-1)
    freedom = len(x) - 1 - (values / (values + penalties)).sum(-1)
    error = residual.clamp_min(0) / freedom.clamp_min(1e-9).square()
    weights: Tensor = vectors @ (along / (values + penalties[int(error.argmin())]))
    return weights
