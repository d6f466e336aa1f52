"""Reading labelled text from local files and from the hub, with every value kept as it is written."""

import csv
import hashlib
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.errors import HUB_PATIENCE, InputError, first_line

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass
class Examples:
    """The texts of one split, and what is known of them.

    Attributes:
        texts: The values of the task's fields for each example.
        id: Row in the source, int64 ``(N,)``, ascending.
        key: Hash of the texts, int64 ``(N,)``.
        label: Class indices, int64 ``(N,)``, or values, float64, in a regression; -1 or NaN where not known.
        choices: Each example's candidates, in a ``choice`` task.
        targets: Further columns that a metric reads, each ``(N, ...)``: ``group``, ``answer_f1``.
        unit: Hash of what is held out as a whole (a passage with its questions), int64 ``(N,)``; by default the key.
        references: The texts that are to be generated, in a ``sequence`` task.
    """

    texts: list[tuple[str, ...]]
    id: Tensor
    key: Tensor
    label: Tensor
    choices: list[tuple[str, ...]] | None = None
    targets: dict[str, Tensor] = field(default_factory=dict)
    unit: Tensor | None = None
    references: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def labelled(self) -> bool:
        """Whether every label is known."""
        return not bool(self.label.isnan().any() if self.label.is_floating_point() else (self.label < 0).any())

    def take(self, mask: Tensor) -> "Examples":
        """The examples where ``mask`` is true, in order."""
        keep = mask.tolist()
        choices = None if self.choices is None else list(compress(self.choices, keep))
        targets = {name: column[mask] for name, column in self.targets.items()}
        texts = list(compress(self.texts, keep))
        references = None if self.references is None else list(compress(self.references, keep))
        unit = None if self.unit is None else self.unit[mask]
        return Examples(texts, self.id[mask], self.key[mask], self.label[mask], choices, targets, unit, references)


def join_examples(first: Examples, second: Examples, offset: int) -> Examples:
    """Two sets of labelled or unlabelled texts behind each other; the second one's ids go up by ``offset``."""
    ids = torch.cat([first.id, second.id + offset])
    key, label = torch.cat([first.key, second.key]), torch.cat([first.label, second.label])
    return Examples(first.texts + second.texts, ids, key, label)


def content_key(texts: tuple[str, ...]) -> int:
    """A 64-bit signed hash of an example's texts, the same on every machine.

    >>> content_key(("a", "b")) == content_key(("ab",))
    False
    """
    joined = "\x00".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "big", signed=True)


def in_slice(key: Tensor, fraction: float) -> Tensor:
    """Which examples fall into a slice of about ``fraction`` of all, by their text alone.

    Equal texts fall on the same side, order and file do not matter, and a smaller slice lies inside a larger.

    Args:
        key: From :func:`content_key`, int64 ``(N,)``.
        fraction: 0 to 1.

    Returns:
        Boolean, ``(N,)``.
    """
    return (key & 0xFFFFFFFF) < round(fraction * 2**32)


def check_file(path: str) -> None:
    """Refuse a data file that is not there."""
    if not Path(path).is_file():
        raise InputError(f"There is no data file '{path}'. Mend its path.")


SOURCE_KEY = "source_key"
"""Column of a transfer set: the key of the text that each was made from."""


def columns_of(text: list[str] | str | None) -> list[str] | None:
    """Names of text columns, of which a single one may come by itself."""
    return [text] if isinstance(text, str) else text


def read_frame(source: str, hub: str | None = None, hub_config: str | None = None) -> Any:
    """Read a split as a data frame.

    Args:
        source: A file, or the name of a split where ``hub`` is given. In ``.tsv`` files quotes are ordinary
            characters, as in GLUE's own; in ``.csv`` files they quote.
        hub: A data set on the hub, ``owner/name@revision``.
        hub_config: Its configuration.

    Raises:
        InputError: If it does not exist or cannot be read.
    """
    import pandas as pd

    if hub is not None:
        return read_hub(source, hub, hub_config)
    path = Path(source)
    if not path.is_file():
        raise InputError(f"There is no file '{path}'. Give the path of a {', '.join(SUFFIXES)} file.")
    try:
        if path.suffix == ".tsv":
            _check_fields(path)
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix == ".jsonl":
            return pd.read_json(path, lines=True, dtype=False, convert_dates=False)
        if path.suffix in (".csv", ".tsv"):
            tabs = path.suffix == ".tsv"
            # Plain strings: "NA" and "null" are texts, "007" is a label.
            return pd.read_csv(
                path,
                sep="\t" if tabs else ",",
                quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                index_col=False,
            )
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"The file '{path}' is not UTF-8 ({error}). Save it as UTF-8.") from error
    except Exception as error:  # whatever the readers say of a damaged file
        apart = "tabs" if path.suffix == ".tsv" else "commas, and text that holds commas be in quotes"
        hint = f" Fields must be separated by {apart}." if isinstance(error, pd.errors.ParserError) else ""
        raise InputError(
            f"The file '{path}' cannot be read: {str(error).strip()}. Mend or re-save it.{hint}"
        ) from error
    raise InputError(f"The file '{path}' must be one of {', '.join(SUFFIXES)}; rename or convert it.")


