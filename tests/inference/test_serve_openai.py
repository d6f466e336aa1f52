"""OpenAI's API in front of a pair: what is answered by whom, streams, what is refused, fallbacks, costs."""

import asyncio
import json
import math
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace

import aiohttp
import httpx
import pytest
from backends.openai_server import Api
from fastapi import FastAPI

from elang import InputError, JointPredictor
from elang.backends.chat_decoding import Chat, Row
from elang.backends.chats import ChatWriter
from elang.backends.loading.load import SCHEMES
from elang.backends.openai.settings import Prices, Settings
from elang.inference.serving.chat_routes import add_chat_routes
from elang.inference.serving.chat_service import ChatService
from elang.inference.serving.chats import LocalChats
from elang.inference.serving.elsewhere import BackendSuper, ask_backend
from elang.inference.serving.gate import Gate
from elang.inference.serving.model import ChatModel
from elang.inference.serving.schema import Limits, Question
from elang.inference.serving.sender import proxy_of
from elang.inference.serving.service import Metrics, score_edges
from elang.inference.serving.text_chats import TextChats
from elang.inference.serving.upstream import Upstream
from elang.records.table import Records
from elang.tasks.sampling import Sampling
from inference.chat_pairs import EASY, HARD, TASK, TOKENS, write_chat_pair
from inference.test_serve import Models, some_texts


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_chat_pair(tmp_path_factory.mktemp("chats"))


@pytest.fixture(scope="module")
def models(folders):
    """Both models as their processes have them, by the score that routes."""
    pair = {"swift_model": str(folders["swift"]), "super_model": str(folders["super"])}
    return {
        score: {role: ChatModel(role, {**pair, "score": score}, threads=1, device="cpu") for role in ("swift", "super")}
        for score in ("prompt_router", "nll_mean")
    }


class Here:
    """In place of a model's processes: it works in a thread, and may fail, begin late, or take its time for a part."""

    def __init__(self, model, fails=False, takes=0.0, late=0.0):
        self.model, self.fails, self.takes, self.late, self.loads = model, fails, takes, late, [0]
        self.left = []

    async def ask(self, stream):
        if self.fails:
            raise RuntimeError("its process died")
        loop = asyncio.get_running_loop()

        def talk(place, part):
            time.sleep(self.takes)
            if part:
                loop.call_soon_threadsafe(stream.tell, place, part)
            return set(stream.left)

        await asyncio.sleep(self.late)
        await asyncio.to_thread(self.model.write, stream.items, talk)
        self.left += sorted(stream.left)
        return {}


def chat_app(models, score="prompt_router", super_=None, wrong=None, **policy):
    """The paths in front of a pair whose models are in this process."""
    swift = models[score]["swift"]
    predictor, early = swift.predictor, score == "prompt_router"
    workers = {role: Here(models[score][role], **(wrong or {}).get(role, {})) for role in ("swift", "super")}
    metrics = Metrics(score_edges(predictor))
    limits = policy.pop("limits", Limits(deadline=20))
    usual = predictor.sampling.temperature if predictor.sampling else 0.0
    here = LocalChats("Swift", workers["swift"], predictor.task, usual=usual, fixed=not early, early=early)
    behind = super_ or LocalChats("Super", workers["super"], predictor.task, usual=usual)
    service = ChatService(predictor, here, behind, limits=limits, metrics=metrics, **policy)
    app = add_chat_routes(FastAPI(), service, "pair", predictor.task, metrics=metrics, deadline=limits.deadline)
    return app, service, workers


def posted(app, *bodies, path="/v1/chat/completions", gate=None, **options):
    async def all_of_them():
        gated = Gate(app, **{"token": None, "max_bytes": 10**6, **(gate or {})})
        transport = httpx.ASGITransport(app=gated)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as client:
            return await asyncio.gather(*(client.post(path, json=body, **options) for body in bodies))

    return asyncio.run(all_of_them())


def asked(text=EASY, **more):
    return {"model": "pair", "messages": [{"role": "user", "content": text}], **more}


