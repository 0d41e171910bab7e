"""Between protobuf and core: every field checked on the way in, nothing but values on the way out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.api.v1 import common_pb2, worker_pb2
from orchestrator.control.inventory_wire import WORD_MAX
from orchestrator.core import messages as m
from orchestrator.core.clusters import MemberRole, NodeAddress, NodeSeen
from orchestrator.core.errors import invalid
from orchestrator.core.ids import AttemptId, MemberId, WorkerId
from orchestrator.core.jobs import Outcome

if TYPE_CHECKING:
    from orchestrator.core.metering import Lease

TEXT_MAX = 2_000
"""Longest reason or message kept from an agent: it is shown to people, and stored."""

MEMBERS_MAX = 256
"""Twice as many as all slots and head slots of a worker: half of them may still be stopping."""

SEEN_MAX = 20_000
"""Nodes and attempts in one report: more than the largest cluster has, and read within a tick."""

ROLE_NUMBERS = {
    MemberRole.HEAD: worker_pb2.MEMBER_ROLE_HEAD,
    MemberRole.MEMBER: worker_pb2.MEMBER_ROLE_MEMBER,
    MemberRole.SOLO: worker_pb2.MEMBER_ROLE_SOLO,
}

OUTCOMES = {
    worker_pb2.ATTEMPT_STATUS_SUCCEEDED: Outcome.SUCCEEDED,
    worker_pb2.ATTEMPT_STATUS_FAILED: Outcome.FAILED,
    worker_pb2.ATTEMPT_STATUS_STOPPED: Outcome.STOPPED,
}


def observed_from(worker_id: WorkerId, wire: worker_pb2.Observed) -> m.ObserveWorker:
    """A report as a command. Raises RefusedError; what nobody can have is not read any further."""
    if len(wire.members) > MEMBERS_MAX:
        raise invalid("observed.members", f"{len(wire.members)} members on one worker; at most {MEMBERS_MAX}")
    seen = sum(len(member.nodes) + len(member.attempts) for member in wire.members)
    if seen > SEEN_MAX:
        raise invalid("observed.members", f"{seen} nodes and attempts in one report; at most {SEEN_MAX}")
    return m.ObserveWorker(
        worker_id, wire.seen_version, tuple(_member_from(member) for member in wire.members)
    )


def _member_from(wire: worker_pb2.MemberObserved) -> m.ObservedMember:
    address = None
    if wire.HasField("address") and wire.address.node_ip:
        address = NodeAddress(
            wire.address.node_ip[:WORD_MAX],
            wire.address.gcs_address[:WORD_MAX],
            wire.address.host_id[:WORD_MAX],
            wire.address.temp_dir[:WORD_MAX],
        )
    return m.ObservedMember(
        member_id=MemberId(wire.member_id),
        generation=wire.fence.generation,
        address=address,
        up=wire.phase == worker_pb2.MEMBER_PHASE_UP,
        failed=wire.phase == worker_pb2.MEMBER_PHASE_FAILED,
        stopping=wire.phase == worker_pb2.MEMBER_PHASE_STOPPING,
        reason=wire.reason[:TEXT_MAX],
        nodes=tuple(_node_from(node) for node in wire.nodes),
        clean=wire.clean,
        attempts=tuple(_attempt_from(attempt) for attempt in wire.attempts),
    )


def _node_from(wire: worker_pb2.NodeSeen) -> NodeSeen:
    """Raises RefusedError where a count is none: it would be stored, and no JSON holds it."""
    if not (math.isfinite(wire.gpus) and math.isfinite(wire.cpus)):
        raise invalid("members.nodes", f"a node of {wire.gpus!r} GPUs and {wire.cpus!r} CPUs cannot be")
    return NodeSeen(MemberId(wire.member_id), wire.gpus, wire.cpus)


def _attempt_from(wire: worker_pb2.AttemptObserved) -> m.ObservedAttempt:
    outcome = OUTCOMES.get(wire.status, Outcome.NONE)
    if outcome is Outcome.FAILED and wire.ground_failure:
        outcome = Outcome.GROUND
    return m.ObservedAttempt(
        attempt_id=AttemptId(wire.attempt_id),
        running=wire.status == worker_pb2.ATTEMPT_STATUS_RUNNING,
        outcome=outcome,
        message=wire.message[:TEXT_MAX],
        driver_exit_code=wire.driver_exit_code if wire.HasField("driver_exit_code") else None,
    )


def desired_member_to(
    desired: m.DesiredMember, cluster_token: str, log_offsets: dict[str, int], at_ms: int
) -> worker_pb2.DesiredMember:
    """What a worker is told about one member. ``cluster_token`` is a secret: never log the message."""
    member = desired.member
    wire = worker_pb2.DesiredMember(
        member_id=member.member_id,
        cluster_id=member.cluster_id,
        fence=common_pb2.Fence(term=desired.fence.term, generation=desired.fence.generation),
        role=ROLE_NUMBERS[member.role],
        stage=worker_pb2.MEMBER_STAGE_RUN if desired.run else worker_pb2.MEMBER_STAGE_PREPARE,
        device_ids=member.device_ids,
        slot=member.slot,
        cluster_token=cluster_token,
        attempts=[_desired_attempt_to(attempt, log_offsets) for attempt in desired.attempts],
        leases=[lease_to(lease) for lease in desired.leases],
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


def lease_to(lease: Lease) -> worker_pb2.DesiredLease:
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


def timestamp(at_ms: int | None) -> Timestamp | None:
    """Control time as protobuf has it; None stays unset."""
    if at_ms is None:
        return None
    return Timestamp(seconds=at_ms // 1000, nanos=at_ms % 1000 * 1_000_000)
