"""When a queued job starts, as far as the time limits of what runs say it.

What is promised to an entitled job holds. Of any other job it is known only when machines for it are free at the latest:
others may come before it, and those of later ones that fit are let past until it is entitled.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from orchestrator.core.instants import utc_words
from orchestrator.core.scheduling.ends import Release
from orchestrator.core.scheduling.overtaking import claim, keep_promises, rows_of
from orchestrator.core.scheduling.reserving import opened
from orchestrator.core.scheduling.soonest import looked_at, machines_for

if TYPE_CHECKING:
    from orchestrator.core.ids import JobId
    from orchestrator.core.jobs import Job, Requirements
    from orchestrator.core.scheduling.draft import Draft
    from orchestrator.core.scheduling.placement import JobNeed
    from orchestrator.core.scheduling.soonest import Machines
    from orchestrator.core.state import State

LOOKED_AT_MAX = 256
"""Sets of machines, those with most free first: some ten milliseconds, however large the fleet is."""

NOT_KNOWN = "when it starts is not known: "


@dataclass(frozen=True, slots=True)
class Estimate:
    """``start_ms`` is None where it is not known; ``words`` say what it rests on, or what is missing."""

    start_ms: int | None
    words: str


def estimate(state: State, job: Job, need: JobNeed, at_ms: int, before: tuple[int, int]) -> Estimate:
    """Pure. ``before``: the jobs of its tenant and the tenants that come first."""
    booked = state.bookings.of(need.reservation_id)
    if booked is not None and not booked.begun(at_ms):
        start_ms = max(booked.from_ms, job.not_before_ms)
        return Estimate(start_ms, f"at {utc_words(start_ms)}, when its reservation {booked.name!r} begins")
    if need.refused:
        return Estimate(None, f"{NOT_KNOWN}its tenant's quota holds it back")
    if booked is not None:
        return Estimate(None, f"{NOT_KNOWN}as soon as enough of what is kept for its reservation is free")
    draft = opened(state, at_ms)
    keep_promises(draft)
    promise = claim(draft, need)
    kept = None if promise is None else rows_of(draft, promise)
    if promise is not None and kept is not None:
        release = looked_at(draft, need, kept, promise.head_host).release
        if release.known:
            # Where its machines are late, what was promised is no more than a memory.
            start_ms = max(promise.starts_by_ms, release.at_ms, job.not_before_ms)
            whose = _whose(state, job, release.job_id)
            return Estimate(
                start_ms, f"at {utc_words(start_ms)} at the latest, {whose}; sooner if others end early"
            )
    with draft.lending(need):
        found = list(islice(machines_for(draft, need, LOOKED_AT_MAX), LOOKED_AT_MAX))
    if not found:
        return Estimate(None, f"{NOT_KNOWN}no machines here hold all that it asks for")
    soonest = min(found, key=lambda one: one.release.at_ms).release
    if not soonest.known:
        return Estimate(None, NOT_KNOWN + _missing(state, need.requirements, draft, found))
    return _unpromised(state, job, soonest, at_ms, (0, 0) if need.entitled else before)


def when(state: State, need: JobNeed, at_ms: int) -> Estimate:
    """When machines for a request of nobody's are free, if nobody takes them first. Pure."""
    draft = opened(state, at_ms)
    keep_promises(draft)
    found = list(islice(machines_for(draft, need, LOOKED_AT_MAX), LOOKED_AT_MAX))
    if not found:
        return Estimate(None, f"{NOT_KNOWN}no machines here hold all that it asks for")
    soonest = min(found, key=lambda one: one.release.at_ms).release
    if not soonest.known:
        return Estimate(None, NOT_KNOWN + _missing(state, need.requirements, draft, found))
    if soonest.at_ms <= at_ms:
        return Estimate(None, f"{NOT_KNOWN}others wait for these machines, too")
    instant = utc_words(soonest.at_ms)
    return Estimate(
        soonest.at_ms, f"machines for it are free about {instant} by the time limits of what runs there now"
    )


def _unpromised(state: State, job: Job, soonest: Release, at_ms: int, before: tuple[int, int]) -> Estimate:
    free_ms = max(soonest.at_ms, job.not_before_ms)
    ahead = _ahead(*before)
    if free_ms <= at_ms:
        words = "there are machines for it now"
        return Estimate(None, f"{words}, and {ahead} before it" if ahead else f"{words}: it starts at once")
    whose = _whose(state, job, soonest.job_id)
    if ahead:
        return Estimate(
            None, f"{NOT_KNOWN}{ahead} before it; machines for it are free at {utc_words(free_ms)}, {whose}"
        )
    words = f"about {utc_words(free_ms)}, {whose}; sooner if others end early, later if smaller jobs fit in before it"
    return Estimate(free_ms, words)


def _ahead(jobs: int, tenants: int) -> str:
    """Who comes first."""
    parts = [f"{jobs} of its tenant's jobs"] * bool(jobs) + [f"{tenants} tenants"] * bool(tenants)
    if not parts:
        return ""
    return f"{' and '.join(parts)} {'comes' if jobs + tenants == 1 else 'come'}"


def _whose(state: State, job: Job, last: JobId | None) -> str:
    """Which job's end it waits for; another tenant's is not named."""
    if last is None:
        return "when what is there has gone"
    other = state.jobs[last]
    name = f"job {other.submission_id}" if other.tenant_id == job.tenant_id else "another tenant's job"
    return f"when {name} has reached its time limit"


def _missing(state: State, wanted: Requirements, draft: Draft, found: list[Machines]) -> str:
    """Why nobody can say when any of these machines are enough."""
    if all(len(one.rows) > 1 for one in found):
        if wanted.measured_first:
            return "how its machines reach each other is measured when they are free"
        if all(one.head_host is None for one in found):
            return "no head slot is free for it"
    rows = {row for one in found for row in one.rows.tolist()}
    clusters = {
        state.members[member_id].cluster_id
        for worker_id in {draft.view.offers.worker_of(row) for row in rows}
        for member_id in state.members_on.get(worker_id, ())
    }
    jobs = [
        one for one in (state.job_of(state.clusters[cluster_id]) for cluster_id in sorted(clusters)) if one
    ]
    unlimited = sum(not one.request.time_limit_ms for one in jobs)
    if not jobs:
        return "what is held on the machines that fit is held for no job"
    many = "job" if len(jobs) == 1 else "jobs"
    return f"{unlimited} of the {len(jobs)} {many} on machines that fit state no orch.time_limit"
