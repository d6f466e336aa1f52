"""Records of parts of a data set, put together by id: in any order, and in memory that does not grow with them."""

import json
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from elang.errors import InputError
from elang.files import written_aside
from elang.notices import made, notices
from elang.records.reading import read_about
from elang.records.table import FORMAT, METADATA
from elang.terminal import say

# Rows that are in memory at a time, over all files.
_ROWS = 1 << 21
_BUFFER = 1 << 16  # bytes of each column of each file
# What files of one data set may differ in.
_OWN = ("format", "part", "examples", "made")


def check_same(path: Path, about: dict[str, Any]) -> None:
    """Refuse a part that says other things of itself.

    Raises:
        InputError: Naming the first of them.
    """
    try:
        found = read_about(path)
    except ValueError as error:
        raise InputError(f"The records '{path}' cannot be read ({error}). Delete the file.") from error
    for name in dict.fromkeys([*about, *(name for name in found if name not in _OWN)]):
        if found.get(name) != about.get(name):
            raise InputError(
                f"The records '{path}' are of another run: their '{name}' is {found.get(name)!r}, and "
                f"{about.get(name)!r} is needed. Delete them, or take another --model.output."
            )


def joined_made(abouts: list[dict[str, Any]]) -> dict[str, Any]:
    """How a whole was made whose parts say of themselves how they were: with the notices of all."""
    told = [*notices(), *(one for about in abouts for one in about.get("made", {}).get("notices", []))]
    return made() | {"notices": [one for i, one in enumerate(told) if one not in told[:i]]}


def merge_files(files: list[Path], output: str) -> None:
    """Put the records of parts of a data set together, by id.

    Args:
        files: Those of `elang score`, in any order.
        output: The parquet file to write.

    Raises:
        InputError: If a part is missing, two files have an example in common, or they are of different models.
    """
    import pyarrow.parquet as pq

    schema, splits, common = _check_files(files)
    _allow_open(len(files))
    count = 0
    about = {"format": FORMAT} | {name: value for name, value in common.items() if name != "how"}
    metadata = {METADATA: json.dumps(about).encode()}
    written: Future[None] | None = None
    with (
        written_aside(output) as aside,
        pq.ParquetWriter(aside, schema.with_metadata(metadata)) as writer,
        # Of reading, and of writing what was read before.
        ThreadPoolExecutor() as beside,
    ):
        for table in chain.from_iterable(_ascending(files, split, schema, beside) for split in splits):
            if written is not None:
                written.result()
            count += len(table)
            written = beside.submit(writer.write_table, table)
        if written is not None:
            written.result()
    say(f"{count:,} records of {len(files)} files are in {output}")


def _check_files(files: list[Path]) -> tuple[Any, list[str], dict[str, Any]]:
    """The schema, the splits and the metadata that all files have in common.

    Raises:
        InputError: If they are no records of one whole run.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        abouts = [read_about(file) for file in files]
        schemas = [pq.read_schema(file).remove_metadata() for file in files]
        for file, schema in zip(files, schemas, strict=True):
            if not {"split", "id", "prediction"} <= {*schema.names} or not pa.types.is_integer(schema.field("id").type):
                raise InputError(
                    f"'{file}' has no columns split, id (whole numbers) and prediction: no records of ours."
                )
            if {*schema.names} != {*schemas[0].names}:
                raise InputError(f"'{file}' has the columns {schema.names}, and '{files[0]}' {schemas[0].names}.")
        schema = pa.unify_schemas(schemas)
        splits = list(dict.fromkeys(split for file in files for split in _column(file, "split")))
    except (ValueError, TypeError, KeyError, pa.ArrowException, OSError) as error:
        raise InputError(f"The records cannot be read ({error}). Score the part that is damaged again.") from error
    if None in splits:
        raise InputError("In the records the split of some rows is missing. Make them with `elang score`.")
    common = {name: value for name, value in abouts[0].items() if name not in _OWN}
    for file in files[1:]:
        check_same(file, common)
    common["made"] = joined_made(abouts)
    parts = [about["part"] for about in abouts if "part" in about]
    for part in parts:
        if not (isinstance(part, list) and [*map(type, part)] == [int, int] and 0 <= part[0] < part[1]):
            raise InputError(f"The records say that they are the part {part!r} of a run. Score it again.")
    totals = sorted({total for _, total in parts})
    if len(totals) > 1 or (parts and len(parts) < len(files)):
        said = " and ".join(f"one of {total} parts" for total in totals)
        raise InputError(
            f"The records are of several runs: {said or 'none'}, or also whole ones. Give those of one run."
        )
    there = {number for number, _ in parts}
    if parts and len(there) < totals[0]:
        first = next(number for number in range(totals[0]) if number not in there)
        raise InputError(
            f"Of {totals[0]} parts {totals[0] - len(there)} are missing, the first one is {first}. Answer it with "
            f"`elang score` and --model.part {first}."
        )
    return schema, splits, common


def _allow_open(files: int) -> None:
    """Raise this process's own limit of open files, where it is lower than the system's and too low."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files + 64
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _column(file: Path, name: str) -> list[Any]:
    """The distinct values of a column."""
    import pyarrow.parquet as pq

    values: list[Any] = pq.read_table(file, columns=[name])[name].unique().to_pylist()
    return values


