"""How an encoder-decoder generates texts: by the library or the short way, with scores of the tokens."""

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.backends.backend import Encoded
from elang.backends.encoder_decoder import EncoderDecoder
from elang.backends.fast.t5 import T5Steps, Texts
from elang.backends.loading.tokenizer import set_languages
from elang.data.batches import IGNORE_INDEX
from elang.errors import InputError
from elang.method.scores import SEQUENCE_SCORES, sequence_scores, token_scores
from elang.tasks.text_task import TextTask

# Settings that leave greedy decoding as it is; those of beams and samples have no effect on it.
_GREEDY_SETTINGS = {
    *("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id", "max_new_tokens", "num_beams"),
    *("do_sample", "temperature", "top_k", "top_p", "use_cache", "output_attentions", "output_hidden_states"),
    *("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty"),
    *("return_dict_in_generate", "output_scores", "transformers_version", "_from_model_config"),
}
# Logits that are scored at a time: vocabularies are large.
_CHUNK = 1 << 26


@dataclass(frozen=True)
class Generated:
    """What the decoder generated for a batch."""

    encoded: Encoded
    ids: Tensor  # tokens without the start, padded, int64 (B, T)
    steps: Tensor  # decoder steps of each text, the end token included, int64 (B,)
    scores: Tensor  # SEQUENCE_SCORES, float32 (B, 24)


