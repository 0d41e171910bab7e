"""All that one control plane measures: fed as things happen, and asked by whoever shows it.

Nobody who asks can hold the loop for long: gauges are read off tallies in one look, groups one at a time, workers one
page at a time; the metrics' listener asks at most once a second.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import structlog

from orchestrator.adapters.metrics.worker_pages import WorkerRow
from orchestrator.control.measuring.counting import gauges
from orchestrator.control.measuring.groups import GROUPS_EVERY_S, GroupsSeen, look
from orchestrator.control.measuring.places import Places
from orchestrator.control.measuring.rows import Profiles, devices_of, profile_of, tunnels_by_way
from orchestrator.control.measuring.uptime import Uptime, Uptimes
from orchestrator.control.measuring.watching import MS, WatchedStore, Watcher
from orchestrator.core.ids import WorkerId
from orchestrator.core.supply.fleet import Liveness

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from orchestrator.control.loop import Clock, Loop, Store, Waiting
    from orchestrator.control.measuring.meter import Meter
    from orchestrator.control.paths import Paths
    from orchestrator.control.services.workers import Sample
    from orchestrator.control.sessions import Sessions
    from orchestrator.core.scheduling.placement import Plan
    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import Worker

log = structlog.get_logger(__name__)

PATIENCE_S = 2.0
"""For a commit that is under way when somebody asks: a disk that takes longer is what he has to hear of."""

BOOKS_EVERY_S = 60.0
"""The ledger sums over all of its entries: some milliseconds for a hundred thousand, on a thread of its own."""


class Bridge(Protocol):
    """The bridge's side of the overlay, as it counts itself."""

    @property
    def connections(self) -> int: ...
    @property
    def connections_max(self) -> int: ...
    @property
    def bytes_in(self) -> int: ...
    @property
    def bytes_out(self) -> int: ...
    @property
    def dropped_datagrams(self) -> int: ...


class Books(Protocol):
    """The ledger, as far as it can be held against what was posted."""

    async def totals(self) -> tuple[int, int]:
        """(receipts booked, debits less credits in microcredits). Raises OSError where it cannot be asked."""
        ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Where measurements are besides the state."""

    sessions: Sessions
    samples: Mapping[WorkerId, Sample]
    paths: Paths | None
    certificates: Callable[[], Mapping[str, int]]
    """When each of the network's own certificates runs out, by wall clock in ms."""
    books: Books | None


