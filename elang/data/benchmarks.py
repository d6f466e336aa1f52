"""GLUE and SuperGLUE as a data module, from the benchmarks' own files or from the hub: the same examples either way."""

import torch
from torch import Tensor

from elang.data.columns import read_hub
from elang.data.examples import Examples, content_key
from elang.data.glue.files import STEMS, answer_rewards, find_files, read_rows
from elang.data.glue.table import find_tasks
from elang.data.glue.task import MOST_CHOICES, Row
from elang.data.labels import label_index, label_numbers
from elang.data.module import TextData
from elang.errors import InputError
from elang.tasks.text_task import TextTask


class TaskData(TextData):
    """A task of GLUE or SuperGLUE, from the benchmark's own files or from the hub.

    Args:
        task: Its name, ``glue/rte``.
        folder: Where the benchmark's own files are, or the task's; by default they come from the hub.
        splits: Leave out the others (``train``, ``validation``, ``test``); by default all that there are.
        batch_size: Examples in a training batch, for each process.
        eval_batch_size: Examples in an evaluation batch.
        max_length: Tokens kept of an input; longer ones are cut and counted.
        routing_fraction: Share of the training file held out for the router and thresholds.
        num_workers: Processes that assemble batches; 0 does it in the training process.
        transfer: A file of texts without labels, with the task's text columns, which the Swift learns from the Super.
        fold: ``k/K``: the k-th (from 0) of K parts is left out from training, and is all that is scored.
    """

    def __init__(
        self,
        task: str,
        folder: str | None = None,
        splits: list[str] | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        max_length: int = 256,
        routing_fraction: float = 0.1,
        num_workers: int = 0,
        transfer: str | None = None,
        fold: str | None = None,
    ) -> None:
        found = find_tasks(task)
        if len(found) > 1:
            names = ", ".join(t.name for t in found)
            raise InputError(f"'{task}' is a benchmark; give one of its tasks: {names}.")
        self.task = found[0]
        self.folder = folder
        files = {split: self.task.splits.get(split, split) for split in STEMS}
        if folder is not None:
            files = find_files(self.task, folder)
        if splits is not None:
            if missing := set(splits) - files.keys():
                raise InputError(f"{task} has no split {sorted(missing)}; there are {', '.join(files)}.")
            files = {split: files[split] for split in files if split in splits}
        sizes = (batch_size, eval_batch_size, max_length, routing_fraction, num_workers)
        super().__init__(files, *sizes, transfer=transfer, fold=fold)

    @property
    def text_task(self) -> TextTask:
        """What the task asks."""
        return self.task.text_task

    def where(self, source: str) -> str:
        """A source's name in messages."""
        return super().where(source) + ("" if self.folder else f" of '{self.task.hub}'")

    def rows(self, source: str) -> list[Row]:
        """The rows of one source, with the columns of the hub's data set."""
        if self.folder is not None:
            return read_rows(self.task, source, self.files[source])
        rows: list[Row] = read_hub(self.files[source], self.task.hub, self.task.config).to_dict("records")
        # The order of the hub's candidates is that of a set.
        return [{**r, "entities": sorted(r["entities"])} if "entities" in r else r for r in rows]

    def read(self, source: str) -> Examples:
        """All examples of one source, in its order."""
        task, where = self.task, self.where(source)
        rows = self.rows(source)
        if not rows:
            raise InputError(f"{where} has no rows. Fetch it anew.")
        prepared = [task.prepare(row) for row in rows] if task.prepare else rows
        for number, row in enumerate(prepared):
            if missing := [name for name in task.fields if row.get(name) is None]:
                raise InputError(
                    f"{where} has no '{missing[0]}' in row {number} (counted from 0), which has {list(rows[number])}. "
                    f"Mend the row; or is it not {task.name}?"
                )
        texts = [tuple(str(row[name]) for name in task.fields) for row in prepared]
        label, targets = self._labels(rows, where)
        choices = task.text_task.choices_of(texts)
        if task.submitted == "text":
            choices = [tuple(row["entities"]) for row in rows]
            if (most := max(map(len, choices))) > MOST_CHOICES or not all(choices):
                raise InputError(f"{where} has examples with none or over {MOST_CHOICES} candidates (most: {most}).")
        key = torch.tensor([content_key(t) for t in texts], dtype=torch.int64)
        # Questions about one passage help each other, and a metric over groups needs them whole.
        unit = None
        if task.whole:
            unit = torch.tensor([content_key(tuple(str(row[name]) for name in task.whole)) for row in prepared])
        ids = torch.arange(len(rows))
        return Examples(texts, ids, key, label=label, choices=choices, targets=targets, unit=unit)

    def _labels(self, rows: list[Row], where: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels, unknown ones as -1 or NaN, and what else the task's metrics read."""
        task = self.task
        if task.submitted == "text":
            return answer_rewards(rows)
        targets = {}
        if task.submitted == "nested":
            places = [(row["idx"]["paragraph"], row["idx"]["question"]) for row in rows]
            number = {place: i for i, place in enumerate(dict.fromkeys(places))}
            targets["group"] = torch.tensor([number[place] for place in places])
        values = [str(row.get("label", "-1")) for row in rows]
        if not task.text_task.kind.chooses:
            label = label_numbers(values, where)
            return label.masked_fill(label == -1, torch.nan), targets
        known = [None if value == "-1" else value for value in values]
        return label_index(known, list(task.label_names), where), targets
