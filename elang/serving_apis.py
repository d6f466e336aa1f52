"""The two models as LitServe's workers, and the server that asks them."""

import logging
import time
from typing import Any

import httpx
import litserve
import torch

from elang.errors import InputError
from elang.pair_service import Gate, Limits, OnSuperFailure, PairService, Question, add_routes
from elang.predictor import JointPredictor

_log = logging.getLogger(__name__)


class ModelAPI(litserve.LitAPI):  # type: ignore[misc]
    """One model of the pair, in a worker of its own.

    Args:
        role: Which one it is, and the path that it answers.
        options: Of the :class:`elang.JointPredictor`; the Super is loaded only for the Super, and a Super that is
            alone takes the Swift's place in it.
        threads: Of the worker on a CPU.
        batching: LitServe's ``max_batch_size`` and ``batch_timeout``.
    """

    def __init__(self, role: str, options: dict[str, Any], threads: int, batching: dict[str, Any]) -> None:
        super().__init__(api_path=f"/{role}", **batching)
        self.role, self.options, self.threads = role, options, threads

    def setup(self, device: str) -> None:
        """Load the model, and answer once, so that the first request does not wait for it."""
        torch.set_num_threads(self.threads)
        self.alone = self.options["swift_model"] is None
        options = dict(self.options)
        if self.alone:
            options |= {"swift_model": options["super_model"], "super_model": None, "threshold": float("inf")}
            options |= {"score": None, "thresholds": None}
        elif self.role == "swift":
            options["super_model"] = None
        self.predictor = JointPredictor(**options, device=device)
        fields = tuple("warm up" for _ in self.predictor.task.fields)
        choices = [["a", "b"]] if self.predictor.task.problem == "choice" else None
        try:
            self._answer([fields], choices, keep=True)
        except InputError as error:
            _log.warning("The first pass failed: %s", error)

    def decode_request(self, request: Question) -> Question:
        """A request as it is."""
        return request

    def batch(self, inputs: list[Question]) -> list[Question]:
        """Requests as they are: the predictor makes batches of tokens from their texts."""
        return inputs

    def predict(self, inputs: list[Question]) -> list[dict[str, Any]]:
        """Answer some requests together; where one cannot be answered, each alone."""
        found: list[dict[str, Any]] = [{} for _ in inputs]
        for keep in (False, True):
            places = [i for i, one in enumerate(inputs) if one.keep == keep]
            if not places:
                continue
            try:
                answers = iter(self._ask([inputs[i] for i in places], keep))
                for i in places:
                    found[i] = {"answers": [next(answers) for _ in inputs[i].texts]}
            except InputError:
                for i in places:
                    try:
                        found[i] = {"answers": self._ask([inputs[i]], keep)}
                    except InputError as error:
                        found[i] = {"answers": [], "error": str(error)}
        return found

    def _ask(self, questions: list[Question], keep: bool) -> list[Any]:
        texts = [text for one in questions for text in one.texts]
        choices = [part for one in questions for part in one.choices or []] or None
        return self._answer(self.predictor.rows(texts), choices, keep) if texts else []

    def _answer(self, rows: list[tuple[str, ...]], choices: Any, keep: bool) -> list[Any]:
        if self.role == "swift":
            return self.predictor.ask_swift(rows, choices, keep)
        if self.alone:
            return [label for label, _, _ in self.predictor.ask_swift(rows, choices, keep=True)]
        return self.predictor.ask_super(rows, choices)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answers as they are."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """An answer as it is."""
        return output


def build_server(
    pair: dict[str, Any],
    predictor: JointPredictor | None,
    remote: str | None,
    deadline: float,
    limits: dict[str, int],
    on_super_failure: OnSuperFailure,
    batching: dict[str, Any],
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
        deadline: Seconds that a request may take.
        limits: The others of :class:`Limits`.
        on_super_failure: As :class:`PairService` takes it.
        batching: LitServe's ``max_batch_size`` and ``batch_timeout``.
        max_bytes: Of a request.
        token: That requests must bring.
        hardware: LitServe's ``accelerator``, ``devices`` and ``workers_per_device``.
        threads: Of each worker on a CPU.

    Returns:
        A ``litserve.LitServer``.
    """
    roles = [*([] if predictor is None else ["swift"]), *([] if remote else ["super"])]
    apis = [ModelAPI(role, pair, threads, batching) for role in roles]
    server = litserve.LitServer(
        apis,
        # What has waited so long has been answered otherwise.
        timeout=deadline,
        restart_workers=True,
        middlewares=[(Gate, {"token": token, "max_bytes": max_bytes})],
        **hardware,
    )

    def ready(role: str) -> bool:
        states = {str(k): getattr(v, "value", v) for k, v in dict(server.workers_setup_status).items()}
        return any(key.startswith(f"{role}_") and state == "ready" for key, state in states.items())

    known = _Remembered(ready)
    if predictor is not None:
        headers = {"accept-encoding": "identity"} | ({"authorization": f"Bearer {token}"} if token else {})
        inside = _Client(headers, transport=httpx.ASGITransport(app=server.app), base_url="http://inside")
        outside = _Client(headers, base_url=remote) if remote else inside
        service = PairService(
            predictor,
            lambda question, until: inside.ask("/swift", question, until),
            lambda question, until: outside.ask("/super", question, until),
            (lambda: True) if remote else (lambda: known("super")),
            Limits(deadline, **limits),
            on_super_failure,
        )
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
