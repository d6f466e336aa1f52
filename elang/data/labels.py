"""Labels: the column as it is written, the classes and their order, class indices and numbers."""

import re
import unicodedata
from decimal import Decimal
from itertools import islice
from numbers import Number
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from elang.data.columns import column_of, column_place, kind_of
from elang.errors import InputError
from elang.notices import notice


def label_values(frame: Any, column: str, where: str) -> list[str]:
    """Take the label column of a frame as strings.

    Raises:
        InputError: If the column is missing, or a label is missing, blank, or something else than one name or number.
    """
    values = column_of(frame, column, where, "--data.label")
    found = list(map(str, values))
    distinct, kinds = {*found}, {*map(type, values)}
    bare = [False] * len(values)
    if kinds != {str}:
        bare = frame.iloc[:, column_place(list(frame.columns), column)].isna().tolist()
    if any(bare) or not all(map(str.strip, distinct)):
        row = next(i for i, text in enumerate(found) if bare[i] or not text.strip())
        raise InputError(f"{where} has no label in row {row} (counted from 0). Remove or fill it.")
    # Numpy's scalars and decimals are numbers, too.
    if odd := {kind for kind in kinds if not issubclass(kind, str | Number)}:
        row = next(i for i, value in enumerate(values) if type(value) in odd)
        _refuse(kind_of(values[row]), where, row)
    if float in kinds and (endless := distinct & {"inf", "-inf"}):
        row = next(i for i, text in enumerate(found) if text in endless)
        raise InputError(f"{where} has the label {found[row]} in row {row} (counted from 0). Correct or remove it.")
    return found


def _refuse(kind: str, where: str, row: int, remedy: str = "") -> NoReturn:
    raise InputError(
        f"{where} has {kind} as its label in row {row} (counted from 0), but one label a row is needed: the name of a "
        "class, or a number in a regression. Several labels a row (multi-label), a label for each token and answers in "
        f"a text (question answering) are not supported: make one data set for each label.{remedy}"
    )


def class_names(values: list[str], where: str) -> list[str]:
    """Distinct labels in an order that depends on nothing else: as numbers if all are whole numbers, else as texts.

    Of several spellings of one label (``1`` and ``1.0``, with and without blanks around it) the shortest one counts.

    Raises:
        InputError: If labels are lists, or several names joined.

    >>> class_names(["10", "2", "2.0"], "x")
    ['2', '10']
    """
    spelled: dict[str, str] = {}
    listed = " If it is the name of a class, list all names with --data.label_names."
    for name in sorted({*values}, key=lambda name: (len(name), name)):
        if _LISTED.fullmatch(name):
            _refuse(f"a list or an object ({name})", where, values.index(name), listed)
        spelled.setdefault(_same_label(name), name)
    names = sorted(spelled.values())
    for name in names:
        if any(mark in name and all(_same_label(part) in spelled for part in name.split(mark)) for mark in _JOINTS):
            _refuse(f"several labels ('{name}')", where, values.index(name), listed)
    alike: dict[Any, list[str]] = {}
    for name in names:
        alike.setdefault(_looks(name), []).append(name)
    odd = [str(group) for group in alike.values() if len(group) > 1 or group[0].casefold() in _MISSING]
    if odd:
        notice("like-labels", f"{where} has labels that look alike or missing, {odd[0]}; each is a class of its own.")
    whole = all(_WHOLE.fullmatch(name) for name in names)
    return sorted(names, key=lambda name: (int(name), name)) if whole else names


_JOINTS = "|;,/+ "
_MISSING = ("nan", "null", "none", "n/a", "<na>")
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_LISTED = re.compile(r"""\s*(\[[\s\d.,eE+-]*\]|[\[({]\s*(['"]).*\2.*[\])}])\s*""", re.DOTALL)


def _same_label(name: str) -> str:
    """What spellings of one label have in common."""
    name = unicodedata.normalize("NFC", name.strip())
    if number := re.fullmatch(r"([+-]?[0-9]+)\.([0-9]*?)0*", name):
        return number[1] + ("." + number[2] if number[2] else "")
    return name.lower() if name.lower() in ("true", "false") else name


