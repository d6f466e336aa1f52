"""What all LightningModules here share: evaluating each example of each split once, on any number of processes."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from elang.backends.backend import Answer, Columns
from elang.backends.fast.graphs import AnyShape
from elang.backends.text_model import TextModel
from elang.data.batches import Reader
from elang.data.module import TextData
from elang.errors import InputError
from elang.locks import lock_on_all_processes, unlock_output
from elang.method.quality.registry import QUALITIES
from elang.metrics import ExampleTable
from elang.models.loaders import LoaderBatches, loader_at, padded_references
from elang.models.sharding import Sharded, check_strategy
from elang.notices import notice
from elang.records.manifest import Manifest
from elang.records.table import Records
from elang.tasks.kinds import measure, measure_texts
from elang.tasks.text_task import TaskFields, TextTask


class TaskModule(AnyShape, LightningModule):
    """Collects answers to each evaluated split in a table.

    A subclass defines :attr:`text_models`, :meth:`table_columns` and :meth:`answer_batch`, and reads
    :meth:`gather_tables` when the epoch ends. Batches come from elang's data modules or from any loader
    (docs/lightning.md).
    """

    # Whether an evaluation reads the hashes of texts.
    _needs_keys = False

    def __init__(self, label_names: list[str], task: TaskFields | None) -> None:
        super().__init__()
        self.label_names, self.task = label_names, TextTask.of(label_names, task)
        self.split_names: list[str] = []
        self._tables: dict[str, ExampleTable] = {}
        self._batches, self._references = LoaderBatches(self.task), dict[str, list[str]]()
        self._locked: Path | None = None
        self._sharded: dict[str, Sharded] = {}

    @property
    def text_models(self) -> dict[str, TextModel]:
        """The models that run here, by the names of their inputs in a batch."""
        raise NotImplementedError

    def table_columns(self) -> Columns:
        """The columns of :meth:`answer_batch`, except ``id``."""
        raise NotImplementedError

    def answer_batch(self, batch: dict[str, Any], split: str) -> dict[str, Tensor]:
        """The rows of a batch of a split: a value for ``id`` and for each of :meth:`table_columns`."""
        raise NotImplementedError

    @property
    def data(self) -> Any:
        """The trainer's data module if it is elang's; ``None`` if the trainer was given another one, or loaders."""
        data = getattr(self.trainer, "datamodule", None)
        return data if isinstance(data, TextData) else None

    @property
    def readers(self) -> dict[str, Reader]:
        """How each model reads its inputs; the data module asks for it."""
        return {name: model.reader for name, model in self.text_models.items()}

    def setup(self, stage: str) -> None:
        """Refuse unsupported strategies and empty evaluations, and limit generated texts to the data's length."""
        super().setup(stage)
        check_strategy(self.trainer)
        limit = {"validate": "limit_val_batches", "test": "limit_test_batches"}.get(stage)
        if limit is not None and not getattr(self.trainer, limit):
            raise InputError(f"--trainer.{limit} is 0, so nothing would be evaluated. Leave it out.")
        if (max_tokens := getattr(self.data, "max_target_length", None)) is not None:
            for model in self.text_models.values():
                model.limit_new_tokens(max_tokens)

    def configure_model(self) -> None:
        """Shard the weights of all models but the Swift of a pair, if the strategy does that."""
        mesh = self.device_mesh
        for name, model in self.text_models.items():
            if mesh is not None and name != "swift" and name not in self._sharded:
                self._sharded[name] = Sharded(model, mesh["data_parallel"])

    def lock(self, output: Path) -> None:
        """Keep other runs from writing an output until :meth:`teardown`. All processes must call it."""
        lock_on_all_processes(self.trainer, output)
        self._locked = output

    def teardown(self, stage: str) -> None:
        """Unlock the output."""
        super().teardown(stage)
        if self._locked is not None:
            unlock_output(self._locked)

    def on_validation_epoch_start(self) -> None:
        """Make an empty table for each split."""
        testing, data = self.trainer.testing, self.data
        if data is not None:
            self.split_names = list(data.test_splits if testing else data.eval_splits)
        else:
            loaders = self.trainer.num_test_batches if testing else self.trainer.num_val_batches
            self.split_names = self.loader_names("test" if testing else "validation", len(loaders))
        self.make_tables(self.split_names)

    def loader_names(self, first: str, count: int) -> list[str]:
        """The names of the splits of several loaders that are not elang's."""
        return [first, *(f"{first}_{i}" for i in range(1, count))]

    def make_tables(self, splits: list[str]) -> None:
        """Make an empty table for each of these splits."""
        columns = self.table_columns()
        if self._reference_length:
            columns["reference"] = ((self._reference_length,), torch.int32)
        self._tables = {split: ExampleTable(columns).to(self.device) for split in splits}
        self._batches.begin()

    @property
    def _reference_length(self) -> int:
        """Tokens of the longest reference, if the references are known from batches alone."""
        own = self.task.kind.generates and self.data is None
        return min((model.max_new_tokens for model in self.text_models.values()), default=0) if own else 0

    def forward(self, **batch: Any) -> Any:
        """Each model's :class:`~elang.backends.backend.Answer` by name; with labels it has the task's loss."""
        rows = self._batches.read(batch, self.text_models, labelled=False)
        return {name: self._answer(model, rows, name) for name, model in self.text_models.items()}

    def _answer(self, model: TextModel, rows: dict[str, Any], name: str) -> Answer:
        inputs, label = rows[name], rows["label"]
        if self.task.kind.generates and "labels" not in inputs:
            raise InputError("Without 'labels', the references' tokens, there is no loss: Trainer.predict generates.")
        answer: Answer = model(inputs, None if self.task.kind.is_unknown(label).any() else label)
        return answer

    def evaluated_batch(self, batch: Any, split: str, dataloader_idx: int, labelled: bool = True) -> dict[str, Any]:
        """A batch of any loader with all that is evaluated or predicted from."""
        rows = self._batches.read(batch, self.evaluated_models, labelled=labelled)
        loader = loader_at(self.trainer, dataloader_idx)
        return self._batches.number(rows, split, self.trainer, loader=loader, keyed=self._needs_keys)

    @property
    def evaluated_models(self) -> dict[str, TextModel]:
        """Those of :attr:`text_models` that an evaluation reads inputs for."""
        return self.text_models

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer a batch of one of the splits."""
        split = self.split_names[dataloader_idx]
        batch = self.evaluated_batch(batch, split, dataloader_idx)
        rows = self.answer_batch(batch, split)
        if batch.get("repeated"):
            return
        if self._reference_length:
            labels = next(batch[name]["labels"] for name in self.evaluated_models)
            rows["reference"] = padded_references(labels, self._reference_length)
        self._tables[split].update(**rows)

    def on_predict_start(self) -> None:
        """Number the examples of loaders from 0."""
        self._batches.begin()

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """The answers to a batch: ``id`` and the columns of :meth:`predicted`, with a row for each example."""
        rows = self.predicted(self.evaluated_batch(batch, f"predict_{dataloader_idx}", dataloader_idx, labelled=False))
        return {name: values[:0] for name, values in rows.items()} if batch.get("repeated") else rows

    def predicted(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What :meth:`predict_step` returns of a batch: tensors, and lists of texts."""
        raise NotImplementedError

    def on_test_epoch_start(self) -> None:
        """Make an empty table for each split."""
        self.on_validation_epoch_start()

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer a batch of one of the splits."""
        self.validation_step(batch, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Evaluate the answers."""
        self.on_validation_epoch_end()

    def gather_tables(self) -> dict[str, dict[str, Tensor]]:
        """The answers to each split from all processes. A notice lists splits that were answered only in part.

        Raises:
            RuntimeError: If answers are missing although all batches were run.
        """
        tables = {split: table.compute() for split, table in self._tables.items()}
        self._tables = {}
        if self._reference_length:
            model = next(iter(self.evaluated_models.values()))
            self._references = {split: model.texts(table["reference"]) for split, table in tables.items()}
        if self.data is None or self.trainer.sanity_checking:
            return tables
        counts = {split: (len(table["id"]), self.num_examples(split)) for split, table in tables.items()}
        partial = [f"{n} of {total} examples of '{split}'" for split, (n, total) in counts.items() if n != total]
        if partial and self.runs_all_batches:
            raise RuntimeError(f"Only {', '.join(partial)} came back.")
        if partial:
            notice(
                "part-evaluated",
                f"Only {', '.join(partial)} were answered, because of --trainer.limit_val_batches, "
                "--trainer.limit_test_batches or --trainer.fast_dev_run. All results are of that part alone.",
            )
        return tables

    @property
    def writes(self) -> bool:
        """Whether this process writes results: the first one does, except in a ``fast_dev_run``."""
        return self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False)

    @property
    def runs_all_batches(self) -> bool:
        """Whether the trainer evaluates all batches."""
        limits = (self.trainer.limit_val_batches, self.trainer.limit_test_batches)
        # 1 is a single batch, 1.0 all.
        return not getattr(self.trainer, "fast_dev_run", False) and all(isinstance(x, float) and x == 1 for x in limits)

    def num_examples(self, split: str) -> int:
        """The number of examples of a split that are to be answered."""
        return len(self.data.examples(split))

    def new_manifest(self, **fields: Any) -> Manifest:
        """A manifest with these fields and those that the task and the data give."""
        names = ("routing_fraction", "drop_overlap", "max_length", "max_target_length")
        about = {name: getattr(self.data, name) for name in names if hasattr(self.data, name)}
        return Manifest(**{"label_names": self.label_names, "task": self.task.plain()} | about | fields)

    def references(self, split: str, ids: Tensor) -> list[str]:
        """The texts to generate for the examples ``ids`` of a split, which must be all of a loader's own split."""
        texts: list[str] = self._references[split] if self.data is None else self.data.references(split, ids)
        return texts

    def measure_answers(self, split: str, answers: Records, label: Tensor, qualities: list[str]) -> dict[str, float]:
        """Metrics by name of answers to examples with these labels: the first of ``qualities``, all of texts."""
        if answers.texts is not None:
            # Training would tell of every epoch's.
            where = "" if self.trainer.state.fn == "fit" else f"on '{split}'"
            return measure_texts(qualities, answers.texts, self.references(split, answers.id), self.task, where)
        quality = QUALITIES[qualities[0]](len(self.label_names))
        targets = self.data.targets(split, answers.id) if self.data is not None else {}
        return {quality.name: measure(quality, answers.prediction, label, targets=targets)}
