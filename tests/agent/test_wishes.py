"""Wishes: durable until heard, and a reclaim obeyed by the machine itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.agent.wishes import SETTLED_MS, WISHES_FILE, Reclaim, Wishes
from orchestrator.api.v1 import worker_pb2
from tests.agent.fakes import FakeChannel, FakeClock, settled
from tests.polling import wait_until_async

CORDON = worker_pb2.OwnerWish(cordon=worker_pb2.Cordon(reason="cleaning"))
UNCORDON = worker_pb2.OwnerWish(uncordon=worker_pb2.Uncordon())
RECLAIM = worker_pb2.OwnerWish(reclaim=worker_pb2.Reclaim(reason="mine", notice_ms=30_000))
BUSY = worker_pb2.OwnerWish(reclaim=worker_pb2.Reclaim(reason="playing", busy=True))
IDLE = worker_pb2.OwnerWish(uncordon=worker_pb2.Uncordon(busy_only=True))
TERMS = worker_pb2.OwnerWish(terms=worker_pb2.Terms(idle_only=True))


@asynccontextmanager
async def session(wishes: Wishes) -> AsyncIterator[FakeChannel]:
    channel = FakeChannel()
    task = asyncio.create_task(wishes.attend(channel))
    try:
        yield channel
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def sent(channel: FakeChannel) -> list[worker_pb2.OwnerWish]:
    return [message.owner_wish for message in channel.of_kind("owner_wish")]


async def test_wish_without_a_session_survives_a_restart_and_goes_out(tmp_path: Path) -> None:
    clock = FakeClock()
    Wishes(tmp_path, clock).make(CORDON, 0)
    wishes = Wishes(tmp_path, clock)
    assert wishes.pending == ["cordon"]
    async with session(wishes) as channel:
        await channel.await_kind("owner_wish")
        assert sent(channel) == [CORDON]


async def test_wish_is_forgotten_only_once_its_session_lived_on(tmp_path: Path) -> None:
    clock = FakeClock()
    wishes = Wishes(tmp_path, clock)
    wishes.make(CORDON, 0)
    async with session(wishes) as channel:
        await channel.await_kind("owner_wish")
    assert wishes.pending == ["cordon"]
    async with session(wishes) as channel:
        await channel.await_kind("owner_wish")
        clock.now_ms += SETTLED_MS
        await wait_until_async(lambda: not wishes.pending, what="the wish to be heard", deadline_s=5)
        assert sent(channel) == [CORDON]
    assert Wishes(tmp_path, clock).pending == []


async def test_reclaim_sent_late_asks_for_the_notice_that_is_left(tmp_path: Path) -> None:
    clock = FakeClock()
    wishes = Wishes(tmp_path, clock)
    wishes.make(RECLAIM, 30_000)
    clock.now_ms += 12_000
    async with session(wishes) as channel:
        await channel.await_kind("owner_wish")
        assert sent(channel)[0].reclaim.notice_ms == 18_000
    clock.now_ms += 60_000
    async with session(wishes) as channel:
        await channel.await_kind("owner_wish")
        assert sent(channel)[0].reclaim.notice_ms == 1


@pytest.mark.parametrize(
    ("made", "left"),
    [
        ([CORDON, CORDON], ["cordon"]),
        ([CORDON, RECLAIM, UNCORDON], ["uncordon"]),
        ([UNCORDON, CORDON], ["uncordon", "cordon"]),
        ([BUSY, IDLE], ["idle"]),
        ([IDLE, BUSY], ["busy"]),
        ([RECLAIM, IDLE], ["reclaim", "idle"]),
        ([TERMS, UNCORDON, TERMS], ["uncordon", "terms"]),
    ],
)
async def test_newer_wish_makes_void_what_it_replaces(
    tmp_path: Path, made: list[worker_pb2.OwnerWish], left: list[str]
) -> None:
    wishes = Wishes(tmp_path, FakeClock())
    for wish in made:
        wishes.make(wish, 1_000)
    assert wishes.pending == left


async def test_wish_made_during_a_session_goes_out_at_once(tmp_path: Path) -> None:
    wishes = Wishes(tmp_path, FakeClock())
    async with session(wishes) as channel:
        await settled()
        wishes.make(TERMS, 0)
        await channel.await_kind("owner_wish")
        assert sent(channel) == [TERMS]


def test_reclaim_the_soonest_is_in_force_and_each_ends_by_its_own_word(tmp_path: Path) -> None:
    clock = FakeClock()
    wishes = Wishes(tmp_path, clock)
    assert wishes.reclaim() is None
    wishes.make(RECLAIM, 30_000)
    wishes.make(BUSY, 5_000)
    assert wishes.busy
    assert wishes.reclaim() == Reclaim(clock.now_ms + 5_000, "playing", "boot-1")
    wishes.make(IDLE, 0)
    assert wishes.reclaim() == Reclaim(clock.now_ms + 30_000, "mine", "boot-1")
    wishes.make(UNCORDON, 0)
    assert wishes.reclaim() is None


def test_reclaim_after_a_restart_of_the_machine_is_over(tmp_path: Path) -> None:
    clock = FakeClock()
    Wishes(tmp_path, clock).make(RECLAIM, 3_600_000)
    clock.boot, clock.now_ms = "boot-2", 1_000
    found = Wishes(tmp_path, clock).reclaim()
    assert found is not None
    assert found.deadline_boottime_ms <= clock.now_ms


def test_file_that_is_damaged_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / WISHES_FILE).write_text("{")
    with pytest.raises(ValueError, match="remove it"):
        Wishes(tmp_path, FakeClock())
