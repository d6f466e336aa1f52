"""Real clients against `elang serve --api openai`, in processes of its own: `openai`, LangChain's ChatOpenAI and `llm`.

The packages are the extra `clients`; tests of one that is not installed are skipped.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from elang import JointPredictor
from inference.chat_pairs import EASY, HARD, write_chat_pair
from inference.test_serve import running

KEY, SUPER_KEY = "sk-pair-0123456789", "sk-super-9876543210"
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


async def large(request):
    """A Super elsewhere: what it does is in the last message."""
    body = await request.json()
    if request.headers.get("authorization") != f"Bearer {SUPER_KEY}":
        return JSONResponse({"error": {"message": f"wrong key, not {SUPER_KEY}"}}, 401)
    last = body["messages"][-1]["content"]
    last = last if isinstance(last, str) else "an image"
    if "too many" in last:
        return JSONResponse({"error": {"message": "slow down"}}, 429, headers={"retry-after": "1"})
    request.app.state.seen.append(body)
    if "slow" in last:
        await asyncio.sleep(8)
    usage = {"prompt_tokens": 40, "completion_tokens": 3, "total_tokens": 43}
    call = {"id": "c1", "index": 0, "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    if not body.get("stream"):
        message = {"role": "assistant", "content": None if "tools" in body else f"large: {last[:20]}"}
        message |= {"tool_calls": [call]} if "tools" in body else {}
        reason = "tool_calls" if "tools" in body else "stop"
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return JSONResponse({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})

    async def events():
        try:
            for number in range(200 if "endless" in last else 3):
                delta = {"content": f"w{number} "}
                yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': None}]})}\n\n"
                if "broken" in last:
                    return
                await asyncio.sleep(0.05)
            end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            yield f"data: {json.dumps(end)}\n\ndata: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"
        finally:
            request.app.state.streams_ended += 1

    return StreamingResponse(events(), media_type="text/event-stream")


@pytest.fixture(scope="module")
def super_elsewhere():
    app = Starlette(routes=[Route("/v1/chat/completions", large, methods=["POST"])])
    app.state.seen, app.state.streams_ended = [], 0
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"openai:large@http://127.0.0.1:{port}/v1", app.state
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_chat_pair(tmp_path_factory.mktemp("chats"))


@pytest.fixture(scope="module")
def served(folders, super_elsewhere, tmp_path_factory):
    """The address of a pair with a Super elsewhere, what became of its Super's streams, and its process."""
    address, state = super_elsewhere
    settings = tmp_path_factory.mktemp("settings") / "super.yaml"
    prices = {"input": 1.0, "output": 2.0, "date": "2026-11-30"}
    settings.write_text(json.dumps({"model": address, "key": "LARGE_KEY", "prices": prices}))
    keys = {"PAIR_KEY": KEY, "LARGE_KEY": SUPER_KEY}
    options = ("--api", "openai", "--model_name", "pair", "--key_variable", "PAIR_KEY", "--deadline", "4")
    options += ("--swift_model", folders["swift"], "--super_model", settings)
    with running(*options, "--on_super_failure", "fail", wait="/ready", env=keys) as (url, process):
        yield url + "/v1", state, process
    said = process.stdout.read()
    # Whatever was refused, broken off or late: no key was printed.
    assert KEY not in said
    assert SUPER_KEY not in said


def metric(url, name):
    page = httpx.get(url.removesuffix("/v1") + "/metrics", headers={"authorization": f"Bearer {KEY}"}).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))


def wait_until(condition):
    until = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture
def openai():
    return pytest.importorskip("openai", reason="the package openai (the extra `clients`) is not installed")


@pytest.fixture
def client(openai, served):
    with openai.OpenAI(base_url=served[0], api_key=KEY, max_retries=0, timeout=20) as client:
        yield client


def messages(text):
    return [{"role": "user", "content": text}]


