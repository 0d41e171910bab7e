"""What `orch job explain` says: of the job that ran, and of one that nothing here can serve."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass

from examples.demo.evidence import orch
from examples.demo.network import Network
from examples.demo.operations import wait_for
from examples.demo.report import DemoFailed, Progress
from orchestrator.api.v1 import jobs_pb2
from orchestrator.cli.client import Client

WAIT_DEADLINE_S = 20.0
"""A plan is made within milliseconds, and the gateway answers in as many."""
HTTP_TIMEOUT_S = 10.0
QUEUED = "Queued."

IMPOSSIBLE = {"orch.gpus": "64", "orch.gpu_model": "H200", "orch.isolation": "none"}
"""A model that nobody here has, and more of it than there are machines."""


@dataclass(frozen=True)
class Submitted:
    """A job at Ray's Jobs API, as its tenant sees it."""

    gateway: str
    secret: str
    submission_id: str

    def message(self) -> str:
        """Ray's status message of it."""
        return str(call(self.gateway, self.secret, f"/api/jobs/{self.submission_id}")["message"])


def call(gateway: str, secret: str, path: str, body: dict[str, object] | None = None) -> dict[str, object]:
    """One request to Ray's Jobs API; a body is posted."""
    request = urllib.request.Request(
        f"http://{gateway}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {secret}", "Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=HTTP_TIMEOUT_S) as answer:
            found = json.load(answer)
    except (OSError, ValueError) as error:
        raise DemoFailed(f"the gateway did not answer {path}: {error}") from error
    if not isinstance(found, dict):
        raise DemoFailed(f"{path} answered with no JSON object")
    return found


def show(network: Network, progress: Progress, job: str) -> None:
    """What the command prints, as anybody sees it."""
    answer = orch(network, "job", "explain", job)
    if answer.returncode != 0:
        raise DemoFailed(f"`orch job explain {job}` failed: {answer.stderr.strip()}")
    for line in answer.stdout.splitlines():
        progress.line(line)


def explain_placed(client: Client, network: Network, progress: Progress, job_id: str) -> tuple[int, bool]:
    """Why the job ran where it ran: what its machines cost in an hour, and whether all was told."""
    progress.title(f"orch job explain {job_id}")
    show(network, progress, job_id)
    found = client.call(client.jobs.ExplainJob, jobs_pb2.ExplainJobRequest(job=job_id))
    told = found.placement
    whole = bool(told.explanation) and told.devices > 0 and told.microcredits_per_hour > 0
    return told.microcredits_per_hour, whole


def explain_waiting(client: Client, network: Network, progress: Progress, secret: str) -> bool:
    """Submit what nothing here can serve, show why it waits and what would have to change, and stop it; whether all was
    told.
    """
    wanted = " ".join(f"{name}={value}" for name, value in IMPOSSIBLE.items())
    gateway = network.addresses.gateway
    made = call(gateway, secret, "/api/jobs/", {"entrypoint": "python train.py", "metadata": IMPOSSIBLE})
    job = Submitted(gateway, secret, str(made["submission_id"]))
    progress.title(f"a job that has to wait   ({wanted})")

    def look() -> str | None:
        return None if job.message() != QUEUED else "no plan came to it yet"

    wait_for(network, progress, "why it waits", WAIT_DEADLINE_S, look)
    message = job.message()
    progress.line(f"Ray's status message: {message}")
    progress.title(f"orch job explain {job.submission_id}")
    show(network, progress, job.submission_id)
    wait = client.call(client.jobs.ExplainJob, jobs_pb2.ExplainJobRequest(job=job.submission_id)).wait
    stopped = orch(network, "job", "stop", job.submission_id)
    if stopped.returncode != 0:
        raise DemoFailed(f"`orch job stop {job.submission_id}` failed: {stopped.stderr.strip()}")
    named = f"{IMPOSSIBLE['orch.gpus']} × {IMPOSSIBLE['orch.gpu_model']}"
    return named in message and named in wait.reason and bool(wait.removed) and bool(wait.changes)
