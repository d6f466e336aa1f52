"""Metrics of generated text: the libraries' numbers, and their sums at every threshold."""

import random

import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF

from elang.errors import InputError
from elang.method.curve.exact import operating_curve
from elang.method.curve.reading import at_threshold
from elang.method.quality.registry import QUALITIES, text_quality
from elang.method.quality.texts import TEXT_METRICS, signature
from elang.tasks.kinds import text_targets

WORDS = ["the", "a", "big", "small", "dog", "cat", "sleeps", "in", "on", "park", "house", ",", ".", "!"]
WORDS += ["Straße", "größer", "„ob“", "東京", "don't", "U.S.", "3.5"]


def sentences(n, seed, empty=0.05):
    rng = random.Random(seed)
    return ["" if rng.random() < empty else " ".join(rng.choices(WORDS, k=rng.randint(1, 14))) for _ in range(n)]


def noisy(texts, seed, change):
    rng = random.Random(seed)
    return [
        " ".join(rng.choice(WORDS) if rng.random() < change else w for w in t.split() if rng.random() > change / 2)
        for t in texts
    ]


def library(name, texts, references):
    return {"bleu": BLEU, "chrf": CHRF}[name]().corpus_score(texts, [references]).score


def value(name, texts, references):
    statistics, metric = TEXT_METRICS[name]
    return float(metric(statistics(texts, references).sum(0, dtype=torch.float64)))


@pytest.mark.parametrize("name", ["bleu", "chrf"])
@pytest.mark.parametrize("seed", range(20))
def test_the_librarys_number(name, seed):
    references = sentences(1 + seed * 3, seed)
    texts = noisy(references, seed, 0.1 + 0.04 * seed)
    assert value(name, texts, references) == pytest.approx(library(name, texts, references), abs=1e-9)


@pytest.mark.parametrize("name", ["bleu", "chrf"])
@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("", ""),
        ("", "a cat"),
        ("a cat", ""),
        ("a", "a"),
        ("a cat", "a cat"),
        ("a big cat runs", "a small dog sleeps"),
        ("x y z w v", "a b c d e"),
        ("東京", "東京 。"),
        ("a a a a a a", "a a"),
    ],
)
def test_the_librarys_number_of_one_sentence(name, text, reference):
    assert value(name, [text], [reference]) == pytest.approx(library(name, [text], [reference]), abs=1e-9)


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_curve_is_the_librarys_at_any_threshold(name):
    """50 random thresholds, ties among the scores; both ends exactly."""
    references = sentences(200, 1)
    swift, super_ = noisy(references, 2, 0.5), noisy(references, 3, 0.15)
    score = torch.randint(0, 40, (200,), generator=torch.Generator().manual_seed(4)).double() / 7
    statistics, metric = TEXT_METRICS[name]
    a, b = statistics(swift, references), statistics(super_, references)
    curve = operating_curve(score, a, b, metric)
    rng = random.Random(5)
    for threshold in [rng.uniform(-1, 7) for _ in range(50)]:
        mixed = [y if s > threshold else x for x, y, s in zip(swift, super_, score.tolist(), strict=True)]
        expected = library(name, mixed, references)
        assert float(curve.quality[at_threshold(curve, threshold)]) == pytest.approx(expected, abs=1e-9)
    assert float(curve.quality[0]) == value(name, swift, references)
    assert float(curve.quality[-1]) == value(name, super_, references)


def test_qualities_choose_between_two_texts():
    references = sentences(30, 1)
    both = [noisy(references, 2, 0.4), noisy(references, 3, 0.1)]
    chosen = torch.arange(30) % 2
    mixed = [both[k][i] for i, k in enumerate(chosen.tolist())]
    for name, (statistics, _) in TEXT_METRICS.items():
        target = torch.stack([statistics(texts, references) for texts in both], 1)
        assert QUALITIES[name](0)(chosen, target) == pytest.approx(value(name, mixed, references), abs=1e-12)
    with pytest.raises(InputError, match=r"shape \(N, K, S\)"):
        QUALITIES["bleu"](0)(chosen, torch.zeros(30, 10))


def test_hand_worked():
    assert value("exact_text", ["a b ", "c"], ["a b", "d"]) == 0.5
    # 2 of 3 and 1 of 2 words in place.
    assert value("token_accuracy", ["a b x", "c"], ["a b", "c d"]) == pytest.approx(3 / 5)
    assert value("token_accuracy", ["", ""], ["", ""]) == 0
    # Common subsequence "a c" of 3 and 2 words.
    assert value("rouge_l", ["a b c"], ["a c"]) == pytest.approx(2 * (2 / 3) / (2 / 3 + 1))
    assert value("rouge_l", [""], ["a c"]) == 0


