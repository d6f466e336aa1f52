"""What an evaluation prints: the answer first, tables of 80 columns without repeats, every word explained."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from elang.cli.verbs import main
from elang.data.benchmarks import TaskData
from elang.data.seq2seq import Seq2SeqData
from elang.data.text_classification import TextClassificationData
from elang.evaluation import pair
from elang.evaluation import summarize as summaries
from elang.evaluation.cautions import little_to_save
from elang.evaluation.labels import keeps_one, recalls
from elang.evaluation.pair import PairAnswers, choose_thresholds
from elang.evaluation.report import figures as drawing
from elang.evaluation.report.console import print_commands, print_summary, thresholds_option
from elang.evaluation.report.words import meanings, outcome, statement_lines
from elang.evaluation.summarize import all_curves, summarize_pair
from elang.evaluation.summary import NO_PAIR, SWIFT_ALONE, EvaluatedPair
from elang.evaluation.units import counted_in, words_of
from elang.inference.routing import warn_if_costly
from elang.method.quality.registry import QUALITIES
from elang.notices import Notice
from elang.records.manifest import Manifest

ABOUT = {
    "evaluated_on": "validation",
    "swift_model": "runs/swift",
    "super_model": "runs/super",
    "score": "max_softmax",
    "temperature": 1.0,
    "thresholds_from": "the routing slice, held out from training: 400 examples",
    "weights": {"swift": "1", "super": "2"},
    "task": "dev.csv (intent)",
}
LONG = "a_score_of_ones_own_with_a_name_that_is_long"


def curves_of(n=400, names=("accuracy", "f1_macro"), super_cost=8e9, swift_right=0.8, convention="exact"):
    """The curves of the first metric, and the summary."""
    draw = torch.Generator().manual_seed(0)
    label = torch.randint(3, (n,), generator=draw)
    right = [torch.rand(n, generator=draw) < share for share in (swift_right, 0.92)]
    swift, super_ = (torch.where(r, label, (label + 1) % 3) for r in right)
    score = torch.rand(n, generator=draw) + 0.5 * ~right[0]
    scores = {"entropy": score * 2, "max_softmax": score, LONG: -score, "router": score + 1}
    costs = [torch.full((n,), cost, dtype=torch.float64) for cost in (1e9, super_cost)]
    answers = PairAnswers(torch.arange(n), torch.arange(n), label, swift, super_, scores, *costs, {})
    qualities = [QUALITIES[name](3) for name in names]
    thresholds = choose_thresholds(answers, qualities[0], "here")
    about = EvaluatedPair(**ABOUT, num_examples=n, flops_convention=convention)
    curves = all_curves(answers, qualities)
    summary = summarize_pair(about, answers, curves, thresholds, ["a", "b", "c"], n, None, 4e-7)
    return next(iter(curves.values())), summary


def summary_of(**options):
    return curves_of(**options)[1]


def test_the_answer_comes_first_and_everything_fits_80_columns(capsys):
    latency = {"batch 1": 0.00268, "at best batch": 0.000621, "best batch": 256, "tokens": 13}
    print_summary(replace(summary_of(), latency={"swift": latency, "super": latency}), Path("runs/joint"))
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0].startswith("On dev.csv (intent), the pair ")
    assert max(map(len, lines)) <= 80
    words = " ".join(said.split())
    assert words.index("x fewer FLOPs.") < words.index("dev.csv (intent): accuracy on 400 examples of validation")
    # Scores that order all examples alike are one row, that of the score that routes.
    assert "Left out, equal to 'max_softmax': 'entropy', 'router'." in words
    assert [line.split()[0] for line in lines if line.startswith(("max_softmax*", "entropy ", "router "))] == [
        "max_softmax*"
    ]
    # Each word is explained once, and only those that appear are.
    for word in ("held out", "read here", "1-SE", "parity", "deferred", "speed-up", "area", "difference"):
        assert len([line for line in lines if line.startswith(f"{word}: ")]) == 1, word
    assert "by length" not in said
    assert "encoder_" not in said
    # Both metrics stand beside each other.
    assert next(line for line in lines if line.startswith("threshold ")).split() == [
        *("threshold", "score", "above", "accuracy", "f1_macro", "deferred", "speed-up")
    ]
    assert [line.split()[:2] for line in lines if line.endswith("256 ")] == [["Swift", "13"], ["Super", "13"]]


def test_a_threshold_file_need_not_have_the_default(capsys):
    summary = summary_of(names=("accuracy",))
    for score in summary.first.scores.values():
        for name in [name for name in score.held_out if name != "99%"]:
            del score.held_out[name]
    print_summary(summary, Path("runs/joint"))
    words = " ".join(capsys.readouterr().out.split())
    assert "the threshold '1-SE'" in words
    assert "It was chosen on these same examples" in words
    assert "held out, 99%" in words


def test_equal_thresholds_are_one_row(capsys):
    """A Swift that is always right: nothing is deferred at any threshold that is chosen by quality."""
    print_summary(summary_of(swift_right=1.0), Path("joint"))
    words = " ".join(capsys.readouterr().out.split())
    others = ("held out, parity", "held out, 99.5%", "held out, 99%", "read here, 1-SE")
    assert "Left out, equal to 'held out, 1-SE': " + ", ".join(map(repr, others)) in words
    # What denies the success comes first, and the answer does not look like one.
    assert words.startswith(
        "Caution: the Super is worse than the Swift on these 400 examples (difference -6.75 points, right answers;"
    )
    assert "With this in mind: on dev.csv (intent), the Swift alone answers better than the Super (" in words


def test_what_the_default_may_lose_is_told_beside_the_lead(capsys):
    """The table says both; where all of the lead may be lost, a caution says what to do about it."""
    for right, loses in ((0.8, False), (0.94, True)):
        summary = summary_of(names=("accuracy",), swift_right=right)
        lead = 100 * (summary.first.super.quality - summary.first.swift.quality)
        allowed = 100 * summary.allowed_drop
        assert allowed >= 0.5
        assert (0 < lead <= allowed) == loses
        print_summary(summary, Path("joint"))
        words = " ".join(capsys.readouterr().out.split())
        here = f"on the 400 here the Super leads the Swift by {lead:.2f})"
        assert f"whichever is larger ({allowed:.2f} points on the examples that chose it; {here}" in words
        caution = (
            f"the threshold '1-SE' was allowed to lose {allowed:.2f} points, and the Super leads by {lead:.2f} here"
        )
        assert (caution in words) == loses
        assert ("Take '--threshold parity'" in words) == loses


def test_a_better_score_is_told_with_how_to_route_by_it(capsys):
    summary = summary_of()
    chance = {"difference": 0.3, "difference_low": -0.1, "difference_high": 0.6}
    for low, told in ((0.02, True), (-0.02, False)):
        better = {"difference": 0.1, "difference_low": low, "difference_high": 0.2}
        print_summary(replace(summary, areas={"entropy": better, LONG: chance, "max_softmax": {}}), Path("joint"))
        words = " ".join(capsys.readouterr().out.split())
        assert ("By area, entropy is better than max_softmax here" in words) == told
        assert ("`--score entropy` to `elang predict`, `serve` and `calibrate`" in words) == told


def test_thresholds_that_stand_for_the_super_alone_are_named_so(capsys):
    """None that costs less has the Super's quality, so all of it costs 1, and not more."""
    print_summary(summary_of(super_cost=1.05e9, names=("accuracy",)), Path("joint"))
    words = " ".join(capsys.readouterr().out.split())
    alone = "'held out, 1-SE', 'held out, parity', 'held out, 99.5%', 'held out, 99%', 'read here, 1-SE', 'read here, "
    assert f"Left out, equal to 'Super alone': {alone}parity'" in words
    assert "Super alone: also what 1-SE, parity and the shares stand for" in words


