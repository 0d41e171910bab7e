"""Overtaking, counted and bounded: later jobs may use what an earlier one cannot, but not for ever.

A job that finds no place is passed over; each later job of the same plan that is given devices which would have served it
overtakes it. After ``overtaken_max`` times it is entitled: the machines that it will need are chosen, those that are
nearest to being free first, and whatever is free of them is kept for it. So it fills up as others end, and nothing new
starts there before it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.filters import describe, joins
from orchestrator.core.offers import Column
from orchestrator.core.placement import JobNeed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.core.draft import Draft
    from orchestrator.core.ids import JobId, TenantId, WorkerId
    from orchestrator.core.offers import Numbers
    from orchestrator.core.placement import Need

FOLLOWED_MAX = 64
"""Jobs whose overtaking one plan counts: the first that it passes over, which are those that waited longest."""

KEPT_MAX = 4
"""Entitled jobs that one plan keeps machines for: more would hold half a fleet idle."""


class Passed:
    """Who was passed over in a plan, and by how many."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._jobs: list[JobNeed] = []
        self._tenants: set[TenantId] = set()
        self._counts: Counter[JobId] = Counter()

    def over(self, need: Need) -> None:
        """A job found no place. One that its tenant's quota holds back is not looking for any, and who comes after
        another of its tenant stands behind that one.
        """
        if not isinstance(need, JobNeed) or need.refused or len(self._jobs) == FOLLOWED_MAX:
            return
        if need.tenant_id not in self._tenants:
            self._tenants.add(need.tenant_id)
            self._jobs.append(need)

    def by(self, workers: Iterable[WorkerId]) -> None:
        """A later one did, on these: it overtakes those whom any of their devices would have served."""
        offers = self._draft.view.offers
        rows = [row for worker_id in workers for row in offers.rows_of(worker_id)]
        for need in self._jobs:
            fits, _ = self._draft.fits(need.requirements, need.avoid)
            if fits[rows].any():
                self._counts[need.job_id] += 1

    def counts(self) -> tuple[tuple[JobId, int], ...]:
        """By job, in the order in which they were passed over."""
        return tuple(
            (need.job_id, self._counts[need.job_id]) for need in self._jobs if self._counts[need.job_id]
        )


def keep(draft: Draft, need: JobNeed) -> str | None:
    """Keep machines for an entitled job; why it waits, in words. None where nothing could ever be kept for it."""
    if draft.kept >= KEPT_MAX:
        return None
    rows = _machines(draft, need)
    if rows is None:
        return None
    draft.kept += 1
    free = int(draft.free[rows].sum())
    draft.free[rows] = 0
    wanted = need.requirements
    return (
        f"waiting for {describe(wanted)}: overtaken often enough; {free} of {wanted.device_count} devices are kept"
        f" for it on {len(rows)} machines until the rest of them is free"
    )


def _machines(draft: Draft, need: JobNeed) -> Numbers | None:
    """Rows that could hold the whole request if nobody else were there, those with most free first."""
    wanted, offers = need.requirements, draft.view.offers
    fits, _ = draft.fits(wanted, need.avoid)
    count = wanted.device_count
    serving = np.where(draft.spoken_for, 0, offers[Column.SERVING])
    alone = np.flatnonzero(fits & (serving >= count))
    if len(alone) and wanted.gpus_per_worker in (0, count):
        chosen = alone[[int(np.lexsort((serving[alone], -draft.free[alone]))[0])]]
        draft.spoken_for[chosen] = True
        return chosen
    if count == 1 or wanted.one_machine:
        return None
    each = wanted.gpus_per_worker
    joining = fits & joins(offers, overlay_offered=draft.view.overlay_offered) & (serving >= max(1, each))
    rows = draft.one_row_each(np.flatnonzero(joining))
    best: tuple[int, int] | None = None
    for ground in np.unique(offers[Column.GROUND][rows]).tolist():
        here = rows[offers[Column.GROUND][rows] == ground]
        if int(np.minimum(serving[here], each or count).sum()) >= count:
            rank = (-int(draft.free[here].sum()), ground)
            best = rank if best is None else min(best, rank)
    if best is None:
        return None
    here = rows[offers[Column.GROUND][rows] == best[1]]
    here = here[np.lexsort((here, -serving[here], -draft.free[here]))]
    reached = np.cumsum(np.minimum(serving[here], each or count))
    together: Numbers = here[: int(np.searchsorted(reached, count)) + 1]
    draft.spoken_for[together] = True
    return together
