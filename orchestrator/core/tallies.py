"""How many there are of what in which state, counted as entities are put: whoever asks walks over nothing.

Jobs, clusters, leases and receipts stay long after their end, so a walk over them would take longer each day. Nothing
here is stored: a loaded state comes to the same numbers as an applied one.
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from orchestrator.core.clusters import ClusterPhase, MemberPhase
from orchestrator.core.supply.fleet import DeviceKind, HardwareClass, Liveness, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from orchestrator.core.clusters import Cluster, Member
    from orchestrator.core.ids import DeviceId
    from orchestrator.core.jobs import Job, JobStatus
    from orchestrator.core.metering import Lease, Receipt
    from orchestrator.core.supply.fleet import Device
    from orchestrator.core.supply.holds import HoldKind

K = TypeVar("K")


class GpuState(StrEnum):
    """What can be done with a GPU now."""

    FREE = "free"
    LEASED = "leased"
    """A member has it, whatever its worker is."""
    RESERVED = "reserved"
    """Free, and kept by the newest plan for a reservation."""
    HELD = "held"
    """It, or its worker, gets nothing new."""
    UNREACHABLE = "unreachable"
    """Its worker is silent."""


class LeaseState(StrEnum):
    """How far a lease is."""

    OPEN = "open"
    CLOSING = "closing"
    """Ended here; its worker may still state."""
    SETTLED = "settled"


# By names of their own, as a member of an enumeration is looked up through its class each time, which takes longer than
# counting does.
FREE, LEASED, HELD, UNREACHABLE = GpuState.FREE, GpuState.LEASED, GpuState.HELD, GpuState.UNREACHABLE
LIVE, GPU, RELEASED = Liveness.LIVE, DeviceKind.GPU, MemberPhase.RELEASED

Gpus = tuple[HardwareClass, str, GpuState]
"""Class, model, state."""


class Tallies:
    """Counts of ``State``, kept true by its ``put``."""

    def __init__(self) -> None:
        self.workers: Counter[tuple[Liveness, HardwareClass]] = Counter()
        self.holds: Counter[HoldKind] = Counter()
        """Workers, by each of their holds."""
        self.gpus: Counter[Gpus] = Counter()
        """Of workers that have not left. Which are RESERVED only a plan knows."""
        self.clusters: Counter[ClusterPhase] = Counter()
        self.jobs: Counter[JobStatus] = Counter()
        self.queued = 0
        self.queued_gpus = 0
        self.leases: Counter[LeaseState] = Counter()
        self.receipts_posted = 0

    def put_worker(self, old: Worker | None, new: Worker | None, held: AbstractSet[DeviceId]) -> None:
        """A worker was added, changed or (None) forgotten. ``held``: what members have of it, before and after."""
        if old is not None and new is not None and _same_to_all(old, new):
            return
        if old is not None:
            self.workers[old.liveness, old.inventory.hardware_class] -= 1
            self.holds.subtract(hold.kind for hold in old.holds)
            self.gpus.subtract(gpus_of(old, held))
        if new is not None:
            self.workers[new.liveness, new.inventory.hardware_class] += 1
            self.holds.update(hold.kind for hold in new.holds)
            self.gpus.update(gpus_of(new, held))

    def put_member(self, old: Member | None, new: Member, worker: Worker) -> None:
        """A member of this worker was added or changed; nobody else has its devices. Only they are counted anew."""
        before = () if old is None or old.phase is RELEASED else old.device_ids
        after = () if new.phase is RELEASED else new.device_ids
        if before != after and worker.liveness is LIVE:
            self._lease(worker, before, -1)
            self._lease(worker, after, 1)

    def _lease(self, worker: Worker, device_ids: tuple[DeviceId, ...], by: int) -> None:
        """A member has so many more or fewer of each of these devices: 1 or -1. Its worker is live."""
        for device in worker.inventory.devices if device_ids else ():
            if device.device_id in device_ids and device.kind is GPU:
                kind = worker.inventory.hardware_class
                self.gpus[kind, device.model, LEASED] += by
                self.gpus[kind, device.model, _without_member(worker, device)] -= by

    def put_cluster(self, old: Cluster | None, new: Cluster) -> None:
        """A cluster was added or changed."""
        _move(self.clusters, None if old is None else old.phase, new.phase)

    def put_job(self, old: Job | None, new: Job | None, *, was_queued: bool, queued: bool) -> None:
        """A job was added, changed or (None) deleted."""
        if old is not None:
            self.jobs[old.status] -= 1
            if was_queued:
                self.queued -= 1
                self.queued_gpus -= old.request.requirements.gpus
        if new is not None:
            self.jobs[new.status] += 1
            if queued:
                self.queued += 1
                self.queued_gpus += new.request.requirements.gpus

    def put_lease(self, old: Lease | None, new: Lease) -> None:
        """A lease was added or changed."""
        _move(self.leases, None if old is None else lease_state(old), lease_state(new))

    def put_receipt(self, old: Receipt | None, new: Receipt) -> None:
        """A receipt was added or changed."""
        self.receipts_posted += bool(new.transfer_id) - (old is not None and bool(old.transfer_id))


def _same_to_all(old: Worker, new: Worker) -> bool:
    """Whether a worker and its devices are counted as before: most changes of it are of its reliability."""
    return (
        old.inventory is new.inventory
        and old.liveness is new.liveness
        and old.holds == new.holds
        and old.device_holds == new.device_holds
        and old.draining == new.draining
    )


def gpus_of(worker: Worker, held: AbstractSet[DeviceId]) -> Iterator[Gpus]:
    """Its GPUs, of which members have these; one that has left has none."""
    if worker.liveness is Liveness.LEFT:
        return
    for device in worker.inventory.devices:
        if device.kind is not GPU:
            continue
        if worker.liveness is not LIVE:
            state = UNREACHABLE
        else:
            state = LEASED if device.device_id in held else _without_member(worker, device)
        yield worker.inventory.hardware_class, device.model, state


def _without_member(worker: Worker, device: Device) -> GpuState:
    """Of a device of a live worker, where no member has it."""
    holds = worker.device_holds
    held = holds and any(hold.device_id == device.device_id for hold in holds)
    return FREE if worker.placeable and not held else HELD


def lease_state(lease: Lease) -> LeaseState:
    """How far it is."""
    if lease.settled:
        return LeaseState.SETTLED
    return LeaseState.OPEN if lease.ended_ms is None else LeaseState.CLOSING


def _move(counts: Counter[K], before: K | None, now: K | None) -> None:
    if before is now:
        return
    if before is not None:
        counts[before] -= 1
    if now is not None:
        counts[now] += 1
