"""Whether machines can be promised ahead, beside all that is promised already: by counting, and never too much.

Counted are the devices of machines that serve now and whose owners' hours cover the window. Two reservations compete
where one machine would do for both, and where the times overlap in which machines are kept for them (a lead before the
window is such a time). Which machines each will get is decided when its time comes, so a promise has to hold however
the others' fall:

- A request is promised on one machine where its competitors have too few devices to make each machine that is large
  enough too small for it. A competitor that is itself sure of one machine can do so to one machine only.
- Else it is promised on one ground (machines that can form a cluster) that has enough left for it, in units of what it
  wants on each machine, even if every competitor breaks as many units there as it can; and with a head slot for it
  beside those of all others that may be spread.

Distances are not promised: who is near whom is measured, and ages within hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.scheduling.draft import Draft
from orchestrator.core.scheduling.filters import FILTERS, joins
from orchestrator.core.scheduling.offers import OPEN, STATES, Column
from orchestrator.core.supply.holds import PHRASES, HoldKind
from orchestrator.core.supply.terms import NEVER_MS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.core.ids import ReservationId
    from orchestrator.core.jobs import Requirements
    from orchestrator.core.scheduling.filters import Mask, Question
    from orchestrator.core.scheduling.offers import Numbers, Offers
    from orchestrator.core.scheduling.placement import PlacementView
    from orchestrator.core.tenancy.reservations import Reservation

OF_NOW = frozenset({"hours", "closing", "avoid"})
"""Filters that say nothing of a time to come."""

ASLEEP = STATES.index(PHRASES[HoldKind.SCHEDULE])
"""The state of a worker whose owner's hours have not begun."""


def shortfall(view: PlacementView, made: Reservation, at_ms: int) -> str | None:
    """Why a reservation cannot be promised, in numbers; None where it can."""
    promises = _Promises(view, at_ms)
    lead_ms = view.bookings.policy.lead_ms
    others = [
        one
        for one in view.bookings.booked.values()
        if one.from_ms - lead_ms < made.until_ms and made.from_ms - lead_ms < one.until_ms
    ]
    alone = promises.refused([promises.of(made)], made)
    if alone is not None:
        return alone
    everybody = [promises.of(one) for one in [*others, made]]
    begins = {made.from_ms - lead_ms, *(one.from_ms - lead_ms for one in others)}
    for begin_ms in sorted(begin_ms for begin_ms in begins if begin_ms >= made.from_ms - lead_ms):
        there = [one for one in everybody if one.begin_ms <= begin_ms < one.until_ms]
        refused = promises.refused(there, made)
        if refused is not None:
            return refused
    return None


@dataclass(frozen=True, slots=True, eq=False)
class _Promise:
    """One reservation against the fleet. ``begin_ms`` is when machines begin to be kept for it."""

    reservation: Reservation
    begin_ms: int
    until_ms: int
    serves: Mask
    """The rows that serve it for all of its window, …"""
    rows: Numbers
    """… and their numbers."""
    kind: int
    """Equal for those that the same rows serve."""

    @property
    def wanted(self) -> Requirements:
        return self.reservation.requirements

    @property
    def count(self) -> int:
        return self.wanted.device_count

    @property
    def may_be_alone(self) -> bool:
        """Whether one machine may hold all of it."""
        return self.wanted.gpus_per_worker in (0, self.count)

    @property
    def may_spread(self) -> bool:
        """Whether several machines may hold it."""
        return self.count > 1 and not self.wanted.one_machine and self.wanted.gpus_per_worker != self.count


