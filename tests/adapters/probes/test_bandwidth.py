from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from orchestrator.adapters.probes.bandwidth import (
    REQUEST,
    BandwidthPlan,
    BandwidthServer,
    Line,
    measure_bandwidth,
)
from orchestrator.adapters.probes.records import Direction
from orchestrator.adapters.probes.wire import (
    GREETINGS_MAX,
    ProbeFailed,
    Stream,
    Target,
    accept_all,
    answer_greeting,
    listen,
    purpose_key,
)
from tests.adapters.probes.instruments import (
    KEY,
    LOOPBACK,
    OTHER_KEY,
    REAL,
    closed_port,
    running,
    target_of,
)
from tests.polling import wait_until_async

MEGABYTES_4 = BandwidthPlan(bytes=4 << 20, duration_ms=5000)
BRIEF = BandwidthPlan(bytes=4 << 30, duration_ms=100)


@contextlib.asynccontextmanager
async def server(
    key: bytes = KEY, limits: BandwidthPlan | None = None, line: Line | None = None
) -> AsyncGenerator[Target]:
    with listen(socket.socket, LOOPBACK, 0) as listener:
        async with running(BandwidthServer(listener, key, REAL, limits, line).run()):
            yield target_of(listener)


@pytest.mark.parametrize("direction", list(Direction))
async def test_bandwidth_bounded_by_bytes_moves_exactly_those(direction: Direction) -> None:
    async with server() as target:
        found = await measure_bandwidth(target, KEY, direction, REAL, MEGABYTES_4)
        again = await measure_bandwidth(target, KEY, direction, REAL, MEGABYTES_4)
    assert (found.peer, found.direction, found.bytes) == ("peer", direction, 4 << 20)
    assert again.bytes == found.bytes
    assert found.duration_us > 0


@pytest.mark.parametrize("direction", list(Direction))
async def test_bandwidth_bounded_by_time_ends_in_time(direction: Direction) -> None:
    async with server() as target:
        found = await measure_bandwidth(target, KEY, direction, REAL, BRIEF)
    assert 0 < found.bytes < BRIEF.bytes
    assert found.duration_us > 0


async def test_bandwidth_server_in_use_is_said_and_lends_itself_again_afterwards() -> None:
    line = Line()

    def is_taken() -> bool:
        free = line.take("the test")
        line.free("the test")
        return not free

    async with server(line=line) as target:
        long = replace(BRIEF, duration_ms=10_000)
        first = asyncio.create_task(measure_bandwidth(target, KEY, Direction.TO_PEER, REAL, long))
        # Whoever is let in second is refused, and shall not be this one.
        await wait_until_async(is_taken, what="the first to measure", deadline_s=60)
        answers: list[str] = []

        async def is_busy() -> bool:
            try:
                await measure_bandwidth(target, KEY, Direction.FROM_PEER, REAL, MEGABYTES_4)
            except ProbeFailed as error:
                answers.append(str(error))
            return bool(answers)

        assert await is_busy()
        assert "measuring with another member; try again" in answers[0]
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        answers.clear()
        while await is_busy():
            answers.clear()


@pytest.mark.parametrize("limits", [BandwidthPlan(1 << 20, 5000), BandwidthPlan(4 << 20, 4999)])
async def test_bandwidth_more_than_the_server_gives_is_refused(limits: BandwidthPlan) -> None:
    async with server(limits=limits) as target:
        with pytest.raises(ProbeFailed, match="allows fewer bytes or a shorter time"):
            await measure_bandwidth(target, KEY, Direction.TO_PEER, REAL, MEGABYTES_4)


async def test_bandwidth_with_another_clusters_key_is_refused_without_a_word() -> None:
    async with server(key=OTHER_KEY) as target:
        with pytest.raises(ProbeFailed, match=r"peer \(127.0.0.1 port \d+\): .* another cluster"):
            await measure_bandwidth(target, KEY, Direction.TO_PEER, REAL, MEGABYTES_4)


async def test_bandwidth_closed_port_names_the_peer() -> None:
    with (
        closed_port() as port,
        pytest.raises(
            ProbeFailed, match=r"peer \(127.0.0.1 port \d+\): it cannot be reached: Connection refused"
        ),
    ):
        await measure_bandwidth(Target("peer", LOOPBACK, port), KEY, Direction.TO_PEER, REAL, MEGABYTES_4)


async def test_bandwidth_strangers_who_say_nothing_do_not_keep_a_member_out() -> None:
    async with server() as target:
        strangers = [
            await asyncio.open_connection(target.host, target.port) for _ in range(GREETINGS_MAX - 1)
        ]
        found = await measure_bandwidth(target, KEY, Direction.FROM_PEER, REAL, MEGABYTES_4)
        for _, writer in strangers:
            writer.close()
            await writer.wait_closed()
    assert found.bytes == MEGABYTES_4.bytes


async def test_bandwidth_server_greets_a_bounded_number_of_strangers() -> None:
    async with server() as target:
        strangers = [
            await asyncio.open_connection(target.host, target.port) for _ in range(GREETINGS_MAX + 1)
        ]
        await wait_until_async(
            lambda: any(reader.at_eof() for reader, _ in strangers),
            what="the stranger too many to be sent away",
            deadline_s=60,
        )
        assert sum(reader.at_eof() for reader, _ in strangers) == 1
        for _, writer in strangers:
            writer.close()
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def liar(report: bytes, *, reads_bytes: int) -> AsyncGenerator[Target]:
    """A member that holds the key, reads so much and reports what it likes."""

    async def serve(stream: Stream) -> None:
        try:
            await answer_greeting(
                stream, purpose_key(KEY, b"bandwidth"), REQUEST.size, lambda data: 1, REAL.random_bytes
            )
            await stream.read(reads_bytes)
            await stream.write(report)
            stream.finish()
            while await stream.read_some(memoryview(bytearray(1 << 16))):
                pass
        finally:
            stream.close()

    with listen(socket.socket, LOOPBACK, 0) as listener:
        async with running(accept_all(listener, serve)):
            yield target_of(listener)


@pytest.mark.parametrize(
    ("report", "complaint"),
    [
        (struct.pack(">Q", 1 << 40), "more bytes than were sent"),
        (struct.pack(">Q", BRIEF.bytes), "more bytes than were sent"),
        (struct.pack(">Q", 1 << 16), "before the time was up"),
        (b"", "closed the connection"),
    ],
)
async def test_bandwidth_peer_that_reports_the_impossible_is_not_believed(
    report: bytes, complaint: str
) -> None:
    async with liar(report, reads_bytes=1 << 16) as target:
        with pytest.raises(ProbeFailed, match=complaint):
            await measure_bandwidth(target, KEY, Direction.TO_PEER, REAL, replace(BRIEF, duration_ms=10_000))


async def test_bandwidth_peer_that_sends_nothing_is_no_measurement() -> None:
    async with liar(b"", reads_bytes=0) as target:
        with pytest.raises(ProbeFailed, match="not one byte arrived"):
            await measure_bandwidth(target, KEY, Direction.FROM_PEER, REAL, BRIEF)


@pytest.mark.parametrize(
    ("field", "value"), [("bytes", 0), ("bytes", (4 << 30) + 1), ("duration_ms", 0), ("duration_ms", 10_001)]
)
def test_bandwidth_plan_outside_its_bounds_is_refused_by_field(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=field):
        replace(BandwidthPlan(), **{field: value})
