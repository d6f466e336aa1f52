"""Thresholds that promise a regret, a drop or a budget, chosen on records that no model was trained on."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch

from elang.errors import InputError
from elang.evaluation.curves import FRACTIONS, SHARES
from elang.evaluation.slices import Slice
from elang.evaluation.statements import PROMISES, attempt, percent, restate
from elang.evaluation.summary import JointSummary
from elang.method.bounds import least_examples
from elang.method.certificate import certify_drop, certify_regret
from elang.method.curve.exact import operating_curve
from elang.method.curve.reading import at_budget, at_share
from elang.method.deferral import route
from elang.method.drift import effective_number, quantiles_of
from elang.notices import notice
from elang.records.manifest import FILENAME

# Less cannot be certified on any data that fits on a disk.
_LEAST = 1e-9


def conditions(summary: JointSummary, found: Slice, where: str) -> dict[str, Any]:
    """What an entry says of how it was chosen."""
    return {
        "chosen_on": where,
        "effective_number": effective_number(found.unit, len(found.key)),
        "score_quantiles": quantiles_of(found.score),
        "swift_sha256": summary.weights.get("swift", ""),
        "super_sha256": summary.weights.get("super", ""),
        "temperature": summary.temperature,
        **summary.conditions,
    }


def promises(
    slices: dict[str, Slice],
    kind: str,
    wanted: list[tuple[str, float]],
    confidence: float,
    part: str,
    fractions: list[float],
    ledger: Path,
    about: dict[str, Any],
    models: str,
) -> list[dict[str, Any]]:
    """Certify a list of scores and amounts together, as one attempt on their slice."""
    found, scores = next(iter(slices.values())), [one for one in slices if "router" in one]
    if part == "routing" and scores:
        raise InputError(
            f"'{scores[0]}' was fitted on the routing slice itself, so nothing can be certified of it there. Certify "
            "it on an evaluation set with --split, or another score."
        )
    if not found.bounded:
        raise InputError(
            "Regret and drop can be certified where each answer is worth 0 to 1, and a regression's errors have no "
            "bound. --super_share, --flops and --latency choose thresholds without a promise about quality."
        )
    least, many = min(target for _, target in wanted), len(wanted)
    asked = {"kind": kind, "of": [list(one) for one in wanted], "confidence": confidence, "models": models}

    def check(level: float, number: int) -> None:
        _check_enough(found, kind, least, level / many, number, part, fractions)

    level, attempts, total = attempt(ledger, about, asked, 1 - confidence, check)
    if 1 - total < confidence - 1e-12:
        notice(
            "spent-confidence",
            f"{attempts} attempts were made on these examples ('{ledger}'), so the promise has {percent(1 - total)} "
            f"confidence, not {percent(confidence)}. Scores and amounts that one command lists are one attempt.",
        )
    entries = []
    for score, target in wanted:
        entry = _promise(slices[score], kind, target, level / many, many)
        entry |= {"asked_confidence": confidence, "attempts": attempts, "confidence": 1 - total}
        restate(entry)
        entries.append(entry)
    return entries


def check_options(kind: str, targets: list[float], confidence: float, name: str) -> None:
    """Refuse a confidence, a target or a name that makes no sense."""
    if not 0 < confidence < 1:
        raise InputError(f"--confidence must be between 0 and 1, but it is {confidence}.")
    if not targets:
        raise InputError(f"--{kind} needs an amount.")
    for target in targets:
        if not (target > 0 and (kind == "latency" or target < 1)):
            raise InputError(
                f"--{kind} must be above 0{'' if kind == 'latency' else ' and below 1'}, but it is {target}."
            )
        if kind in PROMISES and target < _LEAST:
            raise InputError(f"--{kind} must be at least {_LEAST:g}, but it is {target}: that takes too many examples.")
    try:
        float(name)
    except ValueError:
        if name.strip() and name not in {*FRACTIONS, *SHARES}:
            return
    raise InputError(
        f"--name cannot be '{name}': `elang predict --threshold` reads a number as a threshold, and the names of the "
        f"thresholds that `elang validate` chooses are taken ({', '.join([*FRACTIONS, *SHARES])})."
    )


def models(slices: dict[str, Slice], swift: str, temperature: float) -> str:
    """Hash of what is compared on a slice: the Swift by its weights or its scores, both by what deferring gains."""
    digest = hashlib.sha256(json.dumps([swift, temperature]).encode())
    for number, one in enumerate(slices.values()):
        order = one.key.argsort(stable=True)
        for values in [one.gain] * (not number) + [one.score.double()] * (not swift):
            digest.update(values[order].numpy().astype("<f8").tobytes())
    return digest.hexdigest()


def manifest_file(path: str) -> Path:
    """The ``elang.json`` of a folder, or the file itself."""
    return Path(path) / FILENAME if Path(path).is_dir() else Path(path)


def _entry(found: Slice, threshold: float, rule: str, statement: str, **more: Any) -> dict[str, Any]:
    share = float(route(found.score, threshold).double().mean())
    kept, deferred = found.costs.kept_and_deferred
    pair = torch.where(route(found.score, threshold), deferred, kept).mean()
    speedup = float(found.costs.super_.mean() / pair)
    statement += f" There {share:.1%} of the inputs were deferred"
    statement += "." if math.isnan(speedup) else f", which makes a FLOPs speed-up of {speedup:.2f}x."
    if speedup < 1:
        statement += " The pair costs more than the Super alone."
    return {
        "threshold": threshold,
        "rule": rule,
        "statement": statement,
        "num_examples": found.units,
        "deferred_share": share,
        "speedup": speedup,
        **more,
    }


def _too_few(found: Slice, needed: int, part: str, fractions: list[float], kind: str = "max_regret") -> str:
    """What to do where a split has fewer examples than ``needed``."""
    n = found.units
    ways = [
        f"give --split {name}, which has {k:,} (evaluate on others then)"
        for name, k in found.splits.items()
        if name not in (part, "routing") and k >= needed
    ]
    # How many fall into a slice varies by the root of their number.
    own, most = fractions[0], max(fractions)
    wider = math.ceil(own * (needed + 2 * math.sqrt(needed) + 2) / n * 100) / 100
    if part == "routing" and 0 < wider <= most:
        ways.append(f"run `elang validate` with --data.routing_fraction {most:g}, which the Swift was trained with")
    elif part == "routing" and 0 < wider <= 0.5:
        ways.append(
            f"hold out more by --data.routing_fraction {wider:g} or above (it was {own:g}), from the Super on: it, its "
            "answers and the Swift are made anew"
        )
    elif part != "routing":
        ways.append(f"evaluate on more examples of '{part}'")
    return ", or ".join([*ways, f"allow more (a larger --{kind}, a smaller --confidence)"])


def _check_enough(
    found: Slice, kind: str, allowed: float, level: float, number: int, part: str, fractions: list[float]
) -> None:
    """Refuse a slice on which nothing can be certified, whatever the answers are."""
    what, confidence = kind.removeprefix("max_"), 1 - level
    # Of the drop's two tests, each at half of the level, the regret's takes fewer.
    needed = least_examples(allowed, confidence if kind == "max_regret" else (1 + confidence) / 2)
    if found.units >= needed:
        return
    there = f"{found.units:,}"
    if found.rows > found.units:
        there += f" {found.noun} in {found.rows:,} rows"
    raise InputError(
        f"No threshold can be certified to a {what} of {allowed:.3%} with {percent(confidence)} confidence"
        f"{f', as attempt {number} on these examples needs' if number > 1 else ''}: that takes at least {needed:,} "
        f"examples, even if all are deferred, and the slice has {there}. To get one, "
        f"{_too_few(found, needed, part, fractions, kind)}."
    )


def _promise(found: Slice, kind: str, allowed: float, level: float, together: int) -> dict[str, Any]:
    """Certify a regret or a drop at a level; ``together`` are tested so."""
    exact = found.worth == "right answers"
    certify = certify_regret if kind == "max_regret" else certify_drop
    certificate = certify(found.score, found.gain, allowed, 1 - level, exact, found.unit)
    assert certificate is not None, "that there are enough examples was checked before"
    on = f"{found.units:,} {found.noun} (p = {certificate.p_value:.2g})."
    if kind == "max_drop":
        unit = "share of right answers" if exact else found.worth
        claim = f"On new inputs like these, the pair's mean worth ({unit}) is at most {allowed:.3g} below the Super's"
        evidence = f"by {certificate.regretted / found.units:.4f} on {on}"
    else:
        claim = f"On new inputs like these, at most {100 * allowed:.3g}% of an answer's worth ({found.worth}) is lost"
        claim += " to the Super on an input"
        if exact:
            claim = (
                f"For at most {100 * allowed:.3g}% of new inputs like these the Swift's answer is used and wrong "
                "although the Super's is right"
            )
        evidence = f"{certificate.regretted:.4g} of {on}"
    if found.unit is not None:
        claim += ", each group counting once"
    if together > 1:
        evidence += f" {together} promises were tested together."
    if certificate.threshold == -math.inf:
        evidence += " That is only so because everything is deferred: no score is trusted at this level."
    what = kind.removeprefix("max_")
    rule = (
        f"least deferral with a {what} of at most {allowed:g}, tested at the level {level:g} (fixed-sequence testing)"
    )
    more = {"p_value": certificate.p_value, "level": level, kind: allowed, "claim": claim}
    more["regretted" if kind == "max_regret" else "lost"] = certificate.regretted
    entry = _entry(found, certificate.threshold, rule, evidence, **more)
    return entry | {"evidence": entry.pop("statement")}


def by_budget(found: Slice, kind: str, target: float, summary: JointSummary) -> dict[str, Any]:
    """The threshold that keeps a budget of FLOPs or of deferred inputs: an entry of ``elang.json``."""
    swift, super_ = torch.zeros_like(found.gain), found.gain
    curve = operating_curve(
        found.score, swift[:, None], super_[:, None], lambda sums: sums[..., 0].double(), found.costs
    )
    if kind == "latency":
        latency = summary.latency or {}
        if not {"swift", "super"} <= latency.keys():
            raise InputError("--latency reads what `elang validate --model.latency true` measured; run it so.")
        swift_s, super_s = (float(latency[name]["batch 1"]) for name in ("swift", "super"))
        if target < swift_s:
            raise InputError(f"The Swift alone takes {swift_s:.4g} s an input, more than --latency {target:g}.")
        share = min(1.0, (target - swift_s) / super_s)
        index, rule = at_share(curve, share), f"most deferral within {target:g} s an input at batch 1"
        statement = f"An input takes at most {target:.4g} s at batch 1 on average, measured one by one."
    elif kind == "flops":
        if math.isnan(curve.super_cost):
            raise InputError(
                "The records do not say what the Super costs: give --model.super_flops to `elang validate`."
            )
        index, rule = (
            at_budget(curve, target * curve.super_cost),
            f"best quality within {target:g} of the Super's FLOPs",
        )
        statement = f"The pair takes at most {target:.3g} of the Super's FLOPs."
    else:
        index, rule = at_share(curve, target), f"most deferral up to {target:g} of the inputs"
        statement = f"The Super answers at most {target:.3g} of the inputs."
    statement += " Nothing is promised of its quality."
    return _entry(found, float(curve.threshold[index]), rule, statement, **{kind: target})
