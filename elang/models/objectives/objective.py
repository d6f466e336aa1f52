"""What a Swift's loss has besides the task's own: its options, the Super's answers, and the interface of its terms."""

from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from elang.backends.backend import Answer
from elang.backends.flops import FlopsConvention
from elang.backends.loading.source import tell_if_larger
from elang.backends.text_model import TextModel
from elang.data.examples import check_held_out, source_of
from elang.data.prompts import tell_examples
from elang.errors import InputError
from elang.evaluation.cautions import little_to_save
from elang.method.losses import MarginKind
from elang.notices import notice
from elang.records.reading import read_metadata, read_records
from elang.records.table import EXAMPLES, Records
from elang.tasks.text_task import TextTask

Hard = Literal["gain", "error", "soft_gain"]
Distill = Literal["token", "sequence"]
Gain = tuple[dict[str, Tensor], Tensor, Tensor | None]
"""What the metric reads besides the labels; how much deferring each example gains, float64 ``(N,)``, or without a Super
how bad the Swift's answer is; and the gain that the Super's logits predict, if there are any."""

# Texts by whose lengths two models' costs are compared.
_FEW = 64


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

    def check(self, super_model: str | None) -> None:
        """Refuse weights below 0, and hidden states without a Super."""
        for name in ("task_weight", "distill_weight", "margin_weight", "hidden_weight"):
            if (weight := getattr(self, name)) < 0:
                raise InputError(f"--model.{name} must be 0 (off) or positive, but it is {weight}.")
        if self.hidden_weight > 0 and super_model is None:
            raise InputError("The distillation of hidden states runs the Super: set --model.super_model.")

    @property
    def need_super(self) -> bool:
        """Whether these terms need the Super's answers."""
        return self.distill_weight > 0 or self.hard != "error"

    def check_answered(self, task: TextTask) -> None:
        """Refuse terms that need the Super's answers, which are not known."""
        if self.need_super:
            instead = ", or set --model.distill_weight 0 --model.hard error" if task.kind.scores else ""
            raise InputError(
                f"Distillation and hard='{self.hard}' need the Super's answers, but --model.super_records is not set. "
                f"Make them with `elang score`{instead}."
            )

    def alone(self) -> "LossOptions":
        """The same without the Super's answers: no distillation, and hard is where the Swift is wrong."""
        return replace(self, distill_weight=0.0, hard="error")


