"""The sampled inputs of a watch as a stream of numbers: what is known of regret, disagreement and worth of each."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elang.data.examples import content_key
from elang.errors import InputError
from elang.evaluation.watch_log import Run, Sampled
from elang.json_files import shown
from elang.method.certificate import mixed
from elang.method.quality.texts import TEXT_METRICS, full_mark, worth_metric
from elang.tasks.extraction import comparable, comparable_references
from elang.tasks.text_task import TextTask


@dataclass(frozen=True)
class Stream:
    """Sampled inputs in their order, with what is known of each.

    Attributes:
        time: Of the answer, float64 ``(N,)``.
        score: Of the Swift, ``(N,)``; NaN if it was not asked.
        kept: Whether the Swift's answer was used, ``(N,)``.
        differs: Bounds of "it is used, and differs from the Super's", ``(2, N)``.
        gain: Bounds of how much better the Super's answer is than the one that was used, ``(2, N)``.
        worth: Bounds of what the answer that was used is worth, ``(2, N)``.
        known: Whether a label says it, ``(N,)``.
        waiting: Which inputs a label would tell something about, ``(N,)``.
        even: Inputs that are left if those of times with a larger share are thinned to the smallest share, ``(N,)``.
        ids: Of the inputs.
    """

    time: Tensor
    score: Tensor
    kept: Tensor
    differs: Tensor
    gain: Tensor
    worth: Tensor
    known: Tensor
    waiting: Tensor
    even: Tensor
    ids: list[str]


def stream_of(runs: Iterable[Run], metric: str | None = None) -> Stream:
    """The sampled inputs of some runs. ``metric`` says what a generated text is worth; by default 1 if it is right.

    Raises:
        InputError: If labels are given as texts, but the log has none of the texts.
    """
    rows: list[tuple[Any, ...]] = []
    ids: list[str] = []
    for run in runs:
        ordered = sorted(run.sampled.items(), key=lambda item: item[1].seen)
        worths = _worths(run, [one for _, one in ordered], metric)
        for (name, one), (swift, super_) in zip(ordered, worths, strict=True):
            ids.append(name)
            rows.append(_row(one, swift, super_))
    table = torch.tensor(rows, dtype=torch.float64).view(len(rows), 12).T
    share, key = table[11], torch.tensor([content_key((name,)) for name in ids], dtype=torch.int64)
    even = mixed(key).double() / 2**53 < (share.min() / share if len(rows) else share)
    known, waiting = table[9] > 0, table[10] > 0
    return Stream(table[0], table[1], table[2] > 0, table[3:5], table[5:7], table[7:9], known, waiting, even, ids)


def _row(one: Sampled, swift: float | None, super_: float | None) -> tuple[float, ...]:
    used = swift if one.kept else super_
    if not one.kept:
        gain = (0.0, 0.0)
    elif swift is not None and super_ is not None:
        gain = (super_ - swift,) * 2
    elif one.differs is False:
        gain = (0.0, 0.0)
    else:
        gain = (-(1.0 if swift is None else swift), 1.0 - (swift or 0.0))
    differs = (0.0, 1.0) if one.differs is None else (float(one.differs),) * 2
    worth = (0.0, 1.0) if used is None else (used, used)
    waiting = used is None and one.kept and one.differs is not False
    return (one.time, one.score, one.kept, *differs, *gain, *worth, used is not None, waiting, one.share)


def _worths(run: Run, sampled: list[Sampled], metric: str | None) -> list[tuple[float | None, float | None]]:
    """What both answers of each input are worth, as far as labels say it."""
    texts = run.about.get("answers") == "texts"
    worths = [one.worth for one in sampled]
    labelled = [i for i, one in enumerate(sampled) if one.label is not None]
    if not texts:
        names = run.about.get("label_names")
        for i in labelled:
            one = sampled[i]
            if names and one.label not in names:
                raise InputError(f"A label is {shown(one.label)}, which is none of the pair's: {', '.join(names)}.")
            worths[i] = (_right(one.swift, one.label), _right(one.super_, one.label))
        return worths
    if not labelled:
        return worths
    if not run.about.get("texts"):
        raise InputError(
            "The log has no texts to compare labels with. Serve with --shadow_texts, or give the worth of both answers "
            "as columns swift and super."
        )
    if (name := worth_metric(metric or "exact_text")) not in TEXT_METRICS:
        raise InputError(f"There is no --metric '{metric}'; there are {', '.join(TEXT_METRICS)}.")
    task = TextTask.of([], {"problem": "sequence", "extract": run.about.get("extract", "")})
    statistics, value = TEXT_METRICS[name]
    references = comparable_references(task, [str(sampled[i].label) for i in labelled])
    for place, attribute in enumerate(("swift", "super_")):
        answers = [getattr(sampled[i], attribute) for i in labelled]
        found = value(statistics(comparable(task, [str(answer) for answer in answers]), references)) / full_mark(name)
        for i, answer, worth in zip(labelled, answers, found.tolist(), strict=True):
            pair = list(worths[i])
            pair[place] = None if answer is None else min(1.0, max(0.0, worth))
            worths[i] = (pair[0], pair[1])
    return worths


def _right(answer: str | None, label: str | None) -> float | None:
    return None if answer is None else float(answer == label)
