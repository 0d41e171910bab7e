"""What is measured of committed decisions: uptime, counts by state, queue times, receipts."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import structlog

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.fleet import Liveness
from orchestrator.core.holds import HoldKind
from orchestrator.core.jobs import Job, JobStatus
from orchestrator.core.state import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.adapters.store import Transaction
    from orchestrator.control.loop import Loop, Store

log = structlog.get_logger(__name__)

UPTIME_TICK_S = 5.0
"""A heartbeat's interval: uptime is not known any finer."""

RECEIPT_STATES: dict[type[m.Event], str] = {
    m.ReceiptSealed: "sealed",
    m.ReceiptSigned: "signed",
    m.ReceiptPosted: "posted",
}


class StateObserver(Protocol):
    """Where the measurements go."""

    def uptime(self, worker_id: str, hardware_class: str, expected_s: float, up_s: float) -> None: ...

    def job_started(self, queued_s: float) -> None: ...

    def receipt(self, state: str) -> None: ...

    def hardware_changed(self) -> None: ...

    def measured(self, devices: dict[tuple[str, str], dict[str, float]]) -> None: ...

    def held(self, zones: int, workers: dict[str, int]) -> None: ...

    def counted(self, workers: dict[str, int], clusters: dict[str, int], jobs: dict[str, int]) -> None: ...


@dataclass(frozen=True, slots=True)
class WorkerUptime:
    """One worker's part of an interval; it is expected from its joining to its leaving."""

    worker_id: str
    hardware_class: str
    expected_s: float
    up_s: float


def worker_uptimes(elapsed_s: float, state: State) -> list[WorkerUptime]:
    """What the last ``elapsed_s`` were for each worker, by what it is now."""
    return [
        WorkerUptime(
            worker.worker_id,
            worker.inventory.hardware_class.value,
            elapsed_s,
            elapsed_s if worker.liveness is Liveness.LIVE else 0.0,
        )
        for worker in state.workers.values()
        if worker.liveness is not Liveness.LEFT
    ]


def counts(state: State) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """(workers by liveness, clusters by phase, jobs by status), each state named even where none is."""
    phases = Counter(cluster.phase.value for cluster in state.clusters.values())
    statuses = Counter(job.status.value for job in state.jobs.values())
    return (
        liveness_counts(state),
        {phase.value: phases[phase.value] for phase in ClusterPhase},
        {status.value: statuses[status.value] for status in JobStatus},
    )


async def measure_uptime(loop: Loop, observer: StateObserver) -> None:
    """Advance the uptime counters until cancelled."""
    last_ms = loop.now().monotonic_ms
    while True:
        await asyncio.sleep(UPTIME_TICK_S)
        now_ms = loop.now().monotonic_ms
        elapsed_s, last_ms = (now_ms - last_ms) / 1000, now_ms
        for one in await loop.read(partial(worker_uptimes, elapsed_s)):
            observer.uptime(one.worker_id, one.hardware_class, one.expected_s, one.up_s)


class ObservedStore:
    """A store that tells an observer what was committed, once it is."""

    def __init__(self, store: Store, observer: StateObserver) -> None:
        self._store = store
        self._observer = observer

    async def commit(self, transaction: Transaction) -> None:
        """As the store does it."""
        await self._store.commit(transaction)
        for event in transaction.events:
            if isinstance(event, m.InventoryChanged) and event.changes:
                self._observer.hardware_changed()
                log.info("hardware_changed", worker_id=event.worker_id, changes=event.changes)
            state = RECEIPT_STATES.get(type(event))
            if state is not None:
                self._observer.receipt(state)
        if any(isinstance(event, m.AttemptStarted) for event in transaction.events):
            for queued_s in first_starts(transaction):
                self._observer.job_started(queued_s)


def first_starts(transaction: Transaction) -> Iterator[float]:
    """Seconds in the queue of each job whose driver runs for the first time with this transaction."""
    for _, _, entity in transaction.rows:
        if (
            isinstance(entity, Job)
            and entity.started_at_ms == transaction.at_ms
            and entity.starts == 1
            and entity.status is JobStatus.RUNNING
        ):
            yield (entity.started_at_ms - entity.submitted_at_ms) / 1000


def liveness_counts(state: State) -> dict[str, int]:
    """Workers by liveness."""
    counts = {liveness.value: 0 for liveness in Liveness}
    for worker in state.workers.values():
        counts[worker.liveness] += 1
    return counts


def held_counts(state: State) -> tuple[int, dict[str, int]]:
    """Zones that are held, and workers by the kind of hold."""
    workers = {kind.value: 0 for kind in HoldKind}
    for worker in state.workers.values():
        for hold in worker.holds:
            workers[hold.kind] += 1
    return len(state.zones_held), workers
