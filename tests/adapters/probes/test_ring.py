from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import pytest

from orchestrator.adapters.probes.records import ReduceMeasured
from orchestrator.adapters.probes.ring import RingPlan, measure_ring
from orchestrator.adapters.probes.wire import Instruments, ProbeFailed, Target, listen
from tests.adapters.probes.instruments import KEY, LOOPBACK, OTHER_KEY, REAL, closed_port, target_of

VECTOR_BYTES = 1 << 20


class Ring:
    """As many ranks as asked for, all in this process, each behind a listener of its own."""

    def __init__(self, listeners: Sequence[socket.socket], **fields: int) -> None:
        self.listeners = listeners
        self.targets = [target_of(listener, f"wrk_{rank}") for rank, listener in enumerate(listeners)]
        self.fields = {"bytes": VECTOR_BYTES, "rounds": 2, "deadline_ms": 20_000, **fields}
        self.keys = [KEY] * len(listeners)
        self.runs = ["cls_1"] * len(listeners)

    async def outcomes(
        self,
        *,
        absent: frozenset[int] = frozenset(),
        instruments: Mapping[int, Instruments] = MappingProxyType({}),
    ) -> dict[int, ReduceMeasured | str]:
        """What each rank that takes part found, or complained of."""
        present = [rank for rank in range(len(self.listeners)) if rank not in absent]
        found = await asyncio.gather(*(self.outcome(rank, instruments.get(rank, REAL)) for rank in present))
        return dict(zip(present, found, strict=True))

    async def outcome(self, rank: int, instruments: Instruments = REAL) -> ReduceMeasured | str:
        plan = RingPlan(self.runs[rank], tuple(self.targets), rank, **self.fields)
        try:
            return await measure_ring(plan, self.listeners[rank], self.keys[rank], instruments)
        except ProbeFailed as error:
            return str(error)


@contextlib.contextmanager
def ring_of(count: int, **fields: int) -> Generator[Ring]:
    with contextlib.ExitStack() as stack:
        yield Ring([stack.enter_context(listen(socket.socket, LOOPBACK, 0)) for _ in range(count)], **fields)


@pytest.mark.parametrize("count", [2, 3, 5])
async def test_ring_all_there_report_the_same_true_measurement(count: int) -> None:
    # A length that no number of ranks divides.
    with ring_of(count, bytes=VECTOR_BYTES + 28) as ring:
        found = await ring.outcomes()
    assert len(set(found.values())) == 1
    measured = found[0]
    assert isinstance(measured, ReduceMeasured)
    assert (measured.ranks, measured.bytes, measured.method) == (count, VECTOR_BYTES + 28, "ring")
    assert measured.bus_bits_per_s > 0


@pytest.mark.parametrize("absent", [0, 2, 3])
async def test_ring_rank_that_does_not_come_is_named_by_all_others(absent: int) -> None:
    with ring_of(4, deadline_ms=1600) as ring, closed_port() as port:
        ring.targets[absent] = Target(f"wrk_{absent}", LOOPBACK, port)
        found = await ring.outcomes(absent=frozenset((absent,)))
    assert len(found) == 3
    for complaint in found.values():
        assert f"rank {absent}, wrk_{absent} (127.0.0.1 port" in str(complaint)
        assert "did not come" in str(complaint)
    assert "Connection refused" in str(found[(absent - 1) % 4])


async def test_ring_rank_with_another_key_is_not_let_in() -> None:
    with ring_of(3, deadline_ms=1600) as ring:
        ring.keys[1] = OTHER_KEY
        found = await ring.outcomes()
    assert "rank 1, wrk_1" in str(found[0])
    assert "rank 1, wrk_1" in str(found[2])
    assert all("did not come" in str(complaint) for complaint in found.values())


async def test_ring_rank_of_another_run_is_told_what_must_agree() -> None:
    with ring_of(2, deadline_ms=1600) as ring:
        ring.runs[1] = "cls_2"
        found = await ring.outcomes()
    for complaint in found.values():
        assert "measures another run: give all ranks the same run" in str(complaint)


