"""Idle clusters give way to jobs that wait, as many as are needed, and only where it helps."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.ids import JobId, WorkerId
from orchestrator.core.jobs import Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.supply.fleet import NEBULA, Isolation
from orchestrator.core.tenancy.quotas import Quota
from tests.core.test_isolation import RUNTIMES
from tests.core.worlds import World


def warm(machines: int, gpus: int = 1, wanted: Requirements | None = None) -> tuple[World, list[JobId]]:
    """A world whose every machine is in an idle cluster of acme's own, and a head host."""
    world = World()
    world.head_host(4)
    for _ in range(machines):
        world.worker(count=gpus)
    job_ids = [world.running(wanted or Requirements(gpus=gpus)) for _ in range(machines)]
    for job_id in job_ids:
        world.forward(1_000)
        world.finish(job_id)
    return world, job_ids


def closing(world: World) -> list[JobId]:
    """Whose clusters are being closed."""
    return [
        job_id
        for job_id in world.state.jobs
        if world.job(job_id).attempts and phase(world, job_id) == "closing"
    ]


def phase(world: World, job_id: JobId) -> str:
    attempts = [one for one in world.state.attempts.values() if one.job_id == job_id]
    return world.state.clusters[attempts[-1].cluster_id].phase.value


@pytest.mark.parametrize("tenant", ["birch", "acme"])
def test_idle_cluster_gives_way_to_a_job_that_it_cannot_serve_itself(tenant: str) -> None:
    world, _ = warm(2)
    waiting = world.submit(Requirements(gpus=2), tenant=tenant)
    assert len(world.plan().closings) == 2
    world.reports()
    world.plan()
    assert world.job(waiting).attempt_id is not None


def test_idle_clusters_give_way_in_order_and_no_more_than_are_needed() -> None:
    world, job_ids = warm(3)
    world.submit(tenant="birch")
    made = world.plan()
    assert len(made.closings) == 1
    assert closing(world) == job_ids[:1]
    # What is on its way is waited for.
    assert world.plan().closings == ()


def test_idle_clusters_stay_where_it_would_not_help() -> None:
    world, _ = warm(2)
    world.submit(Requirements(gpus=3), tenant="birch")
    world.submit(Requirements(gpu_model="H100"), tenant="birch")
    assert world.plan().closings == ()


def test_idle_clusters_stay_where_no_head_could_be_had() -> None:
    world = World()
    for _ in range(2):
        world.worker()
    for job_id in [world.running() for _ in range(2)]:
        world.finish(job_id)
    world.submit(Requirements(gpus=2), tenant="birch")
    assert world.plan().closings == ()


def test_idle_cluster_stays_where_a_quota_holds_the_job_back() -> None:
    world, _ = warm(1)
    tenant_id = world.tenant("birch")
    world.state.put(replace(world.state.tenants[tenant_id], quota=Quota(gpus=0)))
    world.submit(tenant="birch")
    assert world.plan().closings == ()


def with_one_gpu_at_most(world: World) -> None:
    tenant_id = world.tenant("acme")
    world.state.put(replace(world.state.tenants[tenant_id], quota=Quota(gpus=1)))


def test_idle_cluster_that_fills_its_tenants_quota_serves_the_next_job_at_once() -> None:
    world, _ = warm(1)
    with_one_gpu_at_most(world)
    job_id = world.submit()
    made = world.plan()
    assert [reuse.job_id for reuse in made.reuses] == [job_id]


def test_idle_cluster_that_fills_its_tenants_quota_and_does_not_fit_is_closed() -> None:
    world, _ = warm(1)
    world.worker(model="RTX3090")
    with_one_gpu_at_most(world)
    job_id = world.submit(Requirements(gpu_model="RTX3090"))
    assert len(world.plan().closings) == 1
    assert world.plan().closings == (), "what is on its way is waited for"
    world.reports()
    world.plan()
    assert world.job(job_id).attempt_id is not None


def test_idle_cluster_is_reused_by_its_tenant_whose_turn_it_is() -> None:
    world, _ = warm(1)
    other = world.submit(tenant="birch")
    world.forward(1_000)
    own = world.submit()
    made = world.plan()
    # Birch holds nothing, so it is first; and what gives way is not given out.
    assert (made.reuses, len(made.closings)) == ((), 1)
    world.reports()
    world.plan()
    assert world.job(other).attempt_id is not None
    assert world.job(own).attempt_id is None


def near(rtt_ms: int) -> tuple[World, list[WorkerId]]:
    world = World(Policies(jobs=RUNTIMES))
    world.head_host(isolation=Isolation.BOX, overlay=NEBULA)
    workers = [world.worker(count=2, isolation=Isolation.BOX, overlay=NEBULA) for _ in range(2)]
    for one, other in combinations(workers, 2):
        world.state.latency.observe(one, other, rtt_ms * 1_000, world.at_ms)
    return world, workers


def test_warm_cluster_serves_only_bounds_that_its_certificate_keeps() -> None:
    # The honest agents of these worlds measure 21 ms.
    world, _ = near(15)
    wanted = Requirements(gpus=4, isolation=Isolation.BOX, max_rtt_ms=30)
    job_id = world.running(wanted)
    world.finish(job_id)
    assert world.cluster(job_id).phase is ClusterPhase.READY
    closer = world.submit(replace(wanted, max_rtt_ms=20))
    made = world.plan()
    assert (made.reuses, len(made.closings)) == ((), 1)
    assert world.job(closer).attempt_id is None


def test_warm_cluster_within_the_bound_is_reused() -> None:
    world, _ = near(15)
    wanted = Requirements(gpus=4, isolation=Isolation.BOX, max_rtt_ms=30)
    world.finish(world.running(wanted))
    world.submit(replace(wanted, max_rtt_ms=25))
    assert len(world.plan().reuses) == 1


def test_warm_cluster_of_another_shape_is_not_reused() -> None:
    world, _ = warm(1, gpus=2)
    world.worker()
    world.worker()
    same = world.submit(Requirements(gpus=2, gpus_per_worker=1))
    made = world.plan()
    assert made.reuses == ()
    assert len(world.members(same)) == 3
