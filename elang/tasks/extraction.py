"""Finds the answer in a generated text: a choice's letter, a number, the first line, or what a pattern says."""

import re
from collections.abc import Callable
from functools import cache

from elang.errors import InputError
from elang.notices import notice
from elang.tasks.text_task import TextTask

# Private characters: in place of an answer, or of a reference, that was not found, so that no other text equals it.
_NO_ANSWER, _NO_REFERENCE = "\ue001", "\ue002"
# "The answer is (B)", "Answer: **B**", "option B".
_TOLD = re.compile(
    r"\b(?i:answer|choice|option)\b(?i:\s+(?:is|would be|should be|must be))?\s*[:=]?\s*"
    r"(?:[(\[{*\"'`$]|\\boxed\{|(?i:option|choice)\s)*([A-J])(?![\w'\u2019-])"
)
# A letter at the beginning; A and I are also words.
_FIRST = re.compile(r"\W*(?:([B-HJ])(?![\w'\u2019-])|([AI])(?=[).:,\]*]|\s*$|\s*\n)|([a-j])\W*$)")
_IN_BRACKETS = re.compile(r"[(\[]([A-Ja-j])[)\]]")
_ALONE = re.compile(r"(?<![\w'\u2019])(?:([B-HJ])(?![\w'\u2019-])|([AI])(?=[).:,\]*]|\s*$|\s*\n))")
# Words go first, so that their digits (H2O) are no numbers. A sign after a number or a word is a dash.
_NUMBER = re.compile(
    r"[^\W\d_]\w*|((?:(?<![\w)\].%])[-+\u2212])?[$€£]?(?:(?<=[$€£])[-\u2212])?"
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+))"
)


def _choice(text: str) -> str | None:
    """A letter from A to J: the last one that is told as the answer, else the first thing in the text, or the last."""
    told = _TOLD.findall(text)
    if told:
        return str(told[-1])
    first = _FIRST.match(text)
    others = [first.groups()] if first else _IN_BRACKETS.findall(text) or _ALONE.findall(text)
    return next((letter.upper() for letter in others[-1] if letter), None) if others else None


def _number(text: str) -> str | None:
    """The number after ``####``, or the last one, as Python writes it: without thousands separators and currency."""
    _, mark, marked = text.partition("####")
    numbers = [number for number in _NUMBER.findall(marked if mark else text) if number]
    if not numbers:
        return None
    return re.sub(r"[,+$€£]", "", numbers[0 if mark else -1].replace("e+", "e")).replace("\u2212", "-")


def _first_line(text: str) -> str | None:
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


_WAYS: dict[str, Callable[[str], str | None]] = {"choice": _choice, "number": _number, "first_line": _first_line}


@cache
def extractor(extract: str) -> Callable[[str], str | None]:
    """A function from a text to the answer in it, or ``None``, for the value of ``--data.extract``.

    Raises:
        InputError: If it is neither a name nor a regular expression with one group.

    >>> extractor("choice")("The answer is (B)."), extractor("number")("so 1,234.50 in all."), extractor("number")("?")
    ('B', '1234.50', None)
    """
    if extract in _WAYS:
        return _WAYS[extract]
    remedy = f"Give {', '.join(_WAYS)} or a regular expression with one group, around the answer."
    try:
        pattern = re.compile(extract)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"--data.extract '{extract}' is no regular expression ({error}). {remedy}") from error
    if pattern.groups != 1:
        raise InputError(f"--data.extract '{extract}' has {pattern.groups} groups. {remedy}")

    def search(text: str) -> str | None:
        match = pattern.search(text)
        return None if match is None or match[1] is None else match[1].strip()

    return search


def found_answers(task: TextTask, texts: list[str]) -> list[str | None]:
    """The answer in each generated text; ``None`` where none is found."""
    if task.next_example:
        texts = [text.partition(task.next_example)[0] for text in texts]
    return [extractor(task.extract)(text) for text in texts] if task.extract else [*texts]


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
    answers = map(extractor(task.extract), references)
    return [_NO_REFERENCE if answer is None else answer for answer in answers]
