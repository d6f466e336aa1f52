"""Merging the records of parts of a data set by id, with bounded memory."""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from elang.errors import InputError, counted
from elang.files import write_atomically
from elang.notices import made, notices
from elang.records.reading import read_metadata
from elang.records.table import FORMAT, METADATA
from elang.terminal import Progress, say, waiting

_ROWS = 1 << 21  # in memory at a time, over all files
_BUFFER = 1 << 16  # bytes of each column of each file
# Metadata in which the files of one data set may differ.
_OF_PART = ("format", "part", "examples", "made")


def check_same(path: Path, about: dict[str, Any]) -> None:
    """Raise an ``InputError`` for a part whose metadata differ from ``about``."""
    try:
        part = read_metadata(path)
    except ValueError as error:
        raise InputError(f"The records '{path}' cannot be read ({error}). Delete the file.") from error
    for name in dict.fromkeys([*about, *(name for name in part if name not in _OF_PART)]):
        if part.get(name) != about.get(name):
            raise InputError(
                f"The records '{path}' are of another run: their '{name}' is {part.get(name)!r}, and "
                f"{about.get(name)!r} is needed. Delete them, or choose another --model.output."
            )


def merge_provenance(abouts: list[dict[str, Any]]) -> dict[str, Any]:
    """How a result was made from parts with these metadata: :func:`elang.notices.made` with the notices of all."""
    every = [*notices(), *chain.from_iterable(about.get("made", {}).get("notices", []) for about in abouts)]
    return made() | {"notices": [one for i, one in enumerate(every) if one not in every[:i]]}


def merge_files(files: list[Path], output: str) -> None:
    """Merge the records of parts of a data set, written by `elang score`, by id into a parquet file.

    Raises:
        InputError: If a part is missing, two files have an example in common, or they are of different models.
    """
    import pyarrow.parquet as pq

    with waiting("checking the records"):
        schema, splits, common = _check_files(files)
    _allow_open(len(files))
    about = {"format": FORMAT} | {name: value for name, value in common.items() if name != "how"}
    metadata = {METADATA: json.dumps(about).encode()}
    writing: Future[None] | None = None
    with (
        write_atomically(output) as aside,
        pq.ParquetWriter(aside, schema.with_metadata(metadata)) as writer,
        # Reads the files, and meanwhile writes the previous table.
        ThreadPoolExecutor() as pool,
        Progress(sum(pq.read_metadata(file).num_rows for file in files), "records", late=True) as progress,
    ):
        for table in chain.from_iterable(_ascending(files, split, schema, pool=pool) for split in splits):
            if writing is not None:
                writing.result()
            progress.add(len(table))
            writing = pool.submit(writer.write_table, table)
        if writing is not None:
            writing.result()
    say(f"{output} has {counted(progress.done, 'records')} of {counted(len(files), 'files')}")


