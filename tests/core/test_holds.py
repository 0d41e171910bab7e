"""Holds: what they take away, what time places and lifts, and how a waiting job hears of them."""

from __future__ import annotations

import pytest

from orchestrator.core import messages as m
from orchestrator.core.apply import apply
from orchestrator.core.clusters import ClusterPhase, ClusterPolicy, MemberPhase
from orchestrator.core.decide import effects_of, pending_effects
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import DeviceId, SupplierId, WorkerId
from orchestrator.core.jobs import JobStatus, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.supply.evidence import EvidenceClass
from orchestrator.core.supply.fleet import FleetPolicy
from orchestrator.core.supply.holds import MISTRUSTED, PHRASES, SHUT_OUT, Hold, HoldKind
from tests.core.worlds import World, inventory, sha

PROBATION_MS = 600_000
OPEN = Policies(
    fleet=FleetPolicy(open_enrolment=True, probation_ms=PROBATION_MS, probation_evidence=EvidenceClass.T0)
)


def hold(world: World, worker_id: WorkerId, kind: HoldKind, reason: str = "because") -> m.Decision:
    return world.do(m.PlaceHold(worker_id, kind, reason))


def stranger(world: World) -> WorkerId:
    """A live worker that joined without a token."""
    name = world.name("wkr")
    offer = inventory(name=name)
    joining = m.JoinWorker(WorkerId(name), "", name, sha(name), offer, supplier_id=SupplierId(f"sup-{name}"))
    worker_id = WorkerId(str(world.do(joining).result))
    world.do(m.ConnectWorker(worker_id, None))
    return worker_id


@pytest.mark.parametrize("kind", list(HoldKind))
def test_hold_of_any_kind_keeps_new_work_away_and_says_why(kind: HoldKind) -> None:
    world = World()
    worker_id = world.worker()
    hold(world, worker_id, kind)
    job_id = world.submit()
    assert world.plan().placements == ()
    assert PHRASES[kind] in world.job(job_id).message
    world.do(m.LiftHold(worker_id, kind))
    assert [one.job_id for one in world.plan().placements] == [job_id]


@pytest.mark.parametrize("kind", sorted(MISTRUSTED))
def test_hold_of_mistrust_takes_what_runs_at_once_and_moves_it(kind: HoldKind) -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    other = world.worker()
    cluster_id = world.cluster(job_id).cluster_id
    hold(world, worker_id, kind, "two devices of one name")
    assert world.state.clusters[cluster_id].phase is ClusterPhase.CLOSING
    assert "two devices of one name" in world.job(job_id).message
    assert (world.job(job_id).status, world.job(job_id).preemptions) == (JobStatus.PENDING, 0)
    (lease,) = world.leases(job_id)
    assert lease.ended_ms == world.at_ms
    world.live_on(5_000)
    world.plan()
    assert [member.worker_id for member in world.members(job_id)] == [other]


@pytest.mark.parametrize("kind", sorted(set(HoldKind) - MISTRUSTED))
def test_hold_of_any_other_kind_lets_a_job_run_on(kind: HoldKind) -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    hold(world, worker_id, kind)
    world.tick()
    assert world.job(job_id).status is JobStatus.RUNNING


@pytest.mark.parametrize(
    ("kind", "closed"), [(HoldKind.RECLAIMED, True), (HoldKind.BUSY, True), (HoldKind.OWNER, False)]
)
def test_hold_closes_a_warm_cluster_only_where_the_owner_wants_his_devices(
    kind: HoldKind, closed: bool
) -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    world.finish(job_id)
    hold(world, worker_id, kind)
    assert (world.cluster(job_id).phase is ClusterPhase.CLOSING) is closed
    world.submit()
    assert world.plan().empty
    world.live_on(ClusterPolicy().idle_teardown_ms + 5_000)
    world.reports()
    assert world.cluster(job_id).phase is ClusterPhase.CLOSED


