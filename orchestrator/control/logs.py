"""Drivers' logs: taken from the agent beside the head, kept by attempt, followed by whoever waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from orchestrator.core import messages as m
from orchestrator.core.clusters import head_of
from orchestrator.core.errors import RefusalCode, RefusedError, invalid, not_found
from orchestrator.core.ids import AttemptId, WorkerId

if TYPE_CHECKING:
    import asyncio

    from orchestrator.control.loop import Loop
    from orchestrator.core.jobs import Attempt
    from orchestrator.core.state import State

CHUNK_BYTES_MAX = 1024 * 1024
"""Agents send a quarter of it; a larger one is a mistake."""

LOG_BYTES_MAX = 2 * 1024**3
"""A driver that prints more is cut off here: one tenant must not fill the disk that all share."""


class LogFiles(Protocol):
    """Bytes by attempt. ``append`` is durable when it returns."""

    async def append(self, attempt_id: str, offset: int, data: bytes) -> int:
        """Store what is new of [offset, offset + len(data)); the size without a gap afterwards."""

    def size_bytes(self, attempt_id: str) -> int: ...

    async def read(self, attempt_id: str, offset: int, size_max: int) -> bytes: ...


class Logs:
    """All drivers' logs."""

    def __init__(self, loop: Loop, files: LogFiles) -> None:
        self._loop = loop
        self._files = files
        self._watchers: dict[str, set[asyncio.Event]] = {}

    def sizes(self, attempt_ids: list[str]) -> dict[str, int]:
        """Bytes stored, by attempt."""
        return {attempt_id: self._files.size_bytes(attempt_id) for attempt_id in attempt_ids}

    async def ship(
        self, worker_id: WorkerId, attempt_id: AttemptId, offset: int, data: bytes, *, final: bool
    ) -> tuple[int, bool]:
        """Store a chunk: (bytes stored without a gap, whether the log is complete)."""
        if len(data) > CHUNK_BYTES_MAX:
            raise invalid("data", f"{len(data)} bytes in one chunk; at most {CHUNK_BYTES_MAX}")
        attempt = await self._loop.read(lambda state: _shippable(state, worker_id, attempt_id))
        if attempt.log_complete:
            return max(offset + len(data), self._files.size_bytes(attempt_id)), True
        if offset + len(data) > LOG_BYTES_MAX:
            if final:
                await self._loop.submit(m.CompleteLog(attempt_id, self._files.size_bytes(attempt_id)))
                self._announce(attempt_id)
            return offset + len(data), final
        size = await self._files.append(attempt_id, offset, data)
        complete = final and size >= offset + len(data)
        if complete:
            await self._loop.submit(m.CompleteLog(attempt_id, size))
        self._announce(attempt_id)
        return size, complete

    def _announce(self, attempt_id: str) -> None:
        for event in self._watchers.get(attempt_id, ()):
            event.set()

    async def read(self, attempt_id: str, offset: int, size_max: int) -> bytes:
        """Bytes from ``offset`` on; empty where there are none yet."""
        return await self._files.read(attempt_id, offset, size_max)

    def size_bytes(self, attempt_id: str) -> int:
        """Bytes stored of one log."""
        return self._files.size_bytes(attempt_id)

    @property
    def watched(self) -> frozenset[str]:
        """Attempts whose logs somebody follows."""
        return frozenset(self._watchers)

    def watch(self, attempt_id: str, event: asyncio.Event) -> None:
        """Set ``event`` whenever the log grows or ends; the watcher clears it, and unwatches in the end."""
        self._watchers.setdefault(attempt_id, set()).add(event)

    def unwatch(self, attempt_id: str, event: asyncio.Event) -> None:
        """Forget a watcher."""
        watchers = self._watchers[attempt_id]
        watchers.remove(event)
        if not watchers:
            del self._watchers[attempt_id]


def _shippable(state: State, worker_id: WorkerId, attempt_id: AttemptId) -> Attempt:
    """The attempt, if this worker carries its head: the driver runs there, and nobody else has its log."""
    attempt = state.attempts.get(attempt_id)
    if attempt is None:
        raise not_found("attempt", attempt_id)
    cluster = state.clusters[attempt.cluster_id]
    head = head_of(state.cluster_members(cluster))
    if head is None or head.worker_id != worker_id:
        raise RefusedError(RefusalCode.FORBIDDEN, "this worker has no part in the attempt", "attempt_id")
    return attempt
