"""The words of planning: what is needed, what a plan may read, and what it decides."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from orchestrator.core.ids import (
    AttemptId,
    ClusterId,
    DeviceId,
    JobId,
    MemberId,
    ReservationId,
    TenantId,
    WorkerId,
)
from orchestrator.core.jobs import Chosen, Requirements

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from orchestrator.core.clusters import Cluster, Member
    from orchestrator.core.gangs.choosing import NoGang
    from orchestrator.core.ids import AttemptId
    from orchestrator.core.jobs import Attempt, Job, Promise
    from orchestrator.core.nearness.bandwidth import BandwidthMap
    from orchestrator.core.nearness.grouping import Groups
    from orchestrator.core.nearness.latency import LatencyMap
    from orchestrator.core.policies import Policies
    from orchestrator.core.scheduling.demand import Demand
    from orchestrator.core.scheduling.offers import Offers
    from orchestrator.core.supply.caches import Caches
    from orchestrator.core.supply.fleet import Worker
    from orchestrator.core.tenancy.fairness import Amounts
    from orchestrator.core.tenancy.reservations import Bookings
    from orchestrator.core.watched import Watched


class PlacementView(Protocol):
    """What a plan may read: the indexes of State, and nothing else of it."""

    @property
    def capacity_version(self) -> int: ...
    @property
    def workers(self) -> Mapping[WorkerId, Worker]: ...
    @property
    def members(self) -> Mapping[MemberId, Member]: ...
    @property
    def members_on(self) -> Mapping[WorkerId, Mapping[MemberId, None]]: ...
    @property
    def free_devices(self) -> Mapping[WorkerId, Mapping[DeviceId, None]]: ...
    @property
    def offers(self) -> Offers: ...
    @property
    def head_hosts(self) -> Mapping[WorkerId, int]: ...
    @property
    def clusters(self) -> Mapping[ClusterId, Cluster]: ...
    @property
    def open_clusters(self) -> Mapping[ClusterId, None]: ...
    @property
    def idle_clusters(self) -> Mapping[ClusterId, None]: ...
    @property
    def attempt_in(self) -> Mapping[ClusterId, AttemptId]: ...
    @property
    def attempts(self) -> Mapping[AttemptId, Attempt]: ...
    @property
    def jobs(self) -> Mapping[JobId, Job]: ...
    @property
    def entitled(self) -> Mapping[JobId, None]: ...
    @property
    def promises(self) -> Mapping[JobId, Promise]: ...
    @property
    def policies(self) -> Policies: ...
    @property
    def overlay_offered(self) -> bool: ...
    @property
    def default_runtime(self) -> str: ...
    @property
    def spares(self) -> Mapping[JobId, ClusterId]: ...
    @property
    def latency(self) -> LatencyMap: ...
    @property
    def groups(self) -> Groups: ...
    @property
    def bandwidth(self) -> BandwidthMap: ...
    @property
    def bookings(self) -> Bookings: ...
    @property
    def reliability_half_life_ms(self) -> int: ...
    @property
    def caches(self) -> Caches: ...
    @property
    def demand(self) -> Demand: ...
    @property
    def noticed(self) -> Mapping[MemberId, None]: ...
    @property
    def watched(self) -> Watched: ...
    def market_price(self, model: str) -> int: ...


@dataclass(frozen=True, slots=True)
class Claim:
    """What a job may have of others' who hold more than their share, as its own tenant holds less than its own."""

    over_share: frozenset[TenantId]
    """Whose interruptible work may give way."""
    allowance: Amounts | None
    """What its tenant lacks of its share; None where it holds nothing at all, and any request counts."""


@dataclass(frozen=True, slots=True)
class JobNeed:
    """A queued job that wants a cluster."""

    job_id: JobId
    tenant_id: TenantId
    requirements: Requirements
    avoid: tuple[WorkerId, ...] = ()
    entitled: bool = False
    """It was overtaken often enough: what is free of the machines that it will need is kept for it."""
    time_limit_ms: int = 0
    """It is stopped after this long; 0: nobody knows when it ends."""
    refused: str = ""
    """Why its tenant's quota does not let it start now, whatever is free; or its reservation, which has not begun."""
    gpus_in_excess: int = 0
    """How many GPUs its tenant holds too many for it to start, where nothing else refuses it."""
    reservation_id: ReservationId | None = None
    """Whose machines it uses, and no others."""
    packages: tuple[str, ...] = ()
    """SHA-256 of what the tenant uploaded for it, which its head fetches."""
    microcredits_per_hour_max: int | None = None
    """What all its machines together may cost, so that its tenant's quota holds; None: whatever they do."""
    priority: int = 0
    since_ms: int = 0
    """Since when it has waited without a pause and with nothing kept for it."""
    claim: Claim | None = None
    """None where no other tenant has to give way."""


@dataclass(frozen=True, slots=True)
class VacancyNeed:
    """A forming cluster that wants another worker in place of a failed one."""

    cluster_id: ClusterId
    device_count: int
    avoid: tuple[WorkerId, ...]
    requirements: Requirements
    """Of the job that the cluster forms for."""


@dataclass(frozen=True, slots=True)
class SpareNeed:
    """A running job whose machines are about to go wants a cluster ready for its next attempt."""

    job_id: JobId
    tenant_id: TenantId
    requirements: Requirements
    avoid: tuple[WorkerId, ...]
    packages: tuple[str, ...] = ()
    """As of a JobNeed."""


Need = JobNeed | VacancyNeed | SpareNeed


