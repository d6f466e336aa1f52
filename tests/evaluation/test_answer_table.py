"""A table of answers in place of models: read with every value checked, and evaluated as `validate` does."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from elang.cli.verbs import main
from elang.errors import InputError
from elang.evaluation.answer_table import read_answers
from elang.evaluation.summary_file import read_summary
from elang.evaluation.table_columns import TableColumns
from elang.evaluation.table_pair import table_pair
from elang.method.curve.exact import operating_curve
from elang.method.curve.points import Costs


def answers(n=400, seed=0, worth=False):
    """Three models; the small one is unsure where it is wrong."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=n)
    frame = pd.DataFrame({"id": [f"q{i}" for i in range(n)]})
    for name, skill, cost in (("small", -0.3, 1.0), ("mid", 0.7, 4.0), ("big", 1.6, 20.0)):
        right = rng.normal(size=n) + skill > hard
        frame[f"{name}.correct"] = right.astype(int)
        if worth:
            frame[f"{name}.worth"] = np.where(right, 1.0, rng.random(n)).round(3)
        frame[f"{name}.cost"] = (cost * (1 + rng.random(n))).round(3)
        frame[f"{name}.confidence"] = (-hard + rng.normal(size=n) / 2).round(1)
    return frame.drop(columns=[c for c in frame if worth and c.endswith("correct")])


