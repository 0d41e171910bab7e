"""What the agent needs from outside, a Protocol each; the daemon brings real parts, the simulator its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from orchestrator.adapters.node_records import (
        HeadAddress,
        NodeOrder,
        NodeStatus,
        OverlayEntry,
        Prepared,
    )
    from orchestrator.agent.journal import Record
    from orchestrator.api.v1 import worker_pb2
    from orchestrator.core.ids import Now


class RefusedForeverError(Exception):
    """The control plane said that coming back is pointless until the supplier acts."""


class NodeDriver(Protocol):
    """Starts, watches and ends Ray nodes; every call may be repeated."""

    async def prepare(self, order: NodeOrder) -> Prepared: ...

    async def start(
        self,
        member_id: str,
        *,
        head: HeadAddress | None,
        cluster_token: str,
        deadline_boottime_ms: int,
        overlay: OverlayEntry | None = None,
    ) -> None: ...

    def enter_overlay(self, member_id: str, overlay: OverlayEntry) -> None:
        """Have a member's node use a renewed certificate, or shut somebody out; the same again does nothing."""

    def observe(self, member_id: str) -> NodeStatus: ...

    def renew(self, member_id: str, deadline_boottime_ms: int) -> None: ...

    def notify(self, member_id: str, notice: bytes) -> None:
        """Put a notice where the node's processes look for it; an empty one takes it away."""

    async def stop(self, member_id: str) -> None: ...

    def discover(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class NodeListed:
    """One alive node as the head lists it."""

    member_id: str
    gpus: float
    cpus: float


@dataclass(frozen=True, slots=True)
class DriverStatus:
    """How a job's driver stands in Ray."""

    status: str
    message: str
    exit_code: int | None


class HeadUnreachableError(Exception):
    """The head does not answer now; it may a moment later."""


class HeadRefusedError(Exception):
    """The head will not run this attempt, however often it is asked."""


class HeadClient(Protocol):
    """Ray's own API beside one head. Every call may raise HeadUnreachableError."""

    async def nodes(self) -> Sequence[NodeListed]: ...

    async def is_clean(self) -> bool: ...

    async def submit(self, attempt: worker_pb2.DesiredAttempt, packages: Mapping[str, Path]) -> None:
        """Start the attempt unless Ray knows it. Raises HeadRefusedError. ``packages`` maps URI to file."""

    async def status(self, attempt_id: str) -> DriverStatus | None: ...

    async def stop(self, attempt_id: str) -> None: ...

    async def drain(self, member_id: str, reason: str, remaining_ms: int) -> bool:
        """Tell Ray that a member's node will be preempted; False where it cannot be told yet."""

    def read_log(self, attempt_id: str, offset: int, size_max: int) -> bytes:
        """Bytes of the driver's log from ``offset`` on; empty where there are no more yet."""

    async def close(self) -> None: ...


class HeadFactory(Protocol):
    """Opens the API of a head on this machine."""

    def __call__(self, status: NodeStatus, token: str) -> HeadClient: ...


class ControlChannel(Protocol):
    """One session's stream. ``receive`` returns None at the other side's end; both raise ConnectionError."""

    async def send(self, message: worker_pb2.SessionRequest) -> None: ...

    async def receive(self) -> worker_pb2.SessionResponse | None: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Part of a driver's log."""

    attempt_id: str
    member_id: str
    offset: int
    data: bytes
    final: bool


class ControlPlane(Protocol):
    """Reaching the control plane: outbound calls only. All raise ConnectionError."""

    async def open(self) -> ControlChannel:
        """Begin a session. Raises RefusedForeverError where this worker is not let in any more."""

    async def ship_log(self, chunk: LogChunk) -> tuple[int, bool]:
        """(bytes stored without a gap, whether the log is complete)."""

    async def fetch_package(self, attempt_id: str, sha256: str, into: Path) -> None:
        """Write the package's bytes to a file; raises ValueError where they do not have that hash."""

    def authorise(self, session_token: str) -> None:
        """Use this token for the other calls from now on."""


class Prober(Protocol):
    """Measures the ways between this worker's members and the peers that the control plane named."""

    def follow(
        self, desired: Mapping[str, worker_pb2.DesiredMember], statuses: Mapping[str, NodeStatus]
    ) -> None:
        """Measure for members whose network is there, and for no others; the same again changes nothing."""

    def complete(self, report: worker_pb2.MemberObserved) -> None:
        """Add what was found to a member's report."""

    async def close(self) -> None: ...


class Attendant(Protocol):
    """Takes part in every session beside the agent's own work."""

    async def attend(self, channel: ControlChannel) -> None:
        """Called as each session opens; may send until cancelled, or return. A ConnectionError ends the session."""

    def take(self, message: worker_pb2.SessionResponse) -> None:
        """Every message from the welcome on but answered heartbeats, before the agent sees it."""


class Journal(Protocol):
    """The agent's durable memory. ``save`` returns when the record would survive a power cut."""

    def load(self) -> Record: ...

    def save(self, record: Record) -> None: ...


class AgentClock(Protocol):
    """The agent's time: boot clock in ms, which counts sleep, and the boot it belongs to.

    ``now`` has the wall clock too, for what is dated by others: an owner may have set it wrong.
    """

    def now(self) -> Now: ...

    def boottime_ms(self) -> int: ...

    def boot_id(self) -> str: ...

    def jitter(self, base_s: float) -> float: ...
