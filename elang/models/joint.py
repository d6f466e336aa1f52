"""Joint inference, evaluated: a Swift and a Super over a whole data set, at every threshold at once."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.backends.cost.flops import FlopsConvention
from elang.backends.fast.graphs import DType
from elang.backends.generator import Seq2Seq
from elang.errors import InputError
from elang.evaluation.cautions import cautions, check_apart, check_not_chosen_on, repeated, share_near_threshold
from elang.evaluation.curves import choose_thresholds
from elang.evaluation.pair import ROUTING_SLICE, PairAnswers, pair_answers
from elang.evaluation.report.console import print_summary
from elang.evaluation.report.files import write_report
from elang.evaluation.slices import slice_of
from elang.evaluation.statements import CONDITIONS, check_statements
from elang.evaluation.summary import length_bias, operating_points, summarize
from elang.locks import lock_for_all, unlock_output
from elang.method.bootstrap import compare_areas
from elang.method.quality.registry import QUALITIES, QualityName
from elang.method.quality.texts import signature
from elang.method.scores import DEFAULT_SCORE
from elang.method.token_scores import SEQUENCE_DEFAULT
from elang.models.answering import EvaluationModule
from elang.models.finetune import check_held_out
from elang.models.latency import pair_latency
from elang.notices import notice, write_made
from elang.records.manifest import Manifest
from elang.records.table import FORMAT
from elang.tasks.text_task import TaskFields
from elang.tasks.worth import check_qualities, text_targets


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
        swift = self.model("swift") if "swift" in self.models else None
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
        if data is not None:
            self._check_evaluated(data)
        for name, path in self.paths.items():
            manifest = self.model(name).manifest if name in self.models else None
            known = vars(manifest) if manifest else self.about.get(name, {})
            if data is not None and "routing" in data.splits:
                check_held_out(data, known, f"'{path}'")

    on_test_start = on_validation_start

    def _check_evaluated(self, data: Any) -> None:
        """Refuse to evaluate on the training file, or on the examples that given thresholds were chosen on."""
        evaluated = "test" if self.trainer.testing else "validation"
        if evaluated not in data.splits:
            return
        key, routing = data.examples(evaluated).key, "routing" in data.splits
        train = [found["train"].key for found in self.recorded.values() if "train" in found]
        if "train" in data.splits and (routing or self.explicit_thresholds):
            train.append(data.examples("train").key)
        known = torch.cat([key[:0], *(one for one in train if one is not None)])
        check_apart(key, known, data.examples("routing").key if routing else key[:0])
        if self.manifest is None or (routing and not self.explicit_thresholds):
            return
        fraction = self.manifest.routing_fraction
        check_not_chosen_on(key, self.manifest.chosen_on, "Thresholds were", fraction)
        for named in self.manifest.thresholds.values() if self.explicit_thresholds else ():
            for name, entry in named.items():
                if "statement" in entry:
                    whole = fraction if entry["chosen_on"].startswith("routing") else 0.0
                    check_not_chosen_on(key, entry, f"The threshold '{name}' was", whole)

    def on_validation_epoch_end(self) -> None:
        """Gather, sweep, choose thresholds on the routing slice, and write everything."""
        tables = self._gather()
        evaluated = next((split for split in ("test", "validation") if split in tables), None)
        if evaluated is None:
            raise InputError("There is no evaluation data. Set --data.validation (or --data.test for `elang test`).")
        unanswered = [self.paths[name] for name, found in self.recorded.items() if "train" not in found]
        if unanswered and tables.pop("routing", None) is not None:
            notice(
                "no-held-out-answers",
                f"'{unanswered[0]}' has no answers to the training file, so the held-out slice is left out and no "
                "thresholds are chosen on it.",
            )
        pairs = {split: self.pair(split, table) for split, table in tables.items() if len(table["id"])}
        self.summary = self._summarize(pairs, evaluated)
        for quality in self.qualities:
            for model in ("swift", "super"):
                self.log(
                    f"{model}/{quality.name}",
                    self.summary["qualities"][quality.name][model]["quality"],
                    sync_dist=True,
                )
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            if self.summary["thresholds"] and self.thresholds_manifest is not None:
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
        names = self.model("swift").head_scores if "swift" in self.models else []
        if not names and not self.task.kind.scores:
            raise InputError(
                f"Energy means nothing for a regression's single output, and '{self.paths['swift']}' has no router "
                "head to route by. Train the Swift with SwiftModule, and give it as a model."
            )
        if super_.flops is None and self.super_flops is not None:
            super_.flops = torch.full((len(table["id"]),), self.super_flops, dtype=torch.float64)
        data: Any = getattr(self.trainer, "datamodule", None)
        targets = data.targets(split, table["id"]) if data is not None else {}
        if sequence:
            assert swift.texts is not None
            wanted = [q.name for q in self.qualities]
            targets = text_targets(wanted, data.references(split, table["id"]), swift.texts, super_.texts)
        found = pair_answers(
            table,
            swift,
            super_,
            self.task.problem,
            self.temperature,
            {name: table[f"swift_{name}"] for name in names},
            table.get("swift_early_flops"),
            targets,
            swift.score_flops if sequence else table.get("swift_score_flops"),
        )
        if data is not None and (unit := data.examples(split).unit) is not None:
            found.unit = unit[torch.searchsorted(data.examples(split).id, table["id"].cpu())]
        if self.texts and data is not None:
            examples = data.examples(split)
            place = {int(i): row for row, i in enumerate(examples.id.tolist())}
            found.more["input"] = ["\n".join(examples.texts[place[i]]) for i in table["id"].tolist()]
        return found

    def _summarize(self, pairs: dict[str, PairAnswers], evaluated: str) -> dict[str, Any]:
        primary = self.qualities[0]
        self.thresholds_manifest: Manifest | None = None
        if "routing" in pairs and not self.explicit_thresholds:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            source = f"the {ROUTING_SLICE}: {len(pairs['routing'])} examples"
            swift = self.model("swift") if "swift" in self.models else None
            self.thresholds_manifest = Manifest(
                label_names=swift.label_names if swift else self.label_names,
                task=self.task.plain(),
                score=self._default_score(pairs["routing"]),
                temperature=self.temperature,
                weights_sha256=swift.weights_sha256 if swift else "",
                routing_fraction=data.routing_fraction,
                max_length=data.max_length,
                max_target_length=data.max_target_length,
                num_beams=swift.num_beams if isinstance(swift, Seq2Seq) else 1,
                router=self.manifest.router if swift and self.manifest else {},
                thresholds=choose_thresholds(pairs["routing"], primary, ROUTING_SLICE),
                chosen_on=slice_of(pairs["routing"].key.cpu()),
            )
            thresholds = self.thresholds_manifest.thresholds
        elif self.manifest is not None and self.manifest.thresholds and self.temperature == self.manifest.temperature:
            thresholds, source = self.manifest.thresholds, "a slice of earlier data (threshold file)"
        else:
            thresholds, source = {}, "none: there is no held-out slice and no threshold file"
        answers = pairs[evaluated]
        summary: dict[str, Any] = {
            "format": FORMAT,
            "evaluated_on": evaluated,
            "num_examples": len(answers),
            "swift_model": self.paths["swift"],
            "super_model": self.paths["super"],
            "score": self._default_score(answers),
            "temperature": self.temperature,
            "flops_convention": self.flops_convention,
            **({"max_length": length} if (length := self._max_length()) else {}),
            "thresholds": source if thresholds else "",
            "thresholds_from": source,
            "weights": {name: self._weights(name) for name in ("swift", "super")},
            "worth": answers.kind.worth(primary.name, answers.targets),
            "qualities": {q.name: summarize(answers, q, thresholds) for q in self.qualities},
            "operating_points": operating_points(answers, self.qualities, thresholds),
        }
        summary["cautions"] = cautions(answers, self.label_names, summary["worth"]["largest"])
        summary["cautions"] += repeated(answers.key, answers.unit)
        if summary["weights"]["swift"] == summary["weights"]["super"] != "":
            summary["cautions"].insert(0, "Swift and Super are the same model")
        if self.trainer.datamodule is not None and len(answers) < (all_ := self._expected(evaluated)):  # type: ignore[attr-defined]
            summary["cautions"].insert(0, f"only {len(answers)} of {all_} examples of '{evaluated}' were answered")
        summary["areas"] = compare_areas(answers.scores, answers.gain, summary["score"])
        # Thresholds are on the scale of their own temperature.
        if self.manifest is not None and self.temperature == self.manifest.temperature:
            worth = answers.gain / (summary["worth"]["largest"] or 1.0)
            conditions = {what: summary[what] for what in CONDITIONS if what in summary}
            summary["statements"] = check_statements(
                self.manifest,
                answers.key,
                answers.scores,
                worth,
                self._weights("super"),
                answers.unit,
                conditions,
            )
        if self.task.kind.generates:
            summary["signatures"] = {q.name: signature(q.name) for q in self.qualities}
            summary["lengths"] = length_bias(answers)
        routing = summary["score"]
        chosen = thresholds.get(routing, {}).get("parity")
        if chosen is not None and abs(float(chosen["threshold"])) != math.inf:
            whole = str(self.trainer.precision).startswith(("32", "64")) and self.hparams["dtype"] == "float32"
            distance = 4e-7 if whole else self.task.kind.rounding
            share = share_near_threshold(answers.scores[routing], float(chosen["threshold"]), distance)
            summary["within_rounding_of_threshold"] = {"distance": distance, "share": share}
        if self.latency and self._sharded:
            notice("no-latency", "Latency was not measured: that needs each model to fit one device.")
        elif self.latency and len(self.models) == 2:
            models = {name: self.model(name) for name in ("swift", "super")}
            columns: dict[str, Any] = answers.more
            tokens = {name: int(columns[f"{name}_tokens"].median()) for name in models}
            steps = {name: int(columns[f"{name}_steps"].median()) for name in models if f"{name}_steps" in columns}
            candidates = int((columns["swift_logits"] > -math.inf).sum(-1).median()) if not steps else 0
            # In the precision of the evaluation, which Lightning sets up for steps alone.
            with self.trainer.precision_plugin.forward_context():
                summary["latency"] = pair_latency(models, tokens, candidates, steps)
        elif self.latency:
            notice("no-latency", "Latency was not measured: that needs both models to run here.")
        return summary

    def _max_length(self) -> int | None:
        """Tokens that inputs are cut at, where the Swift runs here."""
        data: Any = getattr(self.trainer, "datamodule", None)
        return getattr(data, "max_length", None) if "swift" in self.models else None

    def _weights(self, name: str) -> str:
        """Hash of a model's weights, where it is known."""
        if name in self.models:
            return self.model(name).weights_sha256 or ""
        return str(self.about.get(name, {}).get("weights_sha256", ""))

    def _default_score(self, answers: PairAnswers) -> str:
        """The Swift's own choice; a Swift that is known from records alone has no heads to ask."""
        wanted = self.manifest.score if self.manifest else DEFAULT_SCORE
        return next(name for name in (wanted, DEFAULT_SCORE, SEQUENCE_DEFAULT, "router") if name in answers.scores)
