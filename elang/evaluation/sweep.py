"""The exact curve of more examples than memory holds: joint records in any number of files, in any order.

DuckDB sorts the examples and spills to the disk. They pass once, in pieces, through the sums of
:mod:`elang.method.curve`. Points are read off on the way; of the curve itself an even grid is kept.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from elang.errors import InputError
from elang.evaluation.database import ROWS, Joint
from elang.evaluation.pair import FRACTIONS, SHARES
from elang.method.curve.points import OperatingCurve, Point
from elang.method.curve.reading import at_best, at_parity, at_share
from elang.method.quality.metric import Quality


@dataclass
class Swept:
    """What one score's curve tells.

    Attributes:
        points: By name: what `elang validate` reads off a curve, each exact.
        grid: The points of a curve at an even grid of deferred shares, each exact, both ends among them.
        area: Under quality over deferred share, over all points.
        random: The same of deferring at random.
    """

    points: dict[str, Point]
    grid: OperatingCurve
    area: float
    random: float


class _Events:
    """The points of a curve, a piece at a time: equal scores move together, also where they are in two pieces."""

    def __init__(self, records: Joint, score: str, metric: Quality) -> None:
        self.metric, self.count = metric, records.count
        size = len(records.label_names)
        label = torch.arange(size).repeat(size + 1)
        answer = torch.arange(-1, size).repeat_interleave(size)
        # By answer (from -1) and label.
        self.table = metric.statistics(answer, label).double().unflatten(0, (size + 1, size))
        self.total = records.sums(metric)[0]
        self.cost = records.kept_cost(score)
        self.done, self.last, self.hardest = 0, math.inf, math.nan
        self.super_cost = records.super_cost

    def of(self, piece: dict[str, Any]) -> OperatingCurve:
        """The points before each score of a piece that is new in it: all harder examples are deferred."""
        score = torch.tensor(piece["score"])
        self.hardest = self.hardest if self.done else float(score[0])
        label, swift, super_ = (torch.tensor(piece[name], dtype=torch.int64) for name in ("label", "swift", "super"))
        moved = self.table[super_ + 1, label] - self.table[swift + 1, label]
        paid = torch.from_numpy(piece["deferred"] - piece["kept"])
        # Before each example of the piece, and behind the last one.
        sums = torch.cat([self.total[None], moved]).cumsum(0)
        costs = torch.cat([torch.tensor([self.cost], dtype=torch.float64), paid]).cumsum(0)
        before = torch.cat([torch.tensor([self.last], dtype=torch.float64), score.double()])
        if (before[1:] > before[:-1]).any():
            raise RuntimeError("The scores came out of order. This is a fault of elang; please report it.")
        fresh = (before[1:] != before[:-1]).nonzero().squeeze(1)
        found = self._curve(before[fresh + 1], fresh + self.done, sums[fresh], costs[fresh])
        self.total, self.cost, self.last = sums[-1], float(costs[-1]), float(score[-1])
        self.done += len(score)
        return found

    def all(self, pieces: Iterator[dict[str, Any]]) -> Iterator[OperatingCurve]:
        """All points, none of them twice; the last one defers everything."""
        for piece in pieces:
            if len(found := self.of(piece)):
                yield found
        nowhere = torch.tensor([-math.inf], dtype=torch.float64)
        cost = torch.tensor([self.cost], dtype=torch.float64)
        yield self._curve(nowhere, torch.tensor([self.done]), self.total[None], cost)

    def _curve(self, threshold: Tensor, deferred: Tensor, sums: Tensor, costs: Tensor) -> OperatingCurve:
        # With nothing deferred everything is kept, whatever is above the hardest score.
        threshold = threshold.masked_fill(deferred == 0, math.inf)
        quality = self.metric.value(sums)
        return OperatingCurve(
            threshold,
            deferred,
            quality,
            cost=costs / self.count,
            super_cost=self.super_cost,
            num_examples=self.count,
            hardest=self.hardest,
        )


def swept(records: Joint, score: str, metric: Quality, points: int = 1001) -> Swept:
    """Sweep one score.

    Args:
        records: Of the pair.
        score: Its name.
        metric: From :meth:`Joint.metric`.
        points: Of the grid.
    """
    if points < 2:
        raise InputError(f"A grid has at least 2 points, but it is to have {points}.")
    sums = records.sums(metric)
    super_quality = metric.value(sums[1])[None]
    share = torch.linspace(0, 1, 1001, dtype=torch.float64)
    random = float(torch.trapezoid(metric.value(torch.lerp(*sums, share[:, None])), share))
    wanted = torch.linspace(0, records.count, min(points, records.count + 1), dtype=torch.float64).round().long()
    grid = torch.zeros(4, len(wanted), dtype=torch.float64)
    named: dict[str, Point] = {}
    area, end = 0.0, (torch.zeros(0), torch.zeros(0))
    events = _Events(records, score, metric)
    for curve in events.all(records.hardest_first(score, ROWS // len(sums[0]))):
        # A later piece has the points of the same share that lie nearer.
        place = torch.searchsorted(curve.deferred, wanted, right=True) - 1
        columns = torch.stack([curve.threshold, curve.deferred.double(), curve.quality, curve.cost])
        grid[:, place >= 0] = columns[:, place[place >= 0]]
        for name, most in SHARES.items():
            if int(curve.deferred[0]) <= most * records.count:
                named[name] = curve[at_share(curve, most)]
        # What is reached is told by the Super's quality, with which a whole curve ends.
        to_super = replace(curve, quality=torch.cat([curve.quality, super_quality]))
        for name, fraction in FRACTIONS.items():
            if name not in named and (index := at_parity(to_super, fraction)) < len(curve):
                named[name] = curve[index]
        top = curve[at_best(curve)]
        if "best" not in named or top.quality > named["best"].quality:
            named["best"] = top
        along, quality = (torch.cat(pair) for pair in zip(end, (curve.deferred_share, curve.quality), strict=True))
        area += float(torch.trapezoid(quality, along))
        end = along[-1:], quality[-1:]
    threshold, deferred, quality, cost = grid[:, grid[1].diff(prepend=torch.tensor([-1.0])) > 0]
    kept = OperatingCurve(threshold, deferred.long(), quality, cost, records.super_cost, records.count, events.hardest)
    return Swept(named, kept, area, random)
