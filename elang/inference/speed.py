"""A pair timed on real inputs, beside what it saves in FLOPs."""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from elang.backends.generator import Seq2Seq
from elang.backends.text_model import TextModel
from elang.inference.prediction import Prediction
from elang.inference.predictor import JointPredictor
from elang.method.scores import BEFORE_DECODER


def time_pair(
    predictor: JointPredictor, rows: list[Any], shares: list[float], single: list[Any], repeats: int
) -> dict[str, Any]:
    """Time a pair.

    Args:
        predictor: The pair.
        rows: Inputs for the passes over many.
        shares: Deferred shares.
        single: Inputs that are answered one by one.
        repeats: Passes of each, in turns, after one that is not counted.

    Returns:
        For ``swift``, ``super`` and each share: seconds an input as ``median``, ``least`` and ``most`` of the passes,
        ``one by one`` (median and 95th percentile), the ``deferred`` share, ``speedup`` over the Super as measured and
        as FLOPs ``predict`` it, and their ``ratio``.
    """
    scores = torch.tensor([one.score for one in predictor.map(rows)])
    costs = {
        name: flops_of(predictor, model, rows)
        for name, model in (("swift", predictor.swift), ("super", predictor.super_))
    }
    super_cost, kept = costs["super"]["flops"], costs["swift"]["flops"] + costs["swift"]["score_flops"]
    away = kept
    if predictor.score in BEFORE_DECODER:
        # Known before the decoder runs, and of a kept input nothing else is scored.
        kept, away = costs["swift"]["flops"], costs["swift"]["early_flops"]
    thresholds = {f"defer {share:.0%}": _threshold(scores, share) for share in shares}

    def stream(threshold: float, some: list[Any]) -> Any:
        predictor.threshold = threshold
        return list(predictor.map(some))

    def one(threshold: float, some: list[Any]) -> Any:
        predictor.threshold = threshold
        return predictor(some)

    calls: dict[str, Callable[[list[Any]], Any]] = {"super": lambda some: list(predictor.super_map(some))}
    limits = {"swift": math.inf} | thresholds
    calls |= {name: partial(stream, threshold) for name, threshold in limits.items()}
    many: dict[str, list[float]] = {name: [] for name in calls}
    ones: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            seconds = _timed(call, rows, predictor.device)
            if repeat:
                many[name].append(seconds / len(rows))
    warm = min(10, len(single))
    alone: dict[str, Callable[[list[Any]], Any]] = {name: partial(one, t) for name, t in limits.items()}
    alone["super"] = lambda some: predictor.ask_super(predictor.rows(some))
    for i, row in enumerate(single[:warm] + single):
        for name, call in alone.items():
            seconds = _timed(call, [row], predictor.device)
            if i >= warm:
                ones[name].append(seconds)
    found: dict[str, Any] = {"inputs": len(rows), "device": str(predictor.device), "passes": {}}
    base = statistics.median(many["super"])
    for name, passes in many.items():
        hard = scores > thresholds[name] if name in thresholds else torch.full((len(rows),), name == "super")
        own = super_cost.sum()
        if name != "super":
            own = kept[~hard].sum() + (away + super_cost)[hard].sum()
        entry: dict[str, Any] = {
            "deferred": float(hard.double().mean()),
            "median": statistics.median(passes),
            "least": min(passes),
            "most": max(passes),
            "speedup": base / statistics.median(passes),
            "predicted": float(super_cost.sum() / own),
        }
        entry["ratio"] = entry["speedup"] / entry["predicted"]
        if single:
            ordered = sorted(ones[name])
            entry["one by one"] = {
                "median": statistics.median(ordered),
                "95%": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
                "speedup": statistics.fmean(ones["super"]) / statistics.fmean(ordered),
            }
        found["passes"][name] = entry
    return found


def differences(
    predictor: JointPredictor, plain: JointPredictor, rows: list[Any], shares: list[float]
) -> dict[str, dict[str, float]]:
    """What two ways of the same pair say otherwise, at the thresholds that give these deferred shares.

    Returns:
        For each share ``labels`` and ``decisions``, how many inputs are answered, or routed, otherwise, and
        ``distance``: how far from the threshold, in the plain way's score, such an input lies at most.
    """
    scores = torch.tensor([one.score for one in plain.map(rows)], dtype=torch.float64)
    found = {}
    for share in shares:
        threshold = predictor.threshold = plain.threshold = _threshold(scores, share)
        found[f"defer {share:.0%}"] = disagreement(predictor.map(rows), plain.map(rows), threshold)
    return found


def disagreement(found: Iterable[Prediction], plain: Iterable[Prediction], threshold: float) -> dict[str, float]:
    """What two ways of a pair say otherwise at a threshold: an entry of :func:`differences`."""
    both = list(zip(found, plain, strict=True))
    return {
        # A regression's values hardly ever agree to the last bit.
        "labels": sum(a.label != b.label for a, b in both if isinstance(a.label, str)),
        "decisions": sum(a.answered_by != b.answered_by for a, b in both),
        "distance": max((abs(b.score - threshold) for a, b in both if a.answered_by != b.answered_by), default=0.0),
    }


def _threshold(scores: torch.Tensor, share: float) -> float:
    """The threshold above which about this share of the scores lies."""
    place = len(scores) - round(share * len(scores))
    ordered = scores.double().sort().values
    return -math.inf if place == 0 else float(ordered[place - 1])


def _timed(call: Callable[[list[Any]], Any], rows: list[Any], device: torch.device) -> float:
    start = time.perf_counter()
    call(rows)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@torch.inference_mode()
def flops_of(predictor: JointPredictor, model: TextModel, rows: list[Any]) -> dict[str, torch.Tensor]:
    """What a model spends on each input by its true length, float64 ``(N,)`` each.

    ``flops``, ``early_flops`` (of one that is deferred before the decoder) and ``score_flops`` (of a score after it,
    where that is not read off on the way).
    """
    zero = torch.zeros(len(rows), dtype=torch.float64)
    found = {name: zero.clone() for name in ("flops", "early_flops", "score_flops")}
    for chosen, inputs in predictor.batches(model, rows):
        steps = None
        if isinstance(model, Seq2Seq):
            steps = model.generate(model.encode(inputs), scored=False).steps
        for name, cost in model.flops(inputs, steps=steps).items():
            found[name][chosen] = cost.cpu()
    return found
