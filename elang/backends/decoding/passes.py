"""Passes of fixed shapes by which models with a decoder answer small batches, for graphs to capture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from elang.backends.fast.graphs import WANTED, Pass
from elang.backends.fast.t5_decoding import Texts
from elang.method.scores import BEFORE_DECODER

if TYPE_CHECKING:
    from elang.backends.answer import Encoded
    from elang.backends.decoding.generation import Source
    from elang.backends.generator import Seq2Seq
    from elang.backends.label_decoder import TextToText


def early_label_passes(model: TextToText, score: str, temperature: float, order: list[int] | None) -> list[Pass]:
    """Two passes: a score that is known before the decoder, ``(B, 1)``, and the decoder's answers, ``(B, 3)``."""

    def before(inputs: dict[str, Tensor]) -> tuple[Tensor, Encoded]:
        encoded = model.encode(inputs)
        return model.early_scores(encoded, temperature)[score].to(model.task.kind.exact_type)[:, None], encoded

    def after(encoded: Encoded) -> tuple[Tensor, None]:
        return model.table(None, model.label_logits(encoded, {}), order), None

    return [before, after]


def generation_passes(model: Seq2Seq, score: str | None) -> list[Pass] | None:
    """Four passes: up to the decoder, to the first token, one token, and the end.

    Args:
        model: A generator.
        score: What routes; ``None`` where nothing does.

    Returns:
        The first one's table has the score if it is known before the decoder, the last one's the score if it is not,
        and the tokens, ``(B, 1 + T)``; ``None`` where the family has no short way to generate.
    """
    early = score in BEFORE_DECODER
    late = None if early else score
    steps = model.steps(late is not None)
    if steps is None:
        return None

    def first(inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
        source = model.encode(inputs)
        known = model.early_scores(source)[score] if early and score else source.features.new_zeros(len(source.mask))
        return known.float()[:, None], (source, inputs[WANTED])

    def begin(state: tuple[Source, Tensor]) -> tuple[Tensor, Any]:
        source, wanted = state
        texts = steps.begin(source.hidden, source.mask, wanted)
        return texts.left[:, None], (source, texts)

    def step(state: tuple[Source, Texts]) -> tuple[Tensor, Any]:
        steps.step(state[1])
        return state[1].left[:, None], state

    def last(state: tuple[Source, Texts]) -> tuple[Tensor, Any]:
        source, texts = state
        known = source.features.new_zeros(len(texts.ids))
        if late is not None:
            known = model.late_scores(source, model.generated(*state))[late]
        # Exact, for there are fewer tokens than 2^24.
        return torch.cat([known.float()[:, None], texts.ids[:, : steps.most].float()], 1), state

    return [first, begin, step, last]
