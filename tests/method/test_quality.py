"""Task metrics against reference implementations, and their additivity."""

import warnings

import numpy as np
import pytest
import scipy.stats
import torch
import torchmetrics.functional as reference
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from elang.errors import InputError
from elang.method.bootstrap import curve_interval
from elang.method.curve.exact import operating_curve
from elang.method.curve.reading import random_curve
from elang.method.quality.metric import group_sums
from elang.method.quality.registry import QUALITIES
from elang.method.quality.texts import TEXT_METRICS
from elang.metrics import RoutingCurve


def macro_f1(target, prediction):
    return f1_score(target, prediction, average="macro", zero_division=0)


def correlation(target, prediction):
    if np.ptp(target) == 0 or np.ptp(prediction) == 0:
        return 0.0
    return np.corrcoef(target, prediction)[0, 1]


def rank_correlation(target, prediction):
    if np.ptp(target) == 0 or np.ptp(prediction) == 0:
        return 0.0
    return scipy.stats.spearmanr(target, prediction).statistic


def quiet_matthews(target, prediction):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of a single label
        return matthews_corrcoef(target, prediction)


REFERENCE = {
    "accuracy": accuracy_score,
    "f1": lambda target, prediction: f1_score(target, prediction, zero_division=0),
    "f1_macro": macro_f1,
    "matthews": quiet_matthews,
    "pearson": correlation,
    "spearman": rank_correlation,
}
CASES = [(name, classes) for name in REFERENCE for classes in ((2,) if name == "f1" else (2, 3, 10))]
SUMS = [case for case in CASES if case[0] != "spearman"]
CLASSIFICATION = ["accuracy", "f1", "f1_macro", "matthews"]
TABLES = ["answer_f1", "answer_exact", "worth"]


def answers(classes, n=200, seed=0, right=0.6):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (n,), generator=generator)
    other = torch.randint(classes, (n,), generator=generator)
    return torch.where(torch.rand(n, generator=generator) < right, target, other), target


def test_every_quality_has_a_reference():
    # Those of texts are in test_text_quality.
    assert {*REFERENCE, "exact_match", *TABLES, *TEXT_METRICS} == QUALITIES.keys()
    assert all(QUALITIES[name](2).name == name for name in QUALITIES)
    assert all(
        QUALITIES[name](2).target == (name if name in {*TABLES, *TEXT_METRICS} else "label") for name in QUALITIES
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("right", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_against_reference(name, classes, right, seed):
    prediction, target = answers(classes, seed=seed, right=right)
    expected = REFERENCE[name](target.numpy(), prediction.numpy())
    assert QUALITIES[name](classes)(prediction, target) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_few_examples(name, classes, n):
    for seed in range(20):
        prediction, target = answers(classes, n=n, seed=seed)
        expected = REFERENCE[name](target.numpy(), prediction.numpy())
        assert QUALITIES[name](classes)(prediction, target) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "target"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([1, 1, 1, 1], [1, 1, 1, 1]),
        ([0, 0, 0, 0], [1, 1, 1, 1]),
        ([1, 1, 1, 1], [0, 1, 0, 1]),
        ([0, 1, 0, 1], [1, 1, 1, 1]),
        ([0, 1, 1, 0], [1, 0, 0, 1]),
    ],
)
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_degenerate(name, classes, prediction, target):
    found = QUALITIES[name](classes)(torch.tensor(prediction), torch.tensor(target))
    assert found == pytest.approx(REFERENCE[name](np.array(target), np.array(prediction)), abs=1e-12)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_pearson_of_real_values(offset):
    generator = torch.Generator().manual_seed(0)
    target = 5 * torch.rand(500, generator=generator) + offset
    prediction = target + torch.randn(500, generator=generator)
    expected = np.corrcoef(target.double(), prediction.double())[0, 1]
    assert QUALITIES["pearson"](1)(prediction, target) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("constant", [0.0, 0.3, 0.7, 3.3, 1e6])
def test_pearson_of_a_constant_is_zero(constant):
    target = torch.rand(999, generator=torch.Generator().manual_seed(0))
    assert QUALITIES["pearson"](1)(torch.full((999,), constant, dtype=torch.float64), target) == 0
    assert QUALITIES["pearson"](1)(target, torch.full((999,), constant, dtype=torch.float64)) == 0


