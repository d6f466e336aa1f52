"""The inputs of a pair: what is taken as one, and how they are read from a file."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import Any

from elang.backends.backend import check_choices
from elang.data.columns import columns_of
from elang.errors import InputError
from elang.inference.prediction import Window
from elang.tables import SUFFIXES, file_lines, suffix_of, text_lines
from elang.tasks.text_task import TextTask


def as_rows(texts: Iterable[Any]) -> list[tuple[str, ...]]:
    """Inputs as tuples of texts, which have yet to be checked."""
    if type(texts) is list and set(map(type, texts)) <= {tuple}:
        return texts
    return [tuple(text) if isinstance(text, (tuple, list)) else (text,) for text in each_text(texts)]


def checked_texts(rows: list[tuple[str, ...]], fields: list[str], first: int, empty: bool) -> list[tuple[str, ...]]:
    """Refuse what is not the task's texts.

    Args:
        rows: The texts of each input.
        fields: Names of the task's texts.
        first: Number of the first input in messages.
        empty: Whether a text may be empty.

    Raises:
        InputError: Naming the input.
    """
    flat = list(chain.from_iterable(rows))
    plain = set(map(type, flat)) <= {str} and set(map(len, rows)) <= {len(fields)} and is_unicode("".join(flat))
    if plain and (empty or all(map(str.strip, flat))):
        return rows
    for i, row in enumerate(rows):
        given: Any = row[0] if len(row) == 1 else row
        if odd := [text for text in row if not isinstance(text, str)]:
            raise InputError(
                f"Input {first + i} (counted from 0) is no text, but of {kind_of_input(odd[0])}: "
                f"{str(given)[:200]!r}. Give texts, or remove it."
            )
        if not all(map(is_unicode, row)):
            raise InputError(f"Input {first + i} (counted from 0) holds half a character: {given!r}. Mend it.")
        if len(row) != len(fields):
            raise InputError(
                f"Input {first + i} (counted from 0) has {len(row)} text(s), but the task's are {len(fields)}: "
                f"{fields}. Remove or mend it."
            )
        if not (empty or all(map(str.strip, row))):
            where = "" if len(row) == 1 else f" in '{fields[[bool(text.strip()) for text in row].index(False)]}'"
            raise InputError(f"Input {first + i} (counted from 0) is empty{where}. Remove or mend it.")
    # Strings of NumPy, which are texts of another type.
    return [tuple(map(str, row)) for row in rows]


def window_of(rows: list[tuple[str, ...]], choices: Sequence[Sequence[str]] | None, task: TextTask) -> Window:
    """A window of inputs with their candidates; a text may be empty.

    Raises:
        InputError: If there are no inputs, one is not the task's, or candidates are missing or not taken.
    """
    if not rows:
        raise InputError("There are no texts to answer.")
    rows = checked_texts(rows, task.fields, 0, True)
    if choices is not None:
        choices = list(each_text(choices, "choices"))
        odd = [one for one in choices if isinstance(one, str) or not all(isinstance(text, str) for text in one)]
        if odd:
            raise InputError(f"Each input's `choices` are a list of texts, but one has {str(odd[0])[:80]!r}.")
    if choices and not task.kind.has_candidates:
        raise InputError("This task takes no candidates; leave `choices` out.")
    candidates = [tuple(c) for c in choices] if choices is not None else task.choices_of(rows)
    if task.kind.has_candidates and (candidates is None or len(candidates) != len(rows) or not all(candidates)):
        raise InputError("This task chooses among candidates: give at least one for each input, as `choices`.")
    check_choices(max(map(len, candidates)) if candidates else 0, len(task.label_names))
    return Window(rows, candidates)


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
