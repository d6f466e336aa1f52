"""What a Swift that answers with labels or values learns besides its task: from the Super, and about its own errors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.backends.backend import Answer
from elang.errors import InputError
from elang.method.losses import MARGINS
from elang.method.router import expected_gain
from elang.models.objectives.objective import LossOptions, SuperAnswers
from elang.records.table import Records
from elang.tasks.text_task import TextTask


class LabelObjective:
    """The terms of the Swift's loss that the task alone does not have.

    Args:
        task: What is asked.
        options: Of the loss.
        answers: The Super's, if they are known.
        out_of_fold: The answers of Swifts that were trained without the examples, to the training file.
        file_rows: Rows of the training file, behind which the ids of the transfer set begin.

    Raises:
        InputError: If the answers lack what is to be learned from.
    """

    def __init__(
        self,
        task: TextTask,
        options: LossOptions,
        answers: SuperAnswers | None = None,
        out_of_fold: Records | None = None,
        file_rows: int | None = None,
    ) -> None:
        self.task, self.kind = task, task.kind
        self.distillation, self.margin = options.distillation, options.margin
        super_ = [] if answers is None else list(answers.records.values())
        without = any(records.logits is None for records in super_)
        if answers is not None and without and (self.distillation.weight > 0 or self.margin.hard == "soft_gain"):
            raise InputError(
                f"'{answers.path}' has predictions but no logits, which distillation and --model.hard soft_gain need. "
                "Set --model.distill_weight 0 and another --model.hard."
            )
        # By id, as plain tensors: DDP would send buffers round at every step.
        self.columns: dict[str, Tensor] = {}
        sizes = [int(records.id.max()) + 1 for records in super_]
        if file_rows is not None:
            sizes[0] = file_rows
        if super_:
            parts = [_by_id(r.id, _label(r), size, missing=-1) for r, size in zip(super_, sizes, strict=True)]
            self.columns["super_prediction"] = torch.cat(parts)
            logits = [
                _by_id(r.id, r.logits, size, missing=0.0)
                for r, size in zip(super_, sizes, strict=True)
                if r.logits is not None
            ]
            if not without:
                self.columns["super_logits"] = torch.cat(logits)
        if out_of_fold is not None:
            size = max(sum(sizes), int(out_of_fold.id.max()) + 1)
            # -2 where no Swift is known that had not seen the example: its own answer counts.
            self.columns["out_of_fold"] = _by_id(out_of_fold.id, out_of_fold.prediction, size, missing=-2)
            if self.margin.hard == "soft_gain":
                if out_of_fold.logits is None:
                    raise InputError("Records out of fold without logits cannot give --model.hard soft_gain.")
                self.columns["out_of_fold_logits"] = _by_id(out_of_fold.id, out_of_fold.logits, size, missing=0.0)

    def to(self, device: torch.device) -> None:
        """Bring the answers to the device."""
        self.columns = {name: column.to(device) for name, column in self.columns.items()}

    def labels(self, batch: dict[str, Any]) -> Tensor:
        """The batch's labels; of unlabelled text the Super's answers."""
        label: Tensor = batch["label"]
        if "super_prediction" not in self.columns:
            return label
        unknown = self.kind.is_unknown(label)
        return torch.where(unknown, self.columns["super_prediction"][batch["id"]].to(label), label)

    def _shares_classes(self, answer: Answer) -> bool:
        """Whether the head on an encoder's output has the decoder's classes; each example's own candidates are none."""
        own = self.kind.has_candidates and not self.task.answers
        return answer.early is not None and answer.early.shape == answer.logits.shape and not own

    def terms(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The weighted terms of one batch; an early head with the same classes learns what the decoder does."""
        terms: dict[str, Tensor] = {}
        outputs = [answer.logits]
        if answer.early is not None and self._shares_classes(answer):
            outputs.append(answer.early)
        if self.distillation.weight > 0:
            target = self.columns["super_logits"][batch["id"]]
            distances = [self.kind.distance(logits, target, self.distillation.temperature) for logits in outputs]
            terms["distill"] = self.distillation.weight * torch.stack(distances).sum()
        if self.margin.weight > 0 and self.kind.chooses:
            hard, margin = self.hardness(batch, answer), MARGINS[self.margin.form]
            margins = [margin(logits, batch["label"], hard, self.margin.temperature) for logits in outputs]
            terms["margin"] = self.margin.weight * torch.stack(margins).sum()
        return terms

    def encoder_terms(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The loss of the head on an encoder-decoder's encoder."""
        if answer.early is None:
            return {}
        if not self.kind.chooses or self._shares_classes(answer):
            return {"encoder": self.kind.loss(answer.early, batch["label"])}
        # Candidates of each example's own are no classes; the head tells whether the answer will do.
        return {"encoder": F.cross_entropy(answer.early, (self.hardness(batch, answer) > 0.5).long())}

    def hardness(self, batch: dict[str, Any], answer: Answer) -> Tensor:
        """How hard each example of a batch is, 0 to 1, float32 ``(B,)``."""
        label, targets, rows = batch["label"], batch["targets"], batch["id"]
        logits = answer.logits.detach()
        prediction = self.kind.predict(logits)
        if "out_of_fold" in self.columns:
            other = self.columns["out_of_fold"][rows]
            known = other != -2
            prediction = torch.where(known, other, prediction)
            if self.margin.hard == "soft_gain":
                logits = torch.where(known[:, None], self.columns["out_of_fold_logits"][rows], logits)
        if self.margin.hard == "soft_gain":
            place = label[:, None]
            sure, own = (x.softmax(-1).gather(1, place)[:, 0] for x in (self.columns["super_logits"][rows], logits))
            return (sure - own).clamp(0, 1)
        swift = self.kind.reward(prediction, label, targets)
        if self.margin.hard == "error":
            return (swift < 1).float()
        return (self.kind.reward(self.columns["super_prediction"][rows], label, targets) > swift).float()

    def targets(self, table: dict[str, Tensor], data: Any, quality: str, super_: Records | None) -> dict[str, Tensor]:
        """What metrics read of the routing slice besides its labels."""
        targets: dict[str, Tensor] = data.targets("routing", table["id"])
        return targets

    def gain(
        self, table: dict[str, Tensor], targets: dict[str, Tensor], super_: Records | None
    ) -> tuple[Tensor, Tensor | None]:
        """By how much the Super's answer is worth more; without a Super, what is missing to a right answer."""
        swift = self.kind.reward(table["prediction"], table["label"], targets)
        if super_ is None:
            return 1 - swift, None
        gain = self.kind.reward(super_.prediction, table["label"], targets) - swift
        if super_.logits is None or not self.kind.chooses or "answer_f1" in targets:
            return gain, None
        return gain, expected_gain(super_.logits, super_.prediction, table["prediction"])


def _label(records: Records) -> Tensor:
    """Predictions; for a generated answer that is no label the most probable one."""
    prediction = records.prediction
    if prediction.is_floating_point() or records.logits is None:
        return prediction
    return torch.where(prediction < 0, records.logits.argmax(-1), prediction)


def _by_id(ids: Tensor, values: Tensor, size: int, missing: float) -> Tensor:
    """Lay values out by id, ``missing`` where there is none."""
    kept = ids < size
    return values.new_full((size, *values.shape[1:]), missing).index_copy(0, ids[kept], values[kept])
