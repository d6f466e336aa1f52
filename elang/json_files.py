"""JSON that others may have written or damaged: read with plain errors, and its fields checked by one table."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from elang.errors import InputError

Check = tuple[str, Callable[[Any], bool]]
"""What a value must be, in words, and whether one is."""
_SHOWN, _ROWS = 60, 500


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, none of whose names may come twice.

    Raises:
        ValueError: Naming the first that does.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has '{next(name for name in names if names.count(name) > 1)}' more than once")
    return found


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Read an object of JSON.

    Raises:
        ValueError: If it is not UTF-8, no JSON, nested too deeply, no object, or has a name twice or NaN.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        found = json.loads(text, object_pairs_hook=once, parse_constant=_refused)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"it is {shown(found)}, not an object of names and values")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """Read the object of JSON in a file.

    Raises:
        OSError: If there is none.
        ValueError: As :func:`parse_object` does.
    """
    return parse_object(path.read_bytes())


def json_rows(lines: Iterator[str], path: Path) -> Iterator[dict[str, Any] | None]:
    """The object of each line of a file, ``None`` for a blank one.

    Raises:
        InputError: If a line is no JSON object, naming it.
    """
    decode = json.JSONDecoder(strict=False).decode
    number = 0
    while some := list(islice(lines, _ROWS)):
        try:
            # Several at a time, which is faster than one by one.
            found = decode(f"[{','.join(some)}]")
        except (ValueError, RecursionError):
            found = []
        if len(found) != len(some):
            found = [None] * len(some)
        for row, line in zip(found, some, strict=True):
            number += 1
            # Each key has a colon. Where there are more, one may come twice, or the lines are not what they seem.
            if not isinstance(row, dict) or line.count(":") != len(row):
                yield None if line.isspace() else _json_row(line, number, path)
            else:
                yield row


def _json_row(line: str, number: int, path: Path) -> dict[str, Any]:
    """The object of a line, every part of it checked."""
    try:
        row = json.JSONDecoder(strict=False, object_pairs_hook=once).decode(line)
        if not isinstance(row, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        whole = "The file seems to be one JSON array; write" if number == 1 and line.lstrip()[:1] == "[" else "Write"
        raise InputError(
            f"Line {number} of '{path}' cannot be read as a JSON object: {error}. {whole} one object a line, as "
            '{"text": "a good film", "label": "good"}.'
        ) from error
    return row


def _refused(name: str) -> Any:
    raise ValueError(f"it has the value {name}, which is no JSON")


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return "a value that is too large to show"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def check_fields(
    found: Mapping[str, Any], fields: Mapping[str, Check], needed: tuple[str, ...] = (), where: str = ""
) -> None:
    """Check the fields of an object that a table lists; others are left alone.

    Args:
        found: The object.
        fields: For each field what it must be.
        needed: Those that must be there.
        where: The object is in the file, as in ``thresholds.router.parity.``.

    Raises:
        ValueError: Naming the field and its value.
    """
    if missing := [name for name in needed if name not in found]:
        raise ValueError(f"it has no '{where}{missing[0]}'")
    for name, (words, holds) in fields.items():
        if name in found and not holds(found[name]):
            raise ValueError(f"its '{where}{name}' is {shown(found[name])}, where {words} is needed")


def is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether a value is a finite number in these bounds, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    # An integer may be too large for a float.
    return abs(value) < 2.0**1000 and least <= value <= most


def whole(least: int = 0) -> Check:
    """A whole number of at least so much."""
    words = f"a whole number of at least {least}"
    return words, lambda v: isinstance(v, int) and is_number(v, least, 2.0**63)


def number(least: float = -math.inf, most: float = math.inf) -> Check:
    """A finite number in these bounds."""
    bounds = "" if math.isinf(least) else f" of at least {least:g}"
    bounds += "" if math.isinf(most) else f"{' and' if bounds else ' of'} at most {most:g}"
    return f"a finite number{bounds}", lambda v: is_number(v, least, most)


def unbounded(value: Any) -> bool:
    """Whether a value is a number or an infinity as it is written, a text."""
    return is_number(value) or value in ("inf", "-inf")


TEXT: Check = ("a text", lambda v: isinstance(v, str))
TEXTS: Check = ("a list of texts", lambda v: isinstance(v, list) and all(isinstance(one, str) for one in v))
TRUTH: Check = ("true or false", lambda v: isinstance(v, bool))
OBJECT: Check = ("an object of names and values", lambda v: isinstance(v, dict))
OBJECTS: Check = (
    "an object of objects",
    lambda v: isinstance(v, dict) and all(isinstance(one, dict) for one in v.values()),
)
POSITIVE: Check = ("a finite number above 0", lambda v: is_number(v) and v > 0)
THRESHOLD: Check = ("a finite number, 'inf' or '-inf'", unbounded)
MEASURED: Check = ("a number, null, 'inf' or '-inf'", lambda v: v is None or unbounded(v))
