"""Commands: what somebody asks of the control plane, with every id and time it needs handed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core.clusters import BusSeen, NodeAddress, NodeSeen, PathSeen
from orchestrator.core.ids import (
    AttemptId,
    ClusterId,
    DeviceId,
    JobId,
    LeaseId,
    MemberId,
    ReceiptId,
    SupplierId,
    TenantId,
    TokenId,
    WorkerId,
)
from orchestrator.core.jobs import JobRequest, Outcome
from orchestrator.core.messages.reservations import ReservationCommand
from orchestrator.core.supply.fleet import ClassOverride, Inventory, LeasePolicy, TokenRole
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.supply.terms import Terms

if TYPE_CHECKING:
    from orchestrator.core.scheduling.placement import Plan


@dataclass(frozen=True, slots=True)
class StartControl:
    """First command of a process: raises the term and anchors the clock."""

    network_id: str


@dataclass(frozen=True, slots=True)
class PassTerm:
    """An agent has obeyed ``term``, which this control plane has not reached: its store is an older copy."""

    term: int


@dataclass(frozen=True, slots=True)
class CreateTenant:
    """``request_id`` empty: no replay protection wanted."""

    tenant_id: TenantId
    name: str
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class QuotaLimit:
    """A limit as it is set; None lifts it."""

    at_most: int | None


@dataclass(frozen=True, slots=True)
class SetTenant:
    """What a tenant's share is and what it may hold; None leaves a thing as it is."""

    tenant: str
    """Name or id."""
    weight: int | None = None
    gpus: QuotaLimit | None = None
    gpu_ms_per_month: QuotaLimit | None = None
    microcredits_per_month: QuotaLimit | None = None


@dataclass(frozen=True, slots=True)
class CreateToken:
    """``subject`` names a tenant, a supplier (made at its first token), or nothing for an operator."""

    token_id: TokenId
    role: TokenRole
    subject: str
    secret_sha256: str
    ttl_ms: int
    supplier_id: SupplierId
    """Used only where the supplier is new."""
    request_id: str = ""
    head_host: bool = False
    """Of a supplier's token: its worker may carry the heads of other people's clusters."""


@dataclass(frozen=True, slots=True)
class KeepAdminToken:
    """The operator's own file holds this secret: it counts, and what that file held before does not any more."""

    token_id: TokenId
    """Used only where the secret is new."""
    secret_sha256: str
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class RevokeToken:
    """Ends a token at once."""

    token_id: TokenId


@dataclass(frozen=True, slots=True)
class JoinWorker:
    """A join token's one use, or a stranger where those may come (``token_sha256`` is empty then).

    The shell has checked that the sender holds both keys.
    """

    worker_id: WorkerId
    token_sha256: str
    name: str
    statement_key: str
    inventory: Inventory
    tls_key_sha256: str = ""
    terms: Terms = Terms()
    supplier_id: SupplierId = SupplierId("")
    """Used only for a stranger, who becomes a supplier by joining."""


@dataclass(frozen=True, slots=True)
class RecoverWorker:
    """A worker whose certificate has run out asks for another; the shell has checked both keys."""

    worker_id: WorkerId
    tls_key_sha256: str


@dataclass(frozen=True, slots=True)
class RecordCertificate:
    """A certificate of this generation of the authority is about to be handed to a worker."""

    worker_id: WorkerId
    generation: int


@dataclass(frozen=True, slots=True)
class ConnectWorker:
    """A session was opened, or (without a ``session``) a worker that was not live was heard again."""

    worker_id: WorkerId
    inventory: Inventory | None
    session: int | None = None
    """The agent's own durable count of its sessions."""
    agent_version: str = ""


@dataclass(frozen=True, slots=True)
class SetTerms:
    """The owner's terms, for whatever is placed from now on."""

    worker_id: WorkerId
    terms: Terms


@dataclass(frozen=True, slots=True)
class PlaceHold:
    """Give a worker nothing new. Repeating it replaces the reason."""

    worker_id: WorkerId
    kind: HoldKind
    reason: str


@dataclass(frozen=True, slots=True)
class LiftHold:
    """End a hold; without one nothing changes."""

    worker_id: WorkerId
    kind: HoldKind


@dataclass(frozen=True, slots=True)
class ReclaimWorker:
    """Give a worker back to its owner: notice to what runs there, and its end after ``notice_ms``.

    ``kind`` is the hold that stays: RECLAIMED, or BUSY for one that is offered while idle. ``notice_ms`` None: as
    the terms say under which each member was placed.
    """

    worker_id: WorkerId
    kind: HoldKind
    reason: str
    notice_ms: int | None = None


@dataclass(frozen=True, slots=True)
class HoldDevice:
    """A device fails: cordon it with the evidence and move its work."""

    worker_id: WorkerId
    device_id: DeviceId
    reason: str


@dataclass(frozen=True, slots=True)
class ReleaseDevice:
    """A cordoned device may be used again."""

    worker_id: WorkerId
    device_id: DeviceId


