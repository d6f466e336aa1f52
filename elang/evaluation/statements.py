"""Statements of calibrated thresholds: how often one was tried, how they are written, and checked on other examples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.errors import InputError
from elang.evaluation.slices import FEW, SOME, independent_rows, one_slice, share_of_slice, sketch
from elang.files import written_aside
from elang.json_files import check_fields, read_object
from elang.locks import locked
from elang.method.bounds import drift, effective_number, least_mean, upper_bound
from elang.method.certificate import regret_at, unit_weights
from elang.method.deferral import route
from elang.notices import made, notice
from elang.records.manifest import Manifest

PROMISES = ("max_regret", "max_drop")
DRIFT_P = 0.01
LEDGER = "slices.json"
"""The file that counts how often a promise was tried on a slice."""
_LEDGER_FORMAT = 1


def next_level(attempts: int, before: float, error: float) -> float:
    """The level of one more attempt on a slice.

    The first has all of ``error``; a further one what the earlier ones left of it, at least a half of it after one, a
    quarter after two, and so on. Whatever comes of them, and whenever one stops, all hold with a probability of 1 less
    the sum of their levels, which is the confidence that is stated.

    Args:
        attempts: How many were made before.
        before: The sum of their levels.
        error: How often the promise may be broken.

    >>> next_level(0, 0.0, 0.05), next_level(1, 0.05, 0.05), next_level(1, 0.01, 0.05)
    (0.05, 0.025, 0.04)
    """
    return max(error - before, error * 0.5**attempts)


def attempt(
    path: Path, about: dict[str, Any], asked: dict[str, Any], error: float, check: Callable[[float, int], None]
) -> tuple[float, int, float]:
    """Write an attempt to certify something on a slice into the ledger, before its outcome is known.

    What was asked before on the same slice is the same attempt. Slices that overlap are one.

    Args:
        path: The ledger.
        about: The slice, from :func:`slice_of`.
        asked: What is to be promised, of what, as plain values.
        error: How often the promise may be broken.
        check: Is given the level of the attempt and its number; raises where that level can certify nothing, whatever
            the answers are: no attempt was made then.

    Returns:
        The level of this attempt's tests, the number of attempts on the slice so far, and the sum of their levels.

    Raises:
        InputError: If the ledger cannot be read or written, or no confidence is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent):
            known = _read_ledger(path)
            own = [one for one in known if one_slice(one, about)]
            again = [one for one in own if one["asked"] == asked and one["slice_sha256"] == about["slice_sha256"]]
            before = sum(float(one["level"]) for one in own)
            level = float(again[0]["level"]) if again else next_level(len(own), before, error)
            total = before + (0.0 if again else level)
            if total >= 1:
                raise InputError(
                    f"No confidence is left on this slice: {len(own)} attempts were made on it ('{path}'). Use a "
                    "--split or data that nothing was chosen on, or a higher --confidence from the first attempt on."
                )
            check(level, len(own) + (not again))
            if not again:
                kept = {"format": _LEDGER_FORMAT, "attempts": [*known, about | {"asked": asked, "level": level}]}
                with written_aside(path) as aside:
                    aside.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
            return level, len(own) + (not again), total
    except OSError as error_:
        raise InputError(
            f"The ledger of attempts '{path}' cannot be written ({error_}). Name another file with --ledger."
        ) from error_


def _read_ledger(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        found = read_object(path)
        if found["format"] != _LEDGER_FORMAT:
            raise ValueError(f"it is of the format {found['format']!r}, and this version knows {_LEDGER_FORMAT}")
        attempts: list[dict[str, Any]] = found["attempts"]
        for one in attempts:
            sketch(one)
            if not (0 < float(one["level"]) < 1 and one["slice_sha256"] and one["asked"]):
                raise ValueError("an attempt has no level")
        return attempts
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The ledger of attempts '{path}' is damaged ({error}). Restore it from a copy: without it, how often a "
            "slice was used is not known. --ledger names another file."
        ) from error


def restate(entry: dict[str, Any]) -> None:
    """Write an entry's ``statement`` anew from its parts, with its ``confidence`` and the number of ``attempts``."""
    attempts = "This is the only attempt on these examples so far."
    if entry["attempts"] > 1:
        attempts = (
            f"{entry['attempts']} attempts were made on these examples; the confidence is for all of them together."
        )
    entry["statement"] = (
        f"{entry['claim']}, with {percent(entry['confidence'])} confidence: {entry['evidence']} {attempts} "
        "Not known is whether models or options were chosen by looking at these examples in another way."
    )


def percent(share: float) -> str:
    """A confidence in words: four digits, so that what several attempts cost can be seen."""
    return f"{100 * share:.4g}%"


