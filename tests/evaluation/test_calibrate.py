"""Certificates and other operating points: their mathematics, their promise in simulation, their file, their checks."""

import json
import math
import shutil
from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import QUIET, write_data
from safetensors.torch import load_file, save_file
from scipy import special, stats

from elang import InputError, JointPredictor
from elang.cli.calibrate import _check_options as check_options
from elang.cli.verbs import main
from elang.data.examples import content_key, in_slice
from elang.evaluation.promises import _promise, _too_few, by_budget
from elang.evaluation.slices import (
    Slice,
    describe_slice,
    independent_rows,
    one_slice,
    read_slice,
    share_of_slice,
    slice_sha256,
)
from elang.evaluation.statements import attempt, check_statements, next_level
from elang.evaluation.summary_file import read_summary
from elang.method.bounds import (
    binomial_cdf,
    drift,
    effective_number,
    least_examples,
    least_mean,
    log_evidence,
    p_value,
    quantiles_of,
    upper_bound,
)
from elang.method.certificate import certify_drop, certify_regret, regret_at
from elang.method.curve.points import Costs
from elang.method.deferral import route
from elang.notices import forget_notices, notices
from elang.records.manifest import Manifest


@pytest.mark.parametrize("n", [1, 7, 299, 5_000, 200_000])
@pytest.mark.parametrize("p", [0.001, 0.02, 0.5, 0.97])
def test_the_binomial_is_scipys(n, p):
    for k in sorted({0, 1, n // 100, int(n * p), n // 2, n - 1, n}):
        assert binomial_cdf(k, n, p) == pytest.approx(float(stats.binom.cdf(k, n, p)), rel=1e-7, abs=1e-12)
    assert binomial_cdf(-1, n, p) == 0


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 625), (40, 872), (10, 10), (1, 1)])
def test_upper_bounds_are_clopper_and_pearsons(k, n):
    expected = stats.binomtest(k, n).proportion_ci(0.9, method="exact").high
    assert upper_bound(k, n, 0.95) == pytest.approx(expected, abs=1e-9)


def test_how_many_examples_are_needed():
    for allowed, confidence in ((0.01, 0.95), (0.05, 0.9), (0.005, 0.99)):
        n = least_examples(allowed, confidence)
        assert n == math.ceil(math.log(1 - confidence) / math.log(1 - allowed))
        score, none = torch.arange(float(n)), torch.zeros(n)
        assert certify_regret(score, none, allowed, confidence) is not None
        assert certify_regret(score[1:], none[1:], allowed, confidence) is None


def by_a_loop(score, gain, allowed, confidence):
    """Fixed-sequence testing as it is written down: from all deferred, one threshold after the other."""
    chosen = None
    for threshold in [-math.inf, *sorted(set(score.tolist()))]:
        regretted = float((gain.clamp_min(0) * (score <= threshold)).sum())
        if stats.binom.cdf(round(regretted), len(score), allowed) > 1 - confidence:
            break
        chosen = threshold
    return math.inf if chosen == float(score.max()) else chosen


@pytest.mark.parametrize("seed", range(8))
def test_a_certificate_is_the_last_of_the_sequence(seed):
    generator = torch.Generator().manual_seed(seed)
    n = 400 + 50 * seed
    # Ties, in half of the cases.
    score = torch.randn(n, generator=generator)
    score = (8 * score).round() if seed % 2 else score
    gain = torch.randint(-1, 2, (n,), generator=generator).double() * (torch.rand(n, generator=generator) < 0.3)
    for allowed in (0.005, 0.01, 0.05, 0.2, 0.9):
        for confidence in (0.9, 0.95):
            found = certify_regret(score, gain, allowed, confidence)
            expected = by_a_loop(score, gain, allowed, confidence)
            assert (found.threshold if found else None) == expected
            if found is not None:
                assert found.p_value <= 1 - confidence
                assert found.regretted == float(regret_at(score, gain, found.threshold).sum())
                assert found.deferred_share == pytest.approx(float(route(score, found.threshold).double().mean()))


def test_worths_between_0_and_1_take_the_bound_for_them():
    # Not sharper than the exact test of the same sum, and no worse than Hoeffding's.
    for total, n, allowed in ((3.0, 500, 0.02), (0.0, 300, 0.01), (12.0, 1000, 0.05)):
        bound = p_value(total, n, allowed, exact=False)
        assert p_value(total, n, allowed) - 1e-12 <= bound <= 1
        assert bound <= math.exp(-2 * n * (allowed - total / n) ** 2) + 1e-12
    assert p_value(30.0, 500, 0.02, exact=False) == 1.0
    score, gain = torch.arange(2000.0), torch.full((2000,), 0.25)
    found = certify_regret(score, gain, 0.05)
    assert 0.5 < found.deferred_share < 1
    with pytest.raises(InputError, match=r"not in \[-1, 1\]"):
        certify_regret(score, 4 * gain + 1, 0.05)
    for allowed, confidence in ((0.0, 0.9), (1.0, 0.9), (0.1, 1.0), (math.nan, 0.9)):
        with pytest.raises(InputError, match="between 0 and 1"):
            certify_regret(score, gain, allowed, confidence)


@pytest.mark.parametrize("confidence", [0.9, 0.5])
def test_the_promise_is_kept_as_often_as_it_says(confidence):
    """On a population that is known, the share of broken certificates is the stated one, and not much less."""
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(100_000, generator=generator)
    gain = (torch.rand(100_000, generator=generator) < torch.sigmoid(score - 2.5)).double()
    broken, times = 0, 400
    for _ in range(times):
        chosen = torch.randint(100_000, (1500,), generator=generator)
        found = certify_regret(score[chosen], gain[chosen], 0.02, confidence)
        broken += float(regret_at(score, gain, found.threshold).mean()) > 0.02
    assert broken / times <= (1 - confidence) + 3 * math.sqrt(confidence * (1 - confidence) / times)
    # A test that is never wrong would be too careful: the discrete binomial loses a little, not more.
    assert broken / times >= (1 - confidence) / 3


@pytest.mark.parametrize(
    ("regretted", "n", "allowed", "smaller"),
    [
        (10.0, 400, 0.05, "bentkus"),
        (0.0, 50, 0.1, "hoeffding"),
        (7.0, 1000, 0.02, "bentkus"),
        (0.9, 400, 0.05, "hoeffding"),
    ],
)
def test_the_bound_for_worths_between_0_and_1(regretted, n, allowed, smaller):
    """The smaller of Hoeffding's, by relative entropy, and Bentkus'; 1 where as much is regretted as may be."""
    mean = regretted / n
    divergence = special.rel_entr(mean, allowed) + special.rel_entr(1 - mean, 1 - allowed)
    bounds = {"hoeffding": math.exp(-n * divergence)}
    bounds["bentkus"] = math.e * stats.binom.cdf(math.ceil(regretted), n, allowed)
    assert min(bounds, key=bounds.get) == smaller
    assert p_value(regretted, n, allowed, exact=False) == pytest.approx(bounds[smaller], rel=1e-9)
    assert p_value(allowed * n, n, allowed, exact=False) == 1.0
    assert p_value(0.999 * allowed * n, n, allowed, exact=False) <= 1.0
    assert p_value(4, n, allowed) == pytest.approx(stats.binom.cdf(4, n, allowed))


