"""Ray clusters and their members: the formation state machine's states and the questions asked of them.

PREPARING → STARTING_HEAD → JOINING → READY → CLOSING → CLOSED. Each phase before READY has a deadline; a member that
fails before READY is replaced under the same cluster id and a higher generation; one that fails later closes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from orchestrator.core.ids import (
    ClusterId,
    DeviceId,
    JobId,
    MemberId,
    ReservationId,
    SupplierId,
    TenantId,
    WorkerId,
)
from orchestrator.core.supply.evidence import EvidenceClass
from orchestrator.core.supply.fleet import HardwareClass, Isolation
from orchestrator.core.supply.terms import Terms
from orchestrator.core.tenancy.fairness import NOTHING, Amounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class ClusterPhase(StrEnum):
    """How far a cluster is."""

    PREPARING = "preparing"
    STARTING_HEAD = "starting_head"
    JOINING = "joining"
    READY = "ready"
    CLOSING = "closing"
    CLOSED = "closed"


FORMING = frozenset({ClusterPhase.PREPARING, ClusterPhase.STARTING_HEAD, ClusterPhase.JOINING})


class MemberRole(StrEnum):
    """What a member's Ray node is in its cluster."""

    HEAD = "head"
    MEMBER = "member"
    SOLO = "solo"


class MemberPhase(StrEnum):
    """How far a member is; until RELEASED it holds its devices and its slot."""

    PLANNED = "planned"
    PREPARED = "prepared"
    UP = "up"
    STOPPING = "stopping"
    RELEASED = "released"


WANTED = frozenset({MemberPhase.PLANNED, MemberPhase.PREPARED, MemberPhase.UP})
"""Phases in which the agent is told to have the member."""


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """Where a member's Ray node listens; nodes with one ``host_id`` share a host's network."""

    node_ip: str
    gcs_address: str
    host_id: str
    temp_dir: str
    overlay_key: str = ""
    """Public key of its overlay certificate, in hex; empty without an overlay."""


@dataclass(frozen=True, slots=True)
class OverlayIdentity:
    """A member in the overlay: its number in the address plan, and the public key it made, in hex."""

    name: MemberId
    host: int
    key: str


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """One alive node as the cluster's head lists it."""

    member_id: MemberId
    gpus: float
    cpus: float


@dataclass(frozen=True, slots=True)
class PathSeen:
    """The overlay from one member to another as the first measured it. Without an answer all times are 0."""

    from_id: MemberId
    to_id: MemberId
    sent: int
    received: int
    rtt_min_us: int
    rtt_median_us: int
    rtt_p90_us: int
    jitter_us: int
    bandwidth_bits_per_s: int = 0
    """0 where it was not measured."""

    @property
    def answered(self) -> bool:
        """Whether the way exists at all."""
        return self.received > 0


@dataclass(frozen=True, slots=True)
class BusSeen:
    """An all-reduce of ``size_bytes`` over all members that bring devices."""

    method: str
    ranks: int
    size_bytes: int
    bus_bits_per_s: int


@dataclass(frozen=True, slots=True)
class MemberNotice:
    """The word that a member goes: ``deadline_ms`` in control time, ``reason`` in words for the tenant."""

    deadline_ms: int
    reason: str
    preempts: bool = False
    """The machine stays, and it is other work that its job gives way to."""


@dataclass(frozen=True, slots=True)
class Member:
    """(worker, devices, slot) in one cluster. ``ordinal`` never repeats within the cluster."""

    member_id: MemberId
    cluster_id: ClusterId
    ordinal: int
    worker_id: WorkerId
    supplier_id: SupplierId
    role: MemberRole
    device_ids: tuple[DeviceId, ...]
    gpus: int
    slot: int
    generation: int
    phase: MemberPhase
    stopping_version: int
    """State version at which STOPPING was decided; a report older than it says nothing about the end."""
    address: NodeAddress | None
    reason: str
    terms: Terms = Terms()
    """Its worker's when it was placed: a change since then moves nobody."""
    notice: MemberNotice | None = None
    isolation: Isolation = Isolation.NONE
    """How it is kept apart."""
    overlay_host: int = 0
    """Its number in the overlay's address plan; 0: it has no overlay."""
    provisioning: bool = False
    """PLANNED, and its worker builds the runtime."""
    held: Amounts = NOTHING
    """What its tenant holds by it."""
    evidence: EvidenceClass = EvidenceClass.T0
    """Of its weakest device when it was placed."""
    microcredits_per_hour: int = 0
    """What its devices cost together, before fees: by their owner's asks or the market's prices when it was placed."""

    @property
    def overlay_identity(self) -> OverlayIdentity | None:
        """Who it is in the overlay; None where it is not in it, or has not shown its key yet."""
        if not self.overlay_host or self.address is None or not self.address.overlay_key:
            return None
        return OverlayIdentity(self.member_id, self.overlay_host, self.address.overlay_key)


