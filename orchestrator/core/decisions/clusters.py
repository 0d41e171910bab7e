"""Clusters: making a plan true, forming, failing, replacing, closing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.clusters import (
    FORMING,
    WANTED,
    Cluster,
    ClusterPhase,
    Member,
    MemberPhase,
    MemberRole,
    Vacancy,
    head_of,
    missing_nodes,
)
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.fleet import DeviceKind, Liveness
from orchestrator.core.ids import attempt_id_of, member_id_of
from orchestrator.core.jobs import Attempt, AttemptPhase, JobStatus, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import ClusterId, JobId, WorkerId
    from orchestrator.core.placement import Filling, Placement, Plan, Reuse, Share
    from orchestrator.core.state import State

NEXT_PHASE = {
    ClusterPhase.PREPARING: ClusterPhase.STARTING_HEAD,
    ClusterPhase.STARTING_HEAD: ClusterPhase.JOINING,
}


# ---------------------------------------------------------------- plans


def apply_plan(state: State, command: m.ApplyPlan, at_ms: int) -> m.Decision:
    """All of a plan, or STALE: capacity changed since it was made. Jobs that left the queue are passed over."""
    plan = command.plan
    if plan.capacity_version != state.capacity_version and not _still_true(state, plan):
        raise RefusedError(RefusalCode.STALE, "the plan was made on an older state; make it again")
    events: list[m.Event] = []
    fresh = iter(command.cluster_ids)
    slots = _Slots(state)
    for placement in plan.placements:
        if _is_waiting(state, placement.job_id):
            events.extend(_form(state, placement, next(fresh), slots, at_ms))
    events.extend(_reuse(state, one, at_ms) for one in plan.reuses if _is_waiting(state, one.job_id))
    events.extend(_fill(state, filling, slots) for filling in plan.fillings)
    return m.Decision(tuple(events), len(events))


def _still_true(state: State, plan: Plan) -> bool:
    """Whether all the capacity that a plan names is still there: other changes since do not matter."""
    heads: dict[WorkerId, int] = {}
    members: dict[WorkerId, int] = {}
    shares = [share for one in plan.placements for share in one.shares] + [one.share for one in plan.fillings]
    for share in shares:
        if not state.workers[share.worker_id].placeable or not state.free_devices[
            share.worker_id
        ].keys() >= set(share.device_ids):
            return False
        members[share.worker_id] = members.get(share.worker_id, 0) + 1
    for placement in plan.placements:
        if placement.head_host is not None:
            heads[placement.head_host] = heads.get(placement.head_host, 0) + 1
    return (
        all(state.head_hosts.get(worker_id, 0) >= count for worker_id, count in heads.items())
        and all(state.free_slots(worker_id) >= count for worker_id, count in members.items())
        and all(_reusable(state, one.cluster_id) for one in plan.reuses)
        and all(state.clusters[one.cluster_id].vacancies for one in plan.fillings)
    )


def _reusable(state: State, cluster_id: ClusterId) -> bool:
    members = state.cluster_members(state.clusters[cluster_id])
    idle = cluster_id not in state.attempt_in and state.is_idle(cluster_id)
    return idle and all(state.workers[member.worker_id].placeable for member in members)


class _Slots:
    """Slots given out by one plan: several of its members may go to one worker."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._taken: dict[WorkerId, set[int]] = {}

    def take(self, worker_id: WorkerId) -> int:
        """The worker's lowest slot that is still free."""
        taken = self._taken.setdefault(worker_id, set())
        slot = self._state.free_slot(worker_id, taken)
        taken.add(slot)
        return slot


def _is_waiting(state: State, job_id: JobId) -> bool:
    job = state.jobs.get(job_id)
    return job is not None and job.status is JobStatus.PENDING and job.attempt_id is None


