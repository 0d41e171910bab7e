"""Ways between workers before any cluster: who measures which now, and what was found last.

Measurements are kept in memory alone: they are true for minutes, and made again after a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.adapters.overlay.certificates import next_window_ms
from orchestrator.api.v1 import overlay_pb2, worker_pb2
from orchestrator.control.overlay import WORKER_LIFE_MS
from orchestrator.control.wire import path_from
from orchestrator.core.fleet import Liveness
from orchestrator.core.ids import MemberId, WorkerId

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from orchestrator.control.connected import Session
    from orchestrator.control.loop import Loop
    from orchestrator.control.overlay import Overlay
    from orchestrator.core.state import State

PEERS_PER_ORDER = 4
"""Chosen anew each time: in an hour a worker knows the way to two dozen others, for two kilobytes each."""

ORDER_INTERVAL_MS = 600_000
"""Between two orders that name peers, whatever sessions a worker opens meanwhile: six in an hour."""

LOOK_S = 15.0
"""How soon a worker is given its first peers once there are any."""

PATHS_PER_WORKER = 64
"""The newest; more than ten orders' peers."""

PATH_LIFE_MS = 24 * 3_600_000
"""A home line's way of yesterday says little; until then it is better than nothing."""

CHOICE_BYTES = 16


@dataclass(frozen=True, slots=True)
class PathKnown:
    """One way as a worker measured it, and when, by the control plane's monotonic clock."""

    measured: overlay_pb2.PathMeasured
    at_ms: int


class Paths:
    """Orders measurements and keeps what comes of them."""

    def __init__(self, overlay: Overlay, loop: Loop, random_bytes: Callable[[int], bytes]) -> None:
        self._overlay = overlay
        self._loop = loop
        self._random_bytes = random_bytes
        self._ready: set[WorkerId] = set()
        """Those that have been told of their membership in this session, and so can be measured."""
        self._asked: dict[WorkerId, overlay_pb2.ProbeOrder] = {}
        self._ordered_ms: dict[WorkerId, int] = {}
        self._known: dict[WorkerId, dict[str, PathKnown]] = {}

    async def attend(
        self, session: Session, send: Callable[[worker_pb2.SessionResponse], Awaitable[None]]
    ) -> None:
        """Give one session its orders, until cancelled; a worker that has no place in the overlay gets none."""
        number, renew_ms = 0, 0
        try:
            while True:
                now = self._loop.now()
                order = await self._loop.read(lambda state: self._order(state, session))
                if order is not None and (order.targets or now.wall_ms >= renew_ms):
                    number += 1
                    order.number = number
                    renew_ms = next_window_ms(now.wall_ms, WORKER_LIFE_MS)
                    self._asked[session.worker_id] = order
                    await send(worker_pb2.SessionResponse(probe_order=order))
                    self._ready.add(session.worker_id)
                await asyncio.sleep(LOOK_S)
        finally:
            self._ready.discard(session.worker_id)
            self._asked.pop(session.worker_id, None)

    def take(self, worker_id: WorkerId, report: overlay_pb2.ProbeReport) -> None:
        """Keep what was asked for, once. Raises RefusedError for figures that no network shows."""
        order = self._asked.get(worker_id)
        if order is None or order.number != report.number:
            return
        asked = {target.worker_id for target in order.targets}
        now_ms = self._loop.now().monotonic_ms
        found = [path for path in report.paths[: len(asked)] if path.peer_id in asked]
        for path in found:
            path_from(MemberId(worker_id), path)
        del self._asked[worker_id]
        known = self._known.setdefault(worker_id, {})
        for path in found:
            known.pop(path.peer_id, None)
            known[path.peer_id] = PathKnown(path, now_ms)
        for peer_id in list(known)[: max(0, len(known) - PATHS_PER_WORKER)]:
            del known[peer_id]

    def of(self, worker_id: WorkerId) -> list[PathKnown]:
        """What a worker measured, the newest first."""
        now_ms = self._loop.now().monotonic_ms
        known = self._known.get(worker_id, {}).values()
        return [path for path in reversed(known) if now_ms - path.at_ms < PATH_LIFE_MS]

    def _order(self, state: State, session: Session) -> overlay_pb2.ProbeOrder | None:
        worker = state.workers.get(session.worker_id)
        if worker is None or not worker.overlay_host:
            return None
        now = self._loop.now()
        for forgotten in self._known.keys() - state.workers.keys():
            del self._known[forgotten]
            self._ordered_ms.pop(forgotten, None)
        targets = []
        ordered_ms = self._ordered_ms.get(worker.worker_id)
        if ordered_ms is None or now.monotonic_ms - ordered_ms >= ORDER_INTERVAL_MS:
            targets = self._targets(state, worker.worker_id)
        if targets:
            self._ordered_ms[worker.worker_id] = now.monotonic_ms
        return overlay_pb2.ProbeOrder(
            overlay=self._overlay.own_membership(worker, session.overlay_key, now.wall_ms),
            key=self._overlay.probe_key,
            targets=targets,
        )

    def _targets(self, state: State, worker_id: WorkerId) -> list[overlay_pb2.ProbeTarget]:
        """A few live ones by chance, each time others."""
        salt = self._random_bytes(CHOICE_BYTES)
        live = [
            worker
            for one in self._ready
            if one != worker_id and (worker := state.workers.get(one)) is not None
            if worker.liveness is Liveness.LIVE and worker.overlay_host
        ]
        live.sort(key=lambda worker: hashlib.sha256(salt + worker.worker_id.encode()).digest())
        return [
            overlay_pb2.ProbeTarget(
                worker_id=worker.worker_id, address=self._overlay.bare_address(worker.overlay_host)
            )
            for worker in live[:PEERS_PER_ORDER]
        ]
