"""A network of ``transformers`` with its tokenizer: set-up of training and inference, and answers in batches."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elang.backends.fast.graphs import Pass
from elang.backends.flops import check_cost
from elang.errors import InputError, need
from elang.files import folder_sha256
from elang.records.manifest import Manifest
from elang.tasks.text_task import TextTask


@dataclass(frozen=True)
class InferenceOptions:
    """How batches are answered and scored."""

    score: str | None = None  # None: nothing is scored or deferred
    threshold: float = math.inf  # inputs that score above it are deferred, if possible before decoding
    temperature: float = 1.0
    order: list[int] | None = None  # for each class of the answers its place among the logits; None: the same


@dataclass(frozen=True)
class BatchAnswers:
    """The answers to a batch in inference.

    The table, on the device, has each input's score (0 without one), answer, :meth:`Network.checksum`, and the answer's
    :meth:`~elang.tasks.kind.Kind.probability`.
    """

    table: Tensor  # (B, 4)
    texts: list[str | None] | None = None  # generated texts; None for an input that was deferred before the decoder


class Network(nn.Module, ABC):
    """A backbone of ``transformers``, its tokenizer, and the task that it answers."""

    # Whether its targets are classes or tokens that can share probability with others.
    smooths_labels = True
    # A faster forward pass of a family, for inference.
    short_path: Any = None
    # A generated text ends where this begins, too.
    stop: str = ""

    def __init__(self, backbone: Any, tokenizer: Any, task: TextTask) -> None:
        super().__init__()
        self.backbone, self.tokenizer, self.task = backbone, tokenizer, task
        self.manifest: Manifest | None = None
        # The folder or checkpoint that the weights come from, and the base's folder if these are a part (LoRA).
        self.weights: Path | None = None
        self.base: Path | None = None
        self.label_smoothing = 0.0
        self.packing = self.in_step = False

    def prepare_training(
        self,
        label_smoothing: float,
        *,
        freeze_embeddings: bool,
        checkpointing: bool,
        compiled: bool,
        packing: bool = False,
    ) -> None:
        """Set the model up for training; smoothing gives this share of probability to all other classes or tokens.

        Checkpointing recomputes activations in the backward pass. Modules are compiled in place, so that weights keep
        their names. Packing puts several short texts into one row (:mod:`elang.backends.packing`).
        """
        self.packing = packing
        if packing:
            self.check_packing()
        if packing and compiled:
            raise InputError(
                "--model.packing wants logits at other places in each step, for which --model.compile would compile "
                "anew: leave out one of them."
            )
        if not 0 <= label_smoothing < 1 or (label_smoothing and not self.smooths_labels):
            raise InputError(
                f"--model.label_smoothing {label_smoothing} must be in [0, 1), and 0 where a model answers in label "
                "words."
            )
        self.label_smoothing = label_smoothing
        # from_pretrained leaves the model in evaluation mode, Lightning keeps that, and dropout would stay off.
        self.train()
        # The loaded thresholds were chosen for the scores of other weights.
        self.manifest = None
        self.backbone.get_input_embeddings().requires_grad_(not freeze_embeddings)
        if checkpointing:
            # transformers renamed it.
            name = ("gradient", "activation")[hasattr(self.backbone, "activation_checkpointing_enable")]
            getattr(self.backbone, f"{name}_checkpointing_enable")({"use_reentrant": False})
        for part in self.compiled_parts() if compiled else ():
            part.compile(dynamic=True)

    def check_packing(self) -> None:
        """Raise an ``InputError`` if a training cannot put several texts into one row."""
        raise InputError(
            f"--model.packing is for decoder-only language models, and this is a '{self.backbone.config.model_type}' "
            "model, which reads one text in each row. Leave it out."
        )

    def sync_generation(self) -> None:
        """Generate as many steps as the other processes, which hold parts of the weights."""
        self.in_step = True

    def check_cost(self) -> None:
        """Work out how FLOPs are counted (:func:`~elang.backends.flops.check_cost`) before they are needed."""
        check_cost(self.backbone.config, generates=self.task.kind.generates)

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the backbone's weights to a lower precision, for inference."""
        self.short_path = None
        for weight in self.backbone.parameters():
            weight.data = weight.data.to(dtype)

    def quantize(self) -> None:
        """Store the matrices of the body's layers as int8 with one scale per row, for inference.

        Products are computed in the precision of the other weights. Embeddings and heads are not quantized.
        """
        need("super_int8", "int8", "torchao")
        self.short_path = None
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        body, lm_head = self.backbone.base_model, self.backbone.get_output_embeddings()
        heads = {module for module in self.backbone.children() if body is not self.backbone and module is not body}
        outside = {part for head in heads for part in head.modules()} | {lm_head}
        quantize_(
            self.backbone,
            Int8WeightOnlyConfig(),
            filter_fn=lambda module, name: isinstance(module, nn.Linear) and module not in outside,
        )

    def export(self) -> None:
        """Run the backbone with ONNX Runtime from now on, for inference on the CPU; only for encoders."""
        raise InputError(
            f"onnx is for encoders, and this model is a '{self.backbone.config.model_type}'. Leave it out."
        )

    def shorten(self) -> None:
        """Use a faster forward pass if the family has one, for inference only; the answers stay the same."""

    def compiled_parts(self) -> list[nn.Module]:
        """The modules that are called from outside, for ``torch.compile``."""
        return [self.backbone]

    @cached_property
    def weights_sha256(self) -> str:
        """Hash of all files that the weights come from; empty for a model from the hub."""
        return folder_sha256(*filter(None, (self.weights, self.base))) if self.weights is not None else ""

    @property
    def size(self) -> int:
        """The number of weights, heads included."""
        return sum(weight.numel() for weight in self.parameters())

    @abstractmethod
    def score_of(self, name: str, answer: Any, temperature: float = 1.0) -> Tensor:
        """One difficulty score of an answer to a batch, ``(B,)``; larger is harder."""

    def predict(self, logits: Tensor) -> Tensor:
        """The answer that the logits give: the best class or candidate, int64, or the value, float64, ``(B,)``."""
        return self.task.kind.predict(logits)

    @property
    def decoded(self) -> int:
        """About how many tokens of an input get logits over the vocabulary; 0 where nothing is decoded."""
        return 0

    @property
    def max_new_tokens(self) -> int:
        """The most tokens that are generated; 0 where no text is."""
        return 0

    def configure_generation(self, max_new_tokens: int, num_beams: int | None = None) -> None:
        """Set how texts are generated; without ``num_beams`` the number of beams stays."""
        raise NotImplementedError

    @property
    def end_tokens(self) -> list[int]:
        """The tokens that end a generated text."""
        ids: int | list[int] | None = self.backbone.generation_config.eos_token_id
        return [] if ids is None else [ids] if isinstance(ids, int) else ids

    def count_steps(self, ids: Tensor) -> Tensor:
        """Tokens of each generated text ``(B, T)``, the end token included, int64 ``(B,)``."""
        ends = torch.isin(ids, torch.tensor(self.end_tokens, device=ids.device))
        return torch.where(ends.any(-1), ends.int().argmax(-1) + 1, ids.shape[1])

    def texts(self, ids: Tensor) -> list[str]:
        """Generated tokens ``(B, T)``, padded with negative ones, as text."""
        rows = [[token for token in row if token >= 0] for row in ids.tolist()]
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [(text.partition(self.stop)[0] if self.stop else text).strip() for text in texts]

    def answer_batch(self, inputs: dict[str, Tensor], options: InferenceOptions) -> BatchAnswers:
        """Answer and score a batch (:meth:`elang.data.batches.EncodedExamples.batch`)."""
        return BatchAnswers(self.answer_table(inputs, options))

    def short_way(self, options: InferenceOptions) -> list[Pass] | None:
        """The same in passes of fixed shapes, which :class:`~elang.backends.fast.graphs.SmallBatches` can capture.

        One pass, with the table of :class:`BatchAnswers`; two if the score is known before the decoder: its column,
        then the table; four for a model that generates texts; ``None`` if there is no such way.
        """
        if self.task.kind.has_candidates:
            return None
        return [lambda inputs: (self.answer_table(inputs, options), None)]

    def answer_table(self, inputs: dict[str, Tensor], options: InferenceOptions) -> Tensor:
        """The table of :class:`BatchAnswers`, for a score that needs the logits."""
        answer = self(inputs)
        score = None if options.score is None else self.score_of(options.score, answer, options.temperature)
        return self.table(score, answer.logits, options.order)

    def table(self, score: Tensor | None, logits: Tensor, order: list[int] | None) -> Tensor:
        """The table of :class:`BatchAnswers` from scores ``(B,)``, if there are any, and logits ``(B, C)``."""
        if order is not None:
            # An index tensor would be copied to the device, which no graph can capture.
            logits = torch.stack([logits[:, place] for place in order], 1)
        score = logits.new_zeros(len(logits)) if score is None else score
        # A freely generated text may be none of the answers, so the logits decide.
        prediction = self.predict(logits)
        columns = score, prediction, self.checksum(logits), self.task.kind.probability(logits, prediction)
        return torch.stack([column.to(self.task.kind.exact_type) for column in columns], 1)

    def checksum(self, logits: Tensor) -> Tensor:
        """A number that is finite if a row of logits ``(B, C)`` can be scored, float32 ``(B,)``; one kernel."""
        if not self.task.kind.has_candidates:
            return logits.float().sum(-1)
        # Missing candidates have -inf, but an example with no candidate at all is an error.
        return logits.masked_fill(logits == -math.inf, 0).float().sum(-1) + logits.amax(-1)
