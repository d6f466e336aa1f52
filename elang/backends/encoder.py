"""Encoders (and decoders with a classification head) as classifiers, and the heads on a backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from elang.backends.backend import Answer, spread, sum_by_example
from elang.backends.fast.onnx import OnnxPath
from elang.backends.flops import FlopsConvention, flops_by_length
from elang.backends.text_model import TextModel


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the hidden states over real tokens.

    Args:
        hidden: Shape ``(N, L, D)``.
        mask: Shape ``(N, L)``, 1 on real tokens.

    Returns:
        Shape ``(N, D)``.
    """
    weight = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1)


class EncoderHead(nn.Module):
    """Classifies an encoder-decoder's encoder output, so that inputs can be deferred before its decoder runs.

    The paper's head as we read it, one linear layer on the masked mean of a detached encoder; the norm is ours.

    Args:
        hidden_size: Width ``D`` of the encoder's hidden states.
        num_labels: Number of classes ``C``.
    """

    def __init__(self, hidden_size: int, num_labels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.out = nn.Linear(hidden_size, num_labels)

    def forward(self, pooled: Tensor, detach: bool = True) -> Tensor:
        """Return the head's logits.

        Args:
            pooled: Mean hidden states over real tokens (:func:`masked_mean`), shape ``(N, D)``.
            detach: Whether gradients stop here and leave the encoder as it is.

        Returns:
            Logits, float32, shape ``(N, C)``.
        """
        if detach:
            pooled = pooled.detach()
        with torch.autocast(pooled.device.type, enabled=False):
            logits: Tensor = self.out(self.norm(pooled.to(self.out.weight.dtype))).float()
            return logits


def in_float32(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A forward hook that turns a head's inputs into float32."""
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)


class Classifier(TextModel):
    """Any ``AutoModelForSequenceClassification``: one output a class, a candidate, or the value."""

    onnx_path: OnnxPath | None = None

    def add_heads(self) -> None:
        """Give it a router head, untrained."""
        self.heads["router"] = self._router(len(self.label_names))

    def cast(self, dtype: torch.dtype) -> None:
        """Bring the body's weights to a smaller precision; the classes' head stays in float32, and so do logits."""
        body = self.backbone.base_model
        heads = [module for module in self.backbone.children() if module is not body]
        whole = [weight.data for head in heads for weight in head.parameters()]
        super().cast(dtype)
        for weight, kept in zip((w for head in heads for w in head.parameters()), whole, strict=True):
            weight.data = kept
        for head in heads:
            head.register_forward_pre_hook(in_float32)

    def return_states(self) -> None:
        """Give hidden states with the answers in training."""
        self.returns_states = True

    def export(self) -> None:
        """Run the backbone by ONNX Runtime from now on."""
        self.onnx_path = OnnxPath(self.backbone, list(self.tokenizer("a")))

    def forward(self, inputs: dict[str, Tensor], target: Tensor | None = None, want_logits: bool = True) -> Answer:
        """Answer a batch."""
        counts = inputs.get("num_choices")
        rows = {name: value for name, value in inputs.items() if name != "num_choices"}
        # The heads learn after all else.
        heads, states = bool(self.heads) and not self.training, self.returns_states and self.training
        found: tuple[Tensor, ...] | None = None
        if self.onnx_path is not None and not (self.training or torch.is_grad_enabled()):
            logits, last = self.onnx_path(rows, hidden=heads)
        else:
            out = self.backbone(**rows, output_hidden_states=heads or states)
            logits, found = out.logits.float(), out.hidden_states
            last = found[-1] if heads and found is not None else None
        pooled = None if last is None else masked_mean(last.detach(), inputs["attention_mask"])
        if counts is not None:
            logits = spread(logits[:, 0], counts, len(self.label_names))
            pooled = None if pooled is None else sum_by_example(pooled, counts) / counts[:, None]
        loss = None if target is None else self.task.kind.loss(logits, target, self.label_smoothing)
        return Answer(logits, self.predict(logits), loss, pooled, states=found if states else None)

    def flops(
        self, inputs: dict[str, Tensor], convention: FlopsConvention = "exact", steps: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cost of each input, all its candidates together."""
        found = flops_by_length(self.backbone.config, inputs["attention_mask"].sum(-1).cpu(), convention)
        if "num_choices" in inputs:
            found = sum_by_example(found, inputs["num_choices"].cpu())
        return {"flops": found + self._head_flops("router")}
