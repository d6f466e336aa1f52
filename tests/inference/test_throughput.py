"""Many inputs through a pair: batches by tokens, windows, packed deferrals, files that are gone on with, timings."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pytest
import torch
from conftest import FILLER, GOOD

from elang import InputError, JointPredictor
from elang.backends.loading.load import load_model
from elang.cli.bench import _print
from elang.cli.verbs import main
from elang.data.batches import token_batches
from elang.data.encoding import encode
from elang.evaluation.pair import SHARES
from elang.inference.loaded import ChainPredictor
from elang.inference.speed import Sizes, _fitting, flops_of, share_threshold, time_pair
from elang.inference.stream import Deferred, Window, ahead, stream, windows
from elang.records.manifest import Manifest, entry_speedup


@pytest.mark.parametrize("budget", [1, 7, 64, 10**6])
@pytest.mark.parametrize("most", [None, 1, 3])
def test_batches_hold_so_many_tokens(budget, most):
    lengths = torch.randint(1, 30, (101,), generator=torch.Generator().manual_seed(budget))
    found = token_batches(lengths, budget, most)
    assert sorted(row for batch in found for row in batch.tolist()) == list(range(101))
    longest = [int(lengths[batch].max()) for batch in found]
    assert longest == sorted(longest, reverse=True)
    for batch, length in zip(found, longest, strict=True):
        assert len(batch) * length <= budget or len(batch) == 1
        assert most is None or len(batch) <= most
    # No batch could have taken the next one's first input.
    for batch, after in pairwise(found):
        full = (len(batch) + 1) * int(lengths[batch].max()) > budget or len(batch) == most
        assert full, (batch, after)
    assert token_batches(torch.zeros(0, dtype=torch.int64), 5) == []


def test_a_batch_is_padded_as_it_should_be(pair):
    tokenizer = load_model(str(pair["swift"])).tokenizer
    texts = [("the film was good",), ("bad",), ("a very dull story and music",), ("actor",)]
    encoded = encode(tokenizer, texts, 64)
    for rows in ([0], [3, 1], [2, 0, 1], [3]):
        found = encoded.batch(rows)
        expected = tokenizer([texts[r][0] for r in rows], padding="longest", return_tensors="pt")
        assert found.keys() == expected.keys()
        for name, column in expected.items():
            assert torch.equal(found[name], column), name


def test_windows_and_reading_ahead():
    assert list(windows(range(7), 3)) == [(0, [0]), (1, [1, 2]), (3, [3, 4, 5]), (6, [6])]
    assert list(windows([], 3)) == []
    threads = set()

    def items():
        for i in range(5):
            threads.add(threading.current_thread().name)
            yield i
        raise ValueError("the sixth")

    coming = ahead(items())
    assert [next(coming) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="the sixth"):
        next(coming)
    assert threading.main_thread().name not in threads


def window(size):
    return Window([("x",)] * size, None)


def test_what_is_deferred_is_packed_and_the_order_kept():
    """The Super is called once there is enough for it, or too much waits."""
    asked, taken = [], []
    made = [window(4) for _ in range(20)]

    def swift(one):
        number = made.index(one)
        taken.append(number)
        one.answers = [f"{number}.{i}" for i in range(4)]
        # One of four, but none of the first three windows.
        if number < 3:
            return []
        one.answers[2] = None
        return [Deferred(one, 2, 0.5)]

    def super_(deferred):
        asked.append(len(deferred))
        for one in deferred:
            one.window.answers[one.place] = f"{made.index(one.window)}.{one.place}!"

    out, ahead_of_output = [], []
    for one in stream(iter(made), swift, [(super_, 5)]):
        out.append(one)
        ahead_of_output.append(len(taken) - len(out) / 4)
    assert out == [f"{n}.{i}{'!' if n >= 3 and i == 2 else ''}" for n in range(20) for i in range(4)]
    assert asked == [5, 5, 5, 2]
    assert max(ahead_of_output) <= 6
    # Where hardly anything is deferred, nothing waits for ever.
    asked.clear()
    made[:] = [window(1) for _ in range(30)]

    def rare(one):
        if made.index(one) % 10 == 1:
            return [Deferred(one, 0, 0.5)]
        one.answers = ["kept"]
        return []

    found = list(stream(iter(made), rare, [(super_, 100)]))
    assert found == ["kept" if n % 10 != 1 else f"{n}.0!" for n in range(30)]
    assert len(asked) >= 2


@pytest.fixture(scope="module")
def texts(files):
    rng = random.Random(0)
    found = pd.read_csv(files[1])["text"].tolist()
    return found + [" ".join(rng.choices([*FILLER, *GOOD], k=rng.randint(1, 40))) for _ in range(140)]


@pytest.fixture(scope="module")
def predictor(pair):
    return JointPredictor(str(pair["swift"]), str(pair["super"]), "defer 30%")


@pytest.mark.parametrize("size", [1, 7, 64, 5000])
def test_a_stream_is_answered_as_a_list_is(pair, predictor, texts, size):
    expected = predictor(texts)
    assert {one.answered_by for one in expected} == {"swift", "super"}
    for options in ({}, {"tokens": 30, "super_tokens": 50}, {"batch_size": 3}):
        made = JointPredictor(str(pair["swift"]), str(pair["super"]), "defer 30%", **options)
        found = list(made.map(iter(texts), size))
        assert [(one.label, one.answered_by) for one in found] == [(one.label, one.answered_by) for one in expected]
        assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)


def test_one_by_one_is_the_same(predictor, texts):
    for text, expected in zip(texts[:40], predictor(texts[:40]), strict=True):
        (alone,) = predictor([text])
        assert (alone.label, alone.answered_by) == (expected.label, expected.answered_by)


def test_a_super_by_itself_has_its_own_batches(pair, texts):
    models, options = (str(pair["swift"]), str(pair["super"])), {"tokens": 1024, "super_tokens": 64}
    alone, both = JointPredictor(None, models[1], **options), JointPredictor(*models, **options)
    sizes = [[len(chosen) for chosen, _ in one.batches(one.super_, texts)] for one in (alone, both)]
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) > len(list(both.batches(both.swift, texts)))


def test_the_super_alone_answers_everything(pair, predictor, texts):
    everything = JointPredictor(str(pair["swift"]), str(pair["super"]), "-inf")(texts)
    found = list(predictor.super_map(texts, 50))
    # The Swift of a pair that defers everything does not run: it would cost time and change nothing.
    assert [replace(one, probability=pytest.approx(one.probability)) for one in everything] == found
    assert {(one.answered_by, one.score) for one in found} == {("super", None)}


def test_a_chain_of_two_is_the_pair_to_the_bit(pair, predictor, texts, tmp_path, capsys):
    limit = predictor.threshold
    first = {"name": "swift", "model": str(pair["swift"]), "threshold": limit, "cost": 1.0}
    last = {"name": "super", "model": str(pair["super"]), "cost": 10.0}
    (tmp_path / "chain.yaml").write_text(json.dumps({"unit": "USD", "stages": [first, last]}))
    chain = ChainPredictor(tmp_path)
    assert chain(texts) == predictor(texts)
    assert list(chain.map(iter(texts), 32)) == list(predictor.map(iter(texts), 32))
    command = ["predict", "--chain", str(tmp_path), "--input", str(tmp_path / "in.csv"), "--text", "text"]
    pd.DataFrame({"text": texts}).to_csv(tmp_path / "in.csv", index=False)
    command += ["--output", str(tmp_path / "out.jsonl")]
    # The Super is a stage in the middle, and a person answers what neither is sure of.
    stages = [first, {**last, "threshold": -0.6, "score": "max_softmax"}, {"name": "person", "model": "person"}]
    (tmp_path / "chain.yaml").write_text(json.dumps({"stages": stages}))
    assert main(command) == 0
    scored = predictor.score_stage(1, predictor.rows(texts)).probabilities
    found, queue = lines_of(tmp_path / "out.jsonl"), lines_of(tmp_path / "out.person.jsonl")
    pairs = list(zip(found, predictor(texts), strict=True))
    assert all(one["label"] == other.label for one, other in pairs if one["answered_by"] == other.answered_by)
    waiting = [one["id"] for one in found if one["answered_by"] == "person"]
    assert [one["id"] for one in queue] == waiting
    assert [one["text"] for one in queue] == [texts[place] for place in waiting]
    assert all(found[place]["label"] is None and scored[place] <= 0.6 for place in waiting)
    assert "wait for person" in capsys.readouterr().err


@pytest.mark.parametrize("threshold", ["-inf", -math.inf, "1-SE"])
def test_a_swift_is_not_asked_where_everything_is_deferred(pair, texts, tmp_path, monkeypatch, threshold):
    manifest = Manifest.read(pair["swift"])
    manifest.thresholds["max_softmax"]["1-SE"].update(threshold=-math.inf, speedup=0.8)
    manifest.write(tmp_path / "elang.json")
    options = {"thresholds": str(tmp_path / "elang.json"), "few": 4}
    predictor = JointPredictor(str(pair["swift"]), str(pair["super"]), threshold, **options)
    monkeypatch.setattr(predictor.swift, "forward", None)
    monkeypatch.setattr(predictor.runners["swift"], "encode", None)
    expected = [one.label for one in predictor.super_map(texts)]
    assert [one.label for one in predictor(texts)] == expected
    assert [one.label for one in predictor.map(iter(texts), 32)] == expected
    assert [one.label for start in range(0, 40, 4) for one in predictor(texts[start : start + 4])] == expected[:40]
    # Until another threshold is set.
    predictor.set_threshold(0.0)
    with pytest.raises(TypeError):
        predictor(texts)
    # A stream goes on as it began: its windows are read for the Super.
    predictor.set_threshold(-math.inf)
    answers = predictor.map(iter(texts), 16)
    first = next(answers)
    predictor.set_threshold(math.inf)
    assert [one.label for one in (first, *answers)] == expected
    assert entry_speedup(manifest.thresholds["max_softmax"]["1-SE"]) == 1


@pytest.mark.parametrize(("threshold", "words"), [(math.nan, "is NaN"), ("parity", "set to a number")])
def test_a_threshold_that_is_set_is_a_number(predictor, threshold, words):
    before = predictor.threshold
    with pytest.raises(InputError, match=words):
        predictor.set_threshold(threshold)
    assert predictor.threshold == before


def test_the_probability_is_the_answering_models(pair, texts):
    """By the logits of the library's own models."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    for few in (0, 3):
        predictor = JointPredictor(str(pair["swift"]), str(pair["super"]), "defer 30%", device="cpu", few=few)
        found = [one for start in range(0, 60, 3) for one in predictor(texts[start : start + 3])]
        for by in ("swift", "super"):
            model, tokenizer = (
                cls.from_pretrained(pair[by]) for cls in (AutoModelForSequenceClassification, AutoTokenizer)
            )
            rows = [row for row, one in enumerate(found) if one.answered_by == by]
            assert rows
            inputs = tokenizer([texts[row] for row in rows], padding=True, return_tensors="pt")
            probability, place = model.eval()(**inputs).logits.softmax(-1).max(-1)
            assert [found[row].label for row in rows] == [model.config.id2label[i] for i in place.tolist()]
            assert [found[row].probability for row in rows] == pytest.approx(probability.tolist(), abs=1e-5)