def _form(
    state: State, placement: Placement, cluster_id: ClusterId, slots: _Slots, at_ms: int
) -> Iterator[m.Event]:
    job = state.jobs[placement.job_id]
    workers = [state.workers[share.worker_id] for share in placement.shares]
    members: list[Member] = []
    if placement.head_host is not None:
        slot = slots.take(placement.head_host)
        members.append(_member(state, cluster_id, 0, placement.head_host, (), MemberRole.HEAD, 1, slot))
    role = MemberRole.SOLO if placement.head_host is None else MemberRole.MEMBER
    for share in placement.shares:
        slot = slots.take(share.worker_id)
        members.append(
            _member(state, cluster_id, len(members), share.worker_id, share.device_ids, role, 1, slot)
        )
    cluster = Cluster(
        cluster_id=cluster_id,
        tenant_id=job.tenant_id,
        hardware_class=workers[0].inventory.hardware_class,
        generation=1,
        phase=ClusterPhase.PREPARING,
        phase_since_ms=at_ms,
        member_ids=tuple(member.member_id for member in members),
        next_ordinal=len(members),
        vacancies=(),
        created_at_ms=at_ms,
        ready_at_ms=None,
        idle_since_ms=None,
        reason="",
        certificate=(),
    )
    yield m.ClusterPlanned(cluster, tuple(members))
    message = f"Forming a cluster of {len(placement.shares)} worker(s) for the job."
    yield m.AttemptPlaced(_attempt(state, job.job_id, cluster_id, message, placement.explanation, at_ms))


def _member(
    state: State,
    cluster_id: ClusterId,
    ordinal: int,
    worker_id: WorkerId,
    device_ids: tuple[str, ...],
    role: MemberRole,
    generation: int,
    slot: int,
) -> Member:
    worker = state.workers[worker_id]
    held = set(device_ids)
    devices = [device for device in worker.inventory.devices if device.device_id in held]
    return Member(
        member_id=member_id_of(cluster_id, ordinal),
        cluster_id=cluster_id,
        ordinal=ordinal,
        worker_id=worker_id,
        supplier_id=worker.supplier_id,
        role=role,
        device_ids=tuple(device.device_id for device in devices),
        gpus=sum(device.kind is DeviceKind.GPU for device in devices),
        slot=slot,
        generation=generation,
        phase=MemberPhase.PLANNED,
        stopping_version=0,
        address=None,
        reason="",
    )


def _attempt(
    state: State, job_id: JobId, cluster_id: ClusterId, message: str, explanation: tuple[str, ...], at_ms: int
) -> Attempt:
    job = state.jobs[job_id]
    number = job.attempts + 1
    return Attempt(
        attempt_id=attempt_id_of(job_id, number),
        job_id=job_id,
        tenant_id=job.tenant_id,
        number=number,
        cluster_id=cluster_id,
        phase=AttemptPhase.PLACED,
        outcome=Outcome.NONE,
        message=message,
        placed_at_ms=at_ms,
        started_at_ms=None,
        ended_at_ms=None,
        log_bytes=0,
        log_complete=False,
        explanation=explanation,
    )


def _reuse(state: State, reuse: Reuse, at_ms: int) -> m.Event:
    message = "Starting the job on a warm cluster."
    return m.AttemptPlaced(_attempt(state, reuse.job_id, reuse.cluster_id, message, reuse.explanation, at_ms))


def _fill(state: State, filling: Filling, slots: _Slots) -> m.Event:
    cluster = state.clusters[filling.cluster_id]
    share: Share = filling.share
    role, generation = MemberRole.MEMBER, cluster.generation + 1
    slot = slots.take(share.worker_id)
    member = _member(
        state,
        cluster.cluster_id,
        cluster.next_ordinal,
        share.worker_id,
        share.device_ids,
        role,
        generation,
        slot,
    )
    return m.MemberReplaced(cluster.cluster_id, member)


# ---------------------------------------------------------------- what agents report


def observe_worker(state: State, command: m.ObserveWorker) -> Iterator[m.Event]:
    """Bring each member on the worker to what the agent shows; reports of unknown members mean nothing here."""
    observed = {member.member_id: member for member in command.members}
    for member_id in list(state.members_on.get(command.worker_id, ())):
        member = state.members[member_id]
        report = observed.get(member_id)
        if report is None:
            yield from _absent(state, member, command.seen_version)
        elif member.phase in WANTED:
            yield from _progress(state, member, report)


def _absent(state: State, member: Member, seen_version: int) -> Iterator[m.Event]:
    match member.phase:
        case MemberPhase.STOPPING:
            # A report made before the agent knew of the stop may only mean that it had not begun yet.
            if seen_version >= member.stopping_version:
                yield m.MemberReleased(member.member_id)
        case MemberPhase.PREPARED | MemberPhase.UP:
            yield fail_member(state, member, "the worker no longer has this member")
        case _:
            pass


