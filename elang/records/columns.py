"""Tables of answers in three formats, read alike, with every value checked and bad rows named."""

import re
from collections.abc import Collection, Container
from decimal import Decimal
from math import inf, isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from elang.errors import InputError, listed
from elang.json_files import json_rows
from elang.method.scores import BEFORE_DECODER
from elang.notices import notice
from elang.tables import TABLE_SUFFIXES, file_lines, read_parquet, refuse_row

# Above this, float64 does not hold every whole number.
_MAX_EXACT = 2**53
_MAX_ROWS_NAMED = 5
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def rows_of(bad: Any, frame: Any) -> str:
    """Name the rows of a frame where ``bad`` is true, by their numbers in the file.

    >>> import pandas as pd
    >>> rows_of(np.array([False, True, True]), pd.DataFrame({"id": [4, 5, 6]}))
    'rows 1 and 2 (counted from 0)'
    """
    rows = [str(row) for row in frame.index[np.asarray(bad)]]
    items = rows[:_MAX_ROWS_NAMED]
    if len(rows) > len(items):
        items.append(f"{len(rows) - len(items)} more")
    text = " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
    return f"row{'s' * (len(rows) > 1)} {text} (counted from 0)"


def read_columns(path: Path, known: Collection[str]) -> tuple[Any, list[str]]:
    """Read those columns of a table that are ``known``: the frame, and the names of all columns.

    Raises:
        InputError: If the file is no parquet, JSONL or CSV file.
        ValueError: If it is damaged; the readers raise other errors, too.
    """
    readers = {".parquet": read_parquet, ".jsonl": _read_jsonl, ".csv": _read_csv}
    if (reader := readers.get(path.suffix.lower())) is None:
        raise InputError(f"Records are read from {', '.join(TABLE_SUFFIXES)}, but the file is '{path}'.")
    frame, names = reader(path, known)
    if repeated := [name for name in known if names.count(name) > 1]:
        raise ValueError(f"it has {names.count(repeated[0])} columns '{repeated[0]}'")
    # The conversion fails here, rather than later, on texts that are not UTF-8.
    return frame.astype({name: object for name, kind in frame.dtypes.items() if kind.kind not in "iufb"}), names


def _read_jsonl(path: Path, known: Collection[str]) -> tuple[Any, list[str]]:
    import pandas as pd

    rows = [row for row in json_rows(file_lines(path), path) if row is not None]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _series([row.get(name) for row in rows]) for name in names if name in known}
    return pd.DataFrame(columns, index=range(len(rows))), names


def _series(values: list[Any]) -> Any:
    """A column in its own type: pandas would read true as 1, and 1 beside a null as 1.0."""
    import pandas as pd

    kind = {frozenset({int}): np.int64, frozenset({float}): np.float64}.get(frozenset(map(type, values)), object)
    try:
        return pd.Series(values, dtype=kind)
    except OverflowError:
        return pd.Series(values, dtype=object)


def _read_csv(path: Path, known: Collection[str]) -> tuple[Any, list[str]]:
    import pandas as pd

    # "NA" and "null" are texts.
    options: dict[str, Any] = {"keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        # With a header pandas would shift all columns if the first row is wider; without one this is an error.
        names = pd.read_csv(path, header=None, nrows=2, dtype=str, **options).iloc[0].tolist()
        options["dtype"] = {name: str for name in names if name not in known or name in ("split", "prediction")}
        frame = pd.read_csv(path, index_col=False, low_memory=False, **options, **exact_floats())
    except pd.errors.ParserError:
        refuse_row(path, tabs=False)
        raise
    return frame[[name for name in names if name in known and names.count(name) == 1]], names


def exact_floats() -> dict[str, Any]:
    """The option with which pandas reads the numbers of a CSV file exactly.

    Before 3.1 the last bit of a third of all numbers is wrong without it; from 3.1 on it is deprecated.
    """
    import pandas as pd

    older = tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1)
    return {"float_precision": "round_trip"} if older else {}


