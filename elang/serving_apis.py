"""The two models as LitServe's workers, and the server that asks them."""

import logging
import secrets
import time
from functools import partial
from typing import Any

import httpx
import litserve
import torch

from elang.errors import InputError
from elang.pair_service import (
    Batcher,
    Gate,
    Limits,
    OnSuperFailure,
    PairService,
    Question,
    add_routes,
    add_super_route,
)
from elang.predictor import JointPredictor

_log = logging.getLogger(__name__)
# Of a server elsewhere, which makes batches of its own.
_REMOTE_WORKERS = 4


class ModelAPI(litserve.LitAPI):  # type: ignore[misc]
    """One model of the pair, in a worker of its own.

    Args:
        role: Which one it is.
        options: Of the :class:`elang.JointPredictor`; the Super is loaded only for the Super.
        threads: Of the worker on a CPU.
    """

    def __init__(self, role: str, options: dict[str, Any], threads: int) -> None:
        super().__init__(api_path=f"/workers/{role}")
        self.role, self.options, self.threads = role, options, threads

    def setup(self, device: str) -> None:
        """Load the model, and answer once, so that the first request does not wait for it."""
        torch.set_num_threads(self.threads)
        options = dict(self.options)
        if self.role == "swift":
            options["super_model"] = None
        self.predictor = JointPredictor(**options, device=device)
        fields = tuple("warm up" for _ in self.predictor.task.fields)
        choices = [["a", "b"]] if self.predictor.task.problem == "choice" else None
        try:
            self._answer([fields], choices, keep=True)
        except InputError as error:
            _log.warning("The first pass failed: %s", error)

    def decode_request(self, request: Question) -> Question:
        """A batch as it is."""
        return request

    def predict(self, question: Question) -> dict[str, Any]:
        """Answer a batch, or say what is wrong with it."""
        try:
            rows = self.predictor.rows(question.texts)
            return {"answers": self._answer(rows, question.choices, question.keep) if rows else []}
        except InputError as error:
            return {"answers": [], "error": str(error)}

    def _answer(self, rows: list[tuple[str, ...]], choices: Any, keep: bool) -> list[Any]:
        if self.role == "swift":
            return self.predictor.ask_swift(rows, choices, keep)
        return self.predictor.ask_super(rows, choices)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """An answer as it is."""
        return output


def build_server(
    pair: dict[str, Any],
    predictor: JointPredictor | None,
    remote: str | None,
    limits: Limits,
    on_super_failure: OnSuperFailure,
    batch: int,
    max_bytes: int,
    token: str | None,
    hardware: dict[str, Any],
    threads: int,
) -> Any:
    """Put a pair, or a Super alone, into a server that is yet to be run.

    Args:
        pair: Options of the :class:`elang.JointPredictor`.
        predictor: The Swift, for the front; ``None`` serves the Super alone.
        remote: The Super's address, if it is elsewhere.
        limits: What is taken.
        on_super_failure: As :class:`PairService` takes it.
        batch: Texts in a batch at most.
        max_bytes: Of a request.
        token: That requests must bring.
        hardware: LitServe's ``accelerator``, ``devices`` and ``workers_per_device``.
        threads: Of each worker on a CPU.

    Returns:
        A ``litserve.LitServer``.
    """
    roles = [*([] if predictor is None else ["swift"]), *([] if remote else ["super"])]
    inside_token = secrets.token_urlsafe(32)
    server = litserve.LitServer(
        [ModelAPI(role, pair, threads) for role in roles],
        # Nobody waits any longer for what has waited so long.
        timeout=limits.deadline,
        restart_workers=True,
        middlewares=[(Gate, {"token": token, "max_bytes": max_bytes, "inside": inside_token})],
        **hardware,
    )

    def ready(role: str) -> bool:
        states = {str(k): getattr(v, "value", v) for k, v in dict(server.workers_setup_status).items()}
        return any(key.startswith(f"{role}_") and state == "ready" for key, state in states.items())

    known = _Remembered(ready)
    headers = {"accept-encoding": "identity", "x-inside": inside_token}
    inside = _Client(headers, transport=httpx.ASGITransport(app=server.app), base_url="http://inside")
    workers = len(server.devices) * hardware["workers_per_device"]
    # Of four bytes at most; a server elsewhere takes as much as this one.
    options: dict[str, Any] = {"most": batch, "most_characters": max_bytes // 4, "lost": limits.deadline}
    batchers = {
        role: Batcher(partial(inside.ask, f"/workers/{role}"), workers, **options) for role in ("swift", "super")
    }
    if remote:
        outside = _Client({"authorization": f"Bearer {token}"} if token else {}, base_url=remote)
        batchers["super"] = Batcher(partial(outside.ask, "/super"), _REMOTE_WORKERS, **options)
    else:
        add_super_route(server.app, batchers["super"], limits)
    if predictor is not None:
        super_ready = (lambda: True) if remote else (lambda: known("super"))
        service = PairService(predictor, batchers["swift"], batchers["super"], super_ready, limits, on_super_failure)
        add_routes(server.app, service, lambda: known("swift"))
    return server


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
        found.raise_for_status()
        answer: dict[str, Any] = found.json()
        return answer


class _Remembered:
    """A state that takes a while to find out, for a moment."""

    def __init__(self, ready: Any, seconds: float = 0.25) -> None:
        self.ready, self.seconds = ready, seconds
        self.found: dict[str, tuple[float, bool]] = {}

    def __call__(self, role: str) -> bool:
        now = time.monotonic()
        when, state = self.found.get(role, (-self.seconds, False))
        if now - when >= self.seconds:
            state = bool(self.ready(role))
            self.found[role] = (now, state)
        return state
