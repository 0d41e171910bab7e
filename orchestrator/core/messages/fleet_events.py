"""Events about workers: who joined, what is known of them, and what holds them back."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.core.alerts import Alert
from orchestrator.core.ids import DeviceId, SupplierId, TokenId, WorkerId
from orchestrator.core.supply.fleet import ClassOverride, Inventory, LeasePolicy, Liveness, Supplier, Worker
from orchestrator.core.supply.holds import DeviceHold, Hold, HoldKind
from orchestrator.core.supply.reliability import Flaps, Reliability
from orchestrator.core.supply.terms import Terms


@dataclass(frozen=True, slots=True)
class DismissalTold:
    """The agent of a dismissed worker knows; if its supplier starts it again, it may come back."""

    worker_id: WorkerId


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker exists, and the token that let it in is used."""

    worker: Worker
    token_id: TokenId


@dataclass(frozen=True, slots=True)
class StrangerJoined:
    """A worker exists for which nobody gave his word; so does its supplier."""

    worker: Worker
    supplier: Supplier


@dataclass(frozen=True, slots=True)
class WorkerForgotten:
    """A stranger that never held anything is no longer known; nor is its supplier, where one is named."""

    worker_id: WorkerId
    supplier_id: SupplierId | None


@dataclass(frozen=True, slots=True)
class WorkerRecovered:
    """A certificate was given to a key whose last one had run out."""

    worker_id: WorkerId
    recoveries: int = 1_000
    """Thousandths, with this one, as `Worker.recoveries`."""


@dataclass(frozen=True, slots=True)
class CertificateIssued:
    """A worker has a certificate of another generation of the authority than before."""

    worker_id: WorkerId
    generation: int


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A worker's agent is here, for the ``number``-th time by its own count."""

    worker_id: WorkerId
    number: int
    agent_version: str
    outdated: bool = False
    """The agent is older than the supported window: its time to upgrade runs."""
    overlay_host: int = 0
    """A number in the overlay's address plan, which it gets now; 0: none, or it has one."""


@dataclass(frozen=True, slots=True)
class TermsChanged:
    """For whatever is placed from now on."""

    worker_id: WorkerId
    terms: Terms


@dataclass(frozen=True, slots=True)
class HoldPlaced:
    """A worker gets nothing new for one more reason, or for the same one in other words."""

    worker_id: WorkerId
    hold: Hold


@dataclass(frozen=True, slots=True)
class HoldLifted:
    """One reason less."""

    worker_id: WorkerId
    kind: HoldKind


@dataclass(frozen=True, slots=True)
class DeviceHeld:
    """A device is cordoned, with the evidence against it."""

    worker_id: WorkerId
    hold: DeviceHold


@dataclass(frozen=True, slots=True)
class DeviceReleased:
    """A cordoned device may be used again."""

    worker_id: WorkerId
    device_id: DeviceId


@dataclass(frozen=True, slots=True)
class ClassOverridden:
    """An operator's word counts instead of the rule, or (None) no longer does."""

    worker_id: WorkerId
    override: ClassOverride | None


@dataclass(frozen=True, slots=True)
class LeasePolicyChanged:
    """One worker is waited for longer or shorter than others, or (None) no longer is."""

    worker_id: WorkerId
    policy: LeasePolicy | None


@dataclass(frozen=True, slots=True)
class ReliabilityChanged:
    """A lease came to its end, well or not."""

    worker_id: WorkerId
    reliability: Reliability


@dataclass(frozen=True, slots=True)
class Flapped:
    """A worker fell silent once more."""

    worker_id: WorkerId
    flaps: Flaps


@dataclass(frozen=True, slots=True)
class AlertRaised:
    """The owner is to be told."""

    worker_id: WorkerId
    alert: Alert


@dataclass(frozen=True, slots=True)
class AlertSettled:
    """He was told, or nothing more is tried."""

    worker_id: WorkerId
    number: int


@dataclass(frozen=True, slots=True)
class InventoryChanged:
    """A worker came back with other hardware, software or limits."""

    worker_id: WorkerId
    inventory: Inventory
    changes: tuple[str, ...] = ()
    """What of the hardware is another than before, in words; empty where only the offer or the software is."""


@dataclass(frozen=True, slots=True)
class LivenessChanged:
    """A transition of a worker's liveness."""

    worker_id: WorkerId
    liveness: Liveness
    heard_ms: int
    """Control time of the last sign of life: what a lost worker's leases end at."""
    excused: bool = False
    """Its whole zone fell silent: that is held against nobody."""


@dataclass(frozen=True, slots=True)
class WorkerDrained:
    """The worker gets nothing new; its members go."""

    worker_id: WorkerId
    dismissed: bool


WorkerEvent = (
    WorkerJoined
    | StrangerJoined
    | WorkerForgotten
    | InventoryChanged
    | LivenessChanged
    | WorkerDrained
    | DismissalTold
    | WorkerRecovered
    | CertificateIssued
    | SessionOpened
)
"""Who a worker is, what it has, whether it is there."""

StandingEvent = (
    TermsChanged
    | HoldPlaced
    | HoldLifted
    | DeviceHeld
    | DeviceReleased
    | ClassOverridden
    | LeasePolicyChanged
    | ReliabilityChanged
    | Flapped
    | AlertRaised
    | AlertSettled
)
"""What is thought of it, and what its owner wants."""
