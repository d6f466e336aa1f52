"""The exact curve of more examples than memory holds: joint records in any number of files, in any order.

The examples are sorted by DuckDB, which spills to the disk, and pass once through the sums of :mod:`elang.curve`, in
pieces. What is read off a curve is found on the way; of the curve itself an even grid is kept.
"""

import csv
import json
import math
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.curve import OperatingCurve, Point, at_best, at_parity, at_share
from elang.data.files import columns_of
from elang.errors import InputError, need
from elang.evaluate import FRACTIONS, SHARES, swift_cost_columns
from elang.manifest import plain
from elang.notices import write_made
from elang.outputs import check_folder, console, files_of, written_aside
from elang.quality import QUALITIES, Quality, QualityName
from elang.records import read_about
from elang.scores import DEFAULT_SCORE

# Folders named key=value tell nothing of the rows.
_TABLE = "read_parquet(?, union_by_name = true, hive_partitioning = false)"
_ROWS = 1 << 21  # of a piece, for metrics of a single sum


@dataclass
class Swept:
    """What one score's curve tells.

    Attributes:
        points: By name: what `elang validate` reads off a curve, each exact.
        grid: The points of a curve at an even grid of deferred shares, each exact, both ends among them.
        area: Under quality over deferred share, over all points.
        random: The same of deferring at random.
    """

    points: dict[str, Point]
    grid: OperatingCurve
    area: float
    random: float


def sweep(
    joint: list[str],
    output: str = "swept",
    score: list[str] | str | None = None,
    quality: QualityName = "accuracy",
    split: str | None = None,
    memory: str = "2GB",
    points: int = 1001,
) -> None:
    """The exact curve of a pair over joint records in many files, of any size.

    Args:
        joint: Folders that `elang validate` wrote, or their records: each example in one of them.
        output: Folder for ``curve.csv``, the grid, and ``summary.json``.
        score: Scores to sweep; by default max_softmax.
        quality: A metric of classes: accuracy, f1, f1_macro or matthews.
        split: By default test where there is one, else validation.
        memory: What sorting may take, beside the pieces that pass through; more goes to the disk.
        points: Of the grid.

    Raises:
        InputError: If the records cannot be read, have no such score, or hold an example twice.
    """
    folder = Path(output)
    read = [each for path in joint for each in files_of(path)]
    check_folder(folder, read, ("curve.csv", "summary.json", "made.json"))
    records = Joint(joint, split, memory)
    metric = records.metric(quality)
    found = {name: swept(records, name, metric, points) for name in columns_of(score) or [DEFAULT_SCORE]}
    folder.mkdir(parents=True, exist_ok=True)
    with written_aside(folder / "curve.csv") as aside, aside.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["score", "threshold", "deferred", "deferred_share", quality, "flops", "speedup"])
        for name, one in found.items():
            grid = one.grid
            columns = (grid.threshold, grid.deferred, grid.deferred_share, grid.quality, grid.cost, grid.speedup)
            out.writerows([name, *row] for row in zip(*(column.tolist() for column in columns), strict=True))
    summary = {
        "num_examples": records.count,
        "split": records.split,
        "quality_name": quality,
        "swift": vars(next(iter(found.values())).grid[0]),
        "super": {"quality": records.qualities(metric)[1], "cost": records.super_cost},
        "scores": {
            name: {"area": one.area, "random": one.random, "points": {k: vars(p) for k, p in one.points.items()}}
            for name, one in found.items()
        },
    }
    write_made(folder)
    with written_aside(folder / "summary.json") as aside:
        aside.write_text(json.dumps(plain(summary), indent=2) + "\n", "utf-8")
    _show(summary, folder)


