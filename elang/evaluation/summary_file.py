"""Reads ``summary.json`` of an evaluation, and checks every field that is used later."""

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from elang import json_files as check
from elang.errors import InputError
from elang.evaluation.summary import Alone, JointSummary, OperatingPoint, QualitySummary, ScoreSummary, Worth
from elang.method.curve.points import Point
from elang.method.quality.registry import QUALITIES
from elang.records.manifest import SAMPLING
from elang.records.reading import check_format

FILENAME = "summary.json"
_NUMBER: check.Check = ("a finite number, or null", lambda v: v is None or check.is_number(v))
_WORTH = {"unit": check.TEXT, "largest": ("a number above 0, or null", lambda v: v is None or check.POSITIVE[1](v))}
_NEEDED: dict[str, check.Check] = {
    **dict.fromkeys(("evaluated_on", "score", "swift_model", "super_model", "thresholds_from"), check.TEXT),
    "temperature": check.POSITIVE,
    "qualities": (
        "an object of metrics that elang knows",
        lambda v: check.OBJECTS[1](v) and bool(v) and v.keys() <= QUALITIES.keys(),
    ),
    "worth": check.OBJECT,
}
_OPTIONAL: dict[str, check.Check] = {
    **dict.fromkeys(("flops_convention", "task", "denial"), check.TEXT),
    "num_examples": check.whole(1),
    "weights": ("an object of texts", lambda v: check.OBJECT[1](v) and check.TEXTS[1](list(v.values()))),
    **dict.fromkeys(("operating_points", "areas", "latency"), check.OBJECTS),
    "cautions": check.TEXTS,
    "denied": check.whole(0),
    "allowed_drop": check.number(0),
    "most_frequent": ("an object of label, share and qualities, or left out", lambda v: _is_one_label(v)),
    **dict.fromkeys(("signatures", "recalls"), check.OBJECT),
    "sampling": SAMPLING,
    "statements": ("a list of objects", lambda v: isinstance(v, list) and all(isinstance(one, dict) for one in v)),
}
_QUALITY = {"num_examples": check.whole(1), "swift": check.OBJECT, "super": check.OBJECT, "scores": check.OBJECTS}
_MODEL = {"quality": _NUMBER, "cost": _NUMBER}
_SCORE = {"area": _NUMBER, "held_out": check.OBJECTS, "on_this_set": check.OBJECTS}
_POINT = {"threshold": check.MEASURED, "deferred_share": check.number(0, 1), **_MODEL, "speedup": check.MEASURED}
_TO_SUPER = dict.fromkeys(("difference", "low", "high"), _NUMBER)
_INTERVAL = dict.fromkeys(("low", "high"), check.number())
_DIFFERENCE = dict.fromkeys(("difference", "difference_low", "difference_high"), check.number())
_LATENCY = {
    **dict.fromkeys(("batch 1", "at best batch"), check.POSITIVE),
    "best batch": check.whole(1),
    "tokens": check.whole(0),
}
_STATEMENT: dict[str, check.Check] = {
    **dict.fromkeys(("name", "score", "statement"), check.TEXT),
    "same_slice": check.TRUTH,
    "warnings": check.TEXTS,
}
_VERDICT = {"verdict": check.TEXT, "observed": check.number(), "allowed": check.number()}


def read_summary(folder: Path) -> JointSummary:
    """Read an evaluation's ``summary.json``.

    Raises:
        InputError: If it is missing, from an earlier version, or a field has an impossible value.
    """
    path = folder / FILENAME
    try:
        return parse_summary(check.read_object(path))
    except FileNotFoundError as error:
        raise InputError(
            f"'{folder}' is no folder that `elang validate` wrote: it has no {FILENAME}. Give its --model.output."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{path}' is not what `elang validate` wrote: {error}. Run `elang validate` again, or give its "
            "--model.output."
        ) from error


