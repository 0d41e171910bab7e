"""The operator's side: what the demo asks the control plane, and how it waits for answers."""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from examples.demo.network import MACHINES, Network
from examples.demo.report import DemoFailed, Progress
from examples.demo.submission import RaySubmit
from orchestrator.api.v1 import jobs_pb2, operator_pb2
from orchestrator.cli.client import Client, Unreachable, open_channel
from orchestrator.cli.settings import Settings, read_token
from orchestrator.cli.wording import devices_text, hardware_class_name, job_status_name

SERVE_DEADLINE_S = 60.0
"""A start takes seconds; two busy cores may make a minute of it."""
LIVE_DEADLINE_S = 90.0
"""Six agents start Python at once."""
JOB_DEADLINE_S = 300.0
"""Forming three nodes and training takes under a minute on an idle machine."""
POLL_S = 0.5
HEALTH_TIMEOUT_S = 2.0


def wait_for(
    network: Network, progress: Progress, what: str, deadline_s: float, look: Callable[[], str | None]
) -> None:
    """Poll until `look` returns None; until then it returns what is still missing."""
    end_s = time.monotonic() + deadline_s
    while (missing := look()) is not None:
        network.check_alive()
        if time.monotonic() > end_s:
            raise DemoFailed(f"waited {deadline_s:g} s in vain for {what}: {missing}")
        progress.now(f"{what}: {missing}")
        time.sleep(POLL_S)


def wait_serving(network: Network, progress: Progress) -> None:
    """Until the control plane's health service says SERVING and the admin token lies there."""

    def look() -> str | None:
        if not (network.admin_token_file.exists() and network.ca_file.exists()):
            return "starting"
        try:
            with open_channel(network.addresses.control, network.ca_file.read_bytes()) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S)
        except grpc.RpcError as error:
            return error.code().name.lower()
        serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        return None if serving else "not serving yet"

    wait_for(network, progress, "control plane", SERVE_DEADLINE_S, look)


def operator_client(network: Network) -> Client:
    """A client with the operator's token."""
    token = read_token(network.admin_token_file, "admin token")
    return Client(Settings(network.addresses.control, token, network.ca_file))


def start_agents(client: Client, network: Network) -> None:
    """A join token for each machine, bound to its supplier, and the agent that uses it."""
    for machine in MACHINES:
        request = operator_pb2.CreateTokenRequest(
            request_id=f"demo-{machine.name}",
            role=operator_pb2.TOKEN_ROLE_SUPPLIER,
            subject=machine.supplier,
            head_host=machine.head_slots > 0,
        )
        network.start_agent(machine, client.call(client.operator.CreateToken, request).secret)


def wait_live(client: Client, network: Network, progress: Progress) -> list[operator_pb2.Worker]:
    """Until every machine is live and connected; returns them."""
    found: list[operator_pb2.Worker] = []

    def look() -> str | None:
        answer = client.call(client.operator.ListWorkers, operator_pb2.ListWorkersRequest())
        found[:] = answer.workers
        live = {worker.name for worker in found if worker.liveness == "live" and worker.connected}
        missing = [machine.name for machine in MACHINES if machine.name not in live]
        return f"{len(live)} of {len(MACHINES)} live, missing {', '.join(missing)}" if missing else None

    wait_for(network, progress, "workers", LIVE_DEADLINE_S, look)
    return found


def show_workers(progress: Progress, workers: list[operator_pb2.Worker]) -> None:
    """Who is there, and that the devices are simulated."""
    rows = [
        (
            worker.name,
            worker.supplier_name,
            hardware_class_name(worker.inventory.hardware_class),
            devices_text(worker.inventory.devices) or f"{worker.inventory.head_slots} head slots",
            worker.inventory.isolation,
        )
        for worker in workers
    ]
    progress.table(("worker", "supplier", "class", "devices", "isolation"), rows)


def create_tenant(client: Client) -> str:
    """A tenant with a token; returns the token's secret."""
    tenant = client.call(
        client.operator.CreateTenant, operator_pb2.CreateTenantRequest(request_id="demo-tenant", name="demo")
    ).tenant
    request = operator_pb2.CreateTokenRequest(
        request_id="demo-token", role=operator_pb2.TOKEN_ROLE_TENANT, subject=tenant.tenant_id
    )
    return client.call(client.operator.CreateToken, request).secret


def watch_job(client: Client, network: Network, progress: Progress, submit: RaySubmit) -> str:
    """Show the CLI's output and the job's state until the CLI ends; returns the job's id."""
    job = jobs_pb2.Job()

    def look() -> str | None:
        nonlocal job
        while not submit.lines.empty():
            progress.line(submit.lines.get())
        if submit.poll() is not None:
            return None
        try:
            found = client.call(client.jobs.ListJobs, jobs_pb2.ListJobsRequest(page_size=1)).jobs
        except Unreachable as error:
            return str(error)
        if not found:
            return "submitting"
        job = found[0]
        return job_text(job)

    wait_for(network, progress, "job", JOB_DEADLINE_S, look)
    while not submit.lines.empty():
        progress.line(submit.lines.get())
    if not job.job_id:
        found = client.call(client.jobs.ListJobs, jobs_pb2.ListJobsRequest(page_size=1)).jobs
        if not found:
            raise DemoFailed(f"`ray job submit` ended with exit code {submit.poll()} and submitted nothing")
        job = found[0]
    return job.job_id


def job_text(job: jobs_pb2.Job) -> str:
    """Status, why it waits, and how far its attempt is."""
    parts = [job_status_name(job.status)]
    if job.attempts:
        attempt = job.attempts[-1]
        parts.append(f"attempt {attempt.number} {attempt.phase} with {len(attempt.members)} members")
    if job.message:
        parts.append(job.message)
    return ", ".join(parts)
