"""Models behind an API of OpenAI's form: what is asked, what is made of the replies, and what becomes of failures."""

import json
import math
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import yaml

import elang.backends.retrying
from backends.openai_server import KEY, Api, error_of
from elang import InputError, JointPredictor
from elang.backends.loading.load import load_model, open_backend
from elang.backends.openai import journal as journal_module
from elang.backends.openai.journal import Journal
from elang.backends.openai.labels import label_logits, match_label, text_scores
from elang.backends.openai.replies import Reply
from elang.backends.openai.settings import Settings, Usage
from elang.data.examples import Examples
from elang.method.scores import SEQUENCE_SCORES
from elang.notices import forget_notices, notices
from elang.tasks.sampling import Sampling
from elang.tasks.text_task import TextTask

TASK = TextTask(["bad", "good"], prompt="review: {text}", answers=["bad", "good"])
PRICES = {"input": 1.0, "cached": 0.5, "output": 4.0, "date": "2026-11-01"}


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(elang.backends.retrying, "_FIRST_WAIT", 0.01)
    monkeypatch.setenv("A_KEY", KEY)
    forget_notices()
    made = Api()
    yield made
    made.close()


def write_settings(folder, server, /, name="super.yaml", **more):
    values = {"model": f"openai:big@{server.url}", "key": "A_KEY", "concurrent": 2, **more}
    (folder / name).write_text(yaml.safe_dump(values), "utf-8")
    return str(folder / name)


def examples_of(texts):
    return Examples.of([(text,) for text in texts], torch.full((len(texts),), -1), source="validation")


def kinds():
    return {one["kind"]: one["text"] for one in notices()}


TEXTS = [f"{'a' * number} film number {number}" for number in range(12)]


def answers_to(texts):
    return [Api.answer(f"review: {text}") for text in texts]


def labels_of(records):
    return [TASK.label_names[place] if place >= 0 else None for place in records.prediction.tolist()]


def test_what_is_sent(api, tmp_path, monkeypatch):
    path = write_settings(
        tmp_path,
        api,
        organization="org-1",
        project="p-2",
        headers={"X-Title": "elang"},
        body={"seed": 3, "temperature": None},
        max_tokens=7,
    )
    records = open_backend(path, TASK).answer(examples_of(TEXTS))
    assert labels_of(records) == answers_to(TEXTS)
    _, where, headers, body = api.seen[0]
    headers = {name.lower(): value for name, value in headers.items()}
    assert where == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert (headers["openai-organization"], headers["openai-project"], headers["x-title"]) == ("org-1", "p-2", "elang")
    system = "Answer with exactly one of these, and nothing else:\nbad\ngood"
    # The order of requests is that of the examples, but for those that are sent together.
    messages = [{"role": "system", "content": system}, {"role": "user", "content": api.question(body)}]
    assert body == {"model": "big", "max_tokens": 7, "seed": 3, "messages": messages}
    assert {api.question(one[3]) for one in api.seen} == {f"review: {text}" for text in TEXTS}
    assert "label-words" in kinds()


def test_a_key_in_another_header_or_none(api, tmp_path):
    path = write_settings(tmp_path, api, key_header="api-key")
    open_backend(path, TASK).answer(examples_of(TEXTS[:1]))
    assert api.seen[0][2]["api-key"] == KEY
    open_backend(f"openai:big@{api.url}", TASK).answer(examples_of(TEXTS[:1]))
    assert "authorization" not in {name.lower() for name in api.seen[1][2]}


def test_examples_and_a_chat_are_turns(api, tmp_path):
    task = TextTask(
        ["0", "1"], prompt="T: {text}", answers=["no", "yes"], label_words="chat", system="S", examples=["T: x", "yes"]
    )
    api.write = lambda body: " Yes.\n"
    assert open_backend(f"openai:big@{api.url}", task).answer(examples_of(["y"])).prediction.tolist() == [1]
    turns = [(turn["role"], turn["content"]) for turn in api.seen[0][3]["messages"]]
    assert turns == [("system", "S"), ("user", "T: x"), ("assistant", "yes"), ("user", "T: y")]
    assert "label-words" not in kinds()


def test_completions(api, tmp_path):
    task = TextTask(["0", "1"], prompt="T: {text}\nA: ", answers=["no", "yes"], examples=["T: x\nA: ", "yes"])
    api.write = lambda body: " no"
    path = write_settings(tmp_path, api, api="completions")
    assert open_backend(path, task).answer(examples_of(["y"])).prediction.tolist() == [0]
    _, where, _, body = api.seen[0]
    assert where == "/v1/completions"
    assert body["prompt"] == "T: x\nA: yes\n\nT: y\nA:"
    assert body["stop"] == ["\n\nT:"]
    with pytest.raises(InputError, match="are for 'api: chat'"):
        open_backend(path, TextTask(["0", "1"], answers=["no", "yes"], label_words="chat"))


