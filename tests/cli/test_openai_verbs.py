"""`openai:MODEL@URL` wherever a model is named: scored, evaluated, asked, and in a pair at work."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from backends.openai_server import KEY, Api
from backends.test_causal import write_causal
from backends.test_openai import PRICES, api, examples_of, kinds, write_settings  # noqa: F401 - a fixture
from conftest import QUIET
from inference.chat_pairs import TOKENS, write_chat_pair
from transformers import AutoModelForCausalLM, AutoTokenizer

from elang import JointPredictor
from elang.backends.loading.load import check_model, load_model, open_backend
from elang.backends.openai.settings import Usage
from elang.backends.openai.spending import Spending
from elang.cli.verbs import main
from elang.data.encoding import encode_examples
from elang.inference.serving.server import Model
from elang.tasks.sampling import Sampling
from elang.tasks.text_task import TextTask

NAMES = ["--data.label_names", "[bad, good]"]

SHORT = (
    "{% for m in messages %}{{ m.role[0] + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a' }}{% endif %}"
)


def label(text):
    """What the server answers, whatever stands around the text."""
    return Api.answer(text.removeprefix("text: "))


def chosen(body):
    """A label with log-probabilities: the surer, the longer the text is."""
    text = Api.question(body)
    answer, other = label(text), {"good": "bad", "bad": "good"}[label(text)]
    sure = -1 / (1 + len(text))
    top = [{"token": answer, "logprob": sure}, {"token": other, "logprob": sure - 2}]
    token = {"token": answer, "logprob": sure, "top_logprobs": top}
    message = {"message": {"content": answer}}
    return message | ({"logprobs": {"content": [token]}} if body.get("logprobs") else {})


@pytest.fixture
def labels(api):  # noqa: F811
    api.write = chosen
    return api


def score_args(model, output, files):
    data = ["--data.train", str(files[0]), "--data.validation", str(files[1]), *NAMES]
    return ["score", "--model.model", model, "--model.output", str(output), *data, *QUIET]


def test_scored_answers_are_records_of_a_super(labels, files, tmp_path, pair, data_args, capfd):
    path, output = write_settings(tmp_path, labels, prices=PRICES), tmp_path / "super.parquet"
    assert main(score_args(path, output, files)) == 0
    frame = pd.read_parquet(output)
    assert len(frame) == 301
    assert frame["price"].gt(0).all()
    for split, file in zip(("train", "validation"), files, strict=True):
        texts = pd.read_csv(file)["text"]
        assert frame[frame["split"] == split]["prediction"].tolist() == texts.map(label).tolist()
    assert sum(labels.asked.values()) == len(labels.asked)
    # Nothing is left beside the records, and the file says what was asked and at which prices.
    assert sorted(one.name for one in tmp_path.iterdir()) == ["super.parquet", "super.yaml"]
    import pyarrow.parquet as pq

    about = json.loads(pq.read_schema(output).metadata[b"elang"])
    assert about["model"] == f"openai:big@{labels.url}"
    assert about["prices"]["date"] == "2026-11-01"
    args = ["--model.swift_model", str(pair["swift"]), "--model.super_model", str(output), "--model.super_flops", "1e9"]
    assert main(["validate", *args, *data_args, *QUIET, "--model.output", str(tmp_path / "joint")]) == 0
    joint = pd.read_parquet(tmp_path / "joint" / "records.parquet")
    assert joint["super_price"].gt(0).all()
    said = capfd.readouterr().out
    assert re.search(rf"openai:big@{labels.url}: 0\.\d+ USD spent", said)
    assert KEY not in said


def test_a_super_of_an_evaluation(labels, files, data_args, tmp_path, pair):
    args = ["--model.swift_model", str(pair["swift"]), "--model.super_model", f"openai:big@{labels.url}"]
    args += ["--model.super_flops", "1e9", "--model.output", str(tmp_path / "joint")]
    assert main(["validate", *args, *data_args, *QUIET]) == 0
    joint = pd.read_parquet(tmp_path / "joint" / "records.parquet").query("split == 'validation'")
    expected = pd.read_csv(files[1])["text"].map(label).tolist()
    assert [["bad", "good"][place] for place in joint["super_prediction"]] == expected
    assert [one.name for one in tmp_path.iterdir()] == ["joint"]


def test_a_swift_of_an_evaluation(labels, files, data_args, tmp_path, pair, fails):
    """Its scores come from log-probabilities; without them it is refused."""
    args = ["--model.swift_model", f"openai:small@{labels.url}", "--model.super_model", str(pair["records"])]
    args += ["--model.output", str(tmp_path / "joint"), *data_args, *QUIET]
    assert main(["validate", *args]) == 0
    joint = pd.read_parquet(tmp_path / "joint" / "records.parquet").query("split == 'validation'")
    texts = [text.split("\n")[0] for text in joint["input"]]
    assert [["bad", "good"][place] for place in joint["swift_prediction"]] == [label(text) for text in texts]
    # The score is that of the two probabilities.
    expected = -torch.tensor([0.0, -2.0]).softmax(0)[0]
    assert joint["score_max_softmax"].tolist() == pytest.approx([float(expected)] * len(joint), abs=1e-5)
    labels.write = lambda body: label(Api.question(body))
    fails(["validate", *args], "has no logits", "its server gives no log-probabilities")


def test_two_models_behind_apis_do_not_pay_for_each_other(labels, files, data_args, tmp_path, monkeypatch):
    begun, begin = [], Spending.begin
    monkeypatch.setattr(Spending, "begin", lambda self, kept: begun.append(kept) or begin(self, kept))
    super_ = write_settings(tmp_path, labels, prices=PRICES, budget=1.0)
    args = ["--model.swift_model", f"openai:small@{labels.url}", "--model.super_model", super_]
    args += ["--model.super_flops", "1e9", "--model.output", str(tmp_path / "joint"), *data_args, *QUIET]
    assert main(["validate", *args]) == 0
    assert begun == [Usage(0, 0, 0)] * 2
    assert sorted(one.name for one in tmp_path.iterdir()) == ["joint", "super.yaml"]


def test_a_swift_at_work(labels, files, data_args, tmp_path, pair, fails):
    """With the thresholds that an evaluation chose for it; both models may be behind APIs."""
    swift, joint, output = f"openai:small@{labels.url}", tmp_path / "joint", tmp_path / "answers.jsonl"
    labels.write = lambda body: chosen(body) if body["model"] == "small" else "good"
    args = ["--model.swift_model", swift, "--model.super_model", str(pair["records"]), "--model.output", str(joint)]
    assert main(["validate", *args, *data_args, *QUIET]) == 0
    super_ = write_settings(tmp_path, labels)
    args = ["predict", "--swift_model", swift, "--super_model", super_, "--input", str(files[1]), "--text", "text"]
    args += ["--output", str(output)]
    fails(args, "has no thresholds of its own", "--thresholds")
    # The score of all is the same, so a threshold beside it decides for all.
    args += ["--thresholds", str(joint), "--score", "max_softmax"]
    texts = pd.read_csv(files[1])["text"].tolist()
    for threshold, who in (("-0.5", "swift"), ("-0.95", "super")):
        assert main([*args, "--threshold", threshold]) == 0
        answers = [json.loads(line) for line in output.read_text().splitlines()]
        assert {answer["answered_by"] for answer in answers} == {who}
        expected = [label(text) for text in texts] if who == "swift" else ["good"] * len(texts)
        assert [answer["label"] for answer in answers] == expected
        assert [answer["score"] for answer in answers] == pytest.approx([-0.8808] * len(texts), abs=1e-4)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["answers.jsonl", "joint", "super.yaml"]
    # A worker of `elang serve`, and one of its Super.
    options = {"swift_model": swift, "super_model": super_, "thresholds": str(joint), "score": "max_softmax"}
    worker = Model("swift", {**options, "threshold": -0.5}, 1, "cpu")
    reply = worker(texts[:3], None, False)
    assert [(one, hard) for one, _, hard in reply["answers"]] == [(label(text), False) for text in texts[:3]]
    assert reply["probabilities"] == pytest.approx([0.8808] * 3, abs=1e-4)
    assert Model("super", {**options, "threshold": -0.5}, 1, "cpu")(texts[:2], None, False)["answers"] == ["good"] * 2
    for models in ((swift, str(pair["super"])), (str(pair["swift"]), super_)):
        bench = ["bench", "--swift_model", models[0], "--super_model", models[1], "--input", str(files[1])]
        fails([*bench, "--text", "text"], "times models that run here")


def test_how_texts_are_chosen(labels, tmp_path, fails):
    """Sampling reaches the API, in `score` and in a pair at work; what it does not have is refused by its option."""
    texts, output = tmp_path / "texts.csv", tmp_path / "super.parquet"
    texts.write_text("text,summary\nfirst film,a\nsecond,b\nthird one,c\n")
    labels.write = lambda body: "fine"
    data = ["--data", "Seq2SeqData", "--data.validation", str(texts), "--data.source", "text"]
    args = ["score", "--model.model", f"openai:big@{labels.url}", "--model.output", str(output), *data, *QUIET]
    args += ["--data.target", "summary", "--data.max_target_length", "9"]
    how = ["--model.sampling.temperature", "0.7", "--model.sampling.seed", "3"]
    assert main([*args, *how]) == 0
    assert {(body["temperature"], body["seed"], body["max_tokens"]) for *_, body in labels.seen} == {(0.7, 3, 9)}
    import pyarrow.parquet as pq

    assert json.loads(pq.read_schema(output).metadata[b"elang"])["sampling"]["seed"] == 3
    asked = len(labels.seen)
    for option, words in (
        (["--model.num_beams", "4"], "no beams"),
        (["--model.sampling.top_k", "4"], "no top_k"),
        (["--model.asked_scores", "[p_true]"], "no score 'p_true'"),
        (["--model.static_cache", "true"], "--model.static_cache is for models that run here"),
        (["--model.dtype", "bfloat16"], "--model.dtype is for models that run here"),
        (["--model.top_k", "3"], "--model.top_k 3 is for a model that runs here"),
    ):
        fails([*args, *option], words)
        http = [part.replace(f"openai:big@{labels.url}", "http://127.0.0.1:9") for part in args]
        if "--model.num_beams" in option or "--model.asked_scores" in option:
            fails([*http, *option], f"{option[0]} is for models that run here, and 'http")
    folders = write_chat_pair(tmp_path)
    drawing = {"sampling": Sampling(0.5, seed=4), "threshold": -math.inf, "device": "cpu"}
    pair = JointPredictor(str(folders["swift"]), f"openai:big@{labels.url}", **drawing)
    assert len(labels.seen) == asked
    assert [one.label for one in pair(["a text"])] == ["fine"]
    body = labels.seen[-1][3]
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.5, 4, TOKENS)


def test_a_suite_with_it(labels, files, tmp_path, base_model):
    """It answers the training file, a Swift learns from that, and it is the Super of the evaluation."""
    data = {"train": str(files[0]), "validation": str(files[1]), "text": ["text"], "label_names": ["bad", "good"]}
    off = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger"), False)
    plan = {
        "swift_model": str(base_model),
        "super_model": write_settings(tmp_path, labels),
        "all": {"trainer": {**off, "accelerator": "cpu"}},
        "swift": {"model": {"distill_weight": 0}, "trainer": {"max_steps": 2}},
        "joint": {"model": {"super_flops": 1e9}},
        "tasks": {"films": {"all": {"data": data}}},
    }
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(plan))
    assert main(["suite", "films", "--config", str(tmp_path / "suite.yaml"), "--output", str(tmp_path / "runs")]) == 0
    joint = pd.read_parquet(tmp_path / "runs" / "films" / "joint" / "records.parquet").query("split == 'validation'")
    expected = pd.read_csv(files[1])["text"].map(label).tolist()
    assert [["bad", "good"][place] for place in joint["super_prediction"]] == expected


def test_ask_takes_it_too(labels, files, tmp_path, fails):
    output = tmp_path / "super.parquet"
    data = ["--data.train", str(files[0]), "--data.validation", str(files[1]), *NAMES]
    args = ["ask", "--url", write_settings(tmp_path, labels), *data, "--output", str(output)]
    fails([*args, "--concurrent", "2"], "--concurrent is for a server at http://")
    assert main(args) == 0
    frame = pd.read_parquet(output)
    for split, file in zip(("train", "validation"), files, strict=True):
        expected = pd.read_csv(file)["text"].map(label).tolist()
        assert frame[frame["split"] == split]["prediction"].tolist() == expected
    assert sorted(one.name for one in tmp_path.iterdir()) == ["super.parquet", "super.yaml"]


def test_a_pair_at_work(labels, files, tmp_path, pair, capfd):
    """`predict`, and Python; an input without an answer has none."""
    path = write_settings(tmp_path, labels)
    args = ["--swift_model", str(pair["swift"]), "--super_model", path, "--input", str(files[1]), "--text", "text"]
    output = tmp_path / "answers.jsonl"
    assert main(["predict", *args, "--threshold", "defer 50%", "--output", str(output)]) == 0
    assert re.search(rf"openai:big@{labels.url}: \d+ tokens", capfd.readouterr().err)
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    texts = pd.read_csv(files[1])["text"].tolist()
    deferred = [place for place, answer in enumerate(answers) if answer["answered_by"] == "super"]
    assert 0 < len(deferred) < len(texts)
    assert labels.asked == Counter(f"text: {texts[place]}" for place in deferred)
    assert all(answers[place]["label"] == label(texts[place]) for place in deferred)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["answers.jsonl", "super.yaml"]
    labels.write = lambda body: "I do not know"
    predictor = JointPredictor(str(pair["swift"]), f"openai:big@{labels.url}", threshold=-float("inf"))
    assert [(one.label, one.answered_by) for one in predictor(texts[:2])] == [(None, "super")] * 2


def test_a_server_asks_it(labels, files, tmp_path, pair):
    """A worker of `elang serve` answers as the API does; an input without an answer gets none."""
    options = {"swift_model": str(pair["swift"]), "super_model": write_settings(tmp_path, labels)}
    check_model(options["super_model"])
    model = Model("super", options, 1, "cpu")
    # The first question is the server's own, so that it is ready.
    assert sum(labels.asked.values()) == 1
    texts = pd.read_csv(files[1])["text"].tolist()[:5]
    reply = model(texts, None, False)
    assert reply == {"answers": [label(text) for text in texts], "probabilities": [None] * 5, "cut": []}
    labels.plan = ["refusal"]
    assert model(texts[:1], None, False)["answers"] == [None]
    labels.plan = [(401, {})] * 2
    assert "refuses the key" in model(["a text"], None, False)["error"]


def started(args, **environment):
    command = [sys.executable, "-m", "elang", *args]
    return subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_killed_run_asks_nothing_twice(labels, files, tmp_path):
    """After kills at several moments only what was under way at one is asked again, and the records are the same."""
    calm, killed = tmp_path / "calm.parquet", tmp_path / "killed.parquet"
    path = write_settings(tmp_path, labels, concurrent=4)
    assert main(score_args(path, calm, files)) == 0
    labels.asked.clear()
    labels.write = lambda body: time.sleep(0.01) or chosen(body)
    journal = Path(f"{killed}.asked.jsonl")
    kept = 0
    for more in (5, 60, 120):
        process = started(score_args(path, killed, files))
        deadline = time.monotonic() + 120
        while (len(journal.read_bytes().splitlines()) - 1 if journal.exists() else 0) < kept + more:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(0.1)
        kept = sum(line.endswith(b"\n") for line in journal.read_bytes().splitlines(keepends=True)) - 1
        # Each kill loses at most what was under way.
        assert sum(labels.asked.values()) - len(labels.asked) <= 4 * 3
    assert main(score_args(path, killed, files)) == 0
    assert max(labels.asked.values()) <= 1 + 3
    assert sum(labels.asked.values()) <= len(labels.asked) + 3 * 4
    pd.testing.assert_frame_equal(pd.read_parquet(calm), pd.read_parquet(killed))
    assert not journal.exists()


def test_the_key_is_nowhere(labels, files, tmp_path, pair, data_args, capfd, fails, monkeypatch):
    """Not in what is written or printed, even if the server repeats it, in runs that end well and that do not."""
    path = write_settings(tmp_path, labels, prices=PRICES)
    labels.write = lambda body: KEY if len(Api.question(body)) % 7 == 0 else chosen(body)
    labels.plan = [(500, {"error": {"message": f"Authorization: Bearer {KEY}"}})]
    assert main(score_args(path, tmp_path / "super.parquet", files)) == 0
    args = ["--model.swift_model", str(pair["swift"]), "--model.super_model", path, "--model.super_flops", "1e9"]
    assert main(["validate", *args, *data_args, *QUIET, "--model.output", str(tmp_path / "joint")]) == 0
    run = ["predict", "--swift_model", str(pair["swift"]), "--super_model", path, "--threshold", "defer 50%"]
    run += ["--input", str(files[1]), "--text", "text", "--output", str(tmp_path / "a.jsonl")]
    assert main(run) == 0
    said = "".join(capfd.readouterr())
    for status in (400, 401, 403, 404, 429):
        labels.plan = [(status, {"error": {"message": f"your key {KEY} is bad", "code": "insufficient_quota"}})] * 3
        said += fails(score_args(path, tmp_path / "other.parquet", files))
    assert KEY not in said
    backend = open_backend(path, TextTask(["bad", "good"], answers=["bad", "good"]))
    assert KEY not in repr(vars(backend)) + repr(backend.settings)
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    assert any(KEY in str(one[2]) for one in labels.seen)


class TinyServer:
    """The same tiny model behind the API: greedy, with the log-probabilities of the tokens but the last, the end."""

    def __init__(self, folder, tokens):
        self.model, self.tokenizer = (
            AutoModelForCausalLM.from_pretrained(folder).eval(),
            AutoTokenizer.from_pretrained(folder),
        )
        self.tokens = tokens

    @torch.no_grad()
    def __call__(self, body):
        if "messages" in body:
            how = {"add_generation_prompt": True, "tokenize": False}
            prompt = self.tokenizer.apply_chat_template(body["messages"], **how)
            ids = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        else:
            ids = self.tokenizer(body["prompt"], return_tensors="pt")["input_ids"]
            # A server of language models puts no end behind a prompt; this tokenizer would.
            ids = ids[:, :-1] if ids[0, -1] == 3 else ids
        how = {"max_new_tokens": body["max_tokens"], "do_sample": False, "pad_token_id": 0, "output_logits": True}
        made = self.model.generate(input_ids=ids, **how, return_dict_in_generate=True)
        new = made.sequences[0, ids.shape[1] :].tolist()
        ended = 3 in new
        new = new[: new.index(3)] if ended else new
        rows = []
        for token, logits in zip(new, made.logits, strict=False):
            best = logits[0].log_softmax(-1).topk(5)
            top = [
                (self.tokenizer.decode([one]), value)
                for value, one in zip(*map(torch.Tensor.tolist, best), strict=True)
            ]
            rows.append((self.tokenizer.decode([token]), float(logits[0].log_softmax(-1)[token]), top))
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        choice = {"finish_reason": "stop" if ended else "length"}
        if "messages" in body:
            content = [
                {"token": t, "logprob": p, "top_logprobs": [{"token": a, "logprob": q} for a, q in top]}
                for t, p, top in rows
            ]
            return choice | {"message": {"content": text}, "logprobs": {"content": content}}
        tokens, values, tops = zip(*rows, strict=True) if rows else ([], [], [])
        given = {"tokens": tokens, "token_logprobs": values, "top_logprobs": [dict(top) for top in tops]}
        return choice | {"text": text, "logprobs": given}


@pytest.mark.parametrize("way", ["chat", "completions"])
def test_answers_are_those_of_the_same_model_here(api, tmp_path, way):  # noqa: F811
    """To the token, greedily; and its scores, where log-probabilities give them."""
    folder = write_causal(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = SHORT
    tokenizer.save_pretrained(folder)
    words = {"label_words": "chat", "system": "abc"} if way == "chat" else {"label_words": "prompt"}
    examples = ["Qabz", "xyz", "Qb", "ab"]
    task = TextTask(
        [], "sequence", segments=[], qualities=["exact_text"], prompt="Q{text}z", examples=examples, **words
    )
    rows, tokens = [("abc",), ("xxyz",), ("q",), ("bca",), ("zzab",), ("yx",)], 12
    model = load_model(folder, task).eval()
    model.configure_generation(tokens, 1)
    given = encode_examples(model.reader, task, rows, None, 60, [""] * len(rows), max_target_length=tokens)
    here = model.generate(model.encode(given.batch([*range(len(rows))])))
    api.write = TinyServer(folder, tokens)
    backend = open_backend(write_settings(tmp_path, api, api=way, logprobs=5), task)
    backend.limit_new_tokens(tokens)
    backend.want_scores()
    records = backend.answer(examples_of([text for (text,) in rows]))
    assert records.texts == list(model.texts(model.padded_ids(here)))
    assert len(set(records.texts)) > 1
    # Texts without an end have the same tokens there and here.
    whole = [i for i, steps in enumerate(here.steps.tolist()) if steps == tokens and 3 not in here.ids[i].tolist()]
    assert whole
    known = ~records.scores.isnan().all(0)
    assert int(known.sum()) == 18
    torch.testing.assert_close(records.scores[whole][:, known], here.scores[whole][:, known], rtol=1e-4, atol=1e-4)
    assert "not 'free_energy', 'entropy'" in kinds()["partial-scores"]


def test_money_is_the_cost(labels, files, data_args, tmp_path, pair, capfd, fails):
    """The Super by its prices, the Swift by those of its hour: in the curve, thresholds, the report and a budget."""
    joint = tmp_path / "joint"
    path = write_settings(tmp_path, labels, prices={**PRICES, "currency": "EUR"})
    args = ["validate", "--model.swift_model", str(pair["swift"]), "--model.super_model", path, *data_args, *QUIET]
    args += ["--model.output", str(joint), "--model.cost", "money"]
    for cost, words in (("money", "Set 'prices'"), ("seconds", "Leave --model.cost out")):
        fails([*args[:3], "--model.super_model", f"openai:big@{labels.url}", *args[5:-1], cost], words)
    assert not labels.seen
    fails(args, "What", "costs in money is not known", "--model.hour_price")
    assert main([*args, "--model.hour_price", "0.001"]) == 0
    said = " ".join(capfd.readouterr().out.split())
    records = pd.read_parquet(joint / "records.parquet")
    assert records["super_flops"].tolist() == records["super_price"].tolist()
    # A Swift's input has its part of the seconds by its FLOPs, which for one length are the same.
    assert records["swift_flops"].between(1e-13, 1e-6).all()
    summary = json.loads((joint / "summary.json").read_text())
    assert summary["flops_convention"] == "money, in EUR"
    evaluated = records[records["split"] == "validation"]
    accuracy = summary["qualities"]["accuracy"]
    assert accuracy["super"]["cost"] == pytest.approx(evaluated["super_price"].mean())
    assert accuracy["swift"]["cost"] == pytest.approx(evaluated["swift_flops"].mean())
    assert "50% of the cost" in accuracy["scores"]["free_energy"]["on_this_set"]
    cost = 1e3 * evaluated["super_price"].mean()
    assert "FLOPs" not in said.replace("Speed-ups here count FLOPs", "")
    assert re.search(rf"1,000 inputs cost [\d.e-]+ EUR by the Swift alone, .* {cost:.3g} by the Super alone", said)
    named = json.loads((joint / "elang.json").read_text())["thresholds"]["max_softmax"]
    assert {entry["cost"] for entry in named.values()} == {"money, in EUR"}
    assert main(["sweep", str(joint), "--output", str(tmp_path / "swept")]) == 0
    budget = ["calibrate", str(joint), "--flops", "0.5", "--split", "validation"]
    assert main([*budget, "--output", str(tmp_path / "c")]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "FLOPs" not in said
    assert "EUR of the Super alone divided by EUR of the pair" in said
    entries = json.loads((tmp_path / "c" / "elang.json").read_text())["thresholds"]
    (entry,) = [one for named in entries.values() for one in named.values() if "flops" in one]
    assert entry["cost"] == "money, in EUR"
    assert "at most 0.5 of the Super's cost" in entry["statement"]
    assert main(["report", str(joint), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "EUR for 1,000 inputs" in page
    assert "GFLOPs" not in page


def test_seconds_are_the_cost(tmp_path, joint_args, fails, pair, data_args):
    joint = tmp_path / "joint"
    assert main(["validate", *joint_args, "--model.output", str(joint), "--model.cost", "seconds"]) == 0
    records = pd.read_parquet(joint / "records.parquet")
    assert records["swift_flops"].between(1e-7, 1).all()
    assert json.loads((joint / "summary.json").read_text())["flops_convention"] == "seconds"
    fails(
        ["validate", *joint_args, "--model.cost", "seconds", "--model.hour_price", "1"], "goes with --model.cost money"
    )
    args = ["validate", "--model.swift_model", str(pair["swift"]), "--model.super_model", str(pair["records"])]
    fails([*args, *data_args, *QUIET, "--model.cost", "seconds", "--model.output", str(joint)], "must run here")
