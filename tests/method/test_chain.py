"""Chains of models: every vector of thresholds exactly, against a loop over the inputs."""

import itertools
import math

import pytest
import torch

from elang.errors import InputError
from elang.method.chain import Stages, answered_by, chain_curve, frontier, grid_of, on_grid, outcomes
from elang.method.curve.exact import operating_curve
from elang.method.curve.points import Costs


def made(models, n=60, seed=0, worth="right"):
    """Random answers with many equal scores."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(models, n, generator=generator, dtype=torch.float64)
    score = torch.randint(-3, 4, (models - 1, n), generator=generator).double()
    cost = torch.rand(models, n, generator=generator, dtype=torch.float64) + torch.arange(models)[:, None]
    return Stages(list(values.round() if worth == "right" else values), list(cost), list(score))


def by_hand(stages, thresholds):
    """Quality, cost and the shares of the stages, input by input."""
    worth, cost, count = 0.0, 0.0, [0] * len(stages.worth)
    for i in range(len(stages)):
        for k in range(len(stages.worth)):
            last = k == len(thresholds)
            if not last and thresholds[k] == -math.inf:
                continue
            cost += float(stages.cost[k][i])
            if last or float(stages.score[k][i]) <= thresholds[k]:
                worth += float(stages.worth[k][i])
                count[k] += 1
                break
    n = len(stages)
    return worth / n, cost / n, [c / n for c in count]


@pytest.mark.parametrize("models", [2, 3, 4])
@pytest.mark.parametrize("worth", ["right", "between"])
@pytest.mark.parametrize("seed", range(3))
def test_every_vector_is_that_of_a_loop(models, worth, seed):
    stages = made(models, seed=seed, worth=worth)
    levels = [-math.inf, -3.0, -0.5, 0.0, 2.0, 3.0, math.inf]
    grids = [torch.tensor(levels, dtype=torch.float64)] * (models - 1)
    quality, cost = on_grid(stages, grids)
    assert quality.shape == (7,) * (models - 1)
    for places in itertools.product(range(7), repeat=models - 1):
        thresholds = [levels[place] for place in places]
        expected = by_hand(stages, thresholds)
        assert float(quality[places]) == pytest.approx(expected[0], abs=1e-9)
        assert float(cost[places]) == pytest.approx(expected[1], abs=1e-9)
        own, paid, stage = outcomes(stages, thresholds)
        assert float(own.mean()) == pytest.approx(expected[0], abs=1e-9)
        assert float(paid.mean()) == pytest.approx(expected[1], abs=1e-9)
        assert torch.bincount(stage, minlength=models).double().div(60).tolist() == pytest.approx(expected[2])


@pytest.mark.parametrize("models", [3, 4])
def test_the_curve_of_a_stage_is_that_of_a_loop(models):
    stages = made(models, worth="between")
    for stage in range(models - 1):
        for others in ((0.0, 1.0, -1.0), (-math.inf, 2.0, 0.0), (1.0, -math.inf, math.inf)):
            thresholds = list(others[: models - 1])
            curve = chain_curve(stages, thresholds, stage)
            for point in range(len(curve)):
                thresholds[stage] = float(curve.threshold[point])
                quality, cost, _ = by_hand(stages, thresholds)
                assert float(curve.quality[point]) == pytest.approx(quality, abs=1e-9)
                assert float(curve.cost[point]) == pytest.approx(cost, abs=1e-9)


@pytest.mark.parametrize("worth", ["right", "between"])
def test_two_stages_are_the_curve_of_a_pair_to_the_bit(worth):
    stages = made(2, 5000, worth=worth)
    found = chain_curve(stages, [0.0], 0)
    one = torch.ones(5000, dtype=torch.float64)
    swift, super_ = (torch.stack([own, one], 1) for own in stages.worth)
    expected = operating_curve(
        stages.score[0], swift, super_, lambda sums: sums[:, 0] / sums[:, 1], Costs(*stages.cost)
    )
    for name in ("threshold", "deferred", "quality", "cost"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert found.scored_cost == expected.scored_cost
    assert found.super_cost == expected.super_cost


def test_one_stage_is_a_model_alone():
    stages = made(2)
    alone = Stages(stages.worth[1:], stages.cost[1:], [])
    quality, cost = on_grid(alone, [])
    assert float(quality) == pytest.approx(float(stages.worth[1].mean()))
    assert float(cost) == pytest.approx(float(stages.cost[1].mean()))
    assert torch.equal(outcomes(alone, [])[0], stages.worth[1])


def test_no_point_of_the_frontier_is_beaten():
    generator = torch.Generator().manual_seed(0)
    cost, worth = torch.randint(0, 20, (2, 300), generator=generator).double()
    path = frontier(cost, worth).tolist()
    for a in range(300):
        beaten = bool(((cost <= cost[a]) & (worth >= worth[a]) & ((cost < cost[a]) | (worth > worth[a]))).any())
        assert beaten != any(cost[a] == cost[b] and worth[a] == worth[b] for b in path)
    assert (cost[path].diff() > 0).all()


def test_a_grid_has_scores_that_occur():
    score = torch.randn(1000)
    grid = grid_of(score, 50)
    assert len(grid) == 52
    assert torch.isin(grid[1:-1], score.double()).all()
    assert grid_of(torch.zeros(9), 50).tolist() == [-math.inf, 0.0, math.inf]


def test_what_is_no_chain_is_refused():
    with pytest.raises(InputError, match="K - 1 scores"):
        Stages([torch.ones(3)] * 2, [torch.ones(3)] * 2, [])
    with pytest.raises(InputError, match="of the same inputs"):
        Stages([torch.ones(3)] * 2, [torch.ones(3)] * 2, [torch.ones(4)])
    with pytest.raises(InputError, match="NaN or infinite"):
        Stages([torch.ones(2)] * 2, [torch.ones(2)] * 2, [torch.tensor([0.0, math.nan])])
    with pytest.raises(InputError, match="as many thresholds"):
        answered_by([torch.ones(3)], [])
    with pytest.raises(InputError, match="as many thresholds"):
        answered_by([torch.ones(3)], [math.nan])
