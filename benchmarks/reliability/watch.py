"""How often `elang monitor` gives a false alarm, and how soon it sees that a promise is broken.

    python benchmarks/reliability/watch.py [--repeats 1000] [--quick]

*False alarms*: streams of 100,000 sampled inputs on which the promise holds, at its very bound, are looked at after
every input; the share of streams with an alarm must not exceed the stated share by more than three standard errors.
So must the share of streams whose mean ever lies outside its interval, here at 300 looks. The streams are judged side
by side, input by input, and some of them also by the library's own functions, which must agree.

*Delays*: the regret rises to twice its bound after 20,000 inputs. The delay is in sampled inputs; with `--shadow 0.01`
one input in a hundred is. Beside it stands a binomial test of the same level at a number of inputs that is fixed
beforehand, which is told when the regret rose: how many it takes to see it as often as it says. *Shifted*: a threshold
is certified on 1,500 examples, and after 5,000 inputs like these come harder ones, on which the promise is broken.

Writes benchmarks/results/watch.json; exits with 1 if there are too many false alarms.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elang.method import watching
from elang.method.bounds import binomial_cdf, quantiles_of
from elang.method.certificate import certify_regret
from elang.method.deferral import route
from elang.method.watching import ODDS, drift_evidence, exceeded, highest_mean, lowest_mean, starts_every

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

LENGTH, ALLOWED, LEVEL, KNOWN = 100_000, 0.02, 0.05, 1313
CHANGE, AFTER = 20_000, 20_000
CERTIFIED, LIKE, HARDER = 1500, 5000, 20_000
ALARM = -math.log(LEVEL)
# Inputs that are drawn at a time, and streams that are also judged by the library.
PART, CHECKED = 1000, 3
BINS, OLD, WINDOWS = watching._BINS, watching._OLD, watching._WINDOWS


Values = Callable[[int, int, torch.Generator], Tensor]


def regrets(share: float | Tensor, shape: tuple[int, ...] | int, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) < share).double()


def regret(start: int, repeats: int, generator: torch.Generator) -> Tensor:
    """Right and wrong answers, ``(PART, repeats)`` from an input on."""
    return regrets(ALLOWED, (PART, repeats), generator)


def uneven(start: int, repeats: int, generator: torch.Generator) -> Tensor:
    """Good and bad days: none of them above the bound."""
    return regrets(ALLOWED if start // 5000 % 2 == 0 else ALLOWED / 4, (PART, repeats), generator)


def worths(start: int, repeats: int, generator: torch.Generator) -> Tensor:
    """Regrets of any size in [0, 1]."""
    return regrets(2 * ALLOWED, (PART, repeats), generator) * torch.rand((PART, repeats), generator=generator)


def drop(start: int, repeats: int, generator: torch.Generator) -> Tensor:
    """Kept answers that are better than the Super's, and others that are worse, in [-1, 1]."""
    place = torch.rand((PART, repeats), generator=generator)
    return (place < 0.05).double() - (place > 1 - (0.05 - ALLOWED)).double()


def alarms(values: Values, minimum: float, repeats: int) -> float:
    """The share of streams with an alarm at any look, of streams side by side: a step is one more input of each."""
    generator = torch.Generator().manual_seed(0)
    odds, span = ODDS.numpy()[:, None], 1 - minimum
    bound = 1 + odds * (ALLOWED - minimum) / span
    weight, left = (part.numpy() for part in watching._start_weights(LENGTH, starts_every(ALLOWED)))
    stakes, most = np.zeros((len(odds), repeats)), np.zeros(repeats)
    first = []
    for start in range(0, LENGTH, PART):
        part = values(start, repeats, generator)
        first.append(part[:, :CHECKED])
        for t, row in enumerate(((part - minimum) / span).numpy(), start):
            stakes += weight[t]
            stakes *= (1 + odds * row) / bound
            np.maximum(most, stakes.mean(0) + left[t], out=most)
    streams = torch.cat(first)
    for i in range(min(CHECKED, repeats)):
        own = float(exceeded(streams[:, i], ALLOWED, LEVEL, minimum).log_won.max())
        assert math.isclose(own, math.log(most[i]), abs_tol=1e-6), (own, most[i])
    return float((most >= 1 / LEVEL).mean())


