"""From leases and statements to billed intervals, in whole milliseconds.

A lease is a member's hold on its devices for one attempt. The control plane records when it began and ended; the worker
states how long it held, on its own clock; billed is the smaller of the two, so neither side can invent time alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core.ids import (
    AttemptId,
    ClusterId,
    DeviceId,
    Fence,
    JobId,
    LeaseId,
    MemberId,
    ReceiptId,
    SupplierId,
    TenantId,
    WorkerId,
)
from orchestrator.core.market.pricing import price_of_use
from orchestrator.core.supply.fleet import HardwareClass

if TYPE_CHECKING:
    from collections.abc import Iterable


EPOCH_MS = 3_600_000
"""An epoch is one UTC hour; no receipt crosses its edge."""


STATEMENT_MS_MIN = 1_000
"""A statement of a running lease covers at least this: an hour then holds no more than a receipt can name."""

HEARTBEATS_MAX = 1_000_000
"""More between two statements than a worker could send in a week; a larger claim is no mistake."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One member's devices for one attempt. ``…_offset_ms`` count from ``started_ms``."""

    lease_id: LeaseId
    attempt_id: AttemptId
    job_id: JobId
    tenant_id: TenantId
    cluster_id: ClusterId
    member_id: MemberId
    worker_id: WorkerId
    supplier_id: SupplierId
    device_ids: tuple[DeviceId, ...]
    device_models: tuple[str, ...]
    simulated: bool
    hardware_class: HardwareClass
    fence: Fence
    started_ms: int
    ended_ms: int | None
    next_sequence: int
    """Of the statement to come."""
    stated_offset_ms: int
    billed_offset_ms: int
    final_stated: bool
    sealed_offset_ms: int
    next_receipt: int
    settled: bool
    disputed_ms: int
    """Recorded here but never stated by the worker; listed, not paid."""
    evidence_class: str = "T0"
    """Of its weakest device when it began."""
    microcredits_per_hour: int = 0
    """Of all its devices together, before fees; its member's."""

    @property
    def recorded_ms(self) -> int | None:
        """Length of the control plane's own record; None while it runs."""
        return None if self.ended_ms is None else self.ended_ms - self.started_ms

    def price_until(self, offset_ms: int) -> int:
        """Microcredits from its beginning; the price of a part is the difference, so that parts add up to the whole."""
        return price_of_use(self.microcredits_per_hour, offset_ms)


@dataclass(frozen=True, slots=True)
class Statement:
    """A worker's signed word, with the exact bytes; kept until its receipts are."""

    lease_id: LeaseId
    sequence: int
    start_offset_ms: int
    end_offset_ms: int
    final: bool
    heartbeats_acknowledged: int
    payload_sha256: str
    envelope: bytes
    accepted_ms: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """A sealed interval [start_ms, end_ms) of one lease. ``envelope`` is empty until it is signed."""

    receipt_id: ReceiptId
    lease_id: LeaseId
    epoch: int
    sequence: int
    start_ms: int
    end_ms: int
    billed_ms: int
    """Device-milliseconds: the interval times the devices."""
    statement_sequences: tuple[int, ...]
    heartbeats_expected: int
    heartbeats_received: int
    issued_at_ms: int
    envelope: bytes
    payload_sha256: str
    transfer_id: str
    """Empty until the ledger has booked it."""


@dataclass(frozen=True, slots=True)
class MeteringPolicy:
    """How often workers state and how long a last statement may take. Milliseconds."""

    statement_interval_ms: int = 60_000
    statement_grace_ms: int = 24 * 3_600_000
    """A supplier's machine may be off for a night and still bring its last statement."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Offsets [start_ms, end_ms) within a lease."""

    start_ms: int
    end_ms: int


def billed_offset(lease: Lease, stated_end_ms: int, at_ms: int) -> int:
    """How far the lease is billed once the worker has stated up to ``stated_end_ms``; never shrinks."""
    end_ms = at_ms if lease.ended_ms is None else lease.ended_ms
    return max(lease.billed_offset_ms, min(stated_end_ms, end_ms - lease.started_ms))


def sealable(lease: Lease) -> list[Interval]:
    """Billed intervals that no receipt covers yet, each within one epoch.

    A running lease is sealed at the edge of each hour, a settled one to its end.
    """
    intervals: list[Interval] = []
    start_ms = lease.sealed_offset_ms
    while start_ms < lease.billed_offset_ms:
        edge_ms = ((lease.started_ms + start_ms) // EPOCH_MS + 1) * EPOCH_MS - lease.started_ms
        if edge_ms <= lease.billed_offset_ms:
            intervals.append(Interval(start_ms, edge_ms))
        elif lease.settled:
            intervals.append(Interval(start_ms, lease.billed_offset_ms))
        else:
            break
        start_ms = intervals[-1].end_ms
    return intervals


def covering(statements: Iterable[Statement], interval: Interval) -> list[Statement]:
    """Statements that say something about the interval, in order."""
    touching = [
        statement
        for statement in statements
        if statement.start_offset_ms < interval.end_ms and statement.end_offset_ms > interval.start_ms
    ]
    return sorted(touching, key=lambda statement: statement.sequence)
