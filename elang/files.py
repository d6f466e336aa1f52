"""Where a run writes: files whole or not at all, links, pipes and devices as what they are, and never an input.

Every verb writes its files by :func:`written_aside`, or asks :func:`is_stream` first where it writes as it goes.
"""

from __future__ import annotations

import hashlib
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

# Of a model's folder, and of an evaluation's.
_READ_OF_FOLDERS = {".json", ".safetensors", ".bin", ".txt", ".model", ".jinja", ".tiktoken", ".pt", ".ckpt"}
_EVALUATION = {"records.parquet", "curve.csv"}
# Names of what is open already; to open them again would begin at the start of the file.
_DESCRIPTOR = re.compile(r"/dev/(?:fd/(\d+)|(stdout)|(stderr))|/proc/(?:self|\d+)/fd/(\d+)")


def check_output_file(output: str | Path, inputs: Iterable[str | Path | None] = (), option: str = "--output") -> None:
    """Refuse a place that a file cannot be written to, or that an input is at, before anything is paid for.

    Args:
        output: The file; ``-`` is standard output.
        inputs: The files that are read; ``-`` is standard input. A folder stands for the files of a model and of an
            evaluation in it. What is not there is left to others to tell.
        option: It names the output, in messages.

    Raises:
        InputError: Naming the output.
    """
    path = Path(output)
    if str(output) != "-" and not is_stream(path):
        _check_place(path, option)
    own = _status(output, 1)
    if own is None:
        return
    for source in inputs:
        for each in files_of(source):
            if (other := _status(each, 0)) is not None and os.path.samestat(own, other):
                named = "standard input" if str(each) == "-" else f"'{each}'"
                said = "Standard output" if str(output) == "-" else f"{option} '{output}'"
                raise InputError(f"{said} is the file of an input, {named}, which would be lost. Give another file.")


def check_folder(
    output: str | Path, inputs: Iterable[str | Path | None], names: Iterable[str] | None, option: str = "--output"
) -> None:
    """Refuse a folder that cannot be one, or in which an input would be lost, before anything is paid for.

    Args:
        output: The folder.
        inputs: Files and folders that are read.
        names: Of the files that are written there; ``None`` where the folder is replaced as a whole.
        option: It names the output, in messages.

    Raises:
        InputError: Naming the folder.
    """
    path = Path(output)
    if path.exists() and not path.is_dir():
        raise InputError(f"{option} '{output}' is a file; it must be a folder. Give another place.")
    for name in ["file", *(names or ())]:
        _check_place(path / name, option)
    there = Path(os.path.realpath(path))
    written = None if names is None else [own for name in names if (own := _status(path / name, 1)) is not None]
    for source in inputs:
        if source is None or not os.path.exists(source):
            continue
        lost = os.path.isdir(source) and path.exists() and os.path.samefile(source, path)
        if written is None:
            # Of a link within it only the link would be lost, but also that is an input.
            lost |= any(there in Path(one).parents for one in (os.path.realpath(source), os.path.abspath(source)))
        elif not os.path.isdir(source):
            lost |= any(os.path.samestat(own, os.stat(source)) for own in written)
        if lost:
            raise InputError(
                f"{option} '{output}' is or holds the input '{source}', which would be lost. Give another."
            )


def _check_place(path: Path, option: str) -> None:
    """Refuse a file that cannot be made, or replaced."""
    if path.is_dir():
        raise InputError(f"{option} '{path}' is a folder; give the file to write.")
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise InputError(f"{option} '{path}' is a link that leads to itself. Give another file.")
    if target.exists() and not (stat.S_IMODE(target.stat().st_mode) & 0o222 and os.access(target, os.W_OK)):
        raise InputError(f"{option} '{path}' is read-only. Give another file, or allow to write it.")
    there = next(one for one in target.parents if one.exists())
    if not there.is_dir():
        raise InputError(f"{option} '{path}' cannot be written: '{there}' is a file, no folder. Give another place.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{option} '{path}' cannot be written: the folder '{there}' is read-only. Give another place.")


def _status(path: str | Path, standard: int) -> os.stat_result | None:
    """What is at a path, if it can be an input that is lost: a device takes and gives at once."""
    try:
        found = os.fstat(standard) if str(path) == "-" else os.stat(path)
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode) else None


def files_of(source: str | Path | None) -> list[str | Path]:
    """A file, or the files of a folder that are read."""
    if source is None or not os.path.isdir(source):
        return [] if source is None else [source]
    files = [path for path in Path(source).iterdir() if path.is_file()]
    return [path for path in files if path.suffix in _READ_OF_FOLDERS or path.name in _EVALUATION]


def is_stream(path: str | Path) -> bool:
    """Whether what is written to a path goes on to somebody (a pipe, a device, a descriptor) and cannot be replaced."""
    if _DESCRIPTOR.fullmatch(str(path)):
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def written_through(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a pipe, a device or a descriptor to write; it stays what it is.

    Raises:
        InputError: If it cannot be opened.
        ReaderLeftError: If its reader goes away.
    """
    try:
        if found := _DESCRIPTOR.fullmatch(str(path)):
            number, out, err, other = found.groups()
            for own in (sys.stdout if out else None, sys.stderr if err else None):
                if own is not None:
                    own.flush()
            handle = os.dup(1 if out else 2 if err else int(number or other))
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
def written_aside(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path``; what is written there takes its name only if all went well.

    A link stays one: its target is replaced. What is replaced hands on its permissions. What is written to a pipe or a
    device goes through it when it is whole.
    """
    path = Path(path)
    if is_stream(path):
        with tempfile.TemporaryDirectory(prefix="elang-") as folder:
            whole = Path(folder) / path.name
            yield whole
            with written_through(path) as out, whole.open("rb") as made:
                shutil.copyfileobj(made, out)
        return
    _check_place(path, "The output")
    # Of a link its target's, which may be on another disk.
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        settle(aside)
        take_place(aside, path)
        settle(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def take_place(aside: Path, path: Path) -> None:
    """Give a file the name of another, with whose permissions it then is."""
    try:
        old = path.stat()
    except FileNotFoundError:
        old = None
    if old is not None and stat.S_ISREG(old.st_mode):
        with suppress(OSError):
            os.chown(aside, old.st_uid, old.st_gid)
        os.chmod(aside, stat.S_IMODE(old.st_mode))
    os.replace(aside, path)


def settle(path: Path) -> None:
    """Wait until a file, or a folder's names, are on the disk: a name must not get there before what it names."""
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


def plain(value: Any) -> Any:
    """Replace what JSON cannot hold: infinities by strings, NaN by null."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value


def folder_sha256(folder: Path) -> str:
    """Hash of a folder's weights: every safetensors file, in the order of their names."""
    return file_sha256(*sorted(folder.glob("*.safetensors")))
