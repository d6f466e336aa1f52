"""Saving a model as a folder."""

import os
import shutil
from pathlib import Path

from elang.backends.loading.checkpoints import ROUTER_FILE
from elang.backends.loading.hub import quiet
from elang.backends.text_model import TextModel
from elang.errors import InputError
from elang.files import folder_sha256, settle
from elang.notices import notice, write_made
from elang.records.manifest import FILENAME, Manifest


def save_model(model: TextModel, folder: str | Path, manifest: Manifest) -> None:
    """Write a folder that loads with plain ``transformers``: whole, or not at all.

    Args:
        model: What is written.
        folder: Its path; a folder of ours that is there already is replaced.
        manifest: Becomes ``elang.json``, with the hash of these weights.
    """
    from safetensors.torch import save_file

    # A link to a folder stays one.
    folder = Path(os.path.realpath(folder))
    check_output_folder(folder)
    aside, old = (folder.with_name(f".{folder.name}.{what}") for what in ("part", "old"))
    for path in (aside, old):
        shutil.rmtree(path, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with quiet():
            model.backbone.save_pretrained(aside)
        model.tokenizer.save_pretrained(aside)
        if model.heads:
            save_file({k: v.contiguous() for k, v in model.heads.state_dict().items()}, aside / ROUTER_FILE)
        manifest.weights_sha256 = folder_sha256(aside)
        manifest.write(aside / FILENAME)
        write_made(aside)
        for path in (*aside.iterdir(), aside):
            settle(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if folder.exists():
        shutil.copymode(folder, aside)
        folder.rename(old)
    aside.rename(folder)
    settle(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def check_output_folder(folder: Path) -> None:
    """Refuse to replace a folder that holds anything but a model of ours."""
    ours = (folder / FILENAME).is_file() and (folder / "config.json").is_file()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not ours)):
        raise InputError(f"'{folder}' exists and is not a model folder of elang; choose another --model.output.")
    if ours:
        notice("replaced-model", f"The model in '{folder}' is replaced by the new one when the training ends.")
