"""Resamples, and areas by gain against the curves that they stand for."""

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from elang.method import bootstrap as bootstrapping
from elang.method.bootstrap import (
    compare_areas,
    curve_interval,
    difference_errors,
    gain_area,
    lost_to_super,
    mcnemar,
    mean_intervals,
    resamples,
)
from elang.method.curve.exact import operating_curve
from elang.method.curve.points import Groups
from elang.method.curve.reading import random_curve, relative_area
from elang.method.deferral import oracle_score
from elang.method.quality.labels import accuracy, exact_match
from elang.method.quality.registry import QUALITIES


def answers(n=200, seed=0, ties=False):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (n,), generator=generator)
    swift = torch.where(torch.rand(n, generator=generator) < 0.6, label, (label + 1) % 3)
    super_ = torch.where(torch.rand(n, generator=generator) < 0.85, label, (label + 2) % 3)
    score = torch.rand(n, generator=generator) + 0.3 * (swift != label)
    return (score * 5).round() if ties else score, swift, super_, label


def curve_area(score, swift, super_, label):
    quality = accuracy(3)
    a, b = (quality.statistics(p, label) for p in (swift, super_))
    gain = (super_ == label).double() - (swift == label).double()
    curves = [operating_curve(s, a, b, quality.value) for s in (score, oracle_score(gain))]
    return relative_area(curves[0], random_curve(a, b, quality.value), curves[1])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_area_is_the_curves(seed, ties):
    score, swift, super_, label = answers(seed=seed, ties=ties)
    gain = (super_ == label).double() - (swift == label).double()
    assert float(gain_area(score, gain)) == pytest.approx(curve_area(score, swift, super_, label), abs=1e-6)


def test_weights_are_repeated_examples():
    score, swift, super_, label = answers(60)
    gain = (super_ == label).double() - (swift == label).double()
    weights = resamples(60, times=150, seed=3)
    found = gain_area(score, gain, weights)
    assert found.shape == (150,)
    for row in (0, 99, 100, 149):
        drawn = torch.repeat_interleave(torch.arange(60), weights[row].long())
        assert float(found[row]) == pytest.approx(float(gain_area(score[drawn], gain[drawn])), abs=1e-12)


def test_bounds_and_nothing_to_gain():
    _, swift, super_, label = answers()
    gain = (super_ == label).double() - (swift == label).double()
    assert float(gain_area(gain, gain)) == pytest.approx(1)
    assert float(gain_area(torch.zeros(200), gain)) == pytest.approx(0, abs=1e-12)
    assert float(gain_area(-gain, gain)) == pytest.approx(-1)
    assert gain_area(torch.rand(5), torch.zeros(5)).isnan()
    assert gain_area(torch.rand(5), torch.ones(5)).isnan()


def test_resamples():
    found = resamples(50, times=250, seed=1)
    assert found.shape == (250, 50)
    assert torch.equal(found.sum(1), torch.full((250,), 50.0, dtype=torch.float64))
    assert torch.equal(found, resamples(50, times=250, seed=1))
    assert not torch.equal(found, resamples(50, times=250, seed=2))
    assert float(found.mean(0).std()) < 0.12
    # Poisson-like: a third of all examples is not drawn.
    assert float((found == 0).double().mean()) == pytest.approx(0.368, abs=0.02)


def test_interval_covers():
    """The spread over resamples is the spread over samples."""
    estimates = []
    for seed in range(60):
        score, swift, super_, label = answers(300, seed)
        gain = (super_ == label).double() - (swift == label).double()
        estimates.append(float(gain_area(score, gain)))
    score, swift, super_, label = answers(300, 99)
    gain = (super_ == label).double() - (swift == label).double()
    spread = float(gain_area(score, gain, resamples(300)).std())
    assert spread == pytest.approx(float(torch.tensor(estimates).std()), rel=0.35)


def gains(n=400, seed=5):
    score, swift, super_, label = answers(n, seed)
    return score, (super_ == label).double() - (swift == label).double()


def test_mean_intervals_are_those_of_scipy():
    _, gain = gains()
    low, high = mean_intervals(torch.stack([gain, -gain], 1), 4000)
    found = bootstrap((gain.numpy(),), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1))
    assert [float(low[0]), float(high[0])] == pytest.approx(list(found.confidence_interval), abs=0.01)
    # The same draws for both columns.
    assert torch.allclose(low[0], -high[1])
    assert torch.allclose(high[0], -low[1])


def test_intervals_of_very_many_examples():
    values = torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(150_000, 1)
    low, high = mean_intervals(values)
    half = 1.96 * 0.5 / 300_000**0.5
    assert [float(low), float(high)] == pytest.approx([0.5 - half, 0.5 + half], abs=1e-9)


