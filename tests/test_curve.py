"""The operating curve against brute force at every threshold, and what is read off it."""

import itertools
import math

import pytest
import torch

import elang.curve
from elang.curve import (
    OperatingCurve,
    area,
    at_best,
    at_budget,
    at_parity,
    at_share,
    at_threshold,
    operating_curve,
    oracle_score,
    random_curve,
    relative_area,
    target_quality,
)
from elang.errors import InputError
from elang.quality import QUALITIES
from elang.scores import route

CASES = [
    ("accuracy", 2),
    ("accuracy", 5),
    ("f1", 2),
    ("f1_macro", 4),
    ("matthews", 2),
    ("matthews", 3),
    ("pearson", 1),
]


def pair(name, classes, n, seed=0):
    """A quality with predictions of a Swift and of a better Super, and the targets."""
    generator = torch.Generator().manual_seed(seed)
    if name == "pearson":
        target = 5 * torch.rand(n, generator=generator)
        swift, super_ = (target + noise * torch.randn(n, generator=generator) for noise in (2.0, 0.5))
    else:
        target, one, two = torch.randint(classes, (3, n), generator=generator)
        draw = torch.rand(2, n, generator=generator)
        swift, super_ = torch.where(draw[0] < 0.5, target, one), torch.where(draw[1] < 0.8, target, two)
    return QUALITIES[name](classes), swift, super_, target


def scores(n, ties, seed=0, dtype=torch.float32):
    score = 2 * torch.randn(n, generator=torch.Generator().manual_seed(seed + 99), dtype=dtype)
    return score.round() if ties else score


def curve_of(score, quality, swift, super_, target, *costs):
    a, b = quality.statistics(swift, target), quality.statistics(super_, target)
    return operating_curve(score, a, b, quality.value, *costs)


def chance(quality, swift, super_, target, *costs):
    a, b = quality.statistics(swift, target), quality.statistics(super_, target)
    return random_curve(a, b, quality.value, *costs)


def example(n=101, ties=True, seed=0, name="accuracy", classes=2):
    """A curve with costs, its scores and the costs."""
    score, generator = scores(n, ties, seed), torch.Generator().manual_seed(seed)
    costs = (1 + torch.rand(n, generator=generator), 10 + 5 * torch.rand(n, generator=generator))
    return curve_of(score, *pair(name, classes, n, seed), *costs), score, costs


@pytest.mark.parametrize("n", [1, 2, 3, 60])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_every_point_equals_scoring_the_mixed_answers(name, classes, ties, n):
    quality, swift, super_, target = pair(name, classes, n)
    score = scores(n, ties)
    curve = curve_of(score, quality, swift, super_, target)
    distinct = sorted(set(score.tolist()), reverse=True)
    assert curve.threshold.tolist() == [math.inf, *distinct[1:], -math.inf]
    assert len(curve) == len(distinct) + 1
    for point, deferred in zip(curve, curve.deferred.tolist(), strict=True):
        mask = route(score, point.threshold)
        assert int(mask.sum()) == deferred
        assert point.deferred_share == deferred / n
        assert point.quality == pytest.approx(quality(torch.where(mask, super_, swift), target), abs=1e-9)


@pytest.mark.parametrize("n", [1, 7, 5000])
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_the_ends_are_exactly_the_two_models(name, classes, n):
    quality, swift, super_, target = pair(name, classes, n)
    curve = curve_of(scores(n, False), quality, swift, super_, target)
    assert curve[0].quality == quality(swift, target)
    assert curve[-1].quality == quality(super_, target)
    assert (curve[0].threshold, curve[-1].threshold) == (math.inf, -math.inf)
    assert (curve[0].deferred_share, curve[-1].deferred_share) == (0, 1)


def test_all_scores_equal_leaves_two_points():
    curve = curve_of(torch.zeros(9), *pair("accuracy", 2, 9))
    assert curve.deferred.tolist() == [0, 9]


