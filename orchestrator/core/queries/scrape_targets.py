"""Whom Prometheus may scrape over sessions, with the labels of each: ids and enum values only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core.clusters import MemberPhase
from orchestrator.core.supply.fleet import Liveness

if TYPE_CHECKING:
    from orchestrator.core.ids import ClusterId, MemberId, WorkerId
    from orchestrator.core.state import State

EXPECTED = frozenset({Liveness.LIVE, Liveness.SUSPECT})
"""Workers that should answer: of one that was given up, or left, nothing is to be seen any more."""

GROUP_WORKERS_MIN = 2
"""A worker that nobody alike is near of is in no group worth its name."""


def agent_labels(state: State, worker_id: WorkerId) -> dict[str, str] | None:
    """Labels of a worker's agent; None where it is not expected to answer."""
    worker = state.workers.get(worker_id)
    if worker is None or worker.liveness not in EXPECTED:
        return None
    labels = {
        "instance": str(worker_id),
        "worker": str(worker_id),
        "supplier": str(worker.supplier_id),
        "hardware_class": worker.inventory.hardware_class.value,
    }
    group = state.groups.of(worker_id)
    if group is not None and len(group.members) >= GROUP_WORKERS_MIN:
        labels["group"] = str(group.number)
    return labels


def node_labels(state: State, cluster_id: ClusterId) -> list[tuple[MemberId, dict[str, str]]]:
    """(member, its labels) of each Ray node of a cluster that is up; Ray's dashboards choose by ``ray_io_cluster``."""
    found = []
    for member_id in state.members_of.get(cluster_id, ()):
        member = state.members[member_id]
        labels = agent_labels(state, member.worker_id) if member.phase is MemberPhase.UP else None
        if labels is not None:
            of_cluster = {"instance": member_id, "cluster": cluster_id, "ray_io_cluster": cluster_id}
            found.append((member_id, {**labels, **of_cluster}))
    return found


def worker_of_node(state: State, member_id: MemberId) -> WorkerId | None:
    """The worker whose session leads to a member's Ray node; None where that is not up."""
    member = state.members.get(member_id)
    return member.worker_id if member is not None and member.phase is MemberPhase.UP else None
