"""The composition root of the control plane: everything opened, wired, served, and closed again."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio
import structlog

from orchestrator.adapters import clock
from orchestrator.adapters.authority import BUNDLE_FILE, Authority, AuthorityError
from orchestrator.adapters.database import DatabaseError
from orchestrator.adapters.files import OWNER_ONLY, make_folder, write_whole
from orchestrator.adapters.garbage import spare_loaded_state
from orchestrator.adapters.https_identity import HttpsIdentity
from orchestrator.adapters.keys import ADMIN_FILE, OTHERS, KeyFileError, Keys
from orchestrator.adapters.log_files import LogFiles
from orchestrator.adapters.metrics.registry import Metrics
from orchestrator.adapters.metrics.server import MetricsServer
from orchestrator.adapters.overlay.bridge import BridgeServer
from orchestrator.adapters.overlay.process import OverlayError
from orchestrator.adapters.packages import PackageStore
from orchestrator.adapters.price_file import PriceFileError, read_price_file
from orchestrator.adapters.runtimes import CatalogueError, Runtime, catalogue
from orchestrator.adapters.store import SqlStore
from orchestrator.adapters.webhooks import Webhooks
from orchestrator.api.v1 import common_pb2, ledger_pb2, ledger_pb2_grpc
from orchestrator.cli.errors import EXIT_INTERRUPTED, CliError, usage_error
from orchestrator.cli.gateway_tls import check_gateway, gateway_url, open_identity
from orchestrator.cli.listening import ServerIdentity, bind_grpc, taken
from orchestrator.cli.metrics_door import Shown, certificates, open_token
from orchestrator.cli.overlay import (
    Bridge,
    OverlayPlan,
    open_bridge,
    open_overlay,
    own_beacon,
    plan_overlay,
)
from orchestrator.cli.serve_settings import Address, ServeSettings, listen_address
from orchestrator.control.app import ControlPlane, Parts
from orchestrator.control.beacon import OwnBeacon
from orchestrator.control.overlay import bridge_owner
from orchestrator.control.services.enrolment import EnrolLimits
from orchestrator.control.services.surroundings import Addresses
from orchestrator.core.market.pricing import CloudMedian, auto_asks, cloud_medians
from orchestrator.core.policies import Policies
from orchestrator.gateway.app import Gateway, start_gateway
from orchestrator.gateway.config import GatewayConfig
from orchestrator.ledger.port import LedgerError
from orchestrator.ledger.service import Ledger, LedgerServicer
from orchestrator.ledger.store import open_store
from orchestrator.receipts import dsse, ids

T = TypeVar("T")

log = structlog.get_logger(__name__)

LOCK_FILE = "lock"
ENDPOINTS_FILE = "endpoints.json"
DISTRIBUTION = "ray-gpu-orchestrator"

GRACE_S = 1.0
"""For calls that are about to be answered; sessions and tails never end by themselves."""

STOP_S = 10.0
"""Past it the process goes as it is: what was acknowledged is durable anyway."""

DEFAULT_RUNTIME = "default"
"""The runtime of a job that names none."""

LEDGER_SERVICE = str(ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"].full_name)


@dataclass(frozen=True, slots=True)
class Doors:
    """Where to listen."""

    listen: Address
    session_listen: Address
    gateway: Address
    metrics: Address


@dataclass(frozen=True, slots=True)
class House:
    """Everything that was opened, in the order in which it is used."""

    settings: ServeSettings
    folder: Path
    doors: Doors
    keys: Keys
    authority: Authority
    https: HttpsIdentity | None
    webhooks: Webhooks
    metrics: Metrics
    ledger: Ledger
    parts: Parts
    beacon: OwnBeacon | None
    bridge: Bridge | None


@dataclass(frozen=True, slots=True)
class Watching:
    """The metrics' door, which was open before the house."""

    server: MetricsServer
    url: str


