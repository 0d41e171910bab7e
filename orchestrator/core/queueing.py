"""What a plan should serve, in order: forming clusters, jobs that were overtaken too often, then all tenants' in turn.

The turn goes by weighted dominant share (``fairness``); within one tenant by priority, then age. A plan says what became
of each need before it asks for the next, because that decides whose turn it is.
"""

from __future__ import annotations

from dataclasses import replace
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.catalogue import CPU_MODEL
from orchestrator.core.decisions.spares import spare_needs
from orchestrator.core.fairness import Amounts, Contender, Turns
from orchestrator.core.offers import OPEN, Column
from orchestrator.core.placement import JobNeed, Placement, Reuse, VacancyNeed
from orchestrator.core.quotas import UNLIMITED, QuotaRequest, Standing, after_use, in_month_of, refusal
from orchestrator.core.tenants import MIB, Tenant, held_by
from orchestrator.core.worth import worth_milli

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import JobId, TenantId
    from orchestrator.core.jobs import Job, Requirements
    from orchestrator.core.placement import Need, Served, SpareNeed
    from orchestrator.core.state import State

MISSES_MAX = 100
"""Jobs of one tenant that a plan finds no place for before it looks at no more of them: how deep a job may lie and
still be served before those above it. A queue of a million must not be walked through for every plan."""

MISSES_MIN, MISSES_IN_ALL = 4, 1_000
"""Of many tenants each plan looks less deep at each, and at some jobs of every one: ten milliseconds of work."""

ENTITLED_MAX = 8
"""Entitled jobs that come first: twice as many as a plan keeps machines for, as some of them will fit."""


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
        self._first: set[JobId] = set()
        """Entitled jobs, which come before anybody's turn."""
        self._gpus = {
            tenant_id: gpus_held(state, tenant_id)
            for tenant_id in self._waiting
            if state.tenants[tenant_id].quota != UNLIMITED
        }
        self._turns = Turns(
            [
                Contender(tenant_id, tenant.usage, tenant.weight, since_ms_of(state, tenant_id))
                for tenant_id in self._waiting
                for tenant in (state.tenants[tenant_id],)
            ],
            capacity_of(state),
            state.policies.fairness,
            at_ms,
            min(MISSES_MAX, max(MISSES_MIN, MISSES_IN_ALL // max(1, len(self._waiting)))),
        )

    def __iter__(self) -> Iterator[Need]:
        yield from self._vacancies()
        for job_id in list(islice(self._state.entitled, ENTITLED_MAX)):
            overtaken = self._need_of(job_id)
            if overtaken is not None:
                self._first.add(job_id)
                yield overtaken
        while (tenant_id := self._turns.next()) is not None:
            need = self._next_of(tenant_id)
            if need is None:
                self._turns.leave(tenant_id)
            else:
                yield need

    def settled(self, need: Need, outcome: Served) -> None:
        """What the plan made of a need that it was given."""
        match need, outcome:
            case VacancyNeed(), _:
                return
            case _, Placement():
                self._turns.gave(need.tenant_id, self._amounts(outcome))
                if need.tenant_id in self._gpus:
                    self._gpus[need.tenant_id] += need.requirements.gpus
            case _, Reuse():
                # It holds the cluster already.
                return
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
        need = need_of(self._state, job, self._at_ms)
        return replace(need, refused=self._refusal(job.tenant_id, need.requirements))

    def _refusal(self, tenant_id: TenantId, wanted: Requirements) -> str:
        """Why the tenant's quota holds a job back; empty where it does not."""
        if tenant_id not in self._gpus:
            return ""
        tenant = self._state.tenants[tenant_id]
        standing = replace(standing_of(self._state, tenant, self._at_ms), gpus_held=self._gpus[tenant_id])
        return refusal(tenant.quota, standing, QuotaRequest(wanted.gpus)) or ""

    def _amounts(self, placement: Placement) -> Amounts:
        total = Amounts()
        for share in placement.shares:
            inventory = self._state.workers[share.worker_id].inventory
            held = set(share.device_ids)
            models = [device.model for device in inventory.devices if device.device_id in held]
            total = total.plus(held_by(inventory, models))
        return total


def need_of(state: State, job: Job, at_ms: int) -> JobNeed:
    """A queued job as a plan sees it, whatever its tenant's quota says."""
    patient = at_ms < job.not_before_ms + state.policies.jobs.avoid_ms
    entitled = job.job_id in state.entitled
    return JobNeed(
        job.job_id, job.tenant_id, job.request.requirements, job.avoid if patient else (), entitled
    )


def since_ms_of(state: State, tenant_id: TenantId) -> int:
    """When the first job of a tenant's queue was submitted; 0 where it only waits for a spare cluster."""
    queue = state.queues.get(tenant_id)
    return queue[0][1] if queue else 0


def gpus_held(state: State, tenant_id: TenantId) -> int:
    """GPUs of all members of a tenant's clusters that are not released yet."""
    return sum(
        state.members[member_id].gpus
        for cluster_id in state.clusters_of.get(tenant_id, ())
        for member_id in state.members_of.get(cluster_id, ())
    )


def standing_of(state: State, tenant: Tenant, at_ms: int) -> Standing:
    """Where a tenant stands against its quota; what runs counts as used until now."""
    month = in_month_of(tenant.month, at_ms)
    running = [
        state.leases[lease_id]
        for cluster_id in state.clusters_of.get(tenant.tenant_id, ())
        for member_id in state.members_of.get(cluster_id, ())
        for lease_id in state.leases_on.get(member_id, ())
    ]
    for lease in running:
        gpus = sum(model != CPU_MODEL for model in lease.device_models)
        month = after_use(month, gpus, lease.started_ms, max(lease.started_ms, at_ms))
    return Standing(month.month, gpus_held(state, tenant.tenant_id), month.gpu_ms, 0, month.microcredits)


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
