"""Clusters that are there already: a job's own spare, and the warm ones of its tenant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.delivery import Asked, is_delivered
from orchestrator.core.scheduling.choice import affordable
from orchestrator.core.scheduling.placement import Deferral, JobNeed, Reuse, SpareNeed, WaitReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.core.clusters import Cluster, Member
    from orchestrator.core.ids import ClusterId
    from orchestrator.core.jobs import Requirements
    from orchestrator.core.scheduling.draft import Draft


def own_spare(draft: Draft, need: JobNeed) -> Reuse | Deferral | None:
    """The cluster that was formed ahead for this job; None where there is none, or none that may be used."""
    cluster_id = draft.view.spares.get(need.job_id)
    if cluster_id is None:
        return None
    cluster = draft.view.clusters[cluster_id]
    if cluster.phase is ClusterPhase.READY:
        if cluster.idle_since_ms is None:
            return Deferral(need.job_id, "its spare cluster is about to be ready", WaitReason.SPARE)
        members = (draft.view.members[member_id] for member_id in cluster.member_ids)
        if not all(draft.view.workers[member.worker_id].placeable for member in members):
            return None
    return Reuse(need.job_id, cluster_id, (f"cluster {cluster_id} was formed ahead for this job",))


def warm(draft: Draft, need: JobNeed | SpareNeed) -> tuple[ClusterId, str] | None:
    """An idle cluster of the tenant that fits, and the names of its workers."""
    view, wanted = draft.view, need.requirements
    idle = draft.idle_clusters(need.tenant_id)
    if not idle:
        return None
    fits, hosts = draft.fits(wanted, need.avoid)
    reservation_id = need.reservation_id if isinstance(need, JobNeed) else None
    taken = draft.spoken_for | draft.awaited
    counted_on = draft.counted_on if isinstance(need, SpareNeed) else ()
    for cluster in idle:
        cluster_id = cluster.cluster_id
        if cluster_id in counted_on:
            continue
        booked = view.bookings.of(cluster.reservation_id)
        if (None if booked is None else booked.reservation_id) != reservation_id:
            continue
        members = [view.members[member_id] for member_id in cluster.member_ids]
        bearing = [member for member in members if member.device_ids]
        if sum(len(member.device_ids) for member in bearing) != wanted.device_count:
            continue
        if cluster.runtime != (wanted.runtime or (view.default_runtime if cluster.runtime else "")):
            continue
        if cluster.image != wanted.image or not _is_shaped(cluster, bearing, wanted):
            continue
        # The members' own: a worker that is boxed now may have been bare when they were placed.
        if not all(member.isolation.at_least(wanted.isolation) for member in members):
            continue
        if not affordable(need, sum(member.microcredits_per_hour for member in members)):
            continue
        rows = [draft.row_of(member.worker_id, member.device_ids) for member in members]
        if all(
            row is not None and (fits if member.device_ids else hosts)[row] and not taken[row]
            for member, row in zip(members, rows, strict=True)
        ):
            (draft.reused if isinstance(need, JobNeed) else draft.counted_on).add(cluster_id)
            return cluster_id, ", ".join(view.workers[member.worker_id].name for member in bearing)
    return None


def _is_shaped(cluster: Cluster, bearing: Sequence[Member], wanted: Requirements) -> bool:
    """Whether a warm cluster's machines bring as many devices each as asked, and its ways were delivered as asked."""
    if wanted.gpus_per_worker and any(len(one.device_ids) != wanted.gpus_per_worker for one in bearing):
        return False
    return is_delivered([one.member_id for one in bearing], cluster.paths, Asked.by(wanted))
