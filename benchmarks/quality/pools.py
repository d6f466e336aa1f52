"""What single models, pairs and chains of published answers of language models reach on rows that did not choose them.

    python benchmarks/quality/pools.py RECORDS [--splits 100]

RECORDS is a folder with mmlu-llama-test.csv.gz and mmlu-qwen_oai-test.csv.gz: for each model whether its answer is
right, the log-probability of the answer, and its price. In each of many random splits one half of the rows chooses, for
several budgets, the best single model, pair and chain of up to three models; the other half shows what they do. Beside
them stand deferring at random (the best mixture of two single models) and an oracle that knows the cheapest model that
is right. Differences come with the 2.5% and 97.5% quantiles over the splits. Then thirds of the rows choose, prove and
check: what a certified regret costs, and how often the check third has more. Writes
benchmarks/results/pools.json.
"""

import argparse
import gzip
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.errors import InputError
from elang.evaluation.answer_table import AnswerTable, read_answers
from elang.evaluation.choice import choose
from elang.evaluation.target import Target
from elang.method.pool import Candidate, Envelope, Pool, envelope

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

FILES = {"MMLU, Llama": "mmlu-llama-test.csv.gz", "MMLU, Qwen and OpenAI": "mmlu-qwen_oai-test.csv.gz"}
KINDS = {"single": 1, "pair": 2, "chain": 3}
BUDGETS, REGRETS = (0.1, 0.2, 0.3, 0.5, 0.75), (0.03, 0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("--splits", type=int, default=100)
    args = parser.parse_args()
    figures: dict[str, Any] = {"splits": args.splits}
    for name, file in FILES.items():
        table = read(args.records / file)
        top = table.by_cost()[-1]
        alone = {model: round(float(worth.mean()), 4) for model, worth in table.worth.items()}
        share = {model: round(float(cost.mean() / table.cost[top].mean()), 4) for model, cost in table.cost.items()}
        figures[name] = {"rows": len(table), "accuracy": alone, "cost": share}
        figures[name]["budgets"] = budgets(table, args.splits)
        figures[name]["regrets"] = regrets(table, args.splits)
        print(name, figures[name], flush=True)
    write_result("pools", figures, ("torch",))


def read(path: Path) -> AnswerTable:
    """The table of a compressed file."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        with gzip.open(path) as file, plain.open("wb") as out:
            shutil.copyfileobj(file, out)
        return read_answers(plain)


def pool_of(table: AnswerTable) -> Pool:
    return Pool(table.worth, table.cost, {name: own["confidence"] for name, own in table.scores.items()})


def budgets(table: AnswerTable, splits: int) -> dict[str, Any]:
    """Held-out accuracy and cost for budgets that are shares of the most expensive model's cost."""
    pool, top = pool_of(table), table.by_cost()[-1]
    found: dict[float, list[dict[str, list[float]]]] = {share: [] for share in BUDGETS}
    for seed in range(splits):
        order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
        tuning, other = (pool.take(rows) for rows in order.tensor_split(2))
        price = float(tuning.cost[top].mean())
        known = {kind: envelope(tuning, size) for kind, size in KINDS.items()}
        for share in BUDGETS:
            if known["single"].within(share * price) is None:
                continue
            reached = {kind: held_out(one, other, share * price) for kind, one in known.items()}
            reached["random"] = mixture(known["single"], other, share * price)
            reached["oracle"] = oracle(other, share * price)
            found[share].append({kind: [value, cost / price] for kind, (value, cost) in reached.items()})
    rows = {}
    for share, reached_all in found.items():
        if not reached_all:
            continue
        values = {kind: torch.tensor([one[kind] for one in reached_all]) for kind in reached_all[0]}
        row: dict[str, Any] = {
            kind: {"accuracy": round(float(each[:, 0].mean()), 4), "cost": round(float(each[:, 1].mean()), 4)}
            for kind, each in values.items()
        }
        for one, other_kind in (("pair", "single"), ("chain", "pair"), ("pair", "random")):
            row[f"{one} minus {other_kind}"] = spread(values[one][:, 0] - values[other_kind][:, 0])
        rows[f"{share:g} of the cost"] = row
    return rows


def held_out(found: Envelope, other: Pool, budget: float) -> tuple[float, float]:
    place = found.within(budget)
    assert place is not None
    worth, cost, _ = other.outcomes(found.candidates[place])
    return float(worth.mean()), float(cost.mean())


def mixture(singles: Envelope, other: Pool, budget: float) -> tuple[float, float]:
    """The best random mixture of two single models within a budget."""
    worth, cost = singles.worth.tolist(), singles.cost.tolist()
    best = (-1.0, 0, 0, 0.0)
    for a in range(len(worth)):
        for b in range(a, len(worth)):
            share = 0.0 if a == b else min(1.0, (budget - cost[a]) / (cost[b] - cost[a]))
            if cost[a] <= budget and share >= 0:
                best = max(best, (worth[a] + share * (worth[b] - worth[a]), a, b, share))
    _, a, b, share = best
    one, two = (other.outcomes(singles.candidates[place])[:2] for place in (a, b))
    worths, costs = ((1 - share) * float(x.mean()) + share * float(y.mean()) for x, y in zip(one, two, strict=True))
    return worths, costs


def oracle(other: Pool, budget: float) -> tuple[float, float]:
    """Each input by the cheapest model that is right, the cheapest inputs first, as far as the budget goes."""
    names = sorted(other.cost, key=lambda name: float(other.cost[name].mean()))
    right, cost = (torch.stack([part[name] for name in names]) for part in (other.worth, other.cost))
    least = cost[0]
    best: Tensor = torch.where(right > 0, cost, math.inf).min(0).values
    more = (best - least).clamp_min(0)
    order = more.argsort()
    spent = least.sum() + torch.where(more[order].isinf(), 0.0, more[order]).cumsum(0)
    answered = (~more[order].isinf()) & (spent <= budget * len(least))
    return float(answered.double().mean()), min(budget, float(spent[-1]) / len(least))


def spread(values: Tensor) -> dict[str, float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return {"mean": round(float(values.mean()), 4), "low": round(low, 4), "high": round(high, 4)}


def regrets(table: AnswerTable, splits: int) -> dict[str, Any]:
    """What certified choices cost and regret on a third of the rows that neither chose nor proved them."""
    rows: dict[str, Any] = {}
    parts, top, pool = np.array(["routing", "validation", "test"]), table.by_cost()[-1], pool_of(table)
    for allowed in REGRETS:
        costs, more, certified, sizes = [], 0, 0, [0, 0, 0]
        for seed in range(splits):
            split = parts[np.random.default_rng(seed).permutation(len(table)) % 3]
            part = AnswerTable("records", table.worth, table.cost, table.scores, key=table.key, split=split)
            with tempfile.TemporaryDirectory() as folder:
                try:
                    choice = choose(part, Target(max_regret=allowed, against=top), Path(folder) / "slices.json")
                except InputError:
                    continue
            certified += choice.certified
            sizes[len(choice.chosen.models) - 1] += 1
            check = pool.take(torch.from_numpy(np.flatnonzero(split == "test")))
            chosen = Candidate(tuple(choice.chosen.models), tuple(choice.chosen.thresholds))
            worth, cost, _ = check.outcomes(chosen)
            more += choice.certified and float((check.worth[top] - worth).clamp_min(0).mean()) > allowed
            costs.append(float(cost.mean() / check.cost[top].mean()))
        rows[f"regret {allowed:g}"] = {
            "certified": certified / splits,
            "cost": spread(torch.tensor(costs)),
            "more on the check third": more / splits,
            "singles, pairs, chains": [size / splits for size in sizes],
        }
    return rows


if __name__ == "__main__":
    main()
