"""The router head beside the Swift, which learns what deferring gains.

It is fitted in closed form after the Swift, on the slice of the training file that neither model was trained on. Its
scores on this slice come from fits to the other folds of it, so that thresholds can be chosen there, too.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from elang.method.bootstrap import gain_area, resamples
from elang.method.scores import ROUTER_READS, SCORES

TOP_LOGITS = 3
_MOST_PROBABILITIES = 8
_CONFIDENCE, _RESAMPLES = 0.95, 1000


def expected_gain(super_logits: Tensor, super_: Tensor, swift: Tensor) -> Tensor:
    """What deferring gains by the Super's own probabilities: how much more probable it finds its answer.

    The mean of the gain over labels that are drawn from the Super's distribution. It is wrong where the Super is, but
    tells of every example how much there is to gain, where right and wrong answers differ on a few only.

    Args:
        super_logits: Shape ``(N, C)``; ``-inf`` marks a choice that an example does not have.
        super_: The Super's answers, int64 ``(N,)``, -1 for one that names no class.
        swift: The Swift's.

    Returns:
        float64, shape ``(N,)``.

    Source:
        The difference of probabilities of Narasimhan et al., NeurIPS 2022, with the Super's in the labels' place.

    >>> expected_gain(torch.tensor([[0.0, 0.0], [0.0, 99.0]]), torch.tensor([0, 1]), torch.tensor([1, 0]))
    tensor([0., 1.], dtype=torch.float64)
    """
    p = super_logits.double().softmax(-1)
    own, other = (p.gather(1, answer.clamp_min(0)[:, None])[:, 0] * (answer >= 0) for answer in (super_, swift))
    return own - other


def num_logit_features(num_labels: int) -> int:
    """Number of :func:`logit_features` of ``C`` logits."""
    if num_labels == 1:
        return 1
    return len(ROUTER_READS) + min(TOP_LOGITS, num_labels) + (num_labels if num_labels <= _MOST_PROBABILITIES else 0)


def logit_features(logits: Tensor, num_labels: int) -> Tensor:
    """What the logits alone say of an input's difficulty.

    Args:
        logits: Shape ``(N, C)``; ``-inf`` marks a choice that an example does not have.
        num_labels: The task's ``C``; a batch in which all examples have fewer choices may be narrower.

    Returns:
        float32 ``(N, F)``, finite: the scores of :data:`~elang.method.scores.ROUTER_READS`, the largest logits in
        descending order (the smallest one again for choices that are missing), and the probabilities of up to 8
        classes. Of one output (regression) the value itself, ``(N, 1)``.

    >>> logit_features(torch.zeros(5, 2), 2).shape
    torch.Size([5, 10])
    """
    logits = nn.functional.pad(logits.detach().float(), (0, num_labels - logits.shape[-1]), value=-math.inf)
    if num_labels == 1:
        return logits
    top = logits.topk(min(TOP_LOGITS, num_labels), dim=-1).values
    smallest = logits.masked_fill(logits == -math.inf, math.inf).amin(-1, keepdim=True)
    found = [
        torch.stack([SCORES[name](logits, 1.0) for name in ROUTER_READS], -1),
        torch.where(top == -math.inf, smallest, top),
    ]
    if num_labels <= _MOST_PROBABILITIES:
        found.append(logits.softmax(-1))
    return torch.cat(found, -1)


class RouterHead(nn.Module):
    """Predicts how much better the Super's answer is: ridge regression on standardised features, in closed form.

    Of an answer that is right or wrong the gain is P(the Super is right) - P(the Swift is right), by which the best
    rule defers; of a text its quality. The penalty is the one with the least generalised cross-validation error. The
    hidden state counts as much as a single feature before anything is learned, however wide it is.

    Args:
        width: Number of features; the last ``hidden`` are a hidden state's.
        hidden: Width of that, or 0.

    Source:
        Jitkrittum et al., NeurIPS 2023, for what to predict; Golub, Heath and Wahba, Technometrics 1979.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    fold_weight: Tensor
    fold_bias: Tensor
    fitted: Tensor

    def __init__(self, width: int, hidden: int = 0) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        sizes = {"mean": (width,), "scale": (width,), "weight": (width,), "bias": (1,)}
        for name, size in (sizes | {"fold_weight": (FOLDS, width), "fold_bias": (FOLDS,)}).items():
            self.register_buffer(name, torch.zeros(size))
        self.register_buffer("fitted", torch.zeros(1))

    def forward(self, features: Tensor, fold: Tensor | None = None) -> Tensor:
        """Return the expected gain from deferring.

        Args:
            features: Shape ``(N, F)``.
            fold: Of examples that it may have learned from, int64 ``(N,)``: each is answered by the fit without its
                fold.

        Returns:
            float32, shape ``(N,)``; larger is harder.
        """
        with torch.autocast(features.device.type, enabled=False):
            own = (self.mean, self.scale, self.weight, self.bias, self.fold_weight, self.fold_bias)
            mean, scale, weight, bias, fold_weight, fold_bias = (buffer.float() for buffer in own)
            x = (features.detach().float() - mean) * scale
            if fold is None:
                return x @ weight + bias
            gain: Tensor = (x * fold_weight[fold]).sum(-1) + fold_bias[fold]
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
    ) -> dict[str, Any]:
        """Learn from examples that the Swift was not trained on.

        Args:
            features: Shape ``(N, F)``.
            gain: What deferring each would have gained, shape ``(N,)``.
            fold: Which of the :data:`FOLDS` parts each is in, int64 ``(N,)``: examples of one text are in the same one.
            candidates: By name, the features that it may read; by default all.
            simple: The one of them, of a single feature, that is taken unless another is better with 95% confidence.
            expected: A less noisy estimate of the gain (:func:`expected_gain`), ``(N,)``: it is learned from, and
                candidates are compared by it; predictions are then put on the gain's scale.

        Returns:
            What was found, for ``elang.json``: ``reads``, ``examples``, the ``areas`` of all candidates between random
            (0) and oracle (1) on examples that they had not seen, by what was learned from (with ``expected`` also
            ``areas_by_answers``, by the gain, of the best and the simple one: it must not be smaller), and ``why``.
        """
        x, y, fold = features.double().cpu(), gain.double().cpu(), fold.cpu()
        taught = y if expected is None else expected.double().cpu()
        mean, scale = x.mean(0), x.std(0, correction=0)
        # What never varies tells nothing.
        scale = torch.where(scale > 1e-6 * mean.abs().clamp_min(1e-6), 1 / scale, 0.0)
        if self.hidden:
            scale[-self.hidden :] /= math.sqrt(self.hidden)
        x = (x - mean) * scale
        candidates = candidates or {"all features": list(range(self.width))}
        fits = {name: cross_fitted(x, y, taught, fold, columns, name == simple) for name, columns in candidates.items()}
        held_out = {name: found[1] for name, found in fits.items()}
        chosen, report = _choose(held_out, taught, simple)
        if expected is not None and simple is not None:
            report["areas_by_answers"] = {name: float(gain_area(held_out[name], y)) for name in {chosen, simple}}
            if report["areas_by_answers"][chosen] < report["areas_by_answers"][simple]:
                why = f"{chosen} has a larger area by the Super's probabilities, and a smaller one by right answers"
                chosen, report = simple, report | {"reads": simple, "why": why}
        (weight, bias), _ = fits[chosen]
        # In float32, whatever the model was trained in.
        state = {"mean": mean, "scale": scale, "weight": weight[-1], "bias": bias[-1:]}
        state |= {"fold_weight": weight[:-1], "fold_bias": bias[:-1], "fitted": torch.ones(1)}
        for name, value in state.items():
            setattr(self, name, value.float().to(self.bias.device))
        report["learned_from"] = "the gain" if expected is None else "the Super's probabilities"
        return report | {"examples": len(y), "mean_gain": float(y.mean())}


