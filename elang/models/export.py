"""The end of a training: what is told of it, and the folder that is written."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.distributed.tensor import DTensor

from elang.backends.loading.save import save_model
from elang.backends.text_model import TextModel
from elang.errors import InputError, listed
from elang.notices import notice
from elang.records.manifest import Manifest


def tell_never_right(labels: dict[int, list[str]], step: int) -> None:
    """Tell of labels that a model is never right on.

    Args:
        labels: These labels, by the step at which the model was evaluated.
        step: That its weights are of.
    """
    evaluated = max((one for one in labels if one <= step), default=None)
    if evaluated is not None and labels[evaluated]:
        notice(
            "never-right",
            f"After {step:,} steps the model is never right on 'validation' where the label is "
            f"{listed(labels[evaluated])}: it has not learned that yet. Train longer (--trainer.max_epochs), or raise "
            "--model.lr.",
        )


def tell_unseen(trainer: Trainer, counted: bool, evaluated: bool) -> None:
    """Tell of a training that has not come to the end of its first epoch, or to any evaluation.

    Args:
        trainer: Whose training has ended.
        counted: Whether the data module says how many batches an epoch has.
        evaluated: Whether the model was evaluated, now or before the training was resumed.
    """
    data: Any = getattr(trainer, "datamodule", None)
    progress = trainer.fit_loop.epoch_loop.batch_progress.total.ready
    batches = len(data.train_dataloader()) if counted else 0
    if not progress:
        notice("untrained", "No step of training was taken: the weights are those that it began with.")
    elif progress < batches:
        notice(
            "part-trained",
            f"Training ended after {progress:,} of the {batches:,} batches of an epoch, so it has not seen all of "
            "its examples.",
        )
    if not evaluated and "validation" in getattr(data, "splits", ()):
        notice("not-evaluated", "The model was never evaluated on 'validation' in this training.")


def check_weights_finite(model: nn.Module, trainer: Trainer) -> None:
    """Refuse to write weights of a training that diverged. All processes must call it.

    Raises:
        InputError: Naming the first of the weights that is NaN or infinite.
    """
    # Parts of weights are looked at by the first process, which has put them together.
    named = [(n, p) for n, p in model.named_parameters() if not isinstance(p, DTensor)]
    bad = next((name for name, parameter in named if not torch.isfinite(parameter).all()), None)
    if (bad := trainer.strategy.broadcast(bad)) is not None:
        raise InputError(
            f"Training diverged: the weights '{bad}' are NaN or infinite, so no model was written. Lower "
            "--model.lr, or clip gradients with --trainer.gradient_clip_val 1."
        )


def write_folder(trainer: Trainer, model: TextModel, folder: Path, *, manifest: Manifest, best: str) -> None:
    """Write a trained model, and tell where it and its metrics are, and how good it is.

    Args:
        trainer: Whose training has ended.
        model: What is written.
        folder: Where to.
        manifest: Describes it.
        best: What its weights are, where a metric chose them.
    """
    save_model(model, folder, manifest)
    metrics = trainer.callback_metrics
    values = [f"{name} {float(v):.4f}" for name, v in metrics.items() if name.startswith("validation/")]
    values = [f"its weights are {best}"] if best else values
    logged = [Path(one.log_dir) / "metrics.csv" for one in trainer.loggers if isinstance(one, CSVLogger)]
    where = [f"metrics.csv in {path.parent}" for path in logged if path.is_file()]
    rank_zero_info("; ".join([f"the model is in {folder}", *([", ".join(values)] if values else []), *where]))
