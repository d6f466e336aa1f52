"""What a Swift that generates texts learns besides its task, from the Super's texts and tokens."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.backends.generator import Seq2Seq
from elang.backends.text_model import Answer
from elang.data.encoding import encode
from elang.data.tokens import IGNORED, EncodedTexts, padded_answers
from elang.errors import InputError
from elang.method.losses import MARGINS, MarginKind, token_distillation
from elang.records.table import Records
from elang.tasks.worth import text_targets

# Tokens of a batch that the energy margin compares with each other, for pairs of them are many.
_MARGIN_TOKENS = 2048
Distill = Literal["token", "sequence"]


class TextLessons:
    """The terms of the Swift's loss that the task alone does not have.

    Args:
        model: The Swift.
        records: The Super's texts of the training file, if there are any.
        source: Where these are from, for messages.
        weights: Of ``distill`` and ``margin``; 0 is off.
        distill: What is learned from the Super.
        margin: Form of the energy margin.
        hard: Which tokens are hard: ``gain`` asks that the Super's first choice is right, where that is known.
        temperature: Of the energies.
        max_target_length: Tokens kept of the Super's texts.
        same_vocabulary: Whether the Super's tokens are the Swift's; else they mean nothing here.

    Raises:
        InputError: If the records lack what is to be learned from.
    """

    def __init__(
        self,
        model: Seq2Seq,
        records: Records | None,
        source: str | None,
        weights: dict[str, float],
        distill: Distill,
        margin: MarginKind,
        hard: str,
        temperature: float,
        max_target_length: int,
        same_vocabulary: bool = True,
    ) -> None:
        self.model, self.records, self.source = model, records, source
        self.with_tokens = records is not None and records.top_ids is not None and same_vocabulary
        self.weights, self.distill, self.margin = weights, distill, MARGINS[margin]
        self.hard, self.temperature = hard, temperature
        self.texts: EncodedTexts | None = None
        if records is None or weights["distill"] == 0:
            return
        assert records.texts is not None
        if distill == "sequence":
            self.texts = encode(model.tokenizer, [(t,) for t in records.texts], max_target_length, answers=True)
        elif records.top_ids is None:
            raise InputError(
                f"'{source}' has no most probable tokens, which --model.distill token needs. Make them with "
                "`elang score --model.top_k 8`, or set --model.distill sequence."
            )
        elif not same_vocabulary:
            raise InputError(
                f"The Super of '{source}' has another vocabulary than the Swift, so its tokens teach it nothing. Set "
                "--model.distill sequence."
            )

    def terms(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The weighted terms of one batch."""
        found: dict[str, Tensor] = {}
        labels = batch["model"]["labels"]
        from_tokens = self.with_tokens and self.distill == "token" and self.weights["distill"] > 0
        if not (from_tokens or self.texts is not None or self.weights["margin"] > 0):
            return found
        real = labels != IGNORED
        logits, target = answer.logits[real], labels[real]
        best: Tensor | None = None
        if self.records is not None:
            rows = self.records.rows(batch["id"])
            if from_tokens or (self.with_tokens and self.hard == "gain"):
                ids, log_probs = self._top(rows, real)
                best = ids[:, 0]
                if from_tokens:
                    found["distill"] = self.weights["distill"] * token_distillation(logits, ids, log_probs)
            if self.texts is not None:
                said = padded_answers(self.texts, rows.tolist()).to(labels.device)
                found["distill"] = self.weights["distill"] * self._loss_of(answer, said)
        if self.weights["margin"] > 0:
            some = slice(None, None, -(-len(target) // _MARGIN_TOKENS))
            hard = logits[some].detach().argmax(-1) != target[some]
            if best is not None and self.hard == "gain":
                hard = hard & (best[some] == target[some])
            gap = self.margin(logits[some].float(), target[some], hard, self.temperature)
            found["margin"] = self.weights["margin"] * gap
        return found

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
                f"'{self.source}' has the Super's tokens for references of other lengths: it was made with another "
                "tokenizer or --data.max_target_length. Make it anew, or set --model.distill sequence."
            )
        return ids[real].long(), log_probs[real]

    def _loss_of(self, answer: Answer, said: Tensor) -> Tensor:
        logits = self.model.logits(answer.source, said).float().flatten(0, 1)
        smoothing = self.model.label_smoothing
        return F.cross_entropy(logits, said.flatten(), ignore_index=IGNORED, label_smoothing=smoothing)

    def targets(
        self, qualities: list[str], table: dict[str, Tensor], references: list[str], super_: Records | None
    ) -> dict[str, Tensor]:
        """What metrics read of a split's texts.

        Args:
            qualities: The metrics.
            table: The Swift's generated texts, as ``ids``.
            references: Theirs.
            super_: The Super's texts of the same examples, if they are known.
        """
        texts = super_.texts if super_ is not None else None
        return text_targets(qualities, references, self.model.texts(table["ids"]), texts)
