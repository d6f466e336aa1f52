"""A pool of models: its single models, pairs and chains, the best of them at each cost, and tests along that path.

A path is learned on some examples: the candidates that no other one beats there in worth and in cost. On other
examples it is a sequence that is fixed before the test. So each candidate is tested at the whole level, from the safe
end on until the first one fails (Pareto testing; Laufer-Goldshtein et al., 2023; Angelopoulos et al., Learn then Test,
2021), and it does not matter how many were tried to learn the path.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

from elang.method.bounds import log_evidence, p_value
from elang.method.certificate import unit_weights
from elang.method.chain import Stages, frontier, grid_of, on_grid, outcomes, worth_and_cost

PERSON = "person"
"""The name of a person in a pool, who is asked last, if at all."""
Test = Literal["exact", "bet", "bound"]
# Thresholds of each stage on the grid, by the number of stages; more stages have coarser grids.
_POINTS = {1: 0, 2: 200, 3: 48, 4: 20}
LONGEST = max(_POINTS)


@dataclass(frozen=True)
class Candidate:
    """A way to answer: one model, or several in the order in which they are asked, with their thresholds."""

    models: tuple[str, ...]
    thresholds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Pool:
    """What each model of a pool did with ``N`` inputs.

    Attributes:
        worth: What its answers are worth, 0 to 1, by model, ``(N,)``.
        cost: What they cost, ``(N,)``.
        score: How hard the inputs are for it, larger is harder, ``(N,)``; only of models that can be asked first.
    """

    worth: dict[str, Tensor]
    cost: dict[str, Tensor]
    score: dict[str, Tensor]

    def take(self, rows: Tensor) -> "Pool":
        """The same for some inputs."""
        parts = (self.worth, self.cost, self.score)
        return Pool(*({name: values[rows] for name, values in part.items()} for part in parts))

    def regretting(self, reference: str) -> "Pool":
        """A pool in which an answer is worth 1 minus its regret: how much less it is worth than the reference's."""
        best = self.worth[reference]
        return Pool(
            {name: 1 - (best - worth).clamp_min(0) for name, worth in self.worth.items()}, self.cost, self.score
        )

    def stages(self, models: Sequence[str]) -> Stages:
        """The models as stages of a chain."""
        worth, cost = ([part[name] for name in models] for part in (self.worth, self.cost))
        return Stages(worth, cost, [self.score[name] for name in models[:-1]])

    def outcomes(self, candidate: Candidate) -> tuple[Tensor, Tensor, Tensor]:
        """Worth, cost and answering stage of each input under a candidate, each ``(N,)``."""
        return outcomes(self.stages(candidate.models), candidate.thresholds)

    def worth_and_cost(self, candidate: Candidate) -> tuple[Tensor, Tensor]:
        """Worth and cost of each input under a candidate, each ``(N,)``."""
        return worth_and_cost(self.stages(candidate.models), candidate.thresholds)

    def by_cost(self) -> list[str]:
        """The models, the cheapest first; a person comes last."""
        return sorted(self.worth, key=lambda name: (name == PERSON, float(self.cost[name].mean())))

    def chains(self, size: int, order: list[str] | None = None) -> list[tuple[str, ...]]:
        """All chains of ``size`` models from cheap to expensive; all but the last one need a score."""
        order = self.by_cost() if order is None else order
        return [chain for chain in combinations(order, size) if all(name in self.score for name in chain[:-1])]


