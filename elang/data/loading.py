"""A split as a model reads it: its tokens, and the batches of a loader."""

from typing import Any

from torch.utils.data import Dataset

from elang.data.batches import Repeated
from elang.data.encoding import encode_examples
from elang.data.examples import Examples
from elang.data.tokens import EncodedExamples, Reader
from elang.notices import notice
from elang.tasks.text_task import TextTask


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
