"""What a tenant's quota leaves its next job: where the tenant stands, and what a need may be given.

A job begins only while its tenant's quotas leave something. Where it has a time limit, all that it can use by then has
to fit, beside all that those who run can use until theirs; where it has none, nobody knows how much that is, and
whatever is left lets it begin. Who runs is never stopped for a quota. So what a tenant spends in a month exceeds its
quota by no more than jobs without a time limit use after it was reached, and the moments that stopping takes.

Money is what receipts say, at the prices of when the machines were placed and before fees. What is not sealed yet
counts as committed, as far as the record of its lease goes: a worker states no more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.core.jobs import AttemptPhase
from orchestrator.core.market.pricing import HOUR_MS, price_of_use
from orchestrator.core.scheduling.placement import JobNeed, Placement
from orchestrator.core.supply.catalogue import CPU_MODEL
from orchestrator.core.tenancy.quotas import (
    UNLIMITED,
    MonthUse,
    QuotaRequest,
    Standing,
    after_use,
    gpus_in_excess,
    in_month_of,
    refusal,
)

if TYPE_CHECKING:
    from orchestrator.core.clusters import Cluster
    from orchestrator.core.ids import TenantId
    from orchestrator.core.metering import Lease
    from orchestrator.core.scheduling.placement import Reuse, SpareNeed
    from orchestrator.core.state import State
    from orchestrator.core.tenancy.quotas import Quota
    from orchestrator.core.tenancy.tenants import Tenant


class Allowances:
    """One plan's: what each tenant with a quota has left, after what the plan gave it."""

    def __init__(self, state: State, at_ms: int) -> None:
        self._state = state
        self._at_ms = at_ms
        self._standings: dict[TenantId, Standing] = {}

    def allowed(self, need: JobNeed) -> JobNeed:
        """A need with what its tenant's quota says of it: why it may not start, or what its machines may cost."""
        tenant = self._state.tenants[need.tenant_id]
        if tenant.quota == UNLIMITED:
            return need
        standing = self._standing(tenant)
        gpus, limit_ms = need.requirements.gpus, need.time_limit_ms
        asked = QuotaRequest(gpus, gpus * limit_ms if limit_ms else None)
        return replace(
            need,
            refused=need.refused or refusal(tenant.quota, standing, asked) or "",
            gpus_in_excess=0 if need.refused else gpus_in_excess(tenant.quota, standing, asked),
            microcredits_per_hour_max=_price_max(tenant.quota, standing, limit_ms),
        )

    def gave(self, need: JobNeed | SpareNeed, outcome: Placement | Reuse) -> None:
        """The plan found machines for a need: until it is applied nobody else counts them."""
        standing = self._standings.get(need.tenant_id)
        if standing is None:
            return
        gpus = need.requirements.gpus
        # A spare is for a job that runs: the rest of its time is counted where it is.
        limit_ms = need.time_limit_ms if isinstance(need, JobNeed) else 0
        if isinstance(outcome, Placement):
            price = outcome.chosen.microcredits_per_hour
        else:
            price = price_of(self._state, self._state.clusters[outcome.cluster_id])
        self._standings[need.tenant_id] = replace(
            standing,
            gpus_held=standing.gpus_held + (gpus if isinstance(outcome, Placement) else 0),
            gpu_ms_committed=standing.gpu_ms_committed + gpus * limit_ms,
            microcredits_committed=standing.microcredits_committed + price_of_use(price, limit_ms),
        )

    def _standing(self, tenant: Tenant) -> Standing:
        known = self._standings.get(tenant.tenant_id)
        if known is None:
            known = standing_of(self._state, tenant, self._at_ms)
            self._standings[tenant.tenant_id] = known
        return known


def _price_max(quota: Quota, standing: Standing, limit_ms: int) -> int | None:
    """What all machines of a job may cost in an hour, so that what it can spend fits; None where nothing says."""
    if quota.microcredits_per_month is None or not limit_ms:
        return None
    gone = standing.microcredits_spent + standing.microcredits_committed
    return max(0, quota.microcredits_per_month - gone) * HOUR_MS // limit_ms


def standing_of(state: State, tenant: Tenant, at_ms: int) -> Standing:
    """Where a tenant stands against its quota. GPU time of what runs counts as used until now."""
    month = in_month_of(tenant.month, at_ms)
    gpu_ms = microcredits = 0
    for lease_id in state.unsettled_of.get(tenant.tenant_id, ()):
        lease = state.leases[lease_id]
        gpus = sum(model != CPU_MODEL for model in lease.device_models)
        if lease.ended_ms is None:
            month = after_use(month, gpus, lease.started_ms, max(lease.started_ms, at_ms))
        now_ms = max(0, at_ms - lease.started_ms) if lease.recorded_ms is None else lease.recorded_ms
        until_ms = max(now_ms, _limit_ms(state, lease)) if lease.ended_ms is None else now_ms
        gpu_ms += gpus * (until_ms - now_ms)
        microcredits += _unsealed(lease, month, until_ms)
    held = 0
    for cluster_id in state.clusters_of.get(tenant.tenant_id, ()):
        cluster = state.clusters[cluster_id]
        held += sum(state.members[one].gpus for one in state.members_of.get(cluster_id, ()))
        limit_ms = _limit_to_come_ms(state, cluster)
        if limit_ms:
            gpu_ms += limit_ms * sum(member.gpus for member in state.cluster_members(cluster))
            microcredits += price_of_use(price_of(state, cluster), limit_ms)
    return Standing(month.month, held, month.gpu_ms, gpu_ms, month.microcredits, microcredits)


def price_of(state: State, cluster: Cluster) -> int:
    """Microcredits per hour of all its members' devices, as of when they were placed."""
    return sum(member.microcredits_per_hour for member in state.cluster_members(cluster))


def _unsealed(lease: Lease, month: MonthUse, until_ms: int) -> int:
    """The price of this month's part of a lease that no receipt has yet, up to an offset."""
    from_ms = max(lease.sealed_offset_ms, month.month.start_ms - lease.started_ms)
    return max(0, lease.price_until(until_ms) - lease.price_until(from_ms))


def _limit_ms(state: State, lease: Lease) -> int:
    """How long a lease that runs can last at most; 0 where nothing says."""
    job = state.jobs.get(lease.job_id)
    return 0 if job is None else job.request.time_limit_ms


def _limit_to_come_ms(state: State, cluster: Cluster) -> int:
    """The time limit of a try that has its machines and has not begun; 0 where there is none."""
    attempt_id = state.attempt_in.get(cluster.cluster_id)
    if attempt_id is None or state.attempts[attempt_id].phase is not AttemptPhase.PLACED:
        return 0
    return state.jobs[state.attempts[attempt_id].job_id].request.time_limit_ms
