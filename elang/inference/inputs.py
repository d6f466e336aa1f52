"""The inputs of a pair: what is taken as one, and how they are read from a file."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import reduce
from itertools import groupby
from operator import add
from typing import Any

import torch

from elang.data.columns import columns_of
from elang.data.tokens import EncodedExamples
from elang.errors import InputError
from elang.inference.prediction import Deferred
from elang.tables import SUFFIXES, file_lines, suffix_of, text_lines

_PLAIN = re.compile(r"[\s!-^a-~]*", re.ASCII)
_YAML_INFINITY = re.compile(r"^([+-]?)\.(?:inf|Inf|INF)$")


def tokens_of(deferred: list[Deferred]) -> EncodedExamples | None:
    """The Super's tokens of what was deferred, if they are known."""
    parts = []
    for window, group in groupby(deferred, key=lambda one: one.window):
        if window.super_encoded is None:
            return None
        parts.append(window.super_encoded.texts.take(torch.tensor([one.place for one in group])))
    return EncodedExamples(reduce(add, parts))


def each_text(texts: Iterable[Any], what: str = "texts") -> Iterable[Any]:
    """What texts were given in, to be gone through one by one.

    Raises:
        InputError: Of what would give its column names, its characters or an order of its own, naming its type.
    """
    if isinstance(texts, (list, Iterator)):
        return texts
    if isinstance(texts, (str, bytes, bytearray, memoryview)):
        raise InputError(
            f"The {what} were given as {kind_of_input(texts)} alone: {texts[:40]!r}. "
            "Put texts into a list, also a single one."
        )
    if isinstance(texts, Mapping) or hasattr(texts, "columns") or hasattr(texts, "column_names"):
        raise InputError(
            f"The {what} were given as {kind_of_input(texts)}, of which only the names of columns would be answered. "
            "Give the column of texts: table['text']; of two, list(zip(table['a'], table['b']))."
        )
    if isinstance(texts, Set):
        raise InputError(f"The {what} were given as {kind_of_input(texts)}, which has no order. Give a list.")
    for convert in ("to_pylist", "tolist"):
        # Elements of arrays are not plain texts.
        if hasattr(texts, convert):
            found = getattr(texts, convert)()
            return found if isinstance(found, list) else each_text(found, what)
    if not isinstance(texts, Iterable):
        raise InputError(f"The {what} were given as {kind_of_input(texts)}. Give a list of texts.")
    return texts


def is_unicode(text: str) -> bool:
    """Whether a text is free of lone surrogates, which no tokenizer takes."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def kind_of_input(value: Any) -> str:
    """The type of a value, in words."""
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}."
    return f"the type {module}{kind.__qualname__}"


def as_number(threshold: str | float) -> float | None:
    """A threshold given as a number or as its text; ``None`` where it is a name."""
    if isinstance(threshold, str):
        threshold = _YAML_INFINITY.sub(r"\1inf", threshold)
    try:
        # Of other scripts' digits, and of "1_0", a name.
        return float(threshold) if not isinstance(threshold, str) or _PLAIN.fullmatch(threshold) else None
    except ValueError:
        return None


def input_columns(source: str, text: list[str] | str | None) -> list[str] | None:
    """Names of the text columns of ``source``, or nothing where each line is an input.

    Raises:
        InputError: If it is a table and no column is named: its lines would be taken for texts, labels and all.
    """
    columns = columns_of(text)
    if not columns and suffix_of(source) in SUFFIXES:
        raise InputError(
            f"The input '{source}' is a table: name its text column (or two) with --text. Where each of its lines is "
            "one input as it stands, give them by standard input, --input -."
        )
    return columns


def read_inputs(source: str, columns: list[str] | None, empty: bool = False) -> Iterator[Any]:
    """Read inputs one by one; tables are read whole. Lines may be ``empty`` where texts may."""
    if columns:
        from elang.data.columns import read_frame, texts_of

        yield from texts_of(read_frame(source), columns, f"'{source}'", empty, "--text")
        return
    if source == "-" and sys.stdin is None:
        raise InputError("Standard input is closed. Give the inputs' file with --input.")
    # Its bytes, for which encoding Python takes them to be in depends on the locale.
    lines = text_lines(sys.stdin.buffer, "Standard input") if source == "-" else file_lines(source)
    for number, line in enumerate(lines, 1):
        if not line.strip() and not empty:
            raise InputError(f"Line {number} of '{source}' is empty. Remove it; every line is one input.")
        yield line.rstrip("\r\n")
