"""What limits an evaluation: nothing to gain, repeated texts, examples that training or a threshold has seen."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from elang.errors import listed
from elang.evaluation.pair import HALF_POINT, PairAnswers
from elang.evaluation.slices import FEW, independent_units
from elang.evaluation.summary import EvaluatedPair, QualitySummary, Worth
from elang.method.bootstrap import mean_intervals
from elang.method.quality.labels import spearman
from elang.method.quality.metric import Quality
from elang.method.quality.texts import full_mark
from elang.records import WORTH_NAMING
from elang.records.manifest import Manifest, entry_speedup, known_name
from elang.tasks.kinds import measure

# With fewer examples, chance alone explains why none of a class is right.
_ENOUGH = 5
# What to do with a model that has learned too little, where the course of its training is not known.
_AGAIN = (
    "Where the validation loss that `elang fit` printed rose, train for fewer epochs (--trainer.max_epochs) or with a "
    "lower --model.lr; where it fell to the end, train longer"
)
# Share of the Super's cost from which a Swift is too dear; one of a third of the layers has a little more than a third.
_COSTLY_SWIFT = 0.35
# Points by which the Super may lead, by chance, and the Swift alone still be the choice; else examples are too few.
_NO_LEAD = 2.0


def never_right(prediction: Tensor, label: Tensor, label_names: list[str]) -> str:
    """The classes with five examples or more of which not one is answered right, in words; empty if there is none.

    Of the one with the most examples also what is answered instead. Predictions and labels are int64 ``(N,)``; a label
    is -1 if unknown, a prediction if it names no class.

    >>> never_right(torch.tensor([0] * 9), torch.tensor([0] * 4 + [1] * 5), ["a", "b"])
    "'b' (5 of the 5 examples of 'b' are answered 'a')"
    """
    right = (prediction == label) & (label >= 0)
    counts, hits = (x.bincount(minlength=len(label_names)).tolist() for x in (label[label >= 0], label[right]))
    never = [i for i in range(len(label_names)) if counts[i] >= _ENOUGH and hits[i] == 0]
    if not never:
        return ""
    worst = max(never, key=lambda i: counts[i])
    number, instead = (int(x) for x in (prediction[label == worst] + 1).bincount().max(0))
    answer = f"'{label_names[instead - 1]}'" if instead else "with none of the labels"
    names = listed([label_names[i] for i in never])
    return f"{names} ({number:,} of the {counts[worst]:,} examples of '{label_names[worst]}' are answered {answer})"


def little_to_gain(gain: Tensor, unit: str, bounded: bool = True) -> str:
    """A caution if the Super is not shown to be better than the Swift; otherwise empty.

    ``gain`` ``(N,)`` counts ``unit``, as a share of the largest worth if that is ``bounded``.
    """
    ends = (float(end) for end in (gain.double().mean(), *mean_intervals(gain[:, None])))
    mean, low, high = (100 * end + 0.0 if bounded else end for end in ends)
    if low > 0:
        return ""
    found = (
        f"than the Swift on these {len(gain):,} examples (difference {mean:+.2f}{' points' * bounded}, "
        f"{unit.partition(',')[0]}; 95% interval {low:+.2f} to {high:+.2f})"
    )
    if high < 0:
        return f"the Super is worse {found}: is it the right folder? If it is, use the Swift alone or a better Super"
    return (
        f"the Super is not shown to be better {found}: deferring has little to gain, and areas, thresholds and "
        "certificates mean little. Evaluate on more examples; if it stays so, use the Swift alone or a better Super"
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


def allows_the_lead(named: dict[str, dict[str, Any]], first: QualitySummary) -> list[str]:
    """A caution if the default one of the ``named`` thresholds may lose all of the Super's lead by the first metric."""
    name = known_name(named)
    allowed, lead = named.get(name, {}).get("allowed_drop"), first.super.quality - first.swift.quality
    if allowed is None or not 0 < lead <= allowed:
        return []
    allowed, lead = (100 * drop / full_mark(first.quality_name) for drop in (allowed, lead))
    costly = entry_speedup(named.get("parity", {})) <= WORTH_NAMING
    take = "Ask the Super alone" if costly else "Take '--threshold parity'"
    # Half a point is allowed on any number of examples.
    more = ", or hold out more examples to choose it on (--data.routing_fraction)" if allowed > 100 * HALF_POINT else ""
    return [
        f"the threshold '{name}' was allowed to lose {allowed:.2f} points, and the Super leads by {lead:.2f} here, so "
        f"it may lose all of the lead. {take}{more}"
    ]


def wrong_super(manifest: Manifest | None, about: EvaluatedPair) -> list[str]:
    """A caution if the Super is the Swift, or not the one that a ``manifest`` was made with."""
    known, current = "" if manifest is None else manifest.super_sha256, about.weights["super"]
    if about.weights["swift"] == current != "":
        return ["Swift and Super are the same model"]
    if not known or not current or known == current:
        return []
    return [
        f"the Swift's router and thresholds were made with the answers of another Super (weights {known[:12]}…) than "
        f"'{about.super_model}' (weights {current[:12]}…): is it the right folder? If it is, train the Swift on its "
        "answers"
    ]


def cautions(answers: PairAnswers, label_names: list[str], worth: Worth) -> tuple[list[str], list[str]]:
    """Reasons in a pair's answers that deny its success, and others to trust its figures less.

    What to do instead comes first, where the Swift alone is clearly the choice.
    """
    denied, limited = list[str](), list[str]()
    swift_cost, super_cost = float(answers.swift_flops.mean()), float(answers.super_flops.mean())
    if said := little_to_save(swift_cost, super_cost):
        (denied if swift_cost >= super_cost else limited).append(said)
    if answers.kind.has_classes:
        for who, prediction in (("Swift", answers.swift), ("Super", answers.super_)):
            if (learned := no_better_than_one(prediction, answers.label, label_names)) is not None:
                denied.append(f"the {who} {learned}")
            elif labels := never_right(prediction, answers.label, label_names):
                limited.append(
                    f"the {who} is never right where the label is {labels}: it has not learned that, or its answers "
                    f"use other names. {_AGAIN}"
                )
    for who in ("Swift", "Super"):
        extracted = answers.more.get(f"{who.lower()}_answer")
        if isinstance(extracted, list) and (missing := extracted.count(None)):
            limited.append(
                f"in {missing:,} of the {len(extracted):,} texts of the {who} no answer is found (--data.extract): "
                "they count as wrong"
            )
    gain = answers.gain / (worth.largest or 1.0)
    if caution := little_to_gain(gain, worth.unit, worth.largest is not None):
        lead = 100 * float(gain.mean())
        if not denied and worth.largest and 0 <= lead < _NO_LEAD and swift_cost < super_cost:
            denied.append(
                f"use the Swift alone, unless a row below is worth more to you: {super_cost / swift_cost:.2f}x fewer "
                f"FLOPs, {lead:.2f} points below the Super"
            )
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
