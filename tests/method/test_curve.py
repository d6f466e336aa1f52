"""The operating curve against brute force at every threshold, and what is read off it."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from elang.errors import InputError
from elang.method.curve import exact as running_sums
from elang.method.curve.exact import operating_curve, rescored_curve
from elang.method.curve.points import Costs, Groups, OperatingCurve
from elang.method.curve.reading import (
    area,
    at_best,
    at_budget,
    at_drop,
    at_parity,
    at_share,
    at_threshold,
    point_at,
    random_curve,
    random_rescored_curve,
    relative_area,
    target_quality,
)
from elang.method.deferral import oracle_score, route
from elang.method.quality.metric import Quality
from elang.method.quality.registry import QUALITIES

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
    return operating_curve(score, a, b, quality.value, Costs(*costs) if costs else None)


def chance(quality, swift, super_, target, *costs):
    a, b = quality.statistics(swift, target), quality.statistics(super_, target)
    return random_curve(a, b, quality.value, Costs(*costs) if costs else None)


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
    monkeypatch.setattr(running_sums, "_CHUNK", chunk)
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
        # Without a score to compute, the Swift does not run.
        paid = math.fsum(super_cost[mask].tolist())
        paid += math.fsum(swift_cost.tolist()) * (point.threshold > -math.inf)
        assert point.cost == pytest.approx(paid / 101, rel=1e-12)
        assert point.speedup == pytest.approx(curve.super_cost * 101 / paid, rel=1e-12)
    assert curve[-1].speedup == 1
    torch.testing.assert_close(curve.speedup, torch.tensor([p.speedup for p in curve], dtype=torch.float64))
    assert curve[0].cost == pytest.approx(float(swift_cost.double().mean()))


@pytest.mark.parametrize("early", [False, True])
def test_a_finite_threshold_that_defers_everything_has_asked_the_swift(early):
    _, score, costs = example()
    costs = (*costs, 0.1 * costs[0]) if early else costs
    curve = curve_of(score, *pair("accuracy", 2, 101), *costs)
    everything = point_at(curve, float(score.min()) - 1)
    swift, both = costs[-1] if early else costs[0], Costs(*costs)
    assert everything.deferred_share == 1
    assert everything.threshold == float(score.min()) - 1
    assert everything.cost == pytest.approx(float((swift.double() + costs[1].double()).mean()), rel=1e-12)
    assert everything.speedup == curve.super_cost / everything.cost < 1
    assert everything.quality == curve[-1].quality
    assert point_at(curve, -math.inf) == curve[-1]
    assert point_at(curve, 1e9) == replace(curve[0], threshold=1e9)
    for threshold in (-math.inf, *score[:5].tolist(), float(score.min()) - 1, math.inf):
        paid = both.of(route(score, threshold), threshold)
        assert point_at(curve, threshold).cost == pytest.approx(float(paid.mean()), rel=1e-12)
    # Nothing is known of what nobody has counted.
    unknown = curve_of(score, *pair("accuracy", 2, 101))
    assert math.isnan(point_at(unknown, float(score.min()) - 1).speedup)


def test_cost_is_unknown_unless_it_is_given():
    score, models = scores(5, False), pair("accuracy", 2, 5)
    curve = curve_of(score, *models)
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
        oracle = curve_of(oracle_score(gain(swift, super_, target)), *models)
        best = torch.stack([curve_of(order, *models).quality for order in all_orders(6)]).amax(0)
        assert torch.equal(oracle.quality, best)


@pytest.mark.parametrize("values", [torch.tensor([-1.0, 0.0, 1.0]), torch.linspace(-0.5, 0.5, 11)])
def test_oracle_scores_differ(values):
    gains = values[torch.randint(len(values), (1000,), generator=torch.Generator().manual_seed(0))]
    score = oracle_score(gains)
    assert len(score.unique()) == 1000
    assert score.argsort(descending=True).tolist() == sorted(range(1000), key=lambda i: (-float(gains[i]), i))


def test_oracle_of_close_gains():
    # Nearer to each other than one place in a thousand.
    gains = torch.tensor([0.5, 0.5 + 1e-4] * 500)
    assert oracle_score(gains).argsort(descending=True).tolist() == [*range(1, 1000, 2), *range(0, 1000, 2)]
    with pytest.raises(InputError, match="gain"):
        oracle_score(torch.tensor([0.0, math.nan]))


def test_oracle_of_rewards_is_no_worse_than_any_order():
    quality, table = QUALITIES["answer_f1"](3), torch.rand(6, 3, generator=torch.Generator().manual_seed(3))
    swift, super_ = torch.tensor([0, 1, -1, 2, 0, 1]), torch.tensor([1, 1, 2, 0, 2, -1])
    a, b = quality.statistics(swift, table), quality.statistics(super_, table)
    best = torch.stack([operating_curve(order, a, b, quality.value).quality for order in all_orders(6)]).amax(0)
    oracle = operating_curve(oracle_score((b - a)[:, 0]), a, b, quality.value)
    torch.testing.assert_close(oracle.quality, best, rtol=0, atol=1e-12)


def gain(swift, super_, target):
    return (super_ == target).double() - (swift == target).double()


def trapezoid(curve):
    x, y = curve.deferred_share.tolist(), curve.quality.tolist()
    return math.fsum((x[i + 1] - x[i]) * (y[i + 1] + y[i]) / 2 for i in range(len(x) - 1))


def test_relative_area():
    quality, swift, super_, target = models = pair("accuracy", 2, 200)
    random = chance(quality, swift, super_, target)
    knows = oracle_score(gain(swift, super_, target))
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
    oracle = curve_of(oracle_score(gain(swift, swift, target)), quality, swift, swift, target)
    assert math.isnan(relative_area(oracle, random, oracle))


@pytest.mark.parametrize("fraction", [1.0, 0.99, 0.9, 0.5])
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_at_parity(name, classes, fraction):
    for seed in range(5):
        curve, _, _ = example(41, seed % 2 == 0, seed, name, classes)
        best = curve[-1].quality
        least = best - (1 - fraction) * abs(best)
        reached = [i for i, point in enumerate(curve) if point.quality >= least - 1e-12 and point.speedup > 1]
        assert at_parity(curve, fraction) == (reached[0] if reached else len(curve) - 1)


def drawn(quality, cost=None):
    """A curve with these qualities at 0, 1, ... deferred examples."""
    n = len(quality) - 1
    threshold = torch.tensor([math.inf, *range(n - 1, 0, -1), -math.inf], dtype=torch.float64)
    values = [torch.tensor(x, dtype=torch.float64) for x in (quality, cost or [1.0 + i for i in range(n + 1)])]
    return OperatingCurve(threshold, torch.arange(n + 1), *values, float(n), n, float(n))


def test_at_parity_by_hand():
    cheap = [1.0, 1.1, 2.0]
    assert at_parity(drawn([0.1, 0.3, 0.1 + 0.2], cheap)) == 1  # equal but for the last bit
    assert at_parity(drawn([0.5, 0.9, 0.8], cheap)) == 1
    assert at_parity(drawn([0.9, 0.7, 0.8], cheap)) == 0
    assert at_parity(drawn([math.nan, math.nan])) == 1
    assert target_quality(drawn([-0.5, -0.2]), 0.5) == pytest.approx(-0.3)
    assert at_parity(drawn([-0.5, -0.3, -0.2], cheap), 0.5) == 1


def test_the_cheapest_point_is_so_by_cost():
    """It is neither one that costs as much as the Super alone, nor the one that defers least."""
    assert at_parity(drawn([0.5, 0.9, 0.95, 0.9], [1.0, 3.1, 4.0, 3.0])) == 3
    assert at_parity(drawn([0.5, 0.9, 0.95, 0.9], [1.0, 3.0, 4.0, 3.0])) == 3
    assert at_parity(drawn([0.5, 0.9, 0.95, 0.9], [1.0, 2.9, 2.5, 3.0])) == 2
    assert at_parity(drawn([0.5, 0.9, 0.95, 0.9], [math.nan] * 4)) == 1


def test_at_drop_by_hand():
    allowed, cheap = torch.tensor([0.1, 0.1, 0.05, 0.0]), [1.0, 1.5, 2.0, 4.0]
    assert at_drop(drawn([0.5, 0.81, 0.85, 0.9], cheap), allowed) == 1
    assert at_drop(drawn([0.5, 0.79, 0.86, 0.9], cheap), allowed) == 2
    assert at_drop(drawn([0.5, 0.79, 0.84, 0.9], cheap), allowed) == 3
    assert at_drop(drawn([0.5, 0.9 - 0.1, 0.85, 0.9], cheap), allowed) == 1  # equal but for the last bit
    # Points that cost as much as the Super alone, or more, save nothing; unknown costs are no reason.
    assert at_drop(drawn([0.5, 0.81, 0.85, 0.9], [1.0, 3.0, 4.0, 5.0]), allowed) == 3
    assert at_drop(drawn([0.5, 0.81, 0.85, 0.9], [math.nan] * 4), allowed) == 1
    assert at_drop(drawn([math.nan, math.nan]), allowed[:2]) == 1


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


def f1_of_groups():
    """A metric over groups that is no function of whole numbers: the mean over groups of each one's F1 (MultiRC)."""
    counts = QUALITIES["f1"](2)

    def by_group(sums):
        value = counts.value(sums)
        return torch.stack([value, torch.ones_like(value)], -1)

    return Quality("f1_of_groups", counts.statistics, lambda sums: sums[..., 0] / sums[..., 1], by_group)