class TokenWatch:
    """Scores greedily chosen tokens while they are generated: a forward hook that sees each step's logits."""

    def __init__(self) -> None:
        self.scores: list[Tensor] = []
        self.logits: Tensor | None = None

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Score the last token, and keep the logits of the next one."""
        self.take(kwargs["decoder_input_ids"][:, -1])
        self.logits = output.logits[:, -1]

    def take(self, chosen: Tensor) -> None:
        """Score the tokens that were chosen from the last logits."""
        if self.logits is not None:
            self.scores.append(token_scores(self.logits, chosen))


class Generation(EncoderDecoder):
    """An encoder-decoder that generates a text from a text, with ``num_beams`` (by default the model's own setting)."""

    def __init__(self, backbone: Any, tokenizer: Any, task: TextTask, num_beams: int | None = None) -> None:
        super().__init__(backbone, tokenizer, task)
        self.settings = backbone.generation_config
        if self.settings.decoder_start_token_id is None:
            self.settings.decoder_start_token_id = getattr(backbone.config, "decoder_start_token_id", None)
        self.check_start(self.settings.decoder_start_token_id)
        self.configure_generation(128, num_beams)
        set_languages(backbone, tokenizer, task.languages)

    def limit_new_tokens(self, tokens: int) -> None:
        """Limit the length of texts, also to the positions that the decoder has."""
        positions = getattr(self.backbone.config, "max_position_embeddings", None)
        # The library would apply the model's own limit, too.
        self.settings.max_length = None
        self.settings.max_new_tokens = min(tokens, positions) if positions else tokens

    @property
    def max_new_tokens(self) -> int:
        """The most tokens that are generated."""
        limit: int = self.settings.max_new_tokens
        return limit

    def configure_generation(self, max_new_tokens: int, num_beams: int | None = None) -> None:
        """Limit the length of texts and, if it is given, set the number of beams."""
        self.limit_new_tokens(max_new_tokens)
        if num_beams is None:
            return
        if num_beams < 1:
            raise InputError(f"--model.num_beams must be at least 1, but it is {num_beams}.")
        self.settings.num_beams = num_beams
        if num_beams == 1:
            # A configuration with settings for beams but without beams is invalid, and could not be saved.
            self.settings.update(early_stopping=False, length_penalty=1.0, num_beam_groups=None, diversity_penalty=None)

    @cached_property
    def vocabulary(self) -> str:
        """Hash of the tokenizer's vocabulary: equal for models whose tokens mean the same."""
        tokens = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(repr(tokens).encode()).hexdigest()

    @property
    def num_beams(self) -> int:
        """Hypotheses that are decoded side by side."""
        return self.settings.num_beams or 1

    def early_features(self, encoded: Any) -> Tensor:
        """What the router before the decoder reads, float32 ``(B, D + 1)``: log of the length, mean hidden state."""
        return torch.cat([encoded.mask.sum(1, keepdim=True).log(), encoded.pooled.float()], 1)

    def logits(self, encoded: Encoded, labels: Tensor) -> Tensor:
        """The decoder's logits for each token of given texts, after the ones before it, ``(B, T, V)``."""
        filled = labels.masked_fill(labels == IGNORE_INDEX, self.backbone.config.pad_token_id)
        ids = F.pad(filled[:, :-1], (1, 0), value=self.settings.decoder_start_token_id)
        logits: Tensor = self._decode(encoded, decoder_input_ids=ids).logits
        return logits

    @torch.no_grad()
    def generate(self, encoded: Encoded, exactly: int | None = None, scored: bool = True) -> Generated:
        """Generate texts and, if ``scored``, score their tokens; ``exactly`` fixes the number of steps, for timing."""
        if (short := self.steps(scored, exactly)) is not None:
            return self.generated(encoded, short.all(encoded.hidden, encoded.mask))
        config = copy.deepcopy(self.settings)
        config.update(do_sample=False, return_dict_in_generate=False)
        if exactly is not None:
            config.update(max_new_tokens=exactly, min_new_tokens=exactly)
        if self.static_cache:
            # Compilation is the runtime's decision.
            config.update(cache_implementation="static", disable_compile=True)
        watch, greedy = TokenWatch(), scored and self.num_beams == 1
        hook = self.backbone.register_forward_hook(watch, with_kwargs=True) if greedy else None
        try:
            ids, steps = self._generated(encoded, generation_config=config)
        finally:
            if hook is not None:
                hook.remove()
        if not scored:
            return Generated(encoded, ids, steps, _no_scores(encoded))
        if greedy:
            watch.take(ids[:, -1])
            tokens = torch.stack(watch.scores, 1)
        else:
            tokens = self._score(encoded, ids)
        # A forced language code is not a decision.
        forced = int(config.forced_bos_token_id is not None and ids.shape[1] > 1)
        return Generated(encoded, ids, steps, sequence_scores(tokens[:, forced:], (steps - forced).clamp_min(1)))

    def steps(self, scored: bool, exactly: int | None = None) -> T5Steps | None:
        """The short way to generate, if the family has one and its settings ask for plain greedy decoding."""
        path, config = self.inference_path, self.settings
        if path is None or self.static_cache or self.num_beams > 1:
            return None
        if {name for name, value in config.to_diff_dict().items() if value is not None} - _GREEDY_SETTINGS:
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
        scores = _no_scores(encoded)
        if texts.scores is not None:
            scores = sequence_scores(texts.scores, texts.steps.clamp_min(1))
        return Generated(encoded, texts.ids, texts.steps, scores)

    def _score(self, encoded: Encoded, ids: Tensor) -> Tensor:
        """Scores of the tokens of finished texts, ``(B, T, 4)``."""
        rows = max(1, _CHUNK // (ids.shape[1] * self.backbone.get_output_embeddings().weight.shape[0]))
        parts = torch.arange(len(ids), device=ids.device).split(rows)
        return torch.cat([token_scores(self.logits(encoded[part], ids[part]), ids[part]) for part in parts])

    def padded_ids(self, generated: Generated) -> Tensor:
        """Generated tokens up to the end of each text, and -1 after it: ``(B, max_new_tokens)``."""
        place = torch.arange(generated.ids.shape[1], device=generated.ids.device)
        ids = generated.ids.masked_fill(place >= generated.steps[:, None], -1)
        return F.pad(ids, (0, self.max_new_tokens - ids.shape[1]), value=-1)


def _no_scores(encoded: Encoded) -> Tensor:
    return encoded.hidden.new_zeros(len(encoded.mask), len(SEQUENCE_SCORES), dtype=torch.float32)