def test_openai(client, folders):
    """Whole, with what the pair tells, in the body and in headers, and other settings for a request."""
    expected = JointPredictor(str(folders["swift"]), None, threshold="inf", device="cpu")([EASY])[0]
    reply = client.chat.completions.create(model="pair", messages=messages(EASY))
    assert reply.choices[0].message.content == expected.label
    assert (reply.elang["answered_by"], reply.usage.completion_tokens) == ("swift", 12)
    reply = client.chat.completions.create(model="pair", messages=messages(HARD))
    assert reply.choices[0].message.content == f"large: {HARD[:20]}"
    assert (reply.elang["answered_by"], reply.elang["deferred"]) == ("super", "score")
    assert reply.usage.total_tokens == 43 + reply.elang["usage"]["swift"]["total_tokens"]
    assert reply.elang["cost"] == pytest.approx((40 * 1.0 + 3 * 2.0) / 1e6)
    chosen = client.chat.completions.with_raw_response.create(
        model="pair", messages=messages(EASY), extra_body={"elang": {"always": "super"}}
    )
    assert chosen.headers["x-elang-answered-by"] == "super"
    chosen = client.chat.completions.create(
        model="pair", messages=messages(HARD), extra_headers={"x-elang-always": "swift"}, max_tokens=2
    )
    assert (chosen.elang["answered_by"], chosen.usage.completion_tokens) == ("swift", 2)
    assert [model.id for model in client.models.list()] == ["pair"] == [client.models.retrieve("pair").id]
    text = client.completions.create(model="pair", prompt=EASY).choices[0].text
    assert text == expected.label


def test_openai_streams(client, folders):
    expected = JointPredictor(str(folders["swift"]), None, threshold="inf", device="cpu")([EASY])[0]
    for text, who, wanted in ((EASY, "swift", expected.label), (HARD, "super", "w0 w1 w2 ")):
        stream = client.chat.completions.create(
            model="pair", messages=messages(text), stream=True, stream_options={"include_usage": True}
        )
        first, *rest = stream
        assert (first.elang["answered_by"], first.choices[0].delta.role) == (who, "assistant")
        parts = [first, *(part for part in rest if part.choices)]
        assert "".join(part.choices[0].delta.content or "" for part in parts) == wanted
        assert rest[-1].usage.total_tokens > 12
    with client.chat.completions.stream(model="pair", messages=messages(EASY)) as stream:
        kinds = [event.type for event in stream]
        assert stream.current_completion_snapshot.choices[0].message.content == expected.label
    assert kinds.count("content.delta") > 2


def test_openai_tools_go_to_the_super(client):
    reply = client.chat.completions.create(model="pair", messages=messages(EASY), tools=[WEATHER])
    assert reply.choices[0].message.tool_calls[0].function.name == "weather"
    assert (reply.elang["answered_by"], reply.elang["deferred"]) == ("super", "the parameter 'tools'")


def test_openai_errors(openai, client, served):
    def refused(kind, **more):
        with pytest.raises(kind) as error:
            client.chat.completions.create(**{"model": "pair", "messages": messages(EASY), **more})
        return error.value

    assert refused(openai.NotFoundError, model="other").code == "model_not_found"
    assert refused(openai.BadRequestError, temperature=5).param == "temperature"
    assert refused(openai.BadRequestError, extra_body={"elang": {"threshold": "none"}}).param == "elang.threshold"
    error = refused(openai.RateLimitError, messages=messages(f"too many {HARD}"))
    assert error.response.headers["retry-after"] == "1"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    # The server's deadline, and the client's.
    assert refused(openai.InternalServerError, messages=messages(f"slow {HARD}")).status_code == 504
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).chat.completions.create(model="pair", messages=messages(f"slow {HARD}"))
    broken = client.chat.completions.create(model="pair", messages=messages(f"broken {HARD}"), stream=True)
    assert next(broken).choices[0].delta.content == "w0 "
    with pytest.raises(openai.APIError, match="broke off"):
        next(broken)
    wait_until(lambda: metric(served[0], "elang_waiting") == 0)


def test_openai_stream_that_is_left(client, served):
    """The Super's stream ends with it, and the Swift stops at the next token."""
    url, state, _ = served
    ended = state.streams_ended
    stream = client.chat.completions.create(model="pair", messages=messages(f"endless {HARD}"), stream=True)
    next(iter(stream))
    stream.close()
    wait_until(lambda: state.streams_ended > ended)
    stream = client.chat.completions.create(model="pair", messages=messages(EASY), stream=True, max_tokens=190)
    next(iter(stream))
    stream.close()
    before = time.monotonic()
    assert client.chat.completions.create(model="pair", messages=messages(EASY), max_tokens=1).choices
    wait_until(lambda: metric(url, "elang_waiting") == 0)
    assert time.monotonic() - before < 3


