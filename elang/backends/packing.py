"""Several short prompts, each with what follows it, in one row of a training batch, without attention between them.

A row is as long as the longest of them, so that none attends to more places than without packing. Positions count from
the start of each prompt. As in :func:`~elang.backends.causal_passes.tree_pass`, the mask is given for each pair of
tokens; nothing depends on how a version of the library finds where packed texts begin.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.backends.answer_trie import AnswerTree
from elang.backends.causal_passes import masks, padded_left, takes_any_mask
from elang.errors import InputError


def check_packing(config: Any) -> None:
    """Refuse a family in whose layers texts of one row cannot be kept apart."""
    if not takes_any_mask(config):
        raise InputError(
            f"--model.packing cannot keep the texts of one row apart in a '{config.model_type}' model (attention "
            f"{getattr(config, '_attn_implementation', None)}): its layers take no mask for each pair of tokens. "
            "Leave it out; docs/language-models.md lists the families that can."
        )


class After(NamedTuple):
    """What follows each prompt of a batch: M tokens with logits at K places, in a tree that all prompts share."""

    ids: Tensor  # (B, M)
    real: Tensor  # which of them are there, bool (B, M)
    depth: Tensor  # as in AnswerTree, (M,)
    sees: Tensor  # bool (M, M)
    place: Tensor  # where logits are wanted: 0 for the prompt's end, m + 1 for token m, (K,)

    @classmethod
    def of(cls, tree: AnswerTree | None, texts: Tensor) -> "After":
        """A tree, if there is one, and all tokens but the last one of texts ``(B, T)``, padded with negative ones.

        The places are those of the tree, and those before each token of the texts.
        """
        chain, real = texts[:, :-1].clamp_min(0), texts[:, 1:] >= 0
        steps = torch.arange(chain.shape[1], device=chain.device)
        sees, ends = steps[:, None] >= steps, F.pad(steps + 1, (1, 0))
        if tree is None:
            return cls(chain, real, steps + 1, sees, ends)
        size, nodes = len(chain), len(tree.tokens)
        return cls(
            torch.cat([tree.tokens.expand(size, -1), chain], 1),
            torch.cat([real.new_ones(size, nodes), real], 1),
            torch.cat([tree.depth, steps + 1]),
            torch.block_diag(tree.sees, sees).bool(),
            torch.cat([tree.place, ends.where(ends == 0, ends + nodes)]),
        )


def rows_of(lengths: list[int]) -> tuple[list[int], list[int]]:
    """The row and the first place of each text in rows as long as the longest one: the longest first, where they fit.

    >>> rows_of([3, 5, 2, 1])
    ([1, 0, 1, 2], [0, 0, 3, 0])
    """
    width, used = max(lengths), list[int]()
    row, start = [0] * len(lengths), [0] * len(lengths)
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        length = lengths[text]
        row[text] = next((i for i, taken in enumerate(used) if taken + length <= width), len(used))
        if row[text] == len(used):
            used.append(0)
        start[text] = used[row[text]]
        used[row[text]] += length
    return row, start


class Packed(NamedTuple):
    """Rows of texts as a model reads them, and where outputs are wanted in them."""

    inputs: dict[str, Any]
    row: Tensor  # of each place whose output is wanted, (N,)
    column: Tensor  # (N,)
    there: Tensor  # the texts and places that these are, in this order, bool (B, K)

    @classmethod
    def of(cls, backbone: Any, ids: Tensor, mask: Tensor, after: After) -> "Packed":
        """Pack prompts ``(B, L)``, which are padded on the left, with what follows each."""
        tokens, real = torch.cat([ids, after.ids], 1), torch.cat([mask.bool(), after.real], 1)
        lengths, device = real.sum(1), ids.device
        # The rows are planned on the CPU.
        row, start = torch.tensor(rows_of(lengths.tolist()), device=device)
        text, token = real.nonzero(as_tuple=True)
        place = (row[text], (real.cumsum(1) - 1)[text, token] + start[text])
        prompt = mask.sum(1, keepdim=True)
        position = torch.cat([mask.cumsum(1) - 1, prompt + after.depth - 1], 1)
        node = torch.arange(-ids.shape[1], after.ids.shape[1], device=device).clamp_min(-1)

        def packed(values: Tensor, empty: int) -> Tensor:
            out = values.new_full((int(row.max()) + 1, int(lengths.max())), empty)
            return out.index_put(place, values.expand(real.shape)[text, token])

        where, owner = packed(position, 0), packed(torch.arange(len(ids), device=device)[:, None], -1)
        allowed = _allowed(owner, packed(node, -1), where, after.sees)
        inputs = {
            "input_ids": packed(tokens, 0),
            "attention_mask": masks(backbone.config, allowed, where, where, dtype=backbone.dtype),
            "position_ids": where,
            "use_cache": False,
        }
        # The prompt's last token and, of the ones after it, those that are there.
        there = F.pad(after.real, (1, 0), value=True)[:, after.place]
        column = start[:, None] + prompt - 1 + F.pad(after.real, (1, 0)).cumsum(1)[:, after.place]
        return cls(inputs, row[:, None].expand_as(there)[there], column[there], there)


def packed_logits(backbone: Any, ids: Tensor, mask: Tensor, after: After) -> Tensor:
    """The logits at the places after each prompt ``(B, L)``, which are padded on the left: ``(B, K, V)``.

    Those after tokens that are not there are 0.
    """
    rows = Packed.of(backbone, ids, mask, after)
    with _logits_at(backbone, rows.row, rows.column):
        flat = backbone(**rows.inputs).logits[0]
    logits: Tensor = flat.new_zeros(*rows.there.shape, flat.shape[-1])
    return logits.index_put(rows.there.nonzero(as_tuple=True), flat)


def packed_outputs(backbone: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The outputs of a head on the last token of each text ``(B, L)``, padded on either side: ``(B, C)``."""
    ids, mask = padded_left(ids, mask)
    rows, outputs = Packed.of(backbone, ids, mask, After.of(None, ids[:, :1])), list[Tensor]()
    # The library's classifier would choose one token of each row; its head is small enough for all.
    hook = backbone.score.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        backbone(**rows.inputs)
    finally:
        hook.remove()
    return outputs[0][rows.row, rows.column]


def _allowed(text: Tensor, node: Tensor, position: Tensor, sees: Tensor) -> Tensor:
    """Who attends to whom in rows of texts, bool ``(R, W, W)``.

    Of each token of a row, ``(R, W)``, its text, its place after the prompt (-1 within it), and its position.
    """
    # One more row and column for the tokens of prompts.
    after = F.pad(sees, (0, 1, 0, 1))[node[:, :, None], node[:, None]]
    before = (node[:, None] < 0) & (position[:, None] <= position[:, :, None])
    # Padding attends to padding, because attention to nothing would be NaN.
    return (text[:, None] == text[:, :, None]) & (after | before)


@contextmanager
def _logits_at(backbone: Any, row: Tensor, column: Tensor) -> Iterator[None]:
    """Within, a model computes logits at these places alone, ``(1, N, V)``; the library would at the same of all rows.

    Vocabularies are large, so logits of all tokens would cost as much as some layers.
    """
    head = backbone.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, args: (args[0][row, column][None], *args[1:]))
    try:
        yield
    finally:
        hook.remove()
