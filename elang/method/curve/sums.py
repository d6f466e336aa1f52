"""Cumulative sums of the statistics as examples are deferred one after the other, by example and by group."""

import torch
from torch import Tensor

from elang.method.curve.points import Groups
from elang.method.quality.metric import group_sums

# Elements of statistics that are widened to float64 at a time; bounds the memory of a sweep.
_CHUNK = 1 << 21


def sums_at(order: Tensor, deferred: Tensor, swift: Tensor, super_: Tensor, groups: Groups | None = None) -> Tensor:
    """Sums of the mixed statistics, float64 ``(M, S)``, with the first ``deferred[m]`` of ``order`` deferred."""
    if groups is None:
        total, last = (x.sum(0, dtype=torch.float64) for x in (swift, super_))
    else:
        total, last = (
            groups.statistics(group_sums(x, groups.index)[0]).sum(0, dtype=torch.float64) for x in (swift, super_)
        )
        super_ = _group_changes(order, swift, super_, groups)
        swift = torch.zeros_like(super_[:1]).expand_as(super_)
    out = torch.empty(len(deferred), swift.shape[1], dtype=torch.float64, device=swift.device)
    out[0] = total
    rows = max(1, _CHUNK // swift.shape[1])
    done = 1
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        moved = (super_[chosen].double() - swift[chosen].double()).cumsum_(0).add_(total)
        stop = int(torch.searchsorted(deferred, start + len(chosen), right=True))
        out[done:stop] = moved[deferred[done:stop] - 1 - start]
        done, total = stop, moved[-1]
    # Sums of floats depend on their order; the end of the curve is the Super to the last bit.
    out[-1] = last
    return out


def _group_changes(order: Tensor, swift: Tensor, super_: Tensor, groups: Groups) -> Tensor:
    """What deferring each example, in this order, adds to its group's statistics: float64 ``(N, S')`` by example."""
    kept, row = group_sums(swift, groups.index)
    # Group after group, and in the order of deferral within each.
    events = order[row[order].argsort(stable=True)]
    row = row[events]
    opens = torch.ones(len(events), dtype=torch.bool, device=row.device)
    opens[1:] = row[1:] != row[:-1]
    changes: list[Tensor] = []
    before = kept.new_zeros(1, swift.shape[1])
    rows = max(1, _CHUNK // swift.shape[1])
    for start in range(0, len(events), rows):
        chosen, own, fresh = (x[start : start + rows] for x in (events, row, opens[:, None]))
        after = super_[chosen].double() - swift[chosen].double()
        # What came before this chunk, if its first group began there.
        after[:1] += before[-1:].masked_fill(fresh[:1], 0.0)
        _cumsum_within(after, fresh)
        before = torch.cat([before[-1:], after])
        earlier = before[:-1].masked_fill(fresh, 0.0)
        changes.append(groups.statistics(kept[own] + after) - groups.statistics(kept[own] + earlier))
    found = torch.cat(changes)
    return torch.empty_like(found).index_copy_(0, events, found)


def _cumsum_within(values: Tensor, opens: Tensor) -> None:
    """Cumulate ``(N, S)`` in place, starting anew where ``opens``, ``(N, 1)``.

    In log N steps of doubling reach: to subtract cumulative sums would carry rounding from group to group.
    """
    place = torch.arange(len(values), device=values.device)[:, None]
    place = place - torch.where(opens, place, 0).cummax(0).values
    reach, longest = 1, int(place.max())
    while reach <= longest:
        values[reach:] += values[:-reach].masked_fill(place[reach:] < reach, 0.0)
        reach *= 2