def test_the_super_alone_answers_by_its_own_order_of_classes(pair, predictor, texts):
    reversed_super = load_model(str(pair["super"]))
    for parameter in reversed_super.backbone.classifier.parameters():
        parameter.data = parameter.data.flip(0)
    reversed_super.task = replace(reversed_super.task, label_names=reversed_super.task.label_names[::-1])
    made = JointPredictor(str(pair["swift"]), reversed_super, "-inf")
    expected = [one.label for one in predictor.super_map(texts)]
    assert [one.label for one in made(texts)] == expected
    assert [one.label for one in made.super_map(texts)] == expected


def test_memory_is_bounded(predictor, texts):
    """However slowly answers are taken, only a few windows are read."""
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield texts[read % len(texts)]

    answers = predictor.map(endless(), 16)
    for _ in range(100):
        next(answers)
    time.sleep(0.2)
    assert read <= 100 + 16 * 11
    answers.close()


def test_cudnns_attention_is_left_out_of_a_stream(pair, texts, monkeypatch):
    """It is planned anew for each shape of a batch; afterwards, and where a model fails, it is as it was."""
    predictor = JointPredictor(pair["swift"], pair["super"], "-1e9")
    seen = []
    for model in (predictor.swift, predictor.super_):
        forward = model.forward

        def watched(inputs, forward=forward):
            seen.append(torch.backends.cuda.cudnn_sdp_enabled())
            if len(seen) == 3:
                raise ZeroDivisionError
            return forward(inputs)

        monkeypatch.setattr(model, "forward", watched)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    predictor(texts[:2])
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
    with pytest.raises(ZeroDivisionError):
        predictor(texts[:2])
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
    assert seen == [False] * 3


