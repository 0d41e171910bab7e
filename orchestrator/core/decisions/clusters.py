"""Clusters: forming, failing, replacing, closing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.clusters import (
    FORMING,
    WANTED,
    BusSeen,
    Cluster,
    ClusterPhase,
    Member,
    MemberPhase,
    MemberRole,
    PathSeen,
    Vacancy,
    head_of,
    missing_nodes,
)
from orchestrator.core.delivery import Asked, bearing, is_owed, shortcoming, ways
from orchestrator.core.formation import Formation, bus_speaker, is_bus_of
from orchestrator.core.ids import member_id_of
from orchestrator.core.jobs import AttemptPhase, Outcome
from orchestrator.core.supply.fleet import Liveness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import ClusterId, WorkerId
    from orchestrator.core.state import State

NEXT_PHASE = {
    ClusterPhase.PREPARING: ClusterPhase.STARTING_HEAD,
    ClusterPhase.STARTING_HEAD: ClusterPhase.JOINING,
}


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
    if report.provisioning and member.phase is MemberPhase.PLANNED and not member.provisioning:
        yield m.MemberProvisioning(member.member_id)
    if report.address is not None:
        if member.phase is MemberPhase.PLANNED:
            yield m.MemberPrepared(member.member_id, report.address)
        if report.up and member.phase is not MemberPhase.UP:
            yield m.MemberUp(member.member_id, report.address)


def observe_cluster(state: State, report: m.ObservedMember, at_ms: int) -> Iterator[m.Event]:
    """What an agent says of the whole cluster: its nodes, from beside the head, and how its members reach each other."""
    member = state.members.get(report.member_id)
    if member is None or member.phase not in WANTED:
        return
    cluster = state.clusters[member.cluster_id]
    is_head = head_of([member]) is not None
    if cluster.phase is ClusterPhase.JOINING:
        # Also by a bare member's word, which adds nothing but that it is up: it says so after the head has listed it.
        yield from _observe_joining(state, cluster, member, report, at_ms, is_head=is_head)
    elif cluster.phase is ClusterPhase.READY:
        if cluster.bus is None and report.bus is not None:
            yield from _observe_bus(state, cluster, member, report.bus)
        if is_head and member.phase is MemberPhase.UP:
            yield from _observe_clean(state, cluster, report)


def _observe_joining(
    state: State, cluster: Cluster, member: Member, report: m.ObservedMember, at_ms: int, *, is_head: bool
) -> Iterator[m.Event]:
    """Note what is said; READY once all of it is there, whoever said the last of it."""
    formation = state.formations.setdefault(cluster.cluster_id, Formation())
    if is_head:
        formation.nodes = {node.member_id: node for node in report.nodes}
    formation.paths[member.member_id] = report.paths
    formation.buses[member.member_id] = report.bus
    yield from _deliver(state, cluster, formation, at_ms)


def _deliver(state: State, cluster: Cluster, formation: Formation, at_ms: int) -> Iterator[m.Event]:
    """READY if the cluster is whole and is what its job asked for; else the member that most speaks against is replaced.

    Judged when all that was asked is measured, or given up: who is to blame shows in the ways to all others.
    """
    members = state.cluster_members(cluster)
    up = not cluster.vacancies and all(one.phase is MemberPhase.UP for one in members)
    if not up or not formation.is_whole(members):
        formation.whole_since_ms = None
        return
    if formation.whole_since_ms is None:
        formation.whole_since_ms = at_ms
    waited_ms = at_ms - formation.whole_since_ms
    given_up = waited_ms > state.policies.clusters.measure_deadline_ms
    job = state.job_of(cluster)
    asked = Asked() if job is None else Asked.by(job.request.requirements)
    able = bearing(members)
    if not given_up and is_owed(formation, able, asked):
        return
    paths = formation.paths_between(members)
    found = ways([one.member_id for one in able], paths)
    if not given_up and any(way.is_unknown(asked) for way in found):
        return
    for way in found if asked.min_bandwidth_mbps else ():
        if way.bits_per_s is not None:
            one, other = (state.members[end].worker_id for end in sorted(way.ends))
            state.bandwidth.observe(one, other, way.bits_per_s, at_ms)
    short = shortcoming(formation, members, asked, waited_ms if given_up else None)
    if short is not None:
        formation.short.extend(short.ways)
        yield fail_member(state, short.member, short.reason)
        return
    nodes = tuple(formation.nodes[one.member_id] for one in members)
    yield m.ClusterReady(cluster.cluster_id, nodes, paths, formation.bus_of(members))


def _observe_bus(state: State, cluster: Cluster, member: Member, bus: BusSeen) -> Iterator[m.Event]:
    members = state.cluster_members(cluster)
    if member == bus_speaker(members) and is_bus_of(bus, members):
        yield m.ClusterBusMeasured(cluster.cluster_id, bus)


def _observe_clean(state: State, cluster: Cluster, report: m.ObservedMember) -> Iterator[m.Event]:
    """Whether the cluster is free for another job."""
    if cluster.idle_since_ms is not None or not report.clean:
        return
    busy = cluster.cluster_id in state.attempt_in or state.logs_open_in.get(cluster.cluster_id)
    seen = {node.member_id: node for node in report.nodes}
    if not busy and not missing_nodes(state.cluster_members(cluster), seen):
        yield m.ClusterIdled(cluster.cluster_id)


def fail_member(state: State, member: Member, reason: str) -> m.Event:
    """A forming cluster gets a vacancy for a failed member that only brought devices."""
    cluster = state.clusters[member.cluster_id]
    vacancy = None
    if cluster.phase in FORMING and member.role is MemberRole.MEMBER:
        vacancy = Vacancy(member.gpus, len(member.device_ids), member.worker_id)
    return m.MemberFailed(member.member_id, vacancy, reason)


def delivered(state: State, cluster: Cluster) -> tuple[tuple[PathSeen, ...], BusSeen | None]:
    """How a cluster's members reach each other: what was certified, and while it forms what is known so far."""
    formation = state.formations.get(cluster.cluster_id)
    if formation is None:
        return cluster.paths, cluster.bus
    members = state.cluster_members(cluster)
    return formation.paths_between(members), formation.bus_of(members)


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
        how = "failed" if member.notice is None else "went as announced"
        yield m.ClusterClosing(cluster.cluster_id, f"{member.role} on {name} {how}: {event.reason}")
    elif cluster.generation > state.policies.clusters.replacements_max:
        reason = f"too many members failed to start, the last on {name}: {event.reason}"
        yield m.ClusterClosing(cluster.cluster_id, reason)


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
        if cluster.phase is ClusterPhase.PREPARING and _provisions(state, cluster):
            deadline_ms = policy.provision_deadline_ms
        if deadline_ms is not None:
            if age_ms > deadline_ms:
                yield m.ClusterClosing(
                    cluster_id, f"not formed: still {_stuck(state, cluster)} after {age_ms} ms"
                )
            elif cluster.phase is ClusterPhase.JOINING and cluster_id in state.formations:
                # What nobody measures is missed by nobody but the clock.
                yield from _deliver(state, cluster, state.formations[cluster_id], at_ms)
        elif cluster.phase is ClusterPhase.READY:
            yield from _tick_ready(state, cluster, at_ms)
        elif cluster.phase is ClusterPhase.CLOSING and age_ms > policy.log_deadline_ms:
            yield from complete_logs(state, cluster_id)


