"""Scrapes over sessions, on a virtual clock: shared, bounded, in time, and of nobody but the worker that was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.adapters.metrics.exposition import TEXT_BYTES_MAX, packed
from orchestrator.api.v1 import telemetry_pb2, worker_pb2
from orchestrator.control import scrapes as module
from orchestrator.control.connected import Session
from orchestrator.control.scrapes import (
    PIECE_BYTES_MAX,
    UNDER_WAY_MAX_PER_WORKER,
    ScrapeError,
    ScrapeOutcome,
    Scrapes,
)
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import MemberId, WorkerId
from orchestrator.sim.virtual import VirtualLoop

Piece = telemetry_pb2.AnswerScrapeRequest

RIG, OTHER = WorkerId("wrk_rig"), WorkerId("wrk_other")
ITSELF = MemberId("")
NODE = MemberId("clu_1-0")
TEXT = b"orchestrator_agent_sessions_total 3\n"
RAY_TEXT = b"ray_tasks 3\n"
PATIENCE_S = 9.5


@dataclass
class Counted:
    """ScrapeMeter."""

    ends: list[tuple[str, str]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    shown: set[tuple[str, ...]] = field(default_factory=set)

    def add(self, name: str, amount: float = 1.0, labels: tuple[str, ...] = ()) -> None:
        assert name == "scrapes"
        self.shown.add(labels)
        if amount:
            target, outcome = labels
            self.ends.append((target, outcome))

    def observe(self, name: str, value: float, labels: tuple[str, ...] = ()) -> None:
        assert (name, labels) == ("scrape_seconds", (self.ends[-1][0],))
        self.seconds.append(value)


@dataclass
class Worker:
    """One with a session; it answers when the test says so."""

    scrapes: Scrapes
    worker_id: WorkerId
    orders: asyncio.Queue[telemetry_pb2.ScrapeOrder] = field(default_factory=asyncio.Queue)
    task: asyncio.Task[None] | None = None
    hearing: asyncio.Event = field(default_factory=asyncio.Event)
    """It takes what is sent."""

    def __post_init__(self) -> None:
        self.hearing.set()

    async def open(self) -> None:
        session = Session(self.worker_id, "", "", 0, 0)
        self.task = asyncio.create_task(self.scrapes.attend(session, self._send))
        await asyncio.sleep(0)

    async def _send(self, message: worker_pb2.SessionResponse) -> None:
        await self.hearing.wait()
        assert message.WhichOneof("message") == "scrape_order"
        self.orders.put_nowait(message.scrape_order)

    async def close(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def answer(self, text: bytes = TEXT) -> telemetry_pb2.ScrapeOrder:
        """Answer the next order in full."""
        order = await self.orders.get()
        await self.scrapes.take(self.worker_id, pieces(*whole(order.number, text)))
        return order


@dataclass
class Network:
    """Scrapes, and the rig that is asked."""

    counted: Counted
    scrapes: Scrapes
    rig: Worker

    def ask(self, member_id: MemberId = ITSELF, patience_s: float = PATIENCE_S) -> asyncio.Task[Any]:
        return asyncio.create_task(self.scrapes.scrape(RIG, member_id, patience_s))


Scenario = Callable[[Network], Coroutine[Any, Any, None]]


def play(scenario: Scenario) -> Counted:
    """Run a scenario with an open session; what was counted in it. Nothing may be left under way."""

    async def whole_story() -> Counted:
        counted = Counted()
        scrapes = Scrapes(counted)
        rig = Worker(scrapes, RIG)
        await rig.open()
        await scenario(Network(counted, scrapes, rig))
        await rig.close()
        return counted

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(whole_story())


async def pieces(*some: Piece) -> AsyncIterator[Piece]:
    for piece in some:
        yield piece


def whole(number: int, text: bytes) -> Iterable[Piece]:
    """An answer in messages of 100 bytes."""
    data = packed(text)
    for start in range(0, len(data), 100):
        yield Piece(
            number=0 if start else number, data=data[start : start + 100], final=start + 100 >= len(data)
        )


async def clock_moves(seconds: float) -> None:
    """The virtual one: nobody waits."""
    there = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, there.set)
    await there.wait()


async def failure(asked: asyncio.Task[Any]) -> ScrapeError:
    with pytest.raises(ScrapeError) as caught:
        await asked
    return caught.value


async def refusal(scrapes: Scrapes, worker_id: WorkerId, *some: Piece) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        await scrapes.take(worker_id, pieces(*some))
    return caught.value


def test_scrape_of_an_agent_is_ordered_over_its_session_and_answered() -> None:
    async def story(network: Network) -> None:
        asked = network.ask()
        order = await network.rig.answer()
        assert (order.member_id, order.deadline_ms) == ("", 9_500)
        assert (await asked).text == TEXT

    counted = play(story)
    assert counted.ends == [("agent", "ok")]
    assert len(counted.seconds) == 1
    assert len(counted.shown) == 2 * 5


def test_scrape_of_a_node_names_its_member_and_drops_what_is_not_rays() -> None:
    async def story(network: Network) -> None:
        asked = network.ask(NODE)
        order = await network.rig.answer(RAY_TEXT + b"orchestrator_loop_lag_seconds 99\n")
        assert order.member_id == NODE
        shown = await asked
        assert shown.dropped == 1
        assert b"orchestrator_loop_lag_seconds" not in shown.text

    assert play(story).ends == [("ray", "ok")]


def test_scrapes_of_one_target_at_once_are_one() -> None:
    async def story(network: Network) -> None:
        asked = [network.ask() for _ in range(50)]
        await network.rig.answer()
        texts = {shown.text for shown in await asyncio.gather(*asked)}
        assert texts == {TEXT}
        assert network.rig.orders.empty()
        again = network.ask()
        await network.rig.answer()
        assert (await again).text == TEXT

    assert play(story).ends == [("agent", "ok")] * 2


def test_scrape_whose_first_asker_goes_away_still_answers_the_second() -> None:
    async def story(network: Network) -> None:
        first, second = network.ask(), network.ask()
        await asyncio.sleep(0)
        first.cancel()
        await network.rig.answer()
        assert (await second).text == TEXT

    play(story)


def test_scrape_of_a_worker_without_a_session_is_away_at_once() -> None:
    async def story(network: Network) -> None:
        error = await failure(asyncio.create_task(network.scrapes.scrape(OTHER, ITSELF, PATIENCE_S)))
        assert error.outcome is ScrapeOutcome.AWAY
        assert asyncio.get_running_loop().time() == 0

    counted = play(story)
    assert (counted.ends, counted.seconds) == ([("agent", "away")], [])


def test_scrape_that_nobody_answers_ends_in_time_and_the_next_is_asked_anew() -> None:
    async def story(network: Network) -> None:
        error = await failure(network.ask())
        assert error.outcome is ScrapeOutcome.TIMEOUT
        assert asyncio.get_running_loop().time() == pytest.approx(PATIENCE_S)
        late = await network.rig.orders.get()
        asked = network.ask()
        await asyncio.sleep(0)
        missed = await refusal(network.scrapes, RIG, *whole(late.number, TEXT))
        assert missed.code is RefusalCode.NOT_FOUND
        await network.rig.answer()
        assert (await asked).text == TEXT

    counted = play(story)
    assert counted.ends == [("agent", "timeout"), ("agent", "ok")]
    assert counted.seconds[0] == pytest.approx(PATIENCE_S)


def test_scrape_with_endless_patience_ends_at_the_bound() -> None:
    async def story(network: Network) -> None:
        await failure(network.ask(patience_s=1e9))
        assert asyncio.get_running_loop().time() == pytest.approx(module.PATIENCE_S_MAX)

    play(story)


def test_order_that_a_slow_worker_let_wait_is_not_sent_after_its_time() -> None:
    async def story(network: Network) -> None:
        network.rig.hearing.clear()
        stuck, waiting = network.ask(NODE), network.ask()
        for asked in (stuck, waiting):
            assert (await failure(asked)).outcome is ScrapeOutcome.TIMEOUT
        network.rig.hearing.set()
        asked = network.ask()
        orders = [await network.rig.orders.get(), await network.rig.orders.get()]
        assert [order.number for order in orders] == [1, 3]
        await network.scrapes.take(RIG, pieces(*whole(3, TEXT)))
        assert (await asked).text == TEXT

    play(story)


def test_answer_of_another_worker_is_refused_and_the_right_one_still_taken() -> None:
    async def story(network: Network) -> None:
        other = Worker(network.scrapes, OTHER)
        await other.open()
        asked = network.ask()
        order = await network.rig.orders.get()
        forged = await refusal(network.scrapes, OTHER, *whole(order.number, b"ray_lies 1\n"))
        assert forged.code is RefusalCode.NOT_FOUND
        await network.scrapes.take(RIG, pieces(*whole(order.number, TEXT)))
        assert (await asked).text == TEXT
        await other.close()

    play(story)


@pytest.mark.parametrize("number", [0, 2, 2**63])
def test_answer_with_a_number_that_nobody_asked_is_refused(number: int) -> None:
    async def story(network: Network) -> None:
        asked = network.ask()
        order = await network.rig.orders.get()
        assert order.number == 1
        missed = await refusal(network.scrapes, RIG, *whole(number, TEXT))
        assert missed.code is RefusalCode.NOT_FOUND
        await network.scrapes.take(RIG, pieces(*whole(order.number, TEXT)))
        await asked

    play(story)


def test_answer_given_twice_is_refused_the_second_time() -> None:
    async def story(network: Network) -> None:
        asked = network.ask()
        order = await network.rig.answer()
        assert (await asked).text == TEXT
        assert (await refusal(network.scrapes, RIG, *whole(order.number, TEXT))).code is RefusalCode.NOT_FOUND

    play(story)


def test_answer_that_says_nothing_is_refused_in_time() -> None:
    async def silence() -> AsyncIterator[Piece]:
        await asyncio.Event().wait()
        yield Piece()

    async def story(network: Network) -> None:
        with pytest.raises(RefusedError, match="did not begin"):
            await network.scrapes.take(RIG, silence())
        assert (await refusal(network.scrapes, RIG)).code is RefusalCode.INVALID

    play(story)


BAD = {
    "no gzip": ([Piece(data=b"ray_x 1\n", final=True)], "refused", "cannot be read"),
    "cut off": ([Piece(data=packed(RAY_TEXT)[:-4], final=True)], "refused", "cannot be read"),
    "without its end": ([Piece(data=packed(RAY_TEXT))], "refused", "its end is missing"),
    "empty": ([Piece(final=True)], "refused", "cannot be read"),
    "a bomb": ([Piece(data=packed(b"ray_x 1\n" * TEXT_BYTES_MAX), final=True)], "too_large", "too large"),
    "one message of 1 MB": ([Piece(data=b"x" * (PIECE_BYTES_MAX + 1))], "too_large", "too large"),
    "messages without end": ([Piece(data=b"") for _ in range(10_000)], "too_large", "messages"),
}


@pytest.mark.parametrize("case", BAD)
def test_answer_that_is_no_exposition_ends_its_scrape_with_a_reason(case: str) -> None:
    some, outcome, words = BAD[case]

    async def story(network: Network) -> None:
        asked = network.ask(NODE)
        order = await network.rig.orders.get()
        first = Piece()
        first.CopyFrom(some[0])
        first.number = order.number
        refused = await refusal(network.scrapes, RIG, first, *some[1:])
        assert refused.code is RefusalCode.INVALID
        error = await failure(asked)
        assert error.outcome == outcome
        assert words in str(error)

    assert play(story).ends == [("ray", outcome)]


def test_answer_that_trickles_without_end_is_over_at_the_deadline() -> None:
    async def story(network: Network) -> None:
        asked = network.ask()
        order = await network.rig.orders.get()

        async def trickle() -> AsyncIterator[Piece]:
            yield Piece(number=order.number)
            while True:
                await clock_moves(1)
                yield Piece()

        with pytest.raises(RefusedError):
            await network.scrapes.take(RIG, trickle())
        assert asyncio.get_running_loop().time() == pytest.approx(PATIENCE_S)
        assert (await failure(asked)).outcome is ScrapeOutcome.TIMEOUT

    play(story)


def test_answer_whose_call_breaks_off_ends_its_scrape_at_once() -> None:
    async def story(network: Network) -> None:
        asked = network.ask()
        order = await network.rig.orders.get()

        async def broken() -> AsyncIterator[Piece]:
            yield Piece(number=order.number)
            await asyncio.Event().wait()

        call = asyncio.create_task(network.scrapes.take(RIG, broken()))
        await clock_moves(1)
        call.cancel()
        assert "cut off" in str(await failure(asked))
        assert asyncio.get_running_loop().time() == pytest.approx(1)

    play(story)


def test_answer_that_says_why_there_is_none_is_told_on_one_line() -> None:
    async def story(network: Network) -> None:
        asked = network.ask(NODE)
        order = await network.rig.orders.get()
        said = Piece(number=order.number, refusal="no such node\n\x1b[2J" + "x" * 1_000_000, final=True)
        await network.scrapes.take(RIG, pieces(said))
        error = await failure(asked)
        assert error.outcome is ScrapeOutcome.REFUSED
        assert "no such node" in str(error)
        assert str(error).isprintable()
        assert len(str(error)) < 400

    assert play(story).ends == [("ray", "refused")]


def test_session_that_ends_takes_all_its_scrapes_with_it() -> None:
    async def story(network: Network) -> None:
        unsent, sent = network.ask(), network.ask(NODE)
        order = await network.rig.orders.get()
        await network.rig.close()
        for asked in (unsent, sent):
            assert (await failure(asked)).outcome is ScrapeOutcome.AWAY
        assert not network.scrapes.can_answer(RIG)
        late = await refusal(network.scrapes, RIG, *whole(order.number, TEXT))
        assert late.code is RefusalCode.NOT_FOUND
        await network.rig.open()
        asked = network.ask()
        await network.rig.orders.get()
        await network.rig.answer()
        assert (await asked).text == TEXT

    play(story)


def test_session_that_a_newer_one_replaced_ends_without_the_newer_ones_scrapes() -> None:
    async def story(network: Network) -> None:
        old = network.rig.task
        assert old is not None
        await network.rig.open()
        asked = network.ask()
        await asyncio.sleep(0)
        old.cancel()
        await asyncio.gather(old, return_exceptions=True)
        assert network.scrapes.can_answer(RIG)
        await network.rig.answer()
        assert (await asked).text == TEXT

    play(story)


def test_scrapes_of_one_worker_are_bounded_and_others_go_on() -> None:
    async def story(network: Network) -> None:
        other = Worker(network.scrapes, OTHER)
        await other.open()
        asked = [network.ask(MemberId(f"clu_{number}-0")) for number in range(UNDER_WAY_MAX_PER_WORKER)]
        await asyncio.sleep(0)
        over = await failure(network.ask())
        assert over.outcome is ScrapeOutcome.REFUSED
        assert "too many" in str(over)
        beside = asyncio.create_task(network.scrapes.scrape(OTHER, ITSELF, PATIENCE_S))
        await other.answer()
        assert (await beside).text == TEXT
        for one in asked:
            await network.rig.answer(RAY_TEXT)
            assert (await one).text == RAY_TEXT
        last = network.ask()
        await network.rig.answer()
        await last
        await other.close()

    play(story)


def test_scrapes_in_all_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNDER_WAY_MAX", 2)

    async def story(network: Network) -> None:
        asked = [network.ask(), network.ask(NODE)]
        await asyncio.sleep(0)
        assert "too many" in str(await failure(network.ask(MemberId("clu_2-0"))))
        for one in asked:
            await failure(one)
        await network.rig.orders.get()
        await network.rig.orders.get()
        again = network.ask()
        await network.rig.answer()
        await again

    play(story)


def test_answers_held_at_once_are_bounded_and_what_they_held_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = RAY_TEXT * 10_000
    monkeypatch.setattr(module, "HELD_BYTES_MAX", len(text) + 1_000)

    async def story(network: Network) -> None:
        stalled, refused = network.ask(NODE), network.ask(MemberId("clu_2-0"))
        first, second = await network.rig.orders.get(), await network.rig.orders.get()

        async def without_end() -> AsyncIterator[Piece]:
            yield Piece(number=first.number, data=packed(text))
            await asyncio.Event().wait()

        stalling = asyncio.create_task(network.scrapes.take(RIG, without_end()))
        await clock_moves(1)
        await refusal(network.scrapes, RIG, *whole(second.number, text))
        assert "too many" in str(await failure(refused))
        await failure(stalled)
        await asyncio.gather(stalling, return_exceptions=True)
        again = network.ask(NODE)
        await network.rig.answer(text)
        assert (await again).text == text

    play(story)
