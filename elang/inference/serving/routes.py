"""The paths of the service."""

import asyncio
import time
from collections.abc import Callable

from fastapi import FastAPI, HTTPException, Request, Response

from elang.errors import InputError
from elang.inference.serving.batcher import Batcher, Said
from elang.inference.serving.schema import BODY, Limits, QuestionReader, refused
from elang.inference.serving.service import Labels, Metrics, PairService, Reply, log


def add_super_route(app: FastAPI, model: Batcher, limits: Limits, metrics: Metrics) -> None:
    """Add ``/super``, which pairs elsewhere ask, to an app."""
    read = QuestionReader(limits)
    model.gauge = metrics.waiting.labels("super")

    @app.post(
        "/super", response_model=Labels, summary="Answer texts with the Super", openapi_extra={"requestBody": BODY}
    )
    async def ask_super(request: Request) -> Labels:
        question = await read(request)
        if model.waiting + len(question.texts) > limits.deferred:
            raise HTTPException(503, "Too many texts are waiting. Ask again later.", {"Retry-After": "1"})
        until = time.monotonic() + min(question.deadline or limits.deadline, limits.deadline)
        try:
            with metrics.seconds.labels("request").time(), metrics.seconds.labels("super").time():
                said = await model.ask(question, until) if question.texts else Said([], set())
            metrics.texts.labels("super").inc(len(said.answers))
            metrics.cut.labels("super").inc(len(said.cut))
            return Labels(answers=said.answers, cut=sorted(said.cut))
        except InputError as error:
            raise refused(str(error)) from None
        except asyncio.TimeoutError:
            raise HTTPException(504, "The Super did not answer before the deadline.") from None
        except Exception as error:
            log.warning("The Super failed: %s: %s", type(error).__name__, error)
            raise HTTPException(503, "The Super is not there. Ask again later.", {"Retry-After": "1"}) from None


def add_routes(app: FastAPI, service: PairService, swift_ready: Callable[[], bool]) -> None:
    """Add ``/predict``, ``/metrics`` and ``/ready`` to an app."""
    read = QuestionReader(service.limits)

    @app.post(
        "/predict", response_model=Reply, summary="Answer texts with the pair", openapi_extra={"requestBody": BODY}
    )
    async def predict(request: Request) -> Reply:
        return await service.answer(await read(request))

    needed = ("swift", "super") if service.on_super_failure == "fail" else ("swift",)
    add_views(app, service.metrics, lambda: {"swift": swift_ready(), "super": service.super_ready()}, needed)


def add_views(app: FastAPI, metrics: Metrics, state: Callable[[], dict[str, bool]], needed: tuple[str, ...]) -> None:
    """Add ``/metrics`` and ``/ready`` to an app.

    Args:
        app: The app.
        metrics: What is shown.
        state: Which models are there.
        needed: Which have to be, for requests to be answered.
    """

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def show() -> Response:
        return metrics.page()

    @app.get("/ready", summary="200 if requests can be answered")
    async def ready(response: Response) -> dict[str, bool]:
        found = state()
        if not all(found[name] for name in needed):
            response.status_code = 503
        return found
