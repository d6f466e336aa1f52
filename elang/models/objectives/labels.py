"""What a Swift that answers with labels or values learns from the Super, and about its own errors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.backends.backend import Answer
from elang.errors import InputError
from elang.method.losses import MARGINS
from elang.method.router import expected_gain
from elang.models.objectives.objective import Gain, LossOptions, Objective, RecordedAnswers
from elang.records.table import Records
from elang.tasks.text_task import TextTask


class LabelObjective(Objective):
    """Distillation from logits, margins between easy and hard examples, and the loss of a head on the encoder.

    Args:
        task: The data's task.
        options: Options of the loss.
        answers: The Super's answers, if they are known.
        out_of_fold: Answers to the training file of Swifts that were trained without the examples.
        file_rows: Number of rows of the training file: the ids of the transfer set follow them.
    """

    def __init__(
        self,
        task: TextTask,
        options: LossOptions,
        answers: RecordedAnswers | None = None,
        out_of_fold: RecordedAnswers | None = None,
        file_rows: int | None = None,
    ) -> None:
        super().__init__(options, answers)
        self.task, self.kind = task, task.kind
        super_ = [] if answers is None else list(answers.records.values())
        has_logits = all(records.logits is not None for records in super_)
        if answers is not None and not has_logits and (options.distill_weight > 0 or options.hard == "soft_gain"):
            raise InputError(
                f"'{answers.path}' has predictions but no logits, which distillation and --model.hard soft_gain need. "
                "Set --model.distill_weight 0 and another --model.hard."
            )
        sizes = [int(records.id.max()) + 1 for records in super_]
        if file_rows is not None:
            sizes[0] = file_rows
        if super_:
            labels = [_by_id(r.id, _label(r), n, missing=-1) for r, n in zip(super_, sizes, strict=True)]
            self.columns["super_prediction"] = torch.cat(labels)
        if super_ and has_logits:
            pairs = [(r.id, r.logits, n) for r, n in zip(super_, sizes, strict=True) if r.logits is not None]
            self.columns["super_logits"] = torch.cat([_by_id(*pair, missing=0.0) for pair in pairs])
        if out_of_fold is not None:
            others = out_of_fold.records["train"]
            size = max(sum(sizes), int(others.id.max()) + 1)
            answered = torch.ones(len(others.id), dtype=torch.bool)
            self.columns["answered_out_of_fold"] = _by_id(others.id, answered, size, missing=False)
            self.columns["out_of_fold"] = _by_id(others.id, others.prediction, size, missing=0)
            if options.hard == "soft_gain":
                if others.logits is None:
                    raise InputError("Records out of fold without logits cannot give --model.hard soft_gain.")
                self.columns["out_of_fold_logits"] = _by_id(others.id, others.logits, size, missing=0.0)

    def labels(self, batch: dict[str, Any]) -> Tensor:
        """The batch's labels ``(B,)``, with the Super's answers as the labels of unlabelled texts."""
        label: Tensor = batch["label"]
        if "super_logits" not in batch and "super_prediction" not in self.columns:
            return label
        return torch.where(self.kind.is_unknown(label), self._prediction(batch).to(label), label)

    def _prediction(self, batch: dict[str, Any]) -> Tensor:
        """The Super's answers to a batch, ``(B,)``."""
        if "super_logits" in batch:
            return self.kind.predict(batch["super_logits"])
        return self.columns["super_prediction"][batch["id"]]

    def _logits(self, batch: dict[str, Any]) -> Tensor:
        """The Super's logits of a batch, ``(B, C)``."""
        logits: Tensor | None = batch.get("super_logits")
        return self.columns["super_logits"][batch["id"]] if logits is None else logits

    def terms(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The weighted terms of a batch. A head on the encoder learns what the decoder does, if it has its classes."""
        options, outputs = self.options, [answer.logits]
        terms: dict[str, Tensor] = {}
        # Each example's own candidates are not classes.
        has_classes = not self.kind.has_candidates or bool(self.task.answers)
        shares_classes = answer.early is not None and answer.early.shape == answer.logits.shape and has_classes
        if answer.early is not None and shares_classes:
            outputs.append(answer.early)
        if options.distill_weight > 0:
            target = self._logits(batch)
            distances = [self.kind.distance(logits, target, options.distill_temperature) for logits in outputs]
            terms["distill"] = options.distill_weight * torch.stack(distances).sum()
        if options.margin_weight > 0 and self.kind.chooses:
            hard, margin = self.hardness(batch, answer), MARGINS[options.margin]
            margins = [margin(logits, batch["label"], hard, options.temperature) for logits in outputs]
            terms["margin"] = options.margin_weight * torch.stack(margins).sum()
        if answer.early is not None and (shares_classes or not self.kind.chooses):
            terms["encoder"] = self.kind.loss(answer.early, batch["label"])
        elif answer.early is not None:
            # Without classes of its own, the head predicts whether the decoder's answer is good enough.
            terms["encoder"] = F.cross_entropy(answer.early, (self.hardness(batch, answer) > 0.5).long())
        return terms

    def hardness(self, batch: dict[str, Any], answer: Answer) -> Tensor:
        """How hard each example of a batch is, 0 to 1, float32 ``(B,)``."""
        label, targets = batch["label"], batch["targets"]
        soft, logits = self.options.hard == "soft_gain", answer.logits.detach()
        prediction = self.kind.predict(logits)
        if "out_of_fold" in self.columns:
            rows = batch["id"]
            known = self.columns["answered_out_of_fold"][rows]
            prediction = torch.where(known, self.columns["out_of_fold"][rows], prediction)
            if soft:
                logits = torch.where(known[:, None], self.columns["out_of_fold_logits"][rows], logits)
        if soft:
            both = (self._logits(batch), logits)
            super_, swift = (x.softmax(-1).gather(1, label[:, None])[:, 0] for x in both)
            return (super_ - swift).clamp(0, 1)
        swift = self.kind.reward(prediction, label, targets)
        if self.options.hard == "error":
            return (swift < 1).float()
        return (self.kind.reward(self._prediction(batch), label, targets) > swift).float()

    def gain(self, table: dict[str, Tensor], super_: Records | None, data: Any, quality: str) -> Gain:
        """By how much the Super's answer is worth more; without a Super, by how much a right one is."""
        targets = data.targets("routing", table["id"])
        swift = self.kind.reward(table["prediction"], table["label"], targets)
        if super_ is None:
            return targets, 1 - swift, None
        gain = self.kind.reward(super_.prediction, table["label"], targets) - swift
        if super_.logits is None or not self.kind.chooses or "answer_f1" in targets:
            return targets, gain, None
        return targets, gain, expected_gain(super_.logits, super_.prediction, table["prediction"])


def _label(records: Records) -> Tensor:
    """The predictions, or the most probable label where a generated answer is no label."""
    prediction = records.prediction
    if prediction.is_floating_point() or records.logits is None:
        return prediction
    return torch.where(prediction < 0, records.logits.argmax(-1), prediction)


def _by_id(ids: Tensor, values: Tensor, size: int, missing: float) -> Tensor:
    """Values in the order of their ids from 0 to ``size``, ``missing`` where there is none."""
    in_range = ids < size
    return values.new_full((size, *values.shape[1:]), missing).index_copy(0, ids[in_range], values[in_range])
