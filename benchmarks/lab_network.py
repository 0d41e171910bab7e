"""A control plane, a head host and boxed machines in the network lab, and one job's output line by line."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import FigureError
from examples.demo.network import AGENT_GRACE_S, BIN, SERVE_GRACE_S, child_environment, end
from orchestrator.adapters.node_records import NodeSpec, NodeStatus, read_record
from orchestrator.agent.keeper import SPEC_FILE, STATUS_FILE
from tests.lab.lab import Lab, missing
from tests.lab.topology import LabHost

CONTROL = "control"
HEAD = "head"
CONTROL_PORT, SESSION_PORT, GATEWAY_PORT, METRICS_PORT = 7443, 7444, 8265, 9464
DEADLINE_S = 90.0
JOB_DEADLINE_S = 400.0
POLL_S = 0.2
LOG_CHARACTERS = 1500

RUNTIMES_DIR = Path(__file__).resolve().parents[1] / ".venv" / "runtimes"
"""Where tests keep theirs."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A running member: a process in its box's network, and its address in the overlay."""

    namespace_pid: int
    address: str


class LabNetwork:
    """What runs in the lab. The lab's hosts are ``CONTROL``, ``HEAD`` and any number of machines."""

    def __init__(self, lab: Lab, machines: Sequence[str]) -> None:
        self.lab = lab
        self.folder = Path(tempfile.mkdtemp(prefix="orch-lab-"))
        self._machines = machines
        self._host = lab.public_ip(CONTROL)
        self._serve: subprocess.Popen[bytes] | None = None
        self._agents: list[subprocess.Popen[bytes]] = []
        self._token = ""

    def start(self) -> None:
        """The control plane, a tenant, and every machine; returns once all are live."""
        endpoints = {
            "--listen": CONTROL_PORT,
            "--session-listen": SESSION_PORT,
            "--gateway": GATEWAY_PORT,
            "--metrics": METRICS_PORT,
        }
        command = ["serve", "--data-dir", str(self.folder / "control"), "--gateway-tls", "own"]
        for flag, port in endpoints.items():
            command += [flag, f"{self._host}:{port}"]
        self._serve = self._popen(CONTROL, "serve", command, {})
        self._wait("the control plane", (self.folder / "control" / "endpoints.json").exists)
        self._orch("tenant", "create", "bench")
        self._token = self._secret("--role", "tenant", "--subject", "bench")
        for name in (HEAD, *self._machines):
            self._join(name)
        names = {HEAD, *self._machines}
        self._wait("the machines", lambda: self._live() >= names)

    def run_job(self, metadata: Mapping[str, str], folder: Path, command: Sequence[str]) -> Iterator[str]:
        """The lines of one `ray job submit`, as they come. Raises FigureError where it fails."""
        ca = self.folder / "control" / "ca.pem"
        submit = ["job", "submit", "--verify", str(ca), "--metadata-json", json.dumps(dict(metadata))]
        environment = {
            "RAY_ADDRESS": f"https://{self._host}:{GATEWAY_PORT}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
        }
        process = self.lab.popen(
            CONTROL,
            [BIN / "ray", *submit, "--working-dir", str(folder), "--", *command],
            env=child_environment(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said: list[str] = []
        assert process.stdout is not None  # noqa: S101 -- PIPE was asked for
        for raw in process.stdout:
            said.append(raw.decode("utf-8", "replace").rstrip())
            yield said[-1]
        if process.wait(JOB_DEADLINE_S) != 0:
            raise FigureError(f"the job failed: {' / '.join(said[-12:])}")

    def standing(self, machine: str) -> Standing:
        """The machine's member."""
        for folder in (self.folder / machine / "members").iterdir():
            status, spec = (
                read_record(folder / STATUS_FILE, NodeStatus),
                read_record(folder / SPEC_FILE, NodeSpec),
            )
            if status is not None and spec is not None and status.phase == "up":
                return Standing(status.namespace_pid, spec.node_ip)
        raise FigureError(f"{machine} has no member that is up: was its cluster torn down?")

    def stop(self) -> None:
        """Agents give everything back while the control plane still listens, then it ends."""
        end(self._agents, AGENT_GRACE_S)
        end([self._serve] if self._serve else [], SERVE_GRACE_S)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _join(self, name: str) -> None:
        role = ["--head-host"] if name == HEAD else []
        token = self._secret("--role", "supplier", "--subject", f"supplier-{name}", *role)
        command = ["worker", "join", "--control-plane", f"{self._host}:{CONTROL_PORT}", "--name", name]
        command += ["--data-dir", str(self.folder / name), "--cpus", "1", "--runtimes-dir", str(RUNTIMES_DIR)]
        if name == HEAD:
            command += ["--slots", "0", "--head-slots", "1", "--no-gpus"]
        else:
            command += ["--slots", "1", "--simulate", "RTX4090x1"]
        self._agents.append(self._popen(name, name, command, {"ORCH_JOIN_TOKEN": token}))

    def _live(self) -> set[str]:
        workers = json.loads(self._orch("worker", "list", "--output", "json"))
        rows = workers if isinstance(workers, list) else workers["workers"]
        return {row["name"] for row in rows if row["liveness"] == "live"}

    def _secret(self, *arguments: str) -> str:
        return str(json.loads(self._orch("token", "create", *arguments, "--output", "json"))["secret"])

    def _orch(self, *arguments: str) -> str:
        environment = {
            "HOME": str(self.folder),
            "ORCH_URL": f"{self._host}:{CONTROL_PORT}",
            "ORCH_TOKEN_FILE": str(self.folder / "control" / "admin-token"),
        }
        done = self.lab.run(
            CONTROL, [BIN / "orch", *arguments], env=child_environment(environment), check=False
        )
        if done.returncode:
            raise FigureError(f"orch {arguments[0]} {arguments[1]}: {done.stderr[-LOG_CHARACTERS:]}")
        return done.stdout

    def _popen(
        self, place: str, name: str, command: Sequence[str], extra: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        environment = child_environment({"HOME": str(self.folder), **extra})
        with (self.folder / f"{name}.log").open("wb") as log:
            return self.lab.popen(
                place, [BIN / "orch", *command], env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def _wait(self, what: str, look: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not look():
            for process in (self._serve, *self._agents):
                if process is not None and process.poll() is not None:
                    raise FigureError(f"waiting for {what}, a process ended with {process.returncode}")
            if time.monotonic() > deadline_s:
                raise FigureError(f"waited {DEADLINE_S:g} s in vain for {what}")
            time.sleep(POLL_S)


@contextmanager
def lab_network(hosts: Sequence[LabHost]) -> Iterator[LabNetwork]:
    """The network on these hosts; all of it is ended afterwards. Raises FigureError where no lab can stand."""
    if reason := missing():
        raise FigureError(reason)
    with Lab(hosts) as lab:
        network = LabNetwork(lab, [host.name for host in hosts if host.name not in (CONTROL, HEAD)])
        try:
            network.start()
            yield network
        finally:
            network.stop()
