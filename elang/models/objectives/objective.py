"""The terms of a Swift's loss that its task alone does not have: their options, and what gives them."""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from elang.backends.backend import Answer
from elang.data.examples import check_held_out, source_of
from elang.errors import InputError
from elang.method.losses import MarginKind
from elang.records.reading import read_records
from elang.records.table import Records
from elang.tasks.text_task import TextTask

Hard = Literal["gain", "error", "soft_gain"]
Distill = Literal["token", "sequence"]


@dataclass(frozen=True)
class Distillation:
    """What is learned from the Super's answers.

    Attributes:
        weight: Of the term; 0 is off.
        temperature: Of logits; tokens and texts are learned as they are.
        source: Of generated texts, the Super's most probable tokens or its texts.
    """

    weight: float = 0.0
    temperature: float = 2.0
    source: Distill = "sequence"


@dataclass(frozen=True)
class Margin:
    """A margin between easy and hard examples.

    Attributes:
        weight: Of the term; 0 is off.
        form: Of the margin, in :data:`elang.method.losses.MARGINS`.
        hard: Which examples are hard.
        temperature: Of the energies.
    """

    weight: float = 0.0
    form: MarginKind = "pairwise"
    hard: Hard = "gain"
    temperature: float = 1.0


@dataclass(frozen=True)
class LossOptions:
    """The loss of a Swift.

    Attributes:
        distillation: From the Super's answers.
        margin: Between easy and hard examples.
        task_weight: Of the task's own loss.
        hidden_weight: Of the distillation of hidden states.
    """

    distillation: Distillation = field(default_factory=Distillation)
    margin: Margin = field(default_factory=Margin)
    task_weight: float = 1.0
    hidden_weight: float = 0.0

    @property
    def weights(self) -> dict[str, float]:
        """Of all terms, by the names of their options."""
        weights = {"task": self.task_weight, "distill": self.distillation.weight, "margin": self.margin.weight}
        return weights | {"hidden": self.hidden_weight}

    def check(self, super_records: str | None, super_model: str | None) -> None:
        """Refuse weights below 0, and terms that need a Super where there is none.

        Raises:
            InputError: Naming the option.
        """
        for name, weight in self.weights.items():
            if weight < 0:
                raise InputError(f"--model.{name}_weight must be 0 (off) or positive, but it is {weight}.")
        if super_records is None and (self.distillation.weight > 0 or self.margin.hard != "error"):
            raise InputError(
                f"Distillation and hard='{self.margin.hard}' need the Super's answers, but --model.super_records is "
                "not set. Make them with `elang score`, or set --model.distill_weight 0 --model.hard error."
            )
        if self.hidden_weight > 0 and super_model is None:
            raise InputError("The distillation of hidden states runs the Super: set --model.super_model.")


class Objective(Protocol):
    """What a Swift learns besides its task, for one form of answers."""

    def to(self, device: torch.device) -> None:
        """Bring what every batch needs to the device."""

    def labels(self, batch: dict[str, Any]) -> Tensor:
        """The batch's labels ``(B,)``; of unlabelled text the Super's answers."""

    def terms(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The weighted terms of one batch by name, each a scalar."""

    def encoder_terms(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The term of the head on an encoder-decoder's encoder, where it learns with the rest."""

    def targets(self, table: dict[str, Tensor], data: Any, quality: str, super_: Records | None) -> dict[str, Tensor]:
        """What a metric reads of the routing slice besides its labels.

        Args:
            table: The Swift's answers.
            data: The data module.
            quality: The metric.
            super_: The Super's answers to the same examples, if they are known.
        """

    def gain(
        self, table: dict[str, Tensor], targets: dict[str, Tensor], super_: Records | None
    ) -> tuple[Tensor, Tensor | None]:
        """What deferring gains on the routing slice, for :meth:`elang.method.router.RouterHead.fit`.

        Returns:
            The gain of each example, float64 ``(N,)``, and what the Super's logits expect of it, where there are any.
        """


@dataclass(frozen=True)
class SuperAnswers:
    """The Super's answers.

    Attributes:
        path: Where they are from, for messages.
        records: To the training file (``train``) and, behind it, to the transfer set, if there is one.
        vocabulary: Hash of the vocabulary of a Super that generates texts.
    """

    path: str | None
    records: dict[str, Records]
    vocabulary: str | None = None

    @classmethod
    def read(cls, path: str, task: TextTask, data: Any) -> "SuperAnswers":
        """Read them, and check that they are answers to this training file.

        Args:
            path: The file of records.
            task: What is asked.
            data: The data module, if there is one.

        Raises:
            InputError: If some are missing, or the Super was trained on the held-out slice.
        """
        splits, about = read_records(path, task.label_names, task.problem)
        needed = ["train", *(["transfer"] if getattr(data, "transfer", None) else [])]
        if missing := [split for split in needed if split not in splits]:
            what = {"train": "the training file", "transfer": "the transfer set"}[missing[0]]
            raise InputError(
                f"'{path}' has no answers to {what}, only to {', '.join(splits)}. Score it with `elang score`."
            )
        for split in ("train", "routing", "transfer") if data is not None else ():
            if split in data.splits:
                examples = data.examples(split)
                splits[source_of(split)].rows(examples.id, examples.key, f"The Super's records '{path}'")
        if data is not None:
            check_held_out(data, about, f"the Super of '{path}'")
        return cls(path, {split: splits[split] for split in needed}, about.get("vocabulary"))

    def to_rows(self, table: dict[str, Tensor]) -> Records:
        """The answers to some examples of the training file, by their ``id`` and ``key``."""
        return self.records["train"].take(self.records["train"].rows(table["id"], table["key"]))


def read_out_of_fold(path: str, task: TextTask, data: Any) -> Records:
    """Answers to the training file, of Swifts that were trained without the examples.

    Args:
        path: The file of records.
        task: What is asked.
        data: The data module, if there is one.

    Raises:
        InputError: If they are no answers to this training file.
    """
    folds, _ = read_records(path, task.label_names, task.problem)
    if "train" not in folds:
        raise InputError(f"'{path}' has no answers to the training file, only to {', '.join(folds)}.")
    if data is not None:
        examples = data.examples("train")
        folds["train"].rows(examples.id, examples.key, f"The records out of fold '{path}'")
    return folds["train"]
