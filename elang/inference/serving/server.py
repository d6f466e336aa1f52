"""The server that asks the two models: their processes, what packs batches for them, and the paths."""

import logging
import socket
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import torch
import uvicorn
from fastapi import FastAPI, Response
from starlette.responses import PlainTextResponse

from elang.errors import InputError
from elang.inference.predictor import JointPredictor
from elang.inference.serving.batcher import Batcher
from elang.inference.serving.gate import Gate
from elang.inference.serving.http import Server, connections_of
from elang.inference.serving.routes import add_routes, add_super_route, add_views
from elang.inference.serving.schema import Limits, Question
from elang.inference.serving.service import Metrics, OnSuperFailure, PairService, score_edges
from elang.inference.serving.workers import Workers

_log = logging.getLogger(__name__)
# Of a server elsewhere, which makes batches of its own.
_REMOTE_WORKERS = 4
# Seconds, at least, after which a model that does not answer is taken to hang.
_HANGS = 60.0


@dataclass(frozen=True)
class LoadModel:
    """Loads one model of the pair in a process of its own.

    Attributes:
        role: Which one it is, ``swift`` or ``super``.
        options: Of the :class:`elang.JointPredictor`; the Super is loaded only for the Super.
        threads: Of the process on a CPU.
        device: Where the model goes.
    """

    role: str
    options: dict[str, Any]
    threads: int
    device: str

    def __call__(self) -> "Model":
        """Load it, and answer once, so that the first request does not wait for that."""
        torch.set_num_threads(self.threads)
        options = {**self.options, "device": self.device}
        if self.role == "swift":
            options["super_model"] = None
        model = Model(self.role, JointPredictor(**options))
        task = model.predictor.task
        try:
            model.answers(
                [tuple("warm up" for _ in task.fields)], [("a", "b")] if task.kind.has_candidates else None, True
            )
        except InputError as error:
            _log.warning("The first pass failed: %s", error)
        return model


class Model:
    """One model of the pair.

    Args:
        role: ``swift`` or ``super``.
        predictor: Which has it.
    """

    def __init__(self, role: str, predictor: JointPredictor) -> None:
        self.role, self.predictor = role, predictor

    def __call__(self, texts: list[Any], choices: list[list[str]] | None, keep: bool) -> dict[str, Any]:
        """The answers to a batch and the places of inputs that were cut, or what is wrong with it."""
        predictor = self.predictor
        try:
            rows = predictor.rows(texts)
            before = predictor.truncated + predictor.super_truncated
            answers = self.answers(rows, choices, keep) if rows else []
            some = predictor.truncated + predictor.super_truncated > before
            return {"answers": answers, "cut": self._cut(rows, choices) if some else []}
        except InputError as error:
            return {"answers": [], "error": str(error)}

    def answers(self, rows: list[tuple[str, ...]], choices: Any, keep: bool) -> list[Any]:
        """Of a Swift what :meth:`elang.JointPredictor.ask_swift` says, of a Super what ``ask_super`` says."""
        if self.role == "swift":
            return self.predictor.ask_swift(rows, choices, keep)
        return self.predictor.ask_super(rows, choices)

    def _cut(self, rows: list[tuple[str, ...]], choices: Any) -> list[int]:
        """Places of the inputs that are too long, once it is known that some are."""
        if len(rows) == 1:
            return [0]
        runner = self.predictor.runners[self.role]
        given = choices or [None] * len(rows)
        # One by one, those that may be; a character has four bytes at most, and no token has none.
        room = runner.limit // 8
        long = [i for i, row in enumerate(rows) if sum(map(len, (*row, *(given[i] or ())))) > room]
        return [i for i in long if runner.encode([rows[i]], [tuple(given[i])] if given[i] else None).texts.truncated]


class PairServer:
    """A server that is yet to be run.

    Args:
        app: What answers.
        gate: What is before it.
        workers: The processes of the models that are here.
    """

    def __init__(self, app: FastAPI, gate: Gate, workers: dict[str, Workers]) -> None:
        self.app, self.gate, self.workers = app, gate, workers

    def run(self, sockets: list[socket.socket]) -> None:
        """Answer what comes in by sockets that listen, until a signal.

        Raises:
            InputError: If a model could not be loaded.
        """
        config = uvicorn.Config(
            self.gate,
            http=connections_of(self.gate),
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_level="error",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=20,
            timeout_graceful_shutdown=1,
        )
        Server(config, self.gate, list(self.workers.values())).run(sockets)
        for one in self.workers.values():
            if one.failed:
                raise InputError(f"The server did not start. {one.failed}")