def events_of(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [json.loads(line) if line != "[DONE]" else line for line in lines]


def text_of(response):
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice["message"]["content"]


@pytest.mark.parametrize("score", ["prompt_router", "nll_mean"])
def test_chats_are_answered_as_the_predictor_answers(models, folders, score):
    """To the letter, in batches with others, whole and as streams; who answered is told in the body and in headers."""
    predictor = JointPredictor(str(folders["swift"]), str(folders["super"]), score=score, device="cpu")
    texts = [EASY, HARD, "why", "ü", *some_texts(6)]
    expected = predictor(texts)
    assert {one.answered_by for one in expected} == {"swift", "super"}
    app, service, _ = chat_app(models, score)
    wholes = posted(app, *map(asked, texts))
    streams = posted(app, *(asked(text, stream=True, stream_options={"include_usage": True}) for text in texts))
    for one, whole, stream in zip(expected, wholes, streams, strict=True):
        assert text_of(whole) == one.label
        about = whole.json()["elang"]
        assert (about["answered_by"], about["fallback"]) == (one.answered_by, None)
        assert about["score"] == pytest.approx(one.score, abs=1e-4)
        assert whole.headers["x-elang-answered-by"] == one.answered_by
        first, *rest, last, end = events_of(stream)
        assert (end, first["elang"]["answered_by"], last["choices"]) == ("[DONE]", one.answered_by, [])
        assert "".join(part["choices"][0]["delta"]["content"] for part in (first, *rest)) == one.label
        assert rest[-1]["choices"][0]["finish_reason"] == whole.json()["choices"][0]["finish_reason"]
        assert last["usage"] == whole.json()["usage"]
        # What both models read and wrote, also what the Swift wrote for nothing.
        counts = about["usage"].values()
        for name in ("prompt_tokens", "completion_tokens"):
            assert whole.json()["usage"][name] == sum(count[name] for count in counts)
        wasted = one.answered_by == "super" and score == "nll_mean"
        assert (about["usage"]["swift"]["completion_tokens"] > 0) == (one.answered_by == "swift" or wasted)
    assert service.swift.waiting == service.super_.waiting == 0
    page = service.metrics.page().body.decode()
    assert (
        f'elang_texts_total{{answered_by="super"}} {2 * sum(one.answered_by == "super" for one in expected)}.0' in page
    )
    assert 'elang_tokens_total{kind="written",model="super"}' in page


def test_a_request_may_choose_threshold_or_model(models, folders):
    app, _, _ = chat_app(models)
    for options, headers, who, threshold in (
        ({"threshold": "99%"}, {}, "super", -9.0),
        ({"threshold": math.inf and 99}, {}, "swift", 99.0),
        ({"threshold": "-inf"}, {}, "super", "-inf"),
        ({"always": "swift"}, {}, "swift", None),
        ({"always": "super"}, {}, "super", None),
        (None, {"x-elang-always": "super"}, "super", None),
        (None, {"x-elang-threshold": "99%"}, "super", -9.0),
        ({"always": "swift"}, {"x-elang-always": "super"}, "swift", None),
    ):
        body = asked(HARD if who == "swift" else EASY, **({"elang": options} if options else {}))
        (response,) = posted(app, body, headers=headers)
        about = response.json()["elang"]
        assert (about["answered_by"], about["threshold"]) == (who, threshold), (options, headers)
    # The Swift is not asked where its score decides nothing.
    (response,) = posted(app, asked(elang={"always": "super"}))
    assert response.json()["elang"]["usage"].keys() == {"super"}


def test_several_turns_are_one_conversation(models):
    """The whole of it goes through the chat template, as transformers fills it, and the system text, too."""
    messages = [
        {"role": "system", "content": "good"},
        {"role": "user", "content": "the plot"},
        {"role": "assistant", "content": "fine"},
        {"role": "user", "content": [{"type": "text", "text": "why"}]},
    ]
    app, _, _ = chat_app(models)
    (response,) = posted(app, {"model": "pair", "messages": messages})
    model = models["prompt_router"]["swift"].runner.model
    plain = [*messages[:-1], {"role": "user", "content": "why"}]
    ids = model.tokenizer.apply_chat_template(
        plain, add_generation_prompt=True, truncation=False, return_tensors="pt", return_dict=True
    )["input_ids"]
    assert response.json()["usage"]["prompt_tokens"] == ids.shape[1]
    written = model.backbone.generate(ids, max_new_tokens=TOKENS, do_sample=False)[0, ids.shape[1] :]
    assert text_of(response) == model.tokenizer.decode(written, skip_special_tokens=True).strip()


def test_each_chat_of_a_batch_has_its_own_settings(models):
    """Alone or with others; samples depend on the seed and the prompt alone."""
    bodies = [
        asked(max_tokens=3),
        asked(max_completion_tokens=5, logprobs=True, top_logprobs=2),
        asked(temperature=1.0, seed=5, n=3),
        asked("why", temperature=0.7, top_p=0.9, seed=5),
        asked(stop=["e"]),
        asked(temperature=1.0),
        asked(top_p=0.5, user="somebody", tools=[], frequency_penalty=0, response_format={"type": "text"}),
    ]
    app, _, _ = chat_app(models)
    together = [response.json() for response in posted(app, *bodies)]
    for body, found in zip(bodies, together, strict=True):
        (alone,) = posted(app, body)
        if body.get("temperature") != 1.0 or "seed" in body:
            texts = [[choice["message"]["content"] for choice in one["choices"]] for one in (alone.json(), found)]
            assert texts[0] == texts[1], body
    greedy = together[6]["choices"][0]["message"]["content"]
    assert [one["usage"]["completion_tokens"] for one in together[:2]] == [3, 5]
    assert greedy.startswith(together[0]["choices"][0]["message"]["content"].rstrip("\ufffd"))
    assert together[0]["choices"][0]["finish_reason"] == "length"
    logprobs = together[1]["choices"][0]["logprobs"]["content"]
    assert len(logprobs) == 5
    for token in logprobs:
        # The most probable one was taken.
        assert token["logprob"] == token["top_logprobs"][0]["logprob"] >= token["top_logprobs"][1]["logprob"]
    samples = [choice["message"]["content"] for choice in together[2]["choices"]]
    assert [choice["index"] for choice in together[2]["choices"]] == [0, 1, 2]
    assert len({*samples, greedy}) == 4
    assert together[4]["choices"][0]["message"]["content"] == greedy.partition("e")[0].strip()
    assert together[4]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("score", ["prompt_router", "nll_mean"])
def test_a_pair_that_draws_its_texts_draws_the_same_ones(folders, score):
    """As the predictor does, for requests without a temperature of their own; with it and the seed, too."""
    sampling = Sampling(temperature=0.8, top_p=0.95, top_k=40, seed=3)
    pair = {"swift_model": str(folders["swift"]), "super_model": str(folders["super"])}
    options = {**pair, "score": score, "sampling": sampling}
    expected = JointPredictor(**options, device="cpu")([EASY, HARD, "why"])
    own = {score: {role: ChatModel(role, options, threads=1, device="cpu") for role in ("swift", "super")}}
    app, _, _ = chat_app(own, score)
    assert [text_of(response) for response in posted(app, *map(asked, (EASY, HARD, "why")))] == [
        one.label for one in expected
    ]
    (response,) = posted(app, asked("why", temperature=0))
    wanted = None if score == "prompt_router" else "a temperature other than 0.8"
    assert response.json()["elang"]["deferred"] == wanted


def test_samples_follow_the_temperature_and_top_p(models):
    """By counting: the first token's frequencies are those of the model's distribution."""
    writer = models["prompt_router"]["super"].writer
    first: dict[str, int] = {}

    def talk(place, part):
        if part.get("logprobs"):
            token = part["logprobs"][0]["token"], round(part["logprobs"][0]["logprob"], 4)
            first[token] = first.get(token, 0) + 1
        return set()

    chats = [Chat((EASY,), tokens=1, temperature=1.0, seed=seed, count=40, top_logprobs=0) for seed in range(20)]
    writer.write(chats, talk)
    for (_, logprob), count in sorted(first.items(), key=lambda item: -item[1])[:4]:
        assert count / 800 == pytest.approx(math.exp(logprob), abs=0.06)
    first.clear()
    writer.write([replace(chat, top_p=1e-6) for chat in chats[:2]], talk)
    assert len(first) == 1


def test_what_the_swift_does_not_take_goes_to_the_super(models):
    """By policy, and is told; where the Super does not take it either, it is refused by name."""
    app, _, _ = chat_app(models, "nll_mean")
    (response,) = posted(app, asked(temperature=1.0, seed=1))
    about = response.json()["elang"]
    assert (about["answered_by"], about["deferred"], about["score"]) == ("super", "a temperature other than 0", None)
    (response,) = posted(app, asked("a" * 150))
    assert (response.json()["elang"]["deferred"], response.status_code) == ("too long for the Swift", 200)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    image = [{"type": "image_url", "image_url": {"url": "http://x"}}]
    for more, param, code in (
        ({"tools": tools}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": image}]}, "messages", "unsupported_parameter"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "unsupported_parameter"),
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": "a" * 500}]}, "messages", "context_length_exceeded"),
        ({"temperature": 1.0, "elang": {"always": "swift"}}, "temperature", "unsupported_parameter"),
    ):
        (response,) = posted(app, asked(**more))
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, param, code), response.text
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ({"messages": [{"role": "who", "content": "a"}]}, 400, "messages[0].role"),
        ({"model": "other"}, 404, "model"),
        ({"model": None}, 400, "model"),
        ({"temperature": 3}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 1.5}, 400, "max_tokens"),
        ({"n": True}, 400, "n"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"stop": ""}, 400, "stop"),
        ({"stream": "yes"}, 400, "stream"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
        ({"top_logprobs": 3}, 400, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        ({"elang": {"treshold": 1}}, 400, "elang.treshold"),
        ({"elang": {"threshold": "nowhere"}}, 400, "elang.threshold"),
        ({"elang": {"threshold": "nan"}}, 400, "elang.threshold"),
        ({"elang": {"always": "both"}}, 400, "elang.always"),
        ({"elang": {"always": "swift", "threshold": 1}}, 400, "elang.always"),
        ({"elang": {"max_cost": -1}}, 400, "elang.max_cost"),
        ({"elang": {"max_cost": 1}}, 400, "elang.max_cost"),
    ],
)
def test_bad_requests_are_refused_in_openais_form(models, body, status, param):
    (response,) = posted(chat_app(models)[0], asked(**body))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), response.text
    assert error["message"]


