"""Gauges as the state has them: read off its tallies and short indexes, never by a walk over what has ended."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.jobs import JobStatus
from orchestrator.core.queries.gpus import gpus
from orchestrator.core.queries.overview import (
    connected_workers,
    longest_waiting,
    outbox,
    waiting_for_reservations,
)
from orchestrator.core.scheduling.placement import WaitReason
from orchestrator.core.supply.fleet import HardwareClass, Liveness
from orchestrator.core.supply.holds import HoldKind
from orchestrator.core.tallies import GpuState, LeaseState
from orchestrator.core.tenancy.reservations import ReservationPhase

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from orchestrator.core.ids import WorkerId
    from orchestrator.core.queries.gpus import Reserved
    from orchestrator.core.state import State

    Series = Mapping[tuple[str, ...], float]


def counts(state: State) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """(workers by liveness, clusters by phase, jobs by status), each state named even where none is."""
    tallies = state.tallies
    liveness: Counter[str] = Counter()
    for (one, _), count in tallies.workers.items():
        liveness[one.value] += count
    return (
        {one.value: liveness[one.value] for one in Liveness},
        {phase.value: tallies.clusters[phase] for phase in ClusterPhase},
        {status.value: tallies.jobs[status] for status in JobStatus},
    )


def gauges(
    state: State,
    connected: Collection[WorkerId],
    at_ms: int,
    waiting: Mapping[str, int],
    reserved: Reserved,
) -> dict[str, Series]:
    """By name of the metric. ``connected`` have a session; ``waiting`` and ``reserved`` are of the newest plan."""
    tallies = state.tallies
    _, clusters, jobs = counts(state)
    oldest = longest_waiting(state)
    booked, booked_gpus = waiting_for_reservations(state)
    unposted = outbox(state, at_ms)
    return {
        "workers": _workers(state),
        "worker_holds": {(kind.value,): tallies.holds[kind] for kind in HoldKind},
        "workers_connected": _connected(state, connected),
        "gpus": _gpus(state, reserved),
        "zones_held": {(): len(state.zones_held)},
        "leases": {(one.value,): tallies.leases[one] for one in LeaseState},
        "jobs": {(status,): count for status, count in jobs.items()},
        "clusters": {(phase,): count for phase, count in clusters.items()},
        "queue_jobs": _queue(tallies.queued - booked, booked, waiting),
        "queue_gpus": {(): tallies.queued_gpus - booked_gpus},
        "queue_oldest_seconds": {(): 0 if oldest is None else max(0, at_ms - oldest[0]) / 1_000},
        "reservations": _reservations(state),
        "receipts_unposted": {(): unposted.receipts},
        "outbox_oldest_seconds": {(): unposted.oldest_ms / 1_000},
    }


def _workers(state: State) -> Series:
    """Every state of each class that there is any of: a state that empties says 0, it does not vanish."""
    found = state.tallies.workers
    classes = sorted({kind for (_, kind), count in found.items() if count} or {HardwareClass.CONSUMER})
    return {(one.value, kind.value): found[one, kind] for kind in classes for one in Liveness}


def _connected(state: State, connected: Collection[WorkerId]) -> Series:
    """0 where none of a class is: a gauge that vanishes says nothing."""
    found = connected_workers(state, connected)
    return {(kind,): found[HardwareClass(kind)] for _, kind in _workers(state)}


def _gpus(state: State, reserved: Reserved) -> Series:
    """Every state of each class and model."""
    found = gpus(state, reserved)
    kinds = sorted({(kind, model) for kind, model, _ in found})
    return {
        (kind.value, model, one.value): found[kind, model, one] for kind, model in kinds for one in GpuState
    }


def _queue(queued: int, booked: int, waiting: Mapping[str, int]) -> Series:
    """What a plan saw is a moment old: of jobs that started since, no more are shown than wait.

    Which jobs wait for reserved machines the state itself knows; they are not among the ``queued``.
    """
    series: dict[tuple[str, ...], float] = {(WaitReason.RESERVATION.value,): booked}
    left = queued
    for reason in WaitReason:
        if reason not in (WaitReason.BEHIND, WaitReason.RESERVATION):
            shown = min(left, waiting.get(reason.value, 0))
            series[reason.value,] = shown
            left -= shown
    series[WaitReason.BEHIND.value,] = left
    return series


def _reservations(state: State) -> Series:
    """At most so many as may be booked at a time, and those that ended within a month."""
    found = Counter(one.phase for one in state.reservations.values())
    return {(phase.value,): found[phase] for phase in ReservationPhase}
