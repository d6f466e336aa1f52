"""Encoder-decoders (T5, mT5, ByT5, BART) as classifiers: answers are words, scored by a constrained decode.

The answers form a trie of tokens. Where it branches, the decoder chooses among the branches only; where it does not,
the next token is forced and need not be computed. With ``z`` the decoder's logits, the logit of a label is ``z`` of its
branch at the first branching node plus ``log_softmax`` of ``z`` over the branches at each later one on its way. So
``softmax`` over the labels is the constrained decode's distribution, and their free energy is that of the raw logits
of the first choice. Where the answers' first tokens differ, this is one decoder step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from elang.backends.answer_trie import AnswerTrie, generate_greedily
from elang.backends.backend import Answer, Encoded, owner, spread, sum_by_example
from elang.backends.encoder import EncoderHead, masked_mean
from elang.backends.fast.graphs import Pass
from elang.backends.flops import FlopsConvention, decoder_flops, flops_by_length
from elang.backends.generator import early_label_passes
from elang.backends.inference import BatchAnswers
from elang.backends.text_model import TextModel
from elang.data.batches import IGNORED
from elang.errors import InputError
from elang.method.deferral import route
from elang.method.scores import BEFORE_DECODER, encoder_scores
from elang.tasks.kinds import answer_values, value_of
from elang.tasks.text_task import TextTask


class TextToText(TextModel):
    """Any ``AutoModelForSeq2SeqLM`` as a model that answers in words.

    Args:
        backbone: The model.
        tokenizer: Its tokenizer.
        task: Gives the prompt and the answers.
        generate: Answer by free generation, matched with the answers, instead of the constrained decode; the logits
            stay those of the constrained decode.
    """

    text_to_text = True
    smooths_labels = False
    answer_ids: Tensor
    values: Tensor

    def __init__(self, backbone: Any, tokenizer: Any, task: TextTask, generate: bool = False) -> None:
        super().__init__(backbone, tokenizer, task)
        self.generate = generate
        self.costs = ("flops", "early_flops", *(["score_flops"] if generate else []))
        if backbone.config.decoder_start_token_id is None:
            raise InputError(
                f"The decoder of a '{backbone.config.model_type}' model starts with no fixed token (there is no "
                "decoder_start_token_id in its config.json), so its answers cannot be scored."
            )
        if generate:
            generate_greedily(backbone, tokenizer)
        self.trie: AnswerTrie | None = None
        if task.answers:
            tokens = tokenizer(text_target=task.answers, padding=False, truncation=False)["input_ids"]
            self.trie = AnswerTrie.of(tokens)
            longest = max(map(len, tokens))
            padded = torch.tensor([t + [IGNORED] * (longest - len(t)) for t in tokens])
            self.register_buffer("answer_ids", padded, persistent=False)
        elif task.problem != "choice":
            raise InputError("A text-to-text model needs to know what it can say: set --data.answers.")
        if task.problem == "regression":
            self.register_buffer("values", torch.tensor(answer_values(task.answers)), persistent=False)

    @property
    def head_scores(self) -> list[str]:
        """Names of the scores that its heads give, those before the decoder last."""
        known = {"router": "router" in self.heads}
        known |= dict.fromkeys(
            ("encoder_energy", "encoder_max_softmax"), "encoder" in self.heads and self._early_classes()
        )
        known["encoder_router"] = "encoder_router" in self.heads
        return [name for name, there in known.items() if there]

    def compiled_parts(self) -> list[torch.nn.Module]:
        """The encoder is run by itself, and its output is then given to the whole."""
        return [self.backbone.get_encoder(), self.backbone]

    def timed_parts(self, steps: int, scored: bool) -> dict[str, Callable[[dict[str, Tensor]], object]]:
        """The whole, and the encoder with the head on its output."""
        return {"": self, "encoder": self.encode}

    @property
    def decoded(self) -> int:
        """Tokens whose logits over the vocabulary an input takes, at most about."""
        return self.trie.paths.numel() if self.trie is not None else 8 * len(self.label_names)

    def candidates(self, name: str) -> tuple[dict[str, list[int]] | None, str | None]:
        """What a router head may read; the head on the encoder that tells easy from hard has no confidence."""
        if name == "encoder_router" and not self._early_classes():
            return None, None
        return super().candidates(name)

    def _early_classes(self) -> bool:
        """Whether the encoder's head has classes to copy; candidates of each example's own are none."""
        return self.trie is not None and self.task.problem != "regression"

    def add_heads(self) -> None:
        """Give it a head on the encoder's output and a router head on either side of the decoder, untrained."""
        width = self.backbone.config.hidden_size
        early = 1 if self.task.problem == "regression" else len(self.label_names) if self._early_classes() else 2
        self.heads["router"] = self._router(len(self.label_names))
        self.heads["encoder"] = EncoderHead(width, early)
        self.heads["encoder_router"] = self._router(early)

    def encode(self, inputs: dict[str, Tensor]) -> Encoded:
        """Run the encoder and the head on its output."""
        hidden, mask = self.encoder_output(inputs), inputs["attention_mask"]
        pooled = early = None
        if "encoder" in self.heads:
            pooled = masked_mean(hidden, mask)
            early = self.heads["encoder"](pooled, detach=self.detached)
            pooled = pooled.detach()
        return Encoded(hidden, mask, pooled, early)

    def take(self, encoded: Encoded, inputs: dict[str, Tensor], rows: Tensor) -> tuple[Encoded, dict[str, Tensor]]:
        """Some rows of an encoded batch and of its inputs, for the decoder."""
        if self.trie is not None:
            return encoded[rows], {}
        counts = inputs["num_choices"]
        chosen = torch.isin(owner(counts), rows)
        return encoded[rows], {"num_choices": counts[rows], "answer_ids": inputs["answer_ids"][chosen]}

    def _decode(self, hidden: Tensor, mask: Tensor, **decoder: Tensor) -> Any:
        return self.backbone(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden), attention_mask=mask, use_cache=False, **decoder
        )

    def label_logits(self, encoded: Encoded, inputs: dict[str, Tensor]) -> Tensor:
        """Run the decoder over the answers: float32 ``(B, C)``, in a regression the mean value, ``(B, 1)``.

        Candidates of each example's own are scored by their log-likelihood.
        """
        if self.trie is None:
            counts, ids = inputs["num_choices"], inputs["answer_ids"]
            row = owner(counts)
            logits = self._decode(encoded.hidden[row], encoded.mask[row], labels=ids).logits.float()
            token = -F.cross_entropy(logits.transpose(1, 2), ids, ignore_index=IGNORED, reduction="none")
            return spread(token.sum(-1), counts, len(self.label_names))
        if self.trie.paths.device != encoded.hidden.device:
            # Also when it is first asked in inference: a training that comes after saves these for its backward pass.
            with torch.inference_mode(False):
                self.trie = self.trie.to(encoded.hidden.device)
        trie, size = self.trie, len(encoded.hidden)
        ids = F.pad(trie.paths, (1, 0), value=self.backbone.config.decoder_start_token_id)
        if (path := self.inference_path) is not None:
            output = trie.at_nodes(path.decode(encoded.hidden, encoded.mask, ids))
            logits = trie.answers(path.logits(output, trie.branches.clamp_min(0)))
        else:
            hidden, mask = (x.repeat_interleave(len(ids), 0) for x in (encoded.hidden, encoded.mask))
            said = self._decode(hidden, mask, decoder_input_ids=ids.repeat(size, 1)).logits
            logits = trie.label_logits(said.unflatten(0, (size, len(ids))))
        if self.task.problem != "regression":
            return logits
        return (logits.softmax(-1) * self.values).sum(-1, keepdim=True)

    def forward(self, inputs: dict[str, Tensor], target: Tensor | None = None, want_logits: bool = True) -> Answer:
        """Answer a batch; the loss is the usual one of text-to-text training, over the whole vocabulary."""
        encoded = self.encode(inputs)
        loss = None
        if target is not None:
            loss = self._decode(encoded.hidden, encoded.mask, labels=self._answer_ids(inputs, target)).loss
        if want_logits:
            logits = self.label_logits(encoded, inputs)
        else:
            logits = encoded.hidden.new_zeros(len(encoded.hidden), len(self.label_names))
        if not self.generate:
            return Answer(logits, self.predict(logits), loss, encoded.pooled, encoded.early)
        prediction, steps = self._generated(encoded, inputs)
        return Answer(logits, prediction, loss, encoded.pooled, encoded.early, steps)

    def _answer_ids(self, inputs: dict[str, Tensor], target: Tensor) -> Tensor:
        """Tokens of the right answers, ``(B, T)``."""
        if self.trie is None:
            counts = inputs["num_choices"]
            return inputs["answer_ids"][counts.cumsum(0) - counts + target]
        if self.task.problem == "regression":
            target = (self.values[None] - target[:, None].to(self.values)).abs().argmin(-1)
        return self.answer_ids[target]

    @torch.no_grad()
    def _generated(self, encoded: Encoded, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Greedy answers, and in how many steps, both ``(B,)``.

        Answers are matched with the task's words: -1 for none; in a regression the lowest value.
        """
        longest = (self.answer_ids if self.trie is not None else inputs["answer_ids"]).shape[1]
        ids = self.backbone.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.hidden),
            attention_mask=encoded.mask,
            max_new_tokens=longest + 4,
            synced_gpus=self.in_step,
        )
        ends = ids[:, 1:] == self.backbone.generation_config.eos_token_id
        steps = torch.where(ends.any(-1), ends.int().argmax(-1) + 1, ends.shape[1])
        said = self.texts(ids)
        if self.task.problem == "regression":
            values = [value_of(text, float(self.values.min())) for text in said]
            return torch.tensor(values, dtype=torch.float64, device=ids.device), steps
        if self.trie is not None:
            allowed = [[a.strip() for a in self.task.answers]] * len(said)
        else:
            words = self.texts(inputs["answer_ids"])
            ends = inputs["num_choices"].cumsum(0).tolist()
            allowed = [words[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        found = [a.index(text) if text in a else -1 for text, a in zip(said, allowed, strict=True)]
        return torch.tensor(found, device=ids.device), steps

    def router_features(self, answer: Answer) -> dict[str, Tensor]:
        """What each router head reads."""
        found = super().router_features(answer)
        if "encoder_router" in self.heads:
            assert answer.pooled is not None
            assert answer.early is not None
            found["encoder_router"] = self._features(answer.pooled, answer.early, answer.early.shape[-1])
        return found

    def scores(self, answer: Answer, temperature: float = 1.0, fold: Tensor | None = None) -> dict[str, Tensor]:
        """Every difficulty score, of both placements."""
        found = super().scores(answer, temperature, fold)
        if answer.early is not None and self._early_classes():
            found |= encoder_scores(answer.early, temperature)
        return found

    def early_scores(self, encoded: Encoded, temperature: float = 1.0) -> dict[str, Tensor]:
        """The scores that are known before the decoder runs."""
        assert encoded.pooled is not None
        assert encoded.early is not None
        found = encoder_scores(encoded.early, temperature) if self._early_classes() else {}
        if "encoder_router" in self.heads:
            features = self._features(encoded.pooled, encoded.early, encoded.early.shape[-1])
            found["encoder_router"] = self.routers["encoder_router"](features)
        return found

    def answer_batch(
        self,
        inputs: dict[str, Tensor],
        score: str | None = None,
        threshold: float = math.inf,
        *,
        temperature: float = 1.0,
        order: list[int] | None = None,
    ) -> BatchAnswers:
        """Answer and score a batch; the decoder does not run for what is deferred before it."""
        if score not in BEFORE_DECODER:
            return super().answer_batch(inputs, score, threshold, temperature=temperature, order=order)
        encoded = self.encode(inputs)
        known = self.early_scores(encoded, temperature)[score].to(self.task.kind.exact_type)
        table = F.pad(known[:, None], (0, 2))
        kept = (~route(known, threshold)).nonzero().squeeze(1)
        if len(kept):
            logits = self.label_logits(*self.take(encoded, inputs, kept))
            table[kept, 1:] = self.table(None, logits, order)[:, 1:]
        return BatchAnswers(table)

    def short_way(
        self, score: str | None = None, temperature: float = 1.0, order: list[int] | None = None
    ) -> list[Pass] | None:
        """Passes of fixed shapes; the score before the decoder has one of its own."""
        if self.generate or self.trie is None or self.task.kind.has_candidates:
            return None
        if score not in BEFORE_DECODER:
            return super().short_way(score, temperature, order)
        return early_label_passes(self, score, temperature, order)

    def flops(
        self, inputs: dict[str, Tensor], convention: FlopsConvention = "exact", steps: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cost of each input, with and without the decoder."""
        config, lengths = self.backbone.config, inputs["attention_mask"].sum(-1).cpu()
        encoder = flops_by_length(config, lengths, convention, "encoder")

        if self.trie is not None:
            scored = flops_by_length(config, lengths, convention, "all", self.trie.decoder) - encoder
        else:
            # Every candidate is decoded on its own.
            counts, tokens = inputs["num_choices"].cpu(), (inputs["answer_ids"] >= 0).sum(-1).cpu()
            row = owner(counts)
            scored = sum_by_example(decoder_flops(config, lengths[row], tokens, convention), counts)
        before = self._head_flops("encoder", "encoder_router")
        early, whole = encoder + before, encoder + before + self._head_flops("router")
        if steps is None:
            return {"flops": whole + scored, "early_flops": early}
        # The logits of a single step are those of the first generated one.
        single = self.trie is not None and self.trie.decoder == (1, 1)
        said = decoder_flops(config, lengths, steps.cpu(), convention)
        more = torch.zeros_like(scored) if single else scored
        return {"flops": whole + said, "early_flops": early, "score_flops": more}
