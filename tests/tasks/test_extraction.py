"""The answer in a generated text: what is found, what is not, and what that does to metrics."""

import json

import pytest

from elang import InputError, Seq2SeqData
from elang.method.quality.texts import TEXT_METRICS
from elang.notices import Notice
from elang.tasks.extraction import comparable, comparable_references, extractor, found_answers
from elang.tasks.kinds import measure_texts, text_targets
from elang.tasks.text_task import TextTask


def task_of(extract, **more):
    return TextTask([], "sequence", segments=[], extract=extract, **more)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is (B).", "B"),
        ("Answer: **C**", "C"),
        ("the correct answer is D, not A", "D"),
        ("First I thought the answer is A. No: the answer is B", "B"),
        ("So $\\boxed{E}$ it is", "E"),
        ("We choose option E", "E"),
        ("The correct option is: (D) a dog", "D"),
        ("B", "B"),
        (" b\n", "B"),
        ("(c)", "C"),
        ("B) Paris", "B"),
        ("A. Paris", "A"),
        ("A", "A"),
        ("B because (A) is wrong", "B"),
        ("Between (a) and (c), it is (c)", "C"),
        ("I think it is C.", "C"),
        ("The answer is not B but C", "C"),
        ("J", "J"),
        ("answer: c", "C"),
        ("the answer is c because of that", "C"),
        ("Answer: a", "A"),
        ("ANSWER: (i).", "I"),
        ("the answer is \\boxed{a}", "A"),
        ("answer: a.m.", None),
        ("option e.g. a dog", None),
        ("the answer is c'est la vie", None),
        ("The answer is i think a dog", None),
        ("Answer: I think it is (C)", "C"),
        ("The answer is I.", "I"),
        ("We need the answer f(x) to x, which is (B)", "B"),
        ("an answer e = 2.7 would be B", "B"),
        ("A dog", None),
        ("I do not know", None),
        ("The answer is a dog", None),
        ("none of these", None),
        ("C'est la vie, B-flat", None),
        ("K", None),
        ("", None),
    ],
)
def test_the_letter_of_a_choice(text, answer):
    assert extractor("choice")(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### -1,234\n\nQuestion: 5", "-1234"),
        ("12 apples at $1,000.50.", "1000.50"),
        ("That makes 42.", "42"),
        ("x = -5", "-5"),
        ("x = \u22125", "-5"),
        ("between 10-15", "15"),
        ("-$7", "-7"),
        ("$-7", "-7"),
        ("18%", "18"),
        ("1.5e+3", "1.5e3"),
        ("so \\boxed{42}", "42"),
        ("3kg of H2O", "3"),
        ("12, 13", "13"),
        ("1,2345", "2345"),
        (".5", ".5"),
        ("+5", "5"),
        ("#### none of the 3", "3"),
        ("#### none", None),
        ("H2O", None),
        ("so 1,234.5", "1234.5"),
        ("3.", "3"),
        ("3e5", "3e5"),
        ("\u22123e\u22125", "-3e-5"),
        ("...5", "5"),
        ("1/2", "0.5"),
        ("That is -1/4.", "-0.25"),
        ("3 1/2", "3.5"),
        ("6/3", "2"),
        ("1/0", None),
        ("4 apples/5", "5"),
        ("1.2.3", None),
        ("version 1.2.3 has 4", "4"),
        ("on 30/11/2026", None),
        ("2026-11-30", None),
        ("9" * 6000 + "/7", "7"),
        ("seven", None),
        ("", None),
    ],
)
def test_the_number(text, answer):
    assert extractor("number")(text) == answer


def test_lines_and_patterns():
    assert extractor("first_line")("\n  Paris \nis it") == "Paris"
    assert extractor("first_line")(" \n") is None
    assert extractor(r"<a>(.*?)</a>")("x <a> 1 </a> <a>2</a>") == "1"
    assert extractor(r"x|(y)")("x") is None
    assert extractor(r"#### (-?\d+)")("none") is None


@pytest.mark.parametrize(
    ("extract", "words"),
    [
        ("choise", r"has 0 groups\. Give choice, number, first_line or a regular expression with one group"),
        (r"(a)(b)", "has 2 groups"),
        ("(a", "is no regular expression .*missing"),
        ("(a{99999999999})", "is no regular expression"),
    ],
)
def test_what_is_no_way_to_extract(extract, words):
    with pytest.raises(InputError, match=words):
        Seq2SeqData("train.csv", extract=extract)


def test_what_was_not_found_is_wrong_by_every_metric():
    """Also where the reference is empty, or has no answer itself."""
    task = task_of(r"answer:(.*)")
    texts, references = ["answer: 7", "7", "answer:", "?"], ["answer: 7", "answer: 7", "answer:", "?"]
    with pytest.warns(Notice, match=r"--data\.extract answer:\(\.\*\) finds no answer in 2 of 4 texts on 'x'"):
        found = comparable(task, texts, "on 'x'")
    assert found_answers(task, texts) == ["7", None, "", None]
    expected = comparable_references(task, references)
    for name, (statistics, value) in TEXT_METRICS.items():
        each = [float(value(statistics([a], [b]).double().sum(0))) for a, b in zip(found, expected, strict=True)]
        # BLEU of one word has no longer n-grams, and chrF and ROUGE of nothing are 0.
        assert (each[1], each[3]) == (0, 0), name
        if name in ("exact_text", "exact_answer"):
            assert each == [1, 0, 1, 0]


def test_metrics_compare_what_was_found():
    task = task_of("number")
    references, swift, super_ = ["#### 7", "#### 1,000"], ["It is 7.", "none"], ["7.0", "about $1000"]
    targets = text_targets(["number_match", "exact_text"], references, swift, super_, task)
    assert targets["worth"].tolist() == [[1, 1], [0, 1]]
    assert targets["exact_text"][..., 0].tolist() == [[1, 0], [0, 1]]
    with pytest.warns(Notice, match="1 of 2 texts on 'validation'"):
        values = measure_texts(["number_match"], swift, references, task, "on 'validation'")
    assert values == {"number_match": 0.5}
    # As they are.
    assert measure_texts(["number_match"], swift, references) == {"number_match": 0.0}
    assert measure_texts(["exact_text"], ["a 1"], ["b 1"], task_of("")) == {"exact_text": 0.0}


def test_an_answer_ends_where_the_next_example_begins():
    task = task_of("number", prompt="Q: {text}\nA:", examples=["Q: 1\nA:", "1"])
    assert found_answers(task, ["7\n\nQ: what is 9 ?\nA: 9"]) == ["7"]
    assert comparable(task_of("", prompt="Q: {text}", examples=["Q: 1", "1"]), ["7\n\nQ: 9"]) == ["7"]


# Nested repeats, which no search optimises away.
SLOW = r"(?:(?:a|aa)+)+$(x)"


def test_a_pattern_that_takes_too_long(tmp_path):
    """In a reference it is refused; in a generated text it finds nothing, and a notice says why."""
    text = "ab" * 30 + "a" * 60 + "xx"
    with pytest.warns(Notice, match=r"takes more than 0.5 s on a text of 122 characters. Write it without repeats"):
        assert found_answers(task_of(SLOW), ["aax", text]) == [None, None]
    (tmp_path / "x.jsonl").write_text(json.dumps({"source": "a", "target": text}))
    data = Seq2SeqData(validation=str(tmp_path / "x.jsonl"), extract=SLOW, qualities=["exact_answer"])
    with pytest.raises(InputError, match=r"takes more than 0.5 s .* It was a reference of .*x.jsonl"):
        data.read("validation")
