"""Evaluating joint inference: a Swift and a Super on a whole data set, at all thresholds at once."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.backends import DType
from elang.backends.flops import FlopsConvention
from elang.backends.text_model import TextModel
from elang.data.examples import check_held_out
from elang.errors import InputError
from elang.evaluation.pair import ROUTING_SLICE, PairAnswers, Thresholds, choose_thresholds, pair_answers
from elang.evaluation.report.console import print_summary
from elang.evaluation.report.files import write_report
from elang.evaluation.slices import check_apart, check_manifest_apart, describe_slice
from elang.evaluation.statements import report_dropped, report_replaced
from elang.evaluation.summarize import Curves, all_curves, summarize_pair
from elang.evaluation.summary import EvaluatedPair, JointSummary
from elang.evaluation.units import Cost
from elang.method.deferral import route
from elang.method.quality.registry import QUALITIES, QualityName
from elang.method.scores import DEFAULT_SCORE, SEQUENCE_DEFAULT, AskedScore
from elang.models.answering import EvaluationModule, check_scored
from elang.models.costs import PairCosts, measured
from elang.notices import notice, write_made
from elang.records.manifest import Manifest, known_name
from elang.tasks.kinds import check_qualities, text_targets
from elang.tasks.sampling import Sampling
from elang.tasks.text_task import TaskFields


class JointModule(EvaluationModule):
    """Evaluates a pair: exact curves for all scores, thresholds from a held-out slice, records, table and plot.

    Args:
        swift_model: The Swift: a folder, a ``.ckpt``, a hub id (``owner/name@revision``), or a records file with
            logits.
        super_model: The Super: the same; as records, or behind an API (docs/super.md), it may be any black box.
        label_names: The data's classes; the command line takes them from the data.
        task: :meth:`elang.tasks.text_task.TextTask.plain`; the command line takes it from the data.
        quality: Metrics, the first one chooses the thresholds; by default the task's own.
        output: Folder for the results.
        thresholds: A threshold file (``elang.json``) to report on. By default thresholds are chosen on the held-out
            slice; without a slice they are the Swift's own.
        temperature: Temperature of the scores; by default the Swift's own.
        flops_convention: ``exact`` (true lengths, attention counted) or ``paper`` (2 x weights x 128 tokens).
        super_flops: FLOPs of one answer of a black-box Super whose records do not have them.
        cost: What curves, thresholds and the report count: ``flops``; ``seconds``, measured at the best batch size, an
            input's by its share of the FLOPs; or ``money``: of a model behind an API by its prices, of one that runs
            here by its seconds.
        hour_price: The price of an hour of the machine on which models run here, in the currency of the prices.
        latency: Also measure both models' seconds, at batch size 1 and at the best batch size.
        generate: Text-to-text models answer by free generation, matched with the task's answers.
        num_beams: Beams of generated texts; by default each model's own setting.
        static_cache: Generate with a cache of fixed size.
        sampling: Draw texts instead of the most probable tokens, as ``"{temperature: 0.7, top_p: 0.9, seed: 1}"``.
        asked_scores: Also these scores of the Swift's texts, with passes of their own: ``p_true``, ``agreement``.
        texts: Keep the inputs in the records, for `elang report` to show some.
        dtype: Precision of both models' weights; logits and scores are always float32.
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
        cost: Cost = "flops",
        hour_price: float | None = None,
        latency: bool = False,
        generate: bool = False,
        num_beams: int | None = None,
        static_cache: bool = False,
        sampling: Sampling | None = None,
        asked_scores: list[AskedScore] | None = None,
        texts: bool = True,
        dtype: DType = "float32",
    ) -> None:
        models = {"swift": swift_model, "super": super_model}
        options: dict[str, Any] = {"generate": generate, "num_beams": num_beams, "static_cache": static_cache}
        options |= {"sampling": sampling, "asked_scores": asked_scores}
        super().__init__(models, label_names, task, flops_convention=flops_convention, dtype=dtype, **options)
        self.save_hyperparameters()
        names: Any = [quality] if isinstance(quality, str) else quality or self.task.qualities
        unknown = [name for name in names if name not in QUALITIES]
        if unknown or not names:
            raise InputError(f"Unknown quality {unknown or names}; choose from {', '.join(QUALITIES)}.")
        check_qualities(names, self.task)
        self.qualities = [QUALITIES[name](len(label_names)) for name in dict.fromkeys(names)]
        self.output, self.asked_file = Path(output), f"{output}.asked.jsonl"
        if self.output.exists() and not self.output.is_dir():
            raise InputError(f"'{output}' is a file; --model.output must be a folder.")
        if super_flops is not None and not 0 < super_flops < math.inf:
            raise InputError(f"--model.super_flops must be a finite number above 0, but it is {super_flops}.")
        self.super_flops, self.latency, self.texts = super_flops, latency, texts
        self.costs = PairCosts(cost, hour_price, self.prices, [*self.asked.values()])
        swift = self._swift
        self.manifest = Manifest.read(thresholds) if thresholds else swift.manifest if swift else None
        if self.manifest is not None and swift is not None and swift.weights_sha256:
            self.manifest.check_weights(swift.weights_sha256, f"'{swift_model}'", swift.shown_examples)
        default = self.manifest.temperature if self.manifest is not None else 1.0
        self.temperature, self.explicit_thresholds = default if temperature is None else temperature, bool(thresholds)
        if thresholds is not None and self.temperature != default:
            raise InputError(
                f"The thresholds of '{thresholds}' are for the temperature {default}, but --model.temperature is "
                f"{self.temperature}. Leave it out, or choose thresholds anew without --model.thresholds."
            )

    @property
    def _swift(self) -> TextModel | None:
        return self.text_models.get("swift")

    @property
    def _weights(self) -> dict[str, str]:
        """Hash of each model's weights, empty if unknown."""
        recorded = {name: str(b.about.get("weights_sha256") or "") for name, b in self.recorded.items()}
        return {"swift": "", "super": ""} | recorded | {name: m.weights_sha256 for name, m in self.text_models.items()}

    def setup(self, stage: str) -> None:
        """Lock the output folder against other runs."""
        super().setup(stage)
        if stage != "predict":
            report_replaced(self.output)
            self.lock(self.output)

    def on_validation_start(self) -> None:
        """Refuse evaluation data that thresholds were chosen on, and a routing slice that a model was trained on."""
        data, evaluated = self.data, "test" if self.trainer.testing else "validation"
        if data is not None and evaluated in data.splits:
            self._check_evaluated(data, data.examples(evaluated).key)
        for name, path in self.paths.items() if data is not None and "routing" in data.splits else ():
            manifest = self.text_models[name].manifest if name in self.models else None
            about = vars(manifest) if manifest else self.recorded[name].about if name in self.recorded else {}
            check_held_out(data, about, f"'{path}'")

    on_test_start = on_validation_start

    def _check_evaluated(self, data: Any, key: Tensor) -> None:
        """Refuse to evaluate on the training file, or on the examples that given thresholds were chosen on."""
        has_slice = "routing" in data.splits
        train = [b.splits["train"].key for b in self.recorded.values() if "train" in b.splits]
        if "train" in data.splits and (has_slice or self.explicit_thresholds):
            train.append(data.examples("train").key)
        train_key = torch.cat([key[:0], *(part for part in train if part is not None)])
        check_apart(key, train_key, data.examples("routing").key if has_slice else key[:0])
        if self.manifest is not None and (self.explicit_thresholds or not has_slice):
            check_manifest_apart(key, self.manifest, statements=self.explicit_thresholds)

    def on_validation_epoch_end(self) -> None:
        """Compute the curves, choose thresholds on the routing slice, and write everything."""
        tables = self.gather_tables()
        if not (evaluated := next((split for split in ("test", "validation") if split in tables), "")):
            raise InputError("There is no evaluation data. Set --data.validation (or --data.test for `elang test`).")
        unanswered = [self.paths[name] for name, backend in self.recorded.items() if "train" not in backend.splits]
        if unanswered and tables.pop("routing", None) is not None:
            notice(
                "no-held-out-answers",
                f"'{unanswered[0]}' has no answers to the training file, so the held-out slice is left out and no "
                "thresholds are chosen on it.",
            )
        pairs = {split: self.pair(split, table) for split, table in tables.items() if len(table["id"])}
        curves = all_curves(pairs[evaluated], self.qualities)
        self.summary = self._summarize(pairs, evaluated, curves)
        for name, quality in self.summary.qualities.items():
            self.log(f"swift/{name}", quality.swift.quality, sync_dist=True)
            self.log(f"super/{name}", quality.super.quality, sync_dist=True)
        if self.writes:
            if self.thresholds_manifest is not None:
                self.thresholds_manifest.denial = self.summary.denial or ""
                report_dropped(self.output / "elang.json")
                self.thresholds_manifest.write(self.output / "elang.json")
            write_made(self.output)
            write_report(self.output, pairs, evaluated, curves, self.summary, self.label_names)
            self.forget_asked()
            print_summary(self.summary, self.output)
            self.say_how_to_use(self.summary, self.thresholds_manifest or self.manifest)
        self.trainer.strategy.barrier()

    def predicted(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Both models' answers and the ``score``; with a default threshold also ``deferred`` and the pair's answer."""
        rows, kind, manifest = super().predicted(batch), self.task.kind, self.manifest
        scores = kind.scores_of(rows.get("swift_logits"), rows.get("swift_scores"), self.temperature)
        scores |= {name: rows[f"swift_{name}"] for name in self.text_models["swift"].head_scores}
        score = self._default_score(scores)
        named = manifest.thresholds.get(score, {}) if manifest and manifest.temperature == self.temperature else {}
        rows["score"] = scores[score]
        if manifest is None or (name := known_name(named)) not in named:
            return rows
        rows["deferred"] = route(rows["score"], manifest.threshold(name, score))
        answer = "text" if kind.generates else "prediction"
        both = zip(rows["deferred"].tolist(), rows[f"swift_{answer}"], rows[f"super_{answer}"], strict=True)
        chosen = [theirs if deferred else ours for deferred, ours, theirs in both]
        return rows | {answer: chosen if kind.generates else torch.stack(chosen)}

    def pair(self, split: str, table: dict[str, Tensor]) -> PairAnswers:
        """Both models' answers to one split."""
        swift, super_ = self.answers("swift", split, table), self.answers("super", split, table)
        heads = self._swift.head_scores if self._swift else []
        check_scored(swift, self.paths["swift"], self.task, heads)
        if super_.flops is None and self.super_flops is not None:
            super_ = replace(super_, flops=torch.full((len(table["id"]),), self.super_flops, dtype=torch.float64))
        data = self.data
        targets = data.targets(split, table["id"]) if data is not None else {}
        if self.task.kind.generates:
            assert swift.texts is not None
            texts = self.references(split, table["id"]), swift.texts, super_.texts
            targets = text_targets([quality.name for quality in self.qualities], *texts, task=self.task)
        answers = pair_answers(
            table,
            swift,
            super_,
            task=self.task,
            temperature=self.temperature,
            heads=heads,
            prefix="swift_",
            targets=targets,
        )
        models = {} if self._sharded else self.text_models
        answers = self.costs.counted(answers, models, self.trainer.precision_plugin, paths=self.paths)
        if data is None:
            return answers
        examples = data.examples(split)
        rows = torch.searchsorted(examples.id, table["id"].cpu())
        if self.texts:
            answers.more["input"] = ["\n".join(examples.texts[row]) for row in rows.tolist()]
        return answers if examples.unit is None else replace(answers, unit=examples.unit[rows])

    def _summarize(self, pairs: dict[str, PairAnswers], evaluated: str, curves: Curves) -> JointSummary:
        thresholds, source = self._thresholds(pairs)
        answers, data = pairs[evaluated], self.data
        float32 = str(self.trainer.precision).startswith(("32", "64")) and self.hparams["dtype"] == "float32"
        about = EvaluatedPair(
            evaluated_on=evaluated,
            num_examples=len(answers),
            swift_model=self.paths["swift"],
            super_model=self.paths["super"],
            score=self._default_score(answers.scores),
            temperature=self.temperature,
            flops_convention=self.costs.convention(self.flops_convention),
            max_length=getattr(data, "max_length", None) if self._swift else None,  # of records it is not known
            thresholds=source if thresholds else "",
            thresholds_from=source,
            weights=self._weights,
            task="" if data is None else data.title(evaluated),
            sampling=self.sampling or None,
        )
        expected = len(answers) if data is None else self.num_examples(evaluated)
        rounding = 4e-7 if float32 else self.task.kind.rounding
        summary = summarize_pair(
            about, answers, curves, thresholds, self.label_names, expected, manifest=self.manifest, rounding=rounding
        )
        return replace(summary, latency=self._latency(answers))

    def _thresholds(self, pairs: dict[str, PairAnswers]) -> tuple[Thresholds, str]:
        """The thresholds to report on, and where they are from. New ones are also kept in a manifest."""
        self.thresholds_manifest: Manifest | None = None
        if "routing" in pairs and not self.explicit_thresholds:
            swift, held_out = self._swift, pairs["routing"]
            self.thresholds_manifest = self.new_manifest(
                label_names=swift.label_names if swift else self.label_names,
                task=(swift or self).task.plain(),
                score=self._default_score(held_out.scores),
                temperature=self.temperature,
                weights_sha256=swift.weights_sha256 if swift else "",
                num_beams=swift.num_beams if swift else 1,
                sampling=self.sampling,
                router=self.manifest.router if swift and self.manifest else {},
                thresholds=self.costs.named(choose_thresholds(held_out, self.qualities[0], ROUTING_SLICE)),
                chosen_on=describe_slice(held_out.key.cpu(), self._weights["super"]),
            )
            return self.thresholds_manifest.thresholds, f"the {ROUTING_SLICE}: {len(held_out)} examples"
        if self.manifest is not None and self.manifest.thresholds and self.temperature == self.manifest.temperature:
            return self.manifest.thresholds, "a slice of earlier data (threshold file)"
        return {}, "none: there is no held-out slice and no threshold file"

    def _latency(self, answers: PairAnswers) -> dict[str, Any] | None:
        """Seconds of both models at the median length, if they were asked for and can be measured."""
        if not self.latency:
            return None
        models = self.text_models
        if self._sharded or len(models) < 2:
            needed = "each model to fit one device" if self._sharded else "both models to run here"
            notice("no-latency", f"Latency was not measured: that needs {needed}.")
            return None
        return measured(models, answers, self.trainer.precision_plugin)

    def _default_score(self, scores: dict[str, Tensor]) -> str:
        """The score that the manifest names, or a default if the Swift does not have that one."""
        score = self.manifest.score if self.manifest else DEFAULT_SCORE
        return next(name for name in (score, DEFAULT_SCORE, SEQUENCE_DEFAULT, "router") if name in scores)
