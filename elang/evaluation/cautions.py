"""What limits an evaluation: nothing to gain, repeated texts, examples that training or a threshold has seen."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from elang.errors import InputError, listed
from elang.evaluation.pair import HALF_POINT, ROUTING_SLICE, PairAnswers
from elang.evaluation.slices import FEW, MOSTLY, SOME, independent_units, share_of_slice
from elang.method.bootstrap import mean_intervals
from elang.method.quality.labels import spearman
from elang.method.quality.metric import Quality
from elang.notices import notice
from elang.records import WORTH_NAMING
from elang.records.manifest import Manifest, entry_speedup, known_name
from elang.tasks.kinds import measure

# With fewer examples, chance alone explains why none of a class is right, or why some are known.
_ENOUGH = 5
# What to do with a model that has learned too little, where the course of its training is not known.
_AGAIN = (
    "Where the validation loss that `elang fit` printed rose, train for fewer epochs (--trainer.max_epochs) or with a "
    "lower --model.lr; where it fell to the end, train longer"
)
# Share of the Super's cost from which a Swift is too dear; one of a third of the layers has a little more than a third.
_COSTLY_SWIFT = 0.35


def never_right(prediction: Tensor, label: Tensor, label_names: list[str]) -> list[str]:
    """The classes with five examples or more of which not one is answered right.

    Predictions and labels are int64 ``(N,)``, and a label is -1 if unknown.

    >>> never_right(torch.tensor([0] * 9), torch.tensor([0] * 4 + [1] * 5), ["a", "b"])
    ['b']
    """
    right = (prediction == label) & (label >= 0)
    counts, hits = (x.bincount(minlength=len(label_names)).tolist() for x in (label[label >= 0], label[right]))
    return [name for i, name in enumerate(label_names) if counts[i] >= _ENOUGH and hits[i] == 0]


def little_to_gain(gain: Tensor) -> str:
    """A caution if the Super is not shown to be better than the Swift, by ``gain`` ``(N,)``; otherwise empty."""
    low = float(mean_intervals(gain[:, None])[0])
    if low > 0:
        return ""
    return (
        f"the Super is not shown to be better than the Swift on these {len(gain):,} examples (mean gain "
        f"{float(gain.mean()):+.4f}, 95% interval from {low:+.4f}): deferring has little to gain, and areas, "
        "thresholds and certificates mean little. Evaluate on more examples; if it stays so, use the Swift alone or a "
        "better Super"
    )


def little_to_save(swift_cost: float, super_cost: float) -> str:
    """What to say of a Swift with too large a part of the Super's cost; otherwise empty."""
    share = swift_cost / super_cost
    if not share > _COSTLY_SWIFT:
        return ""
    if share >= 1:
        return f"the Swift takes {share:.0%} of the Super's FLOPs, so no threshold saves anything: are the two swapped"
    return (
        f"the Swift takes {share:.0%} of the Super's FLOPs, so no threshold can save more than {1 / share:.2f}x. A "
        "Swift of a third or less, better a tenth, can save more"
    )


def most_frequent(label: Tensor, label_names: list[str]) -> tuple[int, float]:
    """The class that most of the known labels ``(N,)`` name, and its share of them; -1 if none is known."""
    known = label[label >= 0]
    if not len(known):
        return -1, math.nan
    count, most = torch.bincount(known, minlength=len(label_names)).max(0)
    return int(most), int(count) / len(known)


def always_one(answers: PairAnswers, label_names: list[str], qualities: Iterable[Quality]) -> dict[str, Any] | None:
    """What always answering the most frequent label would reach: ``label``, its ``share``, ``qualities`` by name."""
    most, share = most_frequent(answers.label, label_names) if answers.kind.has_classes else (-1, math.nan)
    if most < 0:
        return None
    always = torch.full_like(answers.label, most)
    reached = {q.name: measure(q, always, answers.label, targets=answers.targets) for q in qualities}
    return {"label": label_names[most], "share": share, "qualities": reached}


def no_better_than_one(prediction: Tensor, label: Tensor, label_names: list[str], remedy: str = _AGAIN) -> str | None:
    """What to say of a model that is right no more often than the most frequent label alone would be."""
    most, share = most_frequent(label, label_names)
    known = int((label >= 0).sum())
    # An answer that is none of the labels is no right answer to an input without one.
    right = int(((prediction == label) & (label >= 0)).sum())
    if most < 0 or share == 1 or right > round(share * known):
        return None
    return (
        f"is right on {right / known:.1%}, and always answering '{label_names[most]}' would be right on {share:.1%}: "
        f"it has learned too little. {remedy}"
    )


