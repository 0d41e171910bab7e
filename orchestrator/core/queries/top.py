"""What `orch top` shows: the workers, clusters and waiting jobs that matter most, as many as a screen has rows.

Of workers a plain list is read out of the state; it is put in order beside the loop, with measurements that only the
shell has, and then the chosen few are looked at closely.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.core.clusters import FORMING, ClusterPhase
from orchestrator.core.queries.overview import LATELY_MS
from orchestrator.core.supply.fleet import Liveness

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from orchestrator.core.clusters import Cluster, Member
    from orchestrator.core.ids import JobId, WorkerId
    from orchestrator.core.jobs import Job
    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import HardwareClass, Worker

ROWS = 50
"""Of each table where nobody says how many: a tall terminal."""

ROWS_MAX = 500
"""More is a list, which has commands of its own; each row costs some microseconds of the loop."""


class Sort(StrEnum):
    """In which order workers stand, the worst or largest first."""

    TROUBLE = "trouble"
    """Lost lately, suspect, not connected, cordoned, held; then the busiest."""
    GPU = "gpu"
    MEMORY = "memory"
    TEMPERATURE = "temperature"
    SILENCE = "silence"
    AGE = "age"
    """The longest in its present liveness first."""
    NAME = "name"


class Measured(NamedTuple):
    """The newest measurements of one worker; -1 where nothing was measured."""

    gpu_ratio: float = -1.0
    """How busy its GPUs are in the mean, 0 to 1."""
    memory_bytes: float = -1.0
    """Used of all their memory."""
    temperature_celsius: float = -1.0
    """Of the hottest."""


NOT_MEASURED = Measured()


class Candidate(NamedTuple):
    """A worker that may be shown. ``trouble`` is lower the sooner somebody should look."""

    worker_id: WorkerId
    name: str
    trouble: int
    silence_ms: int
    since_ms: int


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A waiting job. ``position`` is its place in its tenant's queue, from 1."""

    job: Job
    position: int
    wait_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class OpenCluster:
    """A cluster that is not closed, with its members that count."""

    cluster: Cluster
    members: Sequence[Member]
    tenant_name: str
    job_id: JobId | None


def candidates(
    state: State,
    connected: Collection[WorkerId],
    hardware_class: HardwareClass | None,
    supplier: str,
    at_ms: int,
    monotonic_ms: int,
) -> list[Candidate]:
    """All workers that did not leave and that the filters let through; ``supplier`` is a name or an id."""
    wanted = {
        one.supplier_id for one in state.suppliers.values() if supplier in ("", one.supplier_id, one.name)
    }
    return [
        Candidate(
            worker.worker_id,
            worker.name,
            _trouble(worker, connected, at_ms),
            monotonic_ms - state.heartbeats.heard_ms(worker.worker_id, monotonic_ms),
            worker.liveness_since_ms,
        )
        for worker in state.workers.values()
        if worker.liveness is not Liveness.LEFT
        and worker.supplier_id in wanted
        and (hardware_class is None or worker.inventory.hardware_class is hardware_class)
    ]


def _trouble(worker: Worker, connected: Collection[WorkerId], at_ms: int) -> int:
    """Lost for long stands last: it was seen, and left as it is."""
    if worker.liveness is Liveness.LOST:
        return 0 if at_ms - worker.liveness_since_ms <= LATELY_MS else 6
    if worker.liveness is Liveness.SUSPECT:
        return 1
    if worker.worker_id not in connected:
        return 2
    if worker.device_holds:
        return 3
    return 4 if worker.holds or worker.draining else 5


def ranked(
    found: Iterable[Candidate], measured: Mapping[WorkerId, Measured], sort: Sort, rows_max: int
) -> list[WorkerId]:
    """The first ``rows_max`` in order; equal ones by name."""

    def key(one: Candidate) -> tuple[float, float, str]:
        seen = measured.get(one.worker_id, NOT_MEASURED)
        match sort:
            case Sort.TROUBLE:
                return one.trouble, -seen.gpu_ratio, one.name
            case Sort.GPU:
                return -seen.gpu_ratio, 0, one.name
            case Sort.MEMORY:
                return -seen.memory_bytes, 0, one.name
            case Sort.TEMPERATURE:
                return -seen.temperature_celsius, 0, one.name
            case Sort.SILENCE:
                return -one.silence_ms, 0, one.name
            case Sort.AGE:
                return one.since_ms, 0, one.name
            case Sort.NAME:
                return 0, 0, one.name

    return [one.worker_id for one in heapq.nsmallest(rows_max, found, key)]


def open_clusters(
    state: State, hardware_class: HardwareClass | None, rows_max: int
) -> tuple[list[OpenCluster], int]:
    """The first rows and how many there are: those that form, then those that run, the oldest of each first."""
    found = [
        cluster
        for cluster in map(state.clusters.__getitem__, state.open_clusters)
        if hardware_class is None or cluster.hardware_class is hardware_class
    ]
    chosen = heapq.nsmallest(rows_max, found, lambda one: (_turn(one), one.created_at_ms, one.cluster_id))
    return [_opened(state, cluster) for cluster in chosen], len(found)


def _turn(cluster: Cluster) -> int:
    if cluster.phase in FORMING:
        return 0
    return 1 if cluster.phase is ClusterPhase.CLOSING else 2


def _opened(state: State, cluster: Cluster) -> OpenCluster:
    job = state.job_of(cluster)
    tenant = state.tenants.get(cluster.tenant_id)
    return OpenCluster(
        cluster,
        state.cluster_members(cluster),
        tenant.name if tenant is not None else "",
        job.job_id if job is not None else None,
    )


def waiting_longest(state: State, rows_max: int, at_ms: int) -> tuple[list[QueuedJob], int]:
    """The first rows and how many wait: whoever was submitted first stands first, whoever's turn it is."""
    total = sum(map(len, state.queues.values()))
    places = (
        (submitted_ms, job_id) for _, submitted_ms, job_id in chain.from_iterable(state.queues.values())
    )
    chosen = (state.jobs[job_id] for _, job_id in heapq.nsmallest(rows_max, places))
    return [
        QueuedJob(
            job,
            state.jobs_before(job) + 1,
            max(0, at_ms - job.submitted_at_ms),
            state.waiting.get(job.job_id, ""),
        )
        for job in chosen
    ], total
