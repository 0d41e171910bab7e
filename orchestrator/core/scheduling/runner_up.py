"""Who came next: what a placement was chosen by, beside the next best machines, and by what these lost.

For people, and only of what is placed. Of one machine it is the next in the same row of costs; of a gang the best one of
another model or ground, or the same with one member exchanged, whichever costs less. Nothing is searched for it anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from orchestrator.core.gangs.candidates import UNKNOWN_US, US_PER_MS, Wish
from orchestrator.core.jobs import Chosen, RunnerUp
from orchestrator.core.market.pricing import credits_text
from orchestrator.core.scheduling.assembling import DISTANCE_PRICE, KNOWN_MS_MAX
from orchestrator.core.scheduling.costs import MACHINE_PRICE, NEVER
from orchestrator.core.scheduling.offers import Column
from orchestrator.core.supply.interconnect import INTERCONNECT_WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from orchestrator.core.jobs import Requirements
    from orchestrator.core.scheduling.costs import Behind, Best
    from orchestrator.core.scheduling.draft import Draft
    from orchestrator.core.scheduling.filters import Mask
    from orchestrator.core.scheduling.offers import Numbers

    Taken = Sequence[tuple[int, int]]
    """Rows, and how many devices of each."""

OUTSIDERS_MAX = 16
"""Machines that could take a member's place, the cheapest: the distances of all to all are looked up."""

EXCHANGES_MAX = 4
"""Of these exchanges, the cheapest that keep the bound, are weighed with their distances."""

EQUAL = "as good: of equal ones the first is taken"


class _Weighed(NamedTuple):
    """What a set costs, in its parts: microcredits an hour each."""

    price: int
    unreliable: int
    """What is added for leases that their owners break."""
    machines: int
    rest: int
    """What has to be got first, links within machines, and what is left of them."""
    distance: int
    diameter_us: int | None = None

    @property
    def total(self) -> int:
        """What it was chosen by, or not."""
        return self.price + self.unreliable + self.machines + self.rest + self.distance

    def lost_to(self, best: _Weighed) -> str:
        """The largest of what counts against it, in words."""
        farther_us = 0
        if best.diameter_us is not None and self.diameter_us is not None:
            farther_us = self.diameter_us - best.diameter_us
        price, unreliable = self.price - best.price, self.unreliable - best.unreliable
        machines, distance = self.machines - best.machines, self.distance - best.distance
        most = max(price, unreliable, machines, distance, self.rest - best.rest)
        if most <= 0:
            return EQUAL
        if most == price:
            return _dearer(most)
        if most == unreliable:
            return _unreliable(most)
        if most == machines:
            return f"on {machines // MACHINE_PRICE} more machines"
        if most == distance:
            if farther_us > 0:
                return f"{farther_us / US_PER_MS:g} ms farther"
            return f"farther apart, which counts {credits_text(most)} credits an hour"
        return "less of it is ready, or what is left of its machines is of more use"


# ------------------------------------------------------------ one machine


def one_machine(draft: Draft, count: int, best: Best) -> Chosen:
    """Of a single machine, before anything of it is given away."""
    price = draft.prices.item(best.row) * count
    if best.second is None or best.behind is None:
        return Chosen(price, 0)
    offers, second = draft.view.offers, best.second
    machines = f"{draft.view.workers[offers.worker_of(second)].name}: {count} × {offers.model_of(second)}"
    lost_by = _lost_alone(draft, best.row, second, best.behind)
    return Chosen(price, 0, 0, 0, RunnerUp(machines, price + best.behind.price, lost_by, 0))


def _lost_alone(draft: Draft, row: int, second: int, behind: Behind) -> str:
    """The largest of what counts against the next best machine, in words."""
    most = max(behind.price, behind.unreliable, *behind.cold.values(), behind.links, behind.rest)
    if most <= 0:
        return EQUAL
    if most == behind.price:
        return _dearer(most)
    if most == behind.unreliable:
        return _unreliable(most)
    for kind, amount in behind.cold.items():
        if most == amount:
            return f"has to get the {kind} first"
    if most == behind.links:
        linked = INTERCONNECT_WORDS[int(draft.view.offers[Column.INTERCONNECT][second])]
        return f"its devices are linked less well, by {linked}"
    more = draft.free.item(second) - draft.free.item(row)
    rest = f"a machine with {more} more free devices" if more > 0 else "a machine whose rest is of more use"
    return f"breaks up {rest}"


