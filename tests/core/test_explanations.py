"""What a tenant is told of a job: why it waits and what would change that, or why it runs where it runs."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from orchestrator.core import messages as m
from orchestrator.core.decide import handle
from orchestrator.core.ids import JobId
from orchestrator.core.jobs import JobPolicy, JobStatus, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.queries.explain import FITS_NOW, Explanation, Placed, Wait, explain
from orchestrator.core.supply.fleet import Isolation
from orchestrator.core.supply.terms import Ask, Terms
from tests.core.worlds import World

FAST_MS = 100


def explained(world: World, job_id: JobId) -> Explanation:
    return explain(world.state, world.state.jobs[job_id], world.at_ms)


def wait_of(world: World, job_id: JobId) -> Wait:
    found = explained(world, job_id)
    assert found.wait is not None
    assert found.placed is None
    return found.wait


def placed_of(world: World, job_id: JobId) -> Placed:
    found = explained(world, job_id)
    assert found.placed is not None
    assert found.wait is None
    return found.placed


# ------------------------------------------------------------ waiting


def test_explain_queued_tells_reason_filters_and_what_would_change_it() -> None:
    world = World()
    for _ in range(3):
        world.worker("RTX3060")
    world.worker("RTX4090")
    job_id = world.submit(Requirements(gpus=1, gpu_model="RTX4090", region="eu"))
    world.plan()
    wait = wait_of(world, job_id)
    assert wait.reason == world.job(job_id).message
    assert wait.reason.startswith("waiting for 1 × RTX4090")
    assert {(one.name, one.workers, one.alone) for one in wait.shortage.removed} == {
        ("gpu_model", 3, 0),
        ("region", 1, 1),
    }
    assert (wait.shortage.fitting, wait.shortage.free, wait.shortage.needed) == (0, 0, 1)
    assert [change.key for change in wait.changes] == ["orch.region"]
    assert wait.estimated_start_ms is None
    assert wait.estimate == "when it starts is not known: no machines here hold all that it asks for"


def test_explain_before_any_plan_works_the_reason_out_and_changes_nothing() -> None:
    world = World()
    job_id = world.submit(Requirements(gpus=2))
    assert "0 of 0 fitting devices free, 2 needed" in wait_of(world, job_id).reason
    world.worker(count=2)
    before, version = world.state.rows(), world.state.capacity_version
    assert wait_of(world, job_id).reason == FITS_NOW
    assert (world.state.rows(), world.state.capacity_version, world.state.waiting) == (before, version, {})


def test_explain_position_counts_own_jobs_and_tenants_in_turn() -> None:
    world = World()
    world.worker()
    world.running(Requirements(gpus=1))
    first, second = world.submit(), world.submit()
    urgent = world.submit(priority=5)
    theirs = world.submit(tenant="beta")
    assert [wait_of(world, one).jobs_before for one in (urgent, first, second)] == [0, 1, 2]
    assert wait_of(world, second).tenants_before == 1
    assert wait_of(world, second).position.startswith("behind 2 of its tenant's jobs; ")
    assert wait_of(world, theirs).tenants_before == 0
    assert "the first of its tenant's queue; it is its tenant's turn" in wait_of(world, theirs).position


def test_explain_quota_is_the_reason_though_machines_are_free() -> None:
    world = World()
    world.worker(count=4)
    world.tenant()
    world.do(m.SetTenant("acme", gpus=m.QuotaLimit(1)))
    job_id = world.submit(Requirements(gpus=2))
    assert "the quota of 1 GPUs at once is less than the 2 asked for" in wait_of(world, job_id).reason


def test_explain_pausing_job_says_until_when_and_after_what() -> None:
    world = World()
    world.worker()
    job_id = world.submit()
    world.plan()
    world.fail(world.members(job_id)[0])
    world.reports()
    paused = world.state.jobs[job_id]
    assert (paused.status, paused.attempt_id) == (JobStatus.PENDING, None)
    wait = wait_of(world, job_id)
    assert wait.not_before_ms == paused.not_before_ms > world.at_ms
    # The only machine is the one that failed it.
    assert "failed this job before it started" in wait.reason
    world.worker()
    assert wait_of(world, job_id).reason == f"it pauses before the next try: {paused.message}"
    world.forward(paused.not_before_ms - world.at_ms)
    assert wait_of(world, job_id).not_before_ms is None


def test_explain_overtaken_often_enough_is_entitled() -> None:
    world = World(Policies(jobs=JobPolicy(overtaken_max=3)))
    job_id = world.submit(Requirements(gpus=2))
    assert not wait_of(world, job_id).entitled
    world.state.put(replace(world.state.jobs[job_id], overtaken=3))
    wait = wait_of(world, job_id)
    assert (wait.entitled, wait.overtaken, wait.overtaken_max) == (True, 3, 3)


def test_shown_message_of_a_job_no_plan_came_to_says_how_many_are_before_it() -> None:
    world = World()
    jobs = [world.submit() for _ in range(3)]
    assert [world.job(one).message for one in jobs] == [
        "Queued.",
        "Queued, behind 1 of your jobs",
        "Queued, behind 2 of your jobs",
    ]


def test_shown_message_of_a_job_that_is_passed_over_says_why_and_how_many_are_before_it() -> None:
    world = World()
    jobs = [world.submit(Requirements(gpus=2)) for _ in range(2)]
    world.plan()
    first, second = (world.job(one).message for one in jobs)
    assert first.startswith("waiting for 2 × GPU together: 0 of 0 fitting devices free, 2 needed")
    assert second == f"{first}, behind 1 of your jobs"


def test_explain_deep_in_a_long_queue_and_a_large_fleet_is_fast() -> None:
    world = World()
    for _ in range(2):
        world.worker("RTX3060")
    job_id = world.submit(Requirements(gpus=8, gpu_model="RTX4090", region="eu", isolation=Isolation.BOX))
    job = world.state.jobs[job_id]
    # As many queue places before it as a tenant can have, without a million jobs to hold in memory.
    world.state.queues[job.tenant_id][:0] = [(-1, number, JobId(f"j{number}")) for number in range(1_000_000)]
    began = time.perf_counter()
    wait = wait_of(world, job_id)
    took_ms = (time.perf_counter() - began) * 1000
    assert wait.jobs_before == 1_000_000
    assert took_ms < FAST_MS


# ------------------------------------------------------------ placed


def test_explain_running_tells_why_what_was_measured_and_the_price() -> None:
    world = World()
    machines = [world.worker(isolation=Isolation.BOX, overlay="nebula", zone="") for _ in range(2)]
    world.head_host(isolation=Isolation.BOX, overlay="nebula", zone="")
    world.do(m.SetTerms(machines[0], Terms(asks=(Ask("RTX4090", 400_000),))))
    job_id = world.running(Requirements(gpus=2, isolation=Isolation.BOX))
    # The market prices the other one; and what an owner asks from now on moves no one.
    world.do(m.SetTerms(machines[0], Terms(asks=(Ask("RTX4090", 900_000),))))
    placed = placed_of(world, job_id)
    assert placed.attempt_id == world.attempt(job_id).attempt_id
    assert placed.why[: len(world.attempt(job_id).explanation)] == world.attempt(job_id).explanation
    assert placed.diameter_us == 21_000
    assert placed.why[-1].startswith("delivered: round trips up to 21.0 ms, that from ")
    market = world.state.policies.market["RTX4090"].microcredits_per_gpu_hour
    assert (placed.devices, placed.microcredits_per_hour) == (2, 400_000 + market)


def test_explain_ended_tells_of_its_last_machines() -> None:
    world = World()
    world.worker()
    job_id = world.running()
    world.finish(job_id)
    placed = placed_of(world, job_id)
    assert (placed.phase, placed.diameter_us, placed.devices) == ("ended", None, 1)
    assert explained(world, job_id).message == world.job(job_id).message


def test_explain_job_that_never_had_machines_has_neither_wait_nor_place() -> None:
    world = World()
    job_id = world.submit()
    handle(world.state, m.StopJob(job_id), world.now())
    found = explained(world, job_id)
    assert (found.wait, found.placed) == (None, None)
    assert found.message == "Job was intentionally stopped."


@pytest.mark.parametrize("gpus", [1, 2])
def test_explain_changes_say_what_the_plan_then_does(gpus: int) -> None:
    """Without what is named the job would start at once."""
    world = World()
    world.worker(count=2)
    job_id = world.submit(Requirements(gpus=gpus, gpu_model="RTX4090", max_price=1))
    world.plan()
    (change,) = wait_of(world, job_id).changes
    price = change.says.removeprefix("orch.max_price=").removesuffix(" would do")
    wanted = Requirements(gpus=gpus, gpu_model="RTX4090", max_price=round(float(price) * 1_000_000))
    world.submit(wanted, tenant="other")
    assert len(world.plan().placements) == 1
