"""Decoder-only language models (Llama, Qwen, Gemma, GPT-2) that generate a text after a prompt.

The prompt is read once: the router head on its last hidden state decides whether to generate, and its keys and values
are what the text starts from.
"""

from bisect import bisect_left
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessorList, StaticCache, StoppingCriteriaList
from transformers.modeling_outputs import CausalLMOutputWithPast

from elang.backends.backend import Generated
from elang.backends.causal_passes import cache_name, padded_left, read_flops, takes_any_mask, text_flops, text_law
from elang.backends.decoder_only import DecoderOnly, check_fixed_cache
from elang.backends.fast.causal import CausalSteps, passes_of
from elang.backends.fast.graphs import Pass, is_greedy
from elang.backends.flops import FlopsConvention, flops_key, tell_estimated
from elang.backends.generation import Generation
from elang.backends.network import InferenceOptions
from elang.backends.packing import After, packed_logits
from elang.backends.prompted import Prompted, Stopped, read_already, read_at_end
from elang.backends.shared_prefix import Rows
from elang.backends.text_scores import SAMPLES, Check, Noise, disagreement, drawn_by
from elang.data.batches import Reader
from elang.data.prompts import turn_end
from elang.errors import InputError
from elang.method.scores import ASKED_SCORES, BEFORE_DECODER
from elang.records.manifest import Manifest
from elang.tasks.extraction import found_answers
from elang.tasks.sampling import Sampling
from elang.tasks.text_task import TextTask