def numbers(frame: Any, name: str, path: str, whole: bool = False, least: float = -inf, unknown: bool = False) -> Any:
    """A column of numbers; an ``InputError`` names the rows of values that a conversion would change.

    Args:
        frame: The table.
        name: Name of the column.
        path: Name of the file in messages.
        whole: They are whole numbers of 64 bits.
        least: The smallest number allowed.
        unknown: All of them may be missing.

    Returns:
        int64 or float64 ``(N,)``, or ``None`` if all are missing.
    """
    values = frame[name]
    missing = np.array(values.isna())
    if values.dtype == object:
        missing |= np.array([isinstance(value, str) and not value.strip() for value in values])
    if unknown and missing.all():
        return None
    parsed = values.to_numpy()
    if values.dtype.kind in "iuf":
        bad = ~np.isfinite(parsed)
    else:
        parsed = np.array([_number(value, whole) for value in values], dtype=object)
        bad = np.array([number is None for number in parsed], dtype=bool)
        parsed = np.where(bad, 0, parsed)
    with np.errstate(invalid="ignore"):
        bad |= np.array(parsed < least, dtype=bool)
        if whole:
            limit = _MAX_EXACT if values.dtype.kind == "f" else 2**63
            bad |= np.array((parsed < -limit) | (parsed >= limit), dtype=bool)
            bad |= np.array(np.where(bad, 0, parsed) % 1 != 0, dtype=bool)
    bad |= missing
    if bad.any():
        first = values[bad].iloc[0]
        first = first.item() if isinstance(first, np.generic) else first
        kind = "a whole number" if whole else "a finite number"
        if whole and isinstance(first, float) and isfinite(first) and abs(first) >= _MAX_EXACT:
            kind += " that no floating-point number has rounded"
        bound = "" if least == -inf else f" of at least {least:g}"
        partly = " or leave all of them out" if unknown and missing.any() else ""
        raise InputError(
            f"'{path}' has {first!r} as its '{name}' in {rows_of(bad, frame)}, where {kind}{bound} is needed. Correct "
            f"these values{partly}, or remove the column."
        )
    return parsed.astype(np.int64 if whole else np.float64)


