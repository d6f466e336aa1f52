"""Lightning checkpoints of ours: what they say of themselves."""

from pathlib import Path
from typing import Any

import torch

from elang.backends.text_model import TextModel
from elang.errors import InputError

ROUTER_FILE = "router.safetensors"
CHECKPOINT_KEY = "elang"
SHARDED_ABOUT = "meta.pt"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a Lightning checkpoint of ours; only tensors and plain values are ever loaded.

    Raises:
        InputError: If it is missing, truncated, or not one of ours.
    """
    if (Path(path) / SHARDED_ABOUT).is_file():
        # One in parts; what it says of itself is no part of the weights.
        path = Path(path) / SHARDED_ABOUT
    if not Path(path).is_file():
        raise InputError(f"There is no checkpoint '{path}'.")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"The checkpoint '{path}' cannot be read: it is truncated, damaged or holds more than tensors and plain "
            f"values ({type(error).__name__}). Use an earlier one."
        ) from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_KEY not in checkpoint:
        raise InputError(f"The checkpoint '{path}' is of another class: it was not written by elang.")
    return checkpoint


def describe(model: TextModel, path: str) -> dict[str, Any]:
    """What a checkpoint keeps besides the weights: enough to rebuild the model without the folder it came from."""
    return {
        "config": model.backbone.config.to_dict() | {"dtype": None},
        "generation": model.backbone.generation_config.to_diff_dict() if model.text_to_text else {},
        "tokenizer": path,
        "router": bool(model.heads),
        "label_names": model.label_names,
        "task": model.task.plain(),
    }
