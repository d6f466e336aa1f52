"""What a Swift that answers with labels or values learns besides its task: from the Super, and about its own errors."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from elang.backends.text_model import Answer
from elang.errors import InputError
from elang.method.losses import MARGINS, MarginKind
from elang.records.table import Records
from elang.tasks.kind import Kind

Hard = Literal["gain", "error", "soft_gain"]


class LabelLessons:
    """The terms of the Swift's loss that the task alone does not have.

    Args:
        kind: The kind of task.
        weights: Of ``distill`` and ``margin``; 0 is off.
        margin: Form of the margin.
        hard: Which examples are hard.
        temperature: Of the energies.
        distill_temperature: Of the distillation.
        super_: The Super's answers to the training file and, behind these, to the transfer set, if they are known.
        out_of_fold: The answers of Swifts that were trained without the examples, to the training file.
        source: Where the Super's are from, for messages.
        file_rows: Rows of the training file, behind which the ids of the transfer set begin.

    Raises:
        InputError: If the answers lack what is to be learned from.
    """

    def __init__(
        self,
        kind: Kind,
        weights: dict[str, float],
        margin: MarginKind,
        hard: Hard,
        temperature: float,
        distill_temperature: float,
        super_: list[Records],
        out_of_fold: Records | None,
        source: str | None,
        file_rows: int | None = None,
    ) -> None:
        self.kind, self.weights, self.hard, self.source = kind, weights, hard, source
        self.margin: Callable[..., Tensor] = MARGINS[margin]
        self.temperature, self.distill_temperature = temperature, distill_temperature
        without = any(records.logits is None for records in super_)
        if without and (weights["distill"] > 0 or hard == "soft_gain"):
            raise InputError(
                f"'{source}' has predictions but no logits, which distillation and --model.hard soft_gain need. Set "
                "--model.distill_weight 0 and another --model.hard."
            )
        # By id, as plain tensors: DDP would send buffers round at every step.
        self.columns: dict[str, Tensor] = {}
        sizes = [int(records.id.max()) + 1 for records in super_]
        if file_rows is not None:
            sizes[0] = file_rows
        if super_:
            parts = [_by_id(r.id, _label(r), size, -1) for r, size in zip(super_, sizes, strict=True)]
            self.columns["super_prediction"] = torch.cat(parts)
            logits = [
                _by_id(r.id, r.logits, size, 0.0) for r, size in zip(super_, sizes, strict=True) if r.logits is not None
            ]
            if not without:
                self.columns["super_logits"] = torch.cat(logits)
        if out_of_fold is not None:
            size = max(sum(sizes), int(out_of_fold.id.max()) + 1)
            # -2 where no Swift is known that had not seen the example: its own answer counts.
            self.columns["out_of_fold"] = _by_id(out_of_fold.id, out_of_fold.prediction, size, -2)
            if hard == "soft_gain":
                if out_of_fold.logits is None:
                    raise InputError("Records out of fold without logits cannot give --model.hard soft_gain.")
                self.columns["out_of_fold_logits"] = _by_id(out_of_fold.id, out_of_fold.logits, size, 0.0)

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

    def terms(self, batch: dict[str, Any], answer: Answer, early_classes: bool) -> dict[str, Tensor]:
        """The weighted terms of one batch; an early head with the same classes learns what the decoder does."""
        found: dict[str, Tensor] = {}
        outputs = [answer.logits]
        if early_classes and answer.early is not None:
            outputs.append(answer.early)
        if self.weights["distill"] > 0:
            target = self.columns["super_logits"][batch["id"]]
            close = [self.kind.distance(logits, target, self.distill_temperature) for logits in outputs]
            found["distill"] = self.weights["distill"] * torch.stack(close).sum()
        if self.weights["margin"] > 0 and self.kind.chooses:
            hard = self.hardness(batch, answer)
            gaps = [self.margin(logits, batch["label"], hard, self.temperature) for logits in outputs]
            found["margin"] = self.weights["margin"] * torch.stack(gaps).sum()
        return found

    def hardness(self, batch: dict[str, Any], answer: Answer) -> Tensor:
        """How hard each example of a batch is, 0 to 1, float32 ``(B,)``."""
        label, targets, rows = batch["label"], batch["targets"], batch["id"]
        logits = answer.logits.detach()
        prediction = self.kind.predict(logits)
        if "out_of_fold" in self.columns:
            other = self.columns["out_of_fold"][rows]
            known = other != -2
            prediction = torch.where(known, other, prediction)
            if self.hard == "soft_gain":
                logits = torch.where(known[:, None], self.columns["out_of_fold_logits"][rows], logits)
        if self.hard == "soft_gain":
            place = label[:, None]
            sure, own = (x.softmax(-1).gather(1, place)[:, 0] for x in (self.columns["super_logits"][rows], logits))
            return (sure - own).clamp(0, 1)
        swift = self.kind.reward(prediction, label, targets)
        if self.hard == "error":
            return (swift < 1).float()
        return (self.kind.reward(self.columns["super_prediction"][rows], label, targets) > swift).float()


def _label(records: Records) -> Tensor:
    """Predictions; for a generated answer that is no label the most probable one."""
    said = records.prediction
    if said.is_floating_point() or records.logits is None:
        return said
    return torch.where(said < 0, records.logits.argmax(-1), said)


def _by_id(ids: Tensor, values: Tensor, size: int, missing: float) -> Tensor:
    """Lay values out by id, ``missing`` where there is none."""
    kept = ids < size
    return values.new_full((size, *values.shape[1:]), missing).index_copy(0, ids[kept], values[kept])
