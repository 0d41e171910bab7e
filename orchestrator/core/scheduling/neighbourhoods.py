"""Which of very many rows a gang within a bound is looked for among.

The cheapest of a fleet that spans the world stand all over it, hardly two of them near each other. So whole groups are
looked at, those that could serve the request at the least cost first. Where no group has enough, groups whose leaders
are within the bound are taken together. Only where there is neither, the cheapest are: strangers among those that are
near would only draw attention away from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.gangs.candidates import US_PER_MS
from orchestrator.core.nearness.grouping import NOBODY, GroupNumber
from orchestrator.core.scheduling.offers import Column

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from orchestrator.core.ids import WorkerId
    from orchestrator.core.jobs import Requirements
    from orchestrator.core.scheduling.draft import Draft
    from orchestrator.core.scheduling.offers import Numbers

POOL_DEVICES = 3
"""A group brings so many times the devices wanted, its cheapest: room to leave out those that are not near after all."""

POOL_MIN = 32
"""Rows of a group at least, where it has them: there are several groups then, and each can be chosen from."""

LEADERS_MAX = 128
"""Groups whose leaders are compared pair by pair, those with most devices: some milliseconds."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows in columns: devices that each could give, cost of each device, number of the group or NOBODY."""

    free: Numbers
    price: Numbers
    group: Numbers


def likely(
    draft: Draft, wanted: Requirements, rows: Numbers, free: Numbers, price: Numbers, most: int
) -> Numbers:
    """Positions in ``rows``, upward, at most ``most``: ``price`` is what a device of each costs with its machine."""
    group, away_us = _places(draft, rows)
    bound_us = wanted.max_rtt_ms * US_PER_MS
    everybody = _Rows(free, price, group)
    # Two that are half of the bound from their leader are within the bound of each other.
    central = _Rows(free, price, np.where(2 * away_us <= bound_us, group, NOBODY))
    count = wanted.device_count
    chosen = _first(_groups_with_enough(central, count), most)
    if not len(chosen):
        chosen = _first(_together(draft, everybody, count, bound_us), most)
    if not len(chosen):
        chosen = np.lexsort((rows, price))[:most]
    return np.sort(chosen)


def _first(parts: Iterator[Numbers], most: int) -> Numbers:
    """So many of what is given part by part, each once; the rest is not worked out."""
    chosen: dict[int, None] = {}
    for positions in parts:
        chosen.update(dict.fromkeys(positions[: most - len(chosen)].tolist()))
        if len(chosen) >= most:
            break
    return np.fromiter(chosen, dtype=np.int64, count=len(chosen))


def beside(draft: Draft, rows: Numbers, others: Sequence[WorkerId]) -> NDArray[np.bool_]:
    """Which rows are in a group with any of these workers."""
    groups = draft.view.groups
    theirs = [group.number for one in others if (group := groups.of(one)) is not None]
    return np.isin(_places(draft, rows)[0], theirs)


def _places(draft: Draft, rows: Numbers) -> tuple[Numbers, Numbers]:
    """The group of each row's worker, or NOBODY, and how far its leader is."""
    workers = draft.view.offers[Column.WORKER][rows]
    groups = draft.view.groups
    known = workers < len(groups.number_by_row)
    number, away_us = np.full(len(rows), NOBODY, dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    number[known] = groups.number_by_row[workers[known]]
    away_us[known] = groups.away_us_by_row[workers[known]]
    return number, away_us


def _groups_with_enough(some: _Rows, count: int) -> Iterator[Numbers]:
    """Of every group that has ``count`` devices its cheapest rows, of the cheapest group first."""
    order, starts = _by_group(some)
    if not len(starts):
        return
    free, cost = some.free[order], some.price[order]
    before = free.cumsum() - free
    before -= np.repeat(before[starts], np.diff(starts, append=len(order)))
    taken = np.clip(count - before, 0, free)
    enough = np.add.reduceat(free, starts) >= count
    costs = np.add.reduceat(taken * cost, starts)
    ends = np.append(starts[1:], len(order))
    for which in np.argsort(np.where(enough, costs, np.iinfo(np.int64).max), kind="stable").tolist():
        if not enough[which]:
            return
        start, end = int(starts[which]), int(ends[which])
        pool = int(np.searchsorted(before[start:end], POOL_DEVICES * count))
        yield order[start : min(end, start + max(pool, POOL_MIN))]


def _together(draft: Draft, some: _Rows, count: int, bound_us: int) -> Iterator[Numbers]:
    """Groups around one whose leaders are within the bound of its own and which together have enough; around the one
    with the cheapest neighbourhood first, and of each the nearest first.
    """
    order, starts = _by_group(some)
    if not len(starts):
        return
    parts = np.split(order, starts[1:])
    devices = np.add.reduceat(some.free[order], starts)
    costs = np.add.reduceat((some.free * some.price)[order], starts)
    kept = np.argsort(-devices, kind="stable")[:LEADERS_MAX]
    leaders = [
        group.leader
        for which in kept.tolist()
        if (group := draft.view.groups.get(GroupNumber(int(some.group[parts[which][0]])))) is not None
    ]
    apart_us = draft.view.latency.matrix(leaders, draft.now_ms, draft.view.groups.known_ms_max).best_us
    near = (apart_us >= 0) & (apart_us <= bound_us)
    reached = near @ devices[kept]
    each = np.where(reached >= count, near @ costs[kept] / np.maximum(reached, 1), np.inf)
    for middle in np.argsort(each, kind="stable").tolist():
        if reached[middle] < count:
            return
        around = np.flatnonzero(near[middle])
        nearest = around[np.argsort(apart_us[middle, around], kind="stable")]
        yield np.concatenate([parts[which] for which in kept[nearest].tolist()])


def _by_group(some: _Rows) -> tuple[Numbers, Numbers]:
    """Positions of rows that are in a group, by group and then cheapest first; and where each group begins."""
    order = np.lexsort((some.price, some.group))
    order = order[some.group[order] != NOBODY]
    return order, np.flatnonzero(np.diff(some.group[order], prepend=NOBODY))
