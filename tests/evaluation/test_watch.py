"""The watch: its log, what it says of promises with and without labels, `elang monitor`, its page and exit codes."""

import json
import math
import random

import pandas as pd
import pytest
import torch

from elang import InputError
from elang.cli.verbs import main
from elang.evaluation.report.watch_words import answer, exposition, notes
from elang.evaluation.watch_log import WatchLog, add_labels, line_of, read_log
from elang.evaluation.watch_stream import stream_of
from elang.evaluation.watching import Promise, promised_entry, watched
from elang.method.bounds import quantiles_of
from elang.records.manifest import Manifest

START = {"format": 1, "time": 1e9, "share": 0.5, "score": "max_softmax", "threshold": -0.9, "answers": "classes"}


def logged(path, inputs, seed=0, start=None, **differing):
    """Write a log of as many inputs: a tenth is deferred, and of the others the given share differs from a place on."""
    rng = random.Random(seed)
    lines, deferred = [line_of("start", **START | {"label_names": ["a", "b"]} | (start or {}))], 0
    for i in range(inputs):
        hard = rng.random() < 0.1
        deferred += hard
        counts = {"seen": i + 1, "deferred": deferred, "fallbacks": 0, "unwatched": 0}
        by = "super" if hard else "swift"
        about = {"time": 1e9 + i, "id": f"x{i}", "p": 0.5, "score": rng.gauss(0, 1), "by": by, by: "a"}
        lines.append(line_of("input", **about, **counts))
        if not hard:
            share = max((s for place, s in differing.items() if int(place[1:]) <= i), key=lambda s: s, default=0.0)
            other = rng.random() < share
            more = {"answer": "b" if other else "a", "differs": other, "time": 1e9 + i}
            lines.append(line_of("super", id=f"x{i}", **more))
    path.write_bytes(b"".join(lines))
    return path


def judged(log, *promises, **options):
    return watched(log.at(*log.threshold()), list(promises), **options)


def test_labels_are_needed_only_where_answers_differ(tmp_path):
    log = read_log(logged(tmp_path / "log.jsonl", 3000, _0=0.04))
    none = judged(log, Promise("regret", 0.02))
    regret, disagreement = none.readings[:2]
    assert none.verdict == "undecided"
    assert regret.mean[0] == 0 < regret.mean[1] == disagreement.mean[0] == disagreement.mean[1]
    assert regret.high >= disagreement.high
    # The Super is right in a quarter of them.
    waiting = [name for name, waits in zip(*of_waiting(log), strict=True) if waits]
    assert 80 < len(waiting) < 150
    for place, name in enumerate(waiting):
        log.add({"kind": "label", "id": name, "label": "b" if place % 4 == 0 else "a"})
    known = judged(log, Promise("regret", 0.02))
    assert known.verdict == "holds"
    assert known.readings[0].mean[0] == known.readings[0].mean[1] == math.ceil(len(waiting) / 4) / 3000
    assert known.counts["waiting"] == 0
    # The pair is better than the Super.
    assert judged(log, Promise("drop", 0.02)).readings[2].mean[0] < 0
    assert not any(waits for waits in of_waiting(log)[1])


def of_waiting(log):
    stream = stream_of(log.at(*log.threshold()))
    return stream.ids, stream.waiting.tolist()


def test_a_break_is_told_with_its_time_and_nothing_else_is(tmp_path):
    log = read_log(logged(tmp_path / "log.jsonl", 4000, _0=0.01, _2000=0.2))
    found = judged(log, Promise("disagreement", 0.03), Promise("deferred", 0.2))
    broken, deferred = found.readings[1], found.readings[2]
    assert found.verdict == broken.verdict == "broken"
    assert abs(broken.since - (1e9 + 2000)) < 60
    assert 1e9 + 2000 < broken.shown < 1e9 + 2300
    assert deferred.verdict == "holds"
    assert "Broken: since about 2001-09-09" in answer(found)
    before = log.at(*log.threshold())
    before[0].sampled = {name: one for name, one in before[0].sampled.items() if one.seen <= 2000}
    assert watched(before, [Promise("disagreement", 0.03)]).verdict == "holds"


def test_what_is_not_known_counts_for_the_worst(tmp_path):
    log = read_log(logged(tmp_path / "log.jsonl", 400))
    run = log.runs[0]
    kept = [one for one in run.sampled.values() if one.kept]
    for one in kept[:100]:
        one.differs = one.super_ = None
    stream = stream_of(log.at(*log.threshold()))
    assert stream.differs[0].sum() == 0
    assert stream.differs[1].sum() == 100
    assert judged(log, Promise("disagreement", 0.1)).verdict == "undecided"
    # A label alone says how much may be lost.
    kept[0].label, kept[1].label = "a", "b"
    gains = dict(zip(stream.ids, stream_of(log.runs).gain.T.tolist(), strict=True))
    names = [name for name, one in run.sampled.items() if one.kept][:3]
    assert [gains[name] for name in names] == [[-1, 0], [0, 1], [-1, 1]]


def test_scores_that_drift_and_costs_beside_the_promise(tmp_path):
    log = read_log(logged(tmp_path / "log.jsonl", 1000))
    entry = {"num_examples": 1000, "deferred_share": 0.05, "speedup": 4.0}
    torch.manual_seed(0)
    for shift, drifted in ((0.0, False), (1.0, True)):
        known = entry | {"score_quantiles": quantiles_of(torch.randn(1000) - shift)}
        found = judged(log, Promise("regret", 0.1), entry=known)
        assert (found.drift["shown"] is not None) == drifted
    share = found.counts["deferred"] / 1000
    assert found.speedup == pytest.approx(1 / (1 / 4 - 0.05 + share))
    assert found.deferred[1] < share < found.deferred[2]
    text = " ".join(notes(found))
    assert "it was 5.00% when the threshold was chosen" in text
    assert "have drifted" in text
    gauges = exposition(found).splitlines()
    assert "elang_watch_verdict 1" in gauges
    assert f'elang_watch_inputs{{of="seen"}} {1000.0}' in gauges


