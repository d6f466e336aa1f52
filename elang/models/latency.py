"""Measured seconds of a pair's models, whole and up to the decoder."""

from typing import Any

import torch
from torch import Tensor

from elang.backends.cost.seconds import best_batch, measure_throughput
from elang.backends.text_model import TextModel


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
