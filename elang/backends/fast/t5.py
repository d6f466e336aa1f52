"""T5's forward pass on the library's own weights with fewer and faster kernels, for inference.

The library's modules launch some twenty kernels a layer; these are seven. What differs is the order of sums, not the
mathematics:

- queries, keys and values are one matrix product;
- a residual is added, and ReLU taken, by the matrix product before it;
- in cross-attention the few queries are brought to the encoder's output, ``(W_k^T q) . h``, instead of every position
  of it to each layer's keys and values, ``q . (W_k h)``: for a label's one decoder step 1/64 of the operations;
- of a decoder's only token attention is its value;
- where answers are chosen from, logits are computed for their tokens alone, in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Their self-attention has one bias for all layers of a stack.
FAMILIES = ("t5", "mt5")
# Attention kernels want lengths of whole multiples.
MULTIPLE = 8


def norm(x: Tensor, module: Any) -> Tensor:
    """The layer norm of ``(N, D)`` by a module's weights, in one kernel."""
    return F.rms_norm(x, (x.shape[-1],), module.weight, module.variance_epsilon)


def _attend(x: Tensor, attention: Any, batch: int, bias: Tensor) -> Tensor:
    """Self-attention of ``(batch * L, D)`` without its output projection, ``(batch * L, H * d)``."""
    heads, width = attention.n_heads, attention.key_value_proj_dim
    q, k, v = F.linear(x, attention.together).view(batch, -1, 3, heads, width).permute(2, 0, 3, 1, 4)
    # T5 does not scale.
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    return out.transpose(1, 2).reshape(len(x), heads * width)


def _attend_source(x: Tensor, attention: Any, source: Tensor, bias: Tensor) -> Tensor:
    """Cross-attention of ``(B * M, D)`` to ``(B, L, D)`` without its output projection."""
    heads, width, (batch, _, size) = attention.n_heads, attention.key_value_proj_dim, source.shape
    key, value = (part.weight.view(heads, width, size) for part in (attention.k, attention.v))
    q = F.linear(x, attention.q.weight).view(-1, heads, width).transpose(0, 1)
    # (H, B * M, D) as (B, H * M, D).
    q = (q @ key).view(heads, batch, -1, size).transpose(0, 1).reshape(batch, -1, size)
    weight = (q @ source.transpose(1, 2) + bias).softmax(-1)
    seen = (weight @ source).view(batch, heads, -1, size).transpose(0, 1).reshape(heads, -1, size)
    out: Tensor = seen @ value.transpose(1, 2)
    return out.transpose(0, 1).reshape(len(x), heads * width)


def feed_forward(x: Tensor, layer: Any) -> None:
    """Add a feed-forward layer to ``(N, D)``, in place."""
    own, normed = layer.DenseReluDense, norm(x, layer.layer_norm)
    if hasattr(own, "wi_0"):
        inner = own.act(F.linear(normed, own.wi_0.weight)).mul_(F.linear(normed, own.wi_1.weight))
    elif isinstance(own.act, torch.nn.ReLU) and x.is_cuda:
        nothing = x.new_zeros(len(own.wi.weight))
        inner = torch._addmm_activation(nothing, normed, own.wi.weight.t())
    else:
        inner = own.act(F.linear(normed, own.wi.weight))
    x.addmm_(inner, own.wo.weight.t())


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 on real tokens and -inf elsewhere."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask == 0, -torch.inf)


def _bring_together(attention: Any, *parts: Any) -> None:
    """Put the weights of these parts side by side in memory, where each stays what it was."""
    attention.together = torch.cat([part.weight.data for part in parts])
    for part, weight in zip(parts, attention.together.chunk(len(parts)), strict=True):
        part.weight.data = weight


