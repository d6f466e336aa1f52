"""Times a pair on real inputs, beside what it saves in FLOPs."""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from elang.backends.text_model import TextModel
from elang.inference.predictor import JointPredictor
from elang.inference.stream import Prediction
from elang.method.scores import BEFORE_DECODER
from elang.terminal import Progress


def time_pair(
    predictor: JointPredictor, rows: list[Any], shares: list[float], single: list[Any], repeats: int
) -> dict[str, Any]:
    """Time Swift, Super, and the pair at deferred ``shares``, in turns, on ``rows`` together and ``single`` one by one.

    Returns:
        For ``swift``, ``super`` and each share: seconds an input as ``median``, ``least`` and ``most`` of the
        ``repeats`` after an uncounted one, ``one by one`` (median and 95th percentile), the ``deferred`` share,
        ``speedup`` over the Super as measured and as ``predicted`` from FLOPs, and their ``ratio``.
    """
    scores = torch.tensor([answer.score for answer in predictor.map(rows)])
    thresholds = {"swift": math.inf} | {f"defer {share:.0%}": share_threshold(scores, share) for share in shares}
    deferred = {name: scores > threshold for name, threshold in thresholds.items()}
    deferred["super"] = torch.full((len(rows),), True)
    predicted = _predicted_speedups(predictor, rows, deferred)
    together, alone = _seconds(predictor, thresholds, rows, single=single, repeats=repeats)
    super_median = statistics.median(together["super"])
    passes: dict[str, dict[str, Any]] = {}
    for name, seconds in together.items():
        speedup = super_median / statistics.median(seconds)
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
            ordered = sorted(alone[name])
            passes[name]["one by one"] = {
                "median": statistics.median(ordered),
                "95%": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
                "speedup": statistics.fmean(alone["super"]) / statistics.fmean(ordered),
            }
    return {"inputs": len(rows), "device": str(predictor.device), "passes": passes}


def _seconds(
    predictor: JointPredictor, thresholds: dict[str, float], rows: list[Any], *, single: list[Any], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds an input of the Super alone and at each threshold: answered together, and one by one."""

    def routed(answer: Callable[[list[Any]], Any], threshold: float, texts: list[Any]) -> None:
        predictor.set_threshold(threshold)
        answer(texts)

    def measured(calls: dict[str, Callable[[list[Any]], Any]], inputs: list[list[Any]], warm_up: int) -> Any:
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for number, texts in enumerate(inputs):
            for name, call in calls.items():
                start = time.perf_counter()
                call(texts)
                if predictor.device.type == "cuda":
                    torch.cuda.synchronize(predictor.device)
                if number >= warm_up:
                    seconds[name].append((time.perf_counter() - start) / len(texts))
                # Between two passes, so that no time is taken of it.
                progress.add(len(texts))
        return seconds

    stream: dict[str, Any] = {"super": lambda texts: list(predictor.super_map(texts))}
    alone: dict[str, Any] = {"super": lambda texts: predictor.ask_super(predictor.rows(texts))}
    for name, threshold in thresholds.items():
        stream[name] = partial(routed, lambda texts: list(predictor.map(texts)), threshold)
        alone[name] = partial(routed, predictor, threshold)
    warm_up = min(10, len(single))
    passes = len(stream) * ((repeats + 1) * len(rows) + warm_up + len(single))
    with Progress(passes, "answers") as progress:
        together = measured(stream, [rows] * (repeats + 1), 1)
        return together, measured(alone, [[row] for row in single[:warm_up] + single], warm_up)


def _predicted_speedups(
    predictor: JointPredictor, rows: list[Any], deferred: dict[str, torch.Tensor]
) -> dict[str, float]:
    """The FLOPs of the Super alone over those of each way; ``deferred``, bool ``(N,)``, are the inputs it defers."""
    swift, super_ = (flops_of(predictor, model, rows) for model in (predictor.swift, predictor.super_))
    kept_cost = deferred_cost = swift["flops"] + swift["score_flops"]
    if predictor.score in BEFORE_DECODER:
        # The score is known before the decoder runs, so a kept input takes no other score.
        kept_cost, deferred_cost = swift["flops"], swift["early_flops"]
    cost = {
        name: kept_cost[~hard].sum() + (deferred_cost + super_["flops"])[hard].sum() for name, hard in deferred.items()
    }
    cost["super"] = super_["flops"].sum()
    return {name: float(cost["super"] / flops) for name, flops in cost.items()}


def differences(
    predictor: JointPredictor, reference: JointPredictor, rows: list[Any], shares: list[float]
) -> dict[str, dict[str, float]]:
    """The :func:`disagreement` of two predictors, at the thresholds that give these shares in the reference."""
    scores = torch.tensor([answer.score for answer in reference.map(rows)], dtype=torch.float64)
    by_share = {}
    for share in shares:
        threshold = share_threshold(scores, share)
        predictor.set_threshold(threshold)
        reference.set_threshold(threshold)
        by_share[f"defer {share:.0%}"] = disagreement(predictor.map(rows), reference.map(rows), threshold)
    return by_share


def disagreement(
    predictions: Iterable[Prediction], reference: Iterable[Prediction], threshold: float
) -> dict[str, float]:
    """How many ``labels`` and routing ``decisions`` of a pair differ from a reference, at a threshold.

    ``distance`` is the largest from the threshold to the reference's score, of inputs whose decision differs.
    """
    pairs = list(zip(predictions, reference, strict=True))
    distances = [abs(b.score - threshold) for a, b in pairs if a.answered_by != b.answered_by]
    # Values of a regression hardly ever agree to the last bit.
    labels = sum(a.label != b.label for a, b in pairs if isinstance(a.label, str))
    return {"labels": labels, "decisions": len(distances), "distance": max(distances, default=0.0)}


def share_threshold(scores: torch.Tensor, share: float) -> float:
    """The threshold above which about this share of the scores lies."""
    num_kept = len(scores) - round(share * len(scores))
    return -math.inf if num_kept == 0 else float(scores.double().sort().values[num_kept - 1])


@torch.inference_mode()
def flops_of(predictor: JointPredictor, model: TextModel, rows: list[Any]) -> dict[str, torch.Tensor]:
    """A model's FLOPs for each input by its true length, float64 ``(N,)``.

    ``flops``, ``early_flops`` (deferred before the decoder), ``score_flops`` (a score with a pass of its own after it).
    """
    costs = {name: torch.zeros(len(rows), dtype=torch.float64) for name in ("flops", "early_flops", "score_flops")}
    for chosen, inputs in predictor.batches(model, rows):
        for name, cost in model.flops(inputs).items():
            costs[name][chosen] = cost.cpu()
    return costs
