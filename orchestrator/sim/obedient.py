"""The core on a virtual clock, with agents that do what they are told: no network, no Ray, no disk.

Everything that is decided is decided by the core's own commands and plans. Ended jobs, and what belonged to them, are
forgotten at once, so memory is bounded by what waits and runs. Metering is left out: no statements, no receipts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase, ClusterPolicy, NodeAddress, NodeSeen, PathSeen
from orchestrator.core.decide import handle
from orchestrator.core.ids import ClusterId, DeviceId, JobId, Now, SupplierId, TenantId, WorkerId
from orchestrator.core.jobs import AttemptPhase, JobPolicy, JobRequest, Outcome
from orchestrator.core.policies import Policies
from orchestrator.core.queries.desired import desired_members
from orchestrator.core.queries.queue import Queue
from orchestrator.core.scheduling.offers import OPEN, Column
from orchestrator.core.scheduling.placement import Budget, JobNeed
from orchestrator.core.scheduling.plan import plan
from orchestrator.core.state import State
from orchestrator.core.supply.catalogue import CPU_MODEL, GIB
from orchestrator.core.supply.fleet import (
    NEBULA,
    Device,
    DeviceKind,
    FleetPolicy,
    HardwareClass,
    Inventory,
    Isolation,
    Liveness,
    Supplier,
    Worker,
)
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.supply.terms import Ask, Terms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from orchestrator.core.clusters import Member
    from orchestrator.core.ids import AttemptId, MemberId
    from orchestrator.core.jobs import Requirements
    from orchestrator.core.scheduling.placement import Need, Served
    from orchestrator.sim.traces import Machines

START_MS = 1_790_000_000_000
"""Control time at which a simulation begins: it has to be some day, and always the same one."""

PATIENCE_MS = 10**15
"""Silence is not simulated: who is gone is known to be gone."""

TRIES_MAX = 10**9
"""A job goes on until it is done: how often its ground fails is what is measured."""

HEADS_EACH = 64
HEAD_HOSTS = 64
"""Heads are small and not what is measured: there are always enough of them, for 4,096 gangs at once."""

ROUNDS_MAX = 12
"""An agent hears, acts and reports; no formation takes more rounds than this."""

MEASURED_MAX = 64
"""Plans in a row that place nothing and only have more round trips measured."""

US_PER_MS = 1000
ADDRESS = NodeAddress("10.0.0.1", "10.0.0.1:6379", "host", "ray")
EVERYWHERE = "simulated"
"""The one zone; all machines reach each other by the overlay, and only measured distance keeps a gang together."""


@dataclass(frozen=True, slots=True)
class Ways:
    """Round trips between two machines, in milliseconds."""

    near_ms: int = 2
    """In one region."""
    far_ms: int = 80
    """In two."""


@dataclass(frozen=True, slots=True)
class Unlimited:
    """A queue of which nobody knows when its jobs will end, so that nothing is lent to them."""

    queue: Queue

    def __iter__(self) -> Iterator[Need]:
        for need in self.queue:
            yield replace(need, time_limit_ms=0) if isinstance(need, JobNeed) else need

    def settled(self, need: Need, outcome: Served) -> None:
        """As the queue would be told."""
        self.queue.settled(need, outcome)


@dataclass(slots=True)
class Obedient:
    """State, the virtual clock, and what follows from each command until nothing follows."""

    fleet: Sequence[Machines]
    formation_ms: int
    warm_ms: int
    ways: Ways = field(default_factory=Ways)
    backfill: bool = True
    """Whether what is kept for a job may be lent."""
    now_ms: int = 0
    """Since the beginning."""
    state: State = field(init=False)
    machines: list[WorkerId] = field(default_factory=list)
    gpus_on: dict[WorkerId, int] = field(default_factory=dict)
    region_of: dict[WorkerId, str] = field(default_factory=dict)
    happened: list[m.Event] = field(default_factory=list)
    """Since the caller last took them."""
    _formed: set[ClusterId] = field(default_factory=set)
    _dirty: dict[WorkerId, None] = field(default_factory=dict)
    _count: itertools.count[int] = field(default_factory=itertools.count)
    _fruitless: tuple[int, int] = (-1, -1)

    def __post_init__(self) -> None:
        self.state = State(
            Policies(
                fleet=FleetPolicy(
                    suspect_after_ms=PATIENCE_MS,
                    lease_ttl_ms=2 * PATIENCE_MS,
                    lost_after_ms=3 * PATIENCE_MS,
                ),
                clusters=ClusterPolicy(
                    prepare_deadline_ms=max(ClusterPolicy().prepare_deadline_ms, 2 * self.formation_ms),
                    # Reached, not passed, is already too long: a cluster kept for 0 s is closed at once.
                    idle_teardown_ms=self.warm_ms - 1,
                ),
                jobs=JobPolicy(formation_failures_max=TRIES_MAX, preemptions_max=TRIES_MAX),
            )
        )
        self.do(m.StartControl("net_simulated"))
        self.state.put(Supplier(SupplierId("sup_0"), "fleet", START_MS))
        for machines in self.fleet:
            for _ in range(machines.count):
                self._add_machine(machines)
        for number in range(HEAD_HOSTS):
            self._add_head_host(number)
        self.state.take_touched()

    # ------------------------------------------------------------ time and commands

    @property
    def at_ms(self) -> int:
        return START_MS + self.now_ms

    def do(self, command: m.Command) -> object:
        """One command, and what the agents report because of it."""
        result = self._handle(command)
        self._report_all()
        return result

    def _report_all(self) -> None:
        while self._dirty:
            worker_id = next(iter(self._dirty))
            del self._dirty[worker_id]
            self._report(worker_id)
        self.state.take_touched()

    def _handle(self, command: m.Command) -> object:
        made = handle(self.state, command, Now(START_MS + self.now_ms, self.now_ms, "simulated"))
        for event in made.events:
            self.happened.append(event)
            match event:
                case m.MemberStopping() | m.MemberFailed():
                    self._dirty[self.state.members[event.member_id].worker_id] = None
                case m.AttemptEnded():
                    self._handle(m.CompleteLog(event.attempt_id, 0))
                case _:
                    pass
        return made.result

    def _report(self, worker_id: WorkerId, *, failed: bool = False) -> None:
        members = tuple(self._observed(one, failed=failed) for one in desired_members(self.state, worker_id))
        self._handle(m.ObserveWorker(worker_id, self.state.version, members))

    def _observed(self, desired: m.DesiredMember, *, failed: bool) -> m.ObservedMember:
        state, member = self.state, desired.member
        cluster = state.clusters[member.cluster_id]
        formed = member.cluster_id in self._formed
        members = state.cluster_members(cluster)
        nodes = tuple(NodeSeen(one.member_id, float(one.gpus), 1.0) for one in members if one.phase == "up")
        paths = tuple(
            self._path(member, peer)
            for peer in members
            if member.overlay_host and formed and peer.ordinal < member.ordinal
        )
        return m.ObservedMember(
            member_id=member.member_id,
            generation=desired.fence.generation,
            address=ADDRESS if formed and not failed else None,
            up=desired.run and formed and not failed,
            failed=failed,
            stopping=False,
            reason="the machine is gone" if failed else "",
            nodes=nodes if member.role != "member" else (),
            clean=formed,
            paths=paths,
        )

    def _path(self, member: Member, peer: Member) -> PathSeen:
        rtt_us = self._rtt_us(member.worker_id, peer.worker_id)
        return PathSeen(member.member_id, peer.member_id, 1, 1, rtt_us, rtt_us, rtt_us, 0)

    # ------------------------------------------------------------ the fleet

    def _add_machine(self, machines: Machines) -> None:
        number = next(self._count)
        name = f"wkr_{number:07d}"
        device = Device(
            DeviceId(""), DeviceKind.GPU, machines.model, machines.memory_gb * GIB, simulated=True
        )
        devices = tuple(
            replace(device, device_id=DeviceId(f"{number}-{index}")) for index in range(machines.gpus)
        )
        inventory = _inventory(machines.hardware_class, devices, slots=machines.gpus)
        terms = Terms(
            asks=(Ask(machines.model, machines.price),) if machines.price else (),
            regions=(machines.region,) if machines.region else (),
        )
        worker_id = self._put_worker(name, inventory, terms)
        self.machines.append(worker_id)
        self.gpus_on[worker_id] = machines.gpus
        self.region_of[worker_id] = machines.region

    def _add_head_host(self, number: int) -> None:
        inventory = _inventory(HardwareClass.CPU, (), head_slots=HEADS_EACH)
        self._put_worker(f"hst_{number:07d}", inventory, Terms(), head_host=True)

    def _put_worker(
        self, name: str, inventory: Inventory, terms: Terms, *, head_host: bool = False
    ) -> WorkerId:
        worker_id = WorkerId(name)
        self.state.put(
            Worker(
                worker_id=worker_id,
                supplier_id=SupplierId("sup_0"),
                name=name,
                statement_key=name,
                inventory=inventory,
                liveness=Liveness.LIVE,
                liveness_since_ms=START_MS,
                draining=False,
                dismissed=False,
                joined_at_ms=START_MS,
                enrolled=True,
                head_host=head_host,
                terms=terms,
            )
        )
        self.state.heartbeats.heard(worker_id, 0)
        return worker_id

    def lose(self, worker_id: WorkerId) -> None:
        """A machine goes without a word, and everybody knows at once."""
        self._report(worker_id, failed=True)
        self._report_all()
        self.do(m.LeaveWorker(worker_id))

    def warn(self, worker_id: WorkerId, notice_ms: int) -> None:
        """Its owner says that it will go."""
        self.do(m.ReclaimWorker(worker_id, HoldKind.RECLAIMED, "it goes", notice_ms))

    def bring_back(self, worker_id: WorkerId) -> None:
        """It is there again, empty."""
        self.do(m.LiftHold(worker_id, HoldKind.RECLAIMED))
        self.do(m.ConnectWorker(worker_id, None))

    # ------------------------------------------------------------ jobs

    def tenant(self, name: str, weight: int) -> TenantId:
        """A new tenant."""
        tenant_id = TenantId(name)
        self.do(m.CreateTenant(tenant_id, name))
        if weight:
            self.do(m.SetTenant(name, weight=weight))
        return tenant_id

    def submit(
        self, job_id: JobId, tenant_id: TenantId, wanted: Requirements, priority: int, time_limit_ms: int
    ) -> None:
        """A job arrives."""
        request = JobRequest(
            "simulated",
            "{}",
            (),
            (),
            wanted,
            priority,
            max_attempts=TRIES_MAX,
            time_limit_ms=time_limit_ms,
        )
        self.do(m.SubmitJob(job_id, tenant_id, str(job_id), request, ""))

    def form(self, cluster_id: ClusterId, generation: int) -> bool:
        """A cluster has had its time to form; whether it is READY now.

        False where it is not the same any more: it ended, or somebody else joined it since.
        """
        cluster = self.state.clusters.get(cluster_id)
        if cluster is None or cluster.generation != generation or cluster.vacancies:
            return False
        self._formed.add(cluster_id)
        for _ in range(ROUNDS_MAX):
            cluster = self.state.clusters[cluster_id]
            if cluster.phase is ClusterPhase.READY:
                # A spare that nobody uses yet is clean, which only the next report says.
                self._report_cluster(cluster_id)
                return True
            if cluster.phase in (ClusterPhase.CLOSING, ClusterPhase.CLOSED):
                return False
            self._report_cluster(cluster_id)
        raise AssertionError(f"cluster {cluster_id} does not form: {cluster.phase}")

    def start(self, attempt_id: AttemptId) -> None:
        """The driver runs."""
        self._say_of_attempt(attempt_id, Outcome.NONE)

    def finish(self, job_id: JobId, outcome: Outcome = Outcome.SUCCEEDED) -> None:
        """The driver ends; what the job left is forgotten, and its cluster may be used again."""
        attempt_id = self.state.jobs[job_id].attempt_id
        if attempt_id is None:
            raise AssertionError(f"job {job_id} has no attempt to finish")
        cluster_id = self.state.attempts[attempt_id].cluster_id
        self._say_of_attempt(attempt_id, outcome)
        self.do(m.DeleteJob(job_id))
        self.forget_attempt(attempt_id)
        self._report_cluster(cluster_id)
        self.do(m.Tick())

    def _report_cluster(self, cluster_id: ClusterId) -> None:
        members = self.state.cluster_members(self.state.clusters[cluster_id])
        self._dirty.update((one.worker_id, None) for one in members)
        self._report_all()

    def _say_of_attempt(self, attempt_id: AttemptId, outcome: Outcome) -> None:
        """As the agent beside the head says it, with all that it has besides."""
        state = self.state
        cluster_id = state.attempts[attempt_id].cluster_id
        speaker = state.cluster_members(state.clusters[cluster_id])[0]
        running = outcome is Outcome.NONE
        said = m.ObservedAttempt(attempt_id, running, outcome, "", None if running else 0)
        members = [
            replace(seen, attempts=(said,)) if seen.member_id == speaker.member_id else seen
            for seen in (
                self._observed(one, failed=False) for one in desired_members(state, speaker.worker_id)
            )
        ]
        self.do(m.ObserveWorker(speaker.worker_id, state.version, tuple(members)))

    # ------------------------------------------------------------ plans

    def plan(self, *, again: bool = False) -> bool:
        """Plan and apply until nothing more finds a place; whether any job waits.

        ``again``: although nothing changed since the last one that was fruitless, because a pause is over.
        """
        state = self.state
        measured = 0
        while True:
            vacant = any(state.clusters[one].vacancies for one in state.open_clusters)
            queued = bool(state.queues) or bool(state.bookings.queues)
            waiting = queued or bool(state.noticed) or vacant
            seen = (state.capacity_version, state.queue_version)
            if not waiting or (seen == self._fruitless and not again):
                return queued
            again = False
            queue = Queue(state, self.at_ms)
            made = plan(state, queue if self.backfill else Unlimited(queue), self.at_ms, Budget())
            for one, other in made.pairs:
                self._measure(one, other)
            measured = measured + 1 if made.fruitless else 0
            if not made.empty:
                ids = tuple(ClusterId(f"cl_{next(self._count):09d}") for _ in made.placements)
                self.do(m.ApplyPlan(made, ids))
            if made.fruitless and (not made.pairs or measured > MEASURED_MAX):
                self._fruitless = seen
                return queued

    def _measure(self, one: WorkerId, other: WorkerId) -> None:
        rtt_us = self._rtt_us(one, other)
        self.state.latency.observe(one, other, rtt_us, self.at_ms)
        self.state.latency.observe(other, one, rtt_us, self.at_ms)
        self.state.groups.measured(one, (other,), self.at_ms)

    def _rtt_us(self, one: WorkerId, other: WorkerId) -> int:
        near = self.region_of.get(one) == self.region_of.get(other)
        return (self.ways.near_ms if near else self.ways.far_ms) * US_PER_MS

    def free_gpus(self) -> int:
        """GPUs that nobody holds, on machines that are there."""
        offers = self.state.offers
        is_open = (offers[Column.STATE] == OPEN) & (offers[Column.MODEL] != offers.models.find(CPU_MODEL))
        return int(offers[Column.FREE][is_open].sum())

    # ------------------------------------------------------------ forgetting

    def forget_attempt(self, attempt_id: AttemptId) -> None:
        """Its leases too: nothing is metered."""
        state = self.state
        attempt = state.attempts.get(attempt_id)
        if attempt is None or attempt.phase is not AttemptPhase.ENDED:
            return
        del state.attempts[attempt_id]
        for lease_id in state.leases_of.pop(attempt_id, ()):
            lease = state.leases.pop(lease_id)
            state.unsettled_leases.pop(lease_id, None)
            state.unsettled_on.get(lease.worker_id, {}).pop(lease_id, None)
            state.leases_on.pop(lease.member_id, None)

    def forget_cluster(self, cluster_id: ClusterId, member_ids: Iterable[MemberId]) -> None:
        """A closed cluster, with all that were ever members of it."""
        cluster = self.state.clusters.pop(cluster_id)
        closed = self.state.watched.spares_closed
        if cluster.spare_for is not None and closed.get(cluster.spare_for, (0, ""))[1] == cluster_id:
            del closed[cluster.spare_for]
        self.state.members_of.pop(cluster_id, None)
        self.state.logs_open_in.pop(cluster_id, None)
        self._formed.discard(cluster_id)
        for member_id in member_ids:
            self.state.members.pop(member_id, None)
            self.state.leases_on.pop(member_id, None)


def _inventory(
    hardware_class: HardwareClass, devices: tuple[Device, ...], *, slots: int = 0, head_slots: int = 0
) -> Inventory:
    return Inventory(
        hardware_class=hardware_class,
        devices=devices,
        cpus=8 * max(1, len(devices)),
        memory_bytes=64 * GIB * max(1, len(devices)),
        slots=slots,
        head_slots=head_slots,
        operating_system="linux",
        architecture="x86_64",
        python_version="3.11.9",
        ray_version="2.60.0",
        isolation=Isolation.BOX,
        overlay=NEBULA,
        zone=EVERYWHERE,
    )
