"""Running models over whole splits, once an example, on any number of processes."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from elang.columns import is_table
from elang.cost import FlopsConvention
from elang.data.batches import IGNORED, Reader
from elang.data.format import TaskFields, TextTask
from elang.errors import InputError
from elang.few import DType
from elang.metrics import ExampleTable
from elang.models.attention import AnyShape
from elang.models.backbones import load_model
from elang.models.seq2seq import Generated, Seq2Seq
from elang.models.sharding import Sharded, check_strategy
from elang.models.text_model import TextModel, sum_by_example
from elang.models.text_to_text import TextToText
from elang.notices import notice
from elang.records import Records, read_records, source_of
from elang.router import fold_of
from elang.scores import check_finite, check_logits
from elang.sequence_scores import SEQUENCE_SCORES
from elang.text_quality import TEXT_METRICS

Columns = dict[str, tuple[tuple[int, ...], torch.dtype]]


def answer_columns(model: TextModel, features: bool = False) -> Columns:
    """What :func:`answer_batch` finds out about an example: shapes and types, for an :class:`ExampleTable`."""
    value = torch.float64 if model.task.problem == "regression" else torch.int64
    names = ["flops"]
    if isinstance(model, TextToText):
        names += ["early_flops", *(["score_flops"] if model.generate else [])]
    return (
        {"logits": ((len(model.label_names),), torch.float32), "prediction": ((), value), "tokens": ((), torch.int64)}
        | dict.fromkeys(names, ((), torch.float64))
        | dict.fromkeys(model.head_scores, ((), torch.float32))
        | _feature_columns(model, features)
    )


def _feature_columns(model: TextModel, features: bool) -> Columns:
    heads = model.routers if features else {}
    return {f"{name}_features": ((head.width,), torch.float32) for name, head in heads.items()}


def answer_batch(
    model: TextModel,
    inputs: dict[str, Tensor],
    order: list[int],
    temperature: float = 1.0,
    convention: FlopsConvention = "exact",
    fold: Tensor | None = None,
    features: bool = False,
) -> dict[str, Tensor]:
    """Answer a batch: logits and predictions in the data's class order, tokens, cost and the heads' scores.

    Args:
        model: The model.
        inputs: Its inputs.
        order: Where each of the data's classes stands among its logits.
        temperature: Of the scores.
        convention: How cost is counted.
        fold: Of examples that the router heads may have learned from.
        features: Also what each router head reads.
    """
    answer = model(inputs)
    scores = model.scores(answer, temperature, fold)
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
        **({f"{name}_features": x for name, x in model.router_features(answer).items()} if features else {}),
    }


def generated_columns(model: Seq2Seq, features: bool = False, top_k: int = 0) -> Columns:
    """What :func:`generated_batch` finds out about an example."""
    columns: Columns = dict.fromkeys(("tokens", "steps"), ((), torch.int64))
    columns |= dict.fromkeys(("flops", "early_flops", "score_flops"), ((), torch.float64))
    columns |= dict.fromkeys(model.head_scores, ((), torch.float32))
    columns |= {"ids": ((model.max_new_tokens,), torch.int32), "scores": ((len(SEQUENCE_SCORES),), torch.float32)}
    columns |= _feature_columns(model, features)
    if top_k:
        places = (model.max_new_tokens, top_k)
        columns |= {"top_ids": (places, torch.int32), "top_log_probs": (places, torch.float32)}
    return columns


def padded_ids(model: Seq2Seq, made: Generated) -> Tensor:
    """Generated tokens up to the end of each text, and -1 behind it: ``(B, max_new_tokens)``."""
    place = torch.arange(made.ids.shape[1], device=made.ids.device)
    ids = made.ids.masked_fill(place >= made.steps[:, None], -1)
    return F.pad(ids, (0, model.max_new_tokens - ids.shape[1]), value=-1)


def generated_batch(
    model: Seq2Seq,
    inputs: dict[str, Tensor],
    convention: FlopsConvention = "exact",
    features: bool = False,
    top_k: int = 0,
    fold: Tensor | None = None,
) -> dict[str, Tensor]:
    """Generate a batch's texts: their tokens, padded with -1, steps, scores, cost.

    Args:
        model: The model.
        inputs: Its inputs.
        convention: How cost is counted.
        features: Also what each router head reads.
        top_k: Also so many of the most probable tokens at each place of the references, which distillation needs.
        fold: Of examples that the router heads may have learned from.
    """
    source = model.encode(inputs)
    made = model.generate(source)
    tokens = inputs["attention_mask"].sum(-1)
    scores = model.late_scores(source, made, fold) | model.early_scores(source, fold)
    found = {
        "tokens": tokens,
        "steps": made.steps,
        "ids": padded_ids(model, made),
        "scores": made.scores,
        **{name: cost.to(tokens.device) for name, cost in model.flops(inputs, convention, made.steps).items()},
        **{name: scores[name] for name in model.head_scores},
    }
    if features and model.routers:
        found |= {"router_features": model.after_features(source, made), "encoder_router_features": source.features}
    if top_k:
        # An example without a reference, of a test file, has one padded place.
        labels = inputs.get("labels", inputs["input_ids"].new_full((len(tokens), 1), IGNORED))
        best = model.logits(source, labels).float().log_softmax(-1).topk(top_k, -1)
        pad = (0, 0, 0, model.max_new_tokens - labels.shape[1])
        found["top_ids"] = F.pad(best.indices.masked_fill(labels[..., None] == IGNORED, -1), pad, value=-1)
        found["top_log_probs"] = F.pad(best.values, pad)
    return found


class EvaluationModule(AnyShape, LightningModule):
    """Answers every example of every split once; what is done with the answers is the subclass's.

    Args:
        models: For each name a folder, a ``.ckpt``, a hub id, or a records file.
        label_names: The data's classes; the models' answers are brought into this order.
        task: What the data asks, :meth:`elang.data.format.TextTask.plain`.
        flops_convention: How cost is counted, see :mod:`elang.cost`.
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
        self.recorded: dict[str, dict[str, Records]] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.class_order: dict[str, list[int]] = {}
        for name, path in models.items():
            if is_table(path):
                self.recorded[name], self.about[name] = read_records(path, label_names, self.task.problem)
            else:
                # Without a task of the data's own (Python), a model answers what it was trained for.
                own_task, kind = self.task if task else None, getattr(torch, dtype)
                model = load_model(path, own_task, generate=generate, num_beams=num_beams, dtype=kind).eval()
                self.class_order[name] = model.class_order(label_names, f"'{path}'")
                self.models[name] = model
                if flops_convention == "exact":
                    model.check_cost()
                if model.manifest is not None:
                    model.manifest.check_whole(model.weights_sha256, path)
        self.paths = models
        self.top_k, self.static_cache = 0, static_cache
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
        found = self.models[name]
        assert isinstance(found, TextModel)
        return found

    def _start(self, splits: list[str]) -> None:
        value = torch.float64 if self.task.problem == "regression" else torch.int64
        columns: Columns = {"key": ((), torch.int64), "label": ((), value)}
        data: Any = getattr(self.trainer, "datamodule", None)
        for name in self.models:
            model = self.model(name)
            if isinstance(model, Seq2Seq):
                model.limit_new_tokens(getattr(data, "max_target_length", model.max_new_tokens))
                model.static_cache = self.static_cache
                found = generated_columns(model, top_k=self.top_k)
            else:
                found = answer_columns(model)
            columns |= {f"{name}_{column}": row for column, row in found.items()}
        self._tables = {split: ExampleTable(columns).to(self.device) for split in splits}

    def _step(self, batch: dict[str, Any], split: str) -> None:
        columns = {name: batch[name] for name in ("id", "key", "label")}
        # Router heads learned on this slice.
        fold = fold_of(batch["unit"]) if split == "routing" else None
        for name in self.models:
            model = self.model(name)
            if isinstance(model, Seq2Seq):
                found = generated_batch(model, batch[name], self.flops_convention, top_k=self.top_k, fold=fold)
            else:
                order, costs = self.class_order[name], self.flops_convention
                found = answer_batch(model, batch[name], order, self.temperature, costs, fold)
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
                if self.task.problem == "sequence":
                    check_finite(table[f"{name}_scores"], f"token scores of {self.paths[name]}")
                    continue
                check_logits(table[f"{name}_logits"], f"logits of {self.paths[name]}", self.task.problem == "choice")
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
        """One model's answers to the rows of ``table``, from the model or from its records."""
        if name in self.models:
            own: dict[str, Any] = {column: table.get(f"{name}_{column}") for column in _OPTIONAL}
            model = self.model(name)
            if not isinstance(model, Seq2Seq):
                return Records(table["id"], table[f"{name}_prediction"], key=table["key"], **own)
            texts = model.texts(table[f"{name}_ids"])
            cut = int((table[f"{name}_ids"][:, -1] >= 0).sum())
            if cut:
                notice(
                    "cut-answers",
                    f"{cut} of {len(texts)} texts of '{self.paths[name]}' on '{split}' reached the limit of "
                    f"{model.max_new_tokens} tokens and may be cut. Raise --data.max_target_length.",
                )
            return Records(table["id"], torch.zeros_like(table["id"]), key=table["key"], texts=texts, **own)
        source, data = source_of(split), getattr(self.trainer, "datamodule", None)
        if source not in self.recorded[name]:
            raise InputError(
                f"'{self.paths[name]}' has no answers to '{source}', only to {', '.join(self.recorded[name])}. "
                "Add them (`elang score` writes all splits)."
            )
        found = self.recorded[name][source]
        if data is not None and found.key is None and source == split:
            found.check_ids(int(data.examples(split).id.max()), f"The records '{self.paths[name]}'")
        rows = found.rows(table["id"], table["key"], f"The records '{self.paths[name]}'")
        return replace(found.take(rows), key=table["key"])

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


