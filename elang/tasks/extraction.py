"""Finds the answer in a generated text: a choice's letter, a number, the first line, or what a pattern says."""

import re
from collections.abc import Callable
from functools import cache

import regex

from elang.errors import InputError
from elang.notices import notice
from elang.tasks.text_task import TextTask

# What a pattern of the user's own may take for a text.
_MOST_SECONDS = 0.5
# Private characters: in place of an answer, or of a reference, that was not found, so that no other text equals it.
_NO_ANSWER, _NO_REFERENCE = "\ue001", "\ue002"
# "The answer is (B)", "Answer: **B**", "option B", "answer: b"; a, i and I are words, too ("Answer: I think"), so they
# are letters only at an end, and other small ones may be of a formula: f(x), e = 2.7.
_TOLD = re.compile(
    r"\b(?i:answer|choice|option)\b(?i:\s+(?:is|would be|should be|must be))?\s*[:=]?\s*"
    r"(?:[(\[{*\"'`$]|\\boxed\{|(?i:option|choice)\s)*"
    r"([A-HJ]|[b-hj](?!\.\w|[(+/^]|\s*=)|[aiI](?=[).:,;\]}*\"'`$]|\s*$|\s*\n)(?!\.\w))(?![\w'\u2019-])"
)
# A letter at the beginning; A and I are also words.
_FIRST = re.compile(r"\W*(?:([B-HJ])(?![\w'\u2019-])|([AI])(?=[).:,\]*]|\s*$|\s*\n)|([a-j])\W*$)")
_IN_BRACKETS = re.compile(r"[(\[]([A-Ja-j])[)\]]")
_ALONE = re.compile(r"(?<![\w'\u2019])(?:([B-HJ])(?![\w'\u2019-])|([AI])(?=[).:,\]*]|\s*$|\s*\n))")
# Words go first, so that their digits (H2O) are no numbers, then digits in three or more parts: 1.2.3, dates.
_DIGITS = r"\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?(?:[eE][-+\u2212]?\d+)?|(?<!\.)\.\d+"
_NUMBER = re.compile(
    r"[^\W\d_]\w*|\d+([./-])\d+(?:\1\d+)+|"
    # A sign after a number or a word is a dash.
    r"(?P<sign>(?:(?<![\w)\].%])[-+\u2212])?)[$€£]?(?P<minus>(?:(?<=[$€£])[-\u2212])?)"
    r"(?:(?P<whole>\d{1,15} )?(?P<top>\d{1,15})/(?P<bottom>\d{1,15})(?!\d|[./]\d)"
    rf"|(?P<digits>{_DIGITS}))"
)


def _choice(text: str) -> str | None:
    """A letter from A to J: the last one that is told as the answer, else the first thing in the text, or the last."""
    told = _TOLD.findall(text)
    if told:
        return str(told[-1]).upper()
    first = _FIRST.match(text)
    others = [first.groups()] if first else _IN_BRACKETS.findall(text) or _ALONE.findall(text)
    return next((letter.upper() for letter in others[-1] if letter), None) if others else None


def _number(text: str) -> str | None:
    """The number after ``####``, or the last one, as Python writes it: without thousands separators and currency."""
    _, mark, marked = text.partition("####")
    matches = [match for match in _NUMBER.finditer(marked if mark else text) if match["digits"] or match["bottom"]]
    if not matches:
        return None
    found = matches[0 if mark else -1]
    digits = found["digits"]
    if digits is None:
        if not (bottom := int(found["bottom"])):
            return None
        digits = repr(int(found["whole"] or 0) + int(found["top"]) / bottom).removesuffix(".0")
    sign = "-" if {"-", "\u2212"} & {found["sign"], found["minus"]} else ""
    return sign + digits.replace(",", "").replace("e+", "e").replace("\u2212", "-")


def _first_line(text: str) -> str | None:
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


_WAYS: dict[str, Callable[[str], str | None]] = {"choice": _choice, "number": _number, "first_line": _first_line}


class SlowPatternError(Exception):
    """A regular expression takes too long on a text."""


@cache
def extractor(extract: str) -> Callable[[str], str | None]:
    """A function from a text to the answer in it, or ``None``, for the value of ``--data.extract``.

    It raises a :class:`SlowPatternError` where a regular expression takes too long on a text.

    Raises:
        InputError: If it is neither a name nor a regular expression with one group.

    >>> extractor("choice")("The answer is (B)."), extractor("number")("so 1,234.50 in all."), extractor("number")("?")
    ('B', '1234.50', None)
    """
    if extract in _WAYS:
        return _WAYS[extract]
    remedy = f"Give {', '.join(_WAYS)} or a regular expression with one group, around the answer."
    try:
        pattern = regex.compile(extract)
    except (regex.error, OverflowError, RecursionError) as error:
        raise InputError(f"--data.extract '{extract}' is no regular expression ({error}). {remedy}") from error
    if pattern.groups != 1:
        raise InputError(f"--data.extract '{extract}' has {pattern.groups} groups. {remedy}")

    def search(text: str) -> str | None:
        try:
            match = pattern.search(text, timeout=_MOST_SECONDS)
        except TimeoutError as error:
            raise SlowPatternError(
                f"--data.extract '{extract}' takes more than {_MOST_SECONDS} s on a text of {len(text)} characters. "
                "Write it without repeats within repeats, as (a+)+ is."
            ) from error
        return None if match is None or match[1] is None else match[1].strip()

    return search


def found_answers(task: TextTask, texts: list[str]) -> list[str | None]:
    """The answer in each generated text; ``None`` where none is found."""
    if task.next_example:
        texts = [text.partition(task.next_example)[0] for text in texts]
    return [_found(task.extract, text) for text in texts] if task.extract else [*texts]


def answer_in(task: TextTask, label: str | float | None) -> str | None:
    """The answer in a generated text; ``None`` if none is found, or the task does not say how to find one."""
    return found_answers(task, [str(label)])[0] if task.extract and label is not None else None


def _found(extract: str, text: str) -> str | None:
    """The answer in a text; none, and a notice, where the pattern takes too long."""
    try:
        return extractor(extract)(text)
    except SlowPatternError as slow:
        notice("slow-pattern", f"{slow} Such texts count as without an answer.")
        return None


def comparable(task: TextTask, texts: list[str], where: str = "") -> list[str]:
    """Generated texts as metrics compare them with :func:`comparable_references`: the answers found in them.

    Where nothing is found, the answer is wrong. A notice counts these if it is told ``where`` the texts are.
    """
    answers = found_answers(task, texts)
    if where and (missing := answers.count(None)):
        notice(
            "no-answer-found",
            f"--data.extract {task.extract} finds no answer in {missing} of {len(texts)} texts {where}: they count as "
            "wrong.",
        )
    return [_NO_ANSWER if answer is None else answer for answer in answers]


def comparable_references(task: TextTask, references: list[str]) -> list[str]:
    """References as metrics compare them: the answers found in them. One without an answer makes all texts wrong."""
    if not task.extract:
        return references
    answers = [_found(task.extract, reference) for reference in references]
    return [_NO_REFERENCE if answer is None else answer for answer in answers]