def _tick_ready(state: State, cluster: Cluster, at_ms: int) -> Iterator[m.Event]:
    policy = state.policies.clusters
    if cluster.spare_for is not None:
        return  # it waits for its job, which ends it: see spares
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


def _provisions(state: State, cluster: Cluster) -> bool:
    return any(member.provisioning for member in state.cluster_members(cluster))


def _stuck(state: State, cluster: Cluster) -> str:
    if cluster.vacancies:
        missing = cluster.vacancies[0].failed_worker_id
        ids = (member_id_of(cluster.cluster_id, number) for number in reversed(range(cluster.next_ordinal)))
        gone = next(one for one in map(state.members.__getitem__, ids) if one.worker_id == missing)
        failed = f"{state.workers[missing].name} failed: {gone.reason}"
        return f"short of {len(cluster.vacancies)} member(s), as {failed}"
    members = state.cluster_members(cluster)
    late = [
        f"{state.workers[member.worker_id].name} {member.phase}"
        for member in members
        if member.phase is not MemberPhase.UP
    ]
    if cluster.phase is ClusterPhase.JOINING:
        formation = state.formations.get(cluster.cluster_id, Formation())
        late += [
            f"{state.workers[member.worker_id].name} does not reach the head over the overlay"
            for member in formation.unreached(members)
            if member.phase is MemberPhase.UP
        ]
        late += [
            f"{state.workers[state.members[member_id].worker_id].name} is gone and still listed by the head"
            for member_id in formation.lingering(members)
            if member_id in state.members
        ]
    return f"{cluster.phase} ({', '.join(late) or 'nodes not listed by the head'})"
