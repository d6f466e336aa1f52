"""The Swift's training: task loss, distillation, energy margin and router head."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from elang.backends.columns import answer_batch, answer_columns, generated_batch, generated_columns
from elang.backends.generator import Seq2Seq
from elang.backends.label_decoder import TextToText
from elang.backends.loading.load import load_model
from elang.backends.text_model import Answer
from elang.data.slices import fold_of, source_of
from elang.errors import InputError
from elang.evaluation.curves import choose_thresholds, share_thresholds
from elang.evaluation.pair import ROUTING_SLICE, Heads, pair_answers
from elang.evaluation.slices import slice_of
from elang.method.losses import MarginKind
from elang.method.quality.registry import QualityName
from elang.method.router import expected_gain
from elang.method.scores import BEFORE_DECODER, DEFAULT_SCORE
from elang.method.token_scores import SEQUENCE_DEFAULT
from elang.metrics import ExampleTable
from elang.models.finetune import FinetuneModule, check_held_out
from elang.models.objectives.hidden import HiddenLessons
from elang.models.objectives.labels import Hard, LabelLessons
from elang.models.objectives.texts import Distill, TextLessons
from elang.notices import notice
from elang.records.manifest import Manifest
from elang.records.reading import read_records
from elang.records.table import Records
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
            no margin made a better pair (``benchmarks/ablate.py``). 0.1 is a start without a Super.
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
        default = TextTask.of(label_names, task).kind.distill_weight
        self.weights = {
            "task": task_weight,
            "distill": default if distill_weight is None else distill_weight,
            "margin": margin_weight,
            "hidden": hidden_weight,
        }
        for name, weight in self.weights.items():
            if weight < 0:
                raise InputError(f"--model.{name}_weight must be 0 (off) or positive, but it is {weight}.")
        if super_records is None and (self.weights["distill"] > 0 or hard != "error"):
            raise InputError(
                f"Distillation and hard='{hard}' need the Super's answers, but --model.super_records is not set. Make "
                "them with `elang score`, or set --model.distill_weight 0 --model.hard error."
            )
        if hidden_weight > 0 and super_model is None:
            raise InputError("The distillation of hidden states runs the Super: set --model.super_model.")
        self._has_router = router
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
        kind = self.task.kind
        self._score_given = score is not None
        score = score or kind.default_score
        known = [*kind.scores, *self.classifier.head_scores]
        if score not in known:
            why = "Energy means nothing for a regression's single output. " if not kind.scores else ""
            raise InputError(
                f"This Swift has no score '{score}'. {why}Choose one of {', '.join(known) or 'none'}; the router's "
                "need --model.router true."
            )
        if not kind.scores and (super_records is None or hard != "gain"):
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
        if isinstance(self.classifier, TextToText):
            self.classifier.detach = detach_router
        self.super_records, self.hard = super_records, hard
        self.score, self.temperature = score, temperature
        self.hidden: HiddenLessons | None = None
        if hidden_weight > 0 and super_model is not None:
            self.hidden = HiddenLessons(self.classifier, load_model(super_model), layer_map)
            self.classifier.want_states = True
        self.lessons: TextLessons | LabelLessons | None = None
        if super_records is None and not kind.generates:
            self.lessons = self._label_lessons([], None, None)
        self.super_vocabulary: str | None = None
        self.records: Records | None = None

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

    def _wants_router(self) -> bool:
        return self._has_router

    def _wants_logits(self) -> bool:
        # The head on an encoder's output may learn whether the answer will do.
        own = self._has_router and self.task.kind.has_candidates
        return own or any(self.weights[name] for name in ("distill", "margin"))

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
        known: dict[str, Records] = {}
        if self.super_records is not None:
            known = self._read_super(self.super_records, data)
            self.records = known["train"]
        if isinstance(self.classifier, Seq2Seq):
            self.lessons = self._text_lessons(self.classifier, data)
            return
        other = None
        if path := self.hparams["out_of_fold"]:
            folds, _ = read_records(path, self.label_names, self.task.problem)
            if "train" not in folds:
                raise InputError(f"'{path}' has no answers to the training file, only to {', '.join(folds)}.")
            other = folds["train"]
            if data is not None:
                examples = data.examples("train")
                other.rows(examples.id, examples.key, f"The records out of fold '{path}'")
        rows = data.file_rows if data is not None and getattr(data, "transfer", None) else None
        self.lessons = self._label_lessons([*known.values()], other, rows)
        if self.hidden is not None and data is not None:
            self.hidden.compare_tokenizers(self.classifier.reader, data.examples("train").texts)

    def _label_lessons(self, super_: list[Records], other: Records | None, rows: int | None) -> LabelLessons:
        options = self.hparams
        return LabelLessons(
            self.task.kind,
            self.weights,
            options["margin"],
            self.hard,
            self.temperature,
            options["distill_temperature"],
            super_,
            other,
            self.super_records,
            rows,
        )

    def _text_lessons(self, model: Seq2Seq, data: Any) -> TextLessons:
        return TextLessons(
            model,
            self.records,
            self.super_records,
            self.weights,
            self.hparams["distill"],
            self.hparams["margin"],
            self.hard,
            self.temperature,
            getattr(data, "max_target_length", model.max_new_tokens),
            self.super_vocabulary == model.vocabulary,
        )

    def _read_super(self, path: str, data: Any) -> dict[str, Records]:
        """The Super's answers to the training file and the transfer set."""
        splits, about = read_records(path, self.label_names, self.task.problem)
        needed = ["train", *(["transfer"] if getattr(data, "transfer", None) else [])]
        if missing := [split for split in needed if split not in splits]:
            what = {"train": "the training file", "transfer": "the transfer set"}[missing[0]]
            raise InputError(
                f"'{path}' has no answers to {what}, only to {', '.join(splits)}. Score it with `elang score`."
            )
        for split in ("train", "routing", "transfer") if data is not None else ():
            if split in data.splits:
                examples = data.examples(split)
                splits[source_of(split)].rows(examples.id, examples.key, f"The Super's records '{path}'")
        self.super_vocabulary = about.get("vocabulary")
        if data is not None:
            check_held_out(data, about, f"the Super of '{path}'")
        return {split: splits[split] for split in needed}

    def _check_transfer(self, data: Any) -> None:
        if self.super_records is None or self.weights["distill"] == 0:
            raise InputError(
                "--data.transfer is text without labels, which is learned from the Super: set --model.super_records "
                "and a --model.distill_weight above 0."
            )

    def on_fit_start(self) -> None:
        """Bring the Super's answers to the device."""
        if isinstance(self.lessons, LabelLessons):
            self.lessons.to(self.device)
        if self.hidden is not None:
            self.hidden.super_.to(self.device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step of training."""
        if isinstance(self.lessons, LabelLessons):
            batch["label"] = self.lessons.labels(batch)
        return super().training_step(batch, batch_idx)

    def loss(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The terms of the loss, each with its weight."""
        terms = {name: self.weights["task"] * term for name, term in super().loss(batch, answer).items()}
        if isinstance(self.lessons, TextLessons):
            return terms | self.lessons.terms(batch, answer)
        assert self.lessons is not None
        terms |= self.lessons.terms(batch, answer, self._same_classes(answer))
        if self.hidden is not None:
            assert answer.states is not None
            close = self.hidden(answer.states, batch["model"]["attention_mask"], batch["super"])
            terms["hidden"] = self.weights["hidden"] * close
        if answer.early is not None:
            terms["encoder"] = self._encoder_loss(batch, answer, answer.early)
        return terms

    def _same_classes(self, answer: Answer) -> bool:
        own = self.task.kind.has_candidates and not self.task.answers
        return answer.early is not None and answer.early.shape == answer.logits.shape and not own

    def _encoder_loss(self, batch: dict[str, Any], answer: Answer, early: Tensor) -> Tensor:
        """The loss of the head on an encoder's output."""
        if not self.task.kind.chooses or self._same_classes(answer):
            return self.task.kind.loss(early, batch["label"])
        # Candidates of each example's own are no classes; the head tells whether the answer will do.
        assert isinstance(self.lessons, LabelLessons)
        return F.cross_entropy(early, (self.lessons.hardness(batch, answer) > 0.5).long())

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
        table = self._answer(data.loader("routing"))
        self._chosen_on = slice_of(table["key"].cpu())
        super_ = None if self.records is None else self.records.take(self.records.rows(table["id"], table["key"]))
        lesson = None
        if isinstance(model, Seq2Seq):
            assert isinstance(self.lessons, TextLessons)
            targets = self.lessons.targets([self.quality.name], table, data.references("routing", table["id"]), super_)
            gain = (targets["worth"][:, 1] if super_ is not None else 0) - targets["worth"][:, 0]
            columns: dict[str, Any] = {name: table[name] for name in ("flops", "scores", "score_flops")}
            swift = Records(table["id"], torch.zeros_like(table["id"]), **columns)
        else:
            targets = data.targets("routing", table["id"])
            own = self.task.kind.reward(table["prediction"], table["label"], targets)
            gain = 1 - own
            if super_ is not None:
                gain = self.task.kind.reward(super_.prediction, table["label"], targets) - own
                if super_.logits is not None and self.task.kind.chooses and "answer_f1" not in targets:
                    lesson = expected_gain(super_.logits, super_.prediction, table["prediction"])
            swift = Records(table["id"], table["prediction"], table["logits"], flops=table["flops"])
        heads = {name: table[name] for name in model.head_scores if name not in model.routers}
        for name, head in model.routers.items():
            features = table[f"{name}_features"]
            fold = fold_of(table["unit"])
            self.router_report[name] = head.fit(features, gain, fold, *model.candidates(name), lesson)
            rank_zero_info(f"{name}: reads {self.router_report[name]['reads']}: {self.router_report[name]['why']}")
            if name == "router" and not self._score_given and self.router_report[name]["reads"] not in SIMPLE:
                self.score = "router"
            place = head.bias.device
            heads[name] = head(features.to(place), fold.to(place)).to(features.device)
        # In the order that they are listed in.
        heads = {name: heads[name] for name in model.head_scores}
        if super_ is None:
            # A regression has its Super's records.
            scores = self.task.kind.scores_of(table.get("logits"), table.get("scores"), self.temperature)
            return share_thresholds(scores | heads, ROUTING_SLICE)
        super_ = Records(table["id"], super_.prediction, flops=super_.flops)
        answers = pair_answers(
            table,
            swift,
            super_,
            problem=self.task.problem,
            temperature=self.temperature,
            heads=Heads(heads, table.get("early_flops")),
            targets=targets,
        )
        return choose_thresholds(answers, self.quality, ROUTING_SLICE)

    @torch.no_grad()
    def _answer(self, loader: Any) -> dict[str, Tensor]:
        """This process's batches of a split, gathered with those of all others."""
        value = self.task.kind.answer_type
        model = self.classifier
        own = generated_columns(model, True) if isinstance(model, Seq2Seq) else answer_columns(model, True)
        columns = {"key": ((), torch.int64), "unit": ((), torch.int64), "label": ((), value), **own}
        table = ExampleTable(columns).to(self.device)
        model.eval()
        order = list(range(len(self.label_names)))
        for batch in loader:
            inputs = {name: column.to(self.device) for name, column in batch["model"].items()}
            row = {name: batch[name].to(self.device) for name in ("id", "key", "unit", "label")}
            if isinstance(model, Seq2Seq):
                row |= generated_batch(model, inputs, features=True)
            else:
                row |= answer_batch(model, inputs, order, self.temperature, features=True)
            if not batch["repeated"]:
                table.update(**row)
        return table.compute()

    def manifest(self) -> Manifest:
        """Describe the finished Swift."""
        manifest = super().manifest()
        manifest.score, manifest.temperature, manifest.router = self.score, self.temperature, self.router_report
        manifest.chosen_on = self._chosen_on
        return manifest
