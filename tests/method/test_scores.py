"""Scores: one orientation, formulas, invariances, and the rule that routes by them."""

import math

import pytest
import torch

from elang.errors import InputError
from elang.method.deferral import check_finite, check_logits, route
from elang.method.scores import (
    BEFORE_DECODER,
    SCORES,
    all_scores,
    encoder_scores,
    free_energy,
    max_logit_pnorm,
    max_softmax,
    softmax_energy,
)

ON_PROBABILITIES = ["softmax_energy", "max_softmax", "entropy", "margin"]
# The threshold that the paper's code publishes for SST-2, and the probability that it stands for.
PUBLISHED, PROBABILITY = 1.31044, 0.99386


def random_logits(*shape, scale=3.0, seed=0, dtype=torch.float64):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive(name, row, temperature):
    """The score of one row of logits, in plain Python."""
    scaled = [x / temperature for x in row]
    total = math.fsum(math.exp(x) for x in scaled)
    p = sorted((math.exp(x) / total for x in scaled), reverse=True)
    return {
        "free_energy": -temperature * math.log(total),
        "softmax_energy": -math.log(math.fsum(math.exp(q) for q in p)),
        "max_softmax": -p[0],
        "entropy": -math.fsum(q * math.log(q) for q in p),
        "margin": p[1] - p[0],
        "max_logit_pnorm": -max(row) / math.sqrt(math.fsum(x * x for x in row)),
    }[name]


def ranks(values):
    return values.argsort().argsort().double()


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("name", SCORES)
def test_larger_is_harder(name, classes):
    # From all evidence on one class to the same amount of evidence for every class.
    sure, unsure = torch.zeros(classes), torch.ones(classes)
    sure[1] = classes
    path = torch.stack([torch.lerp(sure, unsure, t) for t in torch.linspace(0, 1, 9)])
    score = SCORES[name](path, 1.0)
    assert (score.diff() > 0).all(), score


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("name", SCORES)
def test_formula(name, classes, temperature):
    logits = random_logits(50, classes)
    expected = torch.tensor([naive(name, row, temperature) for row in logits.tolist()], dtype=torch.float64)
    torch.testing.assert_close(SCORES[name](logits, temperature), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_any_leading_shape(name):
    logits = random_logits(2, 3, 4)
    expected = torch.stack([SCORES[name](part, 1.0) for part in logits])
    assert torch.equal(SCORES[name](logits, 1.0), expected)
    assert SCORES[name](logits[0, 0], 1.0).shape == ()


@pytest.mark.parametrize("name", SCORES)
def test_shift_of_the_logits(name):
    logits = random_logits(100, 4)
    moved = SCORES[name](logits + 5.0, 1.0) - SCORES[name](logits, 1.0)
    if name in ON_PROBABILITIES:
        assert moved.abs().max() < 1e-12
    elif name == "free_energy":
        torch.testing.assert_close(moved, torch.full_like(moved, -5.0))
    else:
        assert moved.abs().min() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SCORES)