class _Promises:
    """One question's view of the fleet."""

    def __init__(self, view: PlacementView, at_ms: int) -> None:
        self._view = view
        self._offers: Offers = view.offers
        self._draft = Draft(view, at_ms)
        self._serving = self._offers[Column.SERVING]
        self._joining: Mask = joins(self._offers, overlay_offered=view.overlay_offered)
        self._places = places_of(view)
        self._head_slots = head_slots_of(view)
        self._kinds: dict[bytes, int] = {}
        self._spoiling: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._breaking: dict[tuple[int, int, int, int, int, bool], int] = {}
        """What was worked out over all rows: most reservations are alike, and each is weighed at many instants."""

    def of(self, one: Reservation) -> _Promise:
        """A reservation with the rows that serve it."""
        begin_ms = one.from_ms - self._view.bookings.policy.lead_ms
        question = self._draft.question(one.requirements, ())
        serves = _serving_then(self._view, question, one.from_ms, one.until_ms) & (self._places > 0)
        kind = self._kinds.setdefault(serves.tobytes(), len(self._kinds))
        return _Promise(one, begin_ms, one.until_ms, serves, np.flatnonzero(serves), kind)

    def refused(self, there: list[_Promise], made: Reservation) -> str | None:
        """Why these cannot all have machines at a time; those that the new one does not touch are not its fault."""
        new = next(one for one in there if one.reservation is made)
        touched = [new, *(one for one in there if one is not new and _compete(one, new))]
        alone = self._sure_of_one_machine(there)
        for one in touched:
            if one.reservation.reservation_id not in alone and not self._spread(one, there, alone):
                return self._words(one, new, touched)
        return None

    def _sure_of_one_machine(self, there: list[_Promise]) -> set[ReservationId]:
        """Ids of those that find one machine however the others fall.

        All are taken to be sure until one is found that is not, and then again: in whatever order the sure ones are
        served, each finds the unit that the others cannot break.
        """
        sure = {one.reservation.reservation_id for one in there if one.may_be_alone}
        while True:
            failing = {
                one.reservation.reservation_id
                for one in there
                if one.reservation.reservation_id in sure and not self._has_machine(one, there, sure)
            }
            if not failing:
                return set(sure)
            sure -= failing

    def _has_machine(self, one: _Promise, there: list[_Promise], alone: set[ReservationId]) -> bool:
        """Whether the others have too few devices to make each of its machines too small for it.

        One that lies on one machine spoils no other than that, however much it has.
        """
        _, left = self._spoils(one, one)
        for other in there:
            if other is not one:
                of_one, of_all = self._spoils(one, other)
                is_alone = other.reservation.reservation_id in alone
                left -= min(other.count, of_one if is_alone else of_all)
        return left > 0

    def _spoils(self, one: _Promise, other: _Promise) -> tuple[int, int]:
        """Devices that make each machine too small that would do for both: most on one of them, and all together."""
        key = (one.kind, one.count, other.kind)
        known = self._spoiling.get(key)
        if known is None:
            rows = np.flatnonzero(one.serves & other.serves & (self._serving >= one.count))
            tight = self._places[rows] < self._serving[rows]
            spoils = np.where(tight, 1, self._serving[rows] - one.count + 1)
            known = self._spoiling[key] = (int(spoils.max(initial=0)), int(spoils.sum()))
        return known

    def _spread(self, one: _Promise, there: list[_Promise], alone: set[ReservationId]) -> bool:
        """Whether some ground has enough of it left, and a head slot."""
        if not one.may_spread:
            return False
        unit = max(1, one.wanted.gpus_per_worker)
        rows = _one_each(self._offers, self._serving, one.rows[self._joining[one.rows]])
        grounds = self._offers[Column.GROUND][rows]
        spread = [two for two in there if two is not one and two.reservation.reservation_id not in alone]
        for ground in np.unique(grounds).tolist():
            here = rows[grounds == ground]
            site = int(self._offers[Column.SITE][here[0]])
            if self._head_slots.get(site, 0) <= sum(two.may_spread for two in spread):
                continue
            if self._left(one, here, unit, there, alone) >= one.count // unit:
                return True
        return False

    def _left(
        self, one: _Promise, rows: Numbers, unit: int, there: Iterable[_Promise], alone: set[ReservationId]
    ) -> int:
        """Units of these rows that nobody else can break."""
        units = self._serving[rows] // unit
        if one.wanted.gpus_per_worker:
            # Each machine brings so many and no more.
            units = np.minimum(units, 1)
        left = int(units.sum())
        for other in there:
            if other is not one:
                is_alone = other.reservation.reservation_id in alone
                key = (one.kind, int(rows[0]), one.wanted.gpus_per_worker, other.kind, other.count, is_alone)
                if key not in self._breaking:
                    common = other.serves[rows]
                    broken = self._broken(rows[common], units[common], unit, other, alone=is_alone)
                    self._breaking[key] = broken
                left -= self._breaking[key]
        return left

    def _broken(self, rows: Numbers, units: Numbers, unit: int, other: _Promise, *, alone: bool) -> int:
        """Units of these rows that another one breaks at most.

        A machine that takes fewer members than it has devices is broken by the first of them.
        """
        if not len(rows):
            return 0
        tight = self._places[rows] < self._serving[rows]
        most = -(-other.count // unit) if alone else other.count
        of_tight = np.sort(units[tight])[::-1][: 1 if alone else other.count]
        broken = max(most, int(of_tight.sum())) if alone else most + int(of_tight.sum())
        return min(broken, int(units.max()) if alone else int(units.sum()))

    def _words(self, one: _Promise, new: _Promise, there: list[_Promise]) -> str:
        """What is missing, in numbers."""
        rows = new.rows
        fitting = int(self._serving[rows].sum())
        largest = max((int(self._serving[rows].max(initial=0)), *self._together(rows)))
        if len(there) == 1:
            if fitting < new.count or largest < new.count:
                return (
                    f"{fitting} fitting devices serve then, at most {largest} of them together,"
                    f" and {new.count} are asked for"
                )
            return f"{fitting} fitting devices serve then, and no head slot for {new.count} of them on several machines"
        others = [two for two in there if two is not new]
        promised = sum(two.count for two in others)
        said = (
            f"of {fitting} fitting devices {promised} are promised to {len(others)} others"
            f" (machines are kept from {self._view.bookings.policy.lead_ms // 60_000} minutes before each begin)"
        )
        if one is new:
            return f"{said}, and {new.count} cannot be promised beside them in every case"
        return f"{said}, who could not be sure of theirs any more with {new.count} of them gone"

    def _together(self, rows: Numbers) -> list[int]:
        joining = rows[self._joining[rows]]
        if not len(joining):
            return [0]
        sums = np.bincount(self._offers[Column.GROUND][joining], weights=self._serving[joining])
        return [int(sums.max(initial=0))]


def _serving_then(view: PlacementView, question: Question, from_ms: int, until_ms: int) -> Mask:
    """Rows that serve a request for all of a window: what is asked of machines now, and their owners' hours then."""
    state = question[Column.STATE]
    kept: Mask = (state == OPEN) | (state == ASLEEP)
    for one in FILTERS:
        if one.name not in OF_NOW and one.asked(question.wanted):
            kept &= one.keeps(question)
    for row in np.flatnonzero(kept & (question[Column.RECHECK_MS] != NEVER_MS)).tolist():
        worker = view.workers[view.offers.worker_of(row)]
        closes_ms, _ = worker.terms.hours(from_ms)
        kept[row] = closes_ms >= until_ms and all(hold.kind is HoldKind.SCHEDULE for hold in worker.holds)
    return kept


def places_of(view: PlacementView) -> Numbers:
    """Members with devices that each row's machine takes in all."""
    offers = view.offers
    slots = offers[Column.SLOTS].copy()
    for worker_id, member_ids in view.members_on.items():
        bearing = sum(bool(view.members[member_id].device_ids) for member_id in member_ids)
        slots[list(offers.rows_of(worker_id))] += bearing
    return slots


def head_slots_of(view: PlacementView) -> dict[int, int]:
    """Head slots of all head hosts that serve, by site."""
    found: dict[int, int] = {}
    for worker in view.workers.values():
        if worker.head_host and worker.placeable and worker.inventory.head_slots:
            site = int(view.offers[Column.SITE][next(iter(view.offers.rows_of(worker.worker_id)))])
            found[site] = found.get(site, 0) + worker.inventory.head_slots
    return found


def _compete(one: _Promise, other: _Promise) -> bool:
    """Whether one machine would do for both."""
    return bool((one.serves & other.serves).any())


def _one_each(offers: Offers, serving: Numbers, rows: Numbers) -> Numbers:
    """Of each worker the row with most devices: a member's share is of one kind."""
    workers = offers[Column.WORKER][rows]
    order = np.lexsort((-serving[rows], workers))
    found: Numbers = rows[order[np.unique(workers[order], return_index=True)[1]]]
    return found