def _progress(state: State, member: Member, report: m.ObservedMember) -> Iterator[m.Event]:
    if report.failed or report.stopping:
        yield fail_member(state, member, report.reason or "the Ray node ended")
        return
    if report.address is not None:
        if member.phase is MemberPhase.PLANNED:
            yield m.MemberPrepared(member.member_id, report.address)
        if report.up and member.phase is not MemberPhase.UP:
            yield m.MemberUp(member.member_id, report.address)


def observe_head(state: State, report: m.ObservedMember) -> Iterator[m.Event]:
    """What the agent beside a head says of its cluster: nodes, and whether it is clean for another job."""
    member = state.members.get(report.member_id)
    if member is None or member.phase is not MemberPhase.UP:
        return
    cluster = state.clusters[member.cluster_id]
    if head_of([member]) is None:
        return
    seen = {node.member_id: node for node in report.nodes}
    members = state.cluster_members(cluster)
    if cluster.phase is ClusterPhase.JOINING and not cluster.vacancies:
        if all(one.phase is MemberPhase.UP for one in members) and not missing_nodes(members, seen):
            yield m.ClusterReady(cluster.cluster_id, tuple(seen[one.member_id] for one in members))
    elif cluster.phase is ClusterPhase.READY and cluster.idle_since_ms is None and report.clean:
        busy = cluster.cluster_id in state.attempt_in or state.logs_open_in.get(cluster.cluster_id)
        if not busy and not missing_nodes(members, seen):
            yield m.ClusterIdled(cluster.cluster_id)


def fail_member(state: State, member: Member, reason: str) -> m.Event:
    """A forming cluster gets a vacancy for a failed member that only brought devices."""
    cluster = state.clusters[member.cluster_id]
    vacancy = None
    if cluster.phase in FORMING and member.role is MemberRole.MEMBER:
        vacancy = Vacancy(member.gpus, len(member.device_ids), member.worker_id)
    return m.MemberFailed(member.member_id, vacancy, reason)


# ---------------------------------------------------------------- consequences


def after_member_change(state: State, cluster_id: ClusterId) -> Iterator[m.Event]:
    """Advance a forming cluster as far as its members are."""
    cluster = state.clusters[cluster_id]
    members = state.cluster_members(cluster)
    if cluster.vacancies:
        return
    if cluster.phase is ClusterPhase.PREPARING and all(
        one.phase is not MemberPhase.PLANNED for one in members
    ):
        yield m.ClusterAdvanced(cluster_id, NEXT_PHASE[cluster.phase])
    elif cluster.phase is ClusterPhase.STARTING_HEAD:
        head = head_of(members)
        if head is not None and head.phase is MemberPhase.UP:
            yield m.ClusterAdvanced(cluster_id, NEXT_PHASE[cluster.phase])


def after_member_failed(state: State, event: m.MemberFailed) -> Iterator[m.Event]:
    """Without a vacancy the cluster cannot go on; with too many it should not."""
    member = state.members[event.member_id]
    cluster = state.clusters[member.cluster_id]
    if cluster.phase in (ClusterPhase.CLOSING, ClusterPhase.CLOSED):
        # It may have been the last one on a worker that could still answer.
        yield from after_released(state, cluster.cluster_id)
        return
    name = state.workers[member.worker_id].name
    if event.vacancy is None:
        yield m.ClusterClosing(cluster.cluster_id, f"{member.role} on {name} failed: {event.reason}")
    elif cluster.generation > state.policies.clusters.replacements_max:
        yield m.ClusterClosing(cluster.cluster_id, f"too many members failed to start, the last on {name}")


def after_closing(state: State, cluster_id: ClusterId) -> Iterator[m.Event]:
    """Stop the members; the head stays until its last log byte is here."""
    cluster = state.clusters[cluster_id]
    attempt_id = state.attempt_in.get(cluster_id)
    if attempt_id is not None:
        yield m.AttemptEnded(attempt_id, Outcome.GROUND, cluster.reason, None)
    for member in state.cluster_members(cluster):
        if member.phase in WANTED and (head_of([member]) is None or not state.logs_open_in.get(cluster_id)):
            yield m.MemberStopping(member.member_id)
    yield from after_released(state, cluster_id)


def after_log(state: State, cluster_id: ClusterId) -> Iterator[m.Event]:
    """The last byte is here: a closing head need not wait any longer."""
    cluster = state.clusters[cluster_id]
    if cluster.phase is ClusterPhase.CLOSING and not state.logs_open_in.get(cluster_id):
        for member in state.cluster_members(cluster):
            if member.phase in WANTED:
                yield m.MemberStopping(member.member_id)