def small_memory(model, monkeypatch, tokens, calls):
    """A device that holds so many tokens of a model's inputs."""
    forward = model.forward

    def tight(inputs, *given, **more):
        rows, length = inputs["input_ids"].shape
        if rows * length > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        calls.append(rows * length)
        return forward(inputs, *given, **more)

    monkeypatch.setattr(model, "forward", tight)


@pytest.mark.parametrize("batch_size", [None, 40])
def test_what_does_not_fit_into_memory_is_halved(pair, texts, monkeypatch, recwarn, batch_size):
    models = str(pair["swift"]), str(pair["super"])
    expected = JointPredictor(*models, "defer 30%")(texts)
    predictor = JointPredictor(*models, "defer 30%", tokens=1024, super_tokens=512, batch_size=batch_size)
    calls, more = [], []
    small_memory(predictor.swift, monkeypatch, 130, calls)
    small_memory(predictor.super_, monkeypatch, 70, more)
    found = list(predictor.map(texts, 64))
    assert [(one.label, one.answered_by) for one in found] == [(one.label, one.answered_by) for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)
    assert max(calls) <= 130
    assert max(more) <= 70
    # It was halved until it fitted, no further, and stays so.
    assert 65 <= predictor.runners["swift"].tokens <= 130
    assert 35 <= predictor.runners["super"].tokens <= 70
    said = [str(w.message) for w in recwarn if f"does not fit into the memory of {predictor.device}" in str(w.message)]
    assert any("tokens is" in one for one in said)
    assert any("super_tokens is" in one for one in said)
    assert len(said) < 12


