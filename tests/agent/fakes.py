"""What an agent meets outside, in memory: nodes, a head, a control plane, a journal and a clock."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from orchestrator.adapters.node_records import HeadAddress, NodeOrder, NodeStatus, OverlayEntry, Prepared
from orchestrator.agent.journal import Record
from orchestrator.agent.ports import (
    ControlChannel,
    DriverStatus,
    HeadUnreachableError,
    LogChunk,
    NodeListed,
)
from orchestrator.api.v1 import common_pb2, worker_pb2
from orchestrator.core.ids import Now
from tests.polling import wait_until_async

DEADLINE_S = 60.0
TTL_MS = 60_000
HOST = "host-1"


class FakeClock:
    """A boot clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.boot = "boot-1"
        self.wall_ms = 1_700_000_000_000

    def now(self) -> Now:
        return Now(self.wall_ms, self.now_ms, self.boot)

    def boottime_ms(self) -> int:
        return self.now_ms

    def boot_id(self) -> str:
        return self.boot

    def jitter(self, base_s: float) -> float:
        return min(base_s, 0.01)


class FakeJournal:
    """Keeps what was saved, as bytes: what was only changed in memory is lost with its process."""

    def __init__(self) -> None:
        self.saved = msgspec.json.encode(Record())

    def load(self) -> Record:
        return msgspec.json.decode(self.saved, type=Record)

    def save(self, record: Record) -> None:
        self.saved = msgspec.json.encode(record)


