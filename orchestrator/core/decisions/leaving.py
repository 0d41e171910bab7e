"""Going in order: reclaims, notices and their deadlines.

A notice is the word that one member goes. Where nothing runs yet, or any more, the member or its cluster goes at once;
where a job runs it has until the deadline to write a checkpoint, and another cluster is formed meanwhile (``spares``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.clusters import FORMING, WANTED, Cluster, ClusterPhase, Member, MemberNotice
from orchestrator.core.decisions.clusters import fail_member
from orchestrator.core.decisions.fleet import find_worker
from orchestrator.core.supply.holds import Hold
from orchestrator.core.watched import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import AttemptId, MemberId, WorkerId
    from orchestrator.core.state import State


def reclaim_worker(state: State, command: m.ReclaimWorker, at_ms: int) -> m.Decision:
    """Give the machine back: nothing new, and notice to every member that runs.

    Lifting the hold later offers the machine again; the notices stay, because their jobs may be leaving already.
    """
    worker = find_worker(state, command.worker_id)
    events: list[m.Event] = []
    known = worker.hold(command.kind)
    if known is None or known.reason != command.reason:
        since_ms = at_ms if known is None else known.since_ms
        events.append(m.HoldPlaced(worker.worker_id, Hold(command.kind, command.reason, since_ms)))
    for member in state.wanted_on(worker.worker_id):
        notice_ms = member.terms.notice_ms if command.notice_ms is None else command.notice_ms
        events.extend(_notice(state, member, at_ms + notice_ms, command.reason, at_ms))
    return m.Decision(tuple(events), worker.worker_id)


def _notice(state: State, member: Member, end_ms: int, reason: str, at_ms: int) -> Iterator[m.Event]:
    """Tell a member its end, unless it knows of a sooner one; nobody gets less than the least notice."""
    deadline_ms = max(end_ms, at_ms + state.policies.fleet.notice_ms_min)
    if member.notice is None or deadline_ms < member.notice.deadline_ms:
        yield m.MemberNoticed(member.member_id, MemberNotice(deadline_ms, reason))


# ---------------------------------------------------------------- consequences


def after_noticed(state: State, member_id: MemberId) -> Iterator[m.Event]:
    """Without a job there is nothing to wait for: a forming cluster looks for another, a ready one closes."""
    member = state.members[member_id]
    if member.phase not in WANTED or member.notice is None:
        return
    cluster = state.clusters[member.cluster_id]
    if cluster.phase in FORMING:
        yield fail_member(state, member, member.notice.reason)
    elif cluster.phase is ClusterPhase.READY and cluster.cluster_id not in state.attempt_in:
        yield _closing(state, cluster, member)


def after_attempt_ended(state: State, attempt_id: AttemptId) -> Iterator[m.Event]:
    """A cluster of which a member goes is not kept warm."""
    cluster = state.clusters[state.attempts[attempt_id].cluster_id]
    going = noticed_in(state, cluster)
    if going and cluster.phase is ClusterPhase.READY:
        yield _closing(state, cluster, going[0])


def close_idle(state: State, worker_id: WorkerId, reason: str) -> Iterator[m.Event]:
    """Clusters that only wait for work hold devices which their owner wants back."""
    for member in state.wanted_on(worker_id):
        cluster = state.clusters[member.cluster_id]
        if cluster.phase is ClusterPhase.READY and cluster.cluster_id not in state.attempt_in:
            yield m.ClusterClosing(cluster.cluster_id, f"{state.workers[worker_id].name} goes: {reason}")


def _closing(state: State, cluster: Cluster, member: Member) -> m.Event:
    reason = member.notice.reason if member.notice is not None else member.reason
    if member.notice is not None and member.notice.preempts:
        return m.ClusterClosing(cluster.cluster_id, f"its job {reason}")
    return m.ClusterClosing(cluster.cluster_id, f"{state.workers[member.worker_id].name} goes: {reason}")


# ---------------------------------------------------------------- questions


def noticed_in(state: State, cluster: Cluster) -> list[Member]:
    """Members of a cluster that go, or went, as announced."""
    return [member for member in state.cluster_members(cluster) if member.notice is not None]


def leaving_in(state: State, cluster: Cluster) -> list[Member]:
    """Members for which a replacement is wanted: under notice, or on a suspect worker that is not waited for."""
    return [
        member
        for member in state.cluster_members(cluster)
        if member.notice is not None or member.worker_id in state.watched.replacing
    ]


# ---------------------------------------------------------------- time


def tick_notices(state: State, at_ms: int) -> Iterator[m.Event]:
    """Announce the ends that the terms set, and end the members whose time is over."""
    for member_id, due_ms in state.watched.members_due_ms.items():
        if due_ms <= at_ms:
            yield from _tick_terms(state, state.members[member_id], at_ms)
    for member_id in state.noticed:
        member = state.members[member_id]
        if member.notice is not None and at_ms >= member.notice.deadline_ms:
            yield fail_member(state, member, member.notice.reason)


def _tick_terms(state: State, member: Member, at_ms: int) -> Iterator[m.Event]:
    """The end of the owner's hours, or of the longest lease, announced as early as the terms promise."""
    ends: list[tuple[int, str]] = []
    open_ms = member.terms.open_for_ms(at_ms)
    if open_ms is not None:
        ends.append((at_ms + open_ms, "the hours that its owner offers end"))
    if member.terms.lease_max_ms is not None:
        for lease_id in state.leases_on.get(member.member_id, ()):
            end_ms = state.leases[lease_id].started_ms + member.terms.lease_max_ms
            ends.append((end_ms, "the longest lease that its owner allows is over"))
    end_ms, reason = min(ends, default=(NEVER_MS, ""))
    due_ms = end_ms - member.terms.notice_ms
    if at_ms >= due_ms:
        yield from _notice(state, member, end_ms, reason, at_ms)
    state.watched.members_due_ms[member.member_id] = NEVER_MS if at_ms >= due_ms else due_ms
