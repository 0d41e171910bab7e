"""`orch worker join`: one process that offers this machine until it is told to stop.

The first run makes a key and spends the join token; every later run is the same worker again, also after a
drain. One interrupt drains. A second one, or a refusal for good, ends this process at once: then the stop
files of all members are written, so that their keepers end the nodes within seconds, not at the end of the
lease. Each keeper records when its node ended, so the next run states what was held until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.adapters import clock
from orchestrator.adapters.clock import SystemClock
from orchestrator.adapters.log_setup import configure_logging
from orchestrator.agent.agent import DRAIN_PATIENCE_MS, Agent, AgentSettings, RefusedForeverError
from orchestrator.agent.connection import GrpcControlPlane, JoinRefusedError, join
from orchestrator.agent.identity import (
    Identity,
    StartError,
    load_identity,
    load_key,
    save_identity,
    take_data_dir,
)
from orchestrator.agent.inventory import (
    DeviceIds,
    InventoryError,
    Offer,
    build_inventory,
    read_devices,
    read_machine,
    unlisted,
)
from orchestrator.agent.journal import FileJournal
from orchestrator.agent.keeper import STOP_FILE
from orchestrator.agent.nodes import RayNodes
from orchestrator.agent.ray_head import RayHead
from orchestrator.api.v1 import common_pb2, telemetry_pb2, worker_pb2

log = structlog.get_logger(__name__)

EXIT_LEFT = 0
EXIT_REFUSED = 1
"""Asked properly and refused, or left without the control plane."""
EXIT_USAGE = 2
"""Nothing was begun: what was asked for, or where, has to change."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells count it."""

TELEMETRY_S = 15.0
"""As often as a monitor scrapes; a measurement in between would be seen by nobody."""

PACKAGES_DIR = "packages"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """What was asked for. ``cpus`` None means all, an empty ``hardware_class`` that of the devices."""

    control_plane: str
    data_dir: Path
    name: str
    join_token: str | None = field(default=None, repr=False)
    hardware_class: str = ""
    simulate: tuple[str, ...] = ()
    slots: int = 1
    head_slots: int = 0
    cpus: int | None = None
    zone: str = ""


class AgentClock:
    """The agent's port for time, on the real clocks."""

    def __init__(self) -> None:
        self._boot_id = clock.boot_id()

    def boottime_ms(self) -> int:
        """As AgentClock.boottime_ms."""
        return clock.boottime_ms()

    def boot_id(self) -> str:
        """As AgentClock.boot_id."""
        return self._boot_id

    def jitter(self, base_s: float) -> float:
        """As AgentClock.jitter."""
        return clock.jitter(base_s)


def run_agent(config: AgentConfig) -> int:
    """Offer this machine until it is drained; the exit code. Blocking; takes over SIGINT and SIGTERM."""
    try:
        lock_fd = take_data_dir(config.data_dir)
        try:
            return asyncio.run(_run(config))
        finally:
            os.close(lock_fd)
    except (StartError, InventoryError) as error:
        _say(str(error))
        return EXIT_USAGE
    except RefusedForeverError as error:
        _say(f"the control plane at {config.control_plane} refuses this worker: {error}")
        _write_stop_files(config.data_dir)
        return EXIT_REFUSED


async def _run(config: AgentConfig) -> int:
    key = load_key(config.data_dir)
    inventory = _inventory(config)
    identity = load_identity(config.data_dir)
    if identity is None:
        identity = await _enrol(config, key, inventory)
        save_identity(config.data_dir, identity)
        _say(f"joined as worker {identity.worker_id} ({identity.name}) of supplier {identity.supplier_id}")
    elif identity.control_plane != config.control_plane:
        _say(f"joined at {identity.control_plane}; connecting to {config.control_plane} from now on")
        identity = replace(identity, control_plane=config.control_plane)
        save_identity(config.data_dir, identity)
    configure_logging({"worker_id": identity.worker_id}, pretty=sys.stderr.isatty())
    try:
        journal = FileJournal(config.data_dir)
        journal.load()
    except ValueError as error:
        raise StartError(str(error)) from None
    settings = AgentSettings(
        worker_id=identity.worker_id,
        agent_version=metadata.version("ray-gpu-orchestrator"),
        inventory=inventory,
        cache_dir=config.data_dir / PACKAGES_DIR,
        network_id=identity.network_id,
    )
    control = GrpcControlPlane(config.control_plane)
    agent = Agent(settings, key, control, RayNodes(config.data_dir), RayHead, journal, AgentClock())
    _take_signals(agent, config)
    _say(f"offering {_offered(inventory)} to {config.control_plane}; Ctrl-C gives everything back and leaves")
    try:
        async with _beside(_measure(control)):
            await agent.run()
    finally:
        await control.close()
    return _farewell(agent, config)


