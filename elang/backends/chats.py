"""A language model that scores conversations and goes on with them, for `elang serve`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from elang.backends.causal_generator import CausalGenerator
from elang.backends.chat_decoding import Chat, Row, Talk, Writing
from elang.backends.prompted import Prompted
from elang.data.prompts import Prompt
from elang.errors import InputError
from elang.method.scores import BEFORE_DECODER

# Longer than any context.
_ANY = 1 << 60


class ChatWriter:
    """Scores conversations and writes answers to them, in batches of at most ``budget`` tokens.

    ``scoring`` is the score that routes and its temperature; ``None`` for the last stage. ``longest`` are the tokens of
    a conversation that it takes, if the model's context allows them.
    """

    def __init__(
        self, model: CausalGenerator, scoring: tuple[str, float] | None, *, longest: int | None, budget: int
    ) -> None:
        self.model, self.scoring, self.longest, self.budget = model, scoring, longest, budget

    @torch.inference_mode()
    def write(self, chats: Sequence[Chat], talk: Talk) -> None:
        """Answer conversations, and tell each part of an answer as it comes.

        The first part has the ``score``, whether it is ``deferred``, and ``prompt_tokens``; further ones a ``choice``
        with ``text`` and ``logprobs``, the last one of a choice also ``finish`` and ``tokens``. ``error`` stands for a
        conversation that cannot be answered, with ``limit`` where it is too long.
        """
        chats = [self._settled(chat) for chat in chats]
        prompts: dict[int, list[int]] = {}
        for place, chat in enumerate(chats):
            try:
                prompts[place] = self._read(chat)
            except _TooLongError as error:
                talk(place, {"error": str(error), "limit": error.limit})
            except InputError as error:
                talk(place, {"error": str(error)})
        order = sorted(prompts, key=lambda place: len(prompts[place]), reverse=True)
        while order:
            size = max(1, self.budget // (len(prompts[order[0]]) + self.model.max_new_tokens))
            batch, order = order[:size], order[size:]
            self._write_batch({place: chats[place] for place in batch}, prompts, talk)

    def _settled(self, chat: Chat) -> Chat:
        """A conversation with the model's own sampling, if it has no temperature."""
        sampling = self.model.sampling
        if chat.temperature is not None or sampling is None:
            return chat
        seed, top_p = sampling.seed if chat.seed is None else chat.seed, min(chat.top_p, sampling.top_p)
        return replace(chat, temperature=sampling.temperature, top_p=top_p, top_k=sampling.top_k, seed=seed)

    def _read(self, chat: Chat) -> list[int]:
        """The tokens of a conversation."""
        model = self.model
        prompt, task = model.prompt, model.task
        if chat.turns or chat.system is not None:
            task = replace(task, system=task.system if chat.system is None else chat.system)
            prompt = Prompt.of(model.tokenizer, task, chat.turns)
        rows = prompt.token_lists(model.tokenizer, task.fields, [chat.texts], limit=_ANY)[0]
        ids = rows["input_ids"][0]
        limit = model.reader.limit(self.longest or _ANY, min(self._tokens(chat), model.longest_text or _ANY))
        if len(ids) > limit:
            raise _TooLongError(len(ids), limit)
        return ids

    def _tokens(self, chat: Chat) -> int:
        return self.model.max_new_tokens if chat.tokens is None else chat.tokens

    def _write_batch(self, chats: dict[int, Chat], prompts: dict[int, list[int]], talk: Talk) -> None:
        model = self.model
        places = [place for place, chat in chats.items() for _ in range(chat.count)]
        rows = [
            Row(place, choice, chat, min(self._tokens(chat), model.longest_text or _ANY))
            for place, chat in chats.items()
            for choice in range(chat.count)
        ]
        length, device = max(len(prompts[place]) for place in places), model.backbone.device
        lists = [prompts[place] for place in places]
        mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in lists], device=device)
        ids = torch.tensor([[0] * (length - len(ids)) + ids for ids in lists], device=device)
        before = model.max_new_tokens
        model.limit_new_tokens(max(row.tokens for row in rows))
        try:
            self._route(rows, Prompted(ids, mask), prompts, talk)
        except torch.OutOfMemoryError:
            error = f"{len(rows)} conversations at a time do not fit into the memory of {device}."
            for place in chats:
                talk(place, {"error": error})
        finally:
            model.limit_new_tokens(before)

    def _route(self, rows: list[Row], encoded: Prompted, prompts: dict[int, list[int]], talk: Talk) -> None:
        """Score, then write; or write, then score."""
        model, name = self.model, self.scoring[0] if self.scoring else None
        early = name is None or name in BEFORE_DECODER
        if early:
            encoded = model.begin(encoded)
            scores = model.early_score(encoded, name).tolist()
            kept = [number for number, row in enumerate(rows) if scores[number] <= row.chat.threshold]
            self._tell_scores(rows, scores if name else None, prompts, talk)
            if len(kept) < len(rows):
                rows = [rows[number] for number in kept]
                encoded = encoded[torch.tensor(kept, device=encoded.ids.device)] if rows else encoded
            if rows:
                Writing(model, rows, encoded, talk).run()
            return
        held: list[tuple[int, dict[str, Any]]] = []
        left: set[int] = set()

        def hold(place: int, part: dict[str, Any]) -> set[int]:
            if part:
                held.append((place, part))
            left.update(talk(place, {}))
            return left

        answer = Writing(model, rows, encoded, hold, scored=True).run()
        assert answer is not None and self.scoring is not None  # noqa: PT018
        scores = model.score_of(self.scoring[0], answer, self.scoring[1]).float().tolist()
        self._tell_scores(rows, scores, prompts, talk)
        for place, part in held:
            talk(place, part)

    def _tell_scores(
        self, rows: list[Row], scores: list[float] | None, prompts: dict[int, list[int]], talk: Talk
    ) -> None:
        for number, row in enumerate(rows):
            if row.choice == 0:
                score = scores[number] if scores else None
                deferred = score is not None and not score <= row.chat.threshold
                if score is not None and not math.isfinite(score):
                    # Such weights answer nothing well.
                    talk(row.place, {"error": "The Swift's score is not finite. Did its training diverge?"})
                    continue
                part = {"score": score, "deferred": deferred, "prompt_tokens": len(prompts[row.place])}
                talk(row.place, part)


class _TooLongError(InputError):
    def __init__(self, tokens: int, limit: int) -> None:
        self.limit = limit
        super().__init__(f"The conversation has {tokens} tokens, and this model reads at most {max(0, limit)} of one.")
