"""What all encoder-decoders share: the encoder, and the decoder over given tokens."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from elang.backends.backend import Encoded
from elang.backends.encoder import masked_mean
from elang.backends.fast.t5 import FAMILIES, T5Path
from elang.backends.text_model import TextModel
from elang.errors import InputError


class EncoderDecoder(TextModel):
    """Any ``AutoModelForSeq2SeqLM``."""

    text_to_text = True
    short_path: T5Path | None = None

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the weights to a lower precision."""
        if dtype == torch.float16 and self.backbone.config.model_type in FAMILIES:
            raise InputError(
                f"A '{self.backbone.config.model_type}' model overflows in float16. Take bfloat16, or float32."
            )
        super().cast(dtype)

    def shorten(self) -> None:
        """Use the short forward pass of T5."""
        if self.backbone.config.model_type in FAMILIES and not (self.short_path and self.short_path.current):
            self.short_path = T5Path(self.backbone)

    @property
    def inference_path(self) -> T5Path | None:
        """The short forward pass, if there is one and no gradients are needed."""
        return None if self.training or torch.is_grad_enabled() else self.short_path

    def compiled_parts(self) -> list[nn.Module]:
        """The encoder runs by itself, and the whole model then takes its output."""
        return [self.backbone.get_encoder(), self.backbone]

    def check_start(self, start: int | None) -> None:
        """Refuse a model whose decoder has no start token."""
        if start is None:
            raise InputError(
                f"The decoder of a '{self.backbone.config.model_type}' model has no fixed start token (no "
                "decoder_start_token_id in its config.json), so its answers cannot be scored."
            )

    def encode(self, inputs: dict[str, Tensor]) -> Encoded:
        """Run the encoder and the head on its output."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if (path := self.inference_path) is not None:
            hidden = path.encode(ids, mask)
        else:
            encoder = self.backbone.get_encoder()
            hidden = encoder(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
        pooled = masked_mean(hidden, mask) if self.heads else None
        early = None
        if "encoder" in self.heads:
            early = self.heads["encoder"](pooled, detach=self.detached)
        return Encoded(hidden, mask, None if pooled is None else pooled.detach(), early)

    def _decode(self, encoded: Encoded, **decoder: Tensor) -> Any:
        return self.backbone(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.hidden),
            attention_mask=encoded.mask,
            use_cache=False,
            **decoder,
        )

    def _generated(self, encoded: Encoded, **options: Any) -> tuple[Tensor, Tensor]:
        """What the library generates, without the start token, int64 ``(B, T)``, and the steps of each, ``(B,)``."""
        ids: Tensor = self.backbone.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.hidden),
            attention_mask=encoded.mask,
            synced_gpus=self.in_step,
            **options,
        )[:, 1:]
        return ids, self.count_steps(ids)
