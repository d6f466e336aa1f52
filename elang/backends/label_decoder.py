"""Encoder-decoders (T5, mT5, ByT5, BART) as classifiers: answers are words, scored by a constrained decode.

The answers form a trie of tokens. Where it branches, the decoder chooses among the branches only; elsewhere the next
token is forced and need not be computed. With ``z`` the decoder's logits, the logit of a label is ``z`` of its branch
at the first branching node plus ``log_softmax`` of ``z`` over the branches at each later node on its path. So
``softmax`` over the labels is the distribution of the constrained decode, and their free energy is that of the raw
logits of the first choice. If the answers differ in their first tokens, this takes one decoder step.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig

from elang.backends.answer_trie import AnswerTrie, mean_value, nearest_answers, padded_answers
from elang.backends.backend import Answer, Encoded, owner, spread, sum_by_example
from elang.backends.encoder import EncoderHead
from elang.backends.encoder_decoder import EncoderDecoder
from elang.backends.fast.graphs import Pass
from elang.backends.flops import FlopsConvention, decoder_flops, flops_by_length
from elang.backends.network import BatchAnswers, InferenceOptions
from elang.data.batches import IGNORE_INDEX
from elang.errors import InputError
from elang.method.deferral import route
from elang.method.scores import BEFORE_DECODER, encoder_scores
from elang.tasks.kinds import answer_values, parse_value
from elang.tasks.text_task import TextTask


class LabelDecoder(EncoderDecoder):
    """Any ``AutoModelForSeq2SeqLM`` as a model that answers in the words of a task.

    With ``generate`` it answers by free generation, matched with them; its logits are still the constrained decode's.
    """

    smooths_labels = False
    answer_ids: Tensor
    values: Tensor

    def __init__(self, backbone: Any, tokenizer: Any, task: TextTask, generate: bool = False) -> None:
        super().__init__(backbone, tokenizer, task)
        self.generate = generate
        self.costs = ("flops", "early_flops", *(["score_flops"] if generate else []))
        self.check_start(backbone.config.decoder_start_token_id)
        if generate:
            # Without a checkpoint's other settings, such as a minimum length or a repetition penalty.
            backbone.generation_config = GenerationConfig(
                decoder_start_token_id=backbone.config.decoder_start_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                forced_bos_token_id=backbone.generation_config.forced_bos_token_id,
            )
        self.trie: AnswerTrie | None = None
        if task.answers:
            tokens = tokenizer(text_target=task.answers, padding=False, truncation=False)["input_ids"]
            self.trie = AnswerTrie.of(tokens)
            self.register_buffer("answer_ids", padded_answers(tokens), persistent=False)
        elif task.problem != "choice":
            raise InputError("A text-to-text model needs to know its possible answers: set --data.answers.")
        if task.problem == "regression":
            self.register_buffer("values", torch.tensor(answer_values(task.answers)), persistent=False)

    @property
    def head_scores(self) -> list[str]:
        """Names of the scores that its heads compute, those before the decoder last."""
        known = {*self.routers}
        if "encoder" in self.heads and self.has_early_classes:
            known |= {"encoder_energy", "encoder_max_softmax"}
        return [name for name in ("router", *BEFORE_DECODER) if name in known]

    def timed_parts(self, steps: int, scored: bool) -> dict[str, Callable[[dict[str, Tensor]], object]]:
        """The whole model, and the encoder with the head on its output."""
        return {"": self, "encoder": self.encode}

    @property
    def decoded(self) -> int:
        """About how many tokens of an input get logits over the vocabulary."""
        return self.trie.paths.numel() if self.trie is not None else 8 * len(self.label_names)

    def candidates(self, name: str) -> tuple[dict[str, list[int]] | None, str | None]:
        """Sets of features for a router head to choose from."""
        if name == "encoder_router" and not self.has_early_classes:
            return None, None
        return super().candidates(name)

    @property
    def has_early_classes(self) -> bool:
        """False for candidates that differ by example: the encoder's head then tells easy from hard examples."""
        return self.trie is not None and self.task.problem != "regression"

    def add_heads(self) -> None:
        """Add a head on the encoder's output and a router head on either side of the decoder, untrained."""
        width = self.backbone.config.hidden_size
        early = 1 if self.task.problem == "regression" else len(self.label_names) if self.has_early_classes else 2
        self.heads["router"] = self._router(len(self.label_names))
        self.heads["encoder"] = EncoderHead(width, early)
        self.heads["encoder_router"] = self._router(early)

    def take(self, encoded: Encoded, inputs: dict[str, Tensor], rows: Tensor) -> tuple[Encoded, dict[str, Tensor]]:
        """Select rows of an encoded batch, and of its inputs that the decoder needs."""
        if self.trie is not None:
            return encoded[rows], {}
        counts = inputs["num_choices"]
        chosen = torch.isin(owner(counts), rows)
        return encoded[rows], {"num_choices": counts[rows], "answer_ids": inputs["answer_ids"][chosen]}

    def label_logits(self, encoded: Encoded, inputs: dict[str, Tensor]) -> Tensor:
        """Run the decoder over the answers: float32 ``(B, C)``, in a regression the mean value, ``(B, 1)``.

        Candidates that differ by example are scored by their log-likelihood.
        """
        hidden, mask = encoded.hidden, encoded.mask
        if self.trie is None:
            counts, ids = inputs["num_choices"], inputs["answer_ids"]
            row = owner(counts)
            logits = self._decode(Encoded(hidden[row], mask[row]), labels=ids).logits.float()
            log_prob = -F.cross_entropy(logits.transpose(1, 2), ids, ignore_index=IGNORE_INDEX, reduction="none")
            return spread(log_prob.sum(-1), counts, len(self.label_names))
        trie = self.trie = self.trie.to(hidden.device)
        size = len(hidden)
        ids = F.pad(trie.paths, (1, 0), value=self.backbone.config.decoder_start_token_id)
        if (path := self.inference_path) is not None:
            output = trie.at_nodes(path.decode(hidden, mask, ids))
            logits = trie.answers(path.logits(output, trie.branches.clamp_min(0)))
        else:
            repeated = Encoded(hidden.repeat_interleave(len(ids), 0), mask.repeat_interleave(len(ids), 0))
            logits = self._decode(repeated, decoder_input_ids=ids.repeat(size, 1)).logits
            logits = trie.label_logits(logits.unflatten(0, (size, len(ids))))
        return mean_value(logits, self.values) if self.task.problem == "regression" else logits

    def forward(self, inputs: dict[str, Tensor], target: Tensor | None = None, want_logits: bool = True) -> Answer:
        """Answer a batch; the loss is the usual one of text-to-text training, over the whole vocabulary."""
        encoded = self.encode(inputs)
        loss = None
        if target is not None:
            loss = self._decode(encoded, labels=self._answer_ids(inputs, target)).loss
        if want_logits:
            logits = self.label_logits(encoded, inputs)
        else:
            logits = encoded.hidden.new_zeros(len(encoded.hidden), len(self.label_names))
        if not self.generate:
            return Answer(logits, self.predict(logits), loss, encoded.pooled, encoded.early)
        prediction, steps = self._generated_answers(encoded, inputs)
        return Answer(logits, prediction, loss, encoded.pooled, encoded.early, steps)

    def _answer_ids(self, inputs: dict[str, Tensor], target: Tensor) -> Tensor:
        """Tokens of the right answers, ``(B, T)``."""
        if self.trie is None:
            counts = inputs["num_choices"]
            return inputs["answer_ids"][counts.cumsum(0) - counts + target]
        if self.task.problem == "regression":
            target = nearest_answers(self.values, target)
        return self.answer_ids[target]

    @torch.no_grad()
    def _generated_answers(self, encoded: Encoded, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Greedy answers, and their decoder steps, both ``(B,)``.

        Texts are matched with the task's answers: -1 if there is no match; in a regression the lowest value.
        """
        longest = (self.answer_ids if self.trie is not None else inputs["answer_ids"]).shape[1]
        ids, steps = self._generated(encoded, max_new_tokens=longest + 4)
        texts = self.texts(ids)
        if self.task.problem == "regression":
            values = [parse_value(text, float(self.values.min())) for text in texts]
            return torch.tensor(values, dtype=torch.float64, device=ids.device), steps
        if self.trie is not None:
            allowed = [[answer.strip() for answer in self.task.answers]] * len(texts)
        else:
            words = self.texts(inputs["answer_ids"])
            ends = inputs["num_choices"].cumsum(0).tolist()
            allowed = [words[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        places = [a.index(text) if text in a else -1 for text, a in zip(texts, allowed, strict=True)]
        return torch.tensor(places, device=ids.device), steps

    def early_features(self, encoded: Any) -> Tensor:
        """What the router before the decoder reads: the hidden state and features of the early logits."""
        return self._features(encoded.pooled, encoded.early)

    def _early_score(self, encoded: Encoded, score: str | None, temperature: float) -> Tensor:
        """A score that is known before the decoder runs, ``(B,)``, in the type of the table of answers."""
        assert score is not None
        if score in self.routers:
            value: Tensor = self.routers[score](self.early_features(encoded))
        else:
            assert encoded.early is not None
            value = encoder_scores(encoded.early, temperature)[score]
        return value.to(self.task.kind.exact_type)

    def router_features(self, answer: Answer) -> dict[str, Tensor]:
        """What each router head reads."""
        features = super().router_features(answer)
        if "encoder_router" in self.heads:
            features["encoder_router"] = self.early_features(answer)
        return features

    def _headless_scores(self, answer: Answer, temperature: float) -> dict[str, Tensor]:
        scores = super()._headless_scores(answer, temperature)
        if answer.early is not None and self.has_early_classes:
            scores |= encoder_scores(answer.early, temperature)
        return scores

    def answer_batch(self, inputs: dict[str, Tensor], options: InferenceOptions) -> BatchAnswers:
        """Answer and score a batch; the decoder does not run for inputs that are deferred before it."""
        if options.score not in BEFORE_DECODER:
            return super().answer_batch(inputs, options)
        encoded = self.encode(inputs)
        scores = self._early_score(encoded, options.score, options.temperature)
        table = F.pad(scores[:, None], (0, 3))
        kept = (~route(scores, options.threshold)).nonzero().squeeze(1)
        if len(kept):
            logits = self.label_logits(*self.take(encoded, inputs, kept))
            table[kept, 1:] = self.table(None, logits, options.order)[:, 1:]
        return BatchAnswers(table)

    def short_way(self, options: InferenceOptions) -> list[Pass] | None:
        """One pass, or two if the score is known before the decoder: its column, then the table."""
        if self.generate or self.trie is None or self.task.kind.has_candidates:
            return None
        if options.score not in BEFORE_DECODER:
            return super().short_way(options)

        def before(inputs: dict[str, Tensor]) -> tuple[Tensor, Encoded]:
            encoded = self.encode(inputs)
            return self._early_score(encoded, options.score, options.temperature)[:, None], encoded

        def after(encoded: Encoded) -> tuple[Tensor, None]:
            return self.table(None, self.label_logits(encoded, {}), options.order), None

        return [before, after]

    def flops(
        self, inputs: dict[str, Tensor], convention: FlopsConvention = "exact", steps: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cost of each input, with and without the decoder."""
        config, lengths = self.backbone.config, inputs["attention_mask"].sum(-1).cpu()
        encoder = flops_by_length(config, lengths, convention, "encoder")
        if self.trie is not None:
            constrained = flops_by_length(config, lengths, convention, "all", self.trie.decoder) - encoder
        else:
            # Every candidate is decoded separately.
            counts, tokens = inputs["num_choices"].cpu(), (inputs["answer_ids"] >= 0).sum(-1).cpu()
            constrained = sum_by_example(decoder_flops(config, lengths[owner(counts)], tokens, convention), counts)
        early = encoder + self._head_flops("encoder", "encoder_router")
        encoder_and_heads = early + self._head_flops("router")
        if steps is None:
            return {"flops": encoder_and_heads + constrained, "early_flops": early}
        generated = decoder_flops(config, lengths, steps.cpu(), convention)
        # A constrained decode of a single step has the logits of the first generated step.
        single = self.trie is not None and self.trie.decoder == (1, 1)
        return {
            "flops": encoder_and_heads + generated,
            "early_flops": early,
            "score_flops": torch.zeros_like(constrained) if single else constrained,
        }
