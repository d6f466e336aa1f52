"""Passes of a decoder-only model over a prompt and the answers after it, and their FLOPs.

A batch is padded on the left, so that every prompt ends at the same place and its answers follow without a gap. In one
pass over the prompt and a tree of answers, each token of the tree attends to the prompt and to the tokens that lead to
it, at the position that it would have alone. Families that allow no such mask run over the prompt once, and over each
path of the tree with a copy of the keys and values that this left.
"""

import inspect
import json
from dataclasses import fields
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.backends.answer_trie import AnswerTree, AnswerTrie
from elang.backends.flops import PAPER_LENGTH, FlopsConvention, causal_law, causal_weights, flops_key

# Their masks can be given for each pair of tokens (tests/backends/test_causal.py).
_ANY_MASK = frozenset(
    {
        *("biogpt", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "llama"),
        *("mistral", "mixtral", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "stablelm"),
        "starcoder2",
    }
)


@lru_cache(maxsize=1)
def cache_name() -> str:
    """What transformers calls keys and values, given to a model and in its output; 5.24 warns of the old name."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return "cache" if any(field.name == "cache" for field in fields(CausalLMOutputWithPast)) else "past_key_values"


def takes_any_mask(config: Any) -> bool:
    """Whether a model's attention mask can be given for each pair of tokens."""
    eager_or_sdpa = getattr(config, "_attn_implementation", None) in ("eager", "sdpa", None)
    return config.model_type in _ANY_MASK and eager_or_sdpa and not getattr(config, "alibi", False)


