"""What a gang is chosen from: candidates, what is asked of them, and what is known of the distances between them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from orchestrator.core.jobs import Pattern

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]
    Floats = NDArray[np.float64]

_Number = TypeVar("_Number", np.int64, np.float64)

UNMEASURED = -1
"""In place of an RTT that nobody measured. One that was tried and not reached is measured: as UNREACHED_US."""

UNREACHED_US = 10**9
"""A pair that does not reach each other: farther apart than any bound."""

UNKNOWN_US = 300_000
"""What a pair of which nothing is known is taken for where no bound asks: about the other end of the world."""

SLACK = 1.5
"""How far beyond the bound a predicted RTT may lie and still be worth a probe: of PlanetLab's pairs within 20 ms a
factorisation puts half beyond 20 ms, and a fifth beyond this."""

US_PER_MS = 1_000
BASIS_POINTS = 10_000
SWEEPS_MAX = 2
"""Of a path's improvement, turns for each member: it ends by itself well before, this only bounds it."""


class Trust(IntEnum):
    """Which pairs may be proposed without a measurement."""

    PREDICTED = 0
    """Those predicted to be within the bound."""
    HOPED = 1
    """Also those predicted to be within SLACK times the bound, and those of which nothing is known."""


class Rtt(Protocol):
    """What is known of distances, by number of candidate. Symmetric: both directions are settled before.

    Both answer with an array of shape (rows, columns); the diagonal is never read.
    """

    def measured_us(self, rows: Numbers, columns: Numbers) -> Numbers:
        """As measured, UNMEASURED where nobody did."""

    def predicted_us(self, rows: Numbers, columns: Numbers) -> Floats:
        """As predicted, NaN where nothing is known."""


@dataclass(frozen=True, slots=True, eq=False)
class Matrices:
    """Distances as two whole matrices, each of shape (n, n) and symmetric."""

    measured: Numbers
    predicted: Floats

    def measured_us(self, rows: Numbers, columns: Numbers) -> Numbers:
        return _part(self.measured, rows, columns)

    def predicted_us(self, rows: Numbers, columns: Numbers) -> Floats:
        return _part(self.predicted, rows, columns)