@dataclass(frozen=True)
class Envelope:
    """The candidates that no other one beats, by rising cost and worth.

    Attributes:
        candidates: The ``F`` candidates.
        worth: Their mean worth on the examples that the envelope was learned on, float64 ``(F,)``.
        cost: Their mean cost, likewise.
        tried: How many vectors of thresholds were compared.
    """

    candidates: Sequence[Candidate]
    worth: Tensor
    cost: Tensor
    tried: int

    def within(self, budget: float) -> int | None:
        """The place of the best candidate whose cost is at most a budget."""
        found = int((self.cost <= budget).sum())
        return found - 1 if found else None

    def reaching(self, worth: float) -> int | None:
        """The place of the cheapest candidate whose worth is at least this."""
        found = int((self.worth < worth).sum())
        return found if found < len(self.candidates) else None

    def thinned(self, points: int) -> "Envelope":
        """At most about ``points`` candidates, evenly by worth and by cost, with both ends."""
        if len(self.candidates) <= points:
            return self
        places = [
            torch.searchsorted(v, torch.linspace(float(v[0]), float(v[-1]), points // 2).double())
            for v in (self.worth, self.cost)
        ]
        kept = torch.cat([*places, torch.tensor([0, len(self.worth) - 1])]).clamp_max(len(self.worth) - 1).unique()
        chosen = [self.candidates[place] for place in kept.tolist()]
        return Envelope(chosen, self.worth[kept], self.cost[kept], self.tried)


def envelope(pool: Pool, longest: int) -> Envelope:
    """The envelope of all candidates of at most ``longest`` models."""
    return envelopes(pool, longest)[longest]


def envelopes(pool: Pool, longest: int) -> dict[int, Envelope]:
    """The envelopes of all candidates of at most 1, 2, ... and ``longest`` models, by that number."""
    found: list[_OnGrid] = []
    known, tried, order = {}, 0, pool.by_cost()
    for size in range(1, longest + 1):
        grids = {name: grid_of(score, _POINTS[size]) for name, score in pool.score.items()} if size > 1 else {}
        for models in pool.chains(size, order):
            own = [grids[name] for name in models[:-1]]
            worth, cost = (values.flatten() for values in on_grid(pool.stages(models), own))
            # Few of them are left for the comparison with those of other chains.
            places = frontier(cost, worth)
            tried += len(worth)
            found.append(_OnGrid(models, own, places, worth[places], cost[places]))
        known[size] = _best_of(found, tried)
    return known


@dataclass(frozen=True)
class _OnGrid:
    """The frontier of one chain: places on its grids of thresholds, with their means."""

    models: tuple[str, ...]
    grids: list[Tensor]
    places: Tensor
    worth: Tensor
    cost: Tensor

    def candidate(self, at: int) -> Candidate:
        index, thresholds = int(self.places[at]), list[float]()
        for grid in reversed(self.grids):
            index, place = divmod(index, len(grid))
            thresholds.insert(0, float(grid[place]))
        return simplified(self.models, thresholds)


class _Candidates(Sequence[Candidate]):
    """Candidates by their places among those of several chains; few of them are looked at, so each is made then."""

    def __init__(self, found: list[_OnGrid], places: Tensor) -> None:
        ends = torch.tensor([0] + [len(each.places) for each in found]).cumsum(0)
        chains = torch.searchsorted(ends, places, right=True) - 1
        self._found, self._chains, self._places = found, chains.tolist(), (places - ends[chains]).tolist()

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[place] for place in range(*at.indices(len(self)))]
        return self._found[self._chains[at]].candidate(self._places[at])


def _best_of(found: list[_OnGrid], tried: int) -> Envelope:
    worth, cost = torch.cat([each.worth for each in found]), torch.cat([each.cost for each in found])
    # Of equal ones the shortest chain comes first.
    kept = frontier(cost, worth)
    return Envelope(_Candidates(list(found), kept), worth[kept], cost[kept], tried)


def simplified(models: Sequence[str], thresholds: Sequence[float]) -> Candidate:
    """A candidate without models that never run: those at ``-inf``, and those after one that keeps everything.

    >>> simplified(["a", "b", "c"], [-math.inf, math.inf])
    Candidate(models=('b',), thresholds=())
    """
    kept: list[tuple[str, float]] = []
    for name, threshold in zip(models, [*thresholds, math.inf], strict=True):
        if threshold != -math.inf:
            kept.append((name, threshold))
        if threshold == math.inf:
            break
    return Candidate(tuple(name for name, _ in kept), tuple(threshold for _, threshold in kept[:-1]))


@dataclass(frozen=True)
class Tested:
    """What a test along a path found.

    Attributes:
        places: Those that passed, in the order of the test.
        p_values: Their p-values.
        num_examples: Independent units.
    """

    places: list[int]
    p_values: list[float]
    num_examples: int


def unit_means(values: Tensor, unit: Tensor | None) -> Tensor:
    """The mean of each unit's rows, float64 ``(U,)``; the rows themselves if each is a unit."""
    if unit is None:
        return values.double()
    weight, n = unit_weights(unit, len(values))
    _, place = unit.unique(return_inverse=True)
    return torch.zeros(n, dtype=torch.float64).index_add_(0, place, values.double() * weight)


def mean_p_value(values: Tensor, allowed: float, maximum: float = 1.0, test: Test = "bet") -> float:
    """p-value of "the mean of independent values from 0 to ``maximum`` is above ``allowed``", for every n.

    Args:
        values: Shape ``(N,)``.
        allowed: What the mean may be.
        maximum: No value can be larger.
        test: ``exact``, where each value is 0 or the maximum (Clopper and Pearson, 1934); ``bet`` (Waudby-Smith and
            Ramdas, 2024), which profits from values that vary little; or ``bound`` (Hoeffding and Bentkus's, as in
            Learn then Test, 2021).

    >>> round(mean_p_value(torch.zeros(299), 0.01, test="exact"), 3)
    0.05
    """
    # Then no mean can be above it; a maximum of 0, of models that cost nothing, is among these.
    if allowed >= maximum:
        return 0.0
    values, allowed = values.double() / maximum, allowed / maximum
    if test == "bet":
        return math.exp(min(0.0, -log_evidence(values, allowed, 1.0)))
    return p_value(float(values.sum()), len(values), allowed, test == "exact")


def along(
    losses: Callable[[int], Tensor],
    places: Sequence[int],
    allowed: float,
    level: float,
    unit: Tensor | None = None,
    maximum: float = 1.0,
    test: Test = "bet",
) -> Tested:
    """Test candidates in turn until the first one whose mean loss is not shown to be at most ``allowed``.

    With a probability of 1 minus the ``level``, over the choice of the examples, all that pass have a mean of at most
    ``allowed``, if the places were ordered without looking at these examples.

    Args:
        losses: Maps a place to the losses of the examples, 0 to ``maximum``, ``(N,)``.
        places: The candidates, the safe ones first.
        allowed: What the mean loss may be.
        level: How often something may pass that should not.
        unit: The group of each example, int64 ``(N,)``: each group counts once.
        maximum: No loss can be larger.
        test: Which test, fixed without looking at these examples.
    """
    passed: list[int] = []
    p_values: list[float] = []
    number = 0
    for place in places:
        means = unit_means(losses(place), unit)
        number = len(means)
        if (p := mean_p_value(means, allowed, maximum, test)) > level:
            break
        passed.append(place)
        p_values.append(p)
    return Tested(passed, p_values, number)
