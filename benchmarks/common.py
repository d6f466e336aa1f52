"""What every benchmark records with its figures."""

import json
import os
import platform
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def cpu_model() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_commit() -> str:
    """Commit of the code, marked if it was changed since; ELANG_COMMIT names it outside a checkout."""
    if named := os.environ.get("ELANG_COMMIT"):
        return named
    head = ["git", "rev-parse", "--short=12", "HEAD"]
    # Runs write the results themselves, so these say nothing about the code.
    changed = ["git", "status", "--porcelain", "--untracked-files=no", "--", ":/", ":!/benchmarks/results"]
    done, dirty = (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        for command in (head, changed)
    )
    return (done or "unknown") + ("-dirty" if dirty else "")


def gpu() -> str | None:
    """Name of the GPU, if there is one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def wait_for_gpu() -> None:
    """Wait until the GPU has done all its work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def running(
    command: list[str], seconds: float = 180, **options: Any
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A server's address and process, once its ``/health`` answers; ``PORT`` in the command stands for a free port."""
    import httpx

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    process = subprocess.Popen([str(port) if part == "PORT" else part for part in command], **options)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + seconds
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit("the server did not come up")
            try:
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.3)
        yield address, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def about(libraries: tuple[str, ...]) -> dict[str, Any]:
    """Date, hardware, commit and versions."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": {"cpu": cpu_model(), "cores": os.cpu_count(), "gpu": gpu()},
        "commit": git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in libraries}},
    }


def _on_a_line(found: re.Match[str]) -> str:
    opens, inside, closes = found.groups()
    return opens + re.sub(r"\n\s+", " ", inside) + closes


def figures_of(name: str) -> dict[str, Any]:
    """The figures of ``results/{name}.json``, or none; those that are not measured again are kept."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text("utf-8"))["figures"] if path.is_file() else {}  # type: ignore[no-any-return]


def write_result(
    name: str, figures: dict[str, Any], libraries: tuple[str, ...], made: dict[str, Any] | None = None
) -> Path:
    """Replace ``results/{name}.json`` with these figures and what they are about; ``made``: where they come from."""
    result = about(libraries) | ({} if made is None else {"records": made}) | {"figures": figures}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    # A value without nested ones takes one line.
    text = re.sub(r"([{[])\s+([^{}[\]]*?)\s+([}\]])", _on_a_line, json.dumps(result, indent=2))
    path.write_text(text + "\n", "utf-8")
    return path
