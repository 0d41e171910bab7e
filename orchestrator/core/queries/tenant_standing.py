"""How a tenant stands: what it holds, what it used this month, and how large a part of the fleet that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core.queries.allowance import standing_of
from orchestrator.core.queries.queue import capacity_of
from orchestrator.core.tenancy.fairness import NOTHING, SHARE_ONE, dominant_share, mean_held, moment

if TYPE_CHECKING:
    from orchestrator.core.state import State
    from orchestrator.core.tenancy.quotas import Standing
    from orchestrator.core.tenancy.tenants import Tenant

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
        share_ppm=dominant_share(tenant.usage.held, capacity) * PPM // SHARE_ONE,
        lately_ppm=dominant_share(lately, capacity) * PPM // SHARE_ONE,
        fair_ppm=tenant.weight * PPM // weights,
        jobs_queued=len(state.queues.get(tenant.tenant_id, ())) + _booked(state, tenant),
    )


def _booked(state: State, tenant: Tenant) -> int:
    """Jobs that wait for its reservations."""
    queues = state.bookings.queues
    return sum(len(queues.get(one.reservation_id, ())) for one in state.bookings.of_tenant(tenant.tenant_id))