def test_an_input_that_does_not_fit_alone(pair, texts, monkeypatch):
    predictor = JointPredictor(str(pair["swift"]), str(pair["super"]), "inf")
    small_memory(predictor.swift, monkeypatch, 8, [])
    with pytest.raises(InputError, match=rf"An input of \d+ tokens does not fit into the memory of {predictor.device}"):
        predictor(texts)


def test_bad_inputs_come_in_their_turn(predictor, texts):
    found = predictor.map([*texts[:50], " ", *texts[:50]], 8)
    with pytest.raises(InputError, match=r"Input 50 \(counted from 0\) is empty"):
        list(found)
    found = predictor.map([*texts[:50], ("a", "b")], 8)
    assert len([next(found) for _ in range(47)]) == 47
    with pytest.raises(InputError, match="Input 50"):
        list(found)
    with pytest.raises(InputError, match="window must hold"):
        next(predictor.map(texts, 0))
    assert list(predictor.map([])) == []


def test_logits_that_are_no_numbers(pair, texts):
    for name, threshold in (("swift", "inf"), ("super_", "-inf")):
        made = JointPredictor(str(pair["swift"]), str(pair["super"]), threshold)
        with torch.no_grad():
            getattr(made, name).backbone.classifier.bias.fill_(math.nan)
        who = {"swift": "Swift", "super_": "Super"}[name]
        with pytest.raises(InputError, match=f"{who}.s logits are NaN or infinite for {len(texts)} of"):
            made(texts)


@pytest.mark.parametrize("option", ["batch_size", "tokens", "super_tokens"])
def test_bad_sizes(pair, option):
    with pytest.raises(InputError, match=f"{option} must be at least 1, but it is 0"):
        JointPredictor(str(pair["swift"]), str(pair["super"]), **{option: 0})


# Files.


def lines_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def about(one):
    """An answer, to compare with one from another batch, in which sums are rounded otherwise."""
    return one | {name: pytest.approx(one[name], abs=1e-5) for name in ("score", "probability")}


