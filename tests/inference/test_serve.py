"""A pair over HTTP: the same answers, deadlines, a Super that is slow, full, dead or elsewhere, limits, metrics."""

import asyncio
import json
import math
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import yaml
from conftest import BAD, FILLER, GOOD
from fastapi import FastAPI
from starlette.responses import PlainTextResponse

from elang import InputError, JointPredictor
from elang.backends.openai.settings import Settings
from elang.files import folder_sha256
from elang.inference.serving.batcher import Batcher, ModelAnswers
from elang.inference.serving.elsewhere import Client
from elang.inference.serving.gate import Gate
from elang.inference.serving.http import Server
from elang.inference.serving.model import Model
from elang.inference.serving.schema import Limits, Question, TimedQuestion
from elang.inference.serving.server import add_routes
from elang.inference.serving.service import Metrics, PairService, score_edges
from elang.inference.serving.workers import Workers, listen
from elang.records.manifest import Manifest


def some_texts(number, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(FILLER + GOOD + BAD, k=rng.randint(1, 12))) for _ in range(number)]


@pytest.fixture(scope="module")
def predictor(pair):
    return JointPredictor(str(pair["swift"]), str(pair["super"]), threshold="defer 30%", device="cpu")


class Models:
    """Both models, asked as the service asks them, with what is to go wrong."""

    def __init__(self, predictor, **wrong):
        self.predictor, self.wrong, self.asked = predictor, wrong, {"swift": 0, "super": 0}

    async def ask(self, model, question):
        self.asked[model] += 1
        await asyncio.sleep(self.wrong.get(f"{model}_takes", 0))
        if error := self.wrong.get(f"{model}_raises"):
            raise error
        if f"{model}_says" in self.wrong:
            return self.wrong[f"{model}_says"]
        rows = self.predictor.rows(question.texts)
        answering = Model.__new__(Model)
        answering.role, answering.predictor = model, self.predictor
        return json.loads(json.dumps(answering._answers(rows, question.choices, question.threshold)))

    def service(self, limits=None, ready=True, policy="swift"):
        lost = 2 * (limits or Limits()).deadline
        models = {m: Batcher(lambda q, until, m=m: self.ask(m, q), lost=lost) for m in ("swift", "super")}
        return PairService(self.predictor, models, lambda: ready, limits=limits, on_super_failure=policy)


def posted(service, *bodies, path="/predict", content=None, **options):
    """The responses to some requests that are sent together."""
    app = FastAPI()
    add_routes(app, service, lambda: True)
    gate = {"token": None, "max_bytes": 10**6, "count": service.metrics.count} | options.pop("gate", {})
    app.add_middleware(Gate, **gate)

    async def all_of_them():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            if content is not None:
                return [await client.post(path, content=content, **options)]
            return await asyncio.gather(*(client.post(path, json=body, **options) for body in bodies))

    return asyncio.run(all_of_them())


def labels_of(response):
    assert response.status_code == 200, response.text
    return [(a["label"], a["probability"], a["score"], a["answered_by"]) for a in response.json()["answers"]]


def as_tuples(predictions):
    return [
        (p.label, *(pytest.approx(value, abs=1e-5) for value in (p.probability, p.score)), p.answered_by)
        for p in predictions
    ]


def test_the_parts_of_a_predictor_are_the_whole(predictor):
    texts = some_texts(80)
    rows = predictor.rows(texts)
    whole = predictor(texts)
    said = predictor.ask_swift(rows)
    assert [hard for _, _, hard in said] == [one.answered_by == "super" for one in whole]
    assert 0 < sum(hard for _, _, hard in said) < 80
    assert all(label == one.label for (label, _, hard), one in zip(said, whole, strict=True) if not hard)
    supers = predictor.ask_super(rows)
    assert all(label == one.label for label, one in zip(supers, whole, strict=True) if one.answered_by == "super")
    assert not any(hard for _, _, hard in predictor.ask_swift(rows, keep=True))
    for ask in (predictor, predictor.ask_swift, predictor.ask_super):
        with pytest.raises(InputError, match="takes no candidates"):
            ask(rows[:2], [("bad", "good")])
    with pytest.raises(Exception, match="without a Super"):
        JointPredictor(str(predictor.swift.weights), None, device="cpu").ask_super(rows)


def test_a_request_is_answered_as_the_predictor_answers(predictor):
    texts = some_texts(40)
    models = Models(predictor)
    (response,) = posted(models.service(), {"texts": texts})
    assert labels_of(response) == as_tuples(predictor(texts))
    assert all(answer["fallback"] is None for answer in response.json()["answers"])
    assert models.asked == {"swift": 1, "super": 1}
    assert posted(models.service(), {"texts": []})[0].json() == {"answers": []}


