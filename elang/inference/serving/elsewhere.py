"""A Super that is elsewhere, for batches of texts: behind the API of `elang serve`, or behind any backend."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from elang.backends.loading.load import open_backend
from elang.errors import InputError
from elang.inference.backend_runner import BackendRunner
from elang.inference.inputs import as_rows, window_of
from elang.inference.serving.schema import Question
from elang.tasks.text_task import TextTask

THREADS = 4
"""Batches that a server elsewhere is asked at a time; it makes its own of them."""


class BackendSuper(BackendRunner):
    """A Super that any backend is, for batches of texts.

    A backend that tries again is told after how many seconds nobody waits for the answer any more. It has threads of
    its own, so that one that hangs keeps nothing else waiting.
    """

    def __init__(self, address: str, task: TextTask, seconds: float) -> None:
        backend = open_backend(address, task)
        if backend is None:
            raise InputError(f"No backend of this version answers '{task.problem}' tasks at '{address}'.")
        if hasattr(backend, "limit_seconds"):
            backend.limit_seconds(seconds)
        super().__init__(backend)
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="super")

    def __call__(self, question: Question) -> dict[str, Any]:
        """The answers to a question, as :class:`Model` replies; ``None`` where there is none."""
        try:
            window = window_of(as_rows(question.texts), question.choices, self.task)
            scored = self.answer(window)
        except InputError as error:
            return {"answers": [], "error": str(error)}
        choices: Any = window.choices or [None] * len(window)
        answers = [
            None if one is None or one == self.task.kind.unknown else self.task.kind.answer(one, self.task, own)
            for one, own in zip(scored.answers, choices, strict=True)
        ]
        return {"answers": answers, "probabilities": scored.probabilities}


async def ask_backend(backend: BackendSuper, question: Question, until: float) -> dict[str, Any]:
    """The backend's reply, from a thread."""
    return await asyncio.get_running_loop().run_in_executor(backend.threads, backend, question)


class Client(httpx.AsyncClient):
    """Asks a server elsewhere, over connections that are kept."""

    async def ask(self, path: str, question: Question, until: float) -> dict[str, Any]:
        """The server's reply to a question, as :class:`Model` replies."""
        timeout = max(0.001, until - time.monotonic())
        response = await self.post(path, json=question.model_dump(), timeout=timeout)
        if response.status_code in (413, 422):
            # One question is wrong, or they are too much together.
            return {"error": f"{response.status_code}: {response.text[:200]}"}
        response.raise_for_status()
        answers: dict[str, Any] = response.json()
        return answers
