"""Latency of one input and throughput of many, measured."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from elang.backends.text_model import TextModel

_LONG_CALL = 1.0  # seconds from which a call is warmed up twice, not three times
_LEAST_GAIN = 0.02  # share of the time per input that a larger batch has to save


def measure_latency(call: Callable[[], object], min_seconds: float = 0.5) -> float:
    """Median wall-clock seconds of ``call``, warmed up and with the device synchronised.

    Args:
        call: Runs what is timed once. One of over a second, and of over ``min_seconds``, runs four times in all.
        min_seconds: Total time to spend on it; at least one call is timed.
    """
    from torch.utils.benchmark import Timer, timer

    for warm_up in range(3):
        start = timer()  # waits for the device, as Timer does by default
        call()
        if warm_up and timer() - start > _LONG_CALL:  # the first call of all may compile
            break
    clock = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return float(clock.blocked_autorange(min_run_time=min_seconds).median)


def measure_throughput(
    make: Callable[[int], Callable[[], object]],
    sizes: Iterable[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    min_seconds: float = 0.3,
) -> dict[int, float]:
    """Seconds per input at each batch size, until larger batches pay no more or do not fit.

    Args:
        make: Called with a batch size, returns the call to time; called anew for each size, with the last one freed.
        sizes: Batch sizes in ascending order. The first after two in a row that each saved less than 2% of the best
            time per input so far is not tried, nor is any after one that the device has no memory for.
        min_seconds: Time to spend on each size, as for :func:`measure_latency`.

    Returns:
        Seconds per input by batch size, for the sizes that were measured.

    Raises:
        torch.OutOfMemoryError: If the first size does not fit.
    """
    found: dict[int, float] = {}
    best, idle = float("inf"), 0
    for size in sizes:
        try:
            seconds = measure_latency(make(size), min_seconds) / size
        except torch.OutOfMemoryError:
            if not found:
                raise
            break
        found[size] = seconds
        idle = 0 if seconds <= (1 - _LEAST_GAIN) * best else idle + 1
        best = min(best, seconds)
        if idle == 2:
            break
    # Only here: as long as an error is handled, its traceback keeps what did not fit.
    torch.cuda.empty_cache()
    return found


def best_batch(found: dict[int, float]) -> tuple[int, float]:
    """The batch size with the fewest seconds per input, and these.

    >>> best_batch({1: 0.08, 32: 0.003, 64: 0.004})
    (32, 0.003)
    """
    return min(found.items(), key=lambda item: item[1])


def random_inputs(
    model: TextModel, size: int, length: int, device: torch.device, candidates: int = 2
) -> dict[str, Tensor]:
    """A batch of random tokens.

    Args:
        model: What reads them.
        size: Examples.
        length: Tokens of an example; an encoder's in a ``choice`` task are shared by its candidates.
        device: Where.
        candidates: Of an example, in a ``choice`` task.
    """
    choice = model.task.kind.has_candidates
    own_answers = model.text_to_text and choice and not model.task.answers
    rows = size
    if choice and not model.text_to_text:
        rows, length = candidates * size, max(1, length // candidates)
    ids = torch.randint(int(model.backbone.config.vocab_size), (rows, length), device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if choice:
        inputs["num_choices"] = torch.full((size,), candidates, device=device)
    if own_answers:
        said = (candidates * size, 3)
        inputs["answer_ids"] = torch.randint(int(model.backbone.config.vocab_size), said, device=device)
    return inputs


def pair_latency(
    models: dict[str, TextModel], lengths: dict[str, int], candidates: int = 2, steps: dict[str, int] | None = None
) -> dict[str, Any]:
    """Seconds per input of each model at batch 1 and at its best batch, on random tokens.

    Args:
        models: By name, on the device that is timed.
        lengths: Tokens of an input of each, over all its candidates.
        candidates: How many these are, in a ``choice`` task.
        steps: Tokens that each generates, in a ``sequence`` task.

    Returns:
        For each model ``tokens``, ``batch 1``, ``best batch`` (its size) and ``at best batch``; for an encoder-decoder
        also ``<name> encoder``, what an input costs that is deferred before the decoder.
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
