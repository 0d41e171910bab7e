"""Why a job waits and what would have to change, in numbers and in sentences for its tenant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.market.pricing import credits_text
from orchestrator.core.scheduling.filters import FILTERS, Removed, describe, fitting, joins, rejections
from orchestrator.core.scheduling.offers import Column
from orchestrator.core.scheduling.placement import WaitReason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.scheduling.filters import Question
    from orchestrator.core.scheduling.offers import Numbers
    from orchestrator.core.scheduling.placement import JobNeed

CHANGES_MAX = 4
"""Of what a tenant could do without: the first few are read, and each is worked out over the whole fleet."""


MAX_RTT_KEY = "orch.max_rtt_ms"


@dataclass(frozen=True, slots=True)
class Shortage:
    """The numbers behind a wait. Devices are those that fit; ``largest`` is the most that could work together."""

    fitting: int
    free: int
    needed: int
    largest: int
    removed: tuple[Removed, ...]

    @property
    def enough(self) -> bool:
        """Whether so many are there that only head slots or member slots can be missing."""
        return self.largest >= self.needed

    def waits_for(self, *, too_far: bool) -> WaitReason:
        """The same in one word."""
        if self.fitting < self.needed:
            return WaitReason.NO_MACHINES
        if self.free < self.needed:
            return WaitReason.BUSY
        if not self.enough:
            return WaitReason.APART
        return WaitReason.DISTANCE if too_far else WaitReason.SLOTS


@dataclass(frozen=True, slots=True)
class Change:
    """What a tenant could ask for instead: ``key`` is what he wrote, ``says`` what would come of it."""

    key: str
    says: str


def shortage(question: Question, free: Numbers, *, overlay_offered: bool) -> Shortage:
    """What there is for a request. ``free`` is by row, after what the plan under way has given to others."""
    fitting_now, free_now, largest = _supply(question, free, overlay_offered=overlay_offered)
    return Shortage(fitting_now, free_now, question.wanted.device_count, largest, rejections(question))


def _supply(question: Question, free: Numbers, *, overlay_offered: bool) -> tuple[int, int, int]:
    """Fitting devices, free ones, and the most of these that could work together."""
    offers = question.offers
    rows = np.flatnonzero(fitting(question))
    left = free[rows]
    # A share is of one row: of a machine with two kinds, the larger part can be used together with others.
    order = np.lexsort((-left, offers[Column.WORKER][rows]))
    best = order[np.unique(offers[Column.WORKER][rows][order], return_index=True)[1]]
    each, most = question.wanted.gpus_per_worker, left[best]
    # Who wants so many on each machine can use no fewer and no more of one.
    most = np.where(most >= each, each, 0) if each else most
    joining = joins(offers, overlay_offered=overlay_offered, measured=question.wanted.measured_first)[
        rows[best]
    ]
    joining &= not question.wanted.one_machine
    together = np.bincount(offers[Column.GROUND][rows[best]][joining], weights=most[joining])
    alone = most[~joining]
    largest = max(int(together.max(initial=0)), int(alone.max(initial=0)))
    return int(offers[Column.SERVING][rows].sum()), int(left.sum()), largest


def waiting_words(question: Question, found: Shortage, distance: str = "") -> str:
    """Why a job waits: how much there is, and how many workers each filter left out.

    ``distance`` says what was found within the bound that the request sets.
    """
    asked = describe(question.wanted)
    counts = f"{found.free} of {found.fitting} fitting devices free, {found.needed} needed"
    parts = [f"waiting for {asked}: {counts}"]
    if found.free >= found.needed > found.largest:
        ground = "overlay" if question.wanted.measured_first else "network"
        parts.append(
            f"at most {found.largest} of them in one class, runtime and {ground}, of one model a machine"
        )
    elif found.enough and distance:
        parts.append(distance)
    elif found.enough:
        parts.append("no head slot or member slot is free for them")
    if found.removed:
        listed = ", ".join(f"{one.workers} {one.phrase}" for one in found.removed)
        parts.append(f"workers left out: {listed}")
    return "; ".join(parts)


def too_dear(need: JobNeed, microcredits_per_hour: int) -> str:
    """Why a job waits whose machines are there, but not the money for as long as it may run."""
    most = need.microcredits_per_hour_max or 0
    return (
        f"waiting for {describe(need.requirements)}: the machines that would serve it cost"
        f" {credits_text(microcredits_per_hour)} credits an hour, and for its time limit its tenant's quota of this"
        f" month leaves {credits_text(most)} an hour: ask for less time or cheaper machines, or ask the operator for"
        " a larger quota"
    )


def changes(
    question: Question, free: Numbers, found: Shortage, *, overlay_offered: bool
) -> tuple[Change, ...]:
    """What the tenant could do without, and what there would be then; the most helpful first, CHANGES_MAX at most."""
    if found.enough:
        return ()
    helpful: list[tuple[int, Change]] = []
    for one in FILTERS:
        if not one.field or not one.asked(question.wanted):
            continue
        other = replace(question, wanted=one.lifted(question.wanted))
        fitting_then, _, largest = _supply(other, free, overlay_offered=overlay_offered)
        if fitting_then <= found.fitting:
            continue
        if one.name == "price" and largest >= found.needed:
            says = _price_that_does(question, free, found.needed, overlay_offered=overlay_offered)
        else:
            says = f"without {one.key}: {_then(largest, found.needed, fitting_then)}"
        helpful.append((-min(largest, found.needed), Change(one.key, says)))
    if question.wanted.max_rtt_ms:
        # A bound takes machines with an overlay: bare ones may be together without it.
        other = replace(question, wanted=replace(question.wanted, max_rtt_ms=0))
        fitting_then, _, largest = _supply(other, free, overlay_offered=overlay_offered)
        if largest > found.largest:
            says = f"without {MAX_RTT_KEY}: {_then(largest, found.needed, fitting_then)}"
            helpful.append((-min(largest, found.needed), Change(MAX_RTT_KEY, says)))
    helpful.sort(key=lambda pair: pair[0])
    return tuple(change for _, change in helpful[:CHANGES_MAX])


def _then(largest: int, needed: int, fitting_then: int) -> str:
    if largest >= needed:
        return f"{largest} fitting devices are free together, enough to start"
    return f"{fitting_then} fitting devices, {largest} of them free together"


def _price_that_does(question: Question, free: Numbers, needed: int, *, overlay_offered: bool) -> str:
    """The least price at which enough are free together."""
    prices = np.unique(question.prices[question.prices > question.wanted.max_price])
    low, high = 0, len(prices) - 1
    while low < high:
        middle = (low + high) // 2
        tried = replace(question, wanted=replace(question.wanted, max_price=int(prices[middle])))
        if _supply(tried, free, overlay_offered=overlay_offered)[2] >= needed:
            high = middle
        else:
            low = middle + 1
    return f"orch.max_price={credits_text(int(prices[high]))} would do"


def position_words(before: int, tenants_before: int) -> Iterator[str]:
    """Where a job stands."""
    own = "the first of its tenant's queue" if before == 0 else f"behind {before} of its tenant's jobs"
    turn = (
        "it is its tenant's turn"
        if tenants_before == 0
        else f"tenants with a smaller share of the fleet that come first: {tenants_before}"
    )
    yield f"{own}; {turn}"
