"""Joint records in a database: sums, costs and the hardest first."""

import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.errors import InputError, need
from elang.evaluation.pair import swift_cost_columns
from elang.method.quality.metric import Quality
from elang.method.quality.registry import QUALITIES, QualityName
from elang.records.reading import read_about

# Folders named key=value tell nothing of the rows.
_TABLE = "read_parquet(?, union_by_name = true, hive_partitioning = false)"
_NEEDED = {"id", "split", "label", "swift_prediction", "super_prediction", "swift_flops", "super_flops"}
ROWS = 1 << 21  # of a piece, for metrics of a single sum


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
        split: By default test where there is one, else validation.
        memory: What sorting may take.

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
        if lacking := sorted(_NEEDED - kinds.keys()):
            raise InputError(
                f"The records '{self.files[0]}' lack the columns {lacking}. Give joint records of a classification, "
                "which `elang validate` writes."
            )
        self.scores = sorted(name.removeprefix("score_") for name in kinds if name.startswith("score_"))
        self._more_costs = {name for name in ("swift_early_flops", "swift_score_flops") if name in kinds}
        self.split = self._chosen_split(split)
        self._check_columns(kinds)
        self._count()
        self._check_ids()

    def _chosen_split(self, split: str | None) -> str:
        there = {row[0] for row in self._rows(f"SELECT DISTINCT split FROM {_TABLE}")}
        if None in there:
            raise InputError("In the records the split of some rows is missing. Run `elang validate` again.")
        split = split or ("test" if "test" in there else "validation")
        if split not in there:
            raise InputError(f"The records have no split '{split}', only {', '.join(sorted(there))}.")
        return split

    def _check_columns(self, kinds: dict[str, str]) -> None:
        """Refuse values that cannot be counted; unknown costs are allowed."""
        if "INT" not in kinds["id"]:
            raise InputError(f"'id' of the records is of the kind {kinds['id']}: whole numbers are needed.")
        checked = [*(_NEEDED - {"split"}), *self._more_costs]
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

    def _count(self) -> None:
        """Count the examples by label and answers."""
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

    def _pieces(self, query: str, rows: int = ROWS) -> Iterator[dict[str, Any]]:
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
