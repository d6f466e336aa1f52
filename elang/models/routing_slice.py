"""What a finished Swift learns on its routing slice: router heads, and thresholds for every score."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from elang.backends.text_model import TextModel
from elang.data.examples import fold_of
from elang.evaluation.pair import ROUTING_SLICE, Heads, Thresholds, choose_thresholds, pair_answers, share_thresholds
from elang.method.quality.metric import Quality
from elang.metrics import ExampleTable
from elang.records.table import Records


@torch.no_grad()
def answer_slice(
    model: TextModel, batches: Iterable[dict[str, Any]], temperature: float, device: torch.device
) -> dict[str, Tensor]:
    """A Swift's answers to the routing slice from all processes, with the features of its router heads.

    Args:
        model: The Swift.
        batches: This process's batches of the slice.
        temperature: Temperature of the scores.
        device: The Swift's device.
    """
    columns = {"key": ((), torch.int64), "unit": ((), torch.int64), "label": ((), model.task.kind.answer_type)}
    table = ExampleTable(columns | model.columns(features=True)).to(device)
    model.eval()
    order = list(range(len(model.label_names)))
    for batch in batches:
        inputs = {name: column.to(device) for name, column in batch["model"].items()}
        rows = {name: batch[name].to(device) for name in ("id", "key", "unit", "label")}
        rows |= model.answer_columns(inputs, order, temperature=temperature, features=True)
        if not batch["repeated"]:
            table.update(**rows)
    return table.compute()


def fit_heads(
    model: TextModel, table: dict[str, Tensor], gain: Tensor, expected: Tensor | None
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """Fit the router heads.

    Args:
        model: The Swift.
        table: Its answers, from :func:`answer_slice`.
        gain: How much deferring each example gains, float64 ``(N,)``.
        expected: The gain that the Super's logits predict, if there are any.

    Returns:
        A report for each router head, and the values ``(N,)`` of each head's score. Router heads score each example
        without having learned from it.
    """
    reports: dict[str, dict[str, Any]] = {}
    scores = {name: table[name] for name in model.head_scores if name not in model.routers}
    for name, head in model.routers.items():
        features, fold = table[f"{name}_features"], fold_of(table["unit"])
        reports[name] = head.fit(features, gain, fold, *model.candidates(name), expected=expected)
        rank_zero_info(f"{name}: reads {reports[name]['reads']}: {reports[name]['why']}")
        device = head.bias.device
        scores[name] = head(features.to(device), fold.to(device)).to(features.device)
    return reports, {name: scores[name] for name in model.head_scores}


def slice_thresholds(
    model: TextModel,
    table: dict[str, Tensor],
    super_: Records | None,
    *,
    quality: Quality,
    targets: dict[str, Tensor],
    heads: dict[str, Tensor],
    temperature: float,
) -> Thresholds:
    """Choose thresholds for every score; without a Super's answers, only by the share of deferred examples.

    Args:
        model: The Swift.
        table: Its answers, from :func:`answer_slice`.
        super_: The Super's answers to the same examples, if they are known.
        quality: The metric that chooses.
        targets: What the metric reads besides the labels.
        heads: The scores of the heads, from :func:`fit_heads`.
        temperature: Temperature of the scores.
    """
    logits = table.get("logits")
    if super_ is None:
        scores = model.task.kind.scores_of(logits, table.get("scores"), temperature)
        return share_thresholds(scores | heads, ROUTING_SLICE)
    # Generated texts have no other prediction.
    prediction = table.get("prediction", torch.zeros_like(table["id"]))
    columns: dict[str, Any] = {name: table.get(name) for name in ("flops", "scores", "score_flops")}
    answers = pair_answers(
        table,
        Records(table["id"], prediction, logits, **columns),
        Records(table["id"], super_.prediction, flops=super_.flops),
        problem=model.task.problem,
        temperature=temperature,
        heads=Heads(heads, table.get("early_flops")),
        targets=targets,
    )
    return choose_thresholds(answers, quality, ROUTING_SLICE)
