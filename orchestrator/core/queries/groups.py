"""What an operator sees of groups: who is in each, how far apart they are, and where all of them lie."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.nearness.layout import positions_ms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from orchestrator.core.ids import WorkerId
    from orchestrator.core.nearness.grouping import Group, GroupNumber, Kind
    from orchestrator.core.state import State

LISTED_MAX = 500
"""Groups of one answer, the largest: each costs a matrix of its members' distances, at most some ten milliseconds."""

DRAWN_MAX = 256
"""Workers in one picture: their distances are one matrix, and a page shows no more."""

CONSIDERED_MAX = 1_024
"""Groups that the picture is made of: some tens of milliseconds even where all are of one worker."""


@dataclass(frozen=True, slots=True)
class GroupStanding:
    """A group as it is now. ``members`` begins with the leader; devices are free that a job could be given."""

    number: GroupNumber
    kind: Kind
    leader_name: str
    members: tuple[WorkerId, ...]
    devices: int
    free: int
    reach_us: int
    """How far from the leader the farthest is, at most."""
    pairs: int
    pairs_measured: int
    measured_us: int | None
    """The longest measured between two of it; None where no pair was."""
    predicted_us: int | None
    """The longest predicted, of pairs that nobody measured; None where there is none of which anything is known."""


@dataclass(frozen=True, slots=True)
class Overview:
    """Which groups there are, the largest first, and what is left out."""

    numbers: tuple[GroupNumber, ...]
    groups: int
    """All with two workers or more."""
    workers: int
    """In all groups, those alone as well."""
    alone: int
    """Workers that nobody alike is known to be near of."""
    known: int
    """Workers of which any round trip was measured."""
    bound_ms: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """A worker in the picture."""

    worker_id: WorkerId
    name: str
    number: GroupNumber
    kind: Kind
    leads: bool
    away_us: int
    """How far its leader is, at most."""


def overview(state: State, *, everything: bool) -> Overview:
    """Groups of two or more; ``everything``: those of one worker as well."""
    found = list(state.groups)
    several = [one for one in found if len(one.members) > 1]
    alone = len(found) - len(several)
    shown = heapq.nsmallest(LISTED_MAX, found if everything else several, key=_largest_first)
    return Overview(
        numbers=tuple(one.number for one in shown),
        groups=len(several),
        workers=alone + sum(len(one.members) for one in several),
        alone=alone,
        known=len(state.latency),
        bound_ms=state.policies.groups.group_bound_ms,
    )


def group_standing(state: State, number: GroupNumber, at_ms: int) -> GroupStanding | None:
    """One of them; None where it is gone by now."""
    group = state.groups.get(number)
    if group is None:
        return None
    members = _leader_first(group)
    workers = [state.workers[one] for one in members]
    known = state.latency.matrix(members, at_ms, state.groups.known_ms_max)
    upper = np.triu_indices(len(members), 1)
    measured, predicted = known.measured_us[upper], known.predicted_us[upper]
    guessed = predicted[measured < 0]
    return GroupStanding(
        number=number,
        kind=group.kind,
        leader_name=workers[0].name,
        members=members,
        devices=sum(len(one.inventory.devices) for one in workers),
        free=sum(len(state.free_devices[one.worker_id]) for one in workers if one.placeable),
        reach_us=max(state.groups.away_us(one) for one in members),
        pairs=len(measured),
        pairs_measured=int((measured >= 0).sum()),
        measured_us=_longest(measured),
        predicted_us=_longest(guessed),
    )


def drawn(state: State, at_ms: int) -> tuple[list[Drawn], NDArray[np.int32]]:
    """Workers of the largest groups, whole groups as far as DRAWN_MAX allows, then those alone of whom anything is known;
    and their distances as ``picture`` takes them.
    """
    chosen: list[Drawn] = []
    known = state.latency
    for group in heapq.nsmallest(CONSIDERED_MAX, state.groups, key=_largest_first):
        members = _leader_first(group)
        room = DRAWN_MAX - len(chosen)
        if room <= 0:
            break
        if len(members) == 1 and not known.words(members[0], at_ms, state.groups.known_ms_max):
            continue
        if len(members) > room and chosen:
            continue
        chosen += [_drawn(state, group, one) for one in members[:room]]
    ids = [one.worker_id for one in chosen]
    return chosen, known.matrix(ids, at_ms, state.groups.known_ms_max).best_us


def picture(distances_us: NDArray[np.int32]) -> list[tuple[float, float]]:
    """Where each is drawn, in milliseconds across and up; some tens of milliseconds of work."""
    return [(x, y) for x, y in positions_ms(distances_us).tolist()]


def _drawn(state: State, group: Group, worker_id: WorkerId) -> Drawn:
    return Drawn(
        worker_id,
        state.workers[worker_id].name,
        group.number,
        group.kind,
        worker_id == group.leader,
        state.groups.away_us(worker_id),
    )


def _largest_first(group: Group) -> tuple[int, int]:
    return -len(group.members), group.number


def _leader_first(group: Group) -> tuple[WorkerId, ...]:
    return (group.leader, *(one for one in group.members if one != group.leader))


def _longest(some_us: NDArray[np.int32]) -> int | None:
    known = some_us[some_us >= 0]
    return int(known.max()) if len(known) else None