@pytest.mark.parametrize(
    ("wrong", "ready", "reason"),
    [
        ({"super_takes": 5}, True, "timeout"),
        ({"super_raises": httpx.ConnectError("refused")}, True, "failed"),
        ({"super_says": {"answers": ["neither"] * 64}}, True, "failed"),
        ({"super_says": {"answers": []}}, True, "failed"),
        ({"super_says": {"answers": [], "error": "odd"}}, True, "failed"),
        ({}, False, "unavailable"),
        ({}, True, "full"),
    ],
)
def test_a_super_that_does_not_answer(predictor, wrong, ready, reason):
    texts = some_texts(40)
    whole, alone = predictor(texts), predictor.ask_swift(predictor.rows(texts))
    limits = Limits(deadline=0.8, deferred=1 if reason == "full" else 4096)
    if "super_says" in wrong and wrong["super_says"]["answers"]:
        wrong = {"super_says": {"answers": ["neither"] * sum(hard for _, _, hard in alone)}}
    service = Models(predictor, **wrong).service(limits, ready)
    start = time.monotonic()
    (response,) = posted(service, {"texts": texts})
    assert time.monotonic() - start < 1.5
    for answer, one, (label, _, hard) in zip(response.json()["answers"], whole, alone, strict=True):
        assert answer["answered_by"] == "swift"
        assert answer["label"] == label
        assert 0.5 <= answer["probability"] <= 1
        assert answer["fallback"] == (reason if hard else None)
        assert hard == (one.answered_by == "super")
    page = service.metrics.page().body.decode()
    assert f'elang_fallbacks_total{{reason="{reason}"}} {sum(h for _, _, h in alone)}.0' in page
    # The other policy refuses, and says why.
    (response,) = posted(Models(predictor, **wrong).service(limits, ready, "fail"), {"texts": texts})
    assert response.headers.get("Retry-After") == {503: "1"}.get(response.status_code)
    assert response.status_code == (504 if reason == "timeout" else 503)
    assert "The Super" in response.json()["detail"]
    # What nobody defers needs no Super.
    easy = [t for t, (_, _, hard) in zip(texts, alone, strict=True) if not hard]
    (response,) = posted(Models(predictor, **wrong).service(limits, ready, "fail"), {"texts": easy})
    assert len(labels_of(response)) == len(easy)


@pytest.mark.parametrize("ready", [True, False])
def test_a_swift_is_asked_only_for_a_super_that_fails_where_everything_is_deferred(pair, ready):
    predictor = JointPredictor(str(pair["swift"]), str(pair["super"]), threshold="-inf", device="cpu")
    texts = some_texts(20)
    models = Models(predictor)
    service = models.service(ready=ready)
    (response,) = posted(service, {"texts": texts})
    answers = response.json()["answers"]
    assert {answer["score"] for answer in answers} == {None}
    if ready:
        assert labels_of(response) == as_tuples(predictor(texts))
        assert models.asked == {"swift": 0, "super": 1}
    else:
        kept = [label for label, _, _ in predictor.ask_swift(predictor.rows(texts), keep=True)]
        assert [(a["label"], a["answered_by"], a["fallback"]) for a in answers] == [
            (label, "swift", "unavailable") for label in kept
        ]
        assert models.asked == {"swift": 1, "super": 0}
    page = service.metrics.page().body.decode()
    assert "elang_deferred_total 20.0" in page
    assert "elang_score_count 0.0" in page


def test_what_the_swift_cut_is_told_where_it_is_asked_last(pair):
    predictor = JointPredictor(str(pair["swift"]), str(pair["super"]), threshold="-inf", device="cpu")
    said = {"answers": [["good", 0.1, False]] * 2, "cut": [1]}
    (response,) = posted(Models(predictor, swift_says=said).service(ready=False), {"texts": ["good", "good " * 99]})
    assert [answer["cut"] for answer in response.json()["answers"]] == [[], ["swift"]]


def test_a_swift_that_does_not_answer(predictor):
    (response,) = posted(Models(predictor, swift_takes=5).service(Limits(deadline=0.2)), {"texts": ["good"]})
    assert response.status_code == 504
    (response,) = posted(Models(predictor, swift_raises=OSError("gone")).service(), {"texts": ["good"]})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    (response,) = posted(Models(predictor, swift_says={"answers": [], "error": "too odd"}).service(), {"texts": ["a"]})
    assert (response.status_code, response.json()["detail"]) == (422, "too odd")


def test_a_request_may_be_in_a_hurry(predictor):
    service = Models(predictor, super_takes=0.6).service(Limits(deadline=10))
    texts = some_texts(40)
    hurried, patient = posted(service, {"texts": texts, "deadline": 0.3}, {"texts": texts})
    assert {a["fallback"] for a in hurried.json()["answers"]} == {None, "timeout"}
    assert {a["fallback"] for a in patient.json()["answers"]} == {None}
    # The hurried one's batch was still worked on; the other's came after it.
    assert [model.waiting for model in service.models.values()] == [0, 0]


