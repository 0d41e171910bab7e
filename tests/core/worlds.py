"""Small worlds: a state that only commands change, and agents who report what they were told to have."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from orchestrator.core import messages as m
from orchestrator.core.clusters import Cluster, Member, NodeAddress, NodeSeen, PathSeen
from orchestrator.core.decide import handle
from orchestrator.core.ids import (
    AttemptId,
    ClusterId,
    DeviceId,
    JobId,
    LeaseId,
    Now,
    SupplierId,
    TenantId,
    TokenId,
    WorkerId,
)
from orchestrator.core.jobs import Attempt, Job, JobRequest, Outcome, Requirements
from orchestrator.core.metering import Lease, Receipt
from orchestrator.core.policies import Policies
from orchestrator.core.queries.desired import desired_members
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.placement import Budget, Need, Plan, Served
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.state import State
from orchestrator.core.supply.catalogue import CPU_MODEL, GIB, MODELS
from orchestrator.core.supply.fleet import (
    Device,
    DeviceKind,
    HardwareClass,
    Inventory,
    Isolation,
    Liveness,
    TokenRole,
    Worker,
)

NETWORK_ID = "net_test"
START_WALL_MS = 1_790_000_000_000
"""Some afternoon; 800 s after a full hour."""

ROUNDS_MAX = 12
"""An agent hears, acts and reports; no formation takes more rounds than this."""


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def inventory(
    model: str = "RTX4090",
    count: int = 1,
    *,
    hardware_class: HardwareClass = HardwareClass.CONSUMER,
    head_slots: int = 0,
    slots: int | None = None,
    zone: str = "home",
    ray_version: str = "2.60.0",
    isolation: Isolation = Isolation.NONE,
    overlay: str = "none",
    unisolated: bool = True,
    name: str = "w",
) -> Inventory:
    """What a machine with ``count`` devices of one model offers; a processor where the model is CPU.

    As long as a test says nothing of isolation there is none, and owner and jobs consent to that.
    """
    cpu = model == CPU_MODEL
    devices = tuple(
        Device(
            DeviceId(f"{name}-{model}-{index}"),
            DeviceKind.CPU if cpu else DeviceKind.GPU,
            model,
            32 * GIB if cpu else MODELS[model].memory_gb * GIB,
            simulated=True,
        )
        for index in range(count)
    )
    return Inventory(
        hardware_class=HardwareClass.CPU if cpu else hardware_class,
        devices=devices,
        cpus=8,
        memory_bytes=32 * GIB,
        slots=count if slots is None else slots,
        head_slots=head_slots,
        operating_system="linux",
        architecture="x86_64",
        python_version="3.11.9",
        ray_version=ray_version,
        isolation=isolation,
        overlay=overlay,
        zone=zone,
        unisolated=unisolated and isolation is Isolation.NONE,
    )


def request(
    requirements: Requirements | None = None,
    *,
    priority: int = 0,
    max_attempts: int = 3,
    time_limit_ms: int = 0,
) -> JobRequest:
    return JobRequest(
        entrypoint="python train.py",
        runtime_env_json="{}",
        metadata=(),
        packages=(),
        requirements=requirements or Requirements(),
        priority=priority,
        max_attempts=max_attempts,
        time_limit_ms=time_limit_ms,
    )


def path_seen(member: Member, peer: Member, *, received: int = 20) -> PathSeen:
    """The way to a peer as a member's agent measured it."""
    times_us = (20_000, 21_000, 25_000, 900) if received else (0, 0, 0, 0)
    return PathSeen(member.member_id, peer.member_id, 20, received, *times_us)


@dataclass(slots=True)
class Listed:
    """Needs in the order given, whatever becomes of them."""

    needs: list[Need]

    def __iter__(self) -> Iterator[Need]:
        return iter(self.needs)

    def settled(self, need: Need, outcome: Served) -> None:
        """Nothing follows from it."""


@dataclass(slots=True)
class Driver:
    """What the agent beside the head would say of an attempt."""

    running: bool = True
    outcome: Outcome = Outcome.NONE
    exit_code: int | None = None


