"""What `elang serve` does with a request: the Swift is asked, then the Super, and never longer than the deadline.

Whatever has come in while a model was busy is its next batch.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field

from elang.errors import InputError
from elang.models.text_model import check_choices
from elang.predictor import JointPredictor
from elang.question import BODY, Limits, Question, QuestionReader, TimedQuestion, refused

_log = logging.getLogger(__name__)

OnSuperFailure = Literal["swift", "fail"]
Role = Literal["swift", "super"]
Reason = Literal["timeout", "full", "failed", "unavailable"]
# The part of a deadline that is kept for the Swift's decoder, where its score has decided before it ran.
LATE = 0.25
# A question with more than this share of a batch's characters is a long one.
_LONG = 8
# What is asked to look in from outside, and what is then answered when all goes well or starts and ends.
_VIEWS = ("/", "/health", "/ready", "/metrics", "/docs", "/redoc", "/openapi.json")
_SEEN = (200, 503)
# Asks a model, until when (of `time.monotonic`); it raises whatever goes wrong.
Ask = Callable[["Question", float], Awaitable[dict[str, Any]]]


class Answer(BaseModel):
    """The pair's answer to one input."""

    label: str | float = Field(description="The class, the candidate, the generated text, or a regression's value.")
    score: float = Field(description="The Swift's difficulty score; larger is harder.")
    answered_by: Literal["swift", "super"]
    fallback: Reason | None = Field(None, description="Why the Swift answers what the Super should have.")
    cut: list[Role] = Field([], description="Which models read only the beginning: the input is too long for them.")


class Reply(BaseModel):
    """The answers, in the order of the texts."""

    answers: list[Answer]


class Labels(BaseModel):
    """The Super's answers, in the order of the texts."""

    answers: list[str | float]
    cut: list[int] = Field([], description="Numbers, from 0, of the texts of which only the beginning was read.")