@pytest.mark.parametrize("kind", sorted(HoldKind))
def test_hold_that_shuts_out_ends_the_session_now_and_after_a_restart(kind: HoldKind) -> None:
    world = World()
    worker_id = world.worker()
    world.state.take_touched()
    hold(world, worker_id, kind)
    due = [m.ShutOut(worker_id)] if kind in SHUT_OUT else []
    effects = effects_of(world.state, world.state.take_touched())
    assert [one for one in effects if isinstance(one, m.ShutOut)] == due
    assert [one for one in pending_effects(world.state) if isinstance(one, m.ShutOut)] == due


def test_hold_with_an_end_is_lifted_when_it_comes() -> None:
    world = World()
    worker_id = world.worker()
    ends = Hold(HoldKind.FLAPPING, "came and went", world.at_ms, world.at_ms + 7_000)
    apply(world.state, m.HoldPlaced(worker_id, ends), world.at_ms)
    world.live_on(6_000, step_ms=1_000)
    assert world.who(worker_id).hold(HoldKind.FLAPPING) is not None
    world.live_on(1_000)
    assert world.who(worker_id).holds == ()
    assert world.who(worker_id).placeable


def test_probation_ends_after_its_time_without_a_break() -> None:
    world = World(OPEN)
    worker_id = stranger(world)
    world.live_on(PROBATION_MS - 5_000)
    assert world.who(worker_id).hold(HoldKind.PROBATION) is not None
    world.live_on(5_000)
    assert world.who(worker_id).placeable
    assert world.state.on_probation == {}


def test_probation_counts_anew_after_a_silence() -> None:
    world = World(OPEN)
    worker_id = stranger(world)
    world.live_on(PROBATION_MS - 60_000)
    world.live_on(OPEN.fleet.suspect_after_ms + 5_000, silent=frozenset({worker_id}))
    world.live_on(PROBATION_MS - 5_000)
    assert world.who(worker_id).hold(HoldKind.PROBATION) is not None
    world.live_on(10_000)
    assert world.who(worker_id).hold(HoldKind.PROBATION) is None


def test_probation_does_not_end_while_anything_else_is_held_against_the_worker() -> None:
    world = World(OPEN)
    held, cordoned = stranger(world), stranger(world)
    hold(world, held, HoldKind.OUTDATED)
    device_id = world.who(cordoned).inventory.devices[0].device_id
    world.do(m.HoldDevice(cordoned, device_id, "XID 79"))
    world.live_on(PROBATION_MS + 5_000)
    assert set(world.state.on_probation) == {held, cordoned}
    world.do(m.LiftHold(held, HoldKind.OUTDATED))
    world.do(m.ReleaseDevice(cordoned, device_id))
    world.tick()
    assert world.state.on_probation == {}


def test_device_held_moves_its_job_and_leaves_the_others_alone() -> None:
    world = World()
    worker_id = world.worker(count=2)
    jobs = [world.running(), world.running()]
    (struck,) = world.members(jobs[0])
    world.do(m.HoldDevice(worker_id, struck.device_ids[0], "XID 79: fell off the bus"))
    assert world.state.members[struck.member_id].phase is MemberPhase.STOPPING
    assert [world.job(job_id).status for job_id in jobs] == [JobStatus.PENDING, JobStatus.RUNNING]
    assert "XID 79: fell off the bus" in world.job(jobs[0]).message
    world.reports()
    world.live_on(5_000)
    assert world.plan().empty
    assert "1 with each fitting device cordoned" not in world.job(jobs[0]).message
    assert "0 of 1 fitting devices free" in world.job(jobs[0]).message
    world.do(m.ReleaseDevice(worker_id, struck.device_ids[0]))
    assert len(world.plan().placements) == 1


def test_device_held_is_the_reason_that_a_waiting_job_hears() -> None:
    world = World()
    worker_id = world.worker()
    world.do(m.HoldDevice(worker_id, world.who(worker_id).inventory.devices[0].device_id, "hot"))
    job_id = world.submit(Requirements())
    world.plan()
    assert "1 with each fitting device cordoned" in world.job(job_id).message


def test_device_held_that_the_worker_does_not_have_is_refused() -> None:
    world = World()
    worker_id = world.worker()
    with pytest.raises(RefusedError) as refusal:
        world.do(m.HoldDevice(worker_id, DeviceId("GPU-other"), "hot"))
    assert refusal.value.code is RefusalCode.NOT_FOUND
