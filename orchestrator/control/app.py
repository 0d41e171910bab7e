"""The control plane put together: from ports to a running loop, its helpers, and its gRPC services."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

import grpc.aio
import structlog
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from orchestrator.adapters.packages import PackageStore
from orchestrator.api.v1 import (
    common_pb2,
    jobs_pb2,
    jobs_pb2_grpc,
    logs_pb2,
    logs_pb2_grpc,
    operator_pb2,
    operator_pb2_grpc,
    telemetry_pb2,
    telemetry_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from orchestrator.control.admin_token import AdminFile, AdminToken
from orchestrator.control.alerts import Alerts, WebhookDesk
from orchestrator.control.authority import Authority
from orchestrator.control.connected import SessionObserver
from orchestrator.control.desires import Desires
from orchestrator.control.discovery import Discovery
from orchestrator.control.effects import Effects, LedgerDesk
from orchestrator.control.faults import fault_told
from orchestrator.control.jobs_port import ControlJobs
from orchestrator.control.logs import LogFiles, Logs
from orchestrator.control.loop import Clock, Loop, Store
from orchestrator.control.measuring.measuring import Books, Measuring, Sources
from orchestrator.control.measuring.meter import Meter
from orchestrator.control.overlay import Overlay, retell
from orchestrator.control.paths import Paths
from orchestrator.control.planner import Planner, tick_forever
from orchestrator.control.scrapes import Scrapes
from orchestrator.control.services.access import Access
from orchestrator.control.services.door import Door, Guard
from orchestrator.control.services.enrolment import EnrolLimits, EnrolServicer
from orchestrator.control.services.jobs import JobsServicer
from orchestrator.control.services.operator import OperatorServicer
from orchestrator.control.services.surroundings import Addresses, Surroundings
from orchestrator.control.services.workers import (
    LogsServicer,
    TelemetryServicer,
    WorkerServicer,
)
from orchestrator.control.sessions import Sessions
from orchestrator.control.vitals import VitalsReader
from orchestrator.core import messages as m
from orchestrator.core.scheduling.placement import Budget
from orchestrator.core.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from orchestrator.adapters.metrics.worker_pages import WorkerRow

T = TypeVar("T")

log = structlog.get_logger(__name__)

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
"""A batch of ten thousand statements, about 1.5 kB each, is the largest message that comes."""

SERVER_OPTIONS = (
    # Without it a second control plane would silently share the port.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # NAT boxes forget a silent connection after 30 to 60 s; a dead peer is noticed well within a lease.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Agents ping each 10 s; a stricter server would cut them off as too eager.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # TLS takes a few round trips; whoever is not through by then is slow on purpose. By itself gRPC waits two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # A connection without a call is closed: clients open another when they need one; a session is a call.
    ("grpc.max_connection_idle_ms", 60_000),
    # An agent of 64 heads has a session, measurements, and logs and packages of each; more wait at the client.
    ("grpc.max_concurrent_streams", 256),
)


class Secrets(Protocol):
    """The control plane's own secrets."""

    @property
    def receipt_key(self) -> Ed25519PrivateKey: ...
    @property
    def admin(self) -> AdminFile: ...
    def cluster_token(self, cluster_id: str) -> str: ...
    def token_secret(self, prefix: str, request_id: str) -> str: ...


class Observer(Meter, SessionObserver, Protocol):
    """Where everything goes that is measured."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the composition root hands in. ``state`` is as the store loaded it."""

    state: State
    store: Store
    clock: Clock
    log_files: LogFiles
    packages: PackageStore
    secrets: Secrets
    authority: Authority
    ledger: LedgerDesk
    webhooks: WebhookDesk
    observer: Observer
    new_id: Callable[[str], str]
    new_secret: Callable[[str], str]
    random_bytes: Callable[[int], bytes]
    runtimes: Mapping[str, common_pb2.Runtime] = field(default_factory=dict)
    """By digest, with their locks, the default first."""
    overlay: Overlay | None = None
    books: Books | None = None
    """What was booked is held against what was posted; without it nothing says whether they agree."""
    certificates: Callable[[], Mapping[str, int]] = dict
    """When each of the network's own certificates runs out, by wall clock in ms."""
    checkpoint: Callable[[str], None] | None = None


