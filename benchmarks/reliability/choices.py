"""How often a promise of `elang choose` is broken in simulation, and what its test saves beside others.

    python benchmarks/reliability/choices.py [--repeats 2000] [--quick]

Each row draws tables of answers from a known population, lets `elang choose` choose and prove on each, and counts how
often the promise does not hold on the population. A row is missed if the share of broken promises exceeds the stated
share by more than three standard errors of the simulation; the row of a shifted population must be broken, as the
promise is for inputs like those that proved it. For every tenth table the same candidates are also tested by
Bonferroni's correction, and in the same order by betting alone and by Hoeffding and Bentkus's bound alone: `cost` and
theirs are what the chosen candidates cost on the population, as a share of the most expensive model, over tables where
each of them passes something. Prints a table and writes benchmarks/results/choices.json; exits with 1 if anything is
missed.
"""

import argparse
import math
import sys
import tempfile
import time
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

POPULATION, CONFIDENCE, EVERY = 20_000, 0.9, 10
# The name, the models, rows of a table, what is wanted, and the kind of data.
ROWS: list[tuple[str, str, int, dict[str, Any], str]] = [
    ("pair, regret", "ae", 800, {"max_regret": 0.05}, "plain"),
    ("chain, regret", "ace", 800, {"max_regret": 0.05}, "plain"),
    ("5 models, regret", "abcde", 800, {"max_regret": 0.05}, "plain"),
    ("5 models, quality", "abcde", 800, {"quality": 0.85}, "plain"),
    ("5 models, budget", "abcde", 800, {"budget": 20.0}, "plain"),
    ("5 models, regret and budget", "abcde", 1200, {"max_regret": 0.06, "budget": 45.0}, "plain"),
    ("5 models, worth, regret", "abcde", 800, {"max_regret": 0.05}, "worth"),
    ("5 models, copies, regret", "abcde", 600, {"max_regret": 0.06}, "copies"),
    ("5 models, groups, regret", "abcde", 400, {"max_regret": 0.06}, "groups"),
    ("5 models, shifted, regret", "abcde", 800, {"max_regret": 0.05}, "shifted"),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the repeats; nothing is written")
    args = parser.parse_args()
    repeats, start = args.repeats // (50 if args.quick else 1), time.perf_counter()
    rows = []
    for row in ROWS:
        rows.append(simulated(*row, repeats=repeats))
        print(rows[-1], flush=True)
    missed = [row for row in rows if row["missed"]]
    figures = {"population": POPULATION, "repeats": repeats, "confidence": CONFIDENCE, "rows": rows}
    figures |= {"missed": len(missed), "seconds": round(time.perf_counter() - start)}
    if not args.quick:
        write_result("choices", figures, ("torch",))
    return int(bool(missed))


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


def others(choice: Choice, target: dict[str, Any], table: AnswerTable, pool: Pool) -> list[float] | None:
    """What candidates cost that other tests choose from the same path: Bonferroni, and Hoeffding and Bentkus."""
    rows = torch.from_numpy((table.split == "validation").nonzero()[0])
    rows = rows[independent_rows(table.key[rows], rows, None if table.unit is None else table.unit[rows])]
    own = Pool(table.worth, table.cost, {name: each["score"] for name, each in table.scores.items()}).take(rows)
    allowed = target.get("max_regret", 1 - target.get("quality", 0.0))
    against = choice.target.get("against")
    losses, path = [], [Candidate(tuple(row["models"]), tuple(row["thresholds"])) for row in choice.path]
    for candidate in path:
        worth = own.outcomes(candidate)[0]
        loss = 1 - worth if against is None else (own.worth[against] - worth).clamp_min(0)
        losses.append(unit_means(loss, None if table.unit is None else table.unit[rows]))
    level, found = 1 - CONFIDENCE, list[int]()
    exact: Test = "exact" if table.binary and table.unit is None else "bound"
    passing = [i for i, loss in enumerate(losses) if mean_p_value(loss, allowed, 1.0, exact) <= level / len(path)]
    found += passing[:1]
    tests: tuple[Test, Test] = "bet", "bound"
    for test in tests:
        found += along(losses.__getitem__, range(len(path))[::-1], allowed, level, test=test).places[-1:]
    return [float(pool.outcomes(path[i])[1].mean()) for i in found] if len(found) == 3 else None


def simulated(name: str, models: str, units: int, wanted: dict[str, Any], kind: str, repeats: int) -> dict[str, Any]:
    pool, size = population(kind, models)
    truth = population(kind, models, easier=-0.4)[0] if kind == "shifted" else pool
    generator, top = torch.Generator().manual_seed(1), float(truth.cost["e"].mean())
    broken = certified = 0
    costs: list[list[float]] = []
    sizes = [0, 0, 0]
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            table = drawn(pool, size, kind, units, generator)
            try:
                choice = choose(table, Target(**wanted, confidence=CONFIDENCE), Path(folder) / f"{repeat}.json")
            except InputError:
                continue
            sizes[len(choice.chosen.models) - 1] += 1
            if choice.certified:
                certified += 1
                true, cost = holds(choice, wanted, truth)
                broken += not true
                if repeat % EVERY == 0 and "budget" not in wanted and (more := others(choice, wanted, table, truth)):
                    costs.append([cost, *more])
    error = 3 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / repeats)
    stated = 1 - CONFIDENCE
    result = {"row": name, "rows": units, "stated": round(stated, 3), "broken": broken / repeats}
    result |= {"certified": certified / repeats, "singles, pairs, chains": [size / repeats for size in sizes]}
    if costs:
        means = torch.tensor(costs).mean(0) / top
        result |= dict(zip(("cost", "Bonferroni", "bets", "Hoeffding-Bentkus"), map(float, means), strict=True))
    too_many = result["broken"] > stated + error
    return result | {"missed": bool(too_many != (kind == "shifted"))}


if __name__ == "__main__":
    sys.exit(main())