def test_order_of_the_examples_does_not_matter():
    quality, swift, super_, target = pair("matthews", 3, 80)
    score, shuffle = scores(80, True), torch.randperm(80, generator=torch.Generator().manual_seed(5))
    curve = curve_of(score, quality, swift, super_, target)
    other = curve_of(score[shuffle], quality, swift[shuffle], super_[shuffle], target[shuffle])
    assert torch.equal(curve.quality, other.quality)
    assert torch.equal(curve.threshold, other.threshold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ties", [False, True])
def test_at_threshold_is_what_route_does(ties, dtype):
    score = scores(50, ties, dtype=dtype)
    curve = curve_of(score, *pair("accuracy", 2, 50))
    ordered = score.sort().values
    between = (ordered[1:] + ordered[:-1]) / 2
    asked = [*ordered.tolist(), *between.tolist(), *curve.threshold.tolist(), -1e9, 1e9]
    for threshold in asked:
        deferred = int(curve.deferred[at_threshold(curve, threshold)])
        assert deferred == int(route(score, threshold).sum()), threshold
    assert at_threshold(curve, math.inf) == at_threshold(curve, curve.hardest) == 0
    assert at_threshold(curve, -math.inf) == len(curve) - 1


def test_a_threshold_between_two_float32_values():
    score = torch.tensor([0.1, 0.3])  # float32 holds 0.3 as 0.30000001, which is above 0.3
    curve = curve_of(score, *pair("accuracy", 2, 2))
    assert int(curve.deferred[at_threshold(curve, 0.3)]) == int(route(score, 0.3).sum())


@pytest.mark.parametrize("chunk", [1, 3, 8, 50, 1000])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_chunks_change_nothing(monkeypatch, name, classes, ties, chunk):
    score, models = scores(61, ties), pair(name, classes, 61)
    whole = curve_of(score, *models)
    monkeypatch.setattr(elang.curve, "_CHUNK", chunk)
    parts = curve_of(score, *models)
    assert torch.equal(parts.deferred, whole.deferred)
    torch.testing.assert_close(parts.quality, whole.quality, rtol=0, atol=0 if name != "pearson" else 1e-12)
    assert parts.quality[0] == whole.quality[0]
    assert parts.quality[-1] == whole.quality[-1]


@pytest.mark.parametrize("ties", [False, True])
def test_costs_add_up(ties):
    curve, score, (swift_cost, super_cost) = example(ties=ties)
    assert curve.super_cost == pytest.approx(float(super_cost.double().mean()), rel=1e-12)
    for point in curve:
        mask = route(score, point.threshold)
        paid = math.fsum(swift_cost.tolist()) + math.fsum(super_cost[mask].tolist())
        assert point.cost == pytest.approx(paid / 101, rel=1e-12)
        assert point.speedup == pytest.approx(curve.super_cost * 101 / paid, rel=1e-12)
    torch.testing.assert_close(curve.speedup, torch.tensor([p.speedup for p in curve], dtype=torch.float64))
    assert curve[0].cost == pytest.approx(float(swift_cost.double().mean()))


def test_cost_is_unknown_unless_both_are_given():
    score, models = scores(5, False), pair("accuracy", 2, 5)
    for costs in ((), (torch.ones(5), None), (None, torch.ones(5))):
        curve = curve_of(score, *models, *costs)
        assert curve.cost.isnan().all()
        assert math.isnan(curve.super_cost)
    free = curve_of(score, *models, torch.zeros(5), torch.ones(5))
    assert free[0].speedup == math.inf


def all_orders(n):
    return [torch.tensor(order, dtype=torch.float32) for order in itertools.permutations(range(n))]


def test_random_is_the_mean_over_all_orders():
    models, costs = pair("accuracy", 2, 6), (torch.arange(1.0, 7), torch.arange(3.0, 9) ** 2)
    curves = [curve_of(order, *models, *costs) for order in all_orders(6)]
    random = chance(*models, *costs)
    assert torch.equal(random.deferred, torch.arange(7))
    assert random.quality[0] != random.quality[-1]
    for field in ("quality", "cost"):
        mean = torch.stack([getattr(curve, field) for curve in curves]).mean(0)
        torch.testing.assert_close(getattr(random, field), mean, rtol=1e-12, atol=1e-12)
    assert random.super_cost == curves[0].super_cost


@pytest.mark.parametrize(("name", "classes"), CASES)
def test_random_on_many_examples(name, classes):
    quality, swift, super_, target = pair(name, classes, 3001)
    random = chance(quality, swift, super_, target)
    assert len(random) == 1001
    assert random.cost.isnan().all()
    assert (random.deferred[0], random.deferred[-1]) == (0, 3001)
    assert (random.deferred.diff() > 0).all()
    assert random[0].quality == pytest.approx(quality(swift, target), abs=1e-12)
    assert random[-1].quality == pytest.approx(quality(super_, target), abs=1e-12)
    order = torch.randperm(3001, generator=torch.Generator().manual_seed(1)).double()
    found = curve_of(order, quality, swift, super_, target)
    assert (found.quality[random.deferred] - random.quality).abs().max() < 0.05


def test_oracle_is_no_worse_than_any_order():
    for seed in range(4):
        models = pair("accuracy", 2, 6, seed)
        _, swift, super_, target = models
        oracle = curve_of(oracle_score(swift == target, super_ == target), *models)
        best = torch.stack([curve_of(order, *models).quality for order in all_orders(6)]).amax(0)
        assert torch.equal(oracle.quality, best)


def test_oracle_scores_differ():
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(2, 1000, generator=generator) < 0.7
    score = oracle_score(*right)
    assert len(score.unique()) == 1000
    gain = right[1].int() - right[0].int()
    assert (gain[score.argsort(descending=True)].diff() <= 0).all()


def trapezoid(curve):
    x, y = curve.deferred_share.tolist(), curve.quality.tolist()
    return math.fsum((x[i + 1] - x[i]) * (y[i + 1] + y[i]) / 2 for i in range(len(x) - 1))


def test_relative_area():
    quality, swift, super_, target = models = pair("accuracy", 2, 200)
    random = chance(quality, swift, super_, target)
    knows = oracle_score(swift == target, super_ == target)
    oracle, worst = curve_of(knows, *models), curve_of(-knows, *models)
    found = curve_of(scores(200, True), *models)
    assert area(found) == pytest.approx(trapezoid(found), abs=1e-12)
    assert relative_area(oracle, random, oracle) == 1
    assert relative_area(random, random, oracle) == 0
    assert relative_area(worst, random, oracle) < -0.5
    expected = (trapezoid(found) - trapezoid(random)) / (trapezoid(oracle) - trapezoid(random))
    assert relative_area(found, random, oracle) == pytest.approx(expected, abs=1e-12)


def test_relative_area_without_a_better_super():
    quality, swift, _, target = pair("accuracy", 2, 50)
    random = chance(quality, swift, swift, target)
    oracle = curve_of(oracle_score(swift == target, swift == target), quality, swift, swift, target)
    assert math.isnan(relative_area(oracle, random, oracle))


@pytest.mark.parametrize("fraction", [1.0, 0.99, 0.9, 0.5])
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_at_parity(name, classes, fraction):
    for seed in range(5):
        curve, _, _ = example(41, seed % 2 == 0, seed, name, classes)
        best = curve[-1].quality
        least = best - (1 - fraction) * abs(best)
        first = next(i for i, point in enumerate(curve) if point.quality >= least - 1e-12)
        assert at_parity(curve, fraction) == first


def drawn(quality, cost=None):
    """A curve with these qualities at 0, 1, ... deferred examples."""
    n = len(quality) - 1
    threshold = torch.tensor([math.inf, *range(n - 1, 0, -1), -math.inf], dtype=torch.float64)
    values = [torch.tensor(x, dtype=torch.float64) for x in (quality, cost or [1.0 + i for i in range(n + 1)])]
    return OperatingCurve(threshold, torch.arange(n + 1), *values, float(n), n, float(n))


def test_at_parity_by_hand():
    assert at_parity(drawn([0.1, 0.3, 0.1 + 0.2])) == 1  # equal but for the last bit
    assert at_parity(drawn([0.5, 0.9, 0.8])) == 1
    assert at_parity(drawn([0.9, 0.7, 0.8])) == 0
    assert at_parity(drawn([math.nan, math.nan])) == 1
    assert target_quality(drawn([-0.5, -0.2]), 0.5) == pytest.approx(-0.3)
    assert at_parity(drawn([-0.5, -0.3, -0.2]), 0.5) == 1


def test_at_share():
    for ties, seed in itertools.product((False, True), range(3)):
        curve, _, _ = example(40, ties, seed)
        for share in (0, 0.024, 0.025, 0.1, 0.3, 0.7, 0.999, 1):
            expected = max(i for i, k in enumerate(curve.deferred.tolist()) if k <= round(share * 40, 9))
            assert at_share(curve, share) == expected, share


def test_at_share_forgives_rounding():
    # 0.07 * 100 is 7.000000000000001, and 0.29 * 100 is 28.999999999999996.
    curve = drawn([0.0] * 101)
    assert [at_share(curve, share) for share in (0.07, 0.29, 0.57)] == [7, 29, 57]


def test_at_budget():
    for ties, seed in itertools.product((False, True), range(3)):
        curve, _, _ = example(40, ties, seed)
        for budget in (float(curve.cost[0]), 2.0, 5.0, float(curve.cost[7]), 1e9):
            affordable = [point.quality for point in curve if point.cost <= budget]
            assert at_budget(curve, budget) == affordable.index(max(affordable))
        with pytest.raises(InputError, match="budget"):
            at_budget(curve, float(curve.cost[0]) * 0.999)


def test_at_best():
    for seed in range(5):
        curve, _, _ = example(40, False, seed)
        assert at_best(curve) == curve.quality.tolist().index(float(curve.quality.max()))
    assert at_best(drawn([0.1, 0.7, 0.3, 0.7])) == 1


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.01, math.nan])
def test_fractions_out_of_range(bad):
    curve, _, _ = example(9)
    with pytest.raises(InputError, match="Super's quality"):
        at_parity(curve, bad)
    if bad:
        with pytest.raises(InputError, match="deferred share"):
            at_share(curve, bad)


def test_nan_threshold():
    with pytest.raises(InputError, match="NaN"):
        at_threshold(example(9)[0], math.nan)


@pytest.mark.parametrize(
    ("score", "swift", "super_", "said"),
    [
        (torch.zeros(0), torch.zeros(0, 2), torch.zeros(0, 2), "at least one example"),
        (torch.zeros(3), torch.zeros(3, 2), torch.zeros(2, 2), "shapes"),
        (torch.zeros(3), torch.zeros(4, 2), torch.zeros(4, 2), "shapes"),
        (torch.zeros(3), torch.zeros(3), torch.zeros(3), "shapes"),
        (torch.zeros(3, 1), torch.zeros(3, 2), torch.zeros(3, 2), "shapes"),
        (torch.tensor([0.0, math.nan, 1.0]), torch.zeros(3, 2), torch.zeros(3, 2), "row 1"),
        (torch.tensor([math.inf, 0.0, 1.0]), torch.zeros(3, 2), torch.zeros(3, 2), "row 0"),
    ],
)
def test_input_that_cannot_be_used(score, swift, super_, said):
    with pytest.raises(InputError, match=said):
        operating_curve(score, swift, super_, QUALITIES["accuracy"](2).value)