def build_server(
    pair: dict[str, Any],
    predictor: JointPredictor | None,
    remote: str | None,
    limits: Limits,
    on_super_failure: OnSuperFailure,
    token: str | None,
    devices: list[str],
    threads: int,
) -> PairServer:
    """Put a pair, or a Super alone, into a server that is yet to be run.

    Args:
        pair: Arguments of the :class:`elang.JointPredictor`.
        predictor: The Swift, for the front; ``None`` serves the Super alone.
        remote: The Super's address, if it is elsewhere.
        limits: What is taken.
        on_super_failure: As :class:`PairService` takes it.
        token: That requests must bring.
        devices: One for each process of a model.
        threads: Of each process on a CPU.
    """
    roles = [*([] if predictor is None else ["swift"]), *([] if remote else ["super"])]
    # Nobody waits for a batch as long as that any more.
    longest = max(_HANGS, 3 * limits.deadline)
    workers = {
        role: Workers(role.capitalize(), [LoadModel(role, pair, threads, device) for device in devices], longest)
        for role in roles
    }
    batchers = _batchers(workers, limits, remote, token)
    app = FastAPI(title="elang serve", redirect_slashes=False)
    metrics = Metrics(None if predictor is None else score_edges(predictor))
    _add_health(app, workers)

    def ready(role: str) -> bool:
        return role not in workers or any(workers[role].there)

    if not remote:
        add_super_route(app, batchers["super"], limits, metrics)
    if predictor is not None:
        service = PairService(
            predictor, batchers["swift"], batchers["super"], partial(ready, "super"), limits, on_super_failure, metrics
        )
        add_routes(app, service, partial(ready, "swift"))
    else:
        add_views(app, metrics, lambda: {"super": ready("super")}, ("super",))
    return PairServer(app, Gate(app, token, limits.bytes, metrics.count), workers)


def _batchers(workers: dict[str, Workers], limits: Limits, remote: str | None, token: str | None) -> dict[str, Batcher]:
    """What packs batches for each model, here or elsewhere."""
    # Of four bytes at most; a server elsewhere takes as much as this one.
    options: dict[str, Any] = {"most": limits.batch, "most_characters": limits.bytes // 4, "lost": limits.deadline}

    async def inside(own: Workers, question: Question, until: float) -> dict[str, Any]:
        return await own.ask((question.texts, question.choices, question.keep))

    batchers = {role: Batcher(partial(inside, own), len(own.loads), **options) for role, own in workers.items()}
    if remote:
        outside = _Client({"authorization": f"Bearer {token}"} if token else {}, base_url=remote)
        options["most"] = min(limits.batch, limits.texts)
        batchers["super"] = Batcher(partial(outside.ask, "/super"), _REMOTE_WORKERS, **options)
    return batchers


def _add_health(app: FastAPI, workers: dict[str, Workers]) -> None:
    """Add ``/`` and ``/health``."""

    @app.get("/", summary="200 if the server runs", response_class=PlainTextResponse)
    async def runs() -> str:
        return "elang serve"

    @app.get("/health", summary="200 if all processes of the models are there", response_class=PlainTextResponse)
    async def health(response: Response) -> str:
        if all(all(one.there) for one in workers.values()):
            return "ok"
        response.status_code = 503
        return "not ready"


class _Client:
    """Asks a server's path; connections are kept, and made in the process that serves."""

    def __init__(self, headers: dict[str, str], **options: Any) -> None:
        self.options = {"headers": headers, **options}
        self.client: httpx.AsyncClient | None = None

    async def ask(self, path: str, question: Question, until: float) -> dict[str, Any]:
        if self.client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            self.client = httpx.AsyncClient(**self.options, limits=limits)
        left = max(0.001, until - time.monotonic())
        found = await self.client.post(path, json=question.model_dump(), timeout=left)
        if found.status_code in (413, 422):
            # Of one question, or it is too much at once.
            return {"error": f"{found.status_code}: {found.text[:200]}"}
        found.raise_for_status()
        answer: dict[str, Any] = found.json()
        return answer
