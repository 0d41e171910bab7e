"""Suppliers, workers, devices; and when a worker counts as live, suspect or lost."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.ids import DeviceId, SupplierId, TenantId, TokenId, WorkerId

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class HardwareClass(StrEnum):
    """What kind of machine; a cluster never mixes classes."""

    CONSUMER = "consumer"
    MINER = "miner"
    DATACENTER = "datacenter"
    APPLE = "apple"
    CPU = "cpu"


class DeviceKind(StrEnum):
    """What a device computes on."""

    GPU = "gpu"
    CPU = "cpu"


class Isolation(StrEnum):
    """How a member is kept away from its supplier, weakest first."""

    NONE = "none"
    BOX = "box"
    CONTAINER = "container"

    def at_least(self, wanted: Isolation) -> bool:
        """Whether this tier satisfies a request for ``wanted``."""
        return ISOLATION_RANK[self] >= ISOLATION_RANK[wanted]


ISOLATION_RANK = {tier: rank for rank, tier in enumerate(Isolation)}


class Liveness(StrEnum):
    """Whether a worker keeps its leases: a suspect one keeps them and gets nothing new."""

    LIVE = "live"
    SUSPECT = "suspect"
    LOST = "lost"
    LEFT = "left"


class TokenRole(StrEnum):
    """What the bearer of a token may do."""

    OPERATOR = "operator"
    TENANT = "tenant"
    SUPPLIER = "supplier"


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or the processor of a machine without one. ``model`` is a catalogue name."""

    device_id: DeviceId
    kind: DeviceKind
    model: str
    memory_bytes: int
    simulated: bool


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a worker says it has."""

    hardware_class: HardwareClass
    devices: tuple[Device, ...]
    cpus: int
    memory_bytes: int
    slots: int
    head_slots: int
    operating_system: str
    architecture: str
    python_version: str
    ray_version: str
    isolation: Isolation
    overlay: str
    zone: str

    @property
    def runtime(self) -> str:
        """Ray nodes of one cluster must agree on this: Ray's version and Python's minor."""
        minor = ".".join(self.python_version.split(".")[:2])
        return f"ray {self.ray_version}, python {minor}, {self.operating_system}"


@dataclass(frozen=True, slots=True)
class Supplier:
    """Who owns workers and is paid for them."""

    supplier_id: SupplierId
    name: str
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who submits jobs."""

    tenant_id: TenantId
    name: str
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token, stored as the SHA-256 of its secret."""

    token_id: TokenId
    role: TokenRole
    subject_id: str
    secret_sha256: str
    created_at_ms: int
    expires_at_ms: int
    used: bool
    revoked: bool

    def state_at(self, at_ms: int) -> str:
        """``live``, ``used``, ``revoked`` or ``expired``."""
        if self.revoked:
            return "revoked"
        if self.used:
            return "used"
        return "expired" if at_ms >= self.expires_at_ms else "live"


@dataclass(frozen=True, slots=True)
class Worker:
    """One machine of a supplier. ``statement_key`` is its raw Ed25519 public key in hex."""

    worker_id: WorkerId
    supplier_id: SupplierId
    name: str
    statement_key: str
    inventory: Inventory
    liveness: Liveness
    liveness_since_ms: int
    draining: bool
    """Gets nothing new, and its members are taken away; ends when it has left."""
    dismissed: bool
    """The operator let it go: its agent is told not to come back by itself."""
    joined_at_ms: int

    @property
    def placeable(self) -> bool:
        """Whether new members may be placed here."""
        return self.liveness is Liveness.LIVE and not self.draining


@dataclass(frozen=True, slots=True)
class FleetPolicy:
    """When silence counts. All in milliseconds of the control plane's monotonic clock."""

    heartbeat_interval_ms: int = 5_000
    suspect_after_ms: int = 15_000
    """Three missed heartbeats: one lost packet or a pause of the machine is no reason to act."""
    lease_ttl_ms: int = 60_000
    """Nodes end themselves this long after the sending of their last acknowledged heartbeat."""
    lost_after_ms: int = 75_000
    """Later than ``lease_ttl_ms``, so that a lost worker's nodes have ended before they are replaced."""
    zone_hold_ratio: float = 0.55
    """When at least this part of a zone is silent, the fault is likelier ours: nobody is evicted."""
    zone_hold_min_workers: int = 3
    """Below this a zone is too small for the ratio to mean anything."""


class HeartbeatTable:
    """When each worker was last heard: a measurement, never stored, so a restart grants everybody a full term."""

    def __init__(self) -> None:
        self._row: dict[WorkerId, int] = {}
        self._ids: list[WorkerId] = []
        self._heard_ms = np.zeros(64, dtype=np.int64)

    def heard(self, worker_id: WorkerId, monotonic_ms: int) -> None:
        """Record a sign of life."""
        row = self._row.get(worker_id)
        if row is None:
            row = len(self._ids)
            self._row[worker_id] = row
            self._ids.append(worker_id)
            if row >= len(self._heard_ms):
                self._heard_ms = np.concatenate([self._heard_ms, np.zeros_like(self._heard_ms)])
        self._heard_ms[row] = monotonic_ms

    def heard_ms(self, worker_id: WorkerId, default_ms: int) -> int:
        """Monotonic ms of the last sign of life; ``default_ms`` where there was none yet."""
        row = self._row.get(worker_id)
        return default_ms if row is None else int(self._heard_ms[row])

    def silent_since(self, monotonic_ms: int) -> list[WorkerId]:
        """Workers not heard after ``monotonic_ms``, in order of first contact."""
        count = len(self._ids)
        return [self._ids[row] for row in np.flatnonzero(self._heard_ms[:count] < monotonic_ms)]


def held_zones(
    workers: Iterable[Worker], silent: Mapping[WorkerId, int], policy: FleetPolicy
) -> frozenset[str]:
    """Zones of which so many workers are silent at once that the control plane suspects itself instead."""
    size: dict[str, int] = {}
    quiet: dict[str, int] = {}
    for worker in workers:
        if worker.liveness in (Liveness.LOST, Liveness.LEFT):
            continue
        zone = worker.inventory.zone
        size[zone] = size.get(zone, 0) + 1
        if worker.worker_id in silent:
            quiet[zone] = quiet.get(zone, 0) + 1
    return frozenset(
        zone
        for zone, count in quiet.items()
        if size[zone] >= policy.zone_hold_min_workers and count >= policy.zone_hold_ratio * size[zone]
    )
