"""Which weights a training ends with: the last, or those that a ``ModelCheckpoint`` found best by what it monitors."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import distributed, nn

from elang.errors import first_line
from elang.notices import notice

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
