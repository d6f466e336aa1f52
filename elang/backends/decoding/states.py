"""A batch between an encoder-decoder's steps: encoded, then generated, and the tokens' scores on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from elang.method.token_scores import token_scores

# Settings that do not change what greedy decoding generates: its limits, and what is for beams or samples.
GREEDY_SETTINGS = {
    *("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id", "max_new_tokens", "num_beams"),
    *("do_sample", "temperature", "top_k", "top_p", "use_cache", "output_attentions", "output_hidden_states"),
    *("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty"),
    *("return_dict_in_generate", "output_scores", "transformers_version", "_from_model_config"),
}


@dataclass(frozen=True)
class Encoded:
    """What is known of a batch before the decoder runs.

    Attributes:
        hidden: The encoder's output, ``(B, L, D)``.
        mask: 1 on real tokens, ``(B, L)``.
        pooled: Its mean over them, detached, ``(B, D)``; ``None`` without heads.
        early: Logits of the head on it, ``(B, C)``; ``None`` without heads.
    """

    hidden: Tensor
    mask: Tensor
    pooled: Tensor | None
    early: Tensor | None


@dataclass(frozen=True)
class Source:
    """An encoded batch, before the decoder runs.

    Attributes:
        hidden: The encoder's output, ``(B, L, D)``.
        mask: 1 on real tokens, ``(B, L)``.
        features: What the encoder's router reads, float32 ``(B, D + 1)``: mean hidden state, log of the token count.
    """

    hidden: Tensor
    mask: Tensor
    features: Tensor

    def __getitem__(self, rows: Tensor) -> Source:
        return Source(self.hidden[rows], self.mask[rows], self.features[rows])


@dataclass(frozen=True)
class Generated:
    """What the decoder made of a batch.

    Attributes:
        ids: Generated tokens without the start, padded, int64 ``(B, T)``.
        steps: Decoder steps of each, its end included, int64 ``(B,)``.
        scores: :data:`elang.method.token_scores.SEQUENCE_SCORES`, float32 ``(B, 24)``.
    """

    ids: Tensor
    steps: Tensor
    scores: Tensor


class TokenScorer:
    """Scores greedily chosen tokens as they are generated: a forward hook that sees each step's logits."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []
        self.logits: Tensor | None = None

    def __call__(self, module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
        """Score the tokens that were chosen by the last logits, and keep these."""
        self.take(given["decoder_input_ids"][:, -1])
        self.logits = output.logits[:, -1]

    def take(self, chosen: Tensor) -> None:
        """Score the tokens that the last logits led to."""
        if self.logits is not None:
            self.scores.append(token_scores(self.logits, chosen))


def token_ids(ids: int | list[int] | None) -> list[int]:
    """A setting that may name no token, one or several, as a list."""
    return [] if ids is None else [ids] if isinstance(ids, int) else ids
