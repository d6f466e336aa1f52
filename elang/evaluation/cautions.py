"""What limits an evaluation: nothing to gain, repeated texts, examples that training or a threshold has seen."""

import math
from typing import Any

from torch import Tensor

from elang.evaluation.labels import AGAIN, never_right, no_better_than_one
from elang.evaluation.pair import HALF_POINT, PairAnswers
from elang.evaluation.slices import FEW, independent_units
from elang.evaluation.summary import NO_PAIR, SWIFT_ALONE, EvaluatedPair, QualitySummary, Worth
from elang.evaluation.units import FLOPS, CostWords
from elang.method.bootstrap import mean_intervals
from elang.method.quality.labels import spearman
from elang.method.quality.texts import full_mark
from elang.records import WORTH_NAMING
from elang.records.manifest import Manifest, entry_speedup, known_name

# Share of the Super's cost from which a Swift is too dear; one of a third of the layers has a little more than a third.
_COSTLY_SWIFT = 0.35
# Points by which the Super may lead, by chance, and the Swift alone still be the choice; else examples are too few.
_NO_LEAD = 2.0


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
        f"the Super is not shown to be better {found}: asking it has little to gain, and what thresholds and "
        "scores do here may be chance. Evaluate on more examples; if it stays so, use the Swift alone or a "
        "better Super"
    )


def little_to_save(swift_cost: float, super_cost: float, words: CostWords = FLOPS) -> str:
    """What to say of a Swift with too large a part of the Super's cost; otherwise empty."""
    share = swift_cost / super_cost
    if not share > _COSTLY_SWIFT:
        return ""
    if share >= 1:
        return f"the Swift takes {share:.0%} of the Super's {words.of}, so {NO_PAIR}: are the two swapped"
    return (
        f"the Swift takes {share:.0%} of the Super's {words.of}, so no threshold can save more than {1 / share:.2f}x. "
        "A Swift of a third or less, better a tenth, can save more"
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
    chosen = "it was chosen badly"
    if count:
        chosen = f"it was chosen on {count:,} examples, which are too few, or unlike those that are evaluated here"
    # A threshold is advised only if here it saves something and keeps within half a point of the Super.
    good = [
        key
        for key, point in points.items()
        if not point.speedup <= WORTH_NAMING and (point.to_super or to_super)["difference"] >= -HALF_POINT * largest
    ]
    take = next((f"take '--threshold {key[10:]}', " for key in good if key.startswith("held out, ")), "")
    remedy = f"Hold out more (--data.routing_fraction), {take}or calibrate one (`elang calibrate`)"
    if not good:
        remedy = f"Here {NO_PAIR} without losing more than that: ask the Super alone, or train a better Swift"
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
    remedy = (
        f"On the slice these save something: {', '.join(saving)}"
        if saving
        else f"Or ask the Super alone: {NO_PAIR} here"
    )
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
        "answers, or use the thresholds of this evaluation (--thresholds)"
    ]


def cautions(
    answers: PairAnswers, label_names: list[str], worth: Worth, words: CostWords = FLOPS
) -> tuple[list[str], list[str]]:
    """Reasons in a pair's answers that deny its success, and others to trust its figures less.

    What to do instead comes first, where the Swift alone is clearly the choice.
    """
    denied, limited = list[str](), list[str]()
    swift_cost, super_cost = float(answers.swift_flops.mean()), float(answers.super_flops.mean())
    if said := little_to_save(swift_cost, super_cost, words):
        (denied if swift_cost >= super_cost else limited).append(said)
    if answers.kind.has_classes:
        for who, prediction in (("Swift", answers.swift), ("Super", answers.super_)):
            if (learned := no_better_than_one(prediction, answers.label, label_names)) is not None:
                denied.append(f"the {who} {learned}")
            elif labels := never_right(prediction, answers.label, label_names):
                limited.append(
                    f"the {who} is never right where the label is {labels}: it has not learned that, or its answers "
                    f"use other names. {AGAIN}"
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
        lead, shown_worse = 100 * float(gain.mean()), caution.startswith("the Super is worse")
        if not denied and worth.largest and lead < _NO_LEAD and swift_cost < super_cost and not shown_worse:
            denied.append(
                f"{SWIFT_ALONE}, unless another threshold is worth more to you: {super_cost / swift_cost:.2f}x "
                f"{words.less}, {abs(lead):.2f} points {'below' if lead >= 0 else 'above'} the Super"
            )
        denied.append(caution)
    return denied, limited


def repeated(key: Tensor, unit: Tensor | None) -> list[str]:
    """A caution if examples are not independent: texts ``(N,)`` that repeat, or that form groups ``(N,)``."""
    units, noun = independent_units(key, unit)
    if units >= (1 - FEW) * len(key):
        return []
    return [
        f"the {len(key):,} examples are only {units:,} {noun}. Intervals and p-values here count every example, so "
        "they are too narrow"
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
