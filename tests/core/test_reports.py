"""What a report may and may not say: stale, foreign and dishonest ones change nothing that is not theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase, MemberPhase
from orchestrator.core.ids import JobId, WorkerId
from orchestrator.core.jobs import AttemptPhase, JobStatus, Outcome, Requirements
from tests.core.worlds import Driver, World


def gang() -> tuple[World, JobId, list[WorkerId], WorkerId]:
    world = World()
    workers = [world.worker() for _ in range(2)]
    head = world.head_host()
    job_id = world.running(Requirements(gpus=2))
    return world, job_id, workers, head


def test_report_older_than_the_stop_never_releases() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    before = world.state.version
    (member,) = world.members(job_id)
    world.fail(member)
    stopped = world.state.members[member.member_id]
    assert stopped.phase is MemberPhase.STOPPING
    for seen in (0, before, stopped.stopping_version - 1):
        world.report(worker_id, (), seen)
        assert world.state.members[member.member_id].phase is MemberPhase.STOPPING
    world.report(worker_id, (), stopped.stopping_version)
    assert world.state.members[member.member_id].phase is MemberPhase.RELEASED


def test_report_without_a_planned_member_means_only_that_it_has_not_begun() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.submit()
    world.plan()
    assert world.report(worker_id, ()).events == ()
    assert world.members(job_id)[0].phase is MemberPhase.PLANNED


def test_report_without_a_prepared_member_fails_it() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    world.report(worker_id, ())
    assert world.job(job_id).status is JobStatus.PENDING
    assert "no longer has this member" in world.job(job_id).message


def test_report_of_another_workers_member_is_ignored() -> None:
    world, job_id, (one, two), _ = gang()
    foreign = tuple(replace(report, failed=True, up=False) for report in world.honest(two))
    decision = world.report(one, (*world.honest(one), *foreign))
    assert decision.events == ()
    assert world.job(job_id).status is JobStatus.RUNNING


def test_report_of_an_attempt_by_a_member_that_carries_no_head_is_ignored() -> None:
    world, job_id, (one, _), _ = gang()
    said = m.ObservedAttempt(world.attempt(job_id).attempt_id, False, Outcome.SUCCEEDED, "done", 0)
    world.report(one, tuple(replace(report, attempts=(said,)) for report in world.honest(one)))
    assert world.job(job_id).status is JobStatus.RUNNING


def test_report_of_an_attempt_by_the_head_of_another_cluster_is_ignored() -> None:
    world = World()
    world.worker("RTX3060")
    world.worker("RTX4090")
    small, large = (
        world.running(Requirements(gpu_model="RTX3060")),
        world.running(Requirements(gpu_model="RTX4090")),
    )
    said = m.ObservedAttempt(world.attempt(large).attempt_id, False, Outcome.FAILED, "done", 1)
    other = world.members(small)[0].worker_id
    world.report(other, tuple(replace(report, attempts=(said,)) for report in world.honest(other)))
    assert world.job(large).status is JobStatus.RUNNING


def test_report_of_a_running_attempt_before_ready_begins_no_lease() -> None:
    world = World()
    workers = [world.worker() for _ in range(2)]
    head = world.head_host()
    job_id = world.submit(Requirements(gpus=2))
    world.plan()
    for worker_id in (*workers, head, head):
        world.report(worker_id)
    assert world.cluster(job_id).phase is ClusterPhase.JOINING
    said = m.ObservedAttempt(world.attempt(job_id).attempt_id, True, Outcome.NONE, "running", None)
    world.report(head, tuple(replace(report, attempts=(said,), nodes=()) for report in world.honest(head)))
    assert world.attempt(job_id).phase is AttemptPhase.PLACED
    assert world.state.leases == {}


def test_report_of_an_ended_attempt_is_ignored() -> None:
    world = World()
    world.worker()
    job_id = world.running()
    world.end(job_id, Outcome.FAILED, 1)
    world.drivers[world.attempt(job_id).attempt_id] = Driver(False, Outcome.SUCCEEDED, 0)
    world.reports()
    assert world.job(job_id).status is JobStatus.FAILED


def test_report_of_an_earlier_attempt_does_not_touch_the_one_that_counts() -> None:
    world = World()
    world.worker()
    job_id = world.running()
    first = world.attempt(job_id)
    stale = world.honest(world.members(job_id)[0].worker_id)
    world.fail(world.members(job_id)[0])
    world.reports()
    world.worker()
    world.forward(5_000)
    world.plan()
    world.reports()
    world.start(job_id)
    said = m.ObservedAttempt(first.attempt_id, False, Outcome.SUCCEEDED, "late", 0)
    old_worker = world.state.members[stale[0].member_id].worker_id
    world.report(old_worker, (*world.honest(old_worker), replace(stale[0], attempts=(said,))))
    assert world.job(job_id).status is JobStatus.RUNNING
    assert world.attempt(job_id).number == 2


def test_report_of_a_generation_nobody_gave_out_says_nothing_of_the_attempt() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    said = m.ObservedAttempt(world.attempt(job_id).attempt_id, False, Outcome.SUCCEEDED, "forged", 0)
    world.report(
        worker_id, tuple(replace(one, generation=99, attempts=(said,)) for one in world.honest(worker_id))
    )
    assert world.job(job_id).status is JobStatus.RUNNING


@pytest.mark.parametrize("field", ["failed", "stopping"])
def test_report_of_a_member_that_ended_by_itself_fails_it_with_its_reason(field: str) -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    changes = {"up": False, "reason": "out of memory", field: True}
    world.report(worker_id, tuple(replace(one, **changes) for one in world.honest(worker_id)))  # type: ignore[arg-type]
    assert "out of memory" in world.job(job_id).message


def test_report_repeated_changes_nothing() -> None:
    world, job_id, (one, two), head = gang()
    for worker_id in (one, two, head, one, head):
        assert world.report(worker_id).events == ()
    assert world.job(job_id).starts == 1


def test_report_of_members_nobody_knows_is_ignored() -> None:
    world, _, (one, two), _ = gang()
    unknown = replace(world.honest(two)[0], member_id=type(world.honest(two)[0].member_id)("cl_none-0"))
    assert world.report(one, (*world.honest(one), unknown)).events == ()


def test_lost_worker_coming_back_with_its_old_node_is_told_to_have_nothing() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    old = world.honest(worker_id)
    member = world.members(job_id)[0]
    world.live_on(120_000, silent=frozenset({worker_id}))
    world.do(m.ConnectWorker(worker_id, None))
    world.report(worker_id, old)
    assert world.honest(worker_id) == ()
    assert world.state.members[member.member_id].phase is MemberPhase.STOPPING
    assert world.job(job_id).status is JobStatus.PENDING
    world.report(worker_id, ())
    world.plan()
    assert world.attempt(job_id).number == 2
