"""GLUE and SuperGLUE, with the same examples from the benchmarks' own files and from the hub."""

from typing import Any

import torch
from torch import Tensor

from elang.data.columns import read_frame
from elang.data.examples import Examples, content_key
from elang.data.glue.files import STEMS, answer_rewards, find_files, read_rows
from elang.data.glue.table import find_tasks
from elang.data.glue.task import MAX_CANDIDATES, Row
from elang.data.labels import label_index, label_numbers
from elang.data.prompted import PromptedData
from elang.errors import InputError
from elang.tasks.text_task import TextTask


class TaskData(PromptedData):
    """A task of GLUE or SuperGLUE, from the benchmark's own files or from the hub.

    Args:
        task: Its name, ``glue/rte``.
        folder: Folder of the benchmark's own files, or of the task's; by default the data comes from the hub.
        splits: The splits to use (``train``, ``validation``, ``test``); by default all.
        options: Those of :class:`elang.data.prompted.PromptedData`.
    """

    def __init__(self, task: str, folder: str | None = None, splits: list[str] | None = None, **options: Any) -> None:
        tasks = find_tasks(task)
        if len(tasks) > 1:
            names = ", ".join(task.name for task in tasks)
            raise InputError(f"'{task}' is a benchmark; give one of its tasks: {names}.")
        self.task = tasks[0]
        self.hub = self.task.hub if folder is None else None
        files = {split: self.task.splits.get(split, split) for split in STEMS}
        if folder is not None:
            files = find_files(self.task, folder)
        if splits is not None:
            if missing := set(splits) - files.keys():
                raise InputError(f"{task} has no split {sorted(missing)}; there are {', '.join(files)}.")
            files = {split: path for split, path in files.items() if split in splits}
        super().__init__(files, **options)

    @property
    def zero_shot_task(self) -> TextTask:
        """What the task asks."""
        return self.task.text_task

    def title(self, source: str) -> str:
        """The task's name."""
        return self.task.name

    def rows(self, source: str) -> list[Row]:
        """The rows of one source, with the columns of the hub."""
        if self.hub is None:
            return read_rows(self.task, source, self.files[source])
        rows: list[Row] = read_frame(self.files[source], self.hub, self.task.hub_config).to_dict("records")
        # The hub's candidates come in no fixed order.
        return [{**row, "entities": sorted(row["entities"])} if "entities" in row else row for row in rows]

    def read(self, source: str) -> Examples:
        """All examples of one source, in its order."""
        task, where = self.task, self.where(source)
        rows = self.rows(source)
        if not rows:
            raise InputError(f"{where} has no rows. Fetch it again.")
        prepared = [task.prepare(row) for row in rows] if task.prepare else rows
        for i, row in enumerate(prepared):
            if missing := [name for name in task.fields if row.get(name) is None]:
                raise InputError(
                    f"{where} has no '{missing[0]}' in row {i} (counted from 0), which has {list(rows[i])}. Correct "
                    f"the row, or check that the file is one of {task.name}."
                )
        texts = [tuple(str(row[name]) for name in task.fields) for row in prepared]
        label, targets = self._labels(rows, where)
        choices = task.text_task.choices_of(texts)
        if task.submitted == "text":
            choices = [tuple(row["entities"]) for row in rows]
            if (most := max(map(len, choices))) > MAX_CANDIDATES or not all(choices):
                raise InputError(f"{where} has examples with none or over {MAX_CANDIDATES} candidates (most: {most}).")
        unit = None
        if task.grouped_by:
            unit = torch.tensor([content_key(tuple(str(row[name]) for name in task.grouped_by)) for row in prepared])
        return Examples.of(texts, label, choices=choices, targets=targets, unit=unit)

    def _labels(self, rows: list[Row], where: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels, -1 or NaN if unknown, and the columns for the task's metrics."""
        task = self.task
        if task.submitted == "text":
            return answer_rewards(rows)
        targets = {}
        if task.submitted == "nested":
            questions = [(row["idx"]["paragraph"], row["idx"]["question"]) for row in rows]
            number = {question: i for i, question in enumerate(dict.fromkeys(questions))}
            targets["group"] = torch.tensor([number[question] for question in questions])
        values = [str(row.get("label", "-1")) for row in rows]
        if not task.text_task.kind.chooses:
            label = label_numbers(values, where)
            return label.masked_fill(label == -1, torch.nan), targets
        known = [None if value == "-1" else value for value in values]
        return label_index(known, list(task.label_names), where), targets
