"""Round-trip times inferred from those that were measured, between workers that never measured each other.

Two ways, the surer first. A *detour*: both have measured a third, and by way of it neither can be farther from the
other than the two legs together; of all detours the shortest counts. Where they share no third, *coordinates*: each
worker has a point and a height (its own last mile), moved by springs until distances fit what was measured.
Which way was chosen over which others, and by what figures, is in docs/adr/0001-latency-knowledge.md.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIMENSIONS = 4
"""Two fit the globe's surface; two more take up routes that go around. Beyond four nothing was gained."""

UNKNOWN_US = 1 << 29
"""Stands for no knowledge inside sums: two of it still fit 32 bits, and no sum of two real legs reaches it."""

STEP = 0.5
"""Share of the misfit that one relaxation takes away: neighbours move at the same time, so all of it would swing."""

ERROR_SHARE = 0.25
"""Weight of the newest misfit in a worker's error: some four relaxations are remembered."""

ERROR_MAX = 2.0
"""Above this an error says nothing more; a worker with an impossible neighbour must still come back."""

ERROR_TRUSTED = 0.3
"""From this misfit on a point says nothing: those that have hardly settled mislead more than they help."""

HEIGHT_MIN_MS = 0.05
"""Half of what two machines on one switch see: a height of zero could never grow again."""

SPREAD_MS = 1.0
"""Where newcomers start: apart from each other, else no spring had a direction."""

MOVE_MAX_MS = 50.0
"""Longest move in one relaxation: what one impossible word can do to an honest worker before it is outvoted."""


class Coordinates:
    """A point, a height and an error for each row of a table that somebody else keeps."""

    def __init__(self) -> None:
        self._point = np.zeros((0, DIMENSIONS), dtype=np.float32)
        self._height = np.zeros(0, dtype=np.float32)
        self._error = np.zeros(0, dtype=np.float32)
        """Relative misfit, 0 to ERROR_MAX; ERROR_MAX at first."""

    def grow(self, rows: int) -> None:
        """Make room; what is there stays."""
        more = rows - len(self._height)
        self._point = np.concatenate([self._point, np.zeros((more, DIMENSIONS), dtype=np.float32)])
        self._height = np.concatenate([self._height, np.zeros(more, dtype=np.float32)])
        self._error = np.concatenate([self._error, np.zeros(more, dtype=np.float32)])

    def place(self, row: int, name: str) -> None:
        """Start a row anew, at a point that follows from its worker's name alone."""
        drawn = np.random.default_rng(zlib.crc32(name.encode())).normal(0.0, SPREAD_MS, DIMENSIONS)
        self._point[row] = drawn
        self._height[row] = SPREAD_MS
        self._error[row] = ERROR_MAX

    def between_us(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int32]:
        """Distances, len(rows) × len(others), in microseconds; UNKNOWN_US where either has not settled."""
        gap = self._point[rows][:, None, :] - self._point[others][None, :, :]
        straight_ms = np.sqrt(np.einsum("ijk,ijk->ij", gap, gap))
        distance_ms = straight_ms + self._height[rows][:, None] + self._height[others][None, :]
        settled = self._error < ERROR_TRUSTED
        known = settled[rows][:, None] & settled[others][None, :]
        return np.where(known, np.rint(distance_ms * 1_000), UNKNOWN_US).astype(np.int32)

    def relax(self, rows: NDArray[np.int64], peers: NDArray[np.int32], rtt_us: NDArray[np.int32]) -> None:
        """Move each of ``rows`` once by all its springs; ``peers`` and ``rtt_us`` hold a row for each, the latter
        UNKNOWN_US where there is no spring. Peers stay where they are, so nobody is moved by what others fake of it.
        """
        sprung = rtt_us < UNKNOWN_US
        held = sprung.any(axis=1)
        if not held.any():
            return
        rows, peers, rtt_us, sprung = rows[held], peers[held], rtt_us[held], sprung[held]
        rtt_ms = rtt_us.astype(np.float32) / 1_000
        gap = self._point[rows][:, None, :] - self._point[peers]
        straight_ms = np.sqrt(np.einsum("ijk,ijk->ij", gap, gap))
        height_ms = self._height[rows][:, None]
        fitted_ms = straight_ms + height_ms + self._height[peers]
        # A peer that is surer of its place pulls harder.
        own, theirs = self._error[rows][:, None], self._error[peers]
        weight = np.where(sprung, own / (own + theirs), 0)
        weight /= weight.sum(axis=1, keepdims=True)
        misfit_ms = np.clip(rtt_ms - fitted_ms, -MOVE_MAX_MS, MOVE_MAX_MS)
        pull_ms = STEP * weight * misfit_ms
        self._point[rows] += np.einsum("ij,ijk->ik", pull_ms / fitted_ms, gap)
        grown = height_ms[:, 0] + (pull_ms * height_ms / fitted_ms).sum(axis=1)
        self._height[rows] = np.maximum(HEIGHT_MIN_MS, grown)
        # Of all springs together: a millisecond's misfit of one of a millisecond is no reason to despair.
        error = (np.abs(rtt_ms - fitted_ms) * sprung).sum(axis=1) / (rtt_ms * sprung).sum(axis=1)
        mixed = ERROR_SHARE * np.minimum(error, ERROR_MAX) + (1 - ERROR_SHARE) * self._error[rows]
        self._error[rows] = mixed


def shortest_detours(peers: NDArray[np.int32], rtt_us: NDArray[np.int32]) -> NDArray[np.int32]:
    """For each pair of n: the least sum of two legs by way of any shared peer, UNKNOWN_US where none is shared.

    ``peers`` and ``rtt_us`` are n × slots: whom each has measured, and UNKNOWN_US where a slot says nothing.
    """
    count = len(peers)
    least = np.full((count, count), UNKNOWN_US, dtype=np.int32)
    who, slot = np.nonzero(rtt_us < UNKNOWN_US)
    via, leg_us = peers[who, slot], rtt_us[who, slot]
    order = np.argsort(via, kind="stable")
    via, who, leg_us = via[order], who[order], leg_us[order]
    starts = np.flatnonzero(np.diff(via, prepend=-1))
    ends = np.append(starts[1:], len(via))
    shared = ends - starts > 1
    for start, end in zip(starts[shared].tolist(), ends[shared].tolist(), strict=True):
        ends_of, legs = who[start:end], leg_us[start:end]
        square = np.ix_(ends_of, ends_of)
        least[square] = np.minimum(least[square], legs[:, None] + legs[None, :])
    return least
