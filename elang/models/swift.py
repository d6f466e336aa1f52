"""The Swift's training: task loss, distillation, energy margin and router head."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from elang.errors import InputError
from elang.evaluate import ROUTING_SLICE, PairAnswers, choose_thresholds, share_thresholds
from elang.losses import MARGINS, MarginKind, distillation
from elang.manifest import Manifest
from elang.metrics import ExampleTable
from elang.models.backbones import Answer
from elang.models.finetune import FinetuneModule
from elang.quality import QualityName
from elang.records import Records, read_records
from elang.scores import SCORES, all_scores, free_energy


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
        distill_temperature: Its temperature.
        margin_weight: Weight of the energy margin.
        margin: Its form: ``pairwise`` or ``ranking`` (of means) with a gap of 0.3, ``hinge`` (squared).
        router_weight: Weight of the router head's loss; it does not disturb the rest, whose features it detaches.
        hard: Which examples are hard: where only the Super is right (``gain``), or wherever the Swift is wrong
            (``error``, which needs no Super).
        score: The score that routes by default.
        temperature: Its temperature.
    """

    def __init__(
        self,
        model: str,
        label_names: list[str],
        super_records: str | None = None,
        layers: int | None = None,
        distill_weight: float = 1.0,
        distill_temperature: float = 2.0,
        margin_weight: float = 0.1,
        margin: MarginKind = "pairwise",
        router_weight: float = 1.0,
        hard: Literal["gain", "error"] = "gain",
        score: str = "free_energy",
        temperature: float = 1.0,
        lr: float = 5e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        freeze_embeddings: bool = False,
        quality: QualityName = "accuracy",
        output: str | None = None,
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
        if score not in SCORES and not (score == "router" and router_weight > 0):
            raise InputError(
                f"Unknown score '{score}'; choose one of {', '.join(SCORES)}, or router with a --model.router_weight "
                "above 0."
            )
        self._has_router = router_weight > 0
        super().__init__(model, label_names, layers, lr, weight_decay, warmup, freeze_embeddings, quality, output)
        self.save_hyperparameters()
        self.super_records = super_records
        self.weights = {"distill": distill_weight, "margin": margin_weight, "router": router_weight}
        self.distill_temperature, self.margin, self.hard = distill_temperature, MARGINS[margin], hard
        self.score, self.temperature = score, temperature
        self.records: Records | None = None
        self.super_logits: Tensor
        self.super_prediction: Tensor

    def _wants_router(self) -> bool:
        return self._has_router

    def setup(self, stage: str) -> None:
        """Load the Super's answers and check that they are answers to this training file."""
        if stage != "fit" or self.super_records is None:
            return
        splits, about = read_records(self.super_records, self.label_names)
        if "train" not in splits:
            raise InputError(
                f"'{self.super_records}' has no answers to the training file, only to {', '.join(splits)}. Score it "
                "with `elang score`."
            )
        self.records = splits["train"]
        data: Any = getattr(self.trainer, "datamodule", None)
        for split in ("train", "routing") if data is not None else ():
            if split in data.splits:
                examples = data.examples(split)
                self.records.rows(examples.id, examples.key, f"The Super's records '{self.super_records}'")
        held_out = about.get("routing_fraction")
        if data is not None and held_out is not None and data.routing_fraction > held_out:
            raise InputError(
                f"--data.routing_fraction is {data.routing_fraction}, but the Super of '{self.super_records}' was "
                f"trained with {held_out}: part of the slice was trained on. Give {held_out} or less."
            )
        if self.records.logits is None and self.weights["distill"] > 0:
            raise InputError(
                f"'{self.super_records}' has predictions but no logits, which distillation needs. Set "
                "--model.distill_weight 0."
            )
        size = int(self.records.id.max()) + 1
        prediction = torch.full((size,), -1).index_copy(0, self.records.id, self.records.prediction)
        # Plain tensors, for DDP would send buffers round at every step.
        self.super_prediction = prediction
        if self.records.logits is not None:
            logits = torch.zeros(size, len(self.label_names)).index_copy(0, self.records.id, self.records.logits)
            self.super_logits = logits

    def on_fit_start(self) -> None:
        """Bring the Super's answers to the device."""
        if self.records is not None:
            self.super_prediction = self.super_prediction.to(self.device)
            if self.records.logits is not None:
                self.super_logits = self.super_logits.to(self.device)

    def loss(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The terms of the loss, each with its weight."""
        terms = super().loss(batch, answer)
        hard = answer.logits.argmax(-1) != batch["label"]
        if self.hard == "gain":
            hard = hard & (self.super_prediction[batch["id"]] == batch["label"])
        if self.weights["distill"] > 0:
            target = self.super_logits[batch["id"]]
            terms["distill"] = self.weights["distill"] * distillation(answer.logits, target, self.distill_temperature)
        if self.weights["margin"] > 0:
            energy = free_energy(answer.logits, self.temperature)
            terms["margin"] = self.weights["margin"] * self.margin(energy, hard)
        if self.classifier.router is not None and answer.pooled is not None:
            log_odds = self.classifier.router(answer.pooled, answer.logits)
            router_loss = F.binary_cross_entropy_with_logits(log_odds, hard.float())
            terms["router"] = self.weights["router"] * router_loss
        return terms

    def thresholds(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Choose thresholds for every score on the routing slice, answered by the final weights in float32."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None or "routing" not in getattr(data, "splits", ()):
            rank_zero_info("there is no routing slice: no thresholds were chosen")
            return {}
        table = self._answer(data.loader("routing"))
        scores = all_scores(table["logits"], self.temperature)
        if self._has_router:
            scores["router"] = table["router"]
        if self.records is None:
            return share_thresholds(scores, ROUTING_SLICE)
        rows = self.records.rows(table["id"], table["key"])
        swift_flops = self.classifier.flops(table["tokens"])
        unknown = torch.full_like(swift_flops, torch.nan)
        answers = PairAnswers(
            table["id"],
            table["key"],
            table["label"],
            table["logits"].argmax(-1),
            self.records.prediction[rows],
            scores,
            swift_flops,
            unknown if self.records.flops is None else self.records.flops[rows],
            {},
        )
        return choose_thresholds(answers, self.quality, ROUTING_SLICE)

    @torch.no_grad()
    def _answer(self, loader: Any) -> dict[str, Tensor]:
        """This process's batches of a split, gathered with those of all others."""
        integers = dict.fromkeys(("key", "label", "tokens"), ((), torch.int64))
        columns = integers | {
            "logits": ((len(self.label_names),), torch.float32),
            "router": ((), torch.float32),
        }
        table = ExampleTable(columns).to(self.device)
        self.classifier.eval()
        for batch in loader:
            if not len(batch["id"]):
                continue
            inputs = {name: value.to(self.device) for name, value in batch["model"].items()}
            answer = self.classifier(inputs)
            router = self.classifier.scores(answer).get("router", answer.logits[:, 0])
            row = {name: batch[name].to(self.device) for name in ("id", "key", "label")}
            table.update(**row, tokens=inputs["attention_mask"].sum(-1), logits=answer.logits, router=router)
        return table.compute()

    def manifest(self) -> Manifest:
        """Describe the finished Swift."""
        manifest = super().manifest()
        manifest.score, manifest.temperature = self.score, self.temperature
        return manifest