class FakeNodes:
    """NodeDriver whose nodes do what a test says; they outlive the agent like real ones."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeStatus] = {}
        self.calls: list[tuple[str, str]] = []
        self.deadlines_ms: dict[str, int] = {}
        self.heads: dict[str, HeadAddress | None] = {}
        self.orders: dict[str, NodeOrder] = {}
        self.entries: dict[str, list[OverlayEntry | None]] = {}
        """What each member was told of the overlay, at its start and since."""
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.prepare_error: Exception | None = None
        self.enter_error: Exception | None = None
        self.notices: dict[str, bytes] = {}
        self.notify_error: Exception | None = None

    def become(self, member_id: str, phase: str, **known: object) -> None:
        status = self.nodes.get(member_id, NodeStatus("none"))
        self.nodes[member_id] = msgspec.convert(
            msgspec.to_builtins(status) | {"phase": phase} | known, NodeStatus
        )

    def come_up(self, member_id: str) -> None:
        self.become(member_id, "up", gcs_address="10.0.0.1:1", node_ip="10.0.0.1", temp_dir="/t")

    async def prepare(self, order: NodeOrder) -> Prepared:
        member_id = order.member_id
        self.calls.append(("prepare", member_id))
        self.orders[member_id] = order
        await asyncio.sleep(0)
        if self.prepare_error is not None:
            raise self.prepare_error
        if member_id not in self.nodes:
            self.become(member_id, "prepared")
        return Prepared({"gcs": 7}, "10.0.0.1", HOST)

    async def start(
        self,
        member_id: str,
        *,
        head: HeadAddress | None,
        cluster_token: str,
        deadline_boottime_ms: int,
        overlay: OverlayEntry | None = None,
    ) -> None:
        self.calls.append(("start", member_id))
        self.heads[member_id] = head
        self.entries[member_id] = [overlay]
        self.deadlines_ms[member_id] = deadline_boottime_ms
        self.become(member_id, "starting")

    def enter_overlay(self, member_id: str, overlay: OverlayEntry) -> None:
        self.calls.append(("enter_overlay", member_id))
        if self.enter_error is not None:
            raise self.enter_error
        self.entries.setdefault(member_id, []).append(overlay)

    def observe(self, member_id: str) -> NodeStatus:
        return self.nodes.get(member_id, NodeStatus("none"))

    def renew(self, member_id: str, deadline_boottime_ms: int) -> None:
        if member_id not in self.nodes:
            raise KeyError(member_id)
        self.deadlines_ms[member_id] = deadline_boottime_ms

    def notify(self, member_id: str, notice: bytes) -> None:
        if self.notify_error is not None:
            raise self.notify_error
        if notice:
            self.notices[member_id] = notice
        else:
            self.notices.pop(member_id, None)

    async def stop(self, member_id: str) -> None:
        self.calls.append(("stop", member_id))
        await self.may_stop.wait()
        self.nodes.pop(member_id, None)

    def discover(self) -> Sequence[str]:
        return sorted(self.nodes)


class FakeHead:
    """HeadClient over a dict of drivers."""

    def __init__(self) -> None:
        self.drivers: dict[str, DriverStatus] = {}
        self.logs: dict[str, bytes] = {}
        self.listed = [NodeListed("m-0", 1.0, 1.0)]
        self.clean = True
        self.submitted: list[tuple[str, dict[str, Path]]] = []
        self.stopped: list[str] = []
        self.working: set[str] = set()
        self.drained: list[tuple[str, str, int]] = []
        self.unreachable = False
        self.submit_error: Exception | None = None
        self.closed = False

    def become(self, attempt_id: str, status: str, exit_code: int | None = None, message: str = "") -> None:
        self.drivers[attempt_id] = DriverStatus(status, message, exit_code)

    def _reach(self) -> None:
        if self.unreachable:
            raise HeadUnreachableError("no answer")

    async def nodes(self) -> Sequence[NodeListed]:
        self._reach()
        return list(self.listed)

    async def is_clean(self) -> bool:
        self._reach()
        return self.clean

    async def submit(self, attempt: worker_pb2.DesiredAttempt, packages: Mapping[str, Path]) -> None:
        self._reach()
        if self.submit_error is not None:
            raise self.submit_error
        self.submitted.append((attempt.attempt_id, dict(packages)))
        self.become(attempt.attempt_id, "RUNNING")

    async def status(self, attempt_id: str) -> DriverStatus | None:
        self._reach()
        return self.drivers.get(attempt_id)

    async def stop(self, attempt_id: str) -> None:
        self._reach()
        self.stopped.append(attempt_id)
        self.become(attempt_id, "STOPPED", message="stopped")

    async def drain(self, member_id: str, reason: str, remaining_ms: int) -> bool:
        self._reach()
        if member_id not in self.working:
            return False
        self.drained.append((member_id, reason, remaining_ms))
        return True

    def read_log(self, attempt_id: str, offset: int, size_max: int) -> bytes:
        return self.logs.get(attempt_id, b"")[offset : offset + size_max]

    async def close(self) -> None:
        self.closed = True


class FakeChannel:
    """The agent's end of a session, and a test's end of it."""

    def __init__(self) -> None:
        self._down: asyncio.Queue[worker_pb2.SessionResponse | None] = asyncio.Queue()
        self.sent: list[worker_pb2.SessionRequest] = []
        self.broken = False
        self.closed = False

    async def send(self, message: worker_pb2.SessionRequest) -> None:
        if self.broken:
            raise ConnectionError("reset")
        copy = worker_pb2.SessionRequest()
        copy.CopyFrom(message)
        self.sent.append(copy)

    async def receive(self) -> worker_pb2.SessionResponse | None:
        message = await self._down.get()
        if self.broken:
            raise ConnectionError("reset")
        return message

    async def close(self) -> None:
        self.closed = True

    def answer(self, **message: object) -> None:
        self._down.put_nowait(worker_pb2.SessionResponse(**message))  # type: ignore[arg-type]  # one of the kinds

    def end(self) -> None:
        self._down.put_nowait(None)

    def cut(self) -> None:
        self.broken = True
        self._down.put_nowait(None)

    def of_kind(self, kind: str) -> list[worker_pb2.SessionRequest]:
        return [message for message in self.sent if message.WhichOneof("message") == kind]

    async def await_kind(self, kind: str, count: int = 1) -> worker_pb2.SessionRequest:
        await wait_until_async(
            lambda: len(self.of_kind(kind)) >= count, what=f"{count} {kind}", deadline_s=DEADLINE_S
        )
        return self.of_kind(kind)[count - 1]

    async def admit(self, term: int = 1, **welcome: object) -> worker_pb2.Hello:
        """Play the control plane's side of the handshake."""
        self.answer(challenge=worker_pb2.Challenge(nonce=b"n" * 32))
        hello = (await self.await_kind("hello")).hello
        settings: dict[str, object] = {
            "term": term,
            "heartbeat_interval_ms": 20,
            "lease_ttl_ms": TTL_MS,
            "statement_interval_ms": 3_600_000,
            "session_token": f"token-{term}",
            "network_id": "net_1",
        }
        self.answer(welcome=worker_pb2.Welcome(**(settings | welcome)))  # type: ignore[arg-type]  # as above
        return hello

    async def acknowledge_heartbeat(self) -> None:
        beat = await self.await_kind("heartbeat")
        self.answer(heartbeat_ack=worker_pb2.HeartbeatAck(sequence=beat.heartbeat.sequence))


