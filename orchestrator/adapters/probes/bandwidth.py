"""What one TCP stream carries, each way: a server that serves one measurement at a time, and the probe.

The one who asks measures with its own clock and counts only what arrived. A peer can make itself look slower at will,
and faster only by what fits into the kernel's buffers, which a plan of many megabytes hides. Towards the peer the
time holds one round trip too many, which a probe of twenty round trips hides; a link too slow to empty the kernel's
buffers in time is still measured, because the peer reports when time is up and not when all has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from orchestrator.adapters.probes.records import BandwidthMeasured, Direction
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

REQUEST: Final = struct.Struct(">BQI")
REPORT: Final = struct.Struct(">Q")

BYTES_MAX: Final = 4 << 30
"""Three seconds of 10 Gbit/s; above that the event loop is what is measured."""

DURATION_MS_MAX: Final = 10_000
"""TCP has found its rate within a second or two on any path that a cluster is formed over."""

GRACE_MS: Final = 5000
"""For the answer that follows a measurement: a round trip behind buffers that the measurement itself filled."""

BLOCK_BYTES: Final = 256 * 1024
"""Large beside the cost of a turn of the loop, small beside the shortest measurement."""

REPORT_PERCENT_MIN: Final = 90
"""Of the planned time; the peer's clock starts half a round trip earlier and may run a little faster."""

NS_PER_MS: Final = 1_000_000
NS_PER_US: Final = 1000


class Verdict(enum.IntEnum):
    """What a server says to a request of its own cluster."""

    ACCEPTED = 1
    BUSY = 2
    TOO_MUCH = 3


@dataclass(frozen=True, slots=True)
class BandwidthPlan:
    """When a measurement ends: at so many bytes or after so long, whichever comes first; also a server's limits."""

    bytes: int = 256 << 20
    duration_ms: int = 2000

    def __post_init__(self) -> None:
        for field, value, high in (
            ("bytes", self.bytes, BYTES_MAX),
            ("duration_ms", self.duration_ms, DURATION_MS_MAX),
        ):
            if not 1 <= value <= high:
                raise ValueError(f"{field} is {value}; bandwidth is measured with 1 to {high}")


class Line:
    """What one measurement has to itself at a time, whether its owner asks or is asked."""

    def __init__(self) -> None:
        self._holder: object | None = None

    def take(self, holder: object) -> bool:
        """For ``holder``, unless somebody has it."""
        if self._holder is not None:
            return False
        self._holder = holder
        return True

    def free(self, holder: object) -> None:
        """Nothing where it is not this one's."""
        if self._holder is holder:
            self._holder = None


@dataclass(frozen=True, slots=True)
class _Request:
    direction: Direction
    plan: BandwidthPlan

    def to_bytes(self) -> bytes:
        return REQUEST.pack(self.direction is Direction.TO_PEER, self.plan.bytes, self.plan.duration_ms)

    @classmethod
    def from_bytes(cls, data: bytes) -> _Request:
        to_peer, count, duration_ms = REQUEST.unpack(data)
        direction = Direction.TO_PEER if to_peer else Direction.FROM_PEER
        return cls(direction, BandwidthPlan(count, duration_ms))


class BandwidthServer:
    """Lends itself to the cluster's members, one at a time, within ``limits``. The owner closes the listener, and may
    keep all out while it has the ``line``.
    """

    def __init__(
        self,
        listener: socket.socket,
        key: bytes,
        instruments: Instruments,
        limits: BandwidthPlan | None = None,
        line: Line | None = None,
    ) -> None:
        listener.settimeout(0)
        self._listener = listener
        self._key = purpose_key(key, b"bandwidth")
        self._instruments = instruments
        self._limits = limits or BandwidthPlan(BYTES_MAX, DURATION_MS_MAX)
        self._line = line or Line()

    async def run(self) -> None:
        """Serve until cancelled."""
        await accept_all(self._listener, self._serve)

    async def _serve(self, stream: Stream) -> None:
        try:
            async with asyncio.timeout(GREETING_MS_MAX / 1000):
                data, verdict = await answer_greeting(
                    stream,
                    self._key,
                    REQUEST.size,
                    lambda data: self._judge(stream, data),
                    self._instruments.random_bytes,
                )
            if verdict == Verdict.ACCEPTED:
                request = _Request.from_bytes(data)
                async with asyncio.timeout((request.plan.duration_ms + GRACE_MS) / 1000):
                    await self._measure(stream, request)
        finally:
            stream.close()
            self._line.free(stream)

    def _judge(self, stream: Stream, data: bytes) -> Verdict:
        """Take the server for this stream if it is free and no more is asked than it gives."""
        try:
            plan = _Request.from_bytes(data).plan
        except ValueError:
            return Verdict.TOO_MUCH
        if plan.bytes > self._limits.bytes or plan.duration_ms > self._limits.duration_ms:
            return Verdict.TOO_MUCH
        return Verdict.ACCEPTED if self._line.take(stream) else Verdict.BUSY

    async def _measure(self, stream: Stream, request: _Request) -> None:
        plan, clock_ns = request.plan, self._instruments.clock_ns
        if request.direction is Direction.TO_PEER:
            await stream.write(REPORT.pack(await _take(stream, plan)))
        else:
            await _Pour(stream, plan, clock_ns).run()
        # Closing before the other end has would throw away what it has not read yet.
        await _take(stream, BandwidthPlan(BYTES_MAX, GRACE_MS))


