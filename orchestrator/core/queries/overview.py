"""How the network stands, in numbers: what `orch status` shows and its judgement is made of.

Read off the state's tallies where it has any. There is one walk over the fleet; of clusters only the open ones and those
of the last minutes are looked at, of jobs only the first of each priority of each queue, of receipts only those that
are not in the books.
"""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.ids import JobId
from orchestrator.core.jobs import Outcome
from orchestrator.core.queries.gpus import free_gpus, gpus
from orchestrator.core.supply.fleet import Isolation, Liveness
from orchestrator.core.tallies import LeaseState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from orchestrator.core.ids import ClusterId, WorkerId
    from orchestrator.core.jobs import JobStatus
    from orchestrator.core.queries.gpus import Reserved
    from orchestrator.core.state import State
    from orchestrator.core.supply.fleet import HardwareClass, Worker
    from orchestrator.core.supply.holds import HoldKind
    from orchestrator.core.tallies import Gpus

LATELY_MS = 24 * 3_600_000
"""What happened within a day is news, whoever looks once a day; what is older was seen and left as it is."""

FORMATION_WINDOW_MS = 30 * 60_000
"""Formations of this long are judged together; so long nothing may be placed while machines are free."""

LOST_WINDOW_MS = 15 * 60_000
"""Workers that are lost within this are lost together."""

CORDONED_WINDOW_MS = 3_600_000
"""A GPU that was taken out within the hour is news."""

NO_OVERLAY = "none"


class Devices(NamedTuple):
    """Of workers that are live or suspect, processors of machines without GPUs among them."""

    present: int = 0
    held: int = 0
    """By a member, or cordoned."""
    simulated: int = 0


@dataclass(frozen=True, slots=True)
class Fleet:
    """Workers; of those that left only their number."""

    workers: Mapping[tuple[Liveness, HardwareClass], int]
    connected: int
    """Of those that did not leave."""
    placeable: int
    """May be given new work."""
    holds: Mapping[HoldKind, int]
    """Workers by the kind of hold; one may have several."""
    lost_lately: tuple[str, ...]
    """Names of workers that were lost within LATELY_MS, the newest first."""
    lost_before: int
    """Workers that are lost for longer."""
    lost_at_once: int
    """Workers that were lost within LOST_WINDOW_MS."""
    cordoned_lately: tuple[str, ...]
    """Names of workers of which a device was cordoned within CORDONED_WINDOW_MS."""
    devices: Devices
    isolation: Isolation
    """The weakest that any live worker has."""
    overlay: str
    """What all live workers have; none where they differ."""
    remarks: Mapping[str, int]
    """What workers that are here say of themselves, by how many say it."""

    def count(self, liveness: Liveness) -> int:
        """Workers of all classes."""
        return sum(number for (standing, _), number in self.workers.items() if standing is liveness)


@dataclass(frozen=True, slots=True)
class Waiting:
    """The queue. Jobs that wait for their reservation's time are not in it."""

    jobs: int
    gpus: int
    """What they ask for together."""
    for_reservations: int
    """Jobs that wait for their reservation's time."""
    free_gpus: int
    """What nobody and nothing keeps."""
    placed_lately: bool
    """Whether a job was given machines within FORMATION_WINDOW_MS."""
    oldest_ms: int
    """0 where nobody waits."""
    oldest_job: JobId | None
    oldest_reason: str
    """Why that one waits, as the newest plan saw it."""


@dataclass(frozen=True, slots=True)
class Formations:
    """Clusters that became ready, or were given up before, within FORMATION_WINDOW_MS."""

    ready: int
    failed: int
    last_reason: str
    """Of the newest that was given up."""


@dataclass(frozen=True, slots=True)
class Outbox:
    """Receipts that are not in the ledger yet."""

    receipts: int
    oldest_ms: int
    """0 where there is none."""