class Metrics:
    """Counters and histograms for Prometheus.

    Args:
        edges: Of the histogram of scores; ``None`` for a Super alone, which has none.
    """

    def __init__(self, edges: list[float] | None) -> None:
        self.registry = CollectorRegistry()
        to: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("elang_requests", "Requests, refused ones too, but for views", ["status"], **to)
        self.views = Counter("elang_views", f"Requests of {', '.join(_VIEWS)}", ["status"], **to)
        self.texts = Counter("elang_texts", "Texts answered", ["answered_by"], **to)
        self.deferred = Counter("elang_deferred", "Texts whose score is above the threshold", **to)
        self.fallbacks = Counter("elang_fallbacks", "Deferred texts that the Super did not answer", ["reason"], **to)
        self.waiting = Gauge("elang_waiting", "Texts that a model is asked now", ["model"], **to)
        self.seconds = Histogram("elang_seconds", "Seconds of requests, and of what the models are asked", ["of"], **to)
        self.cut = Counter("elang_cut", "Texts of which a model read only the beginning", ["model"], **to)
        if edges is not None:
            self.scores = Histogram("elang_score", "The Swift's difficulty scores", buckets=edges, **to)

    def count(self, path: str, status: int) -> None:
        """Count a request."""
        (self.views if path in _VIEWS and status in _SEEN else self.requests).labels(status).inc()

    def page(self) -> Response:
        """All of them in Prometheus' text format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


@dataclass(frozen=True)
class Said:
    """What a model says to a question.

    Attributes:
        answers: One for each text.
        cut: Places of the texts of which it read only the beginning.
    """

    answers: list[Any]
    cut: set[int]


class Batcher:
    """Asks a model for many: what waits while it is busy goes to it together.

    Short and long questions take turns, so that a crowd of long ones does not keep short ones waiting.

    Args:
        ask: Asks the model; it says ``answers``, the places ``cut`` and, if it does not take an input, ``error``.
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
        self._queues: tuple[deque[_Asked], deque[_Asked]] = deque(), deque()
        self._turn = 1
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, question: Question, until: float) -> Said:
        """What the model says to a question.

        Raises:
            asyncio.TimeoutError: If there are none in time.
            InputError: If the model does not take one of the inputs.
            Exception: Whatever else goes wrong.
        """
        asked = _Asked(question, asyncio.get_running_loop().create_future())
        self._count(len(question.texts))
        queue = self._queues[asked.size[1] > self.most_characters // _LONG]
        queue.append(asked)
        self._next()
        try:
            return await asyncio.wait_for(asked.answers, max(0.0, until - time.monotonic()))
        finally:
            if asked in queue:
                queue.remove(asked)
                self._count(-len(question.texts))

    def _next(self) -> None:
        while any(self._queues) and len(self._running) < self.workers:
            self._turn = 1 - self._turn if all(self._queues) else int(not self._queues[0])
            queue = self._queues[self._turn]
            batch = [queue.popleft()]
            texts, characters = batch[0].size
            while queue and queue[0].question.keep == batch[0].question.keep:
                texts, characters = texts + queue[0].size[0], characters + queue[0].size[1]
                if texts > self.most or characters > self.most_characters:
                    break
                batch.append(queue.popleft())
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
                half = len(batch) // 2
                for part in (batch[:half], batch[half:]):
                    # Those that nobody waits for any more need no pass of their own.
                    if wanted := [one for one in part if not one.answers.done()]:
                        await self._answer(wanted)
                return
            if message:
                raise InputError(message)
            answers = found["answers"]
            if len(answers) != len(texts):
                raise RuntimeError(f"{len(texts)} texts were asked, but {len(answers)} answers came.")
            cut, start = set(found.get("cut", ())), 0
            for one in batch:
                end = start + len(one.question.texts)
                if not one.answers.done():
                    own = {place - start for place in cut if start <= place < end}
                    one.answers.set_result(Said(answers[start:end], own))
                start = end
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
    answers: "asyncio.Future[Said]"

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
        metrics: What counts; by default its own.
    """

    def __init__(
        self,
        predictor: JointPredictor,
        swift: "Batcher",
        super_: "Batcher",
        super_ready: Callable[[], bool] = lambda: True,
        limits: Limits | None = None,
        on_super_failure: OnSuperFailure = "swift",
        metrics: Metrics | None = None,
    ) -> None:
        self.predictor, self.super_ready = predictor, super_ready
        self.models: dict[Role, Batcher] = {"swift": swift, "super": super_}
        self.limits, self.on_super_failure = limits or Limits(), on_super_failure
        self.metrics = metrics or Metrics(score_edges(predictor))
        for role, model in self.models.items():
            model.gauge = self.metrics.waiting.labels(role)

    async def answer(self, question: TimedQuestion) -> Reply:
        """Answer a request.

        Raises:
            HTTPException: 422 for bad input, 503 where a model is full or not there, 504 past the deadline.
        """
        start = time.monotonic()
        try:
            return await self._answer(question, start)
        finally:
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
            raise refused(str(error)) from None
        except Exception as error:
            _log.warning("The Swift failed: %s: %s", type(error).__name__, error)
            raise HTTPException(503, "The Swift is not there. Ask again later.", {"Retry-After": "1"}) from None
        answers = [
            Answer(
                label="" if x is None else x,
                score=s,
                answered_by="swift",
                fallback=None,
                cut=["swift"] if i in said.cut else [],
            )
            for i, (x, s, _) in enumerate(said.answers)
        ]
        for answer in answers:
            self.metrics.scores.observe(answer.score)
        hard = [i for i, one in enumerate(said.answers) if one[2]]
        if hard:
            self.metrics.deferred.inc(len(hard))
            part = _part(question, hard)
            # What the Swift has not decoded yet would have to be, in time.
            late = said.answers[hard[0]][0] is None and self.on_super_failure == "swift"
            supers, reason = await self._ask_super(part, until - (until - start) * LATE * late)
            labels = supers.answers
            if reason:
                self.metrics.fallbacks.labels(reason).inc(len(hard))
                labels = await self._without_super(part, [said.answers[i][0] for i in hard], reason, until)
            by: Role = "swift" if reason else "super"
            for place, (i, label) in enumerate(zip(hard, labels, strict=True)):
                cut = [*answers[i].cut, *(["super"] if place in supers.cut else [])]
                update = {"label": label, "answered_by": by, "fallback": reason, "cut": cut}
                answers[i] = answers[i].model_copy(update=update)
            self.metrics.cut.labels("super").inc(len(supers.cut))
        self.metrics.cut.labels("swift").inc(len(said.cut))
        for who in ("swift", "super"):
            self.metrics.texts.labels(who).inc(sum(answer.answered_by == who for answer in answers))
        return Reply(answers=answers)

    def _check(self, question: Question) -> None:
        texts, choices = question.texts, question.choices
        if len(texts) > self.limits.texts:
            raise refused(f"A request has at most {self.limits.texts} texts, but this one has {len(texts)}.")
        task = self.predictor.task
        if (task.problem == "choice" and not task.choice_fields) != (choices is not None):
            needed = "for each input its candidates" if choices is None else "no candidates"
            raise refused(f"This task takes {needed}, as 'choices'.")
        try:
            self.predictor.rows(texts)
            check_choices(max(map(len, choices)) if choices else 0, len(self.predictor.label_names))
        except InputError as error:
            raise refused(str(error)) from None

    async def _ask_super(self, part: Question, until: float) -> tuple[Said, Reason | None]:
        """The Super's labels, or why there are none."""
        none = Said([], set())
        if not self.super_ready():
            return none, "unavailable"
        if self.models["super"].waiting + len(part.texts) > self.limits.deferred:
            return none, "full"
        try:
            said = await self._ask("super", part, until)
        except asyncio.TimeoutError:
            return none, "timeout"
        except Exception as error:
            _log.warning("The Super failed: %s: %s", type(error).__name__, error)
            return none, "failed"
        known = self.predictor.label_names if self.predictor.task.problem == "classification" else None
        if odd := [x for x in said.answers if not _is_label(x, known)]:
            _log.error("The Super answers %.80r, which is no label of the Swift's: %s", odd[0], known)
            return none, "failed"
        return said, None

    async def _without_super(
        self, part: Question, labels: list[str | float | None], reason: Reason, until: float
    ) -> list[str | float]:
        """The Swift's own answers, if it may give them."""
        status = 504 if reason == "timeout" else 503
        if self.on_super_failure == "fail":
            why = {"timeout": "did not answer before the deadline", "full": "has too many texts waiting"}
            headers = {"Retry-After": "1"} if status == 503 else None
            raise HTTPException(status, f"The Super {why.get(reason, 'is not there')}. Ask again later.", headers)
        if all(label is not None for label in labels):
            return [label for label in labels if label is not None]
        try:
            said = await self._ask("swift", part.model_copy(update={"keep": True}), until)
        except Exception as error:
            raise HTTPException(504, f"Neither model answered before the deadline ({type(error).__name__}).") from None
        return [label for label, _, _ in said.answers]

    async def _ask(self, role: Role, question: Question, until: float) -> Said:
        start = time.monotonic()
        found = await self.models[role].ask(question, until)
        self.metrics.seconds.labels(role).observe(time.monotonic() - start)
        return found


def _part(question: Question, places: list[int]) -> Question:
    choices = None if question.choices is None else [question.choices[i] for i in places]
    return Question(texts=[question.texts[i] for i in places], choices=choices, keep=False)


def _is_label(answer: Any, known: list[str] | None) -> bool:
    """Whether an answer, perhaps of a server elsewhere, can be one of the pair's."""
    if known is not None:
        return isinstance(answer, str) and answer in known
    return isinstance(answer, str) or (isinstance(answer, int | float) and math.isfinite(answer))


def score_edges(predictor: JointPredictor) -> list[float]:
    """The scores above which half to a tenth of the routing slice lies (``defer 50%``, ...), and the threshold."""
    known = predictor.manifest.thresholds.get(predictor.score, {})
    edges = {float(entry["threshold"]) for name, entry in known.items() if name.startswith("defer ")}
    finite = sorted(edge for edge in edges | {predictor.threshold} if math.isfinite(edge))
    # A histogram needs one beside infinity.
    return [*(finite or [0.0]), math.inf]


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
            _log.warning("The Super failed: %s: %s", type(error).__name__, error)
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
