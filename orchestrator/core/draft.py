"""What a plan under way has given away already, beside the view, and what it has worked out on its way."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.filters import OF_HEADS, Question, fitting, scores_bp
from orchestrator.core.offers import NO_ASK, Column
from orchestrator.core.placement import Share
from orchestrator.core.reliability import BASIS_POINTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from orchestrator.core.clusters import Cluster
    from orchestrator.core.filters import Mask
    from orchestrator.core.ids import ClusterId, DeviceId, TenantId, WorkerId
    from orchestrator.core.jobs import Requirements
    from orchestrator.core.offers import Numbers
    from orchestrator.core.placement import PlacementView

    Signature = tuple[Requirements, tuple[WorkerId, ...]]


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
        self.spoken_for: Mask = np.zeros(offers.size, dtype=np.bool_)
        """Rows that are kept."""
        self.pairs: dict[tuple[WorkerId, WorkerId], None] = {}
        """Pairs of workers to measure: proposed, and not known to be near enough."""
        self.distances: dict[Requirements, str] = {}
        """Of requests with a bound: how many devices were found within it, in words."""
        self.unfit: dict[Signature, str] = {}
        """Why requests wait that this call found no place for."""
        self._taken: dict[WorkerId, set[DeviceId]] = {}
        self._fits: dict[Signature, tuple[Mask, Mask]] = {}
        self._idle: dict[TenantId, list[ClusterId]] | None = None
        self.unit_price: Numbers = self._unit_prices()

    def _unit_prices(self) -> Numbers:
        """What a device and hour counts: its price, and as much again of it as the worker breaks of its leases."""
        half_life_ms = self.view.reliability_half_life_ms
        broken_bp = BASIS_POINTS - scores_bp(self.view.offers, self.now_ms, half_life_ms)
        return self.prices + self.prices * broken_bp // BASIS_POINTS

    def question(self, wanted: Requirements, avoid: tuple[WorkerId, ...]) -> Question:
        """What filters look at."""
        half_life_ms = self.view.reliability_half_life_ms
        return Question(self.view.offers, wanted, self.now_ms, self.prices, half_life_ms, avoid)

    def fits(self, wanted: Requirements, avoid: tuple[WorkerId, ...]) -> tuple[Mask, Mask]:
        """The rows that serve a request, and those whose workers could carry its head."""
        known = self._fits.get((wanted, avoid))
        if known is None:
            question = self.question(wanted, avoid)
            known = self._fits[wanted, avoid] = (fitting(question), fitting(question, OF_HEADS))
        return known

    def cheapest(self, rows: Numbers, count: int, leftover_price: int) -> int:
        """The row that gives ``count`` devices at the least cost; of equal ones the first."""
        cost = self.unit_price[rows] * count + (self.free[rows] - count) * leftover_price
        return int(rows[int(np.argmin(cost))])

    def one_row_each(self, rows: Numbers) -> Numbers:
        """Of each worker the row with most free devices: a member's share is of one kind."""
        if not self.view.offers.mixed:
            return rows
        workers = self.view.offers[Column.WORKER][rows]
        order = np.lexsort((-self.free[rows], workers))
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
            gone = self._taken.setdefault(worker_id, set())
            free = self.view.free_devices[worker_id]
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

    def idle_clusters(self, tenant_id: TenantId) -> list[ClusterId]:
        """READY and clean clusters of a tenant, oldest first; spares are their job's alone."""
        if self._idle is None:
            self._idle = {}
            for cluster_id in self.view.idle_clusters:
                cluster = self.view.clusters[cluster_id]
                if cluster.phase is ClusterPhase.READY and cluster.spare_for is None:
                    self._idle.setdefault(cluster.tenant_id, []).append(cluster_id)
        return self._idle.get(tenant_id, [])