class T5Path:
    """The forward pass of a T5 or mT5.

    Args:
        backbone: The library's model, in evaluation mode, where it is to stay; it answers as it did.
    """

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        for stack in (backbone.encoder, backbone.decoder):
            for block in stack.block:
                own = block.layer[0].SelfAttention
                _bring_together(own, own.q, own.k, own.v)
        for block in backbone.decoder.block:
            cross = block.layer[1].EncDecAttention
            _bring_together(cross, cross.k, cross.v)

    @property
    def current(self) -> bool:
        """Whether it still reads the model's own weights, which may have been moved or replaced."""
        stacks = (self.backbone.encoder, self.backbone.decoder)
        own = [block.layer[0].SelfAttention for stack in stacks for block in stack.block]
        first = [(one, one.q) for one in own]
        first += [(cross, cross.k) for cross in (b.layer[1].EncDecAttention for b in self.backbone.decoder.block)]
        return all(one.together.data_ptr() == part.weight.data_ptr() for one, part in first)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The encoder's output for tokens ``(B, L)``, ``(B, L, D)``; without meaning behind a text's end."""
        batch, length = ids.shape
        padding = (0, -length % MULTIPLE)
        ids, mask = F.pad(ids, padding), F.pad(mask, padding)
        stack = self.backbone.encoder
        # A copy, for what is added to it.
        x = stack.embed_tokens(ids).flatten(0, 1)
        bias = stack.block[0].layer[0].SelfAttention.compute_bias(ids.shape[1], ids.shape[1])
        # Attention kernels take no bias whose last dimension is not dense in memory, as this one's is not.
        bias = bias.contiguous() + mask_bias(mask, x.dtype)[:, None, None]
        for block in stack.block:
            own, feed = block.layer
            mixed = _attend(norm(x, own.layer_norm), own.SelfAttention, batch, bias)
            x.addmm_(mixed, own.SelfAttention.o.weight.t())
            feed_forward(x, feed)
        return norm(x, stack.final_layer_norm).view(batch, -1, x.shape[-1])[:, :length]

    def decode(self, hidden: Tensor, mask: Tensor, ids: Tensor) -> Tensor:
        """The decoder's output over paths ``(P, T)``, the same for each encoded text: ``(B, P, T, D)``."""
        batch, (paths, steps) = len(hidden), ids.shape
        stack = self.backbone.decoder
        x = stack.embed_tokens(ids).repeat(batch, 1, 1).flatten(0, 1)
        bias = None
        if steps > 1:
            causal = torch.ones(steps, steps, dtype=torch.bool, device=ids.device).triu(1)
            bias = stack.block[0].layer[0].SelfAttention.compute_bias(steps, steps).contiguous()
            bias = bias.masked_fill(causal, -torch.inf)
        padding = mask_bias(mask, x.dtype)[:, None]
        for block in stack.block:
            own, cross, feed = block.layer
            attention, normed = own.SelfAttention, norm(x, own.layer_norm)
            if bias is None:
                mixed = F.linear(normed, attention.v.weight)
            else:
                mixed = _attend(normed, attention, batch * paths, bias)
            x.addmm_(mixed, attention.o.weight.t())
            mixed = _attend_source(norm(x, cross.layer_norm), cross.EncDecAttention, hidden, padding)
            x.addmm_(mixed, cross.EncDecAttention.o.weight.t())
            feed_forward(x, feed)
        return norm(x, stack.final_layer_norm).view(batch, paths, steps, -1)

    def logits(self, output: Tensor, tokens: Tensor) -> Tensor:
        """Logits of the decoder's output ``(B, M, D)`` for each node's own tokens ``(M, K)``: float32 ``(B, M, K)``."""
        rows = self.backbone.lm_head.weight[tokens].float()
        return torch.einsum("bmd,mkd->bmk", self._scaled(output.float()), rows)

    def all_logits(self, output: Tensor) -> Tensor:
        """Logits of the decoder's output ``(B, D)`` for the whole vocabulary, ``(B, V)``, in its precision."""
        found: Tensor = self.backbone.lm_head(self._scaled(output))
        return found

    def _scaled(self, output: Tensor) -> Tensor:
        own = self.backbone.config
        return output * own.d_model**-0.5 if getattr(own, "scale_decoder_outputs", False) else output
