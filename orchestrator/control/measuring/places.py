"""Which worker is on which page: each keeps its place while it is there, so that its series stay where they are."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.core.ids import WorkerId

WORKERS_PER_PAGE = 500
"""Some hundred kB to a few MB, and some ten milliseconds to write: a page is one target of Prometheus."""

LINGER_MS = 600_000
"""A worker that left is shown with what it came to for so long: whoever scrapes each few minutes has seen all of it."""


class Places:
    """Places by the order of joining; one that is free is used again."""

    def __init__(self) -> None:
        self._workers: list[WorkerId | None] = []
        self._place_of: dict[WorkerId, int] = {}
        self._free: list[int] = []
        """A heap: the lowest first."""
        self._left_ms: dict[WorkerId, int] = {}
        """In the order of leaving."""

    @property
    def page_count(self) -> int:
        """At least one, which may be empty."""
        return max(1, -(-len(self._workers) // WORKERS_PER_PAGE))

    def page(self, number: int) -> list[WorkerId]:
        """The workers of one page, in the order of their places."""
        first = number * WORKERS_PER_PAGE
        return [one for one in self._workers[first : first + WORKERS_PER_PAGE] if one is not None]

    def take(self, worker_id: WorkerId) -> None:
        """A worker is there, or there again."""
        self._left_ms.pop(worker_id, None)
        if worker_id in self._place_of:
            return
        place = heapq.heappop(self._free) if self._free else len(self._workers)
        if place == len(self._workers):
            self._workers.append(worker_id)
        else:
            self._workers[place] = worker_id
        self._place_of[worker_id] = place

    def leave(self, worker_id: WorkerId, at_ms: int) -> None:
        """A worker has left; its place is free after LINGER_MS."""
        if worker_id in self._place_of:
            self._left_ms.setdefault(worker_id, at_ms)

    def sweep(self, at_ms: int) -> list[WorkerId]:
        """Free the places of those that left long enough ago: who they were."""
        gone: list[WorkerId] = []
        for worker_id, left_ms in self._left_ms.items():
            if at_ms - left_ms < LINGER_MS:
                break
            gone.append(worker_id)
        for worker_id in gone:
            del self._left_ms[worker_id]
            place = self._place_of.pop(worker_id)
            self._workers[place] = None
            heapq.heappush(self._free, place)
        return gone
