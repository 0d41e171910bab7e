"""What a choice of machines costs: the price of their devices, and what is felt of a choice though nobody is paid for it.

All in microcredits per hour, so that it adds up. What is not a price is small beside prices, which are told apart by
hundredths of a credit: of machines that cost about the same, the one that is ready, whose devices are linked well, and
of which nothing is left that nobody wants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from orchestrator.core.jobs import Pattern
from orchestrator.core.scheduling.offers import Column
from orchestrator.core.supply.caches import CachedKind, of_numbers
from orchestrator.core.supply.hardware import DEVICES_MAX
from orchestrator.core.supply.interconnect import NVLINK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.core.ids import WorkerId
    from orchestrator.core.jobs import Requirements
    from orchestrator.core.scheduling.filters import Mask
    from orchestrator.core.scheduling.offers import Numbers
    from orchestrator.core.scheduling.placement import PlacementView

COLD_PRICE = {CachedKind.RUNTIME: 2_000, CachedKind.IMAGE: 4_000, CachedKind.PACKAGE: 500}
"""For a machine that has to get it first. A runtime is built in 20 s and taken in a millisecond: that is 2,000 of an hour
at 0.36 credits, an RTX4090's. A package comes in some 5 s. An image takes minutes, which would be worth ten times as
much, but who pays by the hour would rather wait once: all of it stays below half a hundredth of a credit."""

LINK_PRICE = {Pattern.ALL_REDUCE: 1_500, Pattern.PIPELINE: 500, Pattern.INDEPENDENT: 0}
"""For each device, and each rank that its links are below the best, where several of one machine work together. From a
riser to NVLink it is 0.0045 credits: it tells equal prices apart, and no dear machine is taken for its links. A pipeline
hands on what an all-reduce sends around twice, to one neighbour only."""

MACHINE_PRICE = 20_000
"""Microcredits per hour that one more machine in a gang counts: its messages cross a network."""

ALL_ROWS = slice(None)

RENEWED_MAX = 64
"""Rows that are reckoned one by one after they changed: beyond that all of them at once are quicker."""

NEVER = np.iinfo(np.int64).max
"""Costs more than everything: the row cannot serve."""


@dataclass(frozen=True, slots=True)
class Lone:
    """A request that one machine is to serve alone."""

    wanted: Requirements
    count: int
    packages: tuple[str, ...] = ()


class Behind(NamedTuple):
    """By what a row costs more than the best, in microcredits an hour; less than nothing where it costs less."""

    price: int
    unreliable: int
    cold: dict[CachedKind, int]
    links: int
    rest: int


class Best(NamedTuple):
    """The cheapest row, and the next; ``second`` may be as cheap as the first."""

    row: int
    second: int | None = None
    behind: Behind | None = None


@dataclass(frozen=True, slots=True)
class _Parts:
    """Of some rows: what a device costs, what having the machine at all costs, and what they are made of."""

    unit: Numbers
    fixed: Numbers
    links: Numbers
    cold: dict[CachedKind, Numbers]


@dataclass(slots=True)
class _Ranking:
    """What each row costs one request, NEVER where it cannot serve it, as of so many free devices and slots."""

    parts: _Parts
    cost: Numbers
    fits: Mask
    free: Numbers
    slots: Numbers


@dataclass(slots=True)
class Members:
    """What each row costs as a member of one request's gang, as of so many free devices and slots.

    ``unit`` is of each device that it may bring, ``fixed`` of the machine itself, ``price`` of a device with its part of
    the machine.
    """

    unit: Numbers
    fixed: Numbers
    price: Numbers
    free: Numbers
    slots: Numbers


class Costs:
    """Of one plan. ``free`` and ``slots`` are the draft's own arrays, read as they are when something is asked."""

    def __init__(
        self, view: PlacementView, prices: Numbers, unit_price: Numbers, free: Numbers, slots: Numbers
    ) -> None:
        """``unit_price`` is the price with what the worker breaks of its leases."""
        self._view = view
        self._prices = prices
        self._unit_price = unit_price
        self._free = free
        self._slots = slots
        self._worth = view.demand.worth().ravel()
        numbers = view.demand.model_numbers(view.offers.models.names)
        self._worth_at: Numbers = numbers[view.offers[Column.MODEL]] * (DEVICES_MAX + 1)
        """Where in ``_worth`` a row's model begins."""
        self._rankings: dict[tuple[Lone, tuple[WorkerId, ...]], _Ranking] = {}
        """Of requests that found a machine: as many as a plan has placements."""
        self._members: dict[Requirements, Members] = {}
        """Of requests for gangs."""
        self._known_holders: dict[str, Mask] = {}
        self._packaged: tuple[tuple[str, ...], Mask | None] = ((), None)

    def cheapest(self, rows: Numbers, ask: Lone) -> int:
        """The row of those, which all serve, at the least cost; of equal ones the first."""
        parts = self._parts(rows, ask.wanted, ask.packages, together=ask.count > 1)
        return int(rows[int(np.argmin(parts.unit * ask.count + parts.fixed + self._lost(rows, ask.count)))])

    def best(self, ask: Lone, avoid: tuple[WorkerId, ...], fits: Mask) -> Best | None:
        """The cheapest row of all that serve now, of equal ones the first; and the next best.

        ``fits`` are those that ever do, the same for the same request.
        """
        ranking = self._rankings.get((ask, avoid))
        if ranking is None:
            if not (fits & (self._free >= ask.count) & (self._slots > 0)).any():
                return None
            ranking = self._rankings[ask, avoid] = self._ranked(ask, fits)
        else:
            (changed,) = ((ranking.free != self._free) | (ranking.slots != self._slots)).nonzero()
            if len(changed) > RENEWED_MAX:
                ranking = self._rankings[ask, avoid] = self._ranked(ask, fits)
            else:
                for row in changed.tolist():
                    self._renew(ranking, row, ask.count)
        row = int(ranking.cost.argmin())
        if ranking.cost[row] == NEVER:
            return None
        other = _next_best(ranking.cost, row)
        return Best(row) if other is None else Best(row, other, self._behind(ranking, row, other, ask.count))

    def _ranked(self, ask: Lone, fits: Mask) -> _Ranking:
        parts = self._parts(ALL_ROWS, ask.wanted, ask.packages, together=ask.count > 1)
        rows = np.flatnonzero(fits)
        serves = (self._free[rows] >= ask.count) & (self._slots[rows] > 0)
        cost = np.full(len(fits), NEVER, dtype=np.int64)
        known = parts.unit[rows] * ask.count + parts.fixed[rows] + self._lost(rows, ask.count)
        cost[rows] = np.where(serves, known, NEVER)
        return _Ranking(parts, cost, fits, self._free.copy(), self._slots.copy())

    def _renew(self, ranking: _Ranking, row: int, count: int) -> None:
        """One row at a time: few change between two needs of a plan."""
        free, slots = self._free.item(row), self._slots.item(row)
        ranking.free[row], ranking.slots[row] = free, slots
        if ranking.fits[row]:
            parts = ranking.parts
            cost = parts.unit.item(row) * count + parts.fixed.item(row) + self._lost_of(row, count)
            ranking.cost[row] = cost if free >= count and slots > 0 else NEVER

    def _behind(self, ranking: _Ranking, row: int, other: int, count: int) -> Behind:
        """By what another row costs more. What is left of the machine is whatever the other parts do not say."""
        parts = ranking.parts
        price = _more(self._prices, row, other) * count
        unreliable = _more(self._unit_price, row, other) * count - price
        cold = {kind: _more(of_kind, row, other) for kind, of_kind in parts.cold.items()}
        links = _more(parts.links, row, other) * count
        rest = _more(ranking.cost, row, other) - price - unreliable - sum(cold.values()) - links
        return Behind(price, unreliable, cold, links, rest)

    def in_gang(self, rows: Numbers, brought: Numbers, wanted: Requirements) -> tuple[Numbers, Numbers]:
        """Of members that bring up to so many devices: what each device costs, and what the machine does besides.

        The head is on another machine, and the packages with it.
        """
        parts = self._parts(rows, wanted, (), together=True)
        unit = np.where(brought > 1, parts.unit, self._unit_price[rows])
        return unit, parts.fixed + self._lost(rows, brought)

    def members(self, wanted: Requirements) -> Members:
        """By row, as if each brought all that it may. Few rows change between two needs of a plan."""
        known = self._members.get(wanted)
        if known is None:
            unit, fixed, price, slots = np.zeros((4, len(self._free)), dtype=np.int64)
            # So many are never free: all are reckoned the first time.
            free = np.full(len(self._free), -1, dtype=np.int64)
            known = self._members[wanted] = Members(unit, fixed, price, free, slots)
        (rows,) = ((known.free != self._free) | (known.slots != self._slots)).nonzero()
        if len(rows):
            brought = np.minimum(self._free[rows], wanted.gpus_per_worker or wanted.device_count)
            unit, fixed = self.in_gang(rows, brought, wanted)
            fixed += MACHINE_PRICE
            known.unit[rows], known.fixed[rows] = unit, fixed
            known.price[rows] = unit + fixed // np.maximum(brought, 1)
            known.free[rows], known.slots[rows] = self._free[rows], self._slots[rows]
        return known

    def ready(self, rows: Numbers, wanted: Requirements) -> tuple[CachedKind, int] | None:
        """How many of some machines have the runtime or image of a job; None where nothing is known of it."""
        cold = self._cold(rows, wanted, ())
        return next(((kind, int((of_kind == 0).sum())) for kind, of_kind in cold.items()), None)

    def _lost(self, rows: Numbers, taken: Numbers | int) -> Numbers:
        """What the requests that keep coming could use less of each machine. Its last slot takes all that is left."""
        at = self._worth_at[rows]
        free = np.minimum(self._free[rows], DEVICES_MAX)
        left = np.where(self._slots[rows] > 1, free - taken, 0)
        lost: Numbers = self._worth[at + free] - self._worth[at + np.maximum(left, 0)]
        return lost

    def _lost_of(self, row: int, taken: int) -> int:
        """The same of one row."""
        at, free = self._worth_at.item(row), min(self._free.item(row), DEVICES_MAX)
        left = max(free - taken, 0) if self._slots.item(row) > 1 else 0
        return self._worth.item(at + free) - self._worth.item(at + left)

    def _parts(
        self, rows: Numbers | slice, wanted: Requirements, packages: Sequence[str], *, together: bool
    ) -> _Parts:
        """``together``: several devices of one machine work on it."""
        unit = self._unit_price[rows]
        links = np.zeros_like(unit)
        if together and LINK_PRICE[wanted.pattern]:
            links = (NVLINK - self._view.offers[Column.INTERCONNECT][rows]) * LINK_PRICE[wanted.pattern]
        cold = self._cold(rows, wanted, packages)
        return _Parts(unit + links, sum(cold.values(), start=np.zeros_like(unit)), links, cold)

    def _cold(
        self, rows: Numbers | slice, wanted: Requirements, packages: Sequence[str]
    ) -> dict[CachedKind, Numbers]:
        """What each machine would have to get first, where any worker has said what it has."""
        caches, offers = self._view.caches, self._view.offers
        found: dict[CachedKind, Numbers] = {}
        if not len(caches):
            return found
        workers = offers[Column.WORKER][rows]
        if wanted.image:
            lacking = ~of_numbers(self._holders(CachedKind.IMAGE, wanted.image), workers)
            found[CachedKind.IMAGE] = lacking * np.int64(COLD_PRICE[CachedKind.IMAGE])
        elif runtime := wanted.runtime or self._view.default_runtime:
            # A bare member runs on the agent's own.
            lacking = ~of_numbers(self._holders(CachedKind.RUNTIME, runtime), workers)
            lacking &= offers[Column.BOXED][rows] != 0
            found[CachedKind.RUNTIME] = lacking * np.int64(COLD_PRICE[CachedKind.RUNTIME])
        if packages:
            lacking = ~self.packaged(packages)[rows]
            found[CachedKind.PACKAGE] = lacking * np.int64(COLD_PRICE[CachedKind.PACKAGE])
        return found

    def packaged(self, packages: Sequence[str]) -> Mask:
        """Which rows' machines have all of a job's packages; remembered for one job only, as each has its own."""
        known_packages, known = self._packaged
        if known is None or known_packages != tuple(packages):
            workers = self._view.offers[Column.WORKER]
            known = np.ones(len(workers), dtype=np.bool_)
            for one in packages:
                known &= of_numbers(self._view.caches.holders(CachedKind.PACKAGE, one), workers)
            self._packaged = (tuple(packages), known)
        return known

    def _holders(self, kind: CachedKind, name: str) -> Mask:
        """As Caches.holders, found once: what many jobs of a plan have in common."""
        known = self._known_holders.get(name)
        if known is None:
            known = self._known_holders[name] = self._view.caches.holders(kind, name)
        return known


def _more(column: Numbers, row: int, other: int) -> int:
    """By how much another row has more."""
    return column.item(other) - column.item(row)


def _next_best(cost: Numbers, row: int) -> int | None:
    """The row that comes next, of equal ones the first; None where no other serves."""
    least = cost[row]
    cost[row] = NEVER
    other = int(cost.argmin())
    alone = cost[other] == NEVER
    cost[row] = least
    return None if alone else other
