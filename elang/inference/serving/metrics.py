"""Counters and histograms for Prometheus."""

import math
from typing import Any

from fastapi import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from elang.inference.predictor import JointPredictor

# What is asked to look in from outside, and what is then answered when all goes well or starts and ends.
_VIEWS = ("/", "/health", "/ready", "/metrics", "/docs", "/redoc", "/openapi.json")
_SEEN = (200, 503)


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


def score_edges(predictor: JointPredictor) -> list[float]:
    """The scores above which half to a tenth of the routing slice lies (``defer 50%``, ...), and the threshold."""
    known = predictor.manifest.thresholds.get(predictor.score, {})
    edges = {float(entry["threshold"]) for name, entry in known.items() if name.startswith("defer ")}
    finite = sorted(edge for edge in edges | {predictor.threshold} if math.isfinite(edge))
    # A histogram needs one beside infinity.
    return [*(finite or [0.0]), math.inf]
