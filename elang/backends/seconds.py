"""Measured latency of one input and throughput of many."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from elang.backends.text_model import TextModel

_LONG_CALL = 1.0  # seconds; longer calls are warmed up twice, not three times
_LEAST_GAIN = 0.02  # share of the time per input that a larger batch has to save


def measure_latency(call: Callable[[], object], min_seconds: float = 0.5) -> float:
    """Median wall-clock seconds of ``call``, warmed up and with the device synchronised.

    Spends ``min_seconds`` on it, or one call if that takes longer; a call of over a second runs four times in all.
    """
    from torch.utils.benchmark import Timer, timer

    for warm_up in range(3):
        start = timer()  # waits for the device, as Timer does by default
        call()
        if warm_up and timer() - start > _LONG_CALL:  # the very first call may compile
            break
    clock = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return float(clock.blocked_autorange(min_run_time=min_seconds).median)


def measure_throughput(
    make: Callable[[int], Callable[[], object]],
    sizes: Iterable[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    min_seconds: float = 0.3,
) -> dict[int, float]:
    """Seconds per input by batch size, until larger batches stop helping or do not fit.

    Args:
        make: Takes a batch size and returns the call to time; the previous call is freed first.
        sizes: Ascending. Stops after two in a row that each saved less than 2% of the best time per input so far, or at
            one that does not fit into the device's memory; the first one must fit.
        min_seconds: Time to spend on each size, as for :func:`measure_latency`.
    """
    times: dict[int, float] = {}
    best, idle = float("inf"), 0
    for size in sizes:
        try:
            seconds = measure_latency(make(size), min_seconds) / size
        except torch.OutOfMemoryError:
            if not times:
                raise
            break
        times[size] = seconds
        idle = 0 if seconds <= (1 - _LEAST_GAIN) * best else idle + 1
        best = min(best, seconds)
        if idle == 2:
            break
    # Only here: while an error is handled, its traceback keeps what did not fit.
    torch.cuda.empty_cache()
    return times


def best_batch(times: dict[int, float]) -> tuple[int, float]:
    """The batch size with the fewest seconds per input, and these.

    >>> best_batch({1: 0.08, 32: 0.003, 64: 0.004})
    (32, 0.003)
    """
    return min(times.items(), key=lambda item: item[1])


def random_inputs(
    model: TextModel, size: int, length: int, device: torch.device, candidates: int = 2
) -> dict[str, Tensor]:
    """A batch of random tokens on a device: ``size`` examples, of ``length`` tokens each.

    In a ``choice`` task an example has ``candidates``, which share the tokens if each is an encoder's input.
    """
    choice, vocabulary = model.task.kind.has_candidates, int(model.backbone.config.vocab_size)
    rows = size
    if choice and not model.text_to_text:
        rows, length = candidates * size, max(1, length // candidates)
    ids = torch.randint(vocabulary, (rows, length), device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if choice:
        inputs["num_choices"] = torch.full((size,), candidates, device=device)
        if model.text_to_text and not model.task.answers:
            inputs["answer_ids"] = torch.randint(vocabulary, (candidates * size, 3), device=device)
    return inputs


def pair_latency(
    models: dict[str, TextModel], lengths: dict[str, int], candidates: int = 2, steps: dict[str, int] | None = None
) -> dict[str, Any]:
    """Seconds per input of each model at batch 1 and at its best batch, on random tokens on the models' device.

    ``lengths`` and ``steps`` are the tokens of a model's inputs, over all candidates, and of texts that it generates.
    For each model there are ``tokens``, ``batch 1``, ``best batch`` (its size) and ``at best batch``; for one with a
    decoder also ``<name> encoder``, or ``<name> prompt`` without one: the time of an input that is deferred after it.
    """
    times: dict[str, Any] = {}
    for name, model in models.items():
        device = next(model.parameters()).device
        parts = model.timed_parts((steps or {}).get(name, 1), scored=name == "swift")
        for part, call in parts.items():

            def make(size: int, call: Any = call, model: TextModel = model, length: int = lengths[name]) -> Any:
                inputs = random_inputs(model, size, length, device=device, candidates=candidates)  # noqa: B023 - timed within the loop
                return torch.inference_mode()(lambda: call(inputs))

            seconds = measure_throughput(make)
            size, best = best_batch(seconds)
            times[f"{name} {part}".rstrip()] = {
                "tokens": lengths[name],
                "batch 1": seconds[1],
                "best batch": size,
                "at best batch": best,
            }
    return times
