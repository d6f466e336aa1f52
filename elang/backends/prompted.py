"""Prompts that have been read, how the library's ``generate`` goes on from them, and strings at which it stops."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.modeling_outputs import CausalLMOutputWithPast

from elang.backends.causal_passes import cache_name
from elang.method.scores import token_scores


@dataclass
class Prompted:
    """A batch of prompts, padded on the left, and what reading them left, if they have been read."""

    ids: Tensor  # (B, L)
    mask: Tensor  # (B, L)
    output: Any = None  # logits at the prompts' ends, (B, 1, V), keys and values; until texts are generated from them
    pooled: Tensor | None = None  # read_at_end, if there are heads

    def __getitem__(self, rows: Tensor) -> "Prompted":
        """Some of the prompts; of the others, keys and values are given up."""
        output, pooled = self.output, self.pooled
        if output is not None:
            cache = getattr(output, cache_name())
            cache.batch_select_indices(rows)
            output = CausalLMOutputWithPast(logits=output.logits[rows], **{cache_name(): cache})
        return Prompted(self.ids[rows], self.mask[rows], output, None if pooled is None else pooled[rows])

    def repeated(self, times: int) -> "Prompted":
        """Each prompt so many times in a row; its keys and values are given up here."""
        output, self.output = self.output, None
        if times > 1:
            getattr(output, cache_name()).batch_repeat_interleave(times)
            output.logits = output.logits.repeat_interleave(times, 0)
        return Prompted(self.ids.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0), output)


def read_at_end(output: Any) -> Tensor:
    """What is known where prompts end: scores of the first token and the last hidden state, ``(B, 5 + D)``."""
    first, state = output.logits[:, -1], output.hidden_states[-1][:, -1].float()
    return torch.cat([token_scores(first, first.argmax(-1)), state], 1)


class Stopped(StoppingCriteria):  # type: ignore[misc]  # transformers has no types
    """Whether each text, which begins at ``start``, contains a string by which it ends."""

    def __init__(self, tokenizer: Any, stop: str, start: int) -> None:
        self.tokenizer, self.stop, self.start = tokenizer, stop, start

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Read the last tokens, of which each is at least a byte of the string: bool ``(B,)``."""
        last = input_ids[:, self.start :][:, -len(self.stop.encode()) - 1 :]
        texts = self.tokenizer.batch_decode(last, skip_special_tokens=True)
        return torch.tensor([self.stop in text for text in texts], device=input_ids.device)


@contextmanager
def read_already(backbone: Any, output: Any) -> Iterator[None]:
    """Within, the next forward pass of a model returns this output at once, because it has run over these inputs."""
    forward, own = backbone.forward, "forward" in vars(backbone)

    def restore() -> None:
        if own:
            backbone.forward = forward
        elif "forward" in vars(backbone):
            del backbone.forward

    @wraps(forward)
    def once(*args: Any, **options: Any) -> Any:
        restore()
        return output

    backbone.forward = once
    try:
        yield
    finally:
        restore()