class Measuring:
    """One per control plane. ``begin`` it when the loop runs."""

    def __init__(self, meter: Meter, clock: Clock) -> None:
        self._meter = meter
        self._clock = clock
        self._uptimes = Uptimes()
        self._places = Places()
        self._profiles = Profiles()
        self._watcher = Watcher(meter, self._worker_changed)
        self._begun = False
        self._waiting: dict[str, int] = {}
        self._reserved: tuple[tuple[WorkerId, str, int], ...] = ()
        self._unseen_ms: int | None = None
        """Since when something is committed that no plan has seen."""
        self._groups = GroupsSeen()
        self._groups_at_s = float("-inf")
        self._books_at_s = float("-inf")
        self._compared: tuple[int, int] | None = None
        self.bridge: Bridge | None = None
        """Handed in once it listens."""

    def watched(self, store: Store) -> WatchedStore:
        """The store, so that what it commits is counted."""
        return WatchedStore(store, self._watcher)

    async def begin(self, loop: Loop) -> None:
        """Count from now on: a start is the beginning of every counter."""
        await loop.read(self._begin)

    def _begin(self, state: State) -> None:
        at_ms = state.time_ms(self._clock.now())
        self._watcher.begin(state.clusters[one] for one in state.open_clusters)
        for worker in sorted(state.workers.values(), key=lambda one: (one.joined_at_ms, one.worker_id)):
            self._put(worker, at_ms, known=True)
        self._begun = True

    @property
    def plan_lag_ms(self) -> int:
        """Age of the oldest change that no plan has seen; 0: there is none."""
        return 0 if self._unseen_ms is None else max(0, self._clock.now().monotonic_ms - self._unseen_ms)

    @property
    def reserved(self) -> tuple[tuple[WorkerId, str, int], ...]:
        """What the newest plan keeps for reservations: (worker, model, devices)."""
        return self._reserved

    def uptime(self, worker_id: WorkerId, at_ms: int) -> Uptime | None:
        """Of a worker since this control plane was started; None for a stranger."""
        return self._uptimes.of(worker_id, at_ms)

    # ------------------------------------------------------------ observers

    def batch(self, commands: int, events: int, decide_s: float, commit_s: float, waited_s: float) -> None:
        """As LoopObserver's."""
        self._meter.batch(commands, events, decide_s, commit_s, waited_s)
        if events and self._unseen_ms is None:
            self._unseen_ms = self._clock.now().monotonic_ms

    def looked(self) -> None:
        """As PlanObserver's: a plan, or the look that found nothing to plan, has seen all of it."""
        self._unseen_ms = None

    def planned(self, seconds: float, made: Plan) -> None:
        """As PlanObserver's."""
        self._meter.observe("plan_seconds", seconds)
        self._waiting = Counter(one.waits_for.value for one in made.deferrals)
        self._reserved = made.reserved
        for reason, count in self._waiting.items():
            self._meter.add("plan_rejections", count, (reason,))

    def applied(self, made: Plan) -> None:
        """As PlanObserver's."""
        for kind, count in (
            ("new", len(made.placements)),
            ("warm", len(made.reuses)),
            ("replacement", len(made.fillings)),
        ):
            if count:
                self._meter.add("plan_placements", count, (kind,))

    def stale(self) -> None:
        """As PlanObserver's."""
        self._meter.add("plans_stale")

    def _worker_changed(self, key: str, worker: Worker | None, at_ms: int) -> None:
        if not self._begun:
            return
        if worker is not None:
            self._put(worker, at_ms)
        else:
            self._profiles.forget(WorkerId(key))
            self._uptimes.stop(WorkerId(key), at_ms)
            self._places.leave(WorkerId(key), at_ms)

    def _put(self, worker: Worker, at_ms: int, *, known: bool = False) -> None:
        self._uptimes.put(worker, at_ms, known=known)
        if worker.liveness is Liveness.LEFT:
            self._places.leave(worker.worker_id, at_ms)
        else:
            self._places.take(worker.worker_id)

    def _sweep(self, at_ms: int) -> None:
        for worker_id in self._places.sweep(at_ms):
            self._uptimes.forget(worker_id)

    # ------------------------------------------------------------ the network

    async def network(self, loop: Loop, sources: Sources) -> None:
        """Bring every gauge up to date; where a commit does not end, those that say so, and the rest as it was."""
        self.show_lags(loop.waiting())
        self._show_certificates(sources)
        try:
            async with asyncio.timeout(PATIENCE_S):
                found = await loop.read(partial(self._gauges, sources))
        except TimeoutError:
            return
        for name, series in found.items():
            self._meter.show(name, series)
        await self._show_groups(loop, sources.paths)
        self._show_bridge()
        await self._show_books(loop, sources.books)

    def _show_certificates(self, sources: Sources) -> None:
        now = self._clock.now()
        self._meter.show(
            "certificate_remaining_seconds",
            {(name,): (at_ms - now.wall_ms) / MS for name, at_ms in sources.certificates().items()},
        )

    def show_lags(self, waiting: Waiting) -> None:
        """How far the loop and the plans are behind."""
        now_ms = self._clock.now().monotonic_ms
        since_ms = waiting.oldest_ms
        lag_ms = 0 if since_ms is None else now_ms - since_ms
        self._meter.show("loop_inbox_commands", {(): waiting.commands})
        self._meter.show("loop_lag_seconds", {(): max(0, lag_ms) / MS})
        self._meter.show("plan_lag_seconds", {(): self.plan_lag_ms / MS})

    def _gauges(self, sources: Sources, state: State) -> dict[str, Mapping[tuple[str, ...], float]]:
        at_ms = state.time_ms(self._clock.now())
        self._sweep(at_ms)
        found: dict[str, Mapping[tuple[str, ...], float]] = dict(
            gauges(state, sources.sessions.connected, at_ms, self._waiting, self._reserved)
        )
        found["overlay_tunnels"] = tunnels_by_way(state, sources.samples)
        return found

    async def _show_groups(self, loop: Loop, paths: Paths | None) -> None:
        now_s = self._clock.elapsed_s()
        if now_s - self._groups_at_s >= GROUPS_EVERY_S:
            self._groups_at_s = now_s
            self._groups = await look(loop, paths)
        meter, shown = self._meter, self._groups.shown
        meter.advance("path_probes", 0 if paths is None else paths.probes_ordered)
        meter.show("groups", {(): self._groups.groups})
        meter.show(
            "group_workers", {(one.number, one.hardware_class, one.model): one.workers for one in shown}
        )
        rtts: dict[tuple[str, ...], float] = {}
        for one in shown:
            if one.median_s is not None and one.longest_s is not None:
                rtts[one.number, "median"] = one.median_s
                rtts[one.number, "longest"] = one.longest_s
        meter.show("group_rtt_seconds", rtts)
        losses: dict[tuple[str, ...], float] = {
            (one.number,): one.loss_ratio for one in shown if one.loss_ratio is not None
        }
        meter.show("group_loss_ratio", losses)

    def _show_bridge(self) -> None:
        meter, bridge = self._meter, self.bridge
        connections = 0 if bridge is None else bridge.connections
        meter.show("relay_connections", {(): connections})
        meter.show(
            "relay_capacity_ratio", {(): 0.0 if bridge is None else connections / bridge.connections_max}
        )
        if bridge is not None:
            meter.advance("relay_bytes", bridge.bytes_in, ("in",))
            meter.advance("relay_bytes", bridge.bytes_out, ("out",))
            meter.advance("relay_dropped_datagrams", bridge.dropped_datagrams)

    async def compared(self, loop: Loop, books: Books | None) -> tuple[int, int] | None:
        """(receipts that only one side knows, debits less credits), at most BOOKS_EVERY_S old; None: not known.

        What was posted is read before the books: a receipt that is booked meanwhile is nobody's loss.
        """
        now_s = self._clock.elapsed_s()
        if books is None or now_s - self._books_at_s < BOOKS_EVERY_S:
            return self._compared
        self._books_at_s = now_s
        lost, posted = await loop.read(_receipts)
        try:
            booked, imbalance = await books.totals()
        except OSError as error:
            log.warning("books_not_read", error=str(error))
        else:
            self._compared = (lost + max(0, posted - booked), imbalance)
        return self._compared

    async def _show_books(self, loop: Loop, books: Books | None) -> None:
        found = await self.compared(loop, books)
        if found is not None:
            self._meter.show("receipts_unaccounted", {(): found[0]})
            self._meter.show("ledger_imbalance_microcredits", {(): found[1]})

    # ------------------------------------------------------------ workers

    @property
    def page_count(self) -> int:
        """Pages of workers, numbered from 0."""
        return self._places.page_count

    async def workers(self, page: int, loop: Loop, sources: Sources) -> list[WorkerRow]:
        """The workers of one page, as they are at this instant."""
        return await loop.read(partial(self._rows, page, sources))

    def _rows(self, page: int, sources: Sources, state: State) -> list[WorkerRow]:
        now = self._clock.now()
        at_ms = state.time_ms(now)
        self._sweep(at_ms)
        rows = (
            self._row(worker_id, sources, state, at_ms, now.wall_ms) for worker_id in self._places.page(page)
        )
        return [row for row in rows if row is not None]

    def _row(
        self, worker_id: WorkerId, sources: Sources, state: State, at_ms: int, wall_ms: int
    ) -> WorkerRow | None:
        uptime, worker = self._uptimes.of(worker_id, at_ms), state.workers.get(worker_id)
        if uptime is None:
            return None
        expected_s, up_s = uptime.expected_ms / MS, uptime.up_ms / MS
        if worker is None or worker.liveness is Liveness.LEFT:
            return WorkerRow(worker_id, uptime.supplier, uptime.hardware_class, expected_s, up_s)
        profile = self._profiles.shown(worker_id, profile_of(state, worker), at_ms)
        sample = sources.samples.get(worker_id)
        runs_out_ms = sources.sessions.certificate_not_after_ms(worker_id)
        return WorkerRow(
            worker_id,
            uptime.supplier,
            uptime.hardware_class,
            expected_s,
            up_s,
            *profile,
            None if runs_out_ms is None else (runs_out_ms - wall_ms) / MS,
            None if sample is None else sample.cpu_utilization_ratio,
            None if sample is None else sample.memory_used_bytes,
            {} if sample is None else devices_of(worker, sample),
        )


def _receipts(state: State) -> tuple[int, int]:
    """(neither posted nor in the outbox, posted)."""
    posted = state.tallies.receipts_posted
    return max(0, len(state.receipts) - posted - len(state.unposted) - len(state.unsigned)), posted
