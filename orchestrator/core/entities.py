"""What is stored: every kind of entity, its table and its key."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.clusters import Cluster, Member
from orchestrator.core.jobs import Attempt, Job
from orchestrator.core.metering import Lease, Receipt, Statement
from orchestrator.core.supply.fleet import Supplier, Token, Worker
from orchestrator.core.tenancy.reservations import Reservation
from orchestrator.core.tenancy.tenants import Tenant


@dataclass(frozen=True, slots=True)
class Control:
    """The control plane itself: its term, and the instant its clock is anchored to."""

    network_id: str
    term: int
    at_ms: int
    monotonic_ms: int
    boot_id: str
    overlay_host: int = 0
    """The newest number given out in the overlay's address plan."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """An answered request, for its repetition."""

    key: str
    request_sha256: str
    result_id: str
    at_ms: int


Entity = (
    Control
    | RequestRecord
    | Supplier
    | Tenant
    | Token
    | Worker
    | Cluster
    | Member
    | Job
    | Attempt
    | Lease
    | Statement
    | Receipt
    | Reservation
)

TABLES: dict[str, type[Entity]] = {
    "control": Control,
    "requests": RequestRecord,
    "suppliers": Supplier,
    "tenants": Tenant,
    "tokens": Token,
    "workers": Worker,
    "reservations": Reservation,
    "clusters": Cluster,
    "members": Member,
    "jobs": Job,
    "attempts": Attempt,
    "leases": Lease,
    "statements": Statement,
    "receipts": Receipt,
}
"""In loading order: workers before the members that hold their devices, reservations before their jobs."""

TABLE_OF: dict[type[Entity], str] = {kind: table for table, kind in TABLES.items()}

CONTROL_KEY = "control"


def key_of(entity: Entity) -> str:
    """The primary key of an entity within its table."""
    match entity:
        # Those that change most come first: each case before costs a look.
        case Member():
            return entity.member_id
        case Job():
            return entity.job_id
        case Cluster():
            return entity.cluster_id
        case Attempt():
            return entity.attempt_id
        case Tenant():
            return entity.tenant_id
        case Control():
            return CONTROL_KEY
        case RequestRecord():
            return entity.key
        case Supplier():
            return entity.supplier_id
        case Token():
            return entity.token_id
        case Worker():
            return entity.worker_id
        case Lease():
            return entity.lease_id
        case Statement():
            return f"{entity.lease_id}/{entity.sequence}"
        case Receipt():
            return entity.receipt_id
        case Reservation():
            return entity.reservation_id
