"""The data module: splits, a held-out routing slice, tokenised inputs and loaders for whatever models are run."""

import math
import os
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from elang.data.batches import EncodedExamples, LengthBatches, Reader, encode_examples
from elang.data.files import Examples, in_slice
from elang.data.format import TaskFields, TextTask
from elang.errors import InputError
from elang.records import source_of

SplitName = Literal["train", "routing", "router", "validation", "test"]


def given_files(train: str | None, validation: str | None, test: str | None) -> dict[str, str]:
    """The files, or names of the hub's splits, that were given, by split.

    Raises:
        InputError: If there are none.
    """
    files = {split: path for split, path in (("train", train), ("validation", validation), ("test", test)) if path}
    if not files:
        raise InputError("No data was given. Set --data.train and --data.validation to files.")
    return files


class TextData(LightningDataModule):
    """Texts of a task in splits. Subclasses say where they are from: :meth:`read` and :attr:`task`.

    A slice of the training file, chosen by a hash of each text, is held out from training: thresholds are chosen
    on it. A second one, where there is any, is held out as well: router heads learn on it. Every example keeps its row
    number in its file as its id.

    Args:
        files: Where each of ``train``, ``validation`` and ``test`` is.
        batch_size: Examples in a training batch, for each process.
        eval_batch_size: Examples in an evaluation batch.
        max_length: Tokens kept of an input; longer ones are cut and counted.
        routing_fraction: Share of the training file held out for choosing thresholds.
        num_workers: Processes that assemble batches; 0 does it in the training process.
        router_fraction: Share of the training file held out for training router heads.
        max_target_length: Tokens kept of a reference, and generated at most, in a ``sequence`` task.
    """

    def __init__(
        self,
        files: dict[str, str],
        batch_size: int = 32,
        eval_batch_size: int = 64,
        max_length: int = 256,
        routing_fraction: float = 0.1,
        num_workers: int = 0,
        router_fraction: float = 0.0,
        max_target_length: int = 128,
    ) -> None:
        super().__init__()
        self.files = files
        for name, share in (("routing", routing_fraction), ("router", router_fraction)):
            if not 0 <= share < 1:
                raise InputError(f"--data.{name}_fraction must be in [0, 1), but it is {share}.")
        if routing_fraction + router_fraction >= 1:
            raise InputError(
                f"--data.routing_fraction {routing_fraction} and --data.router_fraction {router_fraction} leave "
                "nothing to train on. Lower one."
            )
        self.router_fraction, self.max_target_length = router_fraction, max_target_length
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise InputError(f"--data.{name} must be at least 1, but it is {value}.")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.max_length, self.routing_fraction, self.num_workers = max_length, routing_fraction, num_workers
        self.all_splits = False
        self._examples: dict[str, Examples] = {}
        self._encoded: dict[tuple[str, str], EncodedExamples] = {}
        self._readers: dict[str, Reader] = {}

    @property
    def text_task(self) -> TextTask:
        """What the task asks."""
        raise NotImplementedError

    @property
    def task_fields(self) -> TaskFields:
        """The task as plain values, which the command line hands to the model."""
        return self.text_task.plain()

    @property
    def label_names(self) -> list[str]:
        """Class names in the order of the class indices."""
        return self.text_task.label_names

    def read(self, source: str) -> Examples:
        """All examples of one source, in its order."""
        raise NotImplementedError

    def check_files(self) -> None:
        """Look for the files, if they are local, before anything is run.

        Raises:
            InputError: If one is not there.
        """

    def where(self, source: str) -> str:
        """A source's name in messages."""
        return f"'{self.files[source]}'"

    @property
    def splits(self) -> list[SplitName]:
        """What can be evaluated, ``routing`` before ``train`` being two parts of one file."""
        order: list[SplitName] = ["validation", *self._held_out, "test", "train"]
        return [split for split in order if split in self._held_out or split in self.files]

    @property
    def _held_out(self) -> list[SplitName]:
        """The slices of the training file that no model is trained on."""
        shares: list[tuple[SplitName, float]] = [("routing", self.routing_fraction), ("router", self.router_fraction)]
        return [name for name, share in shares if share > 0 and "train" in self.files]

    @property
    def eval_splits(self) -> list[SplitName]:
        """What `validate` runs over, one loader a split."""
        return self.splits if self.all_splits else [s for s in self.splits if s in ("validation", "routing")]

    @property
    def test_splits(self) -> list[SplitName]:
        """What `test` runs over."""
        return [split for split in self.splits if split in ("test", "routing")]

    def examples(self, split: SplitName) -> Examples:
        """The examples of a split, in the order of their file."""
        if split not in self._examples:
            source = source_of(split)
            if source not in self.files:
                raise InputError(f"There is no {source} data. Give its file, or do not leave out its split.")
            found = self.read(source)
            if source != "train":
                self._examples[split] = found
                return found
            unit = found.key if found.unit is None else found.unit
            routing = in_slice(unit, self.routing_fraction)
            held_out = in_slice(unit, self.routing_fraction + self.router_fraction)
            parts = {"routing": routing, "router": held_out & ~routing, "train": ~held_out}
            for part in ("train", *self._held_out):
                self._examples[part] = found.take(parts[part])
                if not len(self._examples[part]):
                    shares = f"--data.routing_fraction {self.routing_fraction}"
                    if self.router_fraction:
                        shares += f" and --data.router_fraction {self.router_fraction}"
                    raise InputError(
                        f"{self.where(source)} leaves no example for '{part}' with {shares}. Change it, or give more "
                        "data."
                    )
        return self._examples[split]

    def targets(self, split: SplitName, ids: Tensor) -> dict[str, Tensor]:
        """What metrics read besides the label, for the examples ``ids`` of a split."""
        examples = self.examples(split)
        rows = torch.searchsorted(examples.id, ids.cpu())
        return {name: column[rows] for name, column in examples.targets.items()}

    def references(self, split: SplitName, ids: Tensor) -> list[str]:
        """The texts that were to be generated, for the examples ``ids`` of a split."""
        examples = self.examples(split)
        assert examples.references is not None
        return [examples.references[row] for row in torch.searchsorted(examples.id, ids.cpu()).tolist()]

    def setup(self, stage: str) -> None:
        """Read and tokenise what the stage needs, for each model that is trained or evaluated."""
        module: Any = self.trainer.lightning_module if self.trainer else None
        readers: dict[str, Reader] = getattr(module, "readers", {})
        if stage == "test" and "test" not in self.files:
            raise InputError("There is no test data. Set --data.test to a file, or run `elang validate`.")
        needed: list[SplitName] = self.test_splits if stage == "test" else self.eval_splits
        # Another module brings other tokenizers, perhaps under the same name.
        same = {name for name, reader in readers.items() if self._readers.get(name) == reader}
        self._encoded = {key: found for key, found in self._encoded.items() if key[1] in same}
        self._readers = readers
        task = self.text_task
        if stage == "fit":
            needed = [*needed, *(s for s in self.splits if s in ("router", "train"))]
        for split in dict.fromkeys(needed):
            examples = self.examples(split)
            if not examples.labelled and not self.all_splits:
                raise InputError(
                    f"{self.where(source_of(split))} has examples without labels, so nothing can be trained on or "
                    "evaluated with it. `elang predict` answers it, a benchmark's with --task in its submission format."
                )
            for name, reader in readers.items():
                if (split, name) not in self._encoded:
                    limit = min(self.max_length, reader.tokenizer.model_max_length)
                    target_limit = min(self.max_target_length, reader.tokenizer.model_max_length)
                    found = encode_examples(
                        reader, task, examples.texts, examples.choices, limit, examples.references, target_limit
                    )
                    self._encoded[split, name] = found
                    references = found.answers if examples.references is not None else None
                    for what, option, most, texts in (
                        ("inputs", "max_length", limit, found.texts),
                        ("references", "max_target_length", target_limit, references),
                    ):
                        if texts is not None and texts.truncated:
                            rank_zero_warn(
                                f"{texts.truncated} of {len(texts.lengths)} {what} of '{split}' are longer than {most} "
                                f"tokens and were cut. Raise --data.{option} to keep them whole."
                            )
        sizes = ", ".join(f"{split} {len(found)}" for split, found in self._examples.items())
        rank_zero_info(f"examples: {sizes}")

    def _epoch(self, batches: int) -> int:
        """The epoch by the batches that were taken, which a checkpoint restores, of so many an epoch."""
        if not self.trainer:
            return 0
        limited = self.trainer.num_training_batches
        per_epoch = int(limited) if 0 < limited < math.inf else batches
        return (self.trainer.fit_loop.epoch_loop.total_batch_idx + 1) // max(1, per_epoch)

    def loader(self, split: SplitName, shuffle: bool = False) -> DataLoader[Any]:
        """This process's batches of a split: every example once, or a training epoch's where shuffled."""
        examples = self.examples(split)
        encoded = {name: found for (of, name), found in self._encoded.items() if of == split}
        lengths = next(iter(encoded.values())).lengths if encoded else torch.zeros(len(examples))
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        size = self.batch_size if shuffle else self.eval_batch_size
        return DataLoader(
            _Batches(examples, encoded),
            sampler=LengthBatches(
                lengths, size, shuffle, rank, world_size, int(os.environ.get("PL_GLOBAL_SEED", 0)), self._epoch
            ),
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of the training slice."""
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each of :attr:`eval_splits`."""
        return [self.loader(split, shuffle=False) for split in self.eval_splits]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each of :attr:`test_splits`."""
        return [self.loader(split, shuffle=False) for split in self.test_splits]


class _Batches(Dataset[dict[str, Any]]):
    """Maps a list of rows to a batch: ``id``, ``key``, ``label``, and the inputs of each model under its name."""

    def __init__(self, examples: Examples, encoded: dict[str, EncodedExamples]) -> None:
        self.tensors: dict[str, Tensor] = {"id": examples.id, "key": examples.key, "label": examples.label}
        self.targets = examples.targets
        self.inputs: dict[str, Callable[[list[int]], dict[str, Tensor]]] = {
            name: found.batch for name, found in encoded.items()
        }

    def __len__(self) -> int:
        return len(self.tensors["id"])

    def __getitem__(self, rows: Any) -> dict[str, Any]:
        batch: dict[str, Any] = {name: column[rows] for name, column in self.tensors.items()}
        batch["targets"] = {name: column[rows] for name, column in self.targets.items()}
        return batch | {name: take(rows) for name, take in self.inputs.items()}
