"""``plan(view, requests, now_ms, budget)``: which queued jobs run where, which vacancies are filled by whom, and why not.

Filter, then score, all or nothing: a gang gets every device it needs on workers of one class and one runtime, or waits
with the reason. The plan reads indexes that ``State`` maintains and changes nothing; the loop applies it, if the
capacity it was made on is still there.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.core.assembling import assemble, near_enough
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.draft import Draft
from orchestrator.core.explaining import shortage, waiting_words
from orchestrator.core.filters import describe, joins
from orchestrator.core.gang_fields import US_PER_MS
from orchestrator.core.making_room import make_room
from orchestrator.core.offers import BY_OVERLAY, CLASS_NUMBER, Column
from orchestrator.core.overtaking import Passed, keep
from orchestrator.core.placement import (
    Budget,
    Deferral,
    Filling,
    JobNeed,
    Placement,
    Plan,
    Reuse,
    SpareNeed,
    VacancyNeed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from orchestrator.core.clusters import Cluster, Member
    from orchestrator.core.fleet import Worker
    from orchestrator.core.ids import ClusterId, WorkerId
    from orchestrator.core.jobs import Requirements
    from orchestrator.core.offers import Numbers
    from orchestrator.core.placement import Needs, PlacementView, Served

LEFTOVER_PRICE = 1_000
"""Microcredits per hour that each device counts that is left free beside what is taken: a whole machine is worth more."""


def plan(view: PlacementView, needs: Needs, now_ms: int, budget: Budget) -> Plan:
    """Serve the needs in the order given. Pure: the same view and needs give the same plan.

    ``now_ms`` is control time: owners' hours end.
    """
    draft = Draft(view, now_ms)
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
    )


def _place(draft: Draft, need: JobNeed, budget: Budget) -> Placement | Reuse | Deferral | None:
    if need.refused:
        return Deferral(need.job_id, need.refused)
    own = _own_spare(draft, need)
    if own is not None:
        return own
    warm = _warm(draft, need, draft.reused)
    if warm is not None:
        cluster_id, names = warm
        return Reuse(need.job_id, cluster_id, (f"warm cluster {cluster_id} of this tenant fits: {names}",))
    signature = (need.requirements, need.avoid)
    known = draft.unfit.get(signature)
    placed = _choose(draft, need) if known is None else None
    if placed is not None:
        return placed
    kept = keep(draft, need) if need.entitled else None
    make_room(draft, need)
    if kept is not None or known is not None:
        return Deferral(need.job_id, kept or known or "")
    if len(draft.unfit) >= budget.explained_max:
        return None
    question = draft.question(need.requirements, need.avoid)
    found = shortage(question, draft.free, overlay_offered=draft.view.overlay_offered)
    reason = waiting_words(question, found, draft.distances.get(need.requirements, ""))
    draft.unfit[signature] = reason
    return Deferral(need.job_id, reason)


def _own_spare(draft: Draft, need: JobNeed) -> Reuse | Deferral | None:
    """The cluster that was formed ahead for this job; None where there is none, or none that may be used."""
    cluster_id = draft.view.spares.get(need.job_id)
    if cluster_id is None:
        return None
    cluster = draft.view.clusters[cluster_id]
    if cluster.phase is ClusterPhase.READY:
        if cluster.idle_since_ms is None:
            return Deferral(need.job_id, "its spare cluster is about to be ready")
        members = (draft.view.members[member_id] for member_id in cluster.member_ids)
        if not all(draft.view.workers[member.worker_id].placeable for member in members):
            return None
    return Reuse(need.job_id, cluster_id, (f"cluster {cluster_id} was formed ahead for this job",))


def _spare(draft: Draft, need: SpareNeed, budget: Budget) -> Placement | None:
    """A cluster formed ahead, unless a warm one of the tenant would do."""
    warm = _warm(draft, need, draft.reused | draft.counted_on)
    if warm is not None or draft.spares_unplaced >= budget.explained_max:
        return None
    placed = _choose(draft, need)
    if placed is None:
        draft.spares_unplaced += 1
        return None
    return replace(placed, spare=True)


def _warm(draft: Draft, need: JobNeed | SpareNeed, given: set[ClusterId]) -> tuple[ClusterId, str] | None:
    """An idle cluster of the tenant that fits and is not ``given`` yet, and the names of its workers."""
    view, wanted = draft.view, need.requirements
    idle = draft.idle_clusters(need.tenant_id)
    if not idle:
        return None
    fits, hosts = draft.fits(wanted, need.avoid)
    for cluster_id in idle:
        if cluster_id in given or cluster_id in view.attempt_in or cluster_id in draft.closing:
            continue
        cluster = view.clusters[cluster_id]
        members = [view.members[member_id] for member_id in cluster.member_ids]
        bearing = [member for member in members if member.device_ids]
        if sum(len(member.device_ids) for member in bearing) != wanted.device_count:
            continue
        if cluster.runtime != (wanted.runtime or (view.default_runtime if cluster.runtime else "")):
            continue
        if cluster.image != wanted.image or not _is_shaped(cluster, bearing, wanted):
            continue
        # The members' own: a worker that is boxed now may have been bare when they were placed.
        if not all(member.isolation.at_least(wanted.isolation) for member in members):
            continue
        rows = [draft.row_of(member.worker_id, member.device_ids) for member in members]
        if all(
            row is not None and (fits if member.device_ids else hosts)[row] and not draft.spoken_for[row]
            for member, row in zip(members, rows, strict=True)
        ):
            (draft.reused if isinstance(need, JobNeed) else draft.counted_on).add(cluster_id)
            return cluster_id, ", ".join(view.workers[member.worker_id].name for member in bearing)
    return None


def _is_shaped(cluster: Cluster, bearing: Sequence[Member], wanted: Requirements) -> bool:
    """Whether a warm cluster's machines bring as many devices each, and are as near by what was delivered, as asked."""
    if wanted.gpus_per_worker and any(len(one.device_ids) != wanted.gpus_per_worker for one in bearing):
        return False
    if not wanted.max_rtt_ms or len(bearing) <= 1:
        return True
    bound_us = wanted.max_rtt_ms * US_PER_MS
    near = {
        frozenset((path.from_id, path.to_id))
        for path in cluster.paths
        if path.answered and path.rtt_median_us <= bound_us
    }
    ids = [one.member_id for one in bearing]
    return all(frozenset(pair) in near for pair in combinations(ids, 2))


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
    if need.requirements.max_rtt_ms:
        bearing = [member.worker_id for member in members if member.device_ids]
        rows = near_enough(draft, need.requirements, rows, bearing)
    if not len(rows):
        return None
    row = draft.cheapest(rows, need.device_count, LEFTOVER_PRICE)
    share = draft.take([(row, need.device_count)], None)[0]
    return Filling(need.cluster_id, share)