def test_quantiles_reach_from_end_to_end():
    found = quantiles_of(torch.arange(1000.0, -1.0, -1.0))
    assert found == [5.0 * i for i in range(201)]
    assert quantiles_of(torch.arange(11.0), 2) == [0.0, 5.0, 10.0]


@pytest.mark.parametrize("moved", [0.0, 30.0, 60.0, 80.0, 150.0])
def test_drift_is_kolmogorovs_and_smirnovs(moved):
    known = torch.arange(1001.0)
    distance, p = drift(known + moved, quantiles_of(known), 1001)
    # The quantiles lie a 200th apart.
    assert distance == pytest.approx(max(0.0, moved / 1001 - 1 / 200), abs=1.1e-3)
    x = distance * math.sqrt(1001 / 2)
    assert p == pytest.approx(1.0 if x < 0.2 else stats.kstwobign.sf(x), abs=1e-9)


def test_drift_is_told():
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(800, generator=generator)
    quantiles = quantiles_of(known)
    false_alarms = sum(drift(torch.randn(1000, generator=generator), quantiles, 800)[1] < 0.01 for _ in range(200))
    assert false_alarms <= 6
    for moved in (torch.randn(1000, generator=generator) + 0.4, 2 * torch.randn(1000, generator=generator)):
        distance, p = drift(moved, quantiles, 800)
        expected = stats.ks_2samp(moved.numpy(), known.numpy())
        assert expected.statistic - 0.012 < distance <= expected.statistic + 1e-6
        assert p < 1e-4
    # Of a score with few values, the same one is no drift.
    ties = torch.randint(0, 4, (900,), generator=generator).float()
    assert drift(ties[450:], quantiles_of(ties[:450]), 450)[1] > 0.05


def costed(score, gain, worth="right answers", **more):
    """A slice whose Swift costs 1, 2 where it is deferred before the decoder, and whose Super costs 10."""
    n = len(score)
    costs = Costs(*(torch.full((n,), value).double() for value in (1.0, 10.0, 2.0)))
    return Slice(torch.arange(n), torch.tensor(score), torch.tensor(gain).double(), costs, worth, **more)


def test_what_to_do_where_examples_are_few():
    more = "allow more (a larger --max_regret, a smaller --confidence)"
    found = costed([0.1] * 100, [0.0] * 100, splits={"routing": 100, "validation": 5000, "test": 300, "dev": 299})
    others = [
        "give --split test, which has 300 (evaluate on others then)",
        "give --split validation, which has 5,000 (evaluate on others then)",
    ]
    # By hand: 0.1 * (300 + 2 sqrt(300) + 2) / 100 = 0.3367, rounded up to 0.34.
    wider = (
        "hold out more by --data.routing_fraction 0.34 or above (it was 0.1), and make the Super, its answers and "
        "the Swift again"
    )
    said = _too_few(found, 300, "routing", fractions=[0.1], kind="max_regret")
    assert sorted(said.split(", or ")) == sorted([*others, wider, more])
    assert said.endswith(f", or {more}")
    trained = "run `elang validate` with --data.routing_fraction 0.34, which the Swift was trained with"
    assert trained in _too_few(found, 300, "routing", fractions=[0.1, 0.34], kind="max_regret")
    assert "0.34 or above" in _too_few(found, 300, "routing", fractions=[0.1, 0.33], kind="max_regret")
    # 0.5 and no more: 0.1 * (x + 2 sqrt(x) + 2) / 100 is 0.5 at x = 455.3.
    assert "0.5 or above" in _too_few(found, 455, "routing", fractions=[0.1], kind="max_regret")
    assert "hold out" not in _too_few(found, 456, "routing", fractions=[0.1], kind="max_regret")
    assert "hold out" not in _too_few(found, 300, "routing", fractions=[0.0], kind="max_regret")
    assert _too_few(found, 300, "dev", fractions=[0.1], kind="max_regret").split(", or ") == [
        *reversed(others),
        "evaluate on more examples of 'dev'",
        more,
    ]
    assert (
        _too_few(found, 301, "validation", fractions=[0.1], kind="max_regret")
        == f"evaluate on more examples of 'validation', or {more}"
    )
    assert "--split validation" not in _too_few(found, 300, "validation", fractions=[0.1], kind="max_regret")