def test_what_waits_is_counted_until_it_is_answered(predictor):
    texts = some_texts(40)
    hard = sum(h for _, _, h in predictor.ask_swift(predictor.rows(texts)))
    # The first request has been answered without the Super, which still works on it.
    service = Models(predictor, super_takes=0.5).service(Limits(deadline=0.2, deferred=hard))

    async def both():
        question = TimedQuestion(texts=texts)
        first = await service.answer(question)
        assert service.models["super"].waiting == hard
        second = await service.answer(question)
        await asyncio.sleep(0.6)
        return first, second

    first, second = asyncio.run(both())
    assert {a.fallback for a in first.answers} == {None, "timeout"}
    assert {a.fallback for a in second.answers} == {None, "full"}
    assert [model.waiting for model in service.models.values()] == [0, 0]
    # So is what the Swift is asked.
    service = Models(predictor, swift_takes=0.3).service(Limits(pending=50))
    codes = [r.status_code for r in posted(service, {"texts": texts}, {"texts": texts})]
    assert sorted(codes) == [200, 503]


def test_what_waits_goes_together():
    sent = []

    async def ask(question, until):
        sent.append((question.threshold, list(question.texts)))
        await asyncio.sleep(0.05)
        if "odd" in question.texts:
            return {"answers": [], "error": "odd is odd"}
        return {"answers": [text.upper() for text in question.texts]}

    async def all_of_them():
        batcher = Batcher(ask, workers=1, most=4, most_characters=30)
        until = time.monotonic() + 20

        def question(*texts, threshold=None):
            return batcher.ask(Question(texts=list(texts), choices=None, threshold=threshold), until)

        parts = [("a",), ("b", "c"), ("d",), ("e",), ("f" * 40,), ("g",), ("odd",), ("h",)]
        found = await asyncio.gather(
            *(question(*p) for p in parts), question("k", threshold=math.inf), return_exceptions=True
        )
        assert batcher.waiting == 0
        return parts, found

    parts, found = asyncio.run(all_of_them())
    for part, said in zip([*parts, ("k",)], found, strict=True):
        if part == ("odd",):
            assert isinstance(said, InputError)
        else:
            assert said == ModelAnswers([text.upper() for text in part], set())
    first, second, third, *rest = [texts for _, texts in sent]
    # Long ones and short ones take turns.
    assert (first, second, third) == (["a"], ["f" * 40], ["b", "c", "d", "e"])
    # One that is not taken spoils no other's answer, and what is kept is asked apart.
    assert rest == [["g", "odd", "h"], ["g"], ["odd", "h"], ["odd"], ["h"], ["k"]]
    assert [threshold for threshold, _ in sent] == [None] * 8 + [math.inf]


@pytest.mark.parametrize("given", [None, [0.5], [2.0, None], ["high", math.nan], "high", [0.25, 1]])
def test_probabilities_of_a_super_elsewhere(given):
    """It may give none, and only numbers from 0 to 1 count."""

    async def ask():
        async def send(question, until):
            return {"answers": ["a", "b"], "probabilities": given}

        return await Batcher(send).ask(Question(texts=["x", "y"], choices=None), time.monotonic() + 20)

    found = asyncio.run(ask()).probabilities
    assert found == (given if given == [0.25, 1] else [None] * 2 if isinstance(given, list) and len(given) == 2 else [])


def test_a_lost_batch_is_given_up():
    async def lose():
        calls = []

        async def ask(question, until):
            calls.append(1)
            await asyncio.sleep(60 if len(calls) == 1 else 0)
            return {"answers": list(question.texts)}

        batcher = Batcher(ask, lost=0.4)
        one = Question(texts=["a"], choices=None)
        with pytest.raises(asyncio.TimeoutError):
            await batcher.ask(one, time.monotonic() + 0.1)
        # Its worker may still be at it.
        assert batcher.waiting == 1
        assert (await batcher.ask(one, time.monotonic() + 5)).answers == ["a"]
        with pytest.raises(asyncio.TimeoutError):
            await batcher.ask(one, time.monotonic() - 1)
        await asyncio.sleep(0.05)
        assert batcher.waiting == 0

    asyncio.run(lose())