def test_bodies_that_are_none(models):
    async def post(content, path="/v1/chat/completions"):
        transport = httpx.ASGITransport(app=Gate(chat_app(models)[0], "s3cret", 10_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(path, content=content, headers={"authorization": "Bearer s3cret"})

    for content in (b"{", b"[]", b"\xff", b'{"a": NaN}', b'{"model": "\\ud800"}', b"[" * 5000):
        response = asyncio.run(post(content))
        assert response.status_code == 400, content
        assert response.json()["error"]["type"] == "invalid_request_error"
    # What the gate refuses has this form, too.
    response = asyncio.run(post(b"x" * 20_000))
    assert (response.status_code, "at most" in response.json()["error"]["message"]) == (413, True)
    assert asyncio.run(post(b"{}", "/v1/nothing")).json()["error"]["type"] == "invalid_request_error"
    (response,) = posted(chat_app(models)[0], asked(), gate={"token": "s3cret"})
    assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")


def test_completions_are_chats_of_one_text(models):
    app, _, _ = chat_app(models)
    body = {"model": "pair", "prompt": [EASY], "max_tokens": 4, "logprobs": 2}
    whole, stream = posted(app, body, {**body, "stream": True}, path="/v1/completions")
    (choice,) = whole.json()["choices"]
    (response,) = posted(app, asked(max_tokens=4))
    assert (whole.json()["object"], choice["text"]) == ("text_completion", text_of(response))
    assert len(choice["logprobs"]["tokens"]) == len(choice["logprobs"]["top_logprobs"]) == 4
    assert {len(top) for top in choice["logprobs"]["top_logprobs"]} <= {1, 2}
    assert "".join(event["choices"][0]["text"] for event in events_of(stream)[:-1]) == choice["text"]
    for wrong, param in (({"prompt": ["a", "b"]}, "prompt"), ({"echo": True}, "echo"), ({"suffix": "x"}, "suffix")):
        (response,) = posted(app, {**body, **wrong}, path="/v1/completions")
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("score", ["prompt_router", "nll_mean"])
def test_the_swift_answers_for_a_super_that_fails(models, folders, score):
    swift = JointPredictor(str(folders["swift"]), None, threshold="inf", score=score, device="cpu")
    text = HARD if score == "prompt_router" else EASY
    for wrong, ready, reason in (
        ({"super": {"fails": True}}, True, "failed"),
        ({}, False, "unavailable"),
        ({"super": {"late": 2.5}}, True, "timeout"),
    ):
        limits = Limits(deadline=1.6) if reason == "timeout" else Limits(deadline=20)
        elang = {"threshold": 0 if score == "nll_mean" else "1-SE"}
        for policy in ("swift", "fail"):
            options = {"on_super_failure": policy, "super_ready": lambda ready=ready: ready, "limits": limits}
            app, _, _ = chat_app(models, score, wrong=wrong, **options)
            (response,) = posted(app, asked(text, elang=elang))
            if policy == "swift":
                assert text_of(response) == swift([text])[0].label
                about = response.json()["elang"]
                assert (about["answered_by"], about["fallback"], about["deferred"]) == ("swift", reason, "score")
            else:
                assert response.status_code == (504 if reason == "timeout" else 503)
                assert response.json()["error"]["type"] == "server_error"
        # Whoever wants the Super gets no other.
        (response,) = posted(app, asked(text, elang={"always": "super"}))
        assert response.status_code in (503, 504)


def test_a_stream_that_is_left_frees_its_place(models):
    """The writer stops at the next token, and the others of its batch go on."""
    _, service, workers = chat_app(models, wrong={"swift": {"takes": 0.01}})

    async def both():
        # While it is busy, the two wait, and so are of one batch.
        busy = asyncio.ensure_future(anext(service.swift.ask(Chat(("x",), tokens=2))))
        await asyncio.sleep(0)
        first, second = (service.swift.ask(Chat((text,), tokens=100)) for text in (EASY, "why"))
        await asyncio.gather(busy, anext(first), anext(second))
        await anext(first)
        await first.aclose()
        parts = [part async for part in second]
        await asyncio.sleep(0.1)
        return parts

    parts = asyncio.run(both())
    assert workers["swift"].left == [0]
    assert parts[-1]["choices"][0]["finish_reason"] == "length"
    assert service.swift.waiting == 0


@pytest.mark.parametrize("stops", [(), ("b c",), ("\n\n",)])
def test_what_is_told_of_a_text_is_never_taken_back(models, stops):
    """Whatever its tokens: no half characters, no spaces at its ends, nothing of a stop string."""
    model = models["prompt_router"]["swift"].runner.model
    text = "  ab cü b d€\n \nx b c\n\n z "
    row, told = Row(0, 0, Chat((), stop=stops), 10**6), ""
    for token in model.tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]:
        told += row.add(model, token)
        expected = min((text.partition(stop)[0] for stop in stops), key=len, default=text).strip()
        assert expected.startswith(told)
        if row.finish:
            break
    else:
        told += row.add(model, model.end)
    assert (told, row.finish) == (expected, "stop")


class Handled:
    """In place of aiohttp's client: what a handler of httpx's requests answers."""

    closed = False

    def __init__(self, handler, headers):
        self.handler, self.headers = handler, headers

    @asynccontextmanager
    async def post(self, url, data, headers, **options):
        response = self.handler(httpx.Request("POST", url, content=data, headers={**self.headers, **headers}))
        response = await response if asyncio.iscoroutine(response) else response

        # Streams as they come, what is there in pieces.
        content = SimpleNamespace(iter_any=lambda: response.aiter_bytes(100 if response.is_stream_consumed else None))
        yield SimpleNamespace(status=response.status_code, headers=response.headers, content=content)


def upstream(handler, key=None, **settings):
    keyed = type("Keyed", (Settings,), {"secret": key or ""})
    super_ = Upstream(keyed("large", "http://elsewhere/v1", **{"tries": 1, **settings}), 5.0)
    super_._sender._http = Handled(handler, {"authorization": f"Bearer {key}"} if key else {})
    return super_


def test_a_super_elsewhere_gets_what_was_asked(models):
    """With the key, the task's frame, and all parameters; tools and images go through as they are."""
    got = []

    def handler(request):
        got.append(request)
        body = json.loads(request.content)
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        message = {"role": "assistant", "content": None if "tools" in body else "hello"}
        message |= {"tool_calls": [call]} if "tools" in body else {}
        usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
            return httpx.Response(200, json={"choices": [choice], "usage": usage})
        chunks = [
            {"choices": [{"index": 0, "delta": {"content": part}, "finish_reason": None}]} for part in ("he", "y")
        ]
        chunks += [{"choices": [], "usage": usage}]
        return httpx.Response(
            200, text="".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        )

    app, _, _ = chat_app(models, super_=upstream(handler, key="k3y"), prices={"super": Prices(1e3, 1e4, "")})
    (response,) = posted(app, asked(HARD, max_tokens=9, presence_penalty=0.5))
    about = response.json()["elang"]
    assert (text_of(response), about["usage"]["super"]["prompt_tokens"]) == ("hello", 7)
    assert about["deferred"] == "the parameter 'presence_penalty'"
    assert about["cost"] == pytest.approx(7 * 1e-3 + 2 * 1e-2)
    body = json.loads(got[-1].content)
    assert body == {**asked(HARD, max_tokens=9, presence_penalty=0.5), "model": "large"}
    assert got[-1].headers["authorization"] == "Bearer k3y"
    assert str(got[-1].url) == "http://elsewhere/v1/chat/completions"
    (response,) = posted(app, asked(HARD, stream=True, stream_options={"include_usage": True}))
    *parts, last, _ = events_of(response)
    assert "".join(part["choices"][0]["delta"]["content"] for part in parts) == "hey"
    assert last["elang"]["usage"]["super"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    (response,) = posted(app, asked(EASY, tools=tools))
    assert response.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "f"
    assert response.json()["elang"]["deferred"] == "the parameter 'tools'"
    # The task's own prompt, system text and examples are around a plain conversation.
    task = replace(TASK, prompt="Q: {text}", system="be brief", examples=["Q: a", "b"])
    app2, service, _ = chat_app(models, super_=upstream(handler))
    service.predictor = type("P", (), {"task": task, "threshold": -math.inf})()
    posted(app2, asked("c"))
    roles = [(message["role"], message["content"]) for message in json.loads(got[-1].content)["messages"]]
    assert roles == [("system", "be brief"), ("user", "Q: a"), ("assistant", "b"), ("user", "Q: c")]


@pytest.mark.parametrize(
    ("reply", "reason", "status"),
    [
        (httpx.Response(500, text="oops"), "failed", 503),
        (httpx.Response(429, headers={"retry-after": "7"}, json={"error": {"message": "slow"}}), "full", 429),
        (httpx.Response(401, json={"error": {"message": "wrong key k3y"}}), "failed", 503),
        (httpx.Response(200, text="<html>"), "failed", 503),
        (httpx.Response(200, json={"choices": []}), "failed", 503),
        (httpx.Response(200, json=[1]), "failed", 503),
        (httpx.Response(200, json={"choices": [{"index": 0, "message": "x"}]}), "failed", 503),
        (httpx.Response(400, text='{"error": ' + "[" * 100_000), "failed", 503),
        (httpx.Response(404, json={"error": {"message": "no such model"}}), "failed", 503),
        (httpx.Response(200, json={"error": {"message": "slow", "code": 429}}), "full", 429),
        (aiohttp.ClientConnectorError(SimpleNamespace(ssl=True), OSError("refused")), "failed", 503),
        (aiohttp.ServerDisconnectedError(), "failed", 503),
        (aiohttp.SocketTimeoutError("late"), "timeout", 504),
    ],
)
def test_a_super_elsewhere_that_fails(models, caplog, reply, reason, status):
    def handler(request):
        if isinstance(reply, Exception):
            raise reply
        return reply

    app, _, _ = chat_app(models, super_=upstream(handler, key="k3y"))
    (response,) = posted(app, asked(HARD))
    assert (response.json()["elang"]["answered_by"], response.json()["elang"]["fallback"]) == ("swift", reason)
    app, _, _ = chat_app(models, super_=upstream(handler, key="k3y"), on_super_failure="fail")
    (response,) = posted(app, asked(HARD))
    assert response.status_code == status
    assert ("retry-after" in response.headers) == (status != 504)
    assert (response.headers.get("retry-after") == "7") == (status == 429 and reply.status_code == 429)
    assert "k3y" not in response.text + caplog.text


ALWAYS = {"elang": {"always": "super"}}


@pytest.fixture
def api():
    api = Api(lambda body: "x")
    yield api
    api.close()


def test_a_super_elsewhere_is_asked_over_connections_that_are_kept(models, api):
    super_ = Upstream(Settings("large", api.url, key=None), 5.0)
    app, _, _ = chat_app(models, super_=super_)

    async def all_of_them():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for count in (1, 1, 5, 5):
                posts = [client.post("/v1/chat/completions", json=asked(**ALWAYS)) for _ in range(count)]
                texts = [text_of(response) for response in await asyncio.gather(*posts)]
                assert texts == ["x"] * count
        await super_.close()

    asyncio.run(all_of_them())
    assert len(api.seen) == 12
    assert len({headers["idempotency-key"] for _, _, headers, _ in api.seen}) == 12
    assert len(api.connections) <= 5


def test_limits_of_a_super_elsewhere_hold_for_all_requests(models):
    """Requests at a time and a minute, pauses that it asks for, tries, and the times of requests."""
    plan, times, now, most = [], [], 0, 0

    async def handler(request):
        nonlocal now, most
        now += 1
        times.append(time.monotonic())
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return plan.pop(0) if plan else httpx.Response(200, json={"choices": [{"message": {"content": "x"}}]})

    def ask(count=1, deadline=20, **settings):
        times.clear()
        app, service, _ = chat_app(models, super_=upstream(handler, **settings), limits=Limits(deadline=deadline))
        responses = posted(app, *[asked(**ALWAYS)] * count)
        return responses, [round(each - times[0], 2) for each in times], service.metrics.page().body.decode()

    assert {one.status_code for one in ask(8, concurrent=2)[0]} == {200}
    assert most == 2
    _, gaps, _ = ask(4, requests_per_minute=600)
    assert gaps[-1] > 0.2
    # As many tokens as there are bytes, before the first answer.
    _, gaps, _ = ask(3, tokens_per_minute=30_000)
    assert gaps[-1] > 0.2
    # What cannot be in time is refused at once, and told when to come again.
    responses, _, _ = ask(4, deadline=1.6, requests_per_minute=60)
    refused = [one for one in responses if one.status_code == 429]
    assert [one.headers["retry-after"] for one in refused] == ["2", "2"]
    assert {one.json()["error"]["code"] for one in refused} == {"rate_limit_exceeded"}
    # A failure that may pass is tried again; all wait for a pause.
    slow = httpx.Response(429, headers={"retry-after": "1"}, json={"error": {"message": "slow"}})
    plan[:] = [slow]
    (response,), gaps, page = ask(tries=3)
    assert (response.status_code, 1 <= gaps[1] < 2) == (200, True)
    assert 'elang_failed_attempts_total{reason="429"} 1.0' in page
    for bad in (httpx.Response(503), httpx.Response(200, text="<html>"), httpx.Response(200, json={"choices": []})):
        plan[:] = [bad]
        (response,), gaps, _ = ask(tries=2)
        assert (response.status_code, len(gaps)) == (200, 2)
    # But not if it asks for more time than there is, nor what another attempt does not mend.
    for reply, status in (
        (httpx.Response(429, headers={"retry-after": "30"}), 429),
        (httpx.Response(401), 503),
        (httpx.Response(429, json={"error": {"code": "insufficient_quota", "message": "pay"}}), 503),
        (httpx.Response(400, json={"error": {"message": "no"}}), 400),
    ):
        plan[:] = [reply]
        (response,), gaps, _ = ask(tries=3)
        assert (response.status_code, len(gaps)) == (status, 1), reply


def test_the_budget_of_a_super_elsewhere(models):
    """It holds from the start of the server; what broke off counts with the most that it may have cost."""
    prices = Prices(1.0, 100.0, "2026-11-30", cached=0.5)
    reply = {"choices": [{"message": {"content": "x"}}]}
    reply["usage"] = {"prompt_tokens": 40, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 20}}
    replies = [httpx.Response(200, json=reply)]
    super_ = upstream(lambda request: replies[-1], prices=prices, budget=0.0052, max_tokens=20)
    app, service, _ = chat_app(models, super_=super_, prices={"super": prices}, on_super_failure="fail")
    (response,) = posted(app, asked(**ALWAYS))
    about = response.json()["elang"]
    assert (about["cost"], about["currency"]) == (pytest.approx(0.00103), "USD")
    assert response.json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 20}
    assert super_.spending.spent == about["cost"]
    replies.append(httpx.Response(200, text="<html>"))
    assert posted(app, asked(**ALWAYS))[0].status_code == 503
    assert super_.spending.spent > 0.003
    replies.append(httpx.Response(500))
    before = super_.spending.spent
    assert posted(app, asked(**ALWAYS))[0].status_code == 503
    assert super_.spending.spent == before
    replies.append(replies[0])
    statuses = [posted(app, asked(HARD, **more))[0] for more in (ALWAYS, {})]
    assert [one.status_code for one in statuses] == [200, 429]
    error = statuses[1].json()["error"]
    assert (error["code"], statuses[1].headers["x-should-retry"]) == ("insufficient_quota", "false")
    assert super_.spending.spent < 0.0052
    assert "elang_budget_left 0.00" in service.metrics.page().body.decode()
    # By policy the Swift answers in its place.
    app, _, _ = chat_app(models, super_=super_, prices={"super": prices})
    about = posted(app, asked(HARD))[0].json()["elang"]
    assert (about["answered_by"], about["fallback"]) == ("swift", "budget")
    with pytest.raises(InputError, match=r"'budget' of openai:large@.* needs 'max_tokens'"):
        Upstream(Settings("large", "http://elsewhere/v1", budget=5.0, prices=prices), 5.0)