def drifts(digits: int | None, repeats: int) -> float:
    """The share of streams of scores like those that chose the threshold with an alarm, side by side.

    ``digits``: scores are rounded to so many, which makes many of them equal.
    """
    generator = torch.Generator().manual_seed(0)
    rows = np.arange(repeats)

    def drawn(shape: tuple[int, ...]) -> Tensor:
        scores = torch.randn(shape, generator=generator)
        return scores if digits is None else (scores * 10**digits).round() / 10**digits

    known, quantiles = drawn((repeats, KNOWN)), list[list[float]]()
    prior = np.zeros((repeats, BINS))
    edges = []
    for i in range(repeats):
        quantiles.append(quantiles_of(known[i]))
        edge, mass = watching._bins(quantiles[-1], KNOWN)
        edges.append(edge)
        prior[i, : len(mass)] = mass.numpy()
    seen, recent = prior.copy(), [np.zeros((repeats, BINS)) for _ in WINDOWS]
    places = np.zeros((LENGTH, repeats), np.int8)
    weight, left = (part.numpy() for part in watching._start_weights(LENGTH, BINS))
    stakes, most, first = np.zeros((len(WINDOWS), repeats)), np.zeros(repeats), []
    for start in range(0, LENGTH, PART):
        part = drawn((repeats, PART))
        first.append(part[:CHECKED])
        binned = [torch.bucketize(part[i].double(), edges[i]) for i in range(repeats)]
        places[start : start + PART] = torch.stack(binned, 1).numpy()
        for t in range(start, start + PART):
            place = places[t]
            expected = seen[rows, place] / (KNOWN + 1 + t)
            for which, window in enumerate(WINDOWS):
                today = OLD * prior[rows, place] / (KNOWN + 1) + recent[which][rows, place]
                factor = today / (OLD + min(t, window)) / expected
                stakes[which] = (stakes[which] + weight[t]) * factor
                recent[which][rows, place] += 1
                if t >= window:
                    recent[which][rows, places[t - window]] -= 1
            seen[rows, place] += 1
            np.maximum(most, stakes.mean(0) + left[t], out=most)
    streams = torch.cat(first, 1)
    for i in range(min(CHECKED, repeats)):
        own = float(drift_evidence(streams[i], quantiles[i], KNOWN).max())
        assert math.isclose(own, math.log(most[i]), abs_tol=1e-6), (own, most[i])
    return float((most >= 1 / LEVEL).mean())


def interval(generator: torch.Generator) -> bool:
    """Whether the mean is ever outside its interval."""
    stream = regrets(ALLOWED, LENGTH, generator)
    at = torch.logspace(0, math.log10(LENGTH), 300).long().unique() - 1
    half = 1 - LEVEL / 2
    low, high = lowest_mean(stream, at, half), highest_mean(stream, at, half)
    return bool(((low > ALLOWED) | (high < ALLOWED)).any())


def delay(before: float, generator: torch.Generator) -> float:
    """Inputs from the rise of the regret to twice its bound until the alarm; NaN after a false one."""
    stream = torch.cat([regrets(before, CHANGE, generator), regrets(2 * ALLOWED, AFTER, generator)])
    place = exceeded(stream, ALLOWED, LEVEL).place
    return math.inf if place is None else place + 1 - CHANGE if place >= CHANGE else math.nan


