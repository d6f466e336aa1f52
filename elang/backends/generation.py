"""Language models that generate texts: settings, answers and scores, whatever stands before the first token."""

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elang.backends.backend import Answer, Columns, Generated
from elang.backends.network import BatchAnswers, InferenceOptions
from elang.backends.text_model import TextModel
from elang.backends.text_scores import TokenWatch
from elang.data.batches import IGNORE_INDEX
from elang.errors import InputError, listed
from elang.method.deferral import route
from elang.method.router import RouterHead
from elang.method.scores import (
    BEFORE_DECODER,
    ROUTER_READS_OF_TEXTS,
    SEQUENCE_DEFAULT,
    SEQUENCE_SCORES,
    TOKEN_SCORES,
    sequence_scores,
    token_scores,
)
from elang.notices import notice
from elang.tasks.text_task import TextTask

# Logits that are scored at a time: vocabularies are large.
_CHUNK = 1 << 26
# Settings of generation_config.json that change no text, and those with which the library would fail here.
_UNUSED = {"cache_implementation": None, "num_return_sequences": 1, "prompt_lookup_num_tokens": None}
_REFUSED = ("stop_strings", "penalty_alpha", "guidance_scale", "num_beam_groups", "dola_layers")


class Generation(TextModel):
    """A language model that generates a text from a text, with ``num_beams`` (by default the model's own setting).

    It reads a batch with :meth:`encode`; what this returns has its ``mask``, ``(B, L)``, and can be indexed by rows.
    """

    text_to_text = True
    costs = ("flops", "early_flops", "score_flops")
    early_router: str
    """The router head that is known before a text is generated."""
    first_token = False
    """Whether it reads the scores of the first token, too."""

    def __init__(self, backbone: Any, tokenizer: Any, task: TextTask, num_beams: int | None = None) -> None:
        super().__init__(backbone, tokenizer, task)
        self.settings = backbone.generation_config
        self.configure_generation(128, num_beams)
        if wrong := [name for name in _REFUSED if getattr(self.settings, name, None) not in (None, 0, 1)]:
            raise InputError(
                f"The generation_config.json of this '{backbone.config.model_type}' model sets {listed(wrong)}, which "
                "elang does not follow: take it out of the file."
            )
        # What is not set stays so: T5's short way looks for settings.
        self.settings.update(**{k: v for k, v in _UNUSED.items() if getattr(self.settings, k) not in (None, v)})
        if self.settings.do_sample:
            notice(
                "greedy-texts",
                f"The generation_config.json of this '{backbone.config.model_type}' model asks for samples "
                "(do_sample): the most probable tokens are taken instead, so that answers can be repeated.",
            )

    @abstractmethod
    def encode(self, inputs: dict[str, Tensor]) -> Any:
        """What texts are generated from."""

    def begin(self, encoded: Any) -> Any:
        """Compute what is left to do before a text is generated; an input that is deferred then pays for it, too."""
        return encoded

    @abstractmethod
    def pooled(self, encoded: Any) -> Tensor:
        """The hidden states that :attr:`early_router` reads, ``(B, D)``, without gradients.

        With :attr:`first_token` the :data:`~elang.method.scores.TOKEN_SCORES` of the first token come before them.
        """

    @abstractmethod
    def logits(self, encoded: Any, labels: Tensor) -> Tensor:
        """The logits for each token of given texts, after the ones before it, ``(B, T, V)``."""

    @abstractmethod
    def generated_ids(self, encoded: Any, config: Any) -> Tensor:
        """The tokens that the library generates with a configuration, without start or prompt, int64 ``(B, T)``."""

    @property
    @abstractmethod
    def longest_text(self) -> int | None:
        """The most tokens that there are positions for, if there is a limit."""

    def limit_new_tokens(self, tokens: int) -> None:
        """Limit the length of texts, also to :attr:`longest_text`."""
        # The library would apply the model's own limit, too.
        self.settings.max_length = None
        self.settings.max_new_tokens = min(tokens, self.longest_text or tokens)

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

    def add_heads(self) -> None:
        """Add a router head for before and one for after generation, untrained."""
        self.heads["router"] = RouterHead(len(ROUTER_READS_OF_TEXTS) + 2)
        scores = len(TOKEN_SCORES) if self.first_token else 0
        self.heads[self.early_router] = RouterHead(1 + scores + self.hidden_size, self.hidden_size, later=scores)

    def candidates(self, name: str) -> tuple[dict[str, list[int]] | None, str | None]:
        """Sets of features for a router head to choose from."""
        if name == self.early_router and not self.first_token:
            return None, None
        if name == self.early_router:
            simple, known = "nll of the first token", range(1 + len(TOKEN_SCORES))
            every = {"its scores and the length": list(known), "all features": list(range(self.routers[name].width))}
            return {simple: [1 + TOKEN_SCORES.index("nll")]} | every, simple
        single = {SEQUENCE_DEFAULT: [ROUTER_READS_OF_TEXTS.index(SEQUENCE_DEFAULT)]}
        return single | {"token scores and lengths": list(range(self.routers[name].width))}, SEQUENCE_DEFAULT

    def early_features(self, encoded: Any) -> Tensor:
        """What the router before generation reads, float32 ``(B, 1 + D)``: log of the length, :meth:`pooled`."""
        return torch.cat([encoded.mask.sum(1, keepdim=True).log(), self.pooled(encoded).float()], 1)

    def router_features(self, answer: Generated) -> dict[str, Tensor]:
        """What each router head reads: the one after generation scores and the logs of both lengths."""
        features = {}
        if "router" in self.heads:
            lengths = torch.stack([answer.steps.float().log(), answer.encoded.mask.sum(1).log()], 1)
            features["router"] = torch.cat([answer.scores[:, : len(ROUTER_READS_OF_TEXTS)], lengths], 1)
        if self.early_router in self.heads:
            features[self.early_router] = self.early_features(answer.encoded)
        return features

    def _headless_scores(self, answer: Generated, temperature: float) -> dict[str, Tensor]:
        return dict(zip(SEQUENCE_SCORES, answer.scores.unbind(1), strict=True))

    def early_score(self, encoded: Any, score: str | None) -> Tensor:
        """A score that is known before generation, or zeros without one, in the type of the table of answers."""
        kind = self.task.kind.exact_type
        if score is None:
            return torch.zeros(len(encoded.mask), dtype=kind, device=encoded.mask.device)
        value: Tensor = self.routers[score](self.early_features(encoded))
        return value.to(kind)

    def forward(self, inputs: dict[str, Tensor], target: Tensor | None = None, want_logits: bool = True) -> Answer:
        """Read the references, ``inputs["labels"]``: the loss over their tokens, and all logits, ``(B, T, V)``."""
        return self._read(self.encode(inputs), inputs["labels"])

    def _read(self, encoded: Any, labels: Tensor) -> Answer:
        logits, smoothing = self.logits(encoded, labels), self.label_smoothing
        flat = logits.float().flatten(0, 1), labels.flatten()
        loss = F.cross_entropy(*flat, ignore_index=IGNORE_INDEX, label_smoothing=smoothing)
        return Answer(logits, labels, loss, source=encoded)

    @torch.no_grad()
    def generate(self, encoded: Any, exactly: int | None = None, scored: bool = True) -> Generated:
        """Generate texts and, if ``scored``, score their tokens; ``exactly`` fixes the number of steps, for timing."""
        config = self.greedy_settings()
        if exactly is not None:
            config.update(max_new_tokens=exactly, min_new_tokens=exactly)
        encoded = self.begin(encoded)
        watch, greedy = TokenWatch(), scored and self.num_beams == 1
        hook = self.backbone.register_forward_hook(watch, with_kwargs=True) if greedy else None
        try:
            ids = self.generated_ids(encoded, config)
        finally:
            if hook is not None:
                hook.remove()
        steps = self.count_steps(ids)
        if not scored:
            return Generated(encoded, ids, steps, self._no_scores(encoded))
        if greedy:
            watch.take(ids[:, -1])
            tokens = torch.stack(watch.scores, 1)
        else:
            tokens = self._score(encoded, ids)
        # A forced language code is not a decision.
        forced = int(config.forced_bos_token_id is not None and ids.shape[1] > 1)
        return Generated(encoded, ids, steps, sequence_scores(tokens[:, forced:], (steps - forced).clamp_min(1)))

    def greedy_settings(self) -> Any:
        """A copy of its settings, for the most probable tokens or beams."""
        config = copy.deepcopy(self.settings)
        # What only samples have would be refused.
        config.update(do_sample=False, temperature=None, top_k=None, top_p=None, return_dict_in_generate=False)
        return config

    def _no_scores(self, encoded: Any) -> Tensor:
        return torch.zeros(len(encoded.mask), len(SEQUENCE_SCORES), device=encoded.mask.device)

    def _score(self, encoded: Any, ids: Tensor) -> Tensor:
        """Scores of the tokens of finished texts, ``(B, T, 5)``."""
        rows = max(1, _CHUNK // (ids.shape[1] * self.backbone.get_output_embeddings().weight.shape[0]))
        parts = torch.arange(len(ids), device=ids.device).split(rows)
        return torch.cat([token_scores(self.logits(encoded[part], ids[part]), ids[part]) for part in parts])

    def padded_ids(self, generated: Generated) -> Tensor:
        """Generated tokens up to the end of each text, and -1 after it: ``(B, max_new_tokens)``."""
        place = torch.arange(generated.ids.shape[1], device=generated.ids.device)
        ids = generated.ids.masked_fill(place >= generated.steps[:, None], -1)
        return F.pad(ids, (0, self.max_new_tokens - ids.shape[1]), value=-1)

    def answer_batch(self, inputs: dict[str, Tensor], options: InferenceOptions) -> BatchAnswers:
        """Generate and score texts; nothing is generated for inputs that are deferred before it."""
        encoded, score = self.encode(inputs), options.score
        if score is not None and score not in BEFORE_DECODER:
            generated = self.generate(encoded)
            scores = self.score_of(score, generated).float()
            return BatchAnswers(F.pad(scores[:, None], (0, 2)), list(self.texts(self.padded_ids(generated))))
        scores = self.early_score(encoded, score)
        kept = (~route(scores, options.threshold)).nonzero().squeeze(1)
        texts: list[str | None] = [None] * len(scores)
        if len(kept):
            generated = self.generate(encoded if len(kept) == len(scores) else encoded[kept], scored=False)
            for place, text in zip(kept.tolist(), self.texts(self.padded_ids(generated)), strict=True):
                texts[place] = text
        return BatchAnswers(F.pad(scores[:, None], (0, 2)), texts)

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

    def _top_tokens(self, encoded: Any, inputs: dict[str, Tensor], top_k: int) -> dict[str, Tensor]:
        """The most probable tokens at each place of the references, for distillation."""
        # An example of a test file has no reference: one padded place.
        labels = inputs.get("labels", inputs["input_ids"].new_full((len(encoded.mask), 1), IGNORE_INDEX))
        best = self.logits(encoded, labels).float().log_softmax(-1).topk(top_k, -1)
        pad = (0, 0, 0, self.max_new_tokens - labels.shape[1])
        ids = F.pad(best.indices.masked_fill(labels[..., None] == IGNORE_INDEX, -1), pad, value=-1)
        return {"top_ids": ids, "top_log_probs": F.pad(best.values, pad)}

    def described_answers(self, top_k: int) -> dict[str, Any]:
        """How the texts are chosen, and what their tokens mean."""
        how = {"num_beams": self.num_beams, "top_k": top_k, "vocabulary": self.vocabulary}
        return how | ({} if self.sampling is None else {"sampling": self.sampling.plain()})

    def timed_parts(self, steps: int, scored: bool) -> dict[str, Callable[[dict[str, Tensor]], object]]:
        """Generation of this many tokens, and what comes before it: the ``encoder``, or reading the ``prompt``."""
        return {
            "": lambda inputs: self.generate(self.encode(inputs), exactly=steps, scored=scored),
            self.early_router.removesuffix("_router"): lambda inputs: self.begin(self.encode(inputs)),
        }
