"""A whole network of real processes on this machine, for tests to use, to kill and to bring back."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.ports import LOOPBACK, free_ports
from examples.demo.network import BIN, Addresses, Machine, child_environment
from orchestrator.adapters.box.box import Box
from orchestrator.adapters.node_records import NodeSpec, NodeStatus, read_record
from orchestrator.adapters.peers import SERVER_NAME
from orchestrator.adapters.process_tree import descendants, marked_processes, sweep
from orchestrator.adapters.ray_node import SHARED_DIR, TOKEN_FILE
from orchestrator.agent.keeper import KEEPER_LOCK_FILE, SPEC_FILE, STATUS_FILE
from orchestrator.api.v1 import operator_pb2
from orchestrator.cli.client import Client, open_channel
from orchestrator.cli.errors import CliError
from orchestrator.cli.settings import Settings
from tests.polling import wait_until

START_S = 120.0
"""A process of ours takes seconds to start; several at once on two busy cores may take a minute."""

STOP_S = 60.0
"""Ray nodes end in two seconds each on idle cores, and the last statements follow."""

COMMAND_S = 120.0
"""For one command of ours: an interpreter starts for it, and it may wait for a notice of most of a minute."""

MACHINES = (
    Machine("head-1", "heads", "cpu", slots=0, head_slots=2),
    Machine("consumer-1", "north", "consumer", "RTX4090x1"),
    Machine("consumer-2", "south", "consumer", "RTX4090x1"),
    Machine("consumer-3", "west", "consumer", "RTX4090x1"),
    Machine("consumer-4", "east", "consumer", "RTX4090x1"),
    Machine("hall-1", "hall", "datacenter", "H100x1"),
)

SETTINGS = {
    # Warm from one job to the next, however long Ray's command takes to start on busy cores.
    "ORCH_IDLE_TEARDOWN_MS": "60000",
    # So that a member that is lost unseen was stated a moment before.
    "ORCH_STATEMENT_INTERVAL_MS": "2000",
    # Who gives way does so within seconds; on busy cores its agent and its own steps may take many.
    "ORCH_PREEMPTION_NOTICE_MS": "60000",
    # A test cannot wait for minutes until somebody has to.
    "ORCH_PREEMPTION_WAIT_MS": "1000",
    "ORCH_PREEMPTION_RUN_MS_MIN": "1000",
}


@dataclass(frozen=True)
class Node:
    """One member's Ray node, as its agent left it on disk."""

    worker: str
    folder: Path
    spec: NodeSpec

    @property
    def keeper_pid(self) -> int:
        """The process that holds the node; 0 where none ever did."""
        path = self.folder / KEEPER_LOCK_FILE
        return int(path.read_text() or "0") if path.exists() else 0

    @property
    def processes(self) -> frozenset[int]:
        """Its Ray processes, those of the job among them."""
        boxed = Box(self.spec.box).members() if self.spec.box is not None else set()
        return frozenset(marked_processes(self.spec.member_id) | boxed)

    @property
    def namespace_pid(self) -> int:
        """A process in the node's own network while it is up; 0 where it has none of its own."""
        status = read_record(self.folder / STATUS_FILE, NodeStatus)
        return status.namespace_pid if status else 0

    def pid_of(self, name: str) -> int:
        """The one process of the node whose program has this name; 0 where there is none."""
        for pid in self.processes:
            with contextlib.suppress(OSError):
                argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if Path(argv[0].decode(errors="replace")).name == name:
                    return pid
        return 0


