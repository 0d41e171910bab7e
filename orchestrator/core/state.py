"""State: every entity in a table, and the indexes that decisions and plans read instead of searching.

``put`` and ``remove`` are the only ways in, used by ``apply`` and by loading alike, so the indexes of a loaded state are
those of an applied one. What they touched is what the store writes and what effects are derived from.
"""

from __future__ import annotations

import bisect
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.core.clusters import (
    WANTED,
    Cluster,
    ClusterPhase,
    Member,
    MemberPhase,
    MemberRole,
)
from orchestrator.core.entities import (
    CONTROL_KEY,
    TABLE_OF,
    TABLES,
    Control,
    Entity,
    RequestRecord,
    key_of,
)
from orchestrator.core.ids import (
    AttemptId,
    ClusterId,
    DeviceId,
    JobId,
    LeaseId,
    MemberId,
    Now,
    ReservationId,
    SupplierId,
    TenantId,
    WorkerId,
)
from orchestrator.core.indexes import Indexes
from orchestrator.core.jobs import Attempt, AttemptPhase, Job, JobStatus
from orchestrator.core.metering import Lease, Receipt, Statement
from orchestrator.core.supply.fleet import Liveness, Supplier, Token, Worker
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.tenancy.reservations import Reservation
from orchestrator.core.tenancy.tenants import Tenant
from orchestrator.core.watched import mark

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from orchestrator.core.policies import Policies


