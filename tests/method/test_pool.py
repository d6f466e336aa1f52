"""Pools: the envelope of all candidates, and tests along a path that was learned on other examples."""

import itertools
import math

import pytest
import torch
from scipy import stats

from elang.method.chain import grid_of
from elang.method.pool import Candidate, Pool, along, envelope, mean_p_value, simplified, unit_means

COSTS = {"a": 1.0, "b": 3.0, "c": 10.0, "d": 40.0}


def made(n=300, seed=0, models="abcd", scored="abc"):
    """Models that are better the more they cost, and unsure where they are wrong."""
    generator = torch.Generator().manual_seed(seed)
    hard = torch.randn(n, generator=generator).double()
    worth, cost, score = {}, {}, {}
    for place, name in enumerate(models):
        worth[name] = (torch.randn(n, generator=generator) + 0.6 * place > hard).double()
        cost[name] = COSTS[name] * (1 + torch.rand(n, generator=generator).double())
        if name in scored:
            score[name] = (hard + torch.randn(n, generator=generator) / 2).double()
    return Pool(worth, cost, score)


def all_candidates(pool, longest):
    """Mean worth and cost of every candidate with thresholds on the grids, one by one."""
    points = {2: 200, 3: 48}
    for size in range(1, longest + 1):
        for models in itertools.combinations(pool.worth, size):
            if all(name in pool.score for name in models[:-1]):
                grids = [grid_of(pool.score[name], points[size]).tolist() for name in models[:-1]]
                for thresholds in itertools.product(*grids):
                    worth, cost, _ = pool.outcomes(Candidate(models, thresholds))
                    yield float(worth.mean()), float(cost.mean())


def test_the_envelope_is_that_of_all_candidates():
    pool = made(80, models="abc", scored="ab")
    found = envelope(pool, 3)
    every = list(all_candidates(pool, 3))
    assert found.tried == len(every)
    for candidate, worth, cost in zip(found.candidates, found.worth.tolist(), found.cost.tolist(), strict=True):
        own, paid, _ = pool.outcomes(candidate)
        assert float(own.mean()) == pytest.approx(worth, abs=1e-9)
        assert float(paid.mean()) == pytest.approx(cost, abs=1e-9)
    for budget in torch.linspace(1, 40, 60).tolist():
        best = max((worth for worth, cost in every if cost <= budget), default=None)
        place = found.within(budget)
        assert (place is None) == (best is None)
        assert place is None or float(found.worth[place]) == pytest.approx(best, abs=1e-9)
    for worth in torch.linspace(0, 1, 60).tolist():
        least = min((cost for own, cost in every if own >= worth - 1e-12), default=None)
        place = found.reaching(worth - 1e-12)
        assert (place is None) == (least is None)
        assert place is None or float(found.cost[place]) == pytest.approx(least, abs=1e-9)


def test_a_model_without_a_score_is_asked_last():
    pool = made(scored="a")
    assert {models[:-1] for models in pool.chains(2)} == {("a",)}
    assert pool.chains(3) == []


def test_where_one_model_beats_all_it_is_alone():
    pool = made(200, models="abc")
    pool.worth["a"] = torch.ones(200, dtype=torch.float64)
    assert list(envelope(pool, 3).candidates) == [Candidate(("a",))]


def test_a_thinned_envelope_keeps_both_ends():
    found = envelope(made(2000), 3)
    thin = found.thinned(20)
    assert len(found.candidates) > 40 >= 22 >= len(thin.candidates)
    assert thin.candidates[0] == found.candidates[0]
    assert thin.candidates[-1] == found.candidates[-1]
    assert thin.tried == found.tried
    assert set(thin.candidates) <= set(found.candidates)


def test_models_that_never_run_are_left_out():
    inf = math.inf
    assert simplified("abc", [0.5, -inf]) == Candidate(("a", "c"), (0.5,))
    assert simplified("abc", [0.5, inf]) == Candidate(("a", "b"), (0.5,))
    assert simplified("abc", [inf, 0.5]) == Candidate(("a",))
    assert simplified("ab", [-inf]) == Candidate(("b",))
    pool = made()
    full, short = Candidate(("a", "b", "c"), (-inf, 0.2)), simplified("abc", [-inf, 0.2])
    for wanted, found in zip(pool.outcomes(full)[:2], pool.outcomes(short)[:2], strict=True):
        assert torch.equal(wanted, found)


def test_regret_is_what_the_reference_would_have_been_worth_more():
    pool = made()
    regret = 1 - pool.regretting("d").worth["b"]
    assert torch.equal(regret, (pool.worth["d"] - pool.worth["b"]).clamp_min(0))
    assert bool((pool.regretting("d").worth["d"] == 1).all())


def test_p_values_of_right_and_wrong_are_binomial():
    values = torch.tensor([1.0] * 7 + [0.0] * 293)
    assert mean_p_value(values, 0.05, test="exact") == pytest.approx(stats.binom.cdf(7, 300, 0.05))
    # The same in another unit.
    assert mean_p_value(5 * values, 0.25, 5.0, "exact") == pytest.approx(stats.binom.cdf(7, 300, 0.05))


@pytest.mark.parametrize("test", ["bet", "bound"])
@pytest.mark.parametrize("kind", ["costs", "worths", "groups"])
def test_a_mean_that_is_too_large_passes_no_more_often_than_the_level(kind, test):
    generator, passed, times = torch.Generator().manual_seed(0), 0, 400
    for _ in range(times):
        unit = None
        if kind == "costs":
            values = 1 + 9 * (torch.rand(200, generator=generator) < 0.3).double()
            allowed, maximum = 3.7 - 1e-9, 11.0
        elif kind == "worths":
            values, allowed, maximum = torch.rand(200, generator=generator).double() ** 4, 0.2 - 1e-9, 1.0
        else:
            rate = 0.4 * torch.rand(60, 1, generator=generator)
            values = (torch.rand(60, 5, generator=generator) < rate).double().flatten()
            allowed, maximum, unit = 0.2 - 1e-9, 1.0, torch.arange(60).repeat_interleave(5)
        passed += mean_p_value(unit_means(values, unit), allowed, maximum, test) <= 0.1
    assert passed / times <= 0.1 + 3 * math.sqrt(0.09 / times)


def test_a_path_ends_at_the_first_that_fails():
    rates = [0.0, 0.01, 0.2, 0.0]
    losses = [torch.tensor([1.0] * round(500 * rate) + [0.0] * round(500 * (1 - rate))) for rate in rates]
    found = along(losses.__getitem__, [0, 1, 2, 3], 0.05, 0.05, test="exact")
    assert found.places == [0, 1]
    assert found.num_examples == 500
    assert found.p_values[1] == pytest.approx(stats.binom.cdf(5, 500, 0.05))
    assert along(losses.__getitem__, [2, 0], 0.05, 0.05).places == []


def test_groups_count_once():
    unit = torch.tensor([0, 0, 0, 1])
    assert unit_means(torch.tensor([1.0, 0.0, 0.5, 0.25]), unit).tolist() == [0.5, 0.25]


def test_bets_profit_from_values_that_vary_little():
    little, much = torch.full((300,), 0.03), (torch.arange(300) < 9).double()
    assert mean_p_value(little, 0.05, test="bet") < mean_p_value(little, 0.05, test="bound") / 5
    assert mean_p_value(much, 0.05, test="bet") > mean_p_value(much, 0.05, test="bound")
