"""What a Swift's loss has besides the task's own: its options, the Super's answers, and the interface of its terms."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

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
class LossOptions:
    """The options of a Swift's loss, named and explained as in :class:`elang.SwiftModule`. A weight of 0 is off."""

    task_weight: float = 1.0
    distill_weight: float = 0.0
    distill_temperature: float = 2.0
    distill: Distill = "sequence"
    margin_weight: float = 0.0
    margin: MarginKind = "pairwise"
    hard: Hard = "gain"
    temperature: float = 1.0
    hidden_weight: float = 0.0

    def check(self, super_records: str | None, super_model: str | None) -> None:
        """Refuse weights below 0, and terms that need a Super if there is none.

        Raises:
            InputError: Naming the option.
        """
        for name in ("task_weight", "distill_weight", "margin_weight", "hidden_weight"):
            if (weight := getattr(self, name)) < 0:
                raise InputError(f"--model.{name} must be 0 (off) or positive, but it is {weight}.")
        if super_records is None and (self.distill_weight > 0 or self.hard != "error"):
            raise InputError(
                f"Distillation and hard='{self.hard}' need the Super's answers, but --model.super_records is not set. "
                "Make them with `elang score`, or set --model.distill_weight 0 --model.hard error."
            )
        if self.hidden_weight > 0 and super_model is None:
            raise InputError("The distillation of hidden states runs the Super: set --model.super_model.")


class Objective(ABC):
    """What a Swift learns besides its task, for one form of answers.

    Attributes:
        columns: Tensors that every batch needs. They are no buffers, which DDP would broadcast at every step.
    """

    def __init__(self, options: LossOptions) -> None:
        self.options = options
        self.columns: dict[str, Tensor] = {}

    def to(self, device: torch.device) -> None:
        """Move the columns to the device."""
        self.columns = {name: column.to(device) for name, column in self.columns.items()}

    def labels(self, batch: dict[str, Any]) -> Tensor:
        """The batch's labels ``(B,)``, with the Super's answers as the labels of unlabelled texts."""
        labels: Tensor = batch["label"]
        return labels

    @abstractmethod
    def terms(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The weighted terms of a batch's loss by name, each a scalar."""

    @abstractmethod
    def targets(self, table: dict[str, Tensor], data: Any, quality: str, super_: Records | None) -> dict[str, Tensor]:
        """What a metric reads of the routing slice besides its labels.

        Args:
            table: The Swift's answers.
            data: The data module.
            quality: The metric's name.
            super_: The Super's answers to the same examples, if they are known.
        """

    @abstractmethod
    def gain(
        self, table: dict[str, Tensor], targets: dict[str, Tensor], super_: Records | None
    ) -> tuple[Tensor, Tensor | None]:
        """How much deferring each example of the routing slice gains; without a Super, how bad the Swift's answer is.

        Returns:
            The gain, float64 ``(N,)``, and its expectation by the Super's logits, if there are any.
        """


@dataclass(frozen=True)
class SuperAnswers:
    """The Super's answers.

    Attributes:
        path: The file that they are from, for messages.
        records: Answers to the training file (``train``) and to the transfer set (``transfer``), if there is one.
        vocabulary: Hash of the vocabulary of a Super that generates texts.
    """

    path: str | None
    records: dict[str, Records]
    vocabulary: str | None = None

    @classmethod
    def read(cls, path: str, task: TextTask, data: Any) -> "SuperAnswers":
        """Read a file of records.

        Args:
            path: The file.
            task: The data's task.
            data: The data module, if there is one.

        Raises:
            InputError: If answers are missing or to other data, or the Super was trained on the held-out slice.
        """
        needed = ["train", *(["transfer"] if getattr(data, "transfer", None) else [])]
        splits = {"train", "routing", "transfer"}
        records, about = _read_answers(path, task, data, needed=needed, splits=splits, who="The Super's records")
        if data is not None:
            check_held_out(data, about, f"the Super of '{path}'")
        return cls(path, records, about.get("vocabulary"))

    def to_rows(self, table: dict[str, Tensor]) -> Records:
        """The answers to some examples of the training file, by their ``id`` and ``key``."""
        return self.records["train"].take(self.records["train"].rows(table["id"], table["key"]))


def read_out_of_fold(path: str, task: TextTask, data: Any) -> Records:
    """Read the answers of Swifts that were trained without the examples (`elang crossfit`) to the training file.

    Raises:
        InputError: If answers are missing or to other data.
    """
    who = "The records out of fold"
    return _read_answers(path, task, data, needed=["train"], splits={"train"}, who=who)[0]["train"]


def _read_answers(
    path: str, task: TextTask, data: Any, *, needed: list[str], splits: set[str], who: str
) -> tuple[dict[str, Records], dict[str, Any]]:
    """Read the ``needed`` records, check that they have answers to these splits of the data, and return metadata."""
    records, about = read_records(path, task.label_names, task.problem)
    if missing := [source for source in needed if source not in records]:
        what = {"train": "the training file", "transfer": "the transfer set"}[missing[0]]
        raise InputError(
            f"'{path}' has no answers to {what}, only to {', '.join(records)}. Score it with `elang score`."
        )
    for split in data.splits if data is not None else ():
        if split in splits:
            examples = data.examples(split)
            records[source_of(split)].rows(examples.id, examples.key, f"{who} '{path}'")
    return {source: records[source] for source in needed}, about
