"""What a job asked of the ways between its machines, and whether a cluster delivers it.

A pair's round trip is the longer of both ends' words. Its bandwidth is the lesser of what came to each end from the
other, and nothing as long as one of them has not said so: a worker's own word about its line proves nothing.
One machine has no ways, and passes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from orchestrator.core.clusters import MemberRole
from orchestrator.core.gangs.candidates import US_PER_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from orchestrator.core.clusters import Member, PathSeen
    from orchestrator.core.formation import Formation
    from orchestrator.core.ids import MemberId
    from orchestrator.core.jobs import Requirements

MS_PER_S = 1_000
BITS_PER_MBIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Asked:
    """Bounds between any two machines; 0: none."""

    max_rtt_ms: int = 0
    min_bandwidth_mbps: int = 0

    @staticmethod
    def by(wanted: Requirements) -> Asked:
        """What a request sets."""
        return Asked(wanted.max_rtt_ms, wanted.min_bandwidth_mbps)

    @property
    def anything(self) -> bool:
        """Whether the ways matter at all."""
        return bool(self.max_rtt_ms or self.min_bandwidth_mbps)


@dataclass(frozen=True, slots=True)
class Way:
    """Between two members, whichever way round; None where nothing is known."""

    ends: frozenset[MemberId]
    rtt_us: int | None
    bits_per_s: int | None

    def is_far(self, asked: Asked) -> bool:
        """Known to take longer than asked."""
        return bool(asked.max_rtt_ms) and (self.rtt_us or 0) > asked.max_rtt_ms * US_PER_MS

    def is_narrow(self, asked: Asked) -> bool:
        """Known to carry less than asked."""
        least = asked.min_bandwidth_mbps * BITS_PER_MBIT
        return self.bits_per_s is not None and self.bits_per_s < least

    def is_unknown(self, asked: Asked) -> bool:
        """Something that was asked for is not measured yet."""
        return bool(asked.max_rtt_ms and self.rtt_us is None) or bool(
            asked.min_bandwidth_mbps and self.bits_per_s is None
        )

    def is_short(self, asked: Asked) -> bool:
        """Known to be worse than asked."""
        return self.is_far(asked) or self.is_narrow(asked)


@dataclass(frozen=True, slots=True)
class Shortcoming:
    """The member to replace, why in words and numbers, and the ways that it spoils."""

    member: Member
    reason: str
    ways: tuple[frozenset[MemberId], ...]


def ways(ids: Sequence[MemberId], paths: Iterable[PathSeen]) -> tuple[Way, ...]:
    """All pairs of these members, in their order."""
    said = {(path.from_id, path.to_id): path for path in paths}
    found = []
    for one, other in combinations(ids, 2):
        words = [path for path in (said.get((one, other)), said.get((other, one))) if path is not None]
        rtts_us = [path.rtt_median_us for path in words if path.answered]
        rates = [path.bandwidth_bits_per_s for path in words if path.bandwidth_bits_per_s]
        both = len(rates) == 2  # noqa: PLR2004 -- the ends of a pair
        found.append(Way(frozenset((one, other)), max(rtts_us, default=None), min(rates) if both else None))
    return tuple(found)


def is_delivered(ids: Sequence[MemberId], paths: Iterable[PathSeen], asked: Asked) -> bool:
    """Whether all that was asked between these members was measured, and none of it is worse."""
    if not asked.anything:
        return True
    return not any(way.is_unknown(asked) or way.is_short(asked) for way in ways(ids, paths))


def bearing(members: Iterable[Member]) -> list[Member]:
    """Members between which something can be asked: those with devices, in the overlay."""
    return [one for one in members if one.role is MemberRole.MEMBER and one.overlay_host]


def is_owed(formation: Formation, able: Sequence[Member], asked: Asked) -> bool:
    """Whether somebody has yet to say what came to it from another: a glance, as each new figure of many is a report."""
    if not asked.min_bandwidth_mbps:
        return False
    ids = {one.member_id for one in able}
    return any(
        len(
            ids
            & {path.to_id for path in formation.paths_of(one) if path.bandwidth_bits_per_s} - {one.member_id}
        )
        < len(ids) - 1
        for one in able
    )


def shortcoming(
    formation: Formation, members: Sequence[Member], asked: Asked, waited_ms: int | None
) -> Shortcoming | None:
    """Whose replacement mends most of what falls short of a request; None where nothing does.

    Ways that were found short with members replaced since still speak against who is left: of two that share a slow
    way either may be at fault, of three it shows. Of equals it is the one that carried less to the head, then the newest.
    ``waited_ms`` is how long measurements were waited for; until they are given up (None) unknown ways are not counted.
    """
    able = bearing(members)
    spoilt = [
        way
        for way in ways([one.member_id for one in able], formation.paths_between(members))
        if way.is_short(asked) or (waited_ms is not None and way.is_unknown(asked))
    ]
    present = Counter(end for way in spoilt for end in way.ends)
    if not present:
        return None
    before = Counter(end for ends in formation.short for end in ends)
    to_head = _to_head(formation, members) if asked.min_bandwidth_mbps else {}
    worst = max(
        (one for one in able if present[one.member_id]),
        key=lambda one: (
            present[one.member_id] + before[one.member_id],
            -to_head.get(one.member_id, 0),
            one.ordinal,
        ),
    )
    own = [way for way in spoilt if worst.member_id in way.ends]
    return Shortcoming(worst, _words(own, asked, waited_ms or 0), tuple(way.ends for way in own))


def _to_head(formation: Formation, members: Sequence[Member]) -> dict[MemberId, int]:
    """What each member carried to the head, as it says itself: nobody gains by saying less."""
    heads = {one.member_id for one in members if one.role is MemberRole.HEAD}
    return {
        path.from_id: path.bandwidth_bits_per_s
        for path in formation.paths_between(members)
        if path.to_id in heads
    }


def _words(own: Sequence[Way], asked: Asked, waited_ms: int) -> str:
    """Of a member's ways that fall short: the farthest, or else the narrowest, or else what is not known."""
    far_us = max((way.rtt_us or 0 for way in own if way.is_far(asked)), default=None)
    if far_us is not None:
        return f"{far_us / US_PER_MS:g} ms from another member, {asked.max_rtt_ms} ms were asked for"
    least = min((way.bits_per_s or 0 for way in own if way.is_narrow(asked)), default=None)
    wanted = f"{asked.min_bandwidth_mbps} Mbit/s were asked for"
    if least is not None:
        return f"{mbps_text(least)} Mbit/s between it and another member, {wanted}"
    waited = f"within {waited_ms // MS_PER_S} s"
    if asked.min_bandwidth_mbps and any(way.bits_per_s is None for way in own):
        return f"its bandwidth to another member was not measured {waited}, {wanted}"
    return f"its round trip to another member was not measured {waited}, {asked.max_rtt_ms} ms were asked for"


def mbps_text(bits_per_s: int) -> str:
    """Millions of bits per second to a tenth, never rounded up to what was asked."""
    tenths = bits_per_s * 10 // BITS_PER_MBIT
    whole, tenth = divmod(tenths, 10)
    return (f"{whole}.{tenth}" if tenth else str(whole)) if tenths else "less than 0.1"
