"""Running models over whole splits, once an example, on any number of processes."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from elang.cost import FlopsConvention
from elang.errors import InputError
from elang.metrics import ExampleTable
from elang.models.backbones import Classifier, load_classifier
from elang.records import SUFFIXES, Records, read_records, source_of, write_records
from elang.scores import check_finite


class EvaluationModule(LightningModule):
    """Answers every example of every split once; what is done with the answers is the subclass's.

    Args:
        models: For each name a folder, a ``.ckpt``, a hub id, or a records file.
        label_names: The data's classes; the models' answers are brought into this order.
        flops_convention: How cost is counted, see :mod:`elang.cost`.
    """

    def __init__(
        self, models: dict[str, str], label_names: list[str], flops_convention: FlopsConvention = "exact"
    ) -> None:
        super().__init__()
        self.label_names = label_names
        self.flops_convention = flops_convention
        self.temperature = 1.0
        self.models = nn.ModuleDict()
        self.recorded: dict[str, dict[str, Records]] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.class_order: dict[str, list[int]] = {}
        for name, path in models.items():
            if path.endswith(SUFFIXES):
                self.recorded[name], self.about[name] = read_records(path, label_names)
            else:
                model = load_classifier(path).eval()
                self.class_order[name] = model.class_order(label_names, f"'{path}'")
                self.models[name] = model
        self.paths = models
        self._tables: dict[str, ExampleTable] = {}

    @property
    def tokenizers(self) -> dict[str, Any]:
        """The tokenizer of each model that is run."""
        return {name: self.model(name).tokenizer for name in self.models}

    def model(self, name: str) -> Classifier:
        """The classifier called ``name``."""
        found = self.models[name]
        assert isinstance(found, Classifier)
        return found

    def _start(self, splits: list[str]) -> None:
        width = len(self.label_names)
        columns: dict[str, tuple[tuple[int, ...], torch.dtype]] = dict.fromkeys(("key", "label"), ((), torch.int64))
        for name in self.models:
            columns[f"{name}_logits"] = ((width,), torch.float32)
            columns[f"{name}_tokens"] = ((), torch.int64)
            if self.model(name).router is not None:
                columns[f"{name}_router"] = ((), torch.float32)
        self.split_names = splits
        self._tables = {split: ExampleTable(columns).to(self.device) for split in splits}

    def _step(self, batch: dict[str, Any], split: str) -> None:
        if not len(batch["id"]):
            return
        columns = {name: batch[name] for name in ("id", "key", "label")}
        for name in self.models:
            answer = self.model(name)(batch[name])
            columns[f"{name}_logits"] = answer.logits[:, self.class_order[name]]
            columns[f"{name}_tokens"] = batch[name]["attention_mask"].sum(-1)
            if self.model(name).router is not None:
                columns[f"{name}_router"] = self.model(name).scores(answer, self.temperature)["router"]
        self._tables[split].update(**columns)

    def _gather(self) -> dict[str, dict[str, Tensor]]:
        """All rows of every split, from all processes, checked to be complete and finite."""
        tables = {split: table.compute() for split, table in self._tables.items()}
        self._tables = {}
        data: Any = getattr(self.trainer, "datamodule", None)
        limits = (self.trainer.limit_val_batches, self.trainer.limit_test_batches)
        whole = not getattr(self.trainer, "fast_dev_run", False) and all(
            isinstance(x, float) and x == 1 for x in limits
        )
        for split, table in tables.items():
            if data is not None and whole and len(table["id"]) != len(data.examples(split)):
                raise RuntimeError(
                    f"{len(table['id'])} of {len(data.examples(split))} examples of '{split}' came back."
                )
            for name in self.models:
                check_finite(table[f"{name}_logits"], f"logits of {self.paths[name]}")
        return tables

    def answers(self, name: str, split: str, table: dict[str, Tensor]) -> Records:
        """One model's answers to the rows of ``table``, from the model or from its records."""
        if name in self.models:
            logits, tokens = table[f"{name}_logits"], table[f"{name}_tokens"]
            flops = self.model(name).flops(tokens, self.flops_convention)
            return Records(table["id"], logits.argmax(-1), logits, table["key"], tokens, flops)
        source = source_of(split)
        if source not in self.recorded[name]:
            raise InputError(
                f"'{self.paths[name]}' has no answers to '{source}', only to {', '.join(self.recorded[name])}. "
                "Add them (`elang score` writes all splits)."
            )
        found = self.recorded[name][source]
        rows = found.rows(table["id"], table["key"], f"The records '{self.paths[name]}'")
        optional = {k: None if v is None else v[rows] for k, v in vars(found).items() if k in _OPTIONAL}
        return Records(table["id"], found.prediction[rows], key=table["key"], **optional)

    def on_validation_epoch_start(self) -> None:
        """Prepare a table for each split."""
        data: Any = getattr(self.trainer, "datamodule", None)
        self._start(list(data.eval_splits) if data is not None else ["validation"])

    def on_test_epoch_start(self) -> None:
        """Prepare a table for each split."""
        data: Any = getattr(self.trainer, "datamodule", None)
        self._start(list(data.test_splits) if data is not None else ["test"])

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


_OPTIONAL = ("logits", "tokens", "flops")


class ScoreModule(EvaluationModule):
    """Runs one model over every example of every file and writes its records (:mod:`elang.records`).

    Args:
        model: A folder, a ``.ckpt`` or a hub id.
        label_names: The data's classes; the command line takes them from the data.
        output: The parquet file to write.
    """

    def __init__(self, model: str, label_names: list[str], output: str = "records.parquet") -> None:
        if model.endswith(SUFFIXES):
            raise InputError(f"'{model}' is already a file of records; give --model.model a model.")
        if not output.endswith(".parquet"):
            raise InputError(f"Records are written as parquet, but --model.output is '{output}'.")
        super().__init__({"model": model}, label_names)
        self.save_hyperparameters()
        self.output = output

    def on_validation_epoch_end(self) -> None:
        """Write the records."""
        tables = self._gather()
        if not self.trainer.is_global_zero:
            return
        parts: dict[str, list[Records]] = {}
        for split, table in tables.items():
            source = source_of(split)
            parts.setdefault(source, []).append(self.answers("model", split, table))
            accuracy = float((table["model_logits"].argmax(-1) == table["label"]).double().mean())
            self.print(f"{split}: {len(table['id'])} examples, accuracy {accuracy:.4f}")
        names = ("id", "prediction", "logits", "key", "tokens", "flops")
        order = {source: torch.cat([p.id for p in found]).argsort() for source, found in parts.items()}
        merged = {
            source: Records(**{n: torch.cat([getattr(p, n) for p in found])[order[source]] for n in names})
            for source, found in parts.items()
        }
        model = self.model("model")
        about: dict[str, Any] = {"model": self.paths["model"], "weights_sha256": model.weights_sha256}
        if model.manifest is not None:
            about["routing_fraction"] = model.manifest.routing_fraction
        write_records(self.output, merged, self.label_names, **about)
        self.print(f"the records are in {self.output}")