@pytest.mark.parametrize(
    ("how", "field", "reply"),
    [
        ("json_schema", "response_format", '{"answer": "good"}'),
        ("choice", "structured_outputs", "good"),
        ("guided_choice", "guided_choice", "good"),
    ],
)
def test_structured_answers(api, tmp_path, how, field, reply):
    api.write = lambda body: reply
    backend = open_backend(write_settings(tmp_path, api, structured=how), TASK)
    assert backend.answer(examples_of(["x"])).prediction.tolist() == [1]
    assert json.dumps(["bad", "good"]) in json.dumps(api.seen[0][3][field])
    # A server that does not know the field ignores it.
    assert "free-answers" not in kinds()
    api.write = lambda body: "good, I think" if "y" in api.question(body) else "good" if reply != "good" else "Good"
    assert backend.answer(examples_of(["y", "z"])).prediction.tolist() == [1, 1]
    told = kinds()["free-answers"]
    assert told.startswith("2 of 2 answers of")
    assert f"structured: {how}' asks for (first: 'good, I think')" in told
    assert ("set 'choice'" in told) == (how == "guided_choice")


@pytest.mark.parametrize(
    ("text", "answers", "place"),
    [
        ("good", ["bad", "good"], 1),
        (" **Good**.\n", ["bad", "good"], 1),
        ("The answer is good", ["bad", "good"], 1),
        ("not entailment", ["entailment", "not entailment"], 1),
        ("It is entailment, not 'not entailment'", ["entailment", "not entailment"], -1),
        ("goodness", ["bad", "good"], -1),
        ("good or bad", ["bad", "good"], -1),
        ("", ["bad", "good"], -1),
        ("1", ["0", "1", "10"], 1),
        ("10", ["0", "1", "10"], 2),
        ("A", ["a", "A"], 1),
        ("B", ["a", "b", "B"], 2),
        ("\u00c4rger", ["\u00e4rger", "freude"], 0),
        ("C++", ["C", "C++"], 1),
        ("I said C++ here", ["C", "C++"], 1),
    ],
)
def test_the_label_that_a_text_means(text, answers, place):
    assert match_label(text, answers) == place


def test_a_regression(api, tmp_path):
    task = TextTask(["score"], "regression", prompt="{text}", answers=["0.5", "1", "2"])
    api.write = lambda body: {"one": " 1.25 ", "two": "none"}[api.question(body)]
    records = open_backend(f"openai:big@{api.url}", task).answer(examples_of(["one", "two"]))
    assert records.prediction.tolist() == [1.25, 0.5]
    assert "1 without one of the labels" in kinds()["no-answer"]
    assert "the lowest value" in kinds()["no-answer"]


def test_no_answer_is_lost_or_doubled_by_a_hostile_server(api, tmp_path, monkeypatch):
    """Failures that may pass are tried again and named; what is no answer counts as wrong, and is named, too."""
    api.plan = [
        (429, error_of("rate_limit_exceeded"), {"retry-after": "0.05"}),
        (429, error_of("rate_limit_exceeded")),
        (500, b"oops"),
        (503, error_of("overloaded", f"the key was {KEY}")),
        *("hang", "half", "endless", "no json", "not utf-8", "deep", "list", "empty", "error", "broken"),
        *("other model", "refusal", "filter", "length", "chatter", "surrogate", "null", "tool"),
        (400, error_of("context_length_exceeded", "This model's maximum context length is 8 tokens")),
    ]
    path = write_settings(tmp_path, api, concurrent=3, timeout=0.5, tries=18)
    monkeypatch.setattr("elang.backends.openai.client._LONGEST", 1 << 16)
    backend = open_backend(path, TASK)
    backend.keep_answers(tmp_path / "journal.jsonl")
    records = backend.answer(examples_of(TEXTS))
    right = answers_to(TEXTS)
    wrong = [label for label, expected in zip(labels_of(records), right, strict=True) if label != expected]
    assert wrong == [None] * 8
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 1 + len(TEXTS)
    said = kinds()
    assert "2 refused an answer" in said["no-answer"]
    assert "1 too long for the model" in said["no-answer"]
    assert "3 without one of the labels" in said["no-answer"]
    assert "1 called a tool" in said["no-answer"]
    assert "1 without any text" in said["no-answer"]
    assert "1 of 12 answers" in said["cut-answers"]
    assert "'cheap-model' (1 answer)" in said["another-model"]
    before = len(api.seen)
    backend.answer(examples_of(TEXTS))
    assert len(api.seen) == before


