"""Fine-tuning on a task: how a Super is made, and what the Swift's training builds on."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.distributed.tensor import DTensor

from elang.backends.columns import padded_ids
from elang.backends.fast.attention import AnyShape
from elang.backends.generator import Seq2Seq
from elang.backends.label_decoder import TextToText
from elang.backends.loading.checkpoints import CHECKPOINT_KEY, describe
from elang.backends.loading.load import load_model
from elang.backends.loading.save import check_output_folder, save_model
from elang.backends.loading.trained_for import check_words
from elang.backends.loading.weights import check_state
from elang.backends.text_model import Answer
from elang.data.module import TextData
from elang.data.tokens import Reader
from elang.errors import InputError, listed
from elang.evaluation.cautions import never_right
from elang.locks import lock_for_all, unlock_output
from elang.method.deferral import check_logits
from elang.method.quality.registry import QUALITIES, QualityName
from elang.metrics import ExampleTable
from elang.models.answering import check_some, tell_part
from elang.models.best import take_best
from elang.models.resuming import Plan, rate
from elang.models.sharding import Sharded, check_strategy
from elang.models.stopping import stop_late
from elang.notices import notice, notices
from elang.records.manifest import Manifest
from elang.tasks.text_task import TaskFields, TextTask
from elang.tasks.worth import check_qualities, measure, measure_texts

_RANDOM = "elang_random"


def check_held_out(data: Any, about: dict[str, Any], who: str) -> None:
    """Refuse a slice of the training file that a model was trained on.

    Args:
        data: The data module.
        about: What is known of the model: its ``routing_fraction``, or nothing.
        who: Its name in the message.

    Raises:
        InputError: With the largest slice that there may be.
    """
    routing = about.get("routing_fraction")
    if routing is None:
        return
    if data.routing_fraction > routing:
        raise InputError(
            f"--data.routing_fraction is {data.routing_fraction}, but {who} was trained with {routing}: part of the "
            f"slice was trained on. Give --data.routing_fraction {routing} or less."
        )


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
            model, self.task, fine_tune=True, layers=layers, router=self._wants_router(), num_beams=num_beams
        )
        if not 0 <= label_smoothing < 1 or (label_smoothing and isinstance(self.classifier, TextToText)):
            raise InputError(
                f"--model.label_smoothing {label_smoothing} must be in [0, 1), and 0 where an encoder-decoder answers "
                "with labels."
            )
        self.classifier.label_smoothing = label_smoothing
        # from_pretrained leaves evaluation mode on, Lightning keeps it, and training would run without dropout.
        self.classifier.train()
        # Scores of fine-tuned weights are not those that the loaded thresholds were chosen for.
        self.trained_on, self.classifier.manifest = self.classifier.manifest, None
        self.classifier.backbone.get_input_embeddings().requires_grad_(not freeze_embeddings)
        if gradient_checkpointing:
            backbone = self.classifier.backbone
            # transformers gave it a new name.
            name = ("gradient", "activation")[hasattr(backbone, "activation_checkpointing_enable")]
            getattr(backbone, f"{name}_checkpointing_enable")({"use_reentrant": False})
        if compile:
            for part in self.classifier.compiled_parts():
                # In place, so that the weights keep their names; shapes follow the batch.
                part.compile(dynamic=True)
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        check_qualities([quality] if quality else [], self.task)
        self.quality = QUALITIES[quality or self.task.qualities[0]](len(label_names))  # type: ignore[index]
        self.output = output
        self.label_names = label_names
        self._tables: dict[str, ExampleTable] = {}
        # Labels that the model is never right on, by the step at which it was asked.
        self._unlearned: dict[int, list[str]] = {}
        self._plan: Plan | None = None
        self._schedule: torch.optim.lr_scheduler.LambdaLR | None = None
        self._steps = self._shift = 0
        self._goes_on = False
        self._earlier: dict[str, Any] = {}
        self._best = ""
        self._evaluated: set[str] = set()
        self._sharded: Sharded | None = None
        self._random: dict[str, Tensor] | None = None

    def setup(self, stage: str) -> None:
        """Take the limit of generated texts from the data, and look at how the trainer goes about it."""
        super().setup(stage)
        check_strategy(self.trainer)
        check_some(self.trainer, stage)
        if stage == "fit":
            stop_late(self.trainer)
        data: Any = getattr(self.trainer, "datamodule", None)
        if isinstance(self.classifier, Seq2Seq) and data is not None:
            self.classifier.limit_new_tokens(data.max_target_length)
        if stage != "fit":
            return
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

    # Whether the finished model is to be run by every process.
    _fits_everywhere = False

    def configure_model(self) -> None:
        """Share the weights out over the processes, where the strategy does."""
        if self.device_mesh is not None and self._sharded is None:
            self._sharded = Sharded(self.classifier, self.device_mesh["data_parallel"])

    def _check_transfer(self, data: Any) -> None:
        """Refuse texts without labels."""
        raise InputError(
            f"--data.transfer '{data.transfer}' is text without labels, which only a SwiftModule learns from: leave it "
            "out here."
        )

    def _wants_router(self) -> bool:
        return False

    def _wants_logits(self) -> bool:
        return False

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
        terms = self.loss(batch, self.classifier(batch["model"], batch["label"], want_logits=self._wants_logits()))
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
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if not fitting and not self.trainer.ckpt_path and (new := self.classifier.new_weights):
            raise InputError(
                f"'{self.hparams['model']}' has no head of its own ({listed(new)} are new), so it cannot be evaluated. "
                "Fine-tune it first with `elang fit`."
            )
        if not fitting and not self.trainer.ckpt_path and self.classifier.original_names != self.label_names:
            raise InputError(
                f"The model's labels are {self.classifier.original_names}, the data's {self.label_names}: its "
                "head cannot be evaluated. Fine-tune it first; where only the order differs, `elang score` aligns it."
            )
        if not fitting and not self.trainer.ckpt_path and self.classifier.text_to_text and self.trained_on is not None:
            own = TextTask.of(self.trained_on.label_names, self.trained_on.task)
            check_words(own, self.task, self.hparams["model"])
        testing = self.trainer.state.fn == TrainerFn.TESTING
        splits = ["validation"] if data is None else data.test_splits if testing else data.eval_splits
        self.split_names: list[str] = list(splits)
        value = self.task.kind.answer_type
        columns = {"label": ((), value), "prediction": ((), value), "logits": ((len(self.label_names),), torch.float32)}
        if isinstance(self.classifier, Seq2Seq):
            columns = {"ids": ((self.classifier.max_new_tokens,), torch.int32)}
        self._tables = {name: ExampleTable(columns).to(self.device) for name in self.split_names}

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer a batch of one of the splits."""
        if isinstance(self.classifier, Seq2Seq):
            source = self.classifier.encode(batch["model"])
            ids = padded_ids(self.classifier, self.classifier.generate(source, scored=False))
            row = {"id": batch["id"], "ids": ids}
        else:
            answer = self.classifier(batch["model"])
            row = {"id": batch["id"], "label": batch["label"], "prediction": answer.prediction, "logits": answer.logits}
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
                self._evaluated.add(split)
                tell_part({split: (len(table["id"]), len(data.examples(split)))})
            if isinstance(self.classifier, Seq2Seq):
                texts = self.classifier.texts(table["ids"])
                values = measure_texts([self.quality.name], texts, data.references(split, table["id"]))
            else:
                check_logits(table["logits"], f"the model's logits on '{split}'", self.task.kind.has_candidates)
                targets = data.targets(split, table["id"]) if data is not None else {}
                values = {self.quality.name: measure(self.quality, table["prediction"], table["label"], targets)}
                if split == "validation" and self.task.kind.has_classes:
                    wrong = never_right(table["prediction"], table["label"], self.label_names)
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
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        # Lightning does not clip the gradients of a fused optimizer in mixed precision.
        clipped = self.trainer.gradient_clip_val and "mixed" in str(self.trainer.precision)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, fused=None if clipped else True)
        self._lay_out()

        def factor(step: int) -> float:
            return rate(step + self._shift, self._steps, max(1, round(self.warmup * self._steps)))

        self._schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._schedule, "interval": "step"}}

    def _lay_out(self) -> None:
        """Find out how many steps the whole run takes, over which the learning rate falls.

        ``trainer.estimated_stepping_batches`` would start the loader before a checkpoint is restored, and the first
        epoch after a resume would then come in the order of epoch 0.
        """
        self._steps, self._shift = self._plan.total(self.trainer) if self._plan is not None else (0, 0)
        if self._steps > 0:
            return
        steps = self.trainer.estimated_stepping_batches
        if steps == math.inf:
            raise InputError(
                "This training has no end that is known beforehand, over which the learning rate could fall. Set "
                "--trainer.max_epochs or --trainer.max_steps."
            )
        self._steps = int(steps)

    def on_train_start(self) -> None:
        """Set the learning rate that this run is to go on with, where a checkpoint brought another run's."""
        if not self._goes_on or self._schedule is None:
            return
        self._lay_out()
        schedule = self._schedule
        said = f"lr is {self.lr!r}, as given; the checkpoint has {schedule.base_lrs[0]!r}"
        if schedule.base_lrs[0] != self.lr and said not in [one["text"] for one in notices()]:
            notice("checkpoint-options", said)
        schedule.base_lrs = [self.lr] * len(schedule.base_lrs)
        for group, decay in zip(schedule.optimizer.param_groups, (self.weight_decay, 0.0), strict=True):
            group |= {"initial_lr": self.lr, "weight_decay": decay}
            group["lr"] = self.lr * schedule.lr_lambdas[0](schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the model without the folder that it came from."""
        checkpoint[CHECKPOINT_KEY] = {
            "class": type(self).__name__,
            "max_epochs": self.trainer.max_epochs,
            "plan": None if self._plan is None else self._plan.plain(),
            **describe(self.classifier, self.hparams["model"]),
        }
        checkpoint[_RANDOM] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            checkpoint[_RANDOM]["cuda"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another class or of other labels, and tell what else is other than it was.

        Raises:
            InputError: Naming both.
        """
        about = checkpoint.get(CHECKPOINT_KEY, {"class": "something else"})
        if about["class"] != type(self).__name__:
            raise InputError(
                f"The checkpoint is of another class: {about['class']}, not {type(self).__name__}. Give its path as "
                "--model.swift_model or --model.super_model of JointModule instead of --ckpt_path."
            )
        if about["label_names"] != self.label_names:
            raise InputError(
                f"The checkpoint has the labels {about['label_names']}, the data has {self.label_names}. Resume with "
                "the data that it was trained on."
            )
        if "state_dict" in checkpoint and self._trainer is not None:
            path = str(self.trainer.ckpt_path)
            check_state(self, checkpoint["state_dict"], path, "Go on from an earlier checkpoint.")
        self._random = checkpoint.get(_RANDOM)
        if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        # One in parts has both elsewhere.
        if "state_dict" in checkpoint and "optimizer_states" not in checkpoint:
            raise InputError(
                "The checkpoint has weights only (save_weights_only), so a training cannot go on from it. Give one "
                "that was saved with the optimizer's states."
            )
        self._goes_on, self._earlier = True, checkpoint.get("callbacks", {})
        if self._plan is not None:
            # The command line puts another in its place where it is given an optimizer.
            own = "configure_optimizers" not in vars(self)
            self._plan.go_on(checkpoint, about.get("plan"), self.trainer, own)
            if (about.get("plan") or {}).get("evaluated") != self._plan.evaluated:
                # What a metric was on other data says nothing about these.
                self._earlier = {}

    def on_train_epoch_start(self) -> None:
        """Go on with the random numbers of a checkpoint, so that a resumed run ends as one that was not stopped."""
        # They are the first process's; shared, all would drop the same activations.
        if self._random is not None and self.trainer.world_size == 1:
            torch.set_rng_state(self._random["cpu"].cpu())
            if not getattr(self.trainer.train_dataloader, "persistent_workers", False):
                # The loader would draw this now, but did so earlier where Lightning resumes; lasting workers once only.
                torch.empty((), dtype=torch.int64).random_()
            if self.device.type == "cuda" and "cuda" in self._random:
                torch.cuda.set_rng_state(self._random["cuda"].cpu(), self.device)
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
            num_beams=self.classifier.num_beams if isinstance(self.classifier, Seq2Seq) else 1,
            thresholds=self.thresholds(),
        )

    def on_train_end(self) -> None:
        """Choose weights and thresholds while the model is still on its device and the processes can gather."""
        self._finish()

    def _finish(self) -> None:
        if self._sharded is not None:
            whole = self._sharded.gather(self._fits_everywhere)
            self.classifier = self.classifier if whole is None else whole
        everywhere = self._sharded is None or self._fits_everywhere
        step, self._best = take_best(self.trainer, self._earlier, self.classifier, everywhere)
        asked = max((one for one in self._unlearned if one <= step), default=None)
        if asked is not None and (unlearned := self._unlearned[asked]):
            notice(
                "never-right",
                f"After {step:,} steps the model is never right on 'validation' where the label is "
                f"{listed(unlearned)}: it has not learned that yet. Train longer (--trainer.max_epochs), or raise "
                "--model.lr.",
            )
        self._tell_unseen()
        self._finished = self.manifest()

    def _tell_unseen(self) -> None:
        """Tell of a training that has not come to the end of its first epoch, or to any evaluation."""
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        batches = len(self.trainer.datamodule.train_dataloader()) if self._plan is not None else 0  # type: ignore[attr-defined]
        if not progress:
            notice("untrained", "No step of training was taken: the weights are those that it began with.")
        elif progress < batches:
            notice(
                "part-trained",
                f"Training ended after {progress:,} of the {batches:,} batches of an epoch, so it has not seen all of "
                "its examples.",
            )
        data: Any = getattr(self.trainer, "datamodule", None)
        if (
            not self._evaluated
            and not self._goes_on
            and data is not None
            and "validation" in getattr(data, "splits", ())
        ):
            notice("not-evaluated", "The model was never evaluated on 'validation' in this training.")

    def on_fit_end(self) -> None:
        """Write the folder, unless training was interrupted or only tried out."""
        if self.trainer.interrupted or getattr(self.trainer, "fast_dev_run", False):
            return
        # Parts of weights are looked at by the first process, which has put them together.
        named = [(n, p) for n, p in self.classifier.named_parameters() if not isinstance(p, DTensor)]
        bad = next((name for name, parameter in named if not torch.isfinite(parameter).all()), None)
        if (bad := self.trainer.strategy.broadcast(bad)) is not None:
            raise InputError(
                f"Training diverged: the weights '{bad}' are NaN or infinite, so no model was written. Lower "
                "--model.lr, or clip gradients with --trainer.gradient_clip_val 1."
            )
        if not hasattr(self, "_finished"):
            # Resumed from the last checkpoint of all: nothing was left to train, so on_train_end did not come.
            self.to(self.trainer.strategy.root_device)
            self._finish()
        if self.trainer.is_global_zero:
            save_model(self.classifier, self._folder, self._finished)
            metrics = self.trainer.callback_metrics
            said = [f"{name} {float(v):.4f}" for name, v in metrics.items() if name.startswith("validation/")]
            said = [f"its weights are {self._best}"] if self._best else said
            logged = [Path(one.log_dir) / "metrics.csv" for one in self.trainer.loggers if isinstance(one, CSVLogger)]
            where = [f"metrics.csv in {path.parent}" for path in logged if path.is_file()]
            rank_zero_info("; ".join([f"the model is in {self._folder}", *([", ".join(said)] if said else []), *where]))
