"""Statements of calibrated thresholds: how often one was attempted, its words, and whether it holds on other data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.errors import InputError, listed
from elang.evaluation.slices import FEW, SOME, independent_rows, one_slice, share_of_slice, sketch
from elang.files import write_atomically
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
"""The file that counts how often a promise was attempted on a slice."""
_LEDGER_FORMAT = 1


def next_level(attempts: int, before: float, error: float) -> float:
    """The level of one more attempt on a slice.

    The first attempt gets all of ``error``. A later one gets what earlier attempts left of it, but at least a half of
    it after one attempt, a quarter after two, and so on. Whatever their results, and whenever one stops, all promises
    hold with a probability of 1 minus the sum of the levels, which is the stated confidence. ``before`` is the sum of
    the levels of earlier ``attempts``, and ``error`` says how often the promise may be broken.

    >>> next_level(0, 0.0, 0.05), next_level(1, 0.05, 0.05), next_level(1, 0.01, 0.05)
    (0.05, 0.025, 0.04)
    """
    return max(error - before, error * 0.5**attempts)


def attempt(
    path: Path, about: dict[str, Any], asked: dict[str, Any], *, error: float, check: Callable[[float, int], None]
) -> tuple[float, int, float]:
    """Record an attempt to certify something on a slice in the ledger, before its outcome is known.

    The same request on the same slice is the same attempt. Slices that overlap count as one.

    Args:
        path: The ledger.
        about: The slice, from :func:`describe_slice`.
        asked: What is to be promised, as plain values.
        error: How often the promise may be broken.
        check: Takes the level of the attempt and its number, and raises if nothing can be certified at that level
            whatever the answers are; then no attempt is recorded.

    Returns:
        The level of this attempt's tests, the number of attempts on the slice so far, and the sum of their levels.

    Raises:
        InputError: If the ledger cannot be read or written, or no confidence is left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent):
            ledger = _read_ledger(path)
            earlier = [entry for entry in ledger if one_slice(entry, about)]
            same = [e for e in earlier if e["asked"] == asked and e["slice_sha256"] == about["slice_sha256"]]
            spent, number = sum(float(entry["level"]) for entry in earlier), len(earlier) + (not same)
            level = float(same[0]["level"]) if same else next_level(len(earlier), spent, error)
            total = spent if same else spent + level
            if total >= 1:
                raise InputError(
                    f"No confidence is left on this slice: {len(earlier)} attempts were made on it ('{path}'). Use a "
                    "--split or data that nothing was chosen on, or a higher --confidence from the first attempt on."
                )
            check(level, number)
            if not same:
                attempts = [*ledger, about | {"asked": asked, "level": level}]
                _write(path, {"format": _LEDGER_FORMAT, "attempts": attempts}, indent=1)
            return level, number, total
    except OSError as error_:
        raise InputError(
            f"The ledger of attempts '{path}' cannot be written ({error_}). Name another file with --ledger."
        ) from error_


def _read_ledger(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        ledger = read_object(path)
        if ledger["format"] != _LEDGER_FORMAT:
            raise ValueError(f"its format is {ledger['format']!r}, and this version reads {_LEDGER_FORMAT}")
        attempts: list[dict[str, Any]] = ledger["attempts"]
        for entry in attempts:
            sketch(entry)
            if not (0 < float(entry["level"]) < 1 and entry["slice_sha256"] and entry["asked"]):
                raise ValueError("an attempt has no level")
        return attempts
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"The ledger of attempts '{path}' is damaged ({error}). Restore it from a copy: without it, how often a "
            "slice was used is unknown. --ledger names another file."
        ) from error


def _write(path: Path, values: dict[str, Any], indent: int) -> None:
    with write_atomically(path) as aside:
        aside.write_text(json.dumps(values, indent=indent) + "\n", "utf-8")


def restate(entry: dict[str, Any]) -> None:
    """Rewrite an entry's ``statement`` from its parts, with its ``confidence`` and its number of ``attempts``."""
    attempts = "This is the only attempt on these examples so far."
    if entry["attempts"] > 1:
        attempts = f"{entry['attempts']} attempts were made on these examples; the confidence is for all of them."
    entry["statement"] = (
        f"{entry['claim']}, with {percent(entry['confidence'])} confidence: {entry['evidence']} {attempts} "
        "Whether models or options were otherwise chosen by looking at these examples is not known."
    )


def percent(share: float) -> str:
    """A confidence in words, with four digits to show what several attempts cost."""
    return f"{100 * share:.4g}%"


