"""A control plane in a process of its own, and thousands of agents in this one that really come by mutual TLS.

Each agent is the real session of the real agent (its connection, its backoff, its heartbeats and measurements) around
a machine that holds nothing. Workers are joined beforehand, straight in the database: joining is not what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks import fleet
from benchmarks.report import FigureError, note
from orchestrator.adapters import clock, peers
from orchestrator.adapters.authority import DAY_MS, Authority
from orchestrator.adapters.files import make_folder
from orchestrator.adapters.keys import Keys
from orchestrator.agent.connection import Endpoint, GrpcControlPlane
from orchestrator.agent.daemon import AGENT_VERSION, AgentClock
from orchestrator.agent.health import LOOK_S, LOOKS_PER_REPORT
from orchestrator.agent.journal import Record
from orchestrator.agent.session import Greeter, Sessions, bid_farewell
from orchestrator.api.v1 import telemetry_pb2, worker_pb2
from orchestrator.control.inventory_wire import inventory_to

if TYPE_CHECKING:
    from orchestrator.agent.ports import ControlChannel

START_S = 60.0
"""Far above the seconds it takes, for machines that are busy."""
STOP_S = 20.0
TELEMETRY_S = LOOK_S * LOOKS_PER_REPORT
ALL_LIVE_S = 120.0
"""Longer than any figure may take: whoever is not there by then will not come."""
POLL_S = 0.02
FILES_PER_AGENT = 4
"""Descriptors an agent takes here, with some to spare; the server takes fewer."""
DOORS = ("listen", "session-listen", "gateway", "metrics")
ENDPOINT_OF = {"listen": "grpc", "session-listen": "session", "gateway": "gateway", "metrics": "metrics"}


# ---------------------------------------------------------------- the control plane


class ControlProcess:
    """`orch serve` on one folder; every start listens where the first one did."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoints: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def trust_pem(self) -> bytes:
        """The authorities that its listeners are certified by."""
        return Path(self.endpoints["ca_file"]).read_bytes()

    @property
    def usage(self) -> psutil.Process:
        """For memory and processor time."""
        if self._process is None:
            raise FigureError("the control plane was not started")
        return psutil.Process(self._process.pid)

    @property
    def cpu_s(self) -> float:
        """Processor time since its start."""
        used = self.usage.cpu_times()
        return float(used.user + used.system)

    def start(self) -> None:
        """Start, and return at once."""
        (self.folder / "endpoints.json").unlink(missing_ok=True)
        doors = []
        for name in DOORS:
            known = self.endpoints.get(ENDPOINT_OF[name], "127.0.0.1:0")
            doors += [f"--{name}", known.removeprefix("http://").removesuffix("/metrics")]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ORCH_")}
        with (self.folder / "serve.log").open("ab") as errors:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "orchestrator.cli.main", "serve"),
                    *("--data-dir", str(self.folder), *doors),
                ],
                env=environment,
                stderr=errors,
            )

    async def serving(self) -> None:
        """Wait until it listens."""
        file, until_s = self.folder / "endpoints.json", time.monotonic() + START_S
        while not file.exists():
            if self._process is None or self._process.poll() is not None or time.monotonic() > until_s:
                said = (self.folder / "serve.log").read_text()[-400:]
                raise FigureError(f"the control plane did not start: {said}")
            await asyncio.sleep(POLL_S)
        self.endpoints = json.loads(file.read_text())

    def kill(self) -> None:
        """As a power cut would, for this process."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Ctrl-C."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def suspicions(self) -> int:
        """How often any worker became suspect or lost, by the log of events."""
        database = sqlite3.connect(f"file:{self.folder / 'control.db'}?mode=ro", uri=True)
        with contextlib.closing(database):
            found = database.execute("SELECT body FROM events WHERE type = 'LivenessChanged'").fetchall()
        return sum(json.loads(body)["liveness"] in ("suspect", "lost") for (body,) in found)

    def metrics(self) -> bytes:
        """The metrics page."""
        token = Path(self.endpoints["metrics_token_file"]).read_text().strip()
        request = urllib.request.Request(  # noqa: S310 -- our own
            self.endpoints["metrics"], headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=START_S) as answer:  # noqa: S310 -- our own
            found: bytes = answer.read()
        return found

    def commits(self) -> dict[float, float]:
        """Commits so far by upper bound in seconds, cumulative, as the metrics page shows them."""
        lines = self.metrics().decode().splitlines()
        name = "orchestrator_loop_commit_seconds_bucket"
        buckets = (line.removeprefix(name) for line in lines if line.startswith(name))
        return {float(text.split('"')[1]): float(text.rpartition(" ")[2]) for text in buckets}


def quantile_s(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """From two readings of a histogram, the value not exceeded by a share, interpolated within its bucket."""
    counts = {bound: after[bound] - before.get(bound, 0.0) for bound in sorted(after)}
    wanted = share * max(counts.values())
    low_s = passed = 0.0
    for bound_s, count in counts.items():
        if count >= wanted and count > passed:
            high_s = low_s if bound_s == float("inf") else bound_s
            return low_s + (high_s - low_s) * (wanted - passed) / (count - passed)
        low_s, passed = bound_s, count
    return 0.0


# ---------------------------------------------------------------- agents


class _Door:
    """One endpoint for ever: certificates of a day outlive every figure."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def endpoint(self) -> Endpoint:
        return self._endpoint

    async def failed(self, reason: str) -> NoReturn:
        raise ConnectionError(reason)

    def accepted(self) -> None:
        pass


