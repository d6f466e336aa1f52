"""A pair timed on real inputs, beside what it saves in FLOPs."""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

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
    thresholds = {f"defer {share:.0%}": _threshold(scores, share) for share in shares}
    # In the order in which they take turns.
    limits = {"swift": math.inf} | thresholds
    deferred = {name: scores > limit for name, limit in thresholds.items()}
    deferred |= {name: torch.full((len(rows),), name == "super") for name in ("super", "swift")}
    predicted = _predicted_speedups(predictor, rows, deferred)
    many, ones = _seconds(predictor, limits, rows, single=single, repeats=repeats)
    base = statistics.median(many["super"])
    passes: dict[str, dict[str, Any]] = {}
    for name, seconds in many.items():
        speedup = base / statistics.median(seconds)
        passes[name] = {
            "deferred": float(deferred[name].double().mean()),
            "median": statistics.median(seconds),
            "least": min(seconds),
            "most": max(seconds),
            "speedup": speedup,
            "predicted": predicted[name],
            "ratio": speedup / predicted[name],
        }
        if single:
            ordered = sorted(ones[name])
            passes[name]["one by one"] = {
                "median": statistics.median(ordered),
                "95%": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
                "speedup": statistics.fmean(ones["super"]) / statistics.fmean(ordered),
            }
    return {"inputs": len(rows), "device": str(predictor.device), "passes": passes}


def _seconds(
    predictor: JointPredictor, limits: dict[str, float], rows: list[Any], *, single: list[Any], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of an input at each threshold and of the Super alone: of many inputs in a pass, and one by one."""

    def stream(threshold: float, some: list[Any]) -> Any:
        predictor.set_threshold(threshold)
        return list(predictor.map(some))

    def one(threshold: float, some: list[Any]) -> Any:
        predictor.set_threshold(threshold)
        return predictor(some)

    streams: dict[str, Callable[[list[Any]], Any]] = {"super": lambda some: list(predictor.super_map(some))}
    streams |= {name: partial(stream, threshold) for name, threshold in limits.items()}
    many: dict[str, list[float]] = {name: [] for name in streams}
    for repeat in range(repeats + 1):
        for name, call in streams.items():
            seconds = _timed(call, rows, predictor.device)
            if repeat:
                many[name].append(seconds / len(rows))
    warm = min(10, len(single))
    alone: dict[str, Callable[[list[Any]], Any]] = {name: partial(one, t) for name, t in limits.items()}
    alone["super"] = lambda some: predictor.ask_super(predictor.rows(some))
    ones: dict[str, list[float]] = {name: [] for name in alone}
    for i, row in enumerate(single[:warm] + single):
        for name, call in alone.items():
            seconds = _timed(call, [row], predictor.device)
            if i >= warm:
                ones[name].append(seconds)
    return many, ones


def _predicted_speedups(
    predictor: JointPredictor, rows: list[Any], deferred: dict[str, torch.Tensor]
) -> dict[str, float]:
    """The FLOPs of the Super alone over those of each way, by which inputs it defers, bool ``(N,)``."""
    swift, super_ = (flops_of(predictor, model, rows) for model in (predictor.swift, predictor.super_))
    kept = away = swift["flops"] + swift["score_flops"]
    if predictor.score in BEFORE_DECODER:
        # Known before the decoder runs, and of a kept input nothing else is scored.
        kept, away = swift["flops"], swift["early_flops"]
    paid = {name: kept[~hard].sum() + (away + super_["flops"])[hard].sum() for name, hard in deferred.items()}
    paid["super"] = super_["flops"].sum()
    return {name: float(paid["super"] / cost) for name, cost in paid.items()}


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
        threshold = _threshold(scores, share)
        for one in (predictor, plain):
            one.set_threshold(threshold)
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
    costs = {name: zero.clone() for name in ("flops", "early_flops", "score_flops")}
    for chosen, inputs in predictor.batches(model, rows):
        for name, cost in model.flops(inputs).items():
            costs[name][chosen] = cost.cpu()
    return costs
