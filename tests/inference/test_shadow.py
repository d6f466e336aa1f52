"""The shadow of a pair: what is drawn, asked and logged, within its budget, and what labels are taken by id."""

import asyncio
import json

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from elang import InputError, JointPredictor
from elang.backends.openai.settings import Prices
from elang.cli.watch_options import WatchOptions
from elang.evaluation.watch_log import read_log
from elang.inference.serving import shadow as shadows
from elang.inference.serving.schema import Limits
from elang.inference.serving.server import add_routes
from elang.inference.serving.shadow import Reply, Seen, Shadow, ShadowOptions
from elang.inference.serving.shadow_pair import Costs, about_pair
from elang.inference.serving.watched import watch_chats, watch_texts
from elang.locks import unlock_output
from inference.test_serve import Models, some_texts
from inference.test_serve_openai import EASY, HARD, asked, chat_app, folders, models  # noqa: F401 - fixtures

ABOUT = {"score": "max_softmax", "threshold": -0.9, "answers": "classes", "label_names": ["a", "b"]}


@pytest.fixture
def made(tmp_path):
    """Make a shadow; the log is free again for the next one."""

    def make(share=1.0, about=ABOUT, idle=lambda: True, **options):
        unlock_output(tmp_path / "log.jsonl")
        chosen = ShadowOptions(share, tmp_path / "log.jsonl", **options)
        return Shadow(chosen, about, same=str.__eq__, idle=idle, registry=CollectorRegistry())

    yield make
    unlock_output(tmp_path / "log.jsonl")


def seen(by="swift", ask=None, answer="a"):
    async def usual():
        return Reply("b")

    return Seen(0.5, by, by == "super", answer, "a private text", ask or usual)


async def answered(shadow, *inputs, ids=None):
    draw = shadow.draw(ids or [None] * len(inputs))
    names = shadow.saw(draw, inputs)
    shadow.release(draw)
    while shadow.pending or shadow._task:
        await asyncio.sleep(0.01)
    return names


def lines_of(shadow):
    return [json.loads(line) for line in shadow.options.log.read_text().splitlines()]


def test_both_answers_are_logged_and_no_text(made):
    shadow = made()
    names = asyncio.run(answered(shadow, seen(), seen("super"), ids=["mine", None]))
    assert names[0] == "mine"
    log = read_log(shadow.options.log)
    first, second = log.by_id["mine"], log.by_id[names[1]]
    assert (first.kept, first.swift, first.super_, first.differs) == (True, "a", "b", True)
    assert (second.kept, second.swift, second.super_, second.differs) == (False, None, "a", False)
    assert log.runs[0].counts == {"seen": 2, "deferred": 1, "fallbacks": 0, "unwatched": 0}
    assert "private" not in shadow.options.log.read_text()
    # A name stands for one input.
    assert asyncio.run(answered(shadow, seen(), ids=["mine"]))[0] != "mine"
    assert shadow.label([{"id": "mine", "label": "b"}, {"id": "unknown", "label": "b"}]) == 1
    assert read_log(shadow.options.log).by_id["mine"].label == "b"


@pytest.mark.parametrize("texts", [True, False])
def test_texts_are_logged_only_if_asked_for(made, texts):
    shadow = made(about={"score": "nll_mean", "threshold": 1.0, "answers": "texts"}, texts=texts)
    asyncio.run(answered(shadow, seen(answer="an answer")))
    text = shadow.options.log.read_text()
    assert ("private" in text) == ("an answer" in text) == texts
    assert '"differs":true' in text


def test_the_share_is_kept_and_the_draw_does_not_see_the_answer(made):
    shadow = made(share=0.25)
    # The queue is full at 256.
    assert len(shadow.draw([None] * 4000).ids) == 256
    assert shadow.counts["unwatched"] > 2000
    many = made(share=0.25, queue=10_000)
    assert 850 < len(many.draw([None] * 4000).ids) < 1150


def test_a_budget_holds_over_a_restart(made):
    shadow = made(budget=3)
    asyncio.run(answered(shadow, *(seen() for _ in range(5))))
    assert (shadow.counts["unwatched"], shadow.spent()) == (2, 3)
    # What a killed server has left of a line goes.
    with shadow.options.log.open("ab") as file:
        file.write(b'{"kind":"inp')
    again = made(budget=4)
    assert again.spent() == 3
    asyncio.run(answered(again, seen(), seen()))
    assert (again.counts["unwatched"], again.spent()) == (1, 4)
    assert len(read_log(again.options.log).runs) == 2
    # A deferred input costs nothing.
    free = made(budget=5)
    asyncio.run(answered(free, *(seen("super") for _ in range(9))))
    assert free.counts["unwatched"] > 0
    assert free.spent() == 4


def test_a_super_that_fails_is_asked_again(made, monkeypatch):
    monkeypatch.setattr(shadows, "_AGAIN", (0.0, 0.0))
    asked_ = []

    def failing(times, error):
        async def ask():
            asked_.append(1)
            if len(asked_) <= times:
                raise error
            return Reply("a")

        return ask

    shadow = made()
    asyncio.run(answered(shadow, seen(ask=failing(2, RuntimeError("its process died"))), ids=["u"]))
    asked_.clear()
    asyncio.run(answered(shadow, seen(ask=failing(9, RuntimeError("its process died"))), ids=["v"]))
    assert len(asked_) == 3
    asked_.clear()
    asyncio.run(answered(shadow, seen(ask=failing(9, InputError("too long"))), ids=["w"]))
    assert len(asked_) == 1
    known = read_log(shadow.options.log).by_id
    assert known["u"].differs is False
    assert (known["v"].failed, known["v"].differs) == ("RuntimeError", None)
    assert known["w"].failed == "refused: too long"
    assert shadow.pending == 0


