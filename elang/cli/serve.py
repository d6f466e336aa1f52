"""`elang serve`: a pair behind HTTP."""

import signal
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elang.cli.addresses import is_api, is_elsewhere, key_in, upstream_of
from elang.cli.server_options import ServerOptions
from elang.cli.watch_options import WatchOptions
from elang.errors import InputError, need
from elang.inference.options import PairOptions
from elang.notices import notice
from elang.terminal import tell

if TYPE_CHECKING:
    from elang.backends.openai.settings import Settings
    from elang.inference.predictor import JointPredictor


class _StopError(BaseException):
    """A signal; before the server runs, nothing has been accepted yet."""


def serve(
    pair: PairOptions,
    server: ServerOptions,
    watch: WatchOptions,
    swift_model: str | None = None,
    super_model: str | None = None,
) -> None:
    """Answer texts over HTTP with a pair, until it is stopped.

    ``POST /predict`` takes ``{"texts": [...]}``; ``/docs`` shows the schema, ``/metrics`` has counts for Prometheus,
    ``/ready`` says whether requests can be answered, ``/health`` whether all workers run. Requests that arrive together
    are answered together, by each model on its own. If the environment has ELANG_SERVE_TOKEN, every request must bring
    it as ``Authorization: Bearer TOKEN``; --key_variable names another variable.

    Args:
        pair: How the pair routes and runs.
        server: What the server takes.
        watch: What also goes to the Super, to see whether a promise still holds.
        swift_model: The Swift's folder; without it the Super alone is served, for a pair elsewhere.
        super_model: The Super's folder or hub id, the address of a server of the Super alone (http://HOST:PORT), or of
            a model behind OpenAI's API (openai:MODEL@URL, or a YAML file).
    """
    need("`elang serve`", "serve", "fastapi", "uvicorn", "httptools", "httpx", "aiohttp", "prometheus_client")
    if pair.super_int8:
        need("super_int8", "int8", "torchao")
    if super_model is None:
        raise InputError("--super_model is needed: the Super's folder or, beside a --swift_model, its address.")
    _check_together(server, watch, swift_model)
    # First, because an address that is refused may contain a password.
    defaults = server.chat_defaults if server.api == "openai" else None
    upstream = upstream_of(super_model, server.super_key_variable, defaults)
    is_elsewhere(super_model, swift_model)
    token = key_in(server.key_variable)
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
        more: Any = {"token": token, "upstream": upstream}
        _serve(sockets, swift_model, super_model, pair=pair, server=server, watch=watch, **more)
    except _StopError:
        pass
    finally:
        for one in sockets:
            one.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    print("the server has ended", flush=True)  # noqa: T201


def _check_together(server: ServerOptions, watch: WatchOptions, swift_model: str | None) -> None:
    """Refuse options that do not fit together."""
    if watch.shadow is not None and swift_model is None:
        raise InputError("--shadow watches a pair: give its --swift_model.")
    if server.super_price is not None and server.api != "openai" and watch.shadow is None:
        raise InputError("--super_price is for --api openai, or for the budget of --shadow. Leave it out, or add one.")
    if server.api == "openai" and swift_model is None:
        raise InputError("--api openai serves a pair: give its --swift_model.")
    if server.api == "openai" and is_api(str(swift_model)):
        raise InputError("--api openai needs a Swift that runs here, and this --swift_model is elsewhere.")


def _serve(
    sockets: list[socket.socket],
    swift_model: str | None,
    super_model: str,
    *,
    pair: PairOptions,
    server: ServerOptions,
    watch: WatchOptions,
    token: str | None,
    upstream: "Settings | None",
) -> None:
    """Check both models, and serve them."""
    import torch

    from elang.inference.serving.schema import Limits
    from elang.inference.serving.server import Policy, Processes, build_server

    devices, remote = _devices(server), is_elsewhere(super_model, swift_model)
    tell("loading the models")
    predictor = _load_swift(swift_model, super_model, pair=pair, remote=remote)
    options = {**vars(pair), "swift_model": swift_model, "super_model": super_model}
    if predictor is not None:
        options |= {"threshold": predictor.threshold, "score": predictor.score, "sampling": predictor.sampling}
    chats, prices = None, server.prices(upstream)
    if server.api == "openai":
        assert predictor is not None
        _check_chats(predictor.swift.streams, super_model, server, upstream, watched=watch.shadow is not None)
        chats = server.chat_options(server.model_name or Path(str(swift_model)).resolve().name, upstream)
    n_models = (swift_model is not None) + (not remote)
    waiting = {"pending": server.max_pending, "deferred": server.max_deferred}
    built = build_server(
        options,
        predictor,
        remote=super_model if remote else None,
        policy=Policy(
            Limits(server.seconds, server.max_texts, batch=server.batch_size, bytes=server.max_bytes, **waiting),
            server.on_super_failure,
            watch.made(super_model, remote, prices.get("super")),
        ),
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


def _check_chats(
    writes: bool, super_model: str, server: ServerOptions, upstream: "Settings | None", *, watched: bool
) -> None:
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
        # A shadow's budget may be in money.
        if getattr(server, name) is not None and not (watched and name == "super_price"):
            raise InputError(f"--{name} is for a Swift that writes texts. Leave it out.")


def _load_swift(
    swift_model: str | None, super_model: str, *, pair: PairOptions, remote: bool
) -> "JointPredictor | None":
    """Load the Swift, if there is one, to read labels and texts, and refuse models that do not fit together."""
    from elang.backends.loading.load import check_model
    from elang.backends.loading.source import weights_sha256
    from elang.inference.predictor import JointPredictor
    from elang.inference.routing import warn_if_costly
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
