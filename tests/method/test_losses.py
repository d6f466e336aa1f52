"""Losses: against loops, finite without one of the kinds, and pulling the right way."""

import math
from functools import partial

import pytest
import torch

from elang.method.losses import (
    MARGINS,
    distillation,
    energy_margin_hinge,
    energy_margin_pairwise,
    energy_margin_ranking,
    gatekeeper,
    hidden_distillation,
    token_distillation,
)
from elang.method.scores import free_energy, max_softmax

ENERGY = {"hinge": energy_margin_hinge, "ranking": energy_margin_ranking, "pairwise": energy_margin_pairwise}


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
@pytest.mark.parametrize("name", ENERGY)
def test_one_kind_alone_is_harmless(name, is_hard):
    energy = batch(9)[0].requires_grad_()
    loss = ENERGY[name](energy, torch.full((9,), is_hard))
    loss.backward()
    assert loss.isfinite()
    assert not energy.grad.any()


@pytest.mark.parametrize("is_hard", [False, True])
@pytest.mark.parametrize("name", ENERGY)
def test_one_example_alone_is_harmless(name, is_hard):
    energy = batch(1)[0].requires_grad_()
    loss = ENERGY[name](energy, torch.tensor([is_hard]))
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


@pytest.mark.parametrize("name", ENERGY)
def test_lowers_easy_and_raises_hard(name):
    # The worst case, hard examples below easy ones, so that no term is satisfied already.
    energy = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], requires_grad=True)
    hard = torch.tensor([False, False, False, True, True, True])
    ENERGY[name](energy, hard).backward()
    # Descent moves against the gradient.
    assert (energy.grad[~hard] >= 0).all()
    assert (energy.grad[hard] <= 0).all()
    assert energy.grad[~hard].sum() > 0
    assert energy.grad[hard].sum() < 0


@pytest.mark.parametrize("loss", [*ENERGY.values(), partial(energy_margin_hinge, m_easy=-8.0, m_hard=-3.0)])
def test_nothing_to_do_once_separated(loss):
    energy = torch.tensor([-30.0, -30.0, -30.0, 10.0, 10.0, 10.0], requires_grad=True)
    found = loss(energy, torch.tensor([False] * 3 + [True] * 3))
    found.backward()
    assert found.item() == 0
    assert not energy.grad.any()


@pytest.mark.parametrize("name", ENERGY)
def test_training_by_it_sorts_the_energies(name):
    energy, hard = batch(60)
    energy = energy.float().requires_grad_()
    before = (energy[hard].mean() - energy[~hard].mean()).item()
    optimizer = torch.optim.SGD([energy], lr=5.0)
    for _ in range(50):
        optimizer.zero_grad()
        ENERGY[name](energy, hard).backward()
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


# Of logits, and of examples that are hard by degrees.


def logits_batch(n=40, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (n,), generator=generator), torch.rand(n, generator=generator) < 0.3


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_margins_of_logits(temperature):
    logits, label, hard = logits_batch()
    for name, loss in ENERGY.items():
        expected = loss(free_energy(logits, temperature), hard)
        torch.testing.assert_close(MARGINS[name](logits, label, hard, temperature), expected)
    expected = energy_margin_pairwise(max_softmax(logits, temperature), hard)
    torch.testing.assert_close(MARGINS["confidence"](logits, label, hard, temperature), expected)
    torch.testing.assert_close(MARGINS["gatekeeper"](logits, label, hard, temperature), gatekeeper(logits, label, hard))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_gatekeeper(alpha):
    logits, label, hard = logits_batch()
    total = 0.0
    for row, right, is_hard in zip(logits.tolist(), label.tolist(), hard.tolist(), strict=True):
        p = softmax(row, 1.0)
        if is_hard:
            total += (1 - alpha) * math.fsum(q * math.log(q * len(p)) for q in p)
        else:
            total -= alpha * math.log(p[right])
    assert gatekeeper(logits, label, hard, alpha).item() == pytest.approx(total / len(label), rel=1e-5)


def test_what_is_taken_unless_said():
    logits, label, hard = torch.randn(9, 3), torch.randint(3, (9,)), torch.arange(9) % 2 == 0
    assert torch.equal(gatekeeper(logits, label, hard), gatekeeper(logits, label, hard, 0.5))
    assert torch.equal(distillation(logits, logits.flip(0)), distillation(logits, logits.flip(0), 2.0))


def test_hinge_with_one_margin_given_needs_both_kinds():
    energy, easy = torch.tensor([-1.0, 2.0]), torch.tensor([False, False])
    assert energy_margin_hinge(energy, easy, m_easy=0.0) == 0
    assert energy_margin_hinge(energy, easy, m_hard=0.0) == 0
    assert energy_margin_hinge(energy, easy, m_easy=0.0, m_hard=0.0) == 2


