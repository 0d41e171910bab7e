"""`orch job`: what tenants submitted, where it ran and why there."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from orchestrator.api.v1 import jobs_pb2
from orchestrator.cli.client import Client, Unreachable, connect
from orchestrator.cli.job_explanation import print_explanation
from orchestrator.cli.output import (
    Output,
    OutputFormat,
    note,
    print_fields,
    print_json,
    print_lines,
    print_table,
)
from orchestrator.cli.wording import instant, job_status_name
from orchestrator.core.instants import limit_words

app = typer.Typer(no_args_is_help=True, help="Jobs; tenants submit them with `ray job submit`.")

JobName = Annotated[str, typer.Argument(metavar="JOB", help="Job id or submission id.")]

PAGE_SIZE = 100
"""What fits a look; older ones are a page further."""
FOLLOW_RETRIES = 60
"""In a row, a second apart: longer than a control plane takes to restart."""
FOLLOW_PAUSE_S = 1.0


@app.command("list")
def list_(
    tenant: Annotated[str, typer.Option(help="Only this tenant's jobs (its id).")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most this many, newest first.")] = PAGE_SIZE,
    before: Annotated[str, typer.Option(help="Only jobs older than this job id: the next page.")] = "",
    output: Output = OutputFormat.TABLE,
) -> None:
    """List jobs, newest first."""
    request = jobs_pb2.ListJobsRequest(tenant_id=tenant, page_size=limit, before_job_id=before)
    with connect() as client:
        answer = client.call(client.jobs.ListJobs, request)
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    rows = [
        (
            job.job_id,
            job.submission_id,
            job_status_name(job.status),
            str(len(job.attempts)),
            instant(job.submitted_at),
            instant(job.ended_at),
            job.message,
        )
        for job in answer.jobs
    ]
    columns = ("JOB", "SUBMISSION", "STATUS", "ATTEMPTS", "SUBMITTED", "ENDED", "MESSAGE")
    print_table(columns, rows, "no jobs: submit one with `ray job submit` and RAY_ADDRESS set to the gateway")


@app.command()
def show(job: JobName, output: Output = OutputFormat.TABLE) -> None:
    """Show a job, each attempt, its members and why they were chosen."""
    with connect() as client:
        answer = client.call(client.jobs.GetJob, jobs_pb2.GetJobRequest(job=job))
    if output is OutputFormat.JSON:
        print_json(answer)
        return
    found = answer.job
    print_fields(
        {
            "job": found.job_id,
            "submission": found.submission_id,
            "tenant": found.tenant_id,
            "status": job_status_name(found.status),
            "message": found.message,
            "entrypoint": found.entrypoint,
            "submitted": instant(found.submitted_at),
            "started": instant(found.started_at),
            "ended": instant(found.ended_at),
            "time limit": time_limit(found),
        }
    )
    for attempt in found.attempts:
        print_attempt(attempt)


@app.command()
def explain(job: JobName, output: Output = OutputFormat.TABLE) -> None:
    """Say why a job waits and what would have to change, or why it runs where it runs."""
    with connect() as client:
        answer = client.call(client.jobs.ExplainJob, jobs_pb2.ExplainJobRequest(job=job))
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        print_explanation(answer)


@app.command()
def logs(
    job: JobName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
) -> None:
    """Print a job's own output, byte for byte."""
    with connect() as client:
        copy_log(client, job, follow=follow)


@app.command()
def stop(job: JobName, output: Output = OutputFormat.TABLE) -> None:
    """Stop a job; what it used until then is billed."""
    with connect() as client:
        answer = client.call(client.jobs.StopJob, jobs_pb2.StopJobRequest(job=job))
    if output is OutputFormat.JSON:
        print_json(answer)
    else:
        print_lines([f"{job}: stopping" if answer.stopped else f"{job}: had already ended"])


def copy_log(client: Client, job: str, *, follow: bool) -> None:
    """Write the log to standard output; while following, a lost connection is taken up where it broke."""
    offset = 0
    failures = 0
    connected = False
    while True:
        try:
            request = jobs_pb2.ReadJobLogRequest(job=job, offset=offset, follow=follow)
            for chunk in client.stream(client.jobs.ReadJobLog, request):
                sys.stdout.buffer.write(chunk.data)
                sys.stdout.buffer.flush()
                offset = chunk.offset + len(chunk.data)
                failures = 0
                connected = True
        except Unreachable as error:
            failures += 1
            if not (follow and connected) or failures > FOLLOW_RETRIES:
                raise
            if failures == 1:
                note(f"{error}; trying to go on")
            time.sleep(FOLLOW_PAUSE_S)
        else:
            return


def time_limit(job: jobs_pb2.Job) -> str:
    """As it was asked for, and when it is over."""
    if not job.time_limit_ms:
        return "none"
    words = limit_words(job.time_limit_ms)
    return f"{words}, over at {instant(job.time_limit_at)}" if job.HasField("time_limit_at") else words


def print_attempt(attempt: jobs_pb2.Attempt) -> None:
    """One try: where it ran and why."""
    title = f"attempt {attempt.number} ({attempt.attempt_id}), {attempt.phase}, on {attempt.cluster_id}"
    print_lines(["", title])
    if attempt.message:
        print_lines([f"  {attempt.message}"])
    rows = [
        (
            member.member_id,
            member.role,
            member.worker_name or member.worker_id,
            member.supplier_id,
            ", ".join(member_devices(member)),
        )
        for member in attempt.members
    ]
    print_table(("MEMBER", "ROLE", "WORKER", "SUPPLIER", "DEVICES"), rows, "no members yet")
    if attempt.explanation:
        print_lines(["why these:", *(f"  {line}" for line in attempt.explanation)])


def member_devices(member: jobs_pb2.AttemptMember) -> list[str]:
    """Device ids; simulated ones say so."""
    return [f"{device} (simulated)" if member.simulated else device for device in member.device_ids]
