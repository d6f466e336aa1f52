"""Losses: against loops, finite without one of the kinds, and pulling the right way."""

import math
from functools import partial

import pytest
import torch

from elang.losses import (
    MARGINS,
    distillation,
    energy_margin_hinge,
    energy_margin_pairwise,
    energy_margin_ranking,
)


def batch(n=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    energy = 3 * torch.randn(n, generator=generator, dtype=torch.float64) - 5
    return energy, torch.rand(n, generator=generator) < 0.3


def split(energy, hard):
    rows = list(zip(energy.tolist(), hard.tolist(), strict=True))
    return [e for e, h in rows if not h], [e for e, h in rows if h]


def mean(values):
    return math.fsum(values) / len(values)


@pytest.mark.parametrize("margins", [(None, None), (-8.0, -3.0), (None, -4.0)])
def test_hinge(margins):
    energy, hard = batch()
    easy_energy, hard_energy = split(energy, hard)
    low = energy.quantile(0.25).item() if margins[0] is None else margins[0]
    high = energy.quantile(0.75).item() if margins[1] is None else margins[1]
    expected = mean([max(0.0, e - low) ** 2 for e in easy_energy])
    expected += mean([max(0.0, high - e) ** 2 for e in hard_energy])
    assert energy_margin_hinge(energy, hard, *margins).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 0.9])
def test_ranking(epsilon):
    energy, hard = batch()
    center = mean(energy.tolist())
    easy, difficult = ([1 / (1 + math.exp(center - e)) for e in part] for part in split(energy, hard))
    expected = max(0.0, mean(easy) - mean(difficult) + epsilon)
    assert energy_margin_ranking(energy, hard, epsilon).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 2.0])
def test_pairwise(epsilon):
    energy, hard = batch()
    easy, difficult = split(energy, hard)
    expected = mean([max(0.0, e - h + epsilon) for e in easy for h in difficult])
    assert energy_margin_pairwise(energy, hard, epsilon).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("is_hard", [False, True])
@pytest.mark.parametrize("name", MARGINS)
def test_one_kind_alone_is_harmless(name, is_hard):
    energy = batch(9)[0].requires_grad_()
    loss = MARGINS[name](energy, torch.full((9,), is_hard))
    loss.backward()
    assert loss.isfinite()
    assert not energy.grad.any()


@pytest.mark.parametrize("is_hard", [False, True])
@pytest.mark.parametrize("name", MARGINS)
def test_one_example_alone_is_harmless(name, is_hard):
    energy = batch(1)[0].requires_grad_()
    loss = MARGINS[name](energy, torch.tensor([is_hard]))
    loss.backward()
    assert loss.item() == 0
    assert not energy.grad.any()


@pytest.mark.parametrize("is_hard", [False, True])
def test_hinge_without_one_kind_is_finite(is_hard):
    energy = batch(9)[0].requires_grad_()
    loss = energy_margin_hinge(energy, torch.full((9,), is_hard), -8.0, -3.0)
    loss.backward()
    assert loss.isfinite()
    assert energy.grad.isfinite().all()


@pytest.mark.parametrize("name", MARGINS)
def test_lowers_easy_and_raises_hard(name):
    # The worst case, hard examples below easy ones, so that no term is satisfied already.
    energy = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], requires_grad=True)
    hard = torch.tensor([False, False, False, True, True, True])
    MARGINS[name](energy, hard).backward()
    # Descent moves against the gradient.
    assert (energy.grad[~hard] >= 0).all()
    assert (energy.grad[hard] <= 0).all()
    assert energy.grad[~hard].sum() > 0
    assert energy.grad[hard].sum() < 0


@pytest.mark.parametrize("loss", [*MARGINS.values(), partial(energy_margin_hinge, m_easy=-8.0, m_hard=-3.0)])
def test_nothing_to_do_once_separated(loss):
    energy = torch.tensor([-30.0, -30.0, -30.0, 10.0, 10.0, 10.0], requires_grad=True)
    found = loss(energy, torch.tensor([False] * 3 + [True] * 3))
    found.backward()
    assert found.item() == 0
    assert not energy.grad.any()


@pytest.mark.parametrize("name", MARGINS)
def test_training_by_it_sorts_the_energies(name):
    energy, hard = batch(60)
    energy = energy.float().requires_grad_()
    before = (energy[hard].mean() - energy[~hard].mean()).item()
    optimizer = torch.optim.SGD([energy], lr=5.0)
    for _ in range(50):
        optimizer.zero_grad()
        MARGINS[name](energy, hard).backward()
        optimizer.step()
    assert (energy[hard].mean() - energy[~hard].mean()).item() > before + 0.5


def softmax(row, temperature):
    total = math.fsum(math.exp(x / temperature) for x in row)
    return [math.exp(x / temperature) / total for x in row]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_distillation(temperature, classes):
    generator = torch.Generator().manual_seed(classes)
    swift, super_ = 3 * torch.randn(2, 30, classes, generator=generator, dtype=torch.float64)
    each = []
    for mine, theirs in zip(swift.tolist(), super_.tolist(), strict=True):
        pairs = zip(softmax(theirs, temperature), softmax(mine, temperature), strict=True)
        each.append(temperature**2 * math.fsum(p * math.log(p / q) for p, q in pairs))
    assert distillation(swift, super_, temperature).item() == pytest.approx(mean(each), rel=1e-5)


def test_distillation_is_zero_at_equality_and_pulls_there():
    super_ = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 0.0]])
    same = super_.clone().requires_grad_()
    loss = distillation(same, super_ + 7.0)  # a shift of the logits changes no probability
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert same.grad.abs().max() < 1e-6
    other = torch.zeros(2, 3, requires_grad=True)
    distillation(other, super_).backward()
    stepped = distillation(other - 0.1 * other.grad, super_)
    assert 0 < stepped.item() < distillation(other, super_).item()


def test_distillation_of_half_precision_is_computed_in_full():
    logits = torch.tensor([[1.0, -2.0], [30.0, -30.0]])
    found = distillation(logits.bfloat16(), (-logits).bfloat16())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(distillation(logits, -logits).item())
