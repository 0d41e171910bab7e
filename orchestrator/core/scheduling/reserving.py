"""Machines that a plan keeps for reservations, before it serves anybody.

From some time before its window until its end a reservation has so many devices kept as its jobs do not hold already:
on machines where most will be free by its begin, of equal ones where its jobs are. What is free of them is lent to
jobs that are sure to end before that, and to its own jobs within the window; nobody else sees it.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.ids import JobId
from orchestrator.core.scheduling.assembling import assemble
from orchestrator.core.scheduling.draft import FORMING_ALLOWANCE_MS, Draft
from orchestrator.core.scheduling.ends import release_of
from orchestrator.core.scheduling.filters import joins
from orchestrator.core.scheduling.heads import head_host
from orchestrator.core.scheduling.nominations import keep_nominated
from orchestrator.core.scheduling.offers import Column
from orchestrator.core.scheduling.placement import JobNeed, SpareNeed, VacancyNeed
from orchestrator.core.scheduling.promising import head_slots_of, places_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import MemberId, ReservationId, WorkerId
    from orchestrator.core.jobs import Requirements
    from orchestrator.core.scheduling.offers import Numbers
    from orchestrator.core.scheduling.placement import Need, PlacementView
    from orchestrator.core.tenancy.reservations import Reservation

TOLD_MAX = 2
"""Reservations that a waiting job hears of; the rest are counted."""


def opened(view: PlacementView, now_ms: int) -> Draft:
    """A draft in which machines are kept for whom others give way, and for the reservations whose time is near."""
    draft = Draft(view, now_ms)
    keep_nominated(draft)
    near = view.bookings.near(now_ms)
    if near:
        draft.reserved = Reserved(draft, near)
    return draft


@dataclass(slots=True)
class _Kept:
    """What is kept for one reservation. Arrays are by its rows: ``devices`` are free now, ``missing`` are still held."""

    one: Reservation
    rows: Numbers
    devices: Numbers
    missing: Numbers
    head_host: WorkerId | None
    slots: list[int]
    """Rows of which a slot is kept, each as often as one is."""


@dataclass(slots=True)
class _Held:
    """Devices of one row that will be free: ``until_ms`` 0 where an idle cluster gives way."""

    row: int
    devices: int
    until_ms: int


class Reserved:
    """All that one plan keeps for reservations, and its lending."""

    def __init__(self, draft: Draft, near: list[Reservation]) -> None:
        self._draft = draft
        self._held: list[_Held] | None = None
        self._kept: list[_Kept] = []
        self._places: Numbers = places_of(draft.view)
        """Of each row, how many members with devices its worker takes that no reservation has or is kept for."""
        self._used = {one.reservation_id: self._used_by(one.reservation_id) for one in near}
        self._used_by_all: Numbers = np.zeros(draft.view.offers.size, dtype=np.int64)
        for used in self._used.values():
            for row, count in used.items():
                self._used_by_all[row] += count
        for one in near:
            self._keep(one)

    # ------------------------------------------------------------ keeping

    def _used_by(self, reservation_id: ReservationId) -> Counter[int]:
        """Devices of each row that a reservation's clusters have."""
        draft, view = self._draft, self._draft.view
        used: Counter[int] = Counter()
        for cluster_id in view.bookings.clusters.get(reservation_id, ()):
            cluster = view.clusters[cluster_id]
            if cluster.phase is ClusterPhase.CLOSING or cluster.spare_for is not None:
                # A spare is beside what its job still runs on.
                continue
            for member in (view.members[member_id] for member_id in cluster.member_ids):
                row = draft.row_of(member.worker_id, member.device_ids) if member.device_ids else None
                if row is not None:
                    used[row] += len(member.device_ids)
                    self._places[list(view.offers.rows_of(member.worker_id))] -= 1
        return used

    def _keep(self, one: Reservation) -> None:
        """What its jobs do not hold already."""
        draft, used = self._draft, self._used[one.reservation_id]
        left = one.requirements.device_count - used.total()
        if left <= 0:
            return
        wanted: dict[int, int] = {}
        for row, count in self._machines(one, used):
            more = min(left, max(0, count - used[row]))
            if more:
                wanted[row] = more
                left -= more
        rows = np.array(list(wanted), dtype=np.int64)
        counts = np.array(list(wanted.values()), dtype=np.int64)
        devices = np.minimum(draft.free[rows], counts)
        host = None
        if len(rows) > 1:
            host = head_host(draft, JobNeed(JobId(""), one.tenant_id, one.requirements), int(rows[0]))
        kept = _Kept(one, rows, devices, counts - devices, None if host is None else host.worker_id, [])
        self._kept.append(kept)
        draft.booked[rows] += counts
        draft.awaited[rows[kept.missing > 0]] = True
        for row in rows.tolist():
            self._places[list(draft.view.offers.rows_of(draft.view.offers.worker_of(row)))] -= 1
        self._take(kept)

    def _machines(self, one: Reservation, used: Counter[int]) -> list[tuple[int, int]]:
        """Rows that hold the request beside all others', where most is free by its begin, or else where its jobs are."""
        draft, wanted, count = self._draft, one.requirements, one.requirements.device_count
        offers = draft.view.offers
        fits, _ = draft.fits(wanted, ())
        own: Numbers = np.zeros(offers.size, dtype=np.int64)
        own[list(used)] = list(used.values())
        # Of what serves: what is not promised to others and what others of them do not use.
        base = np.where(
            fits & (self._places > 0), offers[Column.SERVING] - draft.booked - (self._used_by_all - own), 0
        )
        soon = np.minimum(base, self._within_reach(own))
        if wanted.gpus_per_worker in (0, count):
            alone = np.flatnonzero(base >= count)
            if len(alone) and int(soon[alone].max()) < count:
                soon = np.minimum(base, self._within_reach(own, self._free_by(one)))
            if len(alone):
                enough = np.minimum(soon[alone], count)
                # Where its jobs are already comes second: what is missing beside them may never be let go.
                first = np.lexsort((alone, base[alone], -own[alone], -enough))[0]
                return [(int(alone[first]), count)]
        if count == 1 or wanted.one_machine or wanted.gpus_per_worker == count:
            return []
        soon = np.minimum(base, self._within_reach(own, self._free_by(one)))
        return self._together(one, base, soon, own)

    def _within_reach(self, own: Numbers, freed: Numbers | int = 0) -> Numbers:
        """Devices of each row that its own jobs hold, that are freed by then, or that are free where a slot is left for
        them: the others' slots are held, or kept for whom others give way.
        """
        draft = self._draft
        return np.where((draft.slots > 0) | (freed > 0), draft.free, 0) + own + freed

    def _together(
        self, one: Reservation, base: Numbers, soon: Numbers, own: Numbers
    ) -> list[tuple[int, int]]:
        """The same on several machines of one ground, whose head can go somewhere."""
        draft, offers, wanted = self._draft, self._draft.view.offers, one.requirements
        count, each = wanted.device_count, wanted.gpus_per_worker
        joining = (base >= max(1, each)) & joins(
            offers, overlay_offered=draft.view.overlay_offered, measured=wanted.measured_first
        )
        rows = draft.one_row_each(np.flatnonzero(joining), base)
        brought = np.minimum(base, each or count)
        early = np.minimum(soon, brought) // max(1, each) * max(1, each)
        need = JobNeed(JobId(""), one.tenant_id, wanted)
        sites = head_slots_of(draft.view)
        best: tuple[int, int, int, int] | None = None
        for ground in np.unique(offers[Column.GROUND][rows]).tolist():
            here = rows[offers[Column.GROUND][rows] == ground]
            if int(brought[here].sum()) >= count and sites.get(int(offers[Column.SITE][here[0]])):
                headless = int(head_host(draft, need, int(here[0])) is None)
                rank = (headless, -min(count, int(early[here].sum())), -int(own[here].sum()), ground)
                best = rank if best is None else min(best, rank)
        if best is None:
            return []
        here = rows[offers[Column.GROUND][rows] == best[3]]
        near = self._near(wanted, here, early) if wanted.max_rtt_ms else None
        if near is not None:
            return near
        here = here[np.lexsort((here, -base[here], -own[here], -early[here]))]
        # What is held beside them without an end is waited for only where the rest is not enough.
        brought = early if int(early[here].sum()) >= count else brought
        reached = np.cumsum(brought[here])
        end = int(np.searchsorted(reached, count))
        shares = list(zip(here[:end].tolist(), brought[here[:end]].tolist(), strict=True))
        before = int(reached[end - 1]) if end else 0
        return [*shares, (int(here[end]), count - before)]

    def _near(self, wanted: Requirements, rows: Numbers, early: Numbers) -> list[tuple[int, int]] | None:
        """Those of them that are measured to be near enough; what is not is noted, to be measured before the begin."""
        draft = self._draft
        free = draft.free.copy()
        draft.free[:] = early
        try:
            found = assemble(draft, wanted, rows[early[rows] >= max(1, wanted.gpus_per_worker)])
        finally:
            draft.free[:] = free
        return None if found is None else found.shares

    def _free_by(self, one: Reservation) -> Numbers:
        """Devices of each row that idle clusters have, and jobs that are sure to end by its begin, or minutes after."""
        found: Numbers = np.zeros(self._draft.view.offers.size, dtype=np.int64)
        if self._held is None:
            self._held = list(self._holders())
        for held in self._held:
            if held.until_ms <= one.from_ms + FORMING_ALLOWANCE_MS:
                found[held.row] += held.devices
        return found

    def _holders(self) -> Iterator[_Held]:
        view = self._draft.view
        for cluster_id in view.idle_clusters:
            cluster = view.clusters[cluster_id]
            if cluster.spare_for is None and view.bookings.of(cluster.reservation_id) is None:
                yield from self._held_in(cluster.member_ids, 0)
        for cluster_id in view.attempt_in:
            cluster = view.clusters[cluster_id]
            if view.bookings.of(cluster.reservation_id) is None:
                release = release_of(view, cluster_id, self._draft.now_ms)
                if release.known:
                    yield from self._held_in(cluster.member_ids, release.at_ms)

    def _held_in(self, member_ids: tuple[MemberId, ...], until_ms: int) -> Iterator[_Held]:
        for member_id in member_ids:
            member = self._draft.view.members[member_id]
            row = self._draft.row_of(member.worker_id, member.device_ids) if member.device_ids else None
            if row is not None:
                yield _Held(row, len(member.device_ids), until_ms)

    # ------------------------------------------------------------ lending

    @contextmanager
    def lending(self, need: Need) -> Iterator[None]:
        """While a need is placed: to a job of a reservation what is kept for that and nothing else, to others what is
        lent to them beside what is free.
        """
        draft = self._draft
        lent = self._lent(need)
        alone = isinstance(need, JobNeed) and need.reservation_id is not None
        if not lent and not alone:
            yield
            return
        free, awaited, booked = draft.free.copy(), draft.awaited, draft.booked
        draft.awaited, draft.booked = awaited.copy(), booked.copy()
        if alone:
            draft.free[:] = 0
            draft.awaited[:] = False
        for kept in lent:
            self._give(kept)
            draft.awaited[kept.rows] = False
            draft.booked[kept.rows] -= kept.devices + kept.missing
        try:
            yield
        finally:
            for kept in lent:
                kept.devices = np.minimum(kept.devices, draft.free[kept.rows])
                self._take(kept)
            if alone:
                draft.free[:] = free
            draft.awaited, draft.booked = awaited, booked

    def lent_to(self, need: Need) -> tuple[ReservationId, ...]:
        """Whose machines a need may use: what is equal for two of them, as far as reservations go."""
        return tuple(kept.one.reservation_id for kept in self._lent(need))

    def _lent(self, need: Need) -> list[_Kept]:
        view = self._draft.view
        owner: ReservationId | None = None
        match need:
            case VacancyNeed():
                owner = view.clusters[need.cluster_id].reservation_id
            case SpareNeed():
                pass
            case JobNeed():
                owner = need.reservation_id
                if owner is None and need.time_limit_ms:
                    over_ms = self._draft.now_ms + FORMING_ALLOWANCE_MS + need.time_limit_ms
                    return [kept for kept in self._kept if kept.one.from_ms >= over_ms]
        return [kept for kept in self._kept if kept.one.reservation_id == owner]

    def _give(self, kept: _Kept) -> None:
        self._move(kept, 1)

    def _take(self, kept: _Kept) -> None:
        if int((kept.devices > 0).sum()) <= 1 and not kept.missing.any():
            kept.head_host = None
        self._move(kept, -1)

    def _move(self, kept: _Kept, sign: int) -> None:
        """Devices, a place on each machine and a head slot, to the draft or out of it."""
        draft, offers = self._draft, self._draft.view.offers
        draft.free[kept.rows] += sign * kept.devices
        if sign < 0:
            # One that somebody else has is not there to be kept.
            rows = [row for row in kept.rows[kept.devices > 0].tolist() if draft.slots[row] > 0]
            kept.slots = [other for row in rows for other in offers.rows_of(offers.worker_of(row))]
        np.add.at(draft.slots, kept.slots, sign)
        if kept.head_host is not None:
            draft.heads[kept.head_host] -= sign

    # ------------------------------------------------------------ words

    def kept(self) -> tuple[tuple[WorkerId, str, int], ...]:
        """Free devices that are kept at the end of a plan: of which worker and model, and how many."""
        offers = self._draft.view.offers
        return tuple(
            (offers.worker_of(row), offers.model_of(row), count)
            for kept in self._kept
            for row, count in zip(kept.rows.tolist(), kept.devices.tolist(), strict=True)
            if count > 0
        )

    def words(self, need: Need) -> str:
        """How much of what fits a need is reserved by others, and when; empty where nothing is."""
        fits, _ = self._draft.fits(need.requirements, need.avoid)
        lent = {id(kept) for kept in self._lent(need)}
        found = [
            (int(kept.devices[fits[kept.rows]].sum()), kept.one.window)
            for kept in self._kept
            if id(kept) not in lent
        ]
        found = [one for one in found if one[0]]
        told = [f"{count} fitting devices are reserved {window}" for count, window in found[:TOLD_MAX]]
        rest = sum(count for count, _ in found[TOLD_MAX:])
        return ", ".join([*told, *([f"{rest} by {len(found) - TOLD_MAX} more"] if rest else [])])
