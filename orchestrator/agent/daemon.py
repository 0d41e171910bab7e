"""`orch worker join`: one process that offers this machine until it is told to stop.

The first run makes keys and spends the join token; every later run is the same worker again, also after a
drain. One interrupt drains; a hang-up steps aside, so that an upgraded agent can take over running nodes. A
second interrupt, or a refusal for good, ends this process at once: then the stop files of all members are
written, so that their keepers end the nodes within seconds, not at the end of the lease. Each keeper records
when its node ended, so the next run states what was held until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import structlog

from orchestrator.adapters import clock, peers
from orchestrator.adapters.clock import SystemClock
from orchestrator.adapters.container.images import here
from orchestrator.adapters.container.tiers import trial
from orchestrator.adapters.devices import read_evidence
from orchestrator.adapters.log_setup import configure_logging
from orchestrator.adapters.runtimes import (
    RuntimeStore,
    RuntimeUnavailableError,
    Uv,
    bundled,
    find_uv,
    uv_environment,
)
from orchestrator.adapters.terms_wire import terms_from, terms_to
from orchestrator.agent.agent import DRAIN_PATIENCE_MS, Agent, AgentSettings
from orchestrator.agent.caches import CacheTeller, Shelves
from orchestrator.agent.capabilities import found_capabilities
from orchestrator.agent.connection import GrpcControlPlane
from orchestrator.agent.credentials import CERTIFICATE_FILE, TRUST_FILE, Credentials, keep_certificate
from orchestrator.agent.exporter import AgentExporter
from orchestrator.agent.health import FaultDesk, Health, Nvml
from orchestrator.agent.housing import Housing, Room, nvidia_files
from orchestrator.agent.identity import (
    Identity,
    Keys,
    Received,
    StartError,
    load_identity,
    load_keys,
    save_identity,
    take_data_dir,
)
from orchestrator.agent.inventory import (
    AUTO,
    DeviceIds,
    InventoryError,
    Offer,
    build_inventory,
    read_machine,
    unlisted,
)
from orchestrator.agent.joining import Applicant, JoinToken, enrol, known_pin, parse_join_token
from orchestrator.agent.journal import FileJournal
from orchestrator.agent.keeper import STOP_FILE
from orchestrator.agent.nodes import RayNodes
from orchestrator.agent.owner import About, OwnerService, forget_socket, listening
from orchestrator.agent.pod import node_labels, say_contradictions, terms_by_labels
from orchestrator.agent.ports import RefusedForeverError
from orchestrator.agent.prober import box_prober
from orchestrator.agent.ray_head import RayHead
from orchestrator.agent.runtimes import Runtimes, WarmUp
from orchestrator.agent.scraping import Scraping
from orchestrator.agent.standing import StandingKeeper
from orchestrator.agent.tunnelling import tunnel_counts
from orchestrator.agent.underlay import Underlay
from orchestrator.agent.wishes import Wishes
from orchestrator.api.v1 import common_pb2
from orchestrator.core.ids import Now
from orchestrator.core.supply.evidence import NodeLabels
from orchestrator.core.supply.fleet import NEBULA, Isolation
from orchestrator.core.supply.terms import Terms

log = structlog.get_logger(__name__)

EXIT_LEFT = 0
EXIT_REFUSED = 1
"""Asked properly and refused, or left without the control plane."""
EXIT_USAGE = 2
"""Nothing was begun: what was asked for, or where, has to change."""
EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells count it."""

PACKAGES_DIR = "packages"
RUNTIMES_DIR = "runtimes"

