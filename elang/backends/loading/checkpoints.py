"""Lightning checkpoints of elang, and saving a model as a folder."""

import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from elang.backends.loading.families import family_of
from elang.backends.loading.hub import explained, quiet
from elang.backends.loading.lora import Lora, LoraOptions, check_base
from elang.backends.loading.padding import check_family, check_padding, has_decoder, settle_padding
from elang.backends.loading.source import Source
from elang.backends.loading.weights import check_state
from elang.backends.text_model import TextModel
from elang.errors import InputError
from elang.files import folder_sha256, sync_to_disk, weights_files
from elang.notices import notice, write_made
from elang.records.manifest import FILENAME, Manifest
from elang.tasks.text_task import TextTask

ROUTER_FILE = "router.safetensors"
CHECKPOINT_KEY = "elang"
PREFIX = "classifier."
"""What stands before the names of the model's weights in a checkpoint."""
SHARDED_ABOUT = "meta.pt"
_USE_FOLDER = "Use the folder that `elang fit` writes at its end."


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a Lightning checkpoint of elang; only tensors and plain values are ever loaded."""
    if (Path(path) / SHARDED_ABOUT).is_file():
        # A sharded checkpoint: a folder with everything but the weights in this file.
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


def describe(model: TextModel, path: str, lora: Lora | None = None) -> dict[str, Any]:
    """What a checkpoint keeps besides the weights: enough to rebuild the model without its original folder.

    With LoRA the folder is needed for the weights that were not trained.
    """
    return {
        "lora": None if lora is None else lora.describe(model),
        "config": model.backbone.config.to_dict() | {"dtype": None},
        "generation": model.backbone.generation_config.to_diff_dict() if model.text_to_text else {},
        "tokenizer": path,
        "router": bool(model.heads),
        "label_names": model.label_names,
        "task": model.task.plain(),
    }


def from_checkpoint(path: str, options: dict[str, Any]) -> TextModel:
    """Load a model from a checkpoint, with options of its family; its tokenizer must still be where it was."""
    checkpoint = read_checkpoint(path)
    if "state_dict" not in checkpoint:
        raise InputError(
            f"'{path}' is a checkpoint in parts. Continue from it with --ckpt_path to the end of the training, which "
            "writes a model folder."
        )
    about = checkpoint[CHECKPOINT_KEY]
    fields = dict(about["config"])
    lora = about.get("lora")
    what = "model" if lora else "tokenizer"
    problem = f"The {what} '{about['tokenizer']}' that the checkpoint '{path}' names cannot be loaded"
    with explained(problem, _USE_FOLDER):
        config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        source = Source.find(about["tokenizer"], weights=lora is not None)
        tokenizer = source.tokenizer()
        check_family(config, path)
        task = TextTask.of(about["label_names"], about["task"])
        family = family_of(config, task, path)
        after_prompt = family.in_words and not has_decoder(config)
        settle_padding(config, tokenizer, path, after_prompt=after_prompt)
        if lora is not None:
            check_base(lora, source.sha256, about["tokenizer"])
            backbone, _ = source.weights(family.backbone, config)
        else:
            backbone = family.backbone.from_config(config)
    if about.get("generation"):
        backbone.generation_config = GenerationConfig.from_dict(about["generation"])
    model = family.make(backbone, tokenizer, task, options=options)
    if about["router"]:
        model.add_heads()
    adapters = None if lora is None else Lora(model, LoraOptions(**lora["options"]), about["tokenizer"])
    state = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(PREFIX)}
    if adapters is not None:
        own = model.state_dict()
        state = {name: own[name] for name in adapters.frozen(model)} | state
    check_state(model, state, path, _USE_FOLDER)
    model.load_state_dict(state)
    # Router heads are fitted after training, so most checkpoints hold untrained ones.
    model.drop_routers(unfitted=True)
    model.backbone.eval()
    if not after_prompt:
        check_padding(model.backbone, tokenizer, path)
    if adapters is not None:
        adapters.merge(model)
        adapters.take_out(model)
    model.set_origin(Path(path), None, base=None if adapters is None else source.base)
    return model


def save_model(model: TextModel, folder: str | Path, manifest: Manifest, lora: Lora | None = None) -> None:
    """Write a folder that plain ``transformers`` can load, completely or not at all; the manifest gets its hash.

    With LoRA, whose adapters are merged into the model, it is that of an adapter if the options say so.
    """
    from safetensors.torch import save_file

    # A link to a folder stays a link.
    folder = Path(os.path.realpath(folder))
    check_output_folder(folder)
    aside, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("part", "old"))
    for path in (aside, old):
        shutil.rmtree(path, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        bases = []
        if lora is not None and not lora.options.merge:
            lora.write(model, aside)
            bases = [lora.source.base]
        else:
            with quiet(), nullcontext() if lora is None else lora.plain(model):
                model.backbone.save_pretrained(aside)
        model.tokenizer.save_pretrained(aside)
        if model.heads:
            save_file({k: v.contiguous() for k, v in model.heads.state_dict().items()}, aside / ROUTER_FILE)
        manifest.weights_sha256 = folder_sha256(aside, *bases)
        manifest.write(aside / FILENAME)
        for file in weights_files(aside):
            # The library makes them readable by their owner alone.
            shutil.copymode(aside / FILENAME, file)
        write_made(aside)
        for path in (*aside.iterdir(), aside):
            sync_to_disk(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if folder.exists():
        shutil.copymode(folder, aside)
        folder.rename(old)
    aside.rename(folder)
    sync_to_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def check_output_folder(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but a model of elang."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _is_model(folder))):
        raise InputError(f"'{folder}' exists and is not a model folder of elang; choose another --model.output.")


def _is_model(folder: Path) -> bool:
    return (folder / FILENAME).is_file() and (folder / "config.json").is_file()


def note_replaced(folder: Path) -> None:
    """Give a notice if a training will replace a model of elang."""
    if _is_model(folder):
        notice("replaced-model", f"The model in '{folder}' is replaced by the new one when the training ends.")
