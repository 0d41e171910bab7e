"""What ticks and plans look at instead of walking the fleet: the few workers, members and spares that may change.

Derived from the entities as they are put, so a loaded state has the same keys as an applied one. The times beside the
keys only save work and are never stored: 0 means "look at once".
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, TypeVar

from orchestrator.core.clusters import WANTED, Cluster, ClusterPhase, Member
from orchestrator.core.jobs import AttemptPhase
from orchestrator.core.supply.fleet import Liveness, Worker
from orchestrator.core.supply.holds import HoldKind

if TYPE_CHECKING:
    from orchestrator.core.ids import AttemptId, ClusterId, JobId, MemberId, TenantId, WorkerId
    from orchestrator.core.jobs import Attempt, Job, Nomination

K = TypeVar("K")

NEVER_MS = 1 << 62
"""Nothing is due before something about the entity changes: far beyond any clock."""


class Watched:
    """Indexes of ``State``, kept true by its ``put``."""

    def __init__(self) -> None:
        self.workers_due_ms: dict[WorkerId, int] = {}
        """Workers whose holds time may place or lift, and when to look at them next."""
        self.members_due_ms: dict[MemberId, int] = {}
        """Members that run under a schedule or a longest lease, and when to look at them next."""
        self.attempts_due: list[tuple[int, AttemptId]] = []
        """Tries that run under a time limit, by when it is over, the first first."""
        self._due_ms: dict[AttemptId, int] = {}
        self.replacing: dict[WorkerId, None] = {}
        """Suspect workers for which a replacement is formed already."""
        self.shut_out: dict[WorkerId, None] = {}
        self.spares_closed: dict[JobId, tuple[int, ClusterId]] = {}
        """When the last spare of a job was closed again, and which: another one follows only after a pause."""
        self.interruptible: dict[TenantId, dict[ClusterId, None]] = {}
        """Clusters whose job may be made to give way, by tenant, in the order in which they were given it."""
        self.nominated: dict[JobId, Nomination] = {}
        """What is kept for queued jobs for which others give way, or was: a nomination has an end."""

    def put_worker(self, worker: Worker) -> None:
        """A worker was added or changed."""
        worker_id = worker.worker_id
        timed = (
            bool(worker.terms.schedule)
            or worker.hold(HoldKind.SCHEDULE) is not None
            or any(hold.until_ms is not None for hold in worker.holds)
        )
        if timed:
            self.workers_due_ms[worker_id] = 0
        else:
            self.workers_due_ms.pop(worker_id, None)
        policy = worker.lease_policy
        replaced = worker.liveness is Liveness.SUSPECT and policy is not None and policy.replace
        mark(self.replacing, worker_id, on=replaced)
        mark(self.shut_out, worker_id, on=worker.shut_out is not None)

    def remove_worker(self, worker_id: WorkerId) -> None:
        """A worker is forgotten."""
        self.workers_due_ms.pop(worker_id, None)
        self.replacing.pop(worker_id, None)
        self.shut_out.pop(worker_id, None)

    def put_member(self, member: Member) -> None:
        """A member was added or changed."""
        limited = bool(member.terms.schedule) or member.terms.lease_max_ms is not None
        if limited and member.phase in WANTED:
            self.members_due_ms[member.member_id] = 0
        else:
            self.members_due_ms.pop(member.member_id, None)

    def put_attempt(self, attempt: Attempt, job: Job | None, stop_grace_ms: int) -> None:
        """An attempt was added or changed. One that is told to stop has the grace for that."""
        attempt_id = attempt.attempt_id
        before_ms = self._due_ms.pop(attempt_id, None)
        if before_ms is not None:
            del self.attempts_due[bisect.bisect_left(self.attempts_due, (before_ms, attempt_id))]
        limit_ms = 0 if job is None else job.request.time_limit_ms
        if limit_ms and attempt.phase is AttemptPhase.RUNNING and attempt.started_at_ms is not None:
            told_ms = attempt.timed_out_ms
            due_ms = attempt.started_at_ms + limit_ms if told_ms is None else told_ms + stop_grace_ms
            self._due_ms[attempt_id] = due_ms
            bisect.insort(self.attempts_due, (due_ms, attempt_id))

    def put_lease(self, member_id: MemberId) -> None:
        """A lease of the member began or ended: its longest one counts anew."""
        if member_id in self.members_due_ms:
            self.members_due_ms[member_id] = 0

    def put_cluster(self, cluster: Cluster, job: Job | None) -> None:
        """A cluster was added or changed; ``job`` is the one it is a spare for, where that is known already."""
        closing = cluster.phase in (ClusterPhase.CLOSING, ClusterPhase.CLOSED)
        if closing and cluster.spare_for is not None and (job is None or not job.status.terminal):
            closed = (cluster.phase_since_ms, cluster.cluster_id)
            self.spares_closed[cluster.spare_for] = max(
                closed, self.spares_closed.get(cluster.spare_for, closed)
            )

    def put_job(self, job: Job) -> None:
        """A job was added or changed: one that has ended wants no spare any more."""
        if job.status.terminal:
            self.spares_closed.pop(job.job_id, None)
        if job.nomination is not None and job.attempt_id is None and not job.status.terminal:
            self.nominated[job.job_id] = job.nomination
        else:
            self.nominated.pop(job.job_id, None)

    def put_interruptible(self, attempt: Attempt, job: Job | None) -> None:
        """The attempt that counts in its cluster was added or changed; ``job`` is None where it is forgotten already."""
        if attempt.phase is not AttemptPhase.ENDED and job is not None and job.request.interruptible:
            self.interruptible.setdefault(attempt.tenant_id, {})[attempt.cluster_id] = None
        elif attempt.tenant_id in self.interruptible:
            clusters = self.interruptible[attempt.tenant_id]
            clusters.pop(attempt.cluster_id, None)
            if not clusters:
                del self.interruptible[attempt.tenant_id]


def mark(index: dict[K, None], key: K, *, on: bool) -> None:
    """Have a key in an index, or not."""
    if on:
        index[key] = None
    else:
        index.pop(key, None)