def test_a_super_elsewhere_that_refuses_or_breaks_off(models):
    def refuses(request):
        error = {"message": "too long for k3y", "code": "context_length_exceeded", "param": "messages, k3y"}
        return httpx.Response(400, json={"error": error})

    (response,) = posted(chat_app(models, super_=upstream(refuses, "k3y"))[0], asked(HARD))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert (error["message"], error["param"]) == ("The Super refuses this: too long for …", "messages, …")
    # As servers made with FastAPI say it.
    pinned = upstream(lambda request: httpx.Response(400, json={"detail": "pinned to k3y"}), "k3y")
    (response,) = posted(chat_app(models, super_=pinned)[0], asked(HARD))
    assert (response.status_code, response.json()["error"]["message"]) == (400, "The Super refuses this: pinned to …")

    def breaks(request):
        chunk = {"choices": [{"index": 0, "delta": {"content": "he"}, "finish_reason": None}]}
        return httpx.Response(200, text=f'data: {json.dumps(chunk)}\n\ndata: {{"error": {{"message": "no"}}}}\n\n')

    (response,) = posted(chat_app(models, super_=upstream(breaks))[0], asked(HARD, stream=True))
    first, last = events_of(response)
    assert first["choices"][0]["delta"]["content"] == "he"
    assert last["error"]["type"] == "server_error"


