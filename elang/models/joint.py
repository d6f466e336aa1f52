"""Joint inference, evaluated: a Swift and a Super over a whole data set, at every threshold at once."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.backends import DType
from elang.backends.flops import FlopsConvention
from elang.backends.seconds import pair_latency
from elang.backends.text_model import TextModel
from elang.data.examples import check_held_out
from elang.errors import InputError
from elang.evaluation.cautions import check_apart, check_manifest_apart
from elang.evaluation.pair import ROUTING_SLICE, Heads, PairAnswers, Thresholds, choose_thresholds, pair_answers
from elang.evaluation.report.console import print_summary
from elang.evaluation.report.files import write_report
from elang.evaluation.slices import slice_of
from elang.evaluation.statements import report_dropped
from elang.evaluation.summary import EvaluatedPair, JointSummary, summarize_pair
from elang.locks import lock_for_all, unlock_output
from elang.method.quality.registry import QUALITIES, QualityName
from elang.method.scores import DEFAULT_SCORE, SEQUENCE_DEFAULT
from elang.models.answering import EvaluationModule
from elang.notices import notice, write_made
from elang.records.manifest import Manifest
from elang.tasks.kinds import check_qualities, text_targets
from elang.tasks.text_task import TaskFields


class JointModule(EvaluationModule):
    """Evaluates a pair: exact curves for all scores, thresholds from a held-out slice, records, table and plot.

    Args:
        swift_model: The Swift: a folder, a ``.ckpt``, a hub id (``owner/name@revision``), or a records file with
            logits.
        super_model: The Super: the same; as records it may be any black box.
        label_names: The data's classes; the command line takes them from the data, like the next.
        task: What is asked, :meth:`elang.tasks.text_task.TextTask.plain`.
        quality: Metrics, the first one chooses the thresholds; by default the task's own.
        output: Folder for all that is written.
        thresholds: A threshold file (``elang.json``) to report on. By default thresholds are chosen on the held-out
            slice; without one they are the Swift's own.
        temperature: Of the scores; by default the Swift's own.
        flops_convention: ``exact`` (true lengths, attention counted) or ``paper`` (2 x weights x 128 tokens).
        super_flops: FLOPs of one answer of a black-box Super whose records do not say.
        latency: Measure both models' seconds, too, at batch 1 and at the best batch.
        generate: Text-to-text models answer by free generation, matched with the task's answers.
        num_beams: Hypotheses that generated texts are chosen from; by default each model's own setting.
        static_cache: Generate with a cache of fixed size.
        texts: Keep the inputs in the records, for `elang report` to show some.
        dtype: Precision of both models' weights; logits and scores are float32 in any.
    """

    def __init__(
        self,
        swift_model: str,
        super_model: str,
        label_names: list[str],
        task: TaskFields | None = None,
        quality: list[QualityName] | QualityName | None = None,
        output: str = "joint",
        thresholds: str | None = None,
        temperature: float | None = None,
        flops_convention: FlopsConvention = "exact",
        super_flops: float | None = None,
        latency: bool = False,
        generate: bool = False,
        num_beams: int | None = None,
        static_cache: bool = False,
        texts: bool = True,
        dtype: DType = "float32",
    ) -> None:
        models = {"swift": swift_model, "super": super_model}
        super().__init__(models, label_names, task, flops_convention, generate, num_beams, static_cache, dtype)
        self.save_hyperparameters()
        names: Any = [quality] if isinstance(quality, str) else quality or self.task.qualities
        unknown = [name for name in names if name not in QUALITIES]
        if unknown or not names:
            raise InputError(f"Unknown quality {unknown or names}; choose from {', '.join(QUALITIES)}.")
        check_qualities(names, self.task)
        self.qualities = [QUALITIES[name](len(label_names)) for name in names]
        self.output = Path(output)
        if self.output.exists() and not self.output.is_dir():
            raise InputError(f"'{output}' is a file; --model.output must be a folder.")
        if super_flops is not None and not 0 < super_flops < math.inf:
            raise InputError(f"--model.super_flops must be a finite number above 0, but it is {super_flops}.")
        self.super_flops, self.latency, self.texts = super_flops, latency, texts
        swift = self._swift
        self.manifest = Manifest.read(thresholds) if thresholds else swift.manifest if swift else None
        if self.manifest is not None and swift is not None and swift.weights_sha256:
            self.manifest.check_weights(swift.weights_sha256, f"'{swift_model}'")
        own = self.manifest.temperature if self.manifest is not None else 1.0
        self.temperature = own if temperature is None else temperature
        self.explicit_thresholds = thresholds is not None
        if thresholds is not None and self.temperature != own:
            raise InputError(
                f"The thresholds of '{thresholds}' are for the temperature {own}, but --model.temperature is "
                f"{self.temperature}. Leave it out, or choose thresholds anew without --model.thresholds."
            )

    @property
    def _swift(self) -> TextModel | None:
        """The Swift, where it is a model and not a table of its answers."""
        return self.model("swift") if "swift" in self.models else None

    def setup(self, stage: str) -> None:
        """Keep other runs from writing the same folder."""
        super().setup(stage)
        lock_for_all(self.trainer, self.output)

    def teardown(self, stage: str) -> None:
        """Let others write it again."""
        super().teardown(stage)
        unlock_output(self.output)

    def on_validation_start(self) -> None:
        """Refuse a routing slice that a model was trained on, and to evaluate on what thresholds were chosen on."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        self._check_evaluated(data)
        for name, path in self.paths.items() if "routing" in data.splits else ():
            manifest = self.model(name).manifest if name in self.models else None
            check_held_out(data, vars(manifest) if manifest else self.about.get(name, {}), f"'{path}'")

    on_test_start = on_validation_start

    def _check_evaluated(self, data: Any) -> None:
        """Refuse to evaluate on the training file, or on the examples that given thresholds were chosen on."""
        evaluated = "test" if self.trainer.testing else "validation"
        if evaluated not in data.splits:
            return
        key, routing = data.examples(evaluated).key, "routing" in data.splits
        train = [splits["train"].key for splits in self.recorded.values() if "train" in splits]
        if "train" in data.splits and (routing or self.explicit_thresholds):
            train.append(data.examples("train").key)
        known = torch.cat([key[:0], *(one for one in train if one is not None)])
        check_apart(key, known, data.examples("routing").key if routing else key[:0])
        if self.manifest is not None and (self.explicit_thresholds or not routing):
            check_manifest_apart(key, self.manifest, statements=self.explicit_thresholds)

    def on_validation_epoch_end(self) -> None:
        """Gather, sweep, choose thresholds on the routing slice, and write everything."""
        tables = self._gather()
        if not (evaluated := next((split for split in ("test", "validation") if split in tables), "")):
            raise InputError("There is no evaluation data. Set --data.validation (or --data.test for `elang test`).")
        unanswered = [self.paths[name] for name, splits in self.recorded.items() if "train" not in splits]
        if unanswered and tables.pop("routing", None) is not None:
            notice(
                "no-held-out-answers",
                f"'{unanswered[0]}' has no answers to the training file, so the held-out slice is left out and no "
                "thresholds are chosen on it.",
            )
        pairs = {split: self.pair(split, table) for split, table in tables.items() if len(table["id"])}
        self.summary = self._summarize(pairs, evaluated)
        for quality in self.qualities:
            read = self.summary.qualities[quality.name]
            self.log(f"swift/{quality.name}", read.swift.quality, sync_dist=True)
            self.log(f"super/{quality.name}", read.super.quality, sync_dist=True)
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            if self.thresholds_manifest is not None:
                report_dropped(self.output / "elang.json")
                self.thresholds_manifest.write(self.output / "elang.json")
            write_made(self.output)
            write_report(self.output, pairs, evaluated, self.qualities, self.summary, self.label_names)
            print_summary(self.summary, self.output)
        self.trainer.strategy.barrier()

    on_test_epoch_end = on_validation_epoch_end

    def pair(self, split: str, table: dict[str, Tensor]) -> PairAnswers:
        """Bring both models' answers to one split together."""
        swift, super_ = self.answers("swift", split, table), self.answers("super", split, table)
        sequence = self.task.kind.generates
        if sequence and swift.scores is None:
            raise InputError(
                f"'{self.paths['swift']}' has texts but no scores of their tokens, and a Swift routes by these. Only a "
                "Super may be a table of bare texts; `elang score` keeps the scores."
            )
        if not sequence and swift.logits is None:
            raise InputError(
                f"'{self.paths['swift']}' has no logits, and a Swift's scores are read off its logits. Only a Super "
                "may be a table of bare answers."
            )
        names = self._swift.head_scores if self._swift else []
        if not names and not self.task.kind.scores:
            raise InputError(
                f"Energy means nothing for a regression's single output, and '{self.paths['swift']}' has no router "
                "head to route by. Train the Swift with SwiftModule, and give it as a model."
            )
        if super_.flops is None and self.super_flops is not None:
            super_ = replace(super_, flops=torch.full((len(table["id"]),), self.super_flops, dtype=torch.float64))
        data: Any = getattr(self.trainer, "datamodule", None)
        targets = data.targets(split, table["id"]) if data is not None else {}
        if sequence:
            assert swift.texts is not None
            wanted = [q.name for q in self.qualities]
            targets = text_targets(wanted, data.references(split, table["id"]), swift.texts, super_.texts)
        answers = pair_answers(
            table,
            swift,
            super_,
            problem=self.task.problem,
            temperature=self.temperature,
            heads=Heads({name: table[f"swift_{name}"] for name in names}, table.get("swift_early_flops")),
            targets=targets,
        )
        if data is None:
            return answers
        examples = data.examples(split)
        rows = torch.searchsorted(examples.id, table["id"].cpu())
        if self.texts:
            answers.more["input"] = ["\n".join(examples.texts[row]) for row in rows.tolist()]
        return answers if examples.unit is None else replace(answers, unit=examples.unit[rows])

    def _summarize(self, pairs: dict[str, PairAnswers], evaluated: str) -> JointSummary:
        thresholds, source = self._thresholds(pairs)
        answers, data = pairs[evaluated], self.trainer.datamodule  # type: ignore[attr-defined]
        whole = str(self.trainer.precision).startswith(("32", "64")) and self.hparams["dtype"] == "float32"
        about = EvaluatedPair(
            evaluated_on=evaluated,
            num_examples=len(answers),
            swift_model=self.paths["swift"],
            super_model=self.paths["super"],
            score=self._default_score(answers),
            temperature=self.temperature,
            flops_convention=self.flops_convention,
            # Where the Swift does not run here, how its inputs were cut is not known.
            max_length=getattr(data, "max_length", None) if self._swift else None,
            thresholds=source if thresholds else "",
            thresholds_from=source,
            weights={name: self._weights(name) for name in ("swift", "super")},
        )
        summary = summarize_pair(
            about,
            answers,
            self.qualities,
            thresholds=thresholds,
            label_names=self.label_names,
            expected=len(answers) if data is None else self._expected(evaluated),
            manifest=self.manifest,
            rounding=4e-7 if whole else self.task.kind.rounding,
        )
        return replace(summary, latency=self._latency(answers))

    def _thresholds(self, pairs: dict[str, PairAnswers]) -> tuple[Thresholds, str]:
        """The thresholds to report on, and where they are from; those that are chosen here go into a manifest."""
        self.thresholds_manifest: Manifest | None = None
        if "routing" in pairs and not self.explicit_thresholds:
            swift, held_out, data = self._swift, pairs["routing"], self.trainer.datamodule  # type: ignore[attr-defined]
            self.thresholds_manifest = Manifest(
                label_names=swift.label_names if swift else self.label_names,
                task=self.task.plain(),
                score=self._default_score(held_out),
                temperature=self.temperature,
                weights_sha256=swift.weights_sha256 if swift else "",
                routing_fraction=data.routing_fraction,
                max_length=data.max_length,
                max_target_length=data.max_target_length,
                num_beams=swift.num_beams if swift else 1,
                router=self.manifest.router if swift and self.manifest else {},
                thresholds=choose_thresholds(held_out, self.qualities[0], ROUTING_SLICE),
                chosen_on=slice_of(held_out.key.cpu()),
            )
            return self.thresholds_manifest.thresholds, f"the {ROUTING_SLICE}: {len(held_out)} examples"
        if self.manifest is not None and self.manifest.thresholds and self.temperature == self.manifest.temperature:
            return self.manifest.thresholds, "a slice of earlier data (threshold file)"
        return {}, "none: there is no held-out slice and no threshold file"

    def _latency(self, answers: PairAnswers) -> dict[str, Any] | None:
        """Seconds of both models at the median length, where they are asked for and both run here."""
        if not self.latency:
            return None
        if self._sharded or len(self.models) < 2:
            needed = "each model to fit one device" if self._sharded else "both models to run here"
            notice("no-latency", f"Latency was not measured: that needs {needed}.")
            return None
        models = {name: self.model(name) for name in ("swift", "super")}
        columns: dict[str, Any] = answers.more
        tokens = {name: int(columns[f"{name}_tokens"].median()) for name in models}
        steps = {name: int(columns[f"{name}_steps"].median()) for name in models if f"{name}_steps" in columns}
        candidates = int((columns["swift_logits"] > -math.inf).sum(-1).median()) if not steps else 0
        # In the precision of the evaluation, which Lightning sets up for steps alone.
        with self.trainer.precision_plugin.forward_context():
            return pair_latency(models, tokens, candidates, steps)

    def _weights(self, name: str) -> str:
        """Hash of a model's weights, where it is known."""
        if name in self.models:
            return self.model(name).weights_sha256 or ""
        return str(self.about.get(name, {}).get("weights_sha256", ""))

    def _default_score(self, answers: PairAnswers) -> str:
        """The Swift's own choice; a Swift that is known from records alone has no heads to ask."""
        wanted = self.manifest.score if self.manifest else DEFAULT_SCORE
        return next(name for name in (wanted, DEFAULT_SCORE, SEQUENCE_DEFAULT, "router") if name in answers.scores)
