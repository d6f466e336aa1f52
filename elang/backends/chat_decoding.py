"""Answers to conversations, written token by token: each with settings of its own, in one batch."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from elang.backends.backend import Generated
from elang.backends.causal_generator import CausalGenerator
from elang.backends.prompted import Prompted
from elang.backends.text_scores import Noise
from elang.method.scores import sequence_scores, token_scores

# A decoder writes this where the bytes of a character are not complete yet.
_INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class Chat:
    """A conversation and how it is to be gone on with.

    Attributes:
        texts: The last turn, the user's: a text for each of the task's fields.
        turns: What was said before, each a role (``user`` or ``assistant``) and a text.
        system: The system text, in place of the task's.
        tokens: The most tokens of an answer; by default the model's own limit.
        stop: Strings that end an answer; they are no part of it.
        temperature: 0 takes the most probable tokens; ``None`` does as the model does.
        top_p: The share of probability that samples are drawn from.
        top_k: The number of most probable tokens that they are drawn from; 0: any number.
        seed: Makes samples repeatable: equal prompts and settings give the text of ``sampling`` with this seed.
        count: The number of answers, which are samples if there are several.
        top_logprobs: The number of most probable tokens that are returned at each place; ``None`` returns no
            log-probabilities at all.
        threshold: Above this score nothing is written, if the score is known before.
    """

    texts: tuple[str, ...]
    turns: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    tokens: int | None = None
    stop: tuple[str, ...] = ()
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    count: int = 1
    top_logprobs: int | None = None
    threshold: float = math.inf

    @property
    def sampled(self) -> bool:
        """Whether its answers are samples."""
        return bool(self.temperature)


# Takes a conversation's place and a part of its answer, and returns the places of those that need no answer any more.
Talk = Callable[[int, dict[str, Any]], set[int]]


class Row:
    """An answer while it is written: what has been told of it, and why it ended."""

    def __init__(self, place: int, choice: int, chat: Chat, tokens: int) -> None:
        self.place, self.choice, self.chat, self.tokens = place, choice, chat, tokens
        self.ids: list[int] = []
        self.told, self.finish = "", ""
        self.logprobs: list[dict[str, Any]] = []

    def add(self, model: CausalGenerator, token: int) -> str:
        """Take a token; returns the new text that can be told already."""
        self.ids.append(token)
        ended = token in model.end_tokens
        if ended:
            self.finish = "stop"
        elif len(self.ids) >= self.tokens:
            self.finish = "length"
        text: str = model.tokenizer.decode(self.ids, skip_special_tokens=True)
        whole = text
        for stop in filter(None, (model.stop, *self.chat.stop)):
            whole = whole.partition(stop)[0]
        if whole != text:
            self.finish = "stop"
        if not self.finish:
            whole = self._settled(whole, [model.stop, *self.chat.stop])
        whole = whole.strip()
        more, self.told = whole[len(self.told) :], max(self.told, whole, key=len)
        return more

    def _settled(self, text: str, stops: Sequence[str]) -> str:
        """The text without an end that the next tokens may change."""
        while text.endswith(_INCOMPLETE):
            text = text[:-1]
        begun = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return text[: len(text) - max(begun, default=0)]


class Writing:
    """One run of the library's generation over a batch: it samples where that is asked, and tells each token."""

    def __init__(
        self, model: CausalGenerator, rows: list[Row], encoded: Prompted, talk: Talk, scored: bool = False
    ) -> None:
        self.model, self.rows, self.encoded, self.talk, self.scored = model, rows, encoded, talk, scored
        # Of the newest token.
        self.logits = torch.empty(0)
        self.scores: list[Tensor] = []
        device = encoded.ids.device
        chats = [row.chat for row in rows]
        self.sampled = torch.tensor([chat.sampled for chat in chats], device=device)[:, None]
        self.temperature = torch.tensor([chat.temperature or 1.0 for chat in chats], device=device)[:, None]
        self.top_p = torch.tensor([chat.top_p for chat in chats], device=device)[:, None]
        self.top_k = torch.tensor([chat.top_k or 1 << 60 for chat in chats], device=device)[:, None]
        self.noise = Noise(encoded.ids, encoded.mask, 1)
        for number, row in enumerate(rows):
            if row.chat.sampled:
                seed = secrets.randbits(60) if row.chat.seed is None else row.chat.seed
                prompt = encoded.ids[number : number + 1], encoded.mask[number : number + 1]
                self.noise.keys[number] = Noise(*prompt, row.choice + 1, seed).keys[-1]

    def run(self) -> Generated | None:
        """Write until all answers have ended; returns them with their scores, if they are wanted."""
        config = self.model.greedy_settings()
        options: dict[str, Any] = {"stopping_criteria": StoppingCriteriaList([self.take])}
        options["logits_processor"] = LogitsProcessorList([self.sample] if bool(self.sampled.any()) else [])
        encoded = self.model.begin(self.encoded)
        hook = self.model.backbone.register_forward_hook(self._watch)
        try:
            ids = self.model.generated_ids(encoded, config, **options)
        finally:
            hook.remove()
        if not self.scored:
            return None
        steps = torch.tensor([max(1, len(row.ids)) for row in self.rows], device=ids.device)
        return Generated(encoded, ids, steps, sequence_scores(torch.stack(self.scores, 1), steps))

    def _watch(self, module: Any, args: Any, output: Any) -> None:
        self.logits = output.logits[:, -1]

    def sample(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Noise on the logits of sampled answers, whose best token is then a sample."""
        logits = scores.float() / self.temperature
        ordered = logits.sort(-1, descending=True)
        beyond = torch.arange(logits.shape[-1], device=logits.device) >= self.top_k
        share = ordered.values.masked_fill(beyond, -math.inf).softmax(-1)
        outside = (share.cumsum(-1) - share >= self.top_p) | beyond
        logits = logits.masked_fill(outside.scatter(-1, ordered.indices, outside), -math.inf)
        return torch.where(self.sampled, self.noise(input_ids, logits).to(scores), scores)

    def take(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Tell the newest tokens, as a stopping criterion: whether each answer has ended, bool ``(B,)``."""
        chosen = input_ids[:, -1]
        if self.scored:
            self.scores.append(token_scores(self.logits, chosen))
        left: set[int] = set()
        for number, (row, token) in enumerate(zip(self.rows, chosen.tolist(), strict=True)):
            if not row.finish:
                left |= self.talk(row.place, self._part(number, row, token))
        for row in self.rows:
            if row.place in left and not row.finish:
                row.finish = "left"
        return torch.tensor([bool(row.finish) for row in self.rows], device=input_ids.device)

    def _part(self, number: int, row: Row, token: int) -> dict[str, Any]:
        """What is told of a token: nothing while its text, and its end, are not known yet."""
        part: dict[str, Any] = {"choice": row.choice, "text": row.add(self.model, token)}
        if row.chat.top_logprobs is not None and token not in self.model.end_tokens:
            row.logprobs.append(self._logprobs(number, token, row.chat.top_logprobs))
        if not (part["text"] or row.finish):
            return {}
        if row.logprobs:
            part["logprobs"], row.logprobs = row.logprobs, []
        return part | ({"finish": row.finish, "tokens": len(row.ids)} if row.finish else {})

    def _logprobs(self, number: int, token: int, count: int) -> dict[str, Any]:
        """The log-probability of a token, and of the most probable ones, in the API's form."""
        values = self.logits[number].float().log_softmax(-1)
        best = values.topk(count).indices.tolist() if count else []
        return self._one(values, token) | {"top_logprobs": [self._one(values, other) for other in best]}

    def _one(self, values: Tensor, token: int) -> dict[str, Any]:
        text = self.model.tokenizer.decode([token])
        # The bytes of a part of a character are not known.
        known = None if _INCOMPLETE in text else list(text.encode())
        return {"token": text, "logprob": float(values[token]), "bytes": known}
