"""Routers that read the text: what they learn, what they cost, and their curve beside that of the Swift's score."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from elang.backends.sentence import embed
from elang.cli.verbs import main
from elang.data.examples import fold_of
from elang.errors import InputError
from elang.evaluation.answer_table import read_answers
from elang.evaluation.table_columns import TableColumns
from elang.evaluation.table_pair import RouterOption, table_pair
from elang.evaluation.text_router import BOTH, TEXT, GainModel, _cross_fit
from elang.method.bootstrap import gain_area
from elang.records.columns import swift_cost_columns

ROUTER, PRICE = 0.25, {"small": 1.0, "big": 20.0}


def answers(n=600, seed=0, score=True):
    """Half of the texts are of a hard kind; the Swift's score knows another half of what it cannot do."""
    rng = np.random.default_rng(seed)
    kind, other = rng.random(n) < 0.5, rng.random(n) < 0.5
    words = rng.integers(0, 50, (n, 3))
    frame = pd.DataFrame({"id": np.arange(n)})
    names = np.where(kind, "integral", "colour")
    frame["text"] = [f"{name} w{a} w{b} w{c} {i}" for i, (name, (a, b, c)) in enumerate(zip(names, words, strict=True))]
    frame["small.correct"] = (~kind & ~other).astype(int)
    frame["big.correct"] = (rng.random(n) < 0.95).astype(int)
    for name, cost in PRICE.items():
        frame[f"{name}.cost"] = (cost * (1 + rng.random(n))).round(3)
    if score:
        frame["small.score"] = (other + rng.normal(size=n) / 3).round(2)
    return frame


@pytest.fixture(scope="module")
def routed():
    table = read_answers(answers(), TableColumns(text="text"))
    return table, table_pair(table, "small", "big", router=RouterOption(cost=ROUTER))


def test_both_find_what_they_can_know(routed):
    _, pair = routed
    for split, answered in pair.pairs.items():
        areas = {name: float(gain_area(score, answered.gain)) for name, score in answered.scores.items()}
        assert areas[TEXT] > 0.3, split
        assert areas[BOTH] > areas[TEXT] + 0.1, split
        assert areas[BOTH] > areas["score"] + 0.1, split