@pytest.mark.parametrize("worth", [False, True])
def test_the_curve_is_that_of_the_columns(worth):
    frame = answers(worth=worth)
    pair = table_pair(read_answers(frame), "small", "big")
    ((quality, curves),) = pair.curves.items()
    assert quality.name == ("worth" if worth else "accuracy")
    rows = frame.loc[pair.pairs["validation"].id.numpy()]
    kind = "worth" if worth else "correct"
    ours, theirs = (torch.tensor(rows[f"{name}.{kind}"].to_numpy(), dtype=torch.float64) for name in ("small", "big"))
    costs = Costs(*(torch.tensor(rows[f"{name}.cost"].to_numpy()) for name in ("small", "big")))
    score = torch.tensor(-rows["small.confidence"].to_numpy())
    one = torch.ones_like(ours)
    expected = operating_curve(
        score, torch.stack([ours, one], 1), torch.stack([theirs, one], 1), lambda sums: sums[:, 0] / sums[:, 1], costs
    )
    found = curves["confidence"]
    for name in ("threshold", "deferred", "quality", "cost"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    for point in range(len(found)):
        deferred = score > found.threshold[point]
        assert float(found.quality[point]) == pytest.approx(float(torch.where(deferred, theirs, ours).mean()))
    # Chosen on the other half.
    assert len(pair.pairs["routing"]) + len(rows) == len(frame)
    assert not set(pair.pairs["routing"].id.tolist()) & set(rows.index)
    assert pair.summary.worth.unit == ("worth, from 0 to 1" if worth else "right answers")


def test_two_commands_make_a_curve_a_certificate_and_a_page(tmp_path, capsys):
    frame, folder = answers(2000), tmp_path / "joint"
    frame["text"] = "input of " + frame["id"]
    frame.to_csv(tmp_path / "answers.csv", index=False)
    assert main(["curve", str(tmp_path / "answers.csv"), "--text", "text", "--output", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "small before big" in said
    assert "units of cost by the Swift alone" in " ".join(said.split())
    assert "FLOPs" not in said
    summary = read_summary(folder)
    assert summary.swift_model == "small"
    assert (folder / "curve.png").is_file()
    assert main(["calibrate", str(folder), "--max_regret", "0.1"]) == 0
    entry = json.loads((folder / "elang.json").read_text())["thresholds"]["confidence"]["certified"]
    assert entry["max_regret"] == 0.1
    # Recomputed from the file alone.
    routing = read_answers(frame, TableColumns(text="text")).split == "routing"
    kept = -frame["small.confidence"] <= entry["threshold"]
    lost = kept & (frame["big.correct"] > frame["small.correct"])
    assert entry["num_examples"] == routing.sum()
    assert entry["regretted"] == lost[routing].sum()
    assert main(["report", str(folder), "--output", str(tmp_path / "page.html")]) == 0
    assert "input of q" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_formats_and_spellings_are_read_alike(tmp_path, suffix):
    frame = answers(60)
    expected = read_answers(frame)
    other = frame.rename(columns=lambda name: name.replace(".", "/" if suffix == "csv" else "_"))
    other["small/correct" if suffix == "csv" else "small_correct"] = frame["small.correct"].astype(bool)
    path = tmp_path / f"answers.{suffix}"
    if suffix == "csv":
        other.to_csv(path, index=False)
    elif suffix == "jsonl":
        other.to_json(path, orient="records", lines=True)
    else:
        other.to_parquet(path)
    found = read_answers(path)
    assert list(found.worth) == ["small", "mid", "big"]
    for name in found.worth:
        assert torch.equal(found.worth[name], expected.worth[name])
        assert torch.equal(found.cost[name], expected.cost[name])
        assert torch.equal(found.scores[name]["confidence"], expected.scores[name]["confidence"])
    assert torch.equal(found.key, expected.key)
    assert (found.split == expected.split).all()


def test_answers_are_compared_with_the_reference():
    frame = pd.DataFrame({"gold": ["a", "b", "c", "d"] * 5, "s.answer": ["a", "x", " c", ""] * 5, "s.score": 1.0})
    frame["b.answer"], frame["part"] = frame["gold"], ["routing", "test"] * 10
    about = TableColumns(reference="gold", costs={"s": 1, "b": 9}, split="part")
    table = read_answers(frame, about)
    assert table.worth["s"].tolist() == [1, 0, 1, 0] * 5
    assert table.worth["b"].tolist() == [1] * 20
    assert table.evaluated_on == "test"
    assert table.cost["b"].tolist() == [9] * 20


def test_groups_stay_together_and_count_once():
    frame = answers(400)
    frame["passage"] = np.arange(400) // 4
    table = read_answers(frame, TableColumns(group="passage"))
    parts = pd.Series(table.split).groupby(frame["passage"]).nunique()
    assert (parts == 1).all()
    assert len(table.unit.unique()) == 100
    assert table.pair("small", "big", "routing").unit is not None


def test_rows_without_ids_are_told_apart_from_those_of_another_file():
    first, second = (read_answers(answers(300, seed).drop(columns="id")) for seed in (0, 1))
    assert len(first.key.unique()) == 300
    assert not torch.isin(first.key, second.key).any()


def broken(**changes):
    frame = answers(20)
    for name, value in changes.items():
        column = name.replace("__", ".")
        if value is None:
            frame = frame.drop(columns=column)
        else:
            frame[column] = (frame[column] if column in frame else pd.Series(0, frame.index)).astype(object)
            frame.loc[3, column] = value
    return frame


def twice(column):
    """Two parts that share a value."""
    frame = answers(20).assign(part=["routing"] * 10 + ["test"] * 10)
    frame[column] = [f"value {row}" for row in range(20)]
    frame.loc[11, column] = "value 2"
    return frame


@pytest.mark.parametrize(
    ("frame", "about", "message"),
    [
        (broken(small__correct=0.5), {}, "0.5 as its 'small.correct' in row 3"),
        (broken(small__correct="maybe"), {}, "'maybe' as its 'small.correct' in row 3"),
        (broken(big__correct=float("nan")), {}, "'big.correct' in row 3"),
        (broken(big__cost=-1.0), {}, "-1.0 as its 'big.cost' in row 3"),
        (broken(big__cost=float("nan")), {}, "'big.cost' in row 3"),
        (broken(big__cost=None), {}, "--costs '{big: 0.001}'"),
        (broken(small__confidence=float("inf")), {}, "'small.confidence' in row 3"),
        (broken(id="q4"), {}, "'q4' of the column 'id' comes more than once, in rows 3 and 4"),
        (broken(small__correct=None), {}, "which answers of 'small' are right"),
        (broken(small__worth=1.5, small__correct=None), {}, "1.5 as its 'small.worth' in row 3"),
        (broken(), {"group": "passage"}, "no column 'passage'"),
        (broken(), {"costs": {"tiny": 1.0}}, "--costs names 'tiny'"),
        (broken(), {"costs": {"big": -1.0}}, "'big' has -1.0"),
        (broken(), {"held_out": 1.0}, "--held_out must be between 0 and 1"),
        (broken(), {"columns": {"small.cost": "big.cost"}}, "has one already"),
        (broken(part="train"), {"split": "part"}, "as its 'part'"),
        (answers(20)[["id", "small.correct", "small.cost"]], {}, "has 1 models"),
        (answers(20).assign(small_cost=1), {}, "mean the same"),
        (answers(20).iloc[:0], {}, "has no rows"),
        (answers(20).assign(**dict.fromkeys(["small.cost", "mid.cost", "big.cost"], 0)), {}, "All costs"),
        (
            twice("text"),
            {"text": "text", "split": "part"},
            "the same 'text' in 'routing' and in 'test', there in row 11",
        ),
        (twice("of"), {"group": "of", "split": "part"}, "the same 'of' in 'routing' and in 'test', there in row 11"),
    ],
)
def test_bad_tables_are_refused(frame, about, message):
    with pytest.raises(InputError) as error:
        read_answers(frame, TableColumns(**about))
    assert message in str(error.value)


def test_models_and_scores_must_be_there():
    table = read_answers(answers(40).drop(columns="big.confidence"))
    for names, message in (
        (("small", "huge"), "no model 'huge'"),
        (("small", "small"), "are both 'small'"),
        (("big", "small"), "no score of 'big'"),
        (("small", "big", "entropy"), "no score 'entropy'; it has 'confidence'"),
    ):
        with pytest.raises(InputError, match=message):
            table_pair(table, *names)