def _choose(held_out: dict[str, Tensor], gain: Tensor, simple: str | None) -> tuple[str, dict[str, Any]]:
    """The candidate with the largest area on examples not seen, or the simple one where that may be chance."""
    areas = {name: float(gain_area(score, gain)) for name, score in held_out.items()}
    best = max(areas, key=lambda name: -math.inf if math.isnan(areas[name]) else areas[name])
    report: dict[str, Any] = {"reads": best, "areas": areas, "why": "the largest area on examples not seen"}
    if math.isnan(areas[best]):
        best = simple or best
        return best, report | {"reads": best, "why": "there is nothing to gain on the held-out examples"}
    if simple is None or best == simple:
        return best, report
    parts = []
    for seed in range(_RESAMPLES // 100):
        weights = resamples(len(gain), 100, seed)
        parts.append(gain_area(held_out[best], gain, weights) - gain_area(held_out[simple], gain, weights))
    better = torch.cat(parts)
    better = better[~better.isnan()]
    bound = float(better.quantile(1 - _CONFIDENCE)) if len(better) else math.nan
    report["better_by_at_least"] = bound
    if bound > 0:
        return best, report | {"why": f"a larger area than {simple} with {_CONFIDENCE:.0%} confidence"}
    why = f"{best} may have a larger area than {simple} by chance: {len(gain)} held-out examples cannot tell"
    return simple, report | {"reads": simple, "why": why}


FOLDS = 5


def cross_fitted(
    x: Tensor, y: Tensor, taught: Tensor, fold: Tensor, columns: list[int], simple: bool
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Weights ``(FOLDS + 1, F)`` and biases of the fits without each fold and to all, and held-out predictions."""
    weight, bias = x.new_zeros(FOLDS + 1, x.shape[1]), y.mean().repeat(FOLDS + 1)
    for k in range(FOLDS + 1):
        # A single score is put on the gain's scale, by all: its order must be the same in every fold.
        rows = fold != k if not simple and (fold != k).sum() > 1 else torch.ones_like(fold, dtype=torch.bool)
        own, centre = x[rows][:, columns], x[rows][:, columns].mean(0)
        found = _ridge(own - centre, (y if simple else taught)[rows])
        if simple:
            found = found.clamp_min(0.01)
        # The mean of all, for that of the others is the lower the higher the fold's own.
        weight[k, columns], bias[k] = found, y.mean() - centre @ found
    held_out = (x * weight[fold]).sum(-1) + bias[fold]
    if not simple:
        # What is too sure of itself, or not enough, on examples that it has not seen.
        centred = held_out - held_out.mean()
        slope = (centred @ (y - y.mean()) / centred.square().sum().clamp_min(1e-12)).clamp(0.05, 2)
        weight, bias = weight * slope, y.mean() + slope * (bias - held_out.mean())
        held_out = y.mean() + slope * centred
    return (weight, bias), held_out


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """Weights ``(F,)`` of centred features ``(N, F)`` with the penalty of the least generalised CV error."""
    y = y - y.mean()
    # By the eigenvectors of X'X, which is small however many examples there are.
    values, vectors = torch.linalg.eigh(x.T @ x)
    values, along = values.clamp_min(0), vectors.T @ (x.T @ y)
    # Far above the largest value the order of the predictions stays, and their differences drown in float32's rounding;
    # far below the smallest one, rounding in the features is learned from.
    penalties = len(x) * torch.logspace(-4, 1, 31, dtype=torch.float64)[:, None]
    residual = y.square().sum() - (along.square() * (values + 2 * penalties) / (values + penalties).square()).sum(-1)
    freedom = len(x) - 1 - (values / (values + penalties)).sum(-1)
    error = residual.clamp_min(0) / freedom.clamp_min(1e-9).square()
    found: Tensor = vectors @ (along / (values + penalties[int(error.argmin())]))
    return found
