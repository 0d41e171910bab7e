"""Clusters between jobs: reused by their tenant, torn down when idle, closed when something was left behind."""

from __future__ import annotations

import pytest

from orchestrator.core.clusters import ClusterPhase, ClusterPolicy
from orchestrator.core.ids import JobId
from orchestrator.core.jobs import JobStatus, Requirements
from orchestrator.core.supply.fleet import FleetPolicy
from tests.core.worlds import World

POLICY = ClusterPolicy()


def warm(world: World, requirements: Requirements | None = None) -> JobId:
    """A job that has ended, its cluster kept."""
    job_id = world.running(requirements)
    world.finish(job_id)
    assert world.cluster(job_id).idle_since_ms is not None
    return job_id


def test_warm_cluster_serves_its_tenants_next_job() -> None:
    world = World()
    world.worker()
    first = warm(world)
    second = world.submit()
    made = world.plan()
    assert [reuse.job_id for reuse in made.reuses] == [second]
    assert world.cluster(second) == world.cluster(first)
    world.start(second)
    assert world.job(second).status is JobStatus.RUNNING


def test_warm_cluster_is_never_given_to_another_tenant() -> None:
    world = World()
    world.worker()
    warm(world)
    foreign = world.submit(tenant="beta")
    world.plan()
    assert world.job(foreign).attempt_id is None


@pytest.mark.parametrize(
    "wanted",
    [
        Requirements(gpus=1),
        Requirements(gpus=2, gpu_model="H100"),
        Requirements(gpus=2, min_gpu_memory_gb=30),
        Requirements(gpus=0),
    ],
)
def test_warm_cluster_that_does_not_fit_is_left_alone(wanted: Requirements) -> None:
    world = World()
    world.worker(count=2)
    warm(world, Requirements(gpus=2))
    world.submit(wanted)
    assert world.plan().reuses == ()


def test_warm_cluster_serves_one_job_at_a_time() -> None:
    world = World()
    world.worker()
    warm(world)
    jobs = [world.submit() for _ in range(2)]
    assert [reuse.job_id for reuse in world.plan().reuses] == jobs[:1]
    assert world.plan().reuses == ()


@pytest.mark.parametrize("who", ["member", "head"])
def test_warm_cluster_with_a_suspect_machine_gets_nothing_new(who: str) -> None:
    world = World()
    members = [world.worker() for _ in range(2)]
    head = world.head_host()
    warm(world, Requirements(gpus=2))
    silent = head if who == "head" else members[0]
    world.live_on(FleetPolicy().suspect_after_ms + 5_000, silent=frozenset({silent}))
    world.submit(Requirements(gpus=2))
    assert world.plan().reuses == ()


def test_warm_cluster_is_torn_down_after_its_idle_time() -> None:
    world = World()
    worker_id = world.worker()
    job_id = warm(world)
    world.live_on(POLICY.idle_teardown_ms)
    assert world.cluster(job_id).phase is ClusterPhase.READY
    world.live_on(1)
    assert (world.cluster(job_id).phase, world.cluster(job_id).reason) == (ClusterPhase.CLOSING, "idle")
    world.reports()
    assert world.cluster(job_id).phase is ClusterPhase.CLOSED
    assert world.state.free_devices[worker_id]


def test_warm_clusters_idle_time_begins_anew_with_each_job() -> None:
    world = World()
    world.worker()
    warm(world)
    world.live_on(POLICY.idle_teardown_ms - 1_000)
    second = world.submit()
    world.plan()
    world.start(second)
    world.live_on(POLICY.idle_teardown_ms)
    world.finish(second)
    world.live_on(POLICY.idle_teardown_ms - 1_000)
    assert world.cluster(second).phase is ClusterPhase.READY


def test_cluster_whose_job_left_something_behind_is_not_reused_but_closed() -> None:
    world = World()
    world.worker()
    job_id = world.running()
    world.dirty.add(world.cluster(job_id).cluster_id)
    world.finish(job_id)
    assert world.cluster(job_id).idle_since_ms is None
    world.submit()
    assert world.plan().reuses == ()
    world.live_on(POLICY.clean_deadline_ms + 5_000)
    assert world.cluster(job_id).phase is ClusterPhase.CLOSING
    assert "left actors, jobs or log behind" in world.cluster(job_id).reason


def test_cluster_is_not_idle_before_the_last_log_byte() -> None:
    world = World()
    world.worker()
    job_id = world.running()
    world.end(job_id)
    assert world.job(job_id).status is JobStatus.SUCCEEDED
    assert world.cluster(job_id).idle_since_ms is None


def test_cluster_running_a_job_longer_than_any_deadline_is_left_alone() -> None:
    world = World()
    world.worker()
    job_id = world.running()
    world.live_on(6 * 3_600_000, step_ms=10_000)
    assert world.job(job_id).status is JobStatus.RUNNING
    assert world.cluster(job_id).phase is ClusterPhase.READY
