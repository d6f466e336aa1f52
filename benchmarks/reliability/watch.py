"""How often `elang monitor` gives a false alarm, and how soon it sees that a promise is broken.

    python benchmarks/reliability/watch.py [--repeats 1000] [--quick]

*False alarms*: streams of 100,000 sampled inputs on which the promise holds, at its very bound, are looked at after
every input; the share of streams with an alarm must not exceed the stated share by more than three standard errors.
So must the share of streams whose mean ever lies outside its interval, here at 300 looks. *Delays*: the regret
rises to twice its bound after 20,000 inputs. The delay is in sampled inputs; with `--shadow 0.01` one input in a hundred
is. Beside it stands a binomial test of the same level at a number of inputs that is fixed beforehand, which is told
when the regret rose: how many it takes to see it as often as it says. *Shifted*: a threshold is certified on 1,500
examples, and after 5,000 inputs like these harder ones come. Writes benchmarks/results/watch.json; exits with 1 if there
are too many false alarms.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.method.bounds import binomial_cdf, quantiles_of
from elang.method.certificate import certify_regret
from elang.method.deferral import route
from elang.method.watching import drift_evidence, exceeded, highest_mean, lowest_mean

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import write_result

LENGTH, ALLOWED, LEVEL, KNOWN = 100_000, 0.02, 0.05, 1313
CHANGE, AFTER = 20_000, 20_000
CERTIFIED, LIKE, HARDER = 1500, 5000, 20_000
ALARM = -math.log(LEVEL)


def regrets(share: float, length: int, generator: torch.Generator) -> Tensor:
    return (torch.rand(length, generator=generator) < share).double()


def regret(generator: torch.Generator) -> bool:
    """Right and wrong answers."""
    return exceeded(regrets(ALLOWED, LENGTH, generator), ALLOWED, LEVEL).place is not None


def uneven(generator: torch.Generator) -> bool:
    """Good and bad days: none of them above the bound."""
    share = torch.where(torch.arange(LENGTH) // 5000 % 2 == 0, ALLOWED, ALLOWED / 4)
    stream = (torch.rand(LENGTH, generator=generator) < share).double()
    return exceeded(stream, ALLOWED, LEVEL).place is not None


def worths(generator: torch.Generator) -> bool:
    """Regrets of any size in [0, 1]."""
    stream = regrets(2 * ALLOWED, LENGTH, generator) * torch.rand(LENGTH, generator=generator).double()
    return exceeded(stream, ALLOWED, LEVEL).place is not None


def drop(generator: torch.Generator) -> bool:
    """Kept answers that are better than the Super's, and others that are worse."""
    place = torch.rand(LENGTH, generator=generator)
    stream = (place < 0.05).double() - (place > 1 - (0.05 - ALLOWED)).double()
    return exceeded(stream, ALLOWED, LEVEL, -1.0).place is not None


def drift(generator: torch.Generator) -> bool:
    """Scores like those of the examples that chose the threshold."""
    known, stream = torch.randn(KNOWN, generator=generator), torch.randn(LENGTH, generator=generator)
    return float(drift_evidence(stream, quantiles_of(known), KNOWN).max()) >= ALARM


def rounded(generator: torch.Generator) -> bool:
    """The same with scores of which many are equal."""
    known, stream = torch.randn(KNOWN, generator=generator), torch.randn(LENGTH, generator=generator)
    known, stream = (10 * known).round() / 10, (10 * stream).round() / 10
    return float(drift_evidence(stream, quantiles_of(known), KNOWN).max()) >= ALARM


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
        return hard + 0.5 * noise[2], right[1].double() - right[0].double()

    score, gain = drawn(CERTIFIED, 0.0)
    certificate = certify_regret(score, gain, ALLOWED, 1 - LEVEL)
    assert certificate is not None
    parts = [drawn(LIKE, 0.0), drawn(HARDER, 0.5)]
    score_now, gain_now = (torch.cat([part[i] for part in parts]) for i in range(2))
    lost = gain_now.clamp_min(0) * ~route(score_now, certificate.threshold)
    place = exceeded(lost, ALLOWED, LEVEL).place
    above = (drift_evidence(score_now, quantiles_of(score), CERTIFIED) >= ALARM).nonzero()
    alarms = [place, int(above[0]) if len(above) else None]
    late = [math.inf if at is None else at + 1 - LIKE if at >= LIKE else math.nan for at in alarms]
    return float(lost[:LIKE].mean()), float(lost[LIKE:].mean()), late[0], late[1]


def fixed(often: float) -> int:
    """The fewest inputs with which a binomial test sees twice the bound this often, for any larger number, too."""
    found = 0
    for n in range(1, 2000):
        least = next(k for k in range(n + 2) if 1 - binomial_cdf(k - 1, n, ALLOWED) <= LEVEL)
        if 1 - binomial_cdf(least - 1, n, 2 * ALLOWED) < often:
            found = n
    return found + 1


def seeded(task: tuple[Callable[[torch.Generator], Any], int]) -> Any:
    torch.set_num_threads(1)
    function, seed = task
    return function(torch.Generator().manual_seed(seed))


def quantiles(values: list[float]) -> dict[str, Any]:
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
    with get_context("spawn").Pool() as pool:

        def of(function: Callable[[torch.Generator], Any], number: int) -> list[Any]:
            return pool.map(seeded, [(function, seed) for seed in range(number)])

        rows = {}
        for function in (regret, uneven, worths, drop, drift, rounded, interval):
            rows[function.__name__] = sum(of(function, repeats)) / repeats
            print(function.__name__, rows[function.__name__], flush=True)
        figures["false alarms"] = rows
        # The fixed test may look once, and has to be told when the regret rose.
        figures["fixed"] = {f"{often:.0%}": fixed(often) for often in (0.5, 0.9)}
        figures["delays"] = {
            f"{before:g} to {2 * ALLOWED:g}": quantiles(of(partial(delay, before), few))
            for before in (ALLOWED / 2, ALLOWED)
        }
        before, after, by_regret, by_drift = zip(*of(shifted, few), strict=True)
        figures["shifted"] = {
            "regret before": sum(before) / few,
            "regret after": sum(after) / few,
            "alarm of the regret": quantiles([*by_regret]),
            "alarm of the scores": quantiles([*by_drift]),
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
