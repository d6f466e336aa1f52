"""How often each promise is broken in simulation, on data of every kind and by users who try more than once.

    python benchmarks/reliability/certificate.py [--repeats 2000] [--quick]

Each row draws slices from a known population, lets the tests of `elang calibrate` choose a threshold on each, and
counts how often the regret or the drop on the population exceeds the promise. A row is missed if the share of broken
promises exceeds the stated share by more than three standard errors of the simulation. The naive choice, which just
meets the target on the slice, is shown beside it. Prints a table and writes benchmarks/results/certificate.json; exits
with 1 if anything is missed.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.evaluation.slices import independent_rows
from elang.evaluation.statements import check_statements, next_level
from elang.method.bounds import effective_number, quantiles_of
from elang.method.certificate import Certificate, certify_drop, certify_regret
from elang.records.manifest import Manifest

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

POPULATION, SCORES, SWIFTS = 20_000, 7, 5
CERTIFY: dict[str, Callable[..., Certificate | None]] = {"regret": certify_regret, "drop": certify_drop}
# The kind of data, the number of independent units of a slice, what is allowed, and the confidence.
SINGLE = [
    *(("plain", n, allowed, c) for n, allowed in ((1000, 0.02), (300, 0.05)) for c in (0.9, 0.95)),
    ("ties", 500, 0.05, 0.9),
    ("one score", 400, 0.02, 0.9),
    ("copies", 300, 0.05, 0.9),
    ("copies with other labels", 300, 0.05, 0.9),
    ("groups", 200, 0.05, 0.9),
    ("worth", 500, 0.03, 0.9),
    ("the fewest", 45, 0.05, 0.9),
    ("the fewest", 149, 0.02, 0.95),
    ("small", 25, 0.15, 0.9),
    ("small", 8, 0.35, 0.8),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="a tenth of the repeats; nothing is written")
    args = parser.parse_args()
    repeats, rows, start = args.repeats // (10 if args.quick else 1), [], time.perf_counter()
    for promise in CERTIFY:
        for kind, n, allowed, confidence in SINGLE:
            rows.append(single(promise, kind, n, allowed, confidence, repeats))
            show(rows[-1])
        for user in ("best of 7 scores", "7 scores until satisfied", "best of 5 Swifts", "amounts in turn", "a list"):
            rows.append(reuse(promise, user, repeats))
            show(rows[-1])
    for data in ("plain", "copies", "groups"):
        rows += checks(data, repeats)
        show(rows[-2])
        show(rows[-1])
    missed = [row for row in rows if row["broken"] > row["stated"] + row["sampling error"]]
    figures = {"population": POPULATION, "repeats": repeats, "rows": rows, "missed": len(missed)}
    figures["seconds"] = round(time.perf_counter() - start)
    if not args.quick:
        write_result("certificate", figures, ("torch",))
    for row in missed:
        print(f"MISSED: {row}", file=sys.stderr)
    return 1 if missed else 0


def population(kind: str, promise: str, seed: int = 0, scores: int = 1) -> tuple[Tensor, Tensor]:
    """Scores ``(scores, P, rows of a unit)`` and gains ``(P, rows of a unit)``: hard inputs gain by deferring."""
    generator = torch.Generator().manual_seed(seed)
    rows = 8 if kind == "groups" else 4 if kind == "copies with other labels" else 1
    hard = torch.randn(POPULATION, 1, generator=generator)
    own = torch.randn(POPULATION, rows, generator=generator) if kind == "groups" else hard.expand(-1, rows)
    latent = (hard + own) / math.sqrt(2 + 2 * (kind != "groups"))
    chance = torch.sigmoid(2 * latent - 2.5)
    gain = (torch.rand(POPULATION, rows, generator=generator) < chance).double()
    if kind == "worth":
        gain = gain * torch.rand(POPULATION, rows, generator=generator)
    if promise == "drop":
        # The Swift is the only one that is right in some, so the drop is not monotone.
        better = torch.rand(POPULATION, rows, generator=generator) < 0.08 * torch.sigmoid(-latent)
        gain = gain - (better & (gain == 0)).double()
    noise = 0.7 * torch.randn(scores, POPULATION, 1, generator=generator)
    score = latent + (noise if kind != "groups" else noise.expand(-1, -1, rows))
    if kind == "ties":
        score = (2 * score).round()
    return (torch.zeros_like(score) if kind == "one score" else score), gain


class Truth:
    """The promised mean on a population at any threshold."""

    def __init__(self, score: Tensor, gain: Tensor, promise: str) -> None:
        values = gain.clamp_min(0) if promise == "regret" else gain
        ordered, order = score.flatten().double().sort()
        self.ordered, self.sums = ordered, torch.cat([torch.zeros(1), values.flatten()[order].cumsum(0)]) / len(order)

    def __call__(self, threshold: float) -> float:
        """The mean where this threshold decides."""
        return float(self.sums[int(torch.searchsorted(self.ordered, threshold, right=True))])


def drawn(kind: str, score: Tensor, gain: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Any]:
    """A slice of ``n`` independent units, as `elang calibrate` reads it from records: scores, gains, groups."""
    units = torch.randint(POPULATION, (n,), generator=generator)
    if kind == "groups":
        return score[units].flatten(), gain[units].flatten(), torch.arange(n).repeat_interleave(gain.shape[1])
    place = torch.zeros(n, dtype=torch.int64)
    if kind.startswith("copies"):
        # Each text comes 1 to 20 times, each time with one of its labels, and one row is taken.
        text = torch.arange(n).repeat_interleave(torch.randint(1, 21, (n,), generator=generator))
        label = torch.randint(gain.shape[1], (len(text),), generator=generator)
        place = label[independent_rows(text, torch.randint(1 << 40, (len(text),), generator=generator))]
    return score[units, place], gain[units, place], None


def naive(score: Tensor, gain: Tensor, allowed: float, promise: str) -> float:
    """The threshold that just meets the target on the slice itself."""
    order = score.argsort(stable=True)
    values = (gain.clamp_min(0) if promise == "regret" else gain)[order].cumsum(0) / len(order)
    ranked = score[order].double()
    ends = torch.cat([ranked[1:] != ranked[:-1], torch.tensor([True])])
    met = (ends & (values <= allowed)).nonzero()
    return float(ranked[met[-1]]) if len(met) else -math.inf


def about(promise: str, kind: str, stated: float, broken: int, repeats: int, **more: Any) -> dict[str, Any]:
    error = 3 * math.sqrt(stated * (1 - stated) / repeats)
    return (
        {"promise": promise, "row": kind}
        | more
        | {
            "stated": round(stated, 6),
            "broken": broken / repeats,
            "sampling error": round(error, 6),
        }
    )


def single(promise: str, kind: str, n: int, allowed: float, confidence: float, repeats: int) -> dict[str, Any]:
    """One attempt on each slice."""
    scores, gain = population(kind, promise)
    score, generator = scores[0], torch.Generator().manual_seed(1)
    truth, broken, wrong, kept, nothing = Truth(score, gain, promise), 0, 0, 0.0, 0
    for _ in range(repeats):
        own_score, own_gain, unit = drawn(kind, score, gain, n, generator)
        found = CERTIFY[promise](own_score, own_gain, allowed, confidence, kind != "worth", unit)
        nothing += found is None
        if found is not None:
            broken += truth(found.threshold) > allowed + 1e-12
            kept += float((score <= found.threshold).double().mean())
        wrong += truth(naive(own_score, own_gain, allowed, promise)) > allowed + 1e-12
    more = {"slice": n, "allowed": allowed, "naive": wrong / repeats}
    more |= {"kept": kept / repeats, "nothing certified": nothing / repeats}
    return about(promise, kind, 1 - confidence, broken, repeats, **more)


def reuse(promise: str, user: str, repeats: int, n: int = 600, allowed: float = 0.04) -> dict[str, Any]:
    """Several attempts on each slice, at the levels of the ledger; the one that defers least, or satisfies, is used."""
    asked, generator, certify = 0.05, torch.Generator().manual_seed(2), CERTIFY[promise]
    pairs = [population("plain", promise, 0, SCORES)]
    if user == "best of 5 Swifts":
        pairs = [population("plain", promise, seed) for seed in range(SWIFTS)]
    tries = [(score, gain, allowed) for scores, gain in pairs for score in scores]
    if user == "amounts in turn":
        tries = [(*tries[0][:2], amount) for amount in (0.01, 0.02, 0.03, 0.04, 0.05, 0.06)]
    truths = [Truth(score, gain, promise) for score, gain, _ in tries]
    # With this share kept the user is satisfied: more than can be had with the true regret that is allowed.
    enough = max(float((s <= naive(s[:, 0], g[:, 0], a, promise)).double().mean()) for s, g, a in tries)
    until = user in ("7 scores until satisfied", "amounts in turn")
    broken, before_rule, stated = 0, 0, 0.0
    for _ in range(repeats):
        units = torch.randint(POPULATION, (n,), generator=generator)
        used: dict[str, tuple[float, bool]] = {"rule": (-1.0, False), "whole": (-1.0, False)}
        spent = 0.0
        for number, (score, gain, amount) in enumerate(tries):
            level = asked / len(tries) if user == "a list" else next_level(number, spent, asked)
            spent += level
            for way, own in (("rule", level), ("whole", asked)):
                found = certify(score[units, 0], gain[units, 0], amount, 1 - own, True)
                threshold = -math.inf if found is None else found.threshold
                kept = float((score[units, 0] <= threshold).double().mean())
                if kept > used[way][0]:
                    used[way] = kept, truths[number](threshold) > amount + 1e-12
            if until and used["rule"][0] >= enough:
                break
        broken, before_rule = broken + used["rule"][1], before_rule + used["whole"][1]
        stated += spent
    more = {
        "slice": n,
        "allowed": allowed,
        "attempts": len(tries),
        "asked": asked,
        "whole level each time": before_rule / repeats,
    }
    return about(promise, user, stated / repeats, broken, repeats, **more)


def checks(data: str, repeats: int, n: int = 150) -> list[dict[str, Any]]:
    """What is said of a promise that holds, with exactly as much regret as is allowed: broken, or drifted."""
    scores, gain = population(data, "regret")
    score, generator = scores[0], torch.Generator().manual_seed(3)
    allowed, refuted, drifted = float(gain.mean()), 0, 0
    for _ in range(repeats):
        sets = []
        for first in (0, n):
            units = torch.randint(POPULATION, (n,), generator=generator)
            copies = torch.randint(1, 21, (n,), generator=generator) if data == "copies" else torch.ones(n).long()
            rows = torch.arange(n).repeat_interleave(copies)
            own, gains, unit = score[units[rows]], gain[units[rows]], None
            key = rows + first
            if data == "groups":
                unit = key.repeat_interleave(gain.shape[1])
                key = torch.arange(len(unit)) + first * gain.shape[1]
            sets.append((key, own.flatten(), gains.flatten(), unit))
        key, own, _, unit = sets[0]
        chosen = independent_rows(key, key, unit)
        number = effective_number(None if unit is None else unit[chosen], len(chosen))
        entry = {"threshold": math.inf, "statement": "", "max_regret": allowed, "num_examples": n}
        entry |= {"score_quantiles": quantiles_of(own[chosen]), "effective_number": number}
        key, own, gains, unit = sets[1]
        (said,) = check_statements(Manifest(["a"], thresholds={"s": {"x": entry}}), key, {"s": own}, gains, "", unit)
        refuted += said["verdict"] == "broken"
        drifted += said["drift_p"] < 0.01
    return [
        about("regret", f"said to be broken although it holds, {data}", 0.025, refuted, repeats, slice=n),
        about("regret", f"said to have drifted although nothing has, {data}", 0.01, drifted, repeats, slice=n),
    ]


def show(row: dict[str, Any]) -> None:
    rest = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, (int, float)))
    print(f"{row['promise']}, {row['row']}: {rest}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
