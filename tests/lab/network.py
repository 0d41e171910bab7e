"""A whole network of real processes in a lab: each in its host's namespace, its Ray nodes in boxes and overlay.

    with LabNetwork.open(HOSTS, MACHINES) as network:           started, all machines live; raises on what it leaves
        acme = LabTenant(network, network.create_tenant("acme"))    one for each tenant; `acme.secret` is the token
        text = acme.run_script("name", CODE, folder, orch={"gpus": 2})    `ray job submit`; all that it printed
        attempt = acme.job("name").attempts[-1]                 jobs_pb2: attempt.cluster_id, attempt.members
        node = network.node_of(attempt.cluster_id, "w1")        a running member: folder (its member_dir), spec
        node.namespace_pid                                      a process in its box's network, 0 if it is not up
        network.beside(node, ["ss", "-tln"])                    root with the box's network only
        network.inside(node, ["python3", ...])                  no more rights than the tenant's code there
        network.orch_json("worker", "list")                     `orch ... --output json`, run on the control host
        network.lab.run("w1", ["ip", "addr"])                   anything on a host; network.lab.partition("w1") etc.

`MACHINES` are the demo's: `Machine("w1", "north", "consumer", "RTX4090x2", slots=2)` has two slots and two simulated
GPUs; its name is its host's. `await_live`, `kill`, `interrupt`, `start_agent`, `said` and `stop` are Network's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, Self

from deploy.local.ports import LOOPBACK
from examples.demo.network import BIN, Addresses, Machine, child_environment
from orchestrator.adapters.box.box import Box
from orchestrator.adapters.box.entering import inside
from orchestrator.adapters.box.tools import BoxError
from tests.adapters.box.harness import traces
from tests.integration.network import SETTINGS, Network, Node
from tests.integration.tenants import Tenant, end
from tests.lab.lab import RUN_S, Lab
from tests.lab.topology import LabHost
from tests.runtimes import default_runtime, shared_folder

CONTROL = "control"
"""The host of the control plane, and of whoever operates the network or submits to it."""

LISTENS = {"control": 7443, "sessions": 7444, "gateway": 8265, "metrics": 9464}

DOOR = Path(__file__).with_name("door.py")

LAB_JOB_S = 240.0
"""Five Ray nodes in boxes start in half a minute on two idle cores; other tests may keep these busy."""

COMMAND_S = 240.0
"""For one command of ours: an interpreter starts for it, beside thousands of processes that want the cores, too."""

BACKLOG = 64
"""Connections of the tests that wait for the door to take them."""

LOG_LINES = 25
"""Of each process, where a test fails: enough to see why."""


@dataclass
class LabNetwork(Network):
    """Network, in an open lab. What its processes leave is seen while the lab still stands."""

    lab: Lab = field(kw_only=True)
    extra_flags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By machine: what its agent is told beside the rest."""
    doors: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    links: dict[str, list[str]] = field(default_factory=dict)
    """The interfaces that each host had before anything ran there."""

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        hosts: Sequence[LabHost],
        machines: Sequence[Machine],
        settings: Mapping[str, str] | None = None,
        extra_flags: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Iterator[Self]:
        """Build the lab, start all and wait until all is live; at the end fail if anything of it is left.

        ``settings`` are variables of the control plane, such as ``ORCH_LEASE_TTL_MS``.
        """
        with Lab(hosts) as lab:
            network = cls(
                lab=lab, extra_flags=dict(extra_flags or {}), settings={**SETTINGS, **(settings or {})}
            )
            try:
                network.start(machines)
                yield network
                remaining = network.stop()
            except BaseException:
                network.print_logs()
                network.destroy()
                raise
        assert remaining == [], f"left behind by a stopped network: {remaining}"

    def __post_init__(self) -> None:
        """Open the doors; nothing answers behind them yet."""
        self.addresses = Addresses(*(self._open_door(port) for port in LISTENS.values()))
        self.links = {host: self._links_of(host) for host in self.lab.sites}

    # ------------------------------------------------------------ where it stands

    @property
    def listens(self) -> Addresses:
        """As the lab's hosts see it."""
        return Addresses(*(f"{self.lab.public_ip(CONTROL)}:{port}" for port in LISTENS.values()))

    def popen(
        self, name: str, argv: Sequence[str | Path], env: Mapping[str, str], output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """An agent on its own host, everything else on the control plane's."""
        place = name if name in self.lab.sites else CONTROL
        return self.lab.popen(place, argv, env=child_environment(env), stdout=output, stderr=output)

    def agent_flags(self, machine: Machine) -> list[str]:
        """Isolation and overlay as they are found."""
        cpus = max(1, machine.slots)
        flags = self.extra_flags.get(machine.name, ())
        return ["--cpus", str(cpus), "--runtimes-dir", str(shared_folder()), *flags]

    def start(self, machines: Sequence[Machine]) -> None:
        """The control plane, then all agents; return when they can be given work."""
        # All agents share one folder of runtimes; where the first test finds none, nobody else is to wait for it.
        asyncio.run(default_runtime())
        self.start_serve("--gateway-tls", "own")
        for machine in machines:
            self.start_agent(machine)
        self.await_live(machine.name for machine in machines)

    def _open_door(self, port: int) -> str:
        """A port of the test's own loopback that leads to the control plane's."""
        with socket.create_server((LOOPBACK, 0), backlog=BACKLOG) as listener:
            there = f"{self.lab.public_ip(CONTROL)}:{port}"
            self.doors[port] = self.lab.popen(
                CONTROL, [sys.executable, "-I", "-S", DOOR, there], stdin=listener.fileno()
            )
            return f"{LOOPBACK}:{listener.getsockname()[1]}"

    # ------------------------------------------------------------ the operator's side

    def orch(self, *arguments: str) -> tuple[int, str]:
        """`orch` as an operator runs it on the control plane's host: exit code and all it said."""
        done = self._orch(arguments)
        return done.returncode, done.stdout + done.stderr

    def orch_json(self, *arguments: str) -> Any:
        """What ``orch <arguments> --output json`` says."""
        done = self._orch((*arguments, "--output", "json"))
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def _orch(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        env = {"ORCH_URL": self.listens.control, "HOME": str(self.folder)}
        env["ORCH_TOKEN_FILE"] = str(self.control_dir / "admin-token")
        command = [str(BIN / "orch"), *arguments]
        return self.lab.run(CONTROL, command, env=child_environment(env), check=False, timeout_s=COMMAND_S)

    # ------------------------------------------------------------ members

    def beside(
        self, node: Node, argv: Sequence[str | Path], *, timeout_s: float = RUN_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end with the network of a member's box, and nothing else of the box."""
        assert node.namespace_pid, f"the node of {node.worker} is not up"
        command = ["nsenter", f"--net=/proc/{node.namespace_pid}/ns/net", *argv]
        return self.lab.run(node.worker, command, check=False, timeout_s=timeout_s)

    def inside(
        self, node: Node, argv: Sequence[str], *, timeout_s: float = RUN_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in a member's box, as the tenant's own code would run there."""
        assert node.namespace_pid, f"the node of {node.worker} is not up"
        command = inside(node.namespace_pid, argv)
        return self.lab.run(node.worker, command, check=False, timeout_s=timeout_s)

    # ------------------------------------------------------------ the end

    def left(self) -> list[str]:
        """Processes, boxes, interfaces and firewall tables too."""
        doors = {process.pid for process in self.doors.values()}
        found = super().left()
        for host in self.lab.sites:
            found += [f"process {pid} on {host}" for pid in sorted(self.lab.pids(host) - doors)]
            found += [
                f"interface {link} on {host}" for link in self._links_of(host) if link not in self.links[host]
            ]
            tables = self.lab.run(host, ["nft", "list", "tables"]).stdout.splitlines()
            found += [f"{table} on {host}" for table in tables]
        for node in self.members.values():
            # Firewall tables lie where the hosts are, which was looked at; those of this machine are somebody else's.
            left = traces(node.spec.box) if node.spec.box is not None else []
            found += [one for one in left if not one.startswith("table ")]
        return found

    def destroy(self) -> None:
        """Boxes too: their mounts and cgroups outlive the processes."""
        super().destroy()
        for node in self.members.values():
            if node.spec.box is not None:
                with contextlib.suppress(BoxError):
                    Box(node.spec.box).destroy()

    def print_logs(self) -> None:
        """The ends of all logs, for whoever reads why a test failed."""
        for path in sorted((*self.folder.glob("*.log"), *self.folder.glob("*/members/*/*.log"))):
            lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
            sys.stdout.write("\n".join((f"---- {path.relative_to(self.folder)}", *lines, "")))

    def _links_of(self, host: str) -> list[str]:
        links = json.loads(self.lab.run(host, ["ip", "-j", "link"]).stdout)
        return sorted(link["ifname"] for link in links)


@dataclass
class LabTenant(Tenant):
    """A tenant on the control plane's host, who trusts its CA alone."""

    CONSENT: ClassVar[Mapping[str, str | int]] = {}

    @property
    def ray_address(self) -> str:
        """With TLS, under its public address."""
        return f"https://{self.network.listens.gateway}"

    @property
    def url(self) -> str:
        """By the door."""
        return f"https://{self.network.addresses.gateway}"

    def trust(self) -> list[str]:
        """Whom `ray job` trusts."""
        return ["--verify", str(self.network.control_dir / "ca.pem")]

    def opener(self) -> urllib.request.OpenerDirector:
        """Trusts the same."""
        context = ssl.create_default_context(cafile=str(self.network.control_dir / "ca.pem"))
        return urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

    def run_script(
        self,
        submission_id: str,
        code: str,
        folder: Path,
        *arguments: str,
        orch: Mapping[str, str | int] | None = None,
    ) -> str:
        """Submit a script, wait for exit code 0; all that `ray job submit` printed.

        ``folder`` becomes the job's working directory; the script is written there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "script.py").write_text(code)
        command = ("python", "script.py", *arguments)
        job = self.submit(submission_id, *command, working_dir=folder, orch=orch)
        try:
            assert job.code(LAB_JOB_S) == 0, job.text
            return job.text
        finally:
            end(job)