def _number(value: Any, whole: bool) -> Any:
    """A cell as a number; ``None`` if it is not one."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = int(value) if whole and re.fullmatch(r"\s*[+-]?\d{1,30}\s*", value) else float(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real | Decimal):
        return None
    if isinstance(value, Integral) or (whole and isinstance(value, Decimal) and isfinite(value) and value % 1 == 0):
        return int(value) if abs(int(value)) < 2**1000 else None
    return float(value) if isfinite(value) and not (whole and abs(float(value)) >= _MAX_EXACT) else None


def vectors(frame: Any, name: str, size: int, path: str, missing: bool = False, unknown: bool = False) -> Any:
    """A column of lists of ``size`` numbers, float64 ``(N, size)``, each finite in float32, too.

    With ``missing``, a list may hold ``-inf`` beside other numbers; with ``unknown``, the same places of all lists may
    be NaN, but not all places. An ``InputError`` names the rows of other values.
    """
    values = frame[name].tolist()
    try:
        parsed = np.array(values)
    except ValueError:
        parsed = np.empty(0)
    bad = np.zeros(len(values), dtype=bool)
    if parsed.shape != (len(values), size) or parsed.dtype.kind not in "iuf":
        bad = np.array([not _is_vector(row, size) for row in values], dtype=bool)
        parsed = np.array([np.zeros(size) if wrong else list(row) for row, wrong in zip(values, bad, strict=True)])
    parsed = parsed.astype(np.float64)
    with np.errstate(over="ignore"):
        finite = np.isfinite(parsed.astype(np.float32))
    absent = np.isneginf(parsed) & missing
    if unknown:
        absent |= np.isnan(parsed).all(0)
    bad |= ~(finite | absent).all(-1) | absent.all(-1)
    if bad.any():
        raise InputError(
            f"'{path}' has the {name} {frame[name][bad].iloc[0]!r} in {rows_of(bad, frame)}, where {size} finite "
            f"numbers are needed, one for each {'score' if name == 'scores' else 'label'}. Correct them, or leave the "
            "column out."
        )
    return parsed


def _is_vector(row: Any, size: int) -> bool:
    if not hasattr(row, "__len__") or isinstance(row, str | bytes | dict) or len(row) != size:
        return False
    return all(isinstance(v, Real) and not isinstance(v, bool | np.bool_) for v in row)


def labels(frame: Any, name: str, label_names: list[str], path: str, none: bool = False) -> Any:
    """A column of labels as indices into ``label_names``, int64 ``(N,)``.

    Text, numbers and truth values are read alike in all formats: ``1``, ``1.0`` and ``"1"`` are the class ``'1'``.
    If no class name is a number, a number counts the classes from 0. With ``none``, an empty text is an answer that is
    none of the classes: -1. An ``InputError`` names the rows of other values.
    """
    # As Python's values: pandas equates true and 1.
    texts = [_text(value) for value in frame[name].to_numpy().tolist()]
    index: dict[str | None, int] = {label: i for i, label in enumerate(label_names)}
    missing = np.array([text is None or (not text.strip() and text not in index and not none) for text in texts])
    if missing.any():
        raise InputError(
            f"'{path}' has no answer ('{name}' is empty) in {rows_of(missing, frame)}. Ask the model again for these, "
            "or leave the examples out of the data."
        )
    values = [float(label) if _NUMBER.fullmatch(label) else None for label in label_names]
    folded = [label.casefold() for label in label_names]
    counted = False
    for text in set(texts) - index.keys():
        assert text is not None
        truth = {"true": 1.0, "false": 0.0}.get(text.casefold())
        number = float(text) if _NUMBER.fullmatch(text) else truth
        if none and not text:
            index[text] = -1
        elif truth is not None and folded.count(text.casefold()) == 1:
            index[text] = folded.index(text.casefold())
        elif number is not None and values.count(number) == 1:
            index[text] = values.index(number)
        elif number is not None and number in range(len(label_names)) and set(values) == {None}:
            index[text] = int(number)
            counted = True
    unknown = np.array([text not in index for text in texts])
    if unknown.any():
        first = next(text for text in texts if text not in index)
        raise InputError(
            f"'{path}' answers with the unknown label {first!r} in {rows_of(unknown, frame)}; the data's labels are "
            f"[{listed(label_names)}]."
        )
    if counted:
        notice(
            "numbered-labels",
            f"'{path}' answers with numbers where the classes have names: 0 is taken for {label_names[0]!r} and "
            f"{len(label_names) - 1} for {label_names[-1]!r}. Give the names if that is not so.",
        )
    return np.array([index[text] for text in texts], dtype=np.int64)


def _text(value: Any) -> str | None:
    """A cell as text; ``None`` if it is missing."""
    if isinstance(value, str):
        return value
    if value is None or value != value or type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def swift_cost_columns(score: str, columns: Container[str]) -> tuple[list[str], list[str]]:
    """Columns of joint records whose sums are the Swift's part of a pair's costs: of kept inputs, and of deferred ones.

    >>> swift_cost_columns("encoder_energy", ["swift_early_flops"])
    (['swift_flops'], ['swift_early_flops'])
    """
    if score in BEFORE_DECODER:
        return ["swift_flops"], ["swift_early_flops" if "swift_early_flops" in columns else "swift_flops"]
    extra = [name for name in (f"swift_{score}_flops", "swift_score_flops") if name in columns][:1]
    kept, deferred = ["swift_flops", *extra], f"swift_{score}_deferred_flops"
    return kept, [deferred] if deferred in columns else kept
