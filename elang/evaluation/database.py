"""Joint records in a database, read from many files: checks, counts, and the hardest examples first."""

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
from elang.records.reading import read_metadata

# Folders named key=value would else become columns.
_TABLE = "read_parquet(?, union_by_name = true, hive_partitioning = false)"
_ANSWERS = ("label", "swift_prediction", "super_prediction")
_NEEDED = {"id", "split", "swift_flops", "super_flops", *_ANSWERS}
_METRICS = ("accuracy", "f1", "f1_macro", "matthews")
ROWS = 1 << 21  # of a piece, for metrics of a single sum


def _check_one_pair(abouts: dict[Path, dict[str, Any]]) -> None:
    """Refuse records of several pairs or tasks, as far as their files tell."""
    seen: dict[str, tuple[Any, Path]] = {}
    for path, about in abouts.items():
        weights = about["weights"] if isinstance(about.get("weights"), dict) else {}
        facts = {
            "labels": about.get("label_names", []),
            "Swift's weights": weights.get("swift"),
            "Super's weights": weights.get("super"),
            "temperature": about.get("temperature"),
            "convention of costs": about.get("flops_convention"),
        }
        for what, value in facts.items():
            # Missing in files of earlier versions, and for a black box.
            if value in (None, ""):
                continue
            first, where = seen.setdefault(what, (value, path))
            if value != first:
                raise InputError(
                    f"'{path}' and '{where}' differ in their {what} ({value} and {first}): sweep records of one pair "
                    "on one task."
                )