class EmbeddedDesk:
    """The ledger of this process as the outbox sees it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def totals(self) -> tuple[int, int]:
        """(receipts booked, debits less credits); OSError where nobody knows."""
        try:
            return await self._ledger.totals()
        except LedgerError as error:
            raise OSError(str(error)) from error

    async def post(self, envelope: bytes) -> str:
        """The transfer that booked the receipt; OSError where it was not, which the outbox tries again."""
        try:
            return (await self._ledger.post_receipt(envelope)).transfer_id
        except LedgerError as error:
            raise OSError(str(error)) from error


def run_control_plane(settings: ServeSettings) -> None:
    """Open everything and serve until told to stop. Raises CliError."""
    doors = Doors(
        *(
            listen_address(name, getattr(settings, name))
            for name in ("listen", "session_listen", "gateway", "metrics")
        )
    )
    check_gateway(settings, doors.gateway)
    # Databases and logs are made by others' code; whatever is kept here is its owner's only.
    os.umask(OTHERS)
    asyncio.run(_serve(settings, doors))


async def _serve(settings: ServeSettings, doors: Doors) -> None:
    """Everything is opened while the metrics' door answers already, and closed again in the end."""
    stopping = _stop_on_signals()
    folder = settings.data_dir.expanduser().absolute()
    async with contextlib.AsyncExitStack() as closing:
        on_disk = closing.enter_context(contextlib.ExitStack())
        with _usage_errors(folder):
            make_folder(folder)
            on_disk.enter_context(_locked(folder))
            exporter = MetricsServer(open_token(settings, folder))
        at = doors.metrics
        metrics_port = await taken("metrics", at, exporter.start(at.host, at.port))
        closing.push_async_callback(_in_time, exporter.close, "metrics")
        with _usage_errors(folder):
            house = await asyncio.to_thread(_open, settings, doors, folder, on_disk)
        await _serve_house(
            house, Watching(exporter, f"http://{at.with_port(metrics_port)}/metrics"), stopping
        )


# ---------------------------------------------------------------- opening


@contextlib.contextmanager
def _usage_errors(folder: Path) -> Iterator[None]:
    """One line for what on disk cannot be used."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise usage_error(f"--data-dir: cannot use {error.filename or folder}: {reason}") from None
    except (AuthorityError, DatabaseError, KeyFileError, LedgerError) as error:
        raise usage_error(" ".join(str(error).split())) from None
    except ModuleNotFoundError as error:
        raise usage_error(
            f"--database-url: its driver {error.name} is not installed; install it, or name a SQLite file"
        ) from None


def _open(settings: ServeSettings, doors: Doors, folder: Path, closing: contextlib.ExitStack) -> House:
    url = settings.database_url
    store = SqlStore(url.get_secret_value() if url is not None else f"sqlite:///{folder / 'control.db'}")
    closing.callback(store.close)
    runtimes = _runtimes(settings)
    planned = plan_overlay(settings, doors.session_listen)
    state = store.load(_policies(settings, runtimes, planned))
    spare_loaded_state()
    brought = settings.admin_token_file
    admin_file = brought.expanduser().absolute() if brought is not None else None
    keys = Keys(folder, founded=bool(state.control.network_id), admin_file=admin_file)
    certified = any(worker.tls_key_sha256 for worker in state.workers.values())
    authority = Authority(folder, now_ms=clock.SystemClock().now().wall_ms, founded=certified)
    https = open_identity(settings, doors.gateway, authority, folder)
    overlay = open_overlay(planned, keys) if planned is not None else None
    webhooks = Webhooks(private=settings.private_webhooks)
    books = open_store(f"sqlite:///{folder / 'ledger.db'}")
    closing.callback(books.close)
    public_key = dsse.public_bytes(keys.receipt_key)
    ledger = Ledger(books, {ids.key_id(public_key): public_key})
    closing.callback(ledger.close)
    log_files = LogFiles(folder / "logs")
    closing.callback(log_files.close)
    packages = PackageStore(folder / "packages")
    closing.callback(packages.close)
    metrics = Metrics()
    metrics.show("build_info", {(version(DISTRIBUTION),): 1.0})
    desk = EmbeddedDesk(ledger)
    parts = Parts(
        state=state,
        store=store,
        clock=clock.SystemClock(),
        log_files=log_files,
        packages=packages,
        secrets=keys,
        authority=authority,
        ledger=desk,
        books=desk,
        certificates=partial(certificates, authority, https, overlay),
        webhooks=webhooks,
        observer=metrics,
        new_id=clock.new_id,
        new_secret=clock.new_secret,
        random_bytes=clock.random_bytes,
        runtimes={str(runtime.digest): _runtime_to(runtime) for runtime in runtimes},
        overlay=overlay,
    )
    beacon = None
    if overlay is not None and planned is not None and planned.at is not None:
        beacon = own_beacon(folder, planned.at, overlay, keys, parts.clock)
    bridge = open_bridge(settings, planned, authority, folder)
    return House(
        settings, folder, doors, keys, authority, https, webhooks, metrics, ledger, parts, beacon, bridge
    )


def _policies(settings: ServeSettings, runtimes: Sequence[Runtime], planned: OverlayPlan | None) -> Policies:
    """As core takes them, with what was found out about this network."""
    policies = settings.policies
    offered = tuple((runtime.name, str(runtime.digest)) for runtime in runtimes)
    hosts_max = 0 if planned is None else planned.hosts_max
    medians = _medians(settings.price_file)
    return replace(
        policies,
        market=auto_asks(medians, policies.prices),
        medians=medians,
        clusters=replace(policies.clusters, overlay_hosts_max=hosts_max),
        jobs=replace(policies.jobs, runtimes=offered),
    )


def _medians(path: Path | None) -> dict[str, CloudMedian]:
    """What clouds ask, by model; says what the operator should know of the file. Raises a usage error."""
    if path is None:
        return {}
    today = datetime.fromtimestamp(clock.SystemClock().now().wall_ms / 1000, tz=UTC).date()
    try:
        found = read_price_file(path.expanduser(), today)
    except PriceFileError as error:
        raise usage_error(f"--price-file: {error}") from None
    for warning in found.warnings:
        log.warning("price_file", said=warning)
    return cloud_medians(found.prices, today)


def _runtimes(settings: ServeSettings) -> list[Runtime]:
    """The default first. Raises a usage error."""
    try:
        found = catalogue(settings.runtimes_dir)
    except CatalogueError as error:
        raise usage_error(f"--runtimes-dir: {error}") from None
    return sorted(found, key=lambda runtime: (runtime.name != DEFAULT_RUNTIME, runtime.name))


def _runtime_to(runtime: Runtime) -> common_pb2.Runtime:
    return common_pb2.Runtime(
        name=runtime.name,
        digest=runtime.digest,
        python=runtime.python,
        ray_version=runtime.ray_version,
        packages=runtime.packages,
        lock=runtime.lock,
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two control planes on one data directory would each overwrite what the other decided."""
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, OWNER_ONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise usage_error(
                f"--data-dir: another `orch serve` is using {folder}; stop it, or name another directory"
            ) from None
        yield
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- serving


