"""`elang calibrate`: an operating point that is promised something, chosen on records that no model was trained on."""

import hashlib
import math
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from elang.bootstrap import resamples
from elang.certificate import (
    certify_regret,
    drift,
    least_examples,
    quantiles_of,
    regret_at,
    upper_bound,
)
from elang.columns import numbers, read_parquet
from elang.curve import at_budget, at_share, deferral_events, operating_curve
from elang.errors import InputError
from elang.evaluate import little_to_gain, swift_cost_columns
from elang.manifest import FILENAME, Manifest
from elang.records import read_about
from elang.scores import route
from elang.summary import read_summary

DRIFT_P = 0.01
_GRID = 1001


@dataclass
class Slice:
    """One split of a pair's records.

    Attributes:
        key: int64 ``(N,)``.
        score: The score that routes, ``(N,)``.
        gain: How much better the Super's answer is, float64 ``(N,)``, each answer being worth 0 to 1.
        costs: FLOPs of the Swift where it is kept, of the Super, and of the Swift where it is deferred, each ``(N,)``.
        unit: What ``gain`` counts.
        bounded: It cannot be more.
        splits: How many examples each split of the records has.
    """

    key: Tensor
    score: Tensor
    gain: Tensor
    costs: tuple[Tensor, Tensor, Tensor]
    unit: str
    bounded: bool = True
    splits: dict[str, int] = field(default_factory=dict)


def slice_sha256(key: Tensor) -> str:
    """Hash of some examples by their keys, int64 ``(N,)``, in whatever order."""
    return hashlib.sha256(key.sort().values.numpy().astype("<i8").tobytes()).hexdigest()


def calibrate(
    joint: str,
    max_regret: float | None = None,
    max_drop: float | None = None,
    super_share: float | None = None,
    flops: float | None = None,
    latency: float | None = None,
    confidence: float = 0.95,
    score: str | None = None,
    split: Literal["routing", "validation", "test"] | None = None,
    name: str = "certified",
    output: str | None = None,
) -> None:
    """Choose a threshold that keeps a promise on new inputs, and write it with its statement into ``elang.json``.

    Say what is to be kept by exactly one of the first five options. Regret is the share of inputs that the Swift keeps
    and gets wrong where the Super is right; a bound on it is a certificate: exact binomial tests, in a fixed sequence.
    A bound on the drop of quality is a bootstrap's; shares and budgets promise nothing about quality.

    Args:
        joint: Folder that `elang validate` wrote: ``records.parquet`` and ``elang.json``.
        max_regret: Regret that is allowed, as in 0.01.
        max_drop: Drop below the Super's mean (accuracy, or whatever an answer is worth) that is allowed, as in 0.005.
        super_share: Share of inputs that the Super may answer.
        flops: FLOPs of the pair as a share of the Super's alone.
        latency: Mean seconds of an input at batch 1, by the latencies of `elang validate --model.latency true`.
        confidence: Of the promise.
        score: Which score routes; by default the Swift's own.
        split: Of the records. It must be held out from both models' training, and cannot be evaluated on afterwards. By
            default the routing slice or, for a router, which was fitted on that, the evaluation set.
        name: Of the threshold, for `elang predict --threshold NAME`.
        output: Another ``elang.json``, or its folder, that it is added to beside that of ``joint``: the Swift's.

    Raises:
        InputError: If nothing can be promised, with how many examples would be needed.
    """
    asked = {"max_regret": max_regret, "max_drop": max_drop, "super_share": super_share, "flops": flops}
    given = {key: value for key, value in (asked | {"latency": latency}).items() if value is not None}
    if len(given) != 1:
        raise InputError(
            f"Give one of --max_regret, --max_drop, --super_share, --flops and --latency, not {len(given)} of them."
        )
    ((kind, target),) = given.items()
    if not 0 < confidence < 1:
        raise InputError(f"--confidence must be between 0 and 1, but it is {confidence}.")
    if not (target > 0 and (kind == "latency" or target < 1)):
        raise InputError(f"--{kind} must be above 0{'' if kind == 'latency' else ' and below 1'}, but it is {target}.")
    folder = Path(joint)
    summary = read_summary(folder)
    paths = list(dict.fromkeys(_file(path) for path in (joint, output) if path is not None))
    manifests = {path: Manifest.read(path) for path in paths if path.is_file() or path != _file(joint)}
    if not manifests:
        raise InputError(f"'{folder}' has no {FILENAME}. Name the Swift's with --output.")
    weights = summary.get("weights", {})
    for path, manifest in manifests.items():
        if (own := weights.get("swift")) and manifest.weights_sha256 not in ("", own):
            raise InputError(
                f"'{path}' is of another Swift (weights {manifest.weights_sha256[:12]}…) than the one of '{folder}', "
                f"'{summary['swift_model']}' (weights {own[:12]}…). Give that one's folder as --output."
            )
        if manifest.temperature != summary["temperature"]:
            raise InputError(
                f"'{path}' is for the temperature {manifest.temperature}, and the records' scores are of "
                f"{summary['temperature']}. Run `elang validate` with --model.temperature {manifest.temperature}."
            )
    score = score or summary["score"]
    part: str = split or (summary["evaluated_on"] if "router" in score else "routing")
    found = read_slice(folder, part, score)
    if kind == "max_regret" and part == "routing" and "router" in score:
        raise InputError(
            f"'{score}' was fitted on the routing slice itself, so nothing can be certified of it there. Certify it on "
            "an evaluation set with --split, or another score."
        )
    if kind == "max_regret":
        fractions = [manifest.routing_fraction for manifest in manifests.values()]
        entry = _by_regret(found, target, confidence, part, fractions)
    elif kind == "max_drop":
        entry = _by_drop(found, target, confidence)
    else:
        entry = _by_budget(found, kind, target, summary)
    entry |= {
        "chosen_on": f"{part} of {folder}",
        "slice_sha256": slice_sha256(found.key),
        "score_quantiles": quantiles_of(found.score),
        "swift_sha256": weights.get("swift", ""),
        "super_sha256": weights.get("super", ""),
    }
    print(f"{entry['statement']}\nIt was chosen on the {len(found.key)} examples of {entry['chosen_on']}.")  # noqa: T201
    if said := little_to_gain(found.gain):
        print(f"Caution: {said}.")  # noqa: T201
    for path, manifest in manifests.items():
        manifest.thresholds.setdefault(score, {})[name] = entry
        manifest.write(path)
        print(f"It is the threshold '{name}' of '{score}' in {path}.")  # noqa: T201