class Joint:
    """Joint records in many files, and what is counted of all at once.

    Args:
        paths: Folders of `elang validate`, or parquet files.
        split: By default test if there is one, else validation.
        memory: What sorting may take.

    Attributes:
        split: The split that is swept.
        count: Number of its examples.
        combined: Each combination of label, Swift's and Super's answer, int64 ``(K, 3)``.
        counts: How many examples have it, int64 ``(K,)``.
        super_cost: Mean FLOPs of the Super's answer.
    """

    def __init__(self, paths: list[str], split: str | None = None, memory: str = "2GB") -> None:
        need("elang sweep", "scale", "duckdb")
        import duckdb

        files = [Path(path) / "records.parquet" if Path(path).is_dir() else Path(path) for path in paths]
        if missing := [path for path in files if not path.is_file()]:
            raise InputError(f"There is no file '{missing[0]}'. Give folders that `elang validate` wrote.")
        if not files:
            raise InputError("No records were given. Give folders that `elang validate` wrote.")
        # DuckDB would take these characters for patterns.
        self.files = [re.sub(r"([*?\[])", r"[\1]", str(path)) for path in files]
        try:
            abouts = {path: read_metadata(path) for path in files}
        except ValueError as error:
            raise _unreadable(error) from error
        self.label_names: list[str] = abouts[files[0]].get("label_names", [])
        _check_one_pair(abouts)
        self.convention = next((str(a["flops_convention"]) for a in abouts.values() if a.get("flops_convention")), "")
        self._spill = tempfile.TemporaryDirectory(prefix="elang-sweep-")
        self._error: Any = duckdb.Error
        try:
            self._base: Any = duckdb.connect(config={"memory_limit": memory, "temp_directory": self._spill.name})
        except duckdb.Error as error:
            raise InputError(
                f"--memory '{memory}' is no amount of memory ({error}). Give, for example, 2GB."
            ) from error
        types = {row[0]: row[1] for row in self._rows(f"DESCRIBE SELECT * FROM {_TABLE}")}
        if lacking := sorted(_NEEDED - types.keys()):
            raise InputError(
                f"The records '{self.files[0]}' lack the columns {lacking}. Give joint records of a classification, "
                "which `elang validate` writes."
            )
        self.scores = sorted(name.removeprefix("score_") for name in types if name.startswith("score_"))
        self._optional_costs = {name for name in types if re.fullmatch("swift_.+_flops", name)}
        self.split = self._choose_split(split)
        name = self.split.replace("'", "''")
        self._examples = f"(SELECT * FROM {_TABLE} WHERE split = '{name}')"
        self._check_columns(types)
        self._count()
        self._check_ids()

    def _rows(self, query: str) -> Any:
        """All rows of a query, as tuples."""
        try:
            return self._base.execute(query, [self.files]).fetchall()
        except self._error as error:
            raise _unreadable(error) from error

    def _pieces(self, query: str, rows: int = ROWS) -> Iterator[dict[str, Any]]:
        """The columns of a query, some rows at a time."""
        try:
            for batch in self._base.sql(query, params=[self.files]).to_arrow_reader(rows):
                yield {name: batch[name].to_numpy(zero_copy_only=False) for name in batch.schema.names}
        except self._error as error:
            raise _unreadable(error) from error

    def _choose_split(self, split: str | None) -> str:
        splits = {name for (name,) in self._rows(f"SELECT DISTINCT split FROM {_TABLE}")}
        if None in splits:
            raise InputError("In the records the split of some rows is missing. Run `elang validate` again.")
        split = split or ("test" if "test" in splits else "validation")
        if split not in splits:
            raise InputError(f"The records have no split '{split}', only {', '.join(sorted(splits))}.")
        return split

    def _check_columns(self, types: dict[str, str]) -> None:
        """Refuse values that cannot be counted; unknown costs are allowed."""
        if "INT" not in types["id"]:
            raise InputError(f"'id' of the records is of the kind {types['id']}: whole numbers are needed.")
        checked = [*(_NEEDED - {"split"}), *self._optional_costs]
        bad = "count(*) FILTER (WHERE {0} IS NULL OR NOT isfinite({0}::DOUBLE))"
        (missing,) = self._rows(f"SELECT {', '.join(map(bad.format, checked))} FROM {self._examples}")
        for name, count in zip(checked, missing, strict=True):
            if not name.endswith("_flops"):
                if count:
                    raise InputError(f"{count} values of '{name}' in the records are missing. Fill them in.")
                continue
            impossible = f"isinf({name}::DOUBLE) OR {name} < 0"
            ((odd, first),) = self._rows(f"SELECT count(*), min(id) FROM {self._examples} WHERE {impossible}")
            if odd:
                raise InputError(
                    f"{odd} values of '{name}' in the records are infinite or negative, first id {first}: no answer "
                    "costs that. Correct them, or run `elang validate` again."
                )
        for name in _ANSWERS:
            if "INT" not in types[name]:
                raise InputError(
                    f"'{name}' of the records is of the kind {types[name]}, not a class's number. Classifications can "
                    "be swept; a regression's evaluations cannot."
                )
        # A black box may have no costs; if some are missing, the sum of the others would be wrong.
        self._costs_known = not any(missing)

    def _count(self) -> None:
        """Count the examples by label and answers."""
        names = ", ".join(_ANSWERS)
        grouped = self._rows(
            f"SELECT {names}, count(*), sum(super_flops) FROM {self._examples} GROUP BY {names} ORDER BY ALL"
        )
        if not grouped or any(value is None for row in grouped for value in row[:4]):
            raise InputError("The joint records are damaged: two reads differ. Run `elang validate` again.")
        self.combined = torch.tensor([row[:3] for row in grouped], dtype=torch.int64)
        self.counts = torch.tensor([row[3] for row in grouped], dtype=torch.int64)
        self.count = int(self.counts.sum())
        self.super_cost = sum(row[4] for row in grouped) / self.count if self._costs_known else math.nan

    def _check_ids(self) -> None:
        """Refuse examples that are in the records more than once."""
        ((least, most),) = self._rows(f"SELECT min(id), max(id) FROM {self._examples}")
        if most - least < 8 * self.count:
            # Much faster than DISTINCT: a byte for each possible id.
            seen = np.zeros(most - least + 1, dtype=bool)
            for batch in self._pieces(f"SELECT id FROM {self._examples}"):
                if ((batch["id"] < least) | (batch["id"] > most)).any():
                    raise InputError(
                        f"The joint records are damaged: ids are not from {least} to {most}, as the files' own "
                        "statistics say. Run `elang validate` again."
                    )
                seen[batch["id"] - least] = True
            distinct = int(seen.sum())
        else:
            ((distinct,),) = self._rows(f"SELECT count(DISTINCT id) FROM {self._examples}")
        if distinct != self.count:
            raise InputError(
                f"{self.count - distinct} of {self.count} examples of '{self.split}' are in the records more than "
                "once. Give each file once, and each example one id over all files."
            )

    def metric(self, name: QualityName) -> Quality:
        """A metric of these classes.

        Raises:
            InputError: If it is none of classes, or an answer is none of them.
        """
        size = len(self.label_names)
        if name not in _METRICS or not size:
            raise InputError(f"'{name}' cannot be swept over these records; choose one of {', '.join(_METRICS)}.")
        if int(self.combined.max()) >= size or int(self.combined[:, 0].min()) < 0:
            raise InputError(f"A label or an answer of the records is none of the {size} classes {self.label_names}.")
        return QUALITIES[name](size)

    def sums(self, metric: Quality) -> tuple[Tensor, Tensor]:
        """Sums of the Swift's and the Super's statistics over all examples, float64 ``(S,)``."""
        label, *answers = self.combined.unbind(1)
        swift, super_ = (self.counts.double() @ metric.statistics(answer, label).double() for answer in answers)
        return swift, super_

    def qualities(self, metric: Quality) -> tuple[float, float]:
        """The Swift's and the Super's quality."""
        swift, super_ = (float(metric.value(total)) for total in self.sums(metric))
        return swift, super_

    def kept_cost(self, score: str) -> float:
        """FLOPs of all examples if none is deferred; NaN if some are unknown."""
        if not self._costs_known:
            return math.nan
        kept, _ = swift_cost_columns(score, self._optional_costs)
        ((total,),) = self._rows(f"SELECT sum({' + '.join(kept)}) FROM {self._examples}")
        return float(total)

    def hardest_first(self, score: str, rows: int) -> Iterator[dict[str, Any]]:
        """Pieces of all examples by falling score: ``score``, ``label``, ``swift``, ``super``, ``kept``, ``deferred``.

        The last two are what an example costs if it is kept and if it is deferred.

        Raises:
            InputError: If there is no such score, or one is not finite.
        """
        if score not in self.scores:
            raise InputError(f"The records have no score '{score}', only {', '.join(self.scores)}.")
        column = f'"score_{score}"'
        ((bad,),) = self._rows(
            f"SELECT count(*) FROM {self._examples} WHERE {column} IS NULL OR NOT isfinite({column})"
        )
        if bad:
            raise InputError(f"{bad} of {self.count} scores '{score}' are missing or not finite. Correct the records.")
        kept, deferred = (" + ".join(names) for names in swift_cost_columns(score, self._optional_costs))
        yield from self._pieces(
            f"SELECT {column} AS score, label::SMALLINT AS label, swift_prediction::SMALLINT AS swift,"
            f" super_prediction::SMALLINT AS super, {kept} AS kept, {deferred} + super_flops AS deferred"
            f" FROM {self._examples} ORDER BY score DESC",
            max(1, rows),
        )


def _unreadable(error: Exception) -> InputError:
    return InputError(f"The joint records cannot be read ({error}). Run `elang validate` again.")
