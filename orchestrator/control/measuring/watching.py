"""What was committed, counted: once it is, and in the order in which it was decided."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import structlog

from orchestrator.core import messages as m
from orchestrator.core.clusters import FORMING, ClusterPhase
from orchestrator.core.jobs import Attempt, Job, JobStatus, Outcome
from orchestrator.core.metering import Lease
from orchestrator.core.scheduling.placement import WaitReason
from orchestrator.core.supply.fleet import Liveness, Worker
from orchestrator.core.supply.health import FaultKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from orchestrator.adapters.store import Transaction
    from orchestrator.control.loop import Store
    from orchestrator.control.measuring.meter import Meter
    from orchestrator.core.clusters import Cluster
    from orchestrator.core.entities import Entity
    from orchestrator.core.ids import ClusterId

log = structlog.get_logger(__name__)

MS = 1_000

FAULT_KINDS = frozenset(kind.value for kind in FaultKind)

TOTAL = "total"
"""Phase of ``formation_seconds``: from the decision to ready."""


class Formations:
    """Since when each forming cluster has been in its phase, and since when it forms."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._phases: dict[ClusterId, tuple[ClusterPhase, int, int]] = {}
        """(phase, since, since the beginning)."""

    def put(self, cluster: Cluster) -> None:
        """A cluster that was there before this process."""
        if cluster.phase in FORMING:
            self._phases[cluster.cluster_id] = cluster.phase, cluster.phase_since_ms, cluster.created_at_ms

    def planned(self, cluster_id: ClusterId, at_ms: int) -> None:
        """It begins."""
        self._phases[cluster_id] = ClusterPhase.PREPARING, at_ms, at_ms

    def advanced(self, cluster_id: ClusterId, phase: ClusterPhase, at_ms: int) -> None:
        """It came to a phase: the one before took so long."""
        known = self._phases.get(cluster_id)
        if known is None:
            return
        before, since_ms, begun_ms = known
        self._meter.observe("formation_seconds", (at_ms - since_ms) / MS, (before.value,))
        if phase is ClusterPhase.READY:
            del self._phases[cluster_id]
            self._meter.observe("formation_seconds", (at_ms - begun_ms) / MS, (TOTAL,))
            self._meter.add("formations", 1, ("ready",))
        else:
            self._phases[cluster_id] = phase, at_ms, begun_ms

    def given_up(self, cluster_id: ClusterId) -> bool:
        """It ends; whether it was never ready."""
        return self._phases.pop(cluster_id, None) is not None


