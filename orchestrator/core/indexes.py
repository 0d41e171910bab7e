"""What State keeps beside its tables: indexes, so that nobody searches, and measurements. Nothing of it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core.formation import Formation
from orchestrator.core.ids import (
    AttemptId,
    ClusterId,
    DeviceId,
    JobId,
    LeaseId,
    MemberId,
    SupplierId,
    TenantId,
    WorkerId,
)
from orchestrator.core.jobs import Promise
from orchestrator.core.nearness.bandwidth import BandwidthMap
from orchestrator.core.nearness.grouping import Groups
from orchestrator.core.nearness.latency import LatencyMap
from orchestrator.core.scheduling.assembling import KNOWN_MS_MAX
from orchestrator.core.scheduling.demand import Demand
from orchestrator.core.scheduling.offers import Offers
from orchestrator.core.supply.caches import Caches
from orchestrator.core.supply.claims import Claims
from orchestrator.core.supply.fleet import Token
from orchestrator.core.supply.liveness import HeartbeatTable
from orchestrator.core.supply.newcomers import Newcomers
from orchestrator.core.tallies import Tallies
from orchestrator.core.tenancy.reservations import Bookings
from orchestrator.core.watched import Watched

if TYPE_CHECKING:
    from orchestrator.core.policies import Policies


class Indexes:
    """Maintained by State alone; decisions, plans and queries read them."""

    def __init__(self, policies: Policies) -> None:
        self.bookings = Bookings(policies.reservations)
        """Reservations that count, and whose jobs wait for them."""
        self._index_supply()
        self._index_work()
        self.tallies = Tallies()
        """How many there are of what."""
        self.heartbeats = HeartbeatTable()
        self.latency = LatencyMap()
        """Round trips between workers: measurements."""
        self.groups = Groups(self.latency, policies.groups, KNOWN_MS_MAX)
        """Who is alike and near by these."""
        self.bandwidth = BandwidthMap()
        """What ways between workers carried lately: measurements."""
        self.zones_held: frozenset[str] = frozenset()
        """Zones of which so much is silent that nobody is evicted: a measurement."""
        self.waiting: dict[JobId, str] = {}
        """Why each queued job waits, as the last plan saw it: a measurement."""
        self.formations: dict[ClusterId, Formation] = {}
        """What is said of each JOINING cluster: measurements."""

    def _index_supply(self) -> None:
        self.token_by_hash: dict[str, Token] = {}
        self.worker_by_key: dict[str, WorkerId] = {}
        self.claims = Claims()
        self.newcomers = Newcomers()
        self.suppliers_unvouched: dict[SupplierId, None] = {}
        self.workers_of: dict[SupplierId, dict[WorkerId, None]] = {}
        self.token_subjects: dict[str, None] = {}
        """Tenants and suppliers that some token names."""
        self.outdated: dict[WorkerId, None] = {}
        """Workers whose agent has fallen out of the supported window."""
        self.on_probation: dict[WorkerId, None] = {}
        """Newcomers that may yet be given paid work."""
        self.alerting: dict[WorkerId, None] = {}
        """Workers whose owner has yet to be told something."""
        self.spares: dict[JobId, ClusterId] = {}
        """Clusters that stand ready for the next attempt of a running job."""
        self.noticed: dict[MemberId, None] = {}
        """Members that run and are about to go."""
        self.overlay_hosts: dict[int, MemberId | WorkerId] = {}
        """Numbers of the overlay's address plan that workers and members not RELEASED have."""
        self.members_on: dict[WorkerId, dict[MemberId, None]] = {}
        """Members not RELEASED, by worker."""
        self.free_devices: dict[WorkerId, dict[DeviceId, None]] = {}
        self.offers = Offers()
        self.caches = Caches(self.offers.number_of)
        """What lies ready on workers: measurements, never stored."""
        self.head_hosts: dict[WorkerId, int] = {}
        """Free head slots of placeable head hosts."""
        self.watched = Watched()

    def _index_work(self) -> None:
        self.open_clusters: dict[ClusterId, None] = {}
        self.idle_clusters: dict[ClusterId, None] = {}
        """Clusters that are kept warm without a job."""
        self.clusters_of: dict[TenantId, dict[ClusterId, None]] = {}
        """Clusters not CLOSED, by tenant."""
        self.members_of: dict[ClusterId, dict[MemberId, None]] = {}
        """Members not RELEASED, by cluster: replaced ones too, until they are gone."""
        self.attempt_in: dict[ClusterId, AttemptId] = {}
        """The attempt not ENDED in a cluster: one at a time."""
        self.logs_open_in: dict[ClusterId, dict[AttemptId, None]] = {}
        self.queues: dict[TenantId, list[tuple[int, int, JobId]]] = {}
        """Queued jobs by tenant as (-priority, submitted_at_ms, job_id), in order; none for a tenant without any."""
        self.entitled: dict[JobId, None] = {}
        """Queued jobs that were overtaken often enough, in the order in which they became so."""
        self.promises: dict[JobId, Promise] = {}
        """What is kept for queued jobs until what runs there has ended: few have one."""
        self.demand = Demand()
        """What was asked for lately."""
        self.jobs_by_submission: dict[tuple[TenantId, str], JobId] = {}
        self.jobs_of: dict[TenantId, dict[JobId, None]] = {}
        self.leases_of: dict[AttemptId, dict[LeaseId, None]] = {}
        self.leases_on: dict[MemberId, dict[LeaseId, None]] = {}
        """Leases that run, by member."""
        self.unsettled_leases: dict[LeaseId, None] = {}
        self.unsettled_on: dict[WorkerId, dict[LeaseId, None]] = {}
        self.unsettled_of: dict[TenantId, dict[LeaseId, None]] = {}
        self.statements_of: dict[LeaseId, list[str]] = {}
        self.receipts_of: dict[LeaseId, list[str]] = {}
        self.unsigned: dict[str, int] = {}
        """When each was issued, in ms; of ``unposted`` likewise."""
        self.unposted: dict[str, int] = {}