def test_half_precision_is_widened(name, dtype):
    logits = random_logits(200, 3, dtype=torch.float32)
    score = SCORES[name](logits.to(dtype), 1.0)
    assert score.dtype == torch.float32
    assert torch.equal(score, SCORES[name](logits.to(dtype).float(), 1.0))
    # What is left is the rounding of the logits themselves.
    torch.testing.assert_close(score, SCORES[name](logits, 1.0), rtol=0, atol=10 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", SCORES)
def test_large_logits_do_not_overflow(name):
    logits = torch.tensor([[6e4, -6e4], [-6e4, -6e4], [6e4, 6e4]], dtype=torch.float16)
    assert SCORES[name](logits, 1.0).isfinite().all()


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(name, temperature):
    with pytest.raises(InputError, match="temperature"):
        SCORES[name](torch.zeros(2, 2), temperature)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("shape", [(5, 1), (5, 0), ()])
def test_one_output_has_no_score(name, shape):
    with pytest.raises(InputError, match="at least 2 classes"):
        SCORES[name](torch.zeros(shape), 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_cannot_be_placed(bad):
    with pytest.raises(InputError, match="row 2"):
        route(torch.tensor([0.0, 1.0, bad, bad]), 0.0)
    with pytest.raises(InputError, match="row 1"):
        check_finite(torch.tensor([[0.0, 1.0], [2.0, bad]]), "logits")


@pytest.mark.parametrize("name", SCORES)
def test_diverged_logits_are_refused(name):
    with pytest.raises(InputError, match="NaN"):
        route(SCORES[name](torch.tensor([[0.0, 1.0], [math.nan, 1.0]]), 1.0), 0.0)


def test_ties_stay_with_the_swift():
    score = torch.tensor([-1.0, 2.0, 2.0, 3.0])
    assert route(score, 2.0).tolist() == [False, False, False, True]
    assert route(score, 1.999).tolist() == [False, True, True, True]


def test_infinite_thresholds():
    score = torch.tensor([-3.4e38, 0.0, 3.4e38])
    assert not route(score, math.inf).any()
    assert route(score, -math.inf).all()


def test_softmax_energy_of_two_classes_is_max_softmax():
    logits = random_logits(5000, 2)
    order = max_softmax(logits).argsort()
    p, energy = max_softmax(logits)[order], softmax_energy(logits)[order]
    assert (energy.diff() >= 0).all()
    torch.testing.assert_close(energy, -torch.log(torch.exp(-p) + torch.exp(1 + p)))
    assert energy.min() >= -math.log(math.e + 1)
    assert energy.max() <= -math.log(2 * math.sqrt(math.e))


def test_published_threshold_is_a_probability():
    logits = random_logits(200_000, 2, scale=4.0)
    by_energy = route(softmax_energy(logits), -PUBLISHED)
    by_probability = route(max_softmax(logits), -PROBABILITY)
    # Both constants are rounded to five digits.
    distance = (max_softmax(logits) + PROBABILITY).abs()
    clear = distance > 2e-5
    assert torch.equal(by_energy[clear], by_probability[clear])
    assert clear.double().mean() > 0.999
    close = by_energy[clear & (distance < 1e-4)]
    assert close.any()
    assert not close.all()


@pytest.mark.parametrize(("classes", "scale"), [(2, 4.0), (3, 2.0), (3, 4.0), (10, 1.0)])
def test_free_energy_ranks_otherwise(classes, scale):
    logits = random_logits(20_000, classes, scale=scale)
    spearman = torch.corrcoef(torch.stack([ranks(free_energy(logits)), ranks(softmax_energy(logits))]))[0, 1]
    assert 0.4 < spearman < 0.5


def with_gaps(logits, width, seed=0):
    """The same logits, each row spread over ``width`` choices of which the others are missing."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.full((len(logits), width), -math.inf, dtype=logits.dtype)
    for row, values in zip(wide, logits, strict=True):
        row[torch.randperm(width, generator=generator)[: len(values)].sort().values] = values
    return wide


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("name", SCORES)
def test_missing_choices_count_for_nothing(name, classes, temperature):
    logits = random_logits(50, classes)
    expected = SCORES[name](logits, temperature)
    found = SCORES[name](with_gaps(logits, 7), temperature)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    # Rows of several lengths in one batch.
    both = torch.cat([with_gaps(logits, 7), random_logits(3, 7)])
    torch.testing.assert_close(SCORES[name](both, temperature)[:50], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5, math.inf])
def test_missing_choices_in_any_norm(p):
    logits = random_logits(20, 3)
    torch.testing.assert_close(max_logit_pnorm(with_gaps(logits, 6), p=p), max_logit_pnorm(logits, p=p))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SCORES)
def test_missing_choices_in_half_precision(name, dtype):
    logits = random_logits(20, 3, dtype=torch.float32).to(dtype)
    torch.testing.assert_close(SCORES[name](with_gaps(logits, 6), 1.0), SCORES[name](logits, 1.0))


def test_a_single_choice():
    only = torch.tensor([[-math.inf, 0.7, -math.inf], [-math.inf, -math.inf, -0.7]], dtype=torch.float64)
    expected = {
        "free_energy": [-0.7, 0.7],
        "softmax_energy": [-1, -1],
        "max_softmax": [-1, -1],
        "entropy": [0, 0],
        "margin": [-1, -1],
        "max_logit_pnorm": [-1, 1],
    }
    for name, score in SCORES.items():
        assert score(only, 1.0).tolist() == pytest.approx(expected[name], abs=1e-12), name


@pytest.mark.parametrize("name", SCORES)
def test_missing_choices_have_no_gradient(name):
    logits = torch.tensor([[0.5, -math.inf, 1.5, -1.0]], requires_grad=True)
    SCORES[name](logits, 1.0).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1] == 0
    assert logits.grad.any()


def test_check_logits():
    check_logits(torch.zeros(0, 3), "logits", choices=True)
    check_logits(with_gaps(random_logits(9, 2), 5), "logits", choices=True)
    check_logits(with_gaps(random_logits(9, 1), 5).view(3, 3, 5), "logits", choices=True)
    check_logits(torch.tensor([-3.4e38, 3.4e38]), "logits")
    # Where every example has all classes, nothing is missing.
    with pytest.raises(InputError, match="1 of 2 values of 'logits' are NaN or infinite"):
        check_logits(torch.tensor([[0.0, -math.inf]]), "logits")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([0.0, math.nan], "NaN"),
        ([math.nan, -math.inf], "NaN"),
        ([math.inf, -math.inf], "infinite"),
        ([math.inf, 0.0], "infinite"),
        ([-math.inf, -math.inf], "-inf throughout"),
    ],
)
def test_logits_that_cannot_be_scored(row, said):
    with pytest.raises(InputError, match=f"(?s)(?=.*the logits)(?=.*{said}).*row 1"):
        check_logits(torch.tensor([[0.0, -math.inf], row, row]), "the logits", choices=True)


def test_encoder_scores():
    logits = random_logits(20, 3)
    found = encoder_scores(logits, 2.0)
    assert tuple(found) == BEFORE_DECODER[:2]
    assert torch.equal(found["encoder_energy"], free_energy(logits, 2.0))
    assert torch.equal(found["encoder_max_softmax"], max_softmax(logits, 2.0))
    assert not set(BEFORE_DECODER) & set(SCORES)


def test_temperature_is_1_unless_said():
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    for name, score in SCORES.items():
        assert torch.equal(score(logits), score(logits, 1.0)), name
    for found in (all_scores, encoder_scores):
        plain, told = found(logits), found(logits, 1.0)
        assert plain.keys() == told.keys()
        assert all(torch.equal(plain[name], told[name]) for name in plain)


def test_the_norm_takes_any_order():
    logits = torch.tensor([[3.0, -1.0, 2.0]])
    assert max_logit_pnorm(logits, p=1.0).tolist() == pytest.approx([-3 / 6])


def test_what_is_said_of_bad_scores():
    """Whole sentences: what is wrong, and what to do."""
    with pytest.raises(InputError) as said:
        free_energy(torch.ones(3, 1))
    assert str(said.value).endswith(
        "the shape is (3, 1). Energy means nothing for a regression output; use the router's score there."
    )
    with pytest.raises(InputError) as said:
        route(torch.tensor([0.0, math.nan]), 0.0)
    assert str(said.value) == (
        "1 of 2 values of 'score' are NaN or infinite, first in row 1. The model's output cannot be scored: look for a "
        "diverged training run or an overflow in half precision, and evaluate with --trainer.precision 32-true."
    )


def test_all_scores_take_the_temperature():
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    for temperature in (0.5, 3.0):
        for name, values in all_scores(logits, temperature).items():
            assert torch.equal(values, SCORES[name](logits, temperature)), name