class Watcher:
    """Counts events. ``workers`` is told of every worker's row, with the instant of its commit."""

    def __init__(self, meter: Meter, workers: Callable[[str, Worker | None, int], None]) -> None:
        self._meter = meter
        self._workers = workers
        self.formations = Formations(meter)
        self._handlers: dict[type, Callable[[Any, _Told], None]] = {
            m.LivenessChanged: lambda event, _: meter.add("worker_transitions", 1, (event.liveness.value,)),
            m.InventoryChanged: self._hardware,
            m.DeviceHeld: self._fault,
            m.ClusterPlanned: lambda event, told: self.formations.planned(
                event.cluster.cluster_id, told.at_ms
            ),
            m.ClusterAdvanced: lambda event, told: self.formations.advanced(
                event.cluster_id, ClusterPhase(event.phase), told.at_ms
            ),
            m.ClusterReady: lambda event, told: self.formations.advanced(
                event.cluster_id, ClusterPhase.READY, told.at_ms
            ),
            m.ClusterClosing: self._closing,
            m.MemberReplaced: lambda _event, _: meter.add("member_replacements"),
            m.AttemptEnded: lambda event, _: meter.add("attempts", 1, (event.outcome.value,)),
            m.AttemptStarted: self._started,
            m.JobEnded: lambda event, _: meter.add("jobs_finished", 1, (event.status.value,)),
            m.JobPreempted: lambda _event, _: meter.add("preemptions"),
            m.ReceiptSealed: self._sealed,
            m.ReceiptSigned: lambda _event, _: meter.add("receipts", 1, ("signed",)),
            m.ReceiptPosted: lambda _event, _: meter.add("receipts", 1, ("posted",)),
            m.LeaseSettled: self._settled,
        }

    def begin(self, clusters: Iterable[Cluster]) -> None:
        """Show what may happen before it does: a counter's first step is seen only from what it was before."""
        for liveness in Liveness:
            self._meter.add("worker_transitions", 0, (liveness.value,))
        for outcome in (one for one in Outcome if one is not Outcome.NONE):
            self._meter.add("attempts", 0, (outcome.value,))
        for status in (one for one in JobStatus if one.terminal):
            self._meter.add("jobs_finished", 0, (status.value,))
        for kind in (one.value for one in FaultKind):
            self._meter.add("device_faults", 0, (kind,))
        for name, labels in (
            ("formations", ("ready", "failed")),
            ("receipts", ("sealed", "signed", "posted")),
            ("plan_placements", ("new", "warm", "replacement")),
            ("plan_rejections", tuple(one.value for one in WaitReason if one is not WaitReason.BEHIND)),
            ("relay_bytes", ("in", "out")),
        ):
            for label in labels:
                self._meter.add(name, 0, (label,))
        for name in (
            "hardware_changes",
            "member_replacements",
            "plans_stale",
            "preemptions",
            "relay_dropped_datagrams",
        ):
            self._meter.add(name, 0)
        for cluster in clusters:
            self.formations.put(cluster)

    def committed(self, transaction: Transaction) -> None:
        """This is durable."""
        told = _Told(transaction)
        for event in transaction.events:
            handler = self._handlers.get(type(event))
            if handler is not None:
                handler(event, told)
        for table, key, entity in transaction.rows:
            if table == "workers":
                self._workers(key, entity if isinstance(entity, Worker) else None, transaction.at_ms)

    def _hardware(self, event: m.InventoryChanged, _told: _Told) -> None:
        if event.changes:
            self._meter.add("hardware_changes")
            log.info("hardware_changed", worker_id=event.worker_id, changes=event.changes)

    def _fault(self, event: m.DeviceHeld, _told: _Told) -> None:
        """An operator's cordon is no fault: only an agent's report begins with a kind."""
        kind = event.hold.reason.partition(":")[0]
        if kind in FAULT_KINDS:
            self._meter.add("device_faults", 1, (kind,))

    def _closing(self, event: m.ClusterClosing, told: _Told) -> None:
        """One that its job lets go while it forms has not failed; one whose ground gave way has."""
        if self.formations.given_up(event.cluster_id) and event.cluster_id in told.broken:
            self._meter.add("formations", 1, ("failed",))

    def _started(self, event: m.AttemptStarted, told: _Told) -> None:
        attempt = told.row("attempts", event.attempt_id)
        job = told.row("jobs", attempt.job_id) if isinstance(attempt, Attempt) else None
        if isinstance(job, Job) and job.starts == 1 and job.started_at_ms == told.at_ms:
            self._meter.observe("job_queue_seconds", (told.at_ms - job.submitted_at_ms) / MS)

    def _sealed(self, event: m.ReceiptSealed, told: _Told) -> None:
        self._meter.add("receipts", 1, ("sealed",))
        lease = told.row("leases", event.receipt.lease_id)
        if isinstance(lease, Lease):
            self._meter.add("billed_seconds", event.receipt.billed_ms / MS, (lease.hardware_class.value,))

    def _settled(self, event: m.LeaseSettled, told: _Told) -> None:
        lease = told.row("leases", event.lease_id)
        if isinstance(lease, Lease):
            seconds = event.disputed_ms * len(lease.device_ids) / MS
            self._meter.add("disputed_seconds", seconds, (lease.hardware_class.value,))


class _Told:
    """One transaction, whose rows are looked up only where some event needs them."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self.at_ms = transaction.at_ms

    def row(self, table: str, key: str) -> Entity | None:
        """What a row holds from now on: what an event is about has changed with it."""
        return self._rows.get((table, key))

    @cached_property
    def _rows(self) -> dict[tuple[str, str], Entity | None]:
        return {(table, key): entity for table, key, entity in self._transaction.rows}

    @cached_property
    def broken(self) -> frozenset[ClusterId]:
        """Clusters whose try ended by no fault of its job's."""
        return frozenset(
            entity.cluster_id
            for _, _, entity in self._transaction.rows
            if isinstance(entity, Attempt) and entity.outcome is Outcome.GROUND
        )


class WatchedStore:
    """A store that tells a watcher what was committed, once it is."""

    def __init__(self, store: Store, watcher: Watcher) -> None:
        self._store = store
        self._watcher = watcher

    async def commit(self, transaction: Transaction) -> None:
        """As the store does it."""
        await self._store.commit(transaction)
        self._watcher.committed(transaction)
