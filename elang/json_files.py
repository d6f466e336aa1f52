"""JSON that others may have written or damaged: plain errors when it is read, and tables that check its fields."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from elang.errors import InputError

Check = tuple[str, Callable[[Any], bool]]
"""What a value must be, in words, and a test of it."""
_MAX_SHOWN, _BATCH = 60, 500


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; its names must differ."""
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has '{next(name for name in names if names.count(name) > 1)}' more than once")
    return values


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it has the value {name}, which is no JSON")


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Read an object of JSON.

    Raises:
        ValueError: If it is not UTF-8, no JSON, nested too deeply, no object, or has a name twice or NaN.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it is {shown(value)}, not an object of names and values")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Read the object of JSON in a file: OSError if there is none, ValueError as from :func:`parse_object`."""
    return parse_object(path.read_bytes())


def json_rows(lines: Iterator[str], path: Path) -> Iterator[dict[str, Any] | None]:
    """The object of each line of a file, ``None`` for a blank line; other lines raise an :class:`InputError`."""
    decode = json.JSONDecoder(strict=False).decode
    start = 1
    while batch := list(islice(lines, _BATCH)):
        try:
            # Many at a time are faster than one by one.
            rows = decode(f"[{','.join(batch)}]")
        except (ValueError, RecursionError):
            rows = []
        if len(rows) != len(batch):
            rows = [None] * len(batch)
        for number, (row, line) in enumerate(zip(rows, batch, strict=True), start):
            # Each key has a colon. With more colons a key may be repeated, or an object may span several lines.
            if isinstance(row, dict) and line.count(":") == len(row):
                yield row
            else:
                yield None if line.isspace() else _json_row(line, number, path)
        start += len(batch)


def _json_row(line: str, number: int, path: Path) -> dict[str, Any]:
    """The object of a line, with all checks."""
    try:
        row = json.JSONDecoder(strict=False, object_pairs_hook=_unique).decode(line)
        if not isinstance(row, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        advice = "The file seems to be one JSON array; write" if number == 1 and line.lstrip()[:1] == "[" else "Write"
        raise InputError(
            f"Line {number} of '{path}' cannot be read as a JSON object: {error}. {advice} one object per line, as "
            '{"text": "a good film", "label": "good"}.'
        ) from error
    return row


def shown(value: Any) -> str:
    """A value for a message, cut if it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return "a value that is too large to show"
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


def check_fields(
    data: Mapping[str, Any], fields: Mapping[str, Check], needed: tuple[str, ...] = (), where: str = ""
) -> None:
    """Check that an object has the ``needed`` fields, and the values of those in ``fields``; others are ignored.

    Raises:
        ValueError: Naming the field, with the prefix ``where`` (``thresholds.router.parity.``), and its value.
    """
    if missing := [name for name in needed if name not in data]:
        raise ValueError(f"it has no '{where}{missing[0]}'")
    for name, (expected, is_valid) in fields.items():
        if name in data and not is_valid(data[name]):
            raise ValueError(f"its '{where}{name}' is {shown(data[name])}, where {expected} is needed")


def is_number(value: Any, minimum: float = -math.inf, maximum: float = math.inf) -> bool:
    """Whether a value is a finite number, no boolean, in these bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    # An integer may be too large for a float.
    return abs(value) < 2.0**1000 and minimum <= value <= maximum


def whole(minimum: int = 0) -> Check:
    """An integer of at least ``minimum``."""
    expected = f"a whole number of at least {minimum}"
    return expected, lambda v: isinstance(v, int) and is_number(v, minimum, 2.0**63)


def number(minimum: float = -math.inf, maximum: float = math.inf) -> Check:
    """A finite number in these bounds."""
    bounds = "" if math.isinf(minimum) else f" of at least {minimum:g}"
    bounds += "" if math.isinf(maximum) else f"{' and' if bounds else ' of'} at most {maximum:g}"
    return f"a finite number{bounds}", lambda v: is_number(v, minimum, maximum)


def _is_threshold(value: Any) -> bool:
    return is_number(value) or value in ("inf", "-inf")


TEXT: Check = ("a text", lambda v: isinstance(v, str))
TEXTS: Check = ("a list of texts", lambda v: isinstance(v, list) and all(isinstance(item, str) for item in v))
TRUTH: Check = ("true or false", lambda v: isinstance(v, bool))
OBJECT: Check = ("an object of names and values", lambda v: isinstance(v, dict))
OBJECTS: Check = (
    "an object of objects",
    lambda v: isinstance(v, dict) and all(isinstance(item, dict) for item in v.values()),
)
POSITIVE: Check = ("a finite number above 0", lambda v: is_number(v) and v > 0)
THRESHOLD: Check = ("a finite number, 'inf' or '-inf'", _is_threshold)
MEASURED: Check = ("a number, null, 'inf' or '-inf'", lambda v: v is None or _is_threshold(v))
