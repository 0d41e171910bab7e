"""An all-reduce among the members of a cluster over TCP: the traffic of training, without a training library.

Each rank connects to the next and is connected to by the one before. A vector of float32 is summed in n-1 steps
of reduce-scatter and handed round in n-1 steps of all-gather, each step a chunk of 1/n. What every rank starts from
is known to all, and all sums are whole numbers that float32 holds exactly, so each round is checked to the bit.

Time is taken by each rank; all ranks then exchange their times and report the slowest, so they report the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from orchestrator.adapters.probes.records import DURATION_US_MAX, RANKS_MAX, RANKS_MIN, ReduceMeasured
from orchestrator.adapters.probes.wire import (
    GREETING_MS_MAX,
    Instruments,
    ProbeFailed,
    Stream,
    Target,
    accept_all,
    answer_greeting,
    connect,
    greet,
    purpose_key,
)

BYTES_MIN: Final = 64 * 1024
BYTES_MAX: Final = 1 << 30
"""A chunk for each of 64 ranks at least; at most what a member can spare beside its job, three times over."""

ROUNDS_MAX: Final = 100
DEADLINE_MS_MAX: Final = 600_000
"""A probe that takes ten minutes keeps GPUs waiting for more than the answer is worth."""

RETRY_S: Final = 0.1
"""Between tries to reach a rank that has not begun yet: unnoticed in a formation of seconds."""

MEETING_PERCENT: Final = 50
"""Of the deadline. The other half is for telling all others who did not come, and for the rounds."""

RUN_CHARACTERS_MAX: Final = 128
BLOCK_BYTES: Final = 256 * 1024
"""Summed while the next block is under way; fits a processor's cache."""

PATTERN: Final = 251
"""The vector repeats after so many values, a prime, so that no chunk equals its neighbour."""

REQUEST: Final = struct.Struct(">16sH")
WORD: Final = struct.Struct(">q")
ACCEPTED: Final = 1
OTHER_RUN: Final = 2
NOBODY: Final = -1
NS_PER_US: Final = 1000

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RingPlan:
    """The same on every rank, except ``rank``: who takes part, where each listens, how much, how often, how long."""

    run: str
    ranks: tuple[Target, ...]
    rank: int
    bytes: int = 16 << 20
    rounds: int = 3
    deadline_ms: int = 60_000

    def __post_init__(self) -> None:
        for field, value, low, high in (
            ("ranks", len(self.ranks), RANKS_MIN, RANKS_MAX),
            ("rank", self.rank, 0, len(self.ranks) - 1),
            ("bytes", self.bytes, BYTES_MIN, BYTES_MAX),
            ("rounds", self.rounds, 1, ROUNDS_MAX),
            ("deadline_ms", self.deadline_ms, 1, DEADLINE_MS_MAX),
            ("run", len(self.run), 1, RUN_CHARACTERS_MAX),
        ):
            if not low <= value <= high:
                raise ValueError(f"{field} is {value}; an all-reduce takes {low} to {high}")
        if self.bytes % 4:
            raise ValueError(f"bytes is {self.bytes}; a vector of float32 has a multiple of 4")

    @property
    def successor(self) -> int:
        """The rank that this one sends to."""
        return (self.rank + 1) % len(self.ranks)

    @property
    def predecessor(self) -> int:
        """The rank that sends to this one."""
        return (self.rank - 1) % len(self.ranks)

    def name(self, rank: int) -> str:
        """A rank as errors name it."""
        return f"rank {rank}, {self.ranks[rank]}"


@dataclass(slots=True)
class _Links:
    """To the next rank and from the one before; None while, or because, it did not come."""

    successor: Stream | None = None
    predecessor: Stream | None = None
    reason: str = "it did not connect"

    def close(self) -> None:
        for stream in (self.successor, self.predecessor):
            if stream is not None:
                stream.close()


