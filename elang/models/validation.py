"""What a model is worth on a split: checks before it is evaluated, its metrics, and what they leave out."""

from typing import Any

from torch import Tensor

from elang.backends.loading.families import check_words
from elang.backends.text_model import TextModel
from elang.errors import InputError, listed
from elang.method.quality.metric import Quality
from elang.notices import notice
from elang.records.manifest import Manifest
from elang.records.table import Records
from elang.tasks.kinds import measure, measure_texts
from elang.tasks.text_task import TextTask


def check_own_head(model: TextModel, path: str, task: TextTask, trained_on: Manifest | None) -> None:
    """Refuse to evaluate a head that is untrained, or that answers something else than the data asks.

    Args:
        model: What would be evaluated.
        path: Where it is from.
        task: The data's.
        trained_on: What its folder says of it.

    Raises:
        InputError: Naming the head's new weights, or both tasks.
    """
    if model.new_weights:
        raise InputError(
            f"'{path}' has no head of its own ({listed(model.new_weights)} are new), so it cannot be evaluated. "
            "Fine-tune it first with `elang fit`."
        )
    if model.original_names != task.label_names:
        raise InputError(
            f"The model's labels are {model.original_names}, the data's {task.label_names}: its "
            "head cannot be evaluated. Fine-tune it first; where only the order differs, `elang score` aligns it."
        )
    if model.text_to_text and trained_on is not None:
        check_words(TextTask.of(trained_on.label_names, trained_on.task), task, path)


def check_some(trainer: Any, stage: str) -> None:
    """Refuse an evaluation of nothing, which would end well and leave nothing behind.

    Raises:
        InputError: Naming the option.
    """
    name = {"validate": "limit_val_batches", "test": "limit_test_batches"}.get(stage)
    if name is not None and not getattr(trainer, name):
        raise InputError(f"--trainer.{name} is 0, so nothing would be evaluated. Leave it out.")


def tell_part(counts: dict[str, tuple[int, int]]) -> None:
    """Tell of splits that were answered only in part.

    Args:
        counts: Of each split the examples that were answered, and all.
    """
    if parts := [f"{n} of {all_} examples of '{split}'" for split, (n, all_) in counts.items() if n < all_]:
        notice(
            "part-evaluated",
            f"Only {', '.join(parts)} were answered, as --trainer.limit_val_batches, --trainer.limit_test_batches or "
            "--trainer.fast_dev_run say: what is measured is of that part alone.",
        )


def measure_split(answers: Records, label: Tensor, quality: Quality, data: Any, split: str) -> dict[str, float]:
    """A metric of a model's answers to a split, by its name; of texts there can be more than one.

    Args:
        answers: The model's.
        label: Of the same examples, ``(N,)``.
        quality: The metric.
        data: The data module, if there is one.
        split: Its name.
    """
    if answers.texts is not None:
        return measure_texts([quality.name], answers.texts, data.references(split, answers.id))
    targets = data.targets(split, answers.id) if data is not None else {}
    return {quality.name: measure(quality, answers.prediction, label, targets=targets)}