def chunk(text, **more):
    return (
        f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}, **more}]}, ensure_ascii=False)}\n\n"
    )


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("misdeed", ["hangs", "says nothing", "drips", "is endless", "breaks off", "sends no JSON"])
def test_limits_of_a_stream_hold_before_and_after_its_first_text(models, monkeypatch, misdeed, begun):
    """Until then the Swift answers for the Super, also where the Super has said who speaks; then the stream ends."""
    monkeypatch.setattr("elang.backends.openai.client._LONGEST", 2000)

    async def sent():
        role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
        yield f"data: {json.dumps(role)}\n\n".encode()
        if begun:
            yield chunk("he").encode()
        if misdeed == "hangs":
            raise aiohttp.SocketTimeoutError("late")
        while misdeed in ("says nothing", "drips", "is endless"):
            await asyncio.sleep(0 if misdeed == "is endless" else 0.02)
            yield {"drips": chunk("y" if begun else ""), "is endless": chunk("y" * begun) * 9}.get(
                misdeed, ": still here\n\n"
            ).encode()
        yield b"" if misdeed == "breaks off" else b"data: no JSON\n\n"

    super_ = upstream(lambda request: httpx.Response(200, content=sent()))
    super_._sender.timeout = 0.06
    start = time.monotonic()
    (response,) = posted(chat_app(models, super_=super_)[0], asked(HARD, stream=True))
    assert time.monotonic() - start < 5
    first, *_, last = events_of(response)
    reason = "timeout" if misdeed in ("hangs", "says nothing", "drips") else "failed"
    if begun:
        assert first["elang"]["answered_by"] == "super"
        assert ("time" in last["error"]["message"]) == (reason == "timeout")
    else:
        assert (first["elang"]["answered_by"], first["elang"]["fallback"], last) == ("swift", reason, "[DONE]")
    assert super_.waiting == 0