def test_worth_of_a_sentence_is_its_chrf():
    texts, references = ["a big cat", "", "x"], ["a big dog", "a", "x"]
    expected = [library("chrf", [t], [r]) for t, r in zip(texts, references, strict=True)]
    assert text_targets(["bleu"], references, texts)["worth"][:, 0].tolist() == pytest.approx(expected)
    assert text_targets(["exact_text"], references, texts)["worth"][:, 0].tolist() == [0, 0, 1]


def test_signatures():
    assert signature("bleu").startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert signature("chrf").startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
    assert signature("rouge_l") == "rouge_l"
    assert "|tok:zh|" in signature("bleu_zh")


@pytest.mark.parametrize("tokenize", ["zh", "char"])
def test_texts_without_blanks(tokenize):
    references, texts = ["今天天气很好。", "我们去公园 walk"], ["今天天气好。", "我们去了公园"]
    expected = BLEU(tokenize=tokenize).corpus_score(texts, [references]).score
    assert value(f"bleu_{tokenize}", texts, references) == pytest.approx(expected, abs=1e-9)
    assert expected > 1


@pytest.mark.parametrize("name", sorted(TEXT_METRICS))
def test_a_metric_of_texts_takes_the_chosen_ones(name):
    quality = text_quality(name)(2)
    assert (quality.name, quality.target) == (name, name)
    assert quality.value is TEXT_METRICS[name][1]
    table = torch.arange(24).view(4, 2, 3)
    found = quality.statistics(torch.tensor([0, 1, 1, 0]), table)
    assert torch.equal(found, torch.stack([table[0, 0], table[1, 1], table[2, 1], table[3, 0]]))
    for prediction, target in ((torch.zeros(3).long(), table), (torch.zeros(4).long(), table[:, 0])):
        with pytest.raises(InputError) as refused:
            quality.statistics(prediction, target)
        assert str(refused.value) == (
            f"'{name}' needs the statistics of the texts to choose from, shape (N, K, S), and the chosen ones, shape "
            f"(N,), but was given {tuple(target.shape)} and {tuple(prediction.shape)}."
        )


SHORT = [
    ("The U.S. Army!", "us army"),
    ("Barack Obama", "Obama"),
    ("an apple a day", "the apple, day by day"),
    ("", "x"),
    ("x", ""),
    (".", "!"),
    ("1976", "1976"),
    ("in 1976", "1976"),
    ("the the cat", "cat cat"),
    ("größer", "Größer"),
    ("x-ray", "xray"),
]


def test_short_answers_are_compared_as_in_squad():
    from torchmetrics.functional.text import squad

    for text, reference in SHORT:
        expected = squad(
            {"prediction_text": text, "id": "1"}, {"answers": {"answer_start": [0], "text": [reference]}, "id": "1"}
        )
        assert value("token_f1", [text], [reference]) == pytest.approx(float(expected["f1"]) / 100), text
        assert value("exact_answer", [text], [reference]) == float(expected["exact_match"]) / 100, text
    both = [list(side) for side in zip(*SHORT, strict=True)]
    mean = sum(value("token_f1", [a], [b]) for a, b in SHORT) / len(SHORT)
    assert value("token_f1", *both) == pytest.approx(mean)
    # An article alone is an answer, too: a choice.
    assert value("exact_answer", ["A", "", "B"], ["(A)", "A", "A"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("text", "reference", "same"),
    [
        ("1,000", "1000.0", True),
        ("$1000", "1000", True),
        ("-$5", "-5.0", True),
        ("\u22125", "-5", True),
        ("42.", "42", True),
        ("18%.", "18", True),
        ("1e3", "1,000.00", True),
        ("1.0000005", "1", True),
        ("0", "-0.0", True),
        ("1.000002", "1", False),
        ("1,00", "100", False),
        ("7 apples", "7", False),
        ("nan", "nan", False),
        ("inf", "inf", False),
        ("1_0", "10", False),
        ("", "", False),
        ("x", "x", False),
    ],
)
def test_equal_numbers(text, reference, same):
    assert value("number_match", [text], [reference]) == same
    assert value("number_match", [reference], [text]) == same