def _file(path: str) -> Path:
    return Path(path) / FILENAME if Path(path).is_dir() else Path(path)


def read_slice(folder: Path, split: str, score: str) -> Slice:
    """Read one split of a pair's records.

    Raises:
        InputError: If the split or the score is not there.
    """
    path = folder / "records.parquet"
    try:
        frame, _ = read_parquet(path)
        worth = read_about(path).get("worth", {"unit": "", "largest": None})
        largest = float(worth["largest"] or 1.0)
        splits = {str(name): int(n) for name, n in frame["split"].value_counts().sort_index().items()}
    except Exception as error:  # whatever the readers say of a damaged file
        raise InputError(f"The records '{path}' cannot be read ({error}). Run `elang validate` again.") from error
    known = [str(column).removeprefix("score_") for column in frame if str(column).startswith("score_")]
    if score not in known:
        raise InputError(f"The records have no score '{score}'; choose one of {', '.join(known)}.")
    part = frame[frame["split"] == split]
    if not len(part):
        raise InputError(f"The records have no split '{split}', only {', '.join(splits)}. Name one with --split.")
    if "gain" not in part:
        raise InputError(f"The records '{path}' do not say what deferring gains. Run `elang validate` again.")

    def cost(name: str) -> Tensor:
        known = numbers(part, name, str(path), least=0, unknown=True)
        return torch.from_numpy(np.full(len(part), np.nan) if known is None else known)

    try:
        kept, deferred = (reduce(add, map(cost, names)) for names in swift_cost_columns(score, part))
        costs = kept, cost("super_flops"), deferred
        gain = torch.from_numpy(numbers(part, "gain", str(path))) / largest
        numbers(part, f"score_{score}", str(path))
        # In its own precision.
        own = (
            torch.from_numpy(numbers(part, "key", str(path), whole=True)),
            torch.tensor(part[f"score_{score}"].to_numpy()),
        )
        return Slice(*own, gain, costs, str(worth["unit"]), worth["largest"] is not None, splits)
    except Exception as error:  # the same of its values
        raise InputError(f"The records '{path}' are damaged ({error}). Run `elang validate` again.") from error


