"""Tables of answers, in three formats: read alike, and every column checked, with the rows that are wrong."""

import re
from collections.abc import Collection
from decimal import Decimal
from math import inf, isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from elang.errors import InputError
from elang.json_files import json_rows
from elang.notices import notice
from elang.tables import TABLE_SUFFIXES, file_lines, read_parquet, refuse_row

_MOST_EXACT = 2**53
_MOST = 5  # rows that a message names
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def rows_of(bad: Any, frame: Any) -> str:
    """Name the rows of a frame where ``bad`` is true, by their numbers in the file.

    >>> import pandas as pd
    >>> rows_of(np.array([False, True, True]), pd.DataFrame({"id": [4, 5, 6]}))
    'rows 1 and 2 (counted from 0)'
    """
    numbers = [str(row) for row in frame.index[np.asarray(bad)]]
    shown, more = numbers[:_MOST], len(numbers) - _MOST
    said = ", ".join(shown) if more > 0 else " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
    return f"row{'s' * (len(numbers) > 1)} {said}{f' and {more} more' * (more > 0)} (counted from 0)"


def read_columns(path: Path, known: Collection[str]) -> tuple[Any, list[str]]:
    """Read the columns of a table that are ``known``; values of others are not looked at.

    Returns:
        The frame, whose index counts the file's rows from 0, and the names of all columns.

    Raises:
        InputError: If the file is no parquet, JSONL or CSV file.
        ValueError: If it is damaged; and whatever else the readers raise.
    """
    readers = {".parquet": read_parquet, ".jsonl": _read_jsonl, ".csv": _read_csv}
    if (reader := readers.get(path.suffix.lower())) is None:
        raise InputError(f"Records are read from {', '.join(TABLE_SUFFIXES)}, but the file is '{path}'.")
    frame, names = reader(path, known)
    if twice := [name for name in known if names.count(name) > 1]:
        raise ValueError(f"it has {names.count(twice[0])} columns '{twice[0]}'")
    # Here, for texts that are no UTF-8 would show later.
    return frame.astype({name: object for name, kind in frame.dtypes.items() if kind.kind not in "iufb"}), names


def _read_jsonl(path: Path, known: Collection[str]) -> tuple[Any, list[str]]:
    import pandas as pd

    rows = [row for row in json_rows(file_lines(path), path) if row is not None]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names if name in known}
    return pd.DataFrame({name: _plain(values) for name, values in columns.items()}, index=range(len(rows))), names


def _plain(values: list[Any]) -> Any:
    """Numbers as numbers, and all else as it is: the library would make 1 of true, and 1.0 of 1 beside a null."""
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
        # A first row that is wider than the header would move all columns; without a header it is an error.
        names = pd.read_csv(path, header=None, nrows=2, dtype=str, **options).iloc[0].tolist()
        options["dtype"] = {name: str for name in names if name not in known or name in ("split", "prediction")}
        options |= {"index_col": False, "low_memory": False, **exact_floats()}
        frame = pd.read_csv(path, **options)
    except pd.errors.ParserError:
        refuse_row(path, tabs=False)
        raise
    return frame[[name for name in names if name in known and names.count(name) == 1]], names


def exact_floats() -> dict[str, Any]:
    """The option by which pandas reads a CSV file's numbers as they are written.

    Versions before 3.1 are else out by the last bit in a third of all numbers; from there on it is deprecated.
    """
    import pandas as pd

    older = tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1)
    return {"float_precision": "round_trip"} if older else {}


def numbers(frame: Any, name: str, path: str, whole: bool = False, least: float = -inf, unknown: bool = False) -> Any:
    """A column of numbers, none of which a conversion changes in silence.

    Args:
        frame: The table.
        name: Of the column.
        path: Of the file, for messages.
        whole: They are whole numbers of 64 bits.
        least: None may be below it.
        unknown: All of them may be missing.

    Returns:
        int64 or float64 ``(N,)``, or ``None`` where all are missing.

    Raises:
        InputError: Naming the column and the rows.
    """
    values = frame[name]
    lost = np.array(values.isna())
    if values.dtype == object:
        lost |= np.array([isinstance(value, str) and not value.strip() for value in values])
    if unknown and lost.all():
        return None
    found = values.to_numpy()
    if values.dtype.kind not in "iuf":
        found = np.array([_number(value, whole) for value in values], dtype=object)
        bad = np.array([number is None for number in found], dtype=bool)
        found = np.where(bad, 0, found)
    else:
        bad = ~np.isfinite(found)
    with np.errstate(invalid="ignore"):
        bad |= np.array(found < least, dtype=bool)
        if whole:
            # Of larger ones a floating-point number does not hold every digit.
            most = _MOST_EXACT if values.dtype.kind == "f" else 2**63
            bad |= np.array((found < -most) | (found >= most), dtype=bool)
            bad |= np.array(np.where(bad, 0, found) % 1 != 0, dtype=bool)
    bad |= lost
    if bad.any():
        first = values[bad].iloc[0]
        first = first.item() if isinstance(first, np.generic) else first
        kind = "a whole number" if whole else "a finite number"
        if whole and isinstance(first, float) and isfinite(first) and abs(first) >= _MOST_EXACT:
            kind += " that no floating-point number has rounded"
        limit = "" if least == -inf else f" of at least {least:g}"
        partly = " or leave all of them out" if unknown and lost.any() else ""
        raise InputError(
            f"'{path}' has {first!r} as its '{name}' in {rows_of(bad, frame)}, where {kind}{limit} is needed. Correct "
            f"these values{partly}, or remove the column."
        )
    return found.astype(np.int64 if whole else np.float64)