def test_a_drop_by_betting_is_what_is_written_down():
    """The mean over the bets of the product of 1 - bet (x - allowed), in turn until the first that is too small."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randint(-1, 2, (400,), generator=generator).double()
    bets = [0.99 * 0.5**i / (1 - 0.1) for i in range(11)]
    by_hand = sum(math.prod(1 - bet * (float(x) - 0.1) for x in values[:60]) for bet in bets) / 11
    assert math.exp(log_evidence(values[:60], 0.1, 1.0)) == pytest.approx(by_hand)
    assert least_mean(values, -1.0) < float(values.mean()) < -least_mean(-values, -1.0)
    # More is kept than the regret allows where the Swift is as often the only one that is right.
    score, gain = torch.rand(4000, generator=generator), torch.randint(-1, 2, (4000,), generator=generator).double()
    assert certify_drop(score, gain, 0.1).threshold > certify_regret(score, gain, 0.1).threshold
    # A fifth of the scores is all that the tested thresholds are taken from.
    found = certify_drop(score, gain.clamp_min(0), 0.1)
    kept = gain.clamp_min(0) * (score <= found.threshold)
    assert found.regretted == float(kept.sum()) < 0.1 * 4000
    assert found.deferred_share == pytest.approx(float(route(score, found.threshold).double().mean()))
    assert found.p_value <= 0.05


@pytest.mark.parametrize("allowed", [0.001, 0.02, 0.3])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_a_drop_takes_examples_even_where_nothing_is_lost(allowed, confidence):
    """Of a bootstrap one was enough."""
    n = least_examples(allowed, (1 + confidence) / 2)
    score, none = torch.arange(float(n)), torch.zeros(n)
    assert certify_drop(score, none, allowed, confidence) is not None
    assert certify_drop(score[1:], none[1:], allowed, confidence) is None


KINDS = {"regret": certify_regret, "drop": certify_drop}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("data", ["plain", "ties", "copies", "groups", "small", "worth"])
def test_a_promise_is_kept_on_any_kind_of_data(kind, data):
    generator = torch.Generator().manual_seed(1)
    error, times, broken = 0.2, 150, 0
    n, allowed = {"small": (25, 0.15)}.get(data, (300, 0.08))
    size = 6 if data == "groups" else 1
    population = 20_000
    score = torch.randn(population, size, generator=generator)
    score = (2 * score).round() if data == "ties" else score
    wrong = torch.sigmoid(2 * score - 2 + 2 * torch.randn(population, 1, generator=generator) * (size > 1))
    gain = (torch.rand(population, size, generator=generator) < wrong).double()
    if data == "worth":
        gain = wrong.double() * torch.rand(population, size, generator=generator)
    if kind == "drop":
        gain = gain - (torch.rand(population, size, generator=generator) < 0.1).double() * (gain == 0)
    for _ in range(times):
        drawn = torch.randint(population, (n,), generator=generator)
        rows = drawn
        if data == "copies":
            rows = drawn.repeat_interleave(torch.randint(1, 9, (n,), generator=generator))
            rows = rows[independent_rows(rows, torch.arange(len(rows)))]
        unit = torch.arange(n).repeat_interleave(size) if size > 1 else None
        exact = data != "worth"
        found = KINDS[kind](score[rows].flatten(), gain[rows].flatten(), allowed, 1 - error, exact, unit)
        if found is not None:
            kept = gain * (score <= found.threshold)
            broken += float((kept.clamp_min(0) if kind == "regret" else kept).mean()) > allowed
    assert broken / times <= error + 3 * math.sqrt(error * (1 - error) / times)


def test_groups_count_once():
    """A group that is answered wrong as a whole is one example that is, and its size does not matter."""
    generator = torch.Generator().manual_seed(0)
    score, gain = torch.rand(200, generator=generator), (torch.rand(200, generator=generator) < 0.1).double()
    sizes = torch.randint(1, 9, (200,), generator=generator)
    rows = torch.arange(200).repeat_interleave(sizes)
    grouped = certify_regret(score[rows], gain[rows], 0.1, 0.9, True, rows)
    assert grouped.num_examples == 200
    assert grouped.threshold == certify_regret(score, gain, 0.1, 0.9, False).threshold
    assert certify_drop(score[rows], gain[rows], 0.1, 0.9, True, rows).num_examples == 200
    assert effective_number(rows, len(rows)) < 200 <= len(rows)
    assert effective_number(None, 7) == 7


def test_copies_are_taken_once_whatever_their_order():
    key = torch.tensor([5, 7, 5, 5, 9, 7])
    rows = independent_rows(key, torch.arange(6))
    assert sorted(key[rows].tolist()) == [5, 7, 9]
    backwards = independent_rows(key.flip(0), torch.arange(6).flip(0))
    assert sorted((5 - backwards).tolist()) == rows.tolist()
    assert len(independent_rows(key, torch.arange(6), unit=key)) == 6
    # Any of a text's rows may be taken: the first is not in half of many pairs.
    pairs = torch.arange(1000).repeat_interleave(2)
    assert 400 < int((independent_rows(pairs, torch.arange(2000)) % 2).sum()) < 600


def test_a_slice_is_known_again():
    generator = torch.Generator().manual_seed(0)
    key = torch.randint(-(2**62), 2**62, (6000,), generator=generator)
    a, b = describe_slice(key[:3000]), describe_slice(key[3000:])
    assert one_slice(a, describe_slice(key[:3000].flip(0)))
    assert all(one_slice(a, describe_slice(part)) for part in (key[:2900], key[:300], key))
    assert not one_slice(a, b)
    assert not one_slice(describe_slice(key[:40]), describe_slice(key[40:90]))
    assert share_of_slice(key[:3000], a) == 1
    assert share_of_slice(key[1500:4500], a) == pytest.approx(0.5, abs=0.1)
    assert share_of_slice(key[3000:], a) == share_of_slice(key, {}) == 0
    # Files of before have the hash alone.
    assert share_of_slice(key[:9], {"slice_sha256": slice_sha256(key[:9])}) == 1


def test_each_attempt_on_a_slice_costs(tmp_path, fails):
    ledger, key = tmp_path / "folder" / "slices.json", torch.arange(500)
    enough = []

    def ask(what, key=key, error=0.05):
        return attempt(ledger, describe_slice(key), {"what": what}, error=error, check=lambda *one: enough.append(one))

    assert ask("a") == (0.05, 1, 0.05)
    assert ask("a") == (0.05, 1, 0.05)
    # The slice has grown, and lost some.
    assert ask("b", torch.arange(100, 700)) == (0.025, 2, pytest.approx(0.075))
    assert ask("a")[1:] == (2, pytest.approx(0.075))
    assert ask("c", error=0.2)[0] == pytest.approx(0.125)
    # Other data are another slice.
    assert ask("a", torch.arange(9000, 9500)) == (0.05, 1, 0.05)

    def too_few(level, number):
        raise InputError("too few")

    before = ledger.read_bytes()
    with pytest.raises(InputError, match="too few"):
        attempt(ledger, describe_slice(key), {"what": "new"}, error=0.05, check=too_few)
    assert ledger.read_bytes() == before
    with pytest.raises(InputError, match="No confidence is left"):
        ask("d", error=0.99) and ask("e", error=0.99)
    ledger.write_text(json.dumps({"format": 1, "attempts": [{"level": 2}]}))
    with pytest.raises(InputError, match=r"slices\.json' is damaged"):
        ask("a")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--ledger"):
        attempt(tmp_path / "file" / "x.json", describe_slice(key), {"what": 1}, error=0.05, check=too_few)
    # However many come, twice the first is never spent.
    levels = [next_level(k, 0.05 * (2 - 0.5 ** (k - 1)) if k else 0.0, 0.05) for k in range(50)]
    assert sum(levels) < 0.1


def test_a_promise_in_words():
    score = [i / 10 for i in range(1, 101)]
    entry = _promise(costed(score, [0.0] * 90 + [1.0] * 10), "max_regret", 0.1, level=0.2, together=1)
    assert entry["claim"] == (
        "For at most 10% of new inputs like these the Swift's answer is used and wrong although the Super's is right"
    )
    assert entry["evidence"].startswith(
        "so it was for 6 of the 100 distinct texts that chose it (p = 0.12). In calibration, 4.0% of the inputs"
    )
    assert (entry["max_regret"], entry["level"], entry["num_examples"]) == (0.1, 0.2, 100)
    entry = _promise(
        costed(score, [0.0] * 90 + [0.5] * 10, "chrf, from 0 to 1"), "max_drop", 0.1, level=0.2, together=3
    )
    assert "the pair's mean worth (chrf, from 0 to 1) is at most 0.1 below the Super's" in entry["claim"]
    assert "3 promises were tested together." in entry["evidence"]
    found = costed(score, [0.0] * 100, unit=torch.arange(100) // 2)
    entry = _promise(found, "max_drop", 0.1, level=0.2, together=1)
    assert entry["claim"].endswith(
        "(share of right answers) is at most 0.1 below the Super's, each group counting once"
    )
    assert "on the 50 groups of texts" in entry["evidence"]
    assert entry["threshold"] == math.inf


@pytest.mark.parametrize(
    ("kind", "targets", "confidence", "name", "word"),
    [
        ("max_regret", [0.1], 0.0, "x", "--confidence"),
        ("max_regret", [0.1], 1.0, "x", "--confidence"),
        ("max_regret", [0.1], math.nan, "x", "--confidence"),
        ("max_drop", [0.0], 0.9, "x", "--max_drop"),
        ("max_drop", [0.1, 1.0], 0.9, "x", "--max_drop"),
        ("max_regret", [math.nan], 0.9, "x", "--max_regret"),
        ("max_regret", [1e-12], 0.9, "x", "too many"),
        ("max_regret", [], 0.9, "x", "amount"),
        *(("flops", [0.1], 0.9, name, "--name") for name in ("parity", "defer 30%", "0.5", "-inf", " ", "")),
    ],
)
def test_options_that_promise_nothing(kind, targets, confidence, name, word):
    with pytest.raises(InputError, match=word):
        check_options(kind, targets, confidence, name)


@pytest.mark.parametrize("confidence", [1e-12, 0.5, 1 - 1e-12])
def test_the_edges_of_confidence(confidence):
    for n in (1, 3, 40):
        score, gain = torch.zeros(n), torch.zeros(n)
        for certify in KINDS.values():
            found = certify(score, gain, 0.5, confidence)
            assert found is None or found.threshold in (math.inf, -math.inf)
    for certify in KINDS.values():
        with pytest.raises(InputError, match=r"finite|NaN"):
            certify(torch.tensor([math.nan] * 99), torch.zeros(99), 0.5, 0.5)


def test_a_name_is_of_the_score_that_it_was_calibrated_for():
    plain = {"parity": {"threshold": 0.5}}
    calibrated = {"certified": {"threshold": 0.2, "statement": "so", "temperature": 1.0, "max_length": 64}}
    manifest = Manifest(["a", "b"], score="entropy", thresholds={"entropy": plain, "margin": plain | calibrated})
    assert manifest.resolve("parity") == ("entropy", 0.5)
    manifest.max_length = 64
    assert manifest.resolve("certified") == manifest.resolve("certified", "margin") == ("margin", 0.2)
    with pytest.raises(InputError, match="calibrated for 'margin', not for 'entropy'"):
        manifest.resolve("certified", "entropy")
    manifest.thresholds["entropy"] = plain | calibrated
    with pytest.raises(InputError, match="2 scores, 'entropy', 'margin'"):
        manifest.resolve("certified")
    assert manifest.resolve("certified", "entropy") == ("entropy", 0.2)
    manifest.temperature = 2.0
    with pytest.raises(InputError, match=r"temperature 1\.0"):
        manifest.resolve("certified", "entropy")
    manifest.temperature, manifest.max_length = 1.0, 128
    with pytest.warns(UserWarning, match="cut at 64 tokens, and here they are cut at 128"):
        manifest.resolve("certified", "margin")


def test_a_statement_is_checked_on_independent_examples():
    """Copies of ten texts refute nothing, and score alike."""
    generator = torch.Generator().manual_seed(0)
    key, score = torch.arange(12), torch.rand(12, generator=generator)
    gain = torch.zeros(12).double()
    gain[:2] = 1.0
    entry = {"threshold": math.inf, "statement": "so", "max_regret": 0.05, "num_examples": 500, "slice_sha256": ""}
    entry["score_quantiles"] = quantiles_of(torch.rand(500, generator=generator))
    manifest = Manifest(["a", "b"], thresholds={"s": {"certified": entry}})
    rows = torch.arange(12).repeat_interleave(60)
    for unit in (None, key[rows]):
        keys = key[rows] if unit is None else torch.arange(len(rows))
        (found,) = check_statements(manifest, keys, {"s": score[rows]}, gain[rows], "", unit)
        assert found["verdict"] == "not refuted"
        assert found["drift_p"] > 0.01
        assert found["observed"] == pytest.approx(2 / 12)
    (found,) = check_statements(manifest, torch.arange(len(rows)), {"s": score[rows]}, gain[rows], "")
    assert found["verdict"] == "broken"
    entry["flops_convention"] = "paper"
    (found,) = check_statements(manifest, key, {"s": score}, gain, "", conditions={"flops_convention": "exact"})
    assert any("flops_convention paper" in one for one in found["warnings"])
    # A drop of any sign.
    entry["max_drop"] = entry.pop("max_regret")
    (found,) = check_statements(manifest, key, {"s": score}, -gain, "")
    assert found["verdict"] == "held"
    assert found["at least"] < found["observed"] < 0


def test_budgets_by_hand():
    found = costed([0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 0.0, 1.0])
    entry = by_budget(found, "super_share", 0.5, latency={})
    assert entry["threshold"] == pytest.approx(0.2)
    half = " In calibration, 50.0% of the inputs were deferred, which makes a FLOPs speed-up of 1.54x."
    assert entry["statement"] == (
        f"The Super answers at most 0.5 of the inputs. Nothing is promised of its quality.{half}"
    )
    assert entry["rule"] == "most deferral up to 0.5 of the inputs"
    assert (entry["super_share"], entry["deferred_share"]) == (0.5, 0.5)
    # One of four deferred costs (3 * 1 + 12) / 4 = 3.75, two of them 6.5.
    entry = by_budget(found, "flops", 0.4, latency={})
    assert entry["threshold"] == pytest.approx(0.3)
    assert entry["statement"] == (
        "The pair takes at most 0.4 of the Super's FLOPs. Nothing is promised of its quality. In calibration, 25.0% of "
        "the inputs were deferred, which makes a FLOPs speed-up of 2.67x."
    )
    assert entry["rule"] == "best quality within 0.4 of the Super's FLOPs"
    assert by_budget(found, "flops", 0.65, latency={})["threshold"] == pytest.approx(0.3)
    times = {"swift": {"batch 1": 0.1}, "super": {"batch 1": 1.0}}
    entry = by_budget(found, "latency", 0.61, latency=times)
    assert entry["deferred_share"] == 0.5
    assert entry["statement"] == (
        "An input takes at most 0.61 s at batch 1 on average, measured one by one. Nothing is promised of its quality."
        + half
    )
    assert entry["rule"] == "most deferral within 0.61 s an input at batch 1"
    assert by_budget(found, "latency", 0.1, latency=times)["threshold"] == math.inf
    # The Super alone, which does not wait for the Swift.
    for target in (9.0, 1.0):
        assert by_budget(found, "latency", target, latency=times)["threshold"] == -math.inf
    assert by_budget(found, "latency", 0.999, latency=times)["deferred_share"] == 0.75
    with pytest.raises(InputError, match=r"^The Swift alone takes 0\.1 s an input, more than --latency 0\.09\.$"):
        by_budget(found, "latency", 0.09, latency=times)
    for missing in ({}, {"swift": {"batch 1": 0.1}}, {"swift": {}, "super": {"batch 1": 1}}):
        with pytest.raises(InputError, match=r"^--latency reads what `elang validate --model.latency true` measured"):
            by_budget(found, "latency", 0.5, latency=missing)
    found.costs = replace(found.costs, super_=torch.full((4,), math.nan).double())
    with pytest.raises(InputError, match=r"^The records do not say what the Super costs: give --model.super_flops"):
        by_budget(found, "flops", 0.5, latency={})


@pytest.fixture(scope="module")
def evaluated(pair, joint_args, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate") / "joint"
    assert main(["validate", "--model.output", str(folder), "--model.latency", "true", *joint_args]) == 0
    return folder


@pytest.fixture
def joint(evaluated):
    """The evaluation, on whose slices nothing was tried yet."""
    (evaluated.parent / "slices.json").unlink(missing_ok=True)
    return evaluated


def entry_of(path, score="max_softmax", name="certified"):
    return json.loads((path / "elang.json").read_text())["thresholds"][score][name]


def test_a_certificate_from_records_to_prediction(pair, joint, joint_args, tmp_path, capfd, fails):
    frame = pd.read_parquet(joint / "records.parquet").query("split == 'routing'")
    score, gain = (torch.tensor(frame[name].to_numpy()) for name in ("score_max_softmax", "gain"))
    right = [frame[f"{who}_prediction"] == frame["label"] for who in ("swift", "super")]
    assert (frame["gain"] == right[1].astype(float) - right[0].astype(float)).all()
    assert main(["calibrate", str(joint), "--max_regret", "0.2", "--confidence", "0.8"]) == 0
    said = " ".join(capfd.readouterr().out.split())
    found = certify_regret(score, gain, 0.2, 0.8)
    entry = entry_of(joint)
    assert float(entry["threshold"]) == found.threshold
    assert entry["regretted"] == found.regretted
    assert entry["slice_sha256"] == slice_sha256(torch.tensor(frame["key"].to_numpy()))
    assert entry["statement"] in said
    for part in ("at most 20%", "80% confidence", f"of the {len(frame)} distinct texts", "certified"):
        assert part in said
    weights = json.loads((joint / "summary.json").read_text())["weights"]
    assert (entry["swift_sha256"], entry["super_sha256"]) == (weights["swift"], weights["super"])
    assert len(weights["swift"]) == len(weights["super"]) == 64
    # The Swift's own file gets it, too: what was asked before is the same attempt.
    both = tmp_path / "both"
    both.mkdir()
    (both / "elang.json").write_bytes((pair["swift"] / "elang.json").read_bytes())
    assert main(["calibrate", str(joint), "--max_regret", "0.2", "--confidence", "0.8", "--output", str(both)]) == 0
    assert entry_of(both) == entry_of(joint) == entry
    # The pair works with it, and `validate` says what became of it.
    predictor = JointPredictor(str(pair["swift"]), str(pair["super"]), "certified", thresholds=str(joint))
    assert predictor.threshold == found.threshold
    again = tmp_path / "again"
    given = ["--model.thresholds", str(joint / "elang.json"), "--model.output", str(again)]
    assert main(["validate", *given, *joint_args]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert entry["statement"] in said
    (statement,) = json.loads((again / "summary.json").read_text())["statements"]
    dev = pd.read_parquet(joint / "records.parquet").query("split == 'validation'")
    own = [torch.tensor(dev[name].to_numpy()) for name in ("score_max_softmax", "gain")]
    assert statement["observed"] == pytest.approx(float(regret_at(*own, found.threshold).mean()))
    assert statement["verdict"] == "held"
    assert not statement["same_slice"]
    # What it was chosen on cannot tell.
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "elang.json").write_bytes((joint / "elang.json").read_bytes())
    own_name = ["--name", "of the evaluation set", "--split", "validation", "--output", str(copy)]
    assert main(["calibrate", str(joint), "--max_regret", "0.3", *own_name]) == 0
    given = ["--model.thresholds", str(copy / "elang.json"), "--model.output", str(tmp_path / "no")]
    fails(["validate", *given, *joint_args], "of the evaluation set", "these very examples")


@pytest.mark.parametrize("where", ["new.json", "deep/new.json", "new", "deep/new", "empty"])
@pytest.mark.parametrize("begun_by", ["joint", "swift"])
def test_an_output_that_is_not_there_is_made(pair, joint, tmp_path, capsys, where, begun_by):
    """With the thresholds that there were before, so that a pair can use it."""
    (tmp_path / "empty").mkdir()
    evaluated = shutil.copytree(joint, tmp_path / "joint")
    if begun_by == "swift":
        (evaluated / "elang.json").unlink()
    args = ["calibrate", str(evaluated), "--super_share", "0.5", "--output", str(tmp_path / where)]
    assert main(args) == 0
    made = tmp_path / where if where.endswith(".json") else tmp_path / where / "elang.json"
    told = f"{made} is a new file. No model is beside it: give it to `elang predict` as --thresholds {made}."
    assert told in capsys.readouterr().out
    before = Manifest.read(joint if begun_by == "joint" else pair["swift"])
    found = Manifest.read(made)
    assert found.thresholds["max_softmax"]["certified"]["super_share"] == 0.5
    assert before.thresholds["max_softmax"].keys() | {"certified"} == found.thresholds["max_softmax"].keys()
    assert found.thresholds["max_softmax"]["1-SE"] == before.thresholds["max_softmax"]["1-SE"]
    threshold = found.threshold("certified")
    assert JointPredictor(str(pair["swift"]), None, "certified", thresholds=str(made)).threshold == threshold
    assert main(args) == 0
    assert "new file" not in capsys.readouterr().out


def test_an_output_that_cannot_be_made(joint, tmp_path, fails, monkeypatch):
    """It is told before an attempt is made, which would cost confidence."""
    evaluated = shutil.copytree(joint, tmp_path / "joint")
    args = ["calibrate", evaluated, "--max_regret", "0.3", "--ledger", tmp_path / "ledger.json", "--output"]
    fails([*args, tmp_path / "new.yaml"], "new.yaml", ".json", "folder")
    (tmp_path / "file").write_text("x")
    fails([*args, tmp_path / "file" / "new.json"], "new.json", "'" + str(tmp_path / "file") + "' is a file")
    fails([*args, tmp_path / "file"], "not a threshold file")
    (evaluated / "elang.json").unlink()
    summary = json.loads((evaluated / "summary.json").read_text())
    (evaluated / "summary.json").write_text(json.dumps(summary | {"swift_model": str(tmp_path / "gone")}))
    fails([*args, tmp_path / "new.json"], "none to begin it with", "gone", "Give the Swift's folder")
    assert not (tmp_path / "ledger.json").exists()
    assert not (tmp_path / "new.json").exists()


def test_a_statement_that_does_not_hold_is_told(pair, joint, joint_args, tmp_path, capsys):
    manifest = json.loads((joint / "elang.json").read_text())
    assert main(["calibrate", str(joint), "--max_regret", "0.2", "--confidence", "0.8", "--name", "mine"]) == 0
    entry = entry_of(joint, name="mine")
    # Chosen for another Super, on other scores, and too bold.
    entry |= {"threshold": "inf", "max_regret": 1e-4, "super_sha256": "0" * 64}
    entry["score_quantiles"] = [value - 50 for value in entry["score_quantiles"]]
    manifest["thresholds"]["max_softmax"] = {"mine": entry}
    (tmp_path / "elang.json").write_text(json.dumps(manifest))
    out = tmp_path / "out"
    given = ["--model.thresholds", str(tmp_path / "elang.json"), "--model.output", str(out)]
    assert main(["validate", *given, *joint_args]) == 0
    said = " ".join(capsys.readouterr().out.split())
    (statement,) = json.loads((out / "summary.json").read_text())["statements"]
    frame = pd.read_parquet(out / "records.parquet").query("split == 'validation'")
    regretted = int((frame["gain"] > 0).sum())
    least = stats.binomtest(regretted, len(frame)).proportion_ci(0.95, method="exact").low
    assert statement["at least"] == pytest.approx(least, abs=1e-9)
    assert statement["verdict"] == ("held" if regretted == 0 else "broken" if least > 1e-4 else "not refuted")
    assert regretted > 0
    assert "drifted" in said
    assert "another Super" in said
    assert "is allowed" in said


@pytest.mark.parametrize(
    ("option", "exchanged", "warned"),
    [("max_regret", False, False), ("max_regret", True, True), ("max_drop", True, True), ("super_share", True, True)],
)
def test_a_promise_is_about_one_super(pair, joint, tmp_path, recwarn, option, exchanged, warned):
    """Another's weights make it void; a share of inputs is the same with any, but the folder may be the wrong one."""
    thresholds = shutil.copy(joint / "elang.json", tmp_path)
    assert main(["calibrate", str(joint), f"--{option}", "0.3", "--confidence", "0.8", "--output", thresholds]) == 0
    super_ = shutil.copytree(pair["super"], tmp_path / "super")
    if exchanged:
        weights = load_file(super_ / "model.safetensors")
        save_file(
            {name: value + 1e-6 for name, value in weights.items()}, super_ / "model.safetensors", {"format": "pt"}
        )
    recwarn.clear()
    JointPredictor(str(pair["swift"]), str(super_), "certified", thresholds=thresholds)
    said = [str(w.message) for w in recwarn if "another Super" in str(w.message)]
    assert len(said) == warned
    assert not said or f"'{super_}'" in said[0]
    assert not said or ("was certified against" in said[0]) == (option != "super_share")