def steep_groups():
    """Real-valued sums, of which the square root of each group's counts."""

    def statistics(prediction, target):
        error = (prediction - target).double() * (1 + target / 3)
        return torch.stack([error, error.square(), torch.ones_like(error)], -1)

    def by_group(sums):
        return torch.cat([sums[..., 1:2].sqrt(), sums[..., :1].tanh(), sums[..., 2:].sqrt()], -1)

    return Quality("steep", statistics, lambda s: (s[..., 1] - s[..., 0]) / s[..., 2], by_group)


GROUPED = [QUALITIES["exact_match"](2), f1_of_groups(), steep_groups()]
GROUPINGS = {
    "random": lambda n, g: torch.randint(max(1, n // 4), (n,), generator=g) - 7,
    "one": lambda n, g: torch.full((n,), 3),
    "each": lambda n, g: 10**12 * torch.randperm(n, generator=g),
    "uneven": lambda n, g: (torch.rand(n, generator=g) ** 4 * 9).long(),
}


def grouped(n, grouping, seed=0):
    generator = torch.Generator().manual_seed(seed + 7)
    _, swift, super_, target = pair("accuracy", 2, n, seed)
    return swift, super_, target, GROUPINGS[grouping](n, generator)


def grouped_curve(score, quality, swift, super_, target, group):
    a, b = quality.statistics(swift, target), quality.statistics(super_, target)
    groups = Groups(group, quality.by_group) if quality.by_group else None
    return operating_curve(score, a, b, quality.value, groups=groups)


@pytest.mark.parametrize("n", [1, 2, 3, 17, 80])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("quality", GROUPED, ids=lambda q: q.name)
def test_every_point_of_a_metric_over_groups(quality, grouping, ties, n):
    for seed in range(3):
        swift, super_, target, group = grouped(n, grouping, seed)
        score = scores(n, ties, seed)
        curve = grouped_curve(score, quality, swift, super_, target, group)
        assert len(curve) == len(score.unique()) + 1
        for point in curve:
            mixed = torch.where(route(score, point.threshold), super_, swift)
            assert point.quality == pytest.approx(quality(mixed, target, group), abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_exact_match_counted_by_hand(grouping, ties):
    swift, super_, target, group = grouped(60, grouping)
    score, every = scores(60, ties), set(group.tolist())
    for point in grouped_curve(score, QUALITIES["exact_match"](2), swift, super_, target, group):
        answers = [
            super_[i] if score[i] > point.threshold else swift[i]  # one at a time
            for i in range(60)
        ]
        wrong = {int(group[i]) for i in range(60) if answers[i] != target[i]}
        assert point.quality == (len(every) - len(wrong)) / len(every)


@pytest.mark.parametrize("n", [1, 7, 5000])
@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("quality", GROUPED, ids=lambda q: q.name)
def test_the_ends_of_a_metric_over_groups(quality, grouping, n):
    swift, super_, target, group = grouped(n, grouping)
    curve = grouped_curve(scores(n, False), quality, swift, super_, target, group)
    a, b = quality.statistics(swift, target), quality.statistics(super_, target)
    random = random_curve(a, b, quality.value, groups=Groups(group, quality.by_group))
    for found in (curve, random):
        assert found[0].quality == quality(swift, target, group)
        assert found[len(found) - 1].quality == quality(super_, target, group)


@pytest.mark.parametrize("chunk", [1, 2, 3, 8, 50, 1000])
@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("quality", GROUPED, ids=lambda q: q.name)
def test_chunks_change_nothing_in_groups(monkeypatch, quality, grouping, chunk):
    models, score = grouped(61, grouping), scores(61, True)
    whole = grouped_curve(score, quality, *models)
    monkeypatch.setattr(running_sums, "_CHUNK", chunk)
    parts = grouped_curve(score, quality, *models)
    torch.testing.assert_close(parts.quality, whole.quality, rtol=0, atol=1e-12)
    if quality.name == "exact_match":
        assert torch.equal(parts.quality, whole.quality)


def test_groups_of_one_that_add_up_are_no_groups():
    quality, *models = pair("f1_macro", 4, 50)
    plain = curve_of(scores(50, True), quality, *models)
    same = Quality("same", quality.statistics, quality.value, lambda sums: sums)
    for group in (torch.arange(50), torch.arange(50) % 7):
        assert torch.equal(grouped_curve(scores(50, True), same, *models, group).quality, plain.quality)
    # A metric over examples does not look at groups.
    ignored = grouped_curve(scores(50, True), quality, *models, torch.arange(50) % 7)
    assert torch.equal(ignored.quality, plain.quality)


def test_random_over_groups_is_near_the_mean_over_all_orders():
    quality = QUALITIES["exact_match"](2)
    target, group = torch.ones(6, dtype=torch.long), torch.tensor([0, 0, 0, 1, 1, 1])
    swift, super_ = torch.zeros(6, dtype=torch.long), torch.tensor([1, 1, 1, 1, 1, 0])
    a, b = quality.statistics(swift, target), quality.statistics(super_, target)
    random = random_curve(a, b, quality.value, groups=Groups(group, quality.by_group))
    # The first group is right once all three are deferred: C(3, k - 3) of C(6, k) choices.
    expected = [0.5 * math.comb(3, k - 3) / math.comb(6, k) if k >= 3 else 0 for k in range(7)]
    assert random.quality.tolist() == pytest.approx(expected, abs=0.15)
    assert random.quality[-1] == 0.5
    # The value at the expected sums would be another matter.
    assert random.quality[1:3].tolist() == [0, 0]
    again = random_curve(a, b, quality.value, groups=Groups(group, quality.by_group))
    assert torch.equal(random.quality, again.quality)


def test_random_over_groups_on_many_examples():
    quality = QUALITIES["exact_match"](2)
    swift, super_, target, group = grouped(3001, "random")
    costs = torch.ones(3001), torch.full((3001,), 5.0), torch.full((3001,), 0.5)
    a, b = quality.statistics(swift, target), quality.statistics(super_, target)
    random = random_curve(a, b, quality.value, Costs(*costs), groups=Groups(group, quality.by_group))
    assert len(random) == 1001
    torch.testing.assert_close(random.cost[:-1], 1 + random.deferred_share[:-1] * 4.5)
    assert (random[1000].cost, random.scored_cost) == (5, 5.5)
    # A group of size m is right if each member is: the mean over groups of the chances.
    share = 1000 / 3001
    chance_of = (1 - share) * (swift == target).double() + share * (super_ == target).double()
    expected = torch.stack([chance_of[group == g].prod() for g in group.unique()]).mean()
    near = int((random.deferred - 1000).abs().argmin())
    assert float(random.quality[near]) == pytest.approx(float(expected), abs=0.01)


@pytest.mark.parametrize("group", [None, torch.zeros(4, dtype=torch.long), torch.zeros(5, 1, dtype=torch.long)])
def test_metrics_over_groups_need_groups(group):
    quality, zero = QUALITIES["exact_match"](2), torch.zeros(5, 1)
    with pytest.raises(InputError, match="groups"):
        operating_curve(torch.arange(5.0), zero, zero, quality.value, groups=Groups(group, quality.by_group))
    with pytest.raises(InputError, match="groups"):
        random_curve(zero, zero, quality.value, groups=Groups(group, quality.by_group))


@pytest.mark.parametrize("ties", [False, True])
def test_what_the_swift_costs_for_a_deferred_input(ties):
    generator = torch.Generator().manual_seed(0)
    swift_cost, super_cost, early = 1 + torch.rand(3, 101, generator=generator)
    early = 0.1 * early
    score, models = scores(101, ties), pair("accuracy", 2, 101)
    curve = curve_of(score, *models, swift_cost, super_cost, early)
    assert curve.super_cost == pytest.approx(float(super_cost.double().mean()), rel=1e-12)
    for point in curve:
        mask = route(score, point.threshold)
        scored = [*swift_cost[~mask].tolist(), *early[mask].tolist()] if point.threshold > -math.inf else []
        paid = math.fsum([*scored, *super_cost[mask].tolist()])
        assert point.cost == pytest.approx(paid / 101, rel=1e-12)
        assert point.speedup == pytest.approx(curve.super_cost * 101 / paid, rel=1e-12)
    same = curve_of(score, *models, swift_cost, super_cost, swift_cost)
    assert torch.equal(same.cost, curve_of(score, *models, swift_cost, super_cost).cost)
    assert (curve.cost[1:-1] < same.cost[1:-1]).all()
    assert curve.scored_cost < same.scored_cost


def test_costs_of_whole_flops_are_exact():
    generator = torch.Generator().manual_seed(0)
    costs = torch.randint(10**9, 10**12, (3, 1000), generator=generator).double()
    costs[2] = (costs[0] / 3).floor()
    score = scores(1000, False)
    curve = curve_of(score, *pair("accuracy", 2, 1000), *costs)
    whole = [[int(x) for x in row] for row in costs.tolist()]
    for index in (0, 1, 500, 999, 1000):
        late = set(score.argsort(descending=True)[:index].tolist())
        paid = sum(whole[1][i] + whole[2][i] if i in late else whole[0][i] for i in range(1000))
        assert (float(curve.cost[index]) if index < 1000 else curve.scored_cost) == paid / 1000
    assert float(curve.cost[1000]) == curve.super_cost == sum(whole[1]) / 1000


def test_random_is_the_mean_over_all_orders_with_early_decisions():
    models = pair("accuracy", 2, 5)
    costs = torch.arange(1.0, 6), torch.arange(3.0, 8) ** 2, torch.arange(5.0) / 7
    mean = torch.stack([curve_of(order, *models, *costs).cost for order in all_orders(5)]).mean(0)
    torch.testing.assert_close(chance(*models, *costs).cost, mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("place", range(3))
def test_costs_of_other_examples(place):
    costs = [torch.ones(5)] * 3
    costs[place] = torch.ones(4)
    for make in (lambda *c: curve_of(torch.zeros(5), *c), chance):
        with pytest.raises(InputError, match=r"Costs of 5 .*\(4,\)"):
            make(*pair("accuracy", 2, 5), *costs)


def real_valued(n, ties, seed=0):
    _, swift, super_, target = pair("pearson", 1, n, seed)
    return swift, super_, target, scores(n, ties, seed)


@pytest.mark.parametrize("n", [1, 2, 3, 40, 500])
@pytest.mark.parametrize("ties", [False, True])
def test_rescored_is_scoring_at_each_point(ties, n):
    swift, super_, target, score = real_valued(n, ties)
    whole = QUALITIES["spearman"](1).whole
    costs = 1 + torch.rand(3, n, generator=torch.Generator().manual_seed(1))
    curve = rescored_curve(score, swift, super_, target, whole, Costs(*costs))
    full = operating_curve(score, target[:, None], target[:, None], lambda s: s[..., 0], Costs(*costs))
    for point, deferred in zip(curve, curve.deferred.tolist(), strict=True):
        mask = route(score, point.threshold)
        assert int(mask.sum()) == deferred
        assert point.quality == whole(torch.where(mask, super_, swift), target)
        assert point.cost == pytest.approx(full[full.deferred.tolist().index(deferred)].cost, rel=1e-12)
    assert (curve[0].quality, curve[-1].quality) == (whole(swift, target), whole(super_, target))
    assert (curve[0].threshold, curve[-1].threshold) == (math.inf, -math.inf)
    assert (curve.super_cost, curve.hardest, curve.num_examples) == (full.super_cost, float(score.max()), n)
    # Each point of the even grid, or the nearest below it that parts no ties.
    allowed = full.deferred.tolist()
    grid = torch.linspace(0, n, min(201, n + 1)).round().long().tolist()
    assert curve.deferred.tolist() == sorted({max(k for k in allowed if k <= g) for g in grid})


def test_rescored_on_all_points_is_the_exact_curve():
    swift, super_, target, score = real_valued(30, True)
    quality = QUALITIES["pearson"](1)
    costs = torch.ones(30), torch.full((30,), 9.0)
    found = rescored_curve(score, swift, super_, target, quality, Costs(*costs), points=31)
    expected = curve_of(score, quality, swift, super_, target, *costs)
    for field in ("threshold", "deferred", "quality", "cost"):
        torch.testing.assert_close(getattr(found, field), getattr(expected, field), rtol=0, atol=1e-9)


def test_rescored_between_its_points():
    swift, super_, target, score = real_valued(100, False)
    curve = rescored_curve(score, swift, super_, target, QUALITIES["spearman"](1).whole, points=11)
    assert curve.deferred.tolist() == list(range(0, 101, 10))
    for threshold in score.tolist():
        deferred = int(route(score, threshold).sum())
        assert int(curve.deferred[at_threshold(curve, threshold)]) == math.ceil(deferred / 10) * 10
    assert curve.cost.isnan().all()
    tied = rescored_curve(torch.zeros(100), swift, super_, target, QUALITIES["spearman"](1).whole, points=11)
    assert tied.deferred.tolist() == [0, 100]


def test_rescored_at_random():
    swift, super_, target, _ = real_valued(400, False)
    whole, costs = QUALITIES["spearman"](1).whole, (torch.ones(400), torch.full((400,), 5.0), torch.full((400,), 0.5))
    random = random_rescored_curve(swift, super_, target, whole, Costs(*costs), points=21)
    assert random.deferred.tolist() == list(range(0, 401, 20))
    assert (random[0].quality, random[20].quality) == (whole(swift, target), whole(super_, target))
    torch.testing.assert_close(random.cost[:-1], 1 + random.deferred_share[:-1] * 4.5)
    assert (random[20].cost, random.scored_cost) == (5, 5.5)
    assert torch.equal(random.threshold, 1 - random.deferred_share)
    # Near the mean over other random choices of so many.
    generator = torch.Generator().manual_seed(5)
    for index in (5, 10, 15):
        chosen = [torch.randperm(400, generator=generator) < 20 * index for _ in range(50)]
        expected = sum(whole(torch.where(mask, super_, swift), target) for mask in chosen) / 50
        assert random[index].quality == pytest.approx(expected, abs=0.015)
    # For a metric that has sums, near the value at their expectation.
    quality = QUALITIES["pearson"](1)
    like, pearson = chance(quality, swift, super_, target), random_rescored_curve(swift, super_, target, quality)
    assert (pearson.quality - like.quality[pearson.deferred]).abs().max() < 0.015


@pytest.mark.parametrize(
    ("sizes", "said"), [((0, 0, 0, 0), "at least one"), ((3, 2, 3, 3), "shape"), ((3, 3, 3, 4), "shape")]
)
def test_rescored_input_that_cannot_be_used(sizes, said):
    with pytest.raises(InputError, match=said):
        rescored_curve(*(torch.zeros(n) for n in sizes), QUALITIES["spearman"](1).whole)


@pytest.mark.parametrize("points", [1, 0, -3])
def test_a_grid_has_two_ends(points):
    swift, super_, target, score = real_valued(9, False)
    whole = QUALITIES["spearman"](1).whole
    for make in (
        lambda: rescored_curve(score, swift, super_, target, whole, points=points),
        lambda: random_rescored_curve(swift, super_, target, whole, points=points),
        lambda: random_curve(swift[:, None], super_[:, None], lambda s: s[..., 0], points=points),
    ):
        with pytest.raises(InputError, match="2 points"):
            make()
