"""The server of a pair: the processes of its models, what packs batches for them, and its paths."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from starlette.responses import PlainTextResponse

from elang.backends.openai.settings import Settings
from elang.inference.predictor import JointPredictor
from elang.inference.routing import settle_backend
from elang.inference.serving.batcher import Batcher, ModelAnswers
from elang.inference.serving.chat_answer import PairPrices
from elang.inference.serving.chat_routes import AnswersChats, ChatFront, add_chat_routes
from elang.inference.serving.chat_service import ChatService
from elang.inference.serving.chats import LocalChats
from elang.inference.serving.elsewhere import THREADS, BackendSuper, Client, ask_backend
from elang.inference.serving.gate import Gate
from elang.inference.serving.http import Server
from elang.inference.serving.model import ChatModel, Model
from elang.inference.serving.schema import BODY, Labels, Limits, Question, QuestionReader, Reply, Role
from elang.inference.serving.service import Metrics, OnSuperFailure, PairService, ask_model, score_edges
from elang.inference.serving.shadow import ShadowOptions
from elang.inference.serving.text_chats import TextChats
from elang.inference.serving.upstream import Upstream
from elang.inference.serving.watched import watch_chats, watch_texts
from elang.inference.serving.workers import Load, Workers
from elang.method.scores import BEFORE_DECODER

_log = logging.getLogger(__name__)
# A model that does not answer a batch within this many seconds, at least, hangs.
_HANGS = 60.0


@dataclass(frozen=True)
class ChatOptions:
    """The pair behind OpenAI's API: its name, how a Super elsewhere is asked, and what a million tokens cost."""

    model: str
    upstream: Settings | None = None
    prices: PairPrices = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """What is accepted, what happens if the Super fails (as :class:`PairService` takes it), and what is watched."""

    limits: Limits
    on_super_failure: OnSuperFailure = "swift"
    shadow: ShadowOptions | None = None

    @property
    def needed(self) -> tuple[Role, ...]:
        """The models without which chats cannot be answered."""
        return ("swift", "super") if self.on_super_failure == "fail" else ("swift",)


@dataclass(frozen=True)
class Processes:
    """The processes of each model: their devices, and the CPU threads of each."""

    devices: list[str]
    threads: int


def build_server(
    pair: dict[str, Any],
    predictor: JointPredictor | None,
    remote: str | None,
    policy: Policy,
    token: str | None,
    processes: Processes,
    chats: ChatOptions | None = None,
) -> Server:
    """Build the server of a pair, or of a Super alone.

    Args:
        pair: Arguments of :class:`elang.JointPredictor`.
        predictor: The Swift, for the process that serves; ``None`` serves the Super alone.
        remote: The Super's address, if it is elsewhere.
        policy: What is accepted and done.
        token: The token that requests must bring.
        processes: Of the models that are here.
        chats: Also has OpenAI's API.
    """
    limits, shadow = policy.limits, policy.shadow
    roles: dict[Role, bool] = {"swift": predictor is not None, "super": not remote}
    writes = chats is not None and predictor is not None and predictor.swift.streams
    workers: dict[Role, Workers] = {}
    for role in (role for role, here in roles.items() if here):
        make = partial(ChatModel if writes else Model, role, pair, processes.threads)
        loads: list[Load] = [partial(make, device=device) for device in processes.devices]
        # By three deadlines every request has been answered or refused.
        workers[role] = Workers(role.capitalize(), loads, max(_HANGS, 3 * limits.deadline))
    metrics = Metrics(None if predictor is None else score_edges(predictor))

    def ready(role: Role) -> bool:
        return role not in workers or any(workers[role].there)

    app = FastAPI(title="elang serve", redirect_slashes=False)
    _add_health(app, workers)
    options: Any = {"limits": limits, "on_super_failure": policy.on_super_failure, "metrics": metrics}
    front: FastAPI | ChatFront = app
    if writes:
        assert chats is not None and predictor is not None  # noqa: PT018
        service = _chat_service(predictor, workers, chats, super_ready=partial(ready, "super"), **options)
        if shadow is not None:
            service.shadow = watch_chats(app, service, shadow)
        front = _add_chats(app, service, predictor, chats, metrics=metrics, limits=limits)
        _add_views(app, metrics, lambda: {"swift": ready("swift"), "super": ready("super")}, needed=policy.needed)
        close = service.super_.close if isinstance(service.super_, Upstream) else None
        return Server(Gate(front, token, limits.bytes, count=metrics.count), list(workers.values()), close)
    batchers = _batchers(workers, limits, remote=remote, token=token, predictor=predictor)
    if not remote:
        _add_super_route(app, batchers["super"], limits, metrics=metrics)
    if predictor is None:
        _add_views(app, metrics, lambda: {"super": ready("super")}, needed=("super",))
    else:
        pair_service = PairService(predictor, batchers, partial(ready, "super"), **options)
        if shadow is not None:
            pair_service.shadow = watch_texts(app, pair_service, shadow)
        add_routes(app, pair_service, partial(ready, "swift"))
        if chats is not None:
            front = _add_chats(app, TextChats(pair_service), predictor, chats, metrics=metrics, limits=limits)
    return Server(Gate(front, token, limits.bytes, count=metrics.count), list(workers.values()))


def _chat_service(
    predictor: JointPredictor, workers: dict[Role, Workers], chats: ChatOptions, **policy: Any
) -> ChatService:
    early = predictor.score in BEFORE_DECODER
    usual = 0.0 if predictor.sampling is None else predictor.sampling.temperature
    swift = LocalChats("Swift", workers["swift"], predictor.task, usual=usual, fixed=not early, early=early)
    super_: LocalChats | Upstream
    if chats.upstream is None:
        super_ = LocalChats("Super", workers["super"], predictor.task, usual=usual)
    else:
        super_ = Upstream(chats.upstream, timeout=policy["limits"].deadline)
    return ChatService(predictor, swift, super_, prices=chats.prices, **policy)


def _add_chats(
    app: FastAPI,
    service: AnswersChats,
    predictor: JointPredictor,
    chats: ChatOptions,
    *,
    metrics: Metrics,
    limits: Limits,
) -> ChatFront:
    return add_chat_routes(app, service, chats.model, predictor.task, metrics=metrics, deadline=limits.deadline)


def _batchers(
    workers: dict[Role, Workers],
    limits: Limits,
    *,
    remote: str | None,
    token: str | None,
    predictor: JointPredictor | None,
) -> dict[Role, Batcher]:
    """What packs batches for each model, here or elsewhere."""
    # A character has four bytes at most, and a server elsewhere accepts as many bytes as this one.
    options: dict[str, Any] = {"most": limits.batch, "most_characters": limits.bytes // 4, "lost": limits.deadline}

    async def ask(model: Workers, question: Question, until: float) -> dict[str, Any]:
        return await model.ask((question.texts, question.choices, question.threshold))

    batchers = {role: Batcher(partial(ask, model), len(model.loads), **options) for role, model in workers.items()}
    if remote and not remote.startswith(("http://", "https://")):
        assert predictor is not None
        super_ = BackendSuper(remote, predictor.task, limits.deadline)
        settle_backend(super_.backend, predictor.manifest, predictor.sampling)
        batchers["super"] = Batcher(partial(ask_backend, super_), THREADS, **options)
    elif remote:
        connections = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        client = Client(headers=headers, base_url=remote, limits=connections)
        options["most"] = min(limits.batch, limits.texts)
        batchers["super"] = Batcher(partial(client.ask, "/super"), THREADS, **options)
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
