"""What a model's answers look like label by label: labels that are never right, or hardly ever given."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from elang.errors import listed
from elang.evaluation.pair import PairAnswers
from elang.method.quality.metric import Quality
from elang.tasks.kinds import measure

# With fewer examples, chance alone explains why none of a class is right.
_ENOUGH = 5
# What to do with a model that has learned too little, where the course of its training is not known.
AGAIN = (
    "Where the validation loss that `elang fit` printed rose, train for fewer epochs (--trainer.max_epochs) or with a "
    "third of --model.lr; where it fell to the end, train longer"
)
# From so many answers of the Swift's own it is told that this share of them is one label, which others are less by so
# much.
_FEW_KEPT, _NEARLY_ALL, _FEWER = 20, 0.99, 0.05
# Up to so many labels the recall of each is told.
_FEW_LABELS = 6


def never_right(prediction: Tensor, label: Tensor, label_names: list[str]) -> str:
    """The classes with five examples or more of which not one is answered right, in words; empty if there is none.

    Of the one with the most examples also what is answered instead. Predictions and labels are int64 ``(N,)``; a label
    is -1 if unknown, a prediction if it names no class.

    >>> never_right(torch.tensor([0] * 9), torch.tensor([0] * 4 + [1] * 5), ["a", "b"])
    "'b' (5 of the 5 examples of 'b' are answered 'a')"
    """
    right = (prediction == label) & (label >= 0)
    counts, hits = (x.bincount(minlength=len(label_names)).tolist() for x in (label[label >= 0], label[right]))
    never = [i for i in range(len(label_names)) if counts[i] >= _ENOUGH and hits[i] == 0]
    if not never:
        return ""
    worst = max(never, key=lambda i: counts[i])
    number, instead = (int(x) for x in (prediction[label == worst] + 1).bincount().max(0))
    answer = f"'{label_names[instead - 1]}'" if instead else "with none of the labels"
    names = listed([label_names[i] for i in never])
    return f"{names} ({number:,} of the {counts[worst]:,} examples of '{label_names[worst]}' are answered {answer})"


def most_frequent(label: Tensor, label_names: list[str]) -> tuple[int, float]:
    """The class that most of the known labels ``(N,)`` name, and its share of them; -1 if none is known."""
    known = label[label >= 0]
    if not len(known):
        return -1, math.nan
    count, most = torch.bincount(known, minlength=len(label_names)).max(0)
    return int(most), int(count) / len(known)


def always_one(answers: PairAnswers, label_names: list[str], qualities: Iterable[Quality]) -> dict[str, Any] | None:
    """What always answering the most frequent label would reach: ``label``, its ``share``, ``qualities`` by name."""
    most, share = most_frequent(answers.label, label_names) if answers.kind.has_classes else (-1, math.nan)
    if most < 0:
        return None
    always = torch.full_like(answers.label, most)
    reached = {q.name: measure(q, always, answers.label, targets=answers.targets) for q in qualities}
    return {"label": label_names[most], "share": share, "qualities": reached}


def no_better_than_one(prediction: Tensor, label: Tensor, label_names: list[str], remedy: str = AGAIN) -> str | None:
    """What to say of a model that is right no more often than the most frequent label alone would be."""
    most, share = most_frequent(label, label_names)
    known = int((label >= 0).sum())
    # An answer that is none of the labels is no right answer to an input without one.
    right = int(((prediction == label) & (label >= 0)).sum())
    if most < 0 or share == 1 or right > round(share * known):
        return None
    return (
        f"is right on {right / known:.1%}, and always answering '{label_names[most]}' would be right on {share:.1%}: "
        f"it has learned too little. {remedy}"
    )


def mostly_one(kept: Counter[Any], every: Counter[Any], whose: str) -> str:
    """What to say if nearly all answers that the Swift keeps are one label, and clearly fewer of ``every`` one are.

    >>> mostly_one(Counter(a=99, b=1), Counter(a=110, b=40), "all answers")
    "99.0% of the 100 inputs that the Swift answers get 'a', and 73.3% of all answers: it hardly gives another label"
    """
    if kept.total() < _FEW_KEPT:
        return ""
    ((label, count),) = kept.most_common(1)
    share, usual = count / kept.total(), every[label] / max(1, every.total())
    if share < _NEARLY_ALL or share - usual < _FEWER:
        return ""
    return (
        f"{share:.1%} of the {kept.total():,} inputs that the Swift answers get '{label}', and {usual:.1%} of {whose}: "
        "it hardly gives another label"
    )


def keeps_one(answers: PairAnswers, label_names: list[str], deferred: Tensor | None) -> list[str]:
    """A caution if nearly all inputs that are not ``deferred`` are answered by one label; ``None`` if unknown."""
    if deferred is None or not answers.kind.has_classes:
        return []
    kept, every = (
        Counter(label_names[i] for i in ids.tolist() if i >= 0) for ids in (answers.swift[~deferred], answers.label)
    )
    said = mostly_one(kept, every, "the true labels")
    return [f"{said}. See the share of each label that is found"] if said else []


def recalls(
    answers: PairAnswers, label_names: list[str], deferred: Tensor | None
) -> dict[str, dict[str, float]] | None:
    """Of each label its ``examples``, and the share that ``swift``, ``pair`` and ``super`` get right; ``None`` if many.

    The pair is as ``deferred`` says.
    """
    if deferred is None or not answers.kind.has_classes or len(label_names) > _FEW_LABELS:
        return None
    found = {
        "swift": answers.swift,
        "pair": torch.where(deferred, answers.super_, answers.swift),
        "super": answers.super_,
    }
    rows = {name: answers.label == place for place, name in enumerate(label_names)}
    return {
        name: {"examples": int(of.sum())}
        | {who: float((each[of] == place).double().mean()) for who, each in found.items()}
        for place, (name, of) in enumerate(rows.items())
        if of.any()
    }
