"""Who may be made to give way, to whom and how often: the rules; ``scheduling.preempting`` chooses by them.

A job that is *interruptible* by its tenant's word gives way to a waiting job of higher priority of the same tenant, or to
one of a tenant that has less than its share while its own tenant has more. It is given notice, so that it can write a
checkpoint, and goes back to the queue. A notice stays even if the work that it was given for goes away meanwhile: the job
may be leaving already, and Ray takes no drain back. Its devices are then anybody's, its own next try's among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.core.jobs import AttemptPhase, GaveWay

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.core.clusters import Member
    from orchestrator.core.ids import ClusterId
    from orchestrator.core.jobs import Attempt, Job, JobPolicy

HOUR_MS = 3_600_000

TO_PRIORITY = "to a job of higher priority of the same tenant"
TO_SHARE = "to work that waited longer than its share allows"


@dataclass(frozen=True, slots=True)
class PreemptionPolicy:
    """What an operator may turn. Milliseconds."""

    notice_ms: int = 60_000
    """Enough to write some gigabytes; the waiting job waits as long."""
    wait_ms: int = 30_000
    """A job waits so long before others of its tenant give way: something may end by itself."""
    wait_for_share_ms: int = 600_000
    """Before other tenants give way to a job that nobody overtook to the bound: where nothing ends, nobody does."""
    run_ms_min: int = 300_000
    """Forming a cluster and loading takes minutes: what ran for less would have run for nothing."""
    protected_ms: int = 1_800_000
    """A job that gave way runs at least so long in its next try."""
    per_hour_max: int = 2
    """How often a job gives way in an hour, whatever its tries came to."""
    in_flight_max: int = 64
    """Jobs under notice at once for others: as many as the largest gang may need. 0: nobody gives way."""
    release_ms: int = 120_000
    """How long devices are waited for after the notice: the last log may take a minute, and nodes end in seconds."""


def gives_way(job: Job, attempt: Attempt) -> bool:
    """Whether this try was asked to end for other work."""
    return bool(job.gave_way) and job.gave_way[-1].attempt_id == attempt.attempt_id


def having_given_way(job: Job, to: GaveWay) -> tuple[GaveWay, ...]:
    """``Job.gave_way`` with one more, and without those that do not count any more."""
    return (*(one for one in job.gave_way if to.at_ms - one.at_ms < HOUR_MS), to)


def may_give_way(
    job: Job, attempt: Attempt, at_ms: int, policy: PreemptionPolicy, job_policy: JobPolicy
) -> bool:
    """Whether a try may be asked to end at control time ``at_ms``, by what it and those before it came to."""
    if not job.request.interruptible or job.stop_requested or gives_way(job, attempt):
        return False
    if job.preemptions >= job_policy.preemptions_max:
        # One more would count against max_attempts, and no job is to fail for another.
        return False
    if sum(at_ms - one.at_ms < HOUR_MS for one in job.gave_way) >= policy.per_hour_max:
        return False
    match attempt.phase:
        case AttemptPhase.PLACED:
            # Nothing is lost, but who gave way once is not turned away again before it has run.
            return not job.gave_way
        case AttemptPhase.RUNNING:
            run_ms = at_ms - (attempt.started_at_ms or at_ms)
            return run_ms >= (policy.protected_ms if job.gave_way else policy.run_ms_min)
        case AttemptPhase.ENDED:
            return False


def lost_ms(attempt: Attempt, devices: int, at_ms: int) -> int:
    """Device-time that may have to be done again: all since the start, as nobody says when it wrote a checkpoint."""
    return 0 if attempt.started_at_ms is None else (at_ms - attempt.started_at_ms) * devices


def preempted_clusters(noticed: Iterable[Member]) -> set[ClusterId]:
    """Clusters that are under notice for other work."""
    return {member.cluster_id for member in noticed if member.notice is not None and member.notice.preempts}
