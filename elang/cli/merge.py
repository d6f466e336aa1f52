"""`elang merge`: parts of a data set's records joined."""

from pathlib import Path

from elang.cli.arguments import note_replaced
from elang.errors import InputError
from elang.records.merging import merge_files
from elang.records.table import check_output


def merge(records: list[str], output: str = "records.parquet") -> None:
    """Join the records of parts of a data set, by id.

    Args:
        records: Files that `elang score` wrote, in any order, or folders of such files.
        output: The parquet file to write.
    """
    files: list[Path] = []
    for path in map(Path, records):
        files += sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise InputError(f"There is no records file '{missing[0]}'. Correct the path.")
    if not files:
        raise InputError(f"There are no records in {', '.join(records) or 'nothing'}. Give files of `elang score`.")
    check_output(output, "--output", files)
    note_replaced(output)
    merge_files(files, output)
