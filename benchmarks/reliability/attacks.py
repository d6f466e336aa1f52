"""What a hostile or broken client can do to `elang serve`, beside others' traffic, and how the server ends.

    python benchmarks/reliability/attacks.py

Makes a tiny pair, starts servers of it on the loopback address, and sends them what should not harm them: bodies of
wrong types, odd JSON, half-sent requests, endless heads, long texts. Others ask meanwhile. It takes under three
minutes, bounds what it sends, and ends its servers. It prints a table, writes benchmarks/results/attacks.json, and
exits with 1 where a bar is missed.
"""

import asyncio
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))
from attack_requests import OTHERS, floods, half_sent, odd_bodies, odd_requests
from attack_server import DEADLINE, SLACK, cpu, ended, judge_end, memory, running, some_texts, start, tiny_pair, tree
from common import write_result


def main() -> int:
    figures: dict[str, Any] = {"deadline, s": DEADLINE}
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        pair = tiny_pair(Path(folder))
        with running(pair, folder) as (address, process, log):
            second = start(pair, int(address.rsplit(":", 1)[1]), Path(folder, "second"))
            figures["second server"] = ended(second, 60)
            text = Path(folder, "second").read_text("utf-8")
            if figures["second server"]["exit"] != 2 or f"--port {address.rsplit(':', 1)[1]}" not in text:
                missed.append("a second server on the port did not end with 2, naming it")
            asyncio.run(besiege(address, process, figures, missed))
            children = tree(process.pid)[1:]
            figures["SIGTERM under load"] = asyncio.run(stop_under_load(address, process))
        judge_end("SIGTERM under load", figures, missed, log, children)
        for name, number in (("SIGINT when idle", signal.SIGINT), ("SIGKILL of the server", signal.SIGKILL)):
            with running(pair, folder) as (_, process, log):
                children = tree(process.pid)[1:]
                process.send_signal(number)
                figures[name] = ended(process, 30)
            judge_end(name, figures, missed, log, children)
    for name, value in figures.items():
        print(f"{name}: {value}")
    figures["missed"] = missed
    write_result("attacks", figures, ("torch", "transformers", "fastapi", "uvicorn", "httptools", "pydantic", "httpx"))
    for line in missed:
        print(f"MISSED: {line}", file=sys.stderr)
    return 1 if missed else 0


async def besiege(address: str, process: "subprocess.Popen[bytes]", figures: dict[str, Any], missed: list[str]) -> None:
    """All attacks one after the other while others ask."""
    statuses: Counter[int] = Counter()
    pids = tree(process.pid)
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        for text in some_texts(30):
            statuses[(await client.post("/predict", json={"texts": [text]})).status_code] += 1
        idle = memory(pids)
        peak, took, phase = idle, [], "before"
        going = True

        async def other(number: int) -> None:
            texts = some_texts(40)
            while going:
                begun, name = time.monotonic(), phase
                found = await client.post("/predict", json={"texts": texts[number : number + 4]})
                statuses[found.status_code] += 1
                took.append((name, time.monotonic() - begun, found.status_code))
                await asyncio.sleep(0.05)

        async def watch() -> None:
            nonlocal peak
            while going:
                peak = max(peak, memory(pids))
                await asyncio.sleep(0.05)

        beside = [asyncio.ensure_future(one) for one in (watch(), *(other(i) for i in range(OTHERS)))]
        attacks: dict[str, Any] = {}
        await asyncio.sleep(2)
        for name, attack in (
            ("odd bodies", odd_bodies),
            ("floods", floods),
            ("odd requests", odd_requests),
            ("half-sent", half_sent),
        ):
            phase, before, begun = name, cpu(process.pid), time.monotonic()
            attacks[name] = await attack(address, statuses, missed)
            attacks[name] |= {
                "seconds": round(time.monotonic() - begun, 1),
                "CPU seconds of the front": round(cpu(process.pid) - before, 1),
            }
        going = False
        await asyncio.gather(*beside)
        figures["attacks"] = attacks
        for name in ("before", *attacks):
            seconds = sorted(one for where, one, _ in took if where == name)
            bad = [code for where, _, code in took if where == name and code != 200]
            figures[f"others, {name}"] = {
                "requests": len(seconds),
                "p50, ms": round(1e3 * seconds[len(seconds) // 2], 1),
                "longest, ms": round(1e3 * seconds[-1], 1),
                "refused": len(bad),
                "late": sum(one > DEADLINE + SLACK for one in seconds),
            }
            if bad or seconds[-1] > DEADLINE + SLACK:
                missed.append(f"others, {name}: refused {Counter(bad)}, longest {seconds[-1]:.1f} s")
        figures["memory"] = {"idle, MB": idle // 10**6, "peak, MB": peak // 10**6, "ratio": round(peak / idle, 3)}
        if peak >= 1.5 * idle:
            missed.append(f"resident memory grew to {peak / idle:.2f} of idle")
        await asyncio.sleep(0.5)
        page = (await client.get("/metrics")).text
    counted = Counter(
        {int(code): int(float(n)) for code, n in re.findall(r'elang_requests_total{status="(\d+)"} (\S+)', page)}
    )
    figures["requests"] = {"sent": dict(sorted(statuses.items())), "in /metrics": dict(sorted(counted.items()))}
    # A client that leaves does not see how it is counted.
    wrong = {code for code in statuses.keys() | counted.keys() if code != 499 and statuses[code] != counted[code]}
    if wrong:
        missed.append(f"/metrics is off for {sorted(wrong)}: {figures['requests']}")


async def stop_under_load(address: str, process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """SIGTERM while many ask: what becomes of each request."""
    codes: Counter[Any] = Counter()
    texts = some_texts(64)

    async def one(client: httpx.AsyncClient) -> None:
        while True:
            try:
                found = await client.post("/predict", json={"texts": texts})
            except httpx.ConnectError:
                return
            except httpx.TransportError as error:
                codes[type(error).__name__] += 1
                return
            right = found.status_code == 200 or (found.status_code == 503 and "retry-after" in found.headers)
            codes[found.status_code if right else f"odd {found.status_code}"] += 1

    async with httpx.AsyncClient(base_url=address, timeout=30) as client:
        tasks = [asyncio.ensure_future(one(client)) for _ in range(32)]
        await asyncio.sleep(2)
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        await asyncio.sleep(0.2)
        async with httpx.AsyncClient(base_url=address, timeout=10) as late:
            ready = (await late.get("/ready")).status_code
        await asyncio.gather(*tasks)
    await asyncio.to_thread(ended, process, 30)
    found = {"exit": process.poll(), "seconds": round(time.monotonic() - begun, 2), "/ready meanwhile": ready}
    lost = {str(code): count for code, count in codes.items() if code not in (200, 503)}
    if ready != 503:
        lost["/ready"] = 1
    return {**found, "answered": codes[200], "refused": codes[503], "lost": lost}


if __name__ == "__main__":
    sys.exit(main())
