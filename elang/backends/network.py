"""A network of ``transformers`` with its tokenizer: precision, ways to run it, set-up of its training."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elang.backends.fast.t5 import FAMILIES, T5Path
from elang.backends.flops import check_cost
from elang.errors import InputError, need
from elang.files import file_sha256, folder_sha256
from elang.records.manifest import Manifest
from elang.tasks.text_task import TextTask


class Network(nn.Module):
    """A backbone and its tokenizer, whatever it answers.

    Args:
        backbone: The model of ``transformers``.
        tokenizer: Its tokenizer.
        task: What it answers.
    """

    # Whether it is trained on classes or tokens that a share of the probability can be given to.
    smooths_labels = True

    def __init__(self, backbone: Any, tokenizer: Any, task: TextTask) -> None:
        super().__init__()
        self.backbone, self.tokenizer, self.task = backbone, tokenizer, task
        self.manifest: Manifest | None = None
        # The folder or checkpoint that the weights are from.
        self.weights: Path | None = None
        self.short_path: T5Path | None = None
        self.label_smoothing = 0.0
        self.in_step = False

    def prepare_training(
        self, label_smoothing: float, *, freeze_embeddings: bool, checkpointing: bool, compiled: bool
    ) -> None:
        """Set it up to be trained.

        Args:
            label_smoothing: Share of the probability that the targets give to all other classes or tokens.
            freeze_embeddings: Leave the embedding tables as they are.
            checkpointing: Compute activations again in the backward pass.
            compiled: Compile what is called from outside, in place, so that the weights keep their names.

        Raises:
            InputError: If its targets cannot be smoothed so.
        """
        if not 0 <= label_smoothing < 1 or (label_smoothing and not self.smooths_labels):
            raise InputError(
                f"--model.label_smoothing {label_smoothing} must be in [0, 1), and 0 where an encoder-decoder answers "
                "with labels."
            )
        self.label_smoothing = label_smoothing
        # from_pretrained leaves evaluation mode on, Lightning keeps it, and training would run without dropout.
        self.train()
        # Scores of fine-tuned weights are not those that the loaded thresholds were chosen for.
        self.manifest = None
        self.backbone.get_input_embeddings().requires_grad_(not freeze_embeddings)
        if checkpointing:
            # transformers gave it a new name.
            name = ("gradient", "activation")[hasattr(self.backbone, "activation_checkpointing_enable")]
            getattr(self.backbone, f"{name}_checkpointing_enable")({"use_reentrant": False})
        for part in self.compiled_parts() if compiled else ():
            # Shapes follow the batch.
            part.compile(dynamic=True)

    def keep_in_step(self) -> None:
        """Take as many steps as other processes when it generates, for these hold parts of its weights."""
        self.in_step = True

    def check_cost(self) -> None:
        """Find out how its FLOPs are counted (:func:`~elang.backends.flops.check_cost`) before they are needed."""
        check_cost(self.backbone.config, generates=self.task.kind.generates)

    def cast(self, dtype: torch.dtype) -> None:
        """Bring the backbone's weights to a smaller precision, for inference.

        Raises:
            InputError: If the family overflows in it.
        """
        if dtype == torch.float16 and self.backbone.config.model_type in FAMILIES:
            raise InputError(
                f"A '{self.backbone.config.model_type}' model overflows in float16. Take bfloat16, or float32."
            )
        self.short_path = None
        for weight in self.backbone.parameters():
            weight.data = weight.data.to(dtype)

    def quantize(self) -> None:
        """Keep the matrices of the body's layers as int8 with a scale for each row, for inference.

        What is computed with them stays in the precision of the other weights. Embeddings and heads are left alone.

        Raises:
            InputError: If torchao is not installed.
        """
        need("super_int8", "int8", "torchao")
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        body, words = self.backbone.base_model, self.backbone.get_output_embeddings()
        heads = {module for module in self.backbone.children() if body is not self.backbone and module is not body}
        outside = {part for head in heads for part in head.modules()} | {words}
        self.short_path = None
        quantize_(
            self.backbone,
            Int8WeightOnlyConfig(),
            filter_fn=lambda module, name: isinstance(module, nn.Linear) and module not in outside,
        )

    def export(self) -> None:
        """Run the backbone by ONNX Runtime from now on, for inference on the CPU; the answers stay the same.

        Raises:
            InputError: If it is an encoder-decoder, or as :class:`elang.backends.fast.onnx.OnnxPath` says.
        """
        raise InputError(
            f"onnx is for encoders, and this model is a '{self.backbone.config.model_type}'. Leave it out."
        )

    def shorten(self) -> None:
        """Use the short forward pass where its family has one, for inference only; the answers stay the same."""
        if self.backbone.config.model_type in FAMILIES and not (self.short_path and self.short_path.current):
            self.short_path = T5Path(self.backbone)

    @property
    def inference_path(self) -> T5Path | None:
        """The short forward pass, where it is there and no gradients are asked for."""
        return None if self.training or torch.is_grad_enabled() else self.short_path

    def encoder_output(self, inputs: dict[str, Tensor]) -> Tensor:
        """The last hidden state of an encoder-decoder's encoder, ``(B, L, D)``."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if (path := self.inference_path) is not None:
            return path.encode(ids, mask)
        hidden: Tensor = self.backbone.get_encoder()(
            input_ids=ids, attention_mask=mask, return_dict=True
        ).last_hidden_state
        return hidden

    def compiled_parts(self) -> list[nn.Module]:
        """The modules that are called from outside, for ``torch.compile``."""
        return [self.backbone]

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of the folder or checkpoint that the weights are from; empty for those from the hub."""
        if self.weights is None:
            return ""
        return folder_sha256(self.weights) if self.weights.is_dir() else file_sha256(self.weights)
