"""Thresholds that promise a regret, a drop or a budget, chosen on records that no model was trained on."""

import hashlib
import json
import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from elang.errors import InputError
from elang.evaluation.slices import Slice, describe_slice
from elang.evaluation.statements import PROMISES, attempt, percent, restate
from elang.evaluation.summary import JointSummary
from elang.evaluation.units import counted_in, words_of
from elang.method.bounds import effective_number, least_examples, quantiles_of
from elang.method.certificate import certify_drop, certify_regret
from elang.method.curve.exact import operating_curve
from elang.method.curve.reading import at_budget, at_share
from elang.method.deferral import route
from elang.notices import notice
from elang.records.manifest import FILENAME
from elang.tasks.sampling import tell_sampled


@dataclass(frozen=True)
class Request:
    """Which thresholds are to be chosen: one for each score and amount.

    Attributes:
        kind: What is bounded: ``max_regret``, ``max_drop``, ``super_share``, ``flops`` or ``latency``.
        amounts: Its bounds.
        scores: The scores that are to route.
        confidence: Of a promise.
        part: The split of the records.
        name: Of the thresholds; if there are several amounts, each is added to it.
    """

    kind: str
    amounts: list[float]
    scores: list[str]
    confidence: float
    part: str
    name: str


def choose_entries(
    request: Request,
    slices: dict[str, Slice],
    summary: JointSummary,
    *,
    folder: Path,
    ledger: Path,
    fractions: list[float],
) -> dict[tuple[str, str], dict[str, Any]]:
    """Choose the thresholds that are asked for, and return entries of ``elang.json`` by score and name.

    Args:
        request: Which.
        slices: The examples that they are chosen on, with each of the scores.
        summary: Of the evaluation.
        folder: Of the evaluation.
        ledger: Counts the attempts on these examples.
        fractions: The shares of the training file that were held out, by the threshold files to be updated.

    Raises:
        InputError: If nothing can be promised, with how many examples would be needed.
    """
    swift, latency = summary.weights.get("swift", ""), summary.latency or {}
    about, targets = describe_slice(slices[request.scores[0]].key), list(product(request.scores, request.amounts))
    if request.kind in PROMISES:
        compared = _compared_sha256(slices, swift, summary.temperature)
        chosen = _promises(request, slices, ledger, about=about, compared=compared, fractions=fractions)
    else:
        chosen = [by_budget(slices[score], request.kind, amount, latency=latency) for score, amount in targets]
    if summary.sampling:
        tell_sampled(summary.sampling, f"The answers of '{folder}'")
    entries = {}
    for (score, amount), entry in zip(targets, chosen, strict=True):
        name = request.name if len(request.amounts) == 1 else f"{request.name} {amount:g}"
        entries[score, name] = entry | about
        entries[score, name] |= {
            "chosen_on": f"{request.part} of {folder}",
            "effective_number": effective_number(slices[score].unit, len(slices[score].key)),
            "score_quantiles": quantiles_of(slices[score].score),
            "swift_sha256": swift,
            "super_sha256": summary.weights.get("super", ""),
            "temperature": summary.temperature,
            **summary.conditions,
            **({"denial": summary.denial} if summary.denial else {}),
        }
    return entries


def _promises(
    request: Request,
    slices: dict[str, Slice],
    ledger: Path,
    *,
    about: dict[str, Any],
    compared: str,
    fractions: list[float],
) -> list[dict[str, Any]]:
    """Certify all scores and amounts together, as one attempt on their slice."""
    examples = slices[request.scores[0]]
    routers = [score for score in request.scores if "router" in score]
    if request.part == "routing" and routers:
        raise InputError(
            f"'{routers[0]}' was fitted on the routing slice itself, so nothing can be certified for it there. Certify "
            "it on an evaluation set with --split, or another score."
        )
    if not examples.bounded:
        raise InputError(
            "Regret and drop can be certified where each answer is worth 0 to 1, but a regression's errors have no "
            "bound. --super_share, --flops and --latency choose thresholds without a promise about quality."
        )
    targets, confidence = list(product(request.scores, request.amounts)), request.confidence
    asked = {"kind": request.kind, "of": list(map(list, targets)), "confidence": confidence, "models": compared}

    def check(level: float, number: int) -> None:
        _check_enough(examples, request, level=level / len(targets), number=number, fractions=fractions)

    level, attempts, total = attempt(ledger, about, asked, error=1 - confidence, check=check)
    if 1 - total < confidence - 1e-12:
        notice(
            "spent-confidence",
            f"{attempts} attempts were made on these examples ('{ledger}'), so the promise has {percent(1 - total)} "
            f"confidence, not {percent(confidence)}. Scores and amounts in one command are one attempt.",
        )
    entries = []
    for score, amount in targets:
        entry = _promise(slices[score], request.kind, amount, level=level / len(targets), together=len(targets))
        entry |= {"asked_confidence": confidence, "attempts": attempts, "confidence": 1 - total}
        restate(entry)
        entries.append(entry)
    return entries


