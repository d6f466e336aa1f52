"""Tables and lines of text from local files, with every value as it is written."""

import csv
import gzip
import io
import re
import sys
import zlib
from collections.abc import Collection, Iterator
from itertools import chain, compress, islice
from pathlib import Path
from typing import IO, Any

from elang.errors import InputError
from elang.json_files import json_rows
from elang.notices import notice
from elang.terminal import waiting

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
TABLE_SUFFIXES = (".parquet", ".jsonl", ".csv")
# First bytes of other formats; none of them is UTF-8 text.
_OTHER_FORMATS = {
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"\x1f\x8b": "compressed by gzip: unpack it, or give it a name that ends in .gz",
    b"BZh": "compressed by bzip2: unpack it",
    b"\xfd7zXZ": "compressed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it",
    b"PAR1": "a parquet file: give it a name that ends in .parquet",
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or export it as UTF-8 text",
    b"\xd0\xcf\x11\xe0": "a spreadsheet: export it as UTF-8 text",
}
_BATCH, _SAMPLE = 500, 1000
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def suffix_of(path: str | Path) -> str:
    """The suffix of a file's format, in lower case and before any ``.gz``.

    >>> suffix_of("a/Rows.CSV.gz"), suffix_of("rows.parquet")
    ('.csv', '.parquet')
    """
    name = Path(str(path).lower())
    return Path(name.stem).suffix if name.suffix == ".gz" else name.suffix


def text_lines(file: IO[bytes], name: str) -> Iterator[str]:
    """Read a stream of UTF-8 text line by line, with line ends and without a byte order mark.

    Only line feeds end lines, as texts may hold carriage returns and Unicode's separators. In a stream without line
    feeds carriage returns do.

    Raises:
        InputError: Naming the stream and the line, if a line is not UTF-8 or holds a NUL byte.
    """
    for number, raw in enumerate(file, 1):
        if number == 1:
            for start, advice in _OTHER_FORMATS.items():
                if raw.startswith(start):
                    raise InputError(f"{name} cannot be read as UTF-8 text. It is {advice}.")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
            if b"\r" in raw and not raw.endswith(b"\n"):
                yield from text_lines(io.BytesIO(raw.replace(b"\r", b"\n")), name)
                return
        if b"\0" in raw:
            raise InputError(
                f"{name} cannot be read as UTF-8 text: line {number} holds a NUL byte. If it is UTF-16, save it as "
                "UTF-8; otherwise remove the byte."
            )
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name} cannot be read as UTF-8 text: line {number} is not UTF-8 ({error}). Save it as UTF-8."
            ) from error


def file_lines(path: str | Path) -> Iterator[str]:
    """The :func:`text_lines` of a file, which may be compressed as ``.gz``."""
    opened: Any = gzip.open if str(path).lower().endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            yield from text_lines(file, f"The file '{path}'")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"The file '{path}' cannot be read: {error}. Check its path, or save it again.") from error


def read_table(path: Path) -> Any:
    """Read a local file as a data frame of the values as they are written: those of CSV and TSV are strings.

    A file that cannot be read raises an ``InputError``, naming the line if one is the cause.
    """
    suffix = suffix_of(path)
    if not path.is_file():
        raise InputError(f"There is no file '{path}'. Give the path of a {', '.join(SUFFIXES)} file.")
    if suffix in (".jsonl", ".csv", ".tsv"):
        with waiting(f"reading '{path}'"):
            return _json_frame(path) if suffix == ".jsonl" else _delimited_frame(path, suffix == ".tsv")
    if suffix != ".parquet" or path.suffix.lower() != suffix:
        hint = " JSON with one object a line is named .jsonl." if suffix == ".json" else ""
        raise InputError(f"The file '{path}' must be one of {', '.join(SUFFIXES)}; rename or convert it.{hint}")
    try:
        return read_parquet(path)[0]
    except Exception as error:  # readers of damaged files raise many types
        raise InputError(f"The file '{path}' cannot be read: {str(error).strip()}. Save it again.") from error


def read_parquet(path: Path, known: Collection[str] | None = None) -> tuple[Any, list[str]]:
    """Read a parquet file alone: the library's readers would add a column for a folder named key=value.

    Returns a frame of all columns, or of those in ``known`` whose name occurs once, and the names of all columns.
    """
    import pyarrow.parquet as pq

    with waiting(f"reading '{path}'"), pq.ParquetFile(path) as file:
        names = list(file.schema_arrow.names)
        columns = None if known is None else [name for name in names if name in known and names.count(name) == 1]
        return file.read(columns).to_pandas(ignore_metadata=True), names


def _frame(names: list[str], columns: list[list[Any]], skipped: int, path: Path) -> Any:
    """A data frame; a notice reports blank lines among its rows."""
    import pandas as pd

    if skipped:
        notice(
            "blank-lines",
            f"Blank lines among the rows of '{path}' are left out: {skipped:,}. Row numbers do not count them.",
        )
    return pd.DataFrame(dict(enumerate(columns)), dtype=object).set_axis(names, axis=1)


def _json_frame(path: Path) -> Any:
    """A table of one JSON object per line; missing values are ``None``."""
    rows: list[dict[str, Any]] = []
    blank = skipped = 0
    for row in json_rows(file_lines(path), path):
        if row is None:
            blank += 1
            continue
        rows.append(row)
        skipped = blank
    if not rows:
        raise InputError(f"The file '{path}' cannot be read: it is empty. Give another file.")
    names = list(dict.fromkeys(chain.from_iterable(rows)))
    return _frame(names, [[row.get(name) for row in rows] for name in names], skipped, path)


