"""P7 `beats-100k`: what a beat costs where 100,000 workers beat over 256 streams.

A real grpc.aio server in a process of its own, held on one core; clients in this process, one connection to each stream
(no TLS on either side of the comparison). A beat is one message of the session protocol, and each is acknowledged by
one. Ours and the peer alternate, first as fast as the streams ask for the next beat once the last is acknowledged; then
each at the pace of one beat per worker in ten seconds, for long enough to see every worker several times.

Inside the clock: processor time of the server's process, ticks with expiry included. Outside: the clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc.aio

from benchmarks import fleet
from benchmarks.beats_server import (
    BEAT_MS,
    METHOD,
    SERVICE,
    WORKER_KEY,
    Mode,
    Reading,
    Size,
    run_server,
    statement_key,
)
from benchmarks.report import Case, FigureError, Target, compared, note
from benchmarks.stats import median, paired_ratio_interval, percentile
from orchestrator.adapters.peers import SESSION_CONTEXT
from orchestrator.api.v1 import worker_pb2
from orchestrator.control.inventory_wire import inventory_to

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

    Call = grpc.aio.StreamStreamCall[bytes, bytes]

REPETITIONS = 5
READY_S = 300.0
"""A state of 100,000 workers takes half a minute to make, and longer on a machine that does other things too."""

WAKES_PER_S = 10
"""How often a paced stream sends what is due: timers for each beat would cost the clients more than the beats."""

SUFFIX = {Mode.SESSION: "", Mode.TABLE: "-table", Mode.ECHO: "-peer"}

RATIO_TARGET = Target(0.5, ">=", "ratio")
HELD_TARGET = Target(0.99, ">=", "ratio")
NONE_TARGET = Target(0.0, "<=", "value")


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure."""

    size: Size = Size()
    full_speed_s: float = 6.0
    paced_s: float = field(default_factory=lambda: float(os.environ.get("BENCH_PACED_S", "60")))


@dataclass(frozen=True, slots=True)
class Run:
    """What one run came to."""

    beats: int
    elapsed_s: float
    cpu_s: float
    clients_cpu_s: float
    expiries: int
    latencies_ms: list[float] = field(default_factory=list, repr=False)

    @property
    def per_cpu_s(self) -> float:
        """Beats per second of the server's processor time."""
        return self.beats / self.cpu_s


class Server:
    """A server process and the streams that are open to it."""

    def __init__(self, mode: Mode, size: Size, pipe: Connection, port: int) -> None:
        self.mode = mode
        self.size = size
        self._pipe = pipe
        self._port = port
        self.calls: list[Call] = []
        self._channels: list[grpc.aio.Channel] = []

    def reading(self, *, begin: bool) -> Reading:
        """The server's counters now; ``begin`` grants every worker a full term."""
        self._pipe.send(begin)
        answer = self._pipe.recv()
        if not isinstance(answer, Reading):
            raise FigureError(f"the {self.mode} server answered {answer!r}")
        return answer

    async def connect(self) -> None:
        """Open every stream, each on a connection of its own."""
        for stream in range(self.size.streams):
            # Channels to one address with equal arguments would share one connection.
            options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._port}", options=options)
            self._channels.append(channel)
            head = self.size.share(stream)[0]
            call: Any = channel.stream_stream(f"/{SERVICE}/{METHOD}")(
                metadata=((WORKER_KEY, fleet.worker_id_of(head)),)
            )
            self.calls.append(call)
            if self.mode is Mode.SESSION:
                await _greet(call, head)

    async def close(self) -> None:
        """End every stream."""
        for call in self.calls:
            call.cancel()
        for channel in self._channels:
            await channel.close()


async def _greet(call: Call, number: int) -> None:
    """Begin a session as an agent does, up to where only acknowledgements follow."""
    worker_id = fleet.worker_id_of(number)
    nonce = (await _read(call)).challenge.nonce
    hello = worker_pb2.Hello(
        worker_id=worker_id,
        signature=statement_key(number).sign(SESSION_CONTEXT + nonce + worker_id.encode()),
        inventory=inventory_to(fleet.inventory(number)),
        agent_version="0.1.0",
        session_number=1,
    )
    await call.write(worker_pb2.SessionRequest(hello=hello).SerializeToString())
    while True:
        message = await _read(call)
        if message.HasField("farewell"):
            raise FigureError(f"the server refused a session: {message.farewell.reason}")
        if message.HasField("standing"):
            return


async def _read(call: Call) -> worker_pb2.SessionResponse:
    data = await call.read()
    if not isinstance(data, bytes):
        raise FigureError("the server ended a stream")
    return worker_pb2.SessionResponse.FromString(data)


def measure(plan: Plan | None = None, repetitions: int = REPETITIONS) -> list[Case]:
    """All cases."""
    return asyncio.run(_measure(plan or Plan(), repetitions))


async def _measure(plan: Plan, repetitions: int) -> list[Case]:
    runs: dict[Mode, list[Run]] = {mode: [] for mode in Mode}
    async with contextlib.AsyncExitStack() as closing:
        servers = [await closing.enter_async_context(_connected(mode, plan.size)) for mode in Mode]
        for server in servers:
            await _full_speed(server, plan.full_speed_s / 4)  # what is done once is done before it counts
        for number in range(repetitions):
            # Who goes first changes: whatever drifts drifts for both.
            for server in servers if number % 2 == 0 else reversed(servers):
                runs[server.mode].append(await _full_speed(server, plan.full_speed_s))
            note(
                f"P7 beats {number + 1}/{repetitions}, per CPU second: "
                + ", ".join(f"{mode} {runs[mode][-1].per_cpu_s:,.0f}" for mode in Mode)
            )
        paced = {server.mode: await _paced(server, plan.paced_s) for server in servers}
    return _cases(runs, paced, plan)