def test_other_points(joint, capsys):
    frame = pd.read_parquet(joint / "records.parquet").query("split == 'routing'")
    score = torch.tensor(frame["score_max_softmax"].to_numpy())
    latency = json.loads((joint / "summary.json").read_text())["latency"]
    seconds = [latency[name]["batch 1"] for name in ("swift", "super")]
    for option, target in (
        ("super_share", 0.3),
        ("flops", 0.8),
        ("max_drop", 0.2),
        ("latency", seconds[0] + 0.4 * seconds[1]),
    ):
        assert main(["calibrate", str(joint), f"--{option}", str(target), "--name", option]) == 0
        entry = entry_of(joint, name=option)
        said = " ".join(capsys.readouterr().out.split())
        assert entry["statement"] in said
        assert ("Nothing is promised" in said) == (option != "max_drop")
        deferred = route(score, float(entry["threshold"]))
        assert entry["deferred_share"] == pytest.approx(float(deferred.double().mean()))
        if option == "super_share":
            # One more would be too many.
            assert 0.3 - 1 / len(frame) < entry["deferred_share"] <= 0.3
        if option == "latency":
            # Where the Super alone is fast enough, nothing has to be kept.
            allowed = 1.0 if target >= seconds[1] else 0.4
            assert allowed - 1 / len(frame) < entry["deferred_share"] <= allowed
        if option == "flops":
            cost = frame["swift_flops"] + frame["super_flops"] * deferred.numpy()
            assert cost.mean() <= 0.8 * frame["super_flops"].mean()
            assert entry["speedup"] == pytest.approx(frame["super_flops"].mean() / cost.mean())
        if option == "max_drop":
            assert float(frame["gain"][~deferred.numpy()].sum()) / len(frame) <= 0.2


