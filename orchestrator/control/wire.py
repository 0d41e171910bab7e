"""Between protobuf and core: every field checked on the way in, nothing but values on the way out."""

from __future__ import annotations

import math
from typing import get_args

from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.adapters.probes import records
from orchestrator.api.v1 import overlay_pb2, worker_pb2
from orchestrator.control.inventory_wire import WORD_MAX
from orchestrator.core import messages as m
from orchestrator.core.clusters import BusSeen, MemberRole, NodeAddress, NodeSeen, PathSeen
from orchestrator.core.errors import invalid
from orchestrator.core.ids import AttemptId, MemberId, WorkerId
from orchestrator.core.jobs import Outcome

TEXT_MAX = 2_000
"""Longest reason or message kept from an agent: it is shown to people, and stored."""

MEMBERS_MAX = 256
"""Twice as many as all slots and head slots of a worker: half of them may still be stopping."""

SEEN_MAX = 20_000
"""Nodes, attempts and paths in one report: more than the largest cluster has, and read within a tick."""

PATHS_MAX = 256
"""Of one member: the head and all others of a gang four times as large as is formed by default."""

OVERLAY_KEY_BYTES = 32
"""An X25519 public key."""

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
    seen = sum(len(member.nodes) + len(member.attempts) + len(member.paths) for member in wire.members)
    if seen > SEEN_MAX:
        raise invalid("observed.members", f"{seen} nodes, attempts and paths; at most {SEEN_MAX} in a report")
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
            _overlay_key(wire.address.overlay_public_key),
        )
    return m.ObservedMember(
        member_id=MemberId(wire.member_id),
        generation=wire.fence.generation,
        address=address,
        up=wire.phase == worker_pb2.MEMBER_PHASE_UP,
        failed=wire.phase == worker_pb2.MEMBER_PHASE_FAILED,
        stopping=wire.phase == worker_pb2.MEMBER_PHASE_STOPPING,
        reason=wire.reason[:TEXT_MAX],
        provisioning=wire.phase == worker_pb2.MEMBER_PHASE_PROVISIONING,
        nodes=tuple(_node_from(node) for node in wire.nodes),
        clean=wire.clean,
        attempts=tuple(_attempt_from(attempt) for attempt in wire.attempts),
        paths=_paths_from(wire),
        bus=_bus_from(wire.bus) if wire.HasField("bus") else None,
    )


def _paths_from(wire: worker_pb2.MemberObserved) -> tuple[PathSeen, ...]:
    """Raises RefusedError where a figure is none that a network can show."""
    if len(wire.paths) > PATHS_MAX:
        raise invalid("members.paths", f"{len(wire.paths)} paths of one member; at most {PATHS_MAX}")
    return tuple(path_from(MemberId(wire.member_id), path) for path in wire.paths)


def path_from(member_id: MemberId, wire: overlay_pb2.PathMeasured) -> PathSeen:
    """As one member measured it. Raises RefusedError where a figure is none that a network can show."""
    answered = wire.received > 0
    try:
        records.PathMeasured(
            wire.peer_id,
            wire.sent,
            wire.received,
            wire.rtt_min_us if answered else wire.rtt_min_us or None,
            wire.rtt_median_us if answered else wire.rtt_median_us or None,
            wire.rtt_p90_us if answered else wire.rtt_p90_us or None,
            wire.jitter_us if wire.received > 1 else wire.jitter_us or None,
        )
    except ValueError as error:
        raise invalid("members.paths", str(error)) from None
    if wire.peer_id == member_id:
        raise invalid("members.paths", f"{member_id} measured the way to itself; name its peers only")
    if answered and wire.rtt_min_us == 0:
        raise invalid("members.paths", "rtt_min_us is 0; no answer comes in no time")
    if wire.bandwidth_bits_per_s > records.BITS_PER_S_MAX:
        bandwidth = wire.bandwidth_bits_per_s
        raise invalid("members.paths", f"bandwidth_bits_per_s is {bandwidth}, faster than any network")
    return PathSeen(
        from_id=member_id,
        to_id=MemberId(wire.peer_id),
        sent=wire.sent,
        received=wire.received,
        rtt_min_us=wire.rtt_min_us,
        rtt_median_us=wire.rtt_median_us,
        rtt_p90_us=wire.rtt_p90_us,
        jitter_us=wire.jitter_us,
        bandwidth_bits_per_s=wire.bandwidth_bits_per_s,
    )


def _bus_from(wire: overlay_pb2.BusMeasured) -> BusSeen:
    """Raises RefusedError where a figure is none that a network can show."""
    if wire.method not in get_args(records.ReduceMethod):
        raise invalid("members.bus", f"method is {wire.method!r:.40}; ring, gloo and nccl are known")
    for field, value, low, high in (
        ("ranks", wire.ranks, records.RANKS_MIN, records.RANKS_MAX),
        ("size_bytes", wire.size_bytes, 1, records.BYTES_MAX),
        ("bus_bits_per_s", wire.bus_bits_per_s, 1, records.BITS_PER_S_MAX),
    ):
        if not low <= value <= high:
            raise invalid("members.bus", f"{field} is {value}; an all-reduce shows {low} to {high}")
    return BusSeen(wire.method, wire.ranks, wire.size_bytes, wire.bus_bits_per_s)


def path_to(path: PathSeen) -> overlay_pb2.PathMeasured:
    """A path as its member reported it."""
    return overlay_pb2.PathMeasured(
        peer_id=path.to_id,
        sent=path.sent,
        received=path.received,
        rtt_min_us=path.rtt_min_us,
        rtt_median_us=path.rtt_median_us,
        rtt_p90_us=path.rtt_p90_us,
        jitter_us=path.jitter_us,
        bandwidth_bits_per_s=path.bandwidth_bits_per_s,
    )


def bus_to(bus: BusSeen | None) -> overlay_pb2.BusMeasured | None:
    """None stays unset."""
    if bus is None:
        return None
    return overlay_pb2.BusMeasured(
        method=bus.method, ranks=bus.ranks, size_bytes=bus.size_bytes, bus_bits_per_s=bus.bus_bits_per_s
    )


def _overlay_key(raw: bytes) -> str:
    """A public key in hex. Raises RefusedError where it is none: every certificate of its cluster would fail."""
    if len(raw) not in (0, OVERLAY_KEY_BYTES):
        raise invalid("members.address.overlay_public_key", f"{len(raw)} bytes; an X25519 key has 32")
    return raw.hex()


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


def timestamp(at_ms: int | None) -> Timestamp | None:
    """Control time as protobuf has it; None stays unset."""
    if at_ms is None:
        return None
    return Timestamp(seconds=at_ms // 1000, nanos=at_ms % 1000 * 1_000_000)
