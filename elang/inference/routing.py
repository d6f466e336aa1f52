"""The thresholds of a cascade's stages, and what runs their models."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from elang.backends.openai.backend import OpenAIBackend
from elang.errors import InputError
from elang.evaluation.units import words_of
from elang.inference.loading import Loaded, StageModel
from elang.inference.options import PairOptions, as_number
from elang.inference.runner import BatchLimits, ModelRunner
from elang.notices import notice
from elang.records import WORTH_NAMING
from elang.records.manifest import Manifest, entry_speedup, known_name
from elang.tasks.sampling import Sampling, tell_sampled

# A FLOPs speed-up that is below 1 even when rounded to two digits.
_COSTLY = 0.995


def routing_of(loaded: Loaded, stage: StageModel, following: StageModel) -> tuple[str, float]:
    """The score by which a stage passes inputs on, and its threshold; refuses what its model does not have."""
    manifest, asked = loaded.manifests[stage.name], str(stage.threshold)
    model: Any = loaded.models.get(stage.name) or loaded.remote[stage.name]
    # Of scores with passes of their own it has those that it was trained for, or that are asked for.
    heads = model.ask_for(*filter(None, [stage.score])) if hasattr(model, "ask_for") else model.score_names
    known, threshold = [*dict.fromkeys([*model.task.kind.scores, *heads])], as_number(stage.threshold)
    # A model that was not trained as a Swift has chosen none.
    chosen = (manifest.score, model.task.kind.default_score)
    score = stage.score or next((name for name in chosen if name in known), manifest.score)
    if score not in known:
        raise InputError(f"The {who(stage.name)} has no score '{score}'; choose one of {', '.join(known)}.")
    if threshold is None:
        name = known_name(manifest.thresholds.get(score, {}), asked)
        if name != asked:
            notice(
                "earlier-thresholds",
                f"An earlier version chose the thresholds of this Swift: it has no '{asked}', so '{name}' is used. "
                f"`elang validate` with the held-out slice chooses '{asked}' anew, for --thresholds.",
            )
        score, threshold = manifest.resolve(name, stage.score)
        if (super_ := loaded.models.get(following.name)) is not None:
            warn_if_costly(manifest, score, name)
            manifest.warn_of_another_super(name, score, str(following.model), lambda: super_.weights_sha256)
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


def set_sampling(loaded: Loaded, options: PairOptions, stage: StageModel, score: str) -> Sampling | None:
    """Draw the texts of all models if that is asked for, or was done when the first stage's threshold was chosen."""
    manifest = loaded.manifests[stage.name]
    named = manifest.thresholds.get(score, {})
    name = known_name(named, str(stage.threshold))
    chosen = Sampling.of(_known_of(manifest, score, name, "sampling"))
    sampling = options.sampling or chosen
    if name in named and sampling != chosen:
        then = "drawn otherwise" if chosen else "those of the most probable tokens"
        notice(
            "other-sampling",
            f"The threshold '{name}' was chosen with answers that were {then}: what it promises does not hold for "
            "these. Leave sampling out, or run `elang validate` with it.",
        )
    for model in loaded.models.values():
        model.sampling = None
        if sampling is not None:
            model.sample(sampling)
    for backend in loaded.remote.values():
        settle_backend(backend, manifest, sampling)
    if sampling is not None:
        tell_sampled(sampling.plain())
    return sampling


def settle_backend(backend: Any, manifest: Manifest, sampling: Sampling | None) -> None:
    """Let a model behind an API write texts as long as those of the first model, and draw them as its are."""
    if isinstance(backend, OpenAIBackend):
        backend.limit_new_tokens(manifest.max_target_length)
        backend.choose(sampling)


def make_runners(
    loaded: Loaded, stages: Sequence[StageModel], options: PairOptions, scores: dict[str, str], device: torch.device
) -> dict[str, ModelRunner]:
    """Set up the models for answering, each but the last with its score, and what runs them, by the names of stages."""
    first, head, last = loaded.first, stages[0].name, stages[-1].name
    manifest = loaded.manifests[head]
    for name, known in loaded.manifests.items():
        model = loaded.models.get(name)
        if model is not None and (scores.get(name) or options.score or known.score) not in model.head_scores:
            # Their inputs would be computed for nothing.
            model.drop_routers()
    own = {id(model): name for name, model in reversed(loaded.models.items())}
    for model in dict.fromkeys(loaded.models.values()):
        chosen = loaded.manifests.get(own[id(model)])
        if model.task.kind.generates:
            # With other beams the scores would not be on the scale of the thresholds.
            beams = chosen.num_beams if chosen is not None and chosen.thresholds else None
            beams = 1 if model.sampling is not None else beams
            model.configure_generation(manifest.max_target_length, beams)
        for part in model.compiled_parts() if options.compile else []:
            part.compile(dynamic=True)
        if options.onnx:
            model.export()
    swift_tokens, super_tokens = options.budgets(device)
    runners = {}
    for name, model in loaded.models.items():
        tokens, option = (super_tokens, "super_tokens") if name == last else (swift_tokens, "tokens")
        limits = BatchLimits(manifest.max_length, tokens, options.batch_size, short_way=options.few, option=option)
        runners[name] = ModelRunner(
            model,
            who(name),
            limits,
            device=device,
            task=model.task if model.manifest is not None else first.task,
            any_pairs=model.manifest is None and first.manifest is None,
            scoring=(scores[name], loaded.manifests[name].temperature) if name in scores else None,
            order=loaded.orders[name],
        )
    return runners


def who(name: str) -> str:
    """How messages call a stage.

    >>> who("swift"), who("large")
    ('Swift', "stage 'large'")
    """
    return name.capitalize() if name in ("swift", "super") else f"stage '{name}'"


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
