"""A model that answers a task: its backbone, tokenizer and heads, behind one interface for every family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from elang.cost import FlopsConvention, check_cost, flops_by_length
from elang.data.batches import Reader
from elang.data.format import TextTask
from elang.errors import InputError, need
from elang.manifest import Manifest, file_sha256
from elang.models.onnx_path import OnnxPath
from elang.models.t5_path import FAMILIES, T5Path
from elang.records import align_labels
from elang.router import RouterHead, logit_features, masked_mean, num_logit_features
from elang.scores import SCORES, all_scores


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

    @abstractmethod
    def forward(self, inputs: dict[str, Tensor], target: Tensor | None = None, want_logits: bool = True) -> Answer:
        """Answer a batch of model inputs, logits in float32 whatever the precision.

        Args:
            inputs: As :meth:`elang.data.batches.EncodedExamples.batch` makes them.
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
        """Find out how its FLOPs are counted, as :func:`elang.cost.check_cost`, before they are needed."""
        check_cost(self.backbone.config, generates=self.task.problem == "sequence")

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
            InputError: If it is an encoder-decoder, or as :class:`elang.models.onnx_path.OnnxPath` says.
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
        own = self.task if self.manifest is not None and self.task.problem == "sequence" else None
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
        """What a router head may read, for :meth:`elang.router.RouterHead.fit`, and the simplest of it."""
        if self.task.problem == "regression":
            return None, None
        size = self.routers[name].width - self.routers[name].hidden
        # Scores alone, all that the logits tell, and the hidden state with it.
        single = {score: [i] for i, score in enumerate(SCORES) if score in ("max_softmax", "free_energy")}
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
        if name in SCORES and self.task.problem != "regression":
            return SCORES[name](answer.logits, temperature)
        return self.scores(answer, temperature)[name]

    def scores(self, answer: Answer, temperature: float = 1.0, fold: Tensor | None = None) -> dict[str, Tensor]:
        """Every difficulty score of a batch, each ``(B,)``; larger is harder. A regression has those of its heads.

        Args:
            answer: Of the batch.
            temperature: Of the scores.
            fold: Of examples that the router heads may have learned from, int64 ``(B,)``.
        """
        found = {} if self.task.problem == "regression" else all_scores(answer.logits, temperature)
        return found | {name: self.routers[name](x, fold) for name, x in self.router_features(answer).items()}

    def class_order(self, label_names: list[str], who: str, whose: str = "the data") -> list[int]:
        """Where each of these classes, ``whose`` they are, stands among this model's logits.

        Raises:
            InputError: If the names differ.
        """
        if self.task.problem == "regression":
            return [0]
        return align_labels(self.label_names, label_names, who, whose)

    def predict(self, logits: Tensor) -> Tensor:
        """The answer that the logits give: the best class or candidate, int64, or the value, float64, ``(B,)``."""
        return logits[:, 0].double() if self.task.problem == "regression" else logits.argmax(-1)

    def _head_flops(self, *names: str) -> float:
        known = [self.heads[name] for name in names if name in self.heads]
        # A router head's standardisation is one weight and one addend more a feature.
        weights = [2 * h.width if isinstance(h, RouterHead) else sum(p.numel() for p in h.parameters()) for h in known]
        return 2.0 * sum(weights)


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
            head.register_forward_pre_hook(_in_float32)

    def export(self) -> None:
        """Run the backbone by ONNX Runtime from now on."""
        self.onnx_path = OnnxPath(self.backbone, list(self.tokenizer("a")))

    def forward(self, inputs: dict[str, Tensor], target: Tensor | None = None, want_logits: bool = True) -> Answer:
        """Answer a batch."""
        counts = inputs.get("num_choices")
        rows = {name: value for name, value in inputs.items() if name != "num_choices"}
        # The heads learn after all else.
        heads, states = bool(self.heads) and not self.training, self.want_states and self.training
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
        loss = None
        if target is not None and self.task.problem == "regression":
            loss = F.mse_loss(logits[:, 0], target.float())
        elif target is not None:
            loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        return Answer(logits, self.predict(logits), loss, pooled, states=found if states else None)

    def flops(
        self, inputs: dict[str, Tensor], convention: FlopsConvention = "exact", steps: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cost of each input, all its candidates together."""
        found = flops_by_length(self.backbone.config, inputs["attention_mask"].sum(-1).cpu(), convention)
        if "num_choices" in inputs:
            found = sum_by_example(found, inputs["num_choices"].cpu())
        return {"flops": found + self._head_flops("router")}


def _in_float32(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)


def owner(counts: Tensor) -> Tensor:
    """Which example each candidate is of: counts ``(B,)`` to indices ``(sum,)``."""
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def sum_by_example(values: Tensor, counts: Tensor) -> Tensor:
    """Sum candidates' values ``(sum, ...)`` over each example, ``(B, ...)``."""
    return values.new_zeros(len(counts), *values.shape[1:]).index_add(0, owner(counts), values)


def spread(values: Tensor, counts: Tensor, width: int) -> Tensor:
    """Candidates' values ``(sum,)`` as rows ``(B, width)``, ``-inf`` where an example has no such candidate."""
    row = owner(counts)
    column = torch.arange(len(values), device=values.device) - (counts.cumsum(0) - counts)[row]
    return values.new_full((len(counts), width), -torch.inf).index_put((row, column), values)


def folder_sha256(folder: Path) -> str:
    """Hash of a folder's weights: every safetensors file, in the order of their names."""
    return file_sha256(*sorted(folder.glob("*.safetensors")))


def check_choices(most: int, width: int) -> None:
    """Refuse an example with more candidates than a task allows for."""
    if most > width:
        raise InputError(f"An example has {most} candidates, but its task allows for {width}. Raise the task's limit.")