@pytest.mark.parametrize(
    ("misdeed", "words"),
    [
        ("null", "1 without any text"),
        ("charged", "1 without any text"),
        ("tool", "1 called a tool"),
        ("thought", "1 thought and gave no answer"),
        ("cut", "1 reached the limit before an answer"),
        ("refusal", "1 refused an answer"),
    ],
)
def test_a_reply_without_a_text_is_counted_once(api, tmp_path, misdeed, words):
    """It was charged, and so would be another one; a run that continues has it, too, and texts are empty."""
    path, journal = write_settings(tmp_path, api, prices=PRICES, concurrent=1), tmp_path / "j.jsonl"
    texts = TextTask([], "sequence", segments=[], qualities=["exact_text"], prompt="review: {text}")
    for task in (TASK, texts):
        forget_notices()
        api.seen.clear()
        api.plan = [misdeed]
        backend = open_backend(path, task)
        backend.keep_answers(journal)
        records = backend.answer(examples_of(TEXTS[:3]))
        assert len(api.seen) == 3
        assert records.price.gt(0).all()
        assert [text == "" for text in records.texts or ["", "x", "x"]] == [True, False, False]
        assert task is texts or labels_of(records) == [None, *answers_to(TEXTS[1:3])]
        assert words in kinds()["no-answer"]
        assert ("cut-answers" in kinds()) == (misdeed in ("thought", "cut"))
        again = open_backend(path, task)
        again.keep_answers(journal)
        forget_notices()
        again.answer(examples_of(TEXTS[:3]))
        assert len(api.seen) == 3
        assert words in kinds()["no-answer"]


def test_a_text_in_parts_is_one(api, tmp_path):
    api.plan = ["parts"]
    assert labels_of(open_backend(write_settings(tmp_path, api), TASK).answer(examples_of(["x"]))) == ["good"]


def test_what_was_tried_again_is_named(api, tmp_path, recwarn):
    api.plan = [(500, b"oops"), (429, error_of("x"), {"retry-after": "0"}), "no json", "empty", "half", "endless"]
    api.plan += ["error", "broken"]
    open_backend(write_settings(tmp_path, api, concurrent=1, tries=9), TASK).answer(examples_of(TEXTS))
    said = next(str(one.message) for one in recwarn if "asked again" in str(one.message))
    for reason in ("500", "429", "the reply is no JSON", "the reply has no choices", "RemoteProtocolError", "502"):
        assert f"{reason} (1 time)" in said
    assert "the reply has more than 16 MB (1 time)" in said
    assert "the answer broke off (1 time)" in said
    # They say nothing about the result.
    assert "asked-again" not in kinds()


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((401, error_of("invalid_api_key", f"wrong key: {KEY}")), ["refuses the key (401)", "set A_KEY"]),
        ((404, error_of("model_not_found", "no model 'big'")), ["no model 'big'", "/v1/chat/completions"]),
        ((400, error_of("bad", f"no field 'seed', {KEY}")), ["refuses a request (400: no field 'seed'"]),
        ((400, {"detail": "pinned to 'small'"}), ["refuses a request (400: pinned to 'small')"]),
        ((429, error_of("insufficient_quota")), ["no more credit"]),
        ((307, b"", {"location": "http://127.0.0.1:9/"}), ["(307"]),
    ],
)
def test_what_no_further_try_helps(api, tmp_path, reply, words):
    api.plan = [reply]
    with pytest.raises(InputError) as raised:
        open_backend(write_settings(tmp_path, api, concurrent=1), TASK).answer(examples_of(TEXTS))
    assert len(api.seen) == 1
    for word in words:
        assert word in str(raised.value)
    assert KEY not in str(raised.value)


def test_a_server_that_does_not_come_back(api, tmp_path):
    """What was under way when another request failed is kept, and not asked again."""
    api.plan = [*["fine"] * 4, *[(500, b"oops")] * 6]
    backend = open_backend(write_settings(tmp_path, api, tries=3), TASK)
    journal = tmp_path / "journal.jsonl"
    backend.keep_answers(journal)
    with pytest.raises(InputError, match=r"did not answer in 3 tries \(500: oops\).*kept in '.*journal.jsonl'"):
        backend.answer(examples_of(TEXTS))
    kept = len(journal.read_text().splitlines()) - 1
    assert kept >= 4
    assert kept == sum(api.asked.values())
    api.plan = []
    assert labels_of(backend.answer(examples_of(TEXTS))) == answers_to(TEXTS)
    assert api.asked == Counter(f"review: {text}" for text in TEXTS)
    with pytest.raises(InputError, match="did not answer in 8 tries"):
        open_backend("openai:big@http://127.0.0.1:9", TASK).answer(examples_of(["x"]))


def test_a_deadline(api, tmp_path):
    api.plan = [(429, error_of("x"), {"retry-after": "30"})] * 9
    start = time.monotonic()
    with pytest.raises(InputError, match="did not answer"):
        open_backend(write_settings(tmp_path, api, deadline=5), TASK).answer(examples_of(["x"]))
    assert time.monotonic() - start < 4
    assert len(api.seen) == 1


def test_a_pace(api, tmp_path):
    """Requests are spaced evenly, by their number or their tokens, however many may be sent at a time."""
    for limit in ({"requests_per_minute": 600}, {"tokens_per_minute": 60 * 10 * 300}):
        api.seen.clear()
        backend = open_backend(write_settings(tmp_path, api, concurrent=8, max_tokens=200, **limit), TASK)
        start = time.monotonic()
        backend.answer(examples_of(TEXTS[:6]))
        assert time.monotonic() - start > 0.4
        times = sorted(one[0] for one in api.seen)
        assert all(b - a > 0.03 for a, b in pairwise(times))


