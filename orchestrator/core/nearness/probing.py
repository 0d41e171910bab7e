"""Whom a worker measures next: landmarks, one on trial, then the nearest."""

from __future__ import annotations

import heapq
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from orchestrator.core.ids import WorkerId

LANDMARKS = 8
"""The same few for everybody, so that strangers share a third. Which ones follows from their ids."""

LANDMARK_PROBES = 4
"""Of LANDMARKS, for each worker: two workers then share one with 69 chances of 70, at half the load on them."""

EXPLORED_MIN = 4
"""Fresh words below which a worker is new here: nothing tells yet who is near, so chance does."""


@dataclass(frozen=True, slots=True)
class Sight:
    """Of each candidate: whether the pair is known freshly, whether by the other's word alone, and how near it is."""

    fresh: NDArray[np.bool_]
    alone: NDArray[np.bool_]
    guess_us: NDArray[np.int32]


def landmarks_of(workers: Iterable[WorkerId]) -> tuple[WorkerId, ...]:
    """The landmarks of a fleet: who they are changes only when one of them leaves, or a newcomer is to be one."""
    return tuple(heapq.nsmallest(LANDMARKS, workers, key=lambda name: (zlib.crc32(name.encode()), name)))


def chosen(others: list[WorkerId], sight: Sight, allowed: int, chance: np.random.Generator) -> list[int]:
    """Indexes into ``others``: landmarks, one on trial, then the nearest; by chance where nothing tells."""
    index = {name: k for k, name in enumerate(others)}
    landmarks = chance.permutation([index[name] for name in landmarks_of(others)])
    missing = max(0, LANDMARK_PROBES - int(sight.fresh[landmarks].sum()))
    picked = [int(k) for k in landmarks if not sight.fresh[k]][: min(missing, allowed)]
    taken = sight.fresh.copy()
    taken[picked] = True
    shuffled = chance.permutation(len(others))
    unknown = [int(k) for k in shuffled if not taken[k]]
    if int(sight.fresh.sum()) < EXPLORED_MIN:
        return picked + unknown[: allowed - len(picked)]
    # One in each order is not the nearest: by turns somebody new, or the nearest of those who alone vouch for it.
    vouching = np.flatnonzero(sight.alone)
    if len(picked) < allowed:
        if len(vouching) and chance.random() < 1 / 2:
            picked.append(int(vouching[np.argmin(sight.guess_us[vouching])]))
        else:
            picked += unknown[:1]
    rest = sorted((k for k in unknown if k not in picked), key=lambda k: int(sight.guess_us[k]))
    return picked + rest[: allowed - len(picked)]
