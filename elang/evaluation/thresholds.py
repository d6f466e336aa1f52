"""Thresholds by name, chosen on a held-out slice."""

import math
from typing import Any

import torch
from torch import Tensor

from elang.evaluation.curves import pair_curves
from elang.evaluation.pair import PairAnswers
from elang.method.curve.exact import operating_curve
from elang.method.curve.reading import at_parity, at_share
from elang.method.quality.metric import Quality
from elang.records.manifest import threshold_entry

FRACTIONS = {"parity": 1.0, "99.5%": 0.995, "99%": 0.99}
BUDGETS = {"25% of the FLOPs": 0.25, "50% of the FLOPs": 0.5, "75% of the FLOPs": 0.75}
SHARES = {"defer 10%": 0.1, "defer 20%": 0.2, "defer 30%": 0.3, "defer 50%": 0.5}


def choose_thresholds(answers: PairAnswers, quality: Quality, chosen_on: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Choose each score's named thresholds on a held-out slice, for :class:`elang.records.manifest.Manifest`."""
    chosen: dict[str, dict[str, dict[str, Any]]] = {}
    for name, curve in pair_curves(answers, quality).items():
        if name in ("random", "oracle"):
            continue
        points = {
            key: (
                at_parity(curve, fraction),
                f"least deferral that reaches {fraction:.1%} of the Super's {quality.name}",
            )
            for key, fraction in FRACTIONS.items()
        }
        points |= {
            key: (at_share(curve, share), f"most deferral up to {share:.0%} of the inputs")
            for key, share in SHARES.items()
        }
        chosen[name] = {
            key: threshold_entry(curve[index], rule, chosen_on, len(answers)) for key, (index, rule) in points.items()
        }
    return chosen


def share_thresholds(scores: dict[str, Tensor], chosen_on: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Choose thresholds by deferred share alone, where no Super's answers are at hand."""
    chosen: dict[str, dict[str, dict[str, Any]]] = {}
    for name, score in scores.items():
        blank = torch.zeros(len(score), 1)
        curve = operating_curve(score, blank, blank, lambda sums: torch.full(sums.shape[:-1], math.nan).double())
        chosen[name] = {
            key: threshold_entry(
                curve[at_share(curve, share)],
                f"most deferral up to {share:.0%} of the inputs",
                chosen_on,
                len(score),
            )
            for key, share in SHARES.items()
        }
    return chosen
