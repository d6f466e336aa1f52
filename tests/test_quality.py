"""Task metrics against reference implementations, and their additivity."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from elang.errors import InputError
from elang.quality import QUALITIES


def macro_f1(target, prediction):
    return f1_score(target, prediction, average="macro", zero_division=0)


def correlation(target, prediction):
    if np.ptp(target) == 0 or np.ptp(prediction) == 0:
        return 0.0
    return np.corrcoef(target, prediction)[0, 1]


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
}
CASES = [(name, classes) for name in QUALITIES for classes in ((2,) if name == "f1" else (2, 3, 10))]


def answers(classes, n=200, seed=0, right=0.6):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (n,), generator=generator)
    other = torch.randint(classes, (n,), generator=generator)
    return torch.where(torch.rand(n, generator=generator) < right, target, other), target


def test_every_quality_has_a_reference():
    assert REFERENCE.keys() == QUALITIES.keys()
    assert all(QUALITIES[name](2).name == name for name in QUALITIES)


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


@pytest.mark.parametrize(("name", "classes"), CASES)
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


@pytest.mark.parametrize(("name", "classes"), CASES)
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
