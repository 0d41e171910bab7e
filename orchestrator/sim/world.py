"""One seeded run of everything: machines, agents, control plane, tenants, and what goes wrong between them."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.agent.agent import Agent, AgentSettings
from orchestrator.api.v1 import common_pb2
from orchestrator.control.inventory_wire import inventory_from
from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPolicy
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import JobId, SupplierId, TenantId, TokenId, WorkerId
from orchestrator.core.jobs import JobPolicy, JobRequest
from orchestrator.core.metering import MeteringPolicy
from orchestrator.core.policies import Policies
from orchestrator.core.preemption import PreemptionPolicy
from orchestrator.core.supply.catalogue import GIB
from orchestrator.core.supply.fleet import FleetPolicy, TokenRole
from orchestrator.core.supply.versions import NEWEST
from orchestrator.receipts import ids
from orchestrator.sim import checks
from orchestrator.sim.control import ControlProcess, Outside
from orchestrator.sim.memory import MemoryJournal, MemoryLedger, MemoryLogFiles, MemoryStore
from orchestrator.sim.network import Link, Parts, SimControlPlane
from orchestrator.sim.ray import Machine, SimHead, SimNodes, SimRay
from orchestrator.sim.virtual import Processes, SimClock, run_virtual, virtual_ms
from orchestrator.sim.workload import TENANTS, a_request

if TYPE_CHECKING:
    from orchestrator.core.state import State

POLICIES = Policies(
    fleet=FleetPolicy(suspect_after_ms=12_000, lease_ttl_ms=30_000, lost_after_ms=40_000),
    clusters=ClusterPolicy(idle_teardown_ms=30_000, head_deadline_ms=40_000, join_deadline_ms=40_000),
    jobs=JobPolicy(stop_grace_ms=10_000),
    metering=MeteringPolicy(statement_interval_ms=20_000),
    preemption=PreemptionPolicy(
        notice_ms=8_000, wait_ms=5_000, wait_for_share_ms=20_000, run_ms_min=5_000, protected_ms=20_000
    ),
)
"""Shorter than the defaults, so that one run crosses every deadline."""

AGENT_VERSION = ".".join(str(part) for part in NEWEST)

FAULTS_S = 150.0
RECOVERY_S = 1_500.0
"""Virtual time within which every acknowledged job must have ended once faults have ceased."""

STOPPED_RATIO = 0.15
"""Jobs that their tenant stops."""

FLEET = (
    ("consumer", "RTX4090", 1, 0),
    ("consumer", "RTX4090", 1, 0),
    ("consumer", "RTX3090", 1, 0),
    ("consumer", "RTX4090", 2, 0),
    ("datacenter", "H100", 2, 0),
    ("datacenter", "H100", 2, 0),
    ("cpu", "CPU", 1, 0),
    ("cpu", "", 0, 2),
    ("cpu", "", 0, 2),
)
"""(class, model, devices, head slots)."""


@dataclass(slots=True)
class SimWorker:
    """One machine and its agent's identity."""

    worker_id: WorkerId
    machine: Machine
    link: Link
    key: Ed25519PrivateKey
    inventory: common_pb2.Inventory
    journal: MemoryJournal
    lives: int = 0
    running: bool = False
    agent: Agent | None = None


@dataclass(slots=True)
class Result:
    """What a run came to."""

    seed: int
    jobs: int = 0
    attempts: int = 0
    control_deaths: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    gave_way: int = 0
    receipts: int = 0
    billed_ms: int = 0
    cut_short: int = 0
    """Tries that came to their time limit."""
    virtual_s: float = 0.0
    digest: str = ""
    """Of the whole event log: two runs of one seed must have the same."""


