"""T5's greedy decoder a step at a time, in memory of one size, so that a step can be captured as one graph.

A step changes what it changes in place and asks the device nothing. Keys and values of the encoder's output are
computed once; those of the tokens are written beside the earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.backends.fast.t5 import MULTIPLE, T5Path, feed_forward, mask_bias, norm
from elang.method.scores import TOKEN_SCORES, token_scores

# Positions that there is room for at first, where room can grow.
_ROOM = 32


@dataclass
class Texts:
    """Texts on their way.

    Attributes:
        source: Keys and values of the encoder's output, of each layer ``(2, B, H, L, d)``.
        padding: What hides the encoder's padding, ``(B, 1, 1, L)``.
        own: Keys and values of the tokens so far, ``(layers, 2, B, H, M, d)``.
        bias: Of the self-attention at each position, -inf on later ones, ``(1, H, T, T)``.
        position: Of the next token, int64 ``(1,)``.
        token: The last one of each, int64 ``(B, 1)``.
        left: 1 for texts that have not ended, int64 ``(B,)``.
        steps: Tokens of each, its end included, int64 ``(B,)``.
        ids: The tokens, int64 ``(B, T)``, whose first so many as are asked for count; the padding token behind an end.
        scores: Theirs, float32 ``(B, T, 4)``; ``None`` where none are needed.
    """

    source: list[Tensor]
    padding: Tensor
    own: Tensor
    bias: Tensor
    position: Tensor
    token: Tensor
    left: Tensor
    steps: Tensor
    ids: Tensor
    scores: Tensor | None


class T5Steps:
    """Greedy generation by a T5 or mT5.

    Args:
        path: The short forward pass of the model.
        most: Tokens of a text at most.
        start: The token that the decoder starts with.
        ends: Tokens that end a text.
        pad: The token behind an end.
        scored: Whether tokens are scored.
    """

    def __init__(self, path: T5Path, most: int, start: int, ends: list[int], pad: int, scored: bool) -> None:
        self.path, self.most, self.start, self.ends, self.pad, self.scored = path, most, start, ends, pad, scored
        # More than is asked for: a step is tried a few times before it is captured.
        self.places = most + -most % MULTIPLE

    def begin(self, hidden: Tensor, mask: Tensor, wanted: Tensor | None = None, room: int | None = None) -> Texts:
        """Make ready.

        Args:
            hidden: The encoder's output, ``(B, L, D)``.
            mask: 1 on real tokens, ``(B, L)``.
            wanted: 0 for texts that nobody waits for, int64 ``(B,)``.
            room: Positions that there is room for, by default for all tokens.
        """
        config, stack = self.path.backbone.config, self.path.backbone.decoder
        batch, length, _ = hidden.shape
        padding = -length % MULTIPLE
        hidden, mask = F.pad(hidden, (0, 0, 0, padding)), F.pad(mask, (0, padding))
        heads, width = config.num_heads, config.d_kv
        source = [
            F.linear(hidden, block.layer[1].EncDecAttention.together)
            .view(batch, -1, 2, heads, width)
            .permute(2, 0, 3, 1, 4)
            .contiguous()
            for block in stack.block
        ]
        most = self.places
        bias = stack.block[0].layer[0].SelfAttention.compute_bias(most, most)
        bias = bias.masked_fill(hidden.new_ones(most, most, dtype=torch.bool).triu(1), -torch.inf)
        count = mask.new_zeros(batch)
        return Texts(
            source,
            mask_bias(mask, hidden.dtype)[:, None, None],
            hidden.new_zeros(len(source), 2, batch, heads, room or most, width),
            bias,
            mask.new_zeros(1),
            mask.new_full((batch, 1), self.start),
            count + 1 if wanted is None else wanted.clone(),
            count,
            mask.new_full((batch, most), self.pad),
            hidden.new_zeros(batch, most, len(TOKEN_SCORES), dtype=torch.float32) if self.scored else None,
        )

    def step(self, texts: Texts) -> None:
        """Give every text its next token."""
        stack, (batch, _) = self.path.backbone.decoder, texts.token.shape
        heads, room, width = texts.own.shape[-3:]
        x = stack.embed_tokens(texts.token).flatten(0, 1)
        bias = texts.bias.index_select(2, texts.position)[..., :room].expand(batch, -1, -1, -1)
        for block, own, source in zip(stack.block, texts.own, texts.source, strict=True):
            first, second, feed = block.layer
            attention, cross = first.SelfAttention, second.EncDecAttention
            made = (
                F.linear(norm(x, first.layer_norm), attention.together).view(batch, 3, heads, 1, width).transpose(0, 1)
            )
            own.index_copy_(3, texts.position, made[1:])
            _attend(x, made[0], own, bias, attention)
            query = F.linear(norm(x, second.layer_norm), cross.q.weight).view(batch, heads, 1, width)
            _attend(x, query, source, texts.padding, cross)
            feed_forward(x, feed)
        logits = self.path.all_logits(norm(x, stack.final_layer_norm)).float()
        chosen = logits.argmax(-1)
        token = chosen.where(texts.left.bool(), self.pad)
        texts.ids.index_copy_(1, texts.position, token[:, None])
        if texts.scores is not None:
            texts.scores.index_copy_(1, texts.position, token_scores(logits, token)[:, None])
        texts.steps += texts.left
        for end in self.ends:
            texts.left *= token != end
        texts.token.copy_(token[:, None])
        texts.position += 1

    def all(self, hidden: Tensor, mask: Tensor) -> Texts:
        """Generate until every text has ended; as :meth:`begin`."""
        texts = self.begin(hidden, mask, room=min(_ROOM, self.places))
        for count in range(self.most):
            if count == texts.own.shape[-2]:
                texts.own = F.pad(texts.own, (0, 0, 0, min(count, self.places - count)))
            self.step(texts)
            if self.ends and not texts.left.any():
                break
        texts.ids = texts.ids[:, : count + 1]
        if texts.scores is not None:
            texts.scores = texts.scores[:, : count + 1]
        return texts


def _attend(x: Tensor, query: Tensor, known: Tensor, bias: Tensor, attention: Any) -> None:
    """Add the attention of queries ``(B, H, 1, d)`` to what is known, ``(2, B, H, L, d)``, to ``(B, D)``, in place."""
    mixed = F.scaled_dot_product_attention(query, known[0], known[1], attn_mask=bias, scale=1.0)
    x.addmm_(mixed.flatten(1), attention.o.weight.t())
