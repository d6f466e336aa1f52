"""The columns of a table of answers: which file, which columns, and what each of them is."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.data.examples import content_key
from elang.errors import InputError, listed
from elang.method.pool import PERSON
from elang.records.columns import read_columns

_COLUMN = re.compile(r"(.+?)[./_](correct|worth|answer|cost|confidence|score(?:_\w+)?)")
_TRUTH = {"true": 1.0, "false": 0.0}
WORTH = ("correct", "worth", "answer")
"""Columns that say what an answer is worth, the first one that is there."""


@dataclass(frozen=True)
class TableColumns:
    """What the columns of a table are, besides those of models, ``NAME.correct``, ``NAME.cost`` and so on.

    Attributes:
        columns: Other names for columns: ``{small.correct: is_right}`` reads ``is_right`` as ``small.correct``.
        costs: What any answer of a model costs, by its name, in place of a column.
        reference: Right answers, with which ``NAME.answer`` is compared.
        id: Names each example; by default ``id``, if there is one.
        text: The inputs. Equal ones count once in a certificate.
        group: Examples that belong together, such as questions about one passage: each group counts once.
        split: Which rows choose (``routing``), and which show what was chosen (``validation``, or ``test``).
        held_out: Without a split column, the share of rows that choose; a hash picks them.
        person: What asking a person costs, and the probability that one is right: ``{cost: 2, right: 0.98}``; without
            ``right`` always. A person is the last model of pairs and chains, called ``person``.
    """

    columns: dict[str, str] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    reference: str | None = None
    id: str | None = None
    text: str | None = None
    group: str | None = None
    split: str | None = None
    held_out: float = 0.5
    person: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {"cost", "right"}
        if self.person and not ({"cost"} <= self.person.keys() <= known):
            raise InputError(f"--person needs a 'cost' and may have 'right', but it has {listed(list(self.person))}.")
        if not 0 <= self.person.get("cost", 0) < math.inf or not 0 <= self.person.get("right", 1) <= 1:
            raise InputError(f"--person needs a cost from 0 and 'right' from 0 to 1, but it is {self.person}.")


def table_frame(source: Any, path: Path, about: TableColumns) -> tuple[Any, list[str]]:
    """The columns of a file that matter, by the names of the convention, and all names."""
    given = [about.reference, about.id or "id", about.text, about.group, about.split]
    if isinstance(source, str | Path):
        if not path.is_file():
            raise InputError(f"There is no file '{path}'. Give the path of a table of answers.")
        wanted = _Wanted({name for name in given if name} | set(about.columns.values()))
        try:
            source, names = read_columns(path, wanted)
        except InputError:
            raise
        except Exception as error:  # readers of damaged files raise many types
            raise InputError(f"The file '{path}' cannot be read: {str(error).strip()}. Save it again.") from error
        if twice := [name for name in names if names.count(name) > 1 and name in wanted]:
            raise InputError(f"'{path}' has {names.count(twice[0])} columns '{twice[0]}'. Rename or remove one.")
    frame = source.reset_index(drop=True)
    if missing := [name for name in (*about.columns.values(), *given) if name and name not in frame and name != "id"]:
        raise InputError(f"'{path}' has no column '{missing[0]}'; it has {listed([str(name) for name in frame])}.")
    if not len(frame):
        raise InputError(f"'{path}' has no rows. Give a table with a row for each example.")
    if clash := [new for new, old in about.columns.items() if new in frame and new != old]:
        raise InputError(f"--columns names another column '{clash[0]}', but '{path}' has one already. Rename it.")
    frame = frame.rename(columns={old: new for new, old in about.columns.items()})
    # Truth values are 1 and 0 in all formats.
    for name in frame:
        found = _COLUMN.fullmatch(str(name))
        if found and found[2] in ("correct", "worth") and frame[name].dtype.kind not in "iuf":
            frame[name] = [_TRUTH.get(str(value).strip().lower(), value) for value in frame[name]]
    return frame, [str(name) for name in frame]


class _Wanted:
    """The names of a table that are read: some by themselves, and all of the convention."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def __contains__(self, name: object) -> bool:
        return name in self.names or _COLUMN.fullmatch(str(name)) is not None

    def __iter__(self) -> Any:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def columns_of_models(names: list[str], about: TableColumns, path: Path) -> dict[str, dict[str, str]]:
    """For each model what its columns are: ``{"small": {"correct": "small.correct", "cost": ...}}``."""
    found: dict[str, dict[str, str]] = {}
    others = {about.reference, about.id, about.text, about.group, about.split}
    for name in names:
        if name not in others and (match := _COLUMN.fullmatch(name)):
            known = found.setdefault(match[1], {})
            if match[2] in known:
                raise InputError(f"'{path}' has '{known[match[2]]}' and '{name}', which mean the same. Remove one.")
            known[match[2]] = name
    for model, columns in found.items():
        worth = next((kind for kind in WORTH if kind in columns), None)
        if worth is None or (worth == "answer" and about.reference is None):
            missing = f"'{model}.correct'" if worth is None else "--reference, the column of right answers,"
            raise InputError(
                f"'{path}' does not say which answers of '{model}' are right: it has {listed(list(columns.values()))}. "
                f"Add {missing} or '{model}.worth', or rename the columns."
            )
        if "cost" not in columns and model not in about.costs:
            raise InputError(
                f"'{path}' does not say what '{model}' costs. Add a column '{model}.cost', or give what any answer of "
                f"it costs: --costs '{{{model}: 0.001}}'."
            )
    if unknown := [name for name in about.costs if name not in found]:
        raise InputError(f"--costs names '{unknown[0]}', but the models of '{path}' are {listed(list(found))}.")
    if PERSON in found and about.person:
        raise InputError(f"'{path}' has columns of '{PERSON}' already. Leave --person out, or rename them.")
    if len(found) + bool(about.person) < 2:
        raise InputError(
            f"'{path}' has {len(found)} models, and it takes two or more. A model is what has a column 'NAME.correct', "
            f"'NAME.worth' or 'NAME.answer'; the columns are {listed(names)}. --columns gives other names."
        )
    return found


def texts(frame: Any, name: str) -> list[str]:
    """A column as texts without spaces around them, empty where a value is missing."""
    return ["" if value is None or value != value else str(value).strip() for value in frame[name].tolist()]


def hashed(frame: Any, name: str, path: Path) -> Tensor:
    """A hash of each value of a column, none of which may be missing."""
    values = texts(frame, name)
    if empty := [row for row, text in enumerate(values) if not text]:
        raise InputError(f"'{path}' has no '{name}' in row {empty[0]} (counted from 0). Fill it in.")
    return torch.tensor([content_key((text,)) for text in values], dtype=torch.int64)
