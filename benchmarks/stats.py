"""Medians, percentiles, and how sure a ratio of alternating runs is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
"""The ends of a 95 % interval then move by less than a hundredth of its width from seed to seed."""

CONFIDENCE = 0.95
SEED = 20_261_122
"""Fixed, so that the same runs always give the same interval."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the true value lies with CONFIDENCE."""

    low: float
    high: float


def median(values: Sequence[float]) -> float:
    """The middle value. Raises ValueError where there is none."""
    return percentile(values, 0.5)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` (0 to 1) of all values do not exceed, interpolated between neighbours."""
    if not values:
        raise ValueError("values: nothing was measured")
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share: {share} is not between 0 and 1")
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low, high = math.floor(position), math.ceil(position)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def paired_ratio_interval(ours: Sequence[float], peer: Sequence[float]) -> Interval:
    """Interval of median(ours) / median(peer) by drawing whole pairs again: what slowed both sides cancels out."""
    first, second = _pairs(ours, peer)
    return _interval(np.median(first, axis=1) / np.median(second, axis=1))


def paired_difference_interval(ours: Sequence[float], peer: Sequence[float]) -> Interval:
    """Interval of the median difference of ours less peer, pair by pair."""
    first, second = _pairs(ours, peer)
    return _interval(np.median(first - second, axis=1))


def _pairs(
    ours: Sequence[float], peer: Sequence[float]
) -> tuple[
    np.ndarray[tuple[int, int], np.dtype[np.float64]], np.ndarray[tuple[int, int], np.dtype[np.float64]]
]:
    """Both sides of RESAMPLES draws of pairs, one draw a row."""
    if len(ours) != len(peer) or not ours:
        raise ValueError(f"ours and peer: pairs are needed, not {len(ours)} and {len(peer)} values")
    generator = np.random.default_rng(SEED)
    drawn = generator.integers(0, len(ours), size=(RESAMPLES, len(ours)))
    return np.asarray(ours, dtype=np.float64)[drawn], np.asarray(peer, dtype=np.float64)[drawn]


def _interval(statistics: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(statistics, [tail, 1 - tail])
    return Interval(float(low), float(high))