def _show(summary: dict[str, Any], folder: Path) -> None:
    from rich.table import Table

    table = Table(
        title=f"{summary['quality_name']} on {summary['num_examples']:,} examples of {summary['split']}: Swift "
        f"{summary['swift']['quality']:.4f}, Super {summary['super']['quality']:.4f}"
    )
    chosen = [*FRACTIONS, *SHARES]
    for name in ("score", "area (random)", *chosen):
        table.add_column(name, justify="left" if name == "score" else "right")
    for name, one in summary["scores"].items():
        cells = [one["points"][key] for key in chosen]
        table.add_row(
            name,
            f"{one['area']:.4f} ({one['random']:.4f})",
            *(f"{c['quality']:.4f} {c['deferred_share']:.1%} {c['speedup']:.2f}x" for c in cells),
        )
    terminal = console(140)
    terminal.print(table)
    terminal.print(f"All points are read on these examples. Curve and summary are in {folder}/")


def _check_one_pair(abouts: dict[Path, dict[str, Any]]) -> None:
    """Refuse records of several pairs or tasks, as far as their files tell.

    Raises:
        InputError: Naming two of them, and in what they differ.
    """
    said: dict[str, tuple[Any, Path]] = {}
    for path, about in abouts.items():
        weights = about.get("weights")
        hashes = weights if isinstance(weights, dict) else {}
        own = {f"{name}'s weights": hashes.get(name.lower()) for name in ("Swift", "Super")}
        own |= {"temperature": about.get("temperature"), "FLOPs convention": about.get("flops_convention")}
        for what, value in ({"labels": about.get("label_names", [])} | own).items():
            # Earlier versions did not say it, and of a black box nothing is known.
            if value in (None, ""):
                continue
            first, where = said.setdefault(what, (value, path))
            if value != first:
                raise InputError(
                    f"'{path}' and '{where}' differ in their {what} ({value} and {first}): sweep records of one pair "
                    "on one task."
                )


