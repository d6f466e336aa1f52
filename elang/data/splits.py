"""The examples of each split, and their loaders."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from elang.data.batches import EncodedExamples, Reader, Repeated
from elang.data.columns import SOURCE_KEY, check_file, read_frame, texts_of
from elang.data.encoding import encode_examples
from elang.data.examples import Examples, content_key, fold_of, in_slice
from elang.errors import InputError
from elang.notices import notice
from elang.tasks.text_task import TextTask

SplitName = Literal["train", "routing", "validation", "test", "transfer", "fold"]
# Share of evaluated texts that are trained on, below which nothing is said: real data repeats itself a little.
_OVERLAP = 0.01


def given_files(train: str | None, validation: str | None, test: str | None) -> dict[str, str]:
    """The files, or names of the hub's splits, that were given, by split.

    Raises:
        InputError: If there are none.
    """
    files = {split: path for split, path in (("train", train), ("validation", validation), ("test", test)) if path}
    if not files:
        raise InputError("No data was given. Set --data.train and --data.validation to files.")
    return files


def held_out(unit: Tensor, fraction: float, fold: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """What is left out from training.

    Args:
        unit: Keys of what is held out as a whole, int64 ``(N,)``.
        fraction: Share of the routing slice.
        fold: The number of a part of what is left, and how many parts there are.

    Returns:
        Which examples are in the routing slice, and which in the fold, both bool ``(N,)``.
    """
    routing = in_slice(unit, fraction)
    left_out = torch.zeros_like(routing) if fold is None else ~routing & (fold_of(unit, fold[1]) == fold[0])
    return routing, left_out


def unlabelled_examples(path: str, columns: list[str], label: Tensor) -> tuple[Examples, Tensor | None]:
    """The examples of a transfer set.

    Args:
        path: Its file.
        columns: Of the texts.
        label: That all of them have, a scalar.

    Returns:
        The examples, and the keys of the texts that they were made from, int64 ``(N,)``, if the file has them.

    Raises:
        InputError: If the file cannot be read.
    """
    check_file(path)
    frame = read_frame(path)
    texts = texts_of(frame, columns, f"'{path}'")
    key = torch.tensor([content_key(row) for row in texts], dtype=torch.int64)
    examples = Examples(texts, torch.arange(len(texts)), key, label=label.expand(len(texts)).clone(), source="transfer")
    if SOURCE_KEY not in frame:
        return examples, None
    try:
        return examples, torch.tensor(frame[SOURCE_KEY].to_numpy(dtype="int64"))
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(
            f"The column '{SOURCE_KEY}' of '{path}' must hold whole numbers, as `elang augment` writes them, but: "
            f"{error}. Correct or remove it."
        ) from error


def warn_of_overlap(split: SplitName, key: Tensor, train: Tensor) -> None:
    """Warn of examples whose texts the model learns from: it is measured on what it knows by heart."""
    if (known := int(torch.isin(key, train).sum())) >= max(1, _OVERLAP * len(key)):
        notice(
            "overlap",
            f"Of the {len(key)} texts of '{split}', {known} are also in the training data, so results on them are "
            "too good. Remove them from one of the two.",
        )


def encode_split(
    split: str, examples: Examples, task: TextTask, *, reader: Reader, limits: tuple[int, int]
) -> EncodedExamples:
    """Tokenise a split for one model, and tell of what was cut.

    Args:
        split: Its name.
        examples: Its examples.
        task: What is asked.
        reader: How the model reads.
        limits: Tokens kept of an input and of a reference, if the model reads as many.
    """
    limit, target_limit = (min(limit, reader.tokenizer.model_max_length) for limit in limits)
    encoded = encode_examples(
        reader,
        task,
        examples.texts,
        choices=examples.choices,
        max_length=limit,
        references=examples.references,
        max_target_length=target_limit,
    )
    references = encoded.answers if examples.references is not None else None
    for what, option, most, texts in (
        ("inputs", "max_length", limit, encoded.texts),
        ("references", "max_target_length", target_limit, references),
    ):
        if texts is not None and texts.truncated:
            notice(
                "cut-inputs",
                f"{texts.truncated} of {len(texts.lengths)} {what} of '{split}' are longer than {most} "
                f"tokens and were cut. Raise --data.{option} to keep them whole.",
            )
    return encoded


class SplitBatches(Dataset[dict[str, Any]]):
    """Maps a list of rows to a batch: ``id``, ``key``, ``unit``, ``label``, and each model's inputs under its name.

    ``repeated`` says that another process has the same batch.
    """

    def __init__(self, examples: Examples, encoded: dict[str, EncodedExamples]) -> None:
        unit = examples.key if examples.unit is None else examples.unit
        self.tensors = {"id": examples.id, "key": examples.key, "unit": unit, "label": examples.label}
        self.targets = examples.targets
        self.inputs = {name: one.batch for name, one in encoded.items()}

    def __len__(self) -> int:
        return len(self.tensors["id"])

    def __getitem__(self, rows: Any) -> dict[str, Any]:
        batch: dict[str, Any] = {name: column[rows] for name, column in self.tensors.items()}
        batch["repeated"] = isinstance(rows, Repeated)
        batch["targets"] = {name: column[rows] for name, column in self.targets.items()}
        return batch | {name: take(rows) for name, take in self.inputs.items()}
