"""Time limits: a try of a job that runs for longer than its tenant allowed is stopped.

It is told to end as if its tenant had stopped it, and has as long as that takes. A job that comes to its limit has
FAILED: Ray's own command takes STOPPED for success, and whoever waits for it must hear that it was cut short.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.core import messages as m
from orchestrator.core.instants import limit_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.core.jobs import Job
    from orchestrator.core.state import State


def reached(limit_ms: int) -> str:
    """What a job's end says that its limit brought about."""
    return f"ran for its orch.time_limit of {limit_words(limit_ms)}"


def limit_at_ms(state: State, job: Job) -> int | None:
    """When the present try of a job comes to its limit; None where none runs, or there is no limit."""
    attempt = None if job.attempt_id is None or job.status.terminal else state.attempts[job.attempt_id]
    if attempt is None or attempt.started_at_ms is None or not job.request.time_limit_ms:
        return None
    return attempt.started_at_ms + job.request.time_limit_ms


def tick_limits(state: State, at_ms: int) -> Iterator[m.Event]:
    """Stop the tries whose time is over; those that did not end when they were told to end with their cluster."""
    for due_ms, attempt_id in state.watched.attempts_due:
        if due_ms > at_ms:
            return
        attempt = state.attempts[attempt_id]
        job = state.jobs[attempt.job_id]
        said = reached(job.request.time_limit_ms)
        if attempt.timed_out:
            yield m.ClusterClosing(attempt.cluster_id, f"its job {said} and did not end when it was told to")
        elif not job.stop_requested:
            yield m.AttemptTimedOut(attempt_id, said)