def test_a_process_that_ends_or_hangs_is_started_again(monkeypatch, capfd):
    """Also where the system has no room for it at first. Its model evaluates what it is asked."""
    monkeypatch.setattr("elang.inference.serving.workers._FIRST_WAIT", 0.1)
    pipes, refused = multiprocessing.Pipe, [OSError(24, "no room"), OSError(24, "no room")]

    def pipe():
        if workers.failed is None and pids and refused:
            raise refused.pop()
        return pipes()

    async def all_of_it():
        workers.start()

        async def ask(code):
            return await workers.ask((f"__import__('{code}", {}, {}))

        for wrong in ("os')._exit(3)", "time').sleep(60)", "os').kill(0, 99)"):
            pids.append(await ask("os').getpid()"))
            assert workers.there == [True]
            with pytest.raises(RuntimeError, match="its process died"):
                await ask(wrong)
        pids.append(await ask("os').getpid()"))
        assert await ask("logging').getLogger('torchao').filters"), "libraries are not silenced in its process"
        await workers.end()

    workers, pids = Workers("Super", [partial(partial, eval)], longest=1.5), []
    monkeypatch.setattr("elang.inference.serving.workers.multiprocessing.Pipe", pipe)
    asyncio.run(asyncio.wait_for(all_of_it(), 60))
    assert len(set(pids)) == 4
    assert not refused
    assert "Invalid argument" in capfd.readouterr().err
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_super_elsewhere_that_takes_less_gets_less():
    """So does one that refuses some texts: others' answers come."""
    sent = []

    def super_(request):
        texts = json.loads(request.content)["texts"]
        sent.append(len(texts))
        if len(texts) > 3 or "odd" in texts:
            return httpx.Response(422, json={"detail": "no"})
        return httpx.Response(200, json={"answers": [text.upper() for text in texts]})

    async def all_of_them():
        client = Client(base_url="http://elsewhere", transport=httpx.MockTransport(super_))
        batcher = Batcher(partial(client.ask, "/super"))
        until = time.monotonic() + 20
        parts = [["a", "b"], ["c"], ["odd"], ["d", "e"], ["f"]]
        return parts, await asyncio.gather(
            *(batcher.ask(Question(texts=part, choices=None), until) for part in parts), return_exceptions=True
        )

    parts, found = asyncio.run(all_of_them())
    for part, said in zip(parts, found, strict=True):
        assert isinstance(said, InputError) if "odd" in part else said.answers == [text.upper() for text in part]
    assert 5 in sent


def test_bad_requests(predictor):
    service = Models(predictor).service(Limits(texts=3))
    for body, word in (
        ({"texts": ["a", " "]}, "Input 1 (counted from 0) is empty"),
        ({"texts": ["a", ["b", "secret"]]}, "Input 1 (counted from 0) has 2 text(s)"),
        ({"texts": ["a"] * 4}, "at most 3 texts"),
        ({"texts": ["a"], "choices": [["b"]]}, "no candidates"),
        ({"texts": "a"}, "list"),
        ({"texts": [1]}, "string"),
        ({"texts": ["a"], "deadline": 0}, "greater than 0"),
        ({"texts": ["a"], "deadine": 1}, "deadine"),
        ({"texts": ["a", "\ud800"]}, "Input 1 (counted from 0) is no valid Unicode"),
        ({"texts": ["a"], "deadline": "soon"}, "number"),
        ({}, "required"),
        ([], "object"),
    ):
        raw = json.dumps(body).encode()
        (response,) = posted(service, content=raw, headers={"content-type": "application/json"})
        assert response.status_code == 422, body
        assert word in response.text, response.text
        assert "secret" not in response.text
    (response,) = posted(service, {"texts": ["a" * 2000]}, gate={"max_bytes": 1000})
    assert (response.status_code, response.json()["detail"]) == (413, "A request has at most 1000 bytes.")