@pytest.mark.parametrize("name", [TEXT, BOTH, "score"])
def test_the_swift_is_paid_only_where_it_runs(routed, name):
    table, pair = routed
    ((_, curves),) = pair.curves.items()
    curve, answered = curves[name], pair.pairs["validation"]
    swift, super_ = (table.cost[model][answered.id] for model in ("small", "big"))
    straight = answered.scores[name] > 1 if name == BOTH else torch.full((len(answered),), name == TEXT)
    if name == BOTH:
        assert 0 < float(straight.double().mean()) < 1
    own = 0.0 if name == "score" else ROUTER
    for point in (0, len(curve) // 3, len(curve) // 2, len(curve) - 2):
        deferred = answered.scores[name] > curve.threshold[point]
        runs = ~(deferred & straight)
        paid = own + swift * runs + super_ * deferred
        assert float(curve.cost[point]) == pytest.approx(float(paid.mean()))
    # At -inf nothing is asked but the Super.
    assert float(curve.cost[-1]) == pytest.approx(float(super_.mean()))


def test_no_row_scores_itself():
    frame = answers(200)
    gain = torch.from_numpy((frame["big.correct"] - frame["small.correct"]).to_numpy(float))
    fold, texts = fold_of(torch.arange(200) << 32), list(frame["text"])
    before = _cross_fit(texts, gain, fold, True, 1.0)
    changed = gain.clone()
    changed[fold == 2] = -changed[fold == 2]
    after = _cross_fit(texts, changed, fold, True, 1.0)
    assert torch.equal(before[fold == 2], after[fold == 2])
    assert not torch.equal(before[fold != 2], after[fold != 2])


def test_gains_between_count_in_part():
    # Of each vector, the mean prediction is the mean gain: an intercept without a penalty sees to that.
    gain = torch.tensor([-1.0, -0.4, 0.0, 0.3, 0.7, 1.0]).repeat(50)
    vectors = np.random.default_rng(0).normal(size=(300, 2))
    found = GainModel(False).fit(vectors, gain)(vectors)
    assert float(found.mean()) == pytest.approx(float(gain.mean()), abs=1e-3)
    # Where there is one kind of gain, nothing is to be learned.
    assert GainModel(False).fit(vectors, torch.ones(300))(vectors[:3]).tolist() == [1, 1, 1]


def test_a_swift_without_a_score_has_the_router_alone():
    frame = answers(200, score=False)
    table = read_answers(frame, TableColumns(text="text"))
    pair = table_pair(table, "small", "big", router=RouterOption())
    assert list(pair.pairs["validation"].scores) == [TEXT]
    assert pair.summary.score == TEXT
    with pytest.raises(InputError, match="no score of 'small'"):
        table_pair(table, "small", "big")


def test_vectors_stand_in_for_words(routed):
    table, _ = routed
    vectors = torch.tensor([[float(text.startswith("integral")), 1.0] for text in table.text])
    pair = table_pair(table, "small", "big", router=RouterOption(vectors))
    score = pair.pairs["validation"].scores[TEXT]
    hard = vectors[pair.pairs["validation"].id, 0] > 0
    assert float(score[hard].min()) > float(score[~hard].max())


def test_an_encoder_reads_the_texts(tmp_path, capsys, base_model):
    texts = ["integral of the colour", "", "colour"]
    vectors, flops = embed(str(base_model), texts)
    alone, _ = embed(str(base_model), texts[:1])
    # The mean over its own tokens, however long the others are.
    torch.testing.assert_close(vectors[:1], alone)
    assert flops[0] > flops[2] > 0
    answers(300).to_csv(tmp_path / "answers.csv", index=False)
    command = ["curve", str(tmp_path / "answers.csv"), "--text", "text", "--router", str(base_model)]
    assert main([*command, "--unit", "FLOPs", "--output", str(tmp_path / "joint")]) == 0
    records = pd.read_parquet(tmp_path / "joint" / "records.parquet")
    _, expected = embed(str(base_model), list(records["input"]))
    assert records[f"swift_{TEXT}_flops"].tolist() == pytest.approx(expected.tolist())
    assert str(base_model) in capsys.readouterr().out.replace("\n", "")


def test_the_command_shows_the_three_side_by_side(tmp_path, capsys):
    path, folder = tmp_path / "answers.csv", tmp_path / "joint"
    answers().to_csv(path, index=False)
    command = ["curve", str(path), "--text", "text", "--router", "tfidf", "--router_cost", str(ROUTER)]
    assert main([*command, "--unit", "EUR", "--score", TEXT, "--output", str(folder)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "counted with 0.25 EUR an input" in said
    assert "straight to the Super" in said
    assert "the Swift does not run" in said
    assert "`elang fit`" not in said
    summary = json.loads((folder / "summary.json").read_text())
    assert {"score", TEXT, BOTH} <= set(summary["qualities"]["accuracy"]["scores"])
    # A certificate of the router is of rows that it was not fitted on, with its own costs.
    assert main(["calibrate", str(folder), "--max_regret", "0.2"]) == 0
    entry = json.loads((folder / "elang.json").read_text())["thresholds"][TEXT]["certified"]
    records = pd.read_parquet(folder / "records.parquet")
    rows = records[records["split"] == "validation"]
    assert entry["num_examples"] == len(rows)
    lost = (rows[f"score_{TEXT}"] <= entry["threshold"]) & (rows["gain"] > 0)
    assert entry["regretted"] == lost.sum()
    assert swift_cost_columns(TEXT, records) == (
        ["swift_flops", f"swift_{TEXT}_flops"],
        [f"swift_{TEXT}_deferred_flops"],
    )
    assert main(["report", str(folder), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert f">{TEXT}<" in page
    assert f">{BOTH}<" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--router", "tfidf"], "Name its column with --text"),
        (["--router_cost", "1"], "Name one with --router"),
        (["--router", "tfidf", "--text", "text", "--router_cost", "-1"], "--router_cost must be finite"),
        (["--router", "./nowhere", "--text", "text"], "no model folder './nowhere'"),
        (["--router", "tfidf", "--text", "text", "--held_out", "0.1"], "20 rows that choose"),
    ],
)
def test_what_a_router_needs_is_said(tmp_path, capsys, options, message):
    answers(100).to_csv(tmp_path / "answers.csv", index=False)
    assert main(["curve", str(tmp_path / "answers.csv"), *options, "--output", str(tmp_path / "joint")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
