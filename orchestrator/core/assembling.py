"""A gang out of the rows of one ground: the cheapest, and near enough by what is measured.

Where a request sets a bound, a gang is answered only when every pair of it was measured within the bound; until then the
pairs to measure are noted in the draft, and the next plan knows more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, assert_never

import numpy as np

from orchestrator.core.gang_fields import US_PER_MS, Candidates, Wish, matrices
from orchestrator.core.gangs import Gang, NoGang, Unverified, choose
from orchestrator.core.jobs import Pattern

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from orchestrator.core.draft import Draft
    from orchestrator.core.ids import WorkerId
    from orchestrator.core.jobs import Requirements
    from orchestrator.core.offers import Numbers

MACHINE_PRICE = 20_000
"""Microcredits per hour that one more machine in a gang counts: its messages cross a network."""

DISTANCE_PRICE = {Pattern.ALL_REDUCE: 2_000, Pattern.PIPELINE: 500, Pattern.INDEPENDENT: 0}
"""Microcredits per hour and millisecond of what the pattern feels: of the farthest pair, of the path through all."""

CANDIDATES_MAX = 256
"""The cheapest rows, between which distances are looked at: all pairs of them are known within some milliseconds."""

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
        return _cheapest(draft, rows, free, count)
    if len(rows) > CANDIDATES_MAX:
        order = np.lexsort((rows, draft.unit_price[rows] + MACHINE_PRICE // free))
        kept = np.sort(order[:CANDIDATES_MAX])
        rows, free = rows[kept], free[kept]
    return _nearest(draft, wanted, rows, free)


def near_enough(draft: Draft, wanted: Requirements, rows: Numbers, others: Sequence[WorkerId]) -> Numbers:
    """The rows known to be within the bound of all others; the nearest of the rest are noted to be measured."""
    rows = rows[np.lexsort((rows, draft.unit_price[rows]))][:CANDIDATES_MAX]
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


def _cheapest(draft: Draft, rows: Numbers, free: Numbers, count: int) -> Assembled:
    """By what a device costs with its part of the machine; distances say nothing here."""
    unit = draft.unit_price[rows]
    order = np.lexsort((rows, -free, unit + MACHINE_PRICE // free))
    reached = np.cumsum(free[order])
    chosen = order[: int(np.searchsorted(reached, count)) + 1]
    taken = free[chosen].copy()
    taken[-1] -= int(taken.sum()) - count
    score = int((unit[chosen] * taken).sum()) + MACHINE_PRICE * len(chosen)
    return Assembled(list(zip(rows[chosen].tolist(), taken.tolist(), strict=True)), score)


def _nearest(draft: Draft, wanted: Requirements, rows: Numbers, free: Numbers) -> Assembled | None:
    """With distances: within the bound if there is one, and nearer is better where the pattern feels it."""
    view = draft.view
    workers = [view.offers.worker_of(row) for row in rows.tolist()]
    known = view.latency.matrix(workers, draft.now_ms, KNOWN_MS_MAX)
    # Where each machine is to bring so many, these are what is chosen.
    lot = wanted.gpus_per_worker or 1
    fixed = np.full(len(rows), MACHINE_PRICE, dtype=np.int64)
    candidates = Candidates(free // lot, draft.unit_price[rows] * lot, fixed)
    bound_us = wanted.max_rtt_ms * US_PER_MS or None
    price = DISTANCE_PRICE[wanted.pattern]
    wish = Wish(wanted.device_count // lot, bound_us, wanted.pattern, price, HEADROOM_BP)
    outcome = choose(candidates, wish, matrices(known.measured_us, known.predicted_us))
    match outcome:
        case Gang():
            chosen = rows[list(outcome.members)].tolist()
            devices = [count * lot for count in outcome.devices]
            return Assembled(list(zip(chosen, devices, strict=True)), outcome.score)
        case Unverified():
            for one, other in outcome.pairs[: max(0, PAIRS_MAX - len(draft.pairs))]:
                draft.pairs[workers[one], workers[other]] = None
            draft.distances[wanted] = (
                f"the round trips between {len(outcome.gang.members)} machines are being measured"
            )
            return None
        case NoGang() if bound_us is not None and _explore(draft, workers, known.measured_us):
            draft.distances[wanted] = f"the round trips between {len(rows)} machines are being measured"
            return None
        case NoGang():
            found = replace(outcome, wanted=wanted.device_count, devices=outcome.devices * lot)
            draft.distances.setdefault(wanted, found.says)
            return None
        case _:
            assert_never(outcome)
