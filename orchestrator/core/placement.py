"""The words of planning: what is needed, what a plan may read, and what it decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from orchestrator.core.ids import ClusterId, DeviceId, JobId, MemberId, TenantId, WorkerId
from orchestrator.core.jobs import Requirements

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from orchestrator.core.clusters import Cluster, Member
    from orchestrator.core.fleet import Worker
    from orchestrator.core.ids import AttemptId
    from orchestrator.core.latency import LatencyMap
    from orchestrator.core.offers import Offers


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
    def overlay_offered(self) -> bool: ...
    @property
    def default_runtime(self) -> str: ...
    @property
    def spares(self) -> Mapping[JobId, ClusterId]: ...
    @property
    def latency(self) -> LatencyMap: ...
    @property
    def reliability_half_life_ms(self) -> int: ...
    def market_price(self, model: str) -> int: ...


@dataclass(frozen=True, slots=True)
class JobNeed:
    """A queued job that wants a cluster."""

    job_id: JobId
    tenant_id: TenantId
    requirements: Requirements
    avoid: tuple[WorkerId, ...] = ()
    entitled: bool = False
    """It was overtaken often enough: what is free of the machines that it will need is kept for it."""
    refused: str = ""
    """Why its tenant's quota does not let it start now, whatever is free."""


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


@dataclass(frozen=True, slots=True)
class Deferral:
    """Why a job waits, in words for its tenant."""

    job_id: JobId
    reason: str


Served = Placement | Reuse | Filling | Deferral | None
"""What a plan made of a need; None where it did not get to it."""


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

    @property
    def empty(self) -> bool:
        """Whether applying it would change nothing."""
        return not (self.placements or self.reuses or self.fillings or self.closings)