def padded_left(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens ``(B, L)`` and their mask, which are padded on either side, padded on the left."""
    order = mask.argsort(dim=1, stable=True)
    return ids.gather(1, order), mask.gather(1, order)


def chain_pass(backbone: Any, ids: Tensor, mask: Tensor, *, keep: int, **more: Any) -> Any:
    """The model over tokens ``(B, L)`` one after the other; the logits are those of the last ``keep`` places."""
    options: dict[str, Any] = {"attention_mask": mask, "logits_to_keep": keep, "use_cache": False} | more
    # Some (Bloom) have positions by the mask alone.
    if "position_ids" in inspect.signature(backbone.forward).parameters:
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    return backbone(input_ids=ids, **options)


def tree_pass(
    backbone: Any,
    ids: Tensor,
    mask: Tensor,
    past: Any = None,
    *,
    tree: AnswerTree,
    chain: Tensor | None = None,
    hidden: bool = False,
) -> Any:
    """The model over prompts ``(B, L)`` and a tree, in one pass; the logits are those of the tree's branching nodes.

    ``chain``, ``(B, T)``, are tokens that also follow each prompt; the logits at its end and at theirs come last.
    ``past`` are keys and values of what stands before ``ids``; the mask is that of both.
    """
    size, length, nodes = *ids.shape, len(tree.tokens)
    added = tree.tokens.expand(size, -1)
    place, depth, sees = tree.place + length - 1, tree.depth, tree.sees
    if chain is not None:
        steps = torch.arange(chain.shape[1], device=ids.device)
        added, depth = torch.cat([added, chain], 1), torch.cat([depth, steps + 1])
        sees = torch.block_diag(sees, steps[:, None] >= steps).bool()
        place = torch.cat([place, place.new_tensor([length - 1]), steps + length + nodes])
    position = torch.cat([mask.cumsum(-1) - 1, mask.sum(-1, keepdim=True) + depth - 1], 1).clamp_min(0)
    read = mask.shape[1] - length
    return backbone(
        input_ids=torch.cat([ids, added], 1),
        attention_mask=_masks(backbone.config, mask, sees, position=position, read=read, dtype=backbone.dtype),
        position_ids=position[:, read:],
        logits_to_keep=place,
        use_cache=past is not None,
        output_hidden_states=hidden,
        **{cache_name(): past},
    )


def _masks(config: Any, mask: Tensor, sees: Tensor, *, position: Tensor, read: int, dtype: torch.dtype) -> Any:
    """Who attends to whom, in the form of :func:`masks`; no rows of what has been read."""
    length = mask.shape[1]
    total = position.shape[1]
    allowed = F.pad(mask.bool(), (0, total - length))[:, None].repeat(1, total - read, 1)
    allowed[:, : length - read] &= torch.ones(length, total, dtype=torch.bool, device=mask.device).tril()[read:]
    allowed[:, length - read :, length:] = sees
    # Attention to nothing would be NaN.
    allowed |= torch.eye(total, dtype=torch.bool, device=mask.device)[read:]
    return masks(config, allowed, position[:, read:], position, dtype=dtype)


def masks(config: Any, allowed: Tensor, query: Tensor, position: Tensor, *, dtype: torch.dtype) -> Any:
    """Who attends to whom, bool ``(B, S, K)``, for a model: one mask, ``(B, 1, S, K)``, or one for each type of layer.

    The positions of those that attend, ``(B, S)``, and of all, ``(B, K)``, count for layers with a window.
    """

    def form(allowed: Tensor) -> Tensor:
        allowed = allowed[:, None]
        if config._attn_implementation == "sdpa":
            return allowed
        zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return zeros.masked_fill(~allowed, torch.finfo(dtype).min)

    window, types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    near = allowed & (query[:, :, None] - position[:, None] < window) if window else allowed
    if types is None:
        return form(near)
    return {name: form(near if name == "sliding_attention" else allowed) for name in set(types)}


def paths_pass(backbone: Any, ids: Tensor, mask: Tensor, paths: Tensor, hidden: bool = False) -> tuple[Any, Any]:
    """The model over prompts ``(B, L)``, and over each path ``(P, T)`` after each of them.

    Returns the output for the prompts and logits at their ends and at each token of the paths, ``(B, P, T + 1, V)``.
    """
    count, (size, _) = len(paths), ids.shape
    full = F.pad(mask, (0, paths.shape[1]), value=1).repeat_interleave(count, 0)
    if torch.is_grad_enabled():
        # Checkpoints of activations allow no cache.
        output = chain_pass(backbone, ids, mask, keep=1, output_hidden_states=hidden)
        rows = torch.cat([ids.repeat_interleave(count, 0), paths.repeat(size, 1)], 1)
        after = chain_pass(backbone, rows, full, keep=paths.shape[1]).logits
    else:
        output = chain_pass(backbone, ids, mask, keep=1, use_cache=True, output_hidden_states=hidden)
        cache = getattr(output, cache_name())
        cache.batch_repeat_interleave(count)
        options = {cache_name(): cache, "use_cache": True}
        after = chain_pass(backbone, paths.repeat(size, 1), full, keep=paths.shape[1], **options).logits
    first = output.logits[:, None].expand(-1, count, -1, -1)
    return output, torch.cat([first, after.unflatten(0, (size, count))], 2)


class Shape(NamedTuple):
    """What decides the FLOPs of scoring the answers to a prompt: the sizes of their trie."""

    tree: bool  # one pass over the tree, not one over each path
    nodes: int  # tokens of the tree
    branching: int  # places with logits
    paths: int
    tokens: int  # of each path

    @classmethod
    def of(cls, config: Any, trie: AnswerTrie, tree: AnswerTree) -> "Shape":
        """The sizes of a trie for a model."""
        return cls(takes_any_mask(config), len(tree.tokens), len(tree.place), *trie.paths.shape)

    @property
    def added(self) -> int:
        """Tokens that are read after the prompt."""
        return self.nodes if self.tree else self.paths * self.tokens


def label_words_flops(
    config: Any, lengths: Tensor, shape: Shape, convention: FlopsConvention = "exact", shared: Tensor | int = 0
) -> Tensor:
    """FLOPs of scoring the answers after prompts of these lengths, ``(N,)``, in float64 ``(N,)``.

    The first ``shared`` tokens are not read, ``(N,)``; the others attend to them.
    """
    config_json = flops_key(config)
    if convention == "paper":
        flops = 2.0 * causal_weights(config_json) * (PAPER_LENGTH + shape.added)
        return torch.full(lengths.shape, flops, dtype=torch.float64)
    return _by_length(words_law(config_json, shape)[0], lengths, shared, added=shape.added)


def _by_length(law: list[float], lengths: Tensor, shared: Tensor | int, *, added: int = 0) -> Tensor:
    """FLOPs by the coefficients of a pass over so many tokens and ``added`` ones, without reading ``shared`` ones.

    Each token would attend to all tokens, and the second coefficient also counts the added ones' attention to it.
    """
    x = lengths.double().cpu()
    return law[0] + law[1] * x + law[2] * x * x - shared * (law[1] + law[2] * (x - added))


@lru_cache(maxsize=32)
def words_law(config_json: str, shape: Shape) -> tuple[list[float], str]:
    """Coefficients of the FLOPs by the prompt's length, and the reason if they are only estimated."""

    def run(model: Any, ids: Tensor) -> None:
        # Without a mask, the library would read positions, which have no values here.
        mask = torch.ones_like(ids)
        if not shape.added:
            chain_pass(model, ids, mask, keep=1)
        elif shape.tree:
            n, m = shape.nodes, shape.branching
            tokens, depth, sees, place = (ids.new_zeros(size) for size in ((n,), (n,), (n, n), (m,)))
            tree_pass(model, ids, mask, tree=AnswerTree(tokens, depth, sees.bool(), place))
        else:
            paths_pass(model, ids, mask, ids.new_zeros(shape.paths, shape.tokens))

    return causal_law(config_json, run, longest=shape.nodes if shape.tree else shape.tokens, added=shape.added)


# Windows of which one sees all that is counted, and the other next to nothing.
_WIDE, _NARROW = 4096, 2
# Reading a prompt, with the logits at its end.
_PROMPT = Shape(tree=True, nodes=0, branching=1, paths=1, tokens=0)


def read_flops(
    config: Any,
    lengths: Tensor,
    convention: FlopsConvention = "exact",
    places: Tensor | int = 1,
    shared: Tensor | int = 0,
) -> Tensor:
    """FLOPs of one pass over so many tokens, ``(N,)``, with logits at some places, in float64 ``(N,)``.

    The first ``shared`` tokens are not read, ``(N,)``; the others attend to them.
    """
    config_json = flops_key(config)
    if convention == "paper":
        return torch.full(lengths.shape, 2.0 * causal_weights(config_json) * PAPER_LENGTH, dtype=torch.float64)
    law = text_law(config_json)[0]
    return _by_length(law, lengths, shared) + law[0] * (places - 1)


def text_flops(
    config: Any,
    lengths: Tensor,
    steps: Tensor,
    convention: FlopsConvention = "exact",
    *,
    beams: int = 1,
    shared: Tensor | int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """FLOPs of a text of ``steps`` tokens after a prompt of ``lengths`` tokens, both ``(N,)``, in float64 ``(N,)``.

    Three parts: reading the prompt but its first ``shared`` tokens, which gives the first token of the text; each later
    token, on each of the ``beams``, with the keys and values of those before it; and scoring the finished text by one
    pass over prompt and text.
    """
    x, more = lengths.double().cpu(), steps.double().cpu() - 1
    config_json = flops_key(config)
    prompt = read_flops(config, x, convention, shared=shared)
    again = read_flops(config, x + more, convention, places=more + 1, shared=shared)
    if convention == "paper":
        token = 2.0 * causal_weights(config_json)
        return prompt, token * beams * more, again + token * more
    _, (token, key, near, window), _ = text_law(config_json)
    # The last step sees all tokens but the last one, the first of them one more than the prompt.
    seen = more * x + more * (more + 1) / 2
    inside = (window - x).clamp_min(0).minimum(more)
    seen_near = inside * x + inside * (inside + 1) / 2 + (more - inside) * window
    return prompt, beams * (token * more + key * seen + near * seen_near), again


@lru_cache(maxsize=32)
def text_law(config_json: str) -> tuple[list[float], tuple[float, float, float, float], str]:
    """Coefficients of a prompt's FLOPs by its length; FLOPs of a token of the text; the reason if they are estimated.

    A token costs so much by itself, for each token that it sees, and for each of them within the window, the last
    number: layers with a window see no more than that, however long the text is.
    """
    prompt, reason = words_law(config_json, _PROMPT)

    def step(model: Any, ids: Tensor) -> None:
        cache = getattr(chain_pass(model, ids, torch.ones_like(ids), keep=1, use_cache=True), cache_name())
        mask = ids.new_ones(1, ids.shape[1] + 1)
        chain_pass(model, ids[:, :1], mask, keep=1, use_cache=True, **{cache_name(): cache})

    def law(window: int | None) -> tuple[float, float]:
        # Other windows than the model's show which layers have one.
        fields = json.dumps(json.loads(config_json) | ({"sliding_window": window} if window else {}))
        both, reason = causal_law(fields, step, longest=1, added=1)
        reasons.append(reason)
        # A step after n tokens sees n + 1.
        return (both[0], 0.0) if reason else (both[0] - prompt[0] - both[1] + prompt[1], both[1] - prompt[1])

    reasons = [reason]
    window = json.loads(config_json).get("sliding_window") or 0
    token, key = law(_WIDE if window else None)
    near = key - law(_NARROW)[1] if window else 0.0
    return prompt, (token, key - near, near, float(window)), next(filter(None, reasons), "")
