"""Silence: when a worker becomes suspect, when lost, and when it is likelier that we are deaf; and who comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.clusters import WANTED, ClusterPhase
from orchestrator.core.decisions.fleet import find_worker
from orchestrator.core.decisions.leaving import leaving_in
from orchestrator.core.errors import RefusalCode, RefusedError, invalid
from orchestrator.core.supply.fleet import Liveness, Reconcile
from orchestrator.core.supply.holds import Hold, HoldKind
from orchestrator.core.supply.liveness import LEASE_BEATS_MIN, LEASE_MAX_MS
from orchestrator.core.supply.reliability import Flaps, flapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.clusters import Cluster
    from orchestrator.core.ids import JobId, Now, WorkerId
    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import LeasePolicy, Worker

FLAP_DOUBLINGS_MAX = 32
"""More would only make a large number that the longest back-off cuts anyway."""


def set_lease_policy(state: State, command: m.SetLeasePolicy) -> m.Decision:
    """Be more or less patient with one worker.

    Less patience than its nodes were promised would let it be lost while they still run, so it is refused while the
    worker holds any. The agent learns its new lease at its next session.
    """
    worker = find_worker(state, command.worker_id)
    policy = state.policies.fleet
    if worker.lease_policy == command.policy:
        return m.Decision((), worker.worker_id)
    if command.policy is not None:
        _check_policy(state, command.policy)
    lost_after_ms = policy.lost_after_ms if command.policy is None else command.policy.lost_after_ms
    if lost_after_ms < worker.lost_after_ms(policy) and state.members_on.get(worker.worker_id):
        reason = (
            f"the nodes on {worker.name} may go on for {worker.lost_after_ms(policy)} ms of silence, longer than"
            f" {lost_after_ms} ms; drain the worker first"
        )
        raise RefusedError(RefusalCode.CONFLICT, reason, "policy.lost_after_ms")
    return m.Decision((m.LeasePolicyChanged(worker.worker_id, command.policy),), worker.worker_id)


def _check_policy(state: State, asked: LeasePolicy) -> None:
    """Suspect long before lost, and a lease that outlasts a few missed heartbeats."""
    policy = state.policies.fleet
    margin_ms = policy.lost_after_ms - policy.lease_ttl_ms
    least_ms = max(
        policy.suspect_after_ms + margin_ms, LEASE_BEATS_MIN * policy.heartbeat_interval_ms + margin_ms
    )
    if not least_ms <= asked.lost_after_ms <= LEASE_MAX_MS:
        reason = f"{asked.lost_after_ms} ms is not between {least_ms} and {LEASE_MAX_MS} ms"
        raise invalid("policy.lost_after_ms", reason)


def tick_liveness(state: State, now: Now, at_ms: int) -> Iterator[m.Event]:
    """Silence turns live into suspect and suspect into lost, unless so much of a zone is silent that it is us."""
    silences = state.heartbeats.silences(now.monotonic_ms, state.policies.fleet)
    state.zones_held = silences.zones_held
    for one in silences.suspect:
        yield m.LivenessChanged(one.worker_id, Liveness.SUSPECT, at_ms - one.silence_ms, one.excused)
    for one in silences.lost:
        yield m.LivenessChanged(one.worker_id, Liveness.LOST, at_ms - one.silence_ms, one.excused)


def start_heartbeats(state: State, now: Now) -> None:
    """After a start nobody has been heard yet: everybody gets a full term from now."""
    for worker in state.workers.values():
        if worker.liveness in (Liveness.LIVE, Liveness.SUSPECT):
            state.heartbeats.heard(worker.worker_id, now.monotonic_ms)


# ---------------------------------------------------------------- flapping


def after_suspect(state: State, event: m.LivenessChanged, at_ms: int) -> Iterator[m.Event]:
    """A silence of its own counts; too many of them lately, and the worker gets nothing new for a while.

    A lost packet never gets here: suspicion takes several missed heartbeats in a row.
    """
    if event.excused:
        return
    policy = state.policies.fleet
    worker = state.workers[event.worker_id]
    flaps = flapped(worker.flaps, at_ms, policy.flaps_half_life_ms)
    yield m.Flapped(worker.worker_id, flaps)
    excess = flaps.count - policy.flaps_max * 1_000
    if excess > 0:
        yield m.HoldPlaced(worker.worker_id, _flapping(state, worker, flaps, at_ms))


def _flapping(state: State, worker: Worker, flaps: Flaps, at_ms: int) -> Hold:
    """Each silence above the bound doubles the back-off."""
    policy = state.policies.fleet
    doublings = min(FLAP_DOUBLINGS_MAX, (flaps.count - policy.flaps_max * 1_000 - 1) // 1_000)
    pause_ms = min(policy.flap_hold_max_ms, policy.flap_hold_ms << doublings)
    known = worker.hold(HoldKind.FLAPPING)
    reason = (
        f"fell silent {flaps.count / 1_000:.1f} times lately, where {policy.flaps_max} are taken for bad luck; it"
        f" gets new work again after {pause_ms // 1_000} s"
    )
    return Hold(HoldKind.FLAPPING, reason, at_ms if known is None else known.since_ms, at_ms + pause_ms)


# ---------------------------------------------------------------- coming back


def after_return(state: State, worker_id: WorkerId) -> Iterator[m.Event]:
    """A worker is live again whose jobs may have a spare cluster by now: one of the two goes, as its policy says."""
    worker = state.workers[worker_id]
    policy = worker.lease_policy
    for member_id in list(state.members_on.get(worker_id, ())):
        member = state.members[member_id]
        cluster = state.clusters[member.cluster_id]
        attempt_id = state.attempt_in.get(cluster.cluster_id)
        if member.phase not in WANTED or attempt_id is None or leaving_in(state, cluster):
            continue
        spare = _spare_of(state, state.attempts[attempt_id].job_id)
        if spare is None or spare.cluster_id == cluster.cluster_id:
            continue
        replacement_wins = policy is not None and policy.reconcile is Reconcile.REPLACEMENT
        if replacement_wins and spare.phase is ClusterPhase.READY:
            yield m.ClusterClosing(cluster.cluster_id, "replaced while its machine was silent")
        else:
            yield m.ClusterClosing(spare.cluster_id, "its machine came back")


def _spare_of(state: State, job_id: JobId) -> Cluster | None:
    cluster_id = state.spares.get(job_id)
    return None if cluster_id is None else state.clusters[cluster_id]