def test_gatekeeper_with_missing_choices():
    logits, label, hard = logits_batch(classes=3)
    wide = torch.cat([logits, torch.full((40, 2), -torch.inf)], 1).requires_grad_()
    found = gatekeeper(wide, label, hard)
    torch.testing.assert_close(found, gatekeeper(logits, label, hard))
    found.backward()
    assert wide.grad.isfinite().all()


@pytest.mark.parametrize("name", MARGINS)
def test_hard_by_degrees(name):
    """0 and 1 are the two kinds, and what lies between counts for both."""
    logits, label, hard = logits_batch()
    torch.testing.assert_close(
        MARGINS[name](logits, label, hard, 1.0), MARGINS[name](logits, label, hard.double(), 1.0)
    )
    logits.requires_grad_()
    degree = torch.rand(40, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    loss = MARGINS[name](logits, label, degree, 1.0)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad.any()


def test_pairs_count_by_degrees():
    energy, degree = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.0, 0.25, 1.0])
    gaps = torch.tensor([[0.3, 0.0, 0.0], [1.3, 0.3, 0.0], [3.3, 2.3, 0.3]])
    weight = (1 - degree)[:, None] * degree[None]
    expected = (gaps * weight).sum() / weight.sum()
    torch.testing.assert_close(energy_margin_pairwise(energy, degree), expected)
    # What is hardly hard at all weighs hardly at all.
    little = energy_margin_pairwise(energy, torch.tensor([0.01, 0.0, 0.0]))
    assert 0 < little < 0.06


def test_means_of_what_is_hardly_hard():
    """The mean of the hard is theirs alone, however little they count; the loss then counts for as little."""
    energy, degree = torch.tensor([0.0, 1.0, 3.0, 4.0]), torch.tensor([0.0, 0.0, 0.5, 1.0])
    less = degree * torch.tensor([0.0, 0.0, 0.1, 0.1])
    squashed = torch.sigmoid(-energy + energy.mean())
    easy = (squashed * (1 - less)).sum() / (1 - less).sum()
    hard = (squashed * degree).sum() / degree.sum()
    torch.testing.assert_close(energy_margin_ranking(-energy, less), 0.15 * (easy - hard + 0.3))


def test_hidden_distillation():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 3, 5, 7, generator=generator).double()
    lengths = [5, 2, 1]
    mask = torch.tensor([[1] * n + [0] * (5 - n) for n in lengths])
    each = [(ours[i, j] - theirs[i, j]).square().mean().item() for i, n in enumerate(lengths) for j in range(n)]
    assert hidden_distillation(ours, theirs, mask).item() == pytest.approx(mean(each), rel=1e-5)
    assert hidden_distillation(ours, ours, mask).item() == 0


def test_token_distillation_is_the_whole_divergence_where_all_is_kept():
    generator = torch.Generator().manual_seed(0)
    swift, super_ = (torch.randn(6, 9, generator=generator) for _ in range(2))
    expected = torch.nn.functional.kl_div(
        swift.log_softmax(-1), super_.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    best = super_.log_softmax(-1).topk(8, -1)
    assert float(token_distillation(swift, best.indices, best.values)) == pytest.approx(float(expected), abs=1e-5)
    # Outcomes put together tell less apart.
    best = super_.log_softmax(-1).topk(2, -1)
    assert 0 < float(token_distillation(swift, best.indices, best.values)) < float(expected)


def test_token_distillation_has_a_gradient_at_its_edges():
    swift = torch.randn(3, 9, requires_grad=True)
    sure = torch.tensor([[0.0, -60.0]] * 3)
    token_distillation(swift, torch.tensor([[1, 2]] * 3), sure).backward()
    assert swift.grad.isfinite().all()
    assert float(token_distillation(swift[:0], torch.zeros(0, 2).long(), sure[:0])) == 0


def test_token_distillation_by_hand():
    """Two tokens of three are told, the third is what is left."""
    swift = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]]).log_softmax(-1)
    super_ = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
    ids = torch.tensor([[0, 1], [1, 2]])
    expected = sum(
        float(p * (p.log() - q)) for row, own in zip(super_, swift, strict=True) for p, q in zip(row, own, strict=True)
    )
    told = super_.gather(1, ids).log()
    # Of logits, not of probabilities, and for the mean of the two.
    assert float(token_distillation(swift + 5, ids, told)) == pytest.approx(expected / 2, abs=1e-5)
    assert float(token_distillation(swift[:1], ids[:1], told[:1])) > 0
    alone = [float(token_distillation(swift[i : i + 1], ids[i : i + 1], told[i : i + 1])) for i in (0, 1)]
    assert sum(alone) == pytest.approx(expected, abs=1e-5)
