"""Where the head of a gang of several machines goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core.scheduling.offers import Column

if TYPE_CHECKING:
    from orchestrator.core.ids import WorkerId
    from orchestrator.core.scheduling.draft import Draft
    from orchestrator.core.scheduling.placement import JobNeed, SpareNeed
    from orchestrator.core.supply.fleet import Worker


def head_host(
    draft: Draft, need: JobNeed | SpareNeed, beside: int, before: WorkerId | None = None
) -> Worker | None:
    """Of the head hosts that run the same Ray and can be reached, one that has the job's packages; of these, and where
    none has, the one with most free head slots. The one that was chosen ``before`` stays as long as it would do.
    """
    view = draft.view
    _, hosts = draft.fits(need.requirements, need.avoid)
    packaged = draft.costs.packaged(need.packages)
    site = view.offers[Column.SITE]
    found: Worker | None = None
    least_left_last = sorted(
        (draft.heads.get(worker_id, 0) - slots, worker_id) for worker_id, slots in draft.head_hosts.items()
    )
    if before is not None:
        least_left_last.sort(key=lambda one: one[1] != before or one[0] >= 0)
    for minus_left, worker_id in least_left_last:
        if minus_left >= 0:
            break
        row = next(iter(view.offers.rows_of(worker_id)))
        if hosts[row] and site[row] == site[beside]:
            if packaged[row] or worker_id == before:
                return view.workers[worker_id]
            found = found or view.workers[worker_id]
    return found
