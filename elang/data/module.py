"""The data module: splits, a held-out routing slice, tokenised inputs and loaders for whatever models are run."""

import math
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from elang.data.batches import EncodedExamples, LengthBatches, Reader
from elang.data.examples import Examples, fold_parts, join_examples, source_of
from elang.data.splits import SplitBatches, SplitName, encode_split, held_out, unlabelled_examples, warn_of_overlap
from elang.errors import InputError
from elang.notices import notice
from elang.tasks.text_task import TaskFields, TextTask


class TextData(LightningDataModule):
    """Texts of a task in splits. Subclasses say where they are from: :meth:`read` and :attr:`task`.

    A slice of the training file, chosen by a hash of each text, is held out from training: router heads are fitted and
    thresholds are chosen on it. Every example keeps its row number in its file as its id.

    Args:
        files: Where each of ``train``, ``validation`` and ``test`` is.
        batch_size: Examples in a training batch, for each process.
        eval_batch_size: Examples in an evaluation batch.
        max_length: Tokens kept of an input; longer ones are cut and counted.
        routing_fraction: Share of the training file held out for router heads and thresholds.
        num_workers: Processes that assemble batches; 0 does it in the training process.
        transfer: A file of texts without labels, with the columns of the task's texts, for distillation.
        fold: ``k/K``: the k-th (from 0) of K parts of the training slice is left out from training, and is all that is
            scored.
    """

    # Tokens kept of a reference, and generated at most, in a ``sequence`` task.
    max_target_length = 128

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
        self.files = files
        if not 0 <= routing_fraction < 1:
            raise InputError(f"--data.routing_fraction must be in [0, 1), but it is {routing_fraction}.")
        self.transfer = transfer
        self.fold = fold_parts(fold)
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise InputError(f"--data.{name} must be at least 1, but it is {value}.")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.max_length, self.routing_fraction, self.num_workers = max_length, routing_fraction, num_workers
        self.all_splits = False
        self.parts = (1, [0])
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
        order: list[SplitName] = ["validation", "routing", "test", "fold", "train", "transfer"]
        known = {"routing": self.routing_fraction > 0, "fold": self.fold is not None}
        there = {*self.files, *(name for name, wanted in known.items() if wanted and "train" in self.files)}
        return [split for split in order if split in there or (split == "transfer" and self.transfer)]

    @property
    def eval_splits(self) -> list[SplitName]:
        """What `validate` runs over, one loader a split."""
        if not self.all_splits:
            return [split for split in self.splits if split in ("validation", "routing")]
        return ["fold"] if self.fold else self.splits

    @property
    def test_splits(self) -> list[SplitName]:
        """What `test` runs over."""
        return [split for split in self.splits if split in ("test", "routing")]

    def examples(self, split: SplitName) -> Examples:
        """The examples of a split, in the order of their file."""
        if split not in self._examples:
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
        """Take the routing slice and the fold out of the training file."""
        self.file_rows = len(examples)
        unit = examples.key if examples.unit is None else examples.unit
        routing, left_out = held_out(unit, self.routing_fraction, self.fold)
        masks: dict[SplitName, Tensor] = {"train": ~(routing | left_out), "routing": routing, "fold": left_out}
        for part in (p for p in self.splits if p in masks):
            self._examples[part] = examples.take(masks[part])
            if not len(self._examples[part]):
                raise InputError(
                    f"{self.where('train')} leaves no example for '{part}' with --data.routing_fraction "
                    f"{self.routing_fraction}{' and --data.fold' if self.fold else ''}. Change it, or give more "
                    "data."
                )

    @property
    def text_columns(self) -> list[str]:
        """The columns that an unlabelled file has."""
        return self.text_task.fields

    def _unlabelled(self, path: str) -> Examples:
        """The transfer set."""
        task, train = self.text_task, self.examples("train")
        if task.kind.has_candidates or task.kind.generates or train.targets:
            raise InputError(
                f"--data.transfer is for classification and regression of texts, not for a {task.problem}."
            )
        label = torch.tensor(task.kind.unknown, dtype=train.label.dtype)
        examples, made_from = unlabelled_examples(path, self.text_columns, label)
        if made_from is None:
            return examples
        # A text that was made from one that is held out would tell of it.
        routing, left_out = held_out(made_from, self.routing_fraction, self.fold)
        if (dropped := routing | left_out).any():
            notice(
                "transfer-left-out",
                f"{int(dropped.sum())} of {len(examples)} texts of '{path}' were made from held-out ones and were left "
                "out.",
            )
        return examples.take(~dropped)

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
        self.choose_parts(1, [0])
        needed: list[SplitName] = self.test_splits if stage == "test" else self.eval_splits
        # Another module brings other tokenizers, perhaps under the same name.
        same = {name for name, reader in readers.items() if self._readers.get(name) == reader}
        self._encoded = {key: found for key, found in self._encoded.items() if key[1] in same}
        self._readers = readers
        task = self.text_task
        if stage == "fit":
            needed = [*needed, *(s for s in self.splits if s in ("train", "transfer"))]
        for split in dict.fromkeys(needed):
            examples = self.examples(split)
            if not examples.labelled and not self.all_splits and split != "transfer":
                raise InputError(
                    f"{self.where(source_of(split))} has examples without labels, so nothing can be trained on or "
                    "evaluated with it. `elang predict` answers it, a benchmark's with --task in its submission format."
                )
            for name, reader in readers.items():
                if (split, name) not in self._encoded:
                    self._encoded[split, name] = encode_split(
                        split, examples, task, reader=reader, limits=(self.max_length, self.max_target_length)
                    )
        if "train" in self._examples and self.fold is None:
            for split in [one for one in ("validation", "test") if one in needed]:
                warn_of_overlap(split, self.examples(split).key, self.examples("train").key)
        sizes = ", ".join(f"{split} {len(found)}" for split, found in self._examples.items())
        rank_zero_info(f"examples: {sizes}")

    def _epoch(self, batches: int) -> int:
        """The epoch by the batches that were taken, which a checkpoint restores, of so many an epoch."""
        if not self.trainer:
            return 0
        limited = self.trainer.num_training_batches
        per_epoch = int(limited) if 0 < limited < math.inf else batches
        return (self.trainer.fit_loop.epoch_loop.total_batch_idx + 1) // max(1, per_epoch)

    def loader(self, split: SplitName, shuffle: bool = False, part: int = 0) -> DataLoader[Any]:
        """This process's batches of a split's part: every example once, or a training epoch's where shuffled.

        Where shuffled, the transfer set is behind it, with ids that follow those of the training file.
        """
        examples = self.examples(split)
        encoded = {name: found for (of, name), found in self._encoded.items() if of == split}
        if shuffle and self.transfer:
            examples = join_examples(examples, self.examples("transfer"), self.file_rows)
            encoded = {name: found + self._encoded["transfer", name] for name, found in encoded.items()}
        lengths = next(iter(encoded.values())).lengths if encoded else torch.zeros(len(examples))
        rank, world_size, accumulated = 0, 1, 1
        if trainer := self.trainer:
            rank, world_size, accumulated = trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches
        size = self.batch_size if shuffle else self.eval_batch_size
        return DataLoader(
            SplitBatches(examples, encoded),
            sampler=LengthBatches(
                lengths,
                size,
                shuffle,
                rank=rank,
                world_size=world_size,
                current_epoch=self._epoch,
                rows=None if shuffle else self.part(split, part),
                accumulated=accumulated,
            ),
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of the training slice."""
        return self.loader("train", shuffle=True)

    def part(self, split: SplitName, part: int) -> Tensor:
        """The rows of a split that are in one of the N :attr:`parts` that it is cut into: every N-th."""
        return torch.arange(part, len(self.examples(split)), self.parts[0])

    def choose_parts(self, count: int, wanted: list[int]) -> None:
        """Cut every evaluated split into ``count`` parts, of which only the ``wanted`` ones are run over."""
        self.parts = (count, wanted)

    @property
    def plan(self) -> list[tuple[int, SplitName]]:
        """The parts that are wanted, each with its splits."""
        whole = self.parts[0] == 1
        splits = self.eval_splits
        return [(part, s) for part in self.parts[1] for s in splits if whole or len(self.part(s, part))]

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each entry of :attr:`plan`."""
        return [self.loader(split, part=part) for part, split in self.plan]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader for each of :attr:`test_splits`."""
        return [self.loader(split) for split in self.test_splits]
