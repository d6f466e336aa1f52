"""What `elang serve` does with a request: the Swift is asked, then the Super, and never longer than the deadline.

Whatever has come in while a model was busy is its next batch.
"""

import asyncio
import hmac
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from elang.errors import InputError
from elang.models.text_model import check_choices
from elang.predictor import JointPredictor

_log = logging.getLogger(__name__)

OnSuperFailure = Literal["swift", "fail"]
Role = Literal["swift", "super"]
Reason = Literal["timeout", "full", "failed", "unavailable"]
# The part of a deadline that is kept for the Swift's decoder, where its score has decided before it ran.
LATE = 0.25
# Asks a model, until when (of `time.monotonic`); it raises whatever goes wrong.
Ask = Callable[["Question", float], Awaitable[dict[str, Any]]]


class Question(BaseModel):
    """Texts to be answered."""

    # A misspelt deadline would be none.
    model_config = ConfigDict(extra="forbid")

    texts: list[str | list[str]] = Field(description="Texts, or for each input one text for each of the task's fields.")
    choices: list[list[str]] | None = Field(None, description="Each input's candidates, where the task has its own.")
    keep: bool = Field(False, description="Of the Swift alone: answer also what would be deferred.")


class TimedQuestion(Question):
    """Texts to be answered by the pair."""

    keep: Literal[False] = False
    deadline: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Seconds; at most the server's, which is the default."
    )


class Answer(BaseModel):
    """The pair's answer to one input."""

    label: str | float = Field(description="The class, the candidate, the generated text, or a regression's value.")
    score: float = Field(description="The Swift's difficulty score; larger is harder.")
    answered_by: Literal["swift", "super"]
    fallback: Reason | None = Field(None, description="Why the Swift answers what the Super should have.")


class Reply(BaseModel):
    """The answers, in the order of the texts."""

    answers: list[Answer]


class Labels(BaseModel):
    """The Super's answers, in the order of the texts."""

    answers: list[str | float]


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        deadline: Seconds that a request may take.
        texts: Texts in a request.
        pending: Texts that the Swift is asked at a time; more are refused.
        deferred: Texts that the Super is asked at a time; more are answered as if it had failed.
    """

    deadline: float = 10.0
    texts: int = 256
    pending: int = 4096
    deferred: int = 4096


class Metrics:
    """Counters and histograms for Prometheus.

    Args:
        edges: Of the histogram of scores.
    """

    def __init__(self, edges: list[float]) -> None:
        self.registry = CollectorRegistry()
        to: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("elang_requests", "Requests", ["status"], **to)
        self.texts = Counter("elang_texts", "Texts answered", ["answered_by"], **to)
        self.deferred = Counter("elang_deferred", "Texts whose score is above the threshold", **to)
        self.fallbacks = Counter("elang_fallbacks", "Deferred texts that the Super did not answer", ["reason"], **to)
        self.waiting = Gauge("elang_waiting", "Texts that a model is asked now", ["model"], **to)
        self.seconds = Histogram("elang_seconds", "Seconds of requests, and of what the models are asked", ["of"], **to)
        self.scores = Histogram("elang_score", "The Swift's difficulty scores", buckets=edges, **to)

    def page(self) -> Response:
        """All of them in Prometheus' text format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