class _Memory:
    """A journal that forgets: a disk that two thousand agents share would be the clients' figure."""

    def load(self) -> Record:
        return Record()

    def save(self, record: Record) -> None:
        pass


class Idle:
    """What a session is for where a machine holds nothing: it reports so after each desired list."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._seen_version = 0
        self._told = asyncio.Event()
        self.begun_s = 0.0
        """When the newest session began."""
        self.acknowledged_s = 0.0
        """When the newest heartbeat was acknowledged."""

    async def begun(self, _channel: ControlChannel, _welcome: worker_pb2.Welcome) -> None:
        """As Listener.begun."""
        self.begun_s = time.monotonic()

    def acknowledged(self, _sent_boottime_ms: int, _welcome: worker_pb2.Welcome) -> None:
        """As Listener.acknowledged."""
        self.acknowledged_s = time.monotonic()

    def take(self, message: worker_pb2.SessionResponse) -> None:
        """As Listener.take."""
        if message.HasField("farewell"):
            bid_farewell(message.farewell)
        if message.HasField("desired"):
            self._record.term = max(self._record.term, message.desired.term)
            self._seen_version = message.desired.version
            self._told.set()

    async def attend(self, channel: ControlChannel) -> None:
        """As Attendant.attend."""
        while True:
            await self._told.wait()
            self._told.clear()
            observed = worker_pb2.Observed(seen_version=self._seen_version)
            await channel.send(worker_pb2.SessionRequest(observed=observed))


class _Reporter:
    """The listener alone: an attendant hears the same messages, and once is enough."""

    def __init__(self, idle: Idle) -> None:
        self._idle = idle
        self.attend = idle.attend

    def take(self, message: worker_pb2.SessionResponse) -> None:
        pass


@dataclass(slots=True)
class Member:
    """One worker's keys and certificate, and what it remembers."""

    number: int
    statement_key: Ed25519PrivateKey = field(repr=False)
    tls_key_pem: bytes = field(repr=False)
    chain_pem: bytes = b""
    record: Record = field(default_factory=Record)


