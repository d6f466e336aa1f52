"""Passes of fixed shapes by which models with a decoder answer small batches, for graphs to capture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.backends.backend import Answer, Columns
from elang.backends.fast.graphs import WANTED, Pass
from elang.backends.fast.t5_decoding import Texts
from elang.backends.flops import FlopsConvention, flops_by_length, generation_flops
from elang.backends.generation import Generated, Generation, Source
from elang.backends.inference import BatchAnswers
from elang.data.batches import IGNORED
from elang.method.deferral import route
from elang.method.router import RouterHead
from elang.method.scores import BEFORE_DECODER, SEQUENCE_DEFAULT, SEQUENCE_SCORES
from elang.records.table import Records

if TYPE_CHECKING:
    from elang.backends.backend import Encoded
    from elang.backends.label_decoder import TextToText


def early_label_passes(model: TextToText, score: str, temperature: float, order: list[int] | None) -> list[Pass]:
    """Two passes: a score that is known before the decoder, ``(B, 1)``, and the decoder's answers, ``(B, 3)``."""

    def before(inputs: dict[str, Tensor]) -> tuple[Tensor, Encoded]:
        encoded = model.encode(inputs)
        return model.early_scores(encoded, temperature)[score].to(model.task.kind.exact_type)[:, None], encoded

    def after(encoded: Encoded) -> tuple[Tensor, None]:
        return model.table(None, model.label_logits(encoded, {}), order), None

    return [before, after]