def test_openai_async(openai, served):
    """Many at a time, of which some are cancelled: each gets its own answer."""

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=served[0], api_key=KEY, max_retries=0, timeout=30) as client:

            async def one(number):
                text = f"{number} {HARD if number % 2 else ''}"
                asked = client.chat.completions.create(model="pair", messages=messages(text), max_tokens=4)
                if number % 5 == 0:
                    with pytest.raises(asyncio.TimeoutError):
                        await asyncio.wait_for(asked, 0.001)
                    return
                reply = await asked
                if number % 2:
                    assert reply.choices[0].message.content == f"large: {text[:20]}"
                else:
                    assert reply.elang["answered_by"] == "swift"

            await asyncio.gather(*map(one, range(40)))
            stream = await client.chat.completions.create(model="pair", messages=messages(HARD), stream=True)
            assert "".join([part.choices[0].delta.content or "" async for part in stream]) == "w0 w1 w2 "

    asyncio.run(all_of_them())
    wait_until(lambda: metric(served[0], "elang_waiting") == 0)


def test_langchain(served):
    """Whole, as a stream, with tools, in a batch, and its errors; what the pair tells is in the metadata or headers."""
    langchain = pytest.importorskip(
        "langchain_openai", reason="langchain-openai (the extra `clients`) is not installed"
    )
    import openai

    chat = langchain.ChatOpenAI(
        base_url=served[0], api_key=KEY, model="pair", max_retries=0, timeout=20, include_response_headers=True
    )
    reply = chat.invoke([("system", "good"), ("human", "the plot"), ("ai", "fine"), ("human", "why")])
    assert reply.response_metadata["headers"]["x-elang-answered-by"] == "swift"
    assert reply.usage_metadata["output_tokens"] == 12
    parts = list(chat.stream(HARD))
    assert "".join(part.content for part in parts) == "w0 w1 w2 "
    assert [one.content for one in chat.batch([HARD, f"b {HARD}"])] == [f"large: {HARD[:20]}", f"large: b {HARD[:18]}"]
    always = langchain.ChatOpenAI(
        base_url=served[0], api_key=KEY, model="pair", extra_body={"elang": {"always": "super"}}, max_retries=0
    )
    assert always.invoke(EASY).content == f"large: {EASY}"
    called = chat.bind_tools([WEATHER]).invoke(EASY)
    assert called.tool_calls[0]["name"] == "weather"
    assert asyncio.run(chat.ainvoke(HARD)).content == f"large: {HARD[:20]}"
    with pytest.raises(openai.RateLimitError):
        chat.invoke(f"too many {HARD}")
    with pytest.raises(openai.APITimeoutError):
        langchain.ChatOpenAI(base_url=served[0], api_key=KEY, model="pair", max_retries=0, timeout=0.5).invoke(
            f"slow {HARD}"
        )


def test_llm(served, tmp_path):
    """Simon Willison's command: the pair as one of its models."""
    pytest.importorskip("llm", reason="the package llm (the extra `clients`) is not installed")
    models = [{"model_id": "pair", "model_name": "pair", "api_base": served[0], "api_key_name": "pair"}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))
    (tmp_path / "keys.json").write_text(json.dumps({"pair": KEY}))

    def llm(*arguments, key=None):
        env = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
        command = [sys.executable, "-m", "llm", "-m", "pair", *arguments, *(["--key", key] if key else [])]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, forked=False)

    streamed = llm(HARD)
    assert (streamed.stdout.strip(), streamed.returncode) == ("w0 w1 w2", 0), streamed.stderr
    # The conversation is continued.
    assert llm("--no-stream", "-c", HARD).stdout.strip() == f"large: {HARD[:20]}"
    assert [message["role"] for message in served[1].seen[-1]["messages"]] == ["user", "assistant", "user"]
    refused = llm(EASY, key="wrong")
    assert refused.returncode == 1
    assert "token is missing or wrong" in refused.stderr


def test_a_server_that_ends_tells_its_streams(served):
    """Within the time in which it ends, and with an error that clients understand. It is the file's last test."""
    url, _, process = served
    body = {"model": "pair", "messages": messages(f"endless {HARD}"), "stream": True}
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.stream("POST", url + "/chat/completions", json=body, headers=headers, timeout=30) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        *_, last = [line for line in lines if line]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert process.wait(15) == 0
