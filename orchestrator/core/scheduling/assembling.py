"""A gang out of the rows of one ground: the cheapest, and near enough by what is measured.

Where a request sets a bound, a gang is answered only when every pair of it was measured within the bound; until then the
pairs to measure are noted in the draft, and the next plan knows more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

import numpy as np

from orchestrator.core.delivery import BITS_PER_MBIT
from orchestrator.core.gangs.candidates import US_PER_MS, Candidates, Wish, matrices
from orchestrator.core.gangs.choosing import Gang, NoGang, Unverified, choose
from orchestrator.core.gangs.widening import TooFar
from orchestrator.core.jobs import Pattern
from orchestrator.core.scheduling.filters import slow_rows
from orchestrator.core.scheduling.neighbourhoods import beside, likely

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from orchestrator.core.ids import WorkerId
    from orchestrator.core.jobs import Requirements
    from orchestrator.core.scheduling.draft import Draft
    from orchestrator.core.scheduling.offers import Numbers

DISTANCE_PRICE = {Pattern.ALL_REDUCE: 2_000, Pattern.PIPELINE: 500, Pattern.INDEPENDENT: 0}
"""Microcredits per hour and millisecond of what the pattern feels: of the farthest pair, of the path through all."""

CANDIDATES_MAX = 256
"""Rows between which distances are looked at: all pairs of them are known within some milliseconds."""

HEADROOM_BP = 1_000
"""Of a bound, kept free where that is possible: round trips drift, and a tenth of it halves the gangs that drift out."""

KNOWN_MS_MAX = 6 * 3_600_000
"""Round trips measured longer ago are measured again before anything starts on them."""

PAIRS_MAX = 256
"""Of one plan: what agents measure within seconds."""


EXPLORED_MAX = 16
"""Workers all pairs of which are measured where no gang is in sight: 120 pairs. In larger fleets the network's own
measurements find who is near."""

REPLACEMENTS_TRIED = 4
"""Workers measured at once against a forming cluster that lacks a member."""


@dataclass(frozen=True, slots=True)
class Assembled:
    """Rows and how many devices of each. ``score`` is what the choice was made by, in microcredits per hour."""

    shares: list[tuple[int, int]]
    score: int


def assemble(draft: Draft, wanted: Requirements, rows: Numbers) -> Assembled | None:
    """The best gang among rows of one ground; None where there is none, or none that is known to be near enough."""
    count, each = wanted.device_count, wanted.gpus_per_worker
    rows = draft.one_row_each(rows)
    free = np.minimum(draft.free[rows], each or count)
    if int(free.sum()) < count:
        return None
    if not wanted.max_rtt_ms and (wanted.pattern is Pattern.INDEPENDENT or not len(draft.view.latency)):
        return _cheapest(draft, wanted, rows, free)
    if len(rows) > CANDIDATES_MAX:
        price = draft.costs.members(wanted).price[rows]
        if wanted.max_rtt_ms:
            kept = likely(draft, wanted, rows, free, price, CANDIDATES_MAX)
        else:
            kept = np.sort(np.lexsort((rows, price))[:CANDIDATES_MAX])
        rows, free = rows[kept], free[kept]
    return _nearest(draft, wanted, rows, free)


def near_enough(draft: Draft, wanted: Requirements, rows: Numbers, others: Sequence[WorkerId]) -> Numbers:
    """The rows known to be within the bound of all others; the nearest of the rest are noted to be measured."""
    apart = ~beside(draft, rows, others)
    rows = rows[np.lexsort((rows, draft.unit_price[rows], apart))][:CANDIDATES_MAX]
    view = draft.view
    workers = [view.offers.worker_of(row) for row in rows.tolist()]
    known = view.latency.matrix([*workers, *others], draft.now_ms, KNOWN_MS_MAX)
    measured, count = known.measured_us[: len(rows), len(rows) :], len(rows)
    bound_us = wanted.max_rtt_ms * US_PER_MS
    possible = np.flatnonzero(((measured < 0) | (measured <= bound_us)).all(axis=1))
    sure = (measured[possible] >= 0).all(axis=1)
    if not sure.any():
        guesses = known.best_us[:count, count:][possible].max(axis=1, initial=0)
        for row in possible[np.argsort(guesses, kind="stable")][:REPLACEMENTS_TRIED].tolist():
            for column, other in enumerate(others):
                if measured[row, column] < 0 and len(draft.pairs) < PAIRS_MAX:
                    draft.pairs[workers[row], other] = None
    kept: Numbers = rows[possible[sure]]
    return kept


def wide_enough(draft: Draft, wanted: Requirements, rows: Numbers, others: Sequence[WorkerId]) -> Numbers:
    """The rows that are not known to deliver less bandwidth than asked, be it to anybody or to one of these others."""
    least = wanted.min_bandwidth_mbps * BITS_PER_MBIT
    view = draft.view
    if not least or not len(view.bandwidth):
        return rows
    rows = rows[~slow_rows(draft.question(wanted, ()))[rows]]

    def narrow(row: int) -> bool:
        worker = view.offers.worker_of(row)
        rates = (view.bandwidth.between(worker, other, draft.now_ms) for other in others)
        return any(rate is not None and rate < least for rate in rates)

    return rows[[not narrow(row) for row in rows.tolist()]] if others and len(rows) else rows


def _explore(draft: Draft, workers: Sequence[WorkerId], measured_us: NDArray[np.int32]) -> bool:
    """Have all pairs of a few workers measured before it is said that none are near; whether any are left to measure.

    A prediction may be far too high: a detour over a third says nothing against a short way.
    """
    if len(workers) > EXPLORED_MAX:
        return False
    pairs = np.argwhere(np.triu(measured_us < 0, 1))
    for one, other in pairs[: max(0, PAIRS_MAX - len(draft.pairs))].tolist():
        draft.pairs[workers[one], workers[other]] = None
    return len(pairs) > 0


def _cheapest(draft: Draft, wanted: Requirements, rows: Numbers, free: Numbers) -> Assembled:
    """By what a device costs with its part of the machine; distances say nothing here."""
    count, members = wanted.device_count, draft.costs.members(wanted)
    price = members.price[rows]
    if len(rows) > count:
        # Each brings a device at least: those as cheap as the last of so many are enough. They stay in order.
        (kept,) = (price <= np.partition(price, count - 1)[count - 1]).nonzero()
        rows, free, price = rows[kept], free[kept], price[kept]
    order = np.lexsort((rows, -free, price))
    reached = np.cumsum(free[order])
    order = order[: int(np.searchsorted(reached, count)) + 1]
    chosen, taken = rows[order], free[order]
    taken[-1] -= int(taken.sum()) - count
    score = int((members.unit[chosen] * taken + members.fixed[chosen]).sum())
    return Assembled(list(zip(chosen.tolist(), taken.tolist(), strict=True)), score)


def _nearest(draft: Draft, wanted: Requirements, rows: Numbers, free: Numbers) -> Assembled | None:
    """With distances: within the bound if there is one, and nearer is better where the pattern feels it."""
    view = draft.view
    workers = [view.offers.worker_of(row) for row in rows.tolist()]
    known = view.latency.matrix(workers, draft.now_ms, KNOWN_MS_MAX)
    # Where each machine is to bring so many, these are what is chosen.
    lot = wanted.gpus_per_worker or 1
    members = draft.costs.members(wanted)
    candidates = Candidates(free // lot, members.unit[rows] * lot, members.fixed[rows])
    bound_us = wanted.max_rtt_ms * US_PER_MS or None
    price = DISTANCE_PRICE[wanted.pattern]
    wish = Wish(wanted.device_count // lot, bound_us, wanted.pattern, price, HEADROOM_BP)
    rtt = matrices(known.measured_us, known.predicted_us)
    outcome = choose(candidates, wish, rtt)
    match outcome:
        case Gang():
            chosen = rows[list(outcome.members)].tolist()
            devices = [count * lot for count in outcome.devices]
            return Assembled(list(zip(chosen, devices, strict=True)), outcome.score)
        case Unverified():
            for one, other in outcome.pairs[: max(0, PAIRS_MAX - len(draft.pairs))]:
                draft.pairs[workers[one], workers[other]] = None
            draft.measuring[wanted] = len(outcome.gang.members)
            return None
        case NoGang() if bound_us is not None and _explore(draft, workers, known.measured_us):
            draft.measuring[wanted] = len(rows)
            return None
        case NoGang():
            before = draft.too_far.get(wanted)
            if before is None or before.none.devices < outcome.devices:
                draft.too_far[wanted] = TooFar(outcome, candidates, wish, rtt, lot)
            return None
        case _:
            assert_never(outcome)
