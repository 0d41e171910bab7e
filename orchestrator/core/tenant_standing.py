"""How a tenant stands: what it holds, what it used this month, and how large a part of the fleet that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core.fairness import NOTHING, SHARE_ONE, dominant_share, mean_held, moment
from orchestrator.core.queueing import capacity_of, standing_of

if TYPE_CHECKING:
    from orchestrator.core.quotas import Standing
    from orchestrator.core.state import State
    from orchestrator.core.tenants import Tenant

PPM = 1_000_000


@dataclass(frozen=True, slots=True)
class TenantStanding:
    """Shares are in millionths of the resource of which the tenant holds the largest part, whatever its weight."""

    use: Standing
    share_ppm: int
    lately_ppm: int
    """In the mean that fades."""
    fair_ppm: int
    """Its part of the weights of all tenants that hold or want something, itself among them."""
    jobs_queued: int


def tenant_standing(state: State, tenant: Tenant, at_ms: int) -> TenantStanding:
    """As of control time ``at_ms``."""
    capacity = capacity_of(state)
    now = moment(at_ms, state.policies.fairness.half_life_ms)
    lately = mean_held(tenant.usage, now)
    weights = sum(
        one.weight
        for one in state.tenants.values()
        if one.tenant_id in state.queues or one.usage.held != NOTHING or one.tenant_id == tenant.tenant_id
    )
    return TenantStanding(
        use=standing_of(state, tenant, at_ms),
        share_ppm=dominant_share(NOTHING, tenant.usage.held, capacity, 1) * PPM // SHARE_ONE,
        lately_ppm=dominant_share(lately, NOTHING, capacity, 1) * PPM // SHARE_ONE,
        fair_ppm=tenant.weight * PPM // weights,
        jobs_queued=len(state.queues.get(tenant.tenant_id, ())),
    )