@pytest.mark.parametrize(("name", "classes"), SUMS)
def test_statistics_add_up(name, classes):
    quality = QUALITIES[name](classes)
    prediction, target = answers(classes)
    each = quality.statistics(prediction, target)
    assert each.shape[0] == 200
    # One example alone has the row that it has among others.
    alone = torch.cat([quality.statistics(prediction[i : i + 1], target[i : i + 1]) for i in range(200)])
    assert torch.equal(each, alone)
    sums = each[:77].sum(0, dtype=torch.float64) + each[77:].sum(0, dtype=torch.float64)
    assert float(quality.value(sums)) == pytest.approx(quality(prediction, target), abs=1e-12)


@pytest.mark.parametrize(("name", "classes"), SUMS)
def test_many_sums_at_once(name, classes):
    quality = QUALITIES[name](classes)
    pairs = [answers(classes, seed=seed) for seed in range(6)]
    sums = torch.stack([quality.statistics(*pair).sum(0, dtype=torch.float64) for pair in pairs])
    expected = torch.tensor([quality(*pair) for pair in pairs], dtype=torch.float64)
    assert torch.equal(quality.value(sums), expected)
    assert torch.equal(quality.value(sums.view(2, 3, -1)), expected.view(2, 3))


def test_counts_of_many_examples_do_not_overflow():
    prediction, target = torch.ones(70_000, dtype=torch.long), torch.arange(70_000) % 2
    assert QUALITIES["accuracy"](2)(prediction, target) == 0.5
    assert QUALITIES["f1"](2)(prediction, target) == pytest.approx(2 / 3)
    assert QUALITIES["matthews"](2)(target, target) == 1


def test_f1_is_for_two_classes():
    with pytest.raises(InputError, match="f1_macro"):
        QUALITIES["f1"](3)


def silenced(classes, n=300, seed=0):
    """Answers of which some name no label."""
    prediction, target = answers(classes, n=n, seed=seed)
    silent = torch.rand(n, generator=torch.Generator().manual_seed(seed + 50)) < 0.3
    return torch.where(silent, -1, prediction), target


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_an_answer_that_names_no_label_is_wrong_and_no_class(classes, seed):
    prediction, target = silenced(classes, seed=seed)
    said, true = prediction.numpy(), target.numpy()
    assert QUALITIES["accuracy"](classes)(prediction, target) == pytest.approx(accuracy_score(true, said))
    macro = f1_score(true, said, labels=range(classes), average="macro", zero_division=0)
    assert QUALITIES["f1_macro"](classes)(prediction, target) == pytest.approx(macro, abs=1e-12)
    assert QUALITIES["matthews"](classes)(prediction, target) == pytest.approx(matthews_corrcoef(true, said), abs=1e-12)
    if classes == 2:
        binary = f1_score(true, said, labels=[1], average="macro")
        assert QUALITIES["f1"](2)(prediction, target) == pytest.approx(binary, abs=1e-12)


def test_no_label_by_hand():
    prediction, target = torch.tensor([1, -1, 0, -1]), torch.tensor([1, 1, 0, 0])
    assert QUALITIES["accuracy"](2)(prediction, target) == 1 / 2
    # Of the ones said, all are right; of the ones there are, half are found.
    assert QUALITIES["f1"](2)(prediction, target) == pytest.approx(2 / 3)
    assert QUALITIES["f1_macro"](2)(prediction, target) == pytest.approx(2 / 3)
    # Hits 2, examples 4, said (1, 1) and 2 silent, true (2, 2): (2*4 - 4) / sqrt((16-1-1-4) * (16-4-4)).
    assert QUALITIES["matthews"](2)(prediction, target) == pytest.approx(4 / 80**0.5)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_nothing_but_no_label(name):
    target = torch.tensor([0, 1, 1, 0])
    assert QUALITIES[name](2)(torch.full((4,), -1), target) == 0


def test_no_label_is_not_right_where_the_target_is_unknown_too():
    assert QUALITIES["accuracy"](2)(torch.tensor([-1, 1]), torch.tensor([-1, 1])) == 1 / 2
    assert QUALITIES["exact_match"](2)(torch.tensor([-1, 1]), torch.tensor([-1, 1]), torch.arange(2)) == 1 / 2


