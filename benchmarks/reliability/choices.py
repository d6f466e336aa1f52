"""How often a promise of `elang choose` is broken in simulation, and what its test saves beside others.

    python benchmarks/reliability/choices.py [--repeats 2000] [--processes 2] [--work FILE] [--quick]

Each row draws tables of answers from a known population, lets `elang choose` choose and prove on each, and counts how
often the promise does not hold on the population. For every tenth table other tests choose from the same candidates:
Bonferroni's correction; betting alone and Hoeffding and Bentkus's bound alone, in the same order; and, where it is
installed and each loss is 0 or 1, MAPIE's split fixed sequence, which learns an order of its own on the rows that
choose. `passes` says how often each finds something, and `cost` what that costs on the population, as a share of the
most expensive model, over tables where this test and ours both find something. `ours less` is by how much ours is
cheaper there, with its standard error.

A row is missed if the share of broken promises exceeds the stated share by more than three standard errors of the
simulation, or if Bonferroni's correction or MAPIE passes more often or is cheaper by more than three standard errors.
The row of a shifted population must be broken, as the promise is for inputs like those that proved it. Results of
finished tables are kept in the file of `--work`, from which an interrupted run resumes. Prints a table and writes
benchmarks/results/choices.json; exits with 1 if anything is missed.
"""

import argparse
import json
import math
import multiprocessing
import sys
import tempfile
import time
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.errors import InputError
from elang.evaluation.answer_table import AnswerTable
from elang.evaluation.choice import Choice, choose
from elang.evaluation.slices import independent_rows
from elang.evaluation.target import Target
from elang.method.pool import Candidate, Pool, Test, along, mean_p_value, unit_means

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