def _entry(found: Slice, threshold: float, rule: str, statement: str, **more: Any) -> dict[str, Any]:
    share = float(route(found.score, threshold).double().mean())
    pair = torch.where(route(found.score, threshold), found.costs[2] + found.costs[1], found.costs[0]).mean()
    speedup = float(found.costs[1].mean() / pair)
    statement += f" There {share:.1%} of the inputs were deferred"
    statement += "." if math.isnan(speedup) else f", which makes a FLOPs speed-up of {speedup:.2f}x."
    if speedup < 1:
        statement += " The pair costs more than the Super alone."
    return {
        "threshold": threshold,
        "rule": rule,
        "statement": statement,
        "num_examples": len(found.gain),
        "deferred_share": share,
        "speedup": speedup,
        **more,
    }


def _too_few(found: Slice, needed: int, part: str, fractions: list[float]) -> str:
    """What to do where a split has fewer examples than ``needed``."""
    n = len(found.gain)
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
    return ", or ".join([*ways, "allow more (a larger --max_regret, a smaller --confidence)"])


def _by_regret(found: Slice, allowed: float, confidence: float, part: str, fractions: list[float]) -> dict[str, Any]:
    n = len(found.gain)
    if not found.bounded:
        raise InputError(
            "A regret can be certified where each answer is worth 0 to 1, and a regression's errors have no bound. "
            "--max_drop bootstraps them."
        )
    certificate = certify_regret(found.score, found.gain, allowed, confidence, found.unit == "right answers")
    if certificate is None:
        needed = least_examples(allowed, confidence)
        raise InputError(
            f"No threshold can be certified to a regret of {allowed:.3%} with {confidence:.1%} confidence: that takes "
            f"at least {needed:,} examples, even if all are deferred, and the slice has {n:,}. To get one, "
            f"{_too_few(found, needed, part, fractions)}."
        )
    what = "of the inputs are kept and answered wrong where the Super is right"
    if not bool(((found.gain.abs() == 1) | (found.gain == 0)).all()):
        what = f"of an answer's worth ({found.unit}) is lost to the Super on an input"
    statement = (
        f"On new inputs like these, at most {100 * allowed:.3g}% {what}, with {100 * confidence:.3g}% "
        f"confidence: {certificate.regretted:.4g} of {n:,} examples (p = {certificate.p_value:.2g})."
    )
    if certificate.threshold == -math.inf:
        statement += " That is only so because everything is deferred: no score is trusted at this level."
    more = {key: value for key, value in asdict(certificate).items() if key in ("regretted", "p_value")}
    rule = f"least deferral with a regret of at most {allowed:g} at {confidence:g} confidence (fixed-sequence testing)"
    return _entry(found, certificate.threshold, rule, statement, max_regret=allowed, confidence=confidence, **more)


def drops(score: Tensor, gain: Tensor, times: int = 2000, grid: int = _GRID) -> tuple[Tensor, Tensor]:
    """How far the pair is below the Super at thresholds from all deferred to all kept, with resamples.

    Args:
        score: Shape ``(N,)``.
        gain: Shape ``(N,)``.
        times: Resamples ``R``.
        grid: Thresholds at most, spread evenly over the distinct scores.

    Returns:
        Thresholds, descending in deferral, ``(M,)`` and the drop, ``(1 + R, M)``; the first row is the examples' own.
    """
    order, deferred, thresholds = deferral_events(score)
    own = gain.double()[order.flip(0)]
    chosen = torch.linspace(0, len(deferred) - 1, min(len(deferred), grid)).round().long()
    kept = (len(own) - deferred).flip(0)[chosen]
    rows = [own.cumsum(0)[None] / len(own)]
    for part in resamples(len(own), times).split(100):
        rows.append((part * own).cumsum(1) / len(own))
    sums = torch.nn.functional.pad(torch.cat([row[:, kept[1:] - 1] for row in rows]), (1, 0))
    return thresholds.flip(0)[chosen], sums


