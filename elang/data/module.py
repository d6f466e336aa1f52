"""The data module: splits, a held-out routing slice, tokenised inputs, and batches for training and evaluation."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from elang.data.arguments import KeepsArguments
from elang.data.batches import EncodedExamples, LengthBatches, Reader, SplitBatches
from elang.data.columns import check_file, read_transfer
from elang.data.encoding import CutTexts, encode_split
from elang.data.examples import Examples, SplitName, fold_parts, held_out, source_of, told_sizes
from elang.data.overlap import warn_of_overlap, without_overlap
from elang.errors import InputError
from elang.notices import notice
from elang.tasks.text_task import TaskFields, TextTask


class TextData(KeepsArguments):
    """Texts of a task in splits. A subclass has :attr:`text_task`, and :meth:`read` for its sources.

    A slice of the training file, chosen by a hash of each text, is held out from training: router heads are fitted and
    thresholds are chosen on it. The id of an example is its row number in its file.

    Args:
        files: The file of each of ``train``, ``validation`` and ``test``.
        batch_size: Examples in a training batch, for each process.
        eval_batch_size: Examples in an evaluation batch.
        max_length: Tokens kept of an input; longer ones are cut and counted.
        routing_fraction: Share of the training file held out for router heads and thresholds.
        num_workers: Processes that assemble batches; 0 does it in the training process.
        transfer: A file of texts without labels, with the task's text columns, for distillation.
        fold: ``k/K``: the k-th (from 0) of K parts of the training slice is left out from training, and is all that is
            scored.
    """

    # Tokens kept of a reference, and the longest text that is generated, in a ``sequence`` task.
    max_target_length = 128
    # The hub's data set whose splits ``files`` names; None if these are local files.
    hub: str | None = None
    drop_overlap = False

    def __init__(
        self,
        files: dict[str, str],
        batch_size: int = 32,
        eval_batch_size: int = 64,
        max_length: int = 256,
        routing_fraction: float = 0.1,
        num_workers: int = 0,
        transfer: str | None = None,
        fold: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= routing_fraction < 1:
            raise InputError(f"--data.routing_fraction must be in [0, 1), but it is {routing_fraction}.")
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise InputError(f"--data.{name} must be at least 1, but it is {size}.")
        self.files, self.transfer, self.fold = files, transfer, fold_parts(fold)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.max_length, self.routing_fraction, self.num_workers = max_length, routing_fraction, num_workers
        self.parts, self._all_splits = (1, [0]), False
        self._examples: dict[str, Examples] = {}
        self._encoded: dict[tuple[str, str], EncodedExamples] = {}
        self._readers: dict[str, Reader] = {}

    @property
    def text_task(self) -> TextTask:
        """What the task asks."""
        raise NotImplementedError

    @property
    def task_fields(self) -> TaskFields:
        """The task as plain values, which the command line gives to the model."""
        return self.text_task.plain()

    @property
    def label_names(self) -> list[str]:
        """Class names in the order of the class indices."""
        return self.text_task.label_names

    @property
    def text_columns(self) -> list[str]:
        """The text columns of a file without labels."""
        return self.text_task.fields

    def read(self, source: str) -> Examples:
        """All examples of one source, in its order."""
        raise NotImplementedError

    def check_files(self) -> None:
        """Raise an ``InputError`` if a local file does not exist."""
        for path in () if self.hub else self.files.values():
            check_file(path)

    def where(self, source: str) -> str:
        """A source's name in messages."""
        return f"'{self.files[source]}'" + (f" of '{self.hub}'" if self.hub else "")

    def title(self, source: str) -> str:
        """What is asked of a source, as the title of its results: by default the data set or the file."""
        return self.hub or os.path.basename(self.files[source])

    @property
    def splits(self) -> list[SplitName]:
        """The splits there are; ``routing``, ``fold`` and ``train`` are parts of the training file."""
        order: list[SplitName] = ["validation", "routing", "test", "fold", "train", "transfer"]
        file = "train" in self.files
        present = {"routing": file and self.routing_fraction > 0, "fold": file and self.fold, "transfer": self.transfer}
        return [split for split in order if split in self.files or present.get(split)]

    @property
    def eval_splits(self) -> list[SplitName]:
        """The splits of `validate`, one loader each."""
        if not self._all_splits:
            return [split for split in self.splits if split in ("validation", "routing")]
        return ["fold"] if self.fold else self.splits

    @property
    def test_splits(self) -> list[SplitName]:
        """The splits of `test`, one loader each."""
        return [split for split in self.splits if split in ("test", "routing")]

    @property
    def predict_splits(self) -> list[SplitName]:
        """The split that ``Trainer.predict`` answers: ``test`` or, without one, ``validation``."""
        return ["test"] if "test" in self.files else ["validation"]

    @contextmanager
    def all_splits(self) -> Iterator[None]:
        """Within this context `validate` runs over every split, or over the fold alone, as `elang score` does."""
        self._all_splits = True
        try:
            yield
        finally:
            self._all_splits = False

    def examples(self, split: SplitName) -> Examples:
        """The examples of a split, in the order of their file; an ``InputError`` if the file is unusable."""
        if split in self._examples:
            return self._examples[split]
        source = source_of(split)
        if source == "transfer" and self.transfer is not None:
            self._examples[split] = self._unlabelled(self.transfer)
        elif source not in self.files:
            raise InputError(f"There is no {source} data. Give its file, or do not leave out its split.")
        else:
            examples = replace(self.read(source), source=source)
            if source == "train":
                self._split_training(examples)
            else:
                self._examples[split] = replace(examples, last=int(examples.id.max()) if len(examples) else None)
        return self._examples[split]

    def _split_training(self, examples: Examples) -> None:
        """Separate the routing slice and the fold from the training examples."""
        self.file_rows = len(examples)
        if self.drop_overlap:
            examples = without_overlap(examples, self)
        routing, fold = held_out(examples.units, self.routing_fraction, self.fold)
        masks: dict[SplitName, Tensor] = {"train": ~(routing | fold), "routing": routing, "fold": fold}
        for split in (split for split in self.splits if split in masks):
            self._examples[split] = examples.take(masks[split])
            if not len(self._examples[split]):
                raise InputError(
                    f"{self.where('train')} leaves no example for '{split}' with --data.routing_fraction "
                    f"{self.routing_fraction}{' and --data.fold' if self.fold else ''}. Change it, or give more data."
                )

    def _unlabelled(self, path: str) -> Examples:
        """The transfer set, without texts that were made from held-out ones."""
        task, train = self.text_task, self.examples("train")
        if task.kind.has_candidates or task.kind.generates or train.targets:
            raise InputError(f"--data.transfer is for classification and regression, not for a {task.problem} task.")
        label = torch.tensor(task.kind.unknown, dtype=train.label.dtype)
        examples, made_from = read_transfer(path, self.text_columns, label)
        if made_from is None:
            return examples
        routing, fold = held_out(made_from, self.routing_fraction, self.fold)
        if (dropped := routing | fold).any():
            notice(
                "transfer-left-out",
                f"{int(dropped.sum())} of {len(examples)} texts of '{path}' were made from texts that are held out of "
                "training, and are left out, too. --data.routing_fraction 0 keeps them, and chooses no thresholds.",
            )
        return examples.take(~dropped)

    def targets(self, split: SplitName, ids: Tensor) -> dict[str, Tensor]:
        """The columns for metrics besides the label, of the examples ``ids`` of a split."""
        examples = self.examples(split)
        rows = torch.searchsorted(examples.id, ids.cpu())
        return {name: column[rows] for name, column in examples.targets.items()}

    def references(self, split: SplitName, ids: Tensor) -> list[str]:
        """The texts to generate for the examples ``ids`` of a split."""
        examples = self.examples(split)
        assert examples.references is not None
        return [examples.references[row] for row in torch.searchsorted(examples.id, ids.cpu()).tolist()]

    def setup(self, stage: str) -> None:
        """Read and tokenise the splits of a stage, for each model of the Lightning module."""
        readers: dict[str, Reader] = getattr(self.trainer and self.trainer.lightning_module, "readers", {})
        if stage == "test" and "test" not in self.files:
            raise InputError("There is no test data. Set --data.test to a file, or run `elang validate`.")
        self.choose_parts(1, [0])
        # Another module has other tokenizers, perhaps under the same names.
        same = {name for name, reader in readers.items() if self._readers.get(name) == reader}
        self._encoded = {key: encoded for key, encoded in self._encoded.items() if key[1] in same}
        self._readers = readers
        needed = {"test": self.test_splits, "predict": self.predict_splits}.get(stage, self.eval_splits)
        if stage == "fit":
            needed = [*needed, *(split for split in self.splits if split in ("train", "transfer"))]
        task, limits, cut = self.text_task, (self.max_length, self.max_target_length), CutTexts()
        for split in dict.fromkeys(needed):
            examples = self.examples(split)
            if not (examples.labelled or self._all_splits or split == "transfer" or stage == "predict"):
                raise InputError(
                    f"{self.where(source_of(split))} has examples without labels, so nothing can be trained on or "
                    "evaluated with it. `elang predict` answers it, a benchmark's with --task in its submission format."
                )
            for name, reader in readers.items():
                if (split, name) not in self._encoded:
                    tokens = encode_split(split, examples, task, reader=reader, limits=limits, cut=cut)
                    self._encoded[split, name] = tokens
        cut.tell()
        if self.fold is None:
            warn_of_overlap({split: self._examples[split] for split in self._examples if split in {*needed, "train"}})
        rank_zero_info(told_sizes(self._examples))

    def _epoch(self, batches: int) -> int:
        """The epoch, from the total of batches that a checkpoint restores and ``batches`` an epoch."""
        if not self.trainer:
            return 0
        limit = self.trainer.num_training_batches
        per_epoch = int(limit) if 0 < limit < math.inf else batches
        return (self.trainer.fit_loop.epoch_loop.total_batch_idx + 1) // max(1, per_epoch)

    def loader(self, split: SplitName, shuffle: bool = False, part: int = 0) -> DataLoader[Any]:
        """This process's batches of a split's part, or, with ``shuffle``, of a training epoch.

        The transfer set is appended to the latter, with ids that follow those of the training file.
        """
        examples = self.examples(split)
        encoded = {name: texts for (of, name), texts in self._encoded.items() if of == split}
        if shuffle and self.transfer:
            examples = examples.join(self.examples("transfer"), self.file_rows)
            encoded = {name: texts + self._encoded["transfer", name] for name, texts in encoded.items()}
        lengths = next(iter(encoded.values())).lengths if encoded else torch.zeros(len(examples))
        names = {"rank": "global_rank", "world_size": "world_size", "accumulated": "accumulate_grad_batches"}
        processes = {name: getattr(self.trainer, value) for name, value in names.items()} if self.trainer else {}
        size = self.batch_size if shuffle else self.eval_batch_size
        rows = None if shuffle else self.part(split, part)
        sampler = LengthBatches(lengths, size, shuffle, current_epoch=self._epoch, rows=rows, **processes)
        return DataLoader(
            SplitBatches(examples, encoded),
            sampler=sampler,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def part(self, split: SplitName, part: int) -> Tensor:
        """The rows of a split in part ``part``: every N-th, from ``part`` on, if it is cut into N :attr:`parts`."""
        return torch.arange(part, len(self.examples(split)), self.parts[0])

    def choose_parts(self, count: int, chosen: list[int]) -> None:
        """Cut every evaluated split into ``count`` parts, and run over the ``chosen`` ones."""
        self.parts = (count, chosen)

    @property
    def plan(self) -> list[tuple[int, SplitName]]:
        """The chosen parts in order, each with its splits."""
        count, chosen = self.parts
        splits = self.eval_splits
        return [(part, s) for part in chosen for s in splits if count == 1 or len(self.part(s, part))]

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of the training slice."""
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each entry of :attr:`plan`."""
        return [self.loader(split, part=part) for part, split in self.plan]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each of :attr:`test_splits`."""
        return [self.loader(split) for split in self.test_splits]

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """A loader for each of :attr:`predict_splits`."""
        return [self.loader(split) for split in self.predict_splits]