AGENT_VERSION = metadata.version("ray-gpu-orchestrator")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """What was asked for. ``cpus`` None means all; without ``gpus`` the processor is offered.

    ``ca_pin`` is for joining without a token, which brings its own; without either the first answer is trusted.
    """

    control_plane: str
    data_dir: Path
    name: str
    join_token: str | None = field(default=None, repr=False)
    ca_pin: str = ""
    gpus: bool = True
    simulate: tuple[str, ...] = ()
    slots: int = 1
    head_slots: int = 0
    cpus: int | None = None
    zone: str = ""
    isolation: str = AUTO
    """auto, none, box or container; none is consent to tenants' code without any isolation."""
    overlay: str = AUTO
    """auto, none or nebula."""
    overlay_transport: Literal["auto", "udp", "tls"] = "auto"
    egress: str = "internet"
    """internet or none: what tenants' code may reach beside its own cluster."""
    runtimes_dir: Path | None = None
    """Where runtimes are built; several agents of one machine may share it. None: in the data directory."""
    terms: Terms = Terms()


class AgentClock:
    """The agent's port for time, on the real clocks."""

    def __init__(self) -> None:
        self._boot_id = clock.boot_id()
        self._system = SystemClock()

    def now(self) -> Now:
        """As AgentClock.now."""
        return self._system.now()

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
    """Offer this machine until it is drained; the exit code. Blocking; takes over SIGINT, SIGTERM and SIGHUP."""
    try:
        lock_fd = take_data_dir(config.data_dir)
        try:
            forget_socket(config.data_dir)
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
    keys = load_keys(config.data_dir)
    identity = load_identity(config.data_dir)
    # Before anything is measured or asked: a token that was cut short must cost nothing.
    token = parse_join_token(config.join_token) if config.join_token and identity is None else JoinToken()
    labels = node_labels(os.environ, _say)
    inventory = _inventory(config, labels)
    agent_clock = AgentClock()
    if identity is None:
        # Later the owner's terms are what the network knows, and his to change.
        config = replace(config, terms=terms_by_labels(config.terms, labels, _say))
        identity = await _enrol(config, keys, token, inventory, agent_clock)
        _say(f"joined as worker {identity.worker_id} ({identity.name}) of supplier {identity.supplier_id}")
    elif identity.control_plane != config.control_plane:
        _say(f"joined at {identity.control_plane}; connecting to {config.control_plane} from now on")
        identity = replace(identity, control_plane=config.control_plane)
        save_identity(config.data_dir, identity)
    configure_logging({"worker_id": identity.worker_id}, pretty=sys.stderr.isatty())
    try:
        journal = FileJournal(config.data_dir)
        journal.load()
        wishes = Wishes(config.data_dir, agent_clock)
    except ValueError as error:
        raise StartError(str(error)) from None
    return await _offer(config, identity, keys, inventory, journal, wishes, agent_clock)


