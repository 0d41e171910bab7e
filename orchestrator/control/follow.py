"""Following a job's log from its first byte to its last, over as many attempts as it takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.core.ids import AttemptId, JobId, attempt_id_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from orchestrator.control.logs import Logs
    from orchestrator.control.loop import Loop
    from orchestrator.core.jobs import Job
    from orchestrator.core.state import State

PIECE_BYTES = 256 * 1024
"""What is read at once: a log that was written long ago is sent in few pieces, none of them large."""


@dataclass(frozen=True, slots=True)
class _View:
    """What a follower must know of its job: ``attempt_id`` is the one that counts."""

    attempt_id: AttemptId | None
    ended: bool
    shown_complete: bool


def shown_attempt(job: Job) -> AttemptId | None:
    """The attempt whose log is the job's: the one that counts, else the last one; None before the first."""
    if job.attempt_id is not None:
        return job.attempt_id
    return attempt_id_of(job.job_id, job.attempts) if job.attempts else None


async def follow(
    loop: Loop, logs: Logs, job_id: JobId, offset: int = 0
) -> AsyncGenerator[tuple[int, bytes], None]:
    """(offset in its attempt's log, bytes), from ``offset`` on in the attempt that counts.

    Ends when the job has ended and the log of its last attempt is whole and sent. A job that was tried again
    goes on with the new attempt's log from its first byte. Nothing is polled: news of the log and of commits
    wake it. Who stops in the middle closes it.
    """
    changed = loop.watch()
    shown: AttemptId | None = None
    try:
        while True:
            changed.clear()
            view = await loop.read(partial(_view, job_id, shown))
            if shown is not None:
                data = await logs.read(shown, offset, PIECE_BYTES)
                if data:
                    yield offset, data
                    offset += len(data)
                    continue
            if view.attempt_id is not None and view.attempt_id != shown:
                if shown is not None:
                    logs.unwatch(shown, changed)
                    offset = 0
                shown = view.attempt_id
                logs.watch(shown, changed)
            elif view.ended and (shown is None or view.shown_complete):
                return
            else:
                await changed.wait()
    finally:
        loop.unwatch(changed)
        if shown is not None:
            logs.unwatch(shown, changed)


def _view(job_id: JobId, shown: AttemptId | None, state: State) -> _View:
    job = state.jobs.get(job_id)
    attempt = state.attempts.get(shown) if shown is not None else None
    complete = attempt is not None and attempt.log_complete
    if job is None:
        # Only a job that has ended can be deleted; what was shown of it is its last attempt.
        return _View(shown, ended=True, shown_complete=complete)
    return _View(shown_attempt(job), job.status.terminal, complete)
