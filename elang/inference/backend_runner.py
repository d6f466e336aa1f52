"""Asks a backend that is no model here for the windows of a cascade; and a person, who is asked later."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from elang.backends.backend import Scored
from elang.backends.person import Person
from elang.data.examples import Examples, content_key
from elang.inference.stream import Window
from elang.records.table import Records


class BackendRunner:
    """Asks any backend for a window of a cascade, as :class:`~elang.inference.runner.ModelRunner` asks a model."""

    truncated = 0

    def __init__(self, backend: Any) -> None:
        self.backend, self.task = backend, backend.task

    def _examples(self, window: Window) -> Examples:
        count, kind = len(window), self.task.kind
        key = torch.tensor([content_key(texts) for texts in window.texts])
        label = torch.full((count,), kind.unknown, dtype=kind.answer_type)
        return Examples(window.texts, torch.arange(count), key, label=label, choices=window.choices)

    def answer(self, window: Window) -> Scored:
        """The answers to a window; their scores mean nothing."""
        records: Records = self.backend.answer(self._examples(window))
        return Scored.of(records, self.task.kind, [0.0] * len(window), [False] * len(window))

    def score(self, window: Window, score: str | None, threshold: float) -> Scored:
        """Answer and score a window; inputs that score above the threshold are deferred."""
        scored: Scored = self.backend.score(self._examples(window), score, threshold)
        # The answer to a deferred input may be a placeholder.
        answers = zip(scored.answers, scored.deferred, strict=True)
        return replace(scored, answers=[None if hard else answer for answer, hard in answers])


class PersonRunner(BackendRunner):
    """Leaves a window to a person: there are no answers yet."""

    def answer(self, window: Window) -> Scored:
        """No answer to any input."""
        return Scored([None] * len(window), [0.0] * len(window), [False] * len(window))


def runner_of(backend: Any) -> BackendRunner:
    """What asks a backend."""
    return (PersonRunner if isinstance(backend, Person) else BackendRunner)(backend)
