"""What a plan should serve, in order: forming clusters, jobs of reservations, jobs that were overtaken too often, then
all tenants' in turn.

The turn goes by weighted dominant share (``fairness``); within one tenant by priority, then age. A plan says what became
of each need before it asks for the next, because that decides whose turn it is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.decisions.spares import spare_needs
from orchestrator.core.ids import ReservationId
from orchestrator.core.market.worth import worth_milli
from orchestrator.core.queries.allowance import Allowances
from orchestrator.core.queries.shares import Shares
from orchestrator.core.scheduling.offers import OPEN, Column
from orchestrator.core.scheduling.placement import Deferral, JobNeed, Placement, Reuse, VacancyNeed
from orchestrator.core.supply.catalogue import CPU_MODEL
from orchestrator.core.tenancy.fairness import Amounts, Contender, Turns, total
from orchestrator.core.tenancy.tenants import MIB, held_by

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import JobId, TenantId
    from orchestrator.core.jobs import Job
    from orchestrator.core.scheduling.placement import Claim, Need, Served, SpareNeed
    from orchestrator.core.state import State
    from orchestrator.core.tenancy.reservations import Reservation

MISSES_MAX = 100
"""Jobs of one tenant that a plan finds no place for before it looks at no more of them: how deep a job may lie and
still be served before those above it. A queue of a million must not be walked through for every plan."""

MISSES_MIN, MISSES_IN_ALL = 4, 500
"""Of many tenants each plan looks less deep at each, and at some jobs of every one: half of the ten milliseconds that a
decision may take, so that the other half is left for what fits."""

RESERVED_MISSES_MAX = 8
"""Jobs of one reservation that a plan finds no place for before it looks at no more of them: they are one tenant's, who
knows what fits beside what."""

ENTITLED_MAX = 8
"""Entitled jobs that come first: twice as many as a plan keeps machines for, as some of them will fit."""


ENTITLED_LOOKED_AT_MAX = 32
"""Of all that are entitled: jobs that no machines could ever hold may stand before those that some can."""


class Queue:
    """One plan's needs. Iterate, and say what became of each by ``settled``."""

    def __init__(self, state: State, at_ms: int) -> None:
        self._state = state
        self._at_ms = at_ms
        self._ahead = {need.job_id: need for need in spare_needs(state, at_ms)}
        places: dict[TenantId, list[tuple[int, int, JobId]]] = {}
        for need in self._ahead.values():
            places.setdefault(need.tenant_id, []).append(state.jobs[need.job_id].queue_place)
        self._waiting = {
            tenant_id: merge(state.queues.get(tenant_id, ()), sorted(places.get(tenant_id, ())))
            for tenant_id in sorted({*state.queues, *places})
        }
        self._misses: Counter[ReservationId] = Counter()
        self._first: set[JobId] = set()
        """Entitled and nominated jobs, which come before anybody's turn."""
        self._helped = 0
        """Of these, how many found machines, or have some kept: the others found nothing that could ever be."""
        self._allowances = Allowances(state, at_ms)
        self._capacity = capacity_of(state)
        self._shares: Shares | None = None
        self._served: set[TenantId] = set()
        """Tenants that hold more by now than when this plan was begun."""
        self._turns = Turns(
            [
                Contender(tenant_id, tenant.usage, tenant.weight, since_ms_of(state, tenant_id))
                for tenant_id in self._waiting
                for tenant in (state.tenants[tenant_id],)
            ],
            self._capacity,
            state.policies.fairness,
            at_ms,
            min(MISSES_MAX, max(MISSES_MIN, MISSES_IN_ALL // max(1, len(self._waiting)))),
        )

    def __iter__(self) -> Iterator[Need]:
        yield from self._vacancies()
        yield from self._reserved()
        found = self._state.watched.nominated.items()
        nominated = [job_id for job_id, one in found if one.until_ms > self._at_ms]
        for job_id in nominated:
            yield from self._at_once(job_id)
        for job_id in list(islice(self._state.entitled, ENTITLED_LOOKED_AT_MAX)):
            if self._helped == ENTITLED_MAX:
                break
            # Who is beyond his share waits for his turn: overtaken or not, nobody else's share is there for him.
            if job_id not in self._first and not self._turns.is_beyond(self._state.jobs[job_id].tenant_id):
                yield from self._at_once(job_id)
        while (tenant_id := self._turns.next()) is not None:
            need = self._next_of(tenant_id)
            if need is None:
                self._turns.leave(tenant_id)
            else:
                yield need

    def _at_once(self, job_id: JobId) -> Iterator[JobNeed]:
        need = self._need_of(job_id)
        if need is not None:
            self._first.add(job_id)
            yield need

    def settled(self, need: Need, outcome: Served) -> None:
        """What the plan made of a need that it was given."""
        if isinstance(need, JobNeed) and need.job_id in self._first:
            self._helped += isinstance(outcome, Placement | Reuse) or (
                isinstance(outcome, Deferral) and outcome.kept
            )
        match need, outcome:
            case VacancyNeed(), _:
                return
            case _, Placement():
                self._turns.gave(need.tenant_id, self._amounts(outcome))
                self._allowances.gave(need, outcome)
                self._served.add(need.tenant_id)
            case _, Reuse():
                # It holds the cluster already.
                self._allowances.gave(need, outcome)
            case JobNeed(reservation_id=str(reservation_id)), _:
                self._misses[ReservationId(reservation_id)] += 1
            case _:
                self._turns.missed(need.tenant_id)

    def _vacancies(self) -> Iterator[VacancyNeed]:
        """A cluster whose job was stopped gets nobody new: it is closed when its time to form is over."""
        state = self._state
        for cluster_id in state.open_clusters:
            cluster = state.clusters[cluster_id]
            forming_for = state.job_of(cluster) if cluster.vacancies else None
            if forming_for is not None:
                avoid = tuple(vacancy.failed_worker_id for vacancy in cluster.vacancies)
                wanted = forming_for.request.requirements
                yield VacancyNeed(cluster_id, cluster.vacancies[0].device_count, avoid, wanted)

    def _begun(self) -> list[Reservation]:
        bookings = self._state.bookings
        near = bookings.near(self._at_ms) if bookings.queues else []
        return [one for one in near if one.begun(self._at_ms) and one.reservation_id in bookings.queues]

    def _reserved(self) -> Iterator[JobNeed]:
        """Jobs of reservations that have begun: what is kept for these is kept from all others already."""
        for one in self._begun():
            for _, _, job_id in self._state.bookings.queues[one.reservation_id]:
                if self._misses[one.reservation_id] == RESERVED_MISSES_MAX:
                    break
                need = self._need_of(job_id)
                if need is not None:
                    yield need

    def _next_of(self, tenant_id: TenantId) -> JobNeed | SpareNeed | None:
        """A tenant's next job, or the spare of one; those that pause after a failure are passed over."""
        for _, _, job_id in self._waiting[tenant_id]:
            need = self._ahead.get(job_id) or (self._need_of(job_id) if job_id not in self._first else None)
            if need is not None:
                return need
        return None

    def _need_of(self, job_id: JobId) -> JobNeed | None:
        job = self._state.jobs[job_id]
        if job.not_before_ms > self._at_ms:
            return None
        need = self._allowances.allowed(need_of(self._state, job, self._at_ms))
        claim = None if need.refused else self._claim(need)
        return need if claim is None else replace(need, claim=claim)

    def _claim(self, need: JobNeed) -> Claim | None:
        """What a job that waited too long may have of others that hold more than their share."""
        if need.reservation_id is not None:
            # It has its own machines, and no others.
            return None
        policy, others = self._state.policies.preemption, self._state.watched.interruptible
        wait_ms = policy.wait_ms if need.entitled else policy.wait_for_share_ms
        if self._at_ms - need.since_ms < wait_ms or need.tenant_id in self._served:
            return None
        if not others or others.keys() == {need.tenant_id}:
            return None
        if self._shares is None:
            self._shares = Shares(self._state, self._capacity, self._at_ms)
        return self._shares.claim(need.tenant_id)

    def _amounts(self, placement: Placement) -> Amounts:
        held = []
        for share in placement.shares:
            inventory = self._state.workers[share.worker_id].inventory
            models = [device.model for device in inventory.devices if device.device_id in share.device_ids]
            held.append(held_by(inventory, models))
        return total(held)


def need_of(state: State, job: Job, at_ms: int) -> JobNeed:
    """A queued job as a plan sees it, whatever its tenant's quota says."""
    patient = at_ms < job.not_before_ms + state.policies.jobs.avoid_ms
    entitled = job.job_id in state.entitled
    booked = state.bookings.of(job.request.reservation_id)
    early = booked is not None and not booked.begun(at_ms)
    return JobNeed(
        job.job_id,
        job.tenant_id,
        job.request.requirements,
        job.avoid if patient else (),
        entitled,
        time_limit_ms=job.request.time_limit_ms,
        refused=(state.bookings.waiting_words(job, queued=True) or "") if early else "",
        reservation_id=None if booked is None else booked.reservation_id,
        packages=job.request.package_hashes,
        priority=job.request.priority,
        since_ms=max(
            job.submitted_at_ms, job.not_before_ms, job.nomination.until_ms if job.nomination else 0
        ),
    )


def since_ms_of(state: State, tenant_id: TenantId) -> int:
    """When the first job of a tenant's queue was submitted; 0 where it only waits for a spare cluster."""
    queue = state.queues.get(tenant_id)
    return queue[0][1] if queue else 0


def capacity_of(state: State) -> Amounts:
    """All that may be held of the workers that can be given something now."""
    offers = state.offers
    names = offers.models.names
    worth = np.array([0 if name == CPU_MODEL else worth_milli(name) for name in names] or [0], dtype=np.int64)
    is_open = offers[Column.STATE] == OPEN
    machines = is_open & (offers[Column.LEADS] != 0)
    return Amounts(
        int((worth[offers[Column.MODEL]] * offers[Column.SERVING])[is_open].sum()),
        int(offers[Column.MACHINE_CPUS][machines].sum()),
        int(offers[Column.MACHINE_BYTES][machines].sum()) // MIB,
    )
