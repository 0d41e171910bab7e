"""What each worker is told to have, derived from the state: level-triggered, never stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core.clusters import WANTED, ClusterPhase, Member, MemberPhase, MemberRole, head_of
from orchestrator.core.ids import Fence
from orchestrator.core.messages import DesiredAttempt, DesiredMember

if TYPE_CHECKING:
    from orchestrator.core.clusters import Cluster
    from orchestrator.core.ids import WorkerId
    from orchestrator.core.metering import Lease
    from orchestrator.core.state import State

RUNS_HEAD = frozenset(
    {ClusterPhase.STARTING_HEAD, ClusterPhase.JOINING, ClusterPhase.READY, ClusterPhase.CLOSING}
)
RUNS_MEMBERS = frozenset({ClusterPhase.JOINING, ClusterPhase.READY, ClusterPhase.CLOSING})


def desired_members(state: State, worker_id: WorkerId) -> tuple[DesiredMember, ...]:
    """The whole list for one worker."""
    return tuple(_desired(state, member) for member in state.wanted_on(worker_id))


def ended_leases(state: State, worker_id: WorkerId) -> tuple[Lease, ...]:
    """Leases of a worker that are over but lack its final statement: it may never have known of them."""
    leases = (state.leases[lease_id] for lease_id in state.unsettled_on.get(worker_id, ()))
    return tuple(lease for lease in leases if lease.ended_ms is not None and not lease.final_stated)


def _desired(state: State, member: Member) -> DesiredMember:
    cluster = state.clusters[member.cluster_id]
    members = state.cluster_members(cluster)
    head = head_of(members)
    carries_head = member.role is not MemberRole.MEMBER
    head_up = head is not None and head.phase is MemberPhase.UP
    run = cluster.phase in RUNS_HEAD if carries_head else cluster.phase in RUNS_MEMBERS and head_up
    return DesiredMember(
        member=member,
        fence=Fence(state.control.term, cluster.generation),
        run=run,
        head=head.address if head is not None and head_up and not carries_head else None,
        attempts=_attempts(state, cluster) if carries_head else (),
        notices=tuple(one for one in members if one.notice is not None and one.phase in WANTED),
        leases=tuple(state.leases[lease_id] for lease_id in state.leases_on.get(member.member_id, ())),
    )


def _attempts(state: State, cluster: Cluster) -> tuple[DesiredAttempt, ...]:
    """The attempt that should run, and ended ones whose log is not whole yet."""
    if cluster.phase not in (ClusterPhase.READY, ClusterPhase.CLOSING):
        return ()
    attempts = []
    listed = dict(state.logs_open_in.get(cluster.cluster_id, {}))
    running = state.attempt_in.get(cluster.cluster_id)
    if running is not None:
        # Its last log byte may be here before the news of its end.
        listed[running] = None
    for attempt_id in listed:
        attempt = state.attempts[attempt_id]
        job = state.jobs.get(attempt.job_id)
        if job is None:
            continue
        ends = job.stop_requested or attempt.timed_out
        stop = ends or job.attempt_id != attempt_id or cluster.phase is ClusterPhase.CLOSING
        attempts.append(DesiredAttempt(attempt, job.request, stop, cluster.certificate))
    return tuple(attempts)
