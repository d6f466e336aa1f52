"""The columns of labelled texts, from local files or the hub."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.data.examples import Examples
from elang.errors import HUB_PATIENCE, InputError, counted, first_line
from elang.tables import file_lines, other_delimiter, read_table

SOURCE_KEY = "source_key"
"""Column of a transfer set: the key of the text that each was made from."""
_TYPES: dict[type, str] = dict.fromkeys((list, tuple, set), "a list") | dict.fromkeys((int, float), "a number")
_TYPES |= {dict: "an object", str: "a text", bytes: "bytes", bool: "a truth value"}


def check_file(path: str) -> None:
    """Refuse a data file that does not exist."""
    if not Path(path).is_file():
        raise InputError(f"There is no data file '{path}'. Correct its path.")


def given_files(train: str | None, validation: str | None, test: str | None) -> dict[str, str]:
    """The files, or splits of the hub's data set, that were given; an ``InputError`` if there are none."""
    files = {"train": train, "validation": validation, "test": test}
    if not any(files.values()):
        raise InputError("No data was given. Set --data.train and --data.validation to files.")
    return {split: path for split, path in files.items() if path}


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file. Only a line feed ends one, as in most tools."""
    return [line.rstrip("\n").removesuffix("\r") for line in file_lines(path)]


def columns_of(text: list[str] | str | None) -> list[str] | None:
    """Names of text columns as a list; a single one may come by itself."""
    return [text] if isinstance(text, str) else text


def read_frame(source: str, hub: str | None = None, hub_config: str | None = None) -> Any:
    """Read a file, or a split of the hub's data set ``owner/name@revision``, as a data frame.

    In ``.tsv`` files quotes are ordinary characters, as in GLUE's own; in ``.csv`` files they quote.
    """
    if hub is None:
        return read_table(Path(source))
    import datasets
    from huggingface_hub import HfApi

    name, _, revision = hub.partition("@")
    if not revision:
        raise InputError(f"The hub data set '{hub}' may change under you: pin it, as in '{name}@<commit hash>'.")
    if not datasets.config.HF_HUB_OFFLINE:
        try:
            # One request with a timeout: before it uses its cache, the library retries for minutes.
            HfApi().dataset_info(name, revision=revision, timeout=HUB_PATIENCE)
        except Exception as error:
            raise InputError(
                f"The hub does not give the data set '{hub}' ({type(error).__name__}: {first_line(error)}). Check its "
                "name, or the network, or give local files; with HF_HUB_OFFLINE=1 an earlier download is used."
            ) from error
    try:
        return datasets.load_dataset(name, hub_config, split=source, revision=revision).to_pandas()
    except Exception as error:  # scripts and damaged files raise errors of many types
        raise InputError(
            f"Split '{source}' of the hub data set '{hub}' ({hub_config}) cannot be loaded ({type(error).__name__}: "
            f"{first_line(error)}). Check its name, or the network, or give local files."
        ) from error


def texts_of(
    frame: Any, columns: list[str], where: str, empty: bool = False, option: str = "--data.text"
) -> list[tuple[str, ...]]:
    """The text columns of a frame, one tuple a row; ``where`` and ``option`` name their origin in messages.

    Raises:
        InputError: If a column is missing or has no rows, or a value is not a text, or empty without ``empty``.
    """
    texts = [column_of(frame, column, where, option) for column in columns]
    for column, values in zip(columns, texts, strict=True):
        if {*map(type, values)} != {str}:
            bad = [row for row, value in enumerate(values) if not isinstance(value, str)]
            raise InputError(
                f"{where} has {counted(len(bad), 'rows')} whose '{column}' is no text, first row {bad[0]} (counted "
                f"from 0): it is {describe(values[bad[0]])}. Set {option} to a column of texts, or make it one: join "
                "the tokens of a list, write numbers as strings, fill or remove rows without a text."
            )
        if not empty and not all(map(str.strip, values)):
            bad = [row for row, value in enumerate(values) if not value.strip()]
            raise InputError(
                f"{where} has {counted(len(bad), 'rows')} with an empty text, first row {bad[0]} (counted from 0): "
                f"{tuple(column[bad[0]] for column in texts)!r}. Remove or fill those rows."
            )
        try:
            all(map(str.isascii, values)) or "".join(values).encode()
        except UnicodeEncodeError:
            row = next(row for row, value in enumerate(values) if any("\ud800" <= c <= "\udfff" for c in value))
            raise InputError(
                f"{where} has half a character (a lone surrogate) in the '{column}' of row {row} (counted from 0): "
                f"{values[row][:80]!r}. Write the file again as UTF-8."
            ) from None
    return list(zip(*texts, strict=True))


def read_transfer(path: str, columns: list[str], label: Tensor) -> tuple[Examples, Tensor | None]:
    """Read a transfer set: texts in some columns of a file, all with the scalar ``label``.

    Returns:
        The examples, and the keys of the texts that they were made from, int64 ``(N,)``, if the file has them.
    """
    check_file(path)
    frame = read_frame(path)
    texts = texts_of(frame, columns, f"'{path}'")
    examples = Examples.of(texts, label.repeat(len(texts)), source="transfer")
    if SOURCE_KEY not in frame:
        return examples, None
    try:
        return examples, torch.tensor(frame[SOURCE_KEY].to_numpy(dtype="int64"))
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"The column '{SOURCE_KEY}' of '{path}' must hold whole numbers, as `elang augment` writes them, but: "
            f"{error}. Correct or remove it."
        ) from error


def describe(value: Any) -> str:
    """The type of a value, in words, and the value.

    >>> describe(["a", "b"]), describe(3), describe(None)
    ("a list (['a', 'b'])", 'a number (3)', 'no value')
    """
    if value is None or (not hasattr(value, "__len__") and value != value):
        return "no value"
    value = value.tolist() if hasattr(value, "tolist") else value
    name, shown = _TYPES.get(type(value), f"a {type(value).__name__}"), repr(value)
    return f"{name} ({shown if len(shown) <= 60 else shown[:57] + '...'})"


def column_of(frame: Any, column: str, where: str, option: str) -> list[Any]:
    """The values of a column; an ``InputError`` if it is missing, has no rows or a twin, or cannot be read."""
    names = list(frame.columns)
    place = column_place(names, column)
    if place is None:
        several = f", or to a list, as in {option} '[{column}]'" if "," in column else ""
        raise InputError(
            f"{where} has no column '{column}'; it has {names}. {_header_hint(frame, names)}Set {option} to "
            f"one{several}."
        )
    if (count := names.count(names[place])) > 1:
        raise InputError(f"{where} has {count} columns '{names[place]}'. Rename or remove all but one.")
    if len(frame) == 0:
        raise InputError(f"{where} is an empty data set: it has a header but no rows. Give another file.")
    try:
        values: list[Any] = frame[names[place]].astype(object).tolist()
    except Exception as error:  # only now pyarrow sees bytes that are not UTF-8
        raise InputError(f"The column '{column}' of {where} cannot be read: {error}. Save it again.") from error
    return values


def column_place(names: list[Any], column: str) -> int | None:
    """The index of a column among a table's; blanks around its name do not matter.

    >>> column_place(["text", " label"], "label")
    1
    """
    if column in names:
        return names.index(column)
    stripped = [str(name).strip().strip("\ufeff").strip() for name in names]
    return stripped.index(column.strip()) if column.strip() in stripped else None


def _header_hint(frame: Any, names: list[Any]) -> str:
    """A hint where the header seems not to be one."""
    if hint := other_delimiter(names):
        return f"Its {hint}. "
    columns = [(name, frame.iloc[:, i]) for i, name in enumerate(names) if isinstance(name, str) and name]
    if any(len(name.split()) > 2 or any(isinstance(v, str) and v == name for v in column) for name, column in columns):
        return "Its first row looks like data, not like a header: add a line that names the columns. "
    return ""