def add_entries(manifest: Manifest, path: Path, entries: dict[tuple[str, str], dict[str, Any]], swift: str) -> None:
    """Add entries, by score and name, to the manifest of a ``path``, and update others on the same slice.

    Those get the new number of attempts. ``swift`` is the hash of the Swift's weights, empty if unknown.
    """
    if manifest.weights_sha256 and not swift:
        notice(
            "unknown-swift",
            f"The records do not name the weights of their Swift, so nothing shows that it is the Swift of '{path}' "
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


def report_dropped(path: Path) -> None:
    """Report the calibrated thresholds of a file that an evaluation is about to replace, if there are any."""
    try:
        thresholds = Manifest.read(path).thresholds if path.exists() else {}
    except InputError:  # a damaged file has no thresholds to lose
        return
    names = dict.fromkeys(name for named in thresholds.values() for name in named if "statement" in named[name])
    if names:
        notice(
            "dropped-thresholds",
            f"'{path}' is replaced, and its calibrated thresholds {listed(list(names))} are gone. Choose them again "
            "with `elang calibrate`.",
        )


def report_replaced(folder: Path) -> None:
    """Report the evaluation in a folder that another one is about to replace, if there is one."""
    if (folder / "summary.json").is_file():
        text = f"The evaluation in '{folder}' is replaced when this one ends. Give another --model.output to keep it."
        # A repeated run then gives the same files.
        notice("replaced-evaluation", text, recorded=False)


def _promised(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry.get(key) for key in (*PROMISES, "super_share", "flops", "latency", "asked_confidence")}


def read_made(path: Path) -> dict[str, Any]:
    """Read an evaluation's ``made.json``; empty if there is none.

    Raises:
        InputError: If it is damaged.
    """
    try:
        content = read_object(path) if path.exists() else {}
        check_fields(content, {"calibrate": ("a list", lambda v: isinstance(v, list))})
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{path}' is damaged ({error}). Run `elang validate` again, or remove the file: it records how the "
            "evaluation was made."
        ) from error
    return content


def keep_made(path: Path) -> None:
    """Add how a threshold was made to an evaluation's ``made.json``."""
    content = read_made(path)
    _write(path, content | {"calibrate": [*content.get("calibrate", []), made()]}, indent=2)


def check_statements(
    manifest: Manifest,
    key: Tensor,
    scores: dict[str, Tensor],
    gain: Tensor,
    super_sha256: str,
    unit: Tensor | None = None,
    conditions: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Compare the statements of calibrated thresholds with an evaluation set.

    Args:
        manifest: With the thresholds.
        key: int64 ``(N,)``.
        scores: By name, each ``(N,)``.
        gain: Shape ``(N,)``, each answer being worth 0 to 1.
        super_sha256: Hash of the Super that answered here, or empty.
        unit: The group of each row, int64 ``(N,)``, if rows belong together. Of equal texts one is taken.
        conditions: Under which the set was evaluated: ``flops_convention``, ``max_length``.

    Returns:
        For each statement: ``score``, ``name``, ``statement``; ``observed``, the regret or drop if one was bounded,
        with ``at least``, the lower end of its 95% interval, and ``verdict``: ``held``, ``not refuted`` (more was
        observed, but it may be chance) or ``broken``; ``same_slice``, whether at least a tenth of the examples were
        used to choose it; ``drift`` with ``drift_p``; and ``warnings``.
    """
    rows = independent_rows(key, torch.arange(len(key)), unit)
    unit = None if unit is None else unit[rows]
    size = effective_number(unit, len(rows))
    statements = []
    for score, named in manifest.thresholds.items():
        for name, entry in named.items():
            if "statement" not in entry or score not in scores:
                continue
            values = scores[score][rows]
            shared = share_of_slice(key, entry)
            known = float(entry.get("effective_number", entry["num_examples"]))
            distance, p = drift(values, entry["score_quantiles"], known, size)
            warnings = []
            if p < DRIFT_P and shared < SOME:
                warnings.append(
                    f"the scores have drifted since it was chosen (Kolmogorov-Smirnov {distance:.3f}, p = {p:.2g})"
                )
            if super_sha256 and entry.get("super_sha256") not in ("", super_sha256):
                warnings.append("it was chosen for another Super")
            if FEW < shared < SOME:
                warnings.append(f"about {shared:.0%} of the examples here were used to choose it")
            for what, here in (conditions or {}).items():
                if entry.get(what, here) != here:
                    warnings.append(f"it was chosen with {what} {entry[what]}, and here it is {here}")
            about = {"score": score, "name": name, "statement": entry["statement"], "same_slice": shared >= SOME}
            about |= {"warnings": warnings, "drift": distance, "drift_p": p}
            statements.append(about | _verdict(entry, values, gain=gain[rows], unit=unit))
    return statements


def _verdict(entry: dict[str, Any], score: Tensor, *, gain: Tensor, unit: Tensor | None) -> dict[str, Any]:
    """How a promised bound compares with what is observed; empty if none was promised."""
    threshold = float(entry["threshold"])
    if "max_regret" in entry:
        values, allowed, lowest = regret_at(score, gain, threshold), float(entry["max_regret"]), 0.0
    elif "max_drop" in entry:
        values, allowed, lowest = gain * ~route(score, threshold), float(entry["max_drop"]), -1.0
    else:
        return {}
    weight, n = unit_weights(unit, len(gain))
    binary = unit is None and bool(((values == 0) | (values == 1)).all())
    if unit is not None:
        _, place = unit.unique(return_inverse=True)
        values = torch.zeros(n, dtype=torch.float64).index_add_(0, place, values.double() * weight)
    observed = float(values.double().mean())
    # The lower end for a count is the upper end for its complement.
    low = 1 - upper_bound(n - round(float(values.sum())), n, 0.975) if binary else least_mean(values, lowest)
    verdict = "held" if observed <= allowed else "broken" if low > allowed else "not refuted"
    return {"allowed": allowed, "observed": observed, "at least": low, "verdict": verdict}
