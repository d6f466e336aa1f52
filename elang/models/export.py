"""The end of a training: which weights it keeps, what it reports, and the folder it writes."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from elang.backends.loading.checkpoints import save_model
from elang.backends.text_model import TextModel
from elang.errors import InputError, first_line, listed
from elang.notices import notice
from elang.records.manifest import Manifest

_PREFIX = "classifier."


def take_best(trainer: Trainer, earlier: dict[str, Any], model: nn.Module, everywhere: bool) -> tuple[int, str]:
    """Load the best weights after the last step, unless the last are the best or no others were kept.

    All processes must call it.

    Args:
        trainer: Whose training has ended.
        earlier: States of the callbacks in the checkpoint that it went on from, by the callbacks' keys.
        model: Takes the weights, in place.
        everywhere: Whether all processes have the whole of it, or the first one alone.

    Returns:
        The step that the weights are of, and what is to be said of them where a metric was monitored.
    """
    last = int(trainer.global_step)
    state: dict[str, Any] | None = None
    about: dict[str, Any] = {}
    if trainer.is_global_zero:
        state, about = _chosen(trainer, earlier)
    # The others may be on hosts that do not share the disk.
    about = trainer.strategy.broadcast(about)
    if "step" not in about:
        if about.get("why"):
            notice(
                "last-weights",
                f"The weights are the last ones, of step {last}: {about['why']}.",
            )
        return last, ""
    if about["step"] == last:
        return last, about["said"]
    if state is not None:
        model.load_state_dict(state)
    if everywhere and trainer.world_size > 1:
        for tensor in model.state_dict().values():
            distributed.broadcast(tensor, 0)
    notice("best-weights", f"The weights are {about['said']}, not the last ones (step {last}).{about['others']}")
    return about["step"], about["said"]


def _chosen(trainer: Trainer, earlier: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The first process's choice: the best weights and where they are from, or why there are none."""
    keepers = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint) and one.monitor]
    why: list[str] = []
    for keeper in keepers:
        if keeper.save_top_k == 0:
            why.append(f"the ModelCheckpoint that monitors '{keeper.monitor}' keeps none: set save_top_k 1")
        for score, path in _candidates(keeper, earlier.get(keeper.state_key, {})):
            state, about = _read(path)
            if state is None:
                why.append(f"the best checkpoint by '{keeper.monitor}', '{path}', {about['error']}")
                continue
            value = "" if score is None else f" {score:.4f}"
            said = (
                f"of epoch {about['epoch']} (step {about['step']}), the best by {keeper.monitor}{value} ({keeper.mode})"
            )
            more = sorted({str(one.monitor) for one in keepers} - {keeper.monitor})
            others = f" The first monitor counts; there is also {', '.join(more)}." if more else ""
            return state, about | {"said": said, "others": others}
    for one in trainer.early_stopping_callbacks:
        if one.wait_count and one.monitor not in [keeper.monitor for keeper in keepers]:
            best = float(one.best_score)
            why.append(
                f"EarlyStopping saw a better '{one.monitor}', {best:.4f}, but no ModelCheckpoint kept those weights: "
                "add one with this monitor"
            )
    return None, {"why": "; ".join(why)}


def _candidates(keeper: ModelCheckpoint, before: dict[str, Any]) -> list[tuple[float | None, str]]:
    """The best of this run and of the one that it went on from, the better one first."""
    pairs = [(keeper.best_model_score, keeper.best_model_path)]
    pairs += [(before.get("best_model_score"), before.get("best_model_path", ""))]
    scored = {str(path): float(score) for score, path in reversed(pairs) if score is not None and path}
    if not scored:
        return [(None, str(keeper.best_model_path))] if keeper.best_model_path else []
    order = sorted(scored, key=scored.__getitem__, reverse=keeper.mode == "max")
    return [(scored[path], path) for path in order]


def _read(path: str) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    if Path(path).is_dir():
        return None, {"error": "is in parts, which are not put together again: leave out save_distributed_checkpoint"}
    try:
        # Mapped, so that the optimizer's states are not brought to memory.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = {k.removeprefix(_PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(_PREFIX)}
        return state, {"epoch": int(checkpoint["epoch"]), "step": int(checkpoint["global_step"])}
    except Exception as error:  # whatever is said of a file that is missing or damaged
        return None, {"error": f"cannot be read ({type(error).__name__}: {first_line(error)})"}


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
