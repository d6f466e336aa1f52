"""`elang serve`: a pair behind HTTP."""

import signal
import socket
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from elang.backends.remote import TOKEN_VARIABLE
from elang.cli.addresses import is_api, is_elsewhere, key_in, upstream_of
from elang.cli.arguments import check_minimum
from elang.errors import InputError, need
from elang.inference.options import PairOptions
from elang.notices import notice
from elang.terminal import tell

if TYPE_CHECKING:
    from elang.backends.openai.settings import Settings
    from elang.inference.predictor import JointPredictor
    from elang.inference.serving.server import ChatOptions


_DEADLINE, _CHAT_DEADLINE = 10.0, 120.0
# As many as OpenAI's own client makes.
_CHAT_TRIES = 3
Role = Literal["swift", "super"]


@dataclass(frozen=True)
class ServerOptions:
    """Where the server listens, and how much it accepts.

    Args:
        host: Address or name to listen on; the default is reached from this machine only, 0.0.0.0 and :: from others.
        port: Its port, from 1024.
        deadline: Seconds in which a request is answered or refused, or a stream has begun; by default 10, and 120 with
            `--api openai`.
        on_super_failure: What happens to a deferred text when the Super is slow, full or dead: `swift` answers with the
            Swift's own answer, flagged as `fallback`; `fail` refuses the request (503 or 504).
        batch_size: Most texts that are answered together, of all requests.
        max_texts: Most texts in a request.
        max_bytes: Most bytes of a request.
        max_pending: Most texts that wait for the Swift; more are refused with 503.
        max_deferred: Most texts that wait for the Super; with more, the Super counts as failed.
        device: cpu, cuda, mps or one of several, as cuda:1; by default GPUs if there are any.
        devices: How many of its kind; by default all.
        workers: Processes on each device, for each of the two models.
        threads: CPU threads of each of them; by default the cores are shared out.
        api: `openai` also has the paths of OpenAI's API: /v1/chat/completions, /v1/completions and /v1/models.
        model_name: The pair's name there; by default that of the Swift's folder.
        key_variable: The environment variable with the token, or API key, that requests must bring.
        super_key_variable: The environment variable with the key of a Super at openai:MODEL@URL.
        super_price: What a million tokens cost that the Super reads, and that it writes, in any currency.
        swift_price: The same of the Swift.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    deadline: float | None = None
    on_super_failure: Literal["swift", "fail"] = "swift"
    batch_size: int = 512
    max_texts: int = 256
    max_bytes: int = 1_000_000
    max_pending: int = 4096
    max_deferred: int = 4096
    device: str | None = None
    devices: int | Literal["auto"] = "auto"
    workers: int = 1
    threads: int | None = None
    api: Literal["elang", "openai"] = "elang"
    model_name: str | None = None
    key_variable: str = TOKEN_VARIABLE
    super_key_variable: str | None = None
    super_price: tuple[float, float] | None = None
    swift_price: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        names = ("max_texts", "max_bytes", "max_pending", "max_deferred", "workers", "batch_size", "threads")
        check_minimum(1, **{name: getattr(self, name) for name in names})
        if not 1024 <= self.port <= 65535:
            raise InputError(f"--port must be from 1024 to 65535, but it is {self.port}.")
        if not 0 < self.seconds < float("inf"):
            raise InputError(f"--deadline must be above 0 seconds and finite, but it is {self.deadline}.")
        for name in ("model_name", "super_price", "swift_price"):
            if getattr(self, name) is not None and self.api != "openai":
                raise InputError(f"--{name} is for --api openai. Leave it out, or add that.")
        for name in ("super_price", "swift_price"):
            if (price := getattr(self, name)) is not None and not all(0 <= one < float("inf") for one in price):
                raise InputError(f"--{name} must be two numbers from 0, but it is {list(price)}.")
        if self.model_name is not None and not (self.model_name.strip() and self.model_name.isprintable()):
            raise InputError("--model_name must not be empty, nor have characters that cannot be printed.")

    @property
    def seconds(self) -> float:
        """The deadline."""
        return {"elang": _DEADLINE, "openai": _CHAT_DEADLINE}[self.api] if self.deadline is None else self.deadline

    @property
    def chat_defaults(self) -> dict[str, Any]:
        """Settings of a Super of chats that its file does not have: unlike a run, clients wait, and ask again."""
        return {"concurrent": self.max_deferred, "tries": _CHAT_TRIES, "timeout": self.seconds}

    def chat_options(self, name: str, upstream: "Settings | None") -> "ChatOptions":
        """The pair's name, how its Super is asked, and what tokens cost as far as that is known."""
        from elang.backends.openai.settings import Prices
        from elang.inference.serving.server import ChatOptions

        prices: dict[Role, Prices] = {}
        of_file = None if upstream is None else upstream.prices
        if of_file is not None:
            prices["super"] = of_file
        given: dict[Role, tuple[float, float] | None] = {"swift": self.swift_price, "super": self.super_price}
        for role, price in given.items():
            if price is not None:
                prices[role] = Prices(*price, date="", currency=of_file.currency if of_file else "")
        if upstream is not None:
            upstream = replace(upstream, prices=prices.get("super"))
        return ChatOptions(name, upstream, prices)