def _number(value: Any, whole: bool) -> Any:
    """A cell as a number, ``None`` where it is none."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = int(value) if whole and re.fullmatch(r"\s*[+-]?\d{1,30}\s*", value) else float(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real | Decimal):
        return None
    if isinstance(value, Integral) or (whole and isinstance(value, Decimal) and isfinite(value) and value % 1 == 0):
        return int(value) if abs(int(value)) < 2**1000 else None
    return float(value) if isfinite(value) and not (whole and abs(float(value)) >= _MOST_EXACT) else None


def vectors(frame: Any, name: str, size: int, path: str, missing: bool = False) -> Any:
    """A column of lists of numbers.

    Args:
        frame: The table.
        name: Of the column.
        size: Numbers in each list.
        path: Of the file, for messages.
        missing: ``-inf`` may stand in a list, but not alone.

    Returns:
        float64 ``(N, size)``; each is finite in float32, too.

    Raises:
        InputError: Naming the rows.
    """
    values = frame[name].tolist()
    try:
        found = np.array(values)
    except ValueError:
        found = np.empty(0)
    if found.shape != (len(values), size) or found.dtype.kind not in "iuf":
        bad = np.array([not _is_vector(row, size) for row in values], dtype=bool)
        found = np.array([np.zeros(size) if wrong else list(row) for row, wrong in zip(values, bad, strict=True)])
    else:
        bad = np.zeros(len(values), dtype=bool)
    found = found.astype(np.float64)
    with np.errstate(over="ignore"):
        single = found.astype(np.float32)
    none = np.isneginf(found) & missing
    bad |= ~(np.isfinite(single) | none).all(-1) | none.all(-1)
    if bad.any():
        raise InputError(
            f"'{path}' has the {name} {frame[name][bad].iloc[0]!r} in {rows_of(bad, frame)}, where {size} finite "
            f"numbers are needed, one for each {'score' if name == 'scores' else 'label'}. Correct them, or leave the "
            "column out."
        )
    return found


def _is_vector(row: Any, size: int) -> bool:
    if not hasattr(row, "__len__") or isinstance(row, str | bytes | dict) or len(row) != size:
        return False
    return all(isinstance(v, Real) and not isinstance(v, bool | np.bool_) for v in row)


def labels(frame: Any, name: str, label_names: list[str], path: str, none: bool = False) -> Any:
    """A column of labels as their places among ``label_names``, int64 ``(N,)``.

    Text, numbers and truth values are read alike in all formats: ``1``, ``1.0`` and ``"1"`` are the class ``'1'``.
    Where no class is named by a number, a number counts them from 0, as in a file of data.

    Args:
        frame: The table.
        name: Of the column.
        label_names: The classes.
        path: Of the file, for messages.
        none: An empty text is an answer that names no class, -1.

    Raises:
        InputError: If one is missing or unknown, with the rows.
    """
    values = frame[name].to_numpy()
    # The library takes true for 1.
    spelt = [value if isinstance(value, str) else _spelt(value) for value in values.tolist()]
    index: dict[str | None, int] = dict(zip(label_names, range(len(label_names)), strict=True))
    lost = np.array([text is None or (not text.strip() and text not in index and not none) for text in spelt])
    if lost.any():
        raise InputError(
            f"'{path}' has no answer ('{name}' is empty) in {rows_of(lost, frame)}. Ask the model again for these, or "
            "leave the examples out of the data."
        )
    named = [float(name) if _NUMBER.fullmatch(name) else None for name in label_names]
    folded = [name.casefold() for name in label_names]
    counted = False
    for text in set(spelt) - index.keys():
        assert text is not None
        truth = {"true": 1.0, "false": 0.0}.get(text.casefold())
        number = float(text) if _NUMBER.fullmatch(text) else truth
        if none and not text:
            index[text] = -1
        elif truth is not None and folded.count(text.casefold()) == 1:
            index[text] = folded.index(text.casefold())
        elif number is not None and named.count(number) == 1:
            index[text] = named.index(number)
        elif number is not None and number in range(len(label_names)) and set(named) == {None}:
            index[text] = int(number)
            counted = True
    unknown = np.array([text not in index for text in spelt])
    if unknown.any():
        first = next(text for text in spelt if text not in index)
        shown = ", ".join(map(repr, label_names[:8])) + (f" and {len(label_names) - 8} more" * (len(label_names) > 8))
        raise InputError(
            f"'{path}' answers with the unknown label {first!r} in {rows_of(unknown, frame)}; the data's labels are "
            f"[{shown}]."
        )
    if counted:
        notice(
            "numbered-labels",
            f"'{path}' answers with numbers where the classes have names: 0 is taken for {label_names[0]!r} and "
            f"{len(label_names) - 1} for {label_names[-1]!r}. Give the names if that is not so.",
        )
    return np.array([index[text] for text in spelt], dtype=np.int64)


def _spelt(value: Any) -> str | None:
    """A cell that is no text as one; ``None`` where it is missing."""
    if value is None or value != value or type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
