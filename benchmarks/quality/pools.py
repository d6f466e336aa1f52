"""What single models, pairs and chains of published answers of language models reach on rows that did not choose them.

    python benchmarks/quality/pools.py RECORDS [--splits 100]

RECORDS is a folder with mmlu-llama-test.csv.gz and mmlu-qwen_oai-test.csv.gz: for each model whether its answer is
right, the log-probability of the answer, and its price. In each of many random splits one half of the rows chooses, for
several budgets, the best single model, pair and chain of up to three models; the other half shows what they do. Beside
them stand deferring at random (the best mixture of two single models) and an oracle that knows the cheapest model that
is right. Differences come with the 2.5% and 97.5% quantiles over the splits. Then thirds of the rows choose, prove and
check: what a certified regret costs, and how often the check third has more.

routellm-mmlu.csv.gz and routellm-gsm8k.csv.gz have texts, but no scores and no prices: for them the router before any
answer (`elang curve --router tfidf`) is fitted on some rows, and the others show its accuracy by the share of inputs
that the strong model answers, beside deferring at random, an oracle, and for GSM8K the length of the weak model's
answer. Writes benchmarks/results/pools.json.
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
import pandas as pd
import torch
from torch import Tensor

from elang.errors import InputError
from elang.evaluation.answer_table import AnswerTable, read_answers
from elang.evaluation.choice import choose
from elang.evaluation.target import Target
from elang.evaluation.text_router import GainModel
from elang.method.pool import Candidate, Envelope, Pool, envelope

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

FILES = {"MMLU, Llama": "mmlu-llama-test.csv.gz", "MMLU, Qwen and OpenAI": "mmlu-qwen_oai-test.csv.gz"}
# Published: Ong et al., RouteLLM, 2024 (lmsys.org/blog/2024-07-01-routellm), the best of their routers.
TEXTS = {
    "MMLU, RouteLLM": ("routellm-mmlu.csv.gz", "95% of the strong model's quality with 54% of the calls"),
    "GSM8K, RouteLLM": ("routellm-gsm8k.csv.gz", "95% of the strong model's quality at 35% less cost"),
}
# Rows that fit a router at most, and that show what it does.
FITTED, SHOWN = 1000, 4000
SHARES = (0.25, 0.5, 0.75)
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
    for name, (file, published) in TEXTS.items():
        figures[name] = routers(args.records / file, args.splits) | {"published": published}
        print(name, figures[name], flush=True)
    write_result("pools", figures, ("torch", "scikit-learn"))


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


def routers(path: Path, splits: int) -> dict[str, Any]:
    """Held-out accuracy of a pair by the share of inputs that the strong model answers, by what decides."""
    frame = pd.read_csv(path)
    weak, strong = (torch.tensor(frame[f"{name}_correct"].to_numpy(float)) for name in ("mixtral_8x7b", "gpt4_1106"))
    gain, texts = strong - weak, list(frame["prompt"])
    length = torch.tensor(frame["mixtral_8x7b_chars"].to_numpy(float)) if "mixtral_8x7b_chars" in frame else None
    found: dict[str, list[list[float]]] = {}
    fitted = min(FITTED, len(frame) // 2)
    for seed in range(splits):
        order = torch.randperm(len(frame), generator=torch.Generator().manual_seed(seed))
        fit, other = order[:fitted], order[fitted : fitted + SHOWN]
        model = GainModel(texts=True).fit([texts[row] for row in fit.tolist()], gain[fit])
        scores = {"router before": model([texts[row] for row in other.tolist()]), "oracle": gain[other]}
        if length is not None:
            scores["length of the answer"] = length[other]
        for name, score in scores.items():
            found.setdefault(name, []).append(by_share(score, weak[other], gain[other]))
        found.setdefault("random", []).append(by_share(None, weak[other], gain[other]))
    names = [f"accuracy at {share:.0%} of the calls" for share in SHARES]
    names += ["calls for 95% of the strong model's accuracy", "gap recovered on average"]
    rows: dict[str, Any] = {"rows": len(frame), "fitted on": fitted}
    rows["accuracy"] = {"mixtral-8x7b": round(float(weak.mean()), 4), "gpt-4-1106": round(float(strong.mean()), 4)}
    values = {name: torch.tensor(each, dtype=torch.float64) for name, each in found.items()}
    for name, each in values.items():
        rows[name] = {what: round(float(column.mean()), 4) for what, column in zip(names, each.T, strict=True)}
    for name in values.keys() - {"random", "oracle"}:
        ahead = values[name] - values["random"]
        rows[f"{name} minus random"] = {what: spread(column) for what, column in zip(names, ahead.T, strict=True)}
    return rows


def by_share(score: Tensor | None, weak: Tensor, gain: Tensor) -> list[float]:
    """Accuracy at some shares of calls, the share for 95% of the strong model's accuracy, and the mean recovered gap.

    Without a score, calls are made at random: the expected values. Equal scores are in a random order.
    """
    n = len(weak)
    if score is None:
        gained = gain.mean() * torch.arange(n + 1, dtype=torch.float64)
    else:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        order = order[score[order].argsort(descending=True, stable=True)]
        gained = torch.cat([torch.zeros(1, dtype=torch.float64), gain[order].double().cumsum(0)])
    accuracy = weak.double().mean() + gained / n
    enough = int((accuracy >= 0.95 * accuracy[-1]).nonzero()[0, 0]) / n
    recovered = float(((accuracy - accuracy[0]) / (accuracy[-1] - accuracy[0])).mean())
    return [float(accuracy[round(share * n)]) for share in SHARES] + [enough, recovered]


if __name__ == "__main__":
    main()
