"""Running models over whole splits, once an example, on any number of processes."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from elang.cost import FlopsConvention
from elang.data.batches import Reader
from elang.data.format import TaskFields, TextTask
from elang.errors import InputError
from elang.evaluate import measure
from elang.metrics import ExampleTable
from elang.models.backbones import load_model
from elang.models.text_model import TextModel, sum_by_example
from elang.models.text_to_text import TextToText
from elang.quality import QUALITIES
from elang.records import SUFFIXES, Records, read_records, source_of, write_records
from elang.scores import check_logits


def answer_columns(model: TextModel) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """What :func:`answer_batch` finds out about an example: shapes and types, for an :class:`ExampleTable`."""
    value = torch.float64 if model.task.problem == "regression" else torch.int64
    names = ["flops"]
    if isinstance(model, TextToText):
        names += ["early_flops", *(["score_flops"] if model.generate else [])]
    return (
        {"logits": ((len(model.label_names),), torch.float32), "prediction": ((), value), "tokens": ((), torch.int64)}
        | dict.fromkeys(names, ((), torch.float64))
        | dict.fromkeys(model.head_scores, ((), torch.float32))
    )


def answer_batch(
    model: TextModel,
    inputs: dict[str, Tensor],
    order: list[int],
    temperature: float = 1.0,
    convention: FlopsConvention = "exact",
) -> dict[str, Tensor]:
    """Answer a batch: logits and predictions in the data's class order, tokens, cost and the heads' scores."""
    answer = model(inputs)
    scores = model.scores(answer, temperature)
    prediction = answer.prediction
    if model.task.problem != "regression":
        place = torch.tensor(order, device=prediction.device).argsort()
        prediction = torch.where(prediction < 0, -1, place[prediction.clamp_min(0)])
    tokens = inputs["attention_mask"].sum(-1)
    if not model.text_to_text and "num_choices" in inputs:
        tokens = sum_by_example(tokens, inputs["num_choices"])
    return {
        "logits": answer.logits[:, order],
        "prediction": prediction,
        "tokens": tokens,
        **{name: cost.to(tokens.device) for name, cost in model.flops(inputs, convention, answer.steps).items()},
        **{name: scores[name] for name in model.head_scores},
    }


class EvaluationModule(LightningModule):
    """Answers every example of every split once; what is done with the answers is the subclass's.

    Args:
        models: For each name a folder, a ``.ckpt``, a hub id, or a records file.
        label_names: The data's classes; the models' answers are brought into this order.
        task: What the data asks, :meth:`elang.data.format.TextTask.plain`.
        flops_convention: How cost is counted, see :mod:`elang.cost`.
        generate: Text-to-text models answer by free generation, matched with the task's answers.
    """

    def __init__(
        self,
        models: dict[str, str],
        label_names: list[str],
        task: TaskFields | None = None,
        flops_convention: FlopsConvention = "exact",
        generate: bool = False,
    ) -> None:
        super().__init__()
        self.task = TextTask.of(label_names, task)
        self.label_names = label_names
        self.flops_convention = flops_convention
        self.temperature = 1.0
        self.models = nn.ModuleDict()
        self.recorded: dict[str, dict[str, Records]] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.class_order: dict[str, list[int]] = {}
        for name, path in models.items():
            if path.endswith(SUFFIXES):
                self.recorded[name], self.about[name] = read_records(path, label_names, self.task.problem)
            else:
                # Without a task of the data's own (Python), a model answers what it was trained for.
                model = load_model(path, self.task if task else None, generate=generate).eval()
                self.class_order[name] = model.class_order(label_names, f"'{path}'")
                self.models[name] = model
        self.paths = models
        self._tables: dict[str, ExampleTable] = {}

    @property
    def readers(self) -> dict[str, Reader]:
        """How each model that is run reads."""
        return {name: self.model(name).reader for name in self.models}

    def model(self, name: str) -> TextModel:
        """The model called ``name``."""
        found = self.models[name]
        assert isinstance(found, TextModel)
        return found

    def _start(self, splits: list[str]) -> None:
        value = torch.float64 if self.task.problem == "regression" else torch.int64
        columns: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"key": ((), torch.int64), "label": ((), value)}
        for name in self.models:
            columns |= {f"{name}_{column}": row for column, row in answer_columns(self.model(name)).items()}
        self.split_names = splits
        self._tables = {split: ExampleTable(columns).to(self.device) for split in splits}

    def _step(self, batch: dict[str, Any], split: str) -> None:
        if not len(batch["id"]):
            return
        columns = {name: batch[name] for name in ("id", "key", "label")}
        for name in self.models:
            found = answer_batch(
                self.model(name), batch[name], self.class_order[name], self.temperature, self.flops_convention
            )
            columns |= {f"{name}_{column}": values for column, values in found.items()}
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
                check_logits(table[f"{name}_logits"], f"logits of {self.paths[name]}", self.task.problem == "choice")
        return tables

    def answers(self, name: str, split: str, table: dict[str, Tensor]) -> Records:
        """One model's answers to the rows of ``table``, from the model or from its records."""
        if name in self.models:
            columns = {column: table[f"{name}_{column}"] for column in ("prediction", "logits", "tokens", "flops")}
            return Records(id=table["id"], key=table["key"], **columns)
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
        label_names: The data's classes; the command line takes them from the data, like the next.
        task: What is asked, :meth:`elang.data.format.TextTask.plain`.
        output: The parquet file to write.
        generate: A text-to-text model answers by free generation, matched with the task's answers.
    """

    def __init__(
        self,
        model: str,
        label_names: list[str],
        task: TaskFields | None = None,
        output: str = "records.parquet",
        generate: bool = False,
    ) -> None:
        if model.endswith(SUFFIXES):
            raise InputError(f"'{model}' is already a file of records; give --model.model a model.")
        if not output.endswith(".parquet"):
            raise InputError(f"Records are written as parquet, but --model.output is '{output}'.")
        super().__init__({"model": model}, label_names, task, generate=generate)
        self.save_hyperparameters()
        self.output, self.generate = output, generate

    def on_validation_epoch_end(self) -> None:
        """Write the records."""
        tables = self._gather()
        if not self.trainer.is_global_zero:
            return
        parts: dict[str, list[Records]] = {}
        for split, table in tables.items():
            source = source_of(split)
            parts.setdefault(source, []).append(self.answers("model", split, table))
            self.print(self._line(split, table))
        names = ("id", "prediction", "logits", "key", "tokens", "flops")
        order = {source: torch.cat([p.id for p in found]).argsort() for source, found in parts.items()}
        merged = {
            source: Records(**{n: torch.cat([getattr(p, n) for p in found])[order[source]] for n in names})
            for source, found in parts.items()
        }
        model = self.model("model")
        about: dict[str, Any] = {"model": self.paths["model"], "weights_sha256": model.weights_sha256}
        about["generated"] = self.generate and model.text_to_text
        if model.manifest is not None:
            about["routing_fraction"] = model.manifest.routing_fraction
        write_records(self.output, merged, self.label_names, **about)
        self.print(f"the records are in {self.output}")

    def _line(self, split: str, table: dict[str, Tensor]) -> str:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        said = f"{split}: {len(table['id'])} examples"
        prediction = table["model_prediction"]
        if self.generate and self.task.problem != "regression":
            said += f", {int((prediction < 0).sum())} generated answers are none of the task's"
        if not data.examples(split).labelled:
            return f"{said}, no labels"
        quality = QUALITIES[self.task.qualities[0]](len(self.label_names))  # type: ignore[index]
        value = measure(quality, prediction, table["label"], data.targets(split, table["id"]))
        return f"{said}, {quality.name} {value:.4f}"
