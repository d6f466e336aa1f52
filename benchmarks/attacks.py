"""What a hostile or broken client can do to `elang serve`, beside others' traffic, and how the server ends.

    python benchmarks/attacks.py

Makes a tiny pair, starts servers of it on the loopback address, and sends them what should not harm them: bodies of
wrong types, odd JSON, half-sent requests, endless heads, long texts. Others ask meanwhile. It takes under three
minutes, bounds what it sends, and ends its servers. It prints a table, writes benchmarks/results/attacks.json, and
exits with 1 where a bar is missed.
"""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from common import ROOT, write_result

DEADLINE, SLACK = 5.0, 0.5
OTHERS, ATTACKERS, SECONDS = 6, 8, 5.0
# More than the connections that a server keeps.
HALF_SENT = 1300
JSON = {"content-type": "application/json"}
MEGABYTE = 980_000


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


def tiny_pair(folder: Path) -> list[str]:
    """Options of a server of two tiny models with random weights, of which the Super is asked for a part."""
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
        return subprocess.Popen([*command, "--accelerator", "cpu"], stdout=file, stderr=subprocess.STDOUT)


@contextmanager
def running(pair: list[str], folder: str) -> Any:
    """A server with all of its processes: its address, process and log."""
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
    """How a process ends, and when."""
    begun = time.monotonic()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return {"exit": None, "seconds": seconds}
    return {"exit": process.returncode, "seconds": round(time.monotonic() - begun, 2)}


def judge_end(name: str, figures: dict[str, Any], missed: list[str], log: Path, children: list[int]) -> None:
    """Hold the end of a server to its bars."""
    found = figures[name]
    killed = "KILL" in name
    if not killed and (found["exit"] != 0 or found["seconds"] >= 10):
        missed.append(f"{name}: exit {found['exit']} after {found['seconds']} s")
    if found.get("lost"):
        missed.append(f"{name}: accepted requests lost: {found['lost']}")
    text = log.read_text("utf-8")
    after = text.partition("as soon as /health says so")[2]
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


