"""What ways between workers carried where a job asked for bandwidth, and whose line is known to be slower than asked.

A way carries no more than the slower of its two lines, so one slow way says nothing of whose fault it is. A worker is
*known* to be slower only where no fresh way of it carried as much as asked, and those to two others fell short that did
carry it with somebody: one liar can slander nobody, and who is not known is tried. Both ends' words stand behind each
figure (``delivery``). Nothing here is stored: measurements are not decisions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from orchestrator.core.ids import WorkerId

PEERS = 16
"""The newest remembered of each worker: two or three small clusters' members, and 272 bytes a worker."""

KNOWN_MS_MAX = 6 * 3_600_000
"""As for round trips: a line that somebody else filled an hour ago may be free by the evening, so it is tried again."""

ACCUSERS_MIN = 2
"""Able workers whose ways to a third fell short, before that is known to be the third's fault."""

ROWS_MIN = 64
NOBODY = -1


class BandwidthMap:
    """A few ways of each worker that has served where bandwidth was asked for."""

    def __init__(self) -> None:
        self._row: dict[WorkerId, int] = {}
        self._ids: list[WorkerId | None] = []
        self._free: list[int] = []
        """Rows of the forgotten."""
        self._peer = np.full((0, PEERS), NOBODY, dtype=np.int64)
        self._rate = np.zeros((0, PEERS), dtype=np.int64)
        """Bits per second."""
        self._at_ms = np.zeros((0, PEERS), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._row)

    def observe(self, one: WorkerId, other: WorkerId, bits_per_s: int, at_ms: int) -> None:
        """What the way between two workers carried; the newest figure counts. Raises ValueError that names the field."""
        if one == other:
            raise ValueError(f"other: {other!r} is the same worker; name both ends of the way")
        if bits_per_s <= 0:
            raise ValueError(f"bits_per_s: {bits_per_s} is no figure; leave out what was not measured")
        row, far_row = self._row_for(one), self._row_for(other)
        for here, there in ((row, far_row), (far_row, row)):
            slot = self._slot_for(here, there)
            self._peer[here, slot], self._rate[here, slot] = there, bits_per_s
            self._at_ms[here, slot] = at_ms

    def forget(self, worker_id: WorkerId) -> None:
        """A worker that is gone, and what others carried with it. Strangers are passed over."""
        row = self._row.pop(worker_id, None)
        if row is None:
            return
        self._peer[row] = NOBODY
        self._peer[self._peer == row] = NOBODY
        self._ids[row] = None
        self._free.append(row)

    def between(self, one: WorkerId, other: WorkerId, now_ms: int) -> int | None:
        """Bits per second, if they are known freshly."""
        row, far_row = self._row.get(one), self._row.get(other)
        if row is None or far_row is None:
            return None
        held = np.flatnonzero(self._peer[row] == far_row)
        if not len(held) or self._at_ms[row, held[0]] < now_ms - KNOWN_MS_MAX:
            return None
        return int(self._rate[row, held[0]])

    def slower_than(self, bits_per_s: int, now_ms: int) -> tuple[WorkerId, ...]:
        """Workers known to carry less, by no word of theirs or of one other alone."""
        rates = self._fresh_rates(now_ms)
        able = rates.max(axis=1, initial=0) >= bits_per_s
        # Of NOBODY the rate is 0, which accuses nobody.
        accused = (rates > 0) & (rates < bits_per_s) & able[self._peer[: len(rates)]]
        slow = ~able & (accused.sum(axis=1) >= ACCUSERS_MIN)
        return tuple(name for row in np.flatnonzero(slow).tolist() if (name := self._ids[row]) is not None)

    def _fresh_rates(self, now_ms: int) -> NDArray[np.int64]:
        """By row and slot; 0 where nothing fresh is known."""
        count = len(self._ids)
        fresh = (self._peer[:count] != NOBODY) & (self._at_ms[:count] >= now_ms - KNOWN_MS_MAX)
        return np.where(fresh, self._rate[:count], 0)

    def _slot_for(self, row: int, peer: int) -> int:
        """The slot of a pair; else an empty one; else that of the oldest figure."""
        peers = self._peer[row]
        held = np.flatnonzero(peers == peer)
        if not len(held):
            held = np.flatnonzero(peers == NOBODY)
        return int(held[0]) if len(held) else int(np.argmin(self._at_ms[row]))

    def _row_for(self, worker_id: WorkerId) -> int:
        row = self._row.get(worker_id)
        if row is not None:
            return row
        if self._free:
            row = self._free.pop()
            self._ids[row] = worker_id
        else:
            row = len(self._ids)
            if row == len(self._peer):
                self._grow(max(ROWS_MIN, 2 * row))
            self._ids.append(worker_id)
        self._row[worker_id] = row
        return row

    def _grow(self, rows: int) -> None:
        more = rows - len(self._peer)
        self._peer = np.concatenate([self._peer, np.full((more, PEERS), NOBODY, dtype=np.int64)])
        self._rate = np.concatenate([self._rate, np.zeros((more, PEERS), dtype=np.int64)])
        self._at_ms = np.concatenate([self._at_ms, np.zeros((more, PEERS), dtype=np.int64)])