class FakeAttendant:
    """Attendant that sends one message as each session opens, and keeps what it sees."""

    def __init__(self, sends: worker_pb2.SessionRequest | None = None) -> None:
        self._sends = sends
        self.seen: list[worker_pb2.SessionResponse] = []

    async def attend(self, channel: ControlChannel) -> None:
        if self._sends is not None:
            await channel.send(self._sends)

    def take(self, message: worker_pb2.SessionResponse) -> None:
        self.seen.append(message)


class FakeControl:
    """ControlPlane port: each session is a FakeChannel that the test plays."""

    def __init__(self) -> None:
        self.channels: list[FakeChannel] = []
        self.away = False
        self.tokens: list[str] = []
        self.chunks: list[LogChunk] = []
        self.stored: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.fetch_error: Exception | None = None

    async def open(self) -> FakeChannel:
        if self.away:
            raise ConnectionError("connection refused")
        self.channels.append(FakeChannel())
        return self.channels[-1]

    async def session(self, number: int = 1) -> FakeChannel:
        """The n-th session, once the agent has opened it."""
        await wait_until_async(
            lambda: len(self.channels) >= number, what=f"session {number}", deadline_s=DEADLINE_S
        )
        return self.channels[number - 1]

    def authorise(self, session_token: str) -> None:
        self.tokens.append(session_token)

    async def ship_log(self, chunk: LogChunk) -> tuple[int, bool]:
        if self.away:
            raise ConnectionError("connection refused")
        self.chunks.append(chunk)
        kept = self.stored.get(chunk.attempt_id, b"")
        if chunk.offset <= len(kept):
            kept += chunk.data[len(kept) - chunk.offset :]
        self.stored[chunk.attempt_id] = kept
        return len(kept), chunk.final and len(kept) >= chunk.offset + len(chunk.data)

    async def fetch_package(self, attempt_id: str, sha256: str, into: Path) -> None:
        if self.fetch_error is not None:
            raise self.fetch_error
        self.fetched.append(sha256)
        await asyncio.to_thread(into.write_bytes, b"zip")


def desired_member(member_id: str, *devices: str, **fields: object) -> worker_pb2.DesiredMember:
    """A member that should run, alone unless the fields say otherwise."""
    settings: dict[str, object] = {
        "cluster_id": "c-1",
        "fence": common_pb2.Fence(term=1, generation=1),
        "role": worker_pb2.MEMBER_ROLE_SOLO,
        "stage": worker_pb2.MEMBER_STAGE_RUN,
        "cluster_token": "secret",
    }
    return worker_pb2.DesiredMember(
        member_id=member_id,
        device_ids=devices,
        **(settings | fields),  # type: ignore[arg-type]  # a test names fields as the proto does
    )


def lease(lease_id: str, *devices: str) -> worker_pb2.DesiredLease:
    return worker_pb2.DesiredLease(lease_id=lease_id, attempt_id="a-1", job_id="j-1", device_ids=devices)


def gpu(device_id: str) -> common_pb2.Device:
    return common_pb2.Device(device_id=device_id, kind=common_pb2.DEVICE_KIND_GPU, model="RTX4090")


async def settled(turns: int = 20) -> None:
    """Let every task that can run do so."""
    for _ in range(turns):
        await asyncio.sleep(0)
