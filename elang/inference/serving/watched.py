"""Puts a shadow behind a pair's service: its log, the path that takes labels, and the gauges of its watch."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from prometheus_client.core import GaugeMetricFamily

from elang.evaluation.report.watch_words import GAUGES, gauges
from elang.evaluation.watch_log import check_label
from elang.evaluation.watching import Watched, promised_entry, promises_of, watched
from elang.inference.predictor import JointPredictor
from elang.inference.serving.chat_answer import PairPrices
from elang.inference.serving.chat_service import ChatService
from elang.inference.serving.schema import is_id, refused
from elang.inference.serving.service import Metrics, PairService
from elang.inference.serving.shadow import Shadow, ShadowOptions
from elang.inference.serving.shadow_pair import ChatShadow, Costs, TextShadow, about_pair, same_answers

_log = logging.getLogger(__name__)
# Labels of a request at most, and seconds between judgements at least.
_LABELS, _EVERY = 10_000, 30.0


def watch_texts(app: FastAPI, service: PairService, options: ShadowOptions) -> TextShadow:
    """Watch the answers of a pair that answers texts."""
    model = service.models["super"]
    shadow = _shadow(
        app, service.predictor, service.metrics, options, lambda: service.super_ready() and not model.waiting
    )
    prices: PairPrices = {} if options.prices is None else {"super": options.prices}
    return TextShadow(shadow, Costs(options.unit, prices, options.config), service.predictor.swift.tokenizer)


def watch_chats(app: FastAPI, service: ChatService, options: ShadowOptions) -> ChatShadow:
    """Watch the answers of a pair that answers chats."""
    super_, predictor = service.super_, service.predictor
    shadow = _shadow(app, predictor, service.metrics, options, lambda: service.super_ready() and not super_.waiting)
    costs = Costs(options.unit, service.prices, options.config)
    return ChatShadow(shadow, costs, super_, task=predictor.task, seconds=service.limits.deadline)


def _shadow(
    app: FastAPI, predictor: JointPredictor, metrics: Metrics, options: ShadowOptions, idle: Callable[[], bool]
) -> Shadow:
    task = predictor.task
    about = about_pair(predictor)
    shadow = Shadow(options, about, same=same_answers(task), idle=idle, registry=metrics.registry)
    metrics.registry.register(Gauges(shadow, predictor))
    _add_labels(app, shadow, about.get("label_names"))
    return shadow


def _add_labels(app: FastAPI, shadow: Shadow, names: list[str] | None) -> None:
    """Add ``/labels``, which takes what is right of watched inputs, by their ids."""

    @app.post("/labels", summary="What is right, of inputs that are watched")
    async def labels(request: Request) -> dict[str, int]:
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            raise refused("The body is not JSON.") from None
        lines = body.get("labels") if isinstance(body, dict) else None
        if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
            raise refused('The body must be an object such as {"labels": [{"id": "a1", "label": "good"}]}.')
        if len(lines) > _LABELS:
            raise HTTPException(413, f"A request has at most {_LABELS} labels.")
        for place, line in enumerate(lines):
            if extra := line.keys() - {"id", "label", "swift", "super"}:
                raise refused(f"Label {place} has the unknown field {min(extra)[:40]!a}.")
            if not is_id(line.get("id")):
                raise refused(f"Label {place} needs the 'id' of a watched input.")
            if "label" in line and not (isinstance(line["label"], str) and (not names or line["label"] in names)):
                raise refused(f"Label {place} is {str(line['label'])[:40]!a}, which is no answer of this pair.")
            try:
                check_label(line)
            except ValueError as error:
                raise refused(f"Label {place} cannot be used: {error}.") from None
            # Chats have their id in the form of OpenAI's.
            line["id"] = line["id"].removeprefix("chatcmpl-").removeprefix("cmpl-")
        return {"labels": len(lines), "of_watched_inputs": shadow.label(lines)}


class Gauges:
    """The gauges of a watch for Prometheus. It is judged anew in a thread, at most twice a minute."""

    def __init__(self, shadow: Shadow, predictor: JointPredictor) -> None:
        self.shadow, self.score, self.threshold = shadow, predictor.score, predictor.threshold
        self.entry = promised_entry(predictor.manifest.thresholds.get(self.score, {}), self.threshold) or {}
        self.judged: Watched | None = None
        self._at = 0.0
        self._running = False
        self._task: asyncio.Task[None] | None = None

    def collect(self) -> Iterator[Any]:
        """The gauges as they were judged last."""
        if self.shadow.changed and not self._running and time.monotonic() - self._at > _EVERY:
            try:
                # Kept, so that it is not collected while it runs.
                self._task = asyncio.get_running_loop().create_task(self._judge())
            except RuntimeError:
                # Not in a server, so that nobody waits.
                self.judged = self._watched()
        if self.judged is None:
            return
        for name, values in gauges(self.judged).items():
            family = GaugeMetricFamily(name, GAUGES[name], labels=[*values[0][0]])
            for labels, value in values:
                family.add_metric([*labels.values()], value)
            yield family

    async def _judge(self) -> None:
        self._running, self.shadow.changed = True, False
        try:
            self.judged = await asyncio.to_thread(self._watched)
        except Exception as error:
            _log.warning("The watch cannot be judged: %s: %s", type(error).__name__, error)
        finally:
            self._running, self._at = False, time.monotonic()

    def _watched(self) -> Watched:
        return watched(self.shadow.watch.at(self.score, self.threshold), promises_of(self.entry), entry=self.entry)