def generation_passes(model: Seq2Seq, score: str | None) -> list[Pass] | None:
    """Four passes: up to the decoder, to the first token, one token, and the end.

    Args:
        model: A generator.
        score: What routes; ``None`` where nothing does.

    Returns:
        The first one's table has the score if it is known before the decoder, the last one's the score if it is not,
        and the tokens, ``(B, 1 + T)``; ``None`` where the family has no short way to generate.
    """
    early = score in BEFORE_DECODER
    late = None if early else score
    steps = model.steps(late is not None)
    if steps is None:
        return None

    def first(inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
        source = model.encode(inputs)
        known = model.early_scores(source)[score] if early and score else source.features.new_zeros(len(source.mask))
        return known.float()[:, None], (source, inputs[WANTED])

    def begin(state: tuple[Source, Tensor]) -> tuple[Tensor, Any]:
        source, wanted = state
        texts = steps.begin(source.hidden, source.mask, wanted)
        return texts.left[:, None], (source, texts)

    def step(state: tuple[Source, Texts]) -> tuple[Tensor, Any]:
        steps.step(state[1])
        return state[1].left[:, None], state

    def last(state: tuple[Source, Texts]) -> tuple[Tensor, Any]:
        source, texts = state
        known = source.features.new_zeros(len(texts.ids))
        if late is not None:
            known = model.late_scores(source, model.generated(*state))[late]
        # Exact, for there are fewer tokens than 2^24.
        return torch.cat([known.float()[:, None], texts.ids[:, : steps.most].float()], 1), state

    return [first, begin, step, last]


class Seq2Seq(Generation):
    """Any ``AutoModelForSeq2SeqLM`` that generates a text for a text; its arguments are :class:`Generation`'s."""

    costs = ("flops", "early_flops", "score_flops")

    @property
    def head_scores(self) -> list[str]:
        """Names of the scores that its heads give, the one before the decoder last."""
        return [name for name in ("router", "encoder_router") if name in self.heads]

    def add_heads(self) -> None:
        """Give it a router head on either side of the decoder, untrained."""
        width: int = self.backbone.get_encoder().config.hidden_size
        self.heads["router"] = RouterHead(len(SEQUENCE_SCORES) + 2)
        self.heads["encoder_router"] = RouterHead(width + 1, width)

    def candidates(self, name: str) -> tuple[dict[str, list[int]] | None, str | None]:
        """What a router head may read."""
        if name == "encoder_router":
            return None, None
        single = {SEQUENCE_DEFAULT: [SEQUENCE_SCORES.index(SEQUENCE_DEFAULT)]}
        return single | {"token scores and lengths": list(range(self.routers[name].width))}, SEQUENCE_DEFAULT

    def forward(self, inputs: dict[str, Tensor], target: Tensor | None = None, want_logits: bool = True) -> Answer:
        """Read the references, ``inputs["labels"]``: the loss over their tokens, and all logits, ``(B, T, V)``."""
        source = self.encode(inputs)
        logits = self.logits(source, inputs["labels"])
        loss = F.cross_entropy(
            logits.float().flatten(0, 1),
            inputs["labels"].flatten(),
            ignore_index=IGNORED,
            label_smoothing=self.label_smoothing,
        )
        # Texts are generated, not read off.
        return Answer(logits, inputs["labels"], loss, source=source)

    def answer_batch(
        self,
        inputs: dict[str, Tensor],
        score: str | None = None,
        threshold: float = math.inf,
        *,
        temperature: float = 1.0,
        order: list[int] | None = None,
    ) -> BatchAnswers:
        """Generate and score texts; the decoder does not run for what is deferred before it."""
        source = self.encode(inputs)
        if score is not None and score not in BEFORE_DECODER:
            made = self.generate(source)
            late = self.late_scores(source, made)[score]
            return BatchAnswers(F.pad(late.float()[:, None], (0, 2)), list(self.texts(made.ids)))
        known = self.early_scores(source)[score].float() if score else source.features.new_zeros(len(source.hidden))
        kept = (~route(known, threshold)).nonzero().squeeze(1)
        texts: list[str | None] = [None] * len(known)
        if len(kept):
            made = self.generate(source if len(kept) == len(known) else source[kept], scored=False)
            for place, text in zip(kept.tolist(), self.texts(made.ids), strict=True):
                texts[place] = text
        return BatchAnswers(F.pad(known[:, None], (0, 2)), texts)

    def short_way(
        self, score: str | None = None, temperature: float = 1.0, order: list[int] | None = None
    ) -> list[Pass] | None:
        """Passes of fixed shapes, where the family has a short way to generate."""
        return generation_passes(self, score)

    def plain_columns(self) -> Columns:
        """The tokens of its texts alone."""
        return {"ids": ((self.max_new_tokens,), torch.int32)}

    def plain_answers(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Generate a batch's texts."""
        return {"ids": self.padded_ids(self.generate(self.encode(inputs), scored=False))}

    def columns(self, features: bool = False, top_k: int = 0) -> Columns:
        """The columns of :meth:`answer_columns`."""
        places = (self.max_new_tokens, top_k)
        return (
            super().columns(features)
            | {"steps": ((), torch.int64), "scores": ((len(SEQUENCE_SCORES),), torch.float32)}
            | ({"top_ids": (places, torch.int32), "top_log_probs": (places, torch.float32)} if top_k else {})
        )

    def answer_columns(
        self,
        inputs: dict[str, Tensor],
        order: list[int],
        temperature: float = 1.0,
        convention: FlopsConvention = "exact",
        fold: Tensor | None = None,
        features: bool = False,
        top_k: int = 0,
    ) -> dict[str, Tensor]:
        """Generate a batch's texts: their tokens, padded with -1, steps, scores, cost."""
        source = self.encode(inputs)
        made = self.generate(source)
        tokens = inputs["attention_mask"].sum(-1)
        scores = self.late_scores(source, made, fold) | self.early_scores(source, fold)
        columns = {
            "tokens": tokens,
            "steps": made.steps,
            "ids": self.padded_ids(made),
            "scores": made.scores,
            **{name: cost.to(tokens.device) for name, cost in self.flops(inputs, convention, made.steps).items()},
            **{name: scores[name] for name in self.head_scores},
        }
        if features and self.routers:
            columns["router_features"] = self.after_features(source, made)
            columns["encoder_router_features"] = source.features
        return columns | (self._top_tokens(source, inputs, top_k) if top_k else {})

    def _top_tokens(self, source: Source, inputs: dict[str, Tensor], top_k: int) -> dict[str, Tensor]:
        """The most probable tokens at each place of the references, which distillation learns from."""
        # An example without a reference, of a test file, has one padded place.
        labels = inputs.get("labels", inputs["input_ids"].new_full((len(source.mask), 1), IGNORED))
        best = self.logits(source, labels).float().log_softmax(-1).topk(top_k, -1)
        pad = (0, 0, 0, self.max_new_tokens - labels.shape[1])
        ids = F.pad(best.indices.masked_fill(labels[..., None] == IGNORED, -1), pad, value=-1)
        return {"top_ids": ids, "top_log_probs": F.pad(best.values, pad)}

    def records(self, table: dict[str, Tensor]) -> Records:
        """The texts of a table, as they are kept."""
        texts, none = self.texts(table["ids"]), torch.zeros_like(table["id"])
        return Records(table["id"], none, key=table.get("key"), texts=texts, **self._recorded(table))

    def described_answers(self, top_k: int) -> dict[str, Any]:
        """How the texts are chosen, and what their tokens mean."""
        return {"num_beams": self.num_beams, "top_k": top_k, "vocabulary": self.vocabulary}

    def timed_parts(self, steps: int, scored: bool) -> dict[str, Callable[[dict[str, Tensor]], object]]:
        """Generation of so many tokens, and the encoder."""

        def whole(inputs: dict[str, Tensor]) -> Generated:
            return self.generate(self.encode(inputs), exactly=steps, scored=scored)

        return {"": whole, "encoder": self.encode}

    def after_features(self, source: Source, made: Generated) -> Tensor:
        """What the router after the decoder reads, float32 ``(B, 26)``: all scores, logs of both lengths."""
        lengths = torch.stack([made.steps.float().log(), source.features[:, 0]], 1)
        return torch.cat([made.scores, lengths], 1)

    def early_scores(self, source: Source, fold: Tensor | None = None) -> dict[str, Tensor]:
        """The scores that are known before the decoder runs; ``fold`` as in :class:`elang.method.router.RouterHead`."""
        heads = self.routers
        return {"encoder_router": heads["encoder_router"](source.features, fold)} if "encoder_router" in heads else {}

    def late_scores(self, source: Source, made: Generated, fold: Tensor | None = None) -> dict[str, Tensor]:
        """The scores that the decoder is needed for, each ``(B,)``; larger is harder."""
        found = dict(zip(SEQUENCE_SCORES, made.scores.unbind(1), strict=True))
        if "router" in self.heads:
            found["router"] = self.routers["router"](self.after_features(source, made), fold)
        return found

    def flops(
        self, inputs: dict[str, Tensor], convention: FlopsConvention = "exact", steps: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cost of each input, with and without the decoder, which took so many ``steps``."""
        assert steps is not None
        config, lengths = self.backbone.config, inputs["attention_mask"].sum(-1).cpu()
        early = flops_by_length(config, lengths, convention, "encoder") + self._head_flops("encoder_router")
        decoder = generation_flops(config, lengths, steps, convention, self.num_beams)
        found = {"flops": early + decoder + self._head_flops("router"), "early_flops": early}
        # A greedy decoder's scores are read off as it goes; of beams, the one that won is run through once more.
        again = generation_flops(config, lengths, steps, convention, cached=False)
        return found | {"score_flops": again if self.num_beams > 1 else torch.zeros_like(again)}

    def class_order(self, label_names: list[str], who: str, whose: str = "the data") -> list[int]:
        """There are no classes."""
        return []
