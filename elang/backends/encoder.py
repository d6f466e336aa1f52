"""Encoders (and decoders with a classification head) as classifiers, and the head on an encoder-decoder's encoder."""

from typing import Any

import torch
from torch import Tensor, nn

from elang.backends.backend import Answer, spread, sum_by_example
from elang.backends.fast.onnx import OnnxPath
from elang.backends.flops import FlopsConvention, flops_by_length
from elang.backends.loading.padding import finds_last_by_padding
from elang.backends.packing import check_packing, packed_outputs
from elang.backends.text_model import TextModel
from elang.errors import InputError


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of hidden states ``(N, L, D)`` over real tokens, where ``mask`` ``(N, L)`` is 1: ``(N, D)``."""
    weight = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)


class EncoderHead(nn.Module):
    """Classifies an encoder-decoder's encoder output, of width ``hidden_size``, before the decoder runs.

    We read the paper's head as one linear layer on the masked mean of a detached encoder; the norm is our addition.
    """

    def __init__(self, hidden_size: int, num_labels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.out = nn.Linear(hidden_size, num_labels)

    def forward(self, pooled: Tensor, detach: bool = True) -> Tensor:
        """Logits, float32 ``(N, C)``, from :func:`masked_mean`; ``detach`` keeps gradients out of the encoder."""
        pooled = pooled.detach() if detach else pooled
        with torch.autocast(pooled.device.type, enabled=False):
            logits: Tensor = self.out(self.norm(pooled.to(self.out.weight.dtype))).float()
            return logits


def in_float32(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A forward hook that converts a head's inputs to float32."""
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)


class SequenceClassifier(TextModel):
    """Any ``AutoModelForSequenceClassification``: one output per class or candidate, or the value."""

    onnx_path: OnnxPath | None = None

    def add_heads(self) -> None:
        """Add a router head, untrained."""
        self.heads["router"] = self._router(len(self.label_names))

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the body's weights to a lower precision; the classification head and the logits stay float32."""
        body = self.backbone.base_model
        heads = [module for module in self.backbone.children() if module is not body]
        weights = [(weight, weight.data) for head in heads for weight in head.parameters()]
        super().cast(dtype)
        for weight, data in weights:
            weight.data = data
        for head in heads:
            head.register_forward_pre_hook(in_float32)

    def check_packing(self) -> None:
        """Refuse what is no decoder with a head on the last token."""
        names = self.tokenizer.model_input_names
        if (
            not finds_last_by_padding(self.backbone.config)
            or "token_type_ids" in names
            or not hasattr(self.backbone, "score")
        ):
            super().check_packing()
        check_packing(self.backbone.config)

    def return_states(self) -> None:
        """Return hidden states with the answers in training."""
        if self.packing:
            raise InputError("Hidden states are not distilled from several texts in a row: leave out --model.packing.")
        self.returns_states = True

    def export(self) -> None:
        """Run the backbone with ONNX Runtime from now on."""
        self.onnx_path = OnnxPath(self.backbone, list(self.tokenizer("a")))

    def forward(self, inputs: dict[str, Tensor], target: Tensor | None = None, want_logits: bool = True) -> Answer:
        """Answer a batch."""
        counts = inputs.get("num_choices")
        rows = {name: value for name, value in inputs.items() if name != "num_choices"}
        # The router heads are fitted after training.
        heads, states = bool(self.heads) and not self.training, self.returns_states and self.training
        hidden: tuple[Tensor, ...] | None = None
        if self.onnx_path is not None and not (self.training or torch.is_grad_enabled()):
            logits, last = self.onnx_path(rows, hidden=heads)
        elif self.packing and self.training:
            last, logits = None, packed_outputs(self.backbone, rows["input_ids"], rows["attention_mask"]).float()
        else:
            out = self.backbone(**rows, output_hidden_states=heads or states)
            logits, hidden = out.logits.float(), out.hidden_states
            last = hidden[-1] if heads and hidden is not None else None
        pooled = None if last is None else masked_mean(last.detach(), inputs["attention_mask"])
        if counts is not None:
            logits = spread(logits[:, 0], counts, len(self.label_names))
            pooled = None if pooled is None else sum_by_example(pooled, counts) / counts[:, None]
        loss = None if target is None else self.task.kind.loss(logits, target, self.label_smoothing)
        return Answer(logits, self.predict(logits), loss, pooled, states=hidden if states else None)

    def flops(
        self, inputs: dict[str, Tensor], convention: FlopsConvention = "exact", steps: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cost of each input, all its candidates together."""
        flops = flops_by_length(self.backbone.config, inputs["attention_mask"].sum(-1).cpu(), convention)
        if "num_choices" in inputs:
            flops = sum_by_example(flops, inputs["num_choices"].cpu())
        return {"flops": flops + self._head_flops("router")}
