"""The Swift's training: task loss, distillation, margin between easy and hard examples, and router heads."""

from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from elang.backends.backend import Answer
from elang.backends.generation import Generation
from elang.backends.loading.load import load_model
from elang.backends.text_model import TextModel
from elang.errors import InputError
from elang.evaluation.slices import describe_slice
from elang.method.losses import MarginKind
from elang.method.quality.registry import QualityName
from elang.method.scores import ASKED_SCORES, BEFORE_DECODER, DEFAULT_SCORE, SEQUENCE_DEFAULT
from elang.models.finetune import FinetuneModule
from elang.models.objectives.hidden import HiddenStateObjective
from elang.models.objectives.labels import LabelObjective
from elang.models.objectives.objective import Distill, Hard, LossOptions, Objective, RecordedAnswers
from elang.models.objectives.texts import TextObjective
from elang.models.routing_slice import RoutingSlice
from elang.notices import notice
from elang.records.manifest import Manifest
from elang.tasks.text_task import TaskFields, TextTask


class SwiftModule(FinetuneModule):
    """Fine-tunes the Swift: ``task + w_d * distillation + w_m * margin + w_h * hidden states``, then its router.

    A term whose weight is 0 is off. The Super's recorded answers are enough (``elang score`` writes them); the Super
    itself only runs if hidden states are distilled. After training the router heads are fitted and thresholds are
    chosen, both on the routing slice, and written with the model.

    Args:
        model: As in :class:`elang.FinetuneModule`, like all options that are not listed here.
        label_names: Class names in order; the command line takes them from the data.
        super_records: The Super's answers to the training file (and to the transfer set, if there is one).
        task_weight: Weight of the task's own loss.
        distill_weight: Weight of the distillation from the Super's logits: by default 10, of generated texts 1.
        distill_temperature: Temperature of the logits (tokens and texts are learned as they are).
        margin_weight: Weight of the margin between easy and hard examples: by default 0.1, of generated texts and in a
            regression 0. Beside distillation it makes the pair neither better nor worse (docs/results.md).
        margin: Its form. Of energies: ``pairwise`` or ``ranking`` (of means, COSEE) with a gap of 0.3, ``hinge``
            (squared); of confidences: ``confidence`` (pairwise, CascadeBERT); or ``gatekeeper``.
        router: Whether it gets router heads.
        hard: Which examples are hard: where only the Super is right (``gain``), where the Swift is wrong (``error``,
            which needs no Super), or by how much more probable the label is to the Super (``soft_gain``).
        out_of_fold: Records of Swifts that were trained without the examples (`elang crossfit` writes them). They
            decide what is hard; this Swift comes to know its training file by heart.
        hidden_weight: Weight of the distillation of the Super's hidden states, for which the Super is loaded.
        super_model: The Super, for that.
        layer_map: The Super's layer for the Swift's embeddings and each of its layers (0 its embeddings, -1 none); by
            default spread evenly.
        score: The score that routes by default: the router's if it is better on the routing slice than the largest
            probability (of generated texts ``nll_mean``), otherwise that one; in a regression always the router's. For
            an encoder-decoder, scores that start with ``encoder_`` decide before its decoder runs.
        temperature: Temperature of the scores.
        detach_router: The head on an encoder-decoder's encoder does not train the encoder.
        distill: For models that generate texts: ``token`` learns the Super's most probable tokens at each position of
            the reference (`elang score --model.top_k 8` records them; both need the same vocabulary), ``sequence`` the
            Super's texts, with any vocabulary.
        lora: ``lora_rank`` and the others, as in :class:`elang.FinetuneModule`.
    """

    # All processes answer the routing slice after training.
    _gathers_everywhere = True
    # Whether the batches of a loader that is not elang's have the Super's logits.
    _super_known: bool | None = None

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
        margin_weight: float | None = None,
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
        **lora: Any,
    ) -> None:
        kind, self._has_router = TextTask.of(label_names, task).kind, router
        weight = kind.distill_weight if distill_weight is None else distill_weight
        gap_weight = kind.margin_weight if margin_weight is None else margin_weight
        losses: dict[str, Any] = {"task_weight": task_weight, "margin_weight": gap_weight, "margin": margin}
        losses |= {"distill_weight": weight, "distill_temperature": distill_temperature, "distill": distill}
        losses |= {"hidden_weight": hidden_weight, "hard": hard, "temperature": temperature}
        self.loss_options = self._options_given = LossOptions(**losses)
        self.loss_options.check(super_model)
        # An encoder's head may learn whether the answer is good enough, for which it needs the answer.
        self._needs_logits = (router and kind.has_candidates) or weight > 0 or gap_weight > 0
        shared: dict[str, Any] = {"layers": layers, "lr": lr, "weight_decay": weight_decay, "warmup": warmup}
        shared |= {"freeze_embeddings": freeze_embeddings, "quality": quality, "output": output, "compile": compile}
        shared |= {"gradient_checkpointing": gradient_checkpointing, "label_smoothing": label_smoothing}
        super().__init__(model, label_names, task, num_beams=num_beams, **shared, **lora)
        self.save_hyperparameters()
        RecordedAnswers.tell_larger(super_records, model, self.classifier)
        self.super_records, self.out_of_fold = super_records, out_of_fold
        self.temperature, self.score = temperature, score or kind.default_score
        self._check_task()
        self._prepare_heads(detach_router)
        self.objective: Objective | None = None  # with the Super's answers it is made in setup
        if super_records is None and not kind.generates:
            self.objective = LabelObjective(self.task, self.loss_options)
        self.hidden: HiddenStateObjective | None = None
        if hidden_weight > 0 and super_model is not None:
            self.hidden = HiddenStateObjective(self.classifier, load_model(super_model), layer_map)

    def _check_task(self) -> None:
        """Refuse options that this kind of task does not have."""
        kind, hard = self.task.kind, self.loss_options.hard
        if not kind.scores and hard != "gain":
            raise InputError("A regression's router learns where the Super is nearer: it needs --model.hard gain.")
        known = [*kind.scores, *self.classifier.ask_for(self.score)]
        if self.score not in known:
            known = [*kind.scores, *self.classifier.ask_for(*ASKED_SCORES)]
            why = "Energy means nothing for a regression's single output. " if not kind.scores else ""
            raise InputError(
                f"This Swift has no score '{self.score}'. {why}Choose one of {', '.join(known) or 'none'}; the "
                "router's need --model.router true."
            )
        if kind.generates and (hard == "soft_gain" or self.out_of_fold is not None):
            raise InputError("Generated texts take --model.hard gain or error, and no --model.out_of_fold.")

    def _prepare_heads(self, detached: bool) -> None:
        # The held-out slice needs the cost: fail before training rather than after it.
        self.classifier.check_cost()
        for head in self.classifier.routers.values():
            # The heads may come from another Swift, from which this one starts.
            head.fitted.zero_()
        self.classifier.detach_encoder_head(detached)

    def configure_model(self) -> None:
        """Shard the weights, if the strategy does that."""
        if self.device_mesh is not None and self.hidden is not None:
            raise InputError(
                "The distillation of hidden states needs both models whole on every device: set --model.hidden_weight "
                "0, or --trainer.strategy ddp."
            )
        super().configure_model()

    @property
    def text_models(self) -> dict[str, TextModel]:
        """The Swift, and the Super if it runs beside it."""
        return super().text_models | ({"super": self.hidden.super_} if self.hidden is not None else {})

    def setup(self, stage: str) -> None:
        """Load the Super's answers and check that they are answers to this training file."""
        super().setup(stage)
        if stage != "fit":
            return
        data = self.data
        self.loss_options, self._super_known = self._options_given, None
        if self.super_records is None and data is not None:
            if getattr(self.trainer, "fast_dev_run", False):
                self._learn_alone()
            self.loss_options.check_answered(self.task)
        self.score = self.hparams["score"] or self.task.kind.default_score
        if self.score in ("router", *BEFORE_DECODER) and "routing" not in getattr(data, "splits", ()):
            raise InputError(
                f"The score '{self.score}' is learned on a slice of the training file: set --data.routing_fraction "
                "above 0 in one of elang's data modules, or another --model.score."
            )
        answers, folds = self.super_records, self.out_of_fold
        super_ = RecordedAnswers.read(answers, self.task, data) if answers is not None else None
        if self.task.kind.generates:
            generator = cast(Generation, self.classifier)
            max_length = getattr(data, "max_target_length", generator.max_new_tokens)
            self.objective = TextObjective(generator, self.loss_options, super_, max_target_length=max_length)
        else:
            self.objective = LabelObjective(
                self.task,
                self.loss_options,
                super_,
                out_of_fold=RecordedAnswers.read(folds, self.task, data, out_of_fold=True) if folds else None,
                file_rows=data.file_rows if getattr(data, "transfer", None) else None,
            )
        if self.hidden is not None:
            texts = data.examples("train").texts if data is not None else []
            self.hidden.compare_tokenizers(self.classifier.reader, texts)

    def _learn_alone(self) -> None:
        """Learn without the Super's answers, and tell so."""
        if not self.loss_options.need_super:
            return
        notice(
            "no-super-answers",
            "The Super's answers are not known, so the Swift learns from labels alone: nothing is distilled, and hard "
            "examples are those that it gets wrong. Give 'super_logits' in the batches, or --model.super_records.",
        )
        self.loss_options = self.loss_options.alone()
        if not self.task.kind.generates:
            self.objective = LabelObjective(self.task, self.loss_options)

    def _check_batch(self, batch: dict[str, Any]) -> None:
        """Find out, from a loader's batch, whether the Super's answers are known; they must be in all or in none."""
        assert self.objective is not None
        known = self.objective.knows_super(batch)
        if known == self._super_known:
            return
        if self._super_known is not None:
            raise InputError("Some of the loader's batches have 'super_logits', and others do not. Give them in all.")
        if not known and self.hparams["distill_weight"]:
            raise InputError("Distillation needs 'super_logits' in the loader's batches, which Trainer.predict gives.")
        if not known:
            self._learn_alone()
        self._super_known = known

    def _check_transfer(self) -> None:
        if self.super_records is None or self.loss_options.distill_weight == 0:
            raise InputError(
                "--data.transfer is text without labels, which is learned from the Super: set --model.super_records "
                "and a --model.distill_weight above 0."
            )

    def on_fit_start(self) -> None:
        """Move the Super's answers, and the Super if it runs, to the device."""
        if self.objective is not None:
            self.objective.start(self.classifier, self.data, self.device)
        if self.hidden is not None:
            self.hidden.super_.to(self.device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step of training."""
        batch = self._batches.read(batch, self.text_models, labelled=False)
        if self.data is None:
            self._check_batch(batch)
        assert self.objective is not None
        batch["label"] = self.objective.labels(batch)
        if self.data is None:
            self._batches.check_labels(batch["label"], labelled=True)
        return super().training_step(batch, batch_idx)

    def loss(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The weighted terms of the training loss by name, each a scalar. Their sum is minimized."""
        assert self.objective is not None
        terms = {name: self.loss_options.task_weight * term for name, term in super().loss(batch, answer).items()}
        terms |= self.objective.terms(batch, answer)
        if self.hidden is not None:
            assert answer.states is not None
            distance = self.hidden(answer.states, batch["model"]["attention_mask"], batch["super"])
            terms["hidden"] = self.loss_options.hidden_weight * distance
        return terms

    def manifest(self) -> Manifest:
        """The finished Swift's manifest, with thresholds for every score.

        The router heads are fitted and the thresholds chosen on the routing slice, which the final weights answer in
        float32.
        """
        model, data, objective = self.classifier, self.data, self.objective
        self.router_report: dict[str, dict[str, Any]] = {}
        if "routing" not in getattr(data, "splits", ()):
            notice(
                "no-routing-slice",
                "There is no routing slice, so no router heads were fitted and no thresholds were chosen. Set "
                "--data.routing_fraction above 0 to have them, or give JointModule a second loader for thresholds.",
            )
            model.drop_routers()
            return replace(super().manifest(), score=self.score, temperature=self.temperature)
        assert objective is not None
        slice_ = RoutingSlice(model, data.loader("routing"), self.temperature, device=self.device)
        super_ = objective.super_rows(slice_.table)
        targets, gain, expected = objective.gain(slice_.table, super_, data, quality=self.quality.name)
        self.router_report = slice_.fit_heads(gain, expected)
        # A router that reads nothing but a default score has that score's order.
        reads = self.router_report.get("router", {}).get("reads", DEFAULT_SCORE)
        if self.hparams["score"] is None and reads not in (DEFAULT_SCORE, SEQUENCE_DEFAULT):
            self.score = "router"
        return replace(
            super().manifest(),
            temperature=self.temperature,
            score=self.score,
            router=self.router_report,
            thresholds=slice_.thresholds(super_, self.quality, targets),
            chosen_on=describe_slice(slice_.table["key"].cpu(), objective.answers.sha256 if objective.answers else ""),
        )