def test_always_answering_one_label_is_a_row(capsys):
    """By it a newcomer judges the others; where nearly all labels are one, accuracy alone is said to hide the rest."""
    print_summary(summary_of(names=("accuracy",)), Path("joint"))
    even = capsys.readouterr().out
    label = torch.randint(3, (400,), generator=torch.Generator().manual_seed(0))
    share = float(label.bincount().max()) / 400
    row = next(line for line in even.splitlines() if line.startswith("most frequent label "))
    assert row.split()[3:] == ["-", f"{share:.4f}", "-", "-"]
    assert f"the label of {share:.1%} of these examples" in " ".join(even.split())
    assert "hardly shows" not in even
    uneven = {"label": "ham", "share": 0.9, "qualities": {"accuracy": 0.9}}
    print_summary(replace(summary_of(names=("accuracy",)), most_frequent=uneven), Path("joint"))
    assert "90.0% of the labels are 'ham', so accuracy hardly shows" in " ".join(capsys.readouterr().out.split())
    print_summary(replace(summary_of(), most_frequent=uneven), Path("joint"))
    assert "hardly shows" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("caution", "said", "routing"),
    [
        ("", "To use the pair at '1-SE'; another", " --super_model runs/super --thresholds runs/joint/elang.json"),
        (f"{SWIFT_ALONE}, unless", "Use the Swift alone:", ""),
        (f"here {NO_PAIR}", "Do not build this pair: no threshold helps. Ask the Super alone", None),
    ],
)
def test_the_last_words_are_the_verdict_and_its_command(caution, said, routing, capsys):
    summary = replace(summary_of(), cautions=[caution], denied=int(bool(caution)))
    thresholds = ["--thresholds", "runs/joint/elang.json"]
    print_commands(summary, "my dev.csv", ["first", "second"], thresholds)
    *_, verdict, command = (lines := capsys.readouterr().out.splitlines())
    read = " --input 'my dev.csv' --text first second"
    pair = "--swift_model runs/swift --super_model runs/super --thresholds runs/joint/elang.json"
    assert f"  elang bench {pair}{read}" in lines
    if routing is None:
        assert " ".join(lines[-2:]).endswith("Ask the Super alone, or train a better Swift.")
        assert said in " ".join(lines)
        return
    assert said in (verdict if routing == "" else " ".join(lines))
    assert command == f"  elang predict --swift_model runs/swift{routing}{read} --output answers.jsonl"
    # Where the texts or the models are elsewhere.
    print_commands(summary, "", [], thresholds)
    assert "elang" not in capsys.readouterr().out