@contextlib.asynccontextmanager
async def _connected(mode: Mode, size: Size) -> AsyncIterator[Server]:
    with _process(mode, size) as (pipe, port):
        server = Server(mode, size, pipe, port)
        try:
            await server.connect()
            yield server
        finally:
            await server.close()


@contextlib.contextmanager
def _process(mode: Mode, size: Size) -> Iterator[tuple[Connection, int]]:
    note(f"P7: {mode} server" + ("" if mode is Mode.ECHO else f", a state of {size.workers:,} workers"))
    spawning = multiprocessing.get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=run_server, args=(mode, size, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(READY_S):
            raise FigureError(f"the {mode} server did not start within {READY_S:g} s")
        try:
            port = int(ours.recv())
        except EOFError:
            raise FigureError(f"the {mode} server ended at its start") from None
        yield ours, port
    finally:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


# ---------------------------------------------------------------- clients


async def _full_speed(server: Server, seconds: float) -> Run:
    """Every stream sends its next beat when the last is acknowledged."""
    until_s = time.perf_counter() + seconds

    async def beat(call: Call, messages: Sequence[bytes]) -> int:
        sent = 0
        while time.perf_counter() < until_s:
            await call.write(messages[sent % len(messages)])
            if not isinstance(await call.read(), bytes):
                raise FigureError("the server ended a stream")
            sent += 1
        return sent

    return await _counted(
        server, [beat(call, _messages(server, stream)) for stream, call in _streams(server)]
    )


async def _paced(server: Server, seconds: float) -> Run:
    """Every worker beats once in BEAT_MS, spread evenly; what is late is caught up with."""
    note(f"P7 beats: {server.mode}, {server.size.workers / BEAT_MS * 1000:,.0f} a second for {seconds:g} s")
    latencies_ms: list[float] = []
    began_s = time.perf_counter()

    async def beat(stream: int, call: Call, messages: Sequence[bytes]) -> int:
        sent, per_s = 0, len(messages) * 1000 / BEAT_MS
        next_s = began_s + stream / server.size.streams / WAKES_PER_S
        while next_s < began_s + seconds:
            await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
            due = round((next_s - began_s) * per_s)
            while sent < due:
                asked_s = time.perf_counter()
                await call.write(messages[sent % len(messages)])
                if not isinstance(await call.read(), bytes):
                    raise FigureError("the server ended a stream")
                latencies_ms.append((time.perf_counter() - asked_s) * 1000)
                sent += 1
            next_s += 1 / WAKES_PER_S
        return sent

    beats = [beat(stream, call, _messages(server, stream)) for stream, call in _streams(server)]
    return await _counted(server, beats, latencies_ms)


async def _counted(server: Server, beats: Sequence[Any], latencies_ms: list[float] | None = None) -> Run:
    before, began_s, clients_s = server.reading(begin=True), time.perf_counter(), time.process_time()
    sent = await asyncio.gather(*beats)
    elapsed_s, after = time.perf_counter() - began_s, server.reading(begin=False)
    return Run(
        sum(sent),
        elapsed_s,
        after.cpu_s - before.cpu_s,
        time.process_time() - clients_s,
        after.expiries - before.expiries,
        latencies_ms or [],
    )


def _streams(server: Server) -> Iterator[tuple[int, Call]]:
    return enumerate(server.calls)


def _messages(server: Server, stream: int) -> list[bytes]:
    """One beat of each worker behind a stream."""
    return [
        worker_pb2.SessionRequest(heartbeat=worker_pb2.Heartbeat(sequence=number + 1)).SerializeToString()
        for number in range(len(server.size.share(stream)))
    ]


# ---------------------------------------------------------------- cases


def _cases(runs: dict[Mode, list[Run]], paced: dict[Mode, Run], plan: Plan) -> list[Case]:
    rates = {mode: [one.per_cpu_s for one in runs[mode]] for mode in Mode}
    peer = rates[Mode.ECHO]
    fast = [
        compared(
            "P7",
            f"beats-100k{SUFFIX[mode]}-ratio",
            "beats per CPU s",
            rates[mode],
            peer,
            RATIO_TARGET,
            paired_ratio_interval(rates[mode], peer),
        )
        for mode in (Mode.SESSION, Mode.TABLE)
    ]
    wanted = plan.size.workers / BEAT_MS * 1000
    held = [_held(mode, paced[mode], wanted) for mode in Mode]
    expiries = float(
        sum(run.expiries for run in (*paced.values(), *(one for all_ in runs.values() for one in all_)))
    )
    return [
        *fast,
        *held,
        Case("P7", "beats-100k-expiries", expiries, "workers", 1, expiries, expiries, target=NONE_TARGET),
    ]


def _held(mode: Mode, run: Run, wanted: float) -> Case:
    """How much of the wanted pace was held."""
    held = run.beats / run.elapsed_s
    p50_ms, p99_ms = median(run.latencies_ms), percentile(run.latencies_ms, 0.99)
    remark = (
        f"over {run.elapsed_s:.0f} s: server {run.cpu_s / run.elapsed_s:.2f} of its core, clients"
        f" {run.clients_cpu_s / run.elapsed_s:.2f} of the rest; acknowledged in {p50_ms:.1f} ms, p99 {p99_ms:.0f} ms"
    )
    target = None if mode is Mode.ECHO else HELD_TARGET
    name = f"beats-100k{SUFFIX[mode]}-paced-ratio"
    return Case("P7", name, held, "1/s", 1, held, held, wanted, held / wanted, target, remark=remark)
