"""Where a run writes: files whole or not at all, through links, pipes and devices, and never over an input.

Every verb writes its files with :func:`write_atomically`, or first asks :func:`is_stream` where it writes bit by bit.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from elang.errors import InputError, ReaderLeftError

# Files of a model's folder, and of an evaluation's, that are read.
_MODEL_SUFFIXES = {".json", ".safetensors", ".bin", ".txt", ".model", ".jinja", ".tiktoken", ".pt", ".ckpt"}
_EVALUATION_FILES = {"records.parquet", "curve.csv"}
# Endings that promise a format, and what is written under two of them.
_PROMISES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".xlsx", ".gz")
_WRITTEN = {
    ".json": "one object of JSON",
    ".jsonl": "one object of JSON a line, as pandas.read_json(FILE, lines=True) reads it",
}
# Names of open descriptors; opening them again would start at the beginning of the file.
_DESCRIPTOR = re.compile(r"/dev/(?:fd/(\d+)|(stdout)|(stderr))|/proc/(?:self|\d+)/fd/(\d+)")


def check_output_file(
    output: str | Path, inputs: Iterable[str | Path | None] = (), option: str = "--output", suffix: str | None = None
) -> None:
    """Refuse an output that cannot be written, or that is an input, before any work is done.

    ``-`` is standard output or input. A folder among the inputs stands for the files of a model or an evaluation in it,
    and missing inputs are ignored. An ending that promises another format than that of ``suffix`` is refused.

    Raises:
        InputError: Naming the output by ``option``.
    """
    if str(output) != "-" and not is_stream(output):
        _check_place(Path(output), option)
    status = _status(output, 1)
    for path in [path for source in inputs for path in files_of(source)]:
        input_status = _status(path, 0)
        if status is not None and input_status is not None and os.path.samestat(status, input_status):
            input_name = "standard input" if str(path) == "-" else f"'{path}'"
            output_name = "Standard output" if str(output) == "-" else f"{option} '{output}'"
            raise InputError(
                f"{output_name} is the file of an input, {input_name}, which would be lost. Give another file."
            )
    if suffix is not None and (ending := Path(output).suffix.lower()) in _PROMISES and ending != suffix:
        raise InputError(f"{option} '{output}' must end in {suffix}: what is written is {_WRITTEN[suffix]}.")


def check_folder(
    output: str | Path, inputs: Iterable[str | Path | None], names: Iterable[str] | None, option: str = "--output"
) -> None:
    """Refuse a folder that cannot be one, or in which an input would be lost, before any work is done.

    ``names`` are those of the files that are written there, ``None`` if the whole folder is replaced.

    Raises:
        InputError: Naming the folder by ``option``.
    """
    path = Path(output)
    if path.exists() and not path.is_dir():
        raise InputError(f"{option} '{output}' is a file; it must be a folder. Give another place.")
    for name in ["file", *(names or ())]:
        _check_place(path / name, option)
    folder = Path(os.path.realpath(path))
    written = [status for name in names or () if (status := _status(path / name, 1)) is not None]
    for source in inputs:
        if source is None or not os.path.exists(source):
            continue
        lost = os.path.isdir(source) and path.exists() and os.path.samefile(source, path)
        if names is None:
            # An input that is a link in the folder counts, although only the link would be lost.
            lost |= any(folder in Path(p).parents for p in (os.path.realpath(source), os.path.abspath(source)))
        elif not os.path.isdir(source):
            lost |= any(os.path.samestat(status, os.stat(source)) for status in written)
        if lost:
            raise InputError(
                f"{option} '{output}' is or holds the input '{source}', which would be lost. Give another."
            )


def _check_place(path: Path, option: str) -> None:
    """Refuse a file that cannot be created or replaced."""
    if path.is_dir():
        raise InputError(f"{option} '{path}' is a folder; give the file to write.")
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise InputError(f"{option} '{path}' is a link that leads to itself. Give another file.")
    if target.exists() and not (stat.S_IMODE(target.stat().st_mode) & 0o222 and os.access(target, os.W_OK)):
        raise InputError(f"{option} '{path}' is read-only. Give another file, or make it writable.")
    folder = next(parent for parent in target.parents if parent.exists())
    if not folder.is_dir():
        raise InputError(
            f"{option} '{path}' cannot be written: '{folder}' is a file, not a folder. Give another place."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(
            f"{option} '{path}' cannot be written: the folder '{folder}' is read-only. Give another place."
        )


def _status(path: str | Path, standard: int) -> os.stat_result | None:
    """The status of a file or pipe, ``-`` being a standard descriptor; ``None`` for devices and missing files."""
    try:
        status = os.fstat(standard) if str(path) == "-" else os.stat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode) else None


def files_of(source: str | Path | None) -> list[str | Path]:
    """A file, or those files of a folder that are read."""
    if source is None:
        return []
    if not os.path.isdir(source):
        return [source]
    files = [path for path in Path(source).iterdir() if path.is_file()]
    return [path for path in files if path.suffix in _MODEL_SUFFIXES or path.name in _EVALUATION_FILES]


def is_stream(path: str | Path) -> bool:
    """Whether a path is a pipe, a device or a descriptor, which is written to but cannot be replaced."""
    if _DESCRIPTOR.fullmatch(str(path)):
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def written_through(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a pipe, a device or a descriptor to write to it; a :class:`ReaderLeftError` if its reader goes away."""
    try:
        if match := _DESCRIPTOR.fullmatch(str(path)):
            number, stdout, stderr, process_number = match.groups()
            for stream in (stdout and sys.stdout, stderr and sys.stderr):
                if stream:
                    stream.flush()
            handle = os.dup(1 if stdout else 2 if stderr else int(number or process_number))
        else:
            handle = os.open(path, os.O_WRONLY)
    except OSError as error:
        raise InputError(f"The output '{path}' cannot be written ({error.strerror}). Give another.") from error
    try:
        with open(handle, "wb") as file:
            yield file
    except BrokenPipeError as error:
        raise ReaderLeftError(f"the reader of '{path}' went away") from error


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path``; the file written there takes its name only if no error occurs.

    Of a link the target is replaced, and a replaced file hands on its permissions. A pipe or a device is written to
    once the file is complete.
    """
    path = Path(path)
    if is_stream(path):
        with tempfile.TemporaryDirectory(prefix="elang-") as folder:
            complete = Path(folder) / path.name
            yield complete
            with written_through(path) as output, complete.open("rb") as file:
                shutil.copyfileobj(file, output)
        return
    _check_place(path, "The output")
    # Beside the target of a link, which may be on another disk.
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        sync_to_disk(aside)
        replace_file(aside, path)
        sync_to_disk(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def replace_file(aside: Path, path: Path) -> None:
    """Rename a file over another, whose owner and permissions it takes."""
    try:
        old = path.stat()
    except FileNotFoundError:
        old = None
    if old is not None and stat.S_ISREG(old.st_mode):
        with suppress(OSError):
            os.chown(aside, old.st_uid, old.st_gid)
        os.chmod(aside, stat.S_IMODE(old.st_mode))
    os.replace(aside, path)


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's names, are on the disk: a name must not get there before its file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(*paths: str | Path) -> str:
    """Hash of the contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def folder_sha256(*places: Path) -> str:
    """Hash of weights: of every safetensors file of a folder, in the order of their names, or of a file itself."""
    return file_sha256(*(file for place in places for file in weights_files(place)))


def weights_files(place: Path) -> list[Path]:
    """Every safetensors file of a folder, in the order of their names, or the file itself."""
    return sorted(place.glob("*.safetensors")) if place.is_dir() else [place]


def plain(value: Any) -> Any:
    """Replace what JSON cannot hold: infinities by strings, NaN by null."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
