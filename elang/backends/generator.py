"""Encoder-decoders (T5, Marian, BART, NLLB) that generate texts: by the library or the short way, and their costs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.backends.backend import Encoded, Generated
from elang.backends.encoder_decoder import EncoderDecoder
from elang.backends.fast.graphs import WANTED, Pass, is_greedy
from elang.backends.fast.t5 import T5Steps, Texts
from elang.backends.flops import FlopsConvention, flops_by_length, generation_flops
from elang.backends.generation import Generation
from elang.backends.loading.tokenizer import set_languages
from elang.backends.network import InferenceOptions
from elang.data.batches import IGNORE_INDEX
from elang.method.scores import BEFORE_DECODER, sequence_scores
from elang.tasks.text_task import TextTask


class TextGenerator(EncoderDecoder, Generation):
    """Any ``AutoModelForSeq2SeqLM`` that generates a text from a text; its arguments are :class:`Generation`'s."""

    early_router = "encoder_router"

    def __init__(self, backbone: Any, tokenizer: Any, task: TextTask, num_beams: int | None = None) -> None:
        super().__init__(backbone, tokenizer, task, num_beams)
        if self.settings.decoder_start_token_id is None:
            self.settings.decoder_start_token_id = getattr(backbone.config, "decoder_start_token_id", None)
        self.check_start(self.settings.decoder_start_token_id)
        set_languages(backbone, tokenizer, task.languages)

    @property
    def longest_text(self) -> int | None:
        """The positions that the decoder has, if there is a limit."""
        return getattr(self.backbone.config, "max_position_embeddings", None)

    @property
    def hidden_size(self) -> int:
        """Width of the encoder's hidden states."""
        width: int = self.backbone.get_encoder().config.hidden_size
        return width

    def pooled(self, encoded: Encoded) -> Tensor:
        """The mean hidden state of the encoder."""
        assert encoded.pooled is not None
        return encoded.pooled

    def logits(self, encoded: Encoded, labels: Tensor) -> Tensor:
        """The decoder's logits for each token of given texts, after the ones before it, ``(B, T, V)``."""
        filled = labels.masked_fill(labels == IGNORE_INDEX, self.backbone.config.pad_token_id)
        ids = F.pad(filled[:, :-1], (1, 0), value=self.settings.decoder_start_token_id)
        logits: Tensor = self._decode(encoded, decoder_input_ids=ids).logits
        return logits

    @torch.no_grad()
    def generate(self, encoded: Encoded, exactly: int | None = None, scored: bool = True) -> Generated:
        """Generate and score texts, the short way if there is one."""
        if (short := self.steps(scored, exactly)) is not None:
            return self.generated(encoded, short.all(encoded.hidden, encoded.mask))
        return super().generate(encoded, exactly, scored)

    def generated_ids(self, encoded: Encoded, config: Any) -> Tensor:
        """The tokens that the library generates with a configuration, without the start, int64 ``(B, T)``."""
        if self.static_cache:
            # Compilation is the runtime's decision.
            config.update(cache_implementation="static", disable_compile=True)
        return self._generated(encoded, generation_config=config)[0]

    def steps(self, scored: bool, exactly: int | None = None) -> T5Steps | None:
        """The short way to generate, if the family has one and its settings ask for plain greedy decoding."""
        path, config = self.inference_path, self.settings
        if path is None or self.static_cache or not is_greedy(config):
            return None
        start, ends = config.decoder_start_token_id, self.end_tokens
        # The library's default.
        pad = config.pad_token_id if config.pad_token_id is not None else next(iter(ends), None)
        if not isinstance(start, int) or not isinstance(pad, int):
            return None
        ends = ends if exactly is None else []
        return T5Steps(path, exactly or self.max_new_tokens, start=start, ends=ends, pad=pad, scored=scored)

    def generated(self, encoded: Encoded, texts: Texts) -> Generated:
        """What the short way generated for a batch."""
        scores = self._no_scores(encoded)
        if texts.scores is not None:
            scores = sequence_scores(texts.scores, texts.steps.clamp_min(1))
        return Generated(encoded, texts.ids, texts.steps, scores)

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
            return self.early_score(encoded, early)[:, None], (encoded, inputs[WANTED])

        def begin(state: tuple[Encoded, Tensor]) -> tuple[Tensor, Any]:
            encoded, wanted = state
            texts = steps.begin(encoded.hidden, encoded.mask, wanted)
            return texts.left[:, None], (encoded, texts)

        def step(state: tuple[Encoded, Texts]) -> tuple[Tensor, Any]:
            steps.step(state[1])
            return state[1].left[:, None], state

        def last(state: tuple[Encoded, Texts]) -> tuple[Tensor, Any]:
            scores = self.early_score(state[0], None)
            if late is not None:
                scores = self.score_of(late, self.generated(*state)).float()
            # Token ids are exact in float32: there are fewer than 2^24.
            return torch.cat([scores[:, None], state[1].ids[:, : steps.length].float()], 1), state

        return [first, begin, step, last]

    def flops(
        self, inputs: dict[str, Tensor], convention: FlopsConvention = "exact", steps: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cost of each input, with and without the decoder, which took ``steps``; without them it generates."""
        if steps is None:
            steps = self.generate(self.encode(inputs), scored=False).steps
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
