"""The server process of `beats-100k`, in three ways that answer the same bytes on the same streams.

- ``SESSION``: the product's own path: its door, its servicer, its sessions, its loop, ticking once a second.
- ``TABLE``: a bare handler over the same loop: read the message, note the worker, acknowledge.
- ``ECHO``, the peer: a bare handler that knows no worker and hands back the bytes that came.

The session protocol knows one worker a stream; here each stream stands for a relay with some four hundred workers
behind it. That is the one thing made up: whose beat it is follows from its place in the stream.
"""

from __future__ import annotations

import asyncio
import os
import resource
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks import fleet
from benchmarks.report import quiet
from orchestrator.adapters import clock, peers
from orchestrator.adapters.authority import DAY_MS, Authority
from orchestrator.adapters.garbage import spare_loaded_state
from orchestrator.adapters.metrics.registry import Metrics
from orchestrator.adapters.packages import PackageStore
from orchestrator.api.v1 import worker_pb2, worker_pb2_grpc
from orchestrator.control.app import SERVER_OPTIONS
from orchestrator.control.authority import Peer
from orchestrator.control.desires import Desires
from orchestrator.control.loop import Loop
from orchestrator.control.planner import tick_forever
from orchestrator.control.services.access import Access
from orchestrator.control.services.door import Door
from orchestrator.control.services.workers import WorkerServicer
from orchestrator.control.sessions import Sessions
from orchestrator.core import messages as m
from orchestrator.core.decisions.liveness import start_heartbeats
from orchestrator.core.ids import WorkerId
from orchestrator.core.policies import Policies
from orchestrator.core.state import State
from orchestrator.core.supply.fleet import FleetPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from multiprocessing.connection import Connection

    from orchestrator.adapters.store import Transaction

    Context = grpc.aio.ServicerContext[Any, Any]

BEAT_MS = 10_000
"""One beat of each worker in this time; whoever misses two and a half of them is suspect by the default policy."""

STOP_S = 1.0
"""For handlers whose streams were just ended to notice."""

WORKER_KEY = "worker"
"""Metadata that says which worker a stream belongs to, in place of a certificate."""

SERVICE = "orchestrator.api.v1.WorkerService"
METHOD = "Session"


class Mode(StrEnum):
    """What answers."""

    SESSION = "session"
    TABLE = "table"
    ECHO = "echo"


