"""Suppliers, workers, devices; and when a worker counts as live, suspect or lost."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.alerts import Alert
from orchestrator.core.ids import DeviceId, SupplierId, TokenId, WorkerId
from orchestrator.core.supply.evidence import DeviceEvidence, EvidenceClass, MachineEvidence
from orchestrator.core.supply.holds import SHUT_OUT, DeviceHold, Hold, HoldKind
from orchestrator.core.supply.reliability import Flaps, Reliability
from orchestrator.core.supply.terms import Terms


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


NEBULA = "nebula"
"""The overlay that carries clusters of several machines."""

OVERLAY = "overlay"
"""The reach of whoever can be a member of it."""

REMARKS_MAX = 4
"""Of a worker's inventory: one on its isolation, one on its overlay, and as many again."""

REMARK_CHARACTERS_MAX = 500
"""A reason and the command that helps against it, in a few lines of a terminal."""


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
    """What it offers; its evidence tells what it has."""
    simulated: bool
    evidence: DeviceEvidence | None = None
    """None where it is simulated, or where the agent is too old to show any."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a worker says it has. Its class is not among it: that is derived from the devices."""

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
    evidence: MachineEvidence | None = None
    class_reason: str = ""
    """Why the class is what it is, naming the evidence."""
    unisolated: bool = False
    """Whether its owner consents to tenants' code without any isolation; a job has to consent too."""
    remarks: tuple[str, ...] = ()
    """Why it offers no isolation or no overlay, each with what its owner can do about it."""

    @property
    def boxed(self) -> bool:
        """Whether every member here is kept apart, with a runtime that the agent provisions."""
        return self.isolation is not Isolation.NONE

    @property
    def runtime(self) -> str:
        """Ray nodes of one cluster must agree on this: boxes bring their own Python and Ray, bare members the agent's."""
        if self.boxed:
            return f"provisioned, {self.operating_system} {self.architecture}"
        minor = ".".join(self.python_version.split(".")[:2])
        return f"ray {self.ray_version}, python {minor}, {self.operating_system}"

    @property
    def reach(self) -> str:
        """Workers with the same reach can be members of one cluster; empty: it serves one-machine clusters only.

        A box has a network of its own, so only an overlay leads from one to another.
        """
        if self.boxed:
            return OVERLAY if self.overlay == NEBULA else ""
        return f"zone {self.zone}"


@dataclass(frozen=True, slots=True)
class Supplier:
    """Who owns workers and is paid for them."""

    supplier_id: SupplierId
    name: str
    created_at_ms: int
    vouched: bool = True
    """Whether an operator gave him a token; a stranger makes himself a supplier by joining."""


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
    head_host: bool = False
    """Whether the worker that it lets in may carry the heads of other people's clusters."""

    def state_at(self, at_ms: int) -> str:
        """``live``, ``used``, ``revoked`` or ``expired``."""
        if self.revoked:
            return "revoked"
        if self.used:
            return "used"
        return "expired" if at_ms >= self.expires_at_ms else "live"


class Reconcile(StrEnum):
    """What wins when a silent worker comes back and its replacement is there already."""

    ORIGINAL = "original"
    REPLACEMENT = "replacement"


@dataclass(frozen=True, slots=True)
class LeasePolicy:
    """How patient the network is with one worker. Milliseconds."""

    lost_after_ms: int
    replace: bool = False
    """Form a replacement while the worker is only suspect."""
    reconcile: Reconcile = Reconcile.ORIGINAL


@dataclass(frozen=True, slots=True)
class ClassOverride:
    """An operator's word against the rule, with his reason."""

    hardware_class: HardwareClass
    reason: str