class Joint:
    """Joint records in many files, and what is counted of them at once.

    Args:
        paths: Folders of `elang validate`, or parquet files.
        split: As :func:`sweep` has it.
        memory: As there.

    Attributes:
        split: The split that is swept.
        count: Its examples.
        counts: How many have each label, Swift's and Super's answer, int64 ``(K,)``, with ``combined``, ``(K, 3)``.
        super_cost: Mean FLOPs of the Super's answer.
    """

    def __init__(self, paths: list[str], split: str | None = None, memory: str = "2GB") -> None:
        need("elang sweep", "scale", "duckdb")
        import duckdb

        found = [Path(path) / "records.parquet" if Path(path).is_dir() else Path(path) for path in paths]
        if missing := [str(path) for path in found if not path.is_file()]:
            raise InputError(f"There is no file '{missing[0]}'. Give folders that `elang validate` wrote.")
        if not found:
            raise InputError("No records were given. Give folders that `elang validate` wrote.")
        # DuckDB would take these for patterns.
        self.files = [re.sub(r"([*?\[])", r"[\1]", str(path)) for path in found]
        try:
            abouts = [read_about(path) for path in found]
        except ValueError as error:
            raise InputError(f"The joint records cannot be read ({error}). Run `elang validate` again.") from error
        self.label_names: list[str] = abouts[0].get("label_names", [])
        _check_one_pair(dict(zip(found, abouts, strict=True)))
        self._spill = tempfile.TemporaryDirectory(prefix="elang-sweep-")
        self._error: Any = duckdb.Error
        try:
            self._base: Any = duckdb.connect(config={"memory_limit": memory, "temp_directory": self._spill.name})
        except duckdb.Error as error:
            raise InputError(f"--memory '{memory}' is no amount of memory ({error}). Say, for example, 2GB.") from error
        kinds = {row[0]: row[1] for row in self._rows(f"DESCRIBE SELECT * FROM {_TABLE}")}
        columns = set(kinds)
        needed = {"id", "split", "label", "swift_prediction", "super_prediction", "swift_flops", "super_flops"}
        if lacking := sorted(needed - columns):
            raise InputError(
                f"The records '{self.files[0]}' lack the columns {lacking}. Give joint records of a classification, "
                "which `elang validate` writes."
            )
        self.scores = sorted(name.removeprefix("score_") for name in columns if name.startswith("score_"))
        self._more_costs = {name for name in ("swift_early_flops", "swift_score_flops") if name in columns}
        there = {row[0] for row in self._rows(f"SELECT DISTINCT split FROM {_TABLE}")}
        if None in there:
            raise InputError("In the records the split of some rows is missing. Run `elang validate` again.")
        self.split = split or ("test" if "test" in there else "validation")
        if self.split not in there:
            raise InputError(f"The records have no split '{self.split}', only {', '.join(sorted(there))}.")
        if "INT" not in kinds["id"]:
            raise InputError(f"'id' of the records is of the kind {kinds['id']}: whole numbers are needed.")
        checked = [*(needed - {"split"}), *self._more_costs]
        bad = self._rows(
            "SELECT "
            + ", ".join(f"count(*) FILTER (WHERE {name} IS NULL OR NOT isfinite({name}::DOUBLE))" for name in checked)
            + f" FROM ({self._examples()})"
        )[0]
        for name, count in zip(checked, bad, strict=True):
            if count and not name.endswith("_flops"):
                raise InputError(f"{count} values of '{name}' in the records are missing. Mend them.")
            wrong = f"SELECT count(*), min(id) FROM ({self._examples()}) WHERE isinf({name}::DOUBLE) OR {name} < 0"
            if name.endswith("_flops") and (odd := self._rows(wrong)[0])[0]:
                raise InputError(
                    f"{odd[0]} values of '{name}' in the records are infinite or negative, first id {odd[1]}: no "
                    "answer costs that. Correct them, or run `elang validate` again."
                )
        for name in ("label", "swift_prediction", "super_prediction"):
            if "INT" not in kinds[name]:
                raise InputError(
                    f"'{name}' of the records is of the kind {kinds[name]}, not a class's number. Classifications can "
                    "be swept; a regression's evaluations cannot."
                )
        # Costs of some black boxes are not known; half known, they would be wrong.
        self._costs_known = not any(bad)
        grouped = self._rows(
            "SELECT label, swift_prediction, super_prediction, count(*), sum(super_flops)"
            f" FROM ({self._examples()}) GROUP BY label, swift_prediction, super_prediction ORDER BY ALL"
        )
        if not grouped or any(value is None for row in grouped for value in row[:4]):
            raise InputError("The joint records are damaged: they are not the same twice. Run `elang validate` again.")
        self.combined = torch.tensor([row[:3] for row in grouped], dtype=torch.int64)
        self.counts = torch.tensor([row[3] for row in grouped], dtype=torch.int64)
        self.count = int(self.counts.sum())
        self.super_cost = sum(row[4] for row in grouped) / self.count if self._costs_known else math.nan
        self._check_ids()

    def _examples(self) -> str:
        split = self.split.replace("'", "''")
        return f"SELECT * FROM {_TABLE} WHERE split = '{split}'"

    def _run(self, query: str) -> Any:
        try:
            return self._base.execute(query, [self.files])
        except self._error as error:
            raise InputError(f"The joint records cannot be read ({error}). Run `elang validate` again.") from error

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._run(query).fetchall()
        return rows

    def _check_ids(self) -> None:
        ((least, most),) = self._rows(f"SELECT min(id), max(id) FROM ({self._examples()})")
        if most - least < 8 * self.count:
            # A byte for each row of the file that the ids are from.
            seen = np.zeros(most - least + 1, dtype=bool)
            for batch in self._pieces(f"SELECT id FROM ({self._examples()})"):
                if ((batch["id"] < least) | (batch["id"] > most)).any():
                    raise InputError(
                        f"The joint records are damaged: ids are not from {least} to {most}, as their files say of "
                        "themselves. Run `elang validate` again."
                    )
                seen[batch["id"] - least] = True
            distinct = int(seen.sum())
        else:
            ((distinct,),) = self._rows(f"SELECT count(DISTINCT id) FROM ({self._examples()})")
        if distinct != self.count:
            raise InputError(
                f"{self.count - distinct} of {self.count} examples of '{self.split}' are in the records more than "
                "once. Give each file once, and each example one id over all files."
            )

    def _pieces(self, query: str, rows: int = _ROWS) -> Iterator[dict[str, Any]]:
        """The rows of a query, as columns of so many at a time."""
        try:
            for batch in self._base.sql(query, params=[self.files]).to_arrow_reader(rows):
                yield {name: batch[name].to_numpy(zero_copy_only=False) for name in batch.schema.names}
        except self._error as error:
            raise InputError(f"The joint records cannot be read ({error}). Run `elang validate` again.") from error

    def metric(self, name: QualityName) -> Quality:
        """A metric of these classes.

        Raises:
            InputError: If it is none of classes, or an answer is none of them.
        """
        size = len(self.label_names)
        known = ("accuracy", "f1", "f1_macro", "matthews")
        if name not in known or not size:
            raise InputError(f"'{name}' cannot be swept over these records; choose one of {', '.join(known)}.")
        if int(self.combined.max()) >= size or int(self.combined[:, 0].min()) < 0:
            raise InputError(f"A label or an answer of the records is none of the {size} classes {self.label_names}.")
        return QUALITIES[name](size)

    def sums(self, metric: Quality) -> tuple[Tensor, Tensor]:
        """Sums of the Swift's and the Super's statistics over all examples, float64 ``(S,)``."""
        label, swift, super_ = self.combined.unbind(1)
        each = (metric.statistics(answer, label).double() for answer in (swift, super_))
        weights = self.counts.double()
        a, b = (weights @ statistics for statistics in each)
        return a, b

    def qualities(self, metric: Quality) -> tuple[float, float]:
        """The Swift's and the Super's."""
        swift, super_ = (float(metric.value(total)) for total in self.sums(metric))
        return swift, super_

    def kept_cost(self, score: str) -> float:
        """FLOPs of all examples where none is deferred."""
        if not self._costs_known:
            return math.nan
        kept, _ = swift_cost_columns(score, self._more_costs)
        ((total,),) = self._rows(f"SELECT sum({' + '.join(kept)}) FROM ({self._examples()})")
        return float(total)

    def hardest_first(self, score: str, rows: int) -> Iterator[dict[str, Any]]:
        """Pieces of all examples by falling score: ``score``, ``label``, ``swift``, ``super``, ``kept``, ``deferred``.

        The last two are what an example costs if it is kept and if it is deferred.

        Raises:
            InputError: If there is no such score, or one is not finite.
        """
        if score not in self.scores:
            raise InputError(f"The records have no score '{score}', only {', '.join(self.scores)}.")
        ((bad,),) = self._rows(
            f'SELECT count(*) FROM ({self._examples()}) WHERE "score_{score}" IS NULL OR NOT isfinite("score_{score}")'
        )
        if bad:
            raise InputError(f"{bad} of {self.count} scores '{score}' are missing or not finite. Mend the records.")
        kept, deferred = (" + ".join(names) for names in swift_cost_columns(score, self._more_costs))
        yield from self._pieces(
            f'SELECT "score_{score}" AS score, label::SMALLINT AS label, swift_prediction::SMALLINT AS swift,'
            f" super_prediction::SMALLINT AS super, {kept} AS kept, {deferred} + super_flops AS deferred"
            f" FROM ({self._examples()}) ORDER BY score DESC",
            max(1, rows),
        )


