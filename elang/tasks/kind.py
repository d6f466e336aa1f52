"""Kinds of task: their answers, how logits become one, and what an answer is worth."""

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.errors import InputError
from elang.method.losses import distillation
from elang.method.scores import DEFAULT_SCORE, SCORES, all_scores

if TYPE_CHECKING:
    from elang.tasks.text_task import TextTask

KINDS: dict[str, "Kind"] = {}
"""The kinds of task by name, the value of :attr:`~elang.tasks.text_task.TextTask.problem`."""


class Kind(ABC):
    """A kind of task. The methods of this class are those of a choice among several answers.

    Attributes:
        name: The value of :attr:`~elang.tasks.text_task.TextTask.problem`.
        answer_type: Type of answers and labels: ``int64`` for indices of label names, ``float64`` for values.
        unknown: The label of an example without one.
        chooses: An answer is one of several that have logits, so the scores of logits apply.
        has_classes: All examples have the same answers, with names.
        has_candidates: Each example has its own answers; ``-inf`` logits pad them to the largest number.
        generates: An answer is a generated text.
        default_score: Routes unless a router has proved better.
        distill_weight: Default weight of distillation.
        rounding: How far half precision and other batches move a score.
    """

    name: ClassVar[str]
    answer_type: ClassVar[torch.dtype] = torch.int64
    unknown: ClassVar[float] = -1
    chooses: ClassVar[bool] = True
    has_classes: ClassVar[bool] = False
    has_candidates: ClassVar[bool] = False
    generates: ClassVar[bool] = False
    default_score: ClassVar[str] = DEFAULT_SCORE
    distill_weight: ClassVar[float] = 10.0
    rounding: ClassVar[float] = 4e-3

    @property
    def margin_weight(self) -> float:
        """Default weight of the margin between easy and hard examples."""
        return 0.1 if self.chooses else 0.0

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the difficulty scores that need no head."""
        return tuple(SCORES) if self.chooses else ()

    def scores_of(self, logits: Tensor | None, token_scores: Tensor | None, temperature: float) -> dict[str, Tensor]:
        """The scores by name, each ``(N,)``, of logits ``(N, C)`` or of texts' :attr:`scores`, ``(N, S)``."""
        return all_scores(logits, temperature) if self.chooses and logits is not None else {}

    @property
    def exact_type(self) -> torch.dtype:
        """A type that holds both a score and an answer exactly."""
        return self.answer_type if self.answer_type.is_floating_point else torch.float32

    def num_outputs(self, label_names: list[str]) -> int:
        """Number of outputs of an encoder's head for an input: one per class, otherwise one."""
        return len(label_names) if self.has_classes else 1

    def predict(self, logits: Tensor) -> Tensor:
        """The answers that logits ``(B, C)`` give, :attr:`answer_type` ``(B,)``."""
        return logits.argmax(-1)

    def probability(self, logits: Tensor, prediction: Tensor) -> Tensor:
        """The probability that logits ``(B, C)`` give to predictions, float32 ``(B,)``; NaN where nothing is chosen.

        It is the softmax over the answers, without a temperature; how well it is calibrated is not known.
        """
        if not self.chooses:
            return torch.full(logits.shape[:1], math.nan, device=logits.device)
        return logits.float().softmax(-1).gather(-1, prediction[:, None]).squeeze(-1)

    def probabilities(self, logits: Tensor | None, prediction: Tensor) -> list[float | None]:
        """The :meth:`probability` of each prediction, ``None`` where it is unknown, or is that of no answer."""
        if logits is None or not self.chooses:
            return [None] * len(prediction)
        values = self.probability(logits, prediction.clamp_min(0)).tolist()
        return [None if place < 0 else value for place, value in zip(prediction.tolist(), values, strict=True)]

    def loss(self, logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
        """The loss of logits ``(B, C)`` against labels ``(B,)``, a scalar."""
        return F.cross_entropy(logits, target, label_smoothing=smoothing)

    def distance(self, logits: Tensor, target: Tensor, temperature: float) -> Tensor:
        """The distillation loss of logits ``(B, C)`` against the Super's, a scalar."""
        return distillation(logits, target, temperature)

    def is_unknown(self, label: Tensor) -> Tensor:
        """Which of the labels ``(B,)`` are :attr:`unknown`."""
        return label < 0

    def reward(self, prediction: Tensor, label: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """The worth of each prediction, float64 ``(N,)``: 1 if right and 0 if wrong; -1 names no answer.

        ``targets`` may have the worth of each candidate, ``(N, C)``: ``answer_f1``, or ``worth`` for texts.
        """
        if table := {"answer_f1", "worth"} & targets.keys():
            worth = targets[min(table)].double()
            return worth.gather(1, prediction.clamp_min(0)[:, None]).squeeze(1) * (prediction >= 0)
        return ((prediction == label) & (prediction >= 0)).double()

    def worth(self, quality: str, targets: dict[str, Tensor]) -> dict[str, Any]:
        """The ``largest`` reward (``None`` if unbounded) and its ``unit``; ``quality`` is the task's first metric."""
        unit = "F1 of the answer" if "answer_f1" in targets else "right answers"
        if (worth := targets.get("worth")) is not None and bool(((worth != 0) & (worth != 1)).any()):
            unit = "worth, from 0 to 1"
        return {"largest": 1.0, "unit": unit}

    def answer(self, prediction: float | str, task: "TextTask", choices: tuple[str, ...] | None) -> str | float:
        """The answer that a user reads: by default the prediction. ``choices`` are the example's own candidates."""
        return prediction

    @abstractmethod
    def read_answer(self, answer: Any, task: "TextTask") -> float | str | None:
        """The inverse of :meth:`answer`: a prediction, or ``None`` if this is no answer to the task."""

    @abstractmethod
    def expects(self, task: "TextTask") -> str:
        """What an answer must be, for messages."""


def register_kind(kind: Kind) -> Kind:
    """Add a kind of task to :data:`KINDS`, or raise an :class:`InputError` if its name is taken."""
    if kind.name in KINDS:
        raise InputError(f"There is a kind of task '{kind.name}' already. Register yours by another name.")
    KINDS[kind.name] = kind
    return kind
