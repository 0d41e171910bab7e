"""Attempts: whose failure it was, how often it is tried again, and stopping at every phase."""

from __future__ import annotations

import pytest

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import AttemptId, JobId
from orchestrator.core.jobs import AttemptPhase, JobPolicy, JobStatus, Outcome
from orchestrator.core.policies import Policies
from orchestrator.core.queries.desired import desired_members
from tests.core.worlds import Driver, World

BACKOFF_MS = JobPolicy().retry_backoff_ms


def lose_ground(world: World, job_id: JobId) -> None:
    """The member dies and its worker shows that nothing is left."""
    world.fail(world.members(job_id)[0], "power cut")
    world.reports()


@pytest.mark.parametrize(
    ("outcome", "status", "code"),
    [
        (Outcome.SUCCEEDED, JobStatus.SUCCEEDED, 0),
        (Outcome.FAILED, JobStatus.FAILED, 3),
        (Outcome.STOPPED, JobStatus.STOPPED, None),
    ],
)
def test_attempt_users_own_end_is_reported_as_it_is(
    outcome: Outcome, status: JobStatus, code: int | None
) -> None:
    world = World()
    world.worker()
    job_id = world.running()
    world.end(job_id, outcome, code)
    job = world.job(job_id)
    assert (job.status, job.driver_exit_code, job.message, job.attempts) == (status, code, "said", 1)
    assert job.ended_at_ms == world.at_ms


def test_attempt_that_loses_its_ground_is_tried_again_after_a_pause() -> None:
    world = World()
    world.worker()
    job_id = world.running()
    lose_ground(world, job_id)
    job = world.job(job_id)
    assert (job.status, job.attempt_id, job.starts) == (JobStatus.PENDING, None, 1)
    assert "power cut" in job.message
    world.plan()
    assert world.job(job_id).attempt_id is None, "the pause is not over"
    world.forward(BACKOFF_MS)
    world.plan()
    assert world.attempt(job_id).attempt_id == AttemptId(f"{job_id}-2")


def test_attempt_of_lost_ground_counts_only_once_its_driver_ran() -> None:
    world = World()
    world.worker()
    job_id = world.ready(max_attempts=1)
    lose_ground(world, job_id)
    assert world.job(job_id).status is JobStatus.PENDING
    world.forward(2 * BACKOFF_MS + JobPolicy().avoid_ms)
    world.plan()
    world.reports()
    world.start(job_id)
    lose_ground(world, job_id)
    job = world.job(job_id)
    assert (job.status, job.attempts, job.starts) == (JobStatus.FAILED, 2, 1)
    assert "orch.max_attempts is reached" in job.message


def test_attempt_worker_that_failed_before_the_start_is_avoided_for_a_while() -> None:
    world = World()
    world.worker()
    job_id = world.ready()
    lose_ground(world, job_id)
    world.forward(2 * BACKOFF_MS)
    world.plan()
    assert "failed this job before it started" in world.job(job_id).message
    world.forward(JobPolicy().avoid_ms)
    world.plan()
    assert world.attempt(job_id).number == 2


def test_attempt_pause_doubles_with_each_failed_formation_up_to_its_bound() -> None:
    policy = JobPolicy()
    pauses = [policy.backoff_ms(failures) for failures in range(12)]
    assert pauses[:4] == [2_000, 4_000, 8_000, 16_000]
    assert pauses == sorted(pauses)
    assert pauses[-1] == policy.backoff_ms(10**9) == policy.retry_backoff_max_ms


def test_attempt_whose_clusters_never_form_fails_with_the_last_reason() -> None:
    world = World(Policies(jobs=JobPolicy(formation_failures_max=2, avoid_ms=0)))
    world.worker()
    job_id = world.submit()
    for _ in range(3):
        world.forward(JobPolicy().retry_backoff_max_ms)
        world.plan()
        lose_ground(world, job_id)
    job = world.job(job_id)
    assert job.status is JobStatus.FAILED
    assert "no cluster could be formed" in job.message
    assert "power cut" in job.message


def test_attempt_ground_failure_told_by_the_agent_is_tried_again() -> None:
    world = World()
    world.worker()
    job_id = world.running()
    world.end(job_id, Outcome.GROUND, None)
    assert world.job(job_id).status is JobStatus.PENDING
    assert world.state.attempts[AttemptId(f"{job_id}-1")].log_complete, "its log is not waited for"


def test_stop_queued_job_ends_at_once() -> None:
    world = World()
    job_id = world.submit()
    assert world.do(m.StopJob(job_id)).result is True
    assert world.job(job_id).status is JobStatus.STOPPED
    assert world.state.queues == {}


def test_stop_forming_job_ends_at_once_and_frees_its_cluster_for_the_next() -> None:
    world = World()
    world.worker()
    job_id = world.submit()
    world.plan()
    cluster_id = world.cluster(job_id).cluster_id
    world.do(m.StopJob(job_id))
    assert world.job(job_id).status is JobStatus.STOPPED
    world.reports()
    assert world.state.clusters[cluster_id].idle_since_ms is not None
    after = world.submit()
    world.plan()
    assert world.cluster(after).cluster_id == cluster_id


