"""Machines that are taken back under jobs that run: no job is lost, no device held twice, no notice overstayed."""

from __future__ import annotations

from hypothesis import given, settings

from orchestrator.core import messages as m
from orchestrator.core.jobs import Outcome
from tests.core.worlds import Driver, World
from tests.properties.stories import LEAVING_STEPS, Story, check_deadlines, check_held, check_jobs

ROUNDS_MAX = 1_500
"""Of five seconds. Jobs of different shapes wait for one another's warm clusters, two minutes each time."""


@given(LEAVING_STEPS)
@settings(max_examples=150)
def test_leaving_any_order_of_reclaims_loses_no_job_and_holds_no_device_twice(
    steps: list[tuple[str, int]],
) -> None:
    Story().busy().play(steps)


@given(LEAVING_STEPS)
@settings(max_examples=40)
def test_leaving_every_job_ends_once_there_are_machines_that_stay(steps: list[tuple[str, int]]) -> None:
    story = Story().busy()
    story.play(steps)
    world = story.world
    for number in (1, 3, 5, 9):
        story.step("join", number)
    story.step("cpu", 0)
    story.step("head", 1)
    for _ in range(ROUNDS_MAX):
        settle(world)
        if all(job.status.terminal for job in world.state.jobs.values()):
            break
    waiting = [world.job(job_id) for job_id in world.state.jobs if not world.job(job_id).status.terminal]
    assert waiting == [], "\n".join(f"{job.job_id}: {job.message}" for job in waiting)
    assert world.state.spares == {}


def settle(world: World) -> None:
    """Five quiet seconds in which every driver that can begin does, and ends."""
    world.live_on(5_000)
    check_deadlines(world.state, world.at_ms)
    world.plan()
    world.reports()
    world.drivers = {
        attempt_id: Driver(running=False, outcome=Outcome.SUCCEEDED, exit_code=0)
        for attempt_id in world.state.attempt_in.values()
    }
    world.reports()
    for open_logs in list(world.state.logs_open_in.values()):
        for attempt_id in list(open_logs):
            if world.state.attempts[attempt_id].ended_at_ms is not None:
                world.do(m.CompleteLog(attempt_id, 100))
    check_held(world.state)
    check_jobs(world.state)
