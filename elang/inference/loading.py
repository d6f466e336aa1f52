"""Loads the models of a pair, makes them ready to answer, and reads the threshold that routes between them."""

from __future__ import annotations

import math
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
from elang.evaluation.units import words_of
from elang.inference.inputs import type_name
from elang.inference.options import PairOptions, as_number
from elang.inference.runner import BatchLimits, ModelRunner
from elang.notices import notice
from elang.records import WORTH_NAMING
from elang.records.manifest import Manifest, entry_speedup, known_name
from elang.tables import is_table
from elang.tasks.sampling import Sampling, tell_sampled
from elang.tasks.text_task import TextTask

# A FLOPs speed-up that is below 1 even when rounded to two digits.
_COSTLY = 0.995
AnyModel = str | PathLike[str] | TextModel | None


@dataclass(frozen=True)
class Pair:
    """The models of a pair that are here, ``swift``, ``super`` or both, and the manifest that routes between them.

    ``first`` is the Swift, or a Super without one; ``order`` the position of its classes among the Super's logits.
    ``remote`` has those that answer elsewhere, by the same names.
    """

    models: dict[str, TextModel]
    first: TextModel | OpenAIBackend
    manifest: Manifest
    order: list[int]
    remote: dict[str, Backend]


def load_pair(swift_model: AnyModel, super_model: AnyModel, options: PairOptions, *, device: torch.device) -> Pair:
    """Load the models of a pair, at least one, on their device, and refuse two that answer different tasks."""
    swift_model, super_model = _model_or_path(swift_model), _model_or_path(super_model)
    first_model = swift_model if swift_model is not None else super_model
    if first_model is None:
        raise InputError("Give a swift_model, a super_model, or both.")
    alone = swift_model is None
    models: dict[str, TextModel] = {}
    remote: dict[str, Backend] = {}
    first: TextModel | OpenAIBackend
    if isinstance(swift_model, str) and backend_of(swift_model) is OpenAIBackend:
        first, manifest = _remote_swift(swift_model, options)
        remote["swift"] = first
    else:
        first = model = _load(first_model, None, options, device=device, int8=alone and options.super_int8)
        models["super" if alone else "swift"] = model
        known = Manifest.read(options.thresholds) if options.thresholds else model.manifest
        manifest = known or Manifest(model.label_names)
        if known is not None and model.weights_sha256:
            manifest.check_weights(model.weights_sha256, f"'{first_model}'", model.shown_examples)
    order = list(range(len(first.label_names)))
    # Asked as the Swift was trained to be.
    if not alone and isinstance(super_model, str) and (opened := open_backend(super_model, first.task)) is not None:
        remote["super"] = opened
    if not alone and super_model is not None and "super" not in remote:
        super_ = models["super"] = _load(super_model, first.task, options, device=device, int8=options.super_int8)
        if (swift := models.get("swift")) is not None:
            tell_if_larger(str(swift_model), swift.size, str(super_model), super_.size)
        untrained = "" if first.manifest is not None else ", which `elang fit` has not written,"
        order = super_.class_order(first.label_names, f"'{super_model}'", f"'{swift_model}'{untrained}")
        if super_.manifest is not None and super_.task.fields != first.task.fields:
            fields = f"on the texts {super_.task.fields}, '{swift_model}' on {first.task.fields}"
            raise InputError(f"'{super_model}' was trained {fields}. Train both on one task.")
    return Pair(models, first, manifest, order=order, remote=remote)


def _remote_swift(address: str, options: PairOptions) -> tuple[OpenAIBackend, Manifest]:
    """A Swift behind an API, and its thresholds, which say what it is asked."""
    if options.thresholds is None:
        raise InputError(
            f"'{address}' has no thresholds of its own: give those that `elang validate` chose for it, as --thresholds "
            "JOINT/elang.json."
        )
    manifest = Manifest.read(options.thresholds)
    swift = OpenAIBackend(address, TextTask.of(manifest.label_names, manifest.task))
    swift.want_scores(manifest.temperature)
    return swift, manifest


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


def routing_of(pair: Pair, options: PairOptions, super_model: AnyModel) -> tuple[str, float]:
    """The score by which the Swift of a pair routes, and its threshold; refuses what the Swift does not have."""
    manifest, asked = pair.manifest, str(options.threshold)
    # Of scores with passes of their own it has those that it was trained for, or that are asked for.
    heads = pair.first.ask_for(*filter(None, [options.score]))
    known, threshold = [*pair.first.task.kind.scores, *heads], as_number(options.threshold)
    # A model that was not trained as a Swift has chosen none.
    chosen = (manifest.score, pair.first.task.kind.default_score)
    score = options.score or next((name for name in chosen if name in known), manifest.score)
    if score not in known:
        raise InputError(f"The Swift has no score '{score}'; choose one of {', '.join(known)}.")
    if threshold is None:
        name = known_name(manifest.thresholds.get(score, {}), asked)
        if name != asked:
            notice(
                "earlier-thresholds",
                f"An earlier version chose the thresholds of this Swift: it has no '{asked}', so '{name}' is used. "
                f"`elang validate` with the held-out slice chooses '{asked}' anew, for --thresholds.",
            )
        score, threshold = manifest.resolve(name, options.score)
        if (super_ := pair.models.get("super")) is not None:
            warn_if_costly(manifest, score, name)
            manifest.warn_of_another_super(name, score, str(super_model), lambda: super_.weights_sha256)
        as_number(threshold)
    else:
        name = ""
    denial = _known_of(manifest, score, name, "denial")
    # Not where the Swift alone is asked for.
    if denial and (name or threshold != math.inf):
        notice("denied-pair", f"`elang validate` said of this pair: {denial}.")
    return score, threshold


