"""Encoder-decoders (T5, Marian, BART, NLLB) that generate texts: their answers, scores and costs."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.backends.backend import Answer, Columns, Encoded
from elang.backends.fast.graphs import WANTED, Pass
from elang.backends.fast.t5 import Texts
from elang.backends.flops import FlopsConvention, flops_by_length, generation_flops
from elang.backends.generation import Generated, Generation
from elang.backends.network import BatchAnswers, InferenceOptions
from elang.data.batches import IGNORE_INDEX
from elang.method.deferral import route
from elang.method.router import RouterHead
from elang.method.scores import BEFORE_DECODER, SEQUENCE_DEFAULT, SEQUENCE_SCORES


class TextGenerator(Generation):
    """Any ``AutoModelForSeq2SeqLM`` that generates a text from a text; its arguments are :class:`Generation`'s."""

    costs = ("flops", "early_flops", "score_flops")

    def add_heads(self) -> None:
        """Add a router head on either side of the decoder, untrained."""
        width: int = self.backbone.get_encoder().config.hidden_size
        self.heads["router"] = RouterHead(len(SEQUENCE_SCORES) + 2)
        self.heads["encoder_router"] = RouterHead(width + 1, width)

    def candidates(self, name: str) -> tuple[dict[str, list[int]] | None, str | None]:
        """Sets of features for a router head to choose from."""
        if name == "encoder_router":
            return None, None
        single = {SEQUENCE_DEFAULT: [SEQUENCE_SCORES.index(SEQUENCE_DEFAULT)]}
        return single | {"token scores and lengths": list(range(self.routers[name].width))}, SEQUENCE_DEFAULT

    def forward(self, inputs: dict[str, Tensor], target: Tensor | None = None, want_logits: bool = True) -> Answer:
        """Read the references, ``inputs["labels"]``: the loss over their tokens, and all logits, ``(B, T, V)``."""
        return self._read(self.encode(inputs), inputs["labels"])

    def _read(self, encoded: Encoded, labels: Tensor) -> Answer:
        logits, smoothing = self.logits(encoded, labels), self.label_smoothing
        flat = logits.float().flatten(0, 1), labels.flatten()
        loss = F.cross_entropy(*flat, ignore_index=IGNORE_INDEX, label_smoothing=smoothing)
        return Answer(logits, labels, loss, source=encoded)

    def answer_batch(self, inputs: dict[str, Tensor], options: InferenceOptions) -> BatchAnswers:
        """Generate and score texts; the decoder does not run for inputs that are deferred before it."""
        encoded, score = self.encode(inputs), options.score
        if score is not None and score not in BEFORE_DECODER:
            generated = self.generate(encoded)
            scores = self.score_of(score, generated).float()
            return BatchAnswers(F.pad(scores[:, None], (0, 2)), list(self.texts(generated.ids)))
        scores = self._early_score(encoded, score)
        kept = (~route(scores, options.threshold)).nonzero().squeeze(1)
        texts: list[str | None] = [None] * len(scores)
        if len(kept):
            generated = self.generate(encoded if len(kept) == len(scores) else encoded[kept], scored=False)
            for place, text in zip(kept.tolist(), self.texts(generated.ids), strict=True):
                texts[place] = text
        return BatchAnswers(F.pad(scores[:, None], (0, 2)), texts)

    def short_way(self, options: InferenceOptions) -> list[Pass] | None:
        """Four passes: up to the decoder, to the first token, one token, the end; ``None`` without a short way.

        The first table has the score if it is known before the decoder; the last one has it if not, and the tokens.
        """
        early = options.score if options.score in BEFORE_DECODER else None
        late = options.score if early is None else None
        steps = self.steps(late is not None)
        if steps is None:
            return None

        def first(inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
            encoded = self.encode(inputs)
            return self._early_score(encoded, early)[:, None], (encoded, inputs[WANTED])

        def begin(state: tuple[Encoded, Tensor]) -> tuple[Tensor, Any]:
            encoded, wanted = state
            texts = steps.begin(encoded.hidden, encoded.mask, wanted)
            return texts.left[:, None], (encoded, texts)

        def step(state: tuple[Encoded, Texts]) -> tuple[Tensor, Any]:
            steps.step(state[1])
            return state[1].left[:, None], state

        def last(state: tuple[Encoded, Texts]) -> tuple[Tensor, Any]:
            scores = self._early_score(state[0], None)
            if late is not None:
                scores = self.score_of(late, self.generated(*state)).float()
            # Token ids are exact in float32: there are fewer than 2^24.
            return torch.cat([scores[:, None], state[1].ids[:, : steps.length].float()], 1), state

        return [first, begin, step, last]

    def metric_columns(self) -> Columns:
        """The tokens of its texts alone."""
        return {"ids": ((self.max_new_tokens,), torch.int32)}

    def metric_answers(self, inputs: dict[str, Tensor], target: Tensor | None = None) -> dict[str, Tensor]:
        """Generate a batch's texts; with a target, also the ``loss`` over the references."""
        encoded = self.encode(inputs)
        answers = {"ids": self.padded_ids(self.generate(encoded, scored=False))}
        loss = None if target is None else self._read(encoded, inputs["labels"]).loss
        return answers if loss is None else answers | {"loss": loss.expand(len(answers["ids"]))}

    def columns(self, features: bool = False, top_k: int = 0) -> Columns:
        """The columns of :meth:`answer_columns`."""
        places = (self.max_new_tokens, top_k)
        return (
            super().columns(features)
            | {"steps": ((), torch.int64), "scores": ((len(SEQUENCE_SCORES),), torch.float32)}
            | ({"top_ids": (places, torch.int32), "top_log_probs": (places, torch.float32)} if top_k else {})
        )

    def _full_answer(self, inputs: dict[str, Tensor]) -> Generated:
        return self.generate(self.encode(inputs))

    def _answer_columns(
        self, answer: Generated, inputs: dict[str, Tensor], *, order: list[int], top_k: int
    ) -> dict[str, Tensor]:
        """The texts' tokens, padded with -1, steps and scores."""
        columns = {"steps": answer.steps, "ids": self.padded_ids(answer), "scores": answer.scores}
        return columns | (self._top_tokens(answer.encoded, inputs, top_k) if top_k else {})

    def _top_tokens(self, encoded: Encoded, inputs: dict[str, Tensor], top_k: int) -> dict[str, Tensor]:
        """The most probable tokens at each place of the references, for distillation."""
        # An example of a test file has no reference: one padded place.
        labels = inputs.get("labels", inputs["input_ids"].new_full((len(encoded.mask), 1), IGNORE_INDEX))
        best = self.logits(encoded, labels).float().log_softmax(-1).topk(top_k, -1)
        pad = (0, 0, 0, self.max_new_tokens - labels.shape[1])
        ids = F.pad(best.indices.masked_fill(labels[..., None] == IGNORE_INDEX, -1), pad, value=-1)
        return {"top_ids": ids, "top_log_probs": F.pad(best.values, pad)}

    def described_answers(self, top_k: int) -> dict[str, Any]:
        """How the texts are chosen, and what their tokens mean."""
        return {"num_beams": self.num_beams, "top_k": top_k, "vocabulary": self.vocabulary}

    def timed_parts(self, steps: int, scored: bool) -> dict[str, Callable[[dict[str, Tensor]], object]]:
        """Generation of this many tokens, and the encoder."""
        return {
            "": lambda inputs: self.generate(self.encode(inputs), exactly=steps, scored=scored),
            "encoder": self.encode,
        }

    def router_features(self, answer: Generated) -> dict[str, Tensor]:
        """What each router head reads: the one after the decoder all scores and the logs of both lengths."""
        features = {}
        if "router" in self.heads:
            lengths = torch.stack([answer.steps.float().log(), answer.encoded.mask.sum(1).log()], 1)
            features["router"] = torch.cat([answer.scores, lengths], 1)
        if "encoder_router" in self.heads:
            features["encoder_router"] = self.early_features(answer.encoded)
        return features

    def _headless_scores(self, answer: Generated, temperature: float) -> dict[str, Tensor]:
        return dict(zip(SEQUENCE_SCORES, answer.scores.unbind(1), strict=True))

    def flops(
        self, inputs: dict[str, Tensor], convention: FlopsConvention = "exact", steps: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cost of each input, with and without the decoder, which took ``steps``."""
        assert steps is not None
        config, lengths = self.backbone.config, inputs["attention_mask"].sum(-1).cpu()
        early = flops_by_length(config, lengths, convention, "encoder") + self._head_flops("encoder_router")
        decoder = generation_flops(config, lengths, steps, convention, self.num_beams)
        # Greedy decoding yields the scores on its way; with beams the chosen text is decoded once more.
        again = generation_flops(config, lengths, steps, convention, cached=False)
        return {
            "flops": early + decoder + self._head_flops("router"),
            "early_flops": early,
            "score_flops": again if self.num_beams > 1 else torch.zeros_like(again),
        }
