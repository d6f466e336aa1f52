"""Which point of a curve each name stands for."""

import math
import re
from types import SimpleNamespace

import pytest
import torch

from elang.evaluation.cautions import allows_the_lead, below_allowance, saves_nothing
from elang.evaluation.labels import no_better_than_one
from elang.evaluation.pair import BY_QUALITY, PairAnswers, allowed_drops, choose_thresholds, named_points, pair_curves
from elang.evaluation.summarize import all_curves, summarize, summarize_pair
from elang.evaluation.summary import NO_PAIR, EvaluatedPair
from elang.method.bootstrap import difference_errors
from elang.method.quality.registry import QUALITIES
from elang.tasks.kind import KINDS


def made(n=400, swift_cost=1.0, super_cost=8.0, seed=0, problem="classification"):
    """A Swift that is right on 80% and a Super that is right on 92%, with a score that tells a little."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (n,), generator=draw)
    right = [torch.rand(n, generator=draw) < share for share in (0.8, 0.92)]
    swift, super_ = (torch.where(r, label, (label + 1) % 3) for r in right)
    score = torch.rand(n, generator=draw) + 0.5 * ~right[0]
    if problem == "regression":
        label, swift, super_ = label.double(), swift.double(), super_.double()
    costs = [torch.full((n,), cost, dtype=torch.float64) for cost in (swift_cost, super_cost)]
    return PairAnswers(
        torch.arange(n), torch.arange(n), label, swift, super_, {"s": score}, *costs, {}, problem=problem
    )


@pytest.mark.parametrize("name", ["accuracy", "matthews"])
@pytest.mark.parametrize("n", [60, 400, 20_000])
def test_the_default_is_the_least_deferral_within_half_a_point_or_one_error(name, n):
    answers, quality = made(n), QUALITIES[name](3)
    curve = pair_curves(answers, quality)["s"]
    swift, super_, _ = answers.statistics(quality)
    deferred, errors = difference_errors(answers.scores, swift, super_, quality.value)["s"]
    expected = None
    for i in range(len(curve)):
        error = float(errors[int((deferred < curve.deferred[i]).sum())])
        if curve[i].quality >= curve[-1].quality - max(0.005, error) - 1e-12 and curve[i].speedup > 1:
            expected = curve[i]
            break
    entry = choose_thresholds(answers, quality, "here")["s"]["1-SE"]
    assert (entry["threshold"], entry["quality"]) == (expected.threshold, expected.quality)
    assert entry["rule"].startswith("least deferral that costs less than the Super alone")
    assert summarize(answers, quality, {}).scores["s"].on_this_set["1-SE"] == expected
    # With few examples an error is more than half a point, and with many it is less.
    allowed = allowed_drops(answers, quality, {"s": curve})["s"]
    assert (float(allowed.max()) > 0.006) == (n < 20_000)
    assert float(allowed.min()) == 0.005
    assert named_points(curve)["defer 10%"] == named_points(curve, name, allowed)["defer 10%"]
    assert "1-SE" not in named_points(curve)


def test_half_a_point_of_metrics_to_100():
    answers = made(60, problem="sequence")
    texts = torch.zeros(60, 2, 10, dtype=torch.int32)
    texts[:, :] = torch.tensor([5, 5, 5, 4, 3, 2, 5, 4, 3, 2], dtype=torch.int32)
    answers.targets["bleu"] = texts
    answers.targets["worth"] = torch.full((60, 2), 100.0)
    answers.swift, answers.super_ = torch.zeros(60, dtype=torch.long), torch.ones(60, dtype=torch.long)
    quality = QUALITIES["bleu"](2)
    # All texts are alike, so nothing differs in any resample.
    assert allowed_drops(answers, quality, pair_curves(answers, quality))["s"].unique().tolist() == [0.5]


def test_half_a_point_where_a_metric_is_no_function_of_sums():
    answers, quality = made(60, problem="regression"), QUALITIES["spearman"](1)
    curves = pair_curves(answers, quality)
    for name, allowed in allowed_drops(answers, quality, curves).items():
        assert allowed.tolist() == [0.005] * len(curves[name])


def test_what_saves_something_is_named_where_the_default_saves_nothing():
    nothing, some = {"threshold": -math.inf, "speedup": 1.0}, {"threshold": 0.1, "speedup": 1.3}
    named = {"1-SE": nothing, "parity": {"threshold": 0.0, "speedup": 0.9}, "99%": some}
    (caution,) = saves_nothing({"a": named, "b": {"1-SE": some}, "c": {"1-SE": nothing}}, "a")
    assert caution.endswith("On the slice these save something: --threshold '99%', --score b")
    (caution,) = saves_nothing({"a": {"1-SE": nothing}}, "a")
    assert caution.endswith("Or ask the Super alone: no threshold saves anything here")


def test_a_threshold_that_does_not_hold_here_is_a_caution():
    named = {"1-SE": {"threshold": -0.6, "num_examples": 286}}

    def points(high=-0.043, **others):
        found = {"held out, 1-SE": (-0.062, high, 1.5)} | {key.replace("_", ", "): one for key, one in others.items()}
        names = "difference", "high"
        return {
            key: SimpleNamespace(to_super=dict(zip(names, one[:2], strict=True)), speedup=one[2])
            for key, one in found.items()
        }

    (caution,) = below_allowance(points(), named, 1.0)
    assert "6.2 points below the Super" in caution
    assert "it was chosen on 286 examples, which are too few, or unlike those that are evaluated here" in caution
    assert below_allowance(points(-0.004), named, 1.0) == below_allowance({}, named, 1.0) == []
    # A threshold is advised only if it saves something and keeps the Super's quality here.
    for parity in ((-0.02, 0.01, 1.5), (-0.001, 0.01, 0.99), (-0.001, 0.01, 1.04)):
        (caution,) = below_allowance(points(**{"held out_parity": parity}), named, 1.0)
        assert caution.endswith("without losing more than that: ask the Super alone, or train a better Swift")
        assert NO_PAIR in caution
    (caution,) = below_allowance(points(**{"held out_parity": (-0.001, 0.01, 1.2)}), named, 1.0)
    assert "take '--threshold parity', or calibrate" in caution
    assert NO_PAIR not in caution
    (caution,) = below_allowance(points(**{"read here_99%": (-0.001, 0.01, math.nan)}), named, 1.0)
    assert "(--data.routing_fraction), or calibrate" in caution


def test_parity_is_advised_for_all_of_the_lead_only_if_it_saves_something():
    first = SimpleNamespace(
        quality_name="accuracy", super=SimpleNamespace(quality=0.905), swift=SimpleNamespace(quality=0.9)
    )
    for speedup, advice in (
        (1.0, "Ask the Super alone"),
        (2.0, "Take '--threshold parity'"),
        (math.nan, "Take '--thr"),
    ):
        named = {"1-SE": {"allowed_drop": 0.01}, "parity": {"threshold": -0.5, "speedup": speedup}}
        (caution,) = allows_the_lead(named, first)
        assert f"all of the lead. {advice}" in caution


def test_a_model_that_has_learned_nothing_is_a_caution():
    label = torch.tensor([0] * 6 + [1] * 4)
    said = no_better_than_one(torch.zeros(10).long(), label, ["a", "b"])
    assert "right on 60.0%, and always answering 'a'" in said
    # Longer or shorter: that depends on where the loss went.
    assert re.search(
        "loss .* rose, train for fewer epochs .* third of --model.lr; where it fell .* train longer$", said
    )
    assert no_better_than_one(label, label, ["a", "b"]) is None
    assert no_better_than_one(label[:6], label[:6], ["a", "b"]) is None
    # Of four known labels half are right; an answer that is none of the labels is not right where none is known.
    label = torch.tensor([0, 0, 0, 1, -1, -1])
    assert "right on 50.0%" in no_better_than_one(torch.tensor([0, 0, 1, 0, -1, -1]), label, ["a", "b"])
    assert KINDS["classification"].reward(torch.tensor([-1, 0, 1]), torch.tensor([-1, 0, 0]), {}).tolist() == [0, 1, 0]


def test_a_pair_that_saves_nothing_defers_everything_and_is_a_caution():
    quality = QUALITIES["accuracy"](3)
    about = {"evaluated_on": "validation", "swift_model": "a", "super_model": "b", "score": "s", "temperature": 1.0}
    about |= {"num_examples": 400, "thresholds_from": "x", "weights": {"swift": "1", "super": "2"}}
    for swift_cost, super_cost, saves in ((1.0, 8.0, True), (7.9, 8.0, False), (7.9, math.nan, True)):
        answers = made(swift_cost=swift_cost, super_cost=super_cost)
        thresholds = choose_thresholds(answers, quality, "here")
        entry = thresholds["s"]["1-SE"]
        assert (entry["threshold"] > -math.inf) == saves
        assert entry["rule"].startswith("everything is deferred: no threshold that costs less") != saves
        curves = all_curves(answers, [quality])
        summary = summarize_pair(EvaluatedPair(**about), answers, curves, thresholds, ["a", "b", "c"], 400, None, 4e-7)
        assert any("this pair saves nothing" in caution for caution in summary.cautions) != saves
        on_this_set = summary.first.scores["s"].on_this_set
        rules = {name: thresholds["s"][name]["rule"] for name in BY_QUALITY}
        if super_cost == super_cost:
            # By any rule, the Super alone is taken before a threshold that costs more.
            points = [on_this_set[name] for name in BY_QUALITY]
            assert all(point.speedup > 1 or point.threshold == -math.inf for point in points)
            for name, rule in rules.items():
                everything = float(thresholds["s"][name]["threshold"]) == -math.inf
                assert rule.startswith("everything is deferred: no threshold that costs less") == everything
        if not saves:
            assert on_this_set["parity"].speedup == 1
            assert summary.operating_points["s"]["held out, 1-SE"].quality == summary.first.super.quality
            # The Super alone answers, and is all that is paid.
            assert entry["speedup"] == summary.operating_points["s"]["held out, 1-SE"].speedup == 1
            assert summary.first.scores["s"].on_this_set["1-SE"].cost == summary.first.super.cost