def _looks(name: str) -> Any:
    """A label as a reader sees it, so that two that look alike can be told: without invisible characters."""
    name = "".join(one for one in unicodedata.normalize("NFKC", name) if unicodedata.category(one) != "Cf")
    name = name.strip().casefold()
    return Decimal(name) if re.fullmatch(r"[+-]?\d+(\.\d*)?(e[+-]?\d{1,3})?", name) else name


def _number_like(name: str) -> bool:
    """Whether a label is a number, in whatever digits."""
    return re.fullmatch(r"[+-]?\d+(\.\d*)?", unicodedata.normalize("NFKC", name.strip())) is not None


def label_index(
    values: list[str] | list[str | None],
    label_names: list[str],
    where: str,
    numbers: Literal["taken", "told", "refused"] = "taken",
) -> Tensor:
    """Map labels to class indices: by name, or all by number where no name is a number.

    Labels that are spelled otherwise (``1.0`` and ``1``, ``true`` and ``True``, blanks around them) are found, with a
    notice.

    Args:
        values: The labels; ``None`` is not known, and becomes -1.
        label_names: The classes in order.
        where: They are from, in messages.
        numbers: What to do where labels are numbers and the names are not: take them for places in ``label_names``,
            with a notice or without, or refuse them, for nobody has said in what order the names are.

    Raises:
        InputError: If a label is not known.

    >>> label_index(["1", "0"], ["negative", "positive"], "x")
    tensor([1, 0])
    """
    index: dict[str | None, int] = {None: -1} | {name: i for i, name in enumerate(label_names)}
    unknown = sorted({value for value in values if value is not None} - index.keys())
    places = {str(i): i for i in range(len(label_names))} if not any(map(_number_like, label_names)) else {}
    if unknown and places and places.keys() >= {_same_label(value) for value in {*values} if value is not None}:
        index.update({value: places[_same_label(value)] for value in unknown})
        said = ", ".join(f"'{value}' for '{label_names[places[_same_label(value)]]}'" for value in unknown[:4])
        if numbers == "refused":
            raise InputError(
                f"The labels of {where} are numbers, but those of the training file are the names {label_names}. Write "
                "them alike, or set --data.label_names to the names in the order of the numbers, from 0."
            )
        if numbers == "told":
            notice("numbered-labels", f"Labels of {where} are taken for places in the label names: {said}.")
    elif unknown:
        same: dict[str, list[str]] = {}
        for name in label_names:
            same.setdefault(_same_label(name), []).append(name)
        known = {value: found[0] for value in unknown if len(found := same.get(_same_label(value), [])) == 1}
        index |= {value: index[name] for value, name in known.items()}
        if known:
            said = ", ".join(f"{value!r} for {name!r}" for value, name in islice(known.items(), 4))
            notice("label-spelling", f"Labels of {where} are spelled otherwise than the label names: {said}.")
    try:
        return torch.tensor([index[value] for value in values], dtype=torch.int64)
    except KeyError:
        row = next(i for i, value in enumerate(values) if value not in index)
        raise InputError(
            f"{where} has the unknown label '{values[row]}' in row {row} (counted from 0); known are {label_names}. "
            "Correct the row; set labels of your own with --data.label_names."
        ) from None


def label_numbers(values: list[str], where: str) -> Tensor:
    """Labels of a regression, float64 ``(N,)``.

    Raises:
        InputError: If one is no finite number.
    """
    found = torch.empty(len(values), dtype=torch.float64)
    for row, value in enumerate(values):
        try:
            # Python would take 1_5 for 15.
            found[row] = float(value) if "_" not in value else torch.nan
        except ValueError:
            found[row] = torch.nan
        if not found[row].isfinite():
            raise InputError(
                f"{where} has the label '{value}' in row {row} (counted from 0), which is no finite number. Correct it."
            )
    return found
