"""The end of a training: which weights are exported, and the folder that is written."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from elang.backends.loading.checkpoints import PREFIX, save_model
from elang.backends.loading.lora import Lora
from elang.backends.text_model import TextModel
from elang.errors import InputError, first_line
from elang.notices import notice
from elang.records.manifest import Manifest


def load_best(trainer: Trainer, earlier: dict[str, Any], model: nn.Module, everywhere: bool) -> tuple[int, str]:
    """Load the best weights that a ``ModelCheckpoint`` kept by its monitor, if they are not the last ones.

    All processes must call it, at the end of a fit.

    Args:
        trainer: The trainer.
        earlier: States of the callbacks in the checkpoint that the training was resumed from.
        model: Takes the weights, in place.
        everywhere: Whether all processes hold the whole model, or only the first one.

    Returns:
        The step that the weights are of, and their description, empty if no metric chose them.
    """
    last = int(trainer.global_step)
    state, choice = _choose(trainer, earlier) if trainer.is_global_zero else (None, {})
    # The other processes may be on hosts that do not share the disk.
    choice = trainer.strategy.broadcast(choice)
    if "step" not in choice:
        if choice["reasons"]:
            notice("last-weights", f"The weights are the last ones, of step {last}: {choice['reasons']}.")
        return last, ""
    step, description = choice["step"], choice["description"]
    if step != last:
        if state is not None:
            # Of a LoRA training it holds only what was trained.
            model.load_state_dict(model.state_dict() | state)
        if everywhere and trainer.world_size > 1:
            for tensor in model.state_dict().values():
                distributed.broadcast(tensor, 0)
        notice("best-weights", f"The weights are {description}, not the last ones (step {last}).{choice['others']}")
    return step, description


def _choose(trainer: Trainer, earlier: dict[str, Any]) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
    """The best weights with their step and description, or the reasons why there are none."""
    monitoring = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
    reasons: list[str] = []
    for callback in monitoring:
        monitor = callback.monitor
        if callback.save_top_k == 0:
            reasons.append(f"the ModelCheckpoint that monitors '{monitor}' keeps none: set save_top_k 1")
        for score, path in _candidates(callback, earlier.get(callback.state_key, {})):
            try:
                state, epoch, step = _read(path)
            except ValueError as error:
                reasons.append(f"the best checkpoint by '{monitor}', '{path}', {error}")
                continue
            value = "" if score is None else f" {score:.4f}"
            description = f"of epoch {epoch} (step {step}), the best by {monitor}{value} ({callback.mode})"
            more = sorted({str(c.monitor) for c in monitoring} - {monitor})
            others = f" The first monitor counts; there is also {', '.join(more)}." if more else ""
            return state, {"step": step, "description": description, "others": others}
    for stopping in trainer.early_stopping_callbacks:
        if stopping.wait_count and stopping.monitor not in [c.monitor for c in monitoring]:
            reasons.append(
                f"EarlyStopping saw a better '{stopping.monitor}', {float(stopping.best_score):.4f}, but no "
                "ModelCheckpoint kept those weights: add one with this monitor"
            )
    return None, {"reasons": "; ".join(reasons)}


def _candidates(callback: ModelCheckpoint, earlier: dict[str, Any]) -> list[tuple[float | None, str]]:
    """Score and path of the best checkpoints of this run and of the one that it resumed, the better one first."""
    pairs = [(callback.best_model_score, callback.best_model_path)]
    pairs += [(earlier.get("best_model_score"), earlier.get("best_model_path", ""))]
    scored = {str(path): float(score) for score, path in reversed(pairs) if score is not None and path}
    if not scored:
        return [(None, str(callback.best_model_path))] if callback.best_model_path else []
    order = sorted(scored, key=scored.__getitem__, reverse=callback.mode == "max")
    return [(scored[path], path) for path in order]


def _read(path: str) -> tuple[dict[str, Tensor], int, int]:
    """The weights, epoch and step of a checkpoint; a ``ValueError`` says why they cannot be had."""
    if Path(path).is_dir():
        raise ValueError("is in parts, which are not put together again: leave out save_distributed_checkpoint")
    try:
        # Mapped, so that the optimizer's states are not loaded.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(PREFIX)}
        # Lightning counts epochs from 0, and everything that is told from 1.
        return state, int(checkpoint["epoch"]) + 1, int(checkpoint["global_step"])
    except Exception as error:  # a missing or damaged file can raise anything
        raise ValueError(f"cannot be read ({type(error).__name__}: {first_line(error)})") from error


def check_weights_finite(model: nn.Module, trainer: Trainer) -> None:
    """Refuse to write the weights of a training that diverged. All processes must call it."""
    # Sharded weights are checked by the first process, which holds the gathered ones.
    named = [(n, p) for n, p in model.named_parameters() if not isinstance(p, DTensor)]
    bad = next((name for name, parameter in named if not torch.isfinite(parameter).all()), None)
    if (bad := trainer.strategy.broadcast(bad)) is not None:
        raise InputError(
            f"Training diverged: the weights '{bad}' are NaN or infinite, so no model was written. Lower "
            "--model.lr, or clip gradients with --trainer.gradient_clip_val 1."
        )


def write_folder(
    trainer: Trainer, model: TextModel, folder: Path, *, manifest: Manifest, description: str, lora: Lora | None = None
) -> None:
    """Write a trained model, and print where it and its metrics are; ``description`` is from :func:`load_best`."""
    save_model(model, folder, manifest, lora)
    metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("validation/")}
    values = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    weights = f"its weights are {description}" if description else "its weights are those of the last epoch"
    logged = [Path(logger.log_dir) / "metrics.csv" for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    files = [f"metrics.csv in {path.parent}" for path in logged if path.is_file()]
    rank_zero_info(
        "; ".join(
            [
                f"the {'model' if lora is None or lora.options.merge else 'adapter'} is in {folder}",
                weights,
                *([values] if values and not description else []),
                *files,
            ]
        )
    )