@dataclass(frozen=True, slots=True)
class Size:
    """How many workers, behind how many streams."""

    workers: int = 100_000
    streams: int = 256

    def share(self, stream: int) -> range:
        """The numbers of the workers behind one stream; the first of them holds the session."""
        return range(
            stream * self.workers // self.streams,
            (stream + 1) * self.workers // self.streams,
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """Counters of the server process since its start."""

    cpu_s: float
    expiries: int
    """Workers that became suspect or lost."""


class CountingStore:
    """Keeps nothing; in these runs nothing is decided but that somebody is silent."""

    def __init__(self) -> None:
        self.expiries = 0

    async def commit(self, transaction: Transaction) -> None:
        """Count those who were given up."""
        self.expiries += sum(
            isinstance(event, m.LivenessChanged) and event.liveness != "live" for event in transaction.events
        )


class MultiplexedLoop(Loop):
    """The loop, hearing the workers behind a stream in turn where the session names its one worker."""

    turns: dict[WorkerId, cycle[WorkerId]]

    def heard(self, worker_id: WorkerId) -> bool:
        """As in the loop, for the next in turn."""
        return super().heard(next(self.turns[worker_id]))


class OpenAccess(Access):
    """Peers by what they say, because certificates would cost both sides the same."""

    certificate = b""

    def peer(self, context: Context) -> Peer:
        """Whoever the metadata names."""
        named = dict(context.invocation_metadata() or ())[WORKER_KEY]
        now_ms = clock.SystemClock().now().wall_ms
        return Peer(WorkerId(str(named)), "", now_ms + DAY_MS, self.certificate)


def statement_key(number: int) -> Ed25519PrivateKey:
    """The key of a worker that holds a session, known to server and client alike."""
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


def run_server(mode: Mode, size: Size, pipe: Connection) -> None:
    """Serve until the pipe is closed: it carries the port once, then a Reading for each question."""
    # One core, all of gRPC's threads with it: what is held is held on one core.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    quiet()
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as folder:
        asyncio.run(_serve(mode, size, pipe, Path(folder)))


async def _serve(mode: Mode, size: Size, pipe: Connection, folder: Path) -> None:
    state = State(Policies(fleet=FleetPolicy(heartbeat_interval_ms=BEAT_MS)))
    store = CountingStore()
    tasks: list[asyncio.Task[None]] = []
    if mode is Mode.ECHO:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        _add_bare(server, _echo)
    else:
        heads = {size.share(stream)[0] for stream in range(size.streams)}
        made = fleet.commands(size.workers, lambda number: _identity(number, heads))
        fleet.remember(state, made, clock.SystemClock().now())
        spare_loaded_state()
        loop = MultiplexedLoop(state, store, clock.SystemClock(), lambda _effects: None)
        loop.turns = {
            fleet.worker_id_of(share[0]): cycle([fleet.worker_id_of(number) for number in share])
            for share in map(size.share, range(size.streams))
        }
        tasks = [asyncio.create_task(loop.run()), asyncio.create_task(tick_forever(loop))]
        server = _session_server(loop, folder) if mode is Mode.SESSION else _table_server(loop)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send(port)
    await _answer(pipe, state, store)
    await server.stop(STOP_S)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _identity(number: int, heads: set[int]) -> fleet.Identity:
    if number not in heads:
        return fleet.made_up(number)
    return fleet.Identity(statement_key(number).public_key().public_bytes_raw().hex(), "")


async def _answer(pipe: Connection, state: State, store: CountingStore) -> None:
    """Answer questions until there are no more. Each run begins with a full term for everybody."""
    closed = asyncio.Event()

    def answer() -> None:
        # Read here and now: the descriptor stays readable, and calls again, until it is.
        try:
            begin = bool(pipe.recv())
        except EOFError:
            asyncio.get_running_loop().remove_reader(pipe.fileno())
            closed.set()
            return
        if begin:
            start_heartbeats(state, clock.SystemClock().now())
        used = resource.getrusage(resource.RUSAGE_SELF)
        pipe.send(Reading(used.ru_utime + used.ru_stime, store.expiries))

    asyncio.get_running_loop().add_reader(pipe.fileno(), answer)
    await closed.wait()


# ---------------------------------------------------------------- the three ways


def _session_server(loop: MultiplexedLoop, folder: Path) -> grpc.aio.Server:
    now_ms = clock.SystemClock().now().wall_ms
    authority = Authority(folder, now_ms=now_ms, founded=False)
    metrics = Metrics()
    sessions = Sessions(loop, clock.random_bytes, Desires(str, lambda _ids: {}), authority, metrics)
    access = OpenAccess(loop, sessions)
    name = peers.spiffe_id(fleet.NETWORK_ID, "sup_0", "wk_0")
    access.certificate = authority.issue_worker(
        peers.make_csr(peers.new_tls_key()), name, now_ms, DAY_MS // 2
    ).chain_pem
    servicer = WorkerServicer(loop, sessions, access, PackageStore(folder / "packages"), {})
    server = grpc.aio.server(interceptors=(Door({}, metrics),), options=SERVER_OPTIONS)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(servicer, server)
    return server


def _table_server(loop: MultiplexedLoop) -> grpc.aio.Server:
    async def hear(requests: AsyncIterator[bytes], context: Context) -> None:
        worker_id = WorkerId(str(dict(context.invocation_metadata() or ())[WORKER_KEY]))
        async for data in requests:
            request = worker_pb2.SessionRequest.FromString(data)
            loop.heard(worker_id)
            ack = worker_pb2.HeartbeatAck(sequence=request.heartbeat.sequence)
            await context.write(worker_pb2.SessionResponse(heartbeat_ack=ack).SerializeToString())

    server = grpc.aio.server(options=SERVER_OPTIONS)
    _add_bare(server, hear)
    return server


async def _echo(requests: AsyncIterator[bytes], context: Context) -> None:
    async for data in requests:
        await context.write(data)


def _add_bare(server: grpc.aio.Server, behaviour: Any) -> None:
    """A handler of bytes under the session's own name."""
    handlers: dict[str, Any] = {METHOD: grpc.stream_stream_rpc_method_handler(behaviour)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
