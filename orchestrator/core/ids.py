"""Names of things, and the two values every decision is made with: the time and the fence."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import NewType

WorkerId = NewType("WorkerId", str)
SupplierId = NewType("SupplierId", str)
TenantId = NewType("TenantId", str)
TokenId = NewType("TokenId", str)
DeviceId = NewType("DeviceId", str)
ClusterId = NewType("ClusterId", str)
MemberId = NewType("MemberId", str)
JobId = NewType("JobId", str)
AttemptId = NewType("AttemptId", str)
LeaseId = NewType("LeaseId", str)
ReceiptId = NewType("ReceiptId", str)
ReservationId = NewType("ReservationId", str)


@dataclass(frozen=True, slots=True)
class Now:
    """An instant as the shell read it; core never reads a clock.

    ``monotonic_ms`` counts sleep and is comparable only between instants of the same ``boot_id``.
    """

    wall_ms: int
    monotonic_ms: int
    boot_id: str


@dataclass(frozen=True, slots=True, order=True)
class Fence:
    """Orders holders of one member: a lower fence is refused, a higher one is adopted."""

    term: int
    generation: int


def member_id_of(cluster_id: ClusterId, ordinal: int) -> MemberId:
    """The ordinal never repeats within a cluster, so a replaced member's id is not used again."""
    return MemberId(f"{cluster_id}-{ordinal}")


def attempt_id_of(job_id: JobId, number: int) -> AttemptId:
    """What Ray sees as submission id: never text that a user chose."""
    return AttemptId(f"{job_id}-{number}")


def lease_id_of(attempt_id: AttemptId, ordinal: int) -> LeaseId:
    """One lease per member and attempt; ``ordinal`` is the member's."""
    return LeaseId(f"lse_{attempt_id}-{ordinal}")


def receipt_id_of(network_id: str, lease_id: LeaseId, epoch: int, sequence: int) -> ReceiptId:
    """The same formula as ``orchestrator.receipts.ids``, which strangers verify with; a test holds them equal."""
    named = ["orchestrator.receipt-id.v1", network_id, lease_id, str(epoch), str(sequence)]
    text = json.dumps(named, separators=(",", ":"), ensure_ascii=False)
    return ReceiptId("rct_" + hashlib.sha256(text.encode()).hexdigest()[:40])