async def measure_ring(
    plan: RingPlan, listener: socket.socket, key: bytes, instruments: Instruments
) -> ReduceMeasured:
    """Take part as ``plan.rank``, reached through ``listener``, which stays the caller's.

    Raises:
        ProbeFailed: names the rank that did not come, went away, or did not get the true sum.
    """
    derived = purpose_key(key, b"ring")
    links = _Links()
    try:
        async with asyncio.timeout(plan.deadline_ms / 1000):
            await _meet(plan, links, listener, derived, instruments)
            ring = _Ring(plan, *await _tell_who_is_missing(plan, links))
            return await _measure(plan, ring, instruments.clock_ns)
    except TimeoutError:
        before, after = plan.name(plan.predecessor), plan.name(plan.successor)
        raise ProbeFailed(
            f"the all-reduce was not done within {plan.deadline_ms} ms; {before}, or {after}, became silent:"
            " measure the paths to both, or allow more time"
        ) from None
    finally:
        links.close()


async def _meet(
    plan: RingPlan, links: _Links, listener: socket.socket, key: bytes, instruments: Instruments
) -> None:
    """Fill ``links`` as far as the neighbours come within the time for meeting."""
    here = asyncio.Event()

    async def welcome(stream: Stream) -> None:
        kept = False
        try:
            async with asyncio.timeout(GREETING_MS_MAX / 1000):
                _, verdict = await answer_greeting(
                    stream, key, REQUEST.size, lambda data: _judge(plan, data), instruments.random_bytes
                )
            if verdict == ACCEPTED:
                # Whoever comes again did not hear the first verdict in time.
                if links.predecessor is not None:
                    links.predecessor.close()
                kept, links.predecessor = True, stream
                here.set()
        finally:
            if not kept:
                stream.close()

    listener.settimeout(0)
    door = asyncio.create_task(accept_all(listener, welcome))
    try:
        async with asyncio.timeout(plan.deadline_ms * MEETING_PERCENT / 100 / 1000):
            await _reach(plan, links, key, instruments)
            await here.wait()
    except TimeoutError:
        return
    finally:
        door.cancel()
        await asyncio.gather(door, return_exceptions=True)


def _judge(plan: RingPlan, data: bytes) -> int:
    digest, rank = REQUEST.unpack(data)
    return ACCEPTED if digest == _digest(plan) and rank == plan.predecessor else OTHER_RUN


def _digest(plan: RingPlan) -> bytes:
    """What the ranks of one run have in common."""
    common = repr((plan.run, plan.ranks, plan.bytes, plan.rounds))
    return hashlib.sha256(common.encode()).digest()[:16]


async def _reach(plan: RingPlan, links: _Links, key: bytes, instruments: Instruments) -> None:
    """Try until the next rank is there; it may begin later than this one."""
    request = REQUEST.pack(_digest(plan), plan.rank)
    while True:
        stream: Stream | None = None
        try:
            async with asyncio.timeout(GREETING_MS_MAX / 1000):
                stream = await connect(instruments.new_socket, plan.ranks[plan.successor])
                verdict = await greet(stream, key, request, instruments.random_bytes)
            if verdict == ACCEPTED:
                links.successor, stream = stream, None
                return
            links.reason = "it measures another run: give all ranks the same run, ranks, bytes and rounds"
        except TimeoutError:
            links.reason = "it does not answer"
        except (OSError, ProbeFailed) as error:
            links.reason = str(error)
        finally:
            if stream is not None:
                stream.close()
        await asyncio.sleep(RETRY_S)


async def _tell_who_is_missing(plan: RingPlan, links: _Links) -> tuple[Stream, Stream]:
    """(to the next rank, from the one before), once all ranks know that all came.

    Who is missing is handed round over the links that exist, so that every rank names the same one.
    """
    missing = NOBODY
    if links.predecessor is None:
        missing = plan.predecessor
    elif links.successor is None:
        missing = plan.successor
    for _ in range(len(plan.ranks) - 1):
        with contextlib.suppress(OSError):
            if links.successor is not None:
                await links.successor.write(WORD.pack(missing))
        try:
            heard = NOBODY if links.predecessor is None else await _read_word(links.predecessor)
        except OSError:
            heard = plan.predecessor
        missing = heard if missing == NOBODY else missing
    if missing == NOBODY and links.successor is not None and links.predecessor is not None:
        return links.successor, links.predecessor
    if not 0 <= missing < len(plan.ranks):
        raise ProbeFailed(f"{plan.name(plan.predecessor)} named a rank that does not exist")
    reason = f": {links.reason}" if missing == plan.successor and links.successor is None else ""
    raise ProbeFailed(f"{plan.name(missing)} did not come{reason}")


