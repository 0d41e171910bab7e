"""Spare clusters: formed while a job still runs on machines that are about to go, and taken by its next attempt.

A spare belongs to its job: no other takes it, no idle time ends it while the job may need it, and it never outlives it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.decisions.leaving import leaving_in
from orchestrator.core.jobs import Attempt, AttemptPhase, Job
from orchestrator.core.preemption import gives_way
from orchestrator.core.scheduling.placement import SpareNeed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.clusters import Cluster
    from orchestrator.core.ids import ClusterId, JobId, WorkerId
    from orchestrator.core.state import State

SPARE_PAUSE_MS = 5_000
"""After a spare that closed: a machine that fails at once is not asked in a tight circle, and notices are short."""

NOT_NEEDED = "its job does not need it any more"


def spare_needs(state: State, at_ms: int) -> list[SpareNeed]:
    """One for each running job whose machines are about to go and for which none stands ready or forms."""
    cluster_ids: dict[ClusterId, None] = {
        state.members[member_id].cluster_id: None for member_id in state.noticed
    }
    for worker_id in state.watched.replacing:
        cluster_ids.update((member.cluster_id, None) for member in state.wanted_on(worker_id))
    found = []
    for cluster_id in cluster_ids:
        attempt_id = state.attempt_in.get(cluster_id)
        if attempt_id is None:
            continue
        job = state.jobs[state.attempts[attempt_id].job_id]
        if not wants_spare(state, job.job_id) or _pausing(state, job.job_id, at_ms):
            continue
        avoid = {member.worker_id for member in leaving_in(state, state.clusters[cluster_id])}
        avoid.update(_failed_lately(state, job.job_id, at_ms))
        wanted, packages = job.request.requirements, job.request.package_hashes
        found.append(SpareNeed(job.job_id, job.tenant_id, wanted, tuple(sorted(avoid)), packages))
    return found


def wants_spare(state: State, job_id: JobId) -> bool:
    """Whether a job runs on machines that are about to go, and has no spare."""
    job = state.jobs.get(job_id)
    if job is None or job.attempt_id is None or job.stop_requested or job_id in state.spares:
        return False
    attempt = state.attempts[job.attempt_id]
    if gives_way(job, attempt):
        # It goes back to the queue: formed ahead, its next cluster might take what it gives way from.
        return False
    cluster = state.clusters[attempt.cluster_id]
    running = attempt.phase is AttemptPhase.RUNNING and not attempt.timed_out
    running = running and cluster.phase is ClusterPhase.READY
    return running and bool(leaving_in(state, cluster))


def _pausing(state: State, job_id: JobId, at_ms: int) -> bool:
    closed = state.watched.spares_closed.get(job_id)
    return closed is not None and at_ms - closed[0] < SPARE_PAUSE_MS


def _failed_lately(state: State, job_id: JobId, at_ms: int) -> Iterator[WorkerId]:
    """Workers that failed the last spare: not asked again before others."""
    closed = state.watched.spares_closed.get(job_id)
    if closed is None or at_ms - closed[0] >= state.policies.jobs.avoid_ms:
        return
    for member in state.cluster_members(state.clusters[closed[1]]):
        if member.reason:
            yield member.worker_id


# ---------------------------------------------------------------- consequences and time


def after_placed(state: State, attempt: Attempt) -> Iterator[m.Event]:
    """The job has a cluster again: its spare, which is one as any other then, or another one instead."""
    spare_id = state.spares.get(attempt.job_id)
    if spare_id == attempt.cluster_id:
        yield m.SpareReleased(spare_id)
    elif spare_id is not None:
        yield m.ClusterClosing(spare_id, NOT_NEEDED)


def after_job_over(state: State, job_id: JobId) -> Iterator[m.Event]:
    """A job that ends wants no next attempt."""
    spare_id = state.spares.get(job_id)
    if spare_id is not None:
        yield m.ClusterClosing(spare_id, NOT_NEEDED)


def tick_spares(state: State, at_ms: int) -> Iterator[m.Event]:
    """Close the spares whose job stays where it is, or could not make use of them."""
    for job_id, cluster_id in state.spares.items():
        reason = _useless(state, state.jobs[job_id], state.clusters[cluster_id], at_ms)
        if reason:
            yield m.ClusterClosing(cluster_id, reason)


def _useless(state: State, job: Job, spare: Cluster, at_ms: int) -> str:
    """Why a spare is of no use any more; empty where it may be."""
    policy = state.policies.clusters
    if job.attempt_id is not None:
        cluster = state.clusters[state.attempts[job.attempt_id].cluster_id]
        return "" if leaving_in(state, cluster) else NOT_NEEDED
    if spare.phase is not ClusterPhase.READY:
        return ""
    # The job went back to the queue to be tried without a pause: that is the moment from which it waits.
    waited_ms = at_ms - max(job.not_before_ms, spare.phase_since_ms)
    if spare.idle_since_ms is None and waited_ms > policy.clean_deadline_ms:
        return "its head never said that it is clean"
    return "its job never took it" if waited_ms > policy.idle_teardown_ms else ""
