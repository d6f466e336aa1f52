"""Distillation of hidden states: the Swift's layers imitate layers of the Super, which runs beside it."""

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from elang.backends.encoder import masked_mean
from elang.backends.text_model import TextModel
from elang.data.batches import Reader
from elang.data.encoding import same_tokens
from elang.errors import InputError
from elang.method.losses import hidden_distillation

# Number of texts by which two tokenizers are compared.
_NUM_COMPARED = 1000


def even_layers(swift: int, super_: int) -> list[int]:
    """TinyBERT's uniform map: the Super's layer for each of the Swift's, 0 being the embeddings.

    >>> even_layers(3, 12)
    [0, 4, 8, 12]
    """
    return [round(layer * super_ / swift) for layer in range(swift + 1)]


class HiddenStateObjective(nn.Module):
    """Projects the Swift's hidden states to the Super's width, layer by layer, and compares them.

    Token by token if both tokenizers split texts alike, else by the mean over each text.

    Args:
        swift: The Swift.
        super_: The Super, which is not trained and not part of this module's weights.
        layer_map: The Super's layer for each of the Swift's, 0 being the embeddings; -1 leaves one out. By default
            spread evenly.

    Raises:
        InputError: If one is not an encoder, or the map does not fit.
    """

    def __init__(self, swift: TextModel, super_: TextModel, layer_map: list[int] | None = None) -> None:
        super().__init__()
        for model in (swift, super_):
            model.return_states()
        config, super_config = swift.backbone.config, super_.backbone.config
        depth, super_depth = config.num_hidden_layers, super_config.num_hidden_layers
        self.layer_map = even_layers(depth, super_depth) if layer_map is None else layer_map
        in_range = all(-1 <= layer <= super_depth for layer in self.layer_map)
        if len(self.layer_map) != depth + 1 or max(self.layer_map) < 0 or not in_range:
            raise InputError(
                f"--model.layer_map {self.layer_map} must name one of the Super's layers (0, its embeddings, to "
                f"{super_depth}; -1 for none) for the Swift's embeddings and each of its {depth} layers."
            )
        widths = config.hidden_size, super_config.hidden_size
        self.projections = nn.ModuleList(nn.Linear(*widths) for layer in self.layer_map if layer >= 0)
        # In a tuple, so that its weights are not part of this module's.
        self._super = (super_.eval().requires_grad_(False),)
        self.by_token = True

    @property
    def super_(self) -> TextModel:
        """The Super."""
        return self._super[0]

    def compare_tokenizers(self, swift: Reader, texts: list[tuple[str, ...]]) -> None:
        """Find out whether both tokenizers split texts alike: by the first of these texts or, without any, as such."""
        if not texts:
            self.by_token = same_tokens(swift.tokenizer, self.super_.reader.tokenizer)
            return
        texts, tokens = texts[:_NUM_COMPARED], []
        for tokenizer in (swift.tokenizer, self.super_.reader.tokenizer):
            special = set(tokenizer.all_special_ids)
            rows = tokenizer([" ".join(text) for text in texts])["input_ids"]
            words = [[i for i in row if i not in special] for row in rows]
            num_special = len(rows[0]) - len(words[0])
            tokens.append((num_special, [tokenizer.convert_ids_to_tokens(row) for row in words]))
        self.by_token = tokens[0] == tokens[1] and all(len(text) == 1 for text in texts)
        how = "token by token" if self.by_token else "by their means: the tokenizers differ, or there are pairs"
        rank_zero_info(f"hidden states are distilled {how}: layers {self.layer_map}")

    def forward(self, swift_states: tuple[Tensor, ...], mask: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of a batch, a scalar.

        Args:
            swift_states: The Swift's hidden states, ``depth + 1`` of shape ``(B, L, D)``.
            mask: The Swift's attention mask, ``(B, L)``.
            inputs: The Super's inputs for the same texts.
        """
        with torch.no_grad():
            inputs = {name: value for name, value in inputs.items() if name != "num_choices"}
            super_states = self.super_.backbone(**inputs, output_hidden_states=True).hidden_states
        super_mask, projections, losses = inputs["attention_mask"], iter(self.projections), []
        for state, layer in zip(swift_states, self.layer_map, strict=True):
            if layer < 0:
                continue
            projected, target, compared = next(projections)(state), super_states[layer], mask
            # With other limits, one of the two texts may be cut.
            if not self.by_token or projected.shape[1] != target.shape[1]:
                projected, target = masked_mean(projected, mask)[:, None], masked_mean(target, super_mask)[:, None]
                compared = mask[:, :1]
            losses.append(hidden_distillation(projected, target, compared))
        return torch.stack(losses).mean()