def _check_files(files: list[Path]) -> tuple[Any, list[str], dict[str, Any]]:
    """The schema, the splits and the metadata that all files share; an ``InputError`` if they are not one whole run."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        abouts = [read_metadata(file) for file in files]
        schemas = [pq.read_schema(file).remove_metadata() for file in files]
        for file, schema in zip(files, schemas, strict=True):
            if not {"split", "id", "prediction"} <= {*schema.names} or not pa.types.is_integer(schema.field("id").type):
                raise InputError(
                    f"'{file}' has no columns split, id (whole numbers) and prediction: no records of ours."
                )
            if {*schema.names} != {*schemas[0].names}:
                raise InputError(f"'{file}' has the columns {schema.names}, and '{files[0]}' {schemas[0].names}.")
        schema = pa.unify_schemas(schemas)
        columns = [pq.read_table(file, columns=["split"])["split"].unique().to_pylist() for file in files]
    except (ValueError, TypeError, KeyError, pa.ArrowException, OSError) as error:
        raise InputError(f"The records cannot be read ({error}). Score the part that is damaged again.") from error
    splits = list(dict.fromkeys(chain.from_iterable(columns)))
    if None in splits:
        raise InputError("In the records the split of some rows is missing. Make them with `elang score`.")
    common = {name: value for name, value in abouts[0].items() if name not in _OF_PART}
    for file in files[1:]:
        check_same(file, common)
    _check_parts([about["part"] for about in abouts if "part" in about], len(files))
    return schema, splits, common | {"made": merge_provenance(abouts)}


def _check_parts(parts: list[Any], files: int) -> None:
    """Raise an ``InputError`` if the files are neither whole runs nor all parts ``[number, total]`` of one run."""
    for part in parts:
        if not (isinstance(part, list) and [*map(type, part)] == [int, int] and 0 <= part[0] < part[1]):
            raise InputError(f"The records say that they are the part {part!r} of a run. Score it again.")
    totals = sorted({total for _, total in parts})
    if len(totals) > 1 or (parts and len(parts) < files):
        runs = " and ".join(f"one of {total} parts" for total in totals)
        raise InputError(f"The records are of several runs: {runs}, or also whole ones. Give those of one run.")
    present = {number for number, _ in parts}
    if parts and len(present) < totals[0]:
        first = next(number for number in range(totals[0]) if number not in present)
        raise InputError(
            f"Of {totals[0]} parts {totals[0] - len(present)} are missing, the first one is {first}. Answer it with "
            f"`elang score` and --model.part {first}."
        )


def _allow_open(files: int) -> None:
    """Raise this process's limit of open files if it is too low, as far as the system allows."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files + 64
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _batches(file: Path, split: str, schema: Any, rows: int) -> Iterator[Any]:
    """The rows of a split in one file, ``rows`` at a time; an ``InputError`` if it is damaged."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    # With the library's defaults a whole row group of every file would be in memory.
    batches = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False).iter_batches(rows)
    while True:
        try:
            if (batch := next(batches, None)) is None:
                return
            table, in_split = pa.table(batch), pc.equal(batch["split"], split)
            # Filtering takes as long as reading.
            if not pc.all(in_split).as_py():
                table = table.filter(in_split)
            table = table.select(schema.names).cast(schema)
            ids = table["id"]
            if len(table) and (ids.null_count or pc.min(ids).as_py() < 0):
                raise ValueError("an id is missing or below 0")
        except (pa.ArrowException, ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(
                f"The records '{file}' cannot be read ({error}). Score the part that is damaged again."
            ) from error
        if len(table):
            yield table


def _ascending(files: list[Path], split: str, schema: Any, *, pool: ThreadPoolExecutor) -> Iterator[Any]:
    """The rows of a split in all files, by ascending id, which each file has to be ordered by.

    Raises:
        InputError: If an id comes twice, or a file is not ordered.
    """
    import pyarrow as pa

    size = max(256, _ROWS // len(files))
    streams = {i: _batches(file, split, schema, size) for i, file in enumerate(files)}
    waiting: dict[int, Any] = {}
    previous = -1
    while True:
        # Refill early, or each table would be as small as the remainder of one file.
        short = [i for i in streams if i not in waiting or len(waiting[i]) < size // 2]
        for i, table in zip(short, pool.map(lambda i: next(streams[i], None), short), strict=True):
            if table is None:
                del streams[i]
                continue
            waiting[i] = pa.concat_tables([waiting[i], table]) if i in waiting else table
            ids = waiting[i]["id"].to_numpy()
            if (ids[1:] <= ids[:-1]).any():
                raise InputError(f"The ids of '{files[i]}' do not ascend. Make the records with `elang score`.")
        if not waiting:
            return
        # No file has further ids up to here.
        bound = min((waiting[i]["id"][-1].as_py() for i in streams), default=sys.maxsize)
        cuts = {i: int(table["id"].to_numpy().searchsorted(bound, "right")) for i, table in waiting.items()}
        merged = pa.concat_tables([waiting[i].slice(0, cut) for i, cut in cuts.items()]).combine_chunks().sort_by("id")
        ids = merged["id"].to_numpy()
        repeated = ids[1:][ids[1:] == ids[:-1]]
        if len(repeated) or ids[0] <= previous:
            example = repeated[0] if len(repeated) else ids[0]
            raise InputError(
                f"The example {example} of '{split}' is in the records more than once. Give each part once."
            )
        previous = int(ids[-1])
        waiting = {i: waiting[i].slice(cut) for i, cut in cuts.items() if cut < len(waiting[i])}
        yield merged