async def _offer(
    config: AgentConfig,
    identity: Identity,
    keys: Keys,
    inventory: common_pb2.Inventory,
    journal: FileJournal,
    wishes: Wishes,
    agent_clock: AgentClock,
) -> int:
    """Put the agent together and let it work until it has left; the exit code. Raises RefusedForeverError."""
    underlay = _underlay(config, inventory)
    settings = AgentSettings(
        worker_id=identity.worker_id,
        agent_version=AGENT_VERSION,
        inventory=inventory,
        cache_dir=config.data_dir / PACKAGES_DIR,
        network_id=identity.network_id,
        overlay_public_key=b"" if underlay is None else underlay.public_key,
    )
    credentials = Credentials(config.data_dir, identity, keys, agent_clock, _say)
    control = GrpcControlPlane(credentials)
    runtimes = _runtimes(config, inventory, control, agent_clock)
    housing = None if runtimes is None else _housing(config, inventory, runtimes)
    nodes = RayNodes(config.data_dir, housing=housing)
    standing, faults = StandingKeeper(config.data_dir, _say), FaultDesk()
    warm_up = None if runtimes is None else WarmUp(runtimes, agent_clock)
    helpers = [one for one in (warm_up, underlay) if one is not None]
    cached = CacheTeller(_shelves(inventory, settings.cache_dir, runtimes).look)
    # They are called in a session only, when there is an agent.
    scraping = Scraping(control, lambda: exporter.text(), lambda: agent.nodes, nodes.spec)  # noqa: PLW0108
    attendants = (credentials, standing, wishes, faults, cached, scraping, *helpers)
    agent = Agent(settings, keys.statement, control, nodes, RayHead, journal, agent_clock, attendants)
    exporter = AgentExporter(agent, AGENT_VERSION, config.data_dir)
    agent.measure_with(box_prober())
    agent.obey(wishes.reclaim)

    def owners_terms() -> Terms:
        told = standing.newest
        return terms_from(told.terms) if told.HasField("terms") else config.terms

    about = About(
        worker_id=identity.worker_id,
        name=identity.name,
        agent_version=AGENT_VERSION,
        standing=lambda: standing.newest if standing.newest.ByteSize() else None,
        notice_ms=lambda: owners_terms().notice_ms,
        not_after_ms=lambda: _certificate_end_ms(config.data_dir),
        certificate_notice=lambda: credentials.notice,
        isolation=inventory.isolation,
        overlay=inventory.overlay,
        remarks=tuple(inventory.remarks),
        runtimes=lambda: [] if runtimes is None else runtimes.shown(),
    )
    measured = (inventory.devices, Nvml(), control, faults, wishes, agent_clock, nodes.processes)
    health = Health(*measured, lambda: tunnel_counts(agent.nodes.values()))
    _take_signals(agent, config)
    _say(f"offering {_offered(inventory)} to {config.control_plane}; Ctrl-C gives everything back and leaves")
    try:
        async with contextlib.AsyncExitStack() as stack:
            await _open_socket(stack, config.data_dir, OwnerService(about, agent, wishes, agent_clock))
            await stack.enter_async_context(_beside(health.run(owners_terms)))
            for helper in helpers:
                await stack.enter_async_context(_beside(helper.run()))
            await agent.run()
    finally:
        await control.close()
    return _farewell(agent, config)


def _underlay(config: AgentConfig, inventory: common_pb2.Inventory) -> Underlay | None:
    """Who measures the ways to other workers; None where no UDP shall leave, or there is no overlay."""
    if inventory.overlay != NEBULA or config.overlay_transport == "tls":
        return None
    return Underlay(config.data_dir, config.control_plane.rpartition(":")[0])


def _runtimes(
    config: AgentConfig, inventory: common_pb2.Inventory, control: GrpcControlPlane, agent_clock: AgentClock
) -> Runtimes | None:
    """The Pythons of boxed members; None where every member is bare, on the agent's own. Raises StartError."""
    if inventory.isolation == Isolation.NONE:
        return None
    try:
        uv = Uv(find_uv(), uv_environment(os.environ))
    except RuntimeUnavailableError as error:
        raise StartError(str(error)) from None
    return Runtimes(
        store=RuntimeStore(config.runtimes_dir or config.data_dir / RUNTIMES_DIR, uv),
        known={runtime.digest: runtime for runtime in bundled()},
        fetch=control.fetch_runtime,
        say=_say,
        clock=agent_clock,
    )


def _shelves(inventory: common_pb2.Inventory, packages_dir: Path, runtimes: Runtimes | None) -> Shelves:
    """What lies ready here; images only where members can be given any."""

    def images() -> list[str]:
        return here(trial().runtime) if inventory.isolation == Isolation.CONTAINER else []

    return Shelves(packages_dir, runtimes.store.ready if runtimes is not None else tuple, images)


def _housing(config: AgentConfig, inventory: common_pb2.Inventory, runtimes: Runtimes) -> Housing:
    """What boxed members need."""
    bus_ids = {
        device.device_id: device.evidence.pci_bus_id for device in inventory.devices if not device.simulated
    }
    return Housing(
        room=Room(
            memory_bytes=inventory.memory_bytes,
            places=max(1, inventory.slots + inventory.head_slots),
            cpus=os.cpu_count() or 1,
            egress="none" if config.egress == "none" else "internet",
        ),
        runtimes=runtimes,
        device_files=nvidia_files(bus_ids),
        beacon_host=config.control_plane.rpartition(":")[0],
        transport=config.overlay_transport,
        trust_file=(config.data_dir / TRUST_FILE).absolute(),
    )


