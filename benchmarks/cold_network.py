"""A network that keeps no cluster warm, and the log of what happened in it between a submission and its first line."""

from __future__ import annotations

import json
import re
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

from benchmarks.report import FigureError
from deploy.local.ports import free_ports
from examples.demo.network import Machine, Network
from examples.demo.operations import create_tenant, operator_client, wait_serving
from examples.demo.report import DemoFailed, Progress
from orchestrator.adapters import codec
from orchestrator.api.v1 import operator_pb2
from orchestrator.cli.client import Client
from orchestrator.cli.errors import CliError
from orchestrator.core import messages as m
from orchestrator.core.clusters import ClusterPhase, MemberRole

IDLE_TEARDOWN_MS = 10
"""The least there is: a cluster goes with its job."""

LIVE_DEADLINE_S = 90.0
GONE_DEADLINE_S = 60.0
POLL_S = 0.1
REST_S = 1.0
"""After a cluster has gone: its last log and receipt are written, its memory is given back."""

OUTWARD = ("198.51.100.1", 9)
"""Nobody's address: what the machine would use to get there is its own. Nothing is sent."""

AGENT_LINE = re.compile(r'"event": "(?P<event>member_starting|attempt_submitted)"')

STAGES = (
    "accepted",
    "planned",
    "prepared",
    "head told to start",
    "head up",
    "last member told to start",
    "members up",
    "ready",
    "handed to Ray",
    "running",
)
"""In the order in which they are passed."""


class ColdNetwork(Network):
    """The demo's network, its machines boxed or not, without warm clusters."""

    def __init__(self, runtimes_dir: Path | None) -> None:
        """``runtimes_dir`` where its members are boxed, and None where they are bare."""
        super().__init__()
        self.runtimes_dir = runtimes_dir
        # Overlay nodes do not speak over loopback.
        self._overlay = f"{own_address()}:{free_ports(1)[0]}" if runtimes_dir else "none"

    def start_serve(self) -> None:
        """As the demo does it, save for the time that an idle cluster is kept, and the overlay."""
        config = self.folder / "serve.toml"
        config.write_text(f"idle_teardown_ms = {IDLE_TEARDOWN_MS}\n")
        command = ["serve", "--config", str(config), "--data-dir", str(self.folder / "control")]
        command += ["--listen", self.addresses.control, "--session-listen", self.addresses.sessions]
        command += ["--gateway", self.addresses.gateway, "--metrics", self.addresses.metrics]
        self._serve = self._start("serve", [*command, "--overlay-listen", self._overlay], {})

    def start_agent(self, machine: Machine, join_token: str) -> None:
        """As the demo does it, save for the isolation."""
        command = ["worker", "join", "--control-plane", self.addresses.control, "--name", machine.name]
        command += ["--token-file", str(self.write_secret(f"{machine.name}.token", join_token))]
        command += ["--slots", str(machine.slots), "--head-slots", str(machine.head_slots), "--cpus", "1"]
        command += ["--data-dir", str(self.folder / machine.name)]
        command += ["--simulate", machine.simulate] if machine.simulate else ["--no-gpus"]
        if self.runtimes_dir is None:
            command += ["--isolation", "none"]
        else:
            command += ["--isolation", "box", "--runtimes-dir", str(self.runtimes_dir)]
        self._agents.append(self._start(machine.name, command, {}))

    def wait_gone(self) -> None:
        """Until every cluster that there ever was is closed and no machine holds anything of one."""
        deadline_s = time.monotonic() + GONE_DEADLINE_S
        while self._clusters_open() or any(self.folder.glob("*/members/*")):
            self.check_alive()
            if time.monotonic() > deadline_s:
                raise FigureError("the cluster of the last run does not go")
            time.sleep(POLL_S)
        time.sleep(REST_S)

    def last_version(self) -> int:
        """Of the log of events."""
        with self._database() as database:
            return int(database.execute("SELECT coalesce(max(version), 0) FROM events").fetchone()[0])

    def stages(self, after_version: int) -> dict[str, float]:
        """When each of STAGES was passed since then, in seconds of the wall clock."""
        with self._database() as database:
            rows = database.execute(
                "SELECT at_ms, type, type_version, body FROM events WHERE version > ? ORDER BY version",
                (after_version,),
            ).fetchall()
        events = [
            (at_ms / 1000, codec.decode_event(kind, number, body)) for at_ms, kind, number, body in rows
        ]
        return stages_of(events) | self._stages_of_agents(events)

    def clusters(self, after_version: int) -> int:
        """How many were begun since then."""
        query = "SELECT count(*) FROM events WHERE version > ? AND type = 'ClusterPlanned'"
        with self._database() as database:
            return int(database.execute(query, (after_version,)).fetchone()[0])

    def _clusters_open(self) -> int:
        with self._database() as database:
            (count,) = database.execute(
                "SELECT count(*) FILTER (WHERE type = 'ClusterPlanned')"
                " - count(*) FILTER (WHERE type = 'ClusterClosed') FROM events"
            ).fetchone()
        return int(count)

    def _database(self) -> closing[sqlite3.Connection]:
        file = self.folder / "control" / "control.db"
        return closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True))

    def _stages_of_agents(self, events: list[tuple[float, m.Event]]) -> dict[str, float]:
        """What only the agents' own logs tell."""
        heads = {
            str(member.member_id)
            for _, event in events
            if isinstance(event, m.ClusterPlanned)
            for member in event.members
            if member.role is not MemberRole.MEMBER
        }
        stages: dict[str, float] = {}
        for child in self._agents:
            for line in child.log.read_text(errors="replace").splitlines():
                if not AGENT_LINE.search(line):
                    continue
                entry = json.loads(line)
                at_s = datetime.fromisoformat(entry["timestamp"]).timestamp()
                if not events or at_s < events[0][0]:
                    continue
                if entry["event"] == "attempt_submitted":
                    name = "handed to Ray"
                else:
                    name = (
                        "head told to start" if entry["member_id"] in heads else "last member told to start"
                    )
                stages[name] = max(at_s, stages.get(name, 0.0))
        return stages