def test_a_long_body_without_a_length_is_cut_off(predictor):
    app = FastAPI()
    add_routes(app, Models(predictor).service(), lambda: True)
    gate, sent, given = Gate(app, None, 100), [], 0

    async def receive():
        nonlocal given
        given += 1
        assert given < 10, "it goes on reading"
        return {"type": "http.request", "body": b"x" * 40, "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b"", "root_path": ""}
    scope |= {"scheme": "http", "server": ("test", 80), "client": ("test", 1), "http_version": "1.1"}
    asyncio.run(gate(scope, receive, send))
    assert [m.get("status") for m in sent] == [413, None]
    scope["headers"] = [(b"content-length", b"-5")]
    sent.clear()
    asyncio.run(gate(scope, receive, send))
    assert sent[0]["status"] == 413


def talked(talk):
    """What comes of talking to a server without models, by its port, and the statuses that it counts."""
    counted = []

    async def app(scope, receive, send):
        body = (await receive())["body"] or b"x" * 100_000
        if body == b"strea":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for part in (b"a", b"b"):
                await send({"type": "http.response.body", "body": part, "more_body": True})
                await asyncio.sleep(1.5)
            await send({"type": "http.response.body", "body": b"c"})
            return
        await asyncio.sleep(0.4 * (body == b"later"))
        await PlainTextResponse(body)(scope, receive, send)

    async def all_of_it():
        (own,) = listen("127.0.0.1", 0)
        gate = Gate(app, None, 1000, lambda path, status: counted.append(status))
        server = Server(gate, [])
        task = asyncio.ensure_future(server.serve([own]))
        try:
            return await asyncio.wait_for(talk(own.getsockname()[1], server), 20)
        finally:
            server.should_exit = True
            await task

    return asyncio.run(all_of_it()), counted


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("wish", "before"), [("h2c", b""), ("websocket", b"GET / HTTP/1.1\r\n\r\n")])
def test_a_request_that_asks_for_another_protocol_is_answered_by_this_one(wish, chunked, before):
    """As HTTP allows; clients such as Java's ask for HTTP/2 with every first request, and send their body along."""
    head = f"POST /a HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {wish}\r\n"
    length, body = (
        ("Transfer-Encoding: chunked", b"5\r\nabcde\r\n0\r\n\r\n") if chunked else ("Content-Length: 5", b"abcde")
    )
    parts = [before + head[:30].encode(), f"{head[30:]}{length}\r\n\r\n".encode() + body[:2], body[2:]]

    async def talk(port, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.1)
        # Otherwise a body waits 40 ms until its head is acknowledged.
        (connection,) = server.server_state.connections
        own = connection.transport.get_extra_info("socket")
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.write(b"GET /b HTTP/1.1\r\nConnection: close\r\n\r\n")
        return await reader.read()

    answer, counted = talked(talk)
    said = answer.split(b"HTTP/1.1 ")[1:]
    assert counted == [200] * len(said)
    assert [one[:3] for one in said] == [b"200"] * (2 + bool(before))
    assert said[-2].endswith(b"\r\n\r\nabcde")


