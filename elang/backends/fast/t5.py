"""T5's forward pass and greedy decoder on the library's weights with fewer and faster kernels, for inference.

The library launches about twenty kernels per layer, this module seven. Only the order of sums differs:

- queries, keys and values are one matrix product; residuals and ReLU are part of the product before them;
- cross-attention maps the few queries to the encoder's output, ``(W_k^T q) . h``, instead of every position of that
  output to each layer's keys and values, ``q . (W_k h)``: 1/64 of the operations for a label's single decoder step;
- a single token's self-attention is its value, and logits of answers are computed for their tokens only, in float32;
- the greedy decoder works in memory of fixed size, so that one step can be captured as one graph: a step changes
  tensors in place and never waits for the device. Keys and values of the encoder's output are computed once.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.method.scores import TOKEN_SCORES, token_scores

# In these families all layers of a stack share one bias of self-attention.
FAMILIES = ("t5", "mt5")
# Attention kernels need lengths that are multiples of this.
_MULTIPLE = 8
# Positions of the cache at first, where it can grow.
_ROOM = 32


def _norm(x: Tensor, module: Any) -> Tensor:
    """The layer norm of ``(N, D)`` with a module's weights, in one kernel."""
    return F.rms_norm(x, (x.shape[-1],), module.weight, module.variance_epsilon)


def _self_attention(x: Tensor, layer: Any, batch: int, bias: Tensor | None) -> None:
    """Add a layer of self-attention to ``(batch * L, D)``, in place; without a bias there is one token."""
    attention, normed = layer.SelfAttention, _norm(x, layer.layer_norm)
    if bias is None:
        mixed = F.linear(normed, attention.v.weight)
    else:
        heads, width = attention.n_heads, attention.key_value_proj_dim
        q, k, v = F.linear(normed, attention.together).view(batch, -1, 3, heads, width).permute(2, 0, 3, 1, 4)
        # T5 does not scale.
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        mixed = mixed.transpose(1, 2).reshape(len(x), heads * width)
    x.addmm_(mixed, attention.o.weight.t())


def _cross_attention(x: Tensor, layer: Any, source: Tensor, bias: Tensor) -> None:
    """Add a layer of attention to a source ``(B, L, D)`` to ``(B * M, D)``, in place."""
    attention, (batch, _, size) = layer.EncDecAttention, source.shape
    heads, width = attention.n_heads, attention.key_value_proj_dim
    key, value = (part.weight.view(heads, width, size) for part in (attention.k, attention.v))
    q = F.linear(_norm(x, layer.layer_norm), attention.q.weight).view(-1, heads, width).transpose(0, 1)
    # (H, B * M, D) as (B, H * M, D).
    q = (q @ key).view(heads, batch, -1, size).transpose(0, 1).reshape(batch, -1, size)
    weight = (q @ source.transpose(1, 2) + bias).softmax(-1)
    seen = (weight @ source).view(batch, heads, -1, size).transpose(0, 1).reshape(heads, -1, size)
    mixed = (seen @ value.transpose(1, 2)).transpose(0, 1).reshape(len(x), heads * width)
    x.addmm_(mixed, attention.o.weight.t())


def _add_attention(x: Tensor, query: Tensor, cache: Tensor, bias: Tensor, attention: Any) -> None:
    """Add to ``(B, D)``, in place, the attention of queries ``(B, H, 1, d)`` to a cache ``(2, B, H, L, d)``."""
    mixed = F.scaled_dot_product_attention(query, cache[0], cache[1], attn_mask=bias, scale=1.0)
    x.addmm_(mixed.flatten(1), attention.o.weight.t())


def _feed_forward(x: Tensor, layer: Any) -> None:
    """Add a feed-forward layer to ``(N, D)``, in place."""
    dense, normed = layer.DenseReluDense, _norm(x, layer.layer_norm)
    if hasattr(dense, "wi_0"):
        inner = dense.act(F.linear(normed, dense.wi_0.weight)).mul_(F.linear(normed, dense.wi_1.weight))
    elif isinstance(dense.act, torch.nn.ReLU) and x.is_cuda:
        no_bias = x.new_zeros(len(dense.wi.weight))
        inner = torch._addmm_activation(no_bias, normed, dense.wi.weight.t())
    else:
        inner = dense.act(F.linear(normed, dense.wi.weight))
    x.addmm_(inner, dense.wo.weight.t())


def _mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 on real tokens and -inf elsewhere."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask == 0, -torch.inf)


