"""Events: what was decided, past tense. An event carries what ``apply`` needs and nothing that is a secret."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.clusters import (
    BusSeen,
    Cluster,
    Member,
    MemberNotice,
    NodeAddress,
    NodeSeen,
    PathSeen,
    Vacancy,
)
from orchestrator.core.ids import (
    AttemptId,
    ClusterId,
    JobId,
    LeaseId,
    MemberId,
    ReceiptId,
    TenantId,
    TokenId,
    WorkerId,
)
from orchestrator.core.jobs import Attempt, GaveWay, Job, JobStatus, Nomination, Outcome, Promise
from orchestrator.core.messages.fleet_events import StandingEvent, WorkerEvent
from orchestrator.core.messages.reservations import ReservationEvent
from orchestrator.core.metering import Lease, Receipt, Statement
from orchestrator.core.supply.fleet import Supplier, Token
from orchestrator.core.tenancy.quotas import Quota
from orchestrator.core.tenancy.tenants import Tenant


@dataclass(frozen=True, slots=True)
class ControlStarted:
    """``at_ms`` of the event and ``monotonic_ms`` of ``boot_id`` name the same instant."""

    network_id: str
    term: int
    monotonic_ms: int
    boot_id: str


@dataclass(frozen=True, slots=True)
class TermPassed:
    """The term rose above what an agent had obeyed already."""

    term: int


@dataclass(frozen=True, slots=True)
class RequestRecorded:
    """Commits with what the request made, so that its repetition gets the same answer."""

    key: str
    request_sha256: str
    result_id: str


@dataclass(frozen=True, slots=True)
class RequestForgotten:
    """An idempotency record outlived its use."""

    key: str


@dataclass(frozen=True, slots=True)
class TenantCreated:
    """A tenant exists."""

    tenant: Tenant


@dataclass(frozen=True, slots=True)
class TenantChanged:
    """A tenant's weight and quota from now on."""

    tenant_id: TenantId
    weight: int
    quota: Quota


@dataclass(frozen=True, slots=True)
class SupplierCreated:
    """A supplier exists."""

    supplier: Supplier


@dataclass(frozen=True, slots=True)
class TokenCreated:
    """A token exists; its secret was shown once and is not here."""

    token: Token


@dataclass(frozen=True, slots=True)
class TokenRevoked:
    """A token is of no more use."""

    token_id: TokenId


@dataclass(frozen=True, slots=True)
class ClusterPlanned:
    """A cluster was decided on: its members hold their devices from now."""

    cluster: Cluster
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class ClusterAdvanced:
    """STARTING_HEAD or JOINING was reached."""

    cluster_id: ClusterId
    phase: str


@dataclass(frozen=True, slots=True)
class ClusterReady:
    """The head lists every member with every GPU, and is reached by all of them."""

    cluster_id: ClusterId
    certificate: tuple[NodeSeen, ...]
    paths: tuple[PathSeen, ...] = ()
    bus: BusSeen | None = None


@dataclass(frozen=True, slots=True)
class ClusterBusMeasured:
    """The all-reduce over a READY cluster's members came later than the rest of its certificate."""

    cluster_id: ClusterId
    bus: BusSeen


@dataclass(frozen=True, slots=True)
class ClusterIdled:
    """Clean and without an attempt: free for the tenant's next job."""

    cluster_id: ClusterId


@dataclass(frozen=True, slots=True)
class ClusterClosing:
    """The cluster ends; members stop, the head after its last log byte."""

    cluster_id: ClusterId
    reason: str


@dataclass(frozen=True, slots=True)
class ClusterClosed:
    """Nothing of the cluster holds anything any more."""

    cluster_id: ClusterId


@dataclass(frozen=True, slots=True)
class MemberProvisioning:
    """The worker builds the runtime first: it is given longer to prepare."""

    member_id: MemberId


@dataclass(frozen=True, slots=True)
class MemberPrepared:
    """The slot and its ports are taken."""

    member_id: MemberId
    address: NodeAddress


@dataclass(frozen=True, slots=True)
class MemberUp:
    """The Ray node runs."""

    member_id: MemberId
    address: NodeAddress


@dataclass(frozen=True, slots=True)
class MemberFailed:
    """The member will not serve; it is stopped, and replaced if its cluster is still forming."""

    member_id: MemberId
    vacancy: Vacancy | None
    reason: str


@dataclass(frozen=True, slots=True)
class MemberReplaced:
    """A vacancy is filled under a higher generation."""

    cluster_id: ClusterId
    member: Member


@dataclass(frozen=True, slots=True)
class MemberStopping:
    """The agent is told to end the member."""

    member_id: MemberId


@dataclass(frozen=True, slots=True)
class MemberNoticed:
    """The member ends at ``notice.deadline_ms``; its job has until then to write a checkpoint."""

    member_id: MemberId
    notice: MemberNotice


@dataclass(frozen=True, slots=True)
class SpareReleased:
    """A cluster that stood ready for a job is nobody's in particular any more."""

    cluster_id: ClusterId


