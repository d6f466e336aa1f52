"""Inputs of a cascade: what is accepted as one, and how they are read from a file."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import Any

from elang.backends.backend import check_choices
from elang.data.columns import columns_of
from elang.errors import InputError
from elang.inference.stream import Window
from elang.tables import SUFFIXES, file_lines, suffix_of, text_lines
from elang.tasks.text_task import TextTask


def as_rows(texts: Iterable[Any]) -> list[tuple[str, ...]]:
    """Inputs as tuples of texts, which have yet to be checked."""
    if type(texts) is list and set(map(type, texts)) <= {tuple}:
        return texts
    return [tuple(text) if isinstance(text, (tuple, list)) else (text,) for text in each_text(texts)]


def checked_texts(rows: list[tuple[str, ...]], fields: list[str], *, first: int, empty: bool) -> list[tuple[str, ...]]:
    """Refuse inputs that are not texts for the task's ``fields``, or that are ``empty`` unless this is allowed.

    Raises:
        InputError: Naming the input's number, counted from ``first``.
    """
    flat = list(chain.from_iterable(rows))
    valid = set(map(type, flat)) <= {str} and set(map(len, rows)) <= {len(fields)} and _is_unicode("".join(flat))
    if valid and (empty or all(map(str.strip, flat))):
        return rows
    for number, row in enumerate(rows, first):
        value: Any = row[0] if len(row) == 1 else row
        name = f"Input {number} (counted from 0)"
        if others := [text for text in row if not isinstance(text, str)]:
            raise InputError(f"{name} is not a text, but of {type_name(others[0])}: {str(value)[:200]!r}. Give a text.")
        if not all(map(_is_unicode, row)):
            raise InputError(f"{name} contains half a character (a lone surrogate): {value!r}. Correct it.")
        if len(row) != len(fields):
            raise InputError(f"{name} has {len(row)} text(s), but the task has {len(fields)}: {fields}. Correct it.")
        if not (empty or all(map(str.strip, row))):
            blank = next(field for field, text in zip(fields, row, strict=True) if not text.strip())
            raise InputError(f"{name} is empty{'' if len(row) == 1 else f' in {blank!r}'}. Remove or correct it.")
    # Texts of another type, such as NumPy's.
    return [tuple(map(str, row)) for row in rows]


def window_of(rows: list[tuple[str, ...]], choices: Sequence[Sequence[str]] | None, task: TextTask) -> Window:
    """A window of inputs, which may be empty texts, with their candidates; refuses what does not fit the task."""
    if not rows:
        raise InputError("There are no texts to answer.")
    rows = checked_texts(rows, task.fields, first=0, empty=True)
    if choices is not None:
        choices = list(each_text(choices, "choices"))
        for texts in choices:
            if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
                raise InputError(f"The `choices` of an input must be a list of texts, but one is {str(texts)[:80]!r}.")
    if choices and not task.kind.has_candidates:
        raise InputError("This task takes no candidates; leave `choices` out.")
    candidates = [tuple(texts) for texts in choices] if choices is not None else task.choices_of(rows)
    if task.kind.has_candidates and (candidates is None or len(candidates) != len(rows) or not all(candidates)):
        raise InputError("This task chooses among candidates: give at least one for each input, as `choices`.")
    check_choices(max(map(len, candidates)) if candidates else 0, len(task.label_names))
    return Window(rows, candidates)


def each_text(texts: Iterable[Any], what: str = "texts") -> Iterable[Any]:
    """The texts, to iterate over; refuses what would iterate over column names or characters, or has no order."""
    if isinstance(texts, (list, Iterator)):
        return texts
    begin = f"The {what} were given as {type_name(texts)}"
    if isinstance(texts, (str, bytes, bytearray, memoryview)):
        raise InputError(f"{begin}: {texts[:40]!r}. Put texts into a list, even a single one.")
    if isinstance(texts, Mapping) or hasattr(texts, "columns") or hasattr(texts, "column_names"):
        raise InputError(f"{begin}, a table. Give its column table['text'], or two: list(zip(table['a'], table['b'])).")
    if isinstance(texts, Set):
        raise InputError(f"{begin}, which has no order. Give a list.")
    for method in ("to_pylist", "tolist"):
        # The elements of arrays are not Python's texts.
        if hasattr(texts, method):
            converted = getattr(texts, method)()
            return converted if isinstance(converted, list) else each_text(converted, what)
    if not isinstance(texts, Iterable):
        raise InputError(f"{begin}. Give a list of texts.")
    return texts


def _is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which no tokenizer takes."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def type_name(value: Any) -> str:
    """The type of a value, in words."""
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}."
    return f"the type {module}{kind.__qualname__}"


def input_columns(source: str, text: list[str] | str | None) -> list[str] | None:
    """Names of the text columns of a table, which must be given; ``None`` for a file in which each line is an input."""
    columns = columns_of(text)
    if not columns and suffix_of(source) in SUFFIXES:
        # Its lines would be taken for texts, labels and all.
        remedy = "name its text column (or two) with --text, or pass its lines by standard input, --input -"
        raise InputError(f"The input '{source}' is a table: {remedy}.")
    return columns


def read_inputs(
    source: str, columns: list[str] | None, empty: bool = False, ids: list[Any] | None = None, id_column: str = ""
) -> Iterator[Any]:
    """Read inputs one by one (tables are read whole); ``empty`` allows empty ones.

    The values of a table's ``id_column`` are added to ``ids`` before the first input comes.
    """
    if columns:
        from elang.data.columns import column_of, describe, read_frame, texts_of

        frame = read_frame(source)
        texts = texts_of(frame, columns, f"'{source}'", empty=empty, option="--text")
        if ids is not None:
            ids += column_of(frame, id_column, f"'{source}'", "--id")
            if bad := [row for row, value in enumerate(ids) if type(value) not in (int, str) or value == ""]:
                raise InputError(
                    f"The column '{id_column}' of '{source}' must hold whole numbers or texts to be --id, but row "
                    f"{bad[0]} (counted from 0) has {describe(ids[bad[0]])}. Correct it, or name another column."
                )
        yield from texts
        return
    if source == "-" and sys.stdin is None:
        raise InputError("Standard input is closed. Give the inputs' file with --input.")
    # As bytes, because the encoding of Python's text depends on the locale.
    lines = text_lines(sys.stdin.buffer, "Standard input") if source == "-" else file_lines(source)
    for number, line in enumerate(lines, 1):
        if not line.strip() and not empty:
            raise InputError(f"Line {number} of '{source}' is empty. Remove it; every line is one input.")
        yield line.rstrip("\r\n")
