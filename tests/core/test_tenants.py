"""What an operator sets of a tenant, and how the tenant stands."""

from __future__ import annotations

import pytest

from orchestrator.core import messages as m
from orchestrator.core.decisions.operators import find_tenant
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.jobs import Requirements
from orchestrator.core.market.pricing import HOUR_MS
from orchestrator.core.queries.tenant_standing import PPM, tenant_standing
from orchestrator.core.tenancy.quotas import Quota
from tests.core.worlds import World

HOURS_8 = 8 * HOUR_MS


def test_set_tenant_changes_what_is_named_and_leaves_the_rest() -> None:
    world = World()
    tenant_id = world.tenant()
    world.do(m.SetTenant("acme", weight=200, gpus=m.QuotaLimit(4), gpu_ms_per_month=m.QuotaLimit(HOURS_8)))
    world.do(m.SetTenant(tenant_id, gpus=m.QuotaLimit(None), microcredits_per_month=m.QuotaLimit(5)))
    tenant = world.state.tenants[tenant_id]
    assert (tenant.weight, tenant.quota) == (200, Quota(None, HOURS_8, 5))


def test_set_tenant_again_changes_nothing() -> None:
    world = World()
    world.tenant()
    command = m.SetTenant("acme", weight=3, gpus=m.QuotaLimit(4))
    assert len(world.do(command).events) == 1
    assert world.do(command).events == ()


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (m.SetTenant("acme", weight=0), "tenant.weight"),
        (m.SetTenant("acme", gpus=m.QuotaLimit(-1)), "quota.gpus"),
        (m.SetTenant("acme", gpus=m.QuotaLimit(0), gpu_ms_per_month=m.QuotaLimit(1)), "quota.gpus"),
        (m.SetTenant("acme", microcredits_per_month=m.QuotaLimit(2**62)), "quota.microcredits_per_month"),
    ],
)
def test_set_tenant_what_nobody_can_mean_is_refused(command: m.SetTenant, field: str) -> None:
    world = World()
    world.tenant()
    before = world.state.rows()
    with pytest.raises(RefusedError) as refusal:
        world.do(command)
    assert (refusal.value.code, refusal.value.field) == (RefusalCode.INVALID, field)
    assert world.state.rows() == before


def test_find_tenant_misspelt_is_told_the_nearest() -> None:
    world = World()
    with pytest.raises(RefusedError, match="orch tenant create"):
        find_tenant(world.state, "acme")
    for name in ("acme", "zenith"):
        world.tenant(name)
    with pytest.raises(RefusedError, match="no tenant named 'zenit': did you mean 'zenith'") as refusal:
        find_tenant(world.state, "zenit")
    assert (refusal.value.code, refusal.value.field) == (RefusalCode.NOT_FOUND, "tenant")


def test_tenant_standing_says_what_is_held_used_and_wanted() -> None:
    world = World()
    for _ in range(4):
        world.worker()
    world.tenant("other")
    world.tenant("acme")
    world.do(m.SetTenant("acme", weight=300))
    world.running(Requirements(gpus=1))
    world.submit(Requirements(gpus=1, gpu_model="H100"))
    world.submit(tenant="third")
    world.forward(HOUR_MS)
    tenant = find_tenant(world.state, "acme")
    found = tenant_standing(world.state, tenant, world.at_ms)
    assert (found.use.gpus_held, found.use.gpu_ms_used, found.jobs_queued) == (1, HOUR_MS, 1)
    assert found.share_ppm == PPM // 4
    # An hour of a day's half-life, in whole processors.
    assert 0 < found.lately_ppm < found.share_ppm // 4
    # The other neither holds nor wants anything.
    assert found.fair_ppm == 300 * PPM // 400


def test_tenant_standing_without_a_fleet_is_nothing() -> None:
    world = World()
    tenant = world.state.tenants[world.tenant()]
    found = tenant_standing(world.state, tenant, world.at_ms)
    assert (found.share_ppm, found.lately_ppm, found.fair_ppm) == (0, 0, PPM)
