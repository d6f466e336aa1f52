"""Reads the folder of an evaluation, and checks what a report needs of it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.errors import InputError
from elang.evaluation.statements import check_statements
from elang.evaluation.summary_file import read_summary
from elang.json_files import OBJECT, TEXT, Check, check_fields, read_object
from elang.method.quality.metric import Quality
from elang.method.quality.registry import QUALITIES
from elang.records import DEFAULT_THRESHOLD
from elang.records.columns import exact_floats, numbers, vectors
from elang.records.manifest import FILENAME, Manifest, known_name
from elang.records.reading import read_metadata
from elang.tables import read_parquet

_MADE: dict[str, Check] = {
    "command": TEXT,
    "seed": ("a text, or null", lambda v: v is None or isinstance(v, str)),
    "versions": OBJECT,
}
_CLASSES = ("label", "swift_prediction", "super_prediction")


@dataclass
class Evaluation:
    """What `elang validate` left in a folder.

    Attributes:
        folder: The folder.
    """

    folder: Path

    def __post_init__(self) -> None:
        self.summary = read_summary(self.folder)
        self.score, self.first = self.summary.score, self.summary.first
        self.metric: Any = self.first.quality_name
        for name, read in (
            ("records.parquet", self._read_records),
            ("curve.csv", self._read_curves),
            ("made.json", self._read_made),
        ):
            try:
                read(self.folder / name)
            except InputError:
                raise
            except Exception as error:  # whatever the readers raise for a damaged file
                raise InputError(
                    f"'{self.folder / name}' is not what `elang validate` wrote ({error}). Run `elang validate` again."
                ) from error

    def _read_records(self, path: Path) -> None:
        frame, _ = read_parquet(path)
        self.label_names: list[str] = read_metadata(path).get("label_names", [])
        self.frame = frame[frame["split"] == self.summary.evaluated_on].reset_index(drop=True)
        if len(self.frame) != (expected := self.first.num_examples):
            raise ValueError(f"it has {len(self.frame)} rows of '{self.summary.evaluated_on}', not {expected}")
        for name in ("id", "key", f"score_{self.score}", "gain", "swift_tokens"):
            if name in self.frame:
                numbers(self.frame, name, str(path), whole=name in ("id", "key"))
            elif name != "swift_tokens":
                raise ValueError(f"it has no column '{name}'")
        if self.quality is not None and self.labels is not None:
            for name, column in zip(_CLASSES, self.labels, strict=True):
                # -1 is an answer that names no class.
                if int(column.max()) >= len(self.label_names) or int(column.min()) < (0 if name == "label" else -1):
                    raise ValueError(f"a '{name}' is none of the {len(self.label_names)} classes")
        if "swift_logits" in self.frame:
            first = self.frame["swift_logits"].iloc[0]
            size = len(first) if hasattr(first, "__len__") else 0
            self.logits = torch.from_numpy(vectors(self.frame, "swift_logits", size, path=str(path), missing=True))

    def _read_curves(self, path: Path) -> None:
        import pandas as pd

        self.curves = pd.read_csv(path, **exact_floats())
        for name in ("score", "threshold", "deferred_share", *self.summary.qualities, "flops", "speedup"):
            if name not in self.curves:
                raise ValueError(f"it has no column '{name}'")
            if name != "score" and self.curves[name].dtype.kind not in "if" and len(self.curves):
                raise ValueError(f"its column '{name}' has values that are no numbers")
        share = self.curve["deferred_share"]
        if not len(share) or not (share.between(0, 1).all() and share.is_monotonic_increasing):
            raise ValueError(f"it has no curve of the score '{self.score}' whose 'deferred_share' rises from 0 to 1")
        if not self.curve["threshold"].is_monotonic_decreasing:
            raise ValueError(f"the 'threshold' of '{self.score}' does not fall")

    def _read_made(self, path: Path) -> None:
        self.made: dict[str, Any] = read_object(path) if path.exists() else {}
        check_fields(self.made, _MADE, tuple(_MADE) if self.made else ())

    @property
    def name(self) -> str:
        """The name of the folder, or of the first one above it that is not a generic ``joint`` or ``runs``.

        It is empty if there is none below the working directory, whose name says nothing of the task.
        """
        folder, here = self.folder.resolve(), Path.cwd().resolve()
        parts = folder.relative_to(here).parts if folder.is_relative_to(here) else folder.parts[1:]
        return next((name for name in reversed(parts) if name not in ("joint", "runs")), "")

    def column(self, name: str) -> Tensor:
        """A column of the records."""
        return torch.tensor(self.frame[name].to_numpy())

    @cached_property
    def routed(self) -> Tensor:
        """The score that routes, ``(N,)``."""
        return self.column(f"score_{self.score}")

    @cached_property
    def gain(self) -> Tensor:
        """How much more the Super's answer is worth, as a share of the largest worth, ``(N,)``."""
        return self.column("gain").double() / (self.summary.worth.largest or 1.0)

    @cached_property
    def labels(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Label, Swift's and Super's prediction, if these are classes."""
        if not all(name in self.frame and self.frame[name].dtype.kind == "i" for name in _CLASSES):
            return None
        label, swift, super_ = map(self.column, _CLASSES)
        return label, swift, super_

    @cached_property
    def quality(self) -> Quality | None:
        """The metric, if it is a function of sums over the examples' labels."""
        if self.labels is None:
            return None
        quality = QUALITIES[self.metric](len(self.label_names))
        return quality if quality.whole is None and quality.by_group is None and quality.target == "label" else None

    @cached_property
    def curve(self) -> Any:
        """The curve of the score that routes, a row for each threshold."""
        return self.curves[self.curves["score"] == self.score].reset_index(drop=True)

    def row_at(self, threshold: float) -> int:
        """The row of the curve at which a pair with this threshold works."""
        if threshold >= float(self.routed.max()):
            return 0
        return min(int((self.curve["threshold"] > threshold).sum()), len(self.curve) - 1)

    @cached_property
    def manifest(self) -> Manifest | None:
        """The folder's thresholds."""
        path = self.folder / FILENAME
        return Manifest.read(path) if path.is_file() else None

    @cached_property
    def statements(self) -> list[dict[str, Any]]:
        """What thresholds promise, and whether it holds here."""
        reported = self.summary.statements or []
        if self.manifest is None:
            return reported
        checked = check_statements(
            self.manifest,
            self.column("key"),
            {self.score: self.routed},
            gain=self.gain,
            super_sha256=self.summary.weights.get("super", ""),
            unit=self.column("unit") if "unit" in self.frame else None,
            conditions=self.summary.conditions,
        )
        return checked or reported

    def threshold(self, name: str | None) -> tuple[str, float]:
        """The name and the value of the threshold that the page is about: ``name``, or the most useful one."""
        row = self.first.scores[self.score]
        known = {key: point.threshold for key, point in row.held_out.items()}
        by_score = self.manifest.thresholds if self.manifest else {}
        # Some may have been added to the folder since the evaluation.
        known |= {key: float(entry["threshold"]) for key, entry in by_score.get(self.score, {}).items()}
        if name is not None and name not in known:
            others = [repr(score) for score, named in by_score.items() if name in named]
            raise InputError(
                f"'{self.folder}' has no threshold '{name}' for '{self.score}', which routes; there are "
                f"{', '.join(known) or 'none'}." + (f" '{name}' is one of {', '.join(others)}." if others else "")
            )
        name = name or next((usual for usual in ("certified", DEFAULT_THRESHOLD, "99%") if usual in known), None)
        if name is not None:
            return name, known[name]
        usual = known_name(row.on_this_set)
        return f"{usual}, read here", row.on_this_set[usual].threshold
