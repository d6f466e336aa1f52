"""Answers a request: asks the Swift, then the Super, and never takes longer than the deadline."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any, Literal

from fastapi import HTTPException, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from elang.backends.backend import check_choices
from elang.errors import InputError
from elang.inference.predictor import JointPredictor
from elang.inference.serving.batcher import Batcher, ModelAnswers
from elang.inference.serving.schema import Answer, Limits, Question, Reason, Reply, Role, TimedQuestion, busy, refused
from elang.inference.serving.shadow_pair import TextShadow
from elang.tasks.extraction import answer_in

_log = logging.getLogger(__name__)
OnSuperFailure = Literal["swift", "fail"]
# A label, None where there is none yet, and its probability, if that is known.
_Label = tuple[Any, float | None]
# The part of a deadline that is kept for the Swift's decoder, where its score decided before the decoder ran.
_DECODER_SHARE = 0.25
# Paths that look in from outside; counted apart if the server answers or is starting or ending.
_VIEWS = ("/", "/health", "/ready", "/metrics", "/docs", "/redoc", "/openapi.json")
_VIEW_STATUSES = (200, 503)


class Metrics:
    """Counters and histograms for Prometheus; ``edges`` are those of the scores, which a Super alone does not have."""

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
        (self.views if path in _VIEWS and status in _VIEW_STATUSES else self.requests).labels(status).inc()

    def page(self) -> Response:
        """All of them in Prometheus' text format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)


def score_edges(predictor: JointPredictor) -> list[float]:
    """The scores above which half to a tenth of the routing slice lies (``defer 50%``, ...), and the threshold."""
    thresholds = predictor.manifest.thresholds.get(predictor.score, {})
    edges = {float(entry["threshold"]) for name, entry in thresholds.items() if name.startswith("defer ")}
    finite = sorted(edge for edge in edges | {predictor.threshold} if math.isfinite(edge))
    # A histogram needs an edge besides infinity.
    return [*(finite or [0.0]), math.inf]


async def ask_model(role: Role, model: Batcher, question: Question, *, until: float, room: float) -> ModelAnswers:
    """Ask a model, unless more texts than it has ``room`` for wait for it.

    An HTTPException has 422 if it refuses an input, 503 if too many texts wait or it fails, 504 past the deadline.
    """
    if model.waiting + len(question.texts) > room:
        raise busy("Too many texts are waiting.")
    who = role.capitalize()
    try:
        return await model.ask(question, until)
    except asyncio.TimeoutError:
        raise HTTPException(504, f"The {who} did not answer before the deadline.") from None
    except InputError as error:
        raise refused(str(error)) from None
    except Exception as error:
        _log.warning("The %s failed: %s: %s", who, type(error).__name__, error)
        raise busy(f"The {who} is not there.") from None


