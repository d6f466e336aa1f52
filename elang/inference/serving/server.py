"""The server of a pair: the processes of its models, what packs batches for them, and its paths."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import httpx
import torch
from fastapi import FastAPI, Request, Response
from starlette.responses import PlainTextResponse

from elang.errors import InputError
from elang.inference.predictor import JointPredictor
from elang.inference.serving.batcher import Batcher, ModelAnswers
from elang.inference.serving.gate import Gate
from elang.inference.serving.http import Server
from elang.inference.serving.schema import BODY, Labels, Limits, Question, QuestionReader, Reply, Role
from elang.inference.serving.service import Metrics, OnSuperFailure, PairService, ask_model, score_edges
from elang.inference.serving.workers import Load, Workers

_log = logging.getLogger(__name__)
# Batches that a server elsewhere is asked at a time; it makes its own of them.
_REMOTE_WORKERS = 4
# A model that does not answer a batch within this many seconds, at least, hangs.
_HANGS = 60.0


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
            self._answers([tuple("warm up" for _ in task.fields)], choices, True)
        except InputError as error:
            _log.warning("The first pass failed: %s", error)

    def __call__(self, texts: list[Any], choices: list[list[str]] | None, keep: bool) -> dict[str, Any]:
        """The ``answers`` to a batch, their ``probabilities``, and the inputs ``cut``; or the ``error`` in it."""
        try:
            rows = self.predictor.rows(texts)
            before = self.runner.truncated
            reply = self._answers(rows, choices, keep) if rows else {"answers": []}
            return {**reply, "cut": self._cut(rows, choices) if self.runner.truncated > before else []}
        except InputError as error:
            return {"answers": [], "error": str(error)}

    def _answers(self, rows: list[tuple[str, ...]], choices: Any, keep: bool) -> dict[str, Any]:
        if self.role == "swift":
            scored = self.predictor.score_swift(rows, choices, keep)
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


def build_server(
    pair: dict[str, Any],
    predictor: JointPredictor | None,
    remote: str | None,
    limits: Limits,
    on_super_failure: OnSuperFailure,
    token: str | None,
    devices: list[str],
    threads: int,
) -> Server:
    """Build the server of a pair, or of a Super alone.

    Args:
        pair: Arguments of :class:`elang.JointPredictor`.
        predictor: The Swift, for the process that serves; ``None`` serves the Super alone.
        remote: The Super's address, if it is elsewhere.
        limits: What is accepted.
        on_super_failure: As :class:`PairService` takes it.
        token: The token that requests must bring.
        devices: One for each process of a model.
        threads: CPU threads of each process.
    """
    roles: dict[Role, bool] = {"swift": predictor is not None, "super": not remote}
    workers: dict[Role, Workers] = {}
    for role in (role for role, here in roles.items() if here):
        loads: list[Load] = [partial(Model, role, pair, threads, device=device) for device in devices]
        # By three deadlines every request has been answered or refused.
        workers[role] = Workers(role.capitalize(), loads, max(_HANGS, 3 * limits.deadline))
    batchers = _batchers(workers, limits, remote=remote, token=token)
    metrics = Metrics(None if predictor is None else score_edges(predictor))

    def ready(role: Role) -> bool:
        return role not in workers or any(workers[role].there)

    app = FastAPI(title="elang serve", redirect_slashes=False)
    _add_health(app, workers)
    if not remote:
        _add_super_route(app, batchers["super"], limits, metrics=metrics)
    if predictor is None:
        _add_views(app, metrics, lambda: {"super": ready("super")}, needed=("super",))
    else:
        policy: Any = {"limits": limits, "on_super_failure": on_super_failure}
        service = PairService(predictor, batchers, partial(ready, "super"), metrics=metrics, **policy)
        add_routes(app, service, partial(ready, "swift"))
    return Server(Gate(app, token, limits.bytes, count=metrics.count), list(workers.values()))


def _batchers(
    workers: dict[Role, Workers], limits: Limits, *, remote: str | None, token: str | None
) -> dict[Role, Batcher]:
    """What packs batches for each model, here or elsewhere."""
    # A character has four bytes at most, and a server elsewhere accepts as many bytes as this one.
    options: dict[str, Any] = {"most": limits.batch, "most_characters": limits.bytes // 4, "lost": limits.deadline}

    async def ask(model: Workers, question: Question, until: float) -> dict[str, Any]:
        return await model.ask((question.texts, question.choices, question.keep))

    batchers = {role: Batcher(partial(ask, model), len(model.loads), **options) for role, model in workers.items()}
    if remote:
        connections = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        client = _Client(headers=headers, base_url=remote, limits=connections)
        options["most"] = min(limits.batch, limits.texts)
        batchers["super"] = Batcher(partial(client.ask, "/super"), _REMOTE_WORKERS, **options)
    return batchers


def _add_health(app: FastAPI, workers: dict[Role, Workers]) -> None:
    @app.get("/", summary="200 if the server runs", response_class=PlainTextResponse)
    async def runs() -> str:
        return "elang serve"

    @app.get("/health", summary="200 if all processes of the models are there", response_class=PlainTextResponse)
    async def health(response: Response) -> str:
        if all(all(model.there) for model in workers.values()):
            return "ok"
        response.status_code = 503
        return "not ready"


def _add_super_route(app: FastAPI, model: Batcher, limits: Limits, *, metrics: Metrics) -> None:
    """Add ``/super``, which pairs elsewhere ask."""
    read = QuestionReader(limits)
    model.gauge = metrics.waiting.labels("super")

    @app.post("/super", response_model=Labels, summary="Answer texts with the Super", openapi_extra=BODY)
    async def ask_super(request: Request) -> Labels:
        question, answers = await read(request), ModelAnswers([], set())
        until = time.monotonic() + min(question.deadline or limits.deadline, limits.deadline)
        with metrics.seconds.labels("request").time(), metrics.seconds.labels("super").time():
            if question.texts:
                answers = await ask_model("super", model, question, until=until, room=limits.deferred)
        metrics.texts.labels("super").inc(len(answers.answers))
        metrics.cut.labels("super").inc(len(answers.cut))
        return Labels(answers=answers.answers, cut=sorted(answers.cut), probabilities=answers.probabilities or None)


def add_routes(app: FastAPI, service: PairService, swift_ready: Callable[[], bool]) -> None:
    """Add ``/predict``, ``/metrics`` and ``/ready``."""
    read = QuestionReader(service.limits)

    @app.post("/predict", response_model=Reply, summary="Answer texts with the pair", openapi_extra=BODY)
    async def predict(request: Request) -> Reply:
        return await service.answer(await read(request))

    needed = ("swift", "super") if service.on_super_failure == "fail" else ("swift",)
    _add_views(app, service.metrics, lambda: {"swift": swift_ready(), "super": service.super_ready()}, needed=needed)


def _add_views(app: FastAPI, metrics: Metrics, state: Callable[[], dict[str, bool]], *, needed: Sequence[str]) -> None:
    """Add ``/metrics`` and ``/ready``, which checks that the ``needed`` models are there."""

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def show() -> Response:
        return metrics.page()

    @app.get("/ready", summary="200 if requests can be answered")
    async def ready(response: Response) -> dict[str, bool]:
        models = state()
        if not all(models[name] for name in needed):
            response.status_code = 503
        return models


class _Client(httpx.AsyncClient):
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
