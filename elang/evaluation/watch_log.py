"""The log of a watch: inputs that `elang serve --shadow` sampled, with the answers of both models, and labels by id.

A line is an object of JSON. ``start`` says how the server answers, ``input`` is a sampled input, ``super`` the answer
that the Super gives later, ``label`` what is right, and ``count`` how many inputs there were. Lines are only added.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elang.errors import InputError
from elang.json_files import TEXT, THRESHOLD, Check, check_fields, is_number, parse_object, shown, whole
from elang.tables import read_table

FORMAT = 1
_SHARE: Check = ("a number from 0 to 1", lambda v: is_number(v, 0, 1))
_TIME: Check = ("seconds since 1970", lambda v: is_number(v, 0))
_COUNTS = {"seen": whole(), "deferred": whole(), "fallbacks": whole(), "unwatched": whole()}
_LINES: dict[str, dict[str, Check]] = {
    "start": {"time": _TIME, "score": TEXT, "threshold": THRESHOLD, "share": _SHARE},
    "input": {
        "time": _TIME,
        "id": TEXT,
        "p": ("a number above 0, at most 1", lambda v: is_number(v, 0, 1) and v > 0),
        "score": ("a number or null", lambda v: v is None or is_number(v)),
        "by": ("'swift' or 'super'", lambda v: v in ("swift", "super")),
        **_COUNTS,
    },
    "super": {"id": TEXT, "time": _TIME},
    "label": {"id": TEXT},
    "count": {"time": _TIME, **_COUNTS},
}


@dataclass
class Sampled:
    """A sampled input.

    Attributes:
        time: When it was answered, in seconds since 1970.
        seen: Its number in its run of the server.
        score: The Swift's.
        kept: Whether the Swift's answer was used.
        share: The probability with which it was sampled.
        swift: The Swift's answer; ``None`` if it is not logged.
        super_: The Super's.
        differs: Whether they differ; ``None`` while that is not known.
        failed: Why the Super gave none.
        label: What is right; ``None`` if that is not known.
        worth: Of the Swift's and of the Super's answer, if a label gives them.
        text: The input, if it is logged.
    """

    time: float
    seen: int
    score: float
    kept: bool
    share: float
    swift: str | None = None
    super_: str | None = None
    differs: bool | None = None
    failed: str | None = None
    label: str | None = None
    worth: tuple[float | None, float | None] = (None, None)
    text: str | None = None


@dataclass
class Run:
    """A run of the server: how it answers, its sampled inputs by id, and how many inputs there were."""

    about: dict[str, Any]
    sampled: dict[str, Sampled] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTS, 0))
    time: float = 0.0
    cost: dict[str, float] = field(default_factory=dict)


@dataclass
class WatchLog:
    """What a log says.

    Attributes:
        runs: Of the server.
        orphans: How many labels and answers are of ids that it does not have.
        by_id: The sampled inputs of all runs.
        spent: What each answer of the Super cost: its time, the unit and the amount.
    """

    runs: list[Run] = field(default_factory=list)
    orphans: int = 0
    by_id: dict[str, Sampled] = field(default_factory=dict)
    spent: list[tuple[float, str, float]] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        """Take a line; a ValueError if it is none."""
        kind = line.get("kind")
        if kind not in _LINES:
            raise ValueError(f"its 'kind' is {shown(kind)}, where one of {', '.join(_LINES)} is needed")
        check_fields(line, _LINES[kind], tuple(_LINES[kind]))
        if kind == "start":
            if line.get("format") != FORMAT:
                raise ValueError(f"its format is {shown(line.get('format'))}, and this version reads {FORMAT}")
            self.runs.append(Run(line, time=line["time"]))
        elif kind in ("input", "count"):
            if not self.runs:
                raise ValueError("it comes before any 'start'")
            run = self.runs[-1]
            # Lines of inputs may come in another order than their numbers.
            run.counts = {name: max(count, line[name]) for name, count in run.counts.items()}
            run.time = max(run.time, line["time"])
            run.cost = line.get("cost") or run.cost
            if kind == "input":
                kept, score = line["by"] == "swift", line["score"]
                one = Sampled(line["time"], line["seen"], math.nan if score is None else score, kept, line["p"])
                one.swift, one.super_ = line.get("swift"), line.get("super")
                one.differs, one.text = None if kept else False, line.get("input")
                self.by_id[line["id"]] = run.sampled[line["id"]] = one
        elif (known := self.by_id.get(line["id"])) is None:
            self.orphans += 1
        elif kind == "super":
            known.failed, known.super_ = line.get("failed"), line.get("answer")
            known.differs = line.get("differs", known.differs)
            if "cost" in line:
                self.spent.append((line["time"], str(self.runs[-1].about.get("unit")), line["cost"]))
        else:
            _take_label(known, line)

    def threshold(self) -> tuple[str, float]:
        """The score and the threshold of the last run."""
        about = self.runs[-1].about
        return about["score"], float(about["threshold"])

    def at(self, score: str, threshold: float, since: float = 0.0) -> list[Run]:
        """The runs that answered with a score and a threshold, of inputs from a time on."""
        fitting = []
        for run in self.runs:
            if run.about["score"] == score and same_threshold(float(run.about["threshold"]), threshold):
                kept = {name: one for name, one in run.sampled.items() if one.time >= since}
                if run.time >= since:
                    fitting.append(Run(run.about, kept, run.counts, run.time, run.cost))
        return fitting


def same_threshold(first: float, second: float) -> bool:
    """Whether two thresholds are the same number, perhaps printed and read again."""
    return first == second or math.isclose(first, second, rel_tol=1e-6)


def check_label(line: dict[str, Any]) -> None:
    """Raise a ValueError if a label says nothing, or what no label says."""
    label, worths = line.get("label"), (line.get("swift"), line.get("super"))
    if (label is None) == (worths == (None, None)):
        raise ValueError("it needs either a 'label', or a worth from 0 to 1 as 'swift', 'super' or both")
    if not all(worth is None or is_number(worth, 0, 1) for worth in worths):
        raise ValueError(f"its worths are {shown(worths)}, where numbers from 0 to 1 are needed")


def _take_label(one: Sampled, line: dict[str, Any]) -> None:
    check_label(line)
    if (label := line.get("label")) is not None:
        one.label = str(label)
    else:
        one.worth = (line.get("swift"), line.get("super"))


def read_log(path: Path) -> WatchLog:
    """Read a log; of a server that was killed the last line may be cut off, and is left out.

    Raises:
        InputError: If it cannot be read, naming the line.
    """
    log = WatchLog()
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    log.add(parse_object(line))
                except ValueError as error:
                    raise InputError(f"Line {number} of the log '{path}' cannot be read: {error}.") from error
    except OSError as error:
        raise InputError(f"The log '{path}' cannot be read ({error.strerror}). Give the --shadow_log.") from error
    if not log.runs:
        raise InputError(f"'{path}' has no line that begins a log of `elang serve --shadow`.")
    return log


def add_labels(log: WatchLog, path: Path) -> None:
    """Add the labels of a table with a column ``id``, and ``label`` or the worths ``swift`` and ``super``.

    Raises:
        InputError: If it has no such columns, or a value is wrong.
    """
    frame = read_table(path)
    if "id" not in frame or not {"label", "swift", "super"} & set(frame):
        raise InputError(f"The labels '{path}' need columns id and label, or id, swift and super (worths).")
    frame = frame[[name for name in ("id", "label", "swift", "super") if name in frame]]
    for number, row in enumerate(frame.to_dict("records"), 1):
        given = {name: _plain(name, value) for name, value in row.items() if value == value and value not in ("", None)}
        try:
            # A row without a label is one that nobody has labelled yet.
            if given.keys() - {"id"}:
                log.add({"kind": "label", **given, "id": str(row["id"])})
        except ValueError as error:
            raise InputError(f"Row {number} of the labels '{path}' cannot be used: {error}.") from error


def _plain(name: str, value: Any) -> Any:
    if name in ("swift", "super"):
        try:
            return float(value)
        except ValueError:
            return value
    return value.item() if hasattr(value, "item") else value


def line_of(kind: str, **values: Any) -> bytes:
    """A line of a log."""
    finite = {k: str(v) if isinstance(v, float) and math.isinf(v) else v for k, v in values.items()}
    return json.dumps({"kind": kind, **finite}, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