POPULATION, CONFIDENCE, EVERY, CHUNK = 20_000, 0.9, 10, 20
MAPIE = find_spec("mapie") is not None
Chunk = tuple[int, int, int]
"""A row's number, its first table, and the one after its last."""
Table = dict[str, Any]
"""What became of one table: ``size`` of the choice, ``certified``, ``broken``, and costs by ``others``, if compared."""
# The name, the models, rows of a table, what is wanted, and the kind of data.
ROWS: list[tuple[str, str, int, dict[str, Any], str]] = [
    ("pair, regret", "ae", 800, {"max_regret": 0.05}, "plain"),
    ("chain, regret", "ace", 800, {"max_regret": 0.05}, "plain"),
    ("5 models, regret", "abcde", 800, {"max_regret": 0.05}, "plain"),
    ("5 models, quality", "abcde", 800, {"quality": 0.85}, "plain"),
    ("5 models, budget", "abcde", 800, {"budget": 20.0}, "plain"),
    ("5 models, regret and budget", "abcde", 1200, {"max_regret": 0.06, "budget": 45.0}, "plain"),
    ("5 models, worth, regret", "abcde", 800, {"max_regret": 0.05}, "worth"),
    ("5 models, worth, few rows", "abcde", 120, {"max_regret": 0.15}, "worth"),
    ("5 models, copies, regret", "abcde", 600, {"max_regret": 0.06}, "copies"),
    ("5 models, groups, regret", "abcde", 400, {"max_regret": 0.06}, "groups"),
    ("5 models, shifted, regret", "abcde", 800, {"max_regret": 0.05}, "shifted"),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--work", type=Path, help="a file that keeps finished tables, for an interrupted run")
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the repeats; nothing is written")
    args = parser.parse_args()
    repeats = args.repeats // (50 if args.quick else 1)
    starts = range(0, repeats, CHUNK)
    chunks = [(row, start, min(start + CHUNK, repeats)) for start in starts for row in range(len(ROWS))]
    done = finished(args.work)
    todo = [chunk for chunk in chunks if chunk not in done]
    with multiprocessing.get_context("spawn").Pool(args.processes) as workers:
        for chunk, tables, seconds in workers.imap(simulated, todo):
            done[chunk] = (tables, seconds)
            if args.work is not None:
                with args.work.open("a") as file:
                    file.write(json.dumps([chunk, tables, seconds]) + "\n")
            if chunk[2] == repeats:
                print(summary(chunk[0], done, repeats), flush=True)
    rows = [summary(row, done, repeats) for row in range(len(ROWS))]
    missed = [row for row in rows if row["missed"]]
    figures = {"population": POPULATION, "repeats": repeats, "confidence": CONFIDENCE, "rows": rows}
    figures["missed"] = len(missed)
    if not args.quick:
        write_result("choices", figures, ("torch", "mapie"))
    return int(bool(missed))


def finished(work: Path | None) -> dict[Chunk, tuple[list[Table], float]]:
    """What an interrupted run has left."""
    lines = work.read_text().splitlines() if work is not None and work.exists() else []
    return {(chunk[0], chunk[1], chunk[2]): (tables, seconds) for chunk, tables, seconds in map(json.loads, lines)}


def population(kind: str, models: str, easier: float = 0.0) -> tuple[Pool, int]:
    """What models do with inputs, a unit after the other, and the rows of a unit."""
    generator, size = torch.Generator().manual_seed(0), 4 if kind == "groups" else 1

    def normal(rows: int = POPULATION * size) -> Tensor:
        return torch.randn(rows, generator=generator, dtype=torch.float64)

    hard = (0.7 * normal(POPULATION).repeat_interleave(size) + 0.7 * normal() if size > 1 else normal()) - easier
    worth, cost, score = {}, {}, {}
    for place, name in enumerate("abcde"):
        # All are drawn, so that the same model is the same in every row.
        right = (normal() / 2 + 0.6 * place > hard).double()
        part = torch.rand(len(hard), generator=generator, dtype=torch.float64)
        paid = 3.0**place * (0.5 + torch.rand(len(hard), generator=generator, dtype=torch.float64))
        own = hard + normal() / 2
        if name in models:
            worth[name] = torch.maximum(right, part) if kind == "worth" else right
            cost[name], score[name] = paid, own
    return Pool(worth, cost, score), size


def drawn(pool: Pool, size: int, kind: str, units: int, generator: torch.Generator) -> AnswerTable:
    """A table of independent units from the population, half of which choose."""
    unit = torch.randint(POPULATION, (units,), generator=generator)
    place, group = unit, None
    key = torch.arange(units)
    if kind == "copies":
        key = key.repeat_interleave(torch.randint(1, 9, (units,), generator=generator))
        place = unit[key]
    if kind == "groups":
        group = torch.arange(units).repeat_interleave(size)
        place = (unit[:, None] * size + torch.arange(size)).flatten()
        key = torch.arange(len(place))
    part = pool.take(place)
    split = np.where((key if group is None else group).numpy() % 2 == 0, "routing", "validation")
    scores = {name: {"score": values} for name, values in part.score.items()}
    # Rows of different tables must differ in their keys, or they would be one slice with several attempts.
    return AnswerTable("simulated", part.worth, part.cost, scores, key=key, split=split, unit=group)


def holds(choice: Choice, target: dict[str, Any], pool: Pool) -> tuple[bool, float]:
    """Whether a promise is true on the population, and what the choice costs there."""
    worth, cost, _ = pool.outcomes(Candidate(tuple(choice.chosen.models), tuple(choice.chosen.thresholds)))
    true = float(worth.mean()) >= target.get("quality", 0.0) and float(cost.mean()) <= target.get("budget", math.inf)
    if "max_regret" in target:
        regret = (pool.worth[choice.target["against"]] - worth).clamp_min(0)
        true = true and float(regret.mean()) <= target["max_regret"]
    return true, float(cost.mean())


def others(choice: Choice, target: dict[str, Any], table: AnswerTable, pool: Pool) -> dict[str, float | None]:
    """What candidates cost that other tests choose from the same path, by the test; ``None`` where nothing passes."""
    path = [Candidate(tuple(row["models"]), tuple(row["thresholds"])) for row in choice.path]
    allowed = target.get("max_regret", 1 - target.get("quality", 0.0))
    losses = {split: losses_of(path, choice, table, split) for split in ("routing", "validation")}
    proof, level = losses["validation"], 1 - CONFIDENCE
    binary = table.binary and table.unit is None
    exact: Test = "exact" if binary else "bound"
    passing = [i for i, loss in enumerate(proof) if mean_p_value(loss, allowed, 1.0, exact) <= level / len(path)]
    found: dict[str, int | None] = {"Bonferroni": min(passing, default=None)}
    tests: dict[str, Test] = {"bets": "bet", "Hoeffding-Bentkus": "bound"}
    for name, test in tests.items():
        passed = along(proof.__getitem__, range(len(path))[::-1], allowed, level, test=test).places
        found[name] = min(passed, default=None)
    if binary and MAPIE:
        found["MAPIE"] = by_mapie(losses["routing"], proof, allowed)
    costs = {place: float(pool.outcomes(path[place])[1].mean()) for place in found.values() if place is not None}
    return {name: None if place is None else costs[place] for name, place in found.items()}


def losses_of(path: list[Candidate], choice: Choice, table: AnswerTable, split: str) -> list[Tensor]:
    """The losses of each candidate on the units of a split."""
    rows = torch.from_numpy((table.split == split).nonzero()[0])
    unit = None if table.unit is None else table.unit[rows]
    rows = rows[independent_rows(table.key[rows], rows, unit)]
    own = Pool(table.worth, table.cost, {name: each["score"] for name, each in table.scores.items()}).take(rows)
    against = choice.target.get("against")
    losses = []
    for candidate in path:
        worth = own.outcomes(candidate)[0]
        losses.append(unit_means(1 - worth if against is None else (own.worth[against] - worth).clamp_min(0), unit))
    return losses


def by_mapie(learn: list[Tensor], proof: list[Tensor], allowed: float) -> int | None:
    """The cheapest candidate that MAPIE finds valid; the path ascends by cost."""
    from mapie.risk_control import BinaryClassificationController, BinaryRisk

    always = BinaryRisk(lambda y, predicted: predicted == 1, lambda y, predicted: np.ones(len(y), bool), False)
    known = [torch.stack(losses, 1).numpy().astype(int) for losses in (learn, proof)]
    # A "prediction" is the loss of an example under a candidate, whose number is the parameter.
    controller = BinaryClassificationController(
        predict_function=lambda x, place, _: known[int(x[0, 0])][x[:, 1].astype(int), int(place)],
        risk=always,
        target_level=allowed,
        confidence_level=CONFIDENCE,
        best_predict_param_choice=always,
        list_predict_params=np.array([[float(place), 0.0] for place in range(len(proof))]),
        fwer_method="split_fixed_sequence",
    )
    inputs = [np.stack([np.full(len(part), which), np.arange(len(part))], 1) for which, part in enumerate(known)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where nothing passes
        controller.learn_fixed_sequence_order(
            inputs[0], np.zeros(len(inputs[0])), np.logspace(-25, 0, 200), binary=True
        )
        controller.calibrate(inputs[1], np.zeros(len(inputs[1])))
    return min((int(place) for place, _ in controller.valid_predict_params), default=None)


@cache
def populations(row: int) -> tuple[Pool, int, Pool]:
    """The population that tables are drawn from, its rows of a unit, and the one that promises are checked on."""
    _, models, _, _, kind = ROWS[row]
    pool, size = population(kind, models)
    return pool, size, population(kind, models, easier=-0.4)[0] if kind == "shifted" else pool


def simulated(chunk: Chunk) -> tuple[Chunk, list[Table], float]:
    """What became of some tables of a row, and the seconds it took."""
    torch.set_num_threads(1)
    (row, start, stop), begin, tables = chunk, time.perf_counter(), list[Table]()
    (_, _, units, wanted, kind), (pool, size, truth) = ROWS[row], populations(row)
    # Ledgers are written through to the disk, which is not what is measured here.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for repeat in range(start, stop):
            generator = torch.Generator().manual_seed(row * 1_000_000 + repeat + 1)
            table = drawn(pool, size, kind, units, generator)
            try:
                choice = choose(table, Target(**wanted, confidence=CONFIDENCE), Path(folder) / f"{repeat}.json")
            except InputError:  # nothing is good enough on the rows that choose
                tables.append({"size": 0, "certified": False, "broken": False})
                continue
            true, cost = holds(choice, wanted, truth)
            one: Table = {"size": len(choice.chosen.models), "certified": choice.certified}
            one["broken"] = choice.certified and not true
            if repeat % EVERY == 0 and "budget" not in wanted:
                one["others"] = {"ours": cost if choice.certified else None} | others(choice, wanted, table, truth)
            tables.append(one)
    return chunk, tables, time.perf_counter() - begin


def summary(row: int, done: dict[Chunk, tuple[list[Table], float]], repeats: int) -> dict[str, Any]:
    """A row of the result."""
    name, _, units, _, kind = ROWS[row]
    tables = [table for chunk in sorted(done) if chunk[0] == row and chunk[2] <= repeats for table in done[chunk][0]]
    stated, top = 1 - CONFIDENCE, float(populations(row)[2].cost["e"].mean())
    error = 3 * math.sqrt(CONFIDENCE * stated / len(tables))
    broken = sum(table["broken"] for table in tables) / len(tables)
    result: dict[str, Any] = {"row": name, "rows": units, "stated": round(stated, 3), "broken": broken}
    result["certified"] = sum(table["certified"] for table in tables) / len(tables)
    result["singles, pairs, chains"] = [sum(t["size"] == size for t in tables) / len(tables) for size in (1, 2, 3)]
    missed = (broken > stated + error) != (kind == "shifted")
    compared = [table["others"] for table in tables if "others" in table]
    result["compared"] = len(compared)
    for test in compared[0] if compared else ():
        passes = [one[test] is not None for one in compared]
        both = [(one["ours"] / top, one[test] / top) for one in compared if None not in (one["ours"], one[test])]
        less = torch.tensor([theirs - ours for ours, theirs in both], dtype=torch.float64)
        one = {"passes": sum(passes) / len(passes)}
        if len(both) > 1:
            one |= {"cost": sum(theirs for _, theirs in both) / len(both), "ours less": float(less.mean())}
            one["standard error"] = float(less.std()) / math.sqrt(len(less))
        result[test] = one
        if test in ("Bonferroni", "MAPIE"):
            ahead = torch.tensor([(o[test] is not None) - (o["ours"] is not None) for o in compared]).double()
            missed |= float(ahead.mean()) > 3 * float(ahead.std()) / math.sqrt(len(ahead))
            missed |= one.get("ours less", 0.0) < -3 * one.get("standard error", 0.0)
    return result | {"missed": bool(missed)}


if __name__ == "__main__":
    sys.exit(main())
