"""Answers that were recorded: by `elang score`, by `elang ask`, or by others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from elang.backends.backend import Scored
from elang.data.examples import Examples
from elang.errors import InputError
from elang.method.deferral import route
from elang.records.reading import read_records
from elang.records.table import Records
from elang.tasks.text_task import TextTask


class RecordedBackend:
    """Answers the examples of a table of records, and no others.

    Args:
        path: The file, as :mod:`elang.records.table` has it.
        task: What it answers; the answers come in the order of its label names.

    Attributes:
        splits: The records by source.
        about: What the file says of itself; empty for files that are not ours.

    Raises:
        InputError: As :func:`elang.records.reading.read_records` says.
    """

    def __init__(self, path: str, task: TextTask) -> None:
        self.path, self.task = path, task
        self.splits: dict[str, Records]
        self.about: dict[str, Any]
        self.splits, self.about = read_records(path, task.label_names, task.problem)

    def answer(self, examples: Examples) -> Records:
        """The answers that were recorded.

        Raises:
            InputError: If some are missing, or the records are of other data.
        """
        if examples.source not in self.splits:
            raise InputError(
                f"'{self.path}' has no answers to '{examples.source}', only to {', '.join(self.splits)}. "
                "Add them (`elang score` writes all splits)."
            )
        records, who = self.splits[examples.source], f"The records '{self.path}'"
        if records.key is None and examples.last is not None:
            records.check_ids(examples.last, who)
        rows = records.rows(examples.id, examples.key, who)
        return replace(records.take(rows), key=examples.key)

    @property
    def score_names(self) -> tuple[str, ...]:
        """The scores that need no head; records must have logits for them, or scores of tokens."""
        return self.task.kind.scores

    def score(self, examples: Examples, score: str, threshold: float) -> Scored:
        """The answers that were recorded, with one of :attr:`score_names`."""
        records = self.answer(examples)
        if records.logits is None and records.scores is None:
            raise InputError(f"'{self.path}' has answers alone, so there is no score '{score}'.")
        scores = self.task.kind.scores_of(records.logits, records.scores, 1.0)[score]
        return Scored(records, scores, route(scores, threshold))
