"""The Swift's training: task loss, distillation, energy margin and router head."""

from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from elang.backends.backend import Answer
from elang.backends.generator import Seq2Seq
from elang.backends.loading.load import load_model
from elang.errors import InputError
from elang.evaluation.slices import slice_of
from elang.method.losses import MarginKind
from elang.method.quality.registry import QualityName
from elang.method.scores import BEFORE_DECODER, DEFAULT_SCORE, SEQUENCE_DEFAULT
from elang.models.finetune import FinetuneModule
from elang.models.objectives.hidden import HiddenStateObjective
from elang.models.objectives.labels import LabelObjective
from elang.models.objectives.objective import (
    Distill,
    Distillation,
    Hard,
    LossOptions,
    Margin,
    Objective,
    SuperAnswers,
    read_out_of_fold,
)
from elang.models.objectives.texts import TextObjective
from elang.models.routing_slice import answer_slice, fit_heads, slice_thresholds
from elang.notices import notice
from elang.records.manifest import Manifest
from elang.tasks.text_task import TaskFields, TextTask

# A router that reads one of these alone has its order.
SIMPLE = (DEFAULT_SCORE, SEQUENCE_DEFAULT)


class SwiftModule(FinetuneModule):
    """Fine-tunes the Swift: ``task + w_d * distillation + w_m * energy margin + w_h * hidden states``, then its router.

    A term whose weight is 0 is off. The Super's cached answers are enough (``elang score`` writes them); it is run
    beside the Swift only where hidden states are distilled. After training the router heads are fitted and thresholds
    chosen on the routing slice, and written with the model.

    Args:
        model: As in :class:`elang.FinetuneModule`, like all that is not listed here.
        label_names: Class names in order; the command line takes them from the data.
        super_records: The Super's answers to the training file (and to the transfer set, if there is one).
        layers: Keep only the first so many layers.
        task_weight: Weight of the task's own loss.
        distill_weight: Weight of the distillation from the Super's logits: by default 10, of generated texts 1.
        distill_temperature: Its temperature (not of tokens or texts, which are learned as they are).
        margin_weight: Weight of the margin between easy and hard examples. By default it is off: beside distillation
            no margin made a better pair (``benchmarks/quality/ablate.py``). 0.1 is a start without a Super.
        margin: Its form, of energies: ``pairwise`` or ``ranking`` (of means, COSEE) with a gap of 0.3, ``hinge``
            (squared); of confidences: ``confidence`` (pairwise, CascadeBERT); or ``gatekeeper``.
        router: Whether it gets router heads.
        hard: Which examples are hard: where only the Super is right (``gain``), wherever the Swift is wrong
            (``error``, which needs no Super), or by how much more probable the Super finds the label (``soft_gain``).
        out_of_fold: Records of Swifts that were trained without the examples (`elang crossfit` writes them): what is
            hard is told by them, not by this Swift, which comes to know its training file.
        hidden_weight: Weight of the distillation of the Super's hidden states, for which it is loaded.
        super_model: The Super, for that.
        layer_map: The Super's layer for the Swift's embeddings and each of its layers (0 its embeddings, -1 none); by
            default spread evenly.
        score: The score that routes by default: the router's where the routing slice shows that it is better than the
            largest probability (of generated texts ``nll_mean``), and else that; always in a regression, whose single
            output has no confidence. For an encoder-decoder those that start with ``encoder_`` decide before its
            decoder runs.
        temperature: Its temperature.
        detach_router: The encoder stays frozen to the head on its output (encoder-decoders).
        distill: Of models that generate texts: ``token``, from the Super's most probable tokens at each place of the
            reference (`elang score --model.top_k 8` keeps them, of the same vocabulary), or ``sequence``, from the
            Super's texts, which may be of any vocabulary.
    """

    def __init__(
        self,
        model: str,
        label_names: list[str],
        task: TaskFields | None = None,
        super_records: str | None = None,
        layers: int | None = None,
        task_weight: float = 1.0,
        distill_weight: float | None = None,
        distill_temperature: float = 2.0,
        margin_weight: float = 0.0,
        margin: MarginKind = "pairwise",
        router: bool = True,
        hard: Hard = "gain",
        out_of_fold: str | None = None,
        hidden_weight: float = 0.0,
        super_model: str | None = None,
        layer_map: list[int] | None = None,
        score: str | None = None,
        temperature: float = 1.0,
        lr: float = 5e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        freeze_embeddings: bool = False,
        quality: QualityName | None = None,
        output: str | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,  # noqa: A002 - the option's name
        detach_router: bool = True,
        label_smoothing: float = 0.0,
        num_beams: int | None = None,
        distill: Distill = "sequence",
    ) -> None:
        kind = TextTask.of(label_names, task).kind
        weight = kind.distill_weight if distill_weight is None else distill_weight
        self.loss_options = LossOptions(
            Distillation(weight=weight, temperature=distill_temperature, source=distill),
            Margin(weight=margin_weight, form=margin, hard=hard, temperature=temperature),
            task_weight=task_weight,
            hidden_weight=hidden_weight,
        )
        self.loss_options.check(super_records, super_model)
        self._has_router = router
        # The head on an encoder's output may learn whether the answer will do.
        self._needs_logits = (router and kind.has_candidates) or weight > 0 or margin_weight > 0
        shared: dict[str, Any] = {"layers": layers, "lr": lr, "weight_decay": weight_decay, "warmup": warmup}
        shared |= {"freeze_embeddings": freeze_embeddings, "quality": quality, "output": output, "compile": compile}
        shared |= {"gradient_checkpointing": gradient_checkpointing, "label_smoothing": label_smoothing}
        super().__init__(model, label_names, task, num_beams=num_beams, **shared)
        self.save_hyperparameters()
        self._score_given, self.score = score is not None, self._known_score(score)
        self.temperature, self.super_records = temperature, super_records
        self._prepare(detach_router, out_of_fold)
        self.hidden: HiddenStateObjective | None = None
        if hidden_weight > 0 and super_model is not None:
            self.hidden = HiddenStateObjective(self.classifier, load_model(super_model), layer_map)

    def _known_score(self, score: str | None) -> str:
        """The score that routes.

        Raises:
            InputError: If this Swift does not have it.
        """
        kind = self.task.kind
        score = score or kind.default_score
        known = [*kind.scores, *self.classifier.head_scores]
        if score not in known:
            why = "Energy means nothing for a regression's single output. " if not kind.scores else ""
            raise InputError(
                f"This Swift has no score '{score}'. {why}Choose one of {', '.join(known) or 'none'}; the router's "
                "need --model.router true."
            )
        return score

    def _prepare(self, detach_router: bool, out_of_fold: str | None) -> None:
        """Check what the task asks for, and set up the Swift's heads and what it learns without a Super."""
        kind, hard = self.task.kind, self.loss_options.margin.hard
        if not kind.scores and (self.super_records is None or hard != "gain"):
            raise InputError(
                "In a regression the router learns where the Super is nearer, so it needs --model.super_records and "
                "--model.hard gain."
            )
        if kind.generates and (hard == "soft_gain" or out_of_fold is not None):
            raise InputError("Tokens are hard by `gain` or `error`, and on the fly: leave out --model.out_of_fold.")
        # Of the held-out slice, once training is paid for.
        self.classifier.check_cost()
        for head in self.classifier.routers.values():
            # Of another Swift, which this one starts from.
            head.fitted.zero_()
        self.classifier.detach_encoder_head(detach_router)
        self.objective: Objective | None = None
        if self.super_records is None and not kind.generates:
            self.objective = LabelObjective(self.task, self.loss_options)
        self.super_answers: SuperAnswers | None = None

    # It answers the held-out slice.
    _fits_everywhere = True

    def configure_model(self) -> None:
        """Share the weights out over the processes, where the strategy does."""
        if self.device_mesh is not None and self.hidden is not None:
            raise InputError(
                "The distillation of hidden states needs both models whole on every device: set --model.hidden_weight "
                "0, or --trainer.strategy ddp."
            )
        super().configure_model()

    @property
    def readers(self) -> dict[str, Any]:
        """How the model reads, and the Super where it is run beside it."""
        return super().readers | ({"super": self.hidden.super_.reader} if self.hidden is not None else {})

    def setup(self, stage: str) -> None:
        """Load the Super's answers and check that they are answers to this training file."""
        data: Any = getattr(self.trainer, "datamodule", None)
        super().setup(stage)
        if stage != "fit":
            return
        if self.score in ("router", *BEFORE_DECODER) and data is not None and "routing" not in data.splits:
            raise InputError(
                f"The score '{self.score}' is learned on a slice of the training file: set --data.routing_fraction "
                "above 0, or another --model.score."
            )
        if self.super_records is not None:
            self.super_answers = SuperAnswers.read(self.super_records, self.task, data)
        self.objective = self._make_objective(data)
        if self.hidden is not None and data is not None:
            self.hidden.compare_tokenizers(self.classifier.reader, data.examples("train").texts)

    def _make_objective(self, data: Any) -> Objective:
        """What is learned besides the task, once the Super's answers are there."""
        if self.task.kind.generates:
            generator = cast(Seq2Seq, self.classifier)
            longest = getattr(data, "max_target_length", generator.max_new_tokens)
            return TextObjective(generator, self.loss_options, self.super_answers, max_target_length=longest)
        path: str | None = self.hparams["out_of_fold"]
        return LabelObjective(
            self.task,
            self.loss_options,
            self.super_answers,
            out_of_fold=read_out_of_fold(path, self.task, data) if path else None,
            file_rows=data.file_rows if getattr(data, "transfer", None) else None,
        )

    def _check_transfer(self, data: Any) -> None:
        if self.super_records is None or self.loss_options.distillation.weight == 0:
            raise InputError(
                "--data.transfer is text without labels, which is learned from the Super: set --model.super_records "
                "and a --model.distill_weight above 0."
            )

    def on_fit_start(self) -> None:
        """Bring the Super's answers to the device."""
        if self.objective is not None:
            self.objective.to(self.device)
        if self.hidden is not None:
            self.hidden.super_.to(self.device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step of training."""
        assert self.objective is not None
        batch["label"] = self.objective.labels(batch)
        return super().training_step(batch, batch_idx)

    def loss(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The terms of the loss, each with its weight."""
        assert self.objective is not None
        terms = {name: self.loss_options.task_weight * term for name, term in super().loss(batch, answer).items()}
        terms |= self.objective.terms(batch, answer)
        if self.hidden is not None:
            assert answer.states is not None
            distance = self.hidden(answer.states, batch["model"]["attention_mask"], batch["super"])
            terms["hidden"] = self.loss_options.hidden_weight * distance
        return terms | self.objective.encoder_terms(batch, answer)

    def thresholds(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Fit the router heads and choose thresholds for every score, both on the routing slice.

        It is answered by the final weights in float32.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        self.router_report: dict[str, dict[str, Any]] = {}
        self._chosen_on: dict[str, Any] = {}
        model = self.classifier
        if data is None or "routing" not in getattr(data, "splits", ()):
            notice(
                "no-routing-slice",
                "There is no routing slice, so no router heads were fitted and no thresholds were chosen. Set "
                "--data.routing_fraction above 0 to have them.",
            )
            model.drop_routers()
            return {}
        assert self.objective is not None
        table = answer_slice(model, data.loader("routing"), self.temperature, device=self.device)
        self._chosen_on = slice_of(table["key"].cpu())
        super_ = None if self.super_answers is None else self.super_answers.to_rows(table)
        targets = self.objective.targets(table, data, self.quality.name, super_=super_)
        gain, expected = self.objective.gain(table, targets, super_)
        self.router_report, heads = fit_heads(model, table, gain, expected=expected)
        router = self.router_report.get("router")
        if router is not None and not self._score_given and router["reads"] not in SIMPLE:
            self.score = "router"
        return slice_thresholds(
            model, table, super_, quality=self.quality, targets=targets, heads=heads, temperature=self.temperature
        )

    def manifest(self) -> Manifest:
        """Describe the finished Swift."""
        # Its thresholds come first: they choose the score.
        manifest = super().manifest()
        return replace(
            manifest,
            score=self.score,
            temperature=self.temperature,
            router=self.router_report,
            chosen_on=self._chosen_on,
        )
