"""Models that answer elsewhere, for whole splits: how their answers are chosen, and how several processes ask them."""

from collections.abc import Sequence
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any

from lightning.pytorch import Trainer

from elang.backends.backend import Backend
from elang.backends.openai.backend import OpenAIBackend
from elang.backends.remote import RemoteBackend
from elang.data.examples import Examples
from elang.errors import InputError
from elang.records.table import Records
from elang.tasks.sampling import Sampling

# Seconds between two messages to the other processes.
_MINUTE = 60.0


def settle(
    backend: Backend, sampling: Sampling | None, num_beams: int | None, asked_scores: Sequence[str] | None
) -> None:
    """Tell a backend how texts are chosen; an InputError if that is an option that it has not."""
    if isinstance(backend, OpenAIBackend):
        backend.choose(sampling, num_beams, asked_scores)
    elif isinstance(backend, RemoteBackend):
        given = {"sampling": sampling, "num_beams": (num_beams or 1) > 1, "asked_scores": asked_scores}
        refuse_local(**given, where=f", and '{backend.address}' answers as it was started")


def refuse_local(where: str = ", and none does", **options: Any) -> None:
    """Refuse the options that are given and are for models that run here."""
    for name, value in options.items():
        if value and value != "float32":
            raise InputError(f"--model.{name} is for models that run here{where}. Leave it out.")


def ask_once(backend: Backend, examples: Examples, trainer: Trainer) -> Records:
    """A backend's answers. Of several processes only the first one asks, and sends the others what it hears.

    Every minute it tells them that it still waits, because torch ends a process that hears nothing for long.
    """
    if trainer.world_size == 1:
        return backend.answer(examples)
    answered: Future[Records] = Future()

    def ask() -> None:
        try:
            answered.set_result(backend.answer(examples))
        except Exception as error:
            answered.set_exception(error)

    if trainer.is_global_zero:
        Thread(target=ask, daemon=True).start()
    reply: tuple[Records | None, str] | None = None
    while reply is None:
        if trainer.is_global_zero and wait([answered], _MINUTE).done:
            error = answered.exception()
            reply = (None, str(error)) if error else (answered.result(), "")
        reply = trainer.strategy.broadcast(reply)
    records, message = reply
    if records is None:
        raise (answered.exception() if answered.done() else None) or InputError(message)
    return records
