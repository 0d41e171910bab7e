"""The network on this machine: control plane, head host and agents as child processes, and their end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local.ports import LOOPBACK, free_ports
from examples.demo.report import DemoFailed
from orchestrator.adapters.process_tree import become_subreaper, end_descendants

BIN = Path(sys.executable).parent
OWNER_ONLY = 0o600
AGENT_GRACE_S = 25.0
"""A draining agent ends its Ray nodes and delivers its last statement; beyond this it hangs."""
SERVE_GRACE_S = 10.0
"""The control plane has only its last commit to finish."""
BESIDE_GRACE_S = 10.0
"""Prometheus writes down what it has; nobody will read it."""
POLL_S = 0.1
LOG_LINES = 15
"""Enough of each log to see why, little enough to read."""


@dataclass(frozen=True)
class Machine:
    """One agent to start. `simulate` is empty for a machine without GPUs."""

    name: str
    supplier: str
    hardware_class: str
    simulate: str = ""
    slots: int = 1
    head_slots: int = 0


MACHINES = (
    Machine("head-1", "operator-heads", "cpu", slots=0, head_slots=2),
    Machine("consumer-1", "supplier-north", "consumer", "RTX4090x1"),
    Machine("consumer-2", "supplier-south", "consumer", "RTX4090x1"),
    Machine("consumer-3", "supplier-west", "consumer", "RTX4090x1"),
    Machine("datacenter-1", "supplier-hall", "datacenter", "H100x1"),
    Machine("cpu-1", "supplier-spare", "cpu"),
)


@dataclass(frozen=True)
class Child:
    """A process and where it writes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def last_lines(self) -> list[str]:
        """The end of its log."""
        if not self.log.exists():
            return []
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]


@dataclass(frozen=True)
class Addresses:
    """Where the control plane listens, each as HOST:PORT."""

    control: str
    sessions: str
    gateway: str
    metrics: str


class Network:
    """Starts what belongs to the network, and leaves nothing of it behind."""

    def __init__(self) -> None:
        # Ray's and the keepers' processes leave their parents; their subreaper can end them all.
        if sys.platform == "linux":
            become_subreaper()
        # Short: Ray puts sockets below it, whose paths may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="orch-demo-"))
        self.addresses = Addresses(*(f"{LOOPBACK}:{port}" for port in free_ports(4)))
        self._serve: Child | None = None
        self._agents: list[Child] = []
        self._beside: list[Child] = []
        """What watches the network and is no part of it."""

    @property
    def children(self) -> list[Child]:
        """Every process started here, the control plane first."""
        return [*([self._serve] if self._serve else []), *self._agents, *self._beside]

    @property
    def admin_token_file(self) -> Path:
        """The operator's token, which `orch serve` writes."""
        return self.folder / "control" / "admin-token"

    @property
    def metrics_token_file(self) -> Path:
        """What Prometheus shows at the metrics listener; `orch serve` writes it."""
        return self.folder / "control" / "metrics-token"

    @property
    def ca_file(self) -> Path:
        """Whom to trust at the control plane's address; `orch serve` writes it."""
        return self.folder / "control" / "ca.pem"

    def start_serve(self) -> None:
        """Start the control plane on its embedded defaults."""
        data_dir = self.folder / "control"
        listen = ["--listen", self.addresses.control, "--session-listen", self.addresses.sessions]
        listen += ["--gateway", self.addresses.gateway]
        command = ["serve", "--data-dir", str(data_dir), *listen, "--metrics", self.addresses.metrics]
        self._serve = self._start("serve", command, {})

    def start_agent(self, machine: Machine, join_token: str) -> None:
        """Start one machine's agent; its token goes by file, never by command line."""
        token_file = self.write_secret(f"{machine.name}.token", join_token)
        command = ["worker", "join", "--control-plane", self.addresses.control, "--name", machine.name]
        command += ["--token-file", str(token_file)]
        command += ["--slots", str(machine.slots), "--head-slots", str(machine.head_slots), "--cpus", "1"]
        command += ["--isolation", "none"]
        command += ["--data-dir", str(self.folder / machine.name)]
        command += ["--simulate", machine.simulate] if machine.simulate else ["--no-gpus"]
        self._agents.append(self._start(machine.name, command, {}))

    def start_beside(self, name: str, command: Sequence[str]) -> None:
        """Start a program that watches the network; it ends with it."""
        self._beside.append(self._spawn(name, command, {}))

    def write_secret(self, name: str, secret: str) -> Path:
        """A file that only its owner can read, from its first byte on."""
        path = self.folder / name
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, OWNER_ONLY), "w") as file:
            file.write(secret)
        return path

    def check_alive(self) -> None:
        """Raise DemoFailed where a process of the network has ended by itself."""
        for child in self.children:
            code = child.process.poll()
            if code is not None:
                raise DemoFailed(f"{child.name} ended by itself with exit code {code}")

    def stop(self) -> None:
        """End everything: agents drain while the control plane still listens, then it, then what is left."""
        try:
            end([child.process for child in self._beside], BESIDE_GRACE_S)
            end([agent.process for agent in self._agents], AGENT_GRACE_S)
            end([self._serve.process] if self._serve else [], SERVE_GRACE_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """End everything below this process, without asking, and remove its files."""
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                child.process.kill()
        try:
            if sys.platform == "linux":
                end_descendants(grace_s=0.0)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str, command: Sequence[str], extra: Mapping[str, str]) -> Child:
        return self._spawn(name, [str(BIN / "orch"), *command], extra)

    def _spawn(self, name: str, command: Sequence[str], extra: Mapping[str, str]) -> Child:
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=child_environment(extra),
                # A session of its own: the terminal's Ctrl-C comes to us alone, who decide the order.
                start_new_session=True,
            )
        return Child(name, process, log)


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Ours, less what would lead a child elsewhere; our tools first, no proxy before loopback."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORCH_", "RAY_"))}
    bypass = ",".join(filter(None, (kept.get("NO_PROXY", kept.get("no_proxy", "")), LOOPBACK, "localhost")))
    path = os.pathsep.join((str(BIN), kept.get("PATH", os.defpath)))
    return {**kept, "PATH": path, "NO_PROXY": bypass, "no_proxy": bypass, "PYTHONUNBUFFERED": "1", **extra}


def end(processes: Sequence[subprocess.Popen[bytes]], grace_s: float) -> None:
    """SIGINT to all, a bounded wait for all, SIGKILL for those that remain."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    deadline_s = time.monotonic() + grace_s
    while any(process.poll() is None for process in running) and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()
