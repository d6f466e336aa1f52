"""Times a pair on real inputs, beside what it saves in FLOPs."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch

from elang.backends.text_model import TextModel
from elang.inference.predictor import JointPredictor
from elang.inference.stream import Prediction
from elang.method.curve.points import Costs
from elang.method.scores import BEFORE_DECODER
from elang.terminal import Progress

# To see how long a pass takes, at most so many inputs are answered first, in this share of the time.
_PILOT, _PILOT_TIME = 32, 0.1
# One by one: the most inputs, uncounted ones before them, and the share of the time.
_SINGLE, _WARM_UP, _SINGLE_TIME = 100, 10, 0.25
# Inputs of a pass: fewer than the first only in a single pass, and at most so many for each second of the time.
_ENOUGH, _MOST = 64, 50


@dataclass(frozen=True)
class Sizes:
    """How much is measured: inputs of a pass, inputs one by one, and passes; ``None`` for what fits into the time."""

    examples: int | None = None
    single: int | None = None
    repeats: int | None = None


def time_inputs(
    predictor: JointPredictor,
    inputs: Iterator[Any],
    shares: list[float],
    named: dict[str, float],
    sizes: Sizes,
    seconds: float,
) -> tuple[list[Any], dict[str, Any]]:
    """Run :func:`time_pair` on as many of the inputs as ``sizes`` gives or, where that is ``None``, as the time allows.

    Returns:
        The inputs of a pass, and the figures; both empty if there are no inputs.
    """
    rows = list(islice(inputs, _PILOT if sizes.examples is None else sizes.examples))
    if not rows:
        return [], {}
    if None in vars(sizes).values():
        sizes = _fitting(sizes, predictor, rows[:_PILOT], shares, named=named, seconds=seconds)
    examples, single, repeats = (getattr(sizes, name) or 0 for name in ("examples", "single", "repeats"))
    rows = [*rows, *islice(inputs, max(0, examples - len(rows)))][:examples]
    return rows, time_pair(predictor, rows, shares, rows[:single], repeats=repeats, named=named)


def _fitting(
    given: Sizes,
    predictor: JointPredictor,
    pilot: list[Any],
    shares: list[float],
    *,
    named: dict[str, float],
    seconds: float,
) -> Sizes:
    """Sizes with which :func:`time_pair` takes about ``seconds``, estimated by two passes over the ``pilot``."""

    def least(call: Callable[[list[Any]], Any], inputs: list[list[Any]]) -> float:
        """The fewest seconds an input takes in a pass, after the first pass, which also sets things up."""
        taken = []
        for rows in inputs:
            start = time.perf_counter()
            call(rows)
            taken.append((time.perf_counter() - start) / len(rows))
            progress.add(len(rows))
        return min(taken[1:])

    answers: list[Prediction] = []
    predictor.set_threshold(math.inf)
    with Progress(None, "answers to see how long one takes", late=True) as progress:
        ones = [[row] for row in (pilot * 4)[:4]]
        one_by_one = least(predictor, ones), least(lambda rows: predictor.ask_super(predictor.rows(rows)), ones)
        # Fewer inputs if a model is slow.
        pilot = pilot[: max(4, int(_PILOT_TIME * seconds / max(one_by_one)))]
        swift = least(lambda rows: answers.extend(predictor.map(rows)), [pilot] * 2), one_by_one[0]
        super_ = least(lambda rows: list(predictor.super_map(rows)), [pilot] * 2), one_by_one[1]
    scores = [float(answer.score or 0) for answer in answers[: len(pilot)]]
    # In a pass the Swift runs at every threshold but -inf, and the Super on what is deferred there, and once alone.
    ways = sum(threshold > -math.inf for threshold in named.values()) + len(shares) + 1
    asked = sum(sum(score > threshold for score in scores) for threshold in named.values()) / len(scores)
    together, alone = (ways * a + (asked + sum(shares) + 1) * b for a, b in zip(swift, super_, strict=True))
    single = given.single
    if single is None:
        single = max(3, min(_SINGLE, int(_SINGLE_TIME * seconds / alone) - _WARM_UP))
    left = seconds - (single + min(_WARM_UP, single)) * alone
    for repeats in (5, 3, 2, 1) if given.repeats is None else (given.repeats,):
        examples = int(left / ((repeats + 1) * together + swift[0]))
        if examples >= (given.examples or _ENOUGH):
            break
    return Sizes(given.examples or max(2, min(examples, int(_MOST * seconds))), single, repeats)


def time_pair(
    predictor: JointPredictor,
    rows: list[Any],
    shares: list[float],
    single: list[Any],
    repeats: int,
    named: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Time Swift, Super, and the pair, in turns, on ``rows`` together and ``single`` one by one.

    The pair runs at the ``named`` thresholds, and at those that defer ``shares`` of the rows.

    Returns:
        For ``swift``, ``super`` and each threshold: seconds an input as ``median``, ``least`` and ``most`` of the
        ``repeats`` after an uncounted one, ``one by one`` (median and 95th percentile), the ``deferred`` share,
        ``speedup`` over the Super as measured and as ``predicted`` from FLOPs, and their ``ratio``.
    """
    predictor.set_threshold(math.inf)
    scores = torch.tensor([answer.score for answer in predictor.map(rows)], dtype=torch.float64)
    thresholds = {"swift": math.inf} | (named or {})
    thresholds |= {f"defer {share:.0%}": share_threshold(scores, share) for share in shares}
    predicted = _predicted_speedups(predictor, rows, scores, thresholds)
    together, alone = _seconds(predictor, thresholds, rows, single=single, repeats=repeats)
    super_median = statistics.median(together["super"])
    passes: dict[str, dict[str, Any]] = {}
    for name, seconds in together.items():
        speedup = super_median / statistics.median(seconds)
        passes[name] = {
            "deferred": float((scores > thresholds.get(name, -math.inf)).double().mean()),
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
    return {"inputs": len(rows), "device": str(predictor.device), "repeats": repeats, "passes": passes}


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
    warm_up = min(_WARM_UP, len(single))
    passes = len(stream) * ((repeats + 1) * len(rows) + warm_up + len(single))
    with Progress(passes, "answers") as progress:
        together = measured(stream, [rows] * (repeats + 1), 1)
        return together, measured(alone, [[row] for row in single[:warm_up] + single], warm_up)


def _predicted_speedups(
    predictor: JointPredictor, rows: list[Any], scores: torch.Tensor, thresholds: dict[str, float]
) -> dict[str, float]:
    """The FLOPs of the Super alone over those of the pair at each threshold, by ``scores``, float64 ``(N,)``."""
    swift, super_ = (flops_of(predictor, model, rows) for model in (predictor.swift, predictor.super_))
    costs = Costs(swift["flops"] + swift.get(f"{predictor.score}_flops", swift["score_flops"]), super_["flops"])
    if predictor.score in BEFORE_DECODER:
        # The score is known before the decoder runs, so a kept input takes no other score.
        costs = Costs(swift["flops"], super_["flops"], swift["early_flops"])
    whole = super_["flops"].sum()
    speedups = {name: float(whole / costs.of(scores > limit, limit).sum()) for name, limit in thresholds.items()}
    return {"super": 1.0} | speedups


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
    distances = [abs(b.score - threshold) for a, b in pairs if a.answered_by != b.answered_by and b.score is not None]
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

    ``flops``, ``early_flops`` (deferred before the decoder), ``score_flops`` (a score with a pass of its own after it),
    and the model's others.
    """
    costs = {
        name: torch.zeros(len(rows), dtype=torch.float64)
        for name in ("flops", "early_flops", "score_flops", *model.costs)
    }
    for chosen, inputs in predictor.batches(model, rows):
        for name, cost in model.flops(inputs).items():
            costs[name][chosen] = cost.cpu()
    return costs
