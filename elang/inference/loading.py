"""The models of a pair, loaded and made ready, and the threshold that routes between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike, fspath

import torch

from elang.backends.loading.load import load_model
from elang.backends.text_model import TextModel
from elang.errors import InputError
from elang.inference.inputs import kind_of_input
from elang.inference.options import PairOptions, as_number, check_threshold
from elang.notices import notice
from elang.records.manifest import Manifest
from elang.tables import is_table
from elang.tasks.text_task import TextTask

# A FLOPs speed-up that is below 1 even as it is printed.
_COSTLY = 0.995
Model = str | TextModel | None


@dataclass(frozen=True)
class Pair:
    """Two models that are ready to answer.

    Attributes:
        swift: The Swift; without one the Super is here, too.
        super_: The Super, if it is here.
        manifest: The Swift's, or that of another threshold file.
        order: For each of the Swift's classes its place among the Super's logits.
    """

    swift: TextModel
    super_: TextModel | None
    manifest: Manifest
    order: list[int]


def load_pair(swift_model: Model, super_model: Model, options: PairOptions, device: torch.device) -> Pair:
    """Load the models of a pair on their device, and check that they fit together.

    Raises:
        InputError: If neither is given, one cannot be loaded, or they answer different tasks.
    """
    first = swift_model if swift_model is not None else super_model
    if first is None:
        raise InputError("Give a swift_model, a super_model, or both.")
    swift = _ready(first, None, options, device, options.super_int8 and swift_model is None)
    manifest = Manifest.read(options.thresholds) if options.thresholds else swift.manifest
    if manifest is None:
        manifest = Manifest(swift.label_names)
    elif swift.weights_sha256:
        manifest.check_weights(swift.weights_sha256, f"'{swift_model}'")
    order = list(range(len(swift.label_names)))
    if swift_model is None or super_model is None:
        return Pair(swift, swift if swift_model is None else None, manifest, order)
    super_ = _ready(super_model, swift.task, options, device, options.super_int8)
    weights = [sum(p.numel() for p in model.parameters()) for model in (swift, super_)]
    if weights[0] > weights[1]:
        notice(
            "swapped-models",
            f"The Swift '{swift_model}' has {weights[0]:,} weights and the Super '{super_model}' only "
            f"{weights[1]:,}: are the two the other way round?",
        )
    trained = "" if swift.manifest is not None else ", which `elang fit` has not written,"
    order = super_.class_order(swift.label_names, f"'{super_model}'", f"'{swift_model}'{trained}")
    if super_.manifest is not None and super_.task.fields != swift.task.fields:
        raise InputError(
            f"'{super_model}' was trained on the texts {super_.task.fields}, '{swift_model}' on "
            f"{swift.task.fields}. Train both on one task."
        )
    return Pair(swift, super_, manifest, order)


def model_or_path(model: str | PathLike[str] | TextModel | None) -> Model:
    """A model that is there already, or where it is.

    Raises:
        InputError: If it is neither, or records.
    """
    path = fspath(model) if isinstance(model, PathLike) else model
    if not isinstance(path, str | torch.nn.Module | None):
        raise InputError(f"A model is a folder, a hub id or a TextModel, but one of {kind_of_input(path)} was given.")
    if isinstance(path, str) and is_table(path):
        raise InputError(f"Records such as '{path}' answer only the examples in them; give a model to predict.")
    return path


def _ready(
    model: str | TextModel, task: TextTask | None, options: PairOptions, device: torch.device, int8: bool
) -> TextModel:
    """A model on its device, to be asked; one that is to be compiled is so by the library's own passes."""
    if not isinstance(model, str) and (options.dtype != "float32" or int8):
        raise InputError(
            f"{'super_int8' if int8 else f'dtype torch.{options.dtype}'} is for models that are loaded here; give this "
            "one as it is to be used."
        )
    ready = load_model(model, task, dtype=getattr(torch, options.dtype)) if isinstance(model, str) else model
    if int8:
        # Before it goes to the card, where the whole of it may find no room.
        ready.quantize()
    ready = ready.to(device).eval()
    if not options.compile and not int8:
        ready.shorten()
    return ready


def routing_of(pair: Pair, options: PairOptions, super_model: Model) -> tuple[str, float]:
    """The score that routes, and its threshold; both models are known to be there.

    Raises:
        InputError: If the Swift has no such score, or no such threshold.
    """
    swift, manifest, name = pair.swift, pair.manifest, str(options.threshold)
    known = [*swift.task.kind.scores, *swift.head_scores]
    if (options.score or manifest.score) not in known:
        raise InputError(
            f"The Swift has no score '{options.score or manifest.score}'; choose one of {', '.join(known)}."
        )
    score, threshold = options.score or manifest.score, as_number(options.threshold)
    if threshold is None:
        score, threshold = manifest.resolve(name, options.score)
        if (super_ := pair.super_) is not None:
            warn_if_costly(manifest, score, name)
            manifest.warn_of_another_super(name, score, str(super_model), lambda: super_.weights_sha256)
    check_threshold(threshold)
    return score, threshold


def make_ready(pair: Pair, options: PairOptions, score: str) -> None:
    """Set up both models for answering with a score: heads, generation, and how they run."""
    if score not in pair.swift.head_scores:
        # They would be fed for nothing.
        pair.swift.drop_routers()
    for model in dict.fromkeys(one for one in (pair.swift, pair.super_) if one is not None):
        # Scores of texts with other beams would not be on the thresholds' scale.
        beams = pair.manifest.num_beams if model is pair.swift and pair.manifest.thresholds else None
        if model.task.kind.generates:
            model.configure_generation(pair.manifest.max_target_length, beams)
        for part in model.compiled_parts() if options.compile else []:
            part.compile(dynamic=True)
        if options.onnx:
            model.export()


def warn_if_costly(manifest: Manifest, score: str, name: str) -> None:
    """Warn if the pair costs more than the Super alone at a threshold, and name those at which it does not."""
    speedups = {key: manifest.speedup(key, score) for key in manifest.thresholds.get(score, {})}
    if not speedups.get(name, math.nan) < _COSTLY:
        return
    better = [repr(key) for key, speedup in speedups.items() if speedup > 1]
    notice(
        "costly-threshold",
        f"At the threshold '{name}' the pair costs more than the Super alone: a FLOPs speed-up of "
        f"{speedups[name]:.2f}x on the slice that it was chosen on. "
        + (f"It is above 1 at {', '.join(better)}." if better else "Ask the Super alone."),
        stacklevel=3,
    )