@dataclass(frozen=True, slots=True)
class Overview:
    """All of it, as of one instant."""

    fleet: Fleet
    clusters: Mapping[ClusterPhase, int]
    clusters_idle: int
    """READY without a job, kept warm."""
    jobs: Mapping[JobStatus, int]
    waiting: Waiting
    formations: Formations
    outbox: Outbox
    receipts: int
    leases_open: int
    """Leases that run."""
    zones_held: tuple[str, ...]
    gpus: Mapping[Gpus, int]
    """By class, model and state."""


def overview(state: State, connected: Collection[WorkerId], reserved: Reserved, at_ms: int) -> Overview:
    """As of control time ``at_ms``.

    ``connected`` are the workers with an open session, ``reserved`` what the newest plan keeps for reservations.
    """
    found = gpus(state, reserved)
    return Overview(
        fleet=_fleet(state, connected, at_ms),
        clusters=state.tallies.clusters.copy(),
        clusters_idle=len(state.idle_clusters),
        jobs=state.tallies.jobs.copy(),
        waiting=_waiting(state, free_gpus(found), at_ms),
        formations=formations(state, at_ms),
        outbox=outbox(state, at_ms),
        receipts=len(state.receipts),
        leases_open=state.tallies.leases[LeaseState.OPEN],
        zones_held=tuple(sorted(state.zones_held)),
        gpus=found,
    )


# ------------------------------------------------------------ fleet


def _fleet(state: State, connected: Collection[WorkerId], at_ms: int) -> Fleet:
    """One walk, for what no tally has."""
    remarks: list[str] = []
    looks: set[tuple[Isolation, str]] = set()
    lost: list[Worker] = []
    cordoned: list[str] = []
    placeable = present = free = simulated = 0
    for worker_id, worker in state.workers.items():
        if worker.liveness is Liveness.LEFT:
            continue
        if any(at_ms - one.since_ms <= CORDONED_WINDOW_MS for one in worker.device_holds):
            cordoned.append(worker.name)
        if worker.liveness is Liveness.LOST:
            lost.append(worker)
            continue
        inventory = worker.inventory
        placeable += worker.placeable
        present += len(inventory.devices)
        free += len(state.free_devices[worker_id])
        simulated += sum([device.simulated for device in inventory.devices])
        if inventory.remarks:
            remarks += set(inventory.remarks)
        if worker.liveness is Liveness.LIVE:
            looks.add((inventory.isolation, inventory.overlay))
    lost.sort(key=lambda worker: (-worker.liveness_since_ms, worker.name))
    lately = tuple(one.name for one in lost if at_ms - one.liveness_since_ms <= LATELY_MS)
    tiers, overlays = {tier for tier, _ in looks}, {overlay for _, overlay in looks}
    tallies = state.tallies
    return Fleet(
        workers={key: number for key, number in tallies.workers.items() if number},
        connected=connected_workers(state, connected).total(),
        placeable=placeable,
        holds={kind: number for kind, number in tallies.holds.items() if number},
        lost_lately=lately,
        lost_before=len(lost) - len(lately),
        lost_at_once=sum(at_ms - one.liveness_since_ms <= LOST_WINDOW_MS for one in lost),
        cordoned_lately=tuple(sorted(cordoned)),
        devices=Devices(present, present - free, simulated),
        isolation=next((tier for tier in Isolation if tier in tiers), Isolation.NONE),
        overlay=overlays.pop() if len(overlays) == 1 else NO_OVERLAY,
        remarks=Counter(remarks),
    )


def connected_workers(state: State, connected: Collection[WorkerId]) -> Counter[HardwareClass]:
    """By class, of those with an open session; one that has just left is not expected to have any."""
    here = (state.workers.get(worker_id) for worker_id in connected)
    return Counter(
        worker.inventory.hardware_class
        for worker in here
        if worker is not None and worker.liveness is not Liveness.LEFT
    )


# ------------------------------------------------------------ work