def _inventory(config: AgentConfig) -> common_pb2.Inventory:
    offer = Offer(
        hardware_class=config.hardware_class,
        simulate=config.simulate,
        slots=config.slots,
        head_slots=config.head_slots,
        cpus=config.cpus,
        zone=config.zone,
    )
    gpus = [] if config.simulate else read_devices()
    for remark in unlisted(offer, gpus):
        _say(remark)
    return build_inventory(offer, read_machine(), gpus, DeviceIds(config.data_dir, clock.new_id))


async def _enrol(config: AgentConfig, key: Ed25519PrivateKey, inventory: common_pb2.Inventory) -> Identity:
    """Spend the join token. Token and key of a join whose answer was lost get the same answer again.

    Raises StartError.
    """
    if config.join_token is None:
        raise StartError(
            f"no agent has joined from {config.data_dir} yet, which takes a join token: the operator makes"
            " one with `orch token create --role supplier`"
        )
    token_hash = hashlib.sha256(config.join_token.encode()).digest()
    public_key = key.public_key().public_bytes_raw()
    request = worker_pb2.JoinRequest(
        request_id=f"join_{hashlib.sha256(token_hash + public_key).hexdigest()[:32]}",
        join_token=config.join_token,
        worker_name=config.name,
        statement_public_key=public_key,
        proof=key.sign(token_hash),
        inventory=inventory,
        agent_version=metadata.version("ray-gpu-orchestrator"),
    )
    try:
        answer = await join(config.control_plane, request)
    except ConnectionError as error:
        raise StartError(
            f"cannot reach the control plane at {config.control_plane} to join: is `orch serve` running"
            f" there? check --control-plane ({error})"
        ) from None
    except JoinRefusedError as error:
        remedy = " (made by `orch token create --role supplier`)" if error.about_token else ""
        raise StartError(
            f"the control plane at {config.control_plane} refused the join: {error}{remedy}"
        ) from None
    return Identity(
        answer.worker_id, config.name, answer.supplier_id, config.control_plane, answer.network_id
    )


def _take_signals(agent: Agent, config: AgentConfig) -> None:
    """The first interrupt drains, the second ends this process where it stands."""
    begun = False

    def interrupted() -> None:
        nonlocal begun
        if begun:
            _write_stop_files(config.data_dir)
            _say("stopped at once; nodes that still run end within seconds")
            os._exit(EXIT_INTERRUPTED)
        begun = True
        _say(
            "draining: members end and the last statements go out; a control plane that is away is waited for"
            f" {DRAIN_PATIENCE_MS // 1000} s; Ctrl-C again stops at once"
        )
        agent.drain()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)


def _write_stop_files(data_dir: Path) -> None:
    """Ask every keeper to end its node; what they leave is cleared by the next start."""
    for member_dir in (data_dir / "members").glob("*/"):
        with contextlib.suppress(OSError):
            (member_dir / STOP_FILE).touch()


def _farewell(agent: Agent, config: AgentConfig) -> int:
    if not agent.abandoned:
        _say("left: everything is given back and every statement is acknowledged")
        return EXIT_LEFT
    _say(
        f"left without the control plane at {config.control_plane}: members are stopped,"
        f" {agent.undelivered} statement(s) wait in {config.data_dir}; `orch worker join` delivers them"
    )
    return EXIT_REFUSED


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run work while the body runs."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _measure(control: GrpcControlPlane) -> None:
    """Report what the machine is doing, now and then; whoever is not there misses it."""
    system = SystemClock()
    psutil.cpu_percent()
    while True:
        await asyncio.sleep(TELEMETRY_S)
        sampled_at = Timestamp()
        sampled_at.FromMilliseconds(system.now().wall_ms)
        sample = telemetry_pb2.ReportRequest(
            sampled_at=sampled_at,
            cpu_utilization_ratio=psutil.cpu_percent() / 100,
            memory_used_bytes=psutil.virtual_memory().used,
        )
        with contextlib.suppress(ConnectionError):
            await control.report(sample)


def _offered(inventory: common_pb2.Inventory) -> str:
    devices = [f"{device.model}{' (simulated)' if device.simulated else ''}" for device in inventory.devices]
    heads = [f"{inventory.head_slots} head slot(s)"] if inventory.head_slots else []
    return ", ".join(devices + heads)


def _say(text: str) -> None:
    """A line for whoever started this."""
    sys.stderr.write(f"orch: {text}\n")
    sys.stderr.flush()
