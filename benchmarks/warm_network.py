"""One tenant's warm cluster, started as the demo starts its network, and both ways to its head."""

from __future__ import annotations

import http.client
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import FigureError, note
from examples.demo.network import Machine, Network
from examples.demo.operations import create_tenant, operator_client, wait_serving
from examples.demo.report import DemoFailed, Progress
from orchestrator.adapters.node_records import NodeStatus, read_record
from orchestrator.adapters.ray_node import SHARED_DIR, TOKEN_FILE
from orchestrator.agent.keeper import STATUS_FILE
from orchestrator.api.v1 import operator_pb2
from orchestrator.cli.client import Client
from orchestrator.cli.errors import CliError

IDLE_TEARDOWN_MS = 3_600_000
"""The cluster must outlive the whole measurement."""

MACHINE = Machine("consumer-1", "supplier-north", "consumer", "RTX4090x1")
"""One machine whose cluster carries its own head: with no entrypoint resources the driver runs there on both ways."""

CONSENT = {"orch.isolation": "none"}
"""The worker here has no isolation, as the peer has none; to Ray itself the key means nothing."""

LIVE_DEADLINE_S = 90.0
JOB_DEADLINE_S = 180.0
"""The first job forms the cluster; on two busy cores a head takes up to half a minute."""
POLL_S = 0.1
ANSWER_TIMEOUT_S = 60.0
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
ACTORS = "/api/v0/actors?filter_keys=state&filter_predicates=!%3D&filter_values=DEAD&limit=10"
"""Ray's state API: the supervisor of a job is an actor, and lives a moment longer than the job."""


class Way:
    """A Jobs API: our gateway, or the head itself. One connection, kept open."""

    def __init__(self, name: str, host: str, token: str) -> None:
        self.name = name
        self.host = host
        self.token = token
        self._connection = http.client.HTTPConnection(host, timeout=ANSWER_TIMEOUT_S)

    @property
    def environment(self) -> dict[str, str]:
        """What Ray's CLI is told: an address and a token, nothing else."""
        return {
            "RAY_ADDRESS": f"http://{self.host}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """One request; the JSON of its answer. Raises FigureError for any answer but 200."""
        status, answer = self._request(method, path, None if body is None else json.dumps(body).encode())
        if status != http.client.OK:
            raise FigureError(f"{self.name} answered {method} {path} with {status}: {answer[:300]!r}")
        return json.loads(answer)

    def submit(self, entrypoint: str) -> tuple[str, float]:
        """POST a job: its submission id, and the seconds from the first byte sent to the last received."""
        name = f"raysubmit_{uuid.uuid4().hex[:16]}"
        body = json.dumps({"entrypoint": entrypoint, "submission_id": name, "metadata": CONSENT}).encode()
        began_s = time.perf_counter()
        status, answer = self._request("POST", "/api/jobs/", body)
        elapsed_s = time.perf_counter() - began_s
        if status != http.client.OK:
            raise FigureError(f"{self.name} answered a submission with {status}: {answer[:300]!r}")
        return name, elapsed_s

    def wait_ended(self, submission_id: str) -> None:
        """Until the job has succeeded."""
        deadline_s = time.monotonic() + JOB_DEADLINE_S
        while (status := self.ask("GET", f"/api/jobs/{submission_id}")["status"]) not in TERMINAL:
            if time.monotonic() > deadline_s:
                raise FigureError(f"{self.name}: job {submission_id} was {status} for {JOB_DEADLINE_S:g} s")
            time.sleep(POLL_S)
        if status != "SUCCEEDED":
            raise FigureError(f"{self.name}: job {submission_id} ended {status}")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _request(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        self._connection.request(method, path, body=body, headers=headers)
        answer = self._connection.getresponse()
        return answer.status, answer.read()


@dataclass(frozen=True, slots=True)
class Warm:
    """Both ways to one head."""

    ours: Way
    peer: Way

    def settle(self) -> None:
        """Until the head holds no actor of an earlier job, so that each run starts from the same rest."""
        deadline_s = time.monotonic() + JOB_DEADLINE_S
        while self.peer.ask("GET", ACTORS)["data"]["result"]["result"]:
            if time.monotonic() > deadline_s:
                raise FigureError("an actor of an earlier job does not end")
            time.sleep(POLL_S)
        time.sleep(REST_S)


REST_S = 0.5
"""The agent looks five times a second whether the cluster is clean; then the control plane calls it idle."""


class WarmNetwork(Network):
    """The demo's network with a control plane that keeps clusters warm."""

    def start_serve(self) -> None:
        """As the demo does it, save for the time that an idle cluster is kept."""
        config = self.folder / "serve.toml"
        config.write_text(f"idle_teardown_ms = {IDLE_TEARDOWN_MS}\n")
        command = ["serve", "--config", str(config), "--data-dir", str(self.folder / "control")]
        command += ["--listen", self.addresses.control, "--gateway", self.addresses.gateway]
        self._serve = self._start("serve", [*command, "--metrics", self.addresses.metrics], {})


@contextmanager
def warm_cluster(first_entrypoint: str) -> Iterator[Warm]:
    """Start everything, run a first job so that the cluster stands, and end everything afterwards."""
    network = WarmNetwork()
    try:
        with Progress(to_stderr=True) as progress:
            network.start_serve()
            wait_serving(network, progress)
        with operator_client(network) as client:
            _join(client, network)
            ours = Way("the gateway", network.addresses.gateway, create_tenant(client))
        note("P1: a first job forms the cluster")
        submission_id, _ = ours.submit(first_entrypoint)
        ours.wait_ended(submission_id)
        peer = _head(network.folder / MACHINE.name / "members")
        warm = Warm(ours, peer)
        warm.settle()
        yield warm
        ours.close()
        peer.close()
    except (DemoFailed, CliError, OSError) as error:
        raise FigureError(f"the network does not stand: {error}") from error
    finally:
        network.stop()


def _join(client: Client, network: WarmNetwork) -> None:
    request = operator_pb2.CreateTokenRequest(
        request_id="bench-worker", role=operator_pb2.TOKEN_ROLE_SUPPLIER, subject=MACHINE.supplier
    )
    network.start_agent(MACHINE, client.call(client.operator.CreateToken, request).secret)
    deadline_s = time.monotonic() + LIVE_DEADLINE_S
    while True:
        workers = client.call(client.operator.ListWorkers, operator_pb2.ListWorkersRequest()).workers
        if any(worker.liveness == "live" and worker.connected for worker in workers):
            return
        network.check_alive()
        if time.monotonic() > deadline_s:
            raise FigureError(f"the worker was not live within {LIVE_DEADLINE_S:g} s")
        time.sleep(POLL_S)


def _head(members: Path) -> Way:
    """The way past us: the head's own address and token, from what its keeper wrote down."""
    for member in members.iterdir():
        status = read_record(member / STATUS_FILE, NodeStatus)
        if status is not None and status.phase == "up" and status.dashboard_url:
            token = (member / SHARED_DIR / TOKEN_FILE).read_text().strip()
            return Way("the head", status.dashboard_url.removeprefix("http://"), token)
    raise FigureError("no head runs although a job has: was its cluster torn down?")