@dataclass(frozen=True, slots=True)
class Worker:
    """One machine of a supplier.

    Its keys are bound by one enrolment: ``statement_key`` is the raw Ed25519 public key in hex, ``tls_key_sha256``
    the hex SHA-256 of its TLS key's SubjectPublicKeyInfo.
    """

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
    tls_key_sha256: str = ""
    agent_version: str = ""
    outdated_since_ms: int | None = None
    """When its agent was first found older than the supported window."""
    sessions: int = 0
    """The number of its newest session: the agent counts them durably, so a copy of it falls behind."""
    recoveries: int = 0
    """Thousandths of certificates given to its key after the last one had run out, decayed, as of ``recovered_at_ms``."""
    recovered_at_ms: int = 0
    certificate_generation: int = 0
    """Of the authority that issued its newest certificate; 0: it has none."""
    enrolled: bool = False
    """Whether it was ever there: from then on its joining cannot be repeated."""
    head_host: bool = False
    """Whether it may carry the heads of other people's clusters, as the token said that let it in: the agent beside a
    head speaks for the whole gang."""
    devices_since: tuple[tuple[DeviceId, int], ...] = ()
    """Since which event it has had each device, by the device's name without regard to case: two events may share a
    millisecond, but not a number."""
    holds: tuple[Hold, ...] = ()
    device_holds: tuple[DeviceHold, ...] = ()
    terms: Terms = Terms()
    class_override: ClassOverride | None = None
    lease_policy: LeasePolicy | None = None
    reliability: Reliability = Reliability()
    flaps: Flaps = Flaps()
    alerts: tuple[Alert, ...] = ()
    """The newest last."""
    alert_count: int = 0
    overlay_host: int = 0
    """Its own number in the overlay's address plan, for as long as it is known; 0: it was never able to be in one."""

    @property
    def placeable(self) -> bool:
        """Whether new members may be placed here."""
        return self.liveness is Liveness.LIVE and not self.draining and not self.holds

    @property
    def shut_out(self) -> Hold | None:
        """The hold for which it gets no session; None where it may come."""
        return next((hold for hold in self.holds if hold.kind in SHUT_OUT), None)

    def hold(self, kind: HoldKind) -> Hold | None:
        """Its hold of one kind."""
        return next((hold for hold in self.holds if hold.kind is kind), None)

    def lost_after_ms(self, policy: FleetPolicy) -> int:
        """Silence that makes it lost."""
        return policy.lost_after_ms if self.lease_policy is None else self.lease_policy.lost_after_ms

    def lease_ttl_ms(self, policy: FleetPolicy) -> int:
        """Silence after which its nodes end themselves: before it is lost, by the same margin for everybody."""
        return self.lost_after_ms(policy) - (policy.lost_after_ms - policy.lease_ttl_ms)


@dataclass(frozen=True, slots=True)
class FleetPolicy:
    """When silence counts. All in milliseconds of the control plane's monotonic clock."""

    heartbeat_interval_ms: int = 5_000
    suspect_after_ms: int = 26_000
    """Five missed heartbeats: where 2 % are lost, that happens by chance once in 50 years of a worker, and a dead one is
    still seen within 30 s."""
    lease_ttl_ms: int = 60_000
    """Nodes end themselves this long after the sending of their last acknowledged heartbeat."""
    lost_after_ms: int = 75_000
    """Later than ``lease_ttl_ms``, so that a lost worker's nodes have ended before they are replaced."""
    zone_hold_ratio: float = 0.55
    """When at least this part of a zone is silent, the fault is likelier ours: nobody is evicted."""
    zone_hold_min_workers: int = 3
    """Below this a zone is too small for the ratio to mean anything."""
    zone_hold_min_suppliers: int = 2
    """A zone is a supplier's own word, so one supplier's machines that fall silent together vouch for nobody. In a
    network of fewer suppliers all of them suffice."""
    zone_window_ms: int = 900_000
    """Silences that began within this long count as one; a zone dark for longer is dark, and its work is moved."""
    notice_ms_min: int = 1_000
    """A reclaim gives a job at least this long, whoever asks."""
    certificate_life_ms: int = 24 * 3_600_000
    recoveries_max: int = 5
    """Each shows a machine that was away for longer than a certificate lives; more of them is no outage any more."""
    recoveries_half_life_ms: int = 24 * 3_600_000
    """A machine that is off for most of each day recovers once a day, which comes to two at most; a key that recovers
    again and again comes to the limit."""
    open_enrolment: bool = False
    """Whether strangers may join without a token."""
    probation_ms: int = 3_600_000
    """A stranger's machine must be live for this long without a break before it is given paid work."""
    probation_evidence: EvidenceClass = EvidenceClass.T2
    """What every device of a stranger must show before that: heartbeats alone can be sent by anything."""
    unconnected_max_ms: int = 3_600_000
    """A stranger that has not come for an hour after joining is forgotten: its machine was there a moment ago."""
    newcomer_silence_max_ms: int = 24 * 3_600_000
    """So is one on probation that stays away for a day."""
    probation_max: int = 20_000
    """Strangers that may be on probation at once; the next waits for one of them."""
    flaps_max: int = 3
    """Silences within ``flaps_half_life_ms`` that are taken for bad luck."""
    flaps_half_life_ms: int = 600_000
    flap_hold_ms: int = 60_000
    """The first back-off of a flapping worker; it doubles with each further silence."""
    flap_hold_max_ms: int = 3_600_000
    reliability_half_life_ms: int = 7 * 24 * 3_600_000
    """What a worker did a week ago counts half."""
    outdated_grace_ms: int = 14 * 24 * 3_600_000
    """An agent that fell out of the supported window goes on working this long."""
