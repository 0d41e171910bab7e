"""Making a plan true: new clusters, spare ones, jobs on warm clusters, members for vacancies, and what is promised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.clusters import FORMING, Cluster, ClusterPhase, Member, MemberPhase, MemberRole
from orchestrator.core.decisions import preempting
from orchestrator.core.decisions.hosts import Hosts
from orchestrator.core.decisions.spares import wants_spare
from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.core.ids import attempt_id_of, member_id_of
from orchestrator.core.jobs import Attempt, AttemptPhase, Chosen, JobStatus, Outcome
from orchestrator.core.scheduling.placement import Share
from orchestrator.core.supply.fleet import OVERLAY, DeviceKind
from orchestrator.core.supply.hardware import worker_evidence_class
from orchestrator.core.tenancy.tenants import held_by

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import ClusterId, JobId, WorkerId
    from orchestrator.core.jobs import Job, Promise
    from orchestrator.core.scheduling.placement import Filling, Placement, Plan, Reuse
    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import Worker

GAVE_WAY = "idle, and its machines are wanted for a job that waits"


def apply_plan(state: State, command: m.ApplyPlan, at_ms: int) -> m.Decision:
    """All of a plan, or STALE: capacity changed since it was made.

    Jobs that left the queue, or do not want a spare any more, are passed over.
    """
    plan = command.plan
    if plan.capacity_version != state.capacity_version and not _still_true(state, plan):
        raise RefusedError(RefusalCode.STALE, "the plan was made on an older state; make it again")
    events: list[m.Event] = []
    fresh = iter(command.cluster_ids)
    slots, hosts = _Slots(state), Hosts(state)
    for placement in plan.placements:
        wanted = wants_spare if placement.spare else _is_waiting
        if wanted(state, placement.job_id):
            events.extend(_form(state, placement, next(fresh), slots, hosts, at_ms))
    events.extend(_reuse(state, one, at_ms) for one in plan.reuses if _is_waiting(state, one.job_id))
    events.extend(_fill(state, filling, slots, hosts) for filling in plan.fillings)
    events.extend(
        m.ClusterClosing(cluster_id, GAVE_WAY) for cluster_id in plan.closings if state.is_idle(cluster_id)
    )
    for order in plan.preemptions:
        events.extend(preempting.ordered(state, order, at_ms))
    events.extend(
        m.JobPromised(job_id, promise)
        for job_id, promise in plan.promises
        if _is_waiting(state, job_id) and state.jobs[job_id].promise != promise
    )
    events.extend(
        m.JobOvertaken(job_id, times) for job_id, times in plan.overtaken if _is_waiting(state, job_id)
    )
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
        and all(state.offers.slots_of(worker_id) >= count for worker_id, count in members.items())
        and all(_reusable(state, one) for one in plan.reuses)
        and all(state.clusters[one.cluster_id].vacancies for one in plan.fillings)
        and all(_may_hold(state, promise) for _, promise in plan.promises if promise is not None)
    )


def _may_hold(state: State, promise: Promise) -> bool:
    """Whether all machines of a promise are there, and so is the one for its head."""
    workers = [(state.workers.get(worker_id), device_ids) for worker_id, device_ids in promise.devices]
    if promise.head_host is not None:
        workers.append((state.workers.get(promise.head_host), ()))
    return all(
        worker is not None
        and worker.placeable
        and {device.device_id for device in worker.inventory.devices} >= set(device_ids)
        for worker, device_ids in workers
    )


def _reusable(state: State, reuse: Reuse) -> bool:
    """A warm cluster that is still idle; a job's own spare may still be forming."""
    cluster = state.clusters[reuse.cluster_id]
    if cluster.spare_for not in (None, reuse.job_id) or cluster.cluster_id in state.attempt_in:
        return False
    if cluster.spare_for is not None and cluster.phase in FORMING:
        return True
    members = state.cluster_members(cluster)
    idle = state.is_idle(cluster.cluster_id)
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
    state: State, placement: Placement, cluster_id: ClusterId, slots: _Slots, hosts: Hosts, at_ms: int
) -> Iterator[m.Event]:
    job = state.jobs[placement.job_id]
    workers = [state.workers[share.worker_id] for share in placement.shares]
    if placement.head_host is None:
        parts = [(MemberRole.SOLO, share) for share in placement.shares]
    else:
        parts = [(MemberRole.MEMBER, share) for share in placement.shares]
        parts.insert(0, (MemberRole.HEAD, Share(placement.head_host, ())))
    overlaid = placement.head_host is not None and workers[0].inventory.reach == OVERLAY
    members: list[Member] = []
    for ordinal, (role, share) in enumerate(parts):
        slot, host = slots.take(share.worker_id), hosts.take() if overlaid else 0
        members.append(_member(state, cluster_id, ordinal, share, role, 1, slot, host))
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
        spare_for=job.job_id if placement.spare else None,
        runtime=_runtime_of(state, job, workers[0]),
        image=job.request.requirements.image,
        reservation_id=job.request.reservation_id if state.bookings.of(job.request.reservation_id) else None,
    )
    yield m.ClusterPlanned(cluster, tuple(members))
    if placement.spare:
        return
    message = f"Forming a cluster of {len(placement.shares)} worker(s) for the job."
    attempt = _attempt(state, job.job_id, cluster_id, message, placement.explanation, placement.chosen, at_ms)
    yield m.AttemptPlaced(attempt)