async def test_ring_rank_that_comes_later_is_waited_for() -> None:
    # Its port is its own from the beginning, so that nobody else takes it meanwhile.
    with ring_of(3) as ring, socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.setblocking(False)
        ring.listeners[2].close()
        ring.targets[2] = target_of(listener, "wrk_2")
        tried = asyncio.Event()

        def watched(family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
            """The second socket of rank 1 is made after the first found nobody."""
            made.append(socket.socket(family, kind))
            if len(made) == 2:
                tried.set()
            return made[-1]

        made: list[socket.socket] = []
        early = asyncio.create_task(
            ring.outcomes(absent=frozenset((2,)), instruments={1: replace(REAL, new_socket=watched)})
        )
        await tried.wait()
        listener.listen()
        ring.listeners = [*ring.listeners[:2], listener]
        late = await ring.outcome(2)
        found = await early
    assert isinstance(late, ReduceMeasured)
    assert set(found.values()) == {late}


@contextlib.asynccontextmanager
async def meddler(server: Target, *, at_byte: int, cuts: bool) -> AsyncGenerator[Target]:
    """Passes a connection on and, towards the server, spoils 64 bytes from ``at_byte`` on, or cuts there."""
    tasks: set[asyncio.Task[None]] = set()

    async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, meddles: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := bytearray(await source.read(1 << 16)):
                if meddles:
                    if cuts and passed + len(data) > at_byte:
                        break
                    low, high = max(at_byte - passed, 0), max(at_byte + 64 - passed, 0)
                    data[low:high] = bytes(value ^ 0x7F for value in data[low:high])
                passed += len(data)
                sink.write(data)
                await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, ahead = await asyncio.open_connection(server.host, server.port)
        tasks.add(asyncio.create_task(pipe(reader, ahead, meddles=True)))
        tasks.add(asyncio.create_task(pipe(behind, writer, meddles=False)))

    door = await asyncio.start_server(serve, LOOPBACK, 0)
    try:
        yield replace(server, port=door.sockets[0].getsockname()[1])
    finally:
        door.close()
        await asyncio.gather(*tasks)


async def test_ring_memory_or_path_that_changes_bytes_is_noticed_by_all() -> None:
    with ring_of(3) as ring:
        async with meddler(ring.targets[1], at_byte=100_000, cuts=False) as through:
            ring.targets[1] = through
            found = await ring.outcomes()
    for complaint in found.values():
        assert "did not get the true sum" in str(complaint)


async def test_ring_rank_that_goes_away_midway_ends_it_for_all_and_is_named_beside_it() -> None:
    with ring_of(3) as ring:
        async with meddler(ring.targets[1], at_byte=100_000, cuts=True) as through:
            ring.targets[1] = through
            found = await ring.outcomes()
    assert "rank 0, wrk_0" in str(found[1])
    assert all("went away" in str(complaint) for complaint in found.values())


async def test_ring_too_slow_for_its_deadline_ends_there_naming_the_neighbours() -> None:
    """More work than any machine does in the time."""
    with ring_of(2, deadline_ms=500, bytes=64 << 20, rounds=100) as ring:
        found = await ring.outcomes()
    for rank, complaint in found.items():
        assert f"rank {1 - rank}, wrk_{1 - rank}" in str(complaint)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 2),
        ("rank", -1),
        ("bytes", (1 << 20) + 1),
        ("bytes", 1 << 10),
        ("rounds", 0),
        ("deadline_ms", 0),
        ("ranks", (Target("wrk_0", LOOPBACK, 1),)),
        ("run", ""),
    ],
)
def test_ring_plan_outside_its_bounds_is_refused_by_field(field: str, value: object) -> None:
    plan = RingPlan("cls_1", (Target("wrk_0", LOOPBACK, 1), Target("wrk_1", LOOPBACK, 2)), 0)
    with pytest.raises(ValueError, match=field):
        replace(plan, **{field: value})  # type: ignore[arg-type]  # each is of another type
