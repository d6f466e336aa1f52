"""What certificates of some sizes would say, by drawing their examples from an evaluation that is there, a pilot."""

from dataclasses import dataclass

import torch
from torch import Tensor

from elang.errors import InputError
from elang.evaluation.slices import Slice
from elang.method.bounds import least_examples
from elang.method.certificate import certify_drop, certify_regret, regret_at
from elang.method.deferral import route

# Draws of a size, the largest size, and thresholds that are tried.
_REPEATS, _LARGEST, _LOOKS = 100, 200_000, 1000


@dataclass(frozen=True)
class Drawn:
    """What certificates on so many examples say.

    Attributes:
        examples: Independent ones.
        certified: The share of draws in which a threshold is certified that keeps something.
        deferred: The deferred share in a tenth, a half and nine tenths of the draws; 1 where nothing is certified.
    """

    examples: int
    certified: float
    deferred: tuple[float, float, float]


def sizes_for(allowed: float, confidence: float) -> list[int]:
    """Sizes worth a look: from the least that certifies anything on."""
    least = least_examples(allowed, confidence)
    return [least * factor for factor in (1, 2, 4, 8, 16) if least * factor <= _LARGEST]


def draw_certificates(
    pilot: Slice, kind: str, allowed: float, sizes: list[int], confidence: float, repeats: int = _REPEATS
) -> list[Drawn]:
    """Certify a ``max_regret`` or a ``max_drop`` on examples drawn from a pilot, with replacement.

    The pilot stands for all inputs: what it does not show, such as rare errors, the plan does not, either.
    """
    if not pilot.bounded:
        raise InputError(
            "Regret and drop can be certified where each answer is worth 0 to 1; a regression's errors not."
        )
    certify, exact = certify_regret if kind == "max_regret" else certify_drop, pilot.worth == "right answers"
    generator = torch.Generator().manual_seed(0)
    plans = []
    for size in sizes:
        shares = []
        for _ in range(repeats):
            rows, unit = _rows(pilot, size, generator)
            found = certify(pilot.score[rows], pilot.gain[rows], allowed, confidence, exact, unit)
            shares.append(1.0 if found is None else found.deferred_share)
        ranked = sorted(shares)
        deferred = tuple(ranked[int(share * (repeats - 1))] for share in (0.1, 0.5, 0.9))
        plans.append(Drawn(size, sum(share < 1 for share in shares) / repeats, deferred))  # type: ignore[arg-type]
    return plans


def _rows(pilot: Slice, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Rows of so many units drawn with replacement, and the unit of each."""
    if pilot.unit is None:
        return torch.randint(len(pilot.key), (size,), generator=generator), None
    _, place, count = pilot.unit.unique(return_inverse=True, return_counts=True)
    order, start = place.argsort(stable=True), torch.nn.functional.pad(count.cumsum(0), (1, 0))
    drawn = torch.randint(len(count), (size,), generator=generator).tolist()
    parts = [order[start[unit] : start[unit + 1]] for unit in drawn]
    lengths = torch.tensor([len(part) for part in parts])
    return torch.cat(parts), torch.arange(size).repeat_interleave(lengths)


def least_deferral(pilot: Slice, kind: str, allowed: float) -> float:
    """The least share to defer with which the pilot itself keeps the bound: the end of what more examples bring."""
    best, scores = 1.0, pilot.score.double().unique()
    scores = scores[torch.linspace(0, len(scores) - 1, min(len(scores), _LOOKS)).round().long()]
    for threshold in scores.tolist():
        if kind == "max_regret":
            lost = float(regret_at(pilot.score, pilot.gain, threshold).mean())
        else:
            lost = float((pilot.gain * ~route(pilot.score, threshold)).mean())
        if lost <= allowed:
            best = min(best, float(route(pilot.score, threshold).double().mean()))
    return best