class _Events:
    """The points of a curve, a piece at a time: equal scores move together, also where they are in two pieces."""

    def __init__(self, records: Joint, score: str, metric: Quality) -> None:
        self.metric, self.count = metric, records.count
        size = len(records.label_names)
        label = torch.arange(size).repeat(size + 1)
        answer = torch.arange(-1, size).repeat_interleave(size)
        # By answer (from -1) and label.
        self.table = metric.statistics(answer, label).double().unflatten(0, (size + 1, size))
        self.total = records.sums(metric)[0]
        self.cost = records.kept_cost(score)
        self.done, self.last, self.hardest = 0, math.inf, math.nan
        self.super_cost = records.super_cost

    def of(self, piece: dict[str, Any]) -> OperatingCurve:
        """The points before each score of a piece that is new in it: all harder examples are deferred."""
        score = torch.tensor(piece["score"])
        self.hardest = self.hardest if self.done else float(score[0])
        label, swift, super_ = (torch.tensor(piece[name], dtype=torch.int64) for name in ("label", "swift", "super"))
        moved = self.table[super_ + 1, label] - self.table[swift + 1, label]
        paid = torch.from_numpy(piece["deferred"] - piece["kept"])
        # Before each example of the piece, and behind the last one.
        sums = torch.cat([self.total[None], moved]).cumsum(0)
        costs = torch.cat([torch.tensor([self.cost], dtype=torch.float64), paid]).cumsum(0)
        before = torch.cat([torch.tensor([self.last], dtype=torch.float64), score.double()])
        if (before[1:] > before[:-1]).any():
            raise RuntimeError("The scores came out of order. This is a fault of elang; please report it.")
        fresh = (before[1:] != before[:-1]).nonzero().squeeze(1)
        found = self._curve(before[fresh + 1], fresh + self.done, sums[fresh], costs[fresh])
        self.total, self.cost, self.last = sums[-1], float(costs[-1]), float(score[-1])
        self.done += len(score)
        return found

    def all(self, pieces: Iterator[dict[str, Any]]) -> Iterator[OperatingCurve]:
        """All points, none of them twice; the last one defers everything."""
        for piece in pieces:
            if len(found := self.of(piece)):
                yield found
        nowhere = torch.tensor([-math.inf], dtype=torch.float64)
        cost = torch.tensor([self.cost], dtype=torch.float64)
        yield self._curve(nowhere, torch.tensor([self.done]), self.total[None], cost)

    def _curve(self, threshold: Tensor, deferred: Tensor, sums: Tensor, costs: Tensor) -> OperatingCurve:
        # With nothing deferred everything is kept, whatever is above the hardest score.
        threshold = threshold.masked_fill(deferred == 0, math.inf)
        cost = costs / self.count
        quality = self.metric.value(sums)
        return OperatingCurve(threshold, deferred, quality, cost, self.super_cost, self.count, self.hardest)


