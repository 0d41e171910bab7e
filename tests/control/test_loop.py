"""The single writer: committed, then acknowledged, then performed; and what callers hear when it cannot be."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.control import loop as loops
from orchestrator.control.loop import Committed, Loop, Waiting
from orchestrator.core import messages as m
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import ClusterId, TenantId
from orchestrator.core.policies import Policies
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.placement import Budget
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.state import State
from tests.control.looping import HandClock, HeldStore, rigged, settle
from tests.core.worlds import World


def tenant(number: int) -> m.CreateTenant:
    return m.CreateTenant(TenantId(f"ten_{number}"), f"tenant {number}")


async def refusal_of(waiting: asyncio.Future[Committed]) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        await waiting
    return caught.value


async def test_loop_acknowledges_only_after_the_commit() -> None:
    async with rigged() as rig:
        rig.store.hold()
        waiting = asyncio.create_task(rig.loop.submit(tenant(1)))
        await rig.store.busy.wait()
        await settle()
        assert not waiting.done()
        rig.store.let_go()
        committed = await waiting
        assert committed.result == "ten_1"
        assert rig.store.transactions[-1].base_version + 1 == committed.version == rig.state.version


async def test_loop_says_how_many_wait_and_since_when_the_oldest_does() -> None:
    async with rigged() as rig:
        assert rig.loop.waiting() == Waiting(0, None)
        rig.store.hold()
        began_ms = rig.clock.monotonic_ms
        under_way = asyncio.create_task(rig.loop.submit(tenant(1)))
        await rig.store.busy.wait()
        rig.clock.monotonic_ms += 700
        behind = asyncio.create_task(rig.loop.submit(tenant(2)))
        await settle()
        assert rig.loop.waiting() == Waiting(1, began_ms)
        rig.store.let_go()
        await asyncio.gather(under_way, behind)
        assert rig.loop.waiting() == Waiting(0, None)


async def test_loop_reads_wait_for_the_commit_under_way_and_see_it() -> None:
    async with rigged() as rig:
        rig.store.hold()
        writing = asyncio.create_task(rig.loop.submit(tenant(1)))
        await rig.store.busy.wait()
        reading = asyncio.create_task(rig.loop.read(lambda state: list(state.tenants)))
        await settle()
        assert not reading.done()
        rig.store.let_go()
        assert await reading == ["ten_1"]
        await writing
        assert await rig.loop.read(lambda state: len(state.tenants)) == 1


async def test_loop_reader_that_fails_hurts_only_itself() -> None:
    async with rigged() as rig:
        rig.store.hold()
        writing = asyncio.create_task(rig.loop.submit(tenant(1)))
        await rig.store.busy.wait()
        bad = asyncio.create_task(rig.loop.read(lambda state: state.tenants[TenantId("none")]))
        good = asyncio.create_task(rig.loop.read(lambda state: state.version))
        await settle()
        rig.store.let_go()
        with pytest.raises(KeyError):
            await bad
        assert await good == (await writing).version


async def test_loop_reader_that_gave_up_is_passed_over() -> None:
    async with rigged() as rig:
        rig.store.hold()
        writing = asyncio.create_task(rig.loop.submit(tenant(1)))
        await rig.store.busy.wait()
        reading = asyncio.create_task(rig.loop.read(lambda state: state.version))
        await settle()
        reading.cancel()
        await settle()
        rig.store.let_go()
        await writing
        assert reading.cancelled()
        assert not rig.task.done()


async def test_loop_commands_that_wait_share_one_commit() -> None:
    async with rigged() as rig:
        rig.store.hold()
        waiting = [asyncio.create_task(rig.loop.submit(tenant(0)))]
        await rig.store.busy.wait()
        waiting += [asyncio.create_task(rig.loop.submit(tenant(number))) for number in range(1, 5)]
        await settle()
        rig.store.let_go()
        versions = [one.version for one in await asyncio.gather(*waiting)]
        assert versions == sorted(set(versions))
        assert [len(one.events) for one in rig.store.transactions[-2:]] == [1, 4]


async def test_loop_refusal_in_a_batch_touches_no_other_command() -> None:
    async with rigged() as rig:
        waiting = [
            asyncio.create_task(rig.loop.submit(command)) for command in (tenant(1), tenant(1), tenant(2))
        ]
        await asyncio.wait(waiting)
        assert (await refusal_of(waiting[1])).code is RefusalCode.ALREADY_EXISTS
        assert [one.result().result for one in (waiting[0], waiting[2])] == ["ten_1", "ten_2"]
        assert len(rig.store.transactions[-1].events) == 2


async def test_loop_command_without_events_is_answered_without_a_commit() -> None:
    async with rigged() as rig:
        before = len(rig.store.transactions)
        rig.store.hold()
        assert (await rig.loop.submit(m.Tick())).version == rig.state.version
        assert len(rig.store.transactions) == before


async def test_loop_steps_come_in_their_order() -> None:
    async with rigged() as rig:
        await rig.loop.submit(tenant(1))
        await settle()
        assert rig.steps == ["decided", "committed", "acknowledged", "performed"]


async def test_loop_performs_only_what_is_committed() -> None:
    world = World()
    worker_id = world.worker()
    world.submit()
    state, store = world.state, HeldStore()
    state.take_touched()
    performed: list[m.Effect] = []
    clock = HandClock(world.monotonic_ms)
    loop = Loop(state, store, clock, performed.extend)
    running = asyncio.create_task(loop.run())
    await settle()
    assert performed == [], "nothing was pending at the start"
    made = plan(state, Queue(state, world.at_ms), world.at_ms, Budget())
    planning = asyncio.create_task(loop.submit(m.ApplyPlan(made, (ClusterId("cl_1"),))))
    await store.busy.wait()
    await settle()
    assert performed == []
    store.let_go()
    await planning
    await settle()
    assert performed == [m.SyncWorker(worker_id)]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_loop_begins_with_what_was_left_pending() -> None:
    world = World()
    worker_id = world.worker()
    world.submit()
    world.plan()
    performed: list[m.Effect] = []
    loop = Loop(world.state, HeldStore(), HandClock(), performed.extend)
    running = asyncio.create_task(loop.run())
    await settle()
    assert performed == [m.SyncWorker(worker_id)]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_loop_commit_that_fails_ends_it_and_tells_everybody_unavailable() -> None:
    async with rigged() as rig:
        rig.store.hold()
        in_batch = asyncio.create_task(rig.loop.submit(tenant(1)))
        await rig.store.busy.wait()
        in_inbox = asyncio.create_task(rig.loop.submit(tenant(2)))
        reading = asyncio.create_task(rig.loop.read(lambda state: state.version))
        await settle()
        rig.store.failure = OSError("disk full")
        rig.store.let_go()
        with pytest.raises(OSError, match="disk full"):
            await rig.task
        for waiting in (in_batch, in_inbox):
            refusal = await refusal_of(waiting)
            assert refusal.code is RefusalCode.UNAVAILABLE
            assert "safe to retry" in refusal.message
        with pytest.raises(RefusedError, match="stopping"):
            await reading
        with pytest.raises(RefusedError, match="stopping"):
            await rig.loop.submit(tenant(3))
        with pytest.raises(RefusedError, match="stopping"):
            await rig.loop.read(lambda state: state.version)
        assert rig.performed == []


async def test_loop_cancelled_tells_who_waits_unavailable() -> None:
    async with rigged() as rig:
        rig.store.hold()
        waiting = asyncio.create_task(rig.loop.submit(tenant(1)))
        await rig.store.busy.wait()
        rig.task.cancel()
        await asyncio.gather(rig.task, return_exceptions=True)
        assert (await refusal_of(waiting)).code is RefusalCode.UNAVAILABLE


async def test_loop_full_inbox_is_exhausted_and_takes_commands_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loops, "INBOX_MAX", 3)
    async with rigged() as rig:
        rig.store.hold()
        waiting = [asyncio.create_task(rig.loop.submit(tenant(0)))]
        await rig.store.busy.wait()
        waiting += [asyncio.create_task(rig.loop.submit(tenant(number))) for number in (1, 2, 3)]
        await settle()
        with pytest.raises(RefusedError, match="try again") as refusal:
            await rig.loop.submit(tenant(4))
        assert refusal.value.code is RefusalCode.EXHAUSTED
        rig.store.let_go()
        await asyncio.gather(*waiting)
        assert (await rig.loop.submit(tenant(4))).result == "ten_4"


async def test_loop_takes_no_more_than_a_batch_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "BATCH_MAX", 2)
    async with rigged() as rig:
        before = len(rig.store.transactions)
        await asyncio.gather(*(rig.loop.submit(tenant(number)) for number in range(5)))
        assert [len(one.events) for one in rig.store.transactions[before:]] == [2, 2, 1]


async def test_loop_command_of_a_caller_who_left_in_time_is_dropped() -> None:
    async with rigged() as rig:
        rig.store.hold()
        first = asyncio.create_task(rig.loop.submit(tenant(1)))
        await rig.store.busy.wait()
        given_up = asyncio.create_task(rig.loop.submit(tenant(2)))
        await settle()
        given_up.cancel()
        await settle()
        rig.store.let_go()
        await first
        await rig.loop.submit(m.Tick())
        assert list(rig.state.tenants) == ["ten_1"]


async def test_loop_command_of_a_caller_who_left_during_its_commit_is_done_all_the_same() -> None:
    async with rigged() as rig:
        rig.store.hold()
        given_up = asyncio.create_task(rig.loop.submit(tenant(1)))
        await rig.store.busy.wait()
        given_up.cancel()
        await settle()
        rig.store.let_go()
        await rig.loop.submit(m.Tick())
        assert list(rig.state.tenants) == ["ten_1"]
        assert not rig.task.done()


async def test_loop_command_that_waited_past_its_deadline_is_undone_and_safe_to_retry() -> None:
    async with rigged() as rig:
        rig.store.hold()
        first = asyncio.create_task(rig.loop.submit(tenant(1)))
        await rig.store.busy.wait()
        late = asyncio.create_task(rig.loop.submit(tenant(2)))
        await settle()
        rig.clock.monotonic_ms += loops.DEADLINE_MS + 1
        in_time = asyncio.create_task(rig.loop.submit(tenant(3)))
        await settle()
        rig.store.let_go()
        await asyncio.gather(first, in_time)
        refusal = await refusal_of(late)
        assert (refusal.code, "safe to retry" in refusal.message) == (RefusalCode.UNAVAILABLE, True)
        assert list(rig.state.tenants) == ["ten_1", "ten_3"]


async def test_loop_watchers_wake_after_each_commit_until_they_go() -> None:
    async with rigged() as rig:
        changed = rig.loop.watch()
        await rig.loop.submit(tenant(1))
        assert changed.is_set()
        changed.clear()
        rig.loop.unwatch(changed)
        await rig.loop.submit(tenant(2))
        assert not changed.is_set()


async def test_loop_sign_of_life_says_whether_the_worker_counts_as_live() -> None:
    world = World()
    worker_id = world.worker()
    loop = Loop(world.state, HeldStore(), HandClock(), lambda _: None)
    assert loop.heard(worker_id)
    world.live_on(30_000, silent=frozenset({worker_id}))
    assert not loop.heard(worker_id)
    assert not Loop(State(Policies()), HeldStore(), HandClock(), lambda _: None).heard(worker_id)