def formations(state: State, at_ms: int) -> Formations:
    """How those ended that ended lately. Clusters lie in the order in which they were planned, so the walk is short.

    Given up is one whose ground gave way under its job. One that lost its job before, or that formed as a spare, may
    end as it likes: nobody waits for it.
    """
    ready = failed = 0
    newest_ms, reason = -1, ""
    longest_ms = FORMATION_WINDOW_MS + _formation_ms_max(state)
    broken = _broken(state, at_ms - longest_ms)
    for cluster in reversed(state.clusters.values()):
        if at_ms - cluster.created_at_ms > longest_ms:
            break
        if cluster.ready_at_ms is not None:
            ready += at_ms - cluster.ready_at_ms <= FORMATION_WINDOW_MS
            continue
        ended_ms = broken.get(cluster.cluster_id)
        if ended_ms is not None and at_ms - ended_ms <= FORMATION_WINDOW_MS:
            failed += 1
            if ended_ms > newest_ms:
                newest_ms, reason = ended_ms, cluster.reason
    return Formations(ready, failed, reason)


def _broken(state: State, since_ms: int) -> dict[ClusterId, int]:
    """When tries that were begun since then ended by no fault of their job's; tries, too, lie in order."""
    found: dict[ClusterId, int] = {}
    for attempt in reversed(state.attempts.values()):
        if attempt.placed_at_ms < since_ms:
            break
        if attempt.outcome is Outcome.GROUND and attempt.ended_at_ms is not None:
            found.setdefault(attempt.cluster_id, attempt.ended_at_ms)
    return found


def _formation_ms_max(state: State) -> int:
    """From being planned to READY or the end, at most: no cluster that ended lately is older."""
    policy = state.policies.clusters
    return policy.provision_deadline_ms + policy.head_deadline_ms + policy.join_deadline_ms


def waiting_for_reservations(state: State) -> tuple[int, int]:
    """(jobs, GPUs) queued for machines that are reserved: they wait for a time, and nobody has to see to them."""
    queues = state.bookings.queues.values()
    gpus = sum(state.jobs[job_id].request.requirements.gpus for queue in queues for _, _, job_id in queue)
    return sum(map(len, queues)), gpus


def _waiting(state: State, free: int, at_ms: int) -> Waiting:
    booked, booked_gpus = waiting_for_reservations(state)
    tallies = state.tallies
    jobs, gpus = tallies.queued - booked, tallies.queued_gpus - booked_gpus
    oldest = longest_waiting(state)
    if oldest is None:
        return Waiting(jobs, gpus, booked, free, _placed(state, at_ms), 0, None, "")
    submitted_ms, job_id = oldest
    message = state.shown(state.jobs[job_id]).message
    oldest_ms = max(0, at_ms - submitted_ms)
    return Waiting(jobs, gpus, booked, free, _placed(state, at_ms), oldest_ms, job_id, message)


def _placed(state: State, at_ms: int) -> bool:
    """Whether any of the jobs that have machines was given them lately."""
    given = (state.attempts[one].placed_at_ms for one in state.attempt_in.values())
    return any(at_ms - placed_ms <= FORMATION_WINDOW_MS for placed_ms in given)


def longest_waiting(state: State) -> tuple[int, JobId] | None:
    """(submitted_at_ms, job) of the one that waits longest; jobs that wait for their reservation's time aside.

    Each queue is in order of priority, then age: only the first of each priority may be the one.
    """
    oldest: tuple[int, JobId] | None = None
    for queue in state.queues.values():
        place = 0
        while place < len(queue):
            rank, submitted_ms, job_id = queue[place]
            found = (submitted_ms, job_id)
            oldest = found if oldest is None else min(oldest, found)
            place = bisect.bisect_left(queue, (rank + 1, 0, JobId("")), lo=place)
    return oldest


def outbox(state: State, at_ms: int) -> Outbox:
    """Neither index is in order of age: signing has an order of its own, and so has loading."""
    oldest_ms = min(chain(state.unsigned.values(), state.unposted.values()), default=at_ms)
    return Outbox(len(state.unsigned) + len(state.unposted), max(0, at_ms - oldest_ms))
