"""``explain``: why a job waits and what would have to change, or why it runs where it runs and what that costs.

It is worked out when somebody asks, from the state as it is: a walk over the fleet's columns and a search in the
tenant's queue, however long that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core.gangs.candidates import US_PER_MS
from orchestrator.core.ids import attempt_id_of
from orchestrator.core.market.pricing import credits_text
from orchestrator.core.queries.allowance import Allowances, price_of
from orchestrator.core.queries.certificate import delivered_words, longest_path
from orchestrator.core.queries.estimating import estimate
from orchestrator.core.queries.queue import capacity_of, need_of
from orchestrator.core.queries.trial import tried
from orchestrator.core.scheduling.distance import nearness_change
from orchestrator.core.scheduling.placement import Deferral, JobNeed
from orchestrator.core.scheduling.reserving import opened
from orchestrator.core.scheduling.shortage import changes, position_words, shortage
from orchestrator.core.state import is_queued
from orchestrator.core.tenancy.fairness import Contender, order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import AttemptId, ClusterId
    from orchestrator.core.jobs import Attempt, AttemptPhase, Chosen, Job
    from orchestrator.core.scheduling.placement import Served
    from orchestrator.core.scheduling.shortage import Change, Shortage
    from orchestrator.core.state import State


FITS_NOW = "there are machines for it now: it starts when it is its turn"


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a queued job is not placed yet."""

    reason: str
    shortage: Shortage
    changes: tuple[Change, ...]
    """What the tenant could ask for instead, the most helpful first."""
    jobs_before: int
    """Of its own tenant."""
    tenants_before: int
    position: str
    overtaken: int
    overtaken_max: int
    not_before_ms: int | None
    """Set while it pauses after a failure."""
    estimated_start_ms: int | None
    estimate: str
    """Says what the estimate rests on, or why there is none."""

    @property
    def entitled(self) -> bool:
        """Whether machines are kept for it."""
        return self.overtaken >= self.overtaken_max


@dataclass(frozen=True, slots=True)
class Placed:
    """Why these machines, and what all their devices cost together in an hour, before fees."""

    attempt_id: AttemptId
    cluster_id: ClusterId
    phase: AttemptPhase
    why: tuple[str, ...]
    diameter_us: int | None
    """Measured; None where nothing was."""
    devices: int
    microcredits_per_hour: int
    """By the prices of when each member was placed: one that was replaced may have cost something else."""
    chosen: Chosen
    """What was known when they were chosen."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """``wait`` is of a queued job, ``placed`` of one that has machines or had them last."""

    message: str
    wait: Wait | None
    placed: Placed | None


def explain(state: State, job: Job, at_ms: int) -> Explanation:
    """Pure; ``at_ms`` is control time."""
    message = state.shown(job).message
    if is_queued(job):
        return Explanation(message, _wait(state, job, at_ms), None)
    attempt_id = job.attempt_id or attempt_id_of(job.job_id, job.attempts)
    attempt = state.attempts.get(attempt_id)
    return Explanation(message, None, None if attempt is None else _placed(state, attempt))


# ------------------------------------------------------------ waiting


def _wait(state: State, job: Job, at_ms: int) -> Wait:
    policy = state.policies.jobs
    need = _need(state, job, at_ms)
    draft = opened(state, at_ms)
    question = draft.question(need.requirements, need.avoid)
    with draft.lending(need):
        found = shortage(question, draft.free, overlay_offered=state.overlay_offered)
        instead = changes(question, draft.free, found, overlay_offered=state.overlay_offered)
    before, tenants_before = state.jobs_before(job), _tenants_before(state, job, at_ms)
    starts = estimate(state, job, need, at_ms, (before, tenants_before))
    said = state.waiting.get(job.job_id)
    alone = tried(state, need, at_ms) if said is None or need.requirements.max_rtt_ms else None
    far = alone.far if isinstance(alone, Deferral) else None
    instead = changes(question, draft.free, found, overlay_offered=state.overlay_offered)
    return Wait(
        reason=said or _reason(job, alone, at_ms),
        shortage=found,
        changes=instead if far is None else (nearness_change(far), *instead),
        jobs_before=before,
        tenants_before=tenants_before,
        position=_position(state, job, before, tenants_before),
        overtaken=job.overtaken,
        overtaken_max=policy.overtaken_max,
        not_before_ms=job.not_before_ms if job.not_before_ms > at_ms else None,
        estimated_start_ms=starts.start_ms,
        estimate=starts.words,
    )


def _need(state: State, job: Job, at_ms: int) -> JobNeed:
    """As the next plan would be asked for it."""
    return Allowances(state, at_ms).allowed(need_of(state, job, at_ms))


def _reason(job: Job, alone: Served, at_ms: int) -> str:
    """What a plan would say of a job alone, where none came to it yet."""
    if isinstance(alone, Deferral):
        return alone.reason
    if job.not_before_ms > at_ms:
        return f"it pauses before the next try: {job.message}"
    return FITS_NOW


def _position(state: State, job: Job, before: int, tenants_before: int) -> str:
    booked = state.bookings.of(job.request.reservation_id)
    if booked is None:
        return "".join(position_words(before, tenants_before))
    place = f"behind {before} of the jobs" if before else "the first of the jobs"
    return f"{place} of its reservation {booked.name!r}, {booked.window}, which come before anybody's turn"


def _tenants_before(state: State, job: Job, at_ms: int) -> int:
    if state.bookings.of(job.request.reservation_id) is not None:
        return 0
    contenders = [
        Contender(tenant_id, state.tenants[tenant_id].usage, state.tenants[tenant_id].weight)
        for tenant_id in state.queues
    ]
    turn = order(contenders, capacity_of(state), state.policies.fairness, at_ms)
    return turn.index(job.tenant_id)


# ------------------------------------------------------------ placed


def _placed(state: State, attempt: Attempt) -> Placed:
    cluster = state.clusters[attempt.cluster_id]
    members = state.cluster_members(cluster)
    longest = longest_path(cluster)
    return Placed(
        attempt_id=attempt.attempt_id,
        cluster_id=cluster.cluster_id,
        phase=attempt.phase,
        why=(*attempt.explanation, *delivered_words(state, cluster)),
        diameter_us=None if longest is None else longest.rtt_median_us,
        devices=sum(len(member.device_ids) for member in members),
        microcredits_per_hour=price_of(state, cluster),
        chosen=attempt.chosen,
    )


def chosen_words(chosen: Chosen) -> Iterator[str]:
    """What the machines were chosen by."""
    yield f"{credits_text(chosen.microcredits_per_hour)} credits an hour for all of them, before fees"
    if chosen.pairs:
        known = f"{chosen.pairs_measured} of {chosen.pairs} pairs were measured"
        if chosen.diameter_us is None:
            yield f"how far apart they are was not known when they were chosen: {known}"
        else:
            rtt_ms = chosen.diameter_us / US_PER_MS
            yield f"when they were chosen, round trips of up to {rtt_ms:.1f} ms were expected: {known}"
    if chosen.runner_up is not None:
        yield f"runner-up: {chosen.runner_up.machines}, {chosen.runner_up.lost_by}"
