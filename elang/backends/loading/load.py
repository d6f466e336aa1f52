"""Loading a model for a task, and who answers at an address that is not a model's."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM
from transformers.utils import cached_file, find_adapter_config_file

from elang.backends.backend import Backend
from elang.backends.loading.checkpoints import ROUTER_FILE, from_checkpoint, read_checkpoint
from elang.backends.loading.families import (
    check_kind,
    family_of,
    forget_training,
    keep_layers,
    output_names,
    task_in_words,
    task_of_outputs,
)
from elang.backends.loading.hub import locate, not_loaded, quiet
from elang.backends.loading.padding import check_family, check_padding, has_decoder, settle_padding
from elang.backends.loading.tokenizer import load_tokenizer
from elang.backends.loading.weights import check_parts, check_precision, check_weights, is_body
from elang.backends.recorded import RecordedBackend
from elang.backends.remote import RemoteBackend
from elang.backends.text_model import TextModel
from elang.errors import InputError, first_line
from elang.records.manifest import FILENAME, Manifest
from elang.tables import TABLE_SUFFIXES
from elang.tasks.text_task import TextTask

SCHEMES: dict[str, Callable[[str, TextTask], Backend]] = {
    "http://*": RemoteBackend,
    "https://*": RemoteBackend,
    **dict.fromkeys((f"*{suffix}" for suffix in TABLE_SUFFIXES), RecordedBackend),
}
"""Who answers at an address, by its pattern in lower case; any other is that of a model."""


def open_backend(address: str, task: TextTask) -> Backend | None:
    """Who answers at an address that is not a model's.

    Args:
        address: That of a server, a file of records, or what was added to :data:`SCHEMES`.
        task: What is asked.

    Returns:
        ``None`` for a folder, a checkpoint or a hub id: :func:`load_model` loads these.

    Raises:
        InputError: As the backend says.
    """
    for pattern, backend in SCHEMES.items():
        if fnmatchcase(address.lower(), pattern):
            return backend(address, task)
    return None


def load_model(
    path: str,
    task: TextTask | None = None,
    fine_tune: bool = False,
    layers: int | None = None,
    router: bool = False,
    generate: bool = False,
    num_beams: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> TextModel:
    """Load a pretrained model to be fine-tuned, or a finished one.

    Args:
        path: A folder of ``transformers``, a ``.ckpt`` of :class:`elang.FinetuneModule` or
            :class:`elang.SwiftModule`, or a hub id, ``owner/name@revision``.
        task: What it is to answer; by default what it was trained for.
        fine_tune: It gets a new head where its own is for another task.
        layers: Keep only the first so many layers (of an encoder-decoder, of both stacks).
        router: Give it router heads if it has none.
        generate: A text-to-text model answers by free generation.
        num_beams: Hypotheses that generated texts are chosen from; by default the model's own setting.
        dtype: Precision of the weights, for inference; logits and scores are float32 in any.

    Raises:
        InputError: If it cannot be loaded, answers another task, or overflows in this precision.
    """
    options = {"generate": generate, "num_beams": num_beams}
    if path.endswith(".ckpt"):
        if fine_tune:
            read_checkpoint(path)
            raise InputError(
                f"A module starts from a model folder, and '{path}' is a checkpoint. Give the folder that `elang fit` "
                "wrote, or go on from the checkpoint with --ckpt_path."
            )
        model = from_checkpoint(path, options)
    else:
        model = _from_folder(path, task, options, fine_tune=fine_tune, layers=layers, router=router, dtype=dtype)
    if dtype != torch.float32:
        model.cast(dtype)
    return model


def _from_folder(
    path: str,
    task: TextTask | None,
    options: dict[str, Any],
    *,
    fine_tune: bool,
    layers: int | None,
    router: bool,
    dtype: torch.dtype,
) -> TextModel:
    """Load a folder or a hub id; the arguments are those of :func:`load_model`."""
    name, where = locate(path)
    folder = Path(name)
    manifest = Manifest.read(folder) if (folder / FILENAME).is_file() else None
    check_parts(path, fine_tune)
    try:
        config = AutoConfig.from_pretrained(name, **where)
        check_family(config, path)
        if layers is not None:
            keep_layers(config, layers, path)
        own = TextTask.of(manifest.label_names, manifest.task) if manifest else None
        if not fine_tune:
            check_kind(own, task, path)
        family, names = family_of(config, task or own, path), None
        if has_decoder(config):
            answered = task_in_words(own, task, path, fine_tune=fine_tune)
        else:
            names = output_names(config)
            answered = task_of_outputs(config, own, task, manifest=manifest, path=path, fine_tune=fine_tune)
        tokenizer = load_tokenizer(name, where)
        settle_padding(config, tokenizer, path, fine_tune=fine_tune)
        # Large ones are not to be there twice; a classifier's head stays in float32.
        precision = dtype if has_decoder(config) else torch.float32
        backbone, info = _pretrained(family.backbone, name, config, options=where, dtype=precision)
        new = check_weights(backbone, info, path, fine_tune=fine_tune, cut=layers is not None)
        model = family.make(backbone, tokenizer, answered, options=options)
    except InputError:
        raise
    except Exception as error:
        raise not_loaded(path, error) from error
    check_padding(backbone, tokenizer, path)
    if fine_tune:
        forget_training(backbone.config, answered)
    if names is not None and len(names) == answered.num_outputs == 1:
        names = None
    model.set_origin(folder if folder.is_dir() else None, manifest, new, original_names=names)
    same = not fine_tune or (router and layers is None and own is not None and own.plain() == answered.plain())
    if same and (folder / ROUTER_FILE).is_file():
        _load_heads(model, folder / ROUTER_FILE)
    elif router:
        model.add_heads()
    return model


def load_masked(path: str) -> tuple[Any, Any, bool]:
    """A masked language model, its tokenizer, and whether its head came with it.

    Args:
        path: A folder of ``transformers`` or a hub id, ``owner/name@revision``.

    Raises:
        InputError: If it cannot be loaded or its kind knows no masked words.
    """
    name, options = locate(path)
    try:
        with quiet():
            tokenizer = load_tokenizer(name, options)
        config = AutoConfig.from_pretrained(name, **options)
        model, info = _pretrained(AutoModelForMaskedLM, name, config, options=options)
        # Neighbours of words need no head.
        head = {name for name in info["missing_keys"] if not is_body(name, model)}
        info["missing_keys"] = set(info["missing_keys"]) - head
        check_weights(model, info, path, fine_tune=False)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"The model '{path}' cannot be loaded as a masked language model ({type(error).__name__}: "
            f"{first_line(error)}). Give an encoder such as BERT or MPNet."
        ) from error
    return model, tokenizer, not head


def _pretrained(kind: Any, name: str, config: Any, options: dict[str, Any], **more: Any) -> tuple[Any, dict[str, Any]]:
    if getattr(config, "quantization_config", None):
        raise ValueError("its config.json says that it is quantized (quantization_config), which is not supported")
    # Without peft it would be left out without a word, with peft perhaps be put on weights that are not pinned.
    if find_adapter_config_file(name, **options):
        raise ValueError("it has a PEFT adapter; save it with its adapter merged into its weights, merge_and_unload()")
    # transformers loads in the file's own precision; weights that are trained stay float32. Where peft is installed it
    # looks for an adapter again, which is to be at this revision, and at no hub if all is here.
    settings = {"dtype": torch.float32, "use_safetensors": True, "adapter_kwargs": options} | more | options
    # What it lacks, and what does not fit, is looked at by us.
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with quiet():
        model, info = kind.from_pretrained(name, config=config, **settings, **told)
    check_precision(Path(cached_file(name, "config.json", **options)).parent, name)
    return model, info


def check_model(path: str) -> None:
    """Look for a model as far as that goes without its weights.

    Raises:
        InputError: If :func:`load_model` would not find it.
    """
    if path.endswith(".ckpt"):
        read_checkpoint(path)
        return
    name, options = locate(path)
    try:
        AutoConfig.from_pretrained(name, **options)
    except Exception as error:
        raise not_loaded(path, error) from error


def _load_heads(model: TextModel, path: Path) -> None:
    from safetensors.torch import load_file

    model.add_heads()
    try:
        model.heads.load_state_dict(load_file(path))
    except Exception as error:
        raise InputError(f"The router heads '{path}' cannot be read ({error}). Run `elang fit` again.") from error