async def measure_bandwidth(
    target: Target,
    key: bytes,
    direction: Direction,
    instruments: Instruments,
    plan: BandwidthPlan | None = None,
) -> BandwidthMeasured:
    """One stream to or from ``target``, for as long as planned. ProbeFailed says why there is no figure."""
    plan = plan or BandwidthPlan()
    request = _Request(direction, plan)
    stream: Stream | None = None
    try:
        async with asyncio.timeout(GREETING_MS_MAX / 1000):
            stream = await connect(instruments.new_socket, target)
            derived = purpose_key(key, b"bandwidth")
            verdict = await greet(stream, derived, request.to_bytes(), instruments.random_bytes)
        _check_verdict(verdict)
        async with asyncio.timeout((plan.duration_ms + GRACE_MS) / 1000):
            started_ns = instruments.clock_ns()
            if direction is Direction.TO_PEER:
                count = await _pour_until_reported(stream, plan, instruments.clock_ns)
            else:
                count = await _take(stream, plan)
            duration_us = max(1, (instruments.clock_ns() - started_ns) // NS_PER_US)
    except TimeoutError:
        raise ProbeFailed(f"bandwidth with {target}: it stopped answering") from None
    except (OSError, ProbeFailed) as error:
        raise ProbeFailed(f"bandwidth with {target}: {error}") from None
    finally:
        if stream is not None:
            stream.close()
    if count == 0:
        raise ProbeFailed(f"bandwidth with {target}: not one byte arrived; the path may drop large packets")
    return BandwidthMeasured(target.peer, direction, count, duration_us)


def _check_verdict(verdict: int) -> None:
    match verdict:
        case Verdict.ACCEPTED:
            return
        case Verdict.BUSY:
            raise ProbeFailed("it is measuring with another member; try again in some seconds")
        case _:
            raise ProbeFailed("it allows fewer bytes or a shorter time than were asked for")


class _Pour:
    """Writes until a plan is fulfilled, and knows what it has handed to the kernel so far."""

    def __init__(self, stream: Stream, plan: BandwidthPlan, clock_ns: Callable[[], int]) -> None:
        self._stream = stream
        self._plan = plan
        self._clock_ns = clock_ns
        self.handed_bytes = 0

    async def run(self) -> None:
        block = memoryview(bytes(BLOCK_BYTES))
        end_ns = self._clock_ns() + self._plan.duration_ms * NS_PER_MS
        # The clock is asked between blocks; the timeout is for a block that never goes.
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(self._plan.duration_ms / 1000):
                while self.handed_bytes < self._plan.bytes and self._clock_ns() < end_ns:
                    part = block[: self._plan.bytes - self.handed_bytes]
                    self.handed_bytes += len(part)
                    await self._stream.write(part)
        self._stream.finish()


async def _take(stream: Stream, plan: BandwidthPlan) -> int:
    """Read until the plan is fulfilled or the stream ends; how many bytes came."""
    room = memoryview(bytearray(BLOCK_BYTES))
    taken = 0
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(plan.duration_ms / 1000):
            while taken < plan.bytes:
                count = await stream.read_some(room[: plan.bytes - taken])
                if count == 0:
                    break
                taken += count
    return taken


async def _pour_until_reported(stream: Stream, plan: BandwidthPlan, clock_ns: Callable[[], int]) -> int:
    """Write as planned; the bytes which the peer reports, whose report also ends the writing."""
    started_ns = clock_ns()
    pour = _Pour(stream, plan, clock_ns)
    writer = asyncio.create_task(pour.run())
    try:
        (count,) = REPORT.unpack(await stream.read(REPORT.size))
    finally:
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
    waited_ms = (clock_ns() - started_ns) // NS_PER_MS
    if count > pour.handed_bytes:
        raise ProbeFailed("it reports more bytes than were sent")
    if count < plan.bytes and waited_ms < plan.duration_ms * REPORT_PERCENT_MIN // 100:
        raise ProbeFailed("it stopped reading before the time was up")
    return int(count)
