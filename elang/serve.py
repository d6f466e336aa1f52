"""`elang serve`: a pair behind HTTP, on LitServe's workers and batches."""

import os
import signal
import socket
from pathlib import Path
from typing import Any, Literal

from elang.errors import InputError, need

TOKEN_VARIABLE = "ELANG_SERVE_TOKEN"


def serve(
    swift_model: str | None = None,
    super_model: str | None = None,
    threshold: str | float = "parity",
    score: str | None = None,
    thresholds: str | None = None,
    host: Literal["127.0.0.1", "0.0.0.0", "::"] = "127.0.0.1",
    port: int = 8000,
    deadline: float = 10.0,
    on_super_failure: Literal["swift", "fail"] = "swift",
    batch: int = 512,
    max_texts: int = 256,
    max_bytes: int = 1_000_000,
    max_pending: int = 4096,
    max_deferred: int = 4096,
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    devices: int | Literal["auto"] = "auto",
    workers: int = 1,
    threads: int | None = None,
    few: int = 0,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    super_int8: bool = False,
    onnx: bool = False,
) -> None:
    """Answer texts over HTTP with a pair, until it is stopped.

    ``POST /predict`` takes ``{"texts": [...]}``; ``/docs`` shows the schema, ``/metrics`` counts for Prometheus,
    ``/ready`` says whether requests can be answered, ``/health`` whether all workers are there. Requests that come
    together are answered together, by each model on its own. If the environment has ELANG_SERVE_TOKEN, every request
    must bring it as ``Authorization: Bearer TOKEN``.

    Args:
        swift_model: The Swift's folder; left out, the Super alone is served, for a pair elsewhere.
        super_model: The Super's folder or hub id, or the address of a server of the Super alone (http://HOST:PORT).
        threshold: Name of a threshold in ``elang.json`` or a number, as for `elang predict`.
        score: Which score routes; by default the Swift's own.
        thresholds: Another threshold file, as `elang validate` writes it.
        host: Address to listen on; the default is reached from this machine only.
        port: Its port, from 1024.
        deadline: Seconds in which a request is answered or refused.
        on_super_failure: What becomes of a deferred text when the Super is slow, full or dead: `swift` answers with the
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
        few: Batches of up to so many texts take the short way, by captured graphs on a GPU.
        dtype: Precision of both models' weights; scores are float32 in any.
        super_int8: Keep the matrices of the Super's layers as int8 (the extra ``int8``).
        onnx: Run both encoders by ONNX Runtime on the CPU (the extra ``onnx``).

    Raises:
        InputError: If an option is wrong, a model cannot be loaded, or the extra `serve` is not installed.
    """
    need("`elang serve`", "serve", "litserve", "httpx", "prometheus_client")
    if super_int8:
        need("super_int8", "int8", "torchao")
    if super_model is None:
        raise InputError("--super_model is needed: the Super's folder or, beside a --swift_model, its address.")
    remote = super_model.startswith(("http://", "https://"))
    if remote and swift_model is None:
        raise InputError(f"'{super_model}' serves the Super already; give the pair's --swift_model.")
    sizes = {"max_texts": max_texts, "max_bytes": max_bytes, "max_pending": max_pending, "max_deferred": max_deferred}
    for name, size in (sizes | {"workers": workers, "batch": batch, "threads": threads}).items():
        if size is not None and size < 1:
            raise InputError(f"--{name} must be at least 1, but it is {size}.")
    if not 1024 <= port <= 65535:
        raise InputError(f"--port must be from 1024 to 65535, but it is {port}.")
    if not deadline > 0:
        raise InputError(f"--deadline must be above 0 seconds, but it is {deadline}.")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port))
    except OSError as error:
        raise InputError(f"--port {port} of {host} cannot be listened on ({error}). Give another.") from error
    import torch

    from elang.manifest import FILENAME, Manifest
    from elang.models.backbones import check_model
    from elang.models.text_model import folder_sha256
    from elang.pair_service import Limits
    from elang.predictor import JointPredictor
    from elang.records import align_labels
    from elang.serving_apis import build_server

    pair: dict[str, Any] = {"swift_model": swift_model, "super_model": super_model, "threshold": threshold}
    pair |= {"score": score, "thresholds": thresholds}
    predictor = None
    if swift_model is not None:
        # What is wrong with it is said now, and its labels and texts are known to the front.
        predictor = JointPredictor(**{**pair, "super_model": None}, device="cpu")
    if not remote:
        check_model(super_model)
        if predictor is not None and (folder := Path(super_model)).is_dir():
            # What its worker would say much later, or not at all.
            if (folder / FILENAME).is_file():
                own = Manifest.read(folder)
                align_labels(own.label_names, predictor.label_names, f"'{super_model}'", f"'{swift_model}'")
            predictor.manifest.warn_of_another_super(
                str(threshold), predictor.score, super_model, lambda: folder_sha256(folder)
            )
    if predictor is not None:
        # Once, by the front: by itself no worker is a pair.
        predictor.warn_if_dear(str(threshold))
        pair |= {"threshold": predictor.threshold, "score": predictor.score}
    # The front answers nothing itself.
    pair |= {"few": few, "dtype": dtype, "super_int8": super_int8, "onnx": onnx}
    models = (swift_model is not None) + (not remote)
    if threads is None:
        threads = max(1, (torch.get_num_threads()) // (models * workers))
    server = build_server(
        pair,
        predictor,
        remote=super_model if remote else None,
        limits=Limits(deadline, max_texts, max_pending, max_deferred),
        on_super_failure=on_super_failure,
        batch=batch,
        max_bytes=max_bytes,
        token=os.environ.get(TOKEN_VARIABLE) or None,
        hardware={"accelerator": accelerator, "devices": devices, "workers_per_device": workers},
        threads=threads,
    )
    parent = os.getpid()

    def stop(number: int, frame: Any) -> None:
        # The front is forked from this process, and inherits this.
        raise KeyboardInterrupt if os.getpid() == parent else SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    what = "the pair at /predict" if swift_model is not None else "the Super at /super"
    print(f"serving {what} of http://{host}:{port} as soon as /health says so; its schema is at /docs", flush=True)  # noqa: T201
    try:
        server.run(host=host, port=port, num_api_servers=1, log_level="warning", generate_client_file=False)
    except RuntimeError as error:
        raise InputError(f"The server did not start: {error}. What its workers met with is above.") from error
