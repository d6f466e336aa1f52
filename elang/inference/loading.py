"""Loads the models of a cascade, and what is known of their thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

import torch

from elang.backends.backend import Backend
from elang.backends.loading.load import backend_of, load_model, open_backend
from elang.backends.loading.source import tell_if_larger
from elang.backends.openai.backend import OpenAIBackend
from elang.backends.text_model import TextModel
from elang.errors import InputError
from elang.inference.inputs import type_name
from elang.inference.options import PairOptions
from elang.records.manifest import Manifest
from elang.tables import is_table
from elang.tasks.text_task import TextTask

AnyModel = str | PathLike[str] | TextModel | None


@dataclass(frozen=True)
class StageModel:
    """A stage of a cascade before its model is loaded.

    Attributes:
        name: The stage's name.
        model: What answers; ``None`` where it is elsewhere and not asked here.
        threshold: Inputs that score above it go to the next stage, as in :class:`PairOptions`.
        score: The score that routes; by default the one that a named threshold was calibrated for, else the model's.
        thresholds: Another threshold file than the model's own.
        cost: What an answer costs, for summaries.
    """

    name: str
    model: AnyModel
    threshold: str | float = math.inf
    score: str | None = None
    thresholds: str | None = None
    cost: float | None = None


@dataclass(frozen=True)
class Loaded:
    """The models of a cascade that are here, by the names of their stages, and the manifests that route between them.

    ``first`` is the first one, which says what is asked; ``orders`` have the position of its classes among the logits
    of the others. ``remote`` has those that answer elsewhere.
    """

    models: dict[str, TextModel]
    first: Any
    manifests: dict[str, Manifest]
    orders: dict[str, list[int]]
    remote: dict[str, Backend]


def load_models(
    stages: Sequence[StageModel], options: PairOptions, about: Manifest | None = None, *, device: torch.device
) -> Loaded:
    """Load the models of a cascade on their device, the first one at least, and refuse those of different tasks.

    ``about`` says what is asked where the first model is behind an API and has no thresholds.
    """
    given = {stage.name: _model_or_path(stage.model) for stage in stages}
    head, last = stages[0], stages[-1].name
    first_model = given[head.name]
    if first_model is None:
        raise InputError("Give a swift_model, a super_model, or both.")
    first, manifest = _first(head, first_model, head.name == last, options, about, device=device)
    manifests, orders = {head.name: manifest}, {head.name: list(range(len(first.task.label_names)))}
    local = isinstance(first, torch.nn.Module)
    models: dict[str, TextModel] = {head.name: first} if local else {}
    remote: dict[str, Backend] = {} if local else {head.name: first}
    # Asked as the first one was trained to be.
    for stage in stages[1:]:
        address = given[stage.name]
        if isinstance(address, str) and (opened := open_backend(address, first.task)) is not None:
            remote[stage.name] = opened
            if stage.name != last:
                known = Manifest.read(stage.thresholds) if stage.thresholds else Manifest(first.task.label_names)
                manifests[stage.name] = known
                _check_scores(opened, address, known)
    before = str(first_model), models.get(head.name)
    for stage in stages[1:]:
        address = given[stage.name]
        if address is None or stage.name in remote:
            continue
        int8 = stage.name == last and options.super_int8
        model = models[stage.name] = _load(address, first.task, options, device=device, int8=int8)
        if stage.name != last:
            manifests[stage.name] = _manifest_of(stage, model, first.task.label_names)
        if before[1] is not None:
            tell_if_larger(before[0], before[1].size, str(address), model.size)
        untrained = "" if first.manifest is not None else ", which `elang fit` has not written,"
        orders[stage.name] = model.class_order(first.task.label_names, f"'{address}'", f"'{first_model}'{untrained}")
        if model.manifest is not None and model.task.fields != first.task.fields:
            fields = f"on the texts {model.task.fields}, '{first_model}' on {first.task.fields}"
            raise InputError(f"'{address}' was trained {fields}. Train both on one task.")
        before = str(address), model
    return Loaded(models, first, manifests, orders, remote)


def _first(
    stage: StageModel,
    model: str | TextModel,
    alone: bool,
    options: PairOptions,
    about: Manifest | None,
    *,
    device: torch.device,
) -> tuple[Any, Manifest]:
    """The first model of a cascade, ``alone`` if it is the only one, and its thresholds."""
    backend = backend_of(model) if isinstance(model, str) else None
    if isinstance(model, str) and alone and backend is not None and about is not None:
        return backend(model, TextTask.of(about.label_names, about.task)), about
    if isinstance(model, str) and not alone and backend is OpenAIBackend:
        return _remote_first(model, stage.thresholds, about)
    loaded = _load(model, None, options, device=device, int8=alone and options.super_int8)
    return loaded, _manifest_of(stage, loaded, loaded.label_names)


def _manifest_of(stage: StageModel, model: TextModel, label_names: list[str]) -> Manifest:
    """The thresholds of a stage, its own or of another file, checked against its weights."""
    known = Manifest.read(stage.thresholds) if stage.thresholds else model.manifest
    if known is not None and model.weights_sha256:
        known.check_weights(model.weights_sha256, f"'{stage.model}'", model.shown_examples)
    return known or Manifest(label_names)


def _remote_first(address: str, thresholds: str | None, about: Manifest | None) -> tuple[OpenAIBackend, Manifest]:
    """A first model behind an API, and its thresholds, which say what it is asked."""
    if thresholds is None and about is None:
        raise InputError(
            f"'{address}' has no thresholds of its own: give those that `elang validate` chose for it, as --thresholds "
            "JOINT/elang.json."
        )
    manifest = about if thresholds is None else Manifest.read(thresholds)
    assert manifest is not None
    first = OpenAIBackend(address, TextTask.of(manifest.label_names, manifest.task))
    first.want_scores(manifest.temperature)
    return first, manifest


def _check_scores(backend: Backend, address: str, manifest: Manifest) -> None:
    """Refuse a backend before the last stage that has no scores, and ask for those that are an option."""
    if not hasattr(backend, "score"):
        raise InputError(
            f"'{address}' gives answers without scores, so it cannot pass inputs on. Put it at the end of the chain."
        )
    if isinstance(backend, OpenAIBackend):
        backend.want_scores(manifest.temperature)


def _model_or_path(model: AnyModel) -> str | TextModel | None:
    """Refuse what is neither a model nor a path of one, and make text of a path."""
    path = fspath(model) if isinstance(model, PathLike) else model
    if not isinstance(path, str | torch.nn.Module | None):
        raise InputError(f"A model is a folder, a hub id or a TextModel, but this is of {type_name(path)}.")
    if isinstance(path, str) and is_table(path):
        raise InputError(f"Records such as '{path}' answer only the examples in them; give a model to predict.")
    return path


def _load(
    model: str | TextModel, task: TextTask | None, options: PairOptions, *, device: torch.device, int8: bool
) -> TextModel:
    """A model on its device, ready for inference."""
    if isinstance(model, str):
        model = load_model(model, task, dtype=getattr(torch, options.dtype))
    elif options.dtype != "float32" or int8:
        option = "super_int8" if int8 else f"dtype torch.{options.dtype}"
        raise InputError(f"{option} is for models that are loaded here; give this one as it is to be used.")
    if int8:
        # Before the model moves to a GPU, which may be too small for it.
        model.quantize()
    model = model.to(device).eval()
    # A model that is to be compiled runs by the library's own forward pass.
    if not options.compile and not int8:
        model.shorten()
    return model