def _causal_bias(stack: Any, length: int) -> Tensor:
    """The bias of the decoder's self-attention, -inf on later tokens, ``(1, H, T, T)``."""
    bias: Tensor = stack.block[0].layer[0].SelfAttention.compute_bias(length, length).contiguous()
    return bias.masked_fill(torch.ones(length, length, dtype=torch.bool, device=bias.device).triu(1), -torch.inf)


class T5Path:
    """The forward pass of a T5 or mT5 in evaluation mode, on its final device; its own answers do not change."""

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        for attention, *parts in self._merged():
            # Side by side in memory; each weight becomes a view of it.
            attention.together = torch.cat([part.weight.data for part in parts])
            for part, weight in zip(parts, attention.together.chunk(len(parts)), strict=True):
                part.weight.data = weight

    def _merged(self) -> list[tuple[Any, ...]]:
        """The attentions, each with the parts whose weights are merged."""
        blocks = [*self.backbone.encoder.block, *self.backbone.decoder.block]
        merged: list[tuple[Any, ...]] = [(a, a.q, a.k, a.v) for a in (b.layer[0].SelfAttention for b in blocks)]
        cross = [block.layer[1].EncDecAttention for block in self.backbone.decoder.block]
        return merged + [(a, a.k, a.v) for a in cross]

    @property
    def current(self) -> bool:
        """Whether it still reads the model's weights, which may have been moved or replaced."""
        return all(a.together.data_ptr() == first.weight.data_ptr() for a, first, *_ in self._merged())

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The encoder's output for tokens ``(B, L)``, ``(B, L, D)``; without meaning on padding."""
        batch, length = ids.shape
        padding = (0, -length % _MULTIPLE)
        ids, mask = F.pad(ids, padding), F.pad(mask, padding)
        stack = self.backbone.encoder
        x = stack.embed_tokens(ids).flatten(0, 1)
        bias = stack.block[0].layer[0].SelfAttention.compute_bias(ids.shape[1], ids.shape[1])
        # Attention kernels need a bias whose last dimension is dense in memory.
        bias = bias.contiguous() + _mask_bias(mask, x.dtype)[:, None, None]
        for block in stack.block:
            first, feed = block.layer
            _self_attention(x, first, batch, bias)
            _feed_forward(x, feed)
        return _norm(x, stack.final_layer_norm).view(batch, -1, x.shape[-1])[:, :length]

    def decode(self, hidden: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        """The decoder's output over paths ``(P, T)``, the same for each encoded text: ``(B, P, T, D)``."""
        batch, (paths, steps) = len(hidden), ids.shape
        stack = self.backbone.decoder
        x = stack.embed_tokens(ids).repeat(batch, 1, 1).flatten(0, 1)
        bias = _causal_bias(stack, steps) if steps > 1 else None
        padding = _mask_bias(mask, x.dtype)[:, None]
        for block in stack.block:
            first, cross, feed = block.layer
            _self_attention(x, first, batch * paths, bias)
            _cross_attention(x, cross, hidden, padding)
            _feed_forward(x, feed)
        return _norm(x, stack.final_layer_norm).view(batch, paths, steps, -1)

    def logits(self, output: Tensor, tokens: Tensor) -> Tensor:
        """Logits of the decoder's output ``(B, M, D)`` for each node's tokens ``(M, K)``: float32 ``(B, M, K)``."""
        rows = self.backbone.lm_head.weight[tokens].float()
        return torch.einsum("bmd,mkd->bmk", self._scaled(output.float()), rows)

    def all_logits(self, output: Tensor) -> Tensor:
        """Logits of the decoder's output ``(B, D)`` for the whole vocabulary, ``(B, V)``, in its precision."""
        logits: Tensor = self.backbone.lm_head(self._scaled(output))
        return logits

    def _scaled(self, output: Tensor) -> Tensor:
        config = self.backbone.config
        return output * config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else output


@dataclass
class Texts:
    """Texts that are being generated."""

    source: list[Tensor]  # keys and values of the encoder's output, for each layer (2, B, H, L, d)
    padding: Tensor  # bias that hides the encoder's padding, (B, 1, 1, L)
    cache: Tensor  # keys and values of the tokens so far, (layers, 2, B, H, M, d)
    bias: Tensor  # of the self-attention at each position, -inf on later ones, (1, H, T, T)
    position: Tensor  # of the next token, int64 (1,)
    token: Tensor  # the last token of each text, int64 (B, 1)
    left: Tensor  # 1 for texts that have not ended, int64 (B,)
    steps: Tensor  # tokens of each text, the end token included, int64 (B,)
    ids: Tensor  # the tokens, int64 (B, T), padded after the end; T may exceed T5Steps.length
    scores: Tensor | None  # of the tokens, float32 (B, T, 5), if they are scored


class T5Steps:
    """Greedy generation by a T5 or mT5: at most ``length`` tokens, until one of ``ends``, then ``pad``."""

    def __init__(self, path: T5Path, length: int, *, start: int, ends: list[int], pad: int, scored: bool) -> None:
        self.path, self.length, self.start, self.ends, self.pad, self.scored = path, length, start, ends, pad, scored
        # More than needed: a step is tried a few times before it is captured.
        self.positions = length + -length % _MULTIPLE

    def begin(self, hidden: Tensor, mask: Tensor, wanted: Tensor | None = None, room: int | None = None) -> Texts:
        """Prepare the texts of a batch from the encoder's output, ``(B, L, D)``, and its mask, ``(B, L)``.

        ``wanted``, int64 ``(B,)``, is 0 for texts that are not needed; ``room`` is that of the cache, in tokens.
        """
        config, stack = self.path.backbone.config, self.path.backbone.decoder
        batch, length, _ = hidden.shape
        padding = -length % _MULTIPLE
        hidden, mask = F.pad(hidden, (0, 0, 0, padding)), F.pad(mask, (0, padding))
        heads, width, positions = config.num_heads, config.d_kv, self.positions
        source = [
            F.linear(hidden, block.layer[1].EncDecAttention.together)
            .view(batch, -1, 2, heads, width)
            .permute(2, 0, 3, 1, 4)
            .contiguous()
            for block in stack.block
        ]
        zeros = mask.new_zeros(batch)
        return Texts(
            source,
            padding=_mask_bias(mask, hidden.dtype)[:, None, None],
            cache=hidden.new_zeros(len(source), 2, batch, heads, room or positions, width),
            bias=_causal_bias(stack, positions),
            position=mask.new_zeros(1),
            token=mask.new_full((batch, 1), self.start),
            left=zeros + 1 if wanted is None else wanted.clone(),
            steps=zeros,
            ids=mask.new_full((batch, positions), self.pad),
            scores=hidden.new_zeros(batch, positions, len(TOKEN_SCORES), dtype=torch.float32) if self.scored else None,
        )

    def step(self, texts: Texts) -> None:
        """Give every text its next token."""
        stack, (batch, _) = self.path.backbone.decoder, texts.token.shape
        heads, room, width = texts.cache.shape[-3:]
        x = stack.embed_tokens(texts.token).flatten(0, 1)
        bias = texts.bias.index_select(2, texts.position)[..., :room].expand(batch, -1, -1, -1)
        for block, cache, source in zip(stack.block, texts.cache, texts.source, strict=True):
            first, second, feed = block.layer
            attention, cross = first.SelfAttention, second.EncDecAttention
            new = F.linear(_norm(x, first.layer_norm), attention.together)
            new = new.view(batch, 3, heads, 1, width).transpose(0, 1)
            cache.index_copy_(3, texts.position, new[1:])
            _add_attention(x, new[0], cache, bias=bias, attention=attention)
            query = F.linear(_norm(x, second.layer_norm), cross.q.weight).view(batch, heads, 1, width)
            _add_attention(x, query, source, bias=texts.padding, attention=cross)
            _feed_forward(x, feed)
        logits = self.path.all_logits(_norm(x, stack.final_layer_norm)).float()
        token = logits.argmax(-1).where(texts.left.bool(), self.pad)
        texts.ids.index_copy_(1, texts.position, token[:, None])
        if texts.scores is not None:
            texts.scores.index_copy_(1, texts.position, token_scores(logits, token)[:, None])
        texts.steps += texts.left
        for end in self.ends:
            texts.left *= token != end
        texts.token.copy_(token[:, None])
        texts.position += 1

    def all(self, hidden: Tensor, mask: Tensor) -> Texts:
        """Generate until every text has ended; the arguments are those of :meth:`begin`."""
        texts = self.begin(hidden, mask, room=min(_ROOM, self.positions))
        for count in range(self.length):
            room = texts.cache.shape[-2]
            if count == room:
                texts.cache = F.pad(texts.cache, (0, 0, 0, min(room, self.positions - room)))
            self.step(texts)
            if self.ends and not texts.left.any():
                break
        texts.ids = texts.ids[:, : count + 1]
        if texts.scores is not None:
            texts.scores = texts.scores[:, : count + 1]
        return texts
