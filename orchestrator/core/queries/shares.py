"""Who holds more than its share, and what others lack of theirs: on whom a job that waited too long has a claim.

A tenant's share is its part of the weights of all that hold or want something. What counts is what is held now, as it
will be once all notices are over: what a tenant used yesterday delays its turn, but lets nobody hold more than his share
today. Work that gives way counts as gone, and what is nominated to a queued job as held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core.preemption import preempted_clusters
from orchestrator.core.scheduling.placement import Claim
from orchestrator.core.tenancy.fairness import NOTHING, SHARE_ONE, Amounts, dominant_share
from orchestrator.core.tenancy.tenants import held_by

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import ClusterId, TenantId
    from orchestrator.core.state import State


class Shares:
    """As of control time ``at_ms``; worked out once, when somebody first asks."""

    def __init__(self, state: State, capacity: Amounts, at_ms: int) -> None:
        self._capacity = capacity
        self._held = {
            tenant.tenant_id: tenant.usage.held
            for tenant in state.tenants.values()
            if tenant.usage.held != NOTHING or tenant.tenant_id in state.queues
        }
        for cluster_id in _going(state, at_ms):
            tenant_id = state.clusters[cluster_id].tenant_id
            for member_id in state.members_of.get(cluster_id, ()):
                held = self._held.get(tenant_id, NOTHING)
                self._held[tenant_id] = held.minus(state.members[member_id].held)
        for job_id, nomination in state.watched.nominated.items():
            if nomination.until_ms > at_ms:
                tenant_id = state.jobs[job_id].tenant_id
                for worker_id, device_ids in nomination.devices:
                    inventory = state.workers[worker_id].inventory
                    models = [one.model for one in inventory.devices if one.device_id in set(device_ids)]
                    before = self._held.get(tenant_id, NOTHING)
                    self._held[tenant_id] = before.plus(held_by(inventory, models))
        self._weight = {tenant_id: state.tenants[tenant_id].weight for tenant_id in self._held}
        self._weights = max(1, sum(self._weight.values()))
        asked = (tenant_id for tenant_id in state.watched.interruptible if tenant_id in self._held)
        above = (tenant_id for tenant_id in asked if self._beyond(tenant_id) > 0)
        self.over_share = frozenset(above)
        """Of those who have interruptible work."""

    def claim(self, tenant_id: TenantId) -> Claim | None:
        """What a tenant may have of others; None where it holds its share already, or nobody more than his."""
        if self._beyond(tenant_id) >= 0 or not self.over_share:
            return None
        held, weight = self._held[tenant_id], self._weight[tenant_id]
        if held == NOTHING:
            return Claim(self.over_share, None)
        share = Amounts(
            self._capacity.gpu_milli * weight // self._weights,
            self._capacity.cpus * weight // self._weights,
            self._capacity.memory_mib * weight // self._weights,
        )
        return Claim(self.over_share, share.minus(held))

    def _beyond(self, tenant_id: TenantId) -> int:
        """By how much it holds more than its share; below 0 where it holds less."""
        share = dominant_share(self._held[tenant_id], self._capacity)
        return share * self._weights - self._weight[tenant_id] * SHARE_ONE


def _going(state: State, at_ms: int) -> Iterator[ClusterId]:
    """Clusters that give way to others, under notice or ending already."""
    found = preempted_clusters(state.members[member_id] for member_id in state.noticed)
    for nomination in state.watched.nominated.values():
        if nomination.until_ms <= at_ms:
            continue
        for worker_id, device_ids in nomination.devices:
            for member_id in state.members_on.get(worker_id, ()):
                if not set(device_ids).isdisjoint(state.members[member_id].device_ids):
                    found.add(state.members[member_id].cluster_id)
    yield from sorted(found)
