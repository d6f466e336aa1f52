"""The columns of labelled texts, of local files and of the hub."""

from pathlib import Path
from typing import Any

from elang.errors import HUB_PATIENCE, InputError, first_line
from elang.tables import other_delimiter, read_table


def check_file(path: str) -> None:
    """Refuse a data file that is not there."""
    if not Path(path).is_file():
        raise InputError(f"There is no data file '{path}'. Correct its path.")


SOURCE_KEY = "source_key"
"""Column of a transfer set: the key of the text that each was made from."""


def columns_of(text: list[str] | str | None) -> list[str] | None:
    """Names of text columns, of which a single one may come by itself."""
    return [text] if isinstance(text, str) else text


def read_frame(source: str, hub: str | None = None, hub_config: str | None = None) -> Any:
    """Read a split as a data frame.

    Args:
        source: A file, or the name of a split where ``hub`` is given. In ``.tsv`` files quotes are ordinary
            characters, as in GLUE's own; in ``.csv`` files they quote. ``.csv``, ``.tsv`` and ``.jsonl`` may be
            compressed (``.csv.gz``).
        hub: A data set on the hub, ``owner/name@revision``.
        hub_config: Its configuration.

    Raises:
        InputError: If it does not exist or cannot be read.
    """
    return read_table(Path(source)) if hub is None else read_hub(source, hub, hub_config)


def read_hub(split: str, hub: str, config: str | None) -> Any:
    """Read a split of a hub data set, ``owner/name@revision``, as a data frame."""
    import datasets

    name, _, revision = hub.partition("@")
    if not revision:
        raise InputError(f"The hub data set '{hub}' may change under you: pin it, as in '{name}@<commit hash>'.")
    _ask_hub(hub, name, revision)
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision).to_pandas()
    except Exception as error:  # of a data set that is a script, or whose files are damaged, it raises others, too
        raise InputError(
            f"Split '{split}' of the hub data set '{hub}' ({config}) cannot be loaded ({type(error).__name__}: "
            f"{first_line(error)}). Check its name, or the network, or give local files."
        ) from error


def _ask_hub(hub: str, name: str, revision: str) -> None:
    """Ask the hub once: the library asks a silent one again and again, for minutes, before it takes what is here."""
    import datasets
    from huggingface_hub import HfApi

    if datasets.config.HF_HUB_OFFLINE:
        return
    try:
        HfApi().dataset_info(name, revision=revision, timeout=HUB_PATIENCE)
    except Exception as error:
        raise InputError(
            f"The hub does not give the data set '{hub}' ({type(error).__name__}: {first_line(error)}). Check its "
            "name, or the network, or give local files; what was fetched before is used with HF_HUB_OFFLINE=1."
        ) from error


def texts_of(
    frame: Any, columns: list[str], where: str, empty: bool = False, option: str = "--data.text"
) -> list[tuple[str, ...]]:
    """Take the text columns of a frame, refusing what is no text; texts may be ``empty`` where that is said.

    Args:
        frame: The table.
        columns: Names of the columns.
        where: It is from, in messages.
        empty: Texts may be.
        option: It names the columns, in messages.

    Raises:
        InputError: If a column is missing, there are no rows, or a text is empty or something else than a text.
    """
    found = [column_of(frame, column, where, option) for column in columns]
    if len(frame) == 0:
        raise InputError(f"{where} is an empty data set: it has a header but no rows. Give another file.")
    for column, values in zip(columns, found, strict=True):
        if {*map(type, values)} != {str}:
            bad = [i for i, value in enumerate(values) if not isinstance(value, str)]
            raise InputError(
                f"{where} has {len(bad)} rows whose '{column}' is no text, first row {bad[0]} (counted from 0): it is "
                f"{kind_of(values[bad[0]])}. Set {option} to a column of texts, or make it one: join the tokens of a "
                "list, write numbers as strings, fill or remove rows without a text."
            )
        if not empty and not all(map(str.strip, values)):
            bad = [i for i, value in enumerate(values) if not value.strip()]
            raise InputError(
                f"{where} has {len(bad)} rows with an empty text, first row {bad[0]} (counted from 0): "
                f"{tuple(column[bad[0]] for column in found)!r}. Remove or fill those rows."
            )
        try:
            all(map(str.isascii, values)) or "".join(values).encode()
        except UnicodeEncodeError:
            row = next(i for i, value in enumerate(values) if _half_character(value))
            raise InputError(
                f"{where} has half a character (a lone surrogate) in the '{column}' of row {row} (counted from 0): "
                f"{values[row][:80]!r}. Write the file again as UTF-8."
            ) from None
    return list(zip(*found, strict=True))


def _half_character(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def kind_of(value: Any) -> str:
    """What a value is that should have been a text or a label, with the value.

    >>> kind_of(["a", "b"]), kind_of(3), kind_of(None)
    ("a list (['a', 'b'])", 'a number (3)', 'no value')
    """
    if value is None or (not hasattr(value, "__len__") and value != value):
        return "no value"
    kinds = (
        ((list, tuple, set), "a list"),
        (dict, "an object"),
        (bytes, "bytes"),
        (bool, "a truth value"),
        ((int, float), "a number"),
        (str, "a text"),
    )
    plain = value.tolist() if hasattr(value, "tolist") else value
    name = next((said for kind, said in kinds if isinstance(plain, kind)), f"a {type(value).__name__}")
    shown = repr(plain)
    return f"{name} ({shown if len(shown) <= 60 else shown[:57] + '...'})"


def column_of(frame: Any, column: str, where: str, option: str) -> list[Any]:
    """The values of a column, whose name may differ from ``column`` by blanks around it.

    Raises:
        InputError: If it is missing, there are two, or it cannot be read.
    """
    names = list(frame.columns)
    place = column_place(names, column)
    if place is None:
        raise InputError(
            f"{where} has no column '{column}'; it has {names}. {_no_header(frame, names)}Set {option} to one."
        )
    if (count := names.count(names[place])) > 1:
        raise InputError(f"{where} has {count} columns '{names[place]}'. Rename or remove all but one.")
    try:
        found: list[Any] = frame[names[place]].astype(object).tolist()
    except Exception as error:  # texts that are no UTF-8 show as late as this
        raise InputError(f"The column '{column}' of {where} cannot be read: {error}. Save it again.") from error
    return found


def column_place(names: list[Any], column: str) -> int | None:
    """Where a column is among a table's, if it is; blanks around its name do not matter.

    >>> column_place(["text", " label"], "label")
    1
    """
    if column in names:
        return names.index(column)
    plain = [str(name).strip().strip("\ufeff").strip() for name in names]
    return plain.index(column.strip()) if column.strip() in plain else None


def _no_header(frame: Any, names: list[Any]) -> str:
    """A hint where what was taken for the header seems to be something else."""
    if said := other_delimiter(names):
        return f"Its {said}. "
    columns = [(name, frame.iloc[:, i]) for i, name in enumerate(names) if isinstance(name, str) and name]
    if any(len(name.split()) > 2 or any(isinstance(v, str) and v == name for v in column) for name, column in columns):
        return "Its first row looks like data, not like a header: add a line that names the columns. "
    return ""
