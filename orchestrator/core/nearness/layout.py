"""A flat picture of distances: classical multidimensional scaling, for people to look at. Nothing is decided by it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

US_PER_MS = 1_000

APART = 1.5
"""Of the longest distance known: where those are drawn that no known way leads to, so that they are seen to be apart."""


def positions_ms(distances_us: NDArray[np.int32]) -> NDArray[np.float64]:
    """Points in milliseconds, n × 2, whose distances come near those given: n × n, symmetric, -1 where nothing is known.

    Unknown pairs count as the shortest known way by others. Some ten milliseconds for 256.
    """
    whole_ms = _completed_ms(distances_us)
    count = len(whole_ms)
    if count <= 1:
        return np.zeros((count, 2))
    squared = whole_ms**2
    centred = squared - squared.mean(axis=0) - squared.mean(axis=1)[:, None] + squared.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    points: NDArray[np.float64] = np.zeros((count, 2))
    # Of the largest two; a negative one says that no plane holds these distances, and counts as none.
    for axis in range(min(2, count)):
        vector = vectors[:, -1 - axis]
        # Which way is up is the library's whim: the same picture for the same distances.
        vector = vector * (1 if vector[int(np.abs(vector).argmax())] > 0 else -1)
        points[:, axis] = vector * np.sqrt(max(0.0, float(values[-1 - axis])))
    return points


def _completed_ms(distances_us: NDArray[np.int32]) -> NDArray[np.float64]:
    """Shortest known ways in milliseconds; between parts that no way joins, APART times the longest."""
    ways = np.where(distances_us < 0, np.inf, distances_us / US_PER_MS)
    np.fill_diagonal(ways, 0.0)
    for via in range(len(ways)):
        ways = np.minimum(ways, ways[:, via][:, None] + ways[via])
    known = np.isfinite(ways)
    longest = float(ways[known].max(initial=0.0)) or 1.0
    return np.where(known, ways, APART * longest)
