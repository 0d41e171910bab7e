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
    if placement.pairs:
        fields["round trip"] = _round_trip(placement)
    fields["runner-up"] = _runner_up(placement.runner_up) if placement.HasField("runner_up") else "none"
    print_fields(fields)
    print_lines(["", "why these:", *(f"  {line}" for line in placement.explanation)])


def _round_trip(placement: scheduling_pb2.JobPlacement) -> str:
    said = []
    if placement.HasField("diameter_us"):
        said.append(f"up to {placement.diameter_us / US_PER_MS:.1f} ms measured")
    if placement.HasField("predicted_diameter_us"):
        said.append(
            f"up to {placement.predicted_diameter_us / US_PER_MS:.1f} ms expected when they were chosen,"
            f" with {placement.pairs_measured} of {placement.pairs} pairs measured"
        )
    return "; ".join(said) or "not known: nobody measured between these machines"


def _runner_up(one: scheduling_pb2.RunnerUp) -> str:
    price = f"{credits_of(one.microcredits_per_hour)} an hour"
    distance = f", up to {one.diameter_us / US_PER_MS:.1f} ms" if one.diameter_us else ""
    return f"{one.machines}, {price}{distance}: {one.lost_by}"


def _wait_fields(wait: scheduling_pb2.JobWait) -> dict[str, str]:
    devices = f"{wait.needed} needed, {wait.free} of {wait.fitting} fitting are free, {wait.largest} of them together"
    overtaken = f"{wait.overtaken} times of {wait.overtaken_max}"
    fields = {
        "waits because": wait.reason,
        "devices": devices,
        "position": wait.position,
        "overtaken": f"{overtaken}: machines are kept for it" if wait.entitled else overtaken,
        "starts": wait.estimate or instant(wait.estimated_start),
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
