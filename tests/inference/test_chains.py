"""Chains of models from files: what they do is what records of the same answers say, and how they are described."""

from dataclasses import replace

import pytest
import torch

from elang import InputError
from elang.backends.backend import Scored
from elang.backends.person import Person
from elang.inference.cascade import Cascade, Stage
from elang.inference.usage import usage
from elang.method.chain import Stages, outcomes
from elang.records.chain_file import Chain, ChainStage, chain_of
from elang.records.table import Records
from elang.tasks.text_task import TextTask

TASK = TextTask.of(["right", "wrong"])
TEXTS = [str(number) for number in range(300)]


class Table:
    """A toy backend with drawn answers; few different scores, so that many are equal to a threshold."""

    def __init__(self, seed):
        draw = torch.Generator().manual_seed(seed)
        self.task, self.asked = TASK, []
        self.answers = torch.randint(0, 2, (len(TEXTS),), generator=draw)
        self.scores = torch.randint(-3, 4, (len(TEXTS),), generator=draw) / 4

    def answer(self, examples):
        rows = [int(texts[0]) for texts in examples.texts]
        self.asked += rows
        return Records(examples.id, self.answers[rows])

    def score(self, examples, score, threshold):
        rows = [int(texts[0]) for texts in examples.texts]
        scores = self.scores[rows]
        answers = self.answer(examples).prediction.tolist()
        return Scored(answers, scores.tolist(), (scores > threshold).tolist())


class Failing(Table):
    def answer(self, examples):
        raise InputError("The server did not answer.")


def cascade(thresholds, last=None):
    tables = [Table(seed) for seed in range(len(thresholds) + 1)]
    limits = [*(("drawn", limit) for limit in thresholds), (None, torch.inf)]
    stages = [
        Stage(f"model-{place}", table, *limit, collect=7, cost=10.0**place)
        for place, (table, limit) in enumerate(zip(tables, limits, strict=True))
    ]
    return tables, Cascade([*stages[:-1], last or stages[-1]])


@pytest.mark.parametrize("thresholds", [[0.25], [0.0, -0.25], [-torch.inf, 0.5], [torch.inf, 0.0], [0.25, -0.5, 0.0]])
def test_a_chain_does_what_its_records_say(thresholds):
    tables, chain = cascade(thresholds)
    right = [(table.answers == 0).double() for table in tables]
    costs = [torch.full((len(TEXTS),), 10.0**place, dtype=torch.float64) for place in range(len(tables))]
    worth, cost, stage = outcomes(Stages(right, costs, [table.scores for table in tables[:-1]]), thresholds)
    for run in chain, lambda texts: list(chain.map(iter(texts), 16)):
        answers = run(TEXTS)
        assert [one.answered_by for one in answers] == [f"model-{place}" for place in stage.tolist()]
        assert [float(one.label == "right") for one in answers] == worth.tolist()
        assert [one.id for one in answers] == list(range(len(TEXTS)))
        found = usage(chain.stages, answers)
        assert sum(one.cost for one in found) == cost.sum()
        assert [one.answered for one in found] == torch.bincount(stage, minlength=len(tables)).tolist()
        assert [one.asked for one in found] == [len(table.asked) for table in tables]
        for table in tables:
            table.asked.clear()


def test_a_person_gives_no_answer_yet():
    person = Stage("person", Person("person", TASK), cost=1000.0)
    tables, chain = cascade([0.0, -0.25], person)
    answers = chain(TEXTS)
    waiting = [one for one in answers if one.answered_by == "person"]
    assert [one.id for one in waiting] == [
        place for place in range(len(TEXTS)) if tables[0].scores[place] > 0 and tables[1].scores[place] > -0.25
    ]
    assert {(one.label, one.probability) for one in waiting} == {(None, None)}
    assert all(one.label is not None for one in answers if one.answered_by != "person")
    with pytest.raises(InputError, match="no records of one"):
        person.backend.answer(None)


def test_a_stage_that_fails_ends_the_run_after_the_answers_before():
    _, chain = cascade([torch.inf, 0.0])
    failing = replace(chain.stages[1], backend=Failing(1))
    chain = Cascade([replace(chain.stages[0], threshold=0.0), failing, chain.stages[2]])
    with pytest.raises(InputError, match="did not answer"):
        chain(TEXTS)
    kept = [text for text, score in zip(TEXTS, Table(0).scores.tolist(), strict=True) if score <= 0]
    assert {one.answered_by for one in chain(kept)} == {"model-0"}


def test_a_chain_is_read_as_it_was_written(tmp_path):
    chain = chain_of(
        ["small", "large", "person"],
        [-0.1 - 0.2, float("inf")],
        {"small": "energy", "large": "confidence"},
        {"small": 1.0, "large": 10.0, "person": 500.0},
        {"small": "runs/small", "large": {"model": "openai:m@http://x", "score": "nll_mean"}},
    )
    chain = replace(chain, unit="USD", statement="At most 2%: \u00e4.")
    chain.write(tmp_path / "chain.yaml")
    assert Chain.read(tmp_path).with_models({}) == replace(
        chain, stages=(chain.stages[0], replace(chain.stages[1], threshold="inf"), chain.stages[2])
    )
    assert [one.score for one in chain.stages] == ["energy", "nll_mean", None]
    assert chain.stages[2].model == "person"


STAGE = "stages: [{name: a, model: x, threshold: 1}, {name: b"


@pytest.mark.parametrize(
    ("text", "models", "message"),
    [
        (STAGE + "}]", {}, "which model 'b' is"),
        (STAGE + "}]", {"c": "x"}, "names 'c'"),
        (STAGE + "}]", {"b": {"treshold": 1}}, "unknown 'treshold'"),
        (STAGE + ", threshold: 2}]", {}, "passes nothing on"),
        (STAGE + ", modell: x}]", {}, "unknown 'stages.1.modell'"),
        ("stages: [{name: a}, {name: b}]", {}, "'a' has no threshold"),
        ("stages: [{name: a}, {name: a}]", {}, "names of their own"),
        ("stages: [{name: a, cost: -1}]", {}, "'stages.0.cost' is -1"),
        ("[1", {}, "no chain"),
        ("format: 2\nstages: []", {}, "format 2"),
    ],
)
def test_what_is_no_chain(tmp_path, text, models, message):
    (tmp_path / "chain.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        Chain.read(tmp_path).with_models(models)


def test_a_chain_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="There is no chain"):
        Chain.read(tmp_path)
    with pytest.raises(InputError, match="names of their own"):
        Chain((ChainStage("a"), ChainStage("a")))
