"""What an answer is worth by itself, and a metric of one model's answers."""

import torch
from torch import Tensor

from elang.errors import InputError
from elang.method.quality.metric import Quality
from elang.method.quality.texts import TEXT_METRICS, worth_metric
from elang.tasks.text_task import TextTask


def measure(quality: Quality, prediction: Tensor, label: Tensor, targets: dict[str, Tensor]) -> float:
    """A metric of one set of predictions, with the columns that it reads besides the label."""
    target = label if quality.target == "label" else targets[quality.target]
    return quality(prediction, target, targets.get("group"))


def check_qualities(names: list[str], task: TextTask) -> None:
    """Refuse metrics of texts where there are labels, and the other way round.

    Raises:
        InputError: Naming the first one.
    """
    if wrong := [name for name in names if (name in TEXT_METRICS) != task.kind.generates]:
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