@pytest.fixture
def command(pair, texts, tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("\n".join(texts) + "\n", "utf-8")
    models = ["--swift_model", str(pair["swift"]), "--super_model", str(pair["super"]), "--threshold", "defer 30%"]
    return ["predict", *models, "--input", str(source), "--output", str(tmp_path / "out.jsonl"), "--chunk", "16"]


def kill(command, folder, after, how="os._exit(9)", code=9):
    """Start a prediction that stops dead once so many answers are in the file."""
    slow = (
        "import os, sys, elang.inference.resume as p\n"
        "from elang.cli import main\n"
        "real = p._ENCODE\n"
        "count = 0\n"
        "def encode(fields):\n"
        "    global count\n"
        "    count += 1\n"
        f"    if count > {after}:\n"
        f"        {how}\n"
        "    return real(fields)\n"
        "p._ENCODE = encode\n"
        "import io, builtins\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    done = subprocess.run([sys.executable, "-c", slow, *command], forked=True, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return folder / ".out.jsonl.part", folder / ".out.jsonl.part.json", done.stderr


def test_a_killed_run_goes_on(command, tmp_path, capsys, texts):
    assert main(command) == 0
    whole = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").unlink()
    part, note, _ = kill(command, tmp_path, 120)
    assert note.exists()
    # What had reached the disk, and half a line, for the writer is buffered.
    head = b"".join(line + b"\n" for line in whole.split(b"\n")[:90])
    part.write_bytes(head + b'{"label": "go')
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "resuming after 90 inputs answered before" in said
    # The rest was cut into other batches, which round otherwise.
    (tmp_path / "whole.jsonl").write_bytes(whole)
    found, expected = lines_of(tmp_path / "out.jsonl"), lines_of(tmp_path / "whole.jsonl")
    (tmp_path / "whole.jsonl").unlink()
    assert [about(one) for one in expected] == found
    deferred = whole.count(b'"answered_by": "super"')
    assert f"{len(texts)} inputs, {len(texts) - deferred} answered by the Swift and {deferred} (" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.jsonl"]


def test_a_run_that_sigterm_ends_says_how_to_go_on(command, tmp_path):
    stop = "import signal; os.kill(os.getpid(), signal.SIGTERM)"
    part, note, said = kill(command, tmp_path, 120, stop, 128 + signal.SIGTERM)
    assert f"the same command goes on behind what is in '{part}'" in said
    assert part.exists()
    assert note.exists()
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "change", ["input", "threshold", "nothing is left", "nested", "cut", "texts", "earlier format"]
)
def test_another_run_begins_anew(command, tmp_path, capsys, recwarn, change, texts):
    part, note, _ = kill(command, tmp_path, 120)
    part.write_bytes(b'{"label": "stale", "score": 0, "answered_by": "swift"}\n' * 20)
    if change == "input":
        (tmp_path / "in.txt").write_text("\n".join(texts[:30]) + "\n", "utf-8")
    elif change == "threshold":
        command[command.index("defer 30%")] = "defer 10%"
    elif change == "nothing is left":
        note.unlink()
    elif change == "texts":
        command += ["--texts", "true"]
    elif change == "earlier format":
        kept = json.loads(note.read_text())
        del kept["format"]
        note.write_text(json.dumps(kept))
    else:
        note.write_bytes(b"[" * 200_000 if change == "nested" else note.read_bytes()[:-5])
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "answered before" not in said
    begun = [str(one.message) for one in recwarn if "of another run" in str(one.message)]
    assert begun == [f"Beginning anew: '{part}', with 20 answers of another run, is deleted."]
    found = lines_of(tmp_path / "out.jsonl")
    assert len(found) == (30 if change == "input" else len(texts))
    assert not any(one["label"] == "stale" for one in found)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_answer_is_told_by_its_id_and_text(pair, texts, tmp_path, kind):
    """Also of what is resumed."""
    names = [f"q{n}" if kind == "csv" else 1000 + n for n in range(len(texts))]
    frame, source = pd.DataFrame({"nr": names, "question": texts}), tmp_path / f"in.{kind}"
    frame.to_csv(source, index=False) if kind == "csv" else frame.to_json(source, orient="records", lines=True)
    models = ["--swift_model", str(pair["swift"]), "--super_model", str(pair["super"]), "--threshold", "defer 30%"]
    args = ["predict", *models, "--input", str(source), "--text", "question", "--output", str(tmp_path / "out.jsonl")]
    args += ["--chunk", "16", "--id", "nr", "--texts", "true"]
    assert main(args) == 0
    whole, lines = lines_of(tmp_path / "out.jsonl"), (tmp_path / "out.jsonl").read_bytes().splitlines(keepends=True)
    assert [one["id"] for one in whole] == names
    assert [one["text"] for one in whole] == texts
    assert list(whole[0]) == ["id", "label", "probability", "score", "answered_by", "text"]
    (tmp_path / "out.jsonl").unlink()
    part, *_ = kill(args, tmp_path, 60)
    part.write_bytes(b"".join(lines[:50]))
    assert main(args) == 0
    assert lines_of(tmp_path / "out.jsonl") == [about(one) for one in whole]


def test_ids_that_name_nothing(pair, texts, tmp_path, fails):
    models = ["--swift_model", pair["swift"], "--super_model", pair["super"], "--output", tmp_path / "out.jsonl"]
    rows = [{"nr": 1, "text": "good"}, {"nr": None, "text": "bad"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = ["predict", *models, "--input", tmp_path / "in.jsonl", "--text", "text"]
    fails([*table, "--id", "nr"], "column 'nr'", "row 1", "no value")
    fails([*table, "--id", "number"], "no column 'number'", "--id")
    (tmp_path / "in.csv").write_text("nr,text\n7,a film\n,a plot\n")
    fails(["predict", *models, "--input", tmp_path / "in.csv", "--text", "text", "--id", "nr"], "row 1", "a text ('')")
    (tmp_path / "in.txt").write_text("good\n")
    fails(["predict", *models, "--input", tmp_path / "in.txt", "--id", "nr"], "--id names a column", "line by line")
    fails(["predict", *models, "--task", "glue/rte", "--texts", "true"], "With --task", "--texts")


def test_a_finished_part_is_finished(command, tmp_path, capsys):
    """Killed between the last answer and the file's name."""
    assert main(command) == 0
    whole = (tmp_path / "out.jsonl").read_bytes()
    part, *_ = kill(command, tmp_path, 1)
    part.write_bytes(whole)
    (tmp_path / "out.jsonl").unlink()
    assert main(command) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == whole


def test_answers_before_a_bad_input_are_kept(command, tmp_path, fails, texts):
    """And the same command goes on behind them, to the same end."""
    assert main(command) == 0
    whole = lines_of(tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl").unlink()
    (tmp_path / "in.txt").write_text("\n".join([*texts[:100], "", *texts[100:]]) + "\n", "utf-8")
    part = tmp_path / ".out.jsonl.part"
    for _ in range(2):
        said = fails(command, "Line 101", "is empty", part)
        kept = int(re.search(r"The (\d+) answers before it", said)[1])
        # Whole windows, and none of those after it.
        assert 80 <= kept <= 100
        found = lines_of(part)
        assert found == [about(one) for one in whole[:kept]]
    assert not (tmp_path / "out.jsonl").exists()
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n", "utf-8")
    assert main(command) == 0
    assert len(lines_of(tmp_path / "out.jsonl")) == len(texts)
    assert not part.exists()


def test_bad_chunks(command, fails):
    fails([*command[:-1], "0"], "--chunk must be at least 1")


# Timings.


def test_thresholds_of_shares():
    scores = torch.tensor([0.3, 0.1, 0.2, 0.5])
    assert [int((scores > share_threshold(scores, share)).sum()) for share in (0, 0.25, 0.5, 1)] == [0, 1, 2, 4]


def test_what_is_timed(predictor, texts):
    """The Super's cost by its own lengths; predictions by the inputs that are deferred, not by a mean."""
    found = time_pair(predictor, texts, [0.25], texts[:3], repeats=2)
    assert list(found["passes"]) == ["super", "swift", "defer 25%"]
    swift, super_ = (flops_of(predictor, model, texts)["flops"] for model in (predictor.swift, predictor.super_))
    scores = torch.tensor([one.score for one in predictor.map(texts)])
    hard = scores > share_threshold(scores, 0.25)
    assert int(hard.sum()) == 50
    entry = found["passes"]["defer 25%"]
    assert entry["deferred"] == pytest.approx(50 / len(texts), abs=0.002)
    expected = float(super_.sum() / (swift.sum() + super_[hard].sum()))
    assert entry["predicted"] == pytest.approx(expected)
    assert entry["ratio"] == pytest.approx(entry["speedup"] / expected)
    assert found["passes"]["super"]["speedup"] == found["passes"]["super"]["predicted"] == 1
    assert found["passes"]["swift"]["predicted"] == pytest.approx(float(super_.sum() / swift.sum()))
    for entry in found["passes"].values():
        assert 0 < entry["least"] <= entry["median"] <= entry["most"]
        assert 0 < entry["one by one"]["median"] <= entry["one by one"]["95%"]


def test_what_is_timed_before_a_decoder(tmp_path, texts):
    """A deferred input pays for the Swift's encoder alone."""
    from conftest import write_t5

    from elang.backends.loading.checkpoints import save_model
    from elang.records.manifest import Manifest
    from elang.tasks.text_task import TextTask

    task = TextTask.of(["bad", "good"])
    base = str(write_t5(tmp_path / "base", [*texts, "bad good text: "] * 2))
    for name in ("swift", "super"):
        save_model(
            load_model(base, task, fine_tune=True, router=True),
            tmp_path / name,
            Manifest(task.label_names, task.plain()),
        )
    made = JointPredictor(str(tmp_path / "swift"), str(tmp_path / "super"), "inf", "encoder_energy")
    found = time_pair(made, texts[:40], [0.5], [], repeats=1)["passes"]["defer 50%"]
    swift, super_ = (flops_of(made, model, texts[:40]) for model in (made.swift, made.super_))
    hard = torch.tensor([one.score for one in made.map(texts[:40])])
    hard = hard > share_threshold(hard, 0.5)
    paid = torch.where(hard, swift["early_flops"] + super_["flops"], swift["flops"])
    assert (swift["early_flops"] < swift["flops"]).all()
    assert found["predicted"] == pytest.approx(float(super_["flops"].sum() / paid.sum()))


def test_two_runs_into_one_file(command, tmp_path, fails, monkeypatch):
    """The second one is refused, and the first one's answers stay whole."""
    from elang.inference.resume import resumed

    with resumed(str(tmp_path / "out.jsonl"), {}) as (file, given):
        file.write('{"label": "first"}\n')
        file.flush()
        with monkeypatch.context() as another_process:
            another_process.setattr("elang.locks._held", {})
            fails(command, "Another run is writing", "another output")
        assert not given
    assert lines_of(tmp_path / "out.jsonl") == [{"label": "first"}]
    (tmp_path / "folder").mkdir()
    command[command.index(str(tmp_path / "out.jsonl"))] = str(tmp_path / "folder")
    fails(command, "is a folder")


def test_whoever_stops_does_not_wait_for_the_source(pair, texts):
    """A stream that has nothing to say at the moment, and perhaps never will; what is deferred would wait for more."""
    silent = threading.Event()

    def source():
        yield from texts[:40]
        silent.wait(60)

    start = time.monotonic()
    answers = JointPredictor(str(pair["swift"]), None, "inf").map(source(), 8)
    assert len([next(answers) for _ in range(24)]) == 24
    answers.close()
    assert time.monotonic() - start < 30
    silent.set()


def test_bench_verb(pair, files, tmp_path, capsys):
    models = ["--swift_model", str(pair["swift"]), "--super_model", str(pair["super"])]
    args = ["bench", *models, "--input", str(files[1]), "--text", "[text]", "--repeats", "1", "--single", "2"]
    assert main([*args, "--device", "cpu", "--shares", "0.5", "--output", str(tmp_path / "b.json")]) == 0
    said = capsys.readouterr().out
    assert "61 inputs on cpu, many at a time" in said
    assert said.count("defer 50%") == 2
    assert "One by one" in said
    found = json.loads((tmp_path / "b.json").read_text())
    assert (found["inputs"], found["repeats"]) == (61, 1)
    assert list(found["passes"]) == ["super", "swift", "at 1-SE", "defer 50%"]
    assert found["passes"]["defer 50%"]["deferred"] == pytest.approx(0.5, abs=0.01)
    threshold = Manifest.read(pair["swift"]).threshold("1-SE")
    scores = [one.score for one in JointPredictor(str(pair["swift"]), None, "inf")(pd.read_csv(files[1])["text"])]
    deferred = sum(score > threshold for score in scores) / 61
    assert found["passes"]["at 1-SE"]["deferred"] == pytest.approx(deferred)
    # What defers everything is the Super alone.
    args += ["--examples", "20", "--threshold=-inf", "--shares", "1", "--output", str(tmp_path / "c.json")]
    assert main(args) == 0
    passes = json.loads((tmp_path / "c.json").read_text())["passes"]
    assert [passes[name]["predicted"] for name in ("super", "at -inf", "defer 100%")] == [1, 1, 1]
    assert [passes[name]["deferred"] for name in ("super", "at -inf", "defer 100%")] == [1, 1, 1]


def test_the_table_of_a_bench_fits_80_columns(capsys):
    """Even if it is fast, and its threshold has a long name."""
    entry = {"deferred": 1.0, "median": 1e-5, "most": 1.1e-5, "least": 0.9e-5, "speedup": 100.0, "predicted": 123.456}
    entry |= {"ratio": 1.0, "one by one": {"median": 1e-3, "95%": 2.0, "speedup": 12.3}}
    figures = {
        "inputs": 100_000,
        "device": "cuda:0",
        "repeats": 5,
        "passes": dict.fromkeys(["super", "at 99.5%"], entry),
    }
    figures |= {"differences": {"at certified-0.01": {"decisions": 3, "labels": 12, "distance": 0.0012345}}}
    _print(figures)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "100,000 (90,909 to 111,111)" in " ".join(lines)


def test_a_swift_without_thresholds_is_timed_at_shares(pair, files, tmp_path):
    shutil.copytree(pair["swift"], tmp_path / "swift")
    manifest = Manifest.read(pair["swift"])
    manifest.thresholds = {}
    manifest.write(tmp_path / "swift" / "elang.json")
    models = ["--swift_model", str(tmp_path / "swift"), "--super_model", str(pair["super"])]
    args = ["bench", *models, "--input", str(files[1]), "--text", "text", "--examples", "8", "--repeats", "1"]
    assert main([*args, "--single", "0", "--output", str(tmp_path / "b.json")]) == 0
    found = json.loads((tmp_path / "b.json").read_text())["passes"]
    assert list(found) == ["super", "swift", *SHARES]


def test_sizes_fit_into_the_time(predictor, texts, monkeypatch):
    """By a clock on which an input takes the Swift 1 ms and the Super 4 ms, alone or not."""
    clock, shares, named = [0.0], [0.25, 0.75], {"at 1-SE": -math.inf}
    monkeypatch.setattr("elang.inference.speed.time.perf_counter", lambda: clock[0])

    def slow(name, cost):
        real = getattr(predictor, name)

        def call(rows, *more):
            rows = list(rows)
            clock[0] += cost * len(rows)
            return real(rows, *more)

        monkeypatch.setattr(predictor, name, call)

    for name, cost in (("map", 1e-3), ("super_map", 4e-3), ("ask_super", 4e-3)):
        slow(name, cost)
    monkeypatch.setattr(
        type(predictor), "__call__", lambda self, rows: clock.__setitem__(0, clock[0] + 1e-3 * len(rows))
    )
    # A pass: the Swift alone and two shares, the Super alone, -inf, and what is deferred: 3 + 4 (1 + 1 + 1) = 15 ms.
    for given, seconds, examples, single, repeats in (
        (Sizes(), 40, (40 - 110 * 0.015) // (6 * 0.015 + 0.001), 100, 5),
        (Sizes(), 400, 4377, 100, 5),
        (Sizes(), 6.01, (6.01 - 100 * 0.015) // (4 * 0.015 + 0.001), 90, 3),
        (Sizes(), 1.01, (1.01 - 12 * 0.015) // (2 * 0.015 + 0.001), 6, 1),
        (Sizes(single=0), 40, 439, 0, 5),
        (Sizes(examples=1000), 40, 1000, 100, 1),
        (Sizes(examples=7, repeats=9), 1.01, 7, 6, 9),
    ):
        found = _fitting(given, predictor, texts[:32], shares, named=named, seconds=seconds)
        assert (found.single, found.repeats) == (single, repeats), given
        assert found.examples == pytest.approx(examples, abs=1), given


def test_bad_benches(pair, files, fails, tmp_path):
    models = ["--swift_model", pair["swift"], "--super_model", pair["super"]]
    args = ["bench", *models, "--input", files[1]]
    fails([*args, "--shares", "[0.5, 2]"], "--shares must be from 0 to 1, but there is 2")
    fails([*args, "--examples", "1"], "--examples must be at least 2")
    fails([*args, "--repeats", "0"], "--repeats must be at least 1")
    fails([*args, "--seconds", "0"], "--seconds must be above 0")
    fails([*args, "--text", "text", "--threshold", "nowhere"], "no threshold 'nowhere'")
    (tmp_path / "none.txt").write_text("")
    fails(["bench", *models, "--input", tmp_path / "none.txt"], "nothing to time")
