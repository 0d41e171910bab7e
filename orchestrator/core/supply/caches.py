"""What lies ready on workers: runtimes, images and packages that a job would not have to wait for there.

A measurement: each agent says it in its session, again when it changes, and nothing of it is stored. Kept are the first
eight bytes of each digest, in a column for each worker, so that a plan asks ten thousand workers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from orchestrator.core.ids import WorkerId

COLUMNS_MIN = 64

KEY_HEX_DIGITS = 16
"""Of a digest: two of a network's things are alike in these by chance once in 10¹³ pairs, and a start is slow then."""


class CachedKind(StrEnum):
    """What is kept ready."""

    RUNTIME = "runtime"
    IMAGE = "image"
    PACKAGE = "package"


CACHED_MAX = {CachedKind.RUNTIME: 16, CachedKind.IMAGE: 16, CachedKind.PACKAGE: 32}
"""Of one worker: its newest. A runtime has 1 GB and an image up to 20, so disks hold no more; packages are small and
come with each new version of a tenant's code."""


@dataclass(frozen=True, slots=True)
class Cached:
    """What one worker has: digests of runtimes, NAME@sha256:… of images, SHA-256 of packages; all in lower-case hex."""

    runtimes: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    def of(self, kind: CachedKind) -> tuple[str, ...]:
        """Those of one kind."""
        match kind:
            case CachedKind.RUNTIME:
                return self.runtimes
            case CachedKind.IMAGE:
                return self.images
            case CachedKind.PACKAGE:
                return self.packages


class Caches:
    """Who has what, by worker and for all of them."""

    def __init__(self, number_of: Callable[[WorkerId], int]) -> None:
        """``number_of`` gives each worker the number by which the offers' table names it: never another's."""
        self._number_of = number_of
        self._tables = {
            kind: np.zeros((count, COLUMNS_MIN), dtype=np.uint64) for kind, count in CACHED_MAX.items()
        }
        self._workers: dict[WorkerId, int] = {}
        """Those that have said something, and their numbers."""
        self._end = 0
        """Beyond the highest number of these."""

    def __len__(self) -> int:
        """Workers that have said something."""
        return len(self._workers)

    def put(self, worker_id: WorkerId, cached: Cached) -> None:
        """A worker's whole word, in place of its last; beyond CACHED_MAX of a kind it is not kept."""
        number = self._workers[worker_id] = self._number_of(worker_id)
        self._end = max(self._end, number + 1)
        for kind, table in self._tables.items():
            wide = table
            while number >= wide.shape[1]:
                wide = np.concatenate([wide, np.zeros_like(wide)], axis=1)
            self._tables[kind] = wide
            keys = [_key(name) for name in cached.of(kind)[: CACHED_MAX[kind]]]
            wide[:, number] = 0
            wide[: len(keys), number] = keys

    def forget(self, worker_id: WorkerId) -> None:
        """A worker has left, and may come back with an empty disk."""
        number = self._workers.pop(worker_id, None)
        if number is not None:
            for table in self._tables.values():
                table[:, number] = 0

    def has(self, worker_id: WorkerId, kind: CachedKind, names: Sequence[str]) -> bool:
        """Whether a worker has all of these."""
        number = self._workers.get(worker_id)
        if number is None:
            return not names
        return all(bool((self._tables[kind][:, number] == _key(name)).any()) for name in names)

    def holders(self, kind: CachedKind, name: str) -> NDArray[np.bool_]:
        """By worker's number who has this, and last a False: for ``of_numbers``."""
        key, holders = np.uint64(_key(name)), np.zeros(self._end + 1, dtype=np.bool_)
        # Line by line, which is twice as quick as asking whether any of a column is true.
        for line in self._tables[kind]:
            holders[:-1] |= line[: self._end] == key
        return holders


def of_numbers(holders: NDArray[np.bool_], numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of some workers, by number, are among holders; -1 is nobody."""
    # Those beyond the table have said nothing: they and nobody find its end.
    found: NDArray[np.bool_] = holders[np.minimum(numbers, len(holders) - 1)]
    return found


def _key(name: str) -> int:
    """Nothing's is 0."""
    digest = name.rpartition(":")[2]
    return int(digest[:KEY_HEX_DIGITS], 16) or 1