def _check_fields(path: Path) -> None:
    """Refuse a row of a TSV file with more or fewer fields than the header: what is too much would be left out."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        header = next(file, "").count("\t")
        for number, line in enumerate(file, 2):
            if line.count("\t") != header and line.strip("\r\n"):
                raise InputError(
                    f"Line {number} of '{path}' has {line.count(chr(9)) + 1} fields where the header has {header + 1}. "
                    "Mend or remove the line."
                )


def read_hub(split: str, hub: str, config: str | None) -> Any:
    """Read a split of a hub data set, ``owner/name@revision``, as a data frame."""
    import datasets

    name, _, revision = hub.partition("@")
    if not revision:
        raise InputError(f"The hub data set '{hub}' may change under you: pin it, as in '{name}@<commit hash>'.")
    _ask_hub(hub, name, revision)
    try:
        return datasets.load_dataset(name, config, split=split, revision=revision).to_pandas()
    except (OSError, ValueError) as error:
        raise InputError(
            f"Split '{split}' of the hub data set '{hub}' ({config}) cannot be loaded: {error}. Check its name, or "
            "the network, or give local files."
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
    """Take the text columns of a frame, refusing what cannot be classified; texts may be ``empty`` where that is said.

    Args:
        frame: The table.
        columns: Names of the columns.
        where: It is from, in messages.
        empty: Texts may be.
        option: It names the columns, in messages.

    Raises:
        InputError: If a column is missing, there are no rows, or a text is empty.
    """
    for column in columns:
        if column not in frame:
            raise InputError(
                f"{where} has no column '{column}'; it has {list(frame.columns)}. Set {option} to the text columns."
            )
    if len(frame) == 0:
        raise InputError(f"{where} is an empty data set: it has a header but no rows. Give another file.")
    texts = list(zip(*(_values(frame, column, where) for column in columns), strict=True))
    bad = [i for i, row in enumerate(texts) if any(not isinstance(t, str) or not (t.strip() or empty) for t in row)]
    if bad:
        raise InputError(
            f"{where} has {len(bad)} rows with an empty text, first row {bad[0]} (counted from 0): {texts[bad[0]]!r}. "
            "Remove or fill those rows."
        )
    return texts


def label_values(frame: Any, column: str, where: str) -> list[str]:
    """Take the label column of a frame as strings.

    Raises:
        InputError: If the column is missing or a label is.
    """
    if column not in frame:
        raise InputError(f"{where} has no column '{column}'; it has {list(frame.columns)}. Set --data.label.")
    if frame[column].isna().any():
        row = int(frame[column].isna().to_numpy().nonzero()[0][0])
        raise InputError(f"{where} has no label in row {row} (counted from 0). Remove or fill it.")
    return [str(value) for value in _values(frame, column, where)]


def _values(frame: Any, column: str, where: str) -> list[Any]:
    try:
        found: list[Any] = frame[column].astype(object).tolist()
    except Exception as error:  # texts that are no UTF-8 show as late as this
        raise InputError(f"The column '{column}' of {where} cannot be read: {error}. Mend or re-save it.") from error
    return found


def label_index(values: list[str], label_names: list[str], where: str) -> Tensor:
    """Map labels to class indices: by name, or by number where no name is one.

    Raises:
        InputError: If a label is not known.

    >>> label_index(["1", "0"], ["negative", "positive"], "x")
    tensor([1, 0])
    """
    index = {name: i for i, name in enumerate(label_names)}
    if not any(name.isdigit() for name in label_names):
        index |= {str(i): i for i in range(len(label_names))}
    for row, value in enumerate(values):
        if value not in index:
            raise InputError(
                f"{where} has the unknown label '{value}' in row {row} (counted from 0); known are {label_names}. "
                "Mend the row; labels of one's own are set with --data.label_names."
            )
    return torch.tensor([index[value] for value in values], dtype=torch.int64)


def label_numbers(values: list[str], where: str) -> Tensor:
    """Labels of a regression, float64 ``(N,)``.

    Raises:
        InputError: If one is no finite number.
    """
    found = torch.empty(len(values), dtype=torch.float64)
    for row, value in enumerate(values):
        try:
            found[row] = float(value)
        except ValueError:
            found[row] = torch.nan
        if not found[row].isfinite():
            raise InputError(
                f"{where} has the label '{value}' in row {row} (counted from 0), which is no finite number. Mend it."
            )
    return found