async def _serve_house(house: House, watching: Watching, stopping: asyncio.Event) -> None:
    """Serve until a signal, or until a part fails. Raises CliError."""
    plane = ControlPlane(house.parts)
    async with contextlib.AsyncExitStack() as closing:
        closing.push_async_callback(_in_time, house.webhooks.close, "webhooks")
        closing.push_async_callback(_in_time, plane.stop, "control")
        with _usage_errors(house.folder):
            try:
                await plane.start()
            except DatabaseError as error:
                # Opening it has only read: the first write shows whether it can be written.
                raise usage_error(
                    f"{error}; the database cannot be written, see to its rights and disk"
                ) from error
        try:
            await _open_doors(house, plane, watching, closing)
            try:
                await _until_stopped(plane, stopping)
            finally:
                # Before any door is shut: who balances load has to know first.
                watching.server.stopping()
        except (DatabaseError, LedgerError) as error:
            raise CliError(f"the control plane had to stop: {error}; start `orch serve` again") from error
        log.info("stopping")


def _stop_on_signals() -> asyncio.Event:
    stopping = asyncio.Event()

    def on_signal() -> None:
        if stopping.is_set():
            os._exit(EXIT_INTERRUPTED)
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stopping


async def _until_stopped(plane: ControlPlane, stopping: asyncio.Event) -> None:
    failing = asyncio.create_task(plane.failure())
    asked = asyncio.create_task(stopping.wait())
    await asyncio.wait((failing, asked), return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if failing.done():
        failing.result()
    failing.cancel()


async def _open_doors(
    house: House, plane: ControlPlane, watching: Watching, closing: contextlib.AsyncExitStack
) -> None:
    """Listen at every door and say where they are."""
    gateway = await taken("gateway", house.doors.gateway, _start_gateway(house, plane))
    closing.push_async_callback(_in_time, gateway.close, "gateway")
    if house.https is not None:
        fresh = asyncio.create_task(house.https.keep_fresh(lambda: clock.SystemClock().now().wall_ms))
        closing.callback(fresh.cancel)
    listens_at = gateway_url(house.settings, house.doors.gateway, gateway.port)
    tenants_url = house.settings.gateway_url or listens_at
    await _open_overlay_doors(house, plane, closing)
    addresses = Addresses(
        version(DISTRIBUTION), tenants_url, watching.url, dsse.public_bytes(house.keys.receipt_key)
    )
    sessions = await plane.session_server()
    sessions_at = await _open_grpc(house, "session_listen", sessions, closing)
    public = house.settings.session_address or house.doors.session_listen.reachable_at(sessions_at)
    plane.session_address = public
    server = await plane.enrol_server(addresses, (LEDGER_SERVICE,), EnrolLimits())
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(LedgerServicer(house.ledger), server)
    listening_at = await _open_grpc(house, "listen", server, closing)
    shown = Shown(house.metrics, plane)
    await watching.server.open(shown, plane.standing, plane.discovery(shown.page_count).routes())
    endpoints = {
        "grpc": listening_at,
        "session": sessions_at,
        "gateway": listens_at,
        "metrics": watching.url,
        "admin_token_file": str(house.settings.admin_token_file or house.folder / ADMIN_FILE),
        "metrics_token_file": str(watching.server.token_file),
        "ca_file": str(house.folder / BUNDLE_FILE),
        "pid": os.getpid(),
    }
    write_whole(house.folder / ENDPOINTS_FILE, (json.dumps(endpoints, indent=2) + "\n").encode())
    log.info("serving", data_dir=str(house.folder), **{name: endpoints[name] for name in list(endpoints)[:4]})
    own = house.settings.gateway_tls is not None and not house.settings.gateway_url
    verify = f" --verify {BUNDLE_FILE}" if own else ""
    log.info(
        "next",
        operator="`orch status`, `orch tenant create NAME`, `orch token create --role tenant --subject NAME`",
        tenant=f"RAY_ADDRESS={tenants_url} RAY_AUTH_MODE=token RAY_AUTH_TOKEN=... ray job submit{verify}",
        supplier="`orch token create --role supplier --subject NAME`, then `orch worker join` there",
    )


async def _open_overlay_doors(house: House, plane: ControlPlane, closing: contextlib.AsyncExitStack) -> None:
    """The beacon, and the bridge to one."""
    if house.beacon is not None:
        _start_beacon(house.beacon, closing)
    bridge, overlay = house.bridge, house.parts.overlay
    if bridge is None or overlay is None:
        return
    server = BridgeServer(bridge.identity.context, partial(bridge_owner, overlay, plane.loop), bridge.target)
    port = await taken("overlay-bridge-listen", bridge.at, server.start(bridge.at.host, bridge.at.port))
    closing.push_async_callback(_in_time, server.stop, "overlay-bridge")
    plane.measuring.bridge = server
    fresh = asyncio.create_task(bridge.identity.keep_fresh(lambda: clock.SystemClock().now().wall_ms))
    closing.callback(fresh.cancel)
    log.info("overlay_bridge", listen=bridge.at.with_port(port))


def _start_beacon(beacon: OwnBeacon, closing: contextlib.AsyncExitStack) -> None:
    """Raises a usage error where it does not start."""
    try:
        beacon.start()
    except (OverlayError, OSError) as error:
        raise usage_error(f"--overlay-listen: {error}") from None
    closing.callback(beacon.stop)
    tending = asyncio.create_task(beacon.run())
    closing.callback(tending.cancel)


async def _start_gateway(house: House, plane: ControlPlane) -> Gateway:
    known = GatewayConfig()
    config = GatewayConfig(
        allowed_hosts=known.allowed_hosts | frozenset(house.settings.gateway_hosts),
        observer=house.metrics.request,
    )
    at = house.doors.gateway
    tls = house.https.context if house.https is not None else None
    return await start_gateway(plane.jobs, config, host=at.host, port=at.port, tls=tls)


async def _open_grpc(
    house: House, name: str, server: grpc.aio.Server, closing: contextlib.AsyncExitStack
) -> str:
    """Listen with TLS; workers' sessions show their certificates. HOST:PORT."""
    at: Address = getattr(house.doors, name)
    mutual = name == "session_listen"
    port = bind_grpc(server, name, at, ServerIdentity(house.authority, mutual=mutual).credentials())
    await server.start()
    closing.push_async_callback(_in_time, partial(server.stop, GRACE_S), name)
    return at.with_port(port)


async def _in_time(close: Callable[[], Awaitable[object]], name: str) -> None:
    """Wait for a part to close, but not for ever."""
    try:
        async with asyncio.timeout(STOP_S):
            await close()
    except TimeoutError:
        log.warning("closed_by_force", part=name)
