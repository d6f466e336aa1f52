"""What all prompts of a model begin with (a chat template, a system text, examples) is read once.

Its keys and values are kept, and each batch starts from them. The rest of each prompt stands behind them, padded on the
left, so that every prompt still ends at the same place.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from elang.backends.causal_passes import cache_name, chain_pass, padded_left, takes_any_mask

# On a CPU, 16 tokens before a text of 30 save a quarter of the time, and fewer than 8 little more than copying takes
# (benchmarks/speed/shared_prefix.py).
LEAST = 16


class Rows(NamedTuple):
    """A batch of prompts that is to be read, of which ``past`` may hold what they begin with."""

    ids: Tensor  # what is left to read, (B, R)
    mask: Tensor  # of what has been read and of what is left, (B, K + R)
    past: Any = None  # keys and values of the first K tokens; one pass uses them up


class SharedPrefix:
    """The first ``tokens`` of all prompts, with their keys and values, which are computed when they are needed.

    There are none for a family whose attention goes by the places of tokens in a batch (ALiBi), or with too few tokens.
    """

    def __init__(self, config: Any, tokens: tuple[int, ...]) -> None:
        # A window counts places, and padding is one.
        self.window = getattr(config, "sliding_window", None)
        self.tokens = tokens[: self.window - 1] if self.window else tokens
        if len(tokens) < LEAST or not takes_any_mask(config):
            self.tokens = ()
        self._watch: _Watch | None = None
        self._state: Any = None
        self._layers: list[tuple[Tensor, Tensor]] = []

    def forget(self) -> None:
        """Drop keys and values."""
        self._watch, self._state, self._layers = None, None, []

    def counts(self, ids: Tensor, mask: Tensor, room: int) -> Tensor:
        """How many tokens of prompts ``(B, L)``, padded on the left, need not be read, int64 ``(B,)``.

        The last token is read in any case. With ``room`` for what follows, a prompt must lie within the window.
        """
        lengths = mask.sum(1)
        if not self.tokens:
            return torch.zeros_like(lengths)
        tokens = torch.tensor(self.tokens, device=ids.device)
        place = (ids.shape[1] - lengths)[:, None] + torch.arange(len(tokens), device=ids.device)
        # Where a field follows, the tokenizer may join the last ones with it.
        same = ids.gather(1, place.clamp_max(ids.shape[1] - 1)) == tokens
        count = same.long().cumprod(1).sum(1).minimum(lengths - 1)
        fits = lengths + room <= (self.window or torch.inf)
        return count * ((count >= LEAST) & fits)

    def split(self, backbone: Any, ids: Tensor, mask: Tensor, room: int) -> Rows:
        """Prompts ``(B, L)`` behind the keys and values of as many tokens as all of them share."""
        ids, mask = padded_left(ids, mask)
        shared, longest = torch.stack([self.counts(ids, mask, room).min(), mask.sum(1).max()]).tolist()
        if not shared:
            return Rows(ids, mask)
        rest = longest - shared
        left = (mask.cumsum(1)[:, -rest:] > shared).to(mask)
        mask = torch.cat([mask.new_ones(len(ids), shared), left], 1)
        return Rows(ids[:, -rest:], mask, self._past(backbone, shared, rows=len(ids)))

    def whole(self, rows: Rows) -> Tensor:
        """The tokens of prompts as ``rows.mask`` has them, ``(B, K + R)``."""
        shared = self.tokens[: rows.mask.shape[1] - rows.ids.shape[1]]
        return torch.cat([rows.ids.new_tensor(shared).expand(len(rows.ids), -1), rows.ids], 1)

    def _past(self, backbone: Any, shared: int, *, rows: int) -> DynamicCache:
        """Keys and values of the first ``shared`` tokens, for each row of a batch."""
        watch = self._watch
        if watch is None or watch.backbone is not backbone or self._state != watch.state():
            watch = _Watch(backbone)
            # What inference creates could not be used outside of it.
            with torch.inference_mode(False), torch.no_grad():
                ids = torch.tensor([self.tokens], device=backbone.device)
                output = chain_pass(backbone, ids, torch.ones_like(ids), keep=1, use_cache=True)
            read = getattr(output, cache_name())
            # In this order, for other threads.
            self._layers = [(layer.keys, layer.values) for layer in read.layers]
            self._watch, self._state = watch, watch.state()
        past = DynamicCache(config=backbone.config)
        for i, pair in enumerate(self._layers):
            keys, values = (part[:, :, :shared].expand(rows, -1, -1, -1) for part in pair)
            past.update(keys, values, i)
        return past


class _Watch:
    """What keys and values depend on besides the tokens: it changes with the weights and their precision.

    The modules are listed once, because going through them takes as long as several layers.
    """

    def __init__(self, backbone: Any) -> None:
        self.backbone, modules = backbone, list(backbone.modules())
        self._children = [module._modules for module in modules if module._modules]
        self._weights = [module._parameters for module in modules if module._parameters]

    def state(self) -> list[Any]:
        """The weights' places and versions, and the modules, of which others may have taken the places."""
        device = self.backbone.device.type
        state: list[Any] = [torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)]
        state += [id(child) for children in self._children for child in children.values()]
        for weight in (weight for weights in self._weights for weight in weights.values() if weight is not None):
            try:
                state.append((weight.data_ptr(), weight._version, weight.dtype))
            except RuntimeError:
                # Quantized weights and those that inference created do not change in place.
                state.append(id(weight))
        return state
