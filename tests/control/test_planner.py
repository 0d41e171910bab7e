"""The planner: plans are made on what is committed, made again when they come too late, and said only once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import pytest

from orchestrator.control.loop import Committed, Loop
from orchestrator.control.planner import Planner
from orchestrator.core import messages as m
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import JobId
from orchestrator.core.scheduling.placement import Budget, Plan
from tests.control.looping import HandClock, HeldStore, settle
from tests.core.test_backfill import Waiting
from tests.core.worlds import World
from tests.polling import wait_until_async


class Crossing(Loop):
    """A loop into which something else comes between a plan and its application."""

    def __init__(self, world: World, store: HeldStore) -> None:
        super().__init__(world.state, store, HandClock(world.monotonic_ms), lambda _: None)
        self.before_apply: list[Callable[[], None]] = []
        self.applied: list[m.ApplyPlan] = []

    async def submit(self, command: m.Command) -> Committed:
        if isinstance(command, m.ApplyPlan):
            self.applied.append(command)
            if self.before_apply:
                self.before_apply.pop(0)()
        return await super().submit(command)


@dataclass(slots=True)
class Counted:
    """What was measured of each plan."""

    plans: list[tuple[int, int]] = field(default_factory=list)
    looks: int = 0
    came_true: list[int] = field(default_factory=list)
    came_late: int = 0

    def looked(self) -> None:
        self.looks += 1

    def planned(self, seconds: float, made: Plan) -> None:
        assert seconds >= 0
        self.plans.append((len(made.placements) + len(made.reuses), len(made.deferrals)))

    def applied(self, made: Plan) -> None:
        self.came_true.append(len(made.placements) + len(made.reuses))

    def stale(self) -> None:
        self.came_late += 1


@asynccontextmanager
async def planning(
    world: World, budget: Budget | None = None
) -> AsyncIterator[tuple[Planner, Crossing, HeldStore, Counted]]:
    """A planner over a running loop; a test asks for each plan."""
    store, counted, numbers = HeldStore(), Counted(), count()
    store.let_go()
    world.state.take_touched()
    loop = Crossing(world, store)
    planner = Planner(loop, lambda prefix: f"{prefix}_p{next(numbers)}", budget or Budget(), counted)
    running = asyncio.create_task(loop.run())
    try:
        yield planner, loop, store, counted
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_planner_goes_on_after_a_plan_that_a_fault_of_ours_kept_from_being_applied() -> None:
    world = World()
    world.worker()
    world.submit()
    async with planning(world) as (planner, loop, store, _):

        def broken() -> None:
            raise RefusedError(RefusalCode.INTERNAL, "nothing was done")

        loop.before_apply.append(broken)
        assert await planner.plan_once() is False
        assert store.transactions == []
        assert await planner.plan_once() is True
        assert len(store.transactions) == 1


async def test_planner_with_nothing_queued_writes_nothing() -> None:
    world = World()
    world.worker()
    async with planning(world) as (planner, loop, store, _):
        assert await planner.plan_once() is False
        assert loop.applied == []
        assert store.transactions == []


async def test_planner_places_what_fits_and_asks_to_be_called_again() -> None:
    world = World()
    world.worker()
    job_id = world.submit()
    async with planning(world) as (planner, _, _, counted):
        assert await planner.plan_once() is True
        assert world.cluster(job_id).cluster_id == "cl_p0"
        assert await planner.plan_once() is False
        assert counted.plans[0] == (1, 0)


async def test_planner_stale_plan_is_made_again() -> None:
    world = World()
    first = world.worker()
    job_id = world.submit()

    def drain() -> None:
        world.do(m.DrainWorker(first))
        world.state.take_touched()

    async with planning(world) as (planner, loop, _, counted):
        loop.before_apply.append(drain)
        assert await planner.plan_once() is True, "there is something to do again at once"
        assert (counted.came_late, counted.came_true) == (1, [])
        assert world.job(job_id).attempt_id is None
        other = world.worker()
        assert await planner.plan_once() is True
        assert world.members(job_id)[0].worker_id == other
        assert (counted.came_late, counted.came_true, counted.looks) == (1, [1], 2)


async def test_planner_reasons_are_shown_and_never_written() -> None:
    world = World()
    jobs = [world.submit() for _ in range(3)]
    async with planning(world) as (planner, loop, store, counted):
        assert await planner.plan_once() is False
        assert all(world.job(job_id).message.startswith("waiting for") for job_id in jobs)
        for _ in range(3):
            assert await planner.plan_once() is False
        assert store.transactions == []
        assert loop.applied == []
        assert [deferred for _, deferred in counted.plans] == [3]


async def test_planner_reason_that_changed_is_shown() -> None:
    world = World()
    job_id = world.submit()
    async with planning(world) as (planner, _, _, _):
        await planner.plan_once()
        before = world.job(job_id).message
        world.head_host()
        world.state.take_touched()
        await planner.plan_once()
        assert world.job(job_id).message != before


async def test_planner_promise_is_written_before_it_is_told_and_only_once() -> None:
    case = Waiting(plans=False)
    async with planning(case.world) as (planner, loop, store, _):
        assert await planner.plan_once() is False, "the next plan would place no more"
        promise = case.world.state.jobs[case.gang].promise
        assert [list(one.events) for one in store.transactions] == [[m.JobPromised(case.gang, promise)]]
        assert "at the latest" not in case.world.job(case.gang).message
        for _ in range(3):
            case.world.head_host()
            case.world.state.take_touched()
            assert await planner.plan_once() is False
            assert case.world.job(case.gang).message.endswith("at the latest")
        assert len(loop.applied) == len(store.transactions) == 1


@pytest.mark.parametrize("code", [RefusalCode.EXHAUSTED, RefusalCode.UNAVAILABLE])
async def test_planner_busy_loop_is_asked_again_later_and_not_at_once(code: RefusalCode) -> None:
    world = World()
    world.worker()
    world.submit()

    def refuse() -> None:
        raise RefusedError(code, "not now")

    async with planning(world) as (planner, loop, _, _):
        loop.before_apply.append(refuse)
        assert await planner.plan_once() is False
        assert await planner.plan_once() is True


async def test_planner_refusal_that_is_a_bug_is_not_hidden() -> None:
    world = World()
    world.worker()
    world.submit()

    def refuse() -> None:
        raise RefusedError(RefusalCode.INVALID, "a bug")

    async with planning(world) as (planner, loop, _, _):
        loop.before_apply.append(refuse)
        with pytest.raises(RefusedError, match="a bug"):
            await planner.plan_once()


async def test_planner_plans_on_committed_state_only() -> None:
    world = World()
    world.worker()
    world.submit()
    async with planning(world) as (planner, loop, store, _):
        store.hold()
        writing = asyncio.create_task(loop.submit(m.CreateTenant(world.tenant(), "beta")))
        await store.busy.wait()
        asked = asyncio.create_task(planner.plan_once())
        await settle()
        assert loop.applied == []
        store.let_go()
        await writing
        assert await asked is True


async def test_planner_running_serves_whatever_is_submitted_then() -> None:
    world = World()
    world.worker(count=3)
    jobs = [world.submit() for _ in range(2)]
    async with planning(world, Budget(placements_max=1)) as (planner, loop, _, _):
        running = asyncio.create_task(planner.run())
        placed = lambda: all(one.attempt_id is not None for one in world.state.jobs.values())  # noqa: E731
        await wait_until_async(placed, what="both jobs to be placed", deadline_s=60)
        job = world.job(jobs[0])
        late = m.SubmitJob(JobId("job_late"), job.tenant_id, "late", job.request, "x")
        await loop.submit(late)
        await wait_until_async(placed, what="the later job to be placed", deadline_s=60)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