def test_f1_macro_of_commitment_bank():
    # F1 of the classes: 2*2/(3+2), 2*1/(2+2) and 0.
    target, prediction = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 0, 1, 0, 1])
    assert QUALITIES["f1_macro"](3)(prediction, target) == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)
    found = reference.f1_score(prediction, target, task="multiclass", num_classes=3, average="macro")
    assert QUALITIES["f1_macro"](3)(prediction, target) == pytest.approx(float(found))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_matthews_against_torchmetrics(classes):
    prediction, target = answers(classes)
    found = reference.matthews_corrcoef(prediction, target, task="multiclass", num_classes=classes)
    assert QUALITIES["matthews"](classes)(prediction, target) == pytest.approx(float(found), abs=1e-6)


def test_matthews_by_hand():
    # tp 2, tn 1, fp 1, fn 0: (2*1 - 1*0) / sqrt(3 * 2 * 2 * 1).
    prediction, target = torch.tensor([1, 1, 1, 0]), torch.tensor([1, 1, 0, 0])
    assert QUALITIES["matthews"](2)(prediction, target) == pytest.approx(2 / 12**0.5)


def test_correlations_by_hand():
    x, y = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([1.0, 3.0, 2.0, 4.0])
    # Deviations (-3, -2, -1, 6) and (-1.5, .5, -.5, 1.5): 13 / sqrt(50 * 5). Ranks (1, 2, 3, 4): 1 - 6 * 2 / 60.
    assert QUALITIES["pearson"](1)(x, y) == pytest.approx(13 / 250**0.5)
    assert QUALITIES["spearman"](1)(x, y) == pytest.approx(0.8)
    # Ranks (1.5, 1.5, 3) and (1, 2, 3): deviations (-.5, -.5, 1) and (-1, 0, 1): 1.5 / sqrt(1.5 * 2).
    assert QUALITIES["spearman"](1)(torch.tensor([7.0, 7.0, 9.0]), torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(
        1.5 / 3**0.5
    )


@pytest.mark.parametrize("decimals", [0, 1, 6])
@pytest.mark.parametrize("n", [2, 3, 500])
def test_spearman_of_real_values(n, decimals):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        target = (5 * torch.rand(n, generator=generator)).round(decimals=decimals)
        prediction = (target + torch.randn(n, generator=generator)).round(decimals=decimals)
        found = QUALITIES["spearman"](1)(prediction, target)
        assert found == pytest.approx(rank_correlation(target.numpy(), prediction.numpy()), abs=1e-12)
        if n == 500:
            assert found == pytest.approx(float(reference.spearman_corrcoef(prediction, target)), abs=1e-4)
        # Ranks only.
        assert QUALITIES["spearman"](1)(prediction.double().exp(), target) == found


def test_spearman_of_many():
    n = 100_000
    values = torch.arange(n)
    assert QUALITIES["spearman"](1)(values.float(), values.double()) == pytest.approx(1, abs=1e-12)
    assert QUALITIES["spearman"](1)(-values, values) == pytest.approx(-1, abs=1e-12)
    assert QUALITIES["spearman"](1)(torch.ones(n), values) == 0
    assert QUALITIES["spearman"](1)(torch.ones(1), torch.ones(1)) == 0


def test_spearman_has_no_sums():
    quality = QUALITIES["spearman"](1)
    with pytest.raises(InputError, match="no function of sums"):
        quality.statistics(torch.zeros(3), torch.zeros(3))
    with pytest.raises(InputError, match="no function of sums"):
        quality.value(torch.zeros(3))
    with pytest.raises(InputError, match="row 1"):
        quality(torch.tensor([0.0, float("nan"), 1.0]), torch.arange(3))


def test_exact_match_by_hand():
    # Questions 5 (right, right), 2 (right, wrong), 9 (wrong), in the order in which options come.
    question = torch.tensor([5, 2, 9, 2, 5])
    target = torch.tensor([1, 0, 1, 1, 0])
    prediction = torch.tensor([1, 0, 0, 0, 0])
    quality = QUALITIES["exact_match"](2)
    assert quality(prediction, target, question) == pytest.approx(1 / 3)
    assert quality(target, target, question) == 1
    assert quality(1 - target, target, question) == 0
    assert quality(prediction, target, torch.zeros(5, dtype=torch.long)) == 0
    assert quality(prediction, target, torch.arange(5)) == 3 / 5


@pytest.mark.parametrize("groups", [1, 3, 40, 10_000])
def test_exact_match_of_random_groups(groups):
    prediction, target = silenced(2, 500)
    group = 10**15 + torch.randint(groups, (500,), generator=torch.Generator().manual_seed(2))
    wrong = {g for g, p, t in zip(group.tolist(), prediction.tolist(), target.tolist(), strict=True) if p != t}
    every = set(group.tolist())
    found = QUALITIES["exact_match"](2)(prediction, target, group)
    assert found == pytest.approx(len(every - wrong) / len(every), abs=1e-12)


def test_exact_match_needs_groups():
    quality, some = QUALITIES["exact_match"](2), torch.ones(3, dtype=torch.long)
    with pytest.raises(InputError, match="group"):
        quality(some, some)
    with pytest.raises(InputError, match=r"\(2,\)"):
        quality(some, some, some[:2])


def test_groups_are_ignored_where_examples_add_up():
    prediction, target = answers(3)
    for name in ("accuracy", "f1_macro", "pearson", "spearman"):
        quality = QUALITIES[name](3)
        assert quality(prediction, target, torch.zeros(200, dtype=torch.long)) == quality(prediction, target)


def test_group_sums():
    statistics = torch.tensor([[1, 2], [3, 4], [5, 6], [100, 100]], dtype=torch.int8)
    sums, row = group_sums(statistics, torch.tensor([8, -3, 8, 8]))
    assert torch.equal(sums[row[0]], torch.tensor([106.0, 108.0], dtype=torch.float64))
    assert torch.equal(sums[row[1]], torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert len(sums) == 2


def test_answers_by_hand():
    # Three queries; the third names no candidate, and padding earns nothing.
    f1 = torch.tensor([[0.0, 0.4, 1.0], [0.5, 0.0, 0.0], [1.0, 1.0, 1.0]])
    chosen = torch.tensor([1, 0, -1])
    assert QUALITIES["answer_f1"](2)(chosen, f1) == pytest.approx(0.3)
    assert QUALITIES["answer_exact"](2)(chosen, (f1 == 1).float()) == 0
    assert QUALITIES["answer_exact"](2)(torch.tensor([2, 0, 0]), (f1 == 1).float()) == pytest.approx(2 / 3)
    assert QUALITIES["answer_f1"](2)(torch.full((3,), -1), f1) == 0


@pytest.mark.parametrize("name", TABLES)
def test_answers_of_random_tables(name):
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(200, 7, generator=generator, dtype=torch.float64)
    chosen = torch.randint(-1, 7, (200,), generator=generator)
    expected = np.mean([table[i, k].item() if k >= 0 else 0.0 for i, k in enumerate(chosen.tolist())])
    assert QUALITIES[name](2)(chosen, table) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    ("chosen", "table", "said"),
    [
        ([0, 1], torch.zeros(2), "N, K"),
        ([0, 1], torch.zeros(3, 2), "N, K"),
        ([0, 2], torch.zeros(2, 2), "candidate 2"),
        ([0, 1], torch.tensor([[0.0, 1.0], [0.0, float("nan")]]), "row 1"),
    ],
)
def test_tables_that_cannot_be_used(name, chosen, table, said):
    with pytest.raises(InputError, match=said):
        QUALITIES[name](2)(torch.tensor(chosen), table)


OFFSETS = [
    (0.0, 1.0),
    (1.7e9, 300.0),
    (-1.7e9, 300.0),
    (1e12, 1e6),
    (1e12, 1.0),
    (1e9, 1e-3),
    (1e5, 1e-6),
    (3e-6, 1e-6),
]


def far_off(offset, scale, n=300, seed=0, noise=0.4):
    """Labels and two models' answers far from 0, and the same near 0 from the very same float64 values."""
    chance = np.random.default_rng(seed)
    truth = offset + scale * chance.normal(size=n)
    near = [truth + strength * noise * scale * chance.normal(size=n) for strength in (2, 1)]
    return tuple(torch.tensor(column) for column in (truth, *near))


@pytest.mark.parametrize(("offset", "scale"), OFFSETS)
@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlations_of_values_far_from_0(name, offset, scale):
    truth, answer, _ = far_off(offset, scale)
    # Exact differences: the offset is taken away before anything is summed.
    x, y = (column.numpy() - offset for column in (answer, truth))
    expected = correlation(x, y) if name == "pearson" else rank_correlation(x, y)
    assert QUALITIES[name](1)(answer, truth) == pytest.approx(float(expected), abs=1e-6)
    # Each column may be far off by itself, or in another unit.
    assert QUALITIES[name](1)(1e3 * (answer - offset) - 7, truth) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (1.7e9, 300.0), (1e12, 1e3)])
