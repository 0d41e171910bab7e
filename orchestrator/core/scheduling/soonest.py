"""The machines that could hold a request if nobody else were there, and when they are free for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.scheduling.ends import Release, enough_by, release_of_row
from orchestrator.core.scheduling.filters import joins
from orchestrator.core.scheduling.heads import head_host
from orchestrator.core.scheduling.offers import Column
from orchestrator.core.watched import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import WorkerId
    from orchestrator.core.scheduling.draft import Draft
    from orchestrator.core.scheduling.offers import Numbers
    from orchestrator.core.scheduling.placement import JobNeed

ROWS_MAX = 64
"""Rows of which it is worked out when they are free: a gang's largest size in machines."""


@dataclass(frozen=True, slots=True)
class Machines:
    """Rows that could hold a whole request, where its head could go, and when they are free for it."""

    rows: Numbers
    head_host: WorkerId | None
    release: Release


def machines_for(draft: Draft, need: JobNeed, sets_max: int) -> Iterator[Machines]:
    """Such sets of rows, those with most free first; single machines are preferred, and of them there are so many."""
    for rows in _sets(draft, need, sets_max):
        yield looked_at(draft, need, rows)


def looked_at(draft: Draft, need: JobNeed, rows: Numbers, head: WorkerId | None = None) -> Machines:
    """When these are free for a request. ``head``: the head host that was promised with them, if any."""
    wanted = need.requirements
    if len(rows) == 1:
        return Machines(rows, None, enough_by(draft, wanted, rows))
    host = None if wanted.measured_first else head_host(draft, need, int(rows[0]), head)
    if host is None:
        return Machines(rows, None, Release(NEVER_MS))
    return Machines(rows, host.worker_id, enough_by(draft, wanted, rows))


def _sets(draft: Draft, need: JobNeed, sets_max: int) -> Iterator[Numbers]:
    """Rows that could hold the whole request if nobody else were there."""
    wanted, offers = need.requirements, draft.view.offers
    fits, _ = draft.fits(wanted, need.avoid)
    count = wanted.device_count
    serving = np.where(draft.spoken_for, 0, offers[Column.SERVING] - draft.booked)
    alone = np.flatnonzero(fits & (serving >= count))
    if len(alone) and wanted.gpus_per_worker in (0, count):
        for row in alone[np.lexsort((serving[alone], -draft.free[alone]))][:sets_max].tolist():
            yield np.array([row], dtype=np.int64)
        return
    if count == 1 or wanted.one_machine:
        return
    each = wanted.gpus_per_worker
    joining = fits & (serving >= max(1, each))
    joining &= joins(offers, overlay_offered=draft.view.overlay_offered, measured=wanted.measured_first)
    rows = draft.one_row_each(np.flatnonzero(joining))
    grounds: list[tuple[int, int]] = []
    for ground in np.unique(offers[Column.GROUND][rows]).tolist():
        here = rows[offers[Column.GROUND][rows] == ground]
        if int(np.minimum(serving[here], each or count).sum()) >= count:
            grounds.append((-int(draft.free[here].sum()), ground))
    for _, ground in sorted(grounds):
        here = rows[offers[Column.GROUND][rows] == ground]
        here = here[np.lexsort((here, -serving[here], -draft.free[here]))]
        brought = np.minimum(serving[here], each or count)
        enough: Numbers = here[: int(np.searchsorted(np.cumsum(brought), count)) + 1]
        yield enough
        if not wanted.measured_first and head_host(draft, need, int(here[0])) is not None:
            yield from _soonest(draft, need, here, brought)


def _soonest(draft: Draft, need: JobNeed, here: Numbers, brought: Numbers) -> Iterator[Numbers]:
    """Of the rows of one ground those that are wholly free first, by the time limits of what runs there."""
    near = here[:ROWS_MAX]
    free_ms = [release_of_row(draft, row).at_ms for row in near.tolist()]
    order = np.argsort(np.array(free_ms, dtype=np.int64), kind="stable")
    reached = np.cumsum(brought[:ROWS_MAX][order])
    if len(reached) and int(reached[-1]) >= need.requirements.device_count:
        yield near[order][: int(np.searchsorted(reached, need.requirements.device_count)) + 1]
