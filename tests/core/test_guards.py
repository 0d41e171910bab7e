"""What must not be possible, however an agent, a tenant or an old backup behaves."""

from __future__ import annotations

import pytest

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.jobs import JobPolicy, JobStatus, Requirements
from orchestrator.core.requests import for_driver
from orchestrator.core.supply.fleet import Liveness
from tests.core.worlds import World


def test_term_passes_what_an_agent_has_obeyed_after_a_restored_backup() -> None:
    world = World()
    assert world.do(m.PassTerm(41)).result == 42
    assert world.state.control.term == 42
    assert world.do(m.PassTerm(41)).events == ()


def test_term_far_beyond_any_backup_is_refused() -> None:
    world = World()
    with pytest.raises(RefusedError) as refusal:
        world.do(m.PassTerm(2**63))
    assert refusal.value.field == "hello.term"
    assert world.state.control.term == 1


def test_driver_that_never_starts_gives_the_machines_back() -> None:
    world = World()
    world.worker()
    job_id = world.ready()
    cluster_id = world.cluster(job_id).cluster_id
    world.live_on(world.policies.clusters.start_deadline_ms + 10_000, step_ms=10_000)
    assert world.state.clusters[cluster_id].phase is not ClusterPhase.READY
    assert world.job(job_id).status is JobStatus.PENDING
    assert world.job(job_id).formation_failures == 1


def test_dismissed_worker_is_told_once_and_may_then_be_offered_again() -> None:
    world = World()
    worker_id = world.worker()
    world.do(m.DrainWorker(worker_id, dismiss=True))
    world.do(m.LeaveWorker(worker_id))
    assert world.do(m.ConnectWorker(worker_id, None)).result is None
    assert world.who(worker_id).liveness is Liveness.LEFT
    assert world.do(m.ConnectWorker(worker_id, None)).result == worker_id
    assert world.who(worker_id).placeable


def test_dismissed_worker_that_hears_of_it_on_its_session_is_not_told_again() -> None:
    world = World()
    worker_id = world.worker()
    world.do(m.DrainWorker(worker_id, dismiss=True))
    world.do(m.LeaveWorker(worker_id, told=True))
    assert world.do(m.ConnectWorker(worker_id, None)).result == worker_id


def test_lost_worker_that_holds_members_can_be_removed() -> None:
    world = World()
    worker_id = world.worker()
    world.running()
    world.live_on(world.policies.fleet.lost_after_ms + 10_000, silent=frozenset({worker_id}))
    assert world.who(worker_id).liveness is Liveness.LOST
    world.do(m.LeaveWorker(worker_id))
    assert world.who(worker_id).liveness is Liveness.LEFT


def test_statements_after_a_dispute_claim_no_more_time() -> None:
    world = World()
    world.worker()
    (lease,) = world.leases(world.running())
    world.forward(60_000)
    world.state_time(lease, 30_000)
    world.state_time(lease, 30_500)
    before = world.state.leases[lease.lease_id]
    decision = world.state_time(lease, 50_000)
    assert isinstance(decision.events[0], m.StatementDisputed)
    assert world.state.leases[lease.lease_id].billed_offset_ms == before.billed_offset_ms == 30_000


def test_receipt_never_names_more_heartbeats_than_were_due() -> None:
    world = World()
    world.worker()
    job_id = world.running()
    (lease,) = world.leases(job_id)
    world.live_on(60_000)
    world.finish(job_id)
    world.state_time(lease, 60_000, final=True)
    (receipt,) = world.state.receipts.values()
    assert receipt.heartbeats_received <= receipt.heartbeats_expected == 12


@pytest.mark.parametrize(
    ("cpus", "gpus", "memory_bytes", "words"),
    [(64.0, 0.0, 0, "fewer than 64 CPUs"), (0.0, 0.0, 2**60, "of memory for the driver")],
)
def test_driver_larger_than_any_machine_waits_with_the_reason(
    cpus: float, gpus: float, memory_bytes: int, words: str
) -> None:
    world = World()
    world.worker()
    wanted = for_driver(Requirements(), num_cpus=cpus, num_gpus=gpus, memory_bytes=memory_bytes, resources={})
    job_id = world.submit(wanted)
    world.plan()
    assert words in world.job(job_id).message


def test_driver_with_two_gpus_gets_them_on_one_machine() -> None:
    world = World()
    world.head_host()
    world.worker()
    world.worker()
    wanted = for_driver(Requirements(gpus=2), num_cpus=0.0, num_gpus=2.0, memory_bytes=0, resources={})
    job_id = world.submit(wanted)
    world.plan()
    assert "on one machine" in world.job(job_id).message
    world.worker(count=2)
    world.plan()
    assert len(world.members(job_id)) == 1


def test_driver_resource_that_no_machine_has_is_refused_by_name() -> None:
    with pytest.raises(RefusedError) as refusal:
        for_driver(Requirements(), num_cpus=0.0, num_gpus=0.0, memory_bytes=0, resources={"unicorn": 1.0})
    assert refusal.value.code is RefusalCode.INVALID
    assert "unicorn" in refusal.value.message
    assert JobPolicy().environment_bytes_max == 65_536