def after_released(state: State, cluster_id: ClusterId) -> Iterator[m.Event]:
    """A closing cluster is closed once no member of it is on a worker that could still answer.

    A lost worker's member keeps holding its devices until the worker comes back and shows that it is gone.
    """
    cluster = state.clusters[cluster_id]
    if cluster.phase is not ClusterPhase.CLOSING:
        return
    for member_id in state.members_of.get(cluster_id, ()):
        worker = state.workers[state.members[member_id].worker_id]
        if worker.liveness not in (Liveness.LOST, Liveness.LEFT):
            return
    yield m.ClusterClosed(cluster_id)


def after_worker_gone(state: State, worker_id: WorkerId, reason: str) -> Iterator[m.Event]:
    """A lost, leaving or left worker fails its members; clusters that only waited for its release are done."""
    for member_id in list(state.members_on.get(worker_id, ())):
        member = state.members[member_id]
        if member.phase in WANTED:
            yield fail_member(state, member, reason)
        else:
            yield from after_released(state, member.cluster_id)


def after_inventory_changed(state: State, worker_id: WorkerId) -> Iterator[m.Event]:
    """A member whose device is not there any more cannot serve, nor be billed for it."""
    there = {device.device_id for device in state.workers[worker_id].inventory.devices}
    for member_id in list(state.members_on.get(worker_id, ())):
        member = state.members[member_id]
        gone = [device_id for device_id in member.device_ids if device_id not in there]
        if gone and member.phase in WANTED:
            yield fail_member(state, member, f"the worker no longer has device {gone[0]}")


def complete_logs(state: State, cluster_id: ClusterId) -> Iterator[m.Event]:
    """Nobody is left who could send more: whoever follows such a log is not kept waiting."""
    for attempt_id in list(state.logs_open_in.get(cluster_id, ())):
        yield m.LogCompleted(attempt_id, state.attempts[attempt_id].log_bytes)


# ---------------------------------------------------------------- time


def tick_clusters(state: State, at_ms: int) -> Iterator[m.Event]:
    """Deadlines of formation, warmth and logs."""
    policy = state.policies.clusters
    for cluster_id in list(state.open_clusters):
        cluster = state.clusters[cluster_id]
        age_ms = at_ms - cluster.phase_since_ms
        deadline_ms = policy.deadline_ms(cluster.phase)
        if deadline_ms is not None:
            if age_ms > deadline_ms:
                yield m.ClusterClosing(
                    cluster_id, f"not formed: still {_stuck(state, cluster)} after {age_ms} ms"
                )
        elif cluster.phase is ClusterPhase.READY:
            yield from _tick_ready(state, cluster, at_ms)
        elif cluster.phase is ClusterPhase.CLOSING and age_ms > policy.log_deadline_ms:
            yield from complete_logs(state, cluster_id)


def _tick_ready(state: State, cluster: Cluster, at_ms: int) -> Iterator[m.Event]:
    policy = state.policies.clusters
    attempt_id = state.attempt_in.get(cluster.cluster_id)
    if attempt_id is not None:
        attempt = state.attempts[attempt_id]
        since_ms = max(attempt.placed_at_ms, cluster.phase_since_ms)
        if attempt.phase is AttemptPhase.PLACED and at_ms - since_ms > policy.start_deadline_ms:
            yield m.ClusterClosing(cluster.cluster_id, "the driver did not start in time")
        return
    if cluster.idle_since_ms is not None:
        if at_ms - cluster.idle_since_ms > policy.idle_teardown_ms:
            yield m.ClusterClosing(cluster.cluster_id, "idle")
    elif at_ms - cluster.phase_since_ms > policy.clean_deadline_ms:
        yield m.ClusterClosing(cluster.cluster_id, "the last job left actors, jobs or log behind")


def _stuck(state: State, cluster: Cluster) -> str:
    if cluster.vacancies:
        return f"short of {len(cluster.vacancies)} member(s)"
    late = [
        f"{state.workers[member.worker_id].name} {member.phase}"
        for member in state.cluster_members(cluster)
        if member.phase is not MemberPhase.UP
    ]
    return f"{cluster.phase} ({', '.join(late) or 'nodes not listed by the head'})"