def below_allowance(points: dict[str, Any], named: dict[str, dict[str, Any]], largest: float | None) -> list[str]:
    """A caution if the pair is worse here than its default threshold allows, by more than chance.

    ``points`` are the operating points of a score, ``named`` its thresholds, and ``largest`` the most that an answer is
    worth.
    """
    name = known_name(named)
    to_super = getattr(points.get(f"held out, {name}"), "to_super", None)
    if to_super is None or not largest or to_super["high"] >= -HALF_POINT * largest:
        return []
    below, count = -100 * to_super["difference"] / largest, named[name].get("num_examples")
    chosen = (
        f"the {count:,} examples that chose it were too few, or others than these" if count else "it was chosen badly"
    )
    # A threshold is advised only if here it saves something and keeps within half a point of the Super.
    good = [
        key
        for key, point in points.items()
        if not point.speedup <= WORTH_NAMING and (point.to_super or to_super)["difference"] >= -HALF_POINT * largest
    ]
    take = next((f"take '--threshold {key[10:]}', " for key in good if key.startswith("held out, ")), "")
    remedy = f"Hold out more (--data.routing_fraction), {take}or calibrate one (`elang calibrate`)"
    if not good:
        remedy = "No threshold of this pair helps here: ask the Super alone, or train a better Swift"
    return [
        f"at the threshold '{name}' the pair is {below:.1f} points below the Super, which is more than chance and more "
        f"than half a point: {chosen}. {remedy}"
    ]


def saves_nothing(thresholds: dict[str, dict[str, dict[str, Any]]], score: str) -> list[str]:
    """A caution if the default threshold of ``score`` defers everything, because no other one saves anything.

    ``thresholds`` are the named ones of each score; those that do save something are named.
    """
    named = thresholds.get(score, {})
    name = known_name(named)
    entry = named.get(name, {})
    # Without costs nothing is known to be saved or not.
    if float(entry.get("threshold", math.nan)) != -math.inf or math.isnan(entry_speedup(entry)):
        return []
    saving = [f"--threshold '{other}'" for other, each in named.items() if entry_speedup(each) > WORTH_NAMING]
    others = {other: entry_speedup(each.get(name, {})) for other, each in thresholds.items()}
    saving += [f"--score {other}" for other, speedup in others.items() if speedup > WORTH_NAMING]
    remedy = f"On the slice these save something: {', '.join(saving)}" if saving else "Or ask the Super alone"
    return [
        f"this pair saves nothing at the Super's quality: by {score}, no threshold that costs less than the Super "
        f"alone is good enough on the slice, so '{name}' defers everything. Train a better or a smaller Swift. {remedy}"
    ]


def cautions(answers: PairAnswers, label_names: list[str], largest: float | None) -> tuple[list[str], list[str]]:
    """Reasons in a pair's answers that deny its success, and others to trust its figures less.

    ``largest`` is the most that an answer can be worth.
    """
    denied, limited = list[str](), list[str]()
    swift_cost, super_cost = float(answers.swift_flops.mean()), float(answers.super_flops.mean())
    if said := little_to_save(swift_cost, super_cost):
        (denied if swift_cost >= super_cost else limited).append(said)
    if answers.kind.has_classes:
        for who, prediction in (("Swift", answers.swift), ("Super", answers.super_)):
            if (learned := no_better_than_one(prediction, answers.label, label_names)) is not None:
                denied.append(f"the {who} {learned}")
            elif names := never_right(prediction, answers.label, label_names):
                limited.append(
                    f"the {who} is never right where the label is {listed(names)}: it has not learned that, or its "
                    f"answers use other names. {_AGAIN}"
                )
    for who in ("Swift", "Super"):
        extracted = answers.more.get(f"{who.lower()}_answer")
        if isinstance(extracted, list) and (missing := extracted.count(None)):
            limited.append(
                f"in {missing:,} of the {len(extracted):,} texts of the {who} no answer is found (--data.extract): "
                "they count as wrong"
            )
    if caution := little_to_gain(answers.gain / (largest or 1.0)):
        denied.append(caution)
    return denied, limited


