"""A model that answers a task: its backbone, tokenizer and heads, behind one interface for every family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from elang.backends.cost.flops import FlopsConvention, check_cost
from elang.backends.fast.t5 import FAMILIES, T5Path
from elang.data.tokens import Reader
from elang.errors import InputError, need
from elang.files import file_sha256, folder_sha256
from elang.method.router import RouterHead, logit_features, num_logit_features
from elang.method.scores import ROUTER_READS, SCORES, all_scores
from elang.records.manifest import Manifest
from elang.tasks.text_task import TextTask, align_labels


@dataclass(frozen=True)
class Answer:
    """What a model says of a batch.

    Attributes:
        logits: float32 ``(B, C)``: one for each class or candidate, ``-inf`` for a candidate that an example does not
            have; in a regression the value, ``(B, 1)``; of a ``sequence`` task the decoder's over the references'
            tokens, ``(B, T, V)``, in their own precision.
        prediction: int64 ``(B,)``, -1 for a generated answer that names no label; in a regression float64. Without
            meaning in a ``sequence`` task.
        loss: The task loss, a scalar, where a target was given.
        pooled: Mean last hidden state of the (encoder's) real tokens, ``(B, D)``; ``None`` without heads.
        early: Logits of the head on the encoder's output, ``(B, C)``; ``None`` but for an encoder-decoder's.
        steps: Decoder steps of a generated answer, int64 ``(B,)``; ``None`` for any other.
        source: What a ``sequence`` task's encoder made of the batch; ``None`` for any other.
        states: An encoder's hidden states, embeddings first, each ``(B, L, D)``, where they were asked for.
    """

    logits: Tensor
    prediction: Tensor
    loss: Tensor | None = None
    pooled: Tensor | None = None
    early: Tensor | None = None
    steps: Tensor | None = None
    source: Any = None
    states: tuple[Tensor, ...] | None = None


# So that FSDP finds the tensors of an answer.
register_dataclass(Answer)


class TextModel(nn.Module, ABC):
    """A backbone with what is needed to use it on a task.

    Args:
        backbone: The model of ``transformers``.
        tokenizer: Its tokenizer.
        task: What it answers.
    """

    text_to_text = False
    label_smoothing = 0.0
    want_states = False
    # Other processes hold parts of its weights, so all take as many steps when they generate.
    in_step = False

    def __init__(self, backbone: Any, tokenizer: Any, task: TextTask) -> None:
        super().__init__()
        self.backbone, self.tokenizer, self.task = backbone, tokenizer, task
        self.heads = nn.ModuleDict()
        self.manifest: Manifest | None = None
        self.original_names: list[str] = task.label_names
        # Those of the head that no file held, until it is trained.
        self.new_weights: list[str] = []
        self.weights: Path | None = None
        self.short_path: T5Path | None = None

    @property
    def num_beams(self) -> int:
        """Hypotheses that an answer is chosen from."""
        return 1

    @abstractmethod
    def forward(self, inputs: dict[str, Tensor], target: Tensor | None = None, want_logits: bool = True) -> Answer:
        """Answer a batch of model inputs, logits in float32 whatever the precision.

        Args:
            inputs: As :meth:`elang.data.tokens.EncodedExamples.batch` makes them.
            target: Class indices or values, for the loss.
            want_logits: Training without need of them (text-to-text) spares their computation.
        """

    @abstractmethod
    def add_heads(self) -> None:
        """Give it the router's heads, untrained."""

    @abstractmethod
    def flops(
        self, inputs: dict[str, Tensor], convention: FlopsConvention = "exact", steps: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cost of each input, heads included, float64 ``(B,)``.

        ``flops``, and for an encoder-decoder ``early_flops``: of an input that is deferred before the decoder. With the
        ``steps`` of generated answers also ``score_flops``: what the logits of the constrained decode, which only
        scores need, cost beside them.
        """

    def check_cost(self) -> None:
        """Find out how its FLOPs are counted (:func:`~elang.backends.cost.flops.check_cost`) before they are needed."""
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

    @property
    def label_names(self) -> list[str]:
        """Class names in the order of the logits."""
        return self.task.label_names

    @property
    def reader(self) -> Reader:
        """How it reads; a trained model that generates texts keeps its own prompt and languages."""
        own = self.task if self.manifest is not None and self.task.kind.generates else None
        return Reader(self.tokenizer, self.text_to_text, own)

    @property
    def head_scores(self) -> list[str]:
        """Names of the scores that its heads give."""
        return list(self.routers)

    @property
    def routers(self) -> dict[str, RouterHead]:
        """The router heads, by the names of their scores."""
        return {name: head for name, head in self.heads.items() if isinstance(head, RouterHead)}

    def drop_routers(self, unfitted: bool = False) -> None:
        """Take the router heads away, or only those that have learned nothing."""
        for name, head in self.routers.items():
            if not (unfitted and head.fitted):
                del self.heads[name]

    def candidates(self, name: str) -> tuple[dict[str, list[int]] | None, str | None]:
        """What a router head may read, for :meth:`elang.method.router.RouterHead.fit`, and the simplest of it."""
        if not self.task.kind.chooses:
            return None, None
        size = self.routers[name].width - self.routers[name].hidden
        # Scores alone, all that the logits tell, and the hidden state with it.
        single = {score: [i] for i, score in enumerate(ROUTER_READS) if score in ("max_softmax", "free_energy")}
        groups = {"logits": list(range(size)), "logits and hidden state": list(range(self.routers[name].width))}
        return single | groups, "max_softmax"

    def router_features(self, answer: Answer) -> dict[str, Tensor]:
        """What each router head reads, float32 ``(B, F)``."""
        if "router" not in self.heads:
            return {}
        assert answer.pooled is not None
        return {"router": self._features(answer.pooled, answer.logits, len(self.label_names))}

    def _features(self, pooled: Tensor, logits: Tensor, size: int) -> Tensor:
        return torch.cat([logit_features(logits, size), pooled.detach().float()], -1)

    def _router(self, size: int) -> RouterHead:
        hidden: int = self.backbone.config.get_text_config().hidden_size
        return RouterHead(num_logit_features(size) + hidden, hidden)

    def score_of(self, name: str, answer: Answer, temperature: float = 1.0) -> Tensor:
        """One of :meth:`scores`, without the others, ``(B,)``."""
        if name in SCORES and self.task.kind.chooses:
            return SCORES[name](answer.logits, temperature)
        return self.scores(answer, temperature)[name]

    def scores(self, answer: Answer, temperature: float = 1.0, fold: Tensor | None = None) -> dict[str, Tensor]:
        """Every difficulty score of a batch, each ``(B,)``; larger is harder. A regression has those of its heads.

        Args:
            answer: Of the batch.
            temperature: Of the scores.
            fold: Of examples that the router heads may have learned from, int64 ``(B,)``.
        """
        found = all_scores(answer.logits, temperature) if self.task.kind.chooses else {}
        return found | {name: self.routers[name](x, fold) for name, x in self.router_features(answer).items()}

    def class_order(self, label_names: list[str], who: str, whose: str = "the data") -> list[int]:
        """Where each of these classes, ``whose`` they are, stands among this model's logits.

        Raises:
            InputError: If the names differ.
        """
        if not self.task.kind.chooses:
            return [0]
        return align_labels(self.label_names, label_names, who, whose)

    def predict(self, logits: Tensor) -> Tensor:
        """The answer that the logits give: the best class or candidate, int64, or the value, float64, ``(B,)``."""
        return self.task.kind.predict(logits)

    def _head_flops(self, *names: str) -> float:
        known = [self.heads[name] for name in names if name in self.heads]
        # A router head's standardisation is one weight and one addend more a feature.
        weights = [2 * h.width if isinstance(h, RouterHead) else sum(p.numel() for p in h.parameters()) for h in known]
        return 2.0 * sum(weights)


def in_float32(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A forward hook that turns a head's inputs into float32."""
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)