def shifted(generator: torch.Generator) -> tuple[float, float, float, float]:
    """Regret before and after a shift, and the delays of the two alarms; infinite without one, NaN if false."""

    def drawn(number: int, harder: float) -> tuple[Tensor, Tensor]:
        hard = torch.randn(number, generator=generator).double() + harder
        noise = torch.randn(3, number, generator=generator).double()
        right = [0.5 * noise[i] + ahead > hard for i, ahead in enumerate((0.8, 2.0))]
        # The Swift does not see all of what makes them harder.
        return hard + 0.5 * noise[2] - 0.7 * harder, right[1].double() - right[0].double()

    score, gain = drawn(CERTIFIED, 0.0)
    certificate = certify_regret(score, gain, ALLOWED, 1 - LEVEL)
    assert certificate is not None
    parts = [drawn(LIKE, 0.0), drawn(HARDER, 1.0)]
    score_now, gain_now = (torch.cat([part[i] for part in parts]) for i in range(2))
    lost = gain_now.clamp_min(0) * ~route(score_now, certificate.threshold)
    place = exceeded(lost, ALLOWED, LEVEL).place
    above = (drift_evidence(score_now, quantiles_of(score), CERTIFIED) >= ALARM).nonzero()
    alarms = [place, int(above[0]) if len(above) else None]
    late = [math.inf if at is None else at + 1 - LIKE if at >= LIKE else math.nan for at in alarms]
    return float(lost[:LIKE].mean()), float(lost[LIKE:].mean()), late[0], late[1]


def fixed(often: float) -> int:
    """The fewest inputs with which a binomial test sees twice the bound this often, for any larger number, too."""
    found, least = 0, 0
    for n in range(1, 1000):
        # How many are too many never falls with one input more.
        while 1 - binomial_cdf(least - 1, n, ALLOWED) > LEVEL:
            least += 1
        if 1 - binomial_cdf(least - 1, n, 2 * ALLOWED) < often:
            found = n
    return found + 1


def delays(values: list[float]) -> dict[str, Any]:
    """How often there was no alarm, or a false one, and quantiles of the delays, those without an alarm as the last."""
    true = sorted(value for value in values if not math.isnan(value))
    places = {"10%": 0.1, "median": 0.5, "90%": 0.9}
    shown = {name: true[min(len(true) - 1, int(share * len(true)))] for name, share in places.items()}
    finite = {name: value if math.isfinite(value) else None for name, value in shown.items()}
    return {"false": 1 - len(true) / len(values), "none": true.count(math.inf) / len(values)} | finite


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the repeats; nothing is written")
    args = parser.parse_args()
    repeats, start = args.repeats // (50 if args.quick else 1), time.perf_counter()
    few = max(10, repeats // 5)
    figures: dict[str, Any] = {"length": LENGTH, "allowed": ALLOWED, "level": LEVEL, "repeats": repeats}

    def of(function: Callable[[torch.Generator], Any], number: int) -> list[Any]:
        return [function(torch.Generator().manual_seed(seed)) for seed in range(number)]

    rows: dict[str, float] = {}
    for values in (regret, uneven, worths, drop):
        rows[values.__name__] = alarms(values, -1.0 if values is drop else 0.0, repeats)
        print(rows, flush=True)
    rows |= {"scores": drifts(None, repeats), "scores with ties": drifts(1, repeats)}
    print(rows, flush=True)
    rows["interval"] = sum(of(interval, repeats)) / repeats
    figures["false alarms"] = rows
    # The fixed test may look once, and has to be told when the regret rose.
    figures["fixed"] = {f"{often:.0%}": fixed(often) for often in (0.5, 0.9)}
    figures["delays"] = {
        f"{before:g} to {2 * ALLOWED:g}": delays(of(partial(delay, before), few)) for before in (ALLOWED / 2, ALLOWED)
    }
    before, after, by_regret, by_drift = zip(*of(shifted, few), strict=True)
    figures["shifted"] = {
        "regret before": sum(before) / few,
        "regret after": sum(after) / few,
        "alarm of the regret": delays([*by_regret]),
        "alarm of the scores": delays([*by_drift]),
    }
    most = LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / repeats)
    missed = [name for name, share in rows.items() if share > most]
    figures |= {"missed": missed, "seconds": round(time.perf_counter() - start)}
    print(figures)
    if not args.quick:
        write_result("watch", figures, ("torch",))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
