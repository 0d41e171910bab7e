"""Jobs: submit, look, list, stop, delete, in the shapes that Ray's client reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from aiohttp import web

from orchestrator.core.errors import not_found
from orchestrator.core.jobs import JobStatus
from orchestrator.gateway.body import QUOTED_CHARS_MAX, read_object
from orchestrator.gateway.config import CONFIG, JOBS, JOBS_API_VERSION, tenant_of
from orchestrator.gateway.submissions import is_submission_id, parse_submission

if TYPE_CHECKING:
    from orchestrator.core.jobs import Job

REDACTED = "<redacted>"
"""In place of a variable's value: it is often a key, and listings end up in logs."""

ENTRYPOINT_FAILED = "JOB_ENTRYPOINT_COMMAND_ERROR"
"""Ray's word for a command that ended with another code than zero."""


def submission_id_of(request: web.Request) -> str:
    """The job named in the path; NOT_FOUND where no job can have that name."""
    name = request.match_info["submission_id"]
    if not is_submission_id(name):
        raise not_found("job", name[:QUOTED_CHARS_MAX])
    return name


def job_details(job: Job) -> dict[str, object]:
    """Ray's JobDetails. The driver's whereabouts stay null: the cluster is nobody's to reach into."""
    failed = job.status is JobStatus.FAILED and bool(job.driver_exit_code)
    return {
        "type": "SUBMISSION",
        "job_id": None,
        "submission_id": job.submission_id,
        "driver_info": None,
        "status": job.status.value,
        "entrypoint": job.request.entrypoint,
        "message": job.message or None,
        "error_type": ENTRYPOINT_FAILED if failed else None,
        "start_time": job.started_at_ms,
        "end_time": job.ended_at_ms,
        "metadata": dict(job.request.metadata),
        "runtime_env": _shown_runtime_env(job.request.runtime_env_json),
        "driver_agent_http_address": None,
        "driver_node_id": None,
        "driver_exit_code": job.driver_exit_code,
    }


def _shown_runtime_env(runtime_env_json: str) -> dict[str, object]:
    runtime_env: dict[str, object] = json.loads(runtime_env_json or "{}")
    env_vars = runtime_env.get("env_vars")
    if isinstance(env_vars, dict):
        runtime_env["env_vars"] = dict.fromkeys(env_vars, REDACTED)
    return runtime_env


async def get_version(request: web.Request) -> web.Response:
    """What Ray's client asks first, and before each newer option."""
    return web.json_response({"version": JOBS_API_VERSION, "ray_version": request.app[CONFIG].ray_version})


async def submit_job(request: web.Request) -> web.Response:
    """Answered when the job is durable, not before."""
    config = request.app[CONFIG]
    limit_bytes, idle_timeout_s = config.json_bytes_max, config.body_idle_timeout_s
    body = await read_object(request, limit_bytes=limit_bytes, idle_timeout_s=idle_timeout_s)
    job = await request.app[JOBS].submit(tenant_of(request), parse_submission(body))
    return web.json_response({"job_id": job.submission_id, "submission_id": job.submission_id})


async def get_job(request: web.Request) -> web.Response:
    """One job; PENDING with the reason as long as it is queued."""
    return web.json_response(
        job_details(await request.app[JOBS].job(tenant_of(request), submission_id_of(request)))
    )


async def list_jobs(request: web.Request) -> web.Response:
    """All jobs of the tenant, and of nobody else."""
    return web.json_response([job_details(job) for job in await request.app[JOBS].jobs(tenant_of(request))])


async def stop_job(request: web.Request) -> web.Response:
    """Asks only; Ray's client then waits for the status."""
    stopped = await request.app[JOBS].stop(tenant_of(request), submission_id_of(request))
    return web.json_response({"stopped": stopped})


async def delete_job(request: web.Request) -> web.Response:
    """Forget a job that has ended."""
    await request.app[JOBS].delete(tenant_of(request), submission_id_of(request))
    return web.json_response({"deleted": True})
