"""A model that answers a task: its backbone, tokenizer and heads, behind one interface for every family."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elang.backends.backend import Answer, Columns, sum_by_example
from elang.backends.flops import FlopsConvention
from elang.backends.inference import Inference
from elang.backends.network import Network
from elang.data.batches import Reader
from elang.errors import InputError
from elang.method.router import RouterHead, logit_features, num_logit_features
from elang.method.scores import ROUTER_READS, SCORES, all_scores
from elang.records.manifest import Manifest
from elang.records.table import Records
from elang.tasks.text_task import TextTask, align_labels

# The columns of records that a model may give.
_RECORDED = ("logits", "tokens", "flops", "steps", "scores", "score_flops", "top_ids", "top_log_probs")


class TextModel(Network, Inference):
    """A backbone with what is needed to use it on a task.

    Args:
        backbone: The model of ``transformers``.
        tokenizer: Its tokenizer.
        task: What it answers.
    """

    text_to_text = False
    # What `flops` gives of each input.
    costs: tuple[str, ...] = ("flops",)

    def __init__(self, backbone: Any, tokenizer: Any, task: TextTask) -> None:
        super().__init__(backbone, tokenizer, task)
        self.heads = nn.ModuleDict()
        self.original_names: list[str] = task.label_names
        # Those of the head that no file held, until it is trained.
        self.new_weights: list[str] = []
        self.detached = True
        self.returns_states = False

    @abstractmethod
    def forward(self, inputs: dict[str, Tensor], target: Tensor | None = None, want_logits: bool = True) -> Answer:
        """Answer a batch of model inputs, logits in float32 whatever the precision.

        Args:
            inputs: As :meth:`elang.data.batches.EncodedExamples.batch` makes them.
            target: Class indices or values, for the loss.
            want_logits: Training without need of them (text-to-text) spares their computation.
        """

    def detach_encoder_head(self, detached: bool) -> None:
        """Whether gradients of the head on an encoder-decoder's encoder stop before the encoder."""
        self.detached = detached

    def return_states(self) -> None:
        """Give hidden states with the answers in training.

        Raises:
            InputError: If it is no encoder.
        """
        raise InputError("Hidden states are distilled between encoders; set --model.hidden_weight 0.")

    def limit_new_tokens(self, tokens: int) -> None:
        """Generate at most so many tokens, where it generates texts."""

    def use_static_cache(self, static: bool) -> None:
        """Generate texts with a cache of fixed size, or not."""

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

    @property
    def num_beams(self) -> int:
        """Hypotheses that generated texts are chosen from."""
        return 1

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

    def set_origin(
        self,
        weights: Path | None,
        manifest: Manifest | None = None,
        new_weights: list[str] | None = None,
        original_names: list[str] | None = None,
    ) -> None:
        """Say where its weights are from: a folder or a checkpoint, with what is beside them, none from the hub."""
        self.weights, self.manifest, self.new_weights = weights, manifest, new_weights or []
        self.original_names = original_names or self.original_names

    def class_order(self, label_names: list[str], who: str, whose: str = "the data") -> list[int]:
        """Where each of these classes, ``whose`` they are, stands among this model's logits.

        Raises:
            InputError: If the names differ.
        """
        if not self.task.kind.chooses:
            return [0]
        return align_labels(self.label_names, label_names, who, whose)

    def plain_columns(self) -> Columns:
        """The columns of :meth:`plain_answers`."""
        return {
            "prediction": ((), self.task.kind.answer_type),
            "logits": ((len(self.label_names),), torch.float32),
        }

    def plain_answers(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Answer a batch, without scores and costs: what metrics need."""
        answer = self(inputs)
        return {"prediction": answer.prediction, "logits": answer.logits}

    def columns(self, features: bool = False, top_k: int = 0) -> Columns:
        """The columns of :meth:`answer_columns`, which takes the same two arguments."""
        return (
            self.plain_columns()
            | {"tokens": ((), torch.int64)}
            | dict.fromkeys(self.costs, ((), torch.float64))
            | dict.fromkeys(self.head_scores, ((), torch.float32))
            | {f"{name}_features": ((head.width,), torch.float32) for name, head in self.routers.items() if features}
        )

    def answer_columns(
        self,
        inputs: dict[str, Tensor],
        order: list[int],
        temperature: float = 1.0,
        convention: FlopsConvention = "exact",
        fold: Tensor | None = None,
        features: bool = False,
        top_k: int = 0,
    ) -> dict[str, Tensor]:
        """Answer a batch: logits and predictions in the data's class order, tokens, cost and the heads' scores.

        Args:
            inputs: Of the batch.
            order: Where each of the data's classes stands among its logits (:meth:`class_order`).
            temperature: Of the scores.
            convention: How cost is counted.
            fold: Of examples that the router heads may have learned from.
            features: Also what each router head reads.
            top_k: Of generated texts, also so many of the most probable tokens at each place of the references.

        Returns:
            A value for each of :meth:`columns`, each with ``B`` rows.
        """
        answer = self(inputs)
        scores = self.scores(answer, temperature, fold)
        prediction = answer.prediction
        if self.task.kind.chooses:
            place = torch.tensor(order, device=prediction.device).argsort()
            prediction = torch.where(prediction < 0, -1, place[prediction.clamp_min(0)])
        tokens = inputs["attention_mask"].sum(-1)
        if not self.text_to_text and "num_choices" in inputs:
            tokens = sum_by_example(tokens, inputs["num_choices"])
        costs = self.flops(inputs, convention, answer.steps)
        return {
            "logits": answer.logits[:, order],
            "prediction": prediction,
            "tokens": tokens,
            **{name: cost.to(tokens.device) for name, cost in costs.items()},
            **{name: scores[name] for name in self.head_scores},
            **({f"{name}_features": x for name, x in self.router_features(answer).items()} if features else {}),
        }

    def records(self, table: dict[str, Tensor]) -> Records:
        """The answers of a table with :meth:`answer_columns`, ``id`` and ``key``, as they are kept."""
        return Records(table["id"], table["prediction"], key=table.get("key"), **self._recorded(table))

    def _recorded(self, table: dict[str, Tensor]) -> dict[str, Any]:
        return {name: table[name] for name in _RECORDED if name in table}

    def described_answers(self, top_k: int) -> dict[str, Any]:
        """What a file of its answers says of how they were made, beside the task; ``top_k`` as above."""
        return {}

    def timed_parts(self, steps: int, scored: bool) -> dict[str, Callable[[dict[str, Tensor]], object]]:
        """What answers a batch and, by ``encoder``, what is run of it before a decoder.

        Args:
            steps: Tokens that are generated, where it generates texts.
            scored: Whether scores are needed of them.
        """
        return {"": self}

    def _head_flops(self, *names: str) -> float:
        known = [self.heads[name] for name in names if name in self.heads]
        # A router head's standardisation is one weight and one addend more a feature.
        weights = [2 * h.width if isinstance(h, RouterHead) else sum(p.numel() for p in h.parameters()) for h in known]
        return 2.0 * sum(weights)