@dataclass(frozen=True, slots=True)
class OverrideClass:
    """An operator's word on a worker's hardware class; None goes back to the rule."""

    worker_id: WorkerId
    override: ClassOverride | None


@dataclass(frozen=True, slots=True)
class SetLeasePolicy:
    """How patient to be with one worker; None goes back to the network's policy."""

    worker_id: WorkerId
    policy: LeasePolicy | None


@dataclass(frozen=True, slots=True)
class SettleAlert:
    """Outcome of DeliverAlert: it was delivered, or is given up."""

    worker_id: WorkerId
    number: int


@dataclass(frozen=True, slots=True)
class DrainWorker:
    """Nothing new for this worker, and its members are taken away. ``dismiss``: by the operator's will."""

    worker_id: WorkerId
    dismiss: bool = False


@dataclass(frozen=True, slots=True)
class LeaveWorker:
    """The worker has ended everything and goes. ``told``: its agent hears of it on its open session."""

    worker_id: WorkerId
    told: bool = False


@dataclass(frozen=True, slots=True)
class ObservedAttempt:
    """What the agent beside the head reports of one attempt."""

    attempt_id: AttemptId
    running: bool
    outcome: Outcome
    message: str
    driver_exit_code: int | None


@dataclass(frozen=True, slots=True)
class ObservedMember:
    """What an agent reports of one member. ``up`` and ``failed`` are both false while it is on its way."""

    member_id: MemberId
    generation: int
    address: NodeAddress | None
    up: bool
    failed: bool
    stopping: bool
    reason: str
    provisioning: bool = False
    nodes: tuple[NodeSeen, ...] = ()
    clean: bool = False
    attempts: tuple[ObservedAttempt, ...] = ()
    paths: tuple[PathSeen, ...] = ()
    """From this member to peers of its cluster; all of them, each time."""
    bus: BusSeen | None = None


@dataclass(frozen=True, slots=True)
class ObserveWorker:
    """A worker's whole list of members, after it took over desired state ``seen_version``."""

    worker_id: WorkerId
    seen_version: int
    members: tuple[ObservedMember, ...]


@dataclass(frozen=True, slots=True)
class SubmitJob:
    """``job_id`` is used only where the submission is new; ``reservation`` is the name or id of the one it uses."""

    job_id: JobId
    tenant_id: TenantId
    submission_id: str
    request: JobRequest
    request_sha256: str
    reservation: str = ""


@dataclass(frozen=True, slots=True)
class StopJob:
    """Ends a job as soon as its driver can be stopped."""

    job_id: JobId


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Forgets an ended job; its receipts stay."""

    job_id: JobId


@dataclass(frozen=True, slots=True)
class CompleteLog:
    """The last byte of an attempt's log is stored."""

    attempt_id: AttemptId
    log_bytes: int


@dataclass(frozen=True, slots=True)
class AcceptStatement:
    """A statement whose signature the shell has verified against the worker's key."""

    worker_id: WorkerId
    lease_id: LeaseId
    subject: tuple[str, str, str, str]
    """(network, member, job, attempt) as the worker names them."""
    sequence: int
    start_offset_ms: int
    end_offset_ms: int
    final: bool
    device_ids: tuple[str, ...]
    heartbeats_acknowledged: int
    payload_sha256: str
    envelope: bytes


@dataclass(frozen=True, slots=True)
class RecordSignature:
    """Outcome of SignReceipt."""

    receipt_id: ReceiptId
    envelope: bytes
    payload_sha256: str


@dataclass(frozen=True, slots=True)
class RecordPosting:
    """Outcome of PostReceipt."""

    receipt_id: ReceiptId
    transfer_id: str


@dataclass(frozen=True, slots=True)
class ApplyPlan:
    """Make a plan true, if the capacity it was made on is still the capacity there is.

    ``cluster_ids`` are fresh ids, at least as many as the plan has new clusters.
    """

    plan: Plan
    cluster_ids: tuple[ClusterId, ...]


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: deadlines, liveness, idle clusters, the hour's receipts."""


WorkerCommand = (
    JoinWorker
    | RecoverWorker
    | RecordCertificate
    | ConnectWorker
    | SetTerms
    | PlaceHold
    | LiftHold
    | ReclaimWorker
    | HoldDevice
    | ReleaseDevice
    | OverrideClass
    | SetLeasePolicy
    | SettleAlert
    | DrainWorker
    | LeaveWorker
)

Command = (
    StartControl
    | PassTerm
    | CreateTenant
    | SetTenant
    | CreateToken
    | KeepAdminToken
    | RevokeToken
    | ObserveWorker
    | SubmitJob
    | StopJob
    | DeleteJob
    | CompleteLog
    | AcceptStatement
    | RecordSignature
    | RecordPosting
    | ApplyPlan
    | ReservationCommand
    | WorkerCommand
    | Tick
)