def matrices(measured_us: NDArray[np.int32], predicted_us: NDArray[np.int32]) -> Matrices:
    """Of two tables in whole microseconds that say -1 where nothing is known, as LatencyMap gives them."""
    predicted = predicted_us.astype(np.float64)
    predicted[predicted_us < 0] = np.nan
    return Matrices(measured_us.astype(np.int64), predicted)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Workers that may be members: one number each in three columns, costs in microcredits an hour.

    ``fixed_cost`` is of having the worker at all, at least 0; sums have to stay below EXACT_US.
    """

    free: Numbers
    unit_cost: Numbers
    fixed_cost: Numbers

    def __post_init__(self) -> None:
        """Refuse what no plan could mean."""
        if not self.free.shape == self.unit_cost.shape == self.fixed_cost.shape or self.free.ndim != 1:
            raise ValueError("free, unit_cost, fixed_cost: want three columns of one length")
        if self.fixed_cost.size and int(self.fixed_cost.min()) < 0:
            raise ValueError("fixed_cost: less than 0; add the same amount to all, the choice stays the same")


@dataclass(frozen=True, slots=True)
class Wish:
    """``count`` devices of workers within ``bound_us`` of each other, at least cost with what distance costs.

    ``microcredits_per_ms`` is the price of what the pattern feels: of the largest RTT of any pair, of the path through
    all, or of nothing. It counts beside a bound as well as without one.
    """

    count: int
    bound_us: int | None = None
    pattern: Pattern = Pattern.ALL_REDUCE
    microcredits_per_ms: int = 0
    headroom_bp: int = 0
    """Basis points of the bound that are kept free where that is possible at all: links drift while a job runs."""

    def __post_init__(self) -> None:
        """Refuse what no gang could meet."""
        if self.count < 1:
            raise ValueError(f"count: {self.count}; a gang has one device at least")
        if self.bound_us is not None and self.bound_us < 0:
            raise ValueError(f"bound_us: {self.bound_us}; want 0 or more, or None for no bound")
        if self.microcredits_per_ms < 0:
            raise ValueError(f"microcredits_per_ms: {self.microcredits_per_ms}; distance is never a gain")
        if not 0 <= self.headroom_bp < BASIS_POINTS:
            raise ValueError(f"headroom_bp: {self.headroom_bp}; want 0 or more, and less than {BASIS_POINTS}")

    @property
    def weighs_distance(self) -> bool:
        """Whether of two gangs within the bound one can be better because it is nearer."""
        return self.microcredits_per_ms > 0 and self.pattern is not Pattern.INDEPENDENT

    def penalty(self, block_us: Floats) -> int:
        """What the distances between members (shape (k, k)) cost, in microcredits an hour."""
        if not self.weighs_distance or len(block_us) <= 1:
            return 0
        return -(-self.microcredits_per_ms * spread_us(block_us, self.pattern) // US_PER_MS)


class Field:
    """The candidates that have something to give, cheapest first, with distances as far as they are trusted.

    ``price`` is the cost of a device with the fixed charge spread over as many as the wish could use.
    """

    def __init__(self, candidates: Candidates, wish: Wish, rtt: Rtt, trust: Trust) -> None:
        free = np.minimum(candidates.free, wish.count)
        having = np.flatnonzero(free > 0)
        price = candidates.unit_cost[having] + candidates.fixed_cost[having] / free[having]
        order = np.lexsort((-free[having], candidates.unit_cost[having], price))
        self.ids: Numbers = having[order].astype(np.int64)
        """Number of the candidate, by position here."""
        self.price: Floats = price[order].astype(np.float64)
        self.free: Numbers = free[self.ids].astype(np.int64)
        self.unit: Numbers = candidates.unit_cost[self.ids]
        self.fixed: Numbers = candidates.fixed_cost[self.ids]
        self.wish = wish
        self.trust = trust
        self.rtt = rtt

    def __len__(self) -> int:
        return len(self.ids)

    def block_us(self, rows: Numbers, columns: Numbers) -> Floats:
        """Distances by position: measured where measured, else as trusted; NaN where that says nothing."""
        row_ids, column_ids = self.ids[rows], self.ids[columns]
        measured = self.rtt.measured_us(row_ids, column_ids)
        known = measured >= 0
        if known.all():
            block = measured.astype(np.float64)
        else:
            predicted = self.rtt.predicted_us(row_ids, column_ids)
            if self.trust is Trust.HOPED:
                predicted = np.where(np.isnan(predicted), float(self.wish.bound_us or 0), predicted / SLACK)
            block = np.where(known, measured, predicted)
        block[row_ids[:, None] == column_ids] = 0.0
        return block

    def square_us(self, positions: Sequence[int] | Numbers) -> Floats:
        """Distances between some, both ways."""
        some = np.asarray(positions, dtype=np.int64)
        return self.block_us(some, some)


def _part(matrix: NDArray[_Number], rows: Numbers, columns: Numbers) -> NDArray[_Number]:
    """Some rows and columns; by numbers of elements, which is several times quicker than by pairs of indexes."""
    part: NDArray[_Number] = matrix.take(rows[:, None] * matrix.shape[1] + columns)
    return part


def spread_us(block_us: Floats, pattern: Pattern) -> int:
    """How far apart members (shape (k, k)) are as ``pattern`` feels it, rounded up."""
    match pattern:
        case Pattern.INDEPENDENT:
            return 0
        case Pattern.ALL_REDUCE:
            return diameter_us(block_us)
        case Pattern.PIPELINE:
            path = path_of(block_us)
            return int(np.ceil(_known(block_us)[path[:-1], path[1:]].sum()))


def diameter_us(block_us: Floats) -> int:
    """The largest distance between any two, rounded up; pairs of which nothing is known count UNKNOWN_US."""
    return int(np.ceil(_known(block_us).max(initial=0.0)))


def path_of(block_us: Floats) -> list[int]:
    """A short path through all members (shape (k, k)): the best of nearest-neighbour walks, then crossings undone."""
    block = _known(block_us)
    count = len(block)
    walks = np.empty((count, count), dtype=np.int64)
    walks[:, 0] = np.arange(count)
    visited = np.eye(count, dtype=np.bool_)
    lengths = np.zeros(count)
    everyone = np.arange(count)
    for step in range(1, count):
        steps_us = np.where(visited, np.inf, block[walks[:, step - 1]])
        nearest = steps_us.argmin(axis=1)
        lengths += steps_us[everyone, nearest]
        walks[:, step] = nearest
        visited[everyone, nearest] = True
    return _uncrossed(block, walks[int(lengths.argmin())] if count else walks[:0].ravel())


def _uncrossed(block: Floats, path: Numbers) -> list[int]:
    """A path with stretches turned around wherever that shortens it."""
    for _ in range(SWEEPS_MAX * len(path)):
        along = block[path[:, None], path]
        edge = np.append(np.diagonal(along, 1), 0.0)
        # Turning positions i..j around joins i-1 with j and i with j+1 in place of i-1 with i and j with j+1.
        before = np.vstack([np.zeros(len(path)), along[:-1]])
        after = np.hstack([along[:, 1:], np.zeros((len(path), 1))])
        gain = np.triu(np.append(0.0, edge[:-1])[:, None] + edge[None, :] - before - after, 1)
        i, j = divmod(int(gain.argmax()), len(path)) if gain.size else (0, 0)
        if not gain.size or gain[i, j] <= 1.0:
            break
        path = np.concatenate([path[:i], path[i : j + 1][::-1], path[j + 1 :]])
    return [int(i) for i in path]


def _known(block_us: Floats) -> Floats:
    return np.where(np.isnan(block_us), float(UNKNOWN_US), block_us)