@pytest.mark.parametrize("begun", [False, True])
def test_stop_job_on_a_ready_cluster_waits_for_its_agent(begun: bool) -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.ready()
    if begun:
        world.start(job_id)
    world.do(m.StopJob(job_id))
    assert world.do(m.StopJob(job_id)).events == (), "asking twice changes nothing"
    assert not world.job(job_id).status.terminal
    (attempt,) = desired_members(world.state, worker_id)[0].attempts
    assert attempt.stop
    world.end(job_id, Outcome.STOPPED, None)
    assert world.job(job_id).status is JobStatus.STOPPED


def test_stop_job_whose_ground_then_fails_is_stopped_and_not_tried_again() -> None:
    world = World()
    world.worker()
    job_id = world.running()
    world.do(m.StopJob(job_id))
    lose_ground(world, job_id)
    assert world.job(job_id).status is JobStatus.STOPPED


def test_stop_job_between_two_tries_ends_at_once() -> None:
    world = World()
    world.worker()
    job_id = world.running()
    lose_ground(world, job_id)
    world.do(m.StopJob(job_id))
    assert world.job(job_id).status is JobStatus.STOPPED


def test_stop_ended_job_says_that_there_was_nothing_to_stop() -> None:
    world = World()
    world.worker()
    job_id = world.running()
    world.finish(job_id)
    decision = world.do(m.StopJob(job_id))
    assert (decision.events, decision.result) == ((), False)


def test_delete_running_job_is_refused_and_an_ended_one_is_forgotten_but_not_its_money() -> None:
    world = World()
    world.worker()
    job_id = world.running()
    with pytest.raises(RefusedError, match="stop it first") as refusal:
        world.do(m.DeleteJob(job_id))
    assert refusal.value.code is RefusalCode.CONFLICT
    world.finish(job_id)
    lease = world.leases(job_id)[0]
    world.do(m.DeleteJob(job_id))
    assert world.state.jobs == {}
    assert lease.lease_id in world.state.leases
    world.reports()
    for command in (m.DeleteJob(job_id), m.StopJob(job_id)):
        with pytest.raises(RefusedError) as gone:
            world.do(command)
        assert gone.value.code is RefusalCode.NOT_FOUND


def test_queue_higher_priority_goes_first_then_the_older() -> None:
    world = World()
    world.worker()
    low = world.submit(priority=0)
    world.forward(10)
    first, second = world.submit(priority=5), world.submit(priority=5)
    world.plan()
    placed = [job_id for job_id in (low, first, second) if world.job(job_id).attempt_id is not None]
    assert placed == [first]


def test_attempt_log_complete_before_the_news_of_its_end_is_still_asked_for() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    attempt_id = world.attempt(job_id).attempt_id
    world.do(m.CompleteLog(attempt_id, 10))
    assert [one.attempt.attempt_id for one in desired_members(world.state, worker_id)[0].attempts] == [
        attempt_id
    ]
    world.end(job_id)
    assert world.job(job_id).status is JobStatus.SUCCEEDED


def test_log_of_an_ended_job_whose_machine_is_lost_is_not_waited_for() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    attempt_id = world.attempt(job_id).attempt_id
    world.end(job_id)
    assert not world.state.attempts[attempt_id].log_complete
    world.live_on(120_000, silent=frozenset({worker_id}))
    assert world.state.attempts[attempt_id].log_complete
    assert world.state.open_clusters == {}


def test_head_of_a_closing_cluster_stays_until_its_last_log_byte() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    attempt_id, cluster_id = world.attempt(job_id).attempt_id, world.cluster(job_id).cluster_id
    world.end(job_id)
    world.live_on(world.policies.clusters.clean_deadline_ms + 5_000)
    assert world.state.clusters[cluster_id].phase is ClusterPhase.CLOSING
    assert desired_members(world.state, worker_id), "its log is still to come"
    world.do(m.CompleteLog(attempt_id, 7))
    assert desired_members(world.state, worker_id) == ()
    world.reports()
    assert world.state.free_devices[worker_id]


def test_head_of_a_closing_cluster_waits_for_a_log_only_so_long() -> None:
    world = World()
    worker_id = world.worker()
    job_id = world.running()
    world.end(job_id)
    policy = world.policies.clusters
    world.live_on(policy.clean_deadline_ms + policy.log_deadline_ms + 15_000)
    assert desired_members(world.state, worker_id) == ()


def test_complete_log_repeated_keeps_the_first_answer() -> None:
    world = World()
    world.worker()
    job_id = world.running()
    attempt_id = world.attempt(job_id).attempt_id
    world.end(job_id)
    world.do(m.CompleteLog(attempt_id, 10))
    again = world.do(m.CompleteLog(attempt_id, 99))
    assert (again.events, again.result) == ((), 10)
    with pytest.raises(RefusedError, match="no attempt named"):
        world.do(m.CompleteLog(AttemptId("job_x-1"), 1))


def test_attempt_end_without_its_beginning_is_taken_over() -> None:
    world = World()
    world.worker()
    job_id = world.ready()
    attempt_id = world.attempt(job_id).attempt_id
    world.drivers[attempt_id] = Driver(False, Outcome.SUCCEEDED, 0)
    world.reports()
    assert world.state.attempts[attempt_id].phase is AttemptPhase.ENDED
    assert world.job(job_id).status is JobStatus.SUCCEEDED