def _by_drop(found: Slice, allowed: float, confidence: float) -> dict[str, Any]:
    thresholds, sums = drops(found.score, found.gain)
    bound = sums[1:].quantile(confidence, dim=0)
    failed = (bound > allowed).nonzero()
    last = int(failed[0]) - 1 if len(failed) else len(bound) - 1
    rule = f"least deferral before the {confidence:g} quantile of the bootstrapped drop first exceeds {allowed:g}"
    statement = (
        f"On new inputs like these, the pair is at most {allowed:.3g} ({found.unit}) below the Super, by a bootstrap "
        f"at {100 * confidence:.3g}% confidence: by {float(sums[0, last]):.4f} on {len(found.gain):,} examples, and at "
        f"most {float(bound[last]):.4f}."
    )
    return _entry(found, float(thresholds[last]), rule, statement, max_drop=allowed, confidence=confidence)


def _by_budget(found: Slice, kind: str, target: float, summary: dict[str, Any]) -> dict[str, Any]:
    swift, super_ = torch.zeros_like(found.gain), found.gain
    curve = operating_curve(
        found.score, swift[:, None], super_[:, None], lambda sums: sums[..., 0].double(), *found.costs
    )
    if kind == "latency":
        times = {name: summary.get("latency", {}).get(name, {}).get("batch 1") for name in ("swift", "super")}
        if None in times.values():
            raise InputError("--latency reads what `elang validate --model.latency true` measured; run it so.")
        if target < times["swift"]:
            raise InputError(f"The Swift alone takes {times['swift']:.4g} s an input, more than --latency {target:g}.")
        share = min(1.0, (target - times["swift"]) / times["super"])
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


def check_statements(
    manifest: Manifest, key: Tensor, scores: dict[str, Tensor], gain: Tensor, super_sha256: str
) -> list[dict[str, Any]]:
    """What became of the statements of calibrated thresholds on an evaluation set.

    Args:
        manifest: With the thresholds.
        key: int64 ``(N,)``.
        scores: By name, each ``(N,)``.
        gain: Shape ``(N,)``, each answer being worth 0 to 1.
        super_sha256: Of the Super that answered here, or empty.

    Returns:
        For each: ``score``, ``name``, ``statement``, ``observed`` (regret or drop, where one was bounded), its 95%
        interval's lower end ``at least``, ``verdict`` (``held``; ``not refuted`` where more was observed, but no more
        than chance; ``broken``), ``drift`` and its ``drift_p``, and ``warnings``.
    """
    found = []
    for score, named in manifest.thresholds.items():
        for name, entry in named.items():
            if "statement" not in entry or score not in scores:
                continue
            same = entry["slice_sha256"] == slice_sha256(key)
            about: dict[str, Any] = {"score": score, "name": name, "statement": entry["statement"]}
            about |= {"same_slice": same, "warnings": []}
            distance, p = drift(scores[score], entry["score_quantiles"], int(entry["num_examples"]))
            about |= {"drift": distance, "drift_p": p}
            if p < DRIFT_P and not same:
                about["warnings"].append(
                    f"the scores have drifted since it was chosen (Kolmogorov-Smirnov {distance:.3f}, p = {p:.2g})"
                )
            if super_sha256 and entry.get("super_sha256") not in ("", super_sha256):
                about["warnings"].append("it was chosen for another Super")
            about |= _verdict(entry, scores[score], gain)
            found.append(about)
    return found


def _verdict(entry: dict[str, Any], score: Tensor, gain: Tensor) -> dict[str, Any]:
    threshold, n = float(entry["threshold"]), len(gain)
    if "max_regret" in entry:
        values, allowed = regret_at(score, gain, threshold), float(entry["max_regret"])
    elif "max_drop" in entry:
        values, allowed = gain * ~route(score, threshold), float(entry["max_drop"])
    else:
        return {}
    observed = float(values.mean())
    if bool(((values == 0) | (values == 1)).all()):
        # The other end, by symmetry.
        least = 1 - upper_bound(n - round(float(values.sum())), n, 0.975)
    else:
        least = observed - 1.96 * float(values.std()) / math.sqrt(n)
    verdict = "held" if observed <= allowed else "broken" if least > allowed else "not refuted"
    return {"allowed": allowed, "observed": observed, "at least": least, "verdict": verdict}
