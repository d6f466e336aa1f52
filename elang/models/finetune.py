"""Fine-tuning on a task: how a Super is made, and what the Swift's training builds on."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from elang.backends.backend import Answer
from elang.backends.fast.graphs import AnyShape
from elang.backends.loading.checkpoints import CHECKPOINT_KEY, check_output_folder, describe
from elang.backends.loading.load import load_model
from elang.backends.loading.weights import check_state
from elang.data.batches import Reader
from elang.data.module import TextData
from elang.errors import InputError
from elang.evaluation.cautions import never_right
from elang.locks import lock_for_all, unlock_output
from elang.method.deferral import check_logits
from elang.method.quality.registry import QUALITIES, QualityName
from elang.metrics import ExampleTable
from elang.models.export import check_weights_finite, take_best, tell_never_right, tell_unseen, write_folder
from elang.models.optimizer import Schedule, adamw
from elang.models.resuming import (
    RANDOM,
    Plan,
    check_checkpoint,
    check_resumable,
    random_state,
    restore_random,
    stop_late,
)
from elang.models.sharding import Sharded, check_strategy
from elang.models.validation import check_own_head, check_some, measure_split, tell_part
from elang.records.manifest import Manifest
from elang.tasks.kinds import check_qualities
from elang.tasks.text_task import TaskFields, TextTask


class FinetuneModule(AnyShape, LightningModule):
    """Fine-tunes an encoder (cross-entropy, or squared error in a regression) or an encoder-decoder with AdamW.

    After training it writes a folder that loads with plain ``transformers`` and into every ``elang`` module.

    Args:
        model: A folder or a hub id (``owner/name@revision``) of a pretrained model: anything that
            ``AutoModelForSequenceClassification`` loads, or an encoder-decoder (``AutoModelForSeq2SeqLM``).
        label_names: Class names in order; the command line takes them from the data, like the next.
        task: What is asked, :meth:`elang.tasks.text_task.TextTask.plain`.
        layers: Keep only the first so many layers of it (of an encoder-decoder, of both stacks).
        lr: Peak learning rate; it rises over ``warmup`` of the steps and then falls linearly to 0.
        weight_decay: Decoupled weight decay, on matrices only.
        warmup: Share of all steps.
        freeze_embeddings: Leave the embedding tables as they are: much faster on a CPU, and no worse on small data.
        quality: Task metric that is logged; by default the task's first.
        output: Folder to write after training; by default ``export`` in the run's log folder.
        gradient_checkpointing: Compute activations again in the backward pass instead of keeping them.
        compile: Run the backbone through ``torch.compile``.
        label_smoothing: Share of the probability that the targets give to all other classes or tokens.
        num_beams: Hypotheses that generated texts are chosen from, here and by default of the finished model.
    """

    # Whether it gets router heads, whether its loss reads logits, and whether every process runs it in the end.
    _has_router = _needs_logits = _fits_everywhere = False

    def __init__(
        self,
        model: str,
        label_names: list[str],
        task: TaskFields | None = None,
        layers: int | None = None,
        lr: float = 5e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        freeze_embeddings: bool = False,
        quality: QualityName | None = None,
        output: str | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,  # noqa: A002 - the option's name
        label_smoothing: float = 0.0,
        num_beams: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if output is not None:
            check_output_folder(Path(output))
        self.task = TextTask.of(label_names, task)
        self.classifier = load_model(
            model, self.task, fine_tune=True, layers=layers, router=self._has_router, num_beams=num_beams
        )
        self.trained_on = self.classifier.manifest
        options = {"freeze_embeddings": freeze_embeddings, "checkpointing": gradient_checkpointing, "compiled": compile}
        self.classifier.prepare_training(label_smoothing, **options)
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        check_qualities([quality] if quality else [], self.task)
        self.quality = QUALITIES[quality or self.task.qualities[0]](len(label_names))  # type: ignore[index]
        self.output, self.label_names = output, label_names
        self._tables: dict[str, ExampleTable] = {}
        # Labels that the model is never right on, by the step at which it was asked.
        self._unlearned: dict[int, list[str]] = {}
        self._plan: Plan | None = None
        self._schedule: Schedule | None = None
        self._goes_on, self._evaluated, self._best = False, False, ""
        self._earlier: dict[str, Any] = {}
        self._sharded: Sharded | None = None
        self._random: dict[str, Tensor] | None = None

    def setup(self, stage: str) -> None:
        """Take the limit of generated texts from the data, and look at how the trainer goes about it."""
        super().setup(stage)
        check_strategy(self.trainer)
        check_some(self.trainer, stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is not None:
            self.classifier.limit_new_tokens(data.max_target_length)
        if stage != "fit":
            return
        stop_late(self.trainer)
        if getattr(data, "transfer", None):
            self._check_transfer(data)
        self._plan = Plan.of(self.trainer, data) if isinstance(data, TextData) else None
        self._goes_on, self._earlier = False, {}
        # log_dir is a collective: every process has to ask.
        self._folder = Path(self.output or Path(self.trainer.log_dir or self.trainer.default_root_dir) / "export")
        if not getattr(self.trainer, "fast_dev_run", False):
            lock_for_all(self.trainer, self._folder)

    def teardown(self, stage: str) -> None:
        """Let others write the folder again."""
        super().teardown(stage)
        if stage == "fit":
            unlock_output(self._folder)

    def configure_model(self) -> None:
        """Share the weights out over the processes, where the strategy does."""
        if self.device_mesh is not None and self._sharded is None:
            self._sharded = Sharded(self.classifier, self.device_mesh["data_parallel"])

    def _check_transfer(self, data: Any) -> None:
        """Refuse texts without labels."""
        told = f"--data.transfer '{data.transfer}' is text without labels, which only a SwiftModule learns from"
        raise InputError(f"{told}: leave it out here.")

    @property
    def readers(self) -> dict[str, Reader]:
        """How the model reads, under the name that its inputs have in a batch."""
        return {"model": self.classifier.reader}

    def loss(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """Return the weighted terms of the training loss, each a scalar; they are added up and logged."""
        assert answer.loss is not None
        return {"task": answer.loss}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step of training."""
        terms = self.loss(batch, self.classifier(batch["model"], batch["label"], want_logits=self._needs_logits))
        total = torch.stack(list(terms.values())).sum()
        # Logging at every step is a quarter of a small model's time, and only some steps are written.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step + 1) % every == 0:
            self.log("train/loss", total, prog_bar=True, batch_size=len(batch["label"]))
            if len(terms) > 1:
                self.log_dict({f"train/{name}": term for name, term in terms.items()}, batch_size=len(batch["label"]))
        return total

    def on_validation_epoch_start(self) -> None:
        """Make an empty table for each split.

        Raises:
            InputError: If an untrained or differently ordered head would be evaluated.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        state = self.trainer.state.fn
        if state != TrainerFn.FITTING and not self.trainer.ckpt_path:
            check_own_head(self.classifier, self.hparams["model"], self.task, trained_on=self.trained_on)
        self.split_names: list[str] = ["validation"]
        if data is not None:
            self.split_names = list(data.test_splits if state == TrainerFn.TESTING else data.eval_splits)
        columns = {"label": ((), self.task.kind.answer_type), **self.classifier.plain_columns()}
        self._tables = {name: ExampleTable(columns).to(self.device) for name in self.split_names}

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer a batch of one of the splits."""
        row = {"id": batch["id"], "label": batch["label"], **self.classifier.plain_answers(batch["model"])}
        if not batch.get("repeated"):
            self._tables[self.split_names[dataloader_idx]].update(**row)

    def on_validation_epoch_end(self) -> None:
        """Log the task metric of each split over all processes."""
        for split, collected in self._tables.items():
            table = collected.compute()
            if not len(table["id"]):
                continue
            data: Any = getattr(self.trainer, "datamodule", None)
            if data is not None and not self.trainer.sanity_checking:
                self._evaluated = True
                tell_part({split: (len(table["id"]), len(data.examples(split)))})
            answers = self.classifier.records(table)
            if answers.logits is not None:
                check_logits(answers.logits, f"the model's logits on '{split}'", self.task.kind.has_candidates)
            values = measure_split(answers, table["label"], self.quality, data=data, split=split)
            if split == "validation" and self.task.kind.has_classes:
                wrong = never_right(answers.prediction, table["label"], self.label_names)
                self._unlearned[self.trainer.global_step] = wrong
            for name, value in values.items():
                self.log(f"{split}/{name}", value, prog_bar=True, sync_dist=True)
                if self.trainer.state.fn != TrainerFn.FITTING:
                    self.print(f"{name} on {len(table['id'])} examples of {split}: {value:.4f}")
        self._tables = {}

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and decay; no weight decay on biases and norms."""
        optimizer = adamw(self.parameters(), self.lr, self.weight_decay, trainer=self.trainer)
        self._schedule = Schedule(optimizer, self.trainer, self._plan, warmup=self.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule.scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Set the learning rate that this run is to go on with, where a checkpoint brought another run's."""
        if self._goes_on and self._schedule is not None:
            self._schedule.resume(self.lr, self.weight_decay)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the model without the folder that it came from."""
        checkpoint[CHECKPOINT_KEY] = {
            "class": type(self).__name__,
            "max_epochs": self.trainer.max_epochs,
            "plan": None if self._plan is None else self._plan.plain(),
            **describe(self.classifier, self.hparams["model"]),
        }
        checkpoint[RANDOM] = random_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another class or of other labels, and tell what else is other than it was."""
        about = check_checkpoint(checkpoint, type(self).__name__, self.label_names)
        if "state_dict" in checkpoint and self._trainer is not None:
            path = str(self.trainer.ckpt_path)
            check_state(self, checkpoint["state_dict"], path, "Go on from an earlier checkpoint.")
        self._random = checkpoint.get(RANDOM)
        if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        check_resumable(checkpoint)
        self._goes_on, self._earlier = True, checkpoint.get("callbacks", {})
        if self._plan is not None:
            # The command line puts another in its place where it is given an optimizer.
            scheduled = "configure_optimizers" not in vars(self)
            self._plan.go_on(checkpoint, about.get("plan"), self.trainer, scheduled=scheduled)
            if (about.get("plan") or {}).get("evaluated") != self._plan.evaluated:
                # What a metric was on other data says nothing about these.
                self._earlier = {}

    def on_train_epoch_start(self) -> None:
        """Go on with the random numbers of a checkpoint, so that a resumed run ends as one that was not stopped."""
        restore_random(self._random, self.trainer, self.device)
        self._random = None

    def thresholds(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What goes into the manifest's thresholds; a Super has none."""
        return {}

    def manifest(self) -> Manifest:
        """Describe the finished model."""
        data: Any = getattr(self.trainer, "datamodule", None)
        return Manifest(
            label_names=self.label_names,
            task=self.task.plain(),
            routing_fraction=getattr(data, "routing_fraction", 0.0),
            max_length=getattr(data, "max_length", 512),
            max_target_length=getattr(data, "max_target_length", 128),
            num_beams=self.classifier.num_beams,
            thresholds=self.thresholds(),
        )

    def on_train_end(self) -> None:
        """Choose weights and thresholds while the model is still on its device and the processes can gather."""
        if self._sharded is not None:
            whole = self._sharded.gather(self._fits_everywhere)
            self.classifier = self.classifier if whole is None else whole
        everywhere = self._sharded is None or self._fits_everywhere
        step, self._best = take_best(self.trainer, self._earlier, self.classifier, everywhere=everywhere)
        tell_never_right(self._unlearned, step)
        tell_unseen(self.trainer, self._plan is not None, self._evaluated or self._goes_on)
        self._finished = self.manifest()

    def on_fit_end(self) -> None:
        """Write the folder, unless training was interrupted or only tried out."""
        if self.trainer.interrupted or getattr(self.trainer, "fast_dev_run", False):
            return
        check_weights_finite(self.classifier, self.trainer)
        if not hasattr(self, "_finished"):
            # Resumed from the last checkpoint of all: nothing was left to train, so on_train_end did not come.
            self.to(self.trainer.strategy.root_device)
            self.on_train_end()
        if self.trainer.is_global_zero:
            write_folder(self.trainer, self.classifier, self._folder, manifest=self._finished, best=self._best)