class _Ring:
    """The joined ranks, seen from one of them."""

    def __init__(self, plan: RingPlan, successor: Stream, predecessor: Stream) -> None:
        self._plan = plan
        self._count = len(plan.ranks)
        self._successor = successor
        self._predecessor = predecessor

    async def exchange(self, word: int) -> tuple[int, ...]:
        """Everybody's word, by rank; nobody gets them before everybody gave one."""
        words = {self._plan.rank: word}
        for step in range(self._count - 1):
            await self._send(WORD.pack(word))
            word = words[(self._plan.predecessor - step) % self._count] = await self._receive_word()
        return tuple(words[rank] for rank in range(self._count))

    async def all_reduce(self, vector: Vector) -> None:
        """Replace ``vector`` by the sum of all ranks' vectors."""
        chunks = np.array_split(vector, self._count)
        scratch = np.empty(BLOCK_BYTES // vector.itemsize, dtype=np.float32)
        for step in range(self._count - 1):
            here = (self._plan.rank - step) % self._count
            await self._at_once(chunks[here], self._add(chunks[here - 1], scratch))
        for step in range(self._count - 1):
            here = (self._plan.rank - step) % self._count
            await self._at_once(chunks[(here + 1) % self._count], self._receive(_bytes_of(chunks[here])))

    async def _at_once(self, out: Vector, receiving: Coroutine[None, None, None]) -> None:
        """Send and receive at the same time: a ring in which all only send stands still."""
        sending = asyncio.create_task(self._send(_bytes_of(out)))
        try:
            await receiving
            await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _add(self, into: Vector, scratch: Vector) -> None:
        """Add the chunk that comes to ``into``, block by block as it comes."""
        for start in range(0, len(into), len(scratch)):
            target = into[start : start + len(scratch)]
            block = scratch[: len(target)]
            await self._receive(_bytes_of(block))
            target += block

    async def _send(self, data: bytes | memoryview) -> None:
        try:
            await self._successor.write(data)
        except OSError as error:
            raise ProbeFailed(f"{self._plan.name(self._plan.successor)} went away: {error}") from None

    async def _receive(self, into: memoryview) -> None:
        try:
            await self._predecessor.read_into(into)
        except OSError as error:
            raise ProbeFailed(f"{self._plan.name(self._plan.predecessor)} went away: {error}") from None

    async def _receive_word(self) -> int:
        room = bytearray(WORD.size)
        await self._receive(memoryview(room))
        return int(WORD.unpack(room)[0])


async def _measure(plan: RingPlan, ring: _Ring, clock_ns: Callable[[], int]) -> ReduceMeasured:
    """One round to open TCP's windows, then those that count; of the slowest rank's times the median."""
    durations_us = []
    for number in range(plan.rounds + 1):
        vector = _vector(plan, plan.rank + 1, number)
        await ring.exchange(0)
        started_ns = clock_ns()
        await ring.all_reduce(vector)
        elapsed_us = max(1, (clock_ns() - started_ns) // NS_PER_US)
        count = len(plan.ranks)
        is_true = np.array_equal(vector, _vector(plan, count * (count + 1) // 2, number * count))
        told = await ring.exchange(elapsed_us if is_true else 0)
        for rank, told_us in enumerate(told):
            if told_us == 0:
                raise ProbeFailed(
                    f"{plan.name(rank)} did not get the true sum: its memory or its path is faulty"
                )
            if not 0 < told_us <= DURATION_US_MAX:
                raise ProbeFailed(f"{plan.name(rank)} reports a round of {told_us} µs, which cannot be")
        durations_us.append(max(told))
    counted_us = sorted(durations_us[1:])
    return ReduceMeasured(len(plan.ranks), plan.bytes, counted_us[len(counted_us) // 2], "ring")


def _vector(plan: RingPlan, factor: int, offset: int) -> Vector:
    """0 … 250 over and over, × ``factor`` + ``offset``: all below 2²⁴, which float32 counts up to exactly."""
    places = np.arange(plan.bytes // 4, dtype=np.int32) % PATTERN
    return (places * factor + offset).astype(np.float32)


def _bytes_of(vector: Vector) -> memoryview:
    return vector.data.cast("B")


async def _read_word(stream: Stream) -> int:
    return int(WORD.unpack(await stream.read(WORD.size))[0])
