"""What a finished Swift learns on its routing slice: router heads, and thresholds for every score."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from elang.backends.text_model import TextModel
from elang.data.examples import fold_of
from elang.errors import counted
from elang.evaluation.pair import ROUTING_SLICE, Thresholds, choose_thresholds, pair_answers, share_thresholds
from elang.method.quality.metric import Quality
from elang.method.quality.texts import full_mark
from elang.metrics import ExampleTable
from elang.notices import notice
from elang.records import DEFAULT_THRESHOLD
from elang.records.table import Records
from elang.terminal import Progress, waiting

# A standard error of the difference between pair and Super, as a share of the best quality, that is to be told.
_BLUNT = 0.02
# Seconds after which each step behind the training is told.
_FIRST = 3.0


class RoutingSlice:
    """A finished Swift's answers to its routing slice from all processes, in the columns of ``table``.

    Args:
        model: The Swift.
        batches: This process's batches of the slice.
        temperature: Temperature of the scores.
        device: The Swift's device.
    """

    @torch.no_grad()
    def __init__(
        self, model: TextModel, batches: Iterable[dict[str, Any]], temperature: float, device: torch.device
    ) -> None:
        self.model, self.temperature = model, temperature
        self._head_scores: dict[str, Tensor] = {}
        columns = {"key": ((), torch.int64), "unit": ((), torch.int64), "label": ((), model.task.kind.answer_type)}
        table = ExampleTable(columns | model.columns(features=True)).to(device)
        model.eval()
        order = list(range(len(model.label_names)))
        # No thread tells of this: the loader may fork.
        progress = Progress(None, "batches of the held-out slice, for router and thresholds", bar=False, first=_FIRST)
        for batch in progress.each(batches):
            inputs = {name: column.to(device) for name, column in batch["model"].items()}
            rows = {name: batch[name].to(device) for name in ("id", "key", "unit", "label")}
            rows |= model.answer_columns(inputs, order, temperature=temperature, features=True)
            if not batch["repeated"]:
                table.update(**rows)
        self.table = table.compute()

    def fit_heads(self, gain: Tensor, expected: Tensor | None) -> dict[str, dict[str, Any]]:
        """Fit the router heads, and score each example by heads that have not learned from it.

        Args:
            gain: How much deferring each example gains, float64 ``(N,)``.
            expected: The gain that the Super's logits predict, if there are any.

        Returns:
            The report of each router head, :meth:`elang.method.router.RouterHead.fit`.
        """
        model, table, reports = self.model, self.table, {}
        scores = {name: table[name] for name in model.head_scores if name not in model.routers}
        for name, head in model.routers.items():
            features, fold = table[f"{name}_features"], fold_of(table["unit"])
            what = f"fitting '{name}' to the held-out slice"
            with waiting(what, _FIRST), Progress(None, f"steps of {what}", late=True) as progress:
                choice = model.candidates(name)
                report = reports[name] = head.fit(features, gain, fold, *choice, expected=expected, each=progress.each)
            rank_zero_info(
                f"'{name}', the score that predicts how much asking the Super helps, reads {report['reads']}"
            )
            device = head.bias.device
            scores[name] = head(features.to(device), fold.to(device)).to(features.device)
        self._head_scores = {name: scores[name] for name in model.head_scores}
        return reports

    def thresholds(self, super_: Records | None, quality: Quality, targets: dict[str, Tensor]) -> Thresholds:
        """Choose thresholds for every score by a metric, which reads the labels and these targets.

        Without the Super's answers, only the shares of deferred examples are known.
        """
        table, task = self.table, self.model.task
        if super_ is None:
            scores = task.kind.scores_of(table.get("logits"), table.get("scores"), self.temperature)
            return share_thresholds(scores | self._head_scores, ROUTING_SLICE)
        answers = pair_answers(
            table | self._head_scores,
            self.model.records(table),
            super_,
            task=task,
            temperature=self.temperature,
            heads=self._head_scores,
            targets=targets,
        )
        chosen = choose_thresholds(answers, quality, ROUTING_SLICE)
        _tell_small(chosen, quality.name)
        return chosen


def _tell_small(chosen: Thresholds, metric: str) -> None:
    """Give a notice if the slice is too small to tell the pair's quality from the Super's within two points."""
    entry = max((named[DEFAULT_THRESHOLD] for named in chosen.values()), key=lambda entry: entry["allowed_drop"])
    share = entry["allowed_drop"] / full_mark(metric)
    if share > _BLUNT:
        notice(
            "small-slice",
            f"Thresholds were chosen on {counted(entry['num_examples'], 'held-out examples')}: too few to see a "
            f"difference below {100 * share:.1f} points, so '{DEFAULT_THRESHOLD}' may lose as much against the Super. "
            "Hold out more of the training file (--data.routing_fraction 0.3), or choose on examples of your own "
            "(elang calibrate).",
        )
