"""Silence, measured: when each worker was last heard, whose silence has become too long, and whose is likelier ours.

The table is columns of numbers, so that a tick over a hundred thousand workers costs about a millisecond. Nothing of
it is stored: after a start everybody is granted a full term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.supply.fleet import Liveness, Worker
from orchestrator.core.supply.holds import HoldKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from orchestrator.core.ids import SupplierId, WorkerId
    from orchestrator.core.supply.fleet import FleetPolicy

NEVER_MS = 2**62
"""Of a worker that was never heard: it is never late, for nothing was promised to it yet."""

ROWS_MIN = 64

LEASE_MAX_MS = 24 * 3_600_000
"""A machine that nobody hears for a day is not coming back to its work."""

LEASE_BEATS_MIN = 4
"""Heartbeats in a lease: three may be missed in a row, as before a worker is suspect, and the node still lives."""

ZONE_RETURN_MS = 60_000
"""Agents come back over twice their longest backoff of 30 s: the last of a zone is not blamed for the first's haste."""

OUT, LIVE, SUSPECT = 0, 1, 2
STANDING = {Liveness.LIVE: LIVE, Liveness.SUSPECT: SUSPECT, Liveness.LOST: OUT, Liveness.LEFT: OUT}


def suspect_after_ms(worker: Worker, policy: FleetPolicy) -> int:
    """Silence that makes a worker suspect: well before it is lost, also where the network's policy has changed."""
    return min(policy.suspect_after_ms, worker.lost_after_ms(policy) // 2)


@dataclass(frozen=True, slots=True)
class Silence:
    """A worker whose silence has become too long for its standing."""

    worker_id: WorkerId
    silence_ms: int
    excused: bool
    """At some time of its silence most of its zone was silent with it."""


@dataclass(frozen=True, slots=True)
class Silences:
    """What a tick finds."""

    suspect: tuple[Silence, ...] = ()
    """Live workers that are to be suspect."""
    lost: tuple[Silence, ...] = ()
    """Suspect workers that are to be lost: never one of a held zone within the window."""
    zones_held: frozenset[str] = frozenset()


class HeartbeatTable:
    """When each worker was last heard, and how long it may be silent."""

    def __init__(self) -> None:
        self._row: dict[WorkerId, int] = {}
        self._ids: list[WorkerId] = []
        self._free: list[int] = []
        """Rows of the forgotten."""
        self._zone_number: dict[str, int] = {}
        self._zones: list[str] = []
        self._supplier_number: dict[SupplierId, int] = {}
        self._heard_ms = np.full(ROWS_MIN, NEVER_MS, dtype=np.int64)
        self._suspect_ms = np.zeros(ROWS_MIN, dtype=np.int64)
        self._lost_ms = np.zeros(ROWS_MIN, dtype=np.int64)
        self._zone = np.zeros(ROWS_MIN, dtype=np.int32)
        self._supplier = np.zeros(ROWS_MIN, dtype=np.int32)
        self._standing = np.zeros(ROWS_MIN, dtype=np.int8)
        self._vouched = np.zeros(ROWS_MIN, dtype=np.bool_)
        self._excused = np.zeros(ROWS_MIN, dtype=np.bool_)
        self._held_until_ms: dict[int, int] = {}
        """Zones by number that are, or just were, silent: when they are no longer spared."""

    # ------------------------------------------------------------ writing

    def heard(self, worker_id: WorkerId, monotonic_ms: int) -> None:
        """Record a sign of life."""
        row = self._row.get(worker_id)
        if row is None:
            row = self._add(worker_id)
        self._heard_ms[row] = monotonic_ms

    def follow(self, worker: Worker, policy: FleetPolicy) -> None:
        """Keep what is known of a worker true: its standing, its patience and its zone."""
        row = self._row.get(worker.worker_id)
        if row is None:
            row = self._add(worker.worker_id)
        standing = STANDING[worker.liveness]
        self._standing[row] = standing
        self._suspect_ms[row] = suspect_after_ms(worker, policy)
        self._lost_ms[row] = worker.lost_after_ms(policy)
        self._zone[row] = self._number(worker.inventory.zone)
        suppliers = self._supplier_number
        self._supplier[row] = suppliers.setdefault(worker.supplier_id, len(suppliers))
        self._vouched[row] = worker.hold(HoldKind.PROBATION) is None
        if standing == LIVE:
            self._excused[row] = False

    def forget(self, worker_id: WorkerId) -> None:
        """A worker is no longer known: its row is the next one's."""
        row = self._row.pop(worker_id)
        self._standing[row] = OUT
        self._free.append(row)

    def _number(self, zone: str) -> int:
        number = self._zone_number.get(zone)
        if number is None:
            number = self._zone_number[zone] = len(self._zones)
            self._zones.append(zone)
        return number

    def _add(self, worker_id: WorkerId) -> int:
        if self._free:
            row = self._row[worker_id] = self._free.pop()
            self._ids[row] = worker_id
            self._heard_ms[row] = NEVER_MS
            self._excused[row] = False
            return row
        row = len(self._ids)
        self._row[worker_id] = row
        self._ids.append(worker_id)
        if row >= len(self._heard_ms):
            more = len(self._heard_ms)
            self._heard_ms = np.concatenate([self._heard_ms, np.full(more, NEVER_MS, dtype=np.int64)])
            self._suspect_ms = np.concatenate([self._suspect_ms, np.zeros_like(self._suspect_ms)])
            self._lost_ms = np.concatenate([self._lost_ms, np.zeros_like(self._lost_ms)])
            self._zone = np.concatenate([self._zone, np.zeros_like(self._zone)])
            self._supplier = np.concatenate([self._supplier, np.zeros_like(self._supplier)])
            self._standing = np.concatenate([self._standing, np.zeros_like(self._standing)])
            self._vouched = np.concatenate([self._vouched, np.zeros_like(self._vouched)])
            self._excused = np.concatenate([self._excused, np.zeros_like(self._excused)])
        return row

    # ------------------------------------------------------------ reading

    def heard_ms(self, worker_id: WorkerId, default_ms: int) -> int:
        """Monotonic ms of the last sign of life; ``default_ms`` where there was none yet."""
        row = self._row.get(worker_id)
        heard_ms = NEVER_MS if row is None else int(self._heard_ms[row])
        return default_ms if heard_ms == NEVER_MS else heard_ms

    def excused(self, worker_id: WorkerId) -> bool:
        """Whether the present silence of a worker was at some time that of most of its zone."""
        row = self._row.get(worker_id)
        return row is not None and bool(self._excused[row])

    def silences(self, monotonic_ms: int, policy: FleetPolicy) -> Silences:
        """Whose silence has become too long, in order of first contact.

        If most of a zone vanishes at once, suspect ourselves: no mass eviction, no penalty. A zone is *held* while at
        least ``zone_hold_ratio`` of its workers (lost and left ones aside, and at least ``zone_hold_min_workers`` in
        all) are silent since no longer than ``zone_window_ms``, and the silent ones belong to at least
        ``zone_hold_min_suppliers`` suppliers: a zone is the supplier's own word, and nobody is spared for inventing
        one. Workers that name no zone are one zone together, which tells only whether it is us.

        While a zone is held, and ZONE_RETURN_MS longer for those who come back last, nobody of it is lost, and whoever
        of it is silent is excused. A worker that has been silent for longer than the window is not spared any more,
        but stays excused: it may be lost, without a penalty.

        Strangers on probation are counted only where there are too few others to ask: else ten thousand of them, who
        risk nothing, could say for a zone that it is well. As suppliers they count only in a network of nobody else.
        """
        count = len(self._ids)
        silence_ms = monotonic_ms - self._heard_ms[:count]
        standing = self._standing[:count]
        # A beat before suspicion: the beats of a zone are spread over an interval, and the first worker of it that
        # becomes suspect has to find the others counted.
        quiet = silence_ms > self._suspect_ms[:count] - policy.heartbeat_interval_ms
        quiet &= standing != OUT
        if not quiet.any() and not self._held_until_ms:
            return Silences()
        held = self._held(monotonic_ms, silence_ms, quiet, policy)
        spared = held[self._zone[:count]] & (silence_ms <= policy.zone_window_ms)
        self._excused[:count] |= spared & quiet
        suspect = (standing == LIVE) & (silence_ms > self._suspect_ms[:count])
        lost = (standing == SUSPECT) & (silence_ms > self._lost_ms[:count]) & ~spared
        return Silences(
            suspect=self._named(suspect, silence_ms),
            lost=self._named(lost, silence_ms),
            zones_held=frozenset(self._zones[number] for number in np.flatnonzero(held)),
        )

    def _held(
        self,
        monotonic_ms: int,
        silence_ms: NDArray[np.int64],
        quiet: NDArray[np.bool_],
        policy: FleetPolicy,
    ) -> NDArray[np.bool_]:
        """By zone number, whether it is held now."""
        count, zones = len(self._ids), len(self._zones)
        zone, vouched = self._zone[:count], self._vouched[:count]
        present = (self._standing[:count] != OUT) & (self._heard_ms[:count] != NEVER_MS)
        at_once = quiet & (silence_ms <= policy.zone_window_ms)
        size = np.bincount(zone[present & vouched], minlength=zones)
        silent = np.bincount(zone[at_once & vouched], minlength=zones)
        few = size < policy.zone_hold_min_workers
        if few.any():
            size = np.where(few, np.bincount(zone[present], minlength=zones), size)
            silent = np.where(few, np.bincount(zone[at_once], minlength=zones), silent)
        mostly = (size >= policy.zone_hold_min_workers) & (silent >= policy.zone_hold_ratio * size)
        if mostly.any():
            asked = present & vouched
            asked = asked if asked.any() else present
            supplier = self._supplier[:count]
            least = min(policy.zone_hold_min_suppliers, len(np.unique(supplier[asked])))
            mostly &= self._suppliers(zone, supplier, at_once & asked) >= least
        for number in np.flatnonzero(mostly):
            self._held_until_ms[int(number)] = monotonic_ms + ZONE_RETURN_MS
        self._held_until_ms = {
            number: until_ms for number, until_ms in self._held_until_ms.items() if monotonic_ms <= until_ms
        }
        held = np.zeros(zones, dtype=np.bool_)
        held[list(self._held_until_ms)] = True
        return held

    def _suppliers(
        self, zone: NDArray[np.int32], supplier: NDArray[np.int32], which: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """By zone number, the suppliers of these workers."""
        suppliers = len(self._supplier_number)
        pairs = np.unique(zone[which].astype(np.int64) * suppliers + supplier[which])
        return np.bincount(pairs // suppliers, minlength=len(self._zones))

    def _named(self, which: NDArray[np.bool_], silence_ms: NDArray[np.int64]) -> tuple[Silence, ...]:
        return tuple(
            Silence(self._ids[row], int(silence_ms[row]), bool(self._excused[row]))
            for row in np.flatnonzero(which)
        )