def _known_of(manifest: Manifest, score: str, name: str, what: str) -> Any:
    """What is known of the answers with which a threshold was chosen; a calibrated one has its own field, or none."""
    entry = manifest.thresholds.get(score, {}).get(name, {})
    return entry.get(what, None if "statement" in entry else getattr(manifest, what))


def set_sampling(pair: Pair, options: PairOptions, score: str) -> Sampling | None:
    """Draw the texts of a pair's models if that is asked for, or was done when its threshold was chosen."""
    named = pair.manifest.thresholds.get(score, {})
    name = known_name(named, str(options.threshold))
    chosen = Sampling.of(_known_of(pair.manifest, score, name, "sampling"))
    sampling = options.sampling or chosen
    if name in named and sampling != chosen:
        then = "drawn otherwise" if chosen else "those of the most probable tokens"
        notice(
            "other-sampling",
            f"The threshold '{name}' was chosen with answers that were {then}: what it promises does not hold for "
            "these. Leave sampling out, or run `elang validate` with it.",
        )
    for model in pair.models.values():
        model.sampling = None
        if sampling is not None:
            model.sample(sampling)
    for backend in pair.remote.values():
        settle_backend(backend, pair.manifest, sampling)
    if sampling is not None:
        tell_sampled(sampling.plain())
    return sampling


def settle_backend(backend: Any, manifest: Manifest, sampling: Sampling | None) -> None:
    """Let a model behind an API write texts as long as those of the Swift, and draw them as its are."""
    if isinstance(backend, OpenAIBackend):
        backend.limit_new_tokens(manifest.max_target_length)
        backend.choose(sampling)


def make_runners(pair: Pair, options: PairOptions, score: str, *, device: torch.device) -> dict[str, ModelRunner]:
    """Set up the models of a pair for answering with a score, and what runs them, by the names of their stages."""
    first, manifest = pair.first, pair.manifest
    if score not in first.head_scores:
        # Their inputs would be computed for nothing.
        first.drop_routers()
    for model in dict.fromkeys(pair.models.values()):
        if model.task.kind.generates:
            # With other beams the scores would not be on the scale of the thresholds.
            beams = manifest.num_beams if model is first and manifest.thresholds else None
            beams = 1 if model.sampling is not None else beams
            model.configure_generation(manifest.max_target_length, beams)
        for part in model.compiled_parts() if options.compile else []:
            part.compile(dynamic=True)
        if options.onnx:
            model.export()
    budgets = dict(zip(("swift", "super"), options.budgets(device), strict=True))
    runners = {}
    for name, model in pair.models.items():
        sizes = manifest.max_length, budgets[name], options.batch_size
        option = "tokens" if name == "swift" else "super_tokens"
        runners[name] = ModelRunner(
            model,
            name.capitalize(),
            BatchLimits(*sizes, short_way=options.few, option=option),
            device=device,
            task=model.task if model.manifest is not None else first.task,
            any_pairs=model.manifest is None and first.manifest is None,
            scoring=(score, manifest.temperature) if name == "swift" else None,
            order=pair.order if name == "super" else None,
        )
    return runners


def warn_if_costly(manifest: Manifest, score: str, name: str) -> None:
    """Warn if the pair saves nothing at a threshold, and name those at which it does."""
    speedups = {key: entry_speedup(entry) for key, entry in manifest.thresholds.get(score, {}).items()}
    speedup = speedups.get(name, math.nan)
    everything = not math.isnan(speedup) and manifest.threshold(name, score) == -math.inf
    if not (speedup < _COSTLY or everything):
        return
    better = ", ".join(repr(key) for key, speedup in speedups.items() if speedup > WORTH_NAMING)
    saving = words_of(str(manifest.thresholds[score][name].get("cost", ""))).saving
    cost = f"a {saving} of {speedup:.2f}x on the slice that it was chosen on"
    text = f"At the threshold '{name}' the pair costs more than the Super alone: {cost}."
    if everything:
        text = f"This pair saves nothing at the quality of '{name}': every input goes to the Super, without the Swift."
    remedy = f"The {saving} there is above {WORTH_NAMING}x at {better}." if better else "Ask the Super alone."
    notice("costly-threshold", f"{text} {remedy}", stacklevel=3)
