"""The exact curve of more examples than memory holds: joint records in any number of files, in any order.

DuckDB sorts the examples and spills to disk. They pass once, in pieces, through the sums of :mod:`elang.method.curve`.
Operating points are read on the way; of the curve itself an even grid is kept.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from elang.errors import InputError
from elang.evaluation.database import ROWS, Joint
from elang.evaluation.pair import FRACTIONS, HALF_POINT, SHARES
from elang.method.curve.points import OperatingCurve, Point
from elang.method.curve.reading import at_best, at_drop, at_parity, at_share
from elang.method.quality.metric import Quality
from elang.records import DEFAULT_THRESHOLD
from elang.terminal import Progress


@dataclass
class Swept:
    """What one score's curve shows.

    Attributes:
        points: By name, the exact points that `elang validate` reads off a curve.
        grid: Exact points at an even grid of deferred shares, both ends included.
        area: Under quality over deferred share, over all points.
        random: The same for deferring at random.
    """

    points: dict[str, Point]
    grid: OperatingCurve
    area: float
    random: float


def _curve_pieces(
    records: Joint, score: str, metric: Quality, total: Tensor
) -> Iterator[tuple[OperatingCurve, Tensor]]:
    """All points of a curve, some at a time; equal scores are one point, even if they are in two pieces.

    With each piece come standard errors of the pair's mean of right answers minus the Super's, ``(M,)``: of other
    metrics of classes they are an approximation. ``total`` are the sums of the Swift's statistics, ``(S,)``.
    """
    size = len(records.label_names)
    label = torch.arange(size).repeat(size + 1)
    answer = torch.arange(-1, size).repeat_interleave(size)
    # By answer (from -1) and label.
    table = metric.statistics(answer, label).double().unflatten(0, (size + 1, size))
    cost = torch.tensor([records.kept_cost(score)], dtype=torch.float64)
    left = _gains(*records.combined.unbind(1)).double().T @ records.counts.double()
    done, last, hardest = 0, torch.tensor([math.inf], dtype=torch.float64), math.nan

    def curve(threshold: Tensor, deferred: Tensor, sums: Tensor, costs: Tensor) -> OperatingCurve:
        # The first point keeps everything, and so does any threshold above the largest score.
        threshold = threshold.masked_fill(deferred == 0, math.inf)
        return OperatingCurve(
            threshold,
            deferred,
            quality=metric.value(sums),
            cost=costs / records.count,
            super_cost=records.super_cost,
            num_examples=records.count,
            hardest=hardest,
        )

    for piece in records.hardest_first(score, ROWS // len(total)):
        scores = torch.tensor(piece["score"])
        hardest = hardest if done else float(scores[0])
        label, swift, super_ = (torch.tensor(piece[name], dtype=torch.int64) for name in ("label", "swift", "super"))
        # Sums and costs before each example of the piece, and after the last one.
        sums = torch.cat([total[None], table[super_ + 1, label] - table[swift + 1, label]]).cumsum(0)
        costs = torch.cat([cost, torch.from_numpy(piece["deferred"] - piece["kept"])]).cumsum(0)
        gains = torch.cat([left[None], -_gains(label, swift, super_).double()]).cumsum(0)
        before = torch.cat([last, scores.double()])
        if (before[1:] > before[:-1]).any():
            raise RuntimeError("The scores came out of order. This is a bug in elang; please report it.")
        # A point lies before each new score: all harder examples are deferred.
        new = (before[1:] != before[:-1]).nonzero().squeeze(1)
        if len(new):
            points = curve(before[new + 1], new + done, sums=sums[new], costs=costs[new])
            yield points, _error(gains[new] / records.count, records.count)
        total, cost, left, last = sums[-1], costs[-1:], gains[-1], before[-1:]
        done += len(scores)
    lowest = torch.tensor([-math.inf], dtype=torch.float64)
    end = curve(lowest, torch.tensor([done]), sums=total[None], costs=cost)
    # As in memory: where everything is deferred, the Swift does not run.
    yield replace(end, cost=torch.full_like(cost, records.super_cost), scored_cost=float(end.cost)), torch.zeros(1)


def _gains(label: Tensor, swift: Tensor, super_: Tensor) -> Tensor:
    """What deferring each example gains in right answers, and its square: ``(N, 2)``."""
    gain = (super_ == label).long() - (swift == label).long()
    return torch.stack([gain, gain.square()], 1)


def _error(means: Tensor, n: int) -> Tensor:
    """The standard error of a mean of ``n`` values, from means of the values and of their squares ``(M, 2)``."""
    mean, square = means.unbind(1)
    return ((square - mean.square()).clamp_min(0) / n).sqrt()


def swept(records: Joint, score: str, metric: Quality, points: int = 1001, progress: Progress | None = None) -> Swept:
    """Sweep one score of joint records by a metric of :meth:`Joint.metric`; the grid has at most ``points``.

    The ``progress`` is told of each example that has passed.
    """
    if points < 2:
        raise InputError(f"A grid needs at least 2 points, but --points is {points}.")
    sums = records.sums(metric)
    super_quality = metric.value(sums[1])[None]
    share = torch.linspace(0, 1, 1001, dtype=torch.float64)
    random = float(torch.trapezoid(metric.value(torch.lerp(*sums, share[:, None])), share))
    steps = torch.linspace(0, records.count, min(points, records.count + 1), dtype=torch.float64).round().long()
    grid = torch.zeros(4, len(steps), dtype=torch.float64)
    named: dict[str, Point] = {}
    area, end = 0.0, (torch.zeros(0), torch.zeros(0))
    passed = 0
    for curve, error in _curve_pieces(records, score, metric, total=sums[0]):
        if progress is not None:
            progress.add(int(curve.deferred[-1]) - passed)
            passed = int(curve.deferred[-1])
        # A later piece has the points of the same share that lie nearer.
        place = torch.searchsorted(curve.deferred, steps, right=True) - 1
        columns = torch.stack([curve.threshold, curve.deferred.double(), curve.quality, curve.cost])
        grid[:, place >= 0] = columns[:, place[place >= 0]]
        for name, largest in SHARES.items():
            if int(curve.deferred[0]) <= largest * records.count:
                named[name] = curve[at_share(curve, largest)]
        # Points are measured by the Super's quality, with which a complete curve ends.
        cost = torch.nn.functional.pad(curve.cost, (0, 1), value=records.super_cost)
        to_super = replace(curve, quality=torch.cat([curve.quality, super_quality]), cost=cost)
        found = {name: at_parity(to_super, fraction) for name, fraction in FRACTIONS.items()}
        found[DEFAULT_THRESHOLD] = at_drop(to_super, torch.nn.functional.pad(error, (0, 1)).clamp_min(HALF_POINT))
        for name, index in found.items():
            if index < len(curve) and (name not in named or curve[index].cost < named[name].cost):
                named[name] = curve[index]
        best = curve[at_best(curve)]
        if "best" not in named or best.quality > named["best"].quality:
            named["best"] = best
        along, quality = (torch.cat(pair) for pair in zip(end, (curve.deferred_share, curve.quality), strict=True))
        area += float(torch.trapezoid(quality, along))
        end = along[-1:], quality[-1:]
    # The curve ends with the Super alone.
    named = dict.fromkeys((*FRACTIONS, DEFAULT_THRESHOLD), curve[-1]) | named
    threshold, deferred, quality, cost = grid[:, grid[1].diff(prepend=torch.tensor([-1.0])) > 0]
    even = replace(curve, threshold=threshold, deferred=deferred.long(), quality=quality, cost=cost)
    return Swept(points=named, grid=even, area=area, random=random)
