"""Ridge regression in closed form, cross-fitted over folds: what a router head is fitted by."""

import torch
from torch import Tensor

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
