"""What a kind of task is: its answers, how a model's logits become one, and what an answer is worth."""

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
"""The kinds of task by name, as :attr:`~elang.tasks.text_task.TextTask.problem` has it."""


class Kind(ABC):
    """A kind of task. The methods here are those of a choice among several answers.

    Attributes:
        name: As in :attr:`~elang.tasks.text_task.TextTask.problem`.
        answer_type: Of answers and labels: ``int64`` for places among the label names, ``float64`` for values.
        unknown: The label of an example without one.
        chooses: An answer is one of several that have logits, so the scores of logits apply.
        has_classes: These are the same for all examples, with names.
        has_candidates: Each example has candidates, which ``-inf`` logits fill up to the largest number.
        generates: An answer is a text that is generated.
        default_score: Routes where no router has shown to be better.
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
    def scores(self) -> tuple[str, ...]:
        """The difficulty scores that need no head, by name."""
        return tuple(SCORES) if self.chooses else ()

    def scores_of(self, logits: Tensor | None, token_scores: Tensor | None, temperature: float) -> dict[str, Tensor]:
        """The scores of some answers, each ``(N,)``; larger is harder.

        Args:
            logits: The Swift's, ``(N, C)``.
            token_scores: Of generated texts, ``(N, S)``, in the order of :attr:`scores`.
            temperature: Of the scores.
        """
        return all_scores(logits, temperature) if self.chooses and logits is not None else {}

    @property
    def exact_type(self) -> torch.dtype:
        """The type that holds both a score and an answer exactly."""
        return self.answer_type if self.answer_type.is_floating_point else torch.float32

    def num_outputs(self, label_names: list[str]) -> int:
        """Outputs of an encoder's head, each of an input: one a class, or one."""
        return len(label_names) if self.has_classes else 1

    def predict(self, logits: Tensor) -> Tensor:
        """The answer that logits ``(B, C)`` give, :attr:`answer_type` ``(B,)``."""
        return logits.argmax(-1)

    def loss(self, logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
        """The loss of logits ``(B, C)`` against labels ``(B,)``, a scalar."""
        return F.cross_entropy(logits, target, label_smoothing=smoothing)

    def distance(self, logits: Tensor, target: Tensor, temperature: float) -> Tensor:
        """How far logits ``(B, C)`` are from the Super's, a scalar: what distillation makes small."""
        return distillation(logits, target, temperature)

    def is_unknown(self, label: Tensor) -> Tensor:
        """Which labels ``(B,)`` are those of examples without one."""
        return label < 0

    def reward(self, prediction: Tensor, label: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """What each answer is worth by itself, float64 ``(N,)``: 1 if right and 0 if wrong.

        Args:
            prediction: ``(N,)``; -1 names no answer.
            label: ``(N,)``.
            targets: Where several answers are right, ``answer_f1`` has what each is worth, ``(N, C)``; of texts,
                ``worth``.
        """
        if table := {"answer_f1", "worth"} & targets.keys():
            worth = targets[min(table)].double()
            return worth.gather(1, prediction.clamp_min(0)[:, None]).squeeze(1) * (prediction >= 0)
        return (prediction == label).double()

    def worth(self, quality: str, targets: dict[str, Tensor]) -> dict[str, Any]:
        """The most that :meth:`reward` gives (``largest``, ``None`` where it has no bounds), and its ``unit``.

        Args:
            quality: The task's first metric.
            targets: As in :meth:`reward`.
        """
        return {"largest": 1.0, "unit": "F1 of the answer" if "answer_f1" in targets else "right answers"}

    @abstractmethod
    def answer(self, prediction: float | str, task: "TextTask", choices: tuple[str, ...] | None) -> str | float:
        """What a user reads of a prediction.

        Args:
            prediction: One of :meth:`predict`, or a text.
            task: What was asked.
            choices: The example's own candidates, if it has any.
        """

    @abstractmethod
    def read_answer(self, answer: Any, task: "TextTask") -> float | str | None:
        """The prediction that :meth:`answer` made this of; ``None`` if it is none of the task's."""

    @abstractmethod
    def expects(self, task: "TextTask") -> str:
        """What an answer has to be, for messages."""


def register_kind(kind: Kind) -> Kind:
    """Add a kind of task to :data:`KINDS`.

    Raises:
        InputError: If there is one of this name.
    """
    if kind.name in KINDS:
        raise InputError(f"There is a kind of task '{kind.name}' already. Register yours by another name.")
    KINDS[kind.name] = kind
    return kind