class _StopError(BaseException):
    """A signal; before the server runs, nothing has been accepted yet."""


def serve(
    pair: PairOptions, server: ServerOptions, swift_model: str | None = None, super_model: str | None = None
) -> None:
    """Answer texts over HTTP with a pair, until it is stopped.

    ``POST /predict`` takes ``{"texts": [...]}``; ``/docs`` shows the schema, ``/metrics`` has counts for Prometheus,
    ``/ready`` says whether requests can be answered, ``/health`` whether all workers run. Requests that arrive together
    are answered together, by each model on its own. If the environment has ELANG_SERVE_TOKEN, every request must bring
    it as ``Authorization: Bearer TOKEN``; --key_variable names another variable.

    Args:
        pair: How the pair routes and runs.
        server: What the server takes.
        swift_model: The Swift's folder; without it the Super alone is served, for a pair elsewhere.
        super_model: The Super's folder or hub id, the address of a server of the Super alone (http://HOST:PORT), or of
            a model behind OpenAI's API (openai:MODEL@URL, or a YAML file).
    """
    need("`elang serve`", "serve", "fastapi", "uvicorn", "httptools", "httpx", "aiohttp", "prometheus_client")
    if pair.super_int8:
        need("super_int8", "int8", "torchao")
    if super_model is None:
        raise InputError("--super_model is needed: the Super's folder or, beside a --swift_model, its address.")
    if server.api == "openai" and swift_model is None:
        raise InputError("--api openai serves a pair: give its --swift_model.")
    if server.api == "openai" and is_api(str(swift_model)):
        raise InputError("--api openai needs a Swift that runs here, and this --swift_model is elsewhere.")
    # First, because an address that is refused may contain a password.
    defaults = server.chat_defaults if server.api == "openai" else None
    upstream = upstream_of(super_model, server.super_key_variable, defaults)
    remote, token = is_elsewhere(super_model, swift_model), key_in(server.key_variable)
    from elang.inference.serving.workers import listen

    def stop(number: int, frame: Any) -> None:
        raise _StopError

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    sockets: list[socket.socket] = []
    try:
        # Before any model is loaded, so that a second server on the port ends at once.
        sockets += listen(server.host, server.port)
        addresses = [ip_address(one.getsockname()[0].partition("%")[0]) for one in sockets]
        if token is None and not all(address.is_loopback for address in addresses):
            notice(
                "open-server",
                f"--host {server.host} is reached from other machines, and no token is needed: whoever reaches the "
                f"port is answered. Set {server.key_variable}, or listen on 127.0.0.1.",
            )
        more: Any = {"remote": remote, "token": token, "upstream": upstream}
        _serve(sockets, swift_model, super_model, pair=pair, server=server, **more)
    except _StopError:
        pass
    finally:
        for one in sockets:
            one.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    print("the server has ended", flush=True)  # noqa: T201