def _runtime_of(state: State, job: Job, worker: Worker) -> str:
    """What the cluster's boxes provide; bare members run what their agents run, images what they bring."""
    if not worker.inventory.boxed or job.request.requirements.image:
        return ""
    return job.request.requirements.runtime or state.default_runtime


def _member(
    state: State,
    cluster_id: ClusterId,
    ordinal: int,
    share: Share,
    role: MemberRole,
    generation: int,
    slot: int,
    overlay_host: int,
) -> Member:
    worker = state.workers[share.worker_id]
    devices = [device for device in worker.inventory.devices if device.device_id in share.device_ids]
    return Member(
        member_id=member_id_of(cluster_id, ordinal),
        cluster_id=cluster_id,
        ordinal=ordinal,
        worker_id=share.worker_id,
        supplier_id=worker.supplier_id,
        role=role,
        device_ids=tuple([device.device_id for device in devices]),
        gpus=[device.kind for device in devices].count(DeviceKind.GPU),
        slot=slot,
        generation=generation,
        phase=MemberPhase.PLANNED,
        stopping_version=0,
        address=None,
        reason="",
        terms=worker.terms,
        isolation=worker.inventory.isolation,
        overlay_host=overlay_host,
        evidence=worker_evidence_class(devices),
        held=held_by(worker.inventory, [device.model for device in devices]),
        microcredits_per_hour=sum([state.price_of(worker, device.model) for device in devices]),
    )


def _attempt(
    state: State,
    job_id: JobId,
    cluster_id: ClusterId,
    message: str,
    explanation: tuple[str, ...],
    chosen: Chosen,
    at_ms: int,
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
        chosen=chosen,
    )


def _reuse(state: State, reuse: Reuse, at_ms: int) -> m.Event:
    cluster = state.clusters[reuse.cluster_id]
    message = "Starting the job on a warm cluster."
    if cluster.spare_for is not None:
        forming = cluster.phase in FORMING
        message = (
            "Its next cluster is forming already." if forming else "Starting the job on its spare cluster."
        )
    chosen = _delivered(state, cluster)
    attempt = _attempt(state, reuse.job_id, reuse.cluster_id, message, reuse.explanation, chosen, at_ms)
    return m.AttemptPlaced(attempt)


def _delivered(state: State, cluster: Cluster) -> Chosen:
    """What is known of a cluster that is there already; of a spare that still forms only its price."""
    members = [member for member in state.cluster_members(cluster) if member.device_ids]
    price = sum(member.microcredits_per_hour for member in members)
    ids = {member.member_id for member in members}
    seen = {
        frozenset((path.from_id, path.to_id)): path.rtt_median_us
        for path in sorted(cluster.paths, key=lambda path: path.rtt_median_us)
        if path.answered and {path.from_id, path.to_id} <= ids
    }
    pairs = len(members) * (len(members) - 1) // 2
    return Chosen(price, max(seen.values(), default=0) if len(seen) == pairs else None, pairs, len(seen))


def _fill(state: State, filling: Filling, slots: _Slots, hosts: Hosts) -> m.Event:
    cluster = state.clusters[filling.cluster_id]
    share = filling.share
    role, generation = MemberRole.MEMBER, cluster.generation + 1
    slot = slots.take(share.worker_id)
    overlaid = any(state.members[one].overlay_host for one in cluster.member_ids)
    member = _member(
        state,
        cluster.cluster_id,
        cluster.next_ordinal,
        share,
        role,
        generation,
        slot,
        hosts.take() if overlaid else 0,
    )
    return m.MemberReplaced(cluster.cluster_id, member)