# ------------------------------------------------------------ several


class Rivals(NamedTuple):
    """What a gang was chosen beside."""

    rows: Numbers
    """Those it was chosen from."""
    others: Sequence[Taken]
    """What was found on other ground or of other models."""


@dataclass(frozen=True, slots=True)
class _Exchange:
    """A gang with another machine in place of one: which of its members goes, and whose row comes."""

    out: int
    come: int


def several(draft: Draft, wanted: Requirements, taken: Taken, rivals: Rivals) -> Chosen:
    """Of a gang, before anything of it is given away."""
    rows = [row for row, _ in taken]
    outsiders = _outsiders(draft, wanted, rows, rivals.rows)
    distances = None
    if len(draft.view.latency):
        others = [row for other in rivals.others for row, _ in other]
        distances = _Distances(draft, wanted, [*rows, *outsiders.tolist(), *others])
    exchanges = list(_exchanges(draft, taken, outsiders, distances)) if len(outsiders) else []
    # Sets are numbers in one list of members, so that what each member costs is worked out once for all sets.
    members, sets = list(taken), [np.arange(len(taken))]
    for other in rivals.others:
        sets.append(np.arange(len(members), len(members) + len(other)))
        members.extend(other)
    for exchange in exchanges:
        exchanged = sets[0].copy()
        exchanged[exchange.out] = len(members)
        sets.append(exchanged)
        members.append((exchange.come, taken[exchange.out][1]))
    scale = _Scale(draft, wanted, members, distances)
    best, *weighed = [scale.weigh(some) for some in sets]
    names = [partial(_described, draft, other) for other in rivals.others]
    names += [partial(_in_place, draft, taken, exchange) for exchange in exchanges]
    behind = [(then, name) for then, name in zip(weighed, names, strict=True) if then.total >= best.total]
    next_best = None
    if behind:
        then, name = min(behind, key=lambda one: one[0].total)
        next_best = RunnerUp(name(), then.price, then.lost_to(best), then.diameter_us)
    pairs = len(taken) * (len(taken) - 1) // 2
    measured = 0 if distances is None else distances.pairs_measured(rows)
    return Chosen(best.price, best.diameter_us, pairs, measured, next_best)


class _Scale:
    """Weighs sets of members of one request, which are (row, devices) and named by their number."""

    def __init__(
        self, draft: Draft, wanted: Requirements, members: Taken, distances: _Distances | None
    ) -> None:
        self._distances = distances
        self._rows, counts = np.array(members, dtype=np.int64).T
        price = draft.prices[self._rows] * counts
        whole = draft.unit_price[self._rows] * counts
        unit, fixed = draft.costs.in_gang(self._rows, counts, wanted)
        self._parts = np.array([price, whole - price, unit * counts + fixed - whole])

    def weigh(self, some: Numbers) -> _Weighed:
        """What a set costs."""
        price, unreliable, rest = self._parts[:, some].sum(axis=1).tolist()
        distance, diameter_us = 0, None
        if self._distances is not None:
            distance, diameter_us = self._distances.of(self._rows[some].tolist())
        return _Weighed(price, unreliable, MACHINE_PRICE * len(some), rest, distance, diameter_us)