class World:
    """Everything of one run."""

    def __init__(self, seed: int, policies: Policies = POLICIES) -> None:
        self.random = Random(seed)
        self.result = Result(seed)
        self.processes = Processes()
        self.ray = SimRay(self._fork())
        self.workers: list[SimWorker] = []
        self.acknowledged: dict[str, str] = {}
        self.held_ms: dict[str, int] = {}
        self.quiet = False
        self.joined = 0
        key = self._key()
        self.public_key = key.public_key()
        self.outside = Outside(
            processes=self.processes,
            random=self._fork(),
            store=MemoryStore(self._fork()),
            files=MemoryLogFiles(),
            ledger=MemoryLedger(self._fork(), self.public_key),
            clock=SimClock("control", self._fork()),
            key=key,
            policies=policies,
            inspect=checks.check_state,
        )
        self.control: ControlProcess | None = None
        self.lives = 0

    def _fork(self) -> Random:
        return Random(self.random.getrandbits(64))

    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.random.randbytes(32))

    # ------------------------------------------------------------ the control plane

    async def start_control(self) -> None:
        """A new life from what the store holds."""
        self.lives += 1
        process = ControlProcess(self.outside, f"control-{self.lives}")
        await process.start()
        self.control = process
        self.processes.spawn("world", self._revive(process))

    async def _revive(self, process: ControlProcess) -> None:
        """Whenever the process dies, another is started a little later."""
        await process.died.wait()
        self.control = None
        self.result.control_deaths += 1
        await process.kill()
        await asyncio.sleep(0.5 + self.random.random() * (2.0 if self.quiet else 12.0))
        await self.start_control()

    def parts(self) -> Parts | None:
        """What agents reach now."""
        return self.control.parts if self.control is not None and not self.control.died.is_set() else None

    async def submit(self, command: m.Command) -> object:
        """As a client that tries again: the same command, until it is answered."""
        while True:
            control = self.control
            if control is not None:
                try:
                    return (await control.submit(command)).result
                except ConnectionError:
                    pass
                except RefusedError as refusal:
                    if refusal.code not in (RefusalCode.UNAVAILABLE, RefusalCode.EXHAUSTED):
                        raise
            await asyncio.sleep(0.5)

    # ------------------------------------------------------------ workers

    async def add_worker(self, hardware_class: str, model: str, devices: int, head_slots: int) -> None:
        """Join a worker and start its agent."""
        number = self.joined
        self.joined += 1
        name = f"worker-{number}"
        token = hashlib.sha256(f"token-{number}".encode()).hexdigest()
        supplier = SupplierId(f"sup_{number % 3}")
        await self.submit(
            m.CreateToken(
                TokenId(f"tok_{number}"),
                TokenRole.SUPPLIER,
                f"supplier {number % 3}",
                token,
                10**9,
                supplier,
                name,
                head_host=head_slots > 0,
            )
        )
        gpu = hardware_class != "cpu"
        inventory = common_pb2.Inventory(
            hardware_class=common_pb2.HardwareClass.Value(f"HARDWARE_CLASS_{hardware_class.upper()}"),
            devices=[
                common_pb2.Device(
                    device_id=f"{name}-d{index}",
                    kind=common_pb2.DEVICE_KIND_GPU if gpu else common_pb2.DEVICE_KIND_CPU,
                    model=model,
                    memory_bytes=16 * GIB,
                    simulated=True,
                )
                for index in range(devices)
            ],
            cpus=4,
            memory_bytes=32 * GIB,
            slots=devices,
            head_slots=head_slots,
            operating_system="linux",
            python_version="3.11.0",
            ray_version="2.60.0",
            isolation="none",
            overlay="none",
            zone="lab",
            unisolated=True,
        )
        key = self._key()
        worker_id = WorkerId(f"wk_{number}")
        public = key.public_key().public_bytes_raw().hex()
        await self.submit(m.JoinWorker(worker_id, token, name, public, inventory_from(inventory)))
        rate = 1.1 if number == 1 else 1.0
        machine = Machine(
            name, SimClock(name, self._fork(), self.random.randint(-7_200_000, 7_200_000), rate)
        )
        self.ray.machines[name] = machine
        worker = SimWorker(worker_id, machine, Link(self._fork()), key, inventory, MemoryJournal())
        self.workers.append(worker)
        self.start_agent(worker)

    def start_agent(self, worker: SimWorker) -> None:
        """A new life of an agent on its machine."""
        if worker.running:
            return  # an overlapping fault has brought it back already; two agents never share a machine
        worker.running = True
        worker.lives += 1
        settings = AgentSettings(
            worker.worker_id, AGENT_VERSION, worker.inventory, Path("/nonexistent"), poll_s=1.0
        )
        driver = SimNodes(worker.machine, self._fork())
        control = SimControlPlane(worker.link, worker.worker_id, self.parts)

        async def live() -> None:
            worker.agent = Agent(
                settings,
                worker.key,
                control,
                driver,
                lambda status, _token: SimHead(self.ray, status.gcs_address),
                worker.journal,
                worker.machine.clock,
            )
            try:
                await worker.agent.run()
            except Exception as error:
                self.outside.failures.append(error)
                raise

        self.processes.spawn(self.process_of(worker), live())

    def process_of(self, worker: SimWorker) -> str:
        """The process of a worker's present agent."""
        return f"{worker.worker_id}-{worker.lives}"

    async def crash_agent(self, worker: SimWorker) -> None:
        """Kill an agent; its nodes stay."""
        worker.running = False
        await self.processes.kill(self.process_of(worker))

    # ------------------------------------------------------------ tenants

    async def tenants(self) -> None:
        """Submit jobs through the time of faults, and stop some."""
        for number in range(self.random.randint(6, 14)):
            await asyncio.sleep(self.random.random() * FAULTS_S / 10)
            tenant_id, request = a_request(self.random, number)
            self.processes.spawn("world", self._tenant(tenant_id, f"sub-{number}", request))

    async def _tenant(self, tenant_id: TenantId, submission_id: str, request: JobRequest) -> None:
        stops = self.random.random() < STOPPED_RATIO
        patience_s = self.random.random() * 60
        fresh = JobId(f"job_{self.random.getrandbits(64):016x}")
        command = m.SubmitJob(fresh, tenant_id, submission_id, request, submission_id)
        job_id = str(await self.submit(command))
        self.acknowledged[submission_id] = job_id
        if stops:
            await asyncio.sleep(patience_s)
            await self.submit(m.StopJob(JobId(job_id)))

    # ------------------------------------------------------------ faults

    async def faults(self) -> None:
        """Break something every few seconds, for FAULTS_S."""
        end_ms = virtual_ms() + int(FAULTS_S * 1000)
        kinds = (
            self._kill_control,
            self._kill_control,
            self._crash,
            self._reboot,
            self._partition,
            self._partition,
            self._freeze,
            self._lose,
            self._shake_ledger,
            self._skew_wall,
            self._drain,
            self._join,
        )
        while virtual_ms() < end_ms:
            await asyncio.sleep(1 + self.random.random() * 12)
            fault = self.random.choice(kinds)
            name = fault.__name__.strip("_")
            self.result.faults[name] = self.result.faults.get(name, 0) + 1
            self.processes.spawn("world", fault(self.random.choice(self.workers), self.random.random() * 60))

    async def _kill_control(self, _worker: SimWorker, _duration_s: float) -> None:
        if self.control is not None:
            steps = (
                "decided",
                "before_write",
                "after_write",
                "committed",
                "acknowledged",
                "performed",
                "now",
            )
            step = self.random.choice(steps)
            self.control.death_at = step
            if step == "now":
                self.control.died.set()

    async def _crash(self, worker: SimWorker, duration_s: float) -> None:
        await self.crash_agent(worker)
        await asyncio.sleep(duration_s)
        self.start_agent(worker)

    async def _reboot(self, worker: SimWorker, duration_s: float) -> None:
        await self.crash_agent(worker)
        worker.machine.reboot()
        await asyncio.sleep(duration_s)
        self.start_agent(worker)

    async def _partition(self, worker: SimWorker, duration_s: float) -> None:
        worker.link.blocked = True
        await asyncio.sleep(duration_s * 2)
        worker.link.blocked = False

    async def _freeze(self, worker: SimWorker, duration_s: float) -> None:
        worker.machine.frozen = worker.link.blocked = True
        await asyncio.sleep(duration_s * 2)
        worker.machine.frozen = worker.link.blocked = False

    async def _lose(self, worker: SimWorker, duration_s: float) -> None:
        worker.link.loss = 0.2
        await asyncio.sleep(duration_s)
        worker.link.loss = 0.0

    async def _shake_ledger(self, _worker: SimWorker, duration_s: float) -> None:
        self.outside.ledger.failure_ratio = 0.5
        await asyncio.sleep(duration_s)
        self.outside.ledger.failure_ratio = 0.0

    async def _skew_wall(self, _worker: SimWorker, _duration_s: float) -> None:
        self.outside.clock.wall_skew_ms = self.random.randint(-7_200_000, 7_200_000)

    async def _drain(self, worker: SimWorker, duration_s: float) -> None:
        """The supplier takes the machine back, and offers it again later."""
        if worker.agent is None:
            return
        worker.agent.drain()
        await asyncio.sleep(duration_s)
        await self.crash_agent(worker)
        self.start_agent(worker)

    async def _join(self, _worker: SimWorker, _duration_s: float) -> None:
        if self.joined < len(FLEET) + 3:
            await self.add_worker("consumer", "RTX4090", 1, 0)

    def heal(self) -> None:
        """No more faults; what is broken now recovers."""
        self.quiet = True
        self.outside.ledger.failure_ratio = 0.0
        if self.control is not None:
            self.control.death_at = ""
        for worker in self.workers:
            worker.link.blocked = worker.machine.frozen = False
            worker.link.loss = 0.0

    # ------------------------------------------------------------ watching

    async def watch(self) -> None:
        """Machines, every virtual second; and for how long each node really ran."""
        devices = {}
        before_ms = virtual_ms()
        while True:
            await asyncio.sleep(0.5)
            step_ms = virtual_ms() - before_ms
            before_ms = virtual_ms()
            for worker in self.workers:
                devices[worker.machine.name] = tuple(
                    one.device_id
                    for one in worker.inventory.devices
                    if one.kind == common_pb2.DEVICE_KIND_GPU
                )
                for node in worker.machine.alive():
                    # As its own clock has it: what a fast clock adds is bounded by the control plane's record.
                    held_ms = self.held_ms.get(node.member_id, 0)
                    self.held_ms[node.member_id] = held_ms + int(step_ms * worker.machine.clock.rate)
            if self.outside.failures:
                raise self.outside.failures[0]
            checks.check_machines([worker.machine for worker in self.workers], devices)

    async def until_done(self) -> State:
        """Wait for every acknowledged job, receipt and cluster to be finished; the state then, or as far as it got."""
        end_ms = virtual_ms() + int(RECOVERY_S * 1000)
        while True:
            await asyncio.sleep(5)
            control = self.control
            if control is None:
                continue
            try:
                state = await control.loop.read(lambda state: state)
            except RefusedError:
                continue  # it dies just now, of a fault that came late
            unfinished = [job for job in state.jobs.values() if not job.status.terminal]
            money = state.unsigned or state.unposted or state.unsettled_leases
            if not unfinished and not money and not state.open_clusters:
                return state
            if virtual_ms() > end_ms:
                checks.require(not unfinished, f"{[(job.submission_id, job.message) for job in unfinished]}")
                leases = list(state.unsettled_leases)
                open_clusters = [(one, state.clusters[one].phase) for one in state.open_clusters]
                raise checks.ViolationError(f"unfinished: leases {leases}, clusters {open_clusters}")