def test_several_attempts_on_a_slice(pair, joint, tmp_path, capfd, fails):
    """Each costs confidence, also of another score or folder; a list is one attempt; the name says which score."""
    base = ["calibrate", str(joint), "--max_regret", "0.3"]
    assert main(base) == 0
    first = entry_of(joint)
    assert (first["confidence"], first["attempts"], first["level"]) == (0.95, 1, pytest.approx(0.05))
    capfd.readouterr()
    assert main([*base, "--score", "entropy", "margin"]) == 0
    # Of two classes these are one order, so their rows are equal.
    assert "Left out, equal to 'entropy: certified': 'margin: certified'." in capfd.readouterr().out
    assert [one["kind"] for one in notices()] == ["spent-confidence"]
    assert "92.5% confidence, not 95%" in notices()[0]["text"]
    found = entry_of(joint, "margin")
    assert (found["level"], found["attempts"], found["confidence"]) == (pytest.approx(0.0125), 2, pytest.approx(0.925))
    assert all(one in found["statement"] for one in ("92.5% confidence", "2 promises were tested together"))
    # Of the earlier one, too, the confidence is that all hold.
    assert entry_of(joint)["confidence"] == pytest.approx(0.925)
    assert "2 attempts" in entry_of(joint)["statement"]
    assert entry_of(joint)["threshold"] == first["threshold"]
    for option in ([], ["--score", "entropy"]):
        args = ["--super_model", str(pair["super"]), "--threshold", "certified", "--thresholds", str(joint), *option]
        (tmp_path / "in.txt").write_text("the film was good\n")
        args += ["--swift_model", str(pair["swift"]), "--input", str(tmp_path / "in.txt")]
        if not option:
            fails(["predict", *args], "'max_softmax'", "'entropy'", "'margin'", "--score")
        else:
            assert main(["predict", *args]) == 0
    # Another folder with the same examples, and several amounts.
    other = shutil.copytree(joint, joint.parent / "other", dirs_exist_ok=True)
    amounts = ["calibrate", str(other), "--max_drop", "0.3", "0.4", "--confidence", "0.9", "--name", "both"]
    assert main(amounts) == 0
    both = [entry_of(other, name=f"both {amount}") for amount in (0.3, 0.4)]
    assert [one["attempts"] for one in both] == [3, 3]
    assert both[0]["level"] == pytest.approx(0.0125)
    assert both[1]["confidence"] == pytest.approx(0.9)
    # Its own ledger, and another promise under the name.
    mine = ["--ledger", str(tmp_path / "mine.json"), "--max_regret", "0.25"]
    assert main(["calibrate", str(other), *mine]) == 0
    assert {one["kind"] for one in notices()} == {"replaced-threshold"}
    made = json.loads((other / "made.json").read_text())["calibrate"][-1]
    assert made["notices"] == notices()
    assert "as attempt 4" in fails([*base[:3], "0.01"], "at least")
    shutil.rmtree(other)


