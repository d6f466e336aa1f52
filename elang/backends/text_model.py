"""A model that answers a task: its backbone, tokenizer and heads, behind one interface for every family."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elang.backends.backend import Answer, Columns, sum_by_example
from elang.backends.flops import FlopsConvention
from elang.backends.network import Network
from elang.data.batches import Reader
from elang.errors import InputError
from elang.method.router import RouterHead, logit_features, num_logit_features
from elang.method.scores import ROUTER_READS, SCORES, all_scores
from elang.records.manifest import Manifest
from elang.records.table import ASKED_COLUMNS, Records
from elang.tasks.sampling import Sampling
from elang.tasks.text_task import TextTask, align_labels

# The columns of records that a model may fill.
_RECORD_COLUMNS = (
    *("key", "logits", "tokens", "flops", "steps", "scores", "score_flops", "top_ids", "top_log_probs"),
    *ASKED_COLUMNS,
)


class TextModel(Network):
    """A backbone with everything that is needed to use it on a task."""

    text_to_text = False
    # How texts are drawn, where they are not of the most probable tokens.
    sampling: Sampling | None = None
    # Whether it writes texts token by token, and so can answer chats.
    streams = False
    # The columns of `flops`.
    costs: tuple[str, ...] = ("flops",)

    def __init__(self, backbone: Any, tokenizer: Any, task: TextTask) -> None:
        super().__init__(backbone, tokenizer, task)
        self.heads = nn.ModuleDict()
        self.original_names: list[str] = task.label_names
        # Weights of the head that no file held, until it is trained.
        self.new_weights: list[str] = []
        self.detached = True
        self.returns_states = False
        self.static_cache = False

    @abstractmethod
    def forward(self, inputs: dict[str, Tensor], target: Tensor | None = None, want_logits: bool = True) -> Answer:
        """Answer a batch (:meth:`elang.data.batches.EncodedExamples.batch`), logits in float32 whatever the precision.

        A target, class indices or values, adds the loss. Without ``want_logits`` a text-to-text model skips them.
        """

    def detach_encoder_head(self, detached: bool) -> None:
        """Set whether gradients of the head on an encoder-decoder's encoder stop before the encoder."""
        self.detached = detached

    def return_states(self) -> None:
        """Return hidden states with the answers in training. Raises InputError if it is not an encoder."""
        raise InputError("Hidden states are distilled between encoders; set --model.hidden_weight 0.")

    def limit_new_tokens(self, tokens: int) -> None:
        """Limit the length of generated texts, if it generates texts."""

    def sample(self, sampling: Sampling) -> None:
        """Draw texts from now on. Raises InputError if it is no language model that generates texts after a prompt."""
        raise InputError(
            "Sampled answers are for decoder-only language models that generate texts, and this "
            f"'{self.backbone.config.model_type}' model answers otherwise. Leave sampling out."
        )

    def use_static_cache(self, static: bool) -> None:
        """Set whether texts are generated with a cache of fixed size."""
        self.static_cache = static

    @abstractmethod
    def add_heads(self) -> None:
        """Add the router's heads, untrained."""

    @abstractmethod
    def flops(
        self, inputs: dict[str, Tensor], convention: FlopsConvention = "exact", steps: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cost of each input, heads included, float64 ``(B,)``.

        ``flops``; for a model that can defer an input before it decodes also ``early_flops``, the cost of such an
        input; with the ``steps`` of generated answers also ``score_flops``, what the scores cost on top.
        """

    @property
    def num_beams(self) -> int:
        """Hypotheses from which a generated text is chosen."""
        return 1

    @property
    def label_names(self) -> list[str]:
        """Class names in the order of the logits."""
        return self.task.label_names

    @property
    def reader(self) -> Reader:
        """How it reads; a trained model that generates texts keeps its prompt and languages."""
        task = self.task if self.manifest is not None and self.task.kind.generates else None
        return Reader(self.tokenizer, self.text_to_text, task)

    @property
    def shown_examples(self) -> list[str] | None:
        """The examples that it is shown in its prompt, by turns with their answers; ``None`` if it reads none."""
        return self.task.examples if self.reader.prompt is not None else None

    @property
    def head_scores(self) -> list[str]:
        """Names of the scores that its heads compute, and of those that were asked for."""
        return list(self.routers)

    def ask_for(self, *names: str) -> list[str]:
        """Compute those of :data:`~elang.method.scores.ASKED_SCORES` that it has; returns :attr:`head_scores`."""
        return self.head_scores

    @property
    def routers(self) -> dict[str, RouterHead]:
        """The router heads, by the names of their scores."""
        return {name: head for name, head in self.heads.items() if isinstance(head, RouterHead)}

    def drop_routers(self, unfitted: bool = False) -> None:
        """Remove the router heads, or only the ``unfitted`` ones."""
        for name, head in self.routers.items():
            if not (unfitted and head.fitted):
                del self.heads[name]

    def candidates(self, name: str) -> tuple[dict[str, list[int]] | None, str | None]:
        """Sets of features for :meth:`~elang.method.router.RouterHead.fit` to choose from, and the simplest one."""
        if not self.task.kind.chooses:
            return None, None
        head = self.routers[name]
        single = {score: [i] for i, score in enumerate(ROUTER_READS) if score in ("max_softmax", "free_energy")}
        groups = {"logits": list(range(head.width - head.hidden)), "logits and hidden state": list(range(head.width))}
        return single | groups, "max_softmax"

    def router_features(self, answer: Any) -> dict[str, Tensor]:
        """What each router head reads, float32 ``(B, F)``."""
        if "router" not in self.heads:
            return {}
        return {"router": self._features(answer.pooled, answer.logits)}

    def _features(self, pooled: Tensor, logits: Tensor) -> Tensor:
        return torch.cat([logit_features(logits, logits.shape[-1]), pooled.detach().float()], -1)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states that router heads read."""
        config = self.backbone.config.get_text_config()
        # Small OPT models project what their body returns.
        return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)

    def _router(self, size: int) -> RouterHead:
        return RouterHead(num_logit_features(size) + self.hidden_size, self.hidden_size)

    def score_of(self, name: str, answer: Any, temperature: float = 1.0) -> Tensor:
        """One of :meth:`scores`, computed without the others, ``(B,)``."""
        if name in self.routers:
            score: Tensor = self.routers[name](self.router_features(answer)[name])
            return score
        if name in SCORES and self.task.kind.chooses:
            return SCORES[name](answer.logits, temperature)
        return self._headless_scores(answer, temperature)[name]

    def _headless_scores(self, answer: Any, temperature: float) -> dict[str, Tensor]:
        return all_scores(answer.logits, temperature) if self.task.kind.chooses else {}

    def scores(self, answer: Any, temperature: float = 1.0, fold: Tensor | None = None) -> dict[str, Tensor]:
        """Every difficulty score of a batch, each ``(B,)``; larger is harder. A regression has only its heads' scores.

        ``fold``, int64 ``(B,)``, is that of examples on which the router heads may have been fitted.
        """
        routers = {name: self.routers[name](x, fold) for name, x in self.router_features(answer).items()}
        return self._headless_scores(answer, temperature) | routers

    def set_origin(
        self,
        weights: Path | None,
        manifest: Manifest | None,
        *,
        base: Path | None = None,
        new: Sequence[str] = (),
        names: Sequence[str] = (),
    ) -> None:
        """Record where its weights are from (``None``: the hub), which are ``new``, and its first label ``names``.

        ``base`` is the folder of its other weights if ``weights`` has only a part of them.
        """
        self.weights, self.base, self.manifest, self.new_weights = weights, base, manifest, list(new)
        self.original_names = list(names) or self.original_names

    def class_order(self, label_names: list[str], who: str, whose: str = "the data") -> list[int]:
        """The place of each of these classes among this model's logits; ``who`` and ``whose`` are for the message."""
        if not self.task.kind.chooses:
            return [0]
        return align_labels(self.label_names, label_names, who, whose)

    def metric_columns(self) -> Columns:
        """The columns of :meth:`metric_answers`."""
        return {"prediction": ((), self.task.kind.answer_type), "logits": ((len(self.label_names),), torch.float32)}

    def metric_answers(self, inputs: dict[str, Tensor], target: Tensor | None = None) -> dict[str, Tensor]:
        """Answer a batch, without scores and costs, for metrics; a target adds each example's share of the ``loss``."""
        answer = self(inputs, target)
        answers = {"prediction": answer.prediction, "logits": answer.logits}
        return answers if target is None else answers | {"loss": answer.loss.expand(len(answer.prediction))}

    def columns(self, features: bool = False, top_k: int = 0) -> Columns:
        """The columns of :meth:`answer_columns`, for the same two options."""
        return (
            self.metric_columns()
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
        """Answer a batch: a value with ``B`` rows for each of :meth:`columns`.

        Args:
            inputs: The batch.
            order: The place of each of the data's classes among its logits (:meth:`class_order`).
            temperature: Of the scores.
            convention: How cost is counted.
            fold: Of examples on which the router heads may have been fitted.
            features: Also return what each router head reads.
            top_k: Of generated texts, also return this many most probable tokens at each place of the references.
        """
        answer = self._full_answer(inputs)
        tokens = inputs["attention_mask"].sum(-1)
        if not self.text_to_text and "num_choices" in inputs:
            tokens = sum_by_example(tokens, inputs["num_choices"])
        scores = self.scores(answer, temperature, fold)
        costs = self.flops(inputs, convention, answer.steps)
        read = self.router_features(answer) if features else {}
        return {
            "tokens": tokens,
            **self._answer_columns(answer, inputs, order=order, top_k=top_k),
            **{name: cost.to(tokens.device) for name, cost in costs.items()},
            **{name: scores[name] for name in self.head_scores},
            **{f"{name}_features": x for name, x in read.items()},
        }

    def _full_answer(self, inputs: dict[str, Tensor]) -> Any:
        return self(inputs)

    def _answer_columns(
        self, answer: Any, inputs: dict[str, Tensor], *, order: list[int], top_k: int
    ) -> dict[str, Tensor]:
        """The columns that hold the answer itself."""
        answer = self.ordered(answer, order)
        return {"logits": answer.logits, "prediction": answer.prediction}

    def ordered(self, answer: Answer, order: list[int]) -> Answer:
        """An answer with its classes in another order (:meth:`class_order`)."""
        prediction = answer.prediction
        if self.task.kind.chooses:
            place = torch.tensor(order, device=prediction.device).argsort()
            prediction = torch.where(prediction < 0, -1, place[prediction.clamp_min(0)])
        return replace(answer, logits=answer.logits[:, order], prediction=prediction)

    def records(self, table: dict[str, Tensor]) -> Records:
        """The records of a table with the columns of :meth:`answer_columns`, ``id`` and ``key``."""
        columns: dict[str, Any] = {name: table[name] for name in _RECORD_COLUMNS if name in table}
        if "ids" in table:
            columns["texts"] = self.texts(table["ids"])
        return Records(table["id"], table.get("prediction", torch.zeros_like(table["id"])), **columns)

    def described_answers(self, top_k: int) -> dict[str, Any]:
        """What a file of its answers tells about how they were made, besides the task."""
        return {}

    def timed_parts(self, steps: int, scored: bool) -> dict[str, Callable[[dict[str, Tensor]], object]]:
        """Functions of a batch to be timed: the whole model, ``""``, and what comes before a decoder by its name."""
        return {"": self}

    def _head_flops(self, *names: str) -> float:
        heads = [self.heads[name] for name in names if name in self.heads]
        # A router head also standardises: one multiplication and one addition per feature.
        weights = [2 * h.width if isinstance(h, RouterHead) else sum(p.numel() for p in h.parameters()) for h in heads]
        return 2.0 * sum(weights)