async def _run(seed: int) -> Result:
    world = World(seed)
    await world.start_control()
    for tenant_id in TENANTS:
        await world.submit(m.CreateTenant(tenant_id, f"acme of {tenant_id}", tenant_id))
    for kind in FLEET:
        await world.add_worker(*kind)
    watching = world.processes.spawn("world", world.watch())
    submitting = world.processes.spawn("world", world.tenants())
    await world.faults()
    await submitting
    await asyncio.sleep(130)  # the longest fault that may still be under way
    world.heal()
    finishing = world.processes.spawn("world", world.until_done())
    await asyncio.wait((finishing, watching), return_when=asyncio.FIRST_COMPLETED)
    if watching.done():
        watching.result()
    state = finishing.result()
    public = world.public_key.public_bytes_raw()
    receipts = checks.receipts_of(world.outside.ledger, public, ids.key_id(public))
    checks.check_store(world.outside.store, POLICIES, state)
    checks.check_jobs(state, world.acknowledged, world.ray)
    checks.check_gangs(world.ray, state)
    checks.check_limits(state)
    checks.check_money(state, world.outside.ledger, receipts, world.held_ms)
    result = world.result
    result.jobs, result.attempts, result.receipts = len(state.jobs), len(state.attempts), len(receipts)
    result.gave_way = sum(len(job.gave_way) for job in state.jobs.values())
    result.billed_ms = sum(one.billed_ms for one in receipts)
    result.cut_short = sum(attempt.timed_out for attempt in state.attempts.values())
    result.virtual_s = virtual_ms() / 1000
    log = b"".join(b"%d %s" % (at_ms, body) for _, at_ms, _, body in world.outside.store.log)
    result.digest = hashlib.sha256(log).hexdigest()[:16]
    return result


def run_seed(seed: int) -> Result:
    """One whole run in virtual time. Raises ViolationError where an invariant does not hold."""
    return run_virtual(_run(seed))
