"""Labels: reading the column, the classes and their order, class indices and numbers."""

import math
import re
import unicodedata
from collections import Counter
from decimal import Decimal
from itertools import islice
from numbers import Number
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from elang.data.columns import column_of, column_place, describe
from elang.errors import InputError
from elang.notices import notice

_SEPARATORS = "|;,/+ "
_MISSING = ("nan", "null", "none", "n/a", "<na>")
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_LIST = re.compile(r"""\s*(\[[\s\d.,eE+-]*\]|[\[({]\s*(['"]).*\2.*[\])}])\s*""", re.DOTALL)


def label_values(frame: Any, column: str, where: str) -> list[str]:
    """The label column of a frame as strings; an ``InputError`` if one is missing, infinite, or no name or number."""
    values = column_of(frame, column, where, "--data.label")
    labels = list(map(str, values))
    distinct, types = {*labels}, {*map(type, values)}
    missing = [False] * len(values)
    if types != {str}:
        missing = frame.iloc[:, column_place(list(frame.columns), column)].isna().tolist()
    if any(missing) or not all(map(str.strip, distinct)):
        row = next(row for row, label in enumerate(labels) if missing[row] or not label.strip())
        raise InputError(f"{where} has no label in row {row} (counted from 0). Remove or fill it.")
    # Number includes decimals and numpy's scalars.
    if refused := {kind for kind in types if not issubclass(kind, str | Number)}:
        row = next(row for row, value in enumerate(values) if type(value) in refused)
        _refuse(describe(values[row]), where, row)
    if float in types and (infinite := distinct & {"inf", "-inf"}):
        row = next(row for row, label in enumerate(labels) if label in infinite)
        raise InputError(f"{where} has the label {labels[row]} in row {row} (counted from 0). Correct or remove it.")
    return labels


def _refuse(value: str, where: str, row: int, remedy: str = "") -> NoReturn:
    raise InputError(
        f"{where} has {value} as its label in row {row} (counted from 0), but one label a row is needed: the name of a "
        "class, or a number in a regression. Several labels a row (multi-label), a label for each token and answers in "
        f"a text (question answering) are not supported: make one data set for each label.{remedy}"
    )


def class_names(values: list[str], where: str) -> list[str]:
    """Distinct labels in an order that depends on nothing else: as numbers if all are whole numbers, else as texts.

    Of several spellings of one label (``1`` and ``1.0``, with and without blanks around it) the shortest is the name.

    Raises:
        InputError: If labels are lists, or several names joined.

    >>> class_names(["10", "2", "2.0"], "x")
    ['2', '10']
    """
    by_spelling: dict[str, str] = {}
    remedy = " If it is the name of a class, list all names with --data.label_names."
    for name in sorted({*values}, key=lambda name: (len(name), name)):
        if _LIST.fullmatch(name):
            _refuse(f"a list or an object ({name})", where, values.index(name), remedy)
        by_spelling.setdefault(_spelling(name), name)
    names = sorted(by_spelling.values())
    for name in names:
        for separator in _SEPARATORS:
            if separator in name and all(_spelling(part) in by_spelling for part in name.split(separator)):
                _refuse(f"several labels ('{name}')", where, values.index(name), remedy)
    by_look: dict[Any, list[str]] = {}
    for name in names:
        by_look.setdefault(_look(name), []).append(name)
    odd = [str(group) for group in by_look.values() if len(group) > 1 or group[0].casefold() in _MISSING]
    if odd:
        notice("like-labels", f"{where} has labels that look alike or missing, {odd[0]}; each is a class of its own.")
    all_integers = all(_INTEGER.fullmatch(name) for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if all_integers else names


def _spelling(name: str) -> str:
    """A form that all spellings of one label share."""
    name = unicodedata.normalize("NFC", name.strip())
    if number := re.fullmatch(r"([+-]?[0-9]+)\.([0-9]*?)0*", name):
        return number[1] + ("." + number[2] if number[2] else "")
    return name.lower() if name.lower() in ("true", "false") else name


def _look(name: str) -> Any:
    """A form that labels share if readers cannot tell them apart."""
    name = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
    name = name.strip().casefold()
    return Decimal(name) if re.fullmatch(r"[+-]?\d+(\.\d*)?(e[+-]?\d{1,3})?", name) else name


def _is_number(name: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d*)?", unicodedata.normalize("NFKC", name.strip())) is not None


def label_index(
    values: list[str] | list[str | None],
    label_names: list[str],
    where: str,
    numbers: Literal["accept", "notice", "refuse"] = "accept",
) -> Tensor:
    """Map labels to class indices: by name, or all by number where no name is a number.

    Labels that are spelled differently (``1.0`` and ``1``, ``true`` and ``True``, blanks around them) are mapped with a
    notice. ``None`` is an unknown label: -1.

    Args:
        values: The labels.
        label_names: The classes in order.
        where: Name of the data in messages.
        numbers: Whether to accept numbers for names, silently or with a notice, or to refuse them because the order of
            the names was not given.

    Raises:
        InputError: If a label is not among the names.

    >>> label_index(["1", "0"], ["negative", "positive"], "x")
    tensor([1, 0])
    """
    index: dict[str | None, int] = {None: -1} | {name: i for i, name in enumerate(label_names)}
    distinct = {value for value in values if value is not None}
    if unknown := sorted(distinct - index.keys()):
        by_number = {str(i): name for i, name in enumerate(label_names)}
        numbered = not any(map(_is_number, label_names)) and by_number.keys() >= {*map(_spelling, distinct)}
        if numbered and numbers == "refuse":
            raise InputError(
                f"The labels of {where} are numbers, but those of the training file are the names {label_names}. Write "
                "them alike, or set --data.label_names to the names in the order of the numbers, from 0."
            )
        counts = Counter(map(_spelling, label_names))
        by_spelling = {_spelling(name): name for name in label_names if counts[_spelling(name)] == 1}
        names = by_number if numbered else by_spelling
        matches = {value: names[_spelling(value)] for value in unknown if _spelling(value) in names}
        index |= {value: index[name] for value, name in matches.items()}
        examples = ", ".join(f"{value!r} for {name!r}" for value, name in islice(matches.items(), 4))
        if numbered and numbers == "notice":
            notice("numbered-labels", f"Labels of {where} are taken as indices into the label names: {examples}.")
        elif matches and not numbered:
            notice("label-spelling", f"Labels of {where} are spelled differently from the label names: {examples}.")
    try:
        return torch.tensor([index[value] for value in values], dtype=torch.int64)
    except KeyError:
        row = next(row for row, value in enumerate(values) if value not in index)
        raise InputError(
            f"{where} has the unknown label '{values[row]}' in row {row} (counted from 0); known are {label_names}. "
            "Correct the row, or set the labels with --data.label_names."
        ) from None


def label_numbers(values: list[str], where: str) -> Tensor:
    """Labels of a regression, float64 ``(N,)``; an ``InputError`` if one is no finite number."""
    numbers = []
    for row, value in enumerate(values):
        try:
            # float() would read 1_5 as 15.
            number = float(value) if "_" not in value else math.nan
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(
                f"{where} has the label '{value}' in row {row} (counted from 0), which is no finite number. Correct it."
            )
        numbers.append(number)
    return torch.tensor(numbers, dtype=torch.float64)