def repeated(key: Tensor, unit: Tensor | None) -> list[str]:
    """A caution if examples are not independent: texts ``(N,)`` that repeat, or that form groups ``(N,)``."""
    units, noun = independent_units(key, unit)
    if units >= (1 - FEW) * len(key):
        return []
    return [
        f"the {len(key):,} examples are {units:,} {noun}, but intervals and p-values take all examples as "
        "independent, so they are too narrow. Certificates count each of these once"
    ]


def near_threshold(score: Tensor, named: dict[str, dict[str, Any]], rounding: float) -> dict[str, float] | None:
    """The share of scores within rounding of the default one of the ``named`` thresholds, unless that is infinite."""
    threshold = float(named.get(known_name(named), {}).get("threshold", math.nan))
    # Half precision and the composition of batches move energies by up to 0.004 (float32: 4e-7).
    within = (score - threshold).abs() <= rounding
    return {"distance": rounding, "share": float(within.double().mean())} if math.isfinite(threshold) else None


def check_apart(evaluated: Tensor, train: Tensor, chosen_on: Tensor) -> None:
    """Refuse to evaluate on the training file, and warn about examples that thresholds are also chosen on.

    All arguments are keys, int64 ``(N,)``; the routing slice ``chosen_on`` is the part of the file outside ``train``.

    Raises:
        InputError: If half of the evaluation set, or more, is in the training file.
    """
    in_slice = torch.isin(evaluated, chosen_on)
    known, chosen, n = int((in_slice | torch.isin(evaluated, train)).sum()), int(in_slice.sum()), len(evaluated)
    if known >= MOSTLY * n:
        raise InputError(
            f"{known} of the {n} evaluated examples are in the training file, {chosen} of them in its {ROUTING_SLICE}, "
            "on which thresholds are chosen: are --data.train and --data.validation the same file? Give another one."
        )
    if chosen > FEW * n:
        notice(
            "evaluated-on-slice",
            f"{chosen} of the {n} evaluated examples are also in the {ROUTING_SLICE}, on which thresholds are chosen; "
            "the figures are optimistic by as much.",
        )


def check_manifest_apart(evaluated: Tensor, manifest: Manifest, statements: bool) -> None:
    """Refuse to evaluate a manifest's thresholds on the examples, by key ``(N,)``, that they were chosen on.

    With ``statements``, calibrated thresholds are also checked, each of which may have a slice of its own.

    Raises:
        InputError: If a tenth of the evaluation set was chosen on; or so much of it that half of it must be the
            training file, of which a threshold's slice is only a part.
    """
    fraction, n = manifest.routing_fraction, len(evaluated)
    chosen: list[tuple[str, dict[str, Any], float]] = [("Thresholds were", manifest.chosen_on, fraction)]
    for named in manifest.thresholds.values() if statements else ():
        for name, entry in named.items():
            if "statement" in entry:
                part = fraction if entry["chosen_on"].startswith("routing") else 0.0
                chosen.append((f"The threshold '{name}' was", entry, part))
    for subject, about, part in chosen:
        share = share_of_slice(evaluated, about)
        overlap = f"{subject} chosen on examples of which about {share * n:.0f} are among the {n} evaluated ones"
        if share >= SOME or (share >= MOSTLY * part > 0 and share * n >= _ENOUGH):
            raise InputError(
                f"{overlap if share < 1 else f'{subject} chosen on these very examples'}, so they cannot show whether "
                "a statement holds. Evaluate on others than the training file and what was calibrated on."
            )
        if share > FEW:
            notice("evaluated-on-slice", f"{overlap}; the figures are optimistic by as much.")


def length_bias(answers: PairAnswers) -> dict[str, Any]:
    """How much each score of generated texts follows their length, and what the decoder costs.

    Returns:
        ``source``, ``generated`` and ``gain``: for each score its Spearman correlation with the source's tokens, with
        the decoder's steps, and with the gain from deferring, which a good score follows; ``decoder_share``: the share
        of the Swift's FLOPs that is saved for an input that is deferred before the decoder runs.
    """
    ranked = spearman(0).whole
    assert ranked is not None
    more: dict[str, Any] = answers.more
    columns = {"source": more.get("swift_tokens"), "generated": more.get("swift_steps"), "gain": answers.gain}
    bias: dict[str, Any] = {
        what: {name: ranked(score.double(), values.double()) for name, score in answers.scores.items()}
        for what, values in columns.items()
        if values is not None
    }
    if answers.early_flops is not None:
        bias["decoder_share"] = float(1 - answers.early_flops.sum() / answers.swift_flops.sum())
    return bias
