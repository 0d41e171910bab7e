"""What a plan under way has given away already, beside the view, and what it has worked out on its way."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager, nullcontext
from copy import copy
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.scheduling.costs import Costs
from orchestrator.core.scheduling.filters import OF_HEADS, Question, fitting, scores_bp
from orchestrator.core.scheduling.offers import NO_ASK, Column
from orchestrator.core.scheduling.placement import JobNeed, Share, WaitReason
from orchestrator.core.supply.reliability import BASIS_POINTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from orchestrator.core.clusters import Cluster
    from orchestrator.core.gangs.widening import TooFar
    from orchestrator.core.ids import ClusterId, DeviceId, JobId, TenantId, WorkerId
    from orchestrator.core.jobs import Promise, Requirements
    from orchestrator.core.scheduling.filters import Mask
    from orchestrator.core.scheduling.offers import Numbers
    from orchestrator.core.scheduling.placement import (
        Lender,
        Need,
        Nominated,
        PlacementView,
        Preemption,
    )

    Signature = tuple[Requirements, tuple[WorkerId, ...]]

FORMING_ALLOWANCE_MS = 300_000
"""From a job's placement until it is over, beside its time limit: the deadlines of forming come to four minutes where no
runtime is built, and its driver starts and stops within the fifth."""

LENT_TO_NOBODY_MS = 0
"""As the instant by which a borrower has to have ended: nobody has."""

NOTHING_LENT = nullcontext()
"""For most needs of most plans, in which nothing is kept."""


class Draft:
    """One call's view: ``free`` and ``slots`` by row are what is left of the view's, the rest is the view's."""

    def __init__(self, view: PlacementView, now_ms: int) -> None:
        self.view = view
        self.now_ms = now_ms
        offers = view.offers
        self.free: Numbers = offers[Column.FREE].copy()
        self.slots: Numbers = offers[Column.SLOTS].copy()
        market = np.array([view.market_price(model) for model in offers.models.names] or [0], dtype=np.int64)
        asked = offers[Column.PRICE]
        self.prices: Numbers = np.where(asked == NO_ASK, market[offers[Column.MODEL]], asked)
        self.heads: Counter[WorkerId] = Counter()
        self.head_hosts: dict[WorkerId, int] = dict(view.head_hosts)
        self.taken: dict[WorkerId, set[DeviceId]] = {}
        """Free devices that are given away, or kept."""
        self.freed: dict[WorkerId, dict[DeviceId, None]] = {}
        """Devices that are free beside the view's, in a draft that supposes some members gone."""
        self._fits: dict[Signature, tuple[Mask, Mask]] = {}
        self._idle: dict[TenantId | None, list[Cluster]] | None = None
        self.unit_price: Numbers = self._unit_prices()
        self.costs = Costs(view, self.prices, self.unit_price, self.free, self.slots)
        self._init_notes()
        self._init_kept(offers.size)

    def _init_notes(self) -> None:
        """What was found and ordered on the way."""
        self.reused: set[ClusterId] = set()
        self.counted_on: set[ClusterId] = set()
        """Warm clusters that make a spare needless, each for one job; who comes first may have them all the same."""
        self.closing: dict[ClusterId, None] = {}
        """Warm clusters that give way."""
        self.leaving: list[Cluster] | None = None
        """Clusters that end, once somebody has asked."""
        self.rooms_sought = 0
        self.spares_unplaced = 0
        self.kept = 0
        """Entitled jobs that machines are kept for."""
        self.promised: dict[JobId, Promise] = {}
        """What was promised before, of which the rows are kept until the turn of the job it was promised to."""
        self.promises: dict[JobId, Promise] = {}
        """What this plan promises, to jobs whose turn it was."""
        self.pairs: dict[tuple[WorkerId, WorkerId], None] = {}
        """Pairs of workers to measure: proposed, and not known to be near enough."""
        self.measuring: dict[Requirements, int] = {}
        """Of requests with a bound: between how many machines round trips have to be measured first."""
        self.too_far: dict[Requirements, TooFar] = {}
        """Of others: where most devices were found within their bound."""
        self.widened = 0
        """Requests for which a bound that would do was looked for."""
        self.grounds: dict[Signature, Sequence[Sequence[Numbers]]] = {}
        """Of requests for gangs: rows that may be in one together."""
        self.unfit: dict[tuple[object, ...], tuple[str, WaitReason]] = {}
        """Why requests wait that this call found no place for, by what was lent to them (``lent_until_ms``)."""
        self.preemptions: list[Preemption] = []
        self.victims_sought = 0
        self.hopeless: set[tuple[object, ...]] = set()
        """Requests for which nobody who may give way would be enough."""

    def _init_kept(self, size: int) -> None:
        self.nominated: dict[JobId, Nominated] = {}
        """What is kept for jobs for which others give way."""
        self.nominated_devices: set[tuple[WorkerId, DeviceId]] = set()
        """All devices of these, free by now or not."""
        self.spoken_for: Mask = np.zeros(size, dtype=np.bool_)
        """Rows that are kept, but for those that are lent just now."""
        self._kept_devices: Numbers = np.zeros(size, dtype=np.int64)
        self._kept_until_ms: Numbers = np.zeros(size, dtype=np.int64)
        self._kept_rows: Numbers = np.zeros(0, dtype=np.int64)
        self._keepers: Numbers = np.zeros(size, dtype=np.int64)
        """For how many each row is kept."""
        self.borrowed: dict[int, tuple[tuple[int, int], ...]] = {}
        """What this plan lent of rows that are kept: when a borrower has ended at the latest, and how many devices."""
        self.reserved: Lender | None = None
        """What is kept for reservations, if anything is."""
        self.booked: Numbers = np.zeros(size, dtype=np.int64)
        """Devices of each row that are for reservations: what is free of these is out of ``free`` already."""
        self.awaited: Mask = np.zeros(size, dtype=np.bool_)
        """Rows of which reservations want more than is free."""

    def _unit_prices(self) -> Numbers:
        """What a device and hour counts: its price, and as much again of it as the worker breaks of its leases."""
        half_life_ms = self.view.reliability_half_life_ms
        broken_bp = BASIS_POINTS - scores_bp(self.view.offers, self.now_ms, half_life_ms)
        return self.prices + self.prices * broken_bp // BASIS_POINTS

    def twin(self) -> Draft:
        """The same once more: what is taken of it, kept in it and noted in it is not so here."""
        then = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray | Counter | dict | list | set):
                setattr(then, name, value.copy())
        then.taken = {worker_id: set(taken) for worker_id, taken in self.taken.items()}
        then.freed = {worker_id: dict(freed) for worker_id, freed in self.freed.items()}
        then.costs = Costs(self.view, then.prices, then.unit_price, then.free, then.slots)
        return then

    def question(self, wanted: Requirements, avoid: tuple[WorkerId, ...]) -> Question:
        """What filters look at."""
        half_life_ms = self.view.reliability_half_life_ms
        bandwidth = self.view.bandwidth
        return Question(self.view.offers, wanted, self.now_ms, self.prices, half_life_ms, avoid, bandwidth)

    def fits(self, wanted: Requirements, avoid: tuple[WorkerId, ...]) -> tuple[Mask, Mask]:
        """The rows that serve a request, and those whose workers could carry its head."""
        known = self._fits.get((wanted, avoid))
        if known is None:
            question = self.question(wanted, avoid)
            known = self._fits[wanted, avoid] = (fitting(question), fitting(question, OF_HEADS))
        return known

    def one_row_each(self, rows: Numbers, devices: Numbers | None = None) -> Numbers:
        """Of each worker the row with most free devices, or most by ``devices``: a member's share is of one kind."""
        if not self.view.offers.mixed:
            return rows
        workers = self.view.offers[Column.WORKER][rows]
        order = np.lexsort((-(self.free if devices is None else devices)[rows], workers))
        return np.sort(rows[order[np.unique(workers[order], return_index=True)[1]]])

    def row_of(self, worker_id: WorkerId, device_ids: Sequence[DeviceId]) -> int | None:
        """The row that has all these devices; any of the worker's for none. None where there is none any more."""
        offers = self.view.offers
        return next(
            (row for row in offers.rows_of(worker_id) if set(device_ids) <= set(offers.devices_of(row))), None
        )

    def take(self, wanted: Iterable[tuple[int, int]], head_host: WorkerId | None) -> tuple[Share, ...]:
        """Give away so many devices of each row within this call, and a head slot."""
        shares: list[Share] = []
        offers = self.view.offers
        for row, count in wanted:
            worker_id = offers.worker_of(row)
            gone = self.taken.setdefault(worker_id, set())
            free = self.view.free_devices[worker_id]
            if worker_id in self.freed:
                free = {**free, **self.freed[worker_id]}
            left = [one for one in offers.devices_of(row) if one in free and one not in gone]
            share = Share(worker_id, tuple(left[:count]))
            gone.update(share.device_ids)
            self.free[row] -= count
            for other in offers.rows_of(worker_id):
                self.slots[other] -= 1
            shares.append(share)
        if head_host is not None:
            self.heads[head_host] += 1
        return tuple(shares)

    # ------------------------------------------------------------ what is kept, and lent

    def keep(self, rows: Numbers, until_ms: int | None) -> None:
        """What is free of these rows is for nobody, but for who is sure to have ended by ``until_ms``.

        None: for nobody at all. Rows that are kept twice are lent until the earlier of the two.
        """
        bound_ms = LENT_TO_NOBODY_MS if until_ms is None else until_ms
        earlier_ms = np.minimum(self._kept_until_ms[rows], bound_ms)
        self._kept_until_ms[rows] = np.where(self.spoken_for[rows], earlier_ms, bound_ms)
        self.spoken_for[rows] = True
        self._keepers[rows] += 1
        self._put_back(rows)
        self._kept_rows = np.union1d(self._kept_rows, rows)

    def give_back(self, rows: Numbers) -> None:
        """It is the turn of somebody whom rows were kept for: those that were kept for nobody else are as any others."""
        self._keepers[rows] -= 1
        rows = rows[self._keepers[rows] == 0]
        self.free[rows] += self._kept_devices[rows]
        self._kept_devices[rows] = 0
        self.spoken_for[rows] = False
        self._kept_rows = np.setdiff1d(self._kept_rows, rows)

    def lending(self, need: Need) -> AbstractContextManager[None]:
        """While a need is placed: what is kept for others is free to it, as far as it may use that."""
        if self.reserved is None:
            return self._lending_kept(need) if len(self._kept_rows) else NOTHING_LENT
        if isinstance(need, JobNeed) and need.reservation_id is not None:
            return self.reserved.lending(need)
        return self._lending_both(self.reserved, need)

    @contextmanager
    def _lending_both(self, reserved: Lender, need: Need) -> Iterator[None]:
        with self._lending_kept(need), reserved.lending(need):
            yield

    @contextmanager
    def _lending_kept(self, need: Need) -> Iterator[None]:
        """While a need is placed, the rows are free to it by whose time it is sure to have ended.

        What is left of them is kept again afterwards.
        """
        rows = self._lent(need)
        if not len(rows):
            yield
            return
        self.free[rows] += self._kept_devices[rows]
        self._kept_devices[rows] = 0
        self.spoken_for[rows] = False
        try:
            yield
        finally:
            self.spoken_for[rows] = True
            self._put_back(rows)

    def note_borrowed(self, need: JobNeed, taken: Iterable[tuple[int, int]]) -> None:
        """A job was placed, perhaps on lent machines: to whom they are kept for they come back, if his turn is later."""
        if need.time_limit_ms and len(self._kept_rows):
            over_ms = self.now_ms + FORMING_ALLOWANCE_MS + need.time_limit_ms
            for row, count in taken:
                if self._keepers[row]:
                    self.borrowed[row] = (*self.borrowed.get(row, ()), (over_ms, count))

    def lent(self, need: Need) -> tuple[object, ...]:
        """Names all that is lent to a need: equal for two of them, it is the same."""
        reserved = () if self.reserved is None else self.reserved.lent_to(need)
        return (self.lent_until_ms(need), *reserved)

    def lent_until_ms(self, need: Need) -> int:
        """Names what is lent to a need: equal for two of them, it is the same rows; 0 for none."""
        rows = self._lent(need)
        return int(self._kept_until_ms[rows].min()) if len(rows) else LENT_TO_NOBODY_MS

    def _lent(self, need: Need) -> Numbers:
        """The kept rows that are lent to a need."""
        if not isinstance(need, JobNeed) or not need.time_limit_ms:
            return self._kept_rows[:0]
        over_ms = self.now_ms + FORMING_ALLOWANCE_MS + need.time_limit_ms
        return self._kept_rows[self._kept_until_ms[self._kept_rows] >= over_ms]

    def _put_back(self, rows: Numbers) -> None:
        self._kept_devices[rows] += self.free[rows]
        self.free[rows] = 0

    # ------------------------------------------------------------ warm clusters

    def idle_clusters(self, tenant_id: TenantId | None = None) -> list[Cluster]:
        """Warm clusters of a tenant, or of all tenants, that no job has or was given, those idle for longest first.

        Spares are their job's alone.
        """
        if self._idle is None:
            warm = (self.view.clusters[cluster_id] for cluster_id in self.view.idle_clusters)
            self._idle = {}
            for cluster in sorted(warm, key=lambda one: (one.idle_since_ms or 0, one.cluster_id)):
                spare = cluster.spare_for is not None or cluster.phase is not ClusterPhase.READY
                if not spare and cluster.cluster_id not in self.view.attempt_in:
                    self._idle.setdefault(cluster.tenant_id, []).append(cluster)
                    self._idle.setdefault(None, []).append(cluster)
        warm_ones = self._idle.get(tenant_id)
        if warm_ones is None:
            return []
        return [
            cluster
            for cluster in warm_ones
            if cluster.cluster_id not in self.reused and cluster.cluster_id not in self.closing
        ]