def bodies() -> dict[str, tuple[bytes, set[int]]]:
    """Odd bodies by name, and what may be answered."""
    many = MEGABYTE // 5
    wrong = {422}
    return {
        "wrong types": (b'{"texts":[' + b",".join([b"null"] * many) + b"]}", wrong),
        "wrong types inside": (b'{"texts":[[' + b",".join([b"1234"] * many) + b"]]}", wrong),
        "wrong candidates": (b'{"texts":["a"],"choices":[[' + b",".join([b"true"] * many) + b"]]}", wrong),
        "empty lists": (b'{"texts":[[' + b",".join([b"[]"] * (MEGABYTE // 3)) + b"]]}", wrong),
        "empty objects": (b'{"texts":[[' + b",".join([b"{}"] * (MEGABYTE // 3)) + b"]]}", wrong),
        "too many texts": (json.dumps({"texts": ["a"] * (MEGABYTE // 5)}).encode(), wrong),
        "deeply nested": (b'{"texts":' + b"[" * MEGABYTE, wrong),
        "many keys": (json.dumps({f"key {i}": 1 for i in range(MEGABYTE // 16)}).encode(), wrong),
        "a key twice": (b'{"texts":["a"],"texts":["b"]}', wrong),
        "a million digits": (b'{"texts":["a"],"deadline":' + b"9" * MEGABYTE + b"}", wrong),
        "a huge exponent": (b'{"texts":["a"],"deadline":1e999999}', wrong),
        "NaN": (b'{"texts":[NaN]}', wrong),
        "Infinity": (b'{"texts":["a"],"deadline":Infinity}', wrong),
        "-Infinity": (b'{"texts":["a"],"choices":-Infinity}', wrong),
        "lone surrogate": (b'{"texts":["\\ud800"]}', wrong),
        "lone surrogate as a key": (b'{"\\udfff":1}', wrong),
        "no UTF-8": (b'{"texts":["\xff\xfe"]}', wrong),
        "UTF-16": ('{"texts":["a"]}'.encode("utf-16"), wrong),
        "cut short": (b'{"texts":["a"', wrong),
        "nothing": (b"", wrong),
        "a long text": (json.dumps({"texts": ["good " * (MEGABYTE // 5)]}).encode(), {200, 503, 504}),
        "a long word": (json.dumps({"texts": ["x" * MEGABYTE]}).encode(), {200, 503, 504}),
        "too large": (b" " * 1_000_001, {413}),
    }


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


async def odd_bodies(address: str, statuses: "Counter[int]", missed: list[str]) -> dict[str, Any]:
    """Each odd body once."""
    longest = 0
    async with httpx.AsyncClient(base_url=address, timeout=30) as client:
        for name, (body, allowed) in bodies().items():
            found = await client.post("/predict", content=body, headers=JSON)
            statuses[found.status_code] += 1
            longest = max(longest, len(found.content))
            if found.status_code not in allowed or len(found.content) > 2000:
                missed.append(f"{name}: {found.status_code}, an answer of {len(found.content)} bytes")
        for path, expected in (("/workers/swift", 404), ("/nowhere", 404), ("/info", 404), ("/shutdown", 404)):
            found = await client.post(path, json={"texts": ["a"]})
            statuses[found.status_code] += 1
            if found.status_code != expected:
                missed.append(f"{path}: {found.status_code}")
        if any("workers" in path for path in (await client.get("/openapi.json")).json()["paths"]):
            missed.append("the workers' paths are listed")
    return {"bodies": len(bodies()), "longest answer, bytes": longest}


async def floods(address: str, statuses: "Counter[int]", missed: list[str]) -> dict[str, Any]:
    """Many clients send one large body after the other."""
    found: dict[str, Any] = {}
    for name in ("wrong types", "empty objects", "deeply nested", "a long text"):
        body, allowed = bodies()[name]
        codes: Counter[int] = Counter()
        until = time.monotonic() + SECONDS
        async with httpx.AsyncClient(base_url=address, timeout=30) as client:

            async def one(
                client: httpx.AsyncClient = client, body: bytes = body, until: float = until, codes: Any = codes
            ) -> None:
                while time.monotonic() < until:
                    codes[(await client.post("/predict", content=body, headers=JSON)).status_code] += 1

            await asyncio.gather(*(one() for _ in range(ATTACKERS)))
        statuses.update(codes)
        found[name] = dict(codes)
        if codes.keys() - allowed - {503}:
            missed.append(f"a flood of {name}: {codes}")
    return found


async def said(address: str, *parts: bytes, patience: float = 15.0) -> int:
    """The status that raw bytes are answered with; 0 if the connection is closed without, -1 if it is kept."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rsplit(":", 1)[1]))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        line = await asyncio.wait_for(reader.readline(), patience)
        return int(line.split()[1]) if line else 0
    except asyncio.TimeoutError:
        return -1
    except ConnectionError:
        return 0
    finally:
        writer.close()


async def odd_requests(address: str, statuses: "Counter[int]", missed: list[str]) -> dict[str, Any]:
    """Requests whose head or body is odd."""
    post, end = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n", b"\r\n"
    body, choices = b'{"texts":["good"]}', b'{"texts":["good"],"choices":[["a","b"]]}'
    length = b"Content-Length: %d\r\n"
    chunked = b"Transfer-Encoding: chunked\r\n"
    cases: dict[str, tuple[list[bytes], set[int]]] = {
        "no HTTP": ([b"\x16\x03\x01\x02\x00\x01\r\n\r\n"], {400}),
        "gzip": ([post, b"Content-Encoding: gzip\r\n", length % len(body), end, body], {415}),
        "no JSON type": ([b"POST /predict HTTP/1.1\r\nHost: a\r\n", length % len(body), end, body], {415}),
        "two lengths": ([post, length % 1, length % len(body), end, body], {400}),
        "length and chunks": ([post, length % 5, chunked, end, b"0\r\n\r\n"], {400}),
        "a negative length": ([post, b"Content-Length: -1\r\n", end], {400}),
        "a huge length": ([post, b"Content-Length: 99999999999\r\n", end], {413}),
        "a length that is too large": ([post, length % (len(body) + 9), end, body], {408}),
        "a length that is too small": ([post, length % 5, end, body], {422}),
        "chunks": ([post, chunked, end, b"%x\r\n" % len(body), body, b"\r\n0\r\n\r\n"], {200}),
        "endless chunks": ([post, chunked, end, *[b"10000\r\n" + b"x" * 65536 + b"\r\n"] * 20], {413}),
        "many headers": ([post, b"".join(b"X-%d: 1\r\n" % i for i in range(3000)), end], {431}),
        "an endless header": ([post, b"X: ", *[b"x" * 65536] * 4], {431}),
        "a long path": ([b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"], {400, 431}),
        "another method": ([b"DELETE /predict HTTP/1.1\r\nHost: a\r\n\r\n"], {405}),
        "an upgrade": (
            [b"GET /predict HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"],
            {405},
        ),
        "an upgrade with a body": (
            [post, b"Connection: Upgrade\r\nUpgrade: h2c\r\n", length % len(body), end, body],
            {200},
        ),
        "candidates for the Super": (
            [post.replace(b"predict", b"super"), length % len(choices), end, choices],
            {422},
        ),
    }
    codes = await asyncio.gather(*(said(address, *parts) for parts, _ in cases.values()))
    statuses.update(code for code in codes if code > 0)
    found = dict(zip(cases, codes, strict=True))
    # What is behind a body that is longer than it says is another request, and no HTTP: it is counted, too.
    statuses[400] += 1
    missed += [f"{name}: {found[name]}" for name, (_, allowed) in cases.items() if found[name] not in allowed]
    return found


async def half_sent(address: str, statuses: "Counter[int]", missed: list[str]) -> dict[str, Any]:
    """Requests that never come to an end: more than there may be connections, then some with a part of a large body."""
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    found: dict[str, Any] = {}
    for name, count, parts in (
        ("heads", HALF_SENT, [head]),
        ("bodies", 100, [head, b"Content-Length: 900000\r\n\r\n", b"x" * 800_000]),
        ("idle", 100, []),
    ):
        begun = time.monotonic()
        codes = Counter(await asyncio.gather(*(said(address, *parts, patience=20) for _ in range(count))))
        statuses.update({code: number for code, number in codes.items() if code > 0})
        found[name] = {"sent": count, "answered": dict(codes), "seconds": round(time.monotonic() - begun, 1)}
        if codes[-1] or codes.keys() - {0, 408, 503}:
            missed.append(f"half-sent {name}: {codes}")
    return found


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
