"""What `orch job explain` prints."""

from __future__ import annotations

from orchestrator.api.v1 import jobs_pb2, scheduling_pb2
from orchestrator.cli.amounts import credits_of
from orchestrator.cli.output import print_fields, print_lines, print_table
from orchestrator.cli.wording import instant, job_status_name

US_PER_MS = 1000


def print_explanation(found: jobs_pb2.ExplainJobResponse) -> None:
    """Why it waits, or why these machines."""
    fields = {
        "job": found.job_id,
        "submission": found.submission_id,
        "status": job_status_name(found.status),
    }
    if found.HasField("wait"):
        print_fields({**fields, **_wait_fields(found.wait)})
        _print_wait(found.wait)
        return
    fields["message"] = found.message
    if not found.HasField("placement"):
        print_fields(fields)
        print_lines(["", "it never had machines"])
        return
    placement = found.placement
    fields |= {
        "attempt": f"{placement.attempt_id}, {placement.phase}, on {placement.cluster_id}",
        "price": f"{credits_of(placement.microcredits_per_hour)} an hour for {placement.devices} devices, without fees",
    }
    if placement.HasField("diameter_us"):
        fields["round trip"] = f"up to {placement.diameter_us / US_PER_MS:.1f} ms measured"
    print_fields(fields)
    print_lines(["", "why these:", *(f"  {line}" for line in placement.explanation)])


def _wait_fields(wait: scheduling_pb2.JobWait) -> dict[str, str]:
    devices = f"{wait.needed} needed, {wait.free} of {wait.fitting} fitting are free, {wait.largest} of them together"
    overtaken = f"{wait.overtaken} times of {wait.overtaken_max}"
    fields = {
        "waits because": wait.reason,
        "devices": devices,
        "position": wait.position,
        "overtaken": f"{overtaken}: machines are kept for it" if wait.entitled else overtaken,
        "starts": instant(wait.estimated_start) or wait.estimate,
    }
    if wait.HasField("not_before"):
        fields["pauses until"] = instant(wait.not_before)
    return fields


def _print_wait(wait: scheduling_pb2.JobWait) -> None:
    if wait.removed:
        print_lines([""])
        rows = [(one.phrase, str(one.workers), str(one.alone)) for one in wait.removed]
        print_table(("WORKERS LEFT OUT", "WORKERS", "ONLY BY THIS"), rows, "")
    if wait.changes:
        print_lines(["", "what would change it:", *(f"  {change.says}" for change in wait.changes)])
