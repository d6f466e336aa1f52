"""The data module: labelled texts or pairs of texts, with a held-out routing slice."""

import math
import os
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from elang.data.batches import EncodedTexts, LengthBatches, encode
from elang.data.files import Examples, content_key, in_slice, label_index, label_values, read_frame, texts_of
from elang.errors import InputError
from elang.records import source_of

SplitName = Literal["train", "routing", "validation", "test"]


class TextClassificationData(LightningDataModule):
    """Text classification from local files (CSV, TSV, JSONL, parquet) or a data set on the hub.

    A slice of the training file, chosen by a hash of each text, is held out from training: thresholds are chosen
    on it. Every example keeps its row number in its file as its id.

    Args:
        train: Training file, or the name of the hub's split.
        validation: Evaluation file or split.
        test: The same for ``elang test``.
        text: The text column, or two for pairs.
        label: The label column.
        label_names: Class names in order. By default the distinct labels of the training file, sorted.
        hub: Data set on the hub, ``owner/name@revision``; the files above are then names of its splits.
        hub_config: Its configuration.
        batch_size: Examples in a training batch, for each process.
        eval_batch_size: Examples in an evaluation batch.
        max_length: Tokens kept of an input; longer ones are cut and counted.
        routing_fraction: Share of the training file held out for choosing thresholds.
        num_workers: Processes that assemble batches; 0 does it in the training process.
    """

    def __init__(
        self,
        train: str | None = None,
        validation: str | None = None,
        test: str | None = None,
        text: list[str] | str = "text",
        label: str = "label",
        label_names: list[str] | None = None,
        hub: str | None = None,
        hub_config: str | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        max_length: int = 256,
        routing_fraction: float = 0.1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.files: dict[str, str] = {
            split: path for split, path in (("train", train), ("validation", validation), ("test", test)) if path
        }
        if not self.files:
            raise InputError("No data was given. Set --data.train and --data.validation to files.")
        self.text = [text] if isinstance(text, str) else text
        if len(self.text) not in (1, 2):
            raise InputError(f"A text or a pair of texts can be classified, but --data.text names {self.text}.")
        if not 0 <= routing_fraction < 1:
            raise InputError(f"--data.routing_fraction must be in [0, 1), but it is {routing_fraction}.")
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise InputError(f"--data.{name} must be at least 1, but it is {value}.")
        self.label, self._given_names = label, label_names
        self.hub, self.hub_config = hub, hub_config
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.max_length, self.routing_fraction, self.num_workers = max_length, routing_fraction, num_workers
        self.all_splits = False
        self._frames: dict[str, Any] = {}
        self._examples: dict[str, Examples] = {}
        self._encoded: dict[tuple[str, str], EncodedTexts] = {}
        self._tokenizers: dict[str, Any] = {}

    def _frame(self, source: str) -> Any:
        if source not in self.files:
            raise InputError(f"There is no {source} data. Set --data.{source} to a file.")
        if source not in self._frames:
            self._frames[source] = read_frame(self.files[source], self.hub, self.hub_config)
        return self._frames[source]

    def _where(self, source: str) -> str:
        return f"'{self.files[source]}'" + (f" of '{self.hub}'" if self.hub else "")

    @property
    def label_names(self) -> list[str]:
        """Class names in the order of the class indices."""
        if self._given_names is None:
            source = next(iter(self.files))
            names = set(label_values(self._frame(source), self.label, self._where(source)))
            numeric = all(name.lstrip("-").isdigit() for name in names)
            self._given_names = sorted(names, key=int) if numeric else sorted(names)
        if len(self._given_names) < 2 or len(set(self._given_names)) < len(self._given_names):
            raise InputError(
                f"Classification needs at least 2 distinct labels, but the label names are {self._given_names}. Set "
                "--data.label to the label column, or --data.label_names."
            )
        return self._given_names

    @property
    def splits(self) -> list[SplitName]:
        """What can be evaluated, ``routing`` before ``train`` being two parts of one file."""
        held_out: list[SplitName] = ["routing"] if "train" in self.files and self.routing_fraction > 0 else []
        order: list[SplitName] = ["validation", *held_out, "test", "train"]
        return [split for split in order if split == "routing" or split in self.files]

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
            frame, where = self._frame(source), self._where(source)
            texts = texts_of(frame, self.text, where)
            labels = label_index(label_values(frame, self.label, where), self.label_names, where)
            key = torch.tensor([content_key(row) for row in texts], dtype=torch.int64)
            all_ = Examples(texts, torch.arange(len(texts)), key, labels)
            if source == "train":
                held_out = in_slice(key, self.routing_fraction)
                self._examples["routing"], self._examples["train"] = all_.take(held_out), all_.take(~held_out)
                for part in ("train", *(["routing"] if self.routing_fraction > 0 else [])):
                    if not len(self._examples[part]):
                        raise InputError(
                            f"{where} leaves no example for '{part}' with --data.routing_fraction "
                            f"{self.routing_fraction}. Change it, or give more data."
                        )
            else:
                self._examples[split] = all_
        return self._examples[split]

    def setup(self, stage: str) -> None:
        """Read and tokenise what the stage needs, for each tokenizer of the module that is trained or evaluated."""
        module: Any = self.trainer.lightning_module if self.trainer else None
        tokenizers: dict[str, Any] = getattr(module, "tokenizers", {})
        if stage == "test" and "test" not in self.files:
            raise InputError("There is no test data. Set --data.test to a file, or run `elang validate`.")
        needed: list[SplitName] = self.test_splits if stage == "test" else self.eval_splits
        # Another module brings other tokenizers, perhaps under the same name.
        same = {name for name, tokenizer in tokenizers.items() if self._tokenizers.get(name) is tokenizer}
        self._encoded = {key: found for key, found in self._encoded.items() if key[1] in same}
        self._tokenizers = tokenizers
        for split in dict.fromkeys([*needed, *(["train"] if stage == "fit" else [])]):
            examples = self.examples(split)  # type: ignore[arg-type]
            for name, tokenizer in tokenizers.items():
                if (split, name) not in self._encoded:
                    limit = min(self.max_length, tokenizer.model_max_length)
                    self._encoded[split, name] = encode(tokenizer, examples.texts, limit)
                    cut = self._encoded[split, name].truncated
                    if cut:
                        rank_zero_warn(
                            f"{cut} of {len(examples)} inputs of '{split}' are longer than {limit} tokens and were "
                            "cut. Raise --data.max_length to keep them whole."
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

    def __init__(self, examples: Examples, encoded: dict[str, EncodedTexts]) -> None:
        self.tensors: dict[str, Tensor] = {"id": examples.id, "key": examples.key, "label": examples.label}
        self.inputs: dict[str, Callable[[list[int]], dict[str, Tensor]]] = {
            name: found.batch for name, found in encoded.items()
        }

    def __len__(self) -> int:
        return len(self.tensors["id"])

    def __getitem__(self, rows: Any) -> dict[str, Any]:
        batch: dict[str, Any] = {name: column[rows] for name, column in self.tensors.items()}
        return batch | {name: take(rows) for name, take in self.inputs.items()}
