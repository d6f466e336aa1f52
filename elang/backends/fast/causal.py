"""Greedy generation by a decoder-only model in memory of fixed size, so that one step can be captured as one graph.

The library's forward pass is given the place of each token in the cache, its position, and the mask for each pair of
tokens, so nothing in it waits for the device, whatever its version. A step changes tensors in place. Layers with a
window keep all tokens too, and see those within it.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache

from elang.backends.backend import Generated
from elang.backends.causal_passes import cache_name, masks
from elang.backends.fast.graphs import WANTED, Pass
from elang.backends.prompted import read_at_end
from elang.method.scores import BEFORE_DECODER, TOKEN_SCORES, sequence_scores, token_scores

# Texts have room for a few tokens more than they may have: a step is tried before it is captured.
_MULTIPLE = 8


class FixedCache(Cache):  # type: ignore[misc]  # transformers has no types
    """Keys and values of a fixed number of tokens; those of the next pass go to :attr:`place`, ``(L,)``."""

    def __init__(self, size: int, place: Tensor) -> None:
        super().__init__(layers=[])
        self.size, self.place = size, place
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Keep keys and values ``(B, H, L, D)`` of a layer; returns those of all places."""
        if layer_idx not in self._kept:
            self._kept[layer_idx] = self._empty(keys), self._empty(values)
        kept = self._kept[layer_idx]
        for whole, new in zip(kept, (keys, values), strict=True):
            whole.index_copy_(2, self.place, new)
        return kept

    def _empty(self, part: Tensor) -> Tensor:
        return part.new_zeros(*part.shape[:2], self.size, part.shape[3])

    def get_seq_length(self, *args: Any, **options: Any) -> int:
        """None, so that no position depends on it."""
        return 0


@dataclass
class Prompts:
    """Prompts that have been read, and room for a text after each."""

    cache: FixedCache
    seen: Tensor  # the places that hold a token, bool (B, S)
    position: Tensor  # of each place, int64 (B, S)
    logits: Tensor  # after the last token, (B, V)
    pooled: Tensor | None  # what is known at the prompts' ends (read_at_end), if there are heads


@dataclass
class Texts:
    """Texts that are being generated."""

    prompts: Prompts
    count: Tensor  # tokens so far, int64 (1,)
    token: Tensor  # the last one of each text, int64 (B, 1)
    left: Tensor  # 1 for texts that have not ended, int64 (B,)
    steps: Tensor  # tokens of each text, the end token included, int64 (B,)
    ids: Tensor  # the tokens, int64 (B, T), padded after the end; T exceeds CausalSteps.length
    scores: Tensor | None  # of the tokens, float32 (B, T, 5), if they are scored


