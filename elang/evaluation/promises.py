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
from elang.evaluation.slices import Slice, slice_of
from elang.evaluation.statements import PROMISES, attempt, percent, restate
from elang.evaluation.summary import JointSummary
from elang.method.bounds import effective_number, least_examples, quantiles_of
from elang.method.certificate import certify_drop, certify_regret
from elang.method.curve.exact import operating_curve
from elang.method.curve.reading import at_budget, at_share
from elang.method.deferral import route
from elang.notices import notice
from elang.records.manifest import FILENAME


@dataclass(frozen=True)
class Request:
    """Which thresholds are to be chosen.

    Attributes:
        kind: What is to be kept: ``max_regret``, ``max_drop``, ``super_share``, ``flops`` or ``latency``.
        amounts: Of it, a threshold each.
        scores: That are to route, each with all amounts.
        confidence: Of a promise.
        part: The split of the records.
        name: Of the thresholds; of several amounts each is added to it.
    """

    kind: str
    amounts: list[float]
    scores: list[str]
    confidence: float
    part: str
    name: str

    @property
    def wanted(self) -> list[tuple[str, float]]:
        """Each score with each amount."""
        return list(product(self.scores, self.amounts))

    def name_of(self, amount: float) -> str:
        """The name of the threshold for an amount."""
        return self.name if len(self.amounts) == 1 else f"{self.name} {amount:g}"


def choose_entries(
    request: Request,
    slices: dict[str, Slice],
    summary: JointSummary,
    folder: Path,
    ledger: Path,
    fractions: list[float],
) -> dict[tuple[str, str], dict[str, Any]]:
    """Choose the thresholds that are asked for.

    Args:
        request: Which.
        slices: The examples that they are chosen on, with each of the scores.
        summary: Of the evaluation.
        folder: Of the evaluation.
        ledger: Counts the attempts on these examples.
        fractions: The shares that were held out of the training file, by the threshold files that are added to.

    Returns:
        Entries of ``elang.json`` by score and name.

    Raises:
        InputError: If nothing can be promised, with how many examples would be needed.
    """
    about = slice_of(slices[request.scores[0]].key)
    if request.kind in PROMISES:
        compared = _compared(slices, summary.weights.get("swift", ""), summary.temperature)
        chosen = _promises(request, slices, ledger, about=about, compared=compared, fractions=fractions)
    else:
        chosen = [
            by_budget(slices[score], request.kind, amount, summary.latency or {}) for score, amount in request.wanted
        ]
    return {
        (score, request.name_of(amount)): entry
        | about
        | {
            "chosen_on": f"{request.part} of {folder}",
            "effective_number": effective_number(slices[score].unit, len(slices[score].key)),
            "score_quantiles": quantiles_of(slices[score].score),
            "swift_sha256": summary.weights.get("swift", ""),
            "super_sha256": summary.weights.get("super", ""),
            "temperature": summary.temperature,
            **summary.conditions,
        }
        for (score, amount), entry in zip(request.wanted, chosen, strict=True)
    }


def _promises(
    request: Request,
    slices: dict[str, Slice],
    ledger: Path,
    about: dict[str, Any],
    compared: str,
    fractions: list[float],
) -> list[dict[str, Any]]:
    """Certify all scores and amounts together, as one attempt on their slice."""
    examples, fitted = slices[request.scores[0]], [score for score in request.scores if "router" in score]
    if request.part == "routing" and fitted:
        raise InputError(
            f"'{fitted[0]}' was fitted on the routing slice itself, so nothing can be certified of it there. Certify "
            "it on an evaluation set with --split, or another score."
        )
    if not examples.bounded:
        raise InputError(
            "Regret and drop can be certified where each answer is worth 0 to 1, and a regression's errors have no "
            "bound. --super_share, --flops and --latency choose thresholds without a promise about quality."
        )
    wanted, confidence = request.wanted, request.confidence
    asked = {"kind": request.kind, "of": [list(one) for one in wanted], "confidence": confidence, "models": compared}

    def check(level: float, number: int) -> None:
        _check_enough(examples, request, level / len(wanted), number=number, fractions=fractions)

    level, attempts, total = attempt(ledger, about, asked, error=1 - confidence, check=check)
    if 1 - total < confidence - 1e-12:
        notice(
            "spent-confidence",
            f"{attempts} attempts were made on these examples ('{ledger}'), so the promise has {percent(1 - total)} "
            f"confidence, not {percent(confidence)}. Scores and amounts that one command lists are one attempt.",
        )
    entries = []
    for score, amount in wanted:
        entry = _promise(slices[score], request.kind, amount, level=level / len(wanted), together=len(wanted))
        entry |= {"asked_confidence": confidence, "attempts": attempts, "confidence": 1 - total}
        restate(entry)
        entries.append(entry)
    return entries


def _compared(slices: dict[str, Slice], swift: str, temperature: float) -> str:
    """Hash of what is compared on a slice: the Swift by its weights or its scores, both by what deferring gains."""
    digest = hashlib.sha256(json.dumps([swift, temperature]).encode())
    for number, one in enumerate(slices.values()):
        order = one.key.argsort(stable=True)
        for values in [one.gain] * (not number) + [one.score.double()] * (not swift):
            digest.update(values[order].numpy().astype("<f8").tobytes())
    return digest.hexdigest()


def manifest_file(path: str | Path) -> Path:
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


def _check_enough(found: Slice, request: Request, level: float, number: int, fractions: list[float]) -> None:
    """Refuse a slice on which nothing can be certified, whatever the answers are."""
    kind, least, confidence = request.kind, min(request.amounts), 1 - level
    # Of the drop's two tests, each at half of the level, the regret's takes fewer.
    needed = least_examples(least, confidence if kind == "max_regret" else (1 + confidence) / 2)
    if found.units >= needed:
        return
    there = f"{found.units:,}"
    if found.rows > found.units:
        there += f" {found.noun} in {found.rows:,} rows"
    raise InputError(
        f"No threshold can be certified to a {kind.removeprefix('max_')} of {least:.3%} with {percent(confidence)} "
        f"confidence{f', as attempt {number} on these examples needs' if number > 1 else ''}: that takes at least "
        f"{needed:,} examples, even if all are deferred, and the slice has {there}. To get one, "
        f"{_too_few(found, needed, request.part, fractions, kind)}."
    )


def _promise(found: Slice, kind: str, allowed: float, level: float, together: int) -> dict[str, Any]:
    """Certify a regret or a drop at a level; ``together`` are tested so."""
    exact = found.worth == "right answers"
    certify = certify_regret if kind == "max_regret" else certify_drop
    certificate = certify(found.score, found.gain, allowed, confidence=1 - level, exact=exact, unit=found.unit)
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


def by_budget(found: Slice, kind: str, target: float, latency: dict[str, Any]) -> dict[str, Any]:
    """The threshold that keeps a budget: an entry of ``elang.json``.

    Args:
        found: The examples.
        kind: ``super_share``, ``flops`` or ``latency``.
        target: The budget.
        latency: :attr:`elang.evaluation.summary.JointSummary.latency`, empty where it was not measured.
    """
    swift, super_ = torch.zeros_like(found.gain), found.gain
    curve = operating_curve(
        found.score, swift[:, None], super_[:, None], lambda sums: sums[..., 0].double(), found.costs
    )
    if kind == "latency":
        if any("batch 1" not in latency.get(name, {}) for name in ("swift", "super")):
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
