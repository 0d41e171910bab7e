"""Why a lease ended, and what that says of its worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.jobs import Outcome
from orchestrator.core.supply.fleet import Liveness
from orchestrator.core.supply.holds import MISTRUSTED
from orchestrator.core.supply.reliability import LeaseEnd, after_lease
from orchestrator.core.supply.terms import Tier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.clusters import Member
    from orchestrator.core.metering import Lease
    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import Worker


def after(state: State, event: m.Event, at_ms: int) -> Iterator[m.Event]:
    """A lease that ended, or a notice that came too late, changes the worker's record."""
    match event:
        case m.LeaseEnded():
            lease = state.leases[event.lease_id]
            yield from _counted(state, lease, lease_end(state, lease), at_ms)
        case m.MemberNoticed():
            member = state.members[event.member_id]
            short = event.notice.deadline_ms - at_ms < member.terms.notice_ms
            # What is short of notice is known now; that the lease then ends by it says nothing more.
            if member.terms.tier is Tier.COMMITTED and short and not event.notice.preempts:
                for lease_id in state.leases_on.get(member.member_id, ()):
                    yield from _counted(state, state.leases[lease_id], LeaseEnd.SHORT_NOTICE, at_ms)
        case _:
            pass


def _counted(state: State, lease: Lease, end: LeaseEnd, at_ms: int) -> Iterator[m.Event]:
    worker = state.workers[lease.worker_id]
    held_ms = (at_ms if lease.ended_ms is None else lease.ended_ms) - lease.started_ms
    half_life_ms = state.policies.fleet.reliability_half_life_ms
    known = worker.reliability
    reliability = after_lease(known, end, held_ms, len(lease.device_ids), at_ms, half_life_ms)
    if reliability != known:
        yield m.ReliabilityChanged(worker.worker_id, reliability)


def lease_end(state: State, lease: Lease) -> LeaseEnd:
    """What the end of a lease says of its worker, at the moment it is decided.

    A lost worker broke it, unless most of its zone fell silent with it. Where the job came to an end of its own, or
    another machine of the gang failed, this one held to the end. Otherwise its own member went: announced, or not.
    """
    worker = state.workers[lease.worker_id]
    if worker.liveness is Liveness.LOST:
        return LeaseEnd.EXCUSED if state.heartbeats.excused(worker.worker_id) else LeaseEnd.BROKEN
    if state.attempts[lease.attempt_id].outcome is not Outcome.GROUND:
        return LeaseEnd.KEPT
    member = state.members[lease.member_id]
    cordoned = {hold.device_id for hold in worker.device_holds}
    if not cordoned.isdisjoint(lease.device_ids):
        return LeaseEnd.BROKEN
    if member.notice is not None and member.notice.preempts:
        # It is there to the last moment, and its job gives way to another's.
        return LeaseEnd.KEPT if worker.liveness is Liveness.LIVE else LeaseEnd.EXCUSED
    if not member.reason:
        # Its cluster closed over another member. While silent itself it has shown nothing.
        return LeaseEnd.KEPT if worker.liveness is Liveness.LIVE else LeaseEnd.EXCUSED
    return _own_end(worker, member)


def _own_end(worker: Worker, member: Member) -> LeaseEnd:
    if member.notice is not None or any(hold.kind in MISTRUSTED for hold in worker.holds):
        return LeaseEnd.EXCUSED
    if worker.draining:
        owners = member.terms.tier is Tier.COMMITTED and not worker.dismissed
        return LeaseEnd.SHORT_NOTICE if owners else LeaseEnd.EXCUSED
    return LeaseEnd.BROKEN