def add_entries(manifest: Manifest, path: Path, entries: dict[tuple[str, str], dict[str, Any]], swift: str) -> None:
    """Add entries to a threshold file, and say in its others on the same slice how often that was used by now."""
    if manifest.weights_sha256 and not swift:
        notice(
            "unknown-swift",
            f"The records do not say which Swift they are of, so it is not checked that it is the one of '{path}' "
            f"(weights {manifest.weights_sha256[:12]}…).",
        )
    new = next(iter(entries.values()))
    if manifest.max_length != new.get("max_length", manifest.max_length):
        notice(
            "other-max-length",
            f"The records' inputs were cut at {new['max_length']} tokens, but '{path}' cuts at {manifest.max_length}: "
            "longer inputs may score otherwise. Run `elang validate` with the same --data.max_length.",
        )
    for (score, name), entry in entries.items():
        old = manifest.thresholds.setdefault(score, {}).get(name, {})
        if "statement" in old and _promised(old) != _promised(entry):
            notice(
                "replaced-threshold", f"The threshold '{name}' of '{score}' in {path} was another: {old['statement']}"
            )
        manifest.thresholds[score][name] = entry
    if "attempts" not in new:
        return
    for named in manifest.thresholds.values():
        for entry in named.values():
            if "attempts" in entry and one_slice(entry, new):
                entry |= {"attempts": new["attempts"], "confidence": new["confidence"]}
                restate(entry)


def _promised(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry.get(key) for key in (*PROMISES, "super_share", "flops", "latency", "asked_confidence")}


def read_made(path: Path) -> dict[str, Any]:
    """Read an evaluation's ``made.json``; empty where there is none.

    Raises:
        InputError: If it is damaged.
    """
    try:
        found = read_object(path) if path.exists() else {}
        check_fields(found, {"calibrate": ("a list", lambda v: isinstance(v, list))})
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{path}' is damaged ({error}). Run `elang validate` again, or remove the file: it tells how the "
            "evaluation was made."
        ) from error
    return found


def keep_made(path: Path) -> None:
    """Add how a threshold was made to an evaluation's ``made.json``."""
    found = read_made(path)
    found["calibrate"] = [*found.get("calibrate", []), made()]
    with written_aside(path) as aside:
        aside.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def check_statements(
    manifest: Manifest,
    key: Tensor,
    scores: dict[str, Tensor],
    gain: Tensor,
    super_sha256: str,
    unit: Tensor | None = None,
    conditions: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """What became of the statements of calibrated thresholds on an evaluation set.

    Args:
        manifest: With the thresholds.
        key: int64 ``(N,)``.
        scores: By name, each ``(N,)``.
        gain: Shape ``(N,)``, each answer being worth 0 to 1.
        super_sha256: Of the Super that answered here, or empty.
        unit: The group of each row, int64 ``(N,)``, where rows belong together. Of equal texts one is taken.
        conditions: What else was so here: ``flops_convention``, ``max_length``.

    Returns:
        For each: ``score``, ``name``, ``statement``, ``observed`` (regret or drop, where one was bounded), its 95%
        interval's lower end ``at least``, ``verdict`` (``held``; ``not refuted`` where more was observed, but no more
        than chance; ``broken``), ``same_slice`` where a tenth of the examples or more are those that it was chosen on,
        ``drift`` and its ``drift_p``, and ``warnings``.
    """
    rows = independent_rows(key, torch.arange(len(key)), unit)
    unit = None if unit is None else unit[rows]
    own = effective_number(unit, len(rows))
    found = []
    for score, named in manifest.thresholds.items():
        for name, entry in named.items():
            if "statement" not in entry or score not in scores:
                continue
            shared = share_of_slice(key, entry)
            same = shared >= SOME
            about: dict[str, Any] = {"score": score, "name": name, "statement": entry["statement"]}
            about |= {"same_slice": same, "warnings": []}
            known = float(entry.get("effective_number", entry["num_examples"]))
            distance, p = drift(scores[score][rows], entry["score_quantiles"], known, own)
            about |= {"drift": distance, "drift_p": p}
            if p < DRIFT_P and not same:
                about["warnings"].append(
                    f"the scores have drifted since it was chosen (Kolmogorov-Smirnov {distance:.3f}, p = {p:.2g})"
                )
            if super_sha256 and entry.get("super_sha256") not in ("", super_sha256):
                about["warnings"].append("it was chosen for another Super")
            if FEW < shared < SOME:
                about["warnings"].append(f"about {shared:.0%} of the examples here are those that it was chosen on")
            for what, here in (conditions or {}).items():
                if entry.get(what, here) != here:
                    about["warnings"].append(f"it was chosen with {what} {entry[what]}, and here it is {here}")
            about |= _verdict(entry, scores[score][rows], gain[rows], unit)
            found.append(about)
    return found


def _verdict(entry: dict[str, Any], score: Tensor, gain: Tensor, unit: Tensor | None) -> dict[str, Any]:
    threshold = float(entry["threshold"])
    if "max_regret" in entry:
        values, allowed, least = regret_at(score, gain, threshold), float(entry["max_regret"]), 0.0
    elif "max_drop" in entry:
        values, allowed, least = gain * ~route(score, threshold), float(entry["max_drop"]), -1.0
    else:
        return {}
    weight, n = unit_weights(unit, len(gain))
    binary = unit is None and bool(((values == 0) | (values == 1)).all())
    if unit is not None:
        _, place = unit.unique(return_inverse=True)
        values = torch.zeros(n, dtype=torch.float64).index_add_(0, place, values.double() * weight)
    observed = float(values.double().mean())
    # A count's other end, by symmetry.
    low = 1 - upper_bound(n - round(float(values.sum())), n, 0.975) if binary else least_mean(values, least)
    verdict = "held" if observed <= allowed else "broken" if low > allowed else "not refuted"
    return {"allowed": allowed, "observed": observed, "at least": low, "verdict": verdict}
