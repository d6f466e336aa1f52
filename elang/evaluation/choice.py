"""The best single model, pair or chain of a pool: chosen on some rows of a table, and proved on the others."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elang.errors import InputError, listed
from elang.evaluation.answer_table import AnswerTable
from elang.evaluation.slices import describe_slice, independent_rows, independent_units
from elang.evaluation.statements import attempt
from elang.evaluation.target import KINDS, Evidence, Target, alone, assumed, claimed, interval, models_tried, nothing
from elang.method.certificate import mixed
from elang.method.pool import PERSON, Candidate, Envelope, Pool, Test, Tested, along, envelopes, unit_means

# Candidates that are tested at most, and tried to choose between single models, pairs and chains.
_TESTED, _READ = 100, 60
# Rows without which nothing can be compared.
_FEWEST = 2


@dataclass(frozen=True)
class Row:
    """What a candidate does on the rows that prove: means with 95% intervals, and the share that each model answers."""

    kind: str
    models: list[str]
    thresholds: list[float]
    worth: list[float]
    cost: list[float]
    shares: list[float]


@dataclass(frozen=True)
class Choice:
    """What was chosen, what it promises, and what else there is.

    Attributes:
        chosen: The candidate.
        certified: Whether the promise was proved.
        statement: The promise, or why there is none, with what was selected and how many were tried.
        alone: What to say of single models.
        rows: Single models, then the best candidates of each kind, by their kind; ``chosen`` is the last one.
        path: The candidates that were tested in turn, with means on the rows that chose and on those that prove.
        target: What was asked for.
        scores: The kind of score of each model that can be asked first; thresholds are of minus a ``confidence``.
        unit: Of costs.
        metric: What worth is called.
        num_examples: Rows that chose, and independent units that prove.
    """

    chosen: Row
    certified: bool
    statement: str
    alone: str
    rows: list[Row]
    path: list[dict[str, Any]]
    target: dict[str, Any]
    scores: dict[str, str]
    unit: str
    metric: str
    num_examples: dict[str, int]


def choose(table: AnswerTable, target: Target, ledger: Path, unit: str = "units of cost") -> Choice:
    """Choose the best single model, pair or chain, and prove what it promises.

    The ``routing`` rows choose between single models, pairs and chains, each kind by what the candidates of one half do
    on the other half: a longer chain must win there by more than one standard error. The other rows test their path.

    Args:
        table: The answers.
        target: What is wanted.
        ledger: The file that counts attempts on the rows that prove.
        unit: Of costs, for texts.

    Raises:
        InputError: If nothing is good and cheap enough on the rows that choose, or a name is unknown.
    """
    (pool, kinds), proof = _pool(table, target.score), _proof(table)
    tuning = torch.from_numpy((table.split == "routing").nonzero()[0])
    own = None if table.unit is None else table.unit[proof]
    plain, means = pool.take(proof), {name: float(worth[tuning].mean()) for name, worth in pool.worth.items()}
    reference = table.model(target.against or max(means, key=lambda name: (name != PERSON, means[name])))
    values = pool.regretting(reference) if target.max_regret is not None else pool
    chose = values.take(tuning)
    size = _size(chose, target, table.key[tuning] if table.unit is None else table.unit[tuning])
    found = envelopes(chose, target.longest)
    if (place := target.read(found[size])) is None:
        raise InputError(nothing(found[size], target, unit))
    against = reference if target.max_regret is not None else None
    path = _path(found[size], chose, against)
    tested = _Tested(values.take(proof), own, path, {name: float(cost.max()) for name, cost in pool.cost.items()})
    before = replace(tested, pool=chose, unit=None if table.unit is None else table.unit[tuning])
    tested = replace(tested, tests=before.best_tests(target, table.binary and own is None))
    asked = {"kind": "choose", "of": asdict(target) | {"against": reference}, "models": _sha256(plain, chose)}
    about, error = describe_slice(table.key[proof]), 1 - target.confidence
    level, attempts, total = attempt(ledger, about, asked, error=error, check=lambda level, number: None)
    passed, p_value = tested.passed(target, level)
    chosen = found[size].candidates[place] if passed is None else path.candidates[passed]
    (units, noun), metric = independent_units(table.key[proof], own), "accuracy" if table.binary else "worth"
    claim = claimed(target, reference, unit, metric, own)
    evidence = Evidence(
        rows=len(tuning),
        tried=f"{found[target.longest].tried:,} settings of {models_tried(chose, target.longest)}",
        tested=len(path.candidates),
        units=f"{units:,} {noun}",
        p_value=None if passed is None else p_value,
        confidence=1 - total,
        attempts=attempts,
    )
    return Choice(
        chosen=_row(plain, chosen, own),
        certified=passed is not None,
        statement=evidence.stated(claim, target.budget is not None) + assumed(plain, chosen),
        alone=alone(plain, chose, chosen, target, own, None if passed is None else tested.single(target, level)),
        rows=[_row(plain, one, own) for one in _beside(table, target, found)],
        path=_path_rows(path, pool.take(tuning), plain, own, against),
        target=asdict(target) | {"against": against},
        scores=kinds,
        unit=unit,
        metric=metric,
        num_examples={"chose": len(tuning), "prove": units},
    )


def _beside(table: AnswerTable, target: Target, found: dict[int, Envelope]) -> list[Candidate]:
    """What is shown beside the choice: single models, and the best pair and chain by the rows that choose."""
    bests = [one.candidates[at] for one in found.values() if (at := target.read(one)) is not None]
    singles = [Candidate((name,)) for name in table.by_cost()]
    return list(dict.fromkeys([*singles, *bests]))


def _proof(table: AnswerTable) -> Tensor:
    """The rows that prove; of equal texts one."""
    rows = torch.from_numpy((table.split == table.evaluated_on).nonzero()[0])
    return rows[independent_rows(table.key[rows], rows, None if table.unit is None else table.unit[rows])]


def _pool(table: AnswerTable, kind: str | None) -> tuple[Pool, dict[str, str]]:
    """The models, each with one score, and the kind of that score by model."""
    scores = {name: own for name, own in table.scores.items() if own}
    if not scores:
        table.model(next(iter(table.worth)), scored=True)
    kinds = {name: kind or next(iter(own)) for name, own in scores.items() if kind is None or kind in own}
    if not kinds:
        known = dict.fromkeys(name for own in scores.values() for name in own)
        raise InputError(f"No model has a score '{kind}'; there are {listed(list(known))}.")
    return Pool(table.worth, table.cost, {name: scores[name][own] for name, own in kinds.items()}), kinds


def _size(pool: Pool, target: Target, unit: Tensor) -> int:
    """How many models a chain may have: more only if that wins on rows that did not choose its thresholds."""
    half = mixed(mixed(unit)) % 2 == 0
    if min(int(half.sum()), int((~half).sum())) < _FEWEST:
        return 1
    one, other = pool.take(half), pool.take(~half)
    size, before = 1, None
    for longest, known in envelopes(one, target.longest).items():
        path = known.thinned(_READ)
        results = [other.worth_and_cost(candidate) for candidate in path.candidates]
        worth, cost = (torch.stack([result[part].mean() for result in results]) for part in range(2))
        enough = (worth >= target.needed) & (cost <= (target.budget or math.inf))
        if not bool(enough.any()):
            continue
        # The cheapest that is good enough, or the best that is cheap enough.
        place = int(
            (torch.where(enough, cost, math.inf)).argmin()
            if target.good
            else torch.where(enough, worth, -math.inf).argmax()
        )
        now = -results[place][1] if target.good else results[place][0]
        if before is not None:
            ahead = unit_means(now - before, unit[~half])
            if len(ahead) < _FEWEST or float(ahead.mean()) <= float(ahead.std()) / math.sqrt(len(ahead)):
                continue
        size, before = longest, now
    return size


@dataclass(frozen=True)
class _Tested:
    """A path on some rows, tested in turn, with the largest cost of each model, and the tests of worth and of cost."""

    pool: Pool
    unit: Tensor | None
    path: Envelope
    most: dict[str, float]
    tests: tuple[Test, Test] = ("bet", "bet")

    def outcomes(self, place: int) -> tuple[Tensor, Tensor]:
        """Worth and cost of each row; computed anew each time, as all of them would not fit into memory."""
        return self.pool.worth_and_cost(self.path.candidates[place])

    def good(self, target: Target, level: float, test: Test) -> Tested:
        """Candidates that are good enough, the best first."""
        places = range(len(self.path.candidates))[::-1]
        return along(lambda i: 1 - self.outcomes(i)[0], places, 1 - target.needed, level, self.unit, test=test)

    def cheap(self, budget: float, level: float, test: Test) -> Tested:
        """Candidates within a budget, the cheapest first."""
        most = max(sum(self.most[name] for name in one.models) for one in self.path.candidates)
        places = range(len(self.path.candidates))
        return along(lambda i: self.outcomes(i)[1], places, budget, level, self.unit, most, test)

    def best_tests(self, target: Target, exact: bool) -> tuple[Test, Test]:
        """The tests that let the most candidates pass on these rows, for use on others."""
        kinds: tuple[Test, Test] = "bet", "bound"
        level = 1 - target.confidence
        good, cheap = kinds[0], kinds[0]
        if target.good:
            good = "exact" if exact else max(kinds, key=lambda kind: len(self.good(target, level, kind).places))
        if (budget := target.budget) is not None:
            cheap = max(kinds, key=lambda kind: len(self.cheap(budget, level, kind).places))
        return good, cheap

    def passed(self, target: Target, level: float) -> tuple[int | None, float]:
        """The place of the candidate that is proved, and its largest p-value; ``None`` if there is none."""
        level /= 1 + (target.good and target.budget is not None)
        found = [self.good(target, level, self.tests[0])] if target.good else []
        found += [self.cheap(target.budget, level, self.tests[1])] if target.budget is not None else []
        p_values = [dict(zip(each.places, each.p_values, strict=True)) for each in found]
        both = set.intersection(*(set(each) for each in p_values))
        if not both:
            return None, 1.0
        place = min(both) if target.good else max(both)
        return place, max(each[place] for each in p_values)

    def single(self, target: Target, level: float) -> set[str]:
        """The single models that would pass the same test."""
        paths = {name: replace(self.path, candidates=[Candidate((name,))]) for name in self.pool.worth}
        return {name for name, path in paths.items() if replace(self, path=path).passed(target, level)[0] is not None}


def _path_rows(
    path: Envelope, chose: Pool, proof: Pool, unit: Tensor | None, reference: str | None
) -> list[dict[str, Any]]:
    """The candidates with their means on the rows that chose, and on those that prove."""
    rows = []
    for candidate in path.candidates:
        row: dict[str, Any] = {"models": list(candidate.models), "thresholds": list(candidate.thresholds)}
        for prefix, pool, own in (("", chose, None), ("proved_", proof, unit)):
            worth, cost = pool.worth_and_cost(candidate)
            means = {"worth": worth, "cost": cost}
            if reference is not None:
                means["regret"] = (pool.worth[reference] - worth).clamp_min(0)
            row |= {f"{prefix}{name}": float(unit_means(values, own).mean()) for name, values in means.items()}
        rows.append(row)
    return rows


def _path(found: Envelope, pool: Pool, reference: str | None) -> Envelope:
    """The candidates to test, with the reference, which regrets nothing and surely passes, at the safe end."""
    path, surest = found.thinned(_TESTED), Candidate((reference,)) if reference else None
    if surest is None or surest in path.candidates:
        return path
    worth, cost = pool.worth_and_cost(surest)
    means = [torch.cat([a, b.mean()[None]]) for a, b in ((path.worth, worth), (path.cost, cost))]
    return Envelope([*path.candidates, surest], means[0], means[1], path.tried)


def _row(pool: Pool, candidate: Candidate, unit: Tensor | None) -> Row:
    worth, cost, stage = pool.outcomes(candidate)
    shares = torch.bincount(stage, minlength=len(candidate.models)).double() / len(stage)
    means = [interval(unit_means(values, unit)) for values in (worth, cost)]
    kind = KINDS[len(candidate.models)]
    return Row(kind, list(candidate.models), list(candidate.thresholds), means[0], means[1], shares.tolist())


def _sha256(*pools: Pool) -> str:
    """Hash of answers: other ones, also among those that chose, make another attempt."""
    digest = hashlib.sha256()
    for pool in pools:
        digest.update(json.dumps(list(pool.worth)).encode())
        for part in (pool.worth, pool.cost, pool.score):
            for values in part.values():
                digest.update(values.numpy().astype("<f8").tobytes())
    return digest.hexdigest()