def test_thresholds_that_are_not_the_swifts_own_are_an_option():
    def manifest(threshold, super_="a"):
        entries = {"max_softmax": {"1-SE": {"threshold": threshold}}}
        return Manifest(["x", "y"], score="max_softmax", thresholds=entries, chosen_on={"super_sha256": super_})

    own, option = manifest(-0.5), ["--thresholds", "j/elang.json"]
    assert thresholds_option(own, None, "j/elang.json") == thresholds_option(own, own, "j/elang.json") == []
    # Batches move scores a little.
    assert thresholds_option(own, manifest(-0.500001), "j/elang.json") == []
    for other in (manifest(-0.6), manifest(-math.inf), manifest(-0.5, "b")):
        assert thresholds_option(own, other, "j/elang.json") == option
    assert thresholds_option(None, own, "j/elang.json") == option


def test_a_swift_that_keeps_one_label_is_told_with_the_recall_of_each(capsys):
    label = torch.tensor([0] * 60 + [1] * 40)
    costs = [torch.ones(100, dtype=torch.float64), torch.full((100,), 4.0, dtype=torch.float64)]
    answers = PairAnswers(label, label, label, torch.zeros_like(label), label.clone(), {}, *costs, {})
    deferred = torch.arange(100) >= 70
    (said,) = keeps_one(answers, ["ham", "spam"], deferred)
    assert said.startswith("100.0% of the 70 inputs that the Swift answers get 'ham', and 60.0% of the true labels: it")
    assert keeps_one(answers, ["ham", "spam"], None) == []
    # As many as there are, or with other labels among them, or too few of them.
    assert keeps_one(replace(answers, label=0 * label), ["ham", "spam"], deferred) == []
    assert keeps_one(replace(answers, swift=label), ["ham", "spam"], deferred) == []
    assert keeps_one(answers, ["ham", "spam"], torch.arange(100) >= 10) == []
    found = recalls(answers, ["ham", "spam", "never"], deferred)
    assert found == {
        "ham": {"examples": 60, "swift": 1.0, "pair": 1.0, "super": 1.0},
        "spam": {"examples": 40, "swift": 0.0, "pair": 0.75, "super": 1.0},
    }
    assert recalls(answers, [str(i) for i in range(7)], deferred) is None
    print_summary(replace(summary_of(), recalls=found), Path("joint"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["spam", "40", "0.0%", "75.0%", "100.0%"] in lines
    assert ["label", "examples", "Swift", "pair", "Super"] in lines


def test_a_row_that_defers_nothing_by_chance_has_all_metrics(capsys):
    """Then it is another row, and left out."""
    print_summary(summary_of(swift_right=1.0), Path("joint"))
    words = " ".join(capsys.readouterr().out.split())
    assert "'at random, 99%', 'oracle, 99%'." in words.partition("Left out, equal to 'held out, 1-SE'")[2]


def test_a_swift_that_is_too_large_is_told():
    assert little_to_save(1, 10) == little_to_save(34, 100) == little_to_save(1, math.nan) == ""
    assert "takes 50% of the Super's FLOPs, so no threshold can save more than 2.00x" in little_to_save(1, 2)
    assert little_to_save(1, 2) in summary_of(super_cost=2e9).cautions


@pytest.mark.parametrize(
    ("convention", "words"),
    [
        ("exact", ["Super's FLOPs", "x fewer FLOPs", "GFLOPs by the Swift alone", "count FLOPs", "FLOPs of the Super"]),
        ("seconds", ["Super's time", "x less time", "seconds by the Swift alone", "count seconds", "the time"]),
        ("money, in EUR", ["Super's cost", "x lower cost", "EUR by the Swift alone", "count EUR", "EUR of the Super"]),
    ],
)
def test_costs_are_called_what_they_are(capsys, convention, words):
    """In what is printed, cautions, names of points, figures' axes, and the notice of a threshold that costs more."""
    summary = summary_of(super_cost=2e9, convention=convention)
    print_summary(summary, Path("joint"))
    print_commands(summary, "dev.csv", ["text"], [])
    entry = {"threshold": 0.5, "speedup": 0.5, **counted_in(convention)}
    with pytest.warns(Notice) as given:
        warn_if_costly(Manifest(["a"], thresholds={"s": {"1-SE": entry}}), "s", "1-SE")
    printed = " ".join(capsys.readouterr().out.split())
    texts = [printed, *summary.cautions, *summary.first.scores["entropy"].on_this_set]
    texts += [drawing._cost_label(summary), str(given[0].message)]
    said = " | ".join(texts)
    for word in words:
        assert word in said
    assert ("FLOP" in said.replace("--model.super_flops", "")) == (convention == "exact")
    assert words_of(convention).saving in str(given[0].message)


@pytest.mark.parametrize(
    ("low", "high", "speedup", "share", "expected"),
    [
        (-0.015, 0.011, 1.79, 0.2, "The pair answers as well as the Super (accuracy 0.9000, the Super's 0."),
        (-0.015, 0.001, 1.79, 0.0, "The Swift alone answers nearly as well as the Super (accuracy 0.9000, the Su"),
        (
            -0.3,
            0.1,
            1.79,
            0.2,
            "The pair may answer worse than the Super (accuracy 0.9000",
        ),
        (-0.04, -0.01, 1.79, 0.2, "The pair answers worse than the Super ("),
        (0.01, 0.02, 1.79, 0.2, "The pair answers better than the Super ("),
        (0.0, 0.0, 0.8, 0.2, "The pair saves nothing: it answers as well as the Super ("),
        (0.0, 0.0, 0.8, 1.0, "The pair saves nothing: every input goes to the Super."),
        (-0.01, 0.01, math.nan, 0.2, "The pair answers as well as the Super ("),
    ],
)
def test_what_the_pair_saves_in_a_sentence(low, high, speedup, share, expected):
    summary = replace(summary_of(names=("accuracy",), super_cost=speedup * 8e9), task="")
    point = replace(summary.first.swift, quality=0.9, speedup=speedup, deferred_share=share)
    answer, *details = outcome(summary, point, {"difference": (low + high) / 2, "low": low, "high": high})
    assert answer.startswith(expected)
    ends = {True: "at 1.79x fewer FLOPs.", False: "and takes 1.25x the Super's FLOPs."}[speedup > 1]
    assert share == 1 or answer.endswith("what it saves is unknown." if math.isnan(speedup) else ends)
    words = " ".join(details)
    assert ("may be chance" in words) == (low < 0 < high)
    assert ("is more than chance" in words) == (low > 0 or high < 0)
    assert ("--model.super_flops" in words) == math.isnan(speedup)


@pytest.mark.parametrize(
    ("swift", "super_", "said"),
    [
        (1e9, 8e9, ["An input costs 1 GFLOPs by the Swift alone, 3 by the pair, 8 by the Super alone."]),
        (math.nan, 8e9, ["An input costs 8 GFLOPs by the Super alone.", "What the Swift costs is unknown"]),
        (1e9, math.nan, ["An input costs 1 GFLOPs by the Swift alone.", "What the Super costs is unknown"]),
        (math.nan, math.nan, ["What the Super costs is unknown", "What the Swift costs is unknown"]),
    ],
)
def test_only_costs_that_are_known_are_printed(swift, super_, said):
    """Records of others may lack them."""
    summary = summary_of(names=("accuracy",))
    first = summary.first
    first = replace(first, swift=replace(first.swift, cost=swift), super=replace(first.super, cost=super_))
    pair_cost = 3e9 if swift + super_ > 0 else math.nan
    point = replace(first.swift, deferred_share=0.2, cost=pair_cost, speedup=super_ / pair_cost)
    lines = outcome(replace(summary, qualities={"accuracy": first}), point, None)
    assert "nan" not in " ".join(lines)
    for line, expected in zip(lines[-len(said) :], said, strict=True):
        assert line.startswith(expected)


def test_a_threshold_is_explained_where_it_stands():
    """`calibrate` has a column of deferred shares, and no threshold by a share."""
    assert meanings(["threshold", "deferred"]) == [
        "deferred: share of the inputs that the Swift passes on to the Super"
    ]
    (by_share,) = meanings(["held out, defer 10%", "defer 30%"], told=["held out"])
    assert by_share.startswith("defer 10%, defer 30%: ")


def test_a_broken_promise_is_explained():
    said = {
        "statement": "At most 2%.",
        "same_slice": False,
        "warnings": ["it drifted"],
        "observed": 0.05,
        "allowed": 0.02,
    }
    assert statement_lines(said | {"verdict": "broken"}) == [
        *(
            "At most 2%.",
            "Here: broken, 5.000% where 2.000% is allowed (by more than chance explains).",
            "Warning: it drifted.",
        )
    ]
    assert statement_lines(said | {"same_slice": True})[1].startswith("It was chosen on these examples")


def test_results_are_titled_by_what_was_asked():
    hub = TextClassificationData("train", "validation", hub="owner/name@abc", label="intent")
    assert hub.title("validation") == "owner/name@abc (intent)"
    local = TextClassificationData("a/train.csv", "a/dev.csv", "a/test.csv", label="intent")
    assert [local.title(split) for split in ("validation", "test")] == ["dev.csv (intent)", "test.csv (intent)"]
    assert Seq2SeqData(validation="data/dev", source="en", target="de").title("validation") == "dev (en to de)"
    assert TaskData("glue/rte", splits=["validation"]).title("validation") == "glue/rte"


def test_a_line_over_compute_does_not_lead_back(monkeypatch):
    """Where everything is deferred the pair costs what the Super costs, less than one input before."""
    figures = []
    monkeypatch.setattr(drawing, "_save", lambda figure, path: figures.append(figure))
    drawing.plot_curves(Path("curve.png"), *curves_of())
    for axis, last in zip(figures[0].axes, (1.0, 1.125), strict=True):
        lines = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) > 2]
        assert len(lines) >= 4
        for x in lines:
            assert (x[1:] >= x[:-1]).all()
            assert x[-1] == pytest.approx(last, abs=0.01)
        # The Super alone is marked at its own compute.
        (alone,) = [text for text in axis.texts if text.get_text() == "Super alone"]
        assert alone.xy[0] == 1
        assert any(line.get_xydata().tolist() == [list(alone.xy)] for line in axis.lines)


def test_curves_are_computed_once(joint_args, tmp_path, monkeypatch):
    """Once for the routing slice, on which thresholds are chosen, and once for the evaluation set."""
    calls, found = [], pair.pair_curves
    for module in (pair, summaries):
        monkeypatch.setattr(
            module, "pair_curves", lambda answers, quality: calls.append(len(answers)) or found(answers, quality)
        )
    assert main(["validate", *joint_args, "--model.output", str(tmp_path / "joint")]) == 0
    assert sorted(calls)[0] == 61
    assert len(calls) == 2
