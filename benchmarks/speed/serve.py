"""A pair behind HTTP: 64 clients for a minute compared with throughput mode, and the Super killed while they ask.

    python benchmarks/speed/serve.py [--demo runs/demo] [--clients 64] [--seconds 60] [--texts 32]

Takes the pair that `elang demo` made and its evaluation set, and starts `elang serve` on this machine. Prints a table
and writes benchmarks/results/serve.json; exits with 1 where an answer is lost, mixed up or late.
"""

import argparse
import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pandas as pd

from elang import JointPredictor

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import running, write_result

SHARE = "defer 30%"
# With this many clients a shorter queue would turn some away.
DEADLINE = 15.0
# A clock, a socket and an event loop between the server's deadline and the client's.
SLACK = 0.5
REPEATS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--texts", type=int, default=32, help="in a request")
    args = parser.parse_args()
    texts = pd.read_csv(args.demo / "validation.csv")["text"].tolist()
    pair = [str(args.demo / name) for name in ("swift", "super")]
    predictor = JointPredictor(*pair, threshold=SHARE)
    expected = {text: (one.label, one.answered_by) for text, one in zip(texts, predictor(texts), strict=True)}
    scores = {text: one.score for text, one in zip(texts, predictor(texts), strict=True)}
    deferred = statistics.fmean(by == "super" for _, by in expected.values())
    rates = [stream_rate(predictor, texts)]
    figures: dict[str, Any] = {"clients": args.clients, "deadline, s": DEADLINE, "deferred": deferred}
    serve = [sys.executable, "-m", "elang", "serve", "--port", "PORT"]
    serve += ["--swift_model", pair[0], "--super_model", pair[1], "--threshold", SHARE, "--deadline", str(DEADLINE)]
    for size in (args.texts, 1):
        with running(serve) as (address, _):
            seconds = args.seconds if size == args.texts else args.seconds / 3
            found = asyncio.run(load(address, texts, args.clients, seconds, size))
        figures[f"{size} texts a request"] = judge(found, expected, scores)
        rates.append(stream_rate(predictor, texts))
    for size in (args.texts, 1):
        part = figures[f"{size} texts a request"]
        part["of throughput mode"] = part["texts a second"] / statistics.median(rates)
    figures["throughput mode, texts a second"] = rates
    with running(serve) as (address, process):
        seconds = 40.0
        killed: list[float] = []
        found = asyncio.run(
            load(address, texts, args.clients, seconds, args.texts, lambda: kill_super(process), killed)
        )
        figures["Super killed"] = judge(found, expected, scores)
        lost = [when for when, _, _, reply in found if any(a["fallback"] for a in reply)]
        back = [when for when, _, _, reply in found if when > max(lost, default=0) and any(by(a) for a in reply)]
        figures["Super killed"] |= {
            "requests that the Swift answered for it": len(lost),
            "seconds until it answered again": min(back) - killed[0] if back and killed else None,
        }
    missed = []
    for name, part in figures.items():
        if isinstance(part, dict):
            print(name, {key: round(value, 4) if isinstance(value, float) else value for key, value in part.items()})
            missed += [f"{name}: {part[key]} {key}" for key in ("failed", "mixed up", "late") if part[key]]
    if figures["Super killed"]["seconds until it answered again"] is None:
        missed.append("the Super did not come back")
    print("throughput mode, texts a second:", [round(rate) for rate in rates])
    figures["missed"] = missed
    write_result("serve", figures, ("torch", "transformers", "fastapi", "uvicorn", "httpx"))
    for line in missed:
        print(f"MISSED: {line}", file=sys.stderr)
    return 1 if missed else 0


def by(answer: dict[str, Any]) -> bool:
    return bool(answer["answered_by"] == "super")


def stream_rate(predictor: JointPredictor, texts: list[str]) -> float:
    """Texts per second of throughput mode on all cores, the median of some passes."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        list(predictor.map(texts * 4))
        times.append(time.perf_counter() - start)
    return 4 * len(texts) / statistics.median(times[1:])


def kill_super(process: "subprocess.Popen[bytes]") -> None:
    """Kill the worker that was started last, the Super's."""
    found = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
    os.kill(max(map(int, found.stdout.split())), signal.SIGKILL)


async def load(
    address: str,
    texts: list[str],
    clients: int,
    seconds: float,
    size: int,
    strike: Any = None,
    struck: list[float] | None = None,
) -> list[tuple[float, float, list[str], list[dict[str, Any]]]]:
    """What so many clients are answered that ask one request after the other: when, how long, texts, answers."""
    found: list[tuple[float, float, list[str], list[dict[str, Any]]]] = []
    start = time.monotonic()
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:

        async def one(number: int) -> None:
            rng = random.Random(number)
            while (before := time.monotonic()) - start < seconds:
                asked = rng.sample(texts, size)
                response = await client.post("/predict", json={"texts": asked})
                reply = response.json()["answers"] if response.status_code == 200 else []
                found.append((before - start, time.monotonic() - before, asked, reply))

        async def other() -> None:
            if strike is not None and struck is not None:
                await asyncio.sleep(seconds / 4)
                struck.append(time.monotonic() - start)
                strike()

        await asyncio.gather(*(one(number) for number in range(clients)), other())
    return found


def judge(found: Any, expected: Any, scores: Any) -> dict[str, Any]:
    """Count right answers, and how long they took."""
    took = sorted(one[1] for one in found)
    seconds = max(one[0] + one[1] for one in found)
    failed = mixed = 0
    for _, _, asked, reply in found:
        failed += len(reply) != len(asked)
        for text, answer in zip(asked, reply, strict=False):
            label, who = expected[text]
            right = abs(answer["score"] - scores[text]) < 1e-3
            if answer["fallback"] is None:
                right &= (answer["label"], answer["answered_by"]) == (label, who)
            mixed += not right
    return {
        "requests": len(found),
        "texts a second": sum(len(one[3]) for one in found) / seconds,
        "p50, ms": 1e3 * took[len(took) // 2],
        "p99, ms": 1e3 * took[int(0.99 * len(took))],
        "longest, ms": 1e3 * took[-1],
        "failed": failed,
        "mixed up": mixed,
        "late": sum(one > DEADLINE + SLACK for one in took),
        "fallbacks": sum(bool(a["fallback"]) for one in found for a in one[3]),
    }


if __name__ == "__main__":
    sys.exit(main())