async def _open_socket(stack: contextlib.AsyncExitStack, data_dir: Path, service: OwnerService) -> None:
    """Listen to the owner, if that can be: an agent without a socket is still worth its work."""
    try:
        await stack.enter_async_context(listening(data_dir, service))
    except OSError as error:
        _say(f"cannot listen for `orch worker` commands on this machine: {error}")


def _certificate_end_ms(data_dir: Path) -> int:
    """When the certificate runs out, as it is on disk; 0 where there is none."""
    try:
        return peers.certificate_times((data_dir / CERTIFICATE_FILE).read_bytes())[1]
    except (OSError, ValueError):
        return 0


def _inventory(config: AgentConfig, labels: NodeLabels | None) -> common_pb2.Inventory:
    offer = Offer(
        gpus=config.gpus,
        simulate=config.simulate,
        slots=config.slots,
        head_slots=config.head_slots,
        cpus=config.cpus,
        zone=config.zone,
        isolation=config.isolation,
        overlay=config.overlay,
    )
    capabilities = found_capabilities(offer)
    reading = None if config.simulate else read_evidence()
    for remark in (*unlisted(offer, reading), *capabilities.remarks):
        _say(remark)
    say_contradictions(labels, reading, _say)
    ids = DeviceIds(config.data_dir, clock.new_id)
    return build_inventory(offer, read_machine(), reading, ids, capabilities, labels)


async def _enrol(
    config: AgentConfig,
    keys: Keys,
    token: JoinToken,
    inventory: common_pb2.Inventory,
    agent_clock: AgentClock,
) -> Identity:
    """Join, and write down what came of it: the identity last, because a worker that has one has joined.

    Raises StartError.
    """
    applicant = Applicant(config.control_plane, config.name, inventory, AGENT_VERSION, terms_to(config.terms))
    pin = known_pin(token, config.ca_pin)
    answer, pin = await enrol(applicant, keys, token, pin, agent_clock.now().wall_ms, _say)
    now = agent_clock.now()
    identity = Identity(
        worker_id=answer.worker_id,
        name=config.name,
        supplier_id=answer.supplier_id,
        control_plane=config.control_plane,
        network_id=answer.network_id,
        session_address=answer.session_address,
        ca_pin=pin,
        certificate=Received(
            answer.certificate.renew_after_unix_ms, now.boot_id, now.monotonic_ms, proved=False
        ),
    )
    try:
        return keep_certificate(config.data_dir, identity, keys, answer.certificate, now, proved=False)
    except ValueError as error:
        raise StartError(
            f"the control plane at {config.control_plane} answered the join badly: {error}"
        ) from None


def _take_signals(agent: Agent, config: AgentConfig) -> None:
    """The first interrupt drains, the second ends this process where it stands; so does a hang-up, gently."""
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

    def stepped_aside() -> None:
        # As after a crash, which everything here is made for: what must last is on disk already.
        _say("stepped aside: nodes run on until their lease ends; the next start takes them over")
        os._exit(EXIT_LEFT)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    # Whoever started this with `nohup` wants it to survive his terminal.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, stepped_aside)


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


def _offered(inventory: common_pb2.Inventory) -> str:
    devices = [f"{device.model}{' (simulated)' if device.simulated else ''}" for device in inventory.devices]
    heads = [f"{inventory.head_slots} head slot(s)"] if inventory.head_slots else []
    return ", ".join(devices + heads)


def _say(text: str) -> None:
    """A line for whoever started this."""
    sys.stderr.write(f"orch: {text}\n")
    sys.stderr.flush()
