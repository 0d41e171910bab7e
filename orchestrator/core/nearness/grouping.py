"""Groups: workers that are alike and near each other, kept while workers come and go and links change.

Each group has a *leader*, and nobody in it is known to be farther from its leader than half of the bound: so wherever
the triangle inequality holds, no two are farther apart than the bound. A worker joins within JOIN_BP of the bound and
stays up to STAY_BP, so that noise moves nobody. Distances are measured, or measured by way of one of the group;
coordinates have no say. What is started is held to measured pairs elsewhere (``assembling``): groups only propose.

Nobody is believed alone. A worker that nobody follows joins by its own word, which misplaces nobody but itself if it
lies, or by the words of two in the group; a leader takes its followers along only where both sides bear it out.

One look at a worker moves that worker alone, or, if it leads, itself with all that follow it into a larger group.
Nothing here is stored: measurements are not decisions. Looked at are those whose words changed, and a few more in turn.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, NewType

import numpy as np

from orchestrator.core.supply.fleet import Liveness

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from orchestrator.core.ids import WorkerId
    from orchestrator.core.nearness.latency import LatencyMap, Word
    from orchestrator.core.supply.fleet import HardwareClass, Worker

GroupNumber = NewType("GroupNumber", int)
"""Given once, and kept while any member stays; numbers begin anew with each start of the control plane."""

US_PER_MS = 1_000
BASIS_POINTS = 10_000

STAY_BP = 5_000
"""Of the bound: twice as far, by way of the leader, is the bound itself."""

JOIN_BP = 4_000
"""Of the bound. A fifth below STAY_BP: from one frame of PlanetLab to the next 2 of 490 workers drift out."""

MEMBERS_MAX = 256
"""As many as a plan looks at. A full site has several groups; and no look moves more."""

WITNESSES_MIN = 2
"""Of a group, that must bear out a worker which has not measured the leader itself: one may lie."""

NOBODY = -1
ROWS_MIN = 64


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """What an operator may turn."""

    group_bound_ms: int = 20
    """Between any two of a group: what gangs that talk a lot ask for, and regions of the globe allow."""


class Kind(NamedTuple):
    """What makes workers alike: they could be members of one cluster, and have devices of one model."""

    hardware_class: HardwareClass
    model: str
    operating_system: str
    runtime: str
    reach: str


@dataclass(slots=True, eq=False)
class Group:
    """Changed by Groups alone. ``members`` has the leader too."""

    number: GroupNumber
    kind: Kind
    leader: WorkerId
    members: dict[WorkerId, None]


@dataclass(slots=True, eq=False)
class _Seat:
    """Where a worker is: how far its leader was when that was last known, 0 for a leader, and when."""

    row: int
    group: Group
    away_us: int
    known_ms: int
    sure: bool
    """Whether others bear it out, or it leads: by a lie of its own it could be anywhere."""


@dataclass(slots=True)
class _Way:
    """What one worker's words say of one group's leader."""

    away_us: int
    """As measured, or else by the shortest way."""
    direct: bool = False
    """Measured by the worker itself, and if ``confirmed`` by the leader as well."""
    confirmed: bool = False
    own: int = 0
    """Of the group, those near enough by the worker's own word …"""
    theirs: int = 0
    """… by theirs …"""
    witnesses: int = 0
    """… and by any."""


