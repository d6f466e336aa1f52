"""`elang serve`: a pair behind HTTP."""

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from elang.backends.remote import TOKEN_VARIABLE, check_address, token_of_environment
from elang.errors import InputError, need
from elang.inference.options import PairOptions
from elang.notices import notice

if TYPE_CHECKING:
    from elang.inference.predictor import JointPredictor


@dataclass(frozen=True)
class ServerOptions:
    """What the server listens on, and what it takes.

    Args:
        host: Address to listen on, or a name for it; the default is reached from this machine only, 0.0.0.0 and :: from
            others, too.
        port: Its port, from 1024.
        deadline: Seconds in which a request is answered or refused.
        on_super_failure: What happens to a deferred text when the Super is slow, full or dead: `swift` answers with the
            Swift's own answer, flagged as `fallback`; `fail` refuses the request (503 or 504).
        batch: Texts of requests that are answered together at most.
        max_texts: Texts in a request at most.
        max_bytes: Bytes of a request at most.
        max_pending: Texts that wait for the Swift at most; more are refused with 503.
        max_deferred: Texts that wait for the Super at most; with more it counts as failed.
        accelerator: What the models run on.
        devices: How many of these.
        workers: Processes on each device, for each of the two models.
        threads: CPU threads of each of them; by default the cores are shared out.

    Raises:
        InputError: If a value is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    deadline: float = 10.0
    on_super_failure: Literal["swift", "fail"] = "swift"
    batch: int = 512
    max_texts: int = 256
    max_bytes: int = 1_000_000
    max_pending: int = 4096
    max_deferred: int = 4096
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int | Literal["auto"] = "auto"
    workers: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_texts", "max_bytes", "max_pending", "max_deferred", "workers", "batch", "threads"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise InputError(f"--{name} must be at least 1, but it is {size}.")
        if not 1024 <= self.port <= 65535:
            raise InputError(f"--port must be from 1024 to 65535, but it is {self.port}.")
        if not 0 < self.deadline < float("inf"):
            raise InputError(f"--deadline must be above 0 seconds and finite, but it is {self.deadline}.")


def serve(
    pair: PairOptions, server: ServerOptions, swift_model: str | None = None, super_model: str | None = None
) -> None:
    """Answer texts over HTTP with a pair, until it is stopped.

    ``POST /predict`` takes ``{"texts": [...]}``; ``/docs`` shows the schema, ``/metrics`` counts for Prometheus,
    ``/ready`` says whether requests can be answered, ``/health`` whether all workers are there. Requests that come
    together are answered together, by each model on its own. If the environment has ELANG_SERVE_TOKEN, every request
    must bring it as ``Authorization: Bearer TOKEN``.

    Args:
        pair: How the pair routes and runs.
        server: What the server takes.
        swift_model: The Swift's folder; left out, the Super alone is served, for a pair elsewhere.
        super_model: The Super's folder or hub id, or the address of a server of the Super alone (http://HOST:PORT).

    Raises:
        InputError: If an option is wrong, a model cannot be loaded, or the extra `serve` is not installed.
    """
    need("`elang serve`", "serve", "fastapi", "uvicorn", "httptools", "httpx", "prometheus_client")
    if pair.super_int8:
        need("super_int8", "int8", "torchao")
    if super_model is None:
        raise InputError("--super_model is needed: the Super's folder or, beside a --swift_model, its address.")
    remote = super_model.startswith(("http://", "https://"))
    if remote and swift_model is None:
        raise InputError(f"'{super_model}' serves the Super already; give the pair's --swift_model.")
    if remote:
        check_address(super_model, "--super_model")
    token = token_of_environment()
    from elang.inference.serving.workers import listen

    with _stopped_quietly():
        # Before any model is loaded, so that a second server on the port ends at once.
        sockets = listen(server.host, server.port)
        try:
            _warn_if_open(sockets, server.host, token)
            _serve(sockets, (swift_model, super_model), pair, server=server, remote=remote, token=token)
        finally:
            for one in sockets:
                one.close()
    print("the server has ended", flush=True)  # noqa: T201


def _serve(
    sockets: list[socket.socket],
    models: tuple[str | None, str],
    pair: PairOptions,
    *,
    server: ServerOptions,
    remote: bool,
    token: str | None,
) -> None:
    """Check both models, and serve them."""
    import torch

    from elang.inference.serving.schema import Limits
    from elang.inference.serving.server import build_server

    swift_model, super_model = models
    devices = _devices(server)
    predictor = _front(swift_model, super_model, pair, remote)
    options = {**vars(pair), "swift_model": swift_model, "super_model": super_model}
    if predictor is not None:
        options |= {"threshold": predictor.threshold, "score": predictor.score}
    number = (swift_model is not None) + (not remote)
    built = build_server(
        options,
        predictor,
        remote=super_model if remote else None,
        limits=Limits(
            server.deadline,
            server.max_texts,
            pending=server.max_pending,
            deferred=server.max_deferred,
            batch=server.batch,
            bytes=server.max_bytes,
        ),
        on_super_failure=server.on_super_failure,
        token=token,
        devices=devices,
        threads=server.threads or max(1, torch.get_num_threads() // (number * server.workers)),
    )
    host, port = sockets[0].getsockname()[:2]
    what = "the pair at /predict" if swift_model is not None else "the Super at /super"
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"serving {what} of {where} as soon as /health says so; its schema is at /docs", flush=True)  # noqa: T201
    built.run(sockets)


def _front(swift_model: str | None, super_model: str, pair: PairOptions, remote: bool) -> "JointPredictor | None":
    """The Swift by itself, which knows labels and texts, if there is one; bad models are refused now."""
    from elang.backends.loading.load import check_model
    from elang.files import folder_sha256
    from elang.inference.loading import warn_if_costly
    from elang.inference.predictor import JointPredictor
    from elang.records.manifest import FILENAME, Manifest
    from elang.tasks.text_task import align_labels

    predictor = None
    if swift_model is not None:
        plain = PairOptions(pair.threshold, pair.score, pair.thresholds, device="cpu")
        predictor = JointPredictor(swift_model, None, **vars(plain))
    if not remote:
        check_model(super_model)
        if predictor is not None and (folder := Path(super_model)).is_dir():
            # What its worker would say much later, or not at all.
            if (folder / FILENAME).is_file():
                own = Manifest.read(folder)
                align_labels(own.label_names, predictor.label_names, f"'{super_model}'", f"'{swift_model}'")
            predictor.manifest.warn_of_another_super(
                str(pair.threshold), predictor.score, super_model, lambda: folder_sha256(folder)
            )
    if predictor is not None:
        # Once, by the front: by itself no worker is a pair.
        warn_if_costly(predictor.manifest, predictor.score, str(pair.threshold))
    return predictor


def _warn_if_open(sockets: list[socket.socket], host: str, token: str | None) -> None:
    """Say it if the server can be reached from other machines by everyone."""
    addresses = [ip_address(one.getsockname()[0].partition("%")[0]) for one in sockets]
    if token is None and not all(address.is_loopback for address in addresses):
        notice(
            "open-server",
            f"--host {host} is reached from other machines, and no token is needed: whoever reaches the port is "
            f"answered. Set {TOKEN_VARIABLE}, or listen on 127.0.0.1.",
        )


def _devices(server: ServerOptions) -> list[str]:
    """The device of each process of a model.

    Raises:
        InputError: If there are none of that kind, or not so many.
    """
    import torch

    accelerator: str = server.accelerator
    devices, workers = server.devices, server.workers
    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if accelerator == "auto":
        accelerator = next(kind for kind, count in there.items() if count)
    known = there[accelerator]
    count = known if devices == "auto" else devices
    if not 1 <= count <= known:
        more = " Give --workers for more processes." if accelerator == "cpu" else ""
        raise InputError(f"--devices {devices} of --accelerator {accelerator} cannot be had: there are {known}.{more}")
    if accelerator == "cpu":
        return ["cpu"] * workers
    return [f"{accelerator}:{number}" for number in range(count)] * workers


class _StopError(BaseException):
    """A signal before there is a server that could end by itself."""


@contextmanager
def _stopped_quietly() -> Iterator[None]:
    """Take a signal for a wish to end; nothing has been accepted yet."""

    def stop(number: int, frame: Any) -> None:
        raise _StopError

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except _StopError:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
