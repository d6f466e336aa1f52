"""The course of a training: how the model did at each evaluation, and what the end of the training says of that."""

import math
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from elang.data.module import TextData
from elang.evaluation.cautions import never_right, no_better_than_one
from elang.method.quality.texts import full_mark
from elang.notices import notice
from elang.records.table import Records


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on the validation set.

    Attributes:
        step: Optimizer steps before it.
        epoch: Counted from 1.
        loss: Mean loss of an example.
        loss_error: Its standard error.
        quality: The metric of the training.
        num_examples: How many were answered.
        never_right: Labels that are never predicted right, in words.
        too_little: What to say if the model is no better than always giving one label; otherwise empty.
    """

    step: int
    epoch: int
    loss: float
    loss_error: float
    quality: float
    num_examples: int
    never_right: str = ""
    too_little: str = ""

    def beats(self, last: "Evaluation", metric: str) -> bool:
        """Whether an earlier evaluation is better than the last one by more than noise, by a plain rule.

        Its metric is better by more than the largest standard error that a share of so many examples can have; or its
        loss is lower by more than one standard error, and its metric no worse.
        """
        noise = full_mark(metric) / (2 * math.sqrt(last.num_examples))
        by_loss = last.loss - self.loss > last.loss_error and self.quality >= last.quality
        return self.step < last.step and (by_loss or self.quality - last.quality > noise)


@dataclass
class Course:
    """All evaluations of a training by one ``metric``, of which more is better."""

    metric: str
    evaluations: list[Evaluation] = field(default_factory=list)

    def add(
        self, trainer: Trainer, quality: float, answers: Records, table: dict[str, Tensor], names: list[str]
    ) -> None:
        """Add an evaluation of the metric's value: ``names`` are the classes, none for other kinds of tasks."""
        loss, n = table["loss"].double(), len(table["loss"])
        rows = (answers.prediction, table["label"], names)
        self.evaluations.append(
            Evaluation(
                step=int(trainer.global_step),
                epoch=int(trainer.current_epoch) + 1,
                loss=float(loss.mean()),
                loss_error=float(loss.std()) / math.sqrt(n) if n > 1 else math.inf,
                quality=quality,
                num_examples=n,
                never_right=never_right(*rows) if names else "",
                too_little=(no_better_than_one(*rows, remedy="") or "") if names else "",
            )
        )

    def note(self, trainer: Trainer, step: int, chosen: bool) -> None:
        """Add notices of a training that was too short or too long.

        Args:
            trainer: The trainer, at the end of a fit.
            step: The step that the exported weights are of.
            chosen: Whether a metric chose them.
        """
        until = [one for one in self.evaluations if one.step <= step]
        if not until:
            return
        last, lowest, rate = until[-1], min(until, key=lambda one: one.loss), trainer.optimizers[0].defaults["lr"]
        twice = 2 * trainer.fit_loop.epoch_progress.total.ready
        remedy = (
            f"Train longer, say twice as long (--trainer.max_epochs {twice}), or raise --model.lr, which was {rate:g}."
        )
        fewer = "Train for fewer epochs (--trainer.max_epochs {}), or with a lower --model.lr, which was {:g}"
        if last.loss - lowest.loss > last.loss_error:
            remedy = f"Its loss there rose after epoch {lowest.epoch}. {fewer.format(lowest.epoch, rate)}."
        if last.never_right:
            notice(
                "never-right",
                f"After {step:,} steps the model is never right on 'validation' where the label is "
                f"{last.never_right}: it has not learned that yet. {remedy}",
            )
        if last.too_little:
            notice("learned-too-little", f"On 'validation' the model {last.too_little}{remedy}")
        earlier = [one for one in until if one.beats(last, self.metric)]
        if not earlier or chosen:
            return
        best = max(earlier, key=lambda one: (one.quality, -one.loss))
        by_metric = best.quality > last.quality
        monitor = f"validation/{self.metric} --trainer.callbacks.mode max" if by_metric else "validation/loss"
        notice(
            "better-epoch",
            f"On 'validation' epoch {best.epoch} was better than epoch {last.epoch}, whose weights these are: "
            f"{self.metric} {best.quality:.4f} and loss {best.loss:.4f}, not {last.quality:.4f} and {last.loss:.4f}, a "
            f"difference of more than one standard error of {last.num_examples:,} examples. "
            f"{fewer.format(best.epoch, rate)}; or keep the best epoch's weights: --trainer.callbacks ModelCheckpoint "
            f"--trainer.callbacks.monitor {monitor}",
        )


def note_end(trainer: Trainer, evaluated: bool) -> None:
    """Add notices of a training that ended early, or that did not evaluate the model as ``evaluated`` says."""
    data: Any = getattr(trainer, "datamodule", None)
    progress = trainer.fit_loop.epoch_loop.batch_progress.total.ready
    # Other data modules may not know how many batches an epoch has.
    batches = len(data.train_dataloader()) if isinstance(data, TextData) else 0
    if not progress:
        notice("untrained", "No training step was taken: the weights are the initial ones.")
    elif progress < batches:
        notice(
            "part-trained",
            f"Training ended after {progress:,} of the {batches:,} batches of an epoch, so it has not seen all of "
            "its examples.",
        )
    if not evaluated and isinstance(data, TextData) and "validation" in data.splits:
        notice("not-evaluated", "The model was never evaluated on 'validation' in this training.")
