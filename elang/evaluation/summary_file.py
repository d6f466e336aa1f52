"""``summary.json`` of an evaluation, read back with every field checked that is used later."""

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

from elang.errors import InputError
from elang.evaluation.summary import (
    Alone,
    JointSummary,
    OperatingPoint,
    QualitySummary,
    ScoreSummary,
    Worth,
)
from elang.json_files import (
    MEASURED,
    OBJECT,
    OBJECTS,
    POSITIVE,
    TEXT,
    TEXTS,
    TRUTH,
    Check,
    check_fields,
    is_number,
    number,
    read_object,
    whole,
)
from elang.method.curve.points import Point
from elang.method.quality.registry import QUALITIES
from elang.records.reading import check_format

FILENAME = "summary.json"
_MAYBE: Check = ("a finite number, or null", lambda v: v is None or is_number(v))
_NEEDED = (
    "evaluated_on",
    "score",
    "temperature",
    "qualities",
    "swift_model",
    "super_model",
    "thresholds_from",
    "worth",
)
_FIELDS: dict[str, Check] = {
    **dict.fromkeys(("evaluated_on", "score", "swift_model", "super_model", "thresholds_from"), TEXT),
    "flops_convention": TEXT,
    "num_examples": whole(1),
    "temperature": POSITIVE,
    "weights": (
        "an object of texts",
        lambda v: isinstance(v, dict) and all(isinstance(one, str) for one in v.values()),
    ),
    "worth": OBJECT,
    "qualities": (
        "an object of metrics that elang knows",
        lambda v: OBJECTS[1](v) and bool(v) and v.keys() <= QUALITIES.keys(),
    ),
    "operating_points": OBJECTS,
    "areas": OBJECTS,
    "latency": OBJECTS,
    "cautions": TEXTS,
    "signatures": OBJECT,
    "statements": ("a list of objects", lambda v: isinstance(v, list) and all(isinstance(one, dict) for one in v)),
}
_WORTH = {"unit": TEXT, "largest": ("a number above 0, or null", lambda v: v is None or POSITIVE[1](v))}
_MODEL = {"quality": _MAYBE, "cost": _MAYBE}
_QUALITY = {"num_examples": whole(1), "swift": OBJECT, "super": OBJECT, "scores": OBJECTS}
_SCORE = {"area": _MAYBE, "held_out": OBJECTS, "on_this_set": OBJECTS}
_POINT = {
    "threshold": MEASURED,
    "deferred_share": number(0, 1),
    "quality": _MAYBE,
    "cost": _MAYBE,
    "speedup": MEASURED,
    "qualities": OBJECT,
}
_TO_SUPER = dict.fromkeys(("difference", "low", "high"), _MAYBE)
_AREA = dict.fromkeys(("low", "high", "difference", "difference_low", "difference_high"), number())
_LATENCY = {**dict.fromkeys(("batch 1", "at best batch"), POSITIVE), "best batch": whole(1), "tokens": whole(0)}
_STATEMENT: dict[str, Check] = {
    **dict.fromkeys(("name", "score", "statement"), TEXT),
    "same_slice": TRUTH,
    "warnings": TEXTS,
    "verdict": TEXT,
    **dict.fromkeys(("observed", "allowed"), number()),
}


def read_summary(folder: Path) -> JointSummary:
    """Read an evaluation's ``summary.json``.

    Raises:
        InputError: If there is none, it is one of an earlier version, or a field has a value that it cannot have.
    """
    path = folder / FILENAME
    try:
        return parse_summary(read_object(path))
    except FileNotFoundError as error:
        raise InputError(
            f"'{folder}' is no folder that `elang validate` wrote ({error}). Give its --model.output."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"'{path}' is not what `elang validate` wrote: {error}. Run `elang validate` again, or give its "
            "--model.output."
        ) from error


