"""The Swift's training: task loss, distillation, energy margin and router head."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from elang.data.format import TaskFields
from elang.errors import InputError
from elang.evaluate import ROUTING_SLICE, choose_thresholds, pair_answers, reward, share_thresholds
from elang.losses import MARGINS, MarginKind, distillation
from elang.manifest import Manifest
from elang.metrics import ExampleTable
from elang.models.evaluation import answer_batch, answer_columns, generated_batch, generated_columns
from elang.models.finetune import FinetuneModule, check_held_out
from elang.models.seq2seq import Seq2Seq
from elang.models.text_lessons import Distill, TextLessons
from elang.models.text_model import Answer
from elang.models.text_to_text import TextToText
from elang.quality import QualityName
from elang.records import Records, read_records
from elang.scores import SCORES, all_scores, free_energy
from elang.sequence_scores import SEQUENCE_DEFAULT, SEQUENCE_SCORES


class SwiftModule(FinetuneModule):
    """Fine-tunes the Swift: ``task + w_d * distillation + w_m * energy margin + w_r * router``.

    A term whose weight is 0 is off. The Super itself is never loaded: its cached answers are enough
    (``elang score`` writes them). After training, thresholds are chosen on the routing slice and written with the
    model.

    Args:
        model: As in :class:`elang.FinetuneModule`, like all that is not listed here.
        label_names: Class names in order; the command line takes them from the data.
        super_records: The Super's answers to the training file.
        layers: Keep only the first so many layers.
        distill_weight: Weight of the distillation from the Super's logits.
        distill_temperature: Its temperature (not of tokens or texts, which are learned as they are).
        margin_weight: Weight of the energy margin.
        margin: Its form: ``pairwise`` or ``ranking`` (of means) with a gap of 0.3, ``hinge`` (squared).
        router_weight: Weight of the router head's loss; it does not disturb the rest, whose features it detaches. Of a
            model that generates texts, whose heads are fitted after all else, only whether it is 0 matters.
        hard: Which examples are hard: where only the Super is right (``gain``), or wherever the Swift is wrong
            (``error``, which needs no Super).
        score: The score that routes by default: the free energy; in a regression, where energy means nothing, the
            router's; of generated texts that of the router before the decoder or, without heads, ``nll_mean``. For an
            encoder-decoder those that start with ``encoder_`` decide before its decoder runs.
        temperature: Its temperature.
        detach_router: The encoder stays frozen to the head on its output (encoder-decoders).
        distill: Of models that generate texts: ``token``, from the Super's most probable tokens at each place of the
            reference (`elang score --model.top_k 8` keeps them, of the same vocabulary), or ``sequence``, from the
            Super's texts, which may be of any vocabulary. There the router heads learn after all else, on a slice of
            the training file that is held out for them.
    """

    def __init__(
        self,
        model: str,
        label_names: list[str],
        task: TaskFields | None = None,
        super_records: str | None = None,
        layers: int | None = None,
        distill_weight: float = 1.0,
        distill_temperature: float = 2.0,
        margin_weight: float = 0.1,
        margin: MarginKind = "pairwise",
        router_weight: float = 1.0,
        hard: Literal["gain", "error"] = "gain",
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
        for name, weight in (
            ("distill", distill_weight),
            ("margin", margin_weight),
            ("router", router_weight),
        ):
            if weight < 0:
                raise InputError(f"--model.{name}_weight must be 0 (off) or positive, but it is {weight}.")
        if super_records is None and (distill_weight > 0 or hard == "gain"):
            raise InputError(
                "Distillation and hard='gain' need the Super's answers, but --model.super_records is not set. Make "
                "them with `elang score`, or set --model.distill_weight 0 --model.hard error."
            )
        self._has_router = router_weight > 0
        super().__init__(
            model,
            label_names,
            task,
            layers,
            lr,
            weight_decay,
            warmup,
            freeze_embeddings,
            quality,
            output,
            gradient_checkpointing,
            compile,
            label_smoothing,
            num_beams,
        )
        self.save_hyperparameters()
        regression = self.task.problem == "regression"
        scores = {"regression": [], "sequence": SEQUENCE_SCORES}.get(self.task.problem, SCORES)
        # Of generated texts the routers alone were better than chance, and the one before the decoder spares it.
        texts = "encoder_router" if self._has_router else SEQUENCE_DEFAULT
        score = score or {"regression": "router", "sequence": texts}.get(self.task.problem, "free_energy")
        known = [*scores, *self.classifier.head_scores]
        if score not in known:
            why = "Energy means nothing for a regression's single output. " if regression else ""
            raise InputError(
                f"This Swift has no score '{score}'. {why}Choose one of {', '.join(known) or 'none'}; the router's "
                "need a --model.router_weight above 0."
            )
        if regression and (super_records is None or hard == "error"):
            raise InputError(
                "In a regression the router learns where the Super is nearer, so it needs --model.super_records and "
                "--model.hard gain."
            )
        if isinstance(self.classifier, TextToText):
            self.classifier.detach = detach_router
        self.super_records = super_records
        self.weights = {"distill": distill_weight, "margin": margin_weight, "router": router_weight}
        self.distill_temperature, self.margin, self.hard = distill_temperature, MARGINS[margin], hard
        self.score, self.temperature = score, temperature
        self.lessons: TextLessons | None = None
        self.super_vocabulary: str | None = None
        self.records: Records | None = None
        self.super_logits: Tensor
        self.super_prediction: Tensor

    def _wants_router(self) -> bool:
        return self._has_router

    def _wants_logits(self) -> bool:
        return any(self.weights.values())

    def setup(self, stage: str) -> None:
        """Load the Super's answers and check that they are answers to this training file."""
        super().setup(stage)
        if stage != "fit":
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.task.problem == "sequence" and self.classifier.heads and not data.router_fraction:
            raise InputError(
                "The router heads learn on a slice of the training file: set --data.router_fraction above 0, or "
                "--model.router_weight 0 to have none."
            )
        if self.super_records is not None:
            self._read_super(self.super_records, data)
        if isinstance(self.classifier, Seq2Seq):
            options = self.hparams
            self.lessons = TextLessons(
                self.classifier,
                self.records,
                self.super_records,
                self.weights,
                options["distill"],
                options["margin"],
                self.hard,
                self.temperature,
                getattr(data, "max_target_length", self.classifier.max_new_tokens),
                self.super_vocabulary == self.classifier.vocabulary,
            )
        elif self.records is not None:
            self._keep_super(self.records)

    def _read_super(self, path: str, data: Any) -> None:
        splits, about = read_records(path, self.label_names, self.task.problem)
        if "train" not in splits:
            raise InputError(
                f"'{path}' has no answers to the training file, only to {', '.join(splits)}. Score it "
                "with `elang score`."
            )
        self.records = splits["train"]
        for split in ("train", "routing", "router") if data is not None else ():
            if split in data.splits:
                examples = data.examples(split)
                self.records.rows(examples.id, examples.key, f"The Super's records '{path}'")
        self.super_vocabulary = about.get("vocabulary")
        if data is not None:
            check_held_out(data, about, f"the Super of '{path}'", router=bool(self.classifier.heads))

    def _keep_super(self, records: Records) -> None:
        """Lay the Super's answers out by id."""
        if records.logits is None and self.weights["distill"] > 0:
            raise InputError(
                f"'{self.super_records}' has predictions but no logits, which distillation needs. Set "
                "--model.distill_weight 0."
            )
        size, answers = int(records.id.max()) + 1, records.prediction
        prediction = torch.full((size,), -1, dtype=answers.dtype).index_copy(0, records.id, answers)
        # Plain tensors, for DDP would send buffers round at every step.
        self.super_prediction = prediction
        if records.logits is not None:
            logits = torch.zeros(size, len(self.label_names)).index_copy(0, records.id, records.logits)
            self.super_logits = logits

    def on_fit_start(self) -> None:
        """Bring the Super's answers to the device."""
        if self.records is not None and self.lessons is None:
            self.super_prediction = self.super_prediction.to(self.device)
            if self.records.logits is not None:
                self.super_logits = self.super_logits.to(self.device)

    def loss(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The terms of the loss, each with its weight."""
        terms = super().loss(batch, answer)
        if self.lessons is not None:
            return terms | self.lessons.terms(batch, answer)
        hard, importance = self._hard(batch, answer)
        # The head on the encoder's output learns what the decoder does, where it has the same classes.
        outputs = [answer.logits, *([answer.early] if self._same_classes(answer) and answer.early is not None else [])]
        if self.weights["distill"] > 0:
            target = self.super_logits[batch["id"]]
            if self.task.problem == "regression":
                close = [F.mse_loss(logits, target) for logits in outputs]
            else:
                close = [distillation(logits, target, self.distill_temperature) for logits in outputs]
            terms["distill"] = self.weights["distill"] * torch.stack(close).sum()
        if self.weights["margin"] > 0 and self.task.problem != "regression":
            gaps = [self.margin(free_energy(logits, self.temperature), hard) for logits in outputs]
            terms["margin"] = self.weights["margin"] * torch.stack(gaps).sum()
        if answer.pooled is not None:
            terms["router"] = self.weights["router"] * self._router_loss(batch, answer, hard, importance)
        return terms

    def _same_classes(self, answer: Answer) -> bool:
        own = self.task.problem == "choice" and not self.task.answers
        return answer.early is not None and answer.early.shape == answer.logits.shape and not own

    def _hard(self, batch: dict[str, Any], answer: Answer) -> tuple[Tensor, Tensor]:
        """Which examples of a batch are hard, and how much each of them matters, both ``(B,)``."""
        label, targets, problem = batch["label"], batch["targets"], self.task.problem
        prediction = answer.logits.detach()[:, 0].double() if problem == "regression" else answer.logits.argmax(-1)
        swift = reward(prediction, label, targets, problem)
        if self.hard == "error":
            return swift < 1, torch.ones_like(swift)
        gain = reward(self.super_prediction[batch["id"]], label, targets, problem) - swift
        # In a regression nearly every answer is a little nearer; what is at stake tells where it matters.
        importance = gain.abs() / gain.abs().mean().clamp_min(1e-12)
        return gain > 0, importance if problem == "regression" else torch.ones_like(gain)

    def _router_loss(self, batch: dict[str, Any], answer: Answer, hard: Tensor, importance: Tensor) -> Tensor:
        heads, pooled, early = self.classifier.heads, answer.pooled, answer.early
        terms = [heads["router"](pooled, answer.logits)]
        if early is not None:
            terms.append(heads["encoder_router"](pooled, early))
        losses = [F.binary_cross_entropy_with_logits(t, hard.to(t), importance.to(t)) for t in terms]
        if early is not None and self.task.problem == "regression":
            losses.append(F.mse_loss(early[:, 0], batch["label"].to(early)))
        elif early is not None and self._same_classes(answer):
            losses.append(F.cross_entropy(early, batch["label"]))
        elif early is not None:
            # Candidates of each example's own are no classes; the head tells whether the answer will do.
            losses.append(F.cross_entropy(early, hard.long()))
        return torch.stack(losses).sum()

    def thresholds(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Choose thresholds for every score on the routing slice, answered by the final weights in float32."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is not None and isinstance(self.classifier, Seq2Seq):
            self._fit_heads(self.classifier, data)
        if data is None or "routing" not in getattr(data, "splits", ()):
            rank_zero_info("there is no routing slice: no thresholds were chosen")
            return {}
        if isinstance(self.classifier, Seq2Seq):
            return self._sequence_thresholds(self.classifier, data)
        table = self._answer(data.loader("routing"))
        heads = {name: table[name] for name in self.classifier.head_scores}
        if self.records is None:
            return share_thresholds(all_scores(table["logits"], self.temperature) | heads, ROUTING_SLICE)
        rows = self.records.rows(table["id"], table["key"])
        super_ = Records(
            table["id"],
            self.records.prediction[rows],
            flops=None if self.records.flops is None else self.records.flops[rows],
        )
        swift = Records(table["id"], table["prediction"], table["logits"], flops=table["flops"])
        targets = data.targets("routing", table["id"])
        answers = pair_answers(
            table, swift, super_, self.task.problem, self.temperature, heads, table.get("early_flops"), targets
        )
        return choose_thresholds(answers, self.quality, ROUTING_SLICE)

    def _fit_heads(self, model: Seq2Seq, data: Any) -> None:
        """Fit the router heads of a model that generates texts, on their slice."""
        assert self.lessons is not None
        if model.heads:
            table = self._answer(data.loader("router"))
            self.lessons.fit_heads([self.quality.name], table, data.references("router", table["id"]))

    def _sequence_thresholds(self, model: Seq2Seq, data: Any) -> dict[str, dict[str, dict[str, Any]]]:
        assert self.lessons is not None
        table = self._answer(data.loader("routing"))
        heads = {name: table[name] for name in model.head_scores}
        targets, super_ = self.lessons.targets([self.quality.name], table, data.references("routing", table["id"]))
        if super_ is None:
            scores = dict(zip(SEQUENCE_SCORES, table["scores"].unbind(1), strict=True))
            return share_thresholds(scores | heads, ROUTING_SLICE)
        swift = Records(table["id"], torch.zeros_like(table["id"]), flops=table["flops"], scores=table["scores"])
        costs = (table["early_flops"], targets, table["score_flops"])
        answers = pair_answers(table, swift, super_, "sequence", self.temperature, heads, *costs)
        return choose_thresholds(answers, self.quality, ROUTING_SLICE)

    @torch.no_grad()
    def _answer(self, loader: Any) -> dict[str, Tensor]:
        """This process's batches of a split, gathered with those of all others."""
        value = torch.float64 if self.task.problem == "regression" else torch.int64
        model = self.classifier
        own = generated_columns(model, features=True) if isinstance(model, Seq2Seq) else answer_columns(model)
        columns = {"key": ((), torch.int64), "label": ((), value), **own}
        table = ExampleTable(columns).to(self.device)
        self.classifier.eval()
        order = list(range(len(self.label_names)))
        for batch in loader:
            if not len(batch["id"]):
                continue
            inputs = {name: column.to(self.device) for name, column in batch["model"].items()}
            row = {name: batch[name].to(self.device) for name in ("id", "key", "label")}
            if isinstance(model, Seq2Seq):
                table.update(**row, **generated_batch(model, inputs, features=True))
            else:
                table.update(**row, **answer_batch(model, inputs, order, self.temperature))
        return table.compute()

    def manifest(self) -> Manifest:
        """Describe the finished Swift."""
        manifest = super().manifest()
        manifest.score, manifest.temperature = self.score, self.temperature
        return manifest
