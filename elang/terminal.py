"""What a run shows on the terminal, and how it ends when its reader leaves or SIGTERM comes."""

import logging
import os
import re
import select
import signal
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Timer, current_thread, main_thread
from typing import Any, TypeVar

from elang.errors import ReaderLeftError, counted, error_chain, printable

# What libraries log that no user could act on: their loggers, and how the messages begin.
_NOISE = {
    "torchao": "Failed to load .*torchao",
    "torchao.kernel.intmm": ".*Detected no triton",
    "torch.utils._pytree": ".* is an Enum subclass and is now natively supported",
    "lightning.fabric.utilities.seed": r"(\[rank: \d+\] )?Seed set to",
    "lightning.fabric.utilities.rank_zero": r"(\[rank: \d+\] )?Seed set to",
    "lightning.pytorch.accelerators.cuda": "LOCAL_RANK: ",
    "lightning.pytorch.utilities.rank_zero": (
        r"Seed set to|[GTH]PU available: |.*Tip: |`Trainer\.fit` stopped: `max_(epochs|steps)="
    ),
}
# Warnings about how Lightning uses torch and its own loaders, about empty parts, about epochs without logged steps,
# which they have by default, and about what peft asks of transformers.
_IRRELEVANT = (
    *(".*LeafSpec.*", ".*does not have many workers.*"),
    *("LightningCLI's args parameter", "Total length of `list` across ranks is zero"),
    *(".*is smaller than the logging interval", "`is_gradient_checkpointing` is deprecated"),
    "The dirpath has changed from",
)

# Seconds between two lines about how far a step is.
_EVERY = 60.0
# Columns of tables and texts where standard output is no terminal, and of texts on a wide one.
_WIDTH, _READABLE = 80, 100
# Between two columns of a table.
_BETWEEN = 2
# Seconds after which a bar is shown that need not be there for a short step, and after which a silent one is named.
_LATE, _SOON = 10.0, 1.5
# From the first batch the time that is left would be far too long. After a line without it the next one comes sooner.
_TELLING, _NEXT = 2, 15.0
_Item = TypeVar("_Item")
# Whether a verb of the command line runs: Python programs print what they like.
_telling = False


@contextmanager
def told_to_users() -> Iterator[None]:
    """Tell on standard error how far steps are, as verbs do; everywhere else nothing is told."""
    global _telling
    before, _telling = _telling, True
    try:
        yield
    finally:
        _telling = before


def quiet_libraries() -> None:
    """Drop what other libraries print that no user could act on, unless the environment has ELANG_VERBOSE.

    Each process does it before it imports them.
    """
    if os.environ.get("ELANG_VERBOSE", "0") not in ("", "0"):
        return
    for name in _NOISE:
        logging.getLogger(name).addFilter(_is_no_noise)
    for message in _IRRELEVANT:
        warnings.filterwarnings("ignore", message=message)


def _is_no_noise(record: logging.LogRecord) -> bool:
    return not re.match(_NOISE[record.name], record.getMessage())


def _is_broken(descriptor: int) -> bool:
    """Whether a descriptor is a pipe whose reader has gone away."""
    try:
        poll = select.poll()
        poll.register(descriptor, 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, AttributeError):  # closed, or a system without poll
        return False


def reader_left(error: BaseException) -> bool:
    """Whether an error comes from a reader of an output that has gone away."""
    # Consoles of rich close a broken pipe and exit.
    closed = isinstance(error, SystemExit)
    for cause in error_chain(error):
        if isinstance(cause, ReaderLeftError):
            return True
        if isinstance(cause, BrokenPipeError) and (closed or _is_broken(1) or _is_broken(2)):
            return True
    return False


@contextmanager
def ended_at_sigterm() -> Iterator[None]:
    """At SIGTERM exit as Python does, so that files are written whole and children can be ended."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    with at_sigterm(end):
        yield


@contextmanager
def at_sigterm(end: Callable[[int, Any], None]) -> Iterator[None]:
    """Handle SIGTERM, unless it has a handler already."""
    if current_thread() is not main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def process_rank() -> int:
    """The number of this process among those of a run."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return int(torch.distributed.get_rank())
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or 0)