@pytest.mark.parametrize("ended", [True, False])
def test_a_key_in_pieces_of_a_stream(models, ended):
    """It is found over the pieces of a text or of a tool's arguments, and what only begins like it is sent."""
    key = "k3y-s3cret"
    call = {"tool_calls": [{"index": 0, "function": {"arguments": "k3y-s"}}]}
    rest = {"tool_calls": [{"index": 0, "function": {"arguments": "3cret!"}}]}
    tokens = [{"content": [{"token": token, "logprob": -0.1, "top_logprobs": []}]} for token in ("a k3", "y-s3cret")]
    sent = [
        chunk("a k3", logprobs=tokens[0]),
        chunk("y-s3cret b\u2028 k3y", logprobs=tokens[1]),
        *[f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n" for delta in (call, rest)],
        chunk("-s"),
        chunk("3", finish_reason="stop") if ended else chunk("3"),
        "data: [DONE]\n\n",
    ]
    super_ = upstream(lambda request: httpx.Response(200, text="".join(sent)), key)
    (response,) = posted(chat_app(models, super_=super_)[0], asked(HARD, stream=True, logprobs=True))
    *events, end = events_of(response)
    choices = [choice for event in events for choice in event["choices"]]
    assert end == "[DONE]"
    assert "".join(one["delta"].get("content") or "" for one in choices) == "a … b\u2028 k3y-s3"
    calls = [call for one in choices for call in one["delta"].get("tool_calls", [])]
    assert "".join(call["function"]["arguments"] for call in calls) == "…!"
    assert "s3cret" not in "".join(str(one["logprobs"]) for one in choices)


def test_settings_of_a_super_elsewhere_limit_its_answers(models):
    limits = []

    def handler(request):
        limits.append(json.loads(request.content).get("max_tokens"))
        return httpx.Response(200, json={"choices": [{"message": {"content": "x"}}]})

    super_ = upstream(handler)
    super_.settings = replace(super_.settings, max_tokens=9)
    app, _, _ = chat_app(models, super_=super_)
    posted(app, asked(HARD))
    posted(app, asked(HARD, max_tokens=5))
    posted(app, asked(HARD, max_tokens=50))
    assert limits == [9, 5, 9]


def test_a_super_elsewhere_sends_without_end(models, monkeypatch):
    monkeypatch.setattr("elang.backends.openai.client._LONGEST", 1000)
    reply = {"choices": [{"message": {"content": "x"}}], "more": "y" * 2000}
    for status in (200, 400):
        super_ = upstream(lambda request, status=status: httpx.Response(status, json=reply))
        (response,) = posted(chat_app(models, super_=super_)[0], asked(HARD))
        assert response.json()["elang"]["fallback"] == "failed"


def test_what_a_super_elsewhere_leaves_out_or_repeats(models, monkeypatch):
    """Pieces without a text or an index, impossible usages, and the key."""
    pieces = [
        {"choices": [{"delta": {"content": "my k3y"}}], "usage": "many"},
        {"choices": [{"index": 0, "content_filter_results": {}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": None, "finish_reason": "stop"}], "usage": {"prompt_tokens": "?"}},
    ]
    text = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces)
    app, _, _ = chat_app(models, super_=upstream(lambda request: httpx.Response(200, text=text), "k3y"))
    (response,) = posted(app, asked(HARD, stream=True, stream_options={"include_usage": True}))
    *events, last, end = events_of(response)
    assert [one["choices"][0]["delta"].get("content") for one in events] == ["my …", None, None]
    assert (events[-1]["choices"][0]["finish_reason"], end) == ("stop", "[DONE]")
    assert last["elang"]["usage"]["super"] is None

    reply = {"choices": [{"message": {"content": "my k3y"}}]}
    app, _, _ = chat_app(models, super_=upstream(lambda request: httpx.Response(200, json=reply), "k3y"))
    assert text_of(posted(app, asked(HARD))[0]) == "my …"
    monkeypatch.setenv("HTTP_PROXY", "ftp://proxy")
    with pytest.raises(InputError, match="proxy that the environment names"):
        Upstream(Settings("large", "http://elsewhere/v1"), 5.0)
    monkeypatch.setenv("HTTP_PROXY", "proxy:3128")
    assert proxy_of("http://elsewhere/v1") == "http://proxy:3128"
    assert proxy_of("https://elsewhere/v1") is None
    monkeypatch.setenv("NO_PROXY", "elsewhere")
    assert proxy_of("http://elsewhere/v1") is None


def test_a_ceiling_on_cost(models):
    """Nothing is spent above it: the Super's tokens are limited, or it is not asked."""
    limits = []

    def handler(request):
        body = json.loads(request.content)
        limits.append(body.get("max_tokens"))
        usage = {"prompt_tokens": 60, "completion_tokens": limits[-1] or 500}
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "length"}
        return httpx.Response(200, json={"choices": [choice], "usage": usage})

    app, service, _ = chat_app(
        models, super_=upstream(handler), prices={"swift": Prices(1.0, 1.0, ""), "super": Prices(10.0, 100.0, "")}
    )
    for ceiling, who, fallback in ((1.0, "super", None), (0.01, "super", None), (0.001, "swift", "cost")):
        (response,) = posted(app, asked(HARD, elang={"max_cost": ceiling}))
        about = response.json()["elang"]
        assert (about["answered_by"], about["fallback"]) == (who, fallback)
        assert 0 < about["cost"] <= ceiling
    assert limits[0] > limits[1] > 1
    (response,) = posted(app, asked(HARD, max_tokens=3, elang={"max_cost": 1.0}))
    assert limits[-1] == 3
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    (response,) = posted(app, asked(tools=tools, elang={"max_cost": 0.0001}))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "cost_ceiling")
    image = [{"type": "image_url", "image_url": {"url": "http://x"}}]
    body = asked(messages=[{"role": "user", "content": image}], elang={"max_cost": 1})
    assert posted(app, body)[0].json()["error"]["param"] == "elang.max_cost"
    for part in ({"type": "file", "file": {"file_id": "f"}}, {"type": "input_audio", "input_audio": {}}):
        body = asked(messages=[{"role": "user", "content": [part]}], elang={"max_cost": 1})
        assert posted(app, body)[0].json()["error"]["param"] == "elang.max_cost"
    # The word is no image, and what else is put into a prompt counts.
    assert text_of(posted(app, asked("an image", tools=tools, elang={"max_cost": 1}))[0])
    asked_of = len(limits)
    body = asked(EASY, documents=[{"text": "long " * 1000}], elang={"max_cost": 0.04})
    assert posted(app, body)[0].json()["error"]["code"] == "cost_ceiling"
    assert len(limits) == asked_of
    assert 'elang_cost_total{model="super"}' in service.metrics.page().body.decode()


# Pairs of labels.


@pytest.fixture(scope="module")
def labels(pair):
    return JointPredictor(str(pair["swift"]), str(pair["super"]), threshold="defer 30%", device="cpu")


def label_app(predictor, **wrong):
    service = Models(predictor, **wrong).service()
    chats = TextChats(service)
    return add_chat_routes(FastAPI(), chats, "pair", predictor.task, metrics=service.metrics, deadline=10)


def test_a_pair_of_labels_answers_with_their_names(labels):
    texts = some_texts(20)
    app = label_app(labels)
    expected = labels(texts)
    assert {one.answered_by for one in expected} == {"swift", "super"}
    for one, response in zip(expected, posted(app, *map(asked, texts)), strict=True):
        about = response.json()["elang"]
        assert (text_of(response), about["answered_by"]) == (one.label, one.answered_by)
        assert about["probability"] == pytest.approx(one.probability, abs=1e-5)
        assert about["score"] == pytest.approx(one.score, abs=1e-5)
        assert set(about["usage"]) == ({"swift", "super"} if one.answered_by == "super" else {"swift"})
    (stream,) = posted(app, asked(texts[0], stream=True))
    (event, done) = events_of(stream)
    assert (event["choices"][0]["delta"]["content"], done) == (expected[0].label, "[DONE]")
    # The last turn is what is answered; that others were not read is told.
    turns = [{"role": "user", "content": "bad"}, {"role": "assistant", "content": "bad"}]
    (response,) = posted(app, asked(messages=[*turns, {"role": "user", "content": texts[0]}]))
    assert (text_of(response), response.json()["elang"]["unread_turns"]) == (expected[0].label, 2)
    for always in ("swift", "super"):
        (response,) = posted(app, asked(texts[0], elang={"always": always}))
        assert response.json()["elang"]["answered_by"] == always
    (response,) = posted(app, asked(texts[0], elang={"threshold": "-inf"}))
    assert (response.json()["elang"]["answered_by"], response.json()["elang"]["deferred"]) == ("super", "threshold")


def test_what_a_pair_of_labels_refuses(labels):
    app = label_app(labels)
    for more, param in (
        ({"temperature": 0.5}, "temperature"),
        ({"n": 2}, "n"),
        ({"stop": "x"}, "stop"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{}]}, "tools"),
        ({"messages": [{"role": "user", "content": " "}]}, None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 2}]}, False),
    ):
        (response,) = posted(app, asked("good", **more))
        if param is False:
            # Parts of a text for a task of one field are one text.
            assert response.status_code == 200
            continue
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text
    (response,) = posted(label_app(labels, swift_takes=5), asked("good"))
    assert response.status_code == 200
    (response,) = posted(label_app(labels, swift_raises=OSError("gone")), asked("good"))
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["error"]["type"] == "server_error"