@dataclass(frozen=True, slots=True)
class MemberReleased:
    """The agent has shown that nothing of the member is left: devices and slot are free."""

    member_id: MemberId


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    """A job is queued."""

    job: Job


@dataclass(frozen=True, slots=True)
class JobStopRequested:
    """The tenant wants the job ended."""

    job_id: JobId


@dataclass(frozen=True, slots=True)
class JobOvertaken:
    """Later jobs were given devices that would have served this one, so many more of them."""

    job_id: JobId
    times: int


@dataclass(frozen=True, slots=True)
class JobPreempted:
    """The job's present try gives way to other work; notices to its members follow, or its cluster's end."""

    job_id: JobId
    gave_way: GaveWay


@dataclass(frozen=True, slots=True)
class JobNominated:
    """Devices are kept for a queued job for which others give way."""

    job_id: JobId
    nomination: Nomination


@dataclass(frozen=True, slots=True)
class JobPromised:
    """A queued job is promised machines, others or sooner than before; with None nothing any more."""

    job_id: JobId
    promise: Promise | None


@dataclass(frozen=True, slots=True)
class JobRequeued:
    """The ground failed under the job; it waits for another try."""

    job_id: JobId
    message: str
    not_before_ms: int
    avoid: tuple[WorkerId, ...]
    formation_failures: int
    preempted: bool = False
    """Its ground was taken back, not broken: the try does not count against ``max_attempts``."""


@dataclass(frozen=True, slots=True)
class JobEnded:
    """The job is terminal."""

    job_id: JobId
    status: JobStatus
    message: str
    driver_exit_code: int | None


@dataclass(frozen=True, slots=True)
class JobDeleted:
    """The tenant forgot an ended job."""

    job_id: JobId


@dataclass(frozen=True, slots=True)
class AttemptPlaced:
    """A job has a cluster, ready or forming."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """The driver runs: leases begin."""

    attempt_id: AttemptId


@dataclass(frozen=True, slots=True)
class AttemptTimedOut:
    """The driver has run for as long as its job may: its agent is told to stop it. ``reason`` is for the tenant."""

    attempt_id: AttemptId
    reason: str


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """The attempt is over; GROUND outcomes may be retried."""

    attempt_id: AttemptId
    outcome: Outcome
    message: str
    driver_exit_code: int | None


@dataclass(frozen=True, slots=True)
class LogCompleted:
    """No more log will come; ``log_bytes`` are stored."""

    attempt_id: AttemptId
    log_bytes: int


@dataclass(frozen=True, slots=True)
class LeaseStarted:
    """A member's devices are held for an attempt from now."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class LeaseEnded:
    """The control plane's record of a lease is closed."""

    lease_id: LeaseId
    ended_ms: int


@dataclass(frozen=True, slots=True)
class LeaseSettled:
    """Nothing more will be stated; ``disputed_ms`` was recorded but never stated."""

    lease_id: LeaseId
    disputed_ms: int


@dataclass(frozen=True, slots=True)
class StatementAccepted:
    """The worker's word, and how far the lease is billed by it."""

    statement: Statement
    billed_offset_ms: int


@dataclass(frozen=True, slots=True)
class StatementDisputed:
    """A signed statement that contradicts what was stated before: kept as evidence, billed nothing."""

    lease_id: LeaseId
    sequence: int
    reason: str
    envelope: bytes


@dataclass(frozen=True, slots=True)
class ReceiptSealed:
    """An interval is final; the receipt waits for its signature."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class ReceiptSigned:
    """The exact bytes that count from now on."""

    receipt_id: ReceiptId
    envelope: bytes
    payload_sha256: str


@dataclass(frozen=True, slots=True)
class ReceiptPosted:
    """The ledger has booked the receipt."""

    receipt_id: ReceiptId
    transfer_id: str


RegistryEvent = TenantCreated | TenantChanged | SupplierCreated | TokenCreated | TokenRevoked

ClusterEvent = (
    ClusterPlanned
    | ClusterAdvanced
    | ClusterReady
    | ClusterBusMeasured
    | SpareReleased
    | ClusterIdled
    | ClusterClosing
    | ClusterClosed
)

JobEvent = (
    JobSubmitted
    | JobStopRequested
    | JobOvertaken
    | JobPreempted
    | JobNominated
    | JobPromised
    | JobRequeued
    | JobEnded
    | JobDeleted
)
"""What becomes of a job itself; its attempts have events of their own."""

Event = (
    ControlStarted
    | TermPassed
    | RequestRecorded
    | RequestForgotten
    | RegistryEvent
    | ClusterEvent
    | MemberProvisioning
    | MemberPrepared
    | MemberUp
    | MemberFailed
    | MemberReplaced
    | MemberStopping
    | MemberNoticed
    | MemberReleased
    | JobEvent
    | AttemptPlaced
    | AttemptStarted
    | AttemptTimedOut
    | AttemptEnded
    | LogCompleted
    | LeaseStarted
    | LeaseEnded
    | LeaseSettled
    | StatementAccepted
    | StatementDisputed
    | ReceiptSealed
    | ReceiptSigned
    | ReceiptPosted
    | ReservationEvent
    | WorkerEvent
    | StandingEvent
)
