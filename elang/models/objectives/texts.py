"""What a Swift that generates texts learns besides its task, from the Super's texts and tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.backends.backend import Answer
from elang.backends.generator import Seq2Seq
from elang.data.batches import IGNORED, EncodedTexts, padded_answers
from elang.data.encoding import encode
from elang.errors import InputError
from elang.method.losses import MARGINS, token_distillation
from elang.models.objectives.objective import LossOptions, SuperAnswers
from elang.records.table import Records
from elang.tasks.kinds import text_targets

# Tokens of a batch that the energy margin compares with each other, for pairs of them are many.
_MARGIN_TOKENS = 2048


class TextObjective:
    """The terms of the Swift's loss that the task alone does not have.

    Args:
        model: The Swift.
        options: Of the loss. With ``hard`` as ``gain`` a token is hard only if the Super's first choice is right, where
            that is known.
        answers: The Super's texts, if there are any.
        max_target_length: Tokens kept of these.

    Raises:
        InputError: If the records lack what is to be learned from.
    """

    def __init__(
        self, model: Seq2Seq, options: LossOptions, answers: SuperAnswers | None, max_target_length: int
    ) -> None:
        self.model, self.distillation, self.margin = model, options.distillation, options.margin
        self.records = None if answers is None else answers.records["train"]
        self.path = None if answers is None else answers.path
        # Other tokens mean nothing here.
        same = answers is not None and answers.vocabulary == model.vocabulary
        self.with_tokens = self.records is not None and self.records.top_ids is not None and same
        self.texts: EncodedTexts | None = None
        if self.records is None or self.distillation.weight == 0:
            return
        if self.distillation.source == "sequence":
            assert self.records.texts is not None
            self.texts = encode(model.tokenizer, [(t,) for t in self.records.texts], max_target_length, answers=True)
        elif self.records.top_ids is None:
            raise InputError(
                f"'{self.path}' has no most probable tokens, which --model.distill token needs. Make them with "
                "`elang score --model.top_k 8`, or set --model.distill sequence."
            )
        elif not same:
            raise InputError(
                f"The Super of '{self.path}' has another vocabulary than the Swift, so its tokens teach it nothing. "
                "Set --model.distill sequence."
            )

    def to(self, device: torch.device) -> None:
        """Nothing: each batch brings what it needs of many texts."""

    def labels(self, batch: dict[str, Any]) -> Tensor:
        """There are none to fill in."""
        label: Tensor = batch["label"]
        return label

    def terms(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The weighted terms of one batch."""
        terms: dict[str, Tensor] = {}
        weight, margin, labels = self.distillation.weight, self.margin, batch["model"]["labels"]
        from_tokens = self.with_tokens and self.distillation.source == "token" and weight > 0
        if not (from_tokens or self.texts is not None or margin.weight > 0):
            return terms
        real = labels != IGNORED
        logits, target = answer.logits[real], labels[real]
        best: Tensor | None = None
        if self.records is not None:
            rows = self.records.rows(batch["id"])
            if from_tokens or (self.with_tokens and margin.hard == "gain"):
                ids, log_probs = self._top(rows, real)
                best = ids[:, 0]
                if from_tokens:
                    terms["distill"] = weight * token_distillation(logits, ids, log_probs)
            if self.texts is not None:
                texts = padded_answers(self.texts, rows.tolist()).to(labels.device)
                terms["distill"] = weight * self._loss_of(answer, texts)
        if margin.weight > 0:
            some = slice(None, None, -(-len(target) // _MARGIN_TOKENS))
            hard = logits[some].detach().argmax(-1) != target[some]
            if best is not None and margin.hard == "gain":
                hard = hard & (best[some] == target[some])
            gap = MARGINS[margin.form](logits[some].float(), target[some], hard, margin.temperature)
            terms["margin"] = margin.weight * gap
        return terms

    def _top(self, rows: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The Super's most probable tokens at the real places of a batch, and their log-probabilities, ``(M, K)``."""
        assert self.records is not None
        assert self.records.top_ids is not None
        assert self.records.top_log_probs is not None
        width = real.shape[1]
        ids = self.records.top_ids[rows, :width].to(real.device)
        log_probs = self.records.top_log_probs[rows, :width].to(real.device)
        if ids.shape[1] < width or not torch.equal(ids[..., 0] >= 0, real):
            raise InputError(
                f"'{self.path}' has the Super's tokens for references of other lengths: it was made with another "
                "tokenizer or --data.max_target_length. Make it anew, or set --model.distill sequence."
            )
        return ids[real].long(), log_probs[real]

    def _loss_of(self, answer: Answer, texts: Tensor) -> Tensor:
        logits = self.model.logits(answer.source, texts).float().flatten(0, 1)
        smoothing = self.model.label_smoothing
        return F.cross_entropy(logits, texts.flatten(), ignore_index=IGNORED, label_smoothing=smoothing)

    def encoder_terms(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """None: the head on the encoder's output is fitted after training."""
        return {}

    def targets(self, table: dict[str, Tensor], data: Any, quality: str, super_: Records | None) -> dict[str, Tensor]:
        """What metrics read of the routing slice's texts."""
        texts = super_.texts if super_ is not None else None
        references = data.references("routing", table["id"])
        return text_targets([quality], references, self.model.texts(table["ids"]), super_=texts)

    def gain(
        self, table: dict[str, Tensor], targets: dict[str, Tensor], super_: Records | None
    ) -> tuple[Tensor, Tensor | None]:
        """By how much the Super's text is worth more than the Swift's; without a Super, the loss of the Swift's."""
        worth = targets["worth"]
        return (worth[:, 1] if super_ is not None else 0) - worth[:, 0], None
