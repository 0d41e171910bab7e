"""Time limits: a try that runs for as long as it may is told to stop, and its job says that it was cut short."""

from __future__ import annotations

import pytest

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.entities import TABLES
from orchestrator.core.ids import JobId
from orchestrator.core.instants import limit_words
from orchestrator.core.jobs import JobPolicy, JobStatus, Outcome
from orchestrator.core.queries.desired import desired_members
from orchestrator.core.state import State
from tests.core.worlds import Driver, World

LIMIT_MS = 90 * 60_000
GRACE_MS = JobPolicy().stop_grace_ms


def limited(world: World, limit_ms: int = LIMIT_MS) -> JobId:
    """A job under a limit whose driver runs."""
    job_id = world.submit(time_limit_ms=limit_ms)
    world.plan()
    world.reports()
    world.start(job_id)
    return job_id


def told_to_stop(world: World, job_id: JobId) -> bool:
    """What the agent beside its head is told of it."""
    head = world.members(job_id)[0]
    members = desired_members(world.state, head.worker_id)
    told = [one for member in members for one in member.attempts if one.attempt.job_id == job_id]
    assert len(told) == 1
    return told[0].stop


@pytest.fixture
def world() -> World:
    made = World()
    made.worker()
    return made


def test_limit_stops_a_try_exactly_when_its_time_is_over(world: World) -> None:
    job_id = limited(world)
    world.live_on(LIMIT_MS - 1)
    assert not told_to_stop(world, job_id)
    world.tick(1)
    assert told_to_stop(world, job_id)
    assert world.job(job_id).message == "Stopping: it ran for its orch.time_limit of 90m."
    world.end(job_id, Outcome.STOPPED, None)
    job = world.job(job_id)
    assert (job.status, job.attempts) == (JobStatus.FAILED, 1)
    assert job.message.startswith("The job ran for its orch.time_limit of 90m and was stopped;")
    assert world.attempt(job_id).outcome is Outcome.FAILED
    assert not world.state.watched.attempts_due


def test_limit_tells_the_worker_by_an_effect_and_only_once(world: World) -> None:
    job_id = limited(world)
    world.live_on(LIMIT_MS - 1)
    world.state.take_touched()
    stopping = world.tick(1).events
    assert [type(event) for event in stopping] == [m.AttemptTimedOut]
    assert ("attempts", world.attempt(job_id).attempt_id) in world.state.take_touched()
    assert not world.tick(1).events


def test_limit_leaves_a_job_alone_that_states_none(world: World) -> None:
    job_id = world.running()
    world.live_on(30 * LIMIT_MS, step_ms=20_000)
    assert world.job(job_id).status is JobStatus.RUNNING
    assert not told_to_stop(world, job_id)


def test_limit_counts_from_the_driver_and_not_from_the_placement(world: World) -> None:
    job_id = world.submit(time_limit_ms=LIMIT_MS)
    world.plan()
    world.reports()
    world.live_on(600_000)
    world.start(job_id)
    world.live_on(LIMIT_MS - 1)
    assert not told_to_stop(world, job_id)
    world.tick(1)
    assert told_to_stop(world, job_id)


def test_limit_of_a_try_after_lost_ground_begins_anew(world: World) -> None:
    job_id = limited(world)
    world.live_on(LIMIT_MS - 60_000)
    world.fail(world.members(job_id)[0], "power cut")
    world.reports()
    world.live_on(60_000)
    world.plan()
    world.reports()
    world.start(job_id)
    world.live_on(LIMIT_MS - 1)
    assert not told_to_stop(world, job_id)
    world.tick(1)
    assert told_to_stop(world, job_id)


def test_limit_job_that_ends_well_while_it_is_told_to_stop_has_succeeded(world: World) -> None:
    job_id = limited(world)
    world.live_on(LIMIT_MS)
    assert told_to_stop(world, job_id)
    world.end(job_id, Outcome.SUCCEEDED, 0)
    assert world.job(job_id).status is JobStatus.SUCCEEDED


def test_limit_job_that_its_tenant_stops_meanwhile_is_stopped(world: World) -> None:
    job_id = limited(world)
    world.live_on(LIMIT_MS)
    world.do(m.StopJob(job_id))
    world.end(job_id, Outcome.STOPPED, None)
    assert world.job(job_id).status is JobStatus.STOPPED


def test_limit_try_that_does_not_end_goes_with_its_cluster_and_is_not_tried_again(world: World) -> None:
    job_id = limited(world)
    world.live_on(LIMIT_MS)
    cluster_id = world.cluster(job_id).cluster_id
    world.live_on(GRACE_MS - 1)
    assert world.job(job_id).status is JobStatus.RUNNING
    world.tick(1)
    job = world.job(job_id)
    assert job.status is JobStatus.FAILED
    assert "ran for its orch.time_limit of 90m" in job.message
    assert world.state.clusters[cluster_id].phase is ClusterPhase.CLOSING
    assert "did not end when it was told to" in world.state.clusters[cluster_id].reason


def test_limit_ground_that_fails_while_the_try_is_stopped_does_not_bring_it_back(world: World) -> None:
    job_id = limited(world)
    world.live_on(LIMIT_MS)
    world.fail(world.members(job_id)[0], "power cut")
    job = world.job(job_id)
    assert job.status is JobStatus.FAILED
    assert "orch.time_limit" in job.message


def test_limit_of_a_job_that_was_stopped_already_says_nothing(world: World) -> None:
    job_id = limited(world)
    world.live_on(LIMIT_MS - 1)
    world.do(m.StopJob(job_id))
    assert not world.tick(1).events
    world.end(job_id, Outcome.STOPPED, None)
    assert world.job(job_id).status is JobStatus.STOPPED


def test_limit_is_known_to_a_loaded_state(world: World) -> None:
    job_id = limited(world)
    loaded = State(world.policies)
    for table in TABLES:
        for entity in world.state.rows()[table].values():
            loaded.put(entity)
    assert loaded.watched.attempts_due == world.state.watched.attempts_due
    started_ms = world.attempt(job_id).started_at_ms
    assert started_ms is not None
    assert [due_ms for due_ms, _ in loaded.watched.attempts_due] == [started_ms + LIMIT_MS]


def test_limit_looks_at_those_first_whose_time_is_over_first() -> None:
    world = World()
    for _ in range(3):
        world.worker()
    late, soon, unlimited = limited(world, 7_200_000), limited(world, 3_600_000), world.running()
    due = [attempt_id for _, attempt_id in world.state.watched.attempts_due]
    assert due == [world.attempt(soon).attempt_id, world.attempt(late).attempt_id]
    world.drivers[world.attempt(unlimited).attempt_id] = Driver()
    world.live_on(3_600_000)
    assert [told_to_stop(world, job_id) for job_id in (soon, late, unlimited)] == [True, False, False]


@pytest.mark.parametrize(
    ("limit_ms", "words"),
    [(90 * 60_000, "90m"), (12 * 3_600_000, "12h"), (48 * 3_600_000, "2d"), (61_000, "61s"), (1, "1ms")],
)
def test_limit_words_are_what_the_tenant_wrote(limit_ms: int, words: str) -> None:
    assert limit_words(limit_ms) == words
