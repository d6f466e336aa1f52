"""Tests that may be looked at at any time, against loops, and plans against brute force."""

import math

import pytest
import torch

from elang import InputError
from elang.cli.verbs import main
from elang.method.bounds import binomial_cdf, p_value, quantiles_of
from elang.method.planning import Losses, chance, examples_needed, least_promise
from elang.method.watching import (
    ODDS,
    _start_weights,
    drift_evidence,
    exceeded,
    highest_mean,
    lowest_mean,
    restarting,
    share_bounds,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("stride", [1, 7])
def test_bets_that_begin_at_many_times_are_their_sum(generator, stride):
    factors = torch.rand(60, generator=generator, dtype=torch.float64) + 0.5
    weight, left = _start_weights(60, stride)
    assert float(weight.sum() + left[-1]) == pytest.approx(1)
    for t, found in enumerate(restarting(factors.log(), stride).exp().tolist()):
        begun = sum(float(weight[j]) * float(factors[j : t + 1].prod()) for j in range(t + 1))
        assert found == pytest.approx(begun + float(left[t]))


def test_the_expected_winnings_are_at_most_one():
    # Every stream of ten right and wrong answers, by its probability.
    streams = torch.tensor([[i >> j & 1 for j in range(10)] for i in range(1024)]).double()
    share = 0.3
    odds = (share ** streams.sum(1)) * ((1 - share) ** (10 - streams.sum(1)))
    won = torch.stack([exceeded(stream, share, 0.05).log_won.exp() for stream in streams])
    assert (odds @ won).tolist() == pytest.approx([1.0] * 10)
    # Below the bound they fall.
    low = (0.2 ** streams.sum(1)) * (0.8 ** (10 - streams.sum(1)))
    assert all(value <= 1 for value in (low @ won).tolist())


@pytest.mark.parametrize(("minimum", "maximum"), [(0.0, 1.0), (-1.0, 1.0)])
def test_bounds_are_where_the_evidence_says(generator, minimum, maximum):
    values = torch.rand(400, generator=generator).double().round(decimals=1) * (maximum - minimum) + minimum
    at = torch.tensor([0, 9, 399])
    low, high = (bound(values, at, 0.95, minimum, maximum) for bound in (lowest_mean, highest_mean))
    for place, one in zip(at.tolist(), low.tolist(), strict=True):
        share = (values[: place + 1] - minimum) / (maximum - minimum)
        mean = (one - minimum) / (maximum - minimum)
        won = torch.stack([((1 + odds * share) / (1 + odds * mean)).prod() for odds in ODDS]).mean()
        assert mean == pytest.approx(0, abs=1e-6) or float(won) == pytest.approx(20, rel=1e-3)
    assert (low <= high).all()
    assert float(low[-1]) < float(values.mean()) < float(high[-1])
    events = (torch.rand(400, generator=generator) < 0.1).double()
    ends = [float(bound(events, torch.tensor([399]), 0.975)) for bound in (lowest_mean, highest_mean)]
    assert list(share_bounds(int(events.sum()), 400, 0.95)) == pytest.approx(ends, abs=1e-6)
    assert share_bounds(0, 0, 0.95) == (0.0, 1.0)


def test_a_break_is_found_soon_and_dated(generator):
    stream = (torch.rand(6000, generator=generator) < 0.02).double()
    assert exceeded(stream, 0.03, 0.05).place is None
    stream[3000:] = (torch.rand(3000, generator=generator) < 0.2).double()
    alarm = exceeded(stream, 0.03, 0.05)
    assert 3000 < alarm.place < 3200
    assert abs(alarm.since - 3000) < 60
    assert alarm.p_value < 1e-6
    assert exceeded(stream[:0], 0.03, 0.05).p_value == 1


@pytest.mark.parametrize("least", [-9.0, 0.0])
def test_scores_that_drift(generator, least):
    known, new = torch.randn(2000, generator=generator), torch.randn(4000, generator=generator)
    # From the second limit on, half of the scores are equal.
    known, new = known.clamp_min(least), new.clamp_min(least)
    assert float(drift_evidence(new, quantiles_of(known), 2000).max()) < math.log(20)
    new[2000:] += 0.5
    found = (drift_evidence(new, quantiles_of(known), 2000) >= math.log(20)).nonzero()
    assert 2000 < int(found[0]) < 3000
    # All equal: there is no edge to bet on.
    assert float(drift_evidence(torch.zeros(100), [0.0] * 201, 500).max()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("allowed", "expected", "exact"), [(0.1, 0.0, True), (0.2, 0.08, True), (0.2, 0.05, False)])
def test_plans_are_those_of_brute_force(allowed, expected, exact):
    losses, most, passing = Losses(expected, exact=exact), -1, [0.0]
    needed = examples_needed(allowed, losses, 0.95, 0.8)
    for n in range(1, needed + 1):
        most += p_value(most + 1, n, allowed, exact) <= 0.05
        passing.append(0.0 if most < 0 else binomial_cdf(most, n, expected))
    assert max(passing[:-1]) < 0.8 <= passing[-1] == pytest.approx(chance(needed, allowed, losses))
    least = least_promise(needed, losses, 0.95, 0.8)
    assert least <= allowed + 1e-6
    assert chance(needed, least - 1e-4, losses) < 0.8


def test_a_drop_takes_more_examples_and_what_cannot_be_planned():
    drop = Losses(0.03, better=0.02)
    needed = examples_needed(0.05, drop)
    assert chance(needed, 0.05, drop) >= 0.9
    assert needed > examples_needed(0.05, Losses(0.01))
    assert examples_needed(0.05, Losses(0.05)) is None
    assert least_promise(1, Losses(0.5)) is None
    with pytest.raises(InputError, match="shares from 0 to 1"):
        Losses(0.9, better=0.2)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--max_regret", "0.02", "--expected", "0.01", "--examples", "1000"], ["149", "1,271", "79.3%"]),
        (["--examples", "299", "--expected", "0"], ["0.00997"]),
        (["--quality", "0.85", "--expected", "0.88"], ["1,120", "others to choose"]),
        (["--max_regret", "0.02", "--expected", "0.02"], ["never"]),
    ],
)
def test_plan_from_the_command_line(capsys, args, says):
    assert main(["plan", *args]) == 0
    text = capsys.readouterr().out
    assert all(one in text for one in says), text


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "Give one of --max_regret"),
        (["--max_regret", "1"], "--max_regret must be above 0 and below 1"),
        (["--max_regret", "0.1", "--expected", "2"], "--expected must be a share"),
        (["--examples", "0"], "--examples must be from 1"),
    ],
)
def test_plans_that_cannot_be(fails, args, says):
    fails(["plan", *args], says)