@dataclass(frozen=True, slots=True)
class Budget:
    """How much one call may do, so that the loop stays responsive; the rest waits for the next call."""

    placements_max: int = 32
    """Some milliseconds of work: callers and readers wait while a plan is made."""
    explained_max: int = 32
    """Different requests whose reason for waiting is worked out: each costs a walk over the fleet."""


@dataclass(frozen=True, slots=True)
class Share:
    """Devices of one worker."""

    worker_id: WorkerId
    device_ids: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """A job's new cluster. ``head_host`` is None where the only worker carries the head itself."""

    job_id: JobId
    shares: tuple[Share, ...]
    head_host: WorkerId | None
    explanation: tuple[str, ...]
    chosen: Chosen
    spare: bool = False
    """Formed ahead: the job still runs elsewhere."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """A job on a warm cluster of its own tenant."""

    job_id: JobId
    cluster_id: ClusterId
    explanation: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Filling:
    """A worker for a vacancy."""

    cluster_id: ClusterId
    share: Share


class WaitReason(StrEnum):
    """What stands in a waiting job's way, as far as an operator can do something about it."""

    NO_MACHINES = "no_machines"
    """There are not so many devices that fit, free or not."""
    BUSY = "busy"
    """They are there, but not free."""
    APART = "apart"
    """So many are free, but no gang can be made of them."""
    DISTANCE = "distance"
    """Enough are free together, but not near enough."""
    SLOTS = "slots"
    """No head slot or member slot is free."""
    KEPT = "kept"
    """Machines are being kept for it."""
    GIVING_WAY = "giving_way"
    """Others give way for it."""
    SPARE = "spare"
    """Its spare cluster is about to be ready."""
    QUOTA = "quota"
    """Its tenant's."""
    RESERVATION = "reservation"
    """Its reservation has not begun, or its machines are not there."""
    BEHIND = "behind"
    """The newest plan did not come to it, or it pauses after a failure."""


@dataclass(frozen=True, slots=True)
class Deferral:
    """Why a job waits, in words for its tenant, and as an operator counts it."""

    job_id: JobId
    reason: str
    waits_for: WaitReason
    far: NoGang | None = None
    """Where enough is free but not near enough: how much is, and what would do."""
    by_quota: bool = False
    """It is its tenant's quota that holds it back, whatever is free: nobody overtakes it."""
    kept: bool = False
    """Machines are kept for it."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A try that gives way; ``to`` says for what, as in GaveWay."""

    attempt_id: AttemptId
    to: str


@dataclass(frozen=True, slots=True)
class Preemption:
    """Work that gives way to one job, and the devices that are kept for it: free now, or the victims'."""

    job_id: JobId
    victims: tuple[Victim, ...]
    shares: tuple[Share, ...]
    head_host: WorkerId | None
    notice_ms: int


Served = Placement | Reuse | Filling | Deferral | None
"""What a plan made of a need; None where it did not get to it."""


@dataclass(slots=True)
class Nominated:
    """What is taken out of a draft for one job for which others give way."""

    devices: tuple[tuple[WorkerId, tuple[DeviceId, ...]], ...]
    head_host: WorkerId | None
    free: list[tuple[int, WorkerId, frozenset[DeviceId]]]
    """Of each row the devices that are free by now."""
    slots: list[int]
    """Rows of which a slot is kept."""


class Lender(Protocol):
    """Keeps machines in a draft, and lends them to some."""

    def lending(self, need: Need) -> AbstractContextManager[None]:
        """While a need is placed, what it may use is free to it."""
        ...

    def lent_to(self, need: Need) -> tuple[ReservationId, ...]:
        """Whose machines a need may use."""
        ...

    def kept(self) -> tuple[tuple[WorkerId, str, int], ...]:
        """Free devices that are kept at the end: of which worker and model, and how many."""
        ...

    def words(self, need: Need) -> str:
        """How much of what fits a need is kept from it; empty where nothing is."""
        ...


class Needs(Protocol):
    """What a plan should serve. It says of each need what became of it before it asks for the next."""

    def __iter__(self) -> Iterator[Need]: ...
    def settled(self, need: Need, outcome: Served) -> None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What should become true, if ``capacity_version`` still is."""

    capacity_version: int
    placements: tuple[Placement, ...] = ()
    reuses: tuple[Reuse, ...] = ()
    fillings: tuple[Filling, ...] = ()
    deferrals: tuple[Deferral, ...] = ()
    overtaken: tuple[tuple[JobId, int], ...] = ()
    """Jobs that find no place, and how many of the placements would have served them in part."""
    pairs: tuple[tuple[WorkerId, WorkerId], ...] = ()
    """Workers between which the round trip has to be measured before a gang of them may start."""
    closings: tuple[ClusterId, ...] = ()
    """Warm clusters that give way to jobs which wait."""
    promises: tuple[tuple[JobId, Promise | None], ...] = ()
    """What is promised to whom anew: other machines, or the same sooner. None: nothing any more."""
    preemptions: tuple[Preemption, ...] = ()
    reserved: tuple[tuple[WorkerId, str, int], ...] = ()
    """Free devices that are kept for reservations: of which worker and model, and how many."""

    @property
    def empty(self) -> bool:
        """Whether applying it would change nothing."""
        return self.fruitless and not self.promises

    @property
    def fruitless(self) -> bool:
        """Whether another plan right after it would place no more: it changes nothing, or promises alone."""
        return not (self.placements or self.reuses or self.fillings or self.closings or self.preemptions)