class _Distances:
    """How far the workers of some rows are from each other."""

    def __init__(self, draft: Draft, wanted: Requirements, rows: Sequence[int]) -> None:
        bound = wanted.max_rtt_ms * US_PER_MS or None
        self._wish = Wish(wanted.device_count, bound, wanted.pattern, DISTANCE_PRICE[wanted.pattern])
        owners = {row: draft.view.offers.worker_of(row) for row in rows}
        workers = list(dict.fromkeys(owners.values()))
        number = {worker: index for index, worker in enumerate(workers)}
        self._number = {row: number[worker] for row, worker in owners.items()}
        self._known = draft.view.latency.matrix(workers, draft.now_ms, KNOWN_MS_MAX)

    def of(self, rows: Sequence[int]) -> tuple[int, int | None]:
        """What the distances between some cost, and the largest of them; None where one is not known."""
        some = self._numbers(rows)
        block = self._known.best_us[some[:, None], some]
        penalty = self._wish.penalty(np.where(block < 0, float(UNKNOWN_US), block.astype(np.float64)))
        return penalty, None if block.min() < 0 else int(block.max())

    def pairs_measured(self, rows: Sequence[int]) -> int:
        """Of the pairs of some."""
        some = self._numbers(rows)
        return (int((self._known.measured_us[some[:, None], some] >= 0).sum()) - len(some)) // 2

    def near(self, rows: Sequence[int], outsiders: Sequence[int]) -> Mask:
        """Shape (rows, outsiders): who was measured to be within the bound, if any, of all but the one it replaces."""
        if self._wish.bound_us is None:
            return np.ones((len(rows), len(outsiders)), dtype=np.bool_)
        measured = self._known.measured_us[self._numbers(rows)[:, None], self._numbers(outsiders)]
        far = (measured < 0) | (measured > self._wish.bound_us)
        near: Mask = far.sum(axis=0)[None, :] - far == 0
        return near

    def _numbers(self, rows: Sequence[int]) -> Numbers:
        return np.array([self._number[row] for row in rows], dtype=np.int64)


def _exchanges(
    draft: Draft, taken: Taken, outsiders: Numbers, distances: _Distances | None
) -> Iterator[_Exchange]:
    """The same set with another machine in place of one, the cheapest such first."""
    rows, counts = np.array(taken, dtype=np.int64).T
    dearer = (draft.unit_price[outsiders] - draft.unit_price[rows][:, None]) * counts[:, None]
    possible = draft.free[outsiders] >= counts[:, None]
    if distances is not None:
        possible &= distances.near(rows.tolist(), outsiders.tolist())
    order = np.argsort(np.where(possible, dearer, NEVER), axis=None, kind="stable")
    for place in order[:EXCHANGES_MAX].tolist():
        out, come = divmod(place, len(outsiders))
        if not possible[out, come]:
            return
        yield _Exchange(out, outsiders.item(come))


def _outsiders(draft: Draft, wanted: Requirements, taken: list[int], rows: Numbers) -> Numbers:
    """The cheapest rows of other workers that have something to give."""
    offers = draft.view.offers
    members = {offers.worker_of(row) for row in taken}
    left = draft.one_row_each(rows)
    left = left[draft.free[left] >= max(1, wanted.gpus_per_worker)]
    order = left[np.argsort(draft.unit_price[left], kind="stable")[: OUTSIDERS_MAX + len(taken)]]
    chosen = [row for row in order.tolist() if offers.worker_of(row) not in members]
    return np.array(chosen[:OUTSIDERS_MAX], dtype=np.int64)


def _described(draft: Draft, taken: Taken) -> str:
    offers = draft.view.offers
    models: dict[str, int] = {}
    for row, count in taken:
        models[offers.model_of(row)] = models.get(offers.model_of(row), 0) + count
    devices = " and ".join(f"{count} × {model}" for model, count in sorted(models.items()))
    first = draft.view.workers[offers.worker_of(taken[0][0])]
    return f"{devices} of class {first.inventory.hardware_class} on {len(taken)} machines"


def _in_place(draft: Draft, taken: Taken, exchange: _Exchange) -> str:
    workers, offers = draft.view.workers, draft.view.offers
    comes, goes = (workers[offers.worker_of(row)].name for row in (exchange.come, taken[exchange.out][0]))
    return f"{comes} in place of {goes}"


def _dearer(microcredits: int) -> str:
    return f"dearer by {credits_text(microcredits)} credits an hour"


def _unreliable(microcredits: int) -> str:
    return f"less reliable, which counts {credits_text(microcredits)} credits an hour"
