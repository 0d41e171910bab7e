"""Jobs and attempts: submitting, stopping, ending, trying again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase
from orchestrator.core.decisions.leaving import noticed_in
from orchestrator.core.decisions.limits import reached
from orchestrator.core.decisions.reservations import reserved
from orchestrator.core.errors import RefusalCode, RefusedError, not_found
from orchestrator.core.jobs import Attempt, AttemptPhase, Job, JobStatus, Outcome
from orchestrator.core.preemption import gives_way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.ids import AttemptId, JobId, WorkerId
    from orchestrator.core.state import State

STATUS_OF = {
    Outcome.SUCCEEDED: JobStatus.SUCCEEDED,
    Outcome.FAILED: JobStatus.FAILED,
    Outcome.STOPPED: JobStatus.STOPPED,
}


def submit_job(state: State, command: m.SubmitJob, at_ms: int) -> m.Decision:
    """Queue a job. The same submission with the same content is the same job; other content is refused."""
    known_id = state.jobs_by_submission.get((command.tenant_id, command.submission_id))
    if known_id is not None:
        if state.jobs[known_id].request_sha256 == command.request_sha256:
            return m.Decision((), known_id)
        message = f"submission id {command.submission_id!r} is used by another job; choose a new one"
        raise RefusedError(RefusalCode.ALREADY_EXISTS, message, "submission_id")
    job = Job(
        job_id=command.job_id,
        tenant_id=command.tenant_id,
        submission_id=command.submission_id,
        request_sha256=command.request_sha256,
        request=reserved(state, command),
        status=JobStatus.PENDING,
        message="Queued.",
        submitted_at_ms=at_ms,
        started_at_ms=None,
        ended_at_ms=None,
        attempts=0,
        starts=0,
        attempt_id=None,
        not_before_ms=0,
        stop_requested=False,
        driver_exit_code=None,
        avoid=(),
        formation_failures=0,
    )
    return m.Decision((m.JobSubmitted(job),), job.job_id)


def stop_job(state: State, command: m.StopJob) -> m.Decision:
    """Ask for the end; False where the job has ended already."""
    job = _find(state, command.job_id)
    if job.status.terminal:
        return m.Decision((), result=False)
    events: tuple[m.Event, ...] = () if job.stop_requested else (m.JobStopRequested(job.job_id),)
    return m.Decision(events, result=True)


def delete_job(state: State, command: m.DeleteJob) -> m.Decision:
    """Forget an ended job."""
    job = _find(state, command.job_id)
    if not job.status.terminal:
        raise RefusedError(
            RefusalCode.CONFLICT, f"job {job.submission_id} is {job.status}; stop it first", "job"
        )
    return m.Decision((m.JobDeleted(job.job_id),), result=True)


def complete_log(state: State, command: m.CompleteLog) -> m.Decision:
    """The log of an attempt is whole; repeating it changes nothing."""
    attempt = state.attempts.get(command.attempt_id)
    if attempt is None:
        raise not_found("attempt", command.attempt_id)
    if attempt.log_complete:
        return m.Decision((), attempt.log_bytes)
    return m.Decision((m.LogCompleted(attempt.attempt_id, command.log_bytes),), command.log_bytes)


def observe_attempt(state: State, report: m.ObservedAttempt, cluster_id: str) -> Iterator[m.Event]:
    """Take over what the agent beside the head says, if the attempt is this cluster's and has not ended.

    Before READY no head was told of an attempt: leases never begin on a gang that is not whole.
    """
    attempt = state.attempts.get(report.attempt_id)
    if attempt is None or attempt.cluster_id != cluster_id or attempt.phase is AttemptPhase.ENDED:
        return
    if state.clusters[attempt.cluster_id].phase is not ClusterPhase.READY:
        return
    if attempt.phase is AttemptPhase.PLACED and (report.running or _driver_ran(report)):
        yield m.AttemptStarted(attempt.attempt_id)
    if report.outcome is not Outcome.NONE:
        outcome, message = report.outcome, report.message
        if outcome is Outcome.FAILED and _told_to_go(state, attempt):
            outcome, message = Outcome.GROUND, f"ended under notice: {message}"
        if outcome is Outcome.STOPPED and attempt.timed_out and not state.jobs[attempt.job_id].stop_requested:
            outcome, message = Outcome.FAILED, _cut_short(state, attempt)
        yield m.AttemptEnded(attempt.attempt_id, outcome, message, report.driver_exit_code)


def _told_to_go(state: State, attempt: Attempt) -> bool:
    """Whether a driver that ends now may have done as it was asked: write its checkpoint and go."""
    stopped = state.jobs[attempt.job_id].stop_requested
    return not stopped and bool(noticed_in(state, state.clusters[attempt.cluster_id]))


def _cut_short(state: State, attempt: Attempt) -> str:
    """What is said of a job that came to its time limit."""
    limit_ms = state.jobs[attempt.job_id].request.time_limit_ms
    return f"The job {reached(limit_ms)} and was stopped; a longer limit, or none, lets it run on."


def _driver_ran(report: m.ObservedAttempt) -> bool:
    """A driver may end between two looks of its agent: it has run all the same, and counts as a start."""
    failed_itself = report.outcome is Outcome.FAILED and report.driver_exit_code is not None
    return report.outcome is Outcome.SUCCEEDED or failed_itself


def after_stop_requested(state: State, job_id: JobId) -> Iterator[m.Event]:
    """A job that no head has heard of yet ends at once; a running one when its agent says so."""
    job = state.jobs[job_id]
    if job.attempt_id is None:
        yield m.JobEnded(job_id, JobStatus.STOPPED, "Job was intentionally stopped.", None)
        return
    attempt = state.attempts[job.attempt_id]
    if state.clusters[attempt.cluster_id].phase is not ClusterPhase.READY:
        yield from end_unstarted(attempt)


def end_unstarted(attempt: Attempt) -> Iterator[m.Event]:
    """An attempt that was never given to Ray has no log to wait for."""
    yield m.LogCompleted(attempt.attempt_id, 0)
    yield m.AttemptEnded(attempt.attempt_id, Outcome.STOPPED, "Job was intentionally stopped.", None)


def after_attempt_ended(state: State, event: m.AttemptEnded, at_ms: int) -> Iterator[m.Event]:
    """The user's own result is reported as it is; a failure of the ground is tried again.

    Ground that was taken back by notice is no failure: the try does not count, and the next one begins at once.
    """
    attempt = state.attempts[event.attempt_id]
    job = state.jobs[attempt.job_id]
    if event.outcome is not Outcome.GROUND:
        yield m.JobEnded(job.job_id, STATUS_OF[event.outcome], event.message, event.driver_exit_code)
        return
    if job.stop_requested:
        yield m.JobEnded(job.job_id, JobStatus.STOPPED, "Job was intentionally stopped.", None)
        return
    if attempt.timed_out:
        yield m.JobEnded(job.job_id, JobStatus.FAILED, _cut_short(state, attempt), None)
        return
    policy = state.policies.jobs
    started = attempt.started_at_ms is not None
    preempted = gives_way(job, attempt)
    noticed = preempted or bool(noticed_in(state, state.clusters[attempt.cluster_id]))
    failures = 0 if started else job.formation_failures + (not noticed)
    excused = noticed and job.preemptions < policy.preemptions_max
    if started and not excused and job.starts - job.preemptions >= job.request.max_attempts:
        message = (
            f"attempt {attempt.number} lost its ground ({event.message}) and orch.max_attempts is reached"
        )
        yield m.JobEnded(job.job_id, JobStatus.FAILED, message, None)
    elif failures > policy.formation_failures_max:
        yield m.JobEnded(job.job_id, JobStatus.FAILED, f"no cluster could be formed: {event.message}", None)
    else:
        pause_ms = 0 if noticed or job.job_id in state.spares else policy.backoff_ms(failures)
        yield m.JobRequeued(
            job.job_id,
            f"queued again: it gave way {job.gave_way[-1].to}"
            if preempted
            else f"trying again: {event.message}",
            at_ms + pause_ms,
            _failed_workers(state, attempt.attempt_id),
            failures,
            preempted=started and excused,
        )


def _failed_workers(state: State, attempt_id: AttemptId) -> tuple[WorkerId, ...]:
    """Workers whose member failed before the driver ran; a worker lost later may serve the next try."""
    attempt = state.attempts[attempt_id]
    if attempt.started_at_ms is not None:
        return ()
    members = (state.members[member_id] for member_id in state.members_of.get(attempt.cluster_id, ()))
    return tuple(sorted({member.worker_id for member in members if member.reason}))


def _find(state: State, job_id: JobId) -> Job:
    job = state.jobs.get(job_id)
    if job is None:
        raise not_found("job", job_id)
    return job