class Batcher:
    """Asks a model for many: what waits while it is busy goes to it together.

    Args:
        ask: Asks the model; the answer has ``answers`` and, if it does not take an input, ``error``.
        workers: Batches that it works on at a time.
        most: Texts in a batch; a question that has more is a batch of its own.
        most_characters: The same for their characters.
        lost: Seconds after which a batch is given up: its worker has died with it.
    """

    def __init__(
        self, ask: Ask, workers: int = 1, most: int = 512, most_characters: int = 250_000, lost: float = 60.0
    ) -> None:
        self.send, self.workers, self.lost = ask, workers, lost
        self.most, self.most_characters = most, most_characters
        self.gauge: Gauge | None = None
        # Texts that are not answered yet, of questions that nobody waits for any more, too, while they are worked on.
        self.waiting = 0
        self._queue: deque[_Asked] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, question: Question, until: float) -> list[Any]:
        """The model's answers to a question.

        Raises:
            asyncio.TimeoutError: If there are none in time.
            InputError: If the model does not take one of the inputs.
            Exception: Whatever else goes wrong.
        """
        asked = _Asked(question, asyncio.get_running_loop().create_future())
        self._count(len(question.texts))
        self._queue.append(asked)
        self._next()
        try:
            return await asyncio.wait_for(asked.answers, max(0.0, until - time.monotonic()))
        finally:
            if asked in self._queue:
                self._queue.remove(asked)
                self._count(-len(question.texts))

    def _next(self) -> None:
        while self._queue and len(self._running) < self.workers:
            batch = [self._queue.popleft()]
            texts, characters = batch[0].size
            while self._queue and self._queue[0].question.keep == batch[0].question.keep:
                texts, characters = texts + self._queue[0].size[0], characters + self._queue[0].size[1]
                if texts > self.most or characters > self.most_characters:
                    break
                batch.append(self._queue.popleft())
            task = asyncio.ensure_future(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._next()

    async def _run(self, batch: "list[_Asked]") -> None:
        try:
            await self._answer(batch)
        finally:
            self._count(-sum(len(one.question.texts) for one in batch))

    async def _answer(self, batch: "list[_Asked]") -> None:
        try:
            texts = [text for one in batch for text in one.question.texts]
            choices = [part for one in batch for part in one.question.choices or []] or None
            whole = Question(texts=texts, choices=choices, keep=batch[0].question.keep)
            lost = time.monotonic() + self.lost
            found = await asyncio.wait_for(self.send(whole, lost), self.lost)
            if (message := found.get("error")) and len(batch) > 1:
                for one in batch:
                    # Those that nobody waits for any more need no pass of their own.
                    if not one.answers.done():
                        await self._answer([one])
                return
            if message:
                raise InputError(message)
            answers = found["answers"]
            if len(answers) != len(texts):
                raise RuntimeError(f"{len(texts)} texts were asked, but {len(answers)} answers came.")
            rest = iter(answers)
            for one in batch:
                own = [next(rest) for _ in one.question.texts]
                if not one.answers.done():
                    one.answers.set_result(own)
        except Exception as error:
            for one in batch:
                if not one.answers.done():
                    one.answers.set_exception(error)

    def _count(self, change: int) -> None:
        self.waiting += change
        if self.gauge is not None:
            self.gauge.set(self.waiting)


@dataclass(eq=False)
class _Asked:
    question: Question
    answers: "asyncio.Future[list[Any]]"

    @cached_property
    def size(self) -> tuple[int, int]:
        """Texts, and their characters."""
        texts = [*self.question.texts, *(self.question.choices or [])]
        return len(self.question.texts), sum(len(t) if isinstance(t, str) else sum(map(len, t)) for t in texts)


class PairService:
    """Answers requests with a Swift and a Super that are asked by message.

    Args:
        predictor: The Swift, which checks texts and knows the labels; it is not run.
        swift: The Swift.
        super_: The Super.
        super_ready: Whether it is worth asking.
        limits: What is taken.
        on_super_failure: What becomes of a deferred text when the Super is slow, full or dead: ``swift`` answers with
            the Swift's own answer and says so, ``fail`` refuses the request.
    """

    def __init__(
        self,
        predictor: JointPredictor,
        swift: "Batcher",
        super_: "Batcher",
        super_ready: Callable[[], bool] = lambda: True,
        limits: Limits | None = None,
        on_super_failure: OnSuperFailure = "swift",
    ) -> None:
        self.predictor, self.super_ready = predictor, super_ready
        self.models: dict[Role, Batcher] = {"swift": swift, "super": super_}
        self.limits, self.on_super_failure = limits or Limits(), on_super_failure
        self.metrics = Metrics(score_edges(predictor))
        for role, model in self.models.items():
            model.gauge = self.metrics.waiting.labels(role)

    async def answer(self, question: TimedQuestion) -> Reply:
        """Answer a request.

        Raises:
            HTTPException: 422 for bad input, 503 where a model is full or not there, 504 past the deadline.
        """
        start = time.monotonic()
        status = 500
        try:
            found = await self._answer(question, start)
            status = 200
            return found
        except HTTPException as error:
            status = error.status_code
            raise
        finally:
            self.metrics.requests.labels(status).inc()
            self.metrics.seconds.labels("request").observe(time.monotonic() - start)

    async def _answer(self, question: TimedQuestion, start: float) -> Reply:
        until = start + min(question.deadline or self.limits.deadline, self.limits.deadline)
        self._check(question)
        if not question.texts:
            return Reply(answers=[])
        if self.models["swift"].waiting + len(question.texts) > self.limits.pending:
            raise HTTPException(503, "Too many texts are waiting. Ask again later.", {"Retry-After": "1"})
        try:
            said = await self._ask("swift", question, until)
        except asyncio.TimeoutError:
            raise HTTPException(504, "The Swift did not answer before the deadline.") from None
        except InputError as error:
            raise HTTPException(422, str(error)) from None
        except Exception as error:
            _log.warning("The Swift failed: %s: %s", type(error).__name__, error)
            raise HTTPException(503, "The Swift is not there. Ask again later.", {"Retry-After": "1"}) from None
        answers = [
            Answer(label="" if x is None else x, score=s, answered_by="swift", fallback=None) for x, s, _ in said
        ]
        for answer in answers:
            self.metrics.scores.observe(answer.score)
        hard = [i for i, one in enumerate(said) if one[2]]
        if hard:
            self.metrics.deferred.inc(len(hard))
            part = _part(question, hard)
            # What the Swift has not decoded yet would have to be, in time.
            late = said[hard[0]][0] is None and self.on_super_failure == "swift"
            labels, reason = await self._ask_super(part, until - (until - start) * LATE * late)
            if reason:
                self.metrics.fallbacks.labels(reason).inc(len(hard))
                labels = await self._without_super(part, [said[i][0] for i in hard], reason, until)
            for i, label in zip(hard, labels, strict=True):
                by: Role = "swift" if reason else "super"
                answers[i] = answers[i].model_copy(update={"label": label, "answered_by": by, "fallback": reason})
        for who in ("swift", "super"):
            self.metrics.texts.labels(who).inc(sum(answer.answered_by == who for answer in answers))
        return Reply(answers=answers)

    def _check(self, question: Question) -> None:
        texts, choices = question.texts, question.choices
        if len(texts) > self.limits.texts:
            raise HTTPException(422, f"A request has at most {self.limits.texts} texts, but this one {len(texts)}.")
        task = self.predictor.task
        if (task.problem == "choice" and not task.choice_fields) != (choices is not None):
            needed = "for each input its candidates" if choices is None else "no candidates"
            raise HTTPException(422, f"This task takes {needed}, as 'choices'.")
        check_question(question)
        try:
            self.predictor.rows(texts)
            check_choices(max(map(len, choices)) if choices else 0, len(self.predictor.label_names))
        except InputError as error:
            raise HTTPException(422, str(error)) from None

    async def _ask_super(self, part: Question, until: float) -> tuple[list[str | float], Reason | None]:
        """The Super's labels, or why there are none."""
        if not self.super_ready():
            return [], "unavailable"
        if self.models["super"].waiting + len(part.texts) > self.limits.deferred:
            return [], "full"
        try:
            labels = await self._ask("super", part, until)
        except asyncio.TimeoutError:
            return [], "timeout"
        except Exception as error:
            _log.warning("The Super failed: %s: %s", type(error).__name__, error)
            return [], "failed"
        known = set(self.predictor.label_names)
        if self.predictor.task.problem == "classification" and (odd := [x for x in labels if x not in known]):
            _log.error("The Super answers %r, which is no label of the Swift's: %s", odd[0], sorted(known))
            return [], "failed"
        return labels, None

    async def _without_super(
        self, part: Question, labels: list[str | float | None], reason: Reason, until: float
    ) -> list[str | float]:
        """The Swift's own answers, if it may give them."""
        status = 504 if reason == "timeout" else 503
        if self.on_super_failure == "fail":
            said = {"timeout": "did not answer before the deadline", "full": "has too many texts waiting"}
            headers = {"Retry-After": "1"} if status == 503 else None
            raise HTTPException(status, f"The Super {said.get(reason, 'is not there')}. Ask again later.", headers)
        if all(label is not None for label in labels):
            return [label for label in labels if label is not None]
        try:
            found = await self._ask("swift", part.model_copy(update={"keep": True}), until)
        except Exception as error:
            raise HTTPException(504, f"Neither model answered before the deadline ({type(error).__name__}).") from None
        return [label for label, _, _ in found]

    async def _ask(self, role: Role, question: Question, until: float) -> list[Any]:
        start = time.monotonic()
        found = await self.models[role].ask(question, until)
        self.metrics.seconds.labels(role).observe(time.monotonic() - start)
        return found


def _part(question: Question, places: list[int]) -> Question:
    choices = None if question.choices is None else [question.choices[i] for i in places]
    return Question(texts=[question.texts[i] for i in places], choices=choices, keep=False)


def check_question(question: Question) -> None:
    """Refuse what would spoil others' answers in a common batch.

    Raises:
        HTTPException: 422, for candidates that are not one list for each text, or text that is no Unicode.
    """
    texts, choices = question.texts, question.choices
    if choices is not None and (len(choices) != len(texts) or not all(choices)):
        raise HTTPException(422, "Each input needs at least one candidate, in 'choices'.")
    for place, part in enumerate([*texts, *(choices or [])]):
        try:
            "".join(part).encode("utf-8")
        except UnicodeEncodeError:
            raise HTTPException(422, f"Input {place % len(texts)} (counted from 0) is no valid Unicode.") from None


def score_edges(predictor: JointPredictor) -> list[float]:
    """The scores above which half to a tenth of the routing slice lies (``defer 50%``, ...), and the threshold."""
    known = predictor.manifest.thresholds.get(predictor.score, {})
    edges = {float(entry["threshold"]) for name, entry in known.items() if name.startswith("defer ")}
    return [*sorted(edge for edge in edges | {predictor.threshold} if math.isfinite(edge)), math.inf]


def add_super_route(app: FastAPI, model: Batcher, limits: Limits) -> None:
    """Add ``/super``, which pairs elsewhere ask, to an app."""

    @app.post("/super", response_model=Labels, summary="Answer texts with the Super")
    async def ask_super(question: TimedQuestion) -> Labels:
        check_question(question)
        if len(question.texts) > limits.texts:
            raise HTTPException(422, f"A request has at most {limits.texts} texts.")
        if model.waiting + len(question.texts) > limits.deferred:
            raise HTTPException(503, "Too many texts are waiting. Ask again later.", {"Retry-After": "1"})
        until = time.monotonic() + min(question.deadline or limits.deadline, limits.deadline)
        try:
            return Labels(answers=await model.ask(question, until) if question.texts else [])
        except InputError as error:
            raise HTTPException(422, str(error)) from None
        except asyncio.TimeoutError:
            raise HTTPException(504, "The Super did not answer before the deadline.") from None
        except Exception as error:
            _log.warning("The Super failed: %s: %s", type(error).__name__, error)
            raise HTTPException(503, "The Super is not there. Ask again later.", {"Retry-After": "1"}) from None


def add_routes(app: FastAPI, service: PairService, swift_ready: Callable[[], bool]) -> None:
    """Add ``/predict``, ``/metrics`` and ``/ready`` to an app."""

    @app.post("/predict", response_model=Reply, summary="Answer texts with the pair")
    async def predict(question: TimedQuestion) -> Reply:
        return await service.answer(question)

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return service.metrics.page()

    @app.get("/ready", summary="200 if requests can be answered")
    async def ready(response: Response) -> dict[str, bool]:
        state = {"swift": swift_ready(), "super": service.super_ready()}
        if not state["swift"] or (service.on_super_failure == "fail" and not state["super"]):
            response.status_code = 503
        return state


class Gate:
    """Refuses requests without the token, and bodies that are too large, before anything reads them.

    Args:
        app: What is behind it.
        token: Expected as ``Authorization: Bearer TOKEN``; ``None`` lets all in.
        max_bytes: Of a body.
        inside: Expected as ``X-Inside`` by the workers' own paths, whose batches are as large as they are.
    """

    OPEN = ("/", "/health", "/ready")

    def __init__(self, app: Any, token: str | None, max_bytes: int, inside: str = "") -> None:
        self.app, self.max_bytes, self.inside = app, max_bytes, inside.encode()
        self.expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if scope["path"].startswith("/workers/"):
            if self.inside and hmac.compare_digest(headers.get(b"x-inside", b""), self.inside):
                await self.app(scope, receive, send)
            else:
                await _refusal(404, "Ask /predict.")(scope, receive, send)
            return
        if self.expected is not None and scope["path"] not in self.OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                said = "The token is missing or wrong: send 'Authorization: Bearer TOKEN'."
                await _refusal(401, said)(scope, receive, send)
                return
        large = _refusal(413, f"A request has at most {self.max_bytes} bytes.")
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.max_bytes:
            await large(scope, receive, send)
            return
        # A body may come in pieces and say nothing of its length.
        read, over = 0, False

        async def counted() -> Any:
            nonlocal read, over
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_bytes:
                over = True
                return {"type": "http.disconnect"}
            return message

        async def answered(message: Any) -> None:
            if not over:
                await send(message)

        try:
            await self.app(scope, counted, answered)
        except Exception:
            if not over:
                raise
        if over:
            await large(scope, receive, send)


def _refusal(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status)
