"""What attacks.py sends: odd bodies, floods of them, odd requests, and requests that never end."""

import asyncio
import json
import time
from collections import Counter
from typing import Any

import httpx

OTHERS, ATTACKERS, SECONDS = 6, 8, 5.0
# More than the connections that a server allows.
HALF_SENT = 1300
JSON = {"content-type": "application/json"}
MEGABYTE = 980_000


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