def test_many_at_a_time(api, tmp_path):
    api.write = lambda body: time.sleep(0.05) or "good"
    open_backend(write_settings(tmp_path, api, concurrent=4), TASK).answer(examples_of(TEXTS))
    assert 1 < api.most <= 4


def test_equal_texts_are_asked_once(api, tmp_path):
    records = open_backend(write_settings(tmp_path, api), TASK).answer(examples_of(["x", "yy", "x", "x"]))
    assert labels_of(records) == answers_to(["x", "yy", "x", "x"])
    assert len(api.seen) == 2


def test_what_answers_took(api, tmp_path):
    records = open_backend(write_settings(tmp_path, api, prices=PRICES), TASK).answer(examples_of(TEXTS))
    prompts = [len(f"review: {text}".split()) for text in TEXTS]
    assert records.tokens.tolist() == prompts
    assert records.cached.tolist() == [count // 2 for count in prompts]
    assert records.steps.tolist() == [2] * 12
    price = [((count - count // 2) * 1.0 + count // 2 * 0.5 + 2 * 4.0) / 1e6 for count in prompts]
    assert records.price.tolist() == pytest.approx(price, rel=1e-12)
    api.plan = ["no usage"]
    one_at_a_time = write_settings(tmp_path, api, prices=PRICES, concurrent=1)
    some = open_backend(one_at_a_time, TASK).answer(examples_of(TEXTS[:3]))
    assert some.tokens is some.cached is None
    assert some.price.isnan().tolist() == [True, False, False]
    assert "1 answer" in kinds()["no-usage"]
    # What the server refuses to read costs nothing, and the other prices stay.
    forget_notices()
    api.plan = [(400, error_of("context_length_exceeded")), (400, error_of("content_filter"))]
    some = open_backend(one_at_a_time, TASK).answer(examples_of(TEXTS[:3]))
    assert (some.price[:2].tolist(), some.tokens[:2].tolist()) == ([0, 0], [0, 0])
    assert some.price[2] > 0
    assert "no-usage" not in kinds()


def test_a_budget_is_not_passed(api, tmp_path):
    """It stops before it, keeps what it has, and what broke off counts with its estimate."""
    texts = [f"{'x' * 40} {number}" for number in range(200)]
    # A prompt takes 3 of its bytes' tokens and an answer 2 of the 12 that are held for it.
    one = (3 * 1.0 - 1 * 0.5 + 2 * 4.0) / 1e6
    for budget in (40 * one, 90 * one):
        api.seen.clear()
        path = write_settings(tmp_path, api, prices=PRICES, budget=budget, concurrent=8)
        backend = open_backend(path, TASK)
        backend.keep_answers(tmp_path / f"{budget}.jsonl")
        with pytest.raises(InputError, match=r"The budget of .* USD .*Raise 'budget'. The answers so far are kept"):
            backend.answer(examples_of(texts))
        spent = len(api.seen) * one
        assert backend.spending.spent == pytest.approx(spent)
        assert budget - 8 * one * 20 < spent <= budget
        # A run that goes on has what is left of it.
        again = open_backend(path, TASK)
        again.keep_answers(tmp_path / f"{budget}.jsonl")
        with pytest.raises(InputError, match="The budget of"):
            again.answer(examples_of(texts))
        assert again.spending.spent == pytest.approx(len(api.seen) * one)
        assert len(api.seen) * one <= budget
    with_losses = open_backend(write_settings(tmp_path, api, prices=PRICES, budget=1.0, concurrent=1), TASK)
    api.plan = ["half", "half", (500, b"")]
    with_losses.answer(examples_of(texts[:1]))
    # An answer of 12 tokens is held at 4 each, and a prompt's bytes.
    assert with_losses.spending.spent > 2 * 12 * 4e-6 + one
    assert with_losses.spending.spent < 4 * (12 * 4e-6 + 400e-6)


WRITTEN = TextTask([], "sequence", segments=[], qualities=["exact_text"], prompt="{text}")


def test_sampled_texts_are_asked_for_and_told(api, tmp_path):
    """By the option, or by the settings; the records say how they were drawn."""
    how = Sampling(0.7, 0.9, seed=3)
    backend = open_backend(write_settings(tmp_path, api), WRITTEN)
    backend.choose(how)
    backend.answer(examples_of(["x"]))
    body = api.seen[-1][3]
    assert (body["temperature"], body["top_p"], body["seed"]) == (0.7, 0.9, 3)
    assert backend.describe()["sampling"] == how.plain()
    same = open_backend(write_settings(tmp_path, api, body={"top_k": 5, "seed": 3}), WRITTEN)
    same.choose(replace(how, top_k=5))
    assert same.describe()["sampling"] == replace(how, top_k=5).plain()
    own = open_backend(write_settings(tmp_path, api, body={"temperature": 0.5}), WRITTEN)
    assert own.describe()["sampling"] == Sampling(0.5).plain()
    assert "sampling" not in open_backend(write_settings(tmp_path, api, body={"temperature": None}), WRITTEN).describe()


@pytest.mark.parametrize(
    ("task", "body", "options", "words"),
    [
        (WRITTEN, {}, {"sampling": Sampling(top_k=5)}, "has no top_k"),
        (WRITTEN, {"temperature": 0.2}, {"sampling": Sampling(0.7)}, "'body' in the settings"),
        (TASK, {}, {"sampling": Sampling()}, "Leave sampling out"),
        (WRITTEN, {}, {"sampling": None, "num_beams": 4}, "has no beams"),
        (WRITTEN, {}, {"sampling": None, "asked_scores": ["p_true"]}, "has no score 'p_true'"),
    ],
)
def test_what_the_api_cannot_choose_texts_by_is_refused(api, tmp_path, task, body, options, words):
    backend = open_backend(write_settings(tmp_path, api, body=body), task)
    with pytest.raises(InputError, match=re.escape(words)):
        backend.choose(**options)
    backend.choose(None, 1, [])
    backend.answer(examples_of(["x"]))


def test_progress_has_the_money(api, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("elang.terminal._EVERY", 0.0)
    monkeypatch.setattr("elang.terminal._telling", True)
    open_backend(write_settings(tmp_path, api, prices=PRICES, concurrent=1), TASK).answer(examples_of(TEXTS))
    lines = [line for line in capfd.readouterr().err.splitlines() if "USD" in line]
    assert any(re.search(r"[\d.e-]+ USD spent, about [\d.e-]+ to come; \d+ of 12 inputs", line) for line in lines)


def test_label_probabilities():
    answers = ["positive", "negative", "neutral"]
    tokens = [
        ("ne", math.log(0.6), [("ne", math.log(0.6)), (" pos", math.log(0.3))]),
        ("gative", math.log(0.75), [("gative", math.log(0.75)), ("utral", math.log(0.2))]),
    ]
    values = [math.exp(value) for value in label_logits(tokens, answers, 1)]
    assert values == pytest.approx([0.3, 0.45, 0.12])
    # Both go on alike: they share; and the label has at least the largest.
    alike = label_logits([("n", 0.0, [])], ["na", "nb"], 1)
    assert alike[0] == alike[1] == pytest.approx(math.log(0.5))
    # What is not shown gets what is left, at most the least that is shown.
    values = label_logits([("a", math.log(0.5), [("a", math.log(0.5)), ("b", math.log(0.1))])], ["a", "b", "c"], 0)
    assert math.exp(values[2]) == pytest.approx(0.1)
    assert math.exp(label_logits([("no", -0.1, [])], ["no", "not"], 0)[0]) == pytest.approx(math.exp(-0.1))


def test_thoughts_are_no_part_of_an_answers_tokens():
    """Some servers cut them off the text, and give their log-probabilities all the same."""
    for tokens, kept in (
        (["<think>", "good?", "</think>", "\n\n", "go", "od", "<end>"], ["go", "od", "<end>"]),
        ([" ", "go", "od"], [" ", "go", "od"]),
        (["a go", "od"], None),
    ):
        content = [{"token": token, "logprob": -0.5, "top_logprobs": []} for token in tokens]
        choice = {"message": {"content": "good"}, "logprobs": {"content": content}}
        found = Reply.parse({"choices": [choice]}).tokens
        assert kept == (found and [token for token, *_ in found])


def test_scores_of_texts():
    tokens = [("a", -0.1, [("a", -0.1), ("b", -2.5)]), ("c", -1.2, [("d", -0.5), ("c", -1.2)])]
    scores = dict(zip(SEQUENCE_SCORES, text_scores(tokens).tolist(), strict=True))
    assert scores["nll_mean"] == pytest.approx(0.65)
    assert scores["nll_sum"] == pytest.approx(1.3)
    assert scores["nll_q0"] == pytest.approx(1.2)
    assert scores["max_softmax_q0"] == pytest.approx(-math.exp(-0.5))
    assert scores["margin_sum"] == pytest.approx(math.exp(-2.5) - math.exp(-0.1) + math.exp(-1.2) - math.exp(-0.5))
    assert math.isnan(scores["entropy_mean"])
    assert math.isnan(scores["free_energy_q50"])
    assert math.isnan(text_scores([("a", -0.1, [("a", -0.1)])])[-1])


@pytest.mark.parametrize(
    "values",
    [
        None,
        {},
        {"content": [{"token": 3, "logprob": -1}]},
        {"content": [{"token": "a"}]},
        {"content": [{"token": "a", "logprob": -(10**400)}]},
    ],
)
def test_probabilities_that_are_none(values):
    choice = {"message": {"content": "x"}, "logprobs": values}
    assert Reply.parse({"choices": [choice]}).tokens is None


def test_a_usage_without_the_prompt_is_none():
    """A budget would never end if it counted nothing."""
    choices = [{"message": {"content": "x"}}]
    for usage in ({}, {"total_tokens": 9}, {"prompt_tokens": None}, {"prompt_tokens": -1, "completion_tokens": 1}):
        assert Reply.parse({"choices": choices, "usage": usage}).usage is None
    assert Reply.parse({"choices": choices, "usage": {"prompt_tokens": 7}}).usage == Usage(7, 0, 0)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("openai:", ["no address of a model", "openai:MODEL@URL"]),
        ("openai:http://127.0.0.1:8000", ["no address of a model"]),
        ("openai:m@http://u:secret@host/v1", ["has a password", "://…@"]),
        ("openai:m@http://host/v1?key=secret", ["a query"]),
        ("openai:m@http://host:99999/v1", ["no address of a model"]),
        ("openai:m@http://ho st/v1", ["no address of a model"]),
        ("nothing.yaml", ["'nothing.yaml'", "No such file"]),
    ],
)
def test_addresses_that_are_none(address, words):
    with pytest.raises(InputError) as raised:
        Settings.of(address)
    for word in words:
        assert word in str(raised.value)
    assert "secret" not in str(raised.value)


def test_addresses():
    assert Settings.of("openai:gpt-x").key == "OPENAI_API_KEY"
    assert Settings.of("OpenAI:a/b@c:8b@http://[::1]:8000").address == "openai:a/b@c:8b@http://[::1]:8000/v1"
    assert Settings.of("openai:m@https://h/x/").url == "https://h/x"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"key": KEY}, "no name of an environment variable"),
        ({"keys": "A"}, "did you mean 'key'"),
        ({"budget": 1.0}, "needs 'prices'"),
        ({"budget": -1}, "'budget' is -1"),
        ({"prices": {"input": 1, "output": 2}}, "'prices.date'"),
        ({"prices": {**PRICES, "date": "May"}}, "a day is needed"),
        ({"prices": {**PRICES, "outputs": 2}}, "'prices.outputs'"),
        ({"headers": {"Authorization": KEY}}, "'key_header'"),
        ({"body": {"stream": True}}, "'stream'"),
        ({"api": "completions", "structured": "json_schema"}, "is of 'api: chat'"),
        ({"api": "other"}, "one of chat, completions"),
        ({"concurrent": 0}, "'concurrent' is 0"),
        ({"model": "big"}, "no address of a model"),
    ],
)
def test_settings_that_cannot_be(api, tmp_path, more, words):
    with pytest.raises(InputError) as raised:
        Settings.of(write_settings(tmp_path, api, **more))
    assert words in str(raised.value)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("key", [None, "", "two\nlines", "schlüssel", " "])