def test_lost_to_the_super():
    score, gain = gains()
    kept = score <= score.median()
    everything, nothing = lost_to_super(torch.stack([gain * kept, gain * 0], 1))
    assert everything["difference"] == pytest.approx(-float((gain * kept).mean()))
    assert everything["low"] < everything["difference"] < everything["high"]
    assert everything["worse"] == int((gain * kept > 0).sum())
    assert everything["better"] == int((gain * kept < 0).sum())
    assert everything["p"] == mcnemar(everything["worse"], everything["better"])
    assert nothing == {"difference": 0, "low": 0, "high": 0}
    # What is worth something between 0 and 1 has no such test.
    assert "p" not in lost_to_super(0.5 * gain[:, None])[0]


def test_areas_against_one_another():
    score, gain = gains()
    noise = torch.rand(len(score), generator=torch.Generator().manual_seed(0))
    found = compare_areas({"a": score, "same": 2 * score + 1, "noise": noise}, gain, "a")
    assert found["same"]["difference"] == found["same"]["difference_low"] == found["same"]["difference_high"] == 0
    assert found["same"]["low"] == found["a"]["low"] < float(gain_area(score, gain)) < found["a"]["high"]
    assert found["noise"]["difference_high"] < 0
    assert "difference" not in found["a"]
    assert found["noise"]["difference"] == pytest.approx(float(gain_area(noise, gain) - gain_area(score, gain)))
    assert compare_areas({"a": score}, gain * 0, "a") == {}


@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "matthews", "pearson"])
def test_errors_of_the_difference_are_those_of_resampled_sets(name):
    """Each resample's metric at each threshold, computed from its examples one by one."""
    score, swift, super_, label = answers(60, ties=True)
    quality, score = QUALITIES[name](3), score.double()
    a, b = (quality.statistics(p, label) for p in (swift, super_))
    deferred, errors = difference_errors({"s": score}, a, b, quality.value, times=150)["s"]
    assert (int(deferred[0]), int(deferred[-1]), float(errors[-1])) == (0, 60, 0.0)
    rows = [torch.arange(60).repeat_interleave(counts.long()) for counts in resamples(60, 150)]
    for count, error in zip(deferred.tolist(), errors.tolist(), strict=True):
        hard = score.argsort(descending=True, stable=True)[:count]
        pair = swift.clone()
        pair[hard] = super_[hard]
        differences = [quality(pair[some], label[some]) - quality(super_[some], label[some]) for some in rows]
        assert error == pytest.approx(float(np.std(differences, ddof=1)), abs=1e-9)


def test_whole_groups_are_resampled():
    score, swift, super_, label = answers(60)
    swift, super_, label = (x.clamp_max(1) for x in (swift, super_, label))
    group = torch.arange(60) // 4
    quality = exact_match(2)
    a, b = (quality.statistics(p, label) for p in (swift, super_))
    groups = Groups(group, quality.by_group)
    deferred, errors = difference_errors({"s": score}, a, b, quality.value, groups, times=150)["s"]
    rows = [torch.arange(15).repeat_interleave(counts.long()) for counts in resamples(15, 150)]
    for count, error in zip(deferred.tolist(), errors.tolist(), strict=True):
        hard = score.argsort(descending=True, stable=True)[:count]
        pair = swift.clone()
        pair[hard] = super_[hard]
        right = [(p == label).view(15, 4).all(1).double() for p in (pair, super_)]
        differences = [float((right[0] - right[1])[some].mean()) for some in rows]
        assert error == pytest.approx(float(np.std(differences, ddof=1)), abs=1e-9)


def test_errors_of_a_mean_are_the_textbooks_and_none_of_very_many_examples():
    score, swift, super_, label = answers(2000)
    quality = accuracy(3)
    a, b = (quality.statistics(p, label) for p in (swift, super_))
    deferred, errors = difference_errors({"s": score, "t": -score}, a, b, quality.value)["s"]
    assert len(deferred) == len(errors) == 101
    kept = score.argsort(descending=True)[int(deferred[30]) :]
    lost = torch.zeros(2000).double().index_add_(0, kept, (a - b)[kept, 0].double())
    assert float(errors[30]) == pytest.approx(float(lost.std() / 2000**0.5), rel=0.12)
    many = torch.zeros(200_001, 2)
    assert difference_errors({"s": torch.zeros(200_001)}, many, many, quality.value) == {}


@pytest.mark.parametrize(("draws", "times"), [(100_000, 300), (40_000, 200), (2_000, 100)])
def test_the_band_of_a_curve_takes_little_memory(monkeypatch, draws, times):
    """A resample takes 8 bytes an example: 1,000 of a million examples would be 8 GB."""
    drawn = []
    monkeypatch.setattr(bootstrapping, "_MAX_DRAWS", draws)
    monkeypatch.setattr(bootstrapping, "resamples", lambda n, times: drawn.append(times) or resamples(n, times))
    values = torch.arange(200.0)[:, None]
    curve_interval(values[:, 0], values, values + 1, lambda sums: sums[..., 0].double(), points=5, times=300)
    assert drawn == [times]