def test_any_backend_may_be_the_super_of_a_pair_of_labels(labels, monkeypatch):
    """One that answers by another scheme, in a thread, with probabilities where it has logits."""
    import torch

    class Own:
        def __init__(self, address, task):
            self.task = task

        def answer(self, examples):
            if any("odd" in texts for texts in examples.texts):
                raise InputError("odd is odd")
            prediction = torch.tensor([len(texts[0]) % 2 for texts in examples.texts])
            return Records(examples.id, prediction, key=examples.key)

    monkeypatch.setitem(SCHEMES, "own:*", Own)
    backend = BackendSuper("own:x", labels.task, 5.0)

    def ask(*texts):
        return asyncio.run(ask_backend(backend, Question(texts=list(texts), choices=None), 0.0))

    assert ask("a", "ab")["answers"] == [labels.label_names[1], labels.label_names[0]]
    assert "odd" in ask("odd")["error"]
    with pytest.raises(InputError, match="No backend of this version"):
        BackendSuper("none:x", labels.task, 5.0)


def test_a_super_elsewhere_that_hangs_takes_no_threads_of_others(labels, monkeypatch):
    ended = threading.Event()

    class Hangs:
        def __init__(self, address, task):
            self.task, self.seconds = task, None

        def limit_seconds(self, seconds):
            self.seconds = seconds

        def answer(self, examples):
            ended.wait(20)
            raise InputError("it hung")

    monkeypatch.setitem(SCHEMES, "own:*", Hangs)
    backend = BackendSuper("own:x", labels.task, 5.0)
    assert backend.backend.seconds == 5.0

    async def ask_many():
        asking = [ask_backend(backend, Question(texts=["good"], choices=None), 0.0) for _ in range(64)]
        waiting = [asyncio.ensure_future(one) for one in asking]
        await asyncio.sleep(0)
        await asyncio.wait_for(asyncio.to_thread(int), 5)
        ended.set()
        return await asyncio.gather(*waiting)

    assert {reply["error"] for reply in asyncio.run(ask_many())} == {"it hung"}


