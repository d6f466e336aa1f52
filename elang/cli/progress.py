"""How far a verb of Lightning is, where standard output is no terminal that shows its bar; and its folders of logs."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from typing_extensions import override

from elang.data.module import TextData
from elang.models.resuming import batches_per_epoch
from elang.terminal import Progress, tell

# Seconds until the first line about how far a step is.
_FIRST = 5.0
# What loggers write before the first step.
_LOGS = ("config.yaml", "hparams.yaml", "metrics.csv", "events.out.tfevents.*")


class LogsEachEpoch(pl.Callback):
    """Logs a training at least once an epoch, also where an epoch has fewer steps than Lightning logs after."""

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if isinstance(data, TextData):
            steps = max(1, batches_per_epoch(trainer, data) // trainer.accumulate_grad_batches)
            trainer.log_every_n_steps = min(trainer.log_every_n_steps, steps)  # type: ignore[attr-defined]


class _Bar(RichProgressBar):
    """Lightning's bar, which counts epochs from 1 and names what is evaluated."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1}{_of_epochs(self.trainer)}"

    @property
    @override
    def validation_description(self) -> str:
        return _splits(self.trainer)[self._current_eval_dataloader_idx or 0]

    @override
    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class ProgressLines(pl.Callback):
    """Tells the batches that are done and the time that is left, in a line a minute where there is no bar."""

    def __init__(self) -> None:
        self._training: Progress | None = None
        self._validation: Progress | None = None
        self._active = False

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        bar = trainer.progress_bar_callback
        if bar is not None and not sys.stdout.isatty():
            # Without a terminal it would print only its last state.
            bar.disable()
            self._active = trainer.is_global_zero
        elif type(bar) is RichProgressBar:
            bar.__class__ = _Bar

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # In epochs of -1 the training ends by steps or time.
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        total = epochs and epochs * trainer.num_training_batches
        if trainer.max_steps > 0:
            steps = trainer.max_steps * trainer.accumulate_grad_batches
            total = min(total or steps, steps)
        self._training = self._begun(total, "batches", trainer.fit_loop.epoch_loop.total_batch_idx + 1)

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        if self._training is not None:
            self._training.add()

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The last one of a training comes behind its last line.
        self._validation = self._begun(sum(trainer.num_val_batches), f"batches of {_evaluated(trainer)}")
        if self._validation is not None and self._training is None:
            # The first batch has the longest texts.
            tell(f"answering {self._validation.total:,} {self._validation.unit} ...")

    @override
    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        if self._validation is not None:
            self._validation.add()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._training is not None and not trainer.sanity_checking:
            metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
            values = [f"{name} {value:.4f}" for name, value in metrics.items() if name.startswith("validation/")]
            if values:
                tell(f"epoch {trainer.current_epoch + 1}{_of_epochs(trainer)}: {', '.join(values)}")
            # The next epoch shows soon that it runs.
            self._training.told_next(_FIRST)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = None

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation = self._begun(sum(trainer.num_test_batches), f"batches of {_evaluated(trainer)}")

    @override
    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        self.on_validation_batch_end(trainer, pl_module, *batch)

    def _begun(self, total: float | None, unit: str, done: int = 0) -> Progress | None:
        # The number of batches of a stream is infinite.
        known = None if total in (None, float("inf")) else int(total or 0)
        return Progress(known, unit, done, bar=False, first=_FIRST) if self._active else None


def _of_epochs(trainer: pl.Trainer) -> str:
    return f" of {trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""


def _splits(trainer: pl.Trainer) -> list[str]:
    """The splits that an evaluation answers, one for each of its loaders."""
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, TextData):
        return ["test" if trainer.testing else "validation"] * max(1, len(trainer.num_val_batches))
    splits = data.test_splits if trainer.testing else [split for _, split in data.plan]
    return [split.replace("routing", "the routing slice") for split in splits]


def _evaluated(trainer: pl.Trainer) -> str:
    """The splits that an evaluation answers, in words."""
    *others, last = dict.fromkeys(_splits(trainer))
    return f"{', '.join(others)} and {last}" if others else last


def new_folders(trainer: pl.Trainer) -> list[Path]:
    """The folders of logs that are not there yet."""
    folders = {Path(logger.log_dir) for logger in trainer.loggers if isinstance(logger, (CSVLogger, TensorBoardLogger))}
    return [folder for folder in folders if not folder.exists()]


def remove_logs(trainer: pl.Trainer, folders: list[Path]) -> None:
    """Remove folders of logs that were made for a run that has not taken a step; loggers make them before any check."""
    if trainer.fit_loop.epoch_loop.batch_progress.total.ready or not trainer.is_global_zero:
        return
    for folder in folders:
        for path in (path for pattern in _LOGS for path in folder.glob(pattern)):
            path.unlink()
        with suppress(OSError):
            # Not if anything else is in it.
            folder.rmdir()
