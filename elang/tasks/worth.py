"""What an answer is worth by itself, and a metric of one model's answers."""

from typing import Any

import torch
from torch import Tensor

from elang.errors import InputError
from elang.method.quality.metric import Quality
from elang.method.quality.texts import TEXT_METRICS, worth_metric
from elang.tasks.text_task import Problem, TextTask


def reward(prediction: Tensor, label: Tensor, targets: dict[str, Tensor], problem: Problem) -> Tensor:
    """What each answer is worth by itself: 1 if right and 0 if wrong, the negative absolute error in a regression.

    Where several answers are right (``targets["answer_f1"]``), the answer's F1; of generated texts
    (``targets["worth"]``) that of the sentence. float64 ``(N,)``.
    """
    if problem == "regression":
        return -(prediction - label).abs().double()
    if table := {"answer_f1", "worth"} & targets.keys():
        worth = targets[min(table)].double()
        return worth.gather(1, prediction.clamp_min(0)[:, None]).squeeze(1) * (prediction >= 0)
    return (prediction == label).double()


def worth_of(problem: Problem, quality: str, targets: dict[str, Tensor]) -> dict[str, Any]:
    """The most that :func:`reward` says of an answer (``None`` where it has no bounds), and what it counts."""
    if problem == "sequence":
        unit = worth_metric(quality)
        return {"largest": 100.0 if unit == "chrf" else 1.0, "unit": f"{unit}, from 0 to 1"}
    if problem == "regression":
        return {"largest": None, "unit": "negative absolute error"}
    return {"largest": 1.0, "unit": "F1 of the answer" if "answer_f1" in targets else "right answers"}


def measure(quality: Quality, prediction: Tensor, label: Tensor, targets: dict[str, Tensor]) -> float:
    """A metric of one set of predictions, with the columns that it reads besides the label."""
    target = label if quality.target == "label" else targets[quality.target]
    return quality(prediction, target, targets.get("group"))


def check_qualities(names: list[str], task: TextTask) -> None:
    """Refuse metrics of texts where there are labels, and the other way round.

    Raises:
        InputError: Naming the first one.
    """
    if wrong := [name for name in names if (name in TEXT_METRICS) != (task.problem == "sequence")]:
        raise InputError(f"'{wrong[0]}' is no metric of a {task.problem} task; its own are {task.qualities}.")


def text_targets(
    qualities: list[str], references: list[str], swift: list[str], super_: list[str] | None = None
) -> dict[str, Tensor]:
    """What metrics of texts read: for each its statistics of the texts to choose from, and their ``worth``.

    Args:
        qualities: Names of :data:`~elang.method.quality.texts.TEXT_METRICS`; the first says what a sentence is worth.
        references: ``N``.
        swift: The first text to choose.
        super_: The second.

    Returns:
        For each metric, and the one that tells the worth, ``(N, K, S)``; ``worth``, float64 ``(N, K)``.
    """
    choices = [swift, *([super_] if super_ is not None else [])]
    worth = worth_metric(qualities[0])
    needed = dict.fromkeys([*qualities, worth])
    found = {name: torch.stack([TEXT_METRICS[name][0](c, references) for c in choices], 1) for name in needed}
    return found | {"worth": TEXT_METRICS[worth][1](found[worth])}


def measure_texts(qualities: list[str], texts: list[str], references: list[str]) -> dict[str, float]:
    """Metrics of one model's texts, by name."""
    found = {}
    for name in qualities:
        statistics, value = TEXT_METRICS[name]
        found[name] = float(value(statistics(texts, references).sum(0, dtype=torch.float64)))
    return found