class CausalSteps:
    """Greedy generation: at most ``length`` tokens, until one of ``ends``, then ``pad``."""

    def __init__(self, backbone: Any, length: int, *, ends: list[int], pad: int, scored: bool, hidden: bool) -> None:
        self.backbone, self.length, self.ends, self.pad = backbone, length, ends, pad
        self.scored, self.hidden = scored, hidden
        self.room = length + 1 + -(length + 1) % _MULTIPLE

    def read(self, ids: Tensor, mask: Tensor) -> Prompts:
        """Read prompts ``(B, L)``, padded on the left."""
        length = ids.shape[1]
        size = length + self.room
        # Steps that are only tried go no further than texts: learned positions end where the longest text does.
        after = torch.arange(self.room, device=ids.device).clamp_max(self.length - 1) + mask.sum(1, keepdim=True)
        position = torch.cat([(mask.cumsum(1) - 1).clamp_min(0), after], 1)
        seen, places = F.pad(mask.bool(), (0, self.room)), torch.arange(size, device=ids.device)
        cache = FixedCache(size, places[:length])
        # A place of padding attends to itself, because attention to nothing would be NaN.
        allowed = (places <= places[:length, None]) & (seen[:, None] | (places == places[:length, None]))
        out = self._run(cache, ids, allowed, position[:, :length], position, output_hidden_states=self.hidden)
        return Prompts(cache, seen, position, out.logits[:, -1], read_at_end(out) if self.hidden else None)

    def _run(
        self, cache: FixedCache, ids: Tensor, allowed: Tensor, query: Tensor, position: Tensor, **more: Any
    ) -> Any:
        mask = masks(self.backbone.config, allowed, query, position, dtype=self.backbone.dtype)
        options = {"attention_mask": mask, "position_ids": query, cache_name(): cache, "use_cache": True} | more
        return self.backbone(input_ids=ids, logits_to_keep=1, **options)

    def begin(self, prompts: Prompts, wanted: Tensor | None = None) -> Texts:
        """Give every text its first token; ``wanted``, int64 ``(B,)``, is 0 for texts that are not needed."""
        size = len(prompts.seen)
        zeros = prompts.position.new_zeros(size)
        scores = prompts.logits.new_zeros(size, self.room, len(TOKEN_SCORES), dtype=torch.float32)
        texts = Texts(
            prompts,
            count=zeros.new_zeros(1),
            token=zeros.new_zeros(size, 1),
            left=zeros + 1 if wanted is None else wanted.clone(),
            steps=zeros,
            ids=zeros.new_full((size, self.room), self.pad),
            scores=scores if self.scored else None,
        )
        self._take(texts, prompts.logits)
        return texts

    def _take(self, texts: Texts, logits: Tensor) -> None:
        """Add the most probable token to each text."""
        logits = logits.float()
        token = logits.argmax(-1).where(texts.left.bool(), self.pad)
        texts.ids.index_copy_(1, texts.count, token[:, None])
        if texts.scores is not None:
            texts.scores.index_copy_(1, texts.count, token_scores(logits, token)[:, None])
        texts.steps += texts.left
        texts.left *= texts.steps < self.length
        for end in self.ends:
            texts.left *= token != end
        texts.token.copy_(token[:, None])
        texts.count += 1

    def step(self, texts: Texts) -> None:
        """Read the last token of each text, and give it the next one."""
        prompts, cache = texts.prompts, texts.prompts.cache
        cache.place = texts.count + (cache.size - self.room - 1)
        prompts.seen.index_fill_(1, cache.place, True)
        query = prompts.position.index_select(1, cache.place)
        out = self._run(cache, texts.token, prompts.seen[:, None], query, prompts.position)
        self._take(texts, out.logits[:, -1])


def passes_of(model: Any, steps: CausalSteps, score: str | None) -> list[Pass]:
    """The four passes of a model that generates texts, as :class:`SmallBatches` takes them: prompts, tokens, the end.

    The first table has the score if it is known before the text; the last one has it if not, and the tokens.
    """
    early = score if score in BEFORE_DECODER else None

    def first(inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
        encoded = model.encode(inputs)
        prompts = steps.read(encoded.ids, encoded.mask)
        encoded.pooled = prompts.pooled
        return model.early_score(encoded, early)[:, None], (encoded, prompts, inputs[WANTED])

    def begin(state: Any) -> tuple[Tensor, Any]:
        encoded, prompts, wanted = state
        texts = steps.begin(prompts, wanted)
        return texts.left[:, None], (encoded, texts)

    def step(state: Any) -> tuple[Tensor, Any]:
        steps.step(state[1])
        return state[1].left[:, None], state

    def last(state: Any) -> tuple[Tensor, Any]:
        encoded, texts = state
        value = model.early_score(encoded, None)
        if texts.scores is not None:
            scores = sequence_scores(texts.scores, texts.steps.clamp_min(1))
            value = model.score_of(score, Generated(encoded, texts.ids, texts.steps, scores)).float()
        # A padding token need not be one that a text leaves out.
        place = torch.arange(steps.length, device=texts.ids.device)
        ids = texts.ids[:, : steps.length].masked_fill(place >= texts.steps[:, None], -1)
        # Token ids are exact in float32: there are fewer than 2^24.
        return torch.cat([value[:, None], ids.float()], 1), state

    return [first, begin, step, last]
