"""``explain``: why a job waits and what would have to change, or why it runs where it runs and what that costs.

It is worked out when somebody asks, from the state as it is: a walk over the fleet's columns and a search in the
tenant's queue, however long that is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.core.draft import Draft
from orchestrator.core.explaining import changes, position_words, shortage
from orchestrator.core.fairness import Contender, order
from orchestrator.core.ids import attempt_id_of
from orchestrator.core.placement import Deferral, JobNeed
from orchestrator.core.queueing import capacity_of, need_of, standing_of
from orchestrator.core.quotas import UNLIMITED, QuotaRequest, refusal
from orchestrator.core.state import is_queued
from orchestrator.core.trial import tried

if TYPE_CHECKING:
    from orchestrator.core.clusters import Cluster, Member, PathSeen
    from orchestrator.core.explaining import Change, Shortage
    from orchestrator.core.ids import AttemptId, ClusterId
    from orchestrator.core.jobs import Attempt, AttemptPhase, Job
    from orchestrator.core.state import State

US_PER_MS = 1000

NO_ESTIMATE = "when it starts is not known: nobody says how long the jobs that run now will take"

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
    estimated_start_ms: int | None = None
    estimate: str = NO_ESTIMATE
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
    draft = Draft(state, at_ms)
    question = draft.question(need.requirements, need.avoid)
    found = shortage(question, draft.free, overlay_offered=state.overlay_offered)
    before, tenants_before = state.jobs_before(job), _tenants_before(state, job, at_ms)
    return Wait(
        reason=_reason(state, job, need, at_ms),
        shortage=found,
        changes=changes(question, draft.free, found, overlay_offered=state.overlay_offered),
        jobs_before=before,
        tenants_before=tenants_before,
        position="".join(position_words(before, tenants_before)),
        overtaken=job.overtaken,
        overtaken_max=policy.overtaken_max,
        not_before_ms=job.not_before_ms if job.not_before_ms > at_ms else None,
    )


def _need(state: State, job: Job, at_ms: int) -> JobNeed:
    """As the next plan would be asked for it."""
    tenant, need = state.tenants[job.tenant_id], need_of(state, job, at_ms)
    if tenant.quota == UNLIMITED:
        return need
    asked = QuotaRequest(need.requirements.gpus)
    return replace(need, refused=refusal(tenant.quota, standing_of(state, tenant, at_ms), asked) or "")


def _reason(state: State, job: Job, need: JobNeed, at_ms: int) -> str:
    """What the last plan said; where none came to this job, what one would say of it alone."""
    said = state.waiting.get(job.job_id)
    if said is not None:
        return said
    outcome = tried(state, need, at_ms)
    if isinstance(outcome, Deferral):
        return outcome.reason
    if job.not_before_ms > at_ms:
        return f"it pauses before the next try: {job.message}"
    return FITS_NOW


def _tenants_before(state: State, job: Job, at_ms: int) -> int:
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
        why=(*attempt.explanation, *measured_words(state, cluster)),
        diameter_us=None if longest is None else longest.rtt_median_us,
        devices=sum(len(member.device_ids) for member in members),
        microcredits_per_hour=sum(_price(state, member) for member in members),
    )


def _price(state: State, member: Member) -> int:
    """Microcredits per hour of a member's devices, under the terms of when it was placed."""
    asks = {ask.model: ask.microcredits_per_gpu_hour for ask in member.terms.asks}
    devices = state.workers[member.worker_id].inventory.devices
    models = [device.model for device in devices if device.device_id in member.device_ids]
    return sum(asks[model] if model in asks else state.market_price(model) for model in models)


def longest_path(cluster: Cluster) -> PathSeen | None:
    """The way between two members that takes longest, as delivered; None where none was measured."""
    answered = [path for path in cluster.paths if path.answered]
    return max(answered, key=lambda path: path.rtt_median_us, default=None)


def measured_words(state: State, cluster: Cluster) -> tuple[str, ...]:
    """The same in words."""
    longest = longest_path(cluster)
    if longest is None:
        return ()
    ends = [
        state.workers[state.members[member_id].worker_id].name
        for member_id in (longest.from_id, longest.to_id)
    ]
    rtt_ms = longest.rtt_median_us / US_PER_MS
    return (f"measured: round trips of up to {rtt_ms:.1f} ms, {ends[0]} to {ends[1]}",)
