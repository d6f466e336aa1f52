"""Recorded answers: from `elang score`, `elang ask`, or elsewhere."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from elang.backends.backend import Scored
from elang.data.examples import Examples
from elang.errors import InputError
from elang.method.deferral import route
from elang.records.reading import read_records
from elang.records.table import Records
from elang.tasks.sampling import Sampling
from elang.tasks.text_task import TextTask


class RecordedBackend:
    """Answers the examples of a file of records (:mod:`elang.records.table`), in the order of the task's labels."""

    def __init__(self, path: str, task: TextTask) -> None:
        self.path, self.task = path, task
        self.splits: dict[str, Records]  # by source
        self.about: dict[str, Any]  # the file's metadata; empty for files that elang has not written
        self.splits, self.about = read_records(path, task.label_names, task.problem)

    def check(self, sampling: Sampling | None, asked: Sequence[str] | None) -> None:
        """Refuse options that would change the answers, or scores that need the model that gave them."""
        if sampling is not None and self.about.get("sampling") != sampling.plain():
            raise InputError(
                f"'{self.path}' holds answers that were not drawn as --model.sampling says, and records are not drawn "
                "anew. Leave it out, or give the model."
            )
        if missing := [name for name in asked or () if name not in self.score_names]:
            raise InputError(
                f"'{self.path}' has no score '{missing[0]}', which only its model can compute. Leave it out of "
                "--model.asked_scores, or give it to `elang score`."
            )

    def answer(self, examples: Examples) -> Records:
        """Look up the answers. Raises InputError if some are missing, or the records are of other data."""
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
        """The scores of logits or token scores, which the records must have, and those that they keep."""
        return (*self.task.kind.scores, *dict.fromkeys(name for each in self.splits.values() for name in each.asked))

    def score(self, examples: Examples, score: str, threshold: float) -> Scored:
        """Look up the answers, and compute one of :attr:`score_names`."""
        records = self.answer(examples)
        if score not in records.asked and records.logits is None and records.scores is None:
            raise InputError(f"'{self.path}' has neither logits nor token scores, so there is no score '{score}'.")
        if (scores := records.asked.get(score)) is None:
            scores = self.task.kind.scores_of(records.logits, records.scores, 1.0)[score]
        return Scored.of(records, self.task.kind, scores.tolist(), route(scores, threshold).tolist())
