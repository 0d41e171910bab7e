"""Effects: what is to be done once events are durable; and what workers are told, derived from the state."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.core.clusters import Member, NodeAddress, NodeSeen
from orchestrator.core.ids import (
    Fence,
    ReceiptId,
    WorkerId,
)
from orchestrator.core.jobs import Attempt, JobRequest
from orchestrator.core.messages.events import Event
from orchestrator.core.metering import Lease


@dataclass(frozen=True, slots=True)
class SyncWorker:
    """Send a worker its whole desired state; harmless to repeat."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True)
class SignReceipt:
    """Build and sign the receipt's bytes; the outcome is RecordSignature."""

    receipt_id: ReceiptId


@dataclass(frozen=True, slots=True)
class PostReceipt:
    """Give the receipt to the ledger; the outcome is RecordPosting."""

    receipt_id: ReceiptId


@dataclass(frozen=True, slots=True)
class ShutOut:
    """End the session of a worker that may have none; harmless to repeat."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True)
class DeliverAlert:
    """Tell the owner at his webhook; the outcome is SettleAlert."""

    worker_id: WorkerId
    number: int


Effect = SyncWorker | SignReceipt | PostReceipt | ShutOut | DeliverAlert


@dataclass(frozen=True, slots=True)
class Decision:
    """What a command led to: events already applied to the state, and the caller's answer."""

    events: tuple[Event, ...] = ()
    result: object = None


@dataclass(frozen=True, slots=True)
class DesiredMember:
    """What one worker is told about one member; derived from the state, never stored."""

    member: Member
    fence: Fence
    run: bool
    head: NodeAddress | None
    attempts: tuple[DesiredAttempt, ...] = field(default=())
    notices: tuple[Member, ...] = ()
    """Members of its cluster that are about to go."""
    leases: tuple[Lease, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class DesiredAttempt:
    """What the agent beside the head is told about one attempt."""

    attempt: Attempt
    request: JobRequest
    stop: bool
    gang: tuple[NodeSeen, ...]
    """The nodes it was promised: it is not started on fewer."""
