"""What is wanted of a pool of models, and how it is said."""

import math
from dataclasses import dataclass

from torch import Tensor

from elang.errors import InputError, counted
from elang.evaluation.statements import percent
from elang.method.pool import LONGEST, PERSON, Candidate, Envelope, Pool, unit_means

KINDS = {1: "single model", 2: "pair", 3: "chain of three", 4: "chain of four"}
"""Candidates by their number of models."""


@dataclass(frozen=True)
class Target:
    """What is wanted: the cheapest that is good enough, or the best within a budget, or both bounds at once.

    Attributes:
        budget: The most that an input may cost on average.
        quality: The least mean worth, such as accuracy.
        max_regret: The most that an answer may be worth less than the reference model's, on average over all inputs.
        against: That model; by default the one that is best on the rows that choose.
        confidence: Of the promise.
        longest: Most models of a chain.
        score: The kind of score that every model routes by; by default each model's first.
    """

    budget: float | None = None
    quality: float | None = None
    max_regret: float | None = None
    against: str | None = None
    confidence: float = 0.95
    longest: int = 3
    score: str | None = None

    def __post_init__(self) -> None:
        bounds = {"quality": self.quality, "max_regret": self.max_regret}
        if all(bound is None for bound in (self.budget, *bounds.values())) or None not in bounds.values():
            raise InputError("Give --budget, or one of --quality and --max_regret, or a budget with one of these two.")
        for name, value in (bounds | {"confidence": self.confidence}).items():
            if value is not None and not 0 < value < 1:
                raise InputError(f"--{name} must be above 0 and below 1, but it is {value}.")
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise InputError(f"--budget must be a finite number above 0, but it is {self.budget}.")
        if not 1 <= self.longest <= LONGEST:
            raise InputError(f"--longest must be from 1 to {LONGEST}, but it is {self.longest}.")

    @property
    def good(self) -> bool:
        """Whether a quality or a regret is wanted."""
        return self.quality is not None or self.max_regret is not None

    @property
    def needed(self) -> float:
        """The least mean worth, where answers are worth 1 minus their regret if that is bounded; 0 without a bound."""
        return self.quality or (1 - self.max_regret if self.max_regret is not None else 0.0)

    def read(self, found: Envelope) -> int | None:
        """The place of the best candidate by the means of an envelope, if one is good and cheap enough."""
        if not self.good:
            return found.within(self.budget or 0.0)
        place = found.reaching(self.needed)
        return None if place is None or (self.budget and float(found.cost[place]) > self.budget) else place


def interval(values: Tensor) -> list[float]:
    """The mean of independent values ``(N,)``, with the ends of its 95% interval.

    The interval is Wilson's (1927) for values of 0 and 1, which also holds for few of them and where all are equal, and
    a normal approximation for others.

    >>> import torch
    >>> [round(end, 3) for end in interval(torch.ones(20))]
    [1.0, 0.839, 1.0]
    """
    mean, z, n = float(values.double().mean()), 1.96, len(values)
    if bool(((values == 0) | (values == 1)).all()):
        centre, scale = mean + z * z / (2 * n), 1 + z * z / n
        half = z * math.sqrt(mean * (1 - mean) / n + (z / (2 * n)) ** 2)
        return [mean, min(mean, (centre - half) / scale), max(mean, (centre + half) / scale)]
    half = z * float(values.double().std(correction=0)) / math.sqrt(n)
    return [mean, mean - half, mean + half]


def claimed(target: Target, reference: str, unit: str, metric: str, groups: Tensor | None = None) -> str:
    """What is promised, as part of a sentence."""
    claims = []
    if target.quality is not None:
        claims.append(f"the mean {metric} is at least {target.quality:.6g}")
    if target.max_regret is not None and metric == "accuracy":
        claims.append(f"at most {100 * target.max_regret:.4g}% are answered wrong although {reference} is right")
    elif target.max_regret is not None:
        claims.append(f"at most {target.max_regret:.4g} of an answer's worth is lost to {reference} on average")
    if target.budget is not None:
        claims.append(f"an input costs at most {target.budget:.6g} {unit} on average")
    return " and ".join(claims) + ("" if groups is None else ", each group counting once")