def _compared_sha256(slices: dict[str, Slice], swift: str, temperature: float) -> str:
    """Hash of what is compared on a slice: the Swift, by its weights or its scores, and the gain from deferring."""
    digest = hashlib.sha256(json.dumps([swift, temperature]).encode())
    first = next(iter(slices.values()))
    scores = [] if swift else [examples.score.double() for examples in slices.values()]
    for values in [first.gain, *scores]:
        digest.update(values[first.key.argsort(stable=True)].numpy().astype("<f8").tobytes())
    return digest.hexdigest()


def manifest_file(path: str | Path) -> Path:
    """The ``elang.json`` of a folder, or the file itself."""
    return Path(path) / FILENAME if Path(path).is_dir() else Path(path)


def _entry(examples: Slice, threshold: float, *, rule: str, statement: str, **more: Any) -> dict[str, Any]:
    """An entry of ``elang.json``, whose statement also says what the threshold does on these examples."""
    hard = route(examples.score, threshold)
    share = float(hard.double().mean())
    paid = examples.costs.of(hard, threshold)
    speedup = float(examples.costs.super_.double().mean() / paid.mean())
    statement += f" In calibration, {share:.1%} of the inputs were deferred"
    saving = words_of(examples.convention).saving
    statement += "." if math.isnan(speedup) else f", which makes a {saving} of {speedup:.2f}x."
    if speedup < 1:
        statement += " The pair costs more than the Super alone."
    return {
        "threshold": threshold,
        "rule": rule,
        "statement": statement,
        "num_examples": examples.units,
        "deferred_share": share,
        "speedup": speedup,
        **counted_in(examples.convention),
        **more,
    }


def _check_enough(examples: Slice, request: Request, *, level: float, number: int, fractions: list[float]) -> None:
    """Refuse a slice on which nothing can be certified, whatever the answers are."""
    kind, least, confidence = request.kind, min(request.amounts), 1 - level
    # The drop has two tests, each at half of the level; the one of the regret needs fewer examples.
    needed = least_examples(least, confidence if kind == "max_regret" else (1 + confidence) / 2)
    if examples.units >= needed:
        return
    size = f"{examples.units:,}"
    if examples.rows > examples.units:
        size += f" {examples.noun} in {examples.rows:,} rows"
    remedies = _too_few(examples, needed, request.part, fractions=fractions, kind=kind)
    raise InputError(
        f"No threshold can be certified to a {kind.removeprefix('max_')} of {least:.3%} with {percent(confidence)} "
        f"confidence{f', as attempt {number} on these examples needs' if number > 1 else ''}: that takes at least "
        f"{needed:,} examples, even if all are deferred, and the slice has {size}. To get one, {remedies}."
    )


def _too_few(examples: Slice, needed: int, part: str, *, fractions: list[float], kind: str) -> str:
    """What to do if a split has fewer than ``needed`` examples."""
    remedies = [
        f"give --split {name}, which has {count:,} (evaluate on others then)"
        for name, count in examples.splits.items()
        if name not in (part, "routing") and count >= needed
    ]
    # The size of a slice varies by the square root of its mean.
    fraction, largest = fractions[0], max(fractions)
    wider = math.ceil(fraction * (needed + 2 * math.sqrt(needed) + 2) / examples.units * 100) / 100
    if part != "routing":
        remedies.append(f"evaluate on more examples of '{part}'")
    elif 0 < wider <= largest:
        remedies.append(
            f"run `elang validate` with --data.routing_fraction {largest:g}, which the Swift was trained with"
        )
    elif 0 < wider <= 0.5:
        remedies.append(
            f"hold out more by --data.routing_fraction {wider:g} or above (it was {fraction:g}), and make the Super, "
            "its answers and the Swift again"
        )
    return ", or ".join([*remedies, f"allow more (a larger --{kind}, a smaller --confidence)"])