def test_a_key_that_cannot_be_sent(api, tmp_path, monkeypatch, key):
    monkeypatch.delenv("A_KEY")
    if key is not None:
        monkeypatch.setenv("A_KEY", key)
    with pytest.raises(InputError, match="environment variable A_KEY") as raised:
        open_backend(write_settings(tmp_path, api), TASK)
    assert key is None or not key.strip() or key not in str(raised.value)


def test_a_damaged_journal(api, tmp_path):
    backend, path = open_backend(write_settings(tmp_path, api), TASK), tmp_path / "j.jsonl"
    backend.keep_answers(path)
    backend.answer(examples_of(TEXTS))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"request": "x", "re')
    backend.answer(examples_of(TEXTS))
    assert path.read_bytes() == whole
    for line in (b"{}", b'{"request": "x", "reply": {"text": 3}}', b'{"request": "x", "reply": {"no": "field"}}'):
        path.write_bytes(whole + line + b"\n")
        with pytest.raises(InputError, match=r"j.jsonl' is damaged .* Delete it"):
            backend.answer(examples_of(TEXTS))
    path.write_bytes(b'{"format": 2}\n')
    with pytest.raises(InputError, match="is damaged"):
        backend.answer(examples_of(TEXTS))


def test_a_journal_is_read_once(tmp_path):
    """Also by a run that opens it for each window; what another run has written meanwhile is read, too."""
    path, reply = tmp_path / "j.jsonl", Reply("a", usage=Usage(2, 1, 1))
    one, other = Journal(path), Journal(path)
    for number, journal in enumerate((one, one, other, one)):
        with journal:
            assert len(journal) == number
            journal.keep(str(number), reply)
    with one:
        places = dict(one._places)
        assert [one[str(number)] for number in range(4)] == [reply] * 4
    lines = []
    real = journal_module.parse_object
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "parse_object", lambda line: lines.append(line) or real(line))
        with one:
            assert one._places == places
        assert not lines
        with Journal(path) as fresh:
            assert len(lines) == 5
            assert fresh.kept == Usage(8, 4, 4)
    one.delete()
    with one:
        assert len(one) == 0
    path.write_text('{"format": 1}\n')
    with one:
        assert "0" not in one