def _delimited_frame(path: Path, tabs: bool) -> Any:
    """A table of a CSV or TSV file; every row must have as many fields as the header."""
    # The default limit, 128 kB, is too small for long documents.
    limit = csv.field_size_limit(sys.maxsize)
    try:
        rows = _fields(path, tabs)
        header = next(filter(None, rows), None)
        if header is None:
            raise InputError(f"The file '{path}' cannot be read: it is empty. Give another file.")
        width = len(header)
        columns: list[list[str]] = [[] for _ in header]
        num_rows, blank, trailing = 1, 0, 0
        # In small batches: the garbage collector visits all rows that are alive again and again.
        while batch := list(islice(rows, _BATCH)):
            num_rows += len(batch)
            if {*map(len, batch)} == {width}:
                trailing = 0
            else:
                filled = [not _blank(row, width) for row in batch]
                blank += filled.count(False)
                trailing = filled[::-1].index(True) if any(filled) else trailing + len(batch)
                batch = list(compress(batch, filled))
                if any(len(row) != width for row in batch):
                    refuse_row(path, tabs)
            for column, values in zip(columns, zip(*batch, strict=True), strict=False):
                column.extend(values)
    except csv.Error:
        refuse_row(path, tabs)
        raise
    finally:
        csv.field_size_limit(limit)
    if tabs:
        _notice_quotes(path, columns)
    elif rows.line_num > num_rows:
        _check_quotes(path, columns)
    return _frame(header, columns, blank - trailing, path)


def _fields(path: Path, tabs: bool) -> Any:
    """The rows of a file; a blank line is an empty row."""
    if not tabs:
        return csv.reader(file_lines(path), strict=True)
    lines = (line.rstrip("\r\n") for line in file_lines(path))
    return (line.split("\t") if line else [] for line in lines)


def _blank(row: list[str], width: int) -> bool:
    return not row or (len(row) == 1 < width and not row[0].strip())


def refuse_row(path: Path, tabs: bool) -> None:
    """Raise an :class:`InputError` for the first row, if any, that is unreadable or not as wide as the header."""
    rows, start, header = _fields(path, tabs), 1, None
    try:
        for row in rows:
            if header is None:
                header = row or None
            elif len(row) != len(header) and not _blank(row, len(header)):
                hint = "a tab within a text starts another field" if tabs else "text that holds commas must be quoted"
                raise InputError(
                    f"Line {start} of '{path}' has {len(row)} fields where the header has {len(header)}, {header}. "
                    f"Correct or remove the line; {other_delimiter(header) or hint}."
                )
            start = start + 1 if tabs else rows.line_num + 1
    except csv.Error as error:
        end = f", which goes on to line {rows.line_num}," if rows.line_num > start else ""
        raise InputError(
            f"The row in line {start} of '{path}'{end} cannot be read: {error}. A text that holds quotes, commas or "
            'line ends must be in quotes, with each quote within it doubled ("").'
        ) from error


def other_delimiter(names: list[Any]) -> str:
    """A hint if a header's single name seems to hold several names, or an empty text."""
    marks = [mark for mark in (";", "\t", ",", "|") if len(names) == 1 and mark in str(names[0])]
    return f"fields seem to be separated by {marks[0]!r}, so save it with commas (.csv) or tabs (.tsv)" if marks else ""


def _notice_quotes(path: Path, columns: list[list[str]]) -> None:
    """Notice texts in quotes with doubled quotes inside, which writers of CSV leave in TSV, too."""
    # Checking all rows would take a tenth of the time of reading.
    sample = [value for column in columns for value in column[:_SAMPLE]]
    if quoted := [value for value in sample if '""' in value and _QUOTED.fullmatch(value)]:
        notice(
            "quotes-in-tsv",
            f"{len(quoted)} texts in the first {_SAMPLE} rows of '{path}' are in quotes, with the quotes within "
            f"them doubled: {quoted[0][:80]!r}. In .tsv files quotes are ordinary characters, so they stay part of the "
            "text. Save the file as .csv if they should not.",
        )


def _check_quotes(path: Path, columns: list[list[str]]) -> None:
    """Refuse a quoted text whose lines look like rows: an extra quote swallows all rows up to the next quote."""
    known: list[set[str]] = []
    for place, column in enumerate(columns):
        for row, value in enumerate(column):
            if "\n" not in value:
                continue
            lines = [line.rstrip("\r").split(",") for line in value.split("\n")]
            first, last = lines[0][1:], lines[-1][:-1]
            widths = [place + 1 + len(first), *map(len, lines[1:-1]), len(columns) - place + len(last)]
            if any(width != len(columns) for width in widths):
                continue
            known = known or [set(values) for values in columns]
            cells = [*zip(known[place + 1 :], first, strict=True), *zip(known[:place], last, strict=True)]
            if any(cell and cell in values for values, cell in cells):
                raise InputError(
                    f"Row {row} (counted from 0) of '{path}' has a quoted text that looks like {len(lines)} rows: "
                    f"{value[:80]!r}. A quote is missing or too much there; double each quote within a text."
                )


def is_table(path: str) -> bool:
    """Whether a path names a table of answers rather than a model."""
    return path.lower().endswith(TABLE_SUFFIXES)
