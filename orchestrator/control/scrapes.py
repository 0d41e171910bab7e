"""Scrapes over the sessions that workers opened: behind whatever NAT, nobody has to be reached.

An order goes down the session, and the answer comes on a call of its own, so that the session never carries megabytes.
One scrape is under way of each target; whoever asks for it meanwhile shares the answer. Nothing of it is kept: what comes
too late, from somebody else or unasked is refused, and all that a session was asked ends with it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import structlog

from orchestrator.adapters.metrics.exposition import (
    OWN_TO_AGENT,
    OWN_TO_RAY,
    Exposition,
    ExpositionError,
    ExpositionTooLargeError,
    Sieve,
)
from orchestrator.api.v1 import telemetry_pb2, worker_pb2
from orchestrator.core.errors import RefusalCode, RefusedError, invalid, not_found

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from orchestrator.control.connected import Session
    from orchestrator.core.ids import MemberId, WorkerId

    Send = Callable[[worker_pb2.SessionResponse], Awaitable[None]]
    Pieces = AsyncIterator[telemetry_pb2.AnswerScrapeRequest]

log = structlog.get_logger(__name__)

PATIENCE_S = 10.0
"""Of one scrape where whoever asks names none: what Prometheus waits by itself."""

PATIENCE_S_MAX = 30.0
"""However long whoever asks would wait."""

UNDER_WAY_MAX = 1_000
"""In all. One that waits for its answer takes less than a kilobyte; ten thousand workers that each take a tenth of a
second, asked every 15 s, are some seventy."""

UNDER_WAY_MAX_PER_WORKER = 16
"""A head host has 64 nodes, which are not asked all at once. As many orders wait for their session at most, those whose
time is over with them: one that is not read takes no more until it is."""

HELD_BYTES_MAX = 128 * 1024 * 1024
"""Of all answers that are coming in: beyond it those that bring more are given up."""

PIECE_BYTES_MAX = 256 * 1024
"""Of one message, packed: an agent sends less."""

PIECES_MAX = 256
"""Of one answer; the largest comes in some thirty."""

REASON_CHARACTERS_MAX = 300
"""Of what an agent says why there is nothing to show."""

AWAY = "the worker has no session, or its agent is of a version that cannot be scraped"
ENDED = "the worker's session ended before it answered"
BUSY = "too many scrapes are under way; the next one may get through"
LATE = "the worker did not answer in time"


class Target(StrEnum):
    """What is scraped."""

    AGENT = "agent"
    RAY = "ray"


class ScrapeOutcome(StrEnum):
    """How a scrape ended."""

    OK = "ok"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    AWAY = "away"
    TOO_LARGE = "too_large"


OWN: dict[Target, tuple[str, ...]] = {Target.AGENT: OWN_TO_AGENT, Target.RAY: OWN_TO_RAY}


class ScrapeError(Exception):
    """There is no answer; its text says why, in words for the operator."""

    def __init__(self, outcome: ScrapeOutcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome


class ScrapeMeter(Protocol):
    """Where scrapes are counted: counters and histograms by their names in the catalogue."""

    def add(self, name: str, amount: float = 1.0, labels: tuple[str, ...] = ()) -> None:
        """A counter grows; 0 shows it before anything has happened."""

    def observe(self, name: str, value: float, labels: tuple[str, ...] = ()) -> None:
        """A histogram takes one more."""


@dataclass(slots=True, eq=False)
class _Scrape:
    """One under way."""

    number: int
    worker_id: WorkerId
    member_id: MemberId
    began_s: float
    deadline_s: float
    """By the event loop's clock, as ``began_s``."""
    answer: asyncio.Future[Exposition]
    timer: asyncio.TimerHandle
    answering: bool = False

    @property
    def target(self) -> Target:
        return Target.RAY if self.member_id else Target.AGENT


@dataclass(slots=True, eq=False)
class _Desk:
    """What one session is asked."""

    orders: asyncio.Queue[_Scrape] = field(default_factory=lambda: asyncio.Queue(UNDER_WAY_MAX_PER_WORKER))
    """Not sent yet. What has ended meanwhile stands there until the session is read."""
    under_way: dict[MemberId, _Scrape] = field(default_factory=dict)

    @property
    def busy(self) -> bool:
        """Whether it is asked as much as it may be."""
        return self.orders.full() or len(self.under_way) >= UNDER_WAY_MAX_PER_WORKER