@dataclass(frozen=True)
class Evidence:
    """What a statement rests on.

    Attributes:
        rows: How many rows chose.
        tried: What was compared on them, in words.
        tested: How many candidates were tested in turn on other rows.
        units: How many examples those are, with their noun.
        p_value: The largest one of what is promised; ``None`` if nothing passed.
        confidence: That all promises on these rows hold.
        attempts: How many were made.
    """

    rows: int
    tried: str
    tested: int
    units: str
    p_value: float | None
    confidence: float
    attempts: int

    def stated(self, claim: str, budget: bool) -> str:
        """The whole statement; with a ``budget`` also what it takes for granted."""
        sure = f"{percent(self.confidence)} confidence"
        statement = (
            f"Nothing is promised: that {claim} is not shown with {sure} by these {self.units} for any of the "
            f"{counted(self.tested, 'candidates')} in the order in which they would be tested."
        )
        if self.p_value is not None:
            statement = (
                f"On new inputs like these, {claim}, with {sure}. {self.units} that did not choose it show this (p = "
                f"{self.p_value:.2g}; {counted(self.tested, 'candidates')} stood in a fixed order for the test)."
            )
            if budget:
                statement += " It takes for granted that no answer of a model costs more than its dearest in the table."
        statement += f" It was selected on {self.rows:,} other row{'s' * (self.rows != 1)} among {self.tried}."
        if self.attempts == 1:
            return f"{statement} This is the only attempt on these rows so far."
        return f"{statement} {self.attempts} attempts were made on these rows; the confidence is for all of them."


def assumed(pool: Pool, chosen: Candidate) -> str:
    """What a statement takes for granted of a person, where one is asked."""
    if PERSON not in chosen.models:
        return ""
    right = float(pool.worth[PERSON][0])
    return f" A person is taken to be right with probability {right:g}, as was given: that is not shown by these rows."


def models_tried(pool: Pool, longest: int) -> str:
    """How many models, pairs and chains were compared, in words."""
    counts = {size: len(pool.chains(size)) for size in range(1, longest + 1)}
    parts = [f"{count} {KINDS[size]}{'s' * (count != 1)}" for size, count in counts.items() if count]
    parts = [
        part.replace("chain of threes", "chains of three").replace("chain of fours", "chains of four") for part in parts
    ]
    return ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1]


def nothing(found: Envelope, target: Target, unit: str) -> str:
    """What to say if no candidate is good and cheap enough on the rows that choose."""
    least, most = float(found.cost[0]), float(found.worth[-1])
    if not target.good:
        return f"Nothing costs at most {target.budget:g} {unit} an input: the cheapest model costs {least:.6g}."
    wanted = f"a quality of {target.quality:g}" if target.quality else f"a regret of {target.max_regret:g}"
    reached = f"{most:.4f}" if target.quality else f"{1 - most:.4f}"
    if (place := found.reaching(target.needed)) is not None:
        cost = float(found.cost[place])
        return f"Nothing reaches {wanted} within {target.budget:g} {unit} an input: the cheapest way costs {cost:.6g}."
    return f"No model, pair or chain reaches {wanted} on the rows that choose: the best has {reached}. Ask for less."


def alone(
    proof: Pool, values: Pool, chosen: Candidate, target: Target, unit: Tensor | None, passing: set[str] | None
) -> str:
    """What to say of single models beside the choice.

    Args:
        proof: The rows that prove.
        values: The rows that chose, with worths as the target counts them.
        chosen: The candidate.
        target: What is wanted.
        unit: The group of each row that proves, if there are groups.
        passing: Single models that pass the test of the choice; ``None`` if the choice does not pass it either.
    """
    if len(chosen.models) == 1:
        return f"One model alone is best here, {chosen.models[0]}: no pair or chain has shown to be better."
    means = {name: (float(worth.mean()), float(values.cost[name].mean())) for name, worth in values.worth.items()}
    where = "by the rows that chose" if passing is None else "by the same test"
    enough = {
        name: (worth, cost)
        for name, (worth, cost) in means.items()
        if (worth >= target.needed and cost <= (target.budget or math.inf) if passing is None else name in passing)
    }
    if not enough:
        return f"No single model is good enough and within the budget {where}."
    if target.good:
        name = min(enough, key=lambda name: enough[name][1])
        best, sign, scale = (
            f"the cheapest single model that is good enough {where}",
            -1.0,
            float(proof.cost[name].mean()) or 1.0,
        )
    else:
        name = max(enough, key=lambda name: enough[name][0])
        best, sign, scale = f"the best single model within the budget {where}", 1.0, 1.0
    single, pair = (proof.outcomes(one)[int(target.good)] for one in (Candidate((name,)), chosen))
    ahead, low, high = (100 / scale * end for end in interval(unit_means(sign * (pair - single), unit)))
    if high < 0:
        return f"One model alone is better: {name}, {best}. Use it in place of the choice."
    if low <= 0:
        what = f"{ahead:+.1f}% of its cost" if target.good else f"{ahead:+.2f} points"
        return (
            f"One model alone may be as good: {name}, {best}. That the choice is better is not shown ({what}, 95% "
            f"interval {low:.2f} to {high:.2f})."
        )
    if target.good:
        return f"It costs {ahead:.1f}% less than {name}, {best} (95% interval {low:.1f} to {high:.1f}%)."
    return f"It is {ahead:.2f} points better than {name}, {best} (95% interval {low:.2f} to {high:.2f})."