def test_batch_files(api, tmp_path, monkeypatch):
    """What fails goes into another file; what is waited for is not sent again by the next run."""
    monkeypatch.setattr("elang.backends.openai.batch_files._FIRST_LOOK", 0.01)
    monkeypatch.setattr("elang.backends.openai.batch_files._MOST", 8)
    path, journal = write_settings(tmp_path, api, batch=True, prices=PRICES), tmp_path / "j.jsonl"
    backend = open_backend(path, TASK)
    backend.keep_answers(journal)
    # Of the first batch one request fails, one is refused; other lines are nobody's, or no JSON.
    api.plan = [(500, error_of("x")), "refusal", None, "empty"]
    api.lines = ['{"custom_id": "unknown", "response": {"status_code": 200, "body": {}}}', "no json", "[1]"]
    records = backend.answer(examples_of(TEXTS))
    right = answers_to(TEXTS)
    assert [pair for pair in zip(labels_of(records), right, strict=True) if pair[0] != pair[1]] == [(None, right[1])]
    assert [len(rows) for rows in api.files.values()] == [8, 4, 2]
    assert not api.seen or {one[1] for one in api.seen} == {"/v1/batches"}
    assert set(api.asked) == {f"review: {text}" for text in TEXTS}
    assert backend.spending.replies == 12
    assert backend.spending.held == 0
    sent = dict(api.files)
    backend.answer(examples_of(TEXTS))
    assert api.files == sent
    # A run that was killed while it waited: its batch is in the file, and its replies are not.
    rows = [line for line in journal.read_text().splitlines() if '"reply"' not in line]
    assert [json.loads(row).get("batch") for row in rows[:4]] == [None, "file:file-0", "batch-0", "file:file-0"]
    for kept in (4, 3, 2):
        # Killed after the id of the batch was kept, before that, or before the file knew that one began.
        begun = len(api.batches)
        journal.write_text("\n".join(rows[:kept]) + "\n")
        again = open_backend(path, TASK)
        again.keep_answers(journal)
        assert labels_of(again.answer(examples_of(TEXTS[:8]))) == right[:8]
        assert api.files == sent
        assert len(api.batches) == begun
    few = open_backend(write_settings(tmp_path, api, batch=True, prices=PRICES, budget=1e-6), TASK)
    with pytest.raises(InputError, match="The budget of"):
        few.answer(examples_of(TEXTS))
    assert api.files == sent


