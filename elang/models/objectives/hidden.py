"""Distillation of hidden states: the Swift's layers follow layers of the Super's, which is run beside it."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from elang.backends.encoder import masked_mean
from elang.backends.text_model import TextModel
from elang.data.batches import Reader
from elang.errors import InputError
from elang.method.losses import hidden_distillation

# Texts whose tokens are compared to find out whether two tokenizers cut alike.
_COMPARED = 1000


def even_layers(swift: int, super_: int) -> list[int]:
    """TinyBERT's uniform map: the Super's layer for each of the Swift's, 0 being the embeddings.

    >>> even_layers(3, 12)
    [0, 4, 8, 12]
    """
    return [round(layer * super_ / swift) for layer in range(swift + 1)]


class HiddenStateObjective(nn.Module):
    """Maps the Swift's hidden states to the Super's width, layer by layer, and compares them.

    Token by token where both tokenizers cut texts alike, and else by the mean over each text.

    Args:
        swift: The Swift.
        super_: The Super, which stays as it is and outside the module's weights.
        layer_map: The Super's layer for each of the Swift's, 0 being the embeddings; -1 leaves one out. By default
            spread evenly.

    Raises:
        InputError: If one is no encoder, or the map does not fit.
    """

    def __init__(self, swift: TextModel, super_: TextModel, layer_map: list[int] | None = None) -> None:
        super().__init__()
        for model in (swift, super_):
            model.return_states()
        own, theirs = (model.backbone.config for model in (swift, super_))
        depth, most = own.num_hidden_layers, theirs.num_hidden_layers
        self.layer_map = even_layers(depth, most) if layer_map is None else layer_map
        if (
            len(self.layer_map) != depth + 1
            or max(self.layer_map) < 0
            or not all(-1 <= layer <= most for layer in self.layer_map)
        ):
            raise InputError(
                f"--model.layer_map {self.layer_map} must name one of the Super's layers (0, its embeddings, to "
                f"{most}; -1 for none) for the Swift's embeddings and each of its {depth} layers."
            )
        self.projections = nn.ModuleList(
            nn.Linear(own.hidden_size, theirs.hidden_size) for layer in self.layer_map if layer >= 0
        )
        # In a tuple, so that it is no part of the trained weights.
        self._super = (super_.eval().requires_grad_(False),)
        self.by_token = True

    @property
    def super_(self) -> TextModel:
        """The Super."""
        return self._super[0]

    def compare_tokenizers(self, swift: Reader, texts: list[tuple[str, ...]]) -> None:
        """Find out whether both tokenizers cut texts alike, by some of them."""
        pieces = []
        for reader in (swift, self.super_.reader):
            special = set(reader.tokenizer.all_special_ids)
            rows = reader.tokenizer([" ".join(text) for text in texts[:_COMPARED]])["input_ids"]
            plain = [[i for i in row if i not in special] for row in rows]
            more = len(rows[0]) - len(plain[0])
            pieces.append((more, [reader.tokenizer.convert_ids_to_tokens(row) for row in plain]))
        self.by_token = pieces[0] == pieces[1] and all(len(text) == 1 for text in texts[:_COMPARED])
        how = "token by token" if self.by_token else "by their means: the tokenizers differ, or there are pairs"
        rank_zero_info(f"hidden states are distilled {how}: layers {self.layer_map}")

    def forward(self, swift_states: tuple[Tensor, ...], mask: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            swift_states: The Swift's, ``depth + 1`` of shape ``(B, L, D)``.
            mask: Of its tokens, ``(B, L)``.
            inputs: The Super's inputs of the same texts.
        """
        with torch.no_grad():
            read = {name: value for name, value in inputs.items() if name != "num_choices"}
            out: Any = self.super_.backbone(**read, output_hidden_states=True)
        theirs, kept, losses = inputs["attention_mask"], iter(self.projections), []
        for own, layer in zip(swift_states, self.layer_map, strict=True):
            if layer < 0:
                continue
            state, target, where = next(kept)(own), out.hidden_states[layer], mask
            # One of the two may be cut where the other is not.
            if not self.by_token or state.shape[1] != target.shape[1]:
                state, target = masked_mean(state, mask)[:, None], masked_mean(target, theirs)[:, None]
                where = mask[:, :1]
            losses.append(hidden_distillation(state, target, where))
        return torch.stack(losses).mean()
