"""The course of a training: how the model did at each evaluation, and what the end of the training says of that."""

import math
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from elang.data.module import TextData
from elang.evaluation.labels import never_right, no_better_than_one
from elang.method.quality.texts import full_mark
from elang.notices import notice
from elang.records.table import Records

# Training texts that are answered again at the end, and how many at a time.
_SOME_TEXTS, _BATCH = 256, 32


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
        twice = f"(--trainer.max_epochs {2 * last.epoch})"
        remedy = (
            f"Train longer, say twice as long {twice}, or raise --model.lr, say to {2 * rate:.2g} (it was {rate:g})."
        )
        fewer = "Train for fewer epochs (--trainer.max_epochs {}), or with a lower --model.lr, say {:.2g} (it was {:g})"
        new_texts = "Its loss there fell to the end, so fewer epochs are no remedy, but new texts are: --data.transfer."
        if last.loss - lowest.loss > last.loss_error:
            said = fewer.format(lowest.epoch, rate / 3, rate)
            remedy = new_texts = f"Its loss there rose after epoch {lowest.epoch}. {said}."
        if last.never_right:
            notice(
                "never-right",
                f"After {step:,} steps the model is never right on 'validation' where the label is "
                f"{last.never_right}: it has not learned that yet. {remedy}",
            )
        if last.too_little:
            notice("learned-too-little", f"On 'validation' the model {last.too_little}{remedy}")
        if self.metric == "accuracy" and (found := _right_in_training(trainer)) is not None:
            right, count = found
            note_by_heart("accuracy", right, last.quality, "validation", min(count, last.num_examples), new_texts)
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
            f"{fewer.format(best.epoch, rate / 3, rate)}; or keep the best epoch's weights: --trainer.callbacks "
            f"ModelCheckpoint --trainer.callbacks.monitor {monitor}",
        )


@torch.inference_mode()
def _right_in_training(trainer: Trainer) -> tuple[float, int] | None:
    """The share of right answers to some training texts, and their number.

    ``None`` where they are not at hand, and for a Swift, from whose answers nobody learns.
    """
    data: Any = getattr(trainer, "datamodule", None)
    module: Any = getattr(trainer, "lightning_module", None)
    if not isinstance(data, TextData) or hasattr(module, "super_records") or getattr(module, "_sharded", True):
        return None
    (model,), texts = module.text_models.values(), cast(Any, data.loader("train").dataset)
    if not model.task.kind.has_classes:
        return None
    rows = torch.linspace(0, len(texts) - 1, min(len(texts), _SOME_TEXTS)).long().tolist()
    right = []
    model.eval()
    with trainer.precision_plugin.forward_context():
        for part in (rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)):
            batch = texts[part]
            inputs = {name: column.to(module.device) for name, column in batch["model"].items()}
            right.append(model(inputs).prediction.cpu() == batch["label"])
    model.train()
    return float(torch.cat(right).double().mean()), len(rows)


def note_by_heart(metric: str, train: float, held_out: float, split: str, fewest: int, remedy: str) -> None:
    """Tell of a model that is far better on the texts that it was trained on than on those of a held-out split.

    That is by ten points, and by two of the largest standard errors of the ``fewest`` examples.
    """
    if train - held_out > full_mark(metric) * max(0.1, 1 / math.sqrt(fewest)):
        notice(
            "learned-by-heart",
            f"{metric} is {train:.4f} on 'train' and {held_out:.4f} on '{split}', so the model has learned its "
            "training texts by heart: its answers to them are surer and more often right than those to new texts, and "
            f"a Swift that learns from them learns little more than the labels. {remedy}",
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