def test_a_client_that_goes_on_sending_gets_its_refusal():
    async def talk(port, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n", *[b"\r\nabc"] * 4):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.1)
        return await reader.read()

    answer, counted = talked(talk)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert counted == [400]


def test_a_client_that_leaves_is_not_answered(caplog):
    """Nor are the requests behind the one that is being answered; each is counted."""

    async def talk(port, server):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n"
        # What the first one answers comes too late.
        writer.write((head + b"later") * 3)
        await asyncio.sleep(0.2)
        writer.close()
        await asyncio.sleep(0.5)

    _, counted = talked(talk)
    assert counted == [499] * 3
    assert not caplog.records


def test_who_has_connected_before_the_end_is_told():
    async def talk(port, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        server.gate.ending = True
        await asyncio.sleep(1)
        writer.write(b"GET /a HTTP/1.1\r\n\r\n")
        return await reader.read()

    answer, counted = talked(talk)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after" in answer
    assert counted == [503]


def test_a_connection_that_takes_no_answers_is_not_kept(monkeypatch):
    """Also where requests wait behind others, of which there are not many."""
    monkeypatch.setattr("elang.inference.serving.http._TAKEN", 0.5)

    async def talk(port, server):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(b"GET / HTTP/1.1\r\n\r\n" * 5000)
            await asyncio.sleep(0.3)
            assert len(server.server_state.connections) == 1
            await asyncio.sleep(2)
            return len(server.server_state.connections)

    kept, counted = talked(talk)
    assert kept == 0
    assert set(counted) <= {200, 400, 499}
    assert 2 < len(counted) < 50


def test_a_stream_may_take_its_time(monkeypatch):
    """It is the server's turn then, not the client's."""
    monkeypatch.setattr("elang.inference.serving.http._TAKEN", 0.5)

    async def talk(port, server):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: 5\r\nConnection: close\r\n\r\nstrea")
        return await reader.read()

    answer, _ = talked(talk)
    assert answer.endswith(b"1\r\nc\r\n0\r\n\r\n")


def test_a_token(predictor):
    service = Models(predictor).service()
    gate = {"token": "s3cret", "max_bytes": 1000}
    for headers in ({}, {"authorization": "s3cret"}, {"authorization": "Bearer s3cre"}, {"authorization": "Bearer é"}):
        encoded = {k: v.encode("utf-8") for k, v in headers.items()}
        assert posted(service, {"texts": ["good"]}, gate=gate, headers=encoded)[0].status_code == 401
    right = {"authorization": "Bearer s3cret"}
    assert posted(service, {"texts": ["good"]}, gate=gate, headers=right)[0].status_code == 200


def test_metrics_and_schema(predictor):
    edges = score_edges(predictor)
    assert edges == sorted(edges)
    assert edges[-1] == math.inf
    assert predictor.threshold in edges
    assert len(edges) >= 5
    # A Swift that was not calibrated, at a threshold that is none of the scores.
    for threshold in (math.inf, -math.inf):
        none = SimpleNamespace(manifest=Manifest(["bad", "good"]), score="max_softmax", threshold=threshold)
        assert "elang_score_bucket" in Metrics(score_edges(none)).page().body.decode()
    texts = some_texts(50)
    service = Models(predictor).service()
    posted(service, {"texts": texts})
    page = service.metrics.page().body.decode()
    hard = sum(one.answered_by == "super" for one in predictor(texts))
    for line in (
        'elang_requests_total{status="200"} 1.0',
        f'elang_texts_total{{answered_by="super"}} {hard}.0',
        f"elang_deferred_total {hard}.0",
        "elang_score_count 50.0",
        'elang_waiting{model="super"} 0.0',
        'elang_seconds_count{of="swift"} 1.0',
    ):
        assert line in page, page
    app = FastAPI()
    add_routes(app, service, lambda: True)
    schema = app.openapi()
    assert {"/predict", "/metrics", "/ready"} <= schema["paths"].keys()
    assert "difficulty score" in schema["components"]["schemas"]["Answer"]["properties"]["score"]["description"]


def test_options_that_cannot_be(pair, fails, tmp_path, monkeypatch):
    swift, super_ = ("--swift_model", pair["swift"]), ("--super_model", pair["super"])
    fails(["serve", *swift], "--super_model is needed")
    fails(["serve", "--super_model", "http://localhost:8001"], "--swift_model")
    fails(["serve", *swift, *super_, "--port", "80"], "--port", "80")
    fails(["serve", *swift, *super_, "--batch_size", "0"], "--batch_size", "0")
    fails(["serve", *swift, *super_, "--device", "cpu", "--devices", "2"], "--devices 2", "--workers")
    for device in ("gpu", "cuda:x", "cuda:99"):
        fails(["serve", *swift, *super_, "--device", device], "--device", device)
    fails(["serve", *swift, *super_, "--deadline", "0"], "--deadline", "0")
    fails(["serve", *swift, *super_, "--max_texts", "0"], "--max_texts", "0")
    fails(["serve", *swift, *super_, "--threshold", "nowhere"], "nowhere")
    fails(["serve", *swift, "--super_model", tmp_path / "none"], tmp_path / "none")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        fails(["serve", *swift, *super_, "--port", port], f"--port {port}", "cannot be listened on")
    (tmp_path / "empty").mkdir()
    fails(["serve", *swift, "--super_model", tmp_path / "empty"], "cannot be loaded")
    monkeypatch.setattr("elang.errors.find_spec", lambda name: None if name == "fastapi" else 1)
    fails(["serve", *swift, *super_], "pip install 'elang-joint[serve]'")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def running(*options, wait="/ready", env=None):
    """A server in a process of its own: its address, and the process."""
    port = free_port()
    command = [sys.executable, "-m", "elang", "serve", "--port", str(port), "--device", "cpu", *map(str, options)]
    own = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    process = subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            assert process.poll() is None, process.stdout.read()
            try:
                if httpx.get(address + wait).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        else:
            process.kill()
            pytest.fail("the server did not come up: " + process.stdout.read())
        yield address, process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def workers_of(process):
    """Process ids of the workers, by role, from their memory's size order: the Super's comes second."""
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
    found = []
    for pid in map(int, children.split()):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"spawn_main" in file.read():
                found.append(pid)
    return sorted(found)


def test_a_certificate_of_another_super_is_warned_of(pair, fails, tmp_path, monkeypatch):
    """By the front, which is given no Super's weights itself."""

    def stop(*args, **kwargs):
        raise InputError("so far")

    monkeypatch.setattr("elang.inference.serving.server.build_server", stop)
    manifest = Manifest.read(pair["swift"])
    args = ["serve", "--swift_model", pair["swift"], "--super_model", pair["super"], "--threshold", "mine"]
    for promised, number in ((folder_sha256(pair["super"]), 0), ("0" * 64, 1)):
        manifest.thresholds["max_softmax"]["mine"] = {"threshold": 0, "max_regret": 0.1, "super_sha256": promised}
        manifest.write(tmp_path / "elang.json")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            fails([*args, "--thresholds", tmp_path / "elang.json"], "so far")
        assert sum("another Super" in str(w.message) for w in seen) == number


def test_a_server_lives_through_the_death_of_its_super(pair, predictor):
    texts = some_texts(300)
    expected = predictor(texts)
    options = ("--swift_model", pair["swift"], "--super_model", pair["super"], "--threshold", "defer 30%")
    with running(*options, "--deadline", "4", wait="/health") as (address, process), httpx.Client(timeout=30) as client:

        def ask(part):
            return client.post(address + "/predict", json={"texts": part}).json()["answers"]

        # Many clients at a time, none of which gets another's answer.
        parts = [texts[i : i + 1 + i % 7] for i in range(0, 300, 5)]
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(ask, parts))
        for i, answers in zip(range(0, 300, 5), found, strict=True):
            assert [(a["label"], a["probability"], a["score"], a["answered_by"]) for a in answers] == as_tuples(
                expected[i : i + len(answers)]
            )
        assert client.get(address + "/docs").status_code == 200
        assert "/predict" in client.get(address + "/openapi.json").json()["paths"]
        assert 'elang_requests_total{status="200"} 60.0' in client.get(address + "/metrics").text
        # The Super dies: no request takes longer than the deadline, the Swift answers, and the Super comes back.
        _, super_worker = workers_of(process)[-2:]
        os.kill(super_worker, signal.SIGKILL)
        hard = [t for t, one in zip(texts, expected, strict=True) if one.answered_by == "super"][:5]
        reasons, slowest, start = [], 0.0, time.monotonic()
        while time.monotonic() - start < 90:
            before = time.monotonic()
            answers = ask(hard)
            slowest = max(slowest, time.monotonic() - before)
            reasons.append(answers[0]["fallback"])
            assert all(a["answered_by"] == ("super" if reasons[-1] is None else "swift") for a in answers)
            if reasons[-1] is None:
                break
            time.sleep(0.1)
        assert reasons[0] in ("timeout", "unavailable", "failed")
        assert reasons[-1] is None, "the Super did not come back"
        assert slowest < 5
        assert [a["label"] for a in ask(hard)] == [one.label for one in expected if one.answered_by == "super"][:5]
    assert process.returncode is not None


def answered(address, *parts, patience=20):
    """What the server says to bytes that come in pieces: its first line and its body."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=patience) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.05)
        said = b""
        while b"\r\n\r\n" not in said and (more := connection.recv(65536)):
            said += more
    return said.partition(b"\r\n")[0].decode()


def test_a_server_bears_what_strangers_send_and_ends_in_order(pair, fails):
    options = (
        "--swift_model",
        pair["swift"],
        "--super_model",
        pair["super"],
        "--threshold",
        "inf",
        "--max_texts",
        "64",
    )
    with running(*options) as (address, process), httpx.Client(base_url=address, timeout=30) as client:
        port = address.rsplit(":", 1)[1]
        fails(["serve", *map(str, options), "--port", port], f"--port {port}")
        head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        # A body that is larger than a head may be, in pieces.
        large = json.dumps({"texts": ["good " * 1000] * 64}).encode()
        assert " 200 " in answered(address, head % len(large), large[:100_000], large[100_000:-1], large[-1:])
        wrong = {
            b'{"texts": [NaN]}': 422,
            b'{"texts": ["good"], "deadline": Infinity}': 422,
            b'{"texts": ["\\ud800"]}': 422,
            b'{"texts": [' + b"1," * 300_000 + b"1]}": 422,
            b'{"texts": ' + b"[" * 100_000: 422,
            b'{"texts": ["\xff"]}': 422,
        }
        for body, status in wrong.items():
            found = client.post("/predict", content=body, headers={"content-type": "application/json"})
            assert found.status_code == status, (body[:40], found.text[:200])
            assert len(found.content) < 2000
        assert " 431 " in answered(address, b"GET / HTTP/1.1\r\nX: ", *[b"x" * 20_000] * 3)
        assert " 400 " in answered(address, b"what\r\n\r\n")
        assert client.get("/nowhere").status_code == 404
        assert "/workers" not in client.get("/openapi.json").text
        counts = client.get("/metrics").text
        for status, number in ((200, 1), (400, 1), (404, 1), (422, len(wrong)), (431, 1)):
            known = re.search(rf'elang_requests_total{{status="{status}"}} (\d+)', counts)
            assert known is not None, status
            assert int(known[1]) >= number, status
        # It answers what it has, tells others to go elsewhere, and ends with 0.
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(httpx.post, address + "/predict", json={"texts": ["good"] * 64}) for _ in range(4)]
            time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert {one.result().status_code for one in asked} <= {200, 503}
        assert process.wait(10) == 0


def test_a_super_elsewhere(pair, predictor):
    texts = some_texts(60)
    expected = as_tuples(predictor(texts))
    env = {"ELANG_SERVE_TOKEN": "both the same"}
    headers = {"authorization": "Bearer both the same"}
    alone = ("--super_model", pair["super"], "--max_texts", "64")
    with running(*alone, wait="/health", env=env) as (super_address, super_process):
        alone = httpx.post(super_address + "/super", json={"texts": texts}, headers=headers, timeout=30).json()
        assert alone["answers"] == predictor.ask_super(predictor.rows(texts))
        assert alone["probabilities"] == pytest.approx(
            [one.probability for one in predictor.super_map(texts)], abs=1e-5
        )
        assert httpx.post(super_address + "/super", json={"texts": texts}).status_code == 401
        page = httpx.get(super_address + "/metrics", headers=headers).text
        for line in (
            'texts_total{answered_by="super"} 60.0',
            'seconds_count{of="super"} 1.0',
            'waiting{model="super"} 0.0',
        ):
            assert f"elang_{line}" in page
        # Those that cannot be answered do not spoil another's.
        with ThreadPoolExecutor(4) as pool:
            wrong = [{"texts": ["fine", " "]}, {"texts": ["a"], "choices": [["b", "c"]]}, {"texts": ["a", ["b", "c"]]}]
            send = lambda body: httpx.post(super_address + "/super", json=body, headers=headers, timeout=30)  # noqa: E731
            *bad, good = pool.map(send, [*wrong, {"texts": ["good film"]}])
        assert len(good.json()["answers"]) == 1
        for one, words in zip(bad, ("Input 1", "takes no candidates", "Input 1"), strict=True):
            assert (one.status_code, words in one.json()["detail"]) == (422, True)
        # The workers' own paths are the server's alone.
        refused = httpx.post(super_address + "/workers/super", json={"texts": texts}, headers=headers)
        assert refused.status_code == 404
        options = ("--swift_model", pair["swift"], "--super_model", super_address, "--threshold", "defer 30%")
        with running(*options, "--deadline", "4", "--max_texts", "64", env=env) as (address, _):

            def ask():
                return httpx.post(address + "/predict", json={"texts": texts}, headers=headers, timeout=30)

            assert labels_of(ask()) == expected
            # Together they have more texts than the Super takes in a request.
            with ThreadPoolExecutor(20) as pool:
                for found in pool.map(lambda _: ask(), range(20)):
                    assert labels_of(found) == expected
            super_process.send_signal(signal.SIGTERM)
            super_process.wait(30)
            found = ask().json()["answers"]
            assert {a["fallback"] for a in found} == {None, "failed"}
            assert [a["score"] for a in found] == [e[2] for e in expected]


@pytest.mark.parametrize(("file", "super_name"), [("kubernetes", "elang-super"), ("vllm", "vllm")])
def test_the_kubernetes_examples_fit_the_server(predictor, file, super_name):
    from jsonargparse import ArgumentParser

    from elang.cli.serve import serve
    from elang.cli.verbs import add_options

    path = Path(__file__).parents[2] / "configs" / "serve" / f"{file}.yaml"
    parts = list(yaml.safe_load_all(path.read_text("utf-8")))
    deployments = {part["metadata"]["name"]: part for part in parts if part["kind"] == "Deployment"}
    services = {part["metadata"]["name"]: part["spec"] for part in parts if part["kind"] == "Service"}
    app = FastAPI()
    add_routes(app, Models(predictor).service(), lambda: True)
    # The server's own, which the live tests ask.
    paths = {route.path for route in app.routes} | {"/", "/health"}
    parser = ArgumentParser()
    add_options(parser, serve)
    assert deployments.keys() == services.keys() == {"elang", super_name}
    for name, deployment in deployments.items():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        if name == "vllm":
            continue
        assert container["args"][:2] == ["elang", "serve"]
        options = parser.parse_args(container["args"][2:])
        assert [port["containerPort"] for port in container["ports"]] == [options.port]
        (port,) = services[name]["ports"]
        assert port.get("targetPort", port["port"]) == options.port
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if get := container.get(probe, {}).get("httpGet"):
                assert get["port"] == options.port
                assert get["path"] in paths
        assert deployment["spec"]["selector"]["matchLabels"] == services[name]["selector"]
        needed = {options.key_variable, options.super_key_variable} - {None}
        assert {variable["name"] for variable in container["env"]} == needed
    address = options_of_pair(parser, deployments["elang"]["spec"]["template"]["spec"]["containers"][0]["args"][2:])
    assert address.endswith(f"http://{super_name}:{services[super_name]['ports'][0]['port']}")


def options_of_pair(parser, args):
    """The Super's address, whose model is the one that vLLM is told to serve."""
    address = parser.parse_args(args).super_model
    if not address.startswith("openai:"):
        return address
    settings = Settings.of(address)
    assert settings.model == "qwen3-8b"
    return settings.url.removesuffix("/v1")


def test_the_compose_example_fits_the_server():
    from jsonargparse import ArgumentParser

    from elang.cli.serve import serve
    from elang.cli.verbs import add_options

    path = Path(__file__).parents[2] / "configs" / "serve" / "compose.yaml"
    services = yaml.safe_load(path.read_text("utf-8"))["services"]
    parser = ArgumentParser()
    add_options(parser, serve)
    command = services["pair"]["command"]
    options = parser.parse_args(command[2:])
    assert command[:2] == ["elang", "serve"]
    assert options_of_pair(parser, command[2:]) == "http://super:8000"
    assert services["super"]["command"][3] == "qwen3-8b"
    assert {options.key_variable, options.super_key_variable} == services["pair"]["environment"].keys()
    assert services["pair"]["ports"] == [f"127.0.0.1:8000:{options.port}"]
