"""Wishes: durable until heard, and a reclaim obeyed by the machine itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.agent.wishes import WISHES_FILE, Reclaim, Wishes
from orchestrator.api.v1 import terms_pb2, worker_pb2
from tests.agent.fakes import FakeChannel, FakeClock, settled

CORDON = worker_pb2.OwnerWish(cordon=worker_pb2.Cordon(reason="cleaning"))
UNCORDON = worker_pb2.OwnerWish(uncordon=worker_pb2.Uncordon())
RECLAIM = worker_pb2.OwnerWish(reclaim=worker_pb2.Reclaim(reason="mine", notice_ms=30_000))
BUSY = worker_pb2.OwnerWish(reclaim=worker_pb2.Reclaim(reason="playing", busy=True))
IDLE = worker_pb2.OwnerWish(uncordon=worker_pb2.Uncordon(busy_only=True))
TERMS = worker_pb2.OwnerWish(terms=terms_pb2.Terms(idle_only=True))


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
    """What went out, without the agent's own count."""
    wishes = []
    for message in channel.of_kind("owner_wish"):
        wish = worker_pb2.OwnerWish()
        wish.CopyFrom(message.owner_wish)
        wish.ClearField("number")
        wishes.append(wish)
    return wishes


def acknowledge(wishes: Wishes, number: int, refusal: str = "") -> None:
    ack = worker_pb2.WishAck(number=number, refusal=refusal)
    wishes.take(worker_pb2.SessionResponse(wish_ack=ack))


async def test_wish_without_a_session_survives_a_restart_and_goes_out(tmp_path: Path) -> None:
    clock = FakeClock()
    Wishes(tmp_path, clock).make(CORDON, 0)
    wishes = Wishes(tmp_path, clock)
    assert wishes.pending == ["cordon"]
    async with session(wishes) as channel:
        await channel.await_kind("owner_wish")
        assert sent(channel) == [CORDON]


async def test_wish_is_repeated_at_each_session_until_it_is_acknowledged(tmp_path: Path) -> None:
    clock = FakeClock()
    wishes = Wishes(tmp_path, clock)
    number = wishes.make(CORDON, 0)
    for _ in range(3):
        async with session(wishes) as channel:
            await channel.await_kind("owner_wish")
            clock.now_ms += 3_600_000
            await settled()
            assert sent(channel) == [CORDON]
        assert wishes.pending == ["cordon"]
    acknowledge(wishes, number + 1)
    assert wishes.pending == ["cordon"]
    acknowledge(wishes, number)
    assert Wishes(tmp_path, clock).pending == []
    async with session(wishes) as channel:
        wishes.make(TERMS, 0)
        await channel.await_kind("owner_wish")
        assert sent(channel) == [TERMS]


async def test_wish_refused_for_good_is_not_repeated_and_its_reason_is_kept(tmp_path: Path) -> None:
    wishes = Wishes(tmp_path, FakeClock())
    number = wishes.make(TERMS, 0)
    answering = asyncio.create_task(wishes.answer(number, 5))
    await settled()
    acknowledge(wishes, number, "regions: at most 16")
    assert await answering == "regions: at most 16"
    assert wishes.pending == []
    assert wishes.last_refusal == "terms: regions: at most 16"


async def test_wish_that_nobody_answers_is_waited_for_no_longer_than_asked(tmp_path: Path) -> None:
    wishes = Wishes(tmp_path, FakeClock())
    number = wishes.make(CORDON, 0)
    assert await wishes.answer(number, 0.01) is None
    acknowledge(wishes, number)
    assert wishes.pending == []


async def test_wish_numbers_rise_over_a_restart_so_that_a_late_answer_fits_none(tmp_path: Path) -> None:
    first = Wishes(tmp_path, FakeClock()).make(CORDON, 0)
    wishes = Wishes(tmp_path, FakeClock())
    second = wishes.make(CORDON, 0)
    assert second > first
    acknowledge(wishes, first)
    assert wishes.pending == ["cordon"]


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
