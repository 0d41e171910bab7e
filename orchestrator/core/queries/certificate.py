"""The delivery certificate: what each rank of a cluster brings, and how well it reaches the others, as measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core.clusters import MemberRole
from orchestrator.core.decisions.clusters import delivered
from orchestrator.core.delivery import mbps_text, ways
from orchestrator.core.gangs.candidates import US_PER_MS

if TYPE_CHECKING:
    from orchestrator.core.clusters import Cluster, Member, PathSeen
    from orchestrator.core.ids import DeviceId, MemberId
    from orchestrator.core.state import State
    from orchestrator.core.supply.evidence import EvidenceClass


@dataclass(frozen=True, slots=True)
class DeliveredDevice:
    """``uuid`` is its vendor's. The model is empty where the worker has the device no more."""

    uuid: DeviceId
    model: str
    simulated: bool


@dataclass(frozen=True, slots=True)
class RankDelivered:
    """One rank's line. None where nothing was measured: on one machine, or because nobody asked."""

    rank: int
    member_id: MemberId
    worker_name: str
    devices: tuple[DeliveredDevice, ...]
    evidence: EvidenceClass
    """Of the weakest device when it was placed."""
    rtt_us: int | None
    """The longest to another rank."""
    bits_per_s: int | None
    """The least to another rank, by both ends' words."""
    head_rtt_us: int | None
    head_bits_per_s: int | None
    bus_bits_per_s: int | None
    """Of the all-reduce over all ranks."""


def certificate(state: State, cluster: Cluster) -> tuple[RankDelivered, ...]:
    """By rank; of a cluster that forms as far as it is known."""
    paths, bus = delivered(state, cluster)
    members = state.cluster_members(cluster)
    ranks = [member for member in members if member.device_ids]
    between = ways([member.member_id for member in ranks], paths)
    heads = {member.member_id for member in members if member.role is MemberRole.HEAD}
    found = []
    for rank, member in enumerate(ranks):
        own = [way for way in between if member.member_id in way.ends]
        to_head = next((one for one in paths if one.from_id == member.member_id and one.to_id in heads), None)
        answered = to_head is not None and to_head.answered
        found.append(
            RankDelivered(
                rank=rank,
                member_id=member.member_id,
                worker_name=state.workers[member.worker_id].name,
                devices=_devices(state, member),
                evidence=member.evidence,
                rtt_us=max((way.rtt_us for way in own if way.rtt_us is not None), default=None),
                bits_per_s=min((way.bits_per_s for way in own if way.bits_per_s is not None), default=None),
                head_rtt_us=to_head.rtt_median_us if to_head is not None and answered else None,
                head_bits_per_s=(to_head.bandwidth_bits_per_s or None) if to_head is not None else None,
                bus_bits_per_s=None if bus is None else bus.bus_bits_per_s,
            )
        )
    return tuple(found)


def _devices(state: State, member: Member) -> tuple[DeliveredDevice, ...]:
    known = {one.device_id: one for one in state.workers[member.worker_id].inventory.devices}
    return tuple(
        DeliveredDevice(device_id, known[device_id].model, known[device_id].simulated)
        if device_id in known
        else DeliveredDevice(device_id, "", simulated=False)
        for device_id in member.device_ids
    )


def longest_path(cluster: Cluster) -> PathSeen | None:
    """The way between two members that takes longest, as delivered; None where none was measured."""
    answered = [path for path in cluster.paths if path.answered]
    return max(answered, key=lambda path: path.rtt_median_us, default=None)


def delivered_words(state: State, cluster: Cluster) -> tuple[str, ...]:
    """What was delivered, for its tenant; nothing where nothing was measured."""
    parts = []
    longest = longest_path(cluster)
    if longest is not None:
        ends = (state.workers[state.members[one].worker_id].name for one in (longest.from_id, longest.to_id))
        parts.append(
            f"round trips up to {longest.rtt_median_us / US_PER_MS:.1f} ms, that from {' to '.join(ends)}"
        )
    ranks = certificate(state, cluster)
    between = [one.bits_per_s for one in ranks if one.bits_per_s is not None]
    to_head = [one.head_bits_per_s for one in ranks if one.head_bits_per_s is not None]
    if between:
        parts.append(f"at least {mbps_text(min(between))} Mbit/s between machines")
    elif to_head:
        parts.append(f"at least {mbps_text(min(to_head))} Mbit/s to the head")
    if cluster.bus is not None:
        parts.append(f"all-reduce {mbps_text(cluster.bus.bus_bits_per_s)} Mbit/s")
    return (f"delivered: {'; '.join(parts)}",) if parts else ()