@pytest.mark.parametrize("swift_offset", [None, 0.0])
def test_curve_of_values_far_from_0(offset, scale, swift_offset):
    """Every point is the correlation of the mixed answers, also of a Swift that has learned nothing of the offset."""
    truth, swift, super_ = far_off(offset, scale)
    if swift_offset is not None:
        swift = (swift - offset) / scale * 1e-2
    quality, score = QUALITIES["pearson"](1), (truth - super_).abs().round(decimals=0)
    a, b = quality.statistics(swift, truth), quality.statistics(super_, truth)
    curve = operating_curve(score, a, b, quality.value)
    metric = RoutingCurve(1, "pearson")
    for rows in torch.arange(300).split(77):
        metric.update(score[rows], swift[rows], super_[rows], truth[rows])
    streamed = metric.compute()
    for place in range(len(curve)):
        mixed = torch.where(score > curve.threshold[place], super_, swift)
        shift = offset if swift_offset is None or place else 0.0
        expected = float(correlation(mixed.numpy() - shift, truth.numpy() - offset))
        assert float(curve.quality[place]) == pytest.approx(expected, abs=1e-6)
        assert float(streamed.quality[place]) == pytest.approx(expected, abs=1e-6)
    ends = random_curve(a, b, quality.value).quality[[0, -1]]
    assert torch.allclose(ends, curve.quality[[0, -1]], atol=1e-9)


