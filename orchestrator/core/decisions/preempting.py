"""Making preemptions true: notice to those that give way, and machines kept for the job that they give way to.

An order holds as a whole or not at all: if one of its victims has ended since, or a device that it counts on has gone,
the next plan looks again. A try whose driver runs has until the deadline; one that has not begun ends at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.clusters import WANTED, ClusterPhase, MemberNotice
from orchestrator.core.jobs import AttemptPhase, GaveWay, Nomination
from orchestrator.core.preemption import gives_way
from orchestrator.core.state import is_queued

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.scheduling.placement import Preemption, Share, Victim
    from orchestrator.core.state import State


def ordered(state: State, order: Preemption, at_ms: int) -> Iterator[m.Event]:
    """All that one order of a plan makes necessary; nothing where it does not hold any more."""
    job = state.jobs.get(order.job_id)
    if job is None or not is_queued(job) or (job.nomination is not None and job.nomination.until_ms > at_ms):
        return
    if not all(_still_runs(state, victim) for victim in order.victims):
        return
    if not all(_still_there(state, share) for share in order.shares):
        return
    deadline_ms = at_ms + max(order.notice_ms, state.policies.fleet.notice_ms_min)
    devices = tuple((share.worker_id, share.device_ids) for share in order.shares)
    until_ms = deadline_ms + state.policies.preemption.release_ms
    yield m.JobNominated(job.job_id, Nomination(devices, order.head_host, at_ms, until_ms))
    for victim in order.victims:
        yield from _give_way(state, victim, deadline_ms, at_ms)


def _still_runs(state: State, victim: Victim) -> bool:
    """Whether a try is still to end by this order, and by nothing else before it."""
    attempt = state.attempts.get(victim.attempt_id)
    if attempt is None or attempt.phase is AttemptPhase.ENDED:
        return False
    job, cluster = state.jobs[attempt.job_id], state.clusters[attempt.cluster_id]
    noticed = any(member.notice is not None for member in state.cluster_members(cluster))
    closing = cluster.phase in (ClusterPhase.CLOSING, ClusterPhase.CLOSED)
    return not (noticed or closing or job.stop_requested or gives_way(job, attempt))


def _still_there(state: State, share: Share) -> bool:
    worker = state.workers.get(share.worker_id)
    if worker is None or not worker.placeable:
        return False
    return {device.device_id for device in worker.inventory.devices} >= set(share.device_ids)


def _give_way(state: State, victim: Victim, deadline_ms: int, at_ms: int) -> Iterator[m.Event]:
    attempt = state.attempts[victim.attempt_id]
    cluster, reason = state.clusters[attempt.cluster_id], f"gives way {victim.to}"
    yield m.JobPreempted(attempt.job_id, GaveWay(attempt.attempt_id, at_ms, victim.to))
    if attempt.phase is AttemptPhase.PLACED:
        yield m.ClusterClosing(cluster.cluster_id, f"its job {reason}")
        return
    notice = MemberNotice(deadline_ms, reason, preempts=True)
    for member in state.cluster_members(cluster):
        if member.phase in WANTED:
            yield m.MemberNoticed(member.member_id, notice)