def _serve(
    sockets: list[socket.socket],
    swift_model: str | None,
    super_model: str,
    *,
    pair: PairOptions,
    server: ServerOptions,
    remote: bool,
    token: str | None,
    upstream: "Settings | None",
) -> None:
    """Check both models, and serve them."""
    import torch

    from elang.inference.serving.schema import Limits
    from elang.inference.serving.server import Processes, build_server

    devices = _devices(server)
    tell("loading the models")
    predictor = _load_swift(swift_model, super_model, pair=pair, remote=remote)
    options = {**vars(pair), "swift_model": swift_model, "super_model": super_model}
    if predictor is not None:
        options |= {"threshold": predictor.threshold, "score": predictor.score, "sampling": predictor.sampling}
    chats = None
    if server.api == "openai":
        assert predictor is not None
        _check_chats(predictor.swift.streams, super_model, server, upstream)
        chats = server.chat_options(server.model_name or Path(str(swift_model)).resolve().name, upstream)
    n_models = (swift_model is not None) + (not remote)
    waiting = {"pending": server.max_pending, "deferred": server.max_deferred}
    built = build_server(
        options,
        predictor,
        remote=super_model if remote else None,
        limits=Limits(server.seconds, server.max_texts, batch=server.batch_size, bytes=server.max_bytes, **waiting),
        on_super_failure=server.on_super_failure,
        token=token,
        processes=Processes(devices, server.threads or max(1, torch.get_num_threads() // (n_models * server.workers))),
        chats=chats,
    )
    host, port = sockets[0].getsockname()[:2]
    path = "the pair at /predict" if swift_model is not None else "the Super at /super"
    if chats is not None:
        path = f"the pair as the model '{chats.model}' at /v1"
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    print(f"serving {path} of {address} as soon as /ready says so; its schema is at /docs", flush=True)  # noqa: T201
    built.run(sockets)


def _check_chats(writes: bool, super_model: str, server: ServerOptions, upstream: "Settings | None") -> None:
    """Refuse what a pair that writes texts, or one that does not, cannot have behind OpenAI's API."""
    if writes:
        if super_model.startswith("http"):
            raise InputError(f"'{super_model}' answers no chats. Give openai:MODEL@URL, or the Super's folder.")
        if upstream is not None and upstream.api != "chat":
            raise InputError(f"'{super_model}' sends no chats (api: {upstream.api}). Set api: chat.")
        return
    if server.super_key_variable is not None:
        raise InputError("--super_key_variable is for a Swift that writes texts: name it in a YAML file (key).")
    for name in ("super_price", "swift_price"):
        if getattr(server, name) is not None:
            raise InputError(f"--{name} is for a Swift that writes texts. Leave it out.")


def _load_swift(
    swift_model: str | None, super_model: str, *, pair: PairOptions, remote: bool
) -> "JointPredictor | None":
    """Load the Swift, if there is one, to read labels and texts, and refuse models that do not fit together."""
    from elang.backends.loading.load import check_model
    from elang.backends.loading.source import weights_sha256
    from elang.inference.loading import warn_if_costly
    from elang.inference.predictor import JointPredictor
    from elang.records.manifest import FILENAME, Manifest, known_name
    from elang.tasks.text_task import align_labels

    if swift_model is None:
        check_model(super_model)
        return None
    routing = PairOptions(pair.threshold, pair.score, pair.thresholds, device="cpu", sampling=pair.sampling)
    predictor = JointPredictor(swift_model, None, **vars(routing))
    threshold = known_name(predictor.manifest.thresholds.get(predictor.score, {}), str(pair.threshold))
    if not remote:
        check_model(super_model)
        if (folder := Path(super_model)).is_dir():
            # The Super's worker would report these much later, or not at all.
            if (folder / FILENAME).is_file():
                labels = Manifest.read(folder).label_names
                align_labels(labels, predictor.label_names, f"'{super_model}'", whose=f"'{swift_model}'")
            predictor.manifest.warn_of_another_super(
                threshold, predictor.score, super_model, digest=lambda: weights_sha256(folder)
            )
    # Here, once: a worker has only one of the two models.
    warn_if_costly(predictor.manifest, predictor.score, threshold)
    return predictor


def _devices(server: ServerOptions) -> list[str]:
    """The device of each process of a model."""
    import torch

    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    device = server.device
    if device in (None, "auto"):
        device = next(kind for kind, count in counts.items() if count)
    kind, _, number = str(device).partition(":")
    if kind not in counts or (number and not number.isdecimal()):
        raise InputError(f"--device must be cpu, cuda, mps or one of several, as cuda:1, but it is '{device}'.")
    every = ["cpu"] if kind == "cpu" else [f"{kind}:{place}" for place in range(counts[kind])]
    known = [one for one in every if not number or one in (kind, device)]
    count = len(known) if server.devices == "auto" else server.devices
    if not 1 <= count <= len(known):
        hint = " Give --workers for more processes." if kind == "cpu" else ""
        raise InputError(
            f"--devices {server.devices} of --device {device} cannot be had: there are {len(known)}.{hint}"
        )
    return known[:count] * server.workers