class CrowdAgent:
    """One agent that is connected whenever it can be."""

    def __init__(self, member: Member, address: str, trust_pem: bytes) -> None:
        self.idle = Idle(member.record)
        endpoint = Endpoint(address, trust_pem, member.tls_key_pem, member.chain_pem)
        self._control = GrpcControlPlane(_Door(endpoint))
        greeter = Greeter(
            fleet.worker_id_of(member.number),
            AGENT_VERSION,
            inventory_to(fleet.inventory(member.number)),
            member.statement_key,
            _Memory(),
            member.record,
            AgentClock(),
        )
        reporter = _Reporter(self.idle)
        self._sessions = Sessions(self._control, greeter, AgentClock(), self.idle, (reporter,))

    def live_since(self, at_s: float) -> float | None:
        """When a session that began after ``at_s`` had its newest heartbeat acknowledged; None where none had."""
        idle = self.idle
        return idle.acknowledged_s if at_s < idle.begun_s <= idle.acknowledged_s else None

    async def run(self) -> None:
        """Until cancelled."""
        measuring = asyncio.create_task(self._report())
        try:
            await self._sessions.run()
        finally:
            measuring.cancel()
            await asyncio.gather(measuring, return_exceptions=True)
            await self._control.close()

    async def cut(self) -> None:
        """The connection breaks."""
        await self._control.close()

    async def _report(self) -> None:
        sample = telemetry_pb2.ReportRequest(cpu_utilization_ratio=0.1, memory_used_bytes=1 << 30)
        while True:
            await asyncio.sleep(clock.jitter(TELEMETRY_S))
            if self._sessions.channel is not None:
                with contextlib.suppress(ConnectionError):
                    await self._control.report(sample)


class Crowd:
    """All agents of one network."""

    def __init__(self, agents: list[CrowdAgent]) -> None:
        self.agents = agents

    async def all_live(self, since_s: float) -> float:
        """Wait until every agent is live in a session begun after then: the seconds it took the last one."""
        until_s = time.monotonic() + ALL_LIVE_S
        waiting = list(self.agents)
        while waiting:
            waiting = [agent for agent in waiting if agent.live_since(since_s) is None]
            if waiting and time.monotonic() > until_s:
                raise FigureError(f"{len(waiting)} agents are not live after {ALL_LIVE_S:g} s")
            await asyncio.sleep(POLL_S)
        return time.monotonic() - since_s

    async def cut(self) -> None:
        """Every connection breaks at once."""
        await asyncio.gather(*(agent.cut() for agent in self.agents))


@contextlib.asynccontextmanager
async def gathered(members: list[Member], control: ControlProcess) -> AsyncIterator[Crowd]:
    """Agents of all members, coming at once."""
    trust_pem = control.trust_pem
    agents = [CrowdAgent(member, control.endpoints["session"], trust_pem) for member in members]
    tasks = [asyncio.create_task(agent.run()) for agent in agents]
    try:
        yield Crowd(agents)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def prepare(folder: Path, count: int) -> list[Member]:
    """A network whose workers have all joined, and their keys."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most < count * FILES_PER_AGENT:
        raise FigureError(f"{count} agents need ulimit -n {count * FILES_PER_AGENT}, and it is {most}")
    note(f"P7: {count:,} workers with certificates of their own")
    make_folder(folder)
    now_ms = clock.SystemClock().now().wall_ms
    Keys(folder, founded=False)
    authority = Authority(folder, now_ms=now_ms, founded=False)
    made = list(_members(count, authority, now_ms))
    fleet.build(folder / "control.db", count, lambda number: made[number][1])
    return [member for member, _ in made]


def _members(count: int, authority: Authority, now_ms: int) -> Iterator[tuple[Member, fleet.Identity]]:
    for number in range(count):
        statement_key, tls_key = Ed25519PrivateKey.generate(), peers.new_tls_key()
        name = peers.spiffe_id(fleet.NETWORK_ID, fleet.supplier_id_of(number), fleet.worker_id_of(number))
        issued = authority.issue_worker(peers.make_csr(tls_key), name, now_ms, DAY_MS // 2)
        member = Member(number, statement_key, peers.key_to_pem(tls_key), issued.chain_pem)
        public = statement_key.public_key().public_bytes_raw().hex()
        yield member, fleet.Identity(public, peers.key_sha256(tls_key.public_key()))