def _batches(file: Path, split: str, schema: Any, rows: int) -> Iterator[Any]:
    """The rows of a split in one file, so many at a time.

    Raises:
        InputError: If it is damaged.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    # By the library's defaults a whole group of rows would be in memory, of every file.
    batches = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False).iter_batches(rows)
    while True:
        try:
            if (batch := next(batches, None)) is None:
                return
            mine = pc.equal(batch["split"], split)
            found = pa.table(batch)
            # To leave nothing out takes as long as to read it.
            own = (found if pc.all(mine).as_py() else found.filter(mine)).select(schema.names).cast(schema)
            ids = own["id"]
            if len(own) and (ids.null_count or pc.min(ids).as_py() < 0):
                raise ValueError("an id is missing or below 0")
        except (pa.ArrowException, ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(
                f"The records '{file}' cannot be read ({error}). Score the part that is damaged again."
            ) from error
        if len(own):
            yield own


def _ascending(files: list[Path], split: str, schema: Any, beside: ThreadPoolExecutor) -> Iterator[Any]:
    """The rows of a split in all files, by ascending id; each file's own are in this order.

    Raises:
        InputError: If an id comes twice, or a file is not in order.
    """
    import pyarrow as pa

    size = max(256, _ROWS // len(files))
    streams = {i: _batches(file, split, schema, size) for i, file in enumerate(files)}
    waiting: dict[int, Any] = {}
    before = -1
    while True:
        # All that come to their ends soon, lest each piece be as small as what is left of one.
        short = [i for i in streams if i not in waiting or len(waiting[i]) < size // 2]
        for i, found in zip(short, beside.map(lambda i: next(streams[i], None), short), strict=True):
            if found is None:
                del streams[i]
                continue
            waiting[i] = pa.concat_tables([waiting[i], found]) if i in waiting else found
            ids = waiting[i]["id"].to_numpy()
            if (ids[1:] <= ids[:-1]).any():
                raise InputError(f"The ids of '{files[i]}' do not ascend. Make the records with `elang score`.")
        if not waiting:
            return
        # Up to here nothing more can come, and of files at their ends nothing at all.
        bound = min((waiting[i]["id"][-1].as_py() for i in streams), default=sys.maxsize)
        cuts = {i: int(table["id"].to_numpy().searchsorted(bound, "right")) for i, table in waiting.items()}
        whole = pa.concat_tables([waiting[i].slice(0, cut) for i, cut in cuts.items()]).combine_chunks().sort_by("id")
        ids = whole["id"].to_numpy()
        twice = ids[1:][ids[1:] == ids[:-1]]
        if len(twice) or ids[0] <= before:
            raise InputError(
                f"The example {twice[0] if len(twice) else ids[0]} of '{split}' is in the records more than once. Give "
                "each part once."
            )
        before = int(ids[-1])
        waiting = {i: waiting[i].slice(cut) for i, cut in cuts.items() if cut < len(waiting[i])}
        yield whole