def test_an_evaluation_that_drops_certified_thresholds_says_so(joint, joint_args, tmp_path):
    folder = shutil.copytree(joint, tmp_path / "joint")
    again = ["validate", "--model.output", str(folder), *joint_args]
    assert main(["calibrate", str(folder), "--super_share", "0.3", "--name", "mine"]) == 0
    assert main(again) == 0
    (said,) = [one["text"] for one in notices() if one["kind"] == "dropped-thresholds"]
    assert "'mine'" in said
    assert "elang calibrate" in said
    assert "mine" not in json.loads((folder / "elang.json").read_text())["thresholds"]["max_softmax"]
    assert said in [one["text"] for one in json.loads((folder / "made.json").read_text())["notices"]]
    # Now none are left, and a damaged file is replaced as before.
    assert main(again) == 0
    (folder / "elang.json").write_text("{")
    assert main(again) == 0
    assert "dropped-thresholds" not in [one["kind"] for one in notices()]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"calibrate": 1}', '{"seed": 1, "seed": 2}', '{"a":' * 100_000, b"\xff"]
)
def test_a_damaged_made_file_is_not_replaced(joint, tmp_path, fails, content):
    """And no attempt is spent on it."""
    folder = shutil.copytree(joint, tmp_path / "joint")
    content = content if isinstance(content, bytes) else content.encode()
    (folder / "made.json").write_bytes(content)
    fails(["calibrate", str(folder), "--max_regret", "0.3"], "made.json' is damaged", "elang validate")
    assert (folder / "made.json").read_bytes() == content
    assert not (tmp_path / "slices.json").exists()