def test_a_batch_that_began_unseen_is_not_sent_twice(api, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("elang.terminal._telling", True)
    monkeypatch.setattr("elang.backends.openai.batch_files._FIRST_LOOK", 0.01)
    api.begins = [(500, b"oops")]
    records = open_backend(write_settings(tmp_path, api, batch=True), TASK).answer(examples_of(TEXTS))
    assert labels_of(records) == answers_to(TEXTS)
    assert len(api.batches) == 1
    assert set(api.asked.values()) == {1}
    said = capfd.readouterr().err
    assert said.index("the batch batch-0: 0 of 12 requests; ") < said.index("the batch batch-0: 12 of 12 requests; ")


def test_a_budget_of_batches(api, tmp_path, monkeypatch):
    """Replies without a usage count, and so does a batch that an earlier run has left under way."""
    monkeypatch.setattr("elang.backends.openai.batch_files._FIRST_LOOK", 0.01)
    journal = tmp_path / "j.jsonl"
    path = write_settings(tmp_path, api, batch=True, prices=PRICES, budget=0.01)
    backend = open_backend(path, TASK)
    backend.keep_answers(journal)
    api.plan = ["no usage"] * 12
    backend.answer(examples_of(TEXTS))
    assert backend.spending.held == 0
    # 12 tokens of an answer are held at 4 each.
    assert 12 * 12 * 4e-6 < backend.spending.spent < 0.01
    assert "12 answers" in kinds()["no-usage"]
    journal.write_text("\n".join(line for line in journal.read_text().splitlines()[:3]) + "\n")
    assert '"batch"' in journal.read_text()
    again = open_backend(write_settings(tmp_path, api, batch=True, prices=PRICES, budget=backend.spending.spent), TASK)
    again.keep_answers(journal)
    sent = dict(api.files)
    with pytest.raises(InputError, match="The budget of"):
        again.answer(examples_of([*TEXTS, "one more"]))
    assert api.files == sent


def test_a_key_that_a_server_repeats_in_another_spelling(api, tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "sk/a+b<c")
    path = write_settings(tmp_path, api, concurrent=1)
    for spelled in (r"sk\/a+b<c", r"sk\/a\u002bb\u003cc"):
        api.plan = [(400, f'{{"error": {{"message": "wrong: {spelled}"}}}}'.encode())]
        with pytest.raises(InputError, match="wrong: …"):
            open_backend(path, TASK).answer(examples_of(TEXTS[:1]))
        reply = f'{{"choices": [{{"message": {{"content": "good {spelled}"}}, "finish_reason": "stop"}}]}}'
        api.plan = [(200, reply.encode())]
        backend = open_backend(path, TASK)
        assert backend.replies(examples_of(TEXTS[:1]))[0].text == "good …"
    # Spelled by the tokens of log-probabilities.
    tokens = [{"token": token, "logprob": -0.1, "top_logprobs": []} for token in ("sk/a", "+b<c")]
    api.write = lambda body: {"message": {"content": "good"}, "logprobs": {"content": tokens}}
    (reply,) = open_backend(path, TASK).replies(examples_of(TEXTS[:1]))
    assert (reply.text, reply.tokens) == ("good", None)


def test_a_request_has_a_key_by_which_a_server_does_it_once(api, tmp_path):
    """The same in all tries without a response, and after a kill; another one after a response, and in another run."""
    path, journal = write_settings(tmp_path, api, concurrent=1, timeout=0.3), tmp_path / "j.jsonl"

    def keys():
        found = [headers["idempotency-key"] for _, _, headers, _ in api.seen]
        api.seen.clear()
        return found

    def ask():
        backend = open_backend(path, TASK)
        backend.keep_answers(journal)
        backend.answer(examples_of(TEXTS[:1]))
        return keys()

    api.plan = ["hang", "half", (500, b"oops"), "no json"]
    first = ask()
    assert len(first) == 5
    assert first[0] == first[1] == first[2]
    assert len(set(first[2:])) == 3
    header, _ = journal.read_text().splitlines()
    journal.write_text(header + "\n")
    assert ask() == first[:1]
    journal.unlink()
    assert ask() != first[:1]
    # As those of runs before there was such a key.
    journal.write_text('{"format": 1}\n')
    open_backend(path, TASK).answer(examples_of(TEXTS[:2]))
    assert len(set(keys())) == 2


def test_a_server_of_a_pair_does_not_wait_longer_than_its_requests(api, tmp_path):
    api.plan = [(500, b"oops"), "hang", "hang"]
    backend = open_backend(write_settings(tmp_path, api, tries=8), TASK)
    backend.limit_seconds(0.3)
    start = time.monotonic()
    with pytest.raises(InputError, match="did not answer"):
        backend.answer(examples_of(TEXTS[:1]))
    assert time.monotonic() - start < 1.2
    own = open_backend(write_settings(tmp_path, api, timeout=0.1, deadline=0.2), TASK)
    own.limit_seconds(0.3)
    assert (own.settings.timeout, own.questions.settings.deadline) == (0.1, 0.2)


def test_a_proxy_of_the_environment(api, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", api.url.removesuffix("/v1"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    records = open_backend("openai:big@http://models.invalid/v1", TASK).answer(examples_of(TEXTS[:2]))
    assert labels_of(records) == answers_to(TEXTS[:2])
    assert api.seen[0][1] == "http://models.invalid/v1/chat/completions"
    monkeypatch.setenv("HTTP_PROXY", "nonsense://127.0.0.1:1")
    with pytest.raises(InputError, match=r"The proxy .* cannot be used .* NO_PROXY"):
        open_backend("openai:big@http://models.invalid/v1", TASK).answer(examples_of(TEXTS[:2]))


def test_it_is_no_model_to_train_or_to_serve_alone(api, tmp_path):
    for address in (f"openai:big@{api.url}", write_settings(tmp_path, api)):
        with pytest.raises(InputError, match="is behind an API"):
            load_model(address, TASK, fine_tune=True)
        with pytest.raises(InputError, match="is behind an API"):
            JointPredictor(None, address)
    assert not api.seen


def test_scores_of_labels_that_a_server_shows_in_part(api, tmp_path):
    token = {"token": "good", "logprob": -0.1, "top_logprobs": [{"token": "good", "logprob": -0.1}]}
    api.write = lambda body: {"message": {"content": "good"}, "logprobs": {"content": [token]}}
    backend = open_backend(write_settings(tmp_path, api, logprobs=1), TASK)
    scored = backend.score(examples_of(["x"]), "max_softmax", -0.5)
    assert scored.answers == [1]
    assert scored.scores == pytest.approx([-math.exp(-0.1)], abs=1e-6)
    assert scored.deferred == [False]
    assert "gives the 1 most probable tokens, and there are 2 labels" in kinds()["partial-scores"]
    api.write = lambda body: "good"
    with pytest.raises(InputError, match="there is no score at all"):
        backend.score(examples_of(["x"]), "max_softmax", -0.5)
    assert "gives no log-probabilities" in kinds()["partial-scores"]


def test_several_threads_ask(api, tmp_path):
    """As in a server: each gets its own answers, and they share pace and counts."""
    path = write_settings(tmp_path, api, prices=PRICES, requests_per_minute=6000)
    backend = open_backend(path, TASK)
    parts = [[f"{'b' * part} text {number}" for number in range(10)] for part in range(6)]
    start = time.monotonic()
    with ThreadPoolExecutor(6) as threads:
        records = list(threads.map(lambda part: backend.answer(examples_of(part)), parts))
    assert time.monotonic() - start > 0.5
    assert [labels_of(one) for one in records] == [answers_to(part) for part in parts]
    assert backend.spending.replies == len(api.seen) == 60
    assert backend.spending.held == 0
