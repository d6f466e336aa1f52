"""The answers of one or several finished models, or of what stands in for them, to whole splits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from elang.backends.backend import Answer, Backend, Columns
from elang.backends.flops import FlopsConvention
from elang.backends.loading.load import load_model, open_backend
from elang.backends.loading.source import tell_if_larger
from elang.backends.openai.backend import OpenAIBackend
from elang.backends.recorded import RecordedBackend
from elang.backends.text_model import TextModel
from elang.data.examples import fold_of
from elang.data.prompts import tell_examples
from elang.errors import InputError, printable
from elang.evaluation.report.console import print_commands, thresholds_option
from elang.evaluation.slices import check_apart
from elang.evaluation.summary import JointSummary
from elang.method.deferral import check_finite, check_logits
from elang.models.base import TaskModule
from elang.models.elsewhere import ask_once, refuse_local, settle
from elang.notices import notice
from elang.records.manifest import FILENAME, Manifest
from elang.records.table import EXAMPLES, Records
from elang.tasks.sampling import Sampling, tell_drawn
from elang.tasks.text_task import TaskFields, TextTask


class EvaluationModule(TaskModule):
    """Answers every example of every split once; subclasses use the answers.

    Args:
        models: For each name a folder, a ``.ckpt``, a hub id, a records file or the address of another backend.
        label_names: The data's classes; the models' answers are brought into this order.
        task: :meth:`elang.tasks.text_task.TextTask.plain`.

    The other options are those of :class:`elang.JointModule`; ``loading`` has ``generate``, ``num_beams``, ``dtype``.
    """

    _needs_keys = True
    asked_file: str
    """Where the replies of APIs are kept until all are written."""

    def __init__(
        self,
        models: dict[str, str],
        label_names: list[str],
        task: TaskFields | None = None,
        flops_convention: FlopsConvention = "exact",
        static_cache: bool = False,
        sampling: Sampling | None = None,
        asked_scores: Sequence[str] | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(label_names, task)
        self.paths, self.flops_convention = models, flops_convention
        self.temperature, self.top_k = 1.0, 0
        self.models = nn.ModuleDict()
        self.class_order: dict[str, list[int]] = {}
        # Those that answer in place of a model here.
        self.backends: dict[str, Backend] = {}
        for name, path in models.items():
            backend = open_backend(path, self.task, scored=name == "swift")
            if backend is not None:
                self.backends[name] = backend
                settle(backend, sampling, loading.get("num_beams"), asked_scores if name != "super" else None)
                continue
            # Without a task of the data's own (Python), a model answers what it was trained for.
            own_task, precision = self.task if task else None, getattr(torch, loading.get("dtype", "float32"))
            model = load_model(path, own_task, **loading | {"dtype": precision}).eval()
            self._set_answers(model, path, sampling, asked_scores if name != "super" else None)
            model.use_static_cache(static_cache)
            self.class_order[name] = model.class_order(label_names, f"'{path}'")
            self.models[name] = model
            if flops_convention == "exact":
                model.check_cost()
            if model.manifest is not None:
                model.manifest.check_whole(model.weights_sha256, path)
        if "swift" in self.models:
            super_ = self.text_models["super"].size if "super" in self.models else 0
            known = self.recorded["super"].about.get("model", "") if "super" in self.recorded else models["super"]
            tell_if_larger(models["swift"], self.text_models["swift"].size, known, super_)
        # An encoder reads no examples, but those of its task are a Super's in `elang predict`.
        shown = {n: m.task.examples if n == "swift" else m.shown_examples for n, m in self.text_models.items()}
        shown |= {name: backend.about.get(EXAMPLES) for name, backend in self.recorded.items()}
        tell_examples({f"'{models[name]}'": examples for name, examples in shown.items() if examples is not None})

        if sampling is not None and (loading.get("num_beams") or 1) > 1:
            raise InputError("--model.sampling draws one text: leave it out, or --model.num_beams.")
        drawn = {name: backend.about.get("sampling") or {} for name, backend in self.recorded.items()}
        drawn |= {name: {} if sampling is None else sampling.plain() for name in self.models}
        drawn |= {name: backend.drawn for name, backend in self.asked.items()}
        first = next(iter(models))
        if first in self.recorded:
            self.recorded[first].check(sampling, asked_scores)
        if self.asked and not self.models:
            refuse_local(static_cache=static_cache, dtype=loading.get("dtype"))
        tell_drawn({models[name]: drawn[name] for name in models if name in drawn})
        self.sampling: dict[str, Any] = drawn.get(first, {})

    @staticmethod
    def _set_answers(model: TextModel, path: str, sampling: Sampling | None, asked: Sequence[str] | None) -> None:
        """Set how a model's texts are chosen, and which scores with passes of their own it computes."""
        if sampling is not None:
            model.sample(sampling)
        if missing := [name for name in asked or () if name not in model.ask_for(name)]:
            raise InputError(
                f"'{path}' has no score '{missing[0]}', which only decoder-only language models that generate texts "
                "have. Leave it out of --model.asked_scores."
            )

    def setup(self, stage: str) -> None:
        """Refuse what stands in for a model where there are only its inputs, not texts."""
        super().setup(stage)
        for name, backend in self.asked.items():
            backend.limit_new_tokens(getattr(self.data, "max_target_length", 128))
            own = f".{name}.asked." if len(self.asked) > 1 else ".asked."
            backend.keep_answers(own.join(self.asked_file.rsplit(".asked.", 1)))
        if self.backends and (stage == "predict" or self.data is None):
            raise InputError(
                f"'{self.paths[next(iter(self.backends))]}' is no model, so it answers only examples of elang's data "
                "modules, and not in Trainer.predict. Give a model, or use JointPredictor."
            )

    @property
    def text_models(self) -> dict[str, TextModel]:
        """The models that run here, by name."""
        return {name: cast(TextModel, model) for name, model in self.models.items()}

    @property
    def recorded(self) -> dict[str, RecordedBackend]:
        """The files of records that stand in for models, by name."""
        return {name: backend for name, backend in self.backends.items() if isinstance(backend, RecordedBackend)}

    @property
    def asked(self) -> dict[str, OpenAIBackend]:
        """The models behind an API, by name."""
        return {name: backend for name, backend in self.backends.items() if isinstance(backend, OpenAIBackend)}

    @property
    def prices(self) -> list[dict[str, Any]]:
        """The prices of tokens, for each API and for records of one, if they have them."""
        abouts = [b.describe() for b in self.asked.values()] + [b.about for b in self.recorded.values()]
        return [about["prices"] for about in abouts if about.get("prices")]

    def forget_asked(self) -> None:
        """Delete the replies of APIs that were kept for a run that continues this one: all are written now."""
        for backend in self.asked.values():
            self.print(printable(f"{backend.address}: {backend.spending.line()}"))
            backend.forget_answers()

    def table_columns(self) -> Columns:
        """``key``, ``label`` and each model's columns, with the model's name before theirs."""
        columns: Columns = {"key": ((), torch.int64), "label": ((), self.task.kind.answer_type)}
        for name, model in self.text_models.items():
            columns |= {f"{name}_{column}": row for column, row in model.columns(top_k=self.top_k).items()}
        return columns

    def answer_batch(self, batch: dict[str, Any], split: str) -> dict[str, Tensor]:
        """Answer a batch with each model."""
        rows = {name: batch[name] for name in ("id", "key", "label")}
        # Router heads were fitted on the routing slice: each fold is scored by the head that has not seen it.
        fold = fold_of(batch["unit"]) if split == "routing" else None
        for name, model in self.text_models.items():
            answers = model.answer_columns(
                batch[name],
                self.class_order[name],
                temperature=self.temperature,
                convention=self.flops_convention,
                fold=fold,
                top_k=self.top_k,
            )
            rows |= {f"{name}_{column}": values for column, values in answers.items()}
        return rows

    def _answer(self, model: TextModel, rows: dict[str, Any], name: str) -> Answer:
        """A model's answer and loss, with the classes in the order of the data's."""
        order, label = self.class_order[name], rows["label"]
        if not self.task.kind.chooses or order == [*range(len(order))]:
            return super()._answer(model, rows, name)
        places = torch.tensor(order, device=label.device)
        label = torch.where(label < 0, label, places[label.clamp_min(0)])
        return model.ordered(super()._answer(model, rows | {"label": label}, name), order)

    def loader_names(self, first: str, count: int) -> list[str]:
        """The second loader has held-out examples, on which thresholds are chosen."""
        if count > 2:
            raise InputError(f"Give a loader and perhaps one of held-out examples, but not {count} loaders.")
        return [first, "routing"][:count]

    def predicted(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The columns of :meth:`table_columns` but ``key`` and ``label``; ``<name>_text`` for generated texts."""
        rows: dict[str, Any] = self.answer_batch(batch, "predict")
        rows = {name: values for name, values in rows.items() if name not in ("key", "label")}
        for name, model in self.text_models.items() if self.task.kind.generates else ():
            rows[f"{name}_text"] = model.texts(rows.pop(f"{name}_ids"))
        return rows

    def gather_tables(self) -> dict[str, dict[str, Tensor]]:
        """The answers to each split from all processes, checked to be complete and finite."""
        tables = super().gather_tables()
        if self.data is None and "routing" in tables:
            evaluated = next(table["key"] for split, table in tables.items() if split != "routing")
            if not len(evaluated):
                raise InputError("The first loader has no examples, so there is nothing to evaluate.")
            check_apart(evaluated, evaluated[:0], tables["routing"]["key"])
        for table in tables.values():
            for name in self.models:
                if self.task.kind.generates:
                    check_finite(table[f"{name}_scores"], f"token scores of {self.paths[name]}")
                else:
                    check_logits(
                        table[f"{name}_logits"], f"logits of {self.paths[name]}", self.task.kind.has_candidates
                    )
        return tables

    def say_how_to_use(self, summary: JointSummary, thresholds: Manifest | None) -> None:
        """Print which of two models to use, with commands if both run here and commands read the evaluated file."""
        file, columns = getattr(self.data, "files", {}).get(summary.evaluated_on, ""), getattr(self.data, "text", [])
        if len(self.models) < len(self.paths) or not columns or not Path(file).is_file():
            file = ""
        own = self.text_models["swift"].manifest if "swift" in self.models else None
        path = self.hparams["thresholds"] or str(Path(self.hparams["output"]) / FILENAME)
        print_commands(summary, file, columns, thresholds_option(own, thresholds, path))

    def answers(self, name: str, split: str, table: dict[str, Tensor]) -> Records:
        """The answers of a model, or of its backend, to the rows of a split's ``table``."""
        if name in self.models:
            columns = {column.removeprefix(f"{name}_"): values for column, values in table.items()}
            records = self.text_models[name].records(columns)
            if records.texts is not None and (num_cut := int((columns["ids"][:, -1] >= 0).sum())):
                notice(
                    "cut-answers",
                    f"{num_cut} of {len(records.texts)} texts of '{self.paths[name]}' on '{split}' reached the limit "
                    f"of {columns['ids'].shape[1]} tokens and may be cut. Raise --data.max_target_length.",
                )
            return records
        if len(examples := self.data.examples(split)) > len(table["id"]):
            examples = examples.take(torch.isin(examples.id, table["id"]))
        if name in self.recorded:
            return self.recorded[name].answer(examples)
        return ask_once(self.backends[name], examples, self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint: this module has no weights of its own."""
        raise InputError(
            f"{type(self).__name__} has no weights of its own, so it cannot load --ckpt_path: the checkpoint is of "
            "another class. Give it as a model: --model.swift_model, --model.super_model or --model.model."
        )


def check_scored(swift: Records, path: str, task: TextTask, heads: list[str]) -> None:
    """Raise an :class:`InputError` for a Swift's answers without anything that could route."""
    remote = "If it is behind an API, its server gives no log-probabilities."
    if task.kind.generates and swift.scores is None:
        raise InputError(
            f"'{path}' has texts but no scores of their tokens, and a Swift routes by these. Only a Super may be a "
            f"table of bare texts; `elang score` keeps the scores. {remote}"
        )
    if not task.kind.generates and swift.logits is None:
        raise InputError(
            f"'{path}' has no logits, and a Swift's scores are computed from its logits. Only a Super may be a table "
            f"of bare answers. {remote}"
        )
    if not heads and not task.kind.scores:
        raise InputError(
            f"Energy means nothing for a regression's single output, and '{path}' has no router head to route by. "
            "Train the Swift with SwiftModule, and give it as a model."
        )