@dataclass
class Network:
    """A control plane and agents, each to be started, interrupted, killed and started again."""

    # Short: Ray puts sockets below it, whose paths may have 107 characters.
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="on-")))
    addresses: Addresses = field(
        default_factory=lambda: Addresses(*(f"{LOOPBACK}:{port}" for port in free_ports(4)))
    )
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    """Everything that must never be seen, by what it is."""
    members: dict[str, Node] = field(default_factory=dict)
    """Every member that was ever looked at."""
    workers: dict[str, Machine] = field(default_factory=dict)
    log_starts: dict[str, int] = field(default_factory=dict)
    """Where in its log the present life of each process begins."""
    settings: dict[str, str] = field(default_factory=lambda: dict(SETTINGS))
    """The control plane's variables."""
    found_gpus: dict[str, dict[str, str]] = field(default_factory=dict)
    """By machine whose agent looks for GPUs itself: the variables that lead it, and its Ray nodes, to what it finds."""

    # ------------------------------------------------------------ where it stands

    @property
    def listens(self) -> Addresses:
        """Where the control plane listens, as its own machine sees it; ``addresses`` is how the tests get there."""
        return self.addresses

    def popen(
        self, name: str, argv: Sequence[str | Path], env: Mapping[str, str], output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start a command on the machine that has this name; ``env`` is added to what every child gets."""
        return subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=child_environment(env),
            start_new_session=True,
        )

    def agent_flags(self, machine: Machine) -> list[str]:
        """What every agent is told beside its machine's own."""
        return ["--cpus", "1", "--isolation", "none"]

    # ------------------------------------------------------------ processes

    @property
    def control_dir(self) -> Path:
        """The control plane's data."""
        return self.folder / "control"

    def log_of(self, name: str) -> Path:
        """Where a process writes; one file over all its lives."""
        return self.folder / f"{name}.log"

    def said(self, name: str) -> str:
        """What the present life of a process has written."""
        with self.log_of(name).open(errors="replace") as log:
            log.seek(self.log_starts[name])
            return log.read()

    def start_serve(self, *flags: str) -> None:
        """Start the control plane, on the data and the ports that it had before; return when it serves."""
        at = self.listens
        listen = ["--listen", at.control, "--session-listen", at.sessions]
        listen += ["--gateway", at.gateway, "--metrics", at.metrics]
        command = ["serve", "--data-dir", str(self.control_dir), *listen, *flags]
        process = self._start("serve", command, self.settings)
        wait_until(
            lambda: process.poll() is not None or self._serves(), what="the control plane", deadline_s=START_S
        )
        assert process.poll() is None, self.log_of("serve").read_text()
        self.secrets["admin token"] = (self.control_dir / "admin-token").read_text().strip()

    def start_agent(self, machine: Machine, *flags: str) -> None:
        """Offer a machine; where it has joined before, it is the same worker again.

        With ``flags`` it is a stranger's, who has no token from anybody.
        """
        data_dir = self.folder / machine.name
        command = ["worker", "join", "--control-plane", self.listens.control, "--name", machine.name]
        command += ["--data-dir", str(data_dir), *self.agent_flags(machine)]
        command += ["--slots", str(machine.slots), "--head-slots", str(machine.head_slots)]
        if machine.name not in self.found_gpus:
            command += ["--simulate", machine.simulate] if machine.simulate else ["--no-gpus"]
        extra = dict(self.found_gpus.get(machine.name, {}))
        command += flags
        if machine.name not in self.workers and not flags:
            secret = self.create_token(
                operator_pb2.TOKEN_ROLE_SUPPLIER, machine.supplier, head_host=machine.head_slots > 0
            )
            self.secrets[f"join token of {machine.name}"] = extra["ORCH_JOIN_TOKEN"] = secret
        self.workers[machine.name] = machine
        self._start(machine.name, command, extra)

    def kill(self, name: str) -> None:
        """As a power cut would, for this one process."""
        self.processes[name].kill()
        self.processes[name].wait()

    def interrupt(self, name: str) -> None:
        """Ctrl-C."""
        self.processes[name].send_signal(signal.SIGINT)

    def exit_code(self, name: str, deadline_s: float = STOP_S) -> int:
        """Wait for the end that was asked for."""
        return self.processes[name].wait(deadline_s)

    def _start(self, name: str, command: Sequence[str], extra: dict[str, str]) -> subprocess.Popen[bytes]:
        with self.log_of(name).open("ab") as output:
            self.log_starts[name] = output.tell()
            env = {"HOME": str(self.folder), **extra}
            process = self.popen(name, [BIN / "orch", *command], env, output)
        self.processes[name] = process
        return process

    def _serves(self) -> bool:
        if not all((self.control_dir / name).exists() for name in ("admin-token", "ca.pem")):
            return False
        with contextlib.suppress(grpc.RpcError), self.channel() as channel:
            request = health_pb2.HealthCheckRequest()
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=2.0)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        return False

    # ------------------------------------------------------------ the operator's side

    def channel(self) -> grpc.Channel:
        """A connection to the control plane; no proxy before loopback."""
        return open_channel(self.addresses.control, (self.control_dir / "ca.pem").read_bytes())

    def worker_channel(self, name: str) -> grpc.Channel:
        """A connection to the session listener that shows a worker's certificate."""
        files = ("trust.pem", "tls-key.pem", "certificate.pem")
        shown = [(self.folder / name / file).read_bytes() for file in files]
        options = [("grpc.ssl_target_name_override", SERVER_NAME), ("grpc.enable_http_proxy", 0)]
        return grpc.secure_channel(
            self.addresses.sessions, grpc.ssl_channel_credentials(*shown), options=options
        )

    def client(self) -> Client:
        """With the operator's token."""
        ca_file = self.control_dir / "ca.pem"
        return Client(Settings(self.addresses.control, self.secrets["admin token"], ca_file))

    def create_token(
        self, role: operator_pb2.TokenRole.ValueType, subject: str, *, head_host: bool = False
    ) -> str:
        """A new token's secret."""
        with self.client() as client:
            request = operator_pb2.CreateTokenRequest(role=role, subject=subject, head_host=head_host)
            return client.call(client.operator.CreateToken, request).secret

    def create_tenant(self, name: str) -> str:
        """A new tenant; the secret of its token."""
        with self.client() as client:
            client.call(client.operator.CreateTenant, operator_pb2.CreateTenantRequest(name=name))
        secret = self.secrets[f"token of {name}"] = self.create_token(operator_pb2.TOKEN_ROLE_TENANT, name)
        return secret

    def worker(self, name: str) -> operator_pb2.Worker:
        """A worker as the network sees it; empty where it cannot be seen."""
        with contextlib.suppress(CliError), self.client() as client:
            answer = client.call(client.operator.ListWorkers, operator_pb2.ListWorkersRequest())
            return next((one for one in answer.workers if one.name == name), operator_pb2.Worker())
        return operator_pb2.Worker()

    def await_live(self, names: Iterable[str]) -> None:
        """Until workers can be given work."""
        for name in names:
            wait_until(
                lambda name=name: self._is_live(name),  # type: ignore[misc]  # mypy takes no default in a lambda
                what=f"{name} to be live",
                deadline_s=START_S,
            )

    def _is_live(self, name: str) -> bool:
        assert self.processes[name].poll() is None, self.log_of(name).read_text()
        worker = self.worker(name)
        return worker.liveness == "live" and worker.connected and not worker.draining

    def orch(self, *arguments: str) -> tuple[int, str]:
        """`orch` as an operator runs it: exit code and all it said."""
        settings = {"ORCH_URL": self.addresses.control, "HOME": str(self.folder)}
        settings["ORCH_TOKEN_FILE"] = str(self.control_dir / "admin-token")
        done = subprocess.run(
            [str(BIN / "orch"), *arguments],
            env=child_environment(settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        return done.returncode, done.stdout

    # ------------------------------------------------------------ Ray nodes

    def nodes(self) -> list[Node]:
        """The members that are on disk now."""
        found = []
        for path in self.folder.glob(f"*/members/*/{SPEC_FILE}"):
            with contextlib.suppress(OSError):
                spec = read_record(path, NodeSpec)
                if spec is not None:
                    found.append(Node(path.parents[2].name, path.parent, spec))
                token = path.parent / SHARED_DIR / TOKEN_FILE
                if token.exists():
                    self.secrets[f"cluster token at {path.parent.name}"] = token.read_text()
        self.members |= {node.spec.member_id: node for node in found}
        return found

    def node_of(self, cluster_id: str, worker: str) -> Node:
        """The node of one worker in one cluster."""
        return next(
            node for node in self.nodes() if (node.spec.cluster_id, node.worker) == (cluster_id, worker)
        )

    def every_process(self) -> set[int]:
        """All that lives of the network: what was started here, keepers, and Ray's own."""
        nodes = [*self.nodes(), *self.members.values()]
        roots = {process.pid for process in self.processes.values() if process.poll() is None}
        with_nodes = roots.union(*(node.processes for node in nodes))
        keepers = {node.keeper_pid for node in nodes} - {0}
        return with_nodes | {pid for pid in keepers if is_keeper(pid)} | descendants(with_nodes)

    # ------------------------------------------------------------ the end

    def stop(self) -> list[str]:
        """End it all in the order in which an operator would; what was still there then, and is now ended."""
        agents = [name for name in self.processes if name != "serve"]
        remaining: list[str] = []
        try:
            self.nodes()
            for names in (agents, ["serve"]):
                remaining += self._end(names)
            remaining += self.left()
        finally:
            self.destroy()
        return remaining

    def left(self) -> list[str]:
        """What a network whose processes have ended must not leave, and did."""
        return [
            *(
                f"process {pid} of {node.worker}: {command_of(pid)}"
                for node in self.members.values()
                for pid in node.processes | ({node.keeper_pid} if is_keeper(node.keeper_pid) else set())
            ),
            *(f"folder {node.folder}" for node in self.members.values() if node.folder.exists()),
            *(
                f"temp dir {path}"
                for path in sorted({node.spec.temp_dir for node in self.members.values()} - {""})
                if Path(path).exists()
            ),
        ]

    def _end(self, names: Sequence[str]) -> list[str]:
        """Ctrl-C; those that do not end in order are named, with None for a code where they stay."""
        running = [name for name in names if self.processes[name].poll() is None]
        for name in running:
            self.interrupt(name)
        with contextlib.suppress(AssertionError):
            wait_until(
                lambda: all(self.processes[name].poll() is not None for name in running),
                what="Ctrl-C to be obeyed",
                deadline_s=STOP_S,
            )
        codes = {name: self.processes[name].poll() for name in running}
        return [f"{name} with exit code {code} after Ctrl-C" for name, code in codes.items() if code != 0]

    def destroy(self) -> None:
        """End it all at once, whatever state it is in, and remove its files."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        self.nodes()
        for node in self.members.values():
            if is_keeper(node.keeper_pid):
                os.kill(node.keeper_pid, signal.SIGKILL)
            sweep(node.spec.member_id)
            if node.spec.owns_temp_dir and node.spec.temp_dir:
                shutil.rmtree(node.spec.temp_dir, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def command_of(pid: int) -> str:
    """A process's command line; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def tell(pid: int, number: signal.Signals) -> None:
    """Send a signal to one process; one that has ended by itself meanwhile needs none.

    Whoever looked for a process and found none has 0, which to the kernel is the whole group of whoever asks.
    """
    assert pid > 0, "there is no such process"
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def is_keeper(pid: int) -> bool:
    """Whether a process with this id is a keeper, and not another one that got its number."""
    return pid > 0 and "orchestrator.agent.keeper" in command_of(pid)


@contextlib.contextmanager
def running(network: Network, machines: Sequence[Machine]) -> Iterator[Network]:
    """A network with these machines, all of them live; fails where anything of it is left in the end."""
    try:
        network.start_serve()
        for machine in machines:
            network.start_agent(machine)
        network.await_live(machine.name for machine in machines)
        yield network
        remaining = network.stop()
    except BaseException:
        network.destroy()
        raise
    assert remaining == [], "left behind by a stopped network"
