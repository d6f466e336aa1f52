"""A Super elsewhere: every example is asked until it is answered, and then no more."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from conftest import QUIET

import elang.backends.remote
import elang.backends.retrying
from elang.cli.verbs import main
from elang.locks import output_lock
from elang.notices import Notice


class Service:
    """Answers "good" where a text has an even length; ``plan`` says what becomes of each request, in turn."""

    def __init__(self):
        self.plan, self.asked, self.most, self.now, self.seen = [], Counter(), 0, 0, []
        lock, service = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    service.now += 1
                    service.most = max(service.most, service.now)
                    service.seen.append((time.monotonic(), dict(self.headers), self.path))
                    code, answer = service.plan.pop(0) if service.plan else (200, None)
                time.sleep(0.01)
                said = json.dumps(
                    answer if answer is not None else {"answers": list(map(service.answer, body["texts"]))}
                )
                with lock:
                    service.now -= 1
                    if code == 200 and answer is None:
                        service.asked.update(body["texts"])
                if code is None:
                    self.close_connection = True
                    return
                self.send_response(code)
                if code == 503:
                    self.send_header("retry-after", "0.3")
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said.encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # Of clients that are gone: a refusal of one request ends those beside it.
        self.server.handle_error = lambda *_: None
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @staticmethod
    def answer(text):
        return "bad" if len(text) % 2 else "good"


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(elang.backends.retrying, "_FIRST_WAIT", 0.01)
    monkeypatch.delenv(elang.backends.remote.TOKEN_VARIABLE, raising=False)
    made = Service()
    yield made
    made.server.shutdown()


@pytest.fixture
def ask_args(files):
    data = ["--data.train", str(files[0]), "--data.validation", str(files[1])]
    return [*data, "--batch_size", "10", "--concurrent", "3"]


def texts_of(files):
    return {name: pd.read_csv(path)["text"].tolist() for name, path in zip(("train", "validation"), files, strict=True)}


def test_answers_become_records(service, ask_args, files, tmp_path, pair, capsys):
    """In spite of failures that pass; a Swift is then evaluated with them."""
    service.plan = [(503, {}), (None, None), (429, {}), (200, None), (500, {})]
    output = tmp_path / "super.parquet"
    assert main(["ask", "--url", service.url, *ask_args, "--output", str(output)]) == 0
    frame = pd.read_parquet(output)
    for split, texts in texts_of(files).items():
        part = frame[frame["split"] == split]
        assert part["id"].tolist() == list(range(len(texts)))
        assert part["prediction"].tolist() == [Service.answer(text) for text in texts]
    assert 1 < service.most <= 3
    assert {path for _, _, path in service.seen} == {"/super"}
    assert list(tmp_path.iterdir()) == [output]
    assert "301 answers" in capsys.readouterr().out
    args = ["--model.swift_model", str(pair["swift"]), "--model.super_model", str(output), "--model.super_flops", "1e9"]
    data = ["--data.train", str(files[0]), "--data.validation", str(files[1]), "--data.routing_fraction", "0.25"]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    assert main(["validate", *args, *data, *quiet, "--model.output", str(tmp_path / "joint")]) == 0


def test_a_second_run_into_the_same_records_asks_nothing(service, ask_args, tmp_path, fails, monkeypatch):
    output = tmp_path / "r.parquet"
    args = ["ask", "--url", service.url, *ask_args, "--output", str(output)]
    with output_lock(output), monkeypatch.context() as another_process:
        another_process.setattr("elang.locks._held", {})
        fails(args, "Another run is writing", output)
    assert not service.seen
    assert list(tmp_path.iterdir()) == []
    assert main(args) == 0


def test_an_option_by_its_earlier_name(service, ask_args, tmp_path):
    args = ["10" if arg == "10" else arg.replace("--batch_size", "--batch") for arg in ask_args]
    with pytest.warns(Notice, match="--batch of `elang ask` is called --batch_size now"):
        assert main(["ask", "--url", service.url, *args, "--output", str(tmp_path / "r.parquet")]) == 0
    assert len(service.seen) == 31


def test_of_several_processes_one_asks(service, data_args, tmp_path, pair):
    from models.test_distributed import elang

    args = ["--model.swift_model", pair["swift"], "--model.super_model", service.url, "--model.super_flops", "1e9"]
    args += [*data_args, *QUIET, "--model.output", tmp_path / "joint"]
    elang("validate", *args, processes=2)
    records = pd.read_parquet(tmp_path / "joint" / "records.parquet")
    assert sum(service.asked.values()) == len(records)
    answers = [Service.answer(text.split("\n")[0]) for text in records["input"]]
    assert [["bad", "good"][place] for place in records["super_prediction"]] == answers


def test_a_server_is_the_super_of_an_evaluation(service, files, data_args, tmp_path, pair):
    args = ["--model.swift_model", str(pair["swift"]), "--model.super_model", service.url, "--model.super_flops", "1e9"]
    assert main(["validate", *args, *data_args, *QUIET, "--model.output", str(tmp_path / "joint")]) == 0
    records = pd.read_parquet(tmp_path / "joint" / "records.parquet").query("split == 'validation'")
    answers = [Service.answer(text) for text in texts_of(files)["validation"]]
    assert [["bad", "good"][place] for place in records["super_prediction"]] == answers


def test_an_evaluation_counts_what_was_too_long_for_its_server(service, data_args, tmp_path, pair):
    args = ["--model.swift_model", str(pair["swift"]), "--model.super_model", service.url, "--model.super_flops", "1e9"]
    service.plan = [(200, {"answers": ["good"] * 16, "cut": [0, 7, 99, "x"]})]
    with pytest.warns(Notice, match=rf"2 of \d+ inputs were too long for the Super at {service.url}"):
        assert main(["validate", *args, *data_args, *QUIET, "--model.output", str(tmp_path / "joint")]) == 0
    made = json.loads((tmp_path / "joint" / "made.json").read_text())
    assert "cut-inputs" in {one["kind"] for one in made["notices"]}


def test_an_evaluation_whose_server_does_not_answer(data_args, tmp_path, pair, fails, monkeypatch):
    monkeypatch.setattr(elang.backends.retrying, "_FIRST_WAIT", 0.0)
    args = ["--model.swift_model", str(pair["swift"]), "--model.super_model", "http://127.0.0.1:9"]
    args += ["--model.super_flops", "1e9", "--model.output", str(tmp_path / "joint")]
    message = fails(["validate", *args, *data_args, *QUIET], "did not answer in 8 tries", "Check that it is running")
    assert "elang ask" not in message
    assert "kept" not in message


def test_it_waits_as_long_as_the_server_says(service, files, tmp_path):
    service.plan = [(503, {})]
    args = ["--data.validation", str(files[1]), "--data.label_names", "[bad, good]", "--concurrent", "1"]
    args += ["--data.prompt", "review: {text}"]
    assert main(["ask", "--url", service.url, *args, "--output", str(tmp_path / "r.parquet")]) == 0
    assert service.seen[1][0] - service.seen[0][0] >= 0.3


def test_what_is_answered_is_not_asked_again(service, ask_args, files, tmp_path, fails, capfd):
    """A server that is gone in the middle, and a last line that was cut."""
    output = tmp_path / "super.parquet"
    args = ["ask", "--url", service.url, *ask_args, "--concurrent", "1", "--tries", "2", "--output", str(output)]
    service.plan = [(200, None)] * 5 + [(503, {})] * 2
    fails(args, "did not answer in 2 tries (503", "run the same command again")
    journal = tmp_path / "super.parquet.asked.jsonl"
    assert len(journal.read_text().splitlines()) == 1 + 50
    with journal.open("a") as file:
        file.write('{"split": "train", "id"')
    service.plan = [(None, None)]
    assert main(args) == 0
    assert ".asked.jsonl' has 50 answers, not asked for again" in capfd.readouterr().out
    every = Counter(text for texts in texts_of(files).values() for text in texts)
    assert service.asked == every
    assert len(pd.read_parquet(output)) == 301
    assert not journal.exists()


@pytest.mark.parametrize("row", [b'{"split": "train", "id": [0], "key": 1, "answer": "good"}', b"[" * 200_000])
def test_a_damaged_journal(service, ask_args, tmp_path, fails, row):
    args = ["ask", "--url", service.url, *ask_args, "--concurrent", "1", "--tries", "1", "--output"]
    service.plan = [(200, None), (503, {})]
    fails([*args, str(tmp_path / "r.parquet")], "did not answer")
    journal = tmp_path / "r.parquet.asked.jsonl"
    journal.write_bytes(journal.read_bytes().split(b"\n")[0] + b"\n" + row + b"\n")
    fails([*args, str(tmp_path / "r.parquet")], "is damaged", "Delete it")


def test_a_token_is_sent(service, files, tmp_path, monkeypatch, fails):
    args = [
        "--data.validation",
        str(files[1]),
        "--data.label_names",
        "[bad, good]",
        "--output",
        str(tmp_path / "r.parquet"),
    ]
    service.plan = [(401, {})]
    fails(["ask", "--url", service.url, *args, "--concurrent", "1"], "wants a token (401)", "ELANG_SERVE_TOKEN")
    monkeypatch.setenv("ELANG_SERVE_TOKEN", "secret")
    assert main(["ask", "--url", service.url, *args]) == 0
    assert service.seen[-1][1]["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((404, {}), ["No Super answers", "/super (404)", "Check the server's address"]),
        ((422, {"detail": "too long"}), ["refuses example", "too long", "--batch_size"]),
        ((200, {"answers": ["good"]}), ["1 answer to 10 texts"]),
        ((200, {"answers": ["awful"] * 10}), ["'awful'", "['bad', 'good']"]),
        ((200, {"answers": [1.5] * 10}), ["1.5"]),
        ((200, {"labels": []}), ["no JSON with 'answers'"]),
        ((200, [1]), ["no JSON with 'answers'"]),
    ],
)
def test_answers_that_are_none(service, ask_args, tmp_path, fails, reply, words):
    service.plan = [reply]
    fails(["ask", "--url", service.url, *ask_args, "--output", str(tmp_path / "r.parquet")], service.url, *words)
    assert not (tmp_path / "r.parquet").exists()


def test_what_was_too_long_for_the_super_is_told(service, ask_args, tmp_path, fails):
    """Also of what was asked by an earlier run."""
    args = ["ask", "--url", service.url, *ask_args, "--concurrent", "1", "--output", str(tmp_path / "r.parquet")]
    service.plan = [(200, {"answers": ["good"] * 10, "cut": [0, 7]}), (422, {})]
    fails(args, "refuses example")
    service.plan = [
        (200, {"answers": ["good"] * 10, "cut": [3, 99, "x", [1]]}),
        (200, {"answers": ["bad"] * 10, "cut": 5}),
    ]
    with pytest.warns(Notice, match=f"3 of 301 inputs were too long for the Super at {service.url}"):
        assert main(args) == 0


@pytest.mark.parametrize("url", ["nowhere", "http://", "http://[::1", "http://a:99999", "ftp://a", "http://a/?b=1"])
def test_an_address_that_is_none(ask_args, tmp_path, pair, fails, url):
    fails(["ask", "--url", url, *ask_args, "--output", str(tmp_path / "r.parquet")], f"--url '{url}'", "HOST:PORT")
    if url.startswith("http"):
        args = ["serve", "--swift_model", str(pair["swift"]), "--super_model", url]
        fails(args, f"--super_model '{url}'", "HOST:PORT")


@pytest.mark.parametrize("token", ["two\nlines", "schlüssel", " "])
def test_a_token_that_cannot_be_sent_is_not_shown(service, ask_args, tmp_path, fails, monkeypatch, token):
    monkeypatch.setenv("ELANG_SERVE_TOKEN", token)
    args = ["ask", "--url", service.url, *ask_args, "--output", str(tmp_path / "r.parquet")]
    assert token not in fails(args, "ELANG_SERVE_TOKEN is set").replace(" ", "")
    assert not service.seen


def test_what_cannot_be_asked(service, ask_args, files, tmp_path, fails):
    output = ["--output", str(tmp_path / "r.parquet")]
    fails(["ask", "--url", "http://127.0.0.1:9", *ask_args, *output, "--tries", "2"], "did not answer in 2 tries")
    fails(["ask", "--url", service.url, *ask_args, "--output", "r.csv"], "'r.csv'")
    fails(["ask", "--url", service.url, *ask_args, *output, "--tries", "0"], "--tries must be above 0")
    service.plan = [(200, None), (422, {})]
    once = ["ask", "--url", service.url, *ask_args, *output, "--concurrent", "1"]
    journal = tmp_path / "r.parquet.asked.jsonl"
    journal.unlink()
    fails(once, "refuses example")
    kept = journal.read_text()
    fails([*once, "--url", "http://127.0.0.1:9"], "another server or to another task")
    other = [str(files[0]) if arg == str(files[1]) else arg for arg in once]
    fails(other, "answers to other data")
    journal.write_text(kept.replace('"answer"', '"said"'))
    fails(once, "is damaged")