class PairService:
    """Answers requests by asking the batchers of a Swift and a Super.

    The predictor has the Swift, which checks texts and knows the labels here, but is not run. If the Super is slow,
    full, dead or not ready, ``on_super_failure`` says whether the Swift's answer is given and marked (``swift``), or
    the request is refused (``fail``).
    """

    def __init__(
        self,
        predictor: JointPredictor,
        models: dict[Role, Batcher],
        super_ready: Callable[[], bool] = lambda: True,
        *,
        limits: Limits | None = None,
        on_super_failure: OnSuperFailure = "swift",
        metrics: Metrics | None = None,
    ) -> None:
        self.predictor, self.models, self.super_ready = predictor, models, super_ready
        self.limits, self.on_super_failure = limits or Limits(), on_super_failure
        self.metrics = metrics or Metrics(score_edges(predictor))
        for role, model in models.items():
            model.gauge = self.metrics.waiting.labels(role)
        self.shadow: TextShadow | None = None

    async def answer(self, question: TimedQuestion, threshold: float | None = None) -> Reply:
        """Answer a request; an HTTPException with 422 for bad input, 503 or 504 as of :func:`ask_model`.

        ``threshold`` takes the place of the predictor's.
        """
        own = self.predictor.threshold
        with self.metrics.seconds.labels("request").time():
            if self.shadow is None or threshold not in (None, own):
                return await self._answer(question, own if threshold is None else threshold)
            with self.shadow.watched(question, self._shadowed) as saw:
                reply = await self._answer(question, own)
                saw(reply)
                return reply

    async def _shadowed(self, question: Question) -> Any:
        """The Super's answer to one text that the Swift has answered."""
        answers = (await self.models["super"].ask(question, time.monotonic() + self.limits.deadline)).answers
        names = self.predictor.label_names if self.predictor.task.kind.has_classes else None
        if not _is_label(answers[0], names):
            raise InputError(f"the Super answers {answers[0]!r:.80}, which is no label of the Swift's")
        return answers[0]

    async def _answer(self, question: TimedQuestion, threshold: float) -> Reply:
        seconds = min(question.deadline or self.limits.deadline, self.limits.deadline)
        until = time.monotonic() + seconds
        self._check(question)
        if not question.texts:
            return Reply(answers=[])
        if threshold > -math.inf:
            asked: Question = question
            if threshold != self.predictor.threshold:
                asked = Question(texts=question.texts, choices=question.choices, threshold=threshold)
            swift = await self._ask("swift", asked, until, room=self.limits.pending)
            for _, score, _ in swift.answers:
                self.metrics.scores.observe(score)
        else:
            # The Swift is asked only if the Super fails.
            swift = ModelAnswers([(None, None, True)] * len(question.texts), set())
        labels = _with_probabilities([label for label, _, _ in swift.answers], swift)
        hard = [i for i, (_, _, deferred) in enumerate(swift.answers) if deferred]
        supers, reason = ModelAnswers([], set()), None
        if hard:
            self.metrics.deferred.inc(len(hard))
            choices = None if question.choices is None else [question.choices[i] for i in hard]
            part = Question(texts=[question.texts[i] for i in hard], choices=choices)
            # Keep time for the Swift's decoder if it has not run.
            decode = labels[hard[0]][0] is None and self.on_super_failure == "swift"
            supers, reason = await self._ask_super(part, until - seconds * _DECODER_SHARE * decode)
            hard_labels = _with_probabilities(supers.answers, supers)
            if reason:
                self.metrics.fallbacks.labels(reason).inc(len(hard))
                hard_labels, cut_now = await self._without_super(part, [labels[i] for i in hard], reason, until=until)
                swift.cut.update(hard[place] for place in cut_now)
            for i, label in zip(hard, hard_labels, strict=True):
                labels[i] = label
        deferred = set(hard)
        cut_by_super = {i for place, i in enumerate(hard) if place in supers.cut}
        cut: dict[Role, set[int]] = {"swift": swift.cut, "super": cut_by_super}
        answers = [
            Answer(
                label=labels[i][0],
                probability=labels[i][1],
                score=score,
                answered_by="super" if i in deferred and not reason else "swift",
                answer=answer_in(self.predictor.task, labels[i][0]),
                fallback=reason if i in deferred else None,
                cut=[role for role, places in cut.items() if i in places],
            )
            for i, (_, score, _) in enumerate(swift.answers)
        ]
        for role, places in cut.items():
            self.metrics.cut.labels(role).inc(len(places))
            self.metrics.texts.labels(role).inc(sum(answer.answered_by == role for answer in answers))
        return Reply(answers=answers)

    def _check(self, question: Question) -> None:
        texts, choices, task = question.texts, question.choices, self.predictor.task
        if (task.kind.has_candidates and not task.choice_fields) != (choices is not None):
            needed = "for each input its candidates" if choices is None else "no candidates"
            raise refused(f"This task takes {needed}, as 'choices'.")
        try:
            self.predictor.rows(texts)
            check_choices(max(map(len, choices)) if choices else 0, len(self.predictor.label_names))
        except InputError as error:
            raise refused(str(error)) from None

    async def _ask(self, role: Role, question: Question, until: float, *, room: float) -> ModelAnswers:
        start = time.monotonic()
        answers = await ask_model(role, self.models[role], question, until=until, room=room)
        self.metrics.seconds.labels(role).observe(time.monotonic() - start)
        return answers

    async def _ask_super(self, part: Question, until: float) -> tuple[ModelAnswers, Reason | None]:
        """The Super's labels, or why there are none."""
        none = ModelAnswers([], set())
        if not self.super_ready():
            return none, "unavailable"
        if self.models["super"].waiting + len(part.texts) > self.limits.deferred:
            return none, "full"
        try:
            answers = await self._ask("super", part, until, room=self.limits.deferred)
        except HTTPException as error:
            if error.status_code == 422:
                _log.warning("The Super refused: %s", error.detail)
            return none, "timeout" if error.status_code == 504 else "failed"
        names = self.predictor.label_names if self.predictor.task.kind.has_classes else None
        if others := [answer for answer in answers.answers if not _is_label(answer, names)]:
            _log.error("The Super answers %.80r, which is no label of the Swift's: %s", others[0], names)
            return none, "failed"
        return answers, None

    async def _without_super(
        self, part: Question, labels: list[_Label], reason: Reason, *, until: float
    ) -> tuple[list[_Label], set[int]]:
        """The Swift's answers, if they may be given, and the places of texts that it cut, if it is asked only now."""
        if self.on_super_failure == "fail":
            why = {"timeout": "did not answer before the deadline", "full": "has too many texts waiting"}
            refusal = busy(f"The Super {why.get(reason, 'is not there')}.")
            raise HTTPException(504, refusal.detail) if reason == "timeout" else refusal
        if all(label is not None for label, _ in labels):
            return labels, set()
        try:
            answers = await self._ask("swift", part.model_copy(update={"threshold": math.inf}), until, room=math.inf)
        except HTTPException as error:
            raise HTTPException(504, f"Neither model answered before the deadline. {error.detail}") from None
        return _with_probabilities([label for label, _, _ in answers.answers], answers), answers.cut


def _with_probabilities(labels: list[Any], answers: ModelAnswers) -> list[_Label]:
    return [*zip(labels, answers.probabilities or [None] * len(labels), strict=True)]


def _is_label(answer: Any, names: list[str] | None) -> bool:
    """Whether an answer, perhaps from a server elsewhere, can be the pair's."""
    if names is not None:
        return isinstance(answer, str) and answer in names
    return isinstance(answer, str) or (isinstance(answer, int | float) and math.isfinite(answer))
