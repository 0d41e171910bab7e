"""Warm clusters that nobody uses give way where a job waits that their machines would serve.

A cluster is kept for some minutes after its job, in the hope that its tenant has another one. That hope is not worth
another's wait, nor the wait of its own tenant's job that wants another shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.clusters import ClusterPhase, MemberPhase
from orchestrator.core.scheduling.filters import joins
from orchestrator.core.scheduling.nominations import unclaimed
from orchestrator.core.scheduling.offers import Column

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.core.clusters import Cluster
    from orchestrator.core.ids import ClusterId, TenantId
    from orchestrator.core.scheduling.draft import Draft
    from orchestrator.core.scheduling.filters import Mask
    from orchestrator.core.scheduling.offers import Numbers
    from orchestrator.core.scheduling.placement import JobNeed

CLOSED_MAX = 16
"""Clusters that one plan closes: the next one sees what became free of it."""

SOUGHT_MAX = 8
"""Jobs for which one plan looks for room: the first that it passes over. Each look is some tenths of a millisecond."""


def make_room(draft: Draft, need: JobNeed) -> None:
    """Note idle clusters to close until the job would fit, those idle for longest first; none where it would not."""
    if not draft.view.idle_clusters or draft.rooms_sought == SOUGHT_MAX:
        return
    fits, _ = draft.fits(need.requirements, need.avoid)
    if int(draft.view.offers[Column.SERVING][fits].sum()) < need.requirements.device_count:
        # Nothing that anybody gives up would be enough.
        return
    draft.rooms_sought += 1
    clusters = [cluster for cluster in draft.idle_clusters() if _serves(draft, need, cluster)]
    if not clusters:
        return
    then = _Then(draft)
    for cluster in leaving(draft):
        then.close(cluster)
    if then.would_fit(need):
        # What is on its way is waited for.
        return
    then.closed = []
    for cluster in clusters[: CLOSED_MAX - len(draft.closing)]:
        then.close(cluster)
        if then.would_fit(need):
            draft.closing.update(dict.fromkeys(then.closed))
            return


def free_quota(draft: Draft, need: JobNeed) -> None:
    """Note idle clusters of its tenant to close, until the quota of GPUs lets a job start; none if it still did not."""
    view, tenant_id = draft.view, need.tenant_id
    missing = need.gpus_in_excess - gpus_of(draft, leaving(draft), tenant_id)
    chosen: list[ClusterId] = []
    for cluster in draft.idle_clusters(tenant_id):
        if missing > 0 and view.bookings.of(cluster.reservation_id) is None:
            chosen.append(cluster.cluster_id)
            missing -= gpus_of(draft, (cluster,), tenant_id)
    if missing <= 0:
        draft.closing.update(dict.fromkeys(chosen))


def gpus_of(draft: Draft, clusters: Iterable[Cluster], tenant_id: TenantId) -> int:
    """GPUs that these clusters of a tenant hold."""
    members = draft.view.members
    own = (one for one in clusters if one.tenant_id == tenant_id)
    return sum(members[member_id].gpus for one in own for member_id in one.member_ids)


def leaving(draft: Draft) -> list[Cluster]:
    """Clusters that end already, and those that this plan closes."""
    if draft.leaving is None:
        clusters = (draft.view.clusters[cluster_id] for cluster_id in draft.view.open_clusters)
        draft.leaving = [cluster for cluster in clusters if cluster.phase is ClusterPhase.CLOSING]
    return [*draft.leaving, *(draft.view.clusters[cluster_id] for cluster_id in draft.closing)]


def _serves(draft: Draft, need: JobNeed, cluster: Cluster) -> bool:
    """Whether any device of a cluster fits the request; one of another reservation is left alone."""
    booked = draft.view.bookings.of(cluster.reservation_id)
    if booked is not None and booked.reservation_id != need.reservation_id:
        return False
    fits, _ = draft.fits(need.requirements, need.avoid)
    members = (draft.view.members[member_id] for member_id in cluster.member_ids)
    rows = [draft.row_of(member.worker_id, member.device_ids) for member in members if member.device_ids]
    return any(row is not None and fits[row] for row in rows)


class _Then:
    """What would be left with some clusters gone."""

    def __init__(self, draft: Draft) -> None:
        self.closed: list[ClusterId] = []
        self._draft = draft
        self._free: Numbers = draft.free.copy()
        self._slots: Numbers = draft.slots.copy()
        self._hosts = {
            worker_id for worker_id, count in draft.head_hosts.items() if count > draft.heads[worker_id]
        }

    def close(self, cluster: Cluster) -> None:
        """As if its members were gone."""
        view = self._draft.view
        self.closed.append(cluster.cluster_id)
        for member_id in cluster.member_ids:
            member = view.members[member_id]
            if member.phase is MemberPhase.RELEASED:
                continue
            if not member.device_ids:
                self._hosts.add(member.worker_id)
                continue
            row = self._draft.row_of(member.worker_id, member.device_ids)
            if row is not None:
                self._free[row] += len(unclaimed(self._draft, member))
                self._slots[list(view.offers.rows_of(member.worker_id))] += 1

    def would_fit(self, need: JobNeed) -> bool:
        """Enough on one machine, or on machines of one ground with a head; distances are looked at later."""
        wanted, offers = need.requirements, self._draft.view.offers
        fits, hosts = self._draft.fits(wanted, need.avoid)
        usable: Mask = fits & (self._slots > 0) & ~self._draft.spoken_for & ~self._draft.awaited
        count, each = wanted.device_count, wanted.gpus_per_worker
        if each in (0, count) and bool((usable & (self._free >= count)).any()):
            return True
        if count == 1 or wanted.one_machine:
            return False
        of_hosts = [next(iter(offers.rows_of(worker_id))) for worker_id in self._hosts]
        sites = {int(offers[Column.SITE][row]) for row in of_hosts if hosts[row]}
        usable &= joins(
            offers, overlay_offered=self._draft.view.overlay_offered, measured=wanted.measured_first
        )
        usable &= (self._free >= max(1, each)) & np.isin(offers[Column.SITE], sorted(sites))
        rows = self._draft.one_row_each(np.flatnonzero(usable))
        brought = np.minimum(self._free[rows], each or count)
        return int(np.bincount(offers[Column.GROUND][rows], weights=brought).max(initial=0)) >= count