def test_options_that_cannot_be(pair, folders, fails, monkeypatch):
    swift, super_ = ("--swift_model", pair["swift"]), ("--super_model", pair["super"])
    chat = ("serve", "--api", "openai", "--swift_model", folders["swift"])
    fails(["serve", *super_, "--api", "openai"], "--swift_model")
    fails(["serve", *swift, *super_, "--model_name", "x"], "--api openai")
    fails(["serve", *swift, *super_, "--super_price", "[1, 2]"], "--api openai")
    fails([*chat, *super_, "--super_price", "[1, -2]"], "--super_price")
    fails([*chat, *super_, "--model_name", " "], "--model_name")
    fails([*chat, "--super_model", "http://localhost:1"], "openai:MODEL@URL")
    # They would have no effect.
    fails(["serve", *swift, *super_, "--api", "openai", "--super_price", "[1, 2]"], "writes texts")
    for address in ("openai:x@http://u:pw@h", "openai:x@http://h?k=pw"):
        assert "pw" not in fails([*chat, "--super_model", address], "password or a query")
    fails(["serve", "--swift_model", "openai:x@http://h", *super_, "--api", "openai", "--threshold", "1"], "runs here")
    fails(["serve", *swift, "--super_model", "openai:x@http://h", "--super_key_variable", "PATH"], "YAML")
    fails([*chat, *super_, "--key_variable", "NOT_SET_KEY"], "NOT_SET_KEY", "is not set")
    fails([*chat, *super_, "--super_key_variable", "PATH"], "openai:MODEL@URL")
    monkeypatch.setenv("SPACED_KEY", " a ")
    fails([*chat, "--super_model", "openai:x@http://h", "--super_key_variable", "SPACED_KEY"], "SPACED_KEY")
    wrong = [*chat, "--super_model", "openai:x@http://h", "--super_key_variable", "sk-secret"]
    assert "sk-secret" not in fails(wrong, "names of environment variables")


def test_a_swift_whose_score_diverged_is_told(models):
    model = models["nll_mean"]["swift"].runner.model
    parts = []
    writer = ChatWriter(model, ("nll_mean", 1.0), longest=None, budget=512)
    writer.model = model
    original = model.score_of
    model.score_of = lambda *args, **more: original(*args, **more) * math.nan
    try:
        writer.write([Chat((EASY,))], lambda place, part: parts.append(part) or set())
    finally:
        del model.score_of
    assert "not finite" in next(part for part in parts if part)["error"]