def test_two_calibrations_at_a_time_keep_both_thresholds(joint, tmp_path, monkeypatch):
    folder, slices = shutil.copytree(joint, tmp_path / "joint"), read_slice

    def while_another_runs(*args):
        monkeypatch.undo()
        assert main(["calibrate", str(folder), "--super_share", "0.2", "--name", "other"]) == 0
        return slices(*args)

    monkeypatch.setattr("elang.cli.calibrate.read_slice", while_another_runs)
    assert main(["calibrate", str(folder), "--super_share", "0.3", "--name", "mine"]) == 0
    assert entry_of(folder, name="other")["threshold"] != entry_of(folder, name="mine")["threshold"]
    assert len(json.loads((folder / "made.json").read_text())["calibrate"]) == 2 + len(
        json.loads((joint / "made.json").read_text()).get("calibrate", [])
    )


def test_a_file_system_without_locks_is_told(joint, tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(37, "No locks available")

    folder = shutil.copytree(joint, tmp_path / "joint")
    monkeypatch.setattr("elang.locks.fcntl.flock", refuse)
    assert main(["calibrate", str(folder), "--max_regret", "0.3"]) == 0
    assert {one["kind"] for one in notices()} == {"no-lock"}


def with_column(joint, folder, **columns):
    """A copy of an evaluation whose records have other columns."""
    folder = shutil.copytree(joint, folder)
    path = folder / "records.parquet"
    frame = pd.read_parquet(path)
    frame = frame.assign(**{name: make(frame) for name, make in columns.items()})
    about = pq.read_schema(path).metadata
    about = {name: value for name, value in about.items() if name != b"pandas"}
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(about), path)
    return folder


