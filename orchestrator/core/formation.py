"""What agents say of a cluster that is joining: nodes, ways between its members, the all-reduce over all of them.

It is measurement and not decision: kept in memory only, dropped when the cluster is READY or given up, and told again
by the agents after a restart of the control plane. What of it counts becomes part of ClusterReady.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.core.clusters import MemberRole, head_of, missing_nodes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.core.clusters import BusSeen, Member, NodeSeen, PathSeen
    from orchestrator.core.ids import MemberId


@dataclass(slots=True)
class Formation:
    """The newest word of each agent."""

    nodes: dict[MemberId, NodeSeen] = field(default_factory=dict)
    """What the head lists."""
    paths: dict[MemberId, tuple[PathSeen, ...]] = field(default_factory=dict)
    """By the member that measured."""
    buses: dict[MemberId, BusSeen | None] = field(default_factory=dict)
    whole_since_ms: int | None = None
    """Control time since which only measurements are waited for; None where anything else is."""
    short: list[frozenset[MemberId]] = field(default_factory=list)
    """Ways for which members were replaced, by their ends: they speak of who is left, too."""

    def is_whole(self, members: Sequence[Member]) -> bool:
        """Whether the head lists everybody and nobody else, and everybody in the overlay reaches the head."""
        missing = missing_nodes(members, self.nodes) or self.lingering(members)
        return not missing and not self.unreached(members)

    def lingering(self, members: Sequence[Member]) -> list[MemberId]:
        """Members replaced since whose nodes the head takes for alive: it would still give them work."""
        present = {member.member_id for member in members}
        return [member_id for member_id in self.nodes if member_id not in present]

    def unreached(self, members: Sequence[Member]) -> list[Member]:
        """Members in the overlay that have not shown a way to the head yet."""
        head = head_of(members)
        if head is None:
            return []
        return [
            member
            for member in members
            if member.overlay_host
            and member is not head
            and not any(path.to_id == head.member_id and path.answered for path in self.paths_of(member))
        ]

    def paths_of(self, member: Member) -> tuple[PathSeen, ...]:
        """What a member measured."""
        return self.paths.get(member.member_id, ())

    def paths_between(self, members: Sequence[Member]) -> tuple[PathSeen, ...]:
        """The ways between those that count, by who measured and then whom, in the members' order."""
        rank = {member.member_id: number for number, member in enumerate(members) if member.overlay_host}
        found: list[PathSeen] = []
        for member in members:
            known = {path.to_id: path for path in self.paths_of(member) if path.to_id in rank}
            known.pop(member.member_id, None)
            found += sorted(known.values(), key=lambda path: rank[path.to_id])
        return tuple(found)

    def bus_of(self, members: Sequence[Member]) -> BusSeen | None:
        """What the all-reduce over exactly these members came to."""
        speaker = bus_speaker(members)
        bus = self.buses.get(speaker.member_id) if speaker is not None else None
        return bus if bus is not None and is_bus_of(bus, members) else None


def bus_speaker(members: Sequence[Member]) -> Member | None:
    """Who reports the all-reduce for all: the first that takes part in it."""
    return next((member for member in members if _takes_part(member)), None)


def is_bus_of(bus: BusSeen, members: Sequence[Member]) -> bool:
    """Whether an all-reduce was one of all these members."""
    return bus.ranks == sum(_takes_part(member) for member in members)


def _takes_part(member: Member) -> bool:
    return member.role is MemberRole.MEMBER and bool(member.overlay_host)
