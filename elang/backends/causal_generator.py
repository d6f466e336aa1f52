"""Decoder-only language models (Llama, Qwen, Gemma, GPT-2) that generate a text after a prompt.

The prompt is read once: the router head on its last hidden state decides whether to generate, and its keys and values
are what the text starts from.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from elang.backends.causal_passes import read_already, text_flops, text_law
from elang.backends.decoder_only import DecoderOnly, turn_end
from elang.backends.flops import FlopsConvention, tell_estimated
from elang.backends.generation import Generation
from elang.backends.network import InferenceOptions
from elang.data.batches import Reader
from elang.errors import InputError
from elang.tasks.text_task import TextTask


@dataclass
class Prompted:
    """A batch of prompts, padded on the left, and what reading them left, if they have been read."""

    ids: Tensor  # (B, L)
    mask: Tensor  # (B, L)
    output: Any = None  # logits at the prompts' ends, (B, 1, V), keys and values; until texts are generated from them
    pooled: Tensor | None = None  # the last hidden state, (B, D), if there are heads

    def __getitem__(self, rows: Tensor) -> "Prompted":
        """Some of the prompts; of the others, keys and values are given up."""
        output, pooled = self.output, self.pooled
        if output is not None:
            output.past_key_values.batch_select_indices(rows)
            output = CausalLMOutputWithPast(logits=output.logits[rows], past_key_values=output.past_key_values)
        return Prompted(self.ids[rows], self.mask[rows], output, None if pooled is None else pooled[rows])


class CausalGenerator(DecoderOnly, Generation):
    """Any ``AutoModelForCausalLM`` that generates a text after a prompt, greedily or with ``num_beams``."""

    early_router = "prompt_router"

    def __init__(self, backbone: Any, tokenizer: Any, task: TextTask, num_beams: int | None = None) -> None:
        super().__init__(backbone, tokenizer, task, num_beams)
        ends = self.end_tokens
        end = turn_end(tokenizer) if task.label_words == "chat" else None
        if end is None:
            known = tokenizer.eos_token_id
            end = known if known in ends or not ends else ends[0]
        if end is None:
            raise InputError(
                "This model's texts would never end: neither its tokenizer (eos_token) nor its generation_config.json "
                "(eos_token_id) names an end of text. Set it in one of them."
            )
        self.end = int(end)
        self.settings.update(eos_token_id=list(dict.fromkeys([*ends, self.end])), forced_bos_token_id=None)
        self.check_batches()

    @property
    def reader(self) -> Reader:
        """How it reads, with room for a text after the prompt."""
        return super().reader._replace(prompt=self.prompt.reserving(self.max_new_tokens), end=self.end)

    @property
    def longest_text(self) -> int | None:
        """Half of the positions that prompt and text share."""
        return int(self.tokenizer.model_max_length // 2)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        width: int = self.backbone.config.get_text_config().hidden_size
        return width

    def compiled_parts(self) -> list[nn.Module]:
        """All but the head on the vocabulary."""
        return [self.backbone.base_model]

    def encode(self, inputs: dict[str, Tensor]) -> Prompted:
        """The prompts, not yet read."""
        return Prompted(*self.prompts(inputs))

    @torch.no_grad()
    def begin(self, encoded: Prompted) -> Prompted:
        """Read the prompts."""
        if encoded.output is not None:
            return encoded
        cache = {}
        if self.static_cache and self.num_beams == 1:
            length = encoded.ids.shape[1] + self.max_new_tokens
            cache["past_key_values"] = StaticCache(config=self.backbone.config, max_cache_len=length)
        hidden = bool(self.heads)
        output = self.after(encoded.ids, encoded.mask, use_cache=True, output_hidden_states=hidden, **cache)
        encoded.output = CausalLMOutputWithPast(logits=output.logits, past_key_values=output.past_key_values)
        encoded.pooled = output.hidden_states[-1][:, -1] if hidden else None
        return encoded

    def pooled(self, encoded: Prompted) -> Tensor:
        """The last hidden state at the prompts' ends."""
        pooled = encoded.pooled if encoded.pooled is not None else self.begin(encoded).pooled
        assert pooled is not None
        return pooled

    def logits(self, encoded: Prompted, labels: Tensor) -> Tensor:
        """The logits for each token of given texts, after the prompt and the ones before it, ``(B, T, V)``."""
        logits: Tensor = self.after(encoded.ids, encoded.mask, labels[:, :-1].clamp_min(0)).logits
        return logits

    def probe(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The logits of the first token, ``(B, V)``."""
        logits: Tensor = self.after(ids, mask).logits[:, -1]
        return logits

    def generated_ids(self, encoded: Prompted, config: Any) -> Tensor:
        """The tokens that the library generates with a configuration, without the prompt, int64 ``(B, T)``."""
        # The cache and when to compile are decided here.
        config.update(use_cache=True, cache_implementation=None, disable_compile=True)
        if config.pad_token_id is None:
            config.pad_token_id = self.end
        # Its cache grows with the text.
        output, encoded.output = encoded.output, None
        if self.num_beams > 1:
            output.past_key_values.batch_repeat_interleave(self.num_beams)
            output.logits = output.logits.repeat_interleave(self.num_beams, 0)
        # In its older versions the library penalises repeated tokens of the padding: it is each prompt's first token.
        first = encoded.ids.gather(1, encoded.mask.argmax(1, keepdim=True))
        with read_already(self.backbone, output):
            ids: Tensor = self.backbone.generate(
                input_ids=torch.where(encoded.mask > 0, encoded.ids, first),
                attention_mask=encoded.mask,
                generation_config=config,
                synced_gpus=self.in_step,
            )
        return ids[:, encoded.ids.shape[1] :]

    def short_way(self, options: InferenceOptions) -> None:
        """There is none: every step has another shape."""

    def check_cost(self) -> None:
        """Count FLOPs before they are needed; a notice tells if they are estimated."""
        tell_estimated(self.backbone.config, text_law(self.backbone.config.to_json_string(use_diff=False))[2])

    def flops(
        self, inputs: dict[str, Tensor], convention: FlopsConvention = "exact", steps: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cost of each input, with and without the text, which took ``steps``; without them it generates."""
        if steps is None:
            steps = self.generate(self.encode(inputs), scored=False).steps
        lengths = inputs["attention_mask"].sum(-1)
        prompt, text, again = text_flops(self.backbone.config, lengths, steps, convention, self.num_beams)
        early = prompt + self._head_flops(self.early_router)
        return {
            "flops": early + text + self._head_flops("router"),
            "early_flops": early,
            # Greedy decoding yields the scores on its way; with beams the chosen text is read once more.
            "score_flops": again if self.num_beams > 1 else torch.zeros_like(again),
        }
