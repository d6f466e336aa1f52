"""The choice from a pool: what is selected on some rows and proved on others, in Python and by its command."""

import html
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from elang.cli.verbs import main
from elang.errors import InputError
from elang.evaluation.answer_table import read_answers
from elang.evaluation.choice import choose
from elang.evaluation.table_columns import TableColumns
from elang.evaluation.target import Target
from elang.method.pool import Candidate, Pool
from elang.records.chain_file import Chain

COSTS = {"tiny": 1.0, "small": 3.0, "large": 30.0}


def answers(n=3000, seed=0, skills=(0.2, 1.0, 2.0), noise=0.4):
    """Models that are better the more they cost; with little noise a score finds what a model cannot do."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=n)
    columns = {"id": np.arange(n)}
    for (name, cost), skill in zip(COSTS.items(), skills, strict=True):
        columns[f"{name}.correct"] = (rng.normal(size=n) / 3 + skill > hard).astype(int)
        columns[f"{name}.cost"] = cost
        columns[f"{name}.score"] = hard + noise * rng.normal(size=n)
    return pd.DataFrame(columns)


def proved(table, choice):
    """Worth and cost of the choice on the rows that prove, computed from the table alone."""
    pool = Pool(table.worth, table.cost, {name: own["score"] for name, own in table.scores.items()})
    rows = torch.from_numpy(np.flatnonzero(table.split == "validation"))
    found = pool.take(rows)
    return found, found.outcomes(Candidate(tuple(choice.chosen.models), tuple(choice.chosen.thresholds)))


def test_a_quality_is_proved_at_less_cost_than_a_model_alone(tmp_path):
    table = read_answers(answers())
    choice = choose(table, Target(quality=0.85), tmp_path / "slices.json", "EUR")
    _, (worth, cost, _) = proved(table, choice)
    assert choice.certified
    assert len(choice.chosen.models) > 1
    assert choice.chosen.worth[0] == pytest.approx(float(worth.mean()))
    assert choice.chosen.cost[0] == pytest.approx(float(cost.mean()))
    assert float(worth.mean()) > 0.85
    assert float(cost.mean()) < 30
    assert "less than large" in choice.alone
    for words in ("is at least 0.85", "95% confidence", "selected on", "3 single models", "settings", "only attempt"):
        assert words in choice.statement
    # Each candidate that was tested comes with its means on both parts.
    last = choice.path[-1]
    assert last["models"] == ["large"] or last["worth"] >= 0.85
    place = next(row for row in choice.path if row["thresholds"] == choice.chosen.thresholds)
    assert place["proved_worth"] == pytest.approx(choice.chosen.worth[0])
    assert [row["cost"] for row in choice.path] == sorted(row["cost"] for row in choice.path)


def test_a_budget_is_kept_by_the_best_within_it(tmp_path):
    table = read_answers(answers())
    choice = choose(table, Target(budget=10.0), tmp_path / "slices.json")
    _, (worth, cost, _) = proved(table, choice)
    assert choice.certified
    assert float(cost.mean()) < 10
    assert float(worth.mean()) > float(table.worth["small"].mean())
    assert "points better than small, the best single model within the budget" in choice.alone
    assert "an input costs at most 10" in choice.statement


def test_regret_and_cost_are_promised_together(tmp_path):
    table = read_answers(answers())
    choice = choose(table, Target(max_regret=0.05, budget=20.0), tmp_path / "slices.json")
    found, (worth, cost, _) = proved(table, choice)
    regret = (found.worth["large"] - worth).clamp_min(0)
    assert choice.certified
    assert float(regret.mean()) < 0.05
    place = next(row for row in choice.path if row["thresholds"] == choice.chosen.thresholds)
    assert place["proved_regret"] == pytest.approx(float(regret.mean()))
    assert place["proved_worth"] == pytest.approx(choice.chosen.worth[0])
    assert float(cost.mean()) < 20
    assert "answered wrong although large is right and an input costs at most 20" in choice.statement
    assert choice.target["against"] == "large"


def test_one_model_alone_is_said_to_be_best(tmp_path):
    # All models know the same, so the cheapest one is as good as any pair.
    frame = answers(skills=(1.0, 1.0, 1.0))
    for name in ("small", "large"):
        frame[f"{name}.correct"] = frame["tiny.correct"]
    choice = choose(read_answers(frame), Target(quality=0.7), tmp_path / "slices.json")
    assert choice.chosen.models == ["tiny"]
    assert choice.alone.startswith("One model alone is best here, tiny")
    # So it is where there is money for a worse one.
    frame["large.correct"] = 0
    assert choose(read_answers(frame), Target(budget=500.0), tmp_path / "other.json").chosen.models == ["tiny"]


def test_what_cannot_be_shown_is_not_promised(tmp_path):
    table = read_answers(answers(60))
    choice = choose(table, Target(max_regret=0.01), tmp_path / "slices.json")
    assert not choice.certified
    assert choice.statement.startswith("Nothing is promised")


@pytest.mark.parametrize("rows", [2, 3, 4, 6])
@pytest.mark.parametrize("wanted", [{"max_regret": 0.1}, {"budget": 40.0}, {"max_regret": 0.5, "budget": 40.0}])
def test_a_few_rows_are_enough_to_choose_and_to_say_what_they_show(tmp_path, rows, wanted):
    frame = answers(rows).assign(part=["routing", "validation"] * (rows // 2) + ["validation"] * (rows % 2))
    choice = choose(read_answers(frame, TableColumns(split="part")), Target(**wanted), tmp_path / "slices.json")
    assert choice.num_examples == {"chose": rows // 2, "prove": rows - rows // 2}
    # No more than the dearest answer of all models together is promised without a test.
    assert not choice.certified or wanted == {"budget": 40.0}
    low, high = choice.chosen.worth[1:]
    assert high - low > 0.3


def test_a_model_that_costs_nothing_keeps_any_budget(tmp_path):
    frame = answers().assign(**{"tiny.cost": 0.0})
    choice = choose(read_answers(frame), Target(budget=0.5), tmp_path / "slices.json")
    assert choice.certified
    assert choice.path[0]["models"] == ["tiny"]


def test_a_rule_says_confidence_where_that_is_the_column(tmp_path, capsys):
    frame = answers()
    for name in COSTS:
        frame[f"{name}.confidence"] = -frame.pop(f"{name}.score")
    frame.to_csv(tmp_path / "answers.csv", index=False)
    command = ["choose", str(tmp_path / "answers.csv"), "--quality", "0.85", "--output", str(tmp_path / "choice")]
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "choice" / "choice.json").read_text())
    first, second = found["chosen"]["models"][:2]
    threshold = found["chosen"]["thresholds"][0]
    assert f"from {first} on to {second} where {first}'s confidence is below {-threshold:.6g}." in said
    kept = frame[f"{first}.confidence"] >= -threshold
    rows = read_answers(frame).split == "validation"
    assert kept[rows].mean() == pytest.approx(found["chosen"]["shares"][0])


def test_attempts_on_the_same_rows_cost_confidence(tmp_path):
    table, ledger = read_answers(answers()), tmp_path / "slices.json"
    first = choose(table, Target(quality=0.8), ledger)
    again = choose(table, Target(quality=0.8), ledger)
    other = choose(table, Target(quality=0.85), ledger)
    assert first.statement == again.statement
    assert "92.5% confidence" in other.statement
    assert "2 attempts were made" in other.statement
    # So does the same request, when other rows have chosen what is tested.
    moved = read_answers(answers())
    moved.cost = {
        name: torch.where(torch.from_numpy(moved.split == "routing"), 1.0, cost) for name, cost in moved.cost.items()
    }
    assert "3 attempts were made" in choose(moved, Target(quality=0.85), ledger).statement


def test_copies_of_a_text_prove_nothing_more(tmp_path):
    frame = answers(1000)
    frame["text"] = "t" + frame["id"].astype(str)
    copies = pd.concat([frame] * 4).assign(id=range(4000))
    one, four = (
        choose(read_answers(rows, TableColumns(text="text")), Target(quality=0.8), tmp_path / f"{len(rows)}.json")
        for rows in (frame, copies)
    )
    assert one.num_examples["prove"] == four.num_examples["prove"]


def test_groups_prove_as_one_example_each(tmp_path):
    frame = answers(4000).assign(passage=np.arange(4000) // 4)
    table = read_answers(frame, TableColumns(group="passage"))
    choice = choose(table, Target(quality=0.85), tmp_path / "slices.json")
    _, (worth, _, _) = proved(table, choice)
    rows = table.split == "validation"
    assert choice.certified
    assert choice.num_examples["prove"] == frame["passage"][rows].nunique()
    by_group = pd.Series(worth.numpy()).groupby(frame["passage"][rows].to_numpy()).mean()
    assert choice.chosen.worth[0] == pytest.approx(by_group.mean())
    assert "each group counting once" in choice.statement
    assert "groups of texts" in choice.statement


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({}, "Give --budget"),
        ({"quality": 0.9, "max_regret": 0.1}, "Give --budget"),
        ({"quality": 1.5}, "--quality must be above 0 and below 1"),
        ({"budget": -1.0}, "--budget must be a finite number above 0"),
        ({"budget": math.inf}, "--budget must be a finite number above 0"),
        ({"quality": 0.9, "confidence": 1.0}, "--confidence must be above 0"),
        ({"quality": 0.9, "longest": 9}, "--longest must be from 1 to 4"),
        ({"quality": 0.999}, "the best has 0."),
        ({"budget": 0.5}, "the cheapest model costs 1"),
        ({"quality": 0.9, "budget": 1.5}, "the cheapest way costs"),
        ({"max_regret": 0.1, "against": "huge"}, "no model 'huge'"),
        ({"quality": 0.5, "score": "entropy"}, "No model has a score 'entropy'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(tmp_path, target, message):
    table = read_answers(answers(400))
    with pytest.raises(InputError) as error:
        choose(table, Target(**target), tmp_path / "slices.json")
    assert message in str(error.value)


def test_the_command_writes_the_choice_and_says_it(tmp_path, capsys):
    answers().to_csv(tmp_path / "answers.csv", index=False)
    command = ["choose", str(tmp_path / "answers.csv"), "--max_regret", "0.05", "--unit", "EUR"]
    assert main([*command, "--output", str(tmp_path / "choice")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "choice" / "choice.json").read_text())
    assert found["format"] == 1
    assert found["statement"] in said
    assert found["alone"] in said
    assert f"Chosen: {' then '.join(found['chosen']['models'])}." in said
    assert found["unit"] == "EUR"
    path = pd.read_csv(tmp_path / "choice" / "path.csv")
    assert len(path) == len(found["path"])
    assert (tmp_path / "choice" / "choice.png").stat().st_size > 1000
    assert (tmp_path / "slices.json").is_file()
    page = (tmp_path / "choice" / "choice.html").read_text()
    assert html.escape(found["statement"]) in page
    assert "base64," in page
    assert "http" not in page
    assert main(["choose", str(tmp_path / "answers.csv")]) == 2


def test_a_person_is_the_last_model_of_a_chain(tmp_path, capsys):
    """The choice is a chain that `predict` reads, and its promise says what was assumed."""
    answers().to_csv(tmp_path / "answers.csv", index=False)
    out = tmp_path / "choice"
    command = ["choose", str(tmp_path / "answers.csv"), "--person", "{cost: 10, right: 1}", "--quality", "0.985"]
    command += ["--models", "{small: {model: runs/small, score: energy}, large: openai:m@http://127.0.0.1:1}"]
    assert main([*command, "--unit", "EUR", "--output", str(out)]) == 0
    choice = json.loads((out / "choice.json").read_text())
    chosen = choice["chosen"]
    # Dearer than a person, and asked before one all the same.
    assert chosen["models"][-1] == "person"
    assert choice["certified"]
    assert "taken to be right with probability 1" in choice["statement"]
    chain = Chain.read(out)
    assert [one.name for one in chain.stages] == chosen["models"]
    assert [one.threshold for one in chain.stages[:-1]] == chosen["thresholds"]
    assert (chain.stages[-1].model, chain.stages[-1].cost, chain.unit) == ("person", 10.0, "EUR")
    assert f"--chain {out}" in capsys.readouterr().out
    table = read_answers(tmp_path / "answers.csv", TableColumns(person={"cost": 10, "right": 0.9}))
    assert table.by_cost() == ["tiny", "small", "large", "person"]
    assert not table.binary
    pool = Pool(table.worth, table.cost, {name: own["score"] for name, own in table.scores.items() if own})
    assert pool.outcomes(Candidate(("tiny", "person"), (-9.0,)))[:2] == (
        pytest.approx(torch.full((3000,), 0.9)),
        pytest.approx(torch.full((3000,), 11.0)),
    )
    # Without a model named for it, a regret is against the best model.
    regret = choose(table, Target(max_regret=0.05), tmp_path / "slices.json")
    assert regret.target["against"] == "large"
    pair = ["curve", str(tmp_path / "answers.csv"), "--person", "{cost: 100}", "--swift", "large"]
    assert main([*pair, "--output", str(tmp_path / "joint")]) == 0
    assert [one.name for one in Chain.read(tmp_path / "joint").stages] == ["large", "person"]


@pytest.mark.parametrize("person", [{"right": 1}, {"cost": -1}, {"cost": 1, "right": 2}, {"cost": 1, "wrong": 1}])
def test_a_person_has_a_cost_and_a_probability(person):
    with pytest.raises(InputError, match="--person needs"):
        TableColumns(person=person)