class Progress:
    """How far a long step is: a bar on a terminal, else a line after ten seconds and then once a minute.

    ``total`` is the number of ``unit`` there are, if it is known, of which ``done`` are done already. Without ``bar``
    there are lines on a terminal as well. A bar that is ``late`` comes after ten seconds, for steps that usually end
    before. The ``first`` line may come after other seconds. Of several processes only the first one shows it, and only
    within :func:`told_to_users`.
    """

    def __init__(
        self,
        total: int | None,
        unit: str,
        done: int = 0,
        bar: bool = True,
        late: bool = False,
        first: float = _LATE,
    ) -> None:
        self.total, self.unit, self.done, self.before = total, unit, done, done
        self.start = self.told = time.monotonic()
        self.told_next(first, self.start)
        self.bar: Any = None
        self.silent = process_rank() > 0 or not _telling
        if bar and sys.stderr.isatty() and not self.silent:
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, unit=f" {unit}", delay=_LATE if late else 0)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def add(self, count: int = 1) -> None:
        """Count what is done."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
            return
        now = time.monotonic()
        if now - self.told >= _EVERY and not self.silent:
            line = self.line(now - self.start)
            # Where the total is unknown, so is the time.
            timed = self.total is None or line.endswith(" left")
            self.told = now if timed else now - max(0.0, _EVERY - _NEXT)
            tell(line)

    def told_next(self, seconds: float, now: float | None = None) -> None:
        """Have the next line come after some seconds, earlier than after a minute."""
        self.told = (time.monotonic() if now is None else now) - max(0.0, _EVERY - seconds)

    def each(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Go through items, and count each one that is done."""
        for item in items:
            yield item
            self.add()

    def line(self, seconds: float) -> str:
        """How far it is after so many seconds."""
        if self.total is None or self.done >= self.total:
            return counted(self.done, self.unit)
        line = f"{self.done:,} of {self.total:,} {self.unit}"
        if self.done - self.before < _TELLING:
            return line
        left_seconds = (self.total - self.done) * seconds / (self.done - self.before)
        if left_seconds < 60:
            return f"{line}, less than a minute left"
        minutes = round(left_seconds / 60)
        left = f"{minutes // 60} h {minutes % 60} min" if minutes >= 120 else f"{minutes} minutes"
        return f"{line}, about {left} left" if minutes > 1 else f"{line}, about a minute left"


@contextmanager
def waiting(text: str, seconds: float = _SOON) -> Iterator[None]:
    """:func:`tell` what runs in a block that takes longer than some ``seconds``, if this is the first process of a run.

    It is told by a thread: a block that forks processes reports a :class:`Progress` instead.
    """
    timer = Timer(seconds, tell, [f"{text} ..."])
    timer.daemon = True
    if not process_rank():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def tell(text: str) -> None:
    """Print a line about the course of a run on standard error, within :func:`told_to_users`."""
    if not _telling:
        return
    with suppress(OSError, AttributeError):
        sys.stderr.write(f"elang: {printable(text)}\n")
        sys.stderr.flush()


def say(*lines: str) -> None:
    """Print lines on standard output, with control characters of names and paths as escapes."""
    for line in lines:
        print(printable(line), flush=True)  # noqa: T201


def say_wrapped(*paragraphs: str, indent: str = "") -> None:
    """Print paragraphs broken between words, at 80 columns or the terminal's width; ``indent`` is for further lines."""
    width = min(console().width, _READABLE)
    for text in paragraphs:
        say(*textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))


def say_table(title: str, head: list[str], rows: list[list[str]], notes: list[str], texts: int = 1) -> None:
    """Print a table that fits into 80 columns: the first ``texts`` columns are texts, the others numbers.

    ``notes`` below it say what its words mean, and what was left out.
    """
    from rich import box
    from rich.table import Table

    target = console()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    if sum(max(map(len, column)) + _BETWEEN for column in zip(head, *rows, strict=True)) > target.width:
        # Names of columns break before those of rows do.
        head = [*head[:texts], *(re.sub(r" (?=.)|(?<=_)(?=.)", "\n", name) for name in head[texts:])]
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place < texts else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    say("")
    say_wrapped(title)
    target.print(table)
    say_wrapped(*notes, indent="  ")


def without_repeats(rows: list[list[str]]) -> tuple[list[list[str]], list[str]]:
    """Rows without those that differ from an earlier one by their name alone, the first cell; and a note of these.

    >>> without_repeats([["a", "1"], ["b", "2"], ["c", "1"]])
    ([['a', '1'], ['b', '2']], ["Left out, equal to 'a': 'c'."])
    """
    names: dict[tuple[str, ...], list[str]] = {}
    for name, *cells in rows:
        names.setdefault(tuple(cells), []).append(name)
    equal = [(first, ", ".join(map(repr, others))) for first, *others in names.values() if others]
    notes = [f"Left out, equal to '{first}': {others}." for first, others in equal]
    return [[first, *cells] for cells, (first, *_) in names.items()], notes


def console(width: int = _WIDTH) -> Any:
    """A rich console for tables that prints names literally, without markup, emoji or control characters.

    ``width`` applies if standard output is no terminal.
    """
    from rich.console import Console
    from rich.text import Text

    class Literal(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options)

    options: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False}
    literal = Literal(**options)
    return literal if literal.is_terminal else Literal(**options, width=width)