class CausalGenerator(DecoderOnly, Generation):
    """Any ``AutoModelForCausalLM`` that generates a text after a prompt, greedily or with ``num_beams``."""

    early_router, first_token = "prompt_router", True
    asked: tuple[str, ...] = ()
    """The :data:`~elang.method.scores.ASKED_SCORES` that are computed with each answer."""

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
        self.stop = task.next_example
        self.check_batches()

    @property
    def streams(self) -> bool:  # type: ignore[override]
        """Without beams, of which the best is known at the end."""
        return self.num_beams == 1

    @cached_property
    def check(self) -> Check:
        """The question whether an answer is right."""
        return Check.of(self.tokenizer, self.task)

    def ask_for(self, *names: str) -> list[str]:
        """Compute those of :data:`~elang.method.scores.ASKED_SCORES` that are named; returns :attr:`head_scores`."""
        self.asked = tuple(name for name in ASKED_SCORES if name in (*self.asked, *names))
        if "p_true" in self.asked:
            self.prompt = self.prompt.reserving(len(self.check.tokens))
        return self.head_scores

    def set_origin(self, weights: Path | None, manifest: Manifest | None, **more: Any) -> None:
        """Record where it is from; a finished Swift computes the scores that it has thresholds for."""
        super().set_origin(weights, manifest, **more)
        if manifest is not None:
            self.ask_for(manifest.score, *manifest.thresholds)

    @property
    def head_scores(self) -> list[str]:
        """Names of the scores that its heads compute, and of those that were asked for."""
        return [*super().head_scores, *self.asked]

    @property
    def costs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The columns of :meth:`flops`."""
        return (*super().costs, *(f"{name}_flops" for name in self.asked))

    def score_of(self, name: str, answer: Generated, temperature: float = 1.0) -> Tensor:
        """One of :meth:`scores`, computed without the others, ``(B,)``."""
        if name == "p_true":
            return self._p_true(answer)
        return self._disagreement(answer) if name == "agreement" else super().score_of(name, answer, temperature)

    def scores(self, answer: Generated, temperature: float = 1.0, fold: Tensor | None = None) -> dict[str, Tensor]:
        """Every difficulty score of a batch, each ``(B,)``, of :data:`ASKED_SCORES` those that were asked for."""
        return super().scores(answer, temperature, fold) | {name: self.score_of(name, answer) for name in self.asked}

    @torch.no_grad()
    def _p_true(self, answer: Generated) -> Tensor:
        """What the model says when it is asked whether its answer is right, by one pass over all."""
        prompts, ids = answer.encoded, self.padded_ids(answer)
        if self.stop:
            # What it wrote of another example is no part of its answer.
            rows = self.prompt.answer_tokens(self.tokenizer, self.texts(ids))
            ids = pad_sequence([ids.new_tensor(row) for row in rows], batch_first=True, padding_value=-1)
        text = (ids >= 0) & ~torch.isin(ids, torch.tensor(self.end_tokens, device=ids.device))
        asked = torch.cat([prompts.ids, ids.clamp_min(0)], 1), torch.cat([prompts.mask, text.to(prompts.mask)], 1)
        ids, mask = padded_left(*self.check.after(*asked))
        longest = int(mask.sum(1).max())
        return self.check.score(self.after(ids[:, -longest:], mask[:, -longest:]).logits[:, -1])

    @torch.no_grad()
    def _disagreement(self, answer: Generated) -> Tensor:
        """By how many of :data:`SAMPLES` samples the most frequent answer is missed, as a share."""
        # A cache of fixed size has no room for several texts of a prompt.
        fixed, self.static_cache = self.static_cache, False
        prompts = self.begin(Prompted(answer.encoded.ids, answer.encoded.mask)).repeated(SAMPLES)
        self.static_cache = fixed
        config = self.greedy_settings()
        config.update(num_beams=1, early_stopping=False, length_penalty=1.0)
        noise = Noise(answer.encoded.ids, answer.encoded.mask, SAMPLES)
        ids = self._continued(prompts, prompts.output, config, logits_processor=LogitsProcessorList([noise]))
        place = torch.arange(ids.shape[1], device=ids.device)
        texts = self.texts(ids.masked_fill(place >= self.count_steps(ids)[:, None], -1))
        return torch.tensor(disagreement(found_answers(self.task, texts), SAMPLES), device=ids.device)

    @property
    def reader(self) -> Reader:
        """How it reads, with room for a text after the prompt."""
        return super().reader._replace(end=self.end, text=self.max_new_tokens)

    @property
    def longest_text(self) -> int | None:
        """Half of the positions that prompt and text share."""
        return int(self.tokenizer.model_max_length // 2)

    def compiled_parts(self) -> list[nn.Module]:
        """All but the head on the vocabulary."""
        return [self.backbone.base_model]

    def sample(self, sampling: Sampling) -> None:
        """Draw texts from now on, instead of the most probable tokens or beams."""
        self.configure_generation(self.max_new_tokens, 1)
        self.sampling = sampling

    def use_static_cache(self, static: bool) -> None:
        """Set whether texts are generated with a cache of fixed size. Raises InputError if that cannot be."""
        if static:
            check_fixed_cache(self.backbone.config, self.num_beams)
        super().use_static_cache(static)

    def encode(self, inputs: dict[str, Tensor]) -> Prompted:
        """The prompts, not yet read."""
        return Prompted(*self.prompts(inputs))

    @torch.no_grad()
    def begin(self, encoded: Prompted) -> Prompted:
        """Read the prompts."""
        if encoded.output is not None:
            return encoded
        if self.static_cache and self.num_beams == 1:
            length = encoded.ids.shape[1] + self.max_new_tokens
            cache = StaticCache(config=self.backbone.config, max_cache_len=length)
            rows = Rows(encoded.ids, encoded.mask, cache)
        else:
            rows = self.split(encoded.ids, encoded.mask, self.room)
            encoded.ids, encoded.mask = self.prefix.whole(rows), rows.mask
        hidden = bool(self.heads)
        output = self.run(rows, use_cache=True, output_hidden_states=hidden)
        cache = {cache_name(): getattr(output, cache_name())}
        encoded.output = CausalLMOutputWithPast(logits=output.logits, **cache)
        encoded.pooled = read_at_end(output) if hidden else None
        return encoded

    def pooled(self, encoded: Prompted) -> Tensor:
        """The scores of the first token, and the last hidden state at the prompts' ends."""
        pooled = encoded.pooled if encoded.pooled is not None else self.begin(encoded).pooled
        assert pooled is not None
        return pooled

    def logits(self, encoded: Prompted, labels: Tensor) -> Tensor:
        """The logits for each token of given texts, after the prompt and the ones before it, ``(B, T, V)``."""
        if self.packs:
            return packed_logits(self.backbone, encoded.ids, encoded.mask, After.of(None, labels))
        logits: Tensor = self.after(encoded.ids, encoded.mask, labels[:, :-1].clamp_min(0)).logits
        return logits

    def probe(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The logits of the first token, ``(B, V)``."""
        logits: Tensor = self.after(ids, mask).logits[:, -1]
        return logits

    def generated_ids(self, encoded: Prompted, config: Any, **options: Any) -> Tensor:
        """The tokens that the library generates with a configuration, without the prompt, int64 ``(B, T)``."""
        if self.sampling is not None and "logits_processor" not in options:
            options["logits_processor"] = drawn_by(self.sampling, encoded.ids, encoded.mask)
        return self._continued(encoded, encoded.repeated(self.num_beams).output, config, **options)

    def _continued(self, encoded: Prompted, output: Any, config: Any, **options: Any) -> Tensor:
        """The tokens that the library puts behind prompts, whose ``output`` has a row for each beam."""
        # The cache and when to compile are decided here.
        config.update(use_cache=True, cache_implementation=None, disable_compile=True)
        if config.pad_token_id is None:
            config.pad_token_id = self.end
        if self.stop and (config.num_beams or 1) == 1 and not config.min_new_tokens:
            stopped = Stopped(self.tokenizer, self.stop, encoded.ids.shape[1])
            options.setdefault("stopping_criteria", StoppingCriteriaList()).append(stopped)
        # In its older versions the library penalises repeated tokens of the padding: it is each prompt's first token.
        first = encoded.ids.gather(1, encoded.mask.argmax(1, keepdim=True))
        with read_already(self.backbone, output):
            ids: Tensor = self.backbone.generate(
                input_ids=torch.where(encoded.mask > 0, encoded.ids, first),
                attention_mask=encoded.mask,
                generation_config=config,
                synced_gpus=self.in_step,
                **options,
            )
        return ids[:, encoded.ids.shape[1] :]

    def count_steps(self, ids: Tensor) -> Tensor:
        """Tokens of each text ``(B, T)`` up to its end, or through the beginning of another example, int64 ``(B,)``."""
        steps = super().count_steps(ids)
        for row, count in enumerate(steps.tolist() if self.stop else ()):
            tokens = ids[row, :count].tolist()

            def stopped(length: int, tokens: list[int] = tokens) -> bool:
                return self.stop in self.tokenizer.decode(tokens[:length], skip_special_tokens=True)

            if stopped(count):
                steps[row] = bisect_left(range(count), True, key=stopped)
        return steps

    def steps(self, score: str | None) -> CausalSteps | None:
        """The short way to generate texts and compute a score of them, if there is one."""
        # A string that ends texts is looked for on the host, and so are samples drawn.
        if self.stop or self.static_cache or self.in_step or self.sampling or score in ASKED_SCORES:
            return None
        # Without graphs, to read a shared beginning only once saves more.
        shares = self.prefix.tokens and self.backbone.device.type == "cpu"
        if shares or not (takes_any_mask(self.backbone.config) and is_greedy(self.settings)):
            return None
        pad = self.settings.pad_token_id
        return CausalSteps(
            self.backbone,
            self.max_new_tokens,
            ends=self.end_tokens,
            pad=self.end if pad is None else pad,
            scored=score is not None and score not in BEFORE_DECODER,
            hidden=bool(self.heads),
        )

    def short_way(self, options: InferenceOptions) -> list[Pass] | None:
        """Four passes: reading prompts, the first token, one token, the end; ``None`` without a short way.

        The first table has the score if it is known before the text; the last one has it if not, and the tokens.
        """
        steps = self.steps(options.score)
        return None if steps is None else passes_of(self, steps, options.score)

    def check_cost(self) -> None:
        """Count FLOPs before they are needed; a notice tells if they are estimated."""
        tell_estimated(self.backbone.config, text_law(flops_key(self.backbone.config))[2])

    def flops(
        self, inputs: dict[str, Tensor], convention: FlopsConvention = "exact", steps: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Cost of each input, with and without the text, which took ``steps``; without them it generates."""
        if steps is None:
            steps = self.generate(self.encode(inputs), scored=False).steps
        config, (lengths, shared), steps = self.backbone.config, self.counted(inputs), steps.cpu()
        prompt, text, again = text_flops(config, lengths, steps, convention, beams=self.num_beams, shared=shared)
        early = prompt + self._head_flops(self.early_router)
        asked = {}
        if "p_true" in self.asked:
            # The end of the text is left out, and the question whether it is right follows.
            length = lengths + steps - 1 + len(self.check.tokens)
            asked["p_true_flops"] = read_flops(config, length, convention, shared=shared)
        if "agreement" in self.asked:
            # As if each sample were as long as the text.
            asked["agreement_flops"] = prompt + SAMPLES * text / self.num_beams
        return asked | {
            "flops": early + text + self._head_flops("router"),
            "early_flops": early,
            # Greedy decoding yields the scores on its way; with beams the chosen text is read once more.
            "score_flops": again if self.num_beams > 1 else torch.zeros_like(again),
        }
