"""The server that attacks.py attacks: its pair, its processes, and how it ends."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import ROOT

DEADLINE, SLACK = 5.0, 0.5


def tiny_pair(folder: Path) -> list[str]:
    """Options of a server with two tiny random models; the Super is asked for some of the inputs."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import write_model

    from elang import JointPredictor

    for name, layers in (("swift", 1), ("super", 2)):
        write_model(folder / name, layers, ("bad", "good"))
    pair = [str(folder / "swift"), str(folder / "super")]
    scores = sorted(one.score for one in JointPredictor(*pair, threshold="inf", device="cpu")(some_texts(100)))
    return ["--swift_model", pair[0], "--super_model", pair[1], "--threshold", str(scores[70])]


def some_texts(count: int) -> list[str]:
    words = [
        "good",
        "great",
        "bad",
        "poor",
        "the",
        "film",
        "was",
        "a",
        "plot",
        "actor",
        "scene",
        "and",
        "very",
        "with",
        "music",
        "story",
    ]
    return [" ".join(words[(i * 7 + j * (i % 5 + 1)) % len(words)] for j in range(3 + i % 9)) for i in range(count)]


def start(pair: list[str], port: int, log: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "elang", "serve", *pair, "--port", str(port), "--deadline", str(DEADLINE)]
    with log.open("wb") as file:
        return subprocess.Popen([*command, "--device", "cpu"], stdout=file, stderr=subprocess.STDOUT)


@contextmanager
def running(pair: list[str], folder: str) -> Any:
    """A running server: its address, process and log."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    log = Path(folder, f"log{port}")
    process = start(pair, port, log)
    try:
        until = time.monotonic() + 120
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the server did not come up: {log.read_text('utf-8')}")
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=20).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", process, log
    finally:
        process.kill()
        process.wait()


def tree(pid: int) -> list[int]:
    """A process and its children that hold models."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "spawn_main"], capture_output=True, text=True, check=False)
    return [pid, *map(int, found.stdout.split())]


def memory(pids: list[int]) -> int:
    """Resident bytes of processes."""
    pages = 0
    for pid in pids:
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu(pid: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ended(process: "subprocess.Popen[bytes]", seconds: float) -> dict[str, Any]:
    """Wait for a process to end: how it ended, and when."""
    begun = time.monotonic()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return {"exit": None, "seconds": seconds}
    return {"exit": process.returncode, "seconds": round(time.monotonic() - begun, 2)}


def judge_end(name: str, figures: dict[str, Any], missed: list[str], log: Path, children: list[int]) -> None:
    """Check the end of a server against its bars."""
    found = figures[name]
    killed = "KILL" in name
    if not killed and (found["exit"] != 0 or found["seconds"] >= 10):
        missed.append(f"{name}: exit {found['exit']} after {found['seconds']} s")
    if found.get("lost"):
        missed.append(f"{name}: accepted requests lost: {found['lost']}")
    text = log.read_text("utf-8")
    after = text.partition("as soon as /ready says so")[2]
    if "Traceback" in text or (not killed and "the server has ended" not in after):
        missed.append(f"{name}: the log holds {after[-500:]!r}")
    until = time.monotonic() + 5
    while left := [pid for pid in children if alive(pid)]:
        if time.monotonic() > until:
            missed.append(f"{name}: {len(left)} of its processes live on")
            break
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