@dataclass(frozen=True)
class RecordedAnswers:
    """The Super's answers, or those of Swifts that were trained without the examples (`elang crossfit`).

    Attributes:
        path: The file that they are from, for messages.
        records: Answers to the training file (``train``) and to the transfer set (``transfer``), if there is one.
        vocabulary: Hash of the vocabulary of a model that generates texts.
        convention: How the Super's FLOPs were counted.
        sha256: Hash of the Super's weights; empty if unknown.
    """

    path: str | None
    records: dict[str, Records]
    vocabulary: str | None = None
    convention: FlopsConvention = "exact"
    sha256: str = ""

    @classmethod
    def read(cls, path: str, task: TextTask, data: Any, out_of_fold: bool = False) -> "RecordedAnswers":
        """Read a file of records, and check that they are answers to the data module's training file.

        Raises:
            InputError: If answers are missing or to other data, or the Super was trained on the held-out slice.
        """
        if data is None and out_of_fold:
            raise InputError(
                f"--model.out_of_fold '{path}' is about the rows of a training file: give one of elang's data modules "
                "instead of loaders, or leave it out."
            )
        records, about = read_records(path, task.label_names, task.problem)
        needed = {"train": "the training file"}
        if getattr(data, "transfer", None) and not out_of_fold:
            needed["transfer"] = "the transfer set"
        if missing := [source for source in needed if source not in records]:
            raise InputError(
                f"'{path}' has no answers to {needed[missing[0]]}, only to {', '.join(records)}. Make them with "
                f"`elang {'crossfit' if out_of_fold else 'score'}`."
            )
        who = "The records out of fold" if out_of_fold else "The Super's records"
        for split in ["train"] if out_of_fold else ["train", "routing", "transfer"]:
            if data is not None and split in data.splits:
                examples = data.examples(split)
                records[source_of(split)].rows(examples.id, examples.key, f"{who} '{path}'")
        if data is not None and not out_of_fold:
            check_held_out(data, about, f"the Super of '{path}'")
        if not out_of_fold and EXAMPLES in about:
            tell_examples({f"the Super of '{path}'": about[EXAMPLES], "the Swift": task.examples})
        convention: FlopsConvention = "paper" if about.get("flops_convention") == "paper" else "exact"
        made = about.get("vocabulary"), convention, str(about.get("weights_sha256") or "")
        return cls(path, {source: records[source] for source in needed}, *made)

    @staticmethod
    def tell_larger(path: str | None, swift: str, model: TextModel) -> None:
        """Tell of a Swift that is larger than the Super of the records at a path, before anything long."""
        if path is not None and path.lower().endswith(".parquet") and Path(path).is_file():
            # A damaged file is refused when it is read.
            with suppress(ValueError):
                tell_if_larger(swift, model.size, str(read_metadata(path).get("model", "")))

    def tell_saving(self, model: TextModel, data: Any) -> None:
        """Tell how much a pair with this Swift can save at most, if that is little, by some training texts."""
        records = self.records["train"]
        if data is None or records.flops is None or (model.task.kind.generates and records.steps is None):
            return
        texts = data.loader("train").dataset
        batch = texts[torch.linspace(0, len(texts) - 1, min(len(texts), _FEW)).long().tolist()]
        rows = records.rows(batch["id"], batch["key"])
        # As if it wrote texts of the Super's lengths.
        steps = None if records.steps is None else records.steps[rows]
        swift = model.flops(batch["model"], self.convention, steps)["flops"].mean()
        super_ = records.flops[rows].mean()
        if said := little_to_save(float(swift), float(super_)):
            notice("little-to-save", f"{said[0].upper()}{said[1:]}.")


class Objective(ABC):
    """What a Swift learns besides its task, for one form of answers."""

    def __init__(self, options: LossOptions, answers: RecordedAnswers | None) -> None:
        self.options, self.answers = options, answers
        # What every batch needs. Not buffers, which DDP would broadcast at every step.
        self.columns: dict[str, Tensor] = {}

    def start(self, model: TextModel, data: Any, device: torch.device) -> None:
        """Move the columns to the device, and tell if a pair with this Swift can save only a little."""
        if self.answers is not None:
            self.answers.tell_saving(model, data)
        self.to(device)

    def to(self, device: torch.device) -> None:
        """Move the columns to the device."""
        self.columns = {name: column.to(device) for name, column in self.columns.items()}

    def labels(self, batch: dict[str, Any]) -> Tensor:
        """The batch's labels ``(B,)``, with the Super's answers as the labels of unlabelled texts."""
        labels: Tensor = batch["label"]
        return labels

    def super_rows(self, table: dict[str, Tensor]) -> Records | None:
        """The Super's answers, if they are known, to examples of the training file with this ``id`` and ``key``."""
        records = None if self.answers is None else self.answers.records["train"]
        return None if records is None else records.take(records.rows(table["id"], table["key"]))

    def knows_super(self, batch: dict[str, Any]) -> bool:
        """Whether the Super's answers to a loader's batch are known; an ``InputError`` if the file lacks them."""
        if "super_logits" in batch or self.answers is None:
            return "super_logits" in batch
        who = f"The Super's records '{self.answers.path}'"
        if "id" not in batch:
            raise InputError(
                f"{who} are looked up by 'id', the row in the file that was answered, which the loader's batches do "
                "not have. Add it, or give 'super_logits'."
            )
        self.answers.records["train"].rows(batch["id"], what=who)
        return True

    @abstractmethod
    def terms(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The weighted terms of a batch's loss by name, each a scalar."""

    @abstractmethod
    def gain(self, table: dict[str, Tensor], super_: Records | None, data: Any, quality: str) -> Gain:
        """What deferring gains on the routing slice, by the Swift's answers and, if known, the Super's."""