@dataclass(frozen=True, slots=True)
class Cluster:
    """One single-tenant Ray cluster. ``member_ids`` are those that count; replaced ones are not in it."""

    cluster_id: ClusterId
    tenant_id: TenantId
    hardware_class: HardwareClass
    generation: int
    phase: ClusterPhase
    phase_since_ms: int
    member_ids: tuple[MemberId, ...]
    next_ordinal: int
    vacancies: tuple[Vacancy, ...]
    created_at_ms: int
    ready_at_ms: int | None
    idle_since_ms: int | None
    """Set while READY, clean and without an attempt: the cluster may be reused by its tenant."""
    reason: str
    certificate: tuple[NodeSeen, ...]
    """What the head listed at READY: the delivery certificate, with ``paths`` and ``bus``."""
    spare_for: JobId | None = None
    """Formed ahead for a job whose present machines are about to go."""
    runtime: str = ""
    """Digest of what its boxes provide; empty: its members run what their agents run, or an image."""
    image: str = ""
    """NAME@sha256:… of what its members run in, in place of a runtime."""
    expelled: tuple[OverlayIdentity, ...] = ()
    """Former members that had an overlay certificate: the others shut them out."""
    paths: tuple[PathSeen, ...] = ()
    """How its members reached each other at READY; empty without an overlay."""
    bus: BusSeen | None = None
    """What all of them together moved; it may come after READY."""
    reservation_id: ReservationId | None = None
    """What its machines were kept for."""


@dataclass(frozen=True, slots=True)
class Vacancy:
    """A place in a forming cluster whose member failed, and the worker not to ask again."""

    gpus: int
    device_count: int
    failed_worker_id: WorkerId


@dataclass(frozen=True, slots=True)
class ClusterPolicy:
    """How long formation may take and how long a cluster is kept warm. Milliseconds."""

    prepare_deadline_ms: int = 30_000
    head_deadline_ms: int = 90_000
    """A Ray head takes 3–12 s on an idle machine and many times that on a busy one."""
    join_deadline_ms: int = 120_000
    measure_deadline_ms: int = 60_000
    """How long a cluster that is whole otherwise waits for measurements that its job asked for: three times what the
    agents take for them."""
    start_deadline_ms: int = 20 * 60_000
    """Longer than Ray itself gives a driver: beyond it nobody would end the wait."""
    idle_teardown_ms: int = 120_000
    clean_deadline_ms: int = 30_000
    """A cluster whose last job left actors behind this long is not reused but closed."""
    log_deadline_ms: int = 60_000
    """A closing head waits this long for the last log byte, then goes: a log must not hold a machine."""
    provision_deadline_ms: int = 20 * 60_000
    """In place of ``prepare_deadline_ms`` while a member builds the runtime: some 100 MB over a home line."""
    overlay_hosts_max: int = 65_000
    """Numbers in the address plan: members that may have an overlay address at once. 0: the network has no overlay."""
    replacements_max: int = 8
    """A cluster that lost this many members before READY is given up: the request goes back to the queue."""

    def deadline_ms(self, phase: ClusterPhase) -> int | None:
        """Longest stay in ``phase``; None where there is no limit."""
        match phase:
            case ClusterPhase.PREPARING:
                return self.prepare_deadline_ms
            case ClusterPhase.STARTING_HEAD:
                return self.head_deadline_ms
            case ClusterPhase.JOINING:
                return self.join_deadline_ms
            case _:
                return None


def head_of(members: Iterable[Member]) -> Member | None:
    """The member that carries the head."""
    return next((member for member in members if member.role in (MemberRole.HEAD, MemberRole.SOLO)), None)


def missing_nodes(members: Iterable[Member], seen: Mapping[MemberId, NodeSeen]) -> list[MemberId]:
    """Members whose node the head does not list with every GPU they were given."""
    missing = []
    for member in members:
        node = seen.get(member.member_id)
        if node is None or node.gpus < member.gpus:
            missing.append(member.member_id)
    return missing