class Groups:
    """Who is together with whom. ``latency`` is read and never changed; times are of the control plane's clock."""

    def __init__(self, latency: LatencyMap, policy: GroupPolicy, known_ms_max: int) -> None:
        """``known_ms_max``: how long a word counts."""
        bound_us = policy.group_bound_ms * US_PER_MS
        self.bound_us = bound_us
        self.join_us = bound_us * JOIN_BP // BASIS_POINTS
        self.stay_us = bound_us * STAY_BP // BASIS_POINTS
        self._latency = latency
        self.known_ms_max = known_ms_max
        self._groups: dict[GroupNumber, Group] = {}
        self._seats: dict[WorkerId, _Seat] = {}
        self._kinds: dict[Kind, Kind] = {}
        """One of each that are equal: then they are the same."""
        self._who: list[WorkerId | None] = []
        """By row."""
        self._number_by_row: NDArray[np.int32] = np.full(0, NOBODY, dtype=np.int32)
        self._away_by_row: NDArray[np.int32] = np.zeros(0, dtype=np.int32)
        self._next_number = 1
        self._turn = 0
        self._latest_ms = 0

    # ------------------------------------------------------------ reading

    def __iter__(self) -> Iterator[Group]:
        """All groups, those of one worker too, in the order of their numbers."""
        return iter(self._groups.values())

    def __len__(self) -> int:
        return len(self._groups)

    def get(self, number: GroupNumber) -> Group | None:
        """A group; None where there is none of this number any more."""
        return self._groups.get(number)

    def of(self, worker_id: WorkerId) -> Group | None:
        """The group that a worker is in; None for one that can be in none."""
        seat = self._seats.get(worker_id)
        return None if seat is None else seat.group

    def away_us(self, worker_id: WorkerId) -> int:
        """How far its leader is, at most, as last known."""
        return self._seats[worker_id].away_us

    @property
    def number_by_row(self) -> NDArray[np.int32]:
        """By the number that Offers gives a worker: that of its group, NOBODY where it has none. Not to be written."""
        return self._number_by_row

    @property
    def away_us_by_row(self) -> NDArray[np.int32]:
        """The same for the distance to its leader."""
        return self._away_by_row

    # ------------------------------------------------------------ who comes and goes

    def put(self, worker: Worker, row: int) -> None:
        """A worker is new or has changed; ``row`` is the number that Offers gives it, always the same."""
        kind = kind_of(worker)
        seat = self._seats.get(worker.worker_id)
        if seat is not None:
            if kind == seat.group.kind:
                return
            self._leave(worker.worker_id)
            self._clear(worker.worker_id, seat.row)
        if kind is None:
            return
        self._room_for(row)
        self._who[row] = worker.worker_id
        self._found(worker.worker_id, row, self._kinds.setdefault(kind, kind))

    def remove(self, worker_id: WorkerId) -> None:
        """A worker is gone; strangers are passed over."""
        seat = self._seats.get(worker_id)
        if seat is not None:
            self._leave(worker_id)
            self._clear(worker_id, seat.row)

    # ------------------------------------------------------------ what is measured

    def measured(self, worker_id: WorkerId, peers: Iterable[WorkerId], now_ms: int) -> None:
        """A worker's words of these peers have changed: both ends of each are looked at, and nobody else."""
        self._latest_ms = now_ms
        self._look(worker_id)
        for peer_id in peers:
            self._look(peer_id)

    def review(self, now_ms: int, count: int) -> None:
        """Look at the next ``count`` workers in turn: words age, and what was out of sight comes into it."""
        self._latest_ms = now_ms
        for _ in range(min(count, len(self._who))):
            self._turn = (self._turn + 1) % len(self._who)
            worker_id = self._who[self._turn]
            if worker_id is not None:
                self._look(worker_id)

    def _look(self, worker_id: WorkerId) -> None:
        """Stay, leave, join or lead, by what is known now."""
        seat = self._seats.get(worker_id)
        if seat is None:
            return
        words = self._latency.words(worker_id, self._latest_ms, self.known_ms_max)
        if seat.group.leader != worker_id:
            if self._stays(seat, words):
                return
            row, kind = seat.row, seat.group.kind
            self._leave(worker_id)
            self._found(worker_id, row, kind)
            seat = self._seats[worker_id]
        self._join(seat, words)

    def _stays(self, seat: _Seat, words: list[Word]) -> bool:
        """Whether a follower is near enough still. Its own measurement of the leader decides; without one a way by
        another of the group can show that it is near, but not that it is far.
        """
        leader, way_us = seat.group.leader, self.stay_us + 1
        for word in words:
            if word.peer_id == leader:
                if word.rtt_us <= self.stay_us:
                    self._learn(seat, word.rtt_us, sure=word.theirs)
                return word.rtt_us <= self.stay_us
            other = self._seats.get(word.peer_id)
            if other is not None and other.group is seat.group:
                way_us = min(way_us, word.rtt_us + other.away_us)
        fresh = self._latest_ms - seat.known_ms <= self.known_ms_max
        if way_us <= self.stay_us and (way_us <= seat.away_us or not fresh):
            self._learn(seat, way_us, sure=False)
            return True
        return fresh

    def _join(self, seat: _Seat, words: list[Word]) -> None:
        """Into the nearest group that is borne out and has room, with all followers where there are any."""
        own = seat.group
        best: tuple[int, GroupNumber, bool] | None = None
        followers_us = max(self._seats[one].away_us for one in own.members)
        for group, way in self._ways(seat, words).items():
            alone = len(own.members) == 1
            if way.away_us > self.join_us or not _borne_out(way, alone=alone):
                continue
            if len(group.members) + len(own.members) > MEMBERS_MAX:
                continue
            if not alone:
                # Only towards the larger, so that two never change places, and only if everybody can come along.
                larger = (len(group.members), -group.number) > (len(own.members), -own.number)
                if not larger or followers_us + way.away_us > self.stay_us:
                    continue
            found = (way.away_us, group.number, way.theirs > 0)
            best = found if best is None else min(best, found)
        if best is None:
            return
        away_us, number, sure = best
        group = self._groups[number]
        del self._groups[own.number]
        for one in own.members:
            moved = self._seats[one]
            moved.group = group
            group.members[one] = None
            self._settle(moved, moved.away_us + away_us)
        seat.sure, seat.known_ms = sure, self._latest_ms

    def _ways(self, seat: _Seat, words: list[Word]) -> dict[Group, _Way]:
        """What a worker's words say of every other group of its kind that it knows anybody of."""
        ways: dict[Group, _Way] = {}
        measured_us: dict[Group, int] = {}
        for word in words:
            other = self._seats.get(word.peer_id)
            if other is None or other.group is seat.group or other.group.kind is not seat.group.kind:
                continue
            leads = word.peer_id == other.group.leader
            if leads:
                measured_us[other.group] = word.rtt_us
            by_way_us = word.rtt_us + other.away_us
            if by_way_us > self.join_us:
                continue
            way = ways.setdefault(other.group, _Way(by_way_us))
            way.away_us = min(way.away_us, by_way_us)
            way.own += word.own
            way.theirs += word.theirs
            way.witnesses += 1
            way.direct |= leads and word.own
            way.confirmed |= leads and word.own and word.theirs
        for group, way in ways.items():
            way.away_us = measured_us.get(group, way.away_us)
        return ways

    # ------------------------------------------------------------ bookkeeping

    def _found(self, worker_id: WorkerId, row: int, kind: Kind) -> None:
        """A group of one."""
        group = self._new(kind, worker_id)
        seat = self._seats[worker_id] = _Seat(row, group, 0, self._latest_ms, sure=True)
        self._settle(seat, 0)

    def _new(self, kind: Kind, leader: WorkerId) -> Group:
        number = GroupNumber(self._next_number)
        self._next_number += 1
        group = self._groups[number] = Group(number, kind, leader, {leader: None})
        return group

    def _leave(self, worker_id: WorkerId) -> None:
        """Out of its group; if it led, others inherit."""
        group = self._seats.pop(worker_id).group
        del group.members[worker_id]
        if not group.members:
            del self._groups[group.number]
        elif group.leader == worker_id:
            self._inherit(group)

    def _inherit(self, group: Group) -> None:
        """Whoever was nearest to the leader that left leads now, and nobody moves who is known to be near enough to it.
        The others inherit among themselves.
        """
        seats = self._seats
        waiting = sorted(group.members, key=lambda one: (not seats[one].sure, seats[one].away_us, one))
        while waiting:
            heir, *others = waiting
            near = self._near(heir, others)
            waiting = [one for one in others if one not in near]
            group.leader, group.members = heir, dict.fromkeys((heir, *near))
            seats[heir].sure = True
            for one, away_us in ((heir, 0), *near.items()):
                seats[one].group = group
                self._settle(seats[one], away_us)
            if waiting:
                group = self._new(group.kind, waiting[0])

    def _near(self, heir: WorkerId, others: list[WorkerId]) -> dict[WorkerId, int]:
        """How far each of those is from an heir that can follow it: as they measured it, or by way of the old leader
        where more than the heir's word brought it near that one.
        """
        seat = self._seats[heir]
        words = self._latency.words(heir, self._latest_ms, self.known_ms_max)
        told_us = {word.peer_id: word.rtt_us for word in words if word.theirs}
        by_way_us = seat.away_us if seat.sure else self.stay_us + 1
        known = ((one, told_us.get(one, self._seats[one].away_us + by_way_us)) for one in others)
        return {one: away_us for one, away_us in known if away_us <= self.stay_us}

    def _learn(self, seat: _Seat, away_us: int, *, sure: bool) -> None:
        """A follower was seen where it is."""
        seat.known_ms, seat.sure = self._latest_ms, seat.sure or sure
        self._settle(seat, away_us)

    def _settle(self, seat: _Seat, away_us: int) -> None:
        """Write down where a worker is."""
        seat.away_us = away_us
        self._number_by_row[seat.row] = seat.group.number
        self._away_by_row[seat.row] = away_us

    def _clear(self, worker_id: WorkerId, row: int) -> None:
        if self._who[row] == worker_id:
            self._who[row] = None
            self._number_by_row[row] = NOBODY

    def _room_for(self, row: int) -> None:
        self._who += [None] * (row + 1 - len(self._who))
        more = max(ROWS_MIN, 2 * row) - len(self._number_by_row)
        if row >= len(self._number_by_row):
            self._number_by_row = np.append(self._number_by_row, np.full(more, NOBODY, dtype=np.int32))
            self._away_by_row = np.append(self._away_by_row, np.zeros(more, dtype=np.int32))


def kind_of(worker: Worker) -> Kind | None:
    """What a worker is like: its commonest model counts. None for one that is not there, has no devices, or can work
    with no other.
    """
    inventory = worker.inventory
    if worker.liveness not in (Liveness.LIVE, Liveness.SUSPECT) or not inventory.reach:
        return None
    models = Counter(device.model for device in inventory.devices)
    if not models:
        return None
    model = min(models, key=lambda name: (-models[name], name))
    return Kind(
        inventory.hardware_class, model, inventory.operating_system, inventory.runtime, inventory.reach
    )


def _borne_out(way: _Way, *, alone: bool) -> bool:
    """Whether more than one word that could be a lie brings a worker into a group."""
    if alone:
        return way.direct or way.witnesses >= WITNESSES_MIN
    return way.confirmed or min(way.own, way.theirs) >= WITNESSES_MIN
