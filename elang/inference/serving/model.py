"""One model of a pair in a process of its own: what answers its batches of texts, and its chats."""

import logging
import math
from typing import Any

import torch

from elang.backends.chats import ChatWriter
from elang.errors import InputError
from elang.inference.predictor import JointPredictor
from elang.inference.serving.schema import Role

_log = logging.getLogger(__name__)
# How much larger batches of chats are than batches of texts, of which more tokens have logits.
_CHAT_TOKENS = 4


class Model:
    """Answers batches with one model of the pair, in a process of its own with so many CPU threads.

    The options are those of the :class:`elang.JointPredictor`; the Super is loaded only for the Super.
    """

    def __init__(self, role: Role, options: dict[str, Any], threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        options = {**options, "device": device}
        if role == "swift":
            options["super_model"] = None
        self.role, self.predictor = role, JointPredictor(**options)
        self.runner, task = self.predictor.runners[role], self.predictor.task
        choices = [("a", "b")] if task.kind.has_candidates else None
        try:
            # So that the first request does not wait for what the first pass sets up.
            self._answers([tuple("warm up" for _ in task.fields)], choices, math.inf)
        except InputError as error:
            _log.warning("The first pass failed: %s", error)

    def __call__(self, texts: list[Any], choices: list[list[str]] | None, threshold: float | None) -> dict[str, Any]:
        """The ``answers`` to a batch, their ``probabilities``, and the inputs ``cut``; or the ``error`` in it."""
        try:
            rows = self.predictor.rows(texts)
            before = self.runner.truncated
            reply = self._answers(rows, choices, threshold) if rows else {"answers": []}
            return {**reply, "cut": self._cut(rows, choices) if self.runner.truncated > before else []}
        except InputError as error:
            return {"answers": [], "error": str(error)}

    def _answers(self, rows: list[tuple[str, ...]], choices: Any, threshold: float | None) -> dict[str, Any]:
        if self.role == "swift":
            scored = self.predictor.score_swift(rows, choices, threshold)
            answers: list[Any] = list(zip(scored.answers, scored.scores, scored.deferred, strict=True))
        else:
            scored = self.predictor.score_super(rows, choices)
            answers = list(scored.answers)
        return {"answers": answers, "probabilities": scored.probabilities}

    def _cut(self, rows: list[tuple[str, ...]], choices: Any) -> list[int]:
        """Places of the inputs that are too long, once it is known that some are."""
        if len(rows) == 1:
            return [0]
        cut = []
        for i, row in enumerate(rows):
            candidates = [tuple(choices[i])] if choices else None
            # Encode only those that may be: a character has four bytes at most, and no token is empty.
            may_be_long = sum(map(len, (*row, *(choices[i] if choices else ())))) > self.runner.limit // 8
            if may_be_long and self.runner.encode([row], candidates).texts.truncated:
                cut.append(i)
        return cut


class ChatModel(Model):
    """Also goes on with chats, if the model writes texts token by token."""

    def __init__(self, role: Role, options: dict[str, Any], threads: int, device: str) -> None:
        super().__init__(role, options, threads, device)
        model: Any = self.runner.model
        if not model.streams:
            raise InputError(
                f"The {role.capitalize()} of a pair that answers chats is a decoder-only language model without beams, "
                f"and this '{model.backbone.config.model_type}' model is none. Leave out --api openai, or give another."
            )
        swift, predictor = role == "swift", self.predictor
        self.writer = ChatWriter(
            model,
            (predictor.score, predictor.manifest.temperature) if swift else None,
            longest=self.runner.limits.max_length if swift else None,
            budget=_CHAT_TOKENS * self.runner.tokens,
        )

    def write(self, chats: list[Any], parts: Any) -> None:
        """Answer chats; ``parts`` gets each part of an answer as it comes."""
        self.writer.write(chats, parts)