def parse_summary(values: dict[str, Any]) -> JointSummary:
    """Check the contents of a ``summary.json`` and make a summary of them; null becomes NaN.

    Raises:
        ValueError: Naming the first field that is wrong.
    """
    if "worth" not in values:
        raise ValueError("its summary is of an earlier version")
    check_format(values)
    _check_all(values, _NEEDED)
    check.check_fields(values, _OPTIONAL)
    _check_all(values["worth"], _WORTH, "worth.")
    known: dict[str, Any] = {f.name: values[f.name] for f in fields(JointSummary) if f.name in values}
    known["worth"] = Worth(**{name: values["worth"][name] for name in _WORTH})
    known["qualities"] = {name: _quality(name, part, values["score"]) for name, part in values["qualities"].items()}
    known.setdefault("num_examples", next(iter(known["qualities"].values())).num_examples)
    known["operating_points"] = {
        score: {name: _operating_point(point, f"operating_points.{score}.{name}") for name, point in points.items()}
        for score, points in values.get("operating_points", {}).items()
    }
    for score, area in values.get("areas", {}).items():
        check.check_fields(area, _INTERVAL, where=f"areas.{score}.")
        if "difference" in area:
            _check_all(area, _INTERVAL | _DIFFERENCE, f"areas.{score}.")
    for name, times in values.get("latency", {}).items():
        _check_all(times, _LATENCY, f"latency.{name}.")
    for place, statement in enumerate(values.get("statements", [])):
        _check_all(statement, _STATEMENT | (_VERDICT if "verdict" in statement else {}), f"statements.{place}.")
    return JointSummary(**known)


def _check_all(values: dict[str, Any], checks: Mapping[str, check.Check], where: str = "") -> None:
    """Check that all fields are there, and what they are."""
    check.check_fields(values, checks, tuple(checks), where=where)


def _quality(name: str, values: dict[str, Any], routing: str) -> QualitySummary:
    """One metric's summary, which must have the score that routes."""
    where = f"qualities.{name}."
    _check_all(values, _QUALITY, where)
    for model in ("swift", "super"):
        _check_all(values[model], _MODEL, f"{where}{model}.")
    scores = {score: _score(part, f"{where}scores.{score}.") for score, part in values["scores"].items()}
    if routing not in scores:
        raise ValueError(f"it has no '{where}scores.{routing}', the score that routes")
    return QualitySummary(
        num_examples=values["num_examples"],
        quality_name=name,
        swift=_point(values["swift"]),
        super=Alone(_number(values["super"]["quality"]), _number(values["super"]["cost"])),
        only_super_right=_number(values.get("only_super_right")),
        only_swift_right=_number(values.get("only_swift_right")),
        scores=scores,
    )


def _score(values: dict[str, Any], where: str) -> ScoreSummary:
    _check_all(values, _SCORE, where)
    if "parity" not in values["on_this_set"]:
        raise ValueError(f"it has no '{where}on_this_set.parity'")
    points = {}
    for kind in ("on_this_set", "held_out"):
        for name, point in values[kind].items():
            _check_all(point, _POINT, f"{where}{kind}.{name}.")
        points[kind] = {name: _point(point) for name, point in values[kind].items()}
    return ScoreSummary(area=_number(values["area"]), **points)


def _operating_point(values: Any, where: str) -> OperatingPoint:
    if not isinstance(values, dict):
        raise ValueError(f"its '{where}' is no object of names and values")
    _check_all(values, _POINT, f"{where}.")
    check.check_fields(values, {"qualities": check.OBJECT}, where=f"{where}.")
    qualities, to_super = values.get("qualities", {}), values.get("to_super")
    check.check_fields(qualities, dict.fromkeys(qualities, _NUMBER), where=f"{where}.qualities.")
    if to_super is not None:
        check.check_fields(values, {"to_super": check.OBJECT}, where=f"{where}.")
        _check_all(to_super, _TO_SUPER, f"{where}.to_super.")
    numbers = {name: _number(value) for name, value in qualities.items()}
    return OperatingPoint(**vars(_point(values)), qualities=numbers, to_super=to_super)


def _point(values: dict[str, Any]) -> Point:
    return Point(**{f.name: _number(values.get(f.name)) for f in fields(Point)})


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _is_one_label(value: Any) -> bool:
    return (
        check.OBJECT[1](value)
        and isinstance(value.get("label"), str)
        and check.is_number(value.get("share"))
        and isinstance(value.get("qualities"), dict)
        and all(_NUMBER[1](number) for number in value["qualities"].values())
    )