def stages_of(events: list[tuple[float, m.Event]]) -> dict[str, float]:
    """What the log of events tells of STAGES; of what happens to several members, the last counts."""
    stages: dict[str, float] = {}
    for at_s, event in events:
        match event:
            case m.JobSubmitted():
                stages["accepted"] = at_s
            case m.ClusterPlanned():
                stages["planned"] = at_s
            case m.ClusterAdvanced(phase=ClusterPhase.STARTING_HEAD):
                stages["prepared"] = at_s
            case m.ClusterAdvanced(phase=ClusterPhase.JOINING):
                stages["head up"] = at_s
            case m.MemberUp():
                stages["members up"] = at_s
            case m.ClusterReady():
                stages["ready"] = at_s
            case m.AttemptStarted():
                stages["running"] = at_s
            case _:
                pass
    return stages


@contextmanager
def cold_network(
    machines: tuple[Machine, ...], runtimes_dir: Path | None
) -> Iterator[tuple[ColdNetwork, Mapping[str, str]]]:
    """The network with every machine live, and what Ray's CLI is told to use it; all of it is ended afterwards."""
    network = ColdNetwork(runtimes_dir)
    try:
        with Progress(to_stderr=True) as progress:
            network.start_serve()
            wait_serving(network, progress)
        with operator_client(network) as client:
            _join(client, network, machines)
            token = create_tenant(client)
        yield (
            network,
            {
                "RAY_ADDRESS": f"http://{network.addresses.gateway}",
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": token,
            },
        )
    except (DemoFailed, CliError, OSError) as error:
        raise FigureError(f"the network does not stand: {error}") from error
    finally:
        network.stop()


def own_address() -> str:
    """This machine's own, by which its processes reach each other."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(OUTWARD)
        except OSError:
            raise FigureError(
                "this machine has no address but loopback, which an overlay cannot use"
            ) from None
        return str(probe.getsockname()[0])


def _join(client: Client, network: ColdNetwork, machines: tuple[Machine, ...]) -> None:
    for machine in machines:
        request = operator_pb2.CreateTokenRequest(
            request_id=f"bench-{machine.name}",
            role=operator_pb2.TOKEN_ROLE_SUPPLIER,
            subject=machine.supplier,
            head_host=machine.head_slots > 0,
        )
        network.start_agent(machine, client.call(client.operator.CreateToken, request).secret)
    deadline_s = time.monotonic() + LIVE_DEADLINE_S
    while True:
        workers = client.call(client.operator.ListWorkers, operator_pb2.ListWorkersRequest()).workers
        if sum(worker.liveness == "live" and worker.connected for worker in workers) == len(machines):
            return
        network.check_alive()
        if time.monotonic() > deadline_s:
            raise FigureError(f"the workers were not live within {LIVE_DEADLINE_S:g} s")
        time.sleep(POLL_S)
