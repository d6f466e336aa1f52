"""How an encoder-decoder generates texts: as the library does or the short way, with scores of the tokens."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from elang.backends.encoder import masked_mean
from elang.backends.fast.t5_decoding import T5Steps, Texts
from elang.backends.loading.tokenizer import set_languages
from elang.backends.text_model import TextModel
from elang.data.batches import IGNORED
from elang.errors import InputError
from elang.method.scores import SEQUENCE_SCORES, sequence_scores, token_scores
from elang.tasks.text_task import TextTask

# What may be set where greedy texts are all that is asked for; what is for beams or samples is of no effect.
_PLAIN = {
    *("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id", "max_new_tokens", "num_beams"),
    *("do_sample", "temperature", "top_k", "top_p", "use_cache", "output_attentions", "output_hidden_states"),
    *("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty"),
    *("return_dict_in_generate", "output_scores", "transformers_version", "_from_model_config"),
}
# Logits that are scored at a time, for a vocabulary is wide.
_CHUNK = 1 << 26


@dataclass(frozen=True)
class Source:
    """An encoded batch, before the decoder runs.

    Attributes:
        hidden: The encoder's output, ``(B, L, D)``.
        mask: 1 on real tokens, ``(B, L)``.
        features: What the encoder's router reads, float32 ``(B, D + 1)``: mean hidden state, log of the token count.
    """

    hidden: Tensor
    mask: Tensor
    features: Tensor

    def __getitem__(self, rows: Tensor) -> Source:
        return Source(self.hidden[rows], self.mask[rows], self.features[rows])


@dataclass(frozen=True)
class Generated:
    """What the decoder made of a batch.

    Attributes:
        ids: Generated tokens without the start, padded, int64 ``(B, T)``.
        steps: Decoder steps of each, its end included, int64 ``(B,)``.
        scores: :data:`elang.method.scores.SEQUENCE_SCORES`, float32 ``(B, 24)``.
    """

    ids: Tensor
    steps: Tensor
    scores: Tensor


class TokenWatch:
    """Scores greedily chosen tokens as they are generated: a forward hook that sees each step's logits."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []
        self.logits: Tensor | None = None

    def __call__(self, module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
        """Score the last token, and keep the logits of the next one."""
        self.take(given["decoder_input_ids"][:, -1])
        self.logits = output.logits[:, -1]

    def take(self, chosen: Tensor) -> None:
        """Score the tokens that the last logits led to."""
        if self.logits is not None:
            self.scores.append(token_scores(self.logits, chosen))


class Generation(TextModel):
    """An encoder-decoder that generates a text for a text, and the settings by which it does.

    Args:
        backbone: The model.
        tokenizer: Its tokenizer.
        task: Gives the prompt and the languages.
        num_beams: Hypotheses that are decoded side by side; by default the model's own setting.
    """

    text_to_text = True

    def __init__(self, backbone: Any, tokenizer: Any, task: TextTask, num_beams: int | None = None) -> None:
        super().__init__(backbone, tokenizer, task)
        kind, own = backbone.config.model_type, backbone.generation_config
        if own.decoder_start_token_id is None:
            own.decoder_start_token_id = getattr(backbone.config, "decoder_start_token_id", None)
        if own.decoder_start_token_id is None:
            raise InputError(
                f"The decoder of a '{kind}' model starts with no fixed token (its config.json has no "
                "decoder_start_token_id), so it cannot be scored."
            )
        if num_beams is not None:
            self.set_beams(num_beams)
        self.static_cache = False
        self.limit_new_tokens(128)
        set_languages(backbone, tokenizer, task.languages)

    def limit_new_tokens(self, tokens: int) -> None:
        """Generate at most so many tokens, and no more than the decoder has positions for."""
        positions = getattr(self.backbone.config, "max_position_embeddings", None)
        # Only here can a model's own limit be taken back.
        self.backbone.generation_config.max_length = None
        self.backbone.generation_config.max_new_tokens = min(tokens, positions) if positions else tokens

    @property
    def max_new_tokens(self) -> int:
        """Tokens that are generated at most."""
        limit: int = self.backbone.generation_config.max_new_tokens
        return limit

    def use_static_cache(self, static: bool) -> None:
        """Generate with a cache of fixed size, or not."""
        self.static_cache = static

    def set_beams(self, num_beams: int) -> None:
        """Choose each text from so many hypotheses.

        Raises:
            InputError: If there are none.
        """
        if num_beams < 1:
            raise InputError(f"--model.num_beams must be at least 1, but it is {num_beams}.")
        own = self.backbone.generation_config
        own.num_beams = num_beams
        if num_beams == 1:
            # What is for beams alone makes a configuration without them invalid, and it could not be saved.
            own.update(early_stopping=False, length_penalty=1.0, num_beam_groups=None, diversity_penalty=None)

    def configure_generation(self, max_new_tokens: int, num_beams: int | None = None) -> None:
        """Set the length of texts and, if it is given, the number of beams."""
        self.limit_new_tokens(max_new_tokens)
        if num_beams is not None:
            self.set_beams(num_beams)

    @cached_property
    def vocabulary(self) -> str:
        """Hash of the tokenizer's vocabulary: equal for models whose tokens mean the same."""
        tokens = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(repr(tokens).encode()).hexdigest()

    @property
    def num_beams(self) -> int:
        """Hypotheses that are decoded side by side."""
        return self.backbone.generation_config.num_beams or 1

    def compiled_parts(self) -> list[torch.nn.Module]:
        """The encoder is run by itself, and its output is then given to the whole."""
        return [self.backbone.get_encoder(), self.backbone]

    def encode(self, inputs: dict[str, Tensor]) -> Source:
        """Run the encoder."""
        mask = inputs["attention_mask"]
        hidden = self.encoder_output(inputs)
        features = torch.cat([mask.sum(1, keepdim=True).log(), masked_mean(hidden, mask).detach().float()], 1)
        return Source(hidden, mask, features)

    def _decode(self, source: Source, **decoder: Tensor) -> Tensor:
        encoded = BaseModelOutput(last_hidden_state=source.hidden)
        logits: Tensor = self.backbone(
            encoder_outputs=encoded, attention_mask=source.mask, use_cache=False, **decoder
        ).logits
        return logits

    def logits(self, source: Source, labels: Tensor) -> Tensor:
        """The decoder's logits over given texts, ``(B, T, V)``: of each token, after those before it."""
        start = self.backbone.generation_config.decoder_start_token_id
        filled = labels.masked_fill(labels == IGNORED, self.backbone.config.pad_token_id)
        return self._decode(source, decoder_input_ids=F.pad(filled[:, :-1], (1, 0), value=start))

    @torch.no_grad()
    def generate(self, source: Source, exactly: int | None = None, scored: bool = True) -> Generated:
        """Generate as the library does, and score the tokens.

        Args:
            source: From :meth:`encode`.
            exactly: So many steps, for timing; by default until each text ends, or :attr:`max_new_tokens`.
            scored: Whether scores are needed; zeros stand for them otherwise.
        """
        if (short := self.steps(scored, exactly)) is not None:
            return self.generated(source, short.all(source.hidden, source.mask))
        config = copy.deepcopy(self.backbone.generation_config)
        config.update(do_sample=False, return_dict_in_generate=False)
        if exactly is not None:
            config.update(max_new_tokens=exactly, min_new_tokens=exactly)
        if self.static_cache:
            # The runtime compiles, or nothing does.
            config.update(cache_implementation="static", disable_compile=True)
        watch, greedy = TokenWatch(), scored and self.num_beams == 1
        hook = self.backbone.register_forward_hook(watch, with_kwargs=True) if greedy else None
        try:
            ids = self.backbone.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=source.hidden),
                attention_mask=source.mask,
                generation_config=config,
                synced_gpus=self.in_step,
            )[:, 1:]
        finally:
            if hook is not None:
                hook.remove()
        ends = torch.isin(ids, torch.tensor(_ids(config.eos_token_id), device=ids.device))
        steps = torch.where(ends.any(-1), ends.int().argmax(-1) + 1, ids.shape[1])
        if not scored:
            return Generated(ids, steps, source.features.new_zeros(len(ids), len(SEQUENCE_SCORES)))
        if greedy:
            watch.take(ids[:, -1])
            tokens = torch.stack(watch.scores, 1)
        else:
            tokens = self._score(source, ids)
        # A language code that is forced is no decision.
        forced = int(config.forced_bos_token_id is not None and ids.shape[1] > 1)
        return Generated(ids, steps, sequence_scores(tokens[:, forced:], (steps - forced).clamp_min(1)))

    def steps(self, scored: bool, exactly: int | None = None) -> T5Steps | None:
        """The short way to generate, where its family has one and its settings ask for nothing but greedy texts."""
        path, config = self.inference_path, self.backbone.generation_config
        if path is None or self.static_cache or self.num_beams > 1:
            return None
        if {name for name, value in config.to_diff_dict().items() if value is not None} - _PLAIN:
            return None
        start, ends = config.decoder_start_token_id, _ids(config.eos_token_id)
        # As the library has it.
        pad = config.pad_token_id if config.pad_token_id is not None else next(iter(ends), None)
        if not isinstance(start, int) or not isinstance(pad, int):
            return None
        return T5Steps(path, exactly or self.max_new_tokens, start, ends if exactly is None else [], pad, scored)

    def generated(self, source: Source, texts: Texts) -> Generated:
        """What the short way made of a batch."""
        scores = source.features.new_zeros(len(texts.ids), len(SEQUENCE_SCORES))
        if texts.scores is not None:
            scores = sequence_scores(texts.scores, texts.steps.clamp_min(1))
        return Generated(texts.ids, texts.steps, scores)

    def _score(self, source: Source, ids: Tensor) -> Tensor:
        """Scores of finished texts' tokens, ``(B, T, 4)``."""
        rows = max(1, _CHUNK // (ids.shape[1] * self.backbone.get_output_embeddings().weight.shape[0]))
        parts = torch.arange(len(ids), device=ids.device).split(rows)
        return torch.cat([token_scores(self.logits(source[part], ids[part]), ids[part]) for part in parts])

    def padded_ids(self, made: Generated) -> Tensor:
        """Generated tokens up to the end of each text, and -1 behind it: ``(B, max_new_tokens)``."""
        place = torch.arange(made.ids.shape[1], device=made.ids.device)
        ids = made.ids.masked_fill(place >= made.steps[:, None], -1)
        return F.pad(ids, (0, self.max_new_tokens - ids.shape[1]), value=-1)


def _ids(given: int | list[int] | None) -> list[int]:
    return [] if given is None else [given] if isinstance(given, int) else given
