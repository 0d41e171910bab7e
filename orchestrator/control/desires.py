"""What a worker is told to have, in the agent's words: the desired state with the secrets and certificates it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.api.v1 import common_pb2, overlay_pb2, worker_pb2
from orchestrator.control.wire import ROLE_NUMBERS
from orchestrator.core.clusters import FORMING, ClusterPhase
from orchestrator.core.delivery import BITS_PER_MBIT, Asked
from orchestrator.core.queries.desired import desired_members, ended_leases

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from orchestrator.control.overlay import Overlay
    from orchestrator.core import messages as m
    from orchestrator.core.clusters import Cluster, Member
    from orchestrator.core.ids import Now, WorkerId
    from orchestrator.core.metering import Lease
    from orchestrator.core.state import State


@dataclass(frozen=True, slots=True)
class Desires:
    """Writes desired states. ``runtimes`` are the network's by digest; without an ``overlay`` no member has one."""

    cluster_token: Callable[[str], str]
    log_sizes: Callable[[list[str]], dict[str, int]]
    runtimes: Mapping[str, common_pb2.Runtime] = field(default_factory=dict)
    overlay: Overlay | None = None

    def of(self, state: State, worker_id: WorkerId, now: Now) -> worker_pb2.Desired:
        """The whole list for one worker. It holds cluster tokens: never log it."""
        wanted = desired_members(state, worker_id)
        sizes = self.log_sizes([one.attempt.attempt_id for member in wanted for one in member.attempts])
        at_ms = state.time_ms(now)
        members = []
        for desired in wanted:
            wire = _member_to(desired, self.cluster_token(desired.member.cluster_id), sizes, at_ms)
            self._furnish(wire, state, desired.member, now.wall_ms)
            members.append(wire)
        ended = [_lease_to(lease) for lease in ended_leases(state, worker_id)]
        return worker_pb2.Desired(
            term=state.control.term, version=state.version, members=members, ended_leases=ended
        )

    def _furnish(self, wire: worker_pb2.DesiredMember, state: State, member: Member, wall_ms: int) -> None:
        """Its runtime or image, and its place in the overlay."""
        cluster = state.clusters[member.cluster_id]
        wire.image = cluster.image
        runtime = self.runtimes.get(cluster.runtime)
        if runtime is not None:
            wire.runtime.CopyFrom(runtime)
            wire.runtime.ClearField("lock")
        if self.overlay is None or not member.overlay_host:
            return
        wire.overlay.CopyFrom(self.overlay.membership(member, cluster, wall_ms))
        # Whoever is told of no peers closes the doors that probes need: a tenant's code is beside them then.
        measuring = cluster.phase in FORMING or (cluster.phase is ClusterPhase.READY and cluster.bus is None)
        asked = _asked(state, cluster)
        if measuring and asked.anything:
            wire.probe_needs.every_pair = True
            wire.probe_needs.bandwidth_bits_per_s = asked.min_bandwidth_mbps * BITS_PER_MBIT
        for rank, peer in enumerate(state.cluster_members(cluster) if measuring else ()):
            if peer.overlay_host:
                address = self.overlay.bare_address(peer.overlay_host)
                wire.probe_peers.append(
                    overlay_pb2.ProbePeer(member_id=peer.member_id, address=address, rank=rank)
                )


def _asked(state: State, cluster: Cluster) -> Asked:
    """What the cluster's job asked of the ways between its machines."""
    job = state.job_of(cluster)
    return Asked() if job is None else Asked.by(job.request.requirements)


def _member_to(
    desired: m.DesiredMember, cluster_token: str, log_offsets: dict[str, int], at_ms: int
) -> worker_pb2.DesiredMember:
    """What a worker is told about one member. ``cluster_token`` is a secret: never log the message."""
    member = desired.member
    wire = worker_pb2.DesiredMember(
        member_id=member.member_id,
        cluster_id=member.cluster_id,
        fence=common_pb2.Fence(term=desired.fence.term, generation=desired.fence.generation),
        role=ROLE_NUMBERS[member.role],
        isolation=member.isolation.value,
        stage=worker_pb2.MEMBER_STAGE_RUN if desired.run else worker_pb2.MEMBER_STAGE_PREPARE,
        device_ids=member.device_ids,
        slot=member.slot,
        cluster_token=cluster_token,
        attempts=[_desired_attempt_to(attempt, log_offsets) for attempt in desired.attempts],
        leases=[_lease_to(lease) for lease in desired.leases],
        notices=[
            worker_pb2.MemberNotice(
                member_id=one.member_id,
                remaining_ms=max(0, one.notice.deadline_ms - at_ms),
                reason=one.notice.reason,
            )
            for one in desired.notices
            if one.notice is not None
        ],
    )
    if desired.head is not None:
        wire.head.node_ip = desired.head.node_ip
        wire.head.gcs_address = desired.head.gcs_address
        wire.head.host_id = desired.head.host_id
        wire.head.temp_dir = desired.head.temp_dir
    return wire


def _desired_attempt_to(desired: m.DesiredAttempt, log_offsets: dict[str, int]) -> worker_pb2.DesiredAttempt:
    request = desired.request
    return worker_pb2.DesiredAttempt(
        attempt_id=desired.attempt.attempt_id,
        job_id=desired.attempt.job_id,
        entrypoint=request.entrypoint,
        runtime_env_json=request.runtime_env_json,
        metadata=dict(request.metadata),
        packages=[
            worker_pb2.PackageRef(uri=package.uri, sha256=package.sha256, size_bytes=package.size_bytes)
            for package in request.packages
        ],
        entrypoint_num_cpus=request.entrypoint_num_cpus,
        entrypoint_num_gpus=request.entrypoint_num_gpus,
        entrypoint_memory_bytes=request.entrypoint_memory_bytes,
        entrypoint_resources=dict(request.entrypoint_resources),
        stop=desired.stop,
        gang=[
            worker_pb2.NodeSeen(member_id=node.member_id, gpus=node.gpus, cpus=node.cpus)
            for node in desired.gang
        ],
        log_offset=log_offsets.get(desired.attempt.attempt_id, 0),
    )


def _lease_to(lease: Lease) -> worker_pb2.DesiredLease:
    """A lease as its worker is told of it."""
    return worker_pb2.DesiredLease(
        lease_id=lease.lease_id,
        attempt_id=lease.attempt_id,
        job_id=lease.job_id,
        device_ids=lease.device_ids,
        member_id=lease.member_id,
        next_sequence=lease.next_sequence,
        stated_offset_ms=lease.stated_offset_ms,
    )