def parse_summary(values: dict[str, Any]) -> JointSummary:
    """Check the contents of a ``summary.json``, and make a summary of them; what is null becomes NaN.

    Raises:
        ValueError: Naming the first field that is wrong.
    """
    if "worth" not in values:
        raise ValueError("its summary is of an earlier version")
    check_format(values)
    _check(values)
    own = {f.name: values[f.name] for f in fields(JointSummary) if f.name in values}
    own["worth"] = Worth(values["worth"]["largest"], values["worth"]["unit"])
    own["qualities"] = {name: _quality(name, part) for name, part in values["qualities"].items()}
    own["operating_points"] = {
        score: {name: _operating_point(point) for name, point in points.items()}
        for score, points in values.get("operating_points", {}).items()
    }
    return JointSummary(num_examples=own.pop("num_examples", next(iter(own["qualities"].values())).num_examples), **own)


def _measured(value: Any) -> float:
    return math.nan if value is None else float(value)


def _point(values: dict[str, Any]) -> Point:
    return Point(**{f.name: _measured(values.get(f.name)) for f in fields(Point)})


def _operating_point(values: dict[str, Any]) -> OperatingPoint:
    qualities = {name: _measured(value) for name, value in values.get("qualities", {}).items()}
    return OperatingPoint(**vars(_point(values)), qualities=qualities, to_super=values.get("to_super"))


def _quality(name: str, values: dict[str, Any]) -> QualitySummary:
    return QualitySummary(
        num_examples=values["num_examples"],
        quality_name=name,
        swift=_point(values["swift"]),
        super=Alone(_measured(values["super"]["quality"]), _measured(values["super"]["cost"])),
        only_super_right=_measured(values.get("only_super_right")),
        only_swift_right=_measured(values.get("only_swift_right")),
        scores={
            score: ScoreSummary(
                _measured(part["area"]),
                *({key: _point(point) for key, point in part[kind].items()} for kind in ("on_this_set", "held_out")),
            )
            for score, part in values["scores"].items()
        },
    )


def _check(found: dict[str, Any]) -> None:
    """Check all fields of a summary.

    Raises:
        ValueError: Naming the first that is wrong.
    """
    check_fields(found, _FIELDS, _NEEDED)
    check_fields(found["worth"], _WORTH, ("unit", "largest"), "worth.")
    for name, quality in found["qualities"].items():
        at = f"qualities.{name}."
        check_fields(quality, _QUALITY, tuple(_QUALITY), at)
        for model in ("swift", "super"):
            check_fields(quality[model], _MODEL, tuple(_MODEL), f"{at}{model}.")
        for score, of in quality["scores"].items():
            check_fields(of, _SCORE, tuple(_SCORE), f"{at}scores.{score}.")
            for kind in ("held_out", "on_this_set"):
                _check_points(of[kind], f"{at}scores.{score}.{kind}.")
            if "parity" not in of["on_this_set"]:
                raise ValueError(f"it has no '{at}scores.{score}.on_this_set.parity'")
        if found["score"] not in quality["scores"]:
            raise ValueError(f"it has no '{at}scores.{found['score']}', the score that routes")
    for score, points in found.get("operating_points", {}).items():
        _check_points(points, f"operating_points.{score}.")
        for name, point in points.items():
            at = f"operating_points.{score}.{name}."
            check_fields(point.get("qualities", {}), dict.fromkeys(found["qualities"], _MAYBE), where=f"{at}qualities.")
            if point.get("to_super") is not None:
                check_fields(point, {"to_super": OBJECT}, where=at)
                check_fields(point["to_super"], _TO_SUPER, tuple(_TO_SUPER), f"{at}to_super.")
    for score, area in found.get("areas", {}).items():
        compared = tuple(_AREA) if "difference" in area else ()
        check_fields(area, _AREA, compared, f"areas.{score}.")
    for name, times in found.get("latency", {}).items():
        check_fields(times, _LATENCY, tuple(_LATENCY), f"latency.{name}.")
    for place, statement in enumerate(found.get("statements", [])):
        told = ("observed", "allowed") if "verdict" in statement else ()
        needed = ("name", "score", "statement", "same_slice", "warnings", *told)
        check_fields(statement, _STATEMENT, needed, f"statements.{place}.")


def _check_points(points: dict[str, Any], where: str) -> None:
    needed = ("threshold", "deferred_share", "quality", "cost", "speedup")
    for name, point in points.items():
        if not isinstance(point, dict):
            raise ValueError(f"its '{where}{name}' is no object of names and values")
        check_fields(point, _POINT, needed, f"{where}{name}.")