def test_copies_and_groups_in_records_count_once(joint, tmp_path, fails):
    copies = with_column(joint, tmp_path / "copies", key=lambda frame: frame["id"] // 40)
    n = pd.read_parquet(copies / "records.parquet").query("split == 'routing'")["key"].nunique()
    fails(["calibrate", copies, "--max_regret", "0.05"], f"{n} distinct texts in 66 rows", "at least 59")
    assert main(["calibrate", str(copies), "--max_regret", "0.6", "--confidence", "0.6"]) == 0
    assert "repeated-examples" in [one["kind"] for one in notices()]
    assert entry_of(copies)["num_examples"] == n
    groups = with_column(joint, tmp_path / "groups", unit=lambda frame: frame["id"] // 20)
    n = pd.read_parquet(groups / "records.parquet").query("split == 'routing'")["unit"].nunique()
    fails(["calibrate", groups, "--max_drop", "0.05"], f"{n} groups of texts in 66 rows")
    assert main(["calibrate", str(groups), "--max_regret", "0.6", "--confidence", "0.6"]) == 0
    entry = entry_of(groups)
    assert all(one in entry["statement"] for one in ("groups of texts", "counting once"))
    assert entry["num_examples"] == n >= entry["effective_number"]


@pytest.mark.parametrize("kept", [240, 239, 200])
@pytest.mark.parametrize("given", ["train", "thresholds"])
def test_a_statement_is_not_checked_on_the_training_file(pair, joint, files, joint_args, tmp_path, fails, kept, given):
    """Nor on one with a row less or more, nor where the training file is not named."""
    assert main(["calibrate", str(joint), "--max_regret", "0.2", "--confidence", "0.8"]) == 0
    lines = files[0].read_text().splitlines()[: 1 + kept] + files[1].read_text().splitlines()[1:4]
    (tmp_path / "same.csv").write_text("\n".join(lines) + "\n")
    args = [*joint_args, "--data.validation", tmp_path / "same.csv", "--model.output", tmp_path / "out"]
    args += ["--model.thresholds", joint / "elang.json"]
    if given == "train":
        fails(["validate", *args], "in the training file", "--data.validation")
    else:
        at = args.index("--data.train")
        fails(["validate", *args[:at], *args[at + 2 :]], "chosen on examples", "Evaluate on others")


def test_a_few_shared_examples_are_told(joint, files, joint_args, tmp_path):
    text = pd.read_csv(files[0])["text"]
    key = torch.tensor([content_key((one,)) for one in text])
    shared = text[in_slice(key, 0.25).numpy()].tolist()[:3]
    lines = [*files[1].read_text().splitlines(), *(f"{one},good" for one in shared)]
    (tmp_path / "more.csv").write_text("\n".join(lines) + "\n")
    args = [*joint_args, "--data.validation", str(tmp_path / "more.csv"), "--model.output", str(tmp_path / "out")]
    assert main(["validate", *args]) == 0
    (said,) = [one["text"] for one in notices() if one["kind"] == "evaluated-on-slice"]
    assert "3 of the 64" in said


def test_what_cannot_be_promised(joint, fails, tmp_path):
    fails(["calibrate", joint], "one of", "0 of them")
    fails(["calibrate", joint, "--max_regret", "0.1", "--flops", "0.5"], "2 of them")
    fails(["calibrate", joint, "--max_regret", "0.001"], "at least 2,995 examples", "0.100%")
    fails(["calibrate", joint, "--max_regret", "1.5"], "--max_regret", "1.5")
    fails(["calibrate", joint, "--max_regret", "0.1", "--confidence", "95"], "--confidence", "95")
    fails(["calibrate", joint, "--max_regret", "0.1", "--score", "enrgy"], "enrgy", "free_energy")
    fails(["calibrate", joint, "--max_regret", "0.1", "--split", "test"], "no split 'test'", "routing")
    fails(["calibrate", joint, "--latency", "1e-9"], "The Swift alone takes")
    fails(["calibrate", tmp_path, "--max_regret", "0.1"], "no folder that `elang validate` wrote")
    (tmp_path / "summary.json").write_text("{}")
    fails(["calibrate", tmp_path, "--max_regret", "0.1"], "earlier version")
    (tmp_path / "summary.json").write_bytes((joint / "summary.json").read_bytes())
    (tmp_path / "elang.json").write_bytes((joint / "elang.json").read_bytes())
    fails(["calibrate", tmp_path, "--max_regret", "0.1"], "records.parquet", "cannot be read")
    pd.read_parquet(joint / "records.parquet").drop(columns="gain").to_parquet(tmp_path / "records.parquet")
    fails(["calibrate", tmp_path, "--max_regret", "0.1"], "what deferring gains")
    about = pq.read_schema(joint / "records.parquet").metadata
    for damage in (
        {"gain": math.nan},
        {"key": 0.5},
        {"gain": "a"},
        {"score_max_softmax": math.inf},
        {"super_flops": -1.0},
    ):
        table = pa.Table.from_pandas(pd.read_parquet(joint / "records.parquet").assign(**damage), preserve_index=False)
        pq.write_table(table.replace_schema_metadata(about), tmp_path / "records.parquet")
        for promise in ("--max_regret", "--max_drop", "--flops"):
            fails(["calibrate", tmp_path, promise, "0.4", "--confidence", "0.5"], "damaged", *damage, "row", "again")


def test_a_router_is_not_certified_on_what_it_was_fitted_on(joint, fails):
    router = ["calibrate", joint, "--max_regret", "0.3", "--score", "router"]
    fails([*router, "--split", "routing"], "fitted on the routing slice", "--split")
    options = ["--name", "of a router"]
    assert main(["calibrate", str(joint), "--max_regret", "0.3", "--score", "router", *options]) == 0
    assert entry_of(joint, "router", "of a router")["num_examples"] == 61


def test_scores_of_another_temperature_are_another_scale(pair, joint_args, tmp_path, fails):
    joint = tmp_path / "joint"
    assert main(["validate", "--model.output", str(joint), "--model.temperature", "2", *joint_args]) == 0
    fails(["calibrate", joint, "--max_regret", "0.3", "--output", pair["swift"]], "temperature 1.0", "2.0")
    assert main(["calibrate", str(joint), "--max_regret", "0.3"]) == 0


def test_thresholds_of_another_swift_are_not_added_to(pair, joint, fails, tmp_path):
    manifest = json.loads((joint / "elang.json").read_text())
    manifest["weights_sha256"] = "1" * 64
    (tmp_path / "elang.json").write_text(json.dumps(manifest))
    fails(["calibrate", joint, "--max_regret", "0.3", "--output", tmp_path], "another Swift", "as --output", tmp_path)


def test_a_small_slice_defers_everything_and_says_so(pair, joint_args, tmp_path, capsys, base_model):
    """With a Swift that knows nothing, the Super is all that can be trusted."""
    data = write_data(tmp_path / "dev.csv", 400, 5, noise=0.0)
    args = ["--model.super_model", str(pair["super"]), "--model.output", str(tmp_path / "joint")]
    args += ["--data.validation", str(data), *QUIET]
    assert main(["validate", "--model.swift_model", str(pair["swift"]), *args]) == 0
    (tmp_path / "joint" / "elang.json").write_bytes((pair["swift"] / "elang.json").read_bytes())
    options = ["--split", "validation", "--max_regret", "0.0075"]
    path = tmp_path / "joint" / "records.parquet"
    frame = pd.read_parquet(path)
    frame["gain"] = 1.0
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(pq.read_schema(path).metadata), path)
    capsys.readouterr()
    assert main(["calibrate", str(tmp_path / "joint"), *options]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "everything is deferred" in said
    assert "which makes a FLOPs speed-up of 1.00x." in said
    assert "costs more than the Super alone" not in said
    assert float(entry_of(tmp_path / "joint")["threshold"]) == -math.inf


def test_what_validate_denied_is_said_again_where_its_threshold_is_used(pair, joint, data_args, tmp_path):
    """By its own file, and by a threshold that was calibrated on its records; not of a pair that is a success."""

    def told(**options):
        forget_notices()
        JointPredictor(pair["super"], pair["super"], device="cpu", **options)
        return [one["text"] for one in notices() if one["kind"] == "denied-pair"]

    swift = str(shutil.copytree(pair["super"], tmp_path / "swift"))
    both = ["--model.swift_model", swift, "--model.super_model", str(pair["super"])]
    assert main(["validate", *both, *data_args, *QUIET, "--model.output", str(tmp_path / "joint")]) == 0
    (said,) = told(thresholds=str(tmp_path / "joint"), threshold="parity")
    assert said.startswith("`elang validate` said of this pair: ")
    # Not that both are the same model, which is about this evaluation.
    assert "this pair saves nothing" in said or "so no threshold saves anything" in said
    assert told(thresholds=str(tmp_path / "joint"), threshold="0.5") == [said]
    calibrate = ["calibrate", str(tmp_path / "joint"), "--super_share", "0.5", "--name", "half", "--output", swift]
    assert main(calibrate) == 0
    assert told(thresholds=swift, threshold="half") == [said]
    assert told(thresholds=swift, threshold="0.5") == []
    assert Manifest.read(joint).denial == read_summary(joint).denial == read_summary(joint).cautions[0]
    assert Manifest.read(pair["swift"]).denial == ""
