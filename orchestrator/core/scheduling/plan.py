"""``plan(view, requests, now_ms, budget)``: which queued jobs run where, which vacancies are filled by whom, and why not.

Filter, then score, all or nothing: a gang gets every device it needs on workers of one class and one runtime, or waits
with the reason. The plan reads indexes that ``State`` maintains and changes nothing; the loop applies it, if the
capacity it was made on is still there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.scheduling.assembling import near_enough, wide_enough
from orchestrator.core.scheduling.choice import affordable, choose, place
from orchestrator.core.scheduling.costs import Lone
from orchestrator.core.scheduling.distance import distance_words, too_far
from orchestrator.core.scheduling.making_room import free_quota, make_room
from orchestrator.core.scheduling.nominations import redeem, renewed
from orchestrator.core.scheduling.offers import CLASS_NUMBER, Column
from orchestrator.core.scheduling.overtaking import Passed, claim, keep, keep_promises, promised_anew
from orchestrator.core.scheduling.placement import (
    Budget,
    Deferral,
    Filling,
    JobNeed,
    Placement,
    Plan,
    Reuse,
    SpareNeed,
    VacancyNeed,
    WaitReason,
)
from orchestrator.core.scheduling.preempting import preempt
from orchestrator.core.scheduling.reserving import opened
from orchestrator.core.scheduling.shortage import shortage, too_dear, waiting_words
from orchestrator.core.scheduling.warm import own_spare, warm

if TYPE_CHECKING:
    from orchestrator.core.ids import ClusterId
    from orchestrator.core.scheduling.draft import Draft
    from orchestrator.core.scheduling.placement import Needs, PlacementView, Served
    from orchestrator.core.tenancy.reservations import Reservation


def plan(view: PlacementView, needs: Needs, now_ms: int, budget: Budget) -> Plan:
    """Serve the needs in the order given. Pure: the same view and needs give the same plan.

    ``now_ms`` is control time: owners' hours end.
    """
    draft = opened(view, now_ms)
    keep_promises(draft)
    placements: list[Placement] = []
    reuses: list[Reuse] = []
    fillings: list[Filling] = []
    deferrals: list[Deferral] = []
    passed = Passed(draft)
    for need in needs:
        if len(placements) + len(reuses) + len(fillings) >= budget.placements_max:
            break
        outcome: Served
        match need:
            case VacancyNeed():
                with draft.lending(need):
                    outcome = _fill(draft, need)
            case SpareNeed():
                outcome = _spare(draft, need, budget)
            case JobNeed():
                outcome = _place(draft, need, budget)
        needs.settled(need, outcome)
        match outcome:
            case Placement():
                placements.append(outcome)
                passed.by(share.worker_id for share in outcome.shares)
            case Reuse():
                reuses.append(outcome)
                members = view.clusters[outcome.cluster_id].member_ids
                passed.by(view.members[member_id].worker_id for member_id in members)
            case Filling():
                fillings.append(outcome)
            case Deferral():
                deferrals.append(outcome)
                if not outcome.by_quota:
                    passed.over(need)
            case None:
                pass
    return Plan(
        view.capacity_version,
        tuple(placements),
        tuple(reuses),
        tuple(fillings),
        tuple(deferrals),
        passed.counts(),
        tuple(draft.pairs),
        tuple(draft.closing),
        promised_anew(draft, {one.job_id for one in placements} | {one.job_id for one in reuses}),
        tuple(draft.preemptions),
        () if draft.reserved is None else draft.reserved.kept(),
    )


def _place(draft: Draft, need: JobNeed, budget: Budget) -> Placement | Reuse | Deferral | None:
    promised = claim(draft, need)
    if need.refused:
        return _refused(draft, need)
    own = own_spare(draft, need)
    if own is not None:
        return own
    booked = draft.view.bookings.of(need.reservation_id)
    if booked is not None:
        return _place_reserved(draft, need, booked)
    signature = (need.requirements, need.avoid, draft.lent(need))
    known = draft.unfit.get(signature)
    nominated = redeem(draft, need.job_id)
    with draft.lending(need):
        kept_warm = warm(draft, need)
        if kept_warm is not None:
            return _reused(need, kept_warm)
        # What is kept for this job alone was not there for others that ask for the same.
        choice = choose(draft, need) if known is None or nominated or promised is not None else None
        if choice is not None:
            price = choice.microcredits_per_hour
            if not affordable(need, price):
                return Deferral(need.job_id, too_dear(need, price), WaitReason.QUOTA, by_quota=True)
            return place(draft, need, choice)
        # Before what was lent is kept again: what was kept for this job lies on some of the same rows.
        gives_way = renewed(draft, need) if nominated else None
    gives_way = gives_way or preempt(draft, need)
    if gives_way is not None:
        return Deferral(need.job_id, gives_way, WaitReason.GIVING_WAY)
    # Before machines are kept for it: idle clusters on just these stand in its way.
    make_room(draft, need)
    kept = keep(draft, need, promised) if need.entitled else None
    if kept is not None:
        return Deferral(need.job_id, kept, WaitReason.KEPT, kept=True)
    if known is not None:
        return Deferral(need.job_id, *known)
    if len(draft.unfit) >= budget.explained_max:
        return None
    with draft.lending(need):
        question = draft.question(need.requirements, need.avoid)
        found = shortage(question, draft.free, overlay_offered=draft.view.overlay_offered)
    far = too_far(draft, need.requirements) if found.enough else None
    reason = waiting_words(question, found, distance_words(draft, need.requirements, far))
    elsewhere = "" if draft.reserved is None else draft.reserved.words(need)
    reason = f"{reason}; {elsewhere}" if elsewhere else reason
    draft.unfit[signature] = reason, found.waits_for(too_far=far is not None)
    return Deferral(need.job_id, *draft.unfit[signature], far=far)


def _reused(need: JobNeed, kept_warm: tuple[ClusterId, str]) -> Reuse:
    cluster_id, names = kept_warm
    return Reuse(need.job_id, cluster_id, (f"warm cluster {cluster_id} of this tenant fits: {names}",))


def _refused(draft: Draft, need: JobNeed) -> Reuse | Deferral:
    """A job that its tenant's quota keeps waiting.

    Where that is for GPUs, a warm cluster that its tenant holds already may serve it; else idle ones are closed, and its
    tenant's lower work gives way to it. One with a reservation has machines of its own, for which nobody has to.
    """
    if need.gpus_in_excess and need.reservation_id is None:
        with draft.lending(need):
            kept_warm = warm(draft, need)
        if kept_warm is not None:
            return _reused(need, kept_warm)
        free_quota(draft, need)
        nominated = redeem(draft, need.job_id)
        gives_way = renewed(draft, need) if nominated else preempt(draft, need)
        if gives_way is not None:
            return Deferral(need.job_id, gives_way, WaitReason.GIVING_WAY, by_quota=True)
    waits_for = WaitReason.QUOTA if need.reservation_id is None else WaitReason.RESERVATION
    return Deferral(need.job_id, need.refused, waits_for, by_quota=True)


def _place_reserved(draft: Draft, need: JobNeed, booked: Reservation) -> Placement | Reuse | Deferral:
    """On what is kept for its reservation, and nowhere else."""
    of_it = f"of its reservation {booked.name!r}, {booked.window}"
    with draft.lending(need):
        kept_warm = warm(draft, need)
        if kept_warm is not None:
            cluster_id, names = kept_warm
            return Reuse(need.job_id, cluster_id, (f"warm cluster {cluster_id} {of_it} fits: {names}",))
        choice = choose(draft, need)
        if choice is not None:
            price = choice.microcredits_per_hour
            if not affordable(need, price):
                return Deferral(need.job_id, too_dear(need, price), WaitReason.QUOTA, by_quota=True)
            placed = place(draft, need, choice)
            return replace(placed, explanation=(*placed.explanation, f"on machines {of_it}"))
        make_room(draft, need)
        question = draft.question(need.requirements, need.avoid)
        found = shortage(question, draft.free, overlay_offered=draft.view.overlay_offered)
    far = too_far(draft, need.requirements) if found.enough else None
    words = waiting_words(question, found, distance_words(draft, need.requirements, far))
    return Deferral(need.job_id, f"on the machines {of_it}: {words}", WaitReason.RESERVATION, far=far)


def _spare(draft: Draft, need: SpareNeed, budget: Budget) -> Placement | None:
    """A cluster formed ahead, unless a warm one of the tenant would do."""
    if warm(draft, need) is not None or draft.spares_unplaced >= budget.explained_max:
        return None
    choice = choose(draft, need)
    if choice is None:
        draft.spares_unplaced += 1
        return None
    return replace(place(draft, need, choice), spare=True)


def _fill(draft: Draft, need: VacancyNeed) -> Filling | None:
    view, offers = draft.view, draft.view.offers
    cluster = view.clusters[need.cluster_id]
    members = [view.members[member_id] for member_id in cluster.member_ids]
    present = tuple(member.worker_id for member in members)
    pattern = next((member for member in members if member.device_ids), None)
    head = next(member for member in members if not member.device_ids)
    fits, _ = draft.fits(need.requirements, (*need.avoid, *present))
    beside = next(iter(offers.rows_of(head.worker_id)))
    kept = fits & (draft.free >= need.device_count) & (draft.slots > 0)
    kept &= offers[Column.SITE] == offers[Column.SITE][beside]
    kept &= offers[Column.HARDWARE_CLASS] == CLASS_NUMBER[cluster.hardware_class]
    if pattern is not None:
        like = draft.row_of(pattern.worker_id, pattern.device_ids)
        if like is not None:
            kept &= offers[Column.MODEL] == offers[Column.MODEL][like]
    rows = np.flatnonzero(kept)
    bearing = [member.worker_id for member in members if member.device_ids]
    if need.requirements.min_bandwidth_mbps:
        rows = wide_enough(draft, need.requirements, rows, bearing)
    if need.requirements.max_rtt_ms:
        rows = near_enough(draft, need.requirements, rows, bearing)
    if not len(rows):
        return None
    row = draft.costs.cheapest(rows, Lone(need.requirements, need.device_count))
    share = draft.take([(row, need.device_count)], None)[0]
    return Filling(need.cluster_id, share)