def _choose(draft: Draft, need: JobNeed | SpareNeed) -> Placement | None:
    """The cheapest set: one machine before many, then the least cost of what is taken and what is left behind."""
    wanted = need.requirements
    fits, _ = draft.fits(wanted, need.avoid)
    count = wanted.device_count
    usable = fits & (draft.slots > 0)
    if wanted.gpus_per_worker in (0, count):
        rows = np.flatnonzero(usable & (draft.free >= count))
        if len(rows):
            row = draft.cheapest(rows, count, LEFTOVER_PRICE)
            return _placed(draft, need, [(row, count)], None)
    if count == 1 or wanted.one_machine:
        return None
    usable &= (draft.free >= max(1, wanted.gpus_per_worker)) & joins(
        draft.view.offers, overlay_offered=draft.view.overlay_offered
    )
    return _together(draft, need, np.flatnonzero(usable))


def _together(draft: Draft, need: JobNeed | SpareNeed, rows: Numbers) -> Placement | None:
    """A gang over several workers of one ground; models are mixed only where no one model has enough."""
    offers = draft.view.offers
    if need.requirements.max_rtt_ms:
        # Between bare machines nothing is measured before a cluster is there.
        rows = rows[offers[Column.REACH][rows] == BY_OVERLAY]
    by_model = offers[Column.GROUND][rows] * (len(offers.models.names) + 1) + offers[Column.MODEL][rows]
    for groups in (by_model, offers[Column.GROUND][rows]):
        found: list[tuple[int, int, list[tuple[int, int]], Worker]] = []
        for number, group in enumerate(np.flatnonzero(np.bincount(groups)).tolist()):
            gang = assemble(draft, need.requirements, rows[groups == group])
            if gang is not None:
                head_host = _head_host(draft, need, gang.shares[0][0])
                if head_host is not None:
                    found.append((gang.score, number, gang.shares, head_host))
        if found:
            _, _, shares, head_host = min(found, key=lambda one: one[:2])
            return _placed(draft, need, shares, head_host)
    return None


def _head_host(draft: Draft, need: JobNeed | SpareNeed, beside: int) -> Worker | None:
    """The head host with most free head slots among those that run the same Ray and can be reached."""
    view = draft.view
    _, hosts = draft.fits(need.requirements, need.avoid)
    site = view.offers[Column.SITE]
    best: tuple[int, WorkerId] | None = None
    for worker_id, slots in view.head_hosts.items():
        left = slots - draft.heads[worker_id]
        if left <= 0 or (best is not None and (-left, worker_id) > best):
            continue
        row = next(iter(view.offers.rows_of(worker_id)))
        if hosts[row] and site[row] == site[beside]:
            best = (-left, worker_id)
    return None if best is None else view.workers[best[1]]


def _placed(
    draft: Draft, need: JobNeed | SpareNeed, taken: list[tuple[int, int]], head_host: Worker | None
) -> Placement:
    why = tuple(_why(draft, need, taken, head_host))
    shares = draft.take(taken, None if head_host is None else head_host.worker_id)
    return Placement(need.job_id, shares, None if head_host is None else head_host.worker_id, why)


def _why(
    draft: Draft, need: JobNeed | SpareNeed, taken: list[tuple[int, int]], head_host: Worker | None
) -> Iterator[str]:
    offers = draft.view.offers
    yield f"asked for {describe(need.requirements)}"
    for row, count in taken:
        worker = draft.view.workers[offers.worker_of(row)]
        held = set(offers.devices_of(row))
        simulated = any(one.simulated for one in worker.inventory.devices if one.device_id in held)
        yield (
            f"{worker.name}: class {worker.inventory.hardware_class}, {count} × {offers.model_of(row)}"
            f"{' (simulated)' if simulated else ''}, live, {int(draft.free[row]) - count} fitting devices left free"
        )
    if head_host is None:
        yield "one machine holds the whole request and carries its own head"
    else:
        bound_ms = need.requirements.max_rtt_ms
        near = f", all of them measured to be within {bound_ms} ms" if bound_ms else ""
        yield (
            f"the cheapest set of one class and runtime{near}; head on {head_host.name}, which has a free head slot"
        )
