"""What holds a promise to an entitled job: it is stored, idle clusters give way to it, plans that do not come to its job
keep it, and what is somebody else's is not promised.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core import messages as m
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import JobId
from orchestrator.core.jobs import JobPolicy, Promise, Requirements
from orchestrator.core.policies import Policies
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.overtaking import KEPT_MAX
from orchestrator.core.scheduling.placement import Budget
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.tenancy.fairness import FairnessPolicy
from tests.core.booking import HOUR_MS, reserve, submit_to
from tests.core.fleets import let_go
from tests.core.preemptions import POLICY, settle, victims_of
from tests.core.test_backfill import Waiting, overtake, promised, runs
from tests.core.test_claims import reloaded
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


def held_up(world: World) -> tuple[JobId, Promise]:
    """A job that wants a whole machine, half of it busy for an hour: overtaken, it is promised that machine."""
    world.worker(count=2)
    running(world, Requirements(), HOUR_MS, "acme")
    gang = world.submit(WHOLE, tenant="acme")
    overtake(world, gang)
    return gang, promised(world)


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
    gang, promise = held_up(world)
    for _ in range(4):
        world.worker("RTX3090")
        world.submit(Requirements(gpu_model="RTX3090"), tenant="acme")
    world.plan()
    for number in range(3):
        world.worker("RTX3090")
        world.submit(tenant=f"other{number}")
    made = world.plan(budget=Budget(placements_max=1))
    assert made.promises == ()
    assert world.state.promises == {gang: promise}


def test_promise_holds_where_its_machine_is_lent_before_the_turn_of_its_job() -> None:
    """A tenant beyond its share comes last: what others borrowed until then comes back in time."""
    world = World(POLICIES)
    gang, promise = held_up(world)
    small = [world.submit(tenant=name, time_limit_ms=60_000) for name in ("birch", "cedar")]
    made = world.plan()
    assert [one.job_id for one in made.placements] == small[:1]
    assert world.state.promises == {gang: promise}


def test_promise_holds_when_as_many_others_as_are_kept_for_come_before_its_job() -> None:
    world = World(POLICIES)
    machines = KEPT_MAX + 2
    for _ in range(machines):
        world.worker(count=2)
    for _ in range(2 * machines):
        running(world, Requirements(), HOUR_MS, "acme")
    gang = world.submit(WHOLE, tenant="acme")
    overtake(world, gang)
    promise = promised(world)
    for number in range(KEPT_MAX):
        overtake(world, world.submit(WHOLE, tenant=f"other{number}"))
    world.plan()
    assert world.state.promises[gang] == promise
    assert len(world.state.promises) == KEPT_MAX


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
    world.plan()
    assert all(one.starts_by_ms >= booked.until_ms for one in world.state.promises.values())


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


# ------------------------------------------------------------ what is stored


def test_promise_is_written_once_and_no_later_plan_changes_anything() -> None:
    """Not even when its machines are late: the job there is told to stop, and no agent says that it has."""
    world = World(POLICIES)
    gang, promise = held_up(world)
    written = world.state.jobs[gang]
    for _ in range(20):
        world.live_on(HOUR_MS // 10, step_ms=20_000)
        assert world.plan().empty
    assert world.at_ms > promise.starts_by_ms + HOUR_MS // 2
    assert world.state.jobs[gang] == written


def test_promise_of_several_machines_and_a_head_is_written_once() -> None:
    world = World(POLICIES)
    for _ in range(2):
        world.head_host(4)
    for _ in range(6):
        world.worker()
        running(world, Requirements(), HOUR_MS, "acme")
    for _ in range(2):
        overtake(world, world.submit(Requirements(gpus=3), tenant="acme"))
    world.plan()
    before = dict(world.state.promises)
    assert len(before) == 2
    for _ in range(5):
        world.live_on(60_000)
        assert world.plan().empty
    assert world.state.promises == before


def test_promise_is_written_again_only_where_its_machines_are_free_sooner() -> None:
    world = World(POLICIES)
    for _ in range(2):
        world.worker(count=2)
    first = [running(world, Requirements(), hours * HOUR_MS, "acme") for hours in (1, 2, 4, 6)]
    gang = world.submit(WHOLE, tenant="acme")
    overtake(world, gang)
    before = promised(world)
    world.finish(first[2])
    settle(world)
    assert promised(world) == before
    world.finish(first[1])
    settle(world)
    assert promised(world).starts_by_ms == before.starts_by_ms - HOUR_MS
    assert promised(world).devices == before.devices


def test_promise_survives_a_restart_and_stays_kept_from_those_that_come_first() -> None:
    case = Waiting()
    for name in ("birch", "cedar"):
        case.world.submit(tenant=name)
    state = case.world.state = reloaded(case.world)
    promise = state.promises[case.gang]
    assert promise.starts_by_ms == case.by_ms
    assert case.world.plan().empty
    assert case.world.state.promises == {case.gang: promise}


def test_promise_goes_when_its_job_starts_or_ends() -> None:
    case = Waiting()
    case.world.do(m.StopJob(case.gang))
    assert case.world.state.promises == {}
    assert case.world.state.jobs[case.gang].promise is None
    case = Waiting()
    let_go(case.world, case.busy)
    assert case.world.plan().promises == ()
    assert runs(case.world, case.gang)
    assert case.world.state.promises == {}
    assert case.world.state.jobs[case.gang].promise is None


def test_promise_of_a_plan_that_is_applied_twice_is_written_once() -> None:
    case = Waiting()
    assert case.made.promises
    assert case.world.apply(case.made).events == ()


def test_promise_of_a_plan_whose_machine_went_meanwhile_is_made_again() -> None:
    world = World(POLICIES)
    machine = world.worker(count=2)
    running(world, Requirements(), HOUR_MS, "acme")
    gang = world.submit(WHOLE, tenant="acme")
    overtake(world, gang)
    made = plan(world.state, Queue(world.state, world.at_ms), world.at_ms, Budget())
    world.worker("RTX3060")
    assert made.fruitless
    assert not made.empty
    world.do(m.DrainWorker(machine))
    with pytest.raises(RefusedError) as refused:
        world.apply(made)
    assert refused.value.code is RefusalCode.STALE
    assert world.state.promises == {}


def test_promises_are_few_however_many_jobs_are_entitled() -> None:
    world = World(POLICIES)
    for _ in range(2 * KEPT_MAX):
        world.worker(count=2)
        for _ in range(2):
            running(world, Requirements(), HOUR_MS, "acme")
    for number in range(3 * KEPT_MAX):
        overtake(world, world.submit(WHOLE, tenant=f"other{number}"))
    world.plan()
    before = dict(world.state.promises)
    assert len(before) == KEPT_MAX
    for _ in range(3):
        world.live_on(60_000)
        assert world.plan().empty
    assert world.state.promises == before
    assert sum(one.promise is not None for one in world.state.jobs.values()) == KEPT_MAX
