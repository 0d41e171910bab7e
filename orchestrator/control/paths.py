"""Ways between workers before any cluster: who measures which now, and what was found last.

A few are chosen by the network itself, within a budget (``LatencyMap``); those of a gang that was proposed, and that a
job waits for, come at once. Measurements are kept in memory alone: they are true for minutes, and made again after a
restart.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.adapters.overlay.certificates import next_window_ms
from orchestrator.api.v1 import overlay_pb2, worker_pb2
from orchestrator.control.overlay import WORKER_LIFE_MS
from orchestrator.control.wire import path_from
from orchestrator.core.ids import MemberId, WorkerId
from orchestrator.core.nearness.latency import PROBES_PER_ORDER_MAX, RTT_MAX_US
from orchestrator.core.scheduling.assembling import KNOWN_MS_MAX
from orchestrator.core.supply.fleet import Liveness

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from orchestrator.control.connected import Session
    from orchestrator.control.loop import Loop
    from orchestrator.control.overlay import Overlay
    from orchestrator.core.ids import Now
    from orchestrator.core.state import State

PEERS_PER_ORDER = PROBES_PER_ORDER_MAX
ORDER_INTERVAL_MS = 600_000
"""Between two orders by the network's own choice, whatever sessions a worker opens meanwhile: six in an hour."""

WISHES_PER_ORDER = 16
"""Pairs of proposed gangs, which a job waits for: as many as an agent measures at once."""

ANSWER_MS_MAX = 30_000
"""An order without a report for so long is given up: what was wished of it is ordered again."""

LOOK_S = 15.0
"""How soon a worker is given its first peers once there are any, where no job wants them sooner."""

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
        self._wishes: dict[WorkerId, dict[WorkerId, None]] = {}
        """Whom a worker should measure because a job waits for it."""
        self._woken: dict[WorkerId, asyncio.Event] = {}
        """Of the open sessions."""
        self._known: dict[WorkerId, dict[str, PathKnown]] = {}
        self.probes_ordered = 0
        """Ways that workers were told to measure since this control plane was started."""

    async def attend(
        self, session: Session, send: Callable[[worker_pb2.SessionResponse], Awaitable[None]]
    ) -> None:
        """Give one session its orders, until cancelled; a worker that has no place in the overlay gets none."""
        number, renew_ms = 0, 0
        woken = self._woken[session.worker_id] = asyncio.Event()
        try:
            while True:
                woken.clear()
                now = self._loop.now()
                order = await self._loop.read(lambda state: self._order(state, session))
                if order is not None and (order.targets or now.wall_ms >= renew_ms):
                    number += 1
                    order.number = number
                    renew_ms = next_window_ms(now.wall_ms, WORKER_LIFE_MS)
                    self._asked[session.worker_id] = order
                    await send(worker_pb2.SessionResponse(probe_order=order))
                    self._ready.add(session.worker_id)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), LOOK_S)
        finally:
            self._ready.discard(session.worker_id)
            self._asked.pop(session.worker_id, None)
            if self._woken.get(session.worker_id) is woken:
                del self._woken[session.worker_id]

    def wish(self, pairs: Iterable[tuple[WorkerId, WorkerId]]) -> None:
        """Have these measured soon, by either end that can; what is on its way already is not asked for again."""
        for one, other in pairs:
            ends = [end for end in ((one, other), (other, one)) if set(end) <= self._ready]
            if not ends or any(self._is_asked(*end) for end in ends):
                continue
            # The end that has less to do.
            who, whom = min(ends, key=lambda end: len(self._wishes.get(end[0], ())))
            self._wishes.setdefault(who, {})[whom] = None
            self._woken[who].set()

    def _is_asked(self, who: WorkerId, whom: WorkerId) -> bool:
        order = self._asked.get(who)
        on_its_way = (
            order is not None
            and any(target.worker_id == whom for target in order.targets)
            and self._loop.now().monotonic_ms - self._ordered_ms[who] < ANSWER_MS_MAX
        )
        return on_its_way or whom in self._wishes.get(who, ())

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
        self._loop.measured(worker_id, [(WorkerId(path.peer_id), rtt_us_of(path)) for path in found])
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

    def loss_ratio(self, workers: frozenset[WorkerId]) -> float | None:
        """Of the probes between these, how many nobody answered, 0 to 1; None where none was sent lately."""
        now_ms, sent, received = self._loop.now().monotonic_ms, 0, 0
        for worker_id in workers:
            for peer_id, path in self._known.get(worker_id, {}).items():
                if peer_id in workers and now_ms - path.at_ms < KNOWN_MS_MAX:
                    sent += path.measured.sent
                    received += path.measured.received
        return None if not sent else max(0.0, 1.0 - received / sent)

    def _order(self, state: State, session: Session) -> overlay_pb2.ProbeOrder | None:
        worker = state.workers.get(session.worker_id)
        if worker is None or not worker.overlay_host:
            return None
        now = self._loop.now()
        for forgotten in self._known.keys() - state.workers.keys():
            del self._known[forgotten]
            self._ordered_ms.pop(forgotten, None)
        targets = self._targets(state, worker.worker_id, now)
        return overlay_pb2.ProbeOrder(
            overlay=self._overlay.own_membership(worker, session.overlay_key, now.wall_ms),
            key=self._overlay.probe_key,
            targets=targets,
        )

    def _targets(self, state: State, worker_id: WorkerId, now: Now) -> list[overlay_pb2.ProbeTarget]:
        """What jobs wait for, else what the network wants to know when it is time; none while one order is under way."""
        ordered_ms = self._ordered_ms.get(worker_id)
        waited_ms = ORDER_INTERVAL_MS if ordered_ms is None else now.monotonic_ms - ordered_ms
        if worker_id in self._asked and self._asked[worker_id].targets and waited_ms < ANSWER_MS_MAX:
            return []
        live = {
            one
            for one in self._ready
            if one != worker_id and (worker := state.workers.get(one)) is not None
            if worker.liveness is Liveness.LIVE and worker.overlay_host
        }
        wishes = self._wishes.pop(worker_id, {})
        chosen = [one for one in wishes if one in live][:WISHES_PER_ORDER]
        at_ms = state.time_ms(now)
        if not chosen and waited_ms >= ORDER_INTERVAL_MS:
            seed = int.from_bytes(self._random_bytes(CHOICE_BYTES))
            chosen = list(
                state.latency.probe_targets(worker_id, live, PEERS_PER_ORDER, seed, at_ms, KNOWN_MS_MAX)
            )
        if not chosen:
            return []
        state.latency.spend(worker_id, len(chosen), at_ms)
        self.probes_ordered += len(chosen)
        self._ordered_ms[worker_id] = now.monotonic_ms
        addresses = [self._overlay.bare_address(state.workers[one].overlay_host) for one in chosen]
        return [
            overlay_pb2.ProbeTarget(worker_id=one, address=address)
            for one, address in zip(chosen, addresses, strict=True)
        ]


def rtt_us_of(path: overlay_pb2.PathMeasured) -> int:
    """The round trip as it counts: without an answer as long as any."""
    return path.rtt_median_us if path.received else RTT_MAX_US