def test_interval_of_values_far_from_0():
    """Examples drawn again, with and without the offset."""
    found = []
    for offset in (0.0, 2.0**40):
        truth, swift, super_ = (column + offset for column in far_off(0.0, 4096.0))
        # Values that the offset leaves as they are.
        truth, swift, super_ = (column.round() for column in (truth, swift, super_))
        quality = QUALITIES["pearson"](1)
        a, b = quality.statistics(swift, truth), quality.statistics(super_, truth)
        found.append(curve_interval(torch.arange(300.0), a, b, quality.value, 9, 100))
    for one, two in zip(*found, strict=True):
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 1.7e9, 0.1])
def test_pearson_of_a_constant_is_0(constant):
    flat = torch.full((50,), constant, dtype=torch.float64)
    other = constant + torch.arange(50, dtype=torch.float64)
    quality = QUALITIES["pearson"](1)
    assert quality(flat, other) == quality(other, flat) == quality(flat, flat) == quality(flat[:1], flat[:1]) == 0
    a, b = quality.statistics(flat, other), quality.statistics(flat + 1, other)
    assert operating_curve(torch.zeros(50), a, b, quality.value).quality.tolist() == [0, 0]


@pytest.mark.parametrize("rare", [1, 7, 1000])
def test_matthews_of_a_billion(rare):
    """Nearly all of one class: the counts' squares are beyond what float64 holds exactly."""
    n = 10**9
    hits, said, true = [n - 2 * rare, 0], [n - rare, rare], [n - rare, rare]
    (t, s, c), total = (true, said, sum(hits)), n
    covariance = c * total - sum(a * b for a, b in zip(s, t, strict=True))
    spread = (total**2 - sum(v * v for v in s)) * (total**2 - sum(v * v for v in t))
    sums = torch.tensor([*hits, *said, *true], dtype=torch.float64)
    assert float(QUALITIES["matthews"](2).value(sums)) == pytest.approx(covariance / spread**0.5, abs=1e-6)