def _promise(examples: Slice, kind: str, allowed: float, *, level: float, together: int) -> dict[str, Any]:
    """Certify a regret or a drop at a level, which is one of ``together`` tests."""
    exact = examples.worth == "right answers"
    certify = certify_regret if kind == "max_regret" else certify_drop
    score, gain = examples.score, examples.gain
    certificate = certify(score, gain, allowed, confidence=1 - level, exact=exact, unit=examples.unit)
    assert certificate is not None, "that there are enough examples was checked before"
    evidence = f"the {examples.units:,} {examples.noun} that chose it (p = {certificate.p_value:.2g})."
    if kind == "max_drop":
        unit = "share of right answers" if exact else examples.worth
        claim = f"On new inputs like these, the pair's mean worth ({unit}) is at most {allowed:.3g} below the Super's"
        evidence = f"it was {certificate.regretted / examples.units:.4f} on {evidence}"
    else:
        claim = (
            f"On new inputs like these, at most {100 * allowed:.3g}% of an answer's worth ({examples.worth}) is lost "
            "to the Super on an input"
        )
        lost = "{:.4g} was lost on "
        if exact:
            claim = (
                f"For at most {100 * allowed:.3g}% of new inputs like these the Swift's answer is used and wrong "
                "although the Super's is right"
            )
            lost = "so it was for {:.4g} of "
        evidence = lost.format(certificate.regretted) + evidence
    if examples.unit is not None:
        claim += ", each group counting once"
    if together > 1:
        evidence += f" {together} promises were tested together."
    if certificate.threshold == -math.inf:
        evidence += " That is only because everything is deferred: no score is trusted at this level."
    entry = _entry(
        examples,
        certificate.threshold,
        rule=f"least deferral with a {kind.removeprefix('max_')} of at most {allowed:g}, tested at the level "
        f"{level:g} (fixed-sequence testing)",
        statement=evidence,
        p_value=certificate.p_value,
        level=level,
        claim=claim,
    )
    entry |= {kind: allowed, "regretted" if kind == "max_regret" else "lost": certificate.regretted}
    return entry | {"evidence": entry.pop("statement")}


def by_budget(examples: Slice, kind: str, target: float, *, latency: dict[str, Any]) -> dict[str, Any]:
    """The threshold that stays within a budget of a kind: an entry of ``elang.json``. ``latency`` is the summary's."""
    gain = examples.gain[:, None]
    curve = operating_curve(
        examples.score, torch.zeros_like(gain), gain, value=lambda sums: sums[..., 0].double(), costs=examples.costs
    )
    if kind == "latency":
        if any("batch 1" not in latency.get(name, {}) for name in ("swift", "super")):
            raise InputError("--latency reads what `elang validate --model.latency true` measured; run it so.")
        swift, super_ = (float(latency[name]["batch 1"]) for name in ("swift", "super"))
        if target < swift:
            raise InputError(f"The Swift alone takes {swift:.4g} s an input, more than --latency {target:g}.")
        # The Super alone, where everything is deferred, does not wait for the Swift.
        index = at_share(curve, 1.0 if target >= super_ else (target - swift) / super_)
        rule = f"most deferral within {target:g} s an input at batch 1"
        statement = f"An input takes at most {target:.4g} s at batch 1 on average, measured one by one."
    elif kind == "flops":
        if math.isnan(curve.super_cost):
            raise InputError(
                "The records do not say what the Super costs: give --model.super_flops to `elang validate`."
            )
        index = at_budget(curve, target * curve.super_cost)
        whole = f"of the Super's {words_of(examples.convention).of}"
        rule, statement = f"best quality within {target:g} {whole}", f"The pair takes at most {target:.3g} {whole}."
    else:
        index, rule = at_share(curve, target), f"most deferral up to {target:g} of the inputs"
        statement = f"The Super answers at most {target:.3g} of the inputs."
    statement += " Nothing is promised of its quality."
    return _entry(examples, float(curve.threshold[index]), rule=rule, statement=statement, **{kind: target})