def test_the_super_is_asked_only_while_it_is_idle(made):
    busy, asked_ = [True], []

    async def ask():
        asked_.append(busy[0])
        return Reply("a")

    shadow = made(idle=lambda: not busy[0])

    async def later():
        task = asyncio.ensure_future(answered(shadow, seen(ask=ask)))
        await asyncio.sleep(0.15)
        assert not asked_
        busy[0] = False
        await task

    asyncio.run(later())
    assert asked_ == [False]


def test_a_second_server_may_not_write_the_log(made, tmp_path):
    made()
    # Another process holds the lock; here a folder stands in the way.
    with pytest.raises(InputError, match="--shadow_log"):
        Shadow(ShadowOptions(1.0, tmp_path), ABOUT, same=str.__eq__, idle=bool, registry=CollectorRegistry())


def test_a_pair_of_labels_is_watched(pair, tmp_path):
    predictor = JointPredictor(str(pair["swift"]), str(pair["super"]), threshold="defer 30%", device="cpu")
    asking = Models(predictor)
    service, app, texts = asking.service(), FastAPI(), some_texts(40)
    service.shadow = watch_texts(app, service, ShadowOptions(1.0, tmp_path / "log.jsonl"))
    add_routes(app, service, lambda: True)

    async def talk():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            body = {"texts": texts, "ids": [f"x{i}" for i in range(40)]}
            answers = (await client.post("/predict", json=body)).json()["answers"]
            assert asking.asked["super"] == 1
            while service.shadow.shadow.pending:
                await asyncio.sleep(0.01)
            labels = [{"id": "x0", "label": predictor.label_names[0]}, {"id": "y", "swift": 1}]
            told = await client.post("/labels", json={"labels": labels})
            assert told.json() == {"labels": 2, "of_watched_inputs": 1}
            for wrong in (
                {"id": "x0", "label": "odd"},
                {"id": "x0"},
                {"id": "", "label": "bad"},
                {"id": "x0", "swift": 2},
            ):
                assert (await client.post("/labels", json={"labels": [wrong]})).status_code == 422
            assert (await client.post("/predict", json={"texts": ["good"], "ids": []})).status_code == 422
            # It is judged in a thread.
            while "elang_watch_verdict" not in (text := (await client.get("/metrics")).text):
                await asyncio.sleep(0.05)
            return answers, text

    answers, metrics = asyncio.run(talk())
    assert [answer["id"] for answer in answers] == [f"x{i}" for i in range(40)]
    supers = predictor.ask_super(predictor.rows(texts))
    log = read_log(tmp_path / "log.jsonl").by_id
    for i, (answer, said) in enumerate(zip(answers, supers, strict=True)):
        one = log[f"x{i}"]
        assert one.kept == (answer["answered_by"] == "swift")
        assert one.super_ == said
        assert one.differs == (one.kept and answer["label"] != said)
        assert one.score == answer["score"]
    assert 'elang_shadow_total{outcome="answered"}' in metrics
    assert "elang_watch_verdict 0.0" in metrics
    unlock_output(tmp_path / "log.jsonl")


@pytest.mark.parametrize("score", ["prompt_router", "nll_mean"])
def test_chats_are_watched(models, tmp_path, score):  # noqa: F811 - the fixture
    app, service, _ = chat_app(models, score, limits=Limits(deadline=20))
    service.shadow = watch_chats(app.app, service, ShadowOptions(1.0, tmp_path / "log.jsonl", texts=True))
    bodies = [asked(EASY), asked(HARD), asked(EASY, stream=True), asked(EASY, elang={"always": "swift"})]

    async def talk():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as client:
            replies = [await client.post("/v1/chat/completions", json=body) for body in bodies]
            while service.shadow.shadow.pending:
                await asyncio.sleep(0.01)
            return replies

    replies = asyncio.run(talk())
    assert all(reply.status_code == 200 for reply in replies)
    log = read_log(tmp_path / "log.jsonl")
    ids = [reply.json()["id"].removeprefix("chatcmpl-") for reply in replies[:2]]
    whole = [log.by_id[name] for name in ids]
    assert len(log.by_id) == 3
    for one, reply in zip(whole, replies, strict=False):
        assert one.kept == (reply.json()["elang"]["answered_by"] == "swift")
        assert (one.swift if one.kept else one.super_) == reply.json()["choices"][0]["message"]["content"]
        assert one.differs == (one.kept and one.swift.strip() != one.super_.strip())
    if score == "prompt_router":
        assert [one.kept for one in whole] == [True, False]
    unlock_output(tmp_path / "log.jsonl")


def test_what_cannot_be_watched(fails):
    for options, says in (
        ({"shadow": 2}, "--shadow must be above 0"),
        ({"shadow_budget": 1.0}, "for --shadow"),
        ({"shadow": 0.1, "shadow_budget": -1.0}, "--shadow_budget must be"),
    ):
        with pytest.raises(InputError, match=says):
            WatchOptions(**options)
    with pytest.raises(InputError, match="--super_price"):
        Costs("money", {})
    with pytest.raises(InputError, match="runs here"):
        Costs("flops", {})
    assert Costs("money", {"super": Prices(1.0, 2.0, "")}).of(lambda: 10**6, lambda: 10**6) == 3
    fails(["serve", "--shadow", "0.1", "--super_model", "x"], "--swift_model")


def test_a_regression_is_not_watched():
    class Kind:
        chooses = generates = False

    class Task:
        kind = Kind

    class Predictor:
        task = Task

    with pytest.raises(InputError, match="regression"):
        about_pair(Predictor)