def swept(records: Joint, score: str, metric: Quality, points: int = 1001) -> Swept:
    """Sweep one score.

    Args:
        records: Of the pair.
        score: Its name.
        metric: From :meth:`Joint.metric`.
        points: Of the grid.
    """
    if points < 2:
        raise InputError(f"A grid has at least 2 points, but it is to have {points}.")
    sums = records.sums(metric)
    super_quality = metric.value(sums[1])[None]
    share = torch.linspace(0, 1, 1001, dtype=torch.float64)
    random = float(torch.trapezoid(metric.value(torch.lerp(*sums, share[:, None])), share))
    wanted = torch.linspace(0, records.count, min(points, records.count + 1), dtype=torch.float64).round().long()
    grid = torch.zeros(4, len(wanted), dtype=torch.float64)
    named: dict[str, Point] = {}
    area, end = 0.0, (torch.zeros(0), torch.zeros(0))
    events = _Events(records, score, metric)
    for curve in events.all(records.hardest_first(score, _ROWS // len(sums[0]))):
        # A later piece has the points of the same share that lie nearer.
        place = torch.searchsorted(curve.deferred, wanted, right=True) - 1
        columns = torch.stack([curve.threshold, curve.deferred.double(), curve.quality, curve.cost])
        grid[:, place >= 0] = columns[:, place[place >= 0]]
        for name, most in SHARES.items():
            if int(curve.deferred[0]) <= most * records.count:
                named[name] = curve[at_share(curve, most)]
        # What is reached is told by the Super's quality, with which a whole curve ends.
        to_super = replace(curve, quality=torch.cat([curve.quality, super_quality]))
        for name, fraction in FRACTIONS.items():
            if name not in named and (index := at_parity(to_super, fraction)) < len(curve):
                named[name] = curve[index]
        top = curve[at_best(curve)]
        if "best" not in named or top.quality > named["best"].quality:
            named["best"] = top
        along, quality = (torch.cat(pair) for pair in zip(end, (curve.deferred_share, curve.quality), strict=True))
        area += float(torch.trapezoid(quality, along))
        end = along[-1:], quality[-1:]
    threshold, deferred, quality, cost = grid[:, grid[1].diff(prepend=torch.tensor([-1.0])) > 0]
    kept = OperatingCurve(threshold, deferred.long(), quality, cost, records.super_cost, records.count, events.hardest)
    return Swept(named, kept, area, random)