def test_inputs_of_a_larger_share_do_not_count_more(tmp_path):
    log = read_log(logged(tmp_path / "log.jsonl", 2000, _0=0.1))
    more = read_log(logged(tmp_path / "more.jsonl", 6000, seed=1, start={"time": 2e9}))
    for one in more.runs[0].sampled.values():
        one.share, one.time = 1.0, one.time + 1e9
    runs = [*log.runs, *more.runs]
    stream = stream_of(runs)
    assert stream.even[:2000].all()
    assert 2700 < stream.even[2000:].sum() < 3300
    share = watched(runs, []).readings[1].mean[0]
    assert share == pytest.approx(0.09 * 2 / 5, abs=0.015)


def test_generated_texts_are_compared_by_the_answers_in_them(tmp_path):
    start = START | {"answers": "texts", "extract": "number", "texts": True}
    log = WatchLog()
    log.add({"kind": "start", **start})
    counts = {"seen": 1, "deferred": 0, "fallbacks": 0, "unwatched": 0}
    about = {"time": 1e9, "p": 0.5, "score": 0.0, "by": "swift", **counts}
    for name, swift, super_ in (("u", "it is 4", "4"), ("v", "so 5", "it is 6")):
        log.add({"kind": "input", **about, "id": name, "swift": swift})
        log.add({"kind": "super", "id": name, "answer": super_, "differs": name == "v", "time": 1e9})
    table = tmp_path / "labels.csv"
    pd.DataFrame({"id": ["u", "v", "unknown"], "label": [4, 6, 1]}).to_csv(table, index=False)
    add_labels(log, table)
    assert log.orphans == 1
    stream = stream_of(log.runs)
    assert stream.gain.tolist() == [[0, 1], [0, 1]]
    assert stream.worth.tolist() == [[1, 0], [1, 0]]
    # Without texts in the log only worths can be labels.
    log.runs[0].about = start | {"texts": False}
    with pytest.raises(InputError, match="--shadow_texts"):
        stream_of(log.runs)


def test_monitor_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    log = logged(tmp_path / "log.jsonl", 3000, _0=0.04)
    entry = {"threshold": -0.9, "max_regret": 0.02, "statement": "s", "num_examples": 500, "deferred_share": 0.1}
    entry |= {"score_quantiles": quantiles_of(torch.randn(500)), "slice_sha256": "x", "speedup": 3.0}
    Manifest(["a", "b"], thresholds={"max_softmax": {"certified": entry, "plain": {"threshold": -0.9}}}).write(
        "elang.json"
    )
    args = ["monitor", str(log), "--promise", "elang.json", "--to_label", "todo.csv", "--prometheus", "watch.prom"]
    assert main(args) == 3
    assert "Undecided" in capsys.readouterr().out
    todo = pd.read_csv("todo.csv")
    assert set(todo["swift_answer"]) == {"a"}
    assert set(todo["super_answer"]) == {"b"}
    todo.assign(label="a").to_csv("labels.csv", index=False)
    assert main([*args, "--labels", "labels.csv"]) == 0
    assert main(["monitor", str(log), "--max_disagreement", "0.02", "--since", "2001-09-09"]) == 1
    content = json.loads((tmp_path / "watch" / "watch.json").read_text())
    assert content["verdict"] == "broken"
    page = (tmp_path / "watch" / "watch.html").read_text()
    assert "Broken: since about" in page
    assert "elang_watch_verdict 1" in (tmp_path / "watch.prom").read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max_regret", "2"], "--max_regret must be above 0 and below 1"),
        (["--promise", "none.json"], "none.json"),
        (["--labels", "bad.csv", "--max_regret", "0.1"], "none of the pair's: a, b"),
        (["--since", "noon"], "--since must be a date"),
        (["--prometheus", "x.txt"], "must end in .prom"),
        (["--confidence", "1"], "--confidence must be between 0 and 1"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, fails, options, says):
    monkeypatch.chdir(tmp_path)
    log = logged(tmp_path / "log.jsonl", 50, _0=0.5)
    (tmp_path / "bad.csv").write_text("id,label\n" + "".join(f"x{i},odd\n" for i in range(50)))
    fails(["monitor", str(log), *options], says)


def test_a_damaged_log(tmp_path):
    path = logged(tmp_path / "log.jsonl", 20)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind":"inp')
    assert len(read_log(path).by_id) == 20
    for line, says in (
        (b"[1]\n", "not an object"),
        (b'{"kind":"input"}\n', "no 'time'"),
        (b'{"kind":"x"}\n', "'kind'"),
    ):
        path.write_bytes(whole + line)
        with pytest.raises(InputError, match=f"cannot be read.*{says}"):
            read_log(path)
    path.write_bytes(whole.partition(b"\n")[2])
    with pytest.raises(InputError, match="before any 'start'"):
        read_log(path)


def test_the_promise_is_the_one_of_the_threshold():
    named = {
        "a": {"threshold": 1.0, "max_regret": 0.1},
        "b": {"threshold": 1.0},
        "c": {"threshold": 2.0, "max_drop": 0.1},
    }
    assert promised_entry(named, 1.0) == named["a"]
    assert promised_entry(named, 2.0) == named["c"]
    assert promised_entry(named, 3.0) is None
