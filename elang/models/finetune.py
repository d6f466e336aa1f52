"""Fine-tuning a model on a task: how a Super is trained, and the base of the Swift's training."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from elang.backends.backend import Answer, Columns
from elang.backends.loading.checkpoints import CHECKPOINT_KEY, PREFIX, check_output_folder, describe, note_replaced
from elang.backends.loading.families import check_finished
from elang.backends.loading.load import load_model
from elang.backends.loading.lora import Lora, LoraOptions
from elang.backends.loading.weights import check_state
from elang.backends.text_model import TextModel
from elang.data.module import TextData
from elang.errors import InputError, counted
from elang.method.deferral import check_logits
from elang.method.quality.registry import QUALITIES, QualityName
from elang.models import resuming
from elang.models.base import TaskModule
from elang.models.course import Course, note_end
from elang.models.export import check_weights_finite, load_best, write_folder
from elang.models.optimizer import Schedule, adamw
from elang.records.manifest import Manifest
from elang.tasks.kinds import check_qualities
from elang.tasks.text_task import TaskFields


class FinetuneModule(TaskModule):
    """Fine-tunes an encoder (cross-entropy, squared error in a regression) or a model that answers in words with AdamW.

    After training it writes a folder that loads with plain ``transformers`` and into every ``elang`` module.

    Args:
        model: A folder or a hub id (``owner/name@revision``) of a pretrained model that ``transformers`` loads by
            ``AutoModelForSequenceClassification``, ``AutoModelForSeq2SeqLM`` or ``AutoModelForCausalLM`` (label words).
        label_names: Class names in order; the command line takes them from the data.
        task: :meth:`elang.tasks.text_task.TextTask.plain`; the command line takes it from the data.
        layers: Keep only the first so many layers (of an encoder-decoder, of both stacks).
        lr: Peak learning rate; it rises over ``warmup`` of the steps and then falls linearly to 0.
        weight_decay: Decoupled weight decay, on matrices only.
        warmup: Share of all steps.
        freeze_embeddings: Do not train the embedding tables: much faster on a CPU, and no worse on small data.
        lora_rank: Train only low-rank matrices of this rank beside the linear layers, and the heads (LoRA; needs peft).
        lora_alpha: Their weight is this over the rank; by default 2.
        lora_dropout: Share of their inputs that is dropped in training.
        lora_modules: The linear layers that get them, by the ends of their names; by default all of the body.
        lora_merge: Write a whole model, with the matrices added to its weights; otherwise the folder of an adapter.
        quality: Task metric to log; by default the task's first.
        output: Folder to write after training; by default ``export`` in the run's log folder.
        gradient_checkpointing: Recompute activations in the backward pass instead of keeping them.
        packing: Put several short texts of a batch into one row, without attention between them (decoder-only models).
        compile: Run the backbone through ``torch.compile``.
        label_smoothing: Share of the probability that the targets give to all other classes or tokens.
        num_beams: Beams of generated texts, here and by default of the finished model.
    """

    # Whether it gets router heads, its loss reads logits, and all processes need the whole model after training.
    _has_router = _needs_logits = _gathers_everywhere = False

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
        lora_rank: int | None = None,
        lora_alpha: float | None = None,
        lora_dropout: float = 0.0,
        lora_modules: list[str] | None = None,
        lora_merge: bool = True,
        packing: bool = False,
    ) -> None:
        super().__init__(label_names, task)
        self.save_hyperparameters()
        if output is not None:
            check_output_folder(Path(output))
        lora = LoraOptions(lora_rank, lora_alpha, lora_dropout, lora_modules, lora_merge)
        self.classifier = load_model(
            model, self.task, fine_tune=True, layers=layers, router=self._has_router, num_beams=num_beams
        )
        self.trained_on = self.classifier.manifest
        options = {"freeze_embeddings": freeze_embeddings, "checkpointing": gradient_checkpointing, "packing": packing}
        self.classifier.prepare_training(label_smoothing, compiled=compile, **options)
        self.lora = Lora(self.classifier, lora, model, lr)
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        check_qualities([quality] if quality else [], self.task)
        self.quality = QUALITIES[quality or self.task.qualities[0]](len(label_names))
        self.output = output
        self._course, self._evaluated = Course(self.quality.name), False
        self._trained = False  # whether the weights are those of a training, not of the folder
        self._manifest: Manifest | None = None
        self._plan: resuming.Plan | None = None
        self._schedule: Schedule | None = None
        # Of the checkpoint that training resumes from: states of its callbacks and of its random numbers.
        self._resumed, self._callback_states = False, dict[str, Any]()
        self._random: dict[str, Tensor] | None = None

    @property
    def text_models(self) -> dict[str, TextModel]:
        """The model that is trained."""
        return {"model": self.classifier}

    def setup(self, stage: str) -> None:
        """Check the trainer's options, plan the steps of a training, and lock the output folder."""
        super().setup(stage)
        if stage != "fit":
            return
        # An earlier training of this object ended with the model in evaluation mode, and wrote its own manifest.
        self.classifier.train()
        self._manifest, self._course, self._evaluated = None, Course(self.quality.name), False
        self.lora.begin(self.classifier, "" if self.device_mesh else str(self.trainer.precision))
        resuming.stop_together(self.trainer)
        if getattr(self.data, "transfer", None):
            self._check_transfer()
        self._plan = resuming.Plan.of(self.trainer, self.data) if isinstance(self.data, TextData) else None
        self._resumed, self._callback_states = False, {}
        # log_dir is a collective: every process has to ask.
        self._folder = Path(self.output or Path(self.trainer.log_dir or self.trainer.default_root_dir) / "export")
        if not getattr(self.trainer, "fast_dev_run", False):
            note_replaced(self._folder)
            self.lock(self._folder)

    @property
    def evaluated_models(self) -> dict[str, TextModel]:
        """The model that is trained."""
        return {"model": self.classifier}

    def forward(self, **batch: Any) -> Answer:
        """The model's answer to a batch of a loader: ``logits`` and, with labels, the task's ``loss``."""
        return self._answer(self.classifier, self._batches.read(batch, self.evaluated_models, labelled=False), "model")

    def _check_transfer(self) -> None:
        """Refuse texts without labels."""
        raise InputError(
            f"--data.transfer '{self.data.transfer}' is text without labels, which only a SwiftModule learns from: "
            "leave it out here."
        )

    def loss(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The weighted terms of the training loss by name, each a scalar. Their sum is minimized."""
        assert answer.loss is not None
        return {"task": answer.loss}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step of training."""
        batch = self._batches.read(batch, self.text_models)
        terms = self.loss(batch, self.classifier(batch["model"], batch["label"], want_logits=self._needs_logits))
        total = torch.stack(list(terms.values())).sum()
        # Logging takes a quarter of a small model's step, and only some steps are written.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.trainer.global_step + 1) % every == 0:
            self.log("train/loss", total, prog_bar=True, batch_size=len(batch["label"]))
            if len(terms) > 1:
                self.log_dict({f"train/{name}": term for name, term in terms.items()}, batch_size=len(batch["label"]))
        return total

    def on_validation_epoch_start(self) -> None:
        """Refuse a head that is untrained or for other labels, and make an empty table for each split."""
        self._check_head()
        super().on_validation_epoch_start()

    def on_predict_start(self) -> None:
        """Refuse a head that is untrained or for other labels."""
        self._check_head()
        super().on_predict_start()

    def _check_head(self) -> None:
        if not (self._trained or self.trainer.state.fn == TrainerFn.FITTING):
            check_finished(self.classifier, self.hparams["model"], self.task, self.trained_on)

    def table_columns(self) -> Columns:
        """``label``, ``loss`` and the model's answers."""
        columns: Columns = {"label": ((), self.task.kind.answer_type), "loss": ((), torch.float64)}
        return columns | self.classifier.metric_columns()

    def answer_batch(self, batch: dict[str, Any], split: str) -> dict[str, Tensor]:
        """Answer a batch."""
        answers = self.classifier.metric_answers(batch["model"], batch["label"])
        return {"id": batch["id"], "label": batch["label"]} | answers

    def predicted(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The ``prediction`` and ``logits`` of each example, or the ``text``."""
        rows = self.classifier.metric_answers(batch["model"])
        answers = {"text": self.classifier.texts(rows["ids"])} if self.task.kind.generates else rows
        return {"id": batch["id"], **answers}

    def on_validation_epoch_end(self) -> None:
        """Log the loss and the task metric of each split over all processes."""
        for split, table in self.gather_tables().items():
            if not (num_examples := len(table["id"])):
                continue
            self._evaluated = self._evaluated or (self.data is not None and not self.trainer.sanity_checking)
            answers = self.classifier.records(table)
            if answers.logits is not None:
                check_logits(answers.logits, f"the model's logits on '{split}'", self.task.kind.has_candidates)
            values = self.measure_answers(split, answers, table["label"], [self.quality.name])
            if split == "validation" and not self.trainer.sanity_checking:
                names = self.label_names if self.task.kind.has_classes else []
                self._course.add(self.trainer, values[self.quality.name], answers, table, names=names)
            for name, value in values.items():
                self.log(f"{split}/{name}", value, prog_bar=True, sync_dist=True)
                if self.trainer.state.fn != TrainerFn.FITTING:
                    self.print(f"{name} on {counted(num_examples, 'examples')} of {split}: {value:.4f}")
            # The task's own: what a Swift learns from its Super is only known in training.
            self.log(f"{split}/loss", table["loss"].mean(), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and decay; no weight decay on biases and norms."""
        optimizer = adamw(self.parameters(), self.lr, self.weight_decay, trainer=self.trainer)
        self._schedule = Schedule(optimizer, self.trainer, self._plan, warmup=self.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule.scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to rebuild the model without its folder, and to resume the training."""
        checkpoint[CHECKPOINT_KEY] = {
            "class": type(self).__name__,
            "max_epochs": self.trainer.max_epochs,
            "plan": None if self._plan is None else asdict(self._plan),
            "data": None if self.data is None else self.data.made_with(),
            **describe(self.classifier, self.hparams["model"], self.lora),
        }
        if not self._sharded:
            self.lora.strip(checkpoint["state_dict"], self.classifier, PREFIX)
        checkpoint[resuming.RANDOM_KEY] = resuming.random_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another class or of other labels. When resuming, note what else differs."""
        fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        resuming.check_checkpoint(checkpoint, type(self).__name__, self.label_names, fitting=fitting)
        self.lora.merge(self.classifier, False)
        state = checkpoint.get("state_dict", {})
        self.lora.fill(state, self.classifier, PREFIX, about=checkpoint[CHECKPOINT_KEY].get("lora"))
        if "state_dict" in checkpoint and self._trainer is not None:
            check_state(self, state, str(self.trainer.ckpt_path), "Resume from an earlier checkpoint.")
        self._random, self._trained = checkpoint.get(resuming.RANDOM_KEY), True
        if not fitting:
            return
        self._resumed, self._callback_states = True, checkpoint.get("callbacks", {})
        if self._plan is not None:
            # The command line replaces configure_optimizers if it is given an optimizer.
            self._plan.resume(checkpoint, self.trainer, scheduled="configure_optimizers" not in vars(self))
            if (checkpoint[CHECKPOINT_KEY].get("plan") or {}).get("evaluated") != self._plan.evaluated:
                # Metrics on other data are not comparable.
                self._callback_states = {}

    def on_train_start(self) -> None:
        """Continue with this run's learning rate; a checkpoint brings its own run's."""
        self._batches.begin()
        if self._resumed and self._schedule is not None:
            self._schedule.resume(self.lr, self.weight_decay)

    def on_train_epoch_start(self) -> None:
        """Continue with a checkpoint's random numbers."""
        resuming.restore_random(self._random, self.trainer, self.device)
        self._random = None

    def manifest(self) -> Manifest:
        """The finished model's manifest."""
        return self.new_manifest(num_beams=self.classifier.num_beams)

    def on_train_end(self) -> None:
        """Choose the weights and make the manifest, while the model is on its device and processes can communicate."""
        everywhere = not self._sharded or self._gathers_everywhere
        for sharded in self._sharded.values():
            gathered = sharded.gather(everywhere)
            self.classifier = self.classifier if gathered is None else gathered
        self._trained = True
        step, self._description = load_best(self.trainer, self._callback_states, self.classifier, everywhere=everywhere)
        self._course.note(self.trainer, step, chosen=bool(self._description))
        note_end(self.trainer, evaluated=self._evaluated or self._resumed)
        if everywhere or self.trainer.is_global_zero:
            # As the folder will be loaded; the manifest has thresholds.
            self.lora.merge(self.classifier)
        self._manifest = self.manifest()

    def on_fit_end(self) -> None:
        """Write the folder, unless training was interrupted or only tried out."""
        if self.trainer.interrupted or getattr(self.trainer, "fast_dev_run", False):
            return
        check_weights_finite(self.classifier, self.trainer)
        if self._manifest is None:
            # Resumed after its last step: Lightning did not call on_train_end.
            self.to(self.trainer.strategy.root_device).on_train_end()
        if self.trainer.is_global_zero and self._manifest is not None:
            about = {"manifest": self._manifest, "description": self._description, "lora": self.lora}
            write_folder(self.trainer, self.classifier, self._folder, **about)  # type: ignore[arg-type]