@dataclass(slots=True)
class World:
    """One control plane's state, its clock, and agents that follow it unless a test says otherwise."""

    policies: Policies = field(default_factory=Policies)
    boot: str = "boot-1"
    wall_ms: int = START_WALL_MS
    monotonic_ms: int = 5_000_000
    state: State = field(init=False)
    drivers: dict[AttemptId, Driver] = field(default_factory=dict)
    dirty: set[ClusterId] = field(default_factory=set)
    """Clusters whose head says that something of the last job is left."""
    count: int = 0

    def __post_init__(self) -> None:
        self.state = State(self.policies)
        self.do(m.StartControl(NETWORK_ID))

    # ------------------------------------------------------------ time and commands

    def now(self) -> Now:
        return Now(self.wall_ms, self.monotonic_ms, self.boot)

    @property
    def at_ms(self) -> int:
        return self.state.time_ms(self.now())

    def do(self, command: m.Command) -> m.Decision:
        return handle(self.state, command, self.now())

    def forward(self, ms: int) -> None:
        """Let time pass unnoticed."""
        self.wall_ms += ms
        self.monotonic_ms += ms

    def tick(self, ms: int = 0) -> m.Decision:
        """Let time pass, and the loop notice."""
        self.forward(ms)
        return self.do(m.Tick())

    def live_on(self, ms: int, *, silent: frozenset[WorkerId] = frozenset(), step_ms: int = 5_000) -> None:
        """Let time pass with heartbeats of everybody who is not ``silent``."""
        while ms > 0:
            self.forward(min(step_ms, ms))
            ms -= step_ms
            for worker in list(self.state.workers.values()):
                if worker.worker_id not in silent and worker.liveness is not Liveness.LEFT:
                    self.do(m.ConnectWorker(worker.worker_id, None))
            self.do(m.Tick())

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}_{self.count:04d}"

    # ------------------------------------------------------------ who takes part

    def tenant(self, name: str = "acme") -> TenantId:
        known = next((one.tenant_id for one in self.state.tenants.values() if one.name == name), None)
        if known is not None:
            return known
        return TenantId(str(self.do(m.CreateTenant(TenantId(self.name("ten")), name)).result))

    def token(
        self,
        role: TokenRole = TokenRole.SUPPLIER,
        subject: str = "garage",
        ttl_ms: int = 10**8,
        *,
        head_host: bool = False,
    ) -> str:
        """The hash of a new token."""
        digest = sha(self.name("secret"))
        supplier = SupplierId(self.name("sup"))
        token_id = TokenId(self.name("tok"))
        self.do(m.CreateToken(token_id, role, subject, digest, ttl_ms, supplier, head_host=head_host))
        return digest

    def joining(
        self, offer: Inventory, *, key: str = "", token: str = "", supplier: str = "garage"
    ) -> m.JoinWorker:
        name = self.name("wkr")
        spent = token or self.token(subject=supplier, head_host=offer.head_slots > 0)
        return m.JoinWorker(WorkerId(name), spent, name, key or sha(name), offer)

    def worker(
        self,
        model: str = "RTX4090",
        count: int = 1,
        *,
        hardware_class: HardwareClass = HardwareClass.CONSUMER,
        zone: str = "home",
        slots: int | None = None,
        ray_version: str = "2.60.0",
        isolation: Isolation = Isolation.NONE,
        overlay: str = "none",
        unisolated: bool = True,
        supplier: str = "garage",
    ) -> WorkerId:
        """A live worker; its device ids carry its name."""
        offer = inventory(
            model,
            count,
            hardware_class=hardware_class,
            zone=zone,
            slots=slots,
            ray_version=ray_version,
            isolation=isolation,
            overlay=overlay,
            unisolated=unisolated,
            name=f"m{self.count}",
        )
        return self.join(offer, supplier)

    def head_host(
        self,
        head_slots: int = 2,
        *,
        zone: str = "home",
        ray_version: str = "2.60.0",
        isolation: Isolation = Isolation.NONE,
        overlay: str = "none",
        unisolated: bool = True,
    ) -> WorkerId:
        """A live worker that offers head slots only."""
        offer = inventory(
            CPU_MODEL,
            0,
            head_slots=head_slots,
            zone=zone,
            ray_version=ray_version,
            isolation=isolation,
            overlay=overlay,
            unisolated=unisolated,
        )
        return self.join(offer)

    def join(self, offer: Inventory, supplier: str = "garage") -> WorkerId:
        worker_id = WorkerId(str(self.do(self.joining(offer, supplier=supplier)).result))
        self.do(m.ConnectWorker(worker_id, None))
        return worker_id

    def submit(
        self,
        requirements: Requirements | None = None,
        *,
        tenant: str = "acme",
        priority: int = 0,
        max_attempts: int = 3,
        time_limit_ms: int = 0,
    ) -> JobId:
        tenant_id = self.tenant(tenant)
        name = self.name("job")
        asked = request(
            requirements, priority=priority, max_attempts=max_attempts, time_limit_ms=time_limit_ms
        )
        return JobId(
            str(self.do(m.SubmitJob(JobId(name), tenant_id, f"sub-{name}", asked, sha(name))).result)
        )

    def plan(self, budget: Budget | None = None) -> Plan:
        """Make a plan and apply it, as the planner does."""
        made = plan(self.state, Queue(self.state, self.at_ms), self.at_ms, budget or Budget())
        self.apply(made)
        return made

    def apply(self, made: Plan) -> m.Decision:
        self.state.waiting.update((one.job_id, one.reason) for one in made.deferrals)
        fresh = tuple(ClusterId(self.name("cl")) for _ in made.placements)
        return self.do(m.ApplyPlan(made, fresh))

    # ------------------------------------------------------------ agents

    def honest(self, worker_id: WorkerId) -> tuple[m.ObservedMember, ...]:
        """What a faithful agent has once it has done everything it was told."""
        return tuple(self._member(desired) for desired in desired_members(self.state, worker_id))

    def _member(self, desired: m.DesiredMember) -> m.ObservedMember:
        member = desired.member
        cluster = self.state.clusters[member.cluster_id]
        everybody = self.state.cluster_members(cluster)
        nodes = tuple(NodeSeen(one.member_id, float(one.gpus), 8.0) for one in everybody if one.phase == "up")
        attempts = tuple(
            m.ObservedAttempt(
                one.attempt.attempt_id, driver.running, driver.outcome, "said", driver.exit_code
            )
            for one in desired.attempts
            if (driver := self.drivers.get(one.attempt.attempt_id)) is not None
        )
        return m.ObservedMember(
            member_id=member.member_id,
            generation=desired.fence.generation,
            address=NodeAddress("10.0.0.1", f"10.0.0.1:{6000 + member.slot}", member.worker_id, "/tmp/x"),
            up=desired.run,
            failed=False,
            stopping=False,
            reason="",
            nodes=nodes if member.role != "member" else (),
            clean=cluster.cluster_id not in self.dirty,
            attempts=attempts,
            paths=tuple(
                path_seen(member, peer)
                for peer in everybody
                if member.overlay_host and peer.ordinal < member.ordinal
            ),
        )

    def report(
        self,
        worker_id: WorkerId,
        members: tuple[m.ObservedMember, ...] | None = None,
        seen: int | None = None,
    ) -> m.Decision:
        """A worker's whole list: ``members`` as given, else as an honest agent has them."""
        shown = self.honest(worker_id) if members is None else members
        seen_version = self.state.version if seen is None else seen
        return self.do(m.ObserveWorker(worker_id, seen_version, shown))

    def reports(self, *, without: frozenset[WorkerId] = frozenset()) -> None:
        """Everybody reports until nothing follows any more."""
        for _ in range(ROUNDS_MAX):
            before = self.state.version
            for worker in list(self.state.workers.values()):
                if worker.worker_id not in without and worker.liveness is not Liveness.LEFT:
                    self.report(worker.worker_id)
            if self.state.version == before:
                return

    def fail(self, member: Member, reason: str = "the node died") -> m.Decision:
        """Its agent says that one member failed, and the truth about the others."""
        shown = tuple(
            replace(one, up=False, failed=True, reason=reason) if one.member_id == member.member_id else one
            for one in self.honest(member.worker_id)
        )
        return self.report(member.worker_id, shown)

    # ------------------------------------------------------------ whole stories

    def ready(self, requirements: Requirements | None = None, *, max_attempts: int = 3) -> JobId:
        """A job on a READY cluster, its driver not begun."""
        job_id = self.submit(requirements, max_attempts=max_attempts)
        self.plan()
        self.reports()
        return job_id

    def running(self, requirements: Requirements | None = None, *, max_attempts: int = 3) -> JobId:
        """A job whose driver runs, its leases begun."""
        job_id = self.ready(requirements, max_attempts=max_attempts)
        self.start(job_id)
        return job_id

    def start(self, job_id: JobId) -> None:
        self.drivers[self.attempt(job_id).attempt_id] = Driver()
        self.reports()

    def end(self, job_id: JobId, outcome: Outcome = Outcome.SUCCEEDED, exit_code: int | None = 0) -> None:
        """The driver ends; its log is not complete yet."""
        self.drivers[self.attempt(job_id).attempt_id] = Driver(False, outcome, exit_code)
        self.reports()

    def finish(self, job_id: JobId, outcome: Outcome = Outcome.SUCCEEDED) -> None:
        """The driver ends and its whole log arrives."""
        attempt_id = self.attempt(job_id).attempt_id
        self.end(job_id, outcome)
        self.do(m.CompleteLog(attempt_id, 100))
        self.reports()

    def state_time(
        self, lease: Lease, until_ms: int, *, final: bool = False, sequence: int | None = None
    ) -> m.Decision:
        """The worker's next statement: it has held the lease until offset ``until_ms``."""
        lease = self.state.leases[lease.lease_id]
        number = lease.next_sequence if sequence is None else sequence
        return self.do(
            m.AcceptStatement(
                worker_id=lease.worker_id,
                lease_id=lease.lease_id,
                subject=self.subject(lease),
                sequence=number,
                start_offset_ms=lease.stated_offset_ms,
                end_offset_ms=until_ms,
                final=final,
                device_ids=lease.device_ids,
                heartbeats_acknowledged=1,
                payload_sha256=sha(f"{lease.lease_id}/{number}/{until_ms}"),
                envelope=b"signed",
            )
        )

    def subject(self, lease: Lease) -> tuple[str, str, str, str]:
        """What a true statement of a lease speaks of."""
        return (self.state.control.network_id, lease.member_id, lease.job_id, lease.attempt_id)

    # ------------------------------------------------------------ looking

    def job(self, job_id: JobId) -> Job:
        return self.state.shown(self.state.jobs[job_id])

    def attempt(self, job_id: JobId) -> Attempt:
        attempt_id = self.state.jobs[job_id].attempt_id
        assert attempt_id is not None, "the job is queued"
        return self.state.attempts[attempt_id]

    def cluster(self, job_id: JobId) -> Cluster:
        return self.state.clusters[self.attempt(job_id).cluster_id]

    def members(self, job_id: JobId) -> list[Member]:
        return self.state.cluster_members(self.cluster(job_id))

    def leases(self, job_id: JobId) -> list[Lease]:
        attempts = [one.attempt_id for one in self.state.attempts.values() if one.job_id == job_id]
        ids = [lease_id for attempt_id in attempts for lease_id in self.state.leases_of.get(attempt_id, ())]
        return [self.state.leases[lease_id] for lease_id in ids]

    def receipts(self, lease_id: LeaseId) -> list[Receipt]:
        return [self.state.receipts[key] for key in self.state.receipts_of.get(lease_id, ())]

    def who(self, worker_id: WorkerId) -> Worker:
        return self.state.workers[worker_id]
