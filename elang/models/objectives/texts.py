"""What a Swift that generates texts learns from the Super's texts and tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.backends.backend import Answer
from elang.backends.generation import Generation
from elang.data.batches import IGNORE_INDEX, EncodedTexts, padded_answers
from elang.data.encoding import encode_texts
from elang.errors import InputError
from elang.method.losses import MARGINS, token_distillation
from elang.models.objectives.objective import Gain, LossOptions, Objective, RecordedAnswers
from elang.records.table import Records
from elang.tasks.kinds import text_targets

# At most so many tokens of a batch are compared in pairs.
_MARGIN_TOKENS = 2048


class TextObjective(Objective):
    """Distillation from the Super's texts or tokens, and a margin between easy and hard tokens.

    Args:
        model: The Swift.
        options: Options of the loss. With ``hard`` as ``gain`` a token is only hard if the Super's most probable token
            is right, if that is known.
        answers: The Super's texts, if there are any.
        max_target_length: Maximum number of their tokens.
    """

    def __init__(
        self, model: Generation, options: LossOptions, answers: RecordedAnswers | None, max_target_length: int
    ) -> None:
        super().__init__(options, answers)
        self.model = model
        self.records = None if answers is None else answers.records["train"]
        self.path = None if answers is None else answers.path
        # The ids of another vocabulary mean other tokens.
        same = answers is not None and answers.vocabulary == model.vocabulary
        self.with_tokens = self.records is not None and self.records.top_ids is not None and same
        self.texts: EncodedTexts | None = None
        if self.records is None or options.distill_weight == 0:
            return
        if options.distill == "sequence":
            assert self.records.texts is not None
            self.texts = encode_texts(model.reader, self.records.texts, model.reader.text_limit(max_target_length))
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

    def terms(self, batch: dict[str, Any], answer: Answer) -> dict[str, Tensor]:
        """The weighted terms of a batch. The head on the encoder is fitted after training."""
        options, labels = self.options, batch["model"]["labels"]
        terms: dict[str, Tensor] = {}
        from_tokens = self.with_tokens and options.distill == "token" and options.distill_weight > 0
        if not (from_tokens or self.texts is not None or options.margin_weight > 0):
            return terms
        real = labels != IGNORE_INDEX
        logits, target = answer.logits[real], labels[real]
        best: Tensor | None = None
        if self.records is not None:
            rows = self.records.rows(batch["id"])
            if from_tokens or (self.with_tokens and options.hard == "gain"):
                ids, log_probs = self._top_tokens(rows, real)
                best = ids[:, 0]
                if from_tokens:
                    terms["distill"] = options.distill_weight * token_distillation(logits, ids, log_probs)
            if self.texts is not None:
                texts = padded_answers(self.texts, rows.tolist()).to(labels.device)
                super_logits = self.model.logits(answer.source, texts).float().flatten(0, 1)
                smoothing = self.model.label_smoothing
                loss = F.cross_entropy(
                    super_logits, texts.flatten(), ignore_index=IGNORE_INDEX, label_smoothing=smoothing
                )
                terms["distill"] = options.distill_weight * loss
        if options.margin_weight > 0:
            some = slice(None, None, -(-len(target) // _MARGIN_TOKENS))
            hard = logits[some].detach().argmax(-1) != target[some]
            if best is not None and options.hard == "gain":
                hard = hard & (best[some] == target[some])
            margin = MARGINS[options.margin](logits[some].float(), target[some], hard, options.temperature)
            terms["margin"] = options.margin_weight * margin
        return terms

    def _top_tokens(self, rows: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The Super's most probable tokens at a batch's real positions, and their log-probabilities, ``(M, K)``."""
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

    def gain(self, table: dict[str, Tensor], super_: Records | None, data: Any, quality: str) -> Gain:
        """By how much the Super's text is worth more; without a Super, minus the worth of the Swift's."""
        references = data.references("routing", table["id"])
        super_texts = super_.texts if super_ is not None else None
        targets = text_targets([quality], references, self.model.texts(table["ids"]), super_texts, self.model.task)
        worth = targets["worth"]
        return targets, (worth[:, 1] if super_ is not None else 0) - worth[:, 0], None