class ControlPlane:
    """One control plane. ``start`` it, offer its services, and wait on ``failure``."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        measuring = self.measuring = Measuring(parts.observer, parts.clock)
        store = measuring.watched(parts.store)
        told = fault_told(parts.observer)
        self.loop = Loop(parts.state, store, parts.clock, self._perform, measuring, parts.checkpoint, told)
        self.logs = Logs(self.loop, parts.log_files)
        overlay = parts.overlay
        self.paths = None if overlay is None else Paths(overlay, self.loop, parts.random_bytes)
        self.scrapes = Scrapes(parts.observer)
        self.sessions = Sessions(
            self.loop,
            parts.random_bytes,
            Desires(parts.secrets.cluster_token, self.logs.sizes, parts.runtimes, parts.overlay),
            parts.authority,
            parts.observer,
            lambda worker_id: self.telemetry.forget(worker_id),  # noqa: PLW0108 -- made after the sessions
            self.paths,
            self.scrapes,
        )
        self.effects = Effects(
            self.sessions,
            self.loop,
            parts.ledger,
            Alerts(self.loop, parts.webhooks),
            parts.secrets.receipt_key,
        )
        wish = None if self.paths is None else self.paths.wish
        self.planner = Planner(self.loop, parts.new_id, Budget(), measuring, wish)
        self.jobs = ControlJobs(self.loop, self.logs, parts.packages, parts.new_id)
        self.access = Access(self.loop, self.sessions)
        self.telemetry = TelemetryServicer(self.access, self.scrapes)
        self.admin = AdminToken(self.loop, parts.secrets.admin, lambda: parts.authority.pin, parts.new_id)
        self.vitals = VitalsReader(self.loop, parts.certificates, measuring, parts.books)
        self.session_address = ""
        """Where workers find the session listener; known once it is bound."""
        self._tasks: list[asyncio.Task[None]] = []

    def _perform(self, effects: Sequence[m.Effect]) -> None:
        """The loop is made before what performs its effects, and only calls this once it runs."""
        self.effects.perform(effects)

    # ------------------------------------------------------------ life

    async def start(self) -> int:
        """Raise the term and begin to work: the term. Raises what made the loop fail."""
        self._run(self.loop.run(), "loop")
        committed = await self._unless_failed(self.loop.submit(m.StartControl(self._parts.new_id("net"))))
        term = int(str(committed.result))
        await self._unless_failed(self.admin.begin())
        network_id = await self._unless_failed(self.loop.read(lambda state: state.control.network_id))
        # A task keeps the context in which it was made, so whatever is started from here on says both.
        structlog.contextvars.bind_contextvars(network_id=network_id, term=term)
        await self._unless_failed(self.measuring.begin(self.loop))
        self._run(tick_forever(self.loop), "ticks")
        self._run(self.admin.watch(), "admin token")
        self._run(self.planner.run(), "planner")
        self._run(self.effects.run(), "effects")
        if self._parts.overlay is not None:
            self._run(retell(self._parts.clock, self.sessions.tell_all), "overlay")
        return term

    async def failure(self) -> None:
        """Wait until a part has failed, and raise its error: none can do without the others.

        The loop stands first: where it fails the others are refused, and its reason is the one to be told.
        """
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in self._tasks:
            if task.done():
                task.result()
                raise AssertionError(f"{task.get_name()} ended by itself")

    def standing(self) -> str:
        """Why this control plane does not serve, in one line; empty: it does."""
        if not self._tasks:
            return "starting"
        ended = next((task for task in self._tasks if task.done()), None)
        if ended is None:
            return ""
        failed = None if ended.cancelled() else ended.exception()
        return f"{ended.get_name()} has ended: {' '.join(str(failed or 'stopping').split())}"

    async def stop(self) -> None:
        """End everything; the loop last, since the others speak to it."""
        for task in reversed(self._tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def measure(self) -> None:
        """Bring the gauges up to date."""
        await self.measuring.network(self.loop, self._sources)

    async def worker_rows(self, page: int) -> list[WorkerRow]:
        """The workers of one page of metrics, as they are now."""
        return await self.measuring.workers(page, self.loop, self._sources)

    @property
    def _sources(self) -> Sources:
        parts = self._parts
        return Sources(self.sessions, self.telemetry.newest, self.paths, parts.certificates, parts.books)

    def discovery(self, page_count: Callable[[], int]) -> Discovery:
        """What Prometheus asks for beside our own metrics, of which ``page_count`` pages are about workers."""
        return Discovery(self.loop, self.sessions, self.scrapes, page_count)

    def _run(self, work: Coroutine[object, object, None], name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    async def _unless_failed(self, work: Coroutine[object, object, T]) -> T:
        """What ``work`` comes to; where the loop failed, what made it fail rather than its refusal of ``work``."""
        working = asyncio.create_task(work)
        await asyncio.wait([working, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        if any(task.done() for task in self._tasks):
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await self.failure()
        return await working

    # ------------------------------------------------------------ services

    async def enrol_server(
        self, addresses: Addresses, operators_only: Iterable[str], limits: EnrolLimits
    ) -> grpc.aio.Server:
        """The server for whoever shows no certificate: newcomers, operators, tenants. The caller binds and starts it.

        ``operators_only`` are full names of services that the caller adds, for operators alone.
        """
        parts = self._parts
        operator = OperatorServicer(
            self.loop,
            self.sessions,
            self.telemetry.newest,
            Surroundings(addresses, self.vitals.read, self.measuring),
            parts.new_id,
            self._new_secret,
            parts.authority,
            self.admin.pin,
        )
        enrol = EnrolServicer(
            self.loop,
            parts.authority,
            parts.new_id,
            parts.random_bytes,
            lambda: self.session_address,
            limits,
        )
        added = tuple(operators_only)
        guarded = (_name(operator_pb2, "OperatorService"), *added)
        server = self._server(dict.fromkeys(guarded, self.access.operator))
        worker_pb2_grpc.add_EnrolServiceServicer_to_server(enrol, server)
        operator_pb2_grpc.add_OperatorServiceServicer_to_server(operator, server)
        jobs = JobsServicer(self.loop, self.logs, self.access, parts.runtimes, parts.new_id)
        jobs_pb2_grpc.add_JobsServiceServicer_to_server(jobs, server)
        names = [
            _name(worker_pb2, "EnrolService"),
            _name(operator_pb2, "OperatorService"),
            _name(jobs_pb2, "JobsService"),
            *added,
        ]
        await _add_health_and_reflection(server, names)
        return server

    async def session_server(self) -> grpc.aio.Server:
        """The server for workers, whose connections show their certificates."""
        server = self._server({})
        worker = WorkerServicer(
            self.loop, self.sessions, self.access, self._parts.packages, self._parts.runtimes
        )
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(worker, server)
        logs_pb2_grpc.add_LogsServiceServicer_to_server(LogsServicer(self.logs, self.access), server)
        telemetry_pb2_grpc.add_TelemetryServiceServicer_to_server(self.telemetry, server)
        names = [
            _name(worker_pb2, "WorkerService"),
            _name(logs_pb2, "LogsService"),
            _name(telemetry_pb2, "TelemetryService"),
        ]
        await _add_health_and_reflection(server, names)
        return server

    def _server(self, guards: dict[str, Guard]) -> grpc.aio.Server:
        return grpc.aio.server(interceptors=(Door(guards, self._parts.observer),), options=SERVER_OPTIONS)

    def _new_secret(self, prefix: str, request_id: str) -> str:
        if request_id:
            return self._parts.secrets.token_secret(prefix, request_id)
        return self._parts.new_secret(prefix)


class _Generated(Protocol):
    """A module that was generated from a proto."""

    @property
    def DESCRIPTOR(self) -> FileDescriptor: ...  # noqa: N802 -- the generator's name


def _name(module: _Generated, service: str) -> str:
    """A service's full name, as calls carry it."""
    return str(module.DESCRIPTOR.services_by_name[service].full_name)


async def _add_health_and_reflection(server: grpc.aio.Server, names: list[str]) -> None:
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", *names):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
