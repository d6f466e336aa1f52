"""Loads the model or opens the backend at an address."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from elang.backends.backend import Backend
from elang.backends.loading import families
from elang.backends.loading.checkpoints import ROUTER_FILE, from_checkpoint, read_checkpoint
from elang.backends.loading.hub import explained, loading, quiet
from elang.backends.loading.padding import check_family, check_padding, has_decoder, settle_padding
from elang.backends.loading.source import Source
from elang.backends.loading.weights import check_parts, check_weights, is_head
from elang.backends.openai.backend import OpenAIBackend
from elang.backends.openai.settings import Settings
from elang.backends.person import Person
from elang.backends.recorded import RecordedBackend
from elang.backends.remote import RemoteBackend
from elang.backends.text_model import TextModel
from elang.errors import InputError
from elang.method.pool import PERSON
from elang.records.manifest import FILENAME, Manifest
from elang.tables import TABLE_SUFFIXES
from elang.tasks.text_task import TextTask

SCHEMES: dict[str, Callable[[str, TextTask], Backend]] = {
    "http://*": RemoteBackend,
    "https://*": RemoteBackend,
    **dict.fromkeys(("openai:*", "*.yaml", "*.yml"), OpenAIBackend),
    PERSON: Person,
    **dict.fromkeys((f"*{suffix}" for suffix in TABLE_SUFFIXES), RecordedBackend),
}
"""The backends by patterns of their addresses in lower case; any other address is that of a model."""


def backend_of(address: str) -> Callable[[str, TextTask], Backend] | None:
    """What opens the backend at an address of :data:`SCHEMES`; ``None`` for a model, which :func:`load_model` loads."""
    return next((backend for pattern, backend in SCHEMES.items() if fnmatchcase(address.lower(), pattern)), None)


def open_backend(address: str, task: TextTask, scored: bool = False) -> Backend | None:
    """Open the backend at an address, if it has one; ``scored`` asks it for scores, too, where they are an option."""
    backend = backend_of(address)
    opened = None if backend is None else backend(address, task)
    if scored and isinstance(opened, OpenAIBackend):
        opened.want_scores()
    return opened


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
    """Load a pretrained model to fine-tune it, or a finished one.

    Args:
        path: A folder of ``transformers``, or of an adapter of ``peft``, which is merged into its base; a ``.ckpt`` of
            :class:`elang.FinetuneModule` or :class:`elang.SwiftModule`; or a hub id, ``owner/name@revision``.
        task: The task to answer; by default the one that it was trained for.
        fine_tune: Whether it is to be trained; it gets a new head where its own is for another task.
        layers: Keep only this many layers (of an encoder-decoder, of both stacks).
        router: Add router heads if it has none.
        generate: A text-to-text model answers by free generation.
        num_beams: Hypotheses that generated texts are chosen from; by default the model's own setting.
        dtype: Precision of the weights, for inference; logits and scores are always float32.

    Raises InputError if it cannot be loaded, answers another task, or overflows in this precision.
    """
    options = {"generate": generate, "num_beams": num_beams, "dtype": dtype}
    if backend_of(path) is OpenAIBackend:
        raise InputError(
            f"'{path}' is behind an API: it answers as a Super, or as a Swift beside one, but it is no model to train "
            "or to serve alone. Give a folder or a hub id."
        )
    if path.endswith(".ckpt"):
        if fine_tune:
            read_checkpoint(path)
            raise InputError(
                f"A module starts from a model folder, and '{path}' is a checkpoint. Give the folder that `elang fit` "
                "wrote, or continue from the checkpoint with --ckpt_path."
            )
        model = from_checkpoint(path, options)
    else:
        model = _from_folder(path, task, options, fine_tune=fine_tune, layers=layers, router=router)
    if dtype != torch.float32:
        model.cast(dtype)
    return model


def _from_folder(
    path: str, task: TextTask | None, options: dict[str, Any], *, fine_tune: bool, layers: int | None, router: bool
) -> TextModel:
    source = Source.find(path)
    folder = Path(path)
    manifest = Manifest.read(folder) if (folder / FILENAME).is_file() else None
    check_parts(path, fine_tune)
    with loading(source.title):
        config = source.config()
        check_family(config, path)
        if layers is not None:
            families.keep_layers(config, layers, path, whole=source.adapter is None)
        trained = TextTask.of(manifest.label_names, manifest.task) if manifest else None
        if not fine_tune and trained and task and trained.kind is not task.kind:
            raise InputError(
                f"'{path}' was trained for a {trained.problem}, but the data is a {task.problem}. Give the model that "
                "was trained on this task."
            )
        # A finished model answers as it was trained to, however the data asks.
        family = families.family_of(config, task if fine_tune or trained is None else trained, path)
        names: list[str] = []
        after_prompt = family.in_words and not has_decoder(config)
        if family.in_words:
            answered = families.task_in_words(trained, task, path, fine_tune=fine_tune, after_prompt=after_prompt)
        else:
            names = families.output_names(config)
            answered = families.task_of_outputs(config, trained, task, path, fine_tune=fine_tune)
        tokenizer = source.tokenizer()
        settle_padding(config, tokenizer, path, fine_tune=fine_tune, after_prompt=after_prompt)
        # Large models must not be in memory twice; a classifier's head stays in float32.
        dtype = options["dtype"] if family.in_words else torch.float32
        backbone, info = source.weights(family.backbone, config, dtype)
        cut, whole = layers is not None, family.in_words
        new = check_weights(backbone, info, path, fine_tune=fine_tune, cut=cut, whole=whole)
        model = family.make(backbone, tokenizer, answered, options=options)
    if not after_prompt:
        check_padding(backbone, tokenizer, path)
    if fine_tune:
        families.forget_training(backbone.config, answered, family.in_words)
    families.tell_way(model, path, finished=trained is not None and not fine_tune)
    if len(names) == answered.num_outputs == 1:
        names = []
    model.set_origin(source.folder, manifest, base=source.base if source.adapter else None, new=new, names=names)
    if source.adapter is not None and manifest is not None:
        # Another base under the same name would answer otherwise.
        manifest.check_whole(model.weights_sha256, path)
    same_task = trained is not None and trained.plain() == answered.plain()
    if (folder / ROUTER_FILE).is_file() and (not fine_tune or (router and layers is None and same_task)):
        model.add_heads()
        with explained(f"The router heads '{folder / ROUTER_FILE}' cannot be read", "Run `elang fit` again."):
            heads = load_file(folder / ROUTER_FILE)
            try:
                model.heads.load_state_dict(heads)
            except RuntimeError as error:
                # What is wrong is in the lines after the first.
                raise ValueError(" ".join(str(error).split())) from error
    elif router:
        model.add_heads()
    return model


def load_masked(path: str) -> tuple[Any, Any, bool]:
    """Load a masked language model, its tokenizer, and whether its head came with it, from a folder or a hub id."""
    source = Source.find(path)
    problem = f"The model '{path}' cannot be loaded as a masked language model"
    with explained(problem, "Give an encoder such as BERT or MPNet."):
        with quiet():
            tokenizer = source.tokenizer()
        model, info = source.weights(AutoModelForMaskedLM, source.config())
        # Word embeddings can be used without the head.
        head = {name for name in info["missing_keys"] if is_head(name, model)}
        info["missing_keys"] = set(info["missing_keys"]) - head
        check_weights(model, info, path, fine_tune=False)
    return model, tokenizer, not head


def check_model(path: str) -> None:
    """Check that :func:`load_model` would find a model, without loading its weights."""
    if path.endswith(".ckpt"):
        read_checkpoint(path)
        return
    if backend_of(path) is OpenAIBackend:
        Settings.of(path)
        return
    source = Source.find(path)
    with loading(source.title):
        source.config()
