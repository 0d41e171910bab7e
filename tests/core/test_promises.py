"""What holds a promise to an entitled job: idle clusters give way to it, plans that do not come to it keep it, and what
is somebody else's is not promised.
"""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core import messages as m
from orchestrator.core.ids import JobId
from orchestrator.core.jobs import JobPolicy, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.scheduling.overtaking import KEPT_MAX
from orchestrator.core.scheduling.placement import Budget
from orchestrator.core.tenancy.fairness import FairnessPolicy
from tests.core.booking import HOUR_MS, reserve, submit_to
from tests.core.preemptions import POLICY, settle, victims_of
from tests.core.test_backfill import overtake, runs
from tests.core.worlds import World, request, sha

POLICIES = Policies(jobs=JobPolicy(overtaken_max=1), fairness=FairnessPolicy(memory_bp=0), preemption=POLICY)
WHOLE = Requirements(gpus=2, one_machine=True)
KEPT = replace(WHOLE, one_machine=False, gpus_per_worker=2)


def running(
    world: World, wanted: Requirements, limit_ms: int, tenant: str, *, interruptible: bool = False
) -> JobId:
    name = world.name("job")
    asked = replace(request(wanted, time_limit_ms=limit_ms), interruptible=interruptible)
    world.do(m.SubmitJob(JobId(name), world.tenant(tenant), f"sub-{name}", asked, sha(name)))
    world.plan()
    world.reports()
    world.start(JobId(name))
    return JobId(name)


def test_idle_cluster_on_the_machines_of_an_entitled_job_gives_way_at_once() -> None:
    world = World(POLICIES)
    world.worker(count=2)
    first = running(world, WHOLE, 0, "acme")
    gang = world.submit(WHOLE, tenant="birch")
    overtake(world, gang)
    world.plan()
    world.finish(first)
    assert len(world.plan().closings) == 1
    settle(world)
    world.plan()
    assert runs(world, gang)


def test_promise_holds_over_a_plan_that_does_not_come_to_its_job() -> None:
    world = World(POLICIES)
    world.worker(count=2)
    running(world, Requirements(), HOUR_MS, "acme")
    gang = world.submit(WHOLE, tenant="acme")
    overtake(world, gang)
    (promise,) = world.plan().promises
    for _ in range(4):
        world.worker("RTX3090")
        world.submit(Requirements(gpu_model="RTX3090"), tenant="acme")
    world.plan()
    for number in range(3):
        world.worker("RTX3090")
        world.submit(tenant=f"other{number}")
    made = world.plan(budget=Budget(placements_max=1))
    assert [one.job_id for one in made.promises] == [promise.job_id]


def test_promise_holds_where_its_machine_is_lent_before_the_turn_of_its_job() -> None:
    """A tenant beyond its share comes last: what others borrowed until then comes back in time."""
    world = World(POLICIES)
    world.worker(count=2)
    running(world, Requirements(), HOUR_MS, "acme")
    gang = world.submit(WHOLE, tenant="acme")
    overtake(world, gang)
    (promise,) = world.plan().promises
    small = [world.submit(tenant=name, time_limit_ms=60_000) for name in ("birch", "cedar")]
    made = world.plan()
    assert [one.job_id for one in made.placements] == small[:1]
    assert [(one.job_id, one.starts_by_ms) for one in made.promises] == [(gang, promise.starts_by_ms)]


def test_promise_holds_when_as_many_others_as_are_kept_for_come_before_its_job() -> None:
    world = World(POLICIES)
    machines = KEPT_MAX + 2
    for _ in range(machines):
        world.worker(count=2)
    for _ in range(2 * machines):
        running(world, Requirements(), HOUR_MS, "acme")
    gang = world.submit(WHOLE, tenant="acme")
    overtake(world, gang)
    (promise,) = world.plan().promises
    for number in range(KEPT_MAX):
        overtake(world, world.submit(WHOLE, tenant=f"other{number}"))
    made = world.plan()
    assert (gang, promise.starts_by_ms) in [(one.job_id, one.starts_by_ms) for one in made.promises]
    assert len(made.promises) == KEPT_MAX


def test_reserved_machines_are_promised_to_nobody_before_their_reservation_ends() -> None:
    world = World(POLICIES)
    world.worker(count=2)
    booked = reserve(world, KEPT, tenant="acme", length_ms=10 * HOUR_MS)
    job_id = submit_to(world, booked, WHOLE, tenant="acme", time_limit_ms=HOUR_MS)
    world.plan()
    world.reports()
    world.start(job_id)
    gang = world.submit(WHOLE, tenant="birch")
    overtake(world, gang)
    assert all(one.starts_by_ms >= booked.until_ms for one in world.plan().promises)


def test_job_of_a_reservation_never_gives_way() -> None:
    world = World(POLICIES)
    world.worker(count=2)
    booked = reserve(world, KEPT, tenant="acme", length_ms=10 * HOUR_MS)
    name = world.name("job")
    asked = replace(request(WHOLE), interruptible=True)
    world.do(m.SubmitJob(JobId(name), world.tenant("acme"), f"sub-{name}", asked, sha(name), booked.name))
    world.plan()
    world.reports()
    world.start(JobId(name))
    world.live_on(POLICY.run_ms_min)
    urgent = world.submit(WHOLE, tenant="acme", priority=9)
    world.live_on(POLICY.wait_for_share_ms)
    assert victims_of(world.plan()) == set()
    assert not runs(world, urgent)


def test_job_of_a_reservation_that_waits_long_beside_interruptible_work_is_planned_for() -> None:
    world = World(POLICIES)
    world.worker(count=2)
    world.worker(count=2)
    booked = reserve(world, KEPT, tenant="acme", in_ms=0, length_ms=10 * HOUR_MS)
    running(world, WHOLE, 0, "birch", interruptible=True)
    for _ in range(2):
        submit_to(world, booked, WHOLE, tenant="acme")
    world.live_on(2 * POLICY.wait_for_share_ms, step_ms=20_000)
    world.plan()
    held = [
        one for one in world.state.jobs.values() if one.request.reservation_id and runs(world, one.job_id)
    ]
    assert len(held) == 1


def test_entitled_jobs_that_nothing_could_ever_hold_do_not_stand_before_one_that_fits() -> None:
    world = World(POLICIES)
    for _ in range(12):
        world.submit(Requirements(gpus=64), tenant="greedy")
    for job_id in list(world.state.jobs):
        overtake(world, job_id)
    world.worker(count=2)
    first = running(world, WHOLE, 0, "acme")
    world.submit(WHOLE, tenant="cedar")
    gang = world.submit(WHOLE, tenant="birch")
    overtake(world, gang)
    world.finish(first)
    world.plan()
    settle(world)
    made = world.plan()
    assert [one.job_id for one in made.placements] == [gang]
