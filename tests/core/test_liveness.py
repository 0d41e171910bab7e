"""Silence and return: live, suspect, lost, live again; and when we suspect ourselves instead."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import ClusterId, JobId, WorkerId
from orchestrator.core.jobs import JobStatus, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.supply.fleet import FleetPolicy, HardwareClass, LeasePolicy, Liveness, Reconcile
from orchestrator.core.supply.holds import HoldKind
from tests.core.worlds import World

POLICY = FleetPolicy()


def silence(world: World, silent: frozenset[WorkerId], ms: int) -> None:
    world.live_on(ms, silent=silent)


def test_worker_joined_but_never_heard_gets_no_member() -> None:
    world = World()
    world.do(world.joining(world.who(world.worker()).inventory))
    joined = [one for one in world.state.workers.values() if one.liveness is Liveness.SUSPECT]
    assert len(joined) == 1
    assert not joined[0].placeable


def test_worker_silent_goes_suspect_then_lost_then_comes_back() -> None:
    world = World()
    worker_id = world.worker()
    seen = []
    for ms in (POLICY.suspect_after_ms, 1_000, POLICY.lost_after_ms - POLICY.suspect_after_ms - 1_000, 1_000):
        world.tick(ms)
        seen.append(world.who(worker_id).liveness)
    assert seen == [Liveness.LIVE, Liveness.SUSPECT, Liveness.SUSPECT, Liveness.LOST]
    world.do(m.ConnectWorker(worker_id, None))
    assert world.who(worker_id).liveness is Liveness.LIVE


def test_worker_suspect_keeps_its_job_and_gets_nothing_new() -> None:
    world = World()
    worker_id = world.worker(count=2)
    job_id = world.running()
    silence(world, frozenset({worker_id}), POLICY.suspect_after_ms + 5_000)
    assert world.who(worker_id).liveness is Liveness.SUSPECT
    assert world.job(job_id).status is JobStatus.RUNNING
    waiting = world.submit()
    world.plan()
    assert world.job(waiting).attempt_id is None
    assert "1 suspect" in world.job(waiting).message


def test_worker_lost_requeues_its_job_and_keeps_the_devices_until_it_shows_they_are_free() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    silence(world, frozenset({worker_id}), POLICY.lost_after_ms + 10_000)
    assert world.who(worker_id).liveness is Liveness.LOST
    assert world.job(job_id).status is JobStatus.PENDING
    world.do(m.ConnectWorker(worker_id, None))
    assert not world.state.free_devices[worker_id], "its old node may still run"
    world.report(worker_id, ())
    assert world.state.free_devices[worker_id]


@pytest.mark.parametrize(
    ("size", "silent", "held"), [(20, 11, True), (20, 10, False), (9, 9, False), (10, 6, True)]
)
def test_zone_mostly_silent_is_held_only_where_it_is_large_enough(size: int, silent: int, held: bool) -> None:
    world = World(Policies(fleet=FleetPolicy(zone_hold_min_workers=10)))
    workers = [world.worker(zone="hall") for _ in range(size)]
    quiet = frozenset(workers[:silent])
    silence(world, quiet, POLICY.lost_after_ms + 20_000)
    expected = Liveness.SUSPECT if held else Liveness.LOST
    assert {world.who(worker_id).liveness for worker_id in quiet} == {expected}
    assert {world.who(worker_id).liveness for worker_id in workers[silent:]} <= {Liveness.LIVE}


def test_zone_held_does_not_protect_a_silent_worker_elsewhere() -> None:
    world = World(Policies(fleet=FleetPolicy(zone_hold_min_workers=10)))
    hall = frozenset(world.worker(zone="hall") for _ in range(10))
    lone = world.worker(zone="attic")
    silence(world, hall | {lone}, POLICY.lost_after_ms + 20_000)
    assert world.who(lone).liveness is Liveness.LOST
    assert {world.who(worker_id).liveness for worker_id in hall} == {Liveness.SUSPECT}


def test_control_plane_restart_grants_everybody_a_full_term() -> None:
    world = World()
    worker_id = world.worker()
    world.forward(POLICY.lost_after_ms + 60_000)
    world.do(m.StartControl("net_test"))
    world.do(m.Tick())
    assert world.who(worker_id).liveness is Liveness.LIVE
    world.tick(POLICY.suspect_after_ms + 1)
    assert world.who(worker_id).liveness is Liveness.SUSPECT


def test_worker_draining_ends_its_members_and_may_leave_when_they_are_gone() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    world.do(m.DrainWorker(worker_id))
    assert world.job(job_id).status is JobStatus.PENDING
    with pytest.raises(RefusedError) as refusal:
        world.do(m.LeaveWorker(worker_id))
    assert refusal.value.code is RefusalCode.CONFLICT
    world.report(worker_id, ())
    world.do(m.LeaveWorker(worker_id))
    assert world.who(worker_id).liveness is Liveness.LEFT
    assert world.do(m.LeaveWorker(worker_id)).events == ()


def test_worker_that_left_takes_part_again_when_it_connects() -> None:
    world = World()
    worker_id = world.worker()
    world.do(m.DrainWorker(worker_id))
    world.do(m.LeaveWorker(worker_id))
    world.do(m.ConnectWorker(worker_id, None))
    assert world.who(worker_id).placeable


def test_worker_unknown_is_refused_by_name() -> None:
    world = World()
    for command in (m.ConnectWorker(WorkerId("no"), None), m.ObserveWorker(WorkerId("no"), 0, ())):
        with pytest.raises(RefusedError, match="no worker named 'no'") as refusal:
            world.do(command)
        assert refusal.value.code is RefusalCode.NOT_FOUND


@pytest.mark.parametrize("skew_ms", [-3_600_000, 0, 3_600_000])
def test_control_time_wall_clock_jumps_are_not_followed_while_the_machine_runs(skew_ms: int) -> None:
    world = World()
    before_ms = world.at_ms
    world.monotonic_ms += 1_000
    world.wall_ms += skew_ms
    assert world.at_ms == before_ms + 1_000


def test_control_time_new_boot_with_an_older_wall_clock_never_runs_backwards() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    world.live_on(3_600_000, step_ms=60_000)
    lease = world.leases(job_id)[0]
    world.state_time(lease, 3_000_000)
    latest_ms = world.at_ms
    world.boot, world.monotonic_ms, world.wall_ms = "boot-2", 10_000, world.wall_ms - 3_500_000
    world.do(m.StartControl("net_test"))
    assert world.at_ms >= latest_ms
    world.do(m.DrainWorker(worker_id))
    lease = world.leases(job_id)[0]
    assert lease.recorded_ms is not None
    assert lease.recorded_ms >= lease.billed_offset_ms == 3_000_000


# ---------------------------------------------------------------- policies of one worker


def test_worker_with_more_patience_is_lost_later_and_suspect_as_everybody() -> None:
    world = World()
    patient, common = world.worker(zone="a"), world.worker(zone="b")
    world.do(m.SetLeasePolicy(patient, LeasePolicy(300_000)))
    world.live_on(POLICY.lost_after_ms + 5_000, silent=frozenset({patient, common}))
    assert world.who(common).liveness is Liveness.LOST
    assert world.who(patient).liveness is Liveness.SUSPECT
    world.live_on(220_000, silent=frozenset({patient, common}))
    assert world.who(patient).liveness is Liveness.SUSPECT
    world.live_on(10_000, silent=frozenset({patient, common}))
    assert world.who(patient).liveness is Liveness.LOST


def test_worker_policy_that_was_stored_counts_after_loading() -> None:
    world = World()
    worker_id = world.worker()
    world.do(m.SetLeasePolicy(worker_id, LeasePolicy(600_000)))
    loaded = World()
    loaded.state.put(world.who(worker_id))
    loaded.do(m.StartControl("net_test"))
    loaded.tick(POLICY.lost_after_ms + 1_000)
    loaded.tick(1_000)
    assert loaded.who(worker_id).liveness is Liveness.SUSPECT


@pytest.mark.parametrize("lost_after_ms", [0, -5, POLICY.suspect_after_ms, 40_999, 24 * 3_600_000 + 1])
def test_lease_policy_out_of_bounds_is_refused_by_its_field(lost_after_ms: int) -> None:
    world = World()
    worker_id = world.worker()
    with pytest.raises(
        RefusedError, match=f"{lost_after_ms} ms is not between 41000 and 86400000"
    ) as refusal:
        world.do(m.SetLeasePolicy(worker_id, LeasePolicy(lost_after_ms)))
    assert (refusal.value.code, refusal.value.field) == (RefusalCode.INVALID, "policy.lost_after_ms")


def test_lease_policy_less_patient_than_running_nodes_were_promised_is_refused() -> None:
    world = World()
    worker_id = world.worker()
    world.do(m.SetLeasePolicy(worker_id, LeasePolicy(600_000)))
    job_id = world.running()
    for policy in (LeasePolicy(300_000), None):
        with pytest.raises(RefusedError, match="drain the worker first") as refusal:
            world.do(m.SetLeasePolicy(worker_id, policy))
        assert refusal.value.code is RefusalCode.CONFLICT
    world.do(m.SetLeasePolicy(worker_id, LeasePolicy(900_000)))
    assert world.job(job_id).status is JobStatus.RUNNING


def silent_with_spare(
    reconcile: Reconcile, *, ready: bool = True
) -> tuple[World, WorkerId, JobId, ClusterId]:
    """A suspect worker with a job, and another cluster that stands ready for the job or is still forming."""
    world = World()
    world.worker()
    world.finish(world.running())
    spare_id = next(iter(world.state.open_clusters))
    worker_id = world.worker(hardware_class=HardwareClass.MINER, zone="shed")
    job_id = world.running(Requirements(hardware_class=HardwareClass.MINER))
    world.do(m.SetLeasePolicy(worker_id, LeasePolicy(600_000, replace=True, reconcile=reconcile)))
    silence(world, frozenset({worker_id}), POLICY.suspect_after_ms + 5_000)
    assert world.who(worker_id).liveness is Liveness.SUSPECT
    phase = ClusterPhase.READY if ready else ClusterPhase.JOINING
    world.state.put(replace(world.state.clusters[spare_id], spare_for=job_id, phase=phase))
    return world, worker_id, job_id, spare_id


def test_worker_that_returns_keeps_its_job_and_the_spare_is_closed() -> None:
    world, worker_id, job_id, spare_id = silent_with_spare(Reconcile.ORIGINAL)
    world.do(m.ConnectWorker(worker_id, None))
    assert world.job(job_id).status is JobStatus.RUNNING
    assert world.state.clusters[spare_id].phase is ClusterPhase.CLOSING
    assert world.state.clusters[spare_id].reason == "its machine came back"


def test_worker_that_returns_to_a_ready_replacement_loses_its_job_to_it() -> None:
    world, worker_id, job_id, spare_id = silent_with_spare(Reconcile.REPLACEMENT)
    old = world.cluster(job_id)
    world.do(m.ConnectWorker(worker_id, None))
    assert world.state.clusters[old.cluster_id].reason == "replaced while its machine was silent"
    assert world.state.clusters[spare_id].phase is ClusterPhase.READY
    assert world.job(job_id).status is JobStatus.PENDING


def test_worker_that_returns_before_its_replacement_is_ready_keeps_its_job() -> None:
    world, worker_id, job_id, spare_id = silent_with_spare(Reconcile.REPLACEMENT, ready=False)
    world.do(m.ConnectWorker(worker_id, None))
    assert world.job(job_id).status is JobStatus.RUNNING
    assert world.state.clusters[spare_id].phase is not ClusterPhase.READY
    assert world.state.clusters[spare_id].reason == "its machine came back"


def test_worker_that_returns_under_notice_still_needs_the_spare() -> None:
    world, worker_id, job_id, spare_id = silent_with_spare(Reconcile.ORIGINAL)
    world.do(m.ReclaimWorker(worker_id, HoldKind.RECLAIMED, "wanted back", 600_000))
    world.do(m.ConnectWorker(worker_id, None))
    assert world.job(job_id).status is JobStatus.RUNNING
    assert world.state.clusters[spare_id].phase is ClusterPhase.READY