_OPTIONAL = ("logits", "tokens", "flops", "steps", "scores", "score_flops", "top_ids", "top_log_probs")


def check_some(trainer: Any, stage: str) -> None:
    """Refuse an evaluation of nothing, which would end well and leave nothing behind.

    Raises:
        InputError: Naming the option.
    """
    name = {"validate": "limit_val_batches", "test": "limit_test_batches"}.get(stage)
    if name is not None and not getattr(trainer, name):
        raise InputError(f"--trainer.{name} is 0, so nothing would be evaluated. Leave it out.")


def tell_part(counts: dict[str, tuple[int, int]]) -> None:
    """Tell of splits that were answered only in part.

    Args:
        counts: Of each split the examples that were answered, and all.
    """
    if parts := [f"{n} of {all_} examples of '{split}'" for split, (n, all_) in counts.items() if n < all_]:
        notice(
            "part-evaluated",
            f"Only {', '.join(parts)} were answered, as --trainer.limit_val_batches, --trainer.limit_test_batches or "
            "--trainer.fast_dev_run say: what is measured is of that part alone.",
        )


def measure_texts(qualities: list[str], texts: list[str], references: list[str]) -> dict[str, float]:
    """Metrics of one model's texts, by name."""
    found = {}
    for name in qualities:
        statistics, value = TEXT_METRICS[name]
        found[name] = float(value(statistics(texts, references).sum(0, dtype=torch.float64)))
    return found
