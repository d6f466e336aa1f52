"""The Super's answers that a Swift learns from, as they were kept."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from elang.data.slices import check_held_out, source_of
from elang.errors import InputError
from elang.records.reading import read_records
from elang.records.table import Records
from elang.tasks.text_task import TextTask


@dataclass(frozen=True)
class SuperAnswers:
    """The Super's answers.

    Attributes:
        path: Where they are from, for messages.
        records: To the training file (``train``) and, behind it, to the transfer set, if there is one.
        vocabulary: Hash of the vocabulary of a Super that generates texts.
    """

    path: str | None
    records: dict[str, Records]
    vocabulary: str | None = None

    @classmethod
    def read(cls, path: str, task: TextTask, data: Any) -> "SuperAnswers":
        """Read them, and check that they are answers to this training file.

        Args:
            path: The file of records.
            task: What is asked.
            data: The data module, if there is one.

        Raises:
            InputError: If some are missing, or the Super was trained on the held-out slice.
        """
        splits, about = read_records(path, task.label_names, task.problem)
        needed = ["train", *(["transfer"] if getattr(data, "transfer", None) else [])]
        if missing := [split for split in needed if split not in splits]:
            what = {"train": "the training file", "transfer": "the transfer set"}[missing[0]]
            raise InputError(
                f"'{path}' has no answers to {what}, only to {', '.join(splits)}. Score it with `elang score`."
            )
        for split in ("train", "routing", "transfer") if data is not None else ():
            if split in data.splits:
                examples = data.examples(split)
                splits[source_of(split)].rows(examples.id, examples.key, f"The Super's records '{path}'")
        if data is not None:
            check_held_out(data, about, f"the Super of '{path}'")
        return cls(path, {split: splits[split] for split in needed}, about.get("vocabulary"))

    def to_rows(self, table: dict[str, Tensor]) -> Records:
        """The answers to some examples of the training file, by their ``id`` and ``key``."""
        return self.records["train"].take(self.records["train"].rows(table["id"], table["key"]))


def read_out_of_fold(path: str, task: TextTask, data: Any) -> Records:
    """Answers to the training file, of Swifts that were trained without the examples.

    Args:
        path: The file of records.
        task: What is asked.
        data: The data module, if there is one.

    Raises:
        InputError: If they are no answers to this training file.
    """
    folds, _ = read_records(path, task.label_names, task.problem)
    if "train" not in folds:
        raise InputError(f"'{path}' has no answers to the training file, only to {', '.join(folds)}.")
    if data is not None:
        examples = data.examples("train")
        folds["train"].rows(examples.id, examples.key, f"The records out of fold '{path}'")
    return folds["train"]