class State(Indexes):
    """Everything the control plane has decided, in memory. Only the loop changes it."""

    def __init__(self, policies: Policies) -> None:
        super().__init__(policies)
        self.policies = policies
        self.version = 0
        """Events applied since the beginning of the network."""
        self.latest_ms = 0
        """Control time of the last event: no later one is earlier, whatever the wall clock says."""
        self.capacity_version = 0
        """Changes whenever a plan's assumptions may; not stored: a plan never outlives a process."""
        self.queue_version = 0
        """Changes whenever a job enters the queue; not stored either."""
        self.control = Control("", 0, 0, 0, "")
        self.requests: dict[str, RequestRecord] = {}
        self.suppliers: dict[str, Supplier] = {}
        self.tenants: dict[TenantId, Tenant] = {}
        self.tokens: dict[str, Token] = {}
        self.workers: dict[WorkerId, Worker] = {}
        self.clusters: dict[ClusterId, Cluster] = {}
        self.members: dict[MemberId, Member] = {}
        self.jobs: dict[JobId, Job] = {}
        self.attempts: dict[AttemptId, Attempt] = {}
        self.leases: dict[LeaseId, Lease] = {}
        self.statements: dict[str, Statement] = {}
        self.receipts: dict[str, Receipt] = {}
        self.reservations: dict[ReservationId, Reservation] = {}
        self._touched: dict[tuple[str, str], None] = {}

    # ------------------------------------------------------------ time

    def time_ms(self, now: Now) -> int:
        """Control time: wall-clock ms that never runs backwards, steered by the boot clock between starts."""
        if now.boot_id == self.control.boot_id:
            return self.control.at_ms + max(0, now.monotonic_ms - self.control.monotonic_ms)
        return max(self.latest_ms, now.wall_ms)

    @property
    def overlay_offered(self) -> bool:
        """Whether this network has an overlay at all."""
        return self.policies.clusters.overlay_hosts_max > 0

    @property
    def default_runtime(self) -> str:
        """Digest of the runtime of a job that names none."""
        return self.policies.jobs.default_runtime

    @property
    def reliability_half_life_ms(self) -> int:
        """How long what a worker did counts more than half."""
        return self.policies.fleet.reliability_half_life_ms

    def market_price(self, model: str) -> int:
        """Microcredits per device and hour of a model whose owner asks no price of his own."""
        known = self.policies.market.get(model)
        return 0 if known is None else known.microcredits_per_gpu_hour

    def price_of(self, worker: Worker, model: str) -> int:
        """Microcredits per device and hour of a worker: its owner's ask, else the market's price."""
        for ask in worker.terms.asks:
            if ask.model == model:
                return ask.microcredits_per_gpu_hour
        return self.market_price(model)

    # ------------------------------------------------------------ writing

    def put(self, entity: Entity) -> None:
        """Add or replace an entity and keep every index true."""
        key = key_of(entity)
        self._touched[TABLE_OF[type(entity)], key] = None
        match entity:
            # Those that change most come first: each case before costs a look.
            case Member():
                self._put_member(entity)
            case Job():
                self._put_job(entity)
            case Cluster():
                self._put_cluster(entity)
            case Attempt():
                self._put_attempt(entity)
            case Tenant():
                self.tenants[entity.tenant_id] = entity
            case Control():
                self.control = entity
            case RequestRecord():
                self.requests[key] = entity
            case Supplier():
                self.suppliers[key] = entity
                if not entity.vouched:
                    self.suppliers_unvouched[entity.supplier_id] = None
            case Token():
                self.tokens[key] = entity
                self.token_by_hash[entity.secret_sha256] = entity
                self.token_subjects[entity.subject_id] = None
            case Worker():
                self._put_worker(entity)
            case Lease():
                self._put_lease(entity)
            case Statement():
                if key not in self.statements:
                    self.statements_of.setdefault(entity.lease_id, []).append(key)
                self.statements[key] = entity
            case Receipt():
                self._put_receipt(entity)
            case Reservation():
                self.reservations[entity.reservation_id] = entity
                self.bookings.put(entity, self.queues)
                self.capacity_version += 1

    def remove_job(self, job_id: JobId) -> None:
        """Forget an ended job; its attempts, leases and receipts stay as the record of what was paid."""
        job = self.jobs.pop(job_id)
        self.tallies.put_job(job, None, was_queued=False, queued=False)
        del self.jobs_by_submission[job.tenant_id, job.submission_id]
        del self.jobs_of[job.tenant_id][job_id]
        self._touched["jobs", job_id] = None

    def remove_worker(self, worker_id: WorkerId) -> None:
        """Forget a worker that never held anything."""
        worker = self.workers.pop(worker_id)
        self.tallies.put_worker(worker, None, frozenset())
        del self.worker_by_key[worker.statement_key]
        self.overlay_hosts.pop(worker.overlay_host, None)
        del self.workers_of[worker.supplier_id][worker_id]
        self.claims.remove(worker, self)
        self.newcomers.remove(worker_id)
        self.watched.remove_worker(worker_id)
        self.heartbeats.forget(worker_id)
        self.latency.forget(worker_id)
        self.groups.remove(worker_id)
        self.bandwidth.forget(worker_id)
        for index in (self.on_probation, self.outdated, self.alerting):
            index.pop(worker_id, None)
        self.head_hosts.pop(worker_id, None)
        self.caches.forget(worker_id)
        self.offers.remove(worker_id)
        del self.free_devices[worker_id]
        self.capacity_version += 1
        self._touched["workers", worker_id] = None

    def remove_supplier(self, supplier_id: SupplierId) -> None:
        """Forget a supplier without workers, tokens and receipts."""
        del self.suppliers[supplier_id]
        self.suppliers_unvouched.pop(supplier_id, None)
        self.workers_of.pop(supplier_id, None)
        self._touched["suppliers", supplier_id] = None

    def remove_reservation(self, reservation_id: ReservationId) -> None:
        """Forget one that has ended."""
        self.bookings.forget(self.reservations.pop(reservation_id))
        self._touched["reservations", reservation_id] = None

    def remove_request(self, key: str) -> None:
        """Forget an idempotency record."""
        del self.requests[key]
        self._touched["requests", key] = None

    def take_touched(self) -> list[tuple[str, str]]:
        """(table, key) of everything changed since the last call."""
        touched = list(self._touched)
        self._touched = {}
        return touched

    def entity(self, table: str, key: str) -> Entity | None:
        """The entity of a row; None when it was removed."""
        if table == "control":
            return self.control
        found: Entity | None = getattr(self, table).get(key)
        return found

    def rows(self) -> dict[str, dict[str, Entity]]:
        """Every stored entity by table and key: what two states are compared by."""
        tables: dict[str, dict[str, Entity]] = {
            table: dict(getattr(self, table)) for table in TABLES if table != "control"
        }
        tables["control"] = {CONTROL_KEY: self.control}
        return tables

    # ------------------------------------------------------------ indexes

    def _put_worker(self, worker: Worker) -> None:
        old = self.workers.get(worker.worker_id)
        self.workers[worker.worker_id] = worker
        self.worker_by_key[worker.statement_key] = worker.worker_id
        self.workers_of.setdefault(worker.supplier_id, {})[worker.worker_id] = None
        if worker.overlay_host:
            self.overlay_hosts[worker.overlay_host] = worker.worker_id
        self.claims.put(old, worker, self)
        stranger = worker.supplier_id in self.suppliers_unvouched
        self.newcomers.put(worker, self.policies.fleet, stranger=stranger)
        self.heartbeats.follow(worker, self.policies.fleet)
        newcomer = worker.hold(HoldKind.PROBATION) is not None and worker.hold(HoldKind.REVOKED) is None
        mark(self.on_probation, worker.worker_id, on=newcomer)
        mark(self.outdated, worker.worker_id, on=worker.outdated_since_ms is not None)
        mark(self.alerting, worker.worker_id, on=any(not alert.settled for alert in worker.alerts))
        self.watched.put_worker(worker)
        self.offers.put(worker)
        self.groups.put(worker, self.offers.number_of(worker.worker_id))
        if worker.liveness is Liveness.LEFT:
            self.caches.forget(worker.worker_id)
        self.tallies.put_worker(old, worker, self._reindex(worker.worker_id))

    def _put_member(self, member: Member) -> None:
        old = self.members.get(member.member_id)
        self.members[member.member_id] = member
        on_worker = self.members_on.setdefault(member.worker_id, {})
        of_cluster = self.members_of.setdefault(member.cluster_id, {})
        if member.phase is MemberPhase.RELEASED:
            on_worker.pop(member.member_id, None)
            of_cluster.pop(member.member_id, None)
            if self.overlay_hosts.get(member.overlay_host) == member.member_id:
                del self.overlay_hosts[member.overlay_host]
        else:
            if member.overlay_host:
                self.overlay_hosts[member.overlay_host] = member.member_id
            on_worker[member.member_id] = None
            of_cluster[member.member_id] = None
        noticed = member.notice is not None and member.phase in WANTED
        mark(self.noticed, member.member_id, on=noticed)
        self.watched.put_member(member)
        self._reindex(member.worker_id)
        self.tallies.put_member(old, member, self.workers[member.worker_id])

    def _reindex(self, worker_id: WorkerId) -> AbstractSet[DeviceId]:
        """Recompute what one worker has free; what members have of it. A held device is free only when its member is
        RELEASED.
        """
        self.capacity_version += 1
        worker = self.workers[worker_id]
        members = [self.members[member_id] for member_id in self.members_on.get(worker_id, ())]
        given: set[DeviceId] = set()
        heads = 0
        for member in members:
            given.update(member.device_ids)
            heads += member.role is MemberRole.HEAD
        held = given.union(hold.device_id for hold in worker.device_holds) if worker.device_holds else given
        free = {device.device_id: None for device in worker.inventory.devices if device.device_id not in held}
        self.free_devices[worker_id] = free
        self.offers.hold(worker_id, free, worker.inventory.slots - (len(members) - heads))
        free_heads = worker.inventory.head_slots - heads
        if free_heads > 0 and worker.head_host and worker.placeable:
            self.head_hosts[worker_id] = free_heads
        else:
            self.head_hosts.pop(worker_id, None)
        return given

    def _put_cluster(self, cluster: Cluster) -> None:
        old = self.clusters.get(cluster.cluster_id)
        if old is not None and old.spare_for and self.spares.get(old.spare_for) == old.cluster_id:
            del self.spares[old.spare_for]
        self.tallies.put_cluster(old, cluster)
        closing = cluster.phase in (ClusterPhase.CLOSING, ClusterPhase.CLOSED)
        if cluster.spare_for is not None and not closing:
            self.spares[cluster.spare_for] = cluster.cluster_id
        self.clusters[cluster.cluster_id] = cluster
        self.watched.put_cluster(cluster, self.jobs.get(cluster.spare_for) if cluster.spare_for else None)
        self.bookings.put_cluster(cluster, closed=cluster.phase is ClusterPhase.CLOSED)
        self.capacity_version += 1
        mark(self.idle_clusters, cluster.cluster_id, on=cluster.idle_since_ms is not None and not closing)
        if cluster.phase is not ClusterPhase.JOINING:
            self.formations.pop(cluster.cluster_id, None)
        if cluster.phase is ClusterPhase.CLOSED:
            self.open_clusters.pop(cluster.cluster_id, None)
            self.clusters_of.get(cluster.tenant_id, {}).pop(cluster.cluster_id, None)
        else:
            self.open_clusters[cluster.cluster_id] = None
            self.clusters_of.setdefault(cluster.tenant_id, {})[cluster.cluster_id] = None

    def _put_job(self, job: Job) -> None:
        old = self.jobs.get(job.job_id)
        was_queued, queued = old is not None and is_queued(old), is_queued(job)
        self.tallies.put_job(old, job, was_queued=was_queued, queued=queued)
        queues, name = self.bookings.queues_of(job, self.queues)
        if queued and not was_queued:
            bisect.insort(queues.setdefault(name, []), job.queue_place)
            self.queue_version += 1
        elif was_queued and not queued:
            queue = queues[name]
            del queue[bisect.bisect_left(queue, job.queue_place)]
            if not queue:
                del queues[name]
            self.waiting.pop(job.job_id, None)
        self.jobs[job.job_id] = job
        mark(self.entitled, job.job_id, on=queued and job.overtaken >= self.policies.jobs.overtaken_max)
        if queued and job.promise is not None:
            self.promises[job.job_id] = job.promise
        else:
            self.promises.pop(job.job_id, None)
        self.watched.put_job(job)
        if old is None:
            self.jobs_by_submission[job.tenant_id, job.submission_id] = job.job_id
            self.jobs_of.setdefault(job.tenant_id, {})[job.job_id] = None
            self.demand.arrived(job.request.requirements, job.submitted_at_ms)

    def _put_attempt(self, attempt: Attempt) -> None:
        self.attempts[attempt.attempt_id] = attempt
        self.watched.put_attempt(attempt, self.jobs.get(attempt.job_id), self.policies.jobs.stop_grace_ms)
        open_logs = self.logs_open_in.setdefault(attempt.cluster_id, {})
        if attempt.log_complete:
            open_logs.pop(attempt.attempt_id, None)
        else:
            open_logs[attempt.attempt_id] = None
        if attempt.phase is not AttemptPhase.ENDED:
            self.attempt_in[attempt.cluster_id] = attempt.attempt_id
        elif self.attempt_in.get(attempt.cluster_id) == attempt.attempt_id:
            del self.attempt_in[attempt.cluster_id]
        if self.attempt_in.get(attempt.cluster_id, attempt.attempt_id) == attempt.attempt_id:
            self.watched.put_interruptible(attempt, self.jobs.get(attempt.job_id))

    def _put_lease(self, lease: Lease) -> None:
        self.tallies.put_lease(self.leases.get(lease.lease_id), lease)
        self.leases[lease.lease_id] = lease
        self.watched.put_lease(lease.member_id)
        self.leases_of.setdefault(lease.attempt_id, {})[lease.lease_id] = None
        running = self.leases_on.setdefault(lease.member_id, {})
        if lease.ended_ms is None:
            running[lease.lease_id] = None
        else:
            running.pop(lease.lease_id, None)
        unsettled_here = self.unsettled_on.setdefault(lease.worker_id, {})
        unsettled_theirs = self.unsettled_of.setdefault(lease.tenant_id, {})
        for unsettled in (self.unsettled_leases, unsettled_here, unsettled_theirs):
            if lease.settled:
                unsettled.pop(lease.lease_id, None)
            else:
                unsettled[lease.lease_id] = None

    def _put_receipt(self, receipt: Receipt) -> None:
        key = receipt.receipt_id
        self.tallies.put_receipt(self.receipts.get(key), receipt)
        if key not in self.receipts:
            bisect.insort(
                self.receipts_of.setdefault(receipt.lease_id, []),
                key,
                key=lambda name: self._receipt_order(name, receipt),
            )
        self.receipts[key] = receipt
        self.unsigned.pop(key, None)
        self.unposted.pop(key, None)
        if not receipt.envelope:
            self.unsigned[key] = receipt.issued_at_ms
        elif not receipt.transfer_id:
            self.unposted[key] = receipt.issued_at_ms

    def _receipt_order(self, name: str, newcomer: Receipt) -> int:
        return newcomer.sequence if name == newcomer.receipt_id else self.receipts[name].sequence

    # ------------------------------------------------------------ reading

    def cluster_members(self, cluster: Cluster) -> list[Member]:
        """The members that count, in order of their ordinals."""
        return [self.members[member_id] for member_id in cluster.member_ids]

    def job_of(self, cluster: Cluster) -> Job | None:
        """The job that a cluster runs or forms for."""
        attempt_id = self.attempt_in.get(cluster.cluster_id)
        if attempt_id is not None:
            return self.jobs[self.attempts[attempt_id].job_id]
        return self.jobs.get(cluster.spare_for) if cluster.spare_for is not None else None

    def wanted_on(self, worker_id: WorkerId) -> list[Member]:
        """Members the worker is told to have."""
        members = (self.members[member_id] for member_id in self.members_on.get(worker_id, ()))
        return [member for member in members if member.phase in WANTED]

    def free_slot(self, worker_id: WorkerId, taken: set[int]) -> int:
        """The lowest slot of a worker that no member holds and that is not in ``taken``."""
        held = {self.members[member_id].slot for member_id in self.members_on.get(worker_id, ())}
        slot = 0
        while slot in held or slot in taken:
            slot += 1
        return slot

    def shown(self, job: Job) -> Job:
        """A job as people see it: a queued one with the reason why it waits and how many come before it."""
        before = self.jobs_before(job)
        reason = self.waiting.get(job.job_id) or self.bookings.waiting_words(job, queued=is_queued(job))
        if reason is None and before == 0:
            return job
        said = job.message.removesuffix(".")
        if reason is not None:
            # Who had to give way is told so for as long as it waits for its next try.
            said = f"{said}; {reason}" if job.gave_way else reason
        return replace(job, message=f"{said}, behind {before} of your jobs" if before else said)

    def jobs_before(self, job: Job) -> int:
        """How many of its queue's jobs a queued job waits behind; 0 for one that is not queued."""
        queues, name = self.bookings.queues_of(job, self.queues)
        queue = queues.get(name, []) if is_queued(job) else []
        return bisect.bisect_left(queue, job.queue_place)

    def is_idle(self, cluster_id: ClusterId) -> bool:
        """Whether a cluster is READY and clean, free for its tenant's next job."""
        cluster = self.clusters[cluster_id]
        return cluster.phase is ClusterPhase.READY and cluster.idle_since_ms is not None

    def job_named(self, tenant_id: TenantId, name: str) -> Job | None:
        """A tenant's job by submission id or job id."""
        job_id = self.jobs_by_submission.get((tenant_id, name))
        job = self.jobs.get(job_id if job_id is not None else JobId(name))
        return job if job is not None and job.tenant_id == tenant_id else None


def is_queued(job: Job) -> bool:
    """Whether a job waits for its cluster."""
    return job.status is JobStatus.PENDING and job.attempt_id is None
