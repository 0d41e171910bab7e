"""Reclaim: notice, the time to write a checkpoint, the end at the deadline, and a try that does not count."""

from __future__ import annotations

import pytest

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase, MemberPhase
from orchestrator.core.decide import effects_of
from orchestrator.core.ids import JobId, WorkerId
from orchestrator.core.jobs import JobStatus, Outcome, Requirements
from orchestrator.core.queries.desired import desired_members
from orchestrator.core.supply.fleet import FleetPolicy
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.supply.terms import Terms
from tests.core.worlds import World

NOTICE_MS = 30_000


def reclaim(
    world: World, worker_id: WorkerId, notice_ms: int | None = None, kind: HoldKind = HoldKind.RECLAIMED
) -> m.Decision:
    return world.do(m.ReclaimWorker(worker_id, kind, "wanted back", notice_ms))


def gang(world: World) -> tuple[JobId, list[WorkerId], WorkerId]:
    """A job that runs on two members and a head host."""
    members = [world.worker() for _ in range(2)]
    head = world.head_host()
    return world.running(Requirements(gpus=2)), members, head


def test_reclaim_gives_a_running_job_notice_as_its_members_terms_say() -> None:
    world = World()
    worker_id = world.worker()
    world.do(m.SetTerms(worker_id, Terms(notice_ms=45_000)))
    job_id = world.running()
    world.do(m.SetTerms(worker_id, Terms(notice_ms=2_000)))
    reclaim(world, worker_id)
    (member,) = world.members(job_id)
    assert member.terms.notice_ms == 45_000, "a member keeps the terms it was placed under"
    assert member.notice is not None
    assert (member.notice.deadline_ms, member.notice.reason) == (world.at_ms + 45_000, "wanted back")
    assert world.job(job_id).status is JobStatus.RUNNING
    assert not world.who(worker_id).placeable


def test_reclaim_without_any_notice_still_gives_the_least_one() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    reclaim(world, worker_id, 0)
    (member,) = world.members(job_id)
    assert member.notice is not None
    assert member.notice.deadline_ms == world.at_ms + FleetPolicy().notice_ms_min


def test_reclaim_again_only_ever_brings_the_end_nearer() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    reclaim(world, worker_id, 20_000)
    first = world.members(job_id)[0].notice
    world.tick(1_000)
    assert reclaim(world, worker_id, 25_000).events == ()
    assert world.members(job_id)[0].notice == first
    reclaim(world, worker_id, 2_000)
    notice = world.members(job_id)[0].notice
    assert notice is not None
    assert notice.deadline_ms == world.at_ms + 2_000


def test_reclaim_ends_the_member_at_its_deadline_and_the_lease_to_the_millisecond() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    (member,) = world.members(job_id)
    reclaim(world, worker_id)
    world.live_on(NOTICE_MS - 1, step_ms=5_000)
    assert world.job(job_id).status is JobStatus.RUNNING
    world.live_on(1)
    assert world.state.members[member.member_id].phase is MemberPhase.STOPPING
    (lease,) = world.leases(job_id)
    assert lease.ended_ms == world.at_ms
    assert world.job(job_id).status is JobStatus.PENDING
    assert "solo on wkr_0001 went as announced: wanted back" in world.job(job_id).message
    world.reports()
    assert world.state.members_on[worker_id] == {}


@pytest.mark.parametrize("who", ["member", "head"])
def test_reclaim_tells_every_worker_of_the_cluster(who: str) -> None:
    world = World()
    job_id, members, head = gang(world)
    world.state.take_touched()
    reclaim(world, head if who == "head" else members[0])
    effects = effects_of(world.state, world.state.take_touched())
    assert {one.worker_id for one in effects if isinstance(one, m.SyncWorker)} == {*members, head}
    for worker_id in (*members, head):
        (desired,) = desired_members(world.state, worker_id)
        (going,) = desired.notices
        assert going.worker_id == (head if who == "head" else members[0])
    world.live_on(NOTICE_MS)
    assert world.job(job_id).attempt_id is None


def test_reclaim_of_a_forming_clusters_member_replaces_it_at_once() -> None:
    world = World()
    members = [world.worker() for _ in range(2)]
    world.head_host()
    job_id = world.submit(Requirements(gpus=2))
    world.plan()
    spare = world.worker()
    reclaim(world, members[0])
    assert len(world.cluster(job_id).vacancies) == 1
    world.plan()
    assert {one.worker_id for one in world.members(job_id)} >= {members[1], spare}
    world.reports()
    world.start(job_id)
    assert (world.job(job_id).status, world.job(job_id).preemptions) == (JobStatus.RUNNING, 0)