class Scrapes:
    """All scrapes of one control plane."""

    def __init__(self, meter: ScrapeMeter) -> None:
        self._meter = meter
        for target in Target:
            for outcome in ScrapeOutcome:
                meter.add("scrapes", 0, (target.value, outcome.value))
        self._desks: dict[WorkerId, _Desk] = {}
        self._asked: dict[int, _Scrape] = {}
        """By number."""
        self._numbers = 0
        self._held_bytes = 0

    def can_answer(self, worker_id: WorkerId) -> bool:
        """Whether the worker has a session with an agent that answers scrapes."""
        return worker_id in self._desks

    # ------------------------------------------------------------ asking

    async def scrape(self, worker_id: WorkerId, member_id: MemberId, patience_s: float) -> Exposition:
        """What a worker's agent shows, or the Ray node of its member. Raises ScrapeError.

        Whoever comes to one that is under way shares its answer, and the time that is left of it.
        """
        target = Target.RAY if member_id else Target.AGENT
        desk = self._desks.get(worker_id)
        if desk is None:
            self._count(target, ScrapeOutcome.AWAY, None)
            raise ScrapeError(ScrapeOutcome.AWAY, AWAY)
        scrape = desk.under_way.get(member_id)
        if scrape is None:
            if len(self._asked) >= UNDER_WAY_MAX or desk.busy:
                self._count(target, ScrapeOutcome.REFUSED, None)
                raise ScrapeError(ScrapeOutcome.REFUSED, BUSY)
            scrape = self._begin(worker_id, member_id, min(patience_s, PATIENCE_S_MAX))
            desk.under_way[member_id] = scrape
            desk.orders.put_nowait(scrape)
        # One who goes away must not take the answer from those who wait with him.
        return await asyncio.shield(scrape.answer)

    def _begin(self, worker_id: WorkerId, member_id: MemberId, patience_s: float) -> _Scrape:
        loop = asyncio.get_running_loop()
        self._numbers += 1
        number, now_s = self._numbers, loop.time()
        timer = loop.call_later(patience_s, self._give_up, number)
        answer: asyncio.Future[Exposition] = loop.create_future()
        # Nobody may be left to hear how it failed.
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        scrape = _Scrape(number, worker_id, member_id, now_s, now_s + patience_s, answer, timer)
        self._asked[number] = scrape
        return scrape

    def _give_up(self, number: int) -> None:
        self._fail(self._asked[number], ScrapeOutcome.TIMEOUT, LATE)

    async def attend(self, session: Session, send: Send) -> None:
        """Give one session its orders, until cancelled; all that it was asked ends with it."""
        desk = self._desks[session.worker_id] = _Desk()
        loop = asyncio.get_running_loop()
        try:
            while True:
                scrape = await desk.orders.get()
                if scrape.answer.done():
                    continue
                order = telemetry_pb2.ScrapeOrder(
                    number=scrape.number,
                    member_id=scrape.member_id,
                    deadline_ms=max(1, round((scrape.deadline_s - loop.time()) * 1000)),
                )
                await send(worker_pb2.SessionResponse(scrape_order=order))
        finally:
            if self._desks.get(session.worker_id) is desk:
                del self._desks[session.worker_id]
            for scrape in list(desk.under_way.values()):
                self._forget(desk, scrape)
                self._fail(scrape, ScrapeOutcome.AWAY, ENDED)

    # ------------------------------------------------------------ answers

    async def take(self, worker_id: WorkerId, pieces: Pieces) -> None:
        """Read one answer of a worker to its end. Raises RefusedError for what nobody waits for, or cannot be read."""
        try:
            async with asyncio.timeout(PATIENCE_S_MAX):
                first = await anext(pieces, None)
        except TimeoutError:
            raise RefusedError(RefusalCode.UNAVAILABLE, "the answer did not begin in time") from None
        if first is None:
            raise invalid("number", "number must name the scrape that is answered")
        scrape = self._asked.get(first.number)
        if scrape is None or scrape.worker_id != worker_id or scrape.answering:
            raise not_found("scrape", str(first.number))
        scrape.answering = True
        try:
            async with asyncio.timeout_at(scrape.deadline_s):
                await self._read(scrape, first, pieces)
        except TimeoutError:
            self._fail(scrape, ScrapeOutcome.TIMEOUT, LATE)
            raise RefusedError(RefusalCode.UNAVAILABLE, LATE) from None
        except ExpositionTooLargeError as error:
            self._fail(scrape, ScrapeOutcome.TOO_LARGE, f"the answer is too large: {error}")
            raise invalid("data", f"data: {error}") from None
        except ExpositionError as error:
            self._fail(scrape, ScrapeOutcome.REFUSED, f"the answer cannot be read: {error}")
            raise invalid("data", f"data: {error}") from None
        finally:
            # Also where the call broke off, which would leave whoever waits to his patience.
            self._fail(scrape, ScrapeOutcome.REFUSED, "the answer was cut off")

    async def _read(self, scrape: _Scrape, first: telemetry_pb2.AnswerScrapeRequest, pieces: Pieces) -> None:
        if first.refusal:
            self._fail(scrape, ScrapeOutcome.REFUSED, f"its agent says: {_plain(first.refusal)}")
            return
        sieve = Sieve(OWN[scrape.target])
        piece: telemetry_pb2.AnswerScrapeRequest | None = first
        held_bytes = 0
        try:
            for _ in range(PIECES_MAX):
                if piece is None:
                    raise ExpositionError("its end is missing")
                if len(piece.data) > PIECE_BYTES_MAX:
                    raise ExpositionTooLargeError(f"one message of more than {PIECE_BYTES_MAX} bytes")
                for _step in sieve.steps(piece.data):
                    self._held_bytes += sieve.held_bytes - held_bytes
                    held_bytes = sieve.held_bytes
                    if self._held_bytes > HELD_BYTES_MAX:
                        raise ExpositionError(BUSY)
                    await asyncio.sleep(0)
                if piece.final:
                    self._succeed(scrape, sieve.finish())
                    return
                piece = await anext(pieces, None)
            raise ExpositionTooLargeError(f"more than {PIECES_MAX} messages")
        finally:
            self._held_bytes -= held_bytes

    # ------------------------------------------------------------ the end of each

    def _succeed(self, scrape: _Scrape, exposition: Exposition) -> None:
        if exposition.dropped:
            log.info(
                "scrape_lines_dropped",
                worker_id=scrape.worker_id,
                member_id=scrape.member_id,
                lines=exposition.dropped,
            )
        if self._settle(scrape, ScrapeOutcome.OK):
            scrape.answer.set_result(exposition)

    def _fail(self, scrape: _Scrape, outcome: ScrapeOutcome, reason: str) -> None:
        if self._settle(scrape, outcome):
            scrape.answer.set_exception(ScrapeError(outcome, reason))

    def _settle(self, scrape: _Scrape, outcome: ScrapeOutcome) -> bool:
        """Forget a scrape, once; whether it was under way until now."""
        if self._asked.pop(scrape.number, None) is None:
            return False
        scrape.timer.cancel()
        desk = self._desks.get(scrape.worker_id)
        if desk is not None:
            self._forget(desk, scrape)
        self._count(scrape.target, outcome, asyncio.get_running_loop().time() - scrape.began_s)
        return True

    def _forget(self, desk: _Desk, scrape: _Scrape) -> None:
        if desk.under_way.get(scrape.member_id) is scrape:
            del desk.under_way[scrape.member_id]

    def _count(self, target: Target, outcome: ScrapeOutcome, seconds: float | None) -> None:
        """``seconds`` is None where nothing was sent."""
        self._meter.add("scrapes", 1, (target.value, outcome.value))
        if seconds is not None:
            self._meter.observe("scrape_seconds", seconds, (target.value,))


def _plain(text: str) -> str:
    """Words of others, short and on one line; a tenant's node may have had its say in them."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:REASON_CHARACTERS_MAX])
