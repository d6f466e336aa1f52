"""Running models over whole splits, once an example, on any number of processes."""

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from elang.backends import DType
from elang.backends.backend import Backend, Columns
from elang.backends.fast.graphs import AnyShape
from elang.backends.flops import FlopsConvention
from elang.backends.loading.load import load_model, open_backend
from elang.backends.recorded import RecordedBackend
from elang.backends.text_model import TextModel
from elang.data.batches import Reader
from elang.data.examples import Examples, fold_of, source_of
from elang.errors import InputError
from elang.method.deferral import check_finite, check_logits
from elang.metrics import ExampleTable
from elang.models.sharding import Sharded, check_strategy
from elang.models.validation import check_some, tell_part
from elang.notices import notice
from elang.records.table import Records
from elang.tasks.text_task import TaskFields, TextTask


class EvaluationModule(AnyShape, LightningModule):
    """Answers every example of every split once; what is done with the answers is the subclass's.

    Args:
        models: For each name a folder, a ``.ckpt``, a hub id, or a records file.
        label_names: The data's classes; the models' answers are brought into this order.
        task: What the data asks, :meth:`elang.tasks.text_task.TextTask.plain`.
        flops_convention: How cost is counted, see :mod:`elang.backends.flops`.
        generate: Text-to-text models answer by free generation, matched with the task's answers.
        num_beams: Hypotheses that generated texts are chosen from; by default each model's own setting.
        static_cache: Generate with a cache of fixed size.
        dtype: Precision of the weights; logits and scores are float32 in any.
    """

    def __init__(
        self,
        models: dict[str, str],
        label_names: list[str],
        task: TaskFields | None = None,
        flops_convention: FlopsConvention = "exact",
        generate: bool = False,
        num_beams: int | None = None,
        static_cache: bool = False,
        dtype: DType = "float32",
    ) -> None:
        super().__init__()
        self._sharded: dict[str, Sharded] = {}
        self.task = TextTask.of(label_names, task)
        self.label_names = label_names
        self.flops_convention = flops_convention
        self.temperature = 1.0
        self.models = nn.ModuleDict()
        # Of the models that are not run here.
        self.backends: dict[str, Backend] = {}
        self.recorded: dict[str, dict[str, Records]] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.class_order: dict[str, list[int]] = {}
        for name, path in models.items():
            backend = open_backend(path, self.task)
            if backend is not None:
                self.backends[name] = backend
            if isinstance(backend, RecordedBackend):
                self.recorded[name], self.about[name] = backend.splits, backend.about
            elif backend is None:
                # Without a task of the data's own (Python), a model answers what it was trained for.
                own_task, kind = self.task if task else None, getattr(torch, dtype)
                model = load_model(path, own_task, generate=generate, num_beams=num_beams, dtype=kind).eval()
                model.use_static_cache(static_cache)
                self.class_order[name] = model.class_order(label_names, f"'{path}'")
                self.models[name] = model
                if flops_convention == "exact":
                    model.check_cost()
                if model.manifest is not None:
                    model.manifest.check_whole(model.weights_sha256, path)
        self.paths = models
        self.top_k = 0
        self._tables: dict[str, ExampleTable] = {}

    def configure_model(self) -> None:
        """Share the weights of all but the Swift out over the processes, where the strategy does."""
        if self.device_mesh is None:
            return
        for name in self.models:
            if name != "swift" and name not in self._sharded:
                self._sharded[name] = Sharded(self.model(name), self.device_mesh["data_parallel"])

    def setup(self, stage: str) -> None:
        """Check how the models are to be spread."""
        super().setup(stage)
        check_strategy(self.trainer)
        check_some(self.trainer, stage)

    @property
    def readers(self) -> dict[str, Reader]:
        """How each model that is run reads."""
        return {name: self.model(name).reader for name in self.models}

    def model(self, name: str) -> TextModel:
        """The model called ``name``."""
        return cast(TextModel, self.models[name])

    def _start(self, splits: list[str]) -> None:
        value = self.task.kind.answer_type
        columns: Columns = {"key": ((), torch.int64), "label": ((), value)}
        data: Any = getattr(self.trainer, "datamodule", None)
        for name in self.models:
            model = self.model(name)
            if hasattr(data, "max_target_length"):
                model.limit_new_tokens(data.max_target_length)
            found = model.columns(top_k=self.top_k)
            columns |= {f"{name}_{column}": row for column, row in found.items()}
        self._tables = {split: ExampleTable(columns).to(self.device) for split in splits}

    def _step(self, batch: dict[str, Any], split: str) -> None:
        columns = {name: batch[name] for name in ("id", "key", "label")}
        # Router heads learned on this slice.
        fold = fold_of(batch["unit"]) if split == "routing" else None
        for name in self.models:
            found = self.model(name).answer_columns(
                batch[name],
                self.class_order[name],
                temperature=self.temperature,
                convention=self.flops_convention,
                fold=fold,
                top_k=self.top_k,
            )
            columns |= {f"{name}_{column}": values for column, values in found.items()}
        if not batch.get("repeated"):
            self._tables[split].update(**columns)

    def _gather(self) -> dict[str, dict[str, Tensor]]:
        """All rows of every split, from all processes, checked to be complete and finite."""
        tables = {split: table.compute() for split, table in self._tables.items()}
        self._tables = {}
        self._tell_part(tables)
        data: Any = getattr(self.trainer, "datamodule", None)
        whole = self._whole()
        for split, table in tables.items():
            if data is not None and whole and len(table["id"]) != (expected := self._expected(split)):
                raise RuntimeError(f"{len(table['id'])} of {expected} examples of '{split}' came back.")
            for name in self.models:
                if self.task.kind.generates:
                    check_finite(table[f"{name}_scores"], f"token scores of {self.paths[name]}")
                    continue
                check_logits(table[f"{name}_logits"], f"logits of {self.paths[name]}", self.task.kind.has_candidates)
        return tables

    def _tell_part(self, tables: dict[str, dict[str, Tensor]]) -> None:
        """Tell of an evaluation that was limited to a part of its data."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is not None and not self._whole():
            tell_part({split: (len(table["id"]), self._expected(split)) for split, table in tables.items()})

    def _whole(self) -> bool:
        """Whether all batches are run."""
        limits = (self.trainer.limit_val_batches, self.trainer.limit_test_batches)
        # 1 is a single batch, 1.0 all.
        return not getattr(self.trainer, "fast_dev_run", False) and all(isinstance(x, float) and x == 1 for x in limits)

    def _expected(self, split: str) -> int:
        """How many examples of a split are to be answered."""
        return len(self.trainer.datamodule.examples(split))  # type: ignore[attr-defined]

    def answers(self, name: str, split: str, table: dict[str, Tensor]) -> Records:
        """One model's answers to the rows of ``table``, of the model, or of who answers in its place."""
        if name in self.models:
            own = {column.removeprefix(f"{name}_"): values for column, values in table.items()}
            records = self.model(name).records(own)
            if records.texts is not None and (cut := int((own["ids"][:, -1] >= 0).sum())):
                notice(
                    "cut-answers",
                    f"{cut} of {len(records.texts)} texts of '{self.paths[name]}' on '{split}' reached the limit of "
                    f"{own['ids'].shape[1]} tokens and may be cut. Raise --data.max_target_length.",
                )
            return records
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None:
            no_texts: list[tuple[str, ...]] = [()] * len(table["id"])
            examples = Examples(no_texts, table["id"], table["key"], label=table["label"], source=source_of(split))
        elif len(examples := data.examples(split)) > len(table["id"]):
            examples = examples.take(torch.isin(examples.id, table["id"]))
        return self.backends[name].answer(examples)

    def on_validation_epoch_start(self) -> None:
        """Prepare a table for each split."""
        data: Any = getattr(self.trainer, "datamodule", None)
        self.split_names = list(data.eval_splits) if data is not None else ["validation"]
        self._start(self.split_names)

    def on_test_epoch_start(self) -> None:
        """Prepare a table for each split."""
        data: Any = getattr(self.trainer, "datamodule", None)
        self.split_names = list(data.test_splits) if data is not None else ["test"]
        self._start(self.split_names)

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer a batch."""
        self._step(batch, self.split_names[dataloader_idx])

    def test_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Answer a batch."""
        self._step(batch, self.split_names[dataloader_idx])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse: there is nothing here to be loaded.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"{type(self).__name__} has no weights of its own, so --ckpt_path means nothing to it: the checkpoint is "
            "of another class. Give it as a model: --model.swift_model, --model.super_model or --model.model."
        )