def test_reclaim_of_a_forming_clusters_only_machine_asks_for_another_without_a_pause() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.submit()
    world.plan()
    other = world.worker()
    reclaim(world, worker_id)
    job = world.job(job_id)
    assert (job.attempt_id, job.formation_failures, job.not_before_ms) == (None, 0, world.at_ms)
    world.plan()
    assert [one.worker_id for one in world.members(job_id)] == [other]


def test_reclaim_closes_a_warm_cluster_at_once() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    world.finish(job_id)
    reclaim(world, worker_id, kind=HoldKind.BUSY)
    assert world.cluster(job_id).phase is ClusterPhase.CLOSING
    world.reports()
    assert world.state.members_on[worker_id] == {}


def test_reclaim_does_not_wait_for_a_log_beyond_its_deadline() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    world.end(job_id)
    assert world.state.logs_open_in[world.cluster(job_id).cluster_id]
    reclaim(world, worker_id)
    (member,) = world.members(job_id)
    assert (world.cluster(job_id).phase, member.phase) == (ClusterPhase.CLOSING, MemberPhase.UP)
    world.live_on(NOTICE_MS)
    assert world.state.members[member.member_id].phase is MemberPhase.STOPPING


@pytest.mark.parametrize("max_attempts", [1, 2])
def test_reclaim_does_not_count_against_the_attempts_of_a_job(max_attempts: int) -> None:
    world = World()
    job_id = JobId("")
    for index in range(4):
        worker_id = world.worker()
        if index == 0:
            job_id = world.running(max_attempts=max_attempts)
        else:
            world.plan()
            world.reports()
            world.start(job_id)
        reclaim(world, worker_id)
        world.live_on(NOTICE_MS)
        job = world.job(job_id)
        assert (job.status, job.preemptions, job.not_before_ms) == (JobStatus.PENDING, index + 1, world.at_ms)
    for left in reversed(range(max_attempts)):
        world.worker()
        world.live_on(5_000)
        world.plan()
        world.reports()
        world.start(job_id)
        world.fail(world.members(job_id)[0])
        assert world.job(job_id).status is (JobStatus.PENDING if left else JobStatus.FAILED)


def test_reclaim_a_driver_that_fails_under_notice_has_gone_as_it_was_asked() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running(max_attempts=1)
    cluster_id = world.cluster(job_id).cluster_id
    reclaim(world, worker_id)
    world.end(job_id, Outcome.FAILED, 1)
    job = world.job(job_id)
    assert (job.status, job.preemptions) == (JobStatus.PENDING, 1)
    assert "ended under notice" in job.message
    assert world.state.clusters[cluster_id].phase in (ClusterPhase.CLOSING, ClusterPhase.CLOSED)


def test_reclaim_a_driver_that_failed_before_any_notice_has_failed() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    world.end(job_id, Outcome.FAILED, 1)
    reclaim(world, worker_id)
    assert world.job(job_id).status is JobStatus.FAILED


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.STOPPED])
def test_reclaim_a_job_that_ends_in_time_has_ended_and_its_cluster_is_not_kept(outcome: Outcome) -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    reclaim(world, worker_id)
    world.finish(job_id, outcome)
    assert world.job(job_id).status is JobStatus(outcome.upper())
    assert world.cluster(job_id).phase is ClusterPhase.CLOSED
    assert "wanted back" in world.cluster(job_id).reason


def test_reclaim_of_a_job_that_its_tenant_stops_reports_what_its_driver_did() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    reclaim(world, worker_id)
    world.do(m.StopJob(job_id))
    world.end(job_id, Outcome.FAILED, 1)
    assert world.job(job_id).status is JobStatus.FAILED


def test_reclaim_lifted_offers_the_machine_again_but_the_notice_stands() -> None:
    world = World()
    worker_id = world.worker(count=2)
    job_id = world.running()
    reclaim(world, worker_id)
    world.do(m.LiftHold(worker_id, HoldKind.RECLAIMED))
    second = world.submit(tenant="beta")
    world.plan()
    assert [one.worker_id for one in world.members(second)] == [worker_id]
    assert world.members(second)[0].notice is None
    world.live_on(NOTICE_MS)
    assert world.job(job_id).preemptions == 1


def test_reclaim_of_an_idle_worker_only_holds_it() -> None:
    world = World()
    worker_id = world.worker()
    decision = reclaim(world, worker_id)
    assert [type(event) for event in decision.events] == [m.HoldPlaced]
